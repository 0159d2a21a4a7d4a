"""WHO: my own identity, whom I trust, and who is calling. Knows no other wing of `degu_rpc`."""

from degu_rpc.errors import (
    IdentityError,
    RemovedUserError,
    RenewalError,
    TrustError,
    UnknownPeerError,
    UnknownUserError,
)
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
from degu_rpc.peers.dial import MachineClient, check_server
from degu_rpc.peers.identity import Identity
from degu_rpc.peers.renewal import Certifier, renew, rotate
from degu_rpc.peers.trust import Former, TrustStore

__all__ = [
    'OWNER',
    'Authenticated',
    'Certifier',
    'Former',
    'Identity',
    'IdentityError',
    'MachineClient',
    'Peer',
    'PeerKind',
    'RemovedUserError',
    'RenewalError',
    'TrustError',
    'TrustStore',
    'TrustedUser',
    'UnknownPeerError',
    'UnknownUserError',
    'build_roles',
    'check_server',
    'derive_peer',
    'find_caller',
    'renew',
    'rotate',
]
