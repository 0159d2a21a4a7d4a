"""What a machine knows of one folder: a database outside the folder, its whole API on this page.

    meta      who writes, and the number of the last change; the format is the user_version
    machine   each other machine: who writes there, and how far each of us has heard the other
    entry     what each machine has at each path, deletions included; machine 0 is this one
    seen      what lstat said of a file when its content was last read
    manifest  the leaves of contents, by their roots

1. Each change of this machine gets the next sequence number. A machine asks for what comes after
   the one it has heard last, and gets the changes in their order: what was changed twice is sent
   once, as it is now.
2. What is in one call is in the database whole or not at all, and survives a power cut. A call that
   fails changes nothing.
3. The database may be lost. A new one has a new writer, so no counter is used twice; others then
   ask from the beginning. So they do when ours was restored from a backup: somebody has heard more
   than it has, and `begin_anew()` makes it a new one.

An Index may be used by many threads; one at a time is in it. One process has it open.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from degu_rpc.errors import FolderError, NoSpaceError
from degu_rpc.files.blocks import Manifest
from degu_rpc.files.content import Signature
from degu_rpc.files.paths import Path
from degu_rpc.sync.resolve import Version

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

FORMAT = 1
HERE = 0
"""The number of this machine."""

_SCHEMA = """
CREATE TABLE meta (writer TEXT NOT NULL, sequence INTEGER NOT NULL) STRICT;
CREATE TABLE machine (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, writer TEXT NOT NULL,
    heard INTEGER NOT NULL, told INTEGER NOT NULL
) STRICT;
CREATE TABLE entry (
    machine INTEGER NOT NULL, path BLOB NOT NULL, sequence INTEGER NOT NULL, version BLOB NOT NULL,
    PRIMARY KEY (machine, path)
) STRICT, WITHOUT ROWID;
CREATE INDEX entry_sequence ON entry (machine, sequence);
CREATE TABLE seen (path BLOB PRIMARY KEY, signature BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE manifest (
    root TEXT PRIMARY KEY, size INTEGER NOT NULL, block_size INTEGER NOT NULL, leaves BLOB NOT NULL
) STRICT, WITHOUT ROWID;
"""

_DELETE = 'it may be deleted: everything is read again then, and nothing is lost'
_PROBLEMS = {
    'SQLITE_BUSY': ('is open in another process', 'end that one first'),
    'SQLITE_NOTADB': ('is no database', _DELETE),
    'SQLITE_CORRUPT': ('is damaged', _DELETE),
}

_encode = msgspec.msgpack.Encoder().encode
_decode_version = msgspec.msgpack.Decoder(Version).decode
_decode_signature = msgspec.msgpack.Decoder(Signature).decode


class Change(NamedTuple):
    """What a machine has at a path since a change of it, and the number of that change."""

    sequence: int
    path: Path
    version: Version


class Heard(NamedTuple):
    """Who writes at another machine; up to which change we have heard it, and it has heard us."""

    writer: str
    heard: int
    told: int


class Index:
    """The database of one folder. Close it, or use it with `with`. See the module.

    Every method raises NoSpaceError when the disk is full, FolderError for what else is wrong with
    the database.
    """

    # Set once: _path, _database. Guarded by self._lock: what is in the database, and `_writer`.

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the database, or make it; its directory is there.

        Raises FolderError for one that another process has open, that a newer program wrote, or
        that is none.
        """
        self._path = path
        self._lock = threading.Lock()
        with self._explaining():
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._database.close()
                raise

    def _prepare(self) -> None:
        (found,) = self._database.execute('PRAGMA user_version').fetchone()
        if found > FORMAT:
            raise FolderError(
                self._path,
                f'a newer version wrote it (format {found}, this one knows {FORMAT})',
                'update this program',
            )
        # Exclusive: two writers would both count. FULL: what was told to others must not be lost.
        for pragma in ('locking_mode=EXCLUSIVE', 'journal_mode=WAL', 'synchronous=FULL'):
            self._database.execute(f'PRAGMA {pragma}')
        with self._writing():
            if not found:
                for statement in _SCHEMA.split(';'):
                    self._database.execute(statement)
                self._database.execute('INSERT INTO meta VALUES (?, 0)', (_new_writer(),))
                self._database.execute(f'PRAGMA user_version={FORMAT}')

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- this machine ---------------------------------------------------------------------------

    @property
    def writer(self) -> str:
        """Who makes the changes of this machine, in vectors."""
        with self._reading():
            return str(self._one('SELECT writer FROM meta')[0])

    @property
    def sequence(self) -> int:
        """The number of the last change of this machine."""
        with self._reading():
            return int(self._one('SELECT sequence FROM meta')[0])

    def begin_anew(self) -> str:
        """Become a new writer, as after a restored backup, and return it; nothing is forgotten."""
        writer = _new_writer()
        with self._writing():
            self._database.execute('UPDATE meta SET writer = ?', (writer,))
        return writer

    def change(self, changes: Iterable[tuple[Path, Version]]) -> int:
        """Have these versions at these paths, each a change of its own; return the last number."""
        with self._writing():
            (last,) = self._one('SELECT sequence FROM meta')
            for path, version in changes:
                last += 1
                self._put(HERE, Change(last, path, version))
            self._database.execute('UPDATE meta SET sequence = ?', (last,))
            return int(last)

    def tree(self, machine: int = HERE) -> Mapping[Path, Version]:
        """Return what a machine has, read from the database as it is looked at."""
        return _Tree(self, machine)

    def find_version(self, machine: int, path: Path) -> Version | None:
        """Return what a machine has at a path; None where it never had anything."""
        with self._reading():
            select = 'SELECT version FROM entry WHERE machine = ? AND path = ?'
            row = self._one(select, machine, _join(path))
            return _decode_version(row[0]) if row else None

    def list_paths(self, machine: int) -> list[Path]:
        """Return all paths where a machine has, or had, something."""
        with self._reading():
            rows = self._database.execute('SELECT path FROM entry WHERE machine = ?', (machine,))
            return [_split(path) for (path,) in rows]

    def read_changes(self, after: int, limit: int) -> list[Change]:
        """Return up to `limit` changes of this machine that come after one, in their order."""
        with self._reading():
            rows = self._database.execute(
                'SELECT sequence, path, version FROM entry WHERE machine = ? AND sequence > ?'
                ' ORDER BY sequence LIMIT ?',
                (HERE, after, limit),
            )
            return [
                Change(number, _split(path), _decode_version(data)) for number, path, data in rows
            ]

    # --- the others -----------------------------------------------------------------------------

    def machines(self) -> dict[str, int]:
        """Return the numbers of the other machines, by their ids."""
        with self._reading():
            return dict(self._database.execute('SELECT id, number FROM machine ORDER BY number'))

    def heard(self, machine_id: str) -> Heard:
        """Return how far a machine was heard; of one that never was, nothing by nobody."""
        with self._reading():
            row = self._one('SELECT writer, heard, told FROM machine WHERE id = ?', machine_id)
            return Heard(*row) if row else Heard('', 0, 0)

    def hear(self, machine_id: str, writer: str, changes: Iterable[Change], up_to: int) -> None:
        """Take in changes of a machine: all up to one that come after the last one heard.

        Where another writer wrote before, what it had is forgotten first: that was told anew.
        """
        with self._writing():
            row = self._one('SELECT number, writer FROM machine WHERE id = ?', machine_id)
            if row is None:
                add = 'INSERT INTO machine (id, writer, heard, told) VALUES (?, ?, 0, 0)'
                self._database.execute(add, (machine_id, writer))
                (number,) = self._one('SELECT last_insert_rowid()')
            else:
                number, former = row
                if former != writer:
                    self._database.execute('DELETE FROM entry WHERE machine = ?', (number,))
            for change in changes:
                self._put(number, change)
            update = 'UPDATE machine SET writer = ?, heard = ? WHERE number = ?'
            self._database.execute(update, (writer, up_to, number))

    def note_told(self, machine_id: str, up_to: int) -> None:
        """Remember that a machine has heard our changes up to one. Of an unknown one: nothing."""
        with self._writing():
            self._database.execute('UPDATE machine SET told = ? WHERE id = ?', (up_to, machine_id))

    def forget(self, machine_id: str) -> None:
        """Forget a machine, and what it has."""
        with self._writing():
            self._database.execute(
                'DELETE FROM entry WHERE machine = (SELECT number FROM machine WHERE id = ?)',
                (machine_id,),
            )
            self._database.execute('DELETE FROM machine WHERE id = ?', (machine_id,))

    # --- contents -------------------------------------------------------------------------------

    def find_seen(self, path: Path) -> Signature | None:
        """Return what lstat said of a file when its content was last read."""
        with self._reading():
            row = self._one('SELECT signature FROM seen WHERE path = ?', _join(path))
            return _decode_signature(row[0]) if row else None

    def note_seen(self, found: Iterable[tuple[Path, Signature | None]]) -> None:
        """Remember what lstat said of files whose content was read; None where none is any more."""
        with self._writing():
            for path, signature in found:
                if signature is None:
                    self._database.execute('DELETE FROM seen WHERE path = ?', (_join(path),))
                else:
                    self._database.execute(
                        'INSERT OR REPLACE INTO seen VALUES (?, ?)',
                        (_join(path), _encode(signature)),
                    )

    def find_manifest(self, root: str) -> Manifest | None:
        """Return the manifest of a content that was kept."""
        with self._reading():
            row = self._one('SELECT size, block_size, leaves FROM manifest WHERE root = ?', root)
            return Manifest(*row) if row else None

    def keep_manifests(self, manifests: Iterable[Manifest]) -> None:
        """Keep the manifests of contents."""
        with self._writing():
            for manifest in manifests:
                self._database.execute(
                    'INSERT OR IGNORE INTO manifest VALUES (?, ?, ?, ?)', (manifest.root, *manifest)
                )

    # --- with the lock held ---------------------------------------------------------------------

    def _one(self, statement: str, *values: object) -> Any:
        return self._database.execute(statement, values).fetchone()

    def _put(self, machine: int, change: Change) -> None:
        self._database.execute(
            'INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?)',
            (machine, _join(change.path), change.sequence, _encode(change.version)),
        )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._explaining(), self._lock:
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._explaining(), self._lock:
            self._database.execute('BEGIN IMMEDIATE')
            try:
                yield
                self._database.execute('COMMIT')
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute('ROLLBACK')
                raise

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            name = error.sqlite_errorname if hasattr(error, 'sqlite_errorname') else ''
            if name == 'SQLITE_FULL':
                raise NoSpaceError(str(self._path), why=str(error)) from error
            problem, remedy = _PROBLEMS.get(name, (f'cannot be used: {error}', _DELETE))
            raise FolderError(self._path, problem, remedy) from error


class _Tree(Mapping[Path, Version]):
    """What a machine has, read when it is looked at."""

    def __init__(self, index: Index, machine: int) -> None:
        self._index = index
        self._machine = machine

    def __getitem__(self, path: Path) -> Version:
        version = self._index.find_version(self._machine, path)
        if version is None:
            raise KeyError(path)
        return version

    def __iter__(self) -> Iterator[Path]:
        return iter(self._index.list_paths(self._machine))

    def __len__(self) -> int:
        return len(self._index.list_paths(self._machine))


def _join(path: Path) -> bytes:
    return b'/'.join(path)


def _split(data: bytes) -> Path:
    return tuple(data.split(b'/')) if data else ()


def _new_writer() -> str:
    return secrets.token_hex(8)
