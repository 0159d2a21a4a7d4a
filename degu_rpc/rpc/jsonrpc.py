"""JSON-RPC 2.0 over HTTP: the RGI app that serves services to clients of that protocol.

    POST {prefix}      content-type: application/json
    {"jsonrpc": "2.0", "method": "files.v1.Files.stat", "params": {"path": "/a"}, "id": 1}

Source: JSON-RPC 2.0 Specification. Its text is followed where libraries differ: an empty batch is
answered with one error and not with a list, a batch of notifications with nothing.

1. What is no JSON-RPC is answered by HTTP alone: 404 below the prefix, 405, 415. A caller that
   nobody knows, or that may call nothing here, is refused before the body is read.
2. The body is decoded once, hardened like every message: size, nesting, duplicate keys, no NaN.
3. Each request of a batch is checked, authorized and called by itself, one after the other. The
   answers have the order of the requests.
4. An error becomes a JSON-RPC error, and its `data` is the error as Connect would send it. What was
   read is answered with HTTP status 200; where nothing is to be said, with 204.

What HTTP says of a request holds for all that is in it: `connect-timeout-ms` is the time of a whole
batch, and calls that it does not reach are not made; `x-request-id`, minted where there is none,
and `traceparent` are those of each call. Headers that a method sets go out with the answer to a
request that is alone. In a batch nobody could tell whose they are, and they are left out. An
`idempotency-key` is refused where it would matter: a key names one call.

A method's name has a dot before its last part, as clients make names of attributes:
`server.files.v1.Files.stat(path='/a')`. Parameters by position have the order of the signature. A
notification is a call whose caller wants to know nothing, not even that it failed. `rpc.discover`
answers with an OpenRPC document of what the caller may call. A method with a stream is not
implemented here: the protocol has none.

It is an app of its own, beside RpcApp and not in it, because who calls what stands in the body here
and in the URL there: `router.mount('/rpc/jsonrpc', JsonRpcApp(services))`.

May be called by many threads; everything is set once.
"""

from __future__ import annotations

import functools
import secrets
from typing import TYPE_CHECKING, Any, NamedTuple

from degu_rpc.errors import Code, CodecError, RpcError
from degu_rpc.rpc.answers import close_unread, identify_caller, refuse, settle_error
from degu_rpc.rpc.codec import JSON
from degu_rpc.rpc.connect import read_whole
from degu_rpc.rpc.context import (
    REQUEST_ID,
    Context,
    check_deadline,
    find_request_id,
    never_gone,
)
from degu_rpc.rpc.deadlines import begin_deadline, extend_deadline
from degu_rpc.rpc.documents import build_openrpc
from degu_rpc.rpc.limits import MAX_BATCH, MAX_DESCRIPTIONS, MAX_MESSAGE_SIZE
from degu_rpc.rpc.protocol import IDEMPOTENCY_KEY, find_codec, format_error
from degu_rpc.rpc.schema import describe_service
from degu_rpc.rpc.service import Kind, index_services, join_roles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from degu.net import Deadline
    from degu.rgi import Response
    from degu_rpc.peers import Peer
    from degu_rpc.rpc.service import Method, Service

RESERVED = 'rpc'
"""Names that begin with it and a dot are the protocol's own. Source: "Request object"."""
DISCOVER = 'rpc.discover'
"""Source: OpenRPC Specification 1.3.2, "Service Discovery Method"."""

# Source: JSON-RPC 2.0, "Error object".
_PARSE_ERROR = (-32700, 'Parse error')
_INVALID_REQUEST = (-32600, 'Invalid Request')
_METHOD_NOT_FOUND = (-32601, 'Method not found')
_STANDARD_ERRORS = {
    Code.UNIMPLEMENTED: _METHOD_NOT_FOUND,
    Code.INVALID_ARGUMENT: (-32602, 'Invalid params'),
    Code.INTERNAL: (-32603, 'Internal error'),
}
# The others are server errors, -32001 to -32016, numbered as Code lists them.
_NUMBERS = {code: -32000 - number for number, code in enumerate(Code, 1)}


