"""A channel's reads, writes and time limits, over plain sockets and over TLS."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from degu.channel import LINGER_SIZE, LINGER_TIMEOUT_S, MAX_PIECE, TLS_PIECE, Channel, Pace
from degu.errors import ClosedConnectionError, PeerTimeoutError, ProtocolError
from degu.limits import DEFAULT_LIMITS, Limits
from degu.net import Deadline
from degu.tls import build_client_sslctx, build_server_sslctx

KIB = 1024
MIB = 1024 * KIB
HANG_S = 10.0
"""After this long a test hangs, and fails."""


def connect_tls(pki):
    """Return the two ends of a TLS connection over a socket pair, the server's first."""
    ours, theirs = socket.socketpair()
    server_ctx = build_server_sslctx(pki.get_server_config())
    client_ctx = build_client_sslctx(pki.get_client_config())
    ends = {}
    for sock in (ours, theirs):
        sock.settimeout(HANG_S)

    def accept():
        ends['server'] = server_ctx.wrap_socket(ours, server_side=True)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        client = client_ctx.wrap_socket(theirs)
    finally:
        thread.join()
    return ends['server'], client


@pytest.fixture(params=['plain', 'tls'])
def make_pair(request, temp_pki):
    """Give `make_pair(limits)`: a channel, and the socket of its peer."""
    opened = []

    def make(limits=DEFAULT_LIMITS):
        if request.param == 'plain':
            ours, theirs = socket.socketpair()
        else:
            ours, theirs = connect_tls(temp_pki)
        opened.extend((ours, theirs))
        theirs.settimeout(HANG_S)
        return Channel(ours, limits), theirs

    yield make
    for sock in opened:
        sock.close()


