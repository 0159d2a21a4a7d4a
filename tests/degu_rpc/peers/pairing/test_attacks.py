"""What must fail over real TLS: each attack on a window, or from one."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from degu import pki
from degu.server import SSLServer, build_server_sslctx
from degu_rpc import PairingError, join
from degu_rpc.errors import PairingFault
from degu_rpc.peers.limits import MAX_PAIRING_BODY
from degu_rpc.peers.pairing.messages import (
    Answer,
    Confirmation,
    Offer,
    Proof,
    Refusal,
    Start,
    format_message,
    parse_message,
)
from degu_rpc.peers.pairing.pake import (
    Intent,
    JoinerHandshake,
    Session,
    Terms,
    WindowHandshake,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime.now(UTC)
MACHINE_ID = 'j' * 48
SAID_BEFORE_SESSION = {'used', 'expired', 'intent', 'version', 'wrong_code', 'message', 'order'}


@pytest.fixture
def mallory(build_home):
    return build_home('Mallory')


@pytest.fixture
def pose_as_window(mallory, serve) -> Callable[..., Any]:
    """Give `pose_as_window(app)`: a server with Mallory's certificate that answers as it likes.

    `app(path, data)` returns a message, or status and bytes.
    """
    file = str(mallory.identity.machine_file)
    sslctx = build_server_sslctx(
        {'cert_file': file, 'key_file': file, 'allow_unauthenticated_clients': True}
    )

    def start(app: Callable[[str, bytes], Any]) -> SSLServer:
        def rgi_app(connection, request):
            answer = app('/'.join(request['path']), request['body'].read())
            status, data = answer if isinstance(answer, tuple) else (200, format_message(answer))
            return status, 'Whatever', {}, data

        return serve(rgi_app, sslctx=sslctx)

    return start


def assert_nobody_is_trusted(*homes) -> None:
    assert [home.friends for home in homes] == [{}] * len(homes)


# --- a man in the middle ------------------------------------------------------------------------


def pass_on(speaker) -> Callable[[str, bytes], Any]:
    return speaker.post


def put_in_his_own_id(speaker) -> Callable[[str, bytes], Any]:
    """Say to the window that his own machine is the joiner."""

    def app(path: str, data: bytes) -> Any:
        if path == 'start':
            start = parse_message(data, Start)
            data = format_message(msgspec.structs.replace(start, machine_id=MACHINE_ID))
        return speaker.post(path, data)

    return app


@pytest.mark.parametrize('behave', [pass_on, put_in_his_own_id])
def test_a_man_in_the_middle_is_noticed_by_both_sides(
    ada, ben, open_window, speak, pose_as_window, behave, refused
) -> None:
    window = open_window(ada)
    middle = pose_as_window(behave(speak(window)))
    with refused(PairingFault.WRONG_CODE):
        ben.pair(middle.address, window.code)
    with refused(PairingFault.WRONG_CODE):
        window.wait()
    assert_nobody_is_trusted(ada, ben)


def test_a_man_in_the_middle_who_passes_bytes_on_does_no_harm(ada, ben, open_window, relay) -> None:
    window = open_window(ada)
    ben.pair(relay(window).address, window.code)
    assert ada.friends


def test_a_window_with_another_key_is_noticed_even_if_it_knows_what_was_sent(
    ada, ben, mallory, pose_as_window, wrong_code, refused
) -> None:
    """He answers as a window would, with a code that he guessed."""
    held = {}

    def app(path: str, data: bytes) -> Any:
        if path == 'start':
            start = parse_message(data, Start)
            terms = Terms(start.intent, mallory.identity.machine_id, start.machine_id)
            held['handshake'] = WindowHandshake(wrong_code, terms)
            return Answer(held['handshake'].answer(start.message), 100.0)
        return Confirmation(held['handshake']._confirm())

    with refused(PairingFault.WRONG_CODE):
        ben.pair(pose_as_window(app).address, '4HMA-SW9R')
    assert_nobody_is_trusted(ben)


# --- replay, reflection, swapped roles ----------------------------------------------------------


def test_a_recorded_pairing_is_worth_nothing_in_another_window_with_the_same_code(
    ada, ben, open_window, speak, refused
) -> None:
    first = speak(open_window(ada))
    session = first.shake_hands()
    offers = first.exchange(session, ben.peering().offer(session.binding))
    first.post('commit', format_message(Proof(session.prove('commit', *offers))))
    assert ada.friends
    ada.trust.remove(ben.identity.user_id, NOW)
    window = open_window(ada)
    replayed = speak(window)
    statuses = [replayed.post(path, data)[0] for path, data in first.said]
    assert [path for path, _ in first.said] == ['start', 'confirm', 'exchange', 'commit']
    assert statuses == [200, 409, 409, 409]
    with refused(PairingFault.WRONG_CODE):
        window.wait()
    assert_nobody_is_trusted(ada)


def test_a_message_of_the_same_pairing_is_not_taken_twice(ada, ben, open_window, speak) -> None:
    speaker = speak(open_window(ada))
    session = speaker.shake_hands()
    speaker.exchange(session, ben.peering().offer(session.binding))
    for path, data in list(speaker.said):
        assert speaker.refused(path, data) == ('used' if path == 'start' else 'order')


@pytest.mark.parametrize('side', [b'A', b'B'], ids=['as it was', 'said to be from the window'])
def test_a_window_that_sends_back_what_it_got_is_refused(
    ben, pose_as_window, side: bytes, refused
) -> None:
    def app(path: str, data: bytes) -> Any:
        if path == 'start':
            return Answer(side + parse_message(data, Start).message[1:], 100.0)
        return 200, data

    with refused(PairingFault.MESSAGE):
        ben.pair(pose_as_window(app).address, '4HMA-SW9R')


def test_a_window_that_sends_the_joiners_confirmation_back_is_refused(
    ben, mallory, pose_as_window, wrong_code, refused
) -> None:
    """It does not know the code, and so cannot make one."""

    def app(path: str, data: bytes) -> Any:
        if path == 'start':
            start = parse_message(data, Start)
            terms = Terms(start.intent, mallory.identity.machine_id, start.machine_id)
            return Answer(WindowHandshake(wrong_code, terms).answer(start.message), 100.0)
        return 200, data

    with refused(PairingFault.WRONG_CODE):
        ben.pair(pose_as_window(app).address, '4HMA-SW9R')


def test_a_window_that_speaks_as_a_joiner_is_refused(
    ben, mallory, open_window, pose_as_window, refused
) -> None:
    """Two who both were told a code are set on each other."""

    def app(path: str, data: bytes) -> Any:
        start = parse_message(data, Start)
        terms = Terms(start.intent, mallory.identity.machine_id, start.machine_id)
        return Answer(JoinerHandshake(window.code, terms).start(), 100.0)

    window = open_window(mallory)
    with refused(PairingFault.MESSAGE):
        ben.pair(pose_as_window(app).address, window.code)


def test_a_joiner_that_speaks_as_a_window_is_refused(ada, ben, open_window, speak) -> None:
    window = open_window(ada)
    terms = Terms(Intent.PEER, ada.identity.machine_id, ben.identity.machine_id)
    message = WindowHandshake(window.code, terms).answer(
        JoinerHandshake(window.code, terms).start()
    )
    start = Start(1, Intent.PEER, ben.identity.machine_id, message)
    assert speak(window).refused('start', format_message(start)) == 'message'


# --- confirmation, and order --------------------------------------------------------------------


def test_without_a_confirmation_nothing_is_exchanged(ada, ben, open_window, speak) -> None:
    speaker = speak(open_window(ada))
    handshake, _ = speaker.start()
    # It has the keys, if the code is right. It has not shown that.
    session = Session(bytes(32), handshake._own.session, handshake._other.session)
    offer = ben.peering().offer(session.binding)
    said = format_message(Offer(offer, session.prove('exchange', offer)))
    assert speaker.refused('exchange', said) == 'order'
    proof = format_message(Proof(session.prove('commit', offer, b'')))
    assert speaker.refused('commit', proof) == 'order'
    assert_nobody_is_trusted(ada)


@pytest.mark.parametrize('confirmation', [bytes(32), b'\xff' * 32], ids=['zeros', 'ones'])
def test_a_window_without_the_right_confirmation_learns_nothing_of_the_joiner(
    ada, ben, open_window, pose_as_window, mallory, confirmation: bytes, refused
) -> None:
    heard = []

    def app(path: str, data: bytes) -> Any:
        heard.append((path, data))
        if path == 'start':
            start = parse_message(data, Start)
            terms = Terms(start.intent, mallory.identity.machine_id, start.machine_id)
            return Answer(WindowHandshake(window.code, terms).answer(start.message), 100.0)
        return Confirmation(confirmation)

    window = open_window(ada)
    with refused(PairingFault.WRONG_CODE):
        ben.pair(pose_as_window(app).address, window.code)
    assert [path for path, _ in heard] == ['start', 'confirm']
    said = b''.join(data for _, data in heard)
    assert b'Ben' not in said
    assert ben.identity.user_id.encode() not in said


def test_a_stranger_learns_nothing_of_the_window_but_its_certificate(
    ada, ben, open_window, speak
) -> None:
    speaker = speak(open_window(ada))
    start = Start(1, Intent.PEER, MACHINE_ID, bytes(33))
    for path in ('confirm', 'exchange', 'commit', 'acknowledge', 'abort', 'start', 'start'):
        _, answer = speaker.post(path, format_message(start))
        assert re.fullmatch(rb'\{"reason":"[a-z_]+"\}', answer)
    assert speaker.post('name', b'{}') == (404, b'')


@pytest.mark.parametrize('path', ['confirm', 'exchange', 'commit', 'acknowledge', 'abort'])
def test_no_step_can_be_the_first(ada, open_window, speak, path: str, ben) -> None:
    window = open_window(ada)
    messages = {
        'confirm': Confirmation(bytes(32)),
        'exchange': Offer(b'{}', bytes(32)),
        'abort': None,
    }
    message = messages.get(path, Proof(bytes(32)))
    data = (
        format_message(message)
        if message
        else b'{"reason":"order","proof":"%s"}' % (base64.b64encode(bytes(32)))
    )
    assert speak(window).refused(path, data) == 'order'
    ben.pair(window.address, window.code)  # it burned nothing


# --- what the one who knows the code must not do ------------------------------------------------


def offer_of(home, session, **changes: Any) -> bytes:
    said = msgspec.json.decode(home.peering().offer(session.binding))
    return msgspec.json.encode({**said, **changes})


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        pytest.param(
            lambda ben, mallory, session: {
                'csr': b64(pki.build_csr(mallory.identity.read_machine_key(), session.binding))
            },
            'certificate',
            id='the proof of another key',
        ),
        pytest.param(
            lambda ben, mallory, session: {
                'csr': b64(pki.build_csr(ben.identity.read_machine_key(), bytes(32)))
            },
            'certificate',
            id='a proof from another pairing',
        ),
        pytest.param(
            lambda ben, mallory, session: {
                'machine_cert': b64(mallory.identity.machine_cert),
                'user_cert': b64(mallory.identity.user_cert),
            },
            'certificate',
            id='the certificates of another',
        ),
        pytest.param(
            lambda ben, mallory, session: {'user_cert': b64(mallory.identity.user_cert)},
            'certificate',
            id='the user of another',
        ),
        pytest.param(
            lambda ben, mallory, session: {'machine_cert': b64(ben.identity.user_cert)},
            'certificate',
            id='a user in place of a machine',
        ),
        pytest.param(lambda *_: {'name': 'a\x1b[2Jb'}, 'message', id='a name with controls'),
        pytest.param(lambda *_: {'name': ''}, 'message', id='an empty name'),
        pytest.param(lambda *_: {'name': MACHINE_ID}, 'message', id='the id of somebody'),
        pytest.param(lambda *_: {'name': 'x' * 65}, 'message', id='a long name'),
        pytest.param(lambda *_: {'roles': ['owner']}, 'message', id='roles for itself'),
        pytest.param(lambda *_: {'trusts': 1}, 'message', id='a number for a yes'),
    ],
)
def test_what_does_not_fit_the_handshake_is_refused_after_it_too(
    ada, ben, mallory, open_window, speak, change, reason: str
) -> None:
    window = open_window(ada)
    speaker = speak(window)
    session = speaker.shake_hands()
    offer = offer_of(ben, session, **change(ben, mallory, session))
    said = format_message(Offer(offer, session.prove('exchange', offer)))
    assert speaker.refused('exchange', said) == reason
    with pytest.raises(PairingError):
        window.wait()
    assert_nobody_is_trusted(ada)


def test_an_offer_without_the_sessions_proof_is_refused(ada, ben, open_window, speak) -> None:
    speaker = speak(open_window(ada))
    session = speaker.shake_hands()
    offer = ben.peering().offer(session.binding)
    for proof in (
        bytes(32),
        session.prove('exchange', offer + b' '),
        session.prove('commit', offer),
    ):
        assert speaker.refused('exchange', format_message(Offer(offer, proof))) == 'message'


def test_a_machine_that_joins_must_have_the_key_it_named(
    ada, ben, mallory, open_window, speak
) -> None:
    window = open_window(ada, intent=Intent.JOIN)
    speaker = speak(window, Intent.JOIN)
    session = speaker.shake_hands()
    csr = pki.build_csr(mallory.identity.read_machine_key(), session.binding)
    offer = msgspec.json.encode({'csr': b64(csr), 'name': 'phone'})
    said = format_message(Offer(offer, session.prove('exchange', offer)))
    assert speaker.refused('exchange', said) == 'certificate'
    assert ada.machines == {}


# --- what a window that knows the code must not do ----------------------------------------------


def test_a_window_that_answers_nonsense_is_refused(ben, pose_as_window, refused) -> None:
    for answer in (
        (200, b'{}'),
        (200, b'x' * (MAX_PAIRING_BODY + 1)),
        (200, None),
        (409, b'{"reason":"because"}'),
        (500, b'{}'),
        Refusal(PairingFault.ORDER),
        Answer(b'B' + bytes(32), 100.0),
    ):
        server = pose_as_window(lambda path, data, answer=answer: answer)
        with pytest.raises(PairingError) as caught:
            ben.pair(server.address, '4HMA-SW9R')
        assert caught.value.fault in {PairingFault.MESSAGE, PairingFault.ORDER}
    assert_nobody_is_trusted(ben)


@pytest.mark.parametrize('fault', PairingFault, ids=lambda fault: fault.value)
def test_what_anybody_says_before_there_is_a_session_is_no_fact(
    ben, pose_as_window, fault: PairingFault
) -> None:
    server = pose_as_window(lambda path, data: (409, format_message(Refusal(fault))))
    with pytest.raises(PairingError) as caught:
        ben.pair(server.address, '4HMA-SW9R')
    if caught.value.fault is fault and caught.value.is_claimed:
        assert str(caught.value) == f'the other machine said: {fault.text}'
        assert fault.value in SAID_BEFORE_SESSION
    else:
        assert str(caught.value) == f'{PairingFault.MESSAGE.text} (it answered {fault.value})'


@pytest.mark.parametrize('remaining_s', [-1, 121, 1e308], ids=str)
def test_a_window_cannot_make_the_joiner_wait_for_longer(remaining_s: float) -> None:
    data = msgspec.json.encode({'message': b64(bytes(33)), 'remaining_s': remaining_s})
    with pytest.raises(PairingError):
        parse_message(data, Answer)


@pytest.mark.parametrize('swap', ['machine', 'user'])
def test_a_joiner_keeps_no_certificate_that_is_not_its_own(
    ada, ben, open_window, tmp_path, swap: str, refused
) -> None:
    window = open_window(ada, intent=Intent.JOIN)
    offer = window._side.offer

    def lie(binding: bytes) -> bytes:
        said = msgspec.json.decode(offer(binding))
        return msgspec.json.encode({**said, 'user_cert': b64(ben.identity.user_cert)})

    if swap == 'machine':
        window._side.give = lambda: ada.identity.machine_cert
    else:
        window._side.offer = lie
    with refused(PairingFault.CERTIFICATE):
        join(window.address, window.code, tmp_path / 'phone', 'phone')
    assert not (tmp_path / 'phone').exists()
    assert ada.machines == {}
