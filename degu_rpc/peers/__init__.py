"""WHO: my own identity, whom I trust, who is calling, who is near. Knows no other wing.

Each name is imported when it is first used, so that who asks for one need not wait for what the
others need (`Discovery`: zeroconf, pairing: spake2, certificates: cryptography).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
        Announcement,
        Browser,
        Discovery,
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
    from degu_rpc.peers.renewal import Certifier, renew_over, rotate_over
    from degu_rpc.peers.spelling import format_id, is_spelled, parse_id
    from degu_rpc.peers.trust import Former, TrustStore

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
    'format_id': 'degu_rpc.peers.spelling',
    'is_spelled': 'degu_rpc.peers.spelling',
    'parse_id': 'degu_rpc.peers.spelling',
    'OWNER': 'degu_rpc.peers.caller',
    'PEER': 'degu_rpc.peers.caller',
    'AddressSource': 'degu_rpc.peers.dial',
    'AmbiguousNameError': 'degu_rpc.errors',
    'Announcement': 'degu_rpc.peers.discovery',
    'Attempt': 'degu_rpc.errors',
    'Authenticated': 'degu_rpc.peers.caller',
    'Browser': 'degu_rpc.peers.discovery',
    'Certifier': 'degu_rpc.peers.renewal',
    'CodeError': 'degu_rpc.errors',
    'DialedClient': 'degu_rpc.peers.dial',
    'Dialer': 'degu_rpc.peers.dial',
    'Discovery': 'degu_rpc.peers.discovery',
    'DiscoveryClosedError': 'degu_rpc.errors',
    'DnsSd': 'degu_rpc.peers.discovery',
    'Former': 'degu_rpc.peers.trust',
    'Identity': 'degu_rpc.peers.identity',
    'IdentityError': 'degu_rpc.errors',
    'Intent': 'degu_rpc.peers.pairing',
    'Invitation': 'degu_rpc.peers.pairing',
    'MachineClient': 'degu_rpc.peers.dial',
    'MachineUrl': 'degu_rpc.peers.discovery',
    'Paired': 'degu_rpc.peers.pairing',
    'PairingCode': 'degu_rpc.peers.pairing',
    'PairingError': 'degu_rpc.errors',
    'PairingFault': 'degu_rpc.errors',
    'PairingWindow': 'degu_rpc.peers.pairing',
    'Peer': 'degu_rpc.peers.caller',
    'PeerKind': 'degu_rpc.peers.caller',
    'RemovedUserError': 'degu_rpc.errors',
    'RenewalError': 'degu_rpc.errors',
    'Sighting': 'degu_rpc.peers.discovery',
    'StaticAddresses': 'degu_rpc.peers.discovery',
    'TrustError': 'degu_rpc.errors',
    'TrustStore': 'degu_rpc.peers.trust',
    'TrustedUser': 'degu_rpc.peers.caller',
    'UnknownMachineError': 'degu_rpc.errors',
    'UnknownPeerError': 'degu_rpc.errors',
    'UnknownUserError': 'degu_rpc.errors',
    'UnreachableError': 'degu_rpc.errors',
    'build_code': 'degu_rpc.peers.pairing',
    'build_roles': 'degu_rpc.peers.caller',
    'check_server': 'degu_rpc.peers.dial',
    'derive_peer': 'degu_rpc.peers.caller',
    'find_caller': 'degu_rpc.peers.caller',
    'find_home': 'degu_rpc.peers.home',
    'find_machine': 'degu_rpc.peers.names',
    'format_invitation': 'degu_rpc.peers.pairing',
    'format_qr': 'degu_rpc.peers.pairing',
    'format_url': 'degu_rpc.peers.discovery',
    'join': 'degu_rpc.peers.pairing',
    'open_home': 'degu_rpc.peers.home',
    'pair': 'degu_rpc.peers.pairing',
    'parse_code': 'degu_rpc.peers.pairing',
    'parse_invitation': 'degu_rpc.peers.pairing',
    'parse_url': 'degu_rpc.peers.discovery',
    'renew_over': 'degu_rpc.peers.renewal',
    'rotate_over': 'degu_rpc.peers.renewal',
}

# A type checker must not see it: with it, every name would be there.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        value = getattr(importlib.import_module(module), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
