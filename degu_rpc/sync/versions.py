"""Version vectors: which change of a file was made by somebody who had seen which other one.

A vector counts, for each writer, how many of its changes are in a version. A writer is one index,
not one machine: an index that is made anew, because it was lost or restored from a backup, is a new
writer, so no counter is ever used twice for different changes.

Only a person's change counts up (`advance()`). Whatever machines do about it on their own only
merges vectors, so it comes to an end.

Source: Parker et al., "Detection of Mutual Inconsistency in Distributed Systems", IEEE TSE 1983.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

Vector = tuple[tuple[str, int], ...]
"""(writer, counter) in the order of the writers, each counter at least 1."""


class Order(enum.Enum):
    """How one vector stands to another."""

    EQUAL = 'equal'
    BEFORE = 'before'
    AFTER = 'after'
    CONCURRENT = 'concurrent'


def build_vector(counters: Mapping[str, int]) -> Vector:
    """Build a vector; a writer whose counter is 0 is left out.

    >>> build_vector({'b': 2, 'a': 1, 'c': 0})
    (('a', 1), ('b', 2))
    """
    return tuple(sorted((writer, count) for writer, count in counters.items() if count))


def compare(one: Vector, other: Vector) -> Order:
    """Tell whether `one` has seen all of `other` (AFTER), the reverse, both or neither.

    >>> compare((('a', 2),), (('a', 1),))
    <Order.AFTER: 'after'>
    """
    if one == other:
        return Order.EQUAL
    merged = merge(one, other)
    if merged == one:
        return Order.AFTER
    if merged == other:
        return Order.BEFORE
    return Order.CONCURRENT


def merge(one: Vector, other: Vector) -> Vector:
    """Return the least vector that has seen both.

    >>> merge((('a', 2), ('b', 1)), (('a', 1), ('c', 1)))
    (('a', 2), ('b', 1), ('c', 1))
    """
    counters = dict(one)
    for writer, count in other:
        counters[writer] = max(count, counters.get(writer, 0))
    return build_vector(counters)


def advance(vector: Vector, writer: str, now_s: int) -> Vector:
    """Return the vector of a change that `writer` makes to a version, after all of its changes.

    The counter is the time in seconds unless that is no more than before: so what was counted on is
    passed even by a writer that forgot how far it was.

    >>> advance((('a', 5), ('b', 9)), 'a', 3)
    (('a', 6), ('b', 9))
    """
    counters = dict(vector)
    counters[writer] = max(counters.get(writer, 0) + 1, now_s)
    return build_vector(counters)
