"""How fast a call is beside other ways to call a function of another process.

    python tests/bench/rpc.py [--json FILE] [--quick]

1. One connection over loopback TCP, without and with TLS (1.3, certificates on both sides), to a
   server in a process of its own (`rpc_servers.py`). A function is called with 100 characters and
   returns them; each answer is compared. Rounds alternate between all of them.
2. Each client is used as its documentation shows for several calls, with its defaults. Ours checks
   what it sends and what it gets against annotations.
3. What a call of ours costs above a bare request to the same kind of server, in processor time of
   both sides.
4. Streams of many messages of 100 characters, either way. Pyro5 has none, but iterators, each step
   of which is a call. And streams of blocks of 1 MiB, beside a chunked body of the same blocks from
   a server without calls.

Needs the `bench` extra and taskset. Run by hand; nothing here is a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import ipaddress
import itertools
import os
import statistics
import sys
import tempfile
import textwrap
import xmlrpc.client
from collections.abc import Iterator  # what Streams says is resolved
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import httpx
import Pyro5.api
import rpyc
from breakdown import read_cpu_us
from common import (
    CORES,
    alternate,
    build_parser,
    describe_machine,
    find_port,
    measure,
    on_cores,
    pinned,
    running,
    write_json,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from google.protobuf.wrappers_pb2 import StringValue
from rpc_servers import BLOCK, HOST, SERVICE, Files

from degu import pki
from degu.client import Client, SSLClient
from degu.tls import build_client_sslctx
from degu_rpc import RpcClient
from degu_rpc.rpc.codec import JSON, MSGPACK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    Take = Callable[[int], float]
    TakeStreams = dict[str, Take]
    OpenClient = Callable[[int, Files], AbstractContextManager[Take]]

TEXT = 'x' * 100
PACKAGES = ('grpcio', 'protobuf', 'Pyro5', 'rpyc', 'fastapi', 'uvicorn', 'httpx', 'aiohttp')
PLACES = {'one core': CORES[:1], 'two cores': CORES[1:2] or CORES[:1]}
"""Where the server runs; the client has the first."""


# --- clients -------------------------------------------------------------------------------------
# Each yields a function that makes so many calls and says how many a second that was.


def take(call: Callable[[], object], count: int) -> float:
    def check() -> None:
        if call() != TEXT:
            raise RuntimeError('a wrong answer')

    return measure(check, count)


def build_client(port: int, files: Files) -> Client:
    address = (HOST, port)
    return SSLClient(build_sslctx(files), address) if files else Client(address)


def build_sslctx(files: dict[str, str]) -> Any:
    return build_client_sslctx({**files, 'check_hostname': False})


class Echo:
    """What ours is called through: the annotations are checked."""

    def echo(self, text: str) -> str: ...


@contextlib.contextmanager
def open_degu(codec: Any, port: int, files: Files) -> Iterator[Take]:
    with RpcClient(build_client(port, files), '', codec) as client:
        echo = client.bind(Echo, SERVICE).echo
        yield partial(take, lambda: echo(TEXT))


@contextlib.contextmanager
def open_bare(port: int, files: Files) -> Iterator[Take]:
    headers = {'content-type': 'application/json'}
    with build_client(port, files).connect() as connection:

        def call() -> str:
            response = connection.request('POST', '/', headers, TEXT.encode())
            assert response.body is not None
            return response.body.read().decode()

        yield partial(take, call)


@contextlib.contextmanager
def open_grpcio(port: int, files: Files) -> Iterator[Take]:
    address = f'{HOST}:{port}'
    if files:
        ca, key, cert = (Path(files[f'{x}_file']).read_bytes() for x in ('ca', 'key', 'cert'))
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert))
    else:
        channel = grpc.insecure_channel(address)
    with channel:
        echo = channel.unary_unary(
            f'/{SERVICE}/echo',
            request_serializer=StringValue.SerializeToString,
            response_deserializer=StringValue.FromString,
        )
        yield partial(take, lambda: echo(StringValue(value=TEXT)).value)


@contextlib.contextmanager
def open_pyro5(port: int, files: Files) -> Iterator[Take]:
    config = Pyro5.config
    config.SSL = files is not None
    if files:
        config.SSL_CLIENTCERT, config.SSL_CLIENTKEY = files['cert_file'], files['key_file']
        config.SSL_CACERTS = files['ca_file']
    with Pyro5.api.Proxy(f'PYRO:echo@{HOST}:{port}') as proxy:
        yield partial(take, lambda: proxy.echo(TEXT))


@contextlib.contextmanager
def open_rpyc(port: int, files: Files) -> Iterator[Take]:
    if files:
        connection = rpyc.ssl_connect(
            HOST, port, files['key_file'], files['cert_file'], files['ca_file']
        )
    else:
        connection = rpyc.connect(HOST, port)
    with connection:
        yield partial(take, lambda: connection.root.echo(TEXT))


@contextlib.contextmanager
def open_xmlrpc(port: int, files: Files) -> Iterator[Take]:
    uri = f'{"https" if files else "http"}://{HOST}:{port}'
    context = build_sslctx(files) if files else None
    with xmlrpc.client.ServerProxy(uri, context=context) as proxy:
        yield partial(take, lambda: proxy.echo(TEXT))


@contextlib.contextmanager
def open_httpx(port: int, files: Files) -> Iterator[Take]:
    uri = f'{"https" if files else "http"}://{HOST}:{port}/echo'
    with httpx.Client(verify=build_sslctx(files) if files else True) as client:
        yield partial(take, lambda: client.post(uri, json={'text': TEXT}).json()['text'])


@contextlib.contextmanager
def open_aiohttp(port: int, files: Files) -> Iterator[Take]:
    uri = f'{"https" if files else "http"}://{HOST}:{port}/echo'
    sslctx = build_sslctx(files) if files else True

    async def build_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def take_async(count: int) -> float:
        started = perf_counter()
        for _ in range(count):
            async with session.post(uri, json={'text': TEXT}, ssl=sslctx) as response:
                if (await response.json())['text'] != TEXT:
                    raise RuntimeError('a wrong answer')
        return count / (perf_counter() - started)

    with asyncio.Runner() as runner:
        session = runner.run(build_session())
        yield lambda count: runner.run(take_async(count))
        runner.run(session.close())


CLIENTS: dict[str, tuple[str, OpenClient]] = {
    'degu, JSON': ('degu', partial(open_degu, JSON)),
    'degu, msgpack': ('degu', partial(open_degu, MSGPACK)),
    'Pyro5': ('Pyro5', open_pyro5),
    'xmlrpc': ('xmlrpc', open_xmlrpc),
    'rpyc': ('rpyc', open_rpyc),
    'grpcio': ('grpcio', open_grpcio),
    'aiohttp': ('aiohttp', open_aiohttp),
    'FastAPI + httpx': ('FastAPI', open_httpx),
    'a bare request': ('bare', open_bare),
}
"""The server and the client of each."""


# --- clients of streams --------------------------------------------------------------------------
# Each yields functions by what streams, as above.


def take_repeated(repeat: Callable[[int], Iterable[object]], expected: object, count: int) -> float:
    started = perf_counter()
    found = 0
    for item in repeat(count):
        if item != expected:
            raise RuntimeError('a wrong answer')
        found += 1
    return check_count(found, count) / (perf_counter() - started)


def take_count(count_all: Callable[[Iterator[str]], int], count: int) -> float:
    started = perf_counter()
    found = count_all(itertools.repeat(TEXT, count))
    return check_count(found, count) / (perf_counter() - started)


def check_count(found: int, count: int) -> int:
    if found != count:
        raise RuntimeError(f'{found} of {count} messages')
    return count


class Streams:
    """What the streams of ours are called through."""

    def repeat(self, text: str, times: int) -> Iterator[str]: ...

    def repeat_block(self, times: int) -> Iterator[bytes]: ...

    def count(self, texts: Iterator[str]) -> int: ...


@contextlib.contextmanager
def stream_degu(codec: Any, port: int) -> Iterator[TakeStreams]:
    with RpcClient(Client((HOST, port)), '', codec) as client:
        bound = client.bind(Streams, SERVICE)
        takes = {
            'results': partial(take_repeated, partial(bound.repeat, TEXT), TEXT),
            'items': partial(take_count, bound.count),
        }
        if codec is MSGPACK:  # JSON has no bytes
            takes['blocks'] = partial(take_repeated, bound.repeat_block, BLOCK)
        yield takes


@contextlib.contextmanager
def stream_grpcio(port: int) -> Iterator[TakeStreams]:
    codecs = (StringValue.SerializeToString, StringValue.FromString)
    with grpc.insecure_channel(f'{HOST}:{port}') as channel:
        repeat = channel.unary_stream(f'/{SERVICE}/repeat', *codecs)
        count = channel.stream_unary(f'/{SERVICE}/count', *codecs)

        def repeat_text(times: int) -> Iterator[str]:
            return (item.value for item in repeat(StringValue(value=f'{times} {TEXT}')))

        def count_all(texts: Iterator[str]) -> int:
            return int(count(StringValue(value=text) for text in texts).value)

        yield {
            'results': partial(take_repeated, repeat_text, TEXT),
            'items': partial(take_count, count_all),
        }


@contextlib.contextmanager
def stream_pyro5(port: int) -> Iterator[TakeStreams]:
    Pyro5.config.SSL = False
    with Pyro5.api.Proxy(f'PYRO:echo@{HOST}:{port}') as proxy:
        yield {'results': partial(take_repeated, partial(proxy.repeat, TEXT), TEXT)}


@contextlib.contextmanager
def stream_bare(port: int) -> Iterator[TakeStreams]:
    def repeat_block(times: int) -> Iterator[bytes]:
        with Client((HOST, port)).connect() as connection:  # as each stream of ours has its own
            body = connection.post('/blocks', {}, str(times).encode()).body
            assert body is not None
            yield from filter(None, body)  # the last chunk is empty

    yield {'blocks': partial(take_repeated, repeat_block, BLOCK)}


STREAM_CLIENTS: dict[str, tuple[str, Callable[[int], AbstractContextManager[TakeStreams]]]] = {
    'degu, JSON': ('degu', partial(stream_degu, JSON)),
    'degu, msgpack': ('degu', partial(stream_degu, MSGPACK)),
    'Pyro5': ('Pyro5', stream_pyro5),
    'grpcio': ('grpcio', stream_grpcio),
    'a bare body': ('bare', stream_bare),
}


# --- servers -------------------------------------------------------------------------------------


def write_chains(directory: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Write what a server and a client need for TLS; return the files of each.

    P-256, as ours are, and with an IP address in them, which some clients cannot do without.
    """
    now = datetime.now(UTC)
    ca_key = pki.build_key()
    names = {who: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who)]) for who in ('CA', HOST)}

    ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())

    def write(who: str, key: Any, name: x509.Name, *extensions: x509.ExtensionType) -> None:
        builder = x509.CertificateBuilder(names['CA'], name, key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1))
        builder = builder.not_valid_after(now + timedelta(days=1))
        for extension in extensions:
            is_critical = isinstance(extension, x509.BasicConstraints)
            builder = builder.add_extension(extension, is_critical)
        der = builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
        pki.write_cert_file(directory / f'{who}-cert.pem', der)
        pki.write_key_file(directory / f'{who}-key.pem', key)

    usage = dict.fromkeys(
        ('digital_signature', 'content_commitment', 'key_encipherment', 'data_encipherment'), False
    )
    usage |= dict.fromkeys(('key_agreement', 'crl_sign', 'encipher_only', 'decipher_only'), False)
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    ca_usage = x509.KeyUsage(key_cert_sign=True, **usage)
    write('ca', ca_key, names['CA'], constraints, ca_usage, ca_id)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id)
    files = []
    for who in ('server', 'client'):
        write(who, pki.build_key(), names[HOST], address, issuer)
        files.append(
            {
                'cert_file': str(directory / f'{who}-cert.pem'),
                'key_file': str(directory / f'{who}-key.pem'),
                'ca_file': str(directory / 'ca-cert.pem'),
            }
        )
    return files[0], files[1]


