"""A pairing's code and addresses in one text, for cameras.

    degu-pair:4HMASW9R?at=192.168.1.7:8443&at=[fe80::1]:8443

1. `format_invitation` makes the text of a window's code and of the addresses it can be reached at,
   `parse_invitation` takes it apart. Source: RFC 3986 for its form; the addresses are numeric.
2. `format_qr` draws the text as a QR code in half blocks, for a terminal with light text on a dark
   ground.

Whoever sees the QR code has the code. A scope id means something on one machine only, so an IPv6
address travels without: who connects to a link-local one has to choose the interface.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, NamedTuple

from degu_rpc.errors import CodeError
from degu_rpc.peers.limits import MAX_ADDRESSES
from degu_rpc.peers.pairing.codes import PairingCode, parse_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from degu.net import Address

_URI = re.compile('degu-pair:([0-9A-Za-z]{8})[?](.+)', re.ASCII)
_AT = re.compile(r'at=(?:([0-9.]+)|\[([0-9a-f:.]+)\]):([1-9][0-9]{0,4})', re.ASCII)
_BROADCAST = ipaddress.IPv4Address('255.255.255.255')
_QUIET_ZONE = 4  # Source: ISO/IEC 18004 §5.3.8
_BLOCKS = {(0, 0): '█', (0, 1): '▀', (1, 0): '▄', (1, 1): ' '}


class Invitation(NamedTuple):
    """What a QR code says: the code of a window, and where it is."""

    code: PairingCode
    addresses: tuple[Address, ...]


def format_invitation(code: PairingCode, addresses: Sequence[Address]) -> str:
    """Return the URI of a window with this code, at 1 to MAX_ADDRESSES addresses.

    Raises ValueError for another number, and for an address nobody could connect to: a name, a
    unix socket, one that stands for all addresses or for a group, one without a port.
    """
    if not 1 <= len(addresses) <= MAX_ADDRESSES:
        raise ValueError(f'1 to {MAX_ADDRESSES} addresses can be told, not {len(addresses)}')
    at = '&'.join(f'at={_format_address(address)}' for address in addresses)
    return f'degu-pair:{str(code).replace("-", "")}?{at}'


def _format_address(address: Address) -> str:
    if not isinstance(address, tuple):
        # An address of another form, which is no other type.
        raise ValueError(f'only an IP address can be told, not {address!r}')  # noqa: TRY004
    ip, port = ipaddress.ip_address(address[0]), address[1]
    if ip.is_unspecified or ip.is_multicast or ip == _BROADCAST or _is_mapped(ip) or not port:
        raise ValueError(f'nobody can connect to {address!r}: tell where the window is')
    return f'{ip}:{port}' if ip.version == 4 else f'[{ip}]:{port}'


def _is_mapped(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Return whether it is an IPv4 address in another spelling. Source: RFC 4291 §2.5.5.2."""
    return ip.version == 6 and ip.ipv4_mapped is not None


def parse_invitation(text: str) -> Invitation:
    """Return what a URI says, with IPv6 addresses as ('ip', port, 0, 0).

    Raises CodeError for anything that `format_invitation` does not produce.
    """
    match = _URI.fullmatch(text)
    if match is None:
        raise CodeError('it is no degu-pair: URI')
    places = match[2].split('&')
    if len(places) > MAX_ADDRESSES:
        raise CodeError(f'it has more than {MAX_ADDRESSES} addresses')
    invitation = Invitation(parse_code(match[1]), tuple(map(_parse_address, places)))
    try:
        if format_invitation(*invitation) != text:
            raise CodeError('it is written in another way than degu writes it')
    except ValueError as error:
        raise CodeError(str(error)) from None
    return invitation


def _parse_address(text: str) -> Address:
    match = _AT.fullmatch(text)
    try:
        if match is None or int(match[3]) > 65535:
            raise ValueError(text)
        if match[1] is not None:
            return str(ipaddress.IPv4Address(match[1])), int(match[3])
        return str(ipaddress.IPv6Address(match[2])), int(match[3]), 0, 0
    except ValueError:
        raise CodeError('it has an address that is none') from None


def format_qr(code: PairingCode, addresses: Sequence[Address]) -> str:
    """Draw what `format_invitation` returns in lines of half blocks. Raises what that raises."""
    return draw_qr(format_invitation(code, addresses))


def draw_qr(text: str) -> str:
    """Draw a QR code in lines of half blocks, for a terminal with light text on a dark ground."""
    import segno

    qr = segno.make_qr(text)
    rows = [list(row) for row in qr.matrix_iter(border=_QUIET_ZONE)]
    rows.append([0] * len(rows[0]))  # the number of rows is odd
    return '\n'.join(
        ''.join(_BLOCKS[pair] for pair in zip(upper, lower, strict=True))
        for upper, lower in zip(rows[::2], rows[1::2], strict=True)
    )
