"""Listening on a unix socket as a service does: with a mode and owner, and after a crash.

    server = Server(listen_unix('/run/clock/socket', mode=0o660, group='clock'), app)

1. The directory must be one in which nobody else can replace what is ours, and so must all above
   it, or the directory itself could be exchanged. It is locked (flock(2)) while we look and bind,
   so of several processes that start at once exactly one gets the address.
2. A socket file that exists is probed by connecting. Only one that refuses, and that no socket is
   bound to, is what a dead process left; it is removed. A live one is refused with who serves it.
3. The file is made without any permission, given its owner and mode, and only then listened on:
   there is no moment in which anybody else could connect.

The server takes the socket over as one that was opened for it, and removes the file at its end. One
that systemd opened has its mode and owner from the unit: see `degu.net.inherited()`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from degu.net import Inherited, SocketFile, connect, parse_address, read_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_TIMEOUT_S = 5.0
"""The wait for others that start in the same directory. Whoever can read it can lock it."""
_LOCK_PERIOD_S = 0.01
_PROBE_TIMEOUT_S = 1.0
_BACKLOG = 128
_SOCKETS = '/proc/net/unix'
_ACCEPTS = 0x10000  # __SO_ACCEPTCON among the flags in /proc/net/unix
_UNCONNECTED = b'01'  # SS_UNCONNECTED
_STREAM = b'0001'  # SOCK_STREAM; to connect to another kind is another error
_MAX_LINKS = 40  # as in the kernel


def listen_unix(
    path: str, *, mode: int = 0o600, owner: str | int | None = None, group: str | int | None = None
) -> Inherited:
    """Listen at `path` and return the socket, for a server to be given in place of an address.

    `mode`, `owner` and `group` (names or numbers, None for this process's own) are those of the
    file: to connect takes the permission to write.

    Raises TypeError or ValueError for a path that cannot be, ValueError for a mode, LookupError for
    an unknown owner or group, TimeoutError where the directory stays locked, OSError from the
    system: EADDRINUSE if something lives there, PermissionError for a directory that is not safe.
    """
    if not isinstance(path, str):
        raise TypeError(f'path must be a str, not {path!r}')
    parse_address(path)
    if not 0 <= mode <= 0o777:
        raise ValueError(f'mode must be 0 to 0o777, not {mode:#o}')
    directory, name = os.path.split(path)
    _check_safe(directory)
    with _locked(directory) as descriptor, contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        # What a socket's file is made with is the mode of the socket, less the umask.
        os.fchmod(sock.fileno(), 0)
        try:
            _bind(sock, path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path)
            _bind(sock, path)
        file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
        stack.callback(os.close, file)
        made = _identify(path)
        try:
            # By the descriptor, so that no link is followed. There is no other way to a mode.
            opened = f'/proc/self/fd/{file}'
            shutil.chown(opened, -1 if owner is None else owner, -1 if group is None else group)
            os.chmod(opened, mode)
            sock.listen(_BACKLOG)
        except BaseException:
            if _identify(path) == made:
                os.unlink(path)
            raise
        return Inherited(sock.detach(), True)


def _check_safe(directory: str) -> None:
    """Raise PermissionError where others could replace a part of a path, a link's target included.

    Source: path_resolution(7); what others can do in a directory says unlink(2), EPERM.
    """
    here, links = '/', 0
    _check_part(here)
    rest = directory.split('/')[::-1]
    while rest:
        part = rest.pop()
        there = os.path.normpath(os.path.join(here, part))  # no link is left in `here`
        _check_part(there)
        if not stat.S_ISLNK(os.lstat(there).st_mode):
            here = there
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), directory)
        target = os.readlink(there)
        here = '/' if target.startswith('/') else here
        rest += target.split('/')[::-1]


def _check_part(path: str) -> None:
    status = os.lstat(path)
    is_shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(status.st_mode)
    if status.st_uid not in (0, os.geteuid()) or (is_shared and not status.st_mode & stat.S_ISVTX):
        raise PermissionError(
            errno.EPERM,
            f'others could replace a socket in {path!r} (uid {status.st_uid}, mode '
            f'{stat.S_IMODE(status.st_mode):o}); use a directory that only you can write to, '
            'like $XDG_RUNTIME_DIR',
        )


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[int]:
    """Keep others who listen in `directory` out; give its descriptor."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f'{directory!r} is locked by another process for {LOCK_TIMEOUT_S:g} s; '
                        'see who it is with lslocks(8)'
                    ) from None
                time.sleep(_LOCK_PERIOD_S)
        yield descriptor
    finally:
        os.close(descriptor)


def _bind(sock: socket.socket, path: str) -> None:
    try:
        sock.bind(path)
    except OSError as error:
        raise _refuse(path, error.strerror, error.errno) from None


def _refuse(path: str, reason: str | None, number: int | None = errno.EADDRINUSE) -> OSError:
    return OSError(number, f'cannot listen at {path!r}: {reason}')


def _remove_stale(path: str) -> None:
    """Remove what a dead process left. Raises OSError (EADDRINUSE) for anything else."""
    with contextlib.suppress(FileNotFoundError):  # its owner removed it meanwhile
        found = _identify(path)
        reason = _find_holder(path)
        if reason is not None:
            raise _refuse(path, reason)
        if _identify(path) == found:
            os.unlink(path)


def _find_holder(path: str) -> str | None:
    """Say what holds a path, None for the socket of a dead process. Raises FileNotFoundError."""
    status = os.lstat(path)
    if not stat.S_ISSOCK(status.st_mode):
        return 'what is there is no socket'
    try:
        with connect(path, _PROBE_TIMEOUT_S) as sock:
            pid, uid, _gid = read_credentials(sock)
            return f'process {pid} of uid {uid} serves it'
    except FileNotFoundError:
        raise
    except ConnectionRefusedError:
        try:
            is_bound = _is_bound(path)
        except OSError as error:
            return f'nobody can say whether a process is bound to it: {error}'
        return 'a process is bound to it and does not listen' if is_bound else None
    except TimeoutError:
        return f'something of uid {status.st_uid} serves it, too busy to say what it is'
    except OSError as error:
        return f'a socket of uid {status.st_uid} is there: {error.strerror}'


def _is_bound(path: str) -> bool:
    """Return whether a socket is bound there that does not listen. Source: proc_net_unix(5).

    The kernel has the name that it was bound by, which can be relative, or lead through links. So
    what has the same last part counts as bound there, unless it is seen to be another file.
    """
    # num: refcount protocol flags type state inode path
    for line in Path(_SOCKETS).read_bytes().splitlines()[1:]:
        _, _, _, flags, kind, state, _, *name = line.split(None, 7)
        if (
            kind == _STREAM
            and state == _UNCONNECTED
            and not int(flags, 16) & _ACCEPTS
            and name
            and _may_be(os.fsdecode(name[0]), path)
        ):
            return True
    return False


def _may_be(name: str, path: str) -> bool:
    """Return whether a socket that was bound to `name` may be the one that is at `path`."""
    if os.path.basename(name) != os.path.basename(path):
        return False
    if not name.startswith('/') or name == path:
        return True
    try:
        return os.path.samestat(os.lstat(name), os.lstat(path))
    except OSError:  # nobody can look there from here
        return True


def _identify(path: str) -> SocketFile:
    status = os.lstat(path)
    return SocketFile(path, status.st_dev, status.st_ino)
