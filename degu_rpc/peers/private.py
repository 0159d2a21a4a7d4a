"""What is ours alone on disk: directories of mode 0700, files of mode 0600.

What others could read or write is refused, with the command that mends it. `degu.durable` writes
the files; here is what must be true before they are read. There are no threads and no locks of our
own: `locked` is how processes and threads take turns at changing a directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from degu import durable
from degu_rpc.errors import IdentityError

if TYPE_CHECKING:
    from collections.abc import Iterator


def make_directory(directory: Path) -> None:
    """Make a directory and its parents, of mode 0700 where they are missing, and check it.

    Raises IdentityError where it is there and not private, OSError.
    """
    _make_directories(directory)
    check_private(directory, directory.stat())


def _make_directories(directory: Path) -> None:
    # Path.mkdir(parents=True) would make the parents by the umask alone.
    if not directory.exists():
        _make_directories(directory.parent)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            directory.chmod(0o700)  # a umask can only have taken bits away
            durable.sync_directory(directory.parent)


def check_private(path: Path, found: os.stat_result) -> None:
    """Check that a file or directory is ours alone; `found` is its lstat().

    Raises IdentityError with the remedy.
    """
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise IdentityError(path, 'is not a regular file', 'put the file itself there')
    quoted = shlex.quote(str(path))
    if found.st_uid != os.geteuid():
        raise IdentityError(
            path,
            f'belongs to uid {found.st_uid}, not to uid {os.geteuid()}',
            f'if it is yours, run: sudo chown {os.geteuid()} {quoted}',
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        wanted = '700' if stat.S_ISDIR(found.st_mode) else '600'
        raise IdentityError(
            path,
            f'has mode {stat.S_IMODE(found.st_mode):04o}, so others can get at it',
            f'run: chmod {wanted} {quoted}',
        )


def read_private(path: Path) -> bytes:
    """Return the content of a file that is ours alone.

    Raises IdentityError with the remedy, FileNotFoundError and any other OSError.
    """
    found = path.lstat()
    check_private(path, found)
    if not stat.S_ISREG(found.st_mode):
        raise IdentityError(path, 'is not a regular file', 'put the file itself there')
    # The directory is ours alone, so nobody else can have swapped the file since.
    return path.read_bytes()


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Be the only one, of all threads and processes, who changes what is in a directory.

    What killed writers left behind is removed first. Raises OSError.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        for name in os.listdir(directory):
            if durable.is_temporary(name):
                Path(directory, name).unlink(missing_ok=True)
        yield
    finally:
        os.close(fd)
