"""What is sent into an inbox, while either side is killed at any step: I1, I2, I3, I6, I7, I10.

Who receives is killed when it is about to make its k-th system call that changes anything; who
sends when it is about to send something for the k-th time, because it writes nothing. What is then
in the inbox says exactly what the next send may bring, and what is hashed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from degu.client import Client
from degu.errors import DeguError
from degu.server import Server
from degu_rpc.files import Decision, Inbox, send

KIB = 1024
BLOCK = 128 * KIB
OLD_NS = 1_500_000_000_987_654_321
CONNECTIONS = 2
MEMORY = Path('/dev/shm')


def blocks(*kinds, tail=0):
    return b''.join(bytes([kind]) * BLOCK for kind in kinds) + b't' * tail


# What is sent and what is in the inbox before: contents, symlinks, None for a directory.
SENT = {
    'album': None,
    'album/empty': b'',
    'album/large': blocks(1, 2, 3, tail=99),
    'album/nothing in it': None,
    'album/small': b'small' * 77,
    'album/sub': None,
    'album/sub/as large': blocks(1, 2, 3, tail=99),
    'album/sub/as large, too': blocks(1, 2, 3, tail=99),
    'album/sub/as small': b'small' * 77,
    'album/sub/link': Path('../../../outside/victim'),
    'album/sub/small, too': b'small, too' * 100,
    'link': Path('nowhere'),
    'new': blocks(4, 5, 6),
    'talk.txt': b'a new talk',
}
BEFORE = {
    'album': None,
    'album/small': b'mine',
    'mine': b'mine',
    'talk.txt': b'an old talk',
}


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
    for path in [*top.rglob('*'), top]:
        os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)


class Stage:
    """What is to be sent, an inbox, and the program that runs one side and is killed."""

    def __init__(self, place, killing, control, look, work, hashed):
        self.source = place / 'source'
        self.here = place / 'here'
        self.work = work
        self.hashed = hashed
        self._outside = place / 'outside'
        self._killing = killing
        self._control = control
        self._look = look
        build(self.source, SENT)
        build(self._outside, {'victim': b'outside'})
        self._outside_before = look(self._outside)
        self.offered = look(self.source)
        self.paths = sorted(map(str, self.source.iterdir()))

    def reset(self):
        """Put into the inbox what was there before; return how it looks."""
        if self.here.exists():
            shutil.rmtree(self.here)
        build(self.here, BEFORE)
        return self.look()

    def look(self):
        return self._look(self.here)

    def find_work(self, **options):
        return self.work.find_inbox_work(self.source, self.here, **options)

    # --- the transfers --------------------------------------------------------------------------

    def receive(self, *, kill_at=0, exchange=True):
        """Have the program receive what is sent here; return its report, what send() returned."""
        self.hashed.clear()
        self._killing.begin(
            role='receive',
            control=self._control.getsockname(),
            here=str(self.here),
            kill_at=kill_at,
            connections=CONNECTIONS,
            exchange=exchange,
        )
        control, _ = self._control.accept()
        result = None
        with control, control.makefile('rb') as file:
            line = file.readline()
            if line:  # it was not killed before it served
                host, port, prefix = json.loads(line)
                try:
                    result = send(Client((host, port), timeout_s=20), prefix, self.paths)
                except (DeguError, OSError):
                    if not kill_at:
                        raise
        return self._killing.end(), result

    def send(self, recorder, *, kill_at=0, watch='messages'):
        """Have the program send to an inbox here; return its report."""
        with Server(('127.0.0.1', 0), self.work.WithRoles(recorder, 'peer')) as server:
            host, port = server.address
            self._killing.begin(
                role='send',
                host=host,
                port=port,
                prefix=recorder.begin(),
                paths=self.paths,
                kill_at=kill_at,
                watch=watch,
                connections=CONNECTIONS,
                exchange=True,
            )
            return self._killing.end()

    # --- what has to hold -----------------------------------------------------------------------

    def check_killed(self, before):
        """Check what is in the inbox at any moment, and return it."""
        found = self.look()
        self.work.check_whole(found, before, self.offered)
        self.check_outside()
        return found

    def check_outside(self):
        assert self._look(self._outside) == self._outside_before, 'I6'

    def check_complete(self, before, *, is_done_before=False, may_leave_empty=False):
        """Check that all arrived, once, beside what was there, and nothing is left over."""
        found = self.look()
        if may_leave_empty and b'album (2)' in found.keys() - before.keys():
            # See Workspace.make_new_directory(): a killed run had made it.
            left = [name for name in found if name.startswith(b'album (2)')]
            if left == [b'album (2)']:
                del found[b'album (2)']
        assert {name: found[name] for name in before if name in found} == before, 'I2, I3'
        placed = self.work.read_places(self.here)
        places = {self.work.find_place(placed, name): name for name in self.offered}
        assert found.keys() == {*before, *places}
        for place, name in places.items():
            assert found[place][1] == self.offered[name][1]
        (record,) = self.work.read_records(self.here)
        assert record['state'] == 'done'
        assert record['bytes_received'] == sum(
            len(value) for value in SENT.values() if isinstance(value, bytes)
        )
        private = self.here / '.degu'
        assert os.listdir(private / 'tmp') == os.listdir(private / 'trash') == []
        # What a killed run reserved counts no more; the next one that needs room removes it.
        assert is_done_before or os.listdir(private / 'reserved') == ['lock']
        self.check_outside()

    def check_received(self, report, work):
        """Check what a receiver that was not killed got and hashed."""
        assert (report['status'], report['error']) == (0, None)
        sent = {(root, index): count for root, index, count in report['blocks']}
        assert sent == dict.fromkeys(work.blocks, 1)
        assert report['packed'] == dict.fromkeys(work.packed, 1)
        assert Counter(map(tuple, report['hashed'])) == work.hashed

    @property
    def files(self):
        """What a sender hashes: each file once, because it remembers nothing."""
        sizes = [len(value) for value in SENT.values() if isinstance(value, bytes)]
        return Counter((size, self.work.WHOLE) for size in sizes)


@pytest.fixture
def stage(monkeypatch, look, work, killing):
    hashed = []
    work.prepare(monkeypatch.setattr, CONNECTIONS, hashed)
    # In memory: thousands of fsyncs of a disk take longer than everything else.
    with (
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as place,
        socket.create_server(('127.0.0.1', 0)) as control,
    ):
        control.settimeout(20)
        yield Stage(Path(place), killing, control, look, work, hashed)


# --- who receives is killed ---------------------------------------------------------------------


def kill_receiver_and_go_on(stage, k, *, exchange=True, forget=False):
    """Kill a receiver at its k-th call, look, send again, look; return whether it was killed."""
    before = stage.reset()
    report, _ = stage.receive(kill_at=k, exchange=exchange)
    found = stage.check_killed(before)
    if report['status'] == 0:
        assert report['error'] is None
        stage.check_complete(before)
        return False
    assert report['status'] == -signal.SIGKILL
    assert len(report['calls']) >= k
    if forget:
        before = found
        shutil.rmtree(stage.here / '.degu', ignore_errors=True)
    is_done = [record['state'] for record in stage.work.read_records(stage.here)] == ['done']
    work = stage.find_work()
    again, result = stage.receive(exchange=exchange)
    stage.check_received(again, work)
    assert result.bytes_sent == work.size
    assert again['told'] == (not is_done)
    stage.check_complete(before, is_done_before=is_done, may_leave_empty=not exchange)
    inodes = {name: inode for name, (inode, _) in stage.look().items()}
    for name, (inode, _) in found.items():
        assert inodes[name] == inode, 'what had its name has it still'
    return True


def test_a_receiver_gets_and_hashes_each_block_once(stage):
    before = stage.reset()
    work = stage.find_work()
    assert (len(work.blocks), len(work.packed)) == (4 + 3, 4)
    report, result = stage.receive()
    stage.check_received(report, work)
    assert result.bytes_sent == work.size
    assert report['told'] == 1
    stage.check_complete(before)


@pytest.mark.parametrize('exchange', [True, False])
def test_i1_what_arrives_is_durable_and_written_down_before_it_has_its_name(stage, work, exchange):
    stage.reset()
    report, _ = stage.receive(exchange=exchange)
    renamed = work.follow_syncs(report['calls'], stage.here)
    placed = {'album': 'album (2)', 'talk.txt': 'talk (2).txt'}
    assert renamed >= {
        '/'.join([placed.get(top, top), *below])
        for name, value in SENT.items()
        if value is not None
        for top, *below in [name.split('/')]
    }
    records = [
        index
        for index, (name, *paths) in enumerate(report['calls'])
        if name == 'fsync' and os.path.dirname(paths[0]).endswith('/.degu/inbox')
    ]
    names = [
        index
        for index, (name, *paths) in enumerate(report['calls'])
        if name in {'mkdirat', 'renameat2', 'linkat'} and not work.is_private(paths[-1])
    ]
    assert records[0] < names[0]


# Nineteen is no multiple of what a transfer does again and again, so these are calls of all kinds.


@pytest.mark.parametrize('exchange', [True, False])
def test_i1_i2_i3_i6_i10_hold_when_a_receiver_is_killed_at_some_steps(stage, work, exchange):
    go_on = partial(kill_receiver_and_go_on, stage, exchange=exchange)
    assert work.kill_at_steps(go_on, 11, 19) > 100


def test_i7_an_inbox_without_our_directory_gets_a_second_copy_and_loses_nothing(stage, work):
    go_on = partial(kill_receiver_and_go_on, stage, forget=True)
    assert work.kill_at_steps(go_on, 13, 23) > 100


@pytest.mark.slow
def test_i1_i2_i3_i6_i10_hold_when_a_receiver_is_killed_at_every_step(stage, work):
    go_on = partial(kill_receiver_and_go_on, stage)
    assert work.kill_at_steps(go_on, 1, 1) > 100


@pytest.mark.slow
def test_i1_i2_i3_i6_i10_hold_when_a_receiver_without_exchange_is_killed_at_many_steps(stage, work):
    go_on = partial(kill_receiver_and_go_on, stage, exchange=False)
    assert work.kill_at_steps(go_on, 1, 5) > 100


def test_i3_what_a_person_did_between_a_kill_and_the_next_send_stays(stage):
    """They write to one file, remove another and put a directory in place of a third."""
    kills = 0
    k = 60
    while True:
        before = stage.reset()
        report, _ = stage.receive(kill_at=k)
        if report['status'] == 0:
            break
        album = stage.here / 'album (2)'
        theirs = {}
        for name, change in [('small', write), ('sub/small, too', remove), ('large', occupy)]:
            if (album / name).exists():
                theirs |= change(album / name)
        kills += bool(theirs)
        again, _ = stage.receive()
        assert (again['status'], again['error']) == (0, None)
        found = stage.look()
        assert {name: found[name] for name in before} == before
        for path, content in theirs.items():
            assert path.read_bytes() == content
        placed = stage.work.read_places(stage.here)
        places = [
            stage.here / os.fsdecode(stage.work.find_place(placed, os.fsencode(name)))
            for name, value in SENT.items()
            if isinstance(value, bytes)
        ]
        contents = sorted(value for value in SENT.values() if isinstance(value, bytes))
        assert sorted(path.read_bytes() for path in places) == contents
        k += 17
    assert kills > 3


def write(path):
    path.write_bytes(b'mine, too')
    return {path: b'mine, too'}


def remove(path):
    path.unlink()
    return {}


def occupy(path):
    path.unlink()
    path.mkdir()
    (path / 'note').write_bytes(b'a note')
    return {path / 'note': b'a note'}


# --- who sends is killed ------------------------------------------------------------------------


def kill_sender_and_go_on(stage, k):
    """Kill a sender at its k-th message, look, send again, look; return whether it was killed."""
    before = stage.reset()
    told = []
    with Inbox(stage.here, accept, received=lambda *_: told.append(1)) as app:
        recorder = stage.work.InboxRecorder(app)
        report = stage.send(recorder, kill_at=k)
        stage.check_killed(before)
        is_killed = report['status'] == -signal.SIGKILL
        if is_killed:
            work = stage.find_work(is_running=True)
            report = stage.send(recorder)
            recorder.check(work)
            assert report['bytes_sent'] == work.size
            assert Counter(map(tuple, report['hashed'])) == stage.files
    assert (report['status'], report['error']) == (0, None)
    assert told == [1]
    stage.check_complete(before)
    return is_killed


def accept(_offer):
    return Decision.ACCEPT


def test_a_sender_changes_nothing_and_hashes_each_file_once(stage):
    before = stage.reset()
    with Inbox(stage.here, accept) as app:
        recorder = stage.work.InboxRecorder(app)
        work = stage.find_work()
        report = stage.send(recorder, watch='changes')
        recorder.check(work)
    assert (report['status'], report['error'], report['calls']) == (0, None, [])
    assert report['bytes_sent'] == work.size
    assert Counter(map(tuple, report['hashed'])) == stage.files
    stage.check_complete(before)


def test_i1_i2_i3_i6_i10_hold_when_a_sender_is_killed_at_some_messages(stage, work):
    go_on = partial(kill_sender_and_go_on, stage)
    assert work.kill_at_steps(go_on, 2, 5) > 20


@pytest.mark.slow
def test_i1_i2_i3_i6_i10_hold_when_a_sender_is_killed_at_every_message(stage, work):
    go_on = partial(kill_sender_and_go_on, stage)
    assert work.kill_at_steps(go_on, 1, 1) > 20
