"""The Connect protocol as both sides speak it: content types, times, messages, errors. No socket.

    content-type        a call without a stream             a call with one
    JSON                application/json                    application/connect+json
    msgpack             application/msgpack                 application/connect+msgpack

1. A message travels as a body of its own, or in an envelope where there is a stream.
2. An error travels as JSON: as the body of a response with the HTTP status of its code, or in the
   message at the end of a stream.
3. Either may be gzip: a body then has a `content-encoding`, an envelope a flag that refers to
   `connect-content-encoding`.

Source: Connect protocol, https://connectrpc.com/docs/protocol.
"""

from __future__ import annotations

import functools
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from degu.bodies import ChunkedInput
from degu.errors import BodyTooLargeError
from degu_rpc.errors import CallError, Code, CodecError, Fault, RpcError
from degu_rpc.rpc.codec import CODECS, JSON
from degu_rpc.rpc.compression import (
    ENCODINGS,
    GZIP,
    IDENTITY,
    accepts_gzip,
    compress,
    decompress,
)
from degu_rpc.rpc.envelope import COMPRESSED, format_envelope
from degu_rpc.rpc.limits import (
    MAX_ERROR_LENGTH,
    MAX_ERROR_SIZE,
    MAX_MESSAGE_SIZE,
    MAX_TIMEOUT_DIGITS,
    MIN_COMPRESSED_SIZE,
)
from degu_rpc.text import escape_controls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from degu.bodies import Input
    from degu_rpc.rpc.codec import Codec

PROTOCOL_VERSION = '1'
TIMEOUT = 'connect-timeout-ms'
IDEMPOTENCY_KEY = 'idempotency-key'
REPLAYED = 'idempotency-replayed'
RUNNING = 'idempotency-running'
"""Headers of an answer, `true` where they are there."""

STREAM_TYPES = {f'application/connect+{codec.name}': codec for codec in CODECS}
UNARY_TYPES = {codec.content_type: codec for codec in CODECS}
_CODECS_OF_TYPES = UNARY_TYPES | {
    # JSON has no such parameter and is UTF-8 without it, but many HTTP clients add it.
    f'{JSON.content_type}; charset=utf-8': JSON,
    f'{JSON.content_type};charset=utf-8': JSON,
}

_match_timeout = re.compile(rf'[0-9]{{1,{MAX_TIMEOUT_DIGITS}}}').fullmatch

# Source: Connect protocol, "HTTP to Error Code".
_INFERRED_CODES = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}


_OTHER_KINDS = (
    (
        STREAM_TYPES.keys(),
        'has a stream: use client.streams(...) where it returns one, pass an iterator '
        '(iter([...])) where it takes one, or annotate Iterator[T] in the class for bind()',
    ),
    (
        UNARY_TYPES.keys(),
        'has no stream: use client[...], pass a list in place of an iterator, or annotate list[T] '
        'in the class for bind()',
    ),
)

UNARY_ENCODING = ('content-encoding', 'accept-encoding')
STREAM_ENCODING = ('connect-content-encoding', 'connect-accept-encoding')
"""The headers of an Encoding: what is used, and what is taken."""


class Encoding(NamedTuple):
    """What a peer says of compression: whether it uses gzip, and whether it takes gzip."""

    uses_gzip: bool
    takes_gzip: bool


_PLAIN = Encoding(False, False)


def parse_encoding(headers: Mapping[str, Any], names: tuple[str, str]) -> Encoding:
    """Read what the headers `names` say.

    Raises RpcError (`unimplemented`) for another encoding than those we know.
    """
    if names[0] not in headers and names[1] not in headers:
        return _PLAIN
    used = headers.get(names[0], IDENTITY)
    if used not in (GZIP, IDENTITY):
        raise RpcError(Code.UNIMPLEMENTED, f'{names[0]} must be one of these: {ENCODINGS}')
    return Encoding(used == GZIP, accepts_gzip(headers.get(names[1]), used))


def check_version(headers: Mapping[str, Any]) -> None:
    """Raise RpcError (`invalid_argument`) for another version of the protocol than ours."""
    if headers.get('connect-protocol-version', PROTOCOL_VERSION) != PROTOCOL_VERSION:
        raise RpcError(
            Code.INVALID_ARGUMENT, f'connect-protocol-version must be {PROTOCOL_VERSION}'
        )


def parse_timeout(headers: Mapping[str, Any]) -> float | None:
    """Return how many seconds the caller gives the call, None if it does not say.

    Raises RpcError (`invalid_argument`). Source: Connect protocol, Timeout-Milliseconds.
    """
    text = headers.get(TIMEOUT)
    return None if text is None else _parse_timeout(text)


@functools.lru_cache(64)  # most callers give all their calls the same time
def _parse_timeout(text: str) -> float:
    if not _match_timeout(text):
        raise RpcError(
            Code.INVALID_ARGUMENT, f'{TIMEOUT} must be up to {MAX_TIMEOUT_DIGITS} digits'
        )
    return int(text) / 1000


def format_timeout(timeout_s: float) -> str:
    """Return a time as the header says it: never less, or the server would end before its caller.

    A method whose nested call takes all the time that is left can so tell whose time is over.
    """
    return str(min(max(math.ceil(timeout_s * 1000), 1), 10**MAX_TIMEOUT_DIGITS - 1))


def find_stream_codec(content_type: str | None) -> Codec | None:
    """Return the codec of the content-type header of a stream, None for any other."""
    return None if content_type is None else STREAM_TYPES.get(content_type.lower())


