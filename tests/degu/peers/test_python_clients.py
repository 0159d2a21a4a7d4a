"""httpx, urllib3, requests and aiohttp as clients of our server.

Over TLS each is given the context that our own client would use: it has the certificate, and trusts
the server's CA and no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import threading

import aiohttp
import httpx
import pytest
import requests
import urllib3

from degu.client import build_client_sslctx
from degu.rgi import Validator
from degu.server import build_server_sslctx

WAIT_S = 10.0
BODY = os.urandom(300_000)
FAILURES = (
    *(requests.RequestException, httpx.TransportError),
    *(urllib3.exceptions.HTTPError, aiohttp.ClientError, OSError),
)


class Urllib3:
    """One connection of urllib3; the other libraries look the same."""

    def __init__(self, url, config, path):
        self.url = url
        options = {}
        if config is not None:
            options = {'ssl_context': build_client_sslctx(config), 'assert_hostname': False}
        self.pool = urllib3.PoolManager(timeout=WAIT_S, retries=False, maxsize=1, **options)

    def ask(self, method, path, body=None, headers=None):
        """Return the status, the headers and the body of a response."""
        response = self.pool.request(method, self.url + path, body=body, headers=headers)
        return response.status, response.headers, response.data

    def stream(self, path):
        """Yield a body piece by piece."""
        response = self.pool.request('GET', self.url + path, preload_content=False)
        yield from response.stream()
        response.release_conn()

    def close(self):
        self.pool.clear()


class Requests:
    class Adapter(requests.adapters.HTTPAdapter):
        def __init__(self, sslctx):
            self.sslctx = sslctx
            super().__init__(pool_maxsize=1)

        def init_poolmanager(self, *arguments, **options):
            super().init_poolmanager(
                *arguments, ssl_context=self.sslctx, assert_hostname=False, **options
            )

    def __init__(self, url, config, path):
        self.url = url
        self.session = requests.Session()
        if config is not None:
            self.session.mount('https://', self.Adapter(build_client_sslctx(config)))
            self.session.verify = config['ca_file']  # or it trusts all public CAs as well

    def ask(self, method, path, body=None, headers=None):
        response = self.session.request(
            method, self.url + path, data=body, headers=headers, timeout=WAIT_S
        )
        return response.status_code, response.headers, response.content

    def stream(self, path):
        with self.session.get(self.url + path, stream=True, timeout=WAIT_S) as response:
            yield from response.iter_content(None)

    def close(self):
        self.session.close()


class Httpx:
    def __init__(self, url, config, path):
        sslctx = True if config is None else build_client_sslctx(config)
        transport = httpx.HTTPTransport(verify=sslctx, uds=path)
        self.client = httpx.Client(transport=transport, base_url=url, timeout=WAIT_S)

    def ask(self, method, path, body=None, headers=None):
        response = self.client.request(method, path, content=body, headers=headers)
        return response.status_code, response.headers, response.content

    def stream(self, path):
        with self.client.stream('GET', path) as response:
            yield from response.iter_raw()

    def close(self):
        self.client.close()


class Aiohttp:
    class Loop(asyncio.SelectorEventLoop):
        """Keeps the unix sockets, whose connector takes no factory."""

        def __init__(self, sockets):
            super().__init__()
            self.sockets = sockets

        async def create_unix_connection(self, *arguments, **options):
            transport, protocol = await super().create_unix_connection(*arguments, **options)
            self.sockets.append(transport.get_extra_info('socket'))
            return transport, protocol

    def __init__(self, url, config, path):
        self.sockets = []
        self.runner = asyncio.Runner(loop_factory=lambda: self.Loop(self.sockets))
        self.session = self.runner.run(self._build_session(url, config, path))

    async def _build_session(self, url, config, path):
        if path is not None:
            connector = aiohttp.UnixConnector(path)
        else:
            sslctx = True if config is None else build_client_sslctx(config)
            connector = aiohttp.TCPConnector(ssl=sslctx, socket_factory=self._build_socket)
        timeout = aiohttp.ClientTimeout(WAIT_S)
        return aiohttp.ClientSession(url, connector=connector, timeout=timeout)

    def _build_socket(self, info):
        family, kind, protocol, _name, _address = info
        self.sockets.append(socket.socket(family, kind, protocol))
        return self.sockets[-1]

    def ask(self, method, path, body=None, headers=None):
        async def ask():
            if isinstance(body, bytes | None):
                data = body and io.BytesIO(body)  # it warns of large bytes
            else:
                data = self._iterate(body)
            async with self.session.request(method, path, data=data, headers=headers) as response:
                return response.status, response.headers, await response.read()

        return self.runner.run(ask())

    async def _iterate(self, pieces):
        for piece in pieces:
            yield piece

    def stream(self, path):
        response = self.runner.run(self._get(path))
        while piece := self.runner.run(response.content.readany()):
            yield piece

    async def _get(self, path):
        return await self.session.get(path)

    def close(self):
        self.runner.run(self._close())
        self.runner.close()

    async def _close(self):
        await self.session.close()
        async with asyncio.timeout(
            WAIT_S
        ):  # it waits neither for the end of TLS nor for a failed write
            while any(sock.fileno() >= 0 for sock in self.sockets):
                await asyncio.sleep(0.001)


class App:
    """Sends bodies back; GET /drip goes on only when it is told that its first piece arrived."""

    def __init__(self):
        self.arrived = threading.Event()

    def __call__(self, connection, request):
        headers = {'x-requests': str(connection['requests'])}
        if request['path'] == ['missing']:
            return 404, 'Not Found', headers, b'nothing here'
        if request['path'] == ['refused']:
            return 403, 'Forbidden', headers, b'not for you'
        if request['path'] == ['drip']:
            return 200, 'OK', headers, connection['rgi.ChunkedOutput'](self._drip())
        if request['method'] == 'HEAD':
            return 200, 'OK', {**headers, 'content-length': 5}, None
        if request['body'] is None:
            return 200, 'OK', headers, b'hello'
        headers['x-framing'] = 'chunked' if request['body'].chunked else 'length'
        return 200, 'OK', headers, request['body'].read()

    def _drip(self):
        yield b'first'
        assert self.arrived.wait(WAIT_S)
        yield b'second'
        yield b''


LIBRARIES = [Urllib3, Requests, Httpx, Aiohttp]
WITH_UNIX_SOCKETS = [Httpx, Aiohttp]


@pytest.fixture
def app():
    return App()


@pytest.fixture(
    params=[
        *((library, 'tcp') for library in LIBRARIES),
        *((library, 'tls') for library in LIBRARIES),
        *((library, 'unix') for library in WITH_UNIX_SOCKETS),
    ],
    ids=lambda param: f'{param[0].__name__.lower()}-{param[1]}',
)
def client(request, app, serve, temp_pki, tmp_path):
    """Give a client of `app`."""
    library, transport = request.param
    config = path = None
    if transport == 'unix':
        path = str(tmp_path / 'socket')
        serve(Validator(app), path)
        url = 'http://localhost'
    elif transport == 'tcp':
        url = f'http://127.0.0.1:{serve(Validator(app)).address[1]}'
    else:
        server = serve(Validator(app), sslctx=build_server_sslctx(temp_pki.get_server_config()))
        config = temp_pki.get_client_config()
        url = f'https://127.0.0.1:{server.address[1]}'
    client = library(url, config, path)
    yield client
    client.close()


def test_all_requests_go_over_one_connection(client):
    for number in range(3):
        status, headers, body = client.ask('GET', f'/a%20b?c={number}')
        assert (status, headers['x-requests'], body) == (200, str(number), b'hello')


def test_bodies_go_both_ways(client):
    status, headers, body = client.ask('PUT', '/a', BODY)
    assert (status, headers['x-framing'], body) == (200, 'length', BODY)
    status, headers, body = client.ask('POST', '/a', b'')
    assert (status, headers['x-requests'], body) == (200, '1', b'')


def test_a_body_of_unknown_length_comes_in_chunks(client):
    pieces = [BODY[i : i + 10_000] for i in range(0, len(BODY), 10_000)]
    status, headers, body = client.ask('POST', '/a', iter(pieces))
    assert (status, headers['x-framing'], body) == (200, 'chunked', BODY)
    assert client.ask('GET', '/a')[1]['x-requests'] == '1'


def test_a_body_can_be_used_while_it_comes(client, app):
    pieces = client.stream('/drip')
    assert next(pieces) == b'first'
    app.arrived.set()
    assert b''.join(pieces) == b'second'
    assert client.ask('GET', '/')[1]['x-requests'] == '1'


def test_head_has_the_length_and_no_body(client):
    for number in range(2):
        status, headers, body = client.ask('HEAD', '/a')
        assert (status, headers['content-length'], body) == (200, '5', b'')
        assert headers['x-requests'] == str(number)


def test_an_error_costs_no_connection(client):
    status, _headers, body = client.ask('GET', '/missing')
    assert (status, body) == (404, b'nothing here')
    assert client.ask('GET', '/')[1]['x-requests'] == '1'


def test_a_small_body_that_is_refused_costs_no_connection(client):
    status, _headers, body = client.ask('PUT', '/refused', BODY[:60_000])
    assert (status, body) == (403, b'not for you')
    assert client.ask('GET', '/')[1]['x-requests'] == '1'


def test_a_large_body_that_is_refused_costs_the_connection(client):
    """Who reads while it sends sees the answer; who does not may see the end first.

    The answer does not say that the connection ends, so its next user may find out.
    """
    with contextlib.suppress(*FAILURES):
        assert client.ask('PUT', '/refused', BODY * 5)[0] == 403
    with contextlib.suppress(*FAILURES):
        assert client.ask('GET', '/')[1]['x-requests'] == '0'
    assert client.ask('GET', '/')[0] == 200


def test_the_wish_for_a_100_is_refused(client):
    status, _headers, body = client.ask('PUT', '/a', b'body', {'expect': '100-continue'})
    assert (status, body) == (417, b'expect is not supported: send the body at once\n')
    assert client.ask('GET', '/')[1]['x-requests'] == '0'


def test_delete_may_say_that_it_has_no_body(client):
    """As requests and aiohttp do, with `Content-Length: 0`."""
    for _ in range(2):
        status, _headers, body = client.ask('DELETE', '/a')
        assert (status, body) == (200, b'hello')


@pytest.mark.parametrize('library', LIBRARIES, ids=lambda library: library.__name__.lower())
def test_without_a_certificate_there_is_no_answer(library, serve, temp_pki):
    calls = []
    server = serve(
        lambda c, r: calls.append(r), sslctx=build_server_sslctx(temp_pki.get_server_config())
    )
    config = temp_pki.get_anonymous_client_config()
    client = library(f'https://127.0.0.1:{server.address[1]}', config, None)
    with pytest.raises(FAILURES):
        client.ask('GET', '/')
    client.close()
    assert calls == []
