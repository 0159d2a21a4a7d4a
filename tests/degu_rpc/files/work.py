"""What a transfer has yet to bring, read from the disk, and what it did bring.

1. `find_work()` looks at a tree at the source and at what is here of it, temporary files and notes
   included, and says exactly what the next run has to ask for and to hash: no more, no less.
   `find_inbox_work()` does the same for what is sent into an inbox.
2. A Recorder is a share that writes down what it was asked for, to be compared with that; an
   InboxRecorder is an inbox that writes down what was sent.
3. `prepare()` has what is hashed written down.
4. `follow_syncs()` reads the system calls of a run, and checks what was synced before what.

Tests are no package that could be imported: the fixture `work` is this module. The program
killing.py imports it, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from degu_rpc.errors import ListingError
from degu_rpc.files import blocks, content, dispatch, partial, receive, walk
from degu_rpc.files.blocks import MIN_BLOCK_SIZE, SMALL_SIZE, Manifest, build_manifest
from degu_rpc.files.limits import MAX_PACKED
from degu_rpc.files.offers import Item
from degu_rpc.files.packs import Wanted
from degu_rpc.files.partial import parse_note
from degu_rpc.files.records import parse_records
from degu_rpc.peers.caller import Peer, PeerKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WHOLE = -1
"""Stands for the index of a block where a whole file is hashed."""


def prepare(
    change: Callable[[Any, str, Any], None], connections: int, hashed: list[tuple[int, int]]
) -> None:
    """Set small limits, and record each block that is hashed: the file's size, the block's index.

    `change` is setattr(), or one that is undone. A file that is hashed as a whole has the index
    WHOLE.
    """
    for role in ('fetch', 'send'):
        change(sys.modules[f'degu_rpc.files.{role}'], 'CONNECTIONS', connections)
    for module, name in [(dispatch, 'RUN_SIZE'), (partial, 'NOTE_SIZE'), (receive, 'RUN_SIZE')]:
        change(module, name, MIN_BLOCK_SIZE)
    matches, hash_steps = blocks.Manifest.matches, content.hash_steps

    def matches_and_record(manifest: Any, index: int, block: Any) -> bool:
        hashed.append((manifest.size, index))
        return matches(manifest, index, block)

    def hash_steps_and_record(fd: int, path: Any) -> Any:
        hashed.append((os.fstat(fd).st_size, WHOLE))
        return hash_steps(fd, path)

    change(blocks.Manifest, 'matches', matches_and_record)
    for module in (content, walk):
        change(module, 'hash_steps', hash_steps_and_record)


def kill_at_steps(go_on: Callable[[int], bool], first: int, interval: int) -> int:
    """Call `go_on` for some steps, until it says that nothing was killed; return that step.

    It kills at the step, runs again, checks, and says whether there was such a step.
    """
    step = first
    while go_on(step):
        step += interval
    return step


class Work(NamedTuple):
    """What a run has to do.

    `blocks` has the size in bytes by (root, index), `packed` that of small files by their paths,
    percent-encoded, or of those for an inbox by their roots. `hashed` counts by (size of the file,
    index).
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


def find_inbox_work(source: Path, here: Path, *, is_running: bool = False) -> Work:
    """Find out what the next send of all that is in `source` into the inbox `here` has to do.

    One that `is_running` has checked what is in its temporary files. For the rest see
    `find_work()`.
    """
    work = Work({}, {}, Counter())
    placed = read_places(here)
    absent = {}
    for path in source.rglob('*'):
        place = find_place(placed, os.fsencode(path.relative_to(source)))
        if is_regular(path) and not _is_placed(path, here / os.fsdecode(place)):
            content = path.read_bytes()
            absent[build_manifest(content).root] = content
    for root, content in absent.items():
        if len(content) <= SMALL_SIZE:
            work.packed[root] = len(content)
            continue
        manifest = build_manifest(content)
        kept = _find_kept(find_temporary(here, root), manifest, content)
        if not is_running:
            work.hashed.update((len(content), index) for index in kept.read_again)
        for index in {*range(manifest.block_count)} - kept.here:
            start, stop = manifest.block_range(index)
            work.blocks[root, index] = stop - start
            work.hashed[len(content), index] += 1
    return work


def read_records(here: Path) -> list[dict[str, Any]]:
    """Return what an inbox has written down of its offers, those that were made first first.

    Where a bit was flipped on the way, what was offered is not what its name says: it is left out.
    """
    paths = [path for path in here.glob('.degu/inbox/*/*') if not path.name.startswith('.')]
    records = [json.loads(path.read_bytes()) for path in paths]
    whole = [record for record in records if record['digest'] == record['transfer']]
    return sorted(whole, key=lambda record: record['offered_at'])


def read_places(here: Path) -> dict[bytes, bytes]:
    """Return the last names of what has another one than was offered last, by its path."""
    placed = read_records(here)[-1]['placed'] if read_records(here) else {}
    return {unquote_to_bytes(path): unquote_to_bytes(name) for path, name in placed.items()}


