"""`degu up`, `degu down`, `degu status`: a node here, from its start to its end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from degu.net import inherited
from degu_rpc.cli.documents import Stopped
from degu_rpc.cli.exits import Exit, format_exits
from degu_rpc.cli.failures import Failure
from degu_rpc.cli.pairing import CODE_VARIABLE
from degu_rpc.cli.session import Command, Session, Styled
from degu_rpc.cli.words import format_age
from degu_rpc.errors import NodeRunningError
from degu_rpc.node.limits import STOP_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from degu.net import Inherited
    from degu_rpc.node.api import InboxStatus, PeerStatus, Status
    from degu_rpc.node.device import Node

START_S = 30.0
"""How long a node in the background has to be ready; keys are made in that time."""
MAX_LOG_SIZE = 1024 * 1024
"""From what size on the log of a node in the background is begun anew; one former is kept."""
_POLL_S = 0.02


@click.command(
    cls=Command,
    epilog=format_exits(Exit.DONE, Exit.FAILED, Exit.USAGE, Exit.UNREACHABLE),
)
@click.option('--bg', 'in_background', is_flag=True, help='Return once it is ready.')
@click.option(
    '--name',
    help='What other machines see, for this run; degu config set name keeps one.  '
    '[env var: DEGU_NAME]',
)
@click.option(
    '--port',
    type=click.IntRange(0, 65535),
    help='TCP port for other machines, 0 for any.  [env var: DEGU_PORT]',
)
@click.option(
    '--discovery/--no-discovery',
    default=None,
    help='Be found, and find, by mDNS.  [env var: DEGU_DISCOVERY]',
)
def up(session: Session, in_background: bool, **flags: Any) -> None:
    """Run a node here: be found by other machines, and take their calls.

    The first time it makes the keys of this machine. It runs until Ctrl-C or `degu down`.
    """
    if in_background:
        _start_in_background(session, flags)
    else:
        _run(session, flags)


def _run(session: Session, flags: dict[str, Any]) -> None:
    from degu_rpc.node.notify import notify
    from degu_rpc.node.signals import on_signals

    run = _Run()
    with on_signals(run.end):
        from degu_rpc.node.config import build_config, read_settings
        from degu_rpc.node.device import Node

        config = build_config(read_settings(session.home, flags))
        run.node = node = Node(session.home, config=config, control=_find_inherited())
        while not run.is_over():
            with node:
                if not run.is_over():
                    _say_ready(session, node, flags)
                    machine_id = node.trust.identity.machine_id
                    notify('READY=1', f'STATUS={config.name}, machine {machine_id}')
                    if not node.wait():
                        run.end()
                # Not where it starts anew: systemd would take nothing back, and kill it.
                if run.is_over():
                    notify('STOPPING=1')


class _Run:
    """One run of `degu up`, which a signal ends: at its start, while it stops, or between."""

    # Written by end(), which signal handlers call: _is_over. Set once: node.

    node: Node | None = None

    def __init__(self) -> None:
        self._is_over = False

    def is_over(self) -> bool:
        return self._is_over

    def end(self) -> None:
        self._is_over = True
        if self.node is not None:
            self.node.stop()


def _say_ready(session: Session, node: Node, flags: dict[str, Any]) -> None:
    from degu_rpc.node.status import build_status

    status = build_status(node)
    session.emit('ready', status)
    session.note(Styled('ready', 'green'), f': {status.name}, machine {status.machine_id[:12]}...')
    _say_how_to_keep(session, flags)
    for url in status.urls:
        session.say(f'  {url}')
    for problem in status.problems:
        session.say(Styled('  problem: ', 'yellow'), f'{problem.what}; {problem.remedy}')


def _say_how_to_keep(session: Session, flags: dict[str, Any]) -> None:
    """Say that a name which is only in a flag is that of this run."""
    from degu_rpc.node.config import read_settings

    name = flags['name']
    if name is not None and name != read_settings(session.home, {})['name'].value:
        session.note(f'it is {name} for this run; to keep the name: degu config set name {name}')


def _find_inherited() -> Inherited | None:
    # Source: sd_listen_fds(3).
    if os.environ.get('LISTEN_PID') != str(os.getpid()):
        return None
    return inherited()


# --- in the background ---------------------------------------------------------------------------


def _start_in_background(session: Session, flags: dict[str, Any]) -> None:
    """Start a process of its own and wait until it says that it is ready.

    Raises Failure with what it said where it is not, NodeRunningError where one runs already, whose
    log this is.
    """
    from degu_rpc.peers.private import make_directory

    home = session.home
    home.check_path()
    make_directory(home.directory)
    if home.is_held():
        raise NodeRunningError(home.directory, home.find_holder())
    log = home.log_path
    if log.exists() and log.stat().st_size > MAX_LOG_SIZE:
        log.rename(home.old_log_path)
    with (
        _listening_for_ready(home.directory / f'up-{os.getpid()}') as ready,
        open(log, 'ab', opener=_open_private) as log_file,
    ):
        began = log_file.tell()
        process = subprocess.Popen(  # noqa: S603  # this program itself
            [sys.executable, '-m', 'degu_rpc.cli', *_format_flags(session, flags)],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            cwd='/',
            env=_build_environment(str(ready.getsockname())),
            start_new_session=True,
        )
        timeout_s = session.timeout_s or START_S
        if not _wait_until_ready(process, ready, timeout_s):
            raise Failure(
                Exit.UNREACHABLE,
                f'it was not ready after {timeout_s:g} s, and was ended',
                f'see its log, {log}, or give it more time: --timeout SECONDS',
            )
        if process.poll() is not None:
            raise _find_failure(process.returncode, log, began)
    with session.node() as node:
        status = node.status()
    session.emit('ready', status)
    session.note(Styled('ready', 'green'), f': {status.name}, process {status.pid}; log: {log}')
    _say_how_to_keep(session, flags)


@contextlib.contextmanager
def _listening_for_ready(path: Path) -> Iterator[socket.socket]:
    """Yield a socket for sd_notify(3), in the home: nobody else can take its place later."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        path.unlink(missing_ok=True)  # of a process that was killed and had our number
        ready.bind(str(path))
        try:
            yield ready
        finally:
            path.unlink()


