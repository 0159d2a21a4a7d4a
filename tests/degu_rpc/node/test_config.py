"""Settings: which one counts, where it came from, and what is wrong with one that cannot be."""

from __future__ import annotations

import json
import threading

import pytest

from degu_rpc.errors import ConfigError, IdentityError
from degu_rpc.node.config import SETTABLE, build_config, read_settings, set_value, unset_value
from degu_rpc.node.home import Home
from degu_rpc.node.limits import MAX_CONFIG_SIZE

ID = 'a' * 48


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / 'home')
    home.directory.mkdir(mode=0o700)
    return home


def test_flags_come_before_the_environment_before_what_is_stored_before_the_file(home):
    def look(flags=None, environment=None):
        setting = read_settings(home, flags or {}, environment or {})['port']
        return setting.value, setting.source

    assert look() == (8485, 'default')
    home.config_path.write_text('port = 1\n')
    assert look() == (1, str(home.config_path))
    set_value(home, 'port', '2')
    assert look() == (2, str(home.settings_path))
    assert look(None, {'DEGU_PORT': '3'}) == (3, 'DEGU_PORT')
    assert look({'port': 4}, {'DEGU_PORT': '3'}) == (4, '--port')
    assert look({'port': None}, {'DEGU_PORT': '3'}) == (3, 'DEGU_PORT')
    assert unset_value(home, 'port') == ('port', 1, str(home.config_path))
    assert look() == (1, str(home.config_path))


def test_the_usual_home_has_its_file_where_the_user_has_those_behind_links_too(
    tmp_path, monkeypatch
):
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'data').symlink_to('disk')
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path / 'data'))
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path / 'config'))
    monkeypatch.delenv('DEGU_HOME', raising=False)
    for directory in (None, Home().directory):
        assert Home(directory).config_path == tmp_path / 'config' / 'degu' / 'config.toml'


def test_the_file_of_a_person_is_never_written(home):
    home.config_path.write_text('# mine\nport=1\n')
    for key, text in {'port': '7', 'name': 'x', 'discovery': 'false', 'interfaces': 'a,b'}.items():
        set_value(home, key, text)
    assert home.config_path.read_text() == '# mine\nport=1\n'


def test_everything_in_the_file_is_understood(home):
    home.config_path.write_text(
        f"""
        name = "studio"
        port = 0
        listen = ["127.0.0.1", "::1"]
        interfaces = ["eth0"]
        discovery = false
        machines = ["degu://{ID}@192.168.1.7:8485"]
        [shares.photos]
        path = "~/Pictures"
        allow = ["guest"]
        [inbox]
        path = "~/in"
        accept = ["owner", "peer"]
        ask = []
        """
    )
    config = build_config(read_settings(home, {}, {}))
    assert config.listen == ('127.0.0.1', '::1')
    assert config.shares['photos'].allow == ('guest',)
    assert not str(config.shares['photos'].directory).startswith('~')
    assert (config.inbox.accept, config.inbox.ask) == (('owner', 'peer'), ())
    assert config.inbox.directory.is_absolute()


def test_the_inbox_is_the_directory_for_downloads_of_the_user_unless_it_is_set(home, monkeypatch):
    monkeypatch.setenv('HOME', str(home.directory))
    monkeypatch.setenv('XDG_CONFIG_HOME', str(home.directory))
    monkeypatch.setenv('XDG_DOWNLOAD_DIR', str(home.directory / 'loads'))
    inbox = build_config(read_settings(home, {}, {})).inbox
    assert (inbox.path, inbox.accept, inbox.ask) == (
        str(home.directory / 'loads'),
        ('owner',),
        ('peer',),
    )


@pytest.mark.parametrize(
    ('content', 'key', 'reason'),
    [
        ('port = "many"', 'port', 'Expected `int`'),
        ('port = 65536', 'port', '65535'),
        ('ports = 1', 'ports', 'no such setting'),
        ('name = ""', 'name', '1 to 64'),
        ('name = "a\\u001b"', 'name', 'control'),
        (f'name = "{ID}"', 'name', 'cannot be an id'),
        *((f'name = "{name}"', 'name', 'choose') for name in ('-x', '.', 'a/b', 'a:b')),
        ('listen = ["here"]', 'listen', 'here'),
        ('listen = []', 'listen', 'length'),
        ('machines = ["degu://x@y:1"]', 'machines', 'id'),
        ('[shares."../x"]\npath = "/"', 'shares', 'regex'),
        ('[shares.x]\npaths = "/"', 'shares', 'paths'),
        ('[shares.x]\npath = "/"\nallow = []', 'shares', 'x: allow must name a role'),
        ('[shares.x]\npath = "/"\nallow = [""]', 'shares', 'x: allow must name a role'),
        ('[shares.x]\npath = "~nosuchuser/x"', 'shares', 'x: Could not determine home'),
        ('[shares.x]\npath = "Pictures"', 'shares', "x: path must begin with / or ~, not 'Pict"),
        ('[inbox]\npath = "in"', 'inbox', "path must begin with / or ~, not 'in'"),
        ('[inbox]\nallow = ["peer"]', 'inbox', 'allow'),
        ('[inbox]\nask = [""]', 'inbox', 'must name a role'),
        ('[inbox]\naccept = ["peer"]', 'inbox', 'accept and ask both name peer'),
        ('port = ', 'config.toml', 'Invalid value'),
        ('x' * (MAX_CONFIG_SIZE + 1), 'config.toml', 'larger'),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_is_refused_with_where_it_stands(home, content, key, reason):
    home.config_path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_settings(home, {}, {})
    assert caught.value.key == key
    assert caught.value.source == str(home.config_path)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ('variable', 'text'),
    [('DEGU_PORT', 'x'), ('DEGU_PORT', '70000'), ('DEGU_PORT', '٣'), ('DEGU_DISCOVERY', 'yes')],
)
def test_a_variable_that_cannot_be_is_named(home, variable, text):
    with pytest.raises(ConfigError) as caught:
        read_settings(home, {}, {variable: text})
    assert caught.value.source == variable


def test_what_was_stored_by_another_version_is_refused(home):
    home.settings_path.write_text(json.dumps({'v': 2, 'port': 1}))
    with pytest.raises(ConfigError, match='another version'):
        read_settings(home, {}, {})


@pytest.mark.parametrize('key', ['shares', 'inbox', 'nosuch'])
def test_what_cannot_be_stored_says_what_can(home, key):
    with pytest.raises(ConfigError, match='cannot be set'):
        set_value(home, key, 'x')
    with pytest.raises(ConfigError, match='cannot be set'):
        unset_value(home, key)
    assert 'port' in SETTABLE


def test_a_value_that_cannot_be_is_not_stored(home):
    with pytest.raises(ConfigError):
        set_value(home, 'port', '70000')
    assert not home.settings_path.exists()


def test_programs_that_store_at_once_lose_nothing(home):
    texts = {'name': 'studio', 'port': '7', 'discovery': 'false', 'machines': f'degu://{ID}@a:1'}
    threads = [threading.Thread(target=set_value, args=(home, *item)) for item in texts.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(json.loads(home.settings_path.read_text())) == {'v', *texts}


def test_a_home_that_others_can_read_keeps_no_settings(home):
    home.directory.chmod(0o755)
    with pytest.raises(IdentityError, match='chmod 700'):
        set_value(home, 'port', '7')
    assert not home.settings_path.exists()
