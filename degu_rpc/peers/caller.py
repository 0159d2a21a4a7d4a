"""Who is calling: once per connection and before any request.

1. OpenSSL has verified the chain and the validity period, or the kernel says who connected. Which
   roles a local caller has by its groups is read then, once: the kernel keeps them as they were.
2. `derive_peer` turns that into a `Peer`, or says why there is none.
3. `Authenticated` keeps it as `connection['_peer']`, and derives it anew before a request if trust
   has changed since: a removed peer's next request fails, on an open connection too.
4. What runs already goes on, until whoever serves calls `end_untrusted`, as a node does twice a
   second: the connections of machines that are removed, denied, or lost a role end then.
5. `Authenticated` gives each request that it lets through its caller, and `find_caller` is how an
   application asks. What another application on the same connection was told counts for nothing:
   a router asks all of them about a connection, and only what is wrapped is asked again later.
6. A process of my own user may pass requests on for others, as a node does, and says in the header
   `x-degu-caller` for whom. Who expects that takes the word of my own uid: it is the owner, so that
   nobody gets more rights than it has. Who does not expect it refuses such a request, or everybody
   would be the owner there.

Authentication is per connection, authorization per request: `build_roles` makes what a caller's
roles are compared with. What is looked up is never changed, only replaced. `Authenticated` may be
used by many threads; `_lock` guards its open connections.
"""

from __future__ import annotations

import base64
import contextlib
import enum
import functools
import grp
import logging
import math
import os
import socket
import threading
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import msgspec

from degu import net, pki
from degu_rpc.errors import UnknownPeerError
from degu_rpc.peers.clock import read_clock

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, MutableMapping

    from degu.rgi import App, Response
    from degu_rpc.peers.trust import TrustStore

OWNER = 'owner'
"""The role of my own user and my own uid; any other name can be a role too."""
PEER = 'peer'
"""The role of other users, unless another is given."""
CALLER = 'x-degu-caller'
"""The header in which a process of my own user says for whom it calls."""

# What the kernel reports for every user who has no number in this user namespace: could be anybody.
OVERFLOW_UID = 65534
OVERFLOW_GID = 65534

_NO_ROLES: frozenset[str] = frozenset()
_NOBODY: Mapping[str, TrustedUser] = MappingProxyType({})

_log = logging.getLogger('degu_rpc.peers')


class PeerKind(enum.Enum):
    """How we know a caller: by certificate, or by the kernel's word."""

    MACHINE = 'machine'
    LOCAL = 'local'


class Peer(NamedTuple):
    """Who is calling.

    A machine has `user_id` and `machine_id`, a local caller has `uid` and `gid`; the other two are
    None. `name` is for people to read and decides nothing, `roles` is what authorization goes by.
    """

    kind: PeerKind
    user_id: str | None
    machine_id: str | None
    name: str
    roles: frozenset[str]
    uid: int | None
    gid: int | None


class TrustedUser(NamedTuple):
    """A user whose machines may connect, all but the denied ones.

    `ca_cert` is DER; `name` and `roles` are what we gave the user; `machines` are those that we
    know of, with our names for them by id. `added_at` (ISO 8601) and `added_how` say when and how
    the user came here.
    """

    user_id: str
    ca_cert: bytes
    name: str
    roles: frozenset[str]
    machines: Mapping[str, str] = MappingProxyType({})
    denied: frozenset[str] = frozenset()
    added_at: str = ''
    added_how: str = ''

    def __repr__(self) -> str:
        """Return all but the certificate."""
        shown = ', '.join(f'{name}={getattr(self, name)!r}' for name in self._fields[2:])
        return f'TrustedUser({self.user_id!r}, {shown})'


def derive_peer(
    connection: Mapping[str, Any],
    users: Mapping[str, TrustedUser],
    own_uid: int,
    local_roles: frozenset[str] = _NO_ROLES,
) -> Peer | None:
    """Return who is at the other end of an RGI *connection*, or None for anybody at all.

    None is plain TCP, or TLS without a client certificate where the server allows that. With TLS
    only the certificate counts, on a unix socket too: there the credentials may be a relay's.
    Without it a caller with another uid than `own_uid` has `local_roles`.

    Raises pki.CertificateError (refused by our profile or not issued by that user) and
    UnknownPeerError (a user we do not trust, a machine we deny, a uid without a meaning here).
    """
    if 'ssl_peer_cert' in connection:
        cert_der = connection['ssl_peer_cert']
        return None if cert_der is None else derive_machine(cert_der, users)
    if 'credentials' in connection:
        _pid, uid, gid = connection['credentials']
        return _derive_local(uid, gid, own_uid, local_roles)
    return None


