"""`degu pair`, `unpair`, `id` and `peers`, between two nodes of this machine."""

from __future__ import annotations

import contextlib
import json
import socket
import time

from degu_rpc.peers import format_id

TIMEOUT_S = 60.0


def _peers(device):
    return {
        machine['name']: (peer['name'], peer['roles'], machine)
        for peer in device.check('peers', '--json').documents
        for machine in peer['machines']
    }


def test_two_users_pair_by_a_code(node, other, pair_devices):
    pair_devices(node, other)
    assert _peers(node)['laptop'][:2] == ('laptop', ['peer'])
    assert _peers(other)['studio'][:2] == ('studio', ['peer'])


def test_a_window_says_its_code_in_both_spellings_and_where_it_is(node):
    with node.start('pair', '--show', '--qr') as window:
        said = window.stdout.readline()
        assert said.startswith('Code: ')
        assert 'or: ' in said
        assert 'degu pair' in window.stdout.readline()
        assert '--at 127.0.0.1:' in window.stdout.readline()
        assert '█' in window.stdout.readline()


def test_a_wrong_code_stores_nothing_and_closes_the_window(node, other):
    with node.start('pair', '--json', '--show') as window:
        opened = node.read(window)
        wrong = '0000-0000' if opened['code'] != '0000-0000' else '1111-1111'
        done = other.run('pair', wrong, '--at', opened['addresses'][0])
        assert done.returncode == 6
        assert 'do not have the same code' in done.stderr
        assert window.wait(TIMEOUT_S) == 6
    assert _peers(node) == {}
    assert _peers(other) == {}


def test_a_slip_in_the_code_is_usage_and_burns_nothing(node, other, pair_devices):
    with node.start('pair', '--json', '--show') as window:
        opened = node.read(window)
        at = opened['addresses'][0]
        assert other.run('pair', opened['code'][:-1], '--at', at).returncode == 2
        other.check('pair', '--at', at, DEGU_PAIR_CODE=opened['code'])
        assert window.wait(TIMEOUT_S) == 0


def test_a_code_can_come_on_standard_input(node, other):
    with node.start('pair', '--json', '--show') as window:
        opened = node.read(window)
        done = other.run('pair', '--at', opened['addresses'][0], text=f'{opened["code"]}\n')
        assert (done.returncode, 'paired with studio' in done.stdout) == (0, True), done.stderr
        assert window.wait(TIMEOUT_S) == 0


def test_at_without_a_code_opens_no_window_here(node):
    done = node.run('pair', '--at', '127.0.0.1:1')
    assert done.returncode == 2
    assert 'the code of that window is needed' in done.stderr
    assert 'DEGU_PAIR_CODE' in done.stderr


def test_show_takes_no_code(node):
    for arguments in (['0000-0000'], ['--at', '127.0.0.1:1']):
        done = node.run('pair', *arguments, '--show')
        assert done.returncode == 2
        assert '--show' in done.stderr
    with node.start('pair', '--json', '--show', DEGU_PAIR_CODE='0000-0000') as window:
        assert json.loads(window.stdout.readline())['type'] == 'opened'


def test_ctrl_c_closes_the_window(node, other):
    with node.start('pair', '--json', '--show') as window:
        opened = node.read(window)
        window.send_signal(2)
        assert window.wait(TIMEOUT_S) == 130
    host, _, port = opened['addresses'][0].rpartition(':')
    deadline = time.monotonic() + TIMEOUT_S
    with contextlib.suppress(ConnectionRefusedError):
        while time.monotonic() < deadline:  # the node looks for its caller every CALLER_PERIOD_S
            socket.create_connection((host, int(port)), TIMEOUT_S).close()
            time.sleep(0.05)
    done = other.run('pair', opened['code'], '--at', opened['addresses'][0])
    assert done.returncode == 5


def test_a_machine_joins_and_gives_up_what_it_was(node, other, pair_devices):
    before = other.check('id', '--json').documents[0]
    user_id = node.check('id', '--json').documents[0]['user_id']
    pair_devices(node, other, '--mine', '--yes')
    assert _peers(node)['laptop'][1] == ['owner']
    # The node of the other one starts anew with what it is now.
    while other.run('status').returncode == 10:
        pass
    now = other.check('id', '--json').documents[0]
    assert now['user_id'] == user_id != before['user_id']
    assert not now['can_certify']
    former = other.home / f'former-{before["machine_id"]}'
    assert (former / 'user.key').exists()


def test_giving_up_an_identity_is_asked(node, other):
    with node.start('pair', '--json', '--show', '--mine') as window:
        opened = node.read(window)
        done = other.run('pair', opened['code'], '--mine', '--at', opened['addresses'][0])
        assert done.returncode == 2
        assert '--yes' in done.stderr


def test_unpair_takes_trust_back(node, other, pair_devices):
    pair_devices(node, other)
    assert node.run('unpair', 'laptop').returncode == 2  # nobody can be asked
    (gone,) = node.check('unpair', 'laptop', '--yes', '--json').documents
    assert (gone['type'], gone['name']) == ('unpaired', 'laptop')
    assert _peers(node) == {}
    done = node.run('unpair', 'laptop', '--yes', '--json')
    assert done.returncode == 4
    assert done.error['kind'] == 'UnknownMachineError'


def test_an_id_is_taken_as_it_is_shown_and_a_mistake_in_it_is_usage(node, other, pair_devices):
    pair_devices(node, other)
    spelled = format_id(other.check('id', '--json').documents[0]['machine_id'])
    wrong = spelled[1] + spelled[0] + spelled[2:]
    if wrong == spelled:
        wrong = ('a' if spelled[0] == 'b' else 'b') + spelled[1:]
    for command in (['unpair', wrong, '--yes'], ['methods', wrong], ['ls', f'{wrong}:']):
        done = node.run(*command)
        assert done.returncode == 2
        assert 'compare it again' in done.stderr
    port = other.check('status', '--json').documents[0]['urls'][0].rpartition(':')[2]
    url = f'degu://{spelled}@127.0.0.1:{port}'
    assert 'health.v1.Health/check' in node.check('methods', url).stdout
    node.check('ls', f'{url}/')
    node.check('unpair', spelled.replace('-', ' ').upper(), '--yes')
    assert _peers(node) == {}


def test_no_window_in_sight_is_unreachable_and_says_why(node):
    done = node.run('pair', '0000-0000')
    assert done.returncode == 5
    assert 'discovery is switched off' in done.stderr


def test_nobody_nearby_says_why(node):
    done = node.run('peers', '--nearby')
    assert done.returncode == 4
    assert 'discovery is switched off' in done.stderr


def test_id_needs_no_node_but_an_identity(device):
    assert device.run('id').returncode == 4
    with device.up():
        pass
    said = device.check('id', '--qr').stdout
    document = device.check('id', '--json').documents[0]
    assert document['machine_id'] in said.replace('-', '')
    assert format_id(document['machine_id']) in said
    assert '█' in said
