"""`shares.v1.Shares`: tells a peer which of this node's directories it may read.

    for share in client.call(SHARES, 'list_shares', {}, list[Share]): ...

Each is at `/files/<name>` (degu_rpc.files.share). What a caller may not read is not there for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from degu_rpc.errors import ConfigError
from degu_rpc.files.share import FileShare
from degu_rpc.peers import OWNER, PEER, build_roles
from degu_rpc.rpc.context import Context
from degu_rpc.rpc.service import Service

if TYPE_CHECKING:
    from collections.abc import Mapping

    from degu_rpc.node import config

SHARES = 'shares.v1.Shares'


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
