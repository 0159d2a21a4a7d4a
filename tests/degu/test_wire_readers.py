"""What our parsers take, other readers read alike: nothing can be smuggled between them and us.

Streams near to good ones go to our reader, to h11, and to llhttp, the parser of node. Where another
reader refuses what we take, or stops before we do, nobody is deceived. Where both go on, they must
see the same. What they see behind our refusal does not matter: there we close the connection.
"""

from __future__ import annotations

import socket
from contextlib import closing, suppress

import h11
import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu.bodies import ChunkedInput, Input
from degu.channel import Channel
from degu.errors import DeguError
from degu.limits import DEFAULT_LIMITS
from degu.wire import closes_connection, parse_request, parse_response

REQUESTS = [
    b'GET /a?b HTTP/1.1\r\nhost: h\r\n\r\n',
    b'HEAD / HTTP/1.1\r\nHost: h\r\ncontent-length: 0\r\n\r\n',
    b'PUT / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello',
    b'POST / HTTP/1.1\r\nhost: h\r\nContent-Length: 22\r\n\r\nGET / HTTP/1.1\r\na: b\r\n\r\n',
    b'PUT / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n',
    b'PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nhost: h\r\n\r\n2;a=b\r\nhe\r\n0;c=d\r\n\r\n',
    b'DELETE / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n',
]
RESPONSES = [
    b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello',
    b'HTTP/1.1 404 Not Found\r\na: v\r\nContent-Length: 17\r\n\r\nHTTP/1.1 200 OK\r\n',
    b'HTTP/1.1 204 No Content\r\n\r\n',
    b'HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n',
    b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n',
    b'HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n',
]
PIECES = [
    b'', b'\r\n', b'\r', b'\n', b'\r\n\r\n', b' ', b'\t', b'\x0b', b'\xa0', b'\0', b':', b': ',
    b';', b'a=b', b'"', b',', b'+', b'-', b'_', b'0', b'5', b'05', b'0x', b'f', b'chunked',
    b'identity', b'Content-Length: 5\r\n', b'content-length: 0\r\n',
    b'transfer-encoding: chunked\r\n', b'transfer-encoding: identity\r\n', b'trailer: a\r\n',
    b'host: h\r\n', b'hello', b'0\r\n\r\n',
    b'5\r\nhello\r\n', b'0\r\na: v\r\n\r\n', b'GET / HTTP/1.1\r\n', b'HTTP/1.1 200 OK\r\n',
    b' HTTP/1.0',
]  # fmt: skip


def spoiled(messages):
    """Build streams of a few messages with a few bytes replaced."""
    splices = st.tuples(st.integers(0, 400), st.integers(0, 3), st.sampled_from(PIECES))

    def spoil(chosen, changes):
        stream = b''.join(chosen)
        for start, size, piece in changes:
            start %= len(stream) + 1
            stream = stream[:start] + piece + stream[start + size :]
        return stream

    return st.builds(
        spoil,
        st.lists(st.sampled_from(messages), min_size=1, max_size=3),
        st.lists(splices, max_size=3),
    )


def read_ours(stream, parse):
    """Return the messages (start, names, body) and whether we came to the end of the stream."""
    messages = []
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        theirs.sendall(stream)
        theirs.shutdown(socket.SHUT_WR)
        channel = Channel(ours, DEFAULT_LIMITS)
        try:
            while (preamble := channel.read_preamble()) is not None:
                *start, headers = parse(preamble)
                body = b''
                if start[0] in (204, 304):
                    pass
                elif 'content-length' in headers:
                    body = Input(channel, headers['content-length']).read()
                elif 'transfer-encoding' in headers:
                    body = ChunkedInput(channel).read()
                elif parse is parse_response:  # until the connection ends, for others
                    return messages, False
                first, second, _ = preamble.split(b' ', 2)
                names = sorted(name.encode() for name in headers if name != 'content-length')
                messages.append(
                    ((first, second) if parse is parse_request else second, names, body)
                )
                if closes_connection(headers):
                    return messages, False
        except DeguError:
            return messages, False
    return messages, True


def read_h11(stream, parse):
    messages = []
    while stream:
        role = h11.SERVER if parse is parse_request else h11.CLIENT
        connection = h11.Connection(role)
        if role is h11.CLIENT:
            connection.send(h11.Request(method='GET', target='/', headers=[('host', 'h')]))
            connection.send(h11.EndOfMessage())
        connection.receive_data(stream)
        body = b''
        first = None
        try:
            while type(event := connection.next_event()) is not h11.EndOfMessage:
                if isinstance(event, h11.Request | h11.Response):
                    names = sorted(name for name, _ in event.headers if name != b'content-length')
                    if isinstance(event, h11.Request):
                        first = event.method, event.target
                    else:
                        first = b'%d' % event.status_code
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    return messages
        except h11.RemoteProtocolError:
            return messages
        messages.append((first, names, body))
        stream, _ = connection.trailing_data
    return messages


class Recorder:
    """What httptools calls back; `parser` is set after it was built with this."""

    def __init__(self):
        self.messages = []

    def on_message_begin(self):
        self.target = b''
        self.names = []
        self.body = b''

    def on_url(self, data):
        self.target += data

    def on_header(self, name, value):
        if name.lower() != b'content-length':
            self.names.append(name.lower())

    def on_body(self, data):
        self.body += data

    def on_message_complete(self):
        if isinstance(self.parser, httptools.HttpRequestParser):
            first = self.parser.get_method(), self.target
        else:
            first = b'%d' % self.parser.get_status_code()
        self.messages.append((first, sorted(self.names), self.body))


def read_llhttp(stream, parse):
    recorder = Recorder()
    is_request = parse is parse_request
    kind = httptools.HttpRequestParser if is_request else httptools.HttpResponseParser
    recorder.parser = kind(recorder)
    with suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
        recorder.parser.feed_data(stream)
    return recorder.messages


@pytest.mark.parametrize('read', [read_h11, read_llhttp])
@pytest.mark.parametrize(
    ('parse', 'messages'),
    [
        pytest.param(parse_request, REQUESTS, id='requests'),
        pytest.param(parse_response, RESPONSES, id='responses'),
    ],
)
def test_all_read_good_messages_alike(parse, messages, read):
    for message in messages:
        ours, _ = read_ours(message, parse)
        assert len(ours) == 1
        assert read(message, parse) == ours


@given(spoiled(REQUESTS))
def test_no_reader_sees_other_requests_than_we_do(stream):
    check(stream, parse_request)


@given(spoiled(RESPONSES))
def test_no_reader_sees_other_responses_than_we_do(stream):
    check(stream, parse_response)


def check(stream, parse):
    ours, is_all = read_ours(stream, parse)
    for read in (read_h11, read_llhttp):
        theirs = read(stream, parse)
        both = min(len(ours), len(theirs))
        assert theirs[:both] == ours[:both]
        assert not is_all or len(theirs) <= len(ours)
