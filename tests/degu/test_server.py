"""What the server gives an application, takes from it, and makes of it on the connection."""

from __future__ import annotations

import io
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import ANY

import pytest

from degu import IPv4_LOOPBACK, IPv6_LOOPBACK
from degu.bodies import ChunkedInput, ChunkedOutput, FileOutput, Input, Output
from degu.client import Client, SSLClient, build_client_sslctx
from degu.errors import PeerTimeoutError
from degu.net import Credentials, Deadline
from degu.rgi import ContentRange, Range, Validator
from degu.server import Server, build_server_sslctx

TOOLS = {
    'rgi.Output': Output,
    'rgi.ChunkedOutput': ChunkedOutput,
    'rgi.FileOutput': FileOutput,
    'rgi.set_deadline': ANY,
    'rgi.is_client_gone': ANY,
}
TIMEOUT_S = 10.0
"""After this long a test hangs, and fails."""
DROPPED = 64 * 1024
"""How much of a request body that nobody read the server reads and drops."""


def ok(connection, request):
    return 200, 'OK', {}, None


class Recorder:
    """An application that keeps copies of what it was called with."""

    def __init__(self, app=ok):
        self.app = app
        self.connections = []
        self.requests = []

    def __call__(self, connection, request):
        self.connections.append(dict(connection))
        self.requests.append({**request, 'headers': dict(request['headers'])})
        return self.app(connection, request)

    @property
    def paths(self):
        return [request['path'] for request in self.requests]


# --- the server itself ---------------------------------------------------------------------------


def test_the_address_is_the_resolved_one():
    server = Server(IPv4_LOOPBACK, ok)
    server.close()
    assert server.address[0] == '127.0.0.1'
    assert server.address[1] > 0
    assert repr(server).startswith(f"Server(('127.0.0.1', {server.address[1]}), ")


@pytest.mark.parametrize('app', [None, 'app', {}])
def test_an_app_that_cannot_be_called_is_refused(app):
    with pytest.raises(TypeError, match='app must be callable'):
        Server(IPv4_LOOPBACK, app)


def test_an_on_connect_that_cannot_be_called_is_refused():
    app = Recorder()
    app.on_connect = True
    with pytest.raises(TypeError, match='on_connect must be callable'):
        Server(IPv4_LOOPBACK, app)


@pytest.mark.parametrize(
    ('name', 'value', 'error'),
    [
        ('max_conections', 1, TypeError),
        ('max_connections', '1', TypeError),
        ('max_connections', True, TypeError),
        ('max_connections', 1.5, TypeError),
        ('max_connections', None, TypeError),
        ('max_connections', 0, ValueError),
        ('idle_timeout_s', -1, ValueError),
        ('idle_timeout_s', float('inf'), ValueError),
        ('idle_timeout_s', float('nan'), ValueError),
    ],
)
def test_an_option_that_is_no_limit_is_refused(name, value, error):
    with pytest.raises(error, match=name):
        Server(IPv4_LOOPBACK, ok, **{name: value})


def test_a_file_in_the_socket_s_place_is_refused_and_stays(tmp_path):
    path = tmp_path / 'socket'
    path.write_text("somebody else's")
    with pytest.raises(OSError, match='exists'):
        Server(str(path), ok)
    assert path.read_text() == "somebody else's"


def test_the_socket_file_is_removed_at_the_end(tmp_path):
    path = tmp_path / 'socket'
    with Server(str(path), ok) as server:
        assert server.address == str(path)
        assert path.is_socket()
    assert not path.exists()


CLOSE_WATCHED = """
import socket, sys
from degu.server import Server

def look(event, arguments):
    if event == 'os.remove' and arguments[0] == sys.argv[1]:
        with socket.socket(socket.AF_UNIX) as sock:
            print(sock.connect_ex(sys.argv[1]))

sys.addaudithook(look)
Server(sys.argv[1], print).close()
"""


def test_the_socket_file_is_removed_while_the_socket_still_listens(tmp_path):
    # A server that starts takes the file of one that does not listen for a dead one's.
    path = tmp_path / 'socket'
    done = subprocess.run(
        [sys.executable, '-c', CLOSE_WATCHED, path], capture_output=True, text=True, check=True
    )
    assert done.stdout == '0\n'


def test_a_socket_file_that_is_another_s_by_now_stays(tmp_path):
    path = tmp_path / 'socket'
    with Server(str(path), ok):
        path.rename(tmp_path / 'away')
        other = Server(str(path), ok)
    assert path.is_socket()
    other.close()
    assert not path.exists()


# --- connection and request, exactly -------------------------------------------------------------


