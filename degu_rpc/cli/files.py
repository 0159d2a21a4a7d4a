"""`degu ls` and `degu get`: what other machines share."""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from degu.errors import DeguError
from degu_rpc.cli.completers import complete_machines
from degu_rpc.cli.documents import Arrived, Entry, SkippedPath
from degu_rpc.cli.exits import Exit, format_exits
from degu_rpc.cli.failures import Failure, explain
from degu_rpc.cli.progress import limit_option, transferring
from degu_rpc.cli.session import Command, Session, Styled
from degu_rpc.cli.sources import Place, Source, is_source, parse_source
from degu_rpc.cli.words import format_done, was
from degu_rpc.errors import BlockedError, DeguRpcError
from degu_rpc.text import escape_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from degu_rpc.files import Fetched, Mirror

_WRITABLE = 'choose a directory that you may write to, or see why not: ls -ld; findmnt -T'
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


@click.command(cls=Command, epilog=format_exits(*_EXITS[:-2], Exit.NOT_RUNNING))
@click.argument('source', metavar='PEER[:PATH]', shell_complete=complete_machines)
@click.option(
    '-l', '--long', 'is_long', is_flag=True, help='Sizes in bytes, times, and targets of symlinks.'
)
def ls(session: Session, source: str, is_long: bool) -> None:
    """List what PEER shares; with a PATH (a share, and a path in it) what is there."""
    asked = parse_source(source if is_source(source) else f'{source}:')
    place = Place(session, asked.peer)
    if not asked.share:
        _list_shares(session, place)
        return
    with place.explaining(asked):
        _list_directory(session, place, asked, is_long)


def _list_shares(session: Session, place: Place) -> None:
    shares = place.list_shares()
    for share in shares:
        session.emit('share', share)
        session.say(f'{share.name}/')
    if not shares:
        session.note(f'{place.name} shares nothing with you', err=True)


