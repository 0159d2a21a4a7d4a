"""The contents of an offer that was accepted, while they come in.

1. `prepare()` makes what needs no content (places.py), finds out which contents are missing, and
   reserves room for them.
2. A content that is missing comes in, small ones whole, large ones block by block (partial.py).
3. Once it is complete and verified, every file that has it gets its final name: the first one the
   content that came, the others copies of it. Copies are made while it is still in tmp/, where
   nobody edits it.
4. Once nothing is missing one caller ends it.

Whatever may take long pauses now and then, so that its caller can say that it is still at work.

Threads and locks: any number may bring contents. `_lock` guards what is missing and what is open,
and is never held during I/O, nor while names change: that is under the lock of the Places.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import threading
from time import monotonic
from typing import TYPE_CHECKING

from degu_rpc.errors import IntegrityError
from degu_rpc.files.blocks import Buffer, Manifest, build_manifest
from degu_rpc.files.descriptors import copy_at
from degu_rpc.files.limits import BATCH_FILES, BATCH_SIZE, COPY_SIZE, MAX_OPEN_CONTENTS
from degu_rpc.files.offers import Item, Placing
from degu_rpc.files.partial import Partial, store_small
from degu_rpc.files.places import Places, Ready
from degu_rpc.files.space import Reservation

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

    from degu_rpc.files.commit import Workspace
    from degu_rpc.files.paths import Path, Root
    from degu_rpc.files.temporaries import Temporary

    Placed = tuple[str, bool]
    """The root of a content, and whether its files have their names."""


class _Open:
    """A large content that is coming in, and how many threads bring parts of it."""

    def __init__(self, partial: Partial) -> None:
        self.partial = partial
        self.users = 0


class Arrival:
    """See the module. Close it once no thread uses it any more, or begins to."""

    # Set once: _root, _workspace, _places, _tree, _tag.
    # Guarded by self._lock: _missing (the roots of what is not here), _open, _claimed, _is_ending,
    # _is_closed, _received. By self._reserving: _reservation. Written with self._preparing, which
    # is held while prepare() runs, and read by all: _is_prepared. The Intake's: used_at.

    def __init__(self, root: Root, workspace: Workspace, places: Places, tag: str) -> None:
        """Remember what is to come and where it goes; nothing is done yet.

        `tag` stands for the user who sends: what came from others does not count as sent.
        """
        self._root = root
        self._workspace = workspace
        self._places = places
        self._tree = places.tree
        self._tag = tag
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
        self._places.close()
        with self._lock:
            self._is_closed = True
            rested = [root for root, entry in self._open.items() if not entry.users]
            partials = [self._open.pop(root).partial for root in rested]
        for partial in partials:
            partial.close()
        with self._reserving:
            if self._reservation is not None:
                self._reservation.close()
                self._reservation = None

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
        here = (partial.manifest.size - partial.missing_size() for partial in partials)
        return received + sum(here)

    def wanted(self) -> list[str]:
        """Return the roots of the contents that are not here, in the order of the offer."""
        with self._lock:
            return list(self._missing)

    def size_of(self, root: str) -> int | None:
        """Return the size of a content that is offered; None for another."""
        placings = self._tree.contents.get(root)
        return None if placings is None else placings[0].entry.size

    def is_missing(self, root: str) -> bool:
        """Tell whether a content is offered and not here."""
        with self._lock:
            return root in self._missing

    # --- what is missing ------------------------------------------------------------------------

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
        self._reserve(0)  # what a killed run made is durable then, before it is taken to be here
        yield from self._places.make()
        missing: dict[str, list[Placing]] = {}
        size = 0
        for absent in self._places.find_absent():
            if absent is not None:
                missing.setdefault(absent.entry.root, []).append(absent)
                size += absent.entry.size
            yield
        self._reserve(size)
        with self._lock:
            self._missing = missing
            self._received = self._tree.size - size

    def _reserve(self, size: int) -> None:
        """Reserve room on the disk for what is missing. Raises NoSpaceError, OSError.

        Once this is closed nothing can come, and nobody would give the room back.
        """
        with self._reserving:
            with self._lock:
                if self._is_closed:
                    return
            if self._reservation is None:
                names = name_temporaries(self._tree.contents, self._tag)
                self._reservation = Reservation(self._root, self._workspace, names)
            self._reservation.grow(size)

    def _count_written(self, size: int) -> None:
        """Count bytes that were written, or found to be here. Raises OSError."""
        with self._reserving:
            if self._reservation is not None:
                self._reservation.shrink(size)

    # --- small contents -------------------------------------------------------------------------

    def place_small(self, items: Sequence[Item]) -> Iterator[Placed | None]:
        """Place small contents whose roots were checked; yield what became of each.

        Yields None now and then. Raises RefusalError once this is closed, OSError.
        """
        with self._claiming({item.root for item in items}) as claimed:
            mine = {item.root: item for item in items if item.root in claimed}
            ready = (
                Ready(placing, self._store(item))
                for root, item in mine.items()
                for placing in claimed[root]
            )
            taken = yield from self._place(ready)
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

    def open_content(self, root: str, manifest: Manifest) -> Iterator[None]:
        """Begin, or go on, with a large content, pausing now and then. Raises OSError."""
        with self._claiming({root}) as claimed, contextlib.ExitStack() as surplus:
            if not claimed or self._is_open(root):
                return
            partial = surplus.enter_context(Partial(self._workspace, self._name(root), manifest))
            for size in partial.find_blocks():
                self._count_written(size)
                yield
            with self._lock:
                if self._is_closed:
                    return
                surplus.pop_all()
                self._open[root] = _Open(partial)
                rested = [key for key, entry in self._open.items() if not entry.users]
                for key in rested[: max(len(self._open) - MAX_OPEN_CONTENTS, 0)]:
                    surplus.enter_context(self._open.pop(key).partial)

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
        if content.write(index, block):
            self._count_written(len(block))

    def place_content(self, root: str) -> Iterator[Placed | None]:
        """Place a large content if it is complete; yield what became of it, if it is.

        Yields None now and then. Raises RefusalError once this is closed, OSError.
        """
        with self._claiming({root}) as claimed:
            with self._lock:
                entry = self._open.get(root)
                if not claimed or entry is None or entry.users or entry.partial.missing():
                    return
                del self._open[root]
            with contextlib.closing(self._copies(entry.partial.finish(), claimed[root])) as copies:
                taken = yield from self._place(copies)
            if not taken:
                self._note_placed(root)
        yield root, not taken

    def _copies(
        self, verified: Temporary, placings: Sequence[Placing]
    ) -> Generator[Ready | None, None, None]:
        """Yield a content, once for each file that has it; None now and then.

        The verified one comes last: once it has its final name a person may edit it.
        """
        first, *others = placings
        try:
            for placing in others:
                copy = self._workspace.temporaries.open(self._name(placing.entry.root))
                try:
                    for size in _copy(verified.fd, copy.fd, placing.entry.size):
                        self._count_written(size)
                        yield None
                except BaseException:
                    os.close(copy.fd)
                    raise
                yield Ready(placing, copy)
        except BaseException:
            os.close(verified.fd)
            raise
        yield Ready(first, verified)

    def give_up(self, root: str) -> None:
        """Expect a content no more: whoever sends it does not have it.

        One that is being opened or placed right now is expected still.
        """
        with self._lock:
            if root not in self._claimed:
                self._missing.pop(root, None)

    # --- final names ----------------------------------------------------------------------------

    def _name(self, root: str) -> str:
        return name_temporary(root, self._tag)

    def _place(self, ready: Iterable[Ready | None]) -> Generator[None, None, set[str]]:
        """Give files their final names, in batches; return the roots of those without.

        Pauses now and then; see `Places.commit()`.
        """
        taken: set[str] = set()
        batch: list[Ready] = []
        size = 0
        try:
            for item in ready:
                if item is None:
                    yield
                    continue
                batch.append(item)
                size += item.placing.entry.size
                if len(batch) >= BATCH_FILES or size >= BATCH_SIZE:
                    full, batch, size = batch, [], 0
                    taken |= yield from self._places.commit(full)
                    yield
            last, batch = batch, []
            taken |= yield from self._places.commit(last)
        finally:
            for item in batch:
                os.close(item.temporary.fd)
        return taken

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
        """Give the directories their modes and times; see `Places.finish()`."""
        return self._places.finish()


def name_temporary(root: str, tag: str) -> str:
    """Return the name of a temporary file; commit.py knows by it which content it is for."""
    return f'{root}.{tag}'


def name_temporaries(roots: Iterable[str], tag: str) -> set[bytes]:
    """Return the names in tmp/ of contents of a user."""
    return {os.fsencode(name_temporary(root, tag)) for root in roots}


def check_item(item: Item, size: int) -> None:
    """Check a small content against its root and the size that was offered. IntegrityError."""
    if len(item.content) != size or build_manifest(item.content).root != item.root:
        raise IntegrityError(item.root, 0, 'the bytes do not match the root')


def _copy(source: int, target: int, size: int) -> Iterator[int]:
    """Copy a file of `size` bytes within the file system; yield how many at a time.

    Raises OSError, also where it has fewer.
    """
    position = 0
    while position < size:
        count = copy_at(source, position, target, position, min(size - position, COPY_SIZE))
        if not count:
            raise OSError(errno.EIO, 'a file in tmp/ became shorter')
        position += count
        yield count
    os.ftruncate(target, size)
