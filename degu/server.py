"""The server: an accept loop, and a thread for each connection.

1. `serve_forever()` runs the accept loop in the thread that calls it. The loop never waits for a
   peer: it takes a connection, checks the limits, starts a thread. Whatever goes wrong there (no
   descriptors, no memory, no thread, a client gone too soon) is logged and the loop goes on.
2. The connection's thread does the TLS handshake, builds the `connection` dict, asks `on_connect`,
   and then serves one request after the other (`degu.exchange`).
3. `shutdown()` wakes the accept loop, which stops accepting, ends idle connections, lets running
   requests end and new connections make their first, and cuts off what is left when the time is up.
4. With `workers`, `serve_forever()` forks that many processes, which do all of this on the one
   socket, and looks after them.

Threads and locks: `_clients`, `_per_host` and `_handshakes` are shared by the accept loop and
the connections' threads and guarded by `_lock`. A client's `phase` and `sock` are written by its
own thread and read by the loop: a shutdown that met an old value is repaired by `_handshakes` and
by a look at `_stop` between requests. `sslctx` may be set at any time. All else is the loop's, or
set once.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
from collections import Counter
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from degu import net
from degu.bodies import ChunkedOutput, FileOutput, Output
from degu.channel import Channel
from degu.errors import ClosedConnectionError, DeguError, PeerTimeoutError
from degu.exchange import CLOSED_BY_CLIENT, WENT_AWAY, Phase, ServedClient, serve_requests
from degu.limits import build_limits
from degu.stop import DEFAULT_TIMEOUT_S, Stop
from degu.tls import build_server_sslctx, check_server_sslctx, find_refusal
from degu.workers import Workers, start_successor

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from degu.rgi import App

    ServerContext = ssl.SSLContext | Callable[[], ssl.SSLContext]

__all__ = ['SSLServer', 'Server', 'build_server_sslctx']

log = logging.getLogger('degu.server')

FIRST_REQUEST_TIMEOUT_S = 0.5
"""How long a connection that made no request yet has for that when a server shuts down: its client
may be about to send one, and could not know whether it was carried out."""
_CUT_OFF_TIMEOUT_S = 1.0
_MIN_BACKOFF_S = 0.01
_MAX_BACKOFF_S = 0.1
_WARNING_PERIOD_S = 1.0
"""How often the accept loop may say what it cannot do."""
# What the system and OpenSSL say where a client left early, as one may that has read enough.
_LEFT = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError)


class _Refusals:
    """Log what the accept loop refused, in a line a second at most.

    Whoever is refused at a limit can come again at once: a line for each would fill the log.
    """

    __slots__ = ('_count', '_last', '_not_before_s', '_server')

    def __init__(self, server: net.Address) -> None:
        self._server = server
        self._count = 0  # not logged yet
        self._last: tuple[net.Address, str] | None = None
        self._not_before_s = 0.0

    def add(self, client: net.Address, reason: str) -> None:
        self._count += 1
        self._last = client, reason
        self.log()

    def log(self, is_last: bool = False) -> None:
        if not self._count or (not is_last and monotonic() < self._not_before_s):
            return
        assert self._last is not None
        client, reason = self._last
        log.warning('%r: refused %d, the last %r: %s', self._server, self._count, client, reason)
        self._count = 0
        self._not_before_s = monotonic() + _WARNING_PERIOD_S

    def wait_ms(self) -> float | None:
        """Return after how long log() may have something to say; None if it has nothing."""
        return _WARNING_PERIOD_S * 1000 if self._count else None


class Server:
    """An HTTP server for one application at one address.

    A context manager: serves in a thread of its own and shuts down at the end. With workers, which
    are forked, it cannot be one, and RuntimeError says so.
    """

    # Set once: app, _on_connect, limits, workers, address, _listener, _lock, _stop; and anew in
    # each worker process before it serves: workers, _is_worker, _socket_file, _stop.
    # Guarded by _lock: _clients, _per_host, _handshakes.
    # The accept loop's own: _refusals, and refused, which all may read. Its owner's: _thread,
    # _socket_file, _successors.

    scheme = 'http'

    def __init__(
        self, address: net.Address | net.Inherited, app: App, *, workers: int = 1, **options: Any
    ) -> None:
        """Listen at `address`; nothing is accepted before serve_forever() or the `with` block.

        `workers` is how many processes accept; each has the limits for itself. `options` are the
        fields of `degu.limits.Limits`.

        Raises TypeError or ValueError for an argument that cannot be, OSError from the system.
        """
        if not callable(app):
            raise TypeError(f'app must be callable, not {app!r}')
        self._on_connect = getattr(app, 'on_connect', None)
        if self._on_connect is not None and not callable(self._on_connect):
            raise TypeError(f'app.on_connect must be callable, not {self._on_connect!r}')
        self.app = app
        if not isinstance(workers, int) or isinstance(workers, bool):
            raise TypeError(f'workers must be an int, not {workers!r}')
        if workers < 1:
            raise ValueError(f'workers must be above zero, not {workers!r}')
        self.workers = workers
        self.limits = build_limits(**options)
        self._stop = Stop()
        try:
            self._listener, self._socket_file = net.listen(address)
        except BaseException:
            self._stop.close()
            raise
        self._successors: list[subprocess.Popen[bytes]] = []
        try:
            self.address: net.Address = self._listener.getsockname()
        except BaseException:
            self.close()
            raise
        self._lock = threading.Lock()
        self._clients: dict[ServedClient, None] = {}
        self._per_host: dict[str, int] = {}
        self._handshakes: dict[ServedClient, None] = {}
        self._refusals = _Refusals(self.address)
        self.refused = 0
        """Connections that were closed unread because of a limit, in this process."""
        self._thread: threading.Thread | None = None
        self._is_worker = False

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.address!r}, {self.app!r})'

    def __enter__(self) -> Self:
        if self.workers > 1:
            self.close()
            raise RuntimeError(
                'workers are forked and cannot be started from a thread: use serve_forever() or '
                'degu.start_server()'
            )
        self._thread = threading.Thread(target=self.serve_forever, name='degu.accept')
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._stop.requested:
            self.shutdown()
        assert self._thread is not None
        self._thread.join()

    def close(self) -> None:
        """Give up a server that does not serve: stop listening and remove the socket file.

        Raises OSError for what cannot be closed or removed; all else is done then, too.
        """
        file, self._socket_file = self._socket_file, None
        if any(successor.poll() is None for successor in self._successors):
            file = None  # a successor's by now
        with contextlib.ExitStack() as stack:
            stack.callback(self._stop.close)
            stack.callback(self._listener.close)
            # First: where nothing listens any more another server may put its own file.
            stack.callback(net.remove_socket_file, file)

    def shutdown(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Ask the server to stop; serve_forever() returns when it has.

        Running requests have `timeout_s` to end, idle connections end at once. From any thread or
        signal handler: it takes no lock and does not wait. In a worker process it ends that worker
        alone, and the parent starts another.

        Raises TypeError or ValueError for a time that cannot be waited.
        """
        self._stop.request(timeout_s)

    def start_successor(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program that listens on the same socket, given to it as `net.inherited(0)`.

        Both accept until this server is shut down, so no connection is refused: do that once the
        program says that it serves. The file of a unix socket is then its to remove. `options` are
        those of subprocess.Popen.

        Raises ValueError once the server has ended, RuntimeError in a worker process, TypeError for
        a command that is no list, OSError if Python cannot be started; that `command` cannot be is
        seen by its end.
        """
        if self._is_worker:
            raise RuntimeError('a worker cannot hand the socket over: its parent can')
        if self._listener.fileno() < 0:
            raise ValueError('the server has ended: hand its socket over before shutdown()')
        if isinstance(command, str):
            raise TypeError(f'command must be a list of str, not {command!r}')
        successor = start_successor(
            self._listener.fileno(), command, options, owns_file=self._socket_file is not None
        )
        self._successors.append(successor)
        return successor

    # --- the accept loop -------------------------------------------------------------------------

    def serve_forever(self, lifeline: int | None = None) -> None:
        """Accept connections until shutdown(), then end them in order.

        `lifeline` is the descriptor of a pipe's reading end: the end of the pipe asks for a
        shutdown, too.

        Raises RuntimeError for workers beside other threads.
        """
        if lifeline is not None:
            self._stop.follow(lifeline)
        workers = Workers(self.workers, self._become_worker, self.serve_forever)
        try:
            with self._stop.on_signals():
                if self.workers > 1:
                    workers.run(self._stop)
                else:
                    self._accept_all()
        finally:
            self._stop.requested = True
            self._refusals.log(is_last=True)
            self._finish(workers)

    def _become_worker(self) -> None:
        """Make a server that serves by itself of the copy in a forked process."""
        self._stop.close()
        self._stop = Stop()
        self._socket_file = None  # the parent's to remove
        self.workers = 1
        self._is_worker = True

    def _accept_all(self) -> None:
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        self._stop.register(poller)
        pause = select.poll()
        self._stop.register(pause)
        backoff_s = _MIN_BACKOFF_S
        warned_s = -_WARNING_PERIOD_S
        while not self._stop.requested:
            try:
                self._stop.note(poller.poll(self._refusals.wait_ms()))
                self._refusals.log()
                self._accept()
                backoff_s = _MIN_BACKOFF_S
            except (OSError, RuntimeError, MemoryError) as error:
                # No descriptor, memory or thread left: that passes, this loop must not.
                if monotonic() - warned_s >= _WARNING_PERIOD_S:
                    log.warning('%r: cannot accept, trying again: %s', self.address, error)
                    warned_s = monotonic()
                self._stop.note(pause.poll(backoff_s * 1000))
                backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # woken for another reason, or the client is gone already
        client = ServedClient(sock, address)
        refusal = self._admit(client)
        if refusal is not None:
            self.refused += 1
            self._refusals.add(address, refusal)
            sock.close()
            return
        # Daemon: serve_forever() waits for it as long as it was told and says if it goes on; the
        # interpreter must not wait again, for ever, for a request that hangs.
        client.thread = threading.Thread(
            target=self._run, args=(client,), name='degu.connection', daemon=True
        )
        try:
            client.thread.start()
        except (RuntimeError, MemoryError):
            self._forget(client)
            sock.close()
            raise

    def _admit(self, client: ServedClient) -> str | None:
        """Count a connection in, or return which limit is reached."""
        limits = self.limits
        with self._lock:
            if len(self._clients) >= limits.max_connections:
                return f'max_connections={limits.max_connections}'
            host = client.host
            if host is not None:
                count = self._per_host.get(host, 0)
                if count >= limits.max_connections_per_address:
                    return f'max_connections_per_address={limits.max_connections_per_address}'
                self._per_host[host] = count + 1
            self._clients[client] = None
            self._expect_handshake(client)
        return None

    def _expect_handshake(self, client: ServedClient) -> None:
        """Count a handshake in, `_lock` held; nothing to do without TLS."""

    def _forget(self, client: ServedClient) -> None:
        with self._lock:
            del self._clients[client]
            self._handshakes.pop(client, None)
            host = client.host
            if host is not None:
                self._per_host[host] -= 1
                if not self._per_host[host]:
                    del self._per_host[host]

    def _finish(self, workers: Workers) -> None:
        try:
            self.close()
        except OSError:
            log.exception('%r: cannot close the socket or remove its file', self.address)
        workers.end(self._stop.timeout_s)
        with self._lock:
            clients = list(self._clients)
        deadline = net.Deadline(self._stop.timeout_s)
        self._interrupt_all(clients, Phase.IDLE)
        if _join_all(clients, min(FIRST_REQUEST_TIMEOUT_S, self._stop.timeout_s)):
            self._interrupt_all(clients, Phase.NEW)
        if _join_all(clients, deadline.remaining()):
            for client in clients:
                client.interrupt(socket.SHUT_RDWR)
            stuck = _join_all(clients, _CUT_OFF_TIMEOUT_S)
            if stuck:
                log.error('%r: %d requests did not end at shutdown', self.address, stuck)

    def _interrupt_all(self, clients: list[ServedClient], phase: Phase) -> None:
        for client in clients:
            if client.phase is phase:
                # First the word, then another look; its thread does the same the other way round.
                # So a request is served whole or not at all.
                client.is_to_end = True
                if client.phase is phase:
                    with self._lock:
                        self._handshakes.pop(client, None)
                    client.interrupt(socket.SHUT_RD)
                else:
                    client.is_to_end = False

    # --- one connection, in its own thread -------------------------------------------------------

    def _run(self, client: ServedClient) -> None:
        try:
            self._serve_connection(client)
        finally:
            self._forget(client)  # last: a shutdown does not wait for what comes after it

    def _serve_connection(self, client: ServedClient) -> None:
        """Serve one connection to its end and log how that came."""
        started = monotonic()
        connection: dict[str, Any] = {
            'scheme': self.scheme,
            'protocol': 'HTTP/1.1',
            'server': self.address,
            'client': client.address,
            'requests': 0,
            'rgi.Output': Output,
            'rgi.ChunkedOutput': ChunkedOutput,
            'rgi.FileOutput': FileOutput,
        }
        try:
            try:
                ending = self._serve(client, connection)
            finally:
                client.sock.close()
        except (DeguError, OSError) as error:
            ending = WENT_AWAY if isinstance(error, _LEFT) else str(error) or type(error).__name__
            # The channel or a body remembers it, and it the frames with all that the application
            # has: a proxy's upstream would go on sending until the next garbage collection.
            for remembered in (error, error.__cause__):
                if remembered is not None:
                    remembered.__traceback__ = None
        except Exception:
            ending = 'an error'
            log.exception('%r: %s: ended by an error', self.address, client)
        log.info(
            '%r: %s: %d requests in %.3f s: %s',
            self.address,
            client,
            connection['requests'],
            monotonic() - started,
            ending,
        )

    def _serve(self, client: ServedClient, connection: dict[str, Any]) -> str:
        """Prepare and serve one connection; return or raise why it ended."""
        self._prepare(client, connection)
        channel = Channel(client.sock, self.limits)
        connection['rgi.set_deadline'] = channel.set_deadline
        connection['rgi.is_client_gone'] = channel.is_peer_gone
        ending = self._ask_on_connect(client, connection)
        if ending is None:
            ending = serve_requests(client, channel, connection, self.app, self._stop)
        if ending != CLOSED_BY_CLIENT:
            channel.close_orderly()
        return ending

    def _ask_on_connect(self, client: ServedClient, connection: dict[str, Any]) -> str | None:
        """Return why the application does not want this connection, None if it does."""
        if self._on_connect is None:
            return None
        try:
            if self._on_connect(client.sock, connection) is True:
                return None
        except Exception:
            log.exception('%r: %s: on_connect failed', self.address, client)
            return 'on_connect failed'
        return 'rejected by on_connect'

    def _prepare(self, client: ServedClient, connection: dict[str, Any]) -> None:
        """Make the socket ready for requests and say in `connection` who is there."""
        if client.sock.family == socket.AF_UNIX:
            connection['credentials'] = client.credentials = net.read_credentials(client.sock)
        else:
            net.disable_delay(client.sock)
            net.keep_alive(client.sock)


class SSLServer(Server):
    """An HTTPS server for one application at one address."""

    scheme = 'https'

    def __init__(
        self,
        sslctx: ServerContext,
        address: net.Address | net.Inherited,
        app: App,
        *,
        workers: int = 1,
        **options: Any,
    ) -> None:
        """Listen at `address`; `sslctx` is what build_server_sslctx() makes. See Server.

        A function without arguments can be in its place. Each connection's thread calls it, so that
        the next client meets what is trusted by then; what it raises ends that connection.

        Raises TypeError or ValueError for an argument that cannot be, a lax context included,
        OSError from the system.
        """
        self.sslctx = sslctx
        super().__init__(address, app, workers=workers, **options)

    @property
    def sslctx(self) -> ServerContext:
        """The context of the next handshake, or what makes it; may be set at any time.

        Setting one raises TypeError or ValueError if it is lax.
        """
        return self._sslctx

    @sslctx.setter
    def sslctx(self, sslctx: ServerContext) -> None:
        self._sslctx = sslctx if callable(sslctx) else check_server_sslctx(sslctx)

    def _expect_handshake(self, client: ServedClient) -> None:
        if len(self._handshakes) >= self.limits.max_handshakes:
            # Of the address that has the most, the one that took longest is the least likely to be
            # honest; one address alone can then not push the others out.
            counts = Counter(each.host for each in self._handshakes)
            busiest = max(counts, key=counts.__getitem__)
            oldest = next(each for each in self._handshakes if each.host == busiest)
            del self._handshakes[oldest]
            oldest.interrupt(socket.SHUT_RDWR)
        self._handshakes[client] = None

    def _prepare(self, client: ServedClient, connection: dict[str, Any]) -> None:
        super()._prepare(client, connection)
        client.sock.settimeout(self.limits.handshake_timeout_s)
        sslctx = self._sslctx
        if callable(sslctx):
            sslctx = check_server_sslctx(sslctx())
        sock = sslctx.wrap_socket(
            client.sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        client.sock = sock
        try:
            # An interrupt() before the line above met the socket that was wrapped, and was lost.
            with self._lock:
                is_expected = client in self._handshakes
            if not is_expected:
                raise ClosedConnectionError('the TLS handshake was ended before it began')
            sock.do_handshake()
        except TimeoutError:
            raise PeerTimeoutError('a TLS handshake', self.limits.handshake_timeout_s) from None
        except OSError as error:
            # Let the client read the alert that says why.
            Channel(sock, self.limits).close_orderly()
            refusal = find_refusal(error, datetime.now(UTC))
            if refusal is None:
                raise
            raise refusal from error
        with self._lock:
            self._handshakes.pop(client, None)
        if sock.session_reused:
            raise ClosedConnectionError('a resumed TLS session is not accepted')
        connection['ssl_cipher'] = sock.cipher()
        connection['ssl_compression'] = sock.compression()
        connection['ssl_peer_cert'] = sock.getpeercert(True)


def _join_all(clients: list[ServedClient], timeout_s: float) -> int:
    """Wait for the connections' threads; return how many go on."""
    deadline = net.Deadline(timeout_s)
    for client in clients:
        if client.thread is not None:
            client.thread.join(deadline.remaining())
    return sum(client.thread is not None and client.thread.is_alive() for client in clients)
