"""Connect over HTTP/1.1: the RGI app that serves services.

    POST {prefix}/{service}/{method}     content-type: see degu_rpc.rpc.protocol
    GET  {prefix}/{service}/{method}?encoding=json&message=...     for methods that are safe

The body is one map of named parameters, the response is the bare result in the same encoding. With
a stream on either side both are envelopes: first the parameters, then the items of the caller's
stream; back come the results, and the end, which may be an error.
Source: Connect protocol, "Unary (Request-Response) RPCs" and "Streaming RPCs".

1. What is no call is answered by HTTP alone: 404 without a service of that name, 405 with another
   verb than POST (or GET, where the method is safe), 415 with another content type than those for
   methods of its kind. HEAD is no call: the protocol knows no such thing. `allow` tells what a
   method takes, so 405 is for those who may call it.
2. Who calls is what `Authenticated` says of the request, `request['_peer']`; they must be allowed
   to call the method before the body is read.
3. The body is read up to the limit, never further, and a stream one message after the other.
4. A call with an `idempotency-key`, where the method is neither safe nor idempotent, is made once:
   see degu_rpc.rpc.replay. The answer to a later one says `idempotency-replayed: true`, or
   `idempotency-running: true` while there is none yet.
5. The method is called; its result is the response, and a RpcError is sent as JSON with the HTTP
   status of its code, or at the end of the stream.

All waits for the caller end with the time that it gave the call (`connect-timeout-ms`). Where the
body was not read, and may be large, the connection ends with the response. A peer that breaks off
inside its request is the server's to handle: there is nobody left to answer.

Streams are half-duplex: results go out once the caller's stream was read to its end, because a
caller that still writes does not read. A method that answers earlier has its results held back. A
caller that sees the answer may stop, and what it still sends is dropped, up to a limit; where the
results are too many to wait in the buffers of a socket, before they are sent.

May be called by many threads; everything is set once.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from degu.errors import DeguError, PeerTimeoutError, ProtocolError
from degu_rpc.errors import Code, CodecError, RpcError, StillRunsError
from degu_rpc.rpc.answers import close_unread, identify_caller, refuse, settle_error
from degu_rpc.rpc.codec import CODECS, JSON
from degu_rpc.rpc.compression import GZIP, compress, decompress
from degu_rpc.rpc.context import REQUEST_ID, Context, check_deadline, never_gone
from degu_rpc.rpc.deadlines import begin_deadline, extend_deadline, limit_rest
from degu_rpc.rpc.envelope import END, parse_envelopes
from degu_rpc.rpc.limits import (
    HELD_PIECE_SIZE,
    MAX_DROPPED_SIZE,
    MAX_HELD_SIZE,
    MAX_MESSAGE_SIZE,
    MAX_QUERY_FIELDS,
    MIN_COMPRESSED_SIZE,
)
from degu_rpc.rpc.protocol import (
    IDEMPOTENCY_KEY,
    REPLAYED,
    RUNNING,
    STREAM_ENCODING,
    STREAM_TYPES,
    UNARY_ENCODING,
    UNARY_TYPES,
    Encoding,
    check_version,
    find_codec,
    find_stream_codec,
    format_end,
    pack_message,
    parse_encoding,
    read_message,
    unpack_message,
)
from degu_rpc.rpc.replay import Outcome, ReplayStore
from degu_rpc.rpc.service import Kind, Service, index_services

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from degu.bodies import ChunkedInput, Input
    from degu.net import Deadline
    from degu.rgi import Response
    from degu_rpc.peers import Peer
    from degu_rpc.rpc.codec import Codec
    from degu_rpc.rpc.service import Method

_CODECS_BY_NAME = {codec.name: codec for codec in CODECS}
_QUERY_ENCODINGS = ' or '.join(f'encoding={name}' for name in _CODECS_BY_NAME)
_UNARY = ', '.join(UNARY_TYPES)
_STREAMS = ', '.join(STREAM_TYPES)
_BUFFERED_SIZE = 64 * 1024  # what the buffers between a server and a client hold at least


class RpcApp:
    """An RGI app that serves services; it can be mounted at any prefix.

    Outcomes of calls with an `idempotency-key` are in the memory of this object. With workers each
    process has its own: a call that is made again over another connection may reach another one,
    and run a second time. What must never run twice notes that in a store that all share.
    """

    # Set once: _services, _replays.

    def __init__(self, services: Iterable[Service]) -> None:
        """Raises ValueError for two services with one name, TypeError for a service on its own."""
        self._replays = ReplayStore()
        self._services = index_services(services)

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Answer one call."""
        path = request['path']
        service = self._services.get(path[0]) if len(path) == 2 else None
        if service is None:
            return refuse(request, 404, 'Not Found', 'no such service here: check prefix and name')
        name = path[1]
        if request['method'] != 'POST':
            return self._answer_get(connection, request, service, name)
        content_type = request['headers'].get('content-type')
        codec = find_codec(content_type)
        if codec is not None:
            return self._answer_unary(connection, request, service, name, codec)
        codec = find_stream_codec(content_type)
        if codec is not None:
            return self._answer_stream(connection, request, service, name, codec)
        return _refuse_type(request, f'{_UNARY}, {_STREAMS}')

    # --- calls without a stream ------------------------------------------------------------------

    def _answer_unary(
        self,
        connection: dict[str, Any],
        request: dict[str, Any],
        service: Service,
        name: str,
        codec: Codec,
    ) -> Response:
        headers = request['headers']
        context = None
        try:
            check_version(headers)
            encoding = parse_encoding(headers, UNARY_ENCODING)
            peer = request.get('_peer') or identify_caller(request)
            method = service.authorize(name, peer)
            if method.kind is not Kind.UNARY:
                return _refuse_type(request, _STREAMS)
            context = _build_context(connection, peer, method, headers)
            data = read_whole(request['body'], context.deadline)
            if IDEMPOTENCY_KEY in headers and not method.idempotent:
                return self._call_once(connection, request, method, data, codec, encoding, context)
            return _call(method, data, codec, encoding, context)
        except RpcError as error:
            return _answer_error(connection, request, error, context)

    def _call_once(
        self,
        connection: dict[str, Any],
        request: dict[str, Any],
        method: Method,
        data: bytes,
        codec: Codec,
        encoding: Encoding,
        context: Context,
    ) -> Response:
        """Call a method, or answer as the call did that had the same key."""
        data = _unpack(data, encoding)

        def call() -> Outcome:
            try:
                result = method.call(data, codec, context)
                return Outcome(result, None, context.response_headers)
            except RpcError as error:
                code, content = settle_error(error)
                return Outcome(content, code, {})

        outcome, is_replay = self._replays.run(
            context.peer,
            method.full_name,
            context.headers[IDEMPOTENCY_KEY],
            codec.name.encode() + data,
            call,
        )
        context.is_replay = is_replay
        if outcome.code is not None:
            return _answer_failure(connection, request, outcome.code, outcome.data, context, {})
        return _answer_result(outcome.data, codec, encoding, context, outcome.headers)

    def _answer_get(
        self, connection: dict[str, Any], request: dict[str, Any], service: Service, name: str
    ) -> Response:
        """Answer a call whose message is in the query, and refuse what is neither GET nor POST.

        Source: Connect protocol, "Unary-Get-Request"; RFC 9110 §15.5.6, for `allow`.
        """
        headers = request['headers']
        context = None
        try:
            peer = identify_caller(request)
            method = service.authorize(name, peer)
            takes_get = method.safe and method.kind is Kind.UNARY
            if not takes_get or request['method'] != 'GET':
                return _refuse_verb(request, takes_get)
            query = _parse_query(request['query'])
            codec = _CODECS_BY_NAME.get(query.get('encoding', ''))
            if codec is None:
                why = f'the query needs {_QUERY_ENCODINGS}'
                return refuse(request, 415, 'Unsupported Media Type', why)
            if query.get('connect', 'v1') != 'v1':
                raise RpcError(Code.INVALID_ARGUMENT, 'connect must be v1')
            stated = {'content-encoding': query.get('compression', 'identity')}
            if 'accept-encoding' in headers:
                stated['accept-encoding'] = headers['accept-encoding']
            encoding = parse_encoding(stated, UNARY_ENCODING)
            context = _build_context(connection, peer, method, headers)
            return _call(method, _parse_query_message(query), codec, encoding, context)
        except RpcError as error:
            return _answer_error(connection, request, error, context)

    # --- calls with a stream ---------------------------------------------------------------------

    def _answer_stream(
        self,
        connection: dict[str, Any],
        request: dict[str, Any],
        service: Service,
        name: str,
        codec: Codec,
    ) -> Response:
        headers = request['headers']
        answer_headers = {'content-type': f'application/connect+{codec.name}'}
        try:
            check_version(headers)
            encoding = parse_encoding(headers, STREAM_ENCODING)
            peer = identify_caller(request)
            method = service.authorize(name, peer)
            if method.kind is Kind.UNARY:
                return _refuse_type(request, _UNARY)
            if IDEMPOTENCY_KEY in headers and not method.idempotent:
                raise RpcError(
                    Code.UNIMPLEMENTED, f'a call with a stream cannot have an {IDEMPOTENCY_KEY}'
                )
            context = _build_context(connection, peer, method, headers)
        except RpcError as error:
            _, data = settle_error(error)
            end = pack_message(format_end(data, {}), END, False)
            return 200, 'OK', {**answer_headers, **close_unread(request)}, end
        _add_call_headers(answer_headers, context)
        if encoding.takes_gzip:
            answer_headers['connect-content-encoding'] = GZIP
        source = _write_stream(connection, request['body'], method, codec, encoding, context)
        return 200, 'OK', answer_headers, connection['rgi.ChunkedOutput'](source)


