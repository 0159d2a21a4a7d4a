"""The directory of a device: who it is, and what its node needs. One node at a time holds it.

    <home>/                     mode 0700
        format                  the number of this layout; a newer one is refused
        identity/               keys, certificates and trust: degu_rpc.peers.Identity, TrustStore
        settings.json           what `degu config set` stored
        node.lock               locked by the running node, whose process id is in it
        node.sock               where the node takes local programs
        served/                 sockets of programs that serve behind the node
        node.log                what a node in the background has to say; node.old.log is before
        joining/                an identity that is about to take the place of the one above
        former-<machine id>/    one that this machine gave up, kept whole

1. `Home(directory)` only knows the names.
2. `hold()` makes the directory and is the lock: of two nodes that start at once one gets it, and a
   killed one lets go. `prepare()` refuses what is newer than this program.
3. An identity that joins another user is made in `joining`. Once it is complete, the next
   `prepare()` puts it in place; the one that was here is moved, never removed. A kill between the
   two steps is finished by the `prepare()` after that.

There are no threads; whoever holds the home changes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from degu import durable
from degu.net import parse_address
from degu_rpc.errors import IdentityError, NodeRunningError
from degu_rpc.peers.home import IDENTITY_DIRECTORY, find_config_directory, find_home
from degu_rpc.peers.private import check_private, make_directory, read_private

if TYPE_CHECKING:
    from collections.abc import Iterator

    from degu_rpc.peers import Identity

FORMAT = 1
"""The layout that this program writes."""
MACHINE_FILE = 'machine.pem'
"""The last file of an identity to be written."""
_MAX_PID_LENGTH = 20
_LOCK = struct.Struct('hhqqi4x')
"""A struct flock: type, whence, start, length (0 is all), pid. Source: fcntl(2).

Of an "open file description", like one of flock(2), but whoever looks need not try to get it.
"""


class Home:
    """A home's directory and the names in it."""

    # Set once: all.

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        """Name a home; without a directory, the one of this user. Nothing is touched.

        Where links lead to it, the names are those of the directory itself.

        Raises IdentityError for a DEGU_HOME that is no absolute path.
        """
        self.directory = Path(os.path.abspath(find_home() if directory is None else directory))
        with contextlib.suppress(ValueError):  # a NUL in it, which check_path() refuses
            self.directory = self.directory.resolve()
        self.identity_directory = self.directory / IDENTITY_DIRECTORY
        self.joining_directory = self.directory / 'joining'
        self.socket_path = self.directory / 'node.sock'
        self.served_directory = self.directory / 'served'
        self.log_path = self.directory / 'node.log'
        self.old_log_path = self.directory / 'node.old.log'
        self.settings_path = self.directory / 'settings.json'
        self.config_path = find_config_directory(self.directory) / 'config.toml'
        self._format_path = self.directory / 'format'
        self._lock_path = self.directory / 'node.lock'

    def __repr__(self) -> str:
        return f'Home({str(self.directory)!r})'

    def prepare(self) -> None:
        """Check the layout, and put in place what joined; the home must be held.

        Raises IdentityError where it is not ours alone or of a newer program, OSError.
        """
        try:
            found = read_private(self._format_path)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                durable.write_new(self._format_path, b'%d\n' % FORMAT)
        else:
            self._check_format(found)
        if os.path.lexists(self.joining_directory / MACHINE_FILE):
            self._adopt()

    def check(self) -> None:
        """Check that this program may use the home, and make nothing.

        Raises FileNotFoundError where there is none, and what `prepare` raises.
        """
        self.check_path()
        check_private(self.directory, self.directory.lstat())
        with contextlib.suppress(FileNotFoundError):
            self._check_format(read_private(self._format_path))

    def check_path(self) -> None:
        """Check that the node's socket can be there. Raises IdentityError."""
        try:
            parse_address(str(self.socket_path))
        except ValueError as error:
            raise IdentityError(
                self.directory,
                f'cannot be a home: {error}',
                'give another one with --home or DEGU_HOME',
            ) from None

    def _check_format(self, found: bytes) -> None:
        number = found.strip()
        if not number.isdigit():
            raise IdentityError(
                self._format_path,
                'does not hold the number of a format',
                f'if nothing else changed it, write {FORMAT} into it',
            )
        if int(number) > FORMAT:
            raise IdentityError(
                self.directory,
                f'was written by a newer version (format {int(number)}, this one knows {FORMAT})',
                'install that version here, or give another directory with --home',
            )

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Be the only node of this home, to the end of the block.

        Raises NodeRunningError with the process id of the one there is, IdentityError for a
        directory that is not ours alone or cannot be one, OSError.
        """
        self.check_path()
        make_directory(self.directory)
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
            except BlockingIOError:
                raise NodeRunningError(self.directory, self.find_holder()) from None
            os.ftruncate(fd, 0)
            os.pwrite(fd, b'%d\n' % os.getpid(), 0)
            try:
                yield
            finally:
                os.ftruncate(fd, 0)
        finally:
            os.close(fd)

    def is_held(self) -> bool:
        """Say whether a node holds this home, and keep none from it. Raises OSError."""
        try:
            fd = os.open(self._lock_path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            wanted = _LOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0)
            in_the_way: int = _LOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted))[0]
        finally:
            os.close(fd)
        return in_the_way != fcntl.F_UNLCK

    def find_holder(self) -> int | None:
        """Return the process id of the node that holds this home, None for one not known.

        Of a node that was killed it is the former one's.
        """
        try:
            text = self._lock_path.read_bytes()[:_MAX_PID_LENGTH].strip()
        except FileNotFoundError:
            return None
        return int(text) if text.isdigit() else None

    def open_identity(self) -> Identity:
        """Return the identity of this home, made where there is none.

        Raises what Identity.open() and Identity.create() raise.
        """
        from degu_rpc.peers import Identity

        try:
            return Identity.open(self.identity_directory)
        except FileNotFoundError as error:
            if error.errno != errno.ENOENT or error.filename != str(self.identity_directory):
                raise
        return Identity.create(self.identity_directory)

    def find_former(self, machine_id: str) -> Path:
        """Return where the identity of a machine is kept that this one was before it joined."""
        return self.directory / f'former-{machine_id}'

    def _adopt(self) -> None:
        """Put the identity that joined in the place of the one that is here, which is kept."""
        from degu_rpc.peers import Identity

        with contextlib.suppress(FileNotFoundError):
            former = Identity.open(self.identity_directory)
            self.identity_directory.rename(self.find_former(former.machine_id))
        self.joining_directory.rename(self.identity_directory)
        durable.sync_directory(self.directory)
