"""What time it is, for whoever does not say.

Times have a zone from here on: a datetime without one is local time.
"""

from __future__ import annotations

from datetime import UTC, datetime


def read_clock(now: datetime | None) -> datetime:
    """Return *now* in UTC, or the time of our clock."""
    return datetime.now(UTC) if now is None else now.astimezone(UTC)


def format_time(now: datetime | None) -> str:
    """Return that as ISO 8601, in seconds."""
    return read_clock(now).isoformat(timespec='seconds')
