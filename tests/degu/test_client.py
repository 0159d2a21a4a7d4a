"""What the client sends, what it takes for a response, and when a connection is over."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import os
import re
import select
import socket
import ssl
import threading
import time
import weakref

import pytest

from degu import IPv4_LOOPBACK, IPv6_LOOPBACK
from degu.bodies import ChunkedInput, ChunkedOutput, FileOutput, Input, Output
from degu.channel import LOOK_INTERVAL_S
from degu.client import (
    Client,
    Response,
    SSLClient,
    build_client_sslctx,
    create_client,
    create_sslclient,
)
from degu.errors import (
    BodyClosedError,
    BodyTooLargeError,
    ClosedConnectionError,
    OverFlowError,
    PeerRejectedError,
    PeerTimeoutError,
    ProtocolError,
    UnconsumedResponseError,
    UnderFlowError,
)
from degu.net import Deadline
from degu.rgi import ContentRange, Range, Validator
from degu.server import build_server_sslctx

SHORT_S = 0.25
LATE_S = 3.0
MIB = 1024 * 1024
OK = b'HTTP/1.1 200 OK\r\n\r\n'


def ok(connection, request):
    return 200, 'OK', {}, None


def echo(connection, request):
    body = request['body']
    return 200, 'OK', {}, None if body is None else body.read()


def answering(*answers):
    """Build a script that answers one request after the other on each connection."""

    def handle(raw):
        for answer in answers:
            raw.read_preamble()
            raw.send(answer)
        raw.end()
        raw.sock.recv(65536)

    return handle


@pytest.mark.parametrize('method', ['GET', 'HEAD'])
def test_bytes_behind_a_response_without_a_body_are_refused_at_once(script, method):
    conn = Client(script(answering(OK + b'hello')).address).connect()
    with conn, pytest.raises(ProtocolError, match='must have a length or be chunked'):
        conn.request(method, '/')


# --- where and how to connect --------------------------------------------------------------------


@pytest.mark.parametrize(
    ('address', 'error'),
    [
        (None, TypeError),
        (17, TypeError),
        (['127.0.0.1', 80], TypeError),
        (('127.0.0.1',), ValueError),
        (('127.0.0.1', 80, 0), ValueError),
        (('127.0.0.1', '80'), TypeError),
        (('127.0.0.1', 65536), ValueError),
        ((b'127.0.0.1', 80), TypeError),
        ('relative/path', ValueError),
        ('/not/../normal', ValueError),
        (b'no NUL', ValueError),
    ],
)
def test_an_address_that_cannot_be_is_refused_by_name(address, error):
    with pytest.raises(error, match=re.escape(repr(address))):
        Client(address)


@pytest.mark.parametrize('name', ['timeout_s', 'connect_timeout_s'])
@pytest.mark.parametrize(
    ('value', 'error'),
    [('1', TypeError), (True, TypeError), (0, ValueError), (-1, ValueError), (1e999, ValueError)],
)
def test_a_timeout_that_cannot_be_is_refused(name, value, error):
    with pytest.raises(error, match=f'^{name} must be'):
        Client(IPv4_LOOPBACK, **{name: value})


def test_a_client_holds_no_socket_and_serves_many_threads(serve):
    client = Client(serve(Validator(echo)).address)
    failures = []

    def use(number):
        with client.connect() as conn:
            for _ in range(20):
                if conn.put('/', None, b'%d' % number).body.read() != b'%d' % number:
                    failures.append(number)

    threads = [threading.Thread(target=use, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert repr(client) == f'Client({client.address!r})'


@pytest.mark.parametrize('kind', ['ipv4', 'name', 'ipv6', 'path', 'abstract'])
def test_every_form_of_address_reaches_its_server(serve, tmp_path, kind):
    address = {
        'ipv4': IPv4_LOOPBACK,
        'name': IPv4_LOOPBACK,
        'ipv6': IPv6_LOOPBACK,
        'path': str(tmp_path / 'socket'),
        'abstract': b'\0degu-test-client-%d' % os.getpid(),
    }[kind]
    server = serve(Validator(ok), address)
    where = ('localhost', server.address[1]) if kind == 'name' else server.address
    with Client(where).connect() as conn:
        assert conn.get('/') == (200, 'OK', {}, None)


def test_an_ipv6_address_is_no_name():
    with pytest.raises(ValueError, match="IPv6 address, not 'localhost'"):
        Client(('localhost', 80, 0, 0))


def test_who_does_not_listen_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        Client(str(tmp_path / 'socket')).connect()


def test_connecting_has_its_time():
    """A full backlog answers nobody."""
    with socket.create_server(IPv4_LOOPBACK, backlog=0) as listener:
        client = Client(listener.getsockname(), connect_timeout_s=SHORT_S)
        conns = []
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            conns.extend(client.connect() for _ in range(10))
        assert SHORT_S <= time.monotonic() - started < SHORT_S + LATE_S
        for conn in conns:
            conn.close()


@pytest.mark.parametrize('kind', ['unix', 'tcp', 'tls'])
def test_connecting_ends_at_a_deadline_that_is_sooner_than_the_clients_time(
    temp_pki, tmp_path, kind
):
    """Two of them queue up, and nobody answers: not the connection, not the handshake."""
    address = str(tmp_path / 'socket') if kind == 'unix' else IPv4_LOOPBACK
    conns = []
    with socket.socket(socket.AF_UNIX if kind == 'unix' else socket.AF_INET) as listener:
        listener.bind(address)
        listener.listen(0)
        client = Client(listener.getsockname())
        if kind == 'tls':
            client = SSLClient(
                build_client_sslctx(temp_pki.get_client_config()), listener.getsockname()
            )
        deadline = Deadline(SHORT_S)
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            conns.extend(client.connect(deadline) for _ in range(10))
        assert not deadline.remaining()
        assert time.monotonic() - started < SHORT_S + LATE_S
        with pytest.raises(TimeoutError):
            client.connect(deadline)
        assert time.monotonic() - started < SHORT_S + LATE_S
    for conn in conns:
        conn.close()


def test_the_clients_time_holds_beside_a_later_deadline(temp_pki):
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    with socket.create_server(IPv4_LOOPBACK) as listener:
        client = SSLClient(sslctx, listener.getsockname(), connect_timeout_s=SHORT_S)
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            client.connect(Deadline(3 * LATE_S))
        assert SHORT_S <= time.monotonic() - started < SHORT_S + LATE_S


@pytest.mark.parametrize(('timeout_s', 'expected'), [(None, 10.0), (60.0, 10.0), (7.0, 7.0)])
def test_connecting_has_ten_seconds_or_less_unless_told_otherwise(timeout_s, expected):
    options = {} if timeout_s is None else {'timeout_s': timeout_s}
    assert Client(IPv4_LOOPBACK, **options).connect_timeout_s == expected
    assert Client(IPv4_LOOPBACK, **options, connect_timeout_s=42).connect_timeout_s == 42


def test_a_tls_handshake_has_its_time_in_total(temp_pki):
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    with socket.create_server(IPv4_LOOPBACK) as listener:
        client = SSLClient(sslctx, listener.getsockname(), connect_timeout_s=SHORT_S)
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            client.connect()
        assert SHORT_S <= time.monotonic() - started < SHORT_S + LATE_S


# --- what is sent --------------------------------------------------------------------------------


@pytest.fixture
def sent(script):
    """Give `sent(use, **options)`: what `use(connection)` sends, its requests all answered OK."""

    def run(use, *, answer=OK, **options):
        received = []
        done = threading.Event()

        def handle(raw):
            raw.send(answer)
            while data := raw.sock.recv(65536):
                received.append(data)
            done.set()

        # The answer is there before its request: only what one request sends can be looked at.
        server = script(handle)
        with Client(server.address, **options).connect() as conn:
            use(conn)
        assert done.wait(LATE_S)
        return b''.join(received)

    return run


@pytest.mark.parametrize(
    ('use', 'expected'),
    [
        (lambda c: c.request('GET', '/'), b'GET / HTTP/1.1\r\n\r\n'),
        (lambda c: c.get('/a/b?c'), b'GET /a/b?c HTTP/1.1\r\n\r\n'),
        (lambda c: c.head('/', {'a': 'b'}), b'HEAD / HTTP/1.1\r\na: b\r\n\r\n'),
        (lambda c: c.delete('/', {'a': 'b'}), b'DELETE / HTTP/1.1\r\na: b\r\n\r\n'),
        (
            lambda c: c.get('/', {'range': Range(1, 3)}),
            b'GET / HTTP/1.1\r\nrange: bytes=1-2\r\n\r\n',
        ),
        (lambda c: c.put('/'), b'PUT / HTTP/1.1\r\n\r\n'),
        (lambda c: c.post('/', None, b''), b'POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n'),
        (
            lambda c: c.put('/', {'a': 'b'}, b'hello'),
            b'PUT / HTTP/1.1\r\na: b\r\ncontent-length: 5\r\n\r\nhello',
        ),
        (
            lambda c: c.put('/', {'content-length': 5}, bytearray(b'hello')),
            b'PUT / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello',
        ),
        (
            lambda c: c.put('/', {}, Output([b'he', b'llo'], 5)),
            b'PUT / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello',
        ),
        (
            lambda c: c.put('/', {}, FileOutput(io.BytesIO(b'hello'), 5)),
            b'PUT / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello',
        ),
        (
            lambda c: c.put('/', {}, ChunkedOutput([b'he', (b'a=b', b'llo'), b''])),
            b'PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n'
            b'2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\n\r\n',
        ),
        (
            lambda c: c.put('/', {'content-range': ContentRange(0, 5, 9)}, b'hello'),
            b'PUT / HTTP/1.1\r\ncontent-range: bytes 0-4/9\r\ncontent-length: 5\r\n\r\nhello',
        ),
    ],
)
def test_a_request_is_sent_like_this_and_nothing_is_added(sent, use, expected):
    assert sort_headers(sent(use)) == sort_headers(expected)


def sort_headers(data):
    """The order of the headers is nobody's business."""
    preamble, empty_line, rest = data.partition(b'\r\n\r\n')
    first, *headers = preamble.split(b'\r\n')
    return first, sorted(headers), empty_line, rest