def find_place(placed: dict[bytes, bytes], name: bytes) -> bytes:
    """Return where in an inbox something is that was offered as `name`."""
    names = name.split(b'/')
    offered = [b'/'.join(names[: depth + 1]) for depth in range(len(names))]
    return b'/'.join(placed.get(each, own) for each, own in zip(offered, names, strict=True))


def check_whole(
    found: dict[bytes, Any], before: dict[bytes, Any], offered: dict[bytes, Any]
) -> None:
    """Check that an inbox has all that was there before, as it was, and whole files besides.

    All three are what the fixture `look` returns, of the inbox and of what is sent.
    """
    assert {name: found[name] for name in before if name in found} == before, 'I2, I3'
    for name in found.keys() - before.keys():
        top, *below = name.split(b'/')
        _, value = found[name]
        _, expected = offered[b'/'.join([re.sub(rb' \(\d+\)', b'', top), *below])]
        if is_directory(value):  # it gets mode and time at the end
            assert is_directory(expected)
        else:
            assert value == expected, f'I1, I10: {name} is another'


def is_directory(value: Any) -> bool:
    """Tell whether a value of the fixture `tree` is of a directory: it has a mode and a time."""
    return len(value) == 2 and isinstance(value[0], int)


def find_temporary(here: Path, root: str) -> Path:
    """Return the path of what came into an inbox of a large content: `{root}.{who sends}`."""
    tmp = here / '.degu' / 'tmp'
    found = [path for path in tmp.glob(f'{root}.*') if path.name.count('.') == 1]
    assert len(found) <= 1
    return found[0] if found else tmp / root


def _is_placed(path: Path, target: Path) -> bool:
    if not is_regular(target):
        return False
    found, offered = target.stat(), path.stat()
    return (found.st_size, found.st_mtime_ns) == (offered.st_size, offered.st_mtime_ns)


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
    note = temporary.with_name(f'{temporary.name}.note')
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


class InboxRecorder(Recorder):
    """An inbox that writes down what was sent in its last run: blocks, small contents in packs."""

    def _record(self, request: dict[str, Any]) -> None:
        _, *rest = request['path']
        part = request['headers'].get('content-range')
        if rest == ['pack']:
            request['body'] = list(request['body'])
            media = request['headers']['content-type']
            items = parse_records(request['body'], media, Item, MAX_PACKED)
            with contextlib.suppress(ListingError):  # the inbox says so
                self.packed.update(each.root for each in items)
        elif part is not None:
            first, last = part.start // MIN_BLOCK_SIZE, -(-part.stop // MIN_BLOCK_SIZE)
            self.blocks.update((rest[0], index) for index in range(first, last))


class WithRoles:
    """Middleware that says who is calling, as the node does from the certificate."""

    def __init__(self, app: Any, *roles: str, user: str = 'someone') -> None:
        self.app = app
        self.roles = frozenset(roles)
        self.peer = Peer(PeerKind.MACHINE, user, 'machine', user, self.roles, None, None)

    def on_connect(self, sock: Any, connection: dict[str, Any]) -> bool:
        on_connect = getattr(self.app, 'on_connect', None)
        return on_connect is None or bool(on_connect(sock, connection))

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Any:
        if self.roles:
            request['_peer'] = self.peer
        return self.app(connection, request)


# --- what is synced before what -----------------------------------------------------------------


def follow_syncs(calls: list[list[str]], here: Path) -> set[str]:
    """Check that a run synced what it wrote before it was renamed or noted, and directories after.

    `calls` are those that killing.py reports of a run that was not killed. Returns the paths in
    `here` that got a name.
    """
    dirty: set[str] = set()
    changed: set[str] = set()
    renamed: set[str] = set()
    synced: set[str] = set()
    for name, *paths in calls:
        if name in {'fsync', 'fdatasync'}:
            changed.discard(paths[0])
            if name == 'fsync':
                dirty.discard(paths[0])
            synced.add(paths[0])
        elif name in {'renameat', 'renameat2', 'linkat'}:
            for path in paths:
                if not is_private(path):
                    assert not dirty & {*paths}
                    changed.add(os.path.dirname(path))
                    renamed.add(os.path.relpath(path, here))
            source, target = paths
            if target.endswith('.note'):
                synced.remove(target.removesuffix('.note'))
            dirty |= {target} if source in dirty else set()
        elif name in {'mkdirat', 'symlinkat', 'unlinkat'}:
            changed |= {os.path.dirname(path) for path in paths if not is_private(path)}
        elif name in {'write', 'pwrite64', 'ftruncate'} or (
            name in {'fchmod', 'utimensat'} and is_private(paths[0])
        ):
            dirty |= {path for path in paths if '/staged.' not in path}  # symlinks
    assert changed == set()
    assert [path for path in dirty if not is_private(path)] == []
    return renamed


def is_private(path: str) -> bool:
    """Tell whether a path is in our own directory."""
    return '/.degu' in path
