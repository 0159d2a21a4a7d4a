"""A request to stop, which any thread or signal handler can make and a poll() can wait for.

1. Whoever serves registers the `Stop` with its poller, polls, and hands the events to `note()`.
2. `request()` says what is asked for and sends a byte, which ends the poll.
3. So does a signal: a handler runs between two steps of Python code, and one that comes just before
   a poll would otherwise be handled only after it.
4. So does the end of a lifeline: a pipe that another process holds open as long as we shall serve.
   It learns of nothing else that this process does, and its own end, SIGKILL included, is ours too.

Threads: `request()` takes no lock and does not wait; all else belongs to the thread that serves.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from typing import TYPE_CHECKING

from degu.limits import check_timeout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DEFAULT_TIMEOUT_S = 5.0
"""How long running requests have when a server shuts down."""
_LIFELINE_SIZE = 64  # more than a number takes


class Stop:
    """Whether to stop, and how long what is running may take for it."""

    # Written by request() and, at the end, by who serves; read by all: requested, timeout_s.
    # Set before serving: the rest.
    __slots__ = ('_lifeline', '_receiver', '_sender', 'requested', 'timeout_s')

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self._lifeline: int | None = None
        self.requested = False
        self.timeout_s = DEFAULT_TIMEOUT_S

    def follow(self, lifeline: int) -> None:
        """Take the end of a pipe for a request; `lifeline` is the descriptor of its reading end."""
        self._lifeline = lifeline

    def close(self) -> None:
        """Let go of the descriptors; the lifeline is its owner's."""
        self._receiver.close()
        self._sender.close()

    def request(self, timeout_s: float) -> None:
        """Ask to stop. Raises TypeError or ValueError for a time that cannot be waited."""
        self.timeout_s = check_timeout('timeout_s', timeout_s)
        self.requested = True
        with contextlib.suppress(OSError):  # awake already, or closed
            self._sender.send(b'x')

    def register(self, poller: select.poll) -> None:
        """Have `poller` wait for a request, too."""
        poller.register(self._receiver, select.POLLIN)
        if self._lifeline is not None:
            poller.register(self._lifeline, select.POLLIN)

    def note(self, events: Iterable[tuple[int, int]]) -> None:
        """Take from a poll's events what concerns us."""
        for descriptor, _ in events:
            if descriptor == self._receiver.fileno():
                with contextlib.suppress(BlockingIOError):  # taken already
                    self._receiver.recv(4096)
            elif descriptor == self._lifeline:
                timeout_s = os.read(descriptor, _LIFELINE_SIZE)
                self.request(float(timeout_s) if timeout_s else DEFAULT_TIMEOUT_S)

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Have each signal end the poll, if this is the thread that handles signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
