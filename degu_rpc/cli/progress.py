"""How a transfer is shown at a terminal, how fast it may be, and how Ctrl-C ends it.

On a terminal there is a bar, on stderr; else a line now and then. With `--json` or `--quiet` there
is neither.
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


@contextlib.contextmanager
def cancel_on_interrupt() -> Iterator[threading.Event]:
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
def showing(session: Session) -> Iterator[Callable[[Progress], None]]:
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
            bars.update(
                task,
                total=now.bytes_total,
                completed=now.bytes_done,
                files=f'{now.files_done:,} of {now.files_total:,} files',
                rate=_format_rate(now),
            )

        yield show


def _print_lines(session: Session) -> Callable[[Progress], None]:
    next_s = time.monotonic() + LINE_PERIOD_S

    def show(now: Progress) -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + LINE_PERIOD_S
            session.say(
                f'{now.files_done:,} of {now.files_total:,} files, {format_size(now.bytes_done)} '
                f'of {format_size(now.bytes_total)}, {_format_rate(now)}',
                err=True,
            )

    return show


def _format_rate(now: Progress) -> str:
    rate = f'{format_size(now.rate)}/s'
    return rate if now.left_s is None else f'{rate}, {timedelta(seconds=round(now.left_s))} left'


def format_done(files: int, size: int, elapsed_s: float) -> str:
    """Write what a transfer moved, and how fast.

    >>> format_done(1, 1536, 0.5)
    '1 file, 1.5 KiB, 3.0 KiB/s'
    """
    rate = size / elapsed_s if elapsed_s else 0.0
    return f'{format_files(files)}, {format_size(size)}, {format_size(rate)}/s'


def format_files(files: int) -> str:
    """Write a number of files for people.

    >>> format_files(2000)
    '2,000 files'
    """
    return '1 file' if files == 1 else f'{files:,} files'


def format_size(size: float) -> str:
    """Write a number of bytes for people.

    >>> format_size(1536)
    '1.5 KiB'
    """
    for unit in ('B', 'KiB', 'MiB', 'GiB'):
        if size < 1024:
            return f'{size:.0f} {unit}' if unit == 'B' else f'{size:.1f} {unit}'
        size /= 1024
    return f'{size:.1f} TiB'
