"""Which machine a client talks to: by id, never by host name or address.

    dialer = Dialer(trust, [StaticAddresses(urls), browser])
    with dialer.connect(machine_id) as connection:
        ...
    calls = RpcClient(dialer.client(machine_id), '/rpc')

1. `check_server` is the check: the certificate that the handshake verified names the machine.
2. `MachineClient` makes it after each connect, at an address that is given.
3. A `Dialer` looks for the address. It tries the one that worked last, then what its sources say,
   in their order. A try that has not ended after STAGGER_S goes on beside the next one (RFC 8305
   §5). The first that proves the id wins, and the others are ended. An address is a hint: where
   the machine is not, its source forgets it. One that failed is not tried again for
   RETRY_ADDRESS_S, and of the hints of one source no more than MAX_ADDRESSES are tried, at
   MAX_PORTS of a host: nobody can have us hammer at an address or scan a host by announcing it.
   What a person gave is always tried.
4. A `DialedClient` is what an RpcClient or `fetch` takes to call a machine by its id: it looks for
   the machine at each connect.

Threads: a Dialer serves any number of them; `_lock` guards what it remembers and is never held
during I/O. Whoever calls `connect` asks the sources, looks names up, starts the tries and judges
what comes of them. Each try connects and checks the certificate in a thread of its own
(`degu_rpc.peers.tries`); all of them have ended when `connect` returns or raises. The clients
change nothing.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from degu import pki
from degu.client import Connection, SSLClient
from degu.net import Deadline, disable_delay, parse_address
from degu_rpc.errors import Attempt, UnknownPeerError, UnreachableError
from degu_rpc.peers.caller import check_trust, derive_machine
from degu_rpc.peers.limits import (
    CONNECT_S,
    DIAL_S,
    MAX_ADDRESSES,
    MAX_PAUSES,
    MAX_PORTS,
    RETRY_ADDRESS_S,
    STAGGER_S,
)
from degu_rpc.peers.pauses import Pauses
from degu_rpc.peers.tries import Tries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from degu.net import Address
    from degu_rpc.peers.tries import Adopt, Outcome
    from degu_rpc.peers.trust import TrustStore


_log = logging.getLogger('degu_rpc.peers')


def check_server(cert_der: bytes | None, machine_id: str) -> None:
    """Check that a server is the machine a client meant to call.

    *cert_der* is the `peer_certificate` of a client's connection (`SSLSocket.getpeercert(True)`),
    whose chain the handshake has verified; *machine_id* is the expected one, compared whole.

    Raises pki.CertificateError (MACHINE_ID for another machine, with both ids).
    """
    _check_id(pki.parse_machine_cert(cert_der).machine_id, machine_id)


def _check_id(found: str | None, expected: str) -> None:
    if found != expected:
        raise pki.CertificateError(
            pki.CertificateFault.MACHINE_ID, f'expected {expected}, found {found}'
        )


class MachineClient(SSLClient):
    """A client of one machine, wherever it is: each connection proves the machine's id."""

    def __init__(
        self, trust: TrustStore, address: Address, machine_id: str, **options: Any
    ) -> None:
        """Remember where and whom to connect to, and whose word counts.

        Other arguments are those of `degu.client.SSLClient`.
        """
        super().__init__(check_trust(trust).client_sslctx, address, **options)
        self.machine_id = machine_id
        self._trust = trust

    def connect(self, deadline: Deadline | None = None) -> Connection:
        """Connect, by `deadline` at the latest, and check who is there, by what is trusted now.

        Raises pki.CertificateError for another machine, UnknownPeerError for one that is denied,
        and what SSLClient.connect() and the trust store raise.
        """
        connection = super().connect(deadline)
        try:
            peer = derive_machine(connection.peer_certificate, self._trust.users())
            _check_id(peer.machine_id, self.machine_id)
        except BaseException:
            connection.close()
            raise
        return connection


class _TriedClient(MachineClient):
    """A client that hands its socket over before it connects, so that a try can be ended."""

    adopt: Adopt

    def _connect_socket(self, deadline: Deadline) -> socket.socket:
        family, address = parse_address(self.address)
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self.adopt(sock)
            sock.settimeout(deadline.require())
            sock.connect(address)
            if family != socket.AF_UNIX:
                disable_delay(sock)
        except BaseException:
            sock.close()
            raise
        return sock


