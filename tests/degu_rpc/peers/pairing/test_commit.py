"""Both sides keep the other or neither does, whatever is lost or full."""

from __future__ import annotations

import errno
import os
import resource
import stat
from concurrent.futures import wait
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from degu import pki
from degu.client import Connection
from degu_rpc import Intent, PairingError, PairingWindow
from degu_rpc.errors import PairingFault
from degu_rpc.peers import Identity, TrustStore
from degu_rpc.peers.pairing.joiner import pair_as
from degu_rpc.peers.pairing.messages import Abort, Done, Outcome, Proof, format_message
from degu_rpc.peers.pairing.sides import Joining
from degu_rpc.peers.pairing.window import COUNT_FILE

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


def fill_disk_at(side, when: type[Exception] | None = None):
    """Have this side find a full disk when it is to store, or another error."""
    store = side.store

    def fail() -> None:
        if when is not None:
            raise when
        with full_disk():
            store()

    side.store = fail
    return side


def fail_sync_at(side, number: int = 1):
    """Have this side find that a directory cannot be synced, after it has changed."""
    store, fsync, synced = side.store, os.fsync, []

    def fail_once(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            synced.append(fd)
            if len(synced) == number:
                raise OSError(errno.EIO, 'Input/output error')
        fsync(fd)

    def fail() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, 'fsync', fail_once)
            store()

    side.store = fail
    return side


ERRORS = pytest.mark.parametrize('error', [None, RuntimeError], ids=['a full disk', 'a bug'])


@pytest.fixture(params=['pair', 'join', 'join again'])
def sides(request, ada, ben, open_window, tmp_path):
    """Give what opens a window, what makes the joiner's side, and a check who kept the other."""
    phone = tmp_path / 'phone'
    if request.param == 'pair':
        return (
            partial(open_window, ada),
            ben.peering,
            lambda: (bool(ada.friends), bool(ben.friends)),
        )
    old = None
    if request.param == 'join again':
        key = pki.build_key()
        old = ada.identity.certify(key.public_key(), NOW - timedelta(days=400))
        Identity.join(phone, key, old, ada.identity.user_cert)

    def kept() -> tuple[bool, bool]:
        if old is None:
            return bool(ada.machines), any(path.is_file() for path in phone.rglob('*'))
        identity = Identity.open(phone)
        machines = TrustStore(identity).users()[identity.user_id].machines
        return bool(ada.machines), identity.machine_cert != old or bool(machines)

    return partial(open_window, ada, intent=Intent.JOIN), lambda: Joining(phone, 'phone'), kept


# --- one side cannot store ----------------------------------------------------------------------


@ERRORS
def test_if_the_window_cannot_store_neither_side_keeps_the_other(sides, error, refused) -> None:
    ours, theirs, kept = sides
    window = ours()
    fill_disk_at(window._side, error)
    with refused(PairingFault.NOT_STORED):
        pair_as(theirs(), window.address, window.code)
    with refused(PairingFault.NOT_STORED):
        window.wait()
    assert kept() == (False, False)


def test_if_the_joiner_finds_a_full_disk_neither_side_keeps_the_other(sides, refused) -> None:
    ours, theirs, kept = sides
    window = ours()
    with refused(PairingFault.NOT_STORED):
        pair_as(fill_disk_at(theirs()), window.address, window.code)
    with refused(PairingFault.NOT_STORED):
        window.wait()
    assert kept() == (False, False)


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt], ids=['a bug', 'Ctrl-C'])
def test_if_the_joiner_stops_for_another_reason_neither_side_keeps_the_other(
    sides, error, refused
) -> None:
    ours, theirs, kept = sides
    window = ours()
    with pytest.raises(error):
        pair_as(fill_disk_at(theirs(), error), window.address, window.code)
    with refused(PairingFault.NOT_STORED):
        window.wait()
    assert kept() == (False, False)


