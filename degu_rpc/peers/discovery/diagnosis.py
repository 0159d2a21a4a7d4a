"""Why nothing was found by mDNS, in plain words.

1. `collect_facts` is the one place that asks the operating system: which interfaces there are, and
   on each whether a question can be sent to the mDNS group and is heard by ourselves. What one
   sends to a group comes back through the same packet filter that answers come through.
2. `explain_nothing_found` is pure: facts to a reason.

There are no threads and no locks.
"""

from __future__ import annotations

import enum
import secrets
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from degu.net import Deadline
from degu_rpc.peers.discovery.interfaces import Interface, choose_interfaces, read_interfaces
from degu_rpc.peers.limits import PROBE_S

if TYPE_CHECKING:
    from collections.abc import Collection

# Source: RFC 6762 §3.
MDNS_PORT = 5353
_GROUP_IPV4 = '224.0.0.251'
_GROUP_IPV6 = 'ff02::fb'
_IP_MREQN = struct.Struct('@4s4si')  # ip(7)
_IPV6_MREQ = struct.Struct('@16sI')  # ipv6(7)
# The question that discovery asks: PTR, class IN. Source: RFC 1035 §4.1.
_QUESTION = b'\x05_degu\x04_tcp\x05local\x00\x00\x0c\x00\x01'


class Reason(enum.Enum):
    """Why no machine was found; the value says it to a person."""

    NO_NETWORK = 'this machine has no network: no interface but the loopback is up with an address'
    VPN_ONLY = (
        'this machine is connected by a VPN only, which does not carry multicast; use a static '
        'address (degu://...) or DNS-SD'
    )
    NO_MULTICAST = (
        'no interface of this machine can send multicast; use a static address (degu://...) or '
        'DNS-SD'
    )
    FIREWALL = (
        'this machine does not hear what it sends to the mDNS group: a firewall drops it; let UDP '
        'port 5353 in'
    )
    NOT_ANNOUNCED = (
        'other machines were seen, but not this one: it does not run, or is on another network'
    )
    NOBODY = (
        'multicast works here, but nobody answered: the other machine does not run, is on another '
        'network (a guest Wi-Fi keeps machines apart), or its firewall drops UDP port 5353'
    )


class Probe(NamedTuple):
    """What became of a question that was sent to the mDNS group on one interface."""

    interface: str
    error: str | None
    """What the operating system said when it could not be sent."""
    heard: bool
    """Whether we heard it ourselves."""


class Facts(NamedTuple):
    """What is known when nothing was found."""

    interfaces: tuple[Interface, ...]
    probes: tuple[Probe, ...]
    others: int
    """How many other machines were seen."""


class Explanation(NamedTuple):
    """Why nothing was found: the reason, and with it what else is known."""

    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f'{self.reason.value} ({self.detail})' if self.detail else self.reason.value


def explain_nothing_found(facts: Facts) -> Explanation:
    """Return the most likely reason."""
    if facts.others:
        return Explanation(Reason.NOT_ANNOUNCED, f'{facts.others} seen')
    if facts.probes:
        if any(probe.heard for probe in facts.probes):
            return Explanation(Reason.NOBODY, '')
        errors = [f'{p.interface}: {p.error}' for p in facts.probes if p.error is not None]
        if len(errors) == len(facts.probes):
            return Explanation(Reason.NO_MULTICAST, '; '.join(errors))
        return Explanation(Reason.FIREWALL, ', '.join(p.interface for p in facts.probes))
    connected = [i for i in facts.interfaces if i.is_up and i.networks and not i.is_loopback]
    names = ', '.join(interface.name for interface in connected)
    if not connected:
        return Explanation(Reason.NO_NETWORK, '')
    if all(interface.is_point_to_point for interface in connected):
        return Explanation(Reason.VPN_ONLY, names)
    return Explanation(Reason.NO_MULTICAST, names)


def collect_facts(others: int, interface_names: Collection[str] | None = None) -> Facts:
    """Look at the interfaces and send a question on each that discovery uses.

    It takes up to PROBE_S an interface where it is not heard. Raises OSError where the interfaces
    cannot be listed.
    """
    interfaces = tuple(read_interfaces())
    chosen = choose_interfaces(interfaces, interface_names)
    return Facts(interfaces, tuple(_probe(interface) for interface in chosen), others)


def _probe(interface: Interface) -> Probe:
    error = None
    for version in sorted({network.version for network in interface.networks}):
        try:
            if _hears_itself(interface.number, version):
                return Probe(interface.name, None, True)
        except OSError as found:
            error = found.strerror or str(found)
    return Probe(interface.name, error, False)


def _hears_itself(index: int, version: int) -> bool:
    # Bound to the group, so that nothing but what is sent to it is heard.
    sent = secrets.token_bytes(2) + struct.pack('>HHHHH', 0, 1, 0, 0, 0) + _QUESTION
    deadline = Deadline(PROBE_S)
    with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if version == 4:
            group = socket.inet_aton(_GROUP_IPV4)
            membership = _IP_MREQN.pack(group, bytes(4), index)
            s.bind((_GROUP_IPV4, MDNS_PORT))
            s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, membership)
            s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
            s.sendto(sent, (_GROUP_IPV4, MDNS_PORT))
        else:
            group = socket.inet_pton(socket.AF_INET6, _GROUP_IPV6)
            s.bind((_GROUP_IPV6, MDNS_PORT, 0, index))
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, _IPV6_MREQ.pack(group, index))
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            s.sendto(sent, (_GROUP_IPV6, MDNS_PORT, 0, index))
        while deadline.remaining():
            s.settimeout(max(deadline.remaining(), 0.001))
            try:
                if s.recv(len(sent) + 1) == sent:
                    return True
            except TimeoutError:
                return False
    return False
