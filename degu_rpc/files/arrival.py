"""An offer that was accepted, while its contents come in.

1. `prepare()` makes the directories and the symlinks, and finds out what is here already: a file
   at its place with the offered size and modification time, or else with the offered content.
2. A content that is missing comes in, small ones whole, large ones block by block (partial.py).
   Once it is complete and verified, every file that has it gets its final name: the first one the
   content that came, the others copies of it. Copies are made while it is still in tmp/, where
   nobody edits it.
3. Nothing is ever replaced. A name that is taken by something else gives way to a free one, and
   that is written down before anything has it. So does a directory at the top, unless the one
   that is there is ours: which ones we made is written down, too.
4. Once nothing is missing the directories get their modes and times.

Threads: any number may bring contents. `_lock` guards what is missing and what is open, and is
never held during I/O. The lock that the Inbox gives is for its Workspace, and held while names
change; `_lock` is not held then. Everybody else who brings something waits while a file whose time
differs is hashed at its place, or a batch is made durable.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import os
import stat
import threading
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from degu_rpc.errors import ContentChangedError, IntegrityError, PathError
from degu_rpc.files.blocks import Buffer, Manifest, build_manifest
from degu_rpc.files.commit import Replacement, Symlink, Workspace, close
from degu_rpc.files.content import hash_file
from degu_rpc.files.limits import BATCH_FILES, BATCH_SIZE, MAX_OPEN_CONTENTS, MAX_PIECE
from degu_rpc.files.listing import Entry, Kind
from degu_rpc.files.offers import Item, Placing, Tree, find_place
from degu_rpc.files.partial import Partial, store_small, write_at
from degu_rpc.files.paths import Path, Root, format_path, parse_target
from degu_rpc.files.plan import Here, agree
from degu_rpc.files.responses import RefusalError
from degu_rpc.files.space import Reservation
from degu_rpc.files.system import DirectoryId, identify_directory
from degu_rpc.files.temporaries import Temporary
from degu_rpc.files.xattrs import parse_xattrs

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set

    Move = Callable[[Path, Kind, Set[bytes]], bytes]
    """Writes down a free last name, none of a set, for a path whose own is taken; returns it."""

_NO_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


class _Ready(NamedTuple):
    """A file whose content is complete in a temporary file."""

    placing: Placing
    temporary: Temporary


class _Open:
    """A large content that is coming in, and how many threads bring parts of it."""

    def __init__(self, partial: Partial) -> None:
        self.partial = partial
        self.users = 0


class Arrival:
    """See the module. Close it once no thread uses it any more, or begins to."""

    # Set once: tree, _root, _workspace, _committing, _move, _note_made, _tag.
    # Guarded by self._lock: _missing (the roots of what is not here), _open, _claimed, _is_ending,
    # _is_closed, _received. Guarded by self._committing: _placed, _made, _names. By
    # self._preparing, which is held while prepare() runs: _is_prepared. By self._reserving:
    # _reservation. The Intake's: used_at.

    def __init__(
        self,
        root: Root,
        workspace: Workspace,
        committing: threading.Lock,
        tree: Tree,
        placed: Mapping[Path, bytes],
        move: Move,
        made: Mapping[Path, DirectoryId],
        note_made: Callable[[Path, DirectoryId], None],
        tag: str,
    ) -> None:
        """Remember what is to come and where it goes; nothing is done yet.

        `made` has each directory at the top that we made before, and `note_made` writes such a
        one down. `tag` stands for the user who sends: what came from
        others does not count as sent.
        """
        self.tree = tree
        self._tag = tag
        self._root = root
        self._workspace = workspace
        self._committing = committing
        self._move = move
        self._placed = dict(placed)
        self._made = dict(made)
        self._note_made = note_made
        self._lock = threading.Lock()
        self._missing: dict[str, list[Placing]] = {}
        self._open: collections.OrderedDict[str, _Open] = collections.OrderedDict()
        self._claimed: set[str] = set()
        self._is_ending = False
        self._is_closed = False
        self._received = 0
        self._preparing = threading.Lock()
        self._is_prepared = False
        self._reserving = threading.Lock()
        self._reservation: Reservation | None = None
        self.used_at = monotonic()

    def close(self) -> None:
        """Close what is open and used by no thread; what is used is closed by its last thread.

        Once this returns nothing more gets a name, whatever requests are still under way.
        """
        with self._committing, self._lock:
            self._is_closed = True
            rested = [root for root, entry in self._open.items() if not entry.users]
            partials = [self._open.pop(root).partial for root in rested]
        for partial in partials:
            partial.close()
        with self._reserving:
            if self._reservation is not None:
                self._reservation.close()
                self._reservation = None

    def _require_open(self) -> None:
        """Refuse to change a name once this is closed. Under the lock of the workspace."""
        with self._lock:
            if self._is_closed:
                raise RefusalError(409, 'this transfer has to be offered again')

    @property
    def is_prepared(self) -> bool:
        """Whether contents can come."""
        return self._is_prepared

    @property
    def bytes_received(self) -> int:
        """How many bytes of what was offered are here."""
        with self._lock:
            partials = [entry.partial for entry in self._open.values()]
            received = self._received
        return received + sum(_bytes_here(partial) for partial in partials)

    def wanted(self) -> list[str]:
        """Return the roots of the contents that are not here, in the order of the offer."""
        with self._lock:
            return list(self._missing)

    def size_of(self, root: str) -> int | None:
        """Return the size of a content that is offered; None for another."""
        placings = self.tree.contents.get(root)
        return None if placings is None else placings[0].entry.size

    def is_missing(self, root: str) -> bool:
        """Tell whether a content is offered and not here."""
        with self._lock:
            return root in self._missing

    # --- what is here ---------------------------------------------------------------------------

    def is_unchanged(self) -> bool:
        """Tell whether everything that was offered is in its place, as it came."""
        here = Here(self._root, ())
        try:
            for path in self.tree.directories:
                found = here.look(find_place(path, self._placed))
                if found is None or not stat.S_ISDIR(found.st_mode):
                    return False
            for placings in self.tree.contents.values():
                for path, entry in placings:
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
        if agree(found, entry) or found.st_size != entry.size:
            return agree(found, entry)
        kept_ns = self._workspace.find_kept_time(entry.mtime_ns)
        return agree(found, msgspec.structs.replace(entry, mtime_ns=kept_ns))

    def prepare(self) -> Iterator[None]:
        """Make what needs no content and find out what is missing, pausing now and then.

        Until it has come to its end nothing is wanted; a second time does nothing. Raises
        NoSpaceError where there is no room for what is missing, RefusalError once this is closed,
        OSError.
        """
        with self._preparing:
            if not self._is_prepared:
                yield from self._prepare()
                self._is_prepared = True

    def _prepare(self) -> Iterator[None]:
        for path in self.tree.directories:
            with self._committing:
                self._require_open()
                self._make_directory(path)
            yield
        yield from self._make_symlinks()
        with self._committing:
            self._workspace.sync_directories()
        missing: dict[str, list[Placing]] = {}
        received = 0
        here = Here(self._root, ())
        for root, placings in self.tree.contents.items():
            absent = []
            for placing in placings:
                place = find_place(placing.path, self._placed)
                if self._is_file_here(here.look(place), place, placing):
                    received += placing.entry.size
                else:
                    absent.append(placing)
                yield
            if absent:
                missing[root] = absent
        self._reserve(sum(placing.entry.size for absent in missing.values() for placing in absent))
        with self._lock:
            self._missing = missing
            self._received = received

    def _reserve(self, size: int) -> None:
        """Reserve room on the disk for what is missing. Raises NoSpaceError, OSError.

        Once this is closed nothing can come, and nobody would give the room back.
        """
        with self._reserving:
            with self._lock:
                if self._is_closed:
                    return
            if self._reservation is None:
                self._reservation = Reservation(self._root, self._workspace)
            self._reservation.grow(size)

    def _count_written(self, size: int) -> None:
        """Count bytes that were written, or found to be here. Raises OSError."""
        with self._reserving:
            if self._reservation is not None:
                self._reservation.shrink(size)

    def _make_directory(self, path: Path) -> None:
        """Make a directory; its parent is there. Under the lock of the workspace.

        At the top one that we did not make is a person's, and ours gives way. Raises OSError.
        """
        if not self._try_directory(path):
            self._give_way(path, Kind.DIRECTORY)
            if not self._try_directory(path):
                place = format_path(find_place(path, self._placed))
                raise OSError(errno.EBUSY, 'somebody else makes the names that are free', place)

    def _try_directory(self, path: Path) -> bool:
        place = find_place(path, self._placed)
        try:
            is_made = self._workspace.make_directory(place)
        except NotADirectoryError:
            return False
        if len(path) > 1:
            return True
        if is_made and (directory := self._identify(place)) is not None:
            self._made[path] = directory
            self._note_made(path, directory)
        return self._is_ours(path)

    def _is_ours(self, path: Path) -> bool:
        """Tell whether a directory at the top is the one that we made."""
        found = self._identify(find_place(path, self._placed))
        return found is not None and self._made.get(path) == found

    def _identify(self, place: Path) -> DirectoryId | None:
        with self._root.directory(place[:-1]) as parent:
            return identify_directory(parent, place[-1])

    def _make_symlinks(self) -> Iterator[None]:
        batch: list[Placing] = []
        for placing in self.tree.symlinks:
            batch.append(placing)
            if len(batch) >= BATCH_FILES:
                self._commit_symlinks(batch)
                batch = []
            yield
        self._commit_symlinks(batch)

    def _commit_symlinks(self, batch: list[Placing]) -> None:
        """Make symlinks; one whose name is taken at the last moment is looked at again."""
        with self._committing:
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

    def _find_free_for_symlink(self, placing: Placing) -> Path | None:
        """Return a free place for a symlink; None if it is in its place already."""
        path, entry = placing
        found = self._look(path)
        place = find_place(path, self._placed)
        if found is None:
            return place
        if self._is_symlink_here(place, parse_target(entry.target)):
            return None
        return self._give_way(path, entry.kind)

    def _is_symlink_here(self, place: Path, target: bytes) -> bool:
        try:
            return self._root.readlink(place) == target
        except OSError as error:
            if error.errno == errno.EINVAL:  # it is no symlink
                return False
            raise

    def _is_file_here(self, found: os.stat_result | None, place: Path, placing: Placing) -> bool:
        """Tell whether a file is in its place. Where only the time differs, the content decides."""
        entry = placing.entry
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
            return False
        if agree(found, entry):
            return True
        try:
            fd = self._root.open_file(place)
        except (PathError, FileNotFoundError, PermissionError):
            return False
        try:
            return hash_file(fd, place)[1].root == entry.root
        except ContentChangedError:
            return False
        finally:
            os.close(fd)

    def _look(self, path: Path) -> os.stat_result | None:
        """Look at the place of `path`, None for nothing; directories that are gone are made."""
        if len(path) > 1:
            self._make_directory(path[:1])
        try:
            return self._root.lstat(find_place(path, self._placed))
        except FileNotFoundError:
            pass
        except NotADirectoryError:
            pass
        for depth in range(1, len(path)):
            self._make_directory(path[:depth])
        try:
            return self._root.lstat(find_place(path, self._placed))
        except FileNotFoundError:
            return None

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

    # --- small contents -------------------------------------------------------------------------

    def place_small(self, items: Sequence[Item]) -> Iterator[tuple[str, bool]]:
        """Place small contents whose roots were checked; yield (root, is it placed) for each.

        Raises OSError.
        """
        with self._claiming({item.root for item in items}) as claimed:
            mine = {item.root: item for item in items if item.root in claimed}
            ready = (
                _Ready(placing, self._store(item))
                for root, item in mine.items()
                for placing in claimed[root]
            )
            taken: set[str] = set()
            for failed in self._place(ready):
                taken |= failed
            for root in mine.keys() - taken:
                self._note_placed(root)
        for item in items:
            yield item.root, not self.is_missing(item.root)

    def _store(self, item: Item) -> Temporary:
        temporary = store_small(self._workspace, self._name(item.root), item.content)
        try:
            self._count_written(len(item.content))
        except BaseException:
            os.close(temporary.fd)
            raise
        return temporary

    @contextlib.contextmanager
    def _claiming(self, roots: set[str]) -> Iterator[Mapping[str, Sequence[Placing]]]:
        """Claim contents that are missing, so that no other thread places or opens them.

        Yields those that are claimed now, with the files that have them.
        """
        with self._lock:
            claimed = {
                root: self._missing[root] for root in roots - self._claimed if root in self._missing
            }
            self._claimed |= claimed.keys()
        try:
            yield claimed
        finally:
            with self._lock:
                self._claimed -= claimed.keys()

    # --- large contents -------------------------------------------------------------------------

    def open_content(self, root: str, manifest: Manifest) -> None:
        """Begin, or go on, with a large content. Raises OSError."""
        with self._claiming({root}) as claimed:
            if not claimed or self._is_open(root):
                return
            name = self._name(root)
            surplus = [Partial(self._workspace, name, manifest, self._count_written)]
            with self._lock:
                if not self._is_closed:
                    self._open[root] = _Open(surplus.pop())
                    rested = [key for key, entry in self._open.items() if not entry.users]
                    for key in rested[: max(len(self._open) - MAX_OPEN_CONTENTS, 0)]:
                        surplus.append(self._open.pop(key).partial)
        for old in surplus:
            old.close()

    def _is_open(self, root: str) -> bool:
        with self._lock:
            return root in self._open

    @contextlib.contextmanager
    def use_content(self, root: str) -> Iterator[Partial | None]:
        """Hold a large content for the length of a `with`; None if it was not begun."""
        with self._lock:
            entry = self._open.get(root)
            if entry is not None:
                entry.users += 1
                self._open.move_to_end(root)
        if entry is None:
            yield None
            return
        try:
            yield entry.partial
        finally:
            with self._lock:
                entry.users -= 1
                is_surplus = self._is_closed and not entry.users
                if is_surplus:
                    self._open.pop(root, None)
            if is_surplus:
                entry.partial.close()

    def write(self, content: Partial, index: int, block: Buffer) -> None:
        """Write a block of a large content. Raises IntegrityError, OSError."""
        content.write(index, block)
        self._count_written(len(block))

    def place_content(self, root: str) -> Iterator[tuple[str, bool]]:
        """Place a large content if it is complete; yield (root, is it placed), if it is.

        Pauses now and then with ('', False). Raises OSError.
        """
        with self._claiming({root}) as claimed:
            with self._lock:
                entry = self._open.get(root)
                if not claimed or entry is None or entry.users or entry.partial.missing():
                    return
                del self._open[root]
            is_taken = False
            copies = self._copies(entry.partial.finish(), claimed[root])
            with contextlib.closing(copies):
                for failed in self._place(copies):
                    is_taken = is_taken or bool(failed)
                    yield '', False
            if not is_taken:
                self._note_placed(root)
        yield root, not is_taken

    def _copies(
        self, verified: Temporary, placings: Sequence[Placing]
    ) -> Generator[_Ready | None, None, None]:
        """Yield a content, once for each file that has it; None now and then.

        The verified one comes last: once it has its final name a person may edit it.
        """
        first, *others = placings
        try:
            for placing in others:
                copy = self._workspace.temporaries.open(self._name(placing.entry.root))
                try:
                    for count in _copy(verified.fd, copy.fd, placing.entry.size):
                        self._count_written(count)
                        yield None
                except BaseException:
                    os.close(copy.fd)
                    raise
                yield _Ready(placing, copy)
        except BaseException:
            os.close(verified.fd)
            raise
        yield _Ready(first, verified)

    def give_up(self, root: str) -> None:
        """Expect a content no more: whoever sends it does not have it.

        One that is being opened or placed right now is expected still.
        """
        with self._lock:
            if root not in self._claimed:
                self._missing.pop(root, None)

    # --- final names ----------------------------------------------------------------------------

    def _name(self, root: str) -> str:
        """Return the name of a temporary file; commit.py knows by it which content it is for."""
        return f'{root}.{self._tag}'

    def _place(self, ready: Iterable[_Ready | None]) -> Iterator[set[str]]:
        """Give files their final names; yield the roots of those in a batch that did not get one.

        A name that was taken at the last moment is the only reason: asked again, it gives way.
        """
        batch: list[_Ready] = []
        try:
            for item in ready:
                if item is None:
                    yield set()
                    continue
                batch.append(item)
                size = sum(waiting.placing.entry.size for waiting in batch)
                if len(batch) >= BATCH_FILES or size >= BATCH_SIZE:
                    full, batch = batch, []
                    yield self._commit(full)
            last, batch = batch, []
            yield self._commit(last)
        finally:
            for item in batch:
                os.close(item.temporary.fd)

    def _commit(self, batch: list[_Ready]) -> set[str]:
        waiting = collections.deque(batch)
        replacements: list[Replacement] = []
        roots: list[str] = []
        with self._committing:
            try:
                self._require_open()
                while waiting:
                    placing, temporary = waiting[0]
                    place = self._find_free(placing)
                    waiting.popleft()
                    if place is None:
                        self._workspace.temporaries.discard(temporary)
                        continue
                    entry = placing.entry
                    replacements.append(
                        Replacement(
                            temporary,
                            place,
                            entry.size,
                            entry.mode,
                            entry.mtime_ns,
                            None,
                            parse_xattrs(entry.xattrs),
                            replaces=False,
                        )
                    )
                    roots.append(entry.root)
            except BaseException:
                for item in waiting:
                    os.close(item.temporary.fd)
                for replacement in replacements:
                    close(replacement)
                raise
            committed = self._workspace.commit(replacements)
        return {root for root, found in zip(roots, committed, strict=True) if found.is_taken}

    def _find_free(self, placing: Placing) -> Path | None:
        """Return a free place for a file; None if it is in its place already."""
        found = self._look(placing.path)
        place = find_place(placing.path, self._placed)
        if found is None:
            return place
        if self._is_file_here(found, place, placing):
            return None
        return self._give_way(placing.path, placing.entry.kind)

    def _note_placed(self, root: str) -> None:
        with self._lock:
            placings = self._missing.pop(root, [])
            self._received += sum(placing.entry.size for placing in placings)

    # --- the end --------------------------------------------------------------------------------

    def begin_end(self) -> bool:
        """Tell whether everything is here; true for one caller only, who has to `finish()` it."""
        with self._lock:
            if self._missing or self._is_ending or not self._is_prepared:
                return False
            self._is_ending = True
            return True

    def end_later(self) -> None:
        """Let another caller end it: the one that began to has failed."""
        with self._lock:
            self._is_ending = False

    def finish(self) -> list[Path]:
        """Give the directories their modes and times; return the places at the top.

        Raises RefusalError once this is closed, OSError.
        """
        with self._committing:
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


def check_item(item: Item, size: int) -> None:
    """Check a small content against its root and the size that was offered. IntegrityError."""
    if len(item.content) != size or build_manifest(item.content).root != item.root:
        raise IntegrityError(item.root, 0, 'the bytes do not match the root')


def _bytes_here(partial: Partial) -> int:
    missing = partial.missing()
    ranges = map(partial.manifest.block_range, missing)
    return partial.manifest.size - sum(stop - start for start, stop in ranges)


def _copy(source: int, target: int, size: int) -> Iterator[int]:
    """Copy a file of `size` bytes within the file system; yield how many at a time.

    Raises OSError, also where it has fewer.
    """
    position = 0
    can_copy = True
    while position < size:
        count = 0
        if can_copy:
            try:
                count = os.copy_file_range(
                    source, target, min(size - position, 16 * MAX_PIECE), position, position
                )
            except OSError as error:
                if error.errno not in _NO_COPY:
                    raise
            can_copy = count > 0
        else:
            piece = os.pread(source, min(size - position, MAX_PIECE), position)
            if not piece:
                raise OSError(errno.EIO, 'a file in tmp/ became shorter')
            write_at(target, piece, position)
            count = len(piece)
        position += count
        yield count
    os.ftruncate(target, size)
