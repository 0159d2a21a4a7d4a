"""`degu demo`: two homes on this machine, and everything that the software does so far.

The demo conducts, and tells what it sees: it starts a process for each home, talks to them over
their unix sockets as their owner, kills one that fetches, and compares what arrived byte by byte.
Whatever does not happen as told raises, and the exit status is 1.
"""

from __future__ import annotations

import filecmp
import multiprocessing
import os
import stat
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from degu.client import Client, SSLClient, build_client_sslctx
from degu.errors import PeerRejectedError
from degu_rpc import RpcClient
from degu_rpc.cli.demo_homes import (
    LEFT_OUT,
    LOOPBACK,
    SERVICE,
    SHARE,
    Home,
    HomeApi,
    fetch_library,
    find_library,
    measure_calls,
    serve_home,
)
from degu_rpc.cli.exits import Exit, format_exits
from degu_rpc.cli.session import Command, Session
from degu_rpc.peers import Identity, TrustStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

CALLS = 2000
START_TIMEOUT_S = 30.0
_spawn = multiprocessing.get_context('spawn')


class _Running(NamedTuple):
    """A home whose process runs."""

    home: Home
    machine_id: str
    port: int
    api: HomeApi


class _Tree(NamedTuple):
    """What there is of the library."""

    files: int
    size: int


@click.command(cls=Command, epilog=format_exits(Exit.DONE, Exit.FAILED, Exit.INTERRUPTED))
def demo(_session: Session) -> None:
    """Show it all on this machine: two homes with their own identities, as two processes.

    They call each other over mutual TLS and over unix sockets; one fetches the standard library of
    this Python from the other, is killed on the way, resumes, and every file is verified; strangers
    are refused. Needs nothing and leaves nothing behind.
    """
    run_demo()


def run_demo() -> None:
    """Run the demo; see `degu demo --help`. Raises click.ClickException where it goes wrong."""
    started = perf_counter()
    # A .pyc file that Python writes while the library travels would be a difference.
    sys.dont_write_bytecode = True
    os.environ['PYTHONDONTWRITEBYTECODE'] = '1'
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='degu-demo-')))
        studio, laptop = stack.enter_context(_start_homes(directory))
        _show_calls(studio, laptop)
        _show_unix_socket(studio)
        _show_files(studio, laptop.home, directory / 'library')
        _show_strangers(studio, directory / 'stranger')
    click.echo(f'\nAll of it happened, in {perf_counter() - started:.1f} s.')


def _say(title: str, *lines: str) -> None:
    click.echo(f'\n{title}')
    for line in lines:
        click.echo(f'  {line}')


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise click.ClickException(f'this should not be: {what}')


# --- the homes -----------------------------------------------------------------------------------


@contextmanager
def _start_homes(directory: Path) -> Iterator[tuple[_Running, _Running]]:
    """Make two identities that trust each other, and run a process for each."""
    started = perf_counter()
    studio_id = Identity.create(directory / 'studio' / 'identity')
    laptop_id = Identity.create(directory / 'laptop' / 'identity')
    TrustStore(studio_id).add(laptop_id.user_cert, 'laptop', how='demo')
    TrustStore(laptop_id).add(studio_id.user_cert, 'studio', how='demo')
    elapsed_ms = (perf_counter() - started) * 1000
    with ExitStack() as stack:
        running = []
        for name in ('studio', 'laptop'):
            running.append(stack.enter_context(_start_home(Home(name, directory / name))))
        _say(
            f'Two homes with their own keys and certificates, made in {elapsed_ms:.0f} ms:',
            *(
                f'{each.home.name}: machine {each.machine_id[:12]}..., '
                f'TLS on {LOOPBACK}:{each.port}, {each.home.socket_path}'
                for each in running
            ),
        )
        studio, laptop = running
        yield studio, laptop


@contextmanager
def _start_home(home: Home) -> Iterator[_Running]:
    with _start_process(serve_home, home) as (process, pipe):
        if not pipe.poll(START_TIMEOUT_S):
            raise click.ClickException(f'{home.name} was not ready within {START_TIMEOUT_S:g} s')
        machine_id, port = pipe.recv()
        with RpcClient(Client(str(home.socket_path))) as calls:
            yield _Running(home, machine_id, port, calls.bind(HomeApi, SERVICE))
        pipe.close()
        process.join(START_TIMEOUT_S)
        _require(process.exitcode == 0, f'{home.name} ended with {process.exitcode}')


@contextmanager
def _start_process(
    function: Callable[..., None], *args: Any
) -> Iterator[tuple[SpawnProcess, Connection]]:
    """Run `function(*args, pipe)` in a fresh interpreter, which is gone at the end of the block."""
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=function, args=(*args, theirs))
    with ours:
        with theirs:
            process.start()
        try:
            yield process, ours
        finally:
            process.kill()
            process.join()
    process.close()


# --- what is shown -------------------------------------------------------------------------------


