"""`degu doctor`: what it prints and how it ends; its checks are tested below it."""

from __future__ import annotations


def test_a_node_that_is_well_has_nothing_at_fault(node):
    done = node.check('doctor', DEGU_DISCOVERY='false', DEGU_PORT='0')
    assert 'ok      node: studio runs, process ' in done.stdout
    assert 'fault' not in done.stdout
    done = node.check('doctor', '--json', DEGU_DISCOVERY='false', DEGU_PORT='0')
    assert {(f['type'], f['level']) for f in done.documents} == {('finding', 'ok')}


def test_a_fault_is_said_with_its_remedy_and_is_status_1(device):
    device.home.mkdir(mode=0o755)
    done = device.run('doctor', DEGU_DISCOVERY='false')
    assert done.returncode == 1
    assert f'        run: chmod 700 {device.home}\n' in done.stdout
    assert done.stderr == 'degu: at fault: home\n'
    done = device.run('doctor', '--json', DEGU_DISCOVERY='false')
    assert done.error['kind'] == 'failed'
    (fault,) = [f for f in done.documents if f['level'] == 'fault']
    assert fault['check'] == 'home'
    assert fault['remedy'] == f'run: chmod 700 {device.home}'


def test_no_time_at_all_is_wrong_usage(device):
    assert device.run('doctor', '--timeout', '0').returncode == 2
