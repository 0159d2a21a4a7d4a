"""What we send: formatted only if the other side would take it, and parsed back to what it was."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu.limits import DEFAULT_LIMITS
from degu.wire import (
    CHUNKED,
    ContentRange,
    Range,
    format_chunk_line,
    format_request,
    format_response,
    parse_chunk_line,
    parse_content_range,
    parse_range,
    parse_request,
    parse_response,
)

VISIBLE = frozenset(range(0x21, 0x7F))
PRINTABLE = frozenset(range(0x20, 0x7F))


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (('GET', '/', {}, None), b'GET / HTTP/1.1\r\n\r\n'),
        (('GET', '/a?b', {'x': 'v'}, None), b'GET /a?b HTTP/1.1\r\nx: v\r\n\r\n'),
        (('PUT', '/', {}, None), b'PUT / HTTP/1.1\r\n\r\n'),
        (('PUT', '/', {}, 0), b'PUT / HTTP/1.1\r\ncontent-length: 0\r\n\r\n'),
        (('POST', '/', {}, CHUNKED), b'POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n'),
        (('PUT', '/', {'content-length': 5}, 5), b'PUT / HTTP/1.1\r\ncontent-length: 5\r\n\r\n'),
        (
            ('PUT', '/', {'transfer-encoding': 'chunked'}, CHUNKED),
            b'PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n',
        ),
        (
            ('GET', '/', {'range': Range(0, 5)}, None),
            b'GET / HTTP/1.1\r\nrange: bytes=0-4\r\n\r\n',
        ),
    ],
)
def test_request_is_formatted(arguments, expected):
    assert format_request(*arguments) == expected


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        ((200, 'OK', {}, None, 'GET'), b'HTTP/1.1 200 OK\r\n\r\n'),
        (
            (200, 'Fine', {'x': 'v'}, 5, 'GET'),
            b'HTTP/1.1 200 Fine\r\ncontent-length: 5\r\nx: v\r\n\r\n',
        ),
        ((200, 'OK', {}, CHUNKED, 'GET'), b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n'),
        (
            (200, 'OK', {'content-length': 5}, None, 'HEAD'),
            b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n',
        ),
        (
            (200, 'OK', {'transfer-encoding': 'chunked'}, None, 'HEAD'),
            b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n',
        ),
        (
            (304, 'Not Modified', {'content-length': 5}, None, 'GET'),
            b'HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n',
        ),
        ((204, 'No Content', {}, None, 'GET'), b'HTTP/1.1 204 No Content\r\n\r\n'),
        (
            (416, 'Range Not Satisfiable', {'content-range': ContentRange(0, 0, 9)}, None, 'GET'),
            b'HTTP/1.1 416 Range Not Satisfiable\r\ncontent-range: bytes */9\r\n\r\n',
        ),
        ((200, 'OK', {'a': '\xe9'}, None, 'GET'), b'HTTP/1.1 200 OK\r\na: \xe9\r\n\r\n'),
    ],
)
def test_response_is_formatted(arguments, expected):
    formatted = format_response(*arguments)
    assert sorted(formatted.split(b'\r\n')) == sorted(expected.split(b'\r\n'))
    assert formatted.startswith(expected.split(b'\r\n')[0] + b'\r\n')
    assert formatted.endswith(b'\r\n\r\n')


CONTROLS = [chr(i) for i in (*range(32), *range(0x7F, 0xA0))]


def test_headers_that_would_be_refused_are_not_formatted(unsendable_headers):
    _, headers, error = unsendable_headers
    with pytest.raises(error):
        format_request('PUT', '/', headers, None)
    with pytest.raises(error):
        format_response(200, 'OK', headers, None, 'GET')


@pytest.mark.parametrize('value', ['5', True, -5, 10**16])
def test_a_content_length_that_would_be_refused_is_not_formatted(value):
    headers = {'content-length': value}
    with pytest.raises((ValueError, TypeError)):
        format_request('PUT', '/', headers, value)
    with pytest.raises((ValueError, TypeError)):
        format_response(200, 'OK', headers, value, 'GET')
    with pytest.raises((ValueError, TypeError)):
        format_response(200, 'OK', headers, None, 'HEAD')


@pytest.mark.parametrize('control', CONTROLS, ids=ascii)
def test_control_characters_are_not_formatted(control):
    for arguments in (('GET', f'/a{control}b', {}), ('GET', '/', {'a': f'b{control}c'})):
        with pytest.raises(ValueError):
            format_request(*arguments, None)
    for arguments in ((200, f'O{control}K', {}), (200, 'OK', {'a': f'b{control}c'})):
        with pytest.raises(ValueError):
            format_response(*arguments, None, 'GET')


@pytest.mark.parametrize(
    'uri',
    [
        '', 'a', '*', '//', '/a//b', '/a b', '/a#b', '/a?', '/a?b c', '/a\r\nb: c', '/a\n', '/\xe9',
        'http://h/', 5, b'/',
    ],
)  # fmt: skip
def test_a_uri_that_would_be_refused_is_not_formatted(uri):
    with pytest.raises(ValueError, match='target'):
        format_request('GET', uri, {}, None)


@pytest.mark.parametrize('method', ['PATCH', 'get', '', 'GET ', 'GET\r\n', None, 5])
def test_other_methods_are_not_formatted(method):
    with pytest.raises(ValueError, match='method must be one of'):
        format_request(method, '/', {}, None)


@pytest.mark.parametrize('method', ['GET', 'HEAD', 'DELETE'])
@pytest.mark.parametrize(
    ('headers', 'length'),
    [
        ({}, 0),
        ({}, 5),
        ({}, CHUNKED),
        ({'content-length': 5}, None),
        ({'transfer-encoding': 'chunked'}, None),
    ],
)
def test_a_body_is_not_formatted_with_a_method_that_has_none(method, headers, length):
    with pytest.raises(ValueError, match='body'):
        format_request(method, '/', headers, length)


def test_what_delete_must_not_have_is_not_formatted_for_it():
    with pytest.raises(ValueError, match='body'):
        format_request('DELETE', '/', {'content-length': 0}, None)


@pytest.mark.parametrize(
    ('headers', 'length'),
    [
        ({'content-length': 4}, 5),
        ({'content-length': 5}, None),
        ({'content-length': 5}, CHUNKED),
        ({'transfer-encoding': 'chunked'}, 5),
        ({'transfer-encoding': 'chunked'}, None),
        ({'transfer-encoding': 'chunked', 'content-length': 5}, 5),
        ({'transfer-encoding': 'chunked', 'content-length': 5}, CHUNKED),
    ],
)
def test_framing_that_contradicts_the_body_is_not_formatted(headers, length):
    with pytest.raises(ValueError, match='given'):
        format_request('PUT', '/', headers, length)
    with pytest.raises(ValueError, match='given'):
        format_response(200, 'OK', headers, length, 'GET')


@pytest.mark.parametrize(
    ('status', 'method'), [(200, 'HEAD'), (404, 'HEAD'), (204, 'GET'), (304, 'PUT')]
)
@pytest.mark.parametrize('length', [0, 5, CHUNKED])
def test_a_response_that_has_no_body_is_not_formatted_with_one(status, method, length):
    with pytest.raises(ValueError, match='must not have a body'):
        format_response(status, 'Reason', {}, length, method)


@pytest.mark.parametrize(
    'headers', [{'content-length': 5}, {'transfer-encoding': 'chunked'}], ids=str
)
def test_a_204_response_describes_no_body(headers):
    with pytest.raises(ValueError, match='given'):
        format_response(204, 'No Content', headers, None, 'GET')


@pytest.mark.parametrize('status', [199, 600, 0, -200, 100, '200', 200.0, True, None])
def test_other_statuses_are_not_formatted(status):
    with pytest.raises(ValueError, match='status must be an int from 200 to 599'):
        format_response(status, 'OK', {}, None, 'GET')


@pytest.mark.parametrize(
    'reason', ['', ' ', ' OK', 'OK ', 'O\nK', 'OK\r\na: b', '\u20ac', None, b'OK']
)
def test_other_reasons_are_not_formatted(reason):
    with pytest.raises(ValueError):
        format_response(200, reason, {}, None, 'GET')


def test_a_request_is_ascii():
    with pytest.raises(ValueError):
        format_request('GET', '/', {'a': '\xe9'}, None)


@pytest.mark.parametrize(
    ('size', 'extension', 'why'),
    [
        (DEFAULT_LIMITS.max_chunk + 1, None, 'a chunk is at most'),
        (5, b'', 'name=value'),
        (5, b'a', 'name=value'),
        (5, b'a=b\r\n', 'name=value'),
        (5, b'a=b c', 'name=value'),
        (5, b'a=b;c=d', 'name=value'),
        (5, b'a=\xe9', 'name=value'),
        (5, b'a=' + b'b' * 512, 'a chunk line is at most 512'),
    ],
)
def test_a_chunk_line_that_would_be_refused_is_not_formatted(size, extension, why):
    with pytest.raises(ValueError, match=why):
        format_chunk_line(size, extension)


# --- properties ----------------------------------------------------------------------------------


def text_of(characters):
    return st.text(characters, min_size=1, max_size=20)


PRINTABLE_TEXT = ''.join(map(chr, PRINTABLE))
visible = st.sampled_from(''.join(map(chr, VISIBLE - {0x23})))
segments = st.lists(text_of(st.sampled_from(''.join(map(chr, VISIBLE - set(b'#/?'))))), max_size=4)
paths = st.builds(lambda s, end: [*s, ''] if s and end else s, segments, st.booleans())
queries = st.one_of(st.just(''), text_of(visible))
KNOWN = {'content-length', 'transfer-encoding', 'range', 'content-range', 'host', 'expect'}
names = st.one_of(
    st.sampled_from(['accept', 'content-type', 'date', 'server', 'user-agent']),
    st.text(string.ascii_lowercase + string.digits + '-', min_size=1, max_size=64),
).filter(lambda name: name not in KNOWN)
LATIN_1_TEXT = PRINTABLE_TEXT + ''.join(chr(i) for i in range(0xA1, 0x100) if i != 0xAD)


def values_of(characters):
    return text_of(st.sampled_from(characters)).filter(lambda v: v == v.strip(' '))


lengths = st.one_of(st.just(0), st.integers(1, 10**16 - 1))
starts = st.integers(0, 10**15)
ranges = st.one_of(
    st.builds(lambda start, size: Range(start, start + size), starts, st.integers(1, 10**15)),
    st.builds(lambda start: Range(start, None), starts),
    st.builds(lambda size: Range(-size, None), st.integers(1, 10**15)),
)
content_ranges = st.one_of(
    st.builds(
        lambda start, size, rest: ContentRange(start, start + size, start + size + rest),
        starts,
        st.integers(1, 10**15),
        st.integers(0, 10**15),
    ),
    st.builds(
        lambda start, size: ContentRange(start, start + size, None), starts, st.integers(1, 10**15)
    ),
    st.builds(lambda total: ContentRange(0, 0, total), starts),
)


def headers_of(characters, known):
    return st.builds(
        lambda plain, more: {**plain, **more},
        st.dictionaries(names, values_of(characters), max_size=5),
        st.fixed_dictionaries({}, optional=known),
    )


def join(path, query):
    uri = '/' + '/'.join(path)
    return f'{uri}?{query}' if query else uri


def framing_of(length):
    if length is None:
        return {}
    return {'transfer-encoding': 'chunked'} if length == CHUNKED else {'content-length': length}


@given(
    st.sampled_from(['GET', 'HEAD', 'DELETE', 'PUT', 'POST']),
    paths,
    queries,
    headers_of(
        PRINTABLE_TEXT,
        {'range': ranges, 'content-range': content_ranges, 'host': st.just('h')},
    ),
    st.one_of(st.none(), st.just(CHUNKED), lengths),
)
def test_parse_of_format_is_identity_for_requests(method, path, query, headers, length):
    if method not in ('PUT', 'POST'):
        length = None
    before = dict(headers)
    data = format_request(method, join(path, query), headers, length)
    assert headers == before
    assert data.endswith(b'\r\n\r\n')
    assert data.find(b'\r\n\r\n') == len(data) - 4
    assert parse_request(data[:-4]) == (method, path, query, {**headers, **framing_of(length)})


@given(
    st.integers(200, 599).filter(lambda status: status not in (204, 304)),
    values_of(LATIN_1_TEXT),
    headers_of(LATIN_1_TEXT, {'content-range': content_ranges}),
    st.one_of(st.none(), st.just(CHUNKED), lengths),
)
def test_parse_of_format_is_identity_for_responses(status, reason, headers, length):
    data = format_response(status, reason, headers, length, 'GET')
    assert data.find(b'\r\n\r\n') == len(data) - 4
    assert parse_response(data[:-4]) == (status, reason, {**headers, **framing_of(length)})


@given(ranges)
def test_parse_of_format_is_identity_for_ranges(value):
    assert parse_range(str(value)) == value


@given(content_ranges)
def test_parse_of_format_is_identity_for_content_ranges(value):
    assert parse_content_range(str(value)) == value


extension_bytes = st.lists(
    st.sampled_from(sorted(VISIBLE - set(b'";='))), min_size=1, max_size=20
).map(bytes)
extensions = st.one_of(
    st.none(), st.builds(lambda n, v: n + b'=' + v, extension_bytes, extension_bytes)
)


@given(st.integers(0, DEFAULT_LIMITS.max_chunk), extensions)
def test_parse_of_format_is_identity_for_chunk_lines(size, extension):
    line = format_chunk_line(size, extension)
    assert line.endswith(b'\r\n')
    assert parse_chunk_line(line[:-2]) == (size, extension)
