"""A machine that joins has its certificate only if the window knows who it is."""

from __future__ import annotations

import contextlib

import msgspec
import pytest

from degu import pki
from degu_rpc import Intent, PairingWindow, join
from degu_rpc.errors import PairingFault
from degu_rpc.peers import Identity, TrustStore
from degu_rpc.peers.pairing.messages import (
    Abort,
    Done,
    Outcome,
    Proof,
    format_message,
    parse_message,
)
from degu_rpc.peers.pairing.sides import Joining


@pytest.fixture
def phone(tmp_path) -> Joining:
    return Joining(tmp_path / 'phone', 'phone')


@pytest.fixture
def reach_exchange(ada, phone, open_window, speak):
    """Give a window to join, who speaks to it, the session and what both offered."""
    window = open_window(ada, intent=Intent.JOIN)
    speaker = speak(window, Intent.JOIN)
    speaker.joiner_id = phone.own_id
    session = speaker.shake_hands()
    return window, speaker, session, speaker.exchange(session, phone.offer(session.binding))


def commit(speaker, session, offers) -> Outcome:
    return speaker.ask('commit', Proof(session.prove('commit', *offers)), Outcome)


def denied_by(home) -> frozenset[str]:
    return TrustStore(home.identity).users()[home.identity.user_id].denied


def test_the_certificate_comes_after_the_window_stored_who_gets_it(
    ada, phone, reach_exchange
) -> None:
    _, speaker, session, offers = reach_exchange
    assert set(msgspec.json.decode(offers[1])) == {'user_cert', 'name'}
    outcome = commit(speaker, session, offers)
    session.check(outcome.proof, 'commit: stored', *offers, outcome.machine_cert)
    assert pki.parse_machine_cert(outcome.machine_cert).machine_id == phone.own_id
    assert ada.machines == {phone.own_id: 'phone'}
    assert commit(speaker, session, offers) == outcome


def test_a_machine_that_takes_its_certificate_and_aborts_is_denied(
    ada, phone, reach_exchange, refused
) -> None:
    window, speaker, session, offers = reach_exchange
    commit(speaker, session, offers)
    proof = session.prove('abort', *offers, b'already_paired')
    speaker.ask('abort', Abort(PairingFault.ALREADY_PAIRED, proof), Done)
    with refused(PairingFault.ALREADY_PAIRED) as caught:
        window.wait()
    assert str(caught.value).startswith('the other machine said: ')
    assert (ada.machines, denied_by(ada)) == ({}, {phone.own_id})
    assert commit(speaker, session, offers).machine_cert == b''


def test_a_machine_that_takes_its_certificate_and_is_silent_is_denied(
    ada, phone, reach_exchange, refused, clock
) -> None:
    window, speaker, session, offers = reach_exchange
    commit(speaker, session, offers)
    clock.now_s += 120
    with refused(PairingFault.EXPIRED):
        window.wait()
    assert (ada.machines, denied_by(ada)) == ({}, {phone.own_id})
    proof = Proof(session.prove('acknowledge', *offers))
    assert not speaker.ask('acknowledge', proof, Outcome).is_stored


def test_a_window_that_is_closed_too_soon_denies_the_machine(ada, phone, clock, speak) -> None:
    with (
        contextlib.suppress(KeyboardInterrupt),
        PairingWindow(ada.trust, 'Ada', intent=Intent.JOIN, clock=clock) as window,
    ):
        speaker = speak(window, Intent.JOIN)
        speaker.joiner_id = phone.own_id
        session = speaker.shake_hands(window.code)
        offers = speaker.exchange(session, phone.offer(session.binding))
        commit(speaker, session, offers)
        raise KeyboardInterrupt
    assert (ada.machines, denied_by(ada)) == ({}, {phone.own_id})


def test_a_machine_that_aborts_before_it_got_a_certificate_is_not_denied(
    ada, reach_exchange, refused
) -> None:
    window, speaker, session, offers = reach_exchange
    proof = session.prove('abort', *offers, b'certificate')
    speaker.ask('abort', Abort(PairingFault.CERTIFICATE, proof), Done)
    with refused(PairingFault.CERTIFICATE):
        window.wait()
    assert (ada.machines, denied_by(ada)) == ({}, frozenset())


def test_a_lost_answer_to_the_acknowledgement_is_asked_for_again(
    ada, open_window, relay, clock, tmp_path
) -> None:
    window = open_window(ada, intent=Intent.JOIN)
    network = relay(window)
    lost = iter([True])
    network.loses_answers = lambda: window._is_acknowledged and next(lost, False)
    join(network.address, window.code, tmp_path / 'phone', 'x', clock=clock, pause=clock.pause)
    assert clock.pauses == 1
    assert next(lost, None) is None
    assert window.wait().name == 'x'


def test_a_machine_whose_acknowledgement_never_arrives_has_not_joined(
    ada, phone, open_window, relay, clock, refused, tmp_path
) -> None:
    window = open_window(ada, intent=Intent.JOIN)
    network = relay(window)
    network.loses_requests = lambda: (tmp_path / 'phone' / 'machine.pem').exists()
    with refused(PairingFault.UNCONFIRMED):
        join(network.address, window.code, tmp_path / 'phone', 'x', clock=clock, pause=clock.pause)
    with refused(PairingFault.EXPIRED):
        window.wait()
    assert ada.machines == {}
    assert len(denied_by(ada)) == 1
    with pytest.raises(FileNotFoundError):
        Identity.open(tmp_path / 'phone')


def test_a_denied_machine_that_joins_again_is_let_in(ada, open_window, tmp_path) -> None:
    first = open_window(ada, intent=Intent.JOIN)
    phone = join(first.address, first.code, tmp_path / 'phone', 'phone')
    ada.trust.deny(phone.user_id, phone.machine_id)
    second = open_window(ada, intent=Intent.JOIN)
    assert join(second.address, second.code, tmp_path / 'phone', 'phone') == Identity.open(
        tmp_path / 'phone'
    )
    assert (ada.machines, denied_by(ada)) == ({phone.machine_id: 'phone'}, frozenset())


def test_a_denied_machine_that_could_not_be_stored_stays_denied(
    ada, open_window, tmp_path, refused, monkeypatch
) -> None:
    first = open_window(ada, intent=Intent.JOIN)
    phone = join(first.address, first.code, tmp_path / 'phone', 'phone')
    ada.trust.deny(phone.user_id, phone.machine_id)
    window = open_window(ada, intent=Intent.JOIN)
    store = window._side.store

    def fail() -> None:
        store()
        raise OSError('Input/output error')

    monkeypatch.setattr(window._side, 'store', fail)
    with refused(PairingFault.NOT_STORED):
        join(window.address, window.code, tmp_path / 'phone', 'phone')
    assert denied_by(ada) == {phone.machine_id}


def test_an_outcome_with_a_wrong_proof_counts_for_nothing(
    ada, open_window, clock, tmp_path, monkeypatch
) -> None:
    window = open_window(ada, intent=Intent.JOIN)
    commit, forged = window._routes['commit'], iter([True])

    def forge(window, connection, data) -> bytes:
        answer = commit(window, connection, data)
        if not next(forged, False):
            return answer
        return format_message(
            msgspec.structs.replace(parse_message(answer, Outcome), proof=bytes(32))
        )

    monkeypatch.setitem(PairingWindow._routes, 'commit', forge)
    join(window.address, window.code, tmp_path / 'phone', 'x', clock=clock, pause=clock.pause)
    assert clock.pauses == 1
