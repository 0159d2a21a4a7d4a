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


# As DIAL, once it saw the machine and was told to.
DIAL_AGAIN = DIAL.replace(
    "    print('dials', flush=True)",
    "    next(browser.watch(20)), print('seen', flush=True), sys.stdin.readline()",
)

# Announces the id argv[1] ten times a second at ten new addresses, where nobody is, until its end.
FLOOD = """
import itertools, socket, sys, time
from zeroconf import DNSAddress, DNSOutgoing, DNSService
name = f'{sys.argv[1]}._degu._tcp.local.'
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(('10.9.0.2', 5353))
    for number in itertools.count():
        out = DNSOutgoing(0x8400)
        for n in range(number * 10, number * 10 + 10):
            host = f'liar{n}.local.'
            out.add_answer_at_time(DNSService(name, 33, 0x8001, 120, 0, 0, 1 + n % 60000, host), 0)
            ip = socket.inet_aton(f'10.9.0.{3 + n % 250}')
            out.add_answer_at_time(DNSAddress(host, 1, 1, 120, ip), 0)
        for packet in out.packets():
            sock.sendto(packet, ('224.0.0.251', 5353))
        if number == 10:
            print('flooded', flush=True)
        time.sleep(0.1)
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


def test_new_false_addresses_without_end_do_not_keep_us_from_a_machine_that_was_seen(
    cable: Cable, machines: dict[str, Identity]
) -> None:
    near, far = cable
    desk, laptop = machines['desk'], machines['laptop']
    serve = (SERVE, laptop.directory, '8443', laptop.machine_id, '4')
    with (
        far.start_python(*serve) as server,
        near.start_python(DIAL_AGAIN, desk.directory, laptop.machine_id) as client,
    ):
        server.expect('ready')
        server.tell()
        server.expect('announced')
        client.expect('seen')
        with far.start_python(FLOOD, laptop.machine_id) as liar:
            liar.expect('flooded')
            client.tell()
            client.expect(laptop.machine_id)

            assert float(client.read_line()) < 2
