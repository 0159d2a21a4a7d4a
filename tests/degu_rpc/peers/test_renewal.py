"""degu_rpc.peers.renewal: new certificates and new keys, over a normal connection."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from degu import IPv4_LOOPBACK, pki
from degu.client import Client, SSLClient
from degu.rgi import Validator
from degu_rpc.errors import RenewalError
from degu_rpc.peers import Authenticated, Identity, IdentityError, MachineClient, TrustStore
from degu_rpc.peers.limits import MAX_CERTIFICATE_SIZE
from degu_rpc.peers.renewal import Certifier, renew_over, rotate_over

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = datetime.now(UTC)


@pytest.fixture
def issuer(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / 'issuer', NOW)


@pytest.fixture
def joined(tmp_path: Path, issuer: Identity) -> Identity:
    key = pki.build_key()
    cert = issuer.certify(key.public_key(), NOW - timedelta(days=300))
    return Identity.join(tmp_path / 'joined', key, cert, issuer.user_cert)


@pytest.fixture
def connect(serve: Callable[..., Any], issuer: Identity) -> Callable[[Identity], MachineClient]:
    """Give `connect(identity)`: a client of the issuer's server, as that identity."""
    trust = TrustStore(issuer)
    app = Validator(Authenticated(Certifier(trust), trust))
    server = serve(app, IPv4_LOOPBACK, trust.server_sslctx)

    def build(identity: Identity) -> MachineClient:
        return MachineClient(TrustStore(identity), server.address, issuer.machine_id)

    return build


def test_a_renewed_certificate_is_for_the_same_key(
    connect: Callable[[Identity], MachineClient], joined: Identity
) -> None:
    assert joined.needs_renewal(NOW)
    renewed = renew_over(connect(joined), '', joined)
    assert not renewed.needs_renewal(NOW)
    assert renewed.machine_id == joined.machine_id
    assert Identity.open(joined.directory) == renewed
    assert renew_over(connect(renewed), '', renewed).machine_id == joined.machine_id


def test_a_rotated_key_is_another_machine_and_the_former_is_denied(
    connect: Callable[[Identity], MachineClient], issuer: Identity, joined: Identity
) -> None:
    client = connect(joined)
    before = SSLClient(TrustStore(joined).client_sslctx(), client.address)
    rotated = rotate_over(client, '', joined)
    assert rotated.machine_id != joined.machine_id
    assert Identity.open(joined.directory) == rotated
    assert TrustStore(issuer).users()[issuer.user_id].denied == {joined.machine_id}
    with before.connect() as connection, pytest.raises(ConnectionError):
        connection.post('/renew')
    assert renew_over(client, '', rotated).machine_id == rotated.machine_id


def test_only_a_machine_of_the_same_user_is_certified(
    connect: Callable[[Identity], MachineClient], issuer: Identity, bob: Identity
) -> None:
    TrustStore(issuer).add(bob.user_cert, 'Bob', {'peer'}, how='test', now=NOW)
    trust = TrustStore(bob)
    former = trust.remember(issuer.user_id)
    trust.add(issuer.user_cert, 'Alice', {'peer'}, how='test', now=NOW, revive=True)
    try:
        with pytest.raises(RenewalError, match='403: this is for machines of the same user'):
            renew_over(connect(bob), '', bob)
    finally:
        trust.put_back(former)


@pytest.mark.parametrize('peer', ['local', 'nobody'])
def test_a_local_caller_is_not_certified(
    serve: Callable[..., Any], issuer: Identity, tmp_path: Path, peer: str
) -> None:
    app = Authenticated(Certifier(TrustStore(issuer)))
    server = serve(app, str(tmp_path / 'sock') if peer == 'local' else IPv4_LOOPBACK)
    with Client(server.address).connect() as connection:
        for path in ('/renew', '/rotate', '/retire'):
            response = connection.post(path)
            assert response.status == (403 if peer == 'local' else 401)
            response.body.read()


