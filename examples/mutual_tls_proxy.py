"""Put a web service of this machine, such as a database, behind client certificates.

    python examples/mutual_tls_proxy.py --ip 192.168.1.7 --port 8443 \\
        --cert-file machine.crt --key-file machine.key --ca-file users.pem \\
        http://127.0.0.1:5984

The service may also be the path of a unix socket. It must speak HTTP/1.1, which `python -m
http.server` does with `--protocol HTTP/1.1`.

1. Only machines reach the service whose certificate is signed by a user in `users.pem`.
2. A client's connection has one connection to the service, and bodies stream both ways.
3. The service is told who calls, in `x-machine-id`; what a client says under that name is dropped.
4. The service may close an idle connection: what may be repeated is sent again over a new one.
5. Where the service does not answer, the client is told so: 502, or 504 if it took too long.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from degu.client import Client, create_client
from degu.errors import DeguError, ProtocolError
from degu.pki import CertificateError, parse_machine_cert
from degu.server import SSLServer, build_server_sslctx
from degu.util import absolute_uri
from degu.wire import closes_connection

if TYPE_CHECKING:
    import socket

    from degu.client import Connection, Response
    from degu.rgi import Response as AppResponse

log = logging.getLogger('mutual_tls_proxy')

CALLER = 'x-machine-id'
HOP_BY_HOP = {'connection', 'keep-alive', 'proxy-connection', 'te', 'upgrade'}
"""Headers that are about one connection, not about what is passed on. Source: RFC 9110 §7.6.1."""
REPEATABLE = {'GET', 'HEAD'}
MAX_IDLE_S = 2.0
"""A connection idle for longer may be closing: it gets nothing that cannot be repeated."""


class Proxy:
    """An application that passes on each request to a service, and each response to the client."""

    def __init__(self, service: Client) -> None:
        self.service = service

    def on_connect(self, sock: socket.socket, connection: dict[str, Any]) -> bool:
        """Find out who calls; whoever is no machine is turned away."""
        try:
            connection['_caller'] = parse_machine_cert(connection['ssl_peer_cert']).machine_id
        except CertificateError as error:
            log.warning('%r: %s', connection['client'], error)
            return False
        return True

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> AppResponse:
        """Pass on one request."""
        body = request['body']
        headers = {**drop_hop_by_hop(request['headers']), CALLER: connection['_caller']}
        try:
            response = self._ask(
                connection, request['method'], absolute_uri(request), headers, body
            )
        except (DeguError, OSError) as error:
            if body is not None and body.error is error:
                raise  # the client failed, not the service
            log.warning('%r: %s', self.service, error)
            status, reason, text = explain(error)
            return status, reason, {}, None if request['method'] == 'HEAD' else text.encode()
        headers = drop_hop_by_hop(response.headers)
        return response.status, response.reason, headers, response.body

    def _ask(self, connection: dict[str, Any], method: str, *request: Any) -> Response:
        """Ask over the connection of the last request, or over a new one."""
        upstream: Connection | None = connection.pop('__upstream', None)
        idle_s = time.monotonic() - connection.get('__last_used', 0)
        connection['__last_used'] = time.monotonic()
        response = None
        if upstream is not None and (method in REPEATABLE or idle_s < MAX_IDLE_S):
            try:
                response = upstream.request(method, *request)
            except (ConnectionError, ProtocolError):  # it may have said 408 before it closed
                if method not in REPEATABLE:
                    raise
        if response is None:
            upstream = self.service.connect()
            response = upstream.request(method, *request)
        if not closes_connection(response.headers):
            connection['__upstream'] = upstream
        return response


def explain(error: Exception) -> tuple[int, str, str]:
    """Return the status, the reason and the text with which a client is told of a failure."""
    if isinstance(error, TimeoutError):
        return 504, 'Gateway Timeout', 'the service did not answer in time\n'
    if isinstance(error, ProtocolError):
        return 502, 'Bad Gateway', f'the answer of the service was refused: {error}\n'
    return 502, 'Bad Gateway', 'the service did not answer\n'


def drop_hop_by_hop(headers: dict[str, Any]) -> dict[str, Any]:
    """Return the headers that go on to the other side."""
    dropped = HOP_BY_HOP | {
        name.strip().lower() for name in headers.get('connection', '').split(',')
    }
    return {name: value for name, value in headers.items() if name not in dropped}


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description='Put a web service behind client certificates.')
    parser.add_argument('service', help='http://host:port, or the path of a unix socket')
    parser.add_argument('--ip', default='::', help='where to listen (default: all of IPv6)')
    parser.add_argument('--port', type=int, default=8443)
    for name in ('cert-file', 'key-file', 'ca-file'):
        parser.add_argument(f'--{name}', type=os.path.abspath, required=True)
    options = parser.parse_args()

    logging.basicConfig(level=logging.INFO)
    files = {name: getattr(options, name) for name in ('cert_file', 'key_file', 'ca_file')}
    if options.service.startswith('http://'):
        service = create_client(options.service)
    elif os.path.exists(options.service):
        service = Client(os.path.abspath(options.service), {'host': 'localhost'})
    else:
        parser.error(f'the service must be http://host:port or a socket, not {options.service!r}')
    flow_and_scope = (0, 0) if ':' in options.ip else ()
    address = (options.ip, options.port, *flow_and_scope)
    server = SSLServer(build_server_sslctx(files), address, Proxy(service))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.shutdown())
    print(f'serving at {server.address!r}', flush=True)
    server.serve_forever()


if __name__ == '__main__':
    main()