def find_codec(content_type: str | None) -> Codec | None:
    """Return the codec of a content-type header, None for any other.

    Media types are compared without case. Source: RFC 9110 §8.3.1.
    """
    if content_type is None:
        return None
    return _CODECS_OF_TYPES.get(content_type) or _CODECS_OF_TYPES.get(content_type.lower())


def read_message(body: Input | ChunkedInput | None) -> bytes:
    """Read a request's or response's body, one message.

    Raises RpcError (`resource_exhausted`) for one above MAX_MESSAGE_SIZE, which is left unread, and
    what reading a body raises.
    """
    if body is None:
        return b''
    if isinstance(body, ChunkedInput):
        try:
            return body.read(MAX_MESSAGE_SIZE)
        except BodyTooLargeError:
            raise RpcError(Code.RESOURCE_EXHAUSTED, _too_large('the message')) from None
    if body.remaining > MAX_MESSAGE_SIZE:
        raise RpcError(Code.RESOURCE_EXHAUSTED, _too_large('the message'))
    return body.read()


def _too_large(what: str) -> str:
    return f'{what} is larger than {MAX_MESSAGE_SIZE} bytes'


def pack_message(message: bytes, flags: int, uses_gzip: bool) -> bytes:
    """Put a message of a stream into its envelope, compressed where that may be worth it."""
    if uses_gzip and len(message) >= MIN_COMPRESSED_SIZE:
        return format_envelope(compress(message), flags | COMPRESSED)
    return format_envelope(message, flags)


def unpack_message(message: bytes, flags: int, uses_gzip: bool) -> bytes:
    """Return the message of an envelope, as it was before it was compressed.

    Raises CodecError, or RpcError (`resource_exhausted`) for one above MAX_MESSAGE_SIZE.
    """
    if not flags & COMPRESSED:
        return message
    if not uses_gzip:
        raise CodecError(Fault('$', 'a message is compressed and no header says how'))
    return decompress(message, MAX_MESSAGE_SIZE)


def format_error(error: RpcError) -> bytes:
    """Return the JSON of an error.

    Source: Connect protocol, "Error and EndStreamResponse".

    Raises CodecError for details that cannot travel, or are too large for that.
    """
    message = error.message[:MAX_ERROR_LENGTH]  # it often tells what was asked for
    # It may hold a file name that is not UTF-8.
    message = message.encode('utf-8', 'backslashreplace').decode()
    content: dict[str, Any] = {'code': error.code.value, 'message': message}
    if error.details:
        content['details'] = error.details
    data = JSON.encode(content)
    if len(data) > MAX_ERROR_SIZE:
        raise CodecError(Fault('$.details', f'the error is larger than {MAX_ERROR_SIZE} bytes'))
    return data


def format_end(error: bytes | None, metadata: Mapping[str, str]) -> bytes:
    """Return the JSON of the message that ends a stream; `error` is what format_error() made."""
    parts = [] if error is None else [b'"error":' + error]
    if metadata:
        values = {name: [value] for name, value in metadata.items()}
        parts.append(b'"metadata":' + JSON.encode(values))
    return b'{%b}' % b','.join(parts)


def parse_end(data: bytes) -> tuple[CallError | None, dict[str, str]]:
    """Read the message that ends a stream: the error, if it is one, and its metadata.

    Several values of one name are joined, as HTTP does, and control characters escaped. Raises
    CodecError for what is no such message.
    """
    content = JSON.decode(data)
    if not isinstance(content, dict):
        raise CodecError(Fault('$', 'the end of a stream is no map'))
    metadata = content.get('metadata', {})
    if not isinstance(metadata, dict) or not all(map(_is_list_of_text, metadata.values())):
        raise CodecError(Fault('$.metadata', 'expected a map of lists of text'))
    found: dict[str, list[str]] = {}
    for name, values in metadata.items():
        found.setdefault(escape_controls(name).lower(), []).extend(map(escape_controls, values))
    joined = {name: ', '.join(values) for name, values in found.items()}
    if 'error' not in content:
        return None, joined
    error = _parse_content(content['error'])
    return error or CallError(
        Code.UNKNOWN, 'the stream ended with an error of another form'
    ), joined


def parse_error(
    status: int, content_type: str | None, data: bytes, uri: str, accept_post: object = None
) -> CallError:
    """Build the error that a response other than 200 means, whatever is in it.

    Where it is no error in JSON the code is inferred from the HTTP status, and `uri` is named. A
    415 whose `accept-post` has only our types for the other kind of call says what to do.
    Control characters in its message are escaped: messages are printed in terminals.
    """
    try:
        content = JSON.decode(data) if find_codec(content_type) is JSON else None
    except CodecError:
        content = None
    error = _parse_content(content)
    if error is not None:
        return error
    if status == 415 and isinstance(accept_post, str):
        for types, why in _OTHER_KINDS:
            if types >= set(accept_post.split(', ')):
                return CallError(Code.UNIMPLEMENTED, f'{uri} {why}')
    advice = '; are the prefix and the name of the service right?' if status == 404 else ''
    return CallError(
        _INFERRED_CODES.get(status, Code.UNKNOWN),
        f'the server answered {uri} with HTTP status {status}{advice}',
    )


def _parse_content(content: Any) -> CallError | None:
    if not isinstance(content, dict):
        return None
    try:
        code = Code(content.get('code'))
    except ValueError:
        return None
    message = content.get('message', '')
    details = content.get('details', [])
    if not isinstance(message, str) or not _is_list_of_maps(details):
        return None
    return CallError(code, escape_controls(message), details)


def _is_list_of_maps(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
