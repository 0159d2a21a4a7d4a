"""Content on its way, in the directory `tmp` of a root's private one, named by its root.

1. What was begun is found again by the next run, and by the content alone. One that another
   transfer is using is passed over for the next name: `root`, `root.1`, ...
2. Beside a file may be a note that says what of it is durable (partial.py).
3. What is of no use to a later run has a name that says so: it is staged (commit.py).

Locks: a temporary file is flocked while it is open, so two transfers never write to the same one,
and a killed process leaves no lock behind. May be used by many threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import secrets
import time
from typing import TYPE_CHECKING, NamedTuple

from degu_rpc.files.conflicts import Identity, identify_file
from degu_rpc.files.limits import MAX_MANIFEST
from degu_rpc.files.system import is_directory, list_names

if TYPE_CHECKING:
    from collections.abc import Callable, Container

NOTE_SUFFIX = b'.note'
_STAGED_PREFIX = b'staged.'


class Temporary(NamedTuple):
    """An open, locked file in tmp/, its name there, and whether a note beside it may be left."""

    fd: int
    name: bytes
    has_note: bool = False

    @property
    def identity(self) -> Identity:
        """Which content it has once it is complete."""
        return identify_content(self.name)


class Temporaries:
    """The temporary files of a root; `directory` is open and belongs to whoever made this."""

    def __init__(self, directory: int) -> None:
        """Use an open directory."""
        self.directory = directory

    def open(self, root: str) -> Temporary:
        """Open the temporary file for the content `root`, with what an earlier run left in it.

        One that another transfer is using is passed over for the next: `root`, `root.1`, ...
        Raises OSError.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        for number in itertools.count():
            name = os.fsencode(f'{root}.{number}' if number else root)
            try:
                fd = os.open(name, flags, 0o600, dir_fd=self.directory)
            except PermissionError:
                # A commit that was killed had set the mode that the file shall have.
                os.chmod(name, 0o600, dir_fd=self.directory)
                fd = os.open(name, flags, 0o600, dir_fd=self.directory)
            if self._lock(fd, name):
                return Temporary(fd, name)
            os.close(fd)
        raise AssertionError('count() does not end')

    def _lock(self, fd: int, name: bytes) -> bool:
        """Lock an open temporary file; False if another has it, or had it and moved it away.

        One with two names reached its final name: what is written to it would be written there.
        """
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.stat(name, dir_fd=self.directory, follow_symlinks=False)
        except (BlockingIOError, FileNotFoundError):
            return False
        return os.path.samestat(there, os.fstat(fd)) and there.st_nlink == 1

    def discard(self, temporary: Temporary) -> None:
        """Remove and close a temporary file whose content is not needed. Raises OSError."""
        try:
            self.remove_note(temporary)
            os.unlink(temporary.name, dir_fd=self.directory)
        finally:
            os.close(temporary.fd)

    def discard_useless(self, is_unplaced: Callable[[bytes], bool]) -> None:
        """Remove what no later run can use: what was staged, and notes on no file.

        So are contents, by name, of which `is_unplaced` says that they have a final name. What it
        raises is passed on. Raises OSError.
        """
        contents, notes = set(), set()
        for name in list_names(self.directory):
            # Another process may have committed it since it was listed, or removed its note.
            with contextlib.suppress(FileNotFoundError):
                if NOTE_SUFFIX in name:
                    notes.add(name)
                elif name.startswith(_STAGED_PREFIX) and is_directory(self.directory, name):
                    os.rmdir(name, dir_fd=self.directory)
                elif name.startswith(_STAGED_PREFIX) or not is_unplaced(name):
                    os.unlink(name, dir_fd=self.directory)
                else:
                    contents.add(name)
        for name in notes:
            if name.partition(NOTE_SUFFIX)[0] not in contents:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self.directory)

    def discard_rested(self, age_s: float) -> None:
        """Remove the temporary files that nobody has open and that rested for `age_s` seconds.

        Raises OSError.
        """
        before = time.time() - age_s
        for name in list_names(self.directory):
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=self.directory, follow_symlinks=False)
                # ctime: what arrives may have any mtime.
                if found.st_ctime < before:
                    self._unlink_unused(name)

    def discard_tagged(self, tag: str) -> None:
        """Remove the files that nobody has open whose root is followed by `.{tag}`. OSError."""
        for name in list_names(self.directory):
            _, *parts = name.split(b'.')
            if parts[:1] == [os.fsencode(tag)] and NOTE_SUFFIX not in name:
                with contextlib.suppress(FileNotFoundError):
                    # Should another transfer begin one of this name now, it copes without a note.
                    if self._unlink_unused(name):
                        os.unlink(name + NOTE_SUFFIX, dir_fd=self.directory)

    def _unlink_unused(self, name: bytes) -> bool:
        """Remove a temporary file unless a transfer has it open; return whether it is gone."""
        fd = None
        try:
            # One that cannot be read is of a killed commit, which had set its mode.
            with contextlib.suppress(PermissionError):
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(name, flags, dir_fd=self.directory)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=self.directory)
        except BlockingIOError:
            return False
        else:
            return True
        finally:
            if fd is not None:
                os.close(fd)

    def size(self, names: Container[bytes] | None = None) -> int:
        """Return how many bytes of disk the temporary files of these names take, or all."""
        size = 0
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if names is not None and os.fsencode(entry.name) not in names:
                    continue
                with contextlib.suppress(FileNotFoundError):  # another transfer has committed it
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
        return size

    def read_note(self, temporary: Temporary) -> bytes:
        """Return the note on a temporary file; nothing if there is none. Raises OSError."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(temporary.name + NOTE_SUFFIX, flags, dir_fd=self.directory)
        except FileNotFoundError:
            return b''
        with os.fdopen(fd, 'rb') as file:
            return file.read(MAX_MANIFEST)

    def write_note(self, temporary: Temporary, data: bytes) -> None:
        """Write the note on a temporary file, whole or not at all. Raises OSError."""
        name = temporary.name + NOTE_SUFFIX
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(name + b'.new', flags, 0o600, dir_fd=self.directory), 'wb') as file:
            file.write(data)
        os.rename(name + b'.new', name, src_dir_fd=self.directory, dst_dir_fd=self.directory)

    def remove_note(self, temporary: Temporary) -> None:
        """Remove the note on a temporary file, if there is one. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary.name + NOTE_SUFFIX, dir_fd=self.directory)


def new_staged_name() -> bytes:
    """Return a name in tmp/ that nothing has, for what is of no use to a later run."""
    return _STAGED_PREFIX + secrets.token_hex(8).encode()


def identify_content(name: bytes) -> Identity:
    """Return which content a temporary file of this name has once it is complete."""
    return identify_file(name.partition(b'.')[0].decode('ascii', 'replace'))
