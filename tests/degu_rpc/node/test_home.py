"""The directory of a device: whose it is, and what a kill leaves of an identity that joins."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from degu_rpc.errors import IdentityError, NodeRunningError
from degu_rpc.node.home import Home


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
