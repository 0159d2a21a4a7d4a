"""What another machine shares: from what a person writes to where it is, and why it is not there.

studio, studio:              all that it shares
studio:photos/2024           a share, and a path in it
degu://ID@host:port/photos   the same of a machine at an address
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from degu_rpc.cli.exits import Exit
from degu_rpc.cli.failures import Failure
from degu_rpc.cli.targets import build_client, locate, respell
from degu_rpc.errors import Code, DeguRpcError, RpcError, ShareRefusedError
from degu_rpc.node.api import FILES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from degu_rpc.cli.session import Session
    from degu_rpc.node.api import Located
    from degu_rpc.node.shares import Share
    from degu_rpc.peers import DialedClient

_URL = 'degu://'


class Source(NamedTuple):
    """What `studio:photos/2024` says: whose, which share, and what in it."""

    peer: str
    share: str
    path: str

    def __str__(self) -> str:
        """Return it as somebody may type it."""
        colon = '/' if self.peer.startswith(_URL) else ':'
        return f'{self.peer}{colon}{self.share}' + (f'/{self.path}' if self.path else '')


def is_source(text: str) -> bool:
    """Say whether it names what a peer has; what has a `/` before the colon is a path of ours."""
    return text.startswith(_URL) or ':' in text.partition('/')[0]


def parse_source(text: str) -> Source:
    """Read PEER:[PATH]. Raises Failure for what has no colon."""
    peer, colon, rest = text.partition(':')
    if text.startswith(_URL):
        host, _, rest = text.removeprefix(_URL).partition('/')
        peer, colon = f'{_URL}{host}', ':'
    if not peer or not colon:
        raise Failure(
            Exit.USAGE, f'what another machine shares is like studio:photos, not {text!r}'
        )
    share, _, path = rest.strip('/').partition('/')
    return Source(respell(peer), share, path)


class Place:
    """Where a source is: a client of its machine, and what that says of its shares."""

    # Set once: all.

    def __init__(self, session: Session, peer: str) -> None:
        """Find a machine. Raises Failure for one that is unknown, or not seen."""
        self._session = session
        self._located: Located = locate(session, peer)
        self.client: DialedClient = build_client(session, self._located)

    @property
    def name(self) -> str:
        """What we call it."""
        return self._located.name

    def prefix(self, share: str) -> str:
        """Return the path that a share is mounted at."""
        return f'{self._located.path}{FILES}/{quote(share, safe="")}'

    def list_shares(self) -> list[Share]:
        """Return what we may read there. Raises Failure where nothing is shared, RpcError."""
        from degu_rpc.cli.session import PREFIX
        from degu_rpc.node.shares import SHARES, Share
        from degu_rpc.rpc.client import RpcClient

        with RpcClient(self.client, self._located.path + PREFIX) as calls:
            calls = calls.using(timeout_s=self._session.timeout_s)
            try:
                shares: list[Share] = calls.call(SHARES, 'list_shares', {}, list[Share])
            except RpcError as error:
                if error.code is not Code.UNIMPLEMENTED:
                    raise
                raise Failure(
                    Exit.NOT_FOUND,
                    f'nothing at {self.name}{self._located.path} has shares',
                    f'see what the machine itself shares: degu ls {self.name}',
                ) from error
        return shares

    @contextlib.contextmanager
    def explaining(self, asked: Source) -> Iterator[None]:
        """Turn the refusal of a share into a Failure that says what is there instead."""
        try:
            yield
        except ShareRefusedError as error:
            raise self._explain(asked, error) from error

    def _explain(self, asked: Source, error: ShareRefusedError) -> Failure:
        kind = type(error).__name__
        if error.status == 403:
            return Failure(
                Exit.REFUSED,
                f'{asked} may not be read: {error.reason}',
                f'whoever has {self.name} can allow it',
                kind,
            )
        if error.status != 404:
            return Failure(Exit.FAILED, str(error), '', kind)
        with contextlib.suppress(DeguRpcError, Failure):  # then there is no more to say
            names = [share.name for share in self.list_shares()]
            if not names:
                return Failure(
                    Exit.NOT_FOUND,
                    f'{self.name} shares nothing with you',
                    'a directory is shared there by its config.toml, in [shares]',
                    kind,
                )
            if asked.share not in names:
                return Failure(
                    Exit.NOT_FOUND,
                    f'{self.name} has no share {asked.share!r}; it shares: {", ".join(names)}',
                    f'see what is there: degu ls {asked.peer}',
                    kind,
                )
        around = asked._replace(path='') if asked.path else asked.peer
        return Failure(
            Exit.NOT_FOUND, f'{asked} is not there', f'see what is there: degu ls {around}', kind
        )
