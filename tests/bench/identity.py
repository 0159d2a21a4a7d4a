"""What it costs to know who is calling: `derive_peer`, once a connection.

    python tests/bench/identity.py

1. A machine's certificate is new to the process in each round, its user is not: a machine of a
   trusted user calls for the first time.
2. In turn with it the least that a check could do, which is to parse that certificate with
   `cryptography` and to verify its one signature; and the peer of a unix socket.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from common import CORES, build_parser, describe_machine, pinned, write_json
from cryptography import x509

from degu import pki
from degu_rpc.peers import TrustedUser, derive_peer

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_US = 300
"""What a connection may cost."""


def time_us(action: Callable[[], object]) -> float:
    """Return how long one call took."""
    started = perf_counter()
    action()
    return (perf_counter() - started) * 1e6


def verify(cert_der: bytes, issuer: x509.Certificate) -> None:
    """Do the least: parse, and verify the signature."""
    x509.load_der_x509_certificate(cert_der).verify_directly_issued_by(issuer)


def run(count: int) -> dict[str, float]:
    """Return the median of each in microseconds."""
    user_key = pki.build_key()
    user_cert = pki.build_user_cert(user_key, datetime.now(UTC))
    user_id = pki.parse_user_cert(user_cert)
    users = {user_id: TrustedUser(user_id, user_cert, 'somebody', frozenset({'peer'}))}
    issuer = x509.load_der_x509_certificate(user_cert)
    taken_us: dict[str, list[float]] = {'tls': [], 'unix': [], 'bare': []}
    for _ in range(count):
        public_key = pki.build_key().public_key()
        cert = pki.build_machine_cert(user_key, public_key, datetime.now(UTC))
        connections: dict[str, dict[str, Any]] = {
            'tls': {'ssl_peer_cert': cert},
            'unix': {'credentials': (os.getpid(), os.getuid(), os.getgid())},
        }
        for name, connection in connections.items():
            taken_us[name].append(time_us(partial(derive_peer, connection, users, os.getuid())))
        taken_us['bare'].append(time_us(partial(verify, cert, issuer)))
    return {name: median(taken) for name, taken in taken_us.items()}


def main() -> None:
    arguments = build_parser('Measure what it costs to know who is calling.').parse_args()
    with pinned(CORES[:1]):
        found = run(200 if arguments.quick else 5000)
    print(f'derive_peer, TLS    {found["tls"]:8.1f} us  {found["tls"] / found["bare"]:.2f} x bare')
    print(f'derive_peer, unix   {found["unix"]:8.1f} us')
    print(f'bare X.509          {found["bare"]:8.1f} us')
    print(f'TLS within {LIMIT_US} us: {"yes" if found["tls"] < LIMIT_US else "NO"}')
    write_json(arguments.json, {**describe_machine(), 'median_us': found})


if __name__ == '__main__':
    main()