def test_a_buffered_reader_is_sent_as_a_file_from_its_position(sent, tmp_path):
    path = tmp_path / 'content'
    path.write_bytes(b'..hello')
    with path.open('rb') as fp:
        fp.read(2)
        expected = b'PUT / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello'
        assert sent(lambda c: c.put('/', None, fp)) == expected


def test_base_headers_go_with_each_request_and_the_request_s_own_win(sent):
    base = {'host': 'h', 'a': 'base'}
    options = {'base_headers': base, 'answer': b'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n'}
    expected = b'GET / HTTP/1.1\r\nhost: h\r\na: own\r\nc: d\r\n\r\n'
    assert sent(lambda c: c.get('/', {'a': 'own', 'c': 'd'}), **options) == expected
    assert sent(lambda c: c.get('/'), **options) == (
        b'GET / HTTP/1.1\r\nhost: h\r\na: base\r\n\r\n'
    )


def test_base_headers_are_copied(sent):
    base = {'a': 'b'}
    client = Client(IPv4_LOOPBACK, base)
    base['c'] = 'd'
    assert client.base_headers == {'a': 'b'}


@pytest.mark.parametrize('body', [None, b'hello', ChunkedOutput([b''])])
def test_the_caller_s_headers_are_not_modified(serve, body):
    headers = {'a': 'b'}
    with Client(serve(Validator(echo)).address, {'c': 'd'}).connect() as conn:
        conn.put('/', headers, body)
    assert headers == {'a': 'b'}


def used_up():
    body = Output([b'x'], 1)
    list(body)
    return body


@pytest.fixture
def refuse(script):
    """Give `refuse(*arguments, error=ValueError)`: a request that must fail with nothing sent."""

    def run(*arguments, error=ValueError, **options):
        received = []
        done = threading.Event()

        def handle(raw):
            received.append(raw.sock.recv(65536))
            done.set()

        with Client(script(handle).address, **options).connect() as conn:
            with pytest.raises(error):
                conn.request(*arguments)
            assert conn.closed
            assert done.wait(LATE_S)
            with pytest.raises(ClosedConnectionError):
                conn.get('/')
        assert received == [b'']

    return run


@pytest.mark.parametrize('method', ['GET', 'PUT'])
def test_nothing_is_sent_with_a_header_outside_the_grammar(refuse, unsendable_headers, method):
    _, headers, error = unsendable_headers
    refuse(method, '/', headers, error=error)


def test_base_headers_outside_the_grammar_are_refused_at_once(unsendable_headers):
    _, headers, error = unsendable_headers
    with pytest.raises(error):
        Client(IPv4_LOOPBACK, headers)


@pytest.mark.parametrize(
    'method',
    [
        pytest.param('get', id='lower_case'),
        pytest.param('PATCH', id='another'),
        pytest.param('', id='empty'),
        pytest.param('GET\r\n', id='crlf'),
        pytest.param('GET / HTTP/1.1\r\n\r\nGET', id='request'),
        pytest.param('GET\n', id='lf'),
        pytest.param('GET ', id='space'),
        pytest.param(b'GET', id='bytes'),
        pytest.param(None, id='none'),
    ],
)
def test_nothing_is_sent_with_another_method(refuse, method):
    refuse(method, '/')


