"""All of a call happens within its time: connecting, further attempts, and calls inside of it."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from degu import net
from degu.client import Client
from degu_rpc import Code, Context, Router, RpcApp, RpcClient, RpcError, Service
from degu_rpc.peers import Dialer, Identity, MachineClient, StaticAddresses, TrustStore
from degu_rpc.rpc.limits import MAX_ATTEMPTS
from degu_rpc.rpc.pool import NotSentError

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator

    from degu.net import Address

A = 'a.B'
TIME_S = 0.3
LATE_S = 1.5
"""What a busy machine may add; a client would wait longer than both together."""


def call(rpc: RpcClient) -> Any:
    return rpc[A].get()


def stream(rpc: RpcClient) -> Any:
    return list(rpc.streams(A).get())


def send_stream(rpc: RpcClient) -> Any:
    return rpc[A].get(items=iter([1]))


each_kind = pytest.mark.parametrize('make_call', [call, stream, send_stream])


@pytest.fixture
def queue(address: Address) -> Iterator[tuple[socket.socket, int]]:
    """Give a listener whose queue is full, and how many are in there."""
    family, _ = net.parse_address(address)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        listener.bind(address)
        listener.listen(0)
        waiting = []
        with contextlib.suppress(TimeoutError):
            while True:
                waiting.append(stack.enter_context(net.connect(listener.getsockname(), 0.1)))
        yield listener, len(waiting)


@pytest.fixture
def silent() -> Iterator[Address]:
    """Give an address where connections are taken, and nobody answers a handshake."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        yield listener.getsockname()


@contextlib.contextmanager
def ending_in_time() -> Iterator[None]:
    """Expect that what is inside ends with the call's time, and that nothing was sent."""
    started = time.monotonic()
    with pytest.raises(NotSentError) as caught:
        yield
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert TIME_S <= time.monotonic() - started < TIME_S + LATE_S


def mount(service: Service) -> Router:
    router = Router()
    router.mount('/rpc', RpcApp([service]))
    return router


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = net.Deadline(20)
    while not condition():
        deadline.require()
        time.sleep(0.005)


@each_kind
def test_call_to_a_server_that_takes_no_connection_ends_with_its_time(
    queue: Any, make_call: Callable[[RpcClient], Any]
) -> None:
    with RpcClient(Client(queue[0].getsockname())) as rpc, ending_in_time():
        make_call(rpc.using(timeout_s=TIME_S))


@each_kind
def test_call_to_a_server_that_answers_no_handshake_ends_with_its_time(
    silent: Address, tmp_path: pathlib.Path, make_call: Callable[[RpcClient], Any]
) -> None:
    alice = Identity.create(tmp_path / 'alice')
    client = MachineClient(TrustStore(alice), silent, alice.machine_id)
    with RpcClient(client) as rpc, ending_in_time():
        make_call(rpc.using(timeout_s=TIME_S))


@each_kind
def test_call_to_a_machine_that_is_not_found_ends_with_its_time(
    silent: Address, tmp_path: pathlib.Path, make_call: Callable[[RpcClient], Any]
) -> None:
    alice = Identity.create(tmp_path / 'alice')
    source = StaticAddresses([f'degu://{alice.machine_id}@{silent[0]}:{silent[1]}'])
    client = Dialer(TrustStore(alice), [source]).client(alice.machine_id)
    with RpcClient(client) as rpc, ending_in_time():
        make_call(rpc.using(timeout_s=TIME_S))


def test_server_that_takes_no_connection_in_the_clients_time_is_unavailable(queue: Any) -> None:
    client = Client(queue[0].getsockname(), connect_timeout_s=0.05)
    started = time.monotonic()
    with RpcClient(client) as rpc, pytest.raises(NotSentError) as caught:
        call(rpc)
    assert caught.value.code is Code.UNAVAILABLE
    assert time.monotonic() - started >= MAX_ATTEMPTS * 0.05


def test_call_inside_another_has_no_time_to_connect_beyond_the_outer_ones(
    queue: Any, serve: Callable[..., Any]
) -> None:
    took = []
    service = Service(A)

    @service.method(allow='peer')
    def get() -> None:
        started = time.monotonic()
        with RpcClient(Client(queue[0].getsockname())) as inner:
            try:
                call(inner)
            finally:
                took.append(time.monotonic() - started)

    client, _ = serve(mount(service))
    with RpcClient(client) as rpc, pytest.raises(RpcError) as caught:
        call(rpc.using(timeout_s=1.0))
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    wait_until(lambda: bool(took))
    assert took[0] < 1.0 + LATE_S


@pytest.mark.parametrize('address', ['unix'], indirect=True)
@each_kind
def test_server_is_told_the_time_that_connecting_has_left(
    queue: Any, make_call: Callable[[RpcClient], Any]
) -> None:
    listener, waiting = queue
    with (
        RpcClient(Client(listener.getsockname())) as rpc,
        ThreadPoolExecutor(1) as thread,
        contextlib.ExitStack() as stack,
    ):
        running = thread.submit(make_call, rpc.using(timeout_s=9))
        time.sleep(0.2)  # so long does connecting take
        *_, sock = (stack.enter_context(listener.accept()[0]) for _ in range(waiting + 1))
        sock.settimeout(9)
        data = b''
        while b'\r\n\r\n' not in data:
            data += sock.recv(65536)
        stack.close()
        with pytest.raises(RpcError):
            running.result(9)
    found = re.search(rb'connect-timeout-ms: (\d+)', data)
    assert found is not None
    assert 0 < int(found[1]) <= 8850


def test_further_attempts_tell_the_time_that_is_left(serve: Callable[..., Any]) -> None:
    told = []
    service = Service(A)

    @service.method(allow='peer', safe=True)
    def get(ctx: Context) -> None:
        told.append(int(ctx.headers['connect-timeout-ms']))
        time.sleep(0.02)
        raise RpcError(Code.UNAVAILABLE, 'later')

    client, _ = serve(mount(service))
    with RpcClient(client) as rpc, pytest.raises(RpcError):
        call(rpc.using(timeout_s=20, repeatable=True))
    assert len(told) == MAX_ATTEMPTS
    assert told[0] <= 20_000
    assert all(later <= earlier - 20 for earlier, later in itertools.pairwise(told))
