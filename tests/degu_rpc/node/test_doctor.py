"""Each check of degu_rpc.node.doctor against a real cause of what it finds."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from degu_rpc import Identity, Node, TrustStore
from degu_rpc.node.config import Config, InboxSettings, Share
from degu_rpc.node.doctor import (
    Known,
    Level,
    check_certificate,
    check_clock,
    check_home,
    check_identity,
    check_inbox,
    check_node,
    check_port,
    check_settings,
    check_shares,
    examine,
)
from degu_rpc.node.home import Home

YEAR = timedelta(days=365)
OK, WARNING, FAULT = Level
CONFIG = Config(name='studio', port=0, listen=('127.0.0.1',), discovery=False)


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / 'home')
    home.directory.mkdir(mode=0o700)
    return home


def find(check, home, **known):
    """Run one check; its findings are about one thing."""
    return [(f.level, f.words, f.remedy) for f in check(Known(home, 5.0, **known))]


def make_identity(home, now=None):
    return Identity.create(home.identity_directory, now)


def test_a_new_home_has_nothing_at_fault(tmp_path):
    found = examine(Home(tmp_path / 'new'), 1.0)
    assert {f.level for f in found if f.check in ('home', 'identity', 'node')} == {WARNING}
    assert all(f.remedy for f in found if f.level is not OK)
    assert not (tmp_path / 'new').exists()


def test_a_home_that_others_can_read_is_a_fault(home):
    ((level, _, _),) = find(check_home, home)
    assert level is OK
    home.directory.chmod(0o750)
    ((level, words, remedy),) = find(check_home, home)
    assert (level, remedy) == (FAULT, f'run: chmod 700 {home.directory}')
    assert '0750' in words


def test_a_home_of_a_newer_version_is_a_fault(home):
    (home.directory / 'format').touch(0o600)
    (home.directory / 'format').write_text('2\n')
    ((level, words, _),) = find(check_home, home)
    assert level is FAULT
    assert 'newer version' in words


def test_an_inbox_into_which_nothing_can_come_is_a_fault(home, tmp_path):
    def look(**settings):
        return find(check_inbox, home, config=Config(inbox=InboxSettings(**settings)))

    assert look(path=str(tmp_path)) == [(OK, f'it is {tmp_path}', '')]
    ((level, words, remedy),) = look(path=str(tmp_path / 'nosuch' / 'in'))
    assert (level, words) == (FAULT, f'nothing can come in: {tmp_path}/nosuch is not there')
    assert 'config.toml' in remedy
    assert look(path='/nosuch/in', accept=(), ask=()) == []


def test_a_share_that_cannot_be_opened_is_a_fault(home, tmp_path):
    shares = {'here': Share(str(tmp_path)), 'gone': Share(str(tmp_path / 'nosuch'))}
    gone, here = find(check_shares, home, config=Config(shares=shares))
    assert here[:2] == (OK, f'here is {tmp_path}')
    assert gone[0] is FAULT
    assert f'shares.gone, from the settings: {tmp_path}/nosuch' in gone[1]
    assert 'make that directory' in gone[2]


def test_a_key_that_others_can_read_is_a_fault(home):
    identity = make_identity(home)
    identity.machine_file.chmod(0o640)
    ((level, _, remedy),) = find(check_identity, home)
    assert (level, remedy) == (FAULT, f'run: chmod 600 {identity.machine_file}')


def test_an_identity_that_is_not_whole_is_a_fault(home):
    make_identity(home).user_cert_file.unlink()
    ((level, words, remedy),) = find(check_identity, home)
    assert (level, remedy) == (FAULT, 'restore it from a backup')
    assert 'is missing' in words


@pytest.mark.parametrize(
    ('age', 'level', 'words', 'remedy'),
    [
        (timedelta(0), OK, 'until', ''),
        (YEAR - timedelta(days=7), WARNING, 'it ends at', 'renews it'),
        (YEAR * 2, FAULT, 'it ended at', 'renews it'),
        (-YEAR, FAULT, 'our clock says', 'set the clock'),
    ],
    ids=['new', 'ends_soon', 'expired', 'not_yet_valid'],
)
def test_a_certificate_is_judged_by_its_time(home, age, level, words, remedy):
    identity = make_identity(home, datetime.now(UTC) - age)
    ((found, said, todo),) = find(check_certificate, home, identity=identity)
    assert found is level
    assert words in said
    assert remedy in todo


def test_a_machine_that_cannot_certify_itself_is_told_to_join_again(home):
    identity = make_identity(home, datetime.now(UTC) - YEAR * 2)
    (identity.directory / 'user.key').unlink()
    ((level, _, remedy),) = find(check_certificate, home, identity=identity)
    assert (level, remedy) == (FAULT, 'join your user again: degu pair --mine')


def test_a_clock_that_is_behind_what_was_written_is_a_fault(home):
    identity = make_identity(home)
    ((level, _, _),) = find(check_clock, home)
    assert level is OK
    future = time.time() + 86400
    os.utime(identity.machine_file, (future, future))
    ((level, words, remedy),) = find(check_clock, home)
    assert (level, remedy) == (FAULT, 'set the clock: timedatectl')
    assert 'in the future' in words


def test_a_setting_that_cannot_be_is_a_fault(home):
    home.config_path.write_text('ports = 1\n')
    ((level, words, remedy),) = find(check_settings, home)
    assert level is FAULT
    assert str(home.config_path) in words
    assert remedy


def test_what_cannot_be_read_is_a_fault_of_that_check_alone(home):
    home.config_path.mkdir()
    found = {f.check: f.level for f in examine(home, 1.0)}
    assert found['settings'] is FAULT
    assert found['home'] is OK


def test_a_full_disk_is_a_fault_and_little_room_a_warning(tmp_path, require_program):
    script = f"""
