"""Where the time of a small request goes, on one core over AF_UNIX.

    python tests/bench/breakdown.py

1. The processor time of a round trip, as the kernel counts it: on our side and in the peer's
   process, in Python ("user") and in the kernel ("system"), for degu and for the bare ping-pong.
2. The steps of degu that are pure, each by itself: for a preamble that is new, and for one that
   comes again.

Run by hand; nothing here is a test.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from timeit import repeat
from typing import TYPE_CHECKING

from bare import bare_peer, degu_peer, echo_app, serve_ping_pong
from common import BODY, CORES, build_parser, describe_machine, pinned, write_json

from degu.misc import TempPKI
from degu.repeats import RequestFormatter, RequestParser, ResponseFormatter, ResponseParser
from degu.wire import format_request, format_response, parse_request, parse_response

if TYPE_CHECKING:
    from collections.abc import Callable

HEADERS = {'content-type': 'application/json'}
SENT = ('POST', '/', HEADERS, len(BODY))
ANSWERED = (200, 'OK', HEADERS, len(BODY), 'POST')
REQUEST = format_request(*SENT)[:-4]
RESPONSE = format_response(*ANSWERED)[:-4]
STEPS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    'client: format a request': (
        partial(format_request, *SENT),
        partial(RequestFormatter().format, *SENT),
    ),
    'server: parse a request': (
        partial(parse_request, REQUEST),
        partial(RequestParser().parse, REQUEST),
    ),
    'server: format a response': (
        partial(format_response, *ANSWERED),
        partial(ResponseFormatter().format, *ANSWERED),
    ),
    'client: parse a response': (
        partial(parse_response, RESPONSE),
        partial(ResponseParser().parse, RESPONSE),
    ),
}
COUNT = 50_000


def read_cpu_us(pid: int) -> tuple[float, float]:
    """Return a process's time in Python and in the kernel, in microseconds. Source: proc(5)."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    tick_us = 1e6 / os.sysconf('SC_CLK_TCK')
    return int(fields[11]) * tick_us, int(fields[12]) * tick_us


def find_children() -> list[int]:
    return [int(pid) for pid in Path('/proc/thread-self/children').read_text().split()]


def measure(action: Callable[[], object], peer: int) -> dict[str, float]:
    """Return the microseconds that one `action` takes on each side, in Python and in the kernel."""
    processes = {"the client's": os.getpid(), "the server's": peer}
    before = {name: read_cpu_us(pid) for name, pid in processes.items()}
    for _ in range(COUNT):
        action()
    return {
        f'{name}, {where}': (after - since) / COUNT
        for name, pid in processes.items()
        for where, after, since in zip(
            ('user', 'system'), read_cpu_us(pid), before[name], strict=True
        )
    }


def main() -> None:
    arguments = build_parser('Say where the time of a small request goes.').parse_args()
    with (
        pinned(CORES[:1]),
        TempPKI() as pki,
        bare_peer('unix', pki, CORES[:1], serve_ping_pong) as sock,
    ):
        (bare_pid,) = find_children()
        with degu_peer('unix', pki, CORES[:1], echo_app) as connection:
            (degu_pid,) = set(find_children()) - {bare_pid}

            def ask() -> None:
                connection.request('POST', '/', None, BODY).body.read()

            def ping() -> None:
                sock.sendall(BODY)
                sock.recv(16384)

            degu, bare = measure(ask, degu_pid), measure(ping, bare_pid)
        steps = {
            name: [min(repeat(step, number=COUNT)) / COUNT * 1e6 for step in both]
            for name, both in STEPS.items()
        }
    print(f'{"microseconds a round trip":32}{"degu":>8}{"bare":>8}')
    for name in degu:
        print(f'{name:32}{degu[name]:8.2f}{bare[name]:8.2f}')
    print(f'{"all":32}{sum(degu.values()):8.2f}{sum(bare.values()):8.2f}\n')
    print(f'{"with one header":32}{"new":>8}{"again":>8}')
    for name, (new, again) in steps.items():
        print(f'{name:32}{new:8.2f}{again:8.2f}')
    write_json(arguments.json, {**describe_machine(), 'degu': degu, 'bare': bare, 'steps': steps})


if __name__ == '__main__':
    main()
