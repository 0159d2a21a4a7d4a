"""What a node costs: its start, `degu status`, what it takes while nothing happens, and imports.

    python tests/bench/node.py            a minute of rest
    python tests/bench/node.py --quick    five seconds of it

The goals are for a quiet machine; they stand beside the numbers. Nothing fails here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

DEGU = [sys.executable, '-m', 'degu_rpc.cli']
MODULES = ('degu', 'degu_rpc', 'degu_rpc.peers', 'degu_rpc.rpc.client', 'degu_rpc.cli.running')
TICKS_PER_S = os.sysconf('SC_CLK_TCK')
PAGE_SIZE = os.sysconf('SC_PAGE_SIZE')
RUNS = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='rest for 5 s, not for 60')
    rest_s = 5.0 if parser.parse_args().quick else 60.0
    with tempfile.TemporaryDirectory(prefix='degu-bench-') as directory:
        environment = {**os.environ, 'DEGU_HOME': directory, 'DEGU_LISTEN': '127.0.0.1'}
        with start(environment):
            pass  # makes the keys
        starts = []
        for _ in range(RUNS):
            began = time.monotonic()
            with start(environment):
                starts.append(time.monotonic() - began)
        show('start to ready, keys there', statistics.median(starts) * 1000, 'ms', '300')
        with start(environment) as pid:
            wall_s, cpu_s = time_command([*DEGU, 'status'], environment)
            show('degu status, wall', wall_s * 1000, 'ms', '150')
            show('degu status, user and system', cpu_s * 1000, 'ms', '-')
            before = read_cpu(pid)
            time.sleep(rest_s)
            show(f'CPU in {rest_s:.0f} s of rest', (read_cpu(pid) - before) * 1000, 'ms', '-')
            show('RSS at rest', read_rss(pid) / 2**20, 'MiB', '-')
        empty_s, _ = time_command([sys.executable, '-c', 'pass'], environment)
        for module in MODULES:
            wall_s, _ = time_command([sys.executable, '-c', f'import {module}'], environment)
            show(f'import {module}', (wall_s - empty_s) * 1000, 'ms', '-')


@contextlib.contextmanager
def start(environment: dict[str, str]) -> Iterator[int]:
    """Run a node, which is ready inside of the block; yield its process id."""
    command = [*DEGU, 'up', '--port=0', '--no-discovery']
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if b'ready' not in process.stdout.readline():
                raise SystemExit('the node did not start')
            yield process.pid
        finally:
            process.terminate()


def time_command(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return the median seconds of a command: by the clock, and of the processors."""
    walls, cpus = [], []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.monotonic()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        walls.append(time.monotonic() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(walls), statistics.median(cpus)


def read_cpu(pid: int) -> float:
    """Return the seconds of the processors that a process has had. Source: proc_pid_stat(5)."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def read_rss(pid: int) -> int:
    """Return the bytes of memory that a process has. Source: proc_pid_statm(5)."""
    return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * PAGE_SIZE


def show(what: str, number: float, unit: str, goal: str) -> None:
    """Print a line."""
    print(f'{what:34} {number:8.1f} {unit:4} goal {goal}', flush=True)


if __name__ == '__main__':
    main()
