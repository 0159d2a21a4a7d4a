"""Request and response bodies: what arrives, and what is sent.

`Input` and `ChunkedInput` take their bytes from a connection, piece by piece, as the program asks
for them. `Output`, `ChunkedOutput` and `FileOutput` wrap what a program wants to send. A body can
be read or sent once; the two that arrive can be sent on as they are, which is all a proxy does.

Memory never follows a claimed length: no piece is larger than 1 MiB and no chunk larger than its
limit, and a buffer grows only by bytes that are there.

A body belongs to the thread that uses its connection.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from degu import wire
from degu.channel import CHUNK, MAX_PIECE
from degu.errors import (
    BodyClosedError,
    BodyTooLargeError,
    OverFlowError,
    ProtocolError,
    UnderFlowError,
)
from degu.limits import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeAlias

    from degu.channel import Channel

    Data: TypeAlias = bytes | bytearray | memoryview
    Chunk: TypeAlias = Data | tuple[bytes | None, Data]

MAX_READ = 16 * MIB
"""What `ChunkedInput.read()` takes unless it is told another bound."""
_LEAST_CHUNK = 5  # what a chunk takes beside its data: a digit and twice CRLF
JOIN_SIZE = 64 * KIB
"""Up to this size a body leaves in one buffer with what goes before it."""


# --- bodies that arrive --------------------------------------------------------------------------


class Input:
    """A body of a known length, read from a connection.

    `.content_length` and `.remaining` are bytes; `.closed` is true once the end was read or the
    connection failed; `.error` is that failure.
    """

    __slots__ = ('_channel', 'closed', 'content_length', 'error', 'remaining')
    chunked: ClassVar[bool] = False

    def __init__(self, reader: Channel, content_length: int) -> None:
        self._channel = reader
        self.content_length = content_length
        self.remaining = content_length
        self.closed = False
        self.error: BaseException | None = None

    def __repr__(self) -> str:
        return f'Input({self.remaining} of {self.content_length} bytes unread)'

    def read(self, size: int | None = None) -> bytes:
        """Read `size` bytes, or up to the end when there are fewer or `size` is None; b'' after it.

        Raises UnderFlowError where the peer stops early, PeerTimeoutError, OSError, BodyClosedError
        after such a failure, ValueError for a negative size.
        """
        remaining = self.remaining
        if size is None or size > remaining:
            size = remaining
        elif size < 0:
            raise ValueError(f'size must be None or 0 and above, not {size!r}')
        if self.closed:
            if not size:
                return b''
            raise BodyClosedError(self)
        channel = self._channel
        if len(channel.buffered) == size == remaining:  # a small body that came with its preamble
            data = channel.buffered
            channel.buffered = b''
            self.remaining = 0
            self.closed = True
            return data
        try:
            data = channel.read(size)
            self.remaining = remaining - len(data)
            if len(data) < size:
                raise self._underflow()
        except BaseException as error:
            self._fail(error)
            raise
        if size == remaining:
            self.closed = True
        return data

    def _underflow(self) -> UnderFlowError:
        return UnderFlowError(self.content_length - self.remaining, self.content_length)

    def _fail(self, error: BaseException) -> None:
        self.closed = True
        self.error = error
        self._channel.fail_body()

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill `buffer`, or as much as there is left for it; return how many bytes, 0 at the end.

        Raises what read() raises.
        """
        view = memoryview(buffer).cast('B')[: self.remaining]
        if view and self.closed:
            raise BodyClosedError(self)
        filled = 0
        try:
            while filled < len(view):
                count = self._channel.read_into(view[filled:])
                if not count:
                    raise self._underflow()
                filled += count
                self.remaining -= count
        except BaseException as error:
            self._fail(error)
            raise
        if not self.remaining:
            self.closed = True
        return filled

    def drain(self, max_size: int) -> bool:
        """Read and drop the rest; False, with nothing read, if that is more than `max_size` bytes.

        False too after a failure. Raises what read() raises.
        """
        if not self.closed and self.remaining <= max_size:
            self.read()
        return self.closed and self.error is None

    def __iter__(self) -> Iterator[bytes]:
        """Yield the rest in pieces of up to 1 MiB; BodyClosedError at once if it was used."""
        if self.closed:
            raise BodyClosedError(self)
        return self._iterate()

    def _iterate(self) -> Iterator[bytes]:
        while self.remaining:
            if self.closed:
                raise BodyClosedError(self)
            try:
                data = self._channel.read_some(min(self.remaining, MAX_PIECE))
                if not data:
                    raise self._underflow()
            except BaseException as error:
                self._fail(error)
                raise
            self.remaining -= len(data)
            yield data
        self.closed = True


