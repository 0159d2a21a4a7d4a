"""Services: functions that may be called from elsewhere, and by whom.

    files = Service('files.v1.Files')

    @files.method(allow='peer', safe=True)
    def stat(path: str) -> Stat: ...

1. At decoration the annotations are resolved and compiled: parameters into one struct, the result
   into a shape. What cannot travel, or is missing, fails there and not at the first call. They say
   which kind of call it is, too: `Iterator[T]` (or a Generator) as the result is a stream of
   results, one parameter annotated `Iterator[T]` is a stream from the caller, and both is both.
2. A call is first authorized: `Service.authorize` looks at who calls, before anything of what was
   sent is read. Nobody is allowed by default, and `allow` has no default.
3. `Method.call` takes the bytes of one map of named parameters and gives the bytes of the result.
   `Method.stream` takes and gives messages: in go the map of all parameters but the stream, then
   the items of the stream; out come the results, or the one result.
4. Around both is the same: the call is the current one, the interceptors are entered, and what was
   not meant for the caller becomes an internal error.

An interceptor is a function `interceptor(context)` that returns a context manager. It is entered
before the parameters are looked at, and left when the call is over: for a stream of results, after
the last of them. So one shape does for every kind of call. It refuses a call by raising RpcError,
and sees in `__exit__` what the call ended with.

Roles: a caller needs one of those that `allow` names. `owner` (my own user, my own uid) may call
everything: my own machines are not strangers to each other.

Errors: a RpcError that the function raises goes to the caller as it is. Any other exception was not
meant for the caller: it learns a random reference, and the log has the rest under that reference.
So it is with a CallError, too: what became of a call that the function made is about another
server, and none of its codes says anything of this one. Where the time of both is over, that is
said.

Threads: services are filled by decorators before they are served (set once), and then called by
many threads at once. There is no I/O here.
"""

from __future__ import annotations

import collections.abc
import contextlib
import enum
import inspect
import logging
import re
import secrets
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from degu_rpc.errors import CallError, Code, CodecError, Fault, RpcError
from degu_rpc.peers import build_roles
from degu_rpc.rpc.codec import (
    MSGPACK,
    Shape,
    build_error,
    build_shape,
    check_scalars,
    convert_plain,
    format_value,
    parse_value,
)
from degu_rpc.rpc.context import Context, enter_context, leave_context
from degu_rpc.rpc.limits import MAX_MESSAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from typing import Never

    from degu_rpc.peers import Peer
    from degu_rpc.rpc.codec import Codec

_log = logging.getLogger('degu_rpc.rpc')

_Function = TypeVar('_Function', bound='Callable[..., Any]')

SERVICE_NAME = r'[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*'
METHOD_NAME = r'[A-Za-z][A-Za-z0-9_]*'
_service_name = re.compile(SERVICE_NAME)
_method_name = re.compile(METHOD_NAME)

_STREAMS = (collections.abc.Iterator, collections.abc.Generator)
_ASYNC_STREAMS = (collections.abc.AsyncIterator, collections.abc.AsyncGenerator)
_SWALLOWED = 'an interceptor must not suppress an exception: there is no result then'

if TYPE_CHECKING:
    Interceptor = Callable[[Context], AbstractContextManager[Any]]


class Kind(enum.Enum):
    """Which side of a call is a stream."""

    UNARY = 'unary'
    SERVER_STREAM = 'server_stream'
    CLIENT_STREAM = 'client_stream'
    BIDI_STREAM = 'bidi_stream'

    @property
    def takes_stream(self) -> bool:
        """Whether the caller sends a stream."""
        return self in (Kind.CLIENT_STREAM, Kind.BIDI_STREAM)

    @property
    def gives_stream(self) -> bool:
        """Whether the results are a stream."""
        return self in (Kind.SERVER_STREAM, Kind.BIDI_STREAM)


