"""How fast we are beside others, on the same machine in the same run.

    python tests/bench/peers.py [--json FILE] [--quick]

1. Servers: hello world under wrk (`peer_servers.py`).
2. Clients: small requests on one connection (`peer_clients.py`).
3. Bodies over TLS: one large file, beside nginx and curl (`peer_tls.py`).

Needs the `bench` extra, and the programs wrk, nginx, curl and taskset. Run by hand; nothing here is
a test.
"""

from __future__ import annotations

import importlib.metadata
import textwrap

import peer_clients
import peer_servers
import peer_tls
from common import build_parser, describe_machine, read_version, write_json

PACKAGES = (
    *('uvicorn', 'uvloop', 'httptools', 'granian', 'gunicorn', 'waitress', 'cheroot'),
    *('urllib3', 'requests', 'httpx', 'httpcore', 'h11', 'aiohttp'),
)
PROGRAMS = {'wrk': ['wrk', '-v'], 'nginx': ['nginx', '-v'], 'curl': ['curl', '--version']}


def read_versions() -> dict[str, str]:
    """Return what is compared with what, and in which version."""
    return {
        'degu': importlib.metadata.version('degu-rpc'),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        **{name: read_version(command) for name, command in PROGRAMS.items()},
    }


def main() -> None:
    arguments = build_parser('Measure the core beside its peers.').parse_args()
    machine, versions = describe_machine(), read_versions()
    print(f'CPython {machine["python"]}, {machine["openssl"]}, {machine["cores"]} cores')
    text = ', '.join(f'{name} {version}' for name, version in versions.items())
    print(textwrap.fill(text, 100))
    report = {
        **machine,
        'versions': versions,
        'servers': peer_servers.run(arguments.quick),
        'clients': peer_clients.run(arguments.quick),
        'tls': peer_tls.run(arguments.quick),
    }
    write_json(arguments.json, report)


if __name__ == '__main__':
    main()
