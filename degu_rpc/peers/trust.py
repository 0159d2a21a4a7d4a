"""Whom I trust: one file a user, and a tombstone for each who was removed.

A directory `peers` of mode 0700 beside the identity, with files of mode 0600:

    <user id>.json           the CA certificate, our name and roles for the user, the machines that
                             we know of and those that are denied, when and how the user came here
    <user id>.removed.<epoch>.json
                             the user was removed; it outweighs each record that is not newer

1. Each change is made under a lock that all processes respect, and is one file that appears whole
   or not at all. Removal writes the tombstone first.
2. `users` is what everybody asks, once a request: a look at the time of the directory, and no more
   while nothing has changed. It returns the same mapping then, so that "has trust changed" is `is`.
3. `server_sslctx` and `client_sslctx` make TLS contexts from that, and from the machine's
   certificate as it is by then.

Records and tombstones are counted, by `epoch`, and not compared by clocks: a backup or another
machine that brings an old record back does not bring the user back. Only `revive` does, and that is
for a person who has just decided it. A file that cannot be used is logged and trusts nobody.

Threads: any may call anything. `_lock` guards what was read last and the contexts made from it; the
lock on the directory guards the files. What this does not do: tell other machines.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import ssl
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec

from degu import durable, pki
from degu.tls import build_client_sslctx, build_server_sslctx
from degu_rpc.errors import (
    IdentityError,
    RemovedUserError,
    TrustError,
    UnknownUserError,
)
from degu_rpc.peers.caller import OWNER, PEER, TrustedUser, check_given_roles
from degu_rpc.peers.clock import format_time, read_clock
from degu_rpc.peers.identity import TRUST_DIRECTORY, Identity
from degu_rpc.peers.limits import (
    MAX_DENIED,
    MAX_MACHINES,
    MAX_NAME_LENGTH,
    MAX_RECORD_SIZE,
    MAX_ROLES,
    MAX_USERS,
    ROTATION_PERIOD_S,
)
from degu_rpc.peers.names import check_name, check_new_name
from degu_rpc.peers.private import check_private, locked, make_directory, read_private

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

OWN_NAME = 'me'
"""What my own user is called."""
_RECORD = '.json'
_RECORD_NAME = re.compile(rf'{pki.ID_PATTERN}\.json')
_TOMBSTONE_NAME = re.compile(rf'({pki.ID_PATTERN})\.removed\.([0-9]{{1,15}})\.json')
_REMEDY = 'restore it from a backup, or remove the file and pair again'

# A second change right after one that was read may leave the directory's time as it was: file
# systems count in ticks of up to 10 ms.
_SETTLED_NS = 50_000_000
# A file that is written in place leaves it as it was, too.
_LOOK_S = 1.0

_ROTATION_PERIOD = timedelta(seconds=ROTATION_PERIOD_S)

_log = logging.getLogger('degu_rpc.peers')

_Id = Annotated[str, msgspec.Meta(pattern=rf'\A{pki.ID_PATTERN}\Z')]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_LENGTH)]


class _Successor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The id that a machine of mine has after a change of its key, and when it got it."""

    machine_id: _Id
    since: datetime


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of <user id>.json."""

    version: Literal[1]
    user_id: _Id
    ca_cert: str
    name: _Name
    roles: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=MAX_ROLES)]
    machines: Annotated[dict[_Id, _Name], msgspec.Meta(max_length=MAX_MACHINES)]
    denied: Annotated[tuple[_Id, ...], msgspec.Meta(max_length=MAX_DENIED)]
    successors: Annotated[dict[_Id, _Successor], msgspec.Meta(max_length=MAX_MACHINES)]
    added_at: str
    added_how: str
    epoch: int


class _Tombstone(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of <user id>.removed.<epoch>.json."""

    version: Literal[1]
    user_id: _Id
    name: _Name
    removed_at: str
    epoch: int


_T = TypeVar('_T', _Record, _Tombstone)


class Former(NamedTuple):
    """What was kept about a user before a change, None for nothing that counted."""

    user_id: str
    record: _Record | None


class _State(NamedTuple):
    """What was read, when the directory had this time."""

    stamp: tuple[int, ...]
    is_settled: bool
    look_at: float
    """When the files are to be looked at, whatever the stamp says: time.monotonic()."""
    files: object
    users: Mapping[str, TrustedUser]


