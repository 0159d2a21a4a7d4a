"""`degu up`, `down` and `status`: the life of a node, and all that can be wrong with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from degu_rpc.cli import commands

COMMANDS = commands.list_commands(click.Context(commands))


@pytest.mark.parametrize('command', COMMANDS)
def test_help_says_how_a_command_ends(device, command):
    assert 'Exit status: 0 done' in device.check(command, '--help').stdout


def test_help_lists_every_command_and_every_exit_status(device):
    said = device.check('--help').stdout
    for command in COMMANDS:
        assert f'  {command} ' in said
    for status in ('0', '1', '2', '3', '4', '5', '6', '7', '8', '10', '130'):
        assert f'  {status:>3}  ' in said


def test_a_node_in_the_foreground_says_where_it_is_and_ends_with_sigterm(device):
    with device.up() as up:
        assert device.check('status', '--json').documents[0]['pid'] == up.pid
        up.terminate()
        assert up.wait(20) == 0
    assert not (device.home / 'node.sock').exists()


@pytest.mark.parametrize(
    'number', [signal.SIGINT, signal.SIGHUP], ids=['ctrl_c', 'closed_terminal']
)
def test_a_signal_ends_it_cleanly(device, number):
    with device.up() as up:
        up.send_signal(number)
        assert up.wait(20) == 0
        assert up.stderr.read() == ''


@pytest.fixture
def notified(tmp_path):
    """Give the socket of a supervisor that is told how the node is; it waits 20 s for a word."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / 'notify'))
        sock.settimeout(20)
        yield sock


def _start_notifying(device, notified):
    return device.start(
        'up', '--port=0', '--no-discovery', NOTIFY_SOCKET=str(notified.getsockname())
    )


def test_a_node_that_starts_anew_does_not_say_that_it_stops(device, other, notified, pair_devices):
    with _start_notifying(device, notified) as up:
        assert notified.recv(4096).startswith(b'READY=1')
        pair_devices(other, device, '--mine', '--yes')
        assert notified.recv(4096).startswith(b'READY=1')
        up.terminate()
        assert up.wait(20) == 0
        assert notified.recv(4096) == b'STOPPING=1'


def test_a_second_signal_while_it_stops_changes_nothing(device, notified):
    with _start_notifying(device, notified) as up, socket.socket(socket.AF_UNIX) as half:
        assert notified.recv(4096).startswith(b'READY=1')
        half.connect(str(device.home / 'node.sock'))
        half.sendall(b'GET /')  # what keeps it for a moment
        up.terminate()
        while (device.home / 'node.sock').exists():
            time.sleep(0.001)
        up.terminate()
        assert up.wait(20) == 0
        assert up.stderr.read() == ''


def test_a_signal_while_it_starts_ends_it_cleanly(device):
    device.home.mkdir(mode=0o700)
    os.mkfifo(device.home / 'config.toml')
    with device.start('up', '--port=0', '--no-discovery') as up:
        with (device.home / 'config.toml').open('w') as settings:  # it reads them by now
            up.terminate()
            settings.write('name = "studio"')
        assert up.wait(20) == 0
        assert up.communicate() == ('', '')


def test_up_in_the_background_returns_once_it_can_be_called(device):
    said = device.check('up', '--bg', '--port=0', '--no-discovery')
    try:
        assert 'ready' in said.stdout
        assert device.check('status').stdout.startswith(socket.gethostname().partition('.')[0])
        assert (device.home / 'node.log').stat().st_mode & 0o777 == 0o600
    finally:
        device.check('down')
    assert device.run('status').returncode == 10


def test_up_in_the_background_tells_why_it_cannot(device):
    device.home.mkdir(mode=0o700)
    (device.home / 'config.toml').write_text('port = "many"\n')
    done = device.run('up', '--bg', '--json')
    foreground = device.run('up', '--json')
    assert done.error == foreground.error
    assert f'port, from {device.home}/config.toml' in done.error['message']


def test_up_in_the_background_that_ends_without_a_word_names_its_log(device):
    device.home.mkdir(mode=0o700)
    (device.home / 'node.log').write_text('{"type": "error", "message": "of another time"}\n')
    os.mkfifo(device.home / 'config.toml')
    with (
        device.start('up', '--bg') as up,
        (device.home / 'config.toml').open('w'),  # the child reads it by now
    ):
        (child,) = Path(f'/proc/{up.pid}/task/{up.pid}/children').read_text().split()
        os.kill(int(child), signal.SIGKILL)
        assert up.wait(20) == 1
        said = up.stderr.read()
    assert 'it ended with status -9' in said
    assert f'see its log: {device.home}/node.log' in said


