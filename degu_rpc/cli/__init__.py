"""The command `degu`: one file for each group of commands, thin; the work is done below.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys

import click

from degu import __version__

INTERRUPTED = 130


def main() -> None:
    """Run the command `degu` and exit with its status."""
    try:
        commands.main(prog_name='degu', standalone_mode=False)
    except click.Abort:
        click.echo('interrupted', err=True)
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


@click.group(context_settings={'help_option_names': ['-h', '--help']})
@click.version_option(__version__, prog_name='degu')
def commands() -> None:
    """Devices on a local network call each other and hand each other files.

    Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """


@commands.command()
def demo() -> None:
    """Show it all on this machine: two homes with their own identities, as two processes.

    They call each other over mutual TLS and over unix sockets; one fetches the standard library of
    this Python from the other, is killed on the way, resumes, and every file is verified; strangers
    are refused. Needs nothing and leaves nothing behind.

    Exit status: 0 if all of it really happened, 1 if not, 130 interrupted.
    """
    from degu_rpc.cli.demo import run_demo

    run_demo()


@commands.command()
@click.argument('socket')
@click.argument('services', nargs=-1, metavar='[SERVICE]...')
@click.option('--prefix', default='/rpc', show_default=True, help='Where the services are mounted.')
def stubs(socket: str, services: tuple[str, ...], prefix: str) -> None:
    """Write typed client classes of the services that are served at SOCKET, as Python source.

    SOCKET is the path of a unix socket, or unix: and the path. The services there must include
    meta.v1.Meta. Without a SERVICE, all of them are written that you may call.

    Exit status: 0 done, 1 the server cannot be reached or refuses, 2 wrong usage.
    """
    from degu_rpc.cli.stubs import read_stubs

    click.echo(read_stubs(socket, services, prefix), nl=False)
