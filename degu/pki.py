"""X.509 in our one profile: keys, ids, user (CA) and machine (leaf) certificates.

A user is a certificate authority, a machine has a certificate signed by its user, and the id of
either is a hash of its public key, so a certificate can be renewed without losing the id.

1. `build_key` makes an ECDSA P-256 key; `derive_user_id` and `derive_machine_id` name its public
   half.
2. `build_user_cert` and `build_machine_cert` issue certificates; the extensions of each profile are
   listed once (`_user_extensions`, `_machine_extensions`), for issuing and for checking alike.
3. `parse_user_cert` and `parse_machine_cert` check a certificate against its profile and give the
   ids; `check_issued_by` ties a machine to the user who issued it.
4. `build_csr` and `parse_csr` ask for a machine certificate, and prove possession of its key.
5. `format_*` and `parse_*` convert to and from PEM; `write_key_file` and `write_cert_file` make new
   files that appear whole or not at all.

Certificates are DER bytes everywhere, as `SSLSocket.getpeercert(True)` gives them; keys are objects
of `cryptography`, which is imported inside the functions that need it, because importing it costs
more memory and time than the rest of the core together. Everything but the writers at the end is
free of I/O, and the clock is an argument. There are no locks: what a check found is remembered in a
cache that threads may share.

What this does not do: it does not check validity periods or possession of the key of a leaf (the
TLS handshake does), decides nothing about trust, and revokes nothing.
"""

from __future__ import annotations

import base64
import enum
import functools
import hashlib
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from degu import durable
from degu.errors import DeguError

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

    Profile = list[tuple[x509.ExtensionType, bool]]  # (value, critical)

BACKDATED = timedelta(hours=48)  # a machine whose clock is behind must accept a new certificate
MACHINE_LIFETIME = timedelta(days=365)
NO_EXPIRY = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # Source: RFC 5280 §4.1.2.5

# 30 bytes are exactly 48 base32 characters: no padding, so each id has one spelling. Stricter than
# RFC 4648 and RFC 3986: no upper case, no percent-encoding.
_ID = '[a-z2-7]{48}'
_URI = re.compile(f'degu:user/({_ID})/machine/({_ID})')

# Certificates whose check is remembered, because it is pure and asked for again: that of a machine
# a second time for the same connection, that of a user at each connection of his machines.
_REMEMBERED = 256


class CertificateFault(enum.Enum):
    """The ways a certificate or key can fail OpenSSL's verification, or after it our profile."""

    MISSING = 'no certificate was presented'
    EXPIRED = 'the certificate has expired'
    NOT_YET_VALID = 'the certificate is not valid yet'
    UNKNOWN_ISSUER = 'the certificate was issued by nobody who is trusted here'
    NOT_A_CA = 'the certificate was issued by somebody who is no CA'
    SUB_CA = 'the certificate was issued by a sub-CA, not by the user'
    PURPOSE = 'the certificate is not for this use'
    HOST = 'the certificate is not that of the host'
    UNVERIFIED = 'OpenSSL does not accept the certificate'
    MALFORMED = 'not exactly one well-formed X.509 v3 certificate'
    KEY = 'the key is not a usable ECDSA P-256 key'
    SIGNATURE_ALGORITHM = 'the signature algorithm is not ecdsa-with-SHA256'
    VALIDITY = 'the CA certificate expires, but a user has no expiry'
    SUBJECT = 'the subject is not exactly CN=<id of its public key>'
    ISSUER = 'the issuer is not exactly CN=<user id>'
    BASIC_CONSTRAINTS = 'basicConstraints of the certificate'
    KEY_USAGE = 'keyUsage of the certificate'
    EXTENDED_KEY_USAGE = 'extendedKeyUsage of the certificate'
    SUBJECT_KEY_ID = 'subjectKeyIdentifier of the certificate'
    AUTHORITY_KEY_ID = 'authorityKeyIdentifier of the certificate'
    SUBJECT_ALT_NAME = 'subjectAltName of the certificate'
    UNKNOWN_EXTENSION = 'an extension that is not in the profile'
    URI = 'the URI is not degu:user/<user id>/machine/<machine id>'
    MACHINE_ID = 'the machine id is not the expected one'
    USER_ID = 'the user id is not the expected one'
    SIGNATURE = 'the signature was not made with the key of that user'
    CHALLENGE = 'the request was made for another session'


