"""Who I am: a user, who is a certificate authority, and this machine, certified by that user.

A directory of mode 0700 with three files of mode 0600, written in this order:

    user.key      the key of the user; only on machines that certify others
    user.crt      the certificate of the user
    machine.pem   key and certificate of this machine: one file, so that both change at once, and
                  the one that makes an identity complete

1. `Identity.create` makes a user and a machine, or finishes what a killed `create` began.
2. `Identity.join` keeps what another machine of the same user has certified; the key of the user
   stays there.
3. `Identity.open` refuses files that others could read or write, or that do not belong together.
4. `renew` and `rotate` do on a machine with the user's key what `degu_rpc.peers.renewal` does over
   the network for the others; both end in `install`.
5. `export_user` and `import_user` carry the user's key to a second machine that shall certify.

Each file appears whole or not at all, so a kill at any moment leaves the old state or the new one.
Whoever changes the directory holds its lock; there are no threads. Where a method takes *now*, it
is for a clock of one's own.
"""

from __future__ import annotations

import errno
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from degu import durable, pki
from degu_rpc.errors import IdentityError
from degu_rpc.peers.clock import read_clock
from degu_rpc.peers.export import SALT_SIZE, format_user, parse_user
from degu_rpc.peers.private import check_private, locked, make_directory, read_private

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

TRUST_DIRECTORY = 'peers'
"""Where the trust store is, beside these files."""

_USER_KEY = 'user.key'
_USER_CERT = 'user.crt'
_MACHINE = 'machine.pem'
_BACKUP = 'restore it from a backup'


