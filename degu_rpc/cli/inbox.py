"""`degu send` and `degu inbox`: files for other machines, and what others send to this one."""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from degu_rpc.cli.completers import complete_machines, complete_offers
from degu_rpc.cli.documents import Asked, Delivered, SkippedPath
from degu_rpc.cli.exits import Exit, format_exits
from degu_rpc.cli.failures import Failure
from degu_rpc.cli.progress import limit_option, transferring
from degu_rpc.cli.session import Command, Group, Session, Styled, build_session, collect_shared
from degu_rpc.cli.targets import build_client, locate, respell
from degu_rpc.cli.words import format_age, format_done, format_files, format_size, was
from degu_rpc.errors import OfferRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from degu_rpc.files import Progress, Sent
    from degu_rpc.node.api import Located, OfferStatus

_SHOWN_NAMES = 3
_EXITS = format_exits(Exit.DONE, Exit.FAILED, Exit.NOT_FOUND, Exit.NOT_RUNNING)


@click.command(
    cls=Command,
    epilog=format_exits(
        Exit.DONE,
        Exit.FAILED,
        Exit.USAGE,
        Exit.PARTLY,
        Exit.NOT_FOUND,
        Exit.UNREACHABLE,
        Exit.REFUSED,
        Exit.INTEGRITY,
        Exit.NOT_RUNNING,
        Exit.INTERRUPTED,
    ),
)
@click.argument('paths', nargs=-1, required=True, metavar='PATH...', type=click.Path())
@click.option(
    '--to',
    'peer',
    metavar='PEER',
    shell_complete=complete_machines,
    help='The machine; not needed where only one is paired.',
)
@limit_option
def send(
    session: Session, paths: tuple[str, ...], peer: str | None, rate_limit: float | None
) -> None:
    """Send files or directories into the inbox of PEER, where they are verified.

    What is there already is not sent again; what is interrupted goes on where it stopped when the
    same command is run again. Nothing there is replaced: what has a name that is taken gets another
    one. PEER may have to say yes first; then this waits.

    PEER is a machine, or what is served behind it and has an inbox of its own: studio/photos.
    """
    from degu_rpc.files import send as send_files
    from degu_rpc.node.api import INBOX

    for path in paths:
        if not path:  # of a variable that is not set: it must not mean the directory we are in
            raise Failure(Exit.USAGE, 'a path is empty')
        if not os.path.lexists(path):
            raise Failure(Exit.NOT_FOUND, f'{path} is not there')
    located = locate(session, _find_only_machine(session) if peer is None else respell(peer))
    client = build_client(session, located)
    waits_for = ''

    def say_waiting(offer_id: str) -> None:
        nonlocal waits_for
        waits_for = offer_id
        transfer.go_on()
        _say_waiting(session, located, offer_id)

    def show(now: Progress) -> None:
        nonlocal waits_for
        waits_for = '' if now.bytes_moved else waits_for
        transfer.show(now)

    def describe_late(timeout_s: float) -> Failure:
        return _describe_late(located, waits_for, timeout_s)

    with _explaining(located), transferring(session, describe_late) as transfer:
        sent = send_files(
            client,
            located.path + INBOX,
            paths,
            progress=show,
            cancel=transfer.cancel,
            rate_limit=rate_limit,
            waiting=say_waiting,
        )
    _say_sent(session, located, sent)
    if sent.skipped:
        raise Failure(Exit.PARTLY, f'{len(sent.skipped)} could not be sent, as said above')


@contextlib.contextmanager
def _explaining(located: Located) -> Iterator[None]:
    """Turn the no of an inbox into a Failure with what to do about it."""
    try:
        yield
    except OfferRefusedError as error:
        where, kind = f'{located.name}{located.path}', type(error).__name__
        if error.status == 404:
            whose = f'that of the machine: degu send --to {located.name}' if located.path else ''
            raise Failure(Exit.NOT_FOUND, f'{where} has no inbox', whose, kind) from error
        if error.status == 403:
            raise Failure(
                Exit.REFUSED,
                f'{where} takes nothing from you',
                f'whoever has {located.name} says whose files are taken, in [inbox] of config.toml',
                kind,
            ) from error
        if error.status == 200:
            which, accept = '', 'degu inbox accept'
            if error.offer_id:
                which, accept = f' offer {error.offer_id}', f'{accept} {error.offer_id}'
            raise Failure(
                Exit.REFUSED,
                f'{where} refused{which}: {error.reason}',
                f'ask them; if a person refused, {accept} there still takes it; then send it again',
                kind,
            ) from error
        raise


def _find_only_machine(session: Session) -> str:
    """Return the id of the one machine that is trusted. Raises Failure where it is not one."""
    with session.node() as node:
        machines = [
            machine
            for peer in node.status().peers
            for machine in peer.machines
            if not machine.is_denied
        ]
    if not machines:
        raise Failure(
            Exit.NOT_FOUND, 'this machine is paired with no other', 'pair them: degu pair'
        )
    if len(machines) > 1:
        names = ', '.join(sorted(machine.name for machine in machines))
        raise Failure(Exit.USAGE, f'it could go to {names}', 'say to which: --to PEER')
    return machines[0].machine_id


