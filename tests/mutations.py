"""Prove that the tests bite: take one rule away, and see a test fail.

    python tests/mutations.py           all of them, some minutes
    python tests/mutations.py chunk     those with `chunk` in their name

1. The tree is copied to a temporary directory. The tests must pass there as it is.
2. One mutation after the other replaces a text of one file, which must be there exactly once, runs the
   tests that are to notice, and puts the text back.
3. A mutation whose tests all pass has survived: a rule is without a test. The exit status is 1 then.

A script, not a test. It tells nothing about a rule that is not in its table: whoever adds a guard to
the core adds a line here.
"""
# ruff: noqa: E501  # a mutation is one line, however long its texts

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 120
"""A mutation whose tests take longer than this made them hang, and was noticed."""

WIRE = 'test_wire.py'
FORMAT = 'test_wire_format.py'
REPEATS = 'test_repeats.py'
CHANNEL = 'test_channel.py'
BODIES = 'test_bodies.py'
SERVER = 'test_server.py'
EXCHANGE = 'test_exchange.py'
LIFE = 'test_server_life.py'
LIMITS = 'test_server_limits.py'
WORKERS = 'test_workers.py'
TLS = 'test_server_tls.py'
REFUSALS = 'test_tls_refusals.py'
PKI = 'test_pki.py'
HOSTILE = 'test_server_hostile.py'
CLIENT = 'test_client.py'
CLIENT_HOSTILE = 'test_client_hostile.py'
# One test of a file where that has the same rows for many.
REQUESTS = (
    'test_server_malformed.py::test_a_malformed_request_between_good_ones_ends_the_connection'
)
TAKEN = 'test_server_malformed.py::test_a_request_that_is_taken_is_what_the_app_gets'
CHUNKS = (
    'test_server_malformed.py::test_a_malformed_chunk_that_the_app_puts_up_with_ends_the_connection'
)
UNREAD = 'test_server_malformed.py::test_a_malformed_chunk_that_nobody_read_ends_the_connection'
ANSWERED = (
    'test_server_malformed.py::test_a_malformed_chunk_gets_one_answer_and_ends_the_connection'
)
HEAD = 'test_server_malformed.py::test_a_refusal_of_head_has_no_body'
HEAD_IN_PIECES = 'test_server_malformed.py::test_a_refusal_of_head_has_no_body_however_it_arrives'
ENDED = 'test_client.py::test_an_end_inside_a_preamble_is_no_response'
RESPONSES = 'test_client.py::test_a_malformed_response_is_a_protocol_error_and_ends_the_connection'
RESPONSE_CHUNKS = (
    'test_client.py::test_a_malformed_chunk_is_a_protocol_error_and_ends_the_connection'
)


PAKE = 'degu_rpc/peers/pairing/test_pake.py'
CODES = 'degu_rpc/peers/pairing/test_codes.py'
PAIRING = 'degu_rpc/peers/pairing/test_pairing.py'
COMMIT = 'degu_rpc/peers/pairing/test_commit.py'
WINDOW = 'degu_rpc/peers/pairing/test_window.py'
INVITATION = 'degu_rpc/peers/pairing/test_invitation.py'
JOIN = 'degu_rpc/peers/pairing/test_join.py'
ATTACKS = 'degu_rpc/peers/pairing/test_attacks.py'


class Mutation(NamedTuple):
    name: str
    module: str
    """Of the core, or a path below the project without its suffix."""
    old: str
    new: str
    tests: str
    """A file below tests/degu or tests, or a test of it, that must notice."""

    @property
    def source(self) -> str:
        """The file to change."""
        return f'{self.module}.py' if '/' in self.module else f'degu/{self.module}.py'


def find_tests(tests: str) -> str:
    """Return the path of what Mutation.tests names."""
    return f'tests/{tests}' if tests.startswith('degu_rpc/') else f'tests/degu/{tests}'


IDENTITY = 'degu_rpc/peers/test_identity.py'
TRUST = 'degu_rpc/peers/test_trust.py'
CALLER = 'degu_rpc/peers/test_caller.py'
GROUPS = 'degu_rpc/peers/test_caller_groups.py'
DIAL = 'degu_rpc/peers/test_dial.py'
DIALER = 'degu_rpc/peers/test_dialer.py'
RENEWAL = 'degu_rpc/peers/test_renewal.py'
EXPORT = 'degu_rpc/peers/test_export.py'

FETCH_ATTACKED = 'degu_rpc/files/test_attacks.py'
MIRRORS = 'degu_rpc/files/test_mirrors.py'
BOARD = 'degu_rpc/files/test_board.py'
KILLED = 'degu_rpc/files/test_killed.py'

_REMOTE = 'degu_rpc/files/remote'
_PATHS = 'degu_rpc/files/paths'
_PARTIAL = 'degu_rpc/files/partial'
_RECEIVE = 'degu_rpc/files/receive'
_BOARD = 'degu_rpc/files/board'
_COMMIT = 'degu_rpc/files/commit'
_FETCH = 'degu_rpc/files/fetch'

_IDENTITY = 'degu_rpc/peers/identity'
_PRIVATE = 'degu_rpc/peers/private'
_TRUST = 'degu_rpc/peers/trust'
_CALLER = 'degu_rpc/peers/caller'
_DIAL = 'degu_rpc/peers/dial'
_RENEWAL = 'degu_rpc/peers/renewal'
_CODES = 'degu_rpc/peers/pairing/codes'
_PAKE = 'degu_rpc/peers/pairing/pake'
_INVITATION = 'degu_rpc/peers/pairing/invitation'
_WINDOW = 'degu_rpc/peers/pairing/window'
_JOINER = 'degu_rpc/peers/pairing/joiner'
_SIDES = 'degu_rpc/peers/pairing/sides'