@contextlib.contextmanager
def start_all(
    names: Iterable[str], cores: list[int], files: Files
) -> Iterator[dict[str, tuple[int, int]]]:
    """Run servers until the end of the block; yield pid and port of each by name."""
    with contextlib.ExitStack() as stack:
        servers = {}
        for name in dict.fromkeys(names):
            port = find_port()
            command = [sys.executable, 'rpc_servers.py', name, str(port)]
            command += [repr(files)] if files else []
            servers[name] = stack.enter_context(running(on_cores(cores, command), port)), port
        yield servers


# --- the run -------------------------------------------------------------------------------------


def measure_unary(cores: list[int], files: tuple[Files, Files], quick: bool) -> dict[str, Any]:
    """Return the rates of each in each round, and the CPU time of ours and of a bare request."""
    rounds, count = (3, 200) if quick else (11, 1000)
    with contextlib.ExitStack() as stack:
        names = (server for server, _ in CLIENTS.values())
        servers = stack.enter_context(start_all(names, cores, files[0]))
        stack.enter_context(pinned(CORES[:1]))
        takes = {
            name: stack.enter_context(open_it(servers[server][1], files[1]))
            for name, (server, open_it) in CLIENTS.items()
        }
        for each in takes.values():
            each(50)
        rates = alternate({name: partial(each, count) for name, each in takes.items()}, rounds)
        costs = {
            name: partial(measure_cpu, takes[name], servers[CLIENTS[name][0]][0], 10 * count)
            for name in ('degu, JSON', 'degu, msgpack', 'a bare request')
        }
        return {'rates': rates, 'cpu_us': alternate(costs, 3)}


