"""The one place that wires everything into a running device.

    with Node(services=[clock]) as node:
        node.wait()  # until Ctrl-C, SIGTERM or `degu down`

1. A node holds its home, so that there is one of it, and opens the identity there or makes one.
2. It listens on TLS, for other machines, by IPv4 and IPv6 at one port, and on a unix socket for
   programs of this one. Both have the services at `/rpc`, the shares at `/files/<name>`, the inbox
   at `/inbox`, and what other programs serve behind the node at `/<name>`. The question who calls
   has one answer on both.
3. On the unix socket `/rpc` has the service `node.v1.Node`, too: see degu_rpc.node.api.
4. It is found by others, and finds them: degu_rpc.node.neighbours.
5. It looks after its certificate: degu_rpc.node.upkeep.
6. It ends what a machine has under way here once that is not trusted any more, or lost a role.

It serves from `with` to the end of the block, and then lets running requests end.

Threads: each server has an accept loop and a thread for each connection, discovery has one thread,
upkeep one, and one looks for whom it trusts no more. `stop` may be called by any of them, and by a
signal handler; it takes no lock. All else is set once, when the block is entered, before anything
is served.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from degu import pki
from degu.net import Inherited
from degu.server import Server, SSLServer
from degu.stop import Stop
from degu_rpc.errors import DeguRpcError, RenewalError
from degu_rpc.files.share import FileShare
from degu_rpc.node.api import CERTIFICATES, EXAMINE, FILES, INBOX, SERVICES
from degu_rpc.node.behind import Behind
from degu_rpc.node.config import Config, build_config, read_settings
from degu_rpc.node.control import build_control
from degu_rpc.node.home import Home
from degu_rpc.node.inbox import NodeInbox
from degu_rpc.node.limits import DEFAULT_PORT, SHUTDOWN_S, TRUST_PERIOD_S, UPKEEP_PERIOD_S
from degu_rpc.node.neighbours import Neighbours
from degu_rpc.node.places import Place, find_places, find_reachable
from degu_rpc.node.shares import Files, build_shares
from degu_rpc.node.signals import on_signals
from degu_rpc.node.upkeep import Upkeep
from degu_rpc.peers import (
    Authenticated,
    Certifier,
    Identity,
    TrustStore,
    find_machine,
    renew_over,
)
from degu_rpc.router import Router
from degu_rpc.rpc.client import RpcClient
from degu_rpc.rpc.connect import RpcApp
from degu_rpc.rpc.health import build_health
from degu_rpc.rpc.jsonrpc import JsonRpcApp
from degu_rpc.rpc.meta import build_meta
from degu_rpc.unix import listen_unix

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from degu_rpc.rpc.service import Service

_NO_SUCH_FAMILY = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}

_log = logging.getLogger('degu_rpc.node')


class Node:
    """A running device; a context manager. Other machines and local programs can call it."""

    # Set once: home, config, _services, _control. Each time that it is entered: the rest.
    # Written by stop(), read by wait(): _is_over.

    stopping: threading.Event
    """Set once the node stops: what would last for ever must end."""
    trust: TrustStore
    addresses: list[Place]
    """Where it takes other machines."""
    started_at: datetime
    neighbours: Neighbours
    behind: Behind
    inbox: NodeInbox

    def __init__(
        self,
        home: str | os.PathLike[str] | Home | None = None,
        *,
        services: Iterable[Service] = (),
        config: Config | None = None,
        control: Inherited | None = None,
    ) -> None:
        """Prepare a node with the home of this user, or another. Nothing is touched before `with`.

        `services` are served beside the node's own. `config` are its settings; unless they are
        given, those of the environment and of the home. `control` is a unix socket that was opened
        for it, in place of the one in the home; it stays open, so that the node can start anew.

        Raises ConfigError for a setting that cannot be, OSError.
        """
        self.home = home if isinstance(home, Home) else Home(home)
        self.config = config or build_config(read_settings(self.home, {}))
        self._services = list(services)
        self._control = control
        self._stop: Stop | None = None
        self._unserved: list[tuple[str, str]] = []
        self._is_over = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Start it: once this returns it can be called. After its end it can be started anew.

        Raises NodeRunningError where another node has this home, IdentityError for what is in it,
        ConfigError for a share that cannot be opened, OSError where an address cannot be had,
        ssl.SSLError, ValueError for two services with one name.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.home.hold())
            self._is_over = False
            self._unserved = []
            self.stopping = threading.Event()
            self._stop = Stop()
            stack.callback(self._stop.close)
            self.home.prepare()
            self.trust = TrustStore(self.home.open_identity())
            self.trust.server_sslctx()  # what cannot be used is to be known now
            self.started_at = datetime.now(UTC)
            self.behind = Behind(self.home.socket_path)
            stack.callback(self.behind.close)
            self.inbox = NodeInbox(self.config.inbox)
            stack.callback(self.inbox.close)
            shares = self._open_shares(stack)
            outside = self._build_app(shares, self._services)
            inside = self._build_app(shares, [*self._services, build_control(self)])
            servers = self._listen(outside)
            for server in servers:
                stack.callback(server.close)
            self.addresses = find_places(server.address for server in servers)
            servers.append(Server(self._listen_here(), inside))
            stack.callback(servers[-1].close)
            self.neighbours = Neighbours(
                self.trust, self.config, [p.address for p in self.addresses]
            )
            stack.callback(self.neighbours.close)
            self._upkeep = Upkeep(
                {
                    'discovery': self.neighbours.upkeep,
                    'the certificate of this machine': self._renew,
                },
                UPKEEP_PERIOD_S,
            )
            stack.callback(self._upkeep.close)
            revoking = Upkeep(
                {'ending whom it trusts no more': outside.end_untrusted},
                TRUST_PERIOD_S,
                'degu-revoking',
            )
            stack.callback(revoking.close)
            # From here on it is called: at once, by whoever waits at a socket that was given.
            for server in servers:
                stack.enter_context(server)
            stack.callback(self._shut_down, servers)
            self.neighbours.start()
            stack.callback(self.stopping.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop serving, say goodbye, and let go of the home. Raises OSError."""
        self._stack.close()

    def _shut_down(self, servers: list[Server]) -> None:
        """Have all servers end their requests, beside each other: the time for it counts once."""
        for server in servers:
            server.shutdown(SHUTDOWN_S)

    def _open_shares(self, stack: contextlib.ExitStack) -> dict[str, FileShare]:
        """Open what others may read. What cannot be opened is a problem, and all else is served."""
        opened = {}
        for name, share in self.config.shares.items():
            try:
                opened[name] = stack.enter_context(FileShare(share.directory, share.allow))
            except OSError as error:
                problem = f'share {name!r} is not served: {share.directory}: {error.strerror}'
                _log.warning('%s', problem)
                self._unserved.append((problem, 'mend that, then start the node anew'))
        return opened

    def _build_app(self, shares: Mapping[str, FileShare], services: list[Service]) -> Authenticated:
        health = build_health(services, {}, allow=('peer', 'owner'))
        served = {name: self.config.shares[name] for name in shares}
        built_in = [health, build_shares(served)]
        everything = [*services, *built_in, build_meta([*services, *built_in])]
        router = Router()
        router.mount(SERVICES, RpcApp(everything))
        router.mount(f'{SERVICES}/jsonrpc', JsonRpcApp(everything))
        router.mount(FILES, Files(shares, served))
        router.mount(INBOX, self.inbox)
        if self.trust.identity.can_certify:
            router.mount(CERTIFICATES, Certifier(self.trust))
        router.mount('/', self.behind)
        return Authenticated(router, self.trust)

    def _listen(self, app: Authenticated) -> list[Server]:
        """Listen for other machines, by IPv4 and IPv6 at one port. Raises OSError.

        A port that is taken is given up only where nobody asked for it.
        """
        port = self.config.port
        try:
            return self._listen_at(port, app)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port != DEFAULT_PORT:
                raise
            _log.warning('TCP port %d is taken, so this node uses another one', port)
        return self._listen_at(0, app)

    def _listen_at(self, port: int, app: Authenticated) -> list[Server]:
        with contextlib.ExitStack() as stack:
            servers: list[Server] = []
            for host in self.config.listen:
                address = Place(host, port).address
                try:
                    server = SSLServer(self.trust.server_sslctx, address, app)
                except OSError as error:
                    if not servers or error.errno not in _NO_SUCH_FAMILY:
                        raise
                    continue
                stack.callback(server.close)
                servers.append(server)
                port = find_places([server.address])[0].port
            stack.pop_all()
            return servers

    def _listen_here(self) -> Inherited:
        """Listen for programs of this machine, or take a copy of the socket that was given."""
        if self._control is None:
            return listen_unix(str(self.home.socket_path))
        return self._control._replace(descriptor=os.dup(self._control.descriptor))

    # --- while it runs ---------------------------------------------------------------------------

    def wait(self) -> bool:
        """Wait until it is to stop; return whether it is to start anew.

        SIGTERM, SIGINT and the end of the terminal stop it, too, if this is the main thread.

        Raises RuntimeError before the node is started.
        """
        if self._stop is None:
            raise RuntimeError('the node does not run: wait inside of its with block')
        poller = select.poll()
        self._stop.register(poller)
        with on_signals(self.stop), self._stop.on_signals():
            while not self._stop.requested:
                self._stop.note(poller.poll())
        return not self._is_over

    def stop(self, *, restart: bool = False) -> None:
        """Have `wait` return, in whichever thread that is; nothing to do outside of the block.

        To stop counts more than to start anew, whichever is asked for first.
        """
        if not restart:
            self._is_over = True
        if self._stop is not None:
            self._stop.request(SHUTDOWN_S)

    def connect(self, peer: str, prefix: str = SERVICES) -> RpcClient:
        """Return a client of a paired machine, by its name or id; it connects at the first call.

        It finds the machine anew for each of its connections, wherever that is by then. `prefix` is
        where its services are mounted.

        Raises UnknownMachineError and AmbiguousNameError, ValueError for another form of prefix.
        """
        machine_id = find_machine(self.trust.users().values(), peer)
        return RpcClient(self.neighbours.build_client(machine_id), prefix)

    def upkeep(self) -> None:
        """Do now what a node does by itself now and then: see degu_rpc.node.upkeep."""
        self._upkeep.run_once()

    def find_problems(self) -> list[tuple[str, str]]:
        """Return what does not work, and what to do about each. Raises OSError."""
        found = [(problem, 'see the log of the node') for problem in self._upkeep.problems.values()]
        found.extend(self._unserved)
        if (problem := self.inbox.find_problem()) is not None:
            found.append((problem, 'mend that, or choose another path for [inbox] in config.toml'))
        if self.neighbours.problem is not None:
            found.append((self.neighbours.problem, EXAMINE))
        if not any(map(find_reachable, self.addresses)):
            found.append(('this machine is on no local network', 'join one; this node notices'))
        return found

    def _renew(self) -> None:
        """Get a new certificate once half of the time of the one we have is over."""
        identity = Identity.open(self.trust.identity.directory)
        if not identity.needs_renewal():
            return
        if identity.can_certify:
            identity.renew()
            return
        errors = []
        me = self.trust.users()[identity.user_id]
        for machine_id in me.machines:
            if machine_id == identity.machine_id:
                continue
            try:
                renew_over(self.neighbours.build_client(machine_id), CERTIFICATES, identity)
                return
            except (DeguRpcError, OSError) as error:
                errors.append(str(error))
        validity = pki.parse_validity(identity.machine_cert)
        raise RenewalError(
            f'it ends at {validity.not_after:%Y-%m-%d} and none of my machines could renew it '
            f'({"; ".join(errors) or "none is known"})'
        )
