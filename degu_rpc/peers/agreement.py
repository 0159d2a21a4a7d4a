"""What two machines say, check and store once both have shown to know the code.

    Peering     with Peering      the two users trust each other
    Admission   with Joining      the joiner becomes another machine of the window's user

1. `offer` is what one side says of itself: certificates, a proof that it has the key whose hash the
   handshake was about (bound to this one session), and a name for people to read.
2. `accept` checks what the other side said. Nothing is stored so far.
3. `store` makes it last, `take_back` undoes that.

Each object is for one pairing and one thread. When each is called, and what becomes of a lost
message, is `degu_rpc.peers.window`'s and `degu_rpc.peers.pairing`'s.
"""

from __future__ import annotations

import abc
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple, TypeVar

import msgspec

from degu import pki
from degu_rpc.errors import PairingError, PairingFault, escape_controls
from degu_rpc.peers.caller import PEER, check_given_roles
from degu_rpc.peers.clock import read_clock
from degu_rpc.peers.handshake import Intent
from degu_rpc.peers.identity import Identity
from degu_rpc.peers.limits import MAX_NAME_LENGTH
from degu_rpc.peers.trust import Former, TrustStore

if TYPE_CHECKING:
    import os
    from collections.abc import Collection
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey


HOW = 'paired'

_T = TypeVar('_T', bound=msgspec.Struct)
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_LENGTH)]


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
    name: _Name
    trusts: bool  # whether the other user is trusted already


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a machine says that is to join."""

    csr: bytes
    name: _Name


class _Admitted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What it gets."""

    user_cert: bytes
    machine_cert: bytes
    name: _Name


class Agreement(abc.ABC):
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


class Peering(Agreement):
    """Pair my user with the other machine's: for a window, and for who is told its code."""

    intent = Intent.PEER

    def __init__(
        self,
        identity: Identity,
        trust: TrustStore,
        name: str,
        now: datetime,
        roles: Collection[str] = (PEER,),
    ) -> None:
        """Trust the other user in `trust`, with these roles; `name` is told to the other side.

        Raises ValueError for a name or roles that cannot be.
        """
        self.identity = identity
        self.own_id = identity.machine_id
        self._trust = trust
        self._name = _check_own_name(name)
        self.now = now
        self._roles = check_given_roles(roles)
        self._other: tuple[_Introduction, Paired] | None = None
        self._former: Former | None = None

    def check_user(self, user_id: str) -> None:
        """See Agreement."""
        if user_id == self.identity.user_id:
            raise PairingError(PairingFault.SAME_USER)

    def offer(self, binding: bytes) -> bytes:
        """See Agreement."""
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
        """See Agreement."""
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
        """See Agreement."""
        assert self._other is not None
        other, paired = self._other
        self._former = self._trust.remember(paired.user_id)
        self._trust.add(
            other.user_cert,
            other.name,
            self._roles,
            how=HOW,
            now=self.now,
            machines={paired.machine_id: other.name},
            revive=True,  # a person has just decided it
        )

    def take_back(self) -> None:
        """See Agreement."""
        if self._former is not None:
            self._trust.put_back(self._former)


