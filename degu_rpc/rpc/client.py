"""The client of RPC: calls over a `degu` client, with a small pool of connections.

    with RpcClient(Client(address), '/rpc') as client:
        client['files.v1.Files'].stat(path='/a')            # plain values
        files = client.bind(FilesApi, 'files.v1.Files')     # typed: a class with annotations
        files.stat(path='/a')
        for event in client.streams('files.v1.Files').watch(path='/a'): ...

1. The arguments are encoded before anything is sent. An argument that is an iterator is a stream:
   its items are sent as it gives them.
2. The call has a time, and all of it happens within that: connecting, pauses, further attempts. The
   server is told what is left of it. A call made inside another (see
   degu_rpc.rpc.context) has at most what is left of the outer one's time, and its request id and
   trace.
3. A call without a stream takes a connection from the pool. The response is read whole, up to the
   limit, and the connection put back. A stream has a connection of its own.
4. A call that failed is made again where that does no harm: see degu_rpc.rpc.retry.
5. A result is decoded and checked against what the caller expects; an error is raised as RpcError.

Threads: one client serves any number of them; what it has beside the pool is set once.
"""

from __future__ import annotations

import copy
import functools
import inspect
import random
import re
import secrets
import time
import typing
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from degu.bodies import ChunkedOutput
from degu.errors import DeguError
from degu.limits import MAX_TIMEOUT_S, check_timeout
from degu.net import Deadline
from degu.wire import closes_connection
from degu_rpc.errors import CallError, Code, CodecError, RpcError, StillRunsError
from degu_rpc.rpc.codec import JSON, build_shape, parse_value
from degu_rpc.rpc.compression import GZIP, compress, decompress
from degu_rpc.rpc.context import REQUEST_ID, TRACE, current_context
from degu_rpc.rpc.interception import ClientCall, check_interceptors, intercept
from degu_rpc.rpc.limits import DEFAULT_TIMEOUT_S, MAX_MESSAGE_SIZE, MIN_COMPRESSED_SIZE
from degu_rpc.rpc.pool import Pool
from degu_rpc.rpc.protocol import (
    IDEMPOTENCY_KEY,
    PROTOCOL_VERSION,
    RUNNING,
    TIMEOUT,
    find_codec,
    format_timeout,
    pack_message,
    parse_error,
    read_message,
)
from degu_rpc.rpc.proxy import ServiceProxy, check_service
from degu_rpc.rpc.result_stream import ResultStream, Upload, find_result_item, find_sent_item
from degu_rpc.rpc.retry import plan_retry
from degu_rpc.rpc.service import METHOD_NAME, SERVICE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from degu.client import Client, Connection, Response
    from degu_rpc.peers import DialedClient
    from degu_rpc.rpc.codec import Codec, Shape
    from degu_rpc.rpc.interception import ClientInterceptor

_Api = TypeVar('_Api')
_Result = TypeVar('_Result')
_Function = TypeVar('_Function', bound='Callable[..., Any]')

_procedure = re.compile(f'{SERVICE_NAME}/{METHOD_NAME}')
_prefix = re.compile(r'(?:/[^/?#]+)*')
_ANY = build_shape(Any)
_TIMEOUT_UNIT_S = 0.001


class CallOptions(NamedTuple):
    """How calls are made; see RpcClient.using()."""

    timeout_s: float | None = None
    repeatable: bool = False
    keyed: bool = False
    compressed: bool = False


def repeatable(function: _Function) -> _Function:
    """Mark a function of a class for bind(): a call may be made twice, it is safe or idempotent."""
    function.degu_repeatable = True  # type: ignore[attr-defined]  # a function can have any
    return function


