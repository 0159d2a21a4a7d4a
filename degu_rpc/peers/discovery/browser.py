"""Who is seen on the local network: the records of each packet, read into `Sightings`.

A `Listener` sees the records, in the thread of the link. All records of a name are noted, not the
last one alone, so that somebody who announces another's id adds addresses and takes none away. A
`Browser` is what a caller has of it; any thread may use it.
"""

from __future__ import annotations

import contextlib
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Self

from zeroconf import (  # type: ignore[attr-defined]  # its __all__ has fewer names than its manual
    DNSAddress,
    DNSPointer,
    DNSService,
    RecordUpdate,
    RecordUpdateListener,
    Zeroconf,
)

from degu import pki
from degu.net import Deadline
from degu_rpc.errors import DiscoveryClosedError
from degu_rpc.peers.discovery.diagnosis import collect_facts, explain_nothing_found
from degu_rpc.peers.discovery.link import IN, QUESTION_PAUSE_S, Link, Question
from degu_rpc.peers.discovery.sightings import Sighting, Sightings, find_on_link
from degu_rpc.peers.limits import (
    FIND_S,
    MAX_ADDRESSES,
    MAX_CANDIDATES,
    MAX_QUESTIONS,
    MAX_UNKNOWN_SIGHTINGS,
)
from degu_rpc.peers.pauses import Pauses

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from degu.net import Address
    from degu_rpc.peers.discovery.announcement import ServiceType

# Source: RFC 1035 §3.2, RFC 3596 §2.1, RFC 2782.
_A, _PTR, _AAAA, _SRV = 1, 12, 28, 33
_STEP_S = 0.05  # how long whoever looks for an address is kept from other things


