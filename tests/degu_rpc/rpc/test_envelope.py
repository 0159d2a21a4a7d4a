"""Envelopes: any pieces give the same messages, and nothing else than a message is taken."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu_rpc.errors import Code, CodecError, RpcError
from degu_rpc.rpc.envelope import COMPRESSED, END, format_envelope, parse_envelopes

messages = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3]), st.binary(max_size=40)), max_size=6)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


def test_envelope_is_flags_length_message() -> None:
    assert format_envelope(b'abc', COMPRESSED | END) == b'\x03\x00\x00\x00\x03abc'


@given(messages, st.lists(st.integers(min_value=0), max_size=8))
def test_parse_of_format_is_identity_for_any_pieces(
    content: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    data = b''.join(format_envelope(message, flags) for flags, message in content)
    assert list(parse_envelopes(split(data, cuts), 40)) == content


@given(messages)
def test_one_byte_at_a_time_gives_the_same(content: list[tuple[int, bytes]]) -> None:
    data = b''.join(format_envelope(message, flags) for flags, message in content)
    assert list(parse_envelopes((bytes([byte]) for byte in data), 40)) == content


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_arbitrary_bytes_raise_only_what_is_documented(pieces: list[bytes]) -> None:
    try:
        for flags, message in parse_envelopes(pieces, 50):
            assert flags <= 3
            assert len(message) <= 50
    except (CodecError, RpcError):
        pass


def test_messages_come_as_soon_as_they_are_whole() -> None:
    def pieces():
        yield format_envelope(b'a') + format_envelope(b'b')[:3]
        raise AssertionError('the first was whole')

    assert next(parse_envelopes(pieces(), 10)) == (0, b'a')


@pytest.mark.parametrize('flags', [4, 8, 0x80, 0xFF])
@pytest.mark.parametrize('is_whole', [True, False])
def test_flags_without_a_meaning_are_refused(flags: int, is_whole: bool) -> None:
    data = format_envelope(b'abc', flags)
    pieces = [data] if is_whole else [data[:2], data[2:]]
    with pytest.raises(CodecError, match='flags'):
        list(parse_envelopes(pieces, 10))


@pytest.mark.parametrize('cut', range(1, 8))
def test_end_inside_an_envelope_is_an_error(cut: int) -> None:
    with pytest.raises(CodecError, match='inside an envelope'):
        list(parse_envelopes([format_envelope(b'abc')[:cut]], 10))


@pytest.mark.parametrize('is_whole', [True, False])
def test_largest_message_is_taken_and_a_larger_one_is_not(is_whole: bool) -> None:
    for size in (10, 11):
        data = format_envelope(bytes(size))
        pieces = [data] if is_whole else [data[:7], data[7:]]
        if size == 10:
            assert list(parse_envelopes(pieces, 10)) == [(0, bytes(10))]
            continue
        with pytest.raises(RpcError) as caught:
            list(parse_envelopes(pieces, 10))
        assert caught.value.code is Code.RESOURCE_EXHAUSTED


def test_claimed_length_is_refused_before_anything_is_gathered() -> None:
    def pieces():
        yield b'\x00\xff\xff\xff\xff'
        raise AssertionError('the length was seen')

    tracemalloc.start()
    try:
        with pytest.raises(RpcError):
            next(parse_envelopes(pieces(), 4096))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
