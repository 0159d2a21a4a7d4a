"""The servers of the comparison of calls: each has one function, that returns the text it is given.

Those that know streams have two more: `repeat` gives a text so many times, and `count` says how
many it was given.

    python rpc_servers.py NAME PORT [FILES]

FILES is a dict with `cert_file`, `key_file` and `ca_file`, for TLS with certificates on both sides.
Each is set up as its documentation shows, checks what it is given if it can, and logs no calls.
"""

from __future__ import annotations

import ast
import socketserver
import ssl
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Files = dict[str, str] | None

HOST = '127.0.0.1'
SERVICE = 'bench.v1.Echo'
BLOCK = bytes(1024 * 1024)
"""What large streams are made of."""


def build_sslctx(files: dict[str, str]) -> ssl.SSLContext:
    from degu.tls import build_server_sslctx

    return build_server_sslctx(files)


def serve_degu_app(port: int, files: Files, app: Any) -> None:
    from degu.server import Server, SSLServer

    address = (HOST, port)
    server = SSLServer(build_sslctx(files), address, app) if files else Server(address, app)
    server.serve_forever()


def serve_degu(port: int, files: Files) -> None:
    from degu_rpc import Peer, RpcApp, Service
    from degu_rpc.peers import Authenticated
    from degu_rpc.peers.caller import PeerKind

    service = Service(SERVICE)

    @service.method(allow='caller')
    def echo(text: str) -> str:
        return text

    @service.method(allow='caller')
    def repeat(text: str, times: int) -> Iterator[str]:
        for _ in range(times):
            yield text

    @service.method(allow='caller')
    def repeat_block(times: int) -> Iterator[bytes]:
        for _ in range(times):
            yield BLOCK

    @service.method(allow='caller')
    def count(texts: Iterator[str]) -> int:
        return sum(1 for _ in texts)

    class KnownCaller:
        """Says who calls, which TCP alone cannot, and a certificate that was not paired neither."""

        def __init__(self, app: Any) -> None:
            self.app = app
            self.peer = Peer(
                PeerKind.LOCAL, None, None, 'bench', frozenset({'caller'}), uid=None, gid=None
            )

        def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Any:
            request['_peer'] = self.peer
            return self.app(connection, request)

    app = KnownCaller(RpcApp([service]))
    serve_degu_app(port, files, app if files else Authenticated(app))


def serve_bare(port: int, files: Files) -> None:
    """Serve degu's without calls, for what a request costs by itself."""

    def app(connection: dict[str, Any], request: dict[str, Any]) -> Any:
        data = request['body'].read()
        if request['path'] == ['blocks']:
            chunks = (BLOCK if n else b'' for n in range(int(data), -1, -1))
            return 200, 'OK', {}, connection['rgi.ChunkedOutput'](chunks)
        return 200, 'OK', {'content-type': 'application/json'}, data

    serve_degu_app(port, files, app)


def serve_grpcio(port: int, files: Files) -> None:
    import grpc
    from google.protobuf.wrappers_pb2 import StringValue

    def echo(request: Any, context: Any) -> Any:
        return StringValue(value=request.value)

    def repeat(request: Any, context: Any) -> Any:
        times, _, text = request.value.partition(' ')
        for _ in range(int(times)):
            yield StringValue(value=text)

    def count(requests: Any, context: Any) -> Any:
        return StringValue(value=str(sum(1 for _ in requests)))

    codecs = {
        'request_deserializer': StringValue.FromString,
        'response_serializer': StringValue.SerializeToString,
    }
    handlers = {
        'echo': grpc.unary_unary_rpc_method_handler(echo, **codecs),
        'repeat': grpc.unary_stream_rpc_method_handler(repeat, **codecs),
        'count': grpc.stream_unary_rpc_method_handler(count, **codecs),
    }
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    if files:
        key, cert, ca = (Path(files[f'{x}_file']).read_bytes() for x in ('key', 'cert', 'ca'))
        credentials = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
        server.add_secure_port(f'{HOST}:{port}', credentials)
    else:
        server.add_insecure_port(f'{HOST}:{port}')
    server.start()
    server.wait_for_termination()


def serve_pyro5(port: int, files: Files) -> None:
    import Pyro5.api

    @Pyro5.api.expose
    class Echo:
        def echo(self, text: str) -> str:
            return text

        def repeat(self, text: str, times: int) -> Any:
            for _ in range(times):
                yield text

    if files:
        config = Pyro5.config
        config.SSL = config.SSL_REQUIRECLIENTCERT = True
        config.SSL_SERVERCERT, config.SSL_SERVERKEY = files['cert_file'], files['key_file']
        config.SSL_CACERTS = files['ca_file']
    daemon = Pyro5.api.Daemon(HOST, port)
    daemon.register(Echo(), 'echo')
    daemon.requestLoop()


def serve_rpyc(port: int, files: Files) -> None:
    import rpyc
    from rpyc.utils.authenticators import SSLAuthenticator
    from rpyc.utils.server import ThreadedServer

    class Echo(rpyc.Service):  # type: ignore[misc]  # it has no types
        def exposed_echo(self, text: str) -> str:
            return text

    authenticator = None
    if files:
        authenticator = SSLAuthenticator(files['key_file'], files['cert_file'], files['ca_file'])
    ThreadedServer(Echo(), HOST, port=port, authenticator=authenticator).start()


def serve_xmlrpc(port: int, files: Files) -> None:
    from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

    class Handler(SimpleXMLRPCRequestHandler):
        protocol_version = 'HTTP/1.1'  # keeps the connection

    class Threaded(socketserver.ThreadingMixIn, SimpleXMLRPCServer):
        daemon_threads = True

    server = Threaded((HOST, port), Handler, logRequests=False)
    if files:
        server.socket = build_sslctx(files).wrap_socket(server.socket, server_side=True)
    server.register_function(lambda text: text, 'echo')
    server.serve_forever()


def serve_fastapi(port: int, files: Files) -> None:
    import fastapi
    import pydantic
    import uvicorn

    class Text(pydantic.BaseModel):
        text: str

    def echo(body: Text) -> Text:
        return body

    # Its annotations are text, and the class is known in here only.
    echo.__annotations__ = {'body': Text, 'return': Text}
    app = fastapi.FastAPI()
    app.post('/echo')(echo)
    options: dict[str, Any] = {}
    if files:
        options = {
            'ssl_certfile': files['cert_file'],
            'ssl_keyfile': files['key_file'],
            'ssl_ca_certs': files['ca_file'],
            'ssl_cert_reqs': ssl.CERT_REQUIRED,
        }
    uvicorn.run(app, host=HOST, port=port, log_level='warning', access_log=False, **options)


def serve_aiohttp(port: int, files: Files) -> None:
    from aiohttp import web

    async def echo(request: web.Request) -> web.Response:
        return web.json_response({'text': (await request.json())['text']})

    app = web.Application()
    app.router.add_post('/echo', echo)
    sslctx = build_sslctx(files) if files else None
    web.run_app(app, host=HOST, port=port, ssl_context=sslctx, access_log=None, print=None)


SERVERS = {
    'degu': serve_degu,
    'bare': serve_bare,
    'grpcio': serve_grpcio,
    'Pyro5': serve_pyro5,
    'rpyc': serve_rpyc,
    'xmlrpc': serve_xmlrpc,
    'FastAPI': serve_fastapi,
    'aiohttp': serve_aiohttp,
}

if __name__ == '__main__':
    name, port, *rest = sys.argv[1:]
    SERVERS[name](int(port), ast.literal_eval(rest[0]) if rest else None)
