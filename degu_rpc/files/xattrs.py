"""Extended attributes of files: what a person or a program noted beside the content.

Only those in `user.` travel, and here and on the wire their names are without that prefix: nothing
that a peer can write is the name of `security.capability`. Those that do not fit in MAX_XATTRS
bytes are left where they are: not sent, not cut, not removed. A file system that has no attributes,
or no room for one, is no error.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes, unquote_to_bytes

from degu_rpc.errors import ListingError
from degu_rpc.files.limits import MAX_FIELDS, MAX_XATTR_NAME, MAX_XATTRS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PREFIX = b'user.'
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.E2BIG, errno.ERANGE}


def read_xattrs(fd: int) -> dict[bytes, bytes] | None:
    """Return the attributes of an open file; None where it cannot have any. Raises OSError."""
    try:
        names = sorted(map(os.fsencode, os.listxattr(fd)))
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    found: dict[bytes, bytes] = {}
    size = 0
    for full_name in names:
        name = full_name.removeprefix(_PREFIX)
        if name == full_name or len(found) == MAX_FIELDS:
            continue
        with _ignoring({errno.ENODATA}):
            value = os.getxattr(fd, full_name)
            if size + len(name) + len(value) <= MAX_XATTRS:
                size += len(name) + len(value)
                found[name] = value
    return found


def write_xattrs(fd: int, xattrs: Mapping[bytes, bytes]) -> None:
    """Give an open file these attributes, and remove others that could travel. Raises OSError."""
    present = read_xattrs(fd)
    if present is None:
        return
    for name in present.keys() - xattrs.keys():
        with _ignoring({errno.ENODATA}):
            os.removexattr(fd, _PREFIX + name)
    for name, value in xattrs.items():
        if present.get(name) != value:
            with _ignoring(_NO_ROOM | _UNSUPPORTED):
                os.setxattr(fd, _PREFIX + name, value)


@contextlib.contextmanager
def _ignoring(codes: set[int]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in codes:
            raise


def format_xattrs(xattrs: Mapping[bytes, bytes] | None) -> dict[str, bytes] | None:
    """Format attributes for a record: their names are percent-encoded."""
    if xattrs is None:
        return None
    return {quote_from_bytes(name, safe=''): value for name, value in xattrs.items()}


def parse_xattrs(record: Mapping[str, bytes] | None) -> dict[bytes, bytes] | None:
    """Parse the attributes in a record, which anybody may have written. Raises ListingError."""
    if record is None:
        return None
    xattrs = {unquote_to_bytes(name): value for name, value in record.items()}
    for name in xattrs:
        if not 1 <= len(name) <= MAX_XATTR_NAME or b'\0' in name:
            raise ListingError(f'an attribute has {name!r} for a name')
    return xattrs
