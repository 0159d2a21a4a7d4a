"""What schemathesis must know of our server that JSON Schema cannot say."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Send 3.0 as 3: it is an integer to JSON Schema, and no int to us."""
    return write_integers(body)


def write_integers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: write_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [write_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
