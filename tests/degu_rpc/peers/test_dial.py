"""degu_rpc.peers.dial: which machine a client talks to."""

from __future__ import annotations

import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from degu import IPv4_LOOPBACK, pki
from degu.client import SSLClient
from degu.net import Deadline
from degu_rpc.peers import Identity, MachineClient, TrustStore, check_server

if TYPE_CHECKING:
    from collections.abc import Callable


def answer(connection: dict[str, Any], request: dict[str, Any]) -> Any:
    return 200, 'OK', {}, None


def test_a_client_knows_the_server_by_its_machine_id(
    serve: Callable[..., Any], alice: Identity, bob: Identity
) -> None:
    trust = TrustStore(alice)
    server = serve(answer, IPv4_LOOPBACK, trust.server_sslctx)
    with SSLClient(trust.client_sslctx(), server.address).connect() as conn:
        cert = conn.peer_certificate
    check_server(cert, alice.machine_id)
    with pytest.raises(pki.CertificateError) as info:
        check_server(cert, bob.machine_id)
    assert info.value.fault is pki.CertificateFault.MACHINE_ID
    assert alice.machine_id in str(info.value)
    assert bob.machine_id in str(info.value)


def test_a_silent_machine_cannot_hold_us_longer_than_to_a_deadline(alice: Identity) -> None:
    with socket.create_server(('127.0.0.1', 0)) as silent:
        client = MachineClient(TrustStore(alice), silent.getsockname(), alice.machine_id)
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            client.connect(Deadline(0.3))
        assert 0.3 <= time.monotonic() - started < 3


def test_part_of_an_id_is_not_the_id(alice: Identity) -> None:
    for other in (alice.machine_id[:-1], '', alice.machine_id.upper(), alice.user_id):
        with pytest.raises(pki.CertificateError):
            check_server(alice.machine_cert, other)


def test_a_server_without_a_certificate_is_refused(alice: Identity) -> None:
    with pytest.raises(pki.CertificateError) as info:
        check_server(None, alice.machine_id)
    assert info.value.fault is pki.CertificateFault.MISSING


def test_a_server_names_none_of_those_it_trusts(
    serve: Callable[..., Any], require_program: Callable[[str], str], alice: Identity
) -> None:
    server = serve(answer, IPv4_LOOPBACK, TrustStore(alice).server_sslctx)
    host, port = server.address[:2]
    done = subprocess.run(
        [require_program('openssl'), 's_client', '-connect', f'{host}:{port}'],
        input='',
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 'No client certificate CA names sent' in done.stdout
    assert f'CN = {alice.machine_id}' in done.stdout
