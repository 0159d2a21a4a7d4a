"""One running call, as its function and whatever it calls see it.

1. The server makes a Context for each call. A parameter with that annotation is given it.
2. `check()` is how a synchronous call ends early: nobody can stop a function from outside, but it
   can ask. It asks the clock, and now and then the kernel whether the client is still connected.
3. While the function runs, or its generator, `current_context()` gives the same object to whatever
   is called. Clients use it: calls made inside a call have what is left of its time, its request id
   and its trace.

A context belongs to the thread that runs the call. `current_context()` is a context variable: a
thread that the function starts has none unless it is run in a copy of its context.
"""

from __future__ import annotations

import contextvars
import re
import secrets
from collections.abc import MutableMapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from degu_rpc.errors import Code, RpcError
from degu_rpc.rpc.limits import (
    LOOK_INTERVAL_S,
    MAX_REQUEST_ID_LENGTH,
    MAX_RESPONSE_HEADER_SIZE,
    MAX_RESPONSE_HEADERS,
)
from degu_rpc.rpc.protocol import REPLAYED, RUNNING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from degu.net import Deadline
    from degu_rpc.peers import Peer

REQUEST_ID = 'x-request-id'
TRACE = 'traceparent'

_match_request_id = re.compile(rf'[!-~]{{1,{MAX_REQUEST_ID_LENGTH}}}').fullmatch
# Source: W3C Trace Context, "traceparent Header Field Values", version 00 and what may follow it.
_match_trace = re.compile(r'(?!ff)[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}').fullmatch

_match_header = re.compile(r'(?!connect-|content-|trailer-)[0-9a-z-]+').fullmatch
_match_header_value = re.compile(r'(?! )[ -~]+(?<! )').fullmatch
_RESERVED = {
    # Source: RFC 9110 §7.6.1 and §11.7, what is between two machines alone.
    *('connection', 'keep-alive', 'proxy-connection', 'te', 'trailer', 'transfer-encoding'),
    *('host', 'proxy-authenticate', 'proxy-authorization', 'upgrade'),
    *(REQUEST_ID, REPLAYED, RUNNING),
}

_current: contextvars.ContextVar[Context | None] = contextvars.ContextVar(
    'degu_rpc.current_context', default=None
)


def never_gone() -> bool:
    """Stand in for `rgi.is_client_gone` where a server has none: nobody is known to be gone."""
    return False


def check_deadline(deadline: Deadline | None) -> None:
    """Raise RpcError (`deadline_exceeded`) if the time of a call is over."""
    if deadline is not None and not deadline.remaining():
        raise RpcError(Code.DEADLINE_EXCEEDED, f'the time of {deadline.timeout_s:g} s is over')


class Context:
    """One call, as its function sees it: a parameter annotated with this class is given it.

    `.peer` is who calls, `.method` the full name (`files.v1.Files/stat`), `.headers` those of the
    request, with casefolded names, `.deadline` when the call must be over (a `degu.net.Deadline`)
    or None. `.is_replay` is set by the server where the call is not made again.
    """

    __slots__ = (
        '_is_client_gone',
        '_next_look_s',
        '_request_id',
        '_response_headers',
        '_trace',
        'deadline',
        'headers',
        'is_replay',
        'method',
        'peer',
    )

    def __init__(
        self,
        peer: Peer,
        method: str,
        headers: Mapping[str, Any],
        deadline: Deadline | None = None,
        is_client_gone: Callable[[], bool] = never_gone,
        request_id: str | None = None,
    ) -> None:
        self.peer = peer
        self.method = method
        self.headers = headers
        self.deadline = deadline
        self.is_replay = False
        self._is_client_gone = is_client_gone
        self._next_look_s = 0.0
        self._request_id = request_id
        self._response_headers: ResponseHeaders | None = None
        self._trace: str | None = None

    def remaining(self) -> float | None:
        """Return the seconds left, never below zero; None without a deadline."""
        return None if self.deadline is None else self.deadline.remaining()

    def check(self) -> None:
        """Raise RpcError if nobody waits any more; cheap enough for every turn of a loop.

        `deadline_exceeded` when the time is over, `canceled` when the client is gone.
        """
        check_deadline(self.deadline)
        now = monotonic()
        if now >= self._next_look_s:
            if self._is_client_gone():
                raise RpcError(Code.CANCELED, 'the client is gone')
            self._next_look_s = now + LOOK_INTERVAL_S

    @property
    def request_id(self) -> str:
        """The client's name for this call, or a random one where it has none that can be used."""
        if self._request_id is None:
            self._request_id = self.sent_request_id or secrets.token_hex(8)
        return self._request_id

    @property
    def sent_request_id(self) -> str | None:
        """The request id that is in use so far: the client's, or one that was asked for."""
        if self._request_id is None:
            self._request_id = find_request_id(self.headers)
        return self._request_id

    @property
    def trace(self) -> str | None:
        """The `traceparent` for calls made inside this one, None without one that is well-formed.

        It is that of the request. An interceptor that makes a span of the call sets it to that.
        """
        trace = self.headers.get(TRACE) if self._trace is None else self._trace
        return trace if trace is not None and _match_trace(trace) else None

    @trace.setter
    def trace(self, trace: str | None) -> None:
        self._trace = trace

    @property
    def response_headers(self) -> ResponseHeaders:
        """Headers to send with the result; with a stream of results they come at its end."""
        if self._response_headers is None:
            self._response_headers = ResponseHeaders()
        return self._response_headers

    @property
    def is_answered_plainly(self) -> bool:
        """Whether the response says nothing of the call but its result, as most do."""
        return (
            not self._response_headers
            and self._request_id is None
            and REQUEST_ID not in self.headers
            and not self.is_replay
        )


class ResponseHeaders(MutableMapping[str, str]):
    """Headers that a method sends; one that cannot be sent is refused where it is set.

    What HTTP and the protocol say is not a method's business.
    """

    __slots__ = ('_headers',)

    def __init__(self) -> None:
        self._headers: dict[str, str] = {}

    def __setitem__(self, name: str, value: str) -> None:
        """Raises TypeError for a name or value that is no str, ValueError for one not to send."""
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f'a response header is two str, not {name!r}: {value!r}')
        if name in _RESERVED or not _match_header(name):
            raise ValueError(f"response header {name!r} is not the method's to send")
        if not _match_header_value(value):
            raise ValueError(f'response header {name!r} must be visible ASCII, not {value!r:.100}')
        if len(name) + len(value) > MAX_RESPONSE_HEADER_SIZE:
            raise ValueError(
                f'response header {name!r:.100} is larger than {MAX_RESPONSE_HEADER_SIZE} bytes'
            )
        if name not in self._headers and len(self._headers) >= MAX_RESPONSE_HEADERS:
            raise ValueError(f'there are at most {MAX_RESPONSE_HEADERS} response headers')
        self._headers[name] = value

    def __getitem__(self, name: str) -> str:
        return self._headers[name]

    def __delitem__(self, name: str) -> None:
        del self._headers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)


def find_request_id(headers: Mapping[str, Any]) -> str | None:
    """Return the request id that a client sent, None without one that can be used."""
    sent = headers.get(REQUEST_ID)
    return sent if sent is not None and _match_request_id(sent) else None


def current_context() -> Context | None:
    """Return the call that this code runs in, None outside of any."""
    return _current.get()


# Methods of C, one or two for each call.
enter_context = _current.set
"""Make a call the current one, and return the token for leave_context()."""
leave_context = _current.reset
"""Make what was current before enter_context() current again."""
