"""degu_rpc.peers.dial.Dialer: an address is a hint, the certificate decides."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from degu import pki
from degu.net import Deadline
from degu.tls import build_server_sslctx
from degu_rpc import (
    Code,
    FileShare,
    Router,
    RpcApp,
    RpcClient,
    RpcError,
    Service,
    fetch,
)
from degu_rpc.errors import UnknownPeerError, UnreachableError
from degu_rpc.peers import (
    Authenticated,
    Dialer,
    Identity,
    MachineClient,
    StaticAddresses,
    TrustStore,
    check_server,
    dial,
)
from degu_rpc.peers.limits import CONNECT_S, MAX_ADDRESSES, MAX_PAUSES, MAX_PORTS, RETRY_ADDRESS_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from degu.net import Address


class Hints:
    """Addresses as somebody on the network says them, and which of them were dropped."""

    name = 'hints'
    is_hint = True

    def __init__(self, *addresses: Address) -> None:
        self.addresses = addresses
        self.forgotten: list[tuple[str, Address]] = []

    def find(self, machine_id: str, timeout_s: float) -> Iterator[Address]:
        yield from self.addresses

    def forget(self, machine_id: str, address: Address) -> None:
        self.forgotten.append((machine_id, address))

    def explain(self, machine_id: str) -> str:
        return 'nobody said anything'


class Broken(Hints):
    name = 'broken'

    def find(self, machine_id: str, timeout_s: float) -> Iterator[Address]:
        raise OSError('cannot look')


@pytest.fixture(scope='module')
def laptop(
    alice: Identity, join: Callable[..., Identity], tmp_path_factory: pytest.TempPathFactory
) -> Identity:
    """Give another machine of the same user."""
    return join(tmp_path_factory.mktemp('laptop') / 'home', alice)


class House:
    """Machines that serve, each counting who came."""

    def __init__(self, serve: Callable[..., Any]) -> None:
        self.serve = serve
        self.callers: list[str] = []

    def open(self, identity: Identity, trusts: Identity) -> Address:
        callers = self.callers

        class App:
            def on_connect(self, sock: socket.socket, connection: dict[str, Any]) -> bool:
                callers.append(identity.machine_id)
                return True

            def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Any:
                return 200, 'OK', {}, identity.machine_id.encode()

        file = str(identity.machine_file)
        ca = pki.format_cert_pem(trusts.user_cert).decode()
        sslctx = build_server_sslctx({'cert_file': file, 'key_file': file, 'ca_data': ca})
        return self.serve(App(), ('127.0.0.1', 0), sslctx).address


@pytest.fixture
def house(serve: Callable[..., Any]) -> House:
    return House(serve)


@pytest.fixture
def dead() -> Iterator[Address]:
    """Give an address where nobody listens."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        yield sock.getsockname()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def static(identity: Identity, *addresses: Any) -> StaticAddresses:
    return StaticAddresses(f'degu://{identity.machine_id}@{ip}:{port}' for ip, port in addresses)


def test_a_machine_is_found_by_its_id_alone(
    house: House, alice: Identity, laptop: Identity
) -> None:
    address = house.open(laptop, laptop)
    dialer = Dialer(TrustStore(alice), [Hints(), static(laptop, address)])
    with dialer.connect(laptop.machine_id) as connection:
        check_server(connection.peer_certificate, laptop.machine_id)
        body = connection.get('/').body
        assert body is not None
        assert body.read() == laptop.machine_id.encode()


def test_who_claims_to_be_our_peer_is_dropped_and_the_true_one_reached(
    house: House, alice: Identity, laptop: Identity, bob: Identity
) -> None:
    friend = house.open(alice, alice)  # trusted, but another machine
    stranger = house.open(bob, alice)
    true = house.open(laptop, laptop)
    hints, more = Hints(friend, stranger), static(laptop, true)
    dialer = Dialer(TrustStore(alice), [hints, more])
    with dialer.connect(laptop.machine_id) as connection:
        check_server(connection.peer_certificate, laptop.machine_id)
    assert hints.forgotten == [(laptop.machine_id, friend), (laptop.machine_id, stranger)]


