"""What all commands share: the flags, the way to the node, and the way to the terminal.

1. Each command takes the shared flags, before its name or behind it; `Session` is what they say.
2. Text from peers can be anywhere in what is printed, so `say` escapes control characters in all of
   it. What is to be coloured is given as `Styled`. `say` is for results and `note` for the rest.
3. With `--json` a command prints documents, each with `"v": 1` and a `"type"`, and nothing else.
4. Whatever a command raises is explained in one place (degu_rpc.cli.failures).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from degu_rpc.cli.exits import Exit
from degu_rpc.cli.failures import Failure, explain_node
from degu_rpc.errors import RpcError
from degu_rpc.node.api import NODE, NodeApi
from degu_rpc.node.home import Home
from degu_rpc.text import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from degu_rpc.rpc.client import RpcClient

NODE_S = 10.0
"""How long the node has for an answer, unless told otherwise."""
PREFIX = '/rpc'
"""Where services are mounted."""


class Styled(NamedTuple):
    """Text in a colour or in bold."""

    text: str
    colour: str | None = None
    is_bold: bool = False


@dataclass(slots=True)
class Session:
    """The shared flags of one run of the command."""

    home: Home
    is_json: bool = False
    is_quiet: bool = False
    verbosity: int = 0
    timeout_s: float | None = None

    # --- to the terminal -------------------------------------------------------------------------

    def say(self, *parts: str | Styled, err: bool = False) -> None:
        """Print a line of what was asked for, on stderr one that is about it; not with `--json`."""
        if not self.is_json:
            # While a bar is drawn, this stream writes above it; `err` would write into it.
            click.echo(''.join(map(_render, parts)), file=sys.stderr if err else None)

    def note(self, *parts: str | Styled, err: bool = False) -> None:
        """Print a line that says no more than that all is well, or what comes next.

        With `--quiet` or `--json` it is not printed.
        """
        if not self.is_quiet:
            self.say(*parts, err=err)

    def emit(self, kind: str, value: Any) -> None:
        """Print a document, with `--json` only: what has fields, with what JSON makes of them."""
        if self.is_json:
            import msgspec

            content = msgspec.to_builtins(value)
            click.echo(json.dumps({'v': 1, 'type': kind, **content}))

    def confirm(self, question: str, flag: str) -> None:
        """Ask before something that cannot be undone.

        Raises Failure where the answer is no, and where nobody can be asked, naming the flag.
        """
        if not sys.stdin.isatty() or self.is_json:
            raise Failure(Exit.USAGE, f'{question} Nobody can be asked here', f'say so with {flag}')
        if not click.confirm(escape_controls(question), err=True):
            raise Failure(Exit.FAILED, 'nothing was changed')

    # --- to the node -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def node(self, timeout_s: float = NODE_S) -> Iterator[NodeApi]:
        """Yield the running node of this home; it has so long for each call, unless a flag says.

        Raises Failure where none runs, and IdentityError for a home that is not ours.
        """
        with self.node_client() as client:
            yield client.using(timeout_s=self.timeout_s or timeout_s).bind(NodeApi, NODE)

    @contextlib.contextmanager
    def node_client(self) -> Iterator[RpcClient]:
        """Yield a client of the node for calls that last, with no limit of ours; see `node`."""
        try:
            with self.local_client() as client:
                yield client
        except RpcError as error:
            raise explain_node(error) from error

    @contextlib.contextmanager
    def local_client(self, prefix: str = PREFIX) -> Iterator[RpcClient]:
        """Yield a client of what is at the node's socket, the node's own services or others.

        Raises Failure where no node runs, and IdentityError for a home that is not ours.
        """
        from degu.client import Client
        from degu_rpc.rpc.client import RpcClient

        try:
            self.home.check()
        except FileNotFoundError:
            raise self._not_running() from None
        with RpcClient(Client(str(self.home.socket_path)), prefix) as client:
            try:
                yield client
            except RpcError as error:
                if isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError):
                    raise self._not_running() from error
                raise

    def _not_running(self) -> Failure:
        return Failure(
            Exit.NOT_RUNNING,
            f'no node runs with {self.home.directory}',
            'start one: degu up --bg',
        )


def _render(part: str | Styled) -> str:
    if isinstance(part, str):
        return escape_controls(part)
    return click.style(escape_controls(part.text), fg=part.colour, bold=part.is_bold or None)


# --- the shared flags ----------------------------------------------------------------------------


class Command(click.Command):
    """A command that takes the shared flags, too, and gets a Session as its first argument."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        taken = {option for param in self.params for option in param.opts}
        self.params += [
            option for option in build_shared_options() if not taken.intersection(option.opts)
        ]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command with what the flags say."""
        session = build_session(given := collect_shared(ctx))
        # Source: no-color.org, "when present and not an empty string".
        if given.get('no_color') or os.environ.get('NO_COLOR'):
            ctx.color = False
        if self.callback is not None:
            return ctx.invoke(self.callback, session, **ctx.params)
        return None


class Group(click.Group):
    """A command that has commands of its own; it takes the shared flags, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += build_shared_options()


