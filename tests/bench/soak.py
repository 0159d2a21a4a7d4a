"""Mixed traffic for as long as you like; what it left behind in the server.

    python tests/bench/soak.py [--minutes N] [--json FILE]

1. One server process serves over AF_UNIX, TCP and TLS. Three clients, a thread each, do one thing
   after the other: small requests, large bodies and chunked ones both ways, pipelines, uploads and
   downloads that are not finished, what is no request at all, and connections without a word. Each
   draws from a random sequence of its own, the same in every run.
2. The clients stop at intervals. When their connections are gone, the server gives back what its
   allocator keeps for later, and its memory, descriptors and threads are read: like with like. It
   has one malloc arena: glibc's usual 8 a core fill for minutes, each by itself, and hide a leak.
3. The first quarter of the time warms up. Growth is that of the median of the last quarter over the
   median of the second: single readings jump.

It fails if the memory grew by 2 % or more, or if there is a descriptor or a thread more than at the
beginning.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from subject import MIB, PIECE, Place, Subject

from degu import IPv4_LOOPBACK
from degu.bodies import ChunkedOutput, Output
from degu.client import Client, SSLClient, build_client_sslctx
from degu.misc import TempPKI

if TYPE_CHECKING:
    from collections.abc import Callable

    from degu.client import Response

MAX_GROWTH = 0.02
READINGS = 40
"""How often the traffic pauses for a reading."""
REST_S = 10.0
"""How long the server may take to end the threads of connections that were ended."""
ONE_ARENA = {'MALLOC_ARENA_MAX': '1'}
LARGEST = 8 * MIB
GET = b'GET / HTTP/1.1\r\n\r\n'


class Reading(NamedTuple):
    """What the server has while nobody is connected."""

    memory: int
    descriptors: int
    threads: int


class Traffic:
    """One client's traffic, the same sequence in every run."""

    def __init__(self, client: Client, address: Any, sslctx: ssl.SSLContext | None) -> None:
        self._client = client
        self._address = address
        self._sslctx = sslctx
        self._random = random.Random(str(client))
        self._actions: list[Callable[[], None]] = [
            self.send_small_requests,
            self.get_large,
            self.get_chunked,
            self.put_large,
            self.put_chunked,
            self.send_pipeline,
            self.abort_upload,
            self.abort_download,
            self.send_garbage,
            self.say_nothing,
        ]
        self.counts: Counter[str] = Counter()

    def run(self, end: float) -> None:
        """Go on until `end`, by the clock `time.monotonic()`."""
        while time.monotonic() < end:
            action = self._random.choice(self._actions)
            action()
            self.counts[action.__name__] += 1

    def _draw_size(self) -> int:
        """Return a size; each magnitude is as likely as any other."""
        return int(LARGEST ** self._random.random())

    def send_small_requests(self) -> None:
        with self._client.connect() as conn:
            for number in range(self._random.randrange(1, 200)):
                check(conn.get('/', {'x-number': f'{number}'}), b'')
                check(conn.post('/', None, b'x' * number), b'%d' % number)

    def get_large(self) -> None:
        size = self._draw_size()
        with self._client.connect() as conn:
            check(conn.get(f'/{size}'), size)

    def get_chunked(self) -> None:
        size = self._draw_size()
        with self._client.connect() as conn:
            check(conn.get(f'/{size}/chunked'), size)

    def put_large(self) -> None:
        size = self._draw_size()
        with self._client.connect() as conn:
            pieces = (PIECE[: size - start] for start in range(0, size, MIB))
            check(conn.put('/', None, Output(pieces, size)), b'%d' % size)

    def put_chunked(self) -> None:
        sizes = [self._random.randrange(1, 5000) for _ in range(self._random.randrange(300))]
        with self._client.connect() as conn:
            pieces = [PIECE[:size] for size in (*sizes, 0)]
            check(conn.put('/', None, ChunkedOutput(pieces)), b'%d' % sum(sizes))

    def send_pipeline(self) -> None:
        count = self._random.randrange(1, 500)
        with self._dial() as sock:
            sock.sendall(GET * count + b'GET / HTTP/1.1\r\nconnection: close\r\n\r\n')
            data = read_to_end(sock)
        if data != b'HTTP/1.1 200 OK\r\n\r\n' * (count + 1):
            raise AssertionError(f'{count + 1} requests were answered with {data[-200:]!r}')

    def abort_upload(self) -> None:
        with self._dial() as sock:
            sock.sendall(b'PUT / HTTP/1.1\r\ncontent-length: 9999999\r\n\r\n' + PIECE[:100_000])

    def abort_download(self) -> None:
        with self._dial() as sock:
            sock.sendall(b'GET /%d HTTP/1.1\r\n\r\n' % LARGEST)
            sock.recv(1)

    def send_garbage(self) -> None:
        with self._dial() as sock:
            sock.sendall(GET + self._random.randbytes(100) + b'\r\n\r\n')
            data = read_to_end(sock)
        if not data.startswith(b'HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 4'):
            raise AssertionError(f'garbage was answered with {data[:200]!r}')

    def say_nothing(self) -> None:
        self._dial().close()

    def _dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET if isinstance(self._address, tuple) else socket.AF_UNIX)
        try:
            sock.settimeout(30)
            sock.connect(self._address)
            return sock if self._sslctx is None else self._sslctx.wrap_socket(sock)
        except BaseException:
            sock.close()
            raise


