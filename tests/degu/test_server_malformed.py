"""What is outside the HTTP subset gets one answer, however its bytes are split."""

from __future__ import annotations

import re

import pytest

from degu.rgi import Validator

SMUGGLED = b'GET /smuggled HTTP/1.1\r\n\r\n'
REASONS = {
    400: 'Bad Request',
    405: 'Method Not Allowed',
    413: 'Content Too Large',
    417: 'Expectation Failed',
    431: 'Request Header Fields Too Large',
}


def get(*lines):
    return b'\r\n'.join([b'GET / HTTP/1.1', *lines]) + b'\r\n\r\n'


def put(*lines, body=b''):
    return b'\r\n'.join([b'PUT / HTTP/1.1', *lines]) + b'\r\n\r\n' + body


CHUNKED = b'transfer-encoding: chunked'
LENGTH = b'content-length: 5'
MALFORMED = [
    # The request line.
    (400, b'GET\r\n\r\n'),
    (400, b'GET /\r\n\r\n'),
    (400, b'/ HTTP/1.1\r\n\r\n'),
    (400, b'GET  / HTTP/1.1\r\n\r\n'),
    (400, b'GET /  HTTP/1.1\r\n\r\n'),
    (400, b' GET / HTTP/1.1\r\n\r\n'),
    (400, b'GET / HTTP/1.1 \r\n\r\n'),
    (400, b'GET\t/\tHTTP/1.1\r\n\r\n'),
    (400, b'\r\nGET / HTTP/1.1\r\n\r\n'),
    (400, b'\r\n\r\n'),
    (400, b'GET / HTTP/1.0\r\n\r\n'),
    (400, b'GET / HTTP/1.2\r\n\r\n'),
    (400, b'GET / HTTP/2\r\n\r\n'),
    (400, b'GET / http/1.1\r\n\r\n'),
    (400, b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'),
    (400, b'GET http://h/ HTTP/1.1\r\n\r\n'),
    (400, b'CONNECT h:1 HTTP/1.1\r\n\r\n'),
    (400, b'OPTIONS * HTTP/1.1\r\n\r\n'),
    (400, b'GET a HTTP/1.1\r\n\r\n'),
    (400, b'GET // HTTP/1.1\r\n\r\n'),
    (400, b'GET /a//b HTTP/1.1\r\n\r\n'),
    (400, b'GET /a#b HTTP/1.1\r\n\r\n'),
    (400, b'GET /a?b#c HTTP/1.1\r\n\r\n'),
    (400, b'GET /a\x7f HTTP/1.1\r\n\r\n'),
    (400, b'GET /a\x00 HTTP/1.1\r\n\r\n'),
    (400, b'GET /caf\xc3\xa9 HTTP/1.1\r\n\r\n'),
    (400, b'\x16\x03\x01\x02\x00\r\n\r\n'),
    (405, b'OPTIONS / HTTP/1.1\r\n\r\n'),
    (405, b'PATCH / HTTP/1.1\r\n\r\n'),
    (405, b'TRACE / HTTP/1.1\r\n\r\n'),
    (405, b'get / HTTP/1.1\r\n\r\n'),
    (400, b'G(T / HTTP/1.1\r\n\r\n'),
    # Lines.
    (400, b'GET / HTTP/1.1\nhost: h\r\n\r\n'),
    (400, b'GET / HTTP/1.1\r\nhost: h\n\r\n\r\n'),
    (400, b'GET / HTTP/1.1\rhost: h\r\n\r\n'),
    (400, b'GET / HTTP/1.1\n\n'),
    (400, b'GET / HTTP/1.1\r\n\n'),
    (400, get(b'a: b\rc: d')),
    (400, get(b'a: b\nc: d')),
    (400, get(b'a: b', b' folded')),
    (400, get(b'a: b', b'\tfolded')),
    (400, get(b' a: b')),
    # Headers.
    (400, get(b'a')),
    (400, get(b'a:')),
    (400, get(b'a: ')),
    (400, get(b'a:b')),
    (400, get(b'a : b')),
    (400, get(b'a:  b')),
    (400, get(b'a:\tb')),
    (400, get(b'a: b ')),
    (400, get(b'a: b\tc')),
    (400, get(b'a: b\x00c')),
    (400, get(b'a: b\x7fc')),
    (400, get(b'a: caf\xe9')),
    (400, get(b'a: caf\xc3\xa9')),
    (400, get(b': b')),
    (400, get(b'a_b: c')),
    (400, get(b'a\x00: c')),
    (400, get(b'caf\xe9: c')),
    (400, get(b'a' * 65 + b': c')),
    (400, get(b'a: b', b'a: b')),
    (400, get(b'a: b', b'A: c')),
    (400, get(b'host: h', b'Host: h')),
    (400, get(b'host: a b')),
    (400, get(b'host: u@h')),
    (400, get(b'host: h/p')),
    (417, put(b'expect: 100-continue', LENGTH, body=b'hello')),
    (417, get(b'Expect: anything')),
    # Framing.
    (400, put(LENGTH, CHUNKED, body=b'0\r\n\r\n')),
    (400, put(CHUNKED, LENGTH, body=b'0\r\n\r\n')),
    (400, put(LENGTH, LENGTH, body=b'hello')),
    (400, put(CHUNKED, CHUNKED, body=b'0\r\n\r\n')),
    (400, put(b'transfer-encoding: Chunked', body=b'0\r\n\r\n')),
    (400, put(b'transfer-encoding: gzip, chunked', body=b'0\r\n\r\n')),
    (400, put(b'transfer-encoding: chunked, chunked', body=b'0\r\n\r\n')),
    (400, put(b'transfer-encoding: identity', body=b'0\r\n\r\n')),
    (400, put(b'transfer-encoding : chunked', body=b'0\r\n\r\n')),
    (400, put(b'transfer-encoding:\x0bchunked', body=b'0\r\n\r\n')),
    *[
        (400, put(b'content-length: ' + value, body=b'hello'))
        for value in (
            b'',
            b'+5',
            b'-5',
            b' 5',
            b'05',
            b'00',
            b'5_0',
            b'5, 5',
            b'0x5',
            b'5.0',
            b'5;',
            b'1' * 17,
            b'\xb2',
        )
    ],
    (400, get(LENGTH)),
    (400, get(CHUNKED)),
    (400, b'HEAD / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello'),
    (400, b'DELETE / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello'),
    (400, b'DELETE / HTTP/1.1\r\ncontent-length: 0\r\n\r\n'),
    (400, b'DELETE / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n'),
    # Ranges.
    *[
        (400, get(b'range: ' + value))
        for value in (
            b'1-2',
            b'bytes=',
            b'bytes=-',
            b'bytes=-0',
            b'bytes=2-1',
            b'bytes=1-2,4-5',
            b'bytes=01-2',
            b'bytes=+1-2',
            b'bytes = 1-2',
            b'Bytes=1-2',
            b'lines=1-2',
        )
    ],
    *[
        (400, put(b'content-range: ' + value, LENGTH, body=b'hello'))
        for value in (b'bytes 5-4/9', b'bytes 0-4/4', b'bytes */*', b'bytes=0-4/9', b'bytes 0-4')
    ],
    # Size, at the defaults.
    (431, get(b'a: ' + b'b' * 8190)),
    (431, b'GET /' + b'a' * 8200 + b' HTTP/1.1\r\n\r\n'),
    (431, get(*[b'a%d: b' % i for i in range(33)])),
    # Not far past the limit: byte by byte, what follows the refusal must fit into its linger.
    (431, get(*[b'a%d: ' % i + b'b' * 8000 for i in range(4)], b'a4: ' + b'b' * 800)),
]
BAD_CHUNKS = [
    (400, b'\r\n'),
    (400, b' 5\r\nhello\r\n'),
    (400, b'5 \r\nhello\r\n'),
    (400, b'+5\r\nhello\r\n'),
    (400, b'-5\r\nhello\r\n'),
    (400, b'0x5\r\nhello\r\n'),
    (400, b'0_5\r\nhello\r\n'),
    (400, b'g\r\nhello\r\n'),
    (400, b'00000005\r\nhello\r\n'),
    (400, b'5;\r\nhello\r\n'),
    (400, b'5;a\r\nhello\r\n'),
    (400, b'5; a=b\r\nhello\r\n'),
    (400, b'5;a=b;c=d\r\nhello\r\n'),
    (400, b'5;a="b"\r\nhello\r\n'),
    (400, b'5;a=\xe9\r\nhello\r\n'),
    (400, b'5;a=b\x00\r\nhello\r\n'),
    (400, b'5\nhello\r\n'),
    (400, b'5\rhello\r\n'),
    (400, b'5\r\nhello\n0\r\n\r\n'),
    (400, b'5\r\nhello0\r\n\r\n'),
    (400, b'5\r\nhello!\r\n'),
    (400, b'5\r\nhello\r\r\n'),
    (400, b'0\r\nA: trailer\r\n\r\n'),
    (400, b'0\r\nxx'),
    (413, b'1000001\r\n'),
    (400, b'5;a=' + b'b' * 510 + b'\r\nhello\r\n'),
]


def whole(data):
    return [data]


def byte_by_byte(data):
    return [data[i : i + 1] for i in range(len(data))]


def at_each_end_of_line(data):
    """Cut around each CR and LF, and every 1000 bytes."""
    return re.findall(rb'[\r\n]|[^\r\n]{1,1000}', data)


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
    """Send pieces to a server and return the whole answer and how often the app was called."""

    def run(pieces, read_body):
        calls = []

        def app(connection, request):
            calls.append(request)
            if read_body:
                request['body'].read()
            return 200, 'OK', {}, None

        peer = dial(serve(Validator(app), str(tmp_path / 'socket')).address)
        try:
            peer.send_each(pieces)
        except BrokenPipeError:
            pass  # it answered before the end
        else:
            peer.end()
        return peer.read_to_end(), len(calls)

    return run


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize(('status', 'data'), MALFORMED)
def test_a_malformed_request_gets_one_answer_and_never_reaches_the_app(
    exchange, status, data, split
):
    answer, calls = exchange(split(data + SMUGGLED), False)
    check_one_answer(answer, status)
    assert calls == 0


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize(('status', 'data'), BAD_CHUNKS)
def test_a_malformed_chunk_gets_one_answer_and_ends_the_connection(exchange, status, data, split):
    answer, calls = exchange(split(put(CHUNKED) + data + SMUGGLED), True)
    check_one_answer(answer, status)
    assert calls == 1


@pytest.mark.parametrize(('status', 'data'), BAD_CHUNKS)
def test_a_malformed_chunk_that_nobody_read_ends_the_connection(exchange, status, data):
    answer, calls = exchange([put(CHUNKED) + data + SMUGGLED], False)
    assert answer == b'HTTP/1.1 200 OK\r\n\r\n'
    assert calls == 1


@pytest.mark.parametrize('status', sorted(set(REASONS)))
def test_the_answer_does_not_repeat_what_was_sent(exchange, status):
    secrets = {
        400: get(b'a: b', b'authorization : S3CRET'),
        405: b'S3CRET /S3CRET HTTP/1.1\r\n\r\n',
        413: put(CHUNKED, body=b'fffffff;S3CRET=S3CRET\r\n'),
        417: get(b'expect: S3CRET'),
        431: get(b'a: ' + b'S3CRET' * 2000),
    }
    answer, _calls = exchange([secrets[status]], True)
    check_one_answer(answer, status)
    assert b'S3CRET' not in answer
