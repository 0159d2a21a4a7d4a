"""degu_rpc.sync.plan: every step can be done when it is its turn, and machines become equal.

The simulation has a few machines, each with a tree in memory that refuses what a file system would
refuse. People make, write, move and delete there; machines hear of each other late and in any
order, and carry out their plans.
"""

from __future__ import annotations

import itertools
from random import Random

import pytest

from degu_rpc.files.listing import Kind
from degu_rpc.sync.plan import plan
from degu_rpc.sync.resolve import Version
from degu_rpc.sync.versions import advance

MACHINES = 3
DONE = ['make', 'write', 'describe', 'delete', 'move', 'hear', 'sync', 'make', 'write', 'hear']
"""What happens next, each as likely as it stands there."""


class Machine:
    """A tree: what is at each path, deletions included; and what was heard of others.

    `news` are the paths where anything has changed since the last plan.
    """

    def __init__(self, name):
        self.name = name
        self.tree = {}
        self.heard = {}
        self.news = set()

    # --- what people do -------------------------------------------------------------------------

    def is_directory(self, path):
        return not path or (path in self.tree and self.tree[path].kind is Kind.DIRECTORY)

    def is_live(self, path):
        return path in self.tree and self.tree[path].is_live

    def below(self, path):
        return [
            each for each in self.tree if each[: len(path)] == path != each and self.is_live(each)
        ]

    def change(self, path, now_s, **fields):
        before = self.tree.get(path)
        self.tree[path] = Version(
            advance(before.vector if before else (), self.name, now_s),
            base_root=before.root if before else '',
            writer=self.name,
            **fields,
        )
        self.news.add(path)

    # --- what machines do -----------------------------------------------------------------------

    def hear(self, speaker, tree):
        before = self.heard.get(speaker, {})
        self.news |= {path for path, version in tree.items() if before.get(path) != version}
        self.heard[speaker] = dict(tree)

    def sync(self, now_s):
        """Carry out a plan; return whether there was anything to do."""
        others = list(self.heard.values())
        news, self.news = self.news, set()
        notes, describe, make, remove, replace = plan(self.tree, others, news, self.name, now_s)
        for step in describe:
            assert self.is_live(step.path)
        for step in make:
            assert self.is_directory(step.path[:-1])
            assert not self.is_directory(step.path)
            self.displace(step, now_s)
        for step in remove:
            self.displace(step, now_s)
        for step in replace:
            assert self.is_directory(step.path[:-1])
            self.displace(step, now_s)
        for step in (*notes, *describe):
            self.tree[step.path] = step.version
        return any((notes, describe, make, remove, replace))

    def displace(self, step, now_s):
        path, version, before, keeps_aside = step
        if self.tree.get(path) != before:
            self.news.add(path)  # a conflict copy has come meanwhile: the next plan sees to it
            return
        if self.is_directory(path):
            assert not self.below(path)
        self.tree[path] = version
        if keeps_aside:
            copy = (*path[:-1], path[-1] + b'~' + before.root.encode())
            if not self.is_live(copy):
                self.change(copy, now_s, kind=before.kind, root=before.root)


class World:
    """Machines, and what people did at them."""

    def __init__(self):
        self.machines = [Machine('abc'[number]) for number in range(MACHINES)]
        self.roots = (f'v{number}' for number in itertools.count())
        self.written = set()
        self.seen = set()

    def make(self, number, path, now_s):
        machine = self.machines[number]
        if machine.is_directory(path[:-1]) and not machine.is_live(path):
            machine.change(path, now_s, kind=Kind.DIRECTORY, mode=0o755)

    def write(self, number, path, now_s, mtime_ns):
        machine = self.machines[number]
        if machine.is_directory(path[:-1]) and not machine.is_directory(path):
            root = next(self.roots)
            self.written.add(root)
            self.see(machine, path)
            machine.change(path, now_s, kind=Kind.FILE, root=root, mtime_ns=mtime_ns)

    def describe(self, number, path, now_s, mode):
        machine = self.machines[number]
        if machine.is_live(path):
            before = machine.tree[path]
            machine.change(path, now_s, kind=before.kind, root=before.root, mode=mode)

    def delete(self, number, path, now_s):
        machine = self.machines[number]
        for each in [*sorted(machine.below(path), reverse=True), path]:
            if machine.is_live(each):
                self.see(machine, each)
                machine.change(each, now_s, kind=None)

    def move(self, number, path, target, now_s):
        """Move what is there, a whole directory perhaps, to a name that is free."""
        machine = self.machines[number]
        is_below = target[: len(path)] == path
        if not machine.is_live(path) or machine.is_live(target) or is_below:
            return
        if machine.is_directory(target[:-1]):
            moved = [path, *sorted(machine.below(path))]
            for each in moved:
                before = machine.tree[each]
                fields = {'kind': before.kind, 'root': before.root, 'mtime_ns': before.mtime_ns}
                machine.change(target + each[len(path) :], now_s, **fields)
            for each in reversed(moved):
                machine.change(each, now_s, kind=None)

    def see(self, machine, path):
        if machine.is_live(path):
            self.seen.add(machine.tree[path].root)

    def hear(self, number, speaker):
        if number != speaker:
            self.machines[number].hear(speaker, self.machines[speaker].tree)

    def sync(self, number, now_s):
        self.machines[number].sync(now_s)

    def come_to_rest(self):
        """Let all hear of all, until nothing changes."""
        for _ in range(50):
            is_quiet = True
            for number, machine in enumerate(self.machines):
                for speaker in range(MACHINES):
                    self.hear(number, speaker)
                if machine.sync(0):
                    is_quiet = False
            if is_quiet:
                return
        pytest.fail('it does not come to rest')


def live_through(seed):
    """Let a world go on for a while, as the seed says, and come to rest; return it."""
    random = Random(seed)
    world = World()

    def number():
        return random.randrange(MACHINES)

    def clock():
        return random.randrange(5)  # now and then the same, or earlier than before

    def path():
        return tuple(random.choices([b'x', b'y'], k=random.choice([1, 1, 2, 2, 3])))

    for _ in range(random.randrange(10, 150)):
        match random.choice(DONE):
            case 'make':
                world.make(number(), path(), clock())
            case 'write':
                world.write(number(), path(), clock(), clock())
            case 'describe':
                world.describe(number(), path(), clock(), random.choice([0o600, 0o640]))
            case 'delete':
                world.delete(number(), path(), clock())
            case 'move':
                world.move(number(), path(), path(), clock())
            case 'hear':
                world.hear(number(), number())
            case 'sync':
                world.sync(number(), clock())
    world.come_to_rest()
    return world


@pytest.mark.parametrize('block', range(4))
def test_i4_i5_trees_become_equal_and_every_value_is_there_or_was_seen(block):
    for seed in range(block * 100, block * 100 + 100):
        world = live_through(seed)
        first, *rest = [machine.tree for machine in world.machines]
        assert all(tree == first for tree in rest), f'seed {seed}'
        here = {version.root for version in first.values()}
        assert world.written <= here | world.seen, f'seed {seed}'
