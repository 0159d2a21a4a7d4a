"""degu_rpc.files.blocks: equal content has an equal root, and nothing else has it."""

from __future__ import annotations

import base64
import itertools

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from degu_rpc.errors import IntegrityError
from degu_rpc.files import blocks
from degu_rpc.files.blocks import (
    Manifest,
    ManifestHasher,
    build_manifest,
    find_runs,
    parse_manifest,
)

KIB = 1024
MIB = 1024 * KIB
sizes = st.integers(0, blocks.MAX_SIZE)


def root_of_bytes(data: bytes) -> str:
    digest = blake3(data, derive_key_context='degu_rpc file root v1').digest()
    return base64.b32encode(digest).decode().lower().rstrip('=')


def make_content(size: int) -> bytes:
    return (b'0123456789abcdef!' * (size // 17 + 1))[:size]


@pytest.mark.parametrize(
    ('size', 'expected'),
    [
        (0, 128 * KIB),
        (1, 128 * KIB),
        (256 * MIB, 128 * KIB),
        (256 * MIB + 1, 256 * KIB),
        (512 * MIB, 256 * KIB),
        (32 * 1024 * MIB, 16 * MIB),
        (blocks.MAX_SIZE, 16 * MIB),
    ],
)
def test_block_size_is_the_smallest_that_gives_at_most_2048_blocks(size, expected):
    assert blocks.block_size(size) == expected


@given(sizes)
def test_block_size_is_minimal_and_bounded(size):
    step = blocks.block_size(size)
    assert step in {128 * KIB * 2**k for k in range(8)}
    assert step == 16 * MIB or blocks.block_count(size) <= 2048
    assert step == 128 * KIB or size > 2048 * step // 2


@pytest.mark.parametrize('size', [-1, blocks.MAX_SIZE + 1])
def test_block_size_refuses_what_is_no_size(size):
    with pytest.raises(ValueError, match='bytes'):
        blocks.block_size(size)


@pytest.mark.parametrize(
    'size', [0, 1, 128 * KIB - 1, 128 * KIB, 128 * KIB + 1, 256 * KIB, 300_000]
)
def test_root_is_the_derived_hash_of_size_exponent_and_leaves(size):
    content = make_content(size)
    leaves = b''.join(
        blake3(content[start : start + 128 * KIB]).digest() for start in range(0, size, 128 * KIB)
    )
    manifest = build_manifest(content)
    assert manifest == Manifest(size, 128 * KIB, leaves)
    assert manifest.root == root_of_bytes(size.to_bytes(8, 'little') + b'\x11' + leaves)
    assert blocks.is_root(manifest.root)


def test_root_never_changes_between_versions():
    """These two are what every other machine has."""
    assert build_manifest(b'').root == '7zo45i4xgm7g7eeoudtxffdmkjjz3bdg4bzknynbixdq6yd74efa'
    three = build_manifest(b'x' * 300_000)
    assert three.root == 'aomgpt5zk4il55qbjcvgn7xjj44ibizaggrtpsz7eojodqxwb37a'


def test_equal_bytes_of_another_size_have_another_root():
    assert build_manifest(b'\0').root != build_manifest(b'').root


@given(st.integers(0, 500_000), st.lists(st.integers(1, 200_000), max_size=6))
def test_manifest_is_the_same_however_the_content_is_split(size, lengths):
    content = make_content(size)
    hasher = ManifestHasher(size)
    start = 0
    for length in lengths:
        hasher.update(content[start : start + length])
        start += length
    hasher.update(memoryview(content)[start:])
    assert hasher.finish() == build_manifest(content)


def test_hasher_refuses_more_than_was_announced():
    hasher = ManifestHasher(3)
    hasher.update(b'abc')
    with pytest.raises(ValueError, match='more than'):
        hasher.update(b'd')


def test_hasher_refuses_to_finish_early():
    hasher = ManifestHasher(3)
    hasher.update(b'ab')
    with pytest.raises(ValueError, match='2 of the 3'):
        hasher.finish()


def test_block_range_covers_the_file_without_gaps():
    manifest = build_manifest(make_content(300_000))
    assert [manifest.block_range(index) for index in range(3)] == [
        (0, 131072),
        (131072, 262144),
        (262144, 300_000),
    ]
    for index in (-1, 3):
        with pytest.raises(IndexError):
            manifest.block_range(index)


def test_a_block_matches_only_where_it_belongs():
    content = make_content(300_000)
    manifest = build_manifest(content)
    first = content[:131072]
    assert manifest.matches(0, first)
    assert not manifest.matches(1, first)
    assert not manifest.matches(0, b'?' + first[1:])
    assert not manifest.matches(0, first[:-1])


@given(st.integers(0, 2_000_000))
def test_parse_of_format_is_identity(size):
    manifest = build_manifest(bytes(size))
    data = blocks.format_manifest(manifest)
    assert len(data) == blocks.manifest_size(size)
    assert parse_manifest(data, manifest.root) == manifest


@given(st.data())
def test_a_manifest_with_any_bit_flipped_is_refused(data):
    manifest = build_manifest(make_content(300_000))
    wire = bytearray(blocks.format_manifest(manifest))
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(IntegrityError, match='does not match'):
        parse_manifest(bytes(wire), manifest.root)


@given(st.binary(max_size=100))
def test_bytes_that_hash_to_the_root_but_describe_no_file_are_refused(data):
    """Whoever invents a root can make any bytes match it."""
    try:
        manifest = parse_manifest(data, root_of_bytes(data))
    except IntegrityError:
        return
    assert blocks.format_manifest(manifest) == data


@pytest.mark.parametrize(
    'data',
    [
        b'',
        b'\x05' + bytes(7),
        (5).to_bytes(8, 'little') + b'\x11',
        (5).to_bytes(8, 'little') + b'\x12' + bytes(32),
        (5).to_bytes(8, 'little') + b'\x11' + bytes(64),
        b'\xff' * 8 + b'\x18',
    ],
)
def test_a_manifest_with_the_wrong_shape_is_refused(data):
    with pytest.raises(IntegrityError, match='describes no file'):
        parse_manifest(data, root_of_bytes(data))


@pytest.mark.parametrize(
    'text', ['', 'a' * 51, 'a' * 53, 'A' * 52, 'a' * 51 + 'b', 'a' * 51 + '=', '1' * 52, '../' * 17]
)
def test_is_root_takes_nothing_else(text):
    assert not blocks.is_root(text)


@given(st.sets(st.integers(0, 50)), st.integers(1, 10))
def test_runs_cover_exactly_the_indexes_and_are_no_longer_than_allowed(indexes, longest):
    runs = find_runs(sorted(indexes), longest)
    covered = [index for first, last in runs for index in range(first, last + 1)]
    assert covered == sorted(indexes)
    assert all(last - first < longest for first, last in runs)
    for before, after in itertools.pairwise(runs):
        assert before[1] + 1 < after[0] or before[1] - before[0] == longest - 1
