"""degu_rpc.peers.pairing.window: one attempt, for 120 seconds, and nothing that is no message."""

from __future__ import annotations

import base64
import contextlib
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from degu.bodies import ChunkedOutput
from degu_rpc.errors import IdentityError, PairingFault
from degu_rpc.peers.limits import (
    MAX_PAIRING_BODY,
    MAX_PAIRING_CONNECTIONS,
    MAX_PAIRING_CONNECTIONS_PER_ADDRESS,
)
from degu_rpc.peers.pairing.messages import (
    Confirmation,
    Offer,
    Start,
    format_message,
)
from degu_rpc.peers.pairing.pake import (
    Intent,
)
from degu_rpc.peers.pairing.window import COUNT_FILE, count_window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from degu_rpc import PairingWindow

NOW = datetime.now(UTC)
MACHINE_ID = 'j' * 48


def assert_nobody_is_trusted(*homes) -> None:
    assert [home.friends for home in homes] == [{}] * len(homes)


# --- one attempt, one window's time -------------------------------------------------------------


def test_a_wrong_code_ends_the_window_for_good(ada, ben, open_window, wrong_code, refused) -> None:
    window = open_window(ada)
    with refused(PairingFault.WRONG_CODE):
        ben.pair(window.address, wrong_code)
    with refused(PairingFault.USED):
        ben.pair(window.address, window.code)
    with refused(PairingFault.WRONG_CODE):
        window.wait()
    assert_nobody_is_trusted(ada, ben)


def test_after_a_wrong_confirmation_the_right_one_comes_too_late(
    ada, ben, open_window, speak
) -> None:
    speaker = speak(open_window(ada))
    _, confirmation = speaker.start()
    assert speaker.refused('confirm', format_message(Confirmation(bytes(32)))) == 'wrong_code'
    assert speaker.refused('confirm', format_message(Confirmation(confirmation))) == 'used'


def test_while_one_machine_pairs_no_other_can_begin_or_spoil_it(
    ada, ben, open_window, speak
) -> None:
    window = open_window(ada)
    speaker, stranger = speak(window), speak(window)
    handshake, confirmation = speaker.start()
    start = Start(1, Intent.PEER, MACHINE_ID, handshake._sent)
    assert stranger.refused('start', format_message(start)) == 'used'
    assert stranger.refused('confirm', format_message(Confirmation(bytes(32)))) == 'order'
    assert stranger.refused('confirm', format_message(Confirmation(confirmation))) == 'order'
    answer = speaker.ask('confirm', Confirmation(confirmation), Confirmation)
    handshake.finish(answer.confirmation)
    offer = Offer(b'', handshake.session.prove('exchange', b''))
    assert stranger.refused('exchange', format_message(offer)) == 'order'
    speaker.exchange(handshake.session, ben.peering().offer(handshake.session.binding))


def test_a_machine_that_began_and_went_away_has_used_the_attempt(
    ada, ben, open_window, speak, clock, refused
) -> None:
    window = open_window(ada)
    speaker = speak(window)
    speaker.start()
    speaker.connection.close()
    with refused(PairingFault.USED):
        ben.pair(window.address, window.code)
    clock.now_s += 120
    with refused(PairingFault.EXPIRED) as caught:
        window.wait()
    assert 'a machine began to pair and did not go on' in str(caught.value)


def test_a_window_that_paired_is_used(ada, ben, build_home, open_window, refused) -> None:
    window = open_window(ada)
    ben.pair(window.address, window.code)
    with refused(PairingFault.USED):
        build_home('Carol').pair(window.address, window.code)


def test_a_code_is_good_until_120_seconds_are_over(ada, ben, open_window, clock) -> None:
    window = open_window(ada)
    clock.now_s += 119.9
    ben.pair(window.address, window.code)
    assert ada.friends


def test_a_code_is_worth_nothing_after_120_seconds(ada, ben, open_window, clock, refused) -> None:
    window = open_window(ada)
    clock.now_s += 120
    with refused(PairingFault.EXPIRED):
        ben.pair(window.address, window.code)
    with refused(PairingFault.EXPIRED):
        window.wait()
    assert_nobody_is_trusted(ada, ben)


def test_a_window_that_nobody_speaks_to_ends_its_wait_by_itself(ada, open_window, refused) -> None:
    class Hasty:
        """The clock of somebody for whom 120 seconds are a tenth of one."""

        def __init__(self) -> None:
            self.calls = 0

        def __call__(self) -> float:
            self.calls += 1
            return 119.95 if self.calls == 2 else 120.0 * (self.calls > 2)

    window = open_window(ada, clock=Hasty())
    with refused(PairingFault.EXPIRED):
        window.wait()


