"""The connections of one client to one server: a few, kept open between calls.

1. `take()` gives the connection that was used last, as the others may then grow old, or makes one.
   With MAX_CONNECTIONS in use it waits for one of them.
2. `put()` takes it back; after anything that went wrong with it, it is closed.
3. A connection that was idle for a moment is looked at before it is given out: a server that
   restarted has closed it, and a call that is not sent need not fail.

Streams do not use the pool: they may last, and would keep calls waiting. close() ends them too.

Threads: any number; `_lock` guards the pool and is never held during I/O. `_free` waits with it.
"""

from __future__ import annotations

import threading
import weakref
from time import monotonic
from typing import TYPE_CHECKING

from degu.errors import DeguError, PeerRejectedError, ProtocolError
from degu.pki import CertificateError, CertificateFault
from degu_rpc.errors import (
    CallError,
    Code,
    NotSentError,
    UnknownPeerError,
    UnreachableError,
)
from degu_rpc.rpc.limits import IDLE_TIMEOUT_S, LOOK_AFTER_S, MAX_CONNECTIONS

if TYPE_CHECKING:
    from degu.client import Client, Connection
    from degu.net import Address, Deadline
    from degu_rpc.peers import DialedClient


_CLOSED = 'this client is closed'


class Pool:
    """Connections that calls take and put back."""

    # Set once: client. Guarded by _lock: _idle, _count, _waiting, _closed, _all.

    def __init__(self, client: Client | DialedClient) -> None:
        """Connect to nothing yet; `client` says where and how."""
        self.client = client
        self._lock = threading.Lock()  # to take a Condition is a call, and each call takes it twice
        self._free = threading.Condition(self._lock)
        # Each with the time since when; the one that was used last is at the end.
        self._idle: list[tuple[Connection, float]] = []
        self._count = 0  # idle ones included
        self._waiting = 0  # threads
        self._closed = False
        self._all: weakref.WeakSet[Connection] = weakref.WeakSet()  # those of streams too

    def close(self) -> None:
        """End the idle connections now, and those in use with their calls; give out no further.

        A second time does nothing.
        """
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            self._count -= len(idle)
            self._free.notify_all()
            connections = list(self._all)
        for connection in connections:
            connection.interrupt()
        for connection, _ in idle:
            connection.close()

    def take(self, deadline: Deadline) -> Connection:
        """Return a connection, to be given back with put().

        Raises NotSentError: `unavailable` when the server cannot be reached, `unauthenticated` when
        it is not who was meant, `deadline_exceeded` when connecting, or the wait for a connection
        that is in use, took too long; CallError (`canceled`) when the pool is closed.
        """
        with self._lock:
            if self._idle and monotonic() - self._idle[-1][1] <= LOOK_AFTER_S:
                return self._idle.pop()[0]
        return self._find(deadline)

    def _find(self, deadline: Deadline) -> Connection:
        """Return a connection where the last one was not in use a moment ago."""
        stale = []
        try:
            with self._lock:
                while True:
                    if self._closed:
                        raise CallError(Code.CANCELED, _CLOSED)
                    if self._idle:
                        connection, since_s = self._idle.pop()
                        idle_s = monotonic() - since_s
                        if idle_s <= LOOK_AFTER_S or (
                            idle_s <= IDLE_TIMEOUT_S and not connection.is_server_gone()
                        ):
                            return connection
                        self._count -= 1
                        stale.append(connection)
                    elif self._count < MAX_CONNECTIONS:
                        self._count += 1
                        break
                    elif deadline.remaining():
                        # Also after a wait that was in vain: it may have been told too late.
                        self._wait(deadline.remaining())
                    else:
                        raise NotSentError(
                            Code.DEADLINE_EXCEEDED,
                            f'all {MAX_CONNECTIONS} connections were in use for '
                            f'{deadline.timeout_s:g} s',
                        )
        finally:
            for connection in stale:
                connection.close()
        try:
            return self._connect(deadline)
        except BaseException:
            self._forget()
            raise

    def _wait(self, timeout_s: float) -> None:
        self._waiting += 1
        try:
            self._free.wait(timeout_s)
        finally:
            self._waiting -= 1

    def put(self, connection: Connection, reusable: bool) -> None:
        """Take a connection back, and close it unless it can be used again."""
        with self._lock:
            if reusable and not self._closed:
                self._idle.append((connection, monotonic()))
                if self._waiting:
                    self._free.notify()
                return
        connection.close()
        self._forget()

    def open_own(self, deadline: Deadline) -> Connection:
        """Return a connection that is the caller's to close. Raises what take() raises."""
        with self._lock:
            if self._closed:
                raise CallError(Code.CANCELED, _CLOSED)
        return self._connect(deadline)

    def _connect(self, deadline: Deadline) -> Connection:
        try:
            connection = self.client.connect(deadline)
        except (OSError, DeguError, UnknownPeerError) as error:
            raise _explain_connect(error, self.client.address, deadline) from error
        with self._lock:
            if not self._closed:
                self._all.add(connection)
                return connection
        connection.close()
        raise CallError(Code.CANCELED, _CLOSED)

    def explain(self, error: OSError | DeguError, uri: str) -> CallError:
        """Build the error that says what a connection that failed means for a call."""
        if self._closed:
            return CallError(Code.CANCELED, f'{uri} was under way: {_CLOSED}')
        return _explain_failure(error, uri)

    def _forget(self) -> None:
        with self._lock:
            self._count -= 1
            self._free.notify()


def _explain_connect(
    error: OSError | DeguError | UnknownPeerError, address: Address, deadline: Deadline
) -> NotSentError:
    """Build the error that says what it means that there is no connection."""
    # A machine that was looked for in several places may still come up at another one of them.
    causes: list[Exception | None] = [error]
    if isinstance(error, UnreachableError):
        causes = [attempt.error for attempt in error.attempts if attempt.address is not None]
    if causes and all(isinstance(cause, CertificateError | UnknownPeerError) for cause in causes):
        is_stranger = all(
            isinstance(cause, CertificateError) and cause.fault is CertificateFault.UNKNOWN_ISSUER
            for cause in causes
        )
        what = (
            'is of a user whom we do not trust; if it is who was meant, pair with them'
            if is_stranger
            else 'is not who was meant'
        )
        return NotSentError(Code.UNAUTHENTICATED, f'what answers at {address!r} {what}: {error}')
    if not deadline.remaining():
        return NotSentError(
            Code.DEADLINE_EXCEEDED,
            f'there was no connection to {address!r} within {deadline.timeout_s:g} s: {error}',
        )
    return NotSentError(Code.UNAVAILABLE, f'cannot connect to {address!r}: {error}')


def _explain_failure(error: OSError | DeguError, uri: str) -> CallError:
    if isinstance(error, PeerRejectedError):
        return CallError(Code.UNAUTHENTICATED, str(error))
    if isinstance(error, TimeoutError):
        return CallError(Code.DEADLINE_EXCEEDED, f'{uri} took too long: {error}')
    if isinstance(error, ProtocolError):
        return CallError(Code.INTERNAL, f'{uri} was answered with no response: {error}')
    return CallError(
        Code.UNAVAILABLE,
        f'{uri} may or may not have been executed: {error or type(error).__name__}',
    )
