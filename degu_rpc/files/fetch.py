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
4. Each of them commits what it completes, in batches (see commit.py).
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
import stat
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
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
)
from degu_rpc.files.listing import Entry, Problem
from degu_rpc.files.packs import NOT_IN_PACK, RECORD_COST, split_packs
from degu_rpc.files.paths import (
    Path,
    Root,
    format_native,
    format_path,
    parse_target,
    path_from_native,
)
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
    `conflicts`: paths, below the destination, of copies beside the files.
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

    Guarded by self._lock: what becomes the result, from `_skipped` on, and `_at_run`, who is at
    which run. Set once: the rest.
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
        self._lock = threading.Lock()
        self._skipped: list[Skipped] = []
        self._at_run: dict[Receiver, Run] = {}
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
            self._set_metadata(file)
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

    def _set_metadata(self, file: File) -> None:
        assert file.local is not None  # the plan has found it here
        entry = file.entry
        self._workspace.set_file_metadata(file.target, file.local, entry.mode, entry.mtime_ns)

    def _finish_directory(self, path: Path, entry: Entry) -> None:
        # What we cannot look into could never be compared with anything again.
        mode = entry.mode | stat.S_IRUSR | stat.S_IXUSR
        found = self._root.lstat(path)
        if stat.S_IMODE(found.st_mode) != mode or found.st_mtime_ns != entry.mtime_ns:
            # Of nothing else: a person may have put a file there, which is not to be opened up.
            self._workspace.set_directory_metadata(path, mode, entry.mtime_ns)

    def _bring(self, plan: Plan) -> None:
        """Run the workers until all is done or something failed."""
        small = [file for file in plan.files if file.entry.size <= SMALL_SIZE]
        large = [file for file in plan.files if file.entry.size > SMALL_SIZE]
        packs = split_packs(small, _weigh, PACK_ITEMS, PACK_SIZE)
        # Two threads that write small files only fight for the interpreter, unless one of them
        # waits for the disk.
        packs_at_once = CONNECTIONS if self._workspace.is_durable else 1
        self._board = Board(map(Pack, packs), large, len(self._sources), packs_at_once)
        workers = len(self._sources) * CONNECTIONS if plan.files else 0
        try:
            with ThreadPoolExecutor(workers + 1, 'fetch') as pool:
                try:
                    jobs = [pool.submit(self._work, each // CONNECTIONS) for each in range(workers)]
                    jobs.append(pool.submit(self._bring_symlinks, plan.symlinks))
                    for job in as_completed(jobs):
                        job.result()
                except BaseException:
                    self._meter.fail()
                    self._board.stop()
                    raise
        finally:
            for content in self._board.close():
                content.close()
        if self._board.error is not None:
            raise self._board.error

    def _bring_symlinks(self, files: list[File]) -> None:
        with _Batch(self._commit) as batch:
            for file in files:
                target = parse_target(file.entry.target)
                if file.local is not None and self._root.find_target(file.target) == target:
                    self._meter.count(files=1)
                    continue
                mtime_ns = file.entry.mtime_ns
                batch.add(Replacement(Symlink(target), file.target, 0, 0, mtime_ns, file.local))
            batch.commit()

    def _commit(self, batch: list[Replacement]) -> None:
        committed = self._workspace.commit(batch)
        with self._lock:
            self._files_fetched += len(committed)
            self._files_replaced += sum(each.replaced for each in committed)
            self._conflicts += [format_native(each.conflict) for each in committed if each.conflict]
        self._meter.count(files=len(committed))

    # --- the workers ----------------------------------------------------------------------------

    def _work(self, source: Source) -> None:
        """Do the jobs that there are for one source, with one connection."""
        with (
            Remote(*self._sources[source], self._meter.check) as remote,
            _Batch(self._commit) as batch,
        ):
            receiver = Receiver(
                remote,
                self._root,
                self._workspace,
                self._meter,
                self._limit,
                self._reservation,
                is_first=source == 0,
            )
            while True:
                # What is complete does not wait while we wait.
                job = self._board.take(source, wait=not batch.files)
                self._meter.check()
                if job is None:
                    if not batch.files:
                        return
                    batch.commit()
                elif isinstance(job, Pack):
                    self._settle(self._receive_pack(job, source, receiver, batch), batch)
                else:
                    self._settle(self._do(job, source, receiver), batch)

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

    def _receive_pack(
        self, job: Pack, source: Source, receiver: Receiver, batch: _Batch
    ) -> list[Settled]:
        again: list[File] = []
        large: list[File] = []
        done = 0
        try:
            for file, received in receiver.receive_pack(job.files):
                done += 1
                if isinstance(received, Replacement):
                    batch.add(received)
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

    def _settle(self, settled: list[Settled], batch: _Batch) -> None:
        """See to large files on which nobody works any more."""
        for download, content, is_complete, problem in settled:
            file, entry = download.file, download.file.entry
            if is_complete:
                assert content is not None  # it was opened
                replacement = Replacement(
                    content.finish(),
                    file.target,
                    entry.size,
                    entry.mode,
                    entry.mtime_ns,
                    file.local,
                    parse_xattrs(entry.xattrs),
                )
                batch.add(replacement)
                continue
            if content is not None:
                content.close()
            if problem is not None:
                self._skip(file, problem)

    def _skip(self, file: File, problem: Problem) -> None:
        with self._lock:
            self._skipped.append(Skipped(format_native(file.source), problem))
        self._meter.expect(-1, -file.entry.size)


class _Batch:
    """Complete files of one thread, until they get their final names together."""

    def __init__(self, commit: Callable[[list[Replacement]], None]) -> None:
        self.files: list[Replacement] = []
        self._size = 0
        self._commit = commit

    def add(self, file: Replacement) -> None:
        """Take one more; a full batch is committed."""
        self.files.append(file)
        self._size += file.size
        if len(self.files) >= BATCH_FILES or self._size >= BATCH_SIZE:
            self.commit()

    def commit(self) -> None:
        """Give those that there are their names. Raises what `commit` does."""
        files, self.files, self._size = self.files, [], 0
        self._commit(files)

    def __enter__(self) -> _Batch:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self.files:
            close(file)


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
