"""The directories that others may read, and `shares.v1.Shares`, which tells a caller of its own.

    for share in client.call(SHARES, 'list_shares', {}, list[Share]): ...

Each is at `/files/<name>` (degu_rpc.files.share). What a caller may not read is not there for it:
`Files` answers 404 for both alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from degu.util import shift_path
from degu_rpc.errors import ConfigError
from degu_rpc.files.share import FileShare
from degu_rpc.peers import OWNER, PEER, build_roles
from degu_rpc.rpc.context import Context
from degu_rpc.rpc.service import Service

if TYPE_CHECKING:
    from collections.abc import Mapping

    from degu.rgi import App, Response
    from degu_rpc.node import config

SHARES = 'shares.v1.Shares'


class Files:
    """An RGI app: shares by their names, each for whom it is allowed."""

    # Set once: _shares.

    def __init__(self, apps: Mapping[str, App], shares: Mapping[str, config.Share]) -> None:
        """Serve each of `apps` as its share says. Raises TypeError, ValueError for such roles."""
        self._shares = {name: (app, build_roles(shares[name].allow)) for name, app in apps.items()}

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Answer one request; 404 for what is not there, or not for this caller."""
        found = self._shares.get(shift_path(request) or '')
        peer = request['_peer']
        if found is None or peer is None or found[1].isdisjoint(peer.roles):
            body = None if request['method'] == 'HEAD' else b'nothing is here\n'
            return 404, 'Not Found', {'content-type': 'text/plain; charset=utf-8'}, body
        return found[0](connection, request)


@dataclass(frozen=True, slots=True)
class Share:
    """A directory that the caller may read."""

    name: str


def open_share(name: str, share: config.Share) -> FileShare:
    """Open the directory of a share.

    Raises ConfigError where it cannot be opened, TypeError or ValueError for roles that are none.
    """
    try:
        return FileShare(share.directory, share.allow)
    except OSError as error:
        raise ConfigError(
            f'shares.{name}',
            'the settings',
            f'{share.directory} cannot be shared: {error.strerror}',
            'make that directory, or take the share out of config.toml',
        ) from error


def build_shares(shares: Mapping[str, config.Share]) -> Service:
    """Build the service. Raises TypeError or ValueError for roles that are none."""
    roles = {name: build_roles(share.allow) for name, share in sorted(shares.items())}
    service = Service(SHARES)

    @service.method(allow=frozenset({OWNER, PEER}).union(*roles.values()), safe=True)
    def list_shares(ctx: Context) -> list[Share]:
        """List the directories that you may read here."""
        return [
            Share(name) for name, allowed in roles.items() if not allowed.isdisjoint(ctx.peer.roles)
        ]

    return service
