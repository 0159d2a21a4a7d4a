"""The short code of a pairing: one value of 40 bits, and two spellings of it.

    4HMA-SW9R            8 characters of Crockford's base32, 5 bits each
    110642-maple-tiger   6 digits of 3 bits each, and 2 words of 11 bits each

1. 35 of the bits are random, the last 5 are their check: `build_code`.
2. A person reads one of the spellings aloud or types it: `str(code)`, `code.words`.
3. `parse_code` takes either, forgives what people do to codes (case, spaces, dashes, O for 0, I and
   L for 1), and says what is wrong with anything else. So a slip is found before anything is sent.

The check is that of a Reed-Solomon code: the eight characters are the coefficients of a polynomial
over GF(32) that is zero at `_ROOT`. It finds each wrong character, and two that changed places.
With this root the same is true of the six digits. Of wrong words that are in the list, and of two
that changed places, it lets one in 32 pass. Digits go from 0 to 7, so that each is 3 whole bits: of
wrong decimal digits one in 32 would pass, too.

No I/O but reading the list of words, once; randomness is an argument.
"""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass
from importlib import resources

from degu_rpc.errors import CodeError

RANDOM_BITS = 35

_CHECK_BITS = 5
_BASE32 = '0123456789ABCDEFGHJKMNPQRSTVWXYZ'  # Source: Crockford, "Base 32": no I, L, O, U
_BASE32_VALUES = {
    **{character: value for value, character in enumerate(_BASE32)},
    'O': 0,
    'I': 1,
    'L': 1,
}
_BASE32_LENGTH = 8
_NUMBER_LENGTH = 6
_WORD_BITS = 11
_MAX_LENGTH = 64
_SEPARATORS = re.compile('[\\s\\u002d\\u2010-\\u2015]+')  # spaces, and dashes of every length

# GF(32) with the polynomial x^5 + x^2 + 1.
_FIELD_POLYNOMIAL = 0b100101
_ROOT = 5


@dataclass(frozen=True, slots=True, repr=False)
class PairingCode:
    """A code whose check is right; `str()` is its spelling in 8 characters."""

    value: int

    def __str__(self) -> str:
        text = ''.join(_BASE32[digit] for digit in _split(self.value, _BASE32_LENGTH, 5))
        return f'{text[:4]}-{text[4:]}'

    @property
    def words(self) -> str:
        """The spelling as a number and two words."""
        words = read_words()
        number, first, second = _split(self.value, 3, _WORD_BITS)
        return f'{number:0{_NUMBER_LENGTH}o}-{words[first]}-{words[second]}'

    @property
    def secret(self) -> bytes:
        """What both sides put into the PAKE."""
        return self.value.to_bytes(5, 'big')


def build_code(random_bits: int) -> PairingCode:
    """Return the code of 35 random bits, given as an int.

    >>> str(build_code(0x123456789))
    '4HMA-SW9R'

    Raises ValueError for another number of bits.
    """
    if not 0 <= random_bits < 1 << RANDOM_BITS:
        raise ValueError(f'random_bits must have {RANDOM_BITS} bits')
    value = random_bits << _CHECK_BITS
    return PairingCode(value | _syndrome(value))


def parse_code(text: str) -> PairingCode:
    """Return the code that a person typed, in either spelling.

    Raises CodeError, which says what is wrong with it.
    """
    if len(text) > _MAX_LENGTH:
        raise CodeError(f'a code has no more than {_MAX_LENGTH} characters')
    parts = [part for part in _SEPARATORS.split(text.upper()) if part]
    # The shortest number and two words are 12 characters.
    if sum(map(len, parts)) < _NUMBER_LENGTH + 2 * 3:
        value = _parse_base32(''.join(parts))
    else:
        value = _parse_words(parts)
    if _syndrome(value) != 0:
        raise CodeError('something in it is wrong, or two things changed places: compare them all')
    return PairingCode(value)


def _parse_base32(text: str) -> int:
    if len(text) != _BASE32_LENGTH:
        raise CodeError(
            f'it has {len(text)} characters; a code has {_BASE32_LENGTH}, or is a number of '
            f'{_NUMBER_LENGTH} digits and two words'
        )
    value = 0
    for character in text:
        if character not in _BASE32_VALUES:
            raise CodeError(f'no code has the character {character!r}')
        value = value << 5 | _BASE32_VALUES[character]
    return value


def _parse_words(parts: list[str]) -> int:
    number = ''.join(parts[:-2])
    if len(number) != _NUMBER_LENGTH or not set(number) <= set('01234567'):
        raise CodeError(
            f'it must begin with {_NUMBER_LENGTH} digits from 0 to 7, and then come two words'
        )
    value = int(number, 8)
    for word in parts[-2:]:
        value = value << _WORD_BITS | _find_word(word.lower())
    return value


def _find_word(word: str) -> int:
    index = _word_indexes().get(word)
    if index is None:
        nearest = difflib.get_close_matches(word, read_words(), n=1, cutoff=0)
        raise CodeError(f'no code has the word {word!r}; the nearest is {nearest[0]!r}')
    return index


@functools.cache
def read_words() -> tuple[str, ...]:
    """Return the 2048 words of codes, sorted."""
    return tuple(resources.files(__package__).joinpath('words.txt').read_text('ascii').split())


@functools.cache
def _word_indexes() -> dict[str, int]:
    return {word: index for index, word in enumerate(read_words())}


def _split(value: int, count: int, bits: int) -> list[int]:
    """Return `count` digits of a value, the most significant first and with all that is left."""
    first, *others = (value >> bits * place for place in reversed(range(count)))
    return [first, *(digit & (1 << bits) - 1 for digit in others)]


def _syndrome(value: int) -> int:
    """Evaluate the polynomial that a value is; 0 is what a right check gives.

    With a check of 0 it is the check that is missing, because the last coefficient is only added.
    """
    result = 0
    for coefficient in _split(value, _BASE32_LENGTH, 5):
        result = _multiply(result, _ROOT) ^ coefficient
    return result


def _multiply(a: int, b: int) -> int:
    """Multiply in GF(32)."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0b100000:
            a ^= _FIELD_POLYNOMIAL
        b >>= 1
    return product
