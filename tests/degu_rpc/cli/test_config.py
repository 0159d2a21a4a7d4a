"""`degu config`: what is shown, where it came from, what is stored and what is refused."""

from __future__ import annotations

import json

import click
import pytest

from degu_rpc.cli.config import config


def _get(device, key, **environment):
    (document,) = device.check('config', 'get', key, '--json', **environment).documents
    assert document['type'] == 'setting'
    assert document['key'] == key
    return document['value'], document['source']


def test_help_says_how_each_command_ends():
    for name, command in config.commands.items():
        assert 'Exit status: 0 done' in command.get_help(click.Context(command)), name


def test_get_shows_every_setting_with_its_value_and_its_source(device):
    device.home.mkdir(mode=0o700)
    toml = device.home / 'config.toml'
    toml.write_text('port = 1\n[shares.photos]\npath = "~/Pictures"\n')
    device.check('config', 'set', 'name', 'attic')
    said = [line.split() for line in device.check('config', 'get').stdout.splitlines()]
    assert ['name', 'attic', f'({device.home}/settings.json)'] in said
    assert ['port', '1', f'({toml})'] in said
    assert ['listen', '127.0.0.1', '(DEGU_LISTEN)'] in said
    assert ['interfaces', '-', '(default)'] in said
    assert ['discovery', 'true', '(default)'] in said
    assert ['shares', 'photos:', '~/Pictures', '(for', 'peer)', f'({toml})'] in said
    documents = device.check('config', 'get', '--json').documents
    assert len(documents) == len(said)
    assert documents[-2]['value'] == {'photos': {'path': '~/Pictures', 'allow': ['peer']}}


def test_set_stores_and_unset_removes_and_a_node_counts_on_it(device):
    done = device.check('config', 'set', 'name', 'attic')
    assert 'when it starts anew: degu down && degu up --bg' in done.stdout
    assert (device.home / 'settings.json').stat().st_mode & 0o777 == 0o600
    assert _get(device, 'name') == ('attic', str(device.home / 'settings.json'))
    with device.start('up', '--port=0', '--no-discovery') as up:
        assert 'ready: attic' in up.stdout.readline()
    done = device.check('config', 'unset', 'name', '--json')
    assert done.documents[0]['source'] == 'default'
    assert _get(device, 'name')[1] == 'default'


def test_set_says_when_the_environment_comes_before_it(device):
    interfaces = ('config', 'set', 'interfaces', 'eth0, wlan0')
    done = device.check(*interfaces, DEGU_INTERFACES='eth1')
    assert done.stdout.startswith('interfaces eth0,wlan0  (')
    assert _get(device, 'interfaces')[0] == ['eth0', 'wlan0']
    assert 'DEGU_INTERFACES is set here and comes before it' in done.stderr
    assert _get(device, 'interfaces', DEGU_INTERFACES='eth1') == (['eth1'], 'DEGU_INTERFACES')


def test_path_names_both_files_and_makes_nothing(device):
    (document,) = device.check('config', 'path', '--json').documents
    assert document['config'] == str(device.home / 'config.toml')
    assert document['settings'] == str(device.home / 'settings.json')
    assert f'{document["config"]}  yours' in device.check('config', 'path').stdout
    assert not device.home.exists()


def test_a_value_that_cannot_be_is_status_2_and_is_not_stored(device):
    done = device.run('config', 'set', 'port', '70000', '--json')
    assert done.returncode == 2
    assert done.error['kind'] == 'ConfigError'
    assert not (device.home / 'settings.json').exists()


def test_shares_are_for_a_person_to_write(device):
    done = device.run('config', 'set', 'shares', 'x')
    assert done.returncode == 2
    assert 'write it into config.toml' in done.stderr


@pytest.mark.parametrize('arguments', [['get', 'nosuch'], ['set', 'port'], ['nosuch']])
def test_wrong_usage_is_status_2(device, arguments):
    assert device.run('config', *arguments).returncode == 2


def test_what_a_person_wrote_wrongly_is_said_with_where(device):
    device.home.mkdir(mode=0o700)
    (device.home / 'config.toml').write_text('ports = 1\n')
    done = device.run('config', 'get')
    assert done.returncode == 2
    assert f'ports, from {device.home}/config.toml: there is no such setting' in done.stderr


@pytest.mark.parametrize(
    'arguments',
    [
        ['--json', 'config', 'get', 'port'],
        ['config', '--json', 'get', 'port'],
        ['config', 'get', 'port', '--json'],
    ],
)
def test_the_shared_flags_stand_before_and_behind_each_word(device, arguments):
    assert device.check(*arguments).documents[0]['key'] == 'port'


def test_the_last_home_that_is_given_counts(device, tmp_path):
    first, last = tmp_path / 'first', tmp_path / 'last'
    done = device.check('--home', first, 'config', '--home', last, 'path', '--json')
    assert json.loads(done.stdout)['settings'] == str(last / 'settings.json')
