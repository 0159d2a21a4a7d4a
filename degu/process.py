"""A server in a process of its own.

1. The parent forks. A fork, not a fresh interpreter, so that an application need not be
   importable: a function typed at a prompt will do. That is why it must come before any thread.
2. The child builds the application, binds, and reports its address or the exception through a pipe.
3. The child serves until SIGTERM, or until the parent is gone, however it went: its lifeline is a
   pipe that only the parent holds open.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from typing import TYPE_CHECKING, Any, NoReturn

from degu.server import Server, SSLServer
from degu.tls import build_server_sslctx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing import connection
    from multiprocessing.context import ForkProcess

    from degu.net import Address
    from degu.rgi import App

_fork = multiprocessing.get_context('fork')


def start(
    sslconfig: Mapping[str, Any] | None,
    address: Address,
    build_func: Callable[..., App] | None,
    args: tuple[Any, ...],
    options: Mapping[str, Any],
) -> tuple[ForkProcess, Address]:
    """Start a server in a new process; see `degu.start_server()`."""
    if build_func is None:
        if len(args) != 1:
            raise TypeError(f'without a build_func, give just the application, not {args!r}')
    elif not callable(build_func):
        raise TypeError(f'build_func must be None or callable, not {build_func!r}')
    receiver, sender = _fork.Pipe(duplex=False)
    process = _fork.Process(
        target=_run, args=(sender, sslconfig, address, build_func, args, options), daemon=True
    )
    with receiver:
        with sender:
            process.start()
        try:
            result = receiver.recv()
        except EOFError:
            process.join()
            raise RuntimeError(
                f'the server process died before it was ready, with exit code {process.exitcode}'
            ) from None
    if isinstance(result, BaseException):
        process.join()
        raise result
    return process, result


def _run(
    sender: connection.Connection,
    sslconfig: Mapping[str, Any] | None,
    address: Address,
    build_func: Callable[..., App] | None,
    args: tuple[Any, ...],
    options: Mapping[str, Any],
) -> None:
    # The parent decides when the server ends; Ctrl-C reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with sender:
        try:
            server = _build(sslconfig, address, build_func, args, options)
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller gets it
            _send_exception(sender, error)
        signal.signal(signal.SIGTERM, lambda _number, _frame: server.shutdown())
        sender.send(server.address)
    parent = multiprocessing.parent_process()
    assert parent is not None
    server.serve_forever(lifeline=parent.sentinel)


def _build(
    sslconfig: Mapping[str, Any] | None,
    address: Address,
    build_func: Callable[..., App] | None,
    args: tuple[Any, ...],
    options: Mapping[str, Any],
) -> Server:
    app: App = args[0] if build_func is None else build_func(*args)
    if sslconfig is None:
        return Server(address, app, **options)
    return SSLServer(build_server_sslctx(sslconfig), address, app, **options)


def _send_exception(sender: connection.Connection, error: Exception) -> NoReturn:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes, to see that it can be done
    except Exception:  # noqa: BLE001  # not every exception can travel, but its words can
        error = RuntimeError(f'{type(error).__name__}: {error}')
    sender.send(error)
    raise SystemExit(1)
