"""`degu ls` and `degu get`: what other machines share."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from degu_rpc.cli.documents import Arrived, Entry, SkippedPath
from degu_rpc.cli.exits import Exit, format_exits
from degu_rpc.cli.failures import Failure
from degu_rpc.cli.progress import (
    cancel_on_interrupt,
    format_done,
    limit_option,
    showing,
)
from degu_rpc.cli.session import Command, Session, Styled
from degu_rpc.cli.targets import build_client, locate, respell

if TYPE_CHECKING:
    import threading

    from degu_rpc.files import Fetched, Mirror
    from degu_rpc.peers import DialedClient

_EXITS = (
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
)


class _Source(NamedTuple):
    """What `studio:photos/2024` says: whose, which share, and what in it."""

    peer: str
    share: str
    path: str


def _is_source(text: str) -> bool:
    """Say whether it names what a peer has; what has a `/` before the colon is a path of ours."""
    return text.startswith('degu://') or ':' in text.partition('/')[0]


def _parse_source(text: str) -> _Source:
    peer, colon, rest = text.partition(':')
    if text.startswith('degu://'):
        host, _, rest = text.removeprefix('degu://').partition('/')
        peer, colon = f'degu://{host}', ':'
    if not peer or not colon:
        raise Failure(
            Exit.USAGE, f'what another machine shares is like studio:photos, not {text!r}'
        )
    share, _, path = rest.strip('/').partition('/')
    return _Source(respell(peer), share, path)


@click.command(cls=Command, epilog=format_exits(*_EXITS[:-2], Exit.NOT_RUNNING))
@click.argument('source', metavar='PEER:[PATH]')
@click.option('-l', '--long', 'is_long', is_flag=True, help='Sizes in bytes and times, too.')
def ls(session: Session, source: str, is_long: bool) -> None:
    """List what PEER shares; with a PATH (a share, and a path in it) what is there."""
    asked = _parse_source(source)
    client = build_client(session, locate(session, asked.peer))
    if not asked.share:
        _list_shares(session, client)
    else:
        _list_directory(session, client, asked, is_long)


def _list_shares(session: Session, client: DialedClient) -> None:
    from degu_rpc.node.shares import SHARES, Share
    from degu_rpc.rpc.client import RpcClient

    with RpcClient(client) as calls:
        calls = calls.using(timeout_s=session.timeout_s)
        shares: list[Share] = calls.call(SHARES, 'list_shares', {}, list[Share])
    for share in shares:
        session.emit('share', share)
        session.say(f'{share.name}/')
    if not shares:
        session.note('nothing is shared with you', err=True)


def _list_directory(session: Session, client: DialedClient, asked: _Source, is_long: bool) -> None:
    from degu_rpc.files import list_share
    from degu_rpc.files.listing import Kind
    from degu_rpc.node.api import FILES

    for one in list_share(client, f'{FILES}/{asked.share}', asked.path):
        when = datetime.fromtimestamp(one.mtime_ns // 10**9, UTC)
        session.emit(
            'entry',
            Entry(
                one.name,
                one.kind.value,
                one.size,
                when.isoformat(),
                one.problem and one.problem.value,
            ),
        )
        name = f'{one.name}/' if one.kind is Kind.DIRECTORY else one.name
        problem = '' if one.problem is None else f'  ({one.problem.value})'
        if is_long:
            session.say(f'{one.size:>15,}  {when:%Y-%m-%d %H:%M}  {name}{problem}')
        else:
            session.say(f'{name}{problem}')


class _Getting(NamedTuple):
    """What counts for all that one command brings over."""

    session: Session
    destination: Path
    mirrors: list[Mirror]
    durable: bool
    rate_limit: float | None
    cancel: threading.Event


@click.command(cls=Command, epilog=format_exits(*_EXITS))
@click.argument('sources', nargs=-1, required=True, metavar='PEER:PATH... [DEST]')
@click.option(
    '--mirror',
    'mirrors',
    multiple=True,
    metavar='PEER:SHARE',
    help='Another share with the same, to bring some of it from; may be given again.',
)
@limit_option
@click.option(
    '--no-sync',
    'durable',
    is_flag=True,
    flag_value=False,
    default=True,
    help='Faster for many small files; a power cut may cost what was brought.',
)
def get(
    session: Session,
    sources: tuple[str, ...],
    mirrors: tuple[str, ...],
    rate_limit: float | None,
    durable: bool,
) -> None:
    """Bring files or directories over from PEER, verified; into DEST, or else here.

    PATH is a share and a path in it: studio:photos/2024. What is here already is not brought again;
    what is interrupted goes on where it stopped when the same command is run again.
    """
    destination = Path()
    if len(sources) > 1 and not _is_source(sources[-1]):
        destination, sources = Path(sources[-1]), sources[:-1]
    asked = [_parse_source(source) for source in sources]
    asked_of_mirrors = [_parse_mirror(mirror) for mirror in mirrors]
    for one in asked:
        if not one.share:
            raise Failure(
                Exit.USAGE, f'{one.peer}: says no path', f'see what there is: degu ls {one.peer}:'
            )
    clients = {
        peer: build_client(session, locate(session, peer)) for peer in {one.peer for one in asked}
    }
    opened = list(filter(None, (_open_mirror(session, mirror) for mirror in asked_of_mirrors)))
    skipped = conflicts = 0
    with cancel_on_interrupt() as cancel:
        getting = _Getting(session, destination, opened, durable, rate_limit, cancel)
        for one in asked:
            fetched = _get(getting, clients[one.peer], one)
            skipped += len(fetched.skipped)
            conflicts += len(fetched.conflicts)
    if skipped:
        raise Failure(Exit.PARTLY, f'{skipped} could not be brought; they are listed above')
    if conflicts:
        raise Failure(
            Exit.PARTLY,
            f'{conflicts} were written here meanwhile',
            'compare them with their copies, which are listed above',
        )


def _parse_mirror(text: str) -> _Source:
    asked = _parse_source(text)
    if not asked.share or asked.path:
        raise Failure(Exit.USAGE, f'a mirror is a share, like laptop:photos, not {text!r}')
    return asked


def _open_mirror(session: Session, asked: _Source) -> Mirror | None:
    """Return a mirror; None for one that is not seen, without which all can be brought, too."""
    from degu_rpc.files import Mirror
    from degu_rpc.node.api import FILES

    located = locate(session, asked.peer)
    if not located.urls:
        session.note(
            f'mirror {asked.peer}:{asked.share} is not seen on the network; going on without it',
            err=True,
        )
        return None
    return Mirror(build_client(session, located), f'{FILES}/{asked.share}')


def _get(getting: _Getting, client: DialedClient, asked: _Source) -> Fetched:
    """Bring one path over, and say what came."""
    from degu_rpc.files import fetch
    from degu_rpc.node.api import FILES

    destination = getting.destination
    with showing(getting.session) as show:
        fetched = fetch(
            client,
            f'{FILES}/{asked.share}',
            asked.path,
            destination if asked.path else destination / asked.share,
            mirrors=getting.mirrors,
            durable=getting.durable,
            rate_limit=getting.rate_limit,
            progress=show,
            cancel=getting.cancel,
        )
    _say_done(getting.session, asked, fetched)
    return fetched


def _say_done(session: Session, asked: _Source, fetched: Fetched) -> None:
    session.emit(
        'fetched',
        Arrived(
            fetched.files_fetched,
            fetched.files_present,
            fetched.files_replaced,
            fetched.bytes_fetched,
            round(fetched.elapsed_s, 3),
            [SkippedPath(skipped.path, skipped.problem.value) for skipped in fetched.skipped],
            list(fetched.conflicts),
        ),
    )
    for skipped in fetched.skipped:
        session.say(f'not brought: {skipped.path}: {skipped.problem.value}', err=True)
    for conflict in fetched.conflicts:
        session.say(f'written here meanwhile, kept as a copy: {conflict}', err=True)
    in_trash = fetched.files_replaced - len(fetched.conflicts)
    if in_trash:
        session.note(f'{in_trash} were replaced; the former ones are in .degu/trash')
    session.note(
        format_done(fetched.files_fetched, fetched.bytes_fetched, fetched.elapsed_s),
        f', {fetched.files_present:,} were here; ',
        Styled('verified', 'green'),
        f' from {asked.peer} in {fetched.elapsed_s:.1f} s',
    )
