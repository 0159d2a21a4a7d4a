"""What the benchmarks share: cores, rounds that alternate, programs beside us, the command line."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

K = TypeVar('K')
T = TypeVar('T')

HERE = Path(__file__).resolve().parent
BODY = b'x' * 108
MIB = 1024 * 1024
PIECE = bytes(MIB)
"""What large bodies are made of, on every side: a fresh one each time would cost page faults."""
CORES = sorted(os.sched_getaffinity(0))
PLACES = {
    'one core': (CORES[:1], CORES[:1]),
    'two cores': (CORES[:1], CORES[1:2] or CORES[:1]),
    'unpinned': (CORES, CORES),
}
"""Where this side and the peer's process run."""
START_TIMEOUT_S = 20.0
END_TIMEOUT_S = 20.0


def build_app(cores: list[int], app: Callable[..., Any]) -> Callable[..., Any]:
    """Pin a server's process, which calls this at its start."""
    os.sched_setaffinity(0, cores)
    return app


@contextlib.contextmanager
def pinned(cores: list[int]) -> Iterator[None]:
    """Pin this process for a while."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def on_cores(cores: list[int], command: list[str]) -> list[str]:
    """Return the command that runs `command` on `cores`."""
    return ['taskset', '--cpu-list', ','.join(map(str, cores)), *command]


def read_all(body: Any) -> None:
    """Read a body through one buffer."""
    buffer = bytearray(MIB)
    while body.readinto(buffer):
        pass


def measure(action: Callable[[], object], count: int) -> float:
    """Return how many times a second `action` was done."""
    started = perf_counter()
    for _ in range(count):
        action()
    return count / (perf_counter() - started)


def alternate(actions: Mapping[K, Callable[[], T]], rounds: int) -> dict[K, list[T]]:
    """Do all in turn, round by round, so that a noisy machine is noisy for all of them."""
    results: dict[K, list[T]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            results[name].append(action())
    return results


# --- programs beside us --------------------------------------------------------------------------


def find_port() -> int:
    """Return a TCP port that is free now."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[int]:
    """Run a server program until the end of the block; yield its pid once it listens at `port`.

    It ends with this process, too, however that ends. Raises RuntimeError with what it said if it
    does not listen.
    """
    command = ['setpriv', '--pdeathsig', 'TERM', *command]
    with tempfile.TemporaryFile('w+') as output:
        process = subprocess.Popen(command, cwd=HERE, stdout=output, stderr=output)
        try:
            deadline = monotonic() + START_TIMEOUT_S
            while not _listens(port):
                if process.poll() is not None or monotonic() > deadline:
                    output.seek(0)
                    raise RuntimeError(f'{command} does not listen: {output.read()}')
                sleep(0.02)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(('127.0.0.1', port)).close()
    except ConnectionRefusedError:
        return False
    return True


NGINX_CONFIG = """
daemon off;
pid {directory}/nginx.pid;
error_log stderr;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port}{ssl};
        root {directory}/root;
{directives}
    }}
}}
"""


@contextlib.contextmanager
def running_nginx(
    directory: Path, cores: list[int], directives: str, *, is_tls: bool = False
) -> Iterator[int]:
    """Run nginx with one worker on `directory`/root; yield its port."""
    port = find_port()
    config = directory / 'nginx.conf'
    config.write_text(
        NGINX_CONFIG.format(
            directory=directory, port=port, ssl=' ssl' if is_tls else '', directives=directives
        )
    )
    command = ['nginx', '-c', str(config), '-e', 'stderr']
    if os.geteuid() == 0:  # its worker would be another user, who cannot read the directory
        command += ['-g', 'user root;']
    with running(on_cores(cores, command), port):
        yield port


def read_version(command: list[str]) -> str:
    """Return the first version number that a program says of itself. Some fail as they say it."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    match = re.search(rb'[0-9]+(\.[0-9]+)+', done.stdout)
    if match is None:
        raise RuntimeError(f'{command} says no version: {done.stdout!r}')
    return match[0].decode()


# --- the command line ----------------------------------------------------------------------------


def build_parser(description: str) -> argparse.ArgumentParser:
    """Build the command line that all have: --json FILE and --quick."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--json', type=Path, help='write the numbers there, too')
    parser.add_argument('--quick', action='store_true', help='few rounds, to see that it works')
    return parser


def write_json(path: Path | None, report: dict[str, Any]) -> None:
    """Write a report where --json said, if it did."""
    if path:
        path.write_text(json.dumps(report, indent=2) + '\n')


def describe_machine() -> dict[str, Any]:
    """Say what the numbers were measured on."""
    return {
        'python': platform.python_version(),
        'compiler': platform.python_compiler(),
        'openssl': ssl.OPENSSL_VERSION,
        'cores': len(CORES),
    }