def test_an_error_lists_what_was_tried_and_why_it_failed(
    house: House, alice: Identity, laptop: Identity, dead: Address
) -> None:
    friend = house.open(alice, alice)
    dialer = Dialer(
        TrustStore(alice),
        [Hints(friend), static(laptop, dead), static(alice, friend), Broken()],
    )
    with pytest.raises(UnreachableError) as info:
        dialer.connect(laptop.machine_id)
    assert info.value.machine_id == laptop.machine_id
    wrong, refused, none, broken = info.value.attempts
    assert (wrong.source, wrong.address) == ('hints', friend)
    assert f'expected {laptop.machine_id}, found {alice.machine_id}' in wrong.reason
    assert refused[:3] == ('static address', dead, 'Connection refused')
    assert none == ('static address', None, 'none was given for it', None)
    assert broken[:3] == ('broken', None, 'cannot look')
    assert isinstance(wrong.error, pki.CertificateError)
    assert isinstance(refused.error, ConnectionRefusedError)
    assert type(broken.error) is OSError
    for attempt in info.value.attempts:
        assert str(attempt) in str(info.value)
    assert isinstance(info.value, ConnectionError)


def test_without_sources_an_error_says_so(alice: Identity) -> None:
    with pytest.raises(UnreachableError, match='nowhere to look') as info:
        Dialer(TrustStore(alice), []).connect(alice.machine_id)
    assert info.value.attempts == ()


@pytest.mark.parametrize('machine_id', ['', 'a' * 47, 'A' * 48])
def test_what_is_no_machine_id_is_looked_for_nowhere(alice: Identity, machine_id: str) -> None:
    with pytest.raises(ValueError, match='is 48 base32 characters'):
        Dialer(TrustStore(alice), [Broken()]).connect(machine_id)


def test_a_hint_that_failed_is_not_tried_again_at_once(
    house: House, alice: Identity, laptop: Identity
) -> None:
    friend = house.open(alice, alice)
    dialer = Dialer(TrustStore(alice), [Hints(friend), Hints(friend)])
    for _ in range(3):
        with pytest.raises(UnreachableError) as info:
            dialer.connect(laptop.machine_id)
    (attempt,) = info.value.attempts
    assert f'failed lately and is tried again in {RETRY_ADDRESS_S:.0f} s' in attempt.reason
    with dialer.connect(alice.machine_id) as connection:
        # The pause is of that id at that address.
        connection.get('/')
    wait_until(lambda: len(house.callers) >= 2)
    assert house.callers == [alice.machine_id] * 2


def test_what_a_person_gave_is_tried_every_time(
    alice: Identity, laptop: Identity, dead: Address
) -> None:
    dialer = Dialer(TrustStore(alice), [static(laptop, dead)])
    for _ in range(2):
        with pytest.raises(UnreachableError) as info:
            dialer.connect(laptop.machine_id)
        assert [attempt.reason for attempt in info.value.attempts] == ['Connection refused']


