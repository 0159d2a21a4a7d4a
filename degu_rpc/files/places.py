"""Where in an inbox an offer goes: its directories, its symlinks, and names that give way.

1. `make()` makes the directories and the symlinks; `find_absent()` finds out which files are not
   at their places: there they have the offered size and modification time, or else the content.
2. `commit()` gives complete files their final names.
3. Nothing is ever replaced. A name that is taken by something else gives way to a free one, and
   that is written down before anything has it. So does a directory at the top, unless the one
   that is there is ours: which ones we made is written down, too.
4. `finish()` gives the directories their modes and times.

Threads and locks: any number, once everything was made. The lock is that of the inbox for its
Workspace, and guards `_placed`, `_made`, `_names` and `_is_closed`. It is held from the look at a
name to its change. Contents are made durable, and hashed to compare them, before it is taken: what
changes at a place after that is somebody else's, and what was to go there gives way. Only the
directories are synced under it, once a batch: the Workspace knows which.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from degu_rpc.errors import PathError
from degu_rpc.files.commit import Replacement, Symlink, Workspace
from degu_rpc.files.content import Signature, compare_steps, signature_of
from degu_rpc.files.limits import BATCH_FILES
from degu_rpc.files.listing import Entry, Kind
from degu_rpc.files.offers import Placing, Tree, find_place
from degu_rpc.files.paths import Path, Root, format_native, parse_target
from degu_rpc.files.plan import Here, agree
from degu_rpc.files.responses import RefusalError
from degu_rpc.files.system import DirectoryId, identify_directory
from degu_rpc.files.temporaries import Temporary
from degu_rpc.files.xattrs import parse_xattrs

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set

    Move = Callable[[Path, Kind, Set[bytes]], bytes]
    """Writes down a free last name, none of a set, for a path whose own is taken; returns it."""


class Ready(NamedTuple):
    """A file whose content is complete in a temporary file."""

    placing: Placing
    temporary: Temporary


class Places:
    """The places of one offer; see the module."""

    # Set once: tree, _root, _workspace, _lock, _move, _note_made. Guarded by self._lock: the rest.

    def __init__(
        self,
        root: Root,
        workspace: Workspace,
        lock: threading.Lock,
        tree: Tree,
        placed: Mapping[Path, bytes],
        move: Move,
        made: Mapping[Path, DirectoryId],
        note_made: Callable[[Path, DirectoryId], None],
    ) -> None:
        """Remember what goes where; nothing is done yet. `lock` is for the workspace.

        `placed` has the last names that are not as offered, and `move` finds a further one. `made`
        has each directory at the top that we made before, and `note_made` writes such a one down.
        """
        self.tree = tree
        self._root = root
        self._workspace = workspace
        self._lock = lock
        self._move = move
        self._placed = dict(placed)
        self._made = dict(made)
        self._note_made = note_made
        self._is_closed = False

    def close(self) -> None:
        """Change no names any more, whatever is still under way."""
        with self._lock:
            self._is_closed = True

    def _require_open(self) -> None:
        if self._is_closed:
            raise RefusalError(409, 'this transfer has to be offered again')

    # --- what is here ---------------------------------------------------------------------------

    def are_unchanged(self) -> bool:
        """Tell whether everything that was offered is in its place, as it came."""
        here = Here(self._root, ())
        try:
            for path in self.tree.directories:
                found = here.look(find_place(path, self._placed))
                if found is None or not stat.S_ISDIR(found.st_mode):
                    return False
            for path, entry in self.tree.placed_files():
                found = here.look(find_place(path, self._placed))
                if found is None or not self._is_as_it_came(found, entry):
                    return False
            return all(
                self._root.readlink(find_place(path, self._placed)) == parse_target(entry.target)
                for path, entry in self.tree.symlinks
            )
        except OSError:
            return False

    def _is_as_it_came(self, found: os.stat_result, entry: Entry) -> bool:
        """Tell whether a file is as offered, but for a time that the file system cannot hold."""
        if agree(found, entry):
            return True
        if found.st_size != entry.size:
            return False
        kept_ns = self._workspace.find_kept_time(entry.mtime_ns)
        return agree(found, msgspec.structs.replace(entry, mtime_ns=kept_ns))

    def find_absent(self) -> Iterator[Placing | None]:
        """Yield each file that is not at its place; None for one that is, and now and then.

        Raises OSError.
        """
        here = Here(self._root, ())
        for placing in self.tree.placed_files():
            path, entry = placing
            place = find_place(path, self._placed)
            found = here.look(place)
            is_here = found is not None and (
                agree(found, entry) or (yield from self._hash_equal(found, place, entry))
            )
            yield None if is_here else placing

    def _hash_equal(
        self, found: os.stat_result, place: Path, entry: Entry
    ) -> Generator[None, None, Signature | None]:
        """Hash what was found; return its signature if it has the content of a file. OSError."""
        if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
            return None
        fd = self._root.open_readable(place)
        if fd is None:
            return None
        try:
            return (yield from compare_steps(fd, entry.root))
        finally:
            os.close(fd)

    # --- directories and symlinks ---------------------------------------------------------------

    def make(self) -> Iterator[None]:
        """Make the directories and the symlinks, pausing now and then.

        Raises RefusalError once this is closed, OSError.
        """
        for path in self.tree.directories:
            with self._lock:
                self._require_open()
                self._make_directory(path)
            yield
        batch: list[Placing] = []
        for placing in self.tree.symlinks:
            batch.append(placing)
            if len(batch) >= BATCH_FILES:
                self._commit_symlinks(batch)
                batch = []
            yield
        self._commit_symlinks(batch)
        with self._lock:
            self._workspace.sync_directories()

    def _commit_symlinks(self, batch: list[Placing]) -> None:
        """Make symlinks; one whose name is taken at the last moment is looked at again."""
        with self._lock:
            self._require_open()
            while batch:
                absent = []
                replacements = []
                for placing in batch:
                    place = self._find_free_for_symlink(placing)
                    if place is not None:
                        absent.append(placing)
                        content = Symlink(parse_target(placing.entry.target))
                        mtime_ns = placing.entry.mtime_ns
                        replacements.append(
                            Replacement(content, place, 0, 0, mtime_ns, None, replaces=False)
                        )
                committed = self._workspace.commit(replacements)
                found = zip(absent, committed, strict=True)
                batch = [placing for placing, each in found if each.is_taken]

    # --- files ----------------------------------------------------------------------------------

    def commit(self, batch: Sequence[Ready]) -> Generator[None, None, set[str]]:
        """Give files their final names, pausing now and then; return the roots of those without.

        A name that was taken at the last moment is the only reason: asked again, it gives way. The
        temporary files are closed in any case. Raises RefusalError once this is closed, OSError.
        """
        unplaced = list(batch)
        try:
            replacements = [_build_replacement(*ready) for ready in batch]
            self._workspace.prepare(replacements)
            equal = yield from self._find_equal([ready.placing for ready in batch])
            with self._lock:
                self._require_open()
                places = [self._find_free(ready.placing, equal) for ready in batch]
                placed = [
                    replacement._replace(path=place)
                    for replacement, place in zip(replacements, places, strict=True)
                    if place is not None
                ]
                found = zip(batch, places, strict=True)
                unplaced = [ready for ready, place in found if place is None]
                committed = self._workspace.place(placed)
            while unplaced:
                self._workspace.temporaries.discard(unplaced.pop().temporary)
        finally:
            for ready in unplaced:
                os.close(ready.temporary.fd)
        return {
            replacement.content.identity.root
            for replacement, each in zip(placed, committed, strict=True)
            if each.is_taken
        }

    def _find_equal(
        self, placings: Iterable[Placing]
    ) -> Generator[None, None, dict[Path, Signature]]:
        """Return the signatures of files at their places that have the content, not the time."""
        with self._lock:
            places = [(placing, find_place(placing.path, self._placed)) for placing in placings]
        equal = {}
        for (path, entry), place in places:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found = self._root.lstat(place)
                if not agree(found, entry):
                    signature = yield from self._hash_equal(found, place, entry)
                    if signature is not None:
                        equal[path] = signature
        return equal

    # --- with the lock held ---------------------------------------------------------------------

    def _find_free(self, placing: Placing, equal: Mapping[Path, Signature]) -> Path | None:
        """Return a free place for a file; None if it is in its place already."""
        path, entry = placing
        found = self._look(path)
        if found is None:
            return find_place(path, self._placed)
        if agree(found, entry) or signature_of(found) == equal.get(path):
            return None
        return self._give_way(path, entry.kind)

    def _find_free_for_symlink(self, placing: Placing) -> Path | None:
        """Return a free place for a symlink; None if it is in its place already."""
        path, entry = placing
        found = self._look(path)
        place = find_place(path, self._placed)
        if found is None:
            return place
        if self._root.find_target(place) == parse_target(entry.target):
            return None
        return self._give_way(path, entry.kind)

    def _look(self, path: Path) -> os.stat_result | None:
        """Look at the place of `path`, None for nothing; directories that are gone are made."""
        if len(path) > 1:
            self._make_directory(path[:1])
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return self._root.lstat(find_place(path, self._placed))
        for depth in range(1, len(path)):
            self._make_directory(path[:depth])
        with contextlib.suppress(FileNotFoundError):
            return self._root.lstat(find_place(path, self._placed))
        return None

    def _make_directory(self, path: Path) -> None:
        """Make a directory; its parent is there.

        At the top one that we did not make is a person's, and ours gives way. Raises OSError.
        """
        if not self._try_directory(path):
            self._give_way(path, Kind.DIRECTORY)
            if not self._try_directory(path):
                place = format_native(find_place(path, self._placed))
                raise OSError(errno.EBUSY, 'somebody else makes the names that are free', place)

    def _try_directory(self, path: Path) -> bool:
        place = find_place(path, self._placed)
        if len(path) == 1 and not self._is_ours(path):
            return self._workspace.make_new_directory(place, functools.partial(self._note, path))
        try:
            self._workspace.make_directory(place)
        except NotADirectoryError:
            return False
        return True

    def _note(self, path: Path, directory: DirectoryId) -> None:
        self._made[path] = directory
        self._note_made(path, directory)

    def _is_ours(self, path: Path) -> bool:
        """Tell whether a directory at the top is the one that we made."""
        *above, last = find_place(path, self._placed)
        with self._root.directory(tuple(above)) as parent:
            found = identify_directory(parent, last)
        return found is not None and self._made.get(path) == found

    def _give_way(self, path: Path, kind: Kind) -> Path:
        """Give something whose name is taken another one, and return its place."""
        taken = self._names.setdefault(path[:-1], set())
        name = self._move(path, kind, taken)
        taken.add(name)
        self._placed[path] = name
        return find_place(path, self._placed)

    @functools.cached_property
    def _names(self) -> dict[Path, set[bytes]]:
        """The names that this offer has in each directory, offered or here."""
        names: dict[Path, set[bytes]] = {}
        for path in self.tree.paths():
            names.setdefault(path[:-1], set()).add(path[-1])
        for path, name in self._placed.items():
            names.setdefault(path[:-1], set()).add(name)
        return names

    # --- the end --------------------------------------------------------------------------------

    def finish(self) -> list[Path]:
        """Give the directories their modes and times; return the places at the top.

        Raises RefusalError once this is closed, OSError.
        """
        with self._lock:
            self._require_open()
            for path, entry in reversed(self.tree.directories.items()):
                place = find_place(path, self._placed)
                # Without these two we could not find out later what is in it.
                mode = entry.mode | stat.S_IRUSR | stat.S_IXUSR
                # A person may have moved it away meanwhile, and put something else there.
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, PathError):
                    if self._is_ours(path[:1]):
                        self._workspace.set_directory_metadata(place, mode, entry.mtime_ns)
            self._workspace.sync_directories()
            return [find_place(path, self._placed) for path in self.tree.tops]


def _build_replacement(placing: Placing, temporary: Temporary) -> Replacement:
    path, entry = placing
    xattrs = parse_xattrs(entry.xattrs)
    return Replacement(
        temporary, path, entry.size, entry.mode, entry.mtime_ns, None, xattrs, replaces=False
    )