def collect_shared(ctx: click.Context) -> dict[str, Any]:
    """Take the shared flags out of a command's context and those above it; the last one counts."""
    given: dict[str, Any] = {}
    contexts = [ctx]
    while (parent := contexts[0].parent) is not None:
        contexts.insert(0, parent)
    for each in contexts:
        for option in build_shared_options():
            assert option.name is not None
            if value := each.params.pop(option.name, None):
                given[option.name] = value
    return given


def build_shared_options() -> list[click.Option]:
    """Return the flags that every command takes."""
    return [
        click.Option(['-q', '--quiet'], is_flag=True, help='Print results and errors only.'),
        click.Option(['-v', '--verbose'], count=True, help='Log more; twice for everything.'),
        click.Option(['--json'], is_flag=True, help='Print JSON, with "v": 1 and a "type".'),
        click.Option(
            ['--home'],
            type=click.Path(file_okay=False, path_type=Path),
            help='The directory of this device.  [env var: DEGU_HOME]',
        ),
        click.Option(['--no-color'], is_flag=True, help='No colours.  [env var: NO_COLOR]'),
        click.Option(
            ['--timeout'],
            type=click.FloatRange(min=0, min_open=True),
            metavar='SECONDS',
            help='How long to wait; in a transfer, while nothing goes on.',
        ),
    ]


def build_session(given: dict[str, Any]) -> Session:
    """Return the session that shared flags ask for; set up logging. Raises IdentityError."""
    verbosity = given.get('verbose') or 0
    set_up_logging(verbosity)
    return Session(
        Home(given.get('home')),
        bool(given.get('json')),
        bool(given.get('quiet')),
        verbosity,
        given.get('timeout'),
    )


class _JournalFormatter(logging.Formatter):
    """Formats for systemd's journal, which has times and levels of its own.

    Source: sd-daemon(3), "<6>" and so on before each line.
    """

    _PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        priority = next((p for level, p in self._PRIORITIES if record.levelno >= level), 7)
        return '\n'.join(f'<{priority}>{line}' for line in text.splitlines())


def set_up_logging(verbosity: int) -> None:
    """Log to stderr: warnings, with one `-v` what happens, with two everything."""
    handler = logging.StreamHandler()
    if _is_journal(sys.stderr.fileno()):
        handler.setFormatter(_JournalFormatter('%(name)s: %(message)s'))
    else:
        handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(name)s: %(message)s'))
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _is_journal(descriptor: int) -> bool:
    """Say whether what is written there goes to systemd's journal.

    Source: systemd.exec(5), JOURNAL_STREAM: others inherit the variable and write elsewhere.
    """
    status = os.fstat(descriptor)
    return os.environ.get('JOURNAL_STREAM') == f'{status.st_dev}:{status.st_ino}'
