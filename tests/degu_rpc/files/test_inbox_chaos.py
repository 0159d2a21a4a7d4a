"""Send over a network that drops, cuts, flips, stalls, repeats and reorders: right or an error.

A test's id has its seed: that alone decides what is sent, what is in the inbox before, and what
goes wrong. Without TLS a flipped bit can be anywhere in an offer, and only contents are checked.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
import sys

import pytest

from degu.errors import DeguError
from degu_rpc.errors import FilesError
from degu_rpc.files import Decision, Inbox, dispatch, partial, send
from degu_rpc.files.remote_inbox import StaleTransferError

BLOCK = 128 * 1024
QUICK = 20
ALL = 100
RUNS = 2


def accept(_offer):
    return Decision.ACCEPT


class Stage:
    """An inbox, what is sent into it, and a network that is bad or not."""

    def __init__(self, seed, place, is_tls, work, chaos, listen):
        self.source, self.here = place / 'source', place / 'here'
        self.is_tls = is_tls
        self.chance = random.Random(seed)
        self._seed = seed
        self._work = work
        self._chaos = chaos
        self._start, self._build_client = listen
        chaos.fill(self.source, self.here, self.chance)
        self._runs = 0
        self._open = contextlib.ExitStack()
        self._recorder = work.InboxRecorder(None)
        self.restart()

    def restart(self):
        self.close()
        self._recorder.app = self._open.enter_context(Inbox(self.here, accept))

    def close(self):
        self._open.close()

    @property
    def paths(self):
        return sorted(self.source.iterdir())

    def send(self):
        """Send over a good network; return what came of it and what was sent."""
        with self._serve() as server:
            client = self._build_client(server.address, is_tls=self.is_tls, timeout_s=20)
            return send(client, self._recorder.begin(), self.paths), self._recorder

    def send_badly(self):
        """Send over a bad network. All that was sent was read when this returns."""
        self._runs += 1
        size = sum(path.lstat().st_size for path in self.source.rglob('*'))
        seed = f'{self._seed}/{self._runs}'
        with (
            self._serve() as server,
            self._chaos.Relay(server.address, seed, size // 2 + 10_000, is_sent=True) as relay,
        ):
            client = self._build_client(relay.address, is_tls=self.is_tls, timeout_s=0.3)
            error = None
            try:
                send(client, self._recorder.begin(), self.paths)
            except (FilesError, DeguError, OSError) as caught:
                error = caught
        assert type(error) is not StaleTransferError  # nobody else knows it

    def _serve(self):
        return self._start(self._work.WithRoles(self._recorder, 'peer'), is_tls=self.is_tls)


@pytest.fixture
def build_stage(tmp_path, monkeypatch, listen, chaos, work):
    monkeypatch.setattr(dispatch, 'RUN_SIZE', 2 * BLOCK)
    monkeypatch.setattr(partial, 'NOTE_SIZE', BLOCK)
    monkeypatch.setattr(sys.modules['degu_rpc.files.send'], 'BUSY_PAUSE_S', 0.02)
    with contextlib.ExitStack() as stack:

        def build(seed, *, is_tls):
            stage = Stage(seed, tmp_path, is_tls, work, chaos, listen)
            stack.callback(stage.close)
            return stage

        yield build


def seeds(first):
    for seed in range(first, ALL, 2):
        marks = [pytest.mark.slow] if seed >= QUICK else []
        yield pytest.param(seed, marks=marks, id=f'seed-{seed}')


@pytest.mark.parametrize('seed', [*seeds(0)])
def test_a_send_over_a_bad_network_is_right_or_an_error_and_resumes(seed, build_stage, look, work):
    stage = build_stage(seed, is_tls=True)
    before, offered = look(stage.here), look(stage.source)
    for _ in range(stage.chance.randint(1, RUNS)):
        stage.send_badly()
        work.check_whole(look(stage.here), before, offered)
    is_running = stage.chance.random() < 0.5
    if not is_running:
        stage.restart()
    left = work.find_inbox_work(stage.source, stage.here, is_running=is_running)
    result, recorder = stage.send()
    recorder.check(left)
    assert result.bytes_sent == left.size
    expected = {name: value for name, (_, value) in before.items()}
    expected |= place(work, stage, offered)
    assert {name: value for name, (_, value) in look(stage.here).items()} == expected
    check_nothing_left(stage)

    # The same once more is there already; something else comes beside it.
    found = look(stage.here)
    result, _ = stage.send()
    assert (result.files_sent, result.bytes_sent, look(stage.here)) == (0, 0, found)
    change(stage)
    stage.send_badly()
    offered |= look(stage.source)
    work.check_whole(look(stage.here), found, offered)
    stage.send()
    expected |= place(work, stage, look(stage.source))
    assert {name: value for name, (_, value) in look(stage.here).items()} == expected
    check_nothing_left(stage)


def place(work, stage, offered):
    """Return what was offered last, as it is in the inbox."""
    placed = work.read_places(stage.here)
    return {work.find_place(placed, name): value for name, (_, value) in offered.items()}


def check_nothing_left(stage):
    private = stage.here / '.degu'
    assert os.listdir(private / 'tmp') == os.listdir(private / 'trash') == []


def change(stage):
    """Change one of the files that are sent."""
    path = stage.chance.choice([path for path in stage.source.rglob('*') if not path.is_dir()])
    path.unlink()
    path.write_bytes(b'changed')


@pytest.mark.parametrize('seed', [*seeds(1)])
def test_a_send_over_a_bad_network_without_tls_keeps_no_wrong_content(
    seed, build_stage, look, work
):
    """Nothing but TCP's checksum binds an answer to its question there, or keeps an offer whole.

    In none of these is it the first offer that a bit is flipped in: that one would be kept as it
    came, and the right one be refused (409).
    """
    stage = build_stage(seed, is_tls=False)
    before = look(stage.here)
    for _ in range(stage.chance.randint(1, RUNS)):
        stage.send_badly()
        check_contents(stage, look, before)
    stage.send()
    check_contents(stage, look, before)
    found = {name: value for name, (_, value) in look(stage.here).items()}
    expected = place(work, stage, look(stage.source))
    assert {name: found.get(name) for name in expected} == expected


def check_contents(stage, look, before):
    """Check that what was there before is as it was, and that all else is whole contents."""
    found = look(stage.here)
    assert {name: found[name] for name in before if name in found} == before
    contents = {path.read_bytes() for path in stage.source.rglob('*') if is_regular(path)}
    for name in found.keys() - before.keys():
        path = stage.here / os.fsdecode(name)
        assert not is_regular(path) or path.read_bytes() in contents


def is_regular(path):
    return stat.S_ISREG(path.lstat().st_mode)
