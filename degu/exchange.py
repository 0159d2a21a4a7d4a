"""What happens on one connection of a server: requests and their responses, one after the other.

1. `serve_requests()` runs in the connection's thread. It reads a preamble, parses it, calls the
   application as `degu.rgi` describes, checks and formats what it returned, and writes it.
2. An error of the peer is answered with its status and ends the connection; an error of the
   application is logged and answered with 500 and no detail.
3. `ServedClient` is what a shutdown looks at from outside: who is there, and in which phase.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from enum import Enum
from typing import TYPE_CHECKING, Any

from degu.bodies import (
    JOIN_SIZE,
    ChunkedInput,
    Input,
    body_length,
    close_source,
    write_message,
)
from degu.channel import LINGER_SIZE
from degu.errors import BodyTooLargeError, ClosedConnectionError, ProtocolError
from degu.repeats import RequestParser, ResponseFormatter
from degu.wire import (
    BODILESS_STATUSES,
    METHODS,
    closes_connection,
    format_response,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from degu.bodies import Body
    from degu.channel import Channel
    from degu.net import Address, Credentials
    from degu.rgi import App
    from degu.stop import Stop
    from degu.wire import HeaderValue

log = logging.getLogger('degu.server')
access_log = logging.getLogger('degu.server.access')

CLOSED_BY_CLIENT = 'closed by the client'
WENT_AWAY = 'the client went away'
SHUTS_DOWN = 'the server shuts down'
_REASONS = {
    400: 'Bad Request',
    405: 'Method Not Allowed',
    413: 'Content Too Large',
    417: 'Expectation Failed',
    431: 'Request Header Fields Too Large',
    500: 'Internal Server Error',
}


class Phase(Enum):
    """What a connection is doing, which decides what a shutdown does with it."""

    NEW = 'before its first request'
    BUSY = 'inside a request'
    IDLE = 'between requests'


class ServedClient:
    """What the accept loop needs to know of a client whose connection a thread serves."""

    __slots__ = ('address', 'credentials', 'is_to_end', 'phase', 'sock', 'thread')

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self.sock = sock
        self.address = address
        self.credentials: Credentials | None = None  # with AF_UNIX
        self.phase = Phase.NEW
        self.is_to_end = False  # before it begins another request
        self.thread: threading.Thread | None = None

    @property
    def host(self) -> str | None:
        """The IP address that is counted, None for AF_UNIX."""
        return self.address[0] if isinstance(self.address, tuple) else None

    def __str__(self) -> str:
        """Return what the log calls it: the address of most clients on AF_UNIX is empty."""
        if self.credentials is None:
            return repr(self.address)
        return f'pid {self.credentials.pid}, uid {self.credentials.uid}'

    def interrupt(self, how: int) -> None:
        """Wake the thread that waits for the peer; it then sees the end of the connection."""
        with contextlib.suppress(OSError):  # already gone
            socket.socket.shutdown(self.sock, how)  # SSLSocket's own would disturb its thread


def serve_requests(
    client: ServedClient, channel: Channel, connection: dict[str, Any], app: App, stop: Stop
) -> str:
    """Serve requests until the connection ends, and return why it did.

    Raises PeerTimeoutError, ClosedConnectionError, UnderFlowError or OSError where it ended early.
    """
    try:
        return _serve_requests(client, channel, connection, app, stop)
    except ProtocolError as error:
        return _refuse(channel, error)
    except BodyTooLargeError as error:
        _answer(channel, 413, f'{error}\n')
        return f'413 {error}'


def _serve_requests(
    client: ServedClient, channel: Channel, connection: dict[str, Any], app: App, stop: Stop
) -> str:
    """Serve requests until the connection ends, and return why it did.

    Raises ProtocolError or BodyTooLargeError, to be answered, as long as no response was begun, and
    what reading and writing raises.
    """
    limits = channel.limits
    requests_left = limits.max_requests
    parse_request = RequestParser(limits).parse
    format_preamble = ResponseFormatter().format
    log_access = access_log.isEnabledFor(logging.DEBUG)
    busy, idle = Phase.BUSY, Phase.IDLE  # an Enum takes its time to look them up
    while True:
        preamble = None
        try:
            preamble = channel.read_preamble()
            if preamble is None:
                return SHUTS_DOWN if stop.requested else CLOSED_BY_CLIENT
            client.phase = busy
            if client.is_to_end:
                return SHUTS_DOWN
            method, path, query, headers = parse_request(preamble)
        except ProtocolError as error:
            return _refuse(channel, error, preamble or channel.buffered)
        request_body: Input | ChunkedInput | None = None
        if 'content-length' in headers:
            request_body = Input(channel, headers['content-length'])  # type: ignore[arg-type]  # an int, see parse_request
        elif 'transfer-encoding' in headers:
            request_body = ChunkedInput(channel)
        has_host = 'host' in headers
        is_last = 'connection' in headers and closes_connection(headers)
        body: Body = None
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
            preamble = format_preamble(status, reason, response_headers, length, method)
        except (Exception, SystemExit) as error:
            if request_body is not None and request_body.error is error:
                raise
            log.exception('%r: %s: %s /%s', connection['server'], client, method, '/'.join(path))
            try:
                _answer(channel, 500)
            finally:
                close_source(body)
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
                    '%r: %s: %s /%s: the body failed',
                    connection['server'],
                    client,
                    method,
                    '/'.join(path),
                )
            # It was begun and cannot be answered anew: its client would read that as the body.
            channel.close_orderly()
            raise ClosedConnectionError('the response was cut off') from error
        connection['requests'] += 1
        if channel.deadline is not None:  # that of the request that is over
            channel.deadline = None
        if log_access:
            access_log.debug('%s: %s /%s: %d', client, method, '/'.join(path), status)
        if is_last or ('connection' in response_headers and closes_connection(response_headers)):
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
        client.phase = idle
        if stop.requested:
            return SHUTS_DOWN


def _announce_end(
    request_body: Input | ChunkedInput, headers: Mapping[str, HeaderValue], body: Body
) -> Mapping[str, HeaderValue]:
    """Say `connection: close` where more is unread than we drop. Source: RFC 9112 §9.6."""
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
        close_source(body)


def _refuse(channel: Channel, error: ProtocolError, preamble: bytes = b'') -> str:
    """Answer a request outside the subset and return why the connection ends."""
    # RFC 9110 §9.3.2: a response to HEAD has no body, whatever it says.
    _answer(channel, error.status, '' if preamble.startswith(b'HEAD ') else f'{error}\n')
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
