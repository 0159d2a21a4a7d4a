"""How far a transfer is, when it is to end, and how fast it may be.

A Meter counts what the threads of one transfer have done, tells the caller now and then, and is
where a cancel comes in: each count raises TransferCanceledError once one was asked for. A RateLimit
is shared by all threads of a transfer. Both may be used by many threads.
"""

from __future__ import annotations

import collections
import threading
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from degu_rpc.errors import TransferCanceledError
from degu_rpc.files.limits import MAX_PIECE, MIN_PIECE, PROGRESS_INTERVAL_S, RATE_WINDOW_S

if TYPE_CHECKING:
    from collections.abc import Callable


class Progress(NamedTuple):
    """How far a transfer is. Done includes what was there already; bytes and seconds.

    `bytes_moved` went over the network. `rate` is bytes a second of late, over the network.
    `bytes_read` were read here to find out what there is to send; the totals are 0 until then.
    """

    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int
    bytes_moved: int
    elapsed_s: float
    rate: float
    bytes_read: int = 0

    @property
    def left_s(self) -> float | None:
        """How long it will take at this rate; None while nothing moves."""
        return (self.bytes_total - self.bytes_done) / self.rate if self.rate else None


class Meter:
    """Counts for one transfer; see the module."""

    # Set once: _callback, _cancel, _failed, _started_at. Guarded by self._lock: the rest. The
    # callback is called with the lock held, so never twice at once.

    def __init__(
        self, callback: Callable[[Progress], None] | None, cancel: threading.Event | None
    ) -> None:
        """Count from nothing. `cancel` is set by whoever wants the transfer to end."""
        self._callback = callback
        self._cancel = cancel or threading.Event()
        self._failed = threading.Event()
        self._started_at = monotonic()
        self._lock = threading.Lock()
        self._files_done = self._files_total = 0
        self._bytes_done = self._bytes_total = self._bytes_moved = self._bytes_read = 0
        self._reported_at = float('-inf')
        self._samples = collections.deque([(self._started_at, 0)])

    def check(self) -> None:
        """Raise TransferCanceledError if the transfer is to end."""
        if self._cancel.is_set() or self._failed.is_set():
            raise TransferCanceledError

    def sleep(self, delay_s: float) -> None:
        """Wait. Raises TransferCanceledError soon after it is to end."""
        end = monotonic() + delay_s
        while (left := end - monotonic()) > 0:
            self._cancel.wait(min(left, PROGRESS_INTERVAL_S))
            self.check()

    def fail(self) -> None:
        """Have every thread of the transfer end as if it were canceled."""
        self._failed.set()

    def begin_rate(self) -> None:
        """Measure the rate from now on: until now nothing could move."""
        with self._lock:
            self._samples = collections.deque([(monotonic(), self._bytes_moved)])

    def expect(self, files: int, size: int) -> None:
        """Add to the totals, or with negative numbers take away from them."""
        if files > 0:
            self.begin_rate()
        with self._lock:
            self._files_total += files
            self._bytes_total += size
            self._bytes_done = min(self._bytes_done, self._bytes_total)

    def count(self, *, files: int = 0, size: int = 0, moved: int = 0, read: int = 0) -> None:
        """Count what was done: whole files, bytes, and those of them that went over the network.

        `read` are bytes that were read before it was known what there is to do. What the caller's
        `progress` raises is passed on.
        """
        with self._lock:
            self._files_done += files
            # A file that is begun again is counted again, but not beyond the total.
            self._bytes_done = min(self._bytes_done + size, self._bytes_total)
            self._bytes_moved += moved
            self._bytes_read += read
            now = monotonic()
            if now - self._reported_at >= PROGRESS_INTERVAL_S:
                self._report(now)

    def finish(self) -> Progress:
        """Tell the caller a last time, and return how far it came."""
        with self._lock:
            return self._report(monotonic())

    def _report(self, now: float) -> Progress:
        self._reported_at = now
        progress = Progress(
            self._files_done,
            self._files_total,
            self._bytes_done,
            self._bytes_total,
            self._bytes_moved,
            now - self._started_at,
            self._find_rate(now),
            self._bytes_read,
        )
        if self._callback is not None:
            self._callback(progress)
        return progress

    def _find_rate(self, now: float) -> float:
        """Return the bytes a second since RATE_WINDOW_S ago, or since the beginning."""
        self._samples.append((now, self._bytes_moved))
        while len(self._samples) > 2 and now - self._samples[1][0] > RATE_WINDOW_S:
            self._samples.popleft()
        since, before = self._samples[0]
        return (self._bytes_moved - before) / (now - since) if now > since else 0.0


class RateLimit:
    """So many bytes a second, for all threads together; None for as many as there can be."""

    def __init__(self, rate: float | None) -> None:
        """Allow `rate` bytes a second. Raises ValueError for a rate that is not positive."""
        if rate is not None and not rate > 0:
            raise ValueError(f'a rate is more than 0 bytes a second, not {rate!r}')
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0  # guarded by self._lock

    @property
    def piece_size(self) -> int:
        """How many bytes to move at once: what takes a fraction of a second."""
        if self._rate is None:
            return MAX_PIECE
        return int(min(max(self._rate / 8, MIN_PIECE), MAX_PIECE))

    def wait(self, size: int, meter: Meter) -> None:
        """Wait until `size` bytes may pass. Raises TransferCanceledError, soon after it comes."""
        if self._rate is None:
            return
        with self._lock:
            now = monotonic()
            delay = max(self._free_at - now, 0.0)
            self._free_at = now + delay + size / self._rate
        meter.sleep(delay)
