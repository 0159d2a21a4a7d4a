"""Peers that want to harm a server: what they send, how much of it, and how they go.

Whatever they do costs a bounded amount of memory and leaves nothing behind, and honest peers are
served.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import sys
import threading
import time
import tracemalloc

import pytest

from degu.bodies import Output
from degu.client import Client, SSLClient, build_client_sslctx
from degu.errors import ProtocolError
from degu.limits import build_limits
from degu.server import build_server_sslctx
from degu.wire import parse_chunk_line, parse_request, parse_response

KIB = 1024
MIB = 1024 * KIB
GET = b'GET / HTTP/1.1\r\n\r\n'
OK = b'HTTP/1.1 200 OK\r\n\r\n'
CHUNKED = b'PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n'
SHORT_S = 0.25
AT_ONCE_S = 1.0
WAIT_S = 10.0


def ok(connection, request):
    return 200, 'OK', {}, None


def read_all(connection, request):
    request['body'].read()
    return 200, 'OK', {}, None


@contextlib.contextmanager
def bounded_memory(size):
    """Expect that this process allocates less than `size` bytes more than it has before."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size


def pour(peer, start, pieces):
    """Send the pieces until the server answers or hangs up."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        peer.send(start)
        for piece in pieces:
            peer.send(piece)
            if select.select([peer.sock], [], [], 0)[0]:
                break


def read_answer(peer):
    """Read the one answer that there must be; return its status."""
    first, *lines = peer.read_preamble().decode().splitlines()
    headers = dict(line.split(': ') for line in lines if line)
    assert headers['connection'] == 'close'
    peer.read(int(headers['content-length']))
    assert peer.is_cut_off()
    return int(first.split(' ')[1])


# --- too much ------------------------------------------------------------------------------------


def test_a_flood_of_a_preamble_gets_one_answer_and_no_memory(serve, dial, tmp_path, flood):
    peer = dial(serve(ok, str(tmp_path / 'socket')).address)
    with bounded_memory(256 * KIB):
        pour(peer, b'PUT / HTTP/1.1\r\n' + flood.start, flood.pieces())
        assert read_answer(peer) in (400, 431)


@pytest.mark.parametrize('app', [read_all, ok], ids=['read', 'unread'])
def test_a_flood_of_a_chunk_gets_one_answer_and_no_memory(serve, dial, tmp_path, chunk_flood, app):
    peer = dial(serve(app, str(tmp_path / 'socket')).address)
    with bounded_memory(256 * KIB):
        pour(peer, CHUNKED + chunk_flood.start, chunk_flood.pieces())
        if app is ok:
            assert peer.read(len(OK)) == OK
            assert peer.is_cut_off()
        else:
            assert read_answer(peer) == 400


@pytest.mark.parametrize(
    'start',
    [
        pytest.param(b'', id='of_nothing'),
        pytest.param(b'GET /', id='of_a_path'),
        pytest.param(b'GET /?', id='of_a_query'),
        pytest.param(b'GET / HTTP/1.1', id='of_a_version'),
    ],
)
def test_an_endless_request_line_gets_one_answer_and_no_memory(serve, dial, tmp_path, start):
    peer = dial(serve(ok, str(tmp_path / 'socket')).address)
    with bounded_memory(256 * KIB):
        pour(peer, start, iter(lambda: b'a' * 1000, b''))
        assert read_answer(peer) == 431


def test_10000_headers_are_too_many_even_where_their_size_is_allowed(serve, dial, tmp_path):
    server = serve(ok, str(tmp_path / 'socket'), max_preamble=MIB)
    peer = dial(server.address)
    lines = b''.join(b'a%d: v\r\n' % number for number in range(10_000))
    peer.send(b'GET / HTTP/1.1\r\n' + lines + b'\r\n')
    assert read_answer(peer) == 431


def test_endless_small_chunks_that_are_read_get_one_answer_and_no_memory(serve, dial, tmp_path):
    def app(connection, request):
        request['body'].read(8 * KIB)

    peer = dial(serve(app, str(tmp_path / 'socket')).address)
    with bounded_memory(256 * KIB):
        pour(peer, CHUNKED, iter(lambda: b'1\r\nx\r\n' * 100, b''))
        assert read_answer(peer) == 413


@pytest.fixture
def unlimited_digits():
    """Let int() take as many digits as there are, in quadratic time."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(before)


DIGITS = b'1' * 1_000_000
UNLIMITED = build_limits(max_preamble=2 * MIB, max_line=2 * MIB)


@pytest.mark.parametrize(
    'parse',
    [
        pytest.param(parse, id=name)
        for name, parse in (
            (
                'content_length_of_a_request',
                lambda: parse_request(b'PUT / HTTP/1.1\r\ncontent-length: ' + DIGITS, UNLIMITED),
            ),
            (
                'content_length_of_a_response',
                lambda: parse_response(b'HTTP/1.1 200 OK\r\ncontent-length: ' + DIGITS, UNLIMITED),
            ),
            (
                'status',
                lambda: parse_response(b'HTTP/1.1 2' + DIGITS + b' OK', UNLIMITED),
            ),
            (
                'range',
                lambda: parse_request(b'GET / HTTP/1.1\r\nrange: bytes=0-' + DIGITS, UNLIMITED),
            ),
            (
                'content_range',
                lambda: parse_response(
                    b'HTTP/1.1 200 OK\r\ncontent-range: bytes 0-1/' + DIGITS, UNLIMITED
                ),
            ),
            ('chunk_size', lambda: parse_chunk_line(DIGITS)),
        )
    ],
)
def test_a_million_digits_are_never_made_a_number(unlimited_digits, parse):
    """That takes seconds of computing; to see that there are too many takes no time."""
    started = time.thread_time()
    with pytest.raises(ProtocolError):
        parse()
    assert time.thread_time() - started < 0.1