@pytest.mark.parametrize(
    'uri',
    [
        pytest.param('', id='empty'),
        pytest.param('a', id='no_slash'),
        pytest.param('*', id='asterisk'),
        pytest.param('http://h/', id='absolute'),
        pytest.param('//', id='two_slashes'),
        pytest.param('/a//b', id='two_slashes_inside'),
        pytest.param('/a b', id='space'),
        pytest.param('/a#b', id='fragment'),
        pytest.param('/a?', id='empty_query'),
        pytest.param('/a\r\nb: c', id='crlf'),
        pytest.param('/a?b\r\nc: d', id='crlf_in_query'),
        pytest.param('/\r', id='cr'),
        pytest.param('/\n', id='lf'),
        pytest.param('/ HTTP/1.1\r\na: b\r\n\r\nGET /', id='request'),
        pytest.param('/\0', id='nul'),
        pytest.param('/\x7f', id='delete'),
        pytest.param('/caf\xe9', id='non_ascii'),
        pytest.param('/\u010d\u010a', id='what_folds_to_crlf'),
        pytest.param(b'/', id='bytes'),
        pytest.param(None, id='none'),
    ],
)
def test_nothing_is_sent_with_a_uri_outside_the_grammar(refuse, uri):
    refuse('GET', uri)


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        pytest.param(arguments, error, id=name)
        for name, error, *arguments in (
            ('get_empty', ValueError, 'GET', {}, b''),
            ('get_content_length_0', ValueError, 'GET', {'content-length': 0}),
            ('head', ValueError, 'HEAD', {}, b'x'),
            ('delete', ValueError, 'DELETE', {}, b'x'),
            ('too_short', ValueError, 'PUT', {'content-length': 5}, b'hell'),
            ('content_length_str', ValueError, 'PUT', {'content-length': '5'}, b'hello'),
            ('not_chunked', ValueError, 'PUT', {'transfer-encoding': 'chunked'}, b'hello'),
            ('gzip', ValueError, 'PUT', {'transfer-encoding': 'gzip'}, ChunkedOutput([b''])),
            ('chunked', ValueError, 'PUT', {'content-length': 5}, ChunkedOutput([b''])),
            ('text', TypeError, 'PUT', {}, 'text'),
            ('list', TypeError, 'PUT', {}, [b'x']),
            ('int', TypeError, 'PUT', {}, 17),
            ('used_up', BodyClosedError, 'PUT', {}, used_up()),
        )
    ],
)
def test_nothing_is_sent_with_a_body_that_cannot_be(refuse, arguments, error):
    method, *rest = arguments
    refuse(method, '/', *rest, error=error)


# --- what comes back -----------------------------------------------------------------------------


def test_a_response_is_a_namedtuple_with_exactly_this_repr(serve):
    server = serve(Validator(lambda c, r: (200, 'OK', {'x-msg': 'hello, world'}, None)))
    with Client(server.address).connect() as conn:
        response = conn.request('GET', '/')
        assert isinstance(response, Response)
        assert repr(response) == (
            "Response(status=200, reason='OK', headers={'x-msg': 'hello, world'}, body=None)"
        )
        status, reason, headers, body = response
        assert (status, reason, headers, body) == (200, 'OK', {'x-msg': 'hello, world'}, None)


@pytest.mark.parametrize(
    ('answer', 'expected'),
    [
        (b'HTTP/1.1 200 OK\r\n\r\n', (200, 'OK', {}, None)),
        (b'HTTP/1.1 599 A b!\r\n\r\n', (599, 'A b!', {}, None)),
        (b'HTTP/1.1 404 Caf\xe9\r\n\r\n', (404, 'Caf\xe9', {}, None)),
        (
            b'HTTP/1.1 200 OK\r\nX-MiXed: A, b\r\nServer: caf\xe9\r\n\r\n',
            (200, 'OK', {'x-mixed': 'A, b', 'server': 'caf\xe9'}, None),
        ),
        (b'HTTP/1.1 204 No Content\r\nA: b\r\n\r\n', (204, 'No Content', {'a': 'b'}, None)),
        (
            b'HTTP/1.1 206 P\r\nContent-Range: bytes 1-2/9\r\n\r\n',
            (206, 'P', {'content-range': ContentRange(1, 3, 9)}, None),
        ),
        (
            b'HTTP/1.1 304 Not Modified\r\nContent-Length: 17\r\n\r\n',
            (304, 'Not Modified', {'content-length': 17}, None),
        ),
    ],
)
@pytest.mark.parametrize('is_split', [False, True])
def test_a_response_without_a_body(script, answer, expected, is_split):
    def handle(raw):
        raw.read_preamble()
        if is_split:
            raw.send_each(answer[i : i + 1] for i in range(len(answer)))
        else:
            raw.send(answer)
        raw.sock.recv(1)

    with Client(script(handle).address).connect() as conn:
        assert conn.get('/') == expected


@pytest.mark.parametrize(
    ('framing', 'kind'),
    [
        (b'content-length: 5\r\n\r\nhello', Input),
        (b'transfer-encoding: chunked\r\n\r\n2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n', ChunkedInput),
    ],
)
@pytest.mark.parametrize('is_split', [False, True])
def test_a_response_with_a_body(script, framing, kind, is_split):
    answer = b'HTTP/1.1 200 OK\r\n' + framing

    def handle(raw):
        for _ in range(2):
            raw.read_preamble()
            if is_split:
                raw.send_each(answer[i : i + 1] for i in range(len(answer)))
            else:
                raw.send(answer)
        raw.sock.recv(1)

    with Client(script(handle).address).connect() as conn:
        for _ in range(2):
            body = conn.get('/').body
            assert isinstance(body, kind)
            assert body.read() == b'hello'


@pytest.mark.parametrize(
    'framing', [b'', b'content-length: 17\r\n', b'transfer-encoding: chunked\r\n']
)
def test_a_response_to_head_has_no_body_whatever_it_says(script, framing):
    answer = b'HTTP/1.1 200 OK\r\n' + framing + b'\r\n'
    with Client(script(answering(answer, answer)).address).connect() as conn:
        for _ in range(2):
            assert conn.head('/').body is None


SPLITS = {
    'whole': lambda data: [data],
    'lines': lambda data: re.findall(rb'[\r\n]|[^\r\n]{1,1000}', data),
    'bytes': lambda data: (
        re.findall(rb'(?s).', data[:200]) + re.findall(rb'(?s).{1,1000}', data[200:])
    ),
}


@pytest.mark.parametrize('split', SPLITS)
def test_a_malformed_response_is_a_protocol_error_and_ends_the_connection(
    script, refused_response, split
):
    def handle(raw):
        raw.read_preamble()
        raw.send_each(SPLITS[split](refused_response.data + b'\r\n\r\n'))
        raw.end()

    with Client(script(handle).address).connect() as conn:
        with pytest.raises(ProtocolError):
            conn.get('/')
        assert conn.closed
        with pytest.raises(ClosedConnectionError):
            conn.get('/')


def test_a_response_that_is_taken_is_what_the_caller_gets(script, taken_response):
    answer = taken_response.data + b'\r\n\r\n'
    with Client(script(answering(answer)).address).connect() as conn:
        *start, body = conn.get('/')
    assert tuple(start) == taken_response.expected
    headers = taken_response.expected[2]
    assert [type(v) for v in start[2].values()] == [type(v) for v in headers.values()]
    has_body = start[0] not in (204, 304) and (
        'content-length' in headers or 'transfer-encoding' in headers
    )
    assert (body is not None) == has_body


