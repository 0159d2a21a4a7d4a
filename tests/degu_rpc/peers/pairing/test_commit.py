"""Both sides keep the other or neither does, whatever is lost or full."""

from __future__ import annotations

import resource
from concurrent.futures import wait
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from degu_rpc import Joining, PairingError, PairingWindow, pair
from degu_rpc.errors import PairingFault
from degu_rpc.peers import Identity
from degu_rpc.peers.pairing.messages import Abort, Done, Outcome, Proof, format_message

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime.now(UTC)


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process grow beyond some bytes; a directory can still be read."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill_disk_at(agreement, when: type[Exception] | None = None):
    """Have this agreement find a full disk when it is to store, or another error."""
    store = agreement.store

    def fail() -> None:
        if when is not None:
            raise when
        with full_disk():
            store()

    agreement.store = fail
    return agreement


ERRORS = pytest.mark.parametrize('error', [None, RuntimeError], ids=['a full disk', 'a bug'])


@pytest.fixture(params=['peer', 'join'])
def sides(request, ada, ben, tmp_path):
    """Give the window's agreement, the joiner's, and a check that says who kept the other."""
    phone = tmp_path / 'phone'

    def kept() -> tuple[bool, bool]:
        if request.param == 'peer':
            return bool(ada.friends), bool(ben.friends)
        try:
            return bool(ada.machines), bool(Identity.open(phone))
        except FileNotFoundError:
            return bool(ada.machines), False

    if request.param == 'peer':
        return ada.peering(), ben.peering(), kept
    return ada.admission(), Joining(phone, 'phone', NOW), kept


# --- one side cannot store ----------------------------------------------------------------------


@ERRORS
def test_if_the_window_cannot_store_neither_side_keeps_the_other(
    sides, open_window, error, refused
) -> None:
    ours, theirs, kept = sides
    window = open_window(fill_disk_at(ours, error))
    with refused(PairingFault.NOT_STORED):
        pair(window.address, window.code, theirs)
    with refused(PairingFault.NOT_STORED):
        window.wait()
    assert kept() == (False, False)


def test_if_the_joiner_finds_a_full_disk_neither_side_keeps_the_other(
    sides, open_window, refused
) -> None:
    ours, theirs, kept = sides
    window = open_window(ours)
    with refused(PairingFault.NOT_STORED):
        pair(window.address, window.code, fill_disk_at(theirs))
    with refused(PairingFault.NOT_STORED):
        window.wait()
    assert kept() == (False, False)


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt], ids=['a bug', 'Ctrl-C'])
def test_if_the_joiner_stops_for_another_reason_neither_side_keeps_the_other(
    sides, open_window, error, refused
) -> None:
    ours, theirs, kept = sides
    window = open_window(ours)
    with pytest.raises(error):
        pair(window.address, window.code, fill_disk_at(theirs, error))
    with refused(PairingFault.NOT_STORED):
        window.wait()
    assert kept() == (False, False)


# --- a message is lost --------------------------------------------------------------------------


def test_a_lost_last_answer_is_asked_for_again(sides, open_window, relay, clock) -> None:
    ours, theirs, kept = sides
    window = open_window(ours)
    network = relay(window)
    lost = iter([True, True])
    network.loses_answers = lambda: window._outcome is not None and next(lost, False)
    assert pair(network.address, window.code, theirs, clock=clock, pause=clock.pause)
    assert clock.pauses == 2
    assert next(lost, None) is None
    assert window.wait()
    assert kept() == (True, True)


def test_the_window_goes_on_answering_after_wait_until_the_joiner_knows(
    ada, ben, relay, clock, background
) -> None:
    opened: SimpleQueue[PairingWindow] = SimpleQueue()

    def use_window() -> None:
        with PairingWindow(ada.peering(), clock=clock) as window:
            opened.put(window)
            window.wait()

    ended = background(use_window)
    window = opened.get(timeout=20)
    network = relay(window)
    lost = iter([True])
    network.loses_answers = lambda: window._outcome is not None and next(lost, False)

    def pause(seconds: float) -> None:
        wait([ended], timeout=1)  # it must not end; if it does, the next try finds nobody
        clock.pause(seconds)

    pair(network.address, window.code, ben.peering(), clock=clock, pause=pause)
    ended.result(20)
    assert next(lost, None) is None
    assert (len(ada.friends), len(ben.friends)) == (1, 1)


def test_without_any_answer_the_joiner_takes_its_side_back_and_says_so(
    sides, open_window, relay, clock, refused
) -> None:
    ours, theirs, kept = sides
    window = open_window(ours)
    network = relay(window)
    network.loses_answers = lambda: window._outcome is not None
    with refused(PairingFault.UNCONFIRMED) as caught:
        pair(network.address, window.code, theirs, clock=clock, pause=clock.pause)
    assert 'the other may have, and pairing again mends that' in str(caught.value)
    assert clock.now_s >= window._deadline
    assert kept() == (True, False)


def test_pairing_again_mends_it(ada, ben, open_window, relay, clock, refused) -> None:
    window = open_window(ada.peering())
    network = relay(window)
    network.loses_answers = lambda: window._outcome is not None
    with refused(PairingFault.UNCONFIRMED):
        pair(network.address, window.code, ben.peering(), clock=clock, pause=clock.pause)
    again = open_window(ada.peering())
    pair(again.address, again.code, ben.peering())
    assert (len(ada.friends), len(ben.friends)) == (1, 1)


