"""Attackers: clients that want to keep a server from serving others.

1. A form of attack is a coroutine that gets a connected socket and holds on to it, or returns.
2. `Attackers` are a process that keeps a number of such connections going, from one or more
   loopback addresses. A connection that ended comes again after a while.
3. `SlowHttpTest` is a foreign attacker, Debian's slowhttptest, and what it says of the server.

`stop()` ends either at once; the kernel then ends all of the connections.
"""

from __future__ import annotations

import asyncio
import csv
import multiprocessing
import resource
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from subject import end_with_parent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Address: TypeAlias = tuple[str, int]

SMALL_BUFFER = 4096
LARGE = 8 * 1024 * 1024
RESET_AT_CLOSE = struct.pack('ii', 1, 0)
"""SO_LINGER: nothing of a closed connection stays, not even its port. See socket(7)."""


# --- the forms -----------------------------------------------------------------------------------


async def stay_silent(sock: socket.socket) -> None:
    """Say nothing and take whatever comes."""
    while await asyncio.get_running_loop().sock_recv(sock, SMALL_BUFFER):
        pass


async def stay_idle(sock: socket.socket) -> None:
    """Make one good request, then no other."""
    await asyncio.get_running_loop().sock_sendall(sock, b'GET / HTTP/1.1\r\n\r\n')
    await stay_silent(sock)


async def send_slow_preamble(sock: socket.socket) -> None:
    await trickle(sock, b'GET / HTTP/1.1\r\nx: ')


async def send_slow_body(sock: socket.socket) -> None:
    await trickle(sock, b'PUT / HTTP/1.1\r\ncontent-length: 1000000\r\n\r\n')


async def send_slow_chunk(sock: socket.socket) -> None:
    await trickle(sock, b'PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffff\r\n')


async def trickle(sock: socket.socket, start: bytes) -> None:
    """Send `start`, then a byte a second, until the server answers or ends it."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, start)
    async with asyncio.TaskGroup() as group:
        answer = group.create_task(loop.sock_recv(sock, SMALL_BUFFER))
        while not (await asyncio.wait([answer], timeout=1))[0]:
            await loop.sock_sendall(sock, b'x')


async def read_slowly(sock: socket.socket) -> None:
    """Ask for a large response and read a byte of it a second."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b'GET /%d HTTP/1.1\r\n\r\n' % LARGE)
    while await loop.sock_recv(sock, 1):
        await asyncio.sleep(1)


async def send_garbage(sock: socket.socket) -> None:
    """Send what is no request, and do not close when the server does."""
    await asyncio.get_running_loop().sock_sendall(sock, b'\r\n\r\n' * 100)
    await asyncio.sleep(5)


async def vanish(sock: socket.socket) -> None:
    """Reset the connection as soon as it is there."""


async def stall_handshake(sock: socket.socket) -> None:
    """Begin a TLS handshake and leave it there."""
    await asyncio.get_running_loop().sock_sendall(sock, HELLO)
    await stay_silent(sock)


async def begin_handshake(sock: socket.socket) -> None:
    """Have the server do its share of a TLS handshake, and vanish."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, HELLO)
    await loop.sock_recv(sock, SMALL_BUFFER)


async def flood_with_requests(sock: socket.socket) -> None:
    """Send good requests as fast as the server reads them, and read what it answers."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(stay_silent(sock))
        while not reading.done():
            await loop.sock_sendall(sock, b'GET / HTTP/1.1\r\n\r\n' * 1000)


async def flood_with_chunks(sock: socket.socket) -> None:
    """Send a good body in chunks of one byte, as fast as the server reads them."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b'PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n')
    while True:
        await loop.sock_sendall(sock, b'1\r\nx\r\n' * 10_000)


def build_hello() -> bytes:
    """Return the first bytes of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname='server')
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError('a handshake takes two')


HELLO = build_hello()


# --- who does it ---------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What `Attackers` do: `connections` at once, from so many `addresses`."""

    form: Callable[[socket.socket], Awaitable[None]]
    connections: int = 1000
    addresses: int = 1
    again_s: float = 2.0
    """After how long a connection that ended comes again."""


class Attackers:
    """A process that attacks as planned until `stop()`."""

    def __init__(self, address: Address, plan: Plan) -> None:
        # Written by the process alone.
        self._tried = multiprocessing.RawValue('q', 0)
        self._connected = multiprocessing.RawValue('q', 0)
        self._process = multiprocessing.get_context('fork').Process(
            target=self._run, args=(address, plan), daemon=True
        )
        self._process.start()

    @property
    def tried(self) -> int:
        """How many connections were begun until now."""
        return self._tried.value

    @property
    def connected(self) -> int:
        """How many of them the kernel of the server took."""
        return self._connected.value

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()

    def _run(self, address: Address, plan: Plan) -> None:
        end_with_parent()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        asyncio.run(self._attack(address, plan))

    async def _attack(self, address: Address, plan: Plan) -> None:
        await asyncio.gather(
            *(
                self._connect_again_and_again(address, source_of(number % plan.addresses), plan)
                for number in range(plan.connections)
            )
        )

    async def _connect_again_and_again(self, address: Address, source: str, plan: Plan) -> None:
        while True:
            with socket.socket() as sock:
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
                sock.bind((source, 0))
                self._tried.value += 1
                try:
                    await asyncio.get_running_loop().sock_connect(sock, address)
                    self._connected.value += 1
                    await plan.form(sock)
                except* (ConnectionError, TimeoutError):
                    pass  # the server's answer to an attacker
            await asyncio.sleep(plan.again_s)


def source_of(number: int) -> str:
    """Return the loopback address of an attacker."""
    return f'127.1.{number // 250}.{number % 250 + 1}'


class SlowHttpTest:
    """slowhttptest with `connections` from 127.0.0.1, in one of its modes: -H, -B or -X."""

    def __init__(self, address: Address, mode: str, connections: int) -> None:
        self.tried = self.connected = connections
        self._directory = tempfile.TemporaryDirectory(prefix='degu-slowhttptest-')
        path = LARGE if mode == '-X' else ''
        self._process = subprocess.Popen(
            [
                *('slowhttptest', mode, '-u', f'http://{address[0]}:{address[1]}/{path}'),
                *('-c', f'{connections}', '-r', f'{connections}', '-i', '1', '-l', '300'),
                *('-p', '2', '-g', '-o', 'report', '-v', '0'),
            ],
            cwd=self._directory.name,
            stdout=subprocess.DEVNULL,
        )
        self.report: list[dict[str, str]] = []
        """What it saw, second by second, once it was stopped."""

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait()
        with self._directory, Path(self._directory.name, 'report.csv').open() as fp:
            self.report = list(csv.DictReader(fp))
