"""degu_rpc.peers.trust: whom this machine trusts, in all threads and processes."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from degu import durable, pki
from degu_rpc.peers import (
    OWNER,
    Identity,
    IdentityError,
    RemovedUserError,
    TrustError,
    TrustStore,
    UnknownUserError,
    trust,
)
from degu_rpc.peers.limits import (
    MAX_DENIED,
    MAX_MACHINES,
    MAX_NAME_LENGTH,
    MAX_RECORD_SIZE,
    MAX_ROLES,
    MAX_USERS,
)

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime.now(UTC)
IDS = [pki.derive_machine_id(pki.build_key().public_key()) for _ in range(3)]


@pytest.fixture
def me(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / 'home', NOW)


@pytest.fixture
def store(me: Identity) -> TrustStore:
    return TrustStore(me)


def add(store: TrustStore, identity: Identity, name: str = 'Bob', **options: Any) -> Any:
    return store.add(identity.user_cert, name, how='test', now=NOW, **options)


def path_of(store: TrustStore, identity: Identity) -> Path:
    return store.directory / f'{identity.user_id}.json'


def snapshot(store: TrustStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.directory.iterdir()}


# --- what it says --------------------------------------------------------------------------------


def test_a_new_store_trusts_my_own_user_and_nobody_else(me: Identity, store: TrustStore) -> None:
    (user,) = store.users().values()
    assert user.user_id == me.user_id
    assert user.ca_cert == me.user_cert
    assert user.roles == {OWNER}
    assert list(store.directory.iterdir()) == []


def test_a_user_is_trusted_by_name_and_roles(store: TrustStore, bob: Identity) -> None:
    store.add(
        bob.user_cert,
        'Bob',
        {'peer', 'family'},
        how='test',
        now=NOW,
        machines={bob.machine_id: 'laptop'},
    )
    user = store.users()[bob.user_id]
    assert user == (
        bob.user_id,
        bob.user_cert,
        'Bob',
        frozenset({'peer', 'family'}),
        {bob.machine_id: 'laptop'},
        frozenset(),
        NOW.isoformat(timespec='seconds'),
        'test',
    )


def test_another_store_of_the_same_identity_says_the_same(
    me: Identity, store: TrustStore, bob: Identity
) -> None:
    other = TrustStore(me)
    assert bob.user_id not in other.users()
    add(store, bob)
    assert other.users() == store.users()
    store.remove(bob.user_id, NOW)
    assert bob.user_id not in other.users()


def test_while_nothing_changes_it_is_the_same_mapping(store: TrustStore, bob: Identity) -> None:
    add(store, bob)
    users = store.users()
    assert store.users() is users
    path_of(store, bob).touch()
    assert store.users() is users
    with pytest.raises(TypeError):
        users['x'] = None  # type: ignore[index]
    add(store, bob, 'Robert')
    assert store.users() is not users
    assert users[bob.user_id].name == 'Bob'


def test_every_change_is_seen_however_fast_it_follows_another(
    store: TrustStore, bob: Identity
) -> None:
    for number in range(50):
        add(store, bob, f'Bob {number:03}')
        assert store.users()[bob.user_id].name == f'Bob {number:03}'


def test_a_change_in_the_same_tick_of_the_clock_is_seen(
    store: TrustStore, bob: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, bob)
    # As a file system would have it that did not notice a thing.
    tick = time.time_ns()
    monkeypatch.setattr(trust, '_stamp', lambda path: (tick,))
    monkeypatch.setattr(time, 'time_ns', lambda: tick)
    assert store.users()[bob.user_id].name == 'Bob'
    add(store, bob, 'Rob')
    assert store.users()[bob.user_id].name == 'Rob'


def test_a_settled_store_is_not_read_again(
    store: TrustStore, bob: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, bob)
    old = 10**18
    os.utime(store.directory, ns=(old, old))
    users = store.users()
    monkeypatch.setattr(os, 'listdir', None)
    assert store.users() is users  # within _LOOK_S


def test_a_new_name_is_no_id_and_one_that_is_there_can_be_denied(
    store: TrustStore, bob: Identity
) -> None:
    for name, machines in ((bob.user_id, {}), ('Bob', {bob.machine_id: bob.machine_id})):
        with pytest.raises(ValueError, match='cannot be an id'):
            store.add(bob.user_cert, name, machines=machines)
    store.add(bob.user_cert, 'Bob', machines={bob.machine_id: 'laptop'})
    with pytest.raises(ValueError, match='cannot be an id'):
        store.add_machine(bob.user_id, bob.machine_id, bob.user_id)
    path = store.directory / f'{bob.user_id}.json'
    path.write_text(path.read_text().replace('laptop', bob.machine_id))
    store.deny(bob.user_id, bob.machine_id)
    assert store.users()[bob.user_id].denied == {bob.machine_id}


def test_a_change_keeps_what_it_does_not_name(store: TrustStore, bob: Identity) -> None:
    add(store, bob, machines={IDS[0]: 'laptop'})
    store.deny(bob.user_id, IDS[1])
    add(store, bob, 'Robert', machines={IDS[1]: 'phone'})
    user = store.users()[bob.user_id]
    assert user.name == 'Robert'
    assert user.machines == {IDS[0]: 'laptop', IDS[1]: 'phone'}
    assert user.denied == {IDS[1]}
    store.allow(bob.user_id, IDS[1])
    assert store.users()[bob.user_id].denied == frozenset()


def test_a_machine_of_my_own_can_be_named_and_denied(me: Identity, store: TrustStore) -> None:
    store.add_machine(me.user_id, IDS[0], 'phone')
    store.deny(me.user_id, IDS[0])
    user = store.users()[me.user_id]
    assert (user.machines, user.denied) == ({IDS[0]: 'phone'}, {IDS[0]})
    assert user.roles == {OWNER}
    assert user.ca_cert == me.user_cert


def test_a_change_can_be_taken_back(store: TrustStore, bob: Identity) -> None:
    nobody = snapshot(store), store.remember(bob.user_id)
    add(store, bob)
    once = snapshot(store), store.remember(bob.user_id)
    add(store, bob, 'Robert', machines={IDS[0]: 'laptop'})
    for _ in range(2):
        store.put_back(once[1])
        assert snapshot(store) == once[0]
        assert store.users()[bob.user_id].name == 'Bob'
    for _ in range(2):
        store.put_back(nobody[1])
        assert snapshot(store) == nobody[0]
    assert bob.user_id not in store.users()


def test_a_change_that_failed_after_its_file_was_there_can_be_taken_back(
    store: TrustStore, bob: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = store.remember(bob.user_id)
    with monkeypatch.context() as patch:
        patch.setattr(durable, 'sync_directory', Mock(side_effect=OSError('a broken disk')))
        with pytest.raises(OSError, match='a broken disk'):
            add(store, bob)
    assert bob.user_id in store.users()
    store.put_back(former)
    assert bob.user_id not in store.users()


def test_what_was_denied_meanwhile_stays_denied(store: TrustStore, bob: Identity) -> None:
    add(store, bob)
    former = store.remember(bob.user_id)
    add(store, bob, 'Robert')
    store.deny(bob.user_id, IDS[0])
    store.put_back(former)
    user = store.users()[bob.user_id]
    assert (user.name, user.denied) == ('Bob', {IDS[0]})


def test_a_machine_of_my_own_that_was_denied_meanwhile_stays_denied(
    me: Identity, store: TrustStore
) -> None:
    former = store.remember(me.user_id)
    store.add_machine(me.user_id, IDS[0], 'phone')
    store.deny(me.user_id, IDS[1])
    store.put_back(former)
    user = store.users()[me.user_id]
    assert (user.machines, user.denied) == ({}, {IDS[1]})


@pytest.mark.parametrize('is_there', [False, True], ids=['the first', 'one more'])
def test_an_id_that_was_changed_meanwhile_is_not_forgotten(
    me: Identity, store: TrustStore, is_there: bool
) -> None:
    if is_there:
        store.add_machine(me.user_id, IDS[0], 'phone')
    former = store.remember(me.user_id)
    store.add_machine(me.user_id, IDS[1], 'laptop')
    store.succeed(IDS[0], IDS[2])
    store.put_back(former)
    store.deny(me.user_id, IDS[0])
    assert store.users()[me.user_id].denied == {IDS[0], IDS[2]}


def test_on_a_full_disk_a_change_that_never_came_can_be_taken_back(
    store: TrustStore, bob: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, bob)
    former, before = store.remember(bob.user_id), snapshot(store)
    monkeypatch.setattr(durable, 'replace', Mock(side_effect=OSError('no space')))
    with pytest.raises(OSError, match='no space'):
        add(store, bob, 'Robert')
    store.put_back(former)
    assert snapshot(store) == before


def test_who_was_removed_meanwhile_stays_removed(store: TrustStore, bob: Identity) -> None:
    add(store, bob)
    former = store.remember(bob.user_id)
    add(store, bob, 'Robert')
    store.remove(bob.user_id)
    store.put_back(former)
    assert bob.user_id not in store.users()


# --- removal sticks ------------------------------------------------------------------------------


def test_a_removed_user_comes_back_only_when_somebody_decides_it(
    store: TrustStore, bob: Identity
) -> None:
    add(store, bob)
    backup = snapshot(store)
    for _ in range(2):
        store.remove(bob.user_id, NOW)
        assert bob.user_id not in store.users()
        with pytest.raises(RemovedUserError, match='was removed here, as') as caught:
            add(store, bob)
        assert caught.value.name == 'Bob'
        assert datetime.fromisoformat(caught.value.removed_at) == NOW.replace(microsecond=0)
        # An old backup is put back over what is there.
        for name, content in backup.items():
            (store.directory / name).write_bytes(content)
            (store.directory / name).chmod(0o600)
        assert bob.user_id not in store.users()
        with pytest.raises(RemovedUserError):
            add(store, bob)
        add(store, bob, revive=True)
        assert store.users()[bob.user_id].name == 'Bob'
        add(store, bob, 'Robert')
        add(store, bob)


def test_who_comes_back_has_what_is_new_only(store: TrustStore, bob: Identity) -> None:
    add(store, bob, machines={IDS[0]: 'laptop'})
    store.remove(bob.user_id, NOW)
    add(store, bob, revive=True, machines={IDS[1]: 'phone'})
    assert store.users()[bob.user_id].machines == {IDS[1]: 'phone'}


def test_taking_back_who_came_back_leaves_the_removal(store: TrustStore, bob: Identity) -> None:
    add(store, bob)
    store.remove(bob.user_id, NOW)
    removed = snapshot(store)
    former = store.remember(bob.user_id)
    add(store, bob, revive=True)
    store.put_back(former)
    assert snapshot(store) == removed
    with pytest.raises(RemovedUserError):
        add(store, bob)


def test_who_is_not_there_cannot_be_removed_or_denied(store: TrustStore, bob: Identity) -> None:
    for use in (
        lambda: store.remove(bob.user_id, NOW),
        lambda: store.deny(bob.user_id, IDS[0]),
        lambda: store.allow(bob.user_id, IDS[0]),
        lambda: store.add_machine(bob.user_id, IDS[0], 'laptop'),
    ):
        with pytest.raises(UnknownUserError, match='is not trusted here') as caught:
            use()
        assert caught.value.user_id == bob.user_id
    assert snapshot(store) == {}


@pytest.mark.parametrize('user_id', ['Bob', '', '../' * 16, 'A' * 48])
def test_what_is_no_id_is_no_part_of_a_path(store: TrustStore, user_id: str) -> None:
    for use in (store.remove, store.remember, lambda each: store.deny(each, IDS[0])):
        with pytest.raises(ValueError, match='an id is 48 base32 characters'):
            use(user_id)


def test_a_user_is_printed_without_the_certificate(store: TrustStore, bob: Identity) -> None:
    add(store, bob)
    shown = repr(store.users()[bob.user_id])
    assert f"TrustedUser('{bob.user_id}', name='Bob', roles=frozenset({{'peer'}})" in shown
    assert 'ca_cert' not in shown


def test_my_own_user_is_neither_added_nor_removed(me: Identity, store: TrustStore) -> None:
    with pytest.raises(ValueError, match='my own user is trusted by itself'):
        add(store, me)
    with pytest.raises(ValueError, match=r'deny\(\) keeps a machine out'):
        store.remove(me.user_id, NOW)


def test_a_backup_with_an_older_removal_does_not_undo_a_newer_one(
    store: TrustStore, bob: Identity
) -> None:
    add(store, bob)
    store.remove(bob.user_id)
    add(store, bob, revive=True)
    backup = snapshot(store)
    store.remove(bob.user_id)
    for name, content in backup.items():
        (store.directory / name).write_bytes(content)
        (store.directory / name).chmod(0o600)
    assert bob.user_id not in store.users()


def test_what_is_written_in_place_is_seen_within_a_second(
    store: TrustStore, bob: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, bob)
    kept = path_of(store, bob).read_bytes()
    store.deny(bob.user_id, IDS[0])
    denying = path_of(store, bob).read_bytes()
    path_of(store, bob).write_bytes(kept)
    os.utime(store.directory, ns=(10**18, 10**18))
    assert not store.users()[bob.user_id].denied
    path_of(store, bob).write_bytes(denying)
    assert not store.users()[bob.user_id].denied
    later = time.monotonic() + 1
    monkeypatch.setattr(time, 'monotonic', lambda: later)
    assert store.users()[bob.user_id].denied == {IDS[0]}


def test_a_store_that_was_opened_up_while_it_is_used_trusts_nobody(store: TrustStore) -> None:
    store.users()
    store.directory.chmod(0o777)
    with pytest.raises(IdentityError, match='chmod 700'):
        store.users()


# --- a machine of mine with another id -----------------------------------------------------------


def test_who_denies_a_machine_denies_what_it_became(me: Identity, store: TrustStore) -> None:
    first, second, third = (letter * 48 for letter in 'abc')
    store.add_machine(me.user_id, first, 'phone')
    store.succeed(first, second, NOW)
    store.retire(first)
    store.succeed(second, third, NOW + timedelta(days=2))
    assert store.users()[me.user_id].machines[third] == 'phone'
    assert store.users()[me.user_id].denied == {first}
    store.deny(me.user_id, first)
    assert store.users()[me.user_id].denied == {first, second, third}


def test_a_machine_has_one_other_id_a_day(me: Identity, store: TrustStore) -> None:
    first, second, third, other = (letter * 48 for letter in 'abcd')
    store.succeed(first, second, NOW)
    for former in (first, second):
        with pytest.raises(TrustError, match=r'changed its key at .*wait until 24 hours'):
            store.succeed(former, third, NOW + timedelta(hours=23))
    store.succeed(other, third, NOW)
    store.succeed(second, other, NOW + timedelta(hours=25))


def test_what_a_machine_was_is_forgotten_once_no_certificate_can_be_left(
    me: Identity, store: TrustStore
) -> None:
    store.succeed('a' * 48, 'b' * 48, NOW)
    store.succeed('c' * 48, 'd' * 48, NOW + timedelta(days=366))
    assert list(json.loads(path_of(store, me).read_bytes())['successors']) == ['c' * 48]


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'roles', 'machines', 'reason'),
    [
        ('', {'peer'}, {}, 'name'),
        ('x' * (MAX_NAME_LENGTH + 1), {'peer'}, {}, 'name'),
        ('Bob\x1b[2J', {'peer'}, {}, 'control characters'),
        ('\u202eboB', {'peer'}, {}, 'control characters'),
        ('Bob\u200b', {'peer'}, {}, 'control characters'),
        ('Bob', {''}, {}, 'roles'),
        ('Bob', {'a\n'}, {}, 'control characters'),
        ('Bob', {f'{number}' for number in range(MAX_ROLES + 1)}, {}, 'roles'),
        ('Bob', {OWNER}, {}, "'owner' is none to be given"),
        ('Bob', 'peer', {}, 'roles are names'),
        ('Bob', {'peer'}, {'a': 'laptop'}, 'machines'),
        ('Bob', {'peer'}, {'a' * 48 + '\n': 'laptop'}, 'machines'),
        ('Bob', {'peer'}, {'a' * 48: 'lap\ttop'}, 'control characters'),
    ],
    ids=range(13),
)
def test_what_cannot_be_kept_is_refused(
    store: TrustStore, bob: Identity, name: str, roles: Any, machines: Any, reason: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        store.add(bob.user_cert, name, roles, how='test', now=NOW, machines=machines)
    assert snapshot(store) == {}


def test_a_certificate_that_is_no_users_is_refused(store: TrustStore, bob: Identity) -> None:
    for cert in (bob.machine_cert, b'', bob.user_cert + b'\0'):
        with pytest.raises(pki.CertificateError):
            store.add(cert, 'Bob', {'peer'}, how='test', now=NOW)


def test_one_user_too_many_is_refused(store: TrustStore, bob: Identity, alice: Identity) -> None:
    for number in range(MAX_USERS - 1):
        name = f'{number:048}'.translate({ord(str(i)): chr(ord('a') + i) for i in range(10)})
        (store.directory / f'{name}.json').touch(mode=0o600)
    add(store, bob)
    with pytest.raises(TrustError, match=f'is one more than {MAX_USERS} users; remove one first'):
        add(store, alice)
    add(store, bob, 'Robert')


def test_as_much_as_the_limits_allow_about_a_user_can_be_kept(
    store: TrustStore, bob: Identity
) -> None:
    def make_id(number: int) -> str:
        return 'a' * 44 + f'{number:04}'.translate(str.maketrans('0189', 'zyxw'))

    machines = {make_id(number): 'x' * MAX_NAME_LENGTH for number in range(MAX_MACHINES)}
    add(store, bob, machines=machines)
    record = json.loads(path_of(store, bob).read_bytes())
    record['denied'] = sorted(machines)[: MAX_DENIED - 1]
    path_of(store, bob).write_text(json.dumps(record))
    store.deny(bob.user_id, make_id(9999))
    assert len(store.users()[bob.user_id].denied) == MAX_DENIED
    assert path_of(store, bob).stat().st_size < MAX_RECORD_SIZE
    with pytest.raises(TrustError, match=f'more than {MAX_DENIED} denied machines; allow one'):
        store.deny(bob.user_id, 'b' * 48)
    with pytest.raises(TrustError, match=f'more than {MAX_MACHINES} machines with a name'):
        store.add_machine(bob.user_id, 'b' * 48, 'one more')


BROKEN = {
    'empty': lambda text: '',
    'cut': lambda text: text[:-10],
    'not UTF-8': lambda text: '\udcff' + text,
    'another version': lambda text: text.replace('"version": 1', '"version": 2'),
    'another field': lambda text: text.replace('{', '{"more": 1,', 1),
    'of another user': lambda text: re.sub(r'"user_id": ".', '"user_id": "z', text),
    'a broken certificate': lambda text: text.replace('MII', 'MIJ', 1),
    'a wrong type': lambda text: text.replace('"epoch": 1', '"epoch": "1"'),
}


@pytest.mark.parametrize('how', BROKEN)
def test_a_broken_file_trusts_nobody_and_is_logged(
    me: Identity,
    store: TrustStore,
    bob: Identity,
    alice: Identity,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    add(store, bob)
    add(store, alice, 'Alice')
    text = path_of(store, bob).read_text()
    broken = BROKEN[how](text)
    assert broken != text
    path_of(store, bob).write_bytes(broken.encode(errors='surrogateescape'))
    assert set(store.users()) == {me.user_id, alice.user_id}
    assert bob.user_id in caplog.text
    assert 'restore it from a backup, or remove the file' in caplog.text
    if how != 'a broken certificate':  # with which nobody is let in, denied or not
        with pytest.raises(TrustError):
            store.deny(bob.user_id, IDS[0])
    path_of(store, bob).unlink()
    add(store, bob)
    assert bob.user_id in store.users()


def test_a_broken_tombstone_counts_as_one(store: TrustStore, bob: Identity) -> None:
    add(store, bob)
    record = path_of(store, bob).read_bytes()
    store.remove(bob.user_id)
    (store.directory / f'{bob.user_id}.removed.1.json').write_bytes(b'')
    path_of(store, bob).write_bytes(record)
    path_of(store, bob).chmod(0o600)
    assert bob.user_id not in store.users()
    with pytest.raises(TrustError, match=r'removed\.1\.json cannot be read'):
        add(store, bob)
    add(store, bob, revive=True)
    assert bob.user_id in store.users()


def test_a_broken_file_about_me_lets_none_of_my_other_machines_in(
    me: Identity, store: TrustStore
) -> None:
    store.deny(me.user_id, IDS[0])
    path_of(store, me).write_bytes(b'{}')
    assert me.user_id not in store.users()


def test_a_certificate_of_another_user_is_not_trusted_by_a_file_name(
    store: TrustStore, bob: Identity, alice: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    add(store, bob)
    add(store, alice)
    record = json.loads(path_of(store, bob).read_bytes())
    record['ca_cert'] = json.loads(path_of(store, alice).read_bytes())['ca_cert']
    path_of(store, bob).write_text(json.dumps(record))
    assert bob.user_id not in store.users()
    assert f'its certificate is of {alice.user_id}' in caplog.text


def test_the_role_of_the_owner_is_not_taken_from_a_file(store: TrustStore, bob: Identity) -> None:
    add(store, bob)
    text = path_of(store, bob).read_text()
    path_of(store, bob).write_text(text.replace('"peer"', '"owner", "peer"'))
    assert store.users()[bob.user_id].roles == {'peer'}


def test_a_file_others_could_write_is_refused_with_the_remedy(
    store: TrustStore, bob: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    add(store, bob)
    path_of(store, bob).chmod(0o666)
    assert bob.user_id not in store.users()
    assert f'run: chmod 600 {path_of(store, bob)}' in caplog.text


def test_a_directory_others_could_enter_is_refused(me: Identity, store: TrustStore) -> None:
    store.directory.chmod(0o755)
    with pytest.raises(IdentityError, match='chmod 700'):
        TrustStore(me)


def test_a_directory_in_place_of_a_file_is_that_user_s_alone(
    store: TrustStore, bob: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    add(store, bob)
    (store.directory / f'{"a" * 48}.json').mkdir(mode=0o700)
    assert bob.user_id in store.users()
    assert 'is not a regular file' in caplog.text


def test_other_files_in_the_directory_are_nothing(store: TrustStore) -> None:
    for name in ('README', 'x.json', '.hidden', 'a' * 48, 'a' * 48 + '.json~'):
        (store.directory / name).touch()
    assert len(store.users()) == 1


# --- on disk -------------------------------------------------------------------------------------


@pytest.mark.parametrize('mask', [0o000, 0o777], ids='{:03o}'.format)
def test_files_are_private_under_any_umask(me: Identity, bob: Identity, mask: int) -> None:
    before = os.umask(mask)
    try:
        store = TrustStore(me)
        add(store, bob)
        store.remove(bob.user_id, NOW)
        add(store, bob, revive=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in store.directory.iterdir()}
    assert modes == {'.json': 0o600}


FULL = (
    'import datetime, resource, signal, sys\n'
    'from degu_rpc.peers import Identity, TrustStore\n'
    'me, other = map(Identity.open, sys.argv[1:])\n'
    'store = TrustStore(me)\n'
    'now = datetime.datetime.now(datetime.UTC)\n'
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n'
    'for change in (\n'
    '    lambda: store.add(other.user_cert, "x", {"peer"}, how="test", now=now),\n'
    '    lambda: store.deny(other.user_id, other.machine_id),\n'
    '    lambda: store.remove(other.user_id, now),\n'
    '):\n'
    '    try:\n'
    '        change()\n'
    '    except OSError as error:\n'
    '        print(error.errno)\n'
)


def test_a_full_disk_changes_nothing(store: TrustStore, me: Identity, bob: Identity) -> None:
    # A file size limit fails the write as a full disk does, in a process of its own.
    add(store, bob)
    before = snapshot(store)
    done = subprocess.run(
        [sys.executable, '-B', '-c', FULL, me.directory, bob.directory],
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    assert done.stdout == b'27\n' * 3  # EFBIG
    assert snapshot(store) == before


def test_what_a_killed_writer_left_is_removed_by_the_next(store: TrustStore, bob: Identity) -> None:
    (store.directory / f'.{bob.user_id}.json.0123.tmp').touch()
    assert bob.user_id not in store.users()
    add(store, bob)
    assert [path.name for path in store.directory.iterdir()] == [f'{bob.user_id}.json']


def test_changes_at_the_same_time_are_all_made(
    me: Identity, store: TrustStore, bob: Identity
) -> None:
    add(store, bob)

    def name(number: int) -> None:
        other = TrustStore(me)
        for i in range(20):
            other.add_machine(bob.user_id, f'{"abcd"[number] * 46}{"abcdefghij"[i % 10]}a', f'{i}')
            assert bob.user_id in other.users()

    threads = [threading.Thread(target=name, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.users()[bob.user_id].machines) == 40


# --- contexts ------------------------------------------------------------------------------------


def test_contexts_are_made_anew_only_when_something_changed(
    me: Identity, store: TrustStore, bob: Identity
) -> None:
    server, client = store.server_sslctx(), store.client_sslctx()
    assert store.server_sslctx() is server
    assert store.client_sslctx() is client
    assert len(server.get_ca_certs()) == 1
    add(store, bob)
    assert store.server_sslctx() is not server
    assert len(store.server_sslctx().get_ca_certs()) == 2
    assert len(store.client_sslctx().get_ca_certs()) == 2
    store.remove(bob.user_id, NOW)
    assert store.server_sslctx().get_ca_certs(True) == [me.user_cert]
    server = store.server_sslctx()
    me.renew(NOW)
    assert store.server_sslctx() is not server


def test_a_certificate_that_cannot_be_used_is_an_error(me: Identity, store: TrustStore) -> None:
    me.machine_file.write_bytes(b'')
    with pytest.raises(OSError, match='SSL'):
        store.server_sslctx()
