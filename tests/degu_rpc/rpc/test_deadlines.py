"""Calls under a server that has none of our own keys in its connections."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from degu_rpc import Code, Context, Router, RpcApp, RpcClient, RpcError, Service
from degu_rpc.rpc.jsonrpc import JsonRpcApp

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = ('rgi.set_deadline', 'rgi.is_client_gone')


class Foreign:
    """Middleware that hides what another server would not give."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Any:
        theirs = {name: value for name, value in connection.items() if name not in OURS}
        return self.app(theirs, request)


@pytest.fixture
def address(serve: Callable[..., Any]) -> Any:
    service = Service('a.B')

    @service.method(allow='peer', safe=True)
    def wait(ctx: Context) -> None:
        while True:
            ctx.check()
            time.sleep(0.005)

    @service.method(allow='peer')
    def tick(ctx: Context, stop: int) -> Iterator[int]:
        yield from range(stop)
        while ctx.deadline is not None:
            ctx.check()
            time.sleep(0.005)

    router = Router()
    router.mount('/rpc', RpcApp([service]))
    router.mount('/jsonrpc', JsonRpcApp([service]))
    client, _ = serve(Foreign(router))
    return client


def test_method_learns_that_its_time_is_over(address: Any) -> None:
    headers = {'content-type': 'application/json', 'connect-timeout-ms': '50'}
    with address.connect() as conn:
        assert conn.post('/rpc/a.B/wait', headers, b'{}').status == 504
    with address.connect() as conn:
        question = b'{"jsonrpc":"2.0","method":"a.B.wait","id":1}'
        answer = json.loads(conn.post('/jsonrpc', headers, question).body.read())
    assert answer['error']['data']['code'] == 'deadline_exceeded'


def test_stream_ends_with_its_time_or_before(address: Any) -> None:
    with RpcClient(address) as rpc:
        assert list(rpc.streams('a.B').tick(stop=3)) == [0, 1, 2]
        results = rpc.using(timeout_s=1).streams('a.B').tick(stop=3)
        assert [next(results), next(results), next(results)] == [0, 1, 2]
        with pytest.raises(RpcError) as caught:
            next(results)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
