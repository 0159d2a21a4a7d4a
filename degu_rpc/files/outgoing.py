"""What is to be sent: trees here, hashed, as the entries of an offer; and their contents.

1. `gather()` walks what is to be sent and hashes every file. Two of the same name at the top get
   different ones, as they would in an inbox.
2. A content is read again when it is wanted. A small one is hashed from the bytes that were read.
   For a large one the signature of its file (content.py) is compared before and after each part; a
   file that was touched is hashed again, and where the content is another one now, it is not sent.
3. A content that several files have is read from the last one: its hash is remembered.

Whatever hashes may take long; what `check` raises ends it within a read, and is raised as it is.

Threads: once everything was gathered, any number may read contents.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from degu_rpc.errors import ContentChangedError, PathError
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.content import (
    READ_SIZE,
    HashCache,
    Hashed,
    finish_steps,
    read_small,
    signature_of,
)
from degu_rpc.files.listing import Entry, Kind, Problem
from degu_rpc.files.offers import free_names
from degu_rpc.files.paths import (
    NOT_THERE,
    Path,
    Root,
    check_name,
    decode_native,
    format_native,
    format_path,
    parse_path,
)
from degu_rpc.files.plan import Skipped
from degu_rpc.files.walk import Walker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from degu_rpc.files.blocks import Manifest


class LostContentError(Exception):
    """A file has not the content any more that it had; `.problem` says why.

    Never leaves this package.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.value)
        self.problem = problem


class _Tree:
    """A directory from which something is sent, and what was hashed there."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.hashes = HashCache()
        self.walker = Walker(root, self.hashes)


class _Source(NamedTuple):
    """A file here."""

    tree: _Tree
    path: Path


class Outgoing:
    """What is to be sent. Close it, or use it with `with`."""

    # Nothing changes once everything was gathered.

    def __init__(
        self, check: Callable[[], None], count: Callable[[int], None] = lambda _size: None
    ) -> None:
        """Begin with nothing. What `check` raises, called for each read, ends what hashes.

        `count` is told how many bytes more were read to gather what there is.
        """
        self._check = check
        self._count = count
        self.entries: list[Entry] = []
        self.skipped: list[Skipped] = []
        self._sources: dict[str, _Source] = {}
        self._paths: dict[str, list[str]] = {}
        self._names: set[bytes] = set()
        self._trees: dict[bytes, _Tree] = {}
        self._gathered: set[tuple[bytes, bytes]] = set()
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        """Close the directories."""
        self._stack.close()

    def __enter__(self) -> Outgoing:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- what there is --------------------------------------------------------------------------

    def gather(self, path: str | bytes | os.PathLike[str]) -> None:
        """Add the file, the directory or the symlink at `path`, hashed; a second time nothing.

        Raises PathError where it has no name that can travel, OSError where it is not there.
        """
        parent, name = _split(path)
        place = (os.path.realpath(parent), name)
        if place in self._gathered:
            return
        self._gathered.add(place)
        tree = self._trees.get(parent)
        if tree is None:
            tree = _Tree(self._stack.enter_context(Root(os.fsdecode(parent))))
            self._trees[parent] = tree
        top = tree.root.lstat((name,))
        offered = b''
        counted = reads = 0
        for entry in tree.walker.walk((name,), top, recursive=True, roots=True):
            self._check()
            if entry is None:
                # All reads of a file but the last one are as large as can be.
                if reads:
                    self._count(READ_SIZE)
                    counted += READ_SIZE
                reads += 1
                continue
            self._count(max(entry.size - counted, 0))
            counted = reads = 0
            offered = offered or self._name(name, entry.kind)
            self._add(tree, name, offered, entry)

    def _name(self, name: bytes, kind: Kind) -> bytes:
        """Return a name at the top that nothing else has."""
        free = next(free for free in free_names(name, kind) if free not in self._names)
        self._names.add(free)
        return free

    def _add(self, tree: _Tree, name: bytes, offered: bytes, entry: Entry) -> None:
        below = f'/{entry.path}' if entry.path else ''
        path = format_path((offered,)) + below
        if entry.kind is Kind.SKIPPED:
            self.skipped.append(Skipped(decode_native(path), entry.problem or Problem.SPECIAL))
            return
        self.entries.append(msgspec.structs.replace(entry, path=path))
        if entry.kind is Kind.FILE:
            source = _Source(tree, (name, *parse_path(entry.path)))
            self._sources[entry.root] = source
            self._paths.setdefault(entry.root, []).append(decode_native(path))

    # --- contents -------------------------------------------------------------------------------

    def paths_of(self, root: str) -> list[str]:
        """Return the paths, as offered, of the files that have a content."""
        return self._paths[root]

    def read_small(self, root: str) -> bytes:
        """Read a small content; it is that content for sure. Raises LostContentError, OSError."""
        source = self._sources[root]
        with _problems():
            fd = source.tree.root.open_file(source.path)
            try:
                content = read_small(fd, source.path)[1]
            finally:
                os.close(fd)
            if content is None or build_manifest(content).root != root:
                raise ContentChangedError(format_native(source.path))
        return content

    def find_manifest(self, root: str) -> Manifest:
        """Return the manifest of a content, which is hashed again if that was forgotten.

        Raises LostContentError, OSError.
        """
        with _problems():
            return self._find_hashed(root).manifest

    @contextlib.contextmanager
    def reading(self, root: str) -> Iterator[int]:
        """Hold a file open that has a large content.

        Raises LostContentError where it does not have it, also at the end: then what was read may
        have been anything, and what else went wrong is no wonder. Raises OSError.
        """
        source = self._sources[root]
        with _problems():
            fd = source.tree.root.open_file(source.path)
        try:
            with _problems():
                self._require_content(root, fd)
            try:
                yield fd
            finally:
                with _problems():
                    self._require_content(root, fd)
        finally:
            os.close(fd)

    def _require_content(self, root: str, fd: int) -> None:
        """Raise ContentChangedError unless an open file has a content. OSError, PathError."""
        if signature_of(os.fstat(fd)) == self._find_hashed(root).signature:
            return
        # It may only have been touched.
        if signature_of(os.fstat(fd)) != self._hash(root).signature:
            raise ContentChangedError(format_native(self._sources[root].path))

    def _find_hashed(self, root: str) -> Hashed:
        source = self._sources[root]
        hashed = source.tree.hashes.find_root(root)
        return hashed if hashed is not None and hashed.path == source.path else self._hash(root)

    def _hash(self, root: str) -> Hashed:
        source = self._sources[root]
        hashed = finish_steps(source.tree.walker.hash(source.path), self._check)
        if hashed.root != root:
            raise ContentChangedError(format_native(source.path))
        return hashed


@contextlib.contextmanager
def _problems() -> Iterator[None]:
    """Turn what can go wrong with one file into a LostContentError."""
    try:
        yield
    except PermissionError as error:
        raise LostContentError(Problem.UNREADABLE) from error
    except ContentChangedError as error:
        raise LostContentError(Problem.CHANGING) from error
    except PathError as error:
        raise LostContentError(Problem.VANISHED) from error
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
        raise LostContentError(Problem.VANISHED) from error


def _split(path: str | bytes | os.PathLike[str]) -> tuple[bytes, bytes]:
    """Return the directory in which something is, and its name there. Raises PathError."""
    native = os.fsencode(path)
    parent, name = os.path.split(native.rstrip(b'/'))
    if native and name in {b'', b'.', b'..'}:
        parent, name = os.path.split(os.path.realpath(native))
    return parent or b'.', check_name(name)
