"""TLS contexts: what a config may say, what a context must be, what that does in a handshake."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from degu import pki
from degu.tls import (
    build_client_sslctx,
    build_server_sslctx,
    check_client_sslctx,
    check_server_sslctx,
)

STRICT = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN


# --- configs -------------------------------------------------------------------------------------


@pytest.fixture
def server_config(temp_pki):
    return temp_pki.get_server_config()


@pytest.fixture
def client_config(temp_pki):
    return temp_pki.get_client_config()


def without(config, *names):
    return {name: value for name, value in config.items() if name not in names}


SHARED_FAULTS = [
    (
        'unknown_key',
        {'cafile': '/ca.pem'},
        ValueError,
        'unknown in the TLS config: cafile; known: ',
    ),
    ('path_relative', {'cert_file': 'cert.pem'}, ValueError, 'cert_file must be an absolute, norm'),
    ('path_not_normalized', {'key_file': '/a/../k'}, ValueError, 'key_file must be an absolute, n'),
    ('path_empty', {'ca_file': ''}, ValueError, 'ca_file must be an absolute, normalized path'),
    ('path_trailing_slash', {'ca_path': '/ca/'}, ValueError, 'ca_path must be an absolute, normal'),
    ('path_bytes', {'ca_file': b'/ca.pem'}, TypeError, 'ca_file must be a str, not b'),
    ('path_none', {'cert_file': None}, TypeError, 'cert_file must be a str, not None'),
    ('ca_data_der', {'ca_data': b'0'}, TypeError, 'ca_data must be a str of PEM, not bytes'),
    ('ca_data_empty', {'ca_data': ''}, ValueError, 'Empty certificate data'),
]


def fault_params(faults):
    return [pytest.param(*rest, id=name) for name, *rest in faults]


@pytest.mark.parametrize(
    ('change', 'kind', 'why'),
    fault_params(
        [
            *SHARED_FAULTS,
            (
                'client_key',
                {'check_hostname': True},
                ValueError,
                'unknown in the TLS config: check_',
            ),
            (
                'allow_and_ca_file',
                {'allow_unauthenticated_clients': True},
                ValueError,
                'allow_unauthenticated_clients excludes ca_file, ca_path and ca_data',
            ),
            (
                'allow_false',
                {'allow_unauthenticated_clients': False},
                ValueError,
                'can only be True; leave it out',
            ),
            (
                'allow_1',
                {'allow_unauthenticated_clients': 1},
                ValueError,
                'can only be True; leave',
            ),
        ]
    ),
)
def test_a_server_config_with_a_fault_is_refused(server_config, change, kind, why):
    with pytest.raises(kind, match=re.escape(why)):
        build_server_sslctx({**server_config, **change})


@pytest.mark.parametrize(
    ('missing', 'why'),
    [
        (['key_file'], 'cert_file and key_file go together'),
        (['cert_file'], 'cert_file and key_file go together'),
        (['cert_file', 'key_file'], 'a server config needs cert_file and key_file'),
        (['ca_file'], 'needs ca_file, ca_path or ca_data, or allow_unauthenticated_clients'),
    ],
    ids=str,
)
def test_a_server_config_without_what_it_needs_is_refused(server_config, missing, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        build_server_sslctx(without(server_config, *missing))


def test_whom_to_trust_can_be_given_as_text(server_config, client_config):
    for build, config in (
        (build_server_sslctx, server_config),
        (build_client_sslctx, client_config),
    ):
        with open(config['ca_file'], encoding='ascii') as fp:
            as_text = build({**without(config, 'ca_file'), 'ca_data': fp.read()})
        assert as_text.get_ca_certs(True) == build(config).get_ca_certs(True)
        assert as_text.verify_mode == ssl.CERT_REQUIRED


def test_a_server_that_takes_anonymous_clients_has_no_ca_path(temp_pki, tmp_path):
    config = {**temp_pki.get_anonymous_server_config(), 'ca_path': str(tmp_path)}
    with pytest.raises(ValueError, match='excludes ca_file, ca_path and ca_data'):
        build_server_sslctx(config)


@pytest.mark.parametrize(
    ('change', 'kind', 'why'),
    fault_params(
        [
            *SHARED_FAULTS,
            (
                'server_key',
                {'allow_unauthenticated_clients': True},
                ValueError,
                'unknown in the TLS config: allow_unauthenticated_clients',
            ),
            ('check_hostname_0', {'check_hostname': 0}, TypeError, 'check_hostname must be a bool'),
            (
                'check_hostname_none',
                {'check_hostname': None},
                TypeError,
                'check_hostname must be a b',
            ),
        ]
    ),
)
def test_a_client_config_with_a_fault_is_refused(client_config, change, kind, why):
    with pytest.raises(kind, match=re.escape(why)):
        build_client_sslctx({**client_config, **change})


@pytest.mark.parametrize('name', ['cert_file', 'key_file'])
def test_a_clients_certificate_needs_its_key(client_config, name):
    with pytest.raises(ValueError, match='cert_file and key_file go together'):
        build_client_sslctx(without(client_config, name))


def test_names_are_checked_with_the_cas_of_the_system(client_config):
    with pytest.raises(ValueError, match="check_hostname must stay True with the system's CAs"):
        build_client_sslctx(without(client_config, 'ca_file'))
    assert build_client_sslctx({}).check_hostname is True


def test_the_config_is_not_changed(server_config, client_config):
    before = (dict(server_config), dict(client_config))
    build_server_sslctx(server_config)
    build_client_sslctx(client_config)
    assert (server_config, client_config) == before


@pytest.mark.parametrize('name', ['cert_file', 'key_file', 'ca_file'])
def test_a_file_that_is_missing_or_bad_is_an_error(server_config, client_config, tmp_path, name):
    bad = tmp_path / 'bad.pem'
    for build, config in (
        (build_server_sslctx, server_config),
        (build_client_sslctx, client_config),
    ):
        with pytest.raises(FileNotFoundError):
            build({**config, name: str(tmp_path / 'missing.pem')})
        bad.write_bytes(b'what?')
        with pytest.raises(ssl.SSLError):
            build({**config, name: str(bad)})


def test_a_key_of_another_certificate_is_an_error(server_config, client_config):
    with pytest.raises(ssl.SSLError):
        build_server_sslctx({**server_config, 'key_file': client_config['key_file']})


# --- contexts ------------------------------------------------------------------------------------


def check_common(sslctx):
    assert sslctx.minimum_version == ssl.TLSVersion.TLSv1_3
    assert sslctx.options & ssl.OP_NO_COMPRESSION
    assert sslctx.verify_flags & STRICT == STRICT


def test_a_servers_context(temp_pki, server_config):
    sslctx = build_server_sslctx(server_config)
    check_common(sslctx)
    assert sslctx.protocol == ssl.PROTOCOL_TLS_SERVER
    assert sslctx.verify_mode == ssl.CERT_REQUIRED
    assert sslctx.num_tickets == 0
    assert check_server_sslctx(sslctx) is sslctx
    anonymous = build_server_sslctx(temp_pki.get_anonymous_server_config())
    check_common(anonymous)
    assert anonymous.verify_mode == ssl.CERT_NONE
    assert anonymous.num_tickets == 0
    assert check_server_sslctx(anonymous) is anonymous


def test_a_clients_context(temp_pki, client_config):
    for config in (client_config, temp_pki.get_anonymous_client_config()):
        sslctx = build_client_sslctx(config)
        check_common(sslctx)
        assert sslctx.protocol == ssl.PROTOCOL_TLS_CLIENT
        assert sslctx.verify_mode == ssl.CERT_REQUIRED
        assert sslctx.check_hostname is False
        assert check_client_sslctx(sslctx) is sslctx
        assert build_client_sslctx(without(config, 'check_hostname')).check_hostname is True


def test_the_cas_of_the_system_are_trusted_only_without_a_ca(temp_pki, client_config, monkeypatch):
    monkeypatch.setenv('SSL_CERT_FILE', temp_pki.get_server_config()['ca_file'])
    monkeypatch.setenv('SSL_CERT_DIR', '/nonexistent')
    theirs = build_client_sslctx({}).get_ca_certs(binary_form=True)
    ours = build_client_sslctx(client_config).get_ca_certs(binary_form=True)
    assert len(theirs) == len(ours) == 1
    assert theirs != ours


# Each spoils a context in place, or gives something else for it.
CONTEXT_FAULTS = [
    ('no_context', lambda ctx: 'context', TypeError, 'sslctx must be an ssl.SSLContext'),
    (
        'tls_1_2',
        lambda ctx: setattr(ctx, 'minimum_version', ssl.TLSVersion.TLSv1_2),
        ValueError,
        'sslctx.minimum_version must be TLSv1_3',
    ),
    (
        'any_version',
        lambda ctx: setattr(ctx, 'minimum_version', ssl.TLSVersion.MINIMUM_SUPPORTED),
        ValueError,
        'sslctx.minimum_version must be TLSv1_3',
    ),
    (
        'not_tls_1_3',
        lambda ctx: setattr(ctx, 'maximum_version', ssl.TLSVersion.TLSv1_2),
        ValueError,
        'sslctx.maximum_version must allow TLSv1_3',
    ),
    (
        'compression',
        lambda ctx: setattr(ctx, 'options', ctx.options & ~ssl.OP_NO_COMPRESSION),
        ValueError,
        'sslctx.options must have OP_NO_COMPRESSION',
    ),
    (
        'not_strict',
        lambda ctx: setattr(ctx, 'verify_flags', ssl.VERIFY_X509_PARTIAL_CHAIN),
        ValueError,
        'sslctx.verify_flags must have VERIFY_X509_STRICT',
    ),
    (
        'no_partial_chain',
        lambda ctx: setattr(ctx, 'verify_flags', ssl.VERIFY_X509_STRICT),
        ValueError,
        'sslctx.verify_flags must have VERIFY_X509_STRICT and VERIFY_X509_PARTIAL_CHAIN',
    ),
]


@pytest.mark.parametrize(
    ('spoil', 'kind', 'why'),
    fault_params(
        [
            *CONTEXT_FAULTS,
            (
                'client_context',
                lambda ctx: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
                ValueError,
                'sslctx.protocol must be PROTOCOL_TLS_SERVER',
            ),
            (
                'tickets',
                lambda ctx: setattr(ctx, 'num_tickets', 1),
                ValueError,
                'sslctx.num_tickets must be 0',
            ),
            (
                'optional',
                lambda ctx: setattr(ctx, 'verify_mode', ssl.CERT_OPTIONAL),
                ValueError,
                'sslctx.verify_mode must be CERT_REQUIRED, or CERT_NONE',
            ),
        ]
    ),
)
def test_a_lax_server_context_is_refused_with_the_reason(server_config, spoil, kind, why):
    sslctx = build_server_sslctx(server_config)
    with pytest.raises(kind, match=re.escape(why)):
        check_server_sslctx(spoil(sslctx) or sslctx)


@pytest.mark.parametrize(
    ('spoil', 'kind', 'why'),
    fault_params(
        [
            *CONTEXT_FAULTS,
            (
                'server_context',
                lambda ctx: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
                ValueError,
                'sslctx.protocol must be PROTOCOL_TLS_CLIENT',
            ),
            (
                'optional',
                lambda ctx: setattr(ctx, 'verify_mode', ssl.CERT_OPTIONAL),
                ValueError,
                'sslctx.verify_mode must be CERT_REQUIRED',
            ),
            (
                'unverified',
                lambda ctx: setattr(ctx, 'verify_mode', ssl.CERT_NONE),
                ValueError,
                'sslctx.verify_mode must be CERT_REQUIRED',
            ),
        ]
    ),
)
def test_a_lax_client_context_is_refused_with_the_reason(client_config, spoil, kind, why):
    sslctx = build_client_sslctx(client_config)
    with pytest.raises(kind, match=re.escape(why)):
        check_client_sslctx(spoil(sslctx) or sslctx)


# --- handshakes ----------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What came of a handshake, and of one byte each way after it."""

    server: ssl.SSLSocket | Exception
    client: ssl.SSLSocket | Exception


