"""What a machine does so that its tree becomes what it and others have agreed on.

1. For each path decide what is to be there (resolve.py).
2. Where something is to be, its directories are. One that somebody deleted, or put a file in the
   place of, and that another has put something in meanwhile is made again: by whoever sees that
   first, as a change of its own.
3. Put in order what is to be done, so that each step can be done when it is its turn: what is made
   and brought, directories first; what is removed, the innermost first; last what comes in the
   place of a directory, which is empty by then. What moved is made before it is removed, so its
   content is still here.

A plan is a pure function of what is known, and carrying it out changes nothing that others have
announced: the next plan is the rest of this one, or empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from degu_rpc.files.listing import Kind
from degu_rpc.sync.resolve import Decision, Version, resolve
from degu_rpc.sync.versions import advance, merge

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from degu_rpc.files.paths import Path

    Tree = Mapping[Path, Version]
    """What a machine has, deletions included. Above what is there is a directory."""


class Step(NamedTuple):
    """Have `version` at `path`, where `before` is now; None where there was never anything.

    `keeps_aside` says that what is there now becomes a conflict copy.
    """

    path: Path
    version: Version
    before: Version | None
    keeps_aside: bool


class Plan(NamedTuple):
    """What is to be done, in this order, and each list from the first to the last.

    `notes` change nothing but what is announced; `describe` are those that have the right content
    and get other metadata.
    """

    notes: list[Step]
    describe: list[Step]
    make: list[Step]
    remove: list[Step]
    replace: list[Step]


def plan(
    local: Tree, others: Sequence[Tree], paths: Iterable[Path], writer: str, now_s: int
) -> Plan:
    """Plan what to do about `paths`: those where what somebody has may have changed.

    `local` is what this machine has, all of it announced or about to be; `others` what the others
    announce. What is made again is a change by `writer` at `now_s`, in seconds.
    """
    decided: dict[Path, Decision] = {}
    for path in paths:
        versions = [tree[path] for tree in others if path in tree]
        before = local.get(path)
        if versions:
            decided[path] = resolve(before, versions)
        elif before is not None:
            decided[path] = Decision(before)
    missing = _find_missing(local, decided)
    decided |= {path: _make_again(path, local, others, writer, now_s) for path in missing}
    return _order(
        Step(path, version, local.get(path), keeps_aside)
        for path, (version, keeps_aside) in sorted(decided.items())
    )


def _find_missing(local: Tree, decided: Mapping[Path, Decision]) -> set[Path]:
    """Return where a directory has to be for what is below it, and would not be."""

    def is_directory(path: Path) -> bool:
        version = decided[path].version if path in decided else local.get(path)
        return version is not None and version.kind is Kind.DIRECTORY

    staying = [path for path, decision in decided.items() if decision.version.is_live]
    if any(_is_directory(local.get(path)) and not is_directory(path) for path in decided):
        # Only then can it be that what nobody decided about loses its directory.
        staying += [path for path in local if path not in decided and local[path].is_live]
    above = {path[:length] for path in staying for length in range(1, len(path))}
    return {path for path in above if not is_directory(path)}


def _is_directory(version: Version | None) -> bool:
    return version is not None and version.kind is Kind.DIRECTORY


def _make_again(
    path: Path, local: Tree, others: Sequence[Tree], writer: str, now_s: int
) -> Decision:
    """Decide to have a directory that should not be there, for what is to be in it.

    A deletion or a file that others have there has not been seen by it, so that who has the file
    keeps it aside.
    """
    before = local.get(path)
    known = [tree[path] for tree in (local, *others) if path in tree]
    likeness = max(filter(_is_directory, known), key=lambda version: version.rank, default=_PLAIN)
    seen = likeness.vector if before is None else merge(likeness.vector, before.vector)
    version = likeness._replace(vector=advance(seen, writer, now_s), writer=writer)
    return Decision(version, before is not None and bool(before.root))


_PLAIN = Version((), Kind.DIRECTORY, mode=0o755)


def _order(steps: Iterable[Step]) -> Plan:
    """Sort steps, which come in the order of their paths, and leave out what is so already."""
    ordered = Plan([], [], [], [], [])
    for step in steps:
        version, before = step.version, step.before
        if version == before:
            continue
        was_live = before is not None and before.is_live
        if not version.is_live:
            (ordered.remove if was_live else ordered.notes).append(step)
        elif before is None or before.content != version.content:
            (ordered.replace if _is_directory(before) else ordered.make).append(step)
        elif before.metadata != version.metadata:
            ordered.describe.append(step)
        else:
            ordered.notes.append(step)
    ordered.remove.reverse()
    return ordered
