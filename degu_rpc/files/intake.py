"""What becomes of the offers to an inbox: which are accepted, which are active, which are done.

1. An offer that is not known is shown to `decide`. What it refuses is not remembered.
2. An accepted one gets names that are free, and they are written down (registry.py).
3. While contents come in it is active: an Arrival (arrival.py), with its Places (places.py). Which
   ones are active is not on the disk; whoever sends offers again.
4. Once everything is here the offer is done, and `received` is told.

Threads: any number. `_lock` guards the registry and what is active, and is held while a small
record is written. `_committing` is the lock for the Workspace: whoever has it may take `_lock`,
never the other way round. `decide` and `received` are called with neither, and `received` in a
thread of its own, so that the sender hears something meanwhile.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import logging
import os
import pathlib
import threading
import time
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from degu_rpc.files.arrival import Arrival, name_temporaries
from degu_rpc.files.commit import Workspace
from degu_rpc.files.limits import (
    HEARTBEAT_S,
    MAX_ACTIVE_OF_USER,
    MAX_READ_OFFERS,
    MAX_READ_OFFERS_OF_USER,
    MAX_REST_S,
    MAX_WAITING,
    MAX_WAITING_OF_USER,
)
from degu_rpc.files.listing import Kind
from degu_rpc.files.offers import Decision, Offer, State, Tree
from degu_rpc.files.paths import Path, Root, format_path, parse_path
from degu_rpc.files.places import Places
from degu_rpc.files.registry import Record, Registry
from degu_rpc.files.responses import RefusalError
from degu_rpc.files.space import Reservation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Set

    from degu_rpc.files.system import DirectoryId
    from degu_rpc.peers import Peer

    Decide = Callable[[Offer], Decision]
    Received = Callable[[Offer, tuple[pathlib.Path, ...]], None]

_log = logging.getLogger('degu_rpc.files')


class Intake:
    """See the module. Close it."""

    # Set once: _decide, _received, _root, _workspace, _lock, _changed, _committing, _stack.
    # Guarded by self._lock: the rest.

    def __init__(
        self, directory: str | os.PathLike[str], decide: Decide, received: Received | None
    ) -> None:
        """Open the directory. Raises OSError, BlockedError."""
        self._decide = decide
        self._received = received
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._committing = threading.Lock()
        self._active: collections.OrderedDict[tuple[str, str], Arrival] = collections.OrderedDict()
        self._reading: collections.Counter[str] = collections.Counter()
        self._is_closed = False
        with contextlib.ExitStack() as stack:
            self._root = stack.enter_context(Root(directory))
            self._workspace = stack.enter_context(Workspace(self._root))
            self._workspace.recover()
            self._registry = Registry(self._workspace)
            stack.callback(self._close_registry)
            self._forget_expired()
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close the directory; a second time does nothing."""
        with self._lock:
            self._is_closed = True
            self._changed.notify_all()
            arrivals = list(self._active.values())
            self._active.clear()
        for arrival in arrivals:
            arrival.close()
        self._stack.close()

    def _close_registry(self) -> None:
        with self._lock:
            self._registry.close()

    # --- for whoever has the inbox --------------------------------------------------------------

    def offers(self) -> list[Offer]:
        """Return all offers that are remembered, those that were made first before the others."""
        with self._lock:
            found = [
                (record.offer, self._active.get((record.user, record.transfer)))
                for record in self._registry
            ]
        return [
            offer if arrival is None else offer._replace(bytes_received=arrival.bytes_received)
            for offer, arrival in found
        ]

    def accept(self, offer_id: str) -> Offer:
        """Let an offer come in that waits or was refused; others stay as they are.

        Raises UnknownOfferError, OSError.
        """
        with self._lock:
            record = self._registry.find_id(offer_id)
            if record.state in {State.WAITING, State.REFUSED}:
                record = self._keep_accepted(record)
                self._changed.notify_all()
            return record.offer

    def reject(self, offer_id: str) -> Offer:
        """Refuse an offer; what came of it already stays. One that is done stays as it is.

        On a disk that is full or fails it is refused until this inbox is closed, and the log says
        so. Raises UnknownOfferError.
        """
        with self._lock:
            record = self._registry.find_id(offer_id)
            if record.state not in {State.WAITING, State.ACCEPTED}:
                return record.offer
            arrival = self._active.pop((record.user, record.transfer), None)
            record = self._registry.hold(_changed(record, state=State.REFUSED))
            self._changed.notify_all()
        if arrival is not None:
            arrival.close()
        with self._lock:
            # First of all room: the disk may be full of what was rejected.
            self._discard_rested(record.user)
            if self._registry.find(record.user, record.transfer) is record:
                try:
                    record = self._registry.save(record)
                except OSError:
                    _log.exception('that offer %s is refused is not on the disk', offer_id)
        return record.offer

    def _discard_rested(self, user: str) -> None:
        """Discard what came of a user's contents once no offer of theirs wants it. With the lock.

        Contents belong to users and not to offers, so that a changed offer goes on with them.
        """
        if not self._registry.has_accepted(user):
            try:
                self._workspace.temporaries.discard_tagged(_tag(user))
            except OSError:
                _log.exception('what came from %s stays in tmp/', user)

    def _keep_accepted(self, record: Record) -> Record:
        """Give an offer free names and keep it as accepted. With the lock."""
        record = self._registry.reserve(record, self._is_there)
        return self._registry.save(_changed(record, state=State.ACCEPTED))

    def _is_there(self, path: Path) -> bool:
        try:
            self._root.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    # --- an offer -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading_offer(self, user: str) -> Iterator[None]:
        """Count an offer that is being read. Raises RefusalError where there are too many."""
        with self._lock:
            if (
                self._reading[user] >= MAX_READ_OFFERS_OF_USER
                or self._reading.total() >= MAX_READ_OFFERS
            ):
                raise RefusalError(503, 'other offers are being read', {'retry-after': '1'})
            self._reading[user] += 1
        try:
            yield
        finally:
            with self._lock:
                self._reading[user] -= 1
                self._reading += collections.Counter()  # drops what is zero

    def find_record(self, peer: Peer, user: str, transfer: str, tree: Tree) -> Record:
        """Return what is known of an offer, after a decision if it is new.

        Raises RefusalError, NoSpaceError, OSError, TypeError for a decision that is none.
        """
        self._let_rested_go()
        record = self._find_known(user, transfer, tree)
        if record is not None:
            return record
        record = Record(
            self._new_id(),
            user,
            transfer,
            tree.transfer,
            peer,
            _find_kinds(tree),
            tree.files,
            tree.size,
            State.WAITING,
            time.time(),
        )
        decision = self._decide(record.offer)
        if not isinstance(decision, Decision):
            raise TypeError(f'decide() returned {decision!r}, which is no Decision')
        if decision is Decision.REFUSE:
            return _changed(record, state=State.REFUSED)
        if decision is Decision.ACCEPT:
            names = name_temporaries(tree.contents, _tag(user))
            with Reservation(self._root, self._workspace, names) as reservation:
                reservation.grow(tree.size)
        with self._lock:
            # The same sender may have offered it twice at once.
            known = self._registry.find(user, transfer)
            if known is not None:
                return _require_same(known, tree)
            if decision is Decision.ACCEPT:
                record = self._keep_accepted(record)
            else:
                self._require_few_waiting(user)
                record = self._registry.save(record)
            self._forget_expired()
        return record

    def _new_id(self) -> str:
        with self._lock:
            return self._registry.new_id()

    def _find_known(self, user: str, transfer: str, tree: Tree) -> Record | None:
        """Return what is known of an offer; None if it is new, or what came of it is changed."""
        with self._lock:
            record = self._registry.find(user, transfer)
        if record is None:
            return None
        if record.state is not State.DONE:
            return _require_same(record, tree)
        if record.digest == tree.transfer and self._build_places(record, tree).are_unchanged():
            return record
        with self._lock:
            if self._registry.find(user, transfer) is record:
                self._registry.forget(record)
        return None

    def _require_few_waiting(self, user: str) -> None:
        if (
            self._registry.count_waiting(user) >= MAX_WAITING_OF_USER
            or self._registry.count_waiting() >= MAX_WAITING
        ):
            raise RefusalError(429, 'too many offers wait for an answer')

    def _forget_expired(self) -> None:
        """Forget offers that are old or too many. With the lock."""
        for record in self._registry.find_expired(time.time()):
            if (record.user, record.transfer) not in self._active:
                self._registry.forget(record)
                self._discard_rested(record.user)

    # --- what is accepted -----------------------------------------------------------------------

    def _build_places(self, record: Record, tree: Tree) -> Places:
        def move(path: Path, kind: Kind, taken: Set[bytes]) -> bytes:
            with self._lock:
                known = self._registry.find(record.user, record.transfer) or record
                moved = self._registry.move(known, path, kind, taken, self._is_there)
                return moved.places[path]

        def note_made(path: Path, directory: DirectoryId) -> None:
            with self._lock:
                known = self._registry.find(record.user, record.transfer) or record
                self._registry.note_made(known, path, directory)

        return Places(
            self._root,
            self._workspace,
            self._committing,
            tree,
            record.places,
            move,
            {parse_path(path): directory for path, directory in record.made.items()},
            note_made,
        )

    def activate(self, user: str, transfer: str, tree: Tree) -> Arrival | State:
        """Return the arrival of an offer; its state if that is not ACCEPTED any more.

        Of one user's, those that rested longest are let go.
        """
        with self._lock:
            record = self._registry.find(user, transfer)
            if record is None:
                return State.REFUSED
            if record.state is not State.ACCEPTED:
                return record.state
            arrival = self._active.get((user, transfer))
            if arrival is None:
                places = self._build_places(record, tree)
                arrival = Arrival(self._root, self._workspace, places, _tag(user))
                self._active[user, transfer] = arrival
            self._active.move_to_end((user, transfer))
            arrival.used_at = monotonic()
            keys = [key for key in self._active if key[0] == user][:-MAX_ACTIVE_OF_USER]
            surplus = [self._active.pop(key) for key in keys]
        for old in surplus:
            old.close()
        return arrival

    def _let_rested_go(self) -> None:
        """Let the arrivals go that rested for MAX_REST_S, with the room reserved for them."""
        before = monotonic() - MAX_REST_S
        with self._lock:
            keys = [key for key, arrival in self._active.items() if arrival.used_at < before]
            rested = [self._active.pop(key) for key in keys]
        for arrival in rested:
            arrival.close()

    def find_active(self, user: str, transfer: str) -> Arrival | None:
        """Return the arrival of an offer that is active and prepared."""
        with self._lock:
            arrival = self._active.get((user, transfer))
            if arrival is None or not arrival.is_prepared:
                return None
            self._active.move_to_end((user, transfer))
            arrival.used_at = monotonic()
            return arrival

    def wait_for_state(self, user: str, transfer: str, wait_s: float) -> Iterator[Record | None]:
        """Wait until an offer does not wait for an answer, at most `wait_s`; yield its record last.

        Yields None now and then before that. Yields nothing else where there is no such offer.
        """
        end = monotonic() + wait_s
        while True:
            with self._lock:
                record = self._registry.find(user, transfer)
                is_waiting = record is not None and record.state is State.WAITING
                left_s = end - monotonic()
                if not is_waiting or left_s <= 0 or self._is_closed:
                    break
                self._changed.wait(min(left_s, HEARTBEAT_S))
            yield None
        yield record

    def end(self, user: str, transfer: str, arrival: Arrival) -> Iterator[Record | None]:
        """End an offer if all of it is here; yield what is known of it then.

        After that yields None now and then until `received` is through. Raises RefusalError where
        this arrival was closed, OSError.
        """
        if not arrival.begin_end():
            return
        try:
            places = arrival.finish()
            record = self._keep_done(user, transfer, arrival)
        except BaseException:
            arrival.end_later()
            raise
        arrival.close()
        if record is None:
            return
        # In a thread: whoever sent it may be gone, or give up a connection that says nothing.
        telling = threading.Thread(target=self._tell, args=(record, places))
        telling.start()
        yield record
        while telling.is_alive():
            telling.join(HEARTBEAT_S)
            yield None

    def _keep_done(self, user: str, transfer: str, arrival: Arrival) -> Record | None:
        received = arrival.bytes_received
        with self._lock:
            if self._active.get((user, transfer)) is not arrival:
                return None  # it was closed, and perhaps offered again: another one may end it
            record = self._registry.find(user, transfer)
            if record is None or record.state is not State.ACCEPTED:
                return None
            done = _changed(record, state=State.DONE, bytes_received=received)
            record = self._registry.save(done)
            del self._active[user, transfer]
            self._discard_rested(user)  # copies that a killed run had made
            self._changed.notify_all()
            return record

    def _tell(self, record: Record, places: list[Path]) -> None:
        if self._received is not None:
            directory = pathlib.Path(self._root.name)
            there = [path for path in places if self._is_there(path)]
            paths = tuple(directory / os.fsdecode(name) for (name,) in there)
            try:
                self._received(record.offer, paths)
            except Exception:  # noqa: BLE001  # what came is here, whatever is made of it
                _log.exception('what is called for offer %s failed', record.offer_id)


def _find_kinds(tree: Tree) -> dict[str, Kind]:
    """Return what each name at the top of an offer is."""
    kinds = dict.fromkeys(tree.tops, Kind.FILE)
    kinds |= dict.fromkeys(kinds.keys() & tree.directories.keys(), Kind.DIRECTORY)
    links = {placing.path for placing in tree.symlinks}
    kinds |= dict.fromkeys(kinds.keys() & links, Kind.SYMLINK)
    return {format_path(path): kind for path, kind in kinds.items()}


def _changed(record: Record, **changes: Any) -> Record:
    return msgspec.structs.replace(record, **changes)


def _require_same(record: Record, tree: Tree) -> Record:
    if record.digest != tree.transfer:
        raise RefusalError(409, 'something else was offered as this transfer')
    return record


def _tag(user: str) -> str:
    return base64.b32encode(blake3(user.encode()).digest(5)).decode('ascii').lower()