class Admission(Agreement):
    """Let the other machine join my user: for the window on a machine that can certify."""

    intent = Intent.JOIN

    def __init__(self, identity: Identity, trust: TrustStore, name: str, now: datetime) -> None:
        """Certify as of `now`, and remember the machine in `trust`; `name` is told to it.

        Raises ValueError for a name that cannot be, IdentityError where the key of the user is not
        on this machine.
        """
        identity.require_user_key()
        self.identity = identity
        self.own_id = identity.machine_id
        self._trust = trust
        self._name = _check_own_name(name)
        self.now = now
        self._machine_cert = b''
        self._joined: Paired | None = None
        self._former: Former | None = None

    def accept(self, offer: bytes, machine_id: str, binding: bytes) -> Paired:
        """See Agreement."""
        request = _parse(offer, _Request)
        public_key = _check_key(request.csr, machine_id, binding)
        self._machine_cert = self.identity.certify(public_key, self.now)
        self._joined = Paired(self.identity.user_id, machine_id, request.name)
        return self._joined

    def offer(self, binding: bytes) -> bytes:
        """See Agreement."""
        return msgspec.json.encode(
            _Admitted(
                user_cert=self.identity.user_cert,
                machine_cert=self._machine_cert,
                name=self._name,
            )
        )

    def store(self) -> None:
        """See Agreement."""
        assert self._joined is not None
        self._former = self._trust.remember(self._joined.user_id)
        self._trust.add_machine(*self._joined)

    def take_back(self) -> None:
        """See Agreement."""
        if self._former is not None:
            self._trust.put_back(self._former)


class Joining(Agreement):
    """Become another machine of the window's user: for a machine that has no identity yet."""

    intent = Intent.JOIN

    def __init__(self, directory: str | os.PathLike[str], name: str, now: datetime) -> None:
        """Make the identity in `directory`, from a new key; `name` is told to the other side.

        Raises ValueError for a name that cannot be, FileExistsError if an identity is there,
        IdentityError if it cannot be used.
        """
        with contextlib.suppress(FileNotFoundError):
            found = Identity.open(directory)
            raise FileExistsError(f'{found.directory} holds an identity already')
        self._directory = Path(directory).resolve()
        self._name = _check_own_name(name)
        self._now = now
        self._key = pki.build_key()
        self.own_id = pki.derive_machine_id(self._key.public_key())
        self._other: tuple[_Admitted, Paired] | None = None

    def offer(self, binding: bytes) -> bytes:
        """See Agreement."""
        return msgspec.json.encode(_Request(csr=pki.build_csr(self._key, binding), name=self._name))

    def accept(self, offer: bytes, machine_id: str, binding: bytes) -> Paired:
        """See Agreement."""
        admitted = _parse(offer, _Admitted)
        try:
            ids = pki.check_issued_by(admitted.machine_cert, admitted.user_cert)
            pki.check_valid(admitted.machine_cert, read_clock(self._now))
        except pki.CertificateError as error:
            raise PairingError(PairingFault.CERTIFICATE, str(error)) from error
        if ids.machine_id != self.own_id:
            raise PairingError(PairingFault.CERTIFICATE, 'it is of another machine')
        paired = Paired(ids.user_id, machine_id, admitted.name)
        self._other = admitted, paired
        return paired

    def store(self) -> None:
        """See Agreement."""
        assert self._other is not None
        admitted, paired = self._other
        identity = Identity.join(
            self._directory, self._key, admitted.machine_cert, admitted.user_cert
        )
        TrustStore(identity).add_machine(*paired)

    def take_back(self) -> None:
        """See Agreement."""
        try:
            identity = Identity.open(self._directory)
        except FileNotFoundError:
            return
        if identity.machine_id == self.own_id:  # and not another's, who was faster
            trust = TrustStore(identity)
            trust.put_back(Former(identity.user_id, None))
            identity.discard()


def _check_own_name(name: str) -> str:
    if not 1 <= len(name) <= MAX_NAME_LENGTH or escape_controls(name) != name:
        raise ValueError(
            f'a name has 1 to {MAX_NAME_LENGTH} characters and no control character, not {name!r}'
        )
    return name


def _parse(offer: bytes, kind: type[_T]) -> _T:
    try:
        parsed = msgspec.json.decode(offer, type=kind)
    except msgspec.DecodeError as error:  # of which ValidationError is one
        raise PairingError(PairingFault.MESSAGE, str(error)) from error
    name: str = parsed.name  # type: ignore[attr-defined]  # each has one
    if escape_controls(name) != name:
        raise PairingError(PairingFault.MESSAGE, 'its name has control characters')
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