def _write_stream(
    connection: dict[str, Any],
    body: Input | ChunkedInput | None,
    method: Method,
    codec: Codec,
    encoding: Encoding,
    context: Context,
) -> Iterator[bytes]:
    """Yield the chunks of a response: each result in an envelope, the end, and the empty chunk.

    What else than RpcError goes wrong is raised: the response is then cut off before its end.
    """
    messages = _read_messages(body, encoding.uses_gzip, context)
    held = bytearray()  # and no list: a small result would take many times its size
    error: bytes | None = None
    metadata: dict[str, str] = {}
    had_id = context.sent_request_id is not None  # then it is among the headers
    try:
        with contextlib.closing(method.stream(messages, codec, context)) as results:  # type: ignore[type-var]  # a generator
            for result in results:
                envelope = pack_message(result, 0, encoding.takes_gzip)
                if body is not None and not body.closed:
                    held += envelope
                    if len(held) > MAX_HELD_SIZE:
                        held.clear()
                        raise RpcError(
                            Code.RESOURCE_EXHAUSTED,
                            f'more than {MAX_HELD_SIZE} bytes of results before the end of '
                            f'{method.stream_parameter}',
                        )
                    continue
                if held:
                    yield from _cut(held)
                    held.clear()
                yield envelope
        metadata.update(context.response_headers)
        if len(held) > _BUFFERED_SIZE:  # a caller that waits to write never reads
            _drop(messages)
    except RpcError as caught:
        _, error = settle_error(caught)
    yield from _cut(held)
    extend_deadline(connection, context.deadline)
    if context.sent_request_id is not None and not had_id:
        metadata[REQUEST_ID] = context.sent_request_id
    yield pack_message(format_end(error, metadata), END, encoding.takes_gzip)
    yield b''
    if body is not None and not body.closed:
        # A close with unread bytes is a reset, which destroys what the caller has not read yet.
        limit_rest(connection)
        with contextlib.suppress(OSError, DeguError):  # it stopped, as it should
            _drop(body)


