"""The hash tree of a file: bytes -> leaves -> root, and nothing else (no file, no socket).

1. `block_size()` is a function of the size alone, so equal content has an equal root everywhere.
2. A leaf is the BLAKE3 of one block. A Manifest is the size, the block size and the leaves.
3. On the wire a manifest is u64le size, u8 log2(block size), leaves. The root is the BLAKE3 of
   exactly these bytes, in derive-key mode, so whoever has the root can check a manifest from anyone
   and whoever has the manifest can check a block from anyone.

    block size   files up to          leaves
    128 KiB      256 MiB              at most 2048
    ...          ...                  at most 2048
    16 MiB       32 GiB and above     as many as it takes
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from degu_rpc.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterable

Buffer = bytes | bytearray | memoryview

MIN_BLOCK_SIZE = 128 * 1024
MAX_BLOCK_SIZE = 16 * 1024 * 1024
SMALL_SIZE = MIN_BLOCK_SIZE
"""Up to this size, one block, a file is hashed when it is asked for and comes in one answer."""
WANTED_BLOCKS = 2048
LEAF_SIZE = 32
MAX_SIZE = 2**63 - 1
"""The largest file: what an off_t holds."""

_ROOT_CONTEXT = 'degu_rpc file root v1'
_HEAD_SIZE = 9
_LETTERS = 'abcdefghijklmnopqrstuvwxyz234567'
_PAIRS = [first + second for first in _LETTERS for second in _LETTERS]
_ROOT = re.compile(r'[a-z2-7]{51}[aq]').fullmatch


def block_size(size: int) -> int:
    """Return the block size in bytes for a file of `size` bytes. Raises ValueError for no size.

    >>> block_size(0), block_size(256 * 2**20), block_size(256 * 2**20 + 1), block_size(2**50)
    (131072, 131072, 262144, 16777216)
    """
    if not 0 <= size <= MAX_SIZE:
        raise ValueError(f'a file has 0 to {MAX_SIZE} bytes, not {size!r}')
    step = MIN_BLOCK_SIZE
    while step < MAX_BLOCK_SIZE and step * WANTED_BLOCKS < size:
        step *= 2
    return step


def block_count(size: int) -> int:
    """Return how many blocks a file of `size` bytes has; an empty one has none."""
    return -(-size // block_size(size))


def manifest_size(size: int) -> int:
    """Return the length in bytes of the wire form of the manifest of a file of `size` bytes."""
    return _HEAD_SIZE + block_count(size) * LEAF_SIZE


def hash_block(block: Buffer) -> bytes:
    """Return the leaf of one block: its BLAKE3, 32 bytes."""
    return blake3(block).digest()


def is_root(text: str) -> bool:
    """Tell whether `text` is a root: 256 bits in base32, lower case, no padding, 52 characters."""
    return _ROOT(text) is not None


class Manifest(NamedTuple):
    """What a file's content is: its size, its block size (both bytes), its leaves end to end."""

    size: int
    block_size: int
    leaves: bytes

    @property
    def root(self) -> str:
        """The one hash that says it all, in base32."""
        return _hash_manifest(format_manifest(self))

    @property
    def block_count(self) -> int:
        """How many blocks there are; an empty file has none."""
        return len(self.leaves) // LEAF_SIZE

    def block_range(self, index: int) -> tuple[int, int]:
        """Return (start, stop), in bytes, of block `index`. Raises IndexError outside the file."""
        if not 0 <= index < self.block_count:
            raise IndexError(f'block {index} of {self.block_count}')
        start = index * self.block_size
        return start, min(start + self.block_size, self.size)

    def leaf(self, index: int) -> bytes:
        """Return the hash of block `index`."""
        return self.leaves[index * LEAF_SIZE : (index + 1) * LEAF_SIZE]

    def matches(self, index: int, block: Buffer) -> bool:
        """Tell whether these bytes are block `index`."""
        return hash_block(block) == self.leaf(index)


def format_manifest(manifest: Manifest) -> bytes:
    """Format a manifest for the wire: u64le size, u8 log2(block size), leaves."""
    head = manifest.size.to_bytes(8, 'little') + bytes([_log2(manifest.block_size)])
    return head + manifest.leaves


def parse_manifest(data: bytes, root: str) -> Manifest:
    """Parse a manifest that anybody may have sent, and check it against `root`.

    Raises IntegrityError when the bytes do not hash to the root, or when they do and do not
    describe a file (the wrong block size or number of leaves: then the root itself is a lie).
    """
    if _hash_manifest(data) != root:
        raise IntegrityError(root, None, 'the manifest does not match its root')
    size = int.from_bytes(data[:8], 'little')
    if size > MAX_SIZE or len(data) != manifest_size(size) or data[8] != _log2(block_size(size)):
        raise IntegrityError(root, None, 'the manifest describes no file')
    return Manifest(size, block_size(size), data[_HEAD_SIZE:])


class ManifestHasher:
    """Makes the manifest of a file of known `size` from its bytes, in pieces of any length.

    Calls of 1 MiB or more are fast and leave the GIL to others. Not thread-safe.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._block_size = block_size(size)
        self._received = 0
        self._leaves = bytearray()
        self._block = blake3()

    def update(self, data: Buffer) -> None:
        """Take the next bytes. Raises ValueError when they go past the size."""
        with memoryview(data).cast('B') as view:
            if self._received + len(view) > self._size:
                raise ValueError(f'more than the {self._size} bytes that were announced')
            taken = 0
            while taken < len(view):
                room = self._block_size - self._received % self._block_size
                piece = view[taken : taken + room]
                self._block.update(piece)
                taken += len(piece)
                self._received += len(piece)
                if self._received % self._block_size == 0:
                    self._end_block()

    def finish(self) -> Manifest:
        """Return the manifest. Raises ValueError when bytes are missing."""
        if self._received != self._size:
            raise ValueError(f'{self._received} of the {self._size} bytes that were announced')
        if self._received % self._block_size:
            self._end_block()
        return Manifest(self._size, self._block_size, bytes(self._leaves))

    def _end_block(self) -> None:
        self._leaves += self._block.digest()
        self._block.reset()


def build_manifest(content: Buffer) -> Manifest:
    """Build the manifest of a whole content that is in memory."""
    with memoryview(content).cast('B') as view:
        step = block_size(len(view))
        blocks = range(0, len(view), step)
        leaves = b''.join(hash_block(view[start : start + step]) for start in blocks)
        return Manifest(len(view), step, leaves)


def find_runs(indexes: Iterable[int], longest: int) -> list[tuple[int, int]]:
    """Return the runs (first, last) of up to `longest` numbers in ascending ones.

    >>> find_runs([0, 1, 2, 5, 7, 8], 2)
    [(0, 1), (2, 2), (5, 5), (7, 8)]
    """
    runs: list[tuple[int, int]] = []
    for index in indexes:
        if runs and runs[-1][1] == index - 1 and index - runs[-1][0] < longest:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def _hash_manifest(data: bytes) -> str:
    digest = blake3(data, derive_key_context=_ROOT_CONTEXT).digest()
    # The last of 52 characters has 1 of the 256 bits. Each small file has a root, and base64 takes
    # more than twice the time for it.
    bits = int.from_bytes(digest, 'big') << 4
    return ''.join([_PAIRS[bits >> shift & 1023] for shift in range(250, -1, -10)])


def _log2(power_of_two: int) -> int:
    return power_of_two.bit_length() - 1
