"""connect(): what people write for where a service is."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from degu.client import Client
from degu.server import Server, SSLServer
from degu_rpc import Code, Context, PairingWindow, Router, RpcApp, RpcError, Service, connect, pair
from degu_rpc.peers import (
    Authenticated,
    Identity,
    IdentityError,
    MachineClient,
    MachineUrl,
    TrustStore,
    UnknownMachineError,
    format_url,
)
from degu_rpc.rpc.target import parse_target

if TYPE_CHECKING:
    import pathlib


@pytest.fixture(scope='module')
def homes(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrustStore, TrustStore]:
    """Give a studio and a laptop, which have paired."""
    directory = tmp_path_factory.mktemp('homes')
    studio, laptop = (
        TrustStore(Identity.create(directory / name / 'identity')) for name in ('studio', 'laptop')
    )
    with PairingWindow(studio, 'studio') as window:
        pair(window.address, window.code, laptop, 'laptop')
        window.wait()
    return studio, laptop


@pytest.fixture
def app() -> Any:
    service = Service('a.B')

    @service.method(allow='owner')
    def get() -> int:
        return 42

    @service.method(allow='peer')
    def greet(ctx: Context) -> str:
        return f'hello, {ctx.peer.name}'

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
        'https://host:80',
        'degu://host:80',
        'degu://' + 'a' * 48 + '@host',
        'attic/',
        'attic/clock?',
        'attic//clock',
        '/attic',
        'attic\n',
        'a' * 500,
        'http://host:80/path',
    ],
)
def test_target_of_another_form_is_refused(
    homes: tuple[TrustStore, TrustStore], target: str
) -> None:
    with pytest.raises(ValueError):  # several checks refuse, each with its words
        connect(target, home=homes[0].identity.directory.parent)


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


# --- machines ------------------------------------------------------------------------------------


def test_machine_is_called_where_somebody_says_it_is(
    homes: tuple[TrustStore, TrustStore], app: Any
) -> None:
    studio, laptop = homes
    with SSLServer(studio.server_sslctx, ('127.0.0.1', 0), Authenticated(app, studio)) as server:
        url = format_url(MachineUrl(studio.identity.machine_id, *server.address))
        with connect(url, home=laptop.identity.directory.parent) as client:
            assert client['a.B'].greet() == 'hello, laptop'


def test_another_machine_than_the_one_that_was_meant_is_refused(
    homes: tuple[TrustStore, TrustStore], app: Any
) -> None:
    studio, laptop = homes
    with SSLServer(studio.server_sslctx, ('127.0.0.1', 0), Authenticated(app, studio)) as server:
        url = format_url(MachineUrl('a' * 48, *server.address))
        with (
            connect(url, home=laptop.identity.directory.parent) as client,
            pytest.raises(RpcError) as caught,
        ):
            client['a.B'].greet()
    assert caught.value.code is Code.UNAUTHENTICATED


def test_identity_is_the_one_of_this_device_unless_told(
    homes: tuple[TrustStore, TrustStore], app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio, laptop = homes
    monkeypatch.setenv('DEGU_HOME', str(laptop.identity.directory.parent))
    with SSLServer(studio.server_sslctx, ('127.0.0.1', 0), Authenticated(app, studio)) as server:
        url = format_url(MachineUrl(studio.identity.machine_id, *server.address))
        with connect(url) as client:
            assert client['a.B'].greet() == 'hello, laptop'


@pytest.mark.parametrize('target', ['studio', 'degu://' + 'a' * 48 + '@192.168.1.7:8443'])
def test_machine_without_an_identity_of_our_own_is_an_error(
    tmp_path: pathlib.Path, target: str
) -> None:
    with pytest.raises(IdentityError, match='holds no identity; make one') as caught:
        connect(target, home=tmp_path / 'none')
    assert caught.value.path == tmp_path / 'none'
    assert not caught.value.path.exists()


def test_name_that_no_machine_has_is_an_error(homes: tuple[TrustStore, TrustStore]) -> None:
    with pytest.raises(UnknownMachineError, match="known are 'studio'") as caught:
        connect('attic/clock', home=homes[1].identity.directory.parent)
    assert (caught.value.name, caught.value.known) == ('attic', ('studio',))


def test_prefix_behind_a_service_is_checked(homes: tuple[TrustStore, TrustStore]) -> None:
    with pytest.raises(ValueError, match="like /rpc, not 'rpc'"):
        connect('studio/clock', 'rpc', home=homes[1].identity.directory.parent)


def test_only_a_name_that_is_looked_for_needs_zeroconf(
    homes: tuple[TrustStore, TrustStore],
) -> None:
    code = """
import sys
from degu_rpc import connect
connect('degu://' + 'a' * 48 + '@192.168.1.7:8443', home=sys.argv[1]).close()
try:
    connect('attic', home=sys.argv[1])
except Exception as error:
    print(type(error).__name__, 'zeroconf' in sys.modules)
"""
    output = subprocess.run(
        [sys.executable, '-c', code, str(homes[1].identity.directory.parent)],
        capture_output=True,
        check=True,
        text=True,
    )
    assert output.stdout == 'UnknownMachineError False\n'
