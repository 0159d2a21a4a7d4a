"""What a user, a machine or a role may be called: text that does nothing to a terminal. Pure."""

from __future__ import annotations

from degu_rpc.peers.limits import MAX_NAME_LENGTH
from degu_rpc.text import escape_controls


def check_name(name: str) -> str:
    """Return a name. Raises ValueError for one that cannot be."""
    if not 1 <= len(name) <= MAX_NAME_LENGTH or escape_controls(name) != name:
        raise ValueError(
            f'a name has 1 to {MAX_NAME_LENGTH} characters and no control characters, not {name!r}'
        )
    return name
