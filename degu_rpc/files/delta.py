"""Take what a new content has in common with an old version from the old version.

1. The old version is cut as the new content was (see cuts.py), and the lists are compared.
2. What both have is copied to its place in the temporary file, by the kernel where it can.

Nothing here is checked, and the old version may change or shrink at any moment: the caller hashes
each block that was covered, and fetches a block whole if it is not what the manifest says. Belongs
to one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from degu_rpc.files.content import FileReader
from degu_rpc.files.cuts import clip_copies, cut_content, plan_copies
from degu_rpc.files.descriptors import copy_at
from degu_rpc.files.limits import COPY_SIZE, MAX_OLD_RATIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from degu_rpc.files.cuts import Chunk, Copy, Span


def copy_matches(
    old_fd: int,
    old_size: int,
    chunks: Sequence[Chunk],
    fd: int,
    missing: Iterable[Span],
    check: Callable[[], None],
) -> list[Span]:
    """Copy what an old version has of a new content to its place in the file `fd`.

    `chunks` is the list of the new content; `missing` are the spans of it that may be written,
    ascending and without overlaps, so that what is verified stays as it is. `check` is called again
    and again; what it raises ends the copying. Returns the spans that were written, ascending, none
    touching the next. Reads MAX_OLD_RATIO times the new size of the old version at most. Raises
    ValueError where the new content is not one that is cut here, OSError.
    """
    size = sum(chunk.length for chunk in chunks)
    old = []
    for chunk in cut_content(FileReader(old_fd, min(old_size, size * MAX_OLD_RATIO)), size):
        check()
        old.append(chunk)
    spans: list[Span] = []
    for copy in clip_copies(plan_copies(old, chunks), missing):
        start, stop = copy.start, copy.start + _copy(old_fd, fd, copy, check)
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], stop)
        elif start < stop:
            spans.append((start, stop))
    return spans


def _copy(old_fd: int, fd: int, copy: Copy, check: Callable[[], None]) -> int:
    """Copy, and return how many bytes were there: fewer if the old version has shrunk."""
    done = 0
    while done < copy.size:
        check()
        size = min(copy.size - done, COPY_SIZE)
        count = copy_at(old_fd, copy.old_start + done, fd, copy.start + done, size)
        if count == 0:
            break
        done += count
    return done
