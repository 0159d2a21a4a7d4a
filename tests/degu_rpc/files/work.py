"""What a fetch has yet to bring, read from the disk, and what it did ask for.

1. `find_work()` looks at a tree at the source and at what is here of it, temporary files and notes
   included, and says exactly what the next run has to ask for and to hash: no more, no less.
2. A Recorder is a share that writes down what it was asked for, to be compared with that.

Tests are no package that could be imported: the fixture `work` is this module.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote_from_bytes

from degu_rpc.files.blocks import MIN_BLOCK_SIZE, SMALL_SIZE, Manifest, build_manifest
from degu_rpc.files.packs import Wanted
from degu_rpc.files.partial import parse_note
from degu_rpc.files.records import parse_records

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = -1
"""Stands for the index of a block where a whole file is hashed."""


class Work(NamedTuple):
    """What a run has to do.

    `blocks` has the size in bytes by (root, index), `packed` that of small files by their paths,
    percent-encoded. `hashed` counts by (size of the file, index).
    """

    blocks: dict[tuple[str, int], int]
    packed: dict[str, int]
    hashed: Counter[tuple[int, int]]

    @property
    def size(self) -> int:
        """How many bytes have to come."""
        return sum(self.blocks.values()) + sum(self.packed.values())


def find_work(source: Path, here: Path) -> Work:
    """Find out what the next fetch of `source` into `here` has to do.

    The files have different sizes or contents, blocks of MIN_BLOCK_SIZE, and none is all zeros.
    """
    work = Work({}, {}, Counter())
    # Whether it is what its name says is looked at, before the name in the trash is removed.
    for path in (here / '.degu' / 'tmp').glob('*'):
        if is_regular(path) and is_linked(path) and is_in_trash(path):
            work.hashed[path.stat().st_size, WHOLE] += 1
    for path in source.rglob('*'):
        if is_regular(path):
            _add(work, path, path.relative_to(source), here)
    return work


def _add(work: Work, path: Path, name: Path, here: Path) -> None:
    content = path.read_bytes()
    target = here / name
    is_there = is_regular(target)
    has_size = is_there and target.stat().st_size == len(content)
    if has_size and target.stat().st_mtime_ns == path.stat().st_mtime_ns:
        return
    if has_size:
        work.hashed[len(content), WHOLE] += 1
    if len(content) <= SMALL_SIZE:
        work.packed[quote_from_bytes(os.fsencode(name))] = len(content)
        return
    if has_size and target.read_bytes() == content:
        return
    manifest = build_manifest(content)
    kept = _find_kept(here / '.degu' / 'tmp' / manifest.root, manifest, content)
    work.hashed.update((len(content), index) for index in kept.read_again)
    old = target.read_bytes() if is_there else b''
    for index in range(manifest.block_count):
        start, stop = manifest.block_range(index)
        if index in kept.here:
            continue
        if len(old) < stop:
            old = b''  # from here on it is not looked at
        else:
            work.hashed[len(content), index] += 1
            if old[start:stop] == content[start:stop]:
                continue
        work.blocks[manifest.root, index] = stop - start
        work.hashed[len(content), index] += 1


class _Kept(NamedTuple):
    here: set[int]
    read_again: set[int]


def _find_kept(temporary: Path, manifest: Manifest, content: bytes) -> _Kept:
    """Find out which blocks a temporary file has, and which of them will be read to find out."""
    here: set[int] = set()
    read_again: set[int] = set()
    if not temporary.exists() or (is_linked(temporary) and not is_in_trash(temporary)):
        return _Kept(here, read_again)
    data = temporary.read_bytes()
    noted = None
    note = temporary.with_suffix('.note')
    if len(data) == manifest.size and note.exists():
        noted = parse_note(note.read_bytes(), temporary.stat().st_ino, manifest.block_count)
    for index in range(manifest.block_count):
        start, stop = manifest.block_range(index)
        is_right = data[start:stop] == content[start:stop]
        if noted is not None and noted[index]:
            assert is_right, f'block {index} of {manifest.root} is noted and wrong'
            here.add(index)
        elif _has_data(temporary, start, stop):
            read_again.add(index)
            if is_right:
                here.add(index)
    return _Kept(here, read_again)


def _has_data(path: Path, start: int, stop: int) -> bool:
    with path.open('rb') as file:
        try:
            return os.lseek(file.fileno(), start, os.SEEK_DATA) < stop
        except OSError:  # there is none until the end
            return False


def is_linked(temporary: Path) -> bool:
    """Tell whether a temporary file has a name elsewhere."""
    return temporary.stat().st_nlink > 1


def is_in_trash(temporary: Path) -> bool:
    """Tell whether that name is in the trash: then the file was not exchanged yet."""
    trash = temporary.parents[1] / 'trash'
    return any(is_regular(path) and path.samefile(temporary) for path in trash.rglob('*'))


def is_regular(path: Path) -> bool:
    """Tell whether a regular file is there, and no symlink to one."""
    return os.path.lexists(path) and stat.S_ISREG(path.lstat().st_mode)


class Recorder:
    """A share that writes down what it is asked for by its last run: blocks, files in packs.

    Each run has a prefix of its own, because what a killed one asked for may be read after its end.
    """

    def __init__(self, app: Any) -> None:
        """Begin the first run."""
        self.app = app
        self.run = 0
        self.begin()

    def begin(self) -> str:
        """Forget what was asked for; return the prefix of the next run."""
        self.run += 1
        self.blocks: Counter[tuple[str, int]] = Counter()
        self.packed: Counter[str] = Counter()
        return self.prefix

    @property
    def prefix(self) -> str:
        """Where the share is mounted for this run."""
        return f'/{self.run}'

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Any:
        run, *path = request['path']
        request = {**request, 'path': path}
        if run == str(self.run):
            self._record(request)
        return self.app(connection, request)

    def _record(self, request: dict[str, Any]) -> None:
        endpoint, *rest = request['path']
        if endpoint == 'data':
            part = request['headers']['range']
            first, last = part.start // MIN_BLOCK_SIZE, -(-part.stop // MIN_BLOCK_SIZE)
            self.blocks.update((rest[0], index) for index in range(first, last))
        elif endpoint == 'pack':
            request['body'] = list(request['body'])
            media = request['headers']['content-type']
            self.packed.update(each.path for each in parse_records(request['body'], media, Wanted))

    def check(self, work: Work) -> None:
        """Check that what was asked for is what there was to do, and each once."""
        assert self.blocks == dict.fromkeys(work.blocks, 1)
        assert self.packed == dict.fromkeys(work.packed, 1)
