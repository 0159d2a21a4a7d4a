"""The time that a caller gives a call, as a server keeps it. Both protocols begin and end with it.

    deadline = begin_deadline(connection, headers)
    ...                                                 # the call, which may end with an error
    extend_deadline(connection, deadline)
    return answer

1. The header `connect-timeout-ms` says how long the call may take, and MAX_TIMEOUT_S is the most.
2. From then on each wait for the caller ends with that time. The function that is called learns of
   it where it asks, in Context.check().
3. When the time is over there is an error to send, and that needs a little time, too.

`rgi.set_deadline` is this server's own. Under another one the waits have that server's limits, and
all else stays as it is.

There is no state here, and no thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from degu.net import Deadline
from degu_rpc.rpc.limits import END_TIMEOUT_S, MAX_TIMEOUT_S
from degu_rpc.rpc.protocol import parse_timeout

if TYPE_CHECKING:
    from collections.abc import Mapping


def begin_deadline(connection: dict[str, Any], headers: Mapping[str, Any]) -> Deadline | None:
    """Return when a call must be over, None where its caller does not say; waits end with it.

    Raises RpcError (`invalid_argument`) for a time of another form.
    """
    timeout_s = parse_timeout(headers)
    if timeout_s is None:
        return None
    deadline = Deadline(min(timeout_s, MAX_TIMEOUT_S))
    _set_deadline(connection, deadline)
    return deadline


def extend_deadline(connection: dict[str, Any], deadline: Deadline | None) -> None:
    """Leave at least END_TIMEOUT_S to send what the caller is still to be told."""
    if deadline is not None and deadline.remaining() < END_TIMEOUT_S:
        _set_deadline(connection, Deadline(END_TIMEOUT_S))


def limit_rest(connection: dict[str, Any]) -> None:
    """Give END_TIMEOUT_S to what is left of a call that was answered."""
    _set_deadline(connection, Deadline(END_TIMEOUT_S))


def _set_deadline(connection: dict[str, Any], deadline: Deadline) -> None:
    set_deadline = connection.get('rgi.set_deadline')
    if set_deadline is not None:
        set_deadline(deadline)
