"""How a transfer is shown at a terminal, how fast it may be, and what ends it.

1. On a terminal there is a bar, on stderr; else a line now and then. With `--json` or `--quiet`
   there is neither.
2. Ctrl-C ends a transfer where nothing is left half-done, and so does `--timeout` once it has not
   gone on for so long, whatever it waits for.

Threads: the transfer calls `Transfer.show` in any, one at a time; a thread looks at the clock.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from degu_rpc.cli.words import format_files, format_size
from degu_rpc.errors import TransferCanceledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from degu_rpc.cli.failures import Failure
    from degu_rpc.cli.session import Session
    from degu_rpc.files import Progress

LINE_PERIOD_S = 5.0
"""How often a line says how far a transfer is, where there is no terminal to draw on."""
_match_rate = re.compile(r'(\d{1,15}(?:\.\d{1,3})?)([KMG]?)').fullmatch


def parse_rate(text: str) -> float:
    """Read bytes a second: a number, with K, M or G for so many KiB, MiB or GiB.

    Raises click.BadParameter.

    >>> parse_rate('1.5K')
    1536.0
    """
    match = _match_rate(text.upper())
    rate = 0.0 if match is None else float(match[1]) * 1024.0 ** ' KMG'.index(match[2] or ' ')
    if not rate > 0:
        raise click.BadParameter(f'{text!r} is no rate; give bytes a second, like 500K or 10M')
    return rate


limit_option = click.option(
    '--limit',
    'rate_limit',
    type=parse_rate,
    metavar='RATE',
    help='No more bytes a second than this: 500K, 10M.',
)
"""For a command that transfers files."""


class Transfer:
    """A transfer that a command runs: where it shows how far it is, and what is to end it."""

    # Set once: cancel, _show. Written by one thread at a time, read by the clock's: _went_on_at,
    # _seen. Written by the clock's: is_late.

    def __init__(self, show: Callable[[Progress], None], cancel: threading.Event) -> None:
        self.cancel = cancel
        self.is_late = False
        self._show = show
        self._seen = (0, 0, 0, 0)
        self._went_on_at = time.monotonic()

    def show(self, now: Progress) -> None:
        """Show how far it is: for `progress`."""
        seen = (now.files_done, now.bytes_done, now.bytes_moved, now.bytes_read)
        if seen != self._seen:
            self._seen = seen
            self.go_on()
        self._show(now)

    def go_on(self) -> None:
        """Let its time begin anew."""
        self._went_on_at = time.monotonic()

    def end_when_late(self, timeout_s: float, is_over: threading.Event) -> None:
        """End it once it has not gone on for so long, unless it is over before."""
        while (left_s := self._went_on_at + timeout_s - time.monotonic()) > 0:
            if is_over.wait(left_s):
                return
        self.is_late = True
        self.cancel.set()


@contextlib.contextmanager
def transferring(session: Session, describe_late: Callable[[float], Failure]) -> Iterator[Transfer]:
    """Yield what shows a transfer and ends it; see the module.

    Raises what `describe_late` makes of the time when that ran out.
    """
    is_over = threading.Event()
    with _cancel_on_interrupt() as cancel, _showing(session) as show:
        transfer = Transfer(show, cancel)
        clock = None
        if session.timeout_s is not None:
            clock = threading.Thread(
                target=transfer.end_when_late, args=(session.timeout_s, is_over), name='clock'
            )
            clock.start()
        try:
            yield transfer
        except (TransferCanceledError, TimeoutError) as error:
            # What waits for a sign of life from the other side has the same time.
            is_late = transfer.is_late or isinstance(error, TimeoutError)
            if session.timeout_s is None or not is_late:
                raise
            raise describe_late(session.timeout_s) from error
        finally:
            is_over.set()
            if clock is not None:
                clock.join()


@contextlib.contextmanager
def _cancel_on_interrupt() -> Iterator[threading.Event]:
    """Have Ctrl-C end a transfer where nothing is left half-done; a second one ends at once."""
    import signal

    cancel = threading.Event()

    def interrupt(_number: int, _frame: object) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _showing(session: Session) -> Iterator[Callable[[Progress], None]]:
    """Yield what shows how far a transfer is."""
    if session.is_json or session.is_quiet:
        yield lambda _progress: None
    elif sys.stderr.isatty():
        with _drawing_bar() as show:
            yield show
    else:
        yield _print_lines(session)


@contextlib.contextmanager
def _drawing_bar() -> Iterator[Callable[[Progress], None]]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn('{task.fields[files]}'),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TextColumn('{task.fields[rate]}'),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task('', files='', rate='', total=None)

        def show(now: Progress) -> None:
            if _is_reading(now):
                bars.update(task, total=None, completed=now.bytes_read, files='reading')
                return
            bars.update(
                task,
                total=now.bytes_total,
                completed=now.bytes_done,
                files=_format_count(now),
                rate=_format_rate(now),
            )

        yield show


def _print_lines(session: Session) -> Callable[[Progress], None]:
    next_s = time.monotonic() + LINE_PERIOD_S

    def show(now: Progress) -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + LINE_PERIOD_S
            session.say(_format_line(now), err=True)

    return show


def _is_reading(now: Progress) -> bool:
    """Say whether it is only found out what there is to transfer."""
    return now.bytes_read > 0 and not now.files_total


def _format_line(now: Progress) -> str:
    if _is_reading(now):
        return f'reading, {format_size(now.bytes_read)} so far'
    return (
        f'{_format_count(now)}, {format_size(now.bytes_done)} '
        f'of {format_size(now.bytes_total)}, {_format_rate(now)}'
    )


def _format_count(now: Progress) -> str:
    return f'{now.files_done:,} of {format_files(now.files_total)}'


def _format_rate(now: Progress) -> str:
    rate = f'{format_size(now.rate)}/s'
    return rate if now.left_s is None else f'{rate}, {timedelta(seconds=round(now.left_s))} left'
