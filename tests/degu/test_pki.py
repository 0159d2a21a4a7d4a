"""degu.pki: the profile, what it refuses and why, and OpenSSL's opinion in real handshakes."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import socket
import ssl
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from degu import pki
from degu.pki import CertificateError, CertificateFault, MachineIds
from degu.tls import build_client_sslctx, build_server_sslctx

if TYPE_CHECKING:
    from collections.abc import Iterator

_path = Path(__file__).parent.parent / 'certificates.py'
_spec = importlib.util.spec_from_file_location('certificates', _path)
assert _spec is not None
assert _spec.loader is not None
certificates = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(certificates)
extensions_of, name, names = certificates.extensions_of, certificates.name, certificates.names
reissue, usage = certificates.reissue, certificates.usage

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
IDS = st.text('abcdefghijklmnopqrstuvwxyz234567', min_size=48, max_size=48)


class Chain(NamedTuple):
    """A user and one machine of that user."""

    user_key: ec.EllipticCurvePrivateKey
    user_cert: bytes
    machine_key: ec.EllipticCurvePrivateKey
    machine_cert: bytes


def build_chain(now: datetime = NOW) -> Chain:
    user_key, machine_key = pki.build_key(), pki.build_key()
    return Chain(
        user_key,
        pki.build_user_cert(user_key, now),
        machine_key,
        pki.build_machine_cert(user_key, machine_key.public_key(), now),
    )


ALICE = build_chain()
BOB = build_chain()
ALICE_IDS = pki.parse_machine_cert(ALICE.machine_cert)
BOB_IDS = pki.parse_machine_cert(BOB.machine_cert)


def forge_leaf(**changes: Any) -> bytes:
    """A machine certificate that Alice really signed, but not by our profile."""
    return reissue(ALICE.machine_cert, ALICE.user_key, **changes)


def forge_user(**changes: Any) -> bytes:
    return reissue(ALICE.user_cert, ALICE.user_key, **changes)


# --- ids and URIs -------------------------------------------------------------------------------


def test_ids_are_personalized_hashes_of_the_public_key() -> None:
    public_key = ALICE.user_key.public_key()
    spki = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for derive, person in (
        (pki.derive_user_id, b'degu-user-1'),
        (pki.derive_machine_id, b'degu-mach-1'),
    ):
        digest = hashlib.blake2b(spki, digest_size=30, person=person).digest()
        found = derive(public_key)
        assert base64.b32decode(found.upper()) == digest
        assert len(found) == 48
        assert found == found.lower()
    assert pki.derive_user_id(public_key) != pki.derive_machine_id(public_key)


def test_ids_never_change() -> None:
    public_key = ec.derive_private_key(1, ec.SECP256R1()).public_key()
    assert pki.derive_user_id(public_key) == 'j6v4iokibgl7tb7htqxsk2mv3gw4qy4kde2qlt4qp422vsbh'
    assert pki.derive_machine_id(public_key) == 'wmn7hveudd3nl45y3o57iwma3kunhts6ibwmppitjtmbchdo'


@given(st.binary(min_size=30, max_size=30))
def test_every_hash_of_thirty_bytes_is_an_id(digest: bytes) -> None:
    text = base64.b32encode(digest).decode().lower()
    assert pki.check_id(text) == text


@pytest.mark.parametrize(
    'text',
    ['', 'a' * 47, 'a' * 49, 'A' * 48, 'a' * 47 + '1', 'a' * 47 + '=', 'a' * 48 + '\n', 'ä' * 48],
    ids=['empty', 'short', 'long', 'upper case', 'no base32', 'padding', 'line end', 'no ASCII'],
)
def test_anything_else_is_no_id(text: str) -> None:
    assert not pki.is_id(text)
    with pytest.raises(ValueError, match='an id is 48 base32 characters'):
        pki.check_id(text)


@given(IDS, IDS)
def test_parsing_a_formatted_uri_gives_its_ids(user_id: str, machine_id: str) -> None:
    ids = MachineIds(user_id, machine_id)
    assert pki.parse_uri(pki.format_uri(ids)) == ids


def assert_canonical_or_refused(text: str) -> None:
    try:
        ids = pki.parse_uri(text)
    except CertificateError:
        return
    assert pki.format_uri(ids) == text


@given(st.text())
def test_any_text_is_a_canonical_uri_or_refused(text: str) -> None:
    assert_canonical_or_refused(text)


@given(st.data())
def test_a_uri_with_one_character_changed_is_another_uri_or_refused(data: st.DataObject) -> None:
    uri = pki.format_uri(ALICE_IDS)
    at = data.draw(st.integers(0, len(uri)))
    changed = uri[:at] + data.draw(st.text(min_size=1, max_size=2)) + uri[at + 1 :]
    assert_canonical_or_refused(changed)


@pytest.mark.parametrize(
    'change',
    [
        lambda uri: uri + '\n',
        lambda uri: ' ' + uri,
        str.upper,
        lambda uri: uri.replace('degu:', 'DEGU:'),
        lambda uri: uri.replace(ALICE_IDS.user_id, ALICE_IDS.user_id.upper()),
        lambda uri: uri.replace(ALICE_IDS.machine_id, ALICE_IDS.machine_id.upper()),
        lambda uri: uri + '/',
        lambda uri: uri + '?',
        lambda uri: uri[:-1],
        lambda uri: uri[:-1] + '1',
        lambda uri: uri[:-1] + '=',
        lambda uri: uri.replace('machine', 'm%61chine'),
        lambda uri: uri.replace('degu:', 'degu://'),
        lambda uri: uri + uri,
    ],
)
def test_uri_has_one_spelling(change: Any) -> None:
    with pytest.raises(CertificateError) as info:
        pki.parse_uri(change(pki.format_uri(ALICE_IDS)))
    assert info.value.fault is CertificateFault.URI


# --- issuing ------------------------------------------------------------------------------------


def test_user_certificate_follows_the_profile() -> None:
    cert = x509.load_der_x509_certificate(ALICE.user_cert)
    key = ALICE.user_key.public_key()
    assert cert.version is x509.Version.v3
    assert cert.subject == cert.issuer == name(pki.derive_user_id(key))
    assert cert.not_valid_after_utc == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert b'\x18\x0f99991231235959Z' in ALICE.user_cert
    assert extensions_of(ALICE.user_cert) == {
        value.oid: (value, critical)
        for value, critical in (
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (usage(key_cert_sign=True, crl_sign=True), True),
            (x509.SubjectKeyIdentifier.from_public_key(key), False),
        )
    }


def test_machine_certificate_follows_the_profile() -> None:
    cert = x509.load_der_x509_certificate(ALICE.machine_cert)
    user_key, key = ALICE.user_key.public_key(), ALICE.machine_key.public_key()
    user_id, machine_id = pki.derive_user_id(user_key), pki.derive_machine_id(key)
    assert cert.version is x509.Version.v3
    assert cert.issuer == name(user_id)
    assert cert.subject == name(machine_id)
    assert cert.not_valid_before_utc == (NOW - 2 * DAY).replace(microsecond=0)
    assert cert.not_valid_after_utc == (NOW + 365 * DAY).replace(microsecond=0)
    assert extensions_of(ALICE.machine_cert) == {
        value.oid: (value, critical)
        for value, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (usage(digital_signature=True), True),
            (
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                False,
            ),
            (x509.SubjectKeyIdentifier.from_public_key(key), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(user_key), False),
            (names(f'degu:user/{user_id}/machine/{machine_id}'), False),
        )
    }


def test_the_clock_may_have_any_zone() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-11)))
    cert = x509.load_der_x509_certificate(pki.build_user_cert(ALICE.user_key, elsewhere))
    assert cert.not_valid_before_utc == (NOW - 2 * DAY).replace(microsecond=0)


def test_a_renewed_certificate_has_the_same_ids_and_another_serial() -> None:
    renewed = pki.build_machine_cert(
        ALICE.user_key, ALICE.machine_key.public_key(), NOW + 180 * DAY
    )
    assert pki.check_issued_by(renewed, ALICE.user_cert) == ALICE_IDS
    serials = {
        x509.load_der_x509_certificate(cert).serial_number
        for cert in (renewed, ALICE.machine_cert, ALICE.user_cert)
    }
    assert len(serials) == 3
    assert all(0 < serial < 2**128 for serial in serials)


# --- what the checks accept and refuse ----------------------------------------------------------


def test_a_machine_and_its_user_are_accepted() -> None:
    user_id = pki.derive_user_id(ALICE.user_key.public_key())
    machine_id = pki.derive_machine_id(ALICE.machine_key.public_key())
    assert pki.parse_user_cert(ALICE.user_cert) == user_id
    assert pki.parse_machine_cert(ALICE.machine_cert) == (user_id, machine_id)
    assert pki.check_issued_by(ALICE.machine_cert, ALICE.user_cert) == (user_id, machine_id)


F = CertificateFault
OTHER_NAME = x509.DNSName('degu.example')
ALICE_URI = pki.format_uri(ALICE_IDS)
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
BAD_LEAVES: list[tuple[str, CertificateFault, dict[str, Any]]] = [
    ('no URI', F.SUBJECT_ALT_NAME, {'drop': x509.SubjectAlternativeName}),
    ('empty SAN', F.SUBJECT_ALT_NAME, {'put': (names(), False)}),
    ('two URIs', F.SUBJECT_ALT_NAME, {'put': (names(ALICE_URI, ALICE_URI), False)}),
    (
        'a URI and a DNS name',
        F.SUBJECT_ALT_NAME,
        {
            'put': (
                x509.SubjectAlternativeName(
                    [x509.UniformResourceIdentifier(ALICE_URI), OTHER_NAME]
                ),
                False,
            )
        },
    ),
    (
        'a DNS name in place of the URI',
        F.SUBJECT_ALT_NAME,
        {'put': (x509.SubjectAlternativeName([OTHER_NAME]), False)},
    ),
    ('critical SAN', F.SUBJECT_ALT_NAME, {'put': (names(ALICE_URI), True)}),
    ('another URI', F.URI, {'put': (names('spiffe://example/alice'), False)}),
    ('a URI with a newline', F.URI, {'put': (names(ALICE_URI + '\n'), False)}),
    (
        'URI of another machine',
        F.MACHINE_ID,
        {'put': (names(pki.format_uri(ALICE_IDS._replace(machine_id=BOB_IDS.machine_id))), False)},
    ),
    ('key of another machine', F.MACHINE_ID, {'public_key': BOB.machine_key.public_key()}),
    (
        'URI of another user',
        F.ISSUER,
        {'put': (names(pki.format_uri(ALICE_IDS._replace(user_id=BOB_IDS.user_id))), False)},
    ),
    ('CN of another machine', F.SUBJECT, {'subject_name': name(BOB_IDS.machine_id)}),
    (
        'more than a CN',
        F.SUBJECT,
        {
            'subject_name': x509.Name(
                [
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, 'o'),
                    x509.NameAttribute(NameOID.COMMON_NAME, ALICE_IDS.machine_id),
                ]
            )
        },
    ),
    ('CN of another issuer', F.ISSUER, {'issuer_name': name('alice')}),
    ('no basicConstraints', F.BASIC_CONSTRAINTS, {'drop': x509.BasicConstraints}),
    (
        'a CA',
        F.BASIC_CONSTRAINTS,
        {'put': (x509.BasicConstraints(ca=True, path_length=0), True)},
    ),
    (
        'basicConstraints not critical',
        F.BASIC_CONSTRAINTS,
        {'put': (x509.BasicConstraints(ca=False, path_length=None), False)},
    ),
    ('no keyUsage', F.KEY_USAGE, {'drop': x509.KeyUsage}),
    (
        'keyCertSign',
        F.KEY_USAGE,
        {'put': (usage(digital_signature=True, key_cert_sign=True), True)},
    ),
    ('keyUsage not critical', F.KEY_USAGE, {'put': (usage(digital_signature=True), False)}),
    ('no EKU', F.EXTENDED_KEY_USAGE, {'drop': x509.ExtendedKeyUsage}),
    ('client only', F.EXTENDED_KEY_USAGE, {'put': (x509.ExtendedKeyUsage([CLIENT]), False)}),
    (
        'any EKU',
        F.EXTENDED_KEY_USAGE,
        {
            'put': (
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
                False,
            )
        },
    ),
    ('no SKI', F.SUBJECT_KEY_ID, {'drop': x509.SubjectKeyIdentifier}),
    ('wrong SKI', F.SUBJECT_KEY_ID, {'put': (x509.SubjectKeyIdentifier(bytes(20)), False)}),
    ('no AKI', F.AUTHORITY_KEY_ID, {'drop': x509.AuthorityKeyIdentifier}),
    (
        'AKI without a key id',
        F.AUTHORITY_KEY_ID,
        {'put': (x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(name('a'))], 1), False)},
    ),
    (
        'AKI of another key',
        F.AUTHORITY_KEY_ID,
        {'put': (x509.AuthorityKeyIdentifier(bytes(20), None, None), False)},
    ),
    ('one more extension', F.UNKNOWN_EXTENSION, {'put': (x509.OCSPNoCheck(), False)}),
    ('SHA-512', F.SIGNATURE_ALGORITHM, {'algorithm': hashes.SHA512()}),
    (
        'P-384 key',
        F.KEY,
        {'public_key': ec.generate_private_key(ec.SECP384R1()).public_key()},
    ),
    ('Ed25519 key', F.KEY, {'public_key': ed25519.Ed25519PrivateKey.generate().public_key()}),
    ('160-bit serial', F.MALFORMED, {'serial_number': 2**158}),
]


@pytest.mark.parametrize(
    ('fault', 'changes'), [row[1:] for row in BAD_LEAVES], ids=[row[0] for row in BAD_LEAVES]
)
def test_a_leaf_outside_the_profile_is_refused_with_the_reason(
    fault: CertificateFault, changes: dict[str, Any]
) -> None:
    with pytest.raises(CertificateError) as info:
        pki.check_issued_by(forge_leaf(**changes), ALICE.user_cert)
    assert info.value.fault is fault
    assert fault.value in str(info.value)


BAD_USERS: list[tuple[str, CertificateFault, dict[str, Any]]] = [
    ('not a CA', F.BASIC_CONSTRAINTS, {'put': (x509.BasicConstraints(False, None), True)}),
    ('pathlen 1', F.BASIC_CONSTRAINTS, {'put': (x509.BasicConstraints(True, 1), True)}),
    ('no pathlen', F.BASIC_CONSTRAINTS, {'put': (x509.BasicConstraints(True, None), True)}),
    (
        'not critical',
        F.BASIC_CONSTRAINTS,
        {'put': (x509.BasicConstraints(True, 0), False)},
    ),
    ('no cRLSign', F.KEY_USAGE, {'put': (usage(key_cert_sign=True), True)}),
    ('no SKI', F.SUBJECT_KEY_ID, {'drop': x509.SubjectKeyIdentifier}),
    (
        'name constraints',
        F.UNKNOWN_EXTENSION,
        {'put': (x509.NameConstraints([OTHER_NAME], None), True)},
    ),
    ('an expiry', F.VALIDITY, {'not_valid_after': NOW + DAY}),
    ('key of another user', F.SUBJECT, {'public_key': BOB.user_key.public_key()}),
    ('issued by another', F.ISSUER, {'issuer_name': name(BOB_IDS.user_id)}),
]


@pytest.mark.parametrize(
    ('fault', 'changes'), [row[1:] for row in BAD_USERS], ids=[row[0] for row in BAD_USERS]
)
def test_a_user_outside_the_profile_is_refused_with_the_reason(
    fault: CertificateFault, changes: dict[str, Any]
) -> None:
    cert = forge_user(**changes)
    for check in (pki.parse_user_cert, lambda der: pki.check_issued_by(ALICE.machine_cert, der)):
        with pytest.raises(CertificateError) as info:
            check(cert)
        assert info.value.fault is fault


def test_a_machine_s_certificate_names_a_key_of_its_issuer_whoever_that_is() -> None:
    nothing = x509.AuthorityKeyIdentifier(None, None, None)
    with pytest.raises(CertificateError) as info:
        pki.parse_machine_cert(forge_leaf(put=(nothing, False)))
    assert info.value.fault is F.AUTHORITY_KEY_ID


def test_a_user_certificate_signed_by_another_key_is_refused() -> None:
    with pytest.raises(CertificateError) as info:
        pki.parse_user_cert(reissue(ALICE.user_cert, BOB.user_key))
    assert info.value.fault is F.SIGNATURE


def test_a_machine_of_another_user_is_refused() -> None:
    with pytest.raises(CertificateError) as info:
        pki.check_issued_by(BOB.machine_cert, ALICE.user_cert)
    assert info.value.fault is F.USER_ID


def test_a_trusted_user_cannot_speak_for_another_user() -> None:
    # Bob signs a machine of his own as one of Alice's: everything in it is right but the signature.
    forged = reissue(
        pki.build_machine_cert(ALICE.user_key, BOB.machine_key.public_key(), NOW), BOB.user_key
    )
    assert pki.parse_machine_cert(forged).user_id == ALICE_IDS.user_id
    for user_cert, fault in ((ALICE.user_cert, F.SIGNATURE), (BOB.user_cert, F.USER_ID)):
        with pytest.raises(CertificateError) as info:
            pki.check_issued_by(forged, user_cert)
        assert info.value.fault is fault


def test_a_ca_with_the_name_of_another_user_is_refused() -> None:
    impostor = forge_user(
        public_key=BOB.user_key.public_key(),
        put=(x509.SubjectKeyIdentifier.from_public_key(BOB.user_key.public_key()), False),
    )
    impostor = reissue(impostor, BOB.user_key)
    with pytest.raises(CertificateError) as info:
        pki.parse_user_cert(impostor)
    assert info.value.fault is F.SUBJECT


def test_users_and_machines_are_not_interchangeable() -> None:
    with pytest.raises(CertificateError) as info:
        pki.parse_machine_cert(ALICE.user_cert)
    assert info.value.fault is F.SUBJECT_ALT_NAME
    with pytest.raises(CertificateError) as info:
        pki.parse_user_cert(ALICE.machine_cert)
    assert info.value.fault is F.VALIDITY


def test_a_machine_cannot_issue() -> None:
    with pytest.raises(CertificateError) as info:
        pki.check_issued_by(build_leaf_of_a_leaf(), ALICE.user_cert)
    assert info.value.fault is F.ISSUER


def test_no_certificate_is_refused() -> None:
    with pytest.raises(CertificateError) as info:
        pki.parse_machine_cert(None)
    assert info.value.fault is F.MISSING


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_malformed(data: bytes) -> None:
    for parse in (pki.parse_machine_cert, pki.parse_user_cert, pki.parse_cert_pem):
        with pytest.raises(CertificateError) as info:
            parse(data)
        assert info.value.fault is F.MALFORMED
    with pytest.raises(CertificateError) as info:
        pki.parse_key_pem(data)
    assert info.value.fault is F.KEY


@pytest.mark.parametrize('cut', [slice(None, -1), slice(1, None), slice(0)])
def test_a_cut_certificate_is_malformed(cut: slice) -> None:
    with pytest.raises(CertificateError) as info:
        pki.parse_machine_cert(ALICE.machine_cert[cut])
    assert info.value.fault is F.MALFORMED


def test_bytes_after_a_certificate_are_malformed() -> None:
    with pytest.raises(CertificateError) as info:
        pki.parse_machine_cert(ALICE.machine_cert + b'\0')
    assert info.value.fault is F.MALFORMED


@pytest.mark.parametrize('flip', [0x01, 0x20, 0x80, 0xFF])
def test_any_changed_byte_is_refused_or_changes_nothing(flip: int) -> None:
    # "Changes nothing": the count of unused bits in the signature is not itself signed.
    for at in range(len(ALICE.machine_cert)):
        changed = bytearray(ALICE.machine_cert)
        changed[at] ^= flip
        try:
            ids = pki.check_issued_by(bytes(changed), ALICE.user_cert)
        except CertificateError:
            continue
        assert ids == ALICE_IDS


@given(st.data())
def test_a_damaged_certificate_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([ALICE.machine_cert, ALICE.user_cert]))
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start, min(len(whole), start + 8)))
    damaged = whole[:start] + data.draw(st.binary(max_size=8)) + whole[stop:]
    try:
        if whole is ALICE.user_cert:
            assert pki.parse_user_cert(damaged) == ALICE_IDS.user_id
        else:
            assert pki.check_issued_by(damaged, ALICE.user_cert) == ALICE_IDS
    except CertificateError:
        return


def sequence(content: bytes) -> bytes:
    assert 255 < len(content) < 65536
    return b'\x30\x82' + len(content).to_bytes(2, 'big') + content


def forge_content(old: bytes, new: bytes) -> bytes:
    """Alice's machine's certificate with a part of its DER replaced, and signed again."""
    content = x509.load_der_x509_certificate(ALICE.machine_cert).tbs_certificate_bytes[4:]
    assert content.count(old) == 1
    tbs = sequence(content.replace(old, new))
    algorithm = bytes.fromhex('300a06082a8648ce3d040302')
    signature = b'\0' + ALICE.user_key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    return sequence(tbs + algorithm + b'\x03' + bytes([len(signature)]) + signature)


def test_a_certificate_of_version_1_is_malformed() -> None:
    # Only v3 has extensions; v1 is what leaves the version out. Source: RFC 5280 §4.1.2.1.
    with pytest.raises(CertificateError) as info:
        pki.check_issued_by(forge_content(bytes.fromhex('a003020102'), b''), ALICE.user_cert)
    assert info.value.fault is F.MALFORMED


@pytest.mark.parametrize('end', ['not_before', 'not_after'])
def test_a_time_in_the_year_0_is_malformed(end: str) -> None:
    # X.509 can say it and Python cannot.
    cert = x509.load_der_x509_certificate(ALICE.machine_cert)
    ends = [cert.not_valid_before_utc, cert.not_valid_after_utc]
    times = [b'\x17\x0d' + f'{moment:%y%m%d%H%M%SZ}'.encode() for moment in ends]
    changed = list(times)
    changed[end == 'not_after'] = b'\x18\x0f00000101000000Z'
    old, new = (bytes([0x30, len(b''.join(each))]) + b''.join(each) for each in (times, changed))
    forged = forge_content(old, new)
    for parse in (pki.parse_machine_cert, pki.parse_validity):
        with pytest.raises(CertificateError) as info:
            parse(forged)
        assert info.value.fault is F.MALFORMED


# --- PEM ----------------------------------------------------------------------------------------


def test_parsing_formatted_pem_is_identity() -> None:
    assert pki.parse_cert_pem(pki.format_cert_pem(ALICE.machine_cert)) == ALICE.machine_cert
    pem = pki.format_key_pem(ALICE.machine_key)
    assert pem.startswith(b'-----BEGIN PRIVATE KEY-----\n')
    assert pki.format_key_pem(pki.parse_key_pem(pem)) == pem


def test_two_certificates_in_one_pem_are_refused() -> None:
    pem = pki.format_cert_pem(ALICE.machine_cert) + pki.format_cert_pem(ALICE.user_cert)
    with pytest.raises(CertificateError) as info:
        pki.parse_cert_pem(pem)
    assert info.value.fault is F.MALFORMED


@pytest.mark.parametrize(
    'key',
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=['P-384', 'Ed25519', 'RSA'],
)
def test_only_p256_keys_are_taken(key: Any) -> None:
    with pytest.raises(CertificateError) as info:
        pki.parse_key_pem(pki.format_key_pem(key))
    assert info.value.fault is F.KEY


def test_an_encrypted_key_is_refused() -> None:
    pem = ALICE.user_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b'passphrase'),
    )
    with pytest.raises(CertificateError) as info:
        pki.parse_key_pem(pem)
    assert info.value.fault is F.KEY


# --- files --------------------------------------------------------------------------------------


@pytest.fixture(params=[0o000, 0o022, 0o777], ids='umask {:03o}'.format)
def umask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    # tmp_path comes first, so that it is made under the usual umask.
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures('umask')
def test_files_are_private_under_any_umask(tmp_path: Path) -> None:
    pki.write_key_file(tmp_path / 'key', ALICE.machine_key)
    pki.write_cert_file(tmp_path / 'crt', ALICE.machine_cert)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (tmp_path / 'key').read_bytes() == pki.format_key_pem(ALICE.machine_key)
    assert (tmp_path / 'crt').read_bytes() == pki.format_cert_pem(ALICE.machine_cert)


def test_an_existing_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / 'key'
    path.write_bytes(b'old')
    with pytest.raises(FileExistsError):
        pki.write_key_file(path, ALICE.machine_key)
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]


def test_a_dangling_link_is_never_followed(tmp_path: Path) -> None:
    path = tmp_path / 'key'
    path.symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(FileExistsError):
        pki.write_key_file(path, ALICE.machine_key)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    # A file size limit fails the write as a full disk does, in a process of its own.
    code = (
        'import resource, signal, sys, pathlib\n'
        'from degu import pki\n'
        'key = pki.build_key()\n'
        'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n'
        'try:\n'
        '    pki.write_key_file(pathlib.Path(sys.argv[1]), key)\n'
        'except OSError as error:\n'
        '    sys.exit(error.errno)\n'
    )
    done = subprocess.run(
        [sys.executable, '-B', '-c', code, str(tmp_path / 'key')], timeout=60, check=False
    )
    assert done.returncode == 27  # EFBIG
    assert list(tmp_path.iterdir()) == []


def test_importing_pki_does_not_import_cryptography() -> None:
    code = 'import sys, degu.pki; sys.exit("cryptography" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], timeout=60, check=True)


def test_a_name_of_a_type_that_does_not_go_with_it_is_malformed() -> None:
    """cryptography raises a TypeError for it."""
    cert = ALICE.machine_cert
    at = cert.index(b'\x0c\x30', cert.index(b'\x0c\x30') + 1)
    odd = cert[:at] + b'\x03\x30\x00' + cert[at + 3 :]
    for parse in (pki.parse_machine_cert, pki.parse_user_cert, pki.parse_validity):
        with pytest.raises(pki.CertificateError) as caught:
            parse(odd)
        assert caught.value.fault is pki.CertificateFault.MALFORMED


# --- OpenSSL, in real handshakes ----------------------------------------------------------------


class Side(NamedTuple):
    """How one side of a handshake ended: the certificate it saw, or the error it met."""

    peer_cert: bytes | None
    error: OSError | None


def build_config(directory: Path, cert: bytes, key: Any, ca: bytes) -> dict[str, Any]:
    directory.mkdir()
    pki.write_cert_file(directory / 'crt', cert)
    pki.write_key_file(directory / 'key', key)
    pki.write_cert_file(directory / 'ca', ca)
    return {
        f'{kind}_file': str(directory / end)
        for kind, end in (
            ('cert', 'crt'),
            ('key', 'key'),
            ('ca', 'ca'),
        )
    }


def shake(sock: socket.socket, sslctx: ssl.SSLContext, *, server_side: bool) -> Side:
    with sock:
        sock.settimeout(30)
        try:
            with sslctx.wrap_socket(sock, server_side=server_side) as tls:
                assert tls.version() == 'TLSv1.3'
                # In TLS 1.3 a client learns of its rejection at its first read.
                tls.sendall(b'x')
                assert tls.recv(1) == b'x'
                return Side(tls.getpeercert(True), None)
        except OSError as error:
            return Side(None, error)


def handshake(server_config: dict[str, Any], client_config: dict[str, Any]) -> tuple[Side, Side]:
    server_sslctx = build_server_sslctx(server_config)
    client_sslctx = build_client_sslctx({**client_config, 'check_hostname': False})
    for sslctx in (server_sslctx, client_sslctx):
        assert sslctx.verify_mode == ssl.CERT_REQUIRED
        assert sslctx.verify_flags & ssl.VERIFY_X509_STRICT
    left, right = socket.socketpair()
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(shake, left, server_sslctx, server_side=True)
        client = shake(right, client_sslctx, server_side=False)
        return server.result(), client


def test_a_machine_is_accepted_on_both_sides(tmp_path: Path) -> None:
    server, client = handshake(
        build_config(tmp_path / 'server', ALICE.machine_cert, ALICE.machine_key, BOB.user_cert),
        build_config(tmp_path / 'client', BOB.machine_cert, BOB.machine_key, ALICE.user_cert),
    )
    assert server == (BOB.machine_cert, None)
    assert client == (ALICE.machine_cert, None)


def build_leaf_of_a_leaf() -> bytes:
    # Alice's machine issues one more machine of Alice's, correct in names and key ids.
    key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(ALICE.machine_key.public_key())
    return reissue(
        pki.build_machine_cert(ALICE.user_key, BOB.machine_key.public_key(), NOW),
        ALICE.machine_key,
        issuer_name=name(ALICE_IDS.machine_id),
        put=(key_id, False),
    )


def test_a_certificate_from_a_slow_clock_is_accepted_at_once(tmp_path: Path) -> None:
    ahead = build_chain(NOW + timedelta(hours=47))
    config = build_config(tmp_path / 'x', ahead.machine_cert, ahead.machine_key, ahead.user_cert)
    server, client = handshake(config, config)
    assert (server.error, client.error) == (None, None)


# --- requests that are bound to a session -------------------------------------------------------


CHALLENGE = b'c' * 32


def test_a_request_with_a_challenge_proves_its_key() -> None:
    csr = pki.build_csr(ALICE.machine_key, CHALLENGE)
    assert pki.parse_csr(csr, CHALLENGE) == ALICE.machine_key.public_key()


@pytest.mark.parametrize('made_for', [None, b'd' * 32], ids=['nothing', 'another session'])
def test_a_request_for_another_session_proves_nothing_in_this_one(made_for: bytes | None) -> None:
    with pytest.raises(CertificateError) as caught:
        pki.parse_csr(pki.build_csr(ALICE.machine_key, made_for), CHALLENGE)
    assert caught.value.fault is CertificateFault.CHALLENGE


def test_a_challenge_cannot_be_put_into_a_request_that_was_made_for_another() -> None:
    csr = pki.build_csr(ALICE.machine_key, b'd' * 32)
    changed = csr.replace((b'd' * 32).hex().encode(), CHALLENGE.hex().encode())
    assert changed != csr
    with pytest.raises(CertificateError) as caught:
        pki.parse_csr(changed, CHALLENGE)
    assert caught.value.fault is CertificateFault.SIGNATURE


@given(st.binary(max_size=100))
def test_any_bytes_are_a_request_or_a_certificate_error(data: bytes) -> None:
    with pytest.raises(CertificateError):
        pki.parse_csr(data, CHALLENGE)
