"""What a refused certificate is called, on the side that refuses and on the other one."""

from __future__ import annotations

import logging
import ssl
from datetime import UTC, datetime, timedelta, timezone

import pytest

from degu import IPv4_LOOPBACK, pki
from degu.client import SSLClient, build_client_sslctx
from degu.errors import DeguError, PeerRejectedError
from degu.misc import TempPKI
from degu.pki import CertificateError, CertificateFault
from degu.server import SSLServer, build_server_sslctx
from degu.tls import UnverifiedCertificateError, find_refusal, find_rejection

NOON = datetime(2030, 6, 1, 12, 30, 15, 999, tzinfo=UTC)


def ok(connection, request):
    return 200, 'OK', {}, None


def build_verdict(code, message):
    """Build what the ssl module raises; only OpenSSL itself sets the two."""
    error = ssl.SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]')
    error.verify_code, error.verify_message = code, message
    return error


def build_alert(reason):
    error = ssl.SSLError(1, f'[SSL: {reason}]')
    error.reason = reason
    return error


@pytest.fixture
def server(serve, temp_pki):
    return serve(ok, sslctx=build_server_sslctx(temp_pki.get_server_config()))


def refuse_server(server, config, headers=None):
    """Return the error of a client that refuses the server's certificate."""
    client = SSLClient(build_client_sslctx(config), server.address, headers)
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        client.connect()
    return caught.value


def test_a_refusal_is_a_certificate_error_and_still_the_ssl_module_s(server, temp_pki):
    config = temp_pki.get_client_config()
    error = refuse_server(server, config | {'ca_file': temp_pki.get_server_config()['ca_file']})
    assert type(error) is UnverifiedCertificateError
    assert isinstance(error, CertificateError)
    assert error.fault is CertificateFault.UNKNOWN_ISSUER
    assert str(error) == f'{error.fault.value}: {error.detail}'
    cause = error.__cause__
    assert type(cause) is ssl.SSLCertVerificationError
    for name in ('args', 'errno', 'library', 'reason', 'verify_code', 'verify_message'):
        assert getattr(error, name) == getattr(cause, name)
    assert error.library == 'SSL'
    assert error.verify_code == 20


def test_a_server_learns_that_it_was_refused(temp_pki, caplog):
    caplog.set_level(logging.INFO, 'degu.server')
    config = temp_pki.get_client_config()
    with SSLServer(build_server_sslctx(temp_pki.get_server_config()), IPv4_LOOPBACK, ok) as server:
        refuse_server(server, config | {'ca_file': temp_pki.get_server_config()['ca_file']})
    assert 'the peer refused us: it trusts nobody who issued ours' in caplog.text
    assert 'TLS alert unknown_ca' in caplog.text


def test_a_server_says_whom_it_refuses_and_why(temp_pki, caplog):
    caplog.set_level(logging.INFO, 'degu.server')
    with TempPKI() as stranger:
        config = stranger.get_client_config() | {'ca_file': temp_pki.get_client_config()['ca_file']}
        client_sslctx = build_client_sslctx(config)
    with (
        SSLServer(build_server_sslctx(temp_pki.get_server_config()), IPv4_LOOPBACK, ok) as server,
        SSLClient(client_sslctx, server.address).connect() as conn,
        pytest.raises(PeerRejectedError) as caught,
    ):
        conn.get('/')
    assert caught.value.alert == 'unknown_ca'
    assert 'it must trust our user (CA) first' in str(caught.value)
    (line,) = [record.getMessage() for record in caplog.records]
    assert ' 0 requests in ' in line
    assert CertificateFault.UNKNOWN_ISSUER.value in line


