"""degu_rpc.files.content: a manifest belongs to one state of a file, memory is bounded."""

from __future__ import annotations

import os
import time

import pytest

from degu_rpc.errors import ContentChangedError
from degu_rpc.files import content
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.content import (
    RECORD_SIZE,
    HashCache,
    Signature,
    hash_file,
    hash_steps,
    signature_of,
)

OLD = Signature(1, 2, 3, 4, 5)


@pytest.fixture
def opened(tmp_path):
    path = tmp_path / 'f'
    path.write_bytes(os.urandom(3_000_000))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def test_a_file_is_hashed_as_it_is(opened):
    held = os.pread(opened, 4_000_000, 0)
    assert hash_file(opened, ()) == (signature_of(os.fstat(opened)), build_manifest(held))


@pytest.mark.parametrize(
    'change',
    [
        lambda fd: os.pwrite(fd, b'x', 0),
        lambda fd: os.ftruncate(fd, 1_500_000),
        lambda fd: os.ftruncate(fd, 0),
        lambda fd: os.pwrite(fd, b'x', 3_000_000),
    ],
)
def test_a_file_that_changes_meanwhile_has_no_manifest(opened, change):
    steps = hash_steps(opened, (b'a f',))
    next(steps)
    # A change shows in ctime only after the file system's clock has ticked.
    before = os.fstat(opened).st_ctime_ns
    while os.fstat(opened).st_ctime_ns == before:
        change(opened)
    with pytest.raises(ContentChangedError, match='a f'):
        list(steps)


def test_a_rename_is_the_same_file():
    assert OLD.same_file(OLD._replace(ctime_ns=9))
    for field in ('device', 'inode', 'size', 'mtime_ns'):
        assert not OLD.same_file(OLD._replace(**{field: 9}))


def test_the_cache_trusts_only_what_had_rested():
    cache = HashCache()
    manifest = build_manifest(b'abc')
    fresh = OLD._replace(mtime_ns=time.time_ns())
    cache.add((b'old',), OLD, manifest)
    cache.add((b'fresh',), fresh, manifest)
    assert cache.find((b'old',), OLD).root == manifest.root
    assert cache.find((b'fresh',), fresh) is None
    assert cache.find((b'old',), OLD._replace(ctime_ns=9)) is None
    assert cache.find((b'other',), OLD) is None


def test_the_cache_forgets_the_oldest_first_and_keeps_its_bound(monkeypatch):
    monkeypatch.setattr(content, 'MAX_REMEMBERED', 3 * (RECORD_SIZE + 32))
    cache = HashCache()
    added = [cache.add((b'%d' % n,), OLD, build_manifest(b'%d' % n)) for n in range(10)]
    found = [cache.find_root(hashed.root) for hashed in added]
    assert found == [None] * 7 + added[7:]


def test_the_cache_keeps_one_manifest_of_any_size(monkeypatch):
    monkeypatch.setattr(content, 'MAX_REMEMBERED', 1)
    cache = HashCache()
    hashed = cache.add((b'a',), OLD, build_manifest(b'a'))
    assert cache.find_root(hashed.root) == hashed


def test_a_path_with_new_content_answers_for_the_new_content_only():
    cache = HashCache()
    first = cache.add((b'a',), OLD, build_manifest(b'1'))
    second = cache.add((b'a',), OLD, build_manifest(b'2'))
    assert cache.find_root(first.root) is None
    assert cache.find_root(second.root) == second
    cache.forget((b'a',))
    assert cache.find_root(second.root) is None
    cache.forget((b'a',))
