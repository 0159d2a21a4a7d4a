"""The client of RPC: calls over a `degu` client, with a small pool of connections.

    with RpcClient(Client(address), '/rpc') as client:
        client['files.v1.Files'].stat(path='/a')            # plain values
        files = client.bind(FilesApi, 'files.v1.Files')     # typed: a class with annotations
        files.stat(path='/a')

1. The arguments are encoded before anything is sent.
2. A connection is taken from the pool, or made: the one that was used last, as the others may then
   grow old. With MAX_CONNECTIONS in use the call waits for one of them.
3. The response is read whole, up to the limit, and the connection put back. After anything that
   went wrong with it, it is closed.
4. A result is decoded and checked against what the caller expects; an error is raised as RpcError.

Threads: one client serves any number of them; the pool is guarded by `_free` (a Condition), which
is never held during I/O. What it does not do: repeat a call. When the server went away, the next
call fails with `unavailable`, and only its caller knows whether it may be made again.
"""

from __future__ import annotations

import inspect
import re
import threading
import typing
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from degu.errors import DeguError, PeerRejectedError, ProtocolError
from degu.pki import CertificateError
from degu.wire import closes_connection
from degu_rpc.errors import Code, CodecError, RpcError, UnknownPeerError, UnreachableError
from degu_rpc.rpc.codec import JSON, build_shape, parse_value
from degu_rpc.rpc.connect import PROTOCOL_VERSION, find_codec, parse_error, read_message
from degu_rpc.rpc.limits import IDLE_TIMEOUT_S, MAX_CONNECTIONS, MAX_MESSAGE_SIZE
from degu_rpc.rpc.service import METHOD_NAME, SERVICE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from degu.client import Client, Connection, Response
    from degu.net import Address
    from degu_rpc.rpc.codec import Codec, Shape

_Api = TypeVar('_Api')

_procedure = re.compile(f'{SERVICE_NAME}/{METHOD_NAME}')
_prefix = re.compile(r'(?:/[^/?#]+)*')
_ANY = build_shape(Any)


