"""The connectrpc client from PyPI, which nobody here wrote, drives every kind of call."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from degu_rpc import Code, Context, Router, RpcApp, RpcError, Service

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE = 'numbers.v1.Numbers'
DETAIL = {'type': 'google.protobuf.StringValue', 'value': base64.b64encode(b'\n\x02no').decode()}

both = pytest.mark.parametrize('codec', ['json', 'msgpack'])


def build_app(ended: list[str] | None = None) -> Router:
    numbers = Service(SERVICE)

    @numbers.method(allow='peer', safe=True)
    def echo(value: Any) -> Any:
        return value

    @numbers.method(allow='peer')
    def fail(after: int = 0) -> Iterator[int]:
        yield from range(after)
        raise RpcError(Code.NOT_FOUND, 'no such number', [DETAIL])

    @numbers.method(allow='peer')
    def fail_once() -> None:
        raise RpcError(Code.NOT_FOUND, 'no such number', [DETAIL])

    @numbers.method(allow='peer')
    def count(stop: int) -> Iterator[int]:
        yield from range(stop)

    @numbers.method(allow='peer')
    def texts(size: int, times: int) -> Iterator[str]:
        for _ in range(times):
            yield 'é' * size

    @numbers.method(allow='peer')
    def total(numbers: Iterator[int], start: int = 0) -> int:
        return sum(numbers, start)

    @numbers.method(allow='peer')
    def double(numbers: Iterator[int], times: int = 1) -> Iterator[int]:
        for number in numbers:
            yield number << times

    @numbers.method(allow='peer', safe=True)
    def look(ctx: Context) -> tuple[bool, float | None]:
        return 'content-type' in ctx.headers, ctx.remaining()

    @numbers.method(allow='peer')
    def look_at_stream(ctx: Context, numbers: Iterator[int]) -> Iterator[float | None]:
        for _ in numbers:
            yield ctx.remaining()

    @numbers.method(allow='peer')
    def fail_late(numbers: Iterator[int]) -> int:
        raise RpcError(Code.NOT_FOUND, f'no such number, not {sum(numbers)}', [DETAIL])

    @numbers.method(allow='peer')
    def double_and_fail(numbers: Iterator[int]) -> Iterator[int]:
        yield from (2 * number for number in numbers)
        raise RpcError(Code.NOT_FOUND, 'no such number', [DETAIL])

    @numbers.method(allow='peer')
    def wait(ctx: Context, numbers: Iterator[int]) -> int:
        while True:
            ctx.check()
            time.sleep(0.01)

    @numbers.method(allow='peer')
    def wait_alone(ctx: Context) -> None:
        while True:
            ctx.check()
            time.sleep(0.01)

    @numbers.method(allow='peer')
    def tick(ctx: Context) -> Iterator[int]:
        try:
            yield 1
            while True:
                ctx.check()
                time.sleep(0.01)
        finally:
            if ended is not None:
                ended.append('tick')

    router = Router()
    router.mount('/rpc', RpcApp([numbers]))
    return router


def _end(*socks: socket.socket) -> None:
    for sock in socks:
        with contextlib.suppress(OSError):  # gone already
            sock.shutdown(socket.SHUT_RDWR)


class Relay:
    """A real proxy in between: forwards bytes from a TCP port to a server, and its answer back."""

    def __init__(self, address: Any, answer: Callable[[Any, socket.socket], None]) -> None:
        self._address = address
        self._answer = answer
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.port = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._socks: list[socket.socket] = []
        self._accept = threading.Thread(target=self._run)
        self._accept.start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._socks.append(sock)
            thread = threading.Thread(target=self._forward, args=(sock,))
            thread.start()
            self._threads.append(thread)

    def _forward(self, client: socket.socket) -> None:
        family = socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET
        with client, socket.socket(family) as server:
            server.connect(self._address)

            def send() -> None:
                try:
                    while data := client.recv(65536):
                        server.sendall(data)
                    server.shutdown(socket.SHUT_WR)
                except OSError:
                    return  # the other direction ended

            thread = threading.Thread(target=send)
            thread.start()
            try:
                with server.makefile('rb') as answer:
                    self._answer(answer, client)
            except OSError:
                pass  # the client had enough
            finally:
                _end(client, server)
                thread.join()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accept.join()
        _end(*self._socks)  # the other client keeps its connections open
        for thread in self._threads:
            thread.join()


def forward(answer: Any, client: socket.socket) -> None:
    while data := answer.read1():
        client.sendall(data)


def read_preamble(answer: Any) -> bytes:
    lines = []
    while not lines or lines[-1] != b'\r\n':
        lines.append(answer.readline())
        if not lines[-1]:
            raise ConnectionError
    return b''.join(lines)


def rechunk(answer: Any, client: socket.socket) -> None:
    """Send each byte of a chunked answer as a chunk, and in a packet, of its own."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    preamble = read_preamble(answer)
    assert b'transfer-encoding: chunked' in preamble
    client.sendall(preamble)
    while size := int(answer.readline(), 16):
        for byte in answer.read(size):
            client.sendall(b'1\r\n%c\r\n' % byte)
        answer.readline()
    client.sendall(b'0\r\n\r\n')


