"""The health service: the whole, one service, and checks that say no."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from degu_rpc import Code, RpcApp, RpcClient, RpcError, Service
from degu_rpc.rpc.health import HEALTH, build_health

if TYPE_CHECKING:
    from collections.abc import Callable


def fail() -> bool:
    raise OSError('the disk is gone')


@pytest.fixture
def check(serve: Callable[..., Any]) -> Callable[..., Any]:
    """Ask with some checks, as a peer."""

    def check(checks: dict[str, Callable[[], bool]], role: str = 'peer', **args: str) -> Any:
        services = [Service('a.v1.A'), Service('b.v1.B')]
        client, _ = serve(
            RpcApp([*services, build_health(services, checks, allow='peer')]), roles=(role,)
        )
        with RpcClient(client, '') as rpc:
            return rpc.call(HEALTH, 'check', args)

    return check


SERVING = {'status': 'serving', 'failing': []}
FAILING = {'status': 'not_serving', 'failing': ['b.v1.B']}


@pytest.mark.parametrize(
    ('checks', 'args', 'report'),
    [
        pytest.param({}, {}, SERVING, id='no checks'),
        pytest.param({'a.v1.A': lambda: True}, {}, SERVING, id='check says yes'),
        pytest.param({'b.v1.B': lambda: False}, {}, FAILING, id='check says no'),
        pytest.param({'b.v1.B': lambda: False}, {'service': 'a.v1.A'}, SERVING, id='the other one'),
        pytest.param({'b.v1.B': lambda: False}, {'service': 'b.v1.B'}, FAILING, id='that one'),
        pytest.param({'b.v1.B': lambda: False}, {'service': ''}, FAILING, id='empty name'),
    ],
)
def test_report(
    check: Callable[..., Any], checks: dict[str, Any], args: dict[str, str], report: Any
) -> None:
    assert check(checks, **args) == report


def test_check_that_raises_says_no_and_the_log_has_why(
    check: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert check({'b.v1.B': fail}) == FAILING
    assert 'the check of b.v1.B failed' in caplog.text
    assert 'the disk is gone' in caplog.text


def test_checks_are_asked_anew_each_time(check: Callable[..., Any]) -> None:
    answers = [True, False]
    checks = {'b.v1.B': lambda: answers.pop(0)}
    assert [check(checks), check(checks)] == [SERVING, FAILING]


@pytest.mark.parametrize(
    ('role', 'service', 'code'),
    [('peer', 'c.v1.C', Code.NOT_FOUND), ('other', '', Code.PERMISSION_DENIED)],
    ids=['unknown service', 'other role'],
)
def test_refusals(check: Callable[..., Any], role: str, service: str, code: Code) -> None:
    with pytest.raises(RpcError) as caught:
        check({}, role, service=service)
    assert caught.value.code is code


def test_check_of_no_service_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'b\.v1\.B'"):
        build_health([Service('a.v1.A')], {'b.v1.B': fail}, allow='peer')
