"""Bring a file or a tree over from a share, verified, durable, resumable.

1. List the tree (no hashing: names, sizes, times), check it, compare it with what is here. A file
   that has the size and the modification time (to the nanosecond) of the listing is taken to be
   there; nothing is read to find out. If only the size agrees, the contents decide: both sides
   hash, and if they agree only mode and time are set.
2. Check that there is room, make the directories, set what is only metadata. The room is checked
   again for each file that turns out to be larger than it was listed.
3. A few threads, each with a connection, take one file after the other. A small one comes in one
   answer with its root. For a larger one the share is asked for the root and the manifest; what an
   earlier run left in the temporary file is hashed and kept where it matches; the missing runs of
   blocks are asked for by content and each block is checked before it is written.
4. The thread that called commits what is complete, in batches (see commit.py).
5. Modes and times of the directories, deepest first; what was made is synced.

A file that changed at the source meanwhile is listed again and fetched in its new version; one that
does not come to rest, vanishes or cannot be read is reported in the result. Bytes that do not match
although the file did not change are an IntegrityError. After any error, a cancel or a kill: every
name holds its old or its new content, what was displaced is in the trash, and a second run goes on
from what was verified.
"""

from __future__ import annotations

import errno
import os
import pathlib
import queue
import stat
import threading
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from degu_rpc.errors import NoSpaceError, TransferCanceledError
from degu_rpc.files.commit import Outcome, Replacement, Symlink, Workspace, close
from degu_rpc.files.limits import (
    BATCH_FILES,
    BATCH_SIZE,
    CONNECTIONS,
    KEEP_FREE,
    KEEP_FREE_FRACTION,
    PROGRESS_INTERVAL_S,
    QUEUE_FILES,
)
from degu_rpc.files.listing import Entry, Problem
from degu_rpc.files.paths import Path, Root, format_path, parse_target, path_from_native
from degu_rpc.files.plan import File, Plan, Skipped, plan_fetch
from degu_rpc.files.receive import Receiver
from degu_rpc.files.remote import Remote, StaleError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from degu.client import Client
    from degu_rpc.peers import DialedClient


class Progress(NamedTuple):
    """How far a transfer is. Done includes what was already here; bytes and seconds."""

    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int
    bytes_fetched: int
    elapsed_s: float

    @property
    def rate(self) -> float:
        """Bytes a second that came over the network."""
        return self.bytes_fetched / self.elapsed_s if self.elapsed_s else 0.0


class Fetched(NamedTuple):
    """What a fetch did. Symlinks count as files.

    The old content of `files_replaced` names is in the trash, `.degu/trash` in the destination.
    """

    files_fetched: int
    files_present: int
    files_replaced: int
    bytes_fetched: int
    elapsed_s: float
    skipped: tuple[Skipped, ...]


