"""Bodies that arrive, through a channel over a real socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import tracemalloc
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu.bodies import (
    MAX_READ,
    ChunkedInput,
    Input,
)
from degu.channel import MAX_PIECE, Channel
from degu.errors import (
    BodyClosedError,
    BodyError,
    BodyTooLargeError,
    PeerTimeoutError,
    ProtocolError,
    UnderFlowError,
)
from degu.limits import DEFAULT_LIMITS, Limits

KIB = 1024
MIB = 1024 * KIB


@pytest.fixture
def make_pair():
    """Give `make_pair(data=None, limits=...)`: a channel, and a peer that sent `data` and ended."""
    sockets = []

    def make(data=None, limits=DEFAULT_LIMITS, kind=socket.SOCK_STREAM):
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        sockets.extend((ours, theirs))
        theirs.settimeout(10)
        if data is not None:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
        return Channel(ours, limits), theirs

    yield make
    for sock in sockets:
        sock.close()


@pytest.fixture
def make_input(make_pair):
    """Give `make_input(data, content_length)`: an Input whose peer sent `data` and ended."""
    return lambda data, content_length: Input(make_pair(data)[0], content_length)


@pytest.fixture
def make_chunked(make_pair):
    """Give `make_chunked(data, limits=...)`: a ChunkedInput whose peer sent `data` and ended."""
    return lambda data, limits=DEFAULT_LIMITS: ChunkedInput(make_pair(data, limits)[0])


class Sender:
    """Sends in a thread of its own; joined at the end, sent or not."""

    def __init__(self, sock, data):
        self.sock = sock
        self.data = data
        self.thread = threading.Thread(target=self._send)

    def _send(self):
        try:
            self.sock.sendall(self.data)
        except OSError:
            self.sent_all = False
        else:
            self.sent_all = True

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        # What was not read would keep the thread waiting.
        self.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join()


class DribbleSocket(socket.socket):
    """A real socket whose peer sends one more small piece just before each receive.

    A receive that should wait for all ends early here, as it does when a signal comes.
    """

    def start(self, peer, pieces):
        self.peer = peer
        self.pieces = iter(pieces)

    def _dribble(self):
        piece = next(self.pieces, None)
        if piece is not None:
            self.peer.send(piece)

    def recv(self, size, flags=0):
        self._dribble()
        return super().recv(size, flags & ~socket.MSG_WAITALL)

    def recv_into(self, buffer, nbytes=0, flags=0):
        self._dribble()
        return super().recv_into(buffer, nbytes, flags & ~socket.MSG_WAITALL)


@pytest.fixture
def dribble():
    """Give `dribble(pieces)`: a channel that receives the pieces one by one."""
    sockets = []

    def make(pieces):
        ours, theirs = socket.socketpair()
        sock = DribbleSocket(fileno=ours.detach())
        sockets.extend((sock, theirs))
        sock.start(theirs, pieces)
        return Channel(sock, DEFAULT_LIMITS)

    yield make
    for sock in sockets:
        sock.close()


# --- Input ---------------------------------------------------------------------------------------


def test_input_says_what_is_left(make_input):
    body = make_input(b'hello world', 11)
    assert (body.content_length, body.remaining, body.closed, body.chunked) == (
        11,
        11,
        False,
        False,
    )
    assert repr(body) == 'Input(11 of 11 bytes unread)'
    assert body.read(5) == b'hello'
    assert (body.content_length, body.remaining, body.closed) == (11, 6, False)
    assert body.read() == b' world'
    assert (body.content_length, body.remaining, body.closed) == (11, 0, True)
    assert repr(body) == 'Input(0 of 11 bytes unread)'
    assert body.error is None


@pytest.mark.parametrize('size', [None, 5, 6, 10**15])
def test_input_read_stops_at_the_end_of_the_body(make_input, size):
    body = make_input(b'hello, and the next message', 5)
    assert body.read(size) == b'hello'
    assert body.closed


def test_input_read_after_the_end_is_empty(make_input):
    body = make_input(b'hello', 5)
    body.read()
    assert body.read() == b''
    assert body.read(5) == b''
    assert body.readinto(bytearray(5)) == 0


def test_input_read_of_zero_bytes_reads_nothing(make_input):
    body = make_input(b'hello', 5)
    assert body.read(0) == b''
    assert (body.remaining, body.closed) == (5, False)


@pytest.mark.parametrize('content_length', [0, 5])
def test_input_refuses_a_negative_size(make_input, content_length):
    body = make_input(b'hello', content_length)
    with pytest.raises(ValueError, match='size must be None or 0 and above, not -1'):
        body.read(-1)
    assert not body.closed


def test_an_empty_input_ends_at_once(make_input):
    body = make_input(b'', 0)
    assert not body.closed
    assert body.read() == b''
    assert body.closed
    assert list(make_input(b'', 0)) == []


def test_input_read_waits_for_all_it_was_asked_for(dribble):
    body = Input(dribble([b'he', b'l', b'lo wo', b'rld']), 11)
    assert body.read(8) == b'hello wo'
    assert body.read() == b'rld'


def test_input_readinto_fills_the_buffer(dribble):
    body = Input(dribble([b'he', b'l', b'lo wo', b'rld']), 11)
    buffer = bytearray(8)
    assert body.readinto(buffer) == 8
    assert buffer == b'hello wo'
    assert body.readinto(memoryview(buffer)) == 3
    assert buffer == b'rldlo wo'
    assert body.closed
    assert body.readinto(buffer) == 0


def test_input_readinto_takes_what_was_received_with_the_preamble_first(make_pair):
    channel, _ = make_pair(b'a\r\n\r\nhello world')
    assert channel.read_preamble() == b'a'
    body = Input(channel, 5)
    buffer = bytearray(10)
    assert body.readinto(buffer) == 5
    assert buffer == b'hello' + bytes(5)
    assert channel.buffered


def test_input_readinto_an_empty_buffer_reads_nothing(make_input):
    body = make_input(b'hello', 5)
    assert body.readinto(bytearray()) == 0
    assert body.remaining == 5


def test_input_iterates_in_pieces_that_add_up(make_pair):
    channel, peer = make_pair()
    content = os.urandom(3 * MIB + 7)
    with Sender(peer, content):
        pieces = list(Input(channel, len(content)))
    assert b''.join(pieces) == content
    assert max(map(len, pieces)) <= MAX_PIECE
    assert all(pieces)


def test_input_iterates_in_pieces_of_a_mebibyte_though_more_was_received(make_pair):
    channel, _ = make_pair()
    channel.buffered = bytes(MAX_PIECE + 7)
    assert [len(piece) for piece in Input(channel, MAX_PIECE + 7)] == [MAX_PIECE, 7]


def test_input_iteration_goes_on_where_a_read_stopped(make_input):
    body = make_input(b'hello world', 11)
    assert body.read(6) == b'hello '
    assert b''.join(body) == b'world'
    assert body.closed


def test_a_closed_input_is_not_iterated(make_input):
    body = make_input(b'hello', 5)
    body.read()
    with pytest.raises(BodyClosedError) as caught:
        iter(body)
    assert caught.value.body is body
    assert isinstance(caught.value, BodyError)


INPUT_USES = {
    'read': lambda body: body.read(),
    'read_size': lambda body: body.read(11),
    'readinto': lambda body: body.readinto(bytearray(11)),
    'iterate': lambda body: list(body),
    'drain': lambda body: body.drain(11),
}


@pytest.mark.parametrize('use', INPUT_USES.values(), ids=INPUT_USES.keys())
@pytest.mark.parametrize('sent', [b'', b'hello'])
def test_an_input_that_ends_early_is_an_underflow(make_input, use, sent):
    body = make_input(sent, 11)
    with pytest.raises(UnderFlowError) as caught:
        use(body)
    assert (caught.value.received, caught.value.expected) == (len(sent), 11)
    assert str(caught.value) == f'the body ended after {len(sent)} bytes, expected 11 bytes'
    assert body.closed
    assert body.error is caught.value


@pytest.mark.parametrize('use', INPUT_USES.values(), ids=INPUT_USES.keys())
def test_an_input_that_failed_is_never_taken_for_complete(make_input, use):
    body = make_input(b'hello', 11)
    with pytest.raises(UnderFlowError):
        body.read()
    if use is INPUT_USES['drain']:
        assert use(body) is False
    else:
        with pytest.raises(BodyClosedError):
            use(body)


def test_input_keeps_what_made_it_fail(make_pair):
    channel, _peer = make_pair(limits=Limits(body_window_s=0.05))
    body = Input(channel, 5)
    with pytest.raises(PeerTimeoutError) as caught:
        body.read()
    assert body.closed
    assert body.error is caught.value


def test_input_drain_reads_the_rest(make_pair):
    channel, _ = make_pair(b'hello worldnext')
    body = Input(channel, 11)
    body.read(2)
    assert body.drain(9) is True
    assert body.closed
    assert channel.read_some(100) == b'next'


def test_input_drain_reads_nothing_of_what_is_too_much(make_pair):
    channel, _ = make_pair(b'hello world')
    body = Input(channel, 11)
    assert body.drain(10) is False
    assert (body.closed, body.remaining) == (False, 11)
    assert channel.read_some(100) == b'hello world'


def test_input_drain_of_a_body_that_was_read_does_nothing(make_input):
    body = make_input(b'hello', 5)
    body.read()
    assert body.drain(0) is True


# --- ChunkedInput --------------------------------------------------------------------------------


def test_chunked_input_gives_the_data_of_each_chunk(make_chunked):
    body = make_chunked(b'5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n')
    assert (body.chunked, body.closed, repr(body)) == (True, False, 'ChunkedInput(open)')
    assert body.readchunk() == b'hello'
    assert body.readchunk() == b' world'
    assert not body.closed
    assert body.readchunk() == b''
    assert (body.closed, repr(body), body.error) == (True, 'ChunkedInput(closed)', None)


def test_chunked_input_extension_is_that_of_the_chunk_just_read(make_chunked):
    body = make_chunked(b'1;a=b\r\nx\r\n1\r\ny\r\n0;c=d\r\n\r\n')
    assert body.extension is None
    assert [(data, body.extension) for data in body] == [
        (b'x', b'a=b'),
        (b'y', None),
        (b'', b'c=d'),
    ]


def test_chunked_input_iterates_with_the_empty_chunk_at_the_end(make_chunked):
    body = make_chunked(b'1\r\nx\r\n0\r\n\r\n')
    assert list(body) == [b'x', b'']
    assert body.closed


def test_chunked_input_iteration_goes_on_where_readchunk_stopped(make_chunked):
    body = make_chunked(b'1\r\nx\r\n1\r\ny\r\n0\r\n\r\n')
    body.readchunk()
    assert list(body) == [b'y', b'']


def test_chunked_data_may_look_like_framing(make_chunked):
    data = b'0\r\n\r\n5;a=b\r\n'
    assert make_chunked(b'%x\r\n%b\r\n0\r\n\r\n' % (len(data), data)).read() == data


def test_chunked_input_stops_at_its_end(make_pair):
    channel, _ = make_pair(b'1\r\nx\r\n0\r\n\r\nnext')
    assert ChunkedInput(channel).read() == b'x'
    assert channel.read_some(100) == b'next'


@pytest.mark.parametrize('data', [b'0\r\n\r\n', b'1\r\nx\r\n0\r\n\r\n'])
def test_a_closed_chunked_input_is_not_used_again(make_chunked, data):
    body = make_chunked(data)
    body.read()
    with pytest.raises(BodyClosedError) as caught:
        iter(body)
    assert caught.value.body is body
    with pytest.raises(BodyClosedError):
        body.readchunk()
    assert body.read() == b''


def test_a_chunked_body_outside_the_grammar_is_refused(make_chunked, refused_chunks):
    body = make_chunked(refused_chunks.data + b'GET')
    with pytest.raises(ProtocolError) as caught:
        body.read()
    assert caught.value.status == refused_chunks.expected
    assert body.closed
    assert body.error is caught.value
    with pytest.raises(BodyClosedError):
        body.readchunk()


@pytest.mark.parametrize('dribbled', [False, True])
@pytest.mark.parametrize('size', [511, 512])
def test_a_chunk_line_of_the_largest_size_is_taken(make_chunked, dribble, size, dribbled):
    extension = b'a=' + b'b' * (size - 4)
    data = b'1;' + extension + b'\r\nx\r\n0\r\n\r\n'
    body = ChunkedInput(dribble(bytes([byte]) for byte in data)) if dribbled else make_chunked(data)
    assert body.readchunk() == b'x'
    assert body.extension == extension
    assert body.readchunk() == b''


@pytest.mark.parametrize('dribbled', [False, True])
def test_a_chunk_line_over_its_limit_is_refused(make_chunked, dribble, dribbled):
    data = b'1;a=' + b'b' * 509 + b'\r\nx\r\n0\r\n\r\n'
    body = ChunkedInput(dribble(bytes([byte]) for byte in data)) if dribbled else make_chunked(data)
    with pytest.raises(ProtocolError, match='a chunk line is at most 512 bytes'):
        body.readchunk()


def test_a_chunk_line_over_its_limit_that_came_with_another_chunk_is_refused(make_chunked):
    body = make_chunked(b'1\r\nx\r\n' + b'1;a=' + b'b' * 509 + b'\r\nx\r\n0\r\n\r\n')
    assert body.readchunk() == b'x'
    with pytest.raises(ProtocolError, match='a chunk line is at most 512 bytes'):
        body.readchunk()


def test_a_chunk_line_without_an_end_is_refused_at_its_limit(make_chunked):
    with pytest.raises(ProtocolError, match='a chunk line is at most 512 bytes'):
        make_chunked(b'5' * 600).readchunk()


def test_the_chunk_limits_are_those_of_the_channel(make_chunked):
    limits = Limits(max_chunk=4, max_chunk_line=6)
    assert make_chunked(b'4\r\nabcd\r\n0\r\n\r\n', limits).read() == b'abcd'
    with pytest.raises(ProtocolError, match='a chunk is at most 4 bytes'):
        make_chunked(b'5\r\nhello\r\n0\r\n\r\n', limits).read()
    with pytest.raises(ProtocolError, match='a chunk line is at most 6 bytes'):
        make_chunked(b'4;a=bcd\r\nabcd\r\n0\r\n\r\n', limits).read()


@pytest.mark.parametrize(
    ('data', 'received', 'expected'),
    [
        (b'', 0, None),
        (b'5', 0, None),
        (b'5\r\n', 0, 5),
        (b'5\r\nhel', 3, 5),
        (b'5\r\nhello', 5, None),
        (b'5\r\nhello\r', 5, None),
        (b'5\r\nhello\r\n', 5, None),
        (b'5\r\nhello\r\n6\r\n wo', 8, 11),
        (b'5\r\nhello\r\n0', 5, None),
        (b'5\r\nhello\r\n0\r\n', 5, None),
        (b'5\r\nhello\r\n0\r\n\r', 5, None),
    ],
)
def test_a_chunked_input_that_ends_early_is_an_underflow(make_chunked, data, received, expected):
    body = make_chunked(data)
    with pytest.raises(UnderFlowError) as caught:
        body.read()
    assert (caught.value.received, caught.value.expected) == (received, expected)
    assert body.closed
    assert body.error is caught.value
    assert body.drain(100) is False
    for use in (list, ChunkedInput.read, ChunkedInput.readchunk):
        with pytest.raises(BodyClosedError):
            use(body)


def test_chunked_read_is_bounded(make_chunked):
    data = b'5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n'
    assert make_chunked(data).read(11) == b'hello world'
    body = make_chunked(data)
    with pytest.raises(BodyTooLargeError, match='longer than 10 bytes') as caught:
        body.read(max_size=10)
    assert caught.value.max_size == 10
    assert body.closed
    assert body.error is caught.value
    with pytest.raises(BodyClosedError):
        body.readchunk()


def test_chunked_read_refuses_a_chunk_that_is_too_much_before_its_data(make_chunked):
    with pytest.raises(BodyTooLargeError, match='longer than 10 bytes'):
        make_chunked(b'5\r\nhello\r\n6\r\n').read(10)


def test_chunked_read_tells_its_own_bound_from_the_limit_of_a_chunk(make_chunked):
    with pytest.raises(ProtocolError, match='a chunk is at most 4 bytes'):
        make_chunked(b'5\r\n', Limits(max_chunk=4)).read(10)


def test_chunked_read_is_bounded_to_16_mib_by_default(make_pair):
    assert MAX_READ == 16 * MIB
    channel, peer = make_pair()
    chunk = b'%x\r\n%b\r\n' % (8 * MIB, bytes(8 * MIB))
    with Sender(peer, chunk * 2 + b'1\r\nx\r\n0\r\n\r\n'), pytest.raises(BodyTooLargeError):
        ChunkedInput(channel).read()


def test_chunked_drain_reads_the_rest(make_pair):
    channel, _ = make_pair(b'1\r\nx\r\n5\r\nhello\r\n0\r\n\r\nnext')
    body = ChunkedInput(channel)
    body.readchunk()
    assert body.drain(5) is True
    assert body.closed
    assert channel.read_some(100) == b'next'


def test_chunked_drain_gives_up_at_what_is_too_much(make_chunked):
    body = make_chunked(b'5\r\nhello\r\n1\r\nx\r\n0\r\n\r\n')
    assert body.drain(5) is False
    assert body.closed


def test_chunked_drain_gives_up_at_too_many_lines(make_chunked):
    body = make_chunked(b'1;name=%b\r\nx\r\n' % (b'v' * 40) * 20 + b'0\r\n\r\n')
    assert body.drain(100) is False
    assert not body.closed


def test_chunked_drain_of_what_is_no_chunk_gives_up(make_chunked):
    assert make_chunked(b'what?\r\n').drain(100) is False


def test_chunked_drain_of_a_body_that_was_read_does_nothing(make_chunked):
    body = make_chunked(b'0\r\n\r\n')
    body.read()
    assert body.drain(0) is True


# --- memory --------------------------------------------------------------------------------------


def peak_of(use):
    """Return the most that Python held at once during `use()`, bytes."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        with pytest.raises(UnderFlowError):
            use()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    'use',
    [
        lambda body: body.read(),
        lambda body: body.read(10**14),
        lambda body: list(body),
        lambda body: body.readinto(bytearray(100)),
    ],
    ids=['read', 'read_size', 'iterate', 'readinto'],
)
def test_memory_does_not_follow_the_content_length(make_input, use):
    body = make_input(b'ten bytes.', 10**15)
    assert peak_of(lambda: use(body)) < 2 * MIB


