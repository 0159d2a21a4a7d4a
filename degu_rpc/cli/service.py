"""`degu service`: the node as a service of the user's systemd."""

from __future__ import annotations

import click

from degu_rpc.cli.documents import Removed, Units
from degu_rpc.cli.exits import Exit, format_exits
from degu_rpc.cli.failures import Failure
from degu_rpc.cli.session import Command, Group, Session, Styled
from degu_rpc.node.systemd import SERVICE, UserUnits

_EXITS = format_exits(Exit.DONE, Exit.FAILED, Exit.USAGE)


@click.group(
    cls=Group,
    epilog=format_exits(Exit.DONE, Exit.FAILED, Exit.USAGE, Exit.NOT_FOUND, Exit.NOT_RUNNING),
)
def service(**_shared: object) -> None:
    """Have systemd run the node: at each login, and again after a crash."""


@service.command(cls=Command, epilog=_EXITS)
@click.option('--yes', 'is_sure', is_flag=True, help='Replace units that somebody else wrote.')
def install(session: Session, is_sure: bool) -> None:
    """Write the units degu.service and degu.socket, and start the node.

    They run this Python and this home. Settings are those of `degu config`: the environment of
    systemd is not yours.
    """
    units = UserUnits()
    if foreign := units.find_foreign():
        names = ', '.join(map(str, foreign))
        if not is_sure:
            session.confirm(f'{names}: degu did not write it. Replace it?', '--yes')
    units.install(session.home)
    state = units.read_state()
    session.emit('installed', Units(str(units.directory), *state))
    session.note(Styled(state.active, 'green'), f': {SERVICE}, process {state.pid}')
    session.note(f'units: {units.directory}; log: journalctl --user -u {SERVICE}')
    session.note('it runs while you are logged in; always, with: loginctl enable-linger')


@service.command(cls=Command, epilog=_EXITS)
def remove(session: Session) -> None:
    """Stop the node and remove the units; the home stays."""
    units = UserUnits()
    removed = units.remove()
    session.emit('removed', Removed(list(map(str, removed))))
    session.note(*(['removed ', ', '.join(map(str, removed))] if removed else ['nothing is there']))
    if foreign := units.find_foreign():
        names = ', '.join(map(str, foreign))
        raise Failure(Exit.FAILED, f'{names}: degu did not write it', 'remove it yourself')


@service.command(
    cls=Command, epilog=format_exits(Exit.DONE, Exit.FAILED, Exit.NOT_FOUND, Exit.NOT_RUNNING)
)
def status(session: Session) -> None:
    """Show whether the units are there, and whether systemd runs the node."""
    units = UserUnits()
    if not units.find_own():
        raise Failure(
            Exit.NOT_FOUND,
            f'{units.directory} has no units of degu',
            'make them: degu service install',
        )
    state = units.read_state()
    session.emit('service', Units(str(units.directory), *state))
    starts = 'starts at each login' if state.is_enabled else 'is not started at login'
    session.say(f'installed in {units.directory}; {starts}')
    if state.pid is None:
        raise Failure(
            Exit.NOT_RUNNING,
            f'{SERVICE} is {state.active}',
            f'see why: journalctl --user -u {SERVICE}',
        )
    session.say(Styled(state.active, 'green'), f', process {state.pid}')
