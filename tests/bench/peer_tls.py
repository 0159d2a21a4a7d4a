"""Large bodies over TLS 1.3: one file, from degu and nginx to curl, and from nginx to degu.

1. degu and nginx have the same certificate and hand out the same file, which is in memory (tmpfs).
   Both must choose the same cipher.
2. Each pair must bring the right bytes before anything is measured.
3. Client and server have a core each. A measurement is one download to /dev/null, connection and
   handshake included. The rounds alternate; medians are kept.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import socket
import statistics
import subprocess
import tempfile
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from common import MIB, PLACES, alternate, build_app, on_cores, pinned, running_nginx

from degu import IPv4_LOOPBACK
from degu.client import build_client_sslctx, create_sslclient
from degu.misc import TempPKI, TempSSLServer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

CLIENT_CORES, SERVER_CORES = PLACES['two cores']
MEMORY = '/dev/shm'
NGINX_DIRECTIVES = """
        ssl_certificate {cert_file};
        ssl_certificate_key {key_file};
        ssl_protocols TLSv1.3;
"""
PAIRS = (('degu', 'curl'), ('nginx', 'curl'), ('nginx', 'degu'))
"""Server and client."""


# --- servers -------------------------------------------------------------------------------------


def build_file_app(path: Path) -> Callable[..., Any]:
    size = path.stat().st_size

    def app(connection: dict[str, Any], request: dict[str, Any]) -> Any:
        return 200, 'OK', {}, connection['rgi.FileOutput'](path.open('rb'), size)

    return build_app(SERVER_CORES, app)


@contextlib.contextmanager
def serve_all(directory: Path, pki: TempPKI) -> Iterator[dict[str, int]]:
    """Yield the ports of the servers that hand out `directory`/root/file."""
    config = pki.get_anonymous_server_config()
    directives = NGINX_DIRECTIVES.format(**config)
    with (
        TempSSLServer(config, IPv4_LOOPBACK, build_file_app, directory / 'root' / 'file') as degu,
        running_nginx(directory, SERVER_CORES, directives, is_tls=True) as port,
    ):
        yield {'degu': degu.address[1], 'nginx': port}


def find_cipher(ports: dict[str, int], sslctx: ssl.SSLContext) -> str:
    """Return the cipher of all servers. Raises RuntimeError if there are several."""
    ciphers: set[Any] = set()
    for port in ports.values():
        sock = socket.create_connection(('127.0.0.1', port))
        with sslctx.wrap_socket(sock) as tls:
            ciphers.add(tls.cipher())
    if len(ciphers) > 1:
        raise RuntimeError(f'cannot be compared: {ciphers}')
    name: str = ciphers.pop()[0]
    return name


# --- clients: each writes the file to `output` and returns how many seconds that took -------------


def download_by_degu(port: int, sslctx: ssl.SSLContext, output: Path) -> float:
    view = memoryview(bytearray(MIB))
    started = perf_counter()
    with (
        output.open('wb', buffering=0) as fp,
        create_sslclient(sslctx, f'https://127.0.0.1:{port}').connect() as connection,
    ):
        body: Any = connection.get('/file').body
        while count := body.readinto(view):
            fp.write(view[:count])
    return perf_counter() - started


def download_by_curl(port: int, sslctx: ssl.SSLContext, output: Path) -> float:
    # The address is in no certificate; the degu client does not check names here, either.
    command = ['curl', '--silent', '--show-error', '--fail', '--insecure', '--tlsv1.3']
    command += ['--output', str(output), '--write-out', '%{time_total}']
    done = subprocess.run(
        on_cores(CLIENT_CORES, [*command, f'https://127.0.0.1:{port}/file']),
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(done.stdout)


CLIENTS = {'curl': download_by_curl, 'degu': download_by_degu}


# --- the run -------------------------------------------------------------------------------------


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure all pairs and print a table."""
    size = (64 if quick else 512) * MIB
    with tempfile.TemporaryDirectory(dir=MEMORY) as name, TempPKI() as pki:
        directory = Path(name)
        (directory / 'root').mkdir()
        (directory / 'root' / 'file').write_bytes(os.urandom(MIB) * (size // MIB))
        sslctx = build_client_sslctx(pki.get_anonymous_client_config())
        with serve_all(directory, pki) as ports:
            cipher = find_cipher(ports, sslctx)
            with pinned(CLIENT_CORES):
                check_all(directory, ports, sslctx)
                actions = {pair: build_action(pair, ports, sslctx) for pair in PAIRS}
                results = alternate(actions, 3 if quick else 7)
    print(f'\nTLS 1.3, {cipher}, a body of {size // MIB} MiB')
    rates = {pair: [size / each for each in seconds] for pair, seconds in results.items()}
    where = {'size': size, 'cipher': cipher}
    rows = [
        *build_table('by curl from', {each[0]: rates[each] for each in PAIRS if each[1] == 'curl'}),
        *build_table(
            'from nginx by', {each[1]: rates[each] for each in PAIRS if each[0] == 'nginx'}
        ),
    ]
    return [{**row, **where} for row in rows]


def build_table(what: str, found: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Put the rounds together and print them beside degu's."""
    print(f'{f"downloaded {what}":28}{"":12}{"of degu":>9}')
    ours = statistics.median(found['degu'])
    table = []
    for name, rates in found.items():
        rate = statistics.median(rates)
        print(f'{name:28}{rate / 1e6:8,.0f}MB/s{rate / ours:9.2f}')
        table.append(
            {'what': what, 'peer': name, 'rate': rate, 'rates': sorted(rates), 'ratio': rate / ours}
        )
    return table


def check_all(directory: Path, ports: dict[str, int], sslctx: ssl.SSLContext) -> None:
    """Download by each pair once. Raises RuntimeError for wrong bytes."""
    copy = directory / 'copy'
    for server, client in PAIRS:
        CLIENTS[client](ports[server], sslctx, copy)
        if not filecmp.cmp(copy, directory / 'root' / 'file', shallow=False):
            raise RuntimeError(f'{client} did not get from {server} what it has')
    copy.unlink()


def build_action(
    pair: tuple[str, str], ports: dict[str, int], sslctx: ssl.SSLContext
) -> Callable[[], float]:
    server, client = pair
    return lambda: CLIENTS[client](ports[server], sslctx, Path('/dev/null'))
