"""degu_rpc.sync.versions: vectors are a lattice, and a change comes after what it was made from."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from degu_rpc.sync.versions import Order, advance, build_vector, compare, merge

writers = st.sampled_from('abcd')
vectors = st.dictionaries(writers, st.integers(0, 4)).map(build_vector)
OPPOSITE = {
    Order.EQUAL: Order.EQUAL,
    Order.BEFORE: Order.AFTER,
    Order.AFTER: Order.BEFORE,
    Order.CONCURRENT: Order.CONCURRENT,
}


@given(vectors, vectors)
def test_comparing_the_other_way_round_says_the_opposite(one, other):
    assert compare(other, one) is OPPOSITE[compare(one, other)]


@given(vectors, vectors)
def test_a_vector_is_before_another_where_no_counter_of_it_is_greater(one, other):
    mine, theirs = dict(one), dict(other)
    is_within = all(count <= theirs.get(writer, 0) for writer, count in mine.items())
    assert (compare(one, other) in {Order.BEFORE, Order.EQUAL}) == is_within


@given(vectors, vectors, vectors)
def test_what_is_merged_has_seen_all_and_nothing_else(one, other, third):
    merged = merge(one, other)
    assert compare(merged, one) in {Order.AFTER, Order.EQUAL}
    assert compare(merged, other) in {Order.AFTER, Order.EQUAL}
    if {compare(third, one), compare(third, other)} <= {Order.AFTER, Order.EQUAL}:
        assert compare(third, merged) in {Order.AFTER, Order.EQUAL}


@given(vectors, vectors, vectors)
def test_the_order_of_merging_makes_no_difference(one, other, third):
    assert merge(one, other) == merge(other, one)
    assert merge(merge(one, other), third) == merge(one, merge(other, third))
    assert merge(one, one) == one


@given(vectors, writers, st.integers(-5, 10))
def test_a_change_comes_after_what_it_was_made_from_whatever_the_clock_says(vector, writer, now_s):
    assert compare(advance(vector, writer, now_s), vector) is Order.AFTER


@given(vectors, writers, st.integers(5, 10))
def test_the_clock_passes_what_was_counted_before(vector, writer, now_s):
    assert dict(advance(vector, writer, now_s))[writer] == now_s
