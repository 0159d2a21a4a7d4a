"""Homes that pair, and whoever stands between them."""

from __future__ import annotations

import contextlib
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest

from degu import IPv4_LOOPBACK, net, pki
from degu.client import SSLClient, build_client_sslctx
from degu_rpc import Admission, PairingError, PairingWindow, Peering
from degu_rpc.peers import Identity, TrustStore
from degu_rpc.peers.codes import PairingCode, build_code
from degu_rpc.peers.handshake import Intent, JoinerHandshake, Terms
from degu_rpc.peers.messages import (
    Answer,
    Confirmation,
    Message,
    Offer,
    Start,
    format_message,
    parse_message,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from degu.client import Connection
    from degu.net import Address
    from degu_rpc.errors import PairingFault
    from degu_rpc.peers.handshake import Session

NOW = datetime.now(UTC)
TIMEOUT_S = 20.0
CODE = build_code(0x123456789)
WRONG_CODE = build_code(0x123456788)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.pauses = 0

    def __call__(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        """Let time pass as `sleep` would."""
        self.pauses += 1
        self.now_s += seconds


class Home(NamedTuple):
    """One user and machine, and whom they trust."""

    name: str
    identity: Identity
    trust: TrustStore

    def peering(self, **options: Any) -> Peering:
        return Peering(self.identity, self.trust, self.name, NOW, **options)

    def admission(self) -> Admission:
        return Admission(self.identity, self.trust, self.name, NOW)

    @property
    def friends(self) -> dict[str, str]:
        """The names of the users that are trusted, by id, without my own."""
        users = TrustStore(self.identity).users()
        return {u.user_id: u.name for u in users.values() if u.user_id != self.identity.user_id}

    @property
    def machines(self) -> dict[str, str]:
        """The names of my own user's other machines."""
        return dict(TrustStore(self.identity).users()[self.identity.user_id].machines)


@dataclass
class Speaker:
    """Somebody who speaks to a window, message by message."""

    connection: Connection
    window_id: str
    joiner_id: str
    intent: Intent = Intent.PEER
    said: list[tuple[str, bytes]] = field(default_factory=list)

    def post(self, path: str, data: bytes) -> tuple[int, bytes]:
        """Send anything; return the status and what was answered."""
        self.said.append((path, data))
        response = self.connection.post(f'/{path}', None, data)
        return response.status, b'' if response.body is None else response.body.read()

    def refused(self, path: str, data: bytes) -> str:
        """Send what is refused; return the reason, which is all that is said."""
        status, answer = self.post(path, data)
        assert status == 409
        reason = msgspec.json.decode(answer)
        assert list(reason) == ['reason']
        return reason['reason']

    def ask(self, path: str, message: Message, kind: type) -> Any:
        """Send a message and parse its answer, which must be good."""
        status, data = self.post(path, format_message(message))
        assert status == 200, data
        return parse_message(data, kind)

    def start(self, code: PairingCode = CODE) -> tuple[JoinerHandshake, bytes]:
        """Start, and return the handshake with the confirmation that comes next."""
        terms = Terms(self.intent, self.window_id, self.joiner_id)
        handshake = JoinerHandshake(code, terms)
        start = Start(1, self.intent, self.joiner_id, handshake.start())
        answer = self.ask('start', start, Answer)
        return handshake, handshake.confirm(answer.message)

    def shake_hands(self, code: PairingCode = CODE) -> Session:
        """Start and confirm."""
        handshake, confirmation = self.start(code)
        answer = self.ask('confirm', Confirmation(confirmation), Confirmation)
        handshake.finish(answer.confirmation)
        return handshake.session

    def exchange(self, session: Session, offer: bytes) -> tuple[bytes, bytes]:
        """Say what this side offers; return both offers."""
        said = Offer(offer, session.prove('exchange', offer))
        return offer, self.ask('exchange', said, Offer).offer


@pytest.fixture
def build_home(tmp_path: Path) -> Callable[[str], Home]:
    """Give `build_home(name)`."""

    def build(name: str) -> Home:
        identity = Identity.create(tmp_path / name, NOW)
        return Home(name, identity, TrustStore(identity))

    return build


@pytest.fixture
def ada(build_home: Callable[[str], Home]) -> Home:
    return build_home('Ada')


@pytest.fixture
def ben(build_home: Callable[[str], Home]) -> Home:
    return build_home('Ben')


@pytest.fixture
def wrong_code() -> PairingCode:
    return WRONG_CODE


@pytest.fixture
def refused() -> Callable[[PairingFault], Any]:
    """Give `with refused(reason)`: a PairingError with that reason."""
    return lambda reason: pytest.raises(PairingError, check=lambda error: error.reason is reason)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_window(clock: Clock) -> Iterator[Callable[..., PairingWindow]]:
    """Give `open_window(agreement)`: a window with CODE and the test's clock.

    At the end of the test its time is up, so that it closes.
    """
    with contextlib.ExitStack() as stack:

        def enter(agreement: Peering | Admission, **options: Any) -> PairingWindow:
            return stack.enter_context(
                PairingWindow(agreement, **{'code': CODE, 'clock': clock, **options})
            )

        yield enter
        clock.now_s += 1000


@pytest.fixture
def speak(ben: Home) -> Iterator[Callable[..., Speaker]]:
    """Give `speak(window)`: a new connection to it, of somebody who says to be Ben's machine."""
    with contextlib.ExitStack() as stack:

        def connect(window: PairingWindow, intent: Intent = Intent.PEER) -> Speaker:
            home = window._agreement.identity
            pem = pki.format_cert_pem(home.machine_cert).decode()
            sslctx = build_client_sslctx({'ca_data': pem, 'check_hostname': False})
            client = SSLClient(sslctx, window.address, timeout_s=TIMEOUT_S)
            connection = stack.enter_context(client.connect())
            return Speaker(connection, home.machine_id, ben.identity.machine_id, intent)

        yield connect


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    """Give `background(func, *args)`: a Future of what another thread does."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit


class Relay:
    """A network that passes bytes on, and can stop to.

    `loses_answers()` and `loses_requests()` are asked before bytes are passed on; a true answer
    cuts that connection instead.
    """

    def __init__(self, target: Address) -> None:
        self.target = target
        self.connections = 0
        self.loses_answers: Callable[[], bool] = lambda: False
        self.loses_requests: Callable[[], bool] = lambda: False
        self._listener, _ = net.listen(IPv4_LOOPBACK)
        self._listener.settimeout(None)
        self.address: Address = self._listener.getsockname()
        self._threads: list[threading.Thread] = []
        self._socks: list[socket.socket] = []
        self._spawn(self._accept)

    def _spawn(self, func: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=func, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._socks.append(inner)
            try:
                outer = socket.create_connection(self.target)  # type: ignore[arg-type]
            except OSError:
                inner.shutdown(socket.SHUT_RDWR)
                continue
            self._socks.append(outer)
            self._spawn(self._pump, inner, outer, lambda: self.loses_requests())
            self._spawn(self._pump, outer, inner, lambda: self.loses_answers())

    def _pump(
        self, source: socket.socket, sink: socket.socket, is_lost: Callable[[], bool]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if is_lost():
                    break
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()  # it makes the others
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in (self._listener, *self._socks):
            sock.close()


@pytest.fixture
def relay() -> Iterator[Callable[[PairingWindow], Relay]]:
    """Give `relay(window)`: an address from where bytes go to the window and back."""
    with contextlib.ExitStack() as stack:

        def build(window: PairingWindow) -> Relay:
            built = Relay(window.address)
            stack.callback(built.close)
            return built

        yield build
