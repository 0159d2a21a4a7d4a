"""Packs: many small files in one question and one answer.

    POST /pack    the paths of files, a Wanted each; the answer has a Packed for each, in this order

Question and answer are streams of records (records.py), the question in the form that its
`content-type` names, the answer in the one that `accept` asks for. A pack has up to PACK_ITEMS
files of up to SMALL_SIZE bytes each. Once an answer has PACK_SIZE bytes the rest of it says 503:
ask again for those. The first record never does, so that asking comes to an end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec

from degu_rpc.files.blocks import SMALL_SIZE
from degu_rpc.files.limits import MAX_PATH_TEXT
from degu_rpc.files.listing import Text, Time, Xattrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar('T')

NOT_IN_PACK = 503
"""The status of a file that did not fit."""
RECORD_COST = 16
"""Bytes of a Wanted besides its path, at most."""


class Wanted(msgspec.Struct, frozen=True):
    """A file that is asked for, by its path in the share, percent-encoded."""

    path: Annotated[Text, msgspec.Meta(max_length=MAX_PATH_TEXT)]


class Packed(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file of a pack, or why it is not in it.

    `status` is 200, or 403 for what may not be read, 404 for no such file, 409 for one that
    changes, 413 for one that is larger than SMALL_SIZE, 503 for one that did not fit.
    """

    status: Annotated[int, msgspec.Meta(ge=200, le=599)]
    root: Text = ''
    mtime_ns: Time = 0
    content: Annotated[bytes, msgspec.Meta(max_length=SMALL_SIZE)] = b''
    xattrs: Xattrs | None = None


def split_packs(
    items: Iterable[T], size_of: Callable[[T], int], max_items: int, max_size: int
) -> Iterator[list[T]]:
    """Yield the items in packs of up to `max_items` and, where an item fits, `max_size` bytes.

    >>> list(split_packs([3, 1, 1, 9], lambda size: size, 2, 4))
    [[3, 1], [1], [9]]
    """
    pack: list[T] = []
    size = 0
    for item in items:
        if pack and (len(pack) == max_items or size + size_of(item) > max_size):
            yield pack
            pack, size = [], 0
        pack.append(item)
        size += size_of(item)
    if pack:
        yield pack
