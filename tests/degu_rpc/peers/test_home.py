"""Where this device's identity is: said by the environment, or the user's directory for data."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import pytest

from degu_rpc.peers import Identity, IdentityError, find_home, open_home
from degu_rpc.peers.home import find_config_directory

if TYPE_CHECKING:
    from degu_rpc.peers import Identity


def test_environment_says_where_it_is(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('DEGU_HOME', str(tmp_path / 'mine'))
    assert find_home() == tmp_path / 'mine'
    assert not find_home().exists()


@pytest.mark.parametrize('given', [None, ''])
def test_otherwise_it_is_where_a_users_data_is(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path))
    if given is None:
        monkeypatch.delenv('DEGU_HOME', raising=False)
    else:
        monkeypatch.setenv('DEGU_HOME', given)
    assert find_home() == tmp_path / 'degu'
    assert not find_home().exists()


def test_relative_path_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('DEGU_HOME', 'mine')
    with pytest.raises(
        IdentityError, match='mine is not absolute and stands in DEGU_HOME'
    ) as caught:
        find_home()
    assert caught.value.path == pathlib.Path('mine')


def test_identity_there_is_opened(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Identity.create(tmp_path / 'identity')
    monkeypatch.setenv('DEGU_HOME', str(tmp_path))
    assert open_home() == open_home(tmp_path) == made


def test_no_identity_there_is_an_error_that_says_what_to_do(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('DEGU_HOME', str(tmp_path / 'none'))
    with pytest.raises(IdentityError, match=r'none holds no identity; make one: degu up') as caught:
        open_home()
    assert caught.value.path == tmp_path / 'none'


def test_settings_are_in_the_home_but_for_the_usual_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path / 'data'))
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path / 'config'))
    assert find_config_directory(tmp_path / 'data' / 'degu') == tmp_path / 'config' / 'degu'
    assert find_config_directory(tmp_path / 'other') == tmp_path / 'other'
