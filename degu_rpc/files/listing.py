"""The listing of a tree as it travels.

    GET /ls/{path}                   what is at the path, then, for a directory, what is in it
    GET /ls/{path}?recursive=1       the same for the whole tree
    GET /ls/{path}?roots=1           hash what is not known yet, so that every file has its root

A listing is a stream of records (records.py). The first is the entry that was asked for, its `path`
empty; then come the entries of one directory at a time, a directory before what is in it, paths
relative to the first.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import msgspec

from degu_rpc.errors import ListingError
from degu_rpc.files.blocks import MAX_SIZE
from degu_rpc.files.limits import MAX_FIELDS, NAME_COST
from degu_rpc.files.paths import Path, parse_path
from degu_rpc.files.records import parse_records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


Text = Annotated[str, msgspec.Meta(pattern=r'\A[!-~]*\Z')]
"""What is percent-encoded, or a root: ASCII without spaces and controls."""
Time = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""Nanoseconds since 1970."""
Xattrs = Annotated[dict[Text, bytes], msgspec.Meta(max_length=MAX_FIELDS)]
"""Extended attributes, their names percent-encoded and without `user.` (see xattrs.py)."""


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
    """One entry of a listing. Texts are percent-encoded; sizes are bytes, times nanoseconds.

    `xattrs` is None where they are not known: they come with `roots=1` only, and for files.
    """

    path: Text
    kind: Kind
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_SIZE)] = 0
    mtime_ns: Time = 0
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o777)] = 0
    target: Text = ''
    root: Text = ''
    problem: Problem | None = None
    xattrs: Xattrs | None = None


def parse_listing(pieces: Iterable[bytes], content_type: object) -> Iterator[Entry]:
    """Parse a listing from its bytes, cut anywhere. Raises ListingError (see records.py)."""
    return parse_records(pieces, content_type, Entry)


def check_entries(
    entries: Iterable[Entry], there: Iterable[Path], max_entries: int, max_text: int
) -> Iterator[tuple[Path, Entry]]:
    """Check what anybody may have listed: each after its directory, nothing twice, not without end.

    `there` are directories that need not be listed. Yields each entry with its path, () for one
    that was skipped: its path is for people. Raises ListingError, PathError.
    """
    directories = set(there)
    seen: set[Path] = set()
    text = 0
    for count, entry in enumerate(entries):
        if count == max_entries:
            raise ListingError(f'it has more than {max_entries} entries')
        text += _text_size(entry)
        if text > max_text:
            raise ListingError(f'it has more than {max_text} bytes of text')
        path: Path = ()
        if entry.kind is not Kind.SKIPPED:
            path = parse_path(entry.path)
            if path in seen:
                raise ListingError(f'{entry.path!r} is there twice')
            if path and path[:-1] not in directories:
                raise ListingError(f'{entry.path!r} comes without its directory')
            seen.add(path)
            if entry.kind is Kind.DIRECTORY:
                directories.add(path)
        yield path, entry


def _text_size(entry: Entry) -> int:
    """Return what an entry counts towards the text of a listing."""
    xattrs = entry.xattrs or {}
    names = entry.path.count('/') + 1 + len(xattrs)
    texts = (entry.path, entry.target, entry.root, *xattrs, *xattrs.values())
    return sum(map(len, texts)) + names * NAME_COST
