"""What is announced of this machine: a name, a port and addresses, and nothing else.

A `Registration` says which records that makes for the interfaces that there are; it belongs to the
thread of the link. An `Announcement` is what a caller has of it.
"""

from __future__ import annotations

import contextlib
import enum
from ipaddress import ip_address
from typing import TYPE_CHECKING, Self

from zeroconf.asyncio import AsyncServiceInfo

from degu import pki
from degu.net import parse_address
from degu_rpc.errors import DiscoveryClosedError
from degu_rpc.peers.limits import MAX_ADDRESSES, SIGHTING_S

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from types import TracebackType

    from degu.net import Address
    from degu_rpc.peers.discovery.interfaces import Interface
    from degu_rpc.peers.discovery.link import Link

TXT = b'\x03v=1'
"""The one string of the TXT record: the version of what is announced, nothing else."""


class ServiceType(enum.Enum):
    """What is announced, by its DNS-SD type."""

    MACHINE = '_degu._tcp.local.'
    PAIRING = '_degu-pair._tcp.local.'


class Registration:
    """What is announced, and its records as they are now: `info`."""

    info: AsyncServiceInfo

    def __init__(self, kind: ServiceType, name: str, addresses: Sequence[Address]) -> None:
        """Read the addresses. Raises ValueError, see `Discovery.announce`."""
        self.name = pki.check_id(name)
        self._kind = kind
        self._hosts = []
        ports = set()
        for address in addresses:
            _, parsed = parse_address(address)
            if not isinstance(parsed, tuple):
                raise ValueError(  # noqa: TRY004  # it is an address, of the wrong kind
                    f'other machines cannot connect to {address!r}'
                )
            self._hosts.append(ip_address(parsed[0].partition('%')[0]))
            ports.add(parsed[1])
        if len(ports) != 1 or 0 in ports:
            raise ValueError(f'announce addresses that have one port in common, not {addresses!r}')
        self._port = ports.pop()

    def build_info(self, interfaces: Collection[Interface]) -> None:
        """Build the records anew, for these interfaces."""
        own = [network.ip for interface in interfaces for network in interface.networks]
        told = [
            ip
            for ip in own
            if ip in self._hosts
            or (
                (ip.version == 4 or ip.is_link_local)
                and any(host.is_unspecified and host.version == ip.version for host in self._hosts)
            )
        ]
        self.info = AsyncServiceInfo(
            self._kind.value,
            f'{self.name}.{self._kind.value}',
            addresses=[ip.packed for ip in dict.fromkeys(told)][:MAX_ADDRESSES],
            port=self._port,
            properties=TXT,
            server=f'{self.name}.local.',
            host_ttl=int(SIGHTING_S),
            other_ttl=int(SIGHTING_S),
        )


class Announcement:
    """What is announced of this machine; a context manager that takes it back."""

    # Set once: all.

    def __init__(self, link: Link, registration: Registration) -> None:
        self.name = registration.name
        """The machine id, or the random name of a pairing window."""
        self._link = link
        self._registration = registration

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
        """Take the announcement back and say goodbye; a second time does nothing."""
        with contextlib.suppress(DiscoveryClosedError):  # which said goodbye
            self._link.call(self._link.unregister(self._registration))
