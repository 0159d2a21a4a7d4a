"""What an honest client is promised while others try to use the server up.

Each test is a short run of `tests/bench/attack.py`: the server, the attackers and the honest client
are processes of their own. The page docs/explanation/under-attack.md has the promises in words.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ATTACK = Path(__file__).resolve().parent.parent / 'bench' / 'attack.py'
PROMISED = {'kept_p99_ms': 250, 'new_p99_ms': 250, 'recovery_s': 2, 'accept_cpu': 0.05}
"""The bound of each promise that is a time, or a share of it."""
ATTEMPTS = 3
MIB = 1024 * 1024

pytestmark = pytest.mark.slow


@pytest.fixture
def attack(tmp_path):
    """Give `attack(name, *promises, seconds=1)`: the figures, with these promises kept.

    That of whoever is connected already is always among them. A run in which a busy machine had no
    time for us proves nothing and is repeated; what the server breaks, it breaks each time.
    """

    def run(name, *promises, seconds=1):
        for _ in range(ATTEMPTS):
            row = measure(name, seconds, tmp_path / 'figures')
            broken = {
                promise: row[promise]
                for promise in ('kept_p99_ms', *promises)
                if row[promise] >= PROMISED[promise]
            }
            if not broken:
                break
        assert not broken
        assert row['memory'] - row['memory_before'] < 32 * MIB
        assert 'ERROR' not in row['log']
        return row

    return run


def measure(name, seconds, path):
    done = subprocess.run(
        [
            *(sys.executable, '-W', 'error', ATTACK),
            *('--seconds', str(seconds), '--only', name, '--json', path),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (row,) = json.loads(path.read_text())['rows']
    return row


def served_new_connections(row):
    """Tell whether there were new honest connections and every one was served."""
    return row['new'] > 0 and row['new_refused'] == 0


@pytest.mark.parametrize(
    'name',
    ['idle after a request', 'slow preamble', 'slow body', 'slow read'],
)
def test_slow_connections_of_one_address_harm_no_other(attack, name):
    row = attack(name, 'new_p99_ms', 'recovery_s', 'accept_cpu')
    assert row['tried'] >= 1000
    assert row['threads'] <= 64 + 1 + 4  # the attackers, the accept loop, the honest client
    assert served_new_connections(row)


def test_slow_connections_of_many_addresses_keep_out_new_clients_and_no_others(attack):
    # New clients are told so at once and not left waiting.
    row = attack('slow preamble, many addresses', 'new_p99_ms', 'recovery_s', 'accept_cpu')
    assert row['new_refused'] == row['new'] > 0
    assert 250 < row['threads'] <= 256 + 1
    assert 'max_connections=256' in row['log']


@pytest.mark.parametrize('name', ['TLS, silent', 'TLS, stalled handshake', 'TLS, handshake flood'])
def test_handshakes_of_one_address_keep_out_no_other(attack, name):
    row = attack(name, 'recovery_s')
    assert served_new_connections(row)


def test_handshakes_of_many_addresses_harm_no_connection_that_is_there(attack):
    row = attack('TLS, stalled handshake, many addresses', 'recovery_s')
    assert row['threads'] < 256


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('no descriptors', 'Too many open files'),
        pytest.param(
            'no threads',
            "can't start new thread",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason='only root can be another user'),
        ),
    ],
)
def test_a_server_that_can_accept_no_more_serves_whom_it_has(attack, name, reason):
    row = attack(name, 'recovery_s', 'accept_cpu')
    assert reason in row['log']
    assert row['log_lines_per_s'] < 20


def test_a_full_listen_queue_is_worked_off(attack):
    row = attack('full listen queue', 'recovery_s', 'accept_cpu')
    assert served_new_connections(row)


def test_a_flood_of_connections_to_be_refused_harms_no_other_address(attack):
    row = attack('refusal flood', 'recovery_s')
    assert row['tried'] > 2000
    assert served_new_connections(row)
    assert row['log_lines_per_s'] < 3


@pytest.mark.parametrize('name', ['request flood', 'flood of tiny chunks'])
def test_peers_that_are_always_ahead_leave_others_their_turn(attack, name):
    row = attack(name)
    assert served_new_connections(row)


@pytest.mark.parametrize('mode', ['-H', '-B'])
def test_slowhttptest_finds_the_server_available(attack, require_program, mode):
    """Its probe comes from its own address, so all of its connections are admitted."""
    require_program('slowhttptest')
    row = attack(f'slowhttptest {mode}, all admitted', 'recovery_s', seconds=3)
    assert row['threads'] > 500
    assert served_new_connections(row)
    assert int(row['report'][-1]['Connected']) >= 500
    assert int(row['report'][-1]['Closed']) == 0
    # 500 is its word for yes.
    assert {second['Service Available'] for second in row['report']} == {'500'}


def test_slowhttptest_gets_no_more_than_the_connections_of_one_address(attack, require_program):
    require_program('slowhttptest')
    row = attack('slowhttptest -X', 'recovery_s', seconds=3)
    assert row['threads'] <= 64 + 1 + 4
    assert served_new_connections(row)
    assert int(row['report'][-1]['Connected']) <= 64 + 1  # its probe is one, until it is refused
    assert int(row['report'][-1]['Closed']) >= 500 - 64
