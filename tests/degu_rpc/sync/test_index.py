"""degu_rpc.sync.index: what was told to others survives, and nothing is there by half."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from degu_rpc.errors import FolderError, NoSpaceError
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.content import Signature
from degu_rpc.files.listing import Kind
from degu_rpc.sync.index import FORMAT, Change, Heard, Index
from degu_rpc.sync.resolve import Version
from degu_rpc.sync.versions import build_vector

FILE = Version(build_vector({'a': 1}), Kind.FILE, 'root', 5, 7, 0o644, ((b'x', b'y'),), 'base', 'a')
GONE = Version(build_vector({'a': 2}), None, base_root='root', writer='a')

names = st.binary(min_size=1, max_size=9).filter(lambda name: not {0, 47} & set(name))
paths = st.lists(names, max_size=4).map(tuple)
integers = st.integers(-(2**63), 2**63 - 1)
versions = st.builds(
    Version,
    st.dictionaries(st.text(max_size=3), st.integers(1, 2**63 - 1)).map(build_vector),
    st.sampled_from([Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, None]),
    st.text(max_size=3),
    st.integers(0, 2**63 - 1),
    integers,
    st.integers(0, 0o777),
    st.lists(st.tuples(st.binary(max_size=3), st.binary(max_size=3)), max_size=2).map(tuple),
    st.text(max_size=3),
    st.text(max_size=3),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'folder.db'


@pytest.fixture
def index(path):
    with Index(path) as index:
        yield index


@given(st.dictionaries(paths, versions, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_kept_comes_back_as_it_was(index, tree):
    before = len(index.tree())
    index.change(tree.items())
    assert {path: index.tree()[path] for path in tree} == tree
    assert set(tree) <= set(index.tree())
    assert before <= len(index.tree()) <= before + len(tree)


def test_where_there_was_never_anything_there_is_no_version(index):
    assert index.tree().get((b'f',)) is None
    assert list(index.tree(7)) == []


def test_each_change_has_a_number_of_its_own_and_a_later_one_takes_the_place(index):
    assert index.change([((b'f',), FILE), ((b'g',), FILE)]) == 2
    assert index.change([((b'f',), GONE)]) == index.sequence == 3
    assert index.read_changes(0, 9) == [Change(2, (b'g',), FILE), Change(3, (b'f',), GONE)]
    assert index.read_changes(2, 9) == [Change(3, (b'f',), GONE)]
    assert index.read_changes(0, 1) == [Change(2, (b'g',), FILE)]


def test_a_call_that_fails_changes_nothing(index):
    def changes():
        yield (b'f',), FILE
        raise KeyError

    with pytest.raises(KeyError):
        index.change(changes())
    assert (index.sequence, dict(index.tree())) == (0, {})
    assert index.change([((b'g',), FILE)]) == 1


def test_everything_is_there_after_it_was_closed(path):
    manifest = build_manifest(b'content')
    signature = Signature(2**64 - 1, 2**64 - 1, 3, 4, 5)
    with Index(path) as index:
        writer = index.writer
        index.change([((b'f',), FILE)])
        index.hear('m', 'w', [Change(4, (b'g',), GONE)], 5)
        index.note_told('m', 1)
        index.note_seen([((b'f',), signature)])
        index.keep_manifests([manifest])
    with Index(path) as index:
        assert (index.writer, index.sequence, dict(index.tree())) == (writer, 1, {(b'f',): FILE})
        assert index.heard('m') == Heard('w', 5, 1)
        assert dict(index.tree(index.machines()['m'])) == {(b'g',): GONE}
        assert index.find_seen((b'f',)) == signature
        assert index.find_manifest(manifest.root) == manifest


def test_i7_a_database_that_was_lost_has_another_writer(path):
    with Index(path) as index:
        writer = index.writer
    path.unlink()
    with Index(path) as index:
        assert index.writer != writer


def test_to_begin_anew_keeps_what_there_is(index):
    writer = index.writer
    index.change([((b'f',), FILE)])
    assert index.begin_anew() == index.writer != writer
    assert dict(index.tree()) == {(b'f',): FILE}
    assert index.change([((b'f',), GONE)]) == 2


def test_what_a_machine_tells_is_kept_apart_from_others(index):
    assert index.heard('m') == Heard('', 0, 0)
    index.change([((b'f',), FILE)])
    index.hear('m', 'w', [Change(1, (b'f',), GONE)], 1)
    index.hear('n', 'x', [], 9)
    numbers = index.machines()
    assert list(numbers) == ['m', 'n']
    assert [dict(index.tree(number)) for number in numbers.values()] == [{(b'f',): GONE}, {}]
    index.hear('m', 'w', [Change(3, (b'g',), FILE)], 3)
    assert dict(index.tree(numbers['m'])) == {(b'f',): GONE, (b'g',): FILE}
    index.forget('m')
    assert (list(index.machines()), index.heard('m')) == (['n'], Heard('', 0, 0))
    assert (dict(index.tree(numbers['m'])), dict(index.tree())) == ({}, {(b'f',): FILE})


def test_of_another_writer_everything_is_heard_anew(index):
    index.hear('m', 'w', [Change(8, (b'f',), FILE)], 8)
    index.hear('m', 'later', [Change(1, (b'g',), GONE)], 1)
    assert index.heard('m') == Heard('later', 1, 0)
    assert dict(index.tree(index.machines()['m'])) == {(b'g',): GONE}


def test_what_was_seen_is_forgotten_with_the_file(index):
    signature = Signature(1, 2, 3, 4, 5)
    index.note_seen([((b'f',), signature), ((b'g',), signature)])
    index.note_seen([((b'f',), None)])
    assert (index.find_seen((b'f',)), index.find_seen((b'g',))) == (None, signature)


def test_many_threads_count_together(index):
    def change(name):
        for _ in range(20):
            index.change([((name,), FILE)])

    threads = [threading.Thread(target=change, args=(b'%d' % number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert index.sequence == 80
    assert len(index.tree()) == 4


# --- what goes wrong ----------------------------------------------------------------------------

CHANGE_FOR_EVER = """
import sys
from degu_rpc.sync.index import Index
from degu_rpc.sync.resolve import Version
from degu_rpc.sync.versions import build_vector
index = Index(sys.argv[1])
while True:
    number = index.sequence + 1
    gone = Version(build_vector({'a': number}), None)
    print(index.change([((b'a',), gone), ((b'b',), gone)]), flush=True)
