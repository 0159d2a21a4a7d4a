"""Servers under wrk: hello world from degu and from its peers, with 1, 8 and 64 connections.

1. Each server runs in one worker process with what its documentation recommends for one, without an
   access log. All of them run at the same time; wrk asks one after the other, so those that it does
   not ask are idle.
2. Each must give the right answer twice on one connection before anything is measured.
3. wrk has one core and the servers have another. The rounds alternate; medians are kept.

Beside the rate stands the processor time that the server spent on a request, its workers and kernel
part included: a machine that is not quiet spoils it least.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from apps import HELLO
from common import CORES, HERE, alternate, find_port, on_cores, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECTIONS = (1, 8, 64)
ERRORS = ('connect', 'read', 'write', 'status', 'timeout')
"""What wrk counts as an error; status is one of 400 and above."""
WRK_CORES = CORES[:1]
SERVER_CORES = CORES[1:2] or CORES[:1]


def degu_command(port: int) -> list[str]:
    return ['apps.py', str(port)]


def uvicorn_command(port: int) -> list[str]:
    # Its "standard" installation: uvloop and httptools.
    options = ['--loop', 'uvloop', '--http', 'httptools', '--no-access-log']
    return ['-m', 'uvicorn', 'apps:asgi_app', '--port', str(port), *options]


def granian_rsgi_command(port: int) -> list[str]:
    options = ['--interface', 'rsgi', '--loop', 'uvloop', '--http', '1', '--no-ws']
    return ['-m', 'granian', 'apps:rsgi_app', '--port', str(port), *options]


def granian_wsgi_command(port: int) -> list[str]:
    # It warns of its default of up to 512 threads; for an application that never waits one is best.
    options = ['--interface', 'wsgi', '--blocking-threads', '1', '--http', '1', '--no-ws']
    return ['-m', 'granian', 'apps:wsgi_app', '--port', str(port), *options]


def gunicorn_command(port: int) -> list[str]:
    # "2-4 x $(NUM_CORES)" threads.
    options = ['--worker-class', 'gthread', '--workers', '1', '--threads', '4']
    return ['-m', 'gunicorn', 'apps:wsgi_app', '--bind', f'127.0.0.1:{port}', *options]


def waitress_command(port: int) -> list[str]:
    return ['-m', 'waitress', '--listen', f'127.0.0.1:{port}', 'apps:wsgi_app']


def cheroot_command(port: int) -> list[str]:
    return ['-m', 'cheroot', '--bind', f'127.0.0.1:{port}', 'apps:wsgi_app']


COMMANDS: dict[str, Callable[[int], list[str]]] = {
    'degu': degu_command,
    'uvicorn': uvicorn_command,
    'granian rsgi': granian_rsgi_command,
    'granian wsgi': granian_wsgi_command,
    'gunicorn': gunicorn_command,
    'waitress': waitress_command,
    'cheroot': cheroot_command,
}
"""What follows `python`."""


class Server(NamedTuple):
    """A server that runs."""

    name: str
    pid: int
    port: int


@contextlib.contextmanager
def start_all() -> Iterator[list[Server]]:
    """Run all servers until the end of the block."""
    with contextlib.ExitStack() as stack:
        servers = []
        for name, build_command in COMMANDS.items():
            port = find_port()
            command = on_cores(SERVER_CORES, [sys.executable, *build_command(port)])
            servers.append(Server(name, stack.enter_context(running(command, port)), port))
        yield servers


def check(server: Server) -> None:
    """Ask twice on one connection. Raises RuntimeError for a wrong answer."""
    connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=5)
    with contextlib.closing(connection):
        connection.connect()
        sock = connection.sock
        for _ in range(2):
            connection.request('GET', '/')
            response = connection.getresponse()
            body = response.read()
            if (response.status, body, connection.sock) != (200, HELLO, sock):
                raise RuntimeError(f'{server.name} answered {response.status}, {body!r}')


def find_processes(pid: int) -> Iterator[int]:
    """Yield a process and all that come from it."""
    yield pid
    for task in Path(f'/proc/{pid}/task').iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that ended
            for child in (task / 'children').read_text().split():
                yield from find_processes(int(child))


def read_cpu_s(pid: int) -> float:
    """Return the processor time that a server's processes have used, in seconds."""
    ticks = 0
    for process in find_processes(pid):
        fields = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime and stime: proc(5)
    return ticks / os.sysconf('SC_CLK_TCK')


def run_wrk(server: Server, connections: int, duration_s: int) -> dict[str, float]:
    """Let wrk ask one server for a while; return what it found out."""
    before_s = read_cpu_s(server.pid)
    command = ['wrk', '-t1', f'-c{connections}', f'-d{duration_s}s', '-s', str(HERE / 'wrk.lua')]
    output = subprocess.run(
        on_cores(WRK_CORES, [*command, f'http://127.0.0.1:{server.port}/']),
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    if not found['requests']:
        raise RuntimeError(f'{server.name} answered nothing: {found}')
    found['cpu_us'] = (read_cpu_s(server.pid) - before_s) * 1e6 / found['requests']
    found['rate'] = found['requests'] * 1e6 / found['duration_us']
    return found


def summarize(name: str, connections: int, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Put the rounds of one server together: medians, but the sum of all errors."""
    return {
        'server': name,
        'connections': connections,
        **{
            key: statistics.median(each[key] for each in rounds)
            for key in ('rate', 'cpu_us', 'p50_us', 'p99_us')
        },
        'rates': sorted(each['rate'] for each in rounds),
        'errors': {key: int(sum(each[key] for each in rounds)) for key in ERRORS},
    }


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure all servers and print a table for each number of connections."""
    rounds, duration_s = (2, 1) if quick else (5, 3)
    rows = []
    with start_all() as servers:
        for server in servers:
            check(server)
        for connections in CONNECTIONS:
            results = alternate(
                {each.name: ask(each, connections, duration_s) for each in servers}, rounds
            )
            table = [summarize(name, connections, found) for name, found in results.items()]
            for row in table:
                row['ratio'] = row['rate'] / table[0]['rate']
            print_table(connections, table)
            rows += table
    return rows


def ask(server: Server, connections: int, duration_s: int) -> Callable[[], dict[str, float]]:
    return lambda: run_wrk(server, connections, duration_s)


def print_table(connections: int, table: list[dict[str, Any]]) -> None:
    head = f'hello world, {connections} connection{"s" if connections > 1 else ""}'
    print(f'\n{head:28}{"requests":>12}{"of degu":>9}{"processor":>11}{"median":>10}{"99 %":>11}')
    for row in sorted(table, key=lambda row: -row['rate']):
        errors = ', '.join(f'{count} {kind}' for kind, count in row['errors'].items() if count)
        print(
            f'{row["server"]:28}{row["rate"]:10,.0f}/s{row["ratio"]:9.2f}{row["cpu_us"]:8.1f} us'
            f'{row["p50_us"]:7,.0f} us{row["p99_us"]:8,.0f} us'
            f'{f"   errors: {errors}" if errors else ""}',
            flush=True,
        )
    best = max(table[1:], key=lambda row: row['rate'])
    print(f'degu does {1 / best["ratio"]:.2f} times what the best peer does, {best["server"]}')
