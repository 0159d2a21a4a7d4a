"""A directory that peers may put things into: an RGI app, mounted anywhere.

    PUT /{transfer}                   the offer: entries; the answer says what is wanted
    GET /{transfer}?wait=25           the state; waits for it to change while a person is asked
    POST /{transfer}/pack             small contents, an Item each
    PUT /{transfer}/{root}/manifest   the leaves of a large content: see blocks.py
    HEAD /{transfer}/{root}           `x-missing`: which bytes of it are not here
    PUT /{transfer}/{root}            bytes of it, `content-range` says which; whole blocks
    DELETE /{transfer}/{root}         it will not come: whoever sends it has it no more

Questions and answers are streams of records (records.py, offers.py), in the form that
`content-type` and `accept` name. 400 is what makes no sense, 403 a caller whom nobody knows, 404
what is not of this transfer, 405 another method, 409 a transfer that has to be offered (again) or a
content whose manifest is missing, 413 what is too large, 422 bytes that are not what they were said
to be, 429 too many offers, 503 an inbox that is busy, 507 no room. An answer that has begun says
the same in the `status` of a record.

1. Whoever calls is one of `request['_peer']`'s users; each has transfers of its own, and cannot ask
   about those of another.
2. An offer is checked (offers.py), and `decide` says what is to be done about it. One that is
   accepted gets names that are free, and they are written down (registry.py).
3. Its contents come in (arrival.py) and get their final names (places.py), durably before the
   answer says so.
4. Nothing here is ever replaced or removed but what is in our own `.degu`.

May be called by many threads; what they share is in intake.py.
"""

from __future__ import annotations

import errno
import logging
import os
import pathlib
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec

from degu.bodies import Input
from degu.net import Deadline
from degu_rpc.errors import (
    IntegrityError,
    ListingError,
    NoSpaceError,
    PathError,
    UnknownPeerError,
)
from degu_rpc.files.arrival import Arrival, check_item
from degu_rpc.files.blocks import SMALL_SIZE, find_runs, is_root, manifest_size, parse_manifest
from degu_rpc.files.intake import Intake
from degu_rpc.files.limits import (
    BATCH_FILES,
    BATCH_SIZE,
    MAX_MANIFEST,
    MAX_MISSING_RANGES,
    MAX_PACKED,
    MAX_QUESTION_HEARTBEATS,
    MAX_READ_OFFER_S,
    MAX_RECORD,
    MAX_WAIT_S,
    MIN_OFFER_RATE,
    OFFER_GRACE_S,
    PACK_ITEMS,
    PACK_SIZE,
)
from degu_rpc.files.listing import Entry
from degu_rpc.files.offers import (
    Answer,
    Decision,
    Item,
    Offer,
    State,
    Tree,
    check_offer,
    format_ranges,
)
from degu_rpc.files.packs import split_packs
from degu_rpc.files.paths import check_name
from degu_rpc.files.records import parse_records
from degu_rpc.files.registry import Record
from degu_rpc.files.responses import RefusalError, Response, refuse, respond, without_body
from degu_rpc.peers import Peer, find_caller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from degu_rpc.files.blocks import Manifest
    from degu_rpc.files.partial import Partial

_log = logging.getLogger('degu_rpc.files')

_Kind = TypeVar('_Kind', bound=msgspec.Struct)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _Request(NamedTuple):
    """A request by a known user; `segments` is what follows the transfer in its path."""

    connection: dict[str, Any]
    headers: dict[str, Any]
    query: str
    body: Any
    peer: Peer
    user: str
    transfer: str
    segments: list[str]


