"""Who I am, and who is calling.

Who I am: a directory of mode 0700 with four files of mode 0600, written in this order:

    user.key     user.crt     the user, a certificate authority; a joined machine has no user.key
    machine.key  machine.crt  this machine, certified by that user; machine.crt makes it complete

1. `Identity.create` makes what is missing of the four and replaces nothing. Each file appears whole
   or not at all, so after a kill at any moment a second call goes on where the first one stopped,
   and of two at the same time both end with the same identity.
2. `Identity.open` refuses files that others could read or wrote, or that do not belong together.
3. `server_config` and `client_config` say the same to `degu`'s TLS contexts.

Who is calling, once per connection and before any request:

4. OpenSSL has verified the chain and the validity period, or the kernel says who connected.
5. `derive_peer` turns that into a `Peer`; `Authenticated` keeps it as `connection['_peer']`.
6. `MachineClient` asks the same of a server (`check_server`): by id, never by host name.

There are no threads and no locks: `users` is only read, and whoever changes it while a server runs
must make each lookup atomic. What this does not do: decide whom to trust (the `users` mapping is
given), and authorize single requests.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import logging
import os
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from degu import pki
from degu.client import Connection, SSLClient
from degu_rpc.errors import IdentityError, UnknownPeerError

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from degu.net import Address
    from degu.rgi import App, Response

OWNER = 'owner'  # the role of my own user and my own uid; any other name can be a role too

# What the kernel reports for every user who has no number in this user namespace: could be anybody.
OVERFLOW_UID = 65534

_USER_KEY = 'user.key'
_USER_CERT = 'user.crt'
_MACHINE_KEY = 'machine.key'
_MACHINE_CERT = 'machine.crt'

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
    """A user whose machines may connect: the CA certificate (DER), our name and roles for them."""

    user_id: str
    ca_cert: bytes
    name: str
    roles: frozenset[str]


@dataclass(frozen=True, slots=True)
class Identity:
    """My user and my machine: the ids, the user's CA certificate (DER), and where the files are."""

    directory: Path
    user_id: str
    machine_id: str
    user_cert: bytes

    @classmethod
    def create(cls, directory: str | os.PathLike[str], now: datetime) -> Identity:
        """Make a new user and machine in *directory*, or finish what a killed `create` began.

        The directory and its parents are made with mode 0700 where they are missing; *now* is our
        clock.

        Raises FileExistsError if a complete identity is there (nothing is ever replaced),
        IdentityError for what cannot be used or finished, and any other OSError.
        """
        directory = Path(directory).resolve()
        _make_directories(directory)
        _check_private(directory, directory.stat())
        machine_cert_file = directory / _MACHINE_CERT
        if os.path.lexists(machine_cert_file):
            raise FileExistsError(f'{directory} holds an identity already; it was left alone')
        user_key = _ensure_key(directory / _USER_KEY, directory / _USER_CERT)
        _ensure_cert(directory / _USER_CERT, pki.build_user_cert(user_key, now))
        machine_key = _ensure_key(directory / _MACHINE_KEY, machine_cert_file)
        machine_cert = pki.build_machine_cert(user_key, machine_key.public_key(), now)
        _ensure_cert(machine_cert_file, machine_cert)
        return cls.open(directory)

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Identity:
        """Read the identity in *directory* and check that it is private and fits together.

        Raises FileNotFoundError if there is no complete identity (`create` makes one),
        IdentityError with the remedy for one that cannot be used, and any other OSError.
        """
        directory = Path(directory).resolve()
        _check_private(directory, directory.stat())
        machine_pem = _read_private(directory / _MACHINE_CERT)
        with contextlib.suppress(FileNotFoundError):
            user_key_file = directory / _USER_KEY
            _check_private(user_key_file, user_key_file.lstat())
        try:
            user_cert = pki.parse_cert_pem(_read_private(directory / _USER_CERT))
            ids = pki.check_issued_by(pki.parse_cert_pem(machine_pem), user_cert)
            machine_key = pki.parse_key_pem(_read_private(directory / _MACHINE_KEY))
        except FileNotFoundError as error:
            raise IdentityError(
                Path(error.filename), 'is missing', 'restore it from a backup'
            ) from error
        except pki.CertificateError as error:
            raise IdentityError(
                directory, f'holds a broken identity: {error}', 'restore it from a backup'
            ) from error
        if pki.derive_machine_id(machine_key.public_key()) != ids.machine_id:
            raise IdentityError(
                directory / _MACHINE_KEY,
                f'is not the key of {_MACHINE_CERT}',
                'restore both from one backup',
            )
        return cls(directory, ids.user_id, ids.machine_id, user_cert)

    @property
    def user_cert_file(self) -> Path:
        """The CA certificate of my own user: trusting it is trusting my other machines."""
        return self.directory / _USER_CERT

    def server_config(self, trusted_ca_file: Path) -> dict[str, Any]:
        """Return the TLS config of a server that trusts the users in *trusted_ca_file* (PEM)."""
        return {
            'cert_file': str(self.directory / _MACHINE_CERT),
            'key_file': str(self.directory / _MACHINE_KEY),
            'ca_file': str(trusted_ca_file.resolve()),
        }

    def client_config(self, trusted_ca_file: Path) -> dict[str, Any]:
        """Return the TLS config of a client; call `check_server` after each connect.

        TLS alone only shows that the server is a machine of one of the users in *trusted_ca_file*
        (PEM): which one it is, an id says, not a host name.
        """
        return {**self.server_config(trusted_ca_file), 'check_hostname': False}


