"""The command `degu`: one file for each group of commands, thin; the work is done below.

A command talks to the node of its home over that node's unix socket (degu_rpc.node.api): what it
can do, a program can do. Each is imported when it is used, so that `degu status` need not wait for
what `degu doctor` needs.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING

import click

from degu import __version__
from degu_rpc.cli.exits import Exit
from degu_rpc.cli.session import Command, build_shared_options

if TYPE_CHECKING:
    from degu_rpc.cli.failures import Failure

_COMMANDS = {
    'demo': 'demo',
    'up': 'running',
    'down': 'running',
    'status': 'running',
    'pair': 'pairing',
    'unpair': 'pairing',
    'peers': 'pairing',
    'id': 'pairing',
    'ls': 'files',
    'get': 'files',
    'send': 'inbox',
    'inbox': 'inbox',
    'serve': 'serve',
    'methods': 'calls',
    'call': 'calls',
    'stubs': 'calls',
    'doctor': 'doctor',
    'service': 'service',
    'config': 'config',
    'completion': 'completion',
}
"""The module of each command, in the order of the help; the function has the command's name."""


class _Commands(click.Group):
    """Imports a command when it is asked for."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        module = _COMMANDS.get(name)
        if module is None:
            return None
        found: click.Command = getattr(
            importlib.import_module(f'degu_rpc.cli.{module}'), 'id_' if name == 'id' else name
        )
        return found


_EPILOG = '\b\nExit status:\n' + '\n'.join(f'  {each.value:3}  {each.text}' for each in Exit)


@click.group(
    cls=_Commands,
    context_settings={'help_option_names': ['-h', '--help']},
    epilog=_EPILOG,
    params=build_shared_options(),
)
@click.version_option(__version__, prog_name='degu')
def commands(**_shared: object) -> None:
    """Devices on a local network call each other's functions and hand each other files.

    Run a node on each machine with `degu up`, pair them with `degu pair`.
    """


def main() -> None:
    """Run the command `degu` and exit with its status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command, print what went wrong, and return the exit status."""
    from degu_rpc.cli.failures import Failure, explain

    try:
        # A status comes from click itself, which ends --help and --version so.
        status: int | None = commands.main(arguments, prog_name='degu', standalone_mode=False)
    except click.ClickException as error:
        if '--json' not in arguments:
            error.show()
            return error.exit_code
        return _report(Failure(Exit.USAGE, error.format_message()), arguments)
    except click.Abort:
        # Ctrl-C, or no answer to a question.
        return _report(Failure(Exit.INTERRUPTED, 'interrupted'), arguments)
    except Exception as error:
        failure = explain(error)
        if failure is None:
            raise
        return _report(failure, arguments)
    return status or Exit.DONE


def _report(failure: Failure, arguments: list[str]) -> int:
    from degu_rpc.text import escape_controls

    if '--json' in arguments:
        click.echo(json.dumps(failure.build_document()), err=True)
    else:
        click.echo(f'degu: {escape_controls(failure.message)}', err=True)
        if failure.remedy:
            click.echo(f'      {escape_controls(failure.remedy)}', err=True)
    return failure.exit_status


__all__ = ['Command', 'commands', 'main', 'run']
