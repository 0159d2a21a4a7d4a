"""What a call knows of itself, what it gives on, and GET, gzip and headers over HTTP."""

from __future__ import annotations

import gzip
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from degu_rpc import Code, Context, Router, RpcApp, RpcClient, RpcError, Service, current_context
from degu_rpc.rpc.context import ResponseHeaders
from degu_rpc.rpc.envelope import format_envelope
from degu_rpc.rpc.limits import MAX_RESPONSE_HEADER_SIZE, MAX_RESPONSE_HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from degu.client import Connection

A = 'a.B'
TRACE = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'


class Node:
    """A service that calls another."""

    def __init__(self) -> None:
        self.seen: list[Context] = []
        self.next: RpcClient | None = None
        self.calls = 0
        service = Service(A)

        @service.method(allow='peer', safe=True)
        def echo(value: Any = None) -> Any:
            self.calls += 1
            return value

        @service.method(allow='peer')
        def change(value: Any = None) -> None:
            pass

        @service.method(allow='peer')
        def look(ctx: Context) -> bool:
            self.seen.append(ctx)
            return current_context() is ctx

        @service.method(allow='peer')
        def relay(ctx: Context) -> bool:
            assert self.next is not None
            self.seen.append(ctx)
            return self.next[A].look()

        @service.method(allow='peer')
        def named(ctx: Context) -> str:
            return ctx.request_id

        @service.method(allow='peer')
        def answer(ctx: Context, headers: dict[str, str | int]) -> None:
            ctx.response_headers.update(headers)  # type: ignore[arg-type]  # what is tested

        @service.method(allow='peer')
        def sleep_then_relay(ctx: Context) -> bool:
            assert self.next is not None
            time.sleep(0.2)
            return self.next[A].look()

        @service.method(allow='peer')
        def numbers() -> Iterator[int]:
            yield from range(2)

        self.app = Router()
        self.app.mount('/rpc', RpcApp([service]))
        self.app.mount('/plain', self.show_current)

    def show_current(self, connection: dict[str, Any], request: dict[str, Any]) -> Any:
        return 200, 'OK', {}, repr(current_context()).encode()


@pytest.fixture
def nodes(serve: Callable[..., Any]) -> Iterator[tuple[Node, Node]]:
    first, second = Node(), Node()
    first.address, _ = serve(first.app)
    second.address, _ = serve(second.app)
    with RpcClient(second.address) as first.next:
        yield first, second


@pytest.fixture
def conn(nodes: Any) -> Iterator[Connection]:
    with nodes[0].address.connect() as connection:
        yield connection


def post(conn: Connection, method: str, args: Any = None, **headers: str) -> tuple[int, Any, Any]:
    extra = {name.replace('_', '-'): value for name, value in headers.items()}
    body = args if isinstance(args, bytes) else json.dumps(args or {}).encode()
    response = conn.post(f'/rpc/{A}/{method}', {'content-type': 'application/json', **extra}, body)
    assert response.body is not None
    data = response.body.read()
    if response.headers.get('content-encoding') == 'gzip':
        data = gzip.decompress(data)
    return response.status, json.loads(data), response.headers


# --- nested calls --------------------------------------------------------------------------------


@pytest.mark.parametrize('ending', ['result', 'error', 'stream'])
def test_running_call_is_the_current_one_until_it_ends(conn: Connection, ending: str) -> None:
    if ending == 'stream':
        headers = {'content-type': 'application/connect+json'}
        response = conn.post(f'/rpc/{A}/numbers', headers, format_envelope(b'{}'))
        assert response.body is not None
        assert len(response.body.read()) > 0
    else:
        assert post(conn, 'look', {'more': 1} if ending == 'error' else {})[1] is not False
    plain = conn.get('/plain')  # served by the same thread
    assert plain.body is not None
    assert plain.body.read() == b'None'


def test_nested_call_has_what_is_left_of_the_time(nodes: Any, conn: Connection) -> None:
    assert post(conn, 'relay', connect_timeout_ms='5000')[0] == 200
    left_ms = int(nodes[1].seen[0].headers['connect-timeout-ms'])
    assert 2000 < left_ms <= 5000


def test_nested_call_has_its_own_time_where_that_is_less(nodes: Any, conn: Connection) -> None:
    nodes[0].next = nodes[0].next.using(timeout_s=3)
    assert post(conn, 'relay', connect_timeout_ms='60000')[0] == 200
    assert 2000 < int(nodes[1].seen[0].headers['connect-timeout-ms']) <= 3000


def test_nested_call_is_not_made_when_the_time_is_over(nodes: Any, conn: Connection) -> None:
    status, error, _ = post(conn, 'sleep_then_relay', connect_timeout_ms='100')
    assert (status, error['code']) == (504, 'deadline_exceeded')
    assert nodes[1].seen == []