class AddressSource(Protocol):
    """Where addresses of machines come from: StaticAddresses, a Browser, a DnsSd."""

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def is_hint(self) -> bool:
        """Whether its addresses come from the network and not from a person."""

    def find(self, machine_id: str, timeout_s: float) -> Iterator[Address | None]:
        """Give addresses of a machine as they become known, the best first.

        None stands for "nothing new yet": whoever asks can look after other things in between.
        Raises OSError where it cannot look.
        """

    def forget(self, machine_id: str, address: Address) -> None:
        """Drop an address where the machine is not: another one, or nobody."""

    def explain(self, machine_id: str) -> str:
        """Say to a person why there was no address."""


class Dialer:
    """Connects to machines by their ids, wherever they are."""

    # Set once: _trust, _sources, _options. Guarded by _lock: _worked, _pauses.

    def __init__(self, trust: TrustStore, sources: Iterable[AddressSource], **options: Any) -> None:
        """Remember whose word counts, and where to look.

        The quickest of the *sources* should come first. *options* are those of SSLClient.

        Raises TypeError for what is no store or no list of sources.
        """
        self._trust = check_trust(trust)
        if hasattr(sources, 'find'):  # a str has that, too
            raise TypeError(f'sources is a list, such as [StaticAddresses([url])]; not {sources!r}')
        self._sources = tuple(sources)
        for source in self._sources:
            if not hasattr(source, 'forget'):
                raise TypeError(f'a source is such as StaticAddresses([url]), not {source!r}')
        self._options = options
        self._lock = threading.Lock()
        self._worked: dict[str, Address] = {}
        # For each machine its own, so that hints about one say nothing of another.
        self._pauses: dict[str, Pauses] = {}

    def client(self, machine_id: str, timeout_s: float = DIAL_S) -> DialedClient:
        """Return a client of a machine, which `connect` finds anew for each of its connections.

        Raises ValueError for another form of id.
        """
        return DialedClient(self, pki.check_id(machine_id), timeout_s)

    def connect(
        self, machine_id: str, timeout_s: float = DIAL_S, deadline: Deadline | None = None
    ) -> Connection:
        """Find a machine, connect, and check that it is the one.

        It takes `timeout_s` at most, and no longer than to `deadline`. Only the lookup of a name
        may take longer.

        Raises UnreachableError, which lists what was tried and why each failed, and ValueError for
        another form of id.
        """
        pki.check_id(machine_id)
        deadline = Deadline(timeout_s) if deadline is None else deadline.within(timeout_s)
        attempts: list[Attempt] = []
        places: dict[Address, int] = {}  # where in that list an address is
        with contextlib.closing(Tries(self._build_connect(machine_id, deadline))) as tries:
            for source, address in self._find(machine_id, deadline, attempts, places):
                wait_s = 0.0
                if address is not None:
                    places[address] = len(attempts)
                    if not deadline.remaining():
                        reason = f'not tried within {deadline.timeout_s:g} s'
                        attempts.append(Attempt(source, address, reason))
                        break
                    attempts.append(Attempt(source, address, 'it has not ended'))
                    tries.start(address)
                    wait_s = min(STAGGER_S, deadline.remaining())
                connection = self._judge(machine_id, tries.wait(wait_s), attempts, places)
                if connection is not None:
                    return connection
            while tries.running:
                connection = self._judge(machine_id, tries.wait(None), attempts, places)
                if connection is not None:
                    return connection
        users = self._trust.users().values()
        names = (user.machines[machine_id] for user in users if machine_id in user.machines)
        raise UnreachableError(machine_id, attempts, next(names, ''))

    def _find(
        self,
        machine_id: str,
        deadline: Deadline,
        attempts: list[Attempt],
        places: dict[Address, int],
    ) -> Iterator[tuple[str, Address | None]]:
        """Give each source's name and its addresses that are to be tried; note what is not."""
        with self._lock:
            worked = self._worked.get(machine_id)
        if worked is not None:
            yield 'where it was last', worked
        ports: Counter[str | int] = Counter()
        for source in self._sources:
            found, tried = False, 0
            try:
                for address in source.find(machine_id, deadline.remaining()):
                    found = found or address is not None
                    for one in _look_up(source.name, address, attempts):
                        if one is None:
                            yield source.name, None
                        elif one in places:
                            pass
                        elif not source.is_hint:
                            yield source.name, one
                        elif reason := self._refuse(machine_id, one, ports):
                            places[one] = len(attempts)
                            attempts.append(Attempt(source.name, one, reason))
                        else:
                            tried += 1
                            ports[one[0]] += 1
                            yield source.name, one
                    if tried >= MAX_ADDRESSES:
                        break
                if not found:
                    attempts.append(Attempt(source.name, None, source.explain(machine_id)))
            except OSError as error:
                attempts.append(Attempt(source.name, None, _describe(error), error))

    def _refuse(self, machine_id: str, address: Address, ports: Counter[str | int]) -> str:
        """Return why a hint is not tried, '' if it is."""
        with self._lock:
            pauses = self._pauses.get(machine_id)
            pause_s = 0.0 if pauses is None else pauses.remaining(address, monotonic())
        if pause_s:
            return f'it failed lately and is tried again in {pause_s:.0f} s'
        if ports[address[0]] == MAX_PORTS:
            return f'{MAX_PORTS} other ports of that host were tried'
        return ''

    def _build_connect(
        self, machine_id: str, deadline: Deadline
    ) -> Callable[[Address, Adopt], Connection]:
        def connect(address: Address, adopt: Adopt) -> Connection:
            client = _TriedClient(
                self._trust, address, machine_id, connect_timeout_s=CONNECT_S, **self._options
            )
            client.adopt = adopt
            return client.connect(deadline)

        return connect

    def _judge(
        self,
        machine_id: str,
        outcome: Outcome | None,
        attempts: list[Attempt],
        places: dict[Address, int],
    ) -> Connection | None:
        """Return the connection that came of a try, or note why there is none."""
        if outcome is None:
            return None
        address, result = outcome
        if isinstance(result, Connection):
            with self._lock:
                self._worked[machine_id] = address
            return result
        if not isinstance(result, UnknownPeerError):
            for source in self._sources:
                source.forget(machine_id, address)
        if isinstance(result, pki.CertificateError):
            reason = f'whoever is there was refused: {result}'
        elif isinstance(result, OSError):
            reason = _describe(result)
        elif isinstance(result, UnknownPeerError):
            reason = str(result)
        else:
            # Whatever one address does to us, the others are tried.
            _log.warning('machine %s at %r: %r', machine_id, address, result, exc_info=result)
            reason = f'{type(result).__name__}: {result}'
        place = places[address]
        attempts[place] = attempts[place]._replace(reason=reason, error=result)
        with self._lock:
            now = monotonic()
            self._pauses = {id_: p for id_, p in self._pauses.items() if p.any_remain(now)}
            pauses = self._pauses.setdefault(machine_id, Pauses(RETRY_ADDRESS_S, MAX_PAUSES))
            pauses.begin(address, now)
            if self._worked.get(machine_id) == address:
                del self._worked[machine_id]
        return None


