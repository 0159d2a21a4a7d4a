"""Our server behind nginx and behind HAProxy, with the configuration that the docs give."""

from __future__ import annotations

import os
import re
import threading

import pytest

from degu import IPv4_LOOPBACK
from degu.bodies import ChunkedOutput
from degu.client import Client
from degu.rgi import Validator
from degu.server import build_server_sslctx

HAPROXY = """
defaults
    mode http
    timeout connect 10s
    timeout client 10s
    timeout server 10s
"""
WAIT_S = 10.0
BAD_GATEWAY = (502, 503)
BODY = os.urandom(300_000)


def app(connection, request):
    """Send a body back, or some chunks; say which request of its connection it was."""
    headers = {'x-requests': str(connection['requests'])}
    body = request['body']
    if request['path'] == ['refused']:
        return 403, 'Forbidden', headers, b'not for you'
    if request['path'] == ['nothing']:
        return 200, 'OK', headers, None
    if request['method'] == 'HEAD':
        return 200, 'OK', {**headers, 'content-length': 13}, None
    if body is None:
        return 200, 'OK', headers, connection['rgi.ChunkedOutput']([b'hello, ', b'chunks', b''])
    return 200, 'OK', headers, body.read()


@pytest.fixture
def start_haproxy(require_program, start_program, tmp_path):
    """Give `start_haproxy(sections, address)`: HAProxy with these sections below its defaults."""
    program = require_program('haproxy')

    def start(sections, address):
        config = tmp_path / 'haproxy.cfg'
        config.write_text(HAPROXY + sections)
        start_program([program, '-db', '-f', str(config)], address, tmp_path / 'haproxy.log')

    return start


@pytest.fixture(params=['nginx', 'HAProxy'])
def proxy_name(request):
    return request.param


@pytest.fixture
def start_proxy(request, proxy_name, documented, tmp_path):
    """Give `start_proxy(address)`: a client of the proxy in front of the server at `address`.

    `start_proxy(address, server_id, keys)` has it show the client certificate in `keys`;
    `edit(configuration)` may change what the docs give.
    """
    start = request.getfixturevalue(f'start_{proxy_name.lower()}')
    scheme = {'nginx': 'unix:', 'HAProxy': 'unix@'}[proxy_name]
    front = tmp_path / 'web.socket'

    def start_in_front_of(address, server_id=None, keys=None, edit=lambda text: text):
        place = scheme + address if isinstance(address, str) else '{}:{}'.format(*address)
        heading = f'{proxy_name} in front of a server'
        if server_id is None:
            values = {f'{scheme}/run/app.socket': place}
        else:
            heading += ' that asks for certificates'
            values = {'192.168.1.7:8443': place, '/etc/app': keys, 'server-id': server_id}
        config = documented(heading, {'/run/web.socket': front, **values})
        start(edit(config), str(front))
        return Client(str(front), {'host': 'localhost'})

    return start_in_front_of


@pytest.fixture
def keys(temp_pki, tmp_path):
    """Give a directory with a client's certificate and key, also as the one file HAProxy wants."""
    directory = tmp_path / 'keys'
    directory.mkdir()
    for path in temp_pki.directory.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    pair = [directory / f'client-{part}.pem' for part in ('cert', 'key')]
    (directory / 'client.pem').write_bytes(b''.join(path.read_bytes() for path in pair))
    return directory


@pytest.fixture(params=['unix', 'tcp', 'tls'])
def proxied(request, serve, start_proxy, temp_pki, server_id, keys, tmp_path):
    """Give a client of a proxy in front of `app`."""
    if request.param == 'tls':
        sslctx = build_server_sslctx(temp_pki.get_server_config())
        server = serve(Validator(app), sslctx=sslctx)
        return start_proxy(server.address, server_id, keys)
    address = str(tmp_path / 'app.socket') if request.param == 'unix' else IPv4_LOOPBACK
    return start_proxy(serve(Validator(app), address).address)


def test_the_proxy_keeps_its_connection_to_us(proxied):
    with proxied.connect() as conn:
        for number in range(5):
            response = conn.get('/a')
            assert response.headers['x-requests'] == str(number)
            assert response.headers['transfer-encoding'] == 'chunked'
            assert response.body.read() == b'hello, chunks'


def test_bodies_go_through_the_proxy_both_ways(proxied):
    chunks = [BODY[i : i + 10_000] for i in range(0, len(BODY) + 1, 10_000)]
    with proxied.connect() as conn:
        assert conn.put('/a', None, BODY).body.read() == BODY
        assert conn.post('/a', None, ChunkedOutput(chunks)).body.read() == BODY
        assert conn.head('/a').headers['content-length'] == 13
        assert conn.delete('/nothing').headers['content-length'] == 0
        assert conn.get('/nothing?a=b').headers['x-requests'] == '4'