def test_up_in_the_background_that_takes_too_long_is_ended(device):
    device.home.mkdir(mode=0o700)
    os.mkfifo(device.home / 'config.toml')  # it waits for whoever writes them
    done = device.run('up', '--bg', '--timeout=1')
    assert done.returncode == 5
    assert 'not ready after 1 s' in done.stderr
    assert '--timeout' in done.stderr
    assert device.run('status').returncode == 10


def test_the_log_is_begun_anew_where_it_is_large_and_no_node_writes_it(device):
    device.home.mkdir(mode=0o700)
    log, old_log = device.home / 'node.log', device.home / 'node.old.log'
    log.write_bytes(bytes(1024 * 1024 + 1))
    with device.up():
        done = device.run('up', '--bg')
        assert done.returncode == 1
        assert 'runs with' in done.stderr
        assert not old_log.exists()
    device.check('up', '--bg', '--port=0', '--no-discovery')
    try:
        assert old_log.stat().st_size == 1024 * 1024 + 1
        assert log.stat().st_size < 1024 * 1024
    finally:
        device.check('down')


def test_a_second_node_is_refused_and_told_of_the_first(node):
    done = node.run('up', '--port=0')
    assert done.returncode == 1
    assert 'runs with' in done.stderr
    assert 'degu status shows it' in done.stderr


def test_a_killed_node_leaves_nothing_in_the_way(device):
    with device.up() as up:
        up.kill()
        up.wait()
    assert (device.home / 'node.sock').exists()
    done = device.run('status')
    assert done.returncode == 10
    assert 'start one: degu up --bg' in done.stderr
    with device.up():
        assert device.check('status').stdout


def test_a_home_that_others_can_read_is_refused_with_the_remedy(device):
    device.home.mkdir(mode=0o755)
    done = device.run('up')
    assert done.returncode == 1
    assert f'chmod 700 {device.home}' in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason='only root can give a directory away')
def test_a_home_of_somebody_else_is_refused_with_the_remedy(device):
    device.home.mkdir(mode=0o700)
    os.chown(device.home, 12345, 12345)
    for command in ('up', 'status'):
        done = device.run(command)
        assert done.returncode == 1
        assert 'belongs to uid 12345' in done.stderr


def test_a_home_of_a_newer_version_is_refused_and_left_alone(device):
    device.check('up', '--bg', '--port=0', '--no-discovery')
    device.check('down')
    (device.home / 'format').write_text('2\n')
    done = device.run('up')
    assert done.returncode == 1
    assert 'was written by a newer version (format 2, this one knows 1)' in done.stderr
    assert (device.home / 'format').read_text() == '2\n'


def test_a_full_disk_is_said_and_mended_by_room(device, tmp_path):
    mount = tmp_path / 'full'
    mount.mkdir()
    script = f"""
import os, subprocess, sys
mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k,mode=700', 'none', {str(mount)!r}]
subprocess.run(mount, check=True)
with open({str(mount / 'filler')!r}, 'wb', 0) as filler:
    try:
        while True:
            filler.write(bytes(4096))
    except OSError:
        pass
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
print(done.returncode, done.stderr)
os.unlink({str(mount / 'filler')!r})
os.execvp(sys.argv[1], [*sys.argv[1:], '--bg'])
"""
    command = [sys.executable, '-m', 'degu_rpc.cli', 'up', '--port=0', '--no-discovery']
    done = subprocess.run(
        ['unshare', '--mount', sys.executable, '-c', script, *command, '--home', str(mount)],
        capture_output=True,
        text=True,
        env=device.environment,
        check=False,
        timeout=60,
    )
    assert done.stdout.startswith('1 '), done.stdout + done.stderr
    assert 'No space left on device' in done.stdout
    assert 'ready' in done.stdout.splitlines()[-1], done.stdout + done.stderr
    _end_what_runs_with(mount)


