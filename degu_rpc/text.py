"""What a peer said, made safe to print. PURE."""

from __future__ import annotations

_CONTROLS = {
    control: chr(control).encode('unicode_escape').decode()
    for control in (
        *(*range(0x20), *range(0x7F, 0xA0)),
        # What turns the direction of a text, ends a line of it, or cannot be seen.
        *(0x61C, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF),
        *(*range(0xD800, 0xE000), *range(0xE0000, 0xE0080)),
    )
}


def escape_controls(text: str) -> str:
    """Return what a peer said so that it can do nothing to the terminal it is printed on.

    Controls are escaped, and what would make a text look like another one.
    """
    return text.translate(_CONTROLS)