class RpcClient:
    """Calls the services that are mounted at a prefix of one server. Thread-safe.

    A context manager; close() ends its connections.
    """

    # Set once: _client, _prefix, _codec, _headers. Guarded by _free: _idle, _count, _closed.

    def __init__(self, client: Client, prefix: str = '/rpc', codec: Codec = JSON) -> None:
        """Connects to nothing yet. `client` says where and how, `prefix` is '' or like `/rpc`.

        Raises ValueError for another prefix.
        """
        if not _prefix.fullmatch(prefix):
            raise ValueError(f"prefix must be '' or like /rpc, not {prefix!r}")
        self._client = client
        self._prefix = prefix
        self._codec = codec
        self._headers = {
            'content-type': codec.content_type,
            'connect-protocol-version': PROTOCOL_VERSION,
        }
        self._free = threading.Condition()
        # Each with the time since when; the one that was used last is at the end.
        self._idle: list[tuple[Connection, float]] = []
        self._count = 0  # idle ones included
        self._closed = False

    def __enter__(self) -> RpcClient:
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
        with self._free:
            self._closed = True
            idle, self._idle = self._idle, []
            self._count -= len(idle)
            self._free.notify_all()
        for connection, _ in idle:
            connection.close()

    def __getitem__(self, service: str) -> ServiceProxy:
        """Return a proxy whose attributes call the methods of `service`.

        Raises ValueError for a name that no service has.
        """
        return ServiceProxy(self, _check_service(service))

    def bind(self, api: type[_Api], service: str) -> _Api:
        """Return an object of the class `api` whose methods call those of `service`.

        Each public function of the class says by its signature what the method takes and returns;
        its code is never run. A parameter that a call leaves out is not sent: the server's own
        default counts, not the one in the class.

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
        shape = build_shape(hints['return'])
        _, *parameters = inspect.signature(function).parameters.values()
        by_position = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]

        def stub(_self: Any, *values: Any, **arguments: Any) -> Any:
            if values:
                arguments = _merge(name, by_position, values, arguments)
            return self._call(procedure, arguments, shape)

        return stub

    def call(
        self, service: str, method: str, args: Mapping[str, Any], result_type: Any = Any
    ) -> Any:
        """Call a method with named arguments and return its result, as `result_type`.

        `Any` gives plain values. What bind() makes is faster with other types.

        Raises RpcError: what the server answered; `unavailable` when it cannot be reached or went
        away during the call (which then may have been executed), `deadline_exceeded` when it took
        longer than the `degu` client waits, `unauthenticated` when one side refused the other's
        certificate (trying again will not help), `resource_exhausted` for a message above the limit
        in either direction, `internal` for an answer that makes no sense.
        Raises CodecError for arguments that cannot travel, TypeError for a `result_type` that
        cannot, ValueError for a name that no service or method has; nothing was sent then.
        """
        shape = _ANY if result_type is Any else build_shape(result_type)
        return self._call(_build_procedure(service, method), args, shape)

    def _call(self, procedure: str, args: Mapping[str, Any], shape: Shape) -> Any:
        codec = self._codec
        message = codec.encode(args)
        if len(message) > MAX_MESSAGE_SIZE:
            raise RpcError(
                Code.RESOURCE_EXHAUSTED,
                f'the arguments of {procedure} are larger than {MAX_MESSAGE_SIZE} bytes',
            )
        uri = f'{self._prefix}/{procedure}'
        response, data = self._exchange(uri, message)
        content_type = response.headers.get('content-type')
        if response.status != 200:
            raise parse_error(response.status, _as_text(content_type), data, uri)
        if find_codec(_as_text(content_type)) is not codec:
            raise RpcError(
                Code.INTERNAL,
                f'{procedure} answered with content-type {content_type}, not {codec.content_type}',
            )
        try:
            return parse_value(data, shape, codec)
        except CodecError as error:
            raise RpcError(
                Code.INTERNAL, f'{procedure} answered what it must not: {error}'
            ) from error

    def _exchange(self, uri: str, message: bytes) -> tuple[Response, bytes]:
        """Send one request and read its response, to the end."""
        connection = self._take_connection()
        reusable = False
        try:
            response = connection.request('POST', uri, self._headers, message)
            data = read_message(response.body)
            reusable = not closes_connection(response.headers)
        except (OSError, DeguError) as error:
            raise _explain(error, uri) from error
        finally:
            self._put_connection(connection, reusable)
        return response, data

    # --- the pool ----------------------------------------------------------------------------

    def _take_connection(self) -> Connection:
        stale = []
        try:
            with self._free:
                while True:
                    if self._closed:
                        raise RpcError(Code.UNAVAILABLE, 'this client is closed')
                    if self._idle:
                        connection, since_s = self._idle.pop()
                        if monotonic() - since_s <= IDLE_TIMEOUT_S:
                            return connection
                        self._count -= 1
                        stale.append(connection)
                    elif self._count < MAX_CONNECTIONS:
                        self._count += 1
                        break
                    else:
                        self._free.wait()
        finally:
            for connection in stale:
                connection.close()
        try:
            return self._client.connect()
        except BaseException as error:
            self._forget_connection()
            if isinstance(error, OSError | DeguError):
                raise _explain_connect(error, self._client.address) from error
            raise

    def _put_connection(self, connection: Connection, reusable: bool) -> None:
        with self._free:
            if reusable and not self._closed:
                self._idle.append((connection, monotonic()))
                self._free.notify()
                return
        connection.close()
        self._forget_connection()

    def _forget_connection(self) -> None:
        with self._free:
            self._count -= 1
            self._free.notify()


class ServiceProxy:
    """The methods of one service as attributes: `client['files.v1.Files'].stat(path='/a')`."""

    __slots__ = ('_client', '_service')

    def __init__(self, client: RpcClient, service: str) -> None:
        self._client = client
        self._service = service

    def __repr__(self) -> str:
        return f'ServiceProxy({self._service!r})'

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """Return a function that calls `method`; it takes named arguments, see RpcClient.call()."""
        if method.startswith('_'):
            raise AttributeError(f'no method can be named {method!r}')

        def call(*values: Any, **arguments: Any) -> Any:
            if values:
                raise TypeError(
                    f'{method}(): arguments are named here; bind() gives positional ones'
                )
            return self._client.call(self._service, method, arguments)

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


def _as_text(header: object) -> str | None:
    return header if isinstance(header, str) else None


def _merge(
    method: str, names: list[str], values: tuple[Any, ...], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Give the values that came by position their names. Raises TypeError as a function would."""
    if len(values) > len(names):
        raise TypeError(f'{method}() takes {len(names)} arguments by position, not {len(values)}')
    named = dict(zip(names, values, strict=False))
    for name in named:
        if name in arguments:
            raise TypeError(f'{method}() got {name!r} twice')
    return named | arguments


def _explain_connect(error: OSError | DeguError, address: Address) -> RpcError:
    """Build the error that says what it means that there is no connection."""
    # A machine that was looked for in several places may still come up at another one of them.
    causes: list[Exception | None] = [error]
    if isinstance(error, UnreachableError):
        causes = [attempt.error for attempt in error.attempts if attempt.address is not None]
    if causes and all(isinstance(cause, CertificateError | UnknownPeerError) for cause in causes):
        return RpcError(
            Code.UNAUTHENTICATED, f'what answers at {address!r} is not who was meant: {error}'
        )
    return RpcError(Code.UNAVAILABLE, f'cannot connect to {address!r}: {error}')


def _explain(error: OSError | DeguError, uri: str) -> RpcError:
    """Build the error that says what a failed connection means for a call."""
    if isinstance(error, PeerRejectedError):
        return RpcError(Code.UNAUTHENTICATED, str(error))
    if isinstance(error, TimeoutError):
        return RpcError(Code.DEADLINE_EXCEEDED, f'{uri} took too long: {error}')
    if isinstance(error, ProtocolError):
        return RpcError(Code.INTERNAL, f'{uri} was answered with no response: {error}')
    return RpcError(
        Code.UNAVAILABLE,
        f'{uri} may or may not have been executed: {error or type(error).__name__}',
    )
