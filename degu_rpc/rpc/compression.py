"""gzip, for peers that ask for it. PURE.

A message is compressed as a whole and by itself. What it becomes is bounded while it is unpacked:
4 KiB can claim to be 4 MiB, and 4 MiB to be 4 GiB.
"""

from __future__ import annotations

import re
import zlib

from degu_rpc.errors import Code, CodecError, Fault, RpcError

GZIP = 'gzip'
IDENTITY = 'identity'
ENCODINGS = f'{GZIP}, {IDENTITY}'

_GZIP_WINDOW = 31  # zlib's largest window, and a gzip header
_FAST = 1  # a local network is faster than the better levels
_REFUSED = re.compile(r'q=0(?:\.0*)?').fullmatch


def compress(data: bytes) -> bytes:
    """Return `data` as gzip, the same for the same data."""
    return zlib.compress(data, _FAST, _GZIP_WINDOW)


def decompress(data: bytes, max_size: int) -> bytes:
    """Return what is in gzip `data`. Nothing is not compressed: b'' stays b''.

    Raises RpcError (`resource_exhausted`) for more than `max_size` bytes, CodecError for what is
    not exactly one gzip member.
    """
    if not data:
        return b''
    stream = zlib.decompressobj(_GZIP_WINDOW)
    try:
        message = stream.decompress(data, max_size + 1)
    except zlib.error as error:
        raise CodecError(Fault('$', f'not acceptable gzip: {error}')) from None
    if len(message) > max_size:
        raise RpcError(
            Code.RESOURCE_EXHAUSTED, f'the message is larger than {max_size} bytes once unpacked'
        )
    if not stream.eof or stream.unused_data:
        raise CodecError(Fault('$', 'not acceptable gzip: cut short, or with something behind it'))
    return message


def accepts_gzip(accepted: str | None, used: str) -> bool:
    """Tell whether a peer takes gzip that sent `accepted` as its header and itself uses `used`.

    Source: Connect protocol, Accept-Encoding; RFC 9110 §12.5.3 for `q=0`.

    >>> accepts_gzip('br, gzip;q=0.5', 'identity'), accepts_gzip(None, 'identity')
    (True, False)
    """
    if accepted is None:
        return used == GZIP
    for item in accepted.split(','):
        name, _, parameter = item.partition(';')
        if name.strip().lower() == GZIP:
            return not _REFUSED(parameter.strip())
    return False
