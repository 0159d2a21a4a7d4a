"""Idempotency keys: a call is made once, and its outcome belongs to who made it."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pytest

from degu_rpc import Code, Context, Router, RpcApp, RpcClient, RpcError, Service
from degu_rpc.peers import Peer, PeerKind
from degu_rpc.rpc import replay as replay_module
from degu_rpc.rpc.limits import REPLAY_AGE_S
from degu_rpc.rpc.replay import Outcome, ReplayStore

if TYPE_CHECKING:
    from collections.abc import Callable

ANN = Peer(PeerKind.LOCAL, None, None, 'uid:1', frozenset({'peer'}), 1, 1)
BEN = ANN._replace(uid=2)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> ReplayStore:
    return ReplayStore(clock)


class Calls:
    """Calls that count themselves; the outcome is how many there were."""

    count = 0

    def __call__(self) -> Outcome:
        self.count += 1
        return Outcome(b'%d' % self.count, None, {})


def run(store: ReplayStore, calls: Any, key: str = 'k', **changed: Any) -> tuple[bytes, bool]:
    args = {'peer': ANN, 'method': 'a/b', 'body': b'{}'} | changed
    outcome, is_replay = store.run(args['peer'], args['method'], key, args['body'], calls)
    return outcome.data, is_replay


# --- the store -----------------------------------------------------------------------------------


def test_second_call_gets_the_outcome_of_the_first(store: ReplayStore) -> None:
    calls = Calls()
    assert run(store, calls) == (b'1', False)
    assert run(store, calls) == (b'1', True)


@pytest.mark.parametrize(
    'changed',
    [{'peer': BEN}, {'peer': ANN._replace(machine_id='M')}, {'method': 'a/c'}, {'key': 'l'}],
    ids=['user', 'machine', 'method', 'key'],
)
def test_another_caller_method_or_key_is_another_call(
    store: ReplayStore, changed: dict[str, Any]
) -> None:
    calls = Calls()
    run(store, calls)
    assert run(store, calls, **changed) == (b'2', False)


def test_roles_and_names_of_a_caller_may_change(store: ReplayStore) -> None:
    calls = Calls()
    run(store, calls)
    renamed = ANN._replace(name='Ann', roles=frozenset({'owner'}))
    assert run(store, calls, peer=renamed) == (b'1', True)


def test_another_body_is_an_invalid_argument(store: ReplayStore) -> None:
    run(store, Calls())
    with pytest.raises(RpcError) as caught:
        run(store, Calls(), body=b'{"a": 1}')
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize('key', ['', 'x' * 129, 'a\n', 'é'])
def test_key_of_another_form_is_an_invalid_argument(store: ReplayStore, key: str) -> None:
    with pytest.raises(RpcError) as caught:
        run(store, Calls(), key)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_call_that_still_runs_is_aborted(store: ReplayStore) -> None:
    def call() -> Outcome:
        with pytest.raises(RpcError) as caught:
            run(store, Calls())
        assert caught.value.code is Code.ABORTED
        return Outcome(b'', None, {})

    assert run(store, call) == (b'', False)


def test_call_that_had_no_outcome_may_be_made_again(store: ReplayStore) -> None:
    def call() -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, call)
    assert run(store, Calls()) == (b'1', False)


@pytest.mark.parametrize('code', [Code.UNAVAILABLE, Code.CANCELED, Code.DEADLINE_EXCEEDED])
def test_call_for_which_nobody_waited_has_no_outcome_to_keep(
    store: ReplayStore, code: Code
) -> None:
    later = Outcome(b'{}', code, {})
    assert store.run(ANN, 'a/b', 'k', b'{}', lambda: later) == (later, False)
    assert run(store, Calls()) == (b'1', False)


def test_outcome_is_kept_for_its_age(store: ReplayStore, clock: Clock) -> None:
    calls = Calls()
    run(store, calls)
    clock.now_s = REPLAY_AGE_S - 1
    assert run(store, calls) == (b'1', True)
    clock.now_s = REPLAY_AGE_S
    assert run(store, calls) == (b'2', False)


def test_age_counts_from_the_end_of_the_call(store: ReplayStore, clock: Clock) -> None:
    calls = Calls()

    def slow() -> Outcome:
        clock.now_s = REPLAY_AGE_S * 2
        return calls()

    run(store, slow)
    assert run(store, calls) == (b'1', True)


def test_call_is_not_slowed_down_by_what_is_kept(store: ReplayStore) -> None:
    calls = Calls()

    def measure() -> float:
        """Return the least time of several calls, which no other process made longer."""
        times = []
        for _ in range(20):
            begun = perf_counter()
            run(store, calls, 'k0')
            times.append(perf_counter() - begun)
        return min(times)

    run(store, calls, 'k0')
    with_one = measure()
    for number in range(1, 10_000):
        run(store, calls, f'k{number}')
    # To look at all of them took 500 times as long.
    assert measure() < 50 * with_one


def test_who_takes_most_loses_the_oldest(
    store: ReplayStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, 'MAX_REPLAY_SIZE', 10 * 1024 + 500)
    calls = Calls()
    run(store, calls, peer=BEN)
    for number in range(50):
        run(store, calls, str(number))
    count = calls.count
    assert run(store, calls, peer=BEN) == (b'1', True)
    assert [run(store, calls, str(number))[1] for number in range(42, 50)] == [True] * 8
    assert calls.count == count
    assert run(store, calls, '0') == (b'%d' % (count + 1), False)


def test_user_with_many_machines_cannot_push_out_what_others_have(
    store: ReplayStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, 'MAX_REPLAY_SIZE', 10 * 1024 + 500)
    calls = Calls()
    for key in 'abc':
        run(store, calls, key)
    for number in range(20):
        machine = Peer(PeerKind.MACHINE, 'U', f'M{number}', 'Eve', ANN.roles, None, None)
        run(store, calls, peer=machine)
    assert all(run(store, calls, key)[1] for key in 'abc')


@pytest.mark.parametrize(
    'outcome',
    [
        Outcome(bytes(6000), None, {}),
        Outcome(bytes(6000), Code.NOT_FOUND, {}),
        Outcome(b'', None, {'x-note': 'x' * 6000}),
    ],
    ids=['result', 'error', 'headers'],
)
def test_large_outcomes_count_by_their_size(
    store: ReplayStore, monkeypatch: pytest.MonkeyPatch, outcome: Outcome
) -> None:
    monkeypatch.setattr(replay_module, 'MAX_REPLAY_SIZE', 10 * 1024)
    run(store, lambda: outcome, 'a')
    run(store, lambda: outcome, 'b')
    assert run(store, Calls(), 'b')[1]
    assert not run(store, Calls(), 'a')[1]


# --- over HTTP -----------------------------------------------------------------------------------


class Account:
    def __init__(self) -> None:
        self.total = 0
        self.runs = 0
        self.entered = threading.Event()
        self.leave = threading.Event()
        self.noticed = threading.Event()
        self.arguments: list[weakref.ref[set[str]]] = []
        service = Service('bank.v1.Bank')

        @service.method(allow='peer')
        def add(ctx: Context, amount: int) -> int:
            self.total += amount
            ctx.response_headers['x-total'] = str(self.total)
            if amount < 0:
                raise RpcError(Code.OUT_OF_RANGE, 'below zero')
            return self.total

        @service.method(allow='peer')
        def fail_with_argument() -> None:
            argument = {'a large argument'}
            self.arguments.append(weakref.ref(argument))
            raise RpcError(Code.NOT_FOUND, 'gone')

        @service.method(allow='peer', idempotent=True)
        def put(amount: int) -> int:
            self.total += amount
            return self.total

        @service.method(allow='peer')
        def block() -> int:
            self.runs += 1
            self.entered.set()
            assert self.leave.wait(20)
            return 1

        @service.method(allow='peer')
        def check(ctx: Context) -> int:
            self.runs += 1
            self.entered.set()
            try:
                while not self.leave.wait(0.01):
                    ctx.check()
            except RpcError:
                self.noticed.set()
                raise
            return 1

        self.app = Router()
        self.app.mount('/rpc', RpcApp([service]))


@pytest.fixture
def account() -> Account:
    return Account()


@pytest.fixture
def post(serve: Callable[..., Any], account: Account) -> Callable[..., Any]:
    client, _ = serve(account.app)

    def ask(method: str, key: str | None = 'k', **args: Any) -> tuple[int, Any, Any]:
        headers = {'content-type': 'application/json'}
        if key is not None:
            headers['idempotency-key'] = key
        with client.connect() as connection:
            response = connection.post(
                f'/rpc/bank.v1.Bank/{method}', headers, json.dumps(args).encode()
            )
            return response.status, json.loads(response.body.read()), response.headers

    return ask


def test_keyed_call_is_made_once_and_a_replay_says_so(post: Any, account: Account) -> None:
    status, result, headers = post('add', amount=5)
    assert (status, result, headers['x-total']) == (200, 5, '5')
    assert 'idempotency-replayed' not in headers
    status, result, headers = post('add', amount=5)
    assert (status, result, headers['x-total']) == (200, 5, '5')
    assert headers['idempotency-replayed'] == 'true'
    assert account.total == 5


def test_error_is_replayed_too(post: Any, account: Account) -> None:
    first, second = post('add', amount=-5), post('add', amount=-5)
    assert first[:2] == second[:2] == (400, {'code': 'out_of_range', 'message': 'below zero'})
    assert second[2]['idempotency-replayed'] == 'true'
    assert account.total == -5


def test_nothing_of_a_call_that_failed_is_kept_alive(post: Any, account: Account) -> None:
    assert post('fail_with_argument')[0] == 404
    assert post('fail_with_argument')[2]['idempotency-replayed'] == 'true'
    gc.collect()
    (argument,) = account.arguments
    assert argument() is None


def test_key_does_nothing_for_a_method_that_is_idempotent(post: Any, account: Account) -> None:
    assert [post('put', amount=1)[1], post('put', amount=1)[1]] == [1, 2]


def test_call_without_a_key_is_made_each_time(post: Any) -> None:
    assert [post('add', None, amount=1)[1], post('add', None, amount=1)[1]] == [1, 2]


def test_other_body_and_running_call_have_their_codes(post: Any, account: Account) -> None:
    post('add', amount=5)
    assert post('add', amount=6)[:2][1]['code'] == 'invalid_argument'
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(post, 'block')
        assert account.entered.wait(20)
        _, error, headers = post('block')
        assert (error['code'], headers['idempotency-running']) == ('aborted', 'true')
        account.leave.set()
        assert running.result(20)[:2] == (200, 1)


@pytest.mark.parametrize('method', ['block', 'check'])
def test_keyed_call_survives_a_connection_that_breaks_under_it(
    serve: Callable[..., Any], account: Account, method: str
) -> None:
    met = threading.Event()
    connections = []

    def app(connection: Any, request: Any) -> Any:
        response = account.app(connection, request)
        if 'idempotency-running' in response[2]:
            met.set()
        return response

    client, _ = serve(app)

    class Breaking:
        """A client whose first connection can be broken by the test."""

        address = client.address

        def connect(self, deadline: Any = None) -> Any:
            connections.append(client.connect(deadline))
            return connections[-1]

    with RpcClient(Breaking()) as rpc, ThreadPoolExecutor(1) as threads:  # type: ignore[arg-type]  # all that is needed
        call = threads.submit(rpc.using(keyed=True).call, 'bank.v1.Bank', method, {})
        assert account.entered.wait(20)
        connections[0].close()
        assert (met if method == 'block' else account.noticed).wait(20)
        account.leave.set()
        assert call.result(20) == 1
    assert account.runs == (1 if method == 'block' else 2)


def test_keyed_client_gives_each_call_a_key_of_its_own(
    serve: Callable[..., Any], account: Account
) -> None:
    client, _ = serve(account.app)
    with RpcClient(client) as rpc:
        bank = rpc.using(keyed=True)['bank.v1.Bank']
        assert [bank.add(amount=1), bank.add(amount=1)] == [1, 2]
