"""Sockets below HTTP: the forms of an address, listening, connecting, time limits.

The one place that knows what an `address` can be:

    ('192.168.1.7', 8080)          IPv4; for a client the host may also be a name
    ('fe80::1', 8080, 0, 2)        IPv6: (ip, port, flowinfo, scope id)
    '/run/user/1000/my.socket'     AF_UNIX, an absolute and normalized path
    b'\\0my-service'                AF_UNIX, a Linux abstract name

A server can also be given a socket that listens already: `inherited()`.
"""

from __future__ import annotations

# Python would import it with the first name that it resolves or that TLS is to check. If that fails
# once, for lack of memory or of a descriptor, it is never tried again.
import contextlib
import encodings.idna  # noqa: F401
import errno
import os
import socket
import ssl
import stat
import struct
from time import monotonic
from typing import Any, NamedTuple

Address = tuple[str, int] | tuple[str, int, int, int] | str | bytes

_FORMS = (
    "an address is ('ip', port), ('ipv6', port, flowinfo, scopeid), an absolute path as str, "
    'or an abstract AF_UNIX name as bytes'
)
_MAX_UNIX_PATH = 107  # struct sockaddr_un has 108 bytes, the last of a path is NUL: unix(7)
KEEP_ALIVE_S = 60
"""How long a peer is silent before the kernel asks whether it is still there."""
_KEEP_ALIVE_PERIOD_S = 15
_KEEP_ALIVE_QUESTIONS = 4
_LISTEN_BACKLOG = 128
FIRST_INHERITED = 3  # SD_LISTEN_FDS_START: sd_listen_fds(3)
HANDED_OVER = 'degu-handed-over'
"""The name of an inherited socket whose file its new owner removes."""
_TIMEVAL = struct.Struct('@ll')
_UCRED = struct.Struct('=iII')  # struct ucred: unix(7)
_GID = struct.Struct('=I')
_SO_PEERGROUPS = 59  # asm-generic/socket.h; the socket module has no name for it


class Credentials(NamedTuple):
    """Who is at the other end of an AF_UNIX socket, by the kernel's word when it connected."""

    pid: int
    uid: int
    gid: int


class Inherited(NamedTuple):
    """A listening socket that another program opened for this one; see `inherited()`."""

    descriptor: int
    removes_file: bool
    """Whether the socket's file, if it has one, is this program's to remove."""


class SocketFile(NamedTuple):
    """Which socket file is ours, so that we never remove another's."""

    path: str
    device: int
    inode: int


def parse_address(address: object) -> tuple[socket.AddressFamily, Address]:
    """Check an address and tell its family.

    Raises TypeError for what is no form of address at all, ValueError for one that cannot be.
    """
    if isinstance(address, tuple):
        _check_tuple(address)
        return (socket.AF_INET if len(address) == 2 else socket.AF_INET6), address
    if isinstance(address, str):
        if not os.path.isabs(address) or os.path.normpath(address) != address:
            raise ValueError(
                f'a str is a socket path and must be absolute and normalized, not {address!r}; '
                "for TCP give a tuple like ('127.0.0.1', 8080)"
            )
        size = len(os.fsencode(address))
        if size > _MAX_UNIX_PATH or '\0' in address:
            raise ValueError(
                f'a socket path is at most {_MAX_UNIX_PATH} bytes, no NUL: {address!r}; '
                'choose a shorter directory, like $XDG_RUNTIME_DIR'
            )
        return socket.AF_UNIX, address
    if isinstance(address, bytes):
        if not address.startswith(b'\0') or not 2 <= len(address) <= _MAX_UNIX_PATH + 1:
            raise ValueError(
                f'an abstract name is a NUL byte and 1 to {_MAX_UNIX_PATH} bytes, not {address!r}'
            )
        return socket.AF_UNIX, address
    raise TypeError(f'{_FORMS}, not {address!r}')


def _check_tuple(address: tuple[object, ...]) -> None:
    if len(address) not in (2, 4):
        raise ValueError(f'{_FORMS}, not {address!r}')
    host, *numbers = address
    if not isinstance(host, str):
        raise TypeError(f'the host must be a str, not {host!r}, in {address!r}')
    if not host or '\0' in host:
        raise ValueError(f'the host must not be empty or have a NUL, in {address!r}')
    for name, number, end in zip(
        ('port', 'flowinfo', 'scopeid'), numbers, (2**16, 2**20, 2**32), strict=False
    ):
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f'{name} must be an int, not {number!r}, in {address!r}')
        if not 0 <= number < end:
            raise ValueError(f'{name} must be 0 to {end - 1}, not {number!r}, in {address!r}')
    if len(address) == 4:
        check_ip(socket.AF_INET6, host)


