"""degu_rpc.files.board: whatever workers say, every file ends once and nobody waits for ever."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from degu_rpc.files import board as board_module
from degu_rpc.files.board import Asking, Board, Opening, Pack, Run
from degu_rpc.files.limits import END_GAME_S, FETCH_ATTEMPTS
from degu_rpc.files.listing import Entry, Kind, Problem
from degu_rpc.files.plan import File


class WouldWaitError(Exception):
    """A worker would wait for others now."""


class Condition:
    """A condition for one thread: to wait is an error, and wakings are counted."""

    def __init__(self):
        self.wakings = 0

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass

    def wait(self, timeout_s=None):
        raise WouldWaitError

    def notify_all(self):
        self.wakings += 1


class Content:
    """Stands for a Partial; the board only hands it around."""

    written = 0


def file(name):
    return File((name,), (name,), Entry('f', Kind.FILE), None)


@pytest.fixture
def build(monkeypatch):
    """Build a board that never waits."""
    monkeypatch.setattr(board_module.threading, 'Condition', Condition)
    return Board


def take_opened(board, source, *runs):
    """Take an opening and open it with these runs."""
    job = board.take(source)
    assert isinstance(job, Opening)
    job.download.content = Content()
    job.download.runs.extend(runs)
    assert board.finish(job) == [] or not runs
    return job.download


# --- the rules ----------------------------------------------------------------------------------


def test_with_nothing_to_do_nobody_waits(build):
    board = build([], [], 2)
    assert (board.take(0), board.take(1), board.error) == (None, None, None)


def test_who_does_not_wait_is_told_that_there_is_nothing_now(build):
    board = build([Pack([file(b'a')]), Pack([file(b'b')])], [], 1)
    job = board.take(0, wait=False)
    assert board.take(0, wait=False) is None
    assert board.finish_pack([], []) == []
    assert isinstance(job, Pack)
    assert isinstance(board.take(0, wait=False), Pack)


def test_so_many_packs_are_given_out_at_once(build):
    board = build([Pack([file(name)]) for name in (b'a', b'b', b'c')], [], 1, packs_at_once=2)
    assert [len(board.take(0).files) for _ in range(2)] == [1, 1]
    with pytest.raises(WouldWaitError):
        board.take(0)


def test_packs_and_new_files_are_for_the_source_that_leads(build):
    board = build([Pack([file(b's')])], [file(b'l')], 2)
    with pytest.raises(WouldWaitError):
        board.take(1)
    assert isinstance(board.take(0), Opening)
    assert isinstance(board.take(0), Pack)


def test_a_file_that_needs_no_blocks_is_complete_at_once(build):
    board = build([], [file(b'l')], 1)
    job = board.take(0)
    job.download.content = content = Content()
    (settled,) = board.finish(job)
    assert (settled.content, settled.is_complete, settled.problem) == (content, True, None)
    assert board.take(0) is None


def test_a_source_brings_blocks_once_it_said_that_it_has_them(build):
    board = build([], [file(b'l')], 3)
    download = take_opened(board, 0, (0, 1), (2, 3), (4, 5))
    yes, no = board.take(1), board.take(2)
    assert isinstance(yes, Asking)
    assert isinstance(no, Asking)
    with pytest.raises(WouldWaitError):
        board.take(1)  # its other worker: one is asking
    board.finish_asking(yes, 1, has_it=True)
    board.finish_asking(no, 2, has_it=False)
    assert board.take(1) == Run(download, 0, 1)
    assert board.take(0) == Run(download, 2, 3)
    with pytest.raises(WouldWaitError):
        board.take(2)
    assert board.take(0) == Run(download, 4, 5)


def test_a_file_is_complete_once_the_last_worker_is_done_with_it(build):
    board = build([], [file(b'l')], 2)
    download = take_opened(board, 0, (0, 1), (2, 3))
    first, second = board.take(0), board.take(0)
    assert board.finish(second) == []
    (settled,) = board.finish(first)
    assert (settled.download, settled.is_complete) == (download, True)


def test_what_a_lost_source_was_at_is_for_others(build):
    board = build([], [file(b'l')], 2)
    download = take_opened(board, 0, (0, 1), (2, 3))
    board.finish_asking(board.take(1), 1, has_it=True)
    lost = board.take(0)
    assert board.lose(0, OSError('gone'), lost) == []
    assert board.take(0) is None
    assert board.take(1) == lost
    board.finish(lost)
    (settled,) = board.finish(board.take(1))
    assert (settled.download, settled.is_complete) == (download, True)
    assert board.error is None


def test_the_next_source_leads_where_the_first_one_is_lost(build):
    board = build([Pack([file(b's')])], [], 3)
    pack = board.take(0)
    board.lose(0, OSError('gone'), None)
    board.finish_pack(pack.files, [])
    with pytest.raises(WouldWaitError):
        board.take(2)
    assert board.take(1) == pack


def test_what_nobody_can_bring_is_the_error_of_the_first_source(build):
    board = build([], [file(b'l')], 2)
    take_opened(board, 0, (0, 1))
    asking = board.take(1)
    board.lose(1, OSError('the second'), asking)
    (settled,) = board.lose(0, ValueError('the first'), board.take(0))
    assert (settled.is_complete, settled.problem) == (False, None)
    assert board.take(0) is None
    assert board.take(1) is None
    assert str(board.error) == 'the first'


def test_a_mirror_that_is_lost_is_no_error_where_all_was_brought(build):
    board = build([], [file(b'l')], 2)
    take_opened(board, 0, (0, 1))
    board.lose(1, OSError('gone'), board.take(1))
    board.finish(board.take(0))
    assert board.take(0) is None
    assert board.error is None


def test_a_file_that_changed_is_opened_again_up_to_its_limit(build):
    board = build([], [file(b'l')], 1)
    for attempt in range(FETCH_ATTEMPTS):
        download = take_opened(board, 0, (0, 1))
        content = download.content
        (settled,) = board.refuse(board.take(0), 0)
        assert (settled.content, settled.is_complete) == (content, False)
        assert (settled.problem is Problem.CHANGING) is (attempt == FETCH_ATTEMPTS - 1)
    assert board.take(0) is None


def test_losing_sources_does_not_count_as_a_change(build):
    """However many are lost, the next one may bring it."""
    sources = FETCH_ATTEMPTS + 2
    board = build([], [file(b'l')], sources)
    for source in range(sources - 1):
        (settled,) = board.lose(source, OSError('gone'), board.take(source))
        assert settled.problem is None
    take_opened(board, sources - 1, (0, 1))
    (settled,) = board.finish(board.take(sources - 1))
    assert settled.is_complete


def test_a_board_that_is_stopped_gives_out_nothing_and_what_is_open(build):
    board = build([Pack([file(b's')])], [file(b'l')], 1)
    download = take_opened(board, 0, (0, 1))
    board.stop()
    assert board.take(0) is None
    assert board.close() == [download.content]


@pytest.mark.parametrize('end', ['stop', 'finish', 'lose'])
def test_a_worker_that_waits_is_woken(end):
    board = Board([], [file(b'l')], 2)
    download = take_opened(board, 0, (0, 1))
    asking = board.take(1)
    taken = []
    worker = threading.Thread(target=lambda: taken.append(board.take(1)))
    worker.start()
    if end == 'stop':
        board.stop()
    elif end == 'finish':
        board.finish_asking(asking, 1, has_it=True)
    else:
        board.lose(0, OSError('gone'), board.take(0))
        board.finish_asking(asking, 1, has_it=True)
    worker.join(20)
    assert not worker.is_alive()
    assert taken == [None if end == 'stop' else Run(download, 0, 1)]


# --- whatever the workers say -------------------------------------------------------------------


class Play:
    """Workers that say anything that they could, one step at a time; and what must hold."""

    def __init__(self, board, chance, sources, connections):
        self.board = board
        self.chance = chance
        self.jobs = dict.fromkeys(
            [(source, number) for source in range(sources) for number in range(connections)]
        )
        self.good = list(range(sources))
        self.waiting = {}  # worker -> how many wakings there were
        self.gone = set()
        self.ended = Counter()
        self.opened = {}  # id of a content -> it, its blocks that were brought
        self.closed = Counter()

    def step(self):
        """Let one worker do something. Return whether any could."""
        able = [
            worker
            for worker in self.jobs
            if worker not in self.gone and self.waiting.get(worker) != self.board._condition.wakings
        ]
        if not able:
            return False
        worker = self.chance.choice(able)
        if self.jobs[worker] is None:
            self.take(worker)
        else:
            self.report(worker, self.jobs[worker])
        return True

    def take(self, worker):
        try:
            job = self.board.take(worker[0])
        except WouldWaitError:
            self.waiting[worker] = self.board._condition.wakings
            return
        self.waiting.pop(worker, None)
        if job is None:
            self.gone.add(worker)
            return
        assert worker[0] in self.good
        if isinstance(job, Opening | Pack):
            assert worker[0] == self.good[0]
        if isinstance(job, Run):
            assert job.download.has[worker[0]]
        others = [job for other, job in self.jobs.items() if other[0] == worker[0]]
        if not isinstance(job, Asking):
            others = [*self.jobs.values()]
        assert job not in others, 'it was given out twice'
        self.jobs[worker] = job

    def report(self, worker, job):
        self.jobs[worker] = None
        source = worker[0]
        kind = self.chance.choice(['done', 'done', 'done', 'refused', 'lost'])
        if isinstance(job, Pack):
            self.report_pack(source, job, is_lost=kind == 'lost')
        elif kind == 'lost':
            self.lose(source, job)
        elif isinstance(job, Asking):
            has_it = kind == 'done'
            self.settle(self.board.finish_asking(job, source, has_it=has_it))
        elif kind == 'refused':
            self.settle(self.board.refuse(job, source))
        elif isinstance(job, Run):
            blocks = self.opened[id(job.download.content)][1]
            brought = set(range(job.first, job.last + 1))
            assert not brought & blocks, 'it was brought before'
            blocks |= brought
            self.settle(self.board.finish(job))
        else:
            self.open(job)

    def open(self, job):
        problem = self.chance.choice([None, None, None, Problem.VANISHED, 'here'])
        if problem is not None:
            self.end(job.download)
            reason = None if problem == 'here' else problem
            for settled in self.board.give_up(job, reason):
                assert (settled.content, settled.problem) == (None, reason)
            return
        job.download.content = content = Content()
        self.opened[id(content)] = (content, set())
        count = self.chance.randrange(5)
        job.download.runs.extend((2 * index, 2 * index + 1) for index in range(count))
        self.settle(self.board.finish(job))

    def report_pack(self, source, job, *, is_lost):
        done = self.chance.randint(0, len(job.files)) if is_lost else len(job.files)
        again, large = job.files[done:], []
        for each in job.files[:done]:
            fate = self.chance.choice(['ended', 'ended', 'again', 'large'])
            if fate == 'ended':
                self.ended[each.source] += 1
            else:
                (again if fate == 'again' else large).append(each)
        if is_lost:
            self.lose(source, None)
        self.settle(self.board.finish_pack(again, large))

    def lose(self, source, job):
        if source in self.good:
            self.good.remove(source)
        self.settle(self.board.lose(source, OSError(f'source {source}'), job))

    def settle(self, found):
        for settled in found:
            download = settled.download
            workers = [job for job in self.jobs.values() if getattr(job, 'download', 0) is download]
            assert workers == [], 'somebody works on it'
            if settled.content is not None:
                self.closed[id(settled.content)] += 1
            if settled.is_complete:
                assert settled.problem is None
            if settled.is_complete or settled.problem is not None:
                self.end(download)

    def end(self, download):
        self.ended[download.file.source] += 1


@settings(max_examples=400)
@given(
    chance=st.randoms(use_true_random=False),
    sources=st.integers(1, 4),
    connections=st.integers(1, 3),
    packs=st.lists(st.integers(1, 4), max_size=4),
    large=st.integers(0, 5),
)
def test_every_file_ends_once_and_nobody_waits_for_ever(chance, sources, connections, packs, large):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(board_module.threading, 'Condition', Condition)
        names = [
            [f'{pack}-{number}'.encode() for number in range(size)]
            for pack, size in enumerate(packs)
        ]
        small = [[file(name) for name in group] for group in names]
        files = [file(b'large-%d' % number) for number in range(large)]
        board = Board(map(Pack, small), files, sources)
    play = Play(board, chance, sources, connections)
    steps = 0
    while play.step():
        steps += 1
        assert steps < 20_000
    assert set(play.jobs) == play.gone, 'somebody waits for ever'
    everything = {each.source for each in [*files, *(one for group in small for one in group)]}
    assert set(play.ended.values()) <= {1}
    assert (board.error is None) is (set(play.ended) == everything)
    if board.error is not None:
        assert play.good == []
        assert str(board.error) == 'source 0'
    for content in board.close():
        play.closed[id(content)] += 1
    assert play.closed == dict.fromkeys(play.opened, 1), 'each content is handed out once'


# --- the end game -------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Give a list whose last item is the time for the board."""
    times = [1000.0]
    monkeypatch.setattr(board_module, 'monotonic', lambda: times[-1])
    return times


