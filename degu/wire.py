"""The HTTP/1.1 subset: bytes <-> values, and nothing else (no socket, no file, no clock).

1. Whoever reads a connection finds the empty line and hands the bytes before it to
   `parse_request()` or `parse_response()`; the bodies hand chunk lines to `parse_chunk_line()`.
2. Whoever writes hands values to `format_request()`, `format_response()`, `format_chunk_line()`.
   They hold the application to the grammar of preambles; what a `host` or `expect` says is its own.

The grammar, stricter than RFC 9112 wherever leniency has been used to smuggle requests:

    preamble     = first-line *(header) CRLF
    request-line = METHOD SP target SP "HTTP/1.1" CRLF
    status-line  = "HTTP/1.1" SP 3DIGIT SP text CRLF
    header       = 1*64(ALPHA / DIGIT / "-") ": " text CRLF
    target       = path ["?" query]
    text         = printable ASCII, not empty, no space at either end
    chunk        = 1*7HEXDIG [";" name "=" value] CRLF data CRLF

Header names are casefolded; `content-length` becomes an int, `range` a Range, `content-range` a
ContentRange. A header given twice, a folded line, a bare CR or LF, a control character and both
framing headers at once are refused: no two readers can disagree about what is left.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from degu.errors import ProtocolError
from degu.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

METHODS = frozenset({'GET', 'HEAD', 'PUT', 'POST', 'DELETE'})
BODY_METHODS = frozenset({'PUT', 'POST'})
_TARGET_RULE = 'a target must be "/path" or "/path?query", visible ASCII, no "//" or "#"'
BODILESS_STATUSES = frozenset({204, 304})
CHUNKED = -1
"""Stands for the length of a body that says its length as it goes."""

_LENGTH = r'(?:0|[1-9][0-9]{0,15})'
# RFC 9112 §3.2. Stricter: of the four forms of a target only origin-form; visible ASCII, no "#"; no
# "?" with nothing after it, because `query` could not tell it from no query and a proxy could not
# rebuild it. (That a path has no "//" is checked after the match.)
_PATH = r'/[!"$->@-~]*'
_QUERY = r'[!"$-~]+'
# RFC 9112 §5. Stricter: no underscore in a name, because gateways fold it into "-"; exactly one
# space after the colon; never an empty value, no tab, no folding.
_NAME = r'[0-9A-Za-z-]{1,64}'
_REQUEST_TEXT = r'(?! )[ -~]+(?<! )'
# RFC 9110 §5.5: other people's servers send latin-1 or UTF-8 (obs-text). What we send is printable.
_RESPONSE_TEXT = r'(?! )[ -~\x80-\xff]+(?<! )'
_SENT_RESPONSE_TEXT = r'(?! )[ -~\xa1-\xac\xae-\xff]+(?<! )'
# RFC 9110 §7.2: uri-host [":" port]. Stricter: no percent-encoding, no user information.
_HOST = (
    r'(?:[0-9A-Za-z_](?:[0-9A-Za-z._-]{0,253}[0-9A-Za-z._])?|\[[0-9A-Fa-f:.]{2,45}\])'
    r'(?::[0-9]{1,5})?'
)
# A whole preamble in one match: one pass in C is several times faster than a loop over its lines. A
# header that comes first is picked out on the way: a content-length, as where ours is the only one,
# then a host, as other people's.
_match_request = re.compile(
    rf'(GET|HEAD|PUT|POST|DELETE) ({_PATH})(?:\?({_QUERY}))? HTTP/1\.1'
    rf'(?:\r\ncontent-length: ({_LENGTH}))?(?:\r\n[Hh]ost: ({_HOST}))?'
    rf'((?:\r\n{_NAME}: {_REQUEST_TEXT})*)'
).fullmatch
# RFC 9112 §4. Stricter: a reason is not empty; no 1xx, because nothing that our client sends asks
# for one.
_match_response = re.compile(
    rf'HTTP/1\.1 ([2-5][0-9]{{2}}) ({_RESPONSE_TEXT})'
    rf'(?:\r\ncontent-length: ({_LENGTH}))?((?:\r\n{_NAME}: {_RESPONSE_TEXT})*)'
).fullmatch
# The parts, for what we send and to say which part of a preamble is wrong.
_match_target = re.compile(rf'{_PATH}(?:\?{_QUERY})?').fullmatch
_match_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_match_name = re.compile(_NAME).fullmatch
_match_text = {
    True: re.compile(_REQUEST_TEXT).fullmatch,
    False: re.compile(_RESPONSE_TEXT).fullmatch,
}
_match_sent_text = {
    True: _match_text[True],
    False: re.compile(_SENT_RESPONSE_TEXT).fullmatch,
}
_match_length = re.compile(_LENGTH).fullmatch
# RFC 9110 §14.1.2, one range only.
_match_range = re.compile(
    r'bytes=(?:(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})?|-([1-9][0-9]{0,15}))'
).fullmatch
# RFC 9110 §14.4.
_match_content_range = re.compile(
    r'bytes (?:(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})|\*)/(0|[1-9][0-9]{0,15}|\*)'
).fullmatch
_match_host = re.compile(_HOST).fullmatch
# RFC 9112 §7.1. Stricter: at most one extension, always with a value, never quoted.
_CHUNK_LINE = rb'([0-9A-Fa-f]{1,7})(?:;([!#-:<>-~]+=[!#-:<-~]+))?'
_match_chunk_line = re.compile(_CHUNK_LINE).fullmatch
match_chunk_start = re.compile(_CHUNK_LINE + rb'\r\n').match
"""Match a valid line at the start of a buffer: the groups are size and extension."""
_match_extension = re.compile(rb'[!#-:<>-~]+=[!#-:<-~]+').fullmatch


class Range(NamedTuple):
    """One byte range of a request, with the meaning of a Python slice.

    `bytes=0-99` is Range(0, 100), `bytes=100-` is Range(100, None), `bytes=-5` is Range(-5, None).
    Source: RFC 9110 §14.1.2.
    """

    start: int
    stop: int | None

    def __str__(self) -> str:
        if self.start < 0:
            return f'bytes={self.start}'
        return f'bytes={self.start}-{"" if self.stop is None else self.stop - 1}'

    def resolve(self, total: int) -> ContentRange:
        """Resolve against a content of `total` bytes; an empty result (`bytes */total`) is a 416.

        >>> Range(-5, None).resolve(100)
        ContentRange(start=95, stop=100, total=100)
        """
        start, stop, _ = slice(self.start, self.stop).indices(total)
        return ContentRange(start, stop, total) if start < stop else ContentRange(0, 0, total)


class ContentRange(NamedTuple):
    """Which bytes of a content a response holds: `bytes 0-99/1234` is ContentRange(0, 100, 1234).

    An empty one, `ContentRange(0, 0, total)`, is the `bytes */total` of a 416 response; `total` is
    None where the sender does not know it. Source: RFC 9110 §14.4.
    """

    start: int
    stop: int
    total: int | None

    def __str__(self) -> str:
        what = '*' if self.stop == 0 else f'{self.start}-{self.stop - 1}'
        return f'bytes {what}/{"*" if self.total is None else self.total}'


HeaderValue = str | int | Range | ContentRange
Headers = dict[str, HeaderValue]


# --- header values that mean something to the core -----------------------------------------------


def parse_content_length(text: str) -> int:
    """Parse a content-length. Raises ProtocolError. Source: RFC 9112 §6.3.

    Not by int() alone: that takes "+5", " 5", "1_0" and the digits of other scripts. Sixteen digits
    are enough for a petabyte and keep every length in a machine word.
    """
    if _match_length(text) is None:
        raise ProtocolError('content-length must be 0 or up to 16 digits with no leading zero')
    return int(text)


def parse_transfer_encoding(text: str) -> str:
    """Accept exactly `chunked`. Raises ProtocolError. Source: RFC 9112 §6.1."""
    if text != 'chunked':
        raise ProtocolError('transfer-encoding must be exactly "chunked"')
    return text


def parse_range(text: str) -> Range:
    """Parse a range header. Raises ProtocolError. Source: RFC 9110 §14.2."""
    match = _match_range(text)
    if match is None:
        raise ProtocolError(
            'range must be one range of bytes: "bytes=0-99", "bytes=100-", "bytes=-5"'
        )
    first, last, suffix = match.groups()
    if suffix is not None:
        return Range(-int(suffix), None)
    if last is None:
        return Range(int(first), None)
    if int(first) > int(last):
        raise ProtocolError('range must not end before it starts')
    return Range(int(first), int(last) + 1)


def parse_content_range(text: str) -> ContentRange:
    """Parse a content-range header. Raises ProtocolError. Source: RFC 9110 §14.4."""
    match = _match_content_range(text)
    if match is None:
        raise ProtocolError('content-range must be like "bytes 0-99/1234" or "bytes */1234"')
    first, last, of = match.groups()
    total = None if of == '*' else int(of)
    if first is None:
        if total is None:
            raise ProtocolError('content-range must not be "bytes */*"')
        return ContentRange(0, 0, total)
    start, stop = int(first), int(last) + 1
    if start >= stop or (total is not None and stop > total):
        raise ProtocolError('content-range must lie inside its total and not end before it starts')
    return ContentRange(start, stop, total)


def parse_host(text: str) -> str:
    """Check a host header against the grammar. Raises ProtocolError. Source: RFC 9110 §7.2."""
    if _match_host(text) is None:
        raise ProtocolError('host must be a name or an address, with or without a port')
    return text


def _refuse_expect(_text: str) -> str:
    raise ProtocolError('expect is not supported: send the body at once', status=417)


_Parsers = dict[str, 'Callable[[str], HeaderValue]']
_REQUEST_PARSERS: _Parsers = {
    'content-length': parse_content_length,
    'transfer-encoding': parse_transfer_encoding,
    'range': parse_range,
    'content-range': parse_content_range,
    'host': parse_host,
    'expect': _refuse_expect,
}
_RESPONSE_PARSERS: _Parsers = {
    'content-length': parse_content_length,
    'transfer-encoding': parse_transfer_encoding,
    'content-range': parse_content_range,
}


def closes_connection(headers: Mapping[str, HeaderValue]) -> bool:
    """Tell whether the `connection` header has the option `close`. Source: RFC 9110 §7.6.1."""
    options = headers.get('connection')
    return isinstance(options, str) and 'close' in [o.strip() for o in options.lower().split(',')]


# --- preambles -----------------------------------------------------------------------------------


def _check_size(preamble: bytes, limits: Limits) -> None:
    if len(preamble) > limits.max_preamble:
        # What the channel saw when it gave up, had the bytes come one by one.
        start = (preamble + b'\r\n\r\n')[: limits.max_preamble + 3]
        _check_line_ends(start.decode('latin-1').removesuffix('\r'))
        raise ProtocolError(f'a preamble is at most {limits.max_preamble} bytes', status=431)
    if max(map(len, preamble.split(b'\r\n'))) > limits.max_line:
        _check_line_ends(preamble.decode('latin-1'))
        raise ProtocolError(f'a line is at most {limits.max_line} bytes', status=431)


def _check_line_ends(text: str) -> None:
    """Refuse a bare CR or LF before other faults, as the channel does when bytes come in pieces."""
    rest = text.replace('\r\n', '')
    if '\r' in rest or '\n' in rest:
        raise ProtocolError('a line must end with CR LF, and neither may stand alone')


def _too_many_headers(limits: Limits) -> ProtocolError:
    return ProtocolError(f'there are at most {limits.max_headers} headers', status=431)


def _parse_headers(headers: Headers, block: str, parsers: _Parsers, limits: Limits) -> None:
    """Add the headers that a match found as a block to those that may have come before it."""
    lines = block[2:].split('\r\n')
    count = len(headers) + len(lines)
    if count > limits.max_headers:
        raise _too_many_headers(limits)
    for line in lines:
        name, _, value = line.partition(': ')
        name = name.lower()
        headers[name] = parsers[name](value) if name in parsers else value
    if len(headers) < count:
        raise ProtocolError('a header must not be given twice')
    if 'transfer-encoding' in headers and 'content-length' in headers:
        raise ProtocolError('content-length and transfer-encoding exclude each other')


def _explain_headers(lines: list[str], is_request: bool) -> ProtocolError:
    """Say what is wrong with the headers of a preamble that did not match."""
    for line in lines:
        name, separator, value = line.partition(': ')
        if _match_name(name) is None or not separator:
            return ProtocolError('a header must be "Name: Value", a name of letters, digits, "-"')
        if _match_text[is_request](value) is None:
            return ProtocolError(
                'the value of a header must be printable, with one space before it and none after'
            )
    return ProtocolError('a preamble must be lines that end with CR LF')


def _explain_request(text: str) -> ProtocolError:
    """Say what is wrong with a request that did not match."""
    _check_line_ends(text)
    line, *header_lines = text.split('\r\n')
    parts = line.split(' ')
    if len(parts) != 3:
        return ProtocolError('a request line must be "METHOD /target HTTP/1.1"')
    method, target, version = parts
    if version != 'HTTP/1.1':
        return ProtocolError('only HTTP/1.1 is spoken here')
    if _match_target(target) is None:
        return ProtocolError(_TARGET_RULE)
    if _match_token(method) is None:
        return ProtocolError('a method must be a token')
    if method not in METHODS:
        return ProtocolError(f'the methods are {", ".join(sorted(METHODS))}', status=405)
    return _explain_headers(header_lines, is_request=True)


def parse_request(
    preamble: bytes, limits: Limits = DEFAULT_LIMITS
) -> tuple[str, list[str], str, Headers]:
    """Parse the bytes of a request before its empty line into method, path, query, headers.

    >>> parse_request(b'PUT /photos/a%20b.raw?size=2 HTTP/1.1\\r\\nContent-Length: 17')
    ('PUT', ['photos', 'a%20b.raw'], 'size=2', {'content-length': 17})

    The path is the list of segments as sent, percent-encoding kept; the query '' if there is none.

    Raises ProtocolError, whose `.status` is 400, 405, 417 or 431. Source: RFC 9112 §3, §5.
    """
    if len(preamble) > limits.max_line:
        _check_size(preamble, limits)
    text = preamble.decode('latin-1')
    match = _match_request(text)
    if match is None:
        raise _explain_request(text)
    method, target, query, length, host, block = match.groups()
    if '//' in target:
        raise ProtocolError(_TARGET_RULE)
    headers: Headers = {}
    if host is not None:
        headers['host'] = host
    if length is not None:
        headers['content-length'] = int(length)
    if block:
        _parse_headers(headers, block, _REQUEST_PARSERS, limits)
    elif len(headers) > limits.max_headers:
        raise _too_many_headers(limits)
    if headers and method not in BODY_METHODS:
        # Many clients say that there is no body: with DELETE, or as CouchDB's replicator always.
        if headers.get('content-length') == 0:
            del headers['content-length']
        if 'content-length' in headers or 'transfer-encoding' in headers:
            raise ProtocolError(f'a {method} request must not have a body')
    return method, target[1:].split('/') if target != '/' else [], query or '', headers


def parse_response(preamble: bytes, limits: Limits = DEFAULT_LIMITS) -> tuple[int, str, Headers]:
    """Parse the bytes of a response before its empty line into status, reason, headers.

    Raises ProtocolError. Source: RFC 9112 §4, §5; stricter: no framing on a 204.
    """
    if len(preamble) > limits.max_line:
        _check_size(preamble, limits)
    text = preamble.decode('latin-1')
    match = _match_response(text)
    if match is None:
        line, *header_lines = text.split('\r\n')
        if _match_response(line):
            raise _explain_headers(header_lines, is_request=False)
        if line.startswith('HTTP/') and not line.startswith('HTTP/1.1 '):
            raise ProtocolError('only HTTP/1.1 is spoken here')
        raise ProtocolError('a status line must be "HTTP/1.1 200 Reason", the status 200 to 599')
    digits, reason, size, block = match.groups()
    status = int(digits)
    headers: Headers = {} if size is None else {'content-length': int(size)}
    if block:
        _parse_headers(headers, block, _RESPONSE_PARSERS, limits)
    if status == 204 and (headers.get('content-length') or 'transfer-encoding' in headers):
        raise ProtocolError('a 204 response must not have a body')
    return status, reason, headers


def _is_valid_range(name: str, value: Range | ContentRange) -> bool:
    parsers = {'range': parse_range, 'content-range': parse_content_range}
    try:
        return parsers[name](str(value)) == value
    except (KeyError, ProtocolError):
        return False


def _format_headers(headers: Mapping[str, HeaderValue], is_request: bool) -> str:
    match_text = _match_sent_text[is_request]
    block = ''
    for name, value in headers.items():
        if not isinstance(name, str) or _match_name(name) is None or name != name.lower():
            raise ValueError(f'a header name must be 1 to 64 of [0-9a-z-], not {name!r}')
        if name == 'content-length':
            if type(value) is not int or not 0 <= value < 10**16:
                raise ValueError(f'content-length must be an int of up to 16 digits, not {value!r}')
        elif type(value) is str:
            if match_text(value) is None:
                raise ValueError(f'{name} must be printable, no space at its ends, not {value!r}')
        elif type(value) is not Range and type(value) is not ContentRange:
            raise TypeError(f'{name} must be a str, not {value!r}')
        elif not _is_valid_range(name, value):
            raise ValueError(f'{name} must be a range that the grammar can say, not {value!r}')
        block += f'{name}: {value}\r\n'
    return block


def _format_framing(headers: Mapping[str, HeaderValue], length: int | None) -> str:
    """Format the framing header to add for a body of `length`, after a check of what is there."""
    if 'transfer-encoding' in headers:
        if headers['transfer-encoding'] != 'chunked' or length != CHUNKED:
            raise ValueError('transfer-encoding was given and the body is not chunked')
        if 'content-length' in headers:
            raise ValueError('content-length was given with a chunked body')
        return ''
    if 'content-length' in headers:
        if headers['content-length'] != (length or 0):
            raise ValueError(
                f'content-length: {headers["content-length"]!r} was given, the body has {length!r}'
            )
        return ''
    if length is None:
        return ''
    return (
        'transfer-encoding: chunked\r\n' if length == CHUNKED else f'content-length: {length}\r\n'
    )


def format_request(
    method: str, uri: str, headers: Mapping[str, HeaderValue], length: int | None
) -> bytes:
    """Format a request's preamble, empty line included.

    `length` is the body's: None without a body, CHUNKED, or its bytes; the framing header is added
    at the end.

    Raises ValueError or TypeError where a value is outside the grammar or contradicts the body.
    """
    if method not in METHODS:
        raise ValueError(f'method must be one of {", ".join(sorted(METHODS))}, not {method!r}')
    if type(uri) is not str or _match_target(uri) is None:
        raise ValueError(f'{_TARGET_RULE}, not {uri!r}')
    if '//' in uri and '//' in uri.partition('?')[0]:
        raise ValueError(f'{_TARGET_RULE}, not {uri!r}')
    if method not in BODY_METHODS and (length is not None or 'content-length' in headers):
        raise ValueError(f'a {method} request must not have a body')
    lines = _format_headers(headers, is_request=True) + _format_framing(headers, length)
    return f'{method} {uri} HTTP/1.1\r\n{lines}\r\n'.encode()


def format_response(
    status: int, reason: str, headers: Mapping[str, HeaderValue], length: int | None, method: str
) -> bytes:
    """Format a response's preamble, empty line included.

    `length` is the body's: None without a body, CHUNKED, or its bytes; the framing header is added
    at the end. `method` is the request's: the response to HEAD has no body, but may say what GET's
    would be.

    Raises ValueError or TypeError where a value is outside the grammar or contradicts the body.
    """
    if type(status) is not int or not 200 <= status <= 599:
        raise ValueError(f'status must be an int from 200 to 599, not {status!r}')
    if type(reason) is not str or _match_sent_text[False](reason) is None:
        raise ValueError(f'reason must be printable, with no space at its ends, not {reason!r}')
    if method == 'HEAD' or status in BODILESS_STATUSES:
        if length is not None:
            what = 'to HEAD' if method == 'HEAD' else f'with status {status}'
            raise ValueError(f'a response {what} must not have a body')
        if status != 204:  # it may describe the body that GET would have brought
            described = CHUNKED if 'transfer-encoding' in headers else headers.get('content-length')
            length = described  # type: ignore[assignment]  # _format_headers() checks that it is an int
    lines = _format_headers(headers, is_request=False) + _format_framing(headers, length)
    return f'HTTP/1.1 {status} {reason}\r\n{lines}\r\n'.encode('latin-1')


# --- chunks --------------------------------------------------------------------------------------


def parse_chunk_line(
    line: bytes, max_chunk: int = DEFAULT_LIMITS.max_chunk
) -> tuple[int, bytes | None]:
    """Parse the line before a chunk's data into its size and extension.

    >>> parse_chunk_line(b'1f;kind=text')
    (31, b'kind=text')

    Raises ProtocolError. Source: RFC 9112 §7.1.
    """
    match = _match_chunk_line(line)
    if match is None:
        raise ProtocolError(
            'a chunk line must be 1 to 7 hexadecimal digits, then at most ";name=value"'
        )
    size = int(match[1], 16)
    if size > max_chunk:
        raise ProtocolError(f'a chunk is at most {max_chunk} bytes', status=413)
    return size, match[2]


def format_chunk_line(size: int, extension: bytes | None, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Format the line before a chunk's data, CRLF included.

    Raises ValueError for a size or an extension outside the grammar and the limits.
    """
    if size > limits.max_chunk:
        raise ValueError(f'a chunk is at most {limits.max_chunk} bytes, not {size}')
    if extension is None:
        return b'%x\r\n' % size
    if _match_extension(extension) is None:
        raise ValueError(
            f'a chunk extension must be b"name=value" of visible ASCII, not {extension!r}'
        )
    line = b'%x;%b\r\n' % (size, extension)
    if len(line) > limits.max_chunk_line:
        raise ValueError(f'a chunk line is at most {limits.max_chunk_line} bytes, not {len(line)}')
    return line