MUTATIONS = [
    Mutation(*fields)
    for fields in (
        # --- the grammar of numbers
        ('length_leading_zero', 'wire', "'(?:0|[1-9][0-9]{0,15})'", "'[0-9]{1,16}'", WIRE),
        ('length_any_size', 'wire', "'(?:0|[1-9][0-9]{0,15})'", "'(?:0|[1-9][0-9]*)'", HOSTILE),
        ('length_any_digit', 'wire', "'(?:0|[1-9][0-9]{0,15})'", r"'(?:0|[1-9]\d{0,15})'", WIRE),
        ('length_by_int', 'wire', 'if _match_length(text) is None:', 'if not text.strip().isdigit():', WIRE),
        ('length_sign', 'wire', "'(?:0|[1-9][0-9]{0,15})'", "'[+-]?(?:0|[1-9][0-9]{0,15})'", REQUESTS),
        # --- preambles that come again
        ('again_leading_zero', 'repeats', ' and digits[0] != 0x30', '', REPEATS),
        ('again_any_size', 'repeats', ' and len(digits) <= 16', '', REPEATS),
        ('again_beyond_a_line', 'repeats', 'min(MAX_REMEMBERED, limits.max_line - _LONGEST)', 'MAX_REMEMBERED', REPEATS),
        ('again_long_request', 'repeats', ' and len(start) <= self._room', '', REPEATS),
        ('again_long_response', 'repeats', ' and len(start) <= MAX_REMEMBERED', '', REPEATS),
        ('again_shared_path', 'repeats', 'return method, path.copy(), query', 'return method, path, query', REPEATS),
        ('again_changed_headers', 'repeats', 'self._reason = start, status, reason\n            self._headers = dict(headers)', 'self._reason = start, status, reason\n            self._headers = headers', REPEATS),
        ('again_other_type', 'repeats', '    if not all(type(value) is str for value in headers.values()):\n        return None\n', '', REPEATS),
        ('again_head', 'repeats', "            and method != 'HEAD'\n", '', REPEATS),
        ('range_reversed', 'wire', 'if int(first) > int(last):', 'if False:', WIRE),
        ('content_range_outside', 'wire', 'if start >= stop or (total is not None and stop > total):', 'if False:', WIRE),
        ('content_range_of_nothing', 'wire', 'if total is None:', 'if False:', WIRE),
        # --- the grammar of preambles
        ('path_fragment', 'wire', '''r'/[!"$->@-~]*\'''', '''r'/[!->@-~]*\'''', WIRE),
        ('path_any_byte', 'wire', '''r'/[!"$->@-~]*\'''', r"r'/[^ ?\r\n]*'", WIRE),
        ('path_two_slashes', 'wire', "    if '//' in target:\n        raise ProtocolError(_TARGET_RULE)\n", '', REQUESTS),
        ('query_empty', 'wire', '''r'[!"$-~]+\'''', '''r'[!"$-~]*\'''', WIRE),
        ('query_any_byte', 'wire', '''r'[!"$-~]+\'''', r"r'[^ \r\n]+'", WIRE),
        ('name_underscore', 'wire', "_NAME = r'[0-9A-Za-z-]{1,64}'", "_NAME = r'[0-9A-Za-z_-]{1,64}'", REQUESTS),
        ('name_space', 'wire', "_NAME = r'[0-9A-Za-z-]{1,64}'", "_NAME = r'[ 0-9A-Za-z-]{1,64}'", REQUESTS),
        ('name_any_size', 'wire', "_NAME = r'[0-9A-Za-z-]{1,64}'", "_NAME = r'[0-9A-Za-z-]+'", WIRE),
        ('name_non_ascii', 'wire', "_NAME = r'[0-9A-Za-z-]{1,64}'", r"_NAME = r'[\w-]{1,64}'", RESPONSES),
        ('value_leading_space', 'wire', "_REQUEST_TEXT = r'(?! )", "_REQUEST_TEXT = r'", REQUESTS),
        ('value_trailing_space', 'wire', "_REQUEST_TEXT = r'(?! )[ -~]+(?<! )'", "_REQUEST_TEXT = r'(?! )[ -~]+'", REQUESTS),
        ('value_tab', 'wire', "_REQUEST_TEXT = r'(?! )[ -~]", r"_REQUEST_TEXT = r'(?! )[\t -~]", REQUESTS),
        ('value_control', 'wire', "_REQUEST_TEXT = r'(?! )[ -~]", r"_REQUEST_TEXT = r'(?! )[^\r\n]", REQUESTS),
        ('value_empty', 'wire', "_REQUEST_TEXT = r'(?! )[ -~]+(?<! )'", "_REQUEST_TEXT = r'(?:(?! )[ -~]+(?<! ))?'", REQUESTS),
        ('value_non_ascii', 'wire', "_REQUEST_TEXT = r'(?! )[ -~]", r"_REQUEST_TEXT = r'(?! )[ -~\x80-\xff]", REQUESTS),
        ('response_value_delete', 'wire', r"_RESPONSE_TEXT = r'(?! )[ -~\x80-\xff]", r"_RESPONSE_TEXT = r'(?! )[ -\xff]", RESPONSES),
        ('response_value_space', 'wire', r"_RESPONSE_TEXT = r'(?! )[ -~\x80-\xff]+(?<! )'", r"_RESPONSE_TEXT = r'[ -~\x80-\xff]+'", RESPONSES),
        ('request_lf', 'wire', r"((?:\r\n{_NAME}: {_REQUEST_TEXT})*)", r"((?:\r?\n{_NAME}: {_REQUEST_TEXT})*)", REQUESTS),
        ('response_lf', 'wire', r"((?:\r\n{_NAME}: {_RESPONSE_TEXT})*)", r"((?:\r?\n{_NAME}: {_RESPONSE_TEXT})*)", RESPONSES),
        ('request_no_space', 'wire', '{_NAME}: {_REQUEST_TEXT}', '{_NAME}: ?{_REQUEST_TEXT}', REQUESTS),
        ('response_no_space', 'wire', '{_NAME}: {_RESPONSE_TEXT}', '{_NAME}: ?{_RESPONSE_TEXT}', RESPONSES),
        ('request_folded', 'wire', r'{_NAME}: {_REQUEST_TEXT}', r'{_NAME}: {_REQUEST_TEXT}(?:\r\n {_REQUEST_TEXT})?', REQUESTS),
        ('response_folded', 'wire', r'{_NAME}: {_RESPONSE_TEXT}', r'{_NAME}: {_RESPONSE_TEXT}(?:\r\n {_RESPONSE_TEXT})?', RESPONSES),
        ('request_http_1_0', 'wire', r"))? HTTP/1\.1'", r"))? HTTP/1\.[01]'", REQUESTS),
        ('response_http_1_0', 'wire', r"rf'HTTP/1\.1 ([2-5]", r"rf'HTTP/1\.[01] ([2-5]", RESPONSES),
        ('method_patch', 'wire', '(GET|HEAD|PUT|POST|DELETE)', '(GET|HEAD|PUT|POST|DELETE|PATCH)', REQUESTS),
        ('method_lower_case', 'wire', '(GET|HEAD|PUT|POST|DELETE)', '((?i:GET|HEAD|PUT|POST|DELETE))', REQUESTS),
        ('status_1xx', 'wire', '([2-5][0-9]{{2}})', '([1-5][0-9]{{2}})', CLIENT_HOSTILE),
        ('status_600', 'wire', '([2-5][0-9]{{2}})', '([2-9][0-9]{{2}})', RESPONSES),
        ('reason_empty', 'wire', '{{2}}) ({_RESPONSE_TEXT})', '{{2}}) ({_RESPONSE_TEXT}|)', RESPONSES),
        ('line_ends_first', 'wire', "    _check_line_ends(text)\n    line, *header_lines", '    line, *header_lines', WIRE),
        # --- single headers, and their framing
        ('header_twice', 'wire', 'if len(headers) < count:', 'if False:', REQUESTS),
        ('both_framings', 'wire', "    if 'transfer-encoding' in headers and 'content-length' in headers:\n        raise", "    if False:\n        raise", RESPONSES),
        ('chunked_stripped', 'wire', "if text != 'chunked':", "if text.strip() != 'chunked':", RESPONSES),
        ('chunked_any_case', 'wire', "if text != 'chunked':", "if text.lower() != 'chunked':", REQUESTS),
        ('chunked_last_of_list', 'wire', "if text != 'chunked':", "if text.split(',')[-1].strip(' ') != 'chunked':", REQUESTS),
        ('chunked_first_of_list', 'wire', "if text != 'chunked':", "if text.split(',')[0] != 'chunked':", REQUESTS),
        ('chunked_prefix', 'wire', "if text != 'chunked':", "if not text.startswith('chunked'):", REQUESTS),
        ('request_transfer_encoding', 'wire', "    'transfer-encoding': parse_transfer_encoding,\n    'range'", "    'range'", REQUESTS),
        ('response_transfer_encoding', 'wire', "    'transfer-encoding': parse_transfer_encoding,\n    'content-range': parse_content_range,\n}", "    'content-range': parse_content_range,\n}", RESPONSES),
        ('host', 'wire', "    'host': parse_host,\n", '', REQUESTS),
        ('range', 'wire', "    'range': parse_range,\n", '', REQUESTS),
        ('expect', 'wire', "    'expect': _refuse_expect,\n", '', REQUESTS),
        ('body_of_get', 'wire', "        if 'content-length' in headers or 'transfer-encoding' in headers:\n", '        if False:\n', REQUESTS),
        ('chunked_get', 'wire', "        if 'content-length' in headers or 'transfer-encoding' in headers:\n", "        if 'content-length' in headers:\n", REQUESTS),
        ('get_length_0_stays', 'wire', "            del headers['content-length']\n", '            pass\n', TAKEN),
        ('body_of_204', 'wire', "    if status == 204 and (headers", '    if False and (headers', RESPONSES),
        ('close_of_list', 'wire', "[o.strip() for o in options.lower().split(',')]", '[options.lower()]', SERVER),
        # --- sizes
        ('preamble_size', 'wire', 'if len(preamble) > limits.max_preamble:', 'if False:', LIMITS),
        ('line_size', 'wire', "if max(map(len, preamble.split(b'\\r\\n'))) > limits.max_line:", 'if False:', REQUESTS),
        ('header_count', 'wire', 'if count > limits.max_headers:', 'if False:', HOSTILE),
        ('endless_preamble', 'channel', 'if len(data) > max_size:', 'if False:', HOSTILE),
        ('endless_response', 'channel', 'if len(data) > max_size:', 'if False:', CLIENT_HOSTILE),
        ('bare_cr_or_lf', 'channel', 'if _BARE_CR_OR_LF(data, max(searched - 1, 0), max_size):', 'if False:', WIRE),
        ('end_inside_preamble', 'channel', "if more == b'':", 'if False:', ENDED),
        ('claimed_size', 'channel', 'size = min(size, self._max_receive)', 'size = min(size, 2**30)', BODIES),
        ('endless_chunk_line', 'channel', ' and len(data) <= max_size + 1:', ':', HOSTILE),
        ('chunk_line_size', 'channel', 'if end < 0 or end > max_size:', 'if end < 0:', CHUNKS),
        ('chunk_size', 'wire', 'if size > max_chunk:', 'if False:', CHUNKS),
        ('read_size', 'bodies', 'self._read_chunk(min(max_chunk, room))', 'self._read_chunk(max_chunk)', BODIES),
        ('drained_size', 'bodies', 'if not self.closed and self.remaining <= max_size:', 'if not self.closed:', SERVER),
        ('drained_chunks', 'bodies', 'self._read_chunk(size_left)', 'self._read_chunk(2**24)', SERVER),
        ('drained_lines', 'bodies', 'if lines_left < 0:', 'if False:', BODIES),
        # --- chunks
        ('chunk_size_by_int', 'wire', "rb'([0-9A-Fa-f]{1,7})(?:;", "rb'([^;g]{1,7}?)(?:;", BODIES),
        ('chunk_size_space', 'wire', "rb'([0-9A-Fa-f]{1,7})(?:;", "rb' ?([0-9A-Fa-f]{1,7}) ?(?:;", RESPONSE_CHUNKS),
        ('chunk_size_8_digits', 'wire', "rb'([0-9A-Fa-f]{1,7})(?:;", "rb'([0-9A-Fa-f]{1,8})(?:;", WIRE),
        ('extension_any_byte', 'wire', "(?:;([!#-:<>-~]+=[!#-:<-~]+))?'", "(?:;([^;=]+=[^;]+))?'", CHUNKS),
        ('extension_quoted', 'wire', "(?:;([!#-:<>-~]+=[!#-:<-~]+))?'", "(?:;([!#-:<>-~]+=[!-:<-~]+))?'", CHUNKS),
        ('extension_without_value', 'wire', "(?:;([!#-:<>-~]+=[!#-:<-~]+))?'", "(?:;([!#-:<-~]*))?'", CHUNKS),
        ('extension_twice', 'wire', "(?:;([!#-:<>-~]+=[!#-:<-~]+))?'", "(?:;([!#-~]+=[!#-~]+))?'", CHUNKS),
        ('chunk_line_start', 'wire', "_match_chunk_line = re.compile(_CHUNK_LINE).fullmatch", "_match_chunk_line = re.compile(_CHUNK_LINE).match", RESPONSE_CHUNKS),
        ('crlf_after_data', 'bodies', r"if end != b'\r\n':", 'if False:', CHUNKS),
        ('crlf_after_data_only', 'bodies', r"if end != b'\r\n':", r"if size and end != b'\r\n':", CHUNKS),
        ('lf_after_data', 'bodies', r"if end != b'\r\n':", r"if not end.endswith(b'\n'):", CHUNKS),
        ('chunk_cut_short', 'bodies', 'if len(data) < size:\n            raise UnderFlowError', 'if False:\n            raise UnderFlowError', BODIES),
        ('chunk_without_end', 'bodies', 'if len(end) < 2:', 'if False:', BODIES),
        ('whole_chunk_without_end', 'bodies', r" and buffered[end : end + 2] == b'\r\n'", '', CHUNKS),
        ('whole_chunk_of_any_size', 'bodies', 'if size <= max_chunk and', 'if', BODIES),
        ('whole_chunk_with_a_long_line', 'bodies', ' and match.end() <= channel.limits.max_chunk_line + 2', '', BODIES),
        ('body_cut_short', 'bodies', '            if len(data) < size:\n', '            if False:\n', CLIENT),
        ('failed_body_read_on', 'bodies', '        if self.error is not None:\n            raise BodyClosedError(self)\n', '', BODIES),
        ('failed_body_closes', 'channel', 'if self._closes_after_failed_body:', 'if False:', CLIENT),
        # --- time
        ('preamble_time', 'channel', 'if deadline.remaining() == 0:', 'if False:', LIMITS),
        ('body_rate', 'channel', 'if self._moved < self._rate * self._window_s:', 'if False:', LIMITS),
        ('deadline_ignored', 'channel', '                timeout_s = left * _HALF_SLACK\n', '', CHANNEL),
        ('deadline_stays', 'exchange', 'if channel.deadline is not None:', 'if False:', SERVER),
        ('deadline_not_for_idle', 'channel', 'if self._has_waited or self.deadline is not None:', 'if self._has_waited:', CHANNEL),
        ('deadline_leaves_its_wait', 'channel', 'self._has_waited = self.deadline is not None', 'self._has_waited = False', CHANNEL),
        ('half_gone_is_not_gone', 'channel', 'select.POLLRDHUP)', '0)', CHANNEL),
        ('body_rate_each', 'channel', '            self._pace.begin()\n            self._set_wait(self._idle_s)\n', '            self._set_wait(self._idle_s)\n', CHANNEL),
        ('chunk_gap', 'channel', 'if gap_s is None:', 'if True:', LIMITS),
        ('client_preamble_time', 'client', '            preamble_timeout_s=timeout_s,\n', '', CLIENT_HOSTILE),
        ('client_body_time', 'client', '            body_window_s=timeout_s,\n', '', CLIENT_HOSTILE),
        ('client_chunk_time', 'client', '            chunk_gap_timeout_s=timeout_s,\n', '', CLIENT),
        ('client_handshake_time', 'client', 'sock.settimeout(deadline.require())', 'sock.settimeout(60)', CLIENT_HOSTILE),
        ('handshake_time', 'server', 'client.sock.settimeout(self.limits.handshake_timeout_s)', 'client.sock.settimeout(60)', HOSTILE),
        # --- one answer, and then the end
        ('read_on_after_500', 'exchange', "            return '500 an error of the application'\n", '            continue\n', SERVER),
        ('read_on_after_cut_off', 'exchange', "            channel.close_orderly()\n            raise ClosedConnectionError('the response was cut off') from error\n", '            continue\n', SERVER),
        ('read_on_after_failed_body', 'exchange', 'and not (request_body.closed and request_body.error is None)', 'and not request_body.closed', CHUNKS),
        ('read_on_after_unread_body', 'exchange', 'and not request_body.drain(LINGER_SIZE)', 'and not (request_body.drain(LINGER_SIZE) or True)', UNREAD),
        ('second_answer', 'exchange', 'if error is channel.write_error:', 'if error is channel.write_error or isinstance(error, ProtocolError):', SERVER),
        ('answer_of_failed_body', 'exchange', '            if request_body is not None and request_body.error is error:\n                raise\n', '', ANSWERED),
        ('close_of_request', 'exchange', 'if is_last or (', 'if (', SERVER),
        ('answer_repeats', 'wire', "        return ProtocolError(_TARGET_RULE)\n", "        return ProtocolError(f'{_TARGET_RULE}, not {target}')\n", WIRE),
        ('body_of_refused_head', 'exchange', "'' if preamble.startswith(b'HEAD ') else ", "", HEAD),
        ('orderly_close', 'channel', '            self.sock.shutdown(socket.SHUT_WR)\n', '            return self.sock.close()\n', CHANNEL),
        ('handshake_count', 'server', 'if len(self._handshakes) >= self.limits.max_handshakes:', 'if False:', LIMITS),
        ('end_not_announced', 'exchange', 'request_body.remaining > LINGER_SIZE', 'False', SERVER),
        ('picked_headers_uncounted', 'wire', 'elif len(headers) > limits.max_headers:', 'elif False:', WIRE),
        ('first_request_at_shutdown', 'server', 'FIRST_REQUEST_TIMEOUT_S = 0.5', 'FIRST_REQUEST_TIMEOUT_S = 0.0', LIFE),
        ('early_answer', 'client', "self._answered and 'host' in headers", 'False', CLIENT),
        ('early_end', 'client', 'if early is not None:', 'if False:', CLIENT),
        ('source_of_refused_response', 'exchange', '                close_source(body)\n            return', '                pass\n            return', SERVER),
        ('refused_head_in_pieces', 'exchange', 'preamble or channel.buffered', "preamble or b''", HEAD_IN_PIECES),
        ('worker_replaced', 'workers', 'if len(self._running) < self._count:', 'if not self._running:', WORKERS),
        ('worker_restart_rate', 'workers', 'not_before = max(not_before, worker.started + _MIN_LIFE_S)', 'not_before = 0.0', WORKERS),
        ('worker_killed', 'workers', 'signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)', 'pass', WORKERS),
        ('worker_beside_threads', 'workers', 'if threading.active_count() > 1:', 'if False:', WORKERS),
        ('half_a_request_at_shutdown', 'exchange', '            if client.is_to_end:\n                return SHUTS_DOWN\n', '', EXCHANGE),
        ('second_successor', 'server', 'any(successor.poll() is None for successor in self._successors)', 'self._successors and self._successors[-1].poll() is None', WORKERS),
        ('successor_of_inherited', 'workers', "HANDED_OVER if owns_file else ''", 'HANDED_OVER', WORKERS),
        ('connection_count', 'server', 'if len(self._clients) >= limits.max_connections:', 'if False:', LIMITS),
        ('connection_count_of_host', 'server', 'if count >= limits.max_connections_per_address:', 'if False:', LIMITS),
        ('forgotten_connection', 'server', '                self._per_host[host] -= 1\n', '                pass\n', LIMITS),
        ('resumed_session', 'server', 'if sock.session_reused:', 'if False:', TLS),
        # --- what is the answer to which request
        ('early_bytes', 'client', '    if early:\n        raise', '    if False:\n        raise', CLIENT_HOSTILE),
        ('late_bytes', 'client', 'if body is None and channel.buffered:', 'if False:', CLIENT),
        ('unframed_body', 'client', 'if not channel.buffered and channel.read_some(1):', 'if False:', CLIENT),
        ('unframed_generic_body', 'client', "elif self._ending or 'host' in sent:", 'elif self._ending:', CLIENT),
        ('unread_response', 'client', '            if not unread.closed and (isinstance(unread, ChunkedInput) or unread.remaining):\n', '            if False:\n', CLIENT),
        ('failed_response', 'client', 'if unread.error is not None:', 'if False:', CLIENT),
        ('close_of_response', 'client', "        if channel.write_error is not None or (\n            'connection' in headers and closes_connection(headers)\n        ):", '        if channel.write_error is not None:', CLIENT),
        ('body_of_head', 'client', "if method == 'HEAD' or status in BODILESS_STATUSES:", 'if status in BODILESS_STATUSES:', CLIENT),
        ('body_of_304', 'client', "if method == 'HEAD' or status in BODILESS_STATUSES:", "if method == 'HEAD':", CLIENT),
        # --- what is sent
        ('sent_value', 'wire', '            if match_text(value) is None:\n', '            if False:\n', CLIENT),
        ('sent_value_of_response', 'wire', '            if match_text(value) is None:\n', '            if is_request and match_text(value) is None:\n', SERVER),
        ('sent_value_latin_1', 'wire', r'(?! )[ -~\xa1-\xac\xae-\xff]+(?<! )', r'(?! )[ -~\x80-\xff]+(?<! )', SERVER),
        ('sent_value_class', 'wire', 'elif type(value) is str:', 'elif isinstance(value, str):', FORMAT),
        ('sent_name', 'wire', 'if not isinstance(name, str) or _match_name(name) is None or name != name.lower():', 'if name != name.lower():', CLIENT),
        ('sent_name_upper_case', 'wire', ' or name != name.lower():', ':', SERVER),
        ('sent_length_class', 'wire', 'if type(value) is not int or not 0 <= value < 10**16:', 'if not 0 <= value < 10**16:', FORMAT),
        ('sent_length_size', 'wire', 'if type(value) is not int or not 0 <= value < 10**16:', 'if type(value) is not int:', FORMAT),
        ('sent_range', 'wire', 'elif not _is_valid_range(name, value):', 'elif False:', FORMAT),
        ('sent_length_of_body', 'wire', "if headers['content-length'] != (length or 0):", 'if False:', CLIENT),
        ('sent_chunked_of_body', 'wire', "if headers['transfer-encoding'] != 'chunked' or length != CHUNKED:", "if headers['transfer-encoding'] != 'chunked':", SERVER),
        ('sent_transfer_encoding', 'wire', "if headers['transfer-encoding'] != 'chunked' or length != CHUNKED:", 'if length != CHUNKED:', SERVER),
        ('sent_both_framings', 'wire', "        if 'content-length' in headers:\n            raise ValueError('content-length was given with a chunked body')\n", '', FORMAT),
        ('sent_method', 'wire', "    if method not in METHODS:\n        raise ValueError(f'method", "    if False:\n        raise ValueError(f'method", CLIENT),
        ('sent_uri', 'wire', 'if type(uri) is not str or _match_target(uri) is None:', 'if type(uri) is not str:', CLIENT),
        ('sent_two_slashes', 'wire', "if '//' in uri and '//' in uri.partition('?')[0]:", 'if False:', CLIENT),
        ('sent_body_of_get', 'wire', "if method not in BODY_METHODS and (length is not None or 'content-length' in headers):", 'if False:', CLIENT),
        ('sent_status', 'wire', 'if type(status) is not int or not 200 <= status <= 599:', 'if False:', SERVER),
        ('sent_status_class', 'wire', 'if type(status) is not int or not 200 <= status <= 599:', 'if type(status) is not int:', SERVER),
        ('sent_reason', 'wire', 'if type(reason) is not str or _match_sent_text[False](reason) is None:', 'if type(reason) is not str:', SERVER),
        ('sent_body_of_head', 'wire', '        if length is not None:\n            what', '        if False:\n            what', SERVER),
        ('sent_extension', 'wire', '    if _match_extension(extension) is None:\n', '    if False:\n', SERVER),
        ('sent_chunk_size', 'wire', '    if size > limits.max_chunk:\n', '    if False:\n', LIMITS),
        ('sent_too_much', 'bodies', 'if size > self.content_length:', 'if False:', SERVER),
        ('sent_too_little', 'bodies', '        if size < self.content_length:\n', '        if False:\n', SERVER),
        ('sent_after_the_last', 'bodies', '            if ended:\n', '            if False:\n', SERVER),
        ('url_crlf', 'client', 'if not url.isprintable() or parts', 'if parts', CLIENT),
        # --- certificates
        ('user_expiry', 'pki', 'if cert.not_valid_after_utc != NO_EXPIRY:', 'if False:', PKI),
        ('user_subject', 'pki', 'if cert.subject != _common_name(user_id):', 'if False:', PKI),
        ('user_issuer', 'pki', 'if cert.issuer != cert.subject:', 'if False:', PKI),
        ('user_extensions', 'pki', '    _check_extensions(cert, _user_extensions(public_key))\n', '', PKI),
        ('user_signature', 'pki', '    _check_signature(cert, cert)\n', '', PKI),
        ('user_path_length', 'pki', 'path_length=0', 'path_length=1', PKI),
        ('machine_missing', 'pki', '    if cert_der is None:\n        raise CertificateError(CertificateFault.MISSING)\n', '', PKI),
        ('machine_id_of_key', 'pki', 'if ids.machine_id != derive_machine_id(public_key):', 'if False:', PKI),
        ('machine_subject', 'pki', 'if cert.subject != _common_name(ids.machine_id):', 'if False:', PKI),
        ('machine_issuer', 'pki', 'if cert.issuer != _common_name(ids.user_id):', 'if False:', PKI),
        ('machine_extensions', 'pki', '    _check_extensions(cert, _machine_extensions(public_key, ids, issuer_key_id))\n', '', PKI),
        ('issued_by_user_id', 'pki', 'if machine.ids.user_id != user.user_id:', 'if False:', PKI),
        ('issued_by_key_id', 'pki', 'if machine.issuer_key_id != user.key_id:', 'if False:', PKI),
        ('issued_by_signature', 'pki', '    _check_signature(machine.cert, user.cert)\n', '', PKI),
        ('certificate_times', 'pki', '        _ = (cert.not_valid_before_utc, cert.not_valid_after_utc)\n', '', PKI),
        ('certificate_version', 'pki', 'if cert.version is not x509.Version.v3:', 'if False:', PKI),
        ('certificate_serial', 'pki', 'if not 0 < cert.serial_number < 2**128:', 'if False:', PKI),
        ('certificate_algorithm', 'pki', 'if cert.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:', 'if False:', PKI),
        ('certificate_curve', 'pki', 'isinstance(public_key.curve, ec.SECP256R1)', 'True', PKI),
        ('names_two', 'pki', 'if len(names) != 1 or not', 'if not', PKI),
        ('names_other', 'pki', ' or not isinstance(names[0], x509.UniformResourceIdentifier):', ':', PKI),
        ('uri_prefix', 'pki', '_URI.fullmatch(uri)', '_URI.match(uri)', PKI),
        ('uri_case', 'pki', "ID_PATTERN = '[a-z2-7]{48}'", "ID_PATTERN = '[A-Za-z2-7]{48}'", PKI),
        ('issuer_key_id_none', 'pki', 'if extension.value.key_identifier is None:', 'if False:', PKI),
        ('extension_missing', 'pki', "        if extension is None:\n            raise CertificateError(fault, 'missing')\n", '        if extension is None:\n            continue\n', PKI),
        ('extension_critical', 'pki', 'if extension.critical is not critical:', 'if False:', PKI),
        ('extension_value', 'pki', 'if extension.value != value:', 'if False:', PKI),
        ('extension_unknown', 'pki', '    for oid in found:\n', '    for oid in ():\n', PKI),
        ('id_personal', 'pki', 'digest_size=30, person=person', 'digest_size=30', PKI),
        ('key_curve', 'pki', 'isinstance(key.curve, ec.SECP256R1)', 'True', PKI),
        ('pem_two', 'pki', '        (cert,) = x509', '        cert, *_ = x509', PKI),
        ('verdict_expired', 'tls', '    10: CertificateFault.EXPIRED,\n', '', REFUSALS),
        ('verdict_not_yet_valid', 'tls', '    9: CertificateFault.NOT_YET_VALID,\n', '', REFUSALS),
        ('verdict_clock_zone', 'tls', 'now.astimezone(UTC):', 'now:', REFUSALS),
        ('verdict_attributes', 'tls', '        vars(self).update(vars(error))\n', '', REFUSALS),
        ('verdict_of_client', 'client', '            if isinstance(error, ssl.SSLCertVerificationError):\n', '            if False:\n', REFUSALS),
        ('verdict_of_server', 'server', '            refusal = find_refusal(error, datetime.now(UTC))\n', '            refusal = None\n', REFUSALS),
        ('alert_of_server', 'client', 'raise find_rejection(error) or PeerRejectedError(', 'raise PeerRejectedError(', REFUSALS),
        ('alert_by_version', 'tls', "partition('_ALERT_')[2]", "removeprefix('TLSV1_ALERT_')", REFUSALS),
        # --- pairing: the code and its handshake
        ('code_check', _CODES, 'if _syndrome(value) != 0:', 'if False:', CODES),
        ('code_root', _CODES, '_ROOT = 5', '_ROOT = 2', CODES),
        ('code_digits', _CODES, "or not set(number) <= set('01234567')", 'or not number.isdigit()', CODES),
        ('spake_identities', _PAKE, 'return _frame(role.value.encode(), machine_id.encode())', "return b''", ATTACKS),
        ('spake_window_id', _PAKE, '_identify(Role.WINDOW, terms.window_id)', "b''", PAKE),
        ('spake_joiner_id', _PAKE, '_identify(Role.JOINER, terms.joiner_id)', "b''", PAKE),
        ('spake_code', _PAKE, 'self._spake_class(code.secret,', "self._spake_class(b'',", ATTACKS),
        ('transcript_intent', _PAKE, '            self._intent.value.encode(),\n', '', PAKE),
        ('swapped_roles', _PAKE, '''            _identify(Role.JOINER, terms.joiner_id),\n            _identify(Role.WINDOW, terms.window_id),\n''', '''            *sorted([terms.joiner_id.encode(), terms.window_id.encode()]),\n''', PAKE),
        ('spake_message_size', _PAKE, 'if len(message) != MESSAGE_SIZE:', 'if False:', PAKE),
        ('spake_spelling', _PAKE, 'if point.to_bytes() != message[1:]:', 'if False:', PAKE),
        ('spake_refusal', _PAKE, 'except (SPAKEError, NotOnCurve, ValueError)', 'except (NotOnCurve, ValueError)', PAKE),
        ('spake_not_on_curve', _PAKE, 'except (SPAKEError, NotOnCurve, ValueError)', 'except (SPAKEError, ValueError)', PAKE),
        ('spake_randomness', _PAKE, 'self._spake_class(code.secret, *self._identities)', 'self._spake_class(code.secret, *self._identities, entropy_f=bytes)', PAKE),
        ('confirmation_joiner', _PAKE, "        self._leave(Stage.KEYED)\n        self._check(confirmation)\n        self.stage = Stage.CONFIRMED\n\n\nclass", "        self._leave(Stage.KEYED)\n        self.stage = Stage.CONFIRMED\n\n\nclass", ATTACKS),
        ('confirmation_window', _PAKE, "        self._check(confirmation)\n        self.stage = Stage.CONFIRMED\n        return", "        self.stage = Stage.CONFIRMED\n        return", ATTACKS),
        ('confirmation_reflected', _PAKE, "_derive_keys(shared_key, self._transcript, self._other_role)", "self._own", PAKE),
        ('confirmation_missing', _PAKE, '        self._require(Stage.CONFIRMED)\n', '', ATTACKS),
        ('handshake_order', _PAKE, '        self._require(stage)\n        self.stage = Stage.FAILED', '        self.stage = Stage.FAILED', PAKE),
        ('handshake_failed', _PAKE, '        self.stage = Stage.FAILED\n', '', PAKE),
        ('session_kind', _PAKE, '_mac(self._own_key, _frame(kind.encode(), *parts))', '_mac(self._own_key, _frame(*parts))', PAKE),
        ('session_frame', _PAKE, "len(part).to_bytes(4, 'big') + part", 'part', PAKE),
        ('session_proof', _PAKE, 'if not hmac.compare_digest(_mac(self._other_key, _frame(kind.encode(), *parts)), proof):', 'if False:', ATTACKS),
        ('invitation_spelling', _INVITATION, 'if format_invitation(*invitation) != text:', 'if False:', INVITATION),
        ('invitation_group', _INVITATION, ' or ip.is_multicast', '', INVITATION),
        ('invitation_broadcast', _INVITATION, ' or ip == _BROADCAST', '', INVITATION),
        ('invitation_mapped', _INVITATION, ' or _is_mapped(ip)', '', INVITATION),
        # --- pairing: the window
        ('window_attempt', _WINDOW, "        if self._attempt is not None:\n            raise PairingError(PairingFault.USED)\n", '', WINDOW),
        ('window_connection', _WINDOW, 'attempt: _Attempt | None = connection.get(_ATTEMPT)', 'attempt = self._attempt', WINDOW),
        ('window_ends', _WINDOW, '            if error.fault is not PairingFault.ORDER:\n                self._end(error)\n', '', WINDOW),
        ('window_time', _WINDOW, 'if self._outcome is None and self._clock() >= self._deadline:', 'if False:', WINDOW),
        ('window_time_of_commit', _WINDOW, "'commit')\n        self._look_at_clock()\n", "'commit')\n", COMMIT),
        ('window_intent', _WINDOW, 'if start.intent is not self._side.intent:', 'if False:', PAIRING),
        ('window_version', _WINDOW, 'if start.version != VERSION:', 'if False:', WINDOW),
        ('window_second_exchange', _WINDOW, 'if attempt.offers is not None:', 'if False:', ATTACKS),
        ('window_offer_proof', _WINDOW, "        session.check(theirs.proof, 'exchange', theirs.offer)\n", '', ATTACKS),
        ('window_commit_proof', _WINDOW, '        attempt.handshake.session.check(proof, kind, *attempt.offers, *more)\n', '', COMMIT),
        ('window_commit_once', _WINDOW, 'if self._outcome is None and not attempt.is_stored:', 'if True:', COMMIT),
        ('window_store_fails', _WINDOW, '                self._end(PairingError(PairingFault.NOT_STORED, str(error)))\n        else', '                self._end(attempt.paired)\n        else', COMMIT),
        ('window_take_back', _WINDOW, '                self._side.take_back()\n            finally:', '                pass\n            finally:', COMMIT),
        ('window_denies', _WINDOW, 'if attempt is not None and attempt.is_stored:', 'if False:', JOIN),
        ('window_final_too_soon', _WINDOW, 'if self._side.intent is Intent.PEER:\n                assert', 'if True:\n                assert', JOIN),
        ('window_closed_too_soon', _WINDOW, '                if self._outcome is None:\n                    self._expire()\n\n', '                pass\n\n', JOIN),
        ('window_gives_after_all', _WINDOW, "cert = self._side.give() if is_stored else b''", 'cert = self._side.give()', JOIN),
        ('window_take_back_fails', _WINDOW, '            try:\n                self._side.take_back()\n            finally:\n                self._end(', '            if True:\n                self._side.take_back()\n                self._end(', COMMIT),
        ('window_roles', _WINDOW, 'if intent is Intent.JOIN and set(roles) != {PEER}:', 'if False:', PAIRING),
        ('window_lingers', _WINDOW, 'if kind is None:', 'if False:', COMMIT),
        ('window_body_size', _WINDOW, 'if body.content_length > MAX_PAIRING_BODY:', 'if False:', WINDOW),
        ('window_connections', _WINDOW, '            max_connections=MAX_PAIRING_CONNECTIONS,\n', '', WINDOW),
        ('window_per_address', _WINDOW, '            max_connections_per_address=MAX_PAIRING_CONNECTIONS_PER_ADDRESS,\n', '', WINDOW),
        ('window_silence', _WINDOW, '            handshake_timeout_s=PAIRING_SILENCE_S,\n', '', WINDOW),
        ('window_says_refused', _WINDOW, 'if self._server is not None and self._server.refused:', 'if False:', WINDOW),
        ('joiner_tries', _JOINER, 'if error.fault is not PairingFault.UNREACHABLE or clock() >= deadline:', 'if True:', WINDOW),
        ('window_says_why', _WINDOW, 'format_message(Refusal(error.fault))', 'str(error).encode()', ATTACKS),
        ('window_count', _WINDOW, 'if len(recent) >= MAX_PAIRING_WINDOWS:', 'if False:', WINDOW),
        ('window_count_clock', _WINDOW, 'if abs(now.timestamp() - at) < PAIRING_WINDOWS_PERIOD_S]', 'if now.timestamp() - at < PAIRING_WINDOWS_PERIOD_S]', WINDOW),
        ('message_fields', 'degu_rpc/peers/pairing/messages', 'class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True)', 'class Message(msgspec.Struct, frozen=True)', WINDOW),
        ('message_remaining', 'degu_rpc/peers/pairing/messages', 'Annotated[float, msgspec.Meta(ge=0, le=PAIRING_WINDOW_S)]', 'float', ATTACKS),
        # --- pairing: the other side, and what they agree on
        ('joiner_take_back', _JOINER, '        except BaseException:\n            side.take_back()\n            raise\n', '        except BaseException:\n            raise\n', COMMIT),
        ('joiner_not_stored', _JOINER, 'if not outcome.is_stored:', 'if False:', COMMIT),
        ('joiner_before_session', _JOINER, "if path in ('start', 'confirm') and fault not in _BEFORE_SESSION:", 'if False:', ATTACKS),
        ('joiner_outcome_proof', _JOINER, "                self._session.check(outcome.proof, kind, *self._offers, outcome.machine_cert)\n", '', JOIN),
        ('joiner_claims', 'degu_rpc/errors', "f'the other machine said: {self.fault.text}' if self.is_claimed else", '', JOIN),
        ('joiner_repeats', _JOINER, 'if self._clock() >= self._deadline:', 'if True:', COMMIT),
        ('joiner_abort', _JOINER, "                    self._ask('abort', Abort(fault, proof), Done)\n", '                    pass\n', COMMIT),
        ('side_key', _SIDES, 'if pki.derive_machine_id(public_key) != machine_id:', 'if False:', ATTACKS),
        ('side_session', _SIDES, 'public_key = pki.parse_csr(csr, binding)', 'public_key = pki.parse_csr(csr)', ATTACKS),
        ('side_machine', _SIDES, 'if ids.machine_id != machine_id:', 'if False:', ATTACKS),
        ('side_own_machine', _SIDES, 'if ids.machine_id != self.own_id:', 'if False:', ATTACKS),
        ('side_clock', _SIDES, '            pki.check_valid(machine_cert, datetime.now(UTC))\n', '', PAIRING),
        ('side_same_user', _SIDES, 'if user_id == self.identity.user_id:', 'if False:', PAIRING),
        ('side_already', _SIDES, 'if other.trusts and self._trusts(ids.user_id):', 'if False:', PAIRING),
        ('side_name', _SIDES, '        check_new_name(parsed.name)', '        str(parsed.name)', ATTACKS),
        ('side_other_user', _SIDES, 'if self._certified is not None and user_id != self._certified.user_id:', 'if False:', PAIRING),
        ('side_certifies', _SIDES, 'if self._certified.can_certify:', 'if False:', PAIRING),
        ('side_renewed', _SIDES, 'return Identity.open(trust.identity.directory)', 'return trust.identity', PAIRING),
        ('side_remembers_user', _SIDES, '        self._former = self._trust.remember(paired.user_id)\n', '', COMMIT),
        ('side_remembers_machine', _SIDES, '        self._former = self._trust.remember(user_id)\n', '', COMMIT),
        ('side_denies', _SIDES, 'if self._is_given or self._was_denied:', 'if self._was_denied:', JOIN),
        ('side_stays_denied', _SIDES, 'if self._is_given or self._was_denied:', 'if self._is_given:', JOIN),
        ('side_allows', _SIDES, '        self._trust.allow(user_id, machine_id)  # a person has just decided it\n', '', JOIN),
        ('side_former_cert', _SIDES, '                self._certified.install(self._key, self._certified.machine_cert)\n', '                pass\n', COMMIT),
        ('side_owner', _CALLER, 'if isinstance(roles, str) or OWNER in roles:', 'if False:', PAIRING),
        # --- who I am
        ('private_type', _PRIVATE, 'if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):', 'if False:', IDENTITY),
        ('private_owner', _PRIVATE, 'if found.st_uid != os.geteuid():', 'if False:', IDENTITY),
        ('private_mode', _PRIVATE, 'if stat.S_IMODE(found.st_mode) & 0o077:', 'if False:', IDENTITY),
        ('private_lock', _PRIVATE, '        fcntl.flock(fd, fcntl.LOCK_EX)\n', '', TRUST),
        ('private_left_over', _PRIVATE, 'if durable.is_temporary(name):', 'if False:', TRUST),
        ('durable_umask', 'durable', '            os.fchmod(fd, 0o600)  # a umask can only have taken bits away\n', '', IDENTITY),
        ('durable_mode', 'durable', 'flags, 0o600, dir_fd', 'flags, 0o666, dir_fd', 'degu_rpc/peers/test_kills.py'),
        ('identity_existing', _IDENTITY, 'if os.path.lexists(directory / _MACHINE):\n        raise', 'if False:\n        raise', IDENTITY),
        ('identity_lost_key', _IDENTITY, 'if os.path.lexists(directory / _USER_CERT):\n            raise', 'if False:\n            raise', IDENTITY),
        ('identity_join_failed', _IDENTITY, '                for name in (_MACHINE, _USER_CERT):\n', '                for name in ():\n', COMMIT),
        ('identity_join_user', _IDENTITY, "if os.path.lexists(directory / _USER_KEY):\n                raise", "if False:\n                raise", IDENTITY),
        ('identity_machine_key', _IDENTITY, 'if pki.derive_machine_id(machine_key.public_key()) != ids.machine_id:', 'if False:', IDENTITY),
        ('identity_user_key', _IDENTITY, 'if pki.derive_user_id(user_key.public_key()) != pki.parse_user_cert(user_cert):', 'if False:', IDENTITY),
        ('identity_discard', _IDENTITY, '            if self.can_certify:\n', '            if False:\n', IDENTITY),
        ('identity_import_other', _IDENTITY, 'if found != pki.derive_user_id(user_key.public_key()):', 'if False:', IDENTITY),
        ('export_length', 'degu_rpc/peers/export', 'if len(passphrase) < MIN_PASSPHRASE_LENGTH:', 'if False:', EXPORT),
        # --- whom I trust
        ('trust_epoch', _TRUST, 'return record if record.epoch > epochs.get(user_id, 0) else None', 'return record', TRUST),
        ('trust_revive', _TRUST, 'if record is None and removed and not revive:', 'if False:', TRUST),
        ('trust_users', _TRUST, 'len(self._list_users()) >= MAX_USERS:', 'False:', TRUST),
        ('trust_owner', _TRUST, 'set(record.roles) - {OWNER}', 'set(record.roles)', TRUST),
        ('trust_owner_given', _CALLER, 'if isinstance(roles, str) or OWNER in roles:', 'if False:', TRUST),
        ('trust_myself', _TRUST, "if user_id == self.identity.user_id:\n            raise ValueError('my own user is", "if False:\n            raise ValueError('my own user is", TRUST),
        ('trust_file_name', _TRUST, 'if record.user_id != user_id:', 'if False:', TRUST),
        ('trust_certificate', _TRUST, '    if found != record.user_id:\n', '    if False:\n', TRUST),
        ('trust_broken_own', _TRUST, '                users.pop(user_id, None)\n', '', TRUST),
        ('trust_settled', _TRUST, 'abs(time.time_ns() - stamp[0]) > _SETTLED_NS', 'True', TRUST),
        ('trust_same', _TRUST, 'users = users if loaded == users else loaded', 'users = loaded', TRUST),
        ('trust_older_tombstone', _TRUST, 'max(epochs.get(match[1], 0), int(match[2]))', 'int(match[2])', TRUST),
        ('trust_in_place', _TRUST, 'and time.monotonic() < state.look_at', '', TRUST),
        ('trust_opened_up', _TRUST, '            check_private(self.directory, os.stat(self.directory))\n', '', TRUST),
        ('trust_chain', _TRUST, 'denied.add(successor.machine_id)', 'pass', TRUST),
        ('trust_spare', _TRUST, 'if since and at - max(since) < _ROTATION_PERIOD:', 'if False:', TRUST),
        ('identity_trust', _IDENTITY, 'if trust.exists() and any(trust.iterdir()):', 'if False:', IDENTITY),
        ('private_regular', _PRIVATE, '    if not stat.S_ISREG(found.st_mode):\n', '    if False:\n', TRUST),
        ('certificate_odd_name', 'pki', '        TypeError,  # a known one that does not go with the kind of name\n', '', PKI),
        ('caller_expired', _CALLER, " or time.time() > connection['_valid_until']:", ':', CALLER),
        ('trust_controls', _TRUST, '            check_name(text)\n', '            pass\n', TRUST),
        ('trust_fields', _TRUST, 'class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True)', 'class _Record(msgspec.Struct, frozen=True)', TRUST),
        ('trust_context', _TRUST, 'source = (users, _stamp(path))', 'source = (_stamp(path),)', TRUST),
        ('trust_renewed', _TRUST, 'source = (users, _stamp(path))', 'source = (users,)', TRUST),
        # --- who is calling
        ('caller_denied', _CALLER, 'if ids.machine_id in user.denied:', 'if False:', CALLER),
        ('caller_issued', _CALLER, '    ids = pki.check_issued_by(cert_der, user.ca_cert)\n', '    ids = claimed\n', CALLER),
        ('caller_overflow', _CALLER, 'if uid == OVERFLOW_UID:', 'if False:', CALLER),
        ('caller_uid', _CALLER, 'if uid == own_uid else', 'if True else', CALLER),
        ('caller_group_overflow', _CALLER, 'if gid == OVERFLOW_GID:', 'if False:', GROUPS),
        ('caller_group_owner', _CALLER, '| check_given_roles(roles)', '| frozenset(roles)', GROUPS),
        ('caller_group_kept', _CALLER, "os.geteuid(), connection['_local_roles'])", 'os.geteuid())', GROUPS),
        ('caller_each_request', _CALLER, "if users is not connection['_users'] or", 'if', CALLER),
        ('caller_behind_node', _CALLER, 'if not self._is_behind_node:', 'if False:', CALLER),
        ('caller_word_of_owner', _CALLER, 'if OWNER not in peer.roles:', 'if False:', CALLER),
        ('caller_close', _CALLER, "headers = {'connection': 'close', ", 'headers = {', CALLER),
        ('server_machine', _DIAL, '    if found != expected:\n', '    if False:\n', DIAL),
        ('server_other', _DIAL, '            _check_id(peer.machine_id, self.machine_id)\n', '', DIALER),
        ('server_denied', _DIAL, 'derive_machine(connection.peer_certificate, self._trust.users())', 'pki.parse_machine_cert(connection.peer_certificate)', DIALER),
        # --- renewal
        ('renewal_user', _RENEWAL, 'if peer.kind is not PeerKind.MACHINE or peer.user_id != self._identity.user_id:', 'if False:', RENEWAL),
        ('renewal_method', _RENEWAL, "if request['method'] != 'POST':", 'if False:', RENEWAL),
        ('renewal_size', _RENEWAL, 'if body.content_length > MAX_CERTIFICATE_SIZE:', 'if False:', RENEWAL),
        ('renewal_clock', _RENEWAL, '    pki.check_valid(content, read_clock(now))\n', '', RENEWAL),
        ('trust_put_back_denied', _TRUST, 'record, denied=current.denied', 'record', TRUST),
        ('trust_put_back_ids', _TRUST, 'denied=current.denied, successors=current.successors', 'denied=current.denied', TRUST),
        ('trust_put_back_own', _TRUST, 'keeps = bool(current.denied or current.successors)', 'keeps = False', TRUST),
        ('trust_put_back_same', _TRUST, 'if record != current:', 'if True:', TRUST),
        ('renewal_retire', _RENEWAL, "                self._trust.retire(str(peer.machine_id))\n", '', RENEWAL),
        ('renewal_csr', 'pki', '    if not csr.is_signature_valid:\n', '    if False:\n', RENEWAL),
        # --- moving files
        ('files_pack_without_end', _REMOTE, 'if packed.status == NOT_IN_PACK and number == 0:', 'if False:', FETCH_ATTACKED),
        ('files_links_followed', _PATHS, 'os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC\n', 'os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC\n', FETCH_ATTACKED),
        ('files_pack_root', _REMOTE, 'build_manifest(packed.content).root != packed.root', 'False', MIRRORS),
        ('files_block', _PARTIAL, '        if not self.manifest.matches(index, block):\n            return False\n        write_at', '        write_at', MIRRORS),
        ('files_run_again', _RECEIVE, 'first = content.skip(run.first, run.last)', 'first = run.first', MIRRORS),
        ('files_lost', _BOARD, '            self._good.remove(source)\n', '            pass\n', BOARD),
        ('files_attempts', _BOARD, 'download.attempts = 0', 'pass', BOARD),
        ('files_leader', _BOARD, 'if source == self._good[0]:', 'if True:', BOARD),
        ('files_put_back', _BOARD, 'job.download.runs.appendleft((job.first, job.last))', 'pass', BOARD),
        ('files_note_before_data', _PARTIAL, '        os.fdatasync(self._temporary.fd)\n', '', KILLED),
        ('files_note_unread', _PARTIAL, 'if not self._noted[index]:', 'if True:', KILLED),
        ('files_sync_content', _COMMIT, '            for fd in descriptors:\n                os.fsync(fd)\n', '', KILLED),
        ('files_sync_names', _COMMIT, '                    self._unsynced.add(above)\n', '', KILLED),
        ('files_recover', _FETCH, '        self._workspace.recover()\n', '', KILLED),
    )
]  # fmt: skip


