"""WHO: my own identity, whom I trust, who is calling, who is near. Knows no other wing.

What needs a large library of its own (`Discovery`: zeroconf, pairing: spake2) is imported when it
is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from degu_rpc.errors import (
    AmbiguousNameError,
    Attempt,
    CodeError,
    DiscoveryClosedError,
    IdentityError,
    PairingError,
    PairingFault,
    RemovedUserError,
    RenewalError,
    TrustError,
    UnknownMachineError,
    UnknownPeerError,
    UnknownUserError,
    UnreachableError,
)
from degu_rpc.peers.caller import (
    OWNER,
    PEER,
    Authenticated,
    Peer,
    PeerKind,
    TrustedUser,
    build_roles,
    derive_peer,
    find_caller,
)
from degu_rpc.peers.dial import (
    AddressSource,
    DialedClient,
    Dialer,
    MachineClient,
    check_server,
)
from degu_rpc.peers.discovery import (
    DnsSd,
    MachineUrl,
    Sighting,
    StaticAddresses,
    format_url,
    parse_url,
)
from degu_rpc.peers.home import find_home, open_home
from degu_rpc.peers.identity import Identity
from degu_rpc.peers.names import find_machine
from degu_rpc.peers.renewal import Certifier, renew_over, rotate_over
from degu_rpc.peers.spelling import format_id, is_spelled, parse_id
from degu_rpc.peers.trust import Former, TrustStore

if TYPE_CHECKING:
    from degu_rpc.peers.discovery import Announcement, Browser, Discovery
    from degu_rpc.peers.pairing import (
        Intent,
        Invitation,
        Paired,
        PairingCode,
        PairingWindow,
        build_code,
        format_invitation,
        format_qr,
        join,
        pair,
        parse_code,
        parse_invitation,
    )

__all__ = [
    'OWNER',
    'PEER',
    'AddressSource',
    'AmbiguousNameError',
    'Announcement',
    'Attempt',
    'Authenticated',
    'Browser',
    'Certifier',
    'CodeError',
    'DialedClient',
    'Dialer',
    'Discovery',
    'DiscoveryClosedError',
    'DnsSd',
    'Former',
    'Identity',
    'IdentityError',
    'Intent',
    'Invitation',
    'MachineClient',
    'MachineUrl',
    'Paired',
    'PairingCode',
    'PairingError',
    'PairingFault',
    'PairingWindow',
    'Peer',
    'PeerKind',
    'RemovedUserError',
    'RenewalError',
    'Sighting',
    'StaticAddresses',
    'TrustError',
    'TrustStore',
    'TrustedUser',
    'UnknownMachineError',
    'UnknownPeerError',
    'UnknownUserError',
    'UnreachableError',
    'build_code',
    'build_roles',
    'check_server',
    'derive_peer',
    'find_caller',
    'find_home',
    'find_machine',
    'format_id',
    'format_invitation',
    'format_qr',
    'format_url',
    'is_spelled',
    'join',
    'open_home',
    'pair',
    'parse_code',
    'parse_id',
    'parse_invitation',
    'parse_url',
    'renew_over',
    'rotate_over',
]

_MODULES = {
    'Announcement': 'degu_rpc.peers.discovery',
    'Browser': 'degu_rpc.peers.discovery',
    'Discovery': 'degu_rpc.peers.discovery',
    'Intent': 'degu_rpc.peers.pairing',
    'Invitation': 'degu_rpc.peers.pairing',
    'Paired': 'degu_rpc.peers.pairing',
    'PairingCode': 'degu_rpc.peers.pairing',
    'PairingWindow': 'degu_rpc.peers.pairing',
    'build_code': 'degu_rpc.peers.pairing',
    'format_qr': 'degu_rpc.peers.pairing',
    'format_invitation': 'degu_rpc.peers.pairing',
    'join': 'degu_rpc.peers.pairing',
    'pair': 'degu_rpc.peers.pairing',
    'parse_code': 'degu_rpc.peers.pairing',
    'parse_invitation': 'degu_rpc.peers.pairing',
}

# A type checker must not see it: with it, every name would be there.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return __all__
