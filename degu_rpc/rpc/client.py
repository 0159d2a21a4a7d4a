"""The client of RPC: calls over a `degu` client, with a small pool of connections.

    with RpcClient(Client(address), '/rpc') as client:
        client['files.v1.Files'].stat(path='/a')            # plain values
        files = client.bind(FilesApi, 'files.v1.Files')     # typed: a class with annotations
        files.stat(path='/a')
        for event in client.streams('files.v1.Files').watch(path='/a'): ...

1. The arguments are encoded before anything is sent. An argument that is an iterator is a stream:
   its items are sent as it gives them.
2. The call has a time, and all of it happens within that. A call made inside another (see
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
import itertools
import random
import re
import secrets
import time
import typing
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from degu.bodies import ChunkedOutput
from degu.errors import DeguError
from degu.limits import check_timeout
from degu.net import Deadline
from degu.wire import closes_connection
from degu_rpc.errors import Code, CodecError, RpcError
from degu_rpc.rpc.codec import JSON, build_shape, parse_value
from degu_rpc.rpc.compression import GZIP, compress, decompress
from degu_rpc.rpc.context import REQUEST_ID, TRACE, current_context
from degu_rpc.rpc.limits import DEFAULT_TIMEOUT_S, MAX_MESSAGE_SIZE, MIN_COMPRESSED_SIZE
from degu_rpc.rpc.pool import Pool, explain_failure
from degu_rpc.rpc.protocol import (
    IDEMPOTENCY_KEY,
    PROTOCOL_VERSION,
    TIMEOUT,
    find_codec,
    format_timeout,
    pack_message,
    parse_error,
    read_message,
)
from degu_rpc.rpc.result_stream import ResultStream, Upload
from degu_rpc.rpc.retry import plan_retry
from degu_rpc.rpc.service import METHOD_NAME, SERVICE_NAME, find_stream_item

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from degu.client import Client, Response
    from degu_rpc.peers import DialedClient
    from degu_rpc.rpc.codec import Codec, Shape

_Api = TypeVar('_Api')
_Result = TypeVar('_Result')
_Function = TypeVar('_Function', bound='Callable[..., Any]')

_procedure = re.compile(f'{SERVICE_NAME}/{METHOD_NAME}')
_prefix = re.compile(r'(?:/[^/?#]+)*')
_ANY = build_shape(Any)
_ENDLESS_S = 365 * 24 * 3600.0  # what a stream without a time has


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
        self, client: Client | DialedClient, prefix: str = '/rpc', codec: Codec = JSON
    ) -> None:
        """Connects to nothing yet. `client` says where and how, `prefix` is '' or like `/rpc`.

        Raises ValueError for another prefix.
        """
        if not _prefix.fullmatch(prefix):
            raise ValueError(f"prefix must be '' or like /rpc, not {prefix!r}")
        self._pool = Pool(client)
        self._prefix = prefix
        self._codec = codec
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
        """Return a client with the same connections that makes its calls in another way.

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
        """End the idle connections now, and those in use with their calls; allow no further call.

        A second time does nothing.
        """
        self._pool.close()

    def __getitem__(self, service: str) -> ServiceProxy:
        """Return a proxy whose attributes call the methods of `service`.

        Raises ValueError for a name that no service has.
        """
        return ServiceProxy(self.call, _check_service(service))

    def streams(self, service: str) -> ServiceProxy:
        """Return a proxy for those methods of `service` that return a stream of results.

        Raises ValueError for a name that no service has.
        """
        return ServiceProxy(self.stream, _check_service(service))

    def bind(self, api: type[_Api], service: str) -> _Api:
        """Return an object of the class `api` whose methods call those of `service`.

        Each public function of the class says by its signature what the method takes and returns;
        its code is never run. A parameter that a call leaves out is not sent: the server's own
        default counts, not the one in the class. A result annotated `Iterator[T]` is a stream of
        results, a parameter annotated so takes any iterable. `@repeatable` marks what may be made
        again after a failure.

        Raises TypeError for a function without an annotation of its result, or with one that cannot
        travel, ValueError for a name that no service has.
        """
        _check_service(service)
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
        result_item = find_stream_item('the result', result_hint)
        shape = result_item or build_shape(result_hint)
        _, *parameters = inspect.signature(function).parameters.values()
        by_position = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        streams = [n for n, hint in hints.items() if find_stream_item(f'parameter {n!r}', hint)]
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

        Raises RpcError: what the server answered; `unavailable` when it cannot be reached or went
        away during the call (which then may have been executed), `deadline_exceeded` when the
        call's time is over or the server took longer than the `degu` client waits,
        `unauthenticated` when one side refused the other's certificate (trying again will not
        help), `resource_exhausted` for a message above the limit in either direction, `internal`
        for an answer that makes no sense, `canceled` after close().
        Raises CodecError for arguments that cannot travel, TypeError for a `result_type` that
        cannot or two streams, ValueError for a name that no service or method has; nothing was sent
        then.
        """
        shape = _ANY if result_type is Any else build_shape(result_type)
        return self._call(_build_procedure(service, method), args, shape)

    def stream(
        self, service: str, method: str, args: Mapping[str, Any], item_type: Any = Any
    ) -> ResultStream:
        """Call a method that returns a stream of results, and return that: see ResultStream.

        Raises what call() raises.
        """
        shape = _ANY if item_type is Any else build_shape(item_type)
        return self._open_stream(_build_procedure(service, method), args, shape)

    def _call(self, procedure: str, args: Mapping[str, Any], shape: Shape) -> Any:
        for value in args.values():
            if hasattr(value, '__next__'):  # an iterator; isinstance() is much slower
                with self._open_stream(procedure, args, shape) as results:
                    return _read_only(results, procedure)
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
        try:
            return self._attempt(uri, headers, message, deadline, shape)
        except RpcError as error:
            attempt = functools.partial(self._attempt, uri, headers, message, deadline, shape)
            return self._try_again(attempt, deadline, error)

    def _attempt(
        self,
        uri: str,
        headers: dict[str, str],
        message: bytes,
        deadline: Deadline,
        shape: Shape,
    ) -> Any:
        """Make a call once, and return its result."""
        connection = self._pool.take(deadline)
        reusable = False
        try:
            connection.set_deadline(deadline)
            response = connection.request('POST', uri, headers, message)
            data = read_message(response.body)
            reusable = not closes_connection(response.headers)
        except (OSError, DeguError) as error:
            raise explain_failure(error, uri) from error
        finally:
            self._pool.put(connection, reusable)
        return self._read_answer(uri, response, data, shape)

    def _read_answer(self, uri: str, response: Response, data: bytes, shape: Shape) -> Any:
        status, _, headers, _ = response
        content_type: Any = headers.get('content-type')
        codec = self._codec
        try:
            if 'content-encoding' in headers and headers['content-encoding'] == GZIP:
                data = decompress(data, MAX_MESSAGE_SIZE)
            if status != 200:
                raise parse_error(status, content_type, data, uri)
            if content_type != codec.content_type and find_codec(content_type) is not codec:
                raise RpcError(
                    Code.INTERNAL,
                    f'{uri} answered with content-type {content_type}, not {codec.content_type}',
                )
            return parse_value(data, shape, codec)
        except CodecError as error:
            raise RpcError(Code.INTERNAL, f'{uri} answered what it must not: {error}') from error

    def _open_stream(self, procedure: str, args: Mapping[str, Any], shape: Shape) -> ResultStream:
        streams = [name for name, value in args.items() if hasattr(value, '__next__')]
        if len(streams) > 1:
            raise TypeError(f'{procedure}: at most one argument is a stream, not {streams}')
        first = self._encode({n: v for n, v in args.items() if n not in streams}, procedure)
        uses_gzip = self._options.compressed
        upload = Upload(first, args[streams[0]], self._codec, uses_gzip) if streams else None
        body = ChunkedOutput(upload) if upload else pack_message(first, 0, uses_gzip)
        deadline, headers = self._begin(self._stream_headers, self._options.timeout_s)
        uri = f'{self._prefix}/{procedure}'
        try:
            connection = self._pool.open_own()
        except RpcError as error:
            connection = self._try_again(self._pool.open_own, deadline, error)
        try:
            if deadline.timeout_s < _ENDLESS_S:
                connection.set_deadline(deadline)
            response = connection.request('POST', uri, headers, body)
        except (OSError, DeguError) as error:
            if upload is not None and upload.error is error:
                raise
            raise explain_failure(error, uri) from error
        return ResultStream(connection, response, self._codec, shape, uri)

    def _encode(self, args: Mapping[str, Any], procedure: str) -> bytes:
        message = self._codec.encode(args)
        if len(message) > MAX_MESSAGE_SIZE:
            raise RpcError(
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
            return Deadline(_ENDLESS_S), headers
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


class ServiceProxy:
    """The methods of one service as attributes: `client['files.v1.Files'].stat(path='/a')`."""

    __slots__ = ('_call', '_service')

    def __init__(self, call: Callable[[str, str, dict[str, Any]], Any], service: str) -> None:
        self._call = call
        self._service = service

    def __repr__(self) -> str:
        return f'ServiceProxy({self._service!r})'

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """Return a function that calls `method` with named arguments: see RpcClient.call()."""
        if method.startswith('_'):
            raise AttributeError(f'no method can be named {method!r}')

        def call(*values: Any, **arguments: Any) -> Any:
            if values:
                raise TypeError(
                    f'{method}(): arguments are named here; bind() gives positional ones'
                )
            return self._call(self._service, method, arguments)

        return call


def _build_procedure(service: str, method: str) -> str:
    procedure = f'{service}/{method}'
    if not _procedure.fullmatch(procedure):
        raise ValueError(f'no service and method can be named {procedure!r}')
    return procedure


def _check_service(name: str) -> str:
    if not re.fullmatch(SERVICE_NAME, name):
        raise ValueError(f'no service can be named {name!r}')
    return name


def _read_only(results: ResultStream, procedure: str) -> Any:
    """Return the one result of a stream, and see that it is the only one."""
    found = list(itertools.islice(results, 2))
    if len(found) != 1:
        raise RpcError(
            Code.INTERNAL, f'{procedure} answered with {"several" if found else "no"} results'
        )
    return found[0]


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