@dataclass(frozen=True, slots=True)
class Identity:
    """My user and my machine: the ids, both certificates (DER), and where the files are."""

    directory: Path
    user_id: str
    machine_id: str
    user_cert: bytes = field(repr=False)
    machine_cert: bytes = field(repr=False)

    @classmethod
    def create(cls, directory: str | os.PathLike[str], now: datetime | None = None) -> Identity:
        """Make a new user and machine in *directory*, or finish what a killed `create` began.

        The directory and its parents are made with mode 0700 where they are missing.

        Raises FileExistsError if a complete identity is there (nothing is ever replaced),
        IdentityError for what cannot be used or finished, and any other OSError.
        """
        directory = Path(directory).resolve()
        make_directory(directory)
        with locked(directory):
            _refuse_existing(directory)
            user_key = _ensure_user_key(directory)
            _complete(directory, pki.build_user_cert(user_key, read_clock(now)), now)
        return cls.open(directory)

    @classmethod
    def join(
        cls,
        directory: str | os.PathLike[str],
        machine_key: EllipticCurvePrivateKey,
        machine_cert: bytes,
        user_cert: bytes,
    ) -> Identity:
        """Become a machine of the user of *user_cert*, by whom *machine_cert* was issued (DER).

        Raises FileExistsError if a complete identity is there, IdentityError if a user of our own
        or a store of trust is there, pki.CertificateError for what does not fit together, and any
        other OSError. Nothing is kept then.
        """
        directory = Path(directory).resolve()
        _check_machine(machine_key, machine_cert, user_cert)
        make_directory(directory)
        with locked(directory):
            _refuse_existing(directory)
            if os.path.lexists(directory / _USER_KEY):
                raise IdentityError(
                    directory / _USER_KEY,
                    'is the key of a user, and a machine that joins another has none',
                    'move it away, or give another directory',
                )
            _refuse_trust(directory)
            try:
                durable.replace(directory / _USER_CERT, pki.format_cert_pem(user_cert))
                durable.write_new(directory / _MACHINE, _format_machine(machine_key, machine_cert))
            except BaseException:
                for name in (_MACHINE, _USER_CERT):
                    Path(directory, name).unlink(missing_ok=True)
                raise
        return cls.open(directory)

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Identity:
        """Read the identity in *directory* and check that it is private and fits together.

        Raises FileNotFoundError if there is no complete identity (`create` makes one),
        IdentityError with the remedy for one that cannot be used, and any other OSError.
        """
        directory = Path(directory).resolve()
        try:
            check_private(directory, directory.stat())
            pem = read_private(directory / _MACHINE)
        except FileNotFoundError as error:
            what = 'there is no identity here; Identity.create() makes one'
            raise FileNotFoundError(errno.ENOENT, what, str(directory)) from error
        try:
            user_cert = pki.parse_cert_pem(read_private(directory / _USER_CERT))
            if os.path.lexists(directory / _USER_KEY):
                _check_user_key(_read_key(directory / _USER_KEY), user_cert)
            machine_cert = pki.parse_cert_pem(pem)
            ids = _check_machine(pki.parse_key_pem(pem), machine_cert, user_cert)
        except FileNotFoundError as error:
            raise IdentityError(Path(error.filename), 'is missing', _BACKUP) from error
        except pki.CertificateError as error:
            raise IdentityError(directory, f'holds a broken identity: {error}', _BACKUP) from error
        return cls(directory, ids.user_id, ids.machine_id, user_cert, machine_cert)

    @property
    def machine_file(self) -> Path:
        """Key and certificate of this machine: `cert_file` and `key_file` of a TLS config."""
        return self.directory / _MACHINE

    @property
    def user_cert_file(self) -> Path:
        """The CA certificate of my own user: trusting it is trusting my other machines."""
        return self.directory / _USER_CERT

    @property
    def can_certify(self) -> bool:
        """Whether the key of the user is here, so that this machine can certify others."""
        return os.path.lexists(self.directory / _USER_KEY)

    def require_user_key(self) -> None:
        """Check that this machine can certify others. Raises IdentityError with what to do."""
        if not self.can_certify:
            raise IdentityError(
                self.directory / _USER_KEY,
                'is not on this machine, which therefore cannot certify others',
                'do this on the machine where the user was made, or import the key',
            )

    def certify(
        self, machine_public_key: EllipticCurvePublicKey, now: datetime | None = None
    ) -> bytes:
        """Issue the certificate of a machine of my user, valid for a year; return DER.

        Raises IdentityError where the key of the user is not here, or cannot be used.
        """
        return pki.build_machine_cert(self._read_user_key(), machine_public_key, read_clock(now))

    def needs_renewal(self, now: datetime | None = None) -> bool:
        """Say whether half of the certificate's life is over."""
        return read_clock(now) >= pki.parse_validity(self.machine_cert).half_life

    def renew(self, now: datetime | None = None) -> Identity:
        """Give this machine a new certificate for the same key; return what I am now.

        Raises IdentityError where the key of the user is not here, OSError.
        """
        key = self.read_machine_key()
        return self.install(key, self.certify(key.public_key(), now))

    def rotate(self, now: datetime | None = None) -> Identity:
        """Give this machine a new key, and so a new machine id; return who I am now.

        Raises IdentityError where the key of the user is not here, OSError.
        """
        key = pki.build_key()
        return self.install(key, self.certify(key.public_key(), now))

    def install(self, machine_key: EllipticCurvePrivateKey, machine_cert: bytes) -> Identity:
        """Keep a new certificate of my user (DER) and its key; return who I am now.

        Raises pki.CertificateError if the two do not fit each other or my user, OSError.
        """
        _check_machine(machine_key, machine_cert, self.user_cert)
        with locked(self.directory):
            durable.replace(self.machine_file, _format_machine(machine_key, machine_cert))
        return Identity.open(self.directory)

    def discard(self) -> None:
        """Take back a `join`: this machine is nobody's again.

        Raises IdentityError if the key of the user is here (it would be lost for ever) or somebody
        is trusted (whom the next user would trust as well), OSError.
        """
        with locked(self.directory):
            if self.can_certify:
                raise IdentityError(
                    self.directory / _USER_KEY, 'would be lost', 'remove the directory by hand'
                )
            _refuse_trust(self.directory)
            self.machine_file.unlink()
            self.user_cert_file.unlink()
            durable.sync_directory(self.directory)

    def read_machine_key(self) -> EllipticCurvePrivateKey:
        """Return the key of this machine. Raises IdentityError, OSError."""
        return _read_key(self.machine_file)

    def _read_user_key(self) -> EllipticCurvePrivateKey:
        self.require_user_key()
        return _read_key(self.directory / _USER_KEY)

    def export_user(self, passphrase: str) -> bytes:
        """Return the key and the certificate of my user, encrypted (see `degu_rpc.peers.export`).

        Raises ValueError for a short passphrase, IdentityError where the key is not here.
        """
        salt = secrets.token_bytes(SALT_SIZE)
        return format_user(self._read_user_key(), self.user_cert, passphrase, salt)

    @classmethod
    def import_user(
        cls,
        directory: str | os.PathLike[str],
        exported: bytes,
        passphrase: str,
        now: datetime | None = None,
    ) -> Identity:
        """Let the machine in *directory* certify for the user whom `export_user` exported.

        A machine of that user gets the key; where there is no identity yet, one is made.

        Raises ValueError for a wrong passphrase or a damaged file, IdentityError if another user is
        there, OSError.
        """
        user_key, user_cert = parse_user(exported, passphrase)
        _check_user_key(user_key, user_cert)
        directory = Path(directory).resolve()
        make_directory(directory)
        with locked(directory):
            user_cert_file = directory / _USER_CERT
            if os.path.lexists(user_cert_file):
                found = pki.parse_user_cert(pki.parse_cert_pem(read_private(user_cert_file)))
                if found != pki.derive_user_id(user_key.public_key()):
                    raise IdentityError(
                        user_cert_file, f'is of another user, {found}', 'give another directory'
                    )
            key_file = directory / _USER_KEY
            if not os.path.lexists(key_file):
                durable.write_new(key_file, pki.format_key_pem(user_key))
            elif pki.format_key_pem(_read_key(key_file)) != pki.format_key_pem(user_key):
                raise IdentityError(key_file, 'is of another user', 'give another directory')
            if not os.path.lexists(directory / _MACHINE):
                _complete(directory, user_cert, now)
        return cls.open(directory)