def _end_what_runs_with(home):
    """End a node in a mount namespace of its own, whose socket cannot be seen from here."""
    for process in Path('/proc').glob('[0-9]*/cmdline'):
        words = process.read_bytes().split(b'\0')
        if str(home).encode() in words and b'up' in words:
            os.kill(int(process.parent.name), signal.SIGTERM)


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(device):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        done = device.run('up', '--no-discovery', f'--port={taken.getsockname()[1]}')
    assert done.returncode == 1
    assert 'Address already in use' in done.stderr


@pytest.mark.parametrize('command', ['up', 'status', 'down'])
def test_a_path_too_long_for_a_socket_is_said(tmp_path, device, command):
    home = tmp_path / ('x' * 100)
    done = device.run(command, '--home', home)
    assert done.returncode == 1
    assert done.stderr.startswith(f'degu: {home} cannot be a home: a socket path is at most')
    assert 'Traceback' not in done.stderr
    assert not home.exists()


def test_a_home_may_be_named_from_here(device, monkeypatch):
    here = device.home.parent / 'here'
    here.mkdir()
    monkeypatch.chdir(here)
    with device.up():
        assert device.check('status', '--home', f'../{device.home.name}').stdout


def test_a_name_in_a_flag_is_said_to_be_that_of_this_run(device):
    for is_kept in (False, True):
        said = device.check('up', '--bg', '--port=0', '--no-discovery', '--name=attic').stdout
        device.check('config', 'set', 'name', 'attic')
        device.check('down')
        assert ('degu config set name attic' in said) is not is_kept


def test_status_without_a_node_is_json_too(device):
    done = device.run('status', '--json')
    assert done.returncode == 10
    assert done.error['remedy'] == 'start one: degu up --bg'


def test_status_shows_what_others_need(node):
    status = node.check('status', '--json').documents[0]
    assert status['type'] == 'status'
    assert status['name'] == 'studio'
    assert status['home'] == str(node.home)
    assert status['urls'][0].startswith(f'degu://{status["machine_id"]}@127.0.0.1:')
    assert status['problems'] == []


def test_a_watched_status_shows_a_change_and_ends_with_the_node(node, other, pair_devices):
    with node.start('status', '--watch', '--json') as watching:
        assert '"laptop"' not in watching.stdout.readline()
        pair_devices(node, other)
        while '"laptop"' not in watching.stdout.readline():
            pass
        started = time.monotonic()
        node.check('down')
        assert time.monotonic() - started < 4
        assert watching.wait(20) == 5


def test_a_node_says_in_json_that_it_is_ready_and_that_it_is_gone(device):
    with device.start('up', '--port=0', '--no-discovery', '--json') as up:
        assert device.read(up)['type'] == 'ready'
        (gone,) = device.check('down', '--json').documents
        assert gone == {'v': 1, 'type': 'stopped'}


def test_down_waits_until_the_home_is_free(device):
    with device.up():
        device.check('down')
        with device.up():
            pass


def test_down_that_cannot_wait_longer_says_which_process_runs(device):
    with device.up() as up, socket.socket(socket.AF_UNIX) as half:
        half.connect(str(device.home / 'node.sock'))
        half.sendall(b'GET /')  # what keeps it for a moment
        done = device.run('down', '--timeout=0.1')
        assert done.returncode == 5
        assert f'kill {up.pid}' in done.stderr
        assert up.wait(20) == 0


def test_wrong_usage_is_status_2(device):
    assert device.run('up', '--port', 'x').returncode == 2
    assert device.run('nosuch').returncode == 2
    done = device.run('up', '--port', 'x', '--json')
    assert done.error['kind'] == 'usage'


def test_whoever_asked_to_be_told_and_does_not_read_keeps_no_node_from_its_end(device, tmp_path):
    path = str(tmp_path / 'told')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    filler.sendto(b'x', path)
        with device.start('up', '--port=0', '--no-discovery', '--json', NOTIFY_SOCKET=path) as node:
            device.read(node)
            device.check('down')
            assert node.wait(20) == 0


def test_a_node_in_the_background_knows_no_code(device):
    device.check('up', '--bg', '--port=0', '--no-discovery', DEGU_PAIR_CODE='4HMA-SW9R')
    try:
        pid = device.check('status', '--json').documents[0]['pid']
        assert b'4HMA-SW9R' not in Path(f'/proc/{pid}/environ').read_bytes()
        assert not list(device.home.glob('up-*'))
    finally:
        device.check('down')
