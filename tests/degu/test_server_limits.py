"""Every line of the limits table holds: each test fails without its limit."""

from __future__ import annotations

import contextlib
import logging
import select
import time

import pytest

from degu import IPv4_LOOPBACK
from degu.bodies import ChunkedOutput, FileOutput, Output
from degu.client import SSLClient, build_client_sslctx
from degu.limits import Limits
from degu.server import build_server_sslctx

SHORT_S = 0.25
"""A time limit in these tests."""
LATE_S = 3.0
"""A connection that lives for this long after a limit of SHORT_S was not ended by it."""
MIB = 1024 * 1024
OK = b'HTTP/1.1 200 OK\r\n\r\n'
GET = b'GET / HTTP/1.1\r\n\r\n'


def ok(connection, request):
    return 200, 'OK', {}, None


def read_all(connection, request):
    request['body'].read()
    return 200, 'OK', {}, None


@pytest.fixture
def limited(serve, caplog):
    """Give `limited(app, **limits)`: a server, with its log at INFO in `caplog`."""
    caplog.set_level(logging.INFO, 'degu.server')
    return serve


@contextlib.contextmanager
def ended_by_the_limit(caplog, reason):
    """Expect that what is inside ends not before SHORT_S, not much later, and for `reason`.

    What starts the limit's time must be inside too: this thread may be late.
    """
    started = time.monotonic()
    yield
    assert SHORT_S <= time.monotonic() - started < SHORT_S + LATE_S
    deadline = time.monotonic() + LATE_S
    while reason not in caplog.text:
        assert time.monotonic() < deadline, f'{reason!r} was not logged: {caplog.text}'
        time.sleep(0.005)


def trickle(peer, pieces):
    """Send a piece now and then; tell whether the server ends the connection and says nothing."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for piece in pieces:
            peer.send(piece)
            if select.select([peer.sock], [], [], SHORT_S / 5)[0]:
                return peer.is_cut_off()
        return False
    return True


def test_the_defaults_are_the_documented_ones():
    assert Limits() == Limits(
        max_connections=256,
        max_connections_per_address=64,
        max_handshakes=32,
        handshake_timeout_s=5,
        preamble_timeout_s=10,
        idle_timeout_s=30,
        min_body_rate=1024,
        body_window_s=30,
        chunk_gap_timeout_s=None,
        max_preamble=32 * 1024,
        max_line=8 * 1024,
        max_headers=32,
        max_chunk=16 * MIB,
        max_chunk_line=512,
        max_requests=None,
    )


# --- connections ---------------------------------------------------------------------------------


def test_connections_at_once_are_limited(limited, dial, tmp_path, caplog):
    server = limited(ok, str(tmp_path / 'socket'), max_connections=2)
    first, second = dial(server.address), dial(server.address)
    for peer in (first, second):
        peer.send(GET)
        assert peer.read_preamble() == OK
    third = dial(server.address)
    assert third.is_cut_off()
    assert 'max_connections=2' in caplog.text
    assert server.refused == 1
    second.send(GET)
    assert second.read_preamble() == OK
    first.end()
    assert first.read_to_end() == b''
    assert wait_until_served(dial, server.address)


def wait_until_served(dial, address, source=None):
    """Tell whether a new connection is served soon: the last one's thread may still be ending."""
    deadline = time.monotonic() + LATE_S
    while time.monotonic() < deadline:
        peer = dial(address, source)
        with contextlib.suppress(ConnectionError, EOFError):
            peer.send(GET)
            return peer.read_preamble() == OK
        time.sleep(0.005)
    return False


def test_connections_from_one_address_are_limited(limited, dial, caplog):
    server = limited(ok, max_connections_per_address=1)
    first = dial(server.address, '127.0.0.1')
    first.send(GET)
    assert first.read_preamble() == OK
    assert dial(server.address, '127.0.0.1').is_cut_off()
    assert 'max_connections_per_address=1' in caplog.text
    other = dial(server.address, '127.0.0.2')
    other.send(GET)
    assert other.read_preamble() == OK
    first.end()
    assert first.read_to_end() == b''
    assert wait_until_served(dial, server.address, '127.0.0.1')