def measure_streams(cores: list[int], quick: bool) -> dict[str, dict[str, list[float]]]:
    """Return the rates of each in each round, by what streams."""
    rounds = 2 if quick else 7
    counts = {'results': 10_000, 'items': 10_000, 'blocks': 400}
    with contextlib.ExitStack() as stack:
        names = (server for server, _ in STREAM_CLIENTS.values())
        servers = stack.enter_context(start_all(names, cores, None))
        stack.enter_context(pinned(CORES[:1]))
        takes = {
            name: stack.enter_context(open_it(servers[server][1]))
            for name, (server, open_it) in STREAM_CLIENTS.items()
        }
        rates = {}
        for what, count in counts.items():
            streams = {name: each[what] for name, each in takes.items() if what in each}
            actions = {name: partial(take, count) for name, take in streams.items()}
            rates[what] = alternate(actions, rounds)
        return rates


def measure_cpu(take_some: Take, server: int, count: int) -> float:
    """Return the processor time of a call, on both sides, in microseconds."""

    def read_both() -> float:
        return sum(read_cpu_us(server)) + sum(read_cpu_us(os.getpid()))

    before = read_both()
    take_some(count)
    return (read_both() - before) / count


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure all and print a table for each place, without and with TLS."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        chains = write_chains(Path(directory))
        for way, files in {'TCP': (None, None), 'mutual TLS': chains}.items():
            for place, cores in PLACES.items():
                found = measure_unary(cores, files, quick)
                table = [
                    {'way': way, 'place': place, 'name': name, 'rates': sorted(rates)}
                    for name, rates in found['rates'].items()
                ]
                print_table(f'unary calls, {way}, {place}', table)
                cpu = {name: statistics.median(each) for name, each in found['cpu_us'].items()}
                print_cpu(cpu)
                rows += [{**row, 'cpu_us': cpu.get(row['name'])} for row in table]
    return rows


