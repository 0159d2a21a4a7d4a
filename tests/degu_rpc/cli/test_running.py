"""`degu up`, `down` and `status`: the life of a node, and all that can be wrong with it."""

from __future__ import annotations

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
    done = device.run('up', '--bg')
    assert done.returncode == 1
    assert f'port, from {device.home}/config.toml' in done.stderr


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


def test_a_path_too_long_for_a_socket_is_said(tmp_path, device):
    done = device.run('up', '--home', tmp_path / ('x' * 100))
    assert done.returncode == 1
    assert 'x' * 100 in done.stderr


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


def test_down_waits_until_the_home_is_free(device):
    with device.up():
        device.check('down')
        with device.up():
            pass


def test_wrong_usage_is_status_2(device):
    assert device.run('up', '--port', 'x').returncode == 2
    assert device.run('nosuch').returncode == 2
    done = device.run('up', '--port', 'x', '--json')
    assert done.error['kind'] == 'usage'