@pytest.fixture
def shake_hands():
    """Give `shake_hands(server_ctx, client_ctx, name=None)`."""
    with contextlib.ExitStack() as stack:

        def shake(server_ctx, client_ctx, name=None):
            ends = socket.socketpair()
            for end in ends:
                end.settimeout(10)
                stack.enter_context(end)
            results = {}

            def run(side, wrap):
                sock = None
                try:
                    sock = wrap()
                    sock.sendall(b'x')
                    if sock.recv(1) != b'x':
                        raise ConnectionResetError('closed by the other side')
                    results[side] = stack.enter_context(sock)
                except OSError as error:
                    results[side] = error
                    (sock or ends[side == 'client']).close()

            thread = threading.Thread(
                target=run,
                args=('server', lambda: server_ctx.wrap_socket(ends[0], server_side=True)),
            )
            thread.start()
            run('client', lambda: client_ctx.wrap_socket(ends[1], server_hostname=name))
            thread.join()
            return Outcome(**results)

        yield shake


def read_der(path):
    with open(path) as fp:
        return ssl.PEM_cert_to_DER_cert(fp.read())


def test_both_sides_know_each_other(shake_hands, server_config, client_config):
    server, client = shake_hands(
        build_server_sslctx(server_config), build_client_sslctx(client_config)
    )
    assert server.getpeercert(True) == read_der(client_config['cert_file'])
    assert client.getpeercert(True) == read_der(server_config['cert_file'])
    for sock in (server, client):
        assert sock.version() == 'TLSv1.3'
        assert sock.selected_alpn_protocol() == 'http/1.1'
        assert sock.compression() is None
        assert sock.session_reused is False