class Inbox:
    """An RGI app that lets peers put things into a directory. Close it, or use it with `with`."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        decide: Callable[[Offer], Decision],
        *,
        received: Callable[[Offer, tuple[pathlib.Path, ...]], None] | None = None,
    ) -> None:
        """Take what `decide` accepts into `directory`.

        `decide` is called when something new is offered. `received` is called, once, when all of an
        offer is here, with the paths of what was at the top. They are called in a thread of the
        server and one of its own, perhaps several at once.

        Raises OSError where the directory cannot be opened, BlockedError where others could write
        to its `.degu`.
        """
        self._intake = Intake(directory, decide, received)

    def close(self) -> None:
        """Close the directory; requests should have ended. A second time does nothing."""
        self._intake.close()

    def __enter__(self) -> Inbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def offers(self) -> list[Offer]:
        """Return all offers that are remembered, those that were made first before the others."""
        return self._intake.offers()

    def accept(self, offer_id: str) -> Offer:
        """Let an offer come in that waits or was refused; others stay as they are.

        Raises UnknownOfferError, OSError.
        """
        return self._intake.accept(offer_id)

    def reject(self, offer_id: str) -> Offer:
        """Refuse an offer; what came of it already stays. One that is done stays as it is.

        On a disk that is full or fails it is refused until this inbox is closed, and the log says
        so. Raises UnknownOfferError.
        """
        return self._intake.reject(offer_id)

    # --- requests -------------------------------------------------------------------------------

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Answer one request. Raises OSError for a failing disk, which the server makes a 500."""
        try:
            return self._answer(connection, request)
        except RefusalError as error:
            refusal = error
        except (ListingError, PathError) as error:
            refusal = RefusalError(400, str(error))
        except IntegrityError as error:
            where = '' if error.block is None else f'block {error.block}: '
            refusal = RefusalError(422, where + error.reason)
        except (NoSpaceError, OSError) as error:
            why = _explain_full(error)
            if why is None:
                raise
            refusal = RefusalError(507, why)
        response = refuse(refusal)
        return without_body(response) if request['method'] == 'HEAD' else response

    def _answer(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        peer, user = _find_user(request)
        transfer, *segments = request['path'] or ['']
        if not is_root(transfer):
            raise RefusalError(404, 'the name of a transfer is 52 characters of base32')
        endpoints: dict[str, Callable[[_Request], Response]]
        if not segments:
            endpoints = {'PUT': self._take_offer, 'GET': self._tell_state}
        elif segments == ['pack']:
            endpoints = {'POST': self._take_pack}
        elif len(segments) == 1 and is_root(segments[0]):
            endpoints = {'HEAD': self._tell_missing, 'PUT': self._take_run, 'DELETE': self._give_up}
        elif len(segments) == 2 and is_root(segments[0]) and segments[1] == 'manifest':
            endpoints = {'PUT': self._take_manifest}
        else:
            raise RefusalError(404, 'an inbox has nothing there')
        answer = endpoints.get(request['method'])
        if answer is None:
            methods = ', '.join(endpoints)
            raise RefusalError(405, f'here is only {methods}', {'allow': methods})
        if request['method'] in {'PUT', 'POST'} and request['body'] is None:
            raise RefusalError(400, 'the body is missing')
        return answer(
            _Request(
                connection,
                request['headers'],
                request['query'],
                request['body'],
                peer,
                user,
                transfer,
                segments,
            )
        )

    def _respond(self, request: _Request, answers: Iterable[Answer | None]) -> Response:
        accept = request.headers.get('accept', '')
        return respond(request.connection, accept, _guarded(answers))

    # --- the offer ------------------------------------------------------------------------------

    def _take_offer(self, request: _Request) -> Response:
        with self._intake.reading_offer(request.user):
            paced = request._replace(body=_paced(request))
            tree = check_offer(_parse_body(paced, Entry, MAX_RECORD))
        record = self._intake.find_record(request.peer, request.user, request.transfer, tree)
        return self._respond(request, self._answer_offer(request, record, tree))

    def _answer_offer(
        self, request: _Request, record: Record, tree: Tree
    ) -> Iterator[Answer | None]:
        yield Answer(record.state, record.offer_id)
        if record.state is not State.ACCEPTED:
            return
        arrival = self._intake.activate(record.user, record.transfer, tree)
        if isinstance(arrival, State):
            yield Answer(arrival, record.offer_id)
            return
        for _ in arrival.prepare():
            yield None
        for root in arrival.wanted():
            yield Answer(root=root)
        yield from self._end(request, arrival)

    def _tell_state(self, request: _Request) -> Response:
        wait = dict(parse_qsl(request.query)).get('wait', '0')
        if not (wait.isascii() and wait.isdigit() and len(wait) <= 6):
            raise RefusalError(400, 'wait is a number of seconds')
        return self._respond(request, self._wait(request, min(int(wait), MAX_WAIT_S)))

    def _wait(self, request: _Request, wait_s: float) -> Iterator[Answer | None]:
        record = None
        for found in self._intake.wait_for_state(request.user, request.transfer, wait_s):
            record = found
            yield None
        if record is None:
            yield Answer(status=404, why='there is no such transfer')
        else:
            yield Answer(record.state, record.offer_id)

    # --- contents -------------------------------------------------------------------------------

    def _find_arrival(self, request: _Request) -> Arrival:
        arrival = self._intake.find_active(request.user, request.transfer)
        if arrival is None:
            raise RefusalError(409, 'this transfer has to be offered first, or again')
        return arrival

    def _take_pack(self, request: _Request) -> Response:
        arrival = self._find_arrival(request)
        answers = []
        right = []
        size = 0
        for count, item in enumerate(_parse_body(request, Item, MAX_PACKED)):
            size += len(item.content)
            if count == PACK_ITEMS or size > PACK_SIZE:
                raise RefusalError(
                    413, f'a pack has up to {PACK_ITEMS} contents and {PACK_SIZE} bytes'
                )
            offered = arrival.size_of(item.root)
            if offered is None:
                answers.append(Answer(root=item.root, status=404, why='it was not offered'))
            elif not arrival.is_missing(item.root):
                answers.append(Answer(root=item.root))
            else:
                try:
                    check_item(item, offered)
                    right.append(item)
                except IntegrityError as error:
                    answers.append(Answer(root=item.root, status=422, why=str(error)))
        return self._respond(request, self._answer_pack(request, arrival, answers, right))

    def _answer_pack(
        self, request: _Request, arrival: Arrival, answers: list[Answer], items: list[Item]
    ) -> Iterator[Answer | None]:
        yield from answers
        groups = split_packs(items, lambda item: len(item.content), BATCH_FILES, BATCH_SIZE)
        for group in groups:
            for placed in arrival.place_small(group):
                yield None if placed is None else _answer_placed(*placed)
        yield from self._end(request, arrival)

    def _take_manifest(self, request: _Request) -> Response:
        arrival = self._find_arrival(request)
        root = request.segments[0]
        size = _require_large(arrival, root)
        if manifest_size(size) > MAX_MANIFEST:
            raise RefusalError(413, f'a manifest has up to {MAX_MANIFEST} bytes')
        body = _require_length(request.body, manifest_size(size))
        manifest = parse_manifest(body.read(), root)
        if manifest.size != size:
            raise RefusalError(422, 'this is the manifest of another size than was offered')
        return self._respond(request, self._answer_manifest(request, arrival, root, manifest))

    def _answer_manifest(
        self, request: _Request, arrival: Arrival, root: str, manifest: Manifest
    ) -> Iterator[Answer | None]:
        yield from arrival.open_content(root, manifest)
        with arrival.use_content(root) as partial:
            missing = '' if partial is None else format_ranges(_missing_ranges(partial))
        if partial is None and arrival.is_missing(root):
            yield Answer(root=root, status=503, why='another connection is at it')
        else:
            yield Answer(root=root, missing=missing)
        yield from self._answer_content(request, arrival, root)

    def _answer_content(
        self, request: _Request, arrival: Arrival, root: str
    ) -> Iterator[Answer | None]:
        for placed in arrival.place_content(root):
            yield None if placed is None else _answer_placed(*placed)
        yield from self._end(request, arrival)

    def _tell_missing(self, request: _Request) -> Response:
        arrival = self._find_arrival(request)
        root = request.segments[0]
        size = _require_large(arrival, root)
        missing = 'none'
        if arrival.is_missing(root):
            with arrival.use_content(root) as partial:
                ranges = [(0, size)] if partial is None else _missing_ranges(partial)
            missing = format_ranges(ranges) or 'none'
        return Response(200, 'OK', {'x-missing': missing}, None)

    def _take_run(self, request: _Request) -> Response:
        arrival = self._find_arrival(request)
        root = request.segments[0]
        size = _require_large(arrival, root)
        start, stop = 0, size
        part = request.headers.get('content-range')
        if part is not None:
            start, stop = part.start, part.stop
            if part.total not in {None, size}:
                raise RefusalError(400, f'it was offered with {size} bytes')
        with arrival.use_content(root) as partial:
            if partial is not None:
                body = _require_length(request.body, stop - start)
                _write_blocks(arrival, partial, body, start, stop)
            elif arrival.is_missing(root):
                raise RefusalError(409, 'send its manifest first')
        return self._respond(request, self._answer_content(request, arrival, root))

    def _give_up(self, request: _Request) -> Response:
        arrival = self._find_arrival(request)
        arrival.give_up(request.segments[0])
        return self._respond(request, self._end(request, arrival))

    def _end(self, request: _Request, arrival: Arrival) -> Iterator[Answer | None]:
        """End the offer once all of it is here, and say so."""
        for record in self._intake.end(request.user, request.transfer, arrival):
            yield None if record is None else Answer(record.state, record.offer_id)


def _find_user(request: dict[str, Any]) -> tuple[Peer, str]:
    """Return who calls and the name of their directory. Raises RefusalError for nobody we know."""
    try:
        peer = find_caller(request)
    except UnknownPeerError as error:
        raise RefusalError(403, str(error)) from None
    if not peer.roles or (peer.user_id is None and peer.uid is None):
        raise RefusalError(403, 'you have no role here')
    user = f'uid-{peer.uid}' if peer.user_id is None else peer.user_id
    check_name(os.fsencode(user))  # it is one in our own directory
    return peer, user


def _parse_body(request: _Request, kind: type[_Kind], max_record: int) -> Iterator[_Kind]:
    content_type = request.headers.get('content-type')
    return parse_records(request.body, content_type, kind, max_record, MAX_QUESTION_HEARTBEATS)


def _paced(request: _Request) -> Iterator[bytes]:
    """Yield a body that comes fast enough, under a server that can end the wait for one."""
    set_deadline = request.connection.get('rgi.set_deadline', lambda _deadline: None)
    whole = Deadline(MAX_READ_OFFER_S)
    started = monotonic()
    size = 0
    set_deadline(whole.within(OFFER_GRACE_S))
    for piece in request.body:
        yield piece
        size += len(piece)
        left_s = OFFER_GRACE_S + size / MIN_OFFER_RATE - (monotonic() - started)
        set_deadline(whole.within(max(left_s, 0.0)))
    set_deadline(None)


def _require_large(arrival: Arrival, root: str) -> int:
    size = arrival.size_of(root)
    if size is None:
        raise RefusalError(404, 'it was not offered')
    if size <= SMALL_SIZE:
        raise RefusalError(400, f'up to {SMALL_SIZE} bytes come in a pack')
    return size


def _require_length(body: Any, size: int) -> Input:
    if not isinstance(body, Input) or body.content_length != size:
        raise RefusalError(400, f'this body has {size} bytes and says so')
    return body


def _missing_ranges(partial: Partial) -> list[tuple[int, int]]:
    manifest = partial.manifest
    runs = find_runs(partial.missing(), manifest.block_count)[:MAX_MISSING_RANGES]
    return [(manifest.block_range(first)[0], manifest.block_range(last)[1]) for first, last in runs]


def _write_blocks(arrival: Arrival, partial: Partial, body: Input, start: int, stop: int) -> None:
    """Write what comes, block by block. Raises RefusalError, IntegrityError, OSError."""
    manifest = partial.manifest
    if start % manifest.block_size or (stop % manifest.block_size and stop != manifest.size):
        raise RefusalError(400, f'a part has whole blocks, {manifest.block_size} bytes each')
    if not start < stop <= manifest.size:
        raise RefusalError(400, f'it was offered with {manifest.size} bytes')
    buffer = memoryview(bytearray(min(manifest.block_size, stop - start)))
    while start < stop:
        block = buffer[: min(manifest.block_size, stop - start)]
        body.readinto(block)
        arrival.write(partial, start // manifest.block_size, block)
        start += len(block)


def _answer_placed(root: str, is_placed: bool) -> Answer:
    if is_placed:
        return Answer(root=root)
    return Answer(
        root=root, status=503, why='it is being placed, or its name was taken; send it again'
    )


def _guarded(answers: Iterable[Answer | None]) -> Iterator[Answer | None]:
    """Yield the answers; what goes wrong once an answer has begun is said in its last record."""
    try:
        yield from answers
    except RefusalError as refusal:
        yield Answer(status=refusal.status, why=refusal.why)
    except (NoSpaceError, OSError) as error:
        why = _explain_full(error)
        if why is not None:
            yield Answer(status=507, why=why)
        else:
            _log.exception('an inbox failed')
            yield Answer(status=500, why='the inbox failed; its log says why')


def _explain_full(error: Exception) -> str | None:
    """Say what may be said of a full disk; None for another error."""
    if isinstance(error, NoSpaceError):
        return f'there is no room for {error.needed} bytes'
    if isinstance(error, OSError) and error.errno in _FULL:
        return f'there is no room: {os.strerror(error.errno)}'
    return None
