"""How fast and how small the core is, as ratios against bare sockets in the same run.

    python tests/bench/bare.py [--json FILE] [--quick]

1. Requests: POST with 108 bytes, answered with 108 bytes, one connection, over AF_UNIX, TCP, TLS,
   beside a bare sendall/recv ping-pong of 108 bytes over the same kind of socket. Both alternate in
   short rounds, so that a noisy machine is noisy for both; the ratio of a process is that of its
   median rounds, and the median of five processes is printed. Both sides on one core; each on one
   of its own; and where the scheduler puts them, which is not the same for ours and the bare one.
2. Bodies: a large response and a large request beside a bare copy with 1 MiB calls.
3. Memory: the resident size of an idle server, and what an idle connection adds to it.

Run by hand; nothing here is a test.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from common import (
    BODY,
    MIB,
    PIECE,
    PLACES,
    alternate,
    build_app,
    build_parser,
    describe_machine,
    measure,
    read_all,
    write_json,
)
from subject import read_memory

from degu import IPv4_LOOPBACK
from degu.bodies import Output
from degu.client import Client, SSLClient, build_client_sslctx
from degu.misc import TempPKI, TempServer, TempSSLServer
from degu.server import build_server_sslctx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS = ('unix', 'tcp', 'tls')
CONNECTIONS = 200


def echo_app(connection: dict[str, Any], request: dict[str, Any]) -> Any:
    return 200, 'OK', {}, request['body'].read()


def body_app(connection: dict[str, Any], request: dict[str, Any]) -> Any:
    """Answer GET /size with that many bytes; take whatever PUT brings."""
    if request['method'] == 'GET':
        size = int(request['path'][0])
        return 200, 'OK', {}, connection['rgi.Output']((PIECE for _ in range(size // MIB)), size)
    read_all(request['body'])
    return 200, 'OK', {}, None


# --- bare sockets --------------------------------------------------------------------------------


@contextlib.contextmanager
def bare_peer(
    kind: str, pki: TempPKI, cores: list[int], serve: Callable[[socket.socket], None]
) -> Iterator[Any]:
    """Yield a connected bare socket whose other end runs `serve` in a process of its own."""
    with contextlib.ExitStack() as stack:
        if kind == 'unix':
            ours, theirs = socket.socketpair()
        else:
            listener = stack.enter_context(socket.create_server(('127.0.0.1', 0)))
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
            for sock in (ours, theirs):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        process = multiprocessing.get_context('fork').Process(
            target=run_bare, args=(kind, pki, cores, ours, theirs, serve)
        )
        process.start()
        theirs.close()
        if kind == 'tls':
            ours = build_client_sslctx(pki.get_client_config()).wrap_socket(ours)
        try:
            yield ours
        finally:
            ours.close()
            process.join()
            process.close()


def run_bare(
    kind: str,
    pki: TempPKI,
    cores: list[int],
    ours: socket.socket,
    theirs: socket.socket,
    serve: Callable[[socket.socket], None],
) -> None:
    os.sched_setaffinity(0, cores)
    ours.close()
    if kind == 'tls':
        theirs = build_server_sslctx(pki.get_server_config()).wrap_socket(theirs, server_side=True)
    with theirs, contextlib.suppress(ConnectionResetError):
        serve(theirs)


def serve_ping_pong(sock: socket.socket) -> None:
    while data := sock.recv(16384):
        sock.sendall(data)


def serve_source(sock: socket.socket) -> None:
    """For each 8-byte size that arrives send so many MiB."""
    while size := int.from_bytes(sock.recv(8)):
        for _ in range(size):
            sock.sendall(PIECE)


def serve_sink(sock: socket.socket) -> None:
    """For each 8-byte size that arrives take so many MiB, then send a byte."""
    buffer = bytearray(MIB)
    while size := int.from_bytes(sock.recv(8)):
        take_bare(sock, size, buffer)
        sock.sendall(b'.')


def take_bare(sock: socket.socket, size_mib: int, buffer: bytearray) -> None:
    missing = size_mib * MIB
    while missing:
        missing -= sock.recv_into(buffer, min(missing, MIB))


# --- degu ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def degu_peer(kind: str, pki: TempPKI, cores: list[int], app: Callable[..., Any]) -> Iterator[Any]:
    """Yield a connection to a degu server that runs `app` in a process of its own."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        if kind == 'tls':
            config = pki.get_server_config()
            server = stack.enter_context(
                TempSSLServer(config, IPv4_LOOPBACK, build_app, cores, app)
            )
            sslctx = build_client_sslctx(pki.get_client_config())
            client: Client = SSLClient(sslctx, server.address)
        else:
            address = f'{directory}/socket' if kind == 'unix' else IPv4_LOOPBACK
            server = stack.enter_context(TempServer(address, build_app, cores, app))
            client = Client(server.address)
        yield stack.enter_context(client.connect())


def measure_beside(
    ours: Callable[[], object], bare: Callable[[], object], rounds: int, count: int
) -> tuple[float, float]:
    """Measure both in turn; return the median rate of each."""
    rates = alternate(
        {'degu': lambda: measure(ours, count), 'bare': lambda: measure(bare, count)}, rounds
    )
    return statistics.median(rates['degu']), statistics.median(rates['bare'])


def measure_requests(kind: str, cores: list[int], quick: bool) -> tuple[float, float]:
    with (
        TempPKI() as pki,
        bare_peer(kind, pki, cores, serve_ping_pong) as sock,
        degu_peer(kind, pki, cores, echo_app) as connection,
    ):

        def ours() -> None:
            connection.request('POST', '/', None, BODY).body.read()

        def bare() -> None:
            sock.sendall(BODY)
            sock.recv(16384)

        return measure_beside(ours, bare, rounds=5 if quick else 21, count=300 if quick else 1000)