def test_request_id_and_trace_are_given_on(nodes: Any, conn: Connection) -> None:
    _, _, headers = post(conn, 'relay', x_request_id='my-call', traceparent=TRACE)
    assert headers['x-request-id'] == 'my-call'
    assert nodes[1].seen[0].headers['x-request-id'] == 'my-call'
    assert nodes[1].seen[0].headers['traceparent'] == TRACE


@pytest.mark.parametrize('trace', ['x', TRACE.upper(), 'ff' + TRACE[2:], TRACE + '-00', '00-1-1-1'])
def test_trace_of_another_form_is_not_given_on(nodes: Any, conn: Connection, trace: str) -> None:
    assert post(conn, 'relay', traceparent=trace)[0] == 200
    assert 'traceparent' not in nodes[1].seen[0].headers


def test_request_id_is_made_where_there_is_none(conn: Connection) -> None:
    _, first, headers = post(conn, 'named')
    assert headers['x-request-id'] == first
    assert post(conn, 'named')[1] != first


@pytest.mark.parametrize('sent', ['x' * 129, 'two words'])
def test_request_id_that_cannot_be_used_is_replaced(conn: Connection, sent: str) -> None:
    _, found, headers = post(conn, 'named', x_request_id=sent)
    assert found == headers['x-request-id'] != sent


def test_request_id_comes_back_with_an_error(conn: Connection) -> None:
    status, _, headers = post(conn, 'look', {'more': 1}, x_request_id='my-call')
    assert (status, headers['x-request-id']) == (400, 'my-call')


def test_time_of_the_caller_is_clamped(nodes: Any, conn: Connection) -> None:
    post(conn, 'look', connect_timeout_ms='9999999999')
    assert nodes[0].seen[0].deadline.timeout_s == 86400


def test_function_is_not_called_when_the_time_is_over(nodes: Any, conn: Connection) -> None:
    status, error, _ = post(conn, 'echo', connect_timeout_ms='0')
    assert (status, error['code']) == (504, 'deadline_exceeded')
    assert nodes[0].calls == 0


def test_call_without_a_time_has_none(nodes: Any, conn: Connection) -> None:
    post(conn, 'look')
    assert nodes[0].seen[0].remaining() is None


# --- headers of the response ---------------------------------------------------------------------


def test_method_can_send_headers(conn: Connection) -> None:
    _, _, headers = post(conn, 'answer', {'headers': {'x-cost': '3'}})
    assert headers['x-cost'] == '3'


def test_all_that_a_method_can_send_reaches_the_caller(conn: Connection) -> None:
    value = 'x' * (MAX_RESPONSE_HEADER_SIZE - 4)
    sent = {f'x-{number:02}': value for number in range(MAX_RESPONSE_HEADERS)}
    _, _, headers = post(conn, 'answer', {'headers': sent})
    assert {name: headers[name] for name in sent} == sent


def test_response_headers_are_a_mapping() -> None:
    headers = ResponseHeaders()
    for number in range(MAX_RESPONSE_HEADERS):
        headers[f'x-{number}'] = '1'
    headers['x-0'] = '2'
    del headers['x-1']
    headers['x-more'] = '3'
    assert headers.pop('x-0') == '2'
    assert len(headers) == MAX_RESPONSE_HEADERS - 1
    with pytest.raises(TypeError, match="two str, not 'x-0': 3"):
        headers['x-0'] = 3  # type: ignore[assignment]  # what is tested


@pytest.mark.parametrize(
    'headers',
    [
        {'content-type': 'text/html'},
        {'content-length': '5'},
        {'connection': 'close'},
        {'transfer-encoding': 'chunked'},
        {'upgrade': 'h2c'},
        {'keep-alive': 'timeout=5'},
        {'trailer': 'x'},
        {'te': 'trailers'},
        {'host': 'elsewhere'},
        {'proxy-authenticate': 'Basic'},
        {'connect-more': '1'},
        {'x-request-id': '1'},
        {'X-Cost': '1'},
        {'x': 'a\r\nb: c'},
        {'x': ''},
        {'x': 3},
        {'x': 'x' * MAX_RESPONSE_HEADER_SIZE},
        {f'x-{number}': 'x' for number in range(MAX_RESPONSE_HEADERS + 1)},
    ],
    ids=lambda headers: str(headers)[:40],
)
def test_method_cannot_send_what_is_not_its_business(
    conn: Connection, headers: dict[str, Any]
) -> None:
    status, error, found = post(conn, 'answer', {'headers': headers})
    assert (status, error['code']) == (500, 'internal')
    assert 'b' not in found


# --- GET -----------------------------------------------------------------------------------------


def get(conn: Connection, query: str, method: str = 'echo', verb: str = 'GET') -> tuple[int, bytes]:
    response = conn.request(verb, f'/rpc/{A}/{method}{query and "?" + query}')
    return response.status, response.body.read() if response.body is not None else b''


