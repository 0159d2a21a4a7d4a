"""WSGI on a Degu server: the environ that an application gets, and the request body in it."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from urllib.parse import unquote_to_bytes
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import degu
from degu import IPv4_LOOPBACK, IPv6_LOOPBACK
from degu.bodies import ChunkedOutput, FileOutput, Output
from degu.client import Client, SSLClient, build_client_sslctx
from degu.net import Credentials
from degu.server import build_server_sslctx
from degu.util import absolute_uri, shift_path
from degu.wire import parse_request
from degu.wsgi import WsgiApp, build_environ

TIMEOUT_S = 10.0
"""After this long a test hangs, and fails."""
CONNECTION = {
    'scheme': 'http',
    'protocol': 'HTTP/1.1',
    'server': ('127.0.0.1', 8080),
    'client': ('127.0.0.1', 54321),
    'requests': 0,
    'rgi.Output': Output,
    'rgi.ChunkedOutput': ChunkedOutput,
    'rgi.FileOutput': FileOutput,
}
REQUEST = {'method': 'GET', 'script': [], 'path': [], 'query': '', 'headers': {}, 'body': None}
OBJECTS = {'wsgi.input', 'wsgi.errors', 'degu.connection'}


class Recorder:
    """A WSGI application that keeps what it was called with."""

    def __init__(self):
        self.environs = []

    def __call__(self, environ, start_response):
        self.environs.append(environ)
        start_response('200 OK', [('Content-Type', 'text/plain')])
        return [b'hello']


def test_an_app_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match='app must be callable'):
        WsgiApp('app')


# --- the environ ---------------------------------------------------------------------------------


def test_the_environ_over_tcp_is_this(serve_wsgi):
    app = Recorder()
    address = serve_wsgi(validator(app), IPv4_LOOPBACK)
    headers = {'host': 'here:80', 'content-type': 'text/plain', 'x-forwarded-for': '1.2.3.4'}
    with Client(address).connect() as conn:
        conn.post('/a%20b/c?d=%20&e', headers, b'hello').body.read()
    (environ,) = app.environs
    client = environ['degu.connection']['client']
    assert {k: v for k, v in environ.items() if k not in OBJECTS} == {
        'REQUEST_METHOD': 'POST',
        'SCRIPT_NAME': '',
        'PATH_INFO': '/a b/c',
        'QUERY_STRING': 'd=%20&e',
        'REQUEST_URI': '/a%20b/c?d=%20&e',
        'SERVER_NAME': '127.0.0.1',
        'SERVER_PORT': str(address[1]),
        'SERVER_PROTOCOL': 'HTTP/1.1',
        'SERVER_SOFTWARE': f'degu/{degu.__version__}',
        'REMOTE_ADDR': '127.0.0.1',
        'REMOTE_PORT': str(client[1]),
        'CONTENT_TYPE': 'text/plain',
        'CONTENT_LENGTH': '5',
        'HTTP_HOST': 'here:80',
        'HTTP_X_FORWARDED_FOR': '1.2.3.4',
        'wsgi.version': (1, 0),
        'wsgi.url_scheme': 'http',
        'wsgi.multithread': True,
        'wsgi.multiprocess': True,
        'wsgi.run_once': False,
        'wsgi.input_terminated': True,
        'wsgi.file_wrapper': FileWrapper,
    }


def test_an_ipv6_server_s_name_is_in_brackets(serve_wsgi):
    app = Recorder()
    with Client(serve_wsgi(validator(app), IPv6_LOOPBACK)).connect() as conn:
        conn.get('/').body.read()
    assert app.environs[0]['SERVER_NAME'] == '[::1]'
    assert app.environs[0]['REMOTE_ADDR'] == '::1'


def test_on_a_unix_socket_the_credentials_say_who_is_there(serve_wsgi):
    app = Recorder()
    with Client(serve_wsgi(validator(app))).connect() as conn:
        conn.get('/').body.read()
    (environ,) = app.environs
    assert (environ['SERVER_NAME'], environ['SERVER_PORT']) == ('localhost', '80')
    assert 'REMOTE_ADDR' not in environ
    mine = Credentials(os.getpid(), os.getuid(), os.getgid())
    assert environ['degu.connection']['credentials'] == mine


def test_the_client_s_certificate_is_there_in_both_forms(serve_wsgi, temp_pki):
    app = Recorder()
    sslctx = build_server_sslctx(temp_pki.get_server_config())
    client = SSLClient(
        build_client_sslctx(temp_pki.get_client_config()),
        serve_wsgi(validator(app), IPv4_LOOPBACK, sslctx),
    )
    with client.connect() as conn:
        conn.get('/').body.read()
    (environ,) = app.environs
    pem = (temp_pki.directory / 'client-cert.pem').read_text()
    assert environ['SSL_CLIENT_CERT'].split() == pem.split()
    assert environ['degu.connection']['ssl_peer_cert'] == ssl.PEM_cert_to_DER_cert(pem)
    assert environ['SSL_CLIENT_VERIFY'] == 'SUCCESS'
    assert environ['SSL_PROTOCOL'] == 'TLSv1.3'
    assert environ['SSL_CIPHER'].startswith('TLS_')
    assert (environ['wsgi.url_scheme'], environ['HTTPS']) == ('https', 'on')


def test_an_anonymous_client_has_no_certificate(serve_wsgi, temp_pki):
    app = Recorder()
    sslctx = build_server_sslctx(temp_pki.get_anonymous_server_config())
    client = SSLClient(
        build_client_sslctx(temp_pki.get_anonymous_client_config()),
        serve_wsgi(validator(app), IPv4_LOOPBACK, sslctx),
    )
    with client.connect() as conn:
        conn.get('/').body.read()
    assert app.environs[0]['SSL_CLIENT_VERIFY'] == 'NONE'
    assert 'SSL_CLIENT_CERT' not in app.environs[0]


@pytest.mark.parametrize(
    ('target', 'depth', 'script_name', 'path_info'),
    [
        ('/', 0, '', '/'),
        ('/a', 0, '', '/a'),
        ('/a', 1, '/a', ''),
        ('/a/', 1, '/a', '/'),
        ('/a/b/c', 2, '/a/b', '/c'),
        ('/a%20b/c%2Fd', 1, '/a b', '/c/d'),
        ('/caf%C3%A9', 0, '', '/caf\xc3\xa9'),
        ('/%ff%zz+', 0, '', '/\xff%zz+'),
    ],
)
def test_a_path_is_split_where_it_was_routed_and_decoded(target, depth, script_name, path_info):
    request = {**REQUEST, 'script': [], 'path': parse_request(f'GET {target} HTTP/1.1'.encode())[1]}
    for _ in range(depth):
        shift_path(request)
    environ = build_environ(dict(CONNECTION), request)
    assert (environ['SCRIPT_NAME'], environ['PATH_INFO']) == (script_name, path_info)
    assert environ['REQUEST_URI'] == target


segments = st.lists(
    st.sampled_from(['a', '.', '+', '~', '%', '%2F', '%C3%A9', '%ff', '%00', '%zz']), min_size=1
).map(''.join)


@given(script=st.lists(segments), path=st.lists(segments))
def test_script_name_and_path_info_are_the_bytes_that_the_target_stands_for(script, path):
    request = {**REQUEST, 'script': script, 'path': path}
    environ = build_environ(dict(CONNECTION), request)
    found = environ['SCRIPT_NAME'] + environ['PATH_INFO']
    assert found.encode('latin-1') == unquote_to_bytes(absolute_uri(request))


@given(
    st.dictionaries(
        st.from_regex(r'[0-9a-z-]{1,64}', fullmatch=True), st.from_regex(r'[!-~]+', fullmatch=True)
    )
)
def test_each_header_has_one_variable_of_its_own(headers):
    environ = build_environ(dict(CONNECTION), {**REQUEST, 'headers': headers})
    own = {'content-type': 'CONTENT_TYPE', 'content-length': 'CONTENT_LENGTH'}
    for name, value in headers.items():
        assert environ[own.get(name, 'HTTP_' + name.upper().replace('-', '_'))] == value
    assert len(environ) - len(build_environ(dict(CONNECTION), REQUEST)) == len(headers)


@pytest.mark.parametrize(
    ('header', 'variable', 'value'),
    [
        ('range: bytes=0-99', 'HTTP_RANGE', 'bytes=0-99'),
        ('range: bytes=-5', 'HTTP_RANGE', 'bytes=-5'),
        ('content-range: bytes 0-4/9', 'HTTP_CONTENT_RANGE', 'bytes 0-4/9'),
        ('Cookie: a=1; b=2', 'HTTP_COOKIE', 'a=1; b=2'),
    ],
)
def test_a_header_s_value_is_the_str_that_was_sent(serve_wsgi, dial, header, variable, value):
    app = Recorder()
    dialled = dial(serve_wsgi(validator(app)))
    dialled.send(f'GET / HTTP/1.1\r\n{header}\r\nconnection: close\r\n\r\n'.encode())
    dialled.read_to_end()
    assert app.environs[0][variable] == value


def test_no_header_can_be_passed_off_as_another(serve_wsgi, dial):
    app = Recorder()
    peer = dial(serve_wsgi(validator(app)))
    peer.send(b'GET / HTTP/1.1\r\nX_User: root\r\n\r\n')
    assert peer.read_to_end().startswith(b'HTTP/1.1 400 ')
    assert app.environs == []


def test_what_an_app_does_to_its_environ_stays_in_its_request(serve_wsgi):
    def app(environ, start_response):
        found = environ.pop('SERVER_NAME') + str(environ.get('marked'))
        environ['marked'] = True
        start_response('200 OK', [])
        return [found.encode()]

    with Client(serve_wsgi(app)).connect() as conn:
        assert [conn.get('/').body.read() for _ in range(2)] == [b'localhostNone'] * 2


# --- wsgi.input ----------------------------------------------------------------------------------


READS = {
    'read(-1)': lambda f: [f.read(-1)],
    'read(4)': lambda f: [f.read(4), f.read(4), f.read(100), f.read(1)],
    'readline()': lambda f: list(iter(f.readline, b'')),
    'readline(2)': lambda f: [f.readline(2), f.readline(2)],
    'readlines()': lambda f: f.readlines(),
    'iteration': lambda f: [f.readline(), *f],
}
RESULTS = {
    'read(-1)': [b'one\ntwo\n\nthree'],
    'read(4)': [b'one\n', b'two\n', b'\nthree', b''],
    'readline()': [b'one\n', b'two\n', b'\n', b'three'],
    'readline(2)': [b'on', b'e\n'],
    'readlines()': [b'one\n', b'two\n', b'\n', b'three'],
    'iteration': [b'one\n', b'two\n', b'\n', b'three'],
}


@pytest.mark.parametrize('how', READS)
@pytest.mark.parametrize(
    'build',
    [
        lambda: b'one\ntwo\n\nthree',
        lambda: Output([b'one\ntw', b'o\n\nthree'], 14),
        lambda: ChunkedOutput([b'one\ntw', b'o', b'\n\nthree', b'']),
    ],
    ids=['small', 'long', 'chunked'],
)
def test_a_body_can_be_read_in_every_way(serve_wsgi, how, build):
    def app(environ, start_response):
        found.extend(READS[how](environ['wsgi.input']))
        start_response('200 OK', [('Content-Type', 'text/plain')])
        return [b'']

    found = []
    with Client(serve_wsgi(validator(app))).connect() as conn:
        conn.post('/', {}, build()).body.read()
    assert found == RESULTS[how]


@pytest.mark.parametrize('body', [None, b''], ids=['none', 'empty'])
def test_no_body_is_an_empty_one(serve_wsgi, body):
    def app(environ, start_response):
        found.append(environ['wsgi.input'].read(-1))
        start_response('200 OK', [('Content-Type', 'text/plain')])
        return [b'']

    found = []
    with Client(serve_wsgi(validator(app))).connect() as conn:
        conn.post('/', {}, body).body.read()
    assert found == [b'']


@pytest.mark.parametrize(
    ('framing', 'first', 'rest'),
    [
        (b'content-length: 8', b'one\n', b'two\n'),
        (b'transfer-encoding: chunked', b'4\r\none\n\r\n', b'4\r\ntwo\n\r\n0\r\n\r\n'),
    ],
    ids=['length', 'chunked'],
)
def test_a_line_can_be_read_before_the_rest_is_sent(serve_wsgi, dial, framing, first, rest):
    def app(environ, start_response):
        assert environ['wsgi.input'].readline() == b'one\n'
        is_read.set()
        start_response('200 OK', [('Content-Type', 'text/plain')])
        return [environ['wsgi.input'].read(-1)]

    is_read = threading.Event()
    peer = dial(serve_wsgi(validator(app)))
    peer.send(b'POST / HTTP/1.1\r\n' + framing + b'\r\nconnection: close\r\n\r\n' + first)
    assert is_read.wait(TIMEOUT_S)
    peer.send(rest)
    assert b'two\n' in peer.read_to_end()


BROKEN_BODIES = pytest.mark.parametrize(
    'body',
    [
        b'content-length: 5\r\n\r\nhel',
        b'transfer-encoding: chunked\r\n\r\n5\r\nhel',
        b'transfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n',
    ],
    ids=['short', 'short chunk', 'malformed chunk'],
)


@BROKEN_BODIES
def test_a_body_that_breaks_off_is_an_os_error_and_never_looks_complete(serve_wsgi, dial, body):
    def app(environ, start_response):
        for _ in range(2):
            with pytest.raises(OSError, match='the request body cannot be read: '):
                environ['wsgi.input'].read()
        start_response('400 Bad Request', [])
        return [b'was told twice']

    peer = dial(serve_wsgi(app))
    peer.send(b'POST / HTTP/1.1\r\n' + body)
    peer.end()
    assert peer.read_to_end().endswith(b'was told twice')


def read_first(environ, start_response):
    start_response('200 OK', [])
    return [environ['wsgi.input'].read()]


def read_later(environ, start_response):
    start_response('200 OK', [])
    yield b'first'
    yield environ['wsgi.input'].read()


@BROKEN_BODIES
@pytest.mark.parametrize('app', [read_first, read_later])
def test_a_body_that_breaks_off_is_not_logged_as_the_application_s_error(
    serve_wsgi, dial, caplog, body, app
):
    peer = dial(serve_wsgi(app))
    peer.send(b'POST / HTTP/1.1\r\n' + body)
    peer.end()
    answer = peer.read_to_end()
    assert b' 500 ' not in answer
    if app is read_first and b'+5' in body:
        assert answer.startswith(b'HTTP/1.1 400 ')
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []
