"""How ids are spelled: what a person gets wrong is found."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from degu_rpc.peers.spelling import format_id, is_spelled, parse_id

ALPHABET = 'abcdefghijklmnopqrstuvwxyz234567'
ids = st.text(ALPHABET, min_size=48, max_size=48)
# The same examples each time: one error in a million is not found.
same = settings(derandomize=True)


def test_the_spelling_of_an_id_never_changes() -> None:
    spelled = format_id('abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnop')
    assert spelled == 'abcdef-ghijkl-mnopqr-stuvwx-yz2345-67abcd-efghij-klmnop-6tmi'


@given(ids, st.sampled_from(['-', ' ', '', ' - ', '\n']), st.booleans())
def test_an_id_is_read_as_it_was_spelled(id_: str, separator: str, is_upper: bool) -> None:
    spelled = format_id(id_)
    assert re.fullmatch('([a-z2-7]{6}-){8}[a-z2-7]{4}', spelled)
    heard = spelled.replace('-', separator)
    heard = heard.upper() if is_upper else heard
    assert is_spelled(heard)
    assert parse_id(heard) == id_


@same
@given(ids, st.integers(0, 51), st.sampled_from(ALPHABET + '0189'))
def test_a_wrong_character_is_found(id_: str, place: int, wrong: str) -> None:
    right = format_id(id_).replace('-', '')
    assume(right[place] != wrong)
    heard = right[:place] + wrong + right[place + 1 :]
    assert is_spelled(heard)
    with pytest.raises(ValueError, match='a character of'):
        parse_id(heard)


@same
@given(ids, st.integers(0, 51), st.integers(0, 51))
def test_two_swapped_characters_are_found(id_: str, one: int, other: int) -> None:
    right = list(format_id(id_).replace('-', ''))
    assume(right[one] != right[other])
    right[one], right[other] = right[other], right[one]
    with pytest.raises(ValueError, match='or two are swapped'):
        parse_id(''.join(right))


@same
@given(ids, st.permutations(range(8)))
def test_groups_in_another_order_are_found(id_: str, order: list[int]) -> None:
    *groups, check = format_id(id_).split('-')
    moved = [groups[index] for index in order]
    assume(moved != groups)
    with pytest.raises(ValueError):
        parse_id('-'.join([*moved, check]))


@pytest.mark.parametrize('text', ['studio', '', 'a' * 48, 'a' * 51, 'é' * 52, 'a' * 26 + '.' * 26])
def test_what_is_a_name_or_a_plain_id_is_not_spelled(text: str) -> None:
    assert not is_spelled(text)
    with pytest.raises(ValueError):
        parse_id(text)


def test_what_is_no_id_has_no_spelling() -> None:
    with pytest.raises(ValueError, match='an id is 48'):
        format_id('studio')
