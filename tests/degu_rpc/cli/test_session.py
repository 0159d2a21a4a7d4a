"""What all commands share: the flags, the way to the node, and the way to the terminal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys


def test_a_home_of_a_newer_version_is_left_alone(device):
    device.home.mkdir(mode=0o700)
    (device.home / 'format').write_text('2\n')
    (device.home / 'format').chmod(0o600)
    for command in (['id'], ['config', 'set', 'port', '0'], ['config', 'unset', 'port']):
        done = device.run(*command)
        assert done.returncode == 1
        assert 'was written by a newer version (format 2' in done.stderr
    assert [path.name for path in device.home.iterdir()] == ['format']


HEAVY = (
    *('cryptography', 'rich', 'zeroconf', 'spake2', 'degu.server', 'asyncio'),
    *('degu_rpc.peers.dial', 'degu_rpc.peers.trust', 'degu_rpc.peers.discovery'),
)
LOOK = f"""
import sys
from degu_rpc.cli import run
assert run(['status']) == 0
sys.exit(' '.join(name for name in {HEAVY} if name in sys.modules))
"""


def test_status_pays_for_no_library_that_it_does_not_need(node):
    done = subprocess.run(
        [sys.executable, '-c', LOOK],
        env=node.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr.strip() == ''


def test_a_node_that_does_not_answer_is_given_up(node):
    pid = node.check('status', '--json').documents[0]['pid']
    os.kill(pid, signal.SIGSTOP)
    try:
        done = node.run('status', '--timeout', '0.2', '--json')
    finally:
        os.kill(pid, signal.SIGCONT)
    assert done.error['status'] == 5
    assert 'give it more time: --timeout' in done.error['remedy']


def test_a_node_has_a_limit_of_time_even_if_none_is_given(device):
    device.home.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(device.home / 'node.sock'))
        listener.listen()
        with device.start('status') as process:
            connection, _ = listener.accept()
            with connection:
                assert b'connect-timeout-ms: 10000\r\n' in connection.recv(65536)
            assert process.wait(60) == 5


def test_quiet_prints_what_was_asked_for_and_no_more(node):
    assert 'reached at' in node.check('-q', 'status').stdout
    for command in (['id'], ['methods', '.'], ['config', 'get']):
        assert node.check('-q', *command).stdout == node.check(*command).stdout != ''
    assert 'no peers yet' in node.check('peers').stdout
    assert node.check('-q', 'peers').stdout == ''
    with node.start('-q', 'pair', '--show') as window:
        assert window.stdout.readline().startswith('Code: ')