def _list_directory(session: Session, place: Place, asked: Source, is_long: bool) -> None:
    from degu_rpc.files import list_share
    from degu_rpc.files.listing import Kind
    from degu_rpc.files.paths import format_path, path_from_native

    top = path_from_native(asked.path)
    for one in list_share(place.client, place.prefix(asked.share), asked.path):
        when = None
        if one.kind is not Kind.SKIPPED:  # of those nothing more is known
            when = datetime.fromtimestamp(one.mtime_ns // 10**9, UTC)
        name, target = escape_bytes(one.name), escape_bytes(one.target)
        path = top if one.is_top else (*top, os.fsencode(one.name))
        session.emit(
            'entry',
            Entry(
                name,
                format_path(path),
                one.kind.value,
                one.size,
                None if when is None else when.isoformat(),
                target or None,
                one.problem and one.problem.value,
            ),
        )
        name += '/' if one.kind is Kind.DIRECTORY else ''
        name += '' if one.problem is None else f'  ({one.problem.value})'
        if is_long:
            name += f' -> {target}' if target else ''
            size = f'{one.size:,}' if one.kind is Kind.FILE else '-'
            session.say(
                f'{size:>15}  {"-" if when is None else f"{when:%Y-%m-%d %H:%M}":16}  {name}'
            )
        else:
            session.say(name)


class _Getting(NamedTuple):
    """What counts for all that one command brings over."""

    session: Session
    destination: Path
    mirrors: list[tuple[Source, Place]]
    durable: bool
    rate_limit: float | None


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

    PATH is a share and a path in it: studio:photos/2024. DEST is a directory, made if it is
    missing; what is brought keeps its name in it. What is here already is not brought again; what
    is interrupted goes on where it stopped when the same command is run again.
    """
    destination = Path()
    if len(sources) > 1 and not is_source(sources[-1]):
        if not sources[-1]:  # of a variable that is not set: it must not mean the one we are in
            raise Failure(Exit.USAGE, 'DEST is empty', 'leave it out, or say .')
        destination, sources = Path(sources[-1]).expanduser(), sources[:-1]
    asked = [parse_source(source) for source in dict.fromkeys(sources)]
    asked_of_mirrors = [_parse_mirror(mirror) for mirror in dict.fromkeys(mirrors)]
    for one in asked:
        if not one.share:
            raise Failure(
                Exit.USAGE, f'{one.peer}: says no path', f'see what there is: degu ls {one.peer}'
            )
    _check_destination(destination)
    places = {peer: Place(session, peer) for peer in dict.fromkeys(one.peer for one in asked)}
    found = [(mirror, _find_mirror(session, mirror)) for mirror in asked_of_mirrors]
    mirrors_found = [(mirror, place) for mirror, place in found if place is not None]
    getting = _Getting(session, destination, mirrors_found, durable, rate_limit)
    skipped = conflicts = 0
    for one in asked:
        fetched = _get(getting, places[one.peer], one)
        skipped += len(fetched.skipped)
        conflicts += len(fetched.conflicts)
    if skipped:
        raise Failure(Exit.PARTLY, f'{skipped} could not be brought, as said above')
    if conflicts:
        raise Failure(
            Exit.PARTLY,
            f'{conflicts} {was(conflicts)} written here meanwhile',
            'compare what is here with the copies, which are listed above',
        )


def _check_destination(destination: Path) -> None:
    """Raise Failure for a place that nothing can be put into.

    Its parent must be there: a disk that is not mounted is not to be filled up under its name.
    """
    from degu_rpc.node.inbox import find_fault

    fault = find_fault(destination)
    if fault is not None:
        place = destination if os.path.lexists(destination) else destination.parent
        is_form = not place.is_dir()
        raise Failure(
            Exit.FAILED,
            f'nothing can be put into {destination}: {fault}',
            'DEST is a directory, or the name of a new one in a directory that is there'
            if is_form
            else _WRITABLE,
        )


@contextlib.contextmanager
def _naming(destination: Path) -> Iterator[None]:
    """Turn what is wrong with files here, which are said from DEST on, into a Failure with it."""
    try:
        yield
    except BlockedError as error:
        what, remedy = destination / error.path, 'move it away and start again'
        message = f'{what} is blocked: {error.reason}'
        raise Failure(Exit.FAILED, message, remedy, type(error).__name__) from error
    except OSError as error:
        if error.filename is None:  # it is the network's
            raise
        message = f'nothing can be written to {destination}: {error.strerror}'
        raise Failure(Exit.FAILED, message, _WRITABLE, type(error).__name__) from error


def _parse_mirror(text: str) -> Source:
    asked = parse_source(text)
    if not asked.share or asked.path:
        raise Failure(Exit.USAGE, f'a mirror is a share, like laptop:photos, not {text!r}')
    return asked


def _find_mirror(session: Session, asked: Source) -> Place | None:
    """Return where a mirror is; None for one without which all can be brought, too."""
    try:
        return Place(session, asked.peer)
    except Failure as failure:
        if failure.exit_status not in {Exit.NOT_FOUND, Exit.UNREACHABLE}:
            raise
        _say_without(session, asked, failure)
        return None


def _say_without(session: Session, mirror: Source, failure: Failure) -> None:
    session.say(
        Styled('warning: ', 'yellow'),
        f'going on without the mirror {mirror}: {failure.message}',
        err=True,
    )


def _choose_mirrors(getting: _Getting, asked: Source) -> Iterator[Mirror]:
    """Yield the mirrors that have what is asked for; say of the others that they have not."""
    from degu_rpc.files import Mirror, list_share

    for mirror, place in getting.mirrors:
        prefix = place.prefix(mirror.share)
        try:
            with place.explaining(mirror._replace(path=asked.path)):
                for _ in list_share(place.client, prefix, asked.path):
                    break
        except (Failure, DeguRpcError, DeguError, OSError) as error:
            failure = explain(error)
            assert failure is not None  # each of these has a meaning
            _say_without(getting.session, mirror, failure)
        else:
            yield Mirror(place.client, prefix)


def _get(getting: _Getting, place: Place, asked: Source) -> Fetched:
    """Bring one path over, and say what came."""
    from degu_rpc.files import fetch

    session, destination = getting.session, getting.destination
    if not asked.path:
        if destination.exists():
            _check_destination(destination / asked.share)
        destination /= asked.share
    mirrors = list(_choose_mirrors(getting, asked))
    with (
        _naming(destination),
        place.explaining(asked),
        transferring(session, _describe_late) as transfer,
    ):
        fetched = fetch(
            place.client,
            place.prefix(asked.share),
            asked.path,
            destination,
            mirrors=mirrors,
            durable=getting.durable,
            rate_limit=getting.rate_limit,
            progress=transfer.show,
            cancel=transfer.cancel,
        )
    name = os.path.basename(asked.path.rstrip('/'))
    _say_done(session, asked, fetched, destination / name)
    return fetched


def _describe_late(timeout_s: float) -> Failure:
    return Failure(
        Exit.UNREACHABLE,
        f'nothing has come for {timeout_s:g} s',
        'type the same again to go on, or give it more time: --timeout SECONDS',
    )


def _say_done(session: Session, asked: Source, fetched: Fetched, where: Path) -> None:
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
        what = 'the former one is' if in_trash == 1 else 'the former ones are'
        session.note(f'{in_trash:,} {was(in_trash)} replaced; {what} in .degu/trash')
    number = fetched.files_present
    present = f', {number:,} {was(number)} here' if number else ''
    session.note(
        format_done(fetched.files_fetched, fetched.bytes_fetched, fetched.elapsed_s),
        f'{present}, ',
        Styled('verified', 'green'),
        f' from {asked.peer} in {fetched.elapsed_s:.1f} s, now at {where}',
    )