def derive_machine(cert_der: bytes | None, users: Mapping[str, TrustedUser]) -> Peer:
    """Return whose machine has this certificate, caller or server.

    Raises pki.CertificateError and UnknownPeerError, as `derive_peer` does.
    """
    claimed = pki.parse_machine_cert(cert_der)
    user = users.get(claimed.user_id)
    if user is None:
        raise UnknownPeerError(
            f'machine {claimed.machine_id} says it belongs to user {claimed.user_id}, who is not '
            'trusted here; to trust them, pair with them',
            claimed.user_id,
            claimed.machine_id,
        )
    assert cert_der is not None  # or it would not have been parsed
    ids = pki.check_issued_by(cert_der, user.ca_cert)
    if ids.machine_id in user.denied:
        raise UnknownPeerError(
            f'machine {ids.machine_id} of user {ids.user_id} is denied here; to let it in again, '
            'allow it',
            ids.user_id,
            ids.machine_id,
        )
    return Peer(PeerKind.MACHINE, ids.user_id, ids.machine_id, user.name, user.roles, None, None)


def _derive_local(uid: int, gid: int, own_uid: int, local_roles: frozenset[str]) -> Peer:
    if uid == OVERFLOW_UID:
        raise UnknownPeerError(
            f'uid {uid} stands for every user that this user namespace has no number for; '
            'call from a user who has one, and serve from a process without PrivateUsers='
        )
    roles = frozenset({OWNER}) if uid == own_uid else local_roles
    return Peer(PeerKind.LOCAL, None, None, f'uid:{uid}', roles, uid, gid)


def build_roles(allow: str | Collection[str]) -> frozenset[str]:
    """Return the roles that may do something: `allow`, which is one or several, and OWNER.

    Raises TypeError for what is no name, ValueError where none is named.
    """
    roles = frozenset({allow} if isinstance(allow, str) else allow)
    if not all(isinstance(role, str) for role in roles):
        raise TypeError(f'allow must be the name of a role or several, not {allow!r}')
    if not roles or '' in roles:
        raise ValueError(f'allow must name a role, not {allow!r}; {OWNER!r} is my own user')
    return roles | {OWNER}


def check_given_roles(roles: Collection[str]) -> frozenset[str]:
    """Return the roles that a user is to have.

    Raises ValueError for a str, whose letters would be roles, and for OWNER: nobody can be given
    that.
    """
    if isinstance(roles, str) or OWNER in roles:
        raise ValueError(f'roles are names, and {OWNER!r} is none to be given; not {roles!r}')
    return frozenset(roles)


def _resolve_groups(
    group_roles: Mapping[str | int, Collection[str]],
) -> Mapping[int, frozenset[str]]:
    """Return the roles of the members of each group, by its number.

    Raises LookupError for a group that is not there, ValueError for the group that stands for all
    without a number here and for roles that cannot be given.
    """
    found: dict[int, frozenset[str]] = {}
    for group, roles in group_roles.items():
        gid = group if isinstance(group, int) else _find_gid(group)
        if gid == OVERFLOW_GID:
            raise ValueError(
                f'group {group!r} stands for every group that has no number here: it has no roles'
            )
        found[gid] = found.get(gid, _NO_ROLES) | check_given_roles(roles)
    return found


