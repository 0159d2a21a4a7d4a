"""degu_rpc.peers.identity: who I am, who is calling, and who is turned away."""

from __future__ import annotations

import logging
import os
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st

from degu import IPv4_LOOPBACK, pki
from degu.client import Client, SSLClient
from degu.rgi import Validator
from degu.tls import build_client_sslctx, build_server_sslctx
from degu_rpc.peers import (
    OWNER,
    Authenticated,
    Identity,
    IdentityError,
    Peer,
    PeerKind,
    TrustedUser,
    UnknownPeerError,
    build_roles,
    check_server,
    derive_peer,
    find_caller,
)
from degu_rpc.peers.identity import OVERFLOW_UID, _warn_of_missing_middleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = datetime.now(UTC)
FILES = ['machine.crt', 'machine.key', 'user.crt', 'user.key']
OWN_UID = os.geteuid()


@pytest.fixture(scope='module')
def alice(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.create(tmp_path_factory.mktemp('alice', numbered=False) / 'home', NOW)


@pytest.fixture(scope='module')
def bob(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.create(tmp_path_factory.mktemp('bob', numbered=False) / 'home', NOW)


def trust(identity: Identity, name: str, *roles: str) -> TrustedUser:
    return TrustedUser(identity.user_id, identity.user_cert, name, frozenset(roles))


def users(*trusted: TrustedUser) -> dict[str, TrustedUser]:
    return {user.user_id: user for user in trusted}


def machine_cert(identity: Identity) -> bytes:
    return pki.parse_cert_pem((identity.directory / 'machine.crt').read_bytes())


def read_files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def read_key(identity: Identity, name: str) -> Any:
    return pki.parse_key_pem((identity.directory / name).read_bytes())


# --- who I am: on disk --------------------------------------------------------------------------


@pytest.fixture(params=[0o000, 0o022, 0o777], ids='umask {:03o}'.format)
def umask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    # tmp_path comes first, so that it is made under the usual umask.
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures('umask')
def test_a_new_identity_is_private_under_any_umask(tmp_path: Path) -> None:
    home = tmp_path / 'share' / 'degu'
    identity = Identity.create(home, NOW)
    assert sorted(path.name for path in home.iterdir()) == FILES
    for path in home.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for directory in (home, home.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert Identity.open(home) == identity


def test_an_identity_names_what_its_certificates_say(alice: Identity) -> None:
    ids = pki.check_issued_by(machine_cert(alice), alice.user_cert)
    assert ids == (alice.user_id, alice.machine_id)
    assert pki.parse_cert_pem(alice.user_cert_file.read_bytes()) == alice.user_cert


def test_a_directory_may_be_given_as_text(tmp_path: Path) -> None:
    home = str(tmp_path / 'home')
    identity = Identity.create(home, NOW)
    assert Identity.open(home) == identity
    assert identity.directory == Path(home)


def test_create_never_replaces_an_identity(tmp_path: Path) -> None:
    Identity.create(tmp_path / 'home', NOW)
    before = read_files(tmp_path / 'home')
    with pytest.raises(FileExistsError, match='holds an identity already'):
        Identity.create(tmp_path / 'home', NOW)
    assert read_files(tmp_path / 'home') == before


@pytest.mark.parametrize('kept', range(4))
def test_create_finishes_what_a_killed_create_began(tmp_path: Path, kept: int) -> None:
    written = ['user.key', 'user.crt', 'machine.key', 'machine.crt']
    home = tmp_path / 'home'
    Identity.create(home, NOW)
    before = read_files(home)
    for name in written[kept:]:
        (home / name).unlink()
    with pytest.raises(FileNotFoundError):
        Identity.open(home)
    Identity.create(home, NOW)
    after = read_files(home)
    assert sorted(after) == FILES
    assert {name: after[name] for name in written[:kept]} == {
        name: before[name] for name in written[:kept]
    }


CREATE = (
    'import sys, pathlib, datetime\n'
    'import cryptography.x509\n'
    'from degu_rpc.peers import Identity\n'
    'print("ready", flush=True)\n'
    'sys.stdin.readline()\n'
    'print(Identity.create(pathlib.Path(sys.argv[1]), datetime.datetime.now(datetime.UTC)))\n'
)


def start_create(home: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, '-c', CREATE, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == 'ready\n'
    return process


KILLED_CREATES = (
    'import os, sys, pathlib, datetime, signal\n'
    'import cryptography.x509\n'
    'from degu_rpc.peers import Identity\n'
    'def create_until(home, step):\n'
    '    def hook(event, args):\n'
    '        nonlocal step\n'
    '        if event in ("open", "os.mkdir", "os.chmod", "os.link", "os.remove"):\n'
    '            if step == 0:\n'
    '                os.kill(os.getpid(), signal.SIGKILL)\n'
    '            step -= 1\n'
    '    sys.addaudithook(hook)\n'
    '    Identity.create(home, datetime.datetime.now(datetime.UTC))\n'
    '    os._exit(0)\n'
    'for step in range(1000):\n'
    '    child = os.fork()\n'
    '    if child == 0:\n'
    '        create_until(pathlib.Path(sys.argv[1], str(step)), step)\n'
    '    if os.waitpid(child, 0)[1] == 0:\n'
    '        break\n'
    'print(step)\n'
)


def test_a_kill_at_any_step_leaves_what_create_can_finish(tmp_path: Path) -> None:
    # A process for each step that create takes in the file system, killed right before that step.
    done = subprocess.run(
        [sys.executable, '-c', KILLED_CREATES, tmp_path],
        stdout=subprocess.PIPE,
        timeout=300,
        check=True,
    )
    written = set()
    for step in range(int(done.stdout) + 1):
        home = tmp_path / str(step)
        left = read_files(home) if home.exists() else {}
        whole = {name: data for name, data in left.items() if not name.endswith('.tmp')}
        written.add(frozenset(whole))
        if 'machine.crt' in whole:
            identity = Identity.open(home)
        else:
            identity = Identity.create(home, NOW)
        assert whole.items() <= read_files(home).items()
        assert Identity.open(home) == identity
        for path in home.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(len(names) for names in written) == [0, 1, 2, 3, 4]


def test_two_creates_at_once_end_with_one_identity(tmp_path: Path) -> None:
    home = tmp_path / 'home'
    processes = [start_create(home) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda process: process.communicate('go\n', timeout=60), processes))
    done = [out for out, _ in results if out]
    assert len(set(done)) == 1
    for process, (out, err) in zip(processes, results, strict=True):
        assert process.returncode == 0 if out else 'holds an identity already' in err
    assert repr(Identity.open(home)) + '\n' == done[0]
    assert sorted(path.name for path in home.iterdir()) == FILES


@pytest.mark.parametrize('name', FILES)
def test_a_file_others_could_read_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    home = tmp_path / "it's home"
    identity = Identity.create(home, NOW)
    for mode in (0o640, 0o604, 0o620, 0o601):
        (home / name).chmod(mode)
        with pytest.raises(IdentityError, match=f'{mode:04o}') as info:
            Identity.open(home)
        assert info.value.path == home / name
        command = info.value.remedy.removeprefix('run: ')
        subprocess.run(command, shell=True, check=True, timeout=60)
        assert Identity.open(home) == identity


def test_a_directory_others_could_enter_is_refused_with_the_remedy(tmp_path: Path) -> None:
    home = tmp_path / 'home'
    home.mkdir(mode=0o755)
    with pytest.raises(IdentityError, match='0755') as info:
        Identity.create(home, NOW)
    assert list(home.iterdir()) == []
    subprocess.run(info.value.remedy.removeprefix('run: '), shell=True, check=True, timeout=60)
    identity = Identity.create(home, NOW)
    home.chmod(0o750)
    with pytest.raises(IdentityError, match='0750'):
        Identity.open(home)
    home.chmod(0o700)
    assert Identity.open(home) == identity


def test_the_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    # Root can give a directory away; anybody else has one of root's at hand.
    if OWN_UID == 0:
        other = tmp_path / 'home'
        other.mkdir(mode=0o700)
        os.chown(other, 12345, -1)
    else:
        other = Path('/')
    for use in (Identity.open, lambda home: Identity.create(home, NOW)):
        with pytest.raises(IdentityError, match='belongs to uid') as info:
            use(other)
        assert info.value.remedy.endswith(f'sudo chown {OWN_UID} {other}')


@pytest.mark.parametrize('name', FILES)
def test_a_symbolic_link_is_refused(tmp_path: Path, name: str) -> None:
    home = tmp_path / 'home'
    Identity.create(home, NOW)
    (home / name).rename(tmp_path / 'elsewhere')
    (home / name).symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(IdentityError, match='not a regular file'):
        Identity.open(home)


@pytest.mark.parametrize('name', ['machine.key', 'user.crt'])
def test_a_lost_file_is_named_and_not_made_anew(tmp_path: Path, name: str) -> None:
    home = tmp_path / 'home'
    Identity.create(home, NOW)
    (home / name).unlink()
    with pytest.raises(IdentityError, match='restore it from a backup') as info:
        Identity.open(home)
    assert info.value.path == home / name
    with pytest.raises(FileExistsError):
        Identity.create(home, NOW)
    assert not (home / name).exists()


def test_a_lost_user_key_is_not_made_anew(tmp_path: Path) -> None:
    home = tmp_path / 'home'
    Identity.create(home, NOW)
    (home / 'user.key').unlink()
    (home / 'machine.crt').unlink()
    with pytest.raises(IdentityError, match='is missing'):
        Identity.create(home, NOW)
    assert not (home / 'user.key').exists()


def test_a_machine_without_the_user_key_is_complete(tmp_path: Path) -> None:
    home = tmp_path / 'home'
    identity = Identity.create(home, NOW)
    (home / 'user.key').unlink()
    assert Identity.open(home) == identity


@pytest.mark.parametrize('name', ['machine.crt', 'machine.key', 'user.crt'])
@pytest.mark.parametrize('how', ['empty', 'garbage', 'of somebody else'])
def test_files_that_do_not_fit_together_are_refused(
    tmp_path: Path, bob: Identity, name: str, how: str
) -> None:
    home = tmp_path / 'home'
    Identity.create(home, NOW)
    (home / name).write_bytes(
        {'empty': b'', 'garbage': b'\xff\0' * 50}.get(how, (bob.directory / name).read_bytes())
    )
    with pytest.raises(IdentityError, match='backup'):
        Identity.open(home)


def test_a_broken_key_is_refused_by_create(tmp_path: Path) -> None:
    home = tmp_path / 'home'
    home.mkdir(mode=0o700)
    (home / 'user.key').touch(mode=0o600)
    with pytest.raises(IdentityError, match='is broken'):
        Identity.create(home, NOW)


def test_nothing_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Identity.open(tmp_path / 'home')
    (tmp_path / 'home').mkdir(mode=0o700)
    with pytest.raises(FileNotFoundError):
        Identity.open(tmp_path / 'home')


def test_a_name_that_is_not_utf8_can_hold_an_identity(tmp_path: Path) -> None:
    home = Path(os.fsdecode(os.fsencode(tmp_path) + b'/\xff home'))
    identity = Identity.create(home, NOW)
    build_server_sslctx(identity.server_config(identity.user_cert_file))


def test_configs_are_absolute_and_normalized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    identity = Identity.create(Path('x/../home'), NOW)
    config = identity.server_config(Path('home/../home/user.crt'))
    assert config == {
        'cert_file': f'{tmp_path}/home/machine.crt',
        'key_file': f'{tmp_path}/home/machine.key',
        'ca_file': f'{tmp_path}/home/user.crt',
    }
    assert identity.client_config(Path('home/user.crt')) == {**config, 'check_hostname': False}


def test_importing_peers_does_not_import_cryptography() -> None:
    code = 'import sys, degu_rpc.peers; sys.exit("cryptography" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], timeout=60, check=True)


# --- who is calling: from the connection --------------------------------------------------------


def test_a_machine_of_a_trusted_user_has_our_name_and_roles(alice: Identity, bob: Identity) -> None:
    trusted = users(trust(alice, 'me', OWNER), trust(bob, 'Bob', 'peer', 'family'))
    assert derive_peer({'ssl_peer_cert': machine_cert(bob)}, trusted, OWN_UID) == Peer(
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
        derive_peer({'ssl_peer_cert': machine_cert(bob)}, users(trust(alice, 'me')), OWN_UID)
    assert bob.user_id in str(info.value)
    assert bob.machine_id in str(info.value)
    assert 'add that user to `users`' in str(info.value)


def forge_machine(claimed: Identity, signer: Identity) -> bytes:
    """A machine certificate that says it is of the user of *claimed*, signed by another user."""
    cert = x509.load_der_x509_certificate(
        pki.build_machine_cert(
            read_key(claimed, 'user.key'), read_key(signer, 'machine.key').public_key(), NOW
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
        derive_peer({'ssl_peer_cert': machine_cert(bob)}, filed_wrongly, OWN_UID)
    assert info.value.fault is pki.CertificateFault.USER_ID


def test_trust_is_looked_up_for_each_connection(alice: Identity, bob: Identity) -> None:
    trusted = users(trust(alice, 'me', OWNER), trust(bob, 'Bob', 'peer'))
    app = Authenticated(answer, trusted, OWN_UID)
    with socket.socket() as sock:
        connection = {'client': ('127.0.0.1', 1), 'ssl_peer_cert': machine_cert(bob)}
        assert app.on_connect(sock, connection) is True
        del trusted[bob.user_id]
        assert app.on_connect(sock, connection) is False


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
        {**local, 'ssl_peer_cert': machine_cert(bob)}, users(trust(bob, 'Bob')), OWN_UID
    )
    assert peer is not None
    assert peer.machine_id == bob.machine_id
    assert peer.roles == frozenset()
    assert peer.uid is None
    with pytest.raises(UnknownPeerError):
        derive_peer(
            {**local, 'ssl_peer_cert': machine_cert(bob)}, users(trust(alice, 'me')), OWN_UID
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
    app = Validator(Authenticated(answer, trusted, OWN_UID))
    server = serve(app, IPv4_LOOPBACK, build_server_sslctx(alice.server_config(both)))
    for caller in (alice, bob):
        sslctx = build_client_sslctx(caller.client_config(both))
        with SSLClient(sslctx, server.address).connect() as conn:
            body = conn.get('/', {}).body.read()
        peer = derive_peer({'ssl_peer_cert': machine_cert(caller)}, trusted, OWN_UID)
        assert body == repr(peer).encode()


def test_a_machine_trusted_by_tls_alone_is_rejected_and_logged(
    serve: Callable[..., Any],
    both: Path,
    alice: Identity,
    bob: Identity,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The CA file still has Bob, as right after a removal: the users decide.
    app = Authenticated(answer, users(trust(alice, 'me', OWNER)), OWN_UID)
    server = serve(app, IPv4_LOOPBACK, build_server_sslctx(alice.server_config(both)))
    sslctx = build_client_sslctx(bob.client_config(both))
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
    app = Validator(Authenticated(answer, {}, OWN_UID))
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


def test_plain_tcp_is_served_as_nobody(serve: Callable[..., Any]) -> None:
    server = serve(Validator(Authenticated(answer, {}, OWN_UID)))
    with Client(server.address).connect() as conn:
        assert conn.get('/', {}).body.read() == b'None'


def test_the_wrapped_app_sees_the_peer_and_may_reject(tmp_path: Path) -> None:
    with socket.socket() as sock:
        for verdict in (True, False, None, 1, 'yes'):
            app = Picky(verdict)
            found = Authenticated(app, {}, OWN_UID).on_connect(
                sock, {'client': None, 'credentials': (1, OWN_UID, 0)}
            )
            assert found is (verdict is True)
            assert [peer.uid for peer in app.seen if peer] == [OWN_UID]


def test_the_wrapped_app_is_not_asked_about_a_rejected_connection() -> None:
    app = Picky(True)
    connection = {'client': None, 'credentials': (1, OVERFLOW_UID, 0)}
    with socket.socket() as sock:
        assert Authenticated(app, {}, OWN_UID).on_connect(sock, connection) is False
    assert app.seen == []
    assert '_peer' not in connection


# --- which server this is -----------------------------------------------------------------------


def test_a_client_knows_the_server_by_its_machine_id(
    serve: Callable[..., Any], both: Path, alice: Identity, bob: Identity
) -> None:
    server = serve(
        Authenticated(answer, {}, OWN_UID),
        IPv4_LOOPBACK,
        build_server_sslctx(alice.server_config(both)),
    )
    sslctx = build_client_sslctx(bob.client_config(both))
    with SSLClient(sslctx, server.address).connect() as conn:
        cert = conn.peer_certificate
    check_server(cert, alice.machine_id)
    with pytest.raises(pki.CertificateError) as info:
        check_server(cert, bob.machine_id)
    assert info.value.fault is pki.CertificateFault.MACHINE_ID
    assert alice.machine_id in str(info.value)
    assert bob.machine_id in str(info.value)


def test_part_of_an_id_is_not_the_id(alice: Identity) -> None:
    for other in (alice.machine_id[:-1], '', alice.machine_id.upper(), alice.user_id):
        with pytest.raises(pki.CertificateError):
            check_server(machine_cert(alice), other)


def test_a_server_without_a_certificate_is_refused(alice: Identity) -> None:
    with pytest.raises(pki.CertificateError) as info:
        check_server(None, alice.machine_id)
    assert info.value.fault is pki.CertificateFault.MISSING


# --- who may ------------------------------------------------------------------------------------


@pytest.mark.parametrize('roles', ['friend', ['friend'], None])
def test_roles_that_are_no_frozenset_are_refused(alice: Identity, roles: Any) -> None:
    friend = TrustedUser(alice.user_id, alice.user_cert, 'Alice', roles)
    with pytest.raises(TypeError, match="'Alice' must be a frozenset"):
        Authenticated(answer, users(friend), OWN_UID)


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


def test_a_caller_is_whom_the_middleware_found() -> None:
    peer = Peer(PeerKind.LOCAL, None, None, 'uid:7', frozenset(), 7, 7)
    assert find_caller({'_peer': peer}) is peer
