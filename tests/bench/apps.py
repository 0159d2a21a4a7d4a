"""The hello world that every server of the comparison runs, in the form that each one speaks.

All answer any request with the same 14 bytes, and add what their interface asks for and no more.
Run as a program, this serves degu's at the port that is given.
"""

from __future__ import annotations

import sys
from typing import Any

from degu.server import Server

HELLO = b'Hello, world!\n'


def degu_app(connection: dict[str, Any], request: dict[str, Any]) -> Any:
    return 200, 'OK', {}, HELLO


def wsgi_app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response('200 OK', [('Content-Length', str(len(HELLO)))])
    return [HELLO]


async def asgi_app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    assert scope['type'] == 'http'
    headers = [(b'content-length', b'%d' % len(HELLO))]
    await send({'type': 'http.response.start', 'status': 200, 'headers': headers})
    await send({'type': 'http.response.body', 'body': HELLO})


async def rsgi_app(scope: Any, protocol: Any) -> None:
    protocol.response_bytes(200, [], HELLO)


if __name__ == '__main__':
    # wrk's connections all come from one address.
    Server(
        ('127.0.0.1', int(sys.argv[1])), degu_app, max_connections_per_address=256
    ).serve_forever()
