"""Questions to a share or an inbox, over one connection that is made when it is needed.

Every question may be asked twice, so one that finds a kept connection closed is asked once more on
a new one; its body is therefore something that can be built again. An answer may take forever: its
pieces are where a cancel comes in. Belongs to one thread, but for `interrupt()`.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from degu.bodies import Input
from degu_rpc.files.limits import MAX_ERROR_TEXT
from degu_rpc.text import escape_controls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from degu.bodies import Body
    from degu.client import Client, Connection, Response
    from degu.wire import HeaderValue
    from degu_rpc.peers import DialedClient

    Headers = Mapping[str, HeaderValue]
    BuildBody = Callable[[Connection], Body]


class Questions:
    """One connection to an app that is mounted somewhere; see the module."""

    def __init__(
        self, client: Client | DialedClient, prefix: str, check: Callable[[], None]
    ) -> None:
        """Remember where the app is: `prefix` is the path it is mounted at, '' for the top.

        `check` is called for each piece of an answer; what it raises ends the question.
        """
        self._client = client
        self._prefix = prefix.rstrip('/')
        self._check = check
        self._connection: Connection | None = None

    def close(self) -> None:
        """Close the connection; the next question makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def interrupt(self) -> None:
        """End what is asked for now, as if the app had hung up. Any thread may call this."""
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def ask(self, method: str, uri: str, headers: Headers, build: BuildBody) -> Response:
        """Ask, and return the answer, whatever its status. Raises the core's DeguError, OSError."""
        uri = self._prefix + uri
        if self._connection is not None and not self._connection.closed:
            try:
                return self._connection.request(method, uri, headers, build(self._connection))
            except (ConnectionError, ssl.SSLEOFError):  # the latter after interrupt(), with TLS
                self.close()
        self._connection = self._client.connect()
        return self._connection.request(method, uri, headers, build(self._connection))

    def checked(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the pieces of an answer, each after a check."""
        for piece in pieces:
            self._check()
            yield piece

    def read_reason(self, response: Response) -> str:
        """Return what an error says for people. One that says too much costs the connection."""
        body, why = response.body, response.reason
        if isinstance(body, Input) and body.content_length <= MAX_ERROR_TEXT:
            why = body.read().decode('utf-8', 'replace').strip() or why
        elif body is not None:
            self.close()
        return escape_controls(why)


def without_body(_connection: Connection) -> None:
    """Build the body of a question that has none."""
