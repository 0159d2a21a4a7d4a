"""`degu ls` and `degu get`: what other machines share."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from degu_rpc.cli.documents import Arrived, Entry, SkippedPath
from degu_rpc.cli.exits import Exit, format_exits
from degu_rpc.cli.failures import Failure
from degu_rpc.cli.session import Command, Session, Styled
from degu_rpc.cli.targets import build_client, locate, respell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from degu_rpc.files import Fetched, Progress
    from degu_rpc.peers import DialedClient

LINE_PERIOD_S = 5.0
"""How often a line says how far a transfer is, where there is no terminal to draw on."""
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


@click.command(cls=Command, epilog=format_exits(*_EXITS))
@click.argument('sources', nargs=-1, required=True, metavar='PEER:PATH... [DEST]')
def get(session: Session, sources: tuple[str, ...]) -> None:
    """Bring files or directories over from PEER, verified; into DEST, or else here.

    PATH is a share and a path in it: studio:photos/2024. What is here already is not brought again;
    what is interrupted goes on where it stopped when the same command is run again.
    """
    destination = Path()
    if len(sources) > 1 and not _is_source(sources[-1]):
        destination, sources = Path(sources[-1]), sources[:-1]
    asked = [_parse_source(source) for source in sources]
    for one in asked:
        if not one.share:
            raise Failure(
                Exit.USAGE, f'{one.peer}: says no path', f'see what there is: degu ls {one.peer}:'
            )
    clients = {
        peer: build_client(session, locate(session, peer)) for peer in {one.peer for one in asked}
    }
    skipped = 0
    with _on_interrupt() as cancel:
        for one in asked:
            skipped += _get(session, clients[one.peer], one, destination, cancel)
    if skipped:
        raise Failure(Exit.PARTLY, f'{skipped} could not be brought; they are listed above')


def _get(
    session: Session,
    client: DialedClient,
    asked: _Source,
    destination: Path,
    cancel: threading.Event,
) -> int:
    """Bring one path over; return how many entries could not be."""
    from degu_rpc.files import fetch
    from degu_rpc.node.api import FILES

    into = destination if asked.path else destination / asked.share
    with _showing(session) as show:
        fetched = fetch(
            client, f'{FILES}/{asked.share}', asked.path, into, progress=show, cancel=cancel
        )
    _say_done(session, asked, fetched)
    return len(fetched.skipped)


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
    rate = fetched.bytes_fetched / fetched.elapsed_s if fetched.elapsed_s else 0.0
    files = 'file' if fetched.files_fetched == 1 else 'files'
    session.note(
        f'{fetched.files_fetched:,} {files}, {format_size(fetched.bytes_fetched)}, '
        f'{format_size(rate)}/s, {fetched.files_present:,} were here; ',
        Styled('verified', 'green'),
        f' from {asked.peer} in {fetched.elapsed_s:.1f} s',
    )


@contextlib.contextmanager
def _on_interrupt() -> Iterator[threading.Event]:
    """Have Ctrl-C end a transfer where nothing is left half-done; a second one ends at once."""
    import signal

    cancel = threading.Event()

    def interrupt(_number: int, _frame: object) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)


# --- progress ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _showing(session: Session) -> Iterator[Callable[[Progress], None]]:
    """Yield what shows how far a transfer is, on stderr: a bar, or a line now and then."""
    if session.is_json or session.is_quiet:
        yield lambda _progress: None
    elif sys.stderr.isatty():
        with _drawing_bar() as show:
            yield show
    else:
        yield _print_lines(session)


@contextlib.contextmanager
def _drawing_bar() -> Iterator[Callable[[Progress], None]]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn('{task.fields[files]}'),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task('', files='', total=None)

        def show(now: Progress) -> None:
            files = f'{now.files_done:,} of {now.files_total:,} files'
            bars.update(task, total=now.bytes_total, completed=now.bytes_done, files=files)

        yield show


def _print_lines(session: Session) -> Callable[[Progress], None]:
    next_s = time.monotonic() + LINE_PERIOD_S

    def show(now: Progress) -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + LINE_PERIOD_S
            session.say(
                f'{now.files_done:,} of {now.files_total:,} files, {format_size(now.bytes_done)} '
                f'of {format_size(now.bytes_total)}, {format_size(now.rate)}/s',
                err=True,
            )

    return show


def format_size(size: float) -> str:
    """Write a number of bytes for people.

    >>> format_size(1536)
    '1.5 KiB'
    """
    for unit in ('B', 'KiB', 'MiB', 'GiB'):
        if size < 1024:
            return f'{size:.0f} {unit}' if unit == 'B' else f'{size:.1f} {unit}'
        size /= 1024
    return f'{size:.1f} TiB'
