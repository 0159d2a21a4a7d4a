"""How soon something may be done again: trying an address that failed, asking a question.

Pure: the clock (seconds of any one clock) is an argument. There are no threads and no locks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


class Pauses:
    """What happened lately and must not happen again yet; at most *max_keys* at once."""

    def __init__(self, pause_s: float, max_keys: int) -> None:
        self._pause_s = pause_s
        self._max_keys = max_keys
        self._ends: dict[Hashable, float] = {}

    def remaining(self, key: Hashable, now: float) -> float:
        """Return the seconds until *key* may happen again, 0 if it may now.

        With *max_keys* others pausing, a further one must wait for the first of them.
        """
        self._ends = {other: end for other, end in self._ends.items() if end > now}
        if key in self._ends:
            return self._ends[key] - now
        if len(self._ends) >= self._max_keys:
            return min(self._ends.values()) - now
        return 0.0

    def any_remain(self, now: float) -> bool:
        """Tell whether anything must not happen again yet."""
        return any(end > now for end in self._ends.values())

    def begin(self, key: Hashable, now: float) -> None:
        """Begin the pause of *key*."""
        self._ends[key] = now + self._pause_s
