"""Where something listens or can be connected to: an IP address and a TCP port. Pure but for one.

The core's addresses are tuples of two or four; `Place` says by name what is in one of TCP.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from degu_rpc.peers import MachineUrl, format_url
from degu_rpc.peers.discovery.interfaces import read_interfaces
from degu_rpc.peers.limits import MAX_ADDRESSES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from degu.net import Address


class Place(NamedTuple):
    """An IP address and a port; `scope` is the number of the interface, for link-local IPv6."""

    host: str
    port: int
    scope: int = 0

    @property
    def address(self) -> Address:
        """The address for the core."""
        return (self.host, self.port, 0, self.scope) if ':' in self.host else (self.host, self.port)

    def __str__(self) -> str:
        """Write it as people do.

        >>> str(Place('fe80::1', 8486, 2)), str(Place('192.168.1.7', 8486))
        ('[fe80::1%2]:8486', '192.168.1.7:8486')
        """
        if ':' not in self.host:
            return f'{self.host}:{self.port}'
        return (
            f'[{self.host}%{self.scope}]:{self.port}'
            if self.scope
            else f'[{self.host}]:{self.port}'
        )

    def format_url(self, machine_id: str) -> str:
        """Return the `degu://` URL of a machine at this place."""
        scope = str(self.scope) if self.scope else ''
        return format_url(MachineUrl(machine_id, self.host, self.port, scope))


def find_places(addresses: Iterable[Address]) -> list[Place]:
    """Return the places that addresses of TCP stand for; others are left out."""
    return [
        Place(address[0], address[1], address[3] if len(address) == 4 else 0)
        for address in addresses
        if isinstance(address, tuple)
    ]


def find_reachable(listening: Place) -> list[Place]:
    """Return where neighbours can connect to what listens at a place, or at all addresses.

    Link-local IPv6 is left out: it means nothing without the interface of whoever connects.
    Raises OSError.
    """
    ip = ip_address(listening.host)
    if not ip.is_unspecified:
        return [listening]
    return [
        Place(str(network.ip), listening.port)
        for interface in read_interfaces()
        if interface.is_local
        for network in interface.networks
        if network.version == ip.version and not network.ip.is_link_local
    ][:MAX_ADDRESSES]
