"""What two machines say, check and store once both have shown to know the code.

    Peering     with Peering      the two users trust each other
    Admission   with Joining      the joiner becomes another machine of the window's user, again if
                                  it was one: its certificate may have run out

1. `offer` is what one side says of itself: certificates, a proof that it has the key whose hash the
   handshake was about (bound to this one session), and a name for people to read.
2. `accept` checks what the other side said. Nothing is stored so far.
3. `store` makes it last, and remembers first what was there before. `take_back` undoes that,
   however far it came.
4. A machine that joins gets its certificate only once the window has stored who it is: `give` and
   `receive`. Such a machine is denied if it is taken back, for the certificate is good.

Each object is for one pairing and one thread. When each is called, and what becomes of a lost
message, is `degu_rpc.peers.pairing.window`'s and `degu_rpc.peers.pairing.joiner`'s.
"""

from __future__ import annotations

import abc
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

import msgspec

from degu import pki
from degu_rpc.errors import PairingError, PairingFault
from degu_rpc.peers.caller import PEER, check_given_roles
from degu_rpc.peers.identity import Identity
from degu_rpc.peers.names import check_new_name
from degu_rpc.peers.pairing.pake import Intent
from degu_rpc.peers.trust import TrustStore

if TYPE_CHECKING:
    import os
    from collections.abc import Collection

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    from degu_rpc.peers.trust import Former

HOW = 'paired'

_T = TypeVar('_T', bound=msgspec.Struct)


class Paired(NamedTuple):
    """The machine at the other side, whose it is, and what it calls itself."""

    user_id: str
    machine_id: str
    name: str


class _Introduction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What two peers say to each other."""

    user_cert: bytes
    machine_cert: bytes
    csr: bytes
    name: str
    trusts: bool  # whether the other user is trusted already


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a machine says that is to join."""

    csr: bytes
    name: str


class _Admitted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What it is told. Its certificate comes later."""

    user_cert: bytes
    name: str


class Side(abc.ABC):
    """One side's part of a pairing."""

    intent: ClassVar[Intent]
    own_id: str
    """The id of this side's machine."""

    def check_user(self, user_id: str) -> None:  # noqa: B027  # for most there is nothing to check
        """Look at the user that a window says it belongs to, before anything is said.

        Raises PairingError.
        """

    @abc.abstractmethod
    def offer(self, binding: bytes) -> bytes:
        """Return what this side says; `binding` is the session's.

        Raises IdentityError, OSError.
        """

    @abc.abstractmethod
    def accept(self, offer: bytes, machine_id: str, binding: bytes) -> Paired:
        """Check what the other side said, whose machine the handshake was about.

        Raises PairingError.
        """

    @abc.abstractmethod
    def store(self) -> None:
        """Make what was accepted last. Raises OSError, DeguRpcError."""

    @abc.abstractmethod
    def take_back(self) -> None:
        """Undo `store`, however far it came. Raises OSError, DeguRpcError."""

    def give(self) -> bytes:
        """Return the certificate that the other machine gets once it is stored, if it gets one."""
        return b''

    def receive(self, machine_cert: bytes) -> None:  # noqa: B027  # most get none
        """Check the certificate that this machine gets. Raises PairingError."""


