"""One connected socket: buffered reads, whole writes, and the time limits on both.

1. `read_preamble()` waits for the first byte as long as a peer may idle, then for the rest as long
   as a preamble may take. Whatever came behind the empty line stays in the buffer.
2. The bodies take from that buffer first and from the socket after it, never past their own end.
3. Writes loop until everything is out.

Inside a body a peer is judged by what it moves in the time we wait for it (`Pace`). No clock is
read as long as one receive or one send is enough, which is the case for every small message.
Whoever uses the channel can end all waits at a point in time of its own: `set_deadline()`.

A channel belongs to the one thread that serves or uses its connection; others may interrupt() it.
It knows nothing of HTTP but where a preamble and a line end.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import ssl
import threading
from time import monotonic, sleep
from typing import TYPE_CHECKING, BinaryIO

from degu.errors import ClosedConnectionError, PeerTimeoutError, ProtocolError
from degu.limits import KIB, MIB
from degu.net import WAIT_ENDED, Deadline, set_timeout

if TYPE_CHECKING:
    from degu.limits import Limits

RECEIVE_SIZE = 16 * KIB
"""How much is asked for where the size is not known (preambles, chunk lines), and over TLS, where a
receive brings one record at most. Source: RFC 8446 §5.1."""
MAX_PIECE = 1 * MIB
"""How much of a body is moved by one call, so that memory never follows a claimed size."""
_AROUND = 1 * KIB
"""A little more may be received by one call: a piece in an envelope is not to need two."""
TLS_PIECE = 256 * KIB
"""The same for a write over TLS. OpenSSL does not say how far it came with a piece, so a peer must
take a whole one within a window; smaller ones would be kinder to slow peers, and slower for all."""
LINGER_SIZE = 64 * KIB
LINGER_TIMEOUT_S = 1.0
"""How much, and for how long, the peer may still send while we close."""
LOOK_INTERVAL_S = 0.01
"""How often one who still writes looks for an answer, at most."""

_SLACK = 1.03
_HALF_SLACK = 1.015
_TURN = 64
_PREAMBLE = 8
CHUNK = 1
"""How much a thread may take from its buffer before others have a turn, and what counts how much.
Both take about the same time: a turn costs 70 us, and a stream of small chunks 3 us for each."""
_DONT_WAIT = int(socket.MSG_DONTWAIT)
_BARE_CR_OR_LF = re.compile(rb'(?<!\r)\n|\r(?!\n|\Z)').search


class Pace:
    """Judge a peer by the bytes it moved while we waited for it; our own pauses do not count."""

    __slots__ = ('_moved', '_rate', '_window_s', 'step_s', 'waited_s')

    def __init__(self, limits: Limits) -> None:
        self._rate = limits.min_body_rate
        self._window_s = limits.body_window_s
        self.step_s = limits.body_window_s / 32
        self.begin()

    def begin(self) -> None:
        """Begin anew: small waits of many bodies must not add up to a slow one."""
        self.waited_s = 0.0
        self._moved = 0

    def add(self, waited_s: float, moved: int) -> None:
        """Count one wait. Raises PeerTimeoutError when a window ends with too few bytes."""
        self.waited_s += waited_s
        self._moved += moved
        if self.waited_s >= self._window_s:
            if self._moved < self._rate * self._window_s:
                raise PeerTimeoutError(
                    f'a body must move at least {self._rate} bytes/s', self._window_s
                )
            self.begin()

    def next_wait_s(self) -> float:
        """Return how long the next wait may be: to the end of the window, in coarse steps.

        The steps keep the socket's timeout from being set anew at every receive.
        """
        return self._window_s - int(self.waited_s / self.step_s) * self.step_s


class AnsweredEarlyError(Exception):
    """The peer answers, or has gone, while we still write: nobody reads the rest."""


class Channel:
    """One connection's bytes, in and out."""

    # Set once: sock, limits, _closes_after_failed_body, _recv, _recv_into, _send, _is_plain,
    # _piece, _max_receive, _wait_all, _idle_s, _closing.
    # Changed by the one thread that uses the channel: buffered, write_error, stops_when_answered,
    # deadline, chunk_gap_s, _wait_s, _has_waited, _pace, _taken.
    __slots__ = (
        '_closes_after_failed_body',
        '_closing',
        '_has_waited',
        '_idle_s',
        '_is_plain',
        '_max_receive',
        '_pace',
        '_piece',
        '_recv',
        '_recv_into',
        '_send',
        '_taken',
        '_wait_all',
        '_wait_s',
        'buffered',
        'chunk_gap_s',
        'deadline',
        'limits',
        'sock',
        'stops_when_answered',
        'write_error',
    )

    def __init__(
        self, sock: socket.socket, limits: Limits, *, closes_after_failed_body: bool = False
    ) -> None:
        """Take a connected socket, which a body that fails may close."""
        self.sock = sock
        self.limits = limits
        self._closes_after_failed_body = closes_after_failed_body
        self._recv = sock.recv
        self._recv_into = sock.recv_into
        self._send = sock.send
        self._is_plain = not isinstance(sock, ssl.SSLSocket)
        self._piece = MAX_PIECE if self._is_plain else TLS_PIECE
        self._max_receive = MAX_PIECE + _AROUND if self._is_plain else RECEIVE_SIZE
        self._wait_all = int(socket.MSG_WAITALL) if self._is_plain else 0
        self._idle_s = limits.idle_timeout_s
        self.chunk_gap_s = limits.chunk_gap_timeout_s
        """How long a chunk may take to begin; None judges it like any other wait in a body."""
        self.write_error: OSError | None = None
        """What a write, or a look for an answer ahead of one, failed with, to tell it from what the
        source of a body failed with."""
        self.buffered = b''
        """What was received and nobody asked for yet."""
        self.stops_when_answered = False
        """Whether a write that waits looks for the peer's answer: see check_unanswered()."""
        self.deadline: Deadline | None = None
        """When every wait ends, however long the limits would let it be; see set_deadline()."""
        self._pace = Pace(limits)
        self._wait_s = 0.0
        self._set_wait(self._idle_s)
        self._closing = threading.Lock()  # so that interrupt() never meets another's descriptor
        self._has_waited = False  # since the last preamble, elsewhere than for a preamble to begin
        self._taken = 0  # of what was in the buffer already

    def set_deadline(self, deadline: Deadline | None) -> None:
        """End each wait, to read or to write, at `deadline` at the latest: PeerTimeoutError then.

        It stays until it is set anew; None takes it away.
        """
        self.deadline = deadline

    def is_peer_gone(self) -> bool:
        """Look, without waiting, whether the peer has ended its side of the connection, or all.

        What it sent before that may still be unread. Source: poll(2), POLLRDHUP.
        """
        poller = select.poll()
        poller.register(self.sock, select.POLLRDHUP)  # errors and hang-ups are always told
        return bool(poller.poll(0))

    def _set_wait(self, timeout_s: float) -> None:
        self._has_waited = True
        if self.deadline is not None:
            left = self.deadline.remaining()
            if not left:
                raise PeerTimeoutError('a deadline', self.deadline.timeout_s)
            if left < timeout_s:
                # The same deadline message after message needs no new timeout of the socket each
                # time: one that is a little too long does.
                if left <= self._wait_s <= left * _SLACK:
                    return
                timeout_s = left * _HALF_SLACK
        if timeout_s != self._wait_s:
            set_timeout(self.sock, timeout_s)
            self._wait_s = timeout_s

    # --- reading ---------------------------------------------------------------------------------

    def read_preamble(self) -> bytes | None:
        """Read to the next empty line and return what is before it; None if the peer closed.

        Raises PeerTimeoutError, ProtocolError (431, or a bare CR or LF; what there is of the
        preamble is in `buffered` then), ClosedConnectionError for an end in the middle, OSError.
        """
        if self._has_waited or self.deadline is not None:
            if self._pace.waited_s:
                self._pace.begin()
            self._set_wait(self._idle_s)
            self._has_waited = self.deadline is not None
        data = self.buffered
        if not data:
            try:
                data = self._recv(RECEIVE_SIZE)
            except WAIT_ENDED:
                raise self._explain_wait('idle between messages', self._idle_s) from None
            if not data:
                return None
        else:
            self.give_way(_PREAMBLE)
        preamble, found, self.buffered = data.partition(b'\r\n\r\n')
        if not found:
            preamble, _, self.buffered = self._complete_preamble(data).partition(b'\r\n\r\n')
        return preamble

    def _complete_preamble(self, start: bytes) -> bytes:
        deadline = Deadline(self.limits.preamble_timeout_s)
        max_size = self.limits.max_preamble + 3  # with the beginning of the empty line
        data = bytearray(start)
        searched = 0
        while data.find(b'\r\n\r\n', searched) < 0:
            # The empty line may never come if lines do not end as they must.
            if _BARE_CR_OR_LF(data, max(searched - 1, 0), max_size):
                self.buffered = bytes(data)
                raise ProtocolError('a line must end with CR LF, and neither may stand alone')
            if len(data) > max_size:
                self.buffered = bytes(data)
                raise ProtocolError(f'a preamble is at most {self.limits.max_preamble} bytes', 431)
            searched = max(len(data) - 3, 0)
            self._set_wait(max(deadline.remaining(), 0.001))
            try:
                more = self._recv(RECEIVE_SIZE)
            except WAIT_ENDED:
                more = None
            if deadline.remaining() == 0:
                raise PeerTimeoutError('a preamble in total', self.limits.preamble_timeout_s)
            if more == b'':
                raise ClosedConnectionError('the peer closed the connection inside a preamble')
            data += more or b''
        return bytes(data)

    def read(self, size: int) -> bytes:
        """Read `size` bytes of a body; fewer only at the end of the connection.

        Raises PeerTimeoutError, OSError.
        """
        data = self.buffered
        if len(data) > size:
            self.buffered = data[size:]
            return data[:size]
        self.buffered = b''
        if len(data) == size:
            return data
        received = self._receive(size - len(data), self._wait_all)
        if not received or len(data) + len(received) == size:
            return data + received  # no copy, where one of them is empty
        # Not a list: a received piece takes a page of memory, however small it is.
        gathered = bytearray(data)
        gathered += received
        while len(gathered) < size:
            data = self._receive(size - len(gathered), self._wait_all)
            if not data:
                break
            gathered += data
        return bytes(gathered)

    def read_some(self, size: int) -> bytes:
        """Read 1 to `size` bytes of a body; b'' at the end of the connection.

        Raises PeerTimeoutError, OSError.
        """
        data = self.buffered
        if not data:
            return self._receive(size)
        if len(data) <= size:
            self.buffered = b''
            return data
        self.buffered = data[size:]
        return data[:size]

    def read_into(self, view: memoryview) -> int:
        """Read 1 to `len(view)` bytes of a body into `view`; 0 at the end of the connection.

        Fewer than there is room for only where the peer is slow, or for what was buffered.

        Raises PeerTimeoutError, OSError.
        """
        if self.buffered:
            data = self.read_some(len(view))
            view[: len(data)] = data
            return len(data)
        return self._fill(view[:MAX_PIECE])

    def read_line(self, max_size: int) -> bytes | None:
        """Read to the next CRLF and return what is before it; None if the peer closed first.

        Raises ProtocolError for a line over `max_size` bytes, PeerTimeoutError, OSError.
        """
        data = self.buffered
        if data:
            self.give_way(CHUNK)
        else:
            data = self._await_chunk()
        while (end := data.find(b'\r\n')) < 0 and len(data) <= max_size + 1:
            more = self._receive(RECEIVE_SIZE)
            if not more:
                return None
            data += more
        if end < 0 or end > max_size:
            raise ProtocolError(f'a chunk line is at most {max_size} bytes')
        self.buffered = data[end + 2 :]
        return data[:end]

    def give_way(self, taken: int) -> None:
        """Let other threads run, now and then.

        A peer that is always ahead of us never makes its thread wait, and a thread that never waits
        gives up the interpreter only when it is made to, after 5 ms. Some dozens of such peers
        would keep all others waiting for seconds.
        """
        self._taken += taken
        if self._taken >= _TURN:
            self._taken = 0
            sleep(0)

    def _await_chunk(self) -> bytes:
        gap_s = self.chunk_gap_s
        if gap_s is None:
            return b''
        self._set_wait(gap_s)
        try:
            return self._recv(RECEIVE_SIZE)
        except WAIT_ENDED:
            raise self._explain_wait('the next chunk', gap_s) from None

    def _explain_wait(self, limit: str, timeout_s: float) -> PeerTimeoutError:
        """Build the error for one long wait that ran out: which of the two bounds it was."""
        if self.deadline is not None and self.deadline.timeout_s < timeout_s:
            return PeerTimeoutError('a deadline', self.deadline.timeout_s)
        return PeerTimeoutError(limit, timeout_s)

    def _receive(self, size: int, flags: int = 0) -> bytes:
        size = min(size, self._max_receive)
        while True:
            self._set_wait(self._pace.next_wait_s())
            started = monotonic()
            try:
                data = self._recv(size, flags)
            except WAIT_ENDED:
                data = None
            self._pace.add(monotonic() - started, len(data or b''))
            if data is not None:
                return data

    def _fill(self, view: memoryview) -> int:
        """Receive until `view` is full, the peer ends, or a step of its pace is over."""
        step_s = self._pace.step_s
        while True:
            self._set_wait(self._pace.next_wait_s())
            filled, count = 0, -1
            started = now = monotonic()
            try:
                while filled < len(view) and count and now - started < step_s:
                    count = self._recv_into(view[filled:], 0, self._wait_all)
                    filled += count
                    now = monotonic()
            except WAIT_ENDED:
                now = monotonic()
            self._pace.add(now - started, filled)
            if filled or not count:
                return filled

    def receive_early(self) -> bytes | None:
        """Look for what the peer sent unasked, without waiting: None if nothing, b'' if it closed.

        Whatever was found, the connection is of no use then. Raises OSError.
        """
        return self.buffered or self._receive_now()

    def _receive_now(self) -> bytes | None:
        try:
            if self._is_plain:
                return self._recv(RECEIVE_SIZE, _DONT_WAIT)
            self._set_wait(0.0)
            return self._recv(RECEIVE_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None

    def check_unanswered(self) -> None:
        """Look, without waiting, whether the peer answers what is still being written to it.

        What came stays in the buffer, for read_preamble(). Over TLS a session ticket may have come
        and nothing to read.

        Raises AnsweredEarlyError where that is more than a preamble, or the end of the connection,
        PeerTimeoutError where the deadline is over, OSError.
        """
        try:
            data = self._receive_now()
        except OSError as error:
            self.write_error = error
            raise
        self.buffered += data or b''
        is_too_long = len(self.buffered) > self.limits.max_preamble
        if data == b'' or is_too_long or self.buffered.partition(b'\r\n\r\n')[2]:
            raise AnsweredEarlyError
        if self.deadline is not None and not self.deadline.remaining():
            raise PeerTimeoutError('a deadline', self.deadline.timeout_s)

    # --- writing ---------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`. Raises PeerTimeoutError, OSError."""
        try:
            sent = 0
            if self._is_plain and len(data) <= MAX_PIECE:
                # Only what need not wait: the rest looks at the clock. TLS cannot tell the two.
                try:
                    sent = self._send(data, _DONT_WAIT)
                except WAIT_ENDED:
                    sent = 0
                if sent == len(data):
                    return
            self._write_paced(memoryview(data)[sent:])
        except OSError as error:
            self.write_error = error
            raise

    def _write_paced(self, view: memoryview) -> None:
        while view:
            wait_s = self._pace.next_wait_s()
            self._set_wait(min(wait_s, LOOK_INTERVAL_S) if self.stops_when_answered else wait_s)
            started = monotonic()
            try:
                sent = self._send(view[: self._piece])
            except WAIT_ENDED:
                sent = 0
            self._pace.add(monotonic() - started, sent)
            view = view[sent:]
            if self.stops_when_answered and not sent:
                self.check_unanswered()

    @property
    def can_send_files(self) -> bool:
        """Whether the kernel can send a file by itself: not where TLS encrypts it on the way."""
        return self._is_plain

    def send_file(self, fp: BinaryIO, offset: int, size: int) -> int:
        """Send `size` bytes of a file from `offset`; return how many there were.

        Raises PeerTimeoutError, OSError.
        """
        sent = 0
        try:
            while sent < size:
                self._set_wait(self._pace.next_wait_s())
                started = monotonic()
                try:
                    count: int | None = os.sendfile(
                        self.sock.fileno(), fp.fileno(), offset + sent, min(size - sent, MAX_PIECE)
                    )
                except WAIT_ENDED:
                    count = None
                self._pace.add(monotonic() - started, count or 0)
                if count == 0:
                    break
                sent += count or 0
        except OSError as error:
            self.write_error = error
            raise
        return sent

    # --- closing ---------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Wake the thread that waits for the peer; it then sees the end of the connection.

        Any thread may call this.
        """
        with self._closing, contextlib.suppress(OSError):  # already gone
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)  # as in end_writing()

    def end_writing(self) -> None:
        """Let the peer see the end of what we send; what it sent, or sends, can still be read."""
        with contextlib.suppress(OSError):  # already gone
            socket.socket.shutdown(self.sock, socket.SHUT_WR)  # SSLSocket's own lets go of TLS

    def __del__(self) -> None:
        # The last of connection and unread body to go takes the socket with it.
        if not self.closed:
            with contextlib.suppress(OSError):  # nobody could be told
                self.close()

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return self.sock.fileno() < 0

    def fail_body(self) -> None:
        """Close after a body that failed, unless there is somebody to tell.

        Not left to the collector: the error knows the frames that know the body, and the body knows
        its error.
        """
        if self._closes_after_failed_body:
            self.close()

    def close(self) -> None:
        """Close at once. The shutdown reaches the peer even if a forked process has a copy."""
        with contextlib.suppress(OSError):  # already gone
            self.sock.shutdown(socket.SHUT_RDWR)
        with self._closing:
            self.sock.close()
        self.write_error = None  # it knows its frames, and with them all that the caller has

    def close_orderly(self) -> None:
        """Close so that the peer can still read what it was sent.

        A close with unread bytes would make the kernel send a reset, which destroys what the peer
        has not read yet; so only the write side ends, and a bounded rest is read and dropped.
        SSLSocket.shutdown() lets go of TLS: no close_notify is sent, which is safe because every
        body has a length or is chunked, and what is dropped is not even decrypted.
        """
        with contextlib.suppress(OSError):  # the peer was faster, or took too long
            self.sock.shutdown(socket.SHUT_WR)
            deadline = Deadline(LINGER_TIMEOUT_S)
            drained = 0
            while drained < LINGER_SIZE and (left := deadline.remaining()):
                self.sock.settimeout(left)
                data = self.sock.recv(RECEIVE_SIZE)
                if not data:
                    break
                drained += len(data)
        self.sock.close()