def test_connection_over_ipv4_is_exactly_this(serve, dial):
    app = Recorder()
    server = serve(Validator(app))
    peer = dial(server.address)
    for _ in range(2):
        peer.send(b'GET / HTTP/1.1\r\n\r\n')
        peer.read_preamble()
    assert app.connections == [
        {
            'scheme': 'http',
            'protocol': 'HTTP/1.1',
            'server': server.address,
            'client': peer.sock.getsockname(),
            'requests': requests,
            **TOOLS,
        }
        for requests in (0, 1)
    ]


def test_connection_over_ipv6_has_full_addresses(serve, dial):
    app = Recorder()
    server = serve(Validator(app), IPv6_LOOPBACK)
    peer = dial(server.address)
    peer.send(b'GET / HTTP/1.1\r\n\r\n')
    peer.read_preamble()
    assert app.connections[0]['server'] == ('::1', server.address[1], 0, 0)
    assert app.connections[0]['client'] == ('::1', peer.sock.getsockname()[1], 0, 0)


@pytest.mark.parametrize('is_abstract', [False, True])
def test_connection_over_af_unix_has_credentials(serve, dial, tmp_path, is_abstract):
    app = Recorder()
    address = b'\0degu-test-%d' % os.getpid() if is_abstract else str(tmp_path / 'socket')
    server = serve(Validator(app), address)
    assert server.address == address
    peer = dial(address)
    peer.send(b'GET / HTTP/1.1\r\n\r\n')
    peer.read_preamble()
    assert app.connections == [
        {
            'scheme': 'http',
            'protocol': 'HTTP/1.1',
            'server': address,
            'client': peer.sock.getsockname(),
            'requests': 0,
            'credentials': Credentials(os.getpid(), os.getuid(), os.getgid()),
            **TOOLS,
        }
    ]


@pytest.mark.parametrize('has_certificate', [False, True])
def test_connection_over_tls_has_cipher_and_verified_certificate(serve, temp_pki, has_certificate):
    app = Recorder()
    if has_certificate:
        configs = temp_pki.get_server_config(), temp_pki.get_client_config()
        text = Path(configs[1]['cert_file']).read_text()
        certificate = ssl.PEM_cert_to_DER_cert(text)
    else:
        configs = temp_pki.get_anonymous_server_config(), temp_pki.get_anonymous_client_config()
        certificate = None
    server = serve(Validator(app), sslctx=build_server_sslctx(configs[0]))
    with SSLClient(build_client_sslctx(configs[1]), server.address).connect() as conn:
        conn.get('/')
    (connection,) = app.connections
    assert connection == {
        'scheme': 'https',
        'protocol': 'HTTP/1.1',
        'server': server.address,
        'client': connection['client'],
        'requests': 0,
        'ssl_cipher': connection['ssl_cipher'],
        'ssl_compression': None,
        'ssl_peer_cert': certificate,
        **TOOLS,
    }
    assert connection['ssl_cipher'][1] == 'TLSv1.3'


def test_request_without_body_is_exactly_this(serve, dial):
    app = Recorder()
    peer = dial(serve(Validator(app)).address)
    peer.send(
        b'GET /a/b%2Fc/?q=1&r=%20 HTTP/1.1\r\n'
        b'Host: here\r\nRange: bytes=1-2\r\nX-MiXed: As Sent\r\n\r\n'
    )
    peer.read_preamble()
    assert app.requests == [
        {
            'method': 'GET',
            'script': [],
            'path': ['a', 'b%2Fc', ''],
            'query': 'q=1&r=%20',
            'headers': {'host': 'here', 'range': Range(1, 3), 'x-mixed': 'As Sent'},
            'body': None,
        }
    ]


@pytest.mark.parametrize(
    ('target', 'path', 'query'),
    [
        (b'/', [], ''),
        (b'/?q', [], 'q'),
        (b'/a', ['a'], ''),
        (b'/a/', ['a', ''], ''),
        (b'/a?b?c/d', ['a'], 'b?c/d'),
    ],
)
def test_the_path_is_its_segments_as_sent(serve, dial, target, path, query):
    app = Recorder()
    peer = dial(serve(Validator(app)).address)
    peer.send(b'GET %b HTTP/1.1\r\n\r\n' % target)
    peer.read_preamble()
    assert (app.requests[0]['path'], app.requests[0]['query']) == (path, query)


def test_request_body_is_an_input_with_the_content_length_as_int(serve, dial):
    seen = []

    def app(connection, request):
        body = request['body']
        seen.append((type(body), body.content_length, request['headers'], body.read()))
        return 200, 'OK', {}, None

    peer = dial(serve(Validator(app)).address)
    peer.send(b'PUT / HTTP/1.1\r\nContent-Length: 5\r\nContent-Range: bytes 0-4/9\r\n\r\nhello')
    peer.read_preamble()
    headers = {'content-length': 5, 'content-range': ContentRange(0, 5, 9)}
    assert seen == [(Input, 5, headers, b'hello')]


