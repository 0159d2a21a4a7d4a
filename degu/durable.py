"""Small private files, and directories, that survive whatever happens.

Files appear whole or not at all:

1. The content goes to a temporary file beside the final name, of mode 0600 under any umask.
2. It is made durable (fsync) before it gets its name.
3. `write_new` links it to a name that must be free; `replace` renames it over what is there.
4. The directory is made durable too.

A kill at any moment leaves the old state or the new one, and perhaps a temporary file, whose name
`is_temporary` knows. There are no threads and no locks.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path, PurePath

_SUFFIX = '.tmp'


def write_new(path: Path, data: bytes) -> None:
    """Write a new file of mode 0600, whole or not at all.

    Raises FileExistsError (an existing file is never replaced) and any other OSError.
    """
    with _temporary(path, data) as temporary:
        os.link(temporary, path)
    sync_directory(path.parent)


def replace(path: PurePath, data: bytes, *, dir_fd: int | None = None) -> None:
    """Write a file of mode 0600 in place of what is at `path`, if anything is.

    With `dir_fd` a relative path begins at that open directory. Raises OSError.
    """
    with _temporary(path, data, dir_fd) as temporary:
        os.rename(temporary, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    sync_directory(path.parent, dir_fd=dir_fd)


@contextlib.contextmanager
def _temporary(path: PurePath, data: bytes, dir_fd: int | None = None) -> Iterator[PurePath]:
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(8)}{_SUFFIX}')
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=dir_fd)
    try:
        with os.fdopen(fd, 'wb') as fp:
            os.fchmod(fd, 0o600)  # a umask can only have taken bits away
            fp.write(data)
            fp.flush()
            os.fsync(fd)
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=dir_fd)


def is_temporary(name: str) -> bool:
    """Say whether `name` is one that a killed write left behind, or that is being written."""
    return name.startswith('.') and name.endswith(_SUFFIX)


def make_directory(directory: Path, mode: int = 0o777, *, parents: bool = False) -> None:
    """Make a directory that survives a power loss, unless it is there.

    With *parents* those above it that are missing are made, too. Raises FileExistsError for
    something else that is there, FileNotFoundError for a missing parent, OSError.
    """
    if directory.is_dir():
        return
    if parents:
        make_directory(directory.parent, parents=True)
    directory.mkdir(mode, exist_ok=True)
    sync_directory(directory.parent)


def sync_directory(directory: PurePath, *, dir_fd: int | None = None) -> None:
    """Make the names in *directory* survive a power loss; `dir_fd` as in replace(). OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
