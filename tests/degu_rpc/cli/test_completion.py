"""`degu completion` and what it offers, by the protocol of click and in real shells."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from degu_rpc import connect
from degu_rpc.node.api import NODE

WAIT_S = 30.0


def complete(device, *words):
    """Return what is offered for the last word, and how long that took; nothing else is said."""
    started = time.monotonic()
    done = device.check(
        _DEGU_COMPLETE='bash_complete',
        COMP_WORDS=shlex.join(['degu', *words[:-1]]) + f' {words[-1]}',
        COMP_CWORD=str(len(words)),
    )
    assert done.stderr == ''
    offered = [line.split(',', 1)[1] for line in done.stdout.splitlines() if line]
    return offered, time.monotonic() - started


def run_shell(device, *command):
    """Run a shell in which `degu` is what is tested."""
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**device.environment, 'PATH': path, 'HOME': str(device.home.parent)},
        timeout=WAIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ''), done.stdout
    return done.stdout.splitlines()


def test_names_of_users_and_machines_are_offered_once_they_are_paired(node, other, pair_devices):
    pair_devices(node, other)
    assert complete(node, 'unpair', '')[0] == ['laptop']
    assert complete(node, 'unpair', 'x')[0] == []
    assert complete(node, '--home', str(other.home), 'unpair', '')[0] == ['studio']


@pytest.mark.parametrize('name', ['$(touch x); y', '~root', '=ls'])
def test_a_name_that_is_more_than_a_plain_word_is_offered_by_its_id(
    device, other, pair_devices, name
):
    with device.start('up', '--port=0', '--no-discovery', f'--name={name}') as up:
        assert 'ready' in up.stdout.readline()
        pair_devices(other, device)
        ids = device.check('id', '--json').documents[0]
    assert complete(other, 'unpair', '')[0] == [ids['user_id'], ids['machine_id']]


def test_what_is_served_here_is_offered_where_calls_can_go(node, tmp_path):
    parameters = {'name': 'clock', 'socket_path': str(tmp_path / 'socket')}
    with (
        connect(f'unix:{node.home}/node.sock') as client,
        client.stream(NODE, 'serve', parameters) as served,
    ):
        next(served)
        assert complete(node, 'call', '.')[0] == ['.', './clock']


def test_commands_and_settings_are_offered(device):
    assert 'doctor' in complete(device, 'do')[0]
    assert complete(device, 'service', '')[0] == ['install', 'remove', 'status']
    assert complete(device, 'config', 'set', 'p')[0] == ['port']


def test_without_a_node_nothing_is_offered_and_nothing_is_said(device):
    assert complete(device, 'unpair', '')[0] == []
    assert not device.home.exists()


def test_a_node_that_does_not_answer_is_waited_for_only_a_moment(device):
    device.home.mkdir(mode=0o700)
    quick = complete(device, 'unpair', '')[1]
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(device.home / 'node.sock'))
        mute.listen()
        offered, took = complete(device, 'unpair', '')
    assert offered == []
    assert took < quick + 2


def test_bash_completes_with_the_script(node, other, pair_devices, require_program):
    pair_devices(node, other)
    script = """
eval "$(degu completion bash)"
complete -p degu
COMP_WORDS=(degu unpair la) COMP_CWORD=2
_degu_completion degu la unpair
printf '%s\\n' "${COMPREPLY[@]}"
"""
    bash = require_program('bash')
    registered, offered = run_shell(node, bash, '--norc', '-c', script)
    assert registered == 'complete -o nosort -F _degu_completion degu'
    assert offered == 'laptop'


def test_fish_completes_with_the_script(device, require_program):
    script = 'degu completion fish | source; complete -C "degu service in"'
    (offered,) = run_shell(device, require_program('fish'), '--no-config', '-c', script)
    assert offered.split('\t')[0] == 'install'


def test_zsh_takes_the_script(device, require_program):
    script = (
        'autoload -Uz compinit; compinit -D; eval "$(degu completion zsh)"; print $_comps[degu]'
    )
    assert run_shell(device, require_program('zsh'), '-f', '-c', script) == ['_degu_completion']


@pytest.mark.parametrize('arguments', [[], ['tcsh']])
def test_another_shell_is_wrong_usage(device, arguments):
    assert device.run('completion', *arguments).returncode == 2


def test_the_script_is_in_the_document(device):
    (document,) = device.check('completion', 'bash', '--json').documents
    assert document['shell'] == 'bash'
    assert '_DEGU_COMPLETE=bash_complete' in document['script']
