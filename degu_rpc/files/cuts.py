"""The cut points of a content, which depend on the bytes alone and not on where they stand.

Blocks (see blocks.py) stand at fixed places, so a byte at the front changes each of them. The
chunks here end where the bytes say so: after an insertion or a deletion the same chunks come again,
at other places. Pure: no file, no socket.

1. `cut_content()` cuts with FastCDC, reading as it goes, and hashes each chunk. The parameters are
   a function of the size of the new content; the old version of a file is cut with the same.
2. On the wire a list is u64le size, then for each chunk u32le length and its BLAKE3, 32 bytes.
3. `plan_copies()` says which parts of the new content the old one has, and where.

    average chunk   files up to   their list
    64 KiB          1 GiB         about 1/2000 of the file, 1/450 where all chunks are short
    ...             ...           about 0.5 MB, at most 2.4 MB
    4 MiB           64 GiB        the same

A chunk is only said to be equal. Whoever copies one checks the blocks it lands in against the
manifest, so a list that is wrong, or cut in another way, costs bytes and never a right content.
"""

from __future__ import annotations

import struct
import warnings
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # it warns where it is slow, and then we do not use it
    from pyfastcdc import FastCDC

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pyfastcdc import BinaryStreamReader

    from degu_rpc.files.blocks import Buffer

    Span = tuple[int, int]
    """Bytes `start` to `stop` of a content."""

MIN_AVERAGE = 64 * 1024
MAX_AVERAGE = 4 * 1024 * 1024
WANTED_CHUNKS = 16384
MAX_CUT_SIZE = WANTED_CHUNKS * MAX_AVERAGE
"""The largest file that is cut: more chunks, or larger ones, would take too much memory."""

_IS_FAST = FastCDC.__module__.startswith('pyfastcdc.cy')
"""Whether the compiled cutter is there. The other takes minutes for what this does in a second."""
_SPREAD = 4
"""A chunk has a quarter of the average at least, unless it is the last, and four times at most."""
_HEAD = struct.Struct('<Q')
_RECORD = struct.Struct('<I32s')


class Chunk(NamedTuple):
    """A piece of a content: its length in bytes and its BLAKE3."""

    length: int
    digest: bytes


class Copy(NamedTuple):
    """A part of the new content that the old one has: `size` bytes, from `old_start` to `start`."""

    start: int
    old_start: int
    size: int


def can_cut(size: int) -> bool:
    """Tell whether a file of `size` bytes is cut here at all."""
    return _IS_FAST and size <= MAX_CUT_SIZE


def average_size(size: int) -> int:
    """Return the average length of a chunk, in bytes, for a new content of `size` bytes.

    >>> average_size(0), average_size(2**30), average_size(2**30 + 1), average_size(2**40)
    (65536, 65536, 131072, 4194304)
    """
    average = MIN_AVERAGE
    while average < MAX_AVERAGE and average * WANTED_CHUNKS < size:
        average *= 2
    return average


def cut_content(stream: BinaryStreamReader, size: int) -> Iterator[Chunk]:
    """Yield the chunks of what `stream` reads, up to its end, as for a new content of `size` bytes.

    However few bytes a read gives, the chunks are the same. Takes eight averages of memory. Raises
    ValueError where `can_cut(size)` is false, and what `stream` raises.
    """
    if not can_cut(size):
        raise ValueError(f'files of {size} bytes are not cut here')
    average = average_size(size)
    cutter = FastCDC(
        average, min_size=average // _SPREAD, max_size=average * _SPREAD, normalized_chunking=1
    )
    for chunk in cutter.cut_stream(stream):
        yield Chunk(chunk.length, blake3(chunk.data).digest())


def format_size(size: int) -> bytes:
    """Format the head of a list: the size of the content."""
    return _HEAD.pack(size)


def format_chunk(chunk: Chunk) -> bytes:
    """Format one chunk of a list."""
    return _RECORD.pack(*chunk)


def max_list_size(size: int) -> int:
    """Return the bytes that the list of a content of `size` bytes has at most."""
    return _HEAD.size + -(-size // (average_size(size) // _SPREAD)) * _RECORD.size


def parse_cuts(data: Buffer, size: int) -> list[Chunk]:
    """Parse a list that anybody may have sent for a content of `size` bytes.

    Raises ValueError unless its lengths are what our cutter could have made and sum up to `size`: a
    list that ends early is that of a file that changed while it was cut.
    """
    if len(data) > max_list_size(size) or len(data) % _RECORD.size != _HEAD.size:
        raise ValueError(f'{len(data)} bytes are no list of a file of {size}')
    if _HEAD.unpack_from(data) != (size,):
        raise ValueError(f'it is the list of a file of {_HEAD.unpack_from(data)[0]} bytes')
    average = average_size(size)
    chunks: list[Chunk] = []
    total = 0
    with memoryview(data) as view:
        for chunk in map(Chunk._make, _RECORD.iter_unpack(view[_HEAD.size :])):
            total += chunk.length
            shortest = 1 if total == size else average // _SPREAD
            if not shortest <= chunk.length <= average * _SPREAD:
                raise ValueError(f'chunk {len(chunks)} has {chunk.length} bytes')
            chunks.append(chunk)
    if total != size:
        raise ValueError(f'the chunks have {total} bytes, the file {size}')
    return chunks


def plan_copies(old: Sequence[Chunk], new: Iterable[Chunk]) -> list[Copy]:
    """Return what of `new` is in `old`, ascending, as few and as long pieces as there are."""
    starts = []
    first: dict[Chunk, int] = {}
    old_start = 0
    for index, chunk in enumerate(old):
        first.setdefault(chunk, index)
        starts.append(old_start)
        old_start += chunk.length
    copies: list[Copy] = []
    start = 0
    following = len(old)
    for chunk in new:
        # What follows the last match comes first: it makes one long copy of many equal chunks.
        if following < len(old) and old[following] == chunk:
            copies[-1] = copies[-1]._replace(size=copies[-1].size + chunk.length)
            following += 1
        elif chunk in first:
            following = first[chunk] + 1
            copies.append(Copy(start, starts[first[chunk]], chunk.length))
        else:
            following = len(old)
        start += chunk.length
    return copies


def clip_copies(copies: Iterable[Copy], spans: Iterable[Span]) -> list[Copy]:
    """Return the parts of `copies` that lie in `spans`; each is ascending, without overlaps."""
    clipped = []
    waiting = iter(spans)
    span = next(waiting, None)
    for copy in copies:
        while span is not None:
            start, stop = max(copy.start, span[0]), min(copy.start + copy.size, span[1])
            if start < stop:
                clipped.append(Copy(start, copy.old_start + start - copy.start, stop - start))
            if span[1] > copy.start + copy.size:
                break
            span = next(waiting, None)
    return clipped
