"""`degu pair`, `degu unpair`, `degu id`, `degu peers`: who this machine is, and whom it trusts."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from degu_rpc.cli.completers import complete_peers
from degu_rpc.cli.documents import Ids, Opened
from degu_rpc.cli.exits import Exit, format_exits
from degu_rpc.cli.failures import Failure
from degu_rpc.cli.session import Command, Session, Styled
from degu_rpc.cli.targets import respell
from degu_rpc.node.api import PairedWith
from degu_rpc.node.limits import NEARBY_S

if TYPE_CHECKING:
    from degu_rpc.node.api import IntentName, NodeApi, PairingEvent, PeerStatus

CODE_VARIABLE = 'DEGU_PAIR_CODE'
GLANCE_S = 1.0
"""How long the network has to say that a window is open nearby, before one is opened here."""
PAIRING_S = 180.0
"""How long a pairing may take: the time of a window, and what the last steps may need."""
_SHORT = 12


@click.command(
    cls=Command,
    epilog=format_exits(
        Exit.DONE, Exit.FAILED, Exit.USAGE, Exit.UNREACHABLE, Exit.REFUSED, Exit.NOT_RUNNING
    ),
)
@click.argument('code', required=False)
@click.option('--qr', 'shows_qr', is_flag=True, help='Show the code as a QR code, too.')
@click.option('--mine', 'is_mine', is_flag=True, help='The other machine is one of my own.')
@click.option('--at', 'address', metavar='IP:PORT', help='Where the window of the other one is.')
@click.option('--show', 'is_showing', is_flag=True, help='Show a code; do not look for one.')
@click.option('--yes', 'is_sure', is_flag=True, help='Give up the identity that is here.')
def pair(
    session: Session,
    code: str | None,
    shows_qr: bool,
    is_mine: bool,
    address: str | None,
    is_showing: bool,
    is_sure: bool,
) -> None:
    """Make this machine and another one trust each other, by a short code.

    Run it on both. One shows a code, the other asks for it. CODE is what the other one shows; in
    scripts give it as DEGU_PAIR_CODE, or with --at on standard input: other users of this machine
    cannot see it there.

    Each user then trusts the other one. With --mine on both sides, the machine where the code is
    typed becomes one more machine of the user of the other, and gives up the identity it has.
    """
    intent: IntentName = 'join' if is_mine else 'peer'
    if is_showing and (code is not None or address is not None):
        raise Failure(
            Exit.USAGE, '--show is for the machine where no code is typed', 'leave it out'
        )
    with session.node(PAIRING_S) as node:
        if not is_showing:
            code = code or os.environ.get(CODE_VARIABLE)
            code = code or _ask_for_code(session, node, address)
        if code is None:
            _show_window(session, node, intent, shows_qr)
        else:
            _pair_with(session, node, code, address, intent, is_sure)


def _ask_for_code(session: Session, node: NodeApi, address: str | None) -> str | None:
    """Ask for the code of the window that is at an address, or nearby; None where none is.

    Raises Failure where somebody says where the window is and does not say the code.
    """
    if not sys.stdin.isatty():
        code = sys.stdin.readline().strip() if address is not None else ''
    elif session.is_json:
        code = ''
    else:
        return _prompt_for_code(session, node, address)
    if address is not None and not code:
        raise Failure(
            Exit.USAGE,
            'with --at the code of that window is needed',
            f'give it as CODE, in {CODE_VARIABLE}, or on standard input',
        )
    return code or None


def _prompt_for_code(session: Session, node: NodeApi, address: str | None) -> str | None:
    if address is None:
        windows = node.windows(GLANCE_S)
        if not windows:
            return None
        session.note('a pairing window is open nearby', err=True)
    answer: str = click.prompt(
        'Code (Enter to show one here)', default='', show_default=False, err=True
    )
    return answer or None


def _show_window(session: Session, node: NodeApi, intent: IntentName, shows_qr: bool) -> None:
    for event in node.open_pairing(intent):
        if event.kind == 'opened':
            _say_code(session, event, intent, shows_qr)
        else:
            paired = PairedWith(event.user_id, event.machine_id, event.name)
            session.emit('paired', paired)
            session.note('paired with ', Styled(event.name, is_bold=True))


def _say_code(session: Session, event: PairingEvent, intent: IntentName, shows_qr: bool) -> None:
    session.emit(
        'opened',
        Opened(event.code, event.words, event.addresses, event.invitation, event.expires_in_s),
    )
    session.say('Code: ', Styled(event.code, is_bold=True), f'   or: {event.words}')
    mine = ' --mine' if intent == 'join' else ''
    session.note(f'On the other machine, within {event.expires_in_s:.0f} s: degu pair{mine}')
    if event.addresses:
        session.note(f'If it does not find this one: degu pair{mine} --at {event.addresses[0]}')
    if shows_qr and event.invitation:
        from degu_rpc.peers.pairing.invitation import draw_qr

        click.echo(draw_qr(event.invitation))
    sys.stdout.flush()


def _pair_with(
    session: Session,
    node: NodeApi,
    code: str,
    address: str | None,
    intent: IntentName,
    is_sure: bool,
) -> None:
    if intent == 'join' and not is_sure:
        session.confirm(
            "This machine will be another user's, and trust whom that user trusts; the identity it "
            'has now is kept aside. Go on?',
            '--yes',
        )
    paired = node.pair(code, address, intent)
    session.emit('paired', paired)
    if intent == 'peer':
        session.note('paired with ', Styled(paired.name, is_bold=True))
        return
    session.note('this machine is now one of user ', Styled(paired.user_id[:_SHORT] + '...'))
    session.note(f'what it was before is in {paired.former_home}; the node starts anew')


@click.command(
    cls=Command, epilog=format_exits(Exit.DONE, Exit.FAILED, Exit.NOT_FOUND, Exit.NOT_RUNNING)
)
@click.argument('peer', shell_complete=complete_peers)
@click.option('--yes', 'is_sure', is_flag=True, help='Do not ask.')
def unpair(session: Session, peer: str, is_sure: bool) -> None:
    """Trust PEER no more: a user, or one machine, by name or id.

    It is out at its next request, on connections that are open, too.
    """
    if not is_sure:
        session.confirm(f'Trust {peer} no more?', '--yes')
    with session.node() as node:
        gone = node.unpair(respell(peer))
    session.emit('unpaired', gone)
    session.note(f'{gone.name} is not trusted any more')


@click.command('id', cls=Command, epilog=format_exits(Exit.DONE, Exit.FAILED, Exit.NOT_FOUND))
@click.option('--qr', 'shows_qr', is_flag=True, help='Show the id of the machine as a QR code.')
def id_(session: Session, shows_qr: bool) -> None:
    """Show who this machine is: the ids of its user and of itself. No node need run.

    They are spelled to be read aloud: the last four characters follow from the others, so a mistake
    is found. Commands take an id so, too, with or without its dashes. With --json and in the QR
    code an id is 48 characters, as machines write it.
    """
    from degu_rpc.peers import Identity, format_id

    try:
        session.home.check()
        identity = Identity.open(session.home.identity_directory)
    except FileNotFoundError as error:
        raise Failure(Exit.NOT_FOUND, str(error), 'degu up makes one') from None
    session.emit('id', Ids(identity.user_id, identity.machine_id, identity.can_certify))
    session.say(f'user     {format_id(identity.user_id)}')
    session.say(f'machine  {format_id(identity.machine_id)}')
    if shows_qr and not session.is_json:
        from degu_rpc.peers.pairing.invitation import draw_qr

        click.echo(draw_qr(identity.machine_id))


@click.command(
    cls=Command, epilog=format_exits(Exit.DONE, Exit.FAILED, Exit.NOT_FOUND, Exit.NOT_RUNNING)
)
@click.option(
    '--nearby', 'is_nearby', is_flag=True, help='All machines that are seen, known or not.'
)
def peers(session: Session, is_nearby: bool) -> None:
    """List whom this machine trusts and where they are; with --nearby, who is on the network."""
    if is_nearby:
        _list_nearby(session)
        return
    with session.node() as node:
        found = node.status().peers
    for peer in found:
        session.emit('peer', peer)
        _say_peer(session, peer)
    if not any(peer.machines for peer in found):
        session.note('no peers yet; pair with another machine: degu pair')


def _say_peer(session: Session, peer: PeerStatus) -> None:
    for machine in peer.machines:
        state = 'denied' if machine.is_denied else 'near' if machine.is_nearby else 'not seen'
        where = machine.addresses[0].partition('@')[2] if machine.addresses else ''
        roles = ','.join(peer.roles)
        session.say(f'{machine.name:20} {state:9} {roles:8} {machine.machine_id}  {where}')


def _list_nearby(session: Session) -> None:
    with session.node() as node:
        found = node.nearby(session.timeout_s or NEARBY_S)
    for machine in found.machines:
        session.emit('nearby', machine)
        where = machine.addresses[0].partition('@')[2] if machine.addresses else ''
        session.say(f'{machine.name or "(not paired)":20} {machine.machine_id}  {where}')
    if not found.machines:
        raise Failure(
            Exit.NOT_FOUND, f'nobody is seen: {found.why_nothing}', 'look closer: degu doctor'
        )