def test_a_refused_body_costs_no_connection(proxied):
    with proxied.connect() as conn:
        for number in range(3):
            response = conn.put('/refused', None, BODY[:50_000])
            assert (response.status, response.body.read()) == (403, b'not for you')
            assert response.headers['x-requests'] == str(number)


def test_what_is_sent_bit_by_bit_arrives_bit_by_bit(serve, start_proxy):
    """Both ways: each side goes on when it has what the other sent before."""
    arrived = threading.Event()

    def echo(connection, request):
        def make():
            for data in request['body']:
                yield data
                arrived.set()

        return 200, 'OK', {}, connection['rgi.ChunkedOutput'](make())

    def make():
        yield b'first'
        assert arrived.wait(WAIT_S)
        yield b'second'
        yield b''

    with start_proxy(serve(echo).address).connect() as conn:
        assert conn.post('/', None, ChunkedOutput(make())).body.read() == b'firstsecond'


def test_a_download_can_be_used_while_it_comes(serve, start_proxy):
    arrived = threading.Event()

    def drip(connection, request):
        def make():
            yield b'first'
            assert arrived.wait(WAIT_S)
            yield b'second'
            yield b''

        return 200, 'OK', {}, connection['rgi.ChunkedOutput'](make())

    with start_proxy(serve(drip).address).connect() as conn:
        body = conn.get('/').body
        assert body.readchunk() == b'first'
        arrived.set()
        assert body.read() == b'second'


NO_CERTIFICATE = {
    'nginx': r'proxy_ssl_certificate(_key)? .*;',
    'HAProxy': r'crt \S+',
}


def test_a_proxy_without_a_certificate_reaches_nobody(
    serve, start_proxy, proxy_name, temp_pki, server_id, keys
):
    calls = []
    server = serve(
        lambda c, r: calls.append(r), sslctx=build_server_sslctx(temp_pki.get_server_config())
    )

    def edit(text):
        changed = re.sub(NO_CERTIFICATE[proxy_name], '', text)
        assert changed != text
        return changed

    with start_proxy(server.address, server_id, keys, edit).connect() as conn:
        assert conn.get('/').status in BAD_GATEWAY
    assert calls == []


def test_a_proxy_finds_that_another_server_answers(serve, start_proxy, temp_pki, keys):
    calls = []
    server = serve(
        lambda c, r: calls.append(r), sslctx=build_server_sslctx(temp_pki.get_server_config())
    )
    with start_proxy(server.address, 'a' * 48, keys).connect() as conn:
        assert conn.get('/').status in BAD_GATEWAY
    assert calls == []


@pytest.fixture
def ask_through_proxy(serve, start_proxy, curl):
    """Give `ask_through_proxy(*arguments)`: the status and body that curl gets through a proxy."""

    def ask(*arguments, edit=lambda text: text):
        client = start_proxy(serve(Validator(app)).address, edit=edit)
        arguments += ('--unix-socket', client.address, '--write-out', '\n%{http_code}')
        output, _report = curl(*arguments, 'http://localhost/')
        body, _, status = output.rpartition(b'\n')
        return int(status), body

    return ask


@pytest.mark.parametrize('size', [1, 1_500_000])
def test_nobody_waits_for_a_100_behind_the_proxy(ask_through_proxy, tmp_path, size):
    """The proxy answers curl, and we never see the wish."""
    path = tmp_path / 'content'
    path.write_bytes((BODY * 5)[:size])
    arguments = ['--header', 'expect: 100-continue', '--upload-file', str(path)]
    assert ask_through_proxy(*arguments) == (200, (BODY * 5)[:size])


@pytest.mark.parametrize(
    ('proxy_name', 'arguments', 'status'),
    [
        ('nginx', ['--http1.0'], 200),
        ('HAProxy', ['--http1.0'], 400),
        ('HAProxy', ['--http2-prior-knowledge'], 200),
        ('nginx', ['--header', 'x-empty;'], 400),
        ('HAProxy', ['--header', 'x-empty;'], 400),
        ('nginx', ['--header', 'x_underscore: 1'], 200),
        ('HAProxy', ['--header', 'x_underscore: 1'], 400),
        ('nginx', ['--request', 'OPTIONS'], 405),
        ('HAProxy', ['--request', 'OPTIONS'], 405),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else str(value),
)
def test_which_habits_of_clients_a_proxy_keeps_from_us(ask_through_proxy, arguments, status):
    assert ask_through_proxy(*arguments)[0] == status


@pytest.mark.parametrize('proxy_name', ['nginx'])
def test_nginx_speaks_http_1_0_unless_it_is_told_otherwise(ask_through_proxy):
    def edit(text):
        return text.replace('proxy_http_version 1.1;', '')

    assert ask_through_proxy(edit=edit) == (400, b'only HTTP/1.1 is spoken here\n')
