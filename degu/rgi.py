"""RGI, the REST Gateway Interface: what a server and an application owe each other.

An application is a callable `app(connection, request)` that returns
`(status, reason, headers, body)`. It may have an `on_connect(sock, connection)`, called once for a
connection before any request; the connection goes on only if it returns True.

`connection` is a dict, one for each connection:

    scheme            'http' or 'https'
    protocol          'HTTP/1.1'
    server, client    addresses
    requests          how many were handled on this connection so far
    rgi.Output, rgi.ChunkedOutput, rgi.FileOutput    the classes to build response bodies with
    ssl_cipher, ssl_compression    with TLS
    ssl_peer_cert     with TLS: the client's verified certificate (DER bytes), or None
    credentials       on AF_UNIX: pid, uid, gid of who connected

and, from this server, what another may not have:

    rgi.set_deadline      a function: end each wait for this client at a `degu.net.Deadline`, until
                          the response is written; PeerTimeoutError tells it. None takes it away
    rgi.is_client_gone    a function: whether the client ended its side of the connection by now

`on_connect` may add keys that start with `_`, a request handler keys that start with `__`.

`request` is a dict:

    method            'GET', 'HEAD', 'PUT', 'POST' or 'DELETE'
    script, path      lists of segments as they were sent; routing moves them from path to script
    query             '' when there is none
    headers           casefolded names; `content-length` is an int, `range` a Range,
                      `content-range` a ContentRange, all else str
    body              None, Input or ChunkedInput

The response is a tuple of status (200 to 599), reason (not empty), headers (casefolded names; the
server adds the framing header) and body: None, bytes, bytearray, Output, ChunkedOutput, FileOutput,
or an Input or ChunkedInput that came with a client's response.

`Validator` is an application around another that checks both sides of all this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from degu import wire
from degu.bodies import Body, ChunkedInput, Input, body_length
from degu.errors import BodyClosedError, DeguError
from degu.net import Credentials, parse_address
from degu.wire import ContentRange, Range

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

__all__ = ['App', 'ContentRange', 'OnConnect', 'Range', 'Response', 'ValidationError', 'Validator']

Response = tuple[int, str, 'Mapping[str, wire.HeaderValue]', Body]
App = Callable[[dict[str, Any], dict[str, Any]], Response]


class OnConnect(Protocol):
    """An application that looks at a connection before its first request."""

    def on_connect(self, sock: socket.socket, connection: dict[str, Any]) -> bool:
        """Return True to let the connection go on."""


class ValidationError(DeguError):
    """One side broke the contract; the message says which, where and what was there instead."""


_CONNECTION_TYPES: dict[str, type | tuple[type, ...]] = {
    'scheme': str,
    'protocol': str,
    'server': (tuple, str, bytes),
    'client': (tuple, str, bytes),
    'requests': int,
    'rgi.Output': type,
    'rgi.ChunkedOutput': type,
    'rgi.FileOutput': type,
}
_OPTIONAL_TYPES: dict[str, type | tuple[type, ...]] = {
    'rgi.set_deadline': Callable,  # type: ignore[dict-item]  # isinstance() takes it
    'rgi.is_client_gone': Callable,  # type: ignore[dict-item]
}
_TLS_TYPES: dict[str, type | tuple[type, ...]] = {
    'ssl_cipher': tuple,
    'ssl_compression': (str, type(None)),
    'ssl_peer_cert': (bytes, type(None)),
}
_REQUEST_TYPES: dict[str, type | tuple[type, ...]] = {
    'method': str,
    'script': list,
    'path': list,
    'query': str,
    'headers': dict,
    'body': (Input, ChunkedInput, type(None)),
}
_HEADER_TYPES: dict[str, type] = {
    'content-length': int,
    'range': Range,
    'content-range': ContentRange,
}


def _require(holds: object, what: str, value: object) -> None:
    if not holds:
        raise ValidationError(f'{what}, not {value!r}')


class Validator:
    """Middleware that checks the server's and the application's side of the contract, for tests."""

    def __init__(self, app: App) -> None:
        """Wrap `app`. Raises TypeError if it, or its on_connect, is not callable."""
        if not callable(app):
            raise TypeError(f'app must be callable, not {app!r}')
        on_connect = getattr(app, 'on_connect', None)
        if on_connect is not None and not callable(on_connect):
            raise TypeError(f'app.on_connect must be callable, not {on_connect!r}')
        self.app = app
        self._on_connect = on_connect

    def on_connect(self, sock: socket.socket, connection: dict[str, Any]) -> bool:
        """Check `connection` before and after the application's on_connect.

        Raises ValidationError.
        """
        check_connection(connection)
        _require(
            connection['requests'] == 0, "connection['requests'] must be 0", connection['requests']
        )
        if self._on_connect is None:
            return True
        before = set(connection)
        result = self._on_connect(sock, connection)
        _require(isinstance(result, bool), 'on_connect must return True or False', result)
        wrong = [k for k in set(connection) - before if not k.startswith('_') or k.startswith('__')]
        _require(not wrong, 'on_connect may only add keys that start with one "_"', wrong)
        return bool(result)

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Check `connection` and `request`, call the application, check its response.

        Raises ValidationError.
        """
        check_connection(connection)
        check_request(request)
        before = set(connection)
        method = request['method']
        target = request['script'] + request['path']
        response = self.app(connection, request)
        wrong = [key for key in set(connection) - before if not key.startswith('__')]
        _require(not wrong, 'a request handler may only add keys that start with "__"', wrong)
        moved = request['script'] + request['path']
        _require(moved == target, f'script + path must stay {target!r}', moved)
        check_response(response, method)
        return response


