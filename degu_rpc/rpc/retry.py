"""Which failed calls a client makes again, and when. PURE: randomness is an argument.

1. What was never sent may be sent again.
2. What may or may not have been executed is made again only if that does no harm: the method is
   safe or idempotent, or the call has a key by which the server knows it.
3. Where the server says that the first call with a key still runs (as when a connection broke under
   it), the client asks for its outcome until the call's time is over.
4. Between two attempts there is a pause of random length, so that the clients of a server that
   restarts do not all come back at once; and none of it goes beyond the call's time.

Source: exponential backoff with full jitter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from degu_rpc.errors import Code, NotSentError, StillRunsError
from degu_rpc.rpc.limits import BACKOFF_S, MAX_ATTEMPTS

if TYPE_CHECKING:
    from degu_rpc.errors import RpcError


def plan_retry(
    error: RpcError, attempt: int, is_repeatable: bool, left_s: float, fraction: float
) -> float | None:
    """Return how many seconds to wait before the next attempt, None to give up.

    `attempt` is how many there were, `left_s` what is left of the call's time, `fraction` a random
    number from 0 to 1.
    """
    if not isinstance(error, StillRunsError):
        if error.code is not Code.UNAVAILABLE or attempt >= MAX_ATTEMPTS:
            return None
        if not is_repeatable and not isinstance(error, NotSentError):
            return None
    pause_s = fraction * BACKOFF_S * 2 ** (min(attempt, MAX_ATTEMPTS) - 1)
    return pause_s if pause_s < left_s else None
