"""How long it takes to find a machine by its id and to verify who it is.

    python tests/bench/discovery.py

Two network namespaces are joined by a cable (as root, with `unshare`, `nsenter` and `ip`). In one a
machine announces itself and serves; in the other a client, in a fresh process each time, opens the
mDNS sockets, looks for the id and connects, until the certificate was checked. The start of Python
is not counted. For comparison: the same connection to a static address.

Run by hand; nothing here is a test.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from common import build_parser, describe_machine, write_json

from degu import pki
from degu_rpc.peers import Identity

if TYPE_CHECKING:
    from types import ModuleType

TESTS = Path(__file__).resolve().parents[1]
NETWORK = TESTS / 'degu_rpc' / 'peers' / 'discovery' / 'network' / 'conftest.py'
PORT = 8443

SERVE = f"""
import sys
from degu.server import SSLServer
from degu_rpc.peers import Discovery, Identity, TrustStore
identity = Identity.open(sys.argv[1])
addresses = [('0.0.0.0', {PORT}), ('::', {PORT}, 0, 0)]
app = lambda connection, request: (200, 'OK', {{}}, None)
sslctx = TrustStore(identity).server_sslctx
with SSLServer(sslctx, addresses[0], app), SSLServer(sslctx, addresses[1], app):
    with Discovery() as discovery, discovery.announce(identity.machine_id, addresses):
        print('announced', flush=True)
        sys.stdin.readline()
"""

CALL = """
import sys
from time import perf_counter
from degu_rpc.peers import Dialer, Discovery, Identity, StaticAddresses, TrustStore
directory, machine_id, url = sys.argv[1:]
trust = TrustStore(Identity.open(directory))
trust.client_sslctx()
started = perf_counter()
if url:
    Dialer(trust, [StaticAddresses([url])]).connect(machine_id).close()
    took_s = perf_counter() - started
else:
    with Discovery() as discovery, discovery.browse() as browser:
        Dialer(trust, [browser]).connect(machine_id).close()
        took_s = perf_counter() - started
print(took_s)
"""


def load(path: Path) -> ModuleType:
    """Import what the tests have: `open_cable`."""
    spec = importlib.util.spec_from_file_location('network', path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules['network'] = module
    spec.loader.exec_module(module)
    return module


def measure(near: Any, arguments: list[Any], rounds: int) -> list[float]:
    return [float(near.python(CALL, *arguments)) for _ in range(rounds)]


def main() -> None:
    options = build_parser('The time to find and verify a machine').parse_args()
    rounds = 3 if options.quick else 30
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        now = datetime.now(UTC)
        desk = Identity.create(home / 'desk', now)
        key = pki.build_key()
        cert = desk.certify(key.public_key(), now)
        laptop = Identity.join(home / 'laptop', key, cert, desk.user_cert)
        near, far = stack.enter_context(load(NETWORK).open_cable(home))
        server = stack.enter_context(far.start_python(SERVE, laptop.directory))
        server.expect('announced')
        url = f'degu://{laptop.machine_id}@{far.ipv4}:{PORT}'
        results = {
            name: measure(near, [desk.directory, laptop.machine_id, where], rounds)
            for name, where in (('mDNS', ''), ('static address', url))
        }
    report = {
        name: {'median_ms': median(times) * 1e3, 'worst_ms': max(times) * 1e3}
        for name, times in results.items()
    }
    for name, times in report.items():
        print(f'{name:15} median {times["median_ms"]:6.1f} ms  worst {times["worst_ms"]:6.1f} ms')
    write_json(options.json, {'machine': describe_machine(), 'times': report})


if __name__ == '__main__':
    main()
