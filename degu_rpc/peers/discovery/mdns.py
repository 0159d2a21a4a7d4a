"""Who is near: this machine is announced by mDNS, and others are seen. Hints, never trust.

    with Discovery() as discovery, discovery.announce(identity.machine_id, [server.address]):
        browser = discovery.browse()
        with Dialer(trust, [browser]).connect(machine_id) as connection:
            ...

1. A `Discovery` opens the mDNS sockets on the local interfaces, and follows the interfaces as they
   come and go.
2. `announce` says `<machine id>._degu._tcp.local.`, a port, addresses and the TXT record `v=1`:
   no name of a user or a host. The host record goes by the same id.
3. A `Browser` asks who is there, at growing intervals, and notes every answer.
4. `announce_pairing` and `browse_pairing` do the same for pairing windows
   (`_degu-pair._tcp.local.`), by random names of the same form.

Threads: any may call anything. A Discovery has one thread of its own (`degu_rpc.peers.discovery.
link`), which owns the sockets, the records and the announcements, and ends with `close()`.

This module, and what it imports, is all that imports zeroconf. Nothing imports it before it is
used.

Source: RFC 6762 (mDNS), RFC 6763 (DNS-SD).
"""

from __future__ import annotations

import base64
import secrets
from typing import TYPE_CHECKING, Self

from degu_rpc.peers.discovery.announcement import Announcement, Registration, ServiceType
from degu_rpc.peers.discovery.browser import Browser
from degu_rpc.peers.discovery.link import Link
from degu_rpc.peers.discovery.sightings import Sightings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from types import TracebackType

    from degu.net import Address


class Discovery:
    """The mDNS side of this machine; a context manager."""

    # Set once: _link.

    def __init__(self, interface_names: Collection[str] | None = None) -> None:
        """Open the sockets on the local interfaces, or on those of these names.

        Raises OSError, with EADDRINUSE where another program keeps UDP port 5353 for itself.
        """
        self._link = Link(interface_names)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def announce(self, machine_id: str, addresses: Sequence[Address]) -> Announcement:
        """Announce this machine, which listens at *addresses*, until the announcement is closed.

        For a wildcard address the addresses of the local interfaces are told, as they change: IPv4
        and link-local IPv6, which is all that a neighbour needs.

        Raises ValueError for another form of id, for an address that no other machine could
        connect to, for two ports (a DNS-SD name has one), and for an id that is announced already;
        DiscoveryClosedError.
        """
        return self._announce(ServiceType.MACHINE, machine_id, addresses)

    def announce_pairing(self, addresses: Sequence[Address]) -> Announcement:
        """Announce a pairing window by a random name, which says nothing about whose it is.

        Raises ValueError and DiscoveryClosedError as `announce` does.
        """
        name = base64.b32encode(secrets.token_bytes(30)).decode('ascii').lower()
        return self._announce(ServiceType.PAIRING, name, addresses)

    def browse(self, known: Iterable[str] = ()) -> Browser:
        """Begin to look for machines; those whose ids are *known* always have a place.

        Raises DiscoveryClosedError.
        """
        return Browser(self._link, ServiceType.MACHINE, Sightings(known))

    def browse_pairing(self) -> Browser:
        """Begin to look for pairing windows; a sighting's `machine_id` is the window's name.

        Raises DiscoveryClosedError.
        """
        return Browser(self._link, ServiceType.PAIRING, Sightings())

    def close(self) -> None:
        """Say goodbye for what is announced and end the thread; a second time only waits for it."""
        self._link.close()

    def _announce(self, kind: ServiceType, name: str, addresses: Sequence[Address]) -> Announcement:
        registration = Registration(kind, name, addresses)
        self._link.call(self._link.register(registration))
        return Announcement(self._link, registration)