def _show_calls(studio: _Running, laptop: _Running) -> None:
    lines = []
    for caller, callee in ((laptop, studio), (studio, laptop)):
        seen = caller.api.ask(callee.machine_id, callee.port)
        _require(seen.machine_id == caller.machine_id, f'{callee.home.name} saw {seen}')
        _require(seen.roles == {'peer'}, f'{callee.home.name} saw {seen}')
        lines.append(
            f'{caller.home.name} -> {callee.home.name}: "{seen.greeting}"; '
            f'it sees machine {caller.machine_id[:12]}..., role peer'
        )
    rate = laptop.api.measure(studio.machine_id, studio.port, CALLS)
    lines.append(f'{CALLS:,} calls on one connection: {rate:,.0f} calls/s')
    _say('They call each other over mutual TLS 1.3:', *lines)


def _show_unix_socket(studio: _Running) -> None:
    seen = studio.api.greet('owner')
    _require(seen.kind == 'local', f'{studio.home.name} saw {seen}')
    _require(seen.uid == os.getuid(), f'{studio.home.name} saw {seen}')
    rate = measure_calls(studio.api, 'owner', CALLS)
    _say(
        'The same service over a unix socket:',
        f'you -> studio: "{seen.greeting}"; it sees uid {seen.uid}, role {", ".join(seen.roles)}',
        f'{CALLS:,} calls on one connection: {rate:,.0f} calls/s',
    )


def _show_files(studio: _Running, laptop: Home, destination: Path) -> None:
    library = find_library()
    everything = _measure_tree(library)
    version = '.'.join(map(str, sys.version_info[:3]))
    _say(
        f'laptop fetches the standard library of Python {version} from studio:',
        f'{library}: {everything.files:,} files, {everything.size / 1e6:,.1f} MB',
    )
    args = (laptop, studio.machine_id, studio.port, destination)
    with _start_process(fetch_library, *args) as (process, pipe):
        files, fetched = _follow(pipe, until_bytes=everything.size // 2)
        process.kill()
        process.join()
    click.echo(f'  killed with SIGKILL at {files:,} files, {fetched / 1e6:,.1f} MB fetched')
    _require(files < everything.files, 'it was done before it could be killed')
    started = perf_counter()
    with _start_process(fetch_library, *args) as (process, pipe):
        files, resumed = _follow(pipe, until_bytes=None)
        process.join(START_TIMEOUT_S)
        _require(process.exitcode == 0, f'the fetch ended with {process.exitcode}')
    elapsed_s = perf_counter() - started
    _require(resumed < everything.size, 'it began anew instead of resuming')
    click.echo(
        f'  resumed: {resumed / 1e6:,.1f} MB more in {elapsed_s:.1f} s, nothing fetched twice '
        f'but what was in flight ({max(fetched + resumed - everything.size, 0) / 1e6:,.1f} MB)'
    )
    _compare_trees(library, destination)
    _require(_measure_tree(destination) == everything, 'the copy has another size')
    click.echo(f'  verified: {everything.files:,} files are the same, byte for byte')


def _follow(pipe: Connection, until_bytes: int | None) -> tuple[int, int]:
    """Follow a fetch to its end, or until it brought so much; return (files, bytes fetched)."""
    files = fetched = 0
    while True:
        try:
            report = pipe.recv()
        except EOFError:
            raise click.ClickException('the fetching process died; see above') from None
        if report is None:
            return files, fetched
        files, fetched = report
        if until_bytes is not None and fetched >= until_bytes:
            return files, fetched


def _show_strangers(studio: _Running, directory: Path) -> None:
    identity = studio.home.identity
    stranger = TrustStore(Identity.create(directory))
    stranger.add(identity.user_cert, 'studio', how='demo')
    nobody = {'ca_file': str(identity.user_cert_file), 'check_hostname': False}
    lines = []
    for who, sslctx in (
        ('no certificate', build_client_sslctx(nobody)),
        ("a stranger's certificate", stranger.client_sslctx()),
    ):
        client = SSLClient(sslctx, (LOOPBACK, studio.port))
        with client.connect() as connection:
            try:
                response = connection.get(f'/files/{SHARE}/ls/')
            except PeerRejectedError as error:
                lines.append(f'{who}: refused: {error}')
            else:
                raise click.ClickException(f'{who}: got in, with {response}')
    _say('Strangers at the door of studio:', *lines)


# --- the library, before and after ---------------------------------------------------------------


def _walk(root: Path) -> Iterator[Path]:
    for directory, directories, files in os.walk(root):
        if Path(directory) == root:
            left_out = LEFT_OUT | {'.degu'}
            directories[:] = [name for name in directories if name not in left_out]
        for name in (*files, *directories):
            path = Path(directory, name)
            if path.is_symlink() or stat.S_ISREG(path.lstat().st_mode):
                yield path


def _measure_tree(root: Path) -> _Tree:
    sizes = [0 if path.is_symlink() else path.lstat().st_size for path in _walk(root)]
    return _Tree(len(sizes), sum(sizes))


def _compare_trees(source: Path, copy: Path) -> None:
    for path in _walk(source):
        other = copy / path.relative_to(source)
        if path.is_symlink():
            same = other.is_symlink() and path.readlink() == other.readlink()
        else:
            same = other.is_file() and filecmp.cmp(path, other, shallow=False)
        _require(same, f'{other} differs from {path}')