def _make_directories(directory: Path) -> None:
    # Path.mkdir(parents=True) would make the parents by the umask alone.
    if not directory.exists():
        _make_directories(directory.parent)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            directory.chmod(0o700)  # a umask can only have taken bits away
            pki.sync_directory(directory.parent)


def _check_private(path: Path, found: os.stat_result) -> None:
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise IdentityError(path, 'is not a regular file', 'put the file itself there')
    quoted = shlex.quote(str(path))
    if found.st_uid != os.geteuid():
        raise IdentityError(
            path,
            f'belongs to uid {found.st_uid}, not to uid {os.geteuid()}',
            f'if it is yours, run: sudo chown {os.geteuid()} {quoted}',
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        wanted = '700' if stat.S_ISDIR(found.st_mode) else '600'
        raise IdentityError(
            path,
            f'has mode {stat.S_IMODE(found.st_mode):04o}, so others can get at it',
            f'run: chmod {wanted} {quoted}',
        )


def _read_private(path: Path) -> bytes:
    _check_private(path, path.lstat())
    # The directory is ours alone, so nobody else can have swapped the file since.
    return path.read_bytes()


def _ensure_key(key_file: Path, cert_file: Path) -> EllipticCurvePrivateKey:
    # Looked at first: a key is written before its certificate, so a certificate without a key is a
    # key that was lost, and making another one would be a silent change of identity.
    certified = os.path.lexists(cert_file)
    if not os.path.lexists(key_file):
        if certified:
            raise IdentityError(key_file, 'is missing', 'restore it from a backup')
        with contextlib.suppress(FileExistsError):
            pki.write_key_file(key_file, pki.build_key())
    try:
        return pki.parse_key_pem(_read_private(key_file))
    except pki.CertificateError as error:
        raise IdentityError(key_file, f'is broken: {error}', 'restore it from a backup') from error


def _ensure_cert(cert_file: Path, cert_der: bytes) -> None:
    with contextlib.suppress(FileExistsError):
        pki.write_cert_file(cert_file, cert_der)


def derive_peer(
    connection: Mapping[str, Any], users: Mapping[str, TrustedUser], own_uid: int
) -> Peer | None:
    """Return who is at the other end of an RGI *connection*, or None for anybody at all.

    None is plain TCP, or TLS without a client certificate where the server allows that. With TLS
    only the certificate counts, on a unix socket too: there the credentials may be a relay's.

    Raises pki.CertificateError (refused by our profile or not issued by that user) and
    UnknownPeerError (a user we do not trust, or a uid without a meaning here).
    """
    if 'ssl_peer_cert' in connection:
        cert_der = connection['ssl_peer_cert']
        return None if cert_der is None else _derive_machine(cert_der, users)
    if 'credentials' in connection:
        _pid, uid, gid = connection['credentials']
        return _derive_local(uid, gid, own_uid)
    return None


def _derive_machine(cert_der: bytes, users: Mapping[str, TrustedUser]) -> Peer:
    claimed = pki.parse_machine_cert(cert_der)
    user = users.get(claimed.user_id)
    if user is None:
        raise UnknownPeerError(
            f'machine {claimed.machine_id} says it belongs to user {claimed.user_id}, who is not '
            'trusted here; to trust them, add that user to `users`'
        )
    ids = pki.check_issued_by(cert_der, user.ca_cert)
    return Peer(PeerKind.MACHINE, ids.user_id, ids.machine_id, user.name, user.roles, None, None)


def _derive_local(uid: int, gid: int, own_uid: int) -> Peer:
    if uid == OVERFLOW_UID:
        raise UnknownPeerError(
            f'uid {uid} stands for every user that this user namespace has no number for; '
            'call from a user who has one'
        )
    roles = frozenset({OWNER}) if uid == own_uid else frozenset[str]()
    return Peer(PeerKind.LOCAL, None, None, f'uid:{uid}', roles, uid, gid)


def check_server(cert_der: bytes | None, machine_id: str) -> None:
    """Check that a server is the machine a client meant to call.

    *cert_der* is the `peer_certificate` of a client's connection (`SSLSocket.getpeercert(True)`),
    whose chain the handshake has verified; *machine_id* is the expected one, compared whole.

    Raises pki.CertificateError (MACHINE_ID for another machine, with both ids).
    """
    found = pki.parse_machine_cert(cert_der).machine_id
    if found != machine_id:
        raise pki.CertificateError(
            pki.CertificateFault.MACHINE_ID, f'expected {machine_id}, found {found}'
        )


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


def find_caller(connection: Mapping[str, Any]) -> Peer:
    """Return who makes the requests of a connection that `Authenticated` has looked at.

    Raises UnknownPeerError, for the caller to read: nobody knows who it is, or nobody looked.
    """
    if '_peer' not in connection:
        _warn_of_missing_middleware()
        raise UnknownPeerError('this server was set up without a way to know who calls')
    peer: Peer | None = connection['_peer']
    if peer is None:
        raise UnknownPeerError('who calls is not known; use a client certificate, or a unix socket')
    return peer


@functools.cache  # once is enough: it is true of every request
def _warn_of_missing_middleware() -> None:
    _log.warning('nothing says who calls: wrap the application in Authenticated')


class MachineClient(SSLClient):
    """A client of one machine, wherever it is: each connection proves the machine's id."""

    def __init__(
        self, sslctx: ssl.SSLContext, address: Address, machine_id: str, **options: Any
    ) -> None:
        """Remember where and whom to connect to; other arguments as for `degu.client.SSLClient`."""
        super().__init__(sslctx, address, **options)
        self.machine_id = machine_id

    def connect(self) -> Connection:
        """Connect and check who is there.

        Raises pki.CertificateError for another machine, and what SSLClient.connect() raises.
        """
        connection = super().connect()
        try:
            check_server(connection.peer_certificate, self.machine_id)
        except BaseException:
            connection.close()
            raise
        return connection


class Authenticated:
    """Middleware: an RGI app whose connections carry `connection['_peer']` or are rejected.

    *app* is the RGI app to protect; its own `on_connect`, if it has one, is called after `_peer` is
    set. *users* maps user id to TrustedUser and is looked up anew for each connection. *own_uid* is
    whom a unix socket takes for the owner.
    """

    def __init__(self, app: App, users: Mapping[str, TrustedUser], own_uid: int) -> None:
        """Raises TypeError for a user whose roles are no frozenset (those of a str are letters)."""
        for user in users.values():
            if not isinstance(user.roles, frozenset):
                raise TypeError(
                    f'the roles of {user.name!r} must be a frozenset of names, not {user.roles!r}'
                )
        self._app = app
        self._users = users
        self._own_uid = own_uid

    def on_connect(self, sock: socket.socket, connection: dict[str, Any]) -> bool:
        """Set `connection['_peer']`; reject (False, the reason logged) who is not who they say."""
        try:
            connection['_peer'] = derive_peer(connection, self._users, self._own_uid)
        except (pki.CertificateError, UnknownPeerError) as error:
            _log.warning('rejected %r: %s', connection['client'], error)
            return False
        on_connect = getattr(self._app, 'on_connect', None)
        return on_connect is None or on_connect(sock, connection) is True

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Handle a request with the wrapped app."""
        return self._app(connection, request)