class RpcClient:
    """Calls the services that are mounted at a prefix of one server. Thread-safe.

    A context manager; close() ends its connections.
    """

    # Set once: all.

    def __init__(
        self,
        client: Client | DialedClient,
        prefix: str = '/rpc',
        codec: Codec = JSON,
        interceptors: Iterable[ClientInterceptor] = (),
    ) -> None:
        """Connects to nothing yet. `client` says where and how, `prefix` is '' or like `/rpc`.

        `interceptors` are entered around each call, the first one outermost: see
        degu_rpc.rpc.interception.

        Raises ValueError for another prefix, TypeError for an interceptor that is no function.
        """
        self._pool = Pool(client)
        self._prefix = check_prefix(prefix)
        self._codec = codec
        self._interceptors = check_interceptors(interceptors)
        self._set_options(CallOptions())

    def _set_options(self, options: CallOptions) -> None:
        self._options = options
        self._timeout_s = options.timeout_s or DEFAULT_TIMEOUT_S
        self._headers = {
            'content-type': self._codec.content_type,
            'connect-protocol-version': PROTOCOL_VERSION,
            TIMEOUT: format_timeout(self._timeout_s),
        }
        self._stream_headers = {
            'content-type': f'application/connect+{self._codec.name}',
            'connect-protocol-version': PROTOCOL_VERSION,
        }
        if options.compressed:
            self._headers['accept-encoding'] = GZIP
            self._stream_headers['connect-accept-encoding'] = GZIP
            self._stream_headers['connect-content-encoding'] = GZIP

    def using(
        self,
        *,
        timeout_s: float | None = None,
        repeatable: bool = False,
        keyed: bool = False,
        compressed: bool = False,
    ) -> Self:
        """Return a client with the same connections and interceptors that calls in another way.

        `timeout_s` is how long a call may take in all: 30 s unless given, and for a call with a
        stream no limit unless given. `repeatable` says that its calls are safe or idempotent, so
        that one which failed may be made again. `keyed` gives each call a random key by which the
        server knows it when it is made again, so that any call may be. `compressed` sends and asks
        for gzip.

        Raises TypeError or ValueError for a time that cannot be waited.
        """
        if timeout_s is not None:
            check_timeout('timeout_s', timeout_s)
        other = copy.copy(self)
        other._set_options(CallOptions(timeout_s, repeatable, keyed, compressed))
        return other

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all connections, and with them the calls under way; allow no further call.

        Those calls, in whatever thread, raise RpcError (`canceled`) at once. A second time does
        nothing.
        """
        self._pool.close()

    def __getitem__(self, service: str) -> ServiceProxy:
        """Return a proxy whose attributes call the methods of `service`.

        Raises ValueError for a name that no service has.
        """
        return ServiceProxy(self.call, service)

    def streams(self, service: str) -> ServiceProxy:
        """Return a proxy for those methods of `service` that return a stream of results.

        Raises ValueError for a name that no service has.
        """
        return ServiceProxy(self.stream, service)

    def bind(self, api: type[_Api], service: str) -> _Api:
        """Return an object of the class `api` whose methods call those of `service`.

        Each public function of the class says by its signature what the method takes and returns;
        its code is never run. A parameter that a call leaves out is not sent: the server's own
        default counts, not the one in the class. A result annotated `ResultStream[T]` is a stream
        of results, a parameter annotated `Iterable[T]` is one that is sent; `Iterator[T]` does for
        both. `@repeatable` marks what may be made again after a failure.

        Raises TypeError for a function without an annotation of its result, or with one that cannot
        travel, ValueError for a name that no service has.
        """
        check_service(service)
        stubs = {
            name: self._build_stub(service, name, function)
            for name, function in inspect.getmembers(api, inspect.isfunction)
            if not name.startswith('_')
        }
        bound: _Api = object.__new__(type(api.__name__, (api,), stubs))
        return bound

    def _build_stub(
        self, service: str, name: str, function: Callable[..., Any]
    ) -> Callable[..., Any]:
        procedure = _build_procedure(service, name)
        hints = typing.get_type_hints(function, include_extras=True)
        if 'return' not in hints:
            raise TypeError(f'{function.__qualname__}: the result has no annotation')
        result_hint = hints.pop('return')
        result_item = find_result_item(result_hint)
        shape = result_item or build_shape(result_hint)
        _, *parameters = inspect.signature(function).parameters.values()
        by_position = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        streams = [n for n, hint in hints.items() if find_sent_item(n, hint)]
        client = self
        if hasattr(function, 'degu_repeatable') and not self._options.repeatable:
            client = self.using(**self._options._replace(repeatable=True)._asdict())

        def stub(_self: Any, *values: Any, **arguments: Any) -> Any:
            if values:
                arguments = _merge(name, by_position, values, arguments)
            for parameter in streams:
                arguments[parameter] = iter(arguments[parameter])
            if result_item is not None:
                return client._open_stream(procedure, arguments, shape)
            if streams:
                return client._call(procedure, arguments, shape)
            return client._call_unary(procedure, arguments, shape)

        return stub

    def call(
        self, service: str, method: str, args: Mapping[str, Any], result_type: Any = Any
    ) -> Any:
        """Call a method with named arguments and return its result, as `result_type`.

        `Any` gives plain values. What bind() makes is faster with other types. An argument that is
        an iterator is sent as a stream; what it raises is raised here.

        Raises CallError, a RpcError: what the server answered; `unavailable` when it cannot be
        reached (a NotSentError, as each is where nothing was sent for want of a connection) or went
        away during the call (which then may have been executed), `deadline_exceeded` when the
        call's time is over or the server took longer than the `degu` client waits,
        `unauthenticated` when one side refused the other's certificate (trying again will not
        help), `resource_exhausted` for a message above the limit in either direction, `internal`
        for an answer that makes no sense, `canceled` after close(); StillRunsError (`aborted`) when
        the first attempt with the call's key had not ended in time.
        Raises RpcError where the call that this one is made in need not go on.
        Raises CodecError for arguments that cannot travel, TypeError for a `result_type` that
        cannot or two streams, ValueError for a name that no service or method has; nothing was sent
        then.
        """
        shape = _ANY if result_type is Any else build_shape(result_type)
        return self._call(_build_procedure(service, method), args, shape)

    def stream(
        self, service: str, method: str, args: Mapping[str, Any], item_type: Any = Any
    ) -> ResultStream[Any]:
        """Call a method that returns a stream of results, and return that: see ResultStream.

        Raises what call() raises.
        """
        shape = _ANY if item_type is Any else build_shape(item_type)
        return self._open_stream(_build_procedure(service, method), args, shape)

    def _call(self, procedure: str, args: Mapping[str, Any], shape: Shape) -> Any:
        for value in args.values():
            if hasattr(value, '__next__'):  # an iterator; isinstance() is much slower
                [result] = self._open_stream(procedure, args, shape, is_single=True)
                return result
        return self._call_unary(procedure, args, shape)

    def _call_unary(self, procedure: str, args: Mapping[str, Any], shape: Shape) -> Any:
        message = self._encode(args, procedure)
        deadline, headers = self._begin(self._headers, self._timeout_s)
        if self._options.compressed and len(message) >= MIN_COMPRESSED_SIZE:
            message = compress(message)
            headers = {**headers, 'content-encoding': GZIP}
        if self._options.keyed:
            headers = {**headers, IDEMPOTENCY_KEY: secrets.token_hex(16)}
        uri = f'{self._prefix}/{procedure}'
        if self._interceptors:
            call = ClientCall(procedure, headers, deadline)
            with intercept(self._interceptors, call):
                return self._repeat(uri, call.headers, message, deadline, shape, call)
        return self._repeat(uri, headers, message, deadline, shape, None)

    def _repeat(
        self,
        uri: str,
        headers: dict[str, str],
        message: bytes,
        deadline: Deadline,
        shape: Shape,
        call: ClientCall | None,
    ) -> Any:
        """Make a call as often as it takes and is allowed, and return its result."""
        try:
            return self._attempt(uri, headers, message, deadline, shape, call)
        except RpcError as error:
            attempt = functools.partial(self._attempt, uri, headers, message, deadline, shape, call)
            return self._try_again(attempt, deadline, error)

    def _attempt(
        self,
        uri: str,
        headers: dict[str, str],
        message: bytes,
        deadline: Deadline,
        shape: Shape,
        call: ClientCall | None,
    ) -> Any:
        """Make a call once, and return its result."""
        connection = self._pool.take(deadline)
        reusable = False
        try:
            connection.set_deadline(deadline)
            headers = _update_timeout(headers, deadline)
            response = connection.request('POST', uri, headers, message)
            data = read_message(response.body)
            reusable = not closes_connection(response.headers)
        except (OSError, DeguError) as error:
            raise self._pool.explain(error, uri) from error
        except RpcError as fault:  # what both sides read with knows nothing of calls
            raise CallError(*fault.args) from None
        finally:
            self._pool.put(connection, reusable)
        if call is not None:
            call.response_headers = dict(response.headers)
        return self._read_answer(uri, response, data, shape)

    def _read_answer(self, uri: str, response: Response, data: bytes, shape: Shape) -> Any:
        status, _, headers, _ = response
        content_type: Any = headers.get('content-type')
        codec = self._codec
        try:
            if 'content-encoding' in headers and headers['content-encoding'] == GZIP:
                data = decompress(data, MAX_MESSAGE_SIZE)
            if status != 200:
                error = parse_error(status, content_type, data, uri, headers.get('accept-post'))
                if headers.get(RUNNING) == 'true':
                    raise StillRunsError(*error.args)
                raise error
            if content_type != codec.content_type and find_codec(content_type) is not codec:
                raise CallError(
                    Code.INTERNAL,
                    f'{uri} answered with content-type {content_type}, not {codec.content_type}',
                )
            return parse_value(data, shape, codec)
        except CallError:
            raise
        except RpcError as fault:  # as above
            raise CallError(*fault.args) from None
        except CodecError as fault:
            raise CallError(Code.INTERNAL, f'{uri} answered what it must not: {fault}') from fault

    def _open_stream(
        self, procedure: str, args: Mapping[str, Any], shape: Shape, is_single: bool = False
    ) -> ResultStream[Any]:
        streams = [name for name, value in args.items() if hasattr(value, '__next__')]
        if len(streams) > 1:
            raise TypeError(f'{procedure}: at most one argument is a stream, not {streams}')
        first = self._encode({n: v for n, v in args.items() if n not in streams}, procedure)
        uses_gzip = self._options.compressed
        sent = (
            Upload(first, args[streams[0]], self._codec, uses_gzip)
            if streams
            else pack_message(first, 0, uses_gzip)
        )
        deadline, headers = self._begin(self._stream_headers, self._options.timeout_s)
        uri = f'{self._prefix}/{procedure}'
        if not self._interceptors:
            connection, response = self._send_stream(uri, headers, sent, deadline)
            return self._read_stream(connection, response, shape, uri, is_single)
        call = ClientCall(procedure, headers, None if _is_endless(deadline) else deadline)
        with intercept(self._interceptors, call) as entered:
            connection, response = self._send_stream(uri, call.headers, sent, deadline)
            call.response_headers = dict(response.headers)
            results = self._read_stream(connection, response, shape, uri, is_single)
            results.leave_at_end(entered.pop_all(), call)
            return results

    def _read_stream(
        self, connection: Connection, response: Response, shape: Shape, uri: str, is_single: bool
    ) -> ResultStream[Any]:
        return ResultStream(
            connection, response, self._codec, shape, uri, self._pool.explain, is_single
        )

    def _send_stream(
        self, uri: str, headers: dict[str, str], sent: Upload | bytes, deadline: Deadline
    ) -> tuple[Connection, Response]:
        """Send a call on a connection of its own, and return that with the response on it."""
        try:
            connection = self._pool.open_own(deadline)
        except RpcError as error:
            connection = self._try_again(lambda: self._pool.open_own(deadline), deadline, error)
        try:
            connection.set_chunk_timeout(MAX_TIMEOUT_S)  # a result may take as long as the call
            if not _is_endless(deadline):
                connection.set_deadline(deadline)
                headers = _update_timeout(headers, deadline)
            body = (
                ChunkedOutput(connection.until_answered(sent)) if isinstance(sent, Upload) else sent
            )
            return connection, connection.request('POST', uri, headers, body)
        except (OSError, DeguError) as error:
            if isinstance(sent, Upload) and sent.error is error:
                raise
            raise self._pool.explain(error, uri) from error

    def _encode(self, args: Mapping[str, Any], procedure: str) -> bytes:
        message = self._codec.encode(args)
        if len(message) > MAX_MESSAGE_SIZE:
            raise CallError(
                Code.RESOURCE_EXHAUSTED,
                f'the arguments of {procedure} are larger than {MAX_MESSAGE_SIZE} bytes',
            )
        return message

    def _begin(
        self, headers: dict[str, str], timeout_s: float | None
    ) -> tuple[Deadline, dict[str, str]]:
        """Return when a call must be over, and its headers: what is inherited is in both."""
        context = current_context()
        if context is not None:
            inherited = {REQUEST_ID: context.request_id}
            if context.trace is not None:
                inherited[TRACE] = context.trace
            left_s = context.remaining()
            if left_s is not None:
                context.check()
                timeout_s = left_s if timeout_s is None else min(timeout_s, left_s)
            headers = {**headers, **inherited}
        if timeout_s is None:
            return Deadline(MAX_TIMEOUT_S), headers
        if context is not None or TIMEOUT not in headers:
            headers = {**headers, TIMEOUT: format_timeout(timeout_s)}
        return Deadline(timeout_s), headers

    def _try_again(
        self, attempt: Callable[[], _Result], deadline: Deadline, error: RpcError
    ) -> _Result:
        """Make further attempts after one that failed with `error`, or raise it."""
        is_repeatable = self._options.repeatable or self._options.keyed
        count = 1
        while True:
            fraction = random.random()  # noqa: S311  # to spread clients out; no secret
            pause_s = plan_retry(error, count, is_repeatable, deadline.remaining(), fraction)
            if pause_s is None:
                raise error
            time.sleep(pause_s)
            try:
                return attempt()
            except RpcError as failure:
                error = failure
                count += 1


def check_prefix(prefix: str) -> str:
    """Return what services are mounted at. Raises ValueError unless it is '' or like `/rpc`."""
    if not _prefix.fullmatch(prefix):
        raise ValueError(f"prefix must be '' or like /rpc, not {prefix!r}")
    return prefix


def _build_procedure(service: str, method: str) -> str:
    procedure = f'{service}/{method}'
    if not _procedure.fullmatch(procedure):
        raise ValueError(f'no service and method can be named {procedure!r}')
    return procedure


def _is_endless(deadline: Deadline) -> bool:
    return deadline.timeout_s >= MAX_TIMEOUT_S


def _update_timeout(headers: dict[str, str], deadline: Deadline) -> dict[str, str]:
    """Return the headers with the time that is left, where connecting or attempts took some."""
    left_s = deadline.remaining()
    if deadline.timeout_s - left_s < _TIMEOUT_UNIT_S:
        return headers
    return {**headers, TIMEOUT: format_timeout(left_s)}


def _merge(
    method: str, names: list[str], values: tuple[Any, ...], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Give the values that came by position their names. Raises TypeError as a function would."""
    if len(values) > len(names):
        raise TypeError(f'{method}() takes {len(names)} arguments by position, not {len(values)}')
    named = dict(zip(names, values, strict=False))
    if not arguments:
        return named
    for name in named:
        if name in arguments:
            raise TypeError(f'{method}() got {name!r} twice')
    return named | arguments