def check(response: Response, expected: bytes | int) -> None:
    """Read a response; raise AssertionError unless its body, or its size, is as expected."""
    body: Any = b''
    if response.body is not None:
        body = response.body.read()
    if isinstance(expected, int):
        body = len(body)
    if (response.status, body) != (200, expected):
        raise AssertionError(f'expected {expected!r}, not {response.status}, {body!r}')


def read_to_end(sock: socket.socket) -> bytes:
    pieces = []
    # A server that closes over TLS says no goodbye.
    with contextlib.suppress(ssl.SSLEOFError):
        while data := sock.recv(65536):
            pieces.append(data)
    return b''.join(pieces)


# --- the run -------------------------------------------------------------------------------------


def run_traffic(traffic: list[Traffic], seconds: float) -> None:
    """Let all clients go on for so long; raise what one of them raised."""
    end = time.monotonic() + seconds
    errors: list[BaseException] = []

    def run(each: Traffic) -> None:
        try:
            each.run(end)
        except BaseException as error:  # noqa: BLE001  # raised below, in the main thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in traffic]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def read(subject: Subject, threads: int) -> Reading:
    """Read what the server has once all its connections have ended."""
    deadline = time.monotonic() + REST_S
    while (count := subject.count_threads()) > threads:
        if time.monotonic() > deadline:
            raise RuntimeError(f'{count} threads, and there were {threads}')
        time.sleep(0.01)
    subject.give_back_memory()
    return Reading(subject.read_memory(), subject.count_descriptors(), subject.count_threads())


def soak(minutes: float) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pki = stack.enter_context(TempPKI())
        subject = stack.enter_context(
            Subject(
                directory / 'log',
                Place(str(directory / 'socket')),
                Place(IPv4_LOOPBACK),
                Place(IPv4_LOOPBACK, pki.get_server_config()),
                environment=ONE_ARENA,
            )
        )
        sslctx = build_client_sslctx(pki.get_client_config())
        unix, tcp, tls = subject.addresses
        traffic = [
            Traffic(Client(unix), unix, None),
            Traffic(Client(tcp), tcp, None),
            Traffic(SSLClient(sslctx, tls), tls, sslctx),
        ]
        first = Reading(subject.read_memory(), subject.count_descriptors(), subject.count_threads())
        readings = []
        for _ in range(READINGS):
            run_traffic(traffic, minutes * 60 / READINGS)
            readings.append(read(subject, first.threads))
        log = subject.log_path.read_text()
    quarter = READINGS // 4
    warm, last = (
        statistics.median(reading.memory for reading in part)
        for part in (readings[quarter : 2 * quarter], readings[-quarter:])
    )
    return {
        'minutes': minutes,
        'actions': sum((each.counts for each in traffic), Counter()),
        'first': first._asdict(),
        'memory_warm': warm,
        'memory_last': last,
        'growth': last / warm - 1,
        'descriptors': max(reading.descriptors for reading in readings[-quarter:]),
        'threads': max(reading.threads for reading in readings[-quarter:]),
        'readings': [reading._asdict() for reading in readings],
        'log': log,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description='Use a server for long and see what is left.')
    parser.add_argument('--minutes', type=float, default=60, help='how long (60)')
    parser.add_argument('--json', type=Path, help='write the figures there, too')
    arguments = parser.parse_args()
    report = soak(arguments.minutes)
    for name, count in sorted(report['actions'].items()):
        print(f'{name:24}{count:>10,}')
    first = report['first']
    print(f'\n{"":24}{"first":>10}{"warm":>10}{"last":>10}')
    print(
        f'{"memory, MiB":24}{first["memory"] / MIB:10.2f}{report["memory_warm"] / MIB:10.2f}'
        f'{report["memory_last"] / MIB:10.2f}   {report["growth"]:+.2%}'
    )
    for name in ('descriptors', 'threads'):
        print(f'{name:24}{first[name]:10}{"":10}{report[name]:10}')
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + '\n')
    if report['log']:
        sys.exit(f'the server had something to say:\n{report["log"]}')
    if report['growth'] >= MAX_GROWTH or report['descriptors'] > first['descriptors']:
        sys.exit('something grew')


if __name__ == '__main__':
    main()
