"""Take from an old version what would otherwise come over the network.

1. A block that is at the same place in both is read into memory, checked and written, so that
   nobody can change it in between.
2. What is at other places is copied to where it belongs (delta.py), and a block counts once it was
   read back and is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from degu_rpc.files.delta import copy_matches
from degu_rpc.files.descriptors import read_at

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from degu_rpc.files.cuts import Chunk
    from degu_rpc.files.partial import Partial


def copy_blocks(fd: int, content: Partial, found: Callable[[int], None]) -> None:
    """Copy from an open file those missing blocks that are at the same place there.

    `found` is called with the size in bytes of each. Raises what it raises, OSError.
    """
    manifest = content.manifest
    buffer = memoryview(bytearray(min(manifest.block_size, manifest.size)))
    for index in content.missing():
        start, stop = manifest.block_range(index)
        block = buffer[: stop - start]
        if not read_at(fd, block, start):
            return
        if content.offer(index, block):
            found(stop - start)


def copy_chunks(
    fd: int,
    size: int,
    chunks: Sequence[Chunk],
    content: Partial,
    check: Callable[[], None],
    found: Callable[[int], None],
) -> None:
    """Copy from an open file of `size` bytes what it has of missing blocks, wherever that is.

    `chunks` is the list of the whole content (see cuts.py). `check` is called again and again, and
    `found` with the size in bytes of each block. Raises what they raise, OSError.
    """
    manifest = content.manifest
    missing = content.missing()
    places = [manifest.block_range(index) for index in missing]
    spans = copy_matches(fd, size, chunks, content.fd, places, check)
    buffer = memoryview(bytearray(manifest.block_size))
    for index, (start, stop) in zip(missing, places, strict=True):
        check()
        while spans and spans[0][1] < stop:
            del spans[0]
        if spans and spans[0][0] <= start and content.adopt(index, buffer):
            found(stop - start)
