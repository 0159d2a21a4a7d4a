"""connect(): a client from what people write for where a service is.

    unix:/run/user/1000/files.sock     a unix socket
    unix:@name                         an abstract one (Linux)
    tcp:192.168.1.7:8080               TCP, without TLS
    tcp:[fe80::1%eth0]:8080            the same over IPv6, with a scope
    http://host:8080                   the same, with a `host` header for a proxy in between

Over TLS, and to a machine that is known by its certificate, the client is built first (see
degu.client.SSLClient, degu_rpc.peers.MachineClient) and given in place of the text.
"""

from __future__ import annotations

import os
import re
import socket
from typing import TYPE_CHECKING

from degu.client import Client, create_client
from degu_rpc.rpc.client import RpcClient
from degu_rpc.rpc.codec import JSON

if TYPE_CHECKING:
    from degu.net import Address
    from degu_rpc.peers import DialedClient
    from degu_rpc.rpc.codec import Codec

_FORMS = 'unix:/path, unix:@name, tcp:host:port, tcp:[ipv6]:port or http://host:port'
_match_tcp = re.compile(
    r'(?:\[([0-9a-fA-F:.]+)(?:%([^\]]+))?\]|([^:\[\]]+)):([0-9]{1,5})'
).fullmatch


def connect(
    target: str | Client | DialedClient, prefix: str = '/rpc', codec: Codec = JSON
) -> RpcClient:
    """Return a client of the services at `target`; it connects at the first call.

    `target` is one of the forms above, or a client of the core that says where and how.

    Raises ValueError for another form, and what RpcClient() raises.
    """
    if not isinstance(target, str):
        return RpcClient(target, prefix, codec)
    if target.startswith('http://'):
        client = create_client(target)
    else:
        client = Client(parse_target(target))
    return RpcClient(client, prefix, codec)


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
        raise ValueError(f'a target is {_FORMS}, not {target!r}')
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
