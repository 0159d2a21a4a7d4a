"""The rows of the adversarial tests: what a peer may say, what it may not, and what comes of it.

1. A row's name is the rule that it stands for, and the id of each test that it drives.
2. Its bytes go to the parser directly, to a server and to a client; what both sides must treat
   alike stands in one table.
3. `expected` says what comes out: values, or the status of the refusal.

A test gets the rows of a table one by one by naming the table's fixture: see `TABLES`.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from degu.limits import DEFAULT_LIMITS
from degu.wire import ContentRange, Range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Row(NamedTuple):
    name: str
    data: Any
    """Bytes; of what cannot be sent, the headers."""
    expected: object
    """Values, or the status of the refusal; of what cannot be sent, the exception."""

    @property
    def is_refused(self) -> bool:
        return isinstance(self.expected, int)


class Flood(NamedTuple):
    """What a peer sends without an end, or as good as that."""

    name: str
    start: bytes
    pieces: Callable[[], Iterable[bytes]]


def names_of(prefix, count):
    return b''.join(b'%s%d: v\r\n' % (prefix, i) for i in range(count))


N64 = b'n' * 64
LINE = DEFAULT_LIMITS.max_line
PREAMBLE = DEFAULT_LIMITS.max_preamble
ARABIC_5 = '\u0665'.encode()


def fill(start, size):
    """Add headers of short lines to `start` until it has `size` bytes."""
    data = start
    number = 0
    while (missing := size - len(data)) > 0:
        head = b'\r\nx%d: ' % number
        length = missing if missing <= 4000 else 2000
        data += head + b'v' * (length - len(head))
        number += 1
    assert len(data) == size
    return data


# --- preambles -----------------------------------------------------------------------------------

# The lines after the first; both parsers must take them, or refuse them, alike.
HEADERS = [
    Row('one_header', b'X: v', {'x': 'v'}),
    Row('name_is_casefolded', b'X-mSg: V', {'x-msg': 'V'}),
    Row('name_digits_and_dash', b'0-9: v', {'0-9': 'v'}),
    Row('name_of_64', N64 + b': v', {'n' * 64: 'v'}),
    Row('name_of_65', N64 + b'n: v', 400),
    Row('name_empty', b': v', 400),
    Row('name_underscore', b'a_b: v', 400),
    Row('name_nul', b'a\0b: v', 400),
    Row('name_control', b'a\x1fb: v', 400),
    Row('name_bel', b'a\ab: v', 400),
    Row('name_delete', b'a\x7fb: v', 400),
    Row('name_fullwidth_colon', 'a\uff1a v'.encode(), 400),
    Row('name_what_folds_to_k', '\u212a: v'.encode(), 400),
    Row('name_no_break_space_at_the_end', b'content-length\xa0: 5', 400),
    Row('name_non_ascii', b'\xe9t\xe9: v', 400),
    Row('name_space_inside', b'a b: v', 400),
    Row('space_before_colon', b'a : v', 400),
    Row('tab_before_colon', b'a\t: v', 400),
    Row('space_before_known_name', b' content-length: 5', 400),
    Row('space_after_known_name', b'content-length : 5', 400),
    Row('no_colon', b'abc', 400),
    Row('no_space_after_colon', b'a:v', 400),
    Row('tab_after_colon', b'a:\tv', 400),
    Row('two_spaces_after_colon', b'a:  v', 400),
    Row('value_empty', b'a: ', 400),
    Row('value_missing', b'a:', 400),
    Row('value_space_only', b'a:  ', 400),
    Row('value_trailing_space', b'a: v ', 400),
    Row('value_trailing_tab', b'a: v\t', 400),
    Row('value_tab_inside', b'a: v\tw', 400),
    Row('value_spaces_inside', b'a: v  w', {'a': 'v  w'}),
    Row('value_with_colon', b'a: b: c', {'a': 'b: c'}),
    Row('value_nul', b'a: v\0w', 400),
    Row('value_delete', b'a: v\x7fw', 400),
    Row('value_bel', b'a: v\aw', 400),
    Row('value_vertical_tab', b'a: v\vw', 400),
    Row('value_form_feed', b'a: v\fw', 400),
    Row('value_escape', b'a: v\x1bw', 400),
    Row('value_leading_nul', b'a: \0v', 400),
    Row('value_trailing_nul', b'a: v\0', 400),
    Row('value_trailing_delete', b'a: v\x7f', 400),
    Row('header_twice', b'a: v\r\na: v', 400),
    Row('header_twice_in_other_case', b'abc: v\r\nABC: w', 400),
    Row('content_length_twice', b'content-length: 5\r\ncontent-length: 5', 400),
    Row('content_length_twice_in_other_case', b'Content-Length: 5\r\ncontent-lengtH: 5', 400),
    Row('content_length_twice_apart', b'content-length: 5\r\na: v\r\nContent-Length: 6', 400),
    Row('folded_with_space', b'a: v\r\n w', 400),
    Row('folded_with_tab', b'a: v\r\n\tw', 400),
    Row('folded_like_a_header', b'a: v\r\n b: w', 400),
    Row('folded_first_line', b' a: v', 400),
    Row('folded_first_line_of_a_known_name', b' transfer-encoding: chunked', 400),
    Row('folded_value_only', b'a:\r\n v', 400),
    Row('folded_content_length', b'content-length: 1\r\n 0', 400),
    Row('folded_transfer_encoding', b'transfer-encoding:\r\n chunked', 400),
    Row('folded_empty_line', b'a: v\r\n \r\nb: w', 400),
    Row('bare_lf_in_value', b'a: v\nb: w', 400),
    Row('bare_cr_in_value', b'a: v\rb: w', 400),
    Row('bare_lf_in_name', b'a\nb: w', 400),
    Row('bare_cr_in_name', b'a\rb: w', 400),
    Row('bare_lf_before_crlf', b'a: v\n\r\nb: w', 400),
    Row('bare_cr_before_crlf', b'a: v\r\r\nb: w', 400),
    Row('bare_cr_at_the_end', b'a: v\r', 400),
    Row('bare_lf_at_the_end', b'a: v\n', 400),
    Row('bare_lf_lf_at_the_end', b'a: v\n\n', 400),
    Row('bare_lf_cr_lf_at_the_end', b'a: v\n\r\n', 400),
    Row('bare_lf_before_transfer_encoding', b'a: v\ntransfer-encoding: chunked', 400),
    Row('bare_cr_before_transfer_encoding', b'a: v\rtransfer-encoding: chunked', 400),
    Row('bare_lf_in_content_length', b'content-length: 5\n', 400),
    Row('bare_lf_in_transfer_encoding', b'transfer-encoding: chunked\n', 400),
    Row('content_length', b'content-length: 5', {'content-length': 5}),
    Row('content_length_any_case', b'CONTENT-length: 5', {'content-length': 5}),
    Row('content_length_not_first', b'a: v\r\nContent-Length: 5', {'a': 'v', 'content-length': 5}),
    Row('content_length_first', b'content-length: 5\r\na: v', {'content-length': 5, 'a': 'v'}),
    Row('content_length_0', b'content-length: 0', {'content-length': 0}),
    Row(
        'content_length_16_digits', b'content-length: ' + b'9' * 16, {'content-length': 10**16 - 1}
    ),
    Row('content_length_17_digits', b'content-length: 1' + b'0' * 16, 400),
    Row('content_length_leading_zero', b'content-length: 05', 400),
    Row('content_length_00', b'content-length: 00', 400),
    Row('content_length_plus', b'content-length: +5', 400),
    Row('content_length_minus', b'content-length: -5', 400),
    Row('content_length_underscore', b'content-length: 1_0', 400),
    Row('content_length_hexadecimal', b'content-length: 0x5', 400),
    Row('content_length_fraction', b'content-length: 5.0', 400),
    Row('content_length_list', b'content-length: 5, 5', 400),
    Row('content_length_extra_space', b'content-length:  5', 400),
    Row('content_length_trailing_space', b'content-length: 5 ', 400),
    Row('content_length_empty', b'content-length: ', 400),
    Row('content_length_text', b'content-length: five', 400),
    Row('content_length_superscript', b'content-length: \xb2', 400),
    Row('content_length_minus_1', b'content-length: -1', 400),
    Row('content_length_005', b'content-length: 005', 400),
    Row('content_length_exponent', b'content-length: 5e0', 400),
    Row('content_length_octal', b'content-length: 0o5', 400),
    Row('content_length_quoted', b'content-length: "5"', 400),
    Row('content_length_semicolon', b'content-length: 5;', 400),
    Row('content_length_nul', b'content-length: 5\0', 400),
    Row('content_length_tab', b'content-length: \t5', 400),
    Row('content_length_trailing_tab', b'content-length: 5\t', 400),
    Row('content_length_vertical_tab', b'content-length: \v5', 400),
    Row('content_length_latin_1_space', b'content-length: \xa05', 400),
    Row('content_length_arabic', b'content-length: ' + ARABIC_5, 400),
    Row('content_length_arabic_after_a_digit', b'content-length: 5' + ARABIC_5, 400),
    Row('content_length_latin_1_superscripts', b'content-length: \xb9\xb2\xb3', 400),
    Row('content_length_latin_1_fraction', b'content-length: 1\xbd', 400),
    Row('content_length_64_bits_overflowing', b'content-length: 18446744073709551621', 400),
    Row('chunked', b'transfer-encoding: chunked', {'transfer-encoding': 'chunked'}),
    Row('chunked_any_name_case', b'Transfer-Encoding: chunked', {'transfer-encoding': 'chunked'}),
    Row('chunked_upper_case', b'transfer-encoding: Chunked', 400),
    Row('chunked_quoted', b'transfer-encoding: "chunked"', 400),
    Row('chunked_after_gzip', b'transfer-encoding: gzip, chunked', 400),
    Row('chunked_list', b'transfer-encoding: chunked, chunked', 400),
    Row('chunked_list_element', b'transfer-encoding: chunked,', 400),
    Row('chunked_extra_space', b'transfer-encoding:  chunked', 400),
    Row('chunked_parameter', b'transfer-encoding: chunked;q=1', 400),
    Row('chunked_before_identity', b'transfer-encoding: chunked, identity', 400),
    Row('chunked_after_identity', b'transfer-encoding: identity, chunked', 400),
    Row('chunked_after_a_comma', b'transfer-encoding: ,chunked', 400),
    Row('chunked_after_a_tab', b'transfer-encoding: \tchunked', 400),
    Row('chunked_after_a_vertical_tab', b'transfer-encoding: \x0bchunked', 400),
    Row('chunked_after_a_vertical_tab_only', b'transfer-encoding:\x0bchunked', 400),
    Row('chunked_after_a_form_feed', b'transfer-encoding: \x0cchunked', 400),
    Row('chunked_after_a_latin_1_space', b'transfer-encoding: \xa0chunked', 400),
    Row('chunked_before_a_latin_1_space', b'transfer-encoding: chunked\xa0', 400),
    Row('chunked_before_a_vertical_tab', b'transfer-encoding: chunked\x0b', 400),
    Row('chunked_before_a_nul', b'transfer-encoding: chunked\0', 400),
    Row('chunked_what_folds_to_k', 'transfer-encoding: chun\u212aed'.encode(), 400),
    Row('transfer_encoding_empty', b'transfer-encoding: ', 400),
    Row('transfer_encoding_x_chunked', b'transfer-encoding: xchunked', 400),
    Row('transfer_encoding_underscore', b'transfer_encoding: chunked', 400),
    Row('transfer_encoding_identity', b'transfer-encoding: identity', 400),
    Row('transfer_encoding_gzip', b'transfer-encoding: gzip', 400),
    Row(
        'transfer_encoding_twice', b'transfer-encoding: chunked\r\nTransfer-Encoding: chunked', 400
    ),
    Row('both_framings', b'content-length: 5\r\ntransfer-encoding: chunked', 400),
    Row('both_framings_reversed', b'transfer-encoding: chunked\r\ncontent-length: 5', 400),
    Row('both_framings_apart', b'Transfer-Encoding: chunked\r\na: v\r\nContent-Length: 0', 400),
    Row('upgrade_is_ignored', b'upgrade: h2c', {'upgrade': 'h2c'}),
    Row('content_range', b'content-range: bytes 0-4/9', {'content-range': ContentRange(0, 5, 9)}),
    Row('content_range_bad', b'Content-Range: bytes 5-4/9', 400),
    Row('content_range_twice', b'content-range: bytes */9\r\nContent-Range: bytes */9', 400),
    Row('headers_32', names_of(b'a', 32)[:-2], {f'a{i}': 'v' for i in range(32)}),
    Row('headers_33', names_of(b'a', 33)[:-2], 431),
    Row('line_8192', b'a: ' + b'v' * (LINE - 3), {'a': 'v' * (LINE - 3)}),
    Row('line_8193', b'a: ' + b'v' * (LINE - 2), 431),
    Row('line_8193_between_others', b'a: v\r\nb: ' + b'v' * (LINE - 2) + b'\r\nc: v', 431),
    Row('preamble_over_its_size', fill(b'a: v', PREAMBLE), 431),
]

# What only a request must be refused for, or is refused in another way.
REQUESTS = [
    Row('get', b'GET / HTTP/1.1', ('GET', [], '', {})),
    Row('head', b'HEAD /a HTTP/1.1', ('HEAD', ['a'], '', {})),
    Row('put', b'PUT /a/b HTTP/1.1', ('PUT', ['a', 'b'], '', {})),
    Row('post', b'POST /a/b/ HTTP/1.1', ('POST', ['a', 'b', ''], '', {})),
    Row('delete', b'DELETE /a HTTP/1.1', ('DELETE', ['a'], '', {})),
    Row('query', b'GET /a?b=c&d HTTP/1.1', ('GET', ['a'], 'b=c&d', {})),
    Row('query_of_the_root', b'GET /?b HTTP/1.1', ('GET', [], 'b', {})),
    Row('query_with_question_mark', b'GET /a?b?c HTTP/1.1', ('GET', ['a'], 'b?c', {})),
    Row('query_with_two_slashes', b'GET /a?b//c HTTP/1.1', ('GET', ['a'], 'b//c', {})),
    Row('query_empty', b'GET /a? HTTP/1.1', 400),
    Row('percent_encoding_is_kept', b'GET /a%2Fb%00 HTTP/1.1', ('GET', ['a%2Fb%00'], '', {})),
    Row('dot_segments_are_kept', b'GET /../. HTTP/1.1', ('GET', ['..', '.'], '', {})),
    Row('two_slashes', b'GET //a HTTP/1.1', 400),
    Row('two_slashes_only', b'GET // HTTP/1.1', 400),
    Row('two_slashes_inside', b'GET /a//b HTTP/1.1', 400),
    Row('two_slashes_at_the_end', b'GET /a// HTTP/1.1', 400),
    Row('two_slashes_before_a_query', b'GET /a//?b HTTP/1.1', 400),
    Row('fragment', b'GET /a#b HTTP/1.1', 400),
    Row('fragment_in_query', b'GET /a?b#c HTTP/1.1', 400),
    Row('absolute_form', b'GET http://h/a HTTP/1.1', 400),
    Row('authority_form', b'GET h:80 HTTP/1.1', 400),
    Row('authority_form_connect', b'CONNECT h:80 HTTP/1.1', 400),
    Row('asterisk_form', b'GET * HTTP/1.1', 400),
    Row('asterisk_form_options', b'OPTIONS * HTTP/1.1', 400),
    Row('no_slash', b'GET a HTTP/1.1', 400),
    Row('no_target', b'GET HTTP/1.1', 400),
    Row('empty_target', b'GET  HTTP/1.1', 400),
    Row('two_spaces_after_method', b'GET  / HTTP/1.1', 400),
    Row('two_spaces_before_protocol', b'GET /  HTTP/1.1', 400),
    Row('tab_for_space', b'GET\t/\tHTTP/1.1', 400),
    Row('space_in_front', b' GET / HTTP/1.1', 400),
    Row('space_at_the_end', b'GET / HTTP/1.1 ', 400),
    Row('space_in_target', b'GET /a b HTTP/1.1', 400),
    Row('nul_in_target', b'GET /a\0b HTTP/1.1', 400),
    Row('bel_in_target', b'GET /a\ab HTTP/1.1', 400),
    Row('delete_in_target', b'GET /a\x7fb HTTP/1.1', 400),
    Row('no_break_space_for_space', b'GET\xa0/\xa0HTTP/1.1', 400),
    Row('cr_in_target', b'GET /a\rb HTTP/1.1', 400),
    Row('lf_in_target', b'GET /a\nb HTTP/1.1', 400),
    Row('non_ascii_in_target', b'GET /\xc3\xa9 HTTP/1.1', 400),
    Row('non_ascii_in_query', b'GET /?\xc3\xa9 HTTP/1.1', 400),
    Row('non_ascii_in_value', b'GET / HTTP/1.1\r\na: \xe9', 400),
    Row('non_ascii_in_known_value', b'GET / HTTP/1.1\r\nuser-agent: \xe9', 400),
    Row('http_1_0', b'GET / HTTP/1.0', 400),
    Row('http_1_2', b'GET / HTTP/1.2', 400),
    Row('http_2', b'GET / HTTP/2.0', 400),
    Row('http_0_9', b'GET /', 400),
    Row('http_lower_case', b'GET / http/1.1', 400),
    Row('http_2_preface', b'PRI * HTTP/2.0\r\n\r\nSM', 400),
    Row('http_long_version', b'GET / HTTP/1.10', 400),
    Row('lf_only', b'GET / HTTP/1.1\n\n', 400),
    Row('lf_empty_line', b'GET / HTTP/1.1\r\n\n', 400),
    Row('other_method', b'PATCH / HTTP/1.1', 405),
    Row('other_method_options', b'OPTIONS / HTTP/1.1', 405),
    Row('other_method_trace', b'TRACE / HTTP/1.1', 405),
    Row('other_method_lower_case', b'get / HTTP/1.1', 405),
    Row('other_method_longer', b'GETS / HTTP/1.1', 405),
    Row('method_not_a_token', b'G@T / HTTP/1.1', 400),
    Row('method_empty', b' / HTTP/1.1', 400),
    Row('nothing', b'', 400),
    Row('empty_line_first', b'\r\nGET / HTTP/1.1', 400),
    Row('bare_lf_after_request_line', b'GET / HTTP/1.1\na: v', 400),
    Row('bare_cr_after_request_line', b'GET / HTTP/1.1\ra: v', 400),
    Row('bare_cr_at_the_end_of_request_line', b'GET / HTTP/1.1\r', 400),
    Row('tls_hello', b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03', 400),
    Row('get_content_length', b'GET / HTTP/1.1\r\ncontent-length: 5', 400),
    Row('get_content_length_0', b'GET / HTTP/1.1\r\ncontent-length: 0', ('GET', [], '', {})),
    Row(
        'get_content_length_0_is_all_that_is_dropped',
        b'GET / HTTP/1.1\r\na: v\r\nContent-Length: 0\r\nb: w',
        ('GET', [], '', {'a': 'v', 'b': 'w'}),
    ),
    Row('get_content_length_00', b'GET / HTTP/1.1\r\ncontent-length: 00', 400),
    Row('get_chunked', b'GET / HTTP/1.1\r\ntransfer-encoding: chunked', 400),
    Row(
        'get_both_framings',
        b'GET / HTTP/1.1\r\ncontent-length: 0\r\ntransfer-encoding: chunked',
        400,
    ),
    Row('head_content_length', b'HEAD / HTTP/1.1\r\ncontent-length: 5', 400),
    Row('head_content_length_0', b'HEAD / HTTP/1.1\r\ncontent-length: 0', ('HEAD', [], '', {})),
    Row('head_chunked', b'HEAD / HTTP/1.1\r\ntransfer-encoding: chunked', 400),
    Row('delete_content_length', b'DELETE / HTTP/1.1\r\ncontent-length: 5', 400),
    Row(
        'delete_content_length_0',
        b'DELETE / HTTP/1.1\r\nContent-Length: 0',
        ('DELETE', [], '', {}),
    ),
    Row('delete_chunked', b'DELETE / HTTP/1.1\r\ntransfer-encoding: chunked', 400),
    Row('expect', b'PUT / HTTP/1.1\r\nexpect: 100-continue', 417),
    Row('expect_any_case', b'PUT / HTTP/1.1\r\nExPeCt: 100-continue', 417),
    Row('expect_anything', b'GET / HTTP/1.1\r\nexpect: tea', 417),
    Row('range', b'GET / HTTP/1.1\r\nrange: bytes=0-4', ('GET', [], '', {'range': Range(0, 5)})),
    Row('range_bad', b'GET / HTTP/1.1\r\nRange: bytes=4-0', 400),
    Row('range_of_two', b'GET / HTTP/1.1\r\nrange: bytes=0-1,3-4', 400),
    Row('range_of_lines', b'GET / HTTP/1.1\r\nrange: lines=0-1', 400),
    Row('range_plus', b'GET / HTTP/1.1\r\nrange: bytes=+0-1', 400),
    Row('range_twice', b'GET / HTTP/1.1\r\nrange: bytes=0-\r\nRange: bytes=0-', 400),
    Row('host', b'GET / HTTP/1.1\r\nHost: h:80', ('GET', [], '', {'host': 'h:80'})),
    Row('host_bad', b'GET / HTTP/1.1\r\nhost: a/b', 400),
    Row('host_twice', b'GET / HTTP/1.1\r\nhost: a\r\nhost: b', 400),
    Row('host_twice_alike', b'GET / HTTP/1.1\r\nhost: h\r\nHost: h', 400),
    Row('host_with_user', b'GET / HTTP/1.1\r\nhost: user@h', 400),
    Row('host_list', b'GET / HTTP/1.1\r\nhost: a, b', 400),
    Row(
        'request_line_8192',
        b'GET /' + b'a' * (LINE - 14) + b' HTTP/1.1',
        ('GET', ['a' * (LINE - 14)], '', {}),
    ),
    Row('request_line_8193', b'GET /' + b'a' * (LINE - 13) + b' HTTP/1.1', 431),
    Row('preamble_32769', fill(b'GET / HTTP/1.1', PREAMBLE + 1), 431),
    # Two faults at once: the one answer must not depend on how the bytes were cut.
    Row('bare_lf_after_other_method', b'PATCH / HTTP/1.1\r\na\nb: v', 400),
    Row('bare_cr_after_expect', b'PUT / HTTP/1.1\r\nexpect: v\r\na: \rb', 400),
    Row('bare_cr_at_the_end_after_expect', b'PUT / HTTP/1.1\r\nexpect: v\r\na: b\r', 400),
    Row('bare_lf_after_33_headers', b'GET / HTTP/1.1\r\n' + names_of(b'a', 33) + b'\nb: v', 400),
    Row('bare_lf_after_long_line', b'GET / HTTP/1.1\r\na: ' + b'v' * LINE + b'\nb: v', 400),
    Row('long_line_of_other_method', b'PATCH / HTTP/1.1\r\na: ' + b'v' * LINE, 431),
]

RESPONSES = [
    Row('ok', b'HTTP/1.1 200 OK', (200, 'OK', {})),
    Row('reason_of_many_words', b'HTTP/1.1 404 No such thing', (404, 'No such thing', {})),
    Row('reason_of_its_own', b'HTTP/1.1 200 Fine', (200, 'Fine', {})),
    Row('status_599', b'HTTP/1.1 599 Odd', (599, 'Odd', {})),
    Row('status_600', b'HTTP/1.1 600 Odd', 400),
    Row('status_100', b'HTTP/1.1 100 Continue', 400),
    Row('status_199', b'HTTP/1.1 199 Odd', 400),
    Row('status_of_2_digits', b'HTTP/1.1 20 OK', 400),
    Row('status_of_4_digits', b'HTTP/1.1 2000 OK', 400),
    Row('status_superscript', b'HTTP/1.1 20\xb2 OK', 400),
    Row('status_sign', b'HTTP/1.1 +20 OK', 400),
    Row('status_minus', b'HTTP/1.1 -20 OK', 400),
    Row('status_underscore', b'HTTP/1.1 2_0 OK', 400),
    Row('status_fraction', b'HTTP/1.1 20. OK', 400),
    Row('status_000', b'HTTP/1.1 000 OK', 400),
    Row('status_101', b'HTTP/1.1 101 Switching Protocols', 400),
    Row('status_103', b'HTTP/1.1 103 Early Hints', 400),
    Row('status_999', b'HTTP/1.1 999 Odd', 400),
    Row('status_arabic', 'HTTP/1.1 \u0662\u0660\u0660 OK'.encode(), 400),
    Row('status_missing', b'HTTP/1.1 OK', 400),
    Row('status_after_two_spaces', b'HTTP/1.1  200 OK', 400),
    Row('status_after_a_tab', b'HTTP/1.1\t200 OK', 400),
    Row('status_of_8000_digits', b'HTTP/1.1 ' + b'2' * 8000 + b' OK', 400),
    Row('protocol_only', b'HTTP/1.1', 400),
    Row('reason_missing', b'HTTP/1.1 200', 400),
    Row('reason_empty', b'HTTP/1.1 200 ', 400),
    Row('reason_leading_space', b'HTTP/1.1 200  OK', 400),
    Row('reason_trailing_space', b'HTTP/1.1 200 OK ', 400),
    Row('reason_tab', b'HTTP/1.1 200 O\tK', 400),
    Row('reason_nul', b'HTTP/1.1 200 O\0K', 400),
    Row('reason_bel', b'HTTP/1.1 200 O\aK', 400),
    Row('reason_delete', b'HTTP/1.1 200 O\x7fK', 400),
    Row('bare_cr_in_reason', b'HTTP/1.1 200 O\rK', 400),
    Row('bare_lf_in_reason', b'HTTP/1.1 200 O\nK', 400),
    Row('bare_lf_after_reason', b'HTTP/1.1 200 OK\n', 400),
    Row('response_http_1_0', b'HTTP/1.0 200 OK', 400),
    Row('response_http_2', b'HTTP/2 200 OK', 400),
    Row('response_lower_case', b'http/1.1 200 OK', 400),
    Row('response_space_in_front', b' HTTP/1.1 200 OK', 400),
    Row('response_nothing', b'', 400),
    Row('response_empty_line_first', b'\r\nHTTP/1.1 200 OK', 400),
    Row('response_icy', b'ICY 200 OK', 400),
    Row('response_http_1_2', b'HTTP/1.2 200 OK', 400),
    Row('response_http_long_version', b'HTTP/1.10 200 OK', 400),
    Row('response_http_0_9', b'<html>hello</html>', 400),
    Row('response_nul_in_front', b'\0HTTP/1.1 200 OK', 400),
    Row('response_is_a_request', b'GET / HTTP/1.1', 400),
    Row('response_tls_alert', b'\x15\x03\x03\x00\x02\x02\x28', 400),
    Row('value_latin_1', b'HTTP/1.1 200 OK\r\na: \xe9t\xe9', (200, 'OK', {'a': '\xe9t\xe9'})),
    Row(
        'value_utf_8_comes_as_latin_1',
        b'HTTP/1.1 200 OK\r\na: \xc3\xa0\xe2\x80\x93\xc3\x9f',
        (200, 'OK', {'a': '\xc3\xa0\xe2\x80\x93\xc3\x9f'}),
    ),
    Row('expect_means_nothing', b'HTTP/1.1 200 OK\r\nexpect: v', (200, 'OK', {'expect': 'v'})),
    Row('status_204_body', b'HTTP/1.1 204 No Content\r\ncontent-length: 5', 400),
    Row('status_204_chunked', b'HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked', 400),
    Row(
        'status_204_content_length_0',
        b'HTTP/1.1 204 No Content\r\ncontent-length: 0',
        (204, 'No Content', {'content-length': 0}),
    ),
    Row(
        'status_304_describes_a_body',
        b'HTTP/1.1 304 Not Modified\r\ncontent-length: 5',
        (304, 'Not Modified', {'content-length': 5}),
    ),
    Row('preamble_32769', fill(b'HTTP/1.1 200 OK', PREAMBLE + 1), 431),
]


def behind(first_line, start, rows):
    """Build the rows of whole preambles from those of header lines."""
    return [
        Row(
            row.name,
            first_line + b'\r\n' + row.data,
            row.expected if row.is_refused else (*start, row.expected),
        )
        for row in rows
    ]


ALL_REQUESTS = [*REQUESTS, *behind(b'PUT /a?b HTTP/1.1', ('PUT', ['a'], 'b'), HEADERS)]
ALL_RESPONSES = [*RESPONSES, *behind(b'HTTP/1.1 200 OK', (200, 'OK'), HEADERS)]

# --- chunks --------------------------------------------------------------------------------------

# The line before a chunk's data.
CHUNK_LINES = [
    Row('size_0', b'0', (0, None)),
    Row('size', b'5', (5, None)),
    Row('size_lower_case', b'1f', (31, None)),
    Row('size_upper_case', b'1F', (31, None)),
    Row('size_of_7_digits', b'0000005', (5, None)),
    Row('size_005', b'005', (5, None)),
    Row('size_largest', b'1000000', (16 * 1024 * 1024, None)),
    Row('extension', b'5;a=b', (5, b'a=b')),
    Row('extension_of_signs', b'5;key=a:b/c?', (5, b'key=a:b/c?')),
    Row('extension_of_the_last', b'0;a=b', (0, b'a=b')),
    Row('size_over_its_limit', b'1000001', 413),
    Row('size_over_its_limit_by_far', b'fffffff', 413),
    Row('size_empty', b'', 400),
    Row('size_of_8_digits', b'00000005', 400),
    Row('size_overflowing_64_bits', b'10000000000000005', 400),
    Row('size_no_digit', b'g', 400),
    Row('size_hexadecimal_prefix', b'0x5', 400),
    Row('size_plus', b'+5', 400),
    Row('size_minus', b'-1', 400),
    Row('size_underscore', b'1_0', 400),
    Row('size_fraction', b'5.0', 400),
    Row('size_leading_space', b' 5', 400),
    Row('size_trailing_space', b'5 ', 400),
    Row('size_leading_tab', b'\t5', 400),
    Row('size_trailing_tab', b'5\t', 400),
    Row('size_vertical_tab', b'\x0b5', 400),
    Row('size_lf', b'5\n', 400),
    Row('size_lf_in_front', b'\n5', 400),
    Row('size_cr', b'5\r', 400),
    Row('size_nul', b'5\0', 400),
    Row('size_superscript', b'\xb2', 400),
    Row('size_latin_1_space', b'\xa05', 400),
    Row('size_arabic', ARABIC_5, 400),
    Row('size_arabic_after_a_digit', b'5' + ARABIC_5, 400),
    Row('size_list', b'5,5', 400),
    Row('extension_empty', b'5;', 400),
    Row('extension_without_value', b'5;a', 400),
    Row('extension_empty_value', b'5;a=', 400),
    Row('extension_empty_name', b'5;=b', 400),
    Row('extension_without_size', b';a=b', 400),
    Row('extension_after_a_space', b'5; a=b', 400),
    Row('extension_space_before', b'5 ;a=b', 400),
    Row('extension_space_after_name', b'5;a =b', 400),
    Row('extension_space_before_value', b'5;a= b', 400),
    Row('extension_trailing_space', b'5;a=b ', 400),
    Row('extension_space_inside', b'5;a=b c', 400),
    Row('extension_twice', b'5;a=b;c=d', 400),
    Row('extension_quoted', b'5;a="b"', 400),
    Row('extension_quoted_cr_lf', b'5;a="b\r\nc"', 400),
    Row('extension_open_quote', b'5;a="b', 400),
    Row('extension_lf', b'5;a=b\n', 400),
    Row('extension_lf_inside', b'5;a=b\n5', 400),
    Row('extension_lf_in_name', b'5;a\nb=c', 400),
    Row('extension_cr', b'5;a=b\r', 400),
    Row('extension_cr_inside', b'5;a=b\r5', 400),
    Row('extension_nul', b'5;a=\0', 400),
    Row('extension_delete', b'5;a=\x7f', 400),
    Row('extension_non_ascii', b'5;a=\xe9', 400),
    Row('extension_non_ascii_in_name', b'5;\xe9=a', 400),
    Row('extension_after_a_comma', b'5,a=b', 400),
]

# Whole bodies, the data behind a bad line included; `expected` are (extension, data).
CHUNKS = [
    Row('no_data', b'0\r\n\r\n', []),
    Row('one_chunk', b'5\r\nhello\r\n0\r\n\r\n', [(None, b'hello')]),
    Row('data_like_framing', b'7\r\n0\r\n\r\n0\r\r\n0\r\n\r\n', [(None, b'0\r\n\r\n0\r')]),
    Row('extensions', b'2;a=b\r\nhe\r\n3;c=d\r\nllo\r\n0;e=f\r\n\r\n',
        [(b'a=b', b'he'), (b'c=d', b'llo')]),
    *(
        Row(name, line + b'\r\nhello\r\n0\r\n\r\n', expected)
        for name, line, expected in CHUNK_LINES
        if isinstance(expected, int)
    ),
    Row('chunk_line_ends_with_lf', b'5\nhello\r\n0\r\n\r\n', 400),
    Row('chunk_line_ends_with_cr', b'5\rhello\r\n0\r\n\r\n', 400),
    Row('chunk_line_ends_with_lf_cr', b'5\n\rhello\r\n0\r\n\r\n', 400),
    Row('all_lines_end_with_lf', b'5\nhello\n0\n\n\r\n', 400),
    Row('chunk_line_over_its_size', b'5;a=' + b'b' * 510 + b'\r\nhello\r\n0\r\n\r\n', 400),
    Row('no_crlf_after_data', b'5\r\nhello0\r\n\r\n', 400),
    Row('other_bytes_after_data', b'5\r\nhelloXX0\r\n\r\n', 400),
    Row('lf_after_data', b'5\r\nhello\n0\r\n\r\n', 400),
    Row('lf_lf_after_data', b'5\r\nhello\n\n0\r\n\r\n', 400),
    Row('lf_cr_after_data', b'5\r\nhello\n\r0\r\n\r\n', 400),
    Row('cr_after_data', b'5\r\nhello\r0\r\n\r\n', 400),
    Row('cr_cr_after_data', b'5\r\nhello\r\r\n0\r\n\r\n', 400),
    Row('crlf_crlf_after_data', b'5\r\nhello\r\n\r\n0\r\n\r\n', 400),
    Row('data_too_long', b'5\r\nhello!\r\n0\r\n\r\n', 400),
    Row('data_too_short', b'5\r\nhell\r\n0\r\n\r\n', 400),
    Row('empty_line_first', b'\r\n5\r\nhello\r\n0\r\n\r\n', 400),
    Row('no_final_crlf', b'0\r\n', 400),
    Row('lf_for_the_final_crlf', b'0\r\n\n', 400),
    Row('cr_for_the_final_crlf', b'0\r\n\r', 400),
    Row('other_bytes_for_the_final_crlf', b'0\r\nXX', 400),
    Row('trailer', b'0\r\na: v\r\n\r\n', 400),
    Row('trailer_after_data', b'1\r\nx\r\n0\r\na: v\r\n\r\n', 400),
    Row('trailer_of_framing', b'0\r\ncontent-length: 5\r\n\r\nhello', 400),
]  # fmt: skip

# --- floods --------------------------------------------------------------------------------------


def _number_headers():
    return (b'a%d: v\r\n' % number for number in range(10_000))


# What comes after the first line, to a server or from one.
FLOODS = [
    Flood('10000_headers', b'', _number_headers),
    Flood('endless_headers', b'', lambda: repeat(b'a: v\r\n')),
    Flood('endless_header_names', b'', lambda: repeat(b'a' * 1000)),
    Flood('10_mb_line', b'a: ', lambda: repeat(b'v' * 10_000, 1000)),
    Flood('endless_folded_lines', b'a: v\r\n', lambda: repeat(b' v\r\n')),
    Flood('endless_crs', b'', lambda: repeat(b'\r' * 1000)),
    Flood('endless_lfs', b'a: v', lambda: repeat(b'\n' * 1000)),
    Flood('endless_nuls', b'', lambda: repeat(b'\0' * 1000)),
    Flood('content_length_of_a_million_digits', b'content-length: ',
          lambda: repeat(b'1' * 1000, 1000)),
    Flood('endless_content_lengths', b'', lambda: repeat(b'content-length: 5\r\n')),
]  # fmt: skip

# What comes after `transfer-encoding: chunked`.
CHUNK_FLOODS = [
    Flood('chunk_size_of_a_million_digits', b'', lambda: repeat(b'1' * 1000, 1000)),
    Flood('endless_zeros', b'', lambda: repeat(b'0' * 1000)),
    Flood('endless_extension', b'5;a=', lambda: repeat(b'b' * 1000)),
    Flood('endless_trailers', b'0\r\n', lambda: repeat(b'a: v\r\n')),
    Flood('endless_trailer', b'0\r\na: ', lambda: repeat(b'v' * 1000)),
]

# --- what an application or a caller supplies ----------------------------------------------------

# Headers that are refused before anything is sent, whichever side sends them.
UNSENDABLE_HEADERS = [
    *(
        Row(f'{what}_in_{name}', {name: f'v{text}w'}, ValueError)
        for name in (
            'a', 'host', 'connection', 'content-type', 'location', 'set-cookie', 'cookie',
            'transfer-encoding', 'content-range', 'range', 'expect',
        )
        for what, text in (('crlf', '\r\n'), ('crlf_header', '\r\nb: '), ('crlf_crlf', '\r\n\r\n'))
    ),
    *(
        Row(f'{what}_{place}_a_value', {'a': value}, ValueError)
        for what, control in (
            ('cr', '\r'), ('lf', '\n'), ('nul', '\0'), ('bel', '\a'), ('tab', '\t'),
            ('vertical_tab', '\v'), ('form_feed', '\f'), ('escape', '\x1b'), ('delete', '\x7f'),
            ('next_line', '\x85'), ('no_break_space', '\xa0'), ('soft_hyphen', '\xad'),
            ('line_separator', '\u2028'), ('arabic_digit', '\u0665'),
            ('folds_to_cr', '\u010d'), ('folds_to_lf', '\u010a'), ('surrogate', '\udc0a'),
        )
        for place, value in (
            ('before', control + 'v'), ('inside', f'v{control}w'), ('after', 'v' + control)
        )
    ),
    *(
        Row(f'name_with_{what}', {f'a{text}b': 'v'}, ValueError)
        for what, text in (
            ('crlf', '\r\n'), ('cr', '\r'), ('lf', '\n'), ('nul', '\0'), ('bel', '\a'),
            ('delete', '\x7f'), ('space', ' '), ('tab', '\t'), ('colon', ':'),
            ('colon_space', ': '), ('underscore', '_'), ('non_ascii', '\xe9'), ('upper_case', 'A'),
            ('what_folds_to_k', '\u212a'),
        )
    ),
    Row('name_of_a_header', {'a: v\r\nb': 'w'}, ValueError),
    Row('name_that_ends_with_lf', {'a\n': 'v'}, ValueError),
    Row('name_empty', {'': 'v'}, ValueError),
    Row('name_of_65', {'n' * 65: 'v'}, ValueError),
    Row('name_bytes', {b'a': 'v'}, ValueError),
    Row('name_int', {5: 'v'}, ValueError),
    Row('value_empty', {'a': ''}, ValueError),
    Row('value_space', {'a': ' '}, ValueError),
    Row('value_leading_space', {'a': ' v'}, ValueError),
    Row('value_trailing_space', {'a': 'v '}, ValueError),
    Row('value_outside_latin_1', {'a': '\u20ac'}, ValueError),
    Row('value_bytes', {'a': b'v'}, TypeError),
    Row('value_int', {'a': 5}, TypeError),
    Row('value_none', {'a': None}, TypeError),
    Row('value_list', {'a': ['v']}, TypeError),
    Row('value_of_a_class_of_its_own', {'a': type('Text', (str,), {})('v')}, TypeError),
    Row('content_length_str', {'content-length': '5'}, ValueError),
    Row('content_length_bool', {'content-length': True}, ValueError),
    Row('content_length_float', {'content-length': 5.0}, ValueError),
    Row('content_length_negative', {'content-length': -5}, ValueError),
    Row('content_length_17_digits', {'content-length': 10**16}, ValueError),
    Row('content_length_without_a_body', {'content-length': 5}, ValueError),
    Row('transfer_encoding_without_a_body', {'transfer-encoding': 'chunked'}, ValueError),
    Row('transfer_encoding_gzip', {'transfer-encoding': 'gzip'}, ValueError),
    Row('range_reversed', {'range': Range(5, 3)}, ValueError),
    Row('range_empty', {'range': Range(0, 0)}, ValueError),
    Row('range_suffix_with_an_end', {'range': Range(-5, 3)}, ValueError),
    Row('range_17_digits', {'range': Range(10**16, None)}, ValueError),
    Row('range_in_another_header', {'a': Range(0, 5)}, ValueError),
    Row('content_range_reversed', {'content-range': ContentRange(5, 3, 9)}, ValueError),
    Row('content_range_beyond_its_total', {'content-range': ContentRange(0, 10, 9)}, ValueError),
    Row('content_range_of_nothing', {'content-range': ContentRange(0, 0, None)}, ValueError),
    Row('content_range_empty_not_at_0', {'content-range': ContentRange(3, 0, 9)}, ValueError),
]  # fmt: skip

# --- the tables, by the name of the fixture that gives their rows --------------------------------

TABLES = {
    'request_row': ALL_REQUESTS,
    'response_row': ALL_RESPONSES,
    'refused_request': [row for row in ALL_REQUESTS if row.is_refused],
    'taken_request': [row for row in ALL_REQUESTS if not row.is_refused],
    'refused_response': [row for row in ALL_RESPONSES if row.is_refused],
    'taken_response': [row for row in ALL_RESPONSES if not row.is_refused],
    'chunk_line_row': CHUNK_LINES,
    'refused_chunks': [row for row in CHUNKS if row.is_refused],
    'taken_chunks': [row for row in CHUNKS if not row.is_refused],
    'flood': FLOODS,
    'chunk_flood': CHUNK_FLOODS,
    'unsendable_headers': UNSENDABLE_HEADERS,
}
