"""What all commands share: the flags, the way to the node, and the way to the terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest


def test_a_home_of_a_newer_version_is_left_alone(device):
    device.home.mkdir(mode=0o700)
    (device.home / 'format').write_text('2\n')
    (device.home / 'format').chmod(0o600)
    for command in (['id'], ['config', 'set', 'port', '0'], ['config', 'unset', 'port']):
        done = device.run(*command)
        assert done.returncode == 1
        assert 'was written by a newer version (format 2' in done.stderr
    assert [path.name for path in device.home.iterdir()] == ['format']


def test_a_terminal_has_colours_unless_somebody_wants_none(node):
    assert '\x1b[' in node.look('status', NO_COLOR='')
    assert '\x1b[' not in node.look('status', NO_COLOR='1')
    assert '\x1b[' not in node.look('status', '--no-color', NO_COLOR='')


LOG = """
import logging
from degu_rpc.cli.session import set_up_logging
set_up_logging(1)
logging.info('here')
"""


@pytest.mark.parametrize(('offset', 'prefix'), [(0, '<6>root: here'), (1, '20')])
def test_the_form_of_the_journal_is_for_the_journal_only(tmp_path, offset, prefix):
    with (tmp_path / 'log').open('w+') as log:
        status = os.fstat(log.fileno())
        stream = f'{status.st_dev}:{status.st_ino + offset}'
        subprocess.run(
            [sys.executable, '-c', LOG],
            env={**os.environ, 'JOURNAL_STREAM': stream},
            stderr=log,
            check=True,
        )
        log.seek(0)
        assert log.read().startswith(prefix)


def test_ctrl_c_is_said_in_json_too(node):
    with node.start('pair', '--show', '--json') as window:
        assert window.stdout.readline()
        window.send_signal(signal.SIGINT)
        assert json.loads(window.communicate()[1])['status'] == 130
    assert window.returncode == 130


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
                left = re.search(rb'connect-timeout-ms: ([0-9]+)\r\n', connection.recv(65536))
                assert left
                assert 0 < int(left[1]) <= 10_000
            assert process.wait(60) == 5


def test_quiet_prints_what_was_asked_for_and_no_more(node):
    assert 'reached at' in node.check('-q', 'status').stdout
    for command in (['id'], ['methods', '.'], ['config', 'get']):
        assert node.check('-q', *command).stdout == node.check(*command).stdout != ''
    assert 'no peers yet' in node.check('peers').stdout
    assert node.check('-q', 'peers').stdout == ''
    with node.start('-q', 'pair', '--show') as window:
        assert window.stdout.readline().startswith('Code: ')