def is_idle(board, source):
    try:
        return board.take(source) is None
    except WouldWaitError:
        return True


def test_a_run_that_takes_long_is_brought_by_one_that_is_idle_too(build, clock):
    board = build([], [file(b'f')], 3)
    download = take_opened(board, 0, (0, 3))
    slow = board.take(0)
    assert slow == Run(download, 0, 3)
    assert is_idle(board, 1)
    clock.append(clock[-1] + END_GAME_S)
    assert is_idle(board, 0)  # it is at it itself
    asking = board.take(1)
    assert isinstance(asking, Asking)
    board.finish_asking(asking, 1, has_it=True)
    fast = board.take(1)
    assert (fast, fast is slow) == (slow, False)
    assert is_idle(board, 2)  # two are enough
    assert board.finish(fast) == []
    assert [one.is_complete for one in board.finish(slow)] == [True]


@pytest.mark.parametrize('fails', ['slow', 'fast', 'both'])
def test_a_run_that_two_are_at_is_given_out_again_once_both_have_failed(build, clock, fails):
    board = build([], [file(b'f')], 3)
    download = take_opened(board, 0, (0, 3))
    slow = board.take(0)
    clock.append(clock[-1] + END_GAME_S)
    board.finish_asking(board.take(1), 1, has_it=True)
    fast = board.take(1)
    if fails in {'slow', 'both'}:
        board.lose(0, OSError(), slow)
        assert not download.runs
    if fails in {'fast', 'both'}:
        board.lose(1, OSError(), fast)
    if fails == 'both':
        assert list(download.runs) == [(0, 3)]
        return
    (settled,) = board.finish(fast if fails == 'slow' else slow)
    assert settled.is_complete


def test_a_source_that_is_no_faster_takes_nothing_over(build, clock):
    board = build([], [file(b'f')], 2)
    take_opened(board, 0, (0, 3), (4, 7))
    first = board.take(0)
    board.finish_asking(board.take(1), 1, has_it=True)
    second = board.take(1)
    clock.append(clock[-1] + 10 * END_GAME_S)
    board.finish(second)
    assert is_idle(board, 1)  # it took as long for its own
    clock.append(clock[-1] + 10 * END_GAME_S)
    assert board.take(1) == first
