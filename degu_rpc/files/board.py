"""Who brings what next: the work of one fetch, handed to the workers of its sources.

1. The first source that is still good leads: it alone says what a file is now (packs, and the root
   of a large file), so that a lie about that is nobody's but its own.
2. A large file that was opened is cut into runs of blocks, which every source may bring that says
   it has the content with this root. Each block is checked, so who brings it does not matter.
3. A source that fails or lies is lost: what it was at is given to others, and the next one leads.
   What then nobody can bring is an error in the end: what the first source had to say.
4. A file that changed is opened again, up to FETCH_ATTEMPTS times by each source that leads.
5. A source that has nothing else to do gets a run, too, that another one has been at for long:
   END_GAME_S, and twice as long as its own last one took. The first that brings it wins. At most
   two are at a run, so no more comes in vain than the runs that are under way in the end.

A Board decides and does nothing: no network, no disk. It is used by all workers of a fetch; one
lock guards all of it, the Downloads included.
"""

from __future__ import annotations

import collections
import threading
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from degu_rpc.files.limits import END_GAME_S, FETCH_ATTEMPTS
from degu_rpc.files.listing import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from degu_rpc.files.partial import Partial
    from degu_rpc.files.plan import File

Source = int
"""A source, by its place among those that the caller named."""


class Download:
    """A large file that is on its way."""

    # Set while one worker opens it, before there are runs: file (with what the source says of it
    # now), content, reserved (bytes). Guarded by the board's lock: the rest. `written` is how many
    # bytes of former contents are in tmp/, `runs` are the first and last blocks that nobody is at,
    # `at_work` the workers that are at something of it, `has` says which sources have this content,
    # as far as they were asked.

    def __init__(self, file: File) -> None:
        self.file = file
        self.content: Partial | None = None
        self.reserved = file.entry.size
        self.written = 0
        self.attempts = 0
        self.runs: collections.deque[tuple[int, int]] = collections.deque()
        self.at_work = 0
        self.has: dict[Source, bool] = {}


class Pack(NamedTuple):
    """Bring these small files."""

    files: list[File]


class Opening(NamedTuple):
    """Find out what the content of this file is, and what of it is here."""

    download: Download


class Asking(NamedTuple):
    """Find out whether this source has the content of this file, too."""

    download: Download


class Run(NamedTuple):
    """Bring the blocks `first` to `last`, both included."""

    download: Download
    first: int
    last: int


class _AtRun(NamedTuple):
    """A run that a source is at, since a time of the monotonic clock."""

    run: Run
    source: Source
    since: float


LargeJob = Opening | Asking | Run
Job = Pack | LargeJob


class Settled(NamedTuple):
    """A download on which nobody works any more: it is complete, or its content is to be closed.

    `problem` is why it is given up, if it is; otherwise it will be opened again.
    """

    download: Download
    content: Partial | None
    is_complete: bool
    problem: Problem | None = None