@dataclass(frozen=True, slots=True)
class Method:
    """A function that may be called, compiled by Service.method()."""

    full_name: str
    function: Callable[..., Any]
    roles: frozenset[str]
    safe: bool
    idempotent: bool
    parameters: Mapping[str, Shape]
    """Each parameter that a caller may name."""
    required: frozenset[str]
    """Those that it must name."""
    struct: Shape
    """All of them in one struct."""
    context_parameter: str | None
    result: Shape
    """The result, or each of a stream of results."""
    kind: Kind
    stream_parameter: str | None
    """The parameter that is a stream from the caller; it is none of `parameters`."""
    item: Shape | None
    """Each item of that stream."""
    interceptors: tuple[Interceptor, ...]

    def call(self, data: bytes, codec: Codec, context: Context) -> bytes:
        """Call the function with the parameters in `data` and return the bytes of its result.

        Raises RpcError: `invalid_argument` with the path of each fault, `internal` for an exception
        that the function did not mean to raise or a result that cannot travel, `resource_exhausted`
        for a result above MAX_MESSAGE_SIZE, and what the function raises.
        """
        token = enter_context(context)
        try:
            if not self.interceptors:
                return self._run(data, codec, context)
            with self._intercept(context):
                return self._run(data, codec, context)
            raise RuntimeError(_SWALLOWED)
        except CallError as error:
            raise self._settle_call_error(error, context) from None
        except RpcError:
            raise
        except Exception:  # noqa: BLE001  # whatever it is, it is logged and answered
            raise build_internal_error(self.full_name) from None
        finally:
            leave_context(token)

    def _run(self, data: bytes, codec: Codec, context: Context) -> bytes:
        result = self.function(**self._prepare(data, codec, context))
        return self._format(result, codec)

    def stream(self, messages: Iterator[bytes], codec: Codec, context: Context) -> Iterator[bytes]:
        """Call the function of a method with a stream, and yield the bytes of each result.

        The first of `messages` has the parameters; the function is called once it is there. It
        takes the others as it likes, and what `messages` raises is raised where it does. Between
        two results the context is checked. The function's generator is closed when this one is.

        Raises what call() does, at any point.
        """
        token = enter_context(context)
        try:
            with self._intercept(context):
                data = next(messages, None)
                if data is None:
                    raise RpcError(Code.INVALID_ARGUMENT, 'there is no message with the parameters')
                arguments = self._prepare(data, codec, context)
                if self.stream_parameter is not None:
                    arguments[self.stream_parameter] = self._parse_items(messages, codec)
                elif next(messages, None) is not None:
                    raise RpcError(Code.INVALID_ARGUMENT, 'there is more than one message')
                result = self.function(**arguments)
                if self.kind is Kind.CLIENT_STREAM:
                    yield self._format(result, codec)
                    return
                with contextlib.closing(_closable(result)) as results:
                    for item in results:
                        context.check()
                        yield self._format(item, codec)
                return
            raise RuntimeError(_SWALLOWED)
        except CallError as error:
            raise self._settle_call_error(error, context) from None
        except RpcError:
            raise
        except Exception:  # noqa: BLE001  # whatever it is, it is logged and answered
            raise build_internal_error(self.full_name) from None
        finally:
            leave_context(token)

    def _intercept(self, context: Context) -> AbstractContextManager[Any]:
        with contextlib.ExitStack() as stack:
            for interceptor in self.interceptors:
                stack.enter_context(interceptor(context))

            def settle(_kind: object, error: object, _traceback: object) -> None:
                if isinstance(error, CallError):  # interceptors see what the caller gets
                    raise self._settle_call_error(error, context) from None

            stack.push(settle)
            return stack.pop_all()

    def _settle_call_error(self, error: CallError, context: Context) -> RpcError:
        """Return what it is to the caller that a call failed which the function made."""
        if error.code is Code.DEADLINE_EXCEEDED:
            try:
                context.check()
            except RpcError as own:
                return own
        return build_internal_error(self.full_name)

    def _prepare(self, data: bytes, codec: Codec, context: Context) -> dict[str, Any]:
        if context.remaining() == 0:
            context.check()  # nobody waits for what the function would do
        try:
            arguments = msgspec.structs.asdict(parse_value(data, self.struct, codec))
        except CodecError as error:
            explained = self._explain(error, data, codec)
            raise RpcError(Code.INVALID_ARGUMENT, str(explained)) from None
        if self.context_parameter is not None:
            arguments[self.context_parameter] = context
        return arguments

    def _format(self, result: Any, codec: Codec) -> bytes:
        """Return the bytes of a result; called where the interceptors see what it raises."""
        data = format_value(result, self.result, codec)
        if len(data) > MAX_MESSAGE_SIZE:
            raise RpcError(
                Code.RESOURCE_EXHAUSTED, f'the result is larger than {MAX_MESSAGE_SIZE} bytes'
            )
        return data

    def _parse_items(self, messages: Iterator[bytes], codec: Codec) -> Iterator[Any]:
        assert self.item is not None
        for index, data in enumerate(messages):
            try:
                item = parse_value(data, self.item, codec)
            except CodecError as error:
                raise RpcError(
                    Code.INVALID_ARGUMENT, f'{self.stream_parameter}, item {index}: {error}'
                ) from None
            yield item

    def _explain(self, error: CodecError, data: bytes, codec: Codec) -> CodecError:
        """Build the error that tells of all faults, where it is the parameters that have them."""
        if not data:
            return CodecError(Fault('$', 'the body is empty; for no parameters send {}'))
        try:
            plain = codec.decode(data)
        except CodecError:
            return error
        return build_error(self._find_faults(plain, codec) or list(error.faults))

    def _find_faults(self, plain: Any, codec: Codec) -> list[Fault]:
        """Look at each parameter alone, as msgspec stops at the first fault."""
        if not isinstance(plain, dict):
            return [Fault('$', 'expected a map of named parameters')]
        faults = [
            Fault(f'$.{name}', 'no such parameter') for name in plain if name not in self.parameters
        ]
        faults += [
            Fault(f'$.{name}', 'missing') for name in sorted(self.required.difference(plain))
        ]
        for name, shape in self.parameters.items():
            if name in plain:
                try:
                    convert_plain(plain[name], shape, codec)
                except CodecError as error:
                    faults += [
                        Fault(f'$.{name}{path[1:]}', reason) for path, reason in error.faults
                    ]
        return faults


