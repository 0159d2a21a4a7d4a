"""examples/chat.py between two machines: both read what the other types, and see it leave."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from degu_rpc import Identity, TrustStore

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = Path(__file__).parents[2] / 'examples' / 'chat.py'
WAIT_S = 20.0


class Chatter:
    """One machine and the program that runs on it."""

    def __init__(self, directory: Path, name: str) -> None:
        self.home = directory / name
        self.home.mkdir(mode=0o700)
        self.name = name
        self.identity = Identity.create(self.home / 'identity')
        with socket.create_server(('127.0.0.1', 0)) as free:
            self.port = free.getsockname()[1]

    def trust(self, other: Chatter) -> None:
        machines = {other.identity.machine_id: other.name}
        TrustStore(self.identity).add(other.identity.user_cert, other.name, machines=machines)

    @contextlib.contextmanager
    def start(self, other: Chatter) -> Iterator[subprocess.Popen[str]]:
        """Run the program; it is killed at the end of the block, if it has not ended."""
        settings = {
            'DEGU_HOME': str(self.home),
            'DEGU_LISTEN': '127.0.0.1',
            'DEGU_PORT': str(self.port),
            'DEGU_DISCOVERY': 'false',
            'DEGU_MACHINES': f'degu://{other.identity.machine_id}@127.0.0.1:{other.port}',
        }
        with subprocess.Popen(
            [sys.executable, '-W', 'error', str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, **settings},
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == 'type; Ctrl-D ends it\n'
                yield process
            finally:
                process.kill()


@pytest.fixture
def chatters(tmp_path: Path) -> tuple[Chatter, Chatter]:
    """Give two machines that trust each other."""
    studio, laptop = (Chatter(tmp_path, name) for name in ('studio', 'laptop'))
    studio.trust(laptop)
    laptop.trust(studio)
    return studio, laptop


def test_each_reads_what_the_other_types_and_sees_it_leave_and_come_back(
    chatters: tuple[Chatter, Chatter],
) -> None:
    studio, laptop = chatters
    with studio.start(laptop) as at_studio:
        assert at_studio.stdin is not None
        assert at_studio.stdout is not None
        for ends in ('Ctrl-D', 'SIGKILL'):
            with laptop.start(studio) as at_laptop:
                assert at_laptop.stdin is not None
                assert at_laptop.stdout is not None
                assert at_studio.stdout.readline() == 'laptop is here\n'
                assert at_laptop.stdout.readline() == 'studio is here\n'
                at_studio.stdin.write('hello\nand tea?\n')
                assert at_laptop.stdout.readline() == 'studio: hello\n'
                assert at_laptop.stdout.readline() == 'studio: and tea?\n'
                at_laptop.stdin.write('yes\x1b[2J\n')
                assert at_studio.stdout.readline() == 'laptop: yes\\x1b[2J\n'
                if ends == 'Ctrl-D':
                    at_laptop.stdin.close()
                    assert at_laptop.wait(WAIT_S) == 0
            assert at_studio.stdout.readline() == 'laptop left\n'
        at_studio.stdin.close()
        assert at_studio.wait(WAIT_S) == 0