def _check_types(
    what: str, value: dict[str, Any], types: Mapping[str, type | tuple[type, ...]]
) -> None:
    for name, kind in types.items():
        _require(name in value, f'{what} must have {name!r}', sorted(value))
        _require(
            isinstance(value[name], kind) and not isinstance(value[name], bool),
            f'{what}[{name!r}] must be {kind}',
            value[name],
        )


def check_connection(connection: dict[str, Any]) -> None:
    """Check what a server says of a connection. Raises ValidationError."""
    _require(isinstance(connection, dict), 'connection must be a dict', connection)
    _check_types('connection', connection, _CONNECTION_TYPES)
    offered = {name: kind for name, kind in _OPTIONAL_TYPES.items() if name in connection}
    _check_types('connection', connection, offered)
    scheme = connection['scheme']
    _require(scheme in ('http', 'https'), "connection['scheme'] must be 'http' or 'https'", scheme)
    protocol = connection['protocol']
    _require(protocol == 'HTTP/1.1', "connection['protocol'] must be 'HTTP/1.1'", protocol)
    _require(connection['requests'] >= 0, "connection['requests'] must not be negative", connection)
    try:
        parse_address(connection['server'])
    except (TypeError, ValueError) as error:
        raise ValidationError(f"connection['server']: {error}") from error
    if scheme == 'https':
        _check_types('connection', connection, _TLS_TYPES)
    if isinstance(connection['server'], str | bytes):
        _check_types('connection', connection, {'credentials': Credentials})


def check_request(request: dict[str, Any]) -> None:
    """Check what a server, or a router before the application, made of a request.

    Raises ValidationError.
    """
    _require(isinstance(request, dict), 'request must be a dict', request)
    _check_types('request', request, _REQUEST_TYPES)
    method = request['method']
    _require(method in wire.METHODS, f"request['method'] must be one of {wire.METHODS}", method)
    for name in ('script', 'path'):
        for segment in request[name]:
            _require(
                isinstance(segment, str) and '/' not in segment,
                f'request[{name!r}] must hold segments',
                request[name],
            )
    body = request['body']
    _require(body is None or method in wire.BODY_METHODS, f'a {method} request has no body', body)
    _check_headers('request', request['headers'])
    try:
        length = body_length(body)
    except BodyClosedError as error:
        raise ValidationError(f'request: {error}') from error
    _check_framing('request', request['headers'], length)


def check_response(response: Response, method: str) -> None:
    """Check what an application returned to a request of `method`. Raises ValidationError."""
    _require(
        isinstance(response, tuple) and len(response) == 4,
        'a response must be a tuple (status, reason, headers, body)',
        response,
    )
    status, reason, headers, body = response
    _check_headers('response', headers)
    try:
        length = body_length(body)
        wire.format_response(status, reason, headers, length, method)
    except (TypeError, ValueError, BodyClosedError) as error:
        raise ValidationError(f'response: {error}') from error


def _check_headers(what: str, headers: object) -> None:
    _require(isinstance(headers, dict), f"{what}['headers'] must be a dict", headers)
    assert isinstance(headers, dict)
    for name, value in headers.items():
        _require(
            isinstance(name, str) and name == name.casefold(),
            f'a header name of the {what} must be a casefolded str',
            name,
        )
        kind = _HEADER_TYPES.get(name, str)
        _require(
            type(value) is kind
            or (what == 'response' and name != 'content-length' and type(value) is str),
            f"{what}['headers'][{name!r}] must be {kind.__name__}",
            value,
        )


def _check_framing(what: str, headers: dict[str, Any], length: int | None) -> None:
    stated: int | None = headers.get('content-length')
    if 'transfer-encoding' in headers:
        _require(stated is None, f'the {what} must not have both framing headers', headers)
        stated = wire.CHUNKED
    _require(stated == length, f'the framing headers of the {what} must fit its body', headers)
