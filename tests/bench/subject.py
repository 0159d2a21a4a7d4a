"""A server in a process of its own, and what it costs by the kernel's word.

1. `Subject(...)` starts `python subject.py CONFIG`, which serves one application at one or more
   addresses, the first from its main thread, and tells the addresses on its standard output.
2. The figures of the process come from /proc, so that measuring costs it nothing.
3. Its log goes to a file. `close()` shuts it down in order and fails if it does not end so.

What the application offers: `GET /` has no body, `GET /SIZE` has so many bytes, `GET /SIZE/chunked`
the same in chunks; a request body is read to its end and its size is the answer.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from common import MIB, PIECE

from degu.server import Server, SSLServer, build_server_sslctx

if TYPE_CHECKING:
    from degu.net import Address

PR_SET_PDEATHSIG = 1
END_S = 10.0
"""How long a server may take to end."""


class Place(NamedTuple):
    """Where to serve: an address, and the config of TLS or None."""

    address: Address
    tls: dict[str, Any] | None = None


def app(connection: dict[str, Any], request: dict[str, Any]) -> Any:
    body = request['body']
    if body is not None:
        return 200, 'OK', {}, b'%d' % sum(len(piece) for piece in body)
    if not request['path']:
        return 200, 'OK', {}, None
    size, *chunked = request['path']
    pieces = (PIECE[: int(size) - start] for start in range(0, int(size), MIB))
    if chunked:
        return 200, 'OK', {}, connection['rgi.ChunkedOutput'](end_with_empty(pieces))
    return 200, 'OK', {}, connection['rgi.Output'](pieces, int(size))


def end_with_empty(pieces: Any) -> Any:
    yield from pieces
    yield b''


def serve(
    places: list[Any],
    options: dict[str, Any],
    max_descriptors: int | None,
    max_threads: int | None,
) -> None:
    """Serve until SIGTERM, with no more than so many descriptors and threads."""
    logging.basicConfig(format='%(levelname)s %(message)s')
    servers = [
        Server(address, app, **options)
        if tls is None
        else SSLServer(build_server_sslctx(tls), address, app, **options)
        for address, tls in places
    ]
    first, *others = servers
    signal.signal(signal.SIGTERM, lambda number, frame: first.shutdown())
    signal.signal(signal.SIGUSR1, lambda number, frame: give_back_memory())
    if max_descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max_descriptors, max_descriptors))
    if max_threads is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (max_threads, max_threads))
        # Root is not bound by it, and all threads of a user count: be one that nobody else is.
        uid = 2_000_000_000 + os.getpid()
        os.setresuid(uid, uid, uid)
    end_with_parent()
    with contextlib.ExitStack() as stack:
        for server in others:
            stack.enter_context(server)
        print([server.address for server in servers], flush=True)
        first.serve_forever()


def end_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, however that came. See prctl(2)."""
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError('prctl failed')


def give_back_memory() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    print('done', flush=True)


class Subject:
    """The process of a server; `.addresses` are where it serves."""

    def __init__(
        self,
        log_path: Path,
        *places: Place,
        max_descriptors: int | None = None,
        max_threads: int | None = None,
        environment: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        """Start it. `options` are limits. Raises RuntimeError if it does not start.

        `max_threads` needs root. `environment` is added to ours.
        """
        self.log_path = log_path
        config = {
            'places': [tuple(place) for place in places],
            'options': options,
            'max_descriptors': max_descriptors,
            'max_threads': max_threads,
        }
        with log_path.open('wb') as log:
            self.process = subprocess.Popen(
                [sys.executable, '-W', 'error', __file__, repr(config)],
                env={**os.environ, **(environment or {})},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self._output = self.process.stdout
        line = self._output.readline()
        if not line:
            self.process.wait()
            self._output.close()
            raise RuntimeError(f'the server did not start: {self.log_path.read_text()}')
        self.addresses: list[Address] = ast.literal_eval(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process. Raises RuntimeError if it does not end by itself, and well."""
        self.process.terminate()
        try:
            code = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise RuntimeError(f'the server did not end in {END_S:g} s') from None
        finally:
            self._output.close()
        if code:
            raise RuntimeError(f'the server ended with {code}: {self.log_path.read_text()}')

    def count_log_lines(self) -> int:
        return self.log_path.read_bytes().count(b'\n')

    def read_accept_cpu_s(self) -> float:
        """Return the CPU time of the thread with the (first) accept loop, in seconds.

        Source: the kernel's Documentation/scheduler/sched-stats.rst.
        """
        pid = self.process.pid
        return int(Path(f'/proc/{pid}/task/{pid}/schedstat').read_text().split()[0]) / 1e9

    def give_back_memory(self) -> None:
        """Have the process give back what its allocator keeps for later. See malloc_trim(3)."""
        self.process.send_signal(signal.SIGUSR1)
        self._output.readline()

    def read_memory(self) -> int:
        """Return the resident size in bytes."""
        return read_memory(self.process.pid)

    def count_threads(self) -> int:
        return len(os.listdir(f'/proc/{self.process.pid}/task'))

    def count_descriptors(self) -> int:
        return len(os.listdir(f'/proc/{self.process.pid}/fd'))


def read_memory(pid: int) -> int:
    """Return the resident size of a process in bytes."""
    for line in Path(f'/proc/{pid}/status').read_text().splitlines():
        if line.startswith('VmRSS:'):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'process {pid} has no VmRSS')


if __name__ == '__main__':
    serve(**ast.literal_eval(sys.argv[1]))
