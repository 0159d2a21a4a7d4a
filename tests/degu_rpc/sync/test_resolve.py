"""degu_rpc.sync.resolve: machines that hear of each other agree, and no value is lost.

The simulation has a few machines and one path. People write and delete there, with clocks that are
wrong; machines hear of each other late, in any order, or of something that has changed since; one
loses its index now and then.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from degu_rpc.files.listing import Kind
from degu_rpc.sync.resolve import Decision, Version, resolve
from degu_rpc.sync.versions import Order, advance, build_vector, compare

MACHINES = 4


def vector(**counters):
    return build_vector(counters)


def file(root, mtime_ns=0, *, base='', **counters):
    return Version(vector(**counters), Kind.FILE, root, 1, mtime_ns, 0o644, (), base)


def deletion(base, **counters):
    return Version(vector(**counters), None, base_root=base)


DIRECTORY = Version(vector(a=1), Kind.DIRECTORY, mode=0o755)


# --- one decision -------------------------------------------------------------------------------


def test_what_has_seen_the_other_replaces_it():
    old, new = file('old', 9, a=1), file('new', 1, base='old', a=1, b=1)
    assert resolve(old, [new]) == Decision(new)
    assert resolve(new, [old]) == Decision(new)


def test_what_is_new_here_is_taken_as_it_is():
    only = file('x', a=1)
    assert resolve(None, [only]) == Decision(only)
    assert resolve(None, [deletion('x', a=2), only]) == Decision(deletion('x', a=2))


def test_of_two_contents_the_later_one_stays_and_who_has_the_other_keeps_it_aside():
    early, late = file('early', 1, a=1), file('late', 2, b=1)
    merged = late._replace(vector=vector(a=1, b=1))
    assert resolve(early, [late]) == Decision(merged, keeps_aside=True)
    # Who has what stays does not say that it has seen the other: nobody kept that aside yet.
    assert resolve(late, [early]) == Decision(late)
    assert resolve(late, [merged]) == Decision(merged)


def test_who_has_neither_does_not_settle_the_conflict():
    early, late = file('early', 1, a=1), file('late', 2, b=1)
    assert resolve(None, [early, late]) == Decision(late)


def test_equal_content_is_no_conflict():
    mine, yours = file('x', 1, a=1), file('x', 1, b=1)
    merged = Decision(mine._replace(vector=vector(a=1, b=1)))
    assert resolve(mine, [yours]) == resolve(yours, [mine]) == merged


def test_equal_content_with_other_metadata_takes_the_later_and_keeps_nothing_aside():
    mine, yours = file('x', 1, a=1), file('x', 2, b=1)
    merged = Decision(yours._replace(vector=vector(a=1, b=1)))
    assert resolve(mine, [yours]) == merged


def test_an_edit_stays_before_a_deletion():
    edit, gone = file('new', 1, base='old', a=2, b=1), deletion('old', a=1, b=2)
    merged = edit._replace(vector=vector(a=2, b=2))
    assert resolve(gone, [edit]) == Decision(merged)
    assert resolve(edit, [gone]) == Decision(edit)


def test_a_directory_stays_before_a_file_which_is_kept_aside():
    here = file('x', 9, b=1)
    merged = DIRECTORY._replace(vector=vector(a=1, b=1))
    assert resolve(here, [DIRECTORY]) == Decision(merged, keeps_aside=True)
    assert resolve(DIRECTORY, [here]) == Decision(DIRECTORY)


def test_who_changed_what_another_machine_settled_makes_no_second_conflict():
    settled = file('mine', 5, a=1, b=1)  # after a conflict with something of b
    changed = file('changed', 1, base='mine', a=2)  # by who has not heard of that
    merged = changed._replace(vector=vector(a=2, b=1))
    assert resolve(settled, [changed]) == Decision(merged)
    assert resolve(changed, [settled]) == Decision(changed)


def test_the_same_with_more_changes_in_it_does_not_make_it_less_missed():
    mine, later = file('mine', 1, a=3, b=3), file('later', 2, b=7)
    elsewhere = mine._replace(vector=vector(a=3, b=5))  # another has settled it with a deletion
    merged = later._replace(vector=vector(a=3, b=7))
    assert resolve(mine, [later, elsewhere]) == Decision(merged, keeps_aside=True)


def test_what_somebody_made_something_else_of_is_not_missed():
    mine, changed = file('mine', 1, a=1), file('changed', 1, base='mine', a=2)
    later = file('later', 2, b=1)
    merged = later._replace(vector=vector(a=1, b=1))
    assert resolve(mine, [changed, later]) == Decision(merged)


def test_who_is_out_already_does_not_come_back_over_a_third():
    out, gone, third = file('out', 9, a=1), deletion('out', a=2), file('third', 1, b=1)
    merged = third._replace(vector=vector(b=1))
    assert resolve(None, [out, gone, third]) == Decision(merged)


def test_two_contents_with_one_vector_are_told_apart():
    low, high = file('low', 1, a=1, b=1), file('high', 2, a=1, b=1)
    assert resolve(low, [high]) == Decision(high, keeps_aside=True)
    assert resolve(high, [low]) == Decision(high)


# --- any versions -------------------------------------------------------------------------------

roots = st.sampled_from(['p', 'q', 'r'])
vectors = st.dictionaries(st.sampled_from('abc'), st.integers(0, 2)).map(build_vector)
versions = st.one_of(
    st.builds(
        Version,
        vectors,
        st.sampled_from([Kind.FILE, Kind.SYMLINK]),
        roots,
        mtime_ns=st.integers(0, 2),
        base_root=st.sampled_from(['', 'p', 'q', 'r']),
    ),
    st.builds(Version, vectors, st.just(Kind.DIRECTORY)),
    st.builds(Version, vectors, st.none(), base_root=st.sampled_from(['', 'p', 'q', 'r'])),
)


@given(versions, st.lists(versions, min_size=1, max_size=4), st.randoms())
def test_the_order_in_which_machines_are_heard_makes_no_difference(local, others, random):
    shuffled = random.sample(others, len(others))
    assert resolve(local, others).version.vector == resolve(local, shuffled).version.vector
    assert resolve(local, others).version.rank == resolve(local, shuffled).version.rank


@given(versions, st.lists(versions, min_size=1, max_size=4))
def test_each_decision_rises_so_that_it_comes_to_an_end(local, others):
    chosen, keeps_aside = resolve(local, others)
    order = compare(chosen.vector, local.vector)
    assert order in {Order.AFTER, Order.EQUAL}
    if order is Order.EQUAL:
        assert chosen.rank >= local.rank
    if chosen.rank == local.rank and order is Order.EQUAL:
        assert not keeps_aside


@given(versions, versions)
def test_of_two_machines_one_at_most_gives_way(one, other):
    gives_way = [
        resolve(mine, [theirs]).version.rank != mine.rank
        for mine, theirs in ((one, other), (other, one))
    ]
    assert sum(gives_way) == (one.rank != other.rank)


@given(versions, st.lists(versions, min_size=1, max_size=4))
def test_a_decision_that_was_carried_out_stands(local, others):
    # What machines announce does not change because of it, but what is here now is among it.
    chosen = local
    for _ in range(10):
        later = resolve(chosen, others).version
        if later == chosen:
            return
        chosen = later
    pytest.fail('it does not come to rest')


# --- machines -----------------------------------------------------------------------------------


class Machine:
    """What one machine has at the path, has kept aside, and has heard of others."""

    def __init__(self, name):
        self.name = name
        self.writers = (f'{name}{number}' for number in itertools.count())
        self.lose_index()
        self.local = None
        self.aside = set()

    def lose_index(self):
        self.writer = next(self.writers)
        self.heard = {}

    def change(self, version, now_s):
        before = self.local.vector if self.local else ()
        base = self.local.root if self.local else ''
        self.local = version._replace(vector=advance(before, self.writer, now_s), base_root=base)

    def hear(self, name, version):
        if version is not None:
            self.heard[name] = version

    def settle(self):
        if self.heard:
            before = self.local
            self.local, keeps_aside = resolve(before, self.heard.values())
            if keeps_aside:
                self.aside.add(before.root)


machines = st.integers(0, MACHINES - 1)
clocks = st.integers(0, 5)
steps = st.one_of(
    st.tuples(st.just('write'), machines, clocks, clocks),
    st.tuples(st.just('revert'), machines, clocks, st.integers(0, 20)),
    st.tuples(st.just('delete'), machines, clocks),
    st.tuples(st.just('hear'), machines, machines),
    st.tuples(st.just('say'), machines, machines),
    st.tuples(st.just('settle'), machines),
    st.tuples(st.just('lose'), machines, clocks),
)


class World:
    """Machines, what people did at them, and what is on its way between them."""

    def __init__(self):
        self.machines = [Machine('abcd'[number]) for number in range(MACHINES)]
        self.written = []
        self.seen = set()
        self.on_its_way = []

    def see(self, machine):
        """A person looks at what is there before they change it."""
        if machine.local is not None and machine.local.root:
            self.seen.add(machine.local.root)

    def write(self, number, now_s, mtime_ns):
        root = f'v{len(self.written)}'
        self.written.append(root)
        self._write(number, now_s, root, mtime_ns)

    def revert(self, number, now_s, which):
        if which < len(self.written):
            self._write(number, now_s, self.written[which], 0)

    def _write(self, number, now_s, root, mtime_ns):
        machine = self.machines[number]
        self.see(machine)
        machine.change(Version((), Kind.FILE, root, 1, mtime_ns, 0o644), now_s)

    def delete(self, number, now_s):
        machine = self.machines[number]
        if machine.local is not None and machine.local.kind is not None:
            self.see(machine)
            machine.change(Version((), None), now_s)

    def say(self, number, to):
        """What is said now is heard later, or after something that was said later."""
        if number != to and self.machines[number].local is not None:
            self.on_its_way.append((number, to, self.machines[number].local))

    def hear(self, number, which):
        if self.on_its_way:
            speaker, to, version = self.on_its_way.pop(which % len(self.on_its_way))
            self.machines[to].hear(speaker, version)

    def settle(self, number):
        self.machines[number].settle()

    def lose(self, number, now_s):
        machine = self.machines[number]
        machine.lose_index()
        if machine.local is not None:
            if machine.local.kind is None:
                machine.local = None
            else:
                fresh = advance((), machine.writer, now_s)
                machine.local = machine.local._replace(
                    vector=fresh, base_root='', writer=machine.writer
                )

    def come_to_rest(self):
        """Let all hear of all, until nothing changes; say how many rounds that took."""
        for rounds in range(100):
            before = [machine.local for machine in self.machines]
            for machine in self.machines:
                for number, other in enumerate(self.machines):
                    if other is not machine:
                        machine.hear(number, other.local)
                machine.settle()
            if before == [machine.local for machine in self.machines]:
                return rounds
        pytest.fail('it does not come to rest')


@given(st.lists(steps, max_size=40))
@example([('write', 0, 1, 5), ('say', 0, 1), ('hear', 0, 0), ('settle', 1), ('write', 1, 1, 0)])
def test_i4_i5_machines_agree_and_every_value_is_there_aside_or_was_seen(done):
    world = World()
    for name, *arguments in done:
        getattr(world, name)(*arguments)
    event(f'rounds: {world.come_to_rest()}')
    first = world.machines[0].local
    for machine in world.machines:
        if first is None:
            assert machine.local is None
        else:
            assert machine.local is not None
            assert machine.local == first
    aside = set().union(*(machine.aside for machine in world.machines))
    here = {first.root} if first is not None else set()
    assert set(world.written) <= here | aside | world.seen
