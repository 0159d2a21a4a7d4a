"""Bring a file or a tree over from a share, verified, durable, resumable.

1. List the tree (no hashing: names, sizes, times), check it, compare it with what is here. A file
   that has the size and the modification time (to the nanosecond) of the listing is taken to be
   there; nothing is read to find out. If only the size agrees, the contents decide: both sides
   hash, and if they agree only mode and time are set.
2. Check that there is room, make the directories, set what is only metadata. The room is checked
   again for each file that turns out to be larger than it was listed.
3. A few threads for each source, each with a connection, do the jobs that a board gives them
   (board.py): packs of small files, and runs of blocks of large ones, several at one file. How they
   are done is in receive.py.
4. The thread that called commits what is complete, in batches (see commit.py).
5. Modes and times of the directories, deepest first; what was made is synced.

A file that changed at the source meanwhile is listed again and fetched in its new version; one that
does not come to rest, vanishes or cannot be read is reported in the result. A source that fails, or
whose bytes do not match although the file did not change, is not asked again: where there is no
other, that is the error. After any error, a cancel or a kill: every name holds its old or its new
content, what was displaced is in the trash or a conflict copy, and a second run goes on from what
was verified.
"""

from __future__ import annotations

import errno
import logging
import os
import pathlib
import queue
import stat
import threading
from typing import TYPE_CHECKING, NamedTuple

from degu.durable import make_directory
from degu_rpc.errors import ListingError, NoSpaceError, PathError
from degu_rpc.files.blocks import SMALL_SIZE
from degu_rpc.files.board import Asking, Board, LargeJob, Pack, Run, Settled, Source
from degu_rpc.files.commit import Replacement, Symlink, Workspace, close
from degu_rpc.files.limits import (
    BATCH_FILES,
    BATCH_SIZE,
    CONNECTIONS,
    MAX_PACK_REQUEST,
    PACK_ITEMS,
    PACK_SIZE,
    QUEUE_FILES,
)
from degu_rpc.files.listing import Entry, Problem
from degu_rpc.files.packs import NOT_IN_PACK, RECORD_COST, split_packs
from degu_rpc.files.paths import Path, Root, format_path, parse_target, path_from_native
from degu_rpc.files.plan import File, Plan, Skipped, plan_fetch
from degu_rpc.files.progress import Meter, Progress, RateLimit
from degu_rpc.files.receive import Receiver, SourceError, asking
from degu_rpc.files.remote import Remote, StaleError
from degu_rpc.files.space import Reservation
from degu_rpc.files.xattrs import parse_xattrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from degu.client import Client
    from degu_rpc.peers import DialedClient


_log = logging.getLogger('degu_rpc.files')


class Mirror(NamedTuple):
    """Another share that may have the same content: how to reach it, and where it is mounted."""

    client: Client | DialedClient
    prefix: str


class Fetched(NamedTuple):
    """What a fetch did. Symlinks count as files.

    `bytes_fetched` went over the network, also those that came twice: from a slow source, and from
    one that was asked for the same in the end. The old content of `files_replaced` names is in the
    trash, `.degu/trash` in the destination; where it was written while the fetch ran, in one of the
    `conflicts`: percent-encoded paths of copies beside the files.
    """

    files_fetched: int
    files_present: int
    files_replaced: int
    bytes_fetched: int
    elapsed_s: float
    skipped: tuple[Skipped, ...]
    conflicts: tuple[str, ...]