class DialedClient:
    """A client of one machine by its id alone; RpcClient and `fetch` take it. Thread-safe."""

    def __init__(self, dialer: Dialer, machine_id: str, timeout_s: float) -> None:
        self.machine_id = machine_id
        self.address = f'degu://{machine_id}'
        """What errors call it."""
        self._dialer = dialer
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.address!r})'

    def connect(self, deadline: Deadline | None = None) -> Connection:
        """Find the machine, connect, and check that it is the one: see Dialer.connect()."""
        return self._dialer.connect(self.machine_id, self._timeout_s, deadline)


def _look_up(
    source: str, address: Address | None, attempts: list[Attempt]
) -> list[Address] | list[None]:
    """Return what stands for one that a source gave; note why nothing does."""
    if address is None:
        return [None]
    try:
        return _resolve(address)
    except OSError as error:
        attempts.append(Attempt(source, address, _describe(error), error))
    except (TypeError, ValueError) as error:
        attempts.append(Attempt(source, address, str(error), error))
    return []


def _resolve(address: Address) -> list[Address]:
    """Return the addresses that a host name stands for, any other address as it is."""
    parse_address(address)
    if not isinstance(address, tuple) or len(address) == 4:
        return [address]
    host, port = address
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [where for *_, where in found if isinstance(where[0], str)]


def _describe(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
