"""The content of one file on its way: verified blocks in a temporary file, whoever brings them.

1. A Partial opens the temporary file that is named by the root, with what an earlier run left in
   it, and gives it its final size; a block of zeros is a hole, and need not come from anywhere.
2. A block that the note says is durable is not read again. The others that are there are hashed.
3. A block is checked against the manifest before it is written.
4. Every NOTE_SIZE bytes or NOTE_INTERVAL_S seconds what was written is made durable (fdatasync) and
   then noted, so a kill costs no more than that.

The note is a file beside the temporary one: its inode, a bit for each block, and a checksum. It is
never newer than the data, and a note that is torn, or of another file, counts as none.

A Partial may be used by many threads: `_lock` guards what is said below, and no thread waits for
the disk while it holds it.
"""

from __future__ import annotations

import errno
import functools
import os
import threading
from time import monotonic
from typing import TYPE_CHECKING

from blake3 import blake3

from degu_rpc.errors import IntegrityError
from degu_rpc.files.blocks import MAX_SIZE, Buffer, Manifest, hash_block
from degu_rpc.files.descriptors import read_at, write_at
from degu_rpc.files.limits import NOTE_INTERVAL_S, NOTE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from degu_rpc.files.commit import Workspace
    from degu_rpc.files.temporaries import Temporary

_CHECK_SIZE = 32


