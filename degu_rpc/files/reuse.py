"""Take from what is here already what would otherwise come over the network.

Nothing of it is trusted: a block is written only if it is the one that the manifest says, as bytes
that were read into memory, so that nobody can change them in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from degu_rpc.files.partial import read_at

if TYPE_CHECKING:
    from collections.abc import Callable

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