class Service:
    """Methods under one name, which has its version in it: `files.v1.Files`."""

    # Set once: name, _interceptors, _methods (by decoration, before serving).

    def __init__(self, name: str, interceptors: Iterable[Interceptor] = ()) -> None:
        """Give it a name, and what is entered around each call, the first one outermost.

        Raises ValueError for a name that is not identifiers with dots between them, TypeError for
        an interceptor that is no function.
        """
        if not _service_name.fullmatch(name):
            raise ValueError(f'name must be like files.v1.Files, not {name!r}')
        self.name = name
        self._interceptors = tuple(interceptors)
        for interceptor in self._interceptors:
            if not callable(interceptor):
                raise TypeError(f'an interceptor must be callable, not {interceptor!r}')
        self._methods: dict[str, Method] = {}

    def __repr__(self) -> str:
        return f'Service({self.name!r})'

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods by name, read-only."""
        return types.MappingProxyType(self._methods)

    def method(
        self,
        *misplaced: Never,
        allow: str | Collection[str],
        safe: bool = False,
        idempotent: bool = False,
    ) -> Callable[[_Function], _Function]:
        """Declare that a function may be called by peers with the role `allow`, or one of them.

        `safe` says that a call changes nothing, `idempotent` that a second one changes nothing
        more (what is safe is idempotent). The function itself stays as it is.

        Raises TypeError or ValueError for roles that are none. Decorating raises TypeError for a
        function that cannot be called from elsewhere, and says why, and ValueError for a name that
        is taken.
        """
        if misplaced:
            raise TypeError("write @service.method(allow='role'), with nothing before allow")
        roles = build_roles(allow)

        def declare(function: _Function) -> _Function:
            name = function.__name__
            full_name = f'{self.name}/{name}'
            if not _method_name.fullmatch(name):
                raise TypeError(f'{full_name}: the name must begin with a letter and be ASCII')
            if name in self._methods:
                raise ValueError(f'{full_name} is declared already')
            try:
                self._methods[name] = _build_method(
                    full_name, function, roles, safe, idempotent or safe, self._interceptors
                )
            except (TypeError, NameError) as error:
                raise TypeError(f'{full_name}: {error}') from error
            return function

        return declare

    def authorize(self, name: str, peer: Peer) -> Method:
        """Return the method `name` if `peer` may call it.

        Raises RpcError: `unimplemented` for a method that is not there, `permission_denied` for a
        peer without one of its roles.
        """
        method = self._methods.get(name)
        if method is None:
            raise RpcError(Code.UNIMPLEMENTED, f'{self.name} has no method {name}')
        if method.roles.isdisjoint(peer.roles):
            raise RpcError(Code.PERMISSION_DENIED, f'{method.full_name} is not for your roles')
        return method


def index_services(services: Iterable[Service]) -> dict[str, Service]:
    """Return services by name.

    Raises ValueError for two with one name, TypeError for a service on its own.
    """
    if isinstance(services, Service):
        raise TypeError('services must be several, or a list with one: [service]')
    found: dict[str, Service] = {}
    for service in services:
        if service.name in found:
            raise ValueError(f'two services are named {service.name!r}')
        found[service.name] = service
    return found


def join_roles(services: Iterable[Service]) -> frozenset[str]:
    """Return the roles that may call anything of `services`."""
    methods = [method for service in services for method in service.methods.values()]
    return frozenset[str]().union(*(method.roles for method in methods))


def build_internal_error(what: str) -> RpcError:
    """Log the exception being handled, and build the error that tells a caller nothing of it."""
    reference = secrets.token_hex(8)
    _log.exception('%s failed, reference %s', what, reference)
    return RpcError(Code.INTERNAL, f'internal error, reference {reference}')


def _build_method(
    full_name: str,
    function: Callable[..., Any],
    roles: frozenset[str],
    safe: bool,
    idempotent: bool,
    interceptors: tuple[Interceptor, ...],
) -> Method:
    """Compile a function. Raises TypeError or NameError for one that cannot be called."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError('methods are plain functions and generators, not coroutines')
    hints = typing.get_type_hints(function, include_extras=True)
    if 'return' not in hints:
        raise TypeError('the result has no annotation; write -> None if there is none')
    result_item = find_stream_item('the result', hints['return'])
    if inspect.isgeneratorfunction(function) and result_item is None:
        raise TypeError('the result of a generator is a stream: write -> Iterator[...]')
    result = _build_shape(
        'the result', hints['return'] if result_item is None else result_item.annotation
    )
    stream_parameter = stream_item = None
    shapes = {}
    required = set()
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    context_parameter = None
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f'parameter {name!r} cannot be given by name')
        if name == 'self' and name not in hints:
            raise TypeError(
                'self is no parameter: register the method of an instance, '
                f'service.method(allow=...)(instance.{function.__name__})'
            )
        if name not in hints:
            raise TypeError(f'parameter {name!r} has no annotation')
        annotation = hints[name]
        if annotation is Context:
            if context_parameter is not None:
                raise TypeError(f'parameter {name!r} is a second Context')
            context_parameter = name
            continue
        item = find_stream_item(f'parameter {name!r}', annotation)
        if item is not None:
            if stream_parameter is not None:
                raise TypeError(f'parameter {name!r} is a second stream')
            if parameter.default is not parameter.empty:
                raise TypeError(f'parameter {name!r} is a stream and cannot have a default')
            stream_parameter, stream_item = name, item
            continue
        shapes[name] = _build_shape(f'parameter {name!r}', annotation)
        if parameter.default is parameter.empty:
            required.add(name)
            fields.append((name, annotation))
        else:
            _check_default(name, parameter.default, shapes[name])
            fields.append((name, annotation, parameter.default))
    struct = build_shape(
        msgspec.defstruct('Parameters', fields, forbid_unknown_fields=True, kw_only=True)
    )
    if struct.has_datetime or struct.has_decimal:  # all of a call's parameters are looked through
        for name, _, *defaults in fields:
            _check_scalars(name, defaults)
    return Method(
        full_name=full_name,
        function=function,
        roles=roles,
        safe=safe,
        idempotent=idempotent,
        parameters=shapes,
        required=frozenset(required),
        struct=struct,
        context_parameter=context_parameter,
        result=result,
        kind=find_kind(stream_item is not None, result_item is not None),
        stream_parameter=stream_parameter,
        item=stream_item,
        interceptors=interceptors,
    )


