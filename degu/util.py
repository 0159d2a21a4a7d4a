"""Small pure helpers for applications: routing by path, rebuilding a URI, passing a body on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from degu.bodies import ChunkedInput, ChunkedOutput, Input, Output

if TYPE_CHECKING:
    from collections.abc import Mapping


def shift_path(request: dict[str, Any]) -> str | None:
    """Move the first segment of `path` to the end of `script` and return it; None if there is none.

    >>> request = {'script': ['a'], 'path': ['b', 'c']}
    >>> shift_path(request)
    'b'
    >>> request
    {'script': ['a', 'b'], 'path': ['c']}
    """
    if not request['path']:
        return None
    segment: str = request['path'].pop(0)
    request['script'].append(segment)
    return segment


def relative_uri(request: Mapping[str, Any]) -> str:
    """Rebuild the URI of a request from where it was routed to: `path` and `query`.

    >>> relative_uri({'script': ['db'], 'path': ['doc', 'a%20b'], 'query': 'rev=1'})
    '/doc/a%20b?rev=1'
    """
    return _join(request['path'], request['query'])


def absolute_uri(request: Mapping[str, Any]) -> str:
    """Rebuild the URI of a request exactly as it was sent: `script`, `path` and `query`.

    >>> absolute_uri({'script': ['db'], 'path': ['doc', 'a%20b'], 'query': 'rev=1'})
    '/db/doc/a%20b?rev=1'
    """
    return _join(request['script'] + request['path'], request['query'])


def _join(segments: list[str], query: str) -> str:
    path = '/' + '/'.join(segments)
    return f'{path}?{query}' if query else path


def output_from_input(
    connection: Mapping[str, Any], body: Input | ChunkedInput | None
) -> Output | ChunkedOutput | None:
    """Wrap a body that arrived, so that it can be sent on.

    Raises TypeError for what is no such body.
    """
    if body is None:
        return None
    if isinstance(body, ChunkedInput):
        chunked: ChunkedOutput = connection['rgi.ChunkedOutput'](body)
        return chunked
    if isinstance(body, Input):
        output: Output = connection['rgi.Output'](body, body.remaining)
        return output
    raise TypeError(f'body must be None, Input or ChunkedInput, not {type(body).__name__}')
