"""Clients beside each other: small requests, one after the other on each kept connection.

1. One server answers all of them: degu's; then nginx with a small file and a fixed answer; then a
   bare socket that sends fixed bytes. Each has a process of its own.
2. Each client is used as its documentation shows for several requests to one host, with its
   defaults, and reads each body whole. Each answer is compared with what it must be.
3. First one client and the server share a core: a round trip is the work of both. Then four
   processes of the client share a core, and the server has another. Rounds alternate.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import multiprocessing
import os
import socket
import statistics
import tempfile
import threading
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import httpx
import requests
import urllib3
from apps import HELLO
from common import BODY, CORES, alternate, build_app, pinned, running_nginx

from degu import IPv4_LOOPBACK
from degu.client import create_client
from degu.misc import TempServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractContextManager
    from multiprocessing.synchronize import Barrier

    Take = Callable[[int], 'Speed']
    OpenClient = Callable[[str, int], AbstractContextManager[Take]]

ANSWERS = {'GET': HELLO, 'POST': BODY}
"""What GET /hello and POST /echo bring; a POST has BODY, too."""
TARGETS = {'GET': '/hello', 'POST': '/echo'}
CROWD = 4
NGINX_DIRECTIVES = f"""
        location = /echo {{ return 200 "{BODY.decode()}"; }}
