"""WHO: my own identity, whom I trust, who is calling, who is near. Knows no other wing.

What needs a large library of its own (`Discovery`: zeroconf) is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from degu_rpc.errors import (
    Attempt,
    IdentityError,
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
from degu_rpc.peers.renewal import Certifier, renew, rotate
from degu_rpc.peers.sightings import Sighting
from degu_rpc.peers.trust import Former, TrustStore

if TYPE_CHECKING:
    from degu_rpc.peers.discovery import Announcement, Browser, Discovery

__all__ = [
    'OWNER',
    'Announcement',
    'Attempt',
    'Authenticated',
    'Browser',
    'Certifier',
    'Dialer',
    'Discovery',
    'DnsSd',
    'Former',
    'Identity',
    'IdentityError',
    'MachineClient',
    'MachineUrl',
    'Peer',
    'PeerKind',
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
    'build_roles',
    'check_server',
    'derive_peer',
    'find_caller',
    'format_url',
    'parse_url',
    'renew',
    'rotate',
]

# A type checker must not see it: with it, every name would be there.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in ('Announcement', 'Browser', 'Discovery'):
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        return getattr(importlib.import_module('degu_rpc.peers.discovery'), name)


def __dir__() -> list[str]:
    return __all__