def test_there_is_no_session_to_resume(shake_hands, server_config, client_config):
    _, client = shake_hands(build_server_sslctx(server_config), build_client_sslctx(client_config))
    assert client.session is None or not client.session.has_ticket


def test_an_anonymous_client_reaches_a_server_that_takes_it(shake_hands, temp_pki):
    server, client = shake_hands(
        build_server_sslctx(temp_pki.get_anonymous_server_config()),
        build_client_sslctx(temp_pki.get_anonymous_client_config()),
    )
    assert server.getpeercert(True) is None
    assert client.getpeercert(True) is not None


def test_a_client_without_a_certificate_is_refused(shake_hands, temp_pki, server_config):
    server, client = shake_hands(
        build_server_sslctx(server_config),
        build_client_sslctx(temp_pki.get_anonymous_client_config()),
    )
    assert isinstance(server, ssl.SSLError)
    assert isinstance(client, OSError)


def test_a_client_of_another_ca_is_refused(shake_hands, server_config, client_config):
    trusts_itself = {**server_config, 'ca_file': client_config['ca_file']}
    server, client = shake_hands(
        build_server_sslctx(trusts_itself), build_client_sslctx(client_config)
    )
    assert isinstance(server, ssl.SSLCertVerificationError)
    assert isinstance(client, OSError)


