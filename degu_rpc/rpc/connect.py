"""Connect over HTTP/1.1: the RGI app that serves services, and the pieces its client shares.

    POST {prefix}/{service}/{method}     content-type: application/json or application/msgpack

The body is one map of named parameters, the response is the bare result in the same encoding.
Source: Connect protocol, "Unary (Request-Response) RPCs", with JSON and msgpack as its codecs.

1. What is no call is answered by HTTP alone: 404 without a service of that name, 405 with another
   verb than POST, 415 with another content type.
2. Who calls is what the connection says, `connection['_peer']`; they must be allowed to call the
   method before the body is read.
3. The body is read up to the limit, never further.
4. The method is called; its result is the response, and a RpcError is sent as JSON with the HTTP
   status of its code.

Where the body was not read, and may be large, the connection ends with the response. A peer that
breaks off inside its request is the server's to handle: there is nobody left to answer.

What it does not do: streams, GET, timeouts, compression (a request that has a `content-encoding` is
refused, as the protocol asks). May be called by many threads; everything is set once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from degu.bodies import ChunkedInput
from degu.errors import BodyTooLargeError
from degu_rpc.errors import Code, CodecError, RpcError, UnknownPeerError, escape_controls
from degu_rpc.peers import find_caller
from degu_rpc.rpc.codec import CODECS, JSON
from degu_rpc.rpc.limits import MAX_MESSAGE_SIZE
from degu_rpc.rpc.service import Context, build_internal_error, index_services

if TYPE_CHECKING:
    from collections.abc import Iterable

    from degu.bodies import Input
    from degu.rgi import Response
    from degu_rpc.peers import Peer
    from degu_rpc.rpc.codec import Codec
    from degu_rpc.rpc.service import Service

PROTOCOL_VERSION = '1'

_CONTENT_TYPES = {codec.content_type: codec for codec in CODECS} | {
    # JSON has no such parameter and is UTF-8 without it, but many HTTP clients add it.
    f'{JSON.content_type}; charset=utf-8': JSON,
    f'{JSON.content_type};charset=utf-8': JSON,
}
_ACCEPT_POST = ', '.join(codec.content_type for codec in CODECS)

# Source: Connect protocol, "HTTP to Error Code".
_INFERRED_CODES = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}


class RpcApp:
    """An RGI app that serves services; it can be mounted at any prefix."""

    # Set once: _services.

    def __init__(self, services: Iterable[Service]) -> None:
        """Raises ValueError for two services with one name, TypeError for a service on its own."""
        self._services = index_services(services)

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Answer one call."""
        path = request['path']
        service = self._services.get(path[0]) if len(path) == 2 else None
        if service is None:
            return refuse(request, 404, 'Not Found', 'no such service here: check prefix and name')
        if request['method'] != 'POST':
            return refuse(
                request, 405, 'Method Not Allowed', 'a call is a POST request', allow='POST'
            )
        headers = request['headers']
        codec = find_codec(headers.get('content-type'))
        if codec is None:
            why = f'content-type must be one of these: {_ACCEPT_POST}'
            return refuse(
                request, 415, 'Unsupported Media Type', why, **{'accept-post': _ACCEPT_POST}
            )
        try:
            _check_headers(headers)
            peer = identify_caller(connection)
            method = service.authorize(path[1], peer)
            data = read_message(request['body'])
            result = method.call(data, codec, Context(peer, method.full_name, headers))
            if len(result) > MAX_MESSAGE_SIZE:
                raise RpcError(Code.RESOURCE_EXHAUSTED, _too_large('the result'))
        except RpcError as error:
            return _answer_error(request, error)
        return 200, 'OK', {'content-type': codec.content_type}, result


def _answer_error(request: dict[str, Any], error: RpcError) -> Response:
    code, data = settle_error(error)
    status, reason = code.http_status
    return status, reason, {'content-type': JSON.content_type, **close_unread(request)}, data


