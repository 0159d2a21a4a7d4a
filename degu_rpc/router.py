"""An RGI app that routes requests by their path and method, to handlers and to other RGI apps.

    router = Router()
    router.mount('/rpc', RpcApp([service]))      # all that is below

    @router.get('/photos/{name}')                # one name
    def photo(connection, request):
        name = request['params']['name']

    @router.put('/files/{path...}')              # one name or more: 'a/b'
    def upload(connection, request): ...

1. Before anything is served, templates and prefixes go into a tree with one level for each segment.
   What matches a parameter matches a static segment too, so a subtree of the one is merged into the
   other; then one walk down finds whatever can match.
2. A request's path is decoded, segment by segment and once. A parameter takes only what could be a
   name in a directory: valid UTF-8, no '/' or NUL in it, not empty, '.' or '..'. Nothing else
   matches, so `/files/{path...}` cannot be led out of a directory.
3. Of all that match, the one with a static segment earliest wins, then one with a parameter, then
   one that takes the rest, then a mount. Method and order of declaration play no part.
4. A handler is an RGI app: it finds the values of the parameters in `request['params']`, and can be
   wrapped by whatever wraps an RGI app. A mounted app sees its prefix in `script`, the rest as
   `path`.
5. 404 where nothing matches, 405 with `allow` for another method. Neither says what else there is:
   that is for the log (`degu_rpc.router`, at DEBUG), which whoever runs the server can read.
6. A connection goes on only if every app that has an `on_connect` wants it to.

Threads: everything is declared once, before serving; requests only read it.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_to_bytes

from degu.bodies import body_length, close_source
from degu.util import shift_path
from degu.wire import CHUNKED

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from degu.rgi import App, Response

_log = logging.getLogger('degu_rpc.router')

_Handler = TypeVar('_Handler', bound='App')

# Ranks, one for each segment of a template: of two templates that match, the lower one wins.
_STATIC, _NAME, _REST, _MOUNT = range(4)

_match_static = re.compile(r'[^{}%?#\0/]+').fullmatch
_match_parameter = re.compile(r'\{([A-Za-z_][A-Za-z0-9_]*)(\.\.\.)?\}').fullmatch
_match_encoded = re.compile(r'(?:[^%]|%[0-9A-Fa-f]{2})*').fullmatch


class _Target:
    """What one template or prefix leads to."""

    __slots__ = ('app', 'handlers', 'names', 'rank', 'shape', 'template')

    def __init__(self, template: str, app: App | None = None) -> None:
        """Parse a template; or a prefix, of an app to mount. Raises ValueError."""
        self.template = template
        self.app = app
        self.handlers: dict[str, App] = {}  # by method
        shape, self.names = _parse_template(template) if app is None else _parse_prefix(template)
        self.shape = tuple(shape)  # static text, or a rank
        self.rank = tuple(_STATIC if isinstance(part, str) else part for part in shape)

    def __lt__(self, other: _Target) -> bool:
        """Return whether this one wins where both match."""
        return self.rank < other.rank

    def __str__(self) -> str:
        methods = ', '.join(sorted(self.handlers)) if self.app is None else 'mounted'
        return f'{self.template} ({methods})'

    def bind(self, values: list[str]) -> dict[str, str]:
        """Return the parameters by name."""
        return {
            name: '/'.join(values[depth:]) if self.rank[depth] == _REST else values[depth]
            for depth, name in self.names
        }


class _Node:
    """Where a path can be after some of its segments, and what can still match."""

    __slots__ = ('end', 'mount', 'other', 'rest', 'static')

    def __init__(self) -> None:
        self.static: dict[str, _Node] = {}
        self.other: _Node | None = None  # after any other segment that a parameter takes
        self.end: _Target | None = None  # if the path ends here
        self.rest: _Target | None = None  # if it does not
        self.mount: _Target | None = None  # in either case

    def copy(self) -> _Node:
        """Copy the tree from here on, below a parameter, so without mounts."""
        node = _Node()
        node.end, node.rest = self.end, self.rest
        node.static = {segment: child.copy() for segment, child in self.static.items()}
        node.other = self.other and self.other.copy()
        return node

    def insert(self, target: _Target, depth: int = 0) -> None:
        """Add what `target` matches from its segment number `depth` on."""
        kind = target.shape[depth] if depth < len(target.shape) else None
        if kind is None:
            self.end = min(self.end or target, target)
        elif kind == _REST:
            self.rest = min(self.rest or target, target)
        elif kind == _MOUNT:
            self.mount = target
        elif isinstance(kind, str):
            if kind not in self.static:
                self.static[kind] = self.other.copy() if self.other else _Node()
            self.static[kind].insert(target, depth + 1)
        else:
            self.other = self.other or _Node()
            for child in (self.other, *self.static.values()):
                child.insert(target, depth + 1)


class Router:
    """An RGI app made of handlers, each for a method and a template, and of mounted RGI apps."""

    # Set once, by declarations: _root, _targets.

    def __init__(self) -> None:
        self._root = _Node()
        self._targets: dict[tuple[str | int, ...], _Target] = {}  # by shape

    # --- declaring -------------------------------------------------------------------------------

    def get(self, template: str) -> Callable[[_Handler], _Handler]:
        """Declare the handler of GET, and of HEAD, for the paths that match `template`.

        It is called for HEAD too, and may answer as it does to GET: the body is left out, and the
        response says how long it would have been.

        Decorating raises TypeError for a handler that is not callable, ValueError for what is no
        template, for one that differs from another only in the names of its parameters, and where
        there is a handler.
        """
        return self._declare('GET', template)

    def put(self, template: str) -> Callable[[_Handler], _Handler]:
        """Declare the handler of PUT; see get()."""
        return self._declare('PUT', template)

    def post(self, template: str) -> Callable[[_Handler], _Handler]:
        """Declare the handler of POST; see get()."""
        return self._declare('POST', template)

    def delete(self, template: str) -> Callable[[_Handler], _Handler]:
        """Declare the handler of DELETE; see get()."""
        return self._declare('DELETE', template)

    def mount(self, prefix: str, app: App) -> None:
        """Send requests whose path begins with the segments of `prefix` to `app`.

        `prefix` is like `/rpc` or `/v1/files`, static text as it is after decoding; `/` takes
        whatever nothing else does.

        Raises TypeError for an app that is not callable, ValueError for a prefix of another form or
        one that is taken.
        """
        _check_callable('app', app)
        target = _Target(prefix, app)
        taken = self._targets.get(target.shape)
        if taken is not None:
            raise ValueError(f'{prefix!r} is taken by {taken.app!r}, and cannot be {app!r}, too')
        self._add(target)

    def _declare(self, method: str, template: str) -> Callable[[_Handler], _Handler]:
        def declare(handler: _Handler) -> _Handler:
            _check_callable('a handler', handler)
            new = _Target(template)
            target = self._targets.get(new.shape, new)
            if target.template != template:
                raise ValueError(
                    f'{template!r} and {target.template!r} match the same paths; write them alike'
                )
            if method in target.handlers:
                raise ValueError(
                    f'{method} {template!r} is taken by {target.handlers[method]!r}, and cannot '
                    f'be {handler!r}, too'
                )
            if target is new:
                self._add(new)
            target.handlers[method] = handler
            return handler

        return declare

    def _add(self, target: _Target) -> None:
        self._root.insert(target)
        self._targets[target.shape] = target

    # --- serving ---------------------------------------------------------------------------------

    def on_connect(self, sock: socket.socket, connection: dict[str, Any]) -> bool:
        """Return whether every app and handler wants the connection; each is asked once."""
        apps: dict[int, App] = {}
        for target in self._targets.values():
            for app in (target.app, *target.handlers.values()):
                if app is not None:
                    apps[id(app)] = app
        for app in apps.values():
            on_connect = getattr(app, 'on_connect', None)
            if on_connect is not None and on_connect(sock, connection) is not True:
                return False
        return True

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Pass the request on to what its path matches, or answer 404 or 405."""
        target, values = self._match(request['path'])
        if target is None:
            _log.debug(
                'nothing at /%s; there are %s',
                '/'.join(request['path']),
                ', '.join(map(str, self._targets.values())) or 'no routes at all',
            )
            return _refuse(request, 404, 'Not Found', 'nothing is here')
        if target.app is not None:
            for _ in range(len(target.shape) - 1):
                shift_path(request)
            return target.app(connection, request)
        method = request['method']
        handler = target.handlers.get('GET' if method == 'HEAD' else method)
        if handler is None:
            allowed = {'HEAD', *target.handlers} if 'GET' in target.handlers else target.handlers
            allow = ', '.join(sorted(allowed))
            return _refuse(request, 405, 'Method Not Allowed', f'allowed: {allow}', allow=allow)
        request['params'] = target.bind(values)
        response = handler(connection, request)
        return _leave_out_body(response) if method == 'HEAD' else response

    def _match(self, path: list[str]) -> tuple[_Target | None, list[str]]:
        """Return the best of what matches a path, and its segments as far as they were decoded."""
        node: _Node | None = self._root
        rest: _Target | None = None
        mount: _Target | None = None
        values: list[str] = []
        for segment in path:
            if node is not None:
                mount = node.mount or mount
                if node.rest is not None:
                    rest = min(rest or node.rest, node.rest)
            elif rest is None:
                break
            value = _decode(segment)
            if value is None:
                return mount, values  # the only kind that takes what is no name
            values.append(value)
            if node is not None:
                node = node.static.get(value) or node.other
        end = None
        if node is not None:
            mount = node.mount or mount
            end = node.end
        return min(filter(None, (end, rest, mount)), default=None), values


