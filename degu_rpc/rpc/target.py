"""connect(): a client from what people write for where a service is.

    unix:/run/user/1000/files.sock     a unix socket
    unix:@name                         an abstract one (Linux)
    tcp:192.168.1.7:8080               TCP, without TLS
    tcp:[fe80::1%eth0]:8080            the same over IPv6, with a scope
    http://host:8080                   the same, with a `host` header for a proxy in between
    degu://<machine id>@host:8443      a machine that we trust, at an address that somebody gave
    studio                             a machine by its name, or a user's only one: found by mDNS
    studio/clock                       the service behind it, whose prefix then is /clock/rpc
    <machine id>                       the same as a name, where two machines have one

1. The text is read; what is none of these forms is refused.
2. For the last four, the identity of the home says who we are and its trust store whom we trust. A
   name becomes an id, and whoever answers must prove that id.
3. A client of a named machine owns the `Discovery` that looks for it, and closes it with itself.

Any other client (see degu.client.SSLClient) is built first and given in place of the text.

Threads: none but that of the Discovery.
"""

from __future__ import annotations

import os
import re
import socket
from typing import TYPE_CHECKING

from degu.client import Client, create_client
from degu_rpc.peers import Dialer, StaticAddresses, TrustStore, find_machine, open_home, parse_url
from degu_rpc.peers.names import check_name
from degu_rpc.rpc.client import RpcClient, check_prefix
from degu_rpc.rpc.codec import JSON

if TYPE_CHECKING:
    from collections.abc import Iterable

    from degu.net import Address
    from degu_rpc.peers import DialedClient, Discovery
    from degu_rpc.rpc.codec import Codec
    from degu_rpc.rpc.interception import ClientInterceptor

_FORMS = (
    'unix:/path, unix:@name, tcp:host:port, tcp:[ipv6]:port, http://host:port, '
    'degu://<machine id>@host:port, or the name or id of a machine, such as studio or studio/clock'
)
_match_tcp = re.compile(
    r'(?:\[([0-9a-fA-F:.]+)(?:%([^\]]+))?\]|([^:\[\]]+)):([0-9]{1,5})'
).fullmatch
_match_machine = re.compile(r'([^/:]+)((?:/[^/?#]+)*)').fullmatch


def connect(
    target: str | Client | DialedClient,
    prefix: str = '/rpc',
    codec: Codec = JSON,
    *,
    interceptors: Iterable[ClientInterceptor] = (),
    home: str | os.PathLike[str] | None = None,
) -> RpcClient:
    """Return a client of the services at `target`; it connects at the first call.

    `target` is `unix:/path`, `unix:@name`, `tcp:host:port`, `tcp:[ipv6]:port`,
    `http://host:port`, `degu://<machine id>@host:port`, `studio`, `studio/clock` or a machine id;
    or a client of the core that says where and how. `prefix` is where the services are mounted.
    `home` is the directory of this device, where those that need one have their identity: see
    degu_rpc.peers.find_home(). The other arguments are those of RpcClient.

    Raises ValueError for another form, and what RpcClient() raises; for a machine IdentityError
    where there is no identity, UnknownMachineError and AmbiguousNameError for its name, OSError.
    """
    if not isinstance(target, str):
        return RpcClient(target, prefix, codec, interceptors)
    if target.startswith('degu://'):
        machine_id = parse_url(target).machine_id
        dialer = Dialer(TrustStore(open_home(home)), [StaticAddresses([target])])
        return RpcClient(dialer.client(machine_id), prefix, codec, interceptors)
    if match := _match_machine(target):
        name, path = match.groups()
        prefix = path + check_prefix(prefix)
        trust = TrustStore(open_home(home))
        machine_id = find_machine(trust.users().values(), check_name(name))
        return _find_on_network(trust, machine_id, prefix, codec, interceptors)
    if target.startswith('http://'):
        client = create_client(target)
    else:
        client = Client(parse_target(target))
    return RpcClient(client, prefix, codec, interceptors)


class _FindingClient(RpcClient):
    """A client of a machine that is looked for on the local network."""

    # Set once: _discovery.

    def __init__(
        self,
        discovery: Discovery,
        client: DialedClient,
        prefix: str,
        codec: Codec,
        interceptors: Iterable[ClientInterceptor],
    ) -> None:
        super().__init__(client, prefix, codec, interceptors)
        self._discovery = discovery

    def close(self) -> None:
        """End the connections as RpcClient.close() does, and then the search."""
        super().close()
        self._discovery.close()


def _find_on_network(
    trust: TrustStore,
    machine_id: str,
    prefix: str,
    codec: Codec,
    interceptors: Iterable[ClientInterceptor],
) -> RpcClient:
    # Only now, because it imports zeroconf.
    from degu_rpc.peers import Discovery

    discovery = Discovery()
    try:
        dialer = Dialer(trust, [discovery.browse([machine_id])])
        client = dialer.client(machine_id)
        return _FindingClient(discovery, client, prefix, codec, interceptors)
    except BaseException:
        discovery.close()
        raise


def parse_target(target: str) -> Address:
    """Return the address that a `unix:` or `tcp:` target names.

    >>> parse_target('tcp:[::1]:8080')
    ('::1', 8080, 0, 0)

    Raises ValueError for another form, and for a network interface that is not there.
    """
    scheme, _, rest = target.partition(':')
    if scheme == 'unix' and rest:
        return b'\0' + os.fsencode(rest[1:]) if rest.startswith('@') else rest
    match = _match_tcp(rest) if scheme == 'tcp' else None
    if match is None:
        hint = f'; write unix:{target}' if target.startswith('/') else ''
        raise ValueError(f'a target is {_FORMS}, not {target!r}{hint}')
    ipv6, scope, host, port = match.groups()
    if ipv6 is None:
        return host, int(port)
    return ipv6, int(port), 0, _find_scope(scope, target)


def _find_scope(scope: str | None, target: str) -> int:
    if scope is None:
        return 0
    if scope.isascii() and scope.isdecimal():
        return int(scope)
    try:
        return socket.if_nametoindex(scope)
    except OSError:
        raise ValueError(f'there is no network interface {scope!r}, in {target!r}') from None
