"""Bodies that are sent, and how they leave through a channel over a real socket."""

from __future__ import annotations

import array
import bz2
import gzip
import io
import os
import socket
import threading
import time
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu.bodies import (
    JOIN_SIZE,
    ChunkedInput,
    ChunkedOutput,
    FileOutput,
    Input,
    Output,
    body_length,
    write_message,
)
from degu.channel import Channel
from degu.errors import (
    BodyClosedError,
    OverFlowError,
    PeerTimeoutError,
    UnderFlowError,
)
from degu.limits import DEFAULT_LIMITS, Limits
from degu.tls import build_client_sslctx, build_server_sslctx
from degu.wire import CHUNKED

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


# --- what is sent --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'items', [[], [b'hello'], [b'he', b'', b'llo'], [bytearray(b'hel'), b'lo']]
)
def test_output_gives_what_its_source_gives(items):
    size = sum(map(len, items))
    body = Output(items, size)
    assert (body.chunked, body.closed, body.content_length) == (False, False, size)
    assert repr(body) == f'Output({size} bytes)'
    assert b''.join(body) == b''.join(items)
    assert body.closed


@pytest.mark.parametrize(
    ('items', 'content_length', 'given_', 'received'),
    [
        ([b'hello'], 4, [], 5),
        ([b'hel', b'lo'], 4, [b'hel'], 5),
        ([b'hello', b'x', b'y'], 5, [b'hello'], 6),
        ([b'x'], 0, [], 1),
    ],
)
def test_output_never_gives_more_than_it_announced(items, content_length, given_, received):
    taken = []
    with pytest.raises(OverFlowError) as caught:
        taken.extend(Output(items, content_length))
    assert taken == given_
    assert (caught.value.received, caught.value.expected) == (received, content_length)
    assert str(caught.value) == (
        f'the body went on to {received} bytes, expected {content_length} bytes'
    )


@pytest.mark.parametrize(('items', 'content_length'), [([], 1), ([b'hello'], 6), ([b'', b''], 1)])
def test_output_that_ends_early_is_an_underflow(items, content_length):
    with pytest.raises(UnderFlowError) as caught:
        list(Output(items, content_length))
    assert (caught.value.received, caught.value.expected) == (
        sum(map(len, items)),
        content_length,
    )


def test_output_counts_bytes_not_elements():
    numbers = array.array('I', [1, 2, 3])
    body = Output([memoryview(numbers)], numbers.itemsize * 3)
    assert b''.join(body) == numbers.tobytes()
    with pytest.raises(OverFlowError):
        list(Output([numbers], 3))


@pytest.mark.parametrize('item', ['text', 5, None])
def test_output_of_what_is_no_bytes_is_refused(item):
    with pytest.raises(TypeError):
        list(Output([item], 4))
    with pytest.raises(TypeError):
        list(ChunkedOutput([item, b'']))


def test_chunked_output_gives_extensions_and_data():
    body = ChunkedOutput([b'hello', (b'a=b', b'world'), (None, bytearray(b'!')), b''])
    assert (body.chunked, body.closed, repr(body)) == (True, False, 'ChunkedOutput(open)')
    assert list(body) == [(None, b'hello'), (b'a=b', b'world'), (None, b'!'), (None, b'')]
    assert (body.closed, repr(body)) == (True, 'ChunkedOutput(closed)')


def test_chunked_output_may_have_an_extension_at_its_end():
    assert list(ChunkedOutput([(b'a=b', b'')])) == [(b'a=b', b'')]


@pytest.mark.parametrize(
    ('items', 'received'), [([], 0), ([b'hello'], 5), ([b'hello', (b'a=b', b' world')], 11)]
)
def test_chunked_output_without_an_empty_last_item_is_an_underflow(items, received):
    with pytest.raises(UnderFlowError) as caught:
        list(ChunkedOutput(items))
    assert (caught.value.received, caught.value.expected) == (received, None)
    assert str(caught.value) == (
        f'the body ended after {received} bytes, expected a final empty chunk'
    )


@pytest.mark.parametrize(
    ('items', 'received'), [([b'', b'x'], 1), ([b'hello', b'', b'x'], 6), ([b'', b''], 0)]
)
def test_chunked_output_after_its_empty_item_is_an_overflow(items, received):
    with pytest.raises(OverFlowError) as caught:
        list(ChunkedOutput(items))
    assert caught.value.received == received


def test_chunked_output_counts_bytes_not_elements():
    numbers = array.array('I', [1, 2, 3])
    ((_, data), _) = ChunkedOutput([numbers, b''])
    assert len(data) == numbers.itemsize * 3


