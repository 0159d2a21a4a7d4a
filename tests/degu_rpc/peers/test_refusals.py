"""Bad certificates, over real TLS: each is refused, on either side, with words that say which.

Alice is who refuses. She trusts Bob, and every certificate but the stranger's is one that Bob made,
right but for the one thing that names its row. OpenSSL refuses some in the handshake, and says so
to the other side with an alert; the others pass it and fail the profile or the trust behind it.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import ssl
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from degu import IPv4_LOOPBACK, pki
from degu.client import SSLClient
from degu.errors import ClosedConnectionError, DeguError, PeerRejectedError
from degu.pki import CertificateError, CertificateFault
from degu.server import SSLServer
from degu.tls import UnverifiedCertificateError, build_client_sslctx, build_server_sslctx
from degu_rpc.peers import Authenticated, MachineClient, TrustedUser

if TYPE_CHECKING:
    from collections.abc import Callable

    from degu.net import Address

_path = Path(__file__).parents[2] / 'certificates.py'
_spec = importlib.util.spec_from_file_location('certificates', _path)
assert _spec is not None
assert _spec.loader is not None
certificates = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(certificates)
name, names, reissue, usage = (
    getattr(certificates, each) for each in ('name', 'names', 'reissue', 'usage')
)

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


class Home:
    """A user, one machine of that user, and the ids of both."""

    def __init__(self) -> None:
        self.user_key, self.key = pki.build_key(), pki.build_key()
        self.user_cert = pki.build_user_cert(self.user_key, NOW)
        self.cert = pki.build_machine_cert(self.user_key, self.key.public_key(), NOW)
        self.ids = pki.parse_machine_cert(self.cert)

    def forge(self, **changes: Any) -> bytes:
        """Issue the machine's certificate with one thing about it changed."""
        return reissue(self.cert, self.user_key, **changes)


ALICE, BOB, STRANGER = Home(), Home(), Home()
F = CertificateFault


def issued_by(key: Any) -> tuple[x509.AuthorityKeyIdentifier, bool]:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False


def key_id(key: Any) -> tuple[x509.SubjectKeyIdentifier, bool]:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False


def other_extension(*, critical: bool) -> tuple[x509.UnrecognizedExtension, bool]:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier('1.2.3.4'), b'\5\0'), critical


def with_key(key: Any) -> bytes:
    """Certify another kind of key for Bob's machine."""
    return BOB.forge(public_key=key.public_key(), put=key_id(key))


def by_sub_ca(above: Home) -> list[bytes]:
    """Issue Bob's certificate by a CA below a user, which the user's pathlen of 0 forbids."""
    key = pki.build_key()
    sub_ca = reissue(
        above.user_cert,
        above.user_key,
        subject_name=name('sub-CA'),
        public_key=key.public_key(),
        put=key_id(key),
    )
    sub_ca = reissue(sub_ca, above.user_key, put=issued_by(above.user_key))
    return [reissue(BOB.cert, key, issuer_name=name('sub-CA'), put=issued_by(key)), sub_ca]


def by_leaf() -> list[bytes]:
    """Let Bob's machine issue one more machine of Bob's, right in names and key ids."""
    cert = pki.build_machine_cert(BOB.user_key, STRANGER.key.public_key(), NOW)
    leaf = reissue(cert, BOB.key, issuer_name=name(BOB.ids.machine_id), put=issued_by(BOB.key))
    return [leaf, BOB.cert]


RSA_KEY = rsa.generate_private_key(65537, 2048)
P384_KEY = ec.generate_private_key(ec.SECP384R1())
ED25519_KEY = ed25519.Ed25519PrivateKey.generate()
URI = pki.format_uri(BOB.ids)
EKU = ExtendedKeyUsageOID


class Case(NamedTuple):
    """What is presented, and what is said of it."""

    name: str
    chain: bytes | list[bytes]
    fault: CertificateFault
    alert: str | None = None  # of OpenSSL; None for what passes the handshake
    key: Any = BOB.key
    of_server: tuple[CertificateFault, str | None] | None = None  # where a server's differs


