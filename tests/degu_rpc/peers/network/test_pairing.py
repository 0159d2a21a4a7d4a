"""Two machines that never met: one code, and each calls the other, over a cable and mDNS alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from degu_rpc.peers import Identity, TrustStore

if TYPE_CHECKING:
    from pathlib import Path

    Cable = tuple[Any, Any]

NOW = datetime.now(UTC)

# As the machine in the directory argv[1], shows a code, pairs, and then serves and is announced.
SHOW = """
import sys
from datetime import UTC, datetime
from degu.server import SSLServer
from degu_rpc import PairingWindow, Peering
from degu_rpc.peers import Authenticated, Discovery, Identity, TrustStore
identity = Identity.open(sys.argv[1])
trust = TrustStore(identity)
def app(connection, request):
    return 200, 'OK', {}, connection['_peer'].name.encode()
with Discovery() as discovery:
    peering = Peering(identity, trust, 'near', datetime.now(UTC))
    with PairingWindow(peering, ('::', 0, 0, 0)) as window:
        with discovery.announce_pairing([window.address]):
            print(window.code, flush=True)
            print(window.wait().name, flush=True)
    server = SSLServer(trust.server_sslctx, ('::', 0, 0, 0), Authenticated(app, trust))
    with server, discovery.announce(identity.machine_id, [server.address]):
        sys.stdin.readline()
"""

# As the machine in the directory argv[1], pairs with the window that is seen, then calls it by id.
TYPE = """
import sys
from datetime import UTC, datetime
from degu_rpc import Peering, pair
from degu_rpc.peers import Dialer, Discovery, Identity, TrustStore
identity = Identity.open(sys.argv[1])
trust = TrustStore(identity)
with Discovery() as discovery:
    with discovery.browse_pairing() as windows:
        window = next(windows.watch(10))
    paired = pair(
        window.addresses[0], sys.argv[2], Peering(identity, trust, 'far', datetime.now(UTC))
    )
    print(paired.name)
    with discovery.browse() as browser, Dialer(trust, [browser]).connect(
        paired.machine_id
    ) as connection:
        print(connection.get('/').body.read().decode())
"""


@pytest.mark.slow
def test_two_machines_that_never_met_pair_and_call_each_other(cable: Cable, tmp_path: Path) -> None:
    near, far = cable
    ours, theirs = (Identity.create(tmp_path / name, NOW) for name in ('ours', 'theirs'))
    with near.start_python(SHOW, ours.directory) as shown:
        code = shown.stdout.readline().strip()
        assert far.python(TYPE, theirs.directory, code).split() == ['near', 'far']
        assert shown.stdout.readline() == 'far\n'
        shown.communicate('\n', timeout=20)
        assert shown.returncode == 0
    assert TrustStore(ours).users()[theirs.user_id].machines == {theirs.machine_id: 'far'}
    assert TrustStore(theirs).users()[ours.user_id].machines == {ours.machine_id: 'near'}
