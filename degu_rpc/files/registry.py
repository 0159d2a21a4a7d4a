"""The offers of an inbox on the disk: who offered what, how far it is, which names it got.

    .degu/inbox/{user}/{transfer}    a record as JSON, whole or not at all, durable, mode 0600

What was offered itself is not here: whoever sends it offers it again when it goes on. A record that
is lost, or cannot be read, costs time and a second copy, never data.

Names are reserved by being in a record, so a record is written before anything gets its name.

A Registry is not thread-safe: the Intake has a lock for it.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import secrets
import time
from pathlib import PurePath
from typing import TYPE_CHECKING

import msgspec

from degu import durable
from degu_rpc.errors import UnknownOfferError
from degu_rpc.files.limits import MAX_OFFERS_OF_USER, OFFER_AGE_S
from degu_rpc.files.listing import Kind
from degu_rpc.files.offers import Offer, State, find_place, free_names
from degu_rpc.files.paths import DIRECTORY_FLAGS, Path, format_path, open_or_make, parse_path
from degu_rpc.files.system import DirectoryId, list_names
from degu_rpc.peers import Peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Set

    from degu_rpc.files.commit import Workspace

_log = logging.getLogger('degu_rpc.files')


class Record(msgspec.Struct, frozen=True):
    """What is known of one offer. Paths and names are percent-encoded.

    `digest` tells what was offered; `names` has the kinds of what is at the top; `placed` has the
    last name here of each path that has another one than offered, and `made` which directories at
    the top are ours. Times are seconds since 1970, `size` and `bytes_received` bytes.
    """

    offer_id: str
    user: str
    transfer: str
    digest: str
    sender: Peer
    names: dict[str, Kind]
    files: int
    size: int
    state: State
    offered_at: float
    changed_at: float = 0.0
    bytes_received: int = 0
    placed: dict[str, str] = {}
    made: dict[str, DirectoryId] = {}

    @property
    def offer(self) -> Offer:
        """What people and programs see of it."""
        return Offer(
            self.offer_id,
            self.sender,
            tuple(os.fsdecode(parse_path(name)[0]) for name in self.names),
            self.files,
            self.size,
            self.state,
            self.bytes_received,
            self.offered_at,
            tuple(self.names.values()),
            self.changed_at,
        )

    @property
    def places(self) -> dict[Path, bytes]:
        """The last names here of what has another one than offered."""
        return {parse_path(path): parse_path(name)[0] for path, name in self.placed.items()}


class Registry:
    """All offers of one inbox. Close it."""

    def __init__(self, workspace: Workspace) -> None:
        """Read the records. Raises BlockedError where others could write them, OSError."""
        self._directory = workspace.open_own(b'inbox')
        self._records: dict[tuple[str, str], Record] = {}
        try:
            for user in map(os.fsdecode, list_names(self._directory)):
                for name in self._list(user):
                    record = self._read(PurePath(user, name))
                    if record is not None:
                        self._records[record.user, record.transfer] = record
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the directory; a second time does nothing, and nothing can be kept any more."""
        fd, self._directory = self._directory, -1
        if fd != -1:
            os.close(fd)

    def _list(self, user: str) -> list[str]:
        """Return what is in the directory of a user; nothing in what is none."""
        try:
            fd = os.open(user, DIRECTORY_FLAGS, dir_fd=self._directory)
        except NotADirectoryError:
            return []
        try:
            return list(map(os.fsdecode, list_names(fd)))
        finally:
            os.close(fd)

    def _read(self, path: PurePath) -> Record | None:
        """Read a record; remove what is none."""
        if not durable.is_temporary(path.name):
            try:
                record = msgspec.json.decode(self._read_bytes(path), type=Record)
                if (record.user, record.transfer) == path.parts:
                    record.offer, record.places  # noqa: B018  # what is in it can be read
                    return record
                why = 'it is in the wrong place'
            except (msgspec.DecodeError, ValueError, LookupError) as error:
                why = str(error)
            _log.warning('inbox/%s is no record of an offer and is removed: %s', path, why)
        self._remove(path)
        return None

    def _read_bytes(self, path: PurePath) -> bytes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, dir_fd=self._directory), 'rb') as file:
            return file.read()

    def _remove(self, path: PurePath) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path, dir_fd=self._directory)

    def __iter__(self) -> Iterator[Record]:
        """Yield all records, those that were offered first before the others."""
        return iter(sorted(self._records.values(), key=lambda record: record.offered_at))

    def find(self, user: str, transfer: str) -> Record | None:
        """Return the record of a user's transfer, if there is one."""
        return self._records.get((user, transfer))

    def find_id(self, offer_id: str) -> Record:
        """Return the record with this id. Raises UnknownOfferError."""
        for record in self._records.values():
            if record.offer_id == offer_id:
                return record
        raise UnknownOfferError(offer_id)

    def new_id(self) -> str:
        """Return an id that no offer has."""
        taken = {record.offer_id for record in self._records.values()}
        while True:
            offer_id = base64.b32encode(secrets.token_bytes(5)).decode('ascii').lower()
            if offer_id not in taken:
                return offer_id

    def hold(self, record: Record) -> Record:
        """Keep a changed record in memory only, and return it with the time."""
        record = msgspec.structs.replace(record, changed_at=time.time())
        self._records[record.user, record.transfer] = record
        return record

    def has_accepted(self, user: str) -> bool:
        """Tell whether an accepted offer of a user is not done."""
        return any(
            record.user == user and record.state is State.ACCEPTED
            for record in self._records.values()
        )

    def save(self, record: Record) -> Record:
        """Keep a new or changed record and return it, with the time. Raises OSError."""
        record = msgspec.structs.replace(record, changed_at=time.time())
        user = os.fsencode(record.user)
        os.close(open_or_make(os.dup(self._directory), (user,), durable=True))
        path = PurePath(record.user, record.transfer)
        durable.replace(path, msgspec.json.encode(record), dir_fd=self._directory)
        self._records[record.user, record.transfer] = record
        return record

    def note_made(self, record: Record, path: Path, directory: DirectoryId) -> None:
        """Keep that we made the directory at `path`. Raises OSError."""
        made = {**record.made, format_path(path): directory}
        self.save(msgspec.structs.replace(record, made=made))

    def reserve(self, record: Record, is_there: Callable[[Path], bool]) -> Record:
        """Give everything at the top of an offer a name that is free here; return it unkept.

        `is_there` tells whether something is at a path below the root.
        """
        reserved = self._reserved(record)
        taken = reserved | {parse_path(name)[0] for name in record.names}
        tried: dict[bytes, int] = {}
        placed = {}
        for text, kind in record.names.items():
            (name,) = parse_path(text)
            if name not in reserved:
                taken.discard(name)  # nothing else of this offer has it
            free = next(
                free
                for free in free_names(name, kind, tried)
                if free not in taken and not is_there((free,))
            )
            taken |= {name, free}
            if free != name:
                placed[text] = format_path((free,))
        return msgspec.structs.replace(record, placed=placed)

    def move(
        self,
        record: Record,
        path: Path,
        kind: Kind,
        taken: Set[bytes],
        is_there: Callable[[Path], bool],
    ) -> Record:
        """Give `path`, whose last name is taken, one that is free; keep the record. OSError.

        `taken` is what the offer itself has in that directory, there already or not.
        """
        parent = find_place(path[:-1], record.places)
        if len(path) == 1:
            taken = taken | self._reserved(None)
        name = next(
            name
            for name in free_names(path[-1], kind)
            if name not in taken and not is_there((*parent, name))
        )
        placed = {**record.placed, format_path(path): format_path((name,))}
        return self.save(msgspec.structs.replace(record, placed=placed))

    def _reserved(self, but: Record | None) -> set[bytes]:
        """Return the names at the top that accepted offers have, but for one."""
        return {
            parse_path(record.placed.get(name, name))[0]
            for record in self._records.values()
            if record.state is State.ACCEPTED
            if but is None or (record.user, record.transfer) != (but.user, but.transfer)
            for name in record.names
        }

    def forget(self, record: Record) -> None:
        """Forget a record. Raises OSError."""
        self._remove(PurePath(record.user, record.transfer))
        self._records.pop((record.user, record.transfer), None)

    def count_waiting(self, user: str | None = None) -> int:
        """Return how many offers wait for an answer, all or those of one user."""
        return sum(
            record.state is State.WAITING and user in {None, record.user}
            for record in self._records.values()
        )

    def find_expired(self, now: float) -> list[Record]:
        """Return the records to forget: too old, or too many of one user that do not wait."""
        kept: dict[str, int] = {}
        expired = []
        newest_first = sorted(self._records.values(), key=lambda record: -record.changed_at)
        for record in newest_first:
            is_surplus = False
            if record.state is not State.WAITING:
                kept[record.user] = kept.get(record.user, 0) + 1
                is_surplus = kept[record.user] > MAX_OFFERS_OF_USER
            if is_surplus or now - record.changed_at > OFFER_AGE_S:
                expired.append(record)
        return expired
