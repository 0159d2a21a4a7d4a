"""degu_rpc.files.places: nothing is replaced, and nobody waits for what takes long."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.commit import Workspace
from degu_rpc.files.content import finish_steps
from degu_rpc.files.limits import BATCH_FILES
from degu_rpc.files.listing import Entry, Kind
from degu_rpc.files.offers import check_offer, find_place, free_names
from degu_rpc.files.partial import store_small
from degu_rpc.files.paths import Root
from degu_rpc.files.places import Places, Ready
from degu_rpc.files.responses import RefusalError

OFFERED_NS = 1_600_000_000_123_456_789
DIRECTORY = Entry('d', Kind.DIRECTORY, mode=0o755)
CONTENT = bytes(range(256)) * 8 * 1024  # two reads


class Lock:
    """A lock that calls a function, once, when it is about to be taken."""

    def __init__(self):
        self.lock = threading.Lock()
        self.before = lambda: None

    def __enter__(self):
        before, self.before = self.before, lambda: None
        before()
        self.lock.acquire()

    def __exit__(self, *error):
        self.lock.release()


class Offered:
    """An offer in a directory: its places, and what they say has given way."""

    def __init__(self, root, workspace, entries):
        self.root = root
        self.workspace = workspace
        self.lock = Lock()
        self.moved = {}
        self.made = {}
        self.tree = check_offer(entries)
        self.places = Places(
            root, workspace, self.lock, self.tree, {}, self._move, {}, self.made.__setitem__
        )

    def _move(self, path, kind, taken):
        parent = find_place(path[:-1], self.moved)
        there = {name for name, _ in self.root.scan(parent)} | taken
        self.moved[path] = next(name for name in free_names(path[-1], kind) if name not in there)
        return self.moved[path]

    def make(self):
        for _ in self.places.make():
            pass
        return self

    def ready(self, *contents):
        """Return the files of the offer, with these contents."""
        placings = {placing.entry.root: placing for placing in self.tree.placed_files()}
        found = []
        for content in contents:
            root = build_manifest(content).root
            found.append(Ready(placings[root], store_small(self.workspace, root, content)))
        return found

    def commit(self, *contents):
        return finish_steps(self.places.commit(self.ready(*contents)))


@pytest.fixture
def here(tmp_path):
    directory = tmp_path / 'here'
    directory.mkdir()
    return directory


@pytest.fixture
def offer(here):
    with Root(here) as root, Workspace(root) as workspace:
        yield lambda *entries: Offered(root, workspace, entries)


def file(path, content):
    root = build_manifest(content).root
    return Entry(path, Kind.FILE, len(content), OFFERED_NS, 0o644, root=root)


def link(path, target):
    return Entry(path, Kind.SYMLINK, target=target)


def open_descriptors():
    return len(os.listdir('/proc/self/fd'))


def in_tmp(here):
    return os.listdir(here / '.degu' / 'tmp')


# --- names that are taken -----------------------------------------------------------------------


@pytest.mark.parametrize('targets', [('one', 'two'), ('same', 'same')])
def test_i3_a_symlink_gives_way_to_no_name_of_its_own_offer(offer, here, targets):
    one, two = targets
    offered = offer(DIRECTORY, link('d/x', one), link('d/x%20%282%29', two))
    making = offered.places.make()
    next(making)
    (here / 'd' / 'x').write_bytes(b'mine')
    assert list(making) == [None, None]
    assert (here / 'd' / 'x').read_bytes() == b'mine'
    assert os.readlink(here / 'd' / 'x (2)') == two
    assert os.readlink(here / 'd' / 'x (3)') == one


def test_i3_a_file_gives_way_to_no_name_of_its_own_offer(offer, here):
    entries = [file('d/x', b'one'), file('d/x%20%282%29', b'two')]
    offered = offer(DIRECTORY, *entries).make()
    (here / 'd' / 'x').write_bytes(b'mine')
    assert offered.commit(b'one', b'two') == set()
    assert (here / 'd' / 'x').read_bytes() == b'mine'
    assert (here / 'd' / 'x (2)').read_bytes() == b'two'
    assert (here / 'd' / 'x (3)').read_bytes() == b'one'


def test_i3_a_symlink_whose_name_is_taken_at_the_last_moment_gives_way(offer, here, monkeypatch):
    """Somebody makes the name after we looked, and before the rename that replaces nothing."""
    commit = Workspace.commit

    def late(workspace, batch):
        if not os.path.lexists(here / 'x'):
            (here / 'x').write_bytes(b'mine')
        return commit(workspace, batch)

    monkeypatch.setattr(Workspace, 'commit', late)
    offered = offer(link('x', 'one')).make()
    assert (here / 'x').read_bytes() == b'mine'
    assert os.readlink(here / 'x (2)') == 'one'
    assert offered.places.are_unchanged()


def test_symlinks_are_made_in_batches(offer, here):
    count = BATCH_FILES + 1
    offered = offer(*(link(f'x{number}', 'target') for number in range(count)))
    making = offered.places.make()
    for _ in range(BATCH_FILES - 1):
        next(making)
    assert len(os.listdir(here)) == 1  # .degu
    next(making)
    assert len(os.listdir(here)) == 1 + BATCH_FILES
    assert list(making) == [None]
    assert len(os.listdir(here)) == 1 + count


# --- what is there already ----------------------------------------------------------------------


def test_a_file_with_the_content_and_another_time_is_there_already(offer, here):
    offered = offer(file('f', CONTENT)).make()
    (here / 'f').write_bytes(CONTENT)
    assert set(offered.places.find_absent()) == {None}
    assert offered.commit(CONTENT) == set()
    assert sorted(os.listdir(here)) == ['.degu', 'f']
    assert in_tmp(here) == []


@pytest.mark.parametrize('edit', ['during', 'after'])
def test_i3_a_file_that_is_edited_while_it_is_compared_is_kept(offer, here, edit):
    offered = offer(file('f', CONTENT)).make()
    (here / 'f').write_bytes(CONTENT)
    before = open_descriptors()
    committing = offered.places.commit(offered.ready(CONTENT))
    next(committing)

    def change():
        with (here / 'f').open('r+b') as opened:
            opened.write(b'mine')

    if edit == 'during':
        change()
    else:
        offered.lock.before = change  # it was compared, and is looked at again
    assert finish_steps(committing) == set()
    assert (here / 'f').read_bytes() == b'mine' + CONTENT[4:]
    assert (here / 'f (2)').read_bytes() == CONTENT
    assert open_descriptors() == before


# --- the lock -----------------------------------------------------------------------------------


def test_nobody_waits_while_contents_are_compared_or_made_durable(offer, here, monkeypatch):
    offered = offer(file('f', CONTENT), file('g', b'two')).make()
    (here / 'f').write_bytes(CONTENT)
    fsync = os.fsync
    synced = []

    def sync(fd):
        if stat.S_ISREG(os.fstat(fd).st_mode):
            synced.append(offered.lock.lock.locked())
        fsync(fd)

    monkeypatch.setattr(os, 'fsync', sync)
    compared = [
        offered.lock.lock.locked() for _ in offered.places.commit(offered.ready(CONTENT, b'two'))
    ]
    assert compared == [False, False]
    assert synced == [False, False]
    assert (here / 'g').read_bytes() == b'two'


def test_what_was_closed_gets_no_name_and_leaves_no_descriptor(offer, here):
    offered = offer(file('f', b'one')).make()
    before = open_descriptors()
    committing = offered.places.commit(offered.ready(b'one'))
    offered.places.close()
    with pytest.raises(RefusalError):
        finish_steps(committing)
    assert open_descriptors() == before
    assert os.listdir(here) == ['.degu']
    assert len(in_tmp(here)) == 1
    with pytest.raises(RefusalError):
        offered.places.finish()
