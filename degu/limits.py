"""The one table of limits.

Every limit of the core stands here, with its default and its unit. A server takes each of `Limits`
as a keyword; a client takes `timeout_s` and `connect_timeout_s`, which stand for its times.
"""

from __future__ import annotations

from typing import Any, NamedTuple

KIB = 1024
MIB = 1024 * KIB
MAX_TIMEOUT_S = 365 * 24 * 3600
"""What the kernel can be told, and longer than anybody waits."""
DEFAULT_TIMEOUT_S = 60.0
"""How long a client waits for the server at each step, unless told otherwise."""
CONNECT_TIMEOUT_S = 10.0
"""How long it waits for a connection, TLS handshake included, unless that or less is said."""


class Limits(NamedTuple):
    """What one peer may cost us. Times are seconds, sizes are bytes."""

    max_connections: int = 256
    """Connections at once; a further one is closed unread."""
    max_connections_per_address: int = 64
    """Connections at once from one IP address (AF_UNIX clients have none and are not counted)."""
    max_handshakes: int = 32
    """TLS handshakes at once; a further one ends the oldest of the address that has most."""
    handshake_timeout_s: float = 5.0
    """A TLS handshake, in total."""
    preamble_timeout_s: float = 10.0
    """A preamble, in total, from its first byte."""
    idle_timeout_s: float = 30.0
    """The wait for the first byte of the next preamble."""
    min_body_rate: int = 1 * KIB
    """Bytes a second a peer must move while we wait for it inside a body, either way ..."""
    body_window_s: float = 30.0
    """... taken over any stretch of this much waiting."""
    chunk_gap_timeout_s: float | None = None
    """The wait for a chunk to begin; None judges it like any other wait inside a body."""
    max_preamble: int = 32 * KIB
    """A preamble, from the first byte of its first line to the empty line."""
    max_line: int = 8 * KIB
    """One line of a preamble."""
    max_headers: int = 32
    """Headers in a preamble."""
    max_chunk: int = 16 * MIB
    """The data of one chunk."""
    max_chunk_line: int = 512
    """The line with a chunk's size and extension."""
    max_requests: int | None = None
    """Requests on one connection; None is no limit."""


def build_limits(**options: Any) -> Limits:
    """Build the limits from keywords; what is not given has its default.

    Raises TypeError for a keyword that is no limit and for a value of another type, ValueError for
    one that is not above zero.
    """
    for name, value in options.items():
        if name not in Limits._fields:
            raise TypeError(
                f'{name!r} is not an option; there are workers and {", ".join(Limits._fields)}'
            )
        if value is None and Limits._field_defaults[name] is None:
            continue
        if name.endswith('_s'):
            check_timeout(name, value)
        elif not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f'{name} must be an int, not {value!r}')
        elif value <= 0:
            raise ValueError(f'{name} must be above zero, not {value!r}')
    limits = Limits(**options)
    # A line is part of a preamble: only what is longer than the one is measured by the other.
    return limits._replace(max_line=min(limits.max_line, limits.max_preamble))


def check_timeout(name: str, value: float) -> float:
    """Return a number of seconds that can be waited. Raises TypeError, ValueError."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f'{name} must be a number of seconds, not {value!r}')
    if not 0 < value <= MAX_TIMEOUT_S:
        raise ValueError(f'{name} must be above zero and at most {MAX_TIMEOUT_S}, not {value!r}')
    return value


DEFAULT_LIMITS = Limits()
"""The defaults, for whoever sets nothing."""