def test_connections_over_af_unix_have_no_address_to_be_limited_by(limited, dial, tmp_path):
    server = limited(ok, str(tmp_path / 'socket'), max_connections_per_address=1)
    for _ in range(3):
        peer = dial(server.address)
        peer.send(GET)
        assert peer.read_preamble() == OK


def test_refused_connections_are_not_counted(limited, dial):
    server = limited(ok, max_connections_per_address=1)
    first = dial(server.address)
    first.send(GET)
    assert first.read_preamble() == OK
    for _ in range(3):
        assert dial(server.address).is_cut_off()
    first.end()
    assert first.read_to_end() == b''
    assert wait_until_served(dial, server.address)


def test_of_too_many_handshakes_the_longest_is_ended(limited, dial, temp_pki):
    sslctx = build_server_sslctx(temp_pki.get_server_config())
    server = limited(ok, IPv4_LOOPBACK, sslctx, max_handshakes=2)
    first, second = dial(server.address), dial(server.address)
    client = SSLClient(build_client_sslctx(temp_pki.get_client_config()), server.address)
    with client.connect() as honest:
        assert honest.get('/').status == 200
        assert first.is_cut_off()
        second.sock.settimeout(SHORT_S)
        with pytest.raises(TimeoutError):
            second.sock.recv(1)
        third, _fourth = dial(server.address), dial(server.address)
        second.sock.settimeout(LATE_S)
        assert second.is_cut_off()
        # Whoever has shaken hands does not count any more.
        assert honest.get('/').status == 200
        assert third.sock.fileno() > 0


def test_the_handshakes_of_one_address_do_not_push_out_those_of_another(limited, dial, temp_pki):
    sslctx = build_server_sslctx(temp_pki.get_server_config())
    server = limited(ok, IPv4_LOOPBACK, sslctx, max_handshakes=3)
    honest = dial(server.address, source='127.0.0.2')
    strangers = [dial(server.address, source='127.0.0.3') for _ in range(4)]
    assert strangers[0].is_cut_off()
    assert strangers[1].is_cut_off()
    honest.sock.settimeout(SHORT_S)
    with pytest.raises(TimeoutError):
        honest.sock.recv(1)


# --- times ---------------------------------------------------------------------------------------


def test_a_handshake_has_its_time(limited, dial, temp_pki, caplog):
    sslctx = build_server_sslctx(temp_pki.get_server_config())
    server = limited(ok, IPv4_LOOPBACK, sslctx, handshake_timeout_s=SHORT_S)
    with ended_by_the_limit(caplog, 'a TLS handshake (0.25 s)'):
        assert dial(server.address).is_cut_off()


def test_a_handshake_has_its_time_in_total(limited, dial, temp_pki, caplog):
    sslctx = build_server_sslctx(temp_pki.get_server_config())
    server = limited(ok, IPv4_LOOPBACK, sslctx, handshake_timeout_s=SHORT_S)
    # A record of 512 bytes whose content is a ClientHello of 508.
    start = b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03'
    with ended_by_the_limit(caplog, 'a TLS handshake (0.25 s)'):
        assert trickle(dial(server.address), [start] + [b'x'] * 300)


def test_a_preamble_has_its_time_in_total(limited, dial, caplog):
    server = limited(ok, preamble_timeout_s=SHORT_S)
    peer = dial(server.address)
    with ended_by_the_limit(caplog, 'a preamble in total (0.25 s)'):
        assert trickle(peer, [GET[:1]] * 300)


def test_a_preamble_that_stops_has_its_time(limited, dial, caplog):
    peer = dial(limited(ok, preamble_timeout_s=SHORT_S).address)
    with ended_by_the_limit(caplog, 'a preamble in total (0.25 s)'):
        peer.send(GET[:10])
        assert peer.is_cut_off()


