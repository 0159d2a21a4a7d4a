"""Interceptors of a client: one shape for every kind of call; what they see and may change."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from degu.client import Client
from degu_rpc import Code, Context, RpcApp, RpcClient, RpcError, Service
from degu_rpc.rpc.context import enter_context, leave_context

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

    from degu_rpc.rpc.interception import ClientCall

NAME = 'a.v1.A'


class Recorder:
    """An interceptor that notes when it is entered and how it is left."""

    def __init__(self, name: str = '', headers: dict[str, str] | None = None) -> None:
        self.name = name
        self.headers = headers or {}
        self.events: list[Any] = []
        self.calls: list[ClientCall] = []

    @contextmanager
    def __call__(self, call: ClientCall) -> Iterator[None]:
        self.calls.append(call)
        self.events.append(f'enter {self.name}{call.method}')
        call.headers.update(self.headers)
        try:
            yield
        except BaseException as error:
            self.events.append(getattr(error, 'code', type(error)))
            raise
        self.events.append(f'exit {self.name}{call.method}')


@pytest.fixture
def seen() -> list[dict[str, Any]]:
    """Give the headers of each call that a server got."""
    return []


@pytest.fixture
def connect(serve: Callable[..., Any], seen: list[dict[str, Any]]) -> Callable[..., RpcClient]:
    @contextmanager
    def note(ctx: Context) -> Iterator[None]:
        seen.append(dict(ctx.headers))
        yield

    service = Service(NAME, [note])

    @service.method(allow='peer')
    def double(ctx: Context, n: int) -> int:
        ctx.response_headers['x-cost'] = '3'
        return 2 * n

    @service.method(allow='peer')
    def fail() -> None:
        raise RpcError(Code.NOT_FOUND, 'no')

    @service.method(allow='peer')
    def count(ctx: Context, stop: int) -> Iterator[int]:
        ctx.response_headers['x-cost'] = '4'
        yield from range(stop)
        if stop == 13:
            raise RpcError(Code.ABORTED, 'unlucky')

    @service.method(allow='peer')
    def total(items: Iterator[int]) -> int:
        return sum(items)

    @service.method(allow='peer')
    def triple(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            yield 3 * item

    client, _ = serve(RpcApp([service]))
    return lambda *interceptors: RpcClient(client, '', interceptors=interceptors)


CALLS: dict[str, Callable[[RpcClient], Any]] = {
    'double': lambda rpc: rpc[NAME].double(n=4),
    'count': lambda rpc: list(rpc.streams(NAME).count(stop=2)),
    'total': lambda rpc: rpc[NAME].total(items=iter([1, 2])),
    'triple': lambda rpc: list(rpc.streams(NAME).triple(items=iter([1]))),
}
EXPECTED = {'double': 8, 'count': [0, 1], 'total': 3, 'triple': [3]}


@pytest.mark.parametrize('method', CALLS)
def test_each_kind_of_call_is_entered_once_and_left_once(
    connect: Callable[..., RpcClient], method: str
) -> None:
    recorder = Recorder()
    with connect(recorder) as rpc:
        assert CALLS[method](rpc) == EXPECTED[method]
    assert recorder.events == [f'enter {NAME}/{method}', f'exit {NAME}/{method}']


@pytest.mark.parametrize('method', CALLS)
def test_header_that_an_interceptor_adds_is_sent(
    connect: Callable[..., RpcClient], method: str, seen: list[dict[str, Any]]
) -> None:
    with connect(Recorder(headers={'x-mine': 'yes', 'x-request-id': 'me'})) as rpc:
        CALLS[method](rpc)
    assert [(headers['x-mine'], headers['x-request-id']) for headers in seen] == [('yes', 'me')]


@pytest.mark.parametrize('method', CALLS)
@pytest.mark.parametrize(
    ('name', 'value', 'error'),
    [
        ('content-type', 'text/plain', 'an interceptor cannot change content-type'),
        ('content-encoding', 'gzip', 'cannot change content-encoding'),
        ('connect-timeout-ms', '7', 'cannot change connect-timeout-ms'),
        ('idempotency-key', 'k', 'cannot change idempotency-key'),
        ('x-mine', 'two\r\nlines', 'x-mine must be printable'),
        ('X-Mine', 'capital', 'a header name must be'),
    ],
)
def test_header_that_is_not_an_interceptors_to_set_is_refused(
    connect: Callable[..., RpcClient],
    seen: list[dict[str, Any]],
    method: str,
    name: str,
    value: str,
    error: str,
) -> None:
    recorder = Recorder()
    with (
        connect(recorder, Recorder(headers={name: value})) as rpc,
        pytest.raises(ValueError, match=error),
    ):
        CALLS[method](rpc)
    assert seen == []
    assert recorder.events[1:] == [ValueError]


def test_first_interceptor_is_the_outermost(connect: Callable[..., RpcClient]) -> None:
    events: list[Any] = []
    outer, inner = Recorder('outer '), Recorder('inner ')
    outer.events = inner.events = events
    with connect(outer, inner) as rpc:
        CALLS['double'](rpc)
    assert [event.split()[:2] for event in events] == [
        ['enter', 'outer'],
        ['enter', 'inner'],
        ['exit', 'inner'],
        ['exit', 'outer'],
    ]


def test_error_of_a_call_is_what_an_interceptor_sees(connect: Callable[..., RpcClient]) -> None:
    recorder = Recorder()
    with connect(recorder) as rpc:
        with suppress(RpcError):
            rpc[NAME].fail()
        with suppress(RpcError):
            list(rpc.streams(NAME).count(stop=13))
        with suppress(RpcError):
            list(rpc.streams(NAME).nothing())
    assert recorder.events[1::2] == [Code.NOT_FOUND, Code.ABORTED, Code.UNIMPLEMENTED]


def test_stream_that_is_left_early_is_left(connect: Callable[..., RpcClient]) -> None:
    recorder = Recorder()
    with connect(recorder) as rpc:
        with rpc.streams(NAME).count(stop=100_000) as results:
            next(results)
            assert len(recorder.events) == 1
        assert recorder.events[1:] == [GeneratorExit]


def test_stream_that_nobody_read_is_left(connect: Callable[..., RpcClient]) -> None:
    recorder = Recorder()
    with connect(recorder) as rpc:
        rpc.streams(NAME).count(stop=3).close()
        assert recorder.events[1:] == [GeneratorExit]


def test_stream_that_is_forgotten_is_left(connect: Callable[..., RpcClient]) -> None:
    recorder = Recorder()
    gc.disable()  # at once, and not with the next collection
    try:
        with connect(recorder) as rpc:
            next(rpc.streams(NAME).count(stop=100_000))
            assert recorder.events[1:] == [GeneratorExit]
    finally:
        gc.enable()


def test_refusal_is_raised_and_nothing_is_sent(
    connect: Callable[..., RpcClient], seen: list[dict[str, Any]]
) -> None:
    @contextmanager
    def refuse(call: ClientCall) -> Iterator[None]:
        raise RpcError(Code.PERMISSION_DENIED, f'not {call.method}')
        yield

    recorder = Recorder()
    with connect(recorder, refuse) as rpc:
        for call in CALLS.values():
            with pytest.raises(RpcError, match='not a') as caught:
                call(rpc)
            assert caught.value.code is Code.PERMISSION_DENIED
    assert seen == []
    assert recorder.events[1::2] == [Code.PERMISSION_DENIED] * 4


def test_exception_that_is_suppressed_is_an_error(connect: Callable[..., RpcClient]) -> None:
    def swallow(_call: ClientCall) -> Any:
        return suppress(RpcError)

    with connect(swallow) as rpc:
        with pytest.raises(RuntimeError, match='must not suppress'):
            rpc[NAME].fail()
        with pytest.raises(RuntimeError, match='must not suppress'):
            list(rpc.streams(NAME).count(stop=13))


@pytest.mark.parametrize(('method', 'cost'), [('double', '3'), ('count', '4')])
def test_response_headers_are_there_when_a_call_is_over(
    connect: Callable[..., RpcClient], method: str, cost: str
) -> None:
    costs = []

    @contextmanager
    def bill(call: ClientCall) -> Iterator[None]:
        assert call.response_headers == {}
        yield
        costs.append((call.response_headers['x-cost'], 'x-request-id' in call.response_headers))

    with connect(Recorder(headers={'x-request-id': 'me'}), bill) as rpc:
        CALLS[method](rpc)
    assert costs == [(cost, True)]


def test_deadline_is_the_calls_and_none_for_a_stream_without_a_time(
    connect: Callable[..., RpcClient],
) -> None:
    recorder = Recorder()
    with connect(recorder) as rpc:
        CALLS['double'](rpc)
        CALLS['count'](rpc)
        CALLS['count'](rpc.using(timeout_s=7))
    assert [call.deadline and call.deadline.timeout_s for call in recorder.calls] == [30, None, 7]


def test_interceptor_sees_what_is_inherited(
    connect: Callable[..., RpcClient], peer: Callable[..., Any]
) -> None:
    recorder = Recorder()
    token = enter_context(Context(peer('peer'), 'b.B/b', {'x-request-id': 'outer'}))
    try:
        with connect(recorder) as rpc:
            CALLS['double'](rpc)
    finally:
        leave_context(token)
    assert recorder.calls[0].headers['x-request-id'] == 'outer'


def test_clients_of_using_and_bind_have_the_interceptors(connect: Callable[..., RpcClient]) -> None:
    class Api:
        def double(self, n: int) -> int:
            raise NotImplementedError

    recorder = Recorder()
    with connect(recorder) as rpc:
        CALLS['double'](rpc.using(timeout_s=7, repeatable=True))
        rpc.bind(Api, NAME).double(3)
    assert len(recorder.events) == 4


def test_all_attempts_of_a_call_are_one(tmp_path: pathlib.Path) -> None:
    recorder = Recorder()
    with (
        RpcClient(Client(str(tmp_path / 'nobody')), interceptors=[recorder]) as rpc,
        pytest.raises(RpcError),
    ):
        rpc[NAME].double(n=1)
    assert recorder.events == [f'enter {NAME}/double', Code.UNAVAILABLE]


def test_something_else_than_a_function_is_refused() -> None:
    with pytest.raises(TypeError, match='an interceptor must be callable, not 7'):
        RpcClient(Client(('127.0.0.1', 1)), interceptors=[7])  # type: ignore[list-item]  # tested
