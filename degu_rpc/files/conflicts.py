"""Conflict copies: what somebody wrote and nobody had seen, beside the file that took its name.

    notes.txt  ->  notes (conflict 2024-05-17 studio mfrggzdf).txt

1. The date is that of the content, in UTC, and the last part begins its root. So the name depends
   on nothing that differs between machines but the machine where it was written, and the same
   content makes one copy, however often and wherever it is found.
2. A name that is taken by the same content is the copy. One taken by another content gets more of
   the root, then something random; so does what has no root: it is still being written, cannot be
   read, or is neither a file nor a symlink.
3. A name that would be too long loses the end of its stem; the extension stays.

Only `keep_beside()` changes anything: it renames to a free name.
"""

from __future__ import annotations

import base64
import datetime
import os
import secrets
import stat
from typing import TYPE_CHECKING, NamedTuple

from degu_rpc.errors import ContentChangedError
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.content import hash_file
from degu_rpc.files.limits import MAX_MACHINE, MAX_NAME
from degu_rpc.files.system import look, rename_to_free

if TYPE_CHECKING:
    from collections.abc import Iterator

TAG_LENGTH = 8
_LAST_SECOND = 253_402_300_799
"""The last one of the year 9999: a time beyond it has no date in four digits."""
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Identity(NamedTuple):
    """What tells one content from another: what it is (S_IFREG or S_IFLNK), and its root."""

    kind: int
    root: str


def identify_file(root: str) -> Identity:
    """Return the identity of a file that has this root."""
    return Identity(stat.S_IFREG, root)


def identify_symlink(target: bytes) -> Identity:
    """Return the identity of a symlink: the root is that of its text."""
    return Identity(stat.S_IFLNK, build_manifest(target).root)


def identify(directory: int, name: bytes) -> Identity | None:
    """Read what has this name in an open directory, and return which content it is.

    None for a file that changes meanwhile or cannot be read, for a directory and anything else.
    Raises OSError, FileNotFoundError included.
    """
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if stat.S_ISLNK(found.st_mode):
        return identify_symlink(os.readlink(name, dir_fd=directory))
    if not stat.S_ISREG(found.st_mode):
        return None
    try:
        fd = os.open(name, _READ_FLAGS, dir_fd=directory)
    except PermissionError:
        return None
    try:
        return identify_file(hash_file(fd, (name,))[1].root)
    except ContentChangedError:
        return None
    finally:
        os.close(fd)


def keep_beside(
    source: int, name: bytes, parent: int, new_name: bytes, machine: str, identity: Identity | None
) -> bytes:
    """Make what has the name `name` in `source` the conflict copy of `new_name` in `parent`.

    `identity` is which content that is, None where it cannot be said; `machine` is a name from
    `clean_machine()`. Returns the name of the copy. Where there is one with this content already,
    nothing changes. Raises OSError.
    """
    mtime_ns = look(source, name).mtime_ns
    for tag in _tags(identity):
        copy = format_conflict(new_name, mtime_ns, machine, tag)
        if rename_to_free(source, name, parent, copy):
            return copy
        if identity is not None and _is_there(parent, copy, identity):
            return copy
    raise AssertionError('there is always another tag')


def _tags(identity: Identity | None) -> Iterator[str]:
    if identity is not None:
        yield identity.root[:TAG_LENGTH]
        yield identity.root
    while True:
        yield base64.b32encode(secrets.token_bytes(5)).decode('ascii').lower()


def _is_there(directory: int, name: bytes, identity: Identity) -> bool:
    try:
        return identify(directory, name) == identity
    except FileNotFoundError:
        return False


def format_conflict(name: bytes, mtime_ns: int, machine: str, tag: str) -> bytes:
    """Return the name of the conflict copy of `name`, of at most MAX_NAME bytes.

    >>> format_conflict(b'a.txt', 1_700_000_000 * 10**9, 'studio', 'mfrggzdf')
    b'a (conflict 2023-11-14 studio mfrggzdf).txt'
    """
    second = min(max(mtime_ns // 10**9, 0), _LAST_SECOND)
    date = datetime.datetime.fromtimestamp(second, datetime.UTC).date()
    note = f' (conflict {date} {machine} {tag})'.encode()
    return add_note(*os.path.splitext(name), note)


def add_note(stem: bytes, extension: bytes, note: bytes) -> bytes:
    """Return a name with a note before its extension, of at most MAX_NAME bytes.

    >>> add_note(b'a', b'.txt', b' (2)')
    b'a (2).txt'
    """
    if len(note) + len(extension) >= MAX_NAME:
        stem, extension = stem + extension, b''
    return _shorten(stem, MAX_NAME - len(note) - len(extension)) + note + extension


def _shorten(stem: bytes, size: int) -> bytes:
    """Cut a name to `size` bytes or a few less, so that no UTF-8 character is cut in two."""
    if len(stem) <= size:
        return stem
    # A character has at most three bytes after its first; more of them is no UTF-8.
    for end in range(size, max(size - 4, -1), -1):
        if stem[end] & 0b1100_0000 != 0b1000_0000:
            return stem[:end]
    return stem[:size]


def clean_machine(name: str) -> str:
    """Return a machine's name as it can stand in a file name: MAX_MACHINE bytes, and no spaces.

    >>> clean_machine("Jane's/laptop")
    'Jane-s-laptop'
    """
    plain = ''.join(one if one.isalnum() or one in '-._' else '-' for one in name)
    return _shorten(plain.encode(), MAX_MACHINE).decode() or 'machine'