def test_the_time_of_a_preamble_starts_with_its_first_byte(limited, dial):
    timeout_s = 2 * SHORT_S  # in which a busy machine must get the two pieces across
    server = limited(ok, preamble_timeout_s=timeout_s)
    peer = dial(server.address)
    for _ in range(2):
        peer.sock.settimeout(timeout_s + 0.1)
        with pytest.raises(TimeoutError):
            peer.sock.recv(1)
        peer.send_each([GET[:5], GET[5:]])
        peer.sock.settimeout(LATE_S)
        assert peer.read_preamble() == OK


def test_an_idle_connection_has_its_time(limited, dial, caplog):
    server = limited(ok, idle_timeout_s=SHORT_S)
    peer = dial(server.address)
    with ended_by_the_limit(caplog, 'idle between messages (0.25 s)'):
        peer.send(GET)
        assert peer.read_preamble() == OK
        assert peer.is_cut_off()


def test_a_connection_that_never_says_a_thing_has_its_time(limited, dial, caplog):
    server = limited(ok, idle_timeout_s=SHORT_S)
    with ended_by_the_limit(caplog, 'idle between messages (0.25 s)'):
        assert dial(server.address).is_cut_off()


@pytest.mark.parametrize('has_tls', [False, True])
@pytest.mark.parametrize(
    ('start', 'piece'),
    [
        (b'content-length: 1000000\r\n\r\n', b'x'),
        (b'transfer-encoding: chunked\r\n\r\n', b'1\r\nx\r\n'),
        (b'transfer-encoding: chunked\r\n\r\n' + b'100\r\n', b'x'),
        (b'transfer-encoding: chunked\r\n\r\n', b'0'),
    ],
    ids=['length', 'chunks', 'chunk', 'chunk_size'],
)
def test_a_request_body_has_its_rate(limited, dial, temp_pki, caplog, start, piece, has_tls):
    configs = temp_pki.get_server_config(), temp_pki.get_client_config()
    server = limited(
        read_all,
        IPv4_LOOPBACK,
        build_server_sslctx(configs[0]) if has_tls else None,
        body_window_s=SHORT_S,
    )
    peer = dial(server.address, None, build_client_sslctx(configs[1]) if has_tls else None)
    with ended_by_the_limit(caplog, 'a body must move at least 1024 bytes/s (0.25 s)'):
        peer.send(b'PUT / HTTP/1.1\r\n' + start)
        assert trickle(peer, [piece] * 300)


def test_a_request_body_at_the_rate_may_take_longer_than_the_window(limited, dial):
    server = limited(read_all, body_window_s=SHORT_S * 2, min_body_rate=100)
    peer = dial(server.address)
    peer.send(b'PUT / HTTP/1.1\r\ncontent-length: 2000\r\n\r\n')
    started = time.monotonic()
    for _ in range(40):
        peer.send(b'x' * 50)
        time.sleep(SHORT_S / 10)  # a peer with a pace: 2000 bytes a second
    assert peer.read_preamble() == OK
    assert time.monotonic() - started > SHORT_S * 3


def test_the_rate_counts_what_the_peer_is_waited_for_and_not_our_own_pauses(limited, dial):
    def app(connection, request):
        body = request['body']
        body.read(1)
        time.sleep(SHORT_S * 2)  # an application that takes its time
        body.read()
        return 200, 'OK', {}, None

    peer = dial(limited(app, body_window_s=SHORT_S).address)
    peer.send(b'PUT / HTTP/1.1\r\ncontent-length: 4\r\n\r\n')
    peer.send_each([b'1', b'2', b'3', b'4'])
    assert peer.read_preamble() == OK


LARGE = 32 * MIB
"""More than the buffers of two sockets hold."""