def test_requests_that_make_no_sense_are_refused(
    connect: Callable[[Identity], MachineClient], joined: Identity
) -> None:
    csr = pki.build_csr(pki.build_key())
    forged = csr[:-1] + bytes([csr[-1] ^ 1])
    with connect(joined).connect() as connection:
        for status, method, path, body in (
            (404, 'POST', '/', None),
            (404, 'POST', '/renew/x', None),
            (405, 'GET', '/renew', None),
            (411, 'POST', '/rotate', None),
            (413, 'POST', '/rotate', bytes(MAX_CERTIFICATE_SIZE + 1)),
            (400, 'POST', '/rotate', b''),
            (400, 'POST', '/rotate', csr[:-1]),
            (400, 'POST', '/rotate', csr + b'\0'),
            (400, 'POST', '/rotate', forged),
            (200, 'POST', '/rotate', csr),
        ):
            response = connection.request(method, path, {}, body)
            assert response.status == status, (path, body)
            if response.body is not None:
                response.body.read()


def test_a_request_proves_the_key_and_decides_nothing_else(
    connect: Callable[[Identity], MachineClient], issuer: Identity, joined: Identity
) -> None:
    key = pki.build_key()
    with connect(joined).connect() as connection:
        cert = connection.post('/rotate', {}, pki.build_csr(key)).body.read()
    ids = pki.check_issued_by(cert, issuer.user_cert)
    assert ids.machine_id == pki.derive_machine_id(key.public_key())


def test_a_certifier_needs_the_key_of_the_user(joined: Identity) -> None:
    with pytest.raises(IdentityError, match='cannot certify others'):
        Certifier(TrustStore(joined))


# --- an issuer that does not do its work ---------------------------------------------------------


@pytest.fixture
def connect_to(serve: Callable[..., Any], issuer: Identity, joined: Identity) -> Any:
    """Give `connect_to(app)`: a client, as the joined machine, of an issuer that runs `app`."""

    def build(app: Any) -> MachineClient:
        server = serve(app, IPv4_LOOPBACK, TrustStore(issuer).server_sslctx)
        return MachineClient(TrustStore(joined), server.address, issuer.machine_id)

    return build


@pytest.mark.parametrize('use', [renew_over, rotate_over])
@pytest.mark.parametrize(
    ('answer', 'error'),
    [
        ((200, 'OK', {}, b'garbage'), pki.CertificateError),
        ((200, 'OK', {}, None), pki.CertificateError),
        ((500, 'Internal Server Error', {}, b'\x1b[2J'), RenewalError),
        ((302, 'Found', {}, None), RenewalError),
    ],
    ids=['garbage', 'nothing', 'error', 'redirect'],
)
def test_an_answer_that_is_no_certificate_changes_nothing(
    connect_to: Any, joined: Identity, use: Any, answer: Any, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        use(connect_to(lambda c, r: answer), '', joined)
    assert '\x1b' not in str(caught.value)
    assert Identity.open(joined.directory) == joined


@pytest.mark.parametrize('use', [renew_over, rotate_over])
def test_a_certificate_for_another_key_changes_nothing(
    connect_to: Any, issuer: Identity, joined: Identity, use: Any
) -> None:
    client = connect_to(lambda c, r: (200, 'OK', {}, issuer.machine_cert))
    with pytest.raises(pki.CertificateError):
        use(client, '', joined)
    assert Identity.open(joined.directory) == joined


def test_a_certificate_that_is_not_valid_by_our_clock_is_not_kept(
    connect_to: Any, issuer: Identity, joined: Identity
) -> None:
    public_key = joined.read_machine_key().public_key()
    cert = issuer.certify(public_key, NOW - timedelta(days=400))
    with pytest.raises(pki.CertificateError, match='set the clock that is wrong'):
        renew_over(connect_to(lambda c, r: (200, 'OK', {}, cert)), '', joined)
    assert Identity.open(joined.directory) == joined


@pytest.mark.parametrize('how', ['error', 'end'])
def test_a_rotation_that_could_not_retire_the_former_id_says_what_to_do(
    connect_to: Any, issuer: Identity, joined: Identity, how: str
) -> None:
    def app(connection: Any, request: Any) -> Any:
        if request['path'] == ['rotate']:
            cert = issuer.certify(pki.parse_csr(request['body'].read()), NOW)
            return 200, 'OK', {} if how == 'error' else {'connection': 'close'}, cert
        return 500, 'Internal Server Error', {}, None

    with pytest.raises(RenewalError, match=f'deny machine {joined.machine_id}') as caught:
        rotate_over(connect_to(app), '', joined)
    assert caught.value.former_id == joined.machine_id
    assert Identity.open(joined.directory).machine_id != joined.machine_id
