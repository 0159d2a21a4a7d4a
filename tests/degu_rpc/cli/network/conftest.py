"""Two machines with a person at the terminal of each: tmux, in network namespaces of their own.

A terminal is a tmux server, which is the first process of a PID namespace: when it ends, so does
all that was started in it, nodes in the background, too. Each has a host name and a home directory.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Namespace = Any  # of ../../conftest.py

PATIENCE_S = 20.0
"""How long something may take that a person waits for."""
_LOOK_AGAIN_S = 0.02


@dataclass
class Terminal:
    """What a person has of a machine: a keyboard and a screen."""

    name: str
    machine: Namespace
    socket_path: Path
    typed: int = 0

    def tmux(self, *command: str) -> str:
        """Run a command of tmux; what it printed."""
        done = subprocess.run(
            ['tmux', '-S', self.socket_path, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f'{command}: {done.stderr}'
        return done.stdout

    def type(self, text: str) -> None:
        """Type a line and press Enter."""
        self.tmux('send-keys', '-l', '--', text)
        self.tmux('send-keys', 'Enter')

    def read(self) -> list[str]:
        """Return all lines that were on the screen so far, those that scrolled away, too."""
        text = self.tmux('capture-pane', '-p', '-J', '-S', '-')
        return [line.rstrip() for line in text.rstrip().splitlines()]

    def wait_for(self, text: str) -> str:
        """Look until a line below the last prompt has *text*; return that line."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for line in self._read_last():
                if text in line:
                    return line
            assert time.monotonic() < deadline, f'no {text!r} on {self.name}: {self.read()}'
            time.sleep(_LOOK_AGAIN_S)

    def start(self, command: str) -> None:
        """Type a command, without waiting for its end."""
        self.typed += 1
        self.type(command)

    def finish(self) -> list[str]:
        """Wait for the end of the command that was typed last; return what it printed."""
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_at_prompt():
            assert time.monotonic() < deadline, f'{self.name} waits: {self.read()}'
            time.sleep(_LOOK_AGAIN_S)
        return self._read_last()

    def run(self, command: str, status: int = 0) -> list[str]:
        """Type a command and wait for its end with this status; return what it printed."""
        self.start(command)
        said = self.finish()
        self.start('echo $?')
        assert self.finish() == [str(status)], said
        return said

    def run_until(self, text: str, command: str, within_s: float = PATIENCE_S) -> list[str]:
        """Type a command again and again, as people do, until it says *text*; what it printed."""
        deadline = time.monotonic() + within_s
        while True:
            self.start(command)
            said = self.finish()
            if any(text in line for line in said):
                return said
            assert time.monotonic() < deadline, f'no {text!r} on {self.name}: {said}'

    @property
    def prompt(self) -> str:
        return f'{self.name}$'

    def _read_last(self) -> list[str]:
        """Return the lines below the command that was typed last."""
        lines = self.read()
        if sum(line.startswith(f'{self.prompt} ') for line in lines) < self.typed:
            return []  # what was typed is not on the screen yet
        start = max(n for n, line in enumerate(lines) if line.startswith(f'{self.prompt} '))
        return [line for line in lines[start + 1 :] if line != self.prompt]

    def _is_at_prompt(self) -> bool:
        lines = self.read()
        typed = sum(line.startswith(f'{self.prompt} ') for line in lines)
        return typed == self.typed and lines[-1] == self.prompt


@contextlib.contextmanager
def open_terminal(machine: Namespace, name: str) -> Iterator[Terminal]:
    """Open a terminal in a namespace, with `degu` in its PATH."""
    terminal = Terminal(name, machine, machine.directory / 'tmux')
    home = machine.directory / 'home'
    home.mkdir()
    server = ['tmux', '-D', '-f', '/dev/null', '-S', str(terminal.socket_path)]
    script = f'hostname {name} && exec {shlex.join(server)}'
    unshare = ['unshare', '--uts', '--pid', '--fork', '--kill-child', '--mount-proc']
    with machine.start(*unshare, 'sh', '-c', script):
        deadline = time.monotonic() + PATIENCE_S
        while not terminal.socket_path.exists():
            assert time.monotonic() < deadline
            time.sleep(_LOOK_AGAIN_S)
        path = f'{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/bin'
        shell = ['env', f'HOME={home}', f'PATH={path}', f'PS1={name}$ ', 'bash', '--norc', '-i']
        terminal.tmux('new-session', '-d', '-x', '120', '-y', '50', '-c', str(home), *shell)
        while terminal.read() != [terminal.prompt]:
            assert time.monotonic() < deadline, terminal.read()
            time.sleep(_LOOK_AGAIN_S)
        yield terminal


@pytest.fixture
def terminals(
    cable: tuple[Namespace, Namespace], require_program: Callable[[str], str]
) -> Iterator[tuple[Terminal, Terminal]]:
    """Give the terminals of `studio` and `laptop`, which share nothing but a cable."""
    require_program('tmux')
    near, far = cable
    with open_terminal(near, 'studio') as studio, open_terminal(far, 'laptop') as laptop:
        yield studio, laptop