def cut(ends_well: bool) -> Callable[[Any, socket.socket], None]:
    """Drop the last envelope of a stream; `ends_well` keeps the empty chunk."""

    def answer_of(answer: Any, client: socket.socket) -> None:
        client.sendall(read_preamble(answer))
        while size := int(answer.readline(), 16):
            chunk = answer.read(size)
            answer.readline()
            if not chunk[0] & 2:
                client.sendall(b'%x\r\n%b\r\n' % (size, chunk))
        if ends_well:
            client.sendall(b'0\r\n\r\n')

    return answer_of


@pytest.fixture(scope='module')
def connectrpc() -> Iterator[Callable[[dict[str, Any]], Any]]:
    """Give a function that lets the other client make one call."""
    command = [sys.executable, str(Path(__file__).with_name('connectrpc_client.py'))]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def call(content: dict[str, Any]) -> Any:
            process.stdin.write(json.dumps(content) + '\n')
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield call
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.fixture
def relay() -> Iterator[Callable[..., int]]:
    relays = []

    def start(address: Any, answer: Callable[[Any, socket.socket], None] = forward) -> int:
        relays.append(Relay(address, answer))
        return relays[-1].port

    yield start
    for each in relays:
        each.close()


@pytest.fixture
def call(
    serve: Callable[..., Any], address: Any, connectrpc: Any, relay: Any
) -> Callable[..., dict[str, Any]]:
    """Make a call over TCP or a unix socket; that client speaks TCP only, so a relay is between."""
    client, _ = serve(build_app(), address)

    def make(method: str, kind: str, *messages: Any, codec: str, **options: Any) -> dict[str, Any]:
        answer = options.pop('answer', forward)
        port = client.address[1]
        if isinstance(client.address, str) or answer is not forward:
            port = relay(client.address, answer)
        content = {
            'url': f'http://127.0.0.1:{port}/rpc',
            'service': SERVICE,
            'method': method,
            'kind': kind,
            'messages': messages,
            'codec': codec,
        }
        result: dict[str, Any] = connectrpc(content | options)
        return result

    return make


# --- every kind of call --------------------------------------------------------------------------


@both
@pytest.mark.parametrize('gzip', [False, True])
def test_unary_call(call: Any, codec: str, gzip: bool) -> None:
    value = ['é' * 2000, 1, None]
    answer = call('echo', 'unary', {'value': value}, codec=codec, gzip=gzip)
    assert answer == {'results': [value]}


@both
@pytest.mark.parametrize('gzip', [False, True])
def test_get_of_a_safe_method(call: Any, codec: str, gzip: bool) -> None:
    answer = call('echo', 'unary', {'value': 'é +/?&'}, codec=codec, get=True, gzip=gzip)
    assert answer == {'results': ['é +/?&']}


@both
@pytest.mark.parametrize('get', [False, True])
def test_call_is_a_get_where_it_says_so(call: Any, codec: str, get: bool) -> None:
    [[has_type, _]] = call('look', 'unary', {}, codec=codec, get=get)['results']
    assert has_type == (not get)  # only what has a body has its type


@both
@pytest.mark.parametrize('gzip', [False, True])
def test_server_stream(call: Any, codec: str, gzip: bool) -> None:
    assert call('count', 'server_stream', {'stop': 3}, codec=codec) == {'results': [0, 1, 2]}
    args = {'size': 2000, 'times': 3}
    answer = call('texts', 'server_stream', args, codec=codec, gzip=gzip)
    assert answer == {'results': ['é' * 2000] * 3}


@both
def test_client_stream(call: Any, codec: str) -> None:
    answer = call('total', 'client_stream', {'start': 100}, *range(200), codec=codec)
    assert answer == {'results': [100 + sum(range(200))]}


@both
@pytest.mark.parametrize('gzip', [False, True])
def test_bidirectional_stream(call: Any, codec: str, gzip: bool) -> None:
    answer = call('double', 'bidi_stream', {'times': 2}, *range(200), codec=codec, gzip=gzip)
    assert answer == {'results': [4 * n for n in range(200)]}


# --- errors --------------------------------------------------------------------------------------

NOT_FOUND = {
    'code': 'not_found',
    'message': 'no such number',
    'details': [[DETAIL['type'], DETAIL['value']]],
}