class Listener(RecordUpdateListener):
    """What zeroconf calls with the records of each packet, in the link's thread."""

    def __init__(self, link: Link, kind: ServiceType, sightings: Sightings) -> None:
        self.question: Question = (kind.value, _PTR)
        self.sightings = sightings
        self._link = link
        self._kind = kind
        self._asked = Pauses(QUESTION_PAUSE_S, MAX_QUESTIONS)
        self._zeroconf: Zeroconf | None = None
        self._now = 0.0  # when the packet came, which is when its records were created
        self._names: dict[str, None] = {}
        self._hosts: set[str] = set()
        self._addresses: dict[str, list[DNSAddress]] = {}
        self._incomplete: dict[str, None] = {}  # names whose host has no address yet

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Collect the names that a packet is about; the cache has its records only later."""
        self._zeroconf = zc
        self._now = now
        for update in records:
            record = update.new
            if isinstance(record, DNSPointer) and record.name == self._kind.value:
                name = record.alias
            elif isinstance(record, DNSService):
                name = record.name
            elif isinstance(record, DNSAddress):
                self._hosts.add(record.key)
                continue
            else:
                continue
            if record.ttl == 0:  # RFC 6762 §10.1
                self._drop(name)
            else:
                self._names[name] = None

    def async_update_records_complete(self) -> None:
        """Look at those names again."""
        if self._zeroconf is not None and (self._names or self._hosts):
            wanted = {f'{id_}.{self._kind.value}' for id_ in self.sightings.list_wanted()}
            wanted.update(self._incomplete)
            # Whoever has a thousand names at one host must not have us look at each for an address.
            names = {
                service.name: None
                for host in self._hosts
                for service in self._zeroconf.cache.async_entries_with_server(host)
                if service.name in wanted
            }
            names.update((name, None) for name in self._names if name in wanted)
            others = (name for name in self._names if name not in wanted)
            for name in [*names, *islice(others, MAX_UNKNOWN_SIGHTINGS)]:
                self._take(self._zeroconf, name)
        self._names.clear()
        self._hosts.clear()
        self._addresses.clear()

    def _find_instance(self, name: str) -> str | None:
        """Return the instance of a full name of our service, None for any other name."""
        instance = name.removesuffix(f'.{self._kind.value}')
        return instance if instance != name and pki.is_id(instance) else None

    def _drop(self, name: str) -> None:
        """Take out what said goodbye."""
        instance = self._find_instance(name)
        if instance is not None:
            self.sightings.remove(instance)

    def _take(self, zeroconf: Zeroconf, name: str) -> None:
        """Note what the records say of a name, and ask for those that are missing."""
        instance = self._find_instance(name)
        if instance is None or self._link.announces(instance):
            return
        if not self.sightings.takes(instance):
            return
        services = zeroconf.cache.get_all_by_details(name, _SRV, IN)
        if not services:
            self._ask_once((name, _SRV))
        # What this packet says, so that in the table nothing counts as said again that was not.
        said = [
            service
            for service in services
            if isinstance(service, DNSService)
            and (service.created == self._now or service.server_key in self._hosts)
        ][-MAX_ADDRESSES:]
        if said:
            addresses = [
                address for service in said for address in self._find_addresses(zeroconf, service)
            ]
            self._incomplete.pop(name, None)
            if not addresses:
                self._incomplete[name] = None
                while len(self._incomplete) > MAX_UNKNOWN_SIGHTINGS:
                    del self._incomplete[next(iter(self._incomplete))]
            self.sightings.add(instance, addresses, max(service.ttl for service in said))

    def _find_addresses(self, zeroconf: Zeroconf, service: DNSService) -> list[Address]:
        records = self._read_addresses(zeroconf, service.server_key)
        if not records:
            self._ask_once((service.server, _A), (service.server, _AAAA))
        return [
            address
            for record in records
            if self._now in (service.created, record.created)
            for address in find_on_link(
                record.address, record.scope_id or None, service.port, self._link.interfaces
            )
        ]

    def _read_addresses(self, zeroconf: Zeroconf, host: str) -> list[DNSAddress]:
        """Return the newest addresses of a host; once for each packet, as there may be many."""
        if host not in self._addresses:
            records = [
                record
                for kind in (_A, _AAAA)
                for record in zeroconf.cache.get_all_by_details(host, kind, IN)
                if isinstance(record, DNSAddress)
            ]
            records.sort(key=lambda record: record.created)
            self._addresses[host] = records[-MAX_ADDRESSES:]
        return self._addresses[host]

    def _ask_once(self, *questions: Question) -> None:
        now = monotonic()
        if not self._asked.remaining(questions[0], now):
            self._asked.begin(questions[0], now)
            self._link.ask(*questions)


class Browser:
    """Who is seen on the local network; a source of addresses for a Dialer.

    A context manager. A machine that this Discovery itself announces is not among them.
    """

    name = 'mDNS'
    is_hint = True

    # Set once: all.

    def __init__(self, link: Link, kind: ServiceType, sightings: Sightings) -> None:
        self._link = link
        self._kind = kind
        self._sightings = sightings
        self._listener = Listener(link, kind, sightings)
        link.call(link.start(self._listener))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop looking; whoever waits for an address is told that there are no more."""
        self._sightings.close()
        with contextlib.suppress(DiscoveryClosedError):  # which stopped looking
            self._link.call(self._link.stop(self._listener))

    def sightings(self) -> list[Sighting]:
        """Return who is seen now; times are those of `time.monotonic()`."""
        return self._sightings.list_all()

    def watch(self, timeout_s: float) -> Iterator[Sighting]:
        """Give each machine once, as soon as it is seen, until the time is over."""
        return self._sightings.watch(timeout_s)

    def find(self, machine_id: str, timeout_s: float) -> Iterator[Address | None]:
        """Give the addresses where a machine was seen, the best first, waiting for more.

        None stands for "nothing new yet". It ends after *timeout_s*, FIND_S or MAX_CANDIDATES. From
        now on the machine has a place in the table. Raises ValueError for another form of id.
        """
        deadline, pause = Deadline(min(timeout_s, FIND_S)), Deadline(0)
        question = (f'{pki.check_id(machine_id)}.{self._kind.value}', _SRV)
        given: set[Address] = set()
        to_us = True
        self._sightings.know(machine_id)
        while len(given) < MAX_CANDIDATES:
            address = self._sightings.wait_for_address(machine_id, given, 0)
            # What is known may do. Once it did not, we ask, however much others say meanwhile.
            if (address is None or given) and not pause.remaining() and deadline.remaining():
                with contextlib.suppress(DiscoveryClosedError):  # which closes the sightings, too
                    self._link.call(self._ask(question, to_us))
                to_us = False
                pause = Deadline(QUESTION_PAUSE_S)
            if address is None:
                wait_s = min(deadline.remaining(), _STEP_S)
                address = self._sightings.wait_for_address(machine_id, given, wait_s)
            if address is not None:
                given.add(address)
            elif not deadline.remaining() or self._sightings.closed:
                return
            yield address

    def know(self, machine_id: str) -> None:
        """Keep a place for a machine, however many strangers there are."""
        self._sightings.know(machine_id)

    def forget(self, machine_id: str, address: Address) -> None:
        """Drop an address where the machine is not."""
        self._sightings.forget(machine_id, address)

    def explain(self, machine_id: str) -> str:
        """Say why a machine was not found; sends a question on each interface to find out."""
        others = sum(sighting.machine_id != machine_id for sighting in self.sightings())
        return str(explain_nothing_found(collect_facts(others, self._link.interface_names)))

    async def _ask(self, question: Question, to_us: bool) -> None:
        self._link.ask(question, to_us=to_us)
