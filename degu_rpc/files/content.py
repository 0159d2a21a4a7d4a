"""What an open file holds: telling that it changed, and hashing it.

A Signature says cheaply whether a file is still the one that was looked at. Hashing takes one
before and one after, and they must agree, so a manifest always belongs to one state of a file.
A write can hide within one tick of the file system's clock; whoever keeps a manifest for long asks
`is_settled()` before trusting it.
"""

from __future__ import annotations

import collections
import os
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from degu_rpc.errors import ContentChangedError
from degu_rpc.files.blocks import SMALL_SIZE, Manifest, ManifestHasher
from degu_rpc.files.limits import MAX_REMEMBERED
from degu_rpc.files.paths import Path, format_native

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

T = TypeVar('T')

READ_SIZE = 1024 * 1024
SETTLED_NS = 2_000_000_000
"""A file that rested this long before it was hashed cannot have changed unseen: no file system in
use has timestamps coarser than two seconds."""
RECORD_SIZE = 512
"""Bytes that a remembered file counts besides its leaves: its path and tables."""


class Signature(NamedTuple):
    """What lstat says of a file's content, as cheap as it gets."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    def same_file(self, other: Signature) -> bool:
        """Tell whether this is the same content under whatever name: a rename sets ctime."""
        return self[:4] == other[:4]

    def is_settled(self, now_ns: int) -> bool:
        """Tell whether a change after `now_ns` must show in the signature."""
        return now_ns - max(self.mtime_ns, self.ctime_ns) > SETTLED_NS


def signature_of(found: os.stat_result) -> Signature:
    """Return the signature in a stat result."""
    return Signature(
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


class FileReader:
    """Reads the first `size` bytes of an open file in their order; it may turn out to have less.

    The position of the descriptor stays where it is.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._offset = 0

    def readinto(self, b: memoryview) -> int:
        """Read the next bytes into `b`, and return how many; 0 at the end. Raises OSError."""
        count = os.preadv(self._fd, [b[: self._size - self._offset]], self._offset)
        self._offset += count
        return count


def hash_steps(fd: int, path: Path) -> Generator[None, None, tuple[Signature, Manifest]]:
    """Hash an open file, pausing after each read so that the caller can do something else.

    Returns (signature, manifest). Raises ContentChangedError, with `path`, when the file changed
    meanwhile; OSError.
    """
    signature = signature_of(os.fstat(fd))
    hasher = ManifestHasher(signature.size)
    buffer = memoryview(bytearray(min(READ_SIZE, signature.size)))
    offset = 0
    while offset < signature.size:
        count = os.preadv(fd, [buffer[: signature.size - offset]], offset)
        if count == 0:
            raise ContentChangedError(format_native(path))
        hasher.update(buffer[:count])
        offset += count
        yield
    if signature_of(os.fstat(fd)) != signature:
        raise ContentChangedError(format_native(path))
    return signature, hasher.finish()


def hash_file(fd: int, path: Path) -> tuple[Signature, Manifest]:
    """Hash an open file in one go; see `hash_steps()`."""
    return finish_steps(hash_steps(fd, path))


def finish_steps(steps: Generator[None, None, T], check: Callable[[], None] | None = None) -> T:
    """Run a generator to its end and return its result; `check` is called before each step."""
    while True:
        if check is not None:
            check()
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def compare_steps(fd: int, root: str) -> Generator[None, None, Signature | None]:
    """Hash an open file, pausing as `hash_steps()` does; return its signature if it has a content.

    None for one that has not the content `root`, or changes meanwhile. Raises OSError.
    """
    try:
        signature, manifest = yield from hash_steps(fd, ())
    except ContentChangedError:
        return None
    return signature if manifest.root == root else None


def read_small(fd: int, path: Path) -> tuple[Signature, bytes | None]:
    """Read an open file of up to SMALL_SIZE bytes at once; nothing of a larger one.

    Returns (signature, content or None). Raises ContentChangedError, with `path`, when the file
    changed meanwhile; OSError.
    """
    signature = signature_of(os.fstat(fd))
    if signature.size > SMALL_SIZE:
        return signature, None
    content = os.pread(fd, signature.size, 0)
    if len(content) != signature.size or signature_of(os.fstat(fd)) != signature:
        raise ContentChangedError(format_native(path))
    return signature, content


class Hashed(NamedTuple):
    """A file that was hashed: what it was, and whether a change since then must show."""

    path: Path
    signature: Signature
    manifest: Manifest
    root: str
    settled: bool
    xattrs: dict[bytes, bytes] | None


class HashCache:
    """Remembers the hashes of files, up to MAX_REMEMBERED bytes of them; the oldest go first.

    Losing one costs time, never data. May be used by many threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by self._lock. `_by_root` has all paths with that content, the newest last.
        self._by_path: collections.OrderedDict[Path, Hashed] = collections.OrderedDict()
        self._by_root: dict[str, dict[Path, None]] = {}
        self._size = 0

    def add(
        self,
        path: Path,
        signature: Signature,
        manifest: Manifest,
        xattrs: dict[bytes, bytes] | None = None,
    ) -> Hashed:
        """Remember what was just hashed, and return it. A change of `xattrs` sets ctime, too."""
        settled = signature.is_settled(time.time_ns())
        hashed = Hashed(path, signature, manifest, manifest.root, settled, xattrs)
        with self._lock:
            self._forget(path)
            self._by_path[path] = hashed
            self._by_root.setdefault(hashed.root, {})[path] = None
            self._size += _cost(hashed)
            while self._size > MAX_REMEMBERED and len(self._by_path) > 1:
                self._forget(next(iter(self._by_path)))
        return hashed

    def find(self, path: Path, signature: Signature) -> Hashed | None:
        """Return what is known of the file at `path` if it is surely still the one hashed."""
        with self._lock:
            hashed = self._by_path.get(path)
        if hashed is None or hashed.signature != signature or not hashed.settled:
            return None
        return hashed

    def find_root(self, root: str) -> Hashed | None:
        """Return a file that had the content `root` when it was hashed."""
        with self._lock:
            paths = self._by_root.get(root)
            return self._by_path[next(reversed(paths))] if paths else None

    def forget(self, path: Path) -> None:
        """Forget the file at `path`."""
        with self._lock:
            self._forget(path)

    def _forget(self, path: Path) -> None:
        hashed = self._by_path.pop(path, None)
        if hashed is not None:
            self._size -= _cost(hashed)
            paths = self._by_root[hashed.root]
            del paths[path]
            if not paths:
                del self._by_root[hashed.root]


def _cost(hashed: Hashed) -> int:
    attributes = hashed.xattrs or {}
    size = sum(len(name) + len(value) + RECORD_SIZE for name, value in attributes.items())
    return RECORD_SIZE + len(hashed.manifest.leaves) + size
