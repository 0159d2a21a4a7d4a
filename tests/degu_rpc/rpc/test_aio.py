"""Calls from asyncio: results, errors, streams, and what is left early."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from degu_rpc import AsyncRpcClient, Code, Context, RpcApp, RpcClient, RpcError, Service

if TYPE_CHECKING:
    from collections.abc import Callable


class Ticker:
    def __init__(self) -> None:
        self.ended = threading.Event()
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
        def tick(ctx: Context, times: int) -> Iterator[int]:
            try:
                yield from range(times)
                while True:
                    ctx.check()
                    time.sleep(0.01)
            finally:
                self.ended.set()

        self.app = RpcApp([service])


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
