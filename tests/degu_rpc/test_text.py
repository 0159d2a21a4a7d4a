"""What a peer said, made safe to print."""

from __future__ import annotations

import json
import unicodedata

from degu_rpc.text import escape_controls, format_json

HARMFUL = (
    '\x00\x1b\n\x7f\x9b\u061c\u200b\u200e\u200f\u2028\u202e\u2060\u206f\ufeff\udfff\ud800\U000e0001'
)


def test_every_harmful_character_is_escaped_and_nothing_else() -> None:
    for character in HARMFUL:
        said = escape_controls(f'a{character}b')
        assert said == f'a{character.encode("unicode_escape").decode()}b'
    harmless = 'naïve \\ "日本" 🦎 e\u0301'
    assert escape_controls(harmless) == harmless


def test_every_control_of_unicode_is_escaped() -> None:
    for point in range(0x110000):
        if unicodedata.category(chr(point)) in ('Cc', 'Cs', 'Zl', 'Zp'):
            assert escape_controls(chr(point)).isascii()


def test_json_for_people_is_safe_and_still_json() -> None:
    value = {HARMFUL: [HARMFUL, 'naïve']}
    text = format_json(value)
    assert json.loads(text) == value
    assert 'naïve' in text
    assert all(escape_controls(line) == line for line in text.split('\n'))
    assert len(text.split('\n')) == 6
