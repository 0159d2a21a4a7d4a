"""What an honest client notices of an attack, and what the attack costs the server.

    python tests/bench/attack.py [--seconds N] [--only NAME]... [--json FILE]

1. For each attack a server starts in a process of its own, with the default limits unless the
   attack says otherwise. An honest client from another address opens a connection to keep.
2. The attackers come. Once they are there, the honest client makes requests on the connection that
   it keeps and, beside them, each on a new connection. It notes how long each took or that it was
   not served. (No new ones where the server lacks what a connection needs.)
3. The attackers go, all at once. Recovery is the time until one of their own addresses is served.

The CPU time is that of the thread with the accept loop; the memory is the server's resident size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import shutil
import signal
import socket
import ssl
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from attackers import (
    Attackers,
    Plan,
    SlowHttpTest,
    begin_handshake,
    flood_with_chunks,
    flood_with_requests,
    read_slowly,
    send_garbage,
    send_slow_body,
    send_slow_chunk,
    send_slow_preamble,
    source_of,
    stall_handshake,
    stay_idle,
    stay_silent,
    vanish,
)
from subject import MIB, Place, Subject

from degu import IPv4_LOOPBACK
from degu.client import build_client_sslctx
from degu.limits import build_limits
from degu.misc import TempPKI

if TYPE_CHECKING:
    from collections.abc import Callable

    from attackers import Address

GET = b'GET / HTTP/1.1\r\n\r\n'
OK = b'HTTP/1.1 200 OK\r\n\r\n'
HONEST = '127.0.0.2'
HONEST_PAUSE_S = 0.005
WAIT_S = 5.0
"""How long the honest client waits for anything."""
BEGIN_S = 30.0
"""How long the attackers may take to be there."""
RECOVER_S = 60.0
"""How long the server may take to serve the attackers' address again, for there to be a figure."""
MANY = 250
"""Loopback addresses of attackers that have many."""


class Attack(NamedTuple):
    """One row of the table."""

    plan: Plan | str
    """What our attackers do, or the mode of slowhttptest."""
    has_tls: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012  # nobody changes it
    """Limits that are not the defaults."""
    lack: dict[str, int] = {}  # noqa: RUF012  # the same
    """What the server does not have enough of: the attackers take all there is."""
    is_held: bool = False
    """Whether the server is stopped until its listen queue is full."""


ROOMY = {'max_connections': 2048, 'max_connections_per_address': 2048}
ATTACKS = {
    'silent': Attack(Plan(stay_silent)),
    'idle after a request': Attack(Plan(stay_idle)),
    'slow preamble': Attack(Plan(send_slow_preamble)),
    'slow body': Attack(Plan(send_slow_body)),
    'slow chunk': Attack(Plan(send_slow_chunk)),
    'slow read': Attack(Plan(read_slowly)),
    'garbage': Attack(Plan(send_garbage)),
    'slow preamble, many addresses': Attack(Plan(send_slow_preamble, addresses=MANY)),
    'TLS, silent': Attack(Plan(stay_silent), has_tls=True),
    'TLS, silent, many addresses': Attack(Plan(stay_silent, addresses=MANY), has_tls=True),
    'TLS, stalled handshake': Attack(Plan(stall_handshake), has_tls=True),
    'TLS, stalled handshake, many addresses': Attack(
        Plan(stall_handshake, addresses=MANY), has_tls=True
    ),
    'TLS, handshake flood': Attack(Plan(begin_handshake, 64, again_s=0), has_tls=True),
    'TLS, handshake flood, many addresses': Attack(
        Plan(begin_handshake, 64, MANY, again_s=0), has_tls=True
    ),
    'no descriptors': Attack(Plan(stay_silent), lack={'max_descriptors': 64}),
    'no threads': Attack(Plan(stay_silent), lack={'max_threads': 40}),
    'full listen queue': Attack(Plan(stay_silent), is_held=True),
    'connection flood': Attack(Plan(vanish, 64, again_s=0)),
    'refusal flood': Attack(Plan(stay_silent, again_s=0)),
    'request flood': Attack(Plan(flood_with_requests, 64)),
    'flood of tiny chunks': Attack(Plan(flood_with_chunks, 64)),
    'slowhttptest -H': Attack('-H'),
    'slowhttptest -B': Attack('-B'),
    'slowhttptest -X': Attack('-X'),
    'slowhttptest -H, all admitted': Attack('-H', options=ROOMY),
    'slowhttptest -B, all admitted': Attack('-B', options=ROOMY),
}


