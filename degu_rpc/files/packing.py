"""The source's half of a pack: read small files, each with the root of the bytes that were read.

Files are read one directory at a time, so a directory is walked to once. What goes wrong with one
file is said in its place, and the others come.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

from degu_rpc.errors import ContentChangedError, PathError
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.content import read_small
from degu_rpc.files.limits import PACK_SIZE
from degu_rpc.files.packs import NOT_IN_PACK, Packed
from degu_rpc.files.paths import NOT_THERE, Path, Root, open_file_in
from degu_rpc.files.xattrs import format_xattrs, read_xattrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def read_pack(root: Root, wanted: Iterable[Path]) -> Iterator[Packed]:
    """Yield what there is of each file that is wanted, in order. Raises OSError."""
    size = 0
    for parent, paths in itertools.groupby(wanted, lambda path: path[:-1]):
        try:
            directory = root.open_directory(parent)
        except OSError as error:
            yield from (_refuse(error) for _ in paths)
            continue
        try:
            for path in paths:
                packed = Packed(NOT_IN_PACK) if size >= PACK_SIZE else _read(directory, path)
                size += len(packed.content)
                yield packed
        finally:
            os.close(directory)


def _read(directory: int, path: Path) -> Packed:
    if not path:
        return Packed(404)
    try:
        fd = open_file_in(directory, path[-1])
        try:
            signature, content = read_small(fd, path)
            xattrs = format_xattrs(read_xattrs(fd))
        finally:
            os.close(fd)
    except (ContentChangedError, PathError, OSError) as error:
        return _refuse(error)
    if content is None:
        return Packed(413)
    return Packed(200, build_manifest(content).root, signature.mtime_ns, content, xattrs)


def _refuse(error: Exception) -> Packed:
    """Return what is said of a file that cannot be read; raise what a failing disk says."""
    if isinstance(error, PermissionError):
        return Packed(403)
    if isinstance(error, ContentChangedError):
        return Packed(409)
    if isinstance(error, OSError) and error.errno not in NOT_THERE:
        raise error
    return Packed(404)