def chunked(data):
    """Build a response with a chunked body, and a response behind it."""
    return b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n' + data + OK


@pytest.mark.parametrize('split', SPLITS)
def test_a_malformed_chunk_is_a_protocol_error_and_ends_the_connection(
    script, refused_chunks, split
):
    def handle(raw):
        raw.read_preamble()
        raw.send_each(SPLITS[split](chunked(refused_chunks.data)))
        raw.end()

    with Client(script(handle).address).connect() as conn:
        body = conn.get('/').body
        with pytest.raises(ProtocolError):
            body.read()
        with pytest.raises(BodyClosedError):
            body.readchunk()
        with pytest.raises(ClosedConnectionError):
            conn.get('/')


def test_chunks_that_are_taken_are_what_the_caller_reads(script, taken_chunks):
    answer = chunked(taken_chunks.data).removesuffix(OK)
    with Client(script(answering(answer, OK)).address).connect() as conn:
        body = conn.get('/').body
        chunks = [(body.extension, data) for data in body]
        assert [chunk for chunk in chunks if chunk[1]] == taken_chunks.expected
        assert conn.get('/').status == 200


@pytest.mark.parametrize(
    ('answer', 'error'),
    [
        (b'', ClosedConnectionError),
        (b'HTTP/1.1 200', ClosedConnectionError),
        (b'HTTP/1.1 200 OK\r\n', ClosedConnectionError),
        (b'HTTP/1.1 200 OK\r\n\r', ClosedConnectionError),
    ],
)
def test_an_end_inside_a_preamble_is_no_response(script, answer, error):
    client = Client(script(answering(answer)).address, timeout_s=LATE_S)
    with client.connect() as conn:
        with pytest.raises(error):
            conn.get('/')
        assert conn.closed


def test_a_body_that_ends_with_the_connection_is_refused(script):
    """It could be cut short and nobody would know."""
    answer = b'HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello'
    with (
        Client(script(answering(answer)).address).connect() as conn,
        pytest.raises(ProtocolError, match='must have a length or be chunked'),
    ):
        conn.get('/')


@pytest.mark.parametrize(
    'body', [b'', b'HTTP/1.1 200 OK\r\nx: forged\r\n\r\n'], ids=['empty', 'body']
)
def test_to_a_generic_server_a_response_without_framing_ends_with_the_connection(script, body):
    """However late its body comes: it must never become the next response."""

    def handle(raw):
        raw.read_preamble()
        raw.send_each([OK])
        time.sleep(SHORT_S / 5)  # a server that takes its time
        raw.send(body)
        raw.end()
        raw.sock.recv(65536)

    with Client(script(handle).address, {'host': 'h'}).connect() as conn:
        if body:
            with pytest.raises(ProtocolError, match='must have a length or be chunked'):
                conn.get('/')
        else:
            assert conn.get('/') == (200, 'OK', {}, None)
        with pytest.raises(ClosedConnectionError):
            conn.get('/')


@pytest.mark.parametrize(
    ('framing', 'received', 'expected'),
    [
        (b'content-length: 5\r\n\r\nhel', 3, 5),
        (b'transfer-encoding: chunked\r\n\r\n', 0, None),
        (b'transfer-encoding: chunked\r\n\r\n5\r\nhel', 3, 5),
    ],
    ids=['length', 'no_chunk', 'chunk'],
)
def test_a_body_that_ends_early_is_an_underflow_and_ends_the_connection(
    script, framing, received, expected
):
    answer = b'HTTP/1.1 200 OK\r\n' + framing
    with Client(script(answering(answer)).address).connect() as conn:
        body = conn.get('/').body
        with pytest.raises(UnderFlowError) as caught:
            body.read()
        assert (caught.value.received, caught.value.expected) == (received, expected)
        with pytest.raises(BodyClosedError):
            body.read()
        with pytest.raises(ClosedConnectionError):
            conn.get('/')


@pytest.mark.parametrize(
    ('framing', 'use', 'error'),
    [
        pytest.param(b'content-length: 5\r\n\r\nhel', Input.read, UnderFlowError, id='read'),
        pytest.param(b'content-length: 5\r\n\r\nhel', list, UnderFlowError, id='iterate'),
        pytest.param(
            b'content-length: 5\r\n\r\nhel',
            lambda body: body.readinto(bytearray(5)),
            UnderFlowError,
            id='readinto',
        ),
        pytest.param(
            b'transfer-encoding: chunked\r\n\r\n5\r\nhel',
            ChunkedInput.readchunk,
            UnderFlowError,
            id='readchunk',
        ),
        pytest.param(
            b'transfer-encoding: chunked\r\n\r\nxyz\r\n',
            ChunkedInput.read,
            ProtocolError,
            id='malformed',
        ),
        pytest.param(
            b'transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n',
            lambda body: body.read(4),
            BodyTooLargeError,
            id='too_large',
        ),
    ],
)
def test_a_body_that_fails_ends_its_connection_at_once(script, framing, use, error):
    """Without the collector, which may come much later."""
    ended = threading.Event()

    def handle(raw):
        raw.read_preamble()
        raw.send(b'HTTP/1.1 200 OK\r\n' + framing)
        raw.end()
        assert raw.sock.recv(1) == b''
        ended.set()

    gc.disable()
    try:
        conn = Client(script(handle).address).connect()
        body = conn.get('/').body
        with pytest.raises(error):
            use(body)
        assert conn.closed
        with pytest.raises(ClosedConnectionError):
            _ = conn.peer_certificate
        with pytest.raises(ClosedConnectionError):
            conn.get('/')
        assert ended.wait(LATE_S)
    finally:
        gc.enable()


# --- one request after the other -----------------------------------------------------------------


@pytest.mark.parametrize(
    'framing',
    [
        b'content-length: 5\r\n\r\nhello',
        b'transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n',
    ],
)
def test_a_request_before_the_last_response_was_read_is_refused_and_nothing_is_lost(
    script, framing
):
    answer = b'HTTP/1.1 200 OK\r\n' + framing
    with Client(script(answering(answer, OK)).address).connect() as conn:
        body = conn.get('/').body
        for _ in range(2):
            with pytest.raises(UnconsumedResponseError) as caught:
                conn.get('/')
            assert caught.value.body is body
        assert body.read() == b'hello'
        assert conn.get('/').status == 200


def test_an_empty_body_need_not_be_read(script):
    answer = b'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n'
    with Client(script(answering(answer, OK)).address).connect() as conn:
        assert conn.get('/').body.content_length == 0
        assert conn.get('/').status == 200