class TrustStore:
    """Whom this machine trusts; see the module."""

    # Set once: identity, directory. Guarded by _lock: _state, _contexts, _contexts_of.

    def __init__(self, identity: Identity) -> None:
        """Use the store beside an identity; it is made where it is missing.

        Raises IdentityError where others could get at it, OSError.
        """
        self.directory = identity.directory / TRUST_DIRECTORY
        make_directory(self.directory)
        self.identity = identity
        self._lock = threading.Lock()
        self._state = _State((), False, 0.0, None, MappingProxyType({}))
        self._contexts: dict[object, ssl.SSLContext] = {}
        self._contexts_of: tuple[object, ...] = ()

    def users(self) -> Mapping[str, TrustedUser]:
        """Return whom we trust, by user id: my own user always, unless its file is broken.

        It is the same mapping as before if nothing has changed. Raises OSError, and IdentityError
        where others could get at the store.
        """
        state = self._state
        if (
            state.is_settled
            and time.monotonic() < state.look_at
            and state.stamp == _stamp(self.directory)
        ):
            return state.users
        with self._lock:
            # Before the files: a change meanwhile is one more reason to read them again.
            stamp = _stamp(self.directory)
            check_private(self.directory, os.stat(self.directory))
            is_settled = abs(time.time_ns() - stamp[0]) > _SETTLED_NS
            look_at = time.monotonic() + _LOOK_S
            files = _look_at_files(self.directory)
            users = self._state.users
            if not is_settled or files != self._state.files:
                loaded: Mapping[str, TrustedUser] = MappingProxyType(self._load())
                users = users if loaded == users else loaded
            self._state = _State(stamp, is_settled, look_at, files, users)
            return users

    def _load(self) -> dict[str, TrustedUser]:
        own = self.identity
        me = TrustedUser(own.user_id, own.user_cert, OWN_NAME, frozenset({OWNER}))
        users = {own.user_id: me}
        epochs = self._read_removed_epochs()
        for user_id in self._list_users():
            try:
                record = self._read_record(user_id, epochs)
                if record is None:
                    continue
                users[user_id] = _build_user(record, own.user_id)
            except (TrustError, IdentityError) as error:
                # My own user's too: without its file nobody knows which machines are denied.
                users.pop(user_id, None)
                _log.error('%s; until then that user is not trusted', error)
        return users

    def _list_users(self) -> list[str]:
        names = sorted(os.listdir(self.directory))
        return [name[: -len(_RECORD)] for name in names if _RECORD_NAME.fullmatch(name)]

    def _path(self, user_id: str) -> Path:
        pki.check_id(user_id)  # before it is part of a path
        return self.directory / f'{user_id}{_RECORD}'

    def _tombstone_path(self, user_id: str, epoch: int) -> Path:
        return self.directory / f'{user_id}.removed.{epoch}{_RECORD}'

    def _read_record(self, user_id: str, epochs: Mapping[str, int]) -> _Record | None:
        """Return the record of a user, None if there is none that counts."""
        record = _read(self._path(user_id), _Record)
        if record is None:
            return None
        if record.user_id != user_id:
            raise TrustError(user_id, f'its file is about {record.user_id}', _REMEDY)
        return record if record.epoch > epochs.get(user_id, 0) else None

    def _read_removed_epochs(self) -> dict[str, int]:
        """Return the epoch of each removed user's last tombstone.

        It stands in the name, so that no older tombstone of a backup can take its place.
        """
        epochs: dict[str, int] = {}
        for match in map(_TOMBSTONE_NAME.fullmatch, os.listdir(self.directory)):
            if match:
                epochs[match[1]] = max(epochs.get(match[1], 0), int(match[2]))
        return epochs

    def add(
        self,
        user_cert: bytes,
        name: str,
        roles: Collection[str] = (PEER,),
        *,
        how: str = 'by hand',
        machines: Mapping[str, str] = MappingProxyType({}),
        revive: bool = False,
        now: datetime | None = None,
    ) -> None:
        """Trust a user, or change what we call a trusted one and what roles they have.

        *user_cert* is DER; *how* says how it came here; *machines* are names by machine id, and are
        added to those that are known. What is denied stays denied. A user who was removed comes
        back with *revive* only.

        Raises pki.CertificateError for the certificate, ValueError or TypeError for another
        argument, RemovedUserError, TrustError for too many users or a file that cannot be used,
        IdentityError for one that is not private, OSError.
        """
        user_id = pki.parse_user_cert(user_cert)
        if user_id == self.identity.user_id:
            raise ValueError('my own user is trusted by itself; add_machine() names a machine')
        given = check_given_roles(roles)
        for new in (name, *machines.values()):
            check_new_name(new)
        with locked(self.directory):
            epochs = self._read_removed_epochs()
            removed = epochs.get(user_id, 0)
            record = self._read_record(user_id, epochs)
            if record is None and removed and not revive:
                tombstone = _read(self._tombstone_path(user_id, removed), _Tombstone)
                assert tombstone is not None  # nobody else changes anything now
                raise RemovedUserError(user_id, tombstone.name, tombstone.removed_at)
            if record is None and len(self._list_users()) >= MAX_USERS:
                raise TrustError(user_id, f'is one more than {MAX_USERS} users', 'remove one first')
            self._write(
                _Record(
                    version=1,
                    user_id=user_id,
                    ca_cert=pki.format_cert_pem(user_cert).decode('ascii'),
                    name=name,
                    roles=tuple(sorted(given)),
                    machines={**(record.machines if record else {}), **machines},
                    denied=record.denied if record else (),
                    successors={},
                    added_at=format_time(now),
                    added_how=how,
                    epoch=1 + removed,
                )
            )

    def remove(self, user_id: str, now: datetime | None = None) -> None:
        """Trust a user no longer; their next request fails, on an open connection too.

        Raises UnknownUserError, ValueError for my own user, OSError.
        """
        if user_id == self.identity.user_id:
            raise ValueError('my own user cannot be removed; deny() keeps a machine out')
        with locked(self.directory):
            record = self._read_record(user_id, self._read_removed_epochs())
            if record is None:
                raise UnknownUserError(user_id)
            tombstone = _Tombstone(
                version=1,
                user_id=user_id,
                name=record.name,
                removed_at=format_time(now),
                epoch=record.epoch,
            )
            durable.replace(self._tombstone_path(user_id, record.epoch), _format(tombstone))
            self._path(user_id).unlink()
            durable.sync_directory(self.directory)

    def remember(self, user_id: str) -> Former:
        """Return what is kept about a user, for `put_back`. Raises as `deny` does."""
        return Former(user_id, self._read_record(user_id, self._read_removed_epochs()))

    def put_back(self, former: Former) -> None:
        """Take a change back, however far it came: what was remembered is there again.

        What was denied since then stays denied, and which id a machine has now is not forgotten.
        Raises as `deny` does.
        """
        user_id, record = former
        with locked(self.directory):
            current = self._read_record(user_id, self._read_removed_epochs())
            if record is None and current is not None and user_id == self.identity.user_id:
                # Without its file each machine of my own user would be trusted again.
                keeps = bool(current.denied or current.successors)
                record = self._build_own_record() if keeps else None
            if record is None:
                self._path(user_id).unlink(missing_ok=True)
                durable.sync_directory(self.directory)
            elif current is not None:
                record = msgspec.structs.replace(
                    record, denied=current.denied, successors=current.successors
                )
                if record != current:  # or a full disk would be in the way of nothing
                    self._write(record)

    def add_machine(self, user_id: str, machine_id: str, name: str) -> None:
        """Remember a machine of a trusted user, mine included, by a name.

        Raises ValueError for the id or the name, and as `deny` does.
        """
        check_new_name(name)
        self._change(user_id, lambda old: {'machines': {**old.machines, machine_id: name}})

    def deny(self, user_id: str, machine_id: str) -> None:
        """Keep one machine of a trusted user out, mine included, and what it became by `succeed`.

        Raises UnknownUserError, ValueError for the id, TrustError for too many or a file that
        cannot be used, IdentityError for one that is not private, OSError.
        """

        def change(old: _Record) -> dict[str, Any]:
            denied = {*old.denied, machine_id}
            successor = old.successors.get(machine_id)
            while successor is not None and successor.machine_id not in denied:
                denied.add(successor.machine_id)
                successor = old.successors.get(successor.machine_id)
            return {'denied': tuple(sorted(denied))}

        self._change(user_id, change)

    def retire(self, machine_id: str) -> None:
        """Keep a former id of a machine of mine out, and not what it became.

        Raises as `deny` does.
        """
        user_id = self.identity.user_id
        self._change(user_id, lambda old: {'denied': tuple(sorted({*old.denied, machine_id}))})

    def succeed(self, former_id: str, machine_id: str, now: datetime | None = None) -> None:
        """Remember that a machine of mine has another id from now on.

        Whoever denies the former one then denies both. A machine changes its id once in
        ROTATION_PERIOD_S, so that nobody has ids to spare.

        Raises TrustError where that is too soon, and as `deny` does.
        """
        at = read_clock(now)

        def change(old: _Record) -> dict[str, Any]:
            kept = {
                each: successor
                for each, successor in old.successors.items()
                if at - successor.since < pki.MACHINE_LIFETIME
            }
            since = [
                successor.since
                for each, successor in kept.items()
                if former_id in (each, successor.machine_id)
            ]
            if since and at - max(since) < _ROTATION_PERIOD:
                raise TrustError(
                    old.user_id,
                    f'machine {former_id} changed its key at {format_time(max(since))}',
                    f'wait until {ROTATION_PERIOD_S / 3600:.0f} hours have passed',
                )
            successor = _Successor(machine_id, at)
            machines = dict(old.machines)
            if former_id in machines:
                machines[machine_id] = machines[former_id]
            return {'successors': {**kept, former_id: successor}, 'machines': machines}

        self._change(self.identity.user_id, change)

    def allow(self, user_id: str, machine_id: str) -> None:
        """Let a machine in again that was denied. Raises as `deny` does."""
        self._change(
            user_id, lambda old: {'denied': tuple(x for x in old.denied if x != machine_id)}
        )

    def _change(self, user_id: str, change: Callable[[_Record], dict[str, Any]]) -> None:
        with locked(self.directory):
            record = self._read_record(user_id, self._read_removed_epochs())
            if record is None:
                if user_id != self.identity.user_id:
                    raise UnknownUserError(user_id)
                record = self._build_own_record()
            self._write(msgspec.structs.replace(record, **change(record)))

    def _build_own_record(self) -> _Record:
        own = self.identity
        return _Record(
            version=1,
            user_id=own.user_id,
            ca_cert=pki.format_cert_pem(own.user_cert).decode('ascii'),
            name=OWN_NAME,
            roles=(),
            machines={},
            denied=(),
            successors={},
            added_at='',
            added_how='self',
            epoch=1,
        )

    def _write(self, record: _Record) -> None:
        """Write a record that obeys its own rules.

        Raises ValueError for one that does not, TrustError for one with too much in it.
        """
        for what, found, limit in (
            ('denied machines', record.denied, MAX_DENIED),
            ('machines with a name', record.machines, MAX_MACHINES),
        ):
            if len(found) > limit:
                raise TrustError(
                    record.user_id,
                    f'would have more than {limit} {what}',
                    'allow one that is gone, or remove the user',
                )
        content = _format(record)
        try:
            msgspec.json.decode(content, type=_Record)
        except msgspec.ValidationError as error:
            raise ValueError(f'this cannot be kept about a user: {error}') from None
        for text in (record.name, *record.roles, *record.machines.values()):
            check_name(text)
        if len(content) > MAX_RECORD_SIZE:
            raise ValueError(f'the file about a user would have {len(content)} bytes')
        durable.replace(self._path(record.user_id), content)

    def server_sslctx(self) -> ssl.SSLContext:
        """Return the context of a server: what `SSLServer` takes, and calls for each connection.

        Raises OSError and ssl.SSLError where the files of the identity cannot be used.
        """
        return self._build_context(build_server_sslctx, {})

    def client_sslctx(self) -> ssl.SSLContext:
        """Return the context of a client, for a `MachineClient`: TLS alone does not say which
        machine it is. Raises as `server_sslctx` does.
        """
        return self._build_context(build_client_sslctx, {'check_hostname': False})

    def _build_context(
        self, build: Callable[[dict[str, Any]], ssl.SSLContext], options: dict[str, Any]
    ) -> ssl.SSLContext:
        users = self.users()
        path = self.identity.machine_file
        with self._lock:
            while True:
                source = (users, _stamp(path))
                if source != self._contexts_of:
                    self._contexts, self._contexts_of = {}, source
                if build not in self._contexts:
                    pem = [pki.format_cert_pem(user.ca_cert).decode() for user in users.values()]
                    config = {
                        'cert_file': str(path),
                        'key_file': str(path),
                        'ca_data': ''.join(pem),
                        **options,
                    }
                    try:
                        self._contexts[build] = build(config)
                    except ssl.SSLError:
                        if _stamp(path) == source[1]:
                            raise
                        continue  # it was replaced between its two readings
                return self._contexts[build]