def _refuse_existing(directory: Path) -> None:
    if os.path.lexists(directory / _MACHINE):
        raise FileExistsError(
            f'{directory} holds an identity already; open it with Identity.open(), or give another '
            'directory'
        )


def _refuse_trust(directory: Path) -> None:
    trust = directory / TRUST_DIRECTORY
    if trust.exists() and any(trust.iterdir()):
        raise IdentityError(trust, 'says whom somebody else trusts', 'move it away')


def _read_key(path: Path) -> EllipticCurvePrivateKey:
    try:
        return pki.parse_key_pem(read_private(path))
    except pki.CertificateError as error:
        raise IdentityError(path, f'is broken: {error}', _BACKUP) from error


def _ensure_user_key(directory: Path) -> EllipticCurvePrivateKey:
    key_file = directory / _USER_KEY
    if not os.path.lexists(key_file):
        # The key is written before its certificate: this one was lost, or another machine has it,
        # and making another user would be a silent change of identity.
        if os.path.lexists(directory / _USER_CERT):
            raise IdentityError(
                key_file,
                f'is missing, and {_USER_CERT} is there: a backup that is not whole, or a pairing '
                'that was interrupted',
                f'{_BACKUP}, join again, or remove {_USER_CERT} to begin anew',
            )
        durable.write_new(key_file, pki.format_key_pem(pki.build_key()))
    return _read_key(key_file)


def _complete(directory: Path, user_cert: bytes, now: datetime | None) -> None:
    """Write what is missing beside the key of the user."""
    user_key = _read_key(directory / _USER_KEY)
    if not os.path.lexists(directory / _USER_CERT):
        durable.write_new(directory / _USER_CERT, pki.format_cert_pem(user_cert))
    machine_key = pki.build_key()
    machine_cert = pki.build_machine_cert(user_key, machine_key.public_key(), read_clock(now))
    durable.write_new(directory / _MACHINE, _format_machine(machine_key, machine_cert))


def _format_machine(machine_key: EllipticCurvePrivateKey, machine_cert: bytes) -> bytes:
    return pki.format_key_pem(machine_key) + pki.format_cert_pem(machine_cert)


def _check_user_key(user_key: EllipticCurvePrivateKey, user_cert: bytes) -> None:
    if pki.derive_user_id(user_key.public_key()) != pki.parse_user_cert(user_cert):
        raise pki.CertificateError(pki.CertificateFault.KEY, 'it is not the one of the user')


def _check_machine(
    machine_key: EllipticCurvePrivateKey, machine_cert: bytes, user_cert: bytes
) -> pki.MachineIds:
    ids = pki.check_issued_by(machine_cert, user_cert)
    if pki.derive_machine_id(machine_key.public_key()) != ids.machine_id:
        raise pki.CertificateError(pki.CertificateFault.KEY, 'it is not the one of the machine')
    return ids