def test_a_server_of_another_ca_is_refused(shake_hands, server_config, client_config):
    trusts_itself = {**client_config, 'ca_file': server_config['ca_file']}
    server, client = shake_hands(
        build_server_sslctx(server_config), build_client_sslctx(trusts_itself)
    )
    assert isinstance(client, ssl.SSLCertVerificationError)
    assert isinstance(server, OSError)


def test_the_name_of_a_server_is_checked_unless_told_otherwise(
    shake_hands, server_config, client_config
):
    server_ctx = build_server_sslctx(server_config)
    checking = build_client_sslctx(without(client_config, 'check_hostname'))
    _, client = shake_hands(server_ctx, checking, 'device.example')
    assert isinstance(client, ssl.SSLCertVerificationError)
    _, client = shake_hands(server_ctx, build_client_sslctx(client_config), 'device.example')
    assert isinstance(client, ssl.SSLSocket)


def test_tls_1_2_is_refused(shake_hands, server_config, client_config):
    older_client = build_client_sslctx(client_config)
    older_client.minimum_version = ssl.TLSVersion.TLSv1_2
    older_client.maximum_version = ssl.TLSVersion.TLSv1_2
    server, client = shake_hands(build_server_sslctx(server_config), older_client)
    assert isinstance(server, ssl.SSLError)
    assert isinstance(client, ssl.SSLError)
    older_server = build_server_sslctx(server_config)
    older_server.minimum_version = ssl.TLSVersion.TLSv1_2
    older_server.maximum_version = ssl.TLSVersion.TLSv1_2
    server, client = shake_hands(older_server, build_client_sslctx(client_config))
    assert isinstance(server, ssl.SSLError)
    assert isinstance(client, ssl.SSLError)


