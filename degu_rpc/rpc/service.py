"""Services: functions that may be called from elsewhere, and by whom.

    files = Service('files.v1.Files')

    @files.method(allow='peer', safe=True)
    def stat(path: str) -> Stat: ...

1. At decoration the annotations are resolved and compiled: parameters into one struct, the result
   into a shape. What cannot travel, or is missing, fails there and not at the first call.
2. A call is first authorized: `Service.authorize` looks at who calls, before anything of what was
   sent is read. Nobody is allowed by default, and `allow` has no default.
3. `Method.call` takes the bytes of one map of named parameters and gives the bytes of the result.

An interceptor is a function `interceptor(context)` that returns a context manager. It is entered
before the parameters are looked at, and left when the call is over. It refuses a call by raising
RpcError, and sees in `__exit__` what the call ended with.

Roles: a caller needs one of those that `allow` names. `owner` (my own user, my own uid) may call
everything: my own machines are not strangers to each other.

Errors: a RpcError that the function raises goes to the caller as it is. Any other exception was not
meant for the caller: it learns a random reference, and the log has the rest under that reference.

Threads: services are filled by decorators before they are served (set once), and then called by
many threads at once. There is no I/O here.
"""

from __future__ import annotations

import collections.abc
import contextlib
import inspect
import logging
import re
import secrets
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from degu_rpc.errors import Code, CodecError, Fault, RpcError
from degu_rpc.peers import build_roles
from degu_rpc.rpc.codec import Shape, build_error, build_shape, convert_plain, format_value

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
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

_STREAMS = (
    collections.abc.Iterator,
    collections.abc.Generator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncGenerator,
)


_NO_INTERCEPTORS: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
_SWALLOWED = 'an interceptor must not suppress an exception: there is no result then'


class Context:
    """One call, as its function sees it: a parameter annotated with this class is given it.

    `.peer` is who calls, `.method` the full name (`files.v1.Files/stat`), `.headers` those of the
    request, with casefolded names.
    """

    __slots__ = ('headers', 'method', 'peer')

    def __init__(self, peer: Peer, method: str, headers: Mapping[str, Any]) -> None:
        self.peer = peer
        self.method = method
        self.headers = headers


if TYPE_CHECKING:
    Interceptor = Callable[[Context], AbstractContextManager[Any]]


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
    interceptors: tuple[Interceptor, ...]

    def call(self, data: bytes, codec: Codec, context: Context) -> bytes:
        """Call the function with the parameters in `data` and return the bytes of its result.

        Raises RpcError: `invalid_argument` with the path of each fault, `internal` for an exception
        that the function did not mean to raise or a result that cannot travel, and what the
        function raises.
        """
        try:
            with self._intercept(context):
                arguments = self._parse_arguments(data, codec)
                if self.context_parameter is not None:
                    arguments[self.context_parameter] = context
                return format_value(self.function(**arguments), self.result, codec)
            raise RuntimeError(_SWALLOWED)
        except RpcError:
            raise
        except Exception:  # noqa: BLE001  # whatever it is, it is logged and answered
            raise build_internal_error(self.full_name) from None

    def _intercept(self, context: Context) -> AbstractContextManager[Any]:
        if not self.interceptors:
            return _NO_INTERCEPTORS
        with contextlib.ExitStack() as stack:
            for interceptor in self.interceptors:
                stack.enter_context(interceptor(context))
            return stack.pop_all()

    def _parse_arguments(self, data: bytes, codec: Codec) -> dict[str, Any]:
        try:
            plain = codec.decode(data)
            try:
                struct = convert_plain(plain, self.struct, codec)
            except CodecError as error:
                raise build_error(self._find_faults(plain, codec) or list(error.faults)) from None
        except CodecError as error:
            raise RpcError(Code.INVALID_ARGUMENT, str(error)) from None
        return msgspec.structs.asdict(struct)

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
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError('a generator is a stream, and methods take and return single values')
    if inspect.iscoroutinefunction(function):
        raise TypeError('methods are plain functions, not coroutines')
    hints = typing.get_type_hints(function, include_extras=True)
    if 'return' not in hints:
        raise TypeError('the result has no annotation; write -> None if there is none')
    result = _build_shape('the result', hints['return'])
    shapes = {}
    required = set()
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    context_parameter = None
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f'parameter {name!r} cannot be given by name')
        if name not in hints:
            raise TypeError(f'parameter {name!r} has no annotation')
        annotation = hints[name]
        if annotation is Context:
            if context_parameter is not None:
                raise TypeError(f'parameter {name!r} is a second Context')
            context_parameter = name
            continue
        shapes[name] = _build_shape(f'parameter {name!r}', annotation)
        if parameter.default is parameter.empty:
            required.add(name)
            fields.append((name, annotation))
        else:
            fields.append((name, annotation, parameter.default))
    struct = msgspec.defstruct('Parameters', fields, forbid_unknown_fields=True, kw_only=True)
    return Method(
        full_name=full_name,
        function=function,
        roles=roles,
        safe=safe,
        idempotent=idempotent,
        parameters=shapes,
        required=frozenset(required),
        struct=Shape(struct, any(shape.has_datetime for shape in shapes.values())),
        context_parameter=context_parameter,
        result=result,
        interceptors=interceptors,
    )


def _build_shape(what: str, annotation: Any) -> Shape:
    if typing.get_origin(annotation) in _STREAMS or annotation in _STREAMS:
        raise TypeError(f'{what} is a stream, and methods take and return single values')
    try:
        return build_shape(annotation)
    except TypeError as error:
        raise TypeError(f'{what}: {error}') from error
