"""How a final name changes: the one place that touches a person's files.

A Workspace is our private directory in a root, `.degu`:

    tmp/     content that is on its way, named by its root (so that a later run finds it); 0600;
             and a note beside it on what of it is durable (partial.py)
    trash/   what was displaced, as {when}-{random}/{path}: only age empties it (trash.py)
    lock     held while final names change; its times are that of the last `recover()`, and of the
             first one since which the clock was steady

and others can have directories there: reserved/ is of space.py.

Commit, for a batch of complete and verified temporary files:

1. Set attributes, mode and times through the descriptors, start writing all of them to the disk,
   then fsync each: before a name changes its content is durable (I1).
2. Under the lock, for a name that is free: `renameat2(RENAME_NOREPLACE)`.
3. For a name that is taken: link to the place in the trash that what is displaced shall have, and
   `renameat2(RENAME_EXCHANGE)`. So the name is never absent (I2), and what was displaced is in the
   trash at once, under its path (I3), together with all that is written to it later by whoever has
   it open.
4. Look at what was displaced. What the caller had not seen and is not the new content becomes a
   conflict copy beside the file (I4; see conflicts.py), unless there is such a copy.
5. One fsync for each directory that changed.

A Workspace that is not durable leaves out every fsync, and nothing else.

A kill at any moment leaves the final name with its old or its new content, and what has not reached
its final name in tmp/. One right after the exchange may leave in the trash what would have become a
conflict copy. `recover()` puts the rest in order.

Where a file system has no renameat2 flags: `link` for a free name; for a taken one a hard link in
the trash, then `rename`. Content written to the name between these two calls is lost; nothing
portable is better. Where there are no hard links, content is moved to the trash before the
exchange, and one that is killed in between is fetched again.

A Workspace belongs to one thread, except its `temporaries` (temporaries.py), `commit()` and its two
halves, `open_own()` and `find_kept_time()`. A lock lets one thread at a time change final names;
the file `lock`, one process.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import os
import socket
import stat
import threading
from typing import TYPE_CHECKING, NamedTuple

from degu_rpc.errors import BlockedError
from degu_rpc.files.conflicts import (
    Identity,
    clean_machine,
    identify,
    identify_symlink,
    keep_beside,
)
from degu_rpc.files.content import Signature, signature_of
from degu_rpc.files.limits import EXCHANGE_ATTEMPTS, TEMPORARY_AGE_S
from degu_rpc.files.paths import (
    PRIVATE_NAME,
    Path,
    Root,
    format_native,
    open_or_make,
    require_private,
)
from degu_rpc.files.system import (
    DirectoryId,
    can_exchange,
    exchange,
    identify_directory,
    is_directory,
    link_or_rename,
    look,
    rename_to_free,
    start_writing,
)
from degu_rpc.files.temporaries import Temporaries, Temporary, identify_content, new_staged_name
from degu_rpc.files.trash import Trash, find_limit
from degu_rpc.files.xattrs import read_xattrs, write_xattrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


class Committed(NamedTuple):
    """What a commit found at the final name.

    `replaced` says whether anything was there: it is in the trash now, or, where that is not what
    the caller had seen nor the new content, at `conflict`, a path beside it. `is_taken` says that
    something was there that was not to be replaced: then the new content is still in tmp/.
    """

    replaced: bool
    conflict: Path | None = None
    is_taken: bool = False


class Symlink(NamedTuple):
    """A symlink that is to be made."""

    target: bytes

    @property
    def identity(self) -> Identity:
        """Which content it has."""
        return identify_symlink(self.target)


class Replacement(NamedTuple):
    """Complete, verified content and the name it shall have.

    `size` is bytes; `mode` is for files; `expected` is what the caller saw at `path`, or None.
    `xattrs` is the extended attributes of a file (see xattrs.py), or None where they are not known.
    Unless it `replaces`, what is at `path` stays.
    """

    content: Temporary | Symlink
    path: Path
    size: int
    mode: int
    mtime_ns: int
    expected: Signature | None
    xattrs: Mapping[bytes, bytes] | None = None
    replaces: bool = True


class Workspace:
    """Our private directory in a root, and the commits that go through it. See the module."""

    # Guarded by _committing: _trash, _can_exchange, and while several threads commit _unsynced.
    # Set once: the rest.

    def __init__(self, root: Root, machine: str | None = None, *, durable: bool = True) -> None:
        """Open or make the directories.

        `machine` is what this one is called in the names of conflict copies, None for the name of
        the host. With `durable` false nothing is synced to the disk: a power cut may cost what was
        committed since, but names change in the same steps. Raises BlockedError where others could
        write, OSError.
        """
        self._root = root
        self.is_durable = durable
        self._machine = clean_machine(socket.gethostname() if machine is None else machine)
        with contextlib.ExitStack() as stack:
            self._private = _closing(stack, root.open_private(durable=durable))
            require_private(self._private, PRIVATE_NAME)
            self.temporaries = Temporaries(_closing(stack, self.open_own(b'tmp')))
            self._trash = Trash(_closing(stack, self.open_own(b'trash')), durable=durable)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._lock = _closing(stack, os.open(b'lock', flags, 0o600, dir_fd=self._private))
            self._stack = stack.pop_all()
        self._unsynced: set[Path] = set()
        self._committing = threading.Lock()

    def close(self) -> None:
        """Close the directories."""
        self._stack.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open_own(self, name: bytes) -> int:
        """Open or make one of our directories and return its descriptor, which the caller closes.

        Raises BlockedError where others could write, OSError.
        """
        fd = open_or_make(os.dup(self._private), (name,), durable=self.is_durable)
        try:
            require_private(fd, PRIVATE_NAME, name)
        except BlockedError:
            os.close(fd)
            raise
        return fd

    # --- the tree -------------------------------------------------------------------------------

    def make_directory(self, path: Path) -> bool:
        """Make a directory, mode 0700, unless it is there; return whether it was made.

        One that is there and in which we may not write becomes writable for us. Raises
        NotADirectoryError when something else is at `path`, OSError.
        """
        made = self._root.make_directory(path)
        if made:
            self._unsynced.add(path[:-1])
        else:
            with self._root.directory(path) as fd:
                mode = stat.S_IMODE(os.fstat(fd).st_mode)
                if mode & stat.S_IRWXU != stat.S_IRWXU:
                    os.fchmod(fd, mode | stat.S_IRWXU)
        return made

    def make_new_directory(self, path: Path, note: Callable[[DirectoryId], None]) -> bool:
        """Make a directory, mode 0700, unless its name is taken; return whether it was made.

        `note` is called before it has its name, with what it is: so a kill leaves none that nobody
        knows of. Where names cannot be exchanged it is called right after that. What it raises is
        passed on. Raises OSError.
        """
        last, tmp = path[-1], self.temporaries.directory
        with self._locked(), self._root.directory(path[:-1]) as parent:
            is_staged = self._can_exchange
            where, name = (tmp, new_staged_name()) if is_staged else (parent, last)
            try:
                os.mkdir(name, 0o700, dir_fd=where)
            except FileExistsError:
                return False
            is_made = False
            try:
                directory = identify_directory(where, name)
                if directory is None:
                    raise _comes_and_goes(path)
                note(directory)
                is_made = not is_staged or rename_to_free(tmp, name, parent, last)
            finally:
                if not is_made:
                    os.rmdir(name, dir_fd=where)
            self._unsynced.add(path[:-1])
            return is_made

    def set_file_metadata(self, path: Path, seen: Signature, mode: int, mtime_ns: int) -> None:
        """Set mode and modification time of the file at `path` if it is still as it was seen.

        One that somebody has changed since keeps its time, by which the next run knows. Raises
        PathError for something else, OSError.
        """
        fd = self._root.open_file(path)
        try:
            if signature_of(os.fstat(fd)) == seen:
                set_metadata(fd, mode, mtime_ns, None)
        finally:
            os.close(fd)

    def set_directory_metadata(self, path: Path, mode: int, mtime_ns: int) -> None:
        """Set mode and modification time of the directory at `path`; of nothing else. OSError."""
        with self._root.directory(path) as fd:
            set_metadata(fd, mode, mtime_ns, None)

    def find_kept_time(self, mtime_ns: int) -> int:
        """Return what the file system makes of a modification time, by trying it. OSError."""
        name = new_staged_name()
        tmp = self.temporaries.directory
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=tmp)
        try:
            os.unlink(name, dir_fd=tmp)
            os.utime(fd, ns=(mtime_ns, mtime_ns))
            return os.fstat(fd).st_mtime_ns
        finally:
            os.close(fd)

    def commit(self, batch: Sequence[Replacement]) -> list[Committed]:
        """Give every replacement its final name; close the temporary files in any case.

        Returns what was found, for each. Raises BlockedError where a directory is at a final name,
        OSError; then the ones before it are committed and the others still in tmp/.
        """
        try:
            self.prepare(batch)
        except BaseException:
            for replacement in batch:
                close(replacement)
            raise
        return self.place(batch)

    def prepare(self, batch: Sequence[Replacement]) -> None:
        """Do the first half of `commit()`: set modes and times, and make all contents durable.

        The temporary files stay open. Raises OSError.
        """
        descriptors = []
        for replacement in batch:
            if isinstance(replacement.content, Temporary):
                fd = replacement.content.fd
                set_metadata(fd, replacement.mode, replacement.mtime_ns, replacement.xattrs)
                descriptors.append(fd)
        if self.is_durable:
            # The disk works on all of them at once, and fsync finds most of its work done.
            for fd in descriptors:
                start_writing(fd)
            for fd in descriptors:
                os.fsync(fd)

    def place(self, batch: Sequence[Replacement]) -> list[Committed]:
        """Do the second half of `commit()`, after `prepare()`."""
        try:
            with self._locked():
                committed: list[Committed] = []
                for above, group in itertools.groupby(batch, lambda each: each.path[:-1]):
                    self._unsynced.add(above)
                    with self._root.directory(above) as parent:
                        committed += [self._place(each, parent) for each in group]
                self.sync_directories()
            for replacement in batch:
                content = replacement.content
                if isinstance(content, Temporary) and content.has_note:
                    self.temporaries.remove_note(content)
        finally:
            for replacement in batch:
                close(replacement)
        return committed

    def sync_directories(self) -> None:
        """Make every name durable that was changed since the last time.

        A directory that somebody has moved away meanwhile is theirs to sync. Raises OSError; then
        the next call tries again.
        """
        while self._unsynced:
            path = next(iter(self._unsynced))
            if self.is_durable:
                with (
                    contextlib.suppress(FileNotFoundError, NotADirectoryError),
                    self._root.directory(path) as fd,
                ):
                    os.fsync(fd)
            # Only now: after an error whoever tries again must not say done without it.
            self._unsynced.discard(path)

    def _sync(self, fd: int) -> None:
        if self.is_durable:
            os.fsync(fd)

    def recover(self) -> None:
        """Undo what killed commits left half-done, and remove from tmp/ what no later run can use.

        That is what was staged, content that has reached its final name, notes on no file, and what
        rested too long. What was displaced needs nothing: it is in the trash, and is removed from
        there once it is older than TRASH_AGE_S. Raises OSError.
        """
        with self._locked():
            self.temporaries.discard_useless(self._is_unplaced)
            self.temporaries.discard_rested(TEMPORARY_AGE_S)
            self._trash.discard_old(find_limit(self._lock))

    def _is_unplaced(self, name: bytes) -> bool:
        """Tell whether a content in tmp/ has not reached its final name, and see that it has one.

        One with two was about to be exchanged, and the other name is in the trash; or it was. A
        content that is not what its name says by now was changed by somebody, and stays there.
        """
        tmp = self.temporaries.directory
        found = os.stat(name, dir_fd=tmp, follow_symlinks=False)
        if found.st_nlink == 1:
            return True
        in_trash = self._trash.find(found.st_ino)
        if not in_trash or identify(tmp, name) != identify_content(name):
            return False
        self._trash.remove(in_trash)
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._committing:  # flock keeps out other processes only
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    # --- the change of one name, under the lock -------------------------------------------------

    def _place(self, replacement: Replacement, parent: int) -> Committed:
        path = replacement.path
        name = self._stage(replacement)
        if rename_to_free(self.temporaries.directory, name, parent, path[-1]):
            return Committed(replaced=False)
        if not replacement.replaces:
            if isinstance(replacement.content, Symlink):
                os.unlink(name, dir_fd=self.temporaries.directory)
            return Committed(replaced=False, is_taken=True)
        if is_directory(parent, path[-1]):
            raise BlockedError(format_native(path), 'a directory is there')
        with self._trash.slot(path) as slot:
            replace = self._replace if self._can_exchange else self._replace_by_link
            if not replace(name, path, parent, slot):
                return Committed(replaced=False)
            return Committed(replaced=True, conflict=self._keep(replacement, parent, slot))

    def _stage(self, replacement: Replacement) -> bytes:
        """Return the name in tmp/ of what is to be committed; a symlink is made there now."""
        content = replacement.content
        if isinstance(content, Temporary):
            return content.name
        name = new_staged_name()
        times = (replacement.mtime_ns, replacement.mtime_ns)
        os.symlink(content.target, name, dir_fd=self.temporaries.directory)
        os.utime(name, ns=times, dir_fd=self.temporaries.directory, follow_symlinks=False)
        return name

    @functools.cached_property
    def _can_exchange(self) -> bool:
        return can_exchange(self.temporaries.directory, new_staged_name())

    def _replace(self, name: bytes, path: Path, parent: int, slot: int) -> bool:
        """Exchange what is in tmp/ and at the final name, the latter for a place in the trash.

        Returns whether anything was there. Raises BlockedError, OSError; then nothing has changed.
        """
        last, tmp = path[-1], self.temporaries.directory
        is_linked = link_or_rename(tmp, name, slot, last)
        try:
            is_replaced = self._exchange(path, parent, slot)
        except (BlockedError, OSError):
            if is_linked:
                os.unlink(last, dir_fd=slot)
            else:
                # Should another transfer have begun one of this name, it stays in the trash.
                rename_to_free(slot, last, tmp, name)
            raise
        if is_replaced:
            self._sync(slot)
        if is_linked:
            os.unlink(name, dir_fd=tmp)
        return is_replaced

    def _exchange(self, path: Path, parent: int, slot: int) -> bool:
        last = path[-1]
        for _ in range(EXCHANGE_ATTEMPTS):
            try:
                exchange(slot, last, parent, last)
            except FileNotFoundError:
                if rename_to_free(slot, last, parent, last):
                    return False
            else:
                return True
        raise _comes_and_goes(path)

    def _replace_by_link(self, name: bytes, path: Path, parent: int, slot: int) -> bool:
        """Do what `_replace()` does where names cannot be exchanged."""
        last = path[-1]
        for _ in range(EXCHANGE_ATTEMPTS):
            try:
                os.link(last, last, src_dir_fd=parent, dst_dir_fd=slot, follow_symlinks=False)
            except FileNotFoundError:
                if rename_to_free(self.temporaries.directory, name, parent, last):
                    return False
            else:
                self._sync(slot)
                os.rename(name, last, src_dir_fd=self.temporaries.directory, dst_dir_fd=parent)
                return True
        raise _comes_and_goes(path)

    def _keep(self, replacement: Replacement, parent: int, slot: int) -> Path | None:
        """Make what was displaced into the trash a conflict copy if it must be one.

        Returns the path of the copy with that content.
        """
        *above, last = replacement.path
        expected = replacement.expected
        if expected is not None and look(slot, last).same_file(expected):
            return None
        displaced = identify(slot, last)
        if displaced == replacement.content.identity:
            return None
        return (*above, keep_beside(slot, last, parent, last, self._machine, displaced))


def close(replacement: Replacement) -> None:
    """Close the temporary file of a replacement and leave it where it is, for a later run."""
    if isinstance(replacement.content, Temporary):
        os.close(replacement.content.fd)


def _closing(stack: contextlib.ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _comes_and_goes(path: Path) -> BlockedError:
    return BlockedError(format_native(path), 'it appears and vanishes all the time')


def set_metadata(fd: int, mode: int, mtime_ns: int, xattrs: Mapping[bytes, bytes] | None) -> None:
    """Give an open file this mode and time, and unless it is None these attributes. OSError."""
    if xattrs is not None and read_xattrs(fd) not in (None, xattrs):
        # Who may not write to a file may not set its attributes, though it is theirs.
        os.fchmod(fd, mode & 0o777 | stat.S_IRUSR | stat.S_IWUSR)
        write_xattrs(fd, xattrs)
    # Only the permissions: a peer does not get to make a program setuid.
    os.fchmod(fd, mode & 0o777)
    os.utime(fd, ns=(mtime_ns, mtime_ns))
