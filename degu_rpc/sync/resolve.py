"""One path in a folder: what of that which several machines have there is to stay.

1. What has seen another version replaces it.
2. Of two versions that have not seen each other, one that was made from the content of the other
   replaces it: that happens when one machine has settled a conflict which the writer has not seen.
3. Otherwise a directory stays before a file, anything before a deletion, and of two files the one
   with the later modification time; where that is equal, what decides is arbitrary and the same
   everywhere.
4. Who has the content that does not stay keeps it aside, as a conflict copy. Only they announce
   what stays as having seen both: nobody else could say that the other content is safe.

So a decision needs no agreement. Each one raises the vector of what a machine has, or replaces a
version by one with the same vector that stands before it in rule 3. Vectors cannot rise beyond what
people have done, so machines that hear of each other come to rest, with the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from degu_rpc.files.listing import Kind
from degu_rpc.sync.versions import Order, Vector, compare, merge

if TYPE_CHECKING:
    from collections.abc import Iterable

_BEFORE = {None: 0, Kind.SYMLINK: 1, Kind.FILE: 1, Kind.DIRECTORY: 2}
"""What stays before what, rule 3; None is a deletion."""

Xattrs = tuple[tuple[bytes, bytes], ...]


class Version(NamedTuple):
    """What is at a path, and whose changes are in it.

    `kind` is None for a deletion. `root` is that of a file's content or a symlink's text, '' for
    others; `base_root` the one of the content that a person changed into this, '' where there was
    none. `size` is bytes; `xattrs` are sorted; `writer` is where a person made this of it.
    """

    vector: Vector
    kind: Kind | None
    root: str = ''
    size: int = 0
    mtime_ns: int = 0
    mode: int = 0
    xattrs: Xattrs = ()
    base_root: str = ''
    writer: str = ''

    @property
    def is_live(self) -> bool:
        """Whether anything is there."""
        return self.kind is not None

    @property
    def content(self) -> tuple[Kind | None, str]:
        """What a person would miss if it were gone."""
        return self.kind, self.root

    @property
    def metadata(self) -> tuple[int, int, Xattrs]:
        """What the disk says of it besides the content."""
        return self.mtime_ns, self.mode, self.xattrs

    @property
    def rank(self) -> tuple[object, ...]:
        """The order of rule 3: the greater one stays. Equal only where all is, but the vectors."""
        kind = self.kind.value if self.kind else ''
        return _BEFORE[self.kind], self.mtime_ns, self.root, kind, *self[3:]


class Decision(NamedTuple):
    """What is to be at a path, and announced; and whether to keep aside what was there."""

    version: Version
    keeps_aside: bool = False


def resolve(local: Version | None, others: Iterable[Version]) -> Decision:
    """Decide what is to be at a path where this machine has `local` and others have `others`.

    `local` is None where it never had anything; then there is at least one other. What it has and
    has not announced yet is to be in `local`: see that it is scanned before.
    """
    candidates = [*others] if local is None else [local, *others]
    # First who is out: two that are left may each stand before one that is out already.
    left = [one for one in candidates if not any(_is_past(other, one) for other in candidates)]
    best = local if local in left else None
    for one in sorted(left, key=lambda version: version.rank):
        if best is None or _stands_before(one, best):
            best = one
    assert best is not None  # there are candidates, and none is past itself
    if local is None or compare(best.vector, local.vector) is Order.AFTER:
        return Decision(best)
    if best is local:
        for one in left:
            if one.rank == local.rank:
                best = best._replace(vector=merge(best.vector, one.vector))
        return Decision(best)
    # Whoever made something else of it had seen it. The same with more changes in it tells nothing.
    was_replaced = any(
        one.content != local.content and compare(one.vector, local.vector) is Order.AFTER
        for one in left
    )
    merged = best._replace(vector=merge(best.vector, local.vector))
    return Decision(merged, _is_missed(local, best) and not was_replaced)


def _is_past(one: Version, other: Version) -> bool:
    """Tell whether `one` replaces `other` whatever else there is."""
    order = compare(one.vector, other.vector)
    return order is Order.AFTER or (order is Order.EQUAL and one.rank > other.rank)


def _stands_before(one: Version, other: Version) -> bool:
    """Tell which of two versions stays that have not seen each other."""
    is_made_from, is_made_into = _is_made_from(one, other), _is_made_from(other, one)
    return is_made_from if is_made_from != is_made_into else one.rank > other.rank


def _is_made_from(one: Version, other: Version) -> bool:
    return bool(other.root) and one.base_root == other.root != one.root


def _is_missed(local: Version, best: Version) -> bool:
    """Tell whether a person would miss what is here once `best` is."""
    return bool(local.root) and local.content != best.content and not _is_made_from(best, local)