def test_trust_in_a_certificate_does_not_need_its_root(shake_hands, server_config, client_config):
    # VERIFY_X509_PARTIAL_CHAIN: what we were given is an anchor, whoever signed it.
    trusting_the_leaf = {**client_config, 'ca_file': server_config['cert_file']}
    server_ctx = build_server_sslctx(server_config)
    _, client = shake_hands(server_ctx, build_client_sslctx(trusting_the_leaf))
    assert isinstance(client, ssl.SSLSocket)
    lax = build_client_sslctx(trusting_the_leaf)
    lax.verify_flags &= ~ssl.VERIFY_X509_PARTIAL_CHAIN
    _, client = shake_hands(server_ctx, lax)
    assert isinstance(client, ssl.SSLCertVerificationError)


def write_lax_chain(directory):
    """Write a CA that breaks RFC 5280 §4.2.1.9 (constraints not critical) and its leaf."""
    now = datetime.now(UTC)
    ca_key, leaf_key = pki.build_key(), pki.build_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, 'lax CA')])
    leaf_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, 'leaf')])
    identifier = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())

    def build(subject, public_key, extensions):
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(ca_key, hashes.SHA256())

    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    ca = build(
        name, ca_key.public_key(), [x509.BasicConstraints(ca=True, path_length=None), identifier]
    )
    leaf = build(
        leaf_name,
        leaf_key.public_key(),
        [x509.SubjectKeyIdentifier.from_public_key(leaf_key.public_key()), authority],
    )
    paths = {}
    for file_name, content in (
        ('ca_file', ca.public_bytes(serialization.Encoding.PEM)),
        ('cert_file', leaf.public_bytes(serialization.Encoding.PEM)),
        (
            'key_file',
            leaf_key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        ),
    ):
        path = directory / f'{file_name}.pem'
        path.write_bytes(content)
        paths[file_name] = str(path)
    return paths


def test_a_certificate_outside_rfc_5280_is_refused(shake_hands, tmp_path):
    paths = write_lax_chain(tmp_path)
    server_ctx = build_server_sslctx(
        {**without(paths, 'ca_file'), 'allow_unauthenticated_clients': True}
    )
    config = {'ca_file': paths['ca_file'], 'check_hostname': False}
    _, client = shake_hands(server_ctx, build_client_sslctx(config))
    assert isinstance(client, ssl.SSLCertVerificationError)
    lax = build_client_sslctx(config)
    lax.verify_flags &= ~ssl.VERIFY_X509_STRICT
    _, client = shake_hands(server_ctx, lax)
    assert isinstance(client, ssl.SSLSocket)


def test_a_ca_path_is_a_directory_of_hashed_names(
    shake_hands, require_program, tmp_path, server_config, client_config
):
    openssl = require_program('openssl')
    for config in (server_config, client_config):
        ca_file = config.pop('ca_file')
        command = [openssl, 'x509', '-noout', '-hash', '-in', ca_file]
        hash_ = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        directory = tmp_path / hash_
        directory.mkdir()
        (directory / f'{hash_}.0').symlink_to(ca_file)
        config['ca_path'] = str(directory)
    server, client = shake_hands(
        build_server_sslctx(server_config), build_client_sslctx(client_config)
    )
    assert isinstance(server, ssl.SSLSocket)
    assert isinstance(client, ssl.SSLSocket)