def fetch(
    client: Client | DialedClient,
    prefix: str,
    path: str | bytes | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
) -> Fetched:
    """Bring `path` over from the share mounted at `prefix`, into the directory `destination`.

    It gets the last name of `path` there; the contents of a whole share (`path` is '') go straight
    into it. `destination` is made if it is missing. `progress` is called now and then, never twice
    at once; setting `cancel` ends the fetch with TransferCanceledError.

    Raises FilesError (see degu_rpc.errors), the core's DeguError, OSError.
    """
    directory = pathlib.Path(destination).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    with Root(directory) as root, Workspace(root) as workspace:
        transfer = _Transfer(client, prefix, root, workspace, progress, cancel)
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

    Guarded by self._lock: `_jobs`, `_skipped`, `_progress`, `_reported_at`, `_spare`. Used by
    the thread that commits only: `_batch`, the other counters. Set once: the rest. The queue brings
    it what the workers have: a Replacement, an exception, or None from each worker at its end.
    """

    def __init__(
        self,
        client: Client | DialedClient,
        prefix: str,
        root: Root,
        workspace: Workspace,
        callback: Callable[[Progress], None] | None,
        cancel: threading.Event | None,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._root = root
        self._workspace = workspace
        self._callback = callback
        self._cancel = cancel or threading.Event()
        self._failed = threading.Event()
        self._started_at = monotonic()
        self._queue: queue.Queue[Replacement | BaseException | None] = queue.Queue(QUEUE_FILES)
        self._lock = threading.Lock()
        self._jobs: Iterator[File] = iter(())
        self._skipped: list[Skipped] = []
        self._progress = Progress(0, 0, 0, 0, 0, 0.0)
        self._reported_at = self._started_at
        self._spare = 0
        self._batch: list[Replacement] = []
        self._files_fetched = 0
        self._files_replaced = 0

    def run(self, source: Path) -> Fetched:
        """Do all of it; see the module."""
        self._workspace.recover()
        with Remote(self._client, self._prefix, self._check_canceled) as remote:
            plan = plan_fetch(self._root, source, remote.list_tree(source))
        self._begin(plan)
        for path in plan.directories:
            if path:
                self._workspace.make_directory(path)
        for file in plan.metadata:
            self._workspace.set_metadata(file.target, file.entry.mode, file.entry.mtime_ns)
        self._bring(plan)
        for path, entry in reversed(plan.directories.items()):
            if path:
                self._finish_directory(path, entry)
        self._workspace.sync_directories()
        self._count(files=0, report=True)
        files_done, _, _, _, bytes_fetched, elapsed_s = self._progress
        return Fetched(
            self._files_fetched,
            files_done - self._files_fetched,
            self._files_replaced,
            bytes_fetched,
            elapsed_s,
            tuple(self._skipped),
        )

    def _begin(self, plan: Plan) -> None:
        """Set the totals and see that there is room. Raises NoSpaceError."""
        needed = sum(file.entry.size for file in plan.files)
        here = [*plan.present, *plan.metadata]
        files_total = len(plan.files) + len(plan.symlinks) + len(here)
        bytes_here = sum(file.entry.size for file in here)
        self._progress = Progress(len(here), files_total, bytes_here, bytes_here + needed, 0, 0.0)
        self._skipped = plan.skipped
        disk = os.statvfs(self._root.name)
        keep = min(KEEP_FREE, disk.f_blocks * disk.f_frsize // KEEP_FREE_FRACTION)
        available = disk.f_bavail * disk.f_frsize - keep + self._workspace.temporary_size()
        if needed > available:
            raise NoSpaceError(self._root.name, needed, available)
        self._spare = available - needed

    def _reserve(self, size: int) -> None:
        """See that there is room for `size` bytes more than planned. Raises NoSpaceError."""
        with self._lock:
            if size > self._spare:
                raise NoSpaceError(self._root.name, size, self._spare)
            self._spare -= size

    def _finish_directory(self, path: Path, entry: Entry) -> None:
        found = self._root.lstat(path)
        if stat.S_IMODE(found.st_mode) != entry.mode or found.st_mtime_ns != entry.mtime_ns:
            self._workspace.set_metadata(path, entry.mode, entry.mtime_ns)

    # --- the thread that commits ----------------------------------------------------------------

    def _bring(self, plan: Plan) -> None:
        """Run the workers and commit what they bring, until all is done or something failed."""
        self._jobs = iter(plan.files)
        workers = [
            threading.Thread(target=self._work, name=f'fetch-{number}')
            for number in range(min(CONNECTIONS, len(plan.files)))
        ]
        running = 0
        try:
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
            self._failed.set()
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

    def _bring_symlink(self, file: File) -> None:
        target = parse_target(file.entry.target)
        if file.local is not None and self._readlink(file.target) == target:
            self._count(files=1)
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
        size = sum(waiting.size for waiting in self._batch)
        if len(self._batch) >= BATCH_FILES or size >= BATCH_SIZE:
            self._commit()

    def _commit(self) -> None:
        batch, self._batch = self._batch, []
        outcomes = self._workspace.commit(batch)
        self._files_fetched += len(outcomes)
        self._files_replaced += sum(outcome is not Outcome.CREATED for outcome in outcomes)
        self._count(files=len(outcomes))

    # --- the workers ----------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            with Remote(self._client, self._prefix, self._check_canceled) as remote:
                receiver = Receiver(remote, self._root, self._workspace, self._moved, self._reserve)
                while (file := self._next_job()) is not None:
                    self._check_canceled()
                    received = receiver.receive(file)
                    if received is None:
                        self._count(files=1)
                    elif isinstance(received, Problem):
                        self._skip(file, received)
                    else:
                        self._queue.put(received)
        except BaseException as error:  # noqa: BLE001  # it is raised in the thread that commits
            self._queue.put(error)
        finally:
            self._queue.put(None)

    def _next_job(self) -> File | None:
        with self._lock:
            return next(self._jobs, None)

    def _skip(self, file: File, problem: Problem) -> None:
        with self._lock:
            self._skipped.append(Skipped(format_path(file.source), problem))
            self._progress = self._progress._replace(
                files_total=self._progress.files_total - 1,
                bytes_total=self._progress.bytes_total - file.entry.size,
            )

    def _moved(self, size: int, *, fetched: bool) -> None:
        self._check_canceled()
        self._count(size=size, fetched=size if fetched else 0)

    def _check_canceled(self) -> None:
        if self._cancel.is_set() or self._failed.is_set():
            raise TransferCanceledError

    def _count(
        self, *, files: int = 0, size: int = 0, fetched: int = 0, report: bool = False
    ) -> None:
        """Count what was done, and tell the caller now and then."""
        with self._lock:
            now = monotonic()
            old = self._progress
            # A file that is begun again is counted again, but not beyond the total.
            self._progress = old._replace(
                files_done=old.files_done + files,
                bytes_done=min(old.bytes_done + size, old.bytes_total),
                bytes_fetched=old.bytes_fetched + fetched,
                elapsed_s=now - self._started_at,
            )
            if report or now - self._reported_at >= PROGRESS_INTERVAL_S:
                self._reported_at = now
                if self._callback is not None:
                    self._callback(self._progress)