import subprocess, sys
from pathlib import Path
from degu_rpc.node.doctor import Known, check_space
from degu_rpc.node.home import Home
where = Path({str(tmp_path)!r})
subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k,mode=700', 'none', where], check=True)
def look():
    (found,) = check_space(Known(Home(where / 'home'), 1.0))
    print(found.level.value, found.words)
look()
try:
    (where / 'filler').write_bytes(bytes(65536 * 2))
except OSError:
    look()
subprocess.run(['mount', '-o', 'remount,ro', where], check=True)
look()
"""
    done = subprocess.run(
        [require_program('unshare'), '--mount', sys.executable, '-c', script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    some, full, read_only = done.stdout.splitlines()
    assert some.startswith('warning 0 MiB are free')
    assert full.startswith('fault the disk is full')
    assert read_only.startswith('fault nothing can be written')


# --- the node ------------------------------------------------------------------------------------


def test_a_node_that_runs_is_asked_and_reached(home):
    home.config_path.write_text('port = 0\ndiscovery = false\n')
    with Node(home, config=CONFIG):
        found = {f.check: f for f in examine(home, 5.0)}
    assert found['node'].words.startswith('studio runs, process ')
    assert found['port'].words.startswith('the node is reached at 127.0.0.1:')
    assert {f.level for f in found.values()} == {OK}


def test_a_node_that_does_not_answer_is_a_fault(home):
    with home.hold():
        ((level, words, remedy),) = find(check_node, home)
    assert level is FAULT
    assert words == f'process {os.getpid()} runs and does not answer'
    assert f'kill {os.getpid()}' in remedy
    ((level, _, remedy),) = find(check_node, home)
    assert (level, remedy) == (WARNING, 'start one: degu up --bg')


def test_what_is_no_node_at_its_socket_is_waited_for_only_so_long(home):
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(home.socket_path))
        mute.listen()
        started = time.monotonic()
        ((finding),) = check_node(Known(home, 0.5))
        assert time.monotonic() - started < 3
    assert finding.level is FAULT
    assert str(home.socket_path) in finding.remedy


def test_a_port_of_another_program_is_found(home):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        config = Config(port=port, listen=('127.0.0.1',))
        ((level, words, remedy),) = find(check_port, home, config=config)
        assert (level, words) == (FAULT, f'another program has TCP port {port} at 127.0.0.1')
        assert f':{port}' in remedy
        with Node(home, config=CONFIG):
            known = Known(home, 5.0, config=config)
            list(check_node(known))
            reached, other = check_port(known)
        assert reached.level is OK
        assert other.level is WARNING
        assert f'and not {port}' in other.words


def test_an_address_that_is_not_ours_is_a_fault(home):
    config = Config(listen=('192.0.2.1',))
    ((level, words, remedy),) = find(check_port, home, config=config)
    assert (level, remedy) == (FAULT, 'correct port and listen: degu config get')
    assert 'Cannot assign requested address' in words


# --- other machines ------------------------------------------------------------------------------


@pytest.fixture
def friend(tmp_path, home):
    """Give the home of another user, whom we trust, with a machine called `laptop`."""
    friend = Home(tmp_path / 'friend')
    identity = make_identity(friend)
    machines = {identity.machine_id: 'laptop'}
    TrustStore(make_identity(home)).add(identity.user_cert, 'friend', machines=machines)
    return friend


def look_at_laptop(home, *urls):
    lines = ', '.join(f'"{url}"' for url in urls)
    home.config_path.write_text(f'discovery = false\nmachines = [{lines}]\n')
    (found,) = [f for f in examine(home, 5.0) if f.check == 'machine laptop']
    return found.level, found.words, found.remedy


@contextlib.contextmanager
def running(friend, *trusted):
    with Node(friend, config=CONFIG) as node:
        for home in trusted:
            identity = Identity.open(home.identity_directory)
            node.trust.add(identity.user_cert, 'studio', machines={identity.machine_id: 'studio'})
        yield node.addresses[0].format_url(node.trust.identity.machine_id)


def test_a_machine_that_answers_is_reached_and_one_that_is_gone_is_a_warning(home, friend):
    with running(friend, home) as url:
        assert look_at_laptop(home, url)[0] is OK
    level, words, remedy = look_at_laptop(home, url)
    assert level is WARNING
    assert 'Connection refused' in words
    assert 'firewall' in remedy
    level, words, remedy = look_at_laptop(home)
    assert (level, words) == (WARNING, 'it is not seen')
    # Without discovery nobody is ever near, so it does not send us to look for who is.
    assert 'degu config set machines' in remedy
    assert '--nearby' not in remedy


def test_a_machine_that_does_not_trust_us_is_a_fault(home, friend):
    with running(friend) as url:
        level, words, remedy = look_at_laptop(home, url)
    assert level is FAULT
    assert 'does not let this machine in' in words
    assert 'degu pair' in remedy


def test_another_machine_at_its_address_is_a_fault(home, friend, tmp_path):
    laptop_id = Identity.open(friend.identity_directory).machine_id
    stranger = Home(tmp_path / 'stranger')
    with running(stranger, home) as url:
        where = url.partition('@')[2]
        level, words, _ = look_at_laptop(home, f'degu://{laptop_id}@{where}')
    assert level is FAULT
    assert 'refused' in words


def test_a_machine_that_says_nothing_is_waited_for_only_so_long(home, friend):
    laptop_id = Identity.open(friend.identity_directory).machine_id
    with socket.create_server(('127.0.0.1', 0)) as mute:
        url = f'degu://{laptop_id}@127.0.0.1:{mute.getsockname()[1]}'
        home.config_path.write_text(f'discovery = false\nmachines = ["{url}"]\n')
        started = time.monotonic()
        (found,) = [f for f in examine(home, 0.5) if f.check == 'machine laptop']
        assert time.monotonic() - started < 3
    assert found.level is WARNING
    assert 'timed out' in found.words


def test_trust_that_others_can_read_is_a_fault(home, friend):
    (home.identity_directory / 'peers').chmod(0o755)
    (found,) = [f for f in examine(home, 1.0) if f.check == 'trust']
    assert found.level is FAULT
    assert 'chmod 700' in found.remedy
