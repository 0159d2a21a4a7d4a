"""A preamble that comes again means what it meant, and one that does not is looked at anew."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from degu.errors import ProtocolError
from degu.limits import Limits
from degu.repeats import (
    MAX_REMEMBERED,
    RequestFormatter,
    RequestParser,
    ResponseFormatter,
    ResponseParser,
)
from degu.wire import Range, format_request, format_response, parse_request, parse_response

if TYPE_CHECKING:
    from collections.abc import Callable

LINES = (
    b'content-type: a/b',
    b'Content-Length: 7',
    b'content-length: 0',
    b'content-length: 7',
    b'content-length: 07',
    b'content-length: 12345678901234567',
    b'transfer-encoding: chunked',
    b'range: bytes=0-9',
)
BLOCKS = [
    b''.join(b'\r\n' + x for x in block) for n in range(3) for block in product(LINES, repeat=n)
]
REQUESTS = [
    line + block
    for line in (b'POST /a/b?q HTTP/1.1', b'PUT /a HTTP/1.1', b'GET / HTTP/1.1')
    for block in BLOCKS
]
RESPONSES = [
    line + block
    for line in (b'HTTP/1.1 200 OK', b'HTTP/1.1 204 No Content', b'HTTP/1.1 99 OK')
    for block in BLOCKS
]
SENT_HEADERS: list[dict[str, Any]] = [
    {},
    {'a': 'b'},
    {'a': 'b', 'content-length': 7},
    {'range': Range(0, 10)},
    {'range': (0, 10)},
    {'transfer-encoding': 'chunked'},
    {'A': 'b'},
]
SENT_LENGTHS = (None, -1, 0, 7)
SENT_REQUESTS = list(product(('POST', 'GET', 'post'), ('/', 'a'), SENT_HEADERS, SENT_LENGTHS))
SENT_RESPONSES = list(product((200, 304), ('OK', ''), SENT_HEADERS, SENT_LENGTHS, ('POST', 'HEAD')))


def outcome_of(function: Callable[..., Any], *args: Any) -> Any:
    """Return the result, with the order of headers, or what kind of error there was."""
    try:
        result = function(*args)
    except (ProtocolError, ValueError, TypeError) as error:
        return type(error), str(error)
    if isinstance(result, tuple):
        *rest, headers = result
        return rest, list(headers.items())
    return result


@pytest.mark.parametrize(
    ('build', 'plain', 'data'),
    [
        (lambda: RequestParser().parse, parse_request, REQUESTS),
        (lambda: ResponseParser().parse, parse_response, RESPONSES),
    ],
)
def test_a_preamble_means_the_same_whatever_came_before(
    build: Callable[[], Any], plain: Callable[..., Any], data: list[bytes]
) -> None:
    expected = [outcome_of(plain, preamble) for preamble in data]
    for before in data:
        parse = build()
        outcome_of(parse, before)
        start = before.rpartition(b':')[0]
        for preamble, outcome in zip(data, expected, strict=True):
            if preamble.startswith(start):  # no other can be taken for it
                assert outcome_of(parse, preamble) == outcome
                outcome_of(parse, before)


@pytest.mark.parametrize(
    ('build', 'plain', 'calls'),
    [
        (lambda: RequestFormatter().format, format_request, SENT_REQUESTS),
        (lambda: ResponseFormatter().format, format_response, SENT_RESPONSES),
    ],
)
def test_the_same_is_sent_whatever_was_sent_before(
    build: Callable[[], Any], plain: Callable[..., Any], calls: list[Any]
) -> None:
    expected = [outcome_of(plain, *call) for call in calls]
    for before in calls:
        for call, outcome in zip(calls, expected, strict=True):
            format_it = build()
            outcome_of(format_it, *before)
            assert outcome_of(format_it, *call) == outcome


def test_what_an_application_does_to_a_request_is_not_in_the_next_one() -> None:
    parser = RequestParser()
    preamble = b'POST /a/b HTTP/1.1\r\nx: y\r\ncontent-length: 7'
    expected = ('POST', ['a', 'b'], '', {'x': 'y', 'content-length': 7})
    for _ in range(3):
        _, path, _, headers = found = parser.parse(preamble)
        assert found == expected
        path.clear()
        headers.clear()


def test_what_a_client_does_to_a_response_is_not_in_the_next_one() -> None:
    parser = ResponseParser()
    for _ in range(3):
        status, reason, headers = parser.parse(b'HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 7')
        assert (status, reason, headers) == (200, 'OK', {'x': 'y', 'content-length': 7})
        headers.clear()


def test_headers_that_were_changed_are_formatted_anew() -> None:
    headers = {'a': 'b'}
    request, response = RequestFormatter(), ResponseFormatter()
    for value in 'bc':
        headers['a'] = value
        assert b'a: ' + value.encode() in request.format('POST', '/', headers, 7)
        assert b'a: ' + value.encode() in response.format(200, 'OK', headers, 7, 'POST')


@pytest.mark.parametrize('size', [MAX_REMEMBERED, MAX_REMEMBERED + 1])
def test_a_peer_cannot_make_us_remember_much(size: int) -> None:
    length = b'\r\ncontent-length: 7'
    for parser, start in (
        (RequestParser(), b'POST / HTTP/1.1\r\na: '),
        (ResponseParser(), b'HTTP/1.1 200 OK\r\na: '),
    ):
        preamble = start.ljust(size, b'x') + length
        parser.parse(preamble)
        assert (parser._start is not None) == (size == MAX_REMEMBERED)


def test_the_limits_hold_for_a_preamble_that_grew_by_the_digits_of_its_length() -> None:
    start = b'POST / HTTP/1.1\r\ncontent-length: '
    for room, digits in product(range(1, 4), (b'1', b'12', b'123')):
        limits = Limits(max_preamble=len(start) + room, max_line=len(start) + room)
        parser = RequestParser(limits)
        parser.parse(start + b'1')
        found = outcome_of(parser.parse, start + digits)
        assert found == outcome_of(parse_request, start + digits, limits)