def _parse_template(template: str) -> tuple[list[str | int], list[tuple[int, str]]]:
    """Return the parts of a template, and at which depths its parameters are. Raises ValueError."""
    shape: list[str | int] = []
    names: list[tuple[int, str]] = []
    segments = _split(template)
    for depth, segment in enumerate(segments):
        parameter = _match_parameter(segment)
        if parameter is not None:
            names.append((depth, parameter[1]))
            shape.append(_REST if parameter[2] else _NAME)
        else:
            shape.append(segment)
    if not all(isinstance(part, int) or _is_static(part) for part in shape):
        raise ValueError(
            f'a template is like /, /photos/{{name}} or /files/{{path...}}, not {template!r}; '
            'a segment is a parameter or static text, as it is after decoding'
        )
    if _REST in shape[:-1]:
        raise ValueError(f'what takes the rest must be the last segment, not as in {template!r}')
    if len({name for _, name in names}) < len(names):
        raise ValueError(f'two parameters have one name in {template!r}')
    return shape, names


def _parse_prefix(prefix: str) -> tuple[list[str | int], list[tuple[int, str]]]:
    segments = _split(prefix)
    if not all(map(_is_static, segments)):
        raise ValueError(
            f'prefix must be like /rpc or /v1/files, static text as it is after decoding, '
            f'not {prefix!r}'
        )
    return [*segments, _MOUNT], []