def test_file_output_gives_the_file_from_its_position():
    fp = io.BytesIO(b'hello world')
    fp.seek(6)
    body = FileOutput(fp, 3)
    assert (body.chunked, body.closed, body.content_length) == (False, False, 3)
    assert repr(body) == 'FileOutput(3 bytes)'
    assert list(body) == [b'wor']
    assert body.closed
    assert fp.tell() == 9


def test_file_output_iterates_in_pieces():
    content = os.urandom(2 * MIB + 1)
    pieces = list(FileOutput(io.BytesIO(content), len(content)))
    assert [len(piece) for piece in pieces] == [MIB, MIB, 1]
    assert b''.join(pieces) == content


def test_file_output_of_a_short_file_is_an_underflow():
    with pytest.raises(UnderFlowError) as caught:
        list(FileOutput(io.BytesIO(b'hello'), 6))
    assert (caught.value.received, caught.value.expected) == (5, 6)


@pytest.mark.parametrize(
    'body',
    [
        Output([b'x'], 1),
        ChunkedOutput([b'']),
        FileOutput(io.BytesIO(b'x'), 1),
    ],
    ids=lambda body: type(body).__name__,
)
def test_an_output_that_was_iterated_is_not_iterated_again(body):
    list(body)
    with pytest.raises(BodyClosedError) as caught:
        iter(body)
    assert caught.value.body is body
    with pytest.raises(BodyClosedError):
        body_length(body)


@pytest.mark.parametrize('build', [lambda n: Output([], n), lambda n: FileOutput(io.BytesIO(), n)])
def test_content_length_is_an_int_in_its_range(build):
    assert build(0).content_length == 0
    assert build(10**16 - 1).content_length == 10**16 - 1
    for value in (-1, 10**16):
        with pytest.raises(ValueError, match='content_length'):
            build(value)
    for value in (None, 1.0, '5', True):
        with pytest.raises(TypeError, match='content_length must be an int'):
            build(value)