_FAULT_OF_EXTENSION = {
    '2.5.29.14': CertificateFault.SUBJECT_KEY_ID,
    '2.5.29.15': CertificateFault.KEY_USAGE,
    '2.5.29.17': CertificateFault.SUBJECT_ALT_NAME,
    '2.5.29.19': CertificateFault.BASIC_CONSTRAINTS,
    '2.5.29.35': CertificateFault.AUTHORITY_KEY_ID,
    '2.5.29.37': CertificateFault.EXTENDED_KEY_USAGE,
}


class CertificateError(DeguError, ValueError):
    """A certificate or key was refused: `fault` says which rule failed, `detail` how."""

    def __init__(self, fault: CertificateFault, detail: str = '') -> None:
        super().__init__(fault, detail)
        self.fault = fault
        self.detail = detail

    def __str__(self) -> str:
        return f'{self.fault.value}: {self.detail}' if self.detail else self.fault.value


class MachineIds(NamedTuple):
    """What a machine certificate says: which machine, and whose."""

    user_id: str
    machine_id: str


class Validity(NamedTuple):
    """The period in which a certificate is valid, both ends included."""

    not_before: datetime
    not_after: datetime

    @property
    def half_life(self) -> datetime:
        """The middle of the period: from then on a certificate is to be renewed."""
        return self.not_before + (self.not_after - self.not_before) / 2


class _User(NamedTuple):
    """A user's certificate that was checked."""

    cert: x509.Certificate
    user_id: str
    key_id: bytes


class _Machine(NamedTuple):
    """A machine's certificate that was checked, except for who issued it."""

    cert: x509.Certificate
    ids: MachineIds
    issuer_key_id: bytes


def build_key() -> EllipticCurvePrivateKey:
    """Make a new ECDSA P-256 private key."""
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def derive_user_id(public_key: EllipticCurvePublicKey) -> str:
    """Return the id of the user who holds the private half of *public_key*: 48 characters."""
    return _derive_id(public_key, b'degu-user-1')


def derive_machine_id(public_key: EllipticCurvePublicKey) -> str:
    """Return the id of the machine that holds the private half of *public_key*: 48 characters."""
    return _derive_id(public_key, b'degu-mach-1')


def _derive_id(public_key: EllipticCurvePublicKey, person: bytes) -> str:
    from cryptography.hazmat.primitives import serialization

    # Encoded anew, so that a key has one id however a certificate spelled its point.
    spki = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashlib.blake2b(spki, digest_size=30, person=person).digest()
    return base64.b32encode(digest).decode('ascii').lower()


def _derive_key_id(public_key: EllipticCurvePublicKey) -> bytes:
    from cryptography import x509

    return x509.SubjectKeyIdentifier.from_public_key(public_key).digest


def format_uri(ids: MachineIds) -> str:
    """Return the one URI of a machine certificate.

    >>> format_uri(MachineIds('a' * 48, 'b' * 48)).replace('a' * 48, 'U').replace('b' * 48, 'M')
    'degu:user/U/machine/M'
    """
    return f'degu:user/{ids.user_id}/machine/{ids.machine_id}'