class Peering(Side):
    """Pair my user with the other machine's: for a window, and for who is told its code."""

    intent = Intent.PEER

    def __init__(self, trust: TrustStore, name: str, roles: Collection[str] = (PEER,)) -> None:
        """Trust the other user in `trust`, with these roles; `name` is told to the other side.

        Raises ValueError for a name or roles that cannot be, IdentityError, OSError.
        """
        self._name = check_new_name(name)
        self._roles = check_given_roles(roles)
        self._trust = trust
        self.identity = _read_identity(trust)
        self.own_id = self.identity.machine_id
        self._other: tuple[_Introduction, Paired] | None = None
        self._former: Former | None = None

    def check_user(self, user_id: str) -> None:
        """See Side."""
        if user_id == self.identity.user_id:
            raise PairingError(PairingFault.SAME_USER)

    def offer(self, binding: bytes) -> bytes:
        """See Side."""
        return msgspec.json.encode(
            _Introduction(
                user_cert=self.identity.user_cert,
                machine_cert=self.identity.machine_cert,
                csr=pki.build_csr(self.identity.read_machine_key(), binding),
                name=self._name,
                trusts=self._other is not None and self._trusts(self._other[1].user_id),
            )
        )

    def _trusts(self, user_id: str) -> bool:
        return user_id in self._trust.users()

    def accept(self, offer: bytes, machine_id: str, binding: bytes) -> Paired:
        """See Side."""
        other = _parse(offer, _Introduction)
        _check_key(other.csr, machine_id, binding)
        try:
            ids = pki.check_issued_by(other.machine_cert, other.user_cert)
        except pki.CertificateError as error:
            raise PairingError(PairingFault.CERTIFICATE, str(error)) from error
        if ids.machine_id != machine_id:
            raise PairingError(PairingFault.CERTIFICATE, 'it is of another machine')
        self.check_user(ids.user_id)
        if other.trusts and self._trusts(ids.user_id):
            raise PairingError(PairingFault.ALREADY_PAIRED)
        paired = Paired(ids.user_id, ids.machine_id, other.name)
        self._other = other, paired
        return paired

    def store(self) -> None:
        """See Side."""
        assert self._other is not None
        other, paired = self._other
        self._former = self._trust.remember(paired.user_id)
        # Another machine of a user whom we know changes neither what we call the user nor takes a
        # role away.
        known = self._trust.users().get(paired.user_id)
        self._trust.add(
            other.user_cert,
            other.name if known is None else known.name,
            self._roles if known is None else self._roles | known.roles,
            how=HOW,
            machines={paired.machine_id: other.name},
            revive=True,  # a person has just decided it
        )

    def take_back(self) -> None:
        """See Side."""
        if self._former is not None:
            self._trust.put_back(self._former)


class Admission(Side):
    """Let the other machine join my user: for the window on a machine that can certify."""

    intent = Intent.JOIN

    def __init__(self, trust: TrustStore, name: str) -> None:
        """Remember the machine in `trust`; `name` is told to it.

        Raises ValueError for a name that cannot be, IdentityError where the key of the user is not
        on this machine, OSError.
        """
        self._name = check_new_name(name)
        self._trust = trust
        self.identity = _read_identity(trust)
        self.identity.require_user_key()
        self.own_id = self.identity.machine_id
        self._machine_cert = b''
        self._joined: Paired | None = None
        self._is_given = False
        self._was_denied = False
        self._former: Former | None = None

    def accept(self, offer: bytes, machine_id: str, binding: bytes) -> Paired:
        """See Side."""
        request = _parse(offer, _Request)
        public_key = _check_key(request.csr, machine_id, binding)
        self._machine_cert = self.identity.certify(public_key)
        self._joined = Paired(self.identity.user_id, machine_id, request.name)
        return self._joined

    def offer(self, binding: bytes) -> bytes:
        """See Side."""
        return msgspec.json.encode(_Admitted(user_cert=self.identity.user_cert, name=self._name))

    def store(self) -> None:
        """See Side."""
        assert self._joined is not None
        user_id, machine_id, _ = self._joined
        users = self._trust.users()
        self._was_denied = user_id in users and machine_id in users[user_id].denied
        self._former = self._trust.remember(user_id)
        self._trust.add_machine(*self._joined)
        self._trust.allow(user_id, machine_id)  # a person has just decided it

    def give(self) -> bytes:
        """See Side."""
        self._is_given = True
        return self._machine_cert

    def take_back(self) -> None:
        """See Side."""
        if self._former is None:
            return
        assert self._joined is not None
        user_id, machine_id, _ = self._joined
        if self._is_given or self._was_denied:
            self._trust.deny(user_id, machine_id)  # first: this must last
        self._trust.put_back(self._former)


