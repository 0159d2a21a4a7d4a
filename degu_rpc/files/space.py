"""Room on the disk: what a transfer still has to write is reserved before it writes.

1. A Reservation is a file in `.degu/reserved/`, flocked while it is open, that says how many bytes
   its transfer has still to write, and how many it has written since it began.
2. What it may grow by is what is free, less KEEP_FREE (or a hundredth of a smaller disk), less
   what the others have still to write: those of this directory, whatever process they are in, and
   those of this process into other directories of the same file system (by its device number).
   What earlier runs left in tmp/ counts as available: of the contents that are to come or, where
   those are not known yet, all that no transfer that runs now has written.
3. As bytes are written it shrinks. The file says so every RESERVATION_STEP bytes; until then others
   think that a little more is needed, never less.
4. A process that dies leaves no lock behind; the next removes its file. Before that it syncs the
   file system: what has its name, and is not on the disk yet, will be taken to be here.

This keeps transfers from failing halfway because of each other. It is no quota: who does not ask
may fill the disk, and then a write fails. So may two processes with two directories of one file
system, which do not know of each other.

A Reservation may be used by many threads. `reserved/lock` is held while numbers are read or
written, and `_growing` while one of this process grows, begins or ends: after the
Reservation's own lock, before `reserved/lock`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import struct
import threading
from typing import TYPE_CHECKING, NamedTuple

from degu_rpc.errors import NoSpaceError
from degu_rpc.files.limits import KEEP_FREE, KEEP_FREE_FRACTION, RESERVATION_STEP
from degu_rpc.files.system import list_names, sync_file_system

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from degu_rpc.files.commit import Workspace
    from degu_rpc.files.paths import Root

_LOCK = b'lock'
_NUMBERS = struct.Struct('<QQ')
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_growing = threading.Lock()
_open: set[Reservation] = set()
"""All that are open in this process; guarded by _growing."""


class _Amount(NamedTuple):
    """Bytes that are still to be written, and that were written."""

    left: int
    written: int


class Reservation:
    """What one transfer still has to write. Close it, or use it with `with`. See the module."""

    # Set once: _name, _root_name, _is_durable, _directory, _place (its device and inode), _fd,
    # _others, _found (bytes that were in tmp/ at the beginning and belong to no other transfer).
    # Guarded by self._lock: the rest; but others look at _amount without it, and may see an older
    # one, of which no less is left.

    def __init__(
        self, root: Root, workspace: Workspace, names: Container[bytes] | None = None
    ) -> None:
        """Begin with nothing reserved. Raises BlockedError (see Workspace), OSError.

        `names` are those in tmp/ of the contents that are to come, None where they are not known.
        """
        self._root_name = root.name
        self._is_durable = workspace.is_durable
        self._name = secrets.token_hex(8).encode()
        self._lock = threading.Lock()
        self._amount = self._recorded = _Amount(0, 0)
        with contextlib.ExitStack() as stack:
            self._directory = workspace.open_own(b'reserved')
            stack.callback(os.close, self._directory)
            directory = os.fstat(self._directory)
            self._place = directory.st_dev, directory.st_ino
            self._others = os.open(_LOCK, _FLAGS, 0o600, dir_fd=self._directory)
            stack.callback(os.close, self._others)
            with self._locked():
                self._fd = os.open(self._name, _FLAGS | os.O_EXCL, 0o600, dir_fd=self._directory)
                stack.callback(os.close, self._fd)
                fcntl.flock(self._fd, fcntl.LOCK_EX)
                theirs = sum(other.written for other in self._read_others())
                found = workspace.temporaries.size(names)
                self._found = max(found - theirs, 0) if names is None else found
            self._stack = stack.pop_all()
        with _growing:
            _open.add(self)

    def close(self) -> None:
        """Give back what is reserved."""
        with _growing:
            _open.discard(self)
        with self._stack, self._locked(), contextlib.suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._directory)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def grow(self, size: int) -> None:
        """Reserve `size` bytes more. Raises NoSpaceError, and then nothing has changed; OSError."""
        if size == 0:
            return
        with self._lock, _growing, self._locked():
            disk = os.fstatvfs(self._directory)
            keep = min(KEEP_FREE, disk.f_blocks * disk.f_frsize // KEEP_FREE_FRACTION)
            here = sum(other.left for other in self._read_others()) + self._amount.left
            taken = here + self._sum_elsewhere()
            found = max(self._found - self._amount.written, 0)
            available = max(disk.f_bavail * disk.f_frsize - keep - taken + found, 0)
            if size > available:
                raise NoSpaceError(self._root_name, size, available)
            self._amount = self._amount._replace(left=self._amount.left + size)
            self._record()

    def shrink(self, size: int) -> None:
        """Take away `size` bytes that were written, or are here. Raises OSError."""
        with self._lock:
            left, written = self._amount
            self._amount = _Amount(max(left - size, 0), written + size)
            if self._amount.written - self._recorded.written >= RESERVATION_STEP:
                with self._locked():
                    self._record()

    def _sum_elsewhere(self) -> int:
        """Return what this process has reserved in other directories of the file system."""
        return sum(
            other._amount.left
            for other in _open
            if other._place != self._place and other._place[0] == self._place[0]
        )

    def _record(self) -> None:
        os.pwrite(self._fd, _NUMBERS.pack(*self._amount), 0)
        self._recorded = self._amount

    def _read_others(self) -> Iterator[_Amount]:
        """Yield what the other transfers have reserved; remove the files of dead ones."""
        for name in list_names(self._directory):
            if name in {_LOCK, self._name}:
                continue
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                yield _parse(os.pread(fd, _NUMBERS.size, 0))
            else:
                if self._is_durable:
                    sync_file_system(fd)
                os.unlink(name, dir_fd=self._directory)
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._others, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._others, fcntl.LOCK_UN)


def _parse(numbers: bytes) -> _Amount:
    """Return what a file says; one that nothing was written to yet has reserved nothing."""
    return _Amount(*_NUMBERS.unpack(numbers)) if len(numbers) == _NUMBERS.size else _Amount(0, 0)
