"""Which thread of a send does what: packs of small contents, large ones, and runs of their blocks.

Whatever is at hand is done first: runs of the large contents that are open, so that few are, then
packs, then the next large content. A thread that finds nothing waits while another may still make
runs for it. All of it may be used by many threads; `_changed` has the lock for everything.
"""

from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING, NamedTuple

from degu_rpc.errors import TransferCanceledError
from degu_rpc.files.limits import RUN_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Pack(NamedTuple):
    """Small contents to send together."""

    roots: list[str]


class Large:
    """A large content to open: to say what it is and to ask what of it is missing.

    `missing` is how many bytes were, the last time; None before the first time.
    """

    def __init__(self, root: str) -> None:
        """Begin with nothing known."""
        self.root = root
        self.missing: int | None = None
        self.runs_left = 0


class Run(NamedTuple):
    """Blocks of a large content to send: the bytes from `start` to `stop`."""

    large: Large
    start: int
    stop: int


Job = Pack | Large | Run


class Dispatch:
    """Hands out the jobs of one round; see the module."""

    def __init__(self, packs: Iterable[Pack], larges: Iterable[Large]) -> None:
        """Begin with these jobs."""
        self._changed = threading.Condition()
        self._packs = iter(packs)
        self._larges = collections.deque(larges)
        self._runs: collections.deque[Run] = collections.deque()
        self._busy = 0  # how many large contents may lead to further jobs
        self._is_stopped = False
        self.error: BaseException | None = None

    def take(self) -> Job | None:
        """Return a job; None once there are no more."""
        with self._changed:
            while not self._is_stopped:
                if self._runs:
                    return self._runs.popleft()
                pack = next(self._packs, None)
                if pack is not None:
                    return pack
                if self._larges:
                    self._busy += 1
                    return self._larges.popleft()
                if not self._busy:
                    return None
                self._changed.wait()
            return None

    def opened(
        self, large: Large, ranges: Sequence[tuple[int, int]], missing: int, block_size: int
    ) -> None:
        """Make runs of what is missing of a content that was taken; none if it is settled."""
        step = max(RUN_SIZE // block_size, 1) * block_size
        with self._changed:
            large.missing = missing
            for start, stop in ranges:
                for begin in range(start, stop, step):
                    self._runs.append(Run(large, begin, min(begin + step, stop)))
                    large.runs_left += 1
            if not large.runs_left:
                self._busy -= 1
            self._changed.notify_all()

    def finish(self, run: Run, *, is_settled: bool) -> None:
        """Count a run as sent. After the last one of a content it is opened again, to be sure."""
        large = run.large
        with self._changed:
            large.runs_left -= 1
            if not large.runs_left:
                self._busy -= 1
                if not is_settled:
                    self._larges.append(large)
                self._changed.notify_all()

    def drop(self, job: Large | Run) -> None:
        """Drop a content that cannot be sent: the runs of it that nobody does."""
        large = job.large if isinstance(job, Run) else job
        with self._changed:
            kept = [run for run in self._runs if run.large is not large]
            dropped = len(self._runs) - len(kept)
            self._runs = collections.deque(kept)
            large.runs_left -= dropped + isinstance(job, Run)
            if not large.runs_left:
                self._busy -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Hand out nothing more because of an error; the first one counts, and others do not."""
        with self._changed:
            if self.error is None or isinstance(self.error, TransferCanceledError):
                self.error = error
            self._is_stopped = True
            self._changed.notify_all()
