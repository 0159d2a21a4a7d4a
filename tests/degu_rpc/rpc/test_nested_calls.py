"""What a caller learns where a call fails that the method made: nothing of another server."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from degu.client import Client
from degu_rpc import Code, Context, RpcApp, RpcClient, RpcError, Service
from degu_rpc.errors import CallError
from degu_rpc.rpc.metrics import Metrics
from degu_rpc.rpc.protocol import format_timeout

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable


class Shop:
    """A service in front, whose methods call a service behind it."""

    def __init__(self, behind: RpcClient) -> None:
        self.ledger: list[int] = []
        self.metrics = Metrics()
        self.service = service = Service('shop.v1.Shop', [self.metrics])

        @service.method(allow='peer')
        def pay(amount: int) -> int:
            self.ledger.append(amount)
            notified: int = behind['bank.v1.Bank'].notify(amount=amount)
            return notified

        @service.method(allow='peer')
        def rows() -> Iterator[int]:
            self.ledger.append(0)
            yield 1
            yield from behind.stream('bank.v1.Bank', 'rows', {})

        @service.method(allow='peer')
        def translate(amount: int) -> int:
            try:
                return pay(amount)
            except CallError as error:
                raise RpcError(Code.UNAVAILABLE, 'closed today') from error

        @service.method(allow='peer')
        def wait() -> int:
            waited: int = behind.using(timeout_s=20)['bank.v1.Bank'].wait()
            return waited

        @service.method(allow='peer')
        def give_up() -> int:
            waited: int = behind.using(timeout_s=0.05)['bank.v1.Bank'].wait()
            return waited


def _build_bank(code: Code) -> Service:
    bank = Service('bank.v1.Bank')

    @bank.method(allow='peer')
    def notify(amount: int) -> int:
        raise RpcError(code, 'the vault at 10.0.0.7 is shut')

    @bank.method(allow='peer')
    def rows() -> Iterator[int]:
        yield 2
        raise RpcError(code, 'the vault at 10.0.0.7 is shut')

    @bank.method(allow='peer')
    def wait(ctx: Context) -> int:
        for _ in itertools.count():
            ctx.check()
        raise AssertionError

    return bank


@pytest.fixture
def build(serve: Callable[..., Any]) -> Iterator[Callable[..., tuple[RpcClient, Shop]]]:
    """Serve a shop in front of what an address, or a new bank, answers."""
    with contextlib.ExitStack() as stack:

        def start(code: Code = Code.UNAVAILABLE, behind: Any = None) -> tuple[RpcClient, Shop]:
            if behind is None:
                behind, _ = serve(RpcApp([_build_bank(code)]))
            shop = Shop(stack.enter_context(RpcClient(behind, '')))
            client, _ = serve(RpcApp([shop.service]))
            return stack.enter_context(RpcClient(client, '')), shop

        yield start


def test_keyed_call_is_made_once_though_the_server_behind_is_down(
    build: Any, tmp_path: pathlib.Path
) -> None:
    client, shop = build(behind=Client(str(tmp_path / 'nobody')))
    with pytest.raises(RpcError) as caught:
        client.using(keyed=True)['shop.v1.Shop'].pay(amount=100)
    assert caught.value.code is Code.INTERNAL
    assert shop.ledger == [100]
    assert 'nobody' not in caught.value.message


@pytest.mark.parametrize('code', Code)
def test_what_another_server_answered_is_not_the_method_s_own_word(
    build: Any, caplog: pytest.LogCaptureFixture, code: Code
) -> None:
    client, shop = build(code)
    with caplog.at_level(logging.ERROR), pytest.raises(RpcError) as caught:
        client.using(repeatable=True)['shop.v1.Shop'].pay(amount=100)
    assert caught.value.code is Code.INTERNAL
    assert 'vault' not in caught.value.message
    assert shop.ledger == [100]
    assert 'the vault at 10.0.0.7 is shut' in caplog.text
    assert 'method="shop.v1.Shop/pay",code="internal"} 1' in shop.metrics.format()


def test_error_of_a_nested_stream_is_not_the_method_s_own_word(build: Any) -> None:
    client, shop = build()
    with client.stream('shop.v1.Shop', 'rows', {}) as rows:
        assert [next(rows), next(rows)] == [1, 2]
        with pytest.raises(RpcError, match='internal error, reference'):
            next(rows)
    assert 'method="shop.v1.Shop/rows",code="internal"} 1' in shop.metrics.format()


def test_what_the_method_says_itself_is_its_own_word(build: Any) -> None:
    client, _ = build()
    with pytest.raises(RpcError, match='unavailable: closed today'):
        client['shop.v1.Shop'].translate(amount=100)


def test_time_that_is_over_for_both_is_the_caller_s(build: Any) -> None:
    client, shop = build()
    # The caller itself waits longer, to see what the server says.
    headers = {'content-type': 'application/json', 'connect-timeout-ms': '100'}
    connection = client._pool.client.connect()
    response = connection.request('POST', '/shop.v1.Shop/wait', headers, b'{}')
    assert (response.status, b'the time of 0.1 s is over' in response.body.read()) == (504, True)
    connection.close()
    assert 'method="shop.v1.Shop/wait",code="deadline_exceeded"} 1' in shop.metrics.format()


def test_time_that_is_over_for_the_nested_call_alone_is_internal(build: Any) -> None:
    client, _ = build()
    with pytest.raises(RpcError, match='internal error, reference'):
        client['shop.v1.Shop'].give_up()


@pytest.mark.parametrize(('left_s', 'sent'), [(0.0, '1'), (0.0101, '11'), (30.0, '30000')])
def test_time_is_never_sent_shorter_than_it_is(left_s: float, sent: str) -> None:
    assert format_timeout(left_s) == sent
