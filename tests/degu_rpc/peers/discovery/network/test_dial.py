"""Connecting by machine id across two network namespaces: real mDNS, real TLS, real liars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from degu_rpc.peers import Identity, TrustStore

if TYPE_CHECKING:
    from collections.abc import Callable

    Cable = tuple[Any, Any]

# Serves as the machine in the directory argv[1], at the port argv[2], and announces the id argv[3]
# at the addresses of the families argv[4] when it is told to.
SERVE = """
import contextlib, sys
from degu.server import SSLServer
from degu_rpc.peers import Discovery, Identity, TrustStore
directory, port, announced, families = sys.argv[1:]
addresses = {'4': ('0.0.0.0', int(port)), '6': ('::', int(port), 0, 0)}
addresses = [addresses[family] for family in families]
identity = Identity.open(directory)
trust = TrustStore(identity)
def get_sslctx():
    print('called', flush=True)
    return trust.server_sslctx()
def app(connection, request):
    return 200, 'OK', {}, identity.machine_id.encode()
with contextlib.ExitStack() as stack:
    for address in addresses:
        stack.enter_context(SSLServer(get_sslctx, address, app))
    discovery = stack.enter_context(Discovery())
    print('ready', flush=True)
    sys.stdin.readline()
    stack.enter_context(discovery.announce(announced, addresses))
    print('announced', flush=True)
    sys.stdin.readline()
"""

# As the machine in the directory argv[1], calls the machine argv[2] and prints who answered.
DIAL = """
import sys, time
from degu_rpc.peers import Dialer, Discovery, Identity, TrustStore
identity = Identity.open(sys.argv[1])
with Discovery() as discovery, discovery.browse() as browser:
    dialer = Dialer(TrustStore(identity), [browser])
    print('dials', flush=True)
    started = time.monotonic()
    with dialer.connect(sys.argv[2]) as connection:
        took_s = time.monotonic() - started
        print(connection.get('/').body.read().decode(), flush=True)
    print(took_s, flush=True)
"""


@pytest.fixture(scope='module')
def machines(
    join: Callable[..., Identity], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Identity]:
    """Give three machines of one user, and a stranger's who trusts that user."""
    home = tmp_path_factory.mktemp('homes')
    found = {'desk': Identity.create(home / 'desk')}
    for name in ('laptop', 'phone'):
        found[name] = join(home / name, found['desk'])
    found['stranger'] = Identity.create(home / 'stranger')
    TrustStore(found['stranger']).add(found['desk'].user_cert, 'victim', [], how='a lie')
    return found


@pytest.mark.parametrize('families', ['4', '6'], ids=['IPv4', 'link-local IPv6'])
def test_a_machine_is_reached_by_its_id(
    cable: Cable, machines: dict[str, Identity], families: str
) -> None:
    near, far = cable
    desk, laptop = machines['desk'], machines['laptop']
    serve = (SERVE, laptop.directory, '8443', laptop.machine_id, families)
    with far.start_python(*serve) as server:
        server.expect('ready')
        server.tell()
        server.expect('announced')
        with near.start_python(DIAL, desk.directory, laptop.machine_id) as client:
            client.expect('dials')
            client.expect(laptop.machine_id)
            assert float(client.read_line()) < 3


@pytest.mark.parametrize('liar', ['phone', 'stranger'], ids=['another machine', 'a stranger'])
def test_who_announces_our_peers_id_is_dropped_and_the_true_one_reached(
    cable: Cable, machines: dict[str, Identity], liar: str
) -> None:
    near, far = cable
    desk, laptop = machines['desk'], machines['laptop']
    lies = (SERVE, machines[liar].directory, '6666', laptop.machine_id, '4')
    true = (SERVE, laptop.directory, '8443', laptop.machine_id, '4')
    with far.start_python(*lies) as false_server, far.start_python(*true) as true_server:
        true_server.expect('ready')
        false_server.expect('ready')
        false_server.tell()
        false_server.expect('announced')
        with near.start_python(DIAL, desk.directory, laptop.machine_id) as client:
            client.expect('dials')
            false_server.expect('called')
            true_server.tell()
            client.expect(laptop.machine_id)