def _drop(pieces: Iterable[bytes]) -> None:
    size_left = MAX_DROPPED_SIZE
    for data in pieces:
        size_left -= len(data)
        if size_left < 0:
            return


def _cut(data: bytearray) -> Iterator[bytes]:
    for start in range(0, len(data), HELD_PIECE_SIZE):
        yield bytes(data[start : start + HELD_PIECE_SIZE])


def _read_messages(
    body: Input | ChunkedInput | None, uses_gzip: bool, context: Context
) -> Iterator[bytes]:
    """Yield each message of a caller's stream.

    Raises RpcError: `deadline_exceeded`, `canceled` where the caller broke off, `invalid_argument`
    for what is outside the protocol, `resource_exhausted` for a message above the limit.
    """
    envelopes = parse_envelopes(body or (), MAX_MESSAGE_SIZE)
    while True:
        try:
            envelope = next(envelopes, None)
            if envelope is None:
                return
            flags, message = envelope
            if flags & END:
                raise RpcError(Code.INVALID_ARGUMENT, 'a request has no envelope for its end')
            message = unpack_message(message, flags, uses_gzip)
        except (CodecError, ProtocolError) as error:
            raise RpcError(Code.INVALID_ARGUMENT, str(error)) from None
        except (OSError, DeguError) as error:
            context.check()
            raise RpcError(Code.CANCELED, f'the caller broke off: {error}') from None
        yield message


# --- what all kinds of calls share ---------------------------------------------------------------


