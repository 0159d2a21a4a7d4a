"""Listening at a path: who can connect and when, what is left of the dead, who starts first."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from degu.client import Client
from degu.server import Server
from degu_rpc import unix
from degu_rpc.unix import listen_unix

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 20.0
SERVE = """
import os, signal, sys
from degu.server import Server
from degu_rpc.unix import listen_unix

def app(connection, request):
    return 200, 'OK', {}, b'%d' % os.getpid()

sys.stdin.readline()
try:
    server = Server(listen_unix(sys.argv[1]), app)
except OSError as error:
    print(error, flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, lambda number, frame: server.shutdown())
print('serving', flush=True)
server.serve_forever()
"""


def app(connection: dict[str, Any], request: dict[str, Any]) -> Any:
    return 200, 'OK', {}, b'%d' % os.getpid()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / 'socket')


@pytest.fixture
def umask() -> Iterator[None]:
    """Take no permission away from what is made."""
    before = os.umask(0)
    yield
    os.umask(before)


def start(path: str) -> subprocess.Popen[str]:
    """Start a server that waits for a line before it listens, and says what came of that."""
    return subprocess.Popen(
        [sys.executable, '-c', SERVE, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write('\n')
    process.stdin.flush()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> None:
    process.send_signal(number)
    process.communicate(timeout=WAIT_S)


def ask(path: str) -> int:
    with Client(path).connect() as connection:
        response = connection.get('/')
        assert response.body is not None
        return int(response.body.read())


def leave_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()


def identify(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


# --- mode and owner ------------------------------------------------------------------------------


@pytest.mark.parametrize('mode', [0o600, 0o660, 0o666, 0o000])
def test_file_has_the_mode_asked_for_whatever_the_umask(path: str, umask: None, mode: int) -> None:
    for mask in (0, 0o077, 0o777):
        os.umask(mask)
        with Server(listen_unix(path, mode=mode), app):
            assert stat.S_IMODE(os.stat(path).st_mode) == mode
        assert not os.path.exists(path)


def test_there_is_no_moment_in_which_others_could_connect(path: str, umask: None) -> None:
    seen = []

    def look(frame: object, event: str, argument: object) -> None:
        # Called around every call of a function, in C too, of what is to be watched.
        try:
            mode = stat.S_IMODE(os.lstat(path).st_mode)
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX) as sock:
            seen.append((mode, sock.connect_ex(path)))

    sys.setprofile(look)
    try:
        inherited = listen_unix(path, mode=0o640)
    finally:
        sys.setprofile(None)
    with Server(inherited, app):
        pass
    modes = [mode for mode, _ in seen]
    assert {0, 0o640} == set(modes), 'it began without any permission, and ended as was asked'
    assert modes == sorted(modes)
    # Even root, whom no mode keeps out, is refused until the mode is there.
    assert all(error == errno.ECONNREFUSED for mode, error in seen if mode == 0)
    assert seen[-1] == (0o640, 0)


def test_owner_and_group_can_be_set_by_number_and_name(path: str) -> None:
    if os.geteuid():
        pytest.skip('only root can give a file away')
    with Server(listen_unix(path, owner=1234, group='nogroup'), app):
        status = os.stat(path)
        assert (status.st_uid, status.st_gid) == (1234, 65534)


def test_unknown_owner_is_refused_and_leaves_no_file(path: str) -> None:
    with pytest.raises(LookupError, match='no such user'):
        listen_unix(path, owner='no-such-user')
    assert not os.path.exists(path)


@pytest.mark.parametrize('mode', [-1, 0o1777])
def test_mode_that_is_none_is_refused(path: str, mode: int) -> None:
    with pytest.raises(ValueError, match='mode must be 0 to 0o777'):
        listen_unix(path, mode=mode)


@pytest.mark.parametrize(
    ('mode', 'is_safe'),
    [(0o700, True), (0o755, True), (0o1777, True), (0o777, False), (0o770, False)],
)
def test_directory_in_which_others_could_replace_the_file_is_refused(
    tmp_path: Path, mode: int, is_safe: bool
) -> None:
    directory = tmp_path / 'run'
    directory.mkdir()
    directory.chmod(mode)
    if is_safe:
        with Server(listen_unix(f'{directory}/socket'), app):
            pass
    else:
        with pytest.raises(PermissionError, match='use a directory that only you can write to'):
            listen_unix(f'{directory}/socket')
    assert os.listdir(directory) == []


def test_directory_that_others_could_exchange_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'shared' / 'run').mkdir(mode=0o700, parents=True)
    (tmp_path / 'shared').chmod(0o777)
    (tmp_path / 'mine').mkdir(mode=0o700)
    (tmp_path / 'mine' / 'link').symlink_to('../shared/run')
    (tmp_path / 'to-link').symlink_to(tmp_path / 'mine' / 'link')
    for directory in ('shared/run', 'mine/link', 'to-link'):
        with pytest.raises(PermissionError, match=r"/shared' \(uid \d+, mode 777\)"):
            listen_unix(f'{tmp_path}/{directory}/socket')


def test_directory_behind_links_of_our_own_is_taken(tmp_path: Path) -> None:
    (tmp_path / 'a' / 'run').mkdir(mode=0o700, parents=True)
    (tmp_path / 'a' / 'link').symlink_to('./../a//run')
    (tmp_path / 'b').symlink_to(tmp_path / 'a')
    with Server(listen_unix(f'{tmp_path}/b/link/socket'), app):
        assert ask(f'{tmp_path}/a/run/socket') == os.getpid()


def test_link_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip('only root can give a link away')
    (tmp_path / 'run').mkdir(mode=0o700)
    (tmp_path / 'link').symlink_to('run')
    os.lchown(tmp_path / 'link', 1234, 1234)
    with pytest.raises(PermissionError, match='uid 1234'):
        listen_unix(f'{tmp_path}/link/socket')


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / 'a').symlink_to('b')
    (tmp_path / 'b').symlink_to('a')
    with pytest.raises(OSError, match='Too many levels of symbolic links'):
        listen_unix(f'{tmp_path}/a/socket')


def test_mode_and_owner_are_those_of_what_was_made_not_of_a_link_in_its_place(
    path: str, tmp_path: Path
) -> None:
    other = tmp_path / 'other'
    other.touch(mode=0o600)

    def exchange(frame: Any, event: str, argument: object) -> None:
        # In a safe directory nobody but we ourselves can do it.
        if event == 'call' and frame.f_code is shutil.chown.__code__:
            os.unlink(path)
            os.symlink(other, path)

    sys.setprofile(exchange)
    try:
        inherited = listen_unix(path, mode=0o666)
    finally:
        sys.setprofile(None)
    os.close(inherited.descriptor)
    assert stat.S_IMODE(other.stat().st_mode) == 0o600


def test_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip('only root can give a directory away')
    directory = tmp_path / 'run'
    directory.mkdir(mode=0o700)
    os.chown(directory, 1234, 1234)
    with pytest.raises(PermissionError, match='uid 1234'):
        listen_unix(f'{directory}/socket')


@pytest.mark.parametrize(
    ('path', 'error', 'reason'),
    [
        ('/tmp/' + 'x' * 103, ValueError, r'at most 107 bytes.*choose a shorter directory'),
        ('socket', ValueError, 'absolute and normalized'),
        (b'\0name', TypeError, 'path must be a str'),
        (('127.0.0.1', 0), TypeError, 'path must be a str'),
    ],
    ids=['too-long', 'relative', 'abstract', 'tcp'],
)
def test_what_is_no_path_of_a_socket_is_refused(path: Any, error: Any, reason: str) -> None:
    with pytest.raises(error, match=reason):
        listen_unix(path)


# --- what is there already -----------------------------------------------------------------------


def test_socket_of_a_dead_process_is_replaced(path: str) -> None:
    process = start(path)
    go(process)
    assert read_line(process) == 'serving'
    end(process, signal.SIGKILL)
    assert os.path.exists(path)
    with Server(listen_unix(path), app):
        assert ask(path) == os.getpid()
    assert not os.path.exists(path)


def test_live_server_is_refused_with_who_serves_and_keeps_serving(path: str) -> None:
    process = start(path)
    go(process)
    assert read_line(process) == 'serving'
    before = identify(path)
    with pytest.raises(
        OSError, match=f'process {process.pid} of uid {os.getuid()} serves it'
    ) as it:
        listen_unix(path)
    assert it.value.errno == errno.EADDRINUSE
    assert identify(path) == before
    assert ask(path) == process.pid
    end(process)


def test_live_server_whose_queue_is_full_is_not_removed(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix, '_PROBE_TIMEOUT_S', 0.05)
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(path)
        busy.listen(0)
        waiting.connect(path)
        before = identify(path)
        with pytest.raises(OSError, match='too busy to say'):
            listen_unix(path)
        assert identify(path) == before


@pytest.mark.parametrize('kind', [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=['early', 'datagram'])
def test_bound_socket_that_does_not_listen_is_not_removed(path: str, kind: int) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(path)
        before = identify(path)
        with pytest.raises(OSError, match=r'does not listen|wrong type'):
            listen_unix(path)
        assert identify(path) == before


def test_without_proc_a_stale_socket_is_refused_with_the_reason(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('degu_rpc.unix._SOCKETS', '/no-such-proc/net/unix')
    leave_stale(path)
    found = identify(path)
    with pytest.raises(OSError, match=r'bound to it: .*/no-such-proc/net/unix') as caught:
        listen_unix(path)
    assert caught.value.errno == errno.EADDRINUSE
    assert identify(path) == found


@pytest.mark.parametrize('name', ['socket', '{}/../{}/socket', '{}/link/socket'])
def test_bound_socket_is_not_removed_however_its_name_was_written(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    directory = tmp_path_factory.mktemp('u')  # a name of 108 bytes at most holds it twice
    path = str(directory / 'socket')
    monkeypatch.chdir(directory)
    (directory / 'link').symlink_to('.')
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(name.format(directory, directory.name))
        before = identify(path)
        with pytest.raises(OSError, match='does not listen'):
            listen_unix(path)
        assert identify(path) == before


def test_stale_socket_is_replaced_though_another_is_bound_elsewhere_by_that_name(
    path: str, tmp_path: Path
) -> None:
    (tmp_path / 'other').mkdir()
    leave_stale(path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / 'other' / 'socket'))
        with Server(listen_unix(path), app):
            assert ask(path) == os.getpid()


@pytest.mark.parametrize('kind', ['file', 'directory', 'symlink', 'dangling'])
def test_what_is_no_socket_is_not_removed(path: str, tmp_path: Path, kind: str) -> None:
    if kind == 'file':
        Path(path).write_text('mine')
    elif kind == 'directory':
        os.mkdir(path)
    else:
        leave_stale(str(tmp_path / 'other'))
        os.symlink('other' if kind == 'symlink' else 'nothing', path)
    before = sorted(os.listdir(tmp_path)), identify(path)
    with pytest.raises(OSError, match='what is there is no socket'):
        listen_unix(path)
    assert (sorted(os.listdir(tmp_path)), identify(path)) == before


@pytest.mark.parametrize('is_stale', [False, True], ids=['nothing-there', 'a-stale-socket'])
def test_of_several_that_start_at_once_exactly_one_serves(path: str, is_stale: bool) -> None:
    processes = [start(path) for _ in range(4)]
    for _ in range(5):
        if is_stale:
            leave_stale(path)
        for process in processes:
            go(process)
        said = {process.pid: read_line(process) for process in processes}
        (winner,) = (pid for pid, line in said.items() if line == 'serving')
        for pid, line in said.items():
            assert pid == winner or f'process {winner} of uid {os.getuid()} serves it' in line
        assert ask(path) == winner
        for process in processes:
            end(process)
        assert not os.path.exists(path)
        processes = [start(path) for _ in range(4)]
    for process in processes:
        end(process, signal.SIGKILL)


def test_whoever_else_starts_in_the_directory_is_waited_for(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix, 'LOCK_TIMEOUT_S', 0.05)
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match=r'is locked by another process for 0\.05 s'):
            listen_unix(path)
    finally:
        os.close(descriptor)
    with Server(listen_unix(path), app):
        pass


def test_server_that_ends_leaves_the_file_of_its_successor(path: str) -> None:
    first = Server(listen_unix(path), app)
    os.unlink(path)
    with Server(listen_unix(path), app):
        first.close()
        assert ask(path) == os.getpid()
