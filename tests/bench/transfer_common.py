"""What the contenders of `transfer.py` share: where they copy, what is measured, jobs of their own.

1. A contender is a context manager that starts what it needs and yields a Copy, which brings the
   source into one destination after the other.
2. What is in Python runs as a job: a fresh process for each copy, which times itself, so that
   neither its start nor anything that ran before it is in a figure.
3. Bytes on the wire are counted by a relay between both sides: what TCP carries, either way.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from common import HERE, MIB, PIECE, find_port, running

from degu.misc import TempPKI

HOST = '127.0.0.1'
MEMORY = '/dev/shm'
FILE = 'file'
"""The one large file in a source that has no others."""


class Setting(NamedTuple):
    """Where a case takes place: what is copied, room for what a contender needs, and how."""

    source: Path
    scratch: Path
    pki: TempPKI
    is_durable: bool
    is_counted: bool


class Measured(NamedTuple):
    """What one copy took: seconds, bytes of memory at most on both sides, bytes on the wire."""

    seconds: float
    receiver: int = 0
    sender: int = 0
    wire: int = 0


def warm_memory(setting: Setting) -> None:
    """Have the machine own as much memory as the source takes, just before a copy of it begins.

    A virtual machine may give free memory back within two seconds. Getting it again costs up to
    four times what writing to it does, and would be in the figure of whoever comes first.
    """
    size = sum(path.stat().st_size for path in setting.source.rglob('*'))
    with tempfile.TemporaryFile(dir=MEMORY, buffering=0) as file:
        for _ in range(size // MIB):
            file.write(PIECE)


Copy = Callable[[Path], Measured]
OpenCopy = Callable[[Setting], AbstractContextManager[Copy]]


# --- jobs ----------------------------------------------------------------------------------------


def run_job(jobs: dict[str, Callable[..., dict[str, float] | None]]) -> None:
    """Do in this process what the command line says, and print what it found."""
    name, arguments = sys.argv[1:]
    found = jobs[name](**json.loads(arguments))
    print(json.dumps(found))


def build_job(file: str, name: str, arguments: dict[str, Any]) -> list[str]:
    """Return the command of a job in `file`. Paths travel as texts."""
    return [sys.executable, str(HERE / file), name, json.dumps(arguments, default=str)]


def do_job(file: str, name: str, arguments: dict[str, Any]) -> dict[str, float]:
    """Run a job to its end and return what it found. Raises CalledProcessError."""
    command = build_job(file, name, arguments)
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    found: dict[str, float] = json.loads(output)
    return found


@contextlib.contextmanager
def serving(file: str, name: str, setting: Setting) -> Iterator[tuple[int, int]]:
    """Run a job that serves the source over TLS; yield its port and its pid."""
    port = find_port()
    arguments = {
        'port': port,
        'tls': setting.pki.get_server_config(),
        'source': setting.source,
        'scratch': setting.scratch,
    }
    with running(build_job(file, name, arguments), port) as pid:
        yield port, pid


def listen(port: int) -> socket.socket:
    """Listen where a job was told to."""
    return socket.create_server((HOST, port))


def read_peak(pid: int | str = 'self') -> int:
    """Return the largest resident size that a process ever had, in bytes."""
    for line in Path(f'/proc/{pid}/status').read_text().splitlines():
        if line.startswith('VmHWM:'):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'process {pid} has no VmHWM')


# --- bytes on the wire ---------------------------------------------------------------------------


class Relay:
    """Passes on what comes to `.port`, to another port, and counts it. Use it with `with`."""

    def __init__(self, port: int) -> None:
        # Guarded by self._lock: _passed, _connections. Set once: the rest.
        self._target = port
        self._listener = listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._passed = 0
        self._connections: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Relay:
        self._accepting.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # ends the wait in accept(); close() would not
        self._accepting.join()
        self._listener.close()
        self.take()

    def take(self) -> int:
        """Wait for all connections to end; return how many bytes went over them, either way."""
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.join()
        with self._lock:
            passed, self._passed = self._passed, 0
        return passed

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection((HOST, self._target))
            connection = threading.Thread(target=self._pass_both, args=(near, far), daemon=True)
            with self._lock:
                self._connections.append(connection)
            connection.start()

    def _pass_both(self, near: socket.socket, far: socket.socket) -> None:
        back = threading.Thread(target=self._pass, args=(far, near), daemon=True)
        back.start()
        self._pass(near, far)
        back.join()
        near.close()
        far.close()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        buffer = memoryview(bytearray(MIB))
        with contextlib.suppress(OSError):  # one side closed without waiting for the other
            while count := source.recv_into(buffer):
                with self._lock:
                    self._passed += count
                target.sendall(buffer[:count])
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def reachable(setting: Setting, port: int) -> Iterator[tuple[int, Callable[[], int]]]:
    """Yield the port to copy from, and what says how many bytes went over it since it last did."""
    if not setting.is_counted:
        yield port, lambda: 0
        return
    with Relay(port) as relay:
        yield relay.port, relay.take
