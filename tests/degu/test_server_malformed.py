"""What is outside the HTTP subset gets one answer from a server, however its bytes are split.

The rows are those of rows.py. Behind each bad request comes a good one that must never be answered.
"""

from __future__ import annotations

import contextlib
import re

import pytest

from degu.client import Client
from degu.errors import ClosedConnectionError, ProtocolError
from degu.rgi import Validator

GOOD = b'GET /good HTTP/1.1\r\n\r\n'
OK = b'HTTP/1.1 200 OK\r\n\r\n'
CHUNKED = b'PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n'
REASONS = {
    400: 'Bad Request',
    405: 'Method Not Allowed',
    413: 'Content Too Large',
    417: 'Expectation Failed',
    431: 'Request Header Fields Too Large',
}


def whole(data):
    return [data]


def at_each_end_of_line(data):
    """Cut around each CR and LF, and every 1000 bytes."""
    return re.findall(rb'[\r\n]|[^\r\n]{1,1000}', data)


def byte_by_byte(data):
    """Cut what is long only every 1000 bytes."""
    return re.findall(rb'(?s).', data[:500]) + re.findall(rb'(?s).{1,1000}', data[500:])


SPLITS = [whole, at_each_end_of_line, byte_by_byte]


def check_one_answer(answer, status):
    preamble, _, body = answer.partition(b'\r\n\r\n')
    lines = preamble.decode().split('\r\n')
    assert lines[0] == f'HTTP/1.1 {status} {REASONS[status]}'
    headers = dict(line.split(': ') for line in lines[1:])
    assert headers['connection'] == 'close'
    assert int(headers['content-length']) == len(body)
    assert ('allow' in headers) == (status == 405)


@pytest.fixture
def exchange(serve, dial, tmp_path):
    """Give `exchange(pieces, use)`: send the pieces, return the answer and what the app was given.

    `use(request)` is what the application does before it answers.
    """

    def run(pieces, use=lambda request: None):
        requests = []

        def app(connection, request):
            requests.append(request)
            use(request)
            return 200, 'OK', {}, None

        peer = dial(serve(Validator(app), str(tmp_path / 'socket')).address)
        with contextlib.suppress(BrokenPipeError):  # it answered before the end
            peer.send_each(pieces)
        peer.end()
        return peer.read_to_end(), requests

    return run


def read_body(request):
    if request['body'] is not None:
        request['body'].read()


@pytest.mark.parametrize('split', SPLITS)
def test_a_malformed_request_gets_one_answer_and_never_reaches_the_app(
    exchange, refused_request, split
):
    answer, requests = exchange(split(refused_request.data + b'\r\n\r\n' + GOOD))
    check_one_answer(answer, refused_request.expected)
    assert requests == []


@pytest.mark.parametrize(
    ('status', 'headers'),
    [
        pytest.param(400, {'range': 'bytes=1-0'}, id='400'),
        pytest.param(417, {'expect': '100-continue'}, id='417'),
        pytest.param(431, {f'a{number}': 'v' for number in range(33)}, id='431'),
    ],
)
def test_a_refusal_of_head_has_no_body(serve, status, headers):
    """Else its client would take the body for what is no answer to a request."""
    with Client(serve(lambda c, r: None).address).connect() as conn:
        response = conn.head('/', headers)
        assert (response.status, response.body) == (status, None)
        with pytest.raises(ClosedConnectionError):
            conn.get('/')


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize(
    'request_line_and_more',
    [
        pytest.param(b'HEAD / HTTP/1.1\nA: b\r\n\r\n', id='bare_lf'),
        pytest.param(b'HEAD / HTTP/1.1\r\nA: ' + b'b' * 33_000 + b'\r\n\r\n', id='too_large'),
    ],
)
def test_a_refusal_of_head_has_no_body_however_it_arrives(exchange, split, request_line_and_more):
    answer, requests = exchange(split(request_line_and_more))
    preamble, _, body = answer.partition(b'\r\n\r\n')
    assert preamble.startswith(b'HTTP/1.1 4')
    assert (body, requests) == (b'', [])


def test_a_malformed_request_between_good_ones_ends_the_connection(exchange, refused_request):
    answer, requests = exchange([GOOD + refused_request.data + b'\r\n\r\n' + GOOD])
    assert answer.startswith(OK)
    check_one_answer(answer.removeprefix(OK), refused_request.expected)
    assert [request['path'] for request in requests] == [['good']]


def test_a_request_that_is_taken_is_what_the_app_gets(exchange, taken_request):
    method, path, query, headers = taken_request.expected
    answer, (request,) = exchange([taken_request.data + b'\r\n\r\n'])
    assert (request['method'], request['path'], request['query']) == (method, path, query)
    assert request['headers'] == headers
    assert [type(v) for v in request['headers'].values()] == [type(v) for v in headers.values()]
    assert answer.startswith(b'HTTP/1.1 200 OK\r\n')


@pytest.mark.parametrize('split', SPLITS)
def test_a_malformed_chunk_gets_one_answer_and_ends_the_connection(exchange, refused_chunks, split):
    # What takes the place of a missing CRLF is the start of the good request.
    answer, requests = exchange(split(CHUNKED + refused_chunks.data + GOOD), read_body)
    check_one_answer(answer, refused_chunks.expected)
    assert len(requests) == 1


def test_a_malformed_chunk_that_nobody_read_ends_the_connection(exchange, refused_chunks):
    answer, requests = exchange([CHUNKED + refused_chunks.data + GOOD])
    assert answer == OK
    assert len(requests) == 1


def test_a_malformed_chunk_that_the_app_puts_up_with_ends_the_connection(exchange, refused_chunks):
    def use(request):
        with pytest.raises(ProtocolError):
            request['body'].read()

    answer, requests = exchange([CHUNKED + refused_chunks.data + GOOD], use)
    assert answer == OK
    assert len(requests) == 1


@pytest.mark.parametrize('split', SPLITS)
def test_chunks_that_are_taken_are_what_the_app_reads(exchange, taken_chunks, split):
    chunks = []

    def use(request):
        if (body := request['body']) is not None:
            chunks.extend((body.extension, data) for data in body)

    answer, requests = exchange(split(CHUNKED + taken_chunks.data + GOOD), use)
    assert answer == OK + OK
    assert [data for data in chunks if data[1]] == taken_chunks.expected
    assert [request['path'] for request in requests] == [[], ['good']]


@pytest.mark.parametrize('status', sorted(set(REASONS)))
def test_the_answer_does_not_repeat_what_was_sent(exchange, status):
    request = {
        400: b'GET / HTTP/1.1\r\na: b\r\nauthorization : S3CRET\r\n\r\n',
        405: b'S3CRET /S3CRET HTTP/1.1\r\n\r\n',
        413: CHUNKED + b'fffffff;S3CRET=S3CRET\r\n',
        417: b'GET / HTTP/1.1\r\nexpect: S3CRET\r\n\r\n',
        431: b'GET / HTTP/1.1\r\na: ' + b'S3CRET' * 2000 + b'\r\n\r\n',
    }[status]
    answer, _requests = exchange([request], read_body)
    check_one_answer(answer, status)
    assert b'S3CRET' not in answer
