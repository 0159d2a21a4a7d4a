"""What the system does with the names in open directories, each change in one step.

A name is looked at without following a symlink, and changes so that nothing is overwritten. Where a
file system has no renameat2 flags, a free name is taken with `link`, and `can_exchange()` is False.
No state and no policy: which name changes when is for commit.py to say.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from typing import NamedTuple, NoReturn

from degu_rpc.files.content import Signature, signature_of
from degu_rpc.files.paths import DIRECTORY_FLAGS

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
SYNC_FILE_RANGE_WRITE = 2

# Source: statx(2) and the kernel's uapi/linux/stat.h: stx_mask begins a struct of 256 bytes, and
# stx_btime is at 80.
_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_BTIME = 0x800
_STATX_SIZE = 256
_MASK = struct.Struct('=I')
_BIRTH_TIME = struct.Struct('=qI')
_BIRTH_TIME_AT = 80

# ctypes because Python binds none of renameat2, sync_file_range, statx and syncfs, and no other
# call can exchange two names, start writing a file to the disk without waiting for it, tell a birth
# time, or sync one file system.
_libc = ctypes.CDLL(None, use_errno=True)
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class DirectoryId(NamedTuple):
    """What tells one directory from another, a later one with the same inode included.

    `born_ns` is nanoseconds since 1970, 0 where the file system does not keep it.
    """

    device: int
    inode: int
    born_ns: int


def list_names(directory: int) -> list[bytes]:
    """Return the names in an open directory. Raises OSError."""
    with os.scandir(directory) as entries:
        return [os.fsencode(entry.name) for entry in entries]


def exists(directory: int, name: bytes) -> bool:
    """Tell whether anything has this name. Raises OSError."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def is_directory(directory: int, name: bytes) -> bool:
    """Tell whether a directory has this name. Raises OSError."""
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def identify_directory(directory: int, name: bytes) -> DirectoryId | None:
    """Return which directory has this name; None for nothing and anything else. Raises OSError."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        born_ns = _find_birth(directory, name)
    except FileNotFoundError:
        return None
    return DirectoryId(found.st_dev, found.st_ino, born_ns) if stat.S_ISDIR(found.st_mode) else None


def _find_birth(directory: int, name: bytes) -> int:
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    if _libc.statx(directory, name, _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer) != 0:
        _raise_error(name)
    if not _MASK.unpack_from(buffer)[0] & _STATX_BTIME:
        return 0
    seconds, nanoseconds = _BIRTH_TIME.unpack_from(buffer, _BIRTH_TIME_AT)
    return int(seconds * 10**9 + nanoseconds)


def look(directory: int, name: bytes) -> Signature:
    """Return the signature of what has this name. Raises OSError."""
    return signature_of(os.stat(name, dir_fd=directory, follow_symlinks=False))


def rename_to_free(source: int, name: bytes, target: int, new_name: bytes) -> bool:
    """Rename from one open directory to another unless the new name is taken.

    Returns whether it was free. Raises OSError.
    """
    try:
        try:
            _renameat2(source, name, target, new_name, RENAME_NOREPLACE)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            os.link(name, new_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
            os.unlink(name, dir_fd=source)
    except FileExistsError:
        return False
    return True


def exchange(source: int, name: bytes, target: int, new_name: bytes) -> None:
    """Let what has the two names change places.

    Raises FileNotFoundError when one of them is not there, OSError where the file system cannot:
    ask `can_exchange()` first.
    """
    _renameat2(source, name, target, new_name, RENAME_EXCHANGE)


def can_exchange(directory: int, name: bytes) -> bool:
    """Try whether names in an open directory can be exchanged, with two that begin with `name`.

    Raises OSError.
    """
    names = [name + b'.1', name + b'.2']
    for each in names:
        os.close(os.open(each, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory))
    try:
        exchange(directory, names[0], directory, names[1])
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    finally:
        for each in names:
            os.unlink(each, dir_fd=directory)
    return True


def link_or_rename(source: int, name: bytes, target: int, new_name: bytes) -> bool:
    """Give a file a free name besides its own, or where there are no links instead of it.

    Returns whether it has both. Raises OSError.
    """
    try:
        os.link(name, new_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
        return False
    return True


def find_inode(directory: int, inode: int) -> tuple[bytes, ...]:
    """Return the names that lead from an open directory to `inode`; none if it is not below.

    Raises OSError.
    """
    with os.scandir(directory) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                below = os.open(name, DIRECTORY_FLAGS, dir_fd=directory)
                try:
                    found = find_inode(below, inode)
                finally:
                    os.close(below)
                if found:
                    return (name, *found)
            elif entry.inode() == inode:
                return (name,)
    return ()


def start_writing(fd: int) -> None:
    """Hint that the disk may begin to write a file; whether it does is for fsync to say."""
    _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), SYNC_FILE_RANGE_WRITE)


def sync_file_system(fd: int) -> None:
    """Make all that was written to the file system of an open file durable. Raises OSError."""
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _renameat2(source: int, name: bytes, target: int, new_name: bytes, flags: int) -> None:
    if _libc.renameat2(source, name, target, new_name, ctypes.c_uint(flags)) != 0:
        _raise_error(name, new_name)


def _raise_error(name: bytes, new_name: bytes | None = None) -> NoReturn:
    code = ctypes.get_errno()
    other = None if new_name is None else os.fsdecode(new_name)
    raise OSError(code, os.strerror(code), os.fsdecode(name), None, other)