class ChunkedInput:
    """A body in chunks, read from a connection.

    `.closed` is true once the last chunk was read or the connection failed; `.extension` is the
    extension of the chunk just read, b'name=value' or None; `.error` is what ended the body early.
    """

    __slots__ = ('_channel', '_received', 'closed', 'error', 'extension')
    chunked: ClassVar[bool] = True

    def __init__(self, reader: Channel) -> None:
        self._channel = reader
        self._received = 0
        self.closed = False
        self.error: BaseException | None = None
        self.extension: bytes | None = None

    def __repr__(self) -> str:
        return f'ChunkedInput({"closed" if self.closed else "open"})'

    def readchunk(self) -> bytes:
        """Read the data of the next chunk; b'' is the last one's.

        Raises BodyClosedError after the last one, UnderFlowError where the peer stops early,
        ProtocolError where it leaves the grammar or a limit, PeerTimeoutError, OSError.
        """
        return self._read_chunk(self._channel.limits.max_chunk)

    def _read_chunk(self, max_chunk: int) -> bytes:
        if self.closed:
            raise BodyClosedError(self)
        try:
            data = self._parse_chunk(max_chunk)
        except BaseException as error:
            self.closed = True
            self.error = error
            self._channel.fail_body()
            raise
        self._received += len(data)
        if not data:
            self.closed = True
        return data

    def _parse_chunk(self, max_chunk: int) -> bytes:
        # Small chunks come by the dozen in one receive, and each that is whole is cut out at once.
        channel = self._channel
        buffered = channel.buffered
        match = wire.match_chunk_start(buffered)
        if match is not None and match.end() <= channel.limits.max_chunk_line + 2:
            size = int(match[1], 16)
            start = match.end()
            end = start + size
            if size <= max_chunk and buffered[end : end + 2] == b'\r\n':
                self.extension = match[2]
                channel.buffered = buffered[end + 2 :]
                channel.give_way(CHUNK)
                return buffered[start:end]
        return self._receive_chunk(max_chunk)

    def _receive_chunk(self, max_chunk: int) -> bytes:
        line = self._channel.read_line(self._channel.limits.max_chunk_line)
        if line is None:
            raise UnderFlowError(self._received, None)
        size, self.extension = wire.parse_chunk_line(line, max_chunk)
        data = self._channel.read(size)
        if len(data) < size:
            raise UnderFlowError(self._received + len(data), self._received + size)
        end = self._channel.read(2)  # by itself: to cut it off a large chunk would be a copy
        if len(end) < 2:
            raise UnderFlowError(self._received + size, None)
        if end != b'\r\n':
            raise ProtocolError(
                'the data of a chunk must end with CR LF, and a body with no trailer'
            )
        return data

    def read(self, max_size: int = MAX_READ) -> bytes:
        """Read the data of all chunks that are left, at most `max_size` bytes.

        Raises BodyTooLargeError beyond that, and what readchunk() raises.
        """
        if self.error is not None:
            raise BodyClosedError(self)
        max_chunk = self._channel.limits.max_chunk
        gathered = bytearray()
        while not self.closed:
            room = max_size - len(gathered)
            try:
                gathered += self._read_chunk(min(max_chunk, room))
            except ProtocolError as error:
                if error.status != 413 or room >= max_chunk:
                    raise
                self.error = BodyTooLargeError(max_size)
                raise self.error from None
        return bytes(gathered)

    def drain(self, max_size: int) -> bool:
        """Read and drop the rest; False if that is more than `max_size` bytes, or after a failure.

        False too for what is outside the grammar: the response is out already, so nobody could be
        told. Raises UnderFlowError, PeerTimeoutError, OSError.
        """
        size_left = lines_left = max_size
        while not self.closed:
            try:
                size_left -= len(self._read_chunk(size_left))
                lines_left -= len(self.extension or b'') + _LEAST_CHUNK
            except ProtocolError:
                break
            if lines_left < 0:
                break
        return self.closed and self.error is None

    def __iter__(self) -> Iterator[bytes]:
        """Yield the data of each chunk, the last one's b'' included.

        Raises BodyClosedError at once if it was used.
        """
        if self.closed:
            raise BodyClosedError(self)
        return self._iterate()

    def _iterate(self) -> Iterator[bytes]:
        while not self.closed:
            yield self.readchunk()


