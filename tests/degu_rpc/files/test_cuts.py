"""degu_rpc.files.cuts: the same bytes give the same chunks, wherever they stand."""

from __future__ import annotations

import io
import itertools
import random
import subprocess
import sys

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from degu_rpc.files import cuts
from degu_rpc.files.cuts import (
    Chunk,
    Copy,
    average_size,
    can_cut,
    clip_copies,
    cut_content,
    format_chunk,
    format_size,
    max_list_size,
    parse_cuts,
    plan_copies,
)

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

seeds = st.integers(0, 3)
noise = st.builds(
    lambda seed, size: random.Random(seed).randbytes(size), seeds, st.integers(0, MIB)
)
constant = st.builds(lambda byte, size: bytes([byte]) * size, seeds, st.integers(0, MIB))
contents = st.lists(noise | constant | st.binary(), max_size=3).map(b''.join)
sizes = st.integers(0, cuts.MAX_CUT_SIZE)


class Splitting:
    """Reads a content in pieces of whatever length."""

    def __init__(self, content: bytes, seed: int, longest: int) -> None:
        self.stream = io.BytesIO(content)
        self.random = random.Random(seed)
        self.longest = longest

    def readinto(self, b: memoryview) -> int:
        return self.stream.readinto(b[: self.random.randint(1, self.longest)])


def cut(content: bytes, size: int | None = None) -> list[Chunk]:
    return list(cut_content(io.BytesIO(content), len(content) if size is None else size))


def format_cuts(size: int, chunks: list[Chunk]) -> bytes:
    return format_size(size) + b''.join(map(format_chunk, chunks))


def make_content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


# --- cutting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('size', 'average'),
    [
        (0, 64 * KIB),
        (GIB, 64 * KIB),
        (GIB + 1, 128 * KIB),
        (2 * GIB, 128 * KIB),
        (16 * GIB, MIB),
        (64 * GIB, 4 * MIB),
    ],
)
def test_the_average_grows_with_the_size(size, average):
    assert average_size(size) == average


@given(sizes)
def test_the_average_is_minimal_and_a_list_is_bounded(size):
    average = average_size(size)
    assert average in {64 * KIB * 2**k for k in range(7)}
    assert average * cuts.WANTED_CHUNKS >= size
    assert average == 64 * KIB or average * cuts.WANTED_CHUNKS // 2 < size
    assert max_list_size(size) <= 4 * cuts.WANTED_CHUNKS * 36 + 8


def test_files_above_the_limit_are_not_cut():
    assert can_cut(0)
    assert can_cut(cuts.MAX_CUT_SIZE)
    assert not can_cut(cuts.MAX_CUT_SIZE + 1)
    with pytest.raises(ValueError, match='not cut here'):
        cut(b'', cuts.MAX_CUT_SIZE + 1)


@given(contents, st.integers(0, 4 * GIB))
def test_chunks_are_the_content_within_their_bounds(content, size):
    average = average_size(size)
    rest = memoryview(content)
    for chunk in cut(content, size):
        assert blake3(rest[: chunk.length]).digest() == chunk.digest
        assert 0 < chunk.length <= 4 * average
        rest = rest[chunk.length :]
        assert chunk.length >= average // 4 or not rest
    assert not rest


@settings(max_examples=30)
@given(contents, st.integers(), st.sampled_from([100, 10_000, 10**6]))
def test_cutting_does_not_depend_on_how_the_input_is_split(content, seed, longest):
    if longest == 100:
        content = content[: 600 * KIB]
    split = cut_content(Splitting(content, seed, longest), len(content))
    assert list(split) == cut(content)


def test_the_cut_points_are_part_of_the_format():
    """Another release of the cutter with other cut points would find nothing in common."""
    lengths = [chunk.length for chunk in cut(make_content(MIB))]
    assert lengths == [
        17431,
        66731,
        139593,
        95160,
        102440,
        45744,
        70614,
        161851,
        62891,
        86983,
        76225,
        81831,
        41082,
    ]
    assert [chunk.length for chunk in cut(bytes(MIB))] == [256 * KIB] * 4


