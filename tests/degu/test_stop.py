"""A request to stop ends a poll, whoever makes it."""

from __future__ import annotations

import os
import select
import signal
import threading

import pytest

from degu.stop import DEFAULT_TIMEOUT_S, Stop

FAR_MS = 10_000


@pytest.fixture
def stop():
    stop = Stop()
    yield stop
    stop.close()


@pytest.fixture
def lifeline():
    """Give the two ends of a pipe; a test may close the second."""
    reader, writer = os.pipe()
    with os.fdopen(reader, 'rb', 0) as ours, os.fdopen(writer, 'wb', 0) as theirs:
        yield ours, theirs


def wait(stop, timeout_ms=FAR_MS):
    poller = select.poll()
    stop.register(poller)
    events = poller.poll(timeout_ms)
    stop.note(events)
    return bool(events)


def test_nothing_is_asked_for_at_first(stop):
    assert not wait(stop, 0)
    assert not stop.requested
    assert stop.timeout_s == DEFAULT_TIMEOUT_S


def test_a_request_of_another_thread_ends_a_poll(stop):
    thread = threading.Thread(target=stop.request, args=(3,))
    thread.start()
    assert wait(stop)
    thread.join()
    assert stop.requested
    assert stop.timeout_s == 3


def test_what_was_noted_does_not_end_the_next_poll(stop):
    stop.request(1)
    stop.request(1)
    assert wait(stop)
    assert not wait(stop, 0)
    assert stop.requested


def test_a_request_after_the_end_does_nothing(stop):
    stop.close()
    stop.request(1)
    assert stop.requested


@pytest.mark.parametrize(('timeout_s', 'error'), [(0, ValueError), ('1', TypeError)])
def test_a_time_that_cannot_be_waited_is_no_request(stop, timeout_s, error):
    with pytest.raises(error, match='timeout_s must be'):
        stop.request(timeout_s)
    assert not stop.requested


def test_a_signal_ends_a_poll_and_asks_for_nothing(stop):
    handled = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: handled.append(number))
    try:
        with stop.on_signals():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert wait(stop)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled == [signal.SIGUSR1]
    assert not stop.requested


def test_signals_are_left_to_who_had_them_before(stop):
    with stop.on_signals(), Stop.on_signals(other := Stop()):
        pass
    other.close()
    assert signal.set_wakeup_fd(-1) == -1


def test_the_end_of_a_lifeline_is_a_request(stop, lifeline):
    ours, theirs = lifeline
    stop.follow(ours.fileno())
    assert not wait(stop, 0)
    theirs.close()
    assert wait(stop)
    assert stop.requested
    assert stop.timeout_s == DEFAULT_TIMEOUT_S


def test_a_lifeline_may_say_how_long_there_is(stop, lifeline):
    ours, theirs = lifeline
    stop.follow(ours.fileno())
    theirs.write(b'2.5')
    assert wait(stop)
    assert stop.requested
    assert stop.timeout_s == 2.5
