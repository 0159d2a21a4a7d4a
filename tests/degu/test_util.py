"""The helpers for applications: routing, URIs, passing a body on."""

from __future__ import annotations

import socket
import string
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu.bodies import ChunkedInput, ChunkedOutput, Input, Output
from degu.channel import Channel
from degu.limits import DEFAULT_LIMITS
from degu.util import absolute_uri, output_from_input, relative_uri, shift_path
from degu.wire import parse_request

CONNECTION = {'rgi.Output': Output, 'rgi.ChunkedOutput': ChunkedOutput}


def test_shift_path_moves_one_segment_to_script():
    request = {'script': [], 'path': ['a', 'b', '']}
    assert shift_path(request) == 'a'
    assert request == {'script': ['a'], 'path': ['b', '']}
    assert shift_path(request) == 'b'
    assert shift_path(request) == ''
    assert request == {'script': ['a', 'b', ''], 'path': []}


def test_shift_path_without_a_segment_changes_nothing():
    request = {'script': ['a'], 'path': []}
    assert shift_path(request) is None
    assert request == {'script': ['a'], 'path': []}


@pytest.mark.parametrize(
    ('script', 'path', 'query', 'absolute', 'relative'),
    [
        ([], [], '', '/', '/'),
        ([], ['a'], '', '/a', '/a'),
        ([], ['a', ''], '', '/a/', '/a/'),
        (['a'], [], '', '/a', '/'),
        (['a'], [''], '', '/a/', '/'),
        (['a'], ['b', 'c'], 'q=1', '/a/b/c?q=1', '/b/c?q=1'),
        ([], [], 'q', '/?q', '/?q'),
        (['a%2F'], ['b%20c'], '', '/a%2F/b%20c', '/b%20c'),
    ],
)
def test_uris_are_rebuilt(script, path, query, absolute, relative):
    request = {'script': script, 'path': path, 'query': query}
    assert absolute_uri(request) == absolute
    assert relative_uri(request) == relative


segments = st.text(string.ascii_letters + string.digits + "%-._~!$&'()*+,;=:@", min_size=1)


@given(st.lists(segments, max_size=5), st.booleans(), st.text(string.ascii_letters + '/?=&%'))
def test_the_absolute_uri_is_the_target_as_it_was_sent(path, slash, query):
    target = '/' + '/'.join(path) + ('/' if slash and path else '') + (f'?{query}' if query else '')
    _, parsed, parsed_query, _ = parse_request(f'GET {target} HTTP/1.1'.encode())
    request = {'script': [], 'path': parsed, 'query': parsed_query}
    assert absolute_uri(request) == relative_uri(request) == target
    while shift_path(request) is not None:
        assert absolute_uri(request) == target


@pytest.fixture
def make_channel():
    """Give `make_channel(data)`: a channel whose peer sent `data`."""
    ours, theirs = socket.socketpair()

    def make(data):
        theirs.sendall(data)
        return Channel(ours, DEFAULT_LIMITS)

    with closing(ours), closing(theirs):
        yield make


def test_no_body_stays_none():
    assert output_from_input(CONNECTION, None) is None


def test_an_input_becomes_an_output(make_channel):
    output = output_from_input(CONNECTION, Input(make_channel(b'hello'), 5))
    assert type(output) is Output
    assert output.content_length == 5
    assert b''.join(output) == b'hello'


def test_a_chunked_input_becomes_a_chunked_output(make_channel):
    body = ChunkedInput(make_channel(b'5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n'))
    output = output_from_input(CONNECTION, body)
    assert type(output) is ChunkedOutput
    assert list(output) == [(None, b'hello'), (None, b'!'), (None, b'')]


def test_the_classes_are_those_of_the_connection(make_channel):
    connection = {'rgi.Output': lambda *args: ('made with', *args)}
    body = Input(make_channel(b''), 5)
    assert output_from_input(connection, body) == ('made with', body, 5)


@pytest.mark.parametrize('body', [b'hello', bytearray(), 'text', Output([], 0), ChunkedOutput([])])
def test_what_did_not_arrive_is_refused(body):
    with pytest.raises(TypeError, match='body must be None, Input or ChunkedInput, not'):
        output_from_input(CONNECTION, body)
