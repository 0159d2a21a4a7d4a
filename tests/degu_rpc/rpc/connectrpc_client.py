"""The connectrpc client, which is not ours, in a process of its own: one JSON line a call.

Its HTTP library keeps threads and descriptors for good, which the guard against leaks would find.
A call is {url, service, method, kind, codec, messages, timeout_ms, get, gzip}; the answer has the
`results` and the `error`, if there was one.
"""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import msgpack
from connectrpc.client import ConnectClientSync
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType


class JsonCodec:
    """Plain values instead of Protobuf messages."""

    def name(self) -> str:
        return 'json'

    def encode(self, message: Any) -> bytes:
        return json.dumps(message).encode()

    def decode(self, data: bytes | bytearray, _message_class: type) -> Any:
        return json.loads(data)


class MsgpackCodec:
    def name(self) -> str:
        return 'msgpack'

    def encode(self, message: Any) -> bytes:
        return msgpack.packb(message)

    def decode(self, data: bytes | bytearray, _message_class: type) -> Any:
        return msgpack.unpackb(data)


CODECS = {'json': JsonCodec(), 'msgpack': MsgpackCodec()}


def make_call(client: ConnectClientSync, call: dict[str, Any]) -> list[Any]:
    kind = call['kind']
    method = MethodInfo(
        name=call['method'],
        service_name=call['service'],
        input=object,
        output=object,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=StreamType[kind.upper()],
    )
    messages = call['messages']
    if kind == 'unary':
        use_get = call.get('get', False)
        return [client.execute_unary(request=messages[0], method=method, use_get=use_get)]
    if kind == 'server_stream':
        return collect(client.execute_server_stream(request=messages[0], method=method))
    if kind == 'client_stream':
        return [client.execute_client_stream(request=iter(messages), method=method)]
    return collect(client.execute_bidi_stream(request=iter(messages), method=method))


SO_FAR: list[Any] = []


def collect(results: Any) -> list[Any]:
    for result in results:
        SO_FAR.append(result)
    return SO_FAR


def answer(call: dict[str, Any]) -> dict[str, Any]:
    SO_FAR.clear()
    gzip = GzipCompression() if call.get('gzip') else None
    client = ConnectClientSync(
        call['url'],
        codec=CODECS[call['codec']],
        send_compression=gzip,
        accept_compression=[gzip] if gzip else [],
        timeout_ms=call.get('timeout_ms'),
    )
    with client:
        try:
            return {'results': make_call(client, call)}
        except ConnectError as error:
            details = [
                [d.type_name, base64.b64encode(d.message_bytes).decode()] for d in error.details
            ]
            return {
                'results': SO_FAR,
                'error': {'code': error.code.value, 'message': error.message, 'details': details},
            }


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