CASES = [
    # --- refused by OpenSSL
    Case("stranger's CA", STRANGER.cert, F.UNKNOWN_ISSUER, 'unknown_ca', STRANGER.key),
    Case(
        "stranger's CA, which is sent along",
        [STRANGER.cert, STRANGER.user_cert],
        F.UNKNOWN_ISSUER,
        'unknown_ca',
        STRANGER.key,
    ),
    Case(
        "stranger's sub-CA, which is sent along",
        by_sub_ca(STRANGER),
        F.UNKNOWN_ISSUER,
        'unknown_ca',
    ),
    Case(
        'self-signed',
        reissue(BOB.cert, BOB.key, issuer_name=name(BOB.ids.machine_id), put=issued_by(BOB.key)),
        F.UNKNOWN_ISSUER,
        'unknown_ca',
    ),
    Case(
        'CA of the same name but another key',
        reissue(BOB.cert, STRANGER.user_key, put=issued_by(STRANGER.user_key)),
        F.UNKNOWN_ISSUER,
        'unknown_ca',
    ),
    Case(
        'CA of the same name and key id but another key',
        reissue(BOB.cert, STRANGER.user_key),
        F.SIGNATURE,
        'decrypt_error',
    ),
    Case('leaf used as CA', by_leaf(), F.NOT_A_CA, 'unknown_ca', STRANGER.key),
    Case('sub-CA', by_sub_ca(BOB), F.SUB_CA, 'unknown_ca'),
    Case(
        'expired',
        pki.build_machine_cert(BOB.user_key, BOB.key.public_key(), NOW - 366 * DAY),
        F.EXPIRED,
        'certificate_expired',
    ),
    Case(
        'not yet valid',
        pki.build_machine_cert(BOB.user_key, BOB.key.public_key(), NOW + 3 * DAY),
        F.NOT_YET_VALID,
        'bad_certificate',
    ),
    Case(
        'missing AKI',
        BOB.forge(drop=x509.AuthorityKeyIdentifier),
        F.AUTHORITY_KEY_ID,
        'certificate_unknown',
    ),
    Case(
        'wrong EKU',
        BOB.forge(put=(x509.ExtendedKeyUsage([EKU.CODE_SIGNING]), False)),
        F.PURPOSE,
        'unsupported_certificate',
    ),
    Case('CA certificate', BOB.user_cert, F.PURPOSE, 'unsupported_certificate', BOB.user_key),
    Case(
        'EKU of a server only',
        BOB.forge(put=(x509.ExtendedKeyUsage([EKU.SERVER_AUTH]), False)),
        F.PURPOSE,
        'unsupported_certificate',
        of_server=(F.EXTENDED_KEY_USAGE, None),
    ),
    Case(
        'keyUsage of a CA',
        BOB.forge(put=(usage(digital_signature=True, key_cert_sign=True), True)),
        F.UNVERIFIED,
        'certificate_unknown',
    ),
    Case(
        'unknown critical extension',
        BOB.forge(put=other_extension(critical=True)),
        F.UNKNOWN_EXTENSION,
        'certificate_unknown',
    ),
    # --- refused by the profile
    Case(
        'EKU of a client only',
        BOB.forge(put=(x509.ExtendedKeyUsage([EKU.CLIENT_AUTH]), False)),
        F.EXTENDED_KEY_USAGE,
        of_server=(F.PURPOSE, 'unsupported_certificate'),
    ),
    Case('no EKU', BOB.forge(drop=x509.ExtendedKeyUsage), F.EXTENDED_KEY_USAGE),
    Case('no URI', BOB.forge(drop=x509.SubjectAlternativeName), F.SUBJECT_ALT_NAME),
    Case('two URIs', BOB.forge(put=(names(URI, URI), False)), F.SUBJECT_ALT_NAME),
    Case(
        'DNS name besides the URI',
        BOB.forge(
            put=(
                x509.SubjectAlternativeName(
                    [x509.UniformResourceIdentifier(URI), x509.DNSName('localhost')]
                ),
                False,
            )
        ),
        F.SUBJECT_ALT_NAME,
    ),
    Case(
        'URI of another user',
        BOB.forge(put=(names(pki.format_uri(BOB.ids._replace(user_id=ALICE.ids.user_id))), False)),
        F.ISSUER,
    ),
    Case(
        'URI of another machine',
        BOB.forge(
            put=(names(pki.format_uri(BOB.ids._replace(machine_id=ALICE.ids.machine_id))), False)
        ),
        F.MACHINE_ID,
    ),
    Case('URI of another scheme', BOB.forge(put=(names('spiffe://bob'), False)), F.URI),
    Case('CN that is not the id', BOB.forge(subject_name=name('bob')), F.SUBJECT),
    Case('no SKI', BOB.forge(drop=x509.SubjectKeyIdentifier), F.SUBJECT_KEY_ID),
    Case('no basicConstraints', BOB.forge(drop=x509.BasicConstraints), F.BASIC_CONSTRAINTS),
    Case('no keyUsage', BOB.forge(drop=x509.KeyUsage), F.KEY_USAGE),
    Case(
        'unknown extension',
        BOB.forge(put=other_extension(critical=False)),
        F.UNKNOWN_EXTENSION,
    ),
    Case('RSA key', with_key(RSA_KEY), F.KEY, key=RSA_KEY),
    Case('P-384 key', with_key(P384_KEY), F.KEY, key=P384_KEY),
    Case('Ed25519 key', with_key(ED25519_KEY), F.KEY, key=ED25519_KEY),
    Case('SHA-512', BOB.forge(algorithm=hashes.SHA512()), F.SIGNATURE_ALGORITHM),
    Case('serial number too long', BOB.forge(serial_number=2**158), F.MALFORMED),
]
each_case = pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)