def parse_uri(uri: str) -> MachineIds:
    """Return the ids in the URI of a machine certificate.

    Raises CertificateError (URI) for anything `format_uri` does not produce.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise CertificateError(CertificateFault.URI)
    return MachineIds(match[1], match[2])


def build_user_cert(user_key: EllipticCurvePrivateKey, now: datetime) -> bytes:
    """Issue the self-signed CA certificate of a user, without expiry; return DER.

    *now* is the issuer's clock; a datetime without a zone is local time.
    """
    public_key = user_key.public_key()
    user_id = derive_user_id(public_key)
    return _build_cert(
        signer=user_key,
        issuer=user_id,
        subject=user_id,
        public_key=public_key,
        profile=_user_extensions(public_key),
        valid=(now - BACKDATED, NO_EXPIRY),
    )


def build_machine_cert(
    user_key: EllipticCurvePrivateKey, machine_public_key: EllipticCurvePublicKey, now: datetime
) -> bytes:
    """Issue the certificate of a machine, signed by its user and valid for a year; return DER.

    *now* is the issuer's clock; a datetime without a zone is local time.
    """
    issuer_public_key = user_key.public_key()
    ids = MachineIds(derive_user_id(issuer_public_key), derive_machine_id(machine_public_key))
    issuer_key_id = _derive_key_id(issuer_public_key)
    return _build_cert(
        signer=user_key,
        issuer=ids.user_id,
        subject=ids.machine_id,
        public_key=machine_public_key,
        profile=_machine_extensions(machine_public_key, ids, issuer_key_id),
        valid=(now - BACKDATED, now + MACHINE_LIFETIME),
    )


def _build_cert(
    *,
    signer: EllipticCurvePrivateKey,
    issuer: str,
    subject: str,
    public_key: EllipticCurvePublicKey,
    profile: Profile,
    valid: tuple[datetime, datetime],
) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    not_before, not_after = (moment.astimezone(UTC) for moment in valid)
    builder = x509.CertificateBuilder(
        issuer_name=_common_name(issuer),
        subject_name=_common_name(subject),
        public_key=public_key,
        serial_number=1 + secrets.randbelow(2**128 - 1),
        not_valid_before=not_before,
        not_valid_after=not_after,
    )
    for value, critical in profile:
        builder = builder.add_extension(value, critical)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _common_name(common_name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _user_extensions(public_key: EllipticCurvePublicKey) -> Profile:
    from cryptography import x509

    return [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_key_usage('key_cert_sign', 'crl_sign'), True),
        (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
    ]


def _machine_extensions(
    public_key: EllipticCurvePublicKey, ids: MachineIds, issuer_key_id: bytes | None
) -> Profile:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage('digital_signature'), True),
        (
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            False,
        ),
        (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
        (x509.AuthorityKeyIdentifier(issuer_key_id, None, None), False),
        (x509.SubjectAlternativeName([x509.UniformResourceIdentifier(format_uri(ids))]), False),
    ]


def _key_usage(*used: str) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature='digital_signature' in used,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign='key_cert_sign' in used,
        crl_sign='crl_sign' in used,
        encipher_only=False,
        decipher_only=False,
    )


def parse_user_cert(cert_der: bytes) -> str:
    """Check that *cert_der* is the CA certificate of a user, by our profile; return the user id.

    Raises CertificateError.
    """
    return _load_user(cert_der).user_id


@functools.lru_cache(maxsize=_REMEMBERED)
def _load_user(cert_der: bytes) -> _User:
    cert, public_key = _load(cert_der)
    user_id = derive_user_id(public_key)
    if cert.not_valid_after_utc != NO_EXPIRY:
        raise CertificateError(CertificateFault.VALIDITY)
    if cert.subject != _common_name(user_id):
        raise CertificateError(CertificateFault.SUBJECT)
    if cert.issuer != cert.subject:
        raise CertificateError(CertificateFault.ISSUER)
    _check_extensions(cert, _user_extensions(public_key))
    _check_signature(cert, cert)
    return _User(cert, user_id, _derive_key_id(public_key))


def parse_machine_cert(cert_der: bytes | None) -> MachineIds:
    """Check that *cert_der* is a machine certificate, by our profile; return its ids.

    The machine id is proven (it is the hash of the key that the TLS handshake used); the user id is
    a claim until `check_issued_by` has seen the certificate of that user. None, as TLS gives it for
    a peer without a certificate, is refused too.

    Raises CertificateError.
    """
    return _load_machine(cert_der).ids


@functools.lru_cache(maxsize=_REMEMBERED)
def _load_machine(cert_der: bytes | None) -> _Machine:
    if cert_der is None:
        raise CertificateError(CertificateFault.MISSING)
    cert, public_key = _load(cert_der)
    ids = parse_uri(_find_uri(cert))
    if ids.machine_id != derive_machine_id(public_key):
        raise CertificateError(CertificateFault.MACHINE_ID, 'the URI does not name its own key')
    if cert.subject != _common_name(ids.machine_id):
        raise CertificateError(CertificateFault.SUBJECT)
    if cert.issuer != _common_name(ids.user_id):
        raise CertificateError(CertificateFault.ISSUER, 'not that of the user whom the URI names')
    issuer_key_id = _find_issuer_key_id(cert)
    _check_extensions(cert, _machine_extensions(public_key, ids, issuer_key_id))
    return _Machine(cert, ids, issuer_key_id)


def check_issued_by(cert_der: bytes, user_cert_der: bytes) -> MachineIds:
    """Check that a machine certificate was issued directly by a user; return its ids, both proven.

    Both certificates are checked against their profiles too, so this one call is the whole decision
    "is this leaf a machine of that user" apart from the validity period, which TLS checks.

    Raises CertificateError.
    """
    machine, user = _load_machine(cert_der), _load_user(user_cert_der)
    if machine.ids.user_id != user.user_id:
        raise CertificateError(CertificateFault.USER_ID, 'the URI names another user')
    if machine.issuer_key_id != user.key_id:
        raise CertificateError(CertificateFault.AUTHORITY_KEY_ID, 'it names another key')
    _check_signature(machine.cert, user.cert)
    return machine.ids


def _load(cert_der: bytes) -> tuple[x509.Certificate, EllipticCurvePublicKey]:
    from cryptography import x509
    from cryptography.x509.oid import SignatureAlgorithmOID

    try:
        cert = x509.load_der_x509_certificate(cert_der)
        # These are parsed when first asked for: ask here, so that nothing later meets a bad one.
        _ = (cert.subject, cert.issuer, cert.extensions)
        _ = (cert.not_valid_before_utc, cert.not_valid_after_utc)
    except (
        ValueError,
        KeyError,  # an unknown string type in a name, before cryptography 43
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        Warning,  # what cryptography only deprecates is refused here, under any warning filter
    ) as error:
        raise CertificateError(CertificateFault.MALFORMED) from error
    if cert.version is not x509.Version.v3:
        raise CertificateError(CertificateFault.MALFORMED, 'it is not version 3')
    if not 0 < cert.serial_number < 2**128:
        raise CertificateError(CertificateFault.MALFORMED, 'the serial number is out of range')
    if cert.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        raise CertificateError(CertificateFault.SIGNATURE_ALGORITHM)
    return cert, _find_public_key(cert)


def _find_public_key(
    holder: x509.Certificate | x509.CertificateSigningRequest,
) -> EllipticCurvePublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        public_key = holder.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError(CertificateFault.KEY) from error
    if not (
        isinstance(public_key, ec.EllipticCurvePublicKey)
        and isinstance(public_key.curve, ec.SECP256R1)
    ):
        raise CertificateError(CertificateFault.KEY)
    return public_key


def _find_uri(cert: x509.Certificate) -> str:
    from cryptography import x509

    try:
        names = list(cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        raise CertificateError(CertificateFault.SUBJECT_ALT_NAME, 'missing') from None
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise CertificateError(CertificateFault.SUBJECT_ALT_NAME, 'not exactly one URI')
    return names[0].value


def _find_issuer_key_id(cert: x509.Certificate) -> bytes:
    from cryptography import x509

    try:
        extension = cert.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound:
        raise CertificateError(CertificateFault.AUTHORITY_KEY_ID, 'missing') from None
    if extension.value.key_identifier is None:
        raise CertificateError(CertificateFault.AUTHORITY_KEY_ID, 'it names no key')
    return extension.value.key_identifier


def _check_extensions(cert: x509.Certificate, profile: Profile) -> None:
    found = {extension.oid: extension for extension in cert.extensions}
    for value, critical in profile:
        fault = _FAULT_OF_EXTENSION[value.oid.dotted_string]
        extension = found.pop(value.oid, None)
        if extension is None:
            raise CertificateError(fault, 'missing')
        if extension.critical is not critical:
            raise CertificateError(
                fault, 'must be critical' if critical else 'must not be critical'
            )
        if extension.value != value:
            raise CertificateError(fault, 'not as in the profile')
    # Stricter than RFC 5280 §4.2, which lets unknown extensions pass unless they are critical.
    for oid in found:
        raise CertificateError(CertificateFault.UNKNOWN_EXTENSION, oid.dotted_string)


def _check_signature(cert: x509.Certificate, issuer: x509.Certificate) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        cert.verify_directly_issued_by(issuer)
    except (ValueError, InvalidSignature) as error:
        raise CertificateError(CertificateFault.SIGNATURE) from error


def format_cert_pem(cert_der: bytes) -> bytes:
    """Return a certificate as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    return x509.load_der_x509_certificate(cert_der).public_bytes(serialization.Encoding.PEM)


