"""`degu stubs` against a live server."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from degu_rpc import Router, RpcApp, Service
from degu_rpc.peers import Authenticated
from degu_rpc.rpc.meta import build_meta

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

    from degu.server import Server


@pytest.fixture
def socket(serve: Callable[..., Server], tmp_path: pathlib.Path) -> str:
    first, second = Service('clock.v1.Clock'), Service('other.v1.Other')

    @first.method(allow='peer')
    def now(zone: str = 'UTC') -> str:
        return zone

    @second.method(allow='peer')
    def ping() -> None:
        pass

    router = Router()
    router.mount('/api', RpcApp([first, second, build_meta([first, second])]))
    path = str(tmp_path / 'socket')
    serve(Authenticated(router), path)
    return f'unix:{path}'


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-W', 'error', '-m', 'degu_rpc.cli', 'stubs', *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def classes_of(source: str) -> dict[str, list[str]]:
    return {
        node.name: [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }


def test_all_services_are_written_but_meta(socket: str) -> None:
    done = run('--prefix', '/api', socket)
    assert (done.returncode, done.stderr) == (0, '')
    assert classes_of(done.stdout) == {'Clock': ['now'], 'Other': ['ping']}


def test_services_can_be_named(socket: str) -> None:
    done = run('--prefix', '/api', socket, 'other.v1.Other')
    assert classes_of(done.stdout) == {'Other': ['ping']}


@pytest.mark.parametrize(
    ('args', 'status', 'message'),
    [
        (['--prefix', '/api', 'none.v1.None'], 4, 'there are: clock.v1.Clock'),
        ([], 4, 'are the prefix and the name of the service right?'),
        (['--prefix', 'api'], 2, 'prefix must be'),
        (['--none'], 2, 'No such option'),
    ],
    ids=['service', 'other prefix', 'no prefix', 'usage'],
)
def test_what_goes_wrong_is_said_in_a_line(
    socket: str, args: list[str], status: int, message: str
) -> None:
    options = [arg for arg in args if arg.startswith('-') or arg.strip('/') == 'api']
    names = [arg for arg in args if arg not in options]
    done = run(*options, socket, *names)
    assert (done.returncode, done.stdout) == (status, '')
    assert message in done.stderr
    assert 'Traceback' not in done.stderr


def test_socket_that_is_not_there_is_unreachable(tmp_path: pathlib.Path) -> None:
    done = run(f'unix:{tmp_path}/none')
    assert done.returncode == 5
    assert 'No such file' in done.stderr