@pytest.mark.parametrize('method', ['read', 'iterate'])
def test_what_is_left_of_a_body_that_was_too_large_never_becomes_a_response(script, method):
    """Else a file's content could answer the next request."""
    inside = b'HTTP/1.1 200 OK\r\nx: forged\r\n\r\n'
    answer = (
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n'
        b'5\r\nhello\r\n' + inside + b'0\r\n\r\n'
    )
    with Client(script(answering(answer, OK)).address).connect() as conn:
        body = conn.get('/').body
        if method == 'read':
            with pytest.raises(BodyTooLargeError):
                body.read(max_size=4)
        else:
            with pytest.raises(ProtocolError):
                list(body)
        with pytest.raises(ClosedConnectionError):
            conn.get('/')
        assert conn.closed


def test_what_comes_of_a_body_after_its_time_never_becomes_a_response(script):
    asked = threading.Event()

    def handle(raw):
        raw.read_preamble()
        raw.send(b'HTTP/1.1 200 OK\r\ncontent-length: 33\r\n\r\n')
        assert asked.wait(LATE_S)
        raw.send(b'HTTP/1.1 200 OK\r\nx: forged\r\n\r\n')
        raw.sock.recv(65536)

    with Client(script(handle).address, timeout_s=SHORT_S).connect() as conn:
        body = conn.get('/').body
        with pytest.raises(PeerTimeoutError):
            body.read()
        asked.set()
        with pytest.raises(ClosedConnectionError):
            conn.get('/')


@pytest.mark.parametrize(
    'answer',
    [
        OK + b'x',
        OK + OK,
        b'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n',
        b'HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\nhello',
    ],
    ids=['byte', 'response', 'after_an_empty_body', 'after_304'],
)
def test_bytes_after_a_response_are_never_the_next_one(script, answer):
    with Client(script(answering(answer, OK)).address).connect() as conn:
        with pytest.raises(ProtocolError, match=r'no answer to a request|must have a length'):  # noqa: PT012  # the first or the second
            conn.get('/')
            conn.get('/')
        assert conn.closed


