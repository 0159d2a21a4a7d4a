"""The network interfaces of this machine, as the operating system has them now.

`read_interfaces` is the one place that asks; what is near, what is announced, and why nothing was
found are decided from its answer. There are no threads and no locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from ipaddress import IPv4Interface, IPv6Interface
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

# Source: netdevice(7).
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFF_POINTOPOINT = 0x10
_IFF_RUNNING = 0x40  # its cable is plugged in, its Wi-Fi is joined
_IFF_MULTICAST = 0x1000
_USABLE = _IFF_UP | _IFF_RUNNING
_IFREQ = struct.Struct('16sH22x')


class Interface(NamedTuple):
    """A network interface: its name and number, its addresses with their networks, its state."""

    name: str
    number: int
    networks: tuple[IPv4Interface | IPv6Interface, ...]
    is_up: bool = True
    """Whether it is switched on and connected to something."""
    is_loopback: bool = False
    is_point_to_point: bool = False
    has_multicast: bool = True

    @property
    def is_local(self) -> bool:
        """Whether it leads to a local network where mDNS works: not a VPN, not the loopback."""
        return (
            self.is_up
            and self.has_multicast
            and bool(self.networks)
            and not (self.is_loopback or self.is_point_to_point)
        )


def read_interfaces() -> list[Interface]:
    """Return the interfaces of this machine. Raises OSError."""
    import ifaddr

    networks: dict[int, list[IPv4Interface | IPv6Interface]] = {}
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            if adapter.index is None:  # it went away while it was looked at
                continue
            found = networks.setdefault(adapter.index, [])
            if isinstance(ip.ip, tuple):
                found.append(IPv6Interface((ip.ip[0].partition('%')[0], ip.network_prefix)))
            else:
                found.append(IPv4Interface((ip.ip, ip.network_prefix)))
    interfaces = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for index, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it went away while it was looked at
                request = _IFREQ.pack(name.encode(), 0)
                flags = _IFREQ.unpack(fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
                interfaces.append(
                    Interface(
                        name,
                        index,
                        tuple(networks.get(index, ())),
                        is_up=flags & _USABLE == _USABLE,
                        is_loopback=bool(flags & _IFF_LOOPBACK),
                        is_point_to_point=bool(flags & _IFF_POINTOPOINT),
                        has_multicast=bool(flags & _IFF_MULTICAST),
                    )
                )
    return interfaces


def choose_interfaces(
    interfaces: Collection[Interface], names: Collection[str] | None
) -> list[Interface]:
    """Return the interfaces to discover on: the local ones, or those of these names that are up."""
    if names is None:
        return [interface for interface in interfaces if interface.is_local]
    return [i for i in interfaces if i.name in names and i.is_up and i.networks]