def _check_scalars(name: str, defaults: list[Any]) -> None:
    try:
        check_scalars(defaults)
    except CodecError as error:
        raise TypeError(f'the default of parameter {name!r} does not fit: {error}') from error


def _check_default(name: str, default: Any, shape: Shape) -> None:
    """Raise TypeError for a default that no caller could send: it would make each call fail."""
    if default is msgspec.UNSET or shape.annotation is Any:  # can stand for "not given"
        return
    try:
        plain = msgspec.to_builtins(default, builtin_types=MSGPACK.native_types, str_keys=True)
        convert_plain(plain, shape, MSGPACK)
    except (CodecError, TypeError, ValueError, RecursionError) as error:
        raise TypeError(f'the default of parameter {name!r} does not fit: {error}') from error


def find_kind(takes_stream: bool, gives_stream: bool) -> Kind:
    """Return the kind of a call by which of its sides are streams."""
    if takes_stream:
        return Kind.BIDI_STREAM if gives_stream else Kind.CLIENT_STREAM
    return Kind.SERVER_STREAM if gives_stream else Kind.UNARY


def find_stream_item(what: str, annotation: Any, other: type | None = None) -> Shape | None:
    """Return the shape of each item where an annotation is that of a stream, None where it is not.

    `other` is a class that counts as one, too.

    Raises TypeError for a stream that does not say of what, or of what cannot travel.
    """
    origin = typing.get_origin(annotation)
    if origin in _ASYNC_STREAMS or annotation in _ASYNC_STREAMS:
        raise TypeError(f'{what} is a stream for coroutines; use Iterator')
    streams = _STREAMS if other is None else (*_STREAMS, other)
    if annotation not in streams and origin not in streams:
        return None
    arguments = typing.get_args(annotation)
    if not arguments:  # typing.Iterator has an origin all the same
        raise TypeError(f'{what} is a stream of what? Write {annotation.__name__}[...]')
    return _build_shape(f'an item of {what}', arguments[0])


def _closable(result: Any) -> Any:
    """Return an iterator over `result` that has a close(), as a generator's does."""
    results = iter(result)
    return results if hasattr(results, 'close') else (item for item in results)


def _build_shape(what: str, annotation: Any) -> Shape:
    try:
        return build_shape(annotation)
    except TypeError as error:
        raise TypeError(f'{what}: {error}') from error
