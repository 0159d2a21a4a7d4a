"""How ids are shown to people, who read them aloud, compare them and type them. Pure.

    abcdef-ghijkl-mnopqr-stuvwx-yz2345-67abcd-efghij-klmnop-6tmi

An id is 48 characters; shown it has 8 groups of 6, and one of 4 that follow from the others. So a
character that is wrong, or two that are swapped, are found with certainty but for one in a million.
The four say nothing about whose id it is. Machines send and store ids as they are.
"""

from __future__ import annotations

import base64
import hashlib
import re

from degu import pki

_GROUP = 6
_CHECK = 4
_PERSON = b'degu-check-1'
# Wider than the alphabet of ids: who takes an o for a 0 is to be told so.
_match_spelled = re.compile(r'[a-z0-9]{52}').fullmatch


def format_id(id_: str) -> str:
    """Return the id of a user or a machine as it is shown. Raises ValueError for what is none."""
    pki.check_id(id_)
    groups = [id_[start : start + _GROUP] for start in range(0, len(id_), _GROUP)]
    return '-'.join([*groups, _build_check(id_)])


def is_spelled(text: str) -> bool:
    """Tell whether somebody means to spell an id: whether it has so many letters and digits.

    >>> is_spelled('ABCDEF ' * 8 + 'WXYZ'), is_spelled('studio')
    (True, False)
    """
    return _match_spelled(_join(text)) is not None


def parse_id(text: str) -> str:
    """Return the id that is spelled so, with or without spaces and dashes, in lower or upper case.

    Raises ValueError where the characters cannot all be right.
    """
    joined = _join(text)
    id_, check = joined[:-_CHECK], joined[-_CHECK:]
    if not pki.is_id(id_) or check != _build_check(id_):
        raise ValueError(f'a character of {text!r} is wrong, or two are swapped: compare it again')
    return id_


def _join(text: str) -> str:
    return re.sub(r'[\s-]', '', text).lower()


def _build_check(id_: str) -> str:
    digest = hashlib.blake2b(id_.encode(), digest_size=5, person=_PERSON).digest()
    return base64.b32encode(digest).decode().lower()[:_CHECK]
