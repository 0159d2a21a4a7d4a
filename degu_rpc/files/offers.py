"""What is offered to an inbox: values, and the records of the protocol. PURE.

1. An offer is a stream of entries (listing.py), with several names at the top. It comes from a
   peer, so `check_offer()` believes nothing of it.
2. The name of a transfer is derived from these entries, so whoever sends the same again goes on
   with the same transfer.
3. Nothing in an inbox is ever replaced: what is taken gets a name from `free_names()`.
"""

from __future__ import annotations

import base64
import enum
import itertools
import os
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
from blake3 import blake3

from degu_rpc.errors import ListingError
from degu_rpc.files.blocks import SMALL_SIZE, is_root
from degu_rpc.files.conflicts import add_note
from degu_rpc.files.limits import (
    MAX_OFFER_ENTRIES,
    MAX_OFFER_NAMES,
    MAX_OFFER_SIZE,
    MAX_OFFER_TEXT,
)
from degu_rpc.files.listing import Entry, Kind, Text, check_entries
from degu_rpc.files.paths import Path, parse_target
from degu_rpc.files.xattrs import parse_xattrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from degu_rpc.peers import Peer

_TRANSFER_CONTEXT = 'degu_rpc offer v1'


class Decision(enum.Enum):
    """What is to be done about an offer."""

    ACCEPT = 'accept'
    ASK = 'ask'
    """It waits for Inbox.accept() or Inbox.reject()."""
    REFUSE = 'refuse'


class State(enum.Enum):
    """How far an offer is."""

    WAITING = 'waiting'
    ACCEPTED = 'accepted'
    DONE = 'done'
    REFUSED = 'refused'


class Offer(NamedTuple):
    """What somebody wants to put into an inbox, and how far it is.

    `offer_id` is for people and programs: 8 characters of base32. `names` are those at the top of
    what is offered, and `kinds` says what each of them is; `files` counts symlinks, too; `size` and
    `bytes_received` are bytes; `offered_at`, and `changed_at` when its state last changed, are
    seconds since 1970.
    """

    offer_id: str
    sender: Peer
    names: tuple[str, ...]
    files: int
    size: int
    state: State
    bytes_received: int
    offered_at: float
    kinds: tuple[Kind, ...]
    changed_at: float


