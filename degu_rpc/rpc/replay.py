"""What became of calls with an idempotency key, for callers who make a call again.

1. The first call with a key runs, and its outcome is kept: result, error and headers.
2. The same call again gets the same outcome and is not run. While the first one runs it is
   `aborted`: its caller may come back.
   Some errors are not kept. With `unavailable` the method says that another attempt may do; with
   `canceled` and `deadline_exceeded` it ended because nobody waited, which is no answer to who
   comes back.
3. Another body under the same key is a mistake of the caller: `invalid_argument`.

A key belongs to who calls and to the method: nobody can ask for another's results. Outcomes are
kept for REPLAY_AGE_S in at most MAX_REPLAY_SIZE bytes. When that is full, the user who takes most
of it loses the oldest of theirs, so that nobody can push out what others have. It goes by user and
not by machine: a user has as many machines as they like.

It is all in memory: a server that restarts has forgotten it, and each worker process has its own.

Threads: any number; `_lock` guards everything and is not held while a call runs.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter, OrderedDict
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from degu_rpc.errors import Code, RpcError, StillRunsError
from degu_rpc.rpc.limits import MAX_KEY_LENGTH, MAX_REPLAY_SIZE, REPLAY_AGE_S, REPLAY_COST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from degu_rpc.peers import Peer

_NOT_KEPT = {Code.UNAVAILABLE, Code.CANCELED, Code.DEADLINE_EXCEEDED}
_match_key = re.compile(rf'[ -~]{{1,{MAX_KEY_LENGTH}}}').fullmatch


class Outcome(NamedTuple):
    """What became of a call, as it is sent: no object of the call lives on in it.

    `data` is the result, and `headers` what the method set; or the JSON of an error with `code`.
    """

    data: bytes
    code: Code | None
    headers: Mapping[str, str]

    @property
    def cost(self) -> int:
        """How many bytes it counts while it is kept."""
        header_size = sum(len(name) + len(value) for name, value in self.headers.items())
        return REPLAY_COST + len(self.data) + header_size


class _Entry:
    """A call that runs, or its outcome and since when there is one."""

    __slots__ = ('cost', 'fingerprint', 'outcome', 'since_s')

    def __init__(self, fingerprint: bytes) -> None:
        self.fingerprint = fingerprint
        self.outcome: Outcome | None = None
        self.since_s = 0.0
        self.cost = REPLAY_COST


class ReplayStore:
    """The outcomes of calls with a key, by user, machine, method and key."""

    # Set once: _clock, _lock. Guarded by _lock: _entries, _costs.

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """Begin with nothing; `clock` gives seconds that only grow."""
        self._clock = clock
        self._lock = threading.Lock()
        # Of each user, the oldest first.
        self._entries: dict[tuple[Any, ...], OrderedDict[tuple[Any, ...], _Entry]] = {}
        self._costs: Counter[tuple[Any, ...]] = Counter()

    def run(
        self, peer: Peer, method: str, key: str, body: bytes, call: Callable[[], Outcome]
    ) -> tuple[Outcome, bool]:
        """Return the outcome of `call`, and whether it is that of an earlier one.

        Raises StillRunsError (`aborted`) while the earlier one runs, RpcError (`invalid_argument`)
        for another body or a key of another form. What `call` raises is raised and not kept.
        """
        if not _match_key(key):
            raise RpcError(
                Code.INVALID_ARGUMENT,
                f'idempotency-key must be 1 to {MAX_KEY_LENGTH} printable characters',
            )
        user = (peer.kind, peer.user_id, peer.uid)
        name = (peer.machine_id, method, key)
        fingerprint = hashlib.blake2b(body, digest_size=32).digest()
        with self._lock:
            self._drop_old(user)
            found = self._entries.get(user, OrderedDict()).get(name)
            if found is None:
                entry = _Entry(fingerprint)
                self._entries.setdefault(user, OrderedDict())[name] = entry
                self._costs[user] += entry.cost
            elif found.fingerprint != fingerprint:
                raise RpcError(Code.INVALID_ARGUMENT, 'this idempotency-key had another body')
            elif found.outcome is None:
                raise StillRunsError(Code.ABORTED, 'the call with this idempotency-key still runs')
            else:
                return found.outcome, True
        try:
            outcome = call()
        except BaseException:
            with self._lock:
                self._drop(user, name)
            raise
        with self._lock:
            if outcome.code in _NOT_KEPT:
                self._drop(user, name)
                return outcome, False
            entry.outcome = outcome
            entry.since_s = self._clock()
            self._costs[user] += outcome.cost - entry.cost
            entry.cost = outcome.cost
            # Its age counts from now on, and so does its place.
            self._entries[user].move_to_end(name)
            self._make_room()
        return outcome, False

    def _drop(self, user: tuple[Any, ...], name: tuple[Any, ...]) -> None:
        entries = self._entries[user]
        self._costs[user] -= entries.pop(name).cost
        if not entries:
            del self._entries[user]
            del self._costs[user]

    def _drop_old(self, user: tuple[Any, ...]) -> None:
        oldest_s = self._clock() - REPLAY_AGE_S
        expired = []
        for name, entry in self._entries.get(user, {}).items():
            if entry.outcome is None:
                continue
            if entry.since_s > oldest_s:
                break  # and so no more of them are looked at than there are to drop
            expired.append(name)
        for name in expired:
            self._drop(user, name)

    def _make_room(self) -> None:
        while self._costs.total() > MAX_REPLAY_SIZE:
            (busiest, _), *_ = self._costs.most_common(1)
            for name, entry in self._entries[busiest].items():
                if entry.outcome is not None:
                    self._drop(busiest, name)
                    break
            else:
                return  # all of these run, and a connection each bounds them
