"""The directory of a device: whose it is, and what a kill leaves of an identity that joins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from degu_rpc import Identity
from degu_rpc.errors import IdentityError, NodeRunningError
from degu_rpc.node.home import MACHINE_FILE, Home


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / 'home')


def test_one_at_a_time_holds_a_home_and_who_looks_sees_who(home):
    assert not home.is_held()
    for _ in range(2):
        with home.hold():
            assert home.is_held()
            assert home.find_holder() == os.getpid()
            with pytest.raises(NodeRunningError), home.hold():
                pass
        assert not home.is_held()
        assert home.find_holder() is None


def test_who_looks_keeps_no_node_from_its_home(home):
    with home.hold():
        pass
    script = (
        'import sys\n'
        'from degu_rpc.node.home import Home\n'
        'home = Home(sys.argv[1])\n'
        'print(flush=True)\n'
        'while True:\n'
        '    home.is_held()\n'
    )
    command = [sys.executable, '-c', script, str(home.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as looker:
        try:
            assert looker.stdout is not None
            assert looker.stdout.readline() == b'\n'
            for _ in range(1000):
                with home.hold():
                    pass
        finally:
            looker.kill()


@pytest.mark.parametrize('name', ['x' * 120, 'nul\0'])
def test_a_path_that_no_socket_can_have_is_refused_and_nothing_is_made(tmp_path, name):
    home = Home(tmp_path / name)
    with pytest.raises(IdentityError, match='cannot be a home'):
        home.check()
    with pytest.raises(IdentityError, match='cannot be a home'), home.hold():
        pass
    assert list(tmp_path.iterdir()) == []


# Puts in place what joined, and is killed instead of the n-th rename or, if there is none, after.
DYING = """
import os, signal, sys
from pathlib import Path
from degu_rpc.node.home import MACHINE_FILE, Home
left = int(sys.argv[2])
rename = Path.rename
def rename_or_die(path, target):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return rename(path, target)
Path.rename = rename_or_die
home = Home(sys.argv[1])
with home.hold():
    home.prepare()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize('renames', [0, 1, 2])
def test_a_kill_while_an_identity_takes_its_place_is_finished_by_the_next_start(home, renames):
    with home.hold():
        home.prepare()
        before = home.open_identity().machine_id
        joined = Identity.create(home.joining_directory).machine_id
    killed = subprocess.run(
        [sys.executable, '-c', DYING, str(home.directory), str(renames)], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert home.find_former(before).exists() is (renames > 0)
    assert home.joining_directory.exists() is (renames < 2)
    for _ in range(2):
        with home.hold():
            home.prepare()
            assert home.open_identity().machine_id == joined
        assert Identity.open(home.find_former(before)).machine_id == before
        assert not home.joining_directory.exists()


def test_an_identity_that_is_not_complete_takes_no_place(home):
    with home.hold():
        home.prepare()
        before = home.open_identity().machine_id
        Identity.create(home.joining_directory)
        (home.joining_directory / MACHINE_FILE).unlink()
        home.prepare()
        assert home.open_identity().machine_id == before
