"""Declaration, authorization, validation, and what a caller may learn of an error."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from degu_rpc import Code, Context, RpcError, Service
from degu_rpc.rpc.codec import CODECS, JSON, MSGPACK, Codec
from degu_rpc.rpc.limits import MAX_FAULTS

if TYPE_CHECKING:
    from degu_rpc.peers import Peer

both = pytest.mark.parametrize('codec', CODECS, ids=lambda codec: codec.name)

BuildPeer = Callable[..., 'Peer']


@dataclasses.dataclass
class Stat:
    path: str
    size: int
    tags: list[str] = dataclasses.field(default_factory=list)


def call(service: Service, peer: Peer, name: str, codec: Codec = JSON, **args: Any) -> Any:
    method = service.authorize(name, peer)
    data = codec.encode(args)
    return codec.decode(method.call(data, codec, Context(peer, method.full_name, {'x': 'y'})))


@pytest.fixture
def service() -> Service:
    service = Service('files.v1.Files')

    @service.method(allow='peer', safe=True)
    def stat(path: str, depth: int = 1) -> Stat:
        return Stat(path, depth)

    @service.method(allow=['peer', 'guest'])
    def echo(ctx: Context, *, value: Stat) -> tuple[str, str, str, Stat]:
        return ctx.method, ctx.peer.name, ctx.headers['x'], value

    @service.method(allow='peer', idempotent=True)
    def fail(how: str) -> None:
        if how == 'rpc':
            raise RpcError(Code.NOT_FOUND, 'no such file', [{'path': '/a'}])
        raise KeyError('the secret')

    @service.method(allow='owner')
    def wipe() -> None:
        pass

    return service


# --- calls ---------------------------------------------------------------------------------------


@both
def test_call_gives_the_bare_result(service: Service, peer: BuildPeer, codec: Codec) -> None:
    result = call(service, peer('peer'), 'stat', codec, path='/a')
    assert result == {'path': '/a', 'size': 1, 'tags': []}


@both
def test_context_is_given_by_annotation(service: Service, peer: BuildPeer, codec: Codec) -> None:
    stat = {'path': '/a', 'size': 3, 'tags': ['x']}
    result = call(service, peer('guest'), 'echo', codec, value=stat)
    assert result == ['files.v1.Files/echo', 'uid:7', 'y', stat]


def test_caller_cannot_name_the_context(service: Service, peer: BuildPeer) -> None:
    with pytest.raises(RpcError, match=r'\$\.ctx: no such parameter'):
        call(service, peer('peer'), 'echo', ctx={}, value={'path': '/a', 'size': 3})


def test_decorated_function_stays_as_it_is() -> None:
    service = Service('a')

    @service.method(allow='peer')
    def double(n: int) -> int:
        return 2 * n

    assert double(4) == 8
    assert service.methods['double'].function is double


def test_methods_know_their_flags(service: Service) -> None:
    flags = {name: (method.safe, method.idempotent) for name, method in service.methods.items()}
    assert flags == {
        'stat': (True, True),
        'echo': (False, False),
        'fail': (False, True),
        'wipe': (False, False),
    }


# --- who may call --------------------------------------------------------------------------------


@pytest.mark.parametrize('roles', [(), ('guest',), ('peers',), ('PEER',), ('p', 'e', 'r')])
def test_caller_without_the_role_is_denied(
    service: Service, peer: BuildPeer, roles: tuple[str, ...]
) -> None:
    with pytest.raises(RpcError) as caught:
        service.authorize('stat', peer(*roles))
    assert caught.value.code is Code.PERMISSION_DENIED


def test_one_of_several_roles_is_enough(service: Service, peer: BuildPeer) -> None:
    assert service.authorize('echo', peer('guest', 'other')).full_name == 'files.v1.Files/echo'
    assert service.authorize('echo', peer('peer')).full_name == 'files.v1.Files/echo'


def test_owner_may_call_everything(service: Service, peer: BuildPeer) -> None:
    for name in service.methods:
        assert service.authorize(name, peer('owner'))


def test_only_the_owner_may_call_what_is_for_the_owner(service: Service, peer: BuildPeer) -> None:
    with pytest.raises(RpcError) as caught:
        service.authorize('wipe', peer('peer', 'guest'))
    assert caught.value.code is Code.PERMISSION_DENIED


def test_unknown_method_is_unimplemented(service: Service, peer: BuildPeer) -> None:
    for name in ('none', '', '__init__', 'Stat'):
        with pytest.raises(RpcError) as caught:
            service.authorize(name, peer('owner'))
        assert caught.value.code is Code.UNIMPLEMENTED


def test_allow_is_required() -> None:
    with pytest.raises(TypeError, match='allow'):
        Service('a').method()  # type: ignore[call-arg]  # what is tested


@pytest.mark.parametrize('allow', ['', [], {''}, ('peer', '')])
def test_allow_must_name_a_role(allow: Any) -> None:
    with pytest.raises(ValueError, match='must name a role'):
        Service('a').method(allow=allow)


@pytest.mark.parametrize('allow', [[None], (1, 'peer'), None, True])
def test_allow_must_be_strings(allow: Any) -> None:
    with pytest.raises(TypeError):
        Service('a').method(allow=allow)


def test_decorator_used_bare_says_what_is_missing() -> None:
    with pytest.raises(TypeError, match='allow'):

        @Service('a').method  # type: ignore[call-arg, arg-type]  # what is tested
        def f() -> None: ...


def test_nothing_may_stand_before_allow() -> None:
    with pytest.raises(TypeError, match=r'write @service\.method\(allow='):
        Service('a').method('peer', allow='peer')  # type: ignore[arg-type]  # what is tested


# --- what is sent --------------------------------------------------------------------------------


@both
def test_every_fault_is_told_with_its_path(service: Service, peer: BuildPeer, codec: Codec) -> None:
    method = service.authorize('echo', peer('peer'))
    context = Context(peer('peer'), method.full_name, {})
    data = codec.encode({'value': {'path': '/a', 'size': 1, 'tags': ['a', 2]}, 'z': 1})
    with pytest.raises(RpcError) as caught:
        method.call(data, codec, context)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == (
        '$.z: no such parameter; $.value.tags[1]: expected str, got int'
    )


@both
def test_faults_of_two_parameters_are_both_told(
    service: Service, peer: BuildPeer, codec: Codec
) -> None:
    with pytest.raises(RpcError) as caught:
        call(service, peer('peer'), 'stat', codec, path=1, depth='x')
    assert caught.value.message == '$.path: expected str, got int; $.depth: expected int, got str'


def test_missing_parameters_are_told(service: Service, peer: BuildPeer) -> None:
    with pytest.raises(RpcError) as caught:
        call(service, peer('peer'), 'stat')
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, '$.path: missing')


@pytest.mark.parametrize('data', [b'[]', b'null', b'"path"', b'1'])
def test_parameters_must_be_a_map(service: Service, peer: BuildPeer, data: bytes) -> None:
    method = service.authorize('stat', peer('peer'))
    with pytest.raises(RpcError) as caught:
        method.call(data, JSON, Context(peer('peer'), '', {}))
    assert caught.value.message == '$: expected a map of named parameters'


def test_message_without_a_byte_is_told_so(service: Service, peer: BuildPeer) -> None:
    method = service.authorize('wipe', peer('owner'))
    with pytest.raises(RpcError, match=r'the body is empty; for no parameters send \{\}'):
        method.call(b'', JSON, Context(peer('owner'), method.full_name, {}))


@pytest.mark.parametrize('data', [b'', b'{', b'{"path":"a","path":"b"}', b'\xff'])
def test_bytes_that_are_no_message_are_an_invalid_argument(
    service: Service, peer: BuildPeer, data: bytes
) -> None:
    method = service.authorize('stat', peer('peer'))
    with pytest.raises(RpcError) as caught:
        method.call(data, JSON, Context(peer('peer'), '', {}))
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_error_about_many_faults_stays_small(service: Service, peer: BuildPeer) -> None:
    args = {'x' * 10_000 + str(index): 1 for index in range(100)}
    with pytest.raises(RpcError) as caught:
        call(service, peer('peer'), 'stat', JSON, **args)
    assert caught.value.message.count('no such parameter') == MAX_FAULTS
    assert len(caught.value.message) < 10_000


def test_defaults_are_the_functions_own(peer: BuildPeer) -> None:
    service = Service('a')

    @service.method(allow='peer')
    def add(n: int, items: list[int] = [], name: str | None = None) -> list[Any]:  # noqa: B006  # what is tested
        items.append(n)
        return [items, name]

    assert call(service, peer('peer'), 'add', n=1) == [[1], None]
    assert call(service, peer('peer'), 'add', n=2) == [[2], None]


def test_datetime_parameter_needs_a_time_zone(peer: BuildPeer) -> None:
    service = Service('a')

    @service.method(allow='peer')
    def wait(until: list[datetime]) -> None:
        pass

    assert call(service, peer('peer'), 'wait', until=['2024-01-01T00:00:00Z']) is None
    with pytest.raises(RpcError, match=r'\$\.until\[0\]: expected datetime with a time zone'):
        call(service, peer('peer'), 'wait', until=['2024-01-01T00:00:00'])


# --- errors --------------------------------------------------------------------------------------


def test_rpc_error_of_a_method_goes_to_the_caller(service: Service, peer: BuildPeer) -> None:
    with pytest.raises(RpcError) as caught:
        call(service, peer('peer'), 'fail', how='rpc')
    assert caught.value.code is Code.NOT_FOUND
    assert caught.value.details == ({'path': '/a'},)


def test_unexpected_exception_is_internal_and_only_logged(
    service: Service, peer: BuildPeer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RpcError) as caught:
        call(service, peer('peer'), 'fail', how='other')
    error = caught.value
    assert error.code is Code.INTERNAL
    assert 'secret' not in error.message
    assert error.details == ()
    assert error.__cause__ is None
    reference = error.message.rpartition(' ')[2]
    assert len(reference) == 16
    [record] = caplog.records
    assert (record.name, record.levelno) == ('degu_rpc.rpc', logging.ERROR)
    assert reference in record.getMessage()
    assert 'files.v1.Files/fail' in record.getMessage()
    assert 'the secret' in caplog.text
    assert 'Traceback' in caplog.text


def test_references_differ(service: Service, peer: BuildPeer) -> None:
    messages = set()
    for _ in range(2):
        with pytest.raises(RpcError) as caught:
            call(service, peer('peer'), 'fail', how='other')
        messages.add(caught.value.message)
    assert len(messages) == 2


def test_exception_of_a_parameters_class_is_internal(peer: BuildPeer) -> None:
    @dataclasses.dataclass
    class Picky:
        n: int

        def __post_init__(self) -> None:
            raise KeyError('the secret')

    service = Service('a')

    def take(value: Picky) -> None:
        pass

    take.__annotations__ = {'value': Picky, 'return': None}
    service.method(allow='peer')(take)
    with pytest.raises(RpcError) as caught:
        call(service, peer('peer'), 'take', value={'n': 1})
    assert caught.value.code is Code.INTERNAL
    assert 'secret' not in caught.value.message


def test_result_that_cannot_travel_is_internal(
    peer: BuildPeer, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service('a')

    @service.method(allow='peer')
    def big() -> int:
        return 2**64

    assert call(service, peer('peer'), 'big') == 2**64
    with pytest.raises(RpcError) as caught:
        call(service, peer('peer'), 'big', MSGPACK)
    assert caught.value.code is Code.INTERNAL
    assert '64 bits' in caplog.text


# --- declaration ---------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['', '1a', 'a.', '.a', 'a..b', 'a/b', 'a b', 'é', 'a\n', 'a-b'])
def test_service_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match='name must be like'):
        Service(name)


class Opaque:
    pass


def _generator() -> Any:
    yield 1


async def _coroutine() -> int:
    return 1


async def _async_generator() -> Any:
    yield 1


def _bare_iterator() -> Iterator:  # type: ignore[type-arg]  # what is tested
    return iter([1])


def _bare_typing_iterator() -> typing.Iterator:  # type: ignore[type-arg]  # what is tested
    return iter([1])


def _bare_generator(a: typing.Generator) -> None:  # type: ignore[type-arg]  # what is tested
    pass


def _async_annotation() -> AsyncIterator[int]:
    raise NotImplementedError


def _second_stream(a: Iterator[int], b: Iterator[int]) -> None:
    pass


def _default_stream(a: Iterator[int] = iter([])) -> None:  # noqa: B008  # what is tested
    pass


def _opaque_stream(a: Iterator[Opaque]) -> None:
    pass


def _nested_stream(a: list[Iterator[int]]) -> None:
    pass


@pytest.mark.parametrize(
    ('function', 'why'),
    [
        (_bare_iterator, 'the result is a stream of what'),
        (_bare_typing_iterator, 'the result is a stream of what'),
        (_bare_generator, "parameter 'a' is a stream of what"),
        (_async_annotation, 'the result is a stream for coroutines'),
        (_generator, 'the result of a generator is a stream'),
        (_async_generator, 'not coroutines'),
        (_second_stream, "parameter 'b' is a second stream"),
        (_default_stream, "parameter 'a' is a stream and cannot have a default"),
        (_opaque_stream, "an item of parameter 'a': .*Opaque.* cannot travel"),
        (_nested_stream, 'cannot travel'),
    ],
)
def test_stream_that_cannot_be_is_refused_at_decoration(function: Any, why: str) -> None:
    function.__name__ = 'watch'
    with pytest.raises(TypeError, match=rf'a\.B/watch: .*{why}'):
        Service('a.B').method(allow='peer')(function)


@pytest.mark.parametrize(
    'default', [datetime(2020, 1, 1), Decimal('NaN'), object()], ids=['naive', 'NaN', 'opaque']
)
def test_default_that_would_make_each_call_fail_is_refused_at_decoration(default: Any) -> None:
    def when(t: datetime | None = None, price: Decimal | None = default) -> None:
        pass

    with pytest.raises(
        TypeError, match=r"a\.B/when: the default of parameter 'price' does not fit"
    ):
        Service('a.B').method(allow='peer')(when)


def test_coroutines_are_refused_at_decoration() -> None:
    _coroutine.__name__ = 'watch'
    with pytest.raises(TypeError, match='plain functions'):
        Service('a').method(allow='peer')(_coroutine)


def _opaque(value: list[Opaque]) -> None:
    pass


def _opaque_result() -> Opaque:
    raise NotImplementedError


def _no_annotation(value) -> None:  # type: ignore[no-untyped-def]  # what is tested
    pass


def _no_result(value: int):  # type: ignore[no-untyped-def]  # what is tested
    pass


def _positional(value: int, /) -> None:
    pass


def _many(*values: int) -> None:
    pass


def _more(**values: int) -> None:
    pass


def _two_contexts(a: Context, b: Context) -> None:
    pass


def _undefined(value: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821  # what is tested
    pass


def _mutable_default(value: list[int] = [1]) -> None:  # noqa: B006  # what is tested
    pass


@pytest.mark.parametrize(
    ('function', 'why'),
    [
        (_opaque, "parameter 'value': .*Opaque.* cannot travel"),
        (_opaque_result, 'the result: .*Opaque.* cannot travel'),
        (_no_annotation, "parameter 'value' has no annotation"),
        (_no_result, 'the result has no annotation'),
        (_positional, "parameter 'value' cannot be given by name"),
        (_many, "parameter 'values' cannot be given by name"),
        (_more, "parameter 'values' cannot be given by name"),
        (_two_contexts, "parameter 'b' is a second Context"),
        (_undefined, "name 'Missing' is not defined"),
        (_mutable_default, 'default'),
    ],
)
def test_function_that_cannot_be_called_fails_at_decoration(function: Any, why: str) -> None:
    function.__name__ = 'watch'
    service = Service('a')
    with pytest.raises(TypeError, match=f'a/watch: .*{why}'):
        service.method(allow='peer')(function)
    assert not service.methods


@pytest.mark.parametrize('name', ['_stat', '<lambda>', 'größe'])
def test_method_name_of_another_form_is_refused(name: str) -> None:
    def stat() -> None:
        pass

    stat.__name__ = name
    with pytest.raises(TypeError, match='must begin with a letter'):
        Service('a').method(allow='peer')(stat)


def test_method_name_that_is_taken_is_refused(service: Service) -> None:
    def stat() -> None:
        pass

    with pytest.raises(ValueError, match='declared already'):
        service.method(allow='peer')(stat)


def test_methods_cannot_be_changed_from_outside(service: Service) -> None:
    with pytest.raises(TypeError):
        service.methods['stat'] = service.methods['wipe']  # type: ignore[index]  # what is tested


def test_result_is_json_of_the_dataclass(service: Service, peer: BuildPeer) -> None:
    method = service.authorize('stat', peer('peer'))
    data = method.call(b'{"path": "/a"}', JSON, Context(peer('peer'), '', {}))
    assert json.loads(data) == {'path': '/a', 'size': 1, 'tags': []}


# --- interceptors --------------------------------------------------------------------------------


@both
def test_interceptors_are_entered_around_a_call_the_first_one_outermost(
    peer: BuildPeer, codec: Codec
) -> None:
    events: list[str] = []

    def intercept(name: str) -> Callable[[Context], Any]:
        @contextlib.contextmanager
        def interceptor(context: Context) -> Iterator[None]:
            events.append(f'{name} {context.method}')
            yield
            events.append(f'{name} left')

        return interceptor

    service = Service('a', [intercept('outer'), intercept('inner')])

    @service.method(allow='peer')
    def act(n: int) -> int:
        events.append('called')
        return n

    assert call(service, peer('peer'), 'act', codec, n=3) == 3
    assert events == ['outer a/act', 'inner a/act', 'called', 'inner left', 'outer left']


@pytest.mark.parametrize(
    ('n', 'seen'), [('x', 'invalid_argument'), (0, 'KeyError'), (1, 'not_found')]
)
def test_interceptor_sees_what_a_call_ends_with(peer: BuildPeer, n: Any, seen: str) -> None:
    found: list[str] = []

    @contextlib.contextmanager
    def interceptor(context: Context) -> Iterator[None]:
        try:
            yield
        except RpcError as error:
            found.append(error.code.value)
            raise
        except Exception as error:
            found.append(type(error).__name__)
            raise

    service = Service('a', [interceptor])

    @service.method(allow='peer')
    def act(n: int) -> None:
        raise RpcError(Code.NOT_FOUND, 'no') if n else KeyError(n)

    with pytest.raises(RpcError):
        call(service, peer('peer'), 'act', n=n)
    assert found == [seen]


def test_interceptor_refuses_a_call(peer: BuildPeer) -> None:
    def refuse(context: Context) -> Any:
        raise RpcError(Code.UNAVAILABLE, 'closed on Sundays')

    service = Service('a', [refuse])

    @service.method(allow='peer')
    def act() -> None:
        pytest.fail('it was called')

    with pytest.raises(RpcError, match='Sundays'):
        call(service, peer('peer'), 'act')


def test_interceptor_that_swallows_an_error_is_an_internal_error(peer: BuildPeer) -> None:
    service = Service('a', [lambda context: contextlib.suppress(KeyError)])

    @service.method(allow='peer')
    def act() -> None:
        raise KeyError

    with pytest.raises(RpcError) as caught:
        call(service, peer('peer'), 'act')
    assert caught.value.code is Code.INTERNAL


def test_interceptor_must_be_a_function() -> None:
    with pytest.raises(TypeError, match='callable'):
        Service('a', ['x'])  # type: ignore[list-item]  # what is tested