def run_tests(place: Path, files: list[str]) -> int | None:
    """Run the tests in the copy and return pytest's status, None if they hang."""
    command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider']
    command += [find_tests(file) for file in files]
    # This copy of the core, not the one that is installed; also in the processes of the tests.
    environment = {**os.environ, 'PYTHONPATH': str(place), 'PYTHONDONTWRITEBYTECODE': '1'}
    process = subprocess.Popen(
        command,
        cwd=place,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(TIMEOUT_S if len(files) == 1 else None)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes of its tests
        process.wait()
        return None


def try_mutation(place: Path, mutation: Mutation) -> str:
    """Mutate, test and put back; return what came of it."""
    path = place / mutation.source
    source = path.read_text()
    if source.count(mutation.old) != 1:
        return f'BROKEN: its text is there {source.count(mutation.old)} times'
    path.write_text(source.replace(mutation.old, mutation.new))
    try:
        status = run_tests(place, [mutation.tests])
    finally:
        path.write_text(source)
    if status == 0:
        return 'SURVIVED'
    # 1 is a failed test; else nothing was tested.
    return 'noticed' if status in (1, None) else f'BROKEN: pytest ended with {status}'


def main(words: list[str]) -> int:
    """Try the mutations whose name has one of `words`, or all; return the exit status."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        for name in ('degu', 'degu_rpc', 'tests'):
            shutil.copytree(PROJECT / name, place / name)
        shutil.copy(PROJECT / 'pyproject.toml', place)
        if run_tests(place, sorted({mutation.tests for mutation in chosen})) != 0:
            print('the tests fail without a mutation')
            return 1
        bad = 0
        for mutation in chosen:
            started = time.monotonic()
            outcome = try_mutation(place, mutation)
            bad += outcome != 'noticed'
            took_s = time.monotonic() - started
            print(f'{outcome}  {mutation.name}  {took_s:.0f} s  {mutation.tests}', flush=True)
    print(f'{len(chosen)} mutations, {bad} not noticed')
    return 1 if bad else 0


if __name__ == '__main__':
    raise SystemExit(main(sys.argv[1:]))