@pytest.mark.parametrize('has_tls', [False, True])
@pytest.mark.parametrize(
    'build',
    [
        lambda fp: bytes(LARGE),
        lambda fp: Output([bytes(MIB)] * 32, LARGE),
        lambda fp: ChunkedOutput([bytes(MIB)] * 32 + [b'']),
        lambda fp: FileOutput(fp, LARGE),
    ],
    ids=['bytes', 'output', 'chunked', 'file'],
)
def test_a_peer_that_does_not_read_its_response_has_its_time(
    limited, dial, temp_pki, caplog, tmp_path, build, has_tls
):
    configs = temp_pki.get_server_config(), temp_pki.get_client_config()
    path = tmp_path / 'content'
    with path.open('wb') as fp:
        fp.truncate(LARGE)
    with path.open('rb') as fp:
        server = limited(
            lambda c, r: (200, 'OK', {}, build(fp)),
            IPv4_LOOPBACK,
            build_server_sslctx(configs[0]) if has_tls else None,
            body_window_s=SHORT_S,
        )
        peer = dial(server.address, None, build_client_sslctx(configs[1]) if has_tls else None)
        with ended_by_the_limit(caplog, 'a body must move at least 1024 bytes/s (0.25 s)'):
            peer.send(GET)
            deadline = time.monotonic() + LATE_S
            while 'a body must move' not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.005)


@pytest.mark.parametrize('has_tls', [False, True])
def test_a_peer_that_reads_at_the_rate_may_take_longer_than_the_window(
    limited, dial, temp_pki, caplog, has_tls
):
    configs = temp_pki.get_server_config(), temp_pki.get_client_config()
    server = limited(
        lambda c, r: (200, 'OK', {}, Output([bytes(MIB)] * 32, LARGE)),
        IPv4_LOOPBACK,
        build_server_sslctx(configs[0]) if has_tls else None,
        body_window_s=SHORT_S * 2,
    )
    peer = dial(server.address, None, build_client_sslctx(configs[1]) if has_tls else None)
    peer.send(GET)
    peer.read_preamble()
    started = time.monotonic()
    # Fast enough that the kernel takes more in each window: it does so in steps of a third of its
    # buffer, and a TLS socket in steps of 1 MiB.
    for _ in range(16):
        peer.read(2 * MIB)
        time.sleep(SHORT_S / 4)
    assert time.monotonic() - started > SHORT_S * 3


def test_a_chunk_may_be_given_a_time_to_begin(limited, dial, caplog):
    server = limited(read_all, chunk_gap_timeout_s=SHORT_S)
    peer = dial(server.address)
    with ended_by_the_limit(caplog, 'the next chunk (0.25 s)'):
        peer.send(b'PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n')
        assert peer.is_cut_off()


# --- sizes and counts ----------------------------------------------------------------------------


def padded(size):
    """Build a request of `size` bytes before its empty line, in lines of at most 100."""
    data = b'GET / HTTP/1.1'
    number = 0
    while len(data) < size:
        name = b'\r\nh%d: ' % number
        missing = size - len(data)
        length = missing if missing <= 100 else min(100, missing - 50)
        data += name + b'x' * (length - len(name))
        number += 1
    assert len(data) == size
    return data + b'\r\n\r\n'


@pytest.mark.parametrize('is_split', [False, True])
@pytest.mark.parametrize(
    ('limit', 'allowed', 'too_much', 'reason'),
    [
        ({'max_preamble': 1000}, padded(1000), padded(1001), b'a preamble is at most 1000 bytes'),
        (
            {'max_line': 100},
            b'GET /' + b'a' * 86 + b' HTTP/1.1\r\n\r\n',
            b'GET /' + b'a' * 87 + b' HTTP/1.1\r\n\r\n',
            b'a line is at most 100 bytes',
        ),
        (
            {'max_line': 100},
            b'GET / HTTP/1.1\r\na: ' + b'a' * 97 + b'\r\n\r\n',
            b'GET / HTTP/1.1\r\na: ' + b'a' * 98 + b'\r\n\r\n',
            b'a line is at most 100 bytes',
        ),
        (
            {'max_headers': 2},
            b'GET / HTTP/1.1\r\na: b\r\nc: d\r\n\r\n',
            b'GET / HTTP/1.1\r\na: b\r\nc: d\r\ne: f\r\n\r\n',
            b'there are at most 2 headers',
        ),
    ],
    ids=['preamble', 'request_line', 'header_line', 'headers'],
)
def test_a_preamble_is_limited_to_the_byte(
    limited, dial, limit, allowed, too_much, reason, is_split
):
    server = limited(ok, **limit)

    def send(data):
        peer = dial(server.address)
        with contextlib.suppress(ConnectionError):  # answered before its end
            peer.send_each([data[:20], data[20:-1], data[-1:]] if is_split else [data])
        peer.end()
        return peer.read_to_end()

    assert send(allowed) == OK
    answer = send(too_much)
    assert answer.startswith(b'HTTP/1.1 431 Request Header Fields Too Large\r\n')
    assert reason in answer


