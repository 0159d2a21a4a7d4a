"""The one place that wires everything into a running device.

1. A node is given who it is, whom it trusts, and what it offers: one RGI app, usually a Router.
2. It listens twice, on TLS for other machines and on a unix socket for this one. The app is the
   same and so is the question who calls: `connection['_peer']` has the answer on both.
3. It serves from `with` to the end of the block, and then lets running requests end.

Threads: each of the two servers has an accept loop of its own; nothing here is shared with them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from degu import IPv4_LOOPBACK
from degu.server import Server, SSLServer
from degu_rpc.peers import Authenticated

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from degu.net import Address
    from degu.rgi import App
    from degu_rpc.peers import TrustStore


class Node:
    """A device that other machines and local programs can call; a context manager.

    `.tls_address` and `.socket_path` are where it listens.
    """

    # Set once: all but what _stack holds, which belongs to the thread that enters and leaves.

    def __init__(
        self,
        trust: TrustStore,
        app: App,
        socket_path: Path,
        address: Address = IPv4_LOOPBACK,
    ) -> None:
        """Bind both addresses; nothing is served before the `with` block.

        A change of `trust`, by any process, is in force at the next connection and request.

        Raises OSError where an address cannot be had, ssl.SSLError for the files.
        """
        authenticated = Authenticated(app, trust)
        self._stack = contextlib.ExitStack()
        trust.server_sslctx()  # what cannot be used is to be known now, not at the first client
        self._unix = Server(str(socket_path), authenticated)
        try:
            self._tls = SSLServer(trust.server_sslctx, address, authenticated)
        except BaseException:
            self._unix.close()
            raise
        self.socket_path = socket_path
        self.tls_address = self._tls.address

    def __enter__(self) -> Node:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._unix)
            stack.enter_context(self._tls)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving, and free both addresses; for a node that was never entered, too.

        A second time does nothing. Raises OSError if the socket file cannot be removed.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._tls.close)
            stack.callback(self._unix.close)
            stack.callback(self._stack.close)
