"""The quickstarts as programs: short, and callable by those whom they are for."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from degu_rpc import Identity, MachineClient, RpcClient, TrustStore, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parents[2] / 'examples'
WAIT_S = 20.0
MAX_LINES = 10


@contextlib.contextmanager
def running(name: str, socket_path: Path, *arguments: str, **environment: str) -> Iterator[None]:
    """Run an example until the end of the block, where SIGINT ends it; it serves at the socket."""
    with subprocess.Popen(
        [sys.executable, '-W', 'error', str(EXAMPLES / name), *arguments],
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    ) as process:
        try:
            deadline = time.monotonic() + WAIT_S
            with socket.socket(socket.AF_UNIX) as sock:
                while sock.connect_ex(str(socket_path)):
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
            yield
            process.send_signal(signal.SIGINT)
            process.wait(WAIT_S)
        finally:
            process.kill()
    assert not socket_path.exists()


@pytest.mark.parametrize('name', ['quick_service.py', 'quick_unix.py'])
def test_a_quickstart_has_ten_lines_of_code_beside_its_imports(name: str) -> None:
    lines = set()
    for node in ast.walk(ast.parse((EXAMPLES / name).read_text())):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not (is_text or isinstance(node, ast.ImportFrom)):
            lines.add(node.lineno)
    assert 0 < len(lines) <= MAX_LINES


def test_the_service_is_called_by_a_paired_machine_and_by_a_local_user(tmp_path: Path) -> None:
    home = tmp_path / 'home'
    home.mkdir(mode=0o700)
    studio, friend = (Identity.create(path) for path in (home / 'identity', tmp_path / 'friend'))
    TrustStore(studio).add(
        friend.user_cert, 'ada', {'peer'}, machines={friend.machine_id: 'laptop'}
    )
    trust = TrustStore(friend)
    trust.add(studio.user_cert, 'studio')
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    environment = {
        'DEGU_HOME': str(home),
        'DEGU_LISTEN': '127.0.0.1',
        'DEGU_PORT': str(port),
        'DEGU_DISCOVERY': 'false',
    }
    with running('quick_service.py', home / 'node.sock', **environment):
        with connect(f'unix:{home}/node.sock') as client:
            said = client['hello.v1.Hello'].greet(name='Ada')
            assert said == f'hello Ada, asked by uid:{os.getuid()}'
        machine = MachineClient(trust, ('127.0.0.1', port), studio.machine_id)
        with RpcClient(machine) as client:
            assert client['hello.v1.Hello'].greet(name='Ada') == 'hello Ada, asked by ada'


def test_the_unix_service_is_called_by_its_own_client(tmp_path: Path) -> None:
    path = tmp_path / 'hello.sock'
    with running('quick_unix.py', path, str(path)):
        done = subprocess.run(
            [sys.executable, '-W', 'error', str(EXAMPLES / 'quick_unix.py'), str(path), 'Ada'],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=True,
        )
    assert done.stdout == f'hello Ada, asked by uid:{os.getuid()}\n'