def test_if_only_the_last_sync_fails_on_the_windows_side_neither_side_keeps_the_other(
    sides, refused
) -> None:
    ours, theirs, kept = sides
    window = ours()
    fail_sync_at(window._side)
    with refused(PairingFault.NOT_STORED):
        pair_as(theirs(), window.address, window.code)
    with refused(PairingFault.NOT_STORED):
        window.wait()
    assert kept() == (False, False)


def test_whichever_sync_fails_on_the_joiners_side_neither_side_keeps_the_other(ada, sides) -> None:
    ours, theirs, kept = sides
    for number in count(1):
        window = ours()
        (ada.identity.directory / COUNT_FILE).unlink()  # it may be one more than three
        side = fail_sync_at(theirs(), number)
        with suppress(PairingError):
            pair_as(side, window.address, window.code)
        if kept() == (True, True):
            break
        assert kept() == (False, False)
    assert number > 1


@pytest.mark.parametrize('fail', [fill_disk_at, fail_sync_at])
def test_what_was_known_of_the_other_is_known_again(ada, ben, open_window, refused, fail) -> None:
    ada.trust.add(ben.identity.user_cert, 'as before', {'as before'})
    before = ada.trust.users()
    window = open_window(ada)
    fail(window._side)
    with refused(PairingFault.NOT_STORED):
        ben.pair(window.address, window.code)
    assert TrustStore(ada.identity).users() == before


def test_a_window_that_cannot_take_it_back_either_says_so(
    ada, ben, open_window, clock, refused
) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, 'Input/output error')

    window = open_window(ada)
    fill_disk_at(window._side).take_back = fail
    with refused(PairingFault.NOT_STORED):
        ben.pair(window.address, window.code, clock=clock, pause=clock.pause)
    with refused(PairingFault.NOT_STORED):
        window.wait()


# --- a message is lost --------------------------------------------------------------------------


def test_a_lost_last_answer_is_asked_for_again(sides, relay, clock) -> None:
    ours, theirs, kept = sides
    window = ours()
    network = relay(window)
    lost = iter([True, True])
    network.loses_answers = lambda: window._outcome is not None and next(lost, False)
    assert pair_as(theirs(), network.address, window.code, clock=clock, pause=clock.pause)
    assert next(lost, None) is None
    # One more where the window still counts a connection that has ended, and refuses the next.
    assert clock.pauses >= 2
    assert next(lost, None) is None
    assert window.wait()
    assert kept() == (True, True)


def test_the_window_goes_on_answering_after_wait_until_the_joiner_knows(
    ada, ben, relay, clock, background
) -> None:
    opened: SimpleQueue[PairingWindow] = SimpleQueue()

    def use_window() -> None:
        with PairingWindow(ada.trust, 'Ada', clock=clock) as window:
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

    ben.pair(network.address, window.code, clock=clock, pause=pause)
    ended.result(20)
    assert next(lost, None) is None
    assert (len(ada.friends), len(ben.friends)) == (1, 1)


def test_without_any_answer_the_joiner_takes_its_side_back_and_says_so(
    sides, relay, clock, refused
) -> None:
    ours, theirs, kept = sides
    window = ours()
    network = relay(window)
    network.loses_answers = lambda: window._outcome is not None
    with refused(PairingFault.UNCONFIRMED) as caught:
        pair_as(theirs(), network.address, window.code, clock=clock, pause=clock.pause)
    assert 'the other may have, and pairing again mends that' in str(caught.value)
    assert clock.now_s >= window._deadline
    assert kept() == (True, False)


def test_pairing_again_mends_it(ada, ben, open_window, relay, clock, refused) -> None:
    window = open_window(ada)
    network = relay(window)
    network.loses_answers = lambda: window._outcome is not None
    with refused(PairingFault.UNCONFIRMED):
        ben.pair(network.address, window.code, clock=clock, pause=clock.pause)
    again = open_window(ada)
    ben.pair(again.address, again.code)
    assert (len(ada.friends), len(ben.friends)) == (1, 1)