@pytest.mark.parametrize('step', ['confirm', 'exchange'])
def test_the_time_is_up_in_the_middle_too(ada, ben, open_window, speak, clock, step: str) -> None:
    speaker = speak(open_window(ada))
    handshake, confirmation = speaker.start()
    message = Confirmation(confirmation)
    if step == 'exchange':
        handshake.finish(speaker.ask('confirm', message, Confirmation).confirmation)
        offer = ben.peering().offer(handshake.session.binding)
        message = Offer(offer, handshake.session.prove('exchange', offer))
    clock.now_s += 120
    assert speaker.refused(step, format_message(message)) == 'expired'
    assert_nobody_is_trusted(ada)


# --- how many windows ---------------------------------------------------------------------------


def test_three_windows_are_opened_in_ten_minutes_and_no_more(ada, open_window, refused) -> None:
    for _ in range(3):
        open_window(ada)
    with refused(PairingFault.TOO_MANY_WINDOWS) as caught:
        open_window(ada)
    assert '3 so far; again in 600 s' in str(caught.value)


@pytest.mark.parametrize('later', [timedelta(seconds=601), timedelta(seconds=-601)], ids=str)
def test_windows_are_counted_for_ten_minutes_only(ada, refused, later: timedelta) -> None:
    directory = ada.identity.directory
    for _ in range(3):
        count_window(directory, NOW)
    with refused(PairingFault.TOO_MANY_WINDOWS):
        count_window(directory, NOW + later * 0.99)
    count_window(directory, NOW + later)


def test_windows_are_counted_for_all_processes_together(ada, refused) -> None:
    program = (
        'import sys; from datetime import datetime, UTC; from pathlib import Path\n'
        'from degu_rpc.peers.pairing.window import count_window\n'
        'count_window(Path(sys.argv[1]), datetime.now(UTC))\n'
    )
    for _ in range(3):
        subprocess.run([sys.executable, '-c', program, ada.identity.directory], check=True)
    with refused(PairingFault.TOO_MANY_WINDOWS):
        count_window(ada.identity.directory, datetime.now(UTC))


def test_a_broken_count_is_told_with_its_remedy(ada) -> None:
    path = ada.identity.directory / COUNT_FILE
    path.touch(0o600)
    with pytest.raises(IdentityError, match='remove it'):
        count_window(ada.identity.directory, NOW)


# --- what is no message -------------------------------------------------------------------------


def start_with(**changes: Any) -> bytes:
    fields = {
        'version': 1,
        'intent': 'peer',
        'machine_id': MACHINE_ID,
        'message': base64.b64encode(b'A' + bytes(32)).decode(),
    }
    return msgspec.json.encode({k: v for k, v in {**fields, **changes}.items() if v is not None})


MALFORMED = [
    pytest.param(b'', id='nothing'),
    pytest.param(b'{', id='half of something'),
    pytest.param(b'[]', id='another type'),
    pytest.param(b'{}', id='no fields'),
    pytest.param(start_with() + b'{}', id='trailing bytes'),
    pytest.param(start_with(name='Mallory'), id='an unknown field'),
    pytest.param(start_with(version='1'), id='a version that is text'),
    pytest.param(start_with(intent='own'), id='an unknown intent'),
    pytest.param(start_with(machine_id='j' * 47), id='a short id'),
    pytest.param(start_with(machine_id='j' * 48 + '\n'), id='an id with a line end'),
    pytest.param(start_with(machine_id='J' * 48), id='an id in upper case'),
    pytest.param(start_with(message=None), id='no message'),
    pytest.param(start_with(message=base64.b64encode(bytes(32)).decode()), id='32 bytes'),
    pytest.param(start_with(message=base64.b64encode(bytes(34)).decode()), id='34 bytes'),
    pytest.param(start_with(message='A' * 43 + '?'), id='no base64'),
    pytest.param(b'\xff' * 100, id='no UTF-8'),
    pytest.param(b'[' * MAX_PAIRING_BODY, id='much nesting'),
]


@pytest.mark.parametrize('data', MALFORMED)
def test_a_malformed_start_is_refused_and_burns_nothing(
    ada, ben, open_window, speak, data: bytes
) -> None:
    window = open_window(ada)
    assert speak(window).refused('start', data) == 'message'
    ben.pair(window.address, window.code)


def test_another_version_is_told_and_burns_nothing(ada, ben, open_window, speak) -> None:
    window = open_window(ada)
    assert speak(window).refused('start', start_with(version=2)) == 'version'
    ben.pair(window.address, window.code)


def test_a_malformed_point_is_a_try_of_the_code(ada, ben, open_window, speak, refused) -> None:
    window = open_window(ada)
    assert speak(window).refused('start', start_with()) == 'message'
    with refused(PairingFault.USED):
        ben.pair(window.address, window.code)


