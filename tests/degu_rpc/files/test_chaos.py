"""Fetch over a network that drops, cuts, flips, stalls, repeats and reorders: right or an error.

A test's id has its seed: that alone decides the trees, what is here before, and what goes wrong.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat

import pytest

from degu.errors import DeguError
from degu_rpc.errors import FilesError
from degu_rpc.files import FileShare, Mirror, fetch, partial, receive

BLOCK = 128 * 1024
QUICK = 40
ALL = 200
RUNS = 2


def check(source, here, old, kept, *, is_tls):
    """Check that nothing wrong is here, after a transfer that may have failed."""
    for path in here.rglob('*'):
        name = path.relative_to(here)
        if name.parts[0] == '.degu' or not stat.S_ISREG(path.lstat().st_mode):
            # Without TLS a flipped bit may be in the name of a directory, or in a symlink.
            assert name.parts[0] == '.degu' or not is_tls or os.path.lexists(source / name)
            continue
        before = old.get(str(name))
        found = path.read_bytes()
        expected = (source / name).read_bytes()
        assert found in {before, expected}
        assert found == before or before in {None, expected, *kept}
    for name in old:
        assert (here / name).exists()


@pytest.fixture
def kept(trash):
    """Return what is in the trash and in conflict copies."""
    return lambda top: trash(top) + [path.read_bytes() for path in top.rglob('* (conflict *')]


def cases():
    for seed in range(ALL):
        marks = [pytest.mark.slow] if seed >= QUICK else []
        name = 'tls' if seed % 2 else 'clear'
        yield pytest.param(seed, seed % 2 == 1, marks=marks, id=f'seed-{seed}-{name}')


@pytest.mark.parametrize(('seed', 'is_tls'), [*cases()])
def test_a_transfer_over_a_bad_network_is_right_or_an_error_and_resumes(
    seed, is_tls, tmp_path, monkeypatch, with_roles, listen, chaos, work, tree, kept
):
    monkeypatch.setattr(receive, 'RUN_SIZE', 2 * BLOCK)
    monkeypatch.setattr(partial, 'NOTE_SIZE', BLOCK)
    start, build_client = listen
    source, here = tmp_path / 'source', tmp_path / 'here'
    chance = random.Random(seed)
    old = chaos.fill(source, here, chance)
    size = sum(path.lstat().st_size for path in source.rglob('*'))
    with FileShare(source, 'peer') as app:
        recorder = work.Recorder(app)
        with start(with_roles(recorder, 'peer'), is_tls=is_tls) as server:
            for run in range(chance.randint(1, RUNS)):
                with chaos.Relay(server.address, f'{seed}/{run}', size // 2 + 10_000) as relay:
                    client = build_client(relay.address, is_tls=is_tls, timeout_s=0.3)
                    with contextlib.suppress(FilesError, DeguError, OSError):
                        fetch(client, recorder.begin(), '', here)
                check(source, here, old, kept(here), is_tls=is_tls)
            left = work.find_work(source, here)
            client = build_client(server.address, is_tls=is_tls, timeout_s=20)
            result = fetch(client, recorder.begin(), '', here)
    recorder.check(left)
    assert result.bytes_fetched == left.size
    check(source, here, old, kept(here), is_tls=is_tls)
    expected, found = tree(source), tree(here)
    assert {name: found[name] for name in expected} == expected
    assert not is_tls or found == expected
    assert os.listdir(here / '.degu' / 'tmp') == []


@pytest.mark.parametrize('seed', [*range(16)])
def test_one_good_source_of_three_is_enough_whatever_the_others_do(
    seed, tmp_path, monkeypatch, with_roles, listen, chaos, tree, kept
):
    """Over TLS; over less, a source can be wrong about names and times."""
    monkeypatch.setattr(receive, 'RUN_SIZE', 2 * BLOCK)
    start, build_client = listen
    source, here = tmp_path / 'source', tmp_path / 'here'
    chance = random.Random(seed)
    old = chaos.fill(source, here, chance)
    size = sum(path.lstat().st_size for path in source.rglob('*'))
    with (
        FileShare(source, 'peer') as app,
        start(with_roles(app, 'peer'), is_tls=True) as server,
        chaos.Relay(server.address, f'{seed}/a', size) as first,
        chaos.Relay(server.address, f'{seed}/b', size) as second,
    ):
        clients = [
            build_client(first.address, is_tls=True, timeout_s=0.3),
            build_client(second.address, is_tls=True, timeout_s=0.3),
            build_client(server.address, is_tls=True, timeout_s=20),
        ]
        chance.shuffle(clients)
        mirrors = [Mirror(client, '') for client in clients[1:]]
        result = fetch(clients[0], '', '', here, mirrors=mirrors)
    assert tree(here) == tree(source)
    assert result.skipped == ()
    check(source, here, old, kept(here), is_tls=True)
    assert os.listdir(here / '.degu' / 'tmp') == []