def refuse(request: dict[str, Any], status: int, reason: str, why: str, **headers: str) -> Response:
    """Answer what is no call. `why` holds nothing of the request."""
    body = None if request['method'] == 'HEAD' else f'{why}\n'.encode()
    headers['content-type'] = 'text/plain; charset=utf-8'
    return status, reason, {**headers, **close_unread(request)}, body


def identify_caller(connection: dict[str, Any]) -> Peer:
    """Return who calls. Raises RpcError (`unauthenticated`) if nobody knows."""
    try:
        return find_caller(connection)
    except UnknownPeerError as error:
        raise RpcError(Code.UNAUTHENTICATED, str(error)) from None


def close_unread(request: dict[str, Any]) -> dict[str, str]:
    """Return the header that tells the client not to send its next call after an unread body."""
    body = request['body']
    return {} if body is None or body.closed else {'connection': 'close'}


def _check_headers(headers: dict[str, Any]) -> None:
    version = headers.get('connect-protocol-version', PROTOCOL_VERSION)
    if version != PROTOCOL_VERSION:
        raise RpcError(
            Code.INVALID_ARGUMENT, f'connect-protocol-version must be {PROTOCOL_VERSION}'
        )
    if headers.get('content-encoding', 'identity') != 'identity':
        raise RpcError(
            Code.UNIMPLEMENTED, 'content-encoding must be identity: there is no compression'
        )


def find_codec(content_type: str | None) -> Codec | None:
    """Return the codec of a content-type header, None for any other.

    Media types are compared without case. Source: RFC 9110 §8.3.1.
    """
    return None if content_type is None else _CONTENT_TYPES.get(content_type.lower())


def read_message(body: Input | ChunkedInput | None) -> bytes:
    """Read a request's or response's body, one message.

    Raises RpcError (`resource_exhausted`) for one above MAX_MESSAGE_SIZE, which is left unread, and
    what reading a body raises.
    """
    if body is None:
        return b''
    if isinstance(body, ChunkedInput):
        try:
            return body.read(MAX_MESSAGE_SIZE)
        except BodyTooLargeError:
            raise RpcError(Code.RESOURCE_EXHAUSTED, _too_large('the message')) from None
    if body.remaining > MAX_MESSAGE_SIZE:
        raise RpcError(Code.RESOURCE_EXHAUSTED, _too_large('the message'))
    return body.read()


def _too_large(what: str) -> str:
    return f'{what} is larger than {MAX_MESSAGE_SIZE} bytes'


def format_error(error: RpcError) -> bytes:
    """Return the JSON of an error.

    Source: Connect protocol, "Error and EndStreamResponse".

    Raises CodecError for details that cannot travel.
    """
    # A message may hold a file name that is not UTF-8.
    message = error.message.encode('utf-8', 'backslashreplace').decode()
    content = {'code': error.code.value, 'message': message}
    return JSON.encode({**content, 'details': error.details} if error.details else content)


def settle_error(error: RpcError) -> tuple[Code, bytes]:
    """Return the code and the JSON of an error; `internal` where its details cannot travel."""
    try:
        return error.code, format_error(error)
    except CodecError:
        error = build_internal_error(f'sending the details of {error.code.value}')
        return error.code, format_error(error)


def parse_error(status: int, content_type: str | None, data: bytes, uri: str) -> RpcError:
    """Build the error that a response other than 200 means, whatever is in it.

    Where it is no error in JSON the code is inferred from the HTTP status, and `uri` is named.
    Control characters in its message are escaped: messages are printed in terminals.
    """
    try:
        content = JSON.decode(data) if find_codec(content_type) is JSON else None
    except CodecError:
        content = None
    if isinstance(content, dict):
        try:
            code = Code(content.get('code'))
        except ValueError:
            code = None
        message = content.get('message', '')
        details = content.get('details', [])
        if code is not None and isinstance(message, str) and _is_list_of_maps(details):
            return RpcError(code, escape_controls(message), details)
    advice = '; is the prefix right?' if status == 404 else ''
    return RpcError(
        _INFERRED_CODES.get(status, Code.UNKNOWN),
        f'the server answered {uri} with HTTP status {status}{advice}',
    )


def _is_list_of_maps(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
