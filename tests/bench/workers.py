"""What a second worker brings: an application that computes, under wrk with 64 connections.

    python tests/bench/workers.py

Both servers run at once and are asked in turn. Nothing is pinned: wrk needs little beside them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from functools import partial
from typing import Any

from common import CORES, HERE, alternate, build_parser, describe_machine, write_json

from degu import IPv4_LOOPBACK
from degu.misc import TempServer

CONNECTIONS = 64
ITEMS = 20_000


def computing_app(connection: dict[str, Any], request: dict[str, Any]) -> Any:
    """Answer with a sum that takes about a millisecond."""
    return 200, 'OK', {}, str(sum(i * i for i in range(ITEMS))).encode()


def ask(server: TempServer, duration_s: int) -> float:
    """Let wrk ask for a while; return the requests a second."""
    command = ['wrk', '-t1', f'-c{CONNECTIONS}', f'-d{duration_s}s', '-s', str(HERE / 'wrk.lua')]
    output = subprocess.run(
        [*command, f'http://127.0.0.1:{server.address[1]}/'], stdout=subprocess.PIPE, check=True
    ).stdout
    found = json.loads(output.splitlines()[-1])
    if found['status'] or found['connect']:
        raise RuntimeError(f'wrk met errors: {found}')
    rate: float = found['requests'] * 1e6 / found['duration_us']
    return rate


def main() -> None:
    arguments = build_parser('Measure what a second worker brings.').parse_args()
    rounds, duration_s = (2, 1) if arguments.quick else (5, 4)
    options = {'max_connections_per_address': 2 * CONNECTIONS}
    with (
        TempServer(IPv4_LOOPBACK, None, computing_app, **options) as one,
        TempServer(IPv4_LOOPBACK, None, computing_app, workers=2, **options) as two,
    ):
        actions = {1: partial(ask, one, duration_s), 2: partial(ask, two, duration_s)}
        results = alternate(actions, rounds)
    rates = {count: statistics.median(found) for count, found in results.items()}
    print(f'{CONNECTIONS} connections, {len(CORES)} cores, an application that computes')
    for count, rate in rates.items():
        print(f'workers={count} {rate:10,.0f}/s {rate / rates[1]:8.2f}')
    write_json(arguments.json, {**describe_machine(), 'rates': rates})


if __name__ == '__main__':
    main()
