"""`degu serve`: a service of a Python module, behind the node and on a socket of its own."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from degu_rpc.cli.documents import Serving
from degu_rpc.cli.exits import Exit, format_exits
from degu_rpc.cli.failures import Failure
from degu_rpc.cli.session import Command, Session, Styled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from degu_rpc.node.api import ServiceStatus
    from degu_rpc.rpc.service import Service

_log = logging.getLogger('degu_rpc.cli')


@click.command(
    cls=Command,
    epilog=format_exits(
        Exit.DONE, Exit.FAILED, Exit.USAGE, Exit.UNREACHABLE, Exit.NOT_RUNNING, Exit.INTERRUPTED
    ),
)
@click.argument('what', metavar='MODULE:SERVICE')
@click.option('--as', 'name', help='What others call it; the name of the module unless given.')
@click.option(
    '--socket',
    'socket_path',
    type=click.Path(path_type=Path, resolve_path=True),
    help='Serve on this unix socket, too.',
)
@click.option(
    '--no-node', 'is_alone', is_flag=True, help='Serve on --socket only; no node need run.'
)
def serve(
    session: Session, what: str, name: str | None, socket_path: Path | None, is_alone: bool
) -> None:
    """Serve SERVICE, a degu_rpc.Service (or several, in a list) in MODULE, until Ctrl-C.

    Paired machines call it as THIS-MACHINE/NAME, local programs at the node's socket with the
    prefix /NAME/rpc, or at --socket. Who may call what, the service says.
    """
    if is_alone and socket_path is None:
        raise Failure(Exit.USAGE, 'where to serve is not said', 'give --socket PATH')
    services = _load(what)
    with _ending_at_signals():
        if is_alone:
            assert socket_path is not None
            _serve_alone(session, services, socket_path)
        else:
            _serve_behind_node(session, _check_name(name, what), services, socket_path)


class _Ended(BaseException):
    """A signal asked for the end."""


@contextlib.contextmanager
def _ending_at_signals() -> Iterator[None]:
    """Let SIGTERM and the end of the terminal end the block; what it made is let go of then.

    Only the first one: a second would end that, too. Ctrl-C is Python's own.
    """
    from degu_rpc.node.signals import on_signals

    is_ending = False

    def end() -> None:
        nonlocal is_ending
        if not is_ending:
            is_ending = True
            raise _Ended

    with contextlib.suppress(_Ended), on_signals(end, (signal.SIGTERM, signal.SIGHUP)):
        yield


def _serve_alone(session: Session, services: list[Service], socket_path: Path) -> None:
    with _listening(services, socket_path, is_private=False):
        names = [service.name for service in services]
        session.emit('serving', Serving(None, names, str(socket_path)))
        session.say(Styled('serving', 'green'), f' at unix:{socket_path}')
        sys.stdout.flush()
        threading.Event().wait()


def _check_name(name: str | None, what: str) -> str:
    from degu_rpc.node.behind import check_served_name

    try:
        return check_served_name(name or what.partition(':')[0].rpartition('.')[2])
    except ValueError as error:
        raise Failure(Exit.USAGE, str(error), 'say another one with --as NAME') from None


def _serve_behind_node(
    session: Session, name: str, services: list[Service], socket_path: Path | None
) -> None:
    from degu_rpc.node.api import NODE, NodeApi
    from degu_rpc.peers.private import make_directory

    with session.node_client() as client, contextlib.ExitStack() as stack:
        node = client.bind(NodeApi, NODE)
        node.status()  # there is one, before anything is made
        directory = session.home.served_directory
        make_directory(directory)
        private = directory / f'{name}.sock'
        stack.enter_context(_listening(services, private, is_private=True))
        if socket_path is not None:
            stack.enter_context(_listening(services, socket_path, is_private=False))
        # Without a time even if one is given: it serves as long as it runs.
        for status in client.using().bind(NodeApi, NODE).serve(name, str(private)):
            _say_serving(session, status, services, socket_path)


def _say_serving(
    session: Session, status: ServiceStatus, services: list[Service], socket_path: Path | None
) -> None:
    names = [service.name for service in services]
    own_path = None if socket_path is None else str(socket_path)
    session.emit('serving', Serving(status.name, names, own_path))
    session.say(Styled('serving', 'green'), f' {", ".join(names)} as ./{status.name}')
    if socket_path is not None:
        session.say(f'  and at unix:{socket_path}')
    sys.stdout.flush()


def _load(what: str) -> list[Service]:
    """Return the services that `module:name` means. Raises Failure."""
    from degu_rpc.rpc.service import Service

    module_name, colon, attribute = what.partition(':')
    if not colon or not attribute:
        raise Failure(Exit.USAGE, f'write MODULE:SERVICE, such as clock:service; not {what!r}')
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise Failure(
            Exit.USAGE, f'{error}', 'run it where the module is, or install that'
        ) from error
    found: Any = getattr(module, attribute, None)
    services = list(found) if isinstance(found, list | tuple) else [found]
    if not services or not all(isinstance(service, Service) for service in services):
        raise Failure(
            Exit.USAGE,
            f'{what} is no degu_rpc.Service, and no list of them, but {type(found).__name__}',
        )
    return services


@contextlib.contextmanager
def _listening(services: list[Service], path: Path, *, is_private: bool) -> Iterator[None]:
    """Serve at a unix socket to the end of the block; a private one is for the node alone.

    Raises Failure for a path that no socket can have, OSError.
    """
    from degu.server import Server
    from degu_rpc.node.api import SERVICES
    from degu_rpc.peers import Authenticated
    from degu_rpc.router import Router
    from degu_rpc.rpc.connect import RpcApp
    from degu_rpc.rpc.jsonrpc import JsonRpcApp
    from degu_rpc.rpc.meta import build_meta
    from degu_rpc.unix import listen_unix

    everything = [*services, build_meta(services)]
    router = Router()
    router.mount(SERVICES, RpcApp(everything))
    router.mount(f'{SERVICES}/jsonrpc', JsonRpcApp(everything))
    app = Authenticated(router, is_behind_node=is_private)
    try:
        listening = listen_unix(str(path))
    except ValueError as error:
        remedy = 'say a shorter name with --as NAME' if is_private else 'give another --socket'
        raise Failure(Exit.USAGE, str(error), remedy) from None
    with Server(listening, app):
        yield