def check_ip(family: socket.AddressFamily, host: str) -> None:
    """Raise ValueError unless `host` is a numeric address of `family`."""
    try:
        socket.inet_pton(family, host)
    except OSError:
        kind = 'IPv6' if family == socket.AF_INET6 else 'IPv4'
        hint = '' if kind == 'IPv6' else "; IPv6 is a tuple of four, like ('::1', 0, 0, 0)"
        raise ValueError(f'the host must be an {kind} address, not {host!r}{hint}') from None


def inherited(index: int = 0) -> Inherited:
    """Name the listening socket number `index` of those that this program was started with.

    Give it to a server in place of an address. Source: sd_listen_fds(3), the socket activation of
    systemd, which `Server.start_successor()` uses too.

    Raises ValueError if there is no such socket, TypeError for an index that is no int.
    """
    if not isinstance(index, int) or isinstance(index, bool):
        raise TypeError(f'index must be an int, not {index!r}')
    count = 0
    if os.environ.get('LISTEN_PID') == str(os.getpid()):
        count = int(os.environ.get('LISTEN_FDS', '0'))
    if not 0 <= index < count:
        raise ValueError(
            f'there is no inherited socket number {index}: this program was started with {count}; '
            'start it through a systemd socket unit (Accept=no), or listen at an address'
        )
    names = os.environ.get('LISTEN_FDNAMES', '').split(':')
    return Inherited(FIRST_INHERITED + index, index < len(names) and names[index] == HANDED_OVER)


def _adopt(address: Inherited) -> tuple[socket.socket, SocketFile | None]:
    """Listen on a socket that listens already."""
    sock = socket.socket(fileno=address.descriptor)
    try:
        if sock.type != socket.SOCK_STREAM or not sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            raise ValueError('an inherited socket must be a stream socket that listens (Accept=no)')
        sock.set_inheritable(False)
        sock.setblocking(False)
        name = sock.getsockname()
        file = _identify(name) if address.removes_file and isinstance(name, str) else None
    except BaseException:
        sock.close()
        raise
    return sock, file


def listen(address: Address | Inherited) -> tuple[socket.socket, SocketFile | None]:
    """Listen on an address; the second value identifies the socket file that is ours to remove.

    Raises TypeError or ValueError for the address, OSError where the system refuses it; a file that
    exists is never replaced.
    """
    if isinstance(address, Inherited):
        return _adopt(address)
    family, address = parse_address(address)
    if family == socket.AF_INET:
        check_ip(family, address[0])  # type: ignore[arg-type]  # an AF_INET address is a tuple
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX:
            _bind_unix(sock, address)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
        try:
            file = _identify(address) if isinstance(address, str) else None
            sock.listen(_LISTEN_BACKLOG)
            sock.setblocking(False)
        except BaseException:
            if isinstance(address, str):
                os.unlink(address)  # bind() made it a moment ago
            raise
        return sock, file
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f'cannot listen at {address!r}: {error.strerror}') from error
    except BaseException:
        sock.close()
        raise


def _bind_unix(sock: socket.socket, address: Address) -> None:
    try:
        sock.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise OSError(
            errno.EADDRINUSE, 'it exists; if no server runs there any more, remove it'
        ) from None


def _identify(path: str) -> SocketFile:
    status = os.lstat(path)
    return SocketFile(path, status.st_dev, status.st_ino)


def remove_socket_file(file: SocketFile | None) -> None:
    """Remove the socket file that `listen()` made, unless it is gone or is another's by now.

    Raises OSError if it cannot be removed.
    """
    if file is None:
        return
    try:
        status = os.lstat(file.path)
        if stat.S_ISSOCK(status.st_mode) and file[1:] == (status.st_dev, status.st_ino):
            os.unlink(file.path)
    except FileNotFoundError:
        return


