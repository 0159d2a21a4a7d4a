"""One node, real sockets: the same app and the same question who calls, on both of its doors."""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime
from typing import NamedTuple

import pytest

from degu import pki
from degu.client import Client
from degu_rpc.node import Node
from degu_rpc.peers import Identity, MachineClient, TrustStore


class Pair(NamedTuple):
    here: Identity
    there: Identity
    trust: TrustStore
    trust_there: TrustStore


@pytest.fixture
def pair(tmp_path):
    now = datetime.now(UTC)
    here = Identity.create(tmp_path / 'here', now)
    there = Identity.create(tmp_path / 'there', now)
    trust, trust_there = TrustStore(here), TrustStore(there)
    trust.add(there.user_cert, 'friend', {'peer'}, how='test', now=now)
    trust_there.add(here.user_cert, 'friend', {'peer'}, how='test', now=now)
    return Pair(here, there, trust, trust_there)


def tell_peer(connection, request):
    peer = connection['_peer']
    return 200, 'OK', {}, f'{peer.kind.value} {peer.machine_id} {peer.uid}'.encode()


def build_client(pair, address, machine_id):
    return MachineClient(pair.trust_there, address, machine_id)


def ask(client):
    with client.connect() as connection:
        return connection.get('/').body.read().decode()


def test_a_node_answers_on_both_doors_and_knows_who_calls(pair, tmp_path):
    path = tmp_path / 'node.sock'
    with Node(pair.trust, tell_peer, path) as node:
        client = build_client(pair, node.tls_address, pair.here.machine_id)
        assert ask(client) == f'machine {pair.there.machine_id} None'
        assert ask(Client(str(path))) == f'local None {os.getuid()}'
    assert not path.exists()


def test_a_client_of_one_machine_refuses_another(pair, tmp_path):
    path = tmp_path / 'node.sock'
    with Node(pair.trust, tell_peer, path) as node:
        client = build_client(pair, node.tls_address, 'a' * 48)
        with pytest.raises(pki.CertificateError) as caught:
            client.connect()
    assert caught.value.fault is pki.CertificateFault.MACHINE_ID


def test_an_address_that_cannot_be_had_leaves_nothing_open(pair, tmp_path):
    path = tmp_path / 'node.sock'
    with (
        Node(pair.trust, tell_peer, path) as node,
        pytest.raises(OSError, match='in use'),
    ):
        Node(pair.trust, tell_peer, tmp_path / 'other.sock', node.tls_address)
    assert not (tmp_path / 'other.sock').exists()


def test_a_node_that_was_never_entered_frees_what_it_bound(pair, tmp_path):
    path = tmp_path / 'node.sock'
    node = Node(pair.trust, tell_peer, path)
    assert path.exists()
    for _ in range(2):
        node.close()
        assert not path.exists()
    Node(pair.trust, tell_peer, path, node.tls_address).close()


def test_closing_a_node_a_second_time_does_nothing(pair, tmp_path):
    path = tmp_path / 'node.sock'
    with Node(pair.trust, tell_peer, path) as node:
        assert ask(Client(str(path))) == f'local None {os.getuid()}'
        node.close()
        assert not path.exists()
    node.close()


def test_a_machine_that_is_denied_loses_its_open_connection_at_its_next_request(pair, tmp_path):
    with Node(pair.trust, tell_peer, tmp_path / 'node.sock') as node:
        client = build_client(pair, node.tls_address, pair.here.machine_id)
        with client.connect() as connection:
            assert connection.get('/').body.read().startswith(b'machine')
            # As another process would do it, with a store of its own.
            TrustStore(pair.here).deny(pair.there.user_id, pair.there.machine_id)
            response = connection.get('/')
            assert (response.status, response.headers['connection']) == (403, 'close')
            assert b'is denied here' in response.body.read()
        with client.connect() as connection, pytest.raises(ConnectionError):
            connection.get('/')


def test_files_that_cannot_be_used_are_known_before_anything_is_bound(pair, tmp_path):
    pair.here.machine_file.write_bytes(b'')
    with pytest.raises(ssl.SSLError):
        Node(pair.trust, tell_peer, tmp_path / 'node.sock')
    assert not (tmp_path / 'node.sock').exists()
