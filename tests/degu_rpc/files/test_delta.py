"""degu_rpc.files.delta: what an old version has is copied, and nothing else is touched."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pathlib
import random
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from degu_rpc.files import delta, limits
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.cuts import MAX_CUT_SIZE, Chunk, cut_content
from degu_rpc.files.delta import copy_matches

KIB = 1024
MIB = 1024 * KIB


def make_content(size, seed=0):
    return random.Random(seed).randbytes(size)


def cut(content):
    return list(cut_content(io.BytesIO(content), len(content)))


def ignore():
    """Do not stop."""


@contextlib.contextmanager
def opened(path, content=b'', size=None):
    """Write a file, and open it for reading and writing."""
    path.write_bytes(content)
    if size is not None:
        os.truncate(path, size)
    fd = os.open(path, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def take(tmp_path):
    """Take what `old` has of `new`; return what the file then holds and what was written."""

    def run(old, new, missing=None, check=ignore):
        with opened(tmp_path / 'old', old) as old_fd, opened(tmp_path / 'new') as fd:
            spans = [(0, len(new))] if missing is None else missing
            covered = copy_matches(old_fd, len(old), cut(new), fd, spans, check)
        return (tmp_path / 'new').read_bytes(), covered

    return run


def assert_covered(found, new, covered):
    """What is said to be covered is right, and ascending, and in as few spans as possible."""
    position = -1
    for start, stop in covered:
        assert position < start < stop
        assert found[start:stop] == new[start:stop]
        position = stop


# --- copying ------------------------------------------------------------------------------------

CHANGES = {
    'insert': lambda old: b'!' + old,
    'insert-1-mib': lambda old: make_content(MIB, 1) + old,
    'delete': lambda old: old[1:],
    'delete-in-the-middle': lambda old: old[: 3 * MIB] + old[3 * MIB + 100 * KIB :],
    'replace': lambda old: old[: 3 * MIB] + b'!' * 1000 + old[3 * MIB + 1000 :],
    'move': lambda old: old[5 * MIB :] + old[: 5 * MIB],
    'append': lambda old: old + b'!',
    'double': lambda old: old + old,
}


@pytest.mark.parametrize('name', CHANGES)
def test_most_of_a_changed_file_comes_from_the_old_version(take, name):
    old = make_content(8 * MIB)
    new = CHANGES[name](old)
    found, covered = take(old, new)
    assert_covered(found, new, covered)
    inserted = MIB if name == 'insert-1-mib' else 0
    assert sum(stop - start for start, stop in covered) >= len(new) - inserted - 600 * KIB


def test_one_byte_at_the_front_leaves_less_than_two_percent_to_fetch(take):
    old = make_content(32 * MIB)
    new = b'!' + old
    found, covered = take(old, new)
    assert_covered(found, new, covered)
    missing = len(new) - sum(stop - start for start, stop in covered)
    wire_list = 8 + 36 * len(cut(new))
    assert missing + wire_list <= 0.02 * len(new)


def test_nothing_in_common_writes_nothing(take):
    assert take(make_content(2 * MIB), make_content(2 * MIB, 1)) == (b'', [])
    assert take(b'', make_content(2 * MIB)) == (b'', [])
    assert take(make_content(2 * MIB), b'') == (b'', [])


def test_constant_content_is_copied(take):
    found, covered = take(bytes(3 * MIB), bytes(10 * MIB))
    assert covered == [(0, 10 * MIB)]
    assert found == bytes(10 * MIB)


def test_a_sparse_old_version_is_copied(tmp_path):
    data = make_content(MIB)
    new = bytes(20 * MIB) + data + bytes(MIB)
    with opened(tmp_path / 'old', size=20 * MIB) as old_fd, opened(tmp_path / 'new') as fd:
        os.pwrite(old_fd, data, 10 * MIB)
        covered = copy_matches(old_fd, 20 * MIB, cut(new), fd, [(0, len(new))], ignore)
    assert_covered((tmp_path / 'new').read_bytes(), new, covered)
    assert sum(stop - start for start, stop in covered) >= len(new) - 600 * KIB


def test_what_is_not_missing_is_not_written(take, tmp_path):
    old = make_content(4 * MIB)
    missing = [(0, 100), (MIB, 2 * MIB), (3 * MIB + 7, 3 * MIB + 8)]
    found, covered = take(old, old, missing)
    assert covered == missing
    expected = bytearray(3 * MIB + 8)
    for start, stop in missing:
        expected[start:stop] = old[start:stop]
    assert found == expected


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 5), max_size=8),
    st.lists(st.integers(0, 5), max_size=8),
    st.integers(0, 100_000),
    st.lists(st.integers(0, 3 * MIB), max_size=6, unique=True),
)
def test_copies_and_what_is_missing_give_the_new_content(old_order, new_order, extra, edges):
    """Pieces in any order, spans of any shape: only what is missing is written, and it is right."""
    pieces = [make_content(seed * 150_000, seed) for seed in range(5)] + [bytes(700_000)]
    old = b''.join(pieces[index] for index in old_order)
    new = make_content(extra, 9) + b'?'.join(pieces[index] for index in new_order)
    edges = sorted(min(edge, len(new)) for edge in edges)
    missing = list(zip(edges[::2], edges[1::2], strict=False))
    with tempfile.TemporaryDirectory() as directory:
        top = pathlib.Path(directory)
        with opened(top / 'old', old) as old_fd, opened(top / 'new', bytes(len(new))) as fd:
            covered = copy_matches(old_fd, len(old), cut(new), fd, missing, ignore)
            found = os.pread(fd, len(new) + 1, 0)
    assert_covered(found, new, covered)
    expected = bytearray(len(new))
    for start, stop in covered:
        assert any(first <= start and stop <= last for first, last in merged(missing))
        expected[start:stop] = new[start:stop]
    assert found == expected


def merged(spans):
    """Join spans that touch, as two copies across their border are one span of the result."""
    result = []
    for start, stop in spans:
        if result and result[-1][1] == start:
            result[-1] = (result[-1][0], stop)
        else:
            result.append((start, stop))
    return result


def test_only_so_much_of_a_large_old_version_is_read(take):
    new = make_content(MIB)
    within = bytes((limits.MAX_OLD_RATIO - 1) * MIB)
    found, covered = take(within + new, new)
    assert_covered(found, new, covered)
    assert covered
    assert take(within + bytes(MIB) + new, new) == (b'', [])


def test_a_new_version_that_is_not_cut_here_is_a_mistake(tmp_path):
    chunks = [Chunk(MAX_CUT_SIZE + 1, bytes(32))]
    with opened(tmp_path / 'old') as fd, pytest.raises(ValueError, match='not cut here'):
        copy_matches(fd, 0, chunks, fd, [], ignore)


# --- an old version that changes, and a kernel that cannot --------------------------------------


@pytest.mark.parametrize('left', [0, 100_000, 5 * MIB])
@pytest.mark.parametrize('when', ['cut', 'copied'])
def test_an_old_version_that_shrinks_is_copied_as_far_as_it_goes(take, tmp_path, left, when):
    """It shrinks while it is cut, or while it is copied; in both cases what is left is right."""
    old = make_content(8 * MIB)
    calls = 3 if when == 'cut' else len(cut(old)) + 3
    new = b''.join(old[start : start + 200_000] + b'!' for start in range(0, len(old), 200_000))
    count = 0

    def shrink():
        nonlocal count
        count += 1
        if count == calls:
            os.truncate(tmp_path / 'old', left)

    found, covered = take(old, new, check=shrink)
    assert count > calls
    assert_covered(found, new, covered)
    assert sum(stop - start for start, stop in covered) < len(new) - 600 * KIB


def test_what_changes_in_the_old_version_is_found_by_the_callers_check(take, tmp_path):
    """Nothing is promised about it: the blocks are hashed, and this one is not right."""
    old = make_content(4 * MIB)
    count = 0

    def change():
        nonlocal count
        count += 1
        if count == len(cut(old)) + 1:  # it is cut, and not yet copied
            with open(tmp_path / 'old', 'r+b') as file:
                file.seek(2 * MIB)
                file.write(b'changed')

    found, covered = take(old, old, check=change)
    assert covered == [(0, 4 * MIB)]
    manifest = build_manifest(old)
    wrong = [
        index
        for index in range(manifest.block_count)
        if not manifest.matches(index, found[slice(*manifest.block_range(index))])
    ]
    assert wrong == [16]


@pytest.mark.parametrize('calls', [1, 30, 61])
def test_the_caller_can_stop_it(take, calls):
    """While it cuts as well as while it copies."""
    old = make_content(4 * MIB)
    count = 0

    class StopError(Exception):
        pass

    def check():
        nonlocal count
        count += 1
        if count == calls:
            raise StopError

    new = b''.join(old[start : start + 200_000] + b'!' for start in range(0, len(old), 200_000))
    with pytest.raises(StopError):
        take(old, new, check=check)


@pytest.mark.parametrize('code', ['EXDEV', 'EOPNOTSUPP', 'EINVAL', 'ENOSYS'])
def test_what_the_kernel_cannot_copy_is_read_and_written(take, monkeypatch, code):
    def refuse(*arguments):
        raise OSError(getattr(errno, code), code)

    monkeypatch.setattr(os, 'copy_file_range', refuse)
    old = make_content(4 * MIB)
    found, covered = take(old, b'!' + old)
    assert_covered(found, b'!' + old, covered)
    assert covered


def test_it_works_from_one_file_system_to_another(tmp_path):
    shm = pathlib.Path('/dev/shm')
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip('there is no second file system at /dev/shm')
    old = make_content(2 * MIB)
    with (
        tempfile.TemporaryDirectory(dir=shm) as other,
        opened(pathlib.Path(other) / 'old', old) as old_fd,
        opened(tmp_path / 'new') as fd,
    ):
        covered = copy_matches(old_fd, len(old), cut(old), fd, [(0, len(old))], ignore)
    assert covered == [(0, len(old))]
    assert (tmp_path / 'new').read_bytes() == old


@pytest.mark.parametrize('code', ['ENOSPC', 'EIO', 'EFBIG'])
def test_other_errors_are_raised(take, monkeypatch, code):
    def fail(*arguments):
        raise OSError(getattr(errno, code), code)

    monkeypatch.setattr(os, 'copy_file_range', fail)
    with pytest.raises(OSError, match=code):
        take(make_content(MIB), make_content(MIB))


def test_a_long_copy_is_done_in_pieces(take, monkeypatch):
    monkeypatch.setattr(delta, 'COPY_SIZE', 1000)
    count = 0

    def check():
        nonlocal count
        count += 1

    old = make_content(MIB)
    found, covered = take(old, old, check=check)
    assert (found, covered) == (old, [(0, MIB)])
    assert count == len(cut(old)) + -(-MIB // 1000)