def connect(address: Address, timeout_s: float) -> socket.socket:
    """Connect to an address, trying each one a name resolves to; the socket has a timeout set.

    `timeout_s` is for all of it: each address of a name has an equal part of what is left. The
    lookup of a name counts, but it ends when the system's resolver ends it.

    Raises TypeError or ValueError for the address, OSError from the system; TimeoutError when the
    time is over, or when the kernel gives up by itself.
    """
    deadline = Deadline(timeout_s)
    family, address = parse_address(address)
    if family != socket.AF_INET:
        sock = _connect_to(family, address, deadline)
    else:
        sock = _connect_to_name(address, deadline)
    sock.settimeout(timeout_s)
    return sock


def _connect_to_name(address: Any, deadline: Deadline) -> socket.socket:
    *others, last = socket.getaddrinfo(address[0], address[1], type=socket.SOCK_STREAM)
    for number, (family, _, _, _, where) in enumerate(others):
        part_s = deadline.require() / (len(others) + 1 - number)
        with contextlib.suppress(OSError):  # the next one may be there
            return _connect_to(family, where, Deadline(part_s))
    return _connect_to(last[0], last[4], deadline)


def _connect_to(family: socket.AddressFamily, address: Any, deadline: Deadline) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX:
            _connect_unix(sock, address, deadline)
        else:
            sock.settimeout(deadline.require())
            sock.connect(address)
            disable_delay(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_unix(sock: socket.socket, address: Address, deadline: Deadline) -> None:
    # With Python's own timeout it would fail at once where the server's queue is full. The kernel
    # may end a wait a moment too early.
    while left_s := deadline.remaining():
        set_timeout(sock, left_s)
        with contextlib.suppress(BlockingIOError):
            sock.connect(address)
            return
    raise TimeoutError(f'{address!r} did not take a connection in {deadline.timeout_s:g} s')


def disable_delay(sock: socket.socket) -> None:
    """Send small messages at once: a request and its response are one packet each."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel find out whether a silent peer is still there; its end is an error then.

    Source: tcp(7). It takes KEEP_ALIVE_S, and some more for each question without an answer.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEP_ALIVE_PERIOD_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEP_ALIVE_QUESTIONS)


def set_timeout(sock: socket.socket, timeout_s: float) -> None:
    """Limit each wait of the socket.

    A plain socket gets the kernel's timeouts and stays blocking, which saves a poll() a call; a
    wait that ran out then raises BlockingIOError. OpenSSL would retry such a wait for ever, so a
    TLS socket gets Python's timeout and raises TimeoutError. WAIT_ENDED has both.
    """
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(timeout_s)
        return
    seconds, rest = divmod(timeout_s, 1)
    # All zero would mean no timeout at all.
    timeval = _TIMEVAL.pack(int(seconds), max(int(rest * 1_000_000), 1))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


WAIT_ENDED = (BlockingIOError, TimeoutError)
"""What a socket prepared by `set_timeout()` raises when a wait ran out."""


def read_credentials(sock: socket.socket) -> Credentials:
    """Read SO_PEERCRED of an AF_UNIX connection. Source: unix(7)."""
    return Credentials(
        *_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    )


def read_groups(sock: socket.socket) -> frozenset[int]:
    """Read the supplementary groups of who made an AF_UNIX connection, by number.

    Raises OSError from the system: ERANGE for more than 256 of them.
    """
    # Source: sk_getsockopt() of Linux, since 4.13: an array of gid_t. Python takes 1024 bytes.
    data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    return frozenset(gid for (gid,) in _GID.iter_unpack(data))


class Deadline:
    """A point in time that several waits share; `.timeout_s` is how far off it was at first."""

    __slots__ = ('_end', 'timeout_s')

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._end = monotonic() + timeout_s

    def remaining(self) -> float:
        """Return the seconds left, never below zero."""
        left_s = self._end - monotonic()
        return left_s if left_s > 0.0 else 0.0

    def require(self) -> float:
        """Return the seconds left, above zero. Raises TimeoutError when there are none."""
        left_s = self.remaining()
        if not left_s:
            raise TimeoutError(f'the time was over after {self.timeout_s:g} s')
        return left_s

    def within(self, timeout_s: float) -> Deadline:
        """Return what is sooner: this deadline, or one that is `timeout_s` off."""
        return self if self.remaining() < timeout_s else Deadline(timeout_s)
