"""An RGI app that routes to RGI apps by the beginning of the path.

1. `mount()` says which app has which prefix, before anything is served.
2. A request goes to the app with the longest prefix of its path, which sees the rest as `path` and
   the prefix at the end of `script`. Where nothing is mounted the answer is 404.
3. A connection goes on only if every mounted app that has an `on_connect` wants it to.

Threads: what is mounted is set once, before serving; requests only read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from degu.util import shift_path

if TYPE_CHECKING:
    import socket

    from degu.rgi import App, Response


class Router:
    """An RGI app made of RGI apps, each mounted at a prefix of the path."""

    # Set once, by mount(): _apps, _lengths.

    def __init__(self) -> None:
        self._apps: dict[tuple[str, ...], App] = {}
        self._lengths: list[int] = []  # of the prefixes, longest first

    def mount(self, prefix: str, app: App) -> None:
        """Send requests whose path begins with the segments of `prefix` to `app`.

        `prefix` is like `/rpc` or `/v1/files`, percent-encoded as it is sent; `/` takes whatever no
        other prefix does.

        Raises TypeError for an app that is not callable, ValueError for a prefix of another form or
        one that is taken.
        """
        if not callable(app):
            raise TypeError(f'app must be callable, not {app!r}')
        segments = tuple(prefix[1:].split('/')) if prefix != '/' else ()
        if not prefix.startswith('/') or '' in segments:
            raise ValueError(f'prefix must be like /rpc or /v1/files, not {prefix!r}')
        if segments in self._apps:
            raise ValueError(f'{prefix!r} is taken by {self._apps[segments]!r}')
        self._apps[segments] = app
        self._lengths = sorted({len(taken) for taken in self._apps}, reverse=True)

    def on_connect(self, sock: socket.socket, connection: dict[str, Any]) -> bool:
        """Return whether every mounted app wants the connection; each is asked once."""
        for app in {id(app): app for app in self._apps.values()}.values():
            on_connect = getattr(app, 'on_connect', None)
            if on_connect is not None and on_connect(sock, connection) is not True:
                return False
        return True

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Pass the request on to the app with the longest prefix, or answer 404."""
        path = request['path']
        for length in self._lengths:
            app = self._apps.get(tuple(path[:length]))
            if app is not None:
                for _ in range(length):
                    shift_path(request)
                return app(connection, request)
        return 404, 'Not Found', {}, None