@both
def test_error_with_details(call: Any, codec: str) -> None:
    answer = call('fail_once', 'unary', {}, codec=codec)
    assert answer == {'results': [], 'error': NOT_FOUND}


@both
@pytest.mark.parametrize('after', [0, 2])
def test_error_with_details_at_the_end_of_a_stream(call: Any, codec: str, after: int) -> None:
    answer = call('fail', 'server_stream', {'after': after}, codec=codec)
    assert answer == {'results': list(range(after)), 'error': NOT_FOUND}


@both
def test_error_with_details_after_the_callers_stream(call: Any, codec: str) -> None:
    answer = call('fail_late', 'client_stream', {}, 1, 2, codec=codec)
    assert answer == {
        'results': [],
        'error': {**NOT_FOUND, 'message': 'no such number, not 3'},
    }
    answer = call('double_and_fail', 'bidi_stream', {}, 1, 2, codec=codec)
    assert answer == {'results': [2, 4], 'error': NOT_FOUND}


@both
@pytest.mark.parametrize(
    ('method', 'kind', 'messages', 'code'),
    [
        ('echo', 'unary', [{}], 'invalid_argument'),
        ('count', 'server_stream', [{'stop': 'x'}], 'invalid_argument'),
        ('total', 'client_stream', [{}, 1, 'x', 2], 'invalid_argument'),
        ('total', 'client_stream', [], 'invalid_argument'),
        ('double', 'bidi_stream', [{}, 1, None], 'invalid_argument'),
        ('none', 'unary', [{}], 'unimplemented'),
        ('none', 'server_stream', [{}], 'unimplemented'),
        ('count', 'unary', [{'stop': 1}], 'unknown'),
    ],
)
def test_what_is_wrong_has_its_code(
    call: Any, codec: str, method: str, kind: str, messages: list[Any], code: str
) -> None:
    assert call(method, kind, *messages, codec=codec)['error']['code'] == code


# --- deadlines -----------------------------------------------------------------------------------


@both
def test_deadline_of_the_other_client_is_the_methods(call: Any, codec: str) -> None:
    [[_, left_s]] = call('look', 'unary', {}, codec=codec, timeout_ms=20_000)['results']
    assert 1 < left_s <= 20
    answer = call('look_at_stream', 'bidi_stream', {}, 1, codec=codec, timeout_ms=20_000)
    assert 1 < answer['results'][0] <= 20
    assert call('look', 'unary', {}, codec=codec)['results'][0][1] is None


@both
def test_deadline_of_a_unary_call(call: Any, codec: str) -> None:
    answer = call('wait_alone', 'unary', {}, codec=codec, timeout_ms=200)
    assert answer['error']['code'] == 'deadline_exceeded'


@both
def test_deadline_of_a_callers_stream(call: Any, codec: str) -> None:
    answer = call('wait', 'client_stream', {}, 1, codec=codec, timeout_ms=200)
    assert answer['error']['code'] == 'deadline_exceeded'


@both
def test_deadline_of_a_stream(call: Any, codec: str) -> None:
    answer = call('tick', 'server_stream', {}, codec=codec, timeout_ms=800)
    assert (answer['results'], answer['error']['code']) == ([1], 'deadline_exceeded')


# --- between us there may be somebody ------------------------------------------------------------


@both
def test_stream_may_be_cut_into_other_chunks(call: Any, codec: str) -> None:
    args = {'size': 20, 'times': 5}
    answer = call('texts', 'server_stream', args, codec=codec, answer=rechunk)
    assert answer == {'results': ['é' * 20] * 5}
    answer = call('fail', 'server_stream', {'after': 2}, codec=codec, answer=rechunk)
    assert answer == {'results': [0, 1], 'error': NOT_FOUND}


@both
@pytest.mark.parametrize('ends_well', [True, False])
def test_stream_that_is_cut_before_its_end_is_an_error(
    call: Any, codec: str, ends_well: bool
) -> None:
    answer = call('count', 'server_stream', {'stop': 3}, codec=codec, answer=cut(ends_well))
    assert answer['results'] == [0, 1, 2]
    assert answer['error']['code'] in {'internal', 'unavailable'}


def test_client_that_is_gone_ends_its_generator(
    tmp_path: Path, serve: Callable[..., Any], connectrpc: Any
) -> None:
    ended: list[str] = []
    client, _ = serve(build_app(ended))
    assert isinstance(client.address, tuple)
    content = {
        'url': f'http://127.0.0.1:{client.address[1]}/rpc',
        'service': SERVICE,
        'method': 'tick',
        'kind': 'server_stream',
        'messages': [{}],
        'codec': 'json',
        'timeout_ms': 800,
    }
    connectrpc(content)
    deadline = time.monotonic() + 1
    while not ended:
        assert time.monotonic() < deadline
        time.sleep(0.01)