@pytest.mark.parametrize(
    ('headers', 'code'), [({'host': 'device.example'}, 62), (None, 64)], ids=['name', 'address']
)
def test_a_server_of_another_name_is_refused_with_both(server, temp_pki, headers, code):
    config = temp_pki.get_client_config() | {'check_hostname': True}
    error = refuse_server(server, config, headers)
    assert error.fault is CertificateFault.HOST
    assert error.verify_code == code
    assert f"certificate is not valid for '{headers['host'] if headers else '127.0.0.1'}'; " in str(
        error
    )


@pytest.mark.parametrize(
    ('code', 'fault'),
    [(9, CertificateFault.NOT_YET_VALID), (10, CertificateFault.EXPIRED)],
    ids=['not yet valid', 'expired'],
)
def test_the_clock_is_said_in_utc(code, fault):
    now = NOON.astimezone(timezone(timedelta(hours=-11)))
    error = UnverifiedCertificateError(build_verdict(code, 'the time'), now)
    assert error.fault is fault
    assert 'our clock says 2030-06-01 12:30:15 UTC; set our clock if it is wrong' in str(error)


def test_a_verdict_without_a_name_of_ours_keeps_openssl_s_words():
    error = UnverifiedCertificateError(build_verdict(22, 'certificate chain too long'), NOON)
    assert error.fault is CertificateFault.UNVERIFIED
    assert 'certificate chain too long' in str(error)


def test_no_certificate_is_one_of_the_faults():
    error = find_refusal(build_alert('PEER_DID_NOT_RETURN_A_CERTIFICATE'), NOON)
    assert isinstance(error, CertificateError)
    assert error.fault is CertificateFault.MISSING


# The two that OpenSSL's names begin with.
@pytest.mark.parametrize('reason', ['TLSV13_ALERT_UNKNOWN_CA', 'SSLV3_ALERT_UNKNOWN_CA'])
def test_an_alert_is_known_whatever_openssl_calls_it(reason):
    for find in (find_rejection, lambda error: find_refusal(error, NOON)):
        error = find(build_alert(reason))
        assert isinstance(error, PeerRejectedError)
        assert error.alert == 'unknown_ca'


@pytest.mark.parametrize(
    'error',
    [
        build_alert('TLSV1_ALERT_INTERNAL_ERROR'),
        build_alert('NO_SHARED_CIPHER'),
        build_alert('UNKNOWN_CA'),
        ssl.SSLEOFError(8, 'EOF occurred'),
        ConnectionResetError(),
    ],
    ids=repr,
)
def test_what_is_not_about_a_certificate_is_nothing_of_ours(error):
    assert find_rejection(error) is None
    assert find_refusal(error, NOON) is None


def test_an_expired_certificate_is_an_error_of_degu_on_both_sides(serve, temp_pki, tmp_path):
    user_key, key = pki.build_key(), pki.build_key()
    issued = datetime.now(UTC) - timedelta(days=400)
    for name, cert in (
        ('ca', pki.build_user_cert(user_key, issued)),
        ('cert', pki.build_machine_cert(user_key, key.public_key(), issued)),
    ):
        pki.write_cert_file(tmp_path / name, cert)
    pki.write_key_file(tmp_path / 'key', key)
    old = {'cert_file': str(tmp_path / 'cert'), 'key_file': str(tmp_path / 'key')}
    server = serve(ok, sslctx=build_server_sslctx(temp_pki.get_server_config() | old))
    config = temp_pki.get_client_config() | {'ca_file': str(tmp_path / 'ca')}
    error = refuse_server(server, config)
    assert isinstance(error, DeguError)
    assert error.fault is CertificateFault.EXPIRED
    strict = serve(
        ok,
        sslctx=build_server_sslctx(
            temp_pki.get_server_config() | {'ca_file': str(tmp_path / 'ca')}
        ),
    )
    client = SSLClient(build_client_sslctx(temp_pki.get_client_config() | old), strict.address)
    with client.connect() as conn, pytest.raises(PeerRejectedError) as caught:
        conn.get('/')
    assert caught.value.alert == 'certificate_expired'
    assert 'set the clock of the peer if it is wrong' in str(caught.value)