@pytest.fixture
def plain_pair():
    ours, theirs = socket.socketpair()
    theirs.settimeout(HANG_S)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def tcp_pair():
    """Give a channel and its peer over TCP, where a close with unread bytes is a reset."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), HANG_S)
        ours, _ = listener.accept()
    with ours, theirs:
        yield Channel(ours, DEFAULT_LIMITS), theirs


class Peer(threading.Thread):
    """Does something in a thread of its own, until it is done or its channel is closed."""

    def __init__(self, act):
        super().__init__()
        self.act = act
        self.stopped = threading.Event()
        self.result = None

    def run(self):
        try:
            self.result = self.act(self.stopped)
        except OSError as error:
            self.result = error

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.join(HANG_S)
        assert not self.is_alive()


def drip(sock, pieces, interval_s):
    """Make a peer that sends a piece every `interval_s`, the first at once."""

    def act(stopped):
        for piece in pieces:
            sock.sendall(piece)
            if stopped.wait(interval_s):
                return

    return Peer(act)


def collect(sock):
    """Make a peer that reads to the end."""

    def act(_stopped):
        received = bytearray()
        while data := sock.recv(MIB):
            received += data
        return bytes(received)

    return Peer(act)


class Times:
    """Measures how long the block took: more than `at_least_s`, and far from hanging."""

    def __init__(self, at_least_s, at_most_s=5.0):
        self.at_least_s = at_least_s
        self.at_most_s = at_most_s

    def __enter__(self):
        self.started = time.monotonic()

    def __exit__(self, kind, *_):
        if kind is None:
            took_s = time.monotonic() - self.started
            # A kernel timeout may end a tick early.
            assert self.at_least_s - 0.01 <= took_s < self.at_most_s


# --- preambles -----------------------------------------------------------------------------------


def test_preambles_are_read_one_by_one(make_pair):
    channel, peer = make_pair()
    peer.sendall(b'one\r\nline\r\n\r\ntwo\r\n\r\n\r\n\r\nthr')
    assert channel.read_preamble() == b'one\r\nline'
    assert channel.buffered
    assert channel.read_preamble() == b'two'
    assert channel.read_preamble() == b''
    peer.sendall(b'ee\r\n\r')
    peer.sendall(b'\n')
    assert channel.read_preamble() == b'three'
    assert not channel.buffered


def test_the_end_between_messages_is_none(make_pair):
    channel, peer = make_pair()
    peer.sendall(b'one\r\n\r\n')
    peer.close()
    assert channel.read_preamble() == b'one'
    assert channel.read_preamble() is None


@pytest.mark.parametrize('data', [b'G', b'GET / HTTP/1.1\r\n', b'GET / HTTP/1.1\r\n\r'])
def test_the_end_inside_a_preamble_is_an_error(make_pair, data):
    channel, peer = make_pair()
    peer.sendall(data)
    peer.close()
    with pytest.raises(ClosedConnectionError, match='inside a preamble'):
        channel.read_preamble()


def test_a_peer_that_says_nothing_is_idle(make_pair):
    channel, _peer = make_pair(Limits(idle_timeout_s=0.2))
    with Times(0.2), pytest.raises(PeerTimeoutError) as caught:
        channel.read_preamble()
    assert (caught.value.limit, caught.value.timeout_s) == ('idle between messages', 0.2)
    assert str(caught.value) == 'the peer was too slow: idle between messages (0.2 s)'
    assert isinstance(caught.value, TimeoutError)


def test_the_idle_limit_holds_again_after_a_body(make_pair):
    channel, peer = make_pair(Limits(idle_timeout_s=0.2))
    peer.sendall(b'one\r\n\r\n')
    assert channel.read_preamble() == b'one'
    peer.sendall(b'body')
    assert channel.read_some(4) == b'body'
    with Times(0.2), pytest.raises(PeerTimeoutError, match='idle'):
        channel.read_preamble()


def test_a_preamble_is_limited_in_total_however_steadily_it_comes(make_pair):
    channel, peer = make_pair(Limits(preamble_timeout_s=0.3, idle_timeout_s=20))
    with drip(peer, [b'x'] * 1000, 0.02), Times(0.3), pytest.raises(PeerTimeoutError) as caught:
        channel.read_preamble()
    assert (caught.value.limit, caught.value.timeout_s) == ('a preamble in total', 0.3)


def test_a_preamble_that_stops_in_the_middle_is_limited(make_pair):
    channel, peer = make_pair(Limits(preamble_timeout_s=0.2, idle_timeout_s=20))
    peer.sendall(b'GET / HTTP/1.1\r\n')
    with Times(0.2), pytest.raises(PeerTimeoutError, match='a preamble in total'):
        channel.read_preamble()


def test_the_time_before_its_first_byte_does_not_count_as_the_preambles(make_pair):
    channel, peer = make_pair(Limits(preamble_timeout_s=0.3))

    def act(stopped):
        stopped.wait(0.35)
        peer.sendall(b'GET ')
        stopped.wait(0.1)
        peer.sendall(b'/\r\n\r\n')

    with Peer(act), Times(0.45):
        assert channel.read_preamble() == b'GET /'


def test_the_idle_limit_does_not_count_inside_a_preamble(make_pair):
    channel, peer = make_pair(Limits(idle_timeout_s=0.1, preamble_timeout_s=5))
    with drip(peer, [b'GET', b' /', b'\r\n\r\n'], 0.2), Times(0.4):
        assert channel.read_preamble() == b'GET /'


# --- bodies --------------------------------------------------------------------------------------


def read_into(channel, size):
    buffer = bytearray(size)
    return bytes(buffer[: channel.read_into(memoryview(buffer))])


READS = {
    'read_some': lambda channel: channel.read_some(MIB),
    'read_into': lambda channel: read_into(channel, MIB),
}
read = pytest.mark.parametrize('read', READS.values(), ids=READS.keys())


@read
def test_a_body_begins_with_what_came_with_the_preamble(make_pair, read):
    channel, peer = make_pair()
    peer.sendall(b'one\r\n\r\nbody')
    channel.read_preamble()
    assert read(channel) == b'body'
    peer.sendall(b'more')
    peer.shutdown(socket.SHUT_WR)
    assert read(channel) == b'more'


def test_some_is_what_is_there(make_pair):
    channel, peer = make_pair()
    peer.sendall(b'some')
    assert channel.read_some(MIB) == b'some'


@pytest.mark.parametrize('read', [Channel.read, read_into])
def test_a_size_is_waited_for(make_pair, read):
    channel, peer = make_pair()
    with drip(peer, [b'12', b'345', b'6789'], 0.02):
        assert read(channel, 8) == b'12345678'
        assert read(channel, 1) == b'9'


def test_reads_never_take_more_than_they_were_asked_for(make_pair):
    channel, peer = make_pair()
    peer.sendall(b'one\r\n\r\n0123456789')
    channel.read_preamble()
    assert channel.read_some(3) == b'012'
    assert read_into(channel, 3) == b'345'
    assert channel.read_some(4) == b'6789'
    peer.sendall(b'abcdef')
    assert channel.read_some(3) == b'abc'
    assert read_into(channel, 2) == b'de'
    assert not channel.buffered
    assert channel.read_some(9) == b'f'


@read
def test_the_end_of_the_connection_is_an_empty_read(make_pair, read):
    channel, peer = make_pair()
    peer.close()
    assert read(channel) == b''


def test_one_read_is_at_most_a_piece(make_pair):
    channel, peer = make_pair()
    with drip(peer, [bytes(2 * MAX_PIECE)], 0):
        received = 0
        while received < 2 * MAX_PIECE:
            data = channel.read_some(10**15)
            assert len(data) <= MAX_PIECE
            received += len(data)


@read
def test_a_body_that_stops_is_limited(make_pair, read):
    channel, _peer = make_pair(Limits(body_window_s=0.2, idle_timeout_s=20))
    with Times(0.2), pytest.raises(PeerTimeoutError) as caught:
        read(channel)
    assert caught.value.limit == 'a body must move at least 1024 bytes/s'
    assert caught.value.timeout_s == 0.2


def read_for(channel, read, size):
    received = 0
    while received < size:
        received += len(read(channel))


@read
def test_a_body_that_comes_too_slowly_is_limited(make_pair, read):
    channel, peer = make_pair(Limits(body_window_s=0.3, min_body_rate=10_000))
    # 1000 to 2000 bytes a second.
    with drip(peer, [b'x' * 20] * 1000, 0.01), Times(0.3), pytest.raises(PeerTimeoutError):
        read_for(channel, read, 20_000)


@read
def test_a_body_that_comes_fast_enough_is_not_limited(make_pair, read):
    channel, peer = make_pair(Limits(body_window_s=0.1, min_body_rate=1000))
    # About 20,000 bytes a second, for many windows.
    with drip(peer, [b'x' * 200] * 40, 0.01), Times(0.35):
        read_for(channel, read, 8000)


@read
def test_our_own_pauses_do_not_count(make_pair, read):
    channel, peer = make_pair(Limits(body_window_s=0.1, min_body_rate=10**9))
    peer.sendall(b'x' * 10)
    for _ in range(10):
        time.sleep(0.03)
        assert channel.read_some(1) == b'x'


def test_a_line_of_a_body_is_limited_in_its_pace(make_pair):
    channel, peer = make_pair(Limits(body_window_s=0.2))
    peer.sendall(b'5;a')
    with Times(0.2), pytest.raises(PeerTimeoutError, match='a body must move'):
        channel.read_line(512)


def test_the_wait_for_a_chunk_is_judged_by_pace_unless_it_has_a_limit(make_pair):
    channel, _peer = make_pair(Limits(body_window_s=0.2))
    with Times(0.2), pytest.raises(PeerTimeoutError, match='a body must move'):
        channel.read_line(512)


def test_the_wait_for_a_chunk_can_have_a_limit_of_its_own(make_pair):
    channel, _peer = make_pair(Limits(body_window_s=20, chunk_gap_timeout_s=0.2))
    with Times(0.2), pytest.raises(PeerTimeoutError) as caught:
        channel.read_line(512)
    assert (caught.value.limit, caught.value.timeout_s) == ('the next chunk', 0.2)


def test_a_chunk_may_come_late_within_its_own_limit(make_pair):
    channel, peer = make_pair(Limits(body_window_s=0.1, chunk_gap_timeout_s=5))

    def act(stopped):
        for _ in range(3):
            stopped.wait(0.2)
            peer.sendall(b'5\r\n')

    with Peer(act), Times(0.6):
        for _ in range(3):
            assert channel.read_line(512) == b'5'


# --- a deadline ----------------------------------------------------------------------------------

WAITS = {
    'preamble': lambda channel: channel.read_preamble(),
    'rest of a preamble': lambda channel: channel.read_preamble(),
    'body': lambda channel: channel.read(100),
    'some of a body': lambda channel: channel.read_some(100),
    'into a buffer': lambda channel: channel.read_into(memoryview(bytearray(100))),
    'line': lambda channel: channel.read_line(100),
    'write': lambda channel: channel.write(bytes(64 * MIB)),
}


@pytest.mark.parametrize('gap_s', [None, HANG_S], ids=['pace', 'gap'])
@pytest.mark.parametrize('wait', WAITS)
def test_a_deadline_ends_every_wait(make_pair, wait, gap_s):
    channel, theirs = make_pair(DEFAULT_LIMITS._replace(chunk_gap_timeout_s=gap_s))
    if wait == 'rest of a preamble':
        theirs.sendall(b'GET')
    channel.set_deadline(Deadline(0.2))
    started = time.monotonic()
    with pytest.raises(PeerTimeoutError, match=r'a deadline \(0.2 s\)'):
        WAITS[wait](channel)
    assert 0.15 < time.monotonic() - started < HANG_S / 2


def test_a_deadline_holds_for_a_peer_that_moves_enough(make_pair):
    channel, theirs = make_pair()
    stop = threading.Event()

    def send():
        while not stop.wait(0.01):
            theirs.sendall(bytes(KIB))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        channel.set_deadline(Deadline(0.2))
        with pytest.raises(PeerTimeoutError, match='a deadline'):
            channel.read(MIB)
    finally:
        stop.set()
        thread.join()


def test_a_deadline_is_one_for_several_messages(plain_pair):
    ours, theirs = plain_pair
    channel = Channel(ours, DEFAULT_LIMITS)
    channel.set_deadline(Deadline(1.0))
    started = time.monotonic()
    timer = threading.Timer(0.8, theirs.sendall, (b'A\r\n\r\n',))
    timer.start()
    assert channel.read_preamble() == b'A'
    timer.join()
    with pytest.raises(PeerTimeoutError, match='a deadline'):
        channel.read_preamble()
    assert time.monotonic() - started < 1.6  # and not 0.8 and a whole second


def test_without_a_deadline_the_limits_hold_again(make_pair):
    channel, theirs = make_pair(DEFAULT_LIMITS._replace(idle_timeout_s=HANG_S))
    channel.set_deadline(Deadline(0.1))
    theirs.sendall(b'A\r\n\r\n')
    assert channel.read_preamble() == b'A'
    channel.set_deadline(None)
    timer = threading.Timer(0.3, theirs.sendall, (b'B\r\n\r\n',))
    timer.start()
    assert channel.read_preamble() == b'B'
    timer.join()


def test_deadlines_of_the_same_time_do_not_set_the_sockets_timeout_anew(make_pair, monkeypatch):
    channel, theirs = make_pair()
    waits = []
    monkeypatch.setattr('degu.channel.set_timeout', lambda sock, wait_s: waits.append(wait_s))
    for _ in range(5):
        channel.set_deadline(Deadline(20.0))
        theirs.sendall(b'A\r\n\r\n')
        assert channel.read_preamble() == b'A'
    assert len(waits) == 1
    assert 20 <= waits[0] < 21


def test_a_peer_that_is_there_is_not_gone(make_pair):
    channel, theirs = make_pair()
    theirs.sendall(b'something unread')
    assert not channel.is_peer_gone()


@pytest.mark.parametrize('how', ['close', 'shutdown'])
def test_a_peer_that_ended_its_side_is_gone_whatever_is_unread(make_pair, how):
    channel, theirs = make_pair()
    theirs.sendall(b'something unread')
    if how == 'close':
        theirs.close()
    else:
        socket.socket.shutdown(theirs, socket.SHUT_WR)
    assert channel.is_peer_gone()


# --- lines ---------------------------------------------------------------------------------------


def test_lines_are_read_one_by_one(make_pair):
    channel, peer = make_pair()
    peer.sendall(b'one\r\ntwo\r\n\r\nth')
    assert [channel.read_line(512) for _ in range(3)] == [b'one', b'two', b'']
    peer.sendall(b'ree\r')
    peer.sendall(b'\nrest')
    assert channel.read_line(512) == b'three'
    assert channel.read_some(10) == b'rest'


@pytest.mark.parametrize('gap_s', [None, 5.0])
@pytest.mark.parametrize('data', [b'', b'5', b'5\r'])
def test_the_end_inside_a_line_is_none(make_pair, data, gap_s):
    channel, peer = make_pair(Limits(chunk_gap_timeout_s=gap_s))
    peer.sendall(data)
    peer.close()
    assert channel.read_line(512) is None


@pytest.mark.parametrize(
    'pieces', [[b'123456\r\n'], [b'123456', b'\r', b'\n'], [b'123456\r', b'\n']]
)
def test_a_line_is_measured_without_its_end(make_pair, pieces):
    channel, peer = make_pair()
    with drip(peer, pieces, 0.02):
        assert channel.read_line(6) == b'123456'
    channel, peer = make_pair()
    with drip(peer, pieces, 0.02), pytest.raises(ProtocolError, match='at most 5 bytes'):
        channel.read_line(5)


# --- pace ----------------------------------------------------------------------------------------


def test_pace_judges_each_window_by_what_moved_in_it():
    pace = Pace(Limits(body_window_s=2.0, min_body_rate=100))
    pace.add(1.9, 0)
    pace.add(0.2, 200)
    pace.add(1.0, 100)
    with pytest.raises(PeerTimeoutError):
        pace.add(1.0, 99)


def test_pace_lets_a_wait_last_to_the_end_of_its_window():
    pace = Pace(Limits(body_window_s=3.2, min_body_rate=1))
    assert pace.next_wait_s() == 3.2
    for waited_s in (0.05, 1.0, 1.0, 1.0):
        pace.add(waited_s, 0)
        assert 0 < pace.next_wait_s() <= 3.2
    assert pace.next_wait_s() == pytest.approx(0.2)


def test_pace_asks_for_few_different_waits():
    pace = Pace(Limits(body_window_s=3.0))
    waits = set()
    for _ in range(10_000):
        waits.add(pace.next_wait_s())
        pace.add(0.0003, 1000)
    assert len(waits) <= 33


# --- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [0, 1, 64 * KIB, MAX_PIECE, MAX_PIECE + 1, 5 * MIB + 3])
@pytest.mark.parametrize('kind', [bytes, bytearray, memoryview])
def test_all_of_it_is_written(make_pair, size, kind):
    channel, peer = make_pair()
    content = os.urandom(size)
    channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with collect(peer) as receiver:
        channel.write(kind(content))
        channel.close()
    assert receiver.result == content


def write_to_slow_reader(channel, peer, content):
    """Write to a peer that reads 16 KiB every 20 ms; return what it read."""
    channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def act(stopped):
        received = bytearray()
        while data := peer.recv(16 * KIB):
            received += data
            stopped.wait(0.02)
        return bytes(received)

    with Peer(act) as receiver:
        try:
            channel.write(content)
        finally:
            channel.close()
        receiver.join(HANG_S)
    return receiver.result


def test_writes_go_on_where_a_slow_peer_let_them_stop(plain_pair):
    sock, peer = plain_pair
    content = os.urandom(400 * KIB)
    with Times(0.4, HANG_S):
        channel = Channel(sock, Limits(body_window_s=0.2, min_body_rate=1000))
        assert write_to_slow_reader(channel, peer, content) == content


def test_a_tls_peer_that_takes_each_piece_within_a_window_is_not_cut_off(temp_pki):
    sock, peer = connect_tls(temp_pki)
    content = os.urandom(4 * TLS_PIECE)
    with sock, peer:
        channel = Channel(sock, Limits(body_window_s=2.0, min_body_rate=1000))
        assert write_to_slow_reader(channel, peer, content) == content


@pytest.mark.parametrize('size', [64 * KIB, 4 * MIB])
def test_a_peer_that_does_not_read_is_limited(make_pair, size):
    channel, _peer = make_pair(Limits(body_window_s=0.2, idle_timeout_s=20))
    channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with Times(0.2), pytest.raises(PeerTimeoutError, match='a body must move'):
        channel.write(bytes(size))


def test_small_waits_of_many_bodies_do_not_add_up(plain_pair):
    ours, theirs = plain_pair
    channel = Channel(ours, Limits(body_window_s=0.2))
    for _ in range(6):  # 0.3 s of waiting in all
        theirs.sendall(b'preamble\r\n\r\n')
        assert channel.read_preamble() == b'preamble'
        timer = threading.Timer(0.05, theirs.sendall, [b'body'])
        timer.start()
        assert channel.read(4) == b'body'
        timer.join()


def test_a_peer_that_reads_too_slowly_is_limited(make_pair):
    channel, peer = make_pair(Limits(body_window_s=0.3, min_body_rate=10**9))
    channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def act(stopped):
        while peer.recv(KIB):
            stopped.wait(0.002)

    with Peer(act), Times(0.3):
        with pytest.raises(PeerTimeoutError, match='a body must move'):
            write_often(channel, bytes(KIB))
        channel.close()


def write_often(channel, data):
    for _ in range(10_000):
        channel.write(data)


@pytest.mark.parametrize('data', [b'x', bytes(MIB + 1)], ids=['small', 'big'])
def test_a_write_to_a_peer_that_is_gone_says_so(make_pair, data):
    channel, peer = make_pair()
    peer.close()
    assert channel.write_error is None
    with pytest.raises(OSError) as caught:
        write_often(channel, data)
    assert channel.write_error is caught.value


def test_a_timeout_of_a_write_is_a_write_error(make_pair):
    channel, _peer = make_pair(Limits(body_window_s=0.05))
    with pytest.raises(PeerTimeoutError) as caught:
        channel.write(bytes(4 * MIB))
    assert channel.write_error is caught.value


def test_only_plain_sockets_can_send_files(make_pair):
    channel, _peer = make_pair()
    assert channel.can_send_files is not isinstance(channel.sock, ssl.SSLSocket)


@pytest.mark.parametrize(('offset', 'size'), [(0, 0), (0, 5), (3, 4), (7, 3 * MIB)])
def test_send_file_sends_a_part_of_a_file(plain_pair, tmp_path, offset, size):
    ours, theirs = plain_pair
    content = os.urandom(4 * MIB)
    path = tmp_path / 'file'
    path.write_bytes(content)
    channel = Channel(ours, DEFAULT_LIMITS)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with path.open('rb') as fp, collect(theirs) as receiver:
        assert channel.send_file(fp, offset, size) == size
        channel.close()
    assert receiver.result == content[offset : offset + size]


def test_send_file_says_how_much_there_was(plain_pair, tmp_path):
    ours, theirs = plain_pair
    path = tmp_path / 'file'
    path.write_bytes(b'hello world')
    with path.open('rb') as fp:
        assert Channel(ours, DEFAULT_LIMITS).send_file(fp, 6, 100) == 5
    assert theirs.recv(100) == b'world'


def test_send_file_to_a_peer_that_does_not_read_is_limited(plain_pair, tmp_path):
    ours, _theirs = plain_pair
    path = tmp_path / 'file'
    path.write_bytes(bytes(4 * MIB))
    with path.open('rb') as fp, Times(0.2), pytest.raises(PeerTimeoutError, match='a body must'):
        Channel(ours, Limits(body_window_s=0.2)).send_file(fp, 0, 4 * MIB)


def test_send_file_to_a_peer_that_is_gone_says_so(plain_pair, tmp_path):
    ours, theirs = plain_pair
    path = tmp_path / 'file'
    path.write_bytes(bytes(4 * MIB))
    channel = Channel(ours, DEFAULT_LIMITS)
    theirs.close()
    with path.open('rb') as fp, pytest.raises(OSError) as caught:
        channel.send_file(fp, 0, 4 * MIB)
    assert channel.write_error is caught.value


# --- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('wait', 'seen'),
    [
        pytest.param(Channel.read_preamble, None, id='read_preamble'),
        pytest.param(READS['read_some'], b'', id='read_some'),
        pytest.param(READS['read_into'], b'', id='read_into'),
        pytest.param(lambda channel: channel.read_line(512), None, id='read_line'),
    ],
)
def test_interrupt_wakes_a_read_with_the_end(make_pair, wait, seen):
    channel, _peer = make_pair()
    results = []
    thread = threading.Thread(target=lambda: results.append(wait(channel)))
    thread.start()
    wait_until_blocked(thread)
    interrupt(channel)
    thread.join(HANG_S)
    assert results == [seen]


def test_interrupt_wakes_a_write_with_an_error(make_pair):
    channel, _peer = make_pair()
    writer = Peer(lambda _stopped: channel.write(bytes(8 * MIB)))
    with writer:
        wait_until_blocked(writer)
        interrupt(channel)
    assert isinstance(writer.result, OSError)
    assert not isinstance(writer.result, PeerTimeoutError)


def test_interrupt_of_the_read_side_lets_an_answer_out(plain_pair):
    sock, peer = plain_pair
    channel = Channel(sock, DEFAULT_LIMITS)
    interrupt(channel, socket.SHUT_RD)
    assert channel.read_preamble() is None
    channel.write(b'the last answer')
    assert peer.recv(100) == b'the last answer'


def test_a_second_close_does_nothing(make_pair):
    channel, _peer = make_pair()
    channel.close()
    channel.close()


def interrupt(channel, how=socket.SHUT_RDWR):
    """Do what the server does from another thread: SSLSocket's own would disturb the channel."""
    socket.socket.shutdown(channel.sock, how)


