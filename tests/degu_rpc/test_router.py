"""Routing by prefix, and the composition of on_connect."""

from __future__ import annotations

from typing import Any

import pytest

from degu.client import Client
from degu.rgi import Validator
from degu.server import Server
from degu_rpc import Router


class Named:
    """An RGI app that says who it is and what it saw; counts whom on_connect was asked for."""

    def __init__(self, name: str, verdict: Any = True) -> None:
        self.name = name
        self.verdict = verdict
        self.asked = 0

    def on_connect(self, sock: Any, connection: dict[str, Any]) -> Any:
        self.asked += 1
        return self.verdict

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Any:
        seen = f'{self.name} {request["script"]} {request["path"]}'
        return 200, 'OK', {}, seen.encode()


def route(router: Router, *path: str) -> Any:
    request = {'method': 'GET', 'script': [], 'path': list(path), 'query': ''}
    status, _, _, body = router({}, request)
    return body.decode() if status == 200 else status  # type: ignore[union-attr]  # bytes, see Named


def test_mounted_app_sees_its_prefix_in_script() -> None:
    router = Router()
    router.mount('/rpc', Named('rpc'))
    assert route(router, 'rpc', 's', 'm') == "rpc ['rpc'] ['s', 'm']"
    assert route(router, 'rpc') == "rpc ['rpc'] []"


def test_longest_prefix_wins_whatever_the_order() -> None:
    for prefixes in (['/a', '/a/b', '/'], ['/', '/a/b', '/a']):
        router = Router()
        for prefix in prefixes:
            router.mount(prefix, Named(prefix))
        assert route(router, 'a', 'b', 'c') == "/a/b ['a', 'b'] ['c']"
        assert route(router, 'a', 'c') == "/a ['a'] ['c']"
        assert route(router, 'a') == "/a ['a'] []"
        assert route(router, 'b') == "/ [] ['b']"
        assert route(router) == '/ [] []'


def test_prefix_is_compared_by_whole_segments_with_case() -> None:
    router = Router()
    router.mount('/rpc', Named('rpc'))
    assert [route(router, name) for name in ('rpcx', 'rp', 'RPC')] == [404, 404, 404]


def test_nothing_mounted_is_404() -> None:
    router = Router()
    assert route(router) == 404
    router.mount('/a/b', Named('b'))
    assert route(router, 'a') == 404
    assert route(router, 'x', 'a', 'b') == 404


@pytest.mark.parametrize('prefix', ['', 'rpc', '//', '/a/', '/a//b'])
def test_prefix_of_another_form_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match='prefix must be like'):
        Router().mount(prefix, Named('x'))


def test_prefix_that_is_taken_is_refused() -> None:
    router = Router()
    router.mount('/a', Named('x'))
    with pytest.raises(ValueError, match='taken'):
        router.mount('/a', Named('y'))


def test_app_that_is_not_callable_is_refused() -> None:
    with pytest.raises(TypeError, match='callable'):
        Router().mount('/a', 'app')  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize('verdict', [False, None, 1, 'yes'])
def test_one_app_that_does_not_say_true_rejects_the_connection(verdict: object) -> None:
    router = Router()
    router.mount('/a', Named('a'))
    router.mount('/b', Named('b', verdict))
    assert router.on_connect(None, {}) is False  # type: ignore[arg-type]  # no app here looks at it


def test_app_mounted_twice_is_asked_once() -> None:
    app = Named('a')
    router = Router()
    router.mount('/a', app)
    router.mount('/b', app)
    assert router.on_connect(None, {}) is True  # type: ignore[arg-type]  # no app here looks at it
    assert app.asked == 1


def test_router_serves_over_a_socket_and_fulfils_the_contract() -> None:
    router = Router()
    router.mount('/a', Validator(Named('a')))
    router.mount('/plain', lambda connection, request: (204, 'No Content', {}, None))
    with (
        Server(('127.0.0.1', 0), Validator(router)) as server,
        Client(server.address).connect() as connection,
    ):
        response = connection.get('/a/b')
        assert response.body is not None
        assert response.body.read() == b"a ['a'] ['b']"
        assert connection.get('/plain').status == 204
        assert connection.get('/none').status == 404
