"""The table of sightings as threads share it: one writes what was seen, others wait for it.

Threads: `_changed` (a Condition) guards the table and is notified of everything new; no method
holds it while a caller works with what it was given. The clock is `time.monotonic()`.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING

from degu.net import Deadline
from degu_rpc.peers.sightings import Sighting, Sightings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from degu.net import Address


class Board:
    """Who is seen, for any number of threads."""

    # Guarded by _changed: _table, _closed.

    def __init__(self, known: Iterable[str]) -> None:
        """Begin with nothing seen; those whose ids are *known* always have a place."""
        self._changed = threading.Condition()
        self._table = Sightings(known)
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nobody waits any more."""
        with self._changed:
            return self._closed

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def know(self, machine_id: str) -> None:
        """Keep a place for this machine from now on."""
        with self._changed:
            self._table.know(machine_id)

    def takes(self, machine_id: str) -> bool:
        """Tell whether there is a place for this machine."""
        with self._changed:
            return self._table.takes(machine_id, monotonic())

    def add(self, machine_id: str, addresses: Iterable[Address], ttl_s: float) -> None:
        """Note that a machine was seen."""
        with self._changed:
            if self._table.add(machine_id, addresses, ttl_s, monotonic()):
                self._changed.notify_all()

    def remove(self, machine_id: str) -> None:
        """Take a machine out: it said goodbye."""
        with self._changed:
            self._table.remove(machine_id)

    def forget(self, machine_id: str, address: Address) -> None:
        """Drop an address where another machine is."""
        with self._changed:
            self._table.forget(machine_id, address)

    def list_all(self) -> list[Sighting]:
        """Return who is seen now."""
        with self._changed:
            return self._table.list_all(monotonic())

    def watch(self, timeout_s: float) -> Iterator[Sighting]:
        """Give each machine once, as soon as it is seen, until the time is over."""
        deadline = Deadline(timeout_s)
        given: set[str] = set()
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._list_new(given), deadline.remaining()
                )
                new = [] if self._closed else self._list_new(given)
            if not new:
                return
            for sighting in new:
                given.add(sighting.machine_id)
                yield sighting

    def wait_for_address(
        self, machine_id: str, given: set[Address], timeout_s: float
    ) -> Address | None:
        """Return the newest address of a machine that is not among the *given*, None for none."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._find_new(machine_id, given), timeout_s
            )
            return None if self._closed else self._find_new(machine_id, given)

    def _list_new(self, given: set[str]) -> list[Sighting]:
        return [s for s in self._table.list_all(monotonic()) if s.machine_id not in given]

    def _find_new(self, machine_id: str, given: set[Address]) -> Address | None:
        sighting = self._table.find(machine_id, monotonic())
        addresses = () if sighting is None else sighting.addresses
        return next((address for address in addresses if address not in given), None)