@pytest.mark.parametrize(
    'use',
    [lambda body: body.read(), lambda body: list(body), lambda body: body.drain(64 * MIB)],
    ids=['read', 'iterate', 'drain'],
)
def test_memory_does_not_follow_the_chunk_size(make_chunked, use):
    body = make_chunked(b'1000000\r\nten bytes.')
    assert peak_of(lambda: use(body)) < 2 * MIB


# In a process of its own: the C library must not have learned yet to keep large pieces in its heap.
PIECES = """
import os, socket
from degu.bodies import ChunkedInput, Input
from degu.channel import Channel
from degu.errors import UnderFlowError
from degu.limits import DEFAULT_LIMITS

COUNT = 10_000

def resident_size():
    with open('/proc/self/statm') as fp:
        return int(fp.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')

class DribbleSocket(socket.socket):
    def recv(self, size, flags=0):
        self.left -= 1
        if self.left:
            self.peer.send(b'xy')
        else:
            print(resident_size() - self.before)
            self.peer.shutdown(socket.SHUT_WR)
        return super().recv(size, flags & ~socket.MSG_WAITALL)

ours, theirs = socket.socketpair()
sock = DribbleSocket(fileno=ours.detach())
sock.peer = theirs
sock.left = COUNT
theirs.send(START)
channel = Channel(sock, DEFAULT_LIMITS)
sock.before = resident_size()
try:
    READ(channel)
except UnderFlowError as error:
    print(error.received)
"""


