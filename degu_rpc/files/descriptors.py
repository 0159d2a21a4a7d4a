"""Read, write and copy at a place in an open file; its position stays where it is."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from degu_rpc.files.limits import MAX_PIECE

if TYPE_CHECKING:
    from degu_rpc.files.blocks import Buffer

_NOT_BY_THE_KERNEL = {errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


def read_at(fd: int, buffer: memoryview, start: int) -> bool:
    """Fill the buffer from `start` on; return whether there was as much. Raises OSError."""
    filled = 0
    while filled < len(buffer):
        count = os.preadv(fd, [buffer[filled:]], start + filled)
        if count == 0:
            return False
        filled += count
    return True


def write_at(fd: int, data: Buffer, start: int) -> None:
    """Write all of `data` at `start`. Raises OSError."""
    with memoryview(data).cast('B') as view:
        written = 0
        while written < len(view):
            written += os.pwrite(fd, view[written:], start + written)


def copy_at(source: int, source_start: int, fd: int, start: int, size: int) -> int:
    """Copy up to `size` bytes from one open file into another, by the kernel where it can.

    It may share them between the two. Returns how many, 0 where the source ends. Raises OSError.
    """
    try:
        count = os.copy_file_range(source, fd, size, source_start, start)
    except OSError as error:
        if error.errno not in _NOT_BY_THE_KERNEL:
            raise
        count = 0  # and some file systems copy nothing without saying why
    return count or os.pwrite(fd, os.pread(source, min(size, MAX_PIECE), source_start), start)
