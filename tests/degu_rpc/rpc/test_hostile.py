"""Hostile messages against a live server whose threads have small stacks.

Whatever is sent is answered with `invalid_argument`, the process stays alive and serves the next
call, and it takes no more memory than a few of the largest messages need.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from degu.client import Client
from degu.misc import TempServer
from degu_rpc import Code, Router, RpcApp, Service
from degu_rpc.peers import Authenticated
from degu_rpc.rpc.envelope import END, format_envelope, parse_envelopes
from degu_rpc.rpc.jsonrpc import JsonRpcApp
from degu_rpc.rpc.limits import MAX_MESSAGE_SIZE, MAX_NESTING
from degu_rpc.rpc.protocol import parse_end

STACK_SIZE = 128 * 1024
"""Bytes of a thread's stack: what musl gives, a 64th of what glibc does."""
MAX_GROWTH = 160 * 1024 * 1024
"""Bytes of memory that all of this may take, with four messages at once."""

SIZE = MAX_MESSAGE_SIZE
JSON_BOMBS = {
    'arrays': b'[' * SIZE,
    'maps': (b'{"a":' * SIZE)[:SIZE],
    'arrays in the parameter': (b'{"value":' + b'[' * SIZE)[:SIZE],
    'arrays that end': b'{"value":' + b'[' * 1_000_000 + b']' * 1_000_000 + b'}',
    # Python itself recurses to 1000.
    'arrays that Python takes': b'{"value":' + b'[' * 900 + b']' * 900 + b'}',
    'many values': b'{"value":[' + b'[],' * 1_300_000 + b'[]]}',
    'NaN': b'{"value":NaN}',
    'infinity': b'{"value":-Infinity}',
    'beyond a float': b'{"value":1e999}',
    'duplicate keys': b'{"value":1,"value":2}',
    'duplicate keys inside': b'{"value":[{"a":1,"a":1}]}',
    'half a surrogate pair': b'{"value":"\\ud800"}',
    'half a surrogate pair as a key': b'{"value":{"\\udfff":1}}',
    'surrogate in UTF-8': b'{"value":"\xed\xa0\x80"}',
    'huge integer': b'{"value":' + b'9' * 1_000_000 + b'}',
    'trailing': b'{"value":1}{}',
    'trailing zeros': b'{"value":1}' + b'\0' * 100,
}
MSGPACK_BOMBS = {
    'arrays': b'\x91' * SIZE,
    'maps': (b'\x81\xa1a' * SIZE)[:SIZE],
    'arrays in the parameter': (b'\x81\xa5value' + b'\x91' * SIZE)[:SIZE],
    'arrays that Python takes': b'\x81\xa5value' + b'\x91' * 900 + b'\xc0',
    'length of an array': b'\x81\xa5value\xdd\xff\xff\xff\xff',
    'length of a map': b'\x81\xa5value\xdf\xff\xff\xff\xff',
    'length of a text': b'\x81\xa5value\xdb\xff\xff\xff\xff',
    'length of bytes': b'\x81\xa5value\xc6\xff\xff\xff\xff',
    'length of an extension': b'\x81\xa5value\xc9\xff\xff\xff\xff\x05',
    'lengths inside each other': (b'\xdd' + struct.pack('>I', SIZE - 5)) * 50 + bytes(SIZE - 250),
    'many values': b'\x81\xa5value\xdd' + struct.pack('>I', SIZE - 12) + b'\x90' * (SIZE - 12),
    'duplicate keys': b'\x82\xa5value\x01\xa5value\x02',
    'half a surrogate pair': b'\x81\xa5value\xa3\xed\xa0\x80',
    'unknown extension': b'\x81\xa5value\xd4\x05a',
    'time that is none': b'\x81\xa5value\xc7\x0c\xff' + b'\xff' * 12,
    'key that is no text': b'\x81\xa5value\x81\x01\x02',
    'key that is a nested map': b'\x81\xa5value' + b'\x81' * 60 + b'\xc0',
    'trailing': b'\x81\xa5value\x01\xc0',
}
BOMBS = [
    *(pytest.param('json', bomb, id=f'json {name}') for name, bomb in JSON_BOMBS.items()),
    *(pytest.param('msgpack', bomb, id=f'msgpack {name}') for name, bomb in MSGPACK_BOMBS.items()),
]


