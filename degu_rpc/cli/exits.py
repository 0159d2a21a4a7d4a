"""The exit statuses of `degu`, in one table; `--help` and the docs show it."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """How a command ended."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PARTLY = 3
    NOT_FOUND = 4
    UNREACHABLE = 5
    REFUSED = 6
    INTEGRITY = 7
    REMOTE = 8
    NOT_RUNNING = 10
    INTERRUPTED = 130

    @property
    def text(self) -> str:
        """What it means."""
        return _TEXTS[self]


_TEXTS = {
    Exit.DONE: 'done',
    Exit.FAILED: 'failed',
    Exit.USAGE: 'wrong usage',
    Exit.PARTLY: 'partly done, or conflicts',
    Exit.NOT_FOUND: 'not found',
    Exit.UNREACHABLE: 'unreachable or out of time; a retry may help',
    Exit.REFUSED: 'not paired, or refused',
    Exit.INTEGRITY: 'the bytes are not what they were said to be',
    Exit.REMOTE: 'the remote method raised an error',
    Exit.NOT_RUNNING: 'no node is running here',
    Exit.INTERRUPTED: 'interrupted',
}


def format_exits(*exits: Exit) -> str:
    """Return the line that a help text ends with."""
    return 'Exit status: ' + ', '.join(f'{each.value} {each.text}' for each in exits) + '.'
