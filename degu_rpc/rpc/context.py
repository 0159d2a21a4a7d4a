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
from time import monotonic
from typing import TYPE_CHECKING, Any

from degu_rpc.errors import Code, RpcError
from degu_rpc.rpc.limits import LOOK_INTERVAL_S, MAX_REQUEST_ID_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from degu.net import Deadline
    from degu_rpc.peers import Peer

REQUEST_ID = 'x-request-id'
TRACE = 'traceparent'

_match_request_id = re.compile(rf'[!-~]{{1,{MAX_REQUEST_ID_LENGTH}}}').fullmatch
# Source: W3C Trace Context, "traceparent Header Field Values", version 00 and what may follow it.
_match_trace = re.compile(r'(?!ff)[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}').fullmatch

_current: contextvars.ContextVar[Context | None] = contextvars.ContextVar(
    'degu_rpc.current_context', default=None
)


def _never() -> bool:
    return False


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
        is_client_gone: Callable[[], bool] = _never,
    ) -> None:
        self.peer = peer
        self.method = method
        self.headers = headers
        self.deadline = deadline
        self.is_replay = False
        self._is_client_gone = is_client_gone
        self._next_look_s = 0.0
        self._request_id: str | None = None
        self._response_headers: dict[str, str] | None = None

    def remaining(self) -> float | None:
        """Return the seconds left, never below zero; None without a deadline."""
        return None if self.deadline is None else self.deadline.remaining()

    def check(self) -> None:
        """Raise RpcError if nobody waits any more; cheap enough for every turn of a loop.

        `deadline_exceeded` when the time is over, `canceled` when the client is gone.
        """
        if self.deadline is not None and not self.deadline.remaining():
            raise RpcError(
                Code.DEADLINE_EXCEEDED, f'the time of {self.deadline.timeout_s:g} s is over'
            )
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
            sent = self.headers.get(REQUEST_ID)
            if sent is not None and _match_request_id(sent):
                self._request_id = sent
        return self._request_id

    @property
    def trace(self) -> str | None:
        """The `traceparent` of the request, None without one that is well-formed."""
        trace = self.headers.get(TRACE)
        return trace if trace is not None and _match_trace(trace) else None

    @property
    def response_headers(self) -> dict[str, str]:
        """Headers to send with the result; with a stream of results they come at its end."""
        if self._response_headers is None:
            self._response_headers = {}
        return self._response_headers

    @property
    def has_response_headers(self) -> bool:
        """Whether there is anything in `response_headers`."""
        return bool(self._response_headers)

    @property
    def is_answered_plainly(self) -> bool:
        """Whether the response says nothing of the call but its result, as most do."""
        return (
            not self._response_headers
            and self._request_id is None
            and REQUEST_ID not in self.headers
            and not self.is_replay
        )


# Methods of C, one or two for each call.
current_context = _current.get
"""Return the call that this code runs in, None outside of any."""
enter_context = _current.set
"""Make a call the current one, and return the token for leave_context()."""
leave_context = _current.reset
"""Make what was current before enter_context() current again."""