"""


def test_what_a_killed_process_said_is_there_and_nothing_by_half(path):
    command = [sys.executable, '-c', CHANGE_FOR_EVER, str(path)]
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            said = [int(process.stdout.readline()) for _ in range(5)]
            process.send_signal(signal.SIGKILL)
            said += map(int, process.stdout.read().split('\n')[:-1])
        with Index(path) as index:
            assert index.sequence >= said[-1]
            assert index.sequence % 2 == 0
            assert len({version.vector for version in index.tree().values()}) == 1


def test_a_second_one_is_refused(index, path):
    with pytest.raises(FolderError, match='is open in another process; end that one first'):
        Index(path)
    assert index.sequence == 0


def test_what_a_newer_program_wrote_is_left_alone(path):
    Index(path).close()
    database = sqlite3.connect(path)
    database.execute(f'PRAGMA user_version={FORMAT + 1}')
    database.close()
    before = path.read_bytes()
    with pytest.raises(FolderError, match=r'a newer version wrote it .* update this program'):
        Index(path)
    assert path.read_bytes() == before


def test_what_is_no_database_is_explained(path):
    path.write_bytes(b'x' * 9999)
    with pytest.raises(FolderError, match='is no database; it may be deleted') as caught:
        Index(path)
    assert caught.value.path == path


def test_a_directory_that_is_missing_is_explained(tmp_path):
    with pytest.raises(FolderError, match='cannot be used: unable to open database file'):
        Index(tmp_path / 'missing' / 'folder.db')


def test_a_full_disk_is_told_and_costs_nothing(index):
    index.change([((b'f',), FILE)])
    index._database.execute('PRAGMA max_page_count=12')
    with pytest.raises(NoSpaceError, match='full'):
        index.change(((b'%d' % number,), FILE) for number in range(10_000))
    assert (index.sequence, dict(index.tree())) == (1, {(b'f',): FILE})