# --- the records of the protocol -----------------------------------------------------------------


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record of what an inbox answers: about the whole offer (`state`) or a content (`root`).

    `why` is for people. `status` is about a content: 200 where it is right, and else as in HTTP.
    `missing` is there after a manifest: which bytes are not here, as in `0-131071,262144-393215`.
    """

    state: State | None = None
    offer_id: Annotated[str, msgspec.Meta(pattern=r'\A([a-z2-7]{8})?\Z')] = ''
    root: Text = ''
    status: Annotated[int, msgspec.Meta(ge=200, le=599)] = 200
    missing: Text = ''
    why: str = ''


class Item(msgspec.Struct, frozen=True):
    """A small content in a pack that is sent."""

    root: Text
    content: Annotated[bytes, msgspec.Meta(max_length=SMALL_SIZE)]


def format_ranges(ranges: Iterable[tuple[int, int]]) -> str:
    """Format ranges of bytes, (start, stop) each, as they stand in an answer; '' for none.

    >>> format_ranges([(0, 131072), (262144, 393216)])
    '0-131071,262144-393215'
    """
    return ','.join(f'{start}-{stop - 1}' for start, stop in ranges)


def parse_ranges(text: str) -> list[tuple[int, int]]:
    """Parse what `format_ranges()` writes. Raises ListingError."""
    ranges = []
    for part in text.split(',') if text else []:
        first, _, last = part.partition('-')
        if not (first.isdigit() and last.isdigit() and first.isascii() and last.isascii()):
            raise ListingError(f'{part!r} is no range of bytes')
        ranges.append((int(first), int(last) + 1))
    return ranges


# --- what is offered -----------------------------------------------------------------------------


class Placing(NamedTuple):
    """A file or a symlink that is offered: its path and its entry."""

    path: Path
    entry: Entry


class Tree(NamedTuple):
    """What is offered, checked: files by the root of their content, in the order of the offer."""

    directories: dict[Path, Entry]
    contents: dict[str, list[Placing]]
    symlinks: list[Placing]
    transfer: str

    @property
    def tops(self) -> list[Path]:
        """The paths at the top, in the order of the offer by kind."""
        return [path for path in self.paths() if len(path) == 1]

    def paths(self) -> Iterator[Path]:
        """Yield the paths of everything, in the order of the offer by kind."""
        placings = itertools.chain(self.placed_files(), self.symlinks)
        return itertools.chain(self.directories, (placing.path for placing in placings))

    def placed_files(self) -> Iterator[Placing]:
        """Yield the files, those with the same content together."""
        return itertools.chain.from_iterable(self.contents.values())

    @property
    def files(self) -> int:
        """How many files and symlinks there are."""
        return sum(map(len, self.contents.values())) + len(self.symlinks)

    @property
    def size(self) -> int:
        """How many bytes all files have together."""
        return sum(placing.entry.size for placing in self.placed_files())


def check_offer(entries: Iterable[Entry]) -> Tree:
    """Check what anybody may have offered, and return it as a tree.

    Raises ListingError, PathError.
    """
    directories: dict[Path, Entry] = {}
    contents: dict[str, list[Placing]] = {}
    symlinks: list[Placing] = []
    hasher = blake3(derive_key_context=_TRANSFER_CONTEXT)
    size = tops = 0
    for path, entry in check_entries(entries, [()], MAX_OFFER_ENTRIES, MAX_OFFER_TEXT):
        size += entry.size
        tops += len(path) == 1
        if size > MAX_OFFER_SIZE:
            raise ListingError(f'it has more than {MAX_OFFER_SIZE} bytes')
        if tops > MAX_OFFER_NAMES:
            raise ListingError(f'it has more than {MAX_OFFER_NAMES} names at the top')
        if not entry.path:
            raise ListingError('an entry has no name')
        hasher.update(msgspec.msgpack.encode(entry))
        if entry.kind is Kind.DIRECTORY:
            directories[path] = entry
        elif entry.kind is Kind.SYMLINK:
            parse_target(entry.target)
            symlinks.append(Placing(path, entry))
        elif entry.kind is Kind.FILE and is_root(entry.root):
            parse_xattrs(entry.xattrs)
            placings = contents.setdefault(entry.root, [])
            if placings and placings[0].entry.size != entry.size:
                raise ListingError(f'{entry.path!r} has the root of another size')
            placings.append(Placing(path, entry))
        else:
            raise ListingError(f'{entry.path!r} is no file with its root, directory or symlink')
        if entry.kind is not Kind.FILE and entry.size:
            raise ListingError(f'{entry.path!r} is no file and has a size')
    if not tops:
        raise ListingError('nothing is in it')
    return Tree(directories, contents, symlinks, _format_transfer(hasher.digest()))


def derive_transfer(entries: Iterable[Entry]) -> str:
    """Return the name of the transfer of these entries, in this order: 52 characters of base32."""
    hasher = blake3(derive_key_context=_TRANSFER_CONTEXT)
    for entry in entries:
        hasher.update(msgspec.msgpack.encode(entry))
    return _format_transfer(hasher.digest())


def _format_transfer(digest: bytes) -> str:
    return base64.b32encode(digest).decode('ascii').lower().rstrip('=')


# --- names ---------------------------------------------------------------------------------------


def find_place(path: Path, placed: Mapping[Path, bytes]) -> Path:
    """Return where in the inbox `path` is; `placed` has the last names that are not as offered.

    >>> find_place((b'photos', b'a.jpg'), {(b'photos',): b'photos (2)'})
    (b'photos (2)', b'a.jpg')
    """
    if not placed:
        return path
    return tuple(placed.get(path[: depth + 1], name) for depth, name in enumerate(path))


def free_names(name: bytes, kind: Kind, tried: dict[bytes, int] | None = None) -> Iterator[bytes]:
    """Yield names to try for something whose name may be taken, `name` itself first.

    A number goes before the extension of a file. No name is longer than a name can be. Calls with
    the same `tried` do not yield the same numbered name twice: long names may lose all that tells
    them apart, and each would try the numbers of the others again.

    >>> names = free_names(b'talk.pdf', Kind.FILE)
    >>> next(names), next(names), next(names)
    (b'talk.pdf', b'talk (2).pdf', b'talk (3).pdf')
    """
    yield name
    stem, extension = (name, b'') if kind is Kind.DIRECTORY else os.path.splitext(name)
    tried = {} if tried is None else tried
    for digits in itertools.count(1):
        last = 10**digits - 1
        # Names that are cut to the same stem have this one in common, and all with as many digits.
        group = add_note(stem, extension, b' (%d)' % last)
        for number in range(tried.get(group, max(10 ** (digits - 1), 2)), last + 1):
            tried[group] = number + 1
            yield add_note(stem, extension, b' (%d)' % number)
