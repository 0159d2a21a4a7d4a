"""Calls as spans: what OpenTelemetry's own SDK collects of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from degu_rpc import Code, Context, Router, RpcApp, RpcClient, RpcError, Service
from degu_rpc.rpc.jsonrpc import JsonRpcApp
from degu_rpc.rpc.telemetry import ServerTracing

if TYPE_CHECKING:
    from collections.abc import Callable

A = 'a.v1.A'
SENT = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'


class Traced:
    """A service whose spans are collected, and an RpcClient for it that sends `headers`."""

    def __init__(self, serve: Callable[..., Any], provider: trace.TracerProvider | None) -> None:
        self.next: RpcClient | None = None
        service = Service(A, [ServerTracing(provider)])

        @service.method(allow='peer')
        def act(how: str = '') -> str:
            if how == 'crash':
                raise KeyError('the secret')
            if how:
                raise RpcError(Code(how), 'on purpose')
            with trace.get_tracer('test', tracer_provider=provider).start_as_current_span('inner'):
                return ''

        @service.method(allow='peer')
        def count(stop: int) -> Iterator[int]:
            yield from range(stop)

        @service.method(allow='peer')
        def look(ctx: Context) -> str | None:
            return ctx.headers.get('traceparent')

        @service.method(allow='peer')
        def relay() -> str | None:
            assert self.next is not None
            return self.next[A].look()

        router = Router()
        router.mount('/rpc', RpcApp([service]))
        router.mount('/jsonrpc', JsonRpcApp([service]))
        self.address, _ = serve(router)

    def post(self, method: str, **headers: str) -> bytes:
        with self.address.connect() as conn:
            headers = {'content-type': 'application/json', **headers}
            data: bytes = conn.post(f'/rpc/{A}/{method}', headers, b'{}').body.read()
        return data


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(serve: Callable[..., Any], exporter: InMemorySpanExporter) -> Iterator[Traced]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traced = Traced(serve, provider)
    with RpcClient(traced.address) as traced.next:
        yield traced
    provider.shutdown()


def find(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    [span] = [span for span in exporter.get_finished_spans() if span.name == name]
    return span


def format_trace(span: ReadableSpan) -> str:
    assert span.context is not None
    return f'00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01'


def test_call_is_a_span_by_the_conventions(traced: Traced, exporter: InMemorySpanExporter) -> None:
    traced.post('act')
    span = find(exporter, f'{A}/act')
    assert span.kind is trace.SpanKind.SERVER
    assert dict(span.attributes or {}) == {
        'rpc.system.name': 'connectrpc',
        'rpc.method': f'{A}/act',
    }
    assert span.status.status_code is trace.StatusCode.UNSET
    assert span.parent is None


def test_parent_is_what_the_caller_sent(traced: Traced, exporter: InMemorySpanExporter) -> None:
    traced.post('act', traceparent=SENT)
    parent = find(exporter, f'{A}/act').parent
    assert parent is not None
    assert (f'{parent.trace_id:032x}', f'{parent.span_id:016x}') == tuple(SENT.split('-')[1:3])


@pytest.mark.parametrize('sent', ['x', SENT.upper(), 'ff' + SENT[2:], SENT.replace('b7ad', 'b7a')])
def test_trace_of_another_form_is_no_parent(
    traced: Traced, exporter: InMemorySpanExporter, sent: str
) -> None:
    traced.post('act', traceparent=sent)
    assert find(exporter, f'{A}/act').parent is None


def test_spans_and_calls_of_the_function_are_children(
    traced: Traced, exporter: InMemorySpanExporter
) -> None:
    traced.post('act')
    inner, outer = find(exporter, 'inner'), find(exporter, f'{A}/act')
    assert inner.parent == outer.context
    given_on = traced.post('relay', traceparent=SENT).decode()
    relay, look = find(exporter, f'{A}/relay'), find(exporter, f'{A}/look')
    assert given_on == f'"{format_trace(relay)}"'
    assert look.parent is not None
    assert relay.context is not None
    assert look.parent.span_id == relay.context.span_id
    assert given_on.split('-')[1] == SENT.split('-')[1]


# Source: OpenTelemetry Semantic Conventions, "Connect RPC": the codes that are a server's errors.
FAULTS = {'unknown', 'deadline_exceeded', 'unimplemented', 'internal', 'unavailable', 'data_loss'}


@pytest.mark.parametrize(
    ('how', 'code', 'is_fault'),
    [
        *((code.value, code.value, code.value in FAULTS) for code in Code),
        ('crash', 'internal', True),
    ],
)
def test_error_has_its_code_and_is_a_fault_where_it_is_the_servers(
    traced: Traced, exporter: InMemorySpanExporter, how: str, code: str, is_fault: bool
) -> None:
    assert traced.next is not None
    with pytest.raises(RpcError):
        traced.next[A].act(how=how)
    span = next(span for span in exporter.get_finished_spans() if span.name == f'{A}/act')
    attributes = dict(span.attributes or {})
    assert attributes['rpc.response.status_code'] == code
    assert attributes.get('error.type') == (code if is_fault else None)
    assert (span.status.status_code is trace.StatusCode.ERROR) == is_fault
    assert [event.name for event in span.events] == ['exception'] * (how == 'crash')


def test_stream_is_one_span_until_its_last_result(
    traced: Traced, exporter: InMemorySpanExporter
) -> None:
    assert traced.next is not None
    assert list(traced.next.streams(A).count(stop=3)) == [0, 1, 2]
    traced.post('act')
    span = find(exporter, f'{A}/count')
    assert 'rpc.response.status_code' not in dict(span.attributes or {})
    assert find(exporter, f'{A}/act').parent is None  # the thread of another call is clean


def test_stream_that_is_closed_before_its_end_is_canceled(
    peer: Callable[..., Any], exporter: InMemorySpanExporter
) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.raises(GeneratorExit), ServerTracing(provider)(Context(peer(), f'{A}/count', {})):
        raise GeneratorExit
    span = find(exporter, f'{A}/count')
    assert dict(span.attributes or {})['rpc.response.status_code'] == 'canceled'


def test_calls_by_json_rpc_are_spans_each(traced: Traced, exporter: InMemorySpanExporter) -> None:
    call = b'{"jsonrpc":"2.0","method":"a.v1.A.look","id":1}'
    with traced.address.connect() as conn:
        headers = {'content-type': 'application/json', 'traceparent': SENT}
        conn.post('/jsonrpc', headers, b'[%b,%b]' % (call, call)).body.read()
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == [f'{A}/look'] * 2
    assert len({span.parent.span_id for span in spans if span.parent is not None}) == 1


def test_without_a_provider_the_trace_is_given_on_as_it_came(serve: Callable[..., Any]) -> None:
    traced = Traced(serve, None)
    with RpcClient(traced.address) as traced.next:
        assert traced.post('relay', traceparent=SENT).decode() == f'"{SENT}"'
        assert traced.post('relay') == b'null'


def test_nothing_of_it_is_loaded_unless_it_is_used() -> None:
    names = 'RpcApp, RpcClient, Service, connect'
    command = f'import sys; from degu_rpc import {names}; print("opentelemetry" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', command], capture_output=True, check=True)
    assert done.stdout == b'False\n'


def test_who_has_not_installed_it_is_told_the_extra() -> None:
    command = 'import sys; sys.modules["opentelemetry"] = None; import degu_rpc.rpc.telemetry'
    done = subprocess.run([sys.executable, '-c', command], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"pip install 'degu-rpc[otel]'" in done.stderr
