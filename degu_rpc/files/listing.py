"""The listing of a tree as it travels: entries <-> bytes, and nothing else.

    GET /ls/{path}                   what is at the path, then, for a directory, what is in it
    GET /ls/{path}?recursive=1       the same for the whole tree
    GET /ls/{path}?roots=1           hash what is not known yet, so that every file has its root

A listing is a stream of records. The first is the entry that was asked for, its `path` empty; then
come the entries of one directory at a time, a directory before what is in it, paths relative to the
first. In JSON it is one object a line; in msgpack one map after the other. An empty line (nil in
msgpack) says that the share is still hashing. The stream may be cut into chunks anywhere.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import msgpack
import msgspec

from degu_rpc.errors import ListingError
from degu_rpc.files.blocks import MAX_SIZE
from degu_rpc.files.limits import MAX_RECORD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


_Text = Annotated[str, msgspec.Meta(pattern=r'\A[!-~]*\Z')]
_PIECE = 16 * 1024


class Media(enum.Enum):
    """The two forms of a listing; the value is the content type."""

    JSON = 'application/x-ndjson'
    MSGPACK = 'application/msgpack'


class Kind(enum.Enum):
    """What an entry is."""

    FILE = 'file'
    DIRECTORY = 'directory'
    SYMLINK = 'symlink'
    SKIPPED = 'skipped'


class Problem(enum.Enum):
    """Why an entry was skipped."""

    SPECIAL = 'special'
    """A device, a fifo or a socket."""
    UNREADABLE = 'unreadable'
    """The share may not read it."""
    CHANGING = 'changing'
    """It changed each time it was hashed."""
    NAME = 'name'
    """Its name cannot stand in a path, or its path is too long to be asked for."""
    VANISHED = 'vanished'
    """It was listed and is gone."""


# A msgspec Struct, not a dataclass: checked while it is decoded, and what is not set is left out.
class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of a listing. Texts are percent-encoded; sizes are bytes, times nanoseconds."""

    path: _Text
    kind: Kind
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_SIZE)] = 0
    mtime_ns: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] = 0
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o777)] = 0
    target: _Text = ''
    root: _Text = ''
    problem: Problem | None = None


HEARTBEAT = {Media.JSON: b'\n', Media.MSGPACK: b'\xc0'}
"""A record that says nothing."""


def choose_media(accept: str) -> Media:
    """Return the form that an `accept` header asks for: JSON, unless it names msgpack."""
    types = {item.partition(';')[0].strip().lower() for item in accept.split(',')}
    return Media.MSGPACK if Media.MSGPACK.value in types else Media.JSON


def format_entry(entry: Entry, media: Media) -> bytes:
    """Format one record."""
    if media is Media.JSON:
        return msgspec.json.encode(entry) + b'\n'
    return msgspec.msgpack.encode(entry)


def parse_listing(pieces: Iterable[bytes], content_type: object) -> Iterator[Entry]:
    """Parse a listing from its bytes, cut anywhere.

    Raises ListingError for another content type, a record that is no entry, one that is too long,
    and an end in the middle of one.
    """
    if content_type not in {media.value for media in Media}:
        raise ListingError(f'its content type is {content_type!r}')
    try:
        if content_type == Media.JSON.value:
            yield from _parse_json(pieces)
        else:
            yield from _parse_msgpack(pieces)
    except (msgspec.DecodeError, msgpack.UnpackException, ValueError, RecursionError) as error:
        raise ListingError(f'a record is malformed: {error}') from error


def _parse_json(pieces: Iterable[bytes]) -> Iterator[Entry]:
    decoder = msgspec.json.Decoder(Entry)
    rest = b''
    for piece in pieces:
        *lines, rest = (rest + piece).split(b'\n')
        for line in lines:
            if len(line) > MAX_RECORD:
                raise ListingError(f'a record is longer than {MAX_RECORD} bytes')
            if line:
                yield decoder.decode(line)
        if len(rest) > MAX_RECORD:
            raise ListingError(f'a record is longer than {MAX_RECORD} bytes')
    if rest:
        raise ListingError('it ends in the middle of a record')


def _parse_msgpack(pieces: Iterable[bytes]) -> Iterator[Entry]:
    unpacker = msgpack.Unpacker(
        max_buffer_size=MAX_RECORD + _PIECE,
        max_str_len=MAX_RECORD,
        max_map_len=16,
        max_array_len=0,
        max_bin_len=0,
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
                if record is not None:
                    yield msgspec.convert(record, Entry)
    if parsed != received:
        raise ListingError('it ends in the middle of a record')