# --- bodies that are sent ------------------------------------------------------------------------


class Output:
    """A body of a known length from any iterable of bytes."""

    __slots__ = ('closed', 'content_length', 'source')
    chunked: ClassVar[bool] = False

    def __init__(self, source: Iterable[Data], content_length: int) -> None:
        _check_length(content_length)
        self.source = source
        self.content_length = content_length
        self.closed = False

    def __repr__(self) -> str:
        return f'Output({self.content_length} bytes)'

    def __iter__(self) -> Iterator[Data]:
        """Yield what the source yields; BodyClosedError at once if it was used.

        Raises OverFlowError before a piece that would be too much, UnderFlowError at an early end.
        """
        if self.closed:
            raise BodyClosedError(self)
        self.closed = True
        return self._iterate()

    def _iterate(self) -> Iterator[Data]:
        size = 0
        for item in self.source:
            data = item if type(item) is bytes else memoryview(item).cast('B')
            size += len(data)
            if size > self.content_length:
                raise OverFlowError(size, self.content_length)
            yield data
        if size < self.content_length:
            raise UnderFlowError(size, self.content_length)


class ChunkedOutput:
    """A body in chunks from any iterable of bytes, or of (extension, bytes).

    The source's last item, and no other, must be empty: it proves that the source came to its end.
    """

    __slots__ = ('closed', 'source')
    chunked: ClassVar[bool] = True

    def __init__(self, source: Iterable[Chunk]) -> None:
        self.source = source
        self.closed = False

    def __repr__(self) -> str:
        return f'ChunkedOutput({"closed" if self.closed else "open"})'

    def __iter__(self) -> Iterator[tuple[bytes | None, Data]]:
        """Yield (extension or None, data); BodyClosedError at once if it was used.

        Raises OverFlowError for an item after the empty one, UnderFlowError if there is none.
        """
        if self.closed:
            raise BodyClosedError(self)
        self.closed = True
        return self._iterate()

    def _iterate(self) -> Iterator[tuple[bytes | None, Data]]:
        size = 0
        ended = False
        for item in self.source:
            extension, data = item if isinstance(item, tuple) else (None, item)
            if type(data) is not bytes:
                data = memoryview(data).cast('B')
            size += len(data)
            if ended:
                raise OverFlowError(size, size - len(data))
            ended = not data
            yield extension, data
        if not ended:
            raise UnderFlowError(size, None)


class FileOutput:
    """A body from an open file, from its current position. The kernel sends it where it can."""

    __slots__ = ('closed', 'content_length', 'fp')
    chunked: ClassVar[bool] = False

    def __init__(self, fp: BinaryIO, content_length: int) -> None:
        _check_length(content_length)
        self.fp = fp
        self.content_length = content_length
        self.closed = False

    def __repr__(self) -> str:
        return f'FileOutput({self.content_length} bytes)'

    def __iter__(self) -> Iterator[bytes]:
        """Yield the file in pieces of up to 1 MiB; BodyClosedError at once if it was used.

        Raises UnderFlowError if the file is shorter, OSError.
        """
        if self.closed:
            raise BodyClosedError(self)
        self.closed = True
        return self._iterate()

    def _iterate(self) -> Iterator[bytes]:
        missing = self.content_length
        while missing:
            data = self.fp.read(min(missing, MAX_PIECE))
            if not data:
                raise UnderFlowError(self.content_length - missing, self.content_length)
            missing -= len(data)
            yield data


