"""The client's side of a call with a stream: what it sends, and what comes back.

1. `Upload` is the body of the request: the parameters, then the caller's items, one envelope a
   chunk. What the caller's iterator raises is remembered, to be told from what the connection does.
2. `ResultStream` gives the results as they come. Its last envelope says how the call ended; a
   stream without it was cut off, and whoever reads it is told so.

Both belong to one thread at a time, and so does their connection, which is theirs alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from degu.errors import DeguError
from degu_rpc.errors import Code, CodecError, RpcError
from degu_rpc.rpc.codec import parse_value
from degu_rpc.rpc.compression import GZIP
from degu_rpc.rpc.envelope import END, parse_envelopes
from degu_rpc.rpc.limits import MAX_MESSAGE_SIZE
from degu_rpc.rpc.pool import explain_failure
from degu_rpc.rpc.protocol import (
    find_stream_codec,
    pack_message,
    parse_end,
    parse_error,
    read_message,
    unpack_message,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from types import TracebackType

    from degu.client import Connection, Response
    from degu_rpc.rpc.codec import Codec, Shape


class Upload:
    """The chunks of a request with a stream; `.error` is what the caller's own items raised."""

    def __init__(self, first: bytes, items: Iterable[Any], codec: Codec, uses_gzip: bool) -> None:
        self._first = first
        self._items = items
        self._codec = codec
        self._uses_gzip = uses_gzip
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        """Yield the envelopes, and the empty chunk.

        Raises what the items raise, CodecError for one that cannot travel, RpcError for one above
        the limit.
        """
        yield pack_message(self._first, 0, self._uses_gzip)
        items = iter(self._items)
        while True:
            try:
                message = self._codec.encode(next(items))
                if len(message) > MAX_MESSAGE_SIZE:
                    raise RpcError(
                        Code.RESOURCE_EXHAUSTED, f'an item is larger than {MAX_MESSAGE_SIZE} bytes'
                    )
            except StopIteration:
                break
            except Exception as error:
                self.error = error
                raise
            yield pack_message(message, 0, self._uses_gzip)
        yield b''


class ResultStream(Iterator[Any]):
    """The results of a call, as they come; a context manager, and close() ends it early.

    `.response_headers` are what the method sent beside them, complete once the last was read.
    """

    def __init__(
        self, connection: Connection, response: Response, codec: Codec, shape: Shape, uri: str
    ) -> None:
        """Take the connection and the response on it, whose body is not read yet.

        Raises RpcError for a response that is no stream of `codec`.
        """
        self.response_headers: dict[str, str] = {}
        self._connection = connection
        try:
            _check(response, codec, uri)
        except BaseException:
            connection.close()
            raise
        # A function of nothing that knows this object: when the last one forgets the stream, its
        # connection ends at once, and not with the next garbage collection.
        self._results = _read(connection, response, codec, shape, uri, self.response_headers)

    def __iter__(self) -> ResultStream:
        return self

    def __next__(self) -> Any:
        """Wait for the next result.

        Raises RpcError: what the server ended the call with, `unavailable` where the stream was cut
        off, `deadline_exceeded`, `internal` for what makes no sense.
        """
        return next(self._results)

    def __enter__(self) -> ResultStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the call, and its connection; the method notices. A second time does nothing."""
        self._results.close()
        self._connection.close()


def _check(response: Response, codec: Codec, uri: str) -> None:
    content_type = response.headers.get('content-type')
    content_type = content_type if isinstance(content_type, str) else None
    if response.status != 200:
        try:
            data = read_message(response.body)
        except (OSError, DeguError) as error:
            raise explain_failure(error, uri) from error
        raise parse_error(response.status, content_type, data, uri)
    if find_stream_codec(content_type) is not codec:
        raise _explain(uri, f'content-type {content_type}')


def _read(
    connection: Connection,
    response: Response,
    codec: Codec,
    shape: Shape,
    uri: str,
    response_headers: dict[str, str],
) -> Generator[Any, None, None]:
    uses_gzip = response.headers.get('connect-content-encoding') == GZIP
    envelopes = parse_envelopes(response.body or (), MAX_MESSAGE_SIZE)
    try:
        for flags, packed in envelopes:
            if not flags:
                yield parse_value(packed, shape, codec)
                continue
            message = unpack_message(packed, flags, uses_gzip)
            if not flags & END:
                yield parse_value(message, shape, codec)
                continue
            error, metadata = parse_end(message)
            response_headers.update(metadata)
            if next(envelopes, None) is not None:
                raise _explain(uri, 'there is something behind the end')
            if error is not None:
                raise error
            return
        raise _explain(uri, 'the stream has no end')
    except CodecError as error:
        raise _explain(uri, error) from error
    except (OSError, DeguError) as error:
        raise explain_failure(error, uri) from error
    finally:
        connection.close()


def _explain(uri: str, what: object) -> RpcError:
    return RpcError(Code.INTERNAL, f'{uri} answered what it must not: {what}')
