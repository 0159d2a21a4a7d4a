"""connect() with the name of a machine: across two network namespaces, with real mDNS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from degu_rpc.peers import Identity, PairingWindow, TrustStore, pair

if TYPE_CHECKING:
    Cable = tuple[Any, Any]

# Serves and announces the machine in the directory argv[1], until it is told to end.
SERVE = """
import sys
from degu.server import SSLServer
from degu_rpc import Context, Router, RpcApp, Service
from degu_rpc.peers import Authenticated, Discovery, Identity, TrustStore
trust = TrustStore(Identity.open(sys.argv[1]))
router = Router()
def mount(path, answer):
    service = Service('a.v1.Who')
    @service.method(allow='peer')
    def ask(ctx: Context) -> str:
        return f'{answer} for {ctx.peer.name}'
    router.mount(path, RpcApp([service]))
mount('/rpc', 'the door of studio')
mount('/clock/rpc', 'a clock')
app = Authenticated(router, trust)
with SSLServer(trust.server_sslctx, ('0.0.0.0', 8443), app), Discovery() as discovery:
    with discovery.announce(trust.identity.machine_id, [('0.0.0.0', 8443)]):
        print('announced', flush=True)
        sys.stdin.readline()
"""

# As the machine in the directory argv[1], asks each of the targets behind it who they are.
ASK = """
import sys, threading
from degu_rpc import connect
home, *targets = sys.argv[1:]
for target in targets:
    with connect(target, home=home) as client:
        print(client['a.v1.Who'].ask(), flush=True)
        assert client.using(timeout_s=5)['a.v1.Who'].ask()
        assert 'degu-discovery' in [thread.name for thread in threading.enumerate()]
print([thread.name for thread in threading.enumerate()], flush=True)
"""

# As the machine in the directory argv[1], calls one that is nowhere, and closes the client as soon
# as it asks for it.
CLOSE = """
import socket, sys, threading, time
from degu_rpc import RpcError, connect
def call():
    try:
        client['a.v1.Who'].ask()
    except RpcError as error:
        print(error.code.value, flush=True)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
sock.bind(('224.0.0.251', 5353))
group = socket.inet_aton('224.0.0.251') + socket.inet_aton('10.9.0.1')
sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
sock.settimeout(10)
client = connect('a' * 48, home=sys.argv[1])
thread = threading.Thread(target=call)
thread.start()
while b'a' * 48 not in sock.recv(9000):
    pass
sock.close()
started = time.monotonic()
client.close()
thread.join()
print(time.monotonic() - started, flush=True)
print([thread.name for thread in threading.enumerate()], flush=True)
"""

# What is wrong once the search has begun must not leave it running.
FAIL = """
import sys, threading
from degu_rpc import connect
try:
    connect('a' * 48, home=sys.argv[1], interceptors=[7])
except TypeError as error:
    print(error, [thread.name for thread in threading.enumerate()], flush=True)
"""


@pytest.fixture(scope='module')
def homes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, Identity]:
    """Give a studio and a laptop, which have paired."""
    directory = tmp_path_factory.mktemp('paired')
    studio, laptop = (
        TrustStore(Identity.create(directory / name / 'identity')) for name in ('studio', 'laptop')
    )
    with PairingWindow(studio, 'studio') as window:
        pair(window.address, window.code, laptop, 'laptop')
        window.wait()
    return studio.identity, laptop.identity


def test_a_paired_machine_is_called_by_its_name_and_what_is_behind_it_too(
    cable: Cable, homes: tuple[Identity, Identity]
) -> None:
    near, far = cable
    studio, laptop = homes
    with far.start_python(SERVE, studio.directory) as server:
        server.expect('announced')
        targets = ('studio', 'studio/clock', studio.machine_id, f'{studio.machine_id}/clock')
        assert near.python(ASK, laptop.directory.parent, *targets).splitlines() == [
            'the door of studio for laptop',
            'a clock for laptop',
            'the door of studio for laptop',
            'a clock for laptop',
            "['MainThread']",
        ]


def test_client_that_is_closed_while_it_looks_ends_its_calls_and_threads(
    cable: Cable, homes: tuple[Identity, Identity]
) -> None:
    code, took_s, threads = cable[0].python(CLOSE, homes[1].directory.parent).splitlines()
    assert code == 'canceled'
    assert float(took_s) < 2
    assert threads == "['MainThread']"


def test_client_that_cannot_be_made_leaves_no_thread(
    cable: Cable, homes: tuple[Identity, Identity]
) -> None:
    output = cable[0].python(FAIL, homes[1].directory.parent)
    assert output == "an interceptor must be callable, not 7 ['MainThread']\n"
