"""The standard library of this Python: what travels in `degu demo`, measured and compared.

There are no threads and no locks.
"""

from __future__ import annotations

import filecmp
import os
import stat
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

LEFT_OUT = frozenset({'site-packages', 'dist-packages', '__pycache__'})
"""Of the top of the library: what was installed beside it, which may be of any size."""


class Tree(NamedTuple):
    """How much there is: files (symbolic links, too) and their bytes."""

    files: int
    size: int


def find_library() -> Path:
    """Return the standard-library directory of the running Python."""
    return Path(sysconfig.get_path('stdlib')).resolve()


def list_library() -> list[str]:
    """List what at the top of the library is to be fetched."""
    return sorted(path.name for path in find_library().iterdir() if path.name not in LEFT_OUT)


def measure_tree(root: Path) -> Tree:
    """Return how much there is below a directory."""
    sizes = [0 if path.is_symlink() else path.lstat().st_size for path in _walk(root)]
    return Tree(len(sizes), sum(sizes))


def find_difference(source: Path, copy: Path) -> Path | None:
    """Return a file of *copy* that is not as in *source*, byte for byte; None where all are."""
    for path in _walk(source):
        other = copy / path.relative_to(source)
        if path.is_symlink():
            is_same = other.is_symlink() and path.readlink() == other.readlink()
        else:
            is_same = other.is_file() and filecmp.cmp(path, other, shallow=False)
        if not is_same:
            return other
    return None


def _walk(root: Path) -> Iterator[Path]:
    for directory, directories, files in os.walk(root):
        if Path(directory) == root:
            left_out = LEFT_OUT | {'.degu'}
            directories[:] = [name for name in directories if name not in left_out]
        for name in (*files, *directories):
            path = Path(directory, name)
            if path.is_symlink() or stat.S_ISREG(path.lstat().st_mode):
                yield path