def test_if_the_window_never_hears_of_the_commit_neither_side_keeps_the_other(
    sides, relay, clock, refused
) -> None:
    ours, theirs, kept = sides
    window = ours()
    network = relay(window)
    network.loses_requests = lambda: window._attempt is not None and bool(window._attempt.offers)
    with refused(PairingFault.UNCONFIRMED):
        pair_as(theirs(), network.address, window.code, clock=clock, pause=clock.pause)
    with refused(PairingFault.EXPIRED):
        window.wait()
    assert kept() == (False, False)


def test_ctrl_c_while_asking_again_takes_the_joiners_side_back(
    ada, ben, open_window, relay
) -> None:
    window = open_window(ada)
    network = relay(window)
    network.loses_answers = lambda: window._outcome is not None

    def press_ctrl_c(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ben.pair(network.address, window.code, pause=press_ctrl_c)
    assert ben.friends == {}


def test_ctrl_c_once_the_outcome_is_proven_takes_nothing_back(
    ada, ben, open_window, monkeypatch
) -> None:
    post = Connection.post

    def press_ctrl_c(self, uri, *more):
        if uri == '/acknowledge':
            raise KeyboardInterrupt
        return post(self, uri, *more)

    window = open_window(ada)
    monkeypatch.setattr(Connection, 'post', press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        ben.pair(window.address, window.code)
    assert window.wait().name == 'Ben'
    assert (len(ada.friends), len(ben.friends)) == (1, 1)


@pytest.mark.parametrize('after', ['start', 'confirm', 'exchange', 'commit'])
def test_a_connection_that_is_cut_after_any_request_leaves_both_or_neither(
    sides, relay, clock, after: str
) -> None:
    ours, theirs, kept = sides
    window = ours()
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
        pair_as(theirs(), network.address, window.code, clock=clock, pause=clock.pause)
    assert next(cut, None) is None
    assert kept() == ((True, True) if after == 'commit' else (False, False))


# --- the window's side of it --------------------------------------------------------------------


def reach_exchange(speaker, ben):
    session = speaker.shake_hands()
    return session, speaker.exchange(session, ben.peering().offer(session.binding))


def test_a_commit_has_the_same_answer_each_time_and_on_any_connection(
    ada, ben, open_window, speak
) -> None:
    window = open_window(ada)
    first = speak(window)
    session, offers = reach_exchange(first, ben)
    proof = Proof(session.prove('commit', *offers))
    outcomes = [each.ask('commit', proof, Outcome) for each in (first, speak(window), first)]
    assert outcomes == [outcomes[0]] * 3
    session.check(outcomes[0].proof, 'commit: stored', *offers, b'')
    assert len(ada.friends) == 1


def test_the_answer_to_a_commit_that_failed_is_final_too(ada, ben, open_window, speak) -> None:
    window = open_window(ada)
    side = fill_disk_at(window._side)
    speaker = speak(window)
    session, offers = reach_exchange(speaker, ben)
    proof = Proof(session.prove('commit', *offers))
    first = speaker.ask('commit', proof, Outcome)
    del side.store  # there is room again
    assert speaker.ask('commit', proof, Outcome) == first
    assert not first.is_stored
    session.check(first.proof, 'commit: not stored', *offers, b'')
    assert ada.friends == {}


def test_only_the_joiner_can_commit_acknowledge_or_abort(
    ada, ben, open_window, speak, refused
) -> None:
    window = open_window(ada)
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
    window = open_window(ada)
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
    window = open_window(ada)
    speaker = speak(window)
    session, offers = reach_exchange(speaker, ben)
    speaker.ask('commit', Proof(session.prove('commit', *offers)), Outcome)
    clock.now_s += 120
    window._linger()
    assert 'did not say that it knows it is paired' in caplog.text


def test_an_abort_ends_the_wait_with_its_reason(ada, ben, open_window, speak, refused) -> None:
    window = open_window(ada)
    speaker = speak(window)
    session, offers = reach_exchange(speaker, ben)
    proof = session.prove('abort', *offers, b'not_stored')
    speaker.ask('abort', Abort(PairingFault.NOT_STORED, proof), Done)
    with refused(PairingFault.NOT_STORED):
        window.wait()
    assert not speaker.ask('commit', Proof(session.prove('commit', *offers)), Outcome).is_stored
