"""The client: where and how to connect, and one connection's requests.

1. `Client` and `SSLClient` say where and how. They hold no socket and can be shared by threads.
2. `.connect()` gives a `Connection`: one socket, for one thread at a time.
3. `Connection.request()` writes one request, reads the preamble of its response and returns; the
   response's body is read by whoever made the request, before the next one.

The client never follows a redirect, never decompresses, never retries by itself.
"""

from __future__ import annotations

import io
import socket
import ssl
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from degu import net
from degu.bodies import JOIN_SIZE, Body, ChunkedInput, FileOutput, Input, body_length, write_message
from degu.channel import LOOK_INTERVAL_S, AnsweredEarlyError, Channel
from degu.errors import (
    ClosedConnectionError,
    PeerRejectedError,
    PeerTimeoutError,
    ProtocolError,
    UnconsumedResponseError,
)
from degu.limits import CONNECT_TIMEOUT_S, DEFAULT_LIMITS, DEFAULT_TIMEOUT_S, check_timeout
from degu.repeats import RequestFormatter, ResponseParser
from degu.tls import (
    UnverifiedCertificateError,
    build_client_sslctx,
    check_client_sslctx,
    find_rejection,
)
from degu.wire import (
    BODILESS_STATUSES,
    Headers,
    HeaderValue,
    closes_connection,
    format_request,
    parse_host,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from degu.bodies import Chunk

__all__ = [
    'Client',
    'Connection',
    'Response',
    'SSLClient',
    'build_client_sslctx',
    'create_client',
    'create_sslclient',
]

_UNFRAMED = 'a body must have a length or be chunked, not end with the connection'
# Twice as fast as calling a NamedTuple, and once a request.
_new_tuple = tuple.__new__


class Response(NamedTuple):
    """What a server answered; header names are casefolded, the body is still to be read."""

    status: int
    reason: str
    headers: Headers
    body: Input | ChunkedInput | None


class Connection:
    """One connection to a server, for one thread at a time.

    A context manager. Any error inside a request or the body of its response closes it; it is also
    closed when it and the body of its last response are collected. interrupt() alone may be called
    by other threads.
    """

    # Set once: _base_headers, _requests, _responses, _tls.
    # Changed by the thread that uses the connection: the rest.
    __slots__ = (
        '__weakref__',
        '_answered',
        '_base_headers',
        '_body',
        '_channel',
        '_ending',
        '_requests',
        '_responses',
        '_tls',
    )

    def __init__(self, channel: Channel, base_headers: Headers) -> None:
        self._channel: Channel | None = channel
        self._base_headers = dict(base_headers)
        self._requests = RequestFormatter()
        self._responses = ResponseParser()
        self._tls = isinstance(channel.sock, ssl.SSLSocket)
        self._body: Input | ChunkedInput | None = None
        self._answered = False
        self._ending = False

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether the connection is closed, by close() or by an error."""
        return self._channel is None or self._channel.closed

    @property
    def peer_certificate(self) -> bytes | None:
        """The server's verified certificate (DER), None without TLS.

        Raises ClosedConnectionError.
        """
        if self._channel is None or self._channel.closed:
            raise ClosedConnectionError('the connection is closed')
        sock = self._channel.sock
        return sock.getpeercert(True) if isinstance(sock, ssl.SSLSocket) else None

    def set_deadline(self, deadline: net.Deadline | None) -> None:
        """End each wait for the server at `deadline` at the latest, with PeerTimeoutError.

        It counts beside the client's `timeout_s`, for this and further requests and their bodies,
        until it is set anew; None takes it away.

        Raises ClosedConnectionError.
        """
        if self._channel is None:
            raise ClosedConnectionError('the connection is closed')
        self._channel.deadline = deadline

    def set_chunk_timeout(self, timeout_s: float) -> None:
        """Let the server take `timeout_s` for a chunk to begin, in place of the client's own time.

        It is for a stream that may be silent for long: that the server is gone without a word is
        found out by the kernel then, in minutes. A deadline counts beside it.

        Raises TypeError or ValueError for a time that cannot be waited, ClosedConnectionError.
        """
        check_timeout('timeout_s', timeout_s)
        if self._channel is None:
            raise ClosedConnectionError('the connection is closed')
        self._channel.chunk_gap_s = timeout_s
        if self._channel.sock.family != socket.AF_UNIX:
            net.keep_alive(self._channel.sock)

    def is_server_gone(self) -> bool:
        """Look, without waiting, whether the server has ended the connection by now.

        Raises ClosedConnectionError.
        """
        if self._channel is None:
            raise ClosedConnectionError('the connection is closed')
        return self._channel.closed or self._channel.is_peer_gone()

    def interrupt(self) -> None:
        """End the connection, from any thread; the one that uses it sees an end or a reset.

        It is still that thread's to close. On a closed connection this does nothing.
        """
        channel = self._channel
        if channel is not None:
            channel.interrupt()

    def close(self) -> None:
        """Close the connection; a second time does nothing."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def request(
        self,
        method: str,
        uri: str,
        headers: Mapping[str, HeaderValue] | None = None,
        body: Body | io.BufferedReader = None,
    ) -> Response:
        """Make one request and return its response, whose body is not read yet.

        `uri` is a path with an optional query. `headers` have casefolded names and are not changed;
        they win over the client's base headers. The framing header is added. A BufferedReader is
        sent as a file, from its position to its end.

        Raises UnconsumedResponseError while the last response is unread, ClosedConnectionError when
        the connection is closed or the server closes it. After any other error the connection is
        closed: ValueError or TypeError for an argument outside the grammar (nothing was sent),
        OverFlowError, UnderFlowError or BodyClosedError from the body, ProtocolError for a response
        outside the subset, PeerTimeoutError, PeerRejectedError, OSError.
        """
        channel = self._channel
        if channel is None:
            raise ClosedConnectionError('the connection is closed; make a new one with connect()')
        unread = self._body
        if unread is not None:
            if not unread.closed and (isinstance(unread, ChunkedInput) or unread.remaining):
                raise UnconsumedResponseError(unread)
            if unread.error is not None:
                # What is left of that body would be taken for the next response.
                self.close()
                raise ClosedConnectionError('the last response could not be read to its end')
            self._body = None
        try:
            if self._ending:
                raise ClosedConnectionError(
                    'the server closed the connection after its last response'
                )
            if not headers:
                headers = self._base_headers
            elif self._base_headers:
                headers = {**self._base_headers, **headers}
            if type(body) is bytes:
                length: int | None = len(body)
            else:
                if isinstance(body, io.BufferedReader):
                    body = _build_file_output(body)
                length = body_length(body)
            preamble = self._requests.format(method, uri, headers, length)
            # Our own server says nothing unasked; others tell idle clients that they had enough.
            if channel.buffered or (self._answered and 'host' in headers):
                _check_silence(channel)
            if 'connection' in headers and closes_connection(headers):
                self._ending = True
            try:
                if type(body) is bytes and len(body) <= JOIN_SIZE:
                    channel.write(preamble + body)
                else:
                    write_message(channel, preamble, body)
            except OSError as error:
                if error is not channel.write_error or isinstance(error, PeerTimeoutError):
                    raise
                # It may have answered before it went, without waiting for the body. If it did not
                # go, it must not wait for the rest, and we for its answer.
                channel.end_writing()
            except AnsweredEarlyError:
                self._ending = True
                channel.end_writing()
            response = self._read_response(channel, method, headers)
        except BaseException:
            self.close()
            raise
        return response

    def _read_response(
        self, channel: Channel, method: str, sent: Mapping[str, HeaderValue]
    ) -> Response:
        try:
            preamble = channel.read_preamble()
        except (ConnectionResetError, ssl.SSLError) as error:
            if self._tls and not self._answered:
                raise find_rejection(error) or PeerRejectedError(
                    'the server did not accept our certificate, or that we have none '
                    f'({channel.write_error or error})'
                ) from error
            raise
        if preamble is None:
            if self._tls and not self._answered:
                raise find_rejection(channel.write_error) or PeerRejectedError(
                    'the server ended the connection before its first response; '
                    'if it does not let us in any more, its log says why'
                )
            raise channel.write_error or ClosedConnectionError(
                'the server closed the connection without an answer'
            )
        status, reason, headers = self._responses.parse(preamble)
        self._answered = True
        if channel.write_error is not None or (
            'connection' in headers and closes_connection(headers)
        ):
            self._ending = True
        body: Input | ChunkedInput | None = None
        if method == 'HEAD' or status in BODILESS_STATUSES:
            pass
        elif 'content-length' in headers:
            body = Input(channel, headers['content-length'])  # type: ignore[arg-type]  # an int, see parse_response
        elif 'transfer-encoding' in headers:
            body = ChunkedInput(channel)
        elif self._ending or 'host' in sent:
            # RFC 9112 §6.3 rule 8: a body until the end of the connection. Our own server alone
            # means that there is none, and to whoever sends a host it says so.
            self._ending = True
            if not channel.buffered and channel.read_some(1):
                raise ProtocolError(_UNFRAMED)
        if body is None and channel.buffered:
            # It could be cut short and nobody would know.
            raise ProtocolError(_UNFRAMED)
        self._body = body
        return _new_tuple(Response, (status, reason, headers, body))

    def until_answered(self, source: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield what `source` does until the server answers: the source of a ChunkedOutput.

        For a request to a server that reads all of its body before it answers: what comes earlier
        means that nobody reads the rest. request() sends no more of the body then and returns the
        response, after which the connection ends. It looks for the server's answer, and whether the
        time of set_deadline() is over, every 10 ms: before it sends a piece, and while that waits.
        A preamble alone is no answer: a server may send it ahead. Source: RFC 9112 §9.5.

        Raises ClosedConnectionError, PeerTimeoutError where the time is over, OSError.
        """
        if self._channel is None:
            raise ClosedConnectionError('the connection is closed')
        return _cut(source, self._channel)

    def get(self, uri: str, headers: Mapping[str, HeaderValue] | None = None) -> Response:
        """Make a GET request; see request()."""
        return self.request('GET', uri, headers)

    def head(self, uri: str, headers: Mapping[str, HeaderValue] | None = None) -> Response:
        """Make a HEAD request; see request()."""
        return self.request('HEAD', uri, headers)

    def delete(self, uri: str, headers: Mapping[str, HeaderValue] | None = None) -> Response:
        """Make a DELETE request; see request()."""
        return self.request('DELETE', uri, headers)

    def put(
        self,
        uri: str,
        headers: Mapping[str, HeaderValue] | None = None,
        body: Body | io.BufferedReader = None,
    ) -> Response:
        """Make a PUT request; see request()."""
        return self.request('PUT', uri, headers, body)

    def post(
        self,
        uri: str,
        headers: Mapping[str, HeaderValue] | None = None,
        body: Body | io.BufferedReader = None,
    ) -> Response:
        """Make a POST request; see request()."""
        return self.request('POST', uri, headers, body)


def _cut(source: Iterable[Chunk], channel: Channel) -> Iterator[Chunk]:
    channel.stops_when_answered = True
    try:
        looked_s = monotonic()
        for piece in source:
            now_s = monotonic()
            if now_s - looked_s >= LOOK_INTERVAL_S:
                looked_s = now_s
                channel.check_unanswered()
            yield piece
    finally:
        channel.stops_when_answered = False


def _check_silence(channel: Channel) -> None:
    """Refuse what a server sent before it was asked: it would be taken for the next answer."""
    early = channel.receive_early()
    if early:
        raise ProtocolError('the server sent something that is no answer to a request')
    if early is not None:
        raise ClosedConnectionError('the server closed the connection; nothing was sent')


def _build_file_output(fp: io.BufferedReader) -> FileOutput:
    position = fp.tell()
    size = fp.seek(0, io.SEEK_END)
    fp.seek(position)
    return FileOutput(fp, max(size - position, 0))


class Client:
    """Where and how to connect: an address, base headers, time limits. No socket, thread-safe."""

    def __init__(
        self,
        address: net.Address,
        base_headers: Mapping[str, HeaderValue] | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        connect_timeout_s: float | None = None,
    ) -> None:
        """Remember where and how to connect.

        `base_headers` go with every request. `timeout_s` bounds each wait for the server: the first
        byte of a response, its preamble, a chunk, a body's progress. `connect_timeout_s` bounds
        connecting, TLS handshake included: all together 10 s, or `timeout_s` if that is less,
        unless given.

        Raises TypeError or ValueError for an argument that cannot be.
        """
        net.parse_address(address)
        self.address = address
        self.base_headers: Headers = dict(base_headers or {})
        format_request('GET', '/', self.base_headers, None)
        self.timeout_s = check_timeout('timeout_s', timeout_s)
        if connect_timeout_s is None:
            connect_timeout_s = min(timeout_s, CONNECT_TIMEOUT_S)
        self.connect_timeout_s = check_timeout('connect_timeout_s', connect_timeout_s)
        self._limits = DEFAULT_LIMITS._replace(
            idle_timeout_s=timeout_s,
            preamble_timeout_s=timeout_s,
            body_window_s=timeout_s,
            chunk_gap_timeout_s=timeout_s,
        )

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.address!r})'

    def connect(self, deadline: net.Deadline | None = None) -> Connection:
        """Connect and return the connection.

        It takes `connect_timeout_s` at most, and no longer than to `deadline`, which counts for
        nothing further: see Connection.set_deadline(). Only the lookup of a name may take longer.

        Raises OSError where the system cannot connect, TimeoutError when the time is over, and over
        TLS tls.UnverifiedCertificateError for a certificate that is refused, ssl.SSLError for the
        rest.
        """
        if deadline is None:
            deadline = net.Deadline(self.connect_timeout_s)
        sock = self._open(deadline.within(self.connect_timeout_s))
        channel = Channel(sock, self._limits, closes_after_failed_body=True)
        return Connection(channel, self.base_headers)

    def _open(self, deadline: net.Deadline) -> socket.socket:
        sock = self._connect_socket(deadline)
        sock.settimeout(None)
        return sock

    def _connect_socket(self, deadline: net.Deadline) -> socket.socket:
        return net.connect(self.address, deadline.require())


class SSLClient(Client):
    """A client over TLS, with the certificate and the trust of its context."""

    def __init__(
        self,
        sslctx: ssl.SSLContext | Callable[[], ssl.SSLContext],
        address: net.Address,
        base_headers: Mapping[str, HeaderValue] | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        connect_timeout_s: float | None = None,
    ) -> None:
        """Remember where and how to connect; `sslctx` is what build_client_sslctx() makes.

        A function without arguments can be in its place: each connect() calls it.

        The name that the server must prove, where the context checks names, is the host of a `host`
        base header, or else the address's.

        Raises TypeError or ValueError for an argument that cannot be, a lax context included.
        """
        super().__init__(
            address, base_headers, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s
        )
        self.server_hostname = _find_hostname(address, self.base_headers)
        self.sslctx = sslctx if callable(sslctx) else self._check(sslctx)

    def _check(self, sslctx: ssl.SSLContext) -> ssl.SSLContext:
        check_client_sslctx(sslctx)
        if sslctx.check_hostname and self.server_hostname is None:
            raise ValueError(
                f'{self.address!r} has no host name to check; give a host in base_headers'
            )
        return sslctx

    def _open(self, deadline: net.Deadline) -> socket.socket:
        sslctx = self._check(self.sslctx()) if callable(self.sslctx) else self.sslctx
        sock = self._connect_socket(deadline)
        try:
            sock.settimeout(deadline.require())
            return sslctx.wrap_socket(sock, server_hostname=self.server_hostname)
        except BaseException as error:
            sock.close()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise UnverifiedCertificateError(error, datetime.now(UTC)) from error
            raise


def _find_hostname(address: net.Address, headers: Headers) -> str | None:
    host = headers.get('host')
    if isinstance(host, str):
        return urlsplit(f'//{host}').hostname
    return address[0] if isinstance(address, tuple) else None


def create_client(
    url: str,
    base_headers: Mapping[str, HeaderValue] | None = None,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    connect_timeout_s: float | None = None,
) -> Client:
    """Build a client from `http://host[:port]`, with a `host` base header.

    Raises ValueError for another kind of URL, and what Client() raises.
    """
    address, host = _parse_url(url, 'http', 80)
    return Client(
        address,
        {'host': host, **(base_headers or {})},
        timeout_s=timeout_s,
        connect_timeout_s=connect_timeout_s,
    )


def create_sslclient(
    sslctx: ssl.SSLContext,
    url: str,
    base_headers: Mapping[str, HeaderValue] | None = None,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    connect_timeout_s: float | None = None,
) -> SSLClient:
    """Build a client from `https://host[:port]`, with a `host` base header.

    Raises ValueError for another kind of URL, and what SSLClient() raises.
    """
    address, host = _parse_url(url, 'https', 443)
    return SSLClient(
        sslctx,
        address,
        {'host': host, **(base_headers or {})},
        timeout_s=timeout_s,
        connect_timeout_s=connect_timeout_s,
    )


def _parse_url(url: str, scheme: str, default_port: int) -> tuple[tuple[str, int], str]:
    parts = urlsplit(url)  # which drops line ends and tabs
    if not url.isprintable() or parts.scheme != scheme or not parts.hostname:
        raise ValueError(f'url must be like {scheme}://host:port, not {url!r}')
    if parts.path not in ('', '/') or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f'url must have nothing but a host and a port, not {url!r}')
    try:
        parse_host(parts.netloc)
    except ProtocolError as error:
        raise ValueError(f'{error}, in {url!r}') from None
    return (parts.hostname, parts.port or default_port), parts.netloc
