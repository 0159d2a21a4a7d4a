"""Streams of records as they travel: values <-> bytes, and nothing else.

A record is a msgspec Struct. In JSON a stream has one object a line; in msgpack one map after the
other. An empty line (nil in msgpack) says that the sender is still at work. The stream may be cut
into chunks anywhere. Bytes in a record are base64 in JSON and themselves in msgpack.
"""

from __future__ import annotations

import base64
import enum
import math
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

import msgpack
import msgspec
from blake3 import blake3

from degu_rpc.errors import ListingError
from degu_rpc.files.limits import CHUNK_SIZE, HEARTBEAT_S, MAX_FIELDS, MAX_RECORD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Record = TypeVar('Record', bound=msgspec.Struct)

_PIECE = 16 * 1024


class Media(enum.Enum):
    """The two forms of a stream; the value is the content type."""

    JSON = 'application/x-ndjson'
    MSGPACK = 'application/msgpack'


HEARTBEAT = {Media.JSON: b'\n', Media.MSGPACK: b'\xc0'}
"""A record that says nothing."""


def hash_question(question: bytes) -> str:
    """Return what an answer says of its question in the header `x-question`: base32 of BLAKE3.

    Without TLS a bit may flip on the way, and then the answer is about something else.
    """
    return base64.b32encode(blake3(question).digest()).decode('ascii').lower().rstrip('=')


def choose_media(accept: str) -> Media:
    """Return the form that an `accept` header asks for: JSON, unless it names msgpack."""
    types = {item.partition(';')[0].strip().lower() for item in accept.split(',')}
    return Media.MSGPACK if Media.MSGPACK.value in types else Media.JSON


def format_record(record: msgspec.Struct, media: Media) -> bytes:
    """Format one record."""
    if media is Media.JSON:
        return msgspec.json.encode(record) + b'\n'
    return msgspec.msgpack.encode(record)


def stream_records(records: Iterable[msgspec.Struct | None], media: Media) -> Iterator[bytes]:
    """Yield a stream in chunks, at least one every HEARTBEAT_S, and the empty one at its end.

    The records have a None among them now and then while nothing is to be said.
    """
    chunk = bytearray()
    sent_at = monotonic()
    for record in records:
        if record is not None:
            chunk += format_record(record, media)
        if len(chunk) >= CHUNK_SIZE or monotonic() - sent_at >= HEARTBEAT_S:
            yield bytes(chunk) or HEARTBEAT[media]
            chunk.clear()
            sent_at = monotonic()
    if chunk:
        yield bytes(chunk)
    yield b''


def parse_records(
    pieces: Iterable[bytes],
    content_type: object,
    kind: type[Record],
    max_record: int = MAX_RECORD,
    max_heartbeats: float = math.inf,
) -> Iterator[Record]:
    """Parse a stream of records of one kind, cut anywhere; each has up to `max_record` bytes.

    Raises ListingError for another content type, a record that is none of its kind, one that is too
    long, an end in the middle of one, and more than `max_heartbeats` records that say nothing.
    """
    if content_type not in {media.value for media in Media}:
        raise ListingError(f'its content type is {content_type!r}')
    try:
        if content_type == Media.JSON.value:
            parsed = _parse_json(pieces, kind, max_record)
        else:
            parsed = _parse_msgpack(pieces, kind, max_record)
        heartbeats = 0
        for record in parsed:
            if record is not None:
                yield record
                continue
            heartbeats += 1
            if heartbeats > max_heartbeats:
                raise ListingError(f'it has more than {max_heartbeats} records that say nothing')
    except (msgspec.DecodeError, msgpack.UnpackException, ValueError, RecursionError) as error:
        raise ListingError(f'a record is malformed: {error}') from error


def _parse_json(
    pieces: Iterable[bytes], kind: type[Record], max_record: int
) -> Iterator[Record | None]:
    """Yield the records; None for a heartbeat."""
    decoder = msgspec.json.Decoder(kind)
    record = bytearray()
    for piece in pieces:
        *ends, rest = piece.split(b'\n')
        for end in ends:
            record += end
            if len(record) > max_record:
                raise ListingError(f'a record is longer than {max_record} bytes')
            yield decoder.decode(record) if record else None
            record.clear()
        record += rest
        if len(record) > max_record:
            raise ListingError(f'a record is longer than {max_record} bytes')
    if record:
        raise ListingError('it ends in the middle of a record')


def _parse_msgpack(
    pieces: Iterable[bytes], kind: type[Record], max_record: int
) -> Iterator[Record | None]:
    """Yield the records; None for a heartbeat."""
    unpacker = msgpack.Unpacker(
        max_buffer_size=max_record + _PIECE,
        max_str_len=max_record,
        max_bin_len=max_record,
        max_map_len=MAX_FIELDS,
        max_array_len=0,
        max_ext_len=0,
    )
    received = parsed = 0
    for piece in pieces:
        for start in range(0, len(piece), _PIECE):
            part = piece[start : start + _PIECE]
            received += len(part)
            unpacker.feed(part)
            for record in unpacker:
                parsed = unpacker.tell()
                yield None if record is None else msgspec.convert(record, kind)
    if parsed != received:
        raise ListingError('it ends in the middle of a record')
