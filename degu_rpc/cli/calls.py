"""Commands that call services."""

from __future__ import annotations

import click

from degu_rpc.cli.exits import Exit, format_exits
from degu_rpc.cli.session import Command, Session


@click.command(cls=Command, epilog=format_exits(Exit.DONE, Exit.FAILED, Exit.USAGE))
@click.argument('socket', type=click.Path(exists=True, resolve_path=True))
@click.argument('services', nargs=-1, metavar='[SERVICE]...')
@click.option('--prefix', default='/rpc', show_default=True, help='Where the services are mounted.')
def stubs(_session: Session, socket: str, services: tuple[str, ...], prefix: str) -> None:
    """Write typed client classes of the services that are served at SOCKET, as Python source.

    SOCKET is the path of a unix socket; the services there must include meta.v1.Meta. Without a
    SERVICE, all of them are written that you may call.
    """
    from degu_rpc.cli.stubs import read_stubs

    click.echo(read_stubs(socket, services, prefix), nl=False)
