"""What the tests of the RPC wing share: real servers, and callers with roles."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import pytest

from degu.client import Client
from degu.rgi import Validator
from degu.server import Server
from degu_rpc.peers import Peer, PeerKind

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator


class WithRoles:
    """Middleware that says who is calling, as the node does from the certificate."""

    def __init__(self, app: Any, roles: tuple[str, ...] | None) -> None:
        self.app = app
        self.roles = roles
        self.connections = 0

    def on_connect(self, sock: Any, connection: dict[str, Any]) -> bool:
        self.connections += 1
        on_connect = getattr(self.app, 'on_connect', None)
        return on_connect is None or bool(on_connect(sock, connection))

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Any:
        if self.roles is not None:
            request['_peer'] = build_peer(*self.roles)
        return self.app(connection, request)


def build_peer(*roles: str) -> Peer:
    return Peer(PeerKind.LOCAL, None, None, 'uid:7', frozenset(roles), 7, 7)


@pytest.fixture
def peer() -> Callable[..., Peer]:
    """Build a local peer with the given roles."""
    return build_peer


@pytest.fixture(params=['unix', 'tcp'])
def address(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Any:
    """Where to serve: a test that takes this runs over both kinds of socket."""
    return str(tmp_path / 'socket') if request.param == 'unix' else ('127.0.0.1', 0)


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Client, WithRoles]]]:
    """Serve an app to callers with `roles` (None: nobody knows who they are)."""
    with contextlib.ExitStack() as stack:

        def start(
            app: Any, address: Any = ('127.0.0.1', 0), roles: tuple[str, ...] | None = ('peer',)
        ) -> tuple[Client, WithRoles]:
            app = WithRoles(app, roles)
            server = stack.enter_context(Server(address, Validator(app)))
            return Client(server.address, timeout_s=20), app

        yield start


@pytest.fixture
def curl() -> str:
    """Return the path of curl; skip without it, fail where all programs are required."""
    for directory in os.get_exec_path():
        path = os.path.join(directory, 'curl')
        if os.access(path, os.X_OK):
            return path
    if os.environ.get('DEGU_TEST_REQUIRE_ALL') == '1':
        pytest.fail('curl is not installed')
    pytest.skip('curl is not installed')