def _build_context(
    connection: dict[str, Any], peer: Peer, method: Method, headers: dict[str, Any]
) -> Context:
    """Begin a call: from here on all waits for the caller end with the time that it gave."""
    deadline = begin_deadline(connection, headers)
    is_client_gone = connection.get('rgi.is_client_gone', never_gone)
    return Context(peer, method.full_name, headers, deadline, is_client_gone)


def read_whole(body: Input | ChunkedInput | None, deadline: Deadline | None) -> bytes:
    """Read the message of a call. Raises what read_message() does, and `deadline_exceeded`."""
    try:
        return read_message(body)
    except PeerTimeoutError:
        check_deadline(deadline)  # where it was the call's time, there is somebody to tell
        raise


def _call(
    method: Method, data: bytes, codec: Codec, encoding: Encoding, context: Context
) -> Response:
    if encoding.uses_gzip:
        data = _unpack(data, encoding)
    result = method.call(data, codec, context)
    if context.is_answered_plainly and not encoding.takes_gzip:
        return 200, 'OK', {'content-type': codec.content_type}, result
    return _answer_result(result, codec, encoding, context, context.response_headers)


def _unpack(data: bytes, encoding: Encoding) -> bytes:
    if not encoding.uses_gzip:
        return data
    try:
        return decompress(data, MAX_MESSAGE_SIZE)
    except CodecError as error:
        raise RpcError(Code.INVALID_ARGUMENT, str(error)) from None


def _answer_result(
    result: bytes,
    codec: Codec,
    encoding: Encoding,
    context: Context,
    method_headers: Mapping[str, str],
) -> Response:
    headers = {'content-type': codec.content_type, **method_headers}
    if encoding.takes_gzip and len(result) >= MIN_COMPRESSED_SIZE:
        result = compress(result)
        headers['content-encoding'] = GZIP
    return 200, 'OK', _add_call_headers(headers, context), result


def _add_call_headers(headers: dict[str, str], context: Context) -> dict[str, str]:
    if context.sent_request_id is not None:
        headers[REQUEST_ID] = context.sent_request_id
    if context.is_replay:
        headers[REPLAYED] = 'true'
    return headers


def _parse_query(query: str) -> dict[str, str]:
    try:
        fields = parse_qsl(
            query,
            keep_blank_values=True,
            errors='strict',
            max_num_fields=MAX_QUERY_FIELDS,
        )
    except ValueError:
        raise RpcError(
            Code.INVALID_ARGUMENT,
            'the query must be percent-encoded UTF-8, use base64=1 for others',
        ) from None
    if len(dict(fields)) != len(fields):
        raise RpcError(Code.INVALID_ARGUMENT, 'a field stands twice in the query')
    return dict(fields)


def _parse_query_message(query: dict[str, str]) -> bytes:
    if 'message' not in query:
        raise RpcError(Code.INVALID_ARGUMENT, 'the query has no message')
    text = query['message']
    if query.get('base64') != '1':
        return text.encode()
    try:
        padding = '=' * (-len(text) % 4)
        return base64.b64decode(text.translate(_URL_SAFE) + padding, validate=True)
    except (ValueError, binascii.Error):
        raise RpcError(Code.INVALID_ARGUMENT, 'the message is not base64') from None


_URL_SAFE = str.maketrans('-_+/', '+/  ')


def _answer_error(
    connection: dict[str, Any], request: dict[str, Any], error: RpcError, context: Context | None
) -> Response:
    state = {RUNNING: 'true'} if isinstance(error, StillRunsError) else {}
    return _answer_failure(connection, request, *settle_error(error), context, state)


def _answer_failure(
    connection: dict[str, Any],
    request: dict[str, Any],
    code: Code,
    data: bytes,
    context: Context | None,
    state: Mapping[str, str],
) -> Response:
    """Answer with an error as settle_error() returns it."""
    status, reason = code.http_status
    headers = {'content-type': JSON.content_type, **state, **close_unread(request)}
    if context is not None:
        extend_deadline(connection, context.deadline)
        _add_call_headers(headers, context)
    return status, reason, headers, None if request['method'] == 'HEAD' else data


def _refuse_verb(request: dict[str, Any], takes_get: bool) -> Response:
    verbs = ['GET', 'POST'] if takes_get else ['POST']
    why = f'a call is a {" or ".join(verbs)} request'
    return refuse(request, 405, 'Method Not Allowed', why, allow=', '.join(verbs))


def _refuse_type(request: dict[str, Any], types: str) -> Response:
    why = f'content-type must be one of these: {types}'
    return refuse(request, 415, 'Unsupported Media Type', why, **{'accept-post': types})
