"""What must hold for any bytes: one function for each parser, which raises where it does not.

    check_request, check_response, check_chunk_line
        What is accepted, and as what, is what the second reader (strict.py) says. Written again
        by the formatters, it parses to the same values. Nothing but ProtocolError is raised.
    check_channel
        The same bytes, whole and cut into pieces, through a real Channel and the bodies give the
        same requests and the same end, however the bodies are read; the requests are those that the
        second reader finds.

Fuzzing calls them with what it invents (fuzz.py), a test with the corpus (test_fuzz.py).
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

import strict

from degu.bodies import ChunkedInput, Input
from degu.channel import Channel
from degu.errors import DeguError, ProtocolError
from degu.limits import DEFAULT_LIMITS
from degu.util import relative_uri
from degu.wire import (
    CHUNKED,
    format_chunk_line,
    format_request,
    format_response,
    parse_chunk_line,
    parse_request,
    parse_response,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL_LIMITS = DEFAULT_LIMITS._replace(
    max_preamble=160, max_line=80, max_headers=4, max_chunk=32, max_chunk_line=16
)
"""So small that short inputs reach them."""
_MAX_DATA = 4096
"""What a socket's buffer holds for sure."""


def compare(name: str, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        raise AssertionError(f'{name}: {ours!r} is not {theirs!r}')


def run_both(
    parse: Callable[..., Any], read: Callable[..., Any], data: bytes, limits: Any
) -> Any | None:
    """Return what both readers make of `data`, None if both refuse it."""
    try:
        ours = parse(data, limits)
    except ProtocolError:
        ours = None
    try:
        theirs = read(data, limits)
    except strict.RefusedError:
        theirs = None
    compare('the two readers disagree', ours, theirs)
    return ours


def find_length(headers: dict[str, Any]) -> int | None:
    return CHUNKED if 'transfer-encoding' in headers else headers.get('content-length')


def check_request(data: bytes) -> None:
    for limits in (DEFAULT_LIMITS, SMALL_LIMITS):
        request = run_both(parse_request, strict.read_request, data, limits)
        if request is None:
            continue
        method, path, query, headers = request
        for text in (method, *path, query, *headers, *map(str, headers.values())):
            assert text.isascii(), text
            assert text.isprintable(), text
        uri = relative_uri({'path': path, 'query': query})
        again = format_request(method, uri, headers, find_length(headers))
        assert again.endswith(b'\r\n\r\n')
        compare('formatted and parsed', parse_request(again[:-4]), request)


def check_response(data: bytes) -> None:
    for limits in (DEFAULT_LIMITS, SMALL_LIMITS):
        response = run_both(parse_response, strict.read_response, data, limits)
        if response is None:
            continue
        status, reason, headers = response
        texts = [reason, *map(str, headers.values())]
        for text in texts:
            assert not any(char < ' ' or char == '\x7f' for char in text), text
        length = None if status in {204, 304} else find_length(headers)
        try:
            again = format_response(status, reason, headers, length, 'GET')
        except ValueError:
            # Other servers may say more than we do.
            assert not ''.join(texts).isprintable(), texts
        else:
            assert again.endswith(b'\r\n\r\n')
            compare('formatted and parsed', parse_response(again[:-4]), response)


def check_chunk_line(data: bytes) -> None:
    for max_chunk in (DEFAULT_LIMITS.max_chunk, SMALL_LIMITS.max_chunk):
        chunk = run_both(parse_chunk_line, strict.read_chunk_line, data, max_chunk)
        if chunk is not None and len(data) + 2 <= DEFAULT_LIMITS.max_chunk_line:
            again = format_chunk_line(*chunk)
            assert again.endswith(b'\r\n')
            compare('formatted and parsed', parse_chunk_line(again[:-2]), chunk)


class SlicedSocket(socket.socket):
    """A socket that hands out at most the next of `sizes` bytes at a time, in turn."""

    sizes: bytes = b''
    _turn = 0

    def _next(self, size: int) -> int:
        if not self.sizes:
            return size
        self._turn += 1
        return max(min(self.sizes[self._turn % len(self.sizes)], size), 1)

    def recv(self, size: int, flags: int = 0) -> bytes:
        return super().recv(self._next(size), flags)

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        return super().recv_into(buffer, self._next(size or len(buffer)), flags)


def read_by_pieces(body: Input | ChunkedInput) -> Any:
    if isinstance(body, Input):
        return b''.join(body)
    return [(body.extension, data) for data in body]


def read_at_once(body: Input | ChunkedInput) -> Any:
    return body.read()


def read_into_buffer(body: Input | ChunkedInput) -> Any:
    if isinstance(body, ChunkedInput):
        return read_by_pieces(body)
    # What is claimed may be a petabyte: take what is there.
    buffer = bytearray(min(body.content_length, _MAX_DATA + 1))
    return bytes(buffer[: body.readinto(buffer)])


def read_connection(
    data: bytes, sizes: bytes, read_body: Callable[[Input | ChunkedInput], Any]
) -> tuple[list[Any], Any]:
    """Return the requests that `data` holds, and how it ended: None, or the error's description."""
    ours, theirs = socket.socketpair()
    with SlicedSocket(fileno=ours.detach()) as sock, contextlib.closing(theirs):
        sock.sizes = sizes
        theirs.setblocking(False)
        assert theirs.send(data) == len(data)
        theirs.shutdown(socket.SHUT_WR)
        channel = Channel(sock, SMALL_LIMITS)
        messages: list[Any] = []
        try:
            while (preamble := channel.read_preamble()) is not None:
                request = parse_request(preamble, SMALL_LIMITS)
                body: Any = None
                if 'content-length' in request[3]:
                    body = read_body(Input(channel, request[3]['content-length']))  # type: ignore[arg-type]
                elif 'transfer-encoding' in request[3]:
                    body = read_body(ChunkedInput(channel))
                messages.append((request, body))
        except DeguError as error:
            return messages, (type(error).__name__, getattr(error, 'status', None))
        return messages, None


def join_bodies(messages: list[Any]) -> list[Any]:
    return [
        (request, b''.join(data for _, data in body) if isinstance(body, list) else body)
        for request, body in messages
    ]


def check_channel(data: bytes) -> None:
    """Take the sizes of the pieces from the first bytes: how many, and how long each is."""
    count = data[0] % 8 if data else 0
    sizes, data = data[1 : 1 + count], data[1 + count :][:_MAX_DATA]
    whole, end = read_connection(data, b'', read_by_pieces)
    compare(
        'the two readers disagree',
        (whole, end is None),
        strict.read_requests(data, SMALL_LIMITS),
    )
    compare('cut in pieces', read_connection(data, sizes, read_by_pieces), (whole, end))
    compare('byte by byte', read_connection(data, b'\x01', read_by_pieces), (whole, end))
    compare('read into a buffer', read_connection(data, sizes, read_into_buffer), (whole, end))
    messages, last = read_connection(data, sizes, read_at_once)
    compare('read at once', (messages, last), (join_bodies(whole), end))


CHECKS = {
    'request': check_request,
    'response': check_response,
    'chunk_line': check_chunk_line,
    'channel': check_channel,
}
