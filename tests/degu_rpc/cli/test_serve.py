"""`degu serve`: one service, called from another machine, the node's socket and one of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

SERVICE = '''
import time
from collections.abc import Iterator
from pathlib import Path
from degu_rpc import Context, Service

service = Service('clock.v1.Clock')
both = [service, Service('other.v1.Other')]
nothing = 7

@service.method(allow='peer', safe=True)
def who(ctx: Context) -> dict[str, str | None]:
    """Say who calls."""
    return {'name': ctx.peer.name, 'kind': ctx.peer.kind.value, 'machine': ctx.peer.machine_id}

@service.method(allow='owner')
def reset() -> None:
    pass

@service.method(allow='peer')
def count(to: int) -> Iterator[int]:
    yield from range(to)

@service.method(allow='peer')
def total(values: Iterator[int]) -> int:
    return sum(values)

@service.method(allow='peer')
def wait(ctx: Context, note: str) -> None:
    Path(note).write_text('begun')
    try:
        while True:
            ctx.check()
            time.sleep(0.05)
    finally:
        Path(note).write_text('ended')
'''


@pytest.fixture
def module(device, tmp_path):
    directory = tmp_path / 'code'
    directory.mkdir()
    (directory / 'clock.py').write_text(SERVICE)
    return directory


@pytest.fixture
def served(node, module, monkeypatch):
    monkeypatch.chdir(module)
    with node.start('serve', 'clock:service', '--json') as process:
        assert node.read(process)['name'] == 'clock'
        yield process


@pytest.fixture
def url(node, other, pair_devices):
    pair_devices(node, other)
    return node.check('status', '--json').documents[0]['urls'][0]


def test_another_machine_calls_it_as_who_it_is(served, node, other, url):
    said = other.check('call', f'{url}/clock', 'clock.v1.Clock/who').stdout
    machine_id = other.check('id', '--json').documents[0]['machine_id']
    assert json.loads(said) == {'name': 'laptop', 'kind': 'machine', 'machine': machine_id}
    done = other.run('call', f'{url}/clock', 'clock.v1.Clock/reset')
    assert done.returncode in (4, 6)  # not for its roles


def test_a_local_program_calls_it_at_the_nodes_socket(served, node):
    target, prefix = f'unix:{node.home}/node.sock', '/clock/rpc'
    said = node.check('call', target, 'clock.v1.Clock/who', '--prefix', prefix).stdout
    assert json.loads(said)['kind'] == 'local'
    node.check('call', target, 'clock.v1.Clock/reset', '--prefix', prefix)
    assert json.loads(node.check('call', './clock', 'clock.v1.Clock/who').stdout)['kind'] == 'local'
    done = node.run('call', target, 'clock.v1.Clock/count', 'to:=3', '--prefix', prefix)
    assert done.stdout == '0\n1\n2\n'
    done = node.run('call', target, 'clock.v1.Clock/total', '-d', '1\n2', '--prefix', prefix)
    assert done.stdout == '3\n'
    assert 'serves clock' in node.check('status').stdout


def test_what_serve_says_it_serves_as_is_a_target(node, module, monkeypatch):
    monkeypatch.chdir(module)
    with node.start('serve', 'clock:service') as process:
        target = process.stdout.readline().split(' as ')[1].strip()
        said = node.check('call', target, 'clock.v1.Clock/who').stdout
        assert json.loads(said)['kind'] == 'local'


def test_nobody_says_that_they_are_somebody_else(served, other, url):
    from degu_rpc import MachineClient, TrustStore, open_home
    from degu_rpc.peers import OWNER, Peer, PeerKind, parse_url
    from degu_rpc.peers.caller import CALLER, format_caller

    where = parse_url(url)
    trust = TrustStore(open_home(other.home))
    false = Peer(PeerKind.LOCAL, None, None, 'root', frozenset({OWNER}), 0, 0)
    client = MachineClient(trust, where.find_address(), where.machine_id)
    headers = {'content-type': 'application/json', CALLER: format_caller(false)}
    with client.connect() as connection:
        uri = '/clock/rpc/clock.v1.Clock/who'
        response = connection.post(uri, headers, b'{}')
        assert json.loads(response.body.read())['name'] == 'laptop'


def test_a_caller_that_leaves_is_noticed_by_the_method(served, other, url, tmp_path):
    note = tmp_path / 'note'
    with other.start('call', f'{url}/clock', 'clock.v1.Clock/wait', f'note={note}'):
        while not note.exists():
            time.sleep(0.01)
    deadline = time.monotonic() + 3
    while note.read_text() != 'ended':
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_program_is_gone_from_the_node(served, node):
    served.kill()
    served.wait()
    deadline = time.monotonic() + 3
    while 'serves clock' in node.check('status').stdout:
        assert time.monotonic() < deadline
    target = f'unix:{node.home}/node.sock'
    assert node.run('methods', target, '--prefix', '/clock/rpc').returncode == 4


def test_it_ends_with_the_node_and_says_so(served, node):
    node.check('down')
    assert served.wait(20) == 5


def test_a_socket_of_its_own_needs_no_node(device, module, monkeypatch, tmp_path):
    monkeypatch.chdir(module)
    path = tmp_path / 'own.sock'
    with device.start('serve', 'clock:both', '--socket', str(path), '--no-node') as process:
        assert 'serving' in process.stdout.readline()
        assert path.stat().st_mode & 0o777 == 0o600
        said = device.check('call', f'unix:{path}', 'clock.v1.Clock/who').stdout
        assert json.loads(said)['name'] == f'uid:{os.getuid()}'
        process.send_signal(2)
        assert process.wait(20) == 130
    assert not path.exists()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_no_socket_stays(served, node, number):
    served.send_signal(number)
    assert served.wait(20) == 0
    assert served.stderr.read() == ''
    assert list((node.home / 'served').iterdir()) == []


def test_a_time_that_is_given_is_not_for_how_long_it_serves(node, module, monkeypatch):
    monkeypatch.chdir(module)
    with node.start('serve', 'clock:service', '--json', '--timeout=0.5') as process:
        assert process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        assert 'serves clock' in node.check('status').stdout


def test_a_path_too_long_for_its_socket_is_wrong_usage(node, module, monkeypatch, tmp_path):
    monkeypatch.chdir(module)
    path = tmp_path / ('x' * 100)
    for flags in (['--socket', path], ['--socket', path, '--no-node'], ['--as', 'x' * 64]):
        done = node.run('serve', 'clock:service', *flags)
        assert done.returncode == 2
        assert 'a socket path is at most' in done.stderr


@pytest.mark.parametrize(
    ('what', 'words'),
    [
        ('clock', 'MODULE:SERVICE'),
        ('nosuch:service', 'nosuch'),
        ('clock:nothing', 'no degu_rpc.Service'),
        ('clock:missing', 'no degu_rpc.Service'),
    ],
)
def test_what_is_no_service_is_wrong_usage(node, module, monkeypatch, what, words):
    monkeypatch.chdir(module)
    done = node.run('serve', what)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_name_that_is_taken_or_cannot_be_is_refused(served, node, module):
    done = node.run('serve', 'clock:service')
    assert done.returncode == 1
    assert f'process {served.pid}' in done.stderr  # who serves there
    done = node.run('serve', 'clock:service', '--as', 'rpc')
    assert done.returncode == 2
    assert 'none of certificates, files, inbox, rpc' in done.stderr


def test_without_a_node_it_says_how_to_start_one(device, module, monkeypatch):
    monkeypatch.chdir(module)
    done = device.run('serve', 'clock:service')
    assert done.returncode == 10
    assert 'degu up' in done.stderr
