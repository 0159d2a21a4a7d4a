"""WHO: my own identity, whom I trust, who is calling, who is near. Knows no other wing.

What needs a large library of its own (`Discovery`: zeroconf, pairing: spake2) is imported when it
is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from degu_rpc.errors import (
    Attempt,
    CodeError,
    IdentityError,
    PairingError,
    PairingFault,
    RemovedUserError,
    RenewalError,
    TrustError,
    UnknownPeerError,
    UnknownUserError,
    UnreachableError,
)
from degu_rpc.peers.addresses import MachineUrl, StaticAddresses, format_url, parse_url
from degu_rpc.peers.caller import (
    OWNER,
    Authenticated,
    Peer,
    PeerKind,
    TrustedUser,
    build_roles,
    derive_peer,
    find_caller,
)
from degu_rpc.peers.dial import Dialer, MachineClient, Source, check_server
from degu_rpc.peers.dns_sd import DnsSd
from degu_rpc.peers.identity import Identity
from degu_rpc.peers.renewal import Certifier, renew_over, rotate_over
from degu_rpc.peers.sightings import Sighting
from degu_rpc.peers.trust import Former, TrustStore

if TYPE_CHECKING:
    from degu_rpc.peers.agreement import Admission, Agreement, Joining, Paired, Peering
    from degu_rpc.peers.codes import PairingCode, build_code, parse_code
    from degu_rpc.peers.discovery import Announcement, Browser, Discovery
    from degu_rpc.peers.pairing import pair
    from degu_rpc.peers.qr import Invitation, format_invitation, format_qr, parse_invitation
    from degu_rpc.peers.window import PairingWindow

__all__ = [
    'OWNER',
    'Admission',
    'Agreement',
    'Announcement',
    'Attempt',
    'Authenticated',
    'Browser',
    'Certifier',
    'CodeError',
    'Dialer',
    'Discovery',
    'DnsSd',
    'Former',
    'Identity',
    'IdentityError',
    'Invitation',
    'Joining',
    'MachineClient',
    'MachineUrl',
    'Paired',
    'PairingCode',
    'PairingError',
    'PairingFault',
    'PairingWindow',
    'Peer',
    'PeerKind',
    'Peering',
    'RemovedUserError',
    'RenewalError',
    'Sighting',
    'Source',
    'StaticAddresses',
    'TrustError',
    'TrustStore',
    'TrustedUser',
    'UnknownPeerError',
    'UnknownUserError',
    'UnreachableError',
    'build_code',
    'build_roles',
    'check_server',
    'derive_peer',
    'find_caller',
    'format_invitation',
    'format_qr',
    'format_url',
    'pair',
    'parse_code',
    'parse_invitation',
    'parse_url',
    'renew_over',
    'rotate_over',
]

_MODULES = {
    'Admission': 'degu_rpc.peers.agreement',
    'Agreement': 'degu_rpc.peers.agreement',
    'Announcement': 'degu_rpc.peers.discovery',
    'Browser': 'degu_rpc.peers.discovery',
    'Discovery': 'degu_rpc.peers.discovery',
    'Invitation': 'degu_rpc.peers.qr',
    'Joining': 'degu_rpc.peers.agreement',
    'Paired': 'degu_rpc.peers.agreement',
    'PairingCode': 'degu_rpc.peers.codes',
    'PairingWindow': 'degu_rpc.peers.window',
    'Peering': 'degu_rpc.peers.agreement',
    'build_code': 'degu_rpc.peers.codes',
    'format_qr': 'degu_rpc.peers.qr',
    'format_invitation': 'degu_rpc.peers.qr',
    'pair': 'degu_rpc.peers.pairing',
    'parse_code': 'degu_rpc.peers.codes',
    'parse_invitation': 'degu_rpc.peers.qr',
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
