"""`degu stubs`: asks a server what its services look like, and writes that as Python."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from degu.client import Client
from degu_rpc import RpcClient, RpcError
from degu_rpc.rpc.meta import META
from degu_rpc.rpc.schema import ServiceDescription
from degu_rpc.rpc.stubs import write_stubs

if TYPE_CHECKING:
    from collections.abc import Sequence


def read_stubs(socket: str, services: Sequence[str], prefix: str) -> str:
    """Return the stubs of services at a unix socket; of all but Meta itself if none is named.

    `socket` is its path, with or without the `unix:` that connect() takes.

    Raises click.ClickException with what went wrong, UsageError for a path that is not there.
    """
    path = os.path.abspath(socket.removeprefix('unix:'))
    if not os.path.exists(path):
        raise click.UsageError(f'there is no socket {path!r}: it does not exist')
    try:
        with RpcClient(Client(path), prefix) as client:
            names = services or [
                name for name in client.call(META, 'list_services', {}, list[str]) if name != META
            ]
            return write_stubs(
                [
                    client.call(META, 'describe', {'service': name}, ServiceDescription)
                    for name in names
                ]
            )
    except (RpcError, ValueError) as error:
        raise click.ClickException(str(error)) from error
