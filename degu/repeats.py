"""Preambles that come again: each end of a connection remembers the last one, either way.

Who calls the same thing again sends the same preamble again, but for the length of the body. That
is why ours have it at their end: what is before it is compared with the last, byte for byte, and is
then known to be valid and what it means. With three headers, that takes a fifth of the time.

1. `RequestFormatter` and `ResponseParser` belong to a client's connection, `RequestParser` and
   `ResponseFormatter` to a server's. Each does what the function of `degu.wire` does that it calls
   for all that is new.
2. One preamble is kept, and only a short one without another framing header: a peer cannot make us
   remember more than MAX_REMEMBERED bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from degu.limits import DEFAULT_LIMITS, Limits
from degu.wire import format_request, format_response, parse_request, parse_response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from degu.wire import Headers, HeaderValue

MAX_REMEMBERED = 1024
"""Bytes of a preamble; a longer one is not kept."""
_LENGTH = b'\r\ncontent-length: '
_LONGEST = len(_LENGTH) + 16


def _may_follow(digits: bytes) -> bool:
    """Tell whether this is a length above zero, whatever was there before."""
    return digits.isdigit() and len(digits) <= 16 and digits[0] != 0x30


class RequestParser:
    """Parses the requests of one connection, as `wire.parse_request` does."""

    # Changed by the thread of the connection: _start, _parsed.
    __slots__ = ('_limits', '_parsed', '_room', '_start')

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._room = min(MAX_REMEMBERED, limits.max_line - _LONGEST)
        self._start: bytes | None = None
        self._parsed: tuple[str, list[str], str, Headers] = '', [], '', {}

    def parse(self, preamble: bytes) -> tuple[str, list[str], str, Headers]:
        """Parse a preamble into method, path, query, headers. Raises ProtocolError."""
        start, _, digits = preamble.rpartition(_LENGTH)
        if start == self._start and _may_follow(digits):
            method, path, query, headers = self._parsed
            return method, path.copy(), query, {**headers, 'content-length': int(digits)}
        method, path, query, headers = parse_request(preamble, self._limits)
        if _may_follow(digits) and len(start) <= self._room:
            self._start = start
            self._parsed = method, path.copy(), query, headers.copy()
        return method, path, query, headers


class ResponseParser:
    """Parses the responses on one connection, as `wire.parse_response` does."""

    # Changed by the thread of the connection: all.
    __slots__ = ('_parsed', '_start')

    def __init__(self) -> None:
        self._start: bytes | None = None
        self._parsed: tuple[int, str, Headers] = 0, '', {}

    def parse(self, preamble: bytes) -> tuple[int, str, Headers]:
        """Parse a preamble into status, reason, headers. Raises ProtocolError."""
        start, _, digits = preamble.rpartition(_LENGTH)
        if start == self._start and _may_follow(digits):
            status, reason, headers = self._parsed
            return status, reason, {**headers, 'content-length': int(digits)}
        status, reason, headers = parse_response(preamble)
        if _may_follow(digits) and len(start) <= MAX_REMEMBERED:
            self._start = start
            self._parsed = status, reason, headers.copy()
        return status, reason, headers


def _find_start(preamble: bytes, headers: Mapping[str, HeaderValue]) -> bytes | None:
    """Return what a preamble is before the length of its body, None where it is not kept."""
    end = preamble.rfind(_LENGTH)
    if end < 0 or end > MAX_REMEMBERED:
        return None
    # Of other values one may equal another that is not of its type. (A length is no str either.)
    if not all(type(value) is str for value in headers.values()):
        return None
    return preamble[: end + len(_LENGTH)]


class RequestFormatter:
    """Formats the requests of one connection, as `wire.format_request` does."""

    # Changed by the thread of the connection: all.
    __slots__ = ('_headers', '_method', '_start', '_uri')

    def __init__(self) -> None:
        self._method = self._uri = ''
        self._headers: Mapping[str, HeaderValue] = {}
        self._start: bytes | None = None

    def format(
        self, method: str, uri: str, headers: Mapping[str, HeaderValue], length: int | None
    ) -> bytes:
        """Format a preamble, empty line included. Raises ValueError or TypeError."""
        if (
            self._start is not None
            and uri == self._uri
            and method == self._method
            and headers == self._headers
            and length is not None
            and length >= 0
        ):
            return b'%b%d\r\n\r\n' % (self._start, length)
        preamble = format_request(method, uri, headers, length)
        start = _find_start(preamble, headers)
        if start is not None:
            self._start, self._method, self._uri = start, method, uri
            self._headers = dict(headers)
        return preamble


class ResponseFormatter:
    """Formats the responses on one connection, as `wire.format_response` does."""

    # Changed by the thread of the connection: all.
    __slots__ = ('_headers', '_reason', '_start', '_status')

    def __init__(self) -> None:
        self._status, self._reason = 0, ''
        self._headers: Mapping[str, HeaderValue] = {}
        self._start: bytes | None = None

    def format(
        self,
        status: int,
        reason: str,
        headers: Mapping[str, HeaderValue],
        length: int | None,
        method: str,
    ) -> bytes:
        """Format a preamble, empty line included. Raises ValueError or TypeError."""
        if (
            self._start is not None
            and reason == self._reason
            and status == self._status
            and headers == self._headers
            and length is not None
            and length >= 0
            and method != 'HEAD'
        ):
            return b'%b%d\r\n\r\n' % (self._start, length)
        preamble = format_response(status, reason, headers, length, method)
        start = _find_start(preamble, headers)
        if start is not None:
            self._start, self._status, self._reason = start, status, reason
            self._headers = dict(headers)
        return preamble
