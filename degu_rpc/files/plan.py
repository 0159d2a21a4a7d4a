"""What a fetch is going to do, decided before anything is written.

A listing comes from a peer, so it is checked as it is read (listing.py). Each entry is compared
with what is here, looking only: a file that has the size and the modification time (to the
nanosecond) of the listing is taken to be the same. Something of another kind in the way ends the
fetch before it has begun.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, NamedTuple

from degu_rpc.errors import BlockedError, ListingError
from degu_rpc.files.content import Signature, signature_of
from degu_rpc.files.limits import MAX_ENTRIES, MAX_LISTING_TEXT
from degu_rpc.files.listing import Entry, Kind, Problem, check_entries
from degu_rpc.files.paths import Path, Root, decode_native, format_native, format_path

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable


class Skipped(NamedTuple):
    """An entry that did not come: its path, as a program of whoever has it knows it, and why."""

    path: str
    problem: Problem


class File(NamedTuple):
    """A file to bring: where it is there and here, its entry, and what is here now."""

    source: Path
    target: Path
    entry: Entry
    local: Signature | None


class Plan(NamedTuple):
    """What is to be done, decided before anything is written."""

    directories: dict[Path, Entry]
    files: list[File]
    symlinks: list[File]
    metadata: list[File]
    present: list[File]
    skipped: list[Skipped]


def plan_fetch(root: Root, source: Path, entries: Iterable[Entry]) -> Plan:
    """Decide what to do about a listing, which anybody may have written; writes nothing.

    Raises ListingError, PathError, BlockedError, OSError.
    """
    plan = Plan({}, [], [], [], [], [])
    base = source[-1:]
    here = Here(root, base)
    for below, entry in check_entries(entries, (), MAX_ENTRIES, MAX_LISTING_TEXT):
        if entry.kind is Kind.SKIPPED:
            path = '/'.join(filter(None, (format_path(source), entry.path)))
            plan.skipped.append(Skipped(decode_native(path), entry.problem or Problem.SPECIAL))
            continue
        target = base + below
        if not target and entry.kind is not Kind.DIRECTORY:
            raise ListingError('a whole share is a directory')
        _plan_entry(plan, File(source + below, target, entry, None), here.look(target))
    return plan


def _plan_entry(plan: Plan, file: File, found: os.stat_result | None) -> None:
    entry, target = file.entry, file.target
    here_is_directory = found is not None and stat.S_ISDIR(found.st_mode)
    if entry.kind is Kind.DIRECTORY:
        if found is not None and not here_is_directory:
            raise BlockedError(format_native(target), 'it is a directory there and not here')
        plan.directories[target] = entry
        return
    if here_is_directory:
        raise BlockedError(format_native(target), 'it is a directory here and not there')
    if found is not None:
        file = file._replace(local=signature_of(found))
    if entry.kind is Kind.SYMLINK:
        plan.symlinks.append(file)
    elif found is None or not agree(found, entry):
        plan.files.append(file)
    elif stat.S_IMODE(found.st_mode) != entry.mode:
        plan.metadata.append(file)
    else:
        plan.present.append(file)


def agree(found: os.stat_result, entry: Entry) -> bool:
    """Tell whether a file here is taken to be the one of the listing."""
    return (
        stat.S_ISREG(found.st_mode)
        and found.st_size == entry.size
        and found.st_mtime_ns == entry.mtime_ns
    )


class Here:
    """Looks at what is here, one directory at a time, as a listing comes."""

    def __init__(self, root: Root, base: Path) -> None:
        """Remember where to look: at `base` and below it."""
        self._root = root
        self._base = base
        self._directory: Path | None = None
        self._names: dict[bytes, os.stat_result] = {}

    def look(self, path: Path) -> os.stat_result | None:
        """Return the lstat of what is at `path`, None for nothing."""
        try:
            if path == self._base:
                return self._root.lstat(path)
            if path[:-1] != self._directory:
                self._directory, self._names = path[:-1], {}
                self._names = dict(self._root.scan(path[:-1]))
        except FileNotFoundError:
            return None
        return self._names.get(path[-1])