def print_table(head: str, table: list[dict[str, Any]]) -> None:
    medians = {row['name']: statistics.median(row['rates']) for row in table}
    print(f'\n{head}\n{"":18}{"median":>12}{"slowest":>11}{"fastest":>11}   degu with JSON does')
    for row in table:
        rates = (f'{rate:9,.0f}/s' for rate in (row['rates'][0], row['rates'][-1]))
        ratio = medians['degu, JSON'] / medians[row['name']]
        name = row['name']
        print(f'{name:18}{medians[name]:10,.0f}/s{"".join(rates)}{ratio:9.2f} x', flush=True)


def run_streams(quick: bool) -> list[dict[str, Any]]:
    """Measure streams over TCP and print a table for each place."""
    rows: list[dict[str, Any]] = []
    for place, cores in PLACES.items():
        for what, found in measure_streams(cores, quick).items():
            print(f'\nstream of {what}, TCP, {place}')
            print(f'{"":18}{"median":>12}{"slowest":>11}{"fastest":>11}')
            for name, rates in found.items():
                numbers = (statistics.median(rates), min(rates), max(rates))
                print(f'{name:18}' + ''.join(f'{rate:9,.0f}/s' for rate in numbers), flush=True)
                rows.append({'what': what, 'place': place, 'name': name, 'rates': sorted(rates)})
    return rows


def print_cpu(cpu: dict[str, float]) -> None:
    bare = cpu['a bare request']
    for name, cost in cpu.items():
        print(
            f'{name:18}{cost:10.1f} us of processor, both sides{cost - bare:+10.1f} us', flush=True
        )


def main() -> None:
    arguments = build_parser('Measure calls beside other ways to call.').parse_args()
    machine = describe_machine()
    versions = {name: importlib.metadata.version(name) for name in ('degu-rpc', *PACKAGES)}
    print(f'CPython {machine["python"]}, {machine["openssl"]}, {machine["cores"]} cores')
    print(textwrap.fill(', '.join(f'{name} {v}' for name, v in versions.items()), 100))
    report = {**machine, 'versions': versions, 'unary': run(arguments.quick)}
    write_json(arguments.json, {**report, 'streams': run_streams(arguments.quick)})


if __name__ == '__main__':
    main()
