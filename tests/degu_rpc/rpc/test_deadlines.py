"""The end of a call's time, and calls under a server without our own keys in its connections."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from degu_rpc import Code, Context, Router, RpcApp, RpcClient, RpcError, Service
from degu_rpc.rpc.envelope import format_envelope
from degu_rpc.rpc.jsonrpc import JsonRpcApp
from degu_rpc.rpc.limits import END_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from degu.net import Deadline

OURS = ('rgi.set_deadline', 'rgi.is_client_gone')


class Foreign:
    """Middleware that hides what another server would not give."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Any:
        theirs = {name: value for name, value in connection.items() if name not in OURS}
        return self.app(theirs, request)


# --- what is still to be sent --------------------------------------------------------------------


class Noting:
    """Middleware that notes which deadlines a call sets for its connection."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.deadlines: list[Deadline] = []

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Any:
        def set_deadline(deadline: Deadline) -> None:
            self.deadlines.append(deadline)
            connection['rgi.set_deadline'](deadline)

        return self.app({**connection, 'rgi.set_deadline': set_deadline}, request)


@pytest.fixture
def noting() -> Noting:
    service = Service('a.B')

    @service.method(allow='peer')
    def wait(ctx: Context) -> None:
        while True:
            ctx.check()
            time.sleep(0.005)

    @service.method(allow='peer')
    def tick(ctx: Context) -> Iterator[int]:
        yield 1
        wait(ctx)

    router = Router()
    router.mount('/rpc', RpcApp([service]))
    router.mount('/jsonrpc', JsonRpcApp([service]))
    return Noting(router)


@pytest.mark.parametrize(
    ('uri', 'kind', 'body'),
    [
        ('/rpc/a.B/wait', 'json', b'{}'),
        ('/rpc/a.B/tick', 'connect+json', format_envelope(b'{}')),
        ('/jsonrpc', 'json', b'[{"jsonrpc":"2.0","method":"a.B.wait","id":2}]'),
    ],
    ids=['call', 'stream', 'batch'],
)
def test_when_the_time_is_over_there_is_some_more_to_send_the_answer(
    serve: Callable[..., Any], noting: Noting, uri: str, kind: str, body: bytes
) -> None:
    client, _ = serve(noting)
    headers = {'content-type': f'application/{kind}', 'connect-timeout-ms': '50'}
    with client.connect() as conn:
        answer = b''.join(conn.post(uri, headers, body).body)
    assert b'deadline_exceeded' in answer
    assert [deadline.timeout_s for deadline in noting.deadlines] == [0.05, END_TIMEOUT_S]


# --- another server ------------------------------------------------------------------------------


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