def parse_cert_pem(pem: bytes) -> bytes:
    """Return the one certificate in *pem* as DER.

    Raises CertificateError (MALFORMED).
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        (cert,) = x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise CertificateError(CertificateFault.MALFORMED) from error
    return cert.public_bytes(serialization.Encoding.DER)


def parse_public_key(cert_der: bytes) -> EllipticCurvePublicKey:
    """Return the public key of a certificate. Raises CertificateError."""
    return _load(cert_der)[1]


def parse_validity(cert_der: bytes) -> Validity:
    """Return when a certificate becomes and ceases to be valid.

    Raises CertificateError (MALFORMED and what else makes it unreadable).
    """
    cert, _ = _load(cert_der)
    return Validity(cert.not_valid_before_utc, cert.not_valid_after_utc)


def check_valid(cert_der: bytes, now: datetime) -> None:
    """Check that a certificate is valid by our clock, *now*.

    Raises CertificateError (EXPIRED, NOT_YET_VALID, and what `parse_validity` raises).
    """
    not_before, not_after = parse_validity(cert_der)
    if not not_before <= now <= not_after:
        fault = CertificateFault.EXPIRED if now > not_after else CertificateFault.NOT_YET_VALID
        raise CertificateError(
            fault,
            f'it is valid from {not_before} to {not_after}, and our clock says {now}; set the '
            'clock that is wrong',
        )


def format_key_pem(key: EllipticCurvePrivateKey) -> bytes:
    """Return a private key as unencrypted PKCS #8 PEM: a secret, only for files of mode 0600."""
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def parse_key_pem(pem: bytes) -> EllipticCurvePrivateKey:
    """Return the unencrypted P-256 private key in *pem*.

    Raises CertificateError (KEY).
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Without the cause: a parser's message must never carry a piece of a key into a log.
        raise CertificateError(CertificateFault.KEY) from None
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)):
        raise CertificateError(CertificateFault.KEY)
    return key


def build_csr(key: EllipticCurvePrivateKey, challenge: bytes | None = None) -> bytes:
    """Make the request for a machine certificate, which proves that we have the key; return DER.

    With a *challenge*, something that only one session has, it proves that for this session alone.
    Source: RFC 7030 §3.5.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import AttributeOID

    builder = x509.CertificateSigningRequestBuilder(
        _common_name(derive_machine_id(key.public_key()))
    )
    if challenge is not None:
        value = challenge.hex().encode('ascii')
        builder = builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, value)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def parse_csr(csr_der: bytes, challenge: bytes | None = None) -> EllipticCurvePublicKey:
    """Return the key of a request for a machine certificate, whose possession it proves.

    With a *challenge* it must be the one that the request was made with. Nothing else in it counts:
    what a certificate says, its issuer decides.

    Raises CertificateError (MALFORMED, CHALLENGE, KEY, SIGNATURE_ALGORITHM, SIGNATURE).
    """
    from cryptography import x509
    from cryptography.x509.oid import AttributeOID, SignatureAlgorithmOID

    try:
        csr = x509.load_der_x509_csr(csr_der)
        algorithm = csr.signature_algorithm_oid
        attributes = {attribute.oid: attribute.value for attribute in csr.attributes}
    except (ValueError, x509.InvalidVersion) as error:
        raise CertificateError(CertificateFault.MALFORMED, 'of the request') from error
    if challenge is not None:
        found = attributes.get(AttributeOID.CHALLENGE_PASSWORD)
        if found != challenge.hex().encode('ascii'):
            raise CertificateError(CertificateFault.CHALLENGE)
    if algorithm != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        raise CertificateError(CertificateFault.SIGNATURE_ALGORITHM)
    public_key = _find_public_key(csr)
    if not csr.is_signature_valid:
        raise CertificateError(CertificateFault.SIGNATURE, 'of the request')
    return public_key


def write_key_file(path: Path, key: EllipticCurvePrivateKey) -> None:
    """Write a private key as PEM to a new file of mode 0600, whole or not at all.

    Raises FileExistsError (an existing file is never replaced) and any other OSError.
    """
    durable.write_new(path, format_key_pem(key))


def write_cert_file(path: Path, cert_der: bytes) -> None:
    """Write a certificate as PEM to a new file of mode 0600, whole or not at all.

    Raises FileExistsError (an existing file is never replaced) and any other OSError.
    """
    durable.write_new(path, format_cert_pem(cert_der))
