"""Where this device's identity is: said by the environment, or the user's directory for data."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import pytest

from degu_rpc.peers import IdentityError, find_home, open_home

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


def test_identity_there_is_opened(alice: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('DEGU_HOME', str(alice.directory))
    assert open_home() == open_home(alice.directory) == alice


def test_no_identity_there_is_an_error_that_says_what_to_do(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('DEGU_HOME', str(tmp_path / 'none'))
    with pytest.raises(IdentityError, match=r'none holds no identity; make one') as caught:
        open_home()
    assert 'DEGU_HOME' in caught.value.remedy
