"""Which machine a client talks to: by id, never by host name or address.

    dialer = Dialer(trust, [StaticAddresses(urls), browser])
    with dialer.connect(machine_id) as connection:
        ...

1. `check_server` is the check: the certificate that the handshake verified names the machine.
2. `MachineClient` makes it after each connect, at an address that is given.
3. A `Dialer` looks for the address. It tries the one that worked last, then what its sources say,
   in their order and one at a time. An address is a hint: where another machine is, it is dropped
   and its source forgets it. One that failed is not tried again for RETRY_ADDRESS_S, so that
   nobody can have us hammer at an address by announcing it; what a person gave is always tried.

Threads: a Dialer serves any number of them; `_lock` guards what it remembers and is never held
during I/O. A MachineClient changes nothing.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from degu import pki
from degu.client import Connection, SSLClient
from degu.net import Deadline
from degu_rpc.errors import Attempt, UnknownPeerError, UnreachableError
from degu_rpc.peers.caller import derive_machine
from degu_rpc.peers.limits import CONNECT_S, DIAL_S, MAX_PAUSES, RETRY_ADDRESS_S
from degu_rpc.peers.sightings import Pauses, check_machine_id

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Iterator, Mapping

    from degu.net import Address
    from degu_rpc.peers.caller import TrustedUser


def check_server(cert_der: bytes | None, machine_id: str) -> None:
    """Check that a server is the machine a client meant to call.

    *cert_der* is the `peer_certificate` of a client's connection (`SSLSocket.getpeercert(True)`),
    whose chain the handshake has verified; *machine_id* is the expected one, compared whole.

    Raises pki.CertificateError (MACHINE_ID for another machine, with both ids).
    """
    found = pki.parse_machine_cert(cert_der).machine_id
    if found != machine_id:
        raise pki.CertificateError(
            pki.CertificateFault.MACHINE_ID, f'expected {machine_id}, found {found}'
        )


class Trust(Protocol):
    """What is asked of a TrustStore here."""

    def client_sslctx(self) -> ssl.SSLContext:
        """Return the context that trusts whom we trust now."""

    def users(self) -> Mapping[str, TrustedUser]:
        """Return whom we trust now, by user id."""


class MachineClient(SSLClient):
    """A client of one machine, wherever it is: each connection proves the machine's id."""

    def __init__(self, trust: Trust, address: Address, machine_id: str, **options: Any) -> None:
        """Remember where and whom to connect to, and whose word counts: a TrustStore.

        Other arguments are those of `degu.client.SSLClient`.
        """
        super().__init__(trust.client_sslctx, address, **options)
        self.machine_id = machine_id
        self._trust = trust

    def connect(self) -> Connection:
        """Connect and check who is there, by what is trusted now.

        Raises pki.CertificateError for another machine, UnknownPeerError for one that is denied,
        and what SSLClient.connect() and the trust store raise.
        """
        connection = super().connect()
        try:
            check_server(connection.peer_certificate, self.machine_id)
            derive_machine(connection.peer_certificate, self._trust.users())
        except BaseException:
            connection.close()
            raise
        return connection


class Source(Protocol):
    """Where addresses of machines come from: StaticAddresses, a discovery.Browser, a DnsSd."""

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def is_hint(self) -> bool:
        """Whether its addresses come from the network and not from a person."""

    def find(self, machine_id: str, timeout_s: float) -> Iterator[Address]:
        """Give addresses of a machine as they become known. Raises OSError where it cannot look."""

    def forget(self, machine_id: str, address: Address) -> None:
        """Drop an address where another machine is."""

    def explain(self, machine_id: str) -> str:
        """Say to a person why there was no address."""


class Dialer:
    """Connects to machines by their ids, wherever they are."""

    # Set once: _trust, _sources, _options. Guarded by _lock: _worked, _pauses.

    def __init__(self, trust: Trust, sources: Iterable[Source], **options: Any) -> None:
        """Remember whose word counts, a TrustStore, and where to look.

        The quickest of the *sources* should come first. *options* are those of SSLClient.
        """
        self._trust = trust
        self._sources = tuple(sources)
        self._options = options
        self._lock = threading.Lock()
        self._worked: dict[str, Address] = {}
        self._pauses = Pauses(RETRY_ADDRESS_S, MAX_PAUSES)

    def connect(self, machine_id: str, timeout_s: float = DIAL_S) -> Connection:
        """Find a machine, connect, and check that it is the one.

        Raises UnreachableError, which lists what was tried and why each failed, ValueError for
        another form of id, and what the trust store raises.
        """
        check_machine_id(machine_id)
        deadline = Deadline(timeout_s)
        attempts: list[Attempt] = []
        tried: set[Address] = set()
        for name, is_hint, address in self._find(machine_id, deadline, attempts):
            if address in tried:
                continue
            tried.add(address)
            if not deadline.remaining():
                attempts.append(Attempt(name, address, f'not tried within {timeout_s:g} s'))
                break
            pause_s = self._remaining_pause(machine_id, address) if is_hint else 0.0
            if pause_s:
                reason = f'it failed lately and is tried again in {pause_s:.0f} s'
                attempts.append(Attempt(name, address, reason))
                continue
            try:
                connection = self._connect(machine_id, address, deadline)
            except UnknownPeerError as error:
                attempts.append(Attempt(name, address, str(error)))
            except pki.CertificateError as error:
                for source in self._sources:
                    source.forget(machine_id, address)
                attempts.append(Attempt(name, address, f'whoever is there was refused: {error}'))
            except OSError as error:
                attempts.append(Attempt(name, address, _describe(error)))
            else:
                with self._lock:
                    self._worked[machine_id] = address
                return connection
            self._note_failure(machine_id, address)
        raise UnreachableError(machine_id, attempts)

    def _find(
        self, machine_id: str, deadline: Deadline, attempts: list[Attempt]
    ) -> Iterator[tuple[str, bool, Address]]:
        """Give each source's name, whether it hints, and its addresses; note who has none."""
        with self._lock:
            worked = self._worked.get(machine_id)
        if worked is not None:
            yield 'where it was last', False, worked
        for source in self._sources:
            found = False
            try:
                for address in source.find(machine_id, deadline.remaining()):
                    found = True
                    yield source.name, source.is_hint, address
                if not found:
                    attempts.append(Attempt(source.name, None, source.explain(machine_id)))
            except OSError as error:
                attempts.append(Attempt(source.name, None, _describe(error)))

    def _connect(self, machine_id: str, address: Address, deadline: Deadline) -> Connection:
        timeout_s = min(CONNECT_S, max(deadline.remaining(), 0.001))
        return MachineClient(
            self._trust, address, machine_id, connect_timeout_s=timeout_s, **self._options
        ).connect()

    def _remaining_pause(self, machine_id: str, address: Address) -> float:
        with self._lock:
            return self._pauses.remaining((machine_id, address), monotonic())

    def _note_failure(self, machine_id: str, address: Address) -> None:
        with self._lock:
            self._pauses.begin((machine_id, address), monotonic())
            if self._worked.get(machine_id) == address:
                del self._worked[machine_id]


def _describe(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
