"""Tries of several addresses at once: the first that succeeds wins, and the others are ended.

1. `start` begins to connect to one address, in a thread of its own.
2. `wait` returns what came of the one that ended next.
3. `close` ends those that still run: it shuts their sockets down and waits for their threads.

Threads: whoever made the `Tries` is the one that starts, waits and closes. A try's thread runs
`connect` and puts the outcome on a queue. Its `_lock` guards the socket that `close` ends it by.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from typing import TYPE_CHECKING, NamedTuple

from degu.client import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from degu.net import Address

    Adopt = Callable[[socket.socket], None]
    Connect = Callable[[Address, Adopt], Connection]


_CANCEL_AGAIN_S = 0.05


class Outcome(NamedTuple):
    """What came of a try: a connection, or why there is none."""

    address: Address
    result: Connection | Exception


class Tries:
    """The tries that run, one for each address."""

    def __init__(self, connect: Connect) -> None:
        """Begin without any; *connect* hands each socket over before it connects it."""
        self._connect = connect
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._running: dict[Address, _Try] = {}

    @property
    def running(self) -> int:
        """How many have not ended."""
        return len(self._running)

    def start(self, address: Address) -> None:
        """Begin to try an address that is not being tried."""
        self._running[address] = _Try(self._connect, address, self._outcomes)

    def wait(self, timeout_s: float | None) -> Outcome | None:
        """Return what came of the one that ended next, None if none did in time."""
        try:
            outcome = self._outcomes.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self._running.pop(outcome.address).join()
        return outcome

    def close(self) -> None:
        """End those that run; what they connected is closed."""
        while self._running:
            # Again, for one that was just about to connect: that cannot be ended before it begins.
            for trying in self._running.values():
                trying.cancel()
            outcome = self.wait(_CANCEL_AGAIN_S)
            if outcome is not None and isinstance(outcome.result, Connection):
                outcome.result.close()


class _Try:
    # Set once: _connect, _address, _outcomes, _thread. Guarded by _lock: _handle, _cancelled.

    def __init__(
        self, connect: Connect, address: Address, outcomes: queue.SimpleQueue[Outcome]
    ) -> None:
        self._connect = connect
        self._address = address
        self._outcomes = outcomes
        self._lock = threading.Lock()
        self._handle: socket.socket | None = None
        self._cancelled = False
        self._thread = threading.Thread(target=self._run, name='degu-dial', daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Have the thread end soon."""
        with self._lock:
            self._cancelled = True
            if self._handle is not None:
                with contextlib.suppress(OSError):  # it is not connected, or not any more
                    self._handle.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Wait for the thread, which has said what came of it."""
        self._thread.join()

    # --- in the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        result: Connection | Exception
        try:
            result = self._connect(self._address, self._adopt)
        except Exception as error:  # noqa: BLE001  # whoever waits for it decides
            result = error
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None
        self._outcomes.put(Outcome(self._address, result))

    def _adopt(self, sock: socket.socket) -> None:
        with self._lock:
            if self._cancelled:
                raise ConnectionAbortedError('another address was quicker')
            # A second descriptor of the same socket: TLS takes the first one away.
            self._handle = sock.dup()