def _build_environment(notify_socket: str) -> dict[str, str]:
    environment = {**os.environ, 'NOTIFY_SOCKET': notify_socket}
    environment.pop(CODE_VARIABLE, None)  # a secret, which would be there for as long as it runs
    return environment


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _format_flags(session: Session, flags: dict[str, Any]) -> list[str]:
    # --json: why it fails can be read from its log.
    found = ['up', '--json', '--home', str(session.home.directory), *['-v'] * session.verbosity]
    for key, value in flags.items():
        if isinstance(value, bool):
            found.append(f'--{key}' if value else f'--no-{key}')
        elif value is not None:
            found.append(f'--{key}={value}')
    return found


def _wait_until_ready(
    process: subprocess.Popen[bytes], ready: socket.socket, timeout_s: float
) -> bool:
    """Wait until a node says that it is ready, or ends; end one that does neither in time."""
    deadline = time.monotonic() + timeout_s
    ready.settimeout(_POLL_S)
    while process.poll() is None:
        with contextlib.suppress(TimeoutError):
            if b'READY=1' in ready.recv(4096).split(b'\n'):
                break
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            return False
    return True


def _find_failure(exit_status: int, log: Path, began: int) -> Failure:
    """Return why a node ended: the last error that it wrote to its log since it began."""
    with log.open('rb') as file:
        file.seek(began)
        said = file.read(MAX_LOG_SIZE)
    for line in reversed(said.splitlines()):
        with contextlib.suppress(ValueError, TypeError, KeyError):  # of anything but that
            found = json.loads(line)
            if found['type'] == 'error':
                return Failure(
                    Exit(found['status']), found['message'], found['remedy'], found['kind']
                )
    return Failure(Exit.FAILED, f'it ended with status {exit_status}', f'see its log: {log}')