@pytest.mark.parametrize(
    ('headers', 'answer'),
    [
        ({}, b'HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 0\r\n\r\n'),
        ({}, b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n'),
        ({'connection': 'close'}, b'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n'),
        ({'connection': 'close'}, b'HTTP/1.1 200 OK\r\n\r\n'),
    ],
    ids=['response', 'response_unframed', 'request', 'request_unframed'],
)
def test_connection_close_on_either_side_ends_it_after_the_response(script, headers, answer):
    with Client(script(answering(answer)).address).connect() as conn:
        assert conn.get('/', headers).status == 200
        with pytest.raises(ClosedConnectionError, match='closed the connection after its last'):
            conn.get('/')
        assert conn.closed


def test_a_server_that_closed_in_the_meantime_is_a_closed_connection(script):
    with Client(script(answering(OK)).address).connect() as conn:
        conn.get('/')
        with pytest.raises((ClosedConnectionError, ConnectionError)):
            conn.get('/')
        assert conn.closed


def test_an_answer_that_comes_while_the_body_is_still_sent_is_the_response(serve):
    """The server does not read the body; what it says is worth more than a reset."""

    def app(connection, request):
        return 403, 'Forbidden', {'connection': 'close'}, b'no'

    with Client(serve(Validator(app)).address, timeout_s=LATE_S).connect() as conn:
        response = conn.put('/', None, Output([bytes(MIB)] * 64, 64 * MIB))
        assert response[:2] == (403, 'Forbidden')
        assert response.body.read() == b'no'
        with pytest.raises(ClosedConnectionError):
            conn.get('/')


def paced(pieces=None):
    """Give pieces so slowly that there is a look before each."""
    for piece in itertools.repeat(b'x') if pieces is None else pieces:
        time.sleep(2 * LOOK_INTERVAL_S)
        yield piece


@pytest.fixture(params=[False, True], ids=['unix', 'tls'])
def upload(request, script, temp_pki):
    """Give `upload(handle, source)`: an open connection, and a body that ends with its answer."""
    with contextlib.ExitStack() as stack:

        def start(handle, source):
            if request.param:
                server = script(handle, build_server_sslctx(temp_pki.get_server_config()))
                sslctx = build_client_sslctx(temp_pki.get_client_config())
                client = SSLClient(sslctx, server.address)
            else:
                client = Client(script(handle).address)
            conn = stack.enter_context(client.connect())
            conn.set_deadline(Deadline(LATE_S))
            return conn, ChunkedOutput(conn.until_answered(source))

        yield start


CHUNKS = b'3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n'
CHUNKED_OK = b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n'


def test_an_answer_ends_a_body_between_two_pieces(upload):
    rest = []

    def handle(raw):
        raw.read_preamble()
        raw.read(1)
        raw.send(CHUNKED_OK)
        raw.send(b'2\r\nno\r\n')
        rest.append(raw.read_to_end())

    conn, body = upload(handle, paced())
    response = conn.post('/', None, body)
    assert response.body.readchunk() == b'no'
    with pytest.raises(UnderFlowError):  # the server read to the end of what we send, and ended
        response.body.readchunk()
    assert not rest[0].endswith(b'0\r\n\r\n')


def test_an_answer_ends_a_body_whose_piece_nobody_reads(upload):
    was_read = threading.Event()

    def handle(raw):
        raw.read_preamble()
        raw.send(CHUNKED_OK)
        raw.send(b'2\r\nno\r\n0\r\n\r\n')
        was_read.wait(2 * LATE_S)

    conn, body = upload(handle, itertools.repeat(bytes(16 * MIB)))
    response = conn.post('/', None, body)
    assert response.body.read() == b'no'
    was_read.set()
    with pytest.raises(ClosedConnectionError, match='after its last response'):
        conn.get('/')


def test_a_preamble_ahead_of_the_answer_does_not_end_a_body(script):
    """Our own server sends one before its application has looked at the request's body."""
    has_answered = threading.Event()
    received = []

    def handle(raw):
        raw.read_preamble()
        raw.send(CHUNKED_OK)
        has_answered.set()
        received.append(raw.read(len(CHUNKS)))
        raw.send(b'0\r\n\r\n')

    def pieces():
        assert has_answered.wait(LATE_S)
        yield from paced((b'one', b'two', b''))

    with Client(script(handle).address).connect() as conn:
        response = conn.post('/', None, ChunkedOutput(conn.until_answered(pieces())))
        assert response.body.read() == b''
    assert received == [CHUNKS]


def read_for_ever(raw):
    while raw.sock.recv(MIB):
        pass


def test_a_deadline_ends_a_body_that_never_waits(upload):
    conn, body = upload(read_for_ever, paced())
    conn.set_deadline(Deadline(SHORT_S))
    started = time.monotonic()
    with pytest.raises(PeerTimeoutError, match='a deadline'):
        conn.post('/', None, body)
    assert SHORT_S <= time.monotonic() - started < LATE_S
    assert conn.closed


def test_an_answer_without_an_end_to_its_preamble_ends_a_body(upload):
    def handle(raw):
        raw.read_preamble()
        raw.send(b'HTTP/1.1 200 OK\r\na: ' + b'x' * 100_000)
        read_for_ever(raw)

    conn, body = upload(handle, paced())
    with pytest.raises(ProtocolError, match='a preamble is at most'):
        conn.post('/', None, body)


def test_a_rejection_while_a_body_is_sent_names_its_alert(serve, temp_pki):
    server = serve(ok, sslctx=build_server_sslctx(temp_pki.get_server_config()))
    sslctx = build_client_sslctx(temp_pki.get_anonymous_client_config())
    is_refused = threading.Event()

    def pieces():
        poller = select.poll()
        poller.register(conn._channel.sock, select.POLLRDHUP)
        assert poller.poll(LATE_S * 1000)
        is_refused.set()
        yield from paced((b'x',))

    with (
        SSLClient(sslctx, server.address).connect() as conn,
        pytest.raises(PeerRejectedError) as caught,
    ):
        conn.post('/', None, ChunkedOutput(conn.until_answered(pieces())))
    assert is_refused.is_set()
    assert caught.value.alert == 'certificate_required'


def test_a_body_that_ends_with_the_answer_needs_an_open_connection(serve):
    conn = Client(serve(ok).address).connect()
    conn.close()
    with pytest.raises(ClosedConnectionError):
        conn.until_answered([b''])


@pytest.mark.parametrize(
    ('build', 'error'),
    [
        (lambda: Output([b'hel'], 5), UnderFlowError),
        (lambda: Output([b'hel', b'lo!'], 5), OverFlowError),
        (lambda: ChunkedOutput([b'hel']), UnderFlowError),
        (lambda: ChunkedOutput([b'hel', b'', b'lo']), OverFlowError),
        (lambda: ChunkedOutput([(b'bad', b'hel'), b'']), ValueError),
        (lambda: FileOutput(io.BytesIO(b'hel'), 5), UnderFlowError),
    ],
    ids=[
        'output_short',
        'output_long',
        'chunked_no_end',
        'chunked_after_end',
        'chunked_extension',
        'file_short',
    ],
)
def test_a_request_body_that_fails_ends_the_connection(script, build, error):
    received = []
    done = threading.Event()

    def handle(raw):
        received.append(raw.read_to_end())
        done.set()

    with Client(script(handle).address).connect() as conn:
        with pytest.raises(error):
            conn.put('/', None, build())
        assert conn.closed
        assert done.wait(LATE_S)
    assert not received[0].endswith(b'lo!')


def test_a_write_that_fails_while_the_server_waits_for_more_ends_for_both(serve, tmp_path):
    """The kernel cannot read this file. The server would wait for it, and the client for both."""
    received = []

    def app(connection, request):
        try:
            received.append(request['body'].read())
        except UnderFlowError:
            received.append(None)
            raise

    server = serve(app)
    with Client(server.address).connect() as conn, (tmp_path / 'out').open('wb') as fp:
        started = time.monotonic()
        with pytest.raises(OSError, match='Bad file descriptor'):
            conn.put('/', None, FileOutput(fp, 5))
        assert time.monotonic() - started < LATE_S
        assert conn.closed
        assert received == [None]


# --- time limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize('has_tls', [False, True])
@pytest.mark.parametrize(
    ('answer', 'where'),
    [
        (b'', 'request'),
        (b'HTTP/1.1 200', 'request'),
        (b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel', 'body'),
        (b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n', 'body'),
        (b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel', 'body'),
    ],
    ids=['nothing', 'status_line', 'body', 'no_chunk', 'chunk'],
)
def test_each_wait_for_the_server_has_its_time(script, temp_pki, answer, where, has_tls):
    def handle(raw):
        raw.read_preamble()
        raw.send(answer)
        raw.sock.recv(65536)

    if has_tls:
        server = script(handle, build_server_sslctx(temp_pki.get_server_config()))
        sslctx = build_client_sslctx(temp_pki.get_client_config())
        client = SSLClient(sslctx, server.address, timeout_s=SHORT_S)
    else:
        client = Client(script(handle).address, timeout_s=SHORT_S)
    with client.connect() as conn:
        started = time.monotonic()
        with pytest.raises(PeerTimeoutError) as caught:
            conn.get('/').body.read()
        assert SHORT_S <= time.monotonic() - started < SHORT_S + LATE_S
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.timeout_s == SHORT_S
        with pytest.raises(ClosedConnectionError):
            conn.get('/')


def test_small_chunks_may_come_for_as_long_as_the_server_likes(script):
    """Events, one now and then: each wait has its time, not what they move."""

    def handle(raw):
        raw.read_preamble()
        raw.send(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n')
        for chunk in [b'1\r\nx\r\n'] * 15 + [b'0\r\n\r\n']:
            time.sleep(SHORT_S / 6)  # the time between two events
            raw.send(chunk)
        raw.sock.recv(1)

    with Client(script(handle).address, timeout_s=SHORT_S).connect() as conn:
        assert conn.get('/').body.read() == b'x' * 15


def test_a_chunk_may_take_longer_than_all_else_where_the_caller_says_so(script):
    def handle(raw):
        raw.read_preamble()
        raw.send(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n')
        time.sleep(SHORT_S * 2)
        raw.send(b'1\r\nx\r\n0\r\n\r\n')
        raw.sock.recv(1)

    with Client(script(handle).address, timeout_s=SHORT_S).connect() as conn:
        conn.set_chunk_timeout(20)
        assert conn.get('/').body.read() == b'x'


@pytest.mark.parametrize('has_tls', [False, True])
def test_a_server_that_does_not_read_has_its_time(script, temp_pki, has_tls):
    end = threading.Event()

    def handle(raw):
        assert end.wait(LATE_S * 2)

    if has_tls:
        server = script(handle, build_server_sslctx(temp_pki.get_server_config()))
        sslctx = build_client_sslctx(temp_pki.get_client_config())
        client = SSLClient(sslctx, server.address, timeout_s=SHORT_S)
    else:
        client = Client(script(handle).address, timeout_s=SHORT_S)
    with client.connect() as conn:
        started = time.monotonic()
        with pytest.raises(PeerTimeoutError):
            conn.put('/', None, bytes(32 * MIB))
        assert SHORT_S <= time.monotonic() - started < SHORT_S + LATE_S
        assert conn.closed
    end.set()


def test_an_idle_connection_has_no_time_on_the_client_s_side(serve):
    with Client(serve(Validator(ok)).address, timeout_s=SHORT_S).connect() as conn:
        conn.get('/')
        time.sleep(SHORT_S * 2)  # longer than any wait may take
        assert conn.get('/').status == 200


def test_a_deadline_counts_beside_the_time_of_each_wait(script):
    def handle(raw):
        raw.read_preamble()
        raw.send(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n')
        with contextlib.suppress(ConnectionError):
            while True:
                raw.send(b'1\r\nx\r\n')
                time.sleep(SHORT_S / 20)  # as a source that never stops

    with Client(script(handle).address, timeout_s=LATE_S).connect() as conn:
        conn.set_deadline(Deadline(SHORT_S))
        body = conn.get('/').body
        with pytest.raises(PeerTimeoutError, match='a deadline'):
            body.read()
        assert conn.closed


def test_a_deadline_needs_an_open_connection(serve):
    conn = Client(serve(Validator(ok)).address).connect()
    conn.close()
    with pytest.raises(ClosedConnectionError):
        conn.set_deadline(Deadline(1))


# --- closing -------------------------------------------------------------------------------------


def test_close_may_come_twice_and_a_closed_connection_says_so(serve):
    conn = Client(serve(Validator(ok)).address).connect()
    assert not conn.closed
    conn.close()
    conn.close()
    assert conn.closed
    with pytest.raises(ClosedConnectionError):
        conn.get('/')
    with pytest.raises(ClosedConnectionError):
        _ = conn.peer_certificate


@pytest.mark.parametrize('has_tls', [False, True])
def test_another_thread_ends_a_request_that_waits(script, temp_pki, has_tls):
    was_asked = threading.Event()

    def handle(raw):
        for answer in (OK, b''):
            raw.read_preamble()
            raw.send(answer)
        was_asked.set()
        read_for_ever(raw)

    def interrupt():
        assert was_asked.wait(LATE_S)
        conn.interrupt()

    client = Client(script(handle).address) if not has_tls else None
    if client is None:
        server = script(handle, build_server_sslctx(temp_pki.get_server_config()))
        sslctx = build_client_sslctx(temp_pki.get_client_config())
        client = SSLClient(sslctx, server.address)
    with client.connect() as conn:
        conn.get('/')
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(ClosedConnectionError):
            conn.get('/')
        thread.join()
        assert conn.closed
        conn.interrupt()


def test_a_with_block_closes(serve):
    with Client(serve(Validator(ok)).address).connect() as conn:
        conn.get('/')
    assert conn.closed


def test_a_failed_request_keeps_nothing_of_its_caller(script):
    """Not even until the next garbage collection, although its frames had all of it."""
    gone = threading.Event()
    client = Client(script(lambda raw: raw.read_preamble()).address)

    def call():
        held = set()
        weakref.finalize(held, gone.set)
        with client.connect() as conn:
            try:
                conn.put('/', None, bytes(10 * MIB))
            except OSError:
                return held
        raise AssertionError('the server read it all')

    gc.disable()
    try:
        call()
        assert gone.is_set()
    finally:
        gc.enable()


def test_a_collected_connection_is_closed(script):
    ended = threading.Event()

    def handle(raw):
        raw.read_preamble()
        raw.send(OK)
        assert raw.sock.recv(1) == b''
        ended.set()

    conn = Client(script(handle).address).connect()
    conn.get('/')
    del conn
    assert ended.wait(LATE_S)


def test_an_unread_body_keeps_its_connection(serve):
    content = os.urandom(3 * MIB)
    client = Client(serve(lambda c, r: (200, 'OK', {}, content)).address)
    body = client.connect().get('/').body
    gc.collect()
    assert body.read() == content


# --- TLS -----------------------------------------------------------------------------------------


def test_a_rejection_that_comes_as_an_alert(serve, temp_pki):
    server = serve(ok, sslctx=build_server_sslctx(temp_pki.get_server_config()))
    sslctx = build_client_sslctx(temp_pki.get_anonymous_client_config())
    with SSLClient(sslctx, server.address).connect() as conn:
        with pytest.raises(PeerRejectedError) as caught:
            conn.get('/')
        assert isinstance(caught.value.__cause__, ssl.SSLError)
        assert isinstance(caught.value, ConnectionError)
        assert conn.closed


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')


@pytest.mark.parametrize('end', [lambda sock: None, reset])
def test_a_rejection_that_comes_as_an_end_or_a_reset(script, temp_pki, end):
    def handle(raw):
        raw.sock.recv(1)
        end(raw.sock)

    server = script(handle, build_server_sslctx(temp_pki.get_server_config()))
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    with SSLClient(sslctx, server.address).connect() as conn:
        with pytest.raises(PeerRejectedError):
            conn.get('/')
        assert conn.closed


@pytest.mark.parametrize(
    ('end', 'error'),
    [
        (lambda sock: None, ClosedConnectionError),
        # Some versions of OpenSSL tell a reset from an end, some do not.
        (reset, (ClosedConnectionError, ConnectionResetError)),
        (lambda sock: socket.socket.sendall(sock, b'not TLS'), ssl.SSLError),
    ],
)
def test_after_the_first_response_an_end_is_no_rejection(script, temp_pki, end, error):
    def handle(raw):
        raw.read_preamble()
        raw.send(OK)
        raw.read_preamble()
        end(raw.sock)

    server = script(handle, build_server_sslctx(temp_pki.get_server_config()))
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    with SSLClient(sslctx, server.address).connect() as conn:
        conn.get('/')
        with pytest.raises(error):
            conn.get('/')


def test_a_body_over_tls_cannot_be_cut_short_unnoticed(script, temp_pki):
    def handle(raw):
        raw.read_preamble()
        raw.send(b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel')

    server = script(handle, build_server_sslctx(temp_pki.get_server_config()))
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    with (
        SSLClient(sslctx, server.address).connect() as conn,
        pytest.raises((UnderFlowError, ssl.SSLError)),
    ):
        conn.get('/').body.read()


def test_the_peer_s_certificate_is_the_verified_one(serve, temp_pki):
    server = serve(Validator(ok), sslctx=build_server_sslctx(temp_pki.get_server_config()))
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    with (
        SSLClient(sslctx, server.address).connect() as conn,
        open(temp_pki.get_server_config()['cert_file']) as fp,
    ):
        assert conn.peer_certificate == ssl.PEM_cert_to_DER_cert(fp.read())
    with Client(serve(Validator(ok)).address).connect() as plain:
        assert plain.peer_certificate is None


def test_a_name_that_the_server_does_not_prove_is_refused(serve, temp_pki):
    """TempPKI's certificates have no name in them."""
    server = serve(ok, sslctx=build_server_sslctx(temp_pki.get_server_config()))
    config = temp_pki.get_client_config()
    del config['check_hostname']
    client = SSLClient(build_client_sslctx(config), server.address)
    with pytest.raises(ssl.SSLCertVerificationError, match=r'(?i)hostname|IP address mismatch'):
        client.connect()


@pytest.fixture
def names(script, temp_pki):
    """A TLS server's address, and the names that its clients asked for (SNI)."""
    seen = []
    sslctx = build_server_sslctx(temp_pki.get_server_config())
    sslctx.sni_callback = lambda sock, name, context: seen.append(name)
    return script(answering(OK), sslctx).address, seen


@pytest.mark.parametrize(
    ('host', 'asked'),
    [('example.test', 'example.test'), ('example.test:8443', 'example.test'), (None, None)],
)
def test_sni_is_the_host_header_s_name(names, temp_pki, host, asked):
    address, seen = names
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    headers = {} if host is None else {'host': host}
    with SSLClient(sslctx, address, headers).connect() as conn:
        assert conn.get('/').status == 200
    assert seen == [asked]


def test_sni_of_a_url_is_its_host(names, temp_pki):
    address, seen = names
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    with create_sslclient(sslctx, f'https://localhost:{address[1]}/').connect() as conn:
        assert conn.get('/').status == 200
    assert seen == ['localhost']


def test_a_name_to_check_needs_a_name(temp_pki, tmp_path):
    config = temp_pki.get_client_config() | {'check_hostname': True}
    with pytest.raises(ValueError, match='no host name to check'):
        SSLClient(build_client_sslctx(config), str(tmp_path / 'socket'))


@pytest.mark.parametrize(
    ('attributes', 'reason'),
    [
        ({'verify_mode': ssl.CERT_NONE}, 'verify_mode'),
        ({'minimum_version': ssl.TLSVersion.TLSv1_2}, 'minimum_version'),
        ({'verify_flags': ssl.VERIFY_DEFAULT}, 'verify_flags'),
        ({'options': ssl.OP_ALL}, 'options'),
    ],
)
def test_a_lax_context_is_refused_with_the_reason(temp_pki, attributes, reason):
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    for name, value in attributes.items():
        setattr(sslctx, name, value)
    with pytest.raises(ValueError, match=f'sslctx.{reason} must'):
        SSLClient(sslctx, IPv4_LOOPBACK)


def test_a_context_that_is_none_is_refused():
    with pytest.raises(TypeError, match=r'ssl\.SSLContext'):
        SSLClient(None, IPv4_LOOPBACK)


# --- URLs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('url', 'address', 'host'),
    [
        ('http://example.test', ('example.test', 80), 'example.test'),
        ('http://example.test/', ('example.test', 80), 'example.test'),
        ('http://example.test:8080', ('example.test', 8080), 'example.test:8080'),
        ('http://127.0.0.1:8080/', ('127.0.0.1', 8080), '127.0.0.1:8080'),
    ],
)
def test_create_client_takes_host_and_port_from_the_url(url, address, host):
    client = create_client(url, {'a': 'b'}, timeout_s=7)
    assert client.address == address
    assert client.base_headers == {'host': host, 'a': 'b'}
    assert client.timeout_s == client.connect_timeout_s == 7


def test_create_sslclient_takes_host_and_port_from_the_url(temp_pki):
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    client = create_sslclient(sslctx, 'https://example.test')
    assert isinstance(client, SSLClient)
    assert client.address == ('example.test', 443)
    assert client.base_headers == {'host': 'example.test'}
    assert client.server_hostname == 'example.test'
    assert client.sslctx is sslctx


def test_a_function_makes_the_context_of_each_connection(serve, temp_pki):
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    lax = build_client_sslctx(temp_pki.get_client_config())
    lax.verify_mode = ssl.CERT_NONE
    named = build_client_sslctx({**temp_pki.get_client_config(), 'check_hostname': True})
    server = serve(
        lambda c, r: (200, 'OK', {}, None),
        sslctx=build_server_sslctx(temp_pki.get_server_config()),
    )
    contexts = [lax, sslctx, sslctx]
    client = SSLClient(contexts.pop, server.address)
    for _ in range(2):
        with client.connect() as connection:
            assert connection.get('/').status == 200
    with pytest.raises(ValueError, match='verify_mode'):
        client.connect()
    with pytest.raises(ValueError, match='has no host name to check'):
        SSLClient(lambda: named, '/no/such/socket').connect()


@pytest.mark.parametrize(
    'url',
    [
        '',
        'example.test',
        'https://example.test',
        'ftp://example.test',
        'http:///path',
        'http://example.test/path',
        'http://example.test/?query',
        'http://example.test#fragment',
        'http://user@example.test',
        'http://user:secret@example.test',
        'http://example.test:port',
        'http://example.test:65536',
        'http://a b',
        'http://a\r\nb',
    ],
)
def test_another_kind_of_url_is_refused(url):
    with pytest.raises(ValueError):
        create_client(url)


def test_the_host_of_a_url_goes_with_each_request(serve):
    seen = []

    def app(connection, request):
        seen.append(request['headers'])
        return 200, 'OK', {}, None

    port = serve(Validator(app)).address[1]
    with create_client(f'http://localhost:{port}').connect() as conn:
        assert conn.get('/').body.read() == b''
    assert seen == [{'host': f'localhost:{port}'}]


# --- between requests ----------------------------------------------------------------------------


@pytest.mark.parametrize('is_tls', [False, True], ids=['plain', 'tls'])
@pytest.mark.parametrize(
    ('early', 'error', 'reason'),
    [
        pytest.param(
            b'HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n',
            ProtocolError,
            'no answer to a request',
            id='answer',
        ),
        pytest.param(b'', ClosedConnectionError, 'nothing was sent', id='end'),
    ],
)
def test_what_a_generic_server_does_unasked_is_no_answer(
    script, temp_pki, is_tls, early, error, reason
):
    is_read, is_sent, is_over = threading.Event(), threading.Event(), threading.Event()
    requests = []

    def handle(raw):
        if is_tls:  # over TCP: what comes early must not wait until the response is acknowledged
            raw.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        requests.append(raw.read_preamble())
        raw.send(b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok')
        assert is_read.wait(LATE_S)
        if early:
            raw.send(early)
        else:
            raw.sock.close()
        is_sent.set()
        try:
            if early:
                requests.append(raw.read_to_end())
        finally:
            is_over.set()

    server = script(handle, build_server_sslctx(temp_pki.get_server_config()) if is_tls else None)
    headers = {'host': 'h'}
    client = (
        SSLClient(build_client_sslctx(temp_pki.get_client_config()), server.address, headers)
        if is_tls
        else Client(server.address, headers)
    )
    with client.connect() as conn:
        assert conn.get('/').body.read() == b'ok'
        is_read.set()
        assert is_sent.wait(LATE_S)
        with pytest.raises(error, match=reason):
            conn.post('/', None, b'precious')
        assert conn.closed
    assert is_over.wait(LATE_S)
    assert b'precious' not in b''.join(requests)


@pytest.mark.parametrize('is_tls', [False, True], ids=['plain', 'tls'])
def test_a_generic_server_that_is_silent_is_asked_again(serve, temp_pki, is_tls):
    def app(connection, request):
        return 200, 'OK', {}, request['body'].read()

    sslctx = build_server_sslctx(temp_pki.get_server_config()) if is_tls else None
    server = serve(app, sslctx=sslctx)
    headers = {'host': 'h'}
    client = (
        SSLClient(build_client_sslctx(temp_pki.get_client_config()), server.address, headers)
        if is_tls
        else Client(server.address, headers)
    )
    with client.connect() as conn:
        for size in (1, 100_000, 2_000_000, 1):
            assert len(conn.post('/', None, b'x' * size).body.read()) == size