def wait_until_blocked(thread):
    """Wait until the thread sleeps: most likely for its socket; the outcome must be the same."""
    deadline = time.monotonic() + HANG_S
    stat = Path(f'/proc/self/task/{thread.native_id}/stat')
    while stat.read_text().rpartition(')')[2].split()[0] != 'S':
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_close_reaches_the_peer_though_another_has_a_copy_of_the_socket(make_pair):
    channel, peer = make_pair()
    with socket.socket(fileno=os.dup(channel.sock.fileno())):
        channel.close()
        assert peer.recv(100) == b''


def test_an_orderly_close_lets_the_peer_read_what_it_was_sent(tcp_pair):
    channel, peer = tcp_pair
    peer.sendall(bytes(32 * KIB))
    channel.write(b'an answer')

    def act(_stopped):
        received = b''
        while data := peer.recv(100):
            received += data
        peer.close()
        return received

    with Peer(act) as reader:
        channel.close_orderly()
    assert reader.result == b'an answer'


def test_an_orderly_close_does_not_wait_for_a_peer_that_is_done(make_pair):
    channel, peer = make_pair()
    channel.write(b'an answer')
    assert peer.recv(100) == b'an answer'
    peer.close()
    with Times(0, 0.5):
        channel.close_orderly()
    assert channel.sock.fileno() == -1


def test_an_orderly_close_waits_a_second_at_most(make_pair):
    channel, peer = make_pair()
    with drip(peer, [b'x'] * 1000, 0.05), Times(LINGER_TIMEOUT_S, 3):
        channel.close_orderly()
    assert channel.sock.fileno() == -1


def test_an_orderly_close_reads_64_kib_at_most(tcp_pair):
    channel, peer = tcp_pair
    peer.settimeout(HANG_S)

    def act(_stopped):
        sent = 0
        while True:
            try:
                sent += peer.send(bytes(KIB))
            except OSError:
                return sent

    started = time.monotonic()
    with Peer(act) as sender:
        channel.close_orderly()
        took_s = time.monotonic() - started
    assert LINGER_SIZE == 64 * KIB
    assert took_s < LINGER_TIMEOUT_S / 2
    assert sender.result >= 0


def test_an_orderly_close_of_a_dead_connection_is_a_close(make_pair):
    channel, _peer = make_pair()
    interrupt(channel)
    channel.close_orderly()
    assert channel.sock.fileno() == -1