def test_a_preamble_that_never_ends_is_ended_by_its_size(limited, dial):
    peer = dial(limited(ok, max_preamble=1000).address)
    peer.send(b'GET / HTTP/1.1\r\na: ' + b'a' * 2000)
    assert peer.read_to_end().startswith(b'HTTP/1.1 431 ')


@pytest.mark.parametrize('is_split', [False, True])
@pytest.mark.parametrize(
    ('limit', 'allowed', 'too_much', 'status', 'reason'),
    [
        (
            {'max_chunk': 1000},
            b'3e8\r\n' + b'x' * 1000 + b'\r\n',
            b'3e9\r\n',
            b'413 Content Too Large',
            b'a chunk is at most 1000 bytes',
        ),
        (
            {'max_chunk_line': 100},
            b'1;a=' + b'b' * 96 + b'\r\nx\r\n',
            b'1;a=' + b'b' * 97 + b'\r\nx\r\n',
            b'400 Bad Request',
            b'a chunk line is at most 100 bytes',
        ),
    ],
    ids=['chunk', 'chunk_line'],
)
def test_a_chunk_is_limited_to_the_byte(
    limited, dial, limit, allowed, too_much, status, reason, is_split
):
    server = limited(read_all, **limit)

    def send(chunk):
        data = b'PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n' + chunk + b'0\r\n\r\n'
        peer = dial(server.address)
        with contextlib.suppress(ConnectionError):
            peer.send_each([data[:60], data[60:90], data[90:]] if is_split else [data])
        peer.end()
        return peer.read_to_end()

    assert send(allowed) == OK
    answer = send(too_much)
    assert answer.startswith(b'HTTP/1.1 ' + status + b'\r\n')
    assert reason in answer


def test_a_chunk_line_that_never_ends_is_ended_by_its_size(limited, dial):
    peer = dial(limited(read_all, max_chunk_line=100).address)
    peer.send(b'PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;a=' + b'b' * 200)
    assert peer.read_to_end().startswith(b'HTTP/1.1 400 ')


def test_an_application_is_held_to_the_chunk_limits_too(limited, dial, caplog):
    server = limited(lambda c, r: (200, 'OK', {}, ChunkedOutput([b'12345', b''])), max_chunk=4)
    peer = dial(server.address)
    peer.send(GET)
    assert peer.read_to_end() == b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n'
    assert 'a chunk is at most 4 bytes, not 5' in caplog.text


def test_requests_on_one_connection_are_limited_if_asked_for(limited, dial):
    server = limited(ok, max_requests=2)
    peer = dial(server.address)
    peer.send(GET * 3)
    assert peer.read_to_end() == OK * 2
    peer = dial(server.address)
    peer.send(GET)
    assert peer.read_preamble() == OK


def test_requests_on_one_connection_are_not_limited_by_default(limited, dial):
    peer = dial(limited(ok).address)
    for _ in range(1000):
        peer.send(GET)
        assert peer.read_preamble() == OK


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'framing',
    [b'content-length: 9999999999999999', b'transfer-encoding: chunked\r\n\r\nffffff'],
    ids=['length', 'chunk'],
)
def test_nothing_is_allocated_because_a_size_was_claimed(limited, dial, framing):
    import tracemalloc

    seen = []

    def app(connection, request):
        tracemalloc.start()
        try:
            request['body'].read(2**40)
        finally:
            seen.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    peer = dial(limited(app).address)
    peer.send(b'PUT / HTTP/1.1\r\n' + framing + b'\r\n\r\nxxxx')
    peer.end()
    assert peer.is_cut_off()
    assert seen[0] < 4 * MIB
