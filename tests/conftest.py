"""What every test gets: a guard against leaks, and the few parts that most tests need.

1. All temporary files of the tests go to one directory of the session (`TMPDIR`).
2. `_guard` looks at the process before and after each test: descriptors, threads, children, and
   that directory. What is new at the end has two seconds to go away, then the test fails.
3. `_session` does the same for the whole run, so that the wider fixtures are held to it too.
4. No property fails because a machine is slow: hypothesis measures no time here.
5. Tests run in a worker process per core; all of the above holds for each of them.

Helpers are fixtures, because tests are no package that could be imported.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import hypothesis
import pytest

from degu import IPv4_LOOPBACK
from degu.misc import TempPKI
from degu.server import Server, SSLServer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator, Iterator

    from degu.net import Address
    from degu.rgi import App

MAX_WORKERS = 4
"""More do not run tests unless they are asked for: a container may show cores that it lacks."""
GRACE_S = 2.0
"""How long a thread, a child or a descriptor may outlive its test."""
_FAILED = pytest.StashKey[bool]()

# What continuous integration gets from hypothesis stays as it is: this changes the profile in use.
hypothesis.settings.register_profile(
    'any machine', deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile('any machine')


# --- processes -----------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run on all cores, unless the command line says `-n` or names nothing but files and tests.

    With addopts nobody could say `-p no:xdist`, and a single test would wait for processes.
    """
    if not config.pluginmanager.hasplugin('xdist') or hasattr(config, 'workerinput'):
        return
    if config.option.numprocesses is None and not all(map(_is_file, config.args)):
        config.option.numprocesses = 'logical'
        config.option.maxprocesses = config.option.maxprocesses or MAX_WORKERS
    if config.option.numprocesses and config.option.dist == 'no':
        config.option.dist = 'worksteal'


def _is_file(name: str) -> bool:
    """Tell whether an argument of the command line names a file, or a test in one."""
    return os.path.isfile(name.partition('::')[0])


# --- leaks ---------------------------------------------------------------------------------------


class Resources(NamedTuple):
    """What a process has open: all that a test must give back."""

    descriptors: frozenset[str]
    threads: frozenset[threading.Thread]
    children: frozenset[str]
    files: frozenset[str]

    @classmethod
    def of_this_process(cls) -> Resources:
        """Look at what there is now; well under a millisecond."""
        return cls(
            frozenset(_list_descriptors()),
            frozenset(threading.enumerate()),
            frozenset(_list_children()),
            frozenset(os.listdir(tempfile.gettempdir())),
        )

    def leaks(self, later: Resources) -> list[str]:
        """Describe what `later` has and this has not."""
        return [
            f'{kind}: {", ".join(sorted(map(str, new)))}'
            for kind, old, now in zip(self._fields, self, later, strict=True)
            if (new := now - old)
        ]


def _list_descriptors() -> Iterator[str]:
    for number in os.listdir('/proc/self/fd'):
        # The one that listed the directory is gone already.
        with contextlib.suppress(FileNotFoundError):
            yield f'{number} {os.readlink(f"/proc/self/fd/{number}")}'


def _list_children() -> Iterator[str]:
    for task in os.listdir('/proc/self/task'):
        # The thread may have ended; its children are another thread's by now.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield from Path(f'/proc/self/task/{task}/children').read_text().split()


def find_leaks(before: Resources) -> list[str]:
    """Describe what is there and was not `before`, once it had the time to go away."""
    deadline = time.monotonic() + GRACE_S
    while leaks := before.leaks(Resources.of_this_process()):
        if time.monotonic() > deadline:
            return leaks
        # Only now, because it is slow: what nobody refers to may be waiting for its collection.
        gc.collect()
        time.sleep(0.005)
    return []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember which tests failed."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(autouse=True, scope='session')
def _session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Collect all temporary files in one directory and find what the run leaves behind."""
    with pytest.MonkeyPatch.context() as patch:
        directory = str(tmp_path_factory.mktemp('tmp'))
        patch.setenv('TMPDIR', directory)
        patch.setattr(tempfile, 'tempdir', directory)
        before = Resources.of_this_process()
        yield
        if leaks := find_leaks(before):
            pytest.fail(f'the session leaked {"; ".join(leaks)}', pytrace=False)


@pytest.fixture(autouse=True)
def _guard(_session: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves something behind."""
    before = Resources.of_this_process()
    yield
    # A failed test's traceback keeps its frames, and all that is open in them, alive.
    if not request.node.stash.get(_FAILED, False) and (leaks := find_leaks(before)):
        pytest.fail(f'the test leaked {"; ".join(leaks)}', pytrace=False)


# --- parts ---------------------------------------------------------------------------------------


@pytest.fixture(scope='session')
def require_program() -> Callable[[str], str]:
    """Give `require_program(name)`: the program's path, or the end of the test.

    A missing program skips the test; with DEGU_TEST_REQUIRE_ALL=1, as in CI, it fails it.
    """

    def require(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            _end_without(f'the program {name!r} is not installed')
        return path

    return require


@pytest.fixture(scope='session')
def require_packages() -> Callable[[Path], None]:
    """Give `require_packages(directory)`: node's packages are installed there, or the test ends.

    They are installed once, by `npm ci --ignore-scripts --prefix` and that directory.
    """

    def require(directory: Path) -> None:
        if not (directory / 'node_modules').is_dir():
            place = directory.relative_to(Path(__file__).parents[1])
            _end_without(f'run once: npm ci --ignore-scripts --prefix {place}')

    return require


def _end_without(what: str) -> NoReturn:
    """End a test that lacks something: it is skipped, or failed where all is required, as in CI."""
    if os.environ.get('DEGU_TEST_REQUIRE_ALL') == '1':
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope='session')
def find_free_address() -> Callable[[], tuple[str, int]]:
    """Give `find_free_address()`: an IPv4 address where nobody listens.

    It is for a program that cannot find one itself. Each process has loopback addresses of its
    own, so nobody else takes the port meanwhile.
    """

    def find() -> tuple[str, int]:
        pid = os.getpid()
        host = f'127.{1 + pid // 62500 % 250}.{1 + pid // 250 % 250}.{1 + pid % 250}'
        with socket.create_server((host, 0)) as sock:
            address: tuple[str, int] = sock.getsockname()
            return address

    return find


@pytest.fixture
def free_address(find_free_address: Callable[[], tuple[str, int]]) -> tuple[str, int]:
    return find_free_address()


@pytest.fixture(scope='session')
def temp_pki(_session: None) -> Iterator[TempPKI]:
    """Give one server's and one client's certificate chain."""
    with TempPKI() as pki:
        yield pki


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Give `serve(app, address=IPv4_LOOPBACK, sslctx=None, **options)`: a server in a thread.

    It shuts down at the end of the test.
    """
    with contextlib.ExitStack() as stack:

        def start(
            app: App,
            address: Address = IPv4_LOOPBACK,
            sslctx: ssl.SSLContext | None = None,
            **options: Any,
        ) -> Server:
            if sslctx is None:
                return stack.enter_context(Server(address, app, **options))
            return stack.enter_context(SSLServer(sslctx, address, app, **options))

        yield start