# --- down and status -----------------------------------------------------------------------------


@click.command(
    cls=Command, epilog=format_exits(Exit.DONE, Exit.FAILED, Exit.UNREACHABLE, Exit.NOT_RUNNING)
)
def down(session: Session) -> None:
    """Stop the node that runs here, and wait until it is gone."""
    with session.node() as node:
        node.stop()
    deadline = time.monotonic() + (session.timeout_s or STOP_S)
    while session.home.is_held():
        if time.monotonic() > deadline:
            pid = session.home.find_holder()
            raise Failure(
                Exit.UNREACHABLE,
                f'process {pid} was told to stop and still runs',
                f'see {session.home.log_path}, or end it: kill {pid}',
            )
        time.sleep(_POLL_S)
    session.emit('stopped', Stopped())
    session.note('stopped')


@click.command(
    cls=Command, epilog=format_exits(Exit.DONE, Exit.FAILED, Exit.UNREACHABLE, Exit.NOT_RUNNING)
)
@click.option('--watch', 'is_watching', is_flag=True, help='Print it again with every change.')
def status(session: Session, is_watching: bool) -> None:
    """Show this machine, whom it trusts and who is near, what it serves, and what is wrong."""
    if is_watching:
        _watch(session)
        return
    with session.node() as node:
        _show(session, node.status())


def _watch(session: Session) -> None:
    from degu_rpc.node.api import NODE, NodeApi

    with session.node_client() as client:
        # Without a time even if one is given: it lasts as long as somebody looks.
        node = client.using().bind(NodeApi, NODE)
        for index, now in enumerate(node.watch()):
            if index and not session.is_json:
                session.say('' if not sys.stdout.isatty() else '\n')
            _show(session, now)
            sys.stdout.flush()


def _show(session: Session, now: Status) -> None:
    session.emit('status', now)
    session.say(Styled(now.name, is_bold=True), f'  machine {now.machine_id[:12]}...')
    age = datetime.now(UTC) - now.started_at
    session.say(f'  running for {format_age(age.total_seconds())}, process {now.pid}, {now.home}')
    for url in now.urls:
        session.say(f'  reached at {url.partition("@")[2]}')
    peers = [peer for peer in now.peers if peer.machines or not peer.is_me]
    if not peers:
        session.say('no peers yet; pair with another machine: degu pair')
    for peer in peers:
        _show_peer(session, peer)
    for service in now.services:
        session.say(f'serves {service.name}')
    for share in now.shares:
        session.say(f'shares {share.name}: {share.path} (for {", ".join(share.allow)})')
    if now.inbox is not None:
        _show_inbox(session, now.inbox)
    for problem in now.problems:
        session.say(Styled('problem: ', 'yellow'), f'{problem.what}; {problem.remedy}')


def _show_inbox(session: Session, inbox: InboxStatus) -> None:
    if inbox.arriving:
        session.say(f'inbox: {inbox.arriving} arriving')
    if inbox.waiting:
        session.say(
            Styled('inbox: ', 'yellow'), f'{inbox.waiting} waiting for an answer: degu inbox'
        )


def _show_peer(session: Session, peer: PeerStatus) -> None:
    who = 'my own machines' if peer.is_me else f'{peer.name} ({", ".join(peer.roles)})'
    session.say(who)
    for machine in peer.machines:
        if machine.is_denied:
            state = Styled('denied', 'red')
        elif machine.is_nearby:
            state = Styled('near', 'green')
        else:
            state = Styled('not seen')
        session.say(f'  {machine.name}  ', state, f'  machine {machine.machine_id[:12]}...')
