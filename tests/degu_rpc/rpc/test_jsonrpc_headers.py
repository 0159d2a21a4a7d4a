"""What headers mean for calls by JSON-RPC: time, names, traces, and those that methods set."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from degu_rpc import Code, Context, Router, RpcApp, RpcClient, RpcError, Service
from degu_rpc.rpc.jsonrpc import JsonRpcApp
from degu_rpc.rpc.limits import MAX_MESSAGE_SIZE
from degu_rpc.rpc.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from degu.client import Connection

HANG_S = 10.0
TRACE = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'


class Node:
    """Services by JSON-RPC, and what became of their calls; `next` is where nested calls go."""

    def __init__(self) -> None:
        self.seen: list[Context] = []
        self.ended: list[str] = []
        self.next: RpcClient | None = None
        self.metrics = Metrics()
        service = Service('a.B', [self.metrics, self.intercept])

        @service.method(allow='peer')
        def look(ctx: Context) -> None:
            self.seen.append(ctx)

        @service.method(allow='peer')
        def relay() -> None:
            assert self.next is not None
            self.next['a.B'].look()

        @service.method(allow='peer')
        def named(ctx: Context) -> str:
            return ctx.request_id

        @service.method(allow='peer')
        def wait(ctx: Context) -> None:
            until = time.monotonic() + HANG_S
            while time.monotonic() < until:
                ctx.check()
                time.sleep(0.005)

        @service.method(allow='peer')
        def answer(ctx: Context, headers: dict[str, str], size: int = 0) -> str:
            ctx.response_headers.update(headers)
            return 'x' * size

        @service.method(allow='peer', idempotent=True)
        def put() -> None:
            pass

        self.app = Router()
        self.app.mount('/rpc', RpcApp([service]))
        self.app.mount('/jsonrpc', JsonRpcApp([service]))

    @contextlib.contextmanager
    def intercept(self, context: Context) -> Iterator[None]:
        if 'x-refused' in context.headers:
            raise RpcError(Code.FAILED_PRECONDITION, 'not today')
        try:
            yield
        except RpcError as error:
            self.ended.append(f'{context.method} {error.code.value}')
            raise
        self.ended.append(f'{context.method} ok')


@pytest.fixture
def node(serve: Callable[..., Any]) -> Iterator[Node]:
    node, other = Node(), Node()
    node.address, _ = serve(node.app)
    node.other = other
    address, _ = serve(other.app)
    with RpcClient(address) as node.next:
        yield node


@pytest.fixture
def conn(node: Any) -> Iterator[Connection]:
    with node.address.connect() as connection:
        yield connection


def request(method: str, params: Any = None, **more: Any) -> dict[str, Any]:
    return {'jsonrpc': '2.0', 'method': f'a.B.{method}', 'params': params or {}, 'id': 1, **more}


def post(conn: Connection, message: Any, **headers: str) -> tuple[int, Any, dict[str, Any]]:
    extra = {name.replace('_', '-'): value for name, value in headers.items()}
    headers = {'content-type': 'application/json', **extra}
    response = conn.post('/jsonrpc', headers, json.dumps(message).encode())
    data = b'null' if response.body is None else response.body.read()
    return response.status, json.loads(data), response.headers


def get_code(answer: Any) -> str:
    return str(answer['error']['data']['code'] if 'error' in answer else 'ok')


# --- time ----------------------------------------------------------------------------------------


def test_method_that_asks_ends_with_the_time_of_its_caller(conn: Connection) -> None:
    status, answer, _ = post(conn, request('wait'), connect_timeout_ms='50')
    assert (status, answer['error']['code'], get_code(answer)) == (
        200,
        -32004,
        'deadline_exceeded',
    )
    assert post(conn, request('look'))[1]['result'] is None  # on the same connection


def test_time_is_that_of_a_whole_batch_and_what_it_does_not_reach_is_not_called(
    node: Node, conn: Connection
) -> None:
    batch = [request('look'), request('wait'), request('look'), request('look')]
    status, answers, _ = post(conn, batch, connect_timeout_ms='100')
    assert (status, [get_code(answer) for answer in answers]) == (
        200,
        ['ok', *['deadline_exceeded'] * 3],
    )
    assert len(node.seen) == 1


def test_time_is_clamped_and_none_where_the_caller_does_not_say(
    node: Node, conn: Connection
) -> None:
    post(conn, request('look'), connect_timeout_ms='9999999999')
    post(conn, request('look'))
    clamped, unlimited = node.seen
    assert clamped.deadline is not None
    assert clamped.deadline.timeout_s == 86400
    assert unlimited.deadline is None


def test_nested_call_has_what_is_left_of_the_time(node: Any, conn: Connection) -> None:
    assert post(conn, request('relay'), connect_timeout_ms='5000')[0] == 200
    assert 2000 < int(node.other.seen[0].headers['connect-timeout-ms']) <= 5000


@pytest.mark.parametrize('timeout', ['soon', '-1', '1.5', '12345678901'])
def test_time_of_another_form_is_an_invalid_argument(
    node: Node, conn: Connection, timeout: str
) -> None:
    status, answer, _ = post(conn, request('look'), connect_timeout_ms=timeout)
    assert (status, get_code(answer), answer['id']) == (400, 'invalid_argument', None)
    assert node.seen == []


def test_caller_that_sends_too_slowly_is_told_that_its_time_is_over(node: Any) -> None:
    head = 'POST /jsonrpc HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 100\r\n'
    with socket.create_connection(node.address.address, HANG_S) as sock:
        sock.sendall(f'{head}connect-timeout-ms: 50\r\n\r\n{{'.encode())
        with sock.makefile('rb') as answer:
            text = answer.read().decode()
    head, _, body = text.partition('\r\n\r\n')
    assert head.startswith('HTTP/1.1 504 ')
    assert get_code(json.loads(body)) == 'deadline_exceeded'


# --- names and traces ----------------------------------------------------------------------------


def test_request_id_and_trace_reach_nested_calls_and_the_id_comes_back(
    node: Any, conn: Connection
) -> None:
    _, _, headers = post(conn, request('relay'), x_request_id='mine', traceparent=TRACE)
    nested = node.other.seen[0].headers
    assert (nested['x-request-id'], nested['traceparent']) == ('mine', TRACE)
    assert headers['x-request-id'] == 'mine'


@pytest.mark.parametrize('sent', [None, 'x' * 129, 'two words'])
def test_request_id_is_made_where_none_can_be_used_and_is_that_of_a_whole_batch(
    conn: Connection, sent: str | None
) -> None:
    given = {} if sent is None else {'x_request_id': sent}
    _, answers, headers = post(conn, [request('named'), request('named')], **given)
    assert {answer['result'] for answer in answers} == {headers['x-request-id']}
    assert headers['x-request-id'] != sent
    assert post(conn, request('named'))[2]['x-request-id'] != headers['x-request-id']


@pytest.mark.parametrize(
    ('message', 'status'),
    [([1], 200), ([], 200), ({**request('look'), 'params': {'more': 1}}, 200)],
    ids=['no request', 'empty batch', 'invalid'],
)
def test_request_id_comes_back_with_an_error(conn: Connection, message: Any, status: int) -> None:
    found, _, headers = post(conn, message, x_request_id='mine')
    assert (found, headers['x-request-id']) == (status, 'mine')


def test_request_id_comes_back_where_there_is_no_answer(conn: Connection) -> None:
    notification = request('look')
    del notification['id']
    status, _, headers = post(conn, notification, x_request_id='mine')
    assert (status, headers['x-request-id']) == (204, 'mine')


# --- headers of the response ---------------------------------------------------------------------


def test_method_of_a_request_that_is_alone_can_send_headers(conn: Connection) -> None:
    _, _, headers = post(conn, request('answer', {'headers': {'x-cost': '3'}}))
    assert headers['x-cost'] == '3'
    assert 'x-cost' not in post(conn, request('look'))[2]


def test_headers_of_methods_are_left_out_in_a_batch(conn: Connection) -> None:
    batch = [request('answer', {'headers': {'x-cost': '3'}})]
    status, answers, headers = post(conn, batch)
    assert (status, [get_code(answer) for answer in answers]) == (200, ['ok'])
    assert 'x-cost' not in headers


def test_headers_go_with_a_result_only(conn: Connection) -> None:
    params = {'headers': {'x-cost': '3'}, 'size': MAX_MESSAGE_SIZE}
    _, answer, headers = post(conn, request('answer', params))
    assert get_code(answer) == 'resource_exhausted'
    assert 'x-cost' not in headers


@pytest.mark.parametrize('name', ['content-type', 'x-request-id', 'connection', 'X-Cost'])
@pytest.mark.parametrize('is_batch', [False, True], ids=['alone', 'batch'])
def test_method_cannot_send_what_is_not_its_business(
    conn: Connection, name: str, is_batch: bool
) -> None:
    message = request('answer', {'headers': {name: 'x'}})
    _, answer, headers = post(conn, [message] if is_batch else message, x_request_id='mine')
    assert get_code(answer[0] if is_batch else answer) == 'internal'
    assert headers['content-type'] == 'application/json'
    assert headers['x-request-id'] == 'mine'


# --- calls that are made once --------------------------------------------------------------------


def test_idempotency_key_is_refused_where_it_would_matter(node: Node, conn: Connection) -> None:
    batch = [request('look'), request('put')]
    _, answers, _ = post(conn, batch, idempotency_key='k')
    assert [get_code(answer) for answer in answers] == ['unimplemented', 'ok']
    assert node.seen == []


# --- interceptors --------------------------------------------------------------------------------


def test_interceptors_are_around_each_call_of_a_batch(node: Node, conn: Connection) -> None:
    invalid = request('look', {'more': 1})
    notification = request('put')
    del notification['id']
    post(conn, [request('look'), invalid, notification])
    assert node.ended == ['a.B/look ok', 'a.B/look invalid_argument', 'a.B/put ok']


def test_interceptor_can_refuse_a_call(node: Node, conn: Connection) -> None:
    _, answer, _ = post(conn, request('look'), x_refused='1')
    assert answer['error']['code'] == -32009
    assert node.seen == []


def test_calls_are_counted_as_others_are(node: Node, conn: Connection) -> None:
    post(conn, [request('look'), request('look'), request('look', {'more': 1})])
    lines = node.metrics.format().splitlines()
    assert 'degu_rpc_calls_total{method="a.B/look",code="ok"} 2' in lines
    assert 'degu_rpc_calls_total{method="a.B/look",code="invalid_argument"} 1' in lines
