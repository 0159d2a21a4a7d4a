"""Do the jobs of a fetch: what one worker asks one source, and what it does with the answers.

1. Small files come in packs, each with its root. If the file that is here has the same bytes, only
   its mode and time are set.
2. For a larger one the source is asked for its root (it may have to hash), then for the manifest.
   What is here of it already is found (partial.py, reuse.py); the rest is cut into runs.
3. A run of blocks is asked for by content, and each block is checked before it is written.
4. A source that no longer has what it announced is asked anew. One whose bytes do not match
   although its file has not changed lies: that, and whatever else goes wrong with a source, is a
   SourceError, and that source is lost. What goes wrong here (the disk) is raised as it is.

A Receiver belongs to one thread, but for `interrupt()`.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from degu.errors import DeguError
from degu_rpc.errors import (
    FilesError,
    IntegrityError,
    ListingError,
    TransferCanceledError,
)
from degu_rpc.files.blocks import find_runs, is_root
from degu_rpc.files.commit import Replacement, Workspace, set_metadata
from degu_rpc.files.content import compare_steps, finish_steps
from degu_rpc.files.limits import DELTA_SIZE, RUN_SIZE
from degu_rpc.files.listing import Entry, Kind, Problem
from degu_rpc.files.packs import NOT_IN_PACK
from degu_rpc.files.partial import Partial, store_small
from degu_rpc.files.paths import Root, format_native
from degu_rpc.files.remote import Remote, StaleError
from degu_rpc.files.reuse import copy_blocks, copy_chunks
from degu_rpc.files.xattrs import parse_xattrs, read_xattrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from degu.bodies import Input
    from degu_rpc.files.board import Download, Run
    from degu_rpc.files.packs import Packed
    from degu_rpc.files.plan import File
    from degu_rpc.files.progress import Meter, RateLimit
    from degu_rpc.files.space import Reservation

    Xattrs = Mapping[bytes, bytes] | None


class SourceError(Exception):
    """A source is no good; the reason is the cause. Never leaves this package."""


class Receiver:
    """Does the jobs of one worker, with one connection."""

    def __init__(
        self,
        remote: Remote,
        root: Root,
        workspace: Workspace,
        meter: Meter,
        limit: RateLimit,
        reservation: Reservation,
        *,
        is_first: bool,
    ) -> None:
        """Remember where from, where to, whom to tell, how fast, and what room there is.

        `is_first` says that the files were listed by this source: what it has now is what counts.
        """
        self._remote = remote
        self._root = root
        self._workspace = workspace
        self._meter = meter
        self._limit = limit
        self._reservation = reservation
        self._is_first = is_first
        self._buffer = memoryview(b'')

    # --- small files ----------------------------------------------------------------------------

    def receive_pack(
        self, files: list[File]
    ) -> Iterator[tuple[File, Replacement | Problem | int | None]]:
        """Bring small files; yield each with what to commit, or why there is nothing.

        None is for a file that is here, a Problem for one that cannot be had, a number is the
        status with which it is to be brought some other way. Raises SourceError, NoSpaceError,
        OSError.
        """
        paths = [file.source for file in files]
        answers = self._remote.read_pack(paths, lambda size: self._limit.wait(size, self._meter))
        for file in files:
            self._meter.check()
            with asking():
                packed = next(answers)
            yield file, self._take_packed(file, packed)
        with asking():
            next(answers, None)  # so that it sees the end

    def _take_packed(self, file: File, packed: Packed) -> Replacement | Problem | int | None:
        if packed.status == 403:
            return Problem.UNREADABLE
        entry, size = file.entry, len(packed.content)
        is_listed = (size, packed.mtime_ns) == (entry.size, entry.mtime_ns)
        if not self._is_first and packed.status != NOT_IN_PACK and not is_listed:
            return Problem.VANISHED
        if packed.status != 200:
            return packed.status
        with asking():
            xattrs = parse_xattrs(packed.xattrs)
        self._meter.count(size=size, moved=size)
        if self._is_here(file, size, packed.root, packed.mtime_ns, xattrs):
            self._reservation.shrink(entry.size)
            return None
        self._reservation.grow(max(size - entry.size, 0))
        temporary = store_small(self._workspace, packed.root, packed.content)
        self._reservation.shrink(max(size, entry.size))
        return Replacement(
            temporary, file.target, size, entry.mode, packed.mtime_ns, file.local, xattrs
        )

    # --- large files ----------------------------------------------------------------------------

    def open(self, download: Download) -> Problem | bool:
        """Find out what the content is and what of it is missing; fill in the download's runs.

        Returns True, False if the file is here, or why it cannot be had. Raises StaleError when the
        source has it no more, SourceError, NoSpaceError, OSError.
        """
        file = download.file
        with asking():
            try:
                entry = self._remote.list_file(file.source)
            except StaleError:
                return Problem.VANISHED
            if entry.kind is not Kind.FILE:
                return entry.problem or Problem.VANISHED
            if not is_root(entry.root):
                raise ListingError(
                    f'{format_native(file.source)!r} comes without the root asked for'
                )
            xattrs = parse_xattrs(entry.xattrs)
        if not self._is_first and not _is_same(entry, file.entry):
            return Problem.VANISHED
        # What was begun of former contents stays, for a later run: this one takes room besides it.
        more = max(download.written + entry.size - download.reserved, 0)
        self._reservation.grow(more)
        download.reserved += more
        with asking():
            manifest = self._remote.read_manifest(file.source, entry.root, entry.size)
        if self._is_here(file, entry.size, entry.root, entry.mtime_ns, xattrs):
            self._meter.count(size=entry.size)
            self._reservation.shrink(entry.size)
            return False
        download.file = file._replace(entry=entry)
        content = Partial(self._workspace, entry.root, manifest)
        try:
            for size in content.find_blocks():
                self._found(size)
            self._reuse(download.file, content)
        except BaseException:
            content.close()
            raise
        download.content = content
        download.runs.extend(find_runs(content.missing(), RUN_SIZE // manifest.block_size))
        return True

    def has(self, download: Download) -> bool:
        """Ask whether the source has the content of an open download, too. Raises SourceError."""
        with asking():
            try:
                entry = self._remote.list_file(download.file.source)
            except StaleError:
                return False
        return entry.kind is Kind.FILE and entry.root == download.file.entry.root

    def interrupt(self) -> None:
        """End what is asked for now. Any thread may call this."""
        self._remote.interrupt()

    def receive_run(self, run: Run) -> None:
        """Bring the blocks of a run, or what is missing of them; another source may be at it, too.

        Raises StaleError, SourceError, OSError.
        """
        content = run.download.content
        assert content is not None  # a download with runs is open
        try:
            self._receive_blocks(run)
        except SourceError:
            if content.skip(run.first, run.last) <= run.last:
                raise
            self._remote.close()  # the other one was faster

    def _receive_blocks(self, run: Run) -> None:
        file, content = run.download.file, run.download.content
        assert content is not None  # a download with runs is open
        manifest = content.manifest
        # Some of it may have come from a source that was lost.
        first = content.skip(run.first, run.last)
        if first > run.last:
            return
        begin, end = manifest.block_range(first)[0], manifest.block_range(run.last)[1]
        with asking():
            body = self._remote.open_data(file.source, content.root, begin, end)
        for index in range(first, run.last + 1):
            if content.skip(index, run.last) > run.last:
                self._remote.close()  # the other one was faster
                return
            start, stop = manifest.block_range(index)
            block = self._read(body, stop - start)
            try:
                if content.write(index, block):
                    self._meter.count(size=len(block))
                    self._reservation.shrink(len(block))
            except IntegrityError as error:
                self._remote.close()
                self._explain(file, content.root, error)

    def _explain(self, file: File, root: str, error: IntegrityError) -> None:
        """Raise StaleError if the file changed while it was sent, otherwise SourceError."""
        with asking():
            entry = self._remote.list_file(file.source)
            if entry.root != root:
                raise StaleError.of(file.source, 'it changed while it was sent')
            raise IntegrityError(format_native(file.source), error.block, error.reason) from None

    def _read(self, body: Input, size: int) -> memoryview:
        """Read so many bytes, no faster than allowed, into the buffer."""
        if len(self._buffer) < size:
            self._buffer = memoryview(bytearray(size))
        position = 0
        while position < size:
            piece = self._buffer[position : min(position + self._limit.piece_size, size)]
            self._limit.wait(len(piece), self._meter)
            with asking():
                body.readinto(piece)
            self._meter.count(moved=len(piece))
            self._meter.check()
            position += len(piece)
        return self._buffer[:size]

    # --- what is here ---------------------------------------------------------------------------

    def _found(self, size: int) -> None:
        self._meter.check()
        self._meter.count(size=size)
        self._reservation.shrink(size)

    def _reuse(self, file: File, content: Partial) -> None:
        """Take what can be had from the file that is here under this name."""
        if file.local is None:
            return
        fd = self._root.open_readable(file.target)
        if fd is None:
            return
        try:
            copy_blocks(fd, content, self._found)
            if content.missing_size() < DELTA_SIZE:
                return
            with asking():
                chunks = self._remote.read_cuts(file.source, content.root, file.entry.size)
            if chunks is not None:
                size = os.fstat(fd).st_size
                copy_chunks(fd, size, chunks, content, self._meter.check, self._found)
        finally:
            os.close(fd)

    def _is_here(self, file: File, size: int, root: str, mtime_ns: int, xattrs: Xattrs) -> bool:
        """Tell whether what is at the final name has this content; then it gets the metadata, too.

        Only an equal size is read. Attributes that it has stay: they are somebody's. All is done
        through one descriptor, so what takes the name meanwhile keeps its own time.
        """
        if file.local is None or file.local.size != size:
            return False
        fd = self._root.open_readable(file.target)
        if fd is None:
            return False
        try:
            if finish_steps(compare_steps(fd, root), self._meter.check) is None:
                return False
            kept = None if xattrs is None else {**xattrs, **(read_xattrs(fd) or {})}
            set_metadata(fd, file.entry.mode, mtime_ns, kept)
        finally:
            os.close(fd)
        return True


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Make whatever goes wrong with a source a SourceError, but for StaleError and a cancel."""
    try:
        yield
    except (StaleError, TransferCanceledError):
        raise
    except (DeguError, FilesError, OSError) as error:
        raise SourceError from error


def _is_same(entry: Entry, other: Entry) -> bool:
    return (entry.size, entry.mtime_ns) == (other.size, other.mtime_ns)