@pytest.mark.parametrize(
    ('start', 'read'),
    [
        (b'xy', 'lambda channel: Input(channel, 10**9).read()'),
        (b'1000000\r\n', 'lambda channel: ChunkedInput(channel).readchunk()'),
    ],
    ids=['read', 'chunk'],
)
def test_memory_does_not_follow_the_number_of_pieces(start, read):
    script = PIECES.replace('START', repr(start)).replace('READ', f'({read})')
    command = [sys.executable, '-c', script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    grown, received = map(int, done.stdout.split())
    assert received >= 19_000
    # A page each would be 40 MiB.
    assert grown < 10 * MIB


def test_memory_does_not_follow_the_number_of_chunks(make_pair):
    count = 20_000
    channel, peer = make_pair()
    body = ChunkedInput(channel)
    with Sender(peer, b'2\r\nxy\r\n' * count + b'0\r\n\r\n'):
        tracemalloc.start()
        try:
            data = body.read()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert data == b'xy' * count
    assert peak < 10 * len(data)


# --- properties ----------------------------------------------------------------------------------


@given(st.binary(max_size=2000), st.lists(st.integers(0, 300), max_size=20))
def test_reads_of_any_sizes_add_up_to_the_body(content, sizes):
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        theirs.sendall(content + b'next')
        channel = Channel(ours, DEFAULT_LIMITS)
        body = Input(channel, len(content))
        pieces = []
        for size in sizes:
            piece = body.read(size)
            assert len(piece) == min(size, len(content) - sum(map(len, pieces)))
            pieces.append(piece)
        pieces.append(body.read())
        assert b''.join(pieces) == content
        assert channel.read_some(100) == b'next'


@given(st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(
    [b'0', b'5', b'\r\n', b';a=b', b'hello', b'\r', b'\n', b'5\r\nhello\r\n', b'0\r\n\r\n'],
), max_size=10).map(b''.join)))  # fmt: skip
def test_arbitrary_bytes_as_chunks_raise_only_documented_errors(data):
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        body = ChunkedInput(Channel(ours, DEFAULT_LIMITS))
        try:
            body.read()
        except (ProtocolError, UnderFlowError) as error:
            assert body.error is error  # noqa: PT017  # no error is as good
        assert body.closed