def answer(connection: dict[str, Any], request: dict[str, Any]) -> Any:
    return 200, 'OK', {}, b'you are in'


def build_config(directory: Path, chain: bytes | list[bytes], key: Any) -> dict[str, Any]:
    """Build the TLS config of who presents a chain, and trusts Alice and Bob."""
    directory.mkdir()
    certs = [chain] if isinstance(chain, bytes) else chain
    (directory / 'chain').write_bytes(b''.join(map(pki.format_cert_pem, certs)))
    pki.write_key_file(directory / 'key', key)
    return {
        'cert_file': str(directory / 'chain'),
        'key_file': str(directory / 'key'),
        'ca_data': b''.join(pki.format_cert_pem(h.user_cert) for h in (ALICE, BOB)).decode(),
    }


@pytest.fixture
def alice_config(tmp_path: Path) -> dict[str, Any]:
    return build_config(tmp_path / 'alice', ALICE.cert, ALICE.key)


def trust(*homes: Home) -> dict[str, TrustedUser]:
    return {
        home.ids.user_id: TrustedUser(
            home.ids.user_id, home.user_cert, 'somebody', frozenset({'peer'})
        )
        for home in homes
    }


class Attempt(NamedTuple):
    """What came of a client's request: the error it met, what the server's side logged."""

    error: Exception | None
    log: str


def call(
    server_config: dict[str, Any],
    client: Callable[[Address], SSLClient],
    caplog: pytest.LogCaptureFixture,
    app: Any = answer,
) -> Attempt:
    """Let a client make one request; the log is complete, because the server has ended."""
    error = None
    with (
        caplog.at_level(logging.INFO),
        SSLServer(build_server_sslctx(server_config), IPv4_LOOPBACK, app) as server,
    ):
        try:
            with client(server.address).connect() as conn:
                assert conn.get('/').status == 200
        except (DeguError, OSError) as met:
            error = met
    return Attempt(error, '\n'.join(record.getMessage() for record in caplog.records))


