"""A transfer that is killed at any of its steps: I1, I2, I3, I6, I7, I10, and what it costs.

Each run is killed when it is about to make its k-th system call that changes anything, by the
program killing.py. What is then on the disk says exactly what the next run may bring and hash.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from degu_rpc.files import FileShare

KIB = 1024
BLOCK = 128 * KIB
OLD_NS = 1_500_000_000_987_654_321


def blocks(*kinds, tail=0):
    return b''.join(bytes([kind]) * BLOCK for kind in kinds) + b't' * tail


# What is at the source, and what is here before: contents, symlinks, None for a directory.
THERE = {
    'dir': None,
    'dir/new small': b'new small' * 100,
    'dir/empty': b'',
    'link': Path('../outside'),
    'new large': blocks(1, 2, 3),
    'large': blocks(4, 5, 6, 7, 8, tail=99),
    'small': b'small' * 77,
    'same': b'same' * 50,
    'turned': b'a file now',
}
BEFORE = {
    'large': blocks(4, 9, 6, 9, tail=50),
    'small': b'old small',
    'same': b'same' * 50,
    'turned': Path('../outside/victim'),
    'mine': b'mine',
}
REPLACED = [BEFORE['large'], BEFORE['small'], os.fsencode(BEFORE['turned'])]


def build(top, entries):
    top.mkdir()
    for name, value in entries.items():
        path = top / name
        if value is None:
            path.mkdir()
        elif isinstance(value, Path):
            path.symlink_to(value)
        else:
            path.write_bytes(value)
            path.chmod(0o640)


def read(path):
    """Return the bytes of a file or the text of a symlink."""
    return os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()


def as_bytes(value):
    return os.fsencode(value) if isinstance(value, Path) else value


# --- the transfers ------------------------------------------------------------------------------


class Stage:
    """A share, a place to fetch it to, and the program that does it and is killed."""

    def __init__(self, place, client, recorder, killing, tree, work):
        self.place = place
        self.here = place / 'here'
        self.recorder = recorder
        self._client = client
        self._killing = killing
        self._tree = tree
        self._work = work

    def find_work(self):
        return self._work.find_work(self.place / 'source', self.here)

    def reset(self):
        """Put here what was here before."""
        if self.here.exists():
            shutil.rmtree(self.here)
        build(self.here, BEFORE)

    def run(self, *, kill_at=0, connections=2, exchange=True):
        """Run a transfer; return what the program reports."""
        prefix = self.recorder.begin()
        host, port = self._client.address
        self._killing.begin(
            role='fetch',
            host=host,
            port=port,
            prefix=prefix,
            here=str(self.here),
            kill_at=kill_at,
            connections=connections,
            exchange=exchange,
        )
        return self._killing.end()

    def check_killed(self):
        """Check what is here after a kill; return the old contents that are not kept elsewhere."""
        kept = self.find_kept()
        for name, value in THERE.items():
            path = self.here / name
            if name in BEFORE:
                assert os.path.lexists(path), f'I2: {name} is absent'
            if value is None or not os.path.lexists(path):
                continue
            found = read(path)
            old = as_bytes(BEFORE.get(name))
            assert found in {as_bytes(value), old}, f'I1, I10: {name} has other content'
            assert found == old or old in {*kept, None, as_bytes(value)}, f'I3: {name} is lost'
        assert (self.here / 'mine').read_bytes() == b'mine'
        self.check_outside()

    def check_outside(self):
        assert self._tree(self.place / 'outside') == self.outside, 'I6'

    def find_kept(self):
        """Return all contents in the trash and in conflict copies."""
        found = [*(self.here / '.degu' / 'trash').rglob('*'), *self.here.rglob('* (conflict *')]
        return [read(path) for path in found if path.is_symlink() or path.is_file()]

    def find_unreplaced(self):
        return [
            as_bytes(BEFORE[name])
            for name in ('large', 'small', 'turned')
            if read(self.here / name) == as_bytes(BEFORE[name])
        ]

    def check_complete(self, displaced):
        """Check that all has arrived and that what was displaced is kept."""
        expected = self._tree(self.place / 'source')
        found = self._tree(self.here)
        del found[b'mine']
        conflicts = [name for name in found if b' (conflict ' in name]
        for name in conflicts:
            del found[name]
        assert found == expected
        kept = self.find_kept()
        assert [content for content in displaced if content not in kept] == [], 'I3'
        assert os.listdir(self.here / '.degu' / 'tmp') == []
        assert os.listdir(self.here / '.degu' / 'reserved') == ['lock']
        self.check_outside()


@pytest.fixture
def stage(tmp_path, serve, tree, work, killing):
    build(tmp_path / 'source', THERE)
    for path in [*(tmp_path / 'source').rglob('*'), tmp_path / 'source']:
        os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    build(tmp_path / 'outside', {'victim': b'outside'})
    with FileShare(tmp_path / 'source', 'peer') as app:
        recorder = work.Recorder(app)
        stage = Stage(tmp_path, serve(recorder), recorder, killing, tree, work)
        stage.outside = tree(tmp_path / 'outside')
        yield stage


def kill_and_go_on(stage, k, *, forget=False, **options):
    """Kill a run at its k-th call, look, run again, look; return whether there was such a call."""
    stage.reset()
    report = stage.run(kill_at=k, **options)
    stage.check_killed()
    if report['status'] == 0:
        assert report['error'] is None
        stage.check_complete(REPLACED)
        return False
    assert report['status'] == -signal.SIGKILL
    assert len(report['calls']) >= k
    displaced = REPLACED
    if forget and (stage.here / '.degu').exists():
        displaced = stage.find_unreplaced()
        subprocess.run(['rm', '-rf', str(stage.here / '.degu')], check=True)
    work = stage.find_work()
    again = stage.run(**options)
    assert (again['status'], again['error']) == (0, None)
    stage.recorder.check(work)
    assert Counter(map(tuple, again['hashed'])) == work.hashed
    stage.check_complete(displaced)
    return True


def test_a_run_hashes_and_brings_each_block_once(stage):
    stage.reset()
    work = stage.find_work()
    assert (len(work.blocks), len(work.packed)) == (3 + 4, 5)
    report = stage.run()
    assert (report['status'], report['error']) == (0, None)
    stage.recorder.check(work)
    assert Counter(map(tuple, report['hashed'])) == work.hashed
    stage.check_complete(REPLACED)


@pytest.mark.parametrize('exchange', [True, False])
def test_i1_whatever_gets_a_final_name_is_durable_and_so_is_the_name(stage, work, exchange):
    """What was written is synced before it is renamed or noted, and each directory after that."""
    stage.reset()
    renamed = work.follow_syncs(stage.run(exchange=exchange)['calls'], stage.here)
    files = {name for name, value in THERE.items() if isinstance(value, bytes)} - {'same'}
    assert renamed >= files


# Nine is no multiple of what a transfer does again and again, so these are calls of all kinds.


@pytest.mark.parametrize('exchange', [True, False])
def test_i1_i2_i3_i6_i10_hold_when_killed_at_some_steps(stage, work, exchange):
    go_on = partial(kill_and_go_on, stage, exchange=exchange)
    assert work.kill_at_steps(go_on, 5, 9) > 50


def test_i7_without_our_directory_a_run_takes_longer_and_is_right(stage, work):
    go_on = partial(kill_and_go_on, stage, forget=True)
    assert work.kill_at_steps(go_on, 9, 9) > 50


@pytest.mark.slow
@pytest.mark.parametrize(('exchange', 'connections'), [(True, 2), (False, 1)])
def test_i1_i2_i3_i6_i10_hold_when_killed_at_every_step(stage, work, exchange, connections):
    go_on = partial(kill_and_go_on, stage, exchange=exchange, connections=connections)
    assert work.kill_at_steps(go_on, 1, 1) > 50
