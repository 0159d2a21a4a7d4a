"""A second reader of the HTTP subset, written from docs/reference/http-subset.md alone.

It is slow and plain on purpose: no regular expression, and nothing of `degu` but the table of
limits. The fuzzer compares it with the parsers; where the two disagree about what is accepted, or
about what it means, one of them has a bug.

Every `read_x()` gives the value, or raises RefusedError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from degu.limits import Limits

DIGITS = '0123456789'
LETTERS = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'
HEX_DIGITS = DIGITS + 'abcdefABCDEF'
VISIBLE = ''.join(map(chr, range(0x21, 0x7F)))
BODY_METHODS = ('PUT', 'POST')


class RefusedError(Exception):
    """The bytes are outside the grammar or a limit."""


def require(holds: object) -> None:
    if not holds:
        raise RefusedError


def consists_of(text: str, allowed: str) -> bool:
    return all(char in allowed for char in text)


def read_number(text: str) -> int:
    require(text and consists_of(text, DIGITS) and len(text) <= 16)
    require(text == '0' or text[0] != '0')
    return int(text)


# --- preambles -----------------------------------------------------------------------------------


def read_request(preamble: bytes, limits: Limits) -> tuple[str, list[str], str, dict[str, Any]]:
    first_line, headers = read_lines(preamble, limits, is_request=True)
    parts = first_line.split(' ')
    require(len(parts) == 3)
    method, target, version = parts
    require(method in ('GET', 'HEAD', 'PUT', 'POST', 'DELETE'))
    require(version == 'HTTP/1.1')
    path, mark, query = target.partition('?')
    require(consists_of(target, VISIBLE) and '#' not in target)
    require(path.startswith('/') and '//' not in path)
    require(query or not mark)
    if method not in BODY_METHODS and headers.get('content-length') == 0:
        # With both framing headers it was refused already.
        del headers['content-length']
    if method not in BODY_METHODS:
        require('content-length' not in headers and 'transfer-encoding' not in headers)
    return method, [] if path == '/' else path[1:].split('/'), query, headers


def read_response(preamble: bytes, limits: Limits) -> tuple[int, str, dict[str, Any]]:
    first_line, headers = read_lines(preamble, limits, is_request=False)
    version, _, rest = first_line.partition(' ')
    status, _, reason = rest.partition(' ')
    require(version == 'HTTP/1.1')
    require(len(status) == 3 and consists_of(status, DIGITS) and status[0] in '2345')
    require(is_text(reason, is_request=False))
    if status == '204':
        require(headers.get('content-length', 0) == 0 and 'transfer-encoding' not in headers)
    return int(status), reason, headers


def read_lines(preamble: bytes, limits: Limits, *, is_request: bool) -> tuple[str, dict[str, Any]]:
    require(len(preamble) <= limits.max_preamble)
    first_line, *lines = preamble.decode('latin-1').split('\r\n')
    require(len(lines) <= limits.max_headers)
    require(all(len(line) <= limits.max_line for line in (first_line, *lines)))
    headers: dict[str, Any] = {}
    for line in lines:
        name, separator, text = line.partition(': ')
        require(separator and 1 <= len(name) <= 64 and consists_of(name, DIGITS + LETTERS + '-'))
        require(is_text(text, is_request=is_request))
        name = name.lower()
        require(name not in headers)
        headers[name] = read_value(name, text, is_request=is_request)
    require(not ('content-length' in headers and 'transfer-encoding' in headers))
    return first_line, headers


def is_text(text: str, *, is_request: bool) -> bool:
    allowed = ' ' + VISIBLE + ('' if is_request else ''.join(map(chr, range(0x80, 0x100))))
    return bool(text) and consists_of(text, allowed) and text[0] != ' ' and text[-1] != ' '


def read_value(name: str, text: str, *, is_request: bool) -> Any:
    if name == 'content-length':
        return read_number(text)
    if name == 'transfer-encoding':
        require(text == 'chunked')
    elif name == 'content-range':
        return read_content_range(text)
    elif is_request and name == 'range':
        return read_range(text)
    elif is_request and name == 'host':
        read_host(text)
    elif is_request and name == 'expect':
        raise RefusedError
    return text


def read_range(text: str) -> tuple[int, int | None]:
    unit, _, span = text.partition('=')
    first, dash, last = span.partition('-')
    require(unit == 'bytes' and dash)
    if not first:
        require(read_number(last) > 0)
        return -int(last), None
    start = read_number(first)
    if not last:
        return start, None
    require(start <= read_number(last))
    return start, int(last) + 1


def read_content_range(text: str) -> tuple[int, int, int | None]:
    unit, _, rest = text.partition(' ')
    span, slash, size = rest.partition('/')
    require(unit == 'bytes' and slash)
    total = None if size == '*' else read_number(size)
    if span == '*':
        require(total is not None)
        return 0, 0, total
    first, dash, last = span.partition('-')
    require(dash and read_number(first) <= read_number(last))
    require(total is None or int(last) < total)
    return int(first), int(last) + 1, total


def read_host(text: str) -> None:
    if text.startswith('['):
        host, bracket, rest = text[1:].partition(']')
        require(bracket and 2 <= len(host) <= 45 and consists_of(host, HEX_DIGITS + ':.'))
        require(not rest or rest[0] == ':')
        port = rest[1:] if rest else None
    else:
        host, colon, rest = text.partition(':')
        require(1 <= len(host) <= 255 and consists_of(host, DIGITS + LETTERS + '_.-'))
        require(host[0] not in '.-' and host[-1] != '-')
        port = rest if colon else None
    require(port is None or (1 <= len(port) <= 5 and consists_of(port, DIGITS)))


# --- chunks --------------------------------------------------------------------------------------


def read_chunk_line(line: bytes, max_chunk: int) -> tuple[int, bytes | None]:
    size, semicolon, extension = line.decode('latin-1').partition(';')
    require(1 <= len(size) <= 7 and consists_of(size, HEX_DIGITS))
    require(int(size, 16) <= max_chunk)
    if not semicolon:
        return int(size, 16), None
    name, equals, value = extension.partition('=')
    require(equals and name and value and consists_of(name + value, VISIBLE))
    require(not set(name + value) & set('";'))
    return int(size, 16), extension.encode()


def read_chunked_body(
    data: bytes, limits: Limits
) -> tuple[list[tuple[bytes | None, bytes]], bytes]:
    """Give the chunks, the last and empty one included, and what comes after them."""
    chunks = []
    while not chunks or chunks[-1][1]:
        line, end, data = data.partition(b'\r\n')
        require(end and len(line) <= limits.max_chunk_line)
        size, extension = read_chunk_line(line, limits.max_chunk)
        require(data[size : size + 2] == b'\r\n')
        chunks.append((extension, data[:size]))
        data = data[size + 2 :]
    return chunks, data


# --- a connection --------------------------------------------------------------------------------


def read_requests(data: bytes, limits: Limits) -> tuple[list[Any], bool]:
    """Give the whole requests that `data` begins with, and whether nothing is left after them."""
    messages: list[Any] = []
    while data:
        preamble, end, rest = data.partition(b'\r\n\r\n')
        try:
            require(end)
            request = read_request(preamble, limits)
            body: Any = None
            if 'content-length' in request[3]:
                size = request[3]['content-length']
                require(len(rest) >= size)
                body, rest = rest[:size], rest[size:]
            elif 'transfer-encoding' in request[3]:
                body, rest = read_chunked_body(rest, limits)
        except RefusedError:
            return messages, False
        messages.append((request, body))
        data = rest
    return messages, True