def test_chunked_request_body_is_a_chunked_input_with_extensions(serve, dial):
    seen = []

    def app(connection, request):
        body = request['body']
        seen.append((type(body), request['headers']))
        seen.extend((chunk, body.extension) for chunk in body)
        return 200, 'OK', {}, None

    peer = dial(serve(Validator(app)).address)
    peer.send(
        b'POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n'
        b'5;a=b\r\nhello\r\n1\r\n!\r\n0\r\n\r\n'
    )
    peer.read_preamble()
    assert seen == [
        (ChunkedInput, {'transfer-encoding': 'chunked'}),
        (b'hello', b'a=b'),
        (b'!', None),
        (b'', None),
    ]


@pytest.mark.parametrize('method', [b'GET', b'HEAD'])
def test_a_content_length_of_0_without_a_body_is_dropped(serve, dial, method):
    app = Recorder()
    peer = dial(serve(Validator(app)).address)
    peer.send(method + b' / HTTP/1.1\r\ncontent-length: 0\r\n\r\n')
    assert peer.read_preamble() == b'HTTP/1.1 200 OK\r\n\r\n'
    assert app.requests[0]['headers'] == {}


# --- deadlines, and clients that are gone --------------------------------------------------------


def test_a_deadline_ends_the_wait_for_a_body_and_can_be_answered(serve, dial):
    def app(connection, request):
        connection['rgi.set_deadline'](Deadline(0.1))
        with pytest.raises(PeerTimeoutError, match='a deadline'):
            request['body'].read()
        connection['rgi.set_deadline'](None)
        return 504, 'Gateway Timeout', {}, b'too late'

    peer = dial(serve(Validator(app)).address)
    peer.send(b'POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhel')
    assert peer.read_to_end().endswith(b'\r\n\r\ntoo late')


def test_a_deadline_ends_with_its_request(serve, dial):
    def app(connection, request):
        if request['path'] == ['first']:
            connection['rgi.set_deadline'](Deadline(0.05))
            return 200, 'OK', {}, b'1'
        return 200, 'OK', {}, request['body'].read()

    peer = dial(serve(Validator(app)).address)
    peer.send(b'GET /first HTTP/1.1\r\n\r\n')
    peer.read_preamble()
    time.sleep(0.1)  # the first deadline passes between two requests ...
    peer.send(b'POST /second HTTP/1.1\r\ncontent-length: 5\r\n\r\nhel')
    time.sleep(0.1)  # ... and inside the second
    peer.send(b'lo')
    peer.read_preamble()
    assert peer.read(5) == b'hello'


@pytest.mark.parametrize('has_tls', [False, True])
def test_a_client_that_is_gone_can_be_noticed(serve, temp_pki, has_tls):
    found = []
    called, closed, ended = threading.Event(), threading.Event(), threading.Event()

    def app(connection, request):
        found.append(connection['rgi.is_client_gone']())
        called.set()
        closed.wait(TIMEOUT_S)
        found.append(connection['rgi.is_client_gone']())
        ended.set()
        return 200, 'OK', {}, None

    server = serve(
        Validator(app),
        sslctx=build_server_sslctx(temp_pki.get_server_config()) if has_tls else None,
    )
    sock = socket.create_connection(server.address)
    if has_tls:
        sock = build_client_sslctx(temp_pki.get_client_config()).wrap_socket(sock)
    with sock:
        sock.sendall(b'GET / HTTP/1.1\r\n\r\n')
        assert called.wait(TIMEOUT_S)
    closed.set()
    assert ended.wait(TIMEOUT_S)
    assert found == [False, True]


# --- on_connect ----------------------------------------------------------------------------------


class Gate(Recorder):
    def __init__(self, on_connect):
        super().__init__()
        self.on_connect = on_connect


def test_on_connect_comes_once_for_a_connection_and_its_keys_stay(serve, dial):
    calls = []

    def on_connect(sock, connection):
        calls.append((sock.getpeername(), dict(connection)))
        connection['_user'] = len(calls)
        return True

    app = Gate(on_connect)
    server = serve(Validator(app))
    for number in (1, 2):
        peer = dial(server.address)
        for _ in range(2):
            peer.send(b'GET / HTTP/1.1\r\n\r\n')
            peer.read_preamble()
        assert [c['_user'] for c in app.connections[-2:]] == [number, number]
        assert calls[-1][0] == peer.sock.getsockname()
        assert calls[-1][1]['client'] == peer.sock.getsockname()
    assert len(calls) == 2


@pytest.mark.parametrize('answer', [False, None, 1, 'yes'])
def test_anything_but_true_from_on_connect_rejects(serve, dial, answer):
    app = Gate(lambda sock, connection: answer)
    peer = dial(serve(app).address)
    peer.send(b'GET / HTTP/1.1\r\n\r\n')
    assert peer.read_to_end() == b''
    assert app.requests == []


