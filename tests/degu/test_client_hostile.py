"""Servers that want to harm a client: every call ends in bounded time, with bounded memory.

What a server says outside the HTTP subset is in test_client.py. Here is what it says without an
end, too slowly, too early or not at all.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import struct
import threading
import time
import tracemalloc

import pytest

from degu.bodies import Output
from degu.client import Client, SSLClient, build_client_sslctx
from degu.errors import (
    BodyTooLargeError,
    ClosedConnectionError,
    PeerTimeoutError,
    ProtocolError,
    UnconsumedResponseError,
    UnderFlowError,
)
from degu.server import build_server_sslctx

KIB = 1024
MIB = 1024 * KIB
START = b'HTTP/1.1 200 OK\r\n'
OK = START + b'\r\n'
CHUNKED = START + b'transfer-encoding: chunked\r\n\r\n'
SHORT_S = 0.25
WAIT_S = 10.0


@contextlib.contextmanager
def bounded(memory=256 * KIB, time_s=WAIT_S):
    """Expect that what is inside takes less than `time_s` and never more than `memory` bytes."""
    tracemalloc.start()
    started = time.monotonic()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < time_s
    assert peak < memory


@pytest.fixture
def pouring(script):
    """Give `pouring(start, pieces)`: a client of a server that answers like this for ever."""

    def start_server(start, pieces):
        def handle(raw):
            raw.read_preamble()
            raw.send(start)
            for piece in pieces:
                raw.send(piece)
            raw.end()
            raw.read_to_end()

        return Client(script(handle).address, timeout_s=WAIT_S * 2)

    return start_server


def endlessly(piece):
    return iter(lambda: piece, None)


# --- without an end ------------------------------------------------------------------------------


def test_a_flood_of_a_preamble_is_a_protocol_error(pouring, flood):
    with pouring(START + flood.start, flood.pieces()).connect() as conn:
        with bounded(), pytest.raises(ProtocolError):
            conn.get('/')
        assert conn.closed


def test_a_flood_of_a_chunk_is_a_protocol_error(pouring, chunk_flood):
    with pouring(CHUNKED + chunk_flood.start, chunk_flood.pieces()).connect() as conn:
        body = conn.get('/').body
        with bounded(), pytest.raises(ProtocolError):
            body.read()
        with pytest.raises(ClosedConnectionError):
            conn.get('/')


@pytest.mark.parametrize(
    'answer',
    [
        pytest.param(b'HTTP/1.1 100 Continue\r\n\r\n', id='100'),
        pytest.param(b'HTTP/1.1 102 Processing\r\n\r\n', id='102'),
        pytest.param(b'HTTP/1.1 103 Early Hints\r\na: v\r\n\r\n', id='103'),
    ],
)
def test_of_endless_1xx_responses_the_first_is_refused(pouring, answer):
    with pouring(b'', endlessly(answer)).connect() as conn:
        with bounded(), pytest.raises(ProtocolError, match='the status 200 to 599'):
            conn.get('/')
        assert conn.closed


@pytest.mark.parametrize(
    ('method', 'start', 'piece'),
    [
        pytest.param('GET', b'', b'\r\n', id='endless_empty_lines'),
        pytest.param('GET', b'', b'\n', id='endless_lf'),
        pytest.param('GET', b'', b'\0' * 1000, id='endless_nul'),
        pytest.param('GET', b'', b'HTTP' * 250, id='endless_protocol'),
        pytest.param('GET', b'HTTP/1.1 2', b'0' * 1000, id='endless_status'),
        pytest.param('GET', b'HTTP/1.1 200 O', b'K' * 1000, id='endless_reason'),
        pytest.param('GET', OK + b'x', b'x' * 1000, id='endless_body_without_framing'),
        pytest.param('HEAD', OK + b'x', b'x' * 1000, id='endless_body_of_head'),
        pytest.param('GET', OK + OK, OK, id='endless_responses'),
        pytest.param(
            'GET', START + b'connection: close\r\n\r\n', b'x' * 1000, id='endless_until_closed'
        ),
    ],
)
def test_what_has_no_end_is_a_protocol_error(pouring, start, piece, method):
    with pouring(start, endlessly(piece)).connect() as conn:
        # One that comes alone, just after a request, is an answer to it. That cannot go on.
        with bounded(), pytest.raises(ProtocolError):  # noqa: PT012
            for _ in range(10_000):
                conn.request(method, '/')
        assert conn.closed


@pytest.mark.parametrize(
    'chunk',
    [
        pytest.param(b'1\r\nx\r\n', id='of_one_byte'),
        pytest.param(b'0000001;a=b\r\nx\r\n', id='of_one_byte_with_an_extension'),
        pytest.param(b'1;a=' + b'b' * 500 + b'\r\nx\r\n', id='of_one_byte_with_the_longest_line'),
        pytest.param(b'3e8\r\n' + b'x' * 1000 + b'\r\n', id='of_1000_bytes'),
    ],
)
def test_endless_chunks_are_read_up_to_a_bound(pouring, chunk):
    with pouring(CHUNKED, endlessly(chunk * 50)).connect() as conn:
        body = conn.get('/').body
        with bounded(), pytest.raises(BodyTooLargeError):
            body.read(max_size=4000)
        with pytest.raises(ClosedConnectionError):
            conn.get('/')


def test_endless_chunks_are_iterated_in_flat_memory(pouring):
    """Whoever iterates sees each chunk and may stop at any."""
    with pouring(CHUNKED, endlessly(b'a\r\n0123456789\r\n' * 50)).connect() as conn:
        body = conn.get('/').body
        with bounded():
            for _ in range(5000):
                assert body.readchunk() == b'0123456789'
        with pytest.raises(UnconsumedResponseError):
            conn.get('/')


def test_an_endless_answer_to_an_upload_that_is_not_read_is_a_timeout(script):
    """Both sides send and neither reads."""

    def handle(raw):
        while True:
            raw.send(OK * 100)

    with Client(script(handle).address, timeout_s=SHORT_S).connect() as conn:
        upload = Output([bytes(100 * KIB)] * 100, 10_000 * KIB)
        with bounded(), pytest.raises(PeerTimeoutError):
            conn.put('/', None, upload)
        assert conn.closed


# --- less, or more, or sooner than it says -------------------------------------------------------


@pytest.mark.parametrize('stays', [False, True], ids=['ends', 'stays'])
@pytest.mark.parametrize(
    'use',
    [
        pytest.param(lambda body: body.read(), id='read'),
        pytest.param(lambda body: body.read(10**12), id='read_size'),
        pytest.param(lambda body: body.readinto(bytearray(1000)), id='readinto'),
        pytest.param(list, id='iterate'),
    ],
)
def test_a_terabyte_that_never_comes_costs_no_memory(script, use, stays):
    def handle(raw):
        raw.read_preamble()
        raw.send(START + b'content-length: 1000000000000\r\n\r\nhello')
        if stays:
            raw.sock.recv(1)

    with Client(script(handle).address, timeout_s=SHORT_S).connect() as conn:
        body = conn.get('/').body
        # A receive asks for up to 1 MiB at once.
        with bounded(2 * MIB), pytest.raises(PeerTimeoutError if stays else UnderFlowError):
            use(body)


@pytest.mark.parametrize(
    'framing',
    [
        pytest.param(b'content-length: 5\r\n\r\nhello', id='length'),
        pytest.param(b'transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n', id='chunked'),
    ],
)
@pytest.mark.parametrize(
    'more', [pytest.param(b'x', id='bytes'), pytest.param(OK, id='a_response')]
)
def test_what_comes_behind_a_body_is_never_the_next_response(pouring, framing, more):
    with pouring(START + framing + more, endlessly(more * 100)).connect() as conn:
        body = conn.get('/').body
        with bounded():
            assert body.read() == b'hello'
            with pytest.raises(ProtocolError):
                conn.get('/')
        assert conn.closed


def test_of_responses_before_their_request_only_the_first_is_taken(script):
    """It cannot be told from one that was only fast; what came with it can."""
    answers = (START + b'content-length: 5\r\n\r\nhello') * 1000

    def handle(raw):
        raw.send(answers)
        raw.read_to_end()

    with Client(script(handle).address, timeout_s=WAIT_S).connect() as conn:
        with bounded():
            assert conn.get('/').body.read() == b'hello'
            with pytest.raises(ProtocolError, match='no answer to a request'):
                conn.get('/')
        assert conn.closed


# --- slowly --------------------------------------------------------------------------------------


@pytest.mark.parametrize('has_tls', [False, True], ids=['plain', 'tls'])
@pytest.mark.parametrize(
    ('start', 'piece'),
    [
        pytest.param(b'HTTP/1.1 200 ', b'x', id='reason'),
        pytest.param(START, b'a', id='header_name'),
        pytest.param(START, b'a: v\r\n', id='headers'),
        pytest.param(START + b'content-length: 1000000\r\n\r\n', b'x', id='body'),
        pytest.param(CHUNKED, b'0', id='chunk_size'),
        pytest.param(CHUNKED + b'5;a=', b'b', id='extension'),
        pytest.param(CHUNKED + b'fffff\r\n', b'x', id='chunk'),
    ],
)
def test_a_byte_now_and_then_is_a_timeout(script, temp_pki, start, piece, has_tls):
    ended = threading.Event()

    def handle(raw):
        raw.read_preamble()
        raw.send(start)
        while not ended.wait(SHORT_S / 5):
            raw.send(piece)

    if has_tls:
        server = script(handle, build_server_sslctx(temp_pki.get_server_config()))
        sslctx = build_client_sslctx(temp_pki.get_client_config())
        client = SSLClient(sslctx, server.address, timeout_s=SHORT_S)
    else:
        client = Client(script(handle).address, timeout_s=SHORT_S)
    with client.connect() as conn:
        try:
            with bounded(2 * MIB), pytest.raises(PeerTimeoutError):
                conn.get('/').body.read()
        finally:
            ended.set()


def test_a_connection_that_was_to_close_and_stays_open_is_a_timeout(script):
    def handle(raw):
        raw.read_preamble()
        raw.send(START + b'connection: close\r\n\r\n')
        raw.sock.recv(1)

    with Client(script(handle).address, timeout_s=SHORT_S).connect() as conn:
        with bounded(), pytest.raises(PeerTimeoutError):
            conn.get('/')
        assert conn.closed


@pytest.mark.parametrize('piece', [b'', b'\x16'], ids=['says_nothing', 'a_byte_now_and_then'])
def test_a_stalled_handshake_is_a_timeout(temp_pki, piece):
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    ended = threading.Event()

    def stall():
        with listener, listener.accept()[0] as sock:
            # The start of a record of 16 KiB.
            sock.send(b'\x16\x03\x03\x40\x00')
            while not ended.wait(SHORT_S / 5):
                with contextlib.suppress(OSError):  # the client went
                    sock.send(piece)

    listener = socket.create_server(('127.0.0.1', 0))
    client = SSLClient(sslctx, listener.getsockname(), connect_timeout_s=SHORT_S)
    thread = threading.Thread(target=stall)
    thread.start()
    try:
        with bounded(2 * MIB), pytest.raises(TimeoutError):
            client.connect()
    finally:
        ended.set()
        thread.join()


# --- gone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('resets', [False, True], ids=['closed', 'reset'])
def test_1000_downloads_that_a_server_aborts_leave_nothing(resets):
    """Not even until the collector comes: nobody closes these connections."""

    def abort():
        for _ in range(1000):
            with listener.accept()[0] as sock:
                sock.recv(1000)
                sock.send(START + b'content-length: 5\r\n\r\nhel')
                if resets:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))

    with socket.create_server(('127.0.0.1', 0)) as listener:
        client = Client(listener.getsockname())
        before = len(os.listdir('/proc/self/fd'))
        thread = threading.Thread(target=abort)
        gc.disable()
        try:
            thread.start()
            for _ in range(1000):
                conn = client.connect()
                with pytest.raises((UnderFlowError, ConnectionResetError)):
                    conn.get('/').body.read()
            thread.join()
            assert len(os.listdir('/proc/self/fd')) == before
        finally:
            gc.enable()