def test_if_the_window_never_hears_of_the_commit_neither_side_keeps_the_other(
    sides, open_window, relay, clock, refused
) -> None:
    ours, theirs, kept = sides
    window = open_window(ours)
    network = relay(window)
    network.loses_requests = lambda: window._attempt is not None and bool(window._attempt.offers)
    with refused(PairingFault.UNCONFIRMED):
        pair(network.address, window.code, theirs, clock=clock, pause=clock.pause)
    with refused(PairingFault.EXPIRED):
        window.wait()
    assert kept() == (False, False)


def test_ctrl_c_while_asking_again_takes_the_joiners_side_back(
    ada, ben, open_window, relay
) -> None:
    window = open_window(ada.peering())
    network = relay(window)
    network.loses_answers = lambda: window._outcome is not None

    def press_ctrl_c(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pair(network.address, window.code, ben.peering(), pause=press_ctrl_c)
    assert ben.friends == {}


@pytest.mark.parametrize('after', ['start', 'confirm', 'exchange', 'commit'])
def test_a_connection_that_is_cut_after_any_request_leaves_both_or_neither(
    sides, open_window, relay, clock, after: str
) -> None:
    ours, theirs, kept = sides
    window = open_window(ours)
    network = relay(window)
    reached = {
        'start': lambda a: a is not None,
        'confirm': lambda a: a is not None and a.handshake.stage.value == 'confirmed',
        'exchange': lambda a: a is not None and a.offers is not None,
        'commit': lambda a: window._outcome is not None,
    }[after]
    cut = iter([True])
    network.loses_answers = lambda: reached(window._attempt) and next(cut, False)
    with nullcontext() if after == 'commit' else pytest.raises(PairingError):
        pair(network.address, window.code, theirs, clock=clock, pause=clock.pause)
    assert next(cut, None) is None
    assert kept() == ((True, True) if after == 'commit' else (False, False))


# --- the window's side of it --------------------------------------------------------------------


def reach_exchange(speaker, ben):
    session = speaker.shake_hands()
    return session, speaker.exchange(session, ben.peering().offer(session.binding))


def test_a_commit_has_the_same_answer_each_time_and_on_any_connection(
    ada, ben, open_window, speak
) -> None:
    window = open_window(ada.peering())
    session, offers = reach_exchange(speak(window), ben)
    proof = Proof(session.prove('commit', *offers))
    outcomes = [speak(window).ask('commit', proof, Outcome) for _ in range(3)]
    assert outcomes == [outcomes[0]] * 3
    session.check(outcomes[0].proof, 'committed', *offers)
    assert len(ada.friends) == 1


def test_the_answer_to_a_commit_that_failed_is_final_too(ada, ben, open_window, speak) -> None:
    agreement = fill_disk_at(ada.peering())
    window = open_window(agreement)
    speaker = speak(window)
    session, offers = reach_exchange(speaker, ben)
    proof = Proof(session.prove('commit', *offers))
    first = speaker.ask('commit', proof, Outcome)
    del agreement.store  # there is room again
    assert speaker.ask('commit', proof, Outcome) == first
    assert not first.is_stored
    session.check(first.proof, 'not committed', *offers)
    assert ada.friends == {}


def test_only_the_joiner_can_commit_acknowledge_or_abort(
    ada, ben, open_window, speak, refused
) -> None:
    window = open_window(ada.peering())
    speaker = speak(window)
    session, offers = reach_exchange(speaker, ben)
    stranger = speak(window)
    for path in ('commit', 'acknowledge'):
        forged = format_message(Proof(bytes(32)))
        assert stranger.refused(path, forged) == 'message'
    forged = format_message(Abort(PairingFault.NOT_STORED, bytes(32)))
    assert stranger.refused('abort', forged) == 'message'
    assert ada.friends == {}
    assert speaker.ask('commit', Proof(session.prove('commit', *offers)), Outcome).is_stored


def test_a_commit_after_the_time_is_up_stores_nothing(
    ada, ben, open_window, speak, clock, refused
) -> None:
    window = open_window(ada.peering())
    speaker = speak(window)
    session, offers = reach_exchange(speaker, ben)
    clock.now_s += 120
    proof = Proof(session.prove('commit', *offers))
    assert not speaker.ask('commit', proof, Outcome).is_stored
    with refused(PairingFault.EXPIRED):
        window.wait()
    assert ada.friends == {}


def test_a_window_that_stored_closes_without_an_acknowledgement_once_its_time_is_up(
    ada, ben, open_window, speak, clock, caplog
) -> None:
    window = open_window(ada.peering())
    speaker = speak(window)
    session, offers = reach_exchange(speaker, ben)
    speaker.ask('commit', Proof(session.prove('commit', *offers)), Outcome)
    clock.now_s += 120
    window._linger()
    assert 'did not say that it knows it is paired' in caplog.text


def test_an_abort_ends_the_wait_with_its_reason(ada, ben, open_window, speak, refused) -> None:
    window = open_window(ada.peering())
    speaker = speak(window)
    session, offers = reach_exchange(speaker, ben)
    proof = session.prove('abort', *offers, b'not_stored')
    speaker.ask('abort', Abort(PairingFault.NOT_STORED, proof), Done)
    with refused(PairingFault.NOT_STORED):
        window.wait()
    assert not speaker.ask('commit', Proof(session.prove('commit', *offers)), Outcome).is_stored
