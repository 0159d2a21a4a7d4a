"""One node, real sockets: the same app and the same question who calls, on both of its doors."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import NamedTuple

import pytest

from degu import pki
from degu.client import Client, build_client_sslctx
from degu_rpc.node import Node
from degu_rpc.peers import Identity, MachineClient, TrustedUser


class Pair(NamedTuple):
    here: Identity
    there: Identity
    users: dict[str, TrustedUser]


@pytest.fixture
def pair(tmp_path):
    now = datetime.now(UTC)
    here = Identity.create(tmp_path / 'here', now)
    there = Identity.create(tmp_path / 'there', now)
    friend = TrustedUser(there.user_id, there.user_cert, 'friend', frozenset({'peer'}))
    return Pair(here, there, {there.user_id: friend})


def tell_peer(connection, request):
    peer = connection['_peer']
    return 200, 'OK', {}, f'{peer.kind.value} {peer.machine_id} {peer.uid}'.encode()


def build_client(pair, address, machine_id):
    config = pair.there.client_config(pair.here.user_cert_file)
    return MachineClient(build_client_sslctx(config), address, machine_id)


def ask(client):
    with client.connect() as connection:
        return connection.get('/').body.read().decode()


def test_a_node_answers_on_both_doors_and_knows_who_calls(pair, tmp_path):
    path = tmp_path / 'node.sock'
    with Node(pair.here, pair.users, pair.there.user_cert_file, tell_peer, path) as node:
        client = build_client(pair, node.tls_address, pair.here.machine_id)
        assert ask(client) == f'machine {pair.there.machine_id} None'
        assert ask(Client(str(path))) == f'local None {os.getuid()}'
    assert not path.exists()


def test_a_client_of_one_machine_refuses_another(pair, tmp_path):
    path = tmp_path / 'node.sock'
    with Node(pair.here, pair.users, pair.there.user_cert_file, tell_peer, path) as node:
        client = build_client(pair, node.tls_address, 'a' * 48)
        with pytest.raises(pki.CertificateError) as caught:
            client.connect()
    assert caught.value.fault is pki.CertificateFault.MACHINE_ID


def test_an_address_that_cannot_be_had_leaves_nothing_open(pair, tmp_path):
    path = tmp_path / 'node.sock'
    with (
        Node(pair.here, pair.users, pair.there.user_cert_file, tell_peer, path) as node,
        pytest.raises(OSError, match='in use'),
    ):
        Node(
            pair.here,
            pair.users,
            pair.there.user_cert_file,
            tell_peer,
            tmp_path / 'other.sock',
            node.tls_address,
        )
    assert not (tmp_path / 'other.sock').exists()


def test_a_node_that_was_never_entered_frees_what_it_bound(pair, tmp_path):
    path = tmp_path / 'node.sock'
    node = Node(pair.here, pair.users, pair.there.user_cert_file, tell_peer, path)
    assert path.exists()
    for _ in range(2):
        node.close()
        assert not path.exists()
    again = (pair.here, pair.users, pair.there.user_cert_file, tell_peer, path, node.tls_address)
    Node(*again).close()


def test_closing_a_node_a_second_time_does_nothing(pair, tmp_path):
    path = tmp_path / 'node.sock'
    with Node(pair.here, pair.users, pair.there.user_cert_file, tell_peer, path) as node:
        assert ask(Client(str(path))) == f'local None {os.getuid()}'
        node.close()
        assert not path.exists()
    node.close()
