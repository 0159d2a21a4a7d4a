"""JSON-RPC 2.0 over real sockets: every example of its specification, and our limits."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from degu_rpc import Code, Context, Router, RpcApp, RpcError, Service
from degu_rpc.rpc import jsonrpc
from degu_rpc.rpc.documents import build_openrpc
from degu_rpc.rpc.jsonrpc import JsonRpcApp
from degu_rpc.rpc.limits import MAX_BATCH, MAX_MESSAGE_SIZE, MAX_NESTING

if TYPE_CHECKING:
    from collections.abc import Callable

    from degu.client import Client

HANG_S = 10.0
NOTICED_S = 1.0
HEADERS = {'content-type': 'application/json'}
PARSE_ERROR = {
    'jsonrpc': '2.0',
    'error': {'code': -32700, 'message': 'Parse error'},
    'id': None,
}
INVALID_REQUEST = {
    'jsonrpc': '2.0',
    'error': {'code': -32600, 'message': 'Invalid Request'},
    'id': None,
}


def build_services(calls: list[str]) -> list[Service]:
    spec = Service('spec')

    @spec.method(allow='peer')
    def subtract(minuend: int, subtrahend: int) -> int:
        return minuend - subtrahend

    @spec.method(allow='peer')
    def update(a: int, b: int, c: int, d: int, e: int) -> None:
        calls.append(f'update {a}{b}{c}{d}{e}')

    @spec.method(allow='peer')
    def sum(a: int, b: int, c: int) -> int:  # noqa: A001  # the specification's name
        return a + b + c

    @spec.method(allow='peer')
    def notify_hello(value: int) -> None:
        calls.append(f'hello {value}')

    @spec.method(allow='peer')
    def notify_sum(a: int, b: int, c: int) -> None:
        calls.append(f'sum {a + b + c}')

    @spec.method(allow='peer')
    def get_data() -> tuple[str, int]:
        return 'hello', 5

    more = Service('more.v1.More')

    @more.method(allow='peer')
    def echo(ctx: Context, value: Any = None, *, note: str = '') -> Any:
        calls.append(f'echo {ctx.method} {ctx.headers.get("x-note", "")}')
        return [value, note]

    @more.method(allow='peer')
    def fail(code: str, message: str = '', details: list[dict[str, Any]] = []) -> None:  # noqa: B006  # never changed
        raise RpcError(Code(code), message.replace('HALF', '\udcff'), details)

    @more.method(allow='peer')
    def fail_badly(how: str) -> Any:
        calls.append('failed')
        if how == 'details':
            raise RpcError(Code.NOT_FOUND, 'gone', [{'what': object()}])
        raise KeyError('the secret')

    @more.method(allow='peer')
    def zeros(size: int) -> str:
        calls.append('zeros')
        return '0' * size

    @more.method(allow='peer')
    def count(stop: int) -> Iterator[int]:
        calls.append('counted')
        yield from range(stop)

    @more.method(allow='peer')
    def total(numbers: Iterator[int]) -> int:
        calls.append('added')
        return sum(numbers)

    @more.method(allow='owner')
    def wipe() -> None:
        calls.append('wiped')

    return [spec, more]


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def post(
    serve: Callable[..., tuple[Client, Any]], calls: list[str]
) -> Callable[..., tuple[int, Any]]:
    """Post text (or what becomes JSON) and give the status, and the answer decoded."""
    router = Router()
    services = build_services(calls)
    router.mount('/rpc', RpcApp(services))
    router.mount('/rpc/jsonrpc', JsonRpcApp(services))

    def exchange(
        message: Any,
        roles: tuple[str, ...] | None = ('peer',),
        uri: str = '/rpc/jsonrpc',
        method: str = 'POST',
        headers: dict[str, str] = HEADERS,
    ) -> tuple[int, Any]:
        data = message if isinstance(message, str | bytes | None) else json.dumps(message)
        client, _ = serve(router, roles=roles)
        with client.connect() as connection:
            response = connection.request(
                method, uri, headers, data.encode() if isinstance(data, str) else data
            )
            body = response.body.read() if response.body is not None else b''
            kind = response.headers.get('content-type')
        assert kind in ({None} if response.status == 204 else {'application/json'} | TEXT)
        return response.status, json.loads(body) if kind == 'application/json' else body.decode()

    return exchange


TEXT = {'text/plain; charset=utf-8'}


def request(method: str, params: Any = None, request_id: Any = 1) -> dict[str, Any]:
    message = {'jsonrpc': '2.0', 'method': method, 'id': request_id}
    return message if params is None else {**message, 'params': params}


# --- the specification's examples ----------------------------------------------------------------

# Source: JSON-RPC 2.0, "Examples": what is sent and what is answered, as they stand there. Here a
# method has the service before its name, so `spec.` is put in front of those that exist.
EXAMPLES = [
    (
        'positional parameters',
        '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}',
        '{"jsonrpc": "2.0", "result": 19, "id": 1}',
    ),
    (
        'positional parameters, swapped',
        '{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}',
        '{"jsonrpc": "2.0", "result": -19, "id": 2}',
    ),
    (
        'named parameters',
        '{"jsonrpc": "2.0", "method": "subtract", '
        '"params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        '{"jsonrpc": "2.0", "result": 19, "id": 3}',
    ),
    (
        'named parameters, swapped',
        '{"jsonrpc": "2.0", "method": "subtract", '
        '"params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        '{"jsonrpc": "2.0", "result": 19, "id": 4}',
    ),
    (
        'a notification',
        '{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}',
        '',
    ),
    ('a notification of nothing', '{"jsonrpc": "2.0", "method": "foobar"}', ''),
    (
        'non-existent method',
        '{"jsonrpc": "2.0", "method": "foobar", "id": "1"}',
        '{"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": "1"}',
    ),
    (
        'invalid JSON',
        '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]',
        '{"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": null}',
    ),
    (
        'invalid Request object',
        '{"jsonrpc": "2.0", "method": 1, "params": "bar"}',
        '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}',
    ),
    (
        'batch, invalid JSON',
        '[\n'
        '  {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},\n'
        '  {"jsonrpc": "2.0", "method"\n'
        ']',
        '{"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": null}',
    ),
    (
        'an empty Array',
        '[]',
        '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}',
    ),
    (
        'an invalid Batch, but not empty',
        '[1]',
        '[{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}]',
    ),
    (
        'an invalid Batch',
        '[1,2,3]',
        '['
        '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null},'
        '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null},'
        '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}'
        ']',
    ),
    (
        'a Batch',
        '['
        '{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},'
        '{"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},'
        '{"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},'
        '{"foo": "boo"},'
        '{"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},'
        '{"jsonrpc": "2.0", "method": "get_data", "id": "9"}'
        ']',
        '['
        '{"jsonrpc": "2.0", "result": 7, "id": "1"},'
        '{"jsonrpc": "2.0", "result": 19, "id": "2"},'
        '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null},'
        '{"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": "5"},'
        '{"jsonrpc": "2.0", "result": ["hello", 5], "id": "9"}'
        ']',
    ),
    (
        'a Batch of notifications',
        '['
        '{"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},'
        '{"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}'
        ']',
        '',
    ),
]
THERE = re.compile('"(subtract|update|sum|notify_hello|notify_sum|get_data)"')


@pytest.mark.parametrize(
    ('sent', 'answer'), [row[1:] for row in EXAMPLES], ids=[row[0] for row in EXAMPLES]
)
def test_each_example_of_the_specification_is_answered_as_specified(
    post: Callable[..., tuple[int, Any]], sent: str, answer: str
) -> None:
    status, found = post(THERE.sub(r'"spec.\1"', sent))
    assert (status, found) == ((200, json.loads(answer)) if answer else (204, ''))


def test_notifications_are_executed(post: Callable[..., tuple[int, Any]], calls: list[str]) -> None:
    for row in EXAMPLES:
        if not row[2]:
            post(THERE.sub(r'"spec.\1"', row[1]))
    assert calls == ['update 12345', 'sum 7', 'hello 7']


# --- requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'message',
    [
        pytest.param({'method': 'spec.get_data', 'id': 1}, id='no version'),
        pytest.param({'jsonrpc': 2.0, 'method': 'spec.get_data', 'id': 1}, id='version a number'),
        pytest.param({'jsonrpc': '1.0', 'method': 'spec.get_data', 'id': 1}, id='other version'),
        pytest.param({'jsonrpc': '2.0', 'id': 1}, id='no method'),
        pytest.param({'jsonrpc': '2.0', 'method': None, 'id': 1}, id='method null'),
        pytest.param(request('spec.get_data', 'bar'), id='params a string'),
        pytest.param(
            {'jsonrpc': '2.0', 'method': 'spec.get_data', 'params': None, 'id': 1}, id='params null'
        ),
    ],
)
def test_invalid_request_is_answered_with_its_id(
    post: Callable[..., tuple[int, Any]], message: Any
) -> None:
    assert post(message) == (200, {**INVALID_REQUEST, 'id': 1})


@pytest.mark.parametrize('request_id', [True, [], {}, [1]], ids=json.dumps)
def test_what_can_be_no_id_makes_the_request_invalid(
    post: Callable[..., tuple[int, Any]], request_id: Any
) -> None:
    assert post(request('spec.get_data', request_id=request_id)) == (200, INVALID_REQUEST)


@pytest.mark.parametrize('request_id', ['', 'ü', 0, -1, 1.5, 2**70, None], ids=json.dumps)
def test_id_comes_back_as_it_was(post: Callable[..., tuple[int, Any]], request_id: Any) -> None:
    status, answer = post(request('spec.get_data', request_id=request_id))
    assert (status, answer['id'], answer['result']) == (200, request_id, ['hello', 5])
    assert type(answer['id']) is type(request_id)


@pytest.mark.parametrize('message', [1, 'x', None, True], ids=json.dumps)
def test_what_is_neither_object_nor_array_is_an_invalid_request(
    post: Callable[..., tuple[int, Any]], message: Any
) -> None:
    assert post(json.dumps(message)) == (200, INVALID_REQUEST)


@pytest.mark.parametrize(
    'name',
    [
        *('', '.', 'spec.', '.sum', 'spec..sum', 'spec/sum', 'sum', 'rpc.none', 'more.v1.More'),
        *('spec.__init__', 'Spec.sum', 'more.v1.more.echo'),
    ],
)
def test_other_names_are_not_found(post: Callable[..., tuple[int, Any]], name: str) -> None:
    error = {'code': -32601, 'message': 'Method not found'}
    assert post(request(name, [1, 2, 4])) == (200, {'jsonrpc': '2.0', 'error': error, 'id': 1})


def test_method_sees_its_context(post: Callable[..., tuple[int, Any]], calls: list[str]) -> None:
    _, answer = post(request('more.v1.More.echo', [3]), headers={**HEADERS, 'x-note': 'hi'})
    assert (answer['result'], calls) == ([3, ''], ['echo more.v1.More/echo hi'])


@pytest.mark.parametrize(
    ('params', 'result'),
    [
        (None, [None, '']),
        ([], [None, '']),
        ({}, [None, '']),
        ([[1]], [[1], '']),
        (['a', 'b'], ['a', 'b']),
        ({'note': 'b', 'value': {'c': 2**70}}, [{'c': 2**70}, 'b']),
    ],
    ids=json.dumps,
)
def test_parameters_by_position_or_name(
    post: Callable[..., tuple[int, Any]], params: Any, result: Any
) -> None:
    assert post(request('more.v1.More.echo', params))[1]['result'] == result


@pytest.mark.parametrize(
    ('params', 'reason'),
    [
        pytest.param([1], '$.subtrahend: missing', id='too few'),
        pytest.param([1, 2, 3], 'spec/subtract takes 2 parameters, not 3', id='too many'),
        pytest.param(['1', 2], '$.minuend: expected int, got str', id='wrong type by position'),
        pytest.param(
            {'minuend': 1, 'subtrahend': 2, 'extra': 3}, '$.extra: no such parameter', id='unknown'
        ),
    ],
)
def test_parameters_are_checked_as_in_a_connect_call(
    post: Callable[..., tuple[int, Any]], params: Any, reason: str
) -> None:
    _, answer = post(request('spec.subtract', params))
    assert answer['error'] == {
        'code': -32602,
        'message': 'Invalid params',
        'data': {'code': 'invalid_argument', 'message': reason},
    }


# --- errors --------------------------------------------------------------------------------------

NUMBERS = {
    'canceled': -32001,
    'unknown': -32002,
    'invalid_argument': -32602,
    'deadline_exceeded': -32004,
    'not_found': -32005,
    'already_exists': -32006,
    'permission_denied': -32007,
    'resource_exhausted': -32008,
    'failed_precondition': -32009,
    'aborted': -32010,
    'out_of_range': -32011,
    'unimplemented': -32601,
    'internal': -32603,
    'unavailable': -32014,
    'data_loss': -32015,
    'unauthenticated': -32016,
}


def test_each_code_has_a_number_of_its_own_that_the_specification_leaves_to_servers() -> None:
    assert set(NUMBERS) == {code.value for code in Code}
    assert len(set(NUMBERS.values())) == len(NUMBERS)


@pytest.mark.parametrize(('code', 'number'), NUMBERS.items(), ids=NUMBERS)
def test_error_of_a_method_has_the_number_of_its_code(
    post: Callable[..., tuple[int, Any]], code: str, number: int
) -> None:
    params = {'code': code, 'message': 'why not', 'details': [{'a': 1}]}
    status, answer = post(request('more.v1.More.fail', params))
    assert (status, answer['error']['code'], answer['id']) == (200, number, 1)
    assert answer['error']['data'] == {'code': code, 'message': 'why not', 'details': [{'a': 1}]}
    assert (answer['error']['message'] == 'why not') == (number > -32100)


def test_message_that_is_not_utf8_is_escaped(post: Callable[..., tuple[int, Any]]) -> None:
    _, answer = post(request('more.v1.More.fail', ['not_found', 'no HALF']))
    assert answer['error']['message'] == answer['error']['data']['message'] == 'no \\udcff'


@pytest.mark.parametrize('how', ['exception', 'details'])
def test_what_was_not_meant_for_the_caller_is_an_internal_error_with_a_reference(
    post: Callable[..., tuple[int, Any]], caplog: pytest.LogCaptureFixture, how: str
) -> None:
    _, answer = post(request('more.v1.More.fail_badly', [how]))
    error = answer['error']
    assert (error['code'], error['message']) == (-32603, 'Internal error')
    reference = re.fullmatch('internal error, reference ([0-9a-f]{16})', error['data']['message'])
    assert reference is not None
    assert reference[1] in caplog.text
    assert 'secret' not in json.dumps(answer)


@pytest.mark.parametrize(
    ('method', 'params'),
    [('spec.subtract', [1]), ('more.v1.More.wipe', []), ('more.v1.More.fail_badly', ['x'])],
    ids=['invalid', 'denied', 'failed'],
)
def test_notification_that_fails_is_not_answered(
    post: Callable[..., tuple[int, Any]], method: str, params: Any
) -> None:
    message = {'jsonrpc': '2.0', 'method': method, 'params': params}
    assert post(message) == (204, '')
    assert post([message, message]) == (204, '')


# --- what JSON-RPC cannot say --------------------------------------------------------------------


@pytest.mark.parametrize(
    ('method', 'params'), [('more.v1.More.count', [3]), ('more.v1.More.total', {'numbers': [1]})]
)
def test_method_with_a_stream_is_unimplemented(
    post: Callable[..., tuple[int, Any]], calls: list[str], method: str, params: Any
) -> None:
    status, answer = post(request(method, params))
    assert (status, answer['error']['code']) == (200, -32601)
    assert answer['error']['data']['code'] == 'unimplemented'
    assert 'stream' in answer['error']['data']['message']
    assert calls == []


def test_client_that_is_gone_is_noticed_by_check(serve: Callable[..., Any]) -> None:
    started, ended = threading.Event(), threading.Event()
    outcomes: list[Code] = []
    service = Service('a.B')

    @service.method(allow='peer')
    def work(ctx: Context) -> None:
        started.set()
        try:
            while not ended.wait(0.01):
                ctx.check()
        except RpcError as error:
            outcomes.append(error.code)
            raise
        finally:
            ended.set()

    client, _ = serve(JsonRpcApp([service]))
    body = json.dumps(request('a.B.work')).encode()
    with socket.create_connection(client.address) as sock:
        head = 'POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n'
        sock.sendall(f'{head}content-length: {len(body)}\r\n\r\n'.encode() + body)
        assert started.wait(HANG_S)
    try:
        assert ended.wait(NOTICED_S)
    finally:
        ended.set()
    assert outcomes == [Code.CANCELED]


# --- who may call --------------------------------------------------------------------------------


def test_caller_without_the_role_is_denied_and_nothing_is_called(
    post: Callable[..., tuple[int, Any]], calls: list[str]
) -> None:
    message = request('more.v1.More.wipe')
    _, answer = post([message, {**message, 'id': 2}, request('more.v1.More.echo', request_id=3)])
    assert [item.get('error', {}).get('code') for item in answer] == [-32007, -32007, None]
    assert answer[0]['error']['data']['code'] == 'permission_denied'
    assert calls == ['echo more.v1.More/echo ']


def test_owner_may_call_everything(post: Callable[..., tuple[int, Any]], calls: list[str]) -> None:
    assert post(request('more.v1.More.wipe'), roles=('owner',))[1]['result'] is None
    assert calls == ['wiped']


@pytest.mark.parametrize(
    ('roles', 'status', 'code', 'number'),
    [
        (None, 401, 'unauthenticated', -32016),
        ((), 403, 'permission_denied', -32007),
        (('stranger',), 403, 'permission_denied', -32007),
    ],
    ids=['unknown', 'no role', 'other role'],
)
def test_who_may_call_nothing_is_refused_before_the_body_is_read(
    post: Callable[..., tuple[int, Any]],
    roles: tuple[str, ...] | None,
    status: int,
    code: str,
    number: int,
) -> None:
    found, answer = post('{broken', roles=roles)
    assert (found, answer['error']['code'], answer['id']) == (status, number, None)
    assert answer['error']['data']['code'] == code


# --- hardening -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'text',
    [
        pytest.param('', id='nothing'),
        pytest.param('[' * 100_000, id='nesting'),
        pytest.param(
            '{"jsonrpc":"2.0","id":1,"method":"more.v1.More.echo","params":'
            + '[' * MAX_NESTING
            + ']' * MAX_NESTING
            + '}',
            id='nested too deep by one',
        ),
        pytest.param(
            '{"jsonrpc":"2.0","id":1,"id":2,"method":"more.v1.More.echo"}', id='duplicate key'
        ),
        pytest.param(
            '{"jsonrpc":"2.0","id":1,"method":"more.v1.More.echo","params":{"value":1,"value":2}}',
            id='duplicate parameter',
        ),
        pytest.param('{"jsonrpc":"2.0","id":NaN,"method":"more.v1.More.echo"}', id='NaN'),
        pytest.param('{"jsonrpc":"2.0","id":"\\ud800","method":"x"}', id='lone surrogate'),
        pytest.param('{"jsonrpc":"2.0","id":1,"method":"x"} 1', id='trailing'),
        pytest.param('[' + '1,' * 100_000 + '1]', id='too many values'),
        pytest.param(b'\xff', id='no UTF-8'),
    ],
)
def test_what_a_connect_call_would_not_decode_is_a_parse_error(
    post: Callable[..., tuple[int, Any]], calls: list[str], text: str
) -> None:
    assert post(text) == (200, PARSE_ERROR)
    assert calls == []


def test_batch_has_a_limit_and_nothing_of_a_larger_one_is_called(
    post: Callable[..., tuple[int, Any]], calls: list[str]
) -> None:
    message = request('more.v1.More.echo')
    status, answer = post([message] * (MAX_BATCH + 1))
    assert (status, answer['error']['code'], answer['id']) == (200, -32600, None)
    assert str(MAX_BATCH) in answer['error']['data']['message']
    assert calls == []
    assert len(post([message] * MAX_BATCH)[1]) == MAX_BATCH


def test_document_is_built_once_for_the_same_roles(
    post: Callable[..., tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(services: Any) -> Any:
        built.append(1)
        return build_openrpc(services)

    monkeypatch.setattr(jsonrpc, 'build_openrpc', build)
    _, answers = post([request('rpc.discover')] * MAX_BATCH)
    assert len(answers) == MAX_BATCH
    assert len(built) == 1


def test_message_above_the_limit_is_not_read(post: Callable[..., tuple[int, Any]]) -> None:
    status, answer = post(' ' * (MAX_MESSAGE_SIZE + 1))
    assert (status, answer['error']['code'], answer['id']) == (429, -32008, None)


def test_answers_of_a_batch_are_together_not_above_the_limit(
    post: Callable[..., tuple[int, Any]], calls: list[str]
) -> None:
    size = MAX_MESSAGE_SIZE // 2 - 1000
    ids = range(4)
    _, answer = post([request('more.v1.More.zeros', [size], request_id) for request_id in ids])
    assert [len(item.get('result', '')) for item in answer] == [size, size, 0, 0]
    assert [item['error']['code'] for item in answer[2:]] == [-32008] * 2
    assert len(calls) == 4


def test_errors_of_a_batch_are_together_not_above_the_limit(
    post: Callable[..., tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonrpc, 'MAX_MESSAGE_SIZE', 10_000)
    message = request('more.v1.More.fail', {'code': 'not_found', 'message': 'x' * 2000})
    _, answer = post([message] * 4)
    assert [item['error']['code'] for item in answer] == [-32005, -32005, -32008, -32008]


# --- HTTP ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('method', ['GET', 'HEAD', 'PUT', 'DELETE'])
def test_other_verbs_are_not_allowed(post: Callable[..., tuple[int, Any]], method: str) -> None:
    body = '{}' if method == 'PUT' else None
    assert post(body, method=method)[0] == 405


@pytest.mark.parametrize('kind', ['text/plain', 'application/msgpack', None])
def test_content_type_must_be_json(post: Callable[..., tuple[int, Any]], kind: str | None) -> None:
    headers = {} if kind is None else {'content-type': kind}
    assert post(request('spec.get_data'), headers=headers)[0] == 415


def test_compressed_body_is_refused(post: Callable[..., tuple[int, Any]]) -> None:
    status, answer = post('x', headers={**HEADERS, 'content-encoding': 'gzip'})
    assert (status, answer['error']['code']) == (501, -32601)


def test_below_its_path_there_is_nothing(post: Callable[..., tuple[int, Any]]) -> None:
    assert post(request('spec.get_data'), uri='/rpc/jsonrpc/spec')[0] == 404


@pytest.mark.parametrize('name', ['rpc', 'rpc.v1.X'])
def test_service_in_the_reserved_namespace_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match='for itself'):
        jsonrpc.JsonRpcApp([Service(name)])
