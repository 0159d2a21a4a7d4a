"""Two network namespaces joined by a cable, and real programs inside of them.

A namespace lives as long as the process that made it, which ends when its standard input does; so
nothing is left behind, however the tests end. Its `/run` is its own, too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROJECT = Path(__file__).parents[2]
TIMEOUT_S = 20.0
UNSHARE = ['unshare', '--net', '--mount']
AVAHI_CONFIG = """
[server]
host-name=neighbour
use-ipv4=yes
use-ipv6=yes
[publish]
publish-aaaa-on-ipv4=yes
publish-hinfo=no
publish-workstation=no
"""


class Program(subprocess.Popen[str]):
    """A program that says what it has done, a line each, and goes on when it is told."""

    def read_line(self) -> str:
        """Return the next line that it prints, without its end."""
        assert self.stdout is not None
        line = self.stdout.readline()
        assert line.endswith('\n'), f'it ended after {line!r}'
        return line[:-1]

    def expect(self, line: str) -> None:
        """Read a line, which must be this one."""
        assert self.read_line() == line

    def tell(self) -> None:
        """Let it go on."""
        assert self.stdin is not None
        self.stdin.write('\n')
        self.stdin.flush()


class Namespace(NamedTuple):
    """A network and mount namespace, with one end of the cable: `interface`."""

    pid: int
    interface: str
    ipv4: str
    directory: Path

    def command(self, *command: str | Path) -> list[str]:
        enter = ['nsenter', '--target', str(self.pid), '--net', '--mount']
        return [*enter, '--wd=' + str(PROJECT), '--', *map(str, command)]

    def run(self, *command: str | Path, timeout_s: float = TIMEOUT_S) -> str:
        """Run a command to its end; what it printed."""
        done = subprocess.run(
            self.command(*command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self.environment(),
            check=False,
        )
        assert done.returncode == 0, f'{command}: {done.stdout}{done.stderr}'
        return done.stdout

    def python(self, source: str, *arguments: str | Path) -> str:
        """Run Python source to its end, with warnings as errors."""
        return self.run(sys.executable, '-W', 'error', '-c', source, *arguments)

    @contextlib.contextmanager
    def start(self, *command: str | Path) -> Iterator[Program]:
        """Run a command beside the test; it is ended with SIGTERM."""
        with Program(
            self.command(*command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment(),
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait(TIMEOUT_S)

    @contextlib.contextmanager
    def start_python(self, source: str, *arguments: str | Path) -> Iterator[Program]:
        """Run Python source beside the test, with warnings as errors."""
        with self.start(sys.executable, '-W', 'error', '-c', source, *arguments) as process:
            yield process

    @contextlib.contextmanager
    def start_avahi(self) -> Iterator[None]:
        """Run avahi-daemon with a D-Bus of its own."""
        config = self.directory / 'avahi-daemon.conf'
        config.write_text(AVAHI_CONFIG)
        address = self.environment()['DBUS_SYSTEM_BUS_ADDRESS']
        bus = ['dbus-daemon', '--session', '--nofork', '--nosyslog', '--address', address]
        avahi = ['avahi-daemon', '--no-drop-root', '--no-chroot', '--no-rlimits', '-f', config]
        with self.start(*bus, '--print-address') as process:
            process.read_line()
            with self.start(*avahi):
                self.wait_until_it_prints('', 'avahi-daemon', '--check')
                yield

    def wait_until_it_prints(self, text: str, *command: str | Path) -> None:
        """Run a command again and again, until it succeeds and its output has *text*."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            done = subprocess.run(
                self.command(*command),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                env=self.environment(),
                check=False,
            )
            if done.returncode == 0 and text in done.stdout:
                return
            assert time.monotonic() < deadline, f'{command}: {done}'
            time.sleep(0.02)

    def environment(self) -> dict[str, str]:
        path = f'{os.environ["PATH"]}:/usr/sbin:/sbin'
        return {
            'PATH': path,
            'LANG': 'C.UTF-8',
            'TMPDIR': str(self.directory),
            'DBUS_SYSTEM_BUS_ADDRESS': f'unix:path={self.directory}/bus',
        }


@contextlib.contextmanager
def open_namespace(interface: str, ipv4: str, directory: Path) -> Iterator[Namespace]:
    script = 'mount -t tmpfs tmpfs /run && mkdir /run/avahi-daemon && echo ready && exec cat'
    with subprocess.Popen(
        [*UNSHARE, 'sh', '-c', script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b'ready\n'
        yield Namespace(process.pid, interface, ipv4, directory)


@contextlib.contextmanager
def open_cable(directory: Path) -> Iterator[tuple[Namespace, Namespace]]:
    """Open two namespaces, joined by a cable, each with IPv4 and link-local IPv6."""
    with contextlib.ExitStack() as stack:
        ends = []
        for number, interface in enumerate(('near', 'far'), 1):
            (directory / interface).mkdir()
            end = open_namespace(interface, f'10.9.0.{number}', directory / interface)
            ends.append(stack.enter_context(end))
        near, far = ends
        near.run('ip', 'link', 'add', 'near', 'type', 'veth', 'peer', 'far', 'netns', str(far.pid))
        for end in ends:
            # The addresses are ours alone: they need not be checked for a second for being so.
            for name in ('all', end.interface):
                end.run('sh', '-c', f'echo 0 > /proc/sys/net/ipv6/conf/{name}/accept_dad')
            end.run('ip', 'address', 'add', f'{end.ipv4}/24', 'dev', end.interface)
            end.run('ip', 'link', 'set', 'lo', 'up', 'multicast', 'on')
            end.run('ip', 'link', 'set', end.interface, 'up')
        yield near, far


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a tmpfs with the given options; skip without the right to, fail where all is needed."""
    mounted = []

    def start(options: str) -> Path:
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
def cable(
    require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Namespace, Namespace]]:
    """Give `open_cable` in a directory with a short path: sockets are made far below it."""
    for program in ('unshare', 'nsenter', 'ip', 'mount'):
        require_program(program)
    if subprocess.run([*UNSHARE, 'true'], check=False, stdin=subprocess.DEVNULL).returncode:
        reason = 'this user may not make network namespaces'
        if os.environ.get('DEGU_TEST_REQUIRE_ALL') == '1':
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    with open_cable(tmp_path_factory.mktemp('cable')) as ends:
        yield ends