def test_an_exception_in_on_connect_rejects_and_is_logged(dial, caplog):
    def on_connect(sock, connection):
        raise LookupError('no such user')

    app = Gate(on_connect)
    with Server(IPv4_LOOPBACK, app) as server:
        peer = dial(server.address)
        peer.send(b'GET / HTTP/1.1\r\n\r\n')
        assert peer.is_cut_off()
    assert app.requests == []
    assert 'no such user' in caplog.text


def test_a_handler_s_keys_stay_with_their_connection(serve, dial):
    def app(connection, request):
        connection['__count'] = connection.get('__count', 0) + 1
        return 200, 'OK', {'count': str(connection['__count'])}, None

    server = serve(Validator(app))
    for _ in range(2):
        peer = dial(server.address)
        for count in (b'1', b'2', b'3'):
            peer.send(b'GET / HTTP/1.1\r\n\r\n')
            assert peer.read_preamble() == b'HTTP/1.1 200 OK\r\ncount: %b\r\n\r\n' % count


# --- responses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('build', 'expected'),
    [
        (lambda tmp: None, b'\r\n'),
        (lambda tmp: b'', b'content-length: 0\r\n\r\n'),
        (lambda tmp: b'hello', b'content-length: 5\r\n\r\nhello'),
        (lambda tmp: bytearray(b'hello'), b'content-length: 5\r\n\r\nhello'),
        (lambda tmp: Output([b'he', b'', b'llo'], 5), b'content-length: 5\r\n\r\nhello'),
        (lambda tmp: Output([], 0), b'content-length: 0\r\n\r\n'),
        (lambda tmp: FileOutput(io.BytesIO(b'hello'), 5), b'content-length: 5\r\n\r\nhello'),
        (
            lambda tmp: ChunkedOutput([b'he', (b'a=b', b'llo'), b'']),
            b'transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\n\r\n',
        ),
    ],
)
def test_each_kind_of_body_is_framed_and_nothing_else_is_added(
    serve, dial, tmp_path, build, expected
):
    peer = dial(serve(Validator(lambda c, r: (200, 'OK', {}, build(tmp_path)))).address)
    peer.send(b'GET / HTTP/1.1\r\nconnection: close\r\n\r\n')
    assert peer.read_to_end() == b'HTTP/1.1 200 OK\r\n' + expected


def test_a_file_is_sent_from_its_position(serve, dial, tmp_path):
    path = tmp_path / 'content'
    path.write_bytes(b'..hello..')
    with path.open('rb') as fp:
        fp.seek(2)
        peer = dial(serve(Validator(lambda c, r: (200, 'OK', {}, FileOutput(fp, 5)))).address)
        peer.send(b'GET / HTTP/1.1\r\nconnection: close\r\n\r\n')
        assert peer.read_to_end() == b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello'
        assert fp.tell() == 7


@pytest.mark.parametrize(
    ('headers', 'sent'),
    [
        ({}, b''),
        ({'x-a': 'b c', 'content-type': 'text/plain'}, b'x-a: b c\r\ncontent-type: text/plain\r\n'),
        ({'content-length': 5}, b''),
        ({'content-range': ContentRange(0, 5, 9)}, b'content-range: bytes 0-4/9\r\n'),
        ({'content-range': 'bytes 0-4/9'}, b'content-range: bytes 0-4/9\r\n'),
        ({'x-latin': 'caf\xe9'}, b'x-latin: caf\xe9\r\n'),
    ],
)
def test_headers_are_sent_as_given(serve, dial, headers, sent):
    peer = dial(serve(Validator(lambda c, r: (299, 'A b', headers, b'hello'))).address)
    peer.send(b'GET / HTTP/1.1\r\n\r\n')
    first, *lines = peer.read_preamble().splitlines(keepends=True)
    assert first == b'HTTP/1.1 299 A b\r\n'
    assert sorted(lines) == sorted((sent + b'content-length: 5\r\n\r\n').splitlines(keepends=True))


@pytest.mark.parametrize(
    ('method', 'status', 'has_host', 'has_length'),
    [
        ('GET', 200, True, True),
        ('PUT', 404, True, True),
        ('GET', 200, False, False),
        ('HEAD', 200, True, False),
        ('GET', 204, True, False),
        ('GET', 304, True, False),
    ],
)
def test_only_a_generic_client_is_told_that_there_is_no_body(
    serve, dial, method, status, has_host, has_length
):
    peer = dial(serve(Validator(lambda c, r: (status, 'Yes', {}, None))).address)
    host = 'host: h\r\n' if has_host else ''
    peer.send(f'{method} / HTTP/1.1\r\n{host}\r\n'.encode())
    expected = f'HTTP/1.1 {status} Yes\r\n{"content-length: 0" * has_length}'.rstrip()
    assert peer.read_preamble().decode().rstrip() == expected