def test_the_address_that_worked_last_is_tried_first(
    house: House,
    alice: Identity,
    laptop: Identity,
    dead: Address,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true = house.open(laptop, laptop)
    source = static(laptop, dead, true)
    hints = Hints()
    dialer = Dialer(TrustStore(alice), [hints, source])
    with dialer.connect(laptop.machine_id):
        pass
    # Whoever is asked now would lead us elsewhere first.
    monkeypatch.setattr(dial, 'STAGGER_S', 30)
    silent = socket.create_server(('127.0.0.1', 0))
    with silent:
        hints.addresses = (silent.getsockname(),)
        with dialer.connect(laptop.machine_id, timeout_s=30):
            pass
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_an_address_that_worked_and_fails_is_no_longer_preferred(
    alice: Identity, laptop: Identity, serve: Callable[..., Any]
) -> None:
    server = serve(lambda c, r: (200, 'OK', {}, None), sslctx=TrustStore(laptop).server_sslctx)
    dialer = Dialer(TrustStore(alice), [static(laptop, server.address)])
    with dialer.connect(laptop.machine_id):
        pass
    server.close()
    found = []
    for _ in range(2):
        with pytest.raises(UnreachableError) as info:
            dialer.connect(laptop.machine_id)
        found.append([attempt.source for attempt in info.value.attempts])
    assert found == [['where it was last'], ['static address']]


def test_a_silent_address_cannot_hold_us_longer_than_we_wait(
    alice: Identity, laptop: Identity, dead: Address
) -> None:
    with socket.create_server(('127.0.0.1', 0)) as silent:
        address = silent.getsockname()
        dialer = Dialer(TrustStore(alice), [static(laptop, address, dead)])
        started = time.monotonic()
        with pytest.raises(UnreachableError) as info:
            dialer.connect(laptop.machine_id, timeout_s=0.2)
        assert time.monotonic() - started < CONNECT_S
    first, second = info.value.attempts
    assert (first.address, 'timed out' in first.reason) == (address, True)
    assert second == ('static address', dead, 'not tried within 0.2 s', None)


@pytest.mark.parametrize('has_client', [False, True])
def test_a_silent_address_cannot_hold_us_longer_than_to_a_deadline(
    alice: Identity, laptop: Identity, has_client: bool
) -> None:
    with socket.create_server(('127.0.0.1', 0)) as silent:
        dialer = Dialer(TrustStore(alice), [static(laptop, silent.getsockname())])
        connect = partial(dialer.connect, laptop.machine_id)
        if has_client:
            connect = dialer.client(laptop.machine_id).connect
        started = time.monotonic()
        with pytest.raises(UnreachableError):
            connect(deadline=Deadline(0.3))
        assert 0.3 <= time.monotonic() - started < CONNECT_S


def test_a_deadline_leaves_the_time_that_a_dialer_is_given(
    alice: Identity, laptop: Identity
) -> None:
    with socket.create_server(('127.0.0.1', 0)) as silent:
        dialer = Dialer(TrustStore(alice), [static(laptop, silent.getsockname())])
        started = time.monotonic()
        with pytest.raises(UnreachableError):
            dialer.connect(laptop.machine_id, 0.3, Deadline(60))
        assert 0.3 <= time.monotonic() - started < CONNECT_S


def test_silent_addresses_do_not_keep_us_from_the_next_and_leave_nothing(
    house: House, alice: Identity, laptop: Identity
) -> None:
    # As on a network where somebody announces our peer's id at addresses that do not answer.
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(('127.0.0.1', 0))) for _ in range(5)]
        source = static(
            laptop, *(sock.getsockname() for sock in silent), house.open(laptop, laptop)
        )
        started = time.monotonic()
        with Dialer(TrustStore(alice), [source]).connect(laptop.machine_id, timeout_s=60):
            assert time.monotonic() - started < 2 * CONNECT_S
            assert not [t for t in threading.enumerate() if t.name == 'degu-dial']
        for sock in silent:
            connection, _ = sock.accept()
            with connection:
                connection.settimeout(30)
                while connection.recv(65536):
                    pass


def test_a_full_queue_does_not_keep_us_from_the_next(
    house: House, alice: Identity, laptop: Identity
) -> None:
    # Nobody accepts, and no more are queued: the kernel drops what would connect.
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(('127.0.0.1', 0), backlog=0))
        stack.enter_context(socket.create_connection(full.getsockname()))
        hints = Hints(full.getsockname(), house.open(laptop, laptop))
        started = time.monotonic()
        with Dialer(TrustStore(alice), [hints]).connect(laptop.machine_id, timeout_s=60):
            assert time.monotonic() - started < CONNECT_S