def measure_bodies(kind: str, cores: list[int], direction: str, quick: bool) -> tuple[float, float]:
    size_mib = 64 if quick else 256
    buffer = bytearray(MIB)
    serve = serve_source if direction == 'response' else serve_sink
    with (
        TempPKI() as pki,
        bare_peer(kind, pki, cores, serve) as sock,
        degu_peer(kind, pki, cores, body_app) as connection,
    ):

        def ours() -> None:
            if direction == 'response':
                read_all(connection.get(f'/{size_mib * MIB}').body)
            else:
                pieces = (PIECE for _ in range(size_mib))
                connection.put('/', None, Output(pieces, size_mib * MIB))

        def bare() -> None:
            sock.sendall(size_mib.to_bytes(8))
            if direction == 'response':
                take_bare(sock, size_mib, buffer)
            else:
                for _ in range(size_mib):
                    sock.sendall(PIECE)
                sock.recv(1)

        ours_rate, bare_rate = measure_beside(ours, bare, rounds=3 if quick else 5, count=1)
        return ours_rate * size_mib * MIB, bare_rate * size_mib * MIB


# --- memory --------------------------------------------------------------------------------------

IDLE_SERVER = """
import json, sys
from degu.server import Server, SSLServer, build_server_sslctx
options = {'max_connections_per_address': 256}
def app(connection, request):
    return 200, 'OK', {}, request['body'].read()
config = json.loads(sys.argv[1])
if config:
    server = SSLServer(build_server_sslctx(config), ('127.0.0.1', 0), app, **options)
else:
    server = Server(('127.0.0.1', 0), app, **options)
print(server.address[1], flush=True)
server.serve_forever()
"""


def measure_memory(kind: str) -> tuple[int, float]:
    """Return the resident size of an idle server, and what each idle connection adds to it."""
    with TempPKI() as pki:
        config = pki.get_server_config() if kind == 'tls' else None
        process = subprocess.Popen(
            [sys.executable, '-c', IDLE_SERVER, json.dumps(config)],
            stdout=subprocess.PIPE,
            text=True,
        )
        with process, contextlib.ExitStack() as stack:
            stack.callback(process.terminate)
            assert process.stdout is not None
            address = ('127.0.0.1', int(process.stdout.readline()))
            client = Client(address)
            if kind == 'tls':
                client = SSLClient(build_client_sslctx(pki.get_client_config()), address)
            idle = read_memory(process.pid)
            for _ in range(CONNECTIONS):
                connection = stack.enter_context(client.connect())
                connection.post('/', None, BODY).body.read()
            return idle, (read_memory(process.pid) - idle) / CONNECTIONS


# --- the run -------------------------------------------------------------------------------------


def run_here(job: dict[str, Any]) -> None:
    """Do one job in this fresh process and print its numbers."""
    our_cores, their_cores = PLACES[job['place']]
    os.sched_setaffinity(0, our_cores)
    if job['what'] == 'requests':
        result = measure_requests(job['kind'], their_cores, job['quick'])
    else:
        result = measure_bodies(job['kind'], their_cores, job['what'], job['quick'])
    print(json.dumps(result))


def run_apart(job: dict[str, Any], processes: int) -> dict[str, Any]:
    """Do a job in fresh processes, one after the other; return medians."""
    results = []
    for _ in range(processes):
        output = subprocess.run(
            [sys.executable, __file__, '--job', json.dumps(job)],
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        results.append(json.loads(output))
    return {
        **job,
        'degu': statistics.median(ours for ours, _ in results),
        'bare': statistics.median(bare for _, bare in results),
        'ratios': sorted(ours / bare for ours, bare in results),
        'ratio': statistics.median(ours / bare for ours, bare in results),
    }


def run_all(quick: bool) -> dict[str, Any]:
    processes = 1 if quick else 5
    report: dict[str, Any] = {**describe_machine(), 'rates': [], 'memory': []}
    print(f'CPython {report["python"]}, {report["openssl"]}, {report["cores"]} cores\n')
    print(f'{"":38}{"degu":>12}{"bare":>12}{"ratio":>8}   all processes')
    for what in ('requests', 'response', 'request'):
        for place in PLACES:
            for kind in KINDS:
                job = {'what': what, 'kind': kind, 'place': place, 'quick': quick}
                row = run_apart(job, processes if what == 'requests' else min(processes, 3))
                report['rates'].append(row)
                print_rate(row)
    print(f'\n{"resident size":38}{"idle server":>12}{"a connection more":>20}')
    for kind in ('tcp', 'tls'):
        idle, each = measure_memory(kind)
        report['memory'].append({'kind': kind, 'idle': idle, 'connection': each})
        print(f'{kind:38}{idle / MIB:8.1f} MiB{each / 1024:16.1f} KiB')
    return report


def print_rate(row: dict[str, Any]) -> None:
    is_requests = row['what'] == 'requests'
    name = 'requests' if is_requests else f'{row["what"]} body'
    name = f'{name}, {row["kind"]}, {row["place"]}'
    scale, unit = (1, '/s  ') if is_requests else (1e6, 'MB/s')
    rates = (f'{row[side] / scale:8,.0f}{unit}' for side in ('degu', 'bare'))
    ratios = ' '.join(f'{ratio:.2f}' for ratio in row['ratios'])
    print(f'{name:38}{"".join(rates)}{row["ratio"]:8.2f}   {ratios}', flush=True)


def main() -> None:
    parser = build_parser('Measure the core against bare sockets.')
    parser.add_argument('--job', type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        run_here(arguments.job)
    else:
        write_json(arguments.json, run_all(arguments.quick))


if __name__ == '__main__':
    main()
