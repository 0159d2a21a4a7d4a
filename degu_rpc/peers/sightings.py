"""What was seen of other machines: hints with an end, bounded, and never trusted.

1. `find_on_link` turns an address that somebody announced into what can be connected to, or into
   nothing if it does not lie in one of our own networks.
2. `Sightings` is the table. A record counts until its time to live is over or its goodbye comes.
   Who is known is always taken; of strangers only so many, and whoever was there first stays.
3. `Pauses` says how soon something may be done again: an address that failed, a question.

Everything here is pure: the clock (seconds of any one clock) and our interfaces are arguments.
There are no threads and no locks.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, NamedTuple

from degu_rpc.peers.limits import MAX_ADDRESSES, MAX_UNKNOWN_SIGHTINGS, SIGHTING_S

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable

    from degu.net import Address
    from degu_rpc.peers.interfaces import Interface

_machine_id = re.compile('[a-z2-7]{48}')


class Sighting(NamedTuple):
    """Where a machine was seen: its addresses, the newest first, and when (by the table's clock).

    Of a pairing window `machine_id` is the random name that it goes by.
    """

    machine_id: str
    addresses: tuple[Address, ...]
    last_seen: float


def is_machine_id(text: str) -> bool:
    """Tell whether *text* has the form of a machine id: exactly 48 base32 characters, lower case.

    >>> is_machine_id('a' * 48), is_machine_id('a' * 47 + '1'), is_machine_id('A' * 48)
    (True, False, False)
    """
    return _machine_id.fullmatch(text) is not None


def check_machine_id(text: str) -> str:
    """Return *text* if it has the form of a machine id. Raises ValueError."""
    if not is_machine_id(text):
        raise ValueError(f'a machine id is 48 base32 characters, not {text!r}')
    return text


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


class Sightings:
    """The table of what was seen, by machine id."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        """Begin with nothing seen; the machine ids in *known* are never pushed out by strangers."""
        self._known = set(known)
        self._seen: dict[str, dict[Address, _Seen]] = {}

    def know(self, machine_id: str) -> None:
        """Keep a place for this machine from now on."""
        self._known.add(machine_id)

    def takes(self, machine_id: str, now: float) -> bool:
        """Tell whether the table has a place for this machine."""
        if not is_machine_id(machine_id):
            return False
        if machine_id in self._known or machine_id in self._seen:
            return True
        self._expire(now)
        strangers = sum(other not in self._known for other in self._seen)
        return strangers < MAX_UNKNOWN_SIGHTINGS

    def add(
        self, machine_id: str, addresses: Iterable[Address], ttl_s: float, now: float
    ) -> list[Address]:
        """Note that a machine was seen; return the addresses that are new.

        Of more than MAX_ADDRESSES the oldest go. *ttl_s* counts up to SIGHTING_S. Nothing is noted
        of a stranger for whom there is no place.
        """
        addresses = list(addresses)
        if not addresses or not self.takes(machine_id, now):
            return []
        seen = self._seen.setdefault(machine_id, {})
        end = now + min(ttl_s, SIGHTING_S)
        new = []
        for address in addresses:
            before = seen.pop(address, None)
            if before is None or before.end <= now:
                new.append(address)
            seen[address] = _Seen(now, end if before is None else max(end, before.end))
        while len(seen) > MAX_ADDRESSES:
            del seen[next(iter(seen))]
        return [address for address in new if address in seen]

    def remove(self, machine_id: str) -> None:
        """Take a machine out: it said goodbye."""
        self._seen.pop(machine_id, None)

    def forget(self, machine_id: str, address: Address) -> None:
        """Take one address of a machine out: somebody else is there."""
        seen = self._seen.get(machine_id, {})
        seen.pop(address, None)
        if not seen:
            self.remove(machine_id)

    def find(self, machine_id: str, now: float) -> Sighting | None:
        """Return where a machine was seen, None if nowhere."""
        seen = self._seen.get(machine_id, {})
        live = {address: when for address, when in seen.items() if when.end > now}
        if not live:
            return None
        last_seen = max(when.last_seen for when in live.values())
        return Sighting(machine_id, tuple(reversed(live)), last_seen)

    def list_all(self, now: float) -> list[Sighting]:
        """Return all machines that are seen now, in the order in which they were seen first."""
        self._expire(now)
        return [s for machine_id in self._seen if (s := self.find(machine_id, now)) is not None]

    def _expire(self, now: float) -> None:
        for machine_id, seen in list(self._seen.items()):
            if all(when.end <= now for when in seen.values()):
                del self._seen[machine_id]


class Pauses:
    """What happened lately and must not happen again yet; at most *max_keys* at once."""

    def __init__(self, pause_s: float, max_keys: int) -> None:
        self._pause_s = pause_s
        self._max_keys = max_keys
        self._ends: dict[Hashable, float] = {}

    def remaining(self, key: Hashable, now: float) -> float:
        """Return the seconds until *key* may happen again, 0 if it may now.

        With *max_keys* others pausing, a further one must wait for the first of them.
        """
        self._ends = {other: end for other, end in self._ends.items() if end > now}
        if key in self._ends:
            return self._ends[key] - now
        if len(self._ends) >= self._max_keys:
            return min(self._ends.values()) - now
        return 0.0

    def begin(self, key: Hashable, now: float) -> None:
        """Begin the pause of *key*."""
        self._ends[key] = now + self._pause_s