# --- many requests -------------------------------------------------------------------------------


def test_10000_pipelined_requests_are_answered_in_order_with_flat_memory(serve, dial, tmp_path):
    def echo(connection, request):
        return 200, 'OK', {}, request['path'][0].encode()

    peer = dial(serve(echo, str(tmp_path / 'socket')).address)
    requests = b''.join(b'GET /%05d HTTP/1.1\r\n\r\n' % number for number in range(10_000))
    expected = b''.join(
        b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n%05d' % number for number in range(10_000)
    )
    sender = threading.Thread(target=peer.send, args=(requests,))
    with bounded_memory(200 * KIB):  # the requests are 250 KiB, the responses 430
        sender.start()
        for start in range(0, len(expected), 1000):
            assert peer.read(1000) == expected[start : start + 1000]
    sender.join()


def test_a_peer_that_pipelines_and_never_reads_is_cut_off_with_flat_memory(serve, dial, tmp_path):
    body = bytes(10_000)
    server = serve(
        lambda c, r: (200, 'OK', {}, body), str(tmp_path / 'socket'), body_window_s=SHORT_S
    )
    peer = dial(server.address)
    many = GET * 100
    with bounded_memory(256 * KIB), pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012  # one of them
        while True:
            peer.send(many)


# --- gone too soon, or never really there --------------------------------------------------------


def count_open():
    return len(os.listdir('/proc/self/fd')), threading.active_count()


@pytest.fixture
def give_back():
    """Give `give_back(before)`: wait until no more is open than `before`, the server running."""

    def wait(before):
        deadline = time.monotonic() + WAIT_S
        while (now := count_open()) > before:
            assert time.monotonic() < deadline, f'{now} descriptors and threads, before {before}'
            time.sleep(0.005)

    return wait


@pytest.fixture(params=['plain', 'tls'])
def connect(request, serve, temp_pki):
    """Give `connect(app)`: a client of a server that runs `app`, without and with TLS."""

    many = {'max_connections_per_address': 256}  # some may still be ending

    def start(app):
        if request.param == 'plain':
            return Client(serve(app, **many).address)
        sslctx = build_server_sslctx(temp_pki.get_server_config())
        server = serve(app, sslctx=sslctx, **many)
        return SSLClient(build_client_sslctx(temp_pki.get_client_config()), server.address)

    return start


@pytest.mark.slow
def test_1000_downloads_aborted_in_the_middle_leave_nothing(connect, give_back):
    def app(connection, request):
        return 200, 'OK', {}, Output([bytes(MIB)] * 64, 64 * MIB)

    client = connect(app)
    before = count_open()
    for _ in range(1000):
        with client.connect() as conn:
            assert conn.get('/').body.read(1000) == bytes(1000)
    give_back(before)


@pytest.mark.slow
def test_200_uploads_aborted_in_the_middle_leave_nothing(connect, give_back):
    def broken():
        yield bytes(100 * KIB)
        raise EOFError

    client = connect(read_all)
    before = count_open()
    for _ in range(200):
        with client.connect() as conn, pytest.raises(EOFError):
            conn.put('/', None, Output(broken(), MIB))
    give_back(before)


# CPython's wrap_socket() does not close a socket that was reset before it. That is done when nobody
# refers to it any more, which is at once, and with a warning.
@pytest.mark.filterwarnings('ignore:unclosed <ssl.SSLSocket:ResourceWarning')
@pytest.mark.slow
def test_1000_resets_before_and_after_accept_leave_nothing(serve, give_back, temp_pki):
    sslctx = build_server_sslctx(temp_pki.get_server_config())
    server = serve(ok, sslctx=sslctx, max_connections_per_address=256)
    client = SSLClient(build_client_sslctx(temp_pki.get_client_config()), server.address)
    before = count_open()
    for number in range(1000):
        with socket.create_connection(server.address) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            if number % 2:
                sock.send(b'\x16\x03\x01')
        if number % 100 == 99:  # before the listen queue is full, which costs a client a second
            with client.connect() as conn:
                assert conn.get('/').status == 200
    give_back(before)


def hello(temp_pki):
    """Build the first message of a TLS handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = build_client_sslctx(temp_pki.get_client_config()).wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize('stage', ['nothing', 'one_byte', 'half_a_hello', 'a_hello'])
def test_a_stalled_handshake_keeps_nobody_waiting_and_ends(serve, dial, temp_pki, give_back, stage):
    server = serve(
        ok,
        sslctx=build_server_sslctx(temp_pki.get_server_config()),
        handshake_timeout_s=AT_ONCE_S,
    )
    before = count_open()
    start = hello(temp_pki)
    size = {'nothing': 0, 'one_byte': 1, 'half_a_hello': len(start) // 2, 'a_hello': len(start)}
    stalled = [dial(server.address) for _ in range(20)]
    for peer in stalled:
        peer.send(start[: size[stage]])
    client = SSLClient(build_client_sslctx(temp_pki.get_client_config()), server.address)
    started = time.monotonic()
    with client.connect() as conn:
        assert conn.get('/').status == 200
    assert time.monotonic() - started < AT_ONCE_S
    for peer in stalled:
        with contextlib.suppress(ConnectionResetError):
            assert b'HTTP' not in peer.read_to_end()
        peer.close()
    give_back(before)