# --- the honest client ---------------------------------------------------------------------------


class Honest:
    """A client with a connection that it keeps, and the times of its requests in seconds."""

    def __init__(self, address: Address, sslctx: ssl.SSLContext | None) -> None:
        self._address = address
        self._sslctx = sslctx
        self.kept: list[float] = []
        self.new: list[float] = []
        self.refused = 0
        self._sock = self._connect(HONEST)
        exchange(self._sock)

    def close(self) -> None:
        self._sock.close()

    def _connect(self, source: str) -> socket.socket:
        sock = socket.create_connection(self._address, WAIT_S, (source, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._sslctx is None:
            return sock
        try:
            return self._sslctx.wrap_socket(sock)
        except BaseException:
            sock.close()
            raise

    def is_served(self, source: str = HONEST) -> bool:
        """Tell whether a request on a new connection is answered."""
        try:
            with self._connect(source) as sock:
                exchange(sock)
        except (OSError, EOFError):
            return False
        return True

    def request(self) -> None:
        """Make a request on the connection that is kept."""
        started = time.perf_counter()
        exchange(self._sock)
        self.kept.append(time.perf_counter() - started)

    def request_anew(self) -> None:
        """Make a request on a new connection."""
        started = time.perf_counter()
        self.refused += not self.is_served()
        self.new.append(time.perf_counter() - started)


def exchange(sock: socket.socket) -> None:
    """Make a request and take its response. Raises EOFError if the server ends instead."""
    sock.sendall(GET)
    data = b''
    while data != OK:
        more = sock.recv(len(OK) - len(data))
        if not more:
            raise EOFError
        data += more


def percentile_ms(values: list[float], percent: int) -> float | None:
    if not values:
        return None
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1] * 1000


# --- one attack ----------------------------------------------------------------------------------


def run(name: str, attack: Attack, seconds: float, pki: TempPKI) -> dict[str, Any]:
    """Attack a server for so many seconds; return the row."""
    tls = pki.get_server_config() if attack.has_tls else None
    sslctx = build_client_sslctx(pki.get_client_config()) if attack.has_tls else None
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        subject = stack.enter_context(
            Subject(directory / 'log', Place(IPv4_LOOPBACK, tls), **attack.lack, **attack.options)
        )
        address = subject.addresses[0]
        assert isinstance(address, tuple)
        honest = stack.enter_context(contextlib.closing(Honest(address[:2], sslctx)))
        memory = subject.read_memory()
        attackers, begun_s = begin(attack, subject, address[:2])
        try:
            figures = measure(subject, attackers, honest, seconds, not attack.lack)
        finally:
            stopped = time.monotonic()
            attackers.stop()
        source = '127.0.0.1' if isinstance(attackers, SlowHttpTest) else source_of(0)
        while not honest.is_served(source):
            if time.monotonic() - stopped > RECOVER_S:
                raise RuntimeError(f'{name}: not served {RECOVER_S:g} s after the attack')
            time.sleep(HONEST_PAUSE_S)
        row = {
            'attack': name,
            'begun_s': begun_s,
            **figures,
            'recovery_s': time.monotonic() - stopped,
            'memory_before': memory,
            'log': subject.log_path.read_text(),
        }
        if isinstance(attackers, SlowHttpTest):
            row['report'] = attackers.report
        return row


def begin(
    attack: Attack, subject: Subject, address: Address
) -> tuple[Attackers | SlowHttpTest, float]:
    """Start the attackers and wait until they are there; return how long that took, too."""
    started = time.monotonic()
    if attack.is_held:
        subject.process.send_signal(signal.SIGSTOP)
    if isinstance(attack.plan, Plan):
        attackers: Attackers | SlowHttpTest = Attackers(address, attack.plan)
        expected = attack.plan.connections
    else:
        attackers = SlowHttpTest(address, attack.plan, 500)
        expected = 500

    def are_there() -> bool:
        if attack.is_held:
            waiting = count_queue(address[1])
            return attackers.tried >= expected and waiting == attackers.connected < expected
        if attack.lack:
            return 'cannot accept' in subject.log_path.read_text()
        if isinstance(attackers, Attackers):
            return attackers.connected >= expected
        admitted = build_limits(**attack.options).max_connections_per_address
        return subject.count_threads() > min(expected, admitted)

    try:
        while not are_there():
            if time.monotonic() - started > BEGIN_S:
                raise RuntimeError(f'the attackers were not there after {BEGIN_S:g} s')
            time.sleep(HONEST_PAUSE_S)
    except BaseException:
        attackers.stop()
        raise
    finally:
        subject.process.send_signal(signal.SIGCONT)
    return attackers, time.monotonic() - started


def count_queue(port: int) -> int:
    """Return how many connections wait to be accepted. Source: the kernel's proc_net_tcp.rst."""
    for line in Path('/proc/net/tcp').read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if state == '0A' and int(local.partition(':')[2], 16) == port:
            return int(queues.partition(':')[2], 16)
    raise RuntimeError(f'nobody listens at port {port}')


def measure(
    subject: Subject,
    attackers: Attackers | SlowHttpTest,
    honest: Honest,
    seconds: float,
    is_new_tried: bool,
) -> dict[str, Any]:
    started = time.monotonic()
    cpu_s = subject.read_accept_cpu_s()
    log_lines = subject.count_log_lines()
    end = started + seconds
    anew = threading.Thread(target=repeat, args=(honest.request_anew, end))
    if is_new_tried:
        anew.start()
    try:
        repeat(honest.request, end)
    finally:
        if is_new_tried:
            anew.join()
    elapsed_s = time.monotonic() - started
    return {
        'seconds': elapsed_s,
        'tried': attackers.tried,
        'kept': len(honest.kept),
        'kept_p50_ms': percentile_ms(honest.kept, 50),
        'kept_p99_ms': percentile_ms(honest.kept, 99),
        'new': len(honest.new),
        'new_p50_ms': percentile_ms(honest.new, 50),
        'new_p99_ms': percentile_ms(honest.new, 99),
        'new_refused': honest.refused,
        'accept_cpu': (subject.read_accept_cpu_s() - cpu_s) / elapsed_s,
        'log_lines_per_s': (subject.count_log_lines() - log_lines) / elapsed_s,
        'memory': subject.read_memory(),
        'threads': subject.count_threads(),
    }


def repeat(action: Callable[[], None], end: float) -> None:
    """Do it again and again until `end`, by the clock `time.monotonic()`."""
    while time.monotonic() < end:
        action()
        time.sleep(HONEST_PAUSE_S)


# --- the run -------------------------------------------------------------------------------------


def print_row(row: dict[str, Any]) -> None:
    if row['new']:
        served = 1 - row['new_refused'] / row['new']
        new = f'{row["new_p50_ms"]:8.1f}{row["new_p99_ms"]:8.1f}{served:8.0%}'
    else:
        new = f'{"-":>8}{"-":>8}{"-":>8}'
    print(
        f'{row["attack"]:40}{row["tried"]:>8,}{row["kept_p50_ms"]:8.1f}{row["kept_p99_ms"]:8.1f}'
        f'{new}{row["accept_cpu"]:8.1%}{row["recovery_s"]:8.2f}{row["memory"] / MIB:8.1f}'
        f'{row["log_lines_per_s"]:8.1f}',
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description='Attack a server and see what others notice.')
    parser.add_argument('--seconds', type=float, default=10, help='of each attack (10)')
    parser.add_argument('--only', choices=ATTACKS, action='append', help='just this attack')
    parser.add_argument('--json', type=Path, help='write the figures there, too')
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        'python': platform.python_version(),
        'openssl': ssl.OPENSSL_VERSION,
        'cores': len(os.sched_getaffinity(0)),
        'rows': [],
    }
    print(f'CPython {report["python"]}, {report["openssl"]}, {report["cores"]} cores\n')
    print(f'{"":40}{"":>8}{"kept, ms":>16}{"new, ms":>16}{"new":>8}{"accept":>8}{"recov-":>8}')
    print(
        f'{"attack":40}{"tried":>8}{"p50":>8}{"p99":>8}{"p50":>8}{"p99":>8}{"served":>8}'
        f'{"CPU":>8}{"ery, s":>8}{"MiB":>8}{"log/s":>8}'
    )
    with TempPKI() as pki:
        for name in arguments.only or ATTACKS:
            attack = ATTACKS[name]
            if isinstance(attack.plan, str) and shutil.which('slowhttptest') is None:
                print(f'{name:40}  not done: slowhttptest is not installed')
                continue
            if 'max_threads' in attack.lack and os.geteuid() != 0:
                print(f'{name:40}  not done: only root can be another user')
                continue
            row = run(name, attack, arguments.seconds, pki)
            report['rows'].append(row)
            print_row(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
    main()