def test_hints_cannot_have_us_scan_a_host_or_a_network(
    alice: Identity, laptop: Identity, dead: Address
) -> None:
    trust = TrustStore(alice)
    one_host = Hints(*(('127.0.0.1', port) for port in range(1, 1000)))
    network = Hints(*((f'127.0.0.{host}', dead[1]) for host in range(1, 255)))
    for hints, count in ((one_host, MAX_PORTS), (network, MAX_ADDRESSES)):
        with pytest.raises(UnreachableError) as info:
            Dialer(trust, [hints]).connect(laptop.machine_id)
        tried = [attempt for attempt in info.value.attempts if attempt.error is not None]
        assert len(tried) == count


def test_a_source_that_lies_keeps_no_other_from_being_asked(
    house: House, alice: Identity, laptop: Identity, dead: Address
) -> None:
    lies = Hints(*((f'127.0.1.{host}', dead[1]) for host in range(1, 255)))
    sources = [lies, Hints(house.open(laptop, laptop))]
    with Dialer(TrustStore(alice), sources).connect(laptop.machine_id):
        pass


def test_hints_about_one_machine_keep_us_from_no_other(
    house: House, alice: Identity, laptop: Identity, dead: Address
) -> None:
    hints = Hints()
    dialer = Dialer(TrustStore(alice), [hints])
    for net in range(1 + MAX_PAUSES // MAX_ADDRESSES):
        hints.addresses = tuple((f'127.1.{net}.{host}', dead[1]) for host in range(1, 255))
        with pytest.raises(UnreachableError):
            dialer.connect('x' * 48)
    hints.addresses = (house.open(laptop, laptop),)
    with dialer.connect(laptop.machine_id):
        pass
    with pytest.raises(UnreachableError, match='is tried again in'):
        dialer.connect('x' * 48)


def test_a_hint_that_is_no_address_keeps_us_from_no_other(
    house: House, alice: Identity, laptop: Identity
) -> None:
    odd: list[Any] = [('127.0.0.1', 10**6), ('a', 'b', 'c'), ('a' * 70 + '.é', 1), None, 7]
    hints = Hints(*odd)
    dialer = Dialer(TrustStore(alice), [hints])
    with pytest.raises(UnreachableError) as info:
        dialer.connect(laptop.machine_id)
    kinds = (ValueError, ValueError, UnicodeError, TypeError)
    for attempt, kind in zip(info.value.attempts, kinds, strict=True):
        assert isinstance(attempt.error, kind)
    hints.addresses = (*odd, house.open(laptop, laptop))
    with dialer.connect(laptop.machine_id):
        pass


def test_an_error_that_nobody_expects_is_noted_and_logged_and_the_next_address_tried(
    house: House, alice: Identity, laptop: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    # What a server's certificate can do to whoever reads it is seldom an OSError.
    addresses = [house.open(laptop, laptop) for _ in range(2)]
    dialer = Dialer(TrustStore(alice), [static(laptop, *addresses)], base_headers={'A': 'b'})
    with pytest.raises(UnreachableError) as info:
        dialer.connect(laptop.machine_id)
    assert [type(attempt.error) for attempt in info.value.attempts] == [ValueError, ValueError]
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


def test_a_change_of_trust_counts_at_the_next_connect(
    house: House, bob: Identity, tmp_path: Any
) -> None:
    carol = Identity.create(tmp_path / 'carol')
    trust = TrustStore(carol)
    address = house.open(bob, carol)
    dialer = Dialer(trust, [static(bob, address)])
    with pytest.raises(UnreachableError, match='issued by nobody who is trusted here'):
        dialer.connect(bob.machine_id)
    trust.add(bob.user_cert, 'Bob', [])
    with dialer.connect(bob.machine_id) as connection:
        assert connection.get('/').status == 200


def test_what_is_no_store_or_source_is_told(alice: Identity) -> None:
    trust, source = TrustStore(alice), StaticAddresses([])
    for use, reason in (
        (lambda: Dialer(alice, [source]), 'trust must be a TrustStore'),
        (lambda: MachineClient(alice, ('127.0.0.1', 1), alice.machine_id), 'trust must be'),
        (lambda: Dialer(trust, source), 'sources is a list'),
        (lambda: Dialer(trust, 'degu://x'), 'sources is a list'),
        (lambda: Dialer(trust, ['degu://x']), 'a source is such as'),
        (lambda: StaticAddresses('degu://x'), 'urls is a list of addresses, not one text'),
    ):
        with pytest.raises(TypeError, match=reason):
            use()


def test_a_machine_that_is_denied_is_not_called_either(
    house: House, bob: Identity, tmp_path: Any
) -> None:
    carol = Identity.create(tmp_path / 'carol')
    trust = TrustStore(carol)
    trust.add(bob.user_cert, 'Bob', [])
    address = house.open(bob, carol)
    MachineClient(trust, address, bob.machine_id).connect().close()
    trust.deny(bob.user_id, bob.machine_id)
    with pytest.raises(UnknownPeerError, match='is denied here'):
        MachineClient(trust, address, bob.machine_id).connect()
    with pytest.raises(UnreachableError, match='is denied here'):
        Dialer(trust, [static(bob, address)]).connect(bob.machine_id)


# --- calls and files by machine id ---------------------------------------------------------------


def test_a_machine_is_called_and_its_files_are_fetched_by_its_id_alone(
    serve: Callable[..., Any], alice: Identity, laptop: Identity, tmp_path: Path
) -> None:
    service = Service('echo.v1.Echo')

    @service.method(allow='peer')
    def echo(text: str) -> str:
        return text

    (tmp_path / 'share').mkdir()
    (tmp_path / 'share' / 'note').write_text('from the laptop')
    trust = TrustStore(laptop)
    with FileShare(tmp_path / 'share', allow='peer') as share:
        router = Router()
        router.mount('/rpc', RpcApp([service]))
        router.mount('/files', share)
        server = serve(Authenticated(router, trust), sslctx=trust.server_sslctx)
        dialer = Dialer(TrustStore(alice), [static(laptop, server.address)])
        client = dialer.client(laptop.machine_id)
        with RpcClient(client) as rpc:
            assert rpc['echo.v1.Echo'].echo(text='hello') == 'hello'
        fetch(client, '/files', 'note', tmp_path / 'here')
    assert (tmp_path / 'here' / 'note').read_text() == 'from the laptop'
    assert laptop.machine_id in repr(client)
    with pytest.raises(ValueError, match='is 48 base32 characters'):
        Dialer(TrustStore(alice), []).client('laptop')


@pytest.mark.parametrize(
    ('where', 'code'),
    [
        (['friend'], Code.UNAUTHENTICATED),
        (['dead'], Code.UNAVAILABLE),
        (['friend', 'dead'], Code.UNAVAILABLE),
        ([], Code.UNAVAILABLE),
    ],
    ids=['another machine', 'nobody', 'another machine and nobody', 'nowhere'],
)
def test_a_call_says_whether_to_try_again_may_help(
    house: House, alice: Identity, laptop: Identity, dead: Address, where: list[str], code: Code
) -> None:
    addresses = {'friend': house.open(alice, alice), 'dead': dead}
    source = static(laptop, *(addresses[name] for name in where))
    client = Dialer(TrustStore(alice), [source]).client(laptop.machine_id)
    with RpcClient(client) as rpc, pytest.raises(RpcError, match=laptop.machine_id) as info:
        rpc['echo.v1.Echo'].echo()
    assert info.value.code is code


def test_a_machine_that_is_denied_is_unauthenticated_for_a_call(
    house: House, bob: Identity, tmp_path: Path
) -> None:
    carol = Identity.create(tmp_path / 'carol')
    trust = TrustStore(carol)
    trust.add(bob.user_cert, 'Bob', [])
    trust.deny(bob.user_id, bob.machine_id)
    source = static(bob, house.open(bob, carol))
    client = Dialer(trust, [source]).client(bob.machine_id)
    with RpcClient(client) as rpc, pytest.raises(RpcError, match='is denied here') as info:
        rpc['echo.v1.Echo'].echo()
    assert info.value.code is Code.UNAUTHENTICATED
