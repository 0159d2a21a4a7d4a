"""degu_rpc.files.partial: what is verified and durable is neither brought nor read again."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu_rpc.errors import IntegrityError
from degu_rpc.files import partial
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.commit import Replacement, Workspace
from degu_rpc.files.partial import Partial, format_note, parse_note, store_small
from degu_rpc.files.paths import Root

BLOCK = 128 * 1024


@pytest.fixture
def workspace(tmp_path):
    with Root(tmp_path) as root, Workspace(root) as opened:
        yield opened


@pytest.fixture
def hashed(monkeypatch):
    """The sizes of the blocks that were hashed."""
    sizes = []
    real = partial.Manifest.matches

    def matches(manifest, index, block):
        sizes.append(len(block))
        return real(manifest, index, block)

    monkeypatch.setattr(partial.Manifest, 'matches', matches)
    return sizes


def make(*kinds, tail=0):
    content = b''.join(bytes(BLOCK) if kind is None else bytes([kind]) * BLOCK for kind in kinds)
    content += b't' * tail
    return content, build_manifest(content)


def block(content, index):
    return content[index * BLOCK : (index + 1) * BLOCK]


def begin(workspace, manifest, found=None):
    part = Partial(workspace, manifest.root, manifest)
    sizes = list(part.find_blocks())
    if found is not None:
        found += sizes
    return part


def bring(part, content, *indexes):
    for index in indexes:
        part.write(index, block(content, index))


def read(part):
    return os.pread(part.fd, part.manifest.size + 1, 0)


def test_blocks_may_come_in_any_order(workspace):
    content, manifest = make(1, 2, 3, tail=5)
    with begin(workspace, manifest) as part:
        assert part.missing() == [0, 1, 2, 3]
        bring(part, content, 3, 0, 2)
        assert part.missing() == [1]
        with pytest.raises(ValueError, match='1 blocks'):
            part.finish()
        bring(part, content, 1)
        assert part.finish().fd == part.fd
        assert read(part) == content


def test_what_is_here_is_skipped(workspace):
    content, manifest = make(1, 2, 3, 4)
    with begin(workspace, manifest) as part:
        bring(part, content, 0, 1, 3)
        assert [part.skip(first, 3) for first in range(4)] == [2, 2, 2, 4]
        assert [part.skip(0, last) for last in range(4)] == [1, 2, 2, 2]


def test_a_block_that_comes_twice_counts_once(workspace):
    content, manifest = make(1, 2)
    with Partial(workspace, manifest.root, manifest) as part:
        assert [part.write(0, block(content, 0)) for _ in range(2)] == [True, False]
        assert part.written == BLOCK


def test_i10_a_block_that_is_not_right_is_not_written(workspace):
    content, manifest = make(1, 2)
    with begin(workspace, manifest) as part:
        for wrong in (block(content, 1), b'', block(content, 0)[:-1], block(content, 0) + b'x'):
            with pytest.raises(IntegrityError) as caught:
                part.write(0, wrong)
            assert caught.value.block == 0
        assert part.missing() == [0, 1]
        assert read(part) == bytes(2 * BLOCK)


def test_a_later_run_hashes_what_is_there_and_keeps_what_is_right(workspace, hashed):
    content, manifest = make(1, 2, 3, 4)
    with begin(workspace, manifest) as part:
        bring(part, content, 0, 2, 3)
        os.pwrite(part.fd, b'rot', 2 * BLOCK)
    hashed.clear()
    found = []
    with begin(workspace, manifest, found) as part:
        assert part.missing() == [1, 2]
    assert hashed == [BLOCK] * 3
    assert found == [BLOCK, 0, 0, BLOCK]


def test_what_was_noted_is_not_hashed_again(workspace, hashed, monkeypatch):
    monkeypatch.setattr(partial, 'NOTE_SIZE', 2 * BLOCK)
    content, manifest = make(1, 2, 3, 4, 5)
    with begin(workspace, manifest) as part:
        bring(part, content, 0, 1, 3)
    hashed.clear()
    with begin(workspace, manifest) as part:
        assert part.missing() == [2, 4]
    assert hashed == [BLOCK]


def test_a_note_is_made_as_time_passes(workspace, hashed, monkeypatch):
    monkeypatch.setattr(partial, 'NOTE_INTERVAL_S', 0.0)
    content, manifest = make(1, 2)
    with begin(workspace, manifest) as part:
        bring(part, content, 1)
    hashed.clear()
    with begin(workspace, manifest) as part:
        assert part.missing() == [0]
    assert hashed == []


@pytest.mark.parametrize('change', ['torn', 'other inode', 'empty', 'longer'])
def test_a_note_that_is_not_right_counts_as_none(workspace, tmp_path, monkeypatch, change):
    monkeypatch.setattr(partial, 'NOTE_SIZE', 1)
    content, manifest = make(1, 2)
    with begin(workspace, manifest) as part:
        bring(part, content, 0, 1)
        os.pwrite(part.fd, b'rot', 0)
        inode = os.fstat(part.fd).st_ino
    note = tmp_path / '.degu' / 'tmp' / f'{manifest.root}.note'
    data = note.read_bytes()
    assert parse_note(data, inode, 2) == b'\1\1'
    changed = {
        'torn': data[:-1],
        'other inode': format_note(inode + 1, b'\1\1'),
        'empty': b'',
        'longer': data + b'\0',
    }
    note.write_bytes(changed[change])
    with begin(workspace, manifest) as part:
        assert part.missing() == [0]


def test_a_new_temporary_file_believes_no_note_of_an_older_one(workspace, tmp_path, monkeypatch):
    """Not even if it got the same inode, as file systems like to give it."""
    monkeypatch.setattr(partial, 'NOTE_SIZE', 1)
    content, manifest = make(1, 2)
    name = tmp_path / '.degu' / 'tmp' / manifest.root
    with begin(workspace, manifest) as part:
        bring(part, content, 0, 1)
    name.unlink()
    name.touch(0o600)
    name.with_suffix('.note').write_bytes(format_note(name.stat().st_ino, b'\1\1'))
    with begin(workspace, manifest) as part:
        assert part.missing() == [0, 1]
    assert not name.with_suffix('.note').exists()


def test_a_commit_leaves_no_note(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(partial, 'NOTE_SIZE', 1)
    content, manifest = make(1, 2)
    part = begin(workspace, manifest)
    bring(part, content, 0, 1)
    temporary = part.finish()
    workspace.commit([Replacement(temporary, (b'f',), len(content), 0o644, 10**18, None)])
    assert (tmp_path / 'f').read_bytes() == content
    assert os.listdir(tmp_path / '.degu' / 'tmp') == []


def test_zeros_are_here_from_the_beginning_and_take_no_room(workspace):
    content, manifest = make(None, 1, None, None, tail=0)
    with begin(workspace, manifest) as part:
        assert part.missing() == [1]
        assert os.fstat(part.fd).st_blocks == 0
        bring(part, content, 1)
        assert read(part) == content


def test_what_should_be_zeros_and_is_not_is_brought_again(workspace):
    content, manifest = make(1, None)
    with begin(workspace, manifest) as part:
        os.pwrite(part.fd, b'x', BLOCK)
    with begin(workspace, manifest) as part:
        assert part.missing() == [0, 1]
        bring(part, content, 0, 1)
        assert read(part) == content


@pytest.mark.parametrize('size', [0, 1, BLOCK, BLOCK + 1])
def test_any_size_has_its_blocks(workspace, size):
    content = b'c' * size
    manifest = build_manifest(content)
    with begin(workspace, manifest) as part:
        bring(part, content, *range(manifest.block_count))
        assert part.missing() == []
        assert read(part) == content


def test_what_somebody_put_there_is_adopted_only_if_it_is_right(workspace):
    content, manifest = make(1, 2, tail=9)
    with begin(workspace, manifest) as part:
        os.pwrite(part.fd, block(content, 0) + b'wrong', 0)
        os.pwrite(part.fd, block(content, 2), 2 * BLOCK)
        buffer = memoryview(bytearray(BLOCK))
        assert [part.adopt(index, buffer) for index in range(3)] == [True, False, True]
        assert part.missing() == [1]


def test_many_threads_may_write_one(workspace, monkeypatch):
    monkeypatch.setattr(partial, 'NOTE_SIZE', 3 * BLOCK)
    content, manifest = make(*range(1, 33))
    with begin(workspace, manifest) as part:
        threads = [
            threading.Thread(target=bring, args=(part, content, *range(first, 32, 4)))
            for first in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert part.missing() == []
        assert read(part) == content


def test_a_small_content_replaces_what_an_earlier_run_left(workspace):
    first = store_small(workspace, 'root', b'a longer one')
    os.close(first.fd)
    second = store_small(workspace, 'root', b'short')
    assert os.pread(second.fd, 100, 0) == b'short'
    os.close(second.fd)


@given(st.binary().map(lambda data: bytes(byte & 1 for byte in data)), st.integers(0, 2**64 - 1))
def test_a_note_says_what_it_was_given(blocks, inode):
    data = format_note(inode, blocks)
    assert parse_note(data, inode, len(blocks)) == blocks
    assert parse_note(data, inode, len(blocks) + 8) is None
    assert parse_note(data, inode ^ 1, len(blocks)) is None


@given(st.binary(max_size=80), st.integers(0, 100))
def test_any_bytes_are_a_note_only_with_their_checksum(data, block_count):
    assert parse_note(data, 1, block_count) is None
