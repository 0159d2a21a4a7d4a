"""Two homes on one machine pair with a short code, and call each other from then on.

    python examples/two_homes.py [DIRECTORY]

Each home is a directory with an identity and a trust store; without DIRECTORY they are temporary.
On two machines each would run its own half: the window on one, `pair` on the other.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from degu import IPv4_LOOPBACK
from degu.server import SSLServer
from degu_rpc import (
    Context,
    PairingWindow,
    Router,
    RpcApp,
    RpcClient,
    Service,
    pair,
)
from degu_rpc.peers import Authenticated, Identity, MachineClient, TrustStore

SERVICE = 'homes.v1.Door'


class Home:
    """One home: who it is, and whom it trusts."""

    def __init__(self, directory: Path, name: str) -> None:
        """Open a home, or make it."""
        self.name = name
        is_there = directory.exists()
        self.identity = Identity.open(directory) if is_there else Identity.create(directory)
        self.trust = TrustStore(self.identity)

    def build_server(self) -> SSLServer:
        """Build the server that other homes call."""
        door = Service(SERVICE)

        @door.method(allow='peer', safe=True)
        def knock(ctx: Context) -> str:
            """Say who is here and who is there."""
            return f'this is {self.name}, and you are {ctx.peer.name}'

        router = Router()
        router.mount('/rpc', RpcApp([door]))
        app = Authenticated(router, self.trust)
        return SSLServer(self.trust.server_sslctx, IPv4_LOOPBACK, app)

    def call(self, other: Home, server: SSLServer) -> str:
        """Knock at another home's door: at that machine's, by its id, wherever it is."""
        client = MachineClient(self.trust, server.address, other.identity.machine_id)
        with RpcClient(client) as calls:
            said: str = calls[SERVICE].knock()
        return said


def main(directory: Path) -> None:
    """Pair two homes below a directory and let them call each other."""
    studio, laptop = Home(directory / 'studio', 'studio'), Home(directory / 'laptop', 'laptop')
    with PairingWindow(studio.trust, studio.name) as window:
        print(f'studio shows the code {window.code}')
        paired = pair(window.address, window.code, laptop.trust, laptop.name)
        print(f'laptop paired with {paired.name}, studio with {window.wait().name}')
    with ExitStack() as stack:
        at_studio = stack.enter_context(studio.build_server())
        at_laptop = stack.enter_context(laptop.build_server())
        print(f'laptop hears: {laptop.call(studio, at_studio)}')
        print(f'studio hears: {studio.call(laptop, at_laptop)}')


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
