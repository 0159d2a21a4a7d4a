"""What a fetch displaced, and for how long it stays: {when}-{random}/{path}, in our own `trash`.

`discard_old()` removes files that are there since before a moment, and directories that are empty
then. It goes by the ctime of each file, which is set when it is displaced, and by every change of
whoever has it open still. What has no name of ours at the top stays, and so does what cannot be
removed.

No state; whoever calls it sees to it that nothing is displaced meanwhile.
"""

from __future__ import annotations

import calendar
import contextlib
import logging
import os
import re
import secrets
import stat
import time

from degu_rpc.files.paths import DIRECTORY_FLAGS
from degu_rpc.files.system import list_names

_WHEN = '%Y-%m-%dT%H-%M-%SZ'
_match_name = re.compile(rb'([0-9T-]{19}Z)-[0-9a-f]{8}').fullmatch

_log = logging.getLogger('degu_rpc.files')


def new_trash_name() -> bytes:
    """Return a name at the top of a trash that nothing has."""
    return f'{time.strftime(_WHEN, time.gmtime())}-{secrets.token_hex(4)}'.encode()


def discard_old(trash: int, before: float) -> None:
    """Remove what is in an open trash since before `before` (seconds since 1970). OSError."""
    for name in list_names(trash):
        begun = _parse_name(name)
        # All that is in it was displaced later.
        if begun is not None and begun < before:
            try:
                _discard(trash, name, before)
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
