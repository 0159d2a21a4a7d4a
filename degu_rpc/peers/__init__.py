"""WHO: my own identity, and who is calling. Knows no other wing of `degu_rpc`."""

from degu_rpc.peers.identity import (
    OWNER,
    Authenticated,
    Identity,
    IdentityError,
    MachineClient,
    Peer,
    PeerKind,
    TrustedUser,
    UnknownPeerError,
    check_server,
    derive_peer,
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
    'check_server',
    'derive_peer',
]