def _build_user(record: _Record, own_user_id: str) -> TrustedUser:
    try:
        ca_cert = pki.parse_cert_pem(record.ca_cert.encode())
        found = pki.parse_user_cert(ca_cert)
    except pki.CertificateError as error:
        raise TrustError(record.user_id, f'its certificate is broken: {error}', _REMEDY) from error
    if found != record.user_id:
        raise TrustError(record.user_id, f'its certificate is of {found}', _REMEDY)
    return TrustedUser(
        record.user_id,
        ca_cert,
        record.name,
        frozenset({OWNER} if record.user_id == own_user_id else set(record.roles) - {OWNER}),
        MappingProxyType(record.machines),
        frozenset(record.denied),
        record.added_at,
        record.added_how,
    )


def _read(path: Path, kind: type[_T]) -> _T | None:
    user_id = path.name.partition('.')[0]
    try:
        return msgspec.json.decode(read_private(path), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:  # of which ValidationError is one
        raise TrustError(user_id, f'{path} cannot be read: {error}', _REMEDY) from error


def _format(content: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content)) + b'\n'


def _look_at_files(directory: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Return what tells of a file that was written in place, which the directory does not."""
    found = []
    for name in sorted(os.listdir(directory)):
        with contextlib.suppress(FileNotFoundError):
            found.append((name, _stamp(directory / name)))
    return found


def _stamp(path: Path) -> tuple[int, ...]:
    found = os.lstat(path)
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev, found.st_size)