def _find_gid(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise LookupError(f'no such group: {name!r}; make it with groupadd(8)') from None


def find_caller(request: Mapping[str, Any]) -> Peer:
    """Return who makes a request that `Authenticated` has let through.

    Raises UnknownPeerError, for the caller to read: nobody knows who it is, or nobody looked.
    """
    if '_peer' not in request:
        _warn_of_missing_middleware()
        raise UnknownPeerError('this server was set up without a way to know who calls')
    peer: Peer | None = request['_peer']
    if peer is None:
        raise UnknownPeerError('who calls is not known; use a client certificate, or a unix socket')
    return peer


@functools.cache  # once is enough: it is true of every request
def _warn_of_missing_middleware() -> None:
    _log.warning('nothing says who calls: wrap the application in Authenticated')


@functools.lru_cache(maxsize=1024)  # once for each user is enough
def _warn_of_missing_roles(uid: int) -> None:
    _log.warning(
        'uid %d may connect and has no role here; to give it one, name a group that it is in: '
        "Authenticated(app, group_roles={'group': {'role'}})",
        uid,
    )


@functools.cache  # once is enough: the caller is told each time
def _warn_of_missing_option() -> None:
    _log.warning(
        'what is served here is behind a node and does not expect it: write '
        'Authenticated(app, is_behind_node=True)'
    )


def format_caller(peer: Peer | None) -> str:
    """Return who calls as the value of the header CALLER; nobody we know has no role at all."""
    if peer is None:
        peer = Peer(PeerKind.MACHINE, None, None, 'unknown', _NO_ROLES, None, None)
    return base64.b64encode(msgspec.json.encode(peer)).decode()


def parse_caller(text: str) -> Peer:
    """Read what `format_caller` writes. Raises ValueError."""
    return msgspec.json.decode(base64.b64decode(text, validate=True), type=Peer)


def check_trust(trust: TrustStore) -> TrustStore:
    """Return a trust store. Raises TypeError for what is none."""
    if not hasattr(trust, 'users'):
        raise TypeError(
            f'trust must be a TrustStore, as TrustStore(identity) is one; not {trust!r}'
        )
    return trust


class _Known:
    """A machine on an open connection, as its last request found it.

    It does not know the connection, which would otherwise never be let go. The thread that serves
    it and `end_untrusted` both write `users`: the older value costs one more look.
    """

    __slots__ = ('cert_der', 'roles', 'users', 'valid_until')

    def __init__(self, cert_der: bytes) -> None:
        self.cert_der = cert_der
        self.roles = _NO_ROLES
        self.users: Mapping[str, TrustedUser] = _NOBODY
        self.valid_until = 0.0

    def find_fault(self, users: Mapping[str, TrustedUser]) -> str | None:
        """Say why it must not go on, if so."""
        if time.time() > self.valid_until:
            return 'its certificate has run out'
        if users is self.users:
            return None
        try:
            peer = derive_machine(self.cert_der, users)
        except (pki.CertificateError, UnknownPeerError) as error:
            return str(error)
        lost = self.roles - peer.roles
        if lost:
            return f'{peer.name!r} lost a role: {", ".join(sorted(lost))}'
        self.users = users  # it need not be looked at again
        return None


class Authenticated:
    """Middleware: an RGI app whose connections carry `connection['_peer']` or are rejected.

    Each request that it lets through has it as `request['_peer']`, for `find_caller`.
    *app* is the RGI app to protect; its own `on_connect`, if it has one, is called after `_peer` is
    set. *trust* is the store of whom we trust; without it only local callers are known. A unix
    socket takes for the owner whoever has the uid of this process; *group_roles* says by name (or
    number) of a group which roles its members have, who otherwise have none. *is_behind_node* is
    for a socket that is registered with a node: its requests are of whom the node says.
    """

    # Set once: all. Guarded by _lock: the entries of _open, which leave it with their socket.

    def __init__(
        self,
        app: App,
        trust: TrustStore | None = None,
        *,
        group_roles: Mapping[str | int, Collection[str]] = MappingProxyType({}),
        is_behind_node: bool = False,
    ) -> None:
        """Remember what to protect, and whom to ask.

        Raises TypeError for what is no store, LookupError for a group that is not there, ValueError
        for roles that cannot be given: OWNER is one.
        """
        self._app = app
        self._trust = None if trust is None else check_trust(trust)
        self._group_roles = _resolve_groups(group_roles)
        self._is_behind_node = is_behind_node
        self._lock = threading.Lock()
        self._open: MutableMapping[socket.socket, _Known] = WeakKeyDictionary()

    def on_connect(self, sock: socket.socket, connection: dict[str, Any]) -> bool:
        """Set `connection['_peer']`; reject (False, the reason logged) who is not who they say."""
        connection['_local_roles'] = self._find_local_roles(sock, connection)
        connection['_known'] = known = _Known(connection.get('ssl_peer_cert') or b'')
        if self._find_refusal(connection, self._read_users()) is not None:
            return False
        peer = connection['_peer']
        if peer is not None and peer.kind is PeerKind.MACHINE:
            with self._lock:
                self._open[sock] = known
        if peer is not None and peer.kind is PeerKind.LOCAL and not peer.roles:
            _warn_of_missing_roles(peer.uid)
        on_connect = getattr(self._app, 'on_connect', None)
        return on_connect is None or on_connect(sock, connection) is True

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Handle a request with the wrapped app; 403 for whom we trust no longer.

        A certificate that has run out meanwhile counts as one that is not trusted. 403 also for a
        local caller who says to call for somebody else, where that is not expected.
        """
        users = self._read_users()
        if users is not connection['_users'] or time.time() > connection['_valid_until']:
            refusal = self._find_refusal(connection, users)
            if refusal is not None:
                return _refuse(request, refusal)
        peer = connection['_peer']
        if peer is not None and peer.kind is PeerKind.LOCAL and CALLER in request['headers']:
            try:
                peer = self._take_word(peer, request['headers'].pop(CALLER))
            except ValueError as error:
                return _refuse(request, str(error))
        request['_peer'] = peer
        return self._app(connection, request)

    def end_untrusted(self) -> None:
        """End the connections of machines that are not trusted any more, or lost a role.

        What runs on them ends as if the machine had hung up. One request that is refused tells it
        why, on its next connection. Raises what TrustStore.users() raises.
        """
        users = self._read_users()
        with self._lock:
            opened = list(self._open.items())
        for sock, known in opened:
            fault = known.find_fault(users)
            if fault is not None:
                # SSLSocket's own would disturb the thread that serves it.
                with contextlib.suppress(OSError):  # it has ended already
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
                    _log.warning('an open connection is ended: %s', fault)
                with self._lock:
                    self._open.pop(sock, None)

    def _take_word(self, peer: Peer, said: str) -> Peer:
        """Return for whom a local caller calls. Raises ValueError where that does not count."""
        if not self._is_behind_node:
            _warn_of_missing_option()
            raise ValueError('this program does not know callers of whom a node tells it')
        if OWNER not in peer.roles:
            raise ValueError(f'{peer.name} cannot call for somebody else')
        return parse_caller(said)

    def _read_users(self) -> Mapping[str, TrustedUser]:
        return _NOBODY if self._trust is None else self._trust.users()

    def _find_local_roles(
        self, sock: socket.socket, connection: Mapping[str, Any]
    ) -> frozenset[str]:
        """Return which roles a caller has by the groups that it was in when it connected."""
        if not self._group_roles or 'credentials' not in connection:
            return _NO_ROLES
        try:
            # One's own group need not be among the others.
            groups = net.read_groups(sock) | {connection['credentials'].gid}
        except OSError as error:
            _log.warning('%r has no roles: %s', connection['credentials'], error)
            return _NO_ROLES
        return _NO_ROLES.union(*(self._group_roles.get(gid, _NO_ROLES) for gid in groups))

    def _find_refusal(
        self, connection: dict[str, Any], users: Mapping[str, TrustedUser]
    ) -> str | None:
        """Say who calls, as `_peer`; or log and return why nobody does whom we know."""
        valid_until = math.inf
        try:
            peer = derive_peer(connection, users, os.geteuid(), connection['_local_roles'])
            if peer is not None and peer.kind is PeerKind.MACHINE:
                cert = connection['ssl_peer_cert']
                pki.check_valid(cert, read_clock(None))
                valid_until = pki.parse_validity(cert).not_after.timestamp()
        except (pki.CertificateError, UnknownPeerError) as error:
            who = connection.get('credentials') or connection['client']
            _log.warning('rejected %r: %s', who, error)
            if self._trust is None and 'ssl_peer_cert' in connection:
                _log.warning('nobody said whom to trust: write Authenticated(app, trust)')
            return str(error)
        connection['_peer'] = peer
        connection['_users'] = users  # what this is true of ...
        connection['_valid_until'] = valid_until  # ... and for how long, by time.time()
        if peer is not None:
            known = connection['_known']
            known.roles, known.users, known.valid_until = peer.roles, users, valid_until
        return None


def _refuse(request: Mapping[str, Any], why: str) -> Response:
    headers = {'connection': 'close', 'content-type': 'text/plain; charset=utf-8'}
    body = None if request['method'] == 'HEAD' else f'{why}\n'.encode()
    return 403, 'Forbidden', headers, body