MESSAGE = urlsafe_b64encode(b'{"value":"\xc3\xbf\xc3\xbe?>"}').decode()


@pytest.mark.parametrize(
    ('query', 'result'),
    [
        ('encoding=json&message=%7B%22value%22%3A1%7D', b'1'),
        ('message={"value":1}&encoding=json&connect=v1&other=x', b'1'),
        ('encoding=json&message=%7B%22value%22%3A%22%C3%A9+%2B%22%7D', '"é +"'.encode()),
        (f'encoding=json&base64=1&message={MESSAGE}', '"ÿþ?>"'.encode()),
        (f'encoding=json&base64=1&message={MESSAGE.rstrip("=")}', '"ÿþ?>"'.encode()),
        ('encoding=json&message=%7B%7D&compression=identity', b'null'),
    ],
)
def test_get_of_a_safe_method(conn: Connection, query: str, result: bytes) -> None:
    assert get(conn, query) == (200, result)


@pytest.mark.parametrize('query', ['', 'message=%7B%7D', 'encoding=proto&message=x'])
def test_get_without_an_encoding_is_told_which_there_are(conn: Connection, query: str) -> None:
    assert get(conn, query) == (415, b'the query needs encoding=json or encoding=msgpack\n')


@pytest.mark.parametrize(
    ('query', 'status'),
    [
        ('', 415),
        ('encoding=proto&message=x', 415),
        ('encoding=json', 400),
        ('encoding=json&message=%7B', 400),
        ('encoding=json&message=%FF', 400),
        ('encoding=json&message=%7B%7D&message=%7B%7D', 400),
        ('encoding=json&message=%7B%7D&connect=v2', 400),
        ('encoding=json&message=%7B%7D&compression=br', 501),
        ('encoding=json&base64=1&message=a*b', 400),
        ('encoding=json&base64=1&message=a', 400),
        ('encoding=json&base64=1&compression=gzip&message=AAAA', 400),
        ('&'.join(['encoding=json', 'message=%7B%7D', *(f'f{n}=1' for n in range(40))]), 400),
    ],
)
def test_get_outside_the_protocol_is_refused(
    nodes: Any, conn: Connection, query: str, status: int
) -> None:
    assert get(conn, query)[0] == status
    assert nodes[0].calls == 0


def test_get_of_a_method_that_is_not_safe_is_405(conn: Connection) -> None:
    assert get(conn, 'encoding=json&message=%7B%7D', 'change')[0] == 405


def test_head_is_no_call(nodes: Any, conn: Connection) -> None:
    assert get(conn, 'encoding=json&message=%7B%7D', verb='HEAD') == (405, b'')
    assert nodes[0].calls == 0


# --- gzip ----------------------------------------------------------------------------------------


def test_gzip_request_and_response(conn: Connection) -> None:
    value = 'é' * 2000
    body = gzip.compress(json.dumps({'value': value}).encode())
    status, result, headers = post(conn, 'echo', body, content_encoding='gzip')
    assert (status, result, headers['content-encoding']) == (200, value, 'gzip')


def test_small_result_is_not_compressed(conn: Connection) -> None:
    _, _, headers = post(conn, 'echo', {'value': 'x'}, accept_encoding='gzip')
    assert 'content-encoding' not in headers


def test_gzip_bomb_is_resource_exhausted(conn: Connection) -> None:
    body = gzip.compress(b'{"value": "' + b'x' * 5_000_000 + b'"}')
    status, error, _ = post(conn, 'echo', body, content_encoding='gzip')
    assert (status, error['code']) == (429, 'resource_exhausted')


@pytest.mark.parametrize(
    'body', [b'x', gzip.compress(b'{}')[:-1], b'{}'], ids=['a letter', 'cut off', 'plain']
)
def test_what_is_no_gzip_is_an_invalid_argument(conn: Connection, body: bytes) -> None:
    status, error, _ = post(conn, 'echo', body, content_encoding='gzip')
    assert (status, error['code']) == (400, 'invalid_argument')


def test_client_sends_and_takes_gzip(nodes: Any) -> None:
    with RpcClient(nodes[0].address) as rpc:
        value = 'é' * 50_000
        assert rpc.using(compressed=True)[A].echo(value=value) == value


def test_gzip_bomb_of_a_server_is_refused(serve: Callable[..., Any]) -> None:
    bomb = gzip.compress(b'"' + b'x' * 5_000_000 + b'"')

    def app(connection: dict[str, Any], request: dict[str, Any]) -> Any:
        request['body'].read()
        headers = {'content-type': 'application/json', 'content-encoding': 'gzip'}
        return 200, 'OK', headers, bomb

    client, _ = serve(app)
    with RpcClient(client) as rpc, pytest.raises(RpcError) as caught:
        rpc[A].echo()
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
