"""What the tests of the files wing share: real servers, real trees, real programs."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from degu.client import Client, SSLClient, build_client_sslctx
from degu.server import Server, SSLServer, build_server_sslctx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType


def _load(name: str) -> ModuleType:
    """Import a module beside this one by its path: tests are no package."""
    path = pathlib.Path(__file__).with_name(f'{name}.py')
    spec = importlib.util.spec_from_file_location(f'files_{name}', path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_CHAOS, _NAUGHTY, _WORK = _load('chaos'), _load('naughty'), _load('work')


@pytest.fixture
def chaos() -> ModuleType:
    """Give the module chaos.py."""
    return _CHAOS


@pytest.fixture
def names() -> list[bytes]:
    """Give the names of naughty.py."""
    return list(_NAUGHTY.NAMES)


@pytest.fixture
def work() -> ModuleType:
    """Give the module work.py."""
    return _WORK


@pytest.fixture
def with_roles() -> type[Any]:
    """Give the middleware that says who is calling, for a test that has a server of its own."""
    return _WORK.WithRoles


class Killing:
    """The program killing.py. One order at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def begin(self, **order: Any) -> None:
        """Order a transfer."""
        self._process.stdin.write(json.dumps(order) + '\n')
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Wait for its end, and return what the program reports."""
        return json.loads(self._process.stdout.readline())


@pytest.fixture
def killing() -> Iterator[Killing]:
    """Run the program killing.py."""
    command = [sys.executable, str(pathlib.Path(__file__).with_name('killing.py'))]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, **pipes) as process:
        yield Killing(process)
        process.stdin.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Client]]:
    """Serve an app to a caller with the given roles ('peer' unless told) and return a client."""
    with contextlib.ExitStack() as stack:

        def start(
            app: Any, *roles: str, anonymous: bool = False, user: str = 'someone', **options: Any
        ) -> Client:
            known = _WORK.WithRoles(app, *(() if anonymous else roles or ('peer',)), user=user)
            server = stack.enter_context(Server(('127.0.0.1', 0), known, **options))
            return Client(server.address, timeout_s=20)

        yield start


@pytest.fixture
def listen(temp_pki: Any) -> tuple[Callable[..., Server], Callable[..., Client]]:
    """Give what serves an app, and what makes a client for it or for a relay before it."""

    def start(app: Any, *, is_tls: bool) -> Server:
        if not is_tls:
            return Server(('127.0.0.1', 0), app)
        return SSLServer(build_server_sslctx(temp_pki.get_server_config()), ('127.0.0.1', 0), app)

    def build_client(address: Any, *, is_tls: bool, timeout_s: float) -> Client:
        if not is_tls:
            return Client(address, timeout_s=timeout_s)
        config = build_client_sslctx(temp_pki.get_client_config())
        return SSLClient(config, address, timeout_s=timeout_s)

    return start, build_client


@pytest.fixture
def program() -> Callable[[str], str]:
    """Return the path of a system program; skip without it, fail where all are required."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            message = f'{name} is not installed'
            if os.environ.get('DEGU_TEST_REQUIRE_ALL') == '1':
                pytest.fail(message)
            pytest.skip(message)
        return path

    return find


@pytest.fixture
def tree() -> Callable[[pathlib.Path], dict[bytes, object]]:
    """Read a tree into values that can be compared; our own directory is left out."""
    return read_tree


def read_tree(top: pathlib.Path) -> dict[bytes, object]:
    found: dict[bytes, object] = {}
    for directory, names, files in os.walk(os.fsencode(top)):
        if b'.degu' in names:
            names.remove(b'.degu')
        for name in names + files:
            path = os.path.join(directory, name)
            seen = os.lstat(path)
            key = os.path.relpath(path, os.fsencode(top))
            mode = stat.S_IMODE(seen.st_mode)
            if stat.S_ISLNK(seen.st_mode):
                found[key] = (os.readlink(path), seen.st_mtime_ns)
            elif stat.S_ISDIR(seen.st_mode):
                found[key] = (mode, seen.st_mtime_ns)
            else:
                with open(path, 'rb') as file:
                    found[key] = (mode, seen.st_mtime_ns, file.read())
    return found


@pytest.fixture
def look() -> Callable[[pathlib.Path], dict[bytes, tuple[int, object]]]:
    """Read a tree as `tree` does, and the inodes: (inode, value) of each path."""

    def read(top: pathlib.Path) -> dict[bytes, tuple[int, object]]:
        return {
            name: (os.lstat(os.path.join(os.fsencode(top), name)).st_ino, value)
            for name, value in read_tree(top).items()
        }

    return read


@pytest.fixture
def trash() -> Callable[[pathlib.Path], list[bytes]]:
    """Read the contents of all files in the trash of a root, sorted."""

    def read(top: pathlib.Path) -> list[bytes]:
        found = (top / '.degu' / 'trash').rglob('*')
        return sorted(path.read_bytes() for path in found if stat.S_ISREG(path.lstat().st_mode))

    return read


@pytest.fixture
def mount(tmp_path: pathlib.Path) -> Iterator[Callable[[str], pathlib.Path]]:
    """Mount a tmpfs with the given options; skip without the right to, fail where all is needed."""
    mounted = []

    def start(options: str) -> pathlib.Path:
        directory = tmp_path / f'mounted-{len(mounted)}'
        directory.mkdir()
        command = ['mount', '-t', 'tmpfs', '-o', options, 'none', str(directory)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            if os.environ.get('DEGU_TEST_REQUIRE_ALL') == '1':
                pytest.fail('cannot mount a tmpfs')
            pytest.skip('mounting a tmpfs needs privileges')
        mounted.append(directory)
        return directory

    yield start
    for directory in mounted:
        # Lazily: a server may be about to close the last file that it sent.
        subprocess.run(['umount', '--lazy', str(directory)], check=True)


@pytest.fixture
def tiny(mount: Callable[[str], pathlib.Path]) -> pathlib.Path:
    """A file system of 2 MiB."""
    return mount('size=2m')
