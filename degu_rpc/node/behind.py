"""What other programs of this machine serve behind the node, each under a name of its own.

1. A program serves on a unix socket and registers it: `Behind.register`, for as long as it runs.
2. `Behind` is an RGI app, mounted at `/`: a request for `/<name>/...` goes to that program.

Threads: any may call anything; `_lock` guards `_served`.
"""

from __future__ import annotations

import contextlib
import re
import threading
from typing import TYPE_CHECKING, Any

from degu_rpc.errors import Code, RpcError
from degu_rpc.node.api import ServiceStatus
from degu_rpc.node.limits import MAX_SERVED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from degu.rgi import Response

RESERVED = frozenset({'rpc', 'files', 'certificates'})
"""What the node itself has at the top."""
_match_name = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,63}').fullmatch


class Behind:
    """The programs behind a node, as an RGI app."""

    # Guarded by _lock: _served.

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._served: dict[str, ServiceStatus] = {}

    def list_all(self) -> list[ServiceStatus]:
        """Return what is served now, by name."""
        with self._lock:
            return [status for _, status in sorted(self._served.items())]

    @contextlib.contextmanager
    def register(self, name: str, socket_path: str) -> Iterator[ServiceStatus]:
        """Pass on what is for a name to the program at a unix socket, to the end of the block.

        Raises RpcError: `invalid_argument` for a name that cannot be, `already_exists` for one that
        is taken, `resource_exhausted` where there are too many.
        """
        if not _match_name(name) or name in RESERVED:
            raise RpcError(
                Code.INVALID_ARGUMENT,
                f'a name is 1 to 64 letters, digits and any of ._-, and none of '
                f'{", ".join(sorted(RESERVED))}; not {name!r}',
            )
        with self._lock:
            if name in self._served:
                raise RpcError(Code.ALREADY_EXISTS, f'{name} is served already')
            if len(self._served) >= MAX_SERVED:
                raise RpcError(Code.RESOURCE_EXHAUSTED, f'{MAX_SERVED} programs serve here already')
            status = self._served[name] = ServiceStatus(name, socket_path)
        try:
            yield status
        finally:
            with self._lock:
                del self._served[name]

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Pass on one request, or answer 404."""
        return 404, 'Not Found', {'content-type': 'text/plain; charset=utf-8'}, b'nothing is here\n'
