"""The source's half of a delta: say how a file is cut, while it is cut (see cuts.py)."""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING

from degu_rpc.files.content import FileReader, signature_of
from degu_rpc.files.cuts import cut_content, format_chunk, format_size
from degu_rpc.files.limits import CHUNK_SIZE, HEARTBEAT_S

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator

    from degu_rpc.files.content import Hashed


def stream_cuts(file: io.FileIO, hashed: Hashed, release: Callable[[], object]) -> Iterator[bytes]:
    """Yield the list of a file in pieces, at least one every HEARTBEAT_S, and the empty one.

    The last piece is left out if the file has changed. `release` is called before it. The file is
    held until then, whoever else lets go of it. Raises OSError.
    """
    size = hashed.signature.size
    piece = bytearray(format_size(size))
    sent_at = monotonic()
    try:
        for chunk in cut_content(FileReader(file.fileno(), size), size):
            if len(piece) >= CHUNK_SIZE or monotonic() - sent_at >= HEARTBEAT_S:
                yield bytes(piece)
                piece.clear()
                sent_at = monotonic()
            piece += format_chunk(chunk)
        unchanged = signature_of(os.fstat(file.fileno())) == hashed.signature
    finally:
        release()
    if unchanged:
        yield bytes(piece)
    yield b''
