"""Bring the content of one file into a temporary file: verified, and not asked for twice.

1. A small file comes in one answer, with its root. If the file that is here has the same bytes,
   only its mode and time are set.
2. For a larger one the share is asked for its root (it may have to hash), then for the manifest.
3. What an earlier run left in the temporary file is hashed; blocks that match are kept. The missing
   runs of blocks are asked for by content, and each block is checked before it is written.
4. A file that changes at the source is begun again, with its new root. A block that does not match
   although the file has not changed is an IntegrityError.

A Receiver belongs to one thread.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from degu_rpc.errors import (
    ContentChangedError,
    IntegrityError,
    ListingError,
    PathError,
    ShareRefusedError,
)
from degu_rpc.files.blocks import SMALL_SIZE, Manifest, is_root
from degu_rpc.files.commit import Replacement, Workspace
from degu_rpc.files.content import hash_file
from degu_rpc.files.limits import FETCH_ATTEMPTS
from degu_rpc.files.listing import Kind, Problem
from degu_rpc.files.paths import Path, Root, format_path
from degu_rpc.files.remote import Remote, StaleError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    from degu_rpc.files.plan import File

    class Moved(Protocol):
        """Called with the size in bytes of each piece that is done, and whether it was fetched."""

        def __call__(self, size: int, *, fetched: bool) -> None:
            """Count it. What this raises ends the transfer: this is where a cancel comes in."""

    class Reserve(Protocol):
        """Called with the size in bytes of what was not planned, before it is written."""

        def __call__(self, size: int) -> None:
            """Take it from what is free. Raises NoSpaceError."""


class Receiver:
    """Brings one file after the other from one remote into one workspace."""

    def __init__(
        self, remote: Remote, root: Root, workspace: Workspace, moved: Moved, reserve: Reserve
    ) -> None:
        """Remember where from, where to, whom to tell, and whom to ask for more room."""
        self._remote = remote
        self._root = root
        self._workspace = workspace
        self._moved = moved
        self._reserve = reserve
        self._written = 0

    def receive(self, file: File) -> Replacement | Problem | None:
        """Bring `file` and return what to commit; None if it is here, a Problem if it cannot come.

        Raises IntegrityError, ListingError, ShareRefusedError, NoSpaceError, DeguError, OSError.
        """
        if file.entry.size <= SMALL_SIZE:
            try:
                return self._receive_small(file)
            except StaleError:
                pass  # gone, or grown: look again
            except ShareRefusedError as refusal:
                if refusal.status == 403:
                    return Problem.UNREADABLE
                raise
        return self._receive_large(file)

    def _receive_small(self, file: File) -> Replacement | None:
        content, root, mtime_ns = self._remote.read_small(file.source, SMALL_SIZE)
        self._moved(len(content), fetched=True)
        entry = file.entry
        if self._is_here(file, len(content), root):
            self._workspace.set_metadata(file.target, entry.mode, mtime_ns)
            return None
        self._reserve(max(len(content) - entry.size, 0))
        temporary = self._workspace.open_temporary(root)
        try:
            _write(temporary.fd, content, 0)
            os.ftruncate(temporary.fd, len(content))
        except BaseException:
            os.close(temporary.fd)
            raise
        return Replacement(temporary, file.target, len(content), entry.mode, mtime_ns, file.local)

    def _receive_large(self, file: File) -> Replacement | Problem | None:
        reserved, root = file.entry.size, ''
        self._written = 0
        for _ in range(FETCH_ATTEMPTS):
            try:
                entry = self._remote.list_file(file.source)
            except StaleError:
                return Problem.VANISHED
            if entry.kind is not Kind.FILE:
                return entry.problem or Problem.VANISHED
            if not is_root(entry.root):
                raise ListingError(f'{format_path(file.source)} comes without the root asked for')
            if entry.root != root:
                # What is begun stays, for a later run: another content takes room besides it.
                more = max(self._written + entry.size - reserved, 0)
                self._reserve(more)
                reserved, root = reserved + more, entry.root
            try:
                return self._receive_content(file._replace(entry=entry))
            except StaleError:
                continue
            except IntegrityError:
                # It may have changed while it was sent; then its root is another one now.
                self._remote.close()
                if self._root_now(file.source) == entry.root:
                    raise
        return Problem.CHANGING

    def _root_now(self, path: Path) -> str:
        try:
            return self._remote.list_file(path).root
        except StaleError:
            return ''

    def _receive_content(self, file: File) -> Replacement | None:
        """Bring the content `file.entry.root`. Raises StaleError when the share has it no more."""
        entry = file.entry
        manifest = self._remote.read_manifest(file.source, entry.root, entry.size)
        if self._is_here(file, entry.size, entry.root):
            self._workspace.set_metadata(file.target, entry.mode, entry.mtime_ns)
            self._moved(entry.size, fetched=False)
            return None
        temporary = self._workspace.open_temporary(entry.root)
        try:
            buffer = memoryview(bytearray(min(manifest.block_size, manifest.size)))
            missing = []
            for index in range(manifest.block_count):
                start, stop = manifest.block_range(index)
                if _read(temporary.fd, buffer, start, stop) and manifest.matches(
                    index, buffer[: stop - start]
                ):
                    self._moved(stop - start, fetched=False)
                else:
                    missing.append(index)
            for first, last in find_runs(missing):
                self._receive_run(file, manifest, first, last, temporary.fd, buffer)
            os.ftruncate(temporary.fd, manifest.size)
        except BaseException:
            os.close(temporary.fd)
            raise
        return Replacement(
            temporary, file.target, entry.size, entry.mode, entry.mtime_ns, file.local
        )

    def _receive_run(
        self, file: File, manifest: Manifest, first: int, last: int, fd: int, buffer: memoryview
    ) -> None:
        """Bring the blocks `first` to `last`, both included, and write each that is right."""
        begin, end = manifest.block_range(first)[0], manifest.block_range(last)[1]
        body = self._remote.open_data(file.source, file.entry.root, begin, end)
        for index in range(first, last + 1):
            start, stop = manifest.block_range(index)
            block = buffer[: stop - start]
            body.readinto(block)
            if not manifest.matches(index, block):
                raise IntegrityError(
                    format_path(file.source), index, 'the bytes do not match the manifest'
                )
            _write(fd, block, start)
            self._written += len(block)
            self._moved(stop - start, fetched=True)

    def _is_here(self, file: File, size: int, root: str) -> bool:
        """Tell whether what is at the final name has this content. Only an equal size is read."""
        if file.local is None or file.local.size != size:
            return False
        try:
            fd = self._root.open_file(file.target)
        except (PathError, FileNotFoundError, PermissionError):
            return False  # no regular file, or none that can be read
        try:
            return hash_file(fd, file.target)[1].root == root
        except ContentChangedError:
            return False
        finally:
            os.close(fd)


def find_runs(indexes: Iterable[int]) -> list[tuple[int, int]]:
    """Return the runs (first, last) in ascending numbers.

    >>> find_runs([0, 1, 2, 5, 7, 8])
    [(0, 2), (5, 5), (7, 8)]
    """
    runs: list[tuple[int, int]] = []
    for index in indexes:
        if runs and runs[-1][1] == index - 1:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def _read(fd: int, buffer: memoryview, start: int, stop: int) -> bool:
    """Read bytes `start` to `stop` into the buffer; return whether they were there."""
    position = start
    while position < stop:
        count = os.preadv(fd, [buffer[position - start : stop - start]], position)
        if count == 0:
            return False
        position += count
    return True


def _write(fd: int, data: bytes | memoryview, position: int) -> None:
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            written += os.pwrite(fd, view[written:], position + written)