@pytest.mark.parametrize(
    ('method', 'status', 'headers'),
    [
        ('HEAD', 200, {'content-length': 17}),
        ('HEAD', 200, {'transfer-encoding': 'chunked'}),
        ('GET', 304, {'content-length': 17}),
        ('GET', 204, {}),
    ],
)
def test_a_response_that_cannot_have_a_body_may_describe_one(serve, dial, method, status, headers):
    peer = dial(serve(Validator(lambda c, r: (status, 'Yes', headers, None))).address)
    for _ in range(2):
        peer.send(f'{method} / HTTP/1.1\r\n\r\n'.encode())
        lines = ''.join(f'{name}: {value}\r\n' for name, value in headers.items())
        assert peer.read_preamble().decode() == f'HTTP/1.1 {status} Yes\r\n{lines}\r\n'


def is_500_without_detail(answer):
    first, *lines = answer.decode().split('\r\n')
    assert first == 'HTTP/1.1 500 Internal Server Error'
    return sorted(lines) == ['', '', 'connection: close', 'content-length: 0']


def used_up():
    body = Output([b'x'], 1)
    list(body)
    return body


@pytest.fixture
def refuse(dial, caplog):
    """Give `refuse(response)`: what an application returns, and only a log may say why not."""

    def run(response):
        with Server(IPv4_LOOPBACK, lambda c, r: response) as server:
            peer = dial(server.address)
            peer.send(b'GET /here HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n')
            assert is_500_without_detail(peer.read_to_end())
        (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert record.exc_info is not None
        assert 'GET /here' in record.getMessage()

    return run


@pytest.mark.parametrize('body', [None, b'hi'], ids=['no_body', 'body'])
def test_a_response_with_a_header_outside_the_grammar_is_a_500(refuse, unsendable_headers, body):
    refuse((200, 'OK', unsendable_headers.data, body))


@pytest.mark.parametrize(
    'reason',
    [
        pytest.param('', id='empty'),
        pytest.param(' ', id='space'),
        pytest.param(' OK', id='leading_space'),
        pytest.param('OK ', id='trailing_space'),
        pytest.param('O\r\nK: V', id='crlf'),
        pytest.param('OK\r\n', id='crlf_at_the_end'),
        pytest.param('OK\r\n\r\nHTTP/1.1 200 OK', id='crlf_response'),
        pytest.param('O\rK', id='cr'),
        pytest.param('OK\n', id='lf'),
        pytest.param('O\0K', id='nul'),
        pytest.param('O\aK', id='bel'),
        pytest.param('O\tK', id='tab'),
        pytest.param('O\x7fK', id='delete'),
        pytest.param('O\x85K', id='next_line'),
        pytest.param('O\u010d\u010aK', id='what_folds_to_crlf'),
        pytest.param('snow \u2603', id='outside_latin_1'),
        pytest.param(b'OK', id='bytes'),
        pytest.param(None, id='none'),
        pytest.param(['OK'], id='list'),
    ],
)
def test_a_response_with_a_reason_outside_the_grammar_is_a_500(refuse, reason):
    refuse((200, reason, {}, None))


@pytest.mark.parametrize(
    'status', ['200', '200 OK\r\na: b', 200.0, True, None, [], 199, 100, 101, 600, -200], ids=ascii
)
def test_a_response_with_another_status_is_a_500(refuse, status):
    refuse((status, 'OK', {}, None))


@pytest.mark.parametrize(
    'response',
    [
        pytest.param(response, id=name)
        for name, response in (
            ('none', None),
            ('string', 'a string'),
            ('empty', ()),
            ('three', (200, 'OK', {})),
            ('five', (200, 'OK', {}, None, None)),
            ('headers_none', (200, 'OK', None, None)),
            ('headers_list', (200, 'OK', [('a', 'b')], None)),
            ('content_length_str', (200, 'OK', {'content-length': '1'}, b'x')),
            ('content_length_too_long', (200, 'OK', {'content-length': 2}, b'x')),
            ('content_length_bool', (200, 'OK', {'content-length': True}, b'x')),
            ('content_length_crlf', (200, 'OK', {'content-length': '1\r\na: b'}, b'x')),
            ('not_chunked', (200, 'OK', {'transfer-encoding': 'chunked'}, b'x')),
            ('gzip', (200, 'OK', {'transfer-encoding': 'gzip'}, ChunkedOutput([b'']))),
            ('both', (200, 'OK', {'content-length': 1}, ChunkedOutput([b'x', b'']))),
            ('body_text', (200, 'OK', {}, 'text')),
            ('body_int', (200, 'OK', {}, 17)),
            ('body_list', (200, 'OK', {}, [b'x'])),
            ('body_used_up', (200, 'OK', {}, used_up())),
            ('204_body', (204, 'No Content', {}, b'x')),
            ('204_content_length', (204, 'No Content', {'content-length': 1}, None)),
            ('304_body', (304, 'Not Modified', {}, b'x')),
        )
    ],
)
def test_a_malformed_response_is_a_500_without_detail_and_logged(refuse, response):
    refuse(response)


@pytest.mark.parametrize('body', [b'x', b'', Output([b'x'], 1), ChunkedOutput([b''])])
def test_a_body_for_head_is_the_application_s_bug(dial, caplog, body):
    with Server(IPv4_LOOPBACK, lambda c, r: (200, 'OK', {}, body)) as server:
        peer = dial(server.address)
        peer.send(b'HEAD / HTTP/1.1\r\n\r\n')
        assert is_500_without_detail(peer.read_to_end())
    assert 'to HEAD must not have a body' in caplog.text


@pytest.mark.parametrize('error', [ValueError('x'), OSError('x'), EOFError(), AssertionError()])
def test_an_exception_of_the_application_is_a_500_without_detail_and_logged(dial, caplog, error):
    def app(connection, request):
        raise error

    with Server(IPv4_LOOPBACK, app) as server:
        peer = dial(server.address)
        peer.send(b'GET /here HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n')
        assert is_500_without_detail(peer.read_to_end())
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.exc_info[1] is error


def broken(pieces):
    yield from pieces
    raise LookupError('the source broke')


@pytest.mark.parametrize(
    ('build', 'sent', 'reason'),
    [
        (lambda: Output([b'hel'], 5), b'hel', 'ended after 3 bytes, expected 5'),
        (lambda: Output([b'hel', b'lo!'], 5), b'hel', 'went on to 6 bytes, expected 5'),
        (lambda: Output(broken([b'hel']), 5), b'hel', 'the source broke'),
        (lambda: Output([b'hel', 'lo'], 5), b'hel', 'TypeError'),
        (lambda: FileOutput(io.BytesIO(b'hel'), 5), b'hel', 'ended after 3 bytes, expected 5'),
        (lambda: ChunkedOutput([b'hel']), b'3\r\nhel\r\n', 'expected a final empty chunk'),
        (lambda: ChunkedOutput(broken([b'hel'])), b'3\r\nhel\r\n', 'the source broke'),
        (lambda: ChunkedOutput([b'hel', (b'x', b'lo')]), b'3\r\nhel\r\n', 'extension must be'),
        (
            lambda: ChunkedOutput([b'hel', b'', b'lo', b'']),
            b'3\r\nhel\r\n0\r\n\r\n',
            'went on to 5 bytes, expected 3',
        ),
    ],
    ids=[
        'output_short',
        'output_long',
        'output_broken',
        'output_text',
        'file_short',
        'chunked_no_end',
        'chunked_broken',
        'chunked_extension',
        'chunked_after_end',
    ],
)
def test_a_body_that_fails_is_cut_off_at_its_fault_and_logged(dial, caplog, build, sent, reason):
    with Server(IPv4_LOOPBACK, lambda c, r: (200, 'OK', {}, build())) as server:
        peer = dial(server.address)
        peer.send(b'GET /here HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n')
        preamble, _, rest = peer.read_to_end().partition(b'\r\n\r\n')
    assert preamble.startswith(b'HTTP/1.1 200 OK\r\n')
    assert rest == sent
    assert reason in caplog.text
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert 'GET /here' in record.getMessage()


class Source:
    """The source of a body; `closed` is set when it is closed."""

    def __init__(self, pieces):
        self.pieces = pieces
        self.closed = threading.Event()

    def __iter__(self):
        return iter(self.pieces)

    def close(self):
        self.closed.set()


BUILD_OUTPUT = pytest.mark.parametrize(
    'build',
    [lambda source: Output(source, 5), ChunkedOutput],
    ids=['Output', 'ChunkedOutput'],
)


@BUILD_OUTPUT
@pytest.mark.parametrize(
    'generate',
    [lambda: [b'hello', b''], lambda: [b'hel'], lambda: broken([b'hel'])],
    ids=['sent', 'too short', 'broken'],
)
def test_the_source_of_a_body_is_closed_once_the_body_is_over(serve, dial, build, generate):
    source = Source(generate())
    peer = dial(serve(lambda c, r: (200, 'OK', {}, build(source))).address)
    peer.send(b'GET / HTTP/1.1\r\nconnection: close\r\n\r\n')
    peer.read_to_end()
    assert source.closed.wait(TIMEOUT_S)


@BUILD_OUTPUT
@pytest.mark.parametrize(
    ('method', 'headers'),
    [
        pytest.param(b'GET', {'content-length': 17}, id='contradicted'),
        pytest.param(b'GET', {'A': 'b'}, id='bad_header'),
        pytest.param(b'HEAD', {}, id='head'),
    ],
)
def test_the_source_of_a_body_is_closed_when_its_response_is_refused(
    serve, dial, build, method, headers
):
    source = Source([b'hello', b''])
    peer = dial(serve(lambda c, r: (200, 'OK', headers, build(source))).address)
    peer.send(method + b' / HTTP/1.1\r\n\r\n')
    assert peer.read_to_end().startswith(b'HTTP/1.1 500 ')
    assert source.closed.wait(TIMEOUT_S)


@BUILD_OUTPUT
def test_the_source_of_a_body_is_closed_when_the_client_is_gone_before_the_first_byte(
    serve, dial, tmp_path, build
):
    def app(connection, request):
        began.set()
        assert go_on.wait(TIMEOUT_S)
        return 200, 'OK', {}, build(source)

    source, began, go_on = Source([b'hello', b'']), threading.Event(), threading.Event()
    peer = dial(serve(app, str(tmp_path / 'socket')).address)  # where a close is seen at once
    peer.send(b'GET / HTTP/1.1\r\n\r\n')
    assert began.wait(TIMEOUT_S)
    peer.close()
    go_on.set()
    assert source.closed.wait(TIMEOUT_S)


@pytest.mark.parametrize(
    'build',
    [lambda source: Output(source, 10**12), ChunkedOutput],
    ids=['Output', 'ChunkedOutput'],
)
def test_a_source_that_is_a_generator_cleans_up_when_the_client_goes_away(serve, dial, build):
    def generate():
        try:
            while True:
                yield b'hello'
        finally:
            closed.set()

    closed = threading.Event()
    peer = dial(serve(lambda c, r: (200, 'OK', {}, build(generate()))).address)
    peer.send(b'GET / HTTP/1.1\r\n\r\n')
    peer.read(100_000)
    peer.close()
    assert closed.wait(TIMEOUT_S)


# --- one request after the other -----------------------------------------------------------------


def echo(connection, request):
    body = request['body']
    path = '/' + '/'.join(request['path'])
    return 200, 'OK', {}, path.encode() + (b'' if body is None else body.read())


def test_pipelined_requests_are_answered_in_order(serve, dial):
    peer = dial(serve(Validator(echo)).address)
    peer.send(
        b'GET /1 HTTP/1.1\r\n\r\n'
        b'PUT /2 HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc'
        b'POST /3 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n'
        b'GET /4 HTTP/1.1\r\nconnection: close\r\n\r\n'
        b'GET /5 HTTP/1.1\r\n\r\n'
    )
    assert peer.read_to_end() == (
        b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n/1'
        b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n/2abc'
        b'HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n/3de'
        b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n/4'
    )


def test_the_split_of_the_bytes_makes_no_difference(serve, dial, tmp_path):
    peer = dial(serve(Validator(echo), str(tmp_path / 'socket')).address)
    request = (
        b'PUT /2 HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc'
        b'POST /3 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\nde\r\n0\r\n\r\n'
        b'GET /4 HTTP/1.1\r\nconnection: close\r\n\r\n'
    )
    peer.send_each(request[i : i + 1] for i in range(len(request)))
    assert peer.read_to_end() == (
        b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n/2abc'
        b'HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n/3de'
        b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n/4'
    )


@pytest.mark.parametrize('value', [b'close', b'Close', b'keep-alive, close', b'close,x'])
def test_connection_close_in_a_request_ends_it_after_the_response(serve, dial, value):
    peer = dial(serve(Validator(echo)).address)
    peer.send(b'GET / HTTP/1.1\r\nconnection: %b\r\n\r\nGET / HTTP/1.1\r\n\r\n' % value)
    assert peer.read_to_end() == b'HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n/'


def test_connection_close_in_a_response_ends_it_too(serve, dial):
    peer = dial(serve(Validator(lambda c, r: (200, 'OK', {'connection': 'close'}, None))).address)
    peer.send(b'GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n')
    assert peer.read_to_end() == b'HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n'


@pytest.mark.parametrize('status', [204, 304, 400, 404, 417, 500, 503])
def test_no_status_of_an_application_ends_the_connection(serve, dial, status):
    peer = dial(serve(Validator(lambda c, r: (status, 'Yes', {}, None))).address)
    for _ in range(2):
        peer.send(b'GET / HTTP/1.1\r\nconnection: keep-alive\r\nupgrade: h2c\r\n\r\n')
        assert peer.read_preamble() == b'HTTP/1.1 %d Yes\r\n\r\n' % status


def frame(body, is_chunked):
    if is_chunked:
        return b'transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n' % (len(body), body)
    return b'content-length: %d\r\n\r\n%b' % (len(body), body)


@pytest.mark.parametrize('is_chunked', [False, True])
@pytest.mark.parametrize('size', [1, DROPPED])
def test_a_small_request_body_that_nobody_read_is_dropped(serve, dial, size, is_chunked):
    app = Recorder()
    peer = dial(serve(Validator(app)).address)
    peer.send(b'PUT /1 HTTP/1.1\r\n' + frame(b'x' * size, is_chunked))
    peer.send(b'GET /2 HTTP/1.1\r\nconnection: close\r\n\r\n')
    assert peer.read_to_end() == b'HTTP/1.1 200 OK\r\n\r\n' * 2
    assert app.paths == [['1'], ['2']]


@pytest.mark.parametrize('is_chunked', [False, True])
def test_a_large_request_body_that_nobody_read_ends_the_connection(serve, dial, is_chunked):
    app = Recorder()
    peer = dial(serve(Validator(app)).address)
    peer.send(b'PUT /1 HTTP/1.1\r\n' + frame(b'x' * (DROPPED + 1), is_chunked))
    peer.send(b'GET /2 HTTP/1.1\r\n\r\n')
    peer.end()
    # Of chunks it is not known how many there are.
    end = b'' if is_chunked else b'connection: close\r\n'
    assert peer.read_to_end() == b'HTTP/1.1 200 OK\r\n' + end + b'\r\n'
    assert app.paths == [['1']]


def test_the_end_is_not_announced_where_the_response_reads_the_request(serve, dial):
    def app(connection, request):
        body = request['body']
        return 200, 'OK', {}, connection['rgi.Output'](iter(body), body.content_length)

    peer = dial(serve(Validator(app)).address)
    for _ in range(2):
        peer.send(b'PUT / HTTP/1.1\r\n' + frame(b'x' * (DROPPED + 1), False))
        assert peer.read_preamble() == b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n' % (
            DROPPED + 1
        )
        assert peer.read(DROPPED + 1) == b'x' * (DROPPED + 1)


