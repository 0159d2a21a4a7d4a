"""Our transfer, as `transfer.py` measures it: a share and a fetch, each in a process of its own.

1. The share asks who calls as a node does: mutual TLS, `Authenticated`, a trust store on the disk.
2. A fetch is timed from before its first connection until it returns. Its process ends with it, so
   its memory is that of one fetch.
3. The share's process is kept and knows all hashes, as Syncthing does. `open_new_degu` starts one
   for each copy, which hashes while it is waited for.
"""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from transfer_common import (
    HOST,
    Measured,
    do_job,
    reachable,
    read_peak,
    run_job,
    serving,
)

from degu.client import SSLClient
from degu.server import SSLServer
from degu.tls import build_client_sslctx, build_server_sslctx
from degu_rpc.files import FileShare, fetch
from degu_rpc.peers import Authenticated, Identity, TrustStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transfer_common import Copy, Setting

FILE = Path(__file__).name


# --- the processes -------------------------------------------------------------------------------


def serve(port: int, tls: dict[str, Any], source: str, scratch: str) -> None:
    with tempfile.TemporaryDirectory(dir=scratch) as home, FileShare(source, 'peer') as share:
        trust = TrustStore(Identity.create(home))
        trust.add(read_cert(tls['ca_file']), 'somebody')
        app = Authenticated(share, trust)
        SSLServer(build_server_sslctx(tls), (HOST, port), app).serve_forever()


def read_cert(path: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(Path(path).read_text())


def bring(port: int, tls: dict[str, Any], destination: str, durable: bool) -> dict[str, float]:
    client = SSLClient(build_client_sslctx(tls), (HOST, port))
    started = perf_counter()
    fetched = fetch(client, '', '', destination, durable=durable)
    seconds = perf_counter() - started
    if fetched.skipped:
        raise RuntimeError(f'skipped: {fetched.skipped}')
    return {'seconds': seconds, 'receiver': read_peak()}


# --- the contenders ------------------------------------------------------------------------------


@contextlib.contextmanager
def open_degu(setting: Setting, *, is_known: bool = True) -> Iterator[Copy]:
    with serving(FILE, 'serve', setting) as (port, pid), reachable(setting, port) as (near, count):
        if is_known:
            have_hashed(setting, port)
        yield partial(copy, setting, near, pid, count)


@contextlib.contextmanager
def open_new_degu(setting: Setting) -> Iterator[Copy]:
    def copy_once(destination: Path) -> Measured:
        with open_degu(setting, is_known=False) as copy_known:
            return copy_known(destination)

    yield copy_once


def have_hashed(setting: Setting, port: int) -> None:
    sslctx = build_client_sslctx(setting.pki.get_client_config())
    with SSLClient(sslctx, (HOST, port)).connect() as connection:
        for _ in connection.get('/ls?recursive=1&roots=1').body:
            pass


def copy(
    setting: Setting, port: int, pid: int, count: Callable[[], int], destination: Path
) -> Measured:
    arguments = {
        'port': port,
        'tls': setting.pki.get_client_config(),
        'destination': destination,
        'durable': setting.is_durable,
    }
    found = do_job(FILE, 'bring', arguments)
    return Measured(found['seconds'], int(found['receiver']), read_peak(pid), count())


if __name__ == '__main__':
    run_job({'serve': serve, 'bring': bring})
