"""degu_rpc.peers.caller: who is calling, and who is turned away."""

from __future__ import annotations

import logging
import os
import socket
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st

from degu import IPv4_LOOPBACK, pki
from degu.client import Client, SSLClient
from degu.net import Credentials
from degu.rgi import Validator
from degu.tls import build_client_sslctx, build_server_sslctx
from degu_rpc import Router
from degu_rpc.peers import (
    OWNER,
    Authenticated,
    Identity,
    Peer,
    PeerKind,
    TrustedUser,
    UnknownPeerError,
    build_roles,
    caller,
    derive_peer,
    find_caller,
)
from degu_rpc.peers.caller import (
    CALLER,
    OVERFLOW_UID,
    _warn_of_missing_middleware,
    _warn_of_missing_option,
    format_caller,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = datetime.now(UTC)
OWN_UID = os.geteuid()


def trust(identity: Identity, name: str, *roles: str) -> TrustedUser:
    return TrustedUser(identity.user_id, identity.user_cert, name, frozenset(roles))


def users(*trusted: TrustedUser) -> dict[str, TrustedUser]:
    return {user.user_id: user for user in trusted}


class Fake:
    """A trust store that says what a test wants."""

    def __init__(self, users: Callable[[], dict[str, TrustedUser]]) -> None:
        self.users = users


def read_key(identity: Identity, name: str) -> Any:
    return pki.parse_key_pem((identity.directory / name).read_bytes())


def config(identity: Identity, ca_file: Path) -> dict[str, Any]:
    path = str(identity.machine_file)
    return {'cert_file': path, 'key_file': path, 'ca_file': str(ca_file)}


# --- who is calling: from the connection --------------------------------------------------------


def test_a_machine_of_a_trusted_user_has_our_name_and_roles(alice: Identity, bob: Identity) -> None:
    trusted = users(trust(alice, 'me', OWNER), trust(bob, 'Bob', 'peer', 'family'))
    assert derive_peer({'ssl_peer_cert': bob.machine_cert}, trusted, OWN_UID) == Peer(
        PeerKind.MACHINE,
        bob.user_id,
        bob.machine_id,
        'Bob',
        frozenset({'peer', 'family'}),
        None,
        None,
    )


def test_a_stranger_is_refused_by_id(alice: Identity, bob: Identity) -> None:
    with pytest.raises(UnknownPeerError) as info:
        derive_peer({'ssl_peer_cert': bob.machine_cert}, users(trust(alice, 'me')), OWN_UID)
    assert bob.user_id in str(info.value)
    assert bob.machine_id in str(info.value)
    assert 'pair with them' in str(info.value)


def forge_machine(claimed: Identity, signer: Identity) -> bytes:
    """A machine certificate that says it is of the user of *claimed*, signed by another user."""
    cert = x509.load_der_x509_certificate(
        pki.build_machine_cert(
            read_key(claimed, 'user.key'), read_key(signer, 'machine.pem').public_key(), NOW
        )
    )
    signing_key = read_key(signer, 'user.key')
    builder = x509.CertificateBuilder(
        issuer_name=x509.load_der_x509_certificate(signer.user_cert).subject,
        subject_name=cert.subject,
        public_key=cert.public_key(),
        serial_number=cert.serial_number,
        not_valid_before=cert.not_valid_before_utc,
        not_valid_after=cert.not_valid_after_utc,
    )
    for extension in cert.extensions:
        value = extension.value
        if isinstance(value, x509.AuthorityKeyIdentifier):
            value = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key())
        builder = builder.add_extension(value, extension.critical)
    return builder.sign(signing_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_a_trusted_user_cannot_speak_for_another(alice: Identity, bob: Identity) -> None:
    trusted = users(trust(alice, 'me', OWNER), trust(bob, 'Bob', 'peer'))
    with pytest.raises(pki.CertificateError) as info:
        derive_peer({'ssl_peer_cert': forge_machine(alice, bob)}, trusted, OWN_UID)
    assert info.value.fault is pki.CertificateFault.ISSUER


def test_the_ca_must_be_the_one_of_the_user_it_is_filed_under(
    alice: Identity, bob: Identity
) -> None:
    filed_wrongly = {bob.user_id: trust(alice, 'me', OWNER)}
    with pytest.raises(pki.CertificateError) as info:
        derive_peer({'ssl_peer_cert': bob.machine_cert}, filed_wrongly, OWN_UID)
    assert info.value.fault is pki.CertificateFault.USER_ID


def test_trust_is_looked_up_for_each_connection(alice: Identity, bob: Identity) -> None:
    trusted = [users(trust(bob, 'Bob', 'peer'))]
    app = Authenticated(answer, Fake(lambda: trusted[-1]))
    with socket.socket() as sock:
        connection = {'client': ('127.0.0.1', 1), 'ssl_peer_cert': bob.machine_cert}
        assert app.on_connect(sock, connection) is True
        trusted.append(users(trust(alice, 'me', OWNER)))
        assert app.on_connect(sock, connection) is False


def test_a_machine_that_is_denied_is_refused(alice: Identity, bob: Identity) -> None:
    denied = trust(bob, 'Bob', 'peer')._replace(denied=frozenset({bob.machine_id}))
    with pytest.raises(UnknownPeerError, match=f'machine {bob.machine_id} .* is denied here'):
        derive_peer({'ssl_peer_cert': bob.machine_cert}, users(denied), OWN_UID)
    other = trust(bob, 'Bob', 'peer')._replace(denied=frozenset({alice.machine_id}))
    assert derive_peer({'ssl_peer_cert': bob.machine_cert}, users(other), OWN_UID)


@pytest.mark.parametrize('change', ['removed', 'denied', 'other key', 'roles', 'nothing'])
def test_trust_is_looked_at_before_each_request_of_an_open_connection(
    serve: Callable[..., Any], both: Path, alice: Identity, bob: Identity, change: str
) -> None:
    friend = trust(bob, 'Bob', 'peer')
    then = {
        'removed': {},
        'denied': users(friend._replace(denied=frozenset({bob.machine_id}))),
        'other key': users(friend._replace(ca_cert=alice.user_cert)),
        'roles': users(friend._replace(roles=frozenset({'guest'}))),
        'nothing': users(friend),
    }[change]
    trusted = [users(friend)]
    app = Validator(Authenticated(answer, Fake(lambda: trusted[-1])))
    server = serve(app, IPv4_LOOPBACK, build_server_sslctx(config(alice, both)))
    sslctx = build_client_sslctx({**config(bob, both), 'check_hostname': False})
    with SSLClient(sslctx, server.address).connect() as conn:
        for _ in range(2):
            assert b"frozenset({'peer'})" in conn.get('/', {}).body.read()
        trusted.append(then)
        response = conn.get('/', {})
        body = response.body.read()
        if change in ('roles', 'nothing'):
            roles = b"frozenset({'guest'})" if change == 'roles' else b"frozenset({'peer'})"
            assert roles in body
        else:
            assert (response.status, response.headers['connection']) == (403, 'close')
            assert response.headers['content-type'] == 'text/plain; charset=utf-8'
            with pytest.raises(ConnectionError):
                conn.get('/', {})


def test_a_connection_does_not_outlive_its_certificate(
    bob: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = users(trust(bob, 'Bob', 'peer'))
    app = Authenticated(answer, Fake(lambda: trusted))
    connection = {'client': ('127.0.0.1', 1), 'ssl_peer_cert': bob.machine_cert}
    with socket.socket() as sock:
        assert app.on_connect(sock, connection) is True
    assert app(connection, {})[0] == 200
    not_after = pki.parse_validity(bob.machine_cert).not_after
    monkeypatch.setattr(time, 'time', lambda: not_after.timestamp() + 1)
    monkeypatch.setattr(caller, 'read_clock', lambda now: not_after + timedelta(seconds=1))
    status, _, headers, body = app(connection, {'method': 'GET'})
    assert (status, headers['connection']) == (403, 'close')
    assert b'has expired' in body


@pytest.mark.parametrize(
    ('change', 'ends'),
    [
        ('removed', True),
        ('denied', True),
        ('role lost', True),
        ('role given', False),
        ('another name', False),
        ('somebody else', False),
        ('expired', True),
    ],
)
def test_what_runs_is_ended_for_whom_nobody_trusts_any_more(
    alice: Identity, bob: Identity, monkeypatch: pytest.MonkeyPatch, change: str, ends: bool
) -> None:
    friend = trust(bob, 'Bob', 'peer')
    now = users(friend)
    app = Authenticated(answer, Fake(lambda: now))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = {'client': ('127.0.0.1', 1), 'ssl_peer_cert': bob.machine_cert}
        assert app.on_connect(ours, connection) is True
        app.end_untrusted()
        now = {
            'removed': {},
            'denied': users(friend._replace(denied=frozenset({bob.machine_id}))),
            'role lost': users(friend._replace(roles=frozenset({'guest'}))),
            'role given': users(friend._replace(roles=frozenset({'guest', 'peer'}))),
            'another name': users(friend._replace(name='Robert')),
            'somebody else': users(friend, trust(alice, 'Alice', 'peer')),
        }.get(change, now)
        if change == 'expired':
            not_after = pki.parse_validity(bob.machine_cert).not_after
            monkeypatch.setattr(time, 'time', lambda: not_after.timestamp() + 1)
        for _ in range(2):  # to end it twice does nothing
            app.end_untrusted()
        theirs.setblocking(False)
        if ends:
            assert theirs.recv(1) == b''
        else:
            with pytest.raises(BlockingIOError):
                theirs.recv(1)


def test_a_role_that_came_later_is_missed_when_it_is_lost(bob: Identity) -> None:
    now = users(trust(bob, 'Bob', 'peer'))
    app = Authenticated(answer, Fake(lambda: now))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = {'client': ('127.0.0.1', 1), 'ssl_peer_cert': bob.machine_cert}
        assert app.on_connect(ours, connection) is True
        now = users(trust(bob, 'Bob', 'peer', 'guest'))
        assert app(connection, {'headers': {}})[0] == 200
        now = users(trust(bob, 'Bob', 'peer'))
        app.end_untrusted()
        assert theirs.recv(1) == b''


def test_plain_tcp_and_anonymous_tls_are_nobody() -> None:
    assert derive_peer({}, {}, OWN_UID) is None
    assert derive_peer({'ssl_peer_cert': None}, {}, OWN_UID) is None


@given(uid=st.integers(0, 2**32 - 1), gid=st.integers(0, 2**32 - 1), pid=st.integers(0, 2**22))
def test_only_my_own_uid_is_the_owner(uid: int, gid: int, pid: int) -> None:
    for own_uid in (uid, uid + 1):
        if uid == OVERFLOW_UID:
            with pytest.raises(UnknownPeerError):
                derive_peer({'credentials': (pid, uid, gid)}, {}, own_uid)
            continue
        peer = derive_peer({'credentials': (pid, uid, gid)}, {}, own_uid)
        roles = frozenset({'owner'}) if uid == own_uid else frozenset()
        assert peer == Peer(PeerKind.LOCAL, None, None, f'uid:{uid}', roles, uid, gid)


@pytest.mark.parametrize('own_uid', [0, OVERFLOW_UID])
def test_the_overflow_uid_is_refused_even_if_it_is_ours(own_uid: int) -> None:
    with pytest.raises(UnknownPeerError, match='65534'):
        derive_peer({'credentials': (1, 65534, 65534)}, {}, own_uid)


def test_tls_on_a_unix_socket_goes_by_the_certificate_alone(alice: Identity, bob: Identity) -> None:
    # A relay that runs as the owner must not make its clients the owner.
    local = {'credentials': (1, OWN_UID, 0)}
    assert derive_peer({**local, 'ssl_peer_cert': None}, {}, OWN_UID) is None
    peer = derive_peer(
        {**local, 'ssl_peer_cert': bob.machine_cert}, users(trust(bob, 'Bob')), OWN_UID
    )
    assert peer is not None
    assert peer.machine_id == bob.machine_id
    assert peer.roles == frozenset()
    assert peer.uid is None
    with pytest.raises(UnknownPeerError):
        derive_peer(
            {**local, 'ssl_peer_cert': bob.machine_cert}, users(trust(alice, 'me')), OWN_UID
        )


@given(st.binary(max_size=100))
def test_arbitrary_bytes_as_a_certificate_are_refused(data: bytes) -> None:
    with pytest.raises(pki.CertificateError):
        derive_peer({'ssl_peer_cert': data}, {}, OWN_UID)


# --- who is calling: in a real server -----------------------------------------------------------


def answer(connection: dict[str, Any], request: dict[str, Any]) -> Any:
    return (200, 'OK', {}, repr(connection['_peer']).encode())


class Picky:
    """An application that rejects on its own account, after it has seen who is calling."""

    def __init__(self, verdict: Any) -> None:
        self.verdict = verdict
        self.seen: list[Peer | None] = []

    def on_connect(self, sock: socket.socket, connection: dict[str, Any]) -> Any:
        self.seen.append(connection['_peer'])
        return self.verdict

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Any:
        return answer(connection, request)


@pytest.fixture
def both(tmp_path: Path, alice: Identity, bob: Identity) -> Path:
    """A CA file that trusts Alice and Bob."""
    path = tmp_path / 'trusted.pem'
    path.write_bytes(pki.format_cert_pem(alice.user_cert) + pki.format_cert_pem(bob.user_cert))
    return path


def test_a_machine_calls_over_tls(
    serve: Callable[..., Any], both: Path, alice: Identity, bob: Identity
) -> None:
    trusted = users(trust(alice, 'me', OWNER), trust(bob, 'Bob', 'peer'))
    app = Validator(Authenticated(answer, Fake(lambda: trusted)))
    server = serve(app, IPv4_LOOPBACK, build_server_sslctx(config(alice, both)))
    for calling in (alice, bob):
        sslctx = build_client_sslctx({**config(calling, both), 'check_hostname': False})
        with SSLClient(sslctx, server.address).connect() as conn:
            body = conn.get('/', {}).body.read()
        peer = derive_peer({'ssl_peer_cert': calling.machine_cert}, trusted, OWN_UID)
        assert body == repr(peer).encode()


def test_a_machine_trusted_by_tls_alone_is_rejected_and_logged(
    serve: Callable[..., Any],
    both: Path,
    alice: Identity,
    bob: Identity,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The CA file still has Bob, as right after a removal: the users decide.
    only_alice = users(trust(alice, 'me', OWNER))
    app = Authenticated(answer, Fake(lambda: only_alice))
    server = serve(app, IPv4_LOOPBACK, build_server_sslctx(config(alice, both)))
    sslctx = build_client_sslctx({**config(bob, both), 'check_hostname': False})
    with (
        caplog.at_level(logging.WARNING, 'degu_rpc.peers'),
        pytest.raises(ConnectionError),
        SSLClient(sslctx, server.address).connect() as conn,
    ):
        conn.get('/', {})
    (record,) = [record for record in caplog.records if record.name == 'degu_rpc.peers']
    assert record.levelno == logging.WARNING
    assert bob.user_id in record.getMessage()


def test_a_local_caller_is_known_by_uid(serve: Callable[..., Any], tmp_path: Path) -> None:
    app = Validator(Authenticated(answer))
    server = serve(app, str(tmp_path / 'sock'))
    with Client(server.address).connect() as conn:
        body = conn.get('/', {}).body.read()
    expected = Peer(
        PeerKind.LOCAL,
        None,
        None,
        f'uid:{OWN_UID}',
        frozenset({OWNER}),
        OWN_UID,
        os.getegid(),
    )
    assert body == repr(expected).encode()


def test_a_request_behind_a_node_is_of_whom_the_node_says(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    def tell(_connection: dict[str, Any], request: dict[str, Any]) -> Any:
        return 200, 'OK', {}, repr(find_caller(request)).encode()

    ben = Peer(PeerKind.MACHINE, 'u' * 48, 'm' * 48, 'Ben', frozenset({'peer'}), None, None)
    server = serve(Validator(Authenticated(tell, is_behind_node=True)), str(tmp_path / 'sock'))
    with Client(server.address).connect() as conn:
        for peer in (ben, ben._replace(kind=PeerKind.LOCAL, name='uid:7', uid=7, gid=7)):
            response = conn.get('/', {CALLER: format_caller(peer)})
            assert response.body.read() == repr(peer).encode()
        assert b'frozenset()' in conn.get('/', {CALLER: format_caller(None)}).body.read()
        assert b"frozenset({'owner'})" in conn.get('/', {}).body.read()
        assert conn.get('/', {CALLER: 'nonsense'}).status == 403


def test_who_does_not_expect_a_node_refuses_what_it_passes_on(
    serve: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_of_missing_option.cache_clear()
    server = serve(Validator(Authenticated(answer)), str(tmp_path / 'sock'))
    for method in ('GET', 'GET', 'HEAD'):
        with Client(server.address).connect() as conn:
            response = conn.request(method, '/', {CALLER: format_caller(None)}, None)
            assert (response.status, response.headers['connection']) == (403, 'close')
    assert caplog.text.count('is_behind_node=True') == 1


def test_a_caller_of_another_uid_cannot_call_for_somebody() -> None:
    app = Authenticated(answer, is_behind_node=True)
    connection: dict[str, Any] = {'client': None, 'credentials': Credentials(1, OWN_UID + 1, 0)}
    with socket.socket() as sock:
        app.on_connect(sock, connection)
    owner = Peer(PeerKind.LOCAL, None, None, 'root', frozenset({OWNER}), 0, 0)
    request = {'method': 'GET', 'headers': {CALLER: format_caller(owner)}}
    assert app(connection, request)[0] == 403


def test_plain_tcp_is_served_as_nobody(serve: Callable[..., Any]) -> None:
    server = serve(Validator(Authenticated(answer)))
    with Client(server.address).connect() as conn:
        assert conn.get('/', {}).body.read() == b'None'


def test_the_wrapped_app_sees_the_peer_and_may_reject(tmp_path: Path) -> None:
    with socket.socket() as sock:
        for verdict in (True, False, None, 1, 'yes'):
            app = Picky(verdict)
            found = Authenticated(app).on_connect(
                sock, {'client': None, 'credentials': (1, OWN_UID, 0)}
            )
            assert found is (verdict is True)
            assert [peer.uid for peer in app.seen if peer] == [OWN_UID]


def test_the_wrapped_app_is_not_asked_about_a_rejected_connection() -> None:
    app = Picky(True)
    connection = {'client': None, 'credentials': (1, OVERFLOW_UID, 0)}
    with socket.socket() as sock:
        assert Authenticated(app).on_connect(sock, connection) is False
    assert app.seen == []
    assert '_peer' not in connection


# --- who may ------------------------------------------------------------------------------------


def test_a_forgotten_store_is_told(bob: Identity, caplog: pytest.LogCaptureFixture) -> None:
    connection = {'client': ('127.0.0.1', 1), 'ssl_peer_cert': bob.machine_cert}
    with socket.socket() as sock:
        assert Authenticated(answer).on_connect(sock, connection) is False
    assert 'write Authenticated(app, trust)' in caplog.text


def test_whom_to_trust_is_asked_of_a_store(alice: Identity) -> None:
    with pytest.raises(TypeError, match='trust must be a TrustStore'):
        Authenticated(answer, users(trust(alice, 'Alice')))  # type: ignore[arg-type]


def test_roles_are_those_that_are_named_and_the_owner() -> None:
    assert build_roles('peer') == {'peer', OWNER}
    assert build_roles(['a', 'b']) == {'a', 'b', OWNER}


@pytest.mark.parametrize(
    ('allow', 'error'),
    [('', ValueError), ([], ValueError), (['a', ''], ValueError), ([b'a'], TypeError)],
)
def test_roles_that_are_no_names_are_refused(allow: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match='allow must'):
        build_roles(allow)


def test_a_caller_whom_nobody_looked_at_is_unknown_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _warn_of_missing_middleware.cache_clear()
    with caplog.at_level(logging.WARNING, 'degu_rpc.peers'):
        for _ in range(3):
            with pytest.raises(UnknownPeerError, match='set up without'):
                find_caller({})
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.WARNING, 'nothing says who calls: wrap the application in Authenticated')
    ]


def test_a_caller_who_showed_nothing_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UnknownPeerError, match='use a client certificate'):
        find_caller({'_peer': None})
    assert caplog.records == []


def test_an_app_beside_a_wrapped_one_knows_nobody(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    def who(connection: dict[str, Any], request: dict[str, Any]) -> Any:
        try:
            return 200, 'OK', {}, find_caller(request).name.encode()
        except UnknownPeerError:
            return 401, 'Unauthorized', {}, None

    router = Router()
    router.mount('/wrapped', Authenticated(who))
    router.mount('/bare', who)
    server = serve(Validator(router), str(tmp_path / 'socket'))
    with Client(server.address).connect() as conn:
        assert conn.get('/wrapped', {}).body.read() == f'uid:{OWN_UID}'.encode()
        assert conn.get('/bare', {}).status == 401


def test_a_caller_is_whom_the_middleware_found() -> None:
    peer = Peer(PeerKind.LOCAL, None, None, 'uid:7', frozenset(), 7, 7)
    assert find_caller({'_peer': peer}) is peer
