"""What a commit displaced, and for how long it stays: {when}-{random}/{path}, in our own `trash`.

1. What is displaced gets a slot: a directory in which its last name is free. One {when}-{random}
   serves until it has that name already.
2. `discard_old()` removes files that are there since before a moment, and directories that are
   empty then. It goes by the ctime of each file, which is set when it is displaced, and by every
   change of whoever has it open still. What has no name of ours at the top stays, and so does what
   cannot be removed.

A Trash has no lock: whoever uses it holds that of the Workspace (commit.py).
"""

from __future__ import annotations

import calendar
import contextlib
import logging
import math
import os
import re
import secrets
import stat
import time
from typing import TYPE_CHECKING

from degu_rpc.files.limits import TRASH_AGE_S
from degu_rpc.files.paths import DIRECTORY_FLAGS, Path, open_or_make
from degu_rpc.files.system import exists, find_inode, list_names

if TYPE_CHECKING:
    from collections.abc import Iterator

_WHEN = '%Y-%m-%dT%H-%M-%SZ'
_match_name = re.compile(rb'([0-9T-]{19}Z)-[0-9a-f]{8}').fullmatch

_log = logging.getLogger('degu_rpc.files')


def new_trash_name() -> bytes:
    """Return a name at the top of a trash that nothing has."""
    return f'{time.strftime(_WHEN, time.gmtime())}-{secrets.token_hex(4)}'.encode()


def find_limit(lock: int) -> float:
    """Return since when something must be in a trash to be removed; remember the time.

    By the time of the last run if that is earlier: a clock that is wrong once must not empty the
    trash. What was displaced while it was wrong may seem old: after a jump, or so long a pause that
    it could be one, nothing is removed until TRASH_AGE_S have passed without one. The open file
    `lock` keeps both times as its own: since when the clock is steady, and when it was last read.
    Raises OSError.
    """
    found = os.fstat(lock)
    now, steady_since, last = time.time(), found.st_atime, found.st_mtime
    if not last <= now <= last + TRASH_AGE_S:
        steady_since = now
    os.utime(lock, (steady_since, now))
    before = min(now, last) - TRASH_AGE_S
    return before if before >= steady_since else -math.inf


class Trash:
    """The trash of a root; `directory` is open and belongs to whoever made this."""

    def __init__(self, directory: int, *, durable: bool) -> None:
        """Use an open directory; with `durable` what is made in it is synced to the disk."""
        self._directory = directory
        self._is_durable = durable
        self._name = new_trash_name()

    @contextlib.contextmanager
    def slot(self, path: Path) -> Iterator[int]:
        """Hold open a directory in which the last name of `path` is free. Raises OSError."""
        slot = self._open(path[:-1])
        if exists(slot, path[-1]):
            os.close(slot)
            self._name = new_trash_name()
            slot = self._open(path[:-1])
        try:
            yield slot
        finally:
            os.close(slot)

    def _open(self, names: Path) -> int:
        where = (self._name, *names)
        return open_or_make(os.dup(self._directory), where, durable=self._is_durable)

    def find(self, inode: int) -> Path:
        """Return the path of an inode in the trash, () if it is not there. Raises OSError."""
        return find_inode(self._directory, inode)

    def remove(self, path: Path) -> None:
        """Remove the file at a path that `find()` returned. Raises OSError."""
        slot = open_or_make(os.dup(self._directory), path[:-1], durable=False)
        try:
            os.unlink(path[-1], dir_fd=slot)
        finally:
            os.close(slot)

    def discard_old(self, before: float) -> None:
        """Remove what is there since before `before` (seconds since 1970). Raises OSError."""
        for name in list_names(self._directory):
            begun = _parse_name(name)
            # All that is in it was displaced later.
            if begun is not None and begun < before:
                try:
                    _discard(self._directory, name, before)
                except OSError as error:
                    _log.warning('%s stays in the trash: %s', os.fsdecode(name), error)


def _discard(parent: int, name: bytes, before: float) -> None:
    """Remove what is old in a directory, and the directory itself if nothing is left."""
    directory = os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
    try:
        for each in list_names(directory):
            found = os.stat(each, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                _discard(directory, each, before)
            elif found.st_ctime < before:
                os.unlink(each, dir_fd=directory)
    finally:
        os.close(directory)
    with contextlib.suppress(OSError):  # something younger is in it
        os.rmdir(name, dir_fd=parent)


def _parse_name(name: bytes) -> float | None:
    """Return when a name was made; None for one that is not ours."""
    match = _match_name(name)
    if match is None:
        return None
    try:
        return calendar.timegm(time.strptime(match[1].decode(), _WHEN))
    except ValueError:
        return None
