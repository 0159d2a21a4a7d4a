"""What a client makes again, when, and how it lives through a server's restart."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu.client import Client
from degu.server import Server
from degu_rpc import Code, Router, RpcApp, RpcClient, RpcError, Service
from degu_rpc.errors import NotSentError, StillRunsError
from degu_rpc.rpc.client import repeatable
from degu_rpc.rpc.limits import BACKOFF_S, MAX_ATTEMPTS
from degu_rpc.rpc.retry import plan_retry

if TYPE_CHECKING:
    import pathlib

GONE = RpcError(Code.UNAVAILABLE, 'gone')
NOT_SENT = NotSentError(Code.UNAVAILABLE, 'refused')


@pytest.mark.parametrize(
    ('error', 'is_repeatable', 'is_tried_again'),
    [
        (NOT_SENT, False, True),
        (NOT_SENT, True, True),
        (GONE, False, False),
        (GONE, True, True),
        (NotSentError(Code.UNAUTHENTICATED, 'another machine'), True, False),
        (NotSentError(Code.DEADLINE_EXCEEDED, 'no connection'), True, False),
        *((RpcError(c, ''), True, False) for c in Code if c is not Code.UNAVAILABLE),
    ],
)
def test_only_what_does_no_harm_and_may_help_is_made_again(
    error: RpcError, is_repeatable: bool, is_tried_again: bool
) -> None:
    assert (plan_retry(error, 1, is_repeatable, 10, 0.5) is not None) is is_tried_again


def test_call_that_still_runs_is_asked_for_until_the_time_is_over() -> None:
    running = StillRunsError(Code.ABORTED, '')
    longest_s = BACKOFF_S * 2 ** (MAX_ATTEMPTS - 1)
    assert plan_retry(running, 1, True, 10, 1.0) == BACKOFF_S
    assert plan_retry(running, 1000, True, 10, 1.0) == longest_s
    assert plan_retry(running, 1000, True, longest_s, 1.0) is None


def test_attempts_come_to_an_end() -> None:
    planned = [plan_retry(GONE, n, True, 10, 1.0) is not None for n in range(1, MAX_ATTEMPTS + 1)]
    assert planned == [True] * (MAX_ATTEMPTS - 1) + [False]


@given(st.integers(1, MAX_ATTEMPTS - 1), st.floats(0, 1))
def test_pause_is_a_random_part_of_one_that_doubles(attempt: int, fraction: float) -> None:
    pause_s = plan_retry(GONE, attempt, True, 10, fraction)
    assert pause_s == fraction * BACKOFF_S * 2 ** (attempt - 1)


@given(st.integers(1, MAX_ATTEMPTS - 1), st.floats(0, 1), st.floats(0, 1))
def test_pause_ends_within_the_calls_time(attempt: int, fraction: float, left_s: float) -> None:
    pause_s = plan_retry(GONE, attempt, True, left_s, fraction)
    assert pause_s is None or pause_s < left_s


# --- restarts ------------------------------------------------------------------------------------


def build_app(calls: list[str]) -> Any:
    service = Service('a.B')

    @service.method(allow='peer', safe=True)
    def get() -> int:
        calls.append('get')
        return len(calls)

    @service.method(allow='peer')
    def busy() -> None:
        calls.append('busy')
        raise RpcError(Code.UNAVAILABLE, 'later')

    router = Router()
    router.mount('/rpc', RpcApp([service]))
    return router


def test_pool_survives_a_restart_without_a_failed_call(tmp_path: pathlib.Path, serve: Any) -> None:
    path = str(tmp_path / 'mortal')
    calls: list[str] = []
    _, app = serve(build_app(calls))
    with RpcClient(Client(path, timeout_s=20)) as rpc, ThreadPoolExecutor(4) as threads:
        safe = rpc.using(repeatable=True)['a.B']
        for _ in range(5):
            with Server(path, app):
                running = [threads.submit(safe.get) for _ in range(8)]
                assert all(call.result(20) for call in running)
    assert len(calls) == 40


def test_restarts_in_the_middle_of_calls_fail_none_of_the_safe_ones(
    tmp_path: pathlib.Path, serve: Any
) -> None:
    path = str(tmp_path / 'mortal')
    calls: list[str] = []
    _, app = serve(build_app(calls))
    is_over = threading.Event()

    def call(rpc: RpcClient) -> int:
        count = 0
        safe = rpc.using(repeatable=True)['a.B']
        while not is_over.is_set():
            assert safe.get() > 0
            count += 1
        return count

    with RpcClient(Client(path, timeout_s=20)) as rpc, ThreadPoolExecutor(4) as threads:
        with Server(path, app):
            running = [threads.submit(call, rpc) for _ in range(4)]
            wait_for_calls(calls, 100)
        for _ in range(5):
            with Server(path, app):
                wait_for_calls(calls, len(calls) + 100)
        with Server(path, app):
            is_over.set()
            assert sum(one.result(20) for one in running) >= 600


def wait_for_calls(calls: list[str], count: int) -> None:
    deadline = time.monotonic() + 20
    while len(calls) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_idle_connection_to_a_server_that_restarted_is_noticed_before_a_call(
    tmp_path: pathlib.Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('degu_rpc.rpc.pool.LOOK_AFTER_S', 0.0)
    path = str(tmp_path / 'mortal')
    calls: list[str] = []
    _, app = serve(build_app(calls))
    with RpcClient(Client(path)) as rpc:
        for _ in range(3):
            with Server(path, app):
                rpc['a.B'].get()  # not repeatable
    assert calls == ['get'] * 3


def test_call_while_the_server_is_away_waits_for_it(tmp_path: pathlib.Path, serve: Any) -> None:
    path = str(tmp_path / 'late')
    _, app = serve(build_app([]))
    server = []

    def start() -> None:
        server.append(Server(path, app).__enter__())

    timer = threading.Timer(0.02, start)
    with RpcClient(Client(path)) as rpc:
        timer.start()
        # Pauses are random, so one call may give up before the server is there.
        for _ in range(20):
            with contextlib.suppress(RpcError):
                assert rpc['a.B'].get() >= 1
                break
        else:
            pytest.fail('the server was never found')
    timer.join()
    server[0].__exit__(None, None, None)


def test_unavailable_of_a_method_is_made_again_only_if_that_does_no_harm(serve: Any) -> None:
    calls: list[str] = []
    client, _ = serve(build_app(calls))

    class Api:
        @repeatable
        def busy(self) -> None: ...

    with RpcClient(client) as rpc:
        for call, count in (
            (rpc['a.B'].busy, 1),
            (rpc.using(repeatable=True)['a.B'].busy, MAX_ATTEMPTS),
            (rpc.bind(Api, 'a.B').busy, MAX_ATTEMPTS),
            (rpc.using(keyed=True)['a.B'].busy, MAX_ATTEMPTS),
        ):
            calls.clear()
            with pytest.raises(RpcError, match='later'):
                call()
            assert len(calls) == count