def test_an_error_of_the_stream_comes_through():
    class Failing:
        def readinto(self, b):
            raise OSError(5, 'bad disk')

    with pytest.raises(OSError, match='bad disk'):
        list(cut_content(Failing(), 100))


def test_a_slow_cutter_is_not_used():
    """Without the compiled part nothing warns, and nothing is cut."""
    script = (
        'import sys; sys.modules["pyfastcdc.cy"] = None\n'
        'from degu_rpc.files.cuts import can_cut\n'
        'import pyfastcdc\n'
        'print(pyfastcdc.FastCDC.__module__, can_cut(0), can_cut(10**6))\n'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', script], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ('pyfastcdc.py.fastcdc False False\n', '')


# --- the list on the wire -----------------------------------------------------------------------


def test_a_list_is_the_size_and_then_a_length_and_a_digest_each():
    chunks = cut(b'hello')
    digest = blake3(b'hello').digest()
    assert chunks == [Chunk(5, digest)]
    wire = (5).to_bytes(8, 'little') + (5).to_bytes(4, 'little') + digest
    assert format_cuts(5, chunks) == wire


@given(contents)
def test_parse_of_format_is_identity(content):
    chunks = cut(content)
    wire = format_cuts(len(content), chunks)
    assert parse_cuts(wire, len(content)) == chunks
    assert len(wire) <= max_list_size(len(content))


@given(contents.filter(bool), st.data())
def test_a_list_that_ends_early_or_goes_on_is_refused(content, data):
    wire = format_cuts(len(content), cut(content))
    for other in (wire[: data.draw(st.integers(0, len(wire) - 1))], wire + wire[-36:]):
        with pytest.raises(ValueError, match='bytes'):
            parse_cuts(other, len(content))


@given(st.binary(max_size=300), st.integers(0, 10**6) | sizes)
def test_any_bytes_are_a_list_or_a_valueerror(data, size):
    try:
        chunks = parse_cuts(data, size)
    except ValueError:
        return
    assert format_cuts(size, chunks) == data


@given(
    st.lists(st.sampled_from([0, 1, 16 * KIB - 1, 16 * KIB, 256 * KIB, 256 * KIB + 1])),
    st.integers(-1, 1),
)
def test_a_list_is_taken_exactly_if_the_cutter_could_have_made_it(lengths, more):
    size = max(sum(lengths) + more, 0)
    chunks = [Chunk(length, bytes(32)) for length in lengths]
    right = (
        sum(lengths) == size
        and all(16 * KIB <= length <= 256 * KIB for length in lengths[:-1])
        and all(0 < length <= 256 * KIB for length in lengths[-1:])
    )
    wire = format_cuts(size, chunks)
    if right:
        assert parse_cuts(wire, size) == chunks
    else:
        with pytest.raises(ValueError, match='bytes'):
            parse_cuts(wire, size)


def test_the_list_of_another_size_is_refused():
    wire = format_cuts(5, cut(b'hello'))
    with pytest.raises(ValueError, match='of a file of 5 bytes'):
        parse_cuts(wire, 6)


def test_a_list_has_no_more_chunks_than_the_shortest_allow():
    size = 10 * 16 * KIB
    most = [Chunk(16 * KIB, bytes(32))] * 10
    assert len(format_cuts(size, most)) == max_list_size(size)
    assert parse_cuts(format_cuts(size, most), size) == most
    with pytest.raises(ValueError, match='are no list'):
        parse_cuts(format_cuts(size, [*most, most[0]]), size)


# --- what both have -----------------------------------------------------------------------------


def apply_copies(old: bytes, new: bytes, copies: list[Copy]) -> tuple[bytes, int]:
    """Return what the copies and the missing bytes give, and how many were missing."""
    built = bytearray(new)
    for copy in copies:  # what is copied comes from the old version and nowhere else
        built[copy.start : copy.start + copy.size] = bytes(copy.size)
    for copy in copies:
        piece = old[copy.old_start : copy.old_start + copy.size]
        built[copy.start : copy.start + copy.size] = piece
    return bytes(built), len(new) - sum(copy.size for copy in copies)


@given(st.lists(noise | constant, max_size=4), st.lists(st.integers(0, 3), max_size=6))
def test_copies_and_the_missing_ranges_give_the_new_content(pieces, order):
    """Pieces of the old content come in another order, some twice and some not at all."""
    old = b''.join(pieces)
    new = b'!'.join(pieces[index] for index in order if index < len(pieces))
    copies = plan_copies(cut(old, len(new)), cut(new))
    built, missing = apply_copies(old, new, copies)
    assert built == new
    assert missing >= 0


chunk_lists = st.lists(st.builds(Chunk, st.integers(1, 3), st.sampled_from([b'a', b'b', b'c'])))


@given(chunk_lists, chunk_lists)
def test_every_chunk_that_both_have_is_copied_and_what_adjoins_is_one_copy(old, new):
    def spread(chunks):
        return [(chunk, position) for chunk in chunks for position in range(chunk.length)]

    copies = plan_copies(old, new)
    old_bytes, new_bytes = spread(old), spread(new)
    built = [None if chunk in old else (chunk, position) for chunk, position in new_bytes]
    for copy in copies:
        part = slice(copy.start, copy.start + copy.size)
        assert built[part] == [None] * copy.size
        built[part] = old_bytes[copy.old_start : copy.old_start + copy.size]
    assert built == new_bytes
    for one, other in itertools.pairwise(copies):
        assert one.start + one.size <= other.start
        assert (one.start + one.size, one.old_start + one.size) != (other.start, other.old_start)


CHANGES = {
    'insert': (lambda old: b'!' + old, 300 * KIB),
    'insert-1-mib': (lambda old: make_content(MIB, 1) + old, MIB + 300 * KIB),
    'delete': (lambda old: old[1:], 300 * KIB),
    'delete-1-mib': (lambda old: old[:MIB] + old[2 * MIB :], 300 * KIB),
    'replace': (lambda old: old[: 4 * MIB] + b'!' * 1000 + old[4 * MIB + 1000 :], 600 * KIB),
    'move': (lambda old: old[6 * MIB :] + old[: 6 * MIB], 600 * KIB),
    'append': (lambda old: old + b'!', 300 * KIB),
    'double': (lambda old: old + old, 300 * KIB),
    'nothing-in-common': (lambda old: old[::-1], 8 * MIB),
}


@pytest.mark.parametrize('name', CHANGES)
def test_little_is_missing_after_a_change(name):
    change, most = CHANGES[name]
    old = make_content(8 * MIB)
    new = change(old)
    built, missing = apply_copies(old, new, plan_copies(cut(old, len(new)), cut(new)))
    assert built == new
    assert missing <= most


def test_more_of_a_constant_content_is_few_copies():
    old, new = cut(bytes(4 * MIB)), cut(bytes(10 * MIB))
    assert plan_copies(old, new) == [
        Copy(0, 0, 4 * MIB),
        Copy(4 * MIB, 0, 4 * MIB),
        Copy(8 * MIB, 0, 2 * MIB),
    ]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5), st.integers(0, 50)), max_size=8),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8),
)
def test_clipped_copies_are_exactly_what_lies_in_the_spans(gaps_and_sizes, gaps_and_lengths):
    copies, spans = [], []
    position = 0
    for gap, size, old_start in gaps_and_sizes:
        copies.append(Copy(position + gap, old_start, size))
        position += gap + size
    position = 0
    for gap, length in gaps_and_lengths:
        spans.append((position + gap, position + gap + length))
        position += gap + length

    def bytes_of(copies):
        return [
            (copy.start + offset, copy.old_start + offset)
            for copy in copies
            for offset in range(copy.size)
        ]

    wanted = {position for span in spans for position in range(*span)}
    expected = [(start, old) for start, old in bytes_of(copies) if start in wanted]
    clipped = clip_copies(copies, spans)
    assert bytes_of(clipped) == expected
    assert all(copy.size for copy in clipped)
