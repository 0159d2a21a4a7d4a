"""Look at a tree, entry by entry, and hash what is asked for.

What cannot travel is yielded as skipped, with the problem; what vanishes meanwhile is left out. A
Walker has no state but what it has hashed (HashCache) and what it hashes now (HashPool), and may be
used by many threads.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from degu_rpc.errors import ContentChangedError, PathError
from degu_rpc.files.blocks import SMALL_SIZE
from degu_rpc.files.content import HashCache, Hashed, hash_steps, signature_of
from degu_rpc.files.hashing import HashPool
from degu_rpc.files.limits import HASH_ATTEMPTS, MAX_PATH_TEXT
from degu_rpc.files.listing import Entry, Kind, Problem
from degu_rpc.files.paths import NOT_THERE, Path, Root, check_path, format_path, format_target
from degu_rpc.files.xattrs import format_xattrs, read_xattrs

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from degu_rpc.files.hashing import HashSteps


class Walker:
    """Looks at what is below one root; see the module."""

    def __init__(self, root: Root, hashes: HashCache, *, is_shared: bool = False) -> None:
        """Remember where to look, and where to keep what was hashed.

        One that `is_shared` hashes large files for all callers together: close it then.
        """
        self._root = root
        self._hashes = hashes
        self._pool = HashPool(self.hash) if is_shared else None

    def close(self) -> None:
        """End what hashes for all callers."""
        if self._pool is not None:
            self._pool.close()

    def walk(
        self, path: Path, top: os.stat_result, *, recursive: bool, roots: bool
    ) -> Iterator[Entry | None]:
        """Yield the entries at and below `path`, and None now and then while hashing.

        `top` is what lstat says of `path`, and paths are relative to it. With `recursive` all that
        is below, else what is in it; with `roots` every file with its root. Raises OSError.
        """
        yield from self._entry(path, (), top, roots)
        waiting: list[Path] = [()] if stat.S_ISDIR(top.st_mode) else []
        while waiting:
            where = waiting.pop()
            try:
                found = self._root.scan(path + where)
            except PermissionError:
                yield _skipped(where, Problem.UNREADABLE)
                continue
            except (FileNotFoundError, NotADirectoryError):
                continue  # gone since its parent was read
            inner = []
            for name, seen in found:
                below = (*where, name)
                yield from self._entry(path, below, seen, roots)
                if recursive and stat.S_ISDIR(seen.st_mode) and can_travel(path + below):
                    inner.append(below)
            waiting += reversed(inner)

    def _entry(
        self, path: Path, below: Path, seen: os.stat_result, roots: bool
    ) -> Iterator[Entry | None]:
        text = format_path(below)
        mode = stat.S_IMODE(seen.st_mode) & 0o777
        if not can_travel(path + below):
            yield _skipped(below, Problem.NAME)
        elif stat.S_ISDIR(seen.st_mode):
            yield Entry(text, Kind.DIRECTORY, mtime_ns=seen.st_mtime_ns, mode=mode)
        elif stat.S_ISLNK(seen.st_mode):
            try:
                target = self._root.readlink(path + below)
            except OSError:
                return  # gone, or no symlink any more
            yield Entry(text, Kind.SYMLINK, mtime_ns=seen.st_mtime_ns, target=format_target(target))
        elif not stat.S_ISREG(seen.st_mode):
            yield _skipped(below, Problem.SPECIAL)
        else:
            signature = signature_of(seen)
            hashed = self._hashes.find(path + below, signature)
            if hashed is None and roots:
                try:
                    hashed = yield from self._choose_hash(signature.size)(path + below)
                except PermissionError:
                    yield _skipped(below, Problem.UNREADABLE)
                    return
                except ContentChangedError:
                    yield _skipped(below, Problem.CHANGING)
                    return
                except PathError:
                    return  # something else is there since its parent was read
                except OSError as error:
                    if error.errno not in NOT_THERE:
                        raise
                    return  # gone, or something else is there
                signature = hashed.signature
            yield Entry(
                text,
                Kind.FILE,
                size=signature.size,
                mtime_ns=signature.mtime_ns,
                mode=mode,
                root='' if hashed is None else hashed.root,
                xattrs=format_xattrs(hashed.xattrs) if hashed is not None and roots else None,
            )

    def _choose_hash(self, size: int) -> HashSteps:
        return self.hash if self._pool is None or size <= SMALL_SIZE else self._pool.hash

    def hash(self, path: Path) -> Generator[None, None, Hashed]:
        """Hash a file and remember it. Raises ContentChangedError, OSError, PathError."""
        for attempt in range(HASH_ATTEMPTS):
            fd = self._root.open_file(path)
            try:
                signature, manifest = yield from hash_steps(fd, path)
            except ContentChangedError:
                if attempt == HASH_ATTEMPTS - 1:
                    raise
            else:
                return self._hashes.add(path, signature, manifest, read_xattrs(fd))
            finally:
                os.close(fd)
        raise AssertionError('the last attempt raises or returns')


def can_travel(path: Path) -> bool:
    """Tell whether a path that was found on the disk may stand in a listing."""
    try:
        check_path(path)
    except PathError:
        return False
    return len(format_path(path)) <= MAX_PATH_TEXT


def _skipped(below: Path, problem: Problem) -> Entry:
    return Entry(format_path(below), Kind.SKIPPED, problem=problem)
