"""What a peer said, or the file system, made safe to print. PURE."""

from __future__ import annotations

import json
import os
import re
from typing import Any

_CONTROLS = re.compile(
    r'[\x00-\x1f\x7f-\x9f'
    # What turns the direction of a text, ends a line of it, or cannot be seen.
    r'\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff'
    r'\ud800-\udfff\U000e0000-\U000e007f]'
)


def escape_controls(text: str) -> str:
    """Return what a peer said so that it can do nothing to the terminal it is printed on.

    Controls are escaped, and what would make a text look like another one.
    """
    return _CONTROLS.sub(lambda found: found[0].encode('unicode_escape').decode(), text)


def escape_bytes(name: str) -> str:
    r"""Return a name of the file system as text: what is not UTF-8 in it is escaped, as `\xff`.

    Without that, what has such a name could not stand in JSON.
    """
    return os.fsencode(name).decode('utf-8', 'backslashreplace')


def format_json(value: Any) -> str:
    """Return JSON of several lines for people, safe as `escape_controls` makes it.

    Raises TypeError for what has no form in JSON.
    """
    # The newlines between the lines are the only ones that are not escaped already.
    lines = json.dumps(value, indent=2, ensure_ascii=False).split('\n')
    return '\n'.join(
        _CONTROLS.sub(lambda found: json.dumps(found[0])[1:-1], line) for line in lines
    )
