"""Paths below a root directory, and the only door to what is there (invariant I6).

1. Inside, a path is a tuple of names and a name is bytes, as the file system has it; () is the
   root.
2. On the wire (a URL, a listing) a name is percent-encoded ASCII, so that every name can travel.
   `parse_path()` refuses what could lead elsewhere; nothing else makes names out of a peer's bytes.
3. A Root holds the directory open. Every operation walks from there, component by component, with
   directory descriptors and O_NOFOLLOW: whatever symlinks a hostile tree holds, and whoever swaps
   them meanwhile, the walk stays inside or fails.

A Root has no state but its descriptor and may be used by many threads. It does not change file
contents or final names: that is commit.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import unicodedata
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes, unquote_to_bytes

from degu_rpc.errors import BlockedError, PathError
from degu_rpc.files.limits import MAX_DEPTH, MAX_NAME, MAX_TARGET

if TYPE_CHECKING:
    from collections.abc import Iterator

Path = tuple[bytes, ...]

PRIVATE_NAME = b'.degu'
"""Our own directory in a root: refused as a name everywhere, in any case."""

NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}
"""What the system says of a path that leads to nothing, or through what is not followed."""

_SEGMENT = re.compile(r'(?:[!-$&-.0-~]|%[0-9A-Fa-f]{2})+').fullmatch
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: should a fifo take the file's place between the look and the open, do not wait for it.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def check_name(name: bytes) -> bytes:
    """Return `name` if it can stand in a path; otherwise PathError says which rule it breaks."""
    if not name:
        raise PathError(name, 'a name is empty')
    if name in {b'.', b'..'}:
        raise PathError(name, 'a name is "." or ".."')
    if b'/' in name or b'\0' in name:
        raise PathError(name, 'a name holds "/" or NUL')
    if len(name) > MAX_NAME:
        raise PathError(name, f'a name is longer than {MAX_NAME} bytes')
    if _is_private(name):
        raise PathError(name, 'a name is ".degu", which is ours')
    return name


def _is_private(name: bytes) -> bool:
    """Tell whether some file system takes a name for our own directory's.

    Those that fold case also normalize, and leave out what nobody can see.
    """
    if name.isascii():
        return name.lower() == PRIVATE_NAME
    text = unicodedata.normalize('NFKC', name.decode('utf-8', 'replace')).casefold()
    visible = ''.join(one for one in text if unicodedata.category(one) != 'Cf')
    return visible.encode() == PRIVATE_NAME


def check_path(path: Path) -> Path:
    """Return `path` if every name can stand in it, otherwise raise PathError."""
    if len(path) > MAX_DEPTH:
        raise PathError(path[:4], f'a path has more than {MAX_DEPTH} names')
    for name in path:
        check_name(name)
    return path


def parse_path(text: str) -> Path:
    """Parse percent-encoded names with "/" between them; the empty text is the root.

    Raises PathError. Source: RFC 3986 §2.1. Stricter: a stray "%" is refused, not kept.

    >>> parse_path('a%20b/%FF')
    (b'a b', b'\\xff')
    """
    if not text:
        return ()
    segments = text.split('/')
    for segment in segments:
        if segment and not _SEGMENT(segment):
            raise PathError(segment, 'not a percent-encoded name')
    return check_path(tuple(unquote_to_bytes(segment) for segment in segments))


def format_path(path: Path) -> str:
    """Format a path for a URL or a listing; `parse_path()` undoes it.

    >>> format_path((b'a b', b'\\xff'))
    'a%20b/%FF'
    """
    return '/'.join(quote_from_bytes(name, safe='') for name in path)


def format_native(path: Path) -> str:
    """Format a path as a local program has it; `path_from_native()` undoes it."""
    return os.fsdecode(b'/'.join(path))


def decode_native(text: str) -> str:
    """Decode what is percent-encoded and need be no path, as a local program has it; for people.

    >>> decode_native('a%20b/..')
    'a b/..'
    """
    return os.fsdecode(unquote_to_bytes(text))


def parse_target(text: str) -> bytes:
    """Parse the text of a symlink. Raises PathError. It is kept and never followed."""
    target = unquote_to_bytes(text)
    if not target or b'\0' in target or len(target) > MAX_TARGET:
        raise PathError(text, f'a symlink has 1 to {MAX_TARGET} bytes without NUL')
    return target


def format_target(target: bytes) -> str:
    """Format the text of a symlink, "/" as it is, the rest as in `format_path()`."""
    return quote_from_bytes(target, safe='/')


def path_from_native(path: str | bytes | os.PathLike[str]) -> Path:
    """Return the path that a local program means by a relative `path`. Raises PathError.

    A "/" at either end means nothing.
    """
    native = os.fsencode(path).strip(b'/')
    return check_path(tuple(native.split(b'/'))) if native else ()


class Root:
    """A directory, held open, below which paths are looked up. Close it, or use it with `with`.

    Methods raise OSError as the system calls do: a symlink in the middle of a path is a
    NotADirectoryError, because it is not followed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Open `directory` (it may be reached through symlinks: the caller names it). OSError."""
        self.name = os.fspath(directory)
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the directory; a second time does nothing."""
        fd, self._fd = self._fd, -1
        if fd != -1:
            os.close(fd)

    def __enter__(self) -> Root:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open_directory(self, path: Path) -> int:
        """Open the directory at `path` and return its descriptor, which the caller closes."""
        check_path(path)
        fd = os.open('.', DIRECTORY_FLAGS, dir_fd=self._fd)
        for name in path:
            fd = _open_below(fd, name)
        return fd

    @contextlib.contextmanager
    def directory(self, path: Path) -> Iterator[int]:
        """Hold the directory at `path` open for the length of a `with`."""
        fd = self.open_directory(path)
        try:
            yield fd
        finally:
            os.close(fd)

    def open_file(self, path: Path) -> int:
        """Open the regular file at `path` for reading and return its descriptor.

        Raises PathError for anything but a regular file, symlinks included; OSError.
        """
        if not path:
            raise PathError(path, 'not a regular file')
        with self.directory(path[:-1]) as parent:
            return open_file_in(parent, path[-1])

    def open_readable(self, path: Path) -> int | None:
        """Open the regular file at `path` for reading; None for anything else, or none to be read.

        Raises OSError.
        """
        try:
            return self.open_file(path)
        except (PathError, FileNotFoundError, PermissionError):
            return None

    def lstat(self, path: Path) -> os.stat_result:
        """Look at what is at `path`, without following a symlink."""
        if not path:
            return os.fstat(self._fd)
        with self.directory(path[:-1]) as parent:
            return os.stat(check_name(path[-1]), dir_fd=parent, follow_symlinks=False)

    def readlink(self, path: Path) -> bytes:
        """Read the text of the symlink at `path`."""
        with self.directory(path[:-1]) as parent:
            return os.readlink(check_name(path[-1]), dir_fd=parent)

    def find_target(self, path: Path) -> bytes | None:
        """Read the text of the symlink at `path`; None for anything else that is there."""
        try:
            return self.readlink(path)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise

    def scan(self, path: Path) -> list[tuple[bytes, os.stat_result]]:
        """List the directory at `path`: (name, lstat) sorted by name, our own directory left out.

        What vanishes meanwhile is left out as well.
        """
        found = []
        with self.directory(path) as fd, os.scandir(fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if not _is_private(name):
                    with contextlib.suppress(FileNotFoundError):
                        found.append((name, entry.stat(follow_symlinks=False)))
        return sorted(found)

    def make_directory(self, path: Path) -> bool:
        """Make the directory at `path`, mode 0700, unless it is there; return whether it was made.

        Its parent must be there. Raises NotADirectoryError when something else is at `path`.
        """
        with self.directory(path[:-1]) as parent:
            return _make_below(parent, check_name(path[-1]))

    def open_private(self, *, durable: bool) -> int:
        """Open our own `.degu`, making it if it is missing (mode 0700, see `open_or_make()`)."""
        start = os.open('.', DIRECTORY_FLAGS, dir_fd=self._fd)
        return open_or_make(start, (PRIVATE_NAME,), durable=durable)


def open_or_make(start: int, names: Path, *, durable: bool) -> int:
    """Open the directory at `names` below the open directory `start`, which is closed.

    What is missing is made, mode 0700, and with `durable` fsynced into its parent. The names are
    not checked: they are ours. Raises OSError.
    """
    fd = start
    for name in names:
        try:
            if _make_below(fd, name) and durable:
                os.fsync(fd)
        except OSError:
            os.close(fd)
            raise
        fd = _open_below(fd, name)
    return fd


def _open_below(parent: int, name: bytes) -> int:
    """Open a directory in another one, which is closed whatever happens."""
    try:
        return os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
    finally:
        os.close(parent)


def _make_below(parent: int, name: bytes) -> bool:
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(20, 'something else is there', os.fsdecode(name)) from None
        return False
    return True


def require_private(directory: int, *names: bytes) -> None:
    """Refuse an open directory that others may have prepared: what is in it could become a file.

    `names` say which one it is. Raises BlockedError, OSError.
    """
    found = os.fstat(directory)
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid() or mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BlockedError(
            format_native(names),
            f'it must belong to user {os.geteuid()} and nobody else may write to it, '
            f'but it belongs to user {found.st_uid} and its mode is {mode:o}',
        )


def open_file_in(parent: int, name: bytes) -> int:
    """Open a regular file in an open directory, as `Root.open_file()` does."""
    # Look first: opening a device can do things.
    _require_regular(name, os.stat(check_name(name), dir_fd=parent, follow_symlinks=False))
    fd = os.open(name, _FILE_FLAGS, dir_fd=parent)
    try:
        _require_regular(name, os.fstat(fd))
    except PathError:
        os.close(fd)
        raise
    return fd


def _require_regular(name: bytes, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise PathError(os.fsdecode(name), 'not a regular file')
