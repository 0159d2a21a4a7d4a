"""The signals that end a program in order: SIGTERM, Ctrl-C, and the end of the terminal.

Threads: only the main one gets signals.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What asks a program to end."""


@contextlib.contextmanager
def on_signals(
    end: Callable[[], None], numbers: tuple[signal.Signals, ...] = ENDING
) -> Iterator[None]:
    """Call `end` at each signal, to the end of the block; in another thread nothing is changed.

    `end` runs between two steps of whatever the main thread does: it must take no lock.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.signal(number, lambda *_: end())) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