"""


def app(connection: dict[str, Any], request: dict[str, Any]) -> Any:
    body = request['body']
    return 200, 'OK', {}, HELLO if body is None else body.read()


# --- clients -------------------------------------------------------------------------------------
# Each yields a function that makes `count` requests and says how fast that was.


class Speed(NamedTuple):
    """Requests a second, and the processor time that the client spent on one."""

    rate: float
    cpu_us: float


def take(call: Callable[[], bytes], expected: bytes, count: int) -> Speed:
    started, cpu = perf_counter(), process_time()
    for _ in range(count):
        if call() != expected:
            raise RuntimeError('a wrong answer')
    return Speed(count / (perf_counter() - started), (process_time() - cpu) * 1e6 / count)


@contextlib.contextmanager
def open_degu(method: str, port: int) -> Iterator[Take]:
    with create_client(f'http://127.0.0.1:{port}').connect() as connection:
        body = BODY if method == 'POST' else None

        def call() -> bytes:
            response = connection.request(method, TARGETS[method], None, body)
            assert response.body is not None
            return response.body.read()

        yield lambda count: take(call, ANSWERS[method], count)


@contextlib.contextmanager
def open_http_client(method: str, port: int) -> Iterator[Take]:
    with contextlib.closing(http.client.HTTPConnection('127.0.0.1', port)) as connection:
        body = BODY if method == 'POST' else None

        def call() -> bytes:
            connection.request(method, TARGETS[method], body)
            return connection.getresponse().read()

        yield lambda count: take(call, ANSWERS[method], count)


@contextlib.contextmanager
def open_urllib3(method: str, port: int) -> Iterator[Take]:
    with urllib3.HTTPConnectionPool('127.0.0.1', port) as pool:
        body = BODY if method == 'POST' else None
        yield lambda count: take(
            lambda: pool.request(method, TARGETS[method], body=body).data, ANSWERS[method], count
        )


@contextlib.contextmanager
def open_requests(method: str, port: int) -> Iterator[Take]:
    url = f'http://127.0.0.1:{port}{TARGETS[method]}'
    with requests.Session() as session:
        body = BODY if method == 'POST' else None
        yield lambda count: take(
            lambda: session.request(method, url, data=body).content, ANSWERS[method], count
        )


@contextlib.contextmanager
def open_httpx(method: str, port: int) -> Iterator[Take]:
    url = f'http://127.0.0.1:{port}{TARGETS[method]}'
    with httpx.Client() as client:
        body = BODY if method == 'POST' else None
        yield lambda count: take(
            lambda: client.request(method, url, content=body).content, ANSWERS[method], count
        )


@contextlib.contextmanager
def open_aiohttp(method: str, port: int) -> Iterator[Take]:
    url = f'http://127.0.0.1:{port}{TARGETS[method]}'
    body = BODY if method == 'POST' else None

    async def build_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    with asyncio.Runner() as runner:
        session = runner.run(build_session())

        async def call() -> bytes:
            async with session.request(method, url, data=body) as response:
                return await response.read()

        yield lambda count: runner.run(take_async(call, ANSWERS[method], count))
        runner.run(session.close())


async def take_async(call: Callable[[], Awaitable[bytes]], expected: bytes, count: int) -> Speed:
    started, cpu = perf_counter(), process_time()
    for _ in range(count):
        if await call() != expected:
            raise RuntimeError('a wrong answer')
    return Speed(count / (perf_counter() - started), (process_time() - cpu) * 1e6 / count)


CLIENTS = {
    'degu': open_degu,
    'http.client': open_http_client,
    'urllib3': open_urllib3,
    'requests': open_requests,
    'httpx': open_httpx,
    'aiohttp': open_aiohttp,
}


# --- servers -------------------------------------------------------------------------------------


@contextlib.contextmanager
def serve_degu(cores: list[int]) -> Iterator[int]:
    with TempServer(IPv4_LOOPBACK, build_app, cores, app) as server:
        yield server.address[1]


@contextlib.contextmanager
def serve_nginx(cores: list[int]) -> Iterator[int]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / 'root').mkdir()
        (directory / 'root' / TARGETS['GET'][1:]).write_bytes(HELLO)
        with running_nginx(directory, cores, NGINX_DIRECTIVES) as port:
            yield port


@contextlib.contextmanager
def serve_bare(cores: list[int]) -> Iterator[int]:
    with socket.create_server(IPv4_LOOPBACK) as listener:
        process = multiprocessing.get_context('fork').Process(
            target=accept_bare, args=(listener, cores)
        )
        process.start()
        try:
            yield listener.getsockname()[1]
        finally:
            process.terminate()
            process.join()
            process.close()


def accept_bare(listener: socket.socket, cores: list[int]) -> None:
    os.sched_setaffinity(0, cores)
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=answer_bare, args=(sock,), daemon=True).start()


def answer_bare(sock: socket.socket) -> None:
    """Answer each request once its known end is there, with bytes that were made before."""
    endings = {'G': b'\r\n\r\n', 'P': BODY}
    answers = {
        method[0]: b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b' % (len(body), body)
        for method, body in ANSWERS.items()
    }
    while data := sock.recv(16384):
        kind = chr(data[0])
        while not data.endswith(endings[kind]):
            data += sock.recv(16384)
        sock.sendall(answers[kind])


SERVERS = {'degu': serve_degu, 'nginx': serve_nginx, 'a bare socket': serve_bare}


# --- the run -------------------------------------------------------------------------------------


def measure_alone(method: str, server: str, quick: bool) -> dict[str, list[Speed]]:
    """Return what each client did in each round, on one core with the server."""
    rounds, count = (3, 200) if quick else (11, 1000)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(SERVERS[server](CORES[:1]))
        stack.enter_context(pinned(CORES[:1]))
        takes = {
            name: stack.enter_context(open_it(method, port)) for name, open_it in CLIENTS.items()
        }
        for each in takes.values():
            each(20)
        return alternate({name: partial(each, count) for name, each in takes.items()}, rounds)


def measure_crowd(method: str, server: str, quick: bool) -> dict[str, list[Speed]]:
    """Return what the processes of each client did in each round, on a core without the server."""
    rounds, count = (2, 200) if quick else (5, 1000)
    with SERVERS[server](CORES[1:2] or CORES[:1]) as port, pinned(CORES[:1]):
        crowds = {
            name: partial(take_crowd, open_it, method, port, count)
            for name, open_it in CLIENTS.items()
        }
        return alternate(crowds, rounds)


def take_crowd(open_it: OpenClient, method: str, port: int, count: int) -> Speed:
    context = multiprocessing.get_context('fork')
    start = context.Barrier(CROWD + 1)
    processes = [
        context.Process(target=take_one_of_crowd, args=(open_it, method, port, count, start))
        for _ in range(CROWD)
    ]
    for process in processes:
        process.start()
    start.wait()
    started, before = perf_counter(), os.times()
    for process in processes:
        process.join()
    elapsed_s, after = perf_counter() - started, os.times()
    if any(process.exitcode for process in processes):
        raise RuntimeError('a client failed')
    cpu_s = sum(after[2:4]) - sum(before[2:4])  # of the children, in Python and in the kernel
    return Speed(CROWD * count / elapsed_s, cpu_s * 1e6 / CROWD / count)


def take_one_of_crowd(
    open_it: OpenClient, method: str, port: int, count: int, start: Barrier
) -> None:
    with open_it(method, port) as take_some:
        take_some(20)
        start.wait()
        take_some(count)


WAYS = {'one process, on its core': measure_alone, 'four, on another core': measure_crowd}


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure all clients and print a table for each server and way."""
    rows = []
    for server in SERVERS:
        for way, measure in WAYS.items():
            tables = {method: measure(method, server, quick) for method in ANSWERS}
            table = [
                {'server': server, 'way': way, **summarize(name, method, speeds)}
                for method, found in tables.items()
                for name, speeds in found.items()
            ]
            ours = {row['method']: row['rate'] for row in table if row['client'] == 'degu'}
            for row in table:
                row['ratio'] = row['rate'] / ours[row['method']]
            print_table(f'clients of {server}: {way}', table)
            rows += table
    return rows


def summarize(name: str, method: str, speeds: list[Speed]) -> dict[str, Any]:
    """Put the rounds of one client together."""
    return {
        'client': name,
        'method': method,
        'rate': statistics.median(each.rate for each in speeds),
        'rates': sorted(each.rate for each in speeds),
        'cpu_us': statistics.median(each.cpu_us for each in speeds),
    }


def print_table(head: str, table: list[dict[str, Any]]) -> None:
    heads = (f'{method:>12}{"degu does":>11}{"processor":>11}' for method in ANSWERS)
    print(f'\n{head}\n{"":14}{"".join(heads)}')
    for name in CLIENTS:
        cells = (
            f'{row["rate"]:10,.0f}/s{1 / row["ratio"]:9.2f} x{row["cpu_us"]:8.1f} us'
            for row in table
            if row['client'] == name
        )
        print(f'{name:14}{"".join(cells)}', flush=True)
