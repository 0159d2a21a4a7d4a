"""Numbers, sizes and times in words for people. PURE."""

from __future__ import annotations


def format_done(files: int, size: int, elapsed_s: float) -> str:
    """Write what a transfer moved, and how fast, if it moved anything.

    >>> format_done(1, 1536, 0.5)
    '1 file, 1.5 KiB, 3.0 KiB/s'
    >>> format_done(0, 0, 0.5)
    '0 files, 0 B'
    """
    rate = f', {format_size(size / elapsed_s)}/s' if size and elapsed_s else ''
    return f'{format_files(files)}, {format_size(size)}{rate}'


def was(number: int) -> str:
    """Write the verb behind a number.

    >>> was(1), was(2)
    ('was', 'were')
    """
    return 'was' if number == 1 else 'were'


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


def format_age(seconds: float) -> str:
    """Write a time for people.

    >>> format_age(7200)
    '2 h'
    """
    for size, unit in ((86400, 'd'), (3600, 'h'), (60, 'min')):
        if seconds >= size:
            return f'{seconds / size:.0f} {unit}'
    return f'{seconds:.0f} s'
