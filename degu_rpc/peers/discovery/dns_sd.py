"""DNS-SD over unicast DNS: where a machine is by the word of a DNS server, past one network.

The names are those of mDNS in another domain. For machines in `example.org` its zone has

    _degu._tcp.example.org.          PTR   <machine id>._degu._tcp.example.org.
    <machine id>._degu._tcp...       SRV   0 0 8443 host.example.org.
                                     TXT   "v=1"
    host.example.org.                A     192.0.2.7

1. `find` asks for the SRV record of a machine and then for its host's addresses, A and AAAA.
2. `list_machines` asks for the PTR records.

What a DNS server says is a hint like any other. dnspython is imported when a `DnsSd` is made; it
comes with the extra `dns`. There are no threads and no locks; one DnsSd serves any number of
threads, as nothing of it changes.

Source: RFC 6763, RFC 2782.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from degu import pki
from degu.net import Deadline
from degu_rpc.peers.limits import FIND_S, MAX_ADDRESSES, MAX_UNKNOWN_SIGHTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from degu.net import Address

_SERVICE = '_degu._tcp'


class DnsSd:
    """Machines in a domain; a source of addresses for a Dialer."""

    is_hint = True

    def __init__(self, domain: str, server: tuple[str, int] | None = None) -> None:
        """Remember whom to ask: the system's DNS servers, or *server*, an IP address and a port.

        Raises ModuleNotFoundError without dnspython, ValueError for a domain that cannot be, and
        OSError where the system has no DNS server.
        """
        try:
            import dns.exception
            import dns.name
            import dns.resolver
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "DNS-SD needs dnspython; run: pip install 'degu-rpc[dns]'", name=error.name
            ) from error
        try:
            self._type = dns.name.from_text(f'{_SERVICE}.{domain}')
            self._resolver = dns.resolver.Resolver(configure=server is None)
        except dns.resolver.NoResolverConfiguration as error:
            raise OSError(f'the system has no DNS server: {error}') from error
        except dns.exception.DNSException as error:
            raise ValueError(f'{domain!r} is no domain: {error}') from error
        if server is not None:
            self._resolver.nameservers = [server[0]]
            self._resolver.port = server[1]
        self.name = f'DNS-SD of {domain}'

    def list_machines(self, timeout_s: float = FIND_S) -> list[str]:
        """Return the ids of the machines in the domain, the first MAX_UNKNOWN_SIGHTINGS.

        Raises OSError where no DNS server answers.
        """
        targets = [
            record.target for record in self._resolve(self._type, 'PTR', Deadline(timeout_s))
        ]
        names = [
            target.labels[0].decode('ascii', 'replace')
            for target in targets
            if len(target.labels) > 1 and target.parent() == self._type
        ]
        return [name for name in names if pki.is_id(name)][:MAX_UNKNOWN_SIGHTINGS]

    def find(self, machine_id: str, timeout_s: float) -> Iterator[Address]:
        """Give the addresses of a machine, at most MAX_ADDRESSES, in at most FIND_S.

        Each is given as soon as it is known. Raises ValueError for another form of id, and where
        there is none, OSError if a DNS server did not answer.
        """
        import dns.name

        deadline = Deadline(min(timeout_s, FIND_S))
        name = dns.name.Name([pki.check_id(machine_id).encode(), *self._type.labels])
        services = sorted(self._resolve(name, 'SRV', deadline), key=lambda record: record.priority)
        found: set[Address] = set()
        failure: OSError | None = None
        for service in services[:MAX_ADDRESSES]:
            for kind in ('A', 'AAAA'):
                try:
                    records = self._resolve(service.target, kind, deadline)
                except OSError as error:
                    failure = error
                    continue
                for record in records:
                    for address in _find_address(record.address, service.port):
                        if address not in found and len(found) < MAX_ADDRESSES:
                            found.add(address)
                            yield address
        if failure is not None and not found:
            raise failure

    def forget(self, machine_id: str, address: Address) -> None:
        """Do nothing: there is no memory here, and a Dialer remembers what failed."""

    def explain(self, machine_id: str) -> str:
        """Say why a machine was not found."""
        return f'there are no addresses for {machine_id}.{self._type.to_text(True)}'

    def _resolve(self, name: Any, kind: str, deadline: Deadline) -> list[Any]:
        import dns.exception
        import dns.resolver

        try:
            return list(
                self._resolver.resolve(
                    name, kind, lifetime=max(deadline.remaining(), 0.001), search=False
                )
            )
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        except dns.exception.Timeout as error:
            raise TimeoutError('no DNS server answered in time') from error
        except dns.exception.DNSException as error:
            raise OSError(f'the DNS servers could not tell: {error}') from error


def _find_address(ip: str, port: int) -> list[Address]:
    # It may lie in any network, but must be one machine's, and findable without a scope.
    found = ip_address(ip)
    if found.is_multicast or found.is_unspecified or (found.version == 6 and found.is_link_local):
        return []
    if not 0 < port < 2**16:
        return []
    return [(ip, port) if found.version == 4 else (ip, port, 0, 0)]
