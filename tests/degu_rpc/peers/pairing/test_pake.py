"""degu_rpc.peers.pairing.pake: who does not know the code, or shows another key, gets nowhere."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from degu_rpc.errors import PairingError, PairingFault
from degu_rpc.peers.pairing.codes import PairingCode, build_code
from degu_rpc.peers.pairing.pake import (
    MESSAGE_SIZE,
    Intent,
    JoinerHandshake,
    Stage,
    Terms,
    WindowHandshake,
)

CODE = build_code(0x123456789)
OTHER_CODE = build_code(0x123456788)
WINDOW, JOINER, STRANGER = 'w' * 48, 'j' * 48, 's' * 48
TERMS = Terms(Intent.PEER, WINDOW, JOINER)
Q = 2**255 - 19  # the field of Ed25519


def build(
    code: PairingCode = CODE, terms: Terms = TERMS
) -> tuple[JoinerHandshake, WindowHandshake]:
    return JoinerHandshake(CODE, TERMS), WindowHandshake(code, terms)


def run(joiner: JoinerHandshake, window: WindowHandshake) -> None:
    joiner.finish(window.confirm(joiner.confirm(window.answer(joiner.start()))))


@pytest.fixture(scope='module')
def paired() -> tuple[JoinerHandshake, WindowHandshake]:
    joiner, window = build()
    run(joiner, window)
    return joiner, window


def refused(reason: PairingFault):
    return pytest.raises(PairingError, check=lambda error: error.fault is reason)


# --- who gets through ---------------------------------------------------------------------------


def test_two_who_have_the_same_code_and_see_the_same_terms_have_a_session(paired) -> None:
    joiner, window = paired
    window.session.check(joiner.session.prove('greet', b'hello'), 'greet', b'hello')
    joiner.session.check(window.session.prove('greet', b'hello'), 'greet', b'hello')


@pytest.mark.parametrize(
    ('code', 'terms'),
    [
        pytest.param(OTHER_CODE, TERMS, id='another code'),
        pytest.param(CODE, TERMS._replace(window_id=STRANGER), id='another window'),
        pytest.param(CODE, TERMS._replace(joiner_id=STRANGER), id='another joiner'),
        pytest.param(CODE, Terms(Intent.PEER, JOINER, WINDOW), id='swapped roles'),
        pytest.param(CODE, TERMS._replace(intent=Intent.JOIN), id='another intent'),
    ],
)
def test_whoever_differs_in_anything_is_refused_by_the_window(code, terms) -> None:
    joiner, window = build(code, terms)
    confirmation = joiner.confirm(window.answer(joiner.start()))
    with refused(PairingFault.WRONG_CODE):
        window.confirm(confirmation)
    assert window.stage is Stage.FAILED


def test_a_window_that_does_not_know_the_code_is_refused_by_the_joiner() -> None:
    joiner, window = build(OTHER_CODE)
    joiner.confirm(window.answer(joiner.start()))
    with refused(PairingFault.WRONG_CODE):
        joiner.finish(window._confirm())
    with refused(PairingFault.ORDER):
        _ = joiner.session


@pytest.mark.parametrize('role', ['window', 'joiner'])
@pytest.mark.parametrize('flip', range(0, 256, 17))
def test_one_wrong_bit_of_a_confirmation_is_refused(role: str, flip: int) -> None:
    def damage(confirmation: bytes) -> bytes:
        return (int.from_bytes(confirmation, 'big') ^ 1 << flip).to_bytes(32, 'big')

    joiner, window = build()
    confirmation = joiner.confirm(window.answer(joiner.start()))
    if role == 'window':
        with refused(PairingFault.WRONG_CODE):
            window.confirm(damage(confirmation))
    else:
        with refused(PairingFault.WRONG_CODE):
            joiner.finish(damage(window.confirm(confirmation)))


# --- reflection, swapped roles, replay, and a man in the middle ---------------------------------


@pytest.mark.parametrize('side', [b'A', b'B'], ids=['as it was', 'said to be from the window'])
def test_the_joiners_own_message_is_no_answer(side: bytes) -> None:
    joiner, _ = build()
    message = joiner.start()
    with refused(PairingFault.MESSAGE):
        joiner.confirm(side + message[1:])


def test_the_joiners_own_confirmation_is_not_the_windows() -> None:
    joiner, window = build()
    confirmation = joiner.confirm(window.answer(joiner.start()))
    with refused(PairingFault.WRONG_CODE):
        joiner.finish(confirmation)


def test_a_proof_of_the_session_that_comes_back_is_not_the_other_sides(paired) -> None:
    joiner, _ = paired
    with refused(PairingFault.MESSAGE):
        joiner.session.check(joiner.session.prove('commit'), 'commit')


def test_two_joiners_do_not_pair() -> None:
    first, second = JoinerHandshake(CODE, TERMS), JoinerHandshake(CODE, TERMS)
    first.start()
    with refused(PairingFault.MESSAGE):
        first.confirm(second.start())


def test_two_windows_do_not_pair() -> None:
    joiner, window = build()
    answer = window.answer(joiner.start())
    with refused(PairingFault.MESSAGE):
        WindowHandshake(CODE, TERMS).answer(answer)


def test_what_was_recorded_is_worth_nothing_in_another_window_with_the_same_code() -> None:
    joiner, window = build()
    message = joiner.start()
    confirmation = joiner.confirm(window.answer(message))
    window.confirm(confirmation)
    _, later = build()
    later.answer(message)
    with refused(PairingFault.WRONG_CODE):
        later.confirm(confirmation)


def test_what_was_recorded_of_a_window_is_worth_nothing_to_another_joiner() -> None:
    joiner, window = build()
    answer = window.answer(joiner.start())
    confirmation = window.confirm(joiner.confirm(answer))
    later, _ = build()
    later.start()
    later.confirm(answer)
    with refused(PairingFault.WRONG_CODE):
        later.finish(confirmation)


def test_a_man_in_the_middle_with_a_key_of_his_own_cannot_pass_messages_on() -> None:
    joiner = JoinerHandshake(CODE, TERMS._replace(window_id=STRANGER))  # as its TLS connection says
    window = WindowHandshake(CODE, TERMS)
    confirmation = joiner.confirm(window.answer(joiner.start()))
    with refused(PairingFault.WRONG_CODE):
        window.confirm(confirmation)


# --- order --------------------------------------------------------------------------------------


def test_there_is_no_session_before_both_confirmed() -> None:
    joiner, window = build()
    confirmation = joiner.confirm(window.answer(joiner.start()))
    for side in (joiner, window):
        with refused(PairingFault.ORDER):
            _ = side.session
    window.confirm(confirmation)
    with refused(PairingFault.ORDER):
        _ = joiner.session


@pytest.mark.parametrize(
    'call',
    [
        pytest.param(lambda joiner, _: joiner.confirm(bytes(33)), id='joiner confirms first'),
        pytest.param(lambda joiner, _: joiner.finish(bytes(32)), id='joiner finishes first'),
        pytest.param(lambda _, window: window.confirm(bytes(32)), id='window confirms first'),
    ],
)
def test_a_step_that_comes_too_early_is_refused_and_the_attempt_goes_on(call) -> None:
    joiner, window = build()
    with refused(PairingFault.ORDER):
        call(joiner, window)
    run(joiner, window)


def test_each_step_is_done_once() -> None:
    joiner, window = build()
    message = joiner.start()
    answer = window.answer(message)
    confirmation = joiner.confirm(answer)
    last = window.confirm(confirmation)
    joiner.finish(last)
    for again in (
        joiner.start,
        lambda: window.answer(message),
        lambda: joiner.confirm(answer),
        lambda: window.confirm(confirmation),
        lambda: joiner.finish(last),
    ):
        with refused(PairingFault.ORDER):
            again()


def test_after_a_wrong_confirmation_the_right_one_comes_too_late() -> None:
    joiner, window = build()
    confirmation = joiner.confirm(window.answer(joiner.start()))
    with refused(PairingFault.WRONG_CODE):
        window.confirm(bytes(32))
    with refused(PairingFault.ORDER):
        window.confirm(confirmation)


# --- malformed messages -------------------------------------------------------------------------


def encode(y: int) -> bytes:
    return b'A' + y.to_bytes(32, 'little')


MALFORMED = [
    pytest.param(b'C' + encode(4)[1:], id='a third side'),
    pytest.param(b'S' + encode(4)[1:], id='the side of symmetric SPAKE2'),
    pytest.param(encode(2), id='not on the curve'),
    pytest.param(encode(1), id='the neutral element'),
    pytest.param(encode(1 + Q), id='the neutral element, not reduced'),
    pytest.param(encode(1 + 2**255), id='the neutral element with a sign'),
    pytest.param(encode(Q - 1), id='the point of order 2'),
    pytest.param(encode(0), id='a point of order 4'),
    pytest.param(encode(2**256 - 1), id='all ones'),
]


@pytest.mark.parametrize(
    'message',
    [
        pytest.param(b'', id='empty'),
        pytest.param(b'A', id='a side and no point'),
        pytest.param(encode(4)[:-1], id='one byte short'),
        pytest.param(encode(4) + b'\0', id='one byte long'),
        pytest.param(b'A' * 10**6, id='a million bytes'),
    ],
)
def test_a_message_of_another_length_is_not_even_parsed(message: bytes) -> None:
    _, window = build()
    with refused(PairingFault.MESSAGE) as caught:
        window.answer(message)
    assert caught.value.detail == f'{len(message)} bytes, not {MESSAGE_SIZE}'


@pytest.mark.parametrize('message', MALFORMED)
def test_a_malformed_message_is_refused_and_ends_the_attempt(message: bytes) -> None:
    _, window = build()
    with refused(PairingFault.MESSAGE):
        window.answer(message)
    assert window.stage is Stage.FAILED


@given(st.binary(max_size=40) | st.binary(min_size=32, max_size=32).map(b'A'.__add__))
@example(encode(3 + Q))
def test_any_bytes_are_a_message_or_a_pairing_error(message: bytes) -> None:
    with pytest.raises(PairingError) as caught:
        guess(message)
    assert caught.value.fault in {PairingFault.MESSAGE, PairingFault.WRONG_CODE}


def guess(message: bytes) -> None:
    _, window = build()
    assert len(window.answer(message)) == MESSAGE_SIZE
    window.confirm(bytes(32))


# --- the session --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('kind', 'parts'),
    [
        pytest.param('commit', (b'one', b'two'), id='another kind'),
        pytest.param('exchange', (b'one',), id='a part less'),
        pytest.param('exchange', (b'onetwo',), id='joined parts'),
        pytest.param('exchange', (b'onet', b'wo'), id='parts that end elsewhere'),
        pytest.param('exchange', (b'two', b'one'), id='another order'),
    ],
)
def test_a_proof_is_of_one_message_only(paired, kind: str, parts: tuple[bytes, ...]) -> None:
    joiner, window = paired
    proof = joiner.session.prove('exchange', b'one', b'two')
    window.session.check(proof, 'exchange', b'one', b'two')
    with refused(PairingFault.MESSAGE):
        window.session.check(proof, kind, *parts)


def test_each_pairing_has_a_session_of_its_own(paired) -> None:
    joiner, _ = paired
    other, window = build()
    run(other, window)
    with refused(PairingFault.MESSAGE):
        window.session.check(joiner.session.prove('commit'), 'commit')
