"""Who gets in over TLS: only who has a certificate that this server trusts."""

from __future__ import annotations

import logging
import socket
import ssl
from time import monotonic, sleep

import pytest

from degu import IPv4_LOOPBACK
from degu.client import SSLClient, build_client_sslctx
from degu.errors import PeerRejectedError
from degu.misc import TempPKI
from degu.rgi import Validator
from degu.server import SSLServer, build_server_sslctx

GET = b'GET / HTTP/1.1\r\n\r\n'


@pytest.fixture(scope='module')
def stranger(temp_pki):
    with TempPKI() as pki:
        yield pki


@pytest.fixture
def secured(serve, temp_pki):
    """A server that takes the client's chain, and the requests that its application saw."""
    seen = []

    def app(connection, request):
        seen.append(connection)
        return 200, 'OK', {}, None

    server = serve(Validator(app), sslctx=build_server_sslctx(temp_pki.get_server_config()))
    server.seen = seen
    return server


def is_served(server, config):
    client = SSLClient(build_client_sslctx(config), server.address)
    with client.connect() as conn:
        return conn.get('/').status == 200


@pytest.fixture(autouse=True)
def _still_serves(secured, temp_pki):
    """Whatever a test did: whoever belongs here is served after it."""
    yield
    assert is_served(secured, temp_pki.get_client_config())


def test_who_has_no_certificate_is_rejected(secured, temp_pki):
    with pytest.raises(PeerRejectedError):
        is_served(secured, temp_pki.get_anonymous_client_config())
    assert secured.seen == []


def test_who_has_a_stranger_s_certificate_is_rejected(secured, temp_pki, stranger):
    config = stranger.get_client_config() | {'ca_file': temp_pki.get_client_config()['ca_file']}
    with pytest.raises(PeerRejectedError):
        is_served(secured, config)
    assert secured.seen == []


def test_who_has_a_server_s_certificate_of_the_same_pki_is_rejected(secured, temp_pki):
    """The server's own certificate comes from another CA than its clients' ones."""
    server, client = temp_pki.get_server_config(), temp_pki.get_client_config()
    config = client | {'cert_file': server['cert_file'], 'key_file': server['key_file']}
    with pytest.raises(PeerRejectedError):
        is_served(secured, config)
    assert secured.seen == []


def test_a_client_does_not_talk_to_a_stranger(secured, stranger):
    with pytest.raises(ssl.SSLCertVerificationError):
        is_served(secured, stranger.get_client_config())
    assert secured.seen == []


@pytest.mark.parametrize(
    'data',
    [
        pytest.param(GET, id='get'),
        pytest.param(b'PUT / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello', id='put'),
        pytest.param(b'PRI * HTTP/2.0\r\n\r\n', id='http_2_preface'),
        pytest.param(b'\r\n' * 10_000, id='empty_lines'),
        pytest.param(b'\x16\x03\x01\xff\xff' + GET, id='record_too_long'),
    ],
)
def test_plaintext_is_never_parsed(secured, dial, data):
    peer = dial(secured.address)
    peer.send(data)
    try:
        answer = peer.sock.recv(65536)
    except ConnectionResetError:
        answer = b''
    assert b'HTTP' not in answer
    assert secured.seen == []


