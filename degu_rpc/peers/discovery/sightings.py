"""What was seen of other machines: hints with an end, bounded, and never trusted.

1. `find_on_link` turns an address that somebody announced into what can be connected to, or into
   nothing if it does not lie in one of our own networks. It is pure.
2. `Sightings` is the table. A record counts until its time to live is over or its goodbye comes.
   Who is known is always taken; of strangers only so many, and whoever was there first stays.
   Of a machine's addresses those that were repeated count most, the oldest first. Where there are
   too many, one that was said only once must go, whichever: so new ones never push out what is
   confirmed, and what is true is confirmed sooner or later.
3. `watch` and `wait_for_address` wait for what is not in it yet.

Threads: any number may share a table, one that writes what was seen and others that wait for it.
`_changed` (a Condition) guards it and is notified of everything new; no method holds it while a
caller works with what it was given.
"""

from __future__ import annotations

import math
import secrets
import threading
from ipaddress import IPv4Address, IPv6Address, ip_address
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from degu import pki
from degu.net import Deadline
from degu_rpc.peers.limits import (
    MAX_ADDRESSES,
    MAX_CANDIDATES,
    MAX_UNKNOWN_SIGHTINGS,
    SIGHTING_S,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from degu.net import Address
    from degu_rpc.peers.discovery.interfaces import Interface


_EXPIRE_S = 1.0  # how often a full table is searched for those whose time is over


class Sighting(NamedTuple):
    """Where a machine was seen: its best addresses, and when (by the table's clock).

    Of a pairing window `machine_id` is the random name that it goes by.
    """

    machine_id: str
    addresses: tuple[Address, ...]
    last_seen: float


def find_on_link(
    ip: bytes, scope_id: int | None, port: int, interfaces: Collection[Interface]
) -> list[Address]:
    """Return the addresses to connect to for an *ip* that somebody announced.

    *ip* is packed; *scope_id* is the number of the interface where it was heard, None if
    nobody knows. There is none if it lies in no network of *interfaces*. For link-local IPv6
    without a scope there is one for each interface that speaks it.
    """
    try:
        found = ip_address(ip)
    except ValueError:
        return []
    if not 0 < port < 2**16 or found.is_multicast or found.is_unspecified:
        return []
    if isinstance(found, IPv6Address) and found.is_link_local:
        return [
            (str(found), port, 0, interface.number)
            for interface in interfaces
            if scope_id in (None, interface.number)
            and any(n.version == 6 and n.ip.is_link_local for n in interface.networks)
        ]
    if not any(_holds(interface, found) for interface in interfaces):
        return []
    return [(str(found), port) if found.version == 4 else (str(found), port, 0, 0)]


def _is_on_link(address: Address, interfaces: Collection[Interface]) -> bool:
    host, port, _, scope = (*address, 0, 0)[:4]
    return address in find_on_link(ip_address(host).packed, scope or None, port, interfaces)


def _holds(interface: Interface, ip: IPv4Address | IPv6Address) -> bool:
    for own in interface.networks:
        if ip.version == own.version and ip in own.network:
            # The first and the last address of an IPv4 network are nobody's, but for /31 and /32.
            edges = (own.network.network_address, own.network.broadcast_address)
            return ip.version == 6 or own.network.prefixlen > 30 or ip not in edges
    return False


class _Seen(NamedTuple):
    last_seen: float
    end: float
    is_confirmed: bool


class Sightings:
    """The table of what was seen, by machine id, for any number of threads."""

    # Set once: _clock. Guarded by _changed: the rest; _strangers counts who is seen and not known.

    def __init__(self, known: Iterable[str] = (), clock: Callable[[], float] = monotonic) -> None:
        """Begin with nothing seen; the machine ids in *known* are never pushed out by strangers."""
        self._clock = clock
        self._changed = threading.Condition()
        self._known = set(known)
        self._seen: dict[str, dict[Address, _Seen]] = {}
        self._strangers = 0
        self._expired_at = -math.inf
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nobody waits any more."""
        with self._changed:
            return self._closed

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def know(self, machine_id: str) -> None:
        """Keep a place for this machine from now on."""
        with self._changed:
            if machine_id not in self._known:
                self._known.add(machine_id)
                self._strangers -= machine_id in self._seen

    def list_wanted(self) -> set[str]:
        """Return the ids of those that are known or seen."""
        with self._changed:
            return self._known | self._seen.keys()

    def takes(self, machine_id: str) -> bool:
        """Tell whether the table has a place for this machine."""
        with self._changed:
            return self._takes(machine_id, self._clock())

    def add(self, machine_id: str, addresses: Iterable[Address], ttl_s: float) -> None:
        """Note that a machine was seen.

        What is said in two calls is confirmed. *ttl_s* counts up to SIGHTING_S. Nothing is noted of
        a stranger for whom there is no place.
        """
        addresses = list(dict.fromkeys(addresses))
        with self._changed:
            now = self._clock()
            if not addresses or not self._takes(machine_id, now):
                return
            if machine_id not in self._seen:
                self._strangers += machine_id not in self._known
            seen = {a: w for a, w in self._seen.get(machine_id, {}).items() if w.end > now}
            self._seen[machine_id] = seen
            end = now + min(ttl_s, SIGHTING_S)
            for address in addresses:
                before = seen.get(address)
                seen[address] = _Seen(
                    now, end if before is None else max(end, before.end), before is not None
                )
            while len(seen) > MAX_CANDIDATES:
                once = [address for address, when in seen.items() if not when.is_confirmed]
                del seen[secrets.choice(once) if once else next(reversed(seen))]
            self._changed.notify_all()

    def remove(self, machine_id: str) -> None:
        """Take a machine out: it said goodbye."""
        with self._changed:
            self._remove(machine_id)

    def forget(self, machine_id: str, address: Address) -> None:
        """Take one address of a machine out: somebody else is there."""
        with self._changed:
            seen = self._seen.get(machine_id, {})
            seen.pop(address, None)
            if not seen:
                self._remove(machine_id)

    def keep_on_link(self, interfaces: Collection[Interface]) -> None:
        """Take out what lies in no network of *interfaces* any more, once they have changed."""
        with self._changed:
            for machine_id, seen in list(self._seen.items()):
                for address in list(seen):
                    if not _is_on_link(address, interfaces):
                        del seen[address]
                if not seen:
                    self._remove(machine_id)

    def find(self, machine_id: str) -> Sighting | None:
        """Return where a machine was seen, None if nowhere."""
        with self._changed:
            return self._find(machine_id, self._clock())

    def list_all(self) -> list[Sighting]:
        """Return all machines that are seen now, in the order in which they were seen first."""
        with self._changed:
            return self._list_new(frozenset())

    def watch(self, timeout_s: float) -> Iterator[Sighting]:
        """Give each machine once, as soon as it is seen, until the time is over."""
        deadline = Deadline(timeout_s)
        given: set[str] = set()
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._list_new(given), deadline.remaining()
                )
                new = [] if self._closed else self._list_new(given)
            if not new:
                return
            for sighting in new:
                given.add(sighting.machine_id)
                yield sighting

    def wait_for_address(
        self, machine_id: str, given: set[Address], timeout_s: float
    ) -> Address | None:
        """Return the best address of a machine that is not among the *given*, None for none."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._find_new(machine_id, given), timeout_s
            )
            return None if self._closed else self._find_new(machine_id, given)

    # --- with _changed held ------------------------------------------------------------------

    def _takes(self, machine_id: str, now: float) -> bool:
        if not pki.is_id(machine_id):
            return False
        if machine_id in self._known or machine_id in self._seen:
            return True
        # Whoever sends many names to a full table must not have us look for room each time.
        if self._strangers >= MAX_UNKNOWN_SIGHTINGS and now - self._expired_at >= _EXPIRE_S:
            self._expire(now)
        return self._strangers < MAX_UNKNOWN_SIGHTINGS

    def _remove(self, machine_id: str) -> None:
        if self._seen.pop(machine_id, None) is not None:
            self._strangers -= machine_id not in self._known

    def _find(self, machine_id: str, now: float) -> Sighting | None:
        ranked = self._rank(machine_id, now)
        if not ranked:
            return None
        last_seen = max(self._seen[machine_id][address].last_seen for address in ranked)
        return Sighting(machine_id, tuple(ranked[:MAX_ADDRESSES]), last_seen)

    def _rank(self, machine_id: str, now: float) -> list[Address]:
        # In the order in which they were seen first, which the sorting keeps.
        seen = self._seen.get(machine_id, {})
        live = [address for address, when in seen.items() if when.end > now]
        return sorted(live, key=lambda address: not seen[address].is_confirmed)

    def _list_new(self, given: Collection[str]) -> list[Sighting]:
        now = self._clock()
        self._expire(now)
        found = (
            self._find(machine_id, now) for machine_id in self._seen if machine_id not in given
        )
        return [sighting for sighting in found if sighting is not None]

    def _find_new(self, machine_id: str, given: set[Address]) -> Address | None:
        ranked = self._rank(machine_id, self._clock())
        return next((address for address in ranked if address not in given), None)

    def _expire(self, now: float) -> None:
        self._expired_at = now
        for machine_id, seen in list(self._seen.items()):
            if all(when.end <= now for when in seen.values()):
                self._remove(machine_id)