def _say_waiting(session: Session, located: Located, offer_id: str) -> None:
    session.emit('waiting', Asked(located.name, offer_id))
    session.note(
        f'{located.name} has to say yes; there: degu inbox accept {offer_id}',
        err=True,
    )


def _describe_late(located: Located, offer_id: str, timeout_s: float) -> Failure:
    """Say that time ran out: for a person, where the offer has an id, else for a machine."""
    if offer_id:
        return Failure(
            Exit.UNREACHABLE,
            f'nobody at {located.name} said yes within {timeout_s:g} s; the offer still stands',
            f'there: degu inbox accept {offer_id}; then send the same again',
        )
    return Failure(
        Exit.UNREACHABLE,
        f'nothing went on for {timeout_s:g} s; what {located.name} has of it is kept there',
        'send the same again to go on, or give it more time: --timeout SECONDS',
    )


def _say_sent(session: Session, located: Located, sent: Sent) -> None:
    session.emit(
        'sent',
        Delivered(
            located.name,
            sent.files_sent,
            sent.files_present,
            sent.bytes_sent,
            round(sent.elapsed_s, 3),
            [SkippedPath(skipped.path, skipped.problem.value) for skipped in sent.skipped],
        ),
    )
    for skipped in sent.skipped:
        session.say(f'not sent: {skipped.path}: {skipped.problem.value}', err=True)
    number = sent.files_present
    present = f', {number:,} {was(number)} there' if number else ''
    session.note(
        format_done(sent.files_sent, sent.bytes_sent, sent.elapsed_s),
        f'{present}, ',
        Styled('verified', 'green'),
        f' by {located.name} in {sent.elapsed_s:.1f} s',
    )


# --- what others send ----------------------------------------------------------------------------


@click.group(cls=Group, epilog=_EXITS, invoke_without_command=True)
@click.pass_context
def inbox(ctx: click.Context, /, **_shared: object) -> None:
    """List what others send to this machine, and how far it is; say yes or no to it.

    What waits for an answer is listed first, and at last what has ended, for a while.

    Whose files are taken, and where they go, is said in the settings, in [inbox].
    """
    if ctx.invoked_subcommand is not None:
        return
    session = build_session(collect_shared(ctx))
    with session.node() as node:
        offers = list(node.inbox())
    for offer in offers:
        session.emit('offer', offer)
    _say_offers(session, offers)


def _say_offers(session: Session, offers: list[OfferStatus]) -> None:
    """Print what waits for an answer first, then what comes in, then what has ended."""
    from degu_rpc.files.limits import OFFER_AGE_S

    for state in ('waiting', 'accepted'):
        for offer in offers:
            if offer.state == state:
                _say_offer(session, offer)
    if any(offer.state == 'accepted' for offer in offers):
        _say_who_is_next(session)
    ended = [offer for offer in offers if offer.state not in {'waiting', 'accepted'}]
    if ended:
        session.say(f'ended; remembered for up to {OFFER_AGE_S / 86400:.0f} days:')
    now = datetime.now(UTC)
    for offer in sorted(ended, key=lambda offer: offer.changed_at, reverse=True):
        age = format_age((now - offer.changed_at).total_seconds())
        _say_offer(session, offer, f', {age} ago')
    if not offers:
        session.note('nothing has come', err=True)


@inbox.command(cls=Command, epilog=_EXITS)
@click.argument('offer_id', metavar='ID', shell_complete=complete_offers)
def accept(session: Session, offer_id: str) -> None:
    """Take what is offered as ID, even if it was refused before."""
    with session.node() as node:
        offer = node.accept_offer(offer_id)
    session.emit('offer', offer)
    _say_offer(session, offer)
    if offer.state == 'accepted':
        _say_who_is_next(session)


@inbox.command(cls=Command, epilog=_EXITS)
@click.argument('offer_id', metavar='ID', shell_complete=complete_offers)
def reject(session: Session, offer_id: str) -> None:
    """Refuse what is offered as ID; what of it is here already stays.

    What is finished can not be refused any more.
    """
    with session.node() as node:
        offer = node.reject_offer(offer_id)
    if offer.state == 'done':
        raise Failure(
            Exit.FAILED,
            f'offer {offer_id} is finished: all of it is here already, and stays',
            'see where, and delete it if you like: degu config get inbox',
        )
    session.emit('offer', offer)
    _say_offer(session, offer)


def _say_who_is_next(session: Session) -> None:
    # A node does not know whether a sender that is silent is gone.
    session.note('it waits for the sender; if nothing comes, they send it again', err=True)


def _say_offer(session: Session, offer: OfferStatus, age: str = '') -> None:
    names = ', '.join(offer.names[:_SHOWN_NAMES])
    more = len(offer.names) + offer.more_names - _SHOWN_NAMES
    if more > 0:
        names += f' and {more:,} more'
    state: str = offer.state
    if state == 'accepted':
        percent = 100 * offer.bytes_received // offer.size if offer.size else 0
        state = f'{min(percent, 100)} % here'
    session.say(
        Styled(offer.offer_id, is_bold=True),
        f'  {state:9}  from {offer.sender}: {names}',
        f'  ({format_files(offer.files)}, {format_size(offer.size)}){age}',
    )