def call_alice(
    alice_config: dict[str, Any],
    config: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    users: dict[str, TrustedUser] | None = None,
) -> Attempt:
    """Call Alice's server as a client with *config*; who is refused never reaches the app."""
    reached = []

    def app(connection: dict[str, Any], request: dict[str, Any]) -> Any:
        reached.append(connection['_peer'].machine_id)
        return answer(connection, request)

    sslctx = build_client_sslctx({**config, 'check_hostname': False})
    trusted = users or trust(ALICE, BOB)
    guarded = Authenticated(app, SimpleNamespace(users=lambda: trusted))
    attempt = call(alice_config, partial(SSLClient, sslctx), caplog, guarded)
    assert reached == ([BOB.ids.machine_id] if attempt.error is None else [])
    return attempt


@each_case
def test_a_server_refuses_it_and_both_sides_say_why(
    tmp_path: Path, alice_config: dict[str, Any], case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    config = build_config(tmp_path / 'bad', case.chain, case.key)
    error, log = call_alice(alice_config, config, caplog)
    assert isinstance(error, PeerRejectedError)
    assert error.alert == case.alert
    assert (case.alert or 'its log says why') in str(error)
    assert case.fault.value in log


class Trusting:
    """A store that trusts Bob, as the context does."""

    def __init__(self, sslctx: ssl.SSLContext) -> None:
        self.sslctx = sslctx

    def client_sslctx(self) -> ssl.SSLContext:
        return self.sslctx

    def users(self) -> dict[str, TrustedUser]:
        return trust(BOB)


def build_client(sslctx: ssl.SSLContext, home: Home) -> Callable[[Address], MachineClient]:
    return lambda address: MachineClient(Trusting(sslctx), address, home.ids.machine_id)


@each_case
def test_a_client_refuses_it_and_both_sides_say_why(
    tmp_path: Path, alice_config: dict[str, Any], case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    fault, alert = case.of_server or (case.fault, case.alert)
    sslctx = build_client_sslctx({**alice_config, 'check_hostname': False})
    config = build_config(tmp_path / 'bad', case.chain, case.key)
    error, log = call(config, build_client(sslctx, BOB), caplog)
    assert isinstance(error, CertificateError)
    assert error.fault is fault
    assert fault.value in str(error)
    assert isinstance(error, UnverifiedCertificateError) is (alert is not None)
    if alert is not None:
        assert re.search(rf'the peer refused us: .* \(TLS alert {alert}\)', log)


def test_every_row_is_refused_for_its_one_change_alone(
    tmp_path: Path, alice_config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = build_config(tmp_path / 'good', BOB.forge(), BOB.key)
    assert call_alice(alice_config, config, caplog).error is None
    sslctx = build_client_sslctx({**alice_config, 'check_hostname': False})
    assert (
        call(
            config,
            lambda address: MachineClient(Trusting(sslctx), address, BOB.ids.machine_id),
            caplog,
        ).error
        is None
    )


@pytest.mark.parametrize('extra', [BOB, STRANGER], ids=['of its user', 'of a stranger'])
def test_one_more_ca_in_the_chain_changes_nothing(
    tmp_path: Path, alice_config: dict[str, Any], extra: Home, caplog: pytest.LogCaptureFixture
) -> None:
    config = build_config(tmp_path / 'long', [BOB.cert, extra.user_cert], BOB.key)
    assert call_alice(alice_config, config, caplog).error is None


def test_no_certificate_is_refused_and_both_sides_say_so(
    alice_config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    error, log = call_alice(alice_config, {'ca_data': alice_config['ca_data']}, caplog)
    assert isinstance(error, PeerRejectedError)
    assert error.alert == 'certificate_required'
    assert 'give the context a cert_file and a key_file' in str(error)
    assert F.MISSING.value in log


def test_another_machine_of_a_trusted_user_is_not_the_one_that_was_meant(
    tmp_path: Path, alice_config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = build_config(tmp_path / 'bob', BOB.cert, BOB.key)
    sslctx = build_client_sslctx({**alice_config, 'check_hostname': False})
    error, _ = call(
        config,
        lambda address: MachineClient(Trusting(sslctx), address, STRANGER.ids.machine_id),
        caplog,
    )
    assert isinstance(error, CertificateError)
    assert error.fault is F.MACHINE_ID
    assert BOB.ids.machine_id in str(error)
    assert STRANGER.ids.machine_id in str(error)


# --- the clock ----------------------------------------------------------------------------------

CLOCK_CASES = [case for case in CASES if case.fault in (F.EXPIRED, F.NOT_YET_VALID)]


@pytest.mark.parametrize('case', CLOCK_CASES, ids=lambda case: case.name)
def test_who_refuses_for_the_time_says_what_its_clock_says(
    tmp_path: Path, alice_config: dict[str, Any], case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    sslctx = build_client_sslctx({**alice_config, 'check_hostname': False})
    config = build_config(tmp_path / 'bad', case.chain, case.key)
    by_client, _ = call(config, partial(SSLClient, sslctx), caplog)
    _, by_server = call_alice(alice_config, config, caplog)
    for said in (str(by_client), by_server):
        found = re.search(
            rf'{case.fault.value}: our clock says ([-0-9]+ [:0-9]+) UTC; set our clock if', said
        )
        assert found is not None
        clock = datetime.fromisoformat(found[1]).replace(tzinfo=UTC)
        assert NOW - timedelta(seconds=1) <= clock <= datetime.now(UTC)


@pytest.mark.parametrize('case', CLOCK_CASES, ids=lambda case: case.name)
def test_who_is_refused_for_the_time_is_told_of_the_other_clock(
    tmp_path: Path, alice_config: dict[str, Any], case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    config = build_config(tmp_path / 'bad', case.chain, case.key)
    error, _ = call_alice(alice_config, config, caplog)
    assert 'by its clock' in str(error)


# --- whom we trust no longer: OpenSSL still does, until a context is made anew -------------------

WITHOUT_BOB = {
    'removed user': (
        trust(ALICE),
        f'belongs to user {BOB.ids.user_id}, who is not trusted here',
    ),
    'denied machine': (
        {
            user_id: user._replace(denied=frozenset({BOB.ids.machine_id}))
            for user_id, user in trust(ALICE, BOB).items()
        },
        f'machine {BOB.ids.machine_id} of user {BOB.ids.user_id} is denied here',
    ),
}
each_without_bob = pytest.mark.parametrize(
    ('users', 'words'), WITHOUT_BOB.values(), ids=WITHOUT_BOB.keys()
)


@each_without_bob
def test_whom_we_trust_no_longer_is_refused_by_id(
    tmp_path: Path,
    alice_config: dict[str, Any],
    users: dict[str, TrustedUser],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = build_config(tmp_path / 'bob', BOB.cert, BOB.key)
    error, log = call_alice(alice_config, config, caplog, users)
    assert isinstance(error, PeerRejectedError)
    assert error.alert is None
    assert 'its log says why' in str(error)
    assert words in log


@each_without_bob
def test_the_next_request_of_whom_we_trust_no_longer_is_refused_with_the_reason(
    tmp_path: Path,
    alice_config: dict[str, Any],
    users: dict[str, TrustedUser],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trusted = trust(ALICE, BOB)
    app = Authenticated(answer, SimpleNamespace(users=lambda: trusted))
    config = build_config(tmp_path / 'bob', BOB.cert, BOB.key)
    sslctx = build_client_sslctx({**config, 'check_hostname': False})
    with (
        SSLServer(build_server_sslctx(alice_config), IPv4_LOOPBACK, app) as server,
        SSLClient(sslctx, server.address).connect() as conn,
    ):
        assert conn.get('/').body.read() == b'you are in'
        trusted = users
        response = conn.get('/')
        assert response.status == 403
        assert words in response.body.read().decode()
        with pytest.raises(ClosedConnectionError):
            conn.get('/')
    assert words in caplog.text
