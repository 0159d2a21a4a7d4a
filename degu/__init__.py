"""Degu: a small, strict, fast, embedded HTTP/1.1-subset server and client.

For device-to-device and local services: TCP over IPv4 and IPv6, AF_UNIX, TLS 1.3 with client
certificates. `degu.server` and `degu.client` are where to begin; `degu.rgi` is the contract that an
application fulfils.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.context import ForkProcess

    from degu.net import Address
    from degu.rgi import App

__version__ = '0.1.0'

IPv6_LOOPBACK: tuple[str, int, int, int] = ('::1', 0, 0, 0)
IPv6_ANY: tuple[str, int, int, int] = ('::', 0, 0, 0)
IPv4_LOOPBACK: tuple[str, int] = ('127.0.0.1', 0)
IPv4_ANY: tuple[str, int] = ('0.0.0.0', 0)  # noqa: S104  # what the name says; the caller decides


def start_server(
    address: Address, build_func: Callable[..., App] | None, *args: Any, **options: Any
) -> tuple[ForkProcess, Address]:
    """Start a `degu.server.Server` in a new process and return the process and its address.

    The process builds its application with `build_func(*args)`; if `build_func` is None, the single
    argument is the application. `options` are those of `degu.server.Server`. The server shuts down
    on SIGTERM (`process.terminate()`) and when this process is gone.

    The process is forked: start it before any threads.

    Raises in the caller what building and binding raise in the process, TypeError for arguments.
    """
    from degu import process

    return process.start(None, address, build_func, args, options)


def start_sslserver(
    sslconfig: Mapping[str, Any],
    address: Address,
    build_func: Callable[..., App] | None,
    *args: Any,
    **options: Any,
) -> tuple[ForkProcess, Address]:
    """Start a `degu.server.SSLServer` in a new process; see start_server().

    `sslconfig` is what `degu.server.build_server_sslctx()` takes.
    """
    from degu import process

    return process.start(sslconfig, address, build_func, args, options)