AnyBody = Input | ChunkedInput | Output | ChunkedOutput | FileOutput
Body = bytes | bytearray | AnyBody | None
# As tuples for isinstance(): a union would be built anew at every call.
_BYTES = (bytes, bytearray)
_CHUNKED = (ChunkedInput, ChunkedOutput)
_BODIES = (Input, ChunkedInput, Output, ChunkedOutput, FileOutput)


def _check_length(content_length: object) -> None:
    if not isinstance(content_length, int) or isinstance(content_length, bool):
        raise TypeError(f'content_length must be an int, not {content_length!r}')
    if not 0 <= content_length < 10**16:
        raise ValueError(f'content_length must be 0 or up to 16 digits, not {content_length!r}')


# --- how a message is written --------------------------------------------------------------------


def body_length(body: Body) -> int | None:
    """Return the length to announce: None without a body, `wire.CHUNKED`, or bytes.

    Raises TypeError for what is no body, BodyClosedError for one that was used.
    """
    if body is None:
        return None
    if isinstance(body, _BYTES):
        return len(body)
    if isinstance(body, _BODIES):
        if body.closed:
            raise BodyClosedError(body)
        if isinstance(body, Input):
            return body.remaining
        return wire.CHUNKED if isinstance(body, _CHUNKED) else body.content_length
    raise TypeError(
        'a body must be None, bytes, bytearray, Output, ChunkedOutput, FileOutput, Input or '
        f'ChunkedInput, not {type(body).__name__}'
    )


def close_source(body: Body) -> None:
    """Close what an Output or ChunkedOutput takes its data from, if that can be closed."""
    if isinstance(body, (Output, ChunkedOutput)):
        close = getattr(body.source, 'close', None)
        if close is not None:
            close()


def write_message(channel: Channel, preamble: bytes, body: Body) -> None:
    """Write a preamble and its body; small ones leave in one buffer.

    Raises what the body's source raises, OverFlowError, UnderFlowError, ValueError for a chunk
    outside the limits, PeerTimeoutError, OSError. After any of them the message is incomplete and
    the connection must be closed.
    """
    if body is None:
        channel.write(preamble)
    elif isinstance(body, _BYTES):
        if len(body) <= JOIN_SIZE:
            channel.write(preamble + body)
        else:
            channel.write(preamble)
            channel.write(body)
    elif isinstance(body, ChunkedInput):
        channel.write(preamble)
        _write_chunks(channel, ((body.extension, data) for data in body))
    elif isinstance(body, ChunkedOutput):
        channel.write(preamble)
        _write_chunks(channel, body)
    elif isinstance(body, FileOutput) and channel.can_send_files and _is_real_file(body.fp):
        channel.write(preamble)
        _send_file(channel, body)
    else:
        _write_pieces(channel, preamble, body)


def _write_pieces(channel: Channel, start: bytes, pieces: Iterable[Data]) -> None:
    """Write the pieces, the first together with `start` if both are small."""
    for piece in pieces:
        if start and len(piece) <= JOIN_SIZE:
            channel.write(start + piece)
        else:
            if start:
                channel.write(start)
            channel.write(piece)
        start = b''
    if start:
        channel.write(start)


def _write_chunks(channel: Channel, chunks: Iterable[tuple[bytes | None, Data]]) -> None:
    for extension, data in chunks:
        line = wire.format_chunk_line(len(data), extension, channel.limits)
        if len(data) <= JOIN_SIZE:
            channel.write(b''.join((line, data, b'\r\n')))
        else:
            channel.write(line)
            channel.write(data)
            channel.write(b'\r\n')


def _is_real_file(fp: BinaryIO) -> bool:
    # Not whatever has a fileno(): that of a gzip file is the compressed one's.
    return isinstance(getattr(fp, 'raw', fp), io.FileIO) and fp.seekable()


def _send_file(channel: Channel, body: FileOutput) -> None:
    body.closed = True
    offset = body.fp.tell()
    sent = channel.send_file(body.fp, offset, body.content_length)
    body.fp.seek(offset + sent)
    if sent < body.content_length:
        raise UnderFlowError(sent, body.content_length)
