"""degu_rpc.files.trash: what was displaced stays for its time, and nothing else is ever removed."""

from __future__ import annotations

import os
import time

import pytest

from degu_rpc.files import trash as trash_module
from degu_rpc.files.commit import Workspace
from degu_rpc.files.limits import TRASH_AGE_S
from degu_rpc.files.paths import Root
from degu_rpc.files.trash import new_trash_name

DAY_S = 86400.0


@pytest.fixture
def top(tmp_path):
    directory = tmp_path / 'top'
    (directory / '.degu' / 'trash').mkdir(parents=True, mode=0o700)
    return directory


@pytest.fixture
def trash(top):
    return top / '.degu' / 'trash'


@pytest.fixture
def at(monkeypatch):
    """Set the clock so many seconds ahead, or none."""
    now = time.time

    def set_clock(ahead_s):
        monkeypatch.setattr(time, 'time', lambda: now() + ahead_s)

    return set_clock


def begin(top):
    """Do what a transfer does first."""
    with Root(top) as root, Workspace(root) as workspace:
        workspace.recover()


def displace(trash, *paths, name=None):
    where = trash / os.fsdecode(name or new_trash_name())
    for path in paths:
        (where / path).parent.mkdir(parents=True, exist_ok=True)
        (where / path).write_text('old')
    return where


def test_i3_what_was_displaced_stays_for_thirty_days_and_then_goes(top, trash, at):
    displace(trash, 'a', 'sub/deeper/b')
    for ahead_s in (0, DAY_S, TRASH_AGE_S - DAY_S, TRASH_AGE_S + DAY_S):
        at(ahead_s)
        begin(top)
        assert len(list(trash.rglob('*'))) == 5
    at(TRASH_AGE_S + 2 * DAY_S)
    begin(top)
    assert list(trash.iterdir()) == []


def test_i3_only_what_is_old_leaves_the_trash(top, trash, monkeypatch):
    """A long fetch has a directory whose name is older than what is in it."""
    old = displace(trash, 'sub/young', name=b'2020-01-01T00-00-00Z-01234567')
    displace(trash, 'empty', name=b'2020-01-02T00-00-00Z-01234567')
    (trash / '2020-01-02T00-00-00Z-01234567' / 'empty').unlink()
    young = displace(trash, 'a')
    names = ['mine', '2020-01-01T00-00-00Z', '2020-13-01T00-00-00Z-01234567']
    for name in names:
        displace(trash, 'a', name=name.encode())
    (trash / '2020-01-03T00-00-00Z-01234567').write_text('a file')
    lock = top / '.degu' / 'lock'
    lock.touch(0o600)
    os.utime(lock, (0, time.time()))  # the clock is steady since long
    begin(top)
    kept = {old.name, young.name, *names, '2020-01-03T00-00-00Z-01234567'}
    assert set(os.listdir(trash)) == kept
    assert (old / 'sub' / 'young').read_text() == 'old'
    monkeypatch.setattr(trash_module, 'TRASH_AGE_S', -DAY_S)  # all that there is is old
    begin(top)
    assert set(os.listdir(trash)) == {*names, '2020-01-03T00-00-00Z-01234567'}


def test_i3_a_clock_that_is_wrong_once_empties_no_trash(top, trash, at):
    displace(trash, 'a')
    begin(top)
    for ahead_s in (20 * 365 * DAY_S, DAY_S, -20 * 365 * DAY_S, 2 * DAY_S):
        at(ahead_s)
        begin(top)
    assert [path.name for path in trash.rglob('a')] == ['a']


def test_i3_a_clock_that_is_wrong_for_some_runs_makes_nothing_old(top, trash, at):
    """A machine without a clock of its own begins with some day in the past, perhaps for days."""
    for ahead_s in (0, 20 * 365 * DAY_S, 20 * 365 * DAY_S + 60, 60):
        at(ahead_s)
        begin(top)
    displace(trash, 'a')
    for ahead_s in (120, DAY_S, 60 * DAY_S, 60 * DAY_S + 60, 80 * DAY_S, 91 * DAY_S):
        at(ahead_s)
        begin(top)
        assert [path.name for path in trash.rglob('a')] == ['a']
    at(92 * DAY_S)
    begin(top)
    assert list(trash.iterdir()) == []


def test_i6_a_trash_that_is_emptied_leads_nowhere_else(top, trash, tmp_path, monkeypatch):
    outside = tmp_path / 'outside'
    outside.mkdir()
    (outside / 'file').write_text('mine')
    where = displace(trash, 'a')
    (where / 'link').symlink_to(outside)
    (where / 'hard').hardlink_to(outside / 'file')
    (trash / os.fsdecode(new_trash_name())).symlink_to(outside)
    monkeypatch.setattr(trash_module, 'TRASH_AGE_S', -DAY_S)
    begin(top)
    assert (outside / 'file').read_text() == 'mine'
    assert [path.is_symlink() for path in trash.iterdir()] == [True]


def test_what_cannot_be_removed_stays_and_is_in_nobodys_way(top, trash, monkeypatch):
    displace(trash, 'a')
    monkeypatch.setattr(trash_module, 'TRASH_AGE_S', -DAY_S)

    def fail(*_args, **_options):
        raise PermissionError(1, 'it is marked so')

    monkeypatch.setattr(os, 'unlink', fail)
    begin(top)
    assert [path.name for path in trash.rglob('a')] == ['a']