class _NoSuchMethodError(Exception):
    """There is no such method; the specification has the whole answer."""


class _Caller(NamedTuple):
    """Who calls, and what a Context needs to know of their HTTP request."""

    peer: Peer
    headers: dict[str, Any]
    deadline: Deadline | None
    is_gone: Callable[[], bool]
    request_id: str
    answer_headers: dict[str, str]
    """What the method of a request that is alone says in headers; this fills up."""

    def build_context(self, method: Method) -> Context:
        """Begin one call."""
        return Context(
            self.peer, method.full_name, self.headers, self.deadline, self.is_gone, self.request_id
        )


class JsonRpcApp:
    """An RGI app that serves services as JSON-RPC 2.0; mount it at a path of its own."""

    # Set once: _services, _roles, _discover (the OpenRPC document of what callers may call).

    def __init__(self, services: Iterable[Service]) -> None:
        """Raises ValueError for two services with one name, or one named `rpc` or `rpc.*`.

        Raises TypeError for a service on its own.
        """
        self._services = index_services(services)
        for name in self._services:
            if name.split('.')[0] == RESERVED:
                raise ValueError(f'{name!r}: JSON-RPC keeps what begins with rpc. for itself')
        self._roles = join_roles(self._services.values())

        @functools.lru_cache(MAX_DESCRIPTIONS)
        def discover(roles: frozenset[str]) -> bytes:
            described = [describe_service(it, roles) for it in self._services.values()]
            return JSON.encode(build_openrpc(described))

        self._discover = discover

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Answer one request, or a batch of them."""
        if request['path']:
            return refuse(request, 404, 'Not Found', 'JSON-RPC is served at one path, not below it')
        if request['method'] != 'POST':
            why = 'JSON-RPC is a POST request'
            return refuse(request, 405, 'Method Not Allowed', why, allow='POST')
        headers = request['headers']
        if find_codec(headers.get('content-type')) is not JSON:
            why = f'content-type must be {JSON.content_type}'
            return refuse(
                request, 415, 'Unsupported Media Type', why, **{'accept-post': JSON.content_type}
            )
        request_id = find_request_id(headers) or secrets.token_hex(8)
        deadline = None
        try:
            if headers.get('content-encoding', 'identity') != 'identity':
                raise RpcError(Code.UNIMPLEMENTED, 'content-encoding must be identity')
            peer = identify_caller(request)
            if self._roles.isdisjoint(peer.roles):
                raise RpcError(Code.PERMISSION_DENIED, 'nothing here is for your roles')
            deadline = begin_deadline(connection, headers)
            data = read_whole(request['body'], deadline)
        except RpcError as error:
            extend_deadline(connection, deadline)
            failure = _format_failure(error, b'null')
            return *error.code.http_status, _headers(request, request_id), failure
        is_gone = connection.get('rgi.is_client_gone', never_gone)
        caller = _Caller(peer, headers, deadline, is_gone, request_id, {})
        answer = self._answer_message(data, caller)
        extend_deadline(connection, deadline)
        if answer is None:
            return 204, 'No Content', {REQUEST_ID: request_id}, None
        return 200, 'OK', {**caller.answer_headers, **_headers(request, request_id)}, answer

    def _answer_message(self, data: bytes, caller: _Caller) -> bytes | None:
        """Return the answer to a whole body; None if there is none."""
        try:
            message = JSON.decode(data)
        except CodecError:
            return _format_error(_PARSE_ERROR, b'null')
        if not isinstance(message, list):
            return self._answer(message, caller, MAX_MESSAGE_SIZE)
        if not message:
            return _format_error(_INVALID_REQUEST, b'null')
        if len(message) > MAX_BATCH:
            error = RpcError(Code.RESOURCE_EXHAUSTED, f'a batch has at most {MAX_BATCH} requests')
            return _format_error(_INVALID_REQUEST, b'null', format_error(error))
        answers = []
        room = MAX_MESSAGE_SIZE
        for item in message:
            answer = self._answer(item, caller, room)
            if answer is not None:
                answers.append(answer)
                room -= len(answer)
        caller.answer_headers.clear()
        return b'[' + b','.join(answers) + b']' if answers else None

    def _answer(self, message: Any, caller: _Caller, room: int) -> bytes | None:
        """Answer one request, in at most about `room` bytes; None for a notification."""
        if not isinstance(message, dict):
            return _format_error(_INVALID_REQUEST, b'null')
        has_id = 'id' in message
        request_id = message.get('id')
        if isinstance(request_id, bool) or not isinstance(request_id, str | int | float | None):
            return _format_error(_INVALID_REQUEST, b'null')
        id_json = JSON.encode(request_id)
        name, params = message.get('method'), message.get('params', {})
        if (
            message.get('jsonrpc') != '2.0'
            or not isinstance(name, str)
            or not isinstance(params, dict | list)
        ):
            return _format_error(_INVALID_REQUEST, id_json)
        try:
            result, headers = self._call(name, params, caller)
            answer = b'{"jsonrpc":"2.0","result":%b,"id":%b}' % (result, id_json)
            if len(answer) > room:
                raise _build_too_large()
            caller.answer_headers.update(headers)
        except _NoSuchMethodError:
            answer = _format_error(_METHOD_NOT_FOUND, id_json)
        except RpcError as error:
            answer = _format_failure(error, id_json)
            if len(answer) > room:
                answer = _format_failure(_build_too_large(), id_json)
        return answer if has_id else None

    def _call(
        self, name: str, params: dict[str, Any] | list[Any], caller: _Caller
    ) -> tuple[bytes, Mapping[str, str]]:
        if name == DISCOVER:
            if params:
                raise RpcError(Code.INVALID_ARGUMENT, f'{DISCOVER} takes no parameters')
            return self._discover(caller.peer.roles & self._roles), {}
        service_name, _, method_name = name.rpartition('.')
        service = self._services.get(service_name)
        if service is None or method_name not in service.methods:
            raise _NoSuchMethodError
        method = service.authorize(method_name, caller.peer)
        if method.kind is not Kind.UNARY:
            raise RpcError(
                Code.UNIMPLEMENTED, f'{method.full_name} has a stream, and JSON-RPC has none'
            )
        if IDEMPOTENCY_KEY in caller.headers and not method.idempotent:
            raise RpcError(Code.UNIMPLEMENTED, f'JSON-RPC has no {IDEMPOTENCY_KEY}')
        if isinstance(params, list):
            params = _name_parameters(method, params)
        check_deadline(caller.deadline)
        context = caller.build_context(method)
        return method.call(JSON.encode(params), JSON, context), context.response_headers


def _build_too_large() -> RpcError:
    return RpcError(Code.RESOURCE_EXHAUSTED, f'the answer is larger than {MAX_MESSAGE_SIZE} bytes')


def _name_parameters(method: Method, values: list[Any]) -> dict[str, Any]:
    if len(values) > len(method.parameters):
        raise RpcError(
            Code.INVALID_ARGUMENT,
            f'{method.full_name} takes {len(method.parameters)} parameters, not {len(values)}',
        )
    return dict(zip(method.parameters, values, strict=False))


def _headers(request: dict[str, Any], request_id: str) -> dict[str, str]:
    return {
        'content-type': JSON.content_type,
        REQUEST_ID: request_id,
        **close_unread(request),
    }


def _format_failure(error: RpcError, id_json: bytes) -> bytes:
    """Return the answer that tells of an error; `data` is what Connect would send."""
    code, data = settle_error(error)
    kind = _STANDARD_ERRORS.get(code) or (_NUMBERS[code], JSON.decode(data)['message'])
    return _format_error(kind, id_json, data)


def _format_error(error: tuple[int, str], id_json: bytes, data: bytes = b'') -> bytes:
    number, message = error
    return b'{"jsonrpc":"2.0","error":{"code":%d,"message":%b%b},"id":%b}' % (
        number,
        JSON.encode(message),
        b',"data":' + data if data else b'',
        id_json,
    )
