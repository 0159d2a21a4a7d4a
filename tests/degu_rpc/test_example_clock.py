"""examples/clock_service.py by hand and under socket activation, and its units for systemd."""

from __future__ import annotations

import contextlib
import grp
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from degu.client import Client
from degu_rpc import RpcClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLES = Path(__file__).parents[2] / 'examples'
PROGRAM = [sys.executable, '-W', 'error', str(EXAMPLES / 'clock_service.py')]
WAIT_S = 20.0


@contextlib.contextmanager
def running(command: list[str], path: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the end of the block; yield once its socket takes connections."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + WAIT_S
            while not is_taken(path):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def is_taken(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(path) == 0


def check_calls(path: str) -> None:
    me = f'uid:{os.getuid()}'
    with RpcClient(Client(path)) as client:
        clock = client['clock.v1.Clock']
        told = [clock.tell() for _ in range(3)]
        assert [each['caller'] for each in told] == [me] * 3
        assert clock.count() == {me: 3}
    with Client(path).connect() as connection:
        assert connection.get('/now').body.read().endswith(b'+00:00\n')  # type: ignore[union-attr]  # it has one


def check_end(process: subprocess.Popen[bytes]) -> None:
    # Its socket takes connections a moment before it is ready for signals.
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b'serving at ')
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=WAIT_S)
    assert (process.returncode, b'Traceback' in error) == (0, False)


def test_by_hand_it_makes_its_socket_and_takes_it_away(tmp_path: Path) -> None:
    path = tmp_path / 'clock.socket'
    with running([*PROGRAM, str(path)], str(path)) as process:
        assert path.stat().st_mode & 0o777 == 0o600
        check_calls(str(path))
        check_end(process)
    assert not path.exists()


def test_by_hand_it_replaces_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / 'clock.socket'
    with running([*PROGRAM, str(path)], str(path)):
        pass
    assert path.exists()
    with running([*PROGRAM, str(path)], str(path)) as process:
        check_end(process)


def test_under_socket_activation_it_serves_the_socket_it_is_given(
    require_program: Callable[[str], str], tmp_path: Path
) -> None:
    path = tmp_path / 'clock.socket'
    launcher = [require_program('systemd-socket-activate'), f'--listen={path}']
    with running([*launcher, *PROGRAM], str(path)) as process:
        check_calls(str(path))
        check_end(process)
    assert path.exists(), "it is systemd's to remove"


def test_for_a_group_its_members_can_connect_and_call(
    require_program: Callable[[str], str], tmp_path: Path
) -> None:
    if os.geteuid():
        pytest.skip('only root can call as somebody else')
    curl = require_program('curl')
    name = grp.getgrgid(1).gr_name
    with tempfile.TemporaryDirectory(dir='/tmp') as directory:  # others cannot enter tmp_path
        os.chmod(directory, 0o711)
        path = f'{directory}/clock.socket'
        command = [curl, '--silent', '--show-error', '--unix-socket', path, '--json', '{}']
        with running([*PROGRAM, path, '--group', name], path) as process:
            member, stranger = (
                subprocess.run(
                    [*command, 'http://localhost/rpc/clock.v1.Clock/tell'],
                    user=12345,
                    group=12345,
                    extra_groups=groups,
                    capture_output=True,
                    timeout=WAIT_S,
                    check=False,
                )
                for groups in ([1], [])
            )
            check_end(process)
    assert b'"caller":"uid:12345"' in member.stdout
    assert stranger.returncode == 7, 'could not connect: curl(1)'


@pytest.mark.parametrize(
    ('scope', 'name', 'home'),
    [('--user', 'clock', '%h/clock'), ('--system', 'clock-system', '/opt/clock')],
)
def test_units_are_valid(
    require_program: Callable[[str], str], tmp_path: Path, scope: str, name: str, home: str
) -> None:
    python = tmp_path / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    units = [tmp_path / f'{name}.{kind}' for kind in ('socket', 'service')]
    for unit in units:
        unit.write_text((EXAMPLES / unit.name).read_text().replace(home, str(tmp_path)))
    done = subprocess.run(
        [require_program('systemd-analyze'), scope, '--recursive-errors=no', 'verify', *units],
        capture_output=True,
        text=True,
        env={**os.environ, 'XDG_RUNTIME_DIR': str(tmp_path)},
        timeout=WAIT_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
