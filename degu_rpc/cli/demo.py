"""`degu demo`: two homes on this machine, and everything that the software does so far.

The demo conducts, and tells what it sees: it starts a process with a node for each home, steers
them over their unix sockets as their owner, kills one that fetches, and compares what arrived byte
by byte. Whatever does not happen as told raises, and the exit status is not 0.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from degu.client import SSLClient, build_client_sslctx
from degu.errors import PeerRejectedError
from degu_rpc import Code, RpcError, connect
from degu_rpc.cli import documents
from degu_rpc.cli.demo_homes import (
    LOOPBACK,
    SERVICE,
    SHARE,
    Home,
    HomeApi,
    fetch_library,
    measure_calls,
    serve_home,
)
from degu_rpc.cli.demo_library import find_difference, find_library, measure_tree
from degu_rpc.cli.exits import Exit, format_exits
from degu_rpc.cli.failures import Failure
from degu_rpc.cli.session import Command, Session, Styled
from degu_rpc.node.api import NODE, NodeApi
from degu_rpc.peers import Identity, TrustStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

CALLS = 2000
START_TIMEOUT_S = 30.0
_spawn = multiprocessing.get_context('spawn')


class _Running(NamedTuple):
    """A home whose node runs, in a process of its own."""

    home: Home
    machine_id: str
    port: int
    node: NodeApi
    """How its owner steers it."""
    api: HomeApi


class _Stage(NamedTuple):
    """Where all of it is told."""

    session: Session

    def begin(self, title: str) -> None:
        """Say what is next."""
        self.session.emit('step', documents.Told(title))
        self.session.say()
        self.session.say(Styled(title, is_bold=True))

    def tell(self, text: str) -> None:
        """Say what has happened."""
        self.session.emit('detail', documents.Told(text))
        self.session.say(f'  {text}')


@click.command(cls=Command, epilog=format_exits(Exit.DONE, Exit.FAILED, Exit.INTERRUPTED))
def demo(session: Session) -> None:
    """Show it all on this machine: two homes with their own identities, as two processes.

    They pair with a short code, and call each other over mutual TLS and over unix sockets; one
    fetches the standard library of this Python from the other, is killed on the way, resumes, and
    every file is verified; strangers are refused, and who was unpaired is, too. It needs nothing,
    and leaves nothing behind.
    """
    started = perf_counter()
    # A .pyc file that Python writes while the library travels would be a difference.
    sys.dont_write_bytecode = True
    os.environ['PYTHONDONTWRITEBYTECODE'] = '1'
    stage = _Stage(session)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='degu-demo-')))
        studio, laptop = stack.enter_context(_start_homes(stage, directory))
        _show_pairing(stage, studio, laptop)
        _show_calls(stage, studio, laptop)
        _show_unix_socket(stage, studio)
        _show_files(stage, studio, laptop.home, directory / 'library')
        _show_strangers(stage, studio, directory / 'stranger')
        _show_unpairing(stage, studio, laptop)
    elapsed_s = perf_counter() - started
    session.emit('done', documents.Shown(round(elapsed_s, 3)))
    session.say()
    session.say(Styled(f'All of it happened, in {elapsed_s:.1f} s.', 'green'))


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Failure(Exit.FAILED, f'this should not be: {what}')


# --- the homes -----------------------------------------------------------------------------------


@contextmanager
def _start_homes(stage: _Stage, directory: Path) -> Iterator[tuple[_Running, _Running]]:
    """Run a node for each of two homes, which make their identities and trust nobody."""
    stage.begin('Two homes, each with a node of its own in a process of its own:')
    with ExitStack() as stack:
        running = []
        for name in ('studio', 'laptop'):
            started = perf_counter()
            one = stack.enter_context(_start_home(Home(name, directory / name)))
            status = one.node.status()
            _require(not any(peer.machines for peer in status.peers), f'{name} trusts somebody')
            stage.tell(
                f'{name}: machine {one.machine_id[:12]}..., process {status.pid}, keys made and '
                f'ready in {perf_counter() - started:.2f} s, TLS at {LOOPBACK}:{one.port}'
            )
            running.append(one)
        studio, laptop = running
        yield studio, laptop


@contextmanager
def _start_home(home: Home) -> Iterator[_Running]:
    with _start_process(serve_home, home) as (process, pipe):
        if not pipe.poll(START_TIMEOUT_S):
            raise Failure(Exit.FAILED, f'{home.name} was not ready within {START_TIMEOUT_S:g} s')
        machine_id, port = pipe.recv()
        with connect(f'unix:{home.socket_path}') as client:
            node, api = client.bind(NodeApi, NODE), client.bind(HomeApi, SERVICE)
            yield _Running(home, machine_id, port, node, api)
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


def _show_pairing(stage: _Stage, studio: _Running, laptop: _Running) -> None:
    stage.begin('They pair, as two people would who read a code to each other:')
    started = perf_counter()
    window = studio.node.open_pairing('peer')
    opened = next(window)
    stage.tell(f'studio shows: {opened.code}   or: {opened.words}')
    paired = laptop.node.pair(opened.code, opened.addresses[0], 'peer')
    seen = next(window)
    elapsed_s = perf_counter() - started
    _require(paired.machine_id == studio.machine_id, f'laptop paired with {paired}')
    _require(seen.machine_id == laptop.machine_id, f'studio paired with {seen}')
    stage.tell(
        f'laptop paired with {paired.name}, studio with {seen.name}, in {elapsed_s:.2f} s; '
        'neither sent its code'
    )


def _show_calls(stage: _Stage, studio: _Running, laptop: _Running) -> None:
    stage.begin('They call each other over mutual TLS 1.3:')
    for caller, callee in ((laptop, studio), (studio, laptop)):
        seen = caller.api.ask(callee.machine_id, callee.port)
        _require(seen.machine_id == caller.machine_id, f'{callee.home.name} saw {seen}')
        _require(seen.roles == {'peer'}, f'{callee.home.name} saw {seen}')
        stage.tell(
            f'{caller.home.name} -> {callee.home.name}: "{seen.greeting}"; '
            f'it sees machine {caller.machine_id[:12]}..., role peer'
        )
    rate = laptop.api.measure(studio.machine_id, studio.port, CALLS)
    stage.tell(f'{CALLS:,} calls on one connection: {rate:,.0f} calls/s')


def _show_unix_socket(stage: _Stage, studio: _Running) -> None:
    stage.begin('The same service over a unix socket:')
    seen = studio.api.greet('owner')
    _require(seen.kind == 'local', f'{studio.home.name} saw {seen}')
    _require(seen.uid == os.getuid(), f'{studio.home.name} saw {seen}')
    stage.tell(
        f'you -> studio: "{seen.greeting}"; it sees uid {seen.uid}, role {", ".join(seen.roles)}'
    )
    rate = measure_calls(studio.api, 'owner', CALLS)
    stage.tell(f'{CALLS:,} calls on one connection: {rate:,.0f} calls/s')


def _show_files(stage: _Stage, studio: _Running, laptop: Home, destination: Path) -> None:
    library = find_library()
    everything = measure_tree(library)
    version = '.'.join(map(str, sys.version_info[:3]))
    stage.begin(f'laptop fetches the standard library of Python {version} from studio:')
    stage.tell(f'{library}: {everything.files:,} files, {everything.size / 1e6:,.1f} MB')
    args = (laptop, studio.machine_id, studio.port, destination)
    with _start_process(fetch_library, *args) as (process, pipe):
        files, fetched = _follow(pipe, until_bytes=everything.size // 2)
        process.kill()
        process.join()
    stage.tell(f'killed with SIGKILL at {files:,} files, {fetched / 1e6:,.1f} MB fetched')
    _require(files < everything.files, 'it was done before it could be killed')
    started = perf_counter()
    with _start_process(fetch_library, *args) as (process, pipe):
        files, resumed = _follow(pipe, until_bytes=None)
        process.join(START_TIMEOUT_S)
        _require(process.exitcode == 0, f'the fetch ended with {process.exitcode}')
    elapsed_s = perf_counter() - started
    _require(resumed < everything.size, 'it began anew instead of resuming')
    stage.tell(
        f'resumed: {resumed / 1e6:,.1f} MB more in {elapsed_s:.1f} s, nothing fetched twice '
        f'but what was in flight ({max(fetched + resumed - everything.size, 0) / 1e6:,.1f} MB)'
    )
    difference = find_difference(library, destination)
    _require(difference is None, f'{difference} differs from what is in {library}')
    _require(measure_tree(destination) == everything, 'the copy has another size')
    stage.tell(f'verified: {everything.files:,} files are the same, byte for byte')


def _follow(pipe: Connection, until_bytes: int | None) -> tuple[int, int]:
    """Follow a fetch to its end, or until it brought so much; return (files, bytes fetched)."""
    files = fetched = 0
    while True:
        try:
            report = pipe.recv()
        except EOFError:
            raise Failure(Exit.FAILED, 'the fetching process died; see above') from None
        if report is None:
            return files, fetched
        files, fetched = report
        if until_bytes is not None and fetched >= until_bytes:
            return files, fetched


def _show_strangers(stage: _Stage, studio: _Running, directory: Path) -> None:
    stage.begin('Strangers at the door of studio:')
    identity = studio.home.identity
    stranger = TrustStore(Identity.create(directory))
    stranger.add(identity.user_cert, 'studio', how='demo')
    nobody = {'ca_file': str(identity.user_cert_file), 'check_hostname': False}
    for who, sslctx in (
        ('no certificate', build_client_sslctx(nobody)),
        ("a stranger's certificate", stranger.client_sslctx()),
    ):
        with SSLClient(sslctx, (LOOPBACK, studio.port)).connect() as connection:
            try:
                response = connection.get(f'/files/{SHARE}/ls/')
            except PeerRejectedError as error:
                stage.tell(f'{who}: refused: {error}')
            else:
                raise Failure(Exit.FAILED, f'{who}: got in, with {response}')


def _show_unpairing(stage: _Stage, studio: _Running, laptop: _Running) -> None:
    stage.begin('studio trusts laptop no more:')
    studio.node.unpair('laptop')
    try:
        seen = laptop.api.ask(studio.machine_id, studio.port)
    except RpcError as error:
        _require(error.code is Code.UNAUTHENTICATED, f'laptop was told {error}')
        stage.tell('laptop -> studio: refused, at the next call')
    else:
        raise Failure(Exit.FAILED, f'laptop got in, with {seen}')
