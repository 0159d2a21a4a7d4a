"""connect(): what people write for where a service is."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from degu.client import Client
from degu.server import Server, SSLServer
from degu_rpc import Router, RpcApp, Service, connect
from degu_rpc.peers import Authenticated, Identity, MachineClient, TrustStore
from degu_rpc.rpc.target import parse_target

if TYPE_CHECKING:
    import pathlib


@pytest.fixture
def app() -> Any:
    service = Service('a.B')

    @service.method(allow='owner')
    def get() -> int:
        return 42

    router = Router()
    router.mount('/rpc', RpcApp([service]))
    return router


def test_bare_path_is_told_how_to_write_it() -> None:
    with pytest.raises(ValueError, match=r"not '/run/a\.sock'; write unix:/run/a\.sock$"):
        connect('/run/a.sock')


@pytest.mark.parametrize(
    ('target', 'address'),
    [
        ('unix:/run/a.sock', '/run/a.sock'),
        ('unix:@name', b'\0name'),
        ('tcp:192.168.1.7:8080', ('192.168.1.7', 8080)),
        ('tcp:attic.local:80', ('attic.local', 80)),
        ('tcp:[::1]:8080', ('::1', 8080, 0, 0)),
        ('tcp:[fe80::1%7]:8080', ('fe80::1', 8080, 0, 7)),
        ('tcp:[fe80::1%lo]:8080', ('fe80::1', 8080, 0, 1)),
    ],
)
def test_target_is_an_address(target: str, address: Any) -> None:
    assert parse_target(target) == address
    with connect(target):
        pass  # nothing is connected to before the first call


@pytest.mark.parametrize(
    'target',
    [
        '',
        'unix:',
        'unix:relative',
        'tcp:host',
        'tcp:host:',
        'tcp:::1:80',
        'tcp:host:x',
        'tcp:host:99999',
        'tcp:[fe80::1%none]:80',
        'tcp:[fe80::1%²]:80',
        'udp:host:80',
        'attic',
        'https://host:80',
        'http://host:80/path',
    ],
)
def test_target_of_another_form_is_refused(target: str) -> None:
    with pytest.raises(ValueError):  # several checks refuse, each with its words
        connect(target)


def test_unix_socket(tmp_path: pathlib.Path, app: Any) -> None:
    path = str(tmp_path / 'socket')
    with Server(path, Authenticated(app)), connect(f'unix:{path}') as client:
        assert client['a.B'].get() == 42


def test_abstract_socket(app: Any) -> None:
    name = f'degu-test-target-{os.getpid()}'
    with (
        Server(b'\0' + name.encode(), Authenticated(app)),
        connect(f'unix:@{name}') as client,
    ):
        assert client['a.B'].get() == 42


def test_tcp_and_http(serve: Any, app: Any) -> None:
    client, _ = serve(app, roles=('owner',))
    host, port = client.address
    for target in (f'tcp:{host}:{port}', f'http://{host}:{port}'):
        with connect(target) as rpc:
            assert rpc['a.B'].get() == 42


def test_client_of_the_core_says_where_and_how(tmp_path: pathlib.Path, app: Any) -> None:
    me = Identity.create(tmp_path / 'me', datetime.now(UTC))
    trust = TrustStore(me)
    with SSLServer(trust.server_sslctx, ('127.0.0.1', 0), Authenticated(app, trust)) as server:
        machine = MachineClient(trust, server.address, me.machine_id)
        with connect(machine) as rpc:
            assert isinstance(machine, Client)
            assert rpc['a.B'].get() == 42
