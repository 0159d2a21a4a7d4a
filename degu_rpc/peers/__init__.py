"""WHO: my own identity, and who is calling. Knows no other wing of `degu_rpc`."""

from degu_rpc.errors import IdentityError, UnknownPeerError
from degu_rpc.peers.identity import (
    OWNER,
    Authenticated,
    Identity,
    MachineClient,
    Peer,
    PeerKind,
    TrustedUser,
    build_roles,
    check_server,
    derive_peer,
    find_caller,
)

__all__ = [
    'OWNER',
    'Authenticated',
    'Identity',
    'IdentityError',
    'MachineClient',
    'Peer',
    'PeerKind',
    'TrustedUser',
    'UnknownPeerError',
    'build_roles',
    'check_server',
    'derive_peer',
    'find_caller',
]
