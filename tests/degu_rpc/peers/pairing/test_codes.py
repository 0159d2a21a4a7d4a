"""degu_rpc.peers.pairing.codes: two spellings of a code, and a slip is no other code."""

from __future__ import annotations

import itertools
import pickle
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu_rpc.errors import CodeError, PairingError, PairingFault
from degu_rpc.peers.pairing.codes import (
    RANDOM_BITS,
    PairingCode,
    build_code,
    parse_code,
    read_words,
)

BASE32 = '0123456789ABCDEFGHJKMNPQRSTVWXYZ'
CODES = st.integers(0, 2**RANDOM_BITS - 1).map(build_code)
SPELLINGS = pytest.mark.parametrize(
    'spell', [str, lambda code: code.words], ids=['8 characters', 'a number and two words']
)


def is_taken(text: str) -> bool:
    try:
        parse_code(text)
    except CodeError:
        return False
    return True


def replace(text: str, index: int, new: str) -> str:
    return text[:index] + new + text[index + 1 :]


def swap(text: str, i: int, j: int) -> str:
    return replace(replace(text, i, text[j]), j, text[i])


# --- what is read as it was meant ---------------------------------------------------------------


@SPELLINGS
@given(code=CODES)
def test_a_spelling_is_read_as_its_code(spell, code: PairingCode) -> None:
    assert parse_code(spell(code)) == code


@SPELLINGS
@given(code=CODES, separator=st.sampled_from(['', ' ', '-', '  ', ' - ', '\u2013', '\u00a0']))
def test_case_spaces_and_dashes_do_not_matter(spell, code: PairingCode, separator: str) -> None:
    text = spell(code)
    number, *words = text.lower().split('-')
    if words and words[0].isalpha() and len(words) == 2:  # words must be told apart
        separator = separator or ' '
        number = separator.join([number[:3], number[3:]])
    assert parse_code(separator.join(['', number, *words, ''])) == code


@pytest.mark.parametrize(('typed', 'meant'), [('O', '0'), ('o', '0'), ('I', '1'), ('l', '1')])
def test_letters_that_look_like_digits_are_those_digits(typed: str, meant: str) -> None:
    code = next(c for c in map(build_code, itertools.count()) if meant in str(c))
    assert parse_code(str(code).replace(meant, typed)) == code


def test_a_spelling_looks_as_documented() -> None:
    code = build_code(0x123456789)
    assert str(code) == '4HMA-SW9R'
    number, first, second = code.words.split('-')
    assert number == '110642'
    assert [read_words().index(word) for word in (first, second)] == [
        code.value >> 11 & 2047,
        code.value & 2047,
    ]


# --- slips --------------------------------------------------------------------------------------


@given(code=CODES)
def test_every_single_wrong_character_is_noticed(code: PairingCode) -> None:
    text = str(code).replace('-', '')
    for index, character in enumerate(text):
        for wrong in BASE32.replace(character, ''):
            assert not is_taken(replace(text, index, wrong))


@given(code=CODES)
def test_any_two_characters_that_changed_places_are_noticed(code: PairingCode) -> None:
    text = str(code).replace('-', '')
    for i, j in itertools.combinations(range(8), 2):
        assert text[i] == text[j] or not is_taken(swap(text, i, j))


@given(code=CODES)
def test_every_single_wrong_digit_of_the_number_is_noticed(code: PairingCode) -> None:
    text = code.words
    for index in range(6):
        for wrong in '0123456789'.replace(text[index], ''):
            assert not is_taken(replace(text, index, wrong))


@given(code=CODES)
def test_any_two_digits_that_changed_places_are_noticed(code: PairingCode) -> None:
    text = code.words
    for i, j in itertools.combinations(range(6), 2):
        assert text[i] == text[j] or not is_taken(swap(text, i, j))


@pytest.mark.parametrize('place', [1, 2])
def test_of_wrong_words_that_are_in_the_list_one_in_32_passes(place: int) -> None:
    parts = build_code(secrets.randbits(RANDOM_BITS)).words.split('-')
    others = [word for word in read_words() if word != parts[place]]
    passed = [w for w in others if is_taken('-'.join([*parts[:place], w, *parts[place + 1 :]]))]
    assert len(passed) == 2048 // 32 - 1


def test_an_unknown_word_is_named_with_the_nearest_one() -> None:
    code = build_code(0)
    word = max(read_words(), key=len)
    number, _, second = code.words.split('-')
    with pytest.raises(CodeError, match=f"no code has the word '{word}q'.*nearest is '{word}'"):
        parse_code(f'{number}-{word}q-{second}')


@pytest.mark.parametrize(
    ('text', 'problem'),
    [
        pytest.param('', 'it has 0 characters', id='empty'),
        pytest.param('4HMA-SW9', 'it has 7 characters', id='too short'),
        pytest.param('4HMA-SW9RR', 'it has 9 characters', id='too long'),
        pytest.param('4HMA-SW9U', "no code has the character 'U'", id='U'),
        pytest.param('4HMA-SW9\u0661', 'no code has the character', id='a digit of another script'),
        pytest.param('4HMA-SW9S', 'two things changed places', id='a wrong check'),
        pytest.param('183904-maple-tiger', '6 digits from 0 to 7', id='a digit above 7'),
        pytest.param('18320-maple-tiger', '6 digits', id='5 digits'),
        pytest.param('maple-tiger-183204', '6 digits', id='another order'),
        pytest.param('183204-mapletiger', '6 digits', id='words in one'),
        pytest.param('\u0661' * 6 + '-maple-tiger', '6 digits', id='digits of another script'),
        pytest.param('A' * 65, 'no more than 64 characters', id='a novel'),
    ],
)
def test_what_is_wrong_is_said_and_the_code_is_still_good(text: str, problem: str) -> None:
    with pytest.raises(CodeError, match=problem) as caught:
        parse_code(text)
    assert 'it is still good' in str(caught.value)
    assert caught.value.fault is PairingFault.CODE


@given(st.text())
def test_any_text_is_a_code_or_a_code_error(text: str) -> None:
    is_taken(text)


def test_a_code_error_is_a_pairing_error_and_a_value_error_and_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(CodeError('too short')))
    assert isinstance(error, PairingError)
    assert isinstance(error, ValueError)
    assert str(error) == str(CodeError('too short'))


# --- how it is made -----------------------------------------------------------------------------


@pytest.mark.parametrize('bits', [-1, 2**RANDOM_BITS])
def test_a_code_has_35_random_bits(bits: int) -> None:
    with pytest.raises(ValueError, match='35 bits'):
        build_code(bits)


@given(a=st.integers(0, 2**RANDOM_BITS - 1), b=st.integers(0, 2**RANDOM_BITS - 1))
def test_other_random_bits_are_another_secret(a: int, b: int) -> None:
    assert (build_code(a).secret == build_code(b).secret) == (a == b)


def test_a_code_does_not_show_itself_in_a_log() -> None:
    code = build_code(0x123456789)
    assert '4HMA' not in repr(code)
    assert str(code.value) not in repr(code)


def test_the_words_are_as_the_spelling_needs_them() -> None:
    words = read_words()
    assert len(words) == len(set(words)) == 2048
    assert list(words) == sorted(words)
    for word in words:
        assert word.isascii()
        assert word.isalpha()
        assert word.islower()
        assert 3 <= len(word) <= 7
