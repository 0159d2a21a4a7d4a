"""degu_rpc.peers.identity: who I am, on disk, under any umask and a kill at any moment."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from degu import pki
from degu.tls import build_server_sslctx
from degu_rpc.peers import Identity, IdentityError, TrustStore

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime.now(UTC)
FILES = ['machine.pem', 'user.crt', 'user.key']
OWN_UID = os.geteuid()
PASSPHRASE = 'correct horse battery'


def read_files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def join(home: Path, issuer: Identity) -> Identity:
    key = pki.build_key()
    cert = issuer.certify(key.public_key(), NOW)
    return Identity.join(home, key, cert, issuer.user_cert)


# --- what is on disk -----------------------------------------------------------------------------


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
    ids = pki.check_issued_by(alice.machine_cert, alice.user_cert)
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


@pytest.mark.parametrize('kept', range(3))
def test_create_finishes_what_a_killed_create_began(tmp_path: Path, kept: int) -> None:
    written = ['user.key', 'user.crt', 'machine.pem']
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


@pytest.mark.parametrize('name', ['user.crt'])
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
    (home / 'machine.pem').unlink()
    with pytest.raises(IdentityError, match='is missing'):
        Identity.create(home, NOW)
    assert not (home / 'user.key').exists()


def test_a_machine_without_the_user_key_is_complete(tmp_path: Path) -> None:
    home = tmp_path / 'home'
    identity = Identity.create(home, NOW)
    (home / 'user.key').unlink()
    assert Identity.open(home) == identity


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('how', ['empty', 'garbage', 'of somebody else'])
def test_files_that_do_not_fit_together_are_refused(
    tmp_path: Path, bob: Identity, name: str, how: str
) -> None:
    home = tmp_path / 'home'
    Identity.create(home, NOW)
    (home / name).write_bytes(
        {'empty': b'', 'garbage': b'\xff\0' * 50}.get(how, (bob.directory / name).read_bytes())
    )
    with pytest.raises(IdentityError, match=r'broken.*backup'):
        Identity.open(home)


def test_a_broken_key_is_refused_by_create(tmp_path: Path) -> None:
    home = tmp_path / 'home'
    home.mkdir(mode=0o700)
    (home / 'user.key').touch(mode=0o600)
    with pytest.raises(IdentityError, match='is broken'):
        Identity.create(home, NOW)


def test_nothing_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='there is no identity here'):
        Identity.open(tmp_path / 'home')
    (tmp_path / 'home').mkdir(mode=0o700)
    with pytest.raises(FileNotFoundError, match='there is no identity here'):
        Identity.open(tmp_path / 'home')


def test_a_name_that_is_not_utf8_can_hold_an_identity(tmp_path: Path) -> None:
    home = Path(os.fsdecode(os.fsencode(tmp_path) + b'/\xff home'))
    identity = Identity.create(home, NOW)
    path = str(identity.machine_file)
    ca_file = str(identity.user_cert_file)
    build_server_sslctx({'cert_file': path, 'key_file': path, 'ca_file': ca_file})


def test_a_directory_is_remembered_as_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    identity = Identity.create(Path('x/../home'), NOW)
    assert identity.machine_file == tmp_path / 'home' / 'machine.pem'


def test_no_key_is_in_a_repr(alice: Identity) -> None:
    assert 'cert' not in repr(alice)
    assert alice.machine_id in repr(alice)


def test_importing_peers_does_not_import_cryptography() -> None:
    code = 'import sys, degu_rpc.peers; sys.exit("cryptography" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], timeout=60, check=True)


# --- joining -------------------------------------------------------------------------------------


def test_a_machine_that_joins_gets_no_user_key(tmp_path: Path, alice: Identity) -> None:
    joined = join(tmp_path / 'home', alice)
    assert sorted(read_files(tmp_path / 'home')) == ['machine.pem', 'user.crt']
    assert joined.user_id == alice.user_id
    assert joined.machine_id != alice.machine_id
    assert alice.can_certify
    assert not joined.can_certify
    for use in (joined.renew, joined.rotate):
        with pytest.raises(IdentityError, match='cannot certify others; do this on the machine'):
            use(NOW)
    assert Identity.open(tmp_path / 'home') == joined


def test_a_join_replaces_no_identity(tmp_path: Path, alice: Identity) -> None:
    Identity.create(tmp_path / 'home', NOW)
    before = read_files(tmp_path / 'home')
    with pytest.raises(FileExistsError):
        join(tmp_path / 'home', alice)
    (tmp_path / 'home' / 'machine.pem').unlink()
    with pytest.raises(IdentityError, match='a machine that joins another has none'):
        join(tmp_path / 'home', alice)
    del before['machine.pem']
    assert read_files(tmp_path / 'home') == before


def test_a_join_that_was_killed_can_be_another_one(
    tmp_path: Path, alice: Identity, bob: Identity
) -> None:
    joined = join(tmp_path / 'home', alice)
    joined.machine_file.unlink()
    with pytest.raises(FileNotFoundError):
        Identity.open(tmp_path / 'home')
    with pytest.raises(IdentityError, match=r'join again, or remove user\.crt'):
        Identity.create(tmp_path / 'home', NOW)
    assert join(tmp_path / 'home', bob).user_id == bob.user_id


def test_a_certificate_of_another_user_or_key_is_not_joined(
    tmp_path: Path, alice: Identity, bob: Identity
) -> None:
    key = pki.build_key()
    cert = alice.certify(key.public_key(), NOW)
    for args in ((key, cert, bob.user_cert), (pki.build_key(), cert, alice.user_cert)):
        with pytest.raises(pki.CertificateError):
            Identity.join(tmp_path / 'home', *args)
    assert not (tmp_path / 'home').exists()


def test_a_join_can_be_taken_back_and_a_user_cannot(tmp_path: Path, alice: Identity) -> None:
    join(tmp_path / 'home', alice).discard()
    assert list((tmp_path / 'home').iterdir()) == []
    identity = Identity.create(tmp_path / 'home', NOW)
    with pytest.raises(IdentityError, match='would be lost'):
        identity.discard()
    assert Identity.open(tmp_path / 'home') == identity


def test_a_store_of_trust_goes_neither_away_nor_to_the_next_user(
    tmp_path: Path, alice: Identity, bob: Identity
) -> None:
    joined = join(tmp_path / 'home', alice)
    TrustStore(joined).add(bob.user_cert, 'Bob')
    with pytest.raises(IdentityError, match='says whom somebody else trusts; move it away'):
        joined.discard()
    assert Identity.open(tmp_path / 'home') == joined
    joined.machine_file.unlink()
    with pytest.raises(IdentityError, match='says whom somebody else trusts; move it away'):
        join(tmp_path / 'home', bob)
    (tmp_path / 'home' / 'peers').rename(tmp_path / 'peers')
    assert join(tmp_path / 'home', bob).user_id == bob.user_id


# --- a new certificate, a new key ----------------------------------------------------------------


def test_renewal_keeps_the_key_and_the_id(tmp_path: Path) -> None:
    identity = Identity.create(tmp_path / 'home', NOW)
    assert not identity.needs_renewal(NOW)
    half_a_year = NOW + timedelta(days=182)
    assert identity.needs_renewal(half_a_year)
    renewed = identity.renew(half_a_year)
    assert not renewed.needs_renewal(half_a_year)
    assert renewed.machine_id == identity.machine_id
    assert renewed.machine_cert != identity.machine_cert
    assert Identity.open(tmp_path / 'home') == renewed
    assert sorted(read_files(tmp_path / 'home')) == FILES


def test_rotation_changes_the_key_and_the_id_at_once(tmp_path: Path) -> None:
    identity = Identity.create(tmp_path / 'home', NOW)
    rotated = identity.rotate(NOW)
    assert rotated.machine_id != identity.machine_id
    assert rotated.user_id == identity.user_id
    assert Identity.open(tmp_path / 'home') == rotated


def test_only_a_certificate_of_my_user_for_that_key_is_installed(
    tmp_path: Path, bob: Identity
) -> None:
    identity = Identity.create(tmp_path / 'home', NOW)
    key = identity.read_machine_key()
    others = pki.build_key()
    for args in (
        (key, bob.certify(key.public_key(), NOW)),
        (key, identity.certify(others.public_key(), NOW)),
        (key, b''),
    ):
        with pytest.raises(pki.CertificateError):
            identity.install(*args)
    assert Identity.open(tmp_path / 'home') == identity


# --- a second issuer -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def exported(alice: Identity) -> bytes:
    return alice.export_user(PASSPHRASE)


def test_an_exported_user_makes_a_second_issuer(
    tmp_path: Path, alice: Identity, exported: bytes
) -> None:
    second = Identity.import_user(tmp_path / 'home', exported, PASSPHRASE, NOW)
    assert second.user_id == alice.user_id
    assert second.user_cert == alice.user_cert
    key = pki.build_key()
    assert pki.check_issued_by(second.certify(key.public_key(), NOW), alice.user_cert)


def test_a_joined_machine_becomes_an_issuer_and_keeps_its_id(
    tmp_path: Path, alice: Identity, exported: bytes
) -> None:
    joined = join(tmp_path / 'home', alice)
    for _ in range(2):
        assert Identity.import_user(tmp_path / 'home', exported, PASSPHRASE, NOW) == joined
        assert joined.can_certify


def test_an_import_does_not_replace_another_user(tmp_path: Path, exported: bytes) -> None:
    identity = Identity.create(tmp_path / 'home', NOW)
    before = read_files(tmp_path / 'home')
    with pytest.raises(IdentityError, match=f'is of another user, {identity.user_id}'):
        Identity.import_user(tmp_path / 'home', exported, PASSPHRASE, NOW)
    assert read_files(tmp_path / 'home') == before


def test_an_import_does_not_go_with_the_key_of_another_user(
    tmp_path: Path, exported: bytes
) -> None:
    Identity.create(tmp_path / 'home', NOW)
    for name in ('user.crt', 'machine.pem'):
        (tmp_path / 'home' / name).unlink()
    before = read_files(tmp_path / 'home')
    with pytest.raises(IdentityError, match='is of another user'):
        Identity.import_user(tmp_path / 'home', exported, PASSPHRASE)
    assert read_files(tmp_path / 'home') == before
