"""Static addresses: where a machine is because somebody said so, `degu://<machine id>@host:port`.

They need neither multicast nor a DNS server, and work across any network. `parse_url` and
`format_url` are pure; `StaticAddresses` is a source of addresses for a Dialer. It only looks up the
number of the interface that a link-local address names. There are no threads and no locks.
"""

from __future__ import annotations

import re
import socket
from ipaddress import AddressValueError, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from degu import pki

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from degu.net import Address

# A name or an IPv4 address, or IPv6 in brackets. The scope follows a plain "%", as people write it
# and as RFC 9844 has it, and is no longer than Linux has names (IFNAMSIZ). Stricter than RFC 3986:
# no percent-encoding, no user, no path.
_url = re.compile(
    r'degu://([^@]*)@'
    r'(?:([a-zA-Z0-9_-]{1,63}(?:\.[a-zA-Z0-9_-]{1,63})*)|\[([0-9a-fA-F:.]+)(?:%([a-zA-Z0-9._-]{1,15}))?\])'
    r':([0-9]{1,5})'
)


class MachineUrl(NamedTuple):
    """Which machine is said to be where.

    `scope` is the name or the number of the interface of a link-local IPv6 address, else ''.
    """

    machine_id: str
    host: str
    port: int
    scope: str = ''

    def find_address(self) -> Address:
        """Return the address to connect to. Raises OSError for an interface that is not there."""
        if ':' not in self.host:
            return (self.host, self.port)
        if not self.scope or self.scope.isdecimal():
            return (self.host, self.port, 0, int(self.scope or 0))
        try:
            return (self.host, self.port, 0, socket.if_nametoindex(self.scope))
        except OSError as error:
            raise OSError(error.errno, f'there is no interface {self.scope!r}') from None


def parse_url(url: str) -> MachineUrl:
    """Read a static address.

    >>> parse_url('degu://' + 'a' * 48 + '@[fe80::1%eth0]:8443')[1:]
    ('fe80::1', 8443, 'eth0')

    Raises ValueError with what is wrong.
    """
    match = _url.fullmatch(url)
    if match is None:
        raise ValueError(
            'a static address is like degu://<machine id>@192.168.1.7:8443 or '
            f'degu://<machine id>@[fe80::1%eth0]:8443, not {url!r}'
        )
    machine_id, name, ipv6, scope, port = match.groups()
    pki.check_id(machine_id)
    if not 0 < int(port) < 2**16:
        raise ValueError(f'the port must be 1 to 65535, not {port}, in {url!r}')
    if name is not None:
        return MachineUrl(machine_id, name, int(port))
    try:
        found = IPv6Address(ipv6)
    except AddressValueError as error:
        raise ValueError(f'{error}, in {url!r}') from None
    if found.is_link_local != bool(scope):
        raise ValueError(f'a link-local address needs its interface, and no other, in {url!r}')
    if scope and scope.isdecimal() and not 0 < int(scope) < 2**32:
        raise ValueError(f'the number of an interface must be 1 to {2**32 - 1}, in {url!r}')
    return MachineUrl(machine_id, str(found), int(port), scope or '')


def format_url(where: MachineUrl) -> str:
    """Return a static address as text.

    >>> format_url(MachineUrl('a' * 48, '::1', 8443))[-13:]
    'a@[::1]:8443'
    """
    host = where.host
    if ':' in host:
        host = f'[{host}%{where.scope}]' if where.scope else f'[{host}]'
    return f'degu://{where.machine_id}@{host}:{where.port}'


class StaticAddresses:
    """The addresses that somebody gave; a source of addresses for a Dialer."""

    name = 'static address'
    is_hint = False

    def __init__(self, urls: Iterable[str]) -> None:
        """Read the addresses. Raises ValueError as `parse_url` does, TypeError for one text."""
        if isinstance(urls, str):
            raise TypeError(f'urls is a list of addresses, not one text: [{urls!r}]')
        self._urls = [parse_url(url) for url in urls]

    def find(self, machine_id: str, timeout_s: float) -> Iterator[Address]:
        """Give the addresses of a machine whose interfaces are there.

        Raises OSError, for the last of those that are not, where there is no other address.
        """
        found, missing = False, None
        for url in self._urls:
            if url.machine_id != machine_id:
                continue
            try:
                address = url.find_address()
            except OSError as error:
                missing = error
            else:
                found = True
                yield address
        if missing is not None and not found:
            raise missing

    def forget(self, machine_id: str, address: Address) -> None:
        """Keep it: whoever gave it may know better."""

    def explain(self, machine_id: str) -> str:
        """Say why a machine was not found."""
        return 'none was given for it'