def test_a_request_body_that_was_read_half_is_dropped_too(serve, dial):
    def app(connection, request):
        return 200, 'OK', {'start': request['body'].read(2).decode()}, None

    peer = dial(serve(Validator(app)).address)
    for body in (b'abcd', b'efgh'):
        peer.send(b'PUT / HTTP/1.1\r\n' + frame(body, False))
        assert peer.read_preamble() == b'HTTP/1.1 200 OK\r\nstart: %b\r\n\r\n' % body[:2]


def test_a_request_body_that_ends_early_ends_the_connection_without_a_response(dial, caplog):
    caplog.set_level(logging.INFO, 'degu.server')
    with Server(IPv4_LOOPBACK, echo) as server:
        peer = dial(server.address)
        peer.send(b'PUT / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhel')
        peer.end()
        assert peer.is_cut_off()
    assert 'ended after 3 bytes, expected 5 bytes' in caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


# --- bodies that are passed on -------------------------------------------------------------------


@pytest.fixture
def passing(serve):
    """A server that makes a body of its requests' and one that passes all on to it."""

    def origin(connection, request):
        body = request['body']
        if isinstance(body, ChunkedInput):
            return 200, 'OK', {}, ChunkedOutput((body.extension, data) for data in body)
        return 200, 'OK', {}, None if body is None else body.read()

    client = Client(serve(Validator(origin)).address)

    def proxy(connection, request):
        if '__conn' not in connection:
            connection['__conn'] = client.connect()
        response = connection['__conn'].request(
            request['method'], '/', request['headers'], request['body']
        )
        return tuple(response)

    return serve(Validator(proxy))


