"""The server: an accept loop, and a thread for each connection.

1. `serve_forever()` runs the accept loop in the thread that calls it. The loop never waits for a
   peer: it takes a connection, checks the limits, starts a thread. Whatever goes wrong there (no
   descriptors, no memory, no thread, a client gone too soon) is logged and the loop goes on.
2. The connection's thread does the TLS handshake, builds the `connection` dict, asks `on_connect`,
   and then serves one request after the other (`_serve_requests()`): read a preamble, parse it,
   call the application, check and format what it returned, write it.
3. `shutdown()` wakes the accept loop, which stops accepting, ends idle connections, lets running
   requests end and new connections make their first, and cuts off what is left when the time is up.
4. With `workers`, `serve_forever()` forks that many processes, which do all of this on the one
   socket, and looks after them.

Threads and locks: `_connections`, `_per_host` and `_handshakes` are shared by the accept loop and
the connections' threads and guarded by `_lock`. All else is set once.

The application is called as `degu.rgi` describes. An error of the peer is answered with its status
and ends the connection; an error of the application is logged and answered with 500 and no detail.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
from collections import Counter
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from degu import net
from degu.bodies import (
    JOIN_SIZE,
    ChunkedInput,
    ChunkedOutput,
    FileOutput,
    Input,
    Output,
    body_length,
    write_message,
)
from degu.channel import LINGER_SIZE, Channel
from degu.errors import (
    BodyTooLargeError,
    ClosedConnectionError,
    DeguError,
    PeerTimeoutError,
    ProtocolError,
)
from degu.limits import build_limits
from degu.stop import DEFAULT_TIMEOUT_S, Stop
from degu.tls import build_server_sslctx, check_server_sslctx
from degu.wire import (
    BODILESS_STATUSES,
    METHODS,
    closes_connection,
    format_response,
    parse_request,
)
from degu.workers import Workers, start_successor

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from degu.bodies import Body
    from degu.rgi import App
    from degu.wire import HeaderValue

__all__ = ['SSLServer', 'Server', 'build_server_sslctx']

log = logging.getLogger('degu.server')
access_log = logging.getLogger('degu.server.access')

FIRST_REQUEST_TIMEOUT_S = 0.5
"""How long a connection that made no request yet has for that when a server shuts down: its client
may be about to send one, and could not know whether it was carried out."""
_CUT_OFF_TIMEOUT_S = 1.0
_MIN_BACKOFF_S = 0.01
_MAX_BACKOFF_S = 0.1
_REFUSALS_PERIOD_S = 1.0
_CLOSED_BY_CLIENT = 'closed by the client'
_SHUTS_DOWN = 'the server shuts down'
_REASONS = {
    400: 'Bad Request',
    405: 'Method Not Allowed',
    413: 'Content Too Large',
    417: 'Expectation Failed',
    431: 'Request Header Fields Too Large',
    500: 'Internal Server Error',
}


class _Phase(Enum):
    """What a connection is doing, which decides what a shutdown does with it."""

    NEW = 'before its first request'
    BUSY = 'inside a request'
    IDLE = 'between requests'


class _Connection:
    """What the accept loop needs to know of a connection that a thread serves."""

    __slots__ = ('address', 'phase', 'sock', 'thread')

    def __init__(self, sock: socket.socket, address: net.Address) -> None:
        self.sock = sock
        self.address = address
        self.phase = _Phase.NEW
        self.thread: threading.Thread | None = None

    @property
    def host(self) -> str | None:
        """The IP address that is counted, None for AF_UNIX."""
        return self.address[0] if isinstance(self.address, tuple) else None

    def interrupt(self, how: int) -> None:
        """Wake the thread that waits for the peer; it then sees the end of the connection."""
        with contextlib.suppress(OSError):  # already gone
            socket.socket.shutdown(self.sock, how)  # SSLSocket's own would disturb its thread


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
        self._not_before_s = monotonic() + _REFUSALS_PERIOD_S

    def wait_ms(self) -> float | None:
        """Return after how long log() may have something to say; None if it has nothing."""
        return _REFUSALS_PERIOD_S * 1000 if self._count else None


class Server:
    """An HTTP server for one application at one address.

    A context manager: serves in a thread of its own and shuts down at the end.
    """

    # Set once: app, _on_connect, limits, workers, address, _listener, _socket_file, _stop; and anew
    # in each worker process before it serves: workers, _socket_file, _stop.
    # Guarded by _lock: _connections, _per_host, _handshakes.
    # The accept loop's own: _refusals.

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
        self._successor: subprocess.Popen[bytes] | None = None
        try:
            self.address: net.Address = self._listener.getsockname()
        except BaseException:
            self.close()
            raise
        self._lock = threading.Lock()
        self._connections: dict[_Connection, None] = {}
        self._per_host: dict[str, int] = {}
        self._handshakes: dict[_Connection, None] = {}
        self._refusals = _Refusals(self.address)
        self._thread: threading.Thread | None = None

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
        if self._successor is not None and self._successor.poll() is None:
            file = None  # the successor's by now
        with contextlib.ExitStack() as stack:
            stack.callback(net.remove_socket_file, file)
            stack.callback(self._stop.close)
            stack.callback(self._listener.close)

    def shutdown(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Ask the server to stop; serve_forever() returns when it has.

        Running requests have `timeout_s` to end, idle connections end at once. From any thread or
        signal handler: it takes no lock and does not wait.

        Raises TypeError or ValueError for a time that cannot be waited.
        """
        self._stop.request(timeout_s)

    def start_successor(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program that listens on the same socket, given to it as `net.inherited(0)`.

        Both accept until this server is shut down, so no connection is refused: do that once the
        program says that it serves. The file of a unix socket is then its to remove. `options` are
        those of subprocess.Popen.

        Raises OSError if Python cannot be started; that `command` cannot is seen by its end.
        """
        self._successor = start_successor(self._listener.fileno(), command, options)
        return self._successor

    # --- the accept loop -------------------------------------------------------------------------

    def serve_forever(self, lifeline: int | None = None) -> None:
        """Accept connections until shutdown(), then end them in order.

        `lifeline` is the descriptor of a pipe's reading end: the end of the pipe asks for a
        shutdown, too.

        Raises RuntimeError for workers beside other threads.
        """
        if lifeline is not None:
            self._stop.follow(lifeline)
        workers = Workers(self.workers, self._serve_as_worker)
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

    def _serve_as_worker(self, lifeline: int) -> None:
        """Serve in a forked process, which has a copy of all that the parent has."""
        self._stop.close()
        self._stop = Stop()
        self._socket_file = None  # the parent's to remove
        self.workers = 1
        self.serve_forever(lifeline)

    def _accept_all(self) -> None:
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        self._stop.register(poller)
        pause = select.poll()
        self._stop.register(pause)
        backoff_s = _MIN_BACKOFF_S
        while not self._stop.requested:
            try:
                self._stop.note(poller.poll(self._refusals.wait_ms()))
                self._refusals.log()
                self._accept()
                backoff_s = _MIN_BACKOFF_S
            except (OSError, RuntimeError, MemoryError) as error:
                # No descriptor, memory or thread left: that passes, this loop must not.
                log.warning('%r: cannot accept, trying again: %s', self.address, error)
                self._stop.note(pause.poll(backoff_s * 1000))
                backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # woken for another reason, or the client is gone already
        conn = _Connection(sock, address)
        refusal = self._admit(conn)
        if refusal is not None:
            self._refusals.add(address, refusal)
            sock.close()
            return
        # Daemon: serve_forever() waits for it as long as it was told and says if it goes on; the
        # interpreter must not wait again, for ever, for a request that hangs.
        conn.thread = threading.Thread(
            target=self._run, args=(conn,), name='degu.connection', daemon=True
        )
        try:
            conn.thread.start()
        except (RuntimeError, MemoryError):
            self._forget(conn)
            sock.close()
            raise

    def _admit(self, conn: _Connection) -> str | None:
        """Count a connection in, or return which limit is reached."""
        limits = self.limits
        with self._lock:
            if len(self._connections) >= limits.max_connections:
                return f'max_connections={limits.max_connections}'
            host = conn.host
            if host is not None:
                count = self._per_host.get(host, 0)
                if count >= limits.max_connections_per_address:
                    return f'max_connections_per_address={limits.max_connections_per_address}'
                self._per_host[host] = count + 1
            self._connections[conn] = None
            self._expect_handshake(conn)
        return None

    def _expect_handshake(self, conn: _Connection) -> None:
        """Count a handshake in, `_lock` held; nothing to do without TLS."""

    def _forget(self, conn: _Connection) -> None:
        with self._lock:
            del self._connections[conn]
            self._handshakes.pop(conn, None)
            host = conn.host
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
            connections = list(self._connections)
        deadline = net.Deadline(self._stop.timeout_s)
        self._interrupt_all(connections, _Phase.IDLE)
        if _join_all(connections, min(FIRST_REQUEST_TIMEOUT_S, self._stop.timeout_s)):
            self._interrupt_all(connections, _Phase.NEW)
        if _join_all(connections, deadline.remaining()):
            for conn in connections:
                conn.interrupt(socket.SHUT_RDWR)
            stuck = _join_all(connections, _CUT_OFF_TIMEOUT_S)
            if stuck:
                log.error('%r: %d requests did not end at shutdown', self.address, stuck)

    def _interrupt_all(self, connections: list[_Connection], phase: _Phase) -> None:
        with self._lock:
            interrupted = [conn for conn in connections if conn.phase is phase]
            for conn in interrupted:
                self._handshakes.pop(conn, None)
        for conn in interrupted:
            conn.interrupt(socket.SHUT_RD)

    # --- one connection, in its own thread -------------------------------------------------------

    def _run(self, conn: _Connection) -> None:
        try:
            self._serve_connection(conn)
        finally:
            self._forget(conn)  # last: a shutdown does not wait for what comes after it

    def _serve_connection(self, conn: _Connection) -> None:
        """Serve one connection to its end and log how that came."""
        started = monotonic()
        connection: dict[str, Any] = {
            'scheme': self.scheme,
            'protocol': 'HTTP/1.1',
            'server': self.address,
            'client': conn.address,
            'requests': 0,
            'rgi.Output': Output,
            'rgi.ChunkedOutput': ChunkedOutput,
            'rgi.FileOutput': FileOutput,
        }
        try:
            try:
                ending = self._serve(conn, connection)
            finally:
                conn.sock.close()
        except (DeguError, OSError) as error:
            ending = str(error) or type(error).__name__
            # The channel or a body remembers it, and it the frames with all that the application
            # has: a proxy's upstream would go on sending until the next garbage collection.
            for remembered in (error, error.__cause__):
                if remembered is not None:
                    remembered.__traceback__ = None
        except Exception:
            ending = 'an error'
            log.exception('%r: %r: ended by an error', self.address, conn.address)
        log.info(
            '%r: %r: %d requests in %.3f s: %s',
            self.address,
            conn.address,
            connection['requests'],
            monotonic() - started,
            ending,
        )

    def _serve(self, conn: _Connection, connection: dict[str, Any]) -> str:
        """Prepare and serve one connection; return or raise why it ended."""
        self._prepare(conn, connection)
        channel = Channel(conn.sock, self.limits)
        ending = self._ask_on_connect(conn, connection)
        if ending is None:
            try:
                ending = self._serve_requests(conn, channel, connection)
            except ProtocolError as error:
                ending = _refuse(channel, error)
            except BodyTooLargeError as error:
                _answer(channel, 413, f'{error}\n')
                ending = f'413 {error}'
        if ending != _CLOSED_BY_CLIENT:
            channel.close_orderly()
        return ending

    def _ask_on_connect(self, conn: _Connection, connection: dict[str, Any]) -> str | None:
        """Return why the application does not want this connection, None if it does."""
        if self._on_connect is None:
            return None
        try:
            if self._on_connect(conn.sock, connection) is True:
                return None
        except Exception:
            log.exception('%r: %r: on_connect failed', self.address, conn.address)
            return 'on_connect failed'
        return 'rejected by on_connect'

    def _prepare(self, conn: _Connection, connection: dict[str, Any]) -> None:
        """Make the socket ready for requests and say in `connection` who is there."""
        if conn.sock.family == socket.AF_UNIX:
            connection['credentials'] = net.read_credentials(conn.sock)
        else:
            net.disable_delay(conn.sock)

    def _serve_requests(
        self, conn: _Connection, channel: Channel, connection: dict[str, Any]
    ) -> str:
        """Serve requests until the connection ends, and return why it did.

        Raises ProtocolError, to be answered, as long as no response was begun, and what reading and
        writing raises.
        """
        app = self.app
        limits = self.limits
        requests_left = limits.max_requests
        log_access = access_log.isEnabledFor(logging.DEBUG)
        busy, idle = _Phase.BUSY, _Phase.IDLE  # an Enum takes its time to look them up
        while True:
            preamble = channel.read_preamble()
            if preamble is None:
                return _SHUTS_DOWN if self._stop.requested else _CLOSED_BY_CLIENT
            conn.phase = busy
            try:
                method, path, query, headers = parse_request(preamble, limits)
            except ProtocolError as error:
                return _refuse(channel, error, is_head=preamble.startswith(b'HEAD '))
            request_body: Input | ChunkedInput | None = None
            if 'content-length' in headers:
                request_body = Input(channel, headers['content-length'])  # type: ignore[arg-type]  # an int, see parse_request
            elif 'transfer-encoding' in headers:
                request_body = ChunkedInput(channel)
            has_host = 'host' in headers
            is_last = 'connection' in headers and closes_connection(headers)
            try:
                response = app(
                    connection,
                    {
                        'method': method,
                        'script': [],
                        'path': path,
                        'query': query,
                        'headers': headers,
                        'body': request_body,
                    },
                )
                try:
                    status, reason, response_headers, body = response
                except (TypeError, ValueError):
                    raise TypeError(
                        f'an app returns (status, reason, headers, body), not {response!r}'
                    ) from None
                length = len(body) if type(body) is bytes else body_length(body)
                if request_body is not None and not request_body.closed:
                    response_headers = _announce_end(request_body, response_headers, body)
                if has_host and length is None and method != 'HEAD':
                    # A generic client would wait for a body until the connection ends.
                    length = None if status in BODILESS_STATUSES else 0
                preamble = format_response(status, reason, response_headers, length, method)
            except Exception as error:
                if request_body is not None and request_body.error is error:
                    raise
                log.exception('%r: %r: %s /%s', self.address, conn.address, method, '/'.join(path))
                _answer(channel, 500)
                return '500 an error of the application'
            try:
                if type(body) is bytes and len(body) <= JOIN_SIZE:
                    channel.write(preamble + body)
                else:
                    _write_response(channel, preamble, body)
            except Exception as error:
                if error is channel.write_error:
                    raise
                if request_body is None or request_body.error is not error:
                    log.exception(
                        '%r: %r: %s /%s: the body failed',
                        self.address,
                        conn.address,
                        method,
                        '/'.join(path),
                    )
                # It was begun and cannot be answered anew: its client would read that as the body.
                channel.close_orderly()
                raise ClosedConnectionError('the response was cut off') from error
            connection['requests'] += 1
            if log_access:
                access_log.debug('%r: %s /%s: %d', conn.address, method, '/'.join(path), status)
            if is_last or (
                'connection' in response_headers and closes_connection(response_headers)
            ):
                return 'connection: close'
            if (  # drain() alone would do; most bodies were read, and then no call is needed
                request_body is not None
                and not (request_body.closed and request_body.error is None)
                and not request_body.drain(LINGER_SIZE)
            ):
                return 'the request body was not read'
            if requests_left is not None:
                requests_left -= 1
                if not requests_left:
                    return f'max_requests={limits.max_requests}'
            conn.phase = idle
            if self._stop.requested:
                return _SHUTS_DOWN


class SSLServer(Server):
    """An HTTPS server for one application at one address."""

    scheme = 'https'

    def __init__(
        self,
        sslctx: ssl.SSLContext,
        address: net.Address | net.Inherited,
        app: App,
        *,
        workers: int = 1,
        **options: Any,
    ) -> None:
        """Listen at `address`; `sslctx` is what build_server_sslctx() makes. See Server.

        Raises TypeError or ValueError for an argument that cannot be, a lax context included,
        OSError from the system.
        """
        self._sslctx = check_server_sslctx(sslctx)
        super().__init__(address, app, workers=workers, **options)

    @property
    def sslctx(self) -> ssl.SSLContext:
        """The context of the next handshake; another one may be set at any time.

        Setting one raises TypeError or ValueError if it is lax.
        """
        return self._sslctx

    @sslctx.setter
    def sslctx(self, sslctx: ssl.SSLContext) -> None:
        self._sslctx = check_server_sslctx(sslctx)

    def _expect_handshake(self, conn: _Connection) -> None:
        if len(self._handshakes) >= self.limits.max_handshakes:
            # Of the address that has the most, the one that took longest is the least likely to be
            # honest; one address alone can then not push the others out.
            counts = Counter(each.host for each in self._handshakes)
            busiest = max(counts, key=counts.__getitem__)
            oldest = next(each for each in self._handshakes if each.host == busiest)
            del self._handshakes[oldest]
            oldest.interrupt(socket.SHUT_RDWR)
        self._handshakes[conn] = None

    def _prepare(self, conn: _Connection, connection: dict[str, Any]) -> None:
        super()._prepare(conn, connection)
        conn.sock.settimeout(self.limits.handshake_timeout_s)
        sock = self._sslctx.wrap_socket(
            conn.sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        conn.sock = sock
        try:
            # An interrupt() before the line above met the socket that was wrapped, and was lost.
            with self._lock:
                is_expected = conn in self._handshakes
            if not is_expected:
                raise ClosedConnectionError('the TLS handshake was ended before it began')
            sock.do_handshake()
        except TimeoutError:
            raise PeerTimeoutError('a TLS handshake', self.limits.handshake_timeout_s) from None
        except OSError:
            # Let the client read the alert that says why.
            Channel(sock, self.limits).close_orderly()
            raise
        with self._lock:
            self._handshakes.pop(conn, None)
        if sock.session_reused:
            raise ClosedConnectionError('a resumed TLS session is not accepted')
        connection['ssl_cipher'] = sock.cipher()
        connection['ssl_compression'] = sock.compression()
        connection['ssl_peer_cert'] = sock.getpeercert(True)


def _join_all(connections: list[_Connection], timeout_s: float) -> int:
    """Wait for the connections' threads; return how many go on."""
    deadline = net.Deadline(timeout_s)
    for conn in connections:
        if conn.thread is not None:
            conn.thread.join(deadline.remaining())
    return sum(conn.thread is not None and conn.thread.is_alive() for conn in connections)


def _announce_end(
    request_body: Input | ChunkedInput, headers: Mapping[str, HeaderValue], body: Body
) -> Mapping[str, HeaderValue]:
    """Say `connection: close` where more is unread than will be. Source: RFC 9112 §9.6."""
    if (
        isinstance(request_body, Input)
        and request_body.remaining > LINGER_SIZE
        and (body is None or isinstance(body, bytes | bytearray))  # others may read it yet
    ):
        return {**headers, 'connection': 'close'}
    return headers


def _write_response(channel: Channel, preamble: bytes, body: Body) -> None:
    """Write a response; the source of its body is closed then, however that came, if it can be."""
    try:
        write_message(channel, preamble, body)
    finally:
        if isinstance(body, (Output, ChunkedOutput)):
            close = getattr(body.source, 'close', None)
            if close is not None:
                close()


def _refuse(channel: Channel, error: ProtocolError, *, is_head: bool = False) -> str:
    """Answer a request outside the subset and return why the connection ends."""
    # RFC 9110 §9.3.2: a response to HEAD has no body, whatever it says.
    _answer(channel, error.status, '' if is_head else f'{error}\n')
    return f'{error.status} {error}'


def _answer(channel: Channel, status: int, text: str = '') -> None:
    """Answer with an error of our own and say that the connection ends."""
    headers: dict[str, Any] = {'connection': 'close'}
    if status == 405:
        headers['allow'] = ', '.join(sorted(METHODS))  # RFC 9110 §15.5.6
    if text:
        headers['content-type'] = 'text/plain; charset=utf-8'
    body = text.encode()
    preamble = format_response(status, _REASONS[status], headers, len(body), '')
    write_message(channel, preamble, body)