class Joining(Side):
    """Become a machine of the window's user: for one that is nobody's, or was that user's."""

    intent = Intent.JOIN

    def __init__(self, directory: str | os.PathLike[str], name: str) -> None:
        """Use the identity in `directory`, or make it there; `name` is told to the other side.

        A machine that was certified by its user joins that user again, with its key. One without an
        identity gets a new key.

        Raises ValueError for a name that cannot be, FileExistsError if an identity is there that
        has the key of its user, IdentityError if it cannot be used, OSError.
        """
        self._name = check_new_name(name)
        self._directory = Path(directory).resolve()
        try:
            self._certified: Identity | None = Identity.open(directory)
        except FileNotFoundError:
            self._certified = None
            self._key = pki.build_key()
        else:
            if self._certified.can_certify:
                raise FileExistsError(f'{self._directory} holds an identity already')
            self._key = self._certified.read_machine_key()
        self.own_id = pki.derive_machine_id(self._key.public_key())
        self._other: tuple[_Admitted, Paired] | None = None
        self._machine_cert: bytes | None = None
        self._former: Former | None = None

    def check_user(self, user_id: str) -> None:
        """See Side."""
        if self._certified is not None and user_id != self._certified.user_id:
            raise PairingError(PairingFault.OTHER_USER)

    def offer(self, binding: bytes) -> bytes:
        """See Side."""
        return msgspec.json.encode(_Request(csr=pki.build_csr(self._key, binding), name=self._name))

    def accept(self, offer: bytes, machine_id: str, binding: bytes) -> Paired:
        """See Side."""
        admitted = _parse(offer, _Admitted)
        try:
            user_id = pki.parse_user_cert(admitted.user_cert)
        except pki.CertificateError as error:
            raise PairingError(PairingFault.CERTIFICATE, str(error)) from error
        self.check_user(user_id)
        paired = Paired(user_id, machine_id, admitted.name)
        self._other = admitted, paired
        return paired

    def receive(self, machine_cert: bytes) -> None:
        """See Side."""
        assert self._other is not None
        try:
            ids = pki.check_issued_by(machine_cert, self._other[0].user_cert)
            pki.check_valid(machine_cert, datetime.now(UTC))
        except pki.CertificateError as error:
            raise PairingError(PairingFault.CERTIFICATE, str(error)) from error
        if ids.machine_id != self.own_id:
            raise PairingError(PairingFault.CERTIFICATE, 'it is of another machine')
        self._machine_cert = machine_cert

    def store(self) -> None:
        """See Side."""
        assert self._other is not None
        assert self._machine_cert is not None
        admitted, paired = self._other
        if self._certified is None:
            identity = Identity.join(
                self._directory, self._key, self._machine_cert, admitted.user_cert
            )
        else:
            identity = self._certified.install(self._key, self._machine_cert)
        trust = TrustStore(identity)
        self._former = trust.remember(paired.user_id)
        trust.add_machine(*paired)

    def take_back(self) -> None:
        """See Side."""
        try:
            identity = Identity.open(self._directory)
        except FileNotFoundError:
            return
        if identity.machine_cert != self._machine_cert:
            return  # it is not what this pairing brought
        try:
            if self._former is not None:
                TrustStore(identity).put_back(self._former)
        finally:
            if self._certified is None:
                identity.discard()
            else:
                self._certified.install(self._key, self._certified.machine_cert)


def _read_identity(trust: TrustStore) -> Identity:
    """Return who this machine is now: since the store was made it may have got another key."""
    return Identity.open(trust.identity.directory)


def _parse(offer: bytes, kind: type[_T]) -> _T:
    try:
        parsed = msgspec.json.decode(offer, type=kind)
        check_new_name(parsed.name)  # type: ignore[attr-defined]  # each has one
    except (msgspec.DecodeError, ValueError) as error:
        raise PairingError(PairingFault.MESSAGE, str(error)) from error
    return parsed


def _check_key(csr: bytes, machine_id: str, binding: bytes) -> EllipticCurvePublicKey:
    """Return the key of a machine that has it, in this session."""
    try:
        public_key = pki.parse_csr(csr, binding)
    except pki.CertificateError as error:
        raise PairingError(PairingFault.CERTIFICATE, str(error)) from error
    if pki.derive_machine_id(public_key) != machine_id:
        raise PairingError(PairingFault.CERTIFICATE, 'the request is of another machine')
    return public_key