def build_app() -> Any:
    """Build what is served; this runs in the server's process."""
    threading.stack_size(STACK_SIZE)
    service = Service('a.B')

    @service.method(allow='owner')
    def echo(value: Any) -> Any:
        return value

    @service.method(allow='owner')
    def repeat(value: Any) -> Iterator[Any]:
        yield value

    router = Router()
    router.mount('/rpc', RpcApp([service]))
    router.mount('/jsonrpc', JsonRpcApp([service]))
    return Authenticated(router)


@pytest.fixture(scope='module')
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TempServer]:
    server = TempServer(str(tmp_path_factory.mktemp('hostile') / 'socket'), build_app)
    yield server
    server.close()


def post(server: TempServer, uri: str, content_type: str, data: bytes) -> tuple[int, bytes]:
    with Client(server.address, timeout_s=30).connect() as conn:
        response = conn.post(uri, {'content-type': content_type}, data)
        assert response.body is not None
        return response.status, b''.join(response.body)


def send(server: TempServer, codec: str, data: bytes) -> tuple[int, str]:
    status, answer = post(server, '/rpc/a.B/echo', f'application/{codec}', data)
    return status, json.loads(answer)['code']


@pytest.mark.parametrize(('codec', 'bomb'), BOMBS)
def test_bomb_is_an_invalid_argument_and_the_next_call_is_served(
    server: TempServer, codec: str, bomb: bytes
) -> None:
    assert send(server, codec, bomb) == (400, 'invalid_argument')
    assert post(server, '/rpc/a.B/echo', 'application/json', b'{"value":1}') == (200, b'1')
    assert server.process.is_alive()


@pytest.mark.parametrize(('codec', 'bomb'), BOMBS)
def test_bomb_in_a_stream_is_an_invalid_argument(
    server: TempServer, codec: str, bomb: bytes
) -> None:
    envelope = format_envelope(bomb)
    status, answer = post(server, '/rpc/a.B/repeat', f'application/connect+{codec}', envelope)
    [(flags, end)] = parse_envelopes([answer], MAX_MESSAGE_SIZE)
    error, _ = parse_end(end)
    assert (status, flags) == (200, END)
    assert error is not None
    assert error.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize('bomb', JSON_BOMBS.values(), ids=JSON_BOMBS)
def test_bomb_by_json_rpc_is_a_parse_error(server: TempServer, bomb: bytes) -> None:
    status, answer = post(server, '/jsonrpc', 'application/json', bomb)
    assert (status, json.loads(answer)['error']['code']) == (200, -32700)


def test_nesting_up_to_the_limit_needs_no_more_stack(server: TempServer) -> None:
    value = b'[' * (MAX_NESTING - 1) + b']' * (MAX_NESTING - 1)
    message = b'{"value":%b}' % value
    assert post(server, '/rpc/a.B/echo', 'application/json', message) == (200, value)


def test_memory_is_bounded_with_bombs_at_once(server: TempServer) -> None:
    before = read_memory(server, 'VmRSS')
    bombs = [bomb.values for bomb in BOMBS] * 2
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda bomb: send(server, *bomb), bombs))
    assert set(answers) == {(400, 'invalid_argument')}
    assert read_memory(server, 'VmHWM') - before < MAX_GROWTH


def read_memory(server: TempServer, name: str) -> int:
    """Return the memory of the server's process: VmRSS now, VmHWM the most that it had so far."""
    for line in Path(f'/proc/{server.process.pid}/status').read_text().splitlines():
        if line.startswith(f'{name}:'):
            return int(line.split()[1]) * 1024
    raise AssertionError(f'the kernel tells no {name}')