class Board:
    """The jobs of one fetch. See the module.

    A worker takes a job, does it, and says what became of it, with one call. Each of these returns
    what is settled by that; the worker sees to it.
    """

    def __init__(
        self, packs: Iterable[Pack], large: Iterable[File], sources: int, packs_at_once: int = 1
    ) -> None:
        """Begin with all to be done and `sources` sources, all of them good.

        So many packs are given out at once.
        """
        self._packs_at_once = packs_at_once
        self._condition = threading.Condition()
        # Guarded by self._condition.
        self._packs = collections.deque(packs)
        self._packs_at_work = 0
        self._new = collections.deque(Download(file) for file in large)
        self._open: list[Download] = []
        self._at_run: list[_AtRun] = []
        self._took_s: dict[Source, float] = {}  # for its last run
        self._good = list(range(sources))
        self._errors: dict[Source, Exception] = {}
        self._is_unserved = False
        self._is_stopped = False

    def take(self, source: Source, *, wait: bool = True) -> Job | None:
        """Take a job for a worker of `source`, and wait for one; None if there will be none.

        Without `wait` None says that there is none now.
        """
        with self._condition:
            while not self._is_stopped and source in self._good:
                job = self._find(source)
                if job is not None or self._is_done() or not wait:
                    return job
                self._condition.wait(END_GAME_S / 4 if self._at_run else None)
            return None

    def stop(self) -> None:
        """Give out no more jobs."""
        with self._condition:
            self._is_stopped = True
            self._condition.notify_all()

    def close(self) -> list[Partial]:
        """Return the contents that are open still, once no worker is left, to be closed."""
        with self._condition:
            return [download.content for download in self._open if download.content is not None]

    @property
    def error(self) -> Exception | None:
        """Why something could not be brought: what the first source had to say."""
        with self._condition:
            if self._errors and (self._is_unserved or not self._is_done()):
                return self._errors[min(self._errors)]
            return None

    # --- what became of a job -------------------------------------------------------------------

    def finish(self, job: LargeJob) -> list[Settled]:
        """It is done; the runs that an opening found are in its download."""
        with self._condition:
            return self._end(job)

    def finish_asking(self, job: Asking, source: Source, *, has_it: bool) -> list[Settled]:
        """The source said whether it has the content."""
        with self._condition:
            job.download.has[source] = has_it
            return self._end(job)

    def finish_pack(self, again: list[File], large: list[File]) -> list[Settled]:
        """A pack is done, but for files that did not fit, and for those that are not small now."""
        with self._condition:
            self._packs_at_work -= 1
            if again:
                self._packs.append(Pack(again))
            self._new.extend(Download(file) for file in large)
            self._condition.notify_all()
            return []

    def give_up(self, job: Opening, problem: Problem | None) -> list[Settled]:
        """There is nothing to bring: it is here, or the source says why it cannot be had."""
        with self._condition:
            self._open.remove(job.download)
            self._condition.notify_all()
            return [Settled(job.download, job.download.content, False, problem)] if problem else []

    def refuse(self, job: LargeJob, source: Source) -> list[Settled]:
        """The source does not have this content any more."""
        with self._condition:
            job.download.has[source] = False
            self._put_back(job)
            return self._end(job)

    def lose(self, source: Source, error: Exception, job: LargeJob | None) -> list[Settled]:
        """The source is no good, for this reason; what it was at is for others."""
        with self._condition:
            if source in self._good:
                self._good.remove(source)
                self._errors[source] = error
                for download in (*self._open, *self._new):
                    download.attempts = 0  # it was not the file that changed
            if job is None:
                return self._settle()
            self._put_back(job)
            return self._end(job)

    # --- with the lock held ---------------------------------------------------------------------

    def _is_done(self) -> bool:
        return not (self._packs or self._new or self._open or self._packs_at_work)

    def _find(self, source: Source) -> Job | None:
        for download in self._open:
            if download.runs and download.has.get(source):
                return self._begin_run(Run(download, *download.runs.popleft()), source)
        for download in self._open:
            if download.runs and source not in download.has:
                return self._begin_asking(download, source)
        if source == self._good[0]:
            job = self._find_for_leader(source)
            if job is not None:
                return job
        return self._find_slow(source)

    def _begin_run(self, run: Run, source: Source) -> Run:
        run.download.at_work += 1
        self._at_run.append(_AtRun(run, source, monotonic()))
        return run

    def _begin_asking(self, download: Download, source: Source) -> Asking:
        download.has[source] = False  # until it says otherwise: one worker asks
        download.at_work += 1
        return Asking(download)

    def _find_slow(self, source: Source) -> Job | None:
        """Find a run that another source has been at for long, and nobody else."""
        before = monotonic() - max(END_GAME_S, 2 * self._took_s.get(source, 0.0))
        runs = [each.run for each in self._at_run]
        for run, other, since in self._at_run:
            if other == source or since > before or runs.count(run) > 1:
                continue
            if run.download.has.get(source):
                return self._begin_run(Run(*run), source)
            if source not in run.download.has:
                return self._begin_asking(run.download, source)
        return None

    def _find_for_leader(self, source: Source) -> Job | None:
        if self._new:
            download = self._new.popleft()
            download.attempts += 1
            download.at_work = 1
            download.has = {source: True}
            self._open.append(download)
            return Opening(download)
        if self._packs and self._packs_at_work < self._packs_at_once:
            self._packs_at_work += 1
            return self._packs.popleft()
        return None

    def _put_back(self, job: LargeJob) -> None:
        if isinstance(job, Run) and [each.run for each in self._at_run].count(job) == 1:
            job.download.runs.appendleft((job.first, job.last))

    def _end(self, job: LargeJob) -> list[Settled]:
        job.download.at_work -= 1
        ended = next((each for each in self._at_run if each.run is job), None)
        if ended is not None:
            self._at_run.remove(ended)
            self._took_s[ended.source] = monotonic() - ended.since
        return self._settle()

    def _settle(self) -> list[Settled]:
        idle = [download for download in self._open if not download.at_work]
        settled = [self._judge(download) for download in idle]
        self._condition.notify_all()
        return [one for one in settled if one is not None]

    def _judge(self, download: Download) -> Settled | None:
        """Take a download on which nobody works off the board, if nobody can go on with it."""
        content = download.content
        is_complete = content is not None and not download.runs
        if download.runs and any(download.has.get(source, True) for source in self._good):
            return None
        self._open.remove(download)
        problem = None
        if not is_complete:
            download.runs.clear()
            download.content = None
            if content is not None:
                download.written += content.written
            if not self._good:
                self._is_unserved = True
            elif download.attempts < FETCH_ATTEMPTS:
                self._new.append(download)
            else:
                problem = Problem.CHANGING
        return Settled(download, content, is_complete, problem)
