"""Routing by prefix, template and method, and the composition of on_connect."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu.bodies import Output
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


# --- templates -----------------------------------------------------------------------------------


def answer(connection: dict[str, Any], request: dict[str, Any]) -> Any:
    return 200, 'OK', {}, repr(request['params']).encode()


def build_router(*templates: str, method: str = 'get') -> Router:
    """Declare a handler for each, which says which it is and what it was given."""
    router = Router()
    for template in templates:

        def handler(connection: Any, request: Any, template: str = template) -> Any:
            return 200, 'OK', {}, f'{template} {request["params"]}'.encode()

        assert getattr(router, method)(template)(handler) is handler
    return router


def ask(router: Router, method: str, path: str) -> Any:
    segments = path[1:].split('/') if path != '/' else []
    request = {'method': method, 'script': [], 'path': segments, 'query': '', 'body': None}
    return router({}, request)


def find(router: Router, path: str) -> Any:
    status, _, _, body = ask(router, 'GET', path)
    return body.decode() if status == 200 else status


@pytest.mark.parametrize(
    ('template', 'path', 'params'),
    [
        ('/', '/', {}),
        ('/a', '/a', {}),
        ('/photos/{name}', '/photos/a.raw', {'name': 'a.raw'}),
        ('/{user}/photos/{name}', '/x/photos/y', {'user': 'x', 'name': 'y'}),
        ('/files/{path...}', '/files/a', {'path': 'a'}),
        ('/files/{path...}', '/files/a/b/c', {'path': 'a/b/c'}),
        ('/{all...}', '/a/b', {'all': 'a/b'}),
        ('/a b/ä', '/a%20b/%C3%A4', {}),
        ('/{name}', '/a%20b', {'name': 'a b'}),
        ('/{name}', '/%2541', {'name': '%41'}),
        ('/{name}', '/a+b', {'name': 'a+b'}),
        ('/{name}', '/%E2%82%AC', {'name': '€'}),
        ('/{path...}', '/a%20b/%2541', {'path': 'a b/%41'}),
        ('/{name}', '/...', {'name': '...'}),
    ],
)
def test_parameters_are_decoded_once_and_given_to_the_handler(
    template: str, path: str, params: dict[str, str]
) -> None:
    assert find(build_router(template), path) == f'{template} {params}'


@pytest.mark.parametrize(
    ('template', 'path'),
    [
        ('/a', '/'),
        ('/a', '/a/'),
        ('/a', '/A'),
        ('/{name}', '/'),
        ('/photos/{name}', '/photos'),
        ('/photos/{name}', '/photos/'),
        ('/photos/{name}', '/photos/a/b'),
        ('/photos/{name}', '/photos/a/'),
        ('/files/{path...}', '/files'),
        ('/files/{path...}', '/files/'),
        ('/files/{path...}', '/files/a/'),
    ],
)
def test_a_path_of_another_form_matches_nothing(template: str, path: str) -> None:
    assert find(build_router(template), path) == 404


@pytest.mark.parametrize('template', ['/files/{name}', '/files/{path...}', '/files/x/{path...}'])
@pytest.mark.parametrize(
    'segment',
    ['..', '.', '%2e%2E', '.%2e', 'a%2fb', '%2F', 'a%00', '%ff', '%ED%A0%80', '%C0%AF', '%', '%4g'],
)
def test_what_is_no_name_is_given_to_no_handler(template: str, segment: str) -> None:
    router = build_router(template)
    assert find(router, f'/files/{segment}') == 404
    assert find(router, f'/files/x/{segment}') == 404
    assert find(router, f'/files/x/y/z/{segment}/a') == 404


def test_what_is_no_name_still_reaches_a_mounted_app_as_it_was_sent() -> None:
    router = build_router('/a/{path...}', '/b')
    router.mount('/a', Named('mounted'))
    assert find(router, '/a/x') == "/a/{path...} {'path': 'x'}"
    assert find(router, '/a/x/..%2f') == "mounted ['a'] ['x', '..%2f']"
    assert find(router, '/b/%2e') == 404


def test_static_text_matches_however_it_was_encoded() -> None:
    router = build_router('/users/admin', '/users/{name}')
    router.mount('/rpc', Named('rpc'))
    router.mount('/', Named('rest'))
    assert find(router, '/users/%61dmin') == '/users/admin {}'
    assert find(router, '/%72pc/a%20b') == "rpc ['%72pc'] ['a%20b']"


@pytest.mark.parametrize(
    ('templates', 'path', 'found'),
    [
        (['/a/{x}', '/{x}/a'], '/a/a', '/a/{x}'),
        (['/a/b', '/{x}/c'], '/a/c', '/{x}/c'),
        (['/a/{r...}', '/{x}/b'], '/a/b', '/a/{r...}'),
        (['/a/{r...}', '/{x}/{r...}'], '/a/b', '/a/{r...}'),
        (['/{x}/b', '/{r...}'], '/a/b', '/{x}/b'),
        (['/{x}/b', '/{r...}'], '/a/c', '/{r...}'),
        (['/a/{x}/c', '/a/{r...}', '/{x}/b/{r...}'], '/a/b/d', '/a/{r...}'),
        (['/a/{x}/c', '/{x}/b/{r...}'], '/a/b/d', '/{x}/b/{r...}'),
    ],
)
def test_the_earliest_static_segment_wins_whatever_the_order(
    templates: list[str], path: str, found: str
) -> None:
    for order in itertools.permutations(templates):
        assert find(build_router(*order), path).startswith(f'{found} {{')


def test_a_static_prefix_wins_over_a_parameter_and_a_handler_over_the_mount_it_is_in() -> None:
    router = build_router('/{x}/b', '/a/c')
    router.mount('/a', Named('mounted'))
    assert find(router, '/a/b') == "mounted ['a'] ['b']"
    assert find(router, '/a/c') == '/a/c {}'
    assert find(router, '/z/b') == "/{x}/b {'x': 'z'}"


SEGMENTS = st.sampled_from(['a', 'b', 'c'])
TEMPLATES = st.builds(
    lambda parts, rest: '/' + '/'.join([*parts, *rest]),
    st.lists(st.sampled_from(['a', 'b', '{}', '{}']), max_size=3),
    st.sampled_from([[], [], ['{}...']]),
)
# A segment that is no name, and names beside it.
PATHS = st.lists(st.sampled_from(['a', 'b', 'c', '%61', '..', '']), max_size=5)


def name_parameters(template: str) -> str:
    """Give each parameter a name of its own."""
    parts = [
        part.replace('{}...', f'{{p{depth}...}}').replace('{}', f'{{p{depth}}}')
        for depth, part in enumerate(template.split('/'))
    ]
    return '/'.join(parts)


def match_naively(template: str, path: list[str]) -> tuple[int, ...] | None:
    """Return how well a template or prefix (ending in `*`) matches, lower is better."""
    rank = []
    values = ['a' if segment == '%61' else segment for segment in path]
    parts = [part for part in template.split('/') if part]
    for part in parts:
        if part == '*':
            return (*rank, 3)
        if part.endswith('...}'):
            return (*rank, 2) if values and not {'..', ''} & set(values) else None
        if not values or values[0] in ('..', ''):
            return None
        value = values.pop(0)
        if part.startswith('{'):
            rank.append(1)
        elif part == value:
            rank.append(0)
        else:
            return None
    return None if values else tuple(rank)


@given(
    templates=st.lists(TEMPLATES.map(name_parameters), max_size=8, unique=True),
    prefixes=st.lists(st.lists(SEGMENTS, max_size=3).map('/'.join), max_size=3, unique=True),
    paths=st.lists(PATHS, min_size=1, max_size=10),
)
def test_matching_agrees_with_trying_every_template(
    templates: list[str], prefixes: list[str], paths: list[list[str]]
) -> None:
    router = build_router(*templates)
    for prefix in prefixes:
        router.mount(f'/{prefix}', Named(f'/{prefix}/*'))
    for path in paths:
        ranks = {t: match_naively(t, path) for t in [*templates, *(f'/{p}/*' for p in prefixes)]}
        matching = {template: rank for template, rank in ranks.items() if rank is not None}
        status, _, _, body = router(
            {}, {'method': 'GET', 'script': [], 'path': list(path), 'query': '', 'body': None}
        )
        if matching:
            best = min(matching, key=matching.__getitem__)
            assert body.decode().startswith(f'{best} '), (path, matching)
        else:
            assert status == 404


@pytest.mark.parametrize(
    'template',
    [
        '', 'a', '//', '/a/', '/a//b', '/{', '/{}', '/{a', '/a}', '/x{a}', '/{a}x', '/{a}{b}',
        '/{1a}', '/{a-b}', '/{a....}', '/{a..}', '/a%20b', '/a?b', '/a#b', '/.', '/a/..', '/a\0',
    ],
)  # fmt: skip
def test_what_is_no_template_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match='a template is like'):
        build_router(template)
    with pytest.raises(ValueError, match='prefix must be like'):
        Router().mount(template, answer)


@pytest.mark.parametrize(
    ('template', 'reason'),
    [
        ('/{a...}/b', 'must be the last segment'),
        ('/{a...}/{b...}', 'must be the last segment'),
        ('/{a}/{a}', 'two parameters have one name'),
        ('/{a}/{a...}', 'two parameters have one name'),
    ],
)
def test_a_template_that_cannot_be_matched_is_refused(template: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build_router(template)


@pytest.mark.parametrize('prefix', ['/{a}', '/a/{b...}'])
def test_a_prefix_has_no_parameters(prefix: str) -> None:
    with pytest.raises(ValueError, match='prefix must be like'):
        Router().mount(prefix, answer)


def test_templates_that_match_the_same_paths_are_refused_with_both_named() -> None:
    router = build_router('/photos/{name}')
    with pytest.raises(ValueError, match=r"'/photos/\{id\}' and '/photos/\{name\}' match the same"):
        router.delete('/photos/{id}')(answer)
    assert ask(router, 'DELETE', '/photos/a')[0] == 405


def test_a_second_handler_is_refused_with_both_named() -> None:
    router = Router()
    router.get('/a')(Named('first'))
    with pytest.raises(ValueError, match=r"(?s)GET '/a' is taken by .*Named.* be <function answer"):
        router.get('/a')(answer)


def test_a_handler_that_is_not_callable_is_refused() -> None:
    with pytest.raises(TypeError, match="a handler must be callable, not 'x'"):
        Router().get('/a')('x')  # type: ignore[type-var]  # what is tested


def test_a_template_that_was_refused_leaves_nothing() -> None:
    router = Router()
    with pytest.raises(TypeError):
        router.get('/a')(None)  # type: ignore[type-var]  # what is tested
    assert find(router, '/a') == 404


# --- methods -------------------------------------------------------------------------------------


def test_each_method_has_its_handler() -> None:
    router = Router()
    for method in ('get', 'put', 'post', 'delete'):
        getattr(router, method)('/{x}')(lambda c, r: (200, 'OK', {}, r['method'].encode()))
    for method in ('GET', 'PUT', 'POST', 'DELETE'):
        assert ask(router, method, '/a')[3] == method.encode()


@pytest.mark.parametrize(
    ('methods', 'asked', 'allow'),
    [
        (['get'], 'POST', 'GET, HEAD'),
        (['post', 'get', 'delete'], 'PUT', 'DELETE, GET, HEAD, POST'),
        (['put'], 'GET', 'PUT'),
        (['put'], 'HEAD', 'PUT'),
    ],
)
def test_another_method_is_405_with_those_that_are_allowed(
    methods: list[str], asked: str, allow: str
) -> None:
    router = Router()
    for method in methods:
        getattr(router, method)('/a')(answer)
    status, _, headers, body = ask(router, asked, '/a')
    assert (status, headers['allow']) == (405, allow)
    assert body == (None if asked == 'HEAD' else f'allowed: {allow}\n'.encode())


def test_a_path_with_a_template_of_its_own_has_only_its_methods() -> None:
    router = Router()
    router.get('/photos/{name}')(answer)
    router.post('/photos/new')(answer)
    assert ask(router, 'GET', '/photos/new')[2]['allow'] == 'POST'


def test_an_answer_of_404_or_405_says_nothing_of_other_paths_but_the_log_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    router = build_router('/secret/{x}', '/open')
    router.mount('/mine', answer)
    for method, path in (('GET', '/none'), ('PUT', '/open')):
        response = repr(ask(router, method, path))
        assert 'secret' not in response
        assert 'mine' not in response
    assert caplog.text == ''
    with caplog.at_level(logging.DEBUG, 'degu_rpc.router'):
        ask(router, 'GET', '/none/x')
    assert caplog.messages == [
        'nothing at /none/x; there are /secret/{x} (GET), /open (GET), /mine (mounted)'
    ]


# --- HEAD ----------------------------------------------------------------------------------------


def answer_in(kind: str) -> Any:
    """Return a handler that answers GET and HEAD alike."""

    def handler(connection: dict[str, Any], request: dict[str, Any]) -> Any:
        if kind == 'none':
            return 204, 'No Content', {}, None
        if kind == 'output':
            return 200, 'OK', {'x': 'y'}, connection['rgi.Output']([b'abc'], 3)
        if kind == 'chunked':
            return 200, 'OK', {'x': 'y'}, connection['rgi.ChunkedOutput']([b'abc', b''])
        if kind == 'error':
            return 404, 'Not Found', {}, b'no photo'
        return 200, 'OK', {'x': 'y'}, b'abc'

    return handler


@pytest.mark.parametrize('kind', ['none', 'bytes', 'output', 'chunked', 'error'])
def test_head_is_answered_as_get_without_the_body(kind: str) -> None:
    router = Router()
    router.get('/a')(answer_in(kind))
    with (
        Server(('127.0.0.1', 0), Validator(router)) as server,
        Client(server.address).connect() as connection,
    ):
        got = connection.get('/a')
        if got.body is not None:
            assert got.body.read() in (b'abc', b'no photo')
        for _ in range(2):  # the connection stays in step
            head = connection.head('/a')
            assert head.body is None
            assert (head.status, head.headers) == (got.status, got.headers)


def test_head_reaches_a_handler_as_head_which_may_answer_it_itself() -> None:
    router = Router()

    @router.get('/{x}')
    def measure(connection: dict[str, Any], request: dict[str, Any]) -> Any:
        assert request['method'] == 'HEAD'
        return 200, 'OK', {'content-length': 17}, None

    assert ask(router, 'HEAD', '/a') == (200, 'OK', {'content-length': 17}, None)


def test_the_source_of_a_body_left_out_is_closed() -> None:
    class Source(list[bytes]):
        closed = False

        def close(self) -> None:
            self.closed = True

    source = Source([b'abc'])
    router = Router()
    router.get('/a')(lambda connection, request: (200, 'OK', {}, Output(source, 3)))
    assert ask(router, 'HEAD', '/a')[2:] == ({'content-length': 3}, None)
    assert source.closed


# --- composition ---------------------------------------------------------------------------------


def test_handler_with_an_on_connect_is_asked_once_like_a_mounted_app() -> None:
    app = Named('a')
    router = Router()
    router.get('/a')(app)
    router.put('/{x}')(app)
    router.mount('/m', app)
    assert router.on_connect(None, {}) is True  # type: ignore[arg-type]  # no app here looks at it
    assert app.asked == 1
    router.post('/p')(Named('p', verdict=False))
    assert router.on_connect(None, {}) is False  # type: ignore[arg-type]  # as above


def test_a_router_in_a_router_shifts_the_prefix_and_composes_on_connect() -> None:
    inner = build_router('/{name}')
    inner.mount('/deep', Named('deep', verdict=False))
    outer = Router()
    outer.mount('/in', inner)
    assert find(outer, '/in/x') == "/{name} {'name': 'x'}"
    assert find(outer, '/in/deep/y') == "deep ['in', 'deep'] ['y']"
    assert find(outer, '/x') == 404
    assert outer.on_connect(None, {}) is False  # type: ignore[arg-type]  # no app here looks at it


def test_whatever_wraps_an_app_wraps_a_handler() -> None:
    router = Router()
    router.get('/{name}')(Validator(answer))
    with (
        Server(('127.0.0.1', 0), Validator(router)) as server,
        Client(server.address).connect() as connection,
    ):
        assert connection.get('/a%20b').body.read() == b"{'name': 'a b'}"  # type: ignore[union-attr]  # it has one


def test_a_refused_upload_leaves_the_connection_in_step() -> None:
    router = build_router('/a')
    with (
        Server(('127.0.0.1', 0), Validator(router)) as server,
        Client(server.address).connect() as connection,
    ):
        for path, status in (('/a', 405), ('/none', 404)):
            response = connection.put(path, None, b'x' * 1000)
            assert response.status == status
            response.body.read()  # type: ignore[union-attr]  # it has one
        assert connection.get('/a').body.read() == b'/a {}'  # type: ignore[union-attr]  # as above
