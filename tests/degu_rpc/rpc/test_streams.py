"""Streams between our own client and server: both ways, their ends, limits and deadlines."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from degu.client import Client, SSLClient, build_client_sslctx
from degu.server import SSLServer, build_server_sslctx
from degu_rpc import Code, Context, Router, RpcApp, RpcClient, RpcError, Service
from degu_rpc.errors import CodecError
from degu_rpc.rpc import connect as connect_module
from degu_rpc.rpc.codec import CODECS, Codec
from degu_rpc.rpc.envelope import END, format_envelope, parse_envelopes
from degu_rpc.rpc.limits import MAX_ERROR_SIZE, MAX_MESSAGE_SIZE
from degu_rpc.rpc.result_stream import ResultStream
from degu_rpc.rpc.service import Kind

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

NUMBERS = 'numbers.v1.Numbers'
HANG_S = 10.0
NOTICED_S = 1.0
"""Within this a client that is gone must be noticed."""

both = pytest.mark.parametrize('codec', CODECS, ids=lambda codec: codec.name)


class Log:
    """What happened on the server, for a test to wait for."""

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._changed = threading.Condition()

    def add(self, item: Any) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def wait_for(self, item: Any, timeout_s: float = HANG_S) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: item in self._items, timeout_s), self._items


def build_app(log: Log) -> Router:
    @contextmanager
    def logged(ctx: Context) -> Iterator[None]:
        log.add(('enter', ctx.method))
        try:
            yield
        except BaseException as error:
            log.add(('exit', type(error).__name__, str(error)))
            raise
        log.add(('exit', None))

    numbers = Service(NUMBERS, [logged])

    @numbers.method(allow='peer')
    def count(ctx: Context, stop: int) -> Iterator[int]:
        ctx.response_headers['x-cost'] = '3'
        yield from range(stop)

    @numbers.method(allow='peer')
    def named(ctx: Context, fails: bool) -> Iterator[str]:
        yield ctx.request_id
        if fails:
            raise RpcError(Code.ABORTED, 'on purpose')

    @numbers.method(allow='peer')
    def listed() -> Iterator[int]:
        return iter([1, 2])

    @numbers.method(allow='peer')
    def total(numbers: Iterator[int], start: int = 0) -> int:
        return sum(numbers, start)

    @numbers.method(allow='peer')
    def first(numbers: Iterator[int]) -> int:
        return next(numbers)

    @numbers.method(allow='peer')
    def refuse(numbers: Iterator[int]) -> int:
        raise RpcError(Code.ABORTED, 'I refuse')

    @numbers.method(allow='peer')
    def some(blocks: Iterator[bytes], stop: int) -> Iterator[bytes]:
        yield from itertools.islice(blocks, stop)
        raise RpcError(Code.ABORTED, 'that was all')

    @numbers.method(allow='peer')
    def sizes(blocks: Iterator[bytes]) -> Iterator[int]:
        for block in blocks:
            yield len(block)

    @numbers.method(allow='peer')
    def echo(blocks: Iterator[bytes]) -> Iterator[bytes]:
        yield from blocks

    @numbers.method(allow='peer')
    def twice(blocks: Iterator[bytes]) -> Iterator[bytes]:
        first = next(blocks)
        yield first
        yield first

    @numbers.method(allow='peer')
    def fail(how: str) -> Iterator[int]:
        yield 1
        if how == 'badly':
            raise KeyError('the secret')
        if how == 'details':
            raise RpcError(Code.ABORTED, 'gone', [{'what': object()}])
        if how == 'large details':
            raise RpcError(Code.ABORTED, 'gone', [{'what': 'x' * MAX_ERROR_SIZE}])
        if how == 'large':
            yield '0' * MAX_MESSAGE_SIZE  # type: ignore[misc]  # nobody checks what is sent
        raise RpcError(Code.ABORTED, how)

    @numbers.method(allow='peer')
    def tick(ctx: Context, pause_s: float = 0.01) -> Iterator[int]:
        number = 0
        try:
            while True:
                yield number
                number += 1
                time.sleep(pause_s)
        finally:
            log.add('tick ended')

    @numbers.method(allow='peer')
    def wait(ctx: Context) -> None:
        log.add('wait began')
        try:
            while True:
                ctx.check()
                time.sleep(0.01)
        except RpcError as error:
            log.add(error.code)
            raise

    @numbers.method(allow='peer')
    def take(numbers: Iterator[int]) -> int:
        log.add('take began')
        try:
            return sum(numbers)
        except RpcError as error:
            log.add(error.code)
            raise

    @numbers.method(allow='owner')
    def secret() -> Iterator[int]:
        yield 1

    router = Router()
    router.mount('/rpc', RpcApp([numbers]))
    return router


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def served(serve: Callable[..., Any], address: Any, log: Log) -> Any:
    return serve(build_app(log), address)[0]


@pytest.fixture(params=['unix', 'tcp', 'tls'])
def every_kind(
    request: pytest.FixtureRequest,
    log: Log,
    serve: Callable[..., Any],
    tmp_path: pathlib.Path,
    temp_pki: Any,
) -> Iterator[Client]:
    """Serve over each kind of connection."""
    client, app = serve(
        build_app(log),
        str(tmp_path / 'socket') if request.param == 'unix' else ('127.0.0.1', 0),
    )
    if request.param != 'tls':
        yield client
        return
    sslctx = build_server_sslctx(temp_pki.get_server_config())
    with SSLServer(sslctx, ('127.0.0.1', 0), app) as server:
        yield SSLClient(build_client_sslctx(temp_pki.get_client_config()), server.address)


@pytest.fixture
def rpc(served: Client) -> Iterator[RpcClient]:
    with RpcClient(served) as client:
        yield client


# --- declaration ---------------------------------------------------------------------------------


def test_kind_of_a_method_comes_from_its_annotations() -> None:
    numbers = Service('a')

    @numbers.method(allow='peer')
    def neither(a: int) -> int: ...

    @numbers.method(allow='peer')
    def results(a: int) -> Iterator[int]: ...

    @numbers.method(allow='peer')
    def items(a: Iterator[int], b: int) -> int: ...

    @numbers.method(allow='peer')
    def both_ways(a: Iterator[int]) -> Iterator[int]: ...

    assert {name: method.kind for name, method in numbers.methods.items()} == {
        'neither': Kind.UNARY,
        'results': Kind.SERVER_STREAM,
        'items': Kind.CLIENT_STREAM,
        'both_ways': Kind.BIDI_STREAM,
    }
    assert set(numbers.methods['items'].parameters) == {'b'}


# --- both ways -----------------------------------------------------------------------------------


@both
def test_every_kind_of_stream(served: Client, codec: Codec) -> None:
    with RpcClient(served, '/rpc', codec) as rpc:
        assert list(rpc.streams(NUMBERS).count(stop=3)) == [0, 1, 2]
        assert list(rpc.streams(NUMBERS).count(stop=0)) == []
        assert list(rpc.streams(NUMBERS).listed()) == [1, 2]
        assert rpc[NUMBERS].total(numbers=iter([1, 2]), start=4) == 7
        assert rpc[NUMBERS].total(numbers=iter([])) == 0
        blocks = ['YQ==', ''] if codec.name == 'json' else [b'a', b'']
        assert list(rpc.streams(NUMBERS).sizes(blocks=iter(blocks))) == [1, 0]


@both
def test_bound_class_has_typed_streams(served: Client, codec: Codec) -> None:
    class Api:
        def count(self, stop: int) -> Iterator[int]:
            raise NotImplementedError

        def total(self, numbers: Iterator[int], start: int = 0) -> int:
            raise NotImplementedError

        def echo(self, blocks: Iterable[bytes]) -> ResultStream[bytes]:
            raise NotImplementedError

    with RpcClient(served, '/rpc', codec).using(compressed=True) as rpc:
        api = rpc.bind(Api, NUMBERS)
        assert list(api.count(2)) == [0, 1]
        assert api.total([1, 2, 3], start=1) == 7  # type: ignore[arg-type]  # any iterable does
        blocks = [b'\x00\xff', b'', b'x' * 100_000]
        assert list(api.echo(blocks)) == blocks
        with api.echo(iter(blocks)) as echoed:
            assert next(echoed) == blocks[0]


def test_stream_of_a_client_that_does_not_say_of_what_is_refused(rpc: RpcClient) -> None:
    class Results:
        def count(self, stop: int) -> ResultStream:  # type: ignore[type-arg]  # what is tested
            raise NotImplementedError

    class Sent:
        def total(self, numbers: Iterable) -> int:  # type: ignore[type-arg]  # what is tested
            raise NotImplementedError

    with pytest.raises(TypeError, match=r'the result is a stream of what\? Write ResultStream\['):
        rpc.bind(Results, NUMBERS)
    with pytest.raises(TypeError, match=r"'numbers' is a stream of what\? Write Iterable\["):
        rpc.bind(Sent, NUMBERS)


def test_result_of_another_type_is_an_error_at_the_reader(rpc: RpcClient) -> None:
    results = rpc.stream(NUMBERS, 'count', {'stop': 1}, str)
    with pytest.raises(RpcError, match='expected str') as caught:
        next(results)
    assert caught.value.code is Code.INTERNAL


def test_headers_of_a_method_come_with_the_end(rpc: RpcClient) -> None:
    with rpc.stream(NUMBERS, 'count', {'stop': 1}) as results:
        assert list(results) == [0]
        assert results.response_headers == {'x-cost': '3'}


@pytest.mark.parametrize('fails', [False, True])
def test_request_id_that_is_made_comes_with_the_end(rpc: RpcClient, fails: bool) -> None:
    with rpc.streams(NUMBERS).named(fails=fails) as results:
        made = next(results)
        with pytest.raises(RpcError if fails else StopIteration):
            next(results)
        assert results.response_headers == {'x-request-id': made}


def test_request_id_that_was_sent_comes_with_the_headers(served: Client) -> None:
    with served.connect() as connection:
        headers = {'content-type': 'application/connect+json', 'x-request-id': 'mine'}
        body = format_envelope(b'{"fails": false}')
        response = connection.post(f'/rpc/{NUMBERS}/named', headers, body)
        assert response.headers['x-request-id'] == 'mine'
        assert list(response.body or ())[-2] == format_envelope(b'{}', END)


def test_second_stream_among_the_arguments_is_refused(rpc: RpcClient) -> None:
    with pytest.raises(TypeError, match='at most one'):
        rpc[NUMBERS].total(numbers=iter([]), start=iter([]))


def test_call_of_the_other_kind_says_what_to_do(rpc: RpcClient) -> None:
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: rpc.streams(NUMBERS).wait(), r'wait has no stream: use client\[\.\.\.\]'),
        (lambda: rpc[NUMBERS].wait(numbers=iter([])), 'wait has no stream: .*pass a list'),
        (lambda: rpc[NUMBERS].count(stop=1), r'count has a stream: use client\.streams'),
        (lambda: rpc[NUMBERS].total(numbers=[1]), r'total has a stream: .*pass an iterator'),
    ]
    for call, match in calls:
        with pytest.raises(RpcError, match=match) as caught:
            call()
        assert caught.value.code is Code.UNIMPLEMENTED


def test_method_need_not_read_the_whole_stream(rpc: RpcClient) -> None:
    assert rpc[NUMBERS].first(numbers=iter([7, *range(1000)])) == 7


def test_results_reach_a_caller_that_still_has_much_to_send(rpc: RpcClient) -> None:
    blocks = iter([b'x' * 60_000] * 400)
    assert list(rpc.stream(NUMBERS, 'twice', {'blocks': blocks}, bytes)) == [b'x' * 60_000] * 2


def test_results_before_the_end_of_the_callers_stream_are_held_back(rpc: RpcClient) -> None:
    blocks = [b'x' * 50_000] * 60
    results = rpc.stream(NUMBERS, 'echo', {'blocks': iter(blocks)}, bytes)
    assert list(results) == blocks


def test_small_results_that_are_held_back_take_little_more_than_their_size(
    rpc: RpcClient,
) -> None:
    count = 20_000
    tracemalloc.start()
    try:
        results = rpc.stream(NUMBERS, 'echo', {'blocks': iter([b''] * count)}, bytes)
        assert sum(1 for _ in results) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * count


def test_too_many_results_before_the_end_of_the_callers_stream_are_an_error(
    rpc: RpcClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect_module, 'MAX_HELD_SIZE', 1000)
    with pytest.raises(RpcError, match='before the end of blocks') as caught:
        list(rpc.stream(NUMBERS, 'echo', {'blocks': iter([b'x' * 600] * 2)}, bytes))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


def test_too_many_results_are_an_error_to_a_caller_that_still_writes(rpc: RpcClient) -> None:
    blocks = iter([b'x' * 500_000] * 12)
    with pytest.raises(RpcError, match='before the end of blocks') as caught:
        list(rpc.using(timeout_s=HANG_S).stream(NUMBERS, 'echo', {'blocks': blocks}, bytes))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('how', 'code'),
    [
        ('why', Code.ABORTED),
        ('badly', Code.INTERNAL),
        ('details', Code.INTERNAL),
        ('large details', Code.INTERNAL),
        ('large', Code.RESOURCE_EXHAUSTED),
    ],
)
def test_error_comes_after_the_results_before_it(rpc: RpcClient, how: str, code: Code) -> None:
    results = rpc.streams(NUMBERS).fail(how=how)
    assert next(results) == 1
    with pytest.raises(RpcError) as caught:
        next(results)
    assert caught.value.code is code
    assert 'secret' not in str(caught.value)


def paced() -> Iterator[int]:
    for number in itertools.count():
        time.sleep(0.02)
        yield number


@pytest.mark.parametrize('items', [paced, itertools.count], ids=['slow', 'fast'])
def test_early_error_ends_a_stream_without_an_end(
    rpc: RpcClient, items: Callable[[], Iterator[int]]
) -> None:
    with pytest.raises(RpcError, match='I refuse') as caught:
        rpc.using(timeout_s=HANG_S)[NUMBERS].refuse(numbers=items())
    assert caught.value.code is Code.ABORTED


def test_early_error_ends_a_stream_whose_item_nobody_reads(rpc: RpcClient) -> None:
    with pytest.raises(RpcError, match='I refuse'):
        rpc.using(timeout_s=HANG_S)[NUMBERS].refuse(numbers=itertools.repeat('x' * 4_000_000))


def test_early_error_comes_after_large_results(every_kind: Client) -> None:
    """Neither side waits for the other to read, and no reset destroys what is on its way."""
    blocks = [b'x' * 500_000] * 12
    with RpcClient(every_kind).using(timeout_s=HANG_S) as rpc:
        results = rpc.stream(NUMBERS, 'some', {'blocks': iter(blocks), 'stop': 6}, bytes)
        assert [next(results) for _ in range(6)] == blocks[:6]
        with pytest.raises(RpcError, match='that was all'):
            next(results)


def test_deadline_ends_a_stream_without_an_end(rpc: RpcClient) -> None:
    started = time.monotonic()
    with pytest.raises(RpcError) as caught:
        rpc.using(timeout_s=0.3)[NUMBERS].total(numbers=paced())
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert time.monotonic() - started < NOTICED_S


def test_caller_without_the_role_is_denied_at_the_end_of_a_stream(rpc: RpcClient) -> None:
    with pytest.raises(RpcError) as caught:
        list(rpc.streams(NUMBERS).secret())
    assert caught.value.code is Code.PERMISSION_DENIED


def test_error_of_the_callers_iterator_reaches_the_caller(rpc: RpcClient, log: Log) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        log.wait_for('take began')
        raise FileNotFoundError('my own file')

    with pytest.raises(FileNotFoundError, match='my own file'):
        rpc[NUMBERS].take(numbers=numbers())
    log.wait_for(Code.CANCELED)


def test_item_that_cannot_travel_reaches_the_caller(rpc: RpcClient, log: Log) -> None:
    def numbers() -> Iterator[Any]:
        yield 1
        log.wait_for('take began')
        yield object()

    with pytest.raises(CodecError):
        rpc[NUMBERS].take(numbers=numbers())
    log.wait_for(Code.CANCELED)


def test_item_above_the_limit_is_not_sent(rpc: RpcClient) -> None:
    with pytest.raises(RpcError, match='an item is larger'):
        rpc[NUMBERS].take(numbers=iter(['0' * MAX_MESSAGE_SIZE]))


def test_item_of_another_type_names_itself(rpc: RpcClient) -> None:
    with pytest.raises(RpcError, match=r'numbers, item 1: .*expected int') as caught:
        rpc[NUMBERS].total(numbers=iter([1, 'x']))
    assert caught.value.code is Code.INVALID_ARGUMENT


# --- what is outside the protocol ----------------------------------------------------------------


def ask(served: Client, method: str, body: bytes, **headers: str) -> dict[str, Any]:
    """Send a JSON stream as it stands; return what its end says."""
    extra = {name.replace('_', '-'): value for name, value in headers.items()}
    with served.connect() as connection:
        response = connection.post(
            f'/rpc/{NUMBERS}/{method}', {'content-type': 'application/connect+json', **extra}, body
        )
        assert (response.status, response.headers['content-type']) == (
            200,
            'application/connect+json',
        )
        assert response.body is not None
        *_, (flags, end) = parse_envelopes([response.body.read()], MAX_MESSAGE_SIZE)
    assert flags == END
    content: dict[str, Any] = json.loads(end)
    return content


FIRST = format_envelope(b'{}')


@pytest.mark.parametrize(
    ('body', 'code'),
    [
        (b'', 'invalid_argument'),
        (FIRST + b'\x00', 'invalid_argument'),
        (FIRST + format_envelope(b'1', END), 'invalid_argument'),
        (FIRST + format_envelope(b'1', 0x40), 'invalid_argument'),
        (FIRST + format_envelope(connect_module.compress(b'1'), 1), 'invalid_argument'),
        (FIRST + format_envelope(b'[' * 100_000), 'invalid_argument'),
        (FIRST + format_envelope(b'NaN'), 'invalid_argument'),
        (FIRST + b'\x00\x7f\xff\xff\xff', 'resource_exhausted'),
        (format_envelope(b'[]'), 'invalid_argument'),
    ],
    ids=['empty', 'cut', 'end', 'flags', 'gzip', 'nested', 'nan', 'length', 'no_map'],
)
def test_stream_outside_the_protocol_is_refused(served: Client, body: bytes, code: str) -> None:
    assert ask(served, 'take', body)['error']['code'] == code


def test_gzip_bomb_in_a_stream_is_refused(served: Client) -> None:
    bomb = connect_module.compress(bytes(MAX_MESSAGE_SIZE + 1))
    body = FIRST + format_envelope(bomb, 1)
    end = ask(served, 'take', body, connect_content_encoding='gzip')
    assert end['error']['code'] == 'resource_exhausted'


def test_second_message_to_a_method_without_a_stream_is_refused(served: Client) -> None:
    body = format_envelope(b'{"stop": 1}') * 2
    assert ask(served, 'count', body)['error']['code'] == 'invalid_argument'


@pytest.mark.parametrize(
    ('header', 'value', 'code'),
    [
        ('connect_protocol_version', '2', 'invalid_argument'),
        ('connect_content_encoding', 'br', 'unimplemented'),
        ('connect_timeout_ms', '1e3', 'invalid_argument'),
        ('connect_timeout_ms', '12345678901', 'invalid_argument'),
        ('connect_timeout_ms', '-1', 'invalid_argument'),
    ],
)
def test_header_outside_the_protocol_is_refused(
    served: Client, header: str, value: str, code: str
) -> None:
    body = format_envelope(b'{"stop": 1}')
    assert ask(served, 'count', body, **{header: value})['error']['code'] == code


class Answer:
    def __init__(self, body: Any, content_type: str = 'application/connect+json') -> None:
        self.response = (200, 'OK', {'content-type': content_type}, body)

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Any:
        request['body'].read()
        return self.response


ONE, OK = format_envelope(b'1'), format_envelope(b'{}', END)


@pytest.mark.parametrize(
    'body',
    [
        b'',
        ONE,
        ONE + ONE[:3],
        ONE + OK + ONE,
        ONE + OK + b'\x00',
        format_envelope(b'[]', END),
        format_envelope(b'{"metadata": {"a": "b"}}', END),
        format_envelope(b'{', END),
        ONE + format_envelope(b'', 0x80),
        format_envelope(b'x', 1),
    ],
    ids=str,
)
def test_answer_that_is_no_stream_is_internal(serve: Callable[..., Any], body: bytes) -> None:
    client, _ = serve(Answer(body))
    with RpcClient(client) as rpc, pytest.raises(RpcError) as caught:
        list(rpc.streams('a').b())
    assert caught.value.code is Code.INTERNAL


def test_error_of_another_form_at_the_end_is_unknown(serve: Callable[..., Any]) -> None:
    client, _ = serve(Answer(format_envelope(b'{"error": {"code": "never"}}', END)))
    with RpcClient(client) as rpc, pytest.raises(RpcError) as caught:
        list(rpc.streams('a').b())
    assert caught.value.code is Code.UNKNOWN


@pytest.mark.parametrize('body', [OK, ONE + ONE + OK])
def test_one_result_is_neither_none_nor_two(serve: Callable[..., Any], body: bytes) -> None:
    client, _ = serve(Answer(body))
    with RpcClient(client) as rpc, pytest.raises(RpcError, match='results') as caught:
        rpc['a'].b(items=iter([]))
    assert caught.value.code is Code.INTERNAL


# --- who goes away, and when ---------------------------------------------------------------------


def test_closed_stream_closes_the_generator(rpc: RpcClient, log: Log) -> None:
    with rpc.streams(NUMBERS).tick() as results:
        assert next(results) == 0
    log.wait_for('tick ended', NOTICED_S)
    with pytest.raises(StopIteration):
        next(results)


def test_close_of_a_client_ends_a_call_in_another_thread(every_kind: Client, log: Log) -> None:
    rpc = RpcClient(every_kind)

    def close() -> None:
        log.wait_for('wait began')
        rpc.close()

    thread = threading.Thread(target=close)
    thread.start()
    started = time.monotonic()
    with pytest.raises(RpcError, match='client is closed') as caught:
        rpc.using(repeatable=True)[NUMBERS].wait()
    thread.join()
    assert caught.value.code is Code.CANCELED
    assert time.monotonic() - started < HANG_S
    log.wait_for(Code.CANCELED, NOTICED_S)


def test_close_of_a_client_ends_its_streams(every_kind: Client, log: Log) -> None:
    rpc = RpcClient(every_kind)
    results = rpc.streams(NUMBERS).tick()
    assert next(results) == 0
    rpc.close()
    with pytest.raises(RpcError, match='client is closed') as caught:
        list(results)
    assert caught.value.code is Code.CANCELED
    log.wait_for('tick ended', NOTICED_S)


def test_forgotten_stream_closes_the_generator(rpc: RpcClient, log: Log) -> None:
    results = rpc.streams(NUMBERS).tick()
    assert next(results) == 0
    del results
    log.wait_for('tick ended', NOTICED_S)


@pytest.mark.parametrize('has_tls', [False, True])
def test_client_that_is_gone_is_noticed_by_check(
    has_tls: bool, temp_pki: Any, serve: Callable[..., Any], log: Log
) -> None:
    plain, app = serve(build_app(log))
    server = None
    client = plain
    if has_tls:
        sslctx = build_server_sslctx(temp_pki.get_server_config())
        server = SSLServer(sslctx, ('127.0.0.1', 0), app)
        server.__enter__()
        client = SSLClient(build_client_sslctx(temp_pki.get_client_config()), server.address)
    try:
        sock = socket.create_connection(client.address)
        if has_tls:
            sock = client.sslctx.wrap_socket(sock)
        with sock:
            sock.sendall(
                f'POST /rpc/{NUMBERS}/wait HTTP/1.1\r\ncontent-type: application/json\r\n'
                'content-length: 2\r\n\r\n{}'.encode()
            )
            log.wait_for('wait began')
        log.wait_for(Code.CANCELED, NOTICED_S)
    finally:
        if server is not None:
            server.__exit__(None, None, None)


def test_deadline_ends_a_method_that_checks(rpc: RpcClient, log: Log) -> None:
    with pytest.raises(RpcError) as caught:
        rpc.using(timeout_s=0.6)[NUMBERS].wait()
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    log.wait_for(Code.DEADLINE_EXCEEDED)


def test_deadline_ends_a_stream_between_two_results(rpc: RpcClient, log: Log) -> None:
    with pytest.raises(RpcError) as caught:
        list(rpc.using(timeout_s=0.6).streams(NUMBERS).tick())
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    log.wait_for('tick ended')


def test_deadline_ends_the_wait_for_a_caller_that_says_nothing(served: Client) -> None:
    family = socket.AF_UNIX if isinstance(served.address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(HANG_S)
        sock.connect(served.address)
        sock.sendall(
            f'POST /rpc/{NUMBERS}/take HTTP/1.1\r\ncontent-type: application/connect+json\r\n'
            'connect-timeout-ms: 200\r\ntransfer-encoding: chunked\r\n\r\n'.encode()
            + b'%x\r\n%b\r\n' % (len(FIRST), FIRST)
        )
        answer = b''
        while piece := sock.recv(4096):
            answer += piece
    assert b'deadline_exceeded' in answer
    assert answer.endswith(b'0\r\n\r\n')


def test_deadline_ends_the_wait_for_the_rest_of_a_message(served: Client) -> None:
    family = socket.AF_UNIX if isinstance(served.address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(HANG_S)
        sock.connect(served.address)
        sock.sendall(
            f'POST /rpc/{NUMBERS}/wait HTTP/1.1\r\ncontent-type: application/json\r\n'
            'connect-timeout-ms: 200\r\ncontent-length: 2\r\n\r\n{'.encode()
        )
        answer = b''
        while piece := sock.recv(4096):
            answer += piece
    assert answer.startswith(b'HTTP/1.1 504 ')
    assert b'connection: close' in answer


def test_deadline_ends_the_wait_for_a_caller_that_does_not_read(served: Client, log: Log) -> None:
    family = socket.AF_UNIX if isinstance(served.address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.connect(served.address)
        first = format_envelope(b'{"pause_s": 0}')
        sock.sendall(
            f'POST /rpc/{NUMBERS}/tick HTTP/1.1\r\ncontent-type: application/connect+json\r\n'
            f'connect-timeout-ms: 500\r\ncontent-length: {len(first)}\r\n\r\n'.encode()
            + first
        )
        log.wait_for('tick ended', 5)


def test_client_does_not_wait_longer_than_its_time(log: Log) -> None:
    with socket.create_server(('127.0.0.1', 0)) as listener:
        rpc = RpcClient(Client(listener.getsockname())).using(timeout_s=0.2)
        started = time.monotonic()
        with rpc, pytest.raises(RpcError) as caught:
            rpc['a'].b()
        with pytest.raises(RpcError) as caught_later:
            RpcClient(Client(listener.getsockname())).using(timeout_s=0.2).streams('a').b()
        assert time.monotonic() - started < HANG_S / 2
    assert caught.value.code is caught_later.value.code is Code.DEADLINE_EXCEEDED


def test_stream_that_breaks_off_is_unavailable(
    rpc: RpcClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any) -> bytes:
        raise KeyError('cannot be formatted')

    monkeypatch.setattr(connect_module, 'format_end', broken)
    results = rpc.streams(NUMBERS).count(stop=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(RpcError) as caught:
        next(results)
    assert caught.value.code is Code.UNAVAILABLE


# --- interceptors --------------------------------------------------------------------------------


def test_interceptor_is_around_the_whole_stream(rpc: RpcClient, log: Log) -> None:
    with rpc.streams(NUMBERS).tick() as results:
        next(results)
        log.wait_for(('enter', f'{NUMBERS}/tick'))
    log.wait_for(('exit', 'GeneratorExit', ''))


def test_interceptor_sees_what_the_caller_does_not(rpc: RpcClient, log: Log) -> None:
    with pytest.raises(RpcError, match='internal error, reference'):
        list(rpc.streams(NUMBERS).fail(how='badly'))
    log.wait_for(('exit', 'KeyError', "'the secret'"))


def test_interceptor_sees_arguments_that_are_refused(rpc: RpcClient, log: Log) -> None:
    with pytest.raises(RpcError):
        rpc[NUMBERS].wait(more=1)
    log.wait_for(('exit', 'RpcError', 'invalid_argument: $.more: no such parameter'))


def test_chunk_is_one_envelope(served: Client) -> None:
    with served.connect() as connection:
        response = connection.post(
            f'/rpc/{NUMBERS}/count',
            {'content-type': 'application/connect+json'},
            format_envelope(b'{"stop": 2}'),
        )
        chunks = list(response.body or ())
    assert chunks == [
        format_envelope(b'0'),
        format_envelope(b'1'),
        format_envelope(b'{"metadata":{"x-cost":["3"]}}', END),
        b'',
    ]


def test_results_may_be_further_apart_than_the_client_waits_for_anything_else(
    serve: Callable[..., Any],
) -> None:
    service = Service('a.B')

    @service.method(allow='peer')
    def ticks() -> Iterator[int]:
        yield 1
        time.sleep(0.6)
        yield 2

    client, _ = serve(RpcApp([service]))
    with RpcClient(Client(client.address, timeout_s=0.2), '') as rpc:
        assert list(rpc.streams('a.B').ticks()) == [1, 2]
        with pytest.raises(RpcError) as caught:
            list(rpc.using(timeout_s=0.3).streams('a.B').ticks())
    assert caught.value.code is Code.DEADLINE_EXCEEDED