def test_plaintext_before_the_handshake_is_never_parsed(secured, dial, temp_pki):
    """In front of a ClientHello in the same packet."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    tls = sslctx.wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    peer = dial(secured.address)
    peer.send(GET + outgoing.read())
    peer.end()
    try:
        answer = peer.sock.recv(65536)
    except ConnectionResetError:
        answer = b''
    assert b'HTTP' not in answer
    assert secured.seen == []


def test_plaintext_inside_the_handshake_is_never_parsed(secured, dial, temp_pki):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    tls = sslctx.wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    peer = dial(secured.address)
    peer.send(outgoing.read())
    while not tls.version() or outgoing.pending == 0:
        incoming.write(peer.sock.recv(65536))
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            pass
    peer.send(GET + outgoing.read())
    peer.end()
    answer = b''
    try:
        while data := peer.sock.recv(65536):
            answer += data
    except ConnectionResetError:
        pass
    assert b'HTTP' not in answer
    assert secured.seen == []


def test_tls_1_2_is_refused(secured, dial, temp_pki):
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    sslctx.minimum_version = ssl.TLSVersion.TLSv1_2
    sslctx.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(secured.address) as sock,
        pytest.raises(ssl.SSLError, match=r'(?i)protocol.version'),
    ):
        sslctx.wrap_socket(sock)
    assert secured.seen == []


def test_the_protocol_is_agreed_on(secured, dial, temp_pki):
    peer = dial(secured.address, None, build_client_sslctx(temp_pki.get_client_config()))
    assert peer.sock.version() == 'TLSv1.3'
    assert peer.sock.selected_alpn_protocol() == 'http/1.1'
    assert peer.sock.compression() is None


def test_no_session_ticket_is_given(secured, dial, temp_pki):
    peer = dial(secured.address, None, build_client_sslctx(temp_pki.get_client_config()))
    peer.send(GET)
    peer.read_preamble()
    assert not peer.sock.session.has_ticket


def test_a_resumed_session_is_refused(secured, dial, temp_pki, caplog):
    """Tickets that somebody switched on after the context was checked are of no use."""
    caplog.set_level(logging.INFO, 'degu.server')
    secured.sslctx.num_tickets = 2
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    first = dial(secured.address, None, sslctx)
    first.send(GET)
    first.read_preamble()
    session = first.sock.session
    assert session.has_ticket
    with (
        socket.create_connection(secured.address) as sock,
        sslctx.wrap_socket(sock, session=session) as resumed,
    ):
        assert resumed.session_reused
        resumed.settimeout(10)
        try:
            resumed.sendall(GET)
            answer = resumed.recv(65536)
        except OSError:
            answer = b''
    assert answer == b''
    assert len(secured.seen) == 1
    secured.sslctx.num_tickets = 0


def test_a_new_context_is_for_the_next_handshake(secured, temp_pki, stranger):
    """Whom a server trusts can change while it runs."""
    old = secured.sslctx
    client = SSLClient(build_client_sslctx(temp_pki.get_client_config()), secured.address)
    with client.connect() as conn:
        assert conn.get('/').status == 200
        config = temp_pki.get_server_config()
        config['ca_file'] = stranger.get_server_config()['ca_file']
        secured.sslctx = build_server_sslctx(config)
        assert conn.get('/').status == 200
        with pytest.raises(PeerRejectedError):
            is_served(secured, temp_pki.get_client_config())
    strange = stranger.get_client_config() | {'ca_file': temp_pki.get_client_config()['ca_file']}
    assert is_served(secured, strange)
    secured.sslctx = old


def test_a_function_makes_the_context_of_each_handshake(secured, temp_pki, stranger, caplog):
    configs = [temp_pki.get_server_config()]
    old = secured.sslctx
    secured.sslctx = lambda: build_server_sslctx(configs[0])
    assert is_served(secured, temp_pki.get_client_config())
    configs[0] = {**configs[0], 'ca_file': stranger.get_server_config()['ca_file']}
    with pytest.raises(PeerRejectedError):
        is_served(secured, temp_pki.get_client_config())
    secured.sslctx = lambda: lax(temp_pki.get_server_config(), num_tickets=1)
    with pytest.raises(OSError):
        is_served(secured, temp_pki.get_client_config())
    secured.sslctx = old
    deadline = monotonic() + 10
    while 'sslctx.num_tickets must be 0' not in caplog.text:
        assert monotonic() < deadline
        sleep(0.001)


def lax(config, **attributes):
    sslctx = build_server_sslctx(config)
    for name, value in attributes.items():
        setattr(sslctx, name, value)
    return sslctx


@pytest.mark.parametrize(
    ('attributes', 'reason'),
    [
        ({'num_tickets': 1}, 'num_tickets'),
        ({'verify_mode': ssl.CERT_OPTIONAL}, 'verify_mode'),
        ({'minimum_version': ssl.TLSVersion.TLSv1_2}, 'minimum_version'),
        ({'verify_flags': ssl.VERIFY_DEFAULT}, 'verify_flags'),
        ({'options': ssl.OP_ALL}, 'options'),
    ],
)
def test_a_lax_context_is_refused_with_the_reason(secured, temp_pki, attributes, reason):
    sslctx = lax(temp_pki.get_server_config(), **attributes)
    with pytest.raises(ValueError, match=f'sslctx.{reason} must'):
        SSLServer(sslctx, IPv4_LOOPBACK, print)
    with pytest.raises(ValueError, match=f'sslctx.{reason} must'):
        secured.sslctx = sslctx


def test_a_client_s_context_is_refused(temp_pki):
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    with pytest.raises(ValueError, match='PROTOCOL_TLS_SERVER'):
        SSLServer(sslctx, IPv4_LOOPBACK, print)


def test_an_anonymous_server_takes_anyone_and_says_so(serve, temp_pki):
    seen = []

    def app(connection, request):
        seen.append(connection['ssl_peer_cert'])
        return 200, 'OK', {}, None

    sslctx = build_server_sslctx(temp_pki.get_anonymous_server_config())
    server = serve(Validator(app), sslctx=sslctx)
    assert is_served(server, temp_pki.get_anonymous_client_config())
    assert is_served(server, temp_pki.get_client_config())
    assert seen == [None, None]