def test_an_oversized_body_is_not_read(ada, ben, open_window, speak) -> None:
    window = open_window(ada)
    padded = start_with() + b' ' * (MAX_PAIRING_BODY + 1 - len(start_with()))
    assert speak(window).post('start', padded) == (413, b'')
    ben.pair(window.address, window.code)


def test_a_body_without_a_length_is_not_read(ada, open_window, speak) -> None:
    connection = speak(open_window(ada)).connection
    assert (
        connection.post('/start', None, ChunkedOutput([(None, start_with()), (None, b'')])).status
        == 411
    )


@pytest.mark.parametrize('method', ['GET', 'PUT', 'DELETE', 'HEAD'])
def test_another_method_is_refused(ada, open_window, speak, method: str) -> None:
    connection = speak(open_window(ada)).connection
    assert connection.request(method, '/start').status == 405


def test_a_header_that_is_too_large_is_refused(ada, open_window, speak) -> None:
    connection = speak(open_window(ada)).connection
    assert connection.post('/start', {'x': 'x' * MAX_PAIRING_BODY}, b'').status == 431


@pytest.fixture
def call_silently() -> Iterator[Callable[..., socket.socket]]:
    """Give `call_silently(window, host)`: a connection to it from that address."""
    with contextlib.ExitStack() as stack:

        def call(window: PairingWindow, host: str) -> socket.socket:
            source = (host, 0)
            sock = socket.create_connection(window.address, timeout=20, source_address=source)
            return stack.enter_context(sock)

        yield call


def wait_until_refused(window: PairingWindow, count: int) -> None:
    deadline = time.monotonic() + 20
    while window._server.refused < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ('hosts', 'limit'),
    [
        pytest.param(['127.0.0.2'], MAX_PAIRING_CONNECTIONS_PER_ADDRESS, id='one address'),
        pytest.param(
            ['127.0.0.2', '127.0.0.3', '127.0.0.4'], MAX_PAIRING_CONNECTIONS, id='several'
        ),
    ],
)
def test_few_connections_are_held(ada, open_window, call_silently, hosts, limit) -> None:
    window = open_window(ada)
    socks = [call_silently(window, host) for host in hosts for _ in range(2)]
    socks.append(call_silently(window, hosts[0]))
    wait_until_refused(window, len(socks) - limit)
    assert len(window._server._clients) == limit


def test_who_keeps_a_window_busy_from_one_address_keeps_nobody_out(
    ada, ben, open_window, background
) -> None:
    window = open_window(ada)
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            with (
                contextlib.suppress(OSError),
                socket.create_connection(
                    window.address, timeout=20, source_address=('127.0.0.2', 0)
                ) as sock,
            ):
                sock.recv(1)

    busy = [background(keep_busy) for _ in range(4)]
    try:
        wait_until_refused(window, 20)
        ben.pair(window.address, window.code, pause=pytest.fail)
    finally:
        stop.set()
    for each in busy:
        each.result(20)
    assert list(ada.friends.values()) == ['Ben']


def test_a_silent_connection_is_closed_after_two_seconds(ada, open_window, call_silently) -> None:
    sock = call_silently(open_window(ada), '127.0.0.2')
    started = time.monotonic()
    assert sock.recv(1) == b''
    assert time.monotonic() - started < 4.5  # the server's own time is 5 s


def test_who_is_refused_tries_again_for_a_while(ada, ben, open_window, call_silently) -> None:
    window = open_window(ada)
    socks = [call_silently(window, host) for host in ['127.0.0.2', '127.0.0.3'] for _ in range(2)]
    socks.append(call_silently(window, '127.0.0.4'))
    wait_until_refused(window, 1)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        for sock in socks:
            sock.close()
        time.sleep(seconds)

    ben.pair(window.address, window.code, pause=pause)
    assert pauses


def test_a_window_that_refused_connections_says_so(
    ada, open_window, call_silently, clock, refused
) -> None:
    window = open_window(ada)
    for _ in range(3):
        call_silently(window, '127.0.0.2')
    wait_until_refused(window, 1)
    clock.now_s += 120
    with refused(PairingFault.EXPIRED) as caught:
        window.wait()
    assert '1 other connections were refused meanwhile' in str(caught.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(['start', 'confirm', 'exchange', 'commit', 'acknowledge', 'abort']),
    data=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=50),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(['version', 'intent', 'machine_id', 'message', 'proof', 'offer']),
                inner,
            )
        ),
        max_leaves=8,
    ).map(msgspec.json.encode),
)
def test_any_bytes_are_refused_and_burn_nothing(
    fuzzed_window, speak, path: str, data: bytes
) -> None:
    window = fuzzed_window
    speaker = speak(window)  # hypothesis may think for longer than a connection may be silent
    assert speaker.refused(path, data) in {'message', 'order'}
    speaker.connection.close()
    assert window._attempt is None
    assert window._outcome is None


@pytest.fixture
def fuzzed_window(ada, open_window):
    return open_window(ada)