def fetch(
    client: Client | DialedClient,
    prefix: str,
    path: str | bytes | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    mirrors: Sequence[Mirror] = (),
    durable: bool = True,
    rate_limit: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> Fetched:
    """Bring `path` over from the share mounted at `prefix`, into the directory `destination`.

    It gets the last name of `path` there; the contents of a whole share (`path` is '') go straight
    into it. `destination` is made if it is missing. `mirrors` are other shares with the same paths:
    they bring what they have of the same content, and take over when the first one fails or lies.
    With `durable` false nothing is synced to the disk, so a power cut may cost what was brought.
    `rate_limit` is bytes a second. `progress` is called now and then, never twice at once; setting
    `cancel` ends the fetch with TransferCanceledError.

    Raises FilesError (see degu_rpc.errors), the core's DeguError, OSError; ValueError for a rate
    that is not positive.
    """
    sources = [Mirror(client, prefix), *mirrors]
    limit = RateLimit(rate_limit)
    directory = pathlib.Path(destination).expanduser()
    if durable:
        make_directory(directory, parents=True)
    else:
        directory.mkdir(parents=True, exist_ok=True)
    with (
        Root(directory) as root,
        Workspace(root, durable=durable) as workspace,
        Reservation(root, workspace) as reservation,
    ):
        transfer = _Transfer(sources, root, workspace, reservation, Meter(progress, cancel), limit)
        try:
            return transfer.run(path_from_native(path))
        except StaleError as stale:
            raise stale.refusal from stale
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise NoSpaceError(str(directory), why=os.strerror(error.errno)) from error
            raise


# --- the transfer --------------------------------------------------------------------------------


class _Transfer:
    """One fetch.

    Guarded by self._lock: `_skipped`, and `_at_run`, who is at which run. Used by the thread that
    commits only: `_batch`, the other counters. Set once: the rest. The queue brings it what the
    workers have: a Replacement, an exception, or None from each worker at its end.
    """

    def __init__(
        self,
        sources: list[Mirror],
        root: Root,
        workspace: Workspace,
        reservation: Reservation,
        meter: Meter,
        limit: RateLimit,
    ) -> None:
        self._sources = sources
        self._root = root
        self._workspace = workspace
        self._reservation = reservation
        self._meter = meter
        self._limit = limit
        self._board = Board((), (), 0)
        self._queue: queue.Queue[Replacement | BaseException | None] = queue.Queue(QUEUE_FILES)
        self._lock = threading.Lock()
        self._skipped: list[Skipped] = []
        self._at_run: dict[Receiver, Run] = {}
        self._batch: list[Replacement] = []
        self._batch_size = 0
        self._files_fetched = 0
        self._files_replaced = 0
        self._conflicts: list[str] = []

    def run(self, source: Path) -> Fetched:
        """Do all of it; see the module."""
        self._workspace.recover()
        plan = self._plan(source)
        self._begin(plan)
        for path in plan.directories:
            self._meter.check()
            if path:
                self._workspace.make_directory(path)
        for file in plan.metadata:
            self._meter.check()
            self._workspace.set_metadata(file.target, file.entry.mode, file.entry.mtime_ns)
        self._bring(plan)
        for path, entry in reversed(plan.directories.items()):
            if path:
                self._finish_directory(path, entry)
        self._workspace.sync_directories()
        done = self._meter.finish()
        return Fetched(
            self._files_fetched,
            done.files_done - self._files_fetched,
            self._files_replaced,
            done.bytes_moved,
            done.elapsed_s,
            tuple(self._skipped),
            tuple(self._conflicts),
        )

    def _plan(self, source: Path) -> Plan:
        """Have the first source that can list the tree, and decide what to do about it."""
        errors: list[Exception] = []
        while self._sources:
            try:
                with Remote(*self._sources[0], self._meter.check) as remote:
                    return plan_fetch(self._root, source, _list_tree(remote, source))
            except (SourceError, StaleError, ListingError, PathError) as error:
                errors.append(_find_cause(error))
                if len(self._sources) > 1:
                    _log.warning('%r is given up: %s', self._sources[0].client, errors[-1])
                del self._sources[0]
        raise errors[0]

    def _begin(self, plan: Plan) -> None:
        """Set the totals and see that there is room. Raises NoSpaceError."""
        needed = sum(file.entry.size for file in plan.files)
        here = [*plan.present, *plan.metadata]
        bytes_here = sum(file.entry.size for file in here)
        self._meter.expect(len(plan.files) + len(plan.symlinks) + len(here), bytes_here + needed)
        self._meter.count(files=len(here), size=bytes_here)
        self._skipped = plan.skipped
        self._reservation.grow(needed)

    def _finish_directory(self, path: Path, entry: Entry) -> None:
        # What we cannot look into could never be compared with anything again.
        mode = entry.mode | stat.S_IRUSR | stat.S_IXUSR
        found = self._root.lstat(path)
        if stat.S_IMODE(found.st_mode) != mode or found.st_mtime_ns != entry.mtime_ns:
            self._workspace.set_metadata(path, mode, entry.mtime_ns)

    # --- the thread that commits ----------------------------------------------------------------

    def _bring(self, plan: Plan) -> None:
        """Run the workers and commit what they bring, until all is done or something failed."""
        small = [file for file in plan.files if file.entry.size <= SMALL_SIZE]
        large = [file for file in plan.files if file.entry.size > SMALL_SIZE]
        packs = split_packs(small, _weigh, PACK_ITEMS, PACK_SIZE)
        self._board = Board(map(Pack, packs), large, len(self._sources))
        workers = [
            threading.Thread(target=self._work, args=(source,), name=f'fetch-{source}-{number}')
            for source in range(len(self._sources))
            for number in range(CONNECTIONS)
        ]
        running = 0
        try:
            if plan.files:
                for worker in workers:
                    worker.start()
                    running += 1
            for file in plan.symlinks:
                self._bring_symlink(file)
            while running:
                item = self._queue.get()
                if item is None:
                    running -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    self._add(item)
            self._commit()
        finally:
            self._meter.fail()
            self._board.stop()
            while running:
                item = self._queue.get()
                running -= item is None
                if isinstance(item, Replacement):
                    self._batch.append(item)
            for worker in workers:
                if worker.ident is not None:
                    worker.join()
            for replacement in self._batch:
                close(replacement)
            for content in self._board.close():
                content.close()
        if self._board.error is not None:
            raise self._board.error

    def _bring_symlink(self, file: File) -> None:
        target = parse_target(file.entry.target)
        if file.local is not None and self._readlink(file.target) == target:
            self._meter.count(files=1)
            return
        mtime_ns = file.entry.mtime_ns
        self._add(Replacement(Symlink(target), file.target, 0, 0, mtime_ns, file.local))

    def _readlink(self, path: Path) -> bytes | None:
        try:
            return self._root.readlink(path)
        except OSError as error:
            if error.errno == errno.EINVAL:  # it is no symlink
                return None
            raise

    def _add(self, replacement: Replacement) -> None:
        self._batch.append(replacement)
        self._batch_size += replacement.size
        if len(self._batch) >= BATCH_FILES or self._batch_size >= BATCH_SIZE:
            self._commit()

    def _commit(self) -> None:
        batch, self._batch, self._batch_size = self._batch, [], 0
        committed = self._workspace.commit(batch)
        self._files_fetched += len(committed)
        self._files_replaced += sum(each.replaced for each in committed)
        self._conflicts += [format_path(each.conflict) for each in committed if each.conflict]
        self._meter.count(files=len(committed))

    # --- the workers ----------------------------------------------------------------------------

    def _work(self, source: Source) -> None:
        """Do the jobs that there are for one source, with one connection."""
        try:
            with Remote(*self._sources[source], self._meter.check) as remote:
                receiver = Receiver(
                    remote,
                    self._root,
                    self._workspace,
                    self._meter,
                    self._limit,
                    self._reservation,
                    is_first=source == 0,
                )
                while (job := self._board.take(source)) is not None:
                    self._meter.check()
                    if isinstance(job, Pack):
                        settled = self._receive_pack(job, source, receiver)
                    else:
                        settled = self._do(job, source, receiver)
                    for one in settled:
                        self._settle(one)
        except BaseException as error:  # noqa: BLE001  # it is raised in the thread that commits
            self._queue.put(error)
        finally:
            self._queue.put(None)

    def _do(self, job: LargeJob, source: Source, receiver: Receiver) -> list[Settled]:
        """Do one job for a large file; return what is settled by that."""
        try:
            if isinstance(job, Asking):
                has_it = receiver.has(job.download)
                return self._board.finish_asking(job, source, has_it=has_it)
            if isinstance(job, Run):
                self._receive_run(job, receiver)
                return self._board.finish(job)
            opened = receiver.open(job.download)
        except StaleError:
            return self._board.refuse(job, source)
        except SourceError as error:
            return self._lose(source, error, job)
        if opened is True:
            return self._board.finish(job)
        if opened is False:
            self._meter.count(files=1)
            return self._board.give_up(job, None)
        return self._board.give_up(job, opened)

    def _receive_run(self, run: Run, receiver: Receiver) -> None:
        """Bring a run; whoever else is at it needs not go on then."""
        with self._lock:
            self._at_run[receiver] = run
        try:
            receiver.receive_run(run)
        finally:
            with self._lock:
                del self._at_run[receiver]
        with self._lock:
            for other, its_run in self._at_run.items():
                if its_run == run:
                    other.interrupt()

    def _receive_pack(self, job: Pack, source: Source, receiver: Receiver) -> list[Settled]:
        again: list[File] = []
        large: list[File] = []
        done = 0
        try:
            for file, received in receiver.receive_pack(job.files):
                done += 1
                if isinstance(received, Replacement):
                    self._queue.put(received)
                elif isinstance(received, Problem):
                    self._skip(file, received)
                elif received is None:
                    self._meter.count(files=1)
                else:
                    (again if received == NOT_IN_PACK else large).append(file)
        except SourceError as error:
            again += job.files[done:]
            return self._lose(source, error, None) + self._board.finish_pack(again, large)
        return self._board.finish_pack(again, large)

    def _lose(self, source: Source, error: SourceError, job: LargeJob | None) -> list[Settled]:
        cause = error.__cause__
        assert isinstance(cause, Exception)  # see receive.py
        if len(self._sources) > 1:
            _log.warning('%r is given up: %s', self._sources[source].client, cause)
        return self._board.lose(source, cause, job)

    def _settle(self, settled: Settled) -> None:
        """See to a large file on which nobody works any more."""
        file, content = settled.download.file, settled.content
        if settled.is_complete:
            assert content is not None  # it was opened
            entry = file.entry
            temporary = content.finish()
            self._queue.put(
                Replacement(
                    temporary,
                    file.target,
                    entry.size,
                    entry.mode,
                    entry.mtime_ns,
                    file.local,
                    parse_xattrs(entry.xattrs),
                )
            )
            return
        if content is not None:
            content.close()
        if settled.problem is not None:
            self._skip(file, settled.problem)

    def _skip(self, file: File, problem: Problem) -> None:
        with self._lock:
            self._skipped.append(Skipped(format_path(file.source), problem))
        self._meter.expect(-1, -file.entry.size)


def _list_tree(remote: Remote, source: Path) -> Iterator[Entry]:
    """Yield the entries of a tree; what goes wrong with the source is a SourceError."""
    entries = remote.list_tree(source)
    while True:
        with asking():
            entry = next(entries, None)
        if entry is None:
            return
        yield entry


def _find_cause(error: Exception) -> Exception:
    """Return what a SourceError was made of."""
    cause = error.__cause__
    return cause if isinstance(error, SourceError) and isinstance(cause, Exception) else error


def _weigh(file: File) -> int:
    """Return what a file counts towards the size of a pack, whose question is limited, too."""
    question = len(format_path(file.source)) + RECORD_COST
    return max(file.entry.size, question * (PACK_SIZE // MAX_PACK_REQUEST))