@pytest.mark.parametrize(
    ('body', 'expected'),
    [
        (None, None),
        (b'', 0),
        (b'hello', 5),
        (bytearray(b'hello'), 5),
        (Output([], 7), 7),
        (FileOutput(io.BytesIO(), 8), 8),
        (ChunkedOutput([]), CHUNKED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_body_length(body, expected):
    assert body_length(body) == expected


def test_body_length_of_a_body_that_arrived(make_input, make_chunked):
    body = make_input(b'hello', 5)
    assert body_length(body) == 5
    body.read(2)
    assert body_length(body) == 3
    body.read()
    with pytest.raises(BodyClosedError):
        body_length(body)
    chunked = make_chunked(b'0\r\n\r\n')
    assert body_length(chunked) == CHUNKED
    chunked.read()
    with pytest.raises(BodyClosedError):
        body_length(chunked)


@pytest.mark.parametrize('body', ['text', 5, [b'x'], memoryview(b'x'), io.BytesIO(b'x'), object()])
def test_what_is_no_body_is_refused(body):
    with pytest.raises(TypeError, match='a body must be None, bytes'):
        body_length(body)


# --- write_message -------------------------------------------------------------------------------


class Receiver:
    """Receives to the end in a thread of its own."""

    def __init__(self, sock):
        self.sock = sock
        self.thread = threading.Thread(target=self._receive)
        self.received = b''

    def _receive(self):
        received = bytearray()
        while data := self.sock.recv(MIB):
            received += data
        self.received = bytes(received)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.thread.join()


def connect_tls(pki):
    """Return the two ends of a TLS connection over a socket pair, the server's first."""
    ours, theirs = socket.socketpair()
    server_ctx = build_server_sslctx(pki.get_server_config())
    client_ctx = build_client_sslctx(pki.get_client_config())
    ends = {}
    for sock in (ours, theirs):
        sock.settimeout(10)

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
def write(request, temp_pki):
    """Give `write(preamble, body)`: what arrives, and the exception that ended it or None."""

    def run(preamble, body, limits=DEFAULT_LIMITS):
        if request.param == 'plain':
            ours, theirs = socket.socketpair()
            theirs.settimeout(10)
        else:
            ours, theirs = connect_tls(temp_pki)
        with closing(theirs), Receiver(theirs) as receiver:
            channel = Channel(ours, limits)
            error = None
            try:
                write_message(channel, preamble, body)
            except Exception as caught:  # noqa: BLE001  # the test judges it
                error = caught
            finally:
                channel.close()
        return receiver.received, error

    return run


BIG = bytes(range(256)) * 4 * KIB * 3 + b'tail'
PREAMBLE = b'preamble\r\n\r\n'


@pytest.mark.parametrize(
    ('build', 'content'),
    [
        pytest.param(build, content, id=name)
        for name, build, content in (
            ('none', lambda: None, b''),
            ('bytes_empty', lambda: b'', b''),
            ('bytes', lambda: b'hello', b'hello'),
            ('bytes_to_join', lambda: bytes(JOIN_SIZE), bytes(JOIN_SIZE)),
            ('bytes_too_big_to_join', lambda: bytes(JOIN_SIZE + 1), bytes(JOIN_SIZE + 1)),
            ('bytes_big', lambda: BIG, BIG),
            ('bytearray', lambda: bytearray(b'hello'), b'hello'),
            ('bytearray_big', lambda: bytearray(BIG), BIG),
            ('output_empty', lambda: Output([], 0), b''),
            ('output', lambda: Output([b'he', b'', b'llo'], 5), b'hello'),
            ('output_empty_first', lambda: Output([b'', b'hello'], 5), b'hello'),
            ('output_bytearray', lambda: Output([bytearray(b'hello')], 5), b'hello'),
            ('output_big_piece', lambda: Output([BIG], len(BIG)), BIG),
            ('output_big_after_small', lambda: Output([b'x', BIG], len(BIG) + 1), b'x' + BIG),
            ('output_generator', lambda: Output((b'%d' % i for i in range(10)), 10), b'0123456789'),
            ('chunked_empty', lambda: ChunkedOutput([b'']), b'0\r\n\r\n'),
            (
                'chunked',
                lambda: ChunkedOutput([b'hello', (b'a=b', b'world!'), b'']),
                b'5\r\nhello\r\n6;a=b\r\nworld!\r\n0\r\n\r\n',
            ),
            (
                'chunked_big',
                lambda: ChunkedOutput([BIG, b'']),
                b'%x\r\n%b\r\n0\r\n\r\n' % (len(BIG), BIG),
            ),
            ('file_not_real', lambda: FileOutput(io.BytesIO(b'hello'), 4), b'hell'),
            ('file_not_real_empty', lambda: FileOutput(io.BytesIO(b''), 0), b''),
            ('file_not_real_big', lambda: FileOutput(io.BytesIO(BIG), len(BIG)), BIG),
        )
    ],
)
def test_write_message(write, build, content):
    assert write(PREAMBLE, build()) == (PREAMBLE + content, None)


def test_write_message_sends_on_an_input(write, make_pair):
    channel, _ = make_pair(b'ab\r\n\r\nhello worldnext')
    channel.read_preamble()
    body = Input(channel, 11)
    assert body.read(1) == b'h'
    assert write(PREAMBLE, body) == (PREAMBLE + b'ello world', None)
    assert body.closed


def test_write_message_sends_on_chunks_with_their_extensions(write, make_chunked):
    data = b'5;a=b\r\nhello\r\n1\r\nx\r\n0;c=d\r\n\r\n'
    body = make_chunked(data)
    assert write(PREAMBLE, body) == (PREAMBLE + data, None)
    assert body.closed


@pytest.mark.parametrize('size', [0, 1, 5 * MIB + 3])
@pytest.mark.parametrize('buffering', [0, -1])
def test_write_message_sends_a_file_from_its_position(write, tmp_path, size, buffering):
    content = os.urandom(size + 10)
    path = tmp_path / 'file'
    path.write_bytes(content)
    with path.open('rb', buffering=buffering) as fp:
        fp.read(4)
        body = FileOutput(fp, size)
        assert write(PREAMBLE, body) == (PREAMBLE + content[4 : 4 + size], None)
        assert fp.tell() == 4 + size
        assert body.closed


def test_write_message_sends_what_was_written_to_a_file_just_now(write, tmp_path):
    with (tmp_path / 'file').open('w+b') as fp:
        fp.write(b'hello')
        fp.seek(1)
        assert write(PREAMBLE, FileOutput(fp, 4)) == (PREAMBLE + b'ello', None)


def test_a_file_shorter_than_announced_is_an_underflow(write, tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'hello')
    with path.open('rb') as fp:
        fp.read(2)
        received, error = write(PREAMBLE, FileOutput(fp, 5))
    assert received == PREAMBLE + b'llo'
    assert isinstance(error, UnderFlowError)
    assert (error.received, error.expected) == (3, 5)


@pytest.mark.parametrize('compression', [gzip, bz2], ids=['gzip', 'bz2'])
def test_a_compressed_file_is_sent_as_what_it_reads_as(write, tmp_path, compression):
    path = tmp_path / 'file'
    with compression.open(path, 'wb') as fp:
        fp.write(b'hello world')
    with compression.open(path, 'rb') as fp:
        fp.read(6)
        assert write(PREAMBLE, FileOutput(fp, 5)) == (PREAMBLE + b'world', None)


def test_a_pipe_is_sent_as_a_file(write):
    reader, writer = os.pipe()
    with open(reader, 'rb') as fp:
        with open(writer, 'wb') as sink:
            sink.write(b'hello')
        assert write(PREAMBLE, FileOutput(fp, 5)) == (PREAMBLE + b'hello', None)


def raise_after(data):
    yield data
    raise LookupError('the source failed')


@pytest.mark.parametrize(
    ('build', 'kind', 'arrived'),
    [
        pytest.param(build, kind, arrived, id=name)
        for name, build, kind, arrived in (
            ('output_underflow', lambda: Output([b'he'], 5), UnderFlowError, PREAMBLE + b'he'),
            (
                'output_overflow',
                lambda: Output([b'he', b'llo!'], 5),
                OverFlowError,
                PREAMBLE + b'he',
            ),
            ('output_source', lambda: Output(raise_after(b'he'), 5), LookupError, PREAMBLE + b'he'),
            (
                'chunked_underflow',
                lambda: ChunkedOutput([b'x']),
                UnderFlowError,
                PREAMBLE + b'1\r\nx\r\n',
            ),
            (
                'chunked_overflow',
                lambda: ChunkedOutput([b'', b'x']),
                OverFlowError,
                PREAMBLE + b'0\r\n\r\n',
            ),
            (
                'chunked_source',
                lambda: ChunkedOutput(raise_after(b'x')),
                LookupError,
                PREAMBLE + b'1\r\nx\r\n',
            ),
            ('chunk_extension', lambda: ChunkedOutput([(b'a', b'x')]), ValueError, PREAMBLE),
            (
                'file_underflow',
                lambda: FileOutput(io.BytesIO(b'he'), 5),
                UnderFlowError,
                PREAMBLE + b'he',
            ),
        )
    ],
)
def test_write_message_raises_what_the_body_raises(write, build, kind, arrived):
    received, error = write(PREAMBLE, build())
    assert isinstance(error, kind)
    assert received == arrived


def test_a_chunk_over_its_limit_is_not_sent(write):
    received, error = write(PREAMBLE, ChunkedOutput([b'hello', b'']), Limits(max_chunk=4))
    assert received == PREAMBLE
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    ('build', 'packets'),
    [
        pytest.param(build, packets, id=name)
        for name, build, packets in (
            ('none', lambda: None, [b'P']),
            ('bytes', lambda: b'hello', [b'Phello']),
            ('bytes_to_join', lambda: bytes(JOIN_SIZE), [b'P' + bytes(JOIN_SIZE)]),
            ('bytes_too_big', lambda: bytes(JOIN_SIZE + 1), [b'P', bytes(JOIN_SIZE + 1)]),
            ('output', lambda: Output([b'he', b'llo'], 5), [b'Phe', b'llo']),
            ('output_empty', lambda: Output([], 0), [b'P']),
            ('file', lambda: FileOutput(io.BytesIO(b'hello'), 5), [b'Phello']),
            ('chunked', lambda: ChunkedOutput([b'x', b'']), [b'P', b'1\r\nx\r\n', b'0\r\n\r\n']),
        )
    ],
)
def test_small_messages_leave_in_one_buffer(make_pair, build, packets):
    channel, peer = make_pair(kind=socket.SOCK_SEQPACKET)
    write_message(channel, b'P', build())
    channel.close()
    received = []
    while data := peer.recv(MIB):
        received.append(data)
    assert received == packets


def test_a_message_for_a_peer_that_does_not_read_is_a_timeout(make_pair):
    channel, _peer = make_pair(limits=Limits(body_window_s=0.1))
    started = time.monotonic()
    with pytest.raises(PeerTimeoutError):
        write_message(channel, PREAMBLE, BIG)
    assert time.monotonic() - started < 5


# --- properties ----------------------------------------------------------------------------------


extensions = st.sampled_from([None, b'a=b', b'key=value/1'])
chunks = st.lists(st.tuples(extensions, st.binary(min_size=1, max_size=300)), max_size=10)


@given(chunks)
def test_what_is_sent_in_chunks_arrives_in_those_chunks(items):
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        source = [*items, (b'end=1', b'')]
        write_message(Channel(ours, DEFAULT_LIMITS), b'', ChunkedOutput(source))
        body = ChunkedInput(Channel(theirs, DEFAULT_LIMITS))
        assert [(body.extension, data) for data in body] == source
