"""What the processes of `degu demo` do, each with an identity of its own.

- `serve_home()` runs a node: it makes its identity, and serves the service below and the standard
  library as a share. Nobody is trusted yet.
- `fetch_library()` is the process that gets killed: it brings the library over from another home.

Both are started as fresh interpreters and end when the pipe to the demo does.
"""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from degu_rpc import Context, RpcClient, RpcError, Service, fetch
from degu_rpc.cli.demo_library import find_library, list_library
from degu_rpc.errors import CallError
from degu_rpc.node.config import Config, InboxSettings, Share
from degu_rpc.node.device import Node
from degu_rpc.peers import Identity, MachineClient, TrustStore

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    from degu_rpc import Progress

SERVICE = 'demo.v1.Home'
LOOPBACK = '127.0.0.1'
SHARE = 'library'


class Home(NamedTuple):
    """One of the homes, as another process can use it."""

    name: str
    directory: Path

    @property
    def identity(self) -> Identity:
        """The identity, read from its files."""
        return Identity.open(self.directory / 'identity')

    @property
    def socket_path(self) -> Path:
        """Where the node listens for local programs."""
        return self.directory / 'node.sock'

    def build_client(self, machine_id: str, port: int) -> MachineClient:
        """Build a client of one machine of a trusted user."""
        return MachineClient(TrustStore(self.identity), (LOOPBACK, port), machine_id)


@dataclass(frozen=True, slots=True)
class Seen:
    """How a home sees its caller."""

    greeting: str
    kind: str
    machine_id: str | None
    uid: int | None
    roles: frozenset[str]


class HomeApi:
    """The service of a home, as its callers see it; see RpcClient.bind()."""

    def greet(self, name: str) -> Seen: ...  # type: ignore[empty-body]  # bind() fills it in
    def library(self) -> list[str]: ...  # type: ignore[empty-body]
    def ask(self, machine_id: str, port: int) -> Seen: ...  # type: ignore[empty-body]
    def measure(self, machine_id: str, port: int, calls: int) -> float: ...  # type: ignore[empty-body]


def _build_service(home: Home) -> Service:
    service = Service(SERVICE)

    @service.method(allow='peer', safe=True)
    def greet(ctx: Context, name: str) -> Seen:
        """Greet the caller and say how it is seen."""
        peer = ctx.peer
        return Seen(
            f'hello {name}, this is {home.name}',
            peer.kind.value,
            peer.machine_id,
            peer.uid,
            peer.roles,
        )

    @service.method(allow='peer', safe=True)
    def library() -> list[str]:
        """List the top of the standard library that is shared here."""
        return list_library()

    @service.method(allow='owner')
    def ask(machine_id: str, port: int) -> Seen:
        """Have this home call another one over TLS, and return how it is seen there."""
        try:
            with RpcClient(home.build_client(machine_id, port)) as client:
                return client.bind(HomeApi, SERVICE).greet(home.name)
        except CallError as error:  # what the other one says is what was asked for
            raise RpcError(error.code, error.message) from error

    @service.method(allow='owner')
    def measure(machine_id: str, port: int, calls: int) -> float:
        """Have this home call another one many times on one connection; return calls a second."""
        with RpcClient(home.build_client(machine_id, port)) as client:
            return measure_calls(client.bind(HomeApi, SERVICE), home.name, calls)

    return service


def measure_calls(api: HomeApi, name: str, calls: int) -> float:
    """Call `greet` many times, one after the other on one connection; return calls a second."""
    api.greet(name)
    started = perf_counter()
    for _ in range(calls):
        api.greet(name)
    return calls / (perf_counter() - started)


def _leave_ctrl_c_to_the_demo() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def serve_home(home: Home, pipe: Connection) -> None:
    """Run the node of a home until the demo closes its end of the pipe."""
    _leave_ctrl_c_to_the_demo()
    config = Config(
        name=home.name,
        port=0,
        listen=(LOOPBACK,),
        discovery=False,
        shares={SHARE: Share(str(find_library()))},
        inbox=InboxSettings(str(home.directory / 'inbox')),
    )
    with Node(home.directory, services=[_build_service(home)], config=config) as node:
        pipe.send((node.trust.identity.machine_id, node.addresses[0].port))
        with contextlib.suppress(EOFError):
            pipe.recv()


def fetch_library(
    home: Home, machine_id: str, port: int, destination: Path, pipe: Connection
) -> None:
    """Fetch the library of another home; send (files here, bytes fetched) as it goes, then None."""
    _leave_ctrl_c_to_the_demo()
    client = home.build_client(machine_id, port)
    with RpcClient(client) as calls:
        names = calls.bind(HomeApi, SERVICE).library()
    files = fetched = 0
    for name in names:

        def report(progress: Progress, files: int = files, fetched: int = fetched) -> None:
            pipe.send((files + progress.files_done, fetched + progress.bytes_moved))

        result = fetch(client, f'/files/{SHARE}', name, destination, progress=report)
        files += result.files_fetched + result.files_present
        fetched += result.bytes_fetched
    pipe.send(None)
