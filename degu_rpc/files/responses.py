"""How the RGI apps of the files wing answer: with a stream of records, or with a refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from degu_rpc.files.records import choose_media, hash_question, stream_records

if TYPE_CHECKING:
    from collections.abc import Iterable

    import msgspec

_REASONS = {
    400: 'Bad Request',
    403: 'Forbidden',
    404: 'Not Found',
    405: 'Method Not Allowed',
    409: 'Conflict',
    413: 'Content Too Large',
    416: 'Range Not Satisfiable',
    422: 'Unprocessable Content',
    429: 'Too Many Requests',
    503: 'Service Unavailable',
    507: 'Insufficient Storage',
}


class Response(NamedTuple):
    """What an app returns to the server."""

    status: int
    reason: str
    headers: dict[str, Any]
    body: Any


class RefusalError(Exception):
    """A request that is answered with an error. Never leaves an app."""

    def __init__(self, status: int, why: str, headers: dict[str, Any] | None = None) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.headers = headers or {}


def refuse(refusal: RefusalError) -> Response:
    """Build the answer to a request that is refused."""
    headers = {**refusal.headers, 'content-type': 'text/plain; charset=utf-8'}
    body = f'{refusal.why}\n'.encode('ascii', 'backslashreplace')
    return Response(refusal.status, _REASONS[refusal.status], headers, body)


def without_body(response: Response) -> Response:
    """Return what HEAD answers: the headers, with the length that GET's body would have."""
    body = response.body
    if body is None or getattr(body, 'chunked', False):
        return response._replace(body=None)
    length = len(body) if isinstance(body, bytes) else body.content_length
    return response._replace(headers={**response.headers, 'content-length': length}, body=None)


def respond(
    connection: dict[str, Any],
    accept: str,
    records: Iterable[msgspec.Struct | None],
    question: bytes | None = None,
) -> Response:
    """Build an answer that is a stream of records, in the form that an `accept` header asks for.

    It says to which question it is the answer, if that is given.
    """
    media = choose_media(accept)
    headers = {'content-type': media.value}
    if question is not None:
        headers['x-question'] = hash_question(question)
    body = connection['rgi.ChunkedOutput'](stream_records(records, media))
    return Response(200, 'OK', headers, body)
