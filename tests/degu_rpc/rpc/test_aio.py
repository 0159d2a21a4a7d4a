"""Calls from asyncio: results, errors, streams, and what is left early."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from degu_rpc import AsyncRpcClient, Code, Context, RpcApp, RpcClient, RpcError, Service
from degu_rpc.rpc.client import repeatable
from degu_rpc.rpc.limits import MAX_ATTEMPTS

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable


class Ticker:
    def __init__(self) -> None:
        self.ended = threading.Event()
        self.tries = 0
        service = Service('a.B')

        @service.method(allow='peer')
        def double(n: int) -> int:
            return 2 * n

        @service.method(allow='peer')
        def fail() -> None:
            raise RpcError(Code.NOT_FOUND, 'no')

        @service.method(allow='peer')
        def count(stop: int) -> Iterator[int]:
            yield from range(stop)

        @service.method(allow='peer')
        def total(numbers: Iterator[int], start: int = 0) -> int:
            return sum(numbers, start)

        @service.method(allow='peer')
        def triple(numbers: Iterator[int]) -> Iterator[int]:
            for number in numbers:
                yield 3 * number

        @service.method(allow='peer')
        def swallow(numbers: Iterator[int]) -> int:
            try:
                return sum(numbers)
            finally:
                self.ended.set()

        @service.method(allow='peer')
        def busy() -> None:
            self.tries += 1
            raise RpcError(Code.UNAVAILABLE, 'later')

        @service.method(allow='peer')
        def wait(ctx: Context) -> None:
            while True:
                ctx.check()
                time.sleep(0.01)

        @service.method(allow='peer')
        def tick(ctx: Context, times: int) -> Iterator[int]:
            try:
                yield from range(times)
                while True:
                    ctx.check()
                    time.sleep(0.01)
            finally:
                self.ended.set()

        self.app = RpcApp([service])


class Api:
    async def double(self, n: int) -> int:
        raise NotImplementedError

    async def total(self, numbers: AsyncIterator[int], start: int = 0) -> int:
        raise NotImplementedError

    def count(self, stop: int) -> AsyncIterator[int]:
        raise NotImplementedError

    def triple(self, numbers: Iterator[int]) -> AsyncGenerator[int, None]:
        raise NotImplementedError


async def iterate(*items: Any) -> AsyncIterator[Any]:
    for item in items:
        await asyncio.sleep(0)
        yield item


@pytest.fixture
def ticker() -> Ticker:
    return Ticker()


@pytest.fixture
def run(serve: Callable[..., Any], ticker: Ticker) -> Callable[..., Any]:
    client, _ = serve(ticker.app)

    def make(body: Callable[[AsyncRpcClient], Any]) -> Any:
        async def main() -> Any:
            async with AsyncRpcClient(RpcClient(client, '').using(timeout_s=1)) as aio:
                return await body(aio)

        return asyncio.run(main())

    return make


def test_calls_at_once(run: Any) -> None:
    async def body(aio: AsyncRpcClient) -> list[int]:
        return await asyncio.gather(*(aio.call('a.B', 'double', {'n': n}, int) for n in range(20)))

    assert run(body) == [2 * n for n in range(20)]


def test_error_is_raised_where_it_is_awaited(run: Any) -> None:
    async def body(aio: AsyncRpcClient) -> None:
        await aio.call('a.B', 'fail', {})

    with pytest.raises(RpcError) as caught:
        run(body)
    assert caught.value.code is Code.NOT_FOUND


def test_stream_of_results(run: Any) -> None:
    async def body(aio: AsyncRpcClient) -> list[int]:
        return [n async for n in aio.stream('a.B', 'count', {'stop': 5}, int)]

    assert run(body) == list(range(5))


def test_stream_that_is_left_early_ends_the_call(run: Any, ticker: Ticker) -> None:
    async def body(aio: AsyncRpcClient) -> int:
        stream = aio.stream('a.B', 'tick', {'times': 3})
        first: int = await anext(stream)
        await stream.aclose()
        return first

    assert run(body) == 0
    assert ticker.ended.wait(1)


def test_task_that_is_canceled_inside_a_stream_ends_the_call(run: Any, ticker: Ticker) -> None:
    async def body(aio: AsyncRpcClient) -> None:
        async def read() -> None:
            async for _ in aio.stream('a.B', 'tick', {'times': 1}):
                got.set()

        got = asyncio.Event()
        task = asyncio.create_task(read())
        await got.wait()
        task.cancel()
        with pytest.raises((asyncio.CancelledError, RpcError)):
            await task

    run(body)
    assert ticker.ended.wait(2)


# --- proxies and classes -------------------------------------------------------------------------


def test_attributes_of_a_proxy_are_calls(run: Any) -> None:
    async def body(aio: AsyncRpcClient) -> Any:
        assert await aio['a.B'].double(n=4) == 8
        return [n async for n in aio.streams('a.B').count(stop=3)]

    assert run(body) == [0, 1, 2]


def test_name_that_no_service_has_is_refused(run: Any) -> None:
    async def body(aio: AsyncRpcClient) -> None:
        for use in (aio.__getitem__, aio.streams, lambda name: aio.bind(Api, name)):
            with pytest.raises(ValueError, match='no service can be named'):
                use('a b')

    run(body)


def test_class_has_its_methods_awaited_and_its_streams_iterated(run: Any) -> None:
    async def body(aio: AsyncRpcClient) -> Any:
        api = aio.bind(Api, 'a.B')
        assert isinstance(api, Api)
        return (
            await api.double(4),
            await api.total(iterate(1, 2), start=10),
            [n async for n in api.count(stop=2)],
            [n async for n in api.triple([1, 2])],  # type: ignore[arg-type]  # works all the same
        )

    assert run(body) == (8, 13, [0, 1], [3, 6])


def test_result_of_a_class_is_checked(run: Any) -> None:
    class Wrong:
        async def double(self, n: int) -> str:
            raise NotImplementedError

    async def body(aio: AsyncRpcClient) -> None:
        await aio.bind(Wrong, 'a.B').double(4)

    with pytest.raises(RpcError, match='expected str, got int'):
        run(body)


def test_mark_of_what_is_repeatable_is_kept(run: Any, ticker: Ticker) -> None:
    class Marked:
        @repeatable
        async def busy(self) -> None:
            raise NotImplementedError

    async def body(aio: AsyncRpcClient) -> None:
        await aio.bind(Marked, 'a.B').busy()

    with pytest.raises(RpcError, match='later'):
        run(body)
    assert ticker.tries == MAX_ATTEMPTS


class PlainFunction:
    def double(self, n: int) -> int:
        raise NotImplementedError


class AwaitedStream:
    async def count(self, stop: int) -> AsyncIterator[int]:
        raise NotImplementedError


class PlainStream:
    def count(self, stop: int) -> Iterator[int]:
        raise NotImplementedError


class AwaitedPlainStream:
    async def count(self, stop: int) -> Iterator[int]:
        raise NotImplementedError


@pytest.mark.parametrize('api', [PlainFunction, AwaitedStream, PlainStream, AwaitedPlainStream])
def test_class_that_does_not_say_what_is_awaited_is_refused(run: Any, api: type) -> None:
    async def body(aio: AsyncRpcClient) -> None:
        aio.bind(api, 'a.B')

    with pytest.raises(TypeError, match=f'{api.__name__}.* write async def for what is awaited'):
        run(body)


def test_stream_of_nothing_in_particular_is_refused(run: Any) -> None:
    class Vague:
        def count(self, stop: int) -> AsyncIterator:  # type: ignore[type-arg]  # what is tested
            raise NotImplementedError

    async def body(aio: AsyncRpcClient) -> None:
        aio.bind(Vague, 'a.B')

    with pytest.raises(TypeError, match='a stream of what'):
        run(body)


def test_using_makes_calls_in_another_way(run: Any) -> None:
    async def body(aio: AsyncRpcClient) -> None:
        await aio.using(timeout_s=0.05)['a.B'].wait()

    with pytest.raises(RpcError) as caught:
        run(body)
    assert caught.value.code is Code.DEADLINE_EXCEEDED


# --- streams that are sent -----------------------------------------------------------------------


def test_stream_is_sent_from_either_kind_of_iterator(run: Any) -> None:
    async def body(aio: AsyncRpcClient) -> Any:
        service = aio['a.B']
        return (
            await service.total(numbers=iterate(1, 2)),
            await service.total(numbers=iter([3, 4])),
            [n async for n in aio.streams('a.B').triple(numbers=iterate(1))],
        )

    assert run(body) == (3, 7, [3])


def test_item_is_asked_for_when_the_one_before_was_sent(run: Any) -> None:
    async def body(aio: AsyncRpcClient) -> int:
        asked = 0

        class Source:
            def __aiter__(self) -> Source:
                return self

            async def __anext__(self) -> str:
                nonlocal asked
                asked += 1
                if asked == 3:
                    await asyncio.sleep(0.05)
                    assert asked == 3
                    raise StopAsyncIteration
                return '1'

        with pytest.raises(RpcError, match='expected int'):
            await aio['a.B'].total(numbers=Source())
        return asked

    assert run(body) == 3


def test_error_of_an_async_iterator_is_raised_where_the_call_is_awaited(run: Any) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise KeyError('mine')

    async def body(aio: AsyncRpcClient) -> None:
        await aio['a.B'].total(numbers=broken())

    with pytest.raises(KeyError, match='mine'):
        run(body)


def test_call_that_is_canceled_ends_at_the_next_item_of_what_it_sends(
    run: Any, ticker: Ticker
) -> None:
    closed = []

    async def body(aio: AsyncRpcClient) -> None:
        async def endless() -> AsyncIterator[int]:
            try:
                yield 1
                waits.set()
                await asyncio.Event().wait()
            finally:
                closed.append(True)

        waits = asyncio.Event()
        task = asyncio.create_task(aio.using()['a.B'].swallow(numbers=endless()))
        await waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ticker.ended.wait, 5)

    run(body)
    assert closed == [True]


# --- types ---------------------------------------------------------------------------------------

CALLS = [
    ('(await files.stat("/a")).upper()', None),
    ('[n + 1 async for n in files.watch(path="/a")]', None),
    ('(await files.put("/a", blocks())) + 1', None),
    ('files.stat("/a").upper()', 'attr-defined'),
    ('await files.stat(7)', 'arg-type'),
    ('await files.watch("/a")', 'misc'),
    ('[n for n in files.watch("/a")]', 'attr-defined'),
    ('[n.upper() async for n in files.watch("/a")]', 'attr-defined'),
    ('await files.put("/a", [b"x"])', 'arg-type'),
    ('await files.move("/a")', 'attr-defined'),
    ('await client.using(timeout_s="1")["a.B"].stat()', 'arg-type'),
]
SOURCE = """
from collections.abc import AsyncIterator
from degu_rpc import AsyncRpcClient

class Files:
    async def stat(self, path: str) -> str:
        raise NotImplementedError

    def watch(self, path: str) -> AsyncIterator[int]:
        raise NotImplementedError

    async def put(self, path: str, blocks: AsyncIterator[bytes]) -> int:
        raise NotImplementedError

async def blocks() -> AsyncIterator[bytes]:
    yield b''

async def use(client: AsyncRpcClient) -> None:
    files = client.bind(Files, 'files.v1.Files')
"""


@pytest.mark.slow
def test_mypy_takes_right_calls_of_a_class_and_rejects_wrong_ones(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'use.py').write_text(SOURCE + ''.join(f'    {call}\n' for call, _ in CALLS))
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'mypy', '--strict', '--no-error-summary'),
            *('--hide-error-context', '--cache-dir', str(tmp_path / 'cache'), 'use.py'),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if ' error: ' in line]
    found = {line.split(':')[1]: line.rpartition('[')[2].rstrip(']') for line in lines}
    first = SOURCE.count('\n') + 1
    wanted = {str(first + n): code for n, (_, code) in enumerate(CALLS) if code is not None}
    assert found == wanted, done.stdout + done.stderr
