"""The messages of a stream, each in an envelope. PURE.

    envelope = flags length message        flags: 1 byte; length: 4 bytes, big-endian, of message

Source: Connect protocol, "Streaming-Request", Enveloped-Message. Of the flags two have a meaning,
`COMPRESSED` and `END`; the others must be unset.

A stream is written with one envelope a chunk, and read from bytes in any pieces: between two
machines there may be somebody who cuts them differently.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from degu_rpc.errors import Code, CodecError, Fault, RpcError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

COMPRESSED = 0x01
"""The flag of a message that is compressed, as the headers say how."""
END = 0x02
"""The flag of the last envelope of a response: not a result, but how the call ended."""

_HEADER = struct.Struct('>BI')
_FLAGS = frozenset({0, COMPRESSED, END, COMPRESSED | END})


def format_envelope(message: bytes, flags: int = 0) -> bytes:
    """Put a message into an envelope.

    >>> format_envelope(b'{}', END)
    b'\\x02\\x00\\x00\\x00\\x02{}'
    """
    return _HEADER.pack(flags, len(message)) + message


def parse_envelopes(pieces: Iterable[bytes], max_size: int) -> Iterator[tuple[int, bytes]]:
    """Yield flags and message of each envelope in `pieces`, as soon as it is whole.

    Raises RpcError (`resource_exhausted`) as soon as a message claims to be larger than `max_size`
    bytes, CodecError for flags without a meaning and for an end inside an envelope, and what the
    pieces raise.
    """
    buffer = bytearray()
    needed = header_size = _HEADER.size
    for piece in pieces:
        if not buffer and len(piece) >= header_size:
            # What we send ourselves: one envelope a piece.
            flags, size = _HEADER.unpack_from(piece)
            if len(piece) == header_size + size and size <= max_size and flags in _FLAGS:
                yield flags, piece[header_size:]
                continue
        buffer += piece
        while len(buffer) >= needed:
            flags, size = _HEADER.unpack_from(buffer)
            _check(flags, size, max_size)
            needed = _HEADER.size + size
            if len(buffer) >= needed:
                message = bytes(buffer[_HEADER.size : needed])
                del buffer[:needed]
                needed = _HEADER.size
                yield flags, message
    if buffer:
        raise CodecError(Fault('$', 'the stream ended inside an envelope'))


def _check(flags: int, size: int, max_size: int) -> None:
    if flags & ~(COMPRESSED | END):
        raise CodecError(Fault('$', f'the flags of an envelope are {flags:#04x}'))
    if size > max_size:
        raise RpcError(
            Code.RESOURCE_EXHAUSTED, f'a message of a stream is larger than {max_size} bytes'
        )