@pytest.mark.parametrize('size', [0, 1, 70_000, 3_000_000])
def test_an_input_can_be_passed_on_as_it_is(passing, size):
    body = os.urandom(size)
    with Client(passing.address).connect() as conn:
        for _ in range(2):
            assert conn.put('/', None, body).body.read() == body


def test_a_chunked_input_can_be_passed_on_with_its_extensions(passing, dial):
    peer = dial(passing.address)
    chunks = b'2;a=b\r\nde\r\n3\r\nfgh\r\n0;c=d\r\n\r\n'
    peer.send(b'PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n' + chunks)
    assert peer.read_to_end().endswith(b'\r\n\r\n' + chunks)


@pytest.mark.parametrize('missing', [1, 100, 5000])
def test_a_fault_of_another_server_never_becomes_bytes_of_a_response(script, dial, missing, caplog):
    """What was begun cannot be answered anew: the client would take that answer for the body."""

    def origin(raw):
        raw.read_preamble()
        raw.send(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n')

    with Client(script(origin).address).connect() as conn:

        def app(connection, request):
            return 200, 'OK', {}, Output(conn.get('/').body, 5 + missing)

        with Server(IPv4_LOOPBACK, app) as server:
            peer = dial(server.address)
            peer.send(b'GET / HTTP/1.1\r\n\r\n')
            sent = peer.read_to_end()
    assert sent == b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\nhello' % (5 + missing)
    assert 'a chunk line must be' in caplog.text


def test_a_fault_of_the_client_never_becomes_a_second_response(dial, caplog):
    def app(connection, request):
        return 200, 'OK', {}, ChunkedOutput(request['body'])

    with Server(IPv4_LOOPBACK, app) as server:
        peer = dial(server.address)
        peer.send(b'PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n')
        sent = peer.read_to_end()
    assert sent == b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n'
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