def _split(template: str) -> list[str]:
    """Split into segments; what does not begin with a slash gives a segment that is not static."""
    if template == '/':
        return []
    start, *segments = template.split('/')
    return segments if start == '' and segments else ['']


def _is_static(segment: str) -> bool:
    return _match_static(segment) is not None and segment not in ('.', '..')


def _decode(segment: str) -> str | None:
    """Return the name that a segment stands for, decoded once; None if it is no name."""
    if '%' in segment:
        if _match_encoded(segment) is None:
            return None
        try:
            segment = unquote_to_bytes(segment).decode()
        except UnicodeDecodeError:
            return None
        if '/' in segment or '\0' in segment:
            return None
    return None if segment in ('', '.', '..') else segment


def _check_callable(what: str, app: object) -> None:
    if not callable(app):
        raise TypeError(f'{what} must be callable, not {app!r}')


def _refuse(
    request: dict[str, Any], status: int, reason: str, why: str, **headers: str
) -> Response:
    body = None if request['method'] == 'HEAD' else f'{why}\n'.encode()
    return status, reason, {**headers, 'content-type': 'text/plain; charset=utf-8'}, body


def _leave_out_body(response: Response) -> Response:
    """Make the response to HEAD of one to GET. Source: RFC 9110 §9.3.2."""
    status, reason, headers, body = response
    length = body_length(body)
    close_source(body)
    if length == CHUNKED:
        headers = {**headers, 'transfer-encoding': 'chunked'}
    elif length is not None:
        headers = {**headers, 'content-length': length}
    return status, reason, headers, None
