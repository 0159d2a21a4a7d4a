"""Counters of calls, as Prometheus's own parser reads them."""

from __future__ import annotations

import sys
import threading
import time
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from degu_rpc import Code, Context, Router, RpcApp, RpcClient, RpcError, Service
from degu_rpc.rpc.codec import JSON
from degu_rpc.rpc.limits import MAX_MESSAGE_SIZE
from degu_rpc.rpc.metrics import BUCKETS_S, Metrics, MetricsApp

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from degu_rpc.peers import Peer

LABELS = {'method': 'a.v1.A/act', 'code': 'ok'}


def build_service(metrics: Metrics) -> Service:
    service = Service('a.v1.A', [metrics])

    @service.method(allow='peer')
    def act(ctx: Context, how: str = '') -> Any:
        if how == 'crash':
            raise KeyError(how)
        if how == 'header':
            ctx.response_headers['content-type'] = 'text/html'
        if how == 'large':
            return 'x' * MAX_MESSAGE_SIZE
        if how:
            raise RpcError(Code(how), 'on purpose')
        return None

    @service.method(allow='owner')
    def other() -> None:
        pass

    return service


def read(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return each sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def find(text: str, name: str, **labels: str) -> float:
    return read(text)[name, frozenset(labels.items())]


def call(metrics: Metrics, peer: Peer, how: str = '') -> None:
    method = build_service(metrics).authorize('act', peer)
    method.call(JSON.encode({'how': how}), JSON, Context(peer, method.full_name, {}))


@pytest.mark.parametrize(
    ('how', 'code'),
    [
        ('not_found', 'not_found'),
        ('crash', 'internal'),
        ('header', 'internal'),
        ('large', 'resource_exhausted'),
    ],
    ids=['error', 'crash', 'header', 'large'],
)
def test_calls_are_counted_by_method_and_code(
    peer: Callable[..., Peer], how: str, code: str
) -> None:
    metrics = Metrics()
    for _ in range(3):
        call(metrics, peer('peer'))
    with pytest.raises(RpcError):
        call(metrics, peer('peer'), how)
    text = metrics.format()
    assert find(text, 'degu_rpc_calls_total', **LABELS) == 3
    assert find(text, 'degu_rpc_calls_total', method='a.v1.A/act', code=code) == 1


def test_invalid_arguments_are_counted(peer: Callable[..., Peer]) -> None:
    metrics = Metrics()
    caller = peer('peer')
    method = build_service(metrics).authorize('act', caller)
    with pytest.raises(RpcError):
        method.call(b'[]', JSON, Context(caller, method.full_name, {}))
    labels = {'method': 'a.v1.A/act', 'code': 'invalid_argument'}
    assert find(metrics.format(), 'degu_rpc_calls_total', **labels) == 1


def test_call_that_is_closed_in_the_middle_is_canceled(peer: Callable[..., Peer]) -> None:
    metrics = Metrics()
    with pytest.raises(GeneratorExit), metrics(Context(peer(), 'a.v1.A/act', {})):
        raise GeneratorExit
    labels = {'method': 'a.v1.A/act', 'code': 'canceled'}
    assert find(metrics.format(), 'degu_rpc_calls_total', **labels) == 1


@pytest.mark.parametrize(
    ('elapsed_s', 'first'),
    [(0.0, '0.0005'), (0.0005, '0.0005'), (0.0006, '0.001'), (10.0, '10.0'), (10.1, '+Inf')],
)
def test_latency_is_in_each_bucket_from_the_first_that_holds_it(
    elapsed_s: float, first: str
) -> None:
    metrics = Metrics()
    metrics.count('a.v1.A/act', 'ok', elapsed_s)
    text = metrics.format()
    ends = [*map(str, BUCKETS_S), '+Inf']
    counts = [
        find(text, 'degu_rpc_call_seconds_bucket', method='a.v1.A/act', le=end) for end in ends
    ]
    index = ends.index(first)
    assert counts == [0] * index + [1] * (len(ends) - index)
    assert find(text, 'degu_rpc_call_seconds_count', method='a.v1.A/act') == 1
    assert find(text, 'degu_rpc_call_seconds_sum', method='a.v1.A/act') == elapsed_s


def test_latency_is_the_time_that_the_call_took(peer: Callable[..., Peer]) -> None:
    metrics = Metrics()
    started = perf_counter()
    call(metrics, peer('peer'))
    elapsed_s = perf_counter() - started
    assert 0 < find(metrics.format(), 'degu_rpc_call_seconds_sum', method='a.v1.A/act') < elapsed_s


def give_way(frame: FrameType, _event: str, _argument: object) -> Any:
    """Let another thread run before each instruction of what is traced."""
    frame.f_trace_opcodes = True
    time.sleep(0)
    return give_way


def test_no_call_is_lost_between_threads() -> None:
    metrics = Metrics()
    count = 30

    def work() -> None:
        sys.settrace(give_way)
        for _ in range(count):
            metrics.count('a.v1.A/act', 'ok', 0.0)
        sys.settrace(None)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = metrics.format()
    assert find(text, 'degu_rpc_calls_total', **LABELS) == 4 * count
    assert find(text, 'degu_rpc_call_seconds_count', method='a.v1.A/act') == 4 * count


# --- the application -----------------------------------------------------------------------------


@pytest.fixture
def start(serve: Callable[..., Any]) -> Callable[..., Any]:
    def start(*roles: str) -> Any:
        metrics = Metrics()
        router = Router()
        router.mount('/rpc', RpcApp([build_service(metrics)]))
        router.mount('/metrics', MetricsApp(metrics, allow='monitor'))
        client, _ = serve(router, roles=roles or None)
        return client

    return start


def test_metrics_are_served_as_text(start: Callable[..., Any]) -> None:
    client = start('monitor', 'peer')
    with RpcClient(client) as rpc:
        rpc['a.v1.A'].act()
    with client.connect() as connection:
        response = connection.get('/metrics')
        text = response.body.read().decode()
        assert connection.request('HEAD', '/metrics').status == 200
    assert response.headers['content-type'] == 'text/plain; version=0.0.4; charset=utf-8'
    assert find(text, 'degu_rpc_calls_total', **LABELS) == 1


def test_labels_are_bounded_by_what_is_declared(start: Callable[..., Any]) -> None:
    client = start('monitor', 'peer')
    with RpcClient(client) as rpc:
        for name in ('none', 'other', 'nothing'):
            with pytest.raises(RpcError):
                rpc.call('a.v1.A', name, {})
        with pytest.raises(RpcError):
            rpc.call('none.v1.None', 'act', {})
    with client.connect() as connection:
        assert read(connection.get('/metrics').body.read().decode()) == {}


@pytest.mark.parametrize(
    ('roles', 'method', 'uri', 'status'),
    [
        ((), 'GET', '/metrics', 401),
        (('peer',), 'GET', '/metrics', 403),
        (('monitor',), 'POST', '/metrics', 405),
        (('monitor',), 'GET', '/metrics/x', 404),
        (('owner',), 'GET', '/metrics', 200),
    ],
    ids=['unknown caller', 'other role', 'verb', 'below', 'owner'],
)
def test_metrics_are_for_their_roles(
    start: Callable[..., Any], roles: tuple[str, ...], method: str, uri: str, status: int
) -> None:
    with start(*roles).connect() as connection:
        body = b'' if method == 'POST' else None
        assert connection.request(method, uri, {}, body).status == status


def test_allow_is_required() -> None:
    with pytest.raises(TypeError, match='allow'):
        MetricsApp(Metrics())  # type: ignore[call-arg]  # what is tested
