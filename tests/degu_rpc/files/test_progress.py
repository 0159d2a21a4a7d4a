"""degu_rpc.files.progress: what is counted, told, ended and slowed down."""

from __future__ import annotations

import threading
from time import monotonic

import pytest

from degu_rpc.errors import TransferCanceledError
from degu_rpc.files import progress
from degu_rpc.files.limits import RATE_WINDOW_S
from degu_rpc.files.progress import Meter, Progress, RateLimit


def test_what_was_done_is_counted_and_told_at_the_end():
    told = []
    meter = Meter(told.append, None)
    meter.expect(files=3, size=100)
    meter.count(files=1, size=40, moved=30)
    meter.count(size=10)
    last = meter.finish()
    assert told[-1] == last
    assert last[:5] == (1, 3, 50, 100, 30)


def test_done_is_never_more_than_the_total():
    meter = Meter(None, None)
    meter.expect(files=2, size=100)
    for _ in range(3):
        meter.count(size=50, moved=50)
    meter.expect(files=-1, size=-10)
    assert meter.finish()[1:5] == (1, 90, 90, 150)


def test_the_caller_is_not_told_all_the_time(monkeypatch):
    monkeypatch.setattr(progress, 'PROGRESS_INTERVAL_S', 3600.0)
    told = []
    meter = Meter(told.append, None)
    for _ in range(100):
        meter.count(size=1)
    assert len(told) == 1
    meter.finish()
    assert len(told) == 2


def test_the_rate_is_that_of_late(monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress, 'monotonic', lambda: now)
    meter = Meter(None, None)
    meter.expect(files=1, size=10_000)
    for second, moved in enumerate([100] * 20 + [10] * 20):
        now = float(second + 1)
        meter.count(size=moved, moved=moved)
    last = meter.finish()
    assert last.rate == pytest.approx(10.0)
    assert last.left_s == pytest.approx((10_000 - 2200) / 10.0)


def test_a_transfer_of_which_nothing_moved_for_a_while_has_no_rate(monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress, 'monotonic', lambda: now)
    meter = Meter(None, None)
    meter.count(moved=100)
    rates = []
    for later in (RATE_WINDOW_S - 1, 1.5, RATE_WINDOW_S + 1):
        now += later
        rates.append(meter.finish().rate)
    assert rates[0] > 0.0
    assert rates[-1] == 0.0


@pytest.mark.parametrize('what', ['reading', 'waiting'])
def test_what_came_before_anything_could_move_does_not_make_the_rate_less(monkeypatch, what):
    now = 0.0
    monkeypatch.setattr(progress, 'monotonic', lambda: now)
    told = []
    meter = Meter(told.append, None)
    now = 60.0
    if what == 'reading':
        meter.count(read=7)
        assert (told[-1].bytes_read, told[-1].files_total) == (7, 0)
        meter.expect(files=1, size=10_000)
    else:
        meter.expect(files=1, size=10_000)
        now = 120.0
        meter.begin_rate()
    now += 1
    meter.count(size=100, moved=100)
    assert told[-1].rate == pytest.approx(100.0)


def test_while_nothing_moves_nobody_knows_how_long_it_takes():
    assert Progress(0, 1, 0, 5, 0, 1.0, 0.0).left_s is None


@pytest.mark.parametrize('who', ['the caller', 'another thread of it'])
def test_a_transfer_that_is_to_end_ends_at_the_next_count(who):
    cancel = threading.Event()
    meter = Meter(None, cancel)
    meter.check()
    if who == 'the caller':
        cancel.set()
    else:
        meter.fail()
    with pytest.raises(TransferCanceledError):
        meter.check()
    with pytest.raises(TransferCanceledError):
        meter.sleep(3600.0)


def test_a_rate_limit_counts_for_all_threads_together():
    limit, meter = RateLimit(1_000_000), Meter(None, None)
    started = monotonic()

    def move():
        for _ in range(5):
            limit.wait(25_000, meter)

    threads = [threading.Thread(target=move) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert monotonic() - started >= (4 * 5 - 1) * 0.025


def test_a_low_rate_moves_small_pieces():
    assert RateLimit(None).piece_size == RateLimit(10**9).piece_size == progress.MAX_PIECE
    assert RateLimit(1000).piece_size == progress.MIN_PIECE
    assert RateLimit(1_000_000).piece_size == 125_000


@pytest.mark.parametrize('rate', [0, -1, float('nan')])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match='rate'):
        RateLimit(rate)
