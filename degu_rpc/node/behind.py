"""What other programs of this machine serve behind the node, each under a name of its own.

1. A program serves on a unix socket and registers it: `Behind.register`, for as long as it runs.
2. `Behind` is an RGI app, mounted at `/` of the node: a request for `/<name>/...` goes to that
   program, on a connection of its own, with who calls in the header `x-degu-caller`. What a caller
   says in that header is dropped. Bodies stream both ways.
3. The program's side is `Authenticated(app, is_behind_node=True)`, which takes the node's word. A
   program without that refuses what the node passes on.
4. That a program does not answer is logged once in a while, with how often that was: whoever may
   call it can do so as often as they like.
5. While a program works on a request, the node looks whether the caller is still there. If not, it
   ends the connection to the program, which notices.

Threads: each request is passed on in its connection's thread, and one thread named `degu-behind`
looks after the callers of all. `_lock` guards `_served` and `_running`, whose connections leave it
with their end, and what each of `_served` has not logged yet.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from degu.bodies import Input
from degu.client import Client
from degu.errors import DeguError
from degu.util import relative_uri, shift_path
from degu_rpc.errors import Code, RpcError
from degu_rpc.node.api import (
    CERTIFICATES,
    FILES,
    INBOX,
    NAME_PATTERN,
    SERVICES,
    ServiceStatus,
)
from degu_rpc.node.limits import CALLER_PERIOD_S, MAX_SERVED, SILENCE_LOG_S
from degu_rpc.peers.caller import CALLER, format_caller
from degu_rpc.rpc.protocol import format_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, MutableMapping
    from pathlib import Path

    from degu.client import Connection
    from degu.rgi import Response

RESERVED = frozenset(path.removeprefix('/') for path in (SERVICES, FILES, INBOX, CERTIFICATES))
"""What the node itself has at the top."""
_HOP_BY_HOP = frozenset({'connection', 'keep-alive', 'proxy-connection', 'te', 'upgrade'})
"""About one connection, not about what is passed on. Source: RFC 9110 §7.6.1."""
_match_name = re.compile(NAME_PATTERN).fullmatch

_log = logging.getLogger('degu_rpc.node')


def check_served_name(name: str) -> str:
    """Return a name that a program can have behind a node. Raises ValueError for another."""
    if not _match_name(name) or name in RESERVED:
        raise ValueError(
            f'a name is 1 to 64 letters, digits and any of ._-, and none of '
            f'{", ".join(sorted(RESERVED))}; not {name!r}'
        )
    return name


class _Silences:
    """Logs that a program did not answer, in a line each SILENCE_LOG_S at most."""

    __slots__ = ('_count', '_last', '_name', '_not_before_s')

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0  # not logged yet
        self._last = ''
        self._not_before_s = 0.0

    def add(self, why: str) -> None:
        self._count += 1
        self._last = why
        if monotonic() >= self._not_before_s:
            self.log()

    def log(self) -> None:
        if self._count:
            _log.warning(
                '%s did not answer; failed requests: %d, the last: %s',
                self._name,
                self._count,
                self._last,
            )
            self._count = 0
            self._not_before_s = monotonic() + SILENCE_LOG_S


class _Served(NamedTuple):
    status: ServiceStatus
    client: Client
    silences: _Silences


class Behind:
    """The programs behind a node, as an RGI app."""

    # Set once: _own_socket, _lock, _ended, _thread. Guarded by _lock: _served, _running.

    def __init__(self, own_socket: Path) -> None:
        """Start the thread; close() ends it. The node's own socket cannot be behind it."""
        self._own_socket = own_socket
        self._lock = threading.Lock()
        self._served: dict[str, _Served] = {}
        self._running: MutableMapping[Connection, Callable[[], bool]] = WeakKeyDictionary()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_after_callers, name='degu-behind')
        self._thread.start()

    def close(self) -> None:
        """End the thread; a second time does nothing."""
        self._ended.set()
        self._thread.join()

    def list_all(self) -> list[ServiceStatus]:
        """Return what is served now, by name."""
        with self._lock:
            return [served.status for _, served in sorted(self._served.items())]

    @contextlib.contextmanager
    def register(self, name: str, socket_path: str) -> Iterator[ServiceStatus]:
        """Pass on what is for a name to the program at a unix socket, to the end of the block.

        Raises ValueError for a name or a socket that cannot be; RpcError: `already_exists` for a
        taken name, `resource_exhausted` where there are too many.
        """
        check_served_name(name)
        # A program may come later than its name; what is not there is not the node either.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samefile(socket_path, self._own_socket):
                raise ValueError(f'{socket_path} is the node itself; give the socket of a program')
        status = ServiceStatus(name, socket_path)
        served = _Served(status, Client(socket_path), _Silences(name))
        with self._lock:
            if name in self._served:
                raise RpcError(Code.ALREADY_EXISTS, f'{name} is served already')
            if len(self._served) >= MAX_SERVED:
                raise RpcError(Code.RESOURCE_EXHAUSTED, f'{MAX_SERVED} programs serve here already')
            self._served[name] = served
        try:
            yield status
        finally:
            with self._lock:
                del self._served[name]
                served.silences.log()

    # --- passing on ------------------------------------------------------------------------------

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Pass on one request, or answer 404; 503 where the program does not answer."""
        served = self._served.get(request['path'][0]) if request['path'] else None
        if served is None:
            return _answer(
                request, 404, 'Not Found', 'text/plain; charset=utf-8', b'nothing is here\n'
            )
        shift_path(request)
        headers = _drop(request['headers'], {CALLER})
        headers[CALLER] = format_caller(request['_peer'])
        body = request['body']
        try:
            upstream = served.client.connect()
            with self._lock:
                self._running[upstream] = connection['rgi.is_client_gone']
            response = upstream.request(request['method'], relative_uri(request), headers, body)
        except (DeguError, OSError) as error:
            if body is not None and body.error is error:
                raise  # the caller failed, not the program
            with self._lock:
                served.silences.add(str(error))
            refusal = RpcError(Code.UNAVAILABLE, f'{served.status.name} does not answer')
            return _answer(
                request, 503, 'Service Unavailable', 'application/json', format_error(refusal)
            )
        return (
            response.status,
            response.reason,
            _drop(response.headers, set()),
            _read_or_stream(response.body, upstream, connection),
        )

    def _look_after_callers(self) -> None:
        while not self._ended.wait(CALLER_PERIOD_S):
            with self._lock:
                running = list(self._running.items())
            for upstream, is_client_gone in running:
                if not upstream.closed and is_client_gone():
                    upstream.interrupt()


def _read_or_stream(body: Any, upstream: Connection, connection: Mapping[str, Any]) -> Any:
    """Return what to answer with; the connection to the program ends with it."""
    if body is None:
        upstream.close()
        return None
    if isinstance(body, Input):
        return connection['rgi.Output'](_closing(body, upstream), body.content_length)
    return connection['rgi.ChunkedOutput'](_closing(body, upstream))


def _closing(body: Any, upstream: Connection) -> Iterator[Any]:
    with upstream:
        yield from body


def _drop(headers: Mapping[str, Any], others: set[str]) -> dict[str, Any]:
    """Return the headers that go on to the other side."""
    named = {name.strip().lower() for name in headers.get('connection', '').split(',')}
    dropped = _HOP_BY_HOP | named | others
    return {name: value for name, value in headers.items() if name not in dropped}


def _answer(
    request: dict[str, Any], status: int, reason: str, content_type: str, body: bytes
) -> Response:
    return (
        status,
        reason,
        {'content-type': content_type},
        None if request['method'] == 'HEAD' else body,
    )
