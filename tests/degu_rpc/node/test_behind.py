"""What other programs serve behind a node, in one process with real sockets."""

from __future__ import annotations

import os

import pytest

from degu.server import Server
from degu_rpc import (
    Authenticated,
    Context,
    Identity,
    MachineClient,
    Node,
    RpcApp,
    RpcClient,
    RpcError,
    Service,
    TrustStore,
    connect,
    listen_unix,
)
from degu_rpc.node.api import NODE, NodeApi
from degu_rpc.node.config import Config

CONFIG = Config(name='studio', port=0, listen=('127.0.0.1',), discovery=False)


@pytest.fixture
def node(tmp_path):
    with Node(tmp_path / 'home', config=CONFIG) as node:
        yield node


@pytest.fixture
def control(node):
    with connect(f'unix:{node.home.socket_path}') as client:
        yield client.bind(NodeApi, NODE)


@pytest.fixture
def friend(tmp_path, node):
    """Give a client of the node's machine, as a user with whom it has paired."""
    identity = Identity.create(tmp_path / 'friend')
    trust = TrustStore(identity)
    trust.add(node.trust.identity.user_cert, 'studio')
    node.trust.add(identity.user_cert, 'friend', machines={identity.machine_id: 'laptop'})
    return MachineClient(trust, node.addresses[0].address, node.trust.identity.machine_id)


@pytest.fixture
def services():
    service = Service('who.v1.Who')

    @service.method(allow='peer', safe=True)
    def tell(ctx: Context) -> list[str]:
        return [ctx.peer.name, *ctx.peer.roles]

    @service.method(allow='owner', safe=True)
    def secret() -> str:
        return 'the owner alone knows'

    return [service]


def test_a_paired_machine_is_who_it_is_where_the_program_expects_a_node(
    control, friend, services, tmp_path
):
    path = str(tmp_path / 'who.sock')
    app = Authenticated(RpcApp(services), is_behind_node=True)
    with Server(listen_unix(path), app), RpcClient(friend, '/who') as client:
        next(serving := control.serve('who', path))
        assert client['who.v1.Who'].tell() == ['friend', 'peer']
        with pytest.raises(RpcError) as caught:
            client['who.v1.Who'].secret()
        serving.close()
    assert caught.value.code.value == 'permission_denied'


def test_a_paired_machine_is_refused_where_the_program_does_not_expect_a_node(
    control, friend, services, tmp_path
):
    path = str(tmp_path / 'who.sock')
    with (
        Server(listen_unix(path), Authenticated(RpcApp(services))),
        RpcClient(friend, '/who') as client,
    ):
        next(serving := control.serve('who', path))
        for method in (client['who.v1.Who'].tell, client['who.v1.Who'].secret):
            with pytest.raises(RpcError) as caught:
                method()
            assert caught.value.code.value == 'permission_denied'
        serving.close()


@pytest.mark.parametrize('link', [False, True], ids=['itself', 'by another name'])
def test_the_node_is_not_behind_itself(node, control, tmp_path, link):
    path = node.home.socket_path
    if link:
        path = tmp_path / 'other.sock'
        os.link(node.home.socket_path, path)
    with pytest.raises(RpcError, match='is the node itself') as caught:
        next(control.serve('me', str(path)))
    assert caught.value.code.value == 'invalid_argument'


def test_the_node_refuses_to_call_for_others_at_its_own_socket(node, friend, tmp_path):
    path = tmp_path / 'later.sock'
    with node.behind.register('me', str(path)), RpcClient(friend, '/me/rpc') as client:
        path.symlink_to(node.home.socket_path)
        with pytest.raises(RpcError) as caught:
            client[NODE].status()
    assert caught.value.code.value == 'permission_denied'


def test_a_program_that_does_not_answer_is_in_the_log_once_in_a_while(
    node, friend, tmp_path, caplog
):
    path = tmp_path / 'nobody.sock'
    with node.behind.register('silent', str(path)), friend.connect() as connection:
        for _ in range(20):
            response = connection.get('/silent/x')
            assert response.status == 503
            assert b'does not answer' in response.body.read()
    said = [r.getMessage() for r in caplog.records if 'did not answer' in r.getMessage()]
    assert [line.partition(', the last')[0] for line in said] == [
        'silent did not answer; failed requests: 1',
        'silent did not answer; failed requests: 19',
    ]