class Partial:
    """What is here of one content. Close it, or use it with `with`, or `finish()` it."""

    # Set once: root, manifest, _workspace, _temporary, _is_durable.
    # Guarded by self._lock: _here and _noted (a byte for each block), _written (bytes), _unnoted
    # (bytes since the last note), _noted_at, _is_noting (one thread makes a note).

    def __init__(self, workspace: Workspace, root: str, manifest: Manifest) -> None:
        """Begin, or go on, with the content `root`, whose manifest is known. Raises OSError.

        What no note says is durable counts once `find_blocks()` has found it.
        """
        self.root = root
        self.manifest = manifest
        self._workspace = workspace
        self._is_durable = workspace.is_durable
        self._lock = threading.Lock()
        self._here = bytearray(manifest.block_count)
        self._noted = bytearray(manifest.block_count)
        self._written = 0
        self._unnoted = 0
        self._noted_at = monotonic()
        self._is_noting = False
        self._temporary = workspace.temporaries.open(root)
        try:
            self._read_note()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the temporary file; what is in it stays for a later run."""
        os.close(self._temporary.fd)

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def fd(self) -> int:
        """The descriptor of the temporary file."""
        return self._temporary.fd

    @property
    def written(self) -> int:
        """How many bytes were written."""
        with self._lock:
            return self._written

    def missing(self) -> list[int]:
        """Return the numbers of the blocks that are not here, in order."""
        with self._lock:
            return [index for index, here in enumerate(self._here) if not here]

    def skip(self, first: int, last: int) -> int:
        """Return the first block from `first` to `last` that is not here, `last` + 1 for none."""
        with self._lock:
            missing = self._here.find(0, first, last + 1)
        return last + 1 if missing == -1 else missing

    def missing_size(self) -> int:
        """Return how many bytes the missing blocks have."""
        ranges = map(self.manifest.block_range, self.missing())
        return sum(stop - start for start, stop in ranges)

    def write(self, index: int, block: Buffer) -> bool:
        """Write block `index`; return whether it was missing: another source may bring it, too.

        Raises IntegrityError for bytes that are not that block, OSError.
        """
        if not self.manifest.matches(index, block):
            raise IntegrityError(self.root, index, 'the bytes do not match the manifest')
        if self.skip(index, index) > index:
            return False
        write_at(self._temporary.fd, block, self.manifest.block_range(index)[0])
        return self._count(index)

    def offer(self, index: int, block: Buffer) -> bool:
        """Write block `index` if these bytes are it; say whether they are. Raises OSError."""
        if not self.manifest.matches(index, block):
            return False
        write_at(self._temporary.fd, block, self.manifest.block_range(index)[0])
        self._count(index)
        return True

    def adopt(self, index: int, buffer: memoryview) -> bool:
        """Take block `index` as it stands in the temporary file, if it is right; say whether.

        `buffer` has room for a block. Raises OSError.
        """
        start, stop = self.manifest.block_range(index)
        block = buffer[: stop - start]
        if not read_at(self._temporary.fd, block, start):
            return False
        if not self.manifest.matches(index, block):
            return False
        self._count(index)
        return True

    def finish(self) -> Temporary:
        """Return the temporary file, once all blocks are here; the caller closes it."""
        missing = self.missing()
        if missing:
            raise ValueError(f'{len(missing)} blocks of {self.root} are missing')
        with self._lock:
            return self._temporary._replace(has_note=any(self._noted))

    # --- what is here ---------------------------------------------------------------------------

    def find_blocks(self) -> Iterator[int]:
        """Find out which blocks are here; yield for each its size in bytes, 0 if it is not.

        Those that no note says are durable are hashed, which takes long. Raises OSError.
        """
        fd, manifest = self._temporary.fd, self.manifest
        buffer = memoryview(bytearray(min(manifest.block_size, manifest.size)))
        data_at = 0
        for index in range(manifest.block_count):
            start, stop = manifest.block_range(index)
            if not self._noted[index]:
                if data_at <= start:
                    data_at = _find_data(fd, start)
                if data_at >= stop:
                    self._here[index] = manifest.leaf(index) == _hash_zeros(stop - start)
                else:
                    self.adopt(index, buffer)
            yield stop - start if self._here[index] else 0

    def _count(self, index: int) -> bool:
        """Count a block that was written, and make a note if it is time to.

        Returns whether it was missing.
        """
        start, stop = self.manifest.block_range(index)
        with self._lock:
            if self._here[index]:
                return False
            self._here[index] = 1
            self._written += stop - start
            self._unnoted += stop - start
            is_due = self._unnoted >= NOTE_SIZE or monotonic() - self._noted_at >= NOTE_INTERVAL_S
            if not is_due or self._is_noting:
                return True
            self._is_noting = True
        try:
            self._note()
        finally:
            with self._lock:
                self._is_noting = False
        return True

    # --- the note -------------------------------------------------------------------------------

    def _note(self) -> None:
        with self._lock:
            here = bytes(self._here)
            self._unnoted = 0
            self._noted_at = monotonic()
            if not self._is_durable or here == self._noted:
                return
        os.fdatasync(self._temporary.fd)
        inode = os.fstat(self._temporary.fd).st_ino
        self._workspace.temporaries.write_note(self._temporary, format_note(inode, here))
        with self._lock:
            self._noted[:] = here

    def _read_note(self) -> None:
        """Believe a note on this file; one of another length than announced gets it, and none."""
        temporary, temporaries = self._temporary, self._workspace.temporaries
        found = os.fstat(temporary.fd)
        if found.st_size != self.manifest.size:
            # In this order: a note must never speak of a file that another one has replaced.
            temporaries.remove_note(temporary)
            os.ftruncate(temporary.fd, self.manifest.size)
            return
        noted = parse_note(
            temporaries.read_note(temporary), found.st_ino, self.manifest.block_count
        )
        if noted is not None:
            self._here[:] = self._noted[:] = noted


def store_small(workspace: Workspace, root: str, content: bytes) -> Temporary:
    """Write a whole content, whose root was checked, into a temporary file. Raises OSError."""
    temporary = workspace.temporaries.open(root)
    try:
        write_at(temporary.fd, content, 0)
        os.ftruncate(temporary.fd, len(content))
    except BaseException:
        os.close(temporary.fd)
        raise
    return temporary


def format_note(inode: int, blocks: bytes) -> bytes:
    """Format a note: u64le inode, a bit for each block (a byte of `blocks`), a checksum."""
    bits = bytearray((len(blocks) + 7) // 8)
    for index, block in enumerate(blocks):
        bits[index // 8] |= block << index % 8
    body = inode.to_bytes(8, 'little') + bits
    return body + blake3(body).digest()


def parse_note(data: bytes, inode: int, block_count: int) -> bytes | None:
    """Return a byte for each block, 1 for one that is durable; None for no note of that file."""
    body, check = data[:-_CHECK_SIZE], data[-_CHECK_SIZE:]
    if len(body) != 8 + (block_count + 7) // 8 or blake3(body).digest() != check:
        return None
    if int.from_bytes(body[:8], 'little') != inode:
        return None
    return bytes(body[8 + index // 8] >> index % 8 & 1 for index in range(block_count))


def _find_data(fd: int, position: int) -> int:
    """Return where the next bytes at or after `position` are that are no hole."""
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return MAX_SIZE
        raise


@functools.lru_cache(maxsize=64)
def _hash_zeros(size: int) -> bytes:
    return hash_block(bytes(size))
