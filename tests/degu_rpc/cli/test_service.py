"""`degu service`: a node under a real systemd of a user, which the tests start for themselves.

It runs in a mount namespace and a control group of its own, so that nothing of it is left.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from degu_rpc.cli.service import service
from degu_rpc.errors import IdentityError
from degu_rpc.node.home import Home
from degu_rpc.node.systemd import MARKER, SERVICE, SOCKET, build_units, find_unit_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_S = 30.0

# Runs systemd in the cgroup "$1/cgroup/..." until standard input ends; then nothing is left of it.
MANAGER = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system "$1/cgroup"
mount -t cgroup2 none "$1/cgroup"
group="$1/cgroup/degu-test-$$"
mkdir "$group"
start='echo 0 > "$0/cgroup.procs"; exec unshare --cgroup --mount sh -c "
    umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup
    exec /lib/systemd/systemd --user --log-target=null"'
sh -c "$start" "$group" &
echo started
cat
echo 1 > "$group/cgroup.kill"
wait
until find "$group" -depth -type d -exec rmdir {} +; do sleep 0.05; done 2> /dev/null
"""


@dataclass(frozen=True)
class Manager:
    """A systemd of a user: how it is reached, and where its units are."""

    environment: dict[str, str]
    units: Path

    def systemctl(self, *arguments: str) -> str:
        done = subprocess.run(
            ['systemctl', '--user', *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        return done.stdout.strip()


@pytest.fixture(scope='module')
def manager(require_program: Callable[[str], str]) -> Iterator[Manager]:
    """Give a running systemd of a user."""
    for program in ('unshare', 'mount', 'systemctl', 'systemd'):
        require_program(program)
    probe = subprocess.run(['unshare', '--mount', '--cgroup', 'true'], check=False)
    if probe.returncode:
        if os.environ.get('DEGU_TEST_REQUIRE_ALL') == '1':
            pytest.fail('this user may not make namespaces', pytrace=False)
        pytest.skip('this user may not make namespaces')
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / 'run').mkdir(mode=0o700)
        environment = {
            'HOME': name,
            'XDG_RUNTIME_DIR': str(directory / 'run'),
            'XDG_CONFIG_HOME': str(directory / 'config'),
        }
        with subprocess.Popen(
            ['unshare', '--mount', 'sh', '-c', MANAGER, 'sh', name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={'PATH': os.environ['PATH'], **environment},
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b'started\n'
            found = Manager(environment, directory / 'config' / 'systemd' / 'user')
            _wait_until(lambda: 'Version=' in found.systemctl('show', '--property=Version'))
            yield found


def _wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def quiet(device, tmp_path):
    """Give a home whose node is for this machine only, and whose name a unit must quote."""
    quiet = type(device)(tmp_path / '100%h "odd" ${HOME} \\t')
    quiet.home.mkdir(mode=0o700)
    (quiet.home / 'config.toml').write_text('port = 0\ndiscovery = false\nlisten = ["127.0.0.1"]')
    return quiet


@pytest.fixture
def installed(quiet, manager):
    """Give a home whose node systemd runs."""
    done = quiet.check('service', 'install', **manager.environment)
    assert f'active: {SERVICE}, process ' in done.stdout
    assert 'loginctl enable-linger' in done.stdout
    yield quiet
    quiet.check('service', 'remove', **manager.environment)


def _read_service(device, manager):
    return device.check('service', 'status', '--json', **manager.environment).documents[0]


def test_systemd_has_the_node_ready_and_opens_its_socket(installed, manager):
    found = _read_service(installed, manager)
    assert found['is_enabled']
    assert found['active'] == 'active'
    (status,) = installed.check('status', '--json').documents
    assert status['pid'] == found['pid']
    assert status['home'] == str(installed.home)
    assert 'machine ' in manager.systemctl('show', '--property=StatusText', SERVICE)
    assert stat.S_IMODE((installed.home / 'node.sock').stat().st_mode) == 0o600
    assert manager.systemctl('show', '--property=NRestarts', SERVICE) == 'NRestarts=0'
    for name in (SERVICE, SOCKET):
        assert (manager.units / name).read_text().startswith(MARKER + '\n')


def test_a_killed_node_is_started_anew_and_one_that_was_stopped_by_a_call(installed, manager):
    before = _read_service(installed, manager)['pid']
    os.kill(before, signal.SIGKILL)
    # Its socket is systemd's: whoever calls meanwhile waits and is answered.
    assert installed.check('status', '--json').documents[0]['pid'] != before
    _wait_until(lambda: manager.systemctl('is-active', SERVICE) == 'active')
    installed.check('down')
    _wait_until(lambda: manager.systemctl('is-active', SERVICE) == 'inactive')
    done = installed.run('service', 'status', **manager.environment)
    assert done.returncode == 10
    assert installed.check('status').stdout
    assert _read_service(installed, manager)['active'] == 'active'


def test_install_again_and_remove_stop_the_node_and_leave_the_home(quiet, manager):
    quiet.check('service', 'install', **manager.environment)
    before = _read_service(quiet, manager)['pid']
    quiet.check('config', 'set', 'name', 'attic')
    (document,) = quiet.check('service', 'install', '--json', **manager.environment).documents
    assert document['pid'] != before
    assert quiet.check('status', '--json').documents[0]['name'] == 'attic'
    (document,) = quiet.check('service', 'remove', '--json', **manager.environment).documents
    assert document['files'] == [str(manager.units / name) for name in (SERVICE, SOCKET)]
    assert [path for path in manager.units.rglob('*') if not path.is_dir()] == []
    assert not (quiet.home / 'node.sock').exists()
    assert (quiet.home / 'identity').exists()
    assert quiet.run('status').returncode == 10
    done = quiet.run('service', 'status', **manager.environment)
    assert done.returncode == 4
    assert 'degu service install' in done.stderr
    assert 'nothing is there' in quiet.check('service', 'remove', **manager.environment).stdout


def test_units_of_somebody_else_are_left_alone_without_yes(quiet, manager):
    manager.units.mkdir(parents=True, exist_ok=True)
    unit = manager.units / SERVICE
    unit.write_text('[Service]\nExecStart=/bin/true\n')
    try:
        done = quiet.run('service', 'install', **manager.environment)
        assert done.returncode == 2
        assert '--yes' in done.stderr
        assert 'ExecStart=/bin/true' in unit.read_text()
        assert not (manager.units / SOCKET).exists()
        done = quiet.run('service', 'remove', **manager.environment)
        assert done.returncode == 1
        assert 'degu did not write it' in done.stderr
        assert unit.exists()
        done = quiet.check('service', 'install', '--yes', **manager.environment)
        assert f'active: {SERVICE}' in done.stdout
        quiet.check('service', 'remove', **manager.environment)
    finally:
        unit.unlink(missing_ok=True)


def test_a_node_that_somebody_started_is_not_pushed_aside(node, manager):
    done = node.run('service', 'install', **manager.environment)
    assert done.returncode == 1
    assert 'runs with' in done.stderr
    assert not (manager.units / SERVICE).exists()
    node.check('status')


def test_a_node_that_cannot_start_is_said_with_where_to_look(quiet, manager):
    (quiet.home / 'config.toml').write_text('ports = 1')
    try:
        done = quiet.run('service', 'install', **manager.environment)
        assert done.returncode == 1
        assert f'journalctl --user -u {SERVICE}' in done.stderr
        done = quiet.run('service', 'status', '--json', **manager.environment)
        assert done.returncode == 10
        assert done.error['remedy'] == f'see why: journalctl --user -u {SERVICE}'
    finally:
        quiet.check('service', 'remove', **manager.environment)


def test_without_a_session_it_says_what_to_type(device, tmp_path, require_program):
    require_program('systemctl')
    environment = {'XDG_RUNTIME_DIR': str(tmp_path), 'XDG_CONFIG_HOME': str(tmp_path / 'config')}
    done = device.run('service', 'install', **environment, DBUS_SESSION_BUS_ADDRESS='')
    assert done.returncode == 1
    assert 'loginctl enable-linger' in done.stderr
    assert f'systemctl --user enable --now {SOCKET} {SERVICE}' in done.stderr
    assert (tmp_path / 'config/systemd/user' / SERVICE).exists()


def test_without_systemctl_it_says_so(device, tmp_path):
    environment = {'PATH': str(tmp_path), 'XDG_CONFIG_HOME': str(tmp_path / 'config')}
    done = device.run('service', 'install', '--json', **environment)
    assert done.returncode == 1
    assert done.error['kind'] == 'SystemdError'
    assert 'start the node without it: degu up --bg' in done.error['remedy']


def test_help_says_how_each_command_ends():
    for name, command in service.commands.items():
        assert 'Exit status: 0 done' in command.get_help(click.Context(command)), name


# --- what systemd would do, without it -----------------------------------------------------------


def test_units_are_valid(require_program, tmp_path):
    home = Home(tmp_path / 'home')
    for unit, text in build_units(home).items():
        (tmp_path / unit).write_text(text)
    done = subprocess.run(
        [
            *(require_program('systemd-analyze'), '--user', '--recursive-errors=no', 'verify'),
            *(tmp_path / unit for unit in (SOCKET, SERVICE)),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, 'XDG_RUNTIME_DIR': str(tmp_path)},
        timeout=WAIT_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


@pytest.mark.parametrize(('name', 'why'), [('x' * 100, 'at most 107'), ('a\nb', 'characters')])
def test_a_home_that_no_unit_can_have_is_refused(tmp_path, name, why):
    with pytest.raises(IdentityError, match=why):
        build_units(Home(tmp_path / name))


def test_units_are_where_xdg_says():
    assert find_unit_directory({'XDG_CONFIG_HOME': '/c'}) == Path('/c/systemd/user')
    assert find_unit_directory({}) == Path.home() / '.config/systemd/user'


def test_ready_is_told_once_it_can_be_called(device, tmp_path):
    with (
        tempfile.TemporaryDirectory() as name,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s,
    ):
        s.bind(f'{name}/notify')
        s.settimeout(WAIT_S)
        flags = ('up', '--port=0', '--no-discovery')
        with device.start(*flags, NOTIFY_SOCKET=f'{name}/notify') as up:
            assert s.recv(4096).splitlines()[0] == b'READY=1'
            device.check('status')
            up.terminate()
            assert s.recv(4096) == b'STOPPING=1'


def test_a_socket_that_is_handed_over_is_taken_and_left(device, require_program):
    device.home.mkdir(mode=0o700)
    path = device.home / 'node.sock'
    launcher = [require_program('systemd-socket-activate'), f'--listen={path}']
    up = [sys.executable, '-m', 'degu_rpc.cli', 'up', '--port=0', '--no-discovery']
    with subprocess.Popen(
        [*launcher, *(f'--setenv={k}={v}' for k, v in device.environment.items()), *up],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            _wait_until(lambda: _is_taken(path))
            assert device.check('status', '--json').documents[0]['pid'] == process.pid
            device.check('down')
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
    assert path.exists(), "it is systemd's to remove"


def _is_taken(path):
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0
