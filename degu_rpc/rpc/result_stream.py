"""The client's side of a call with a stream: what it sends, and what comes back.

1. `Upload` is the body of the request: the parameters, then the caller's items, one envelope a
   chunk. What the caller's iterator raises is remembered, to be told from what the connection does.
2. `ResultStream` gives the results as they come. Its last envelope says how the call ended; a
   stream without it was cut off, and whoever reads it is told so.

Both belong to one thread at a time, and so does their connection, which is theirs alone.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from degu.errors import DeguError
from degu_rpc.errors import CallError, Code, CodecError, RpcError
from degu_rpc.rpc.codec import parse_value
from degu_rpc.rpc.compression import GZIP
from degu_rpc.rpc.envelope import END, parse_envelopes
from degu_rpc.rpc.interception import leave_with
from degu_rpc.rpc.limits import MAX_MESSAGE_SIZE
from degu_rpc.rpc.protocol import (
    find_stream_codec,
    pack_message,
    parse_end,
    parse_error,
    read_message,
    unpack_message,
)
from degu_rpc.rpc.service import find_stream_item

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from degu.client import Connection, Response
    from degu_rpc.rpc.codec import Codec, Shape
    from degu_rpc.rpc.interception import ClientCall

_Item = TypeVar('_Item', covariant=True)


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


class ResultStream(Iterator[_Item]):
    """The results of a call, as they come; a context manager, and close() ends it early.

    `.response_headers` are what the method sent beside them, complete once the last was read.
    """

    def __init__(
        self,
        connection: Connection,
        response: Response,
        codec: Codec,
        shape: Shape,
        uri: str,
        explain: Callable[[OSError | DeguError, str], RpcError],
        is_single: bool = False,
    ) -> None:
        """Take the connection and the response on it, whose body is not read yet.

        `explain` builds the error for a connection that failed. Another number of results than one
        is an error where it `is_single`.

        Raises RpcError for a response that is no stream of `codec`.
        """
        self.response_headers: dict[str, str] = {}
        self._connection = connection
        try:
            _check(response, codec, uri, explain)
        except BaseException:
            connection.close()
            raise
        # A function of nothing that knows this object: when the last one forgets the stream, its
        # connection ends at once, and not with the next garbage collection.
        self._results = _read(
            connection, response, codec, shape, uri, explain, self.response_headers
        )
        if is_single:
            self._results = _read_only(self._results, uri)

    def leave_at_end(self, entered: contextlib.ExitStack, call: ClientCall) -> None:
        """Leave the interceptors that were entered for this call when it is over."""
        entered.callback(_tell, call, self.response_headers)
        self._results = leave_with(self._results, entered)

    def __iter__(self) -> ResultStream[_Item]:
        return self

    def __next__(self) -> _Item:
        """Wait for the next result.

        Raises RpcError: what the server ended the call with, `unavailable` where the stream was cut
        off, `deadline_exceeded`, `internal` for what makes no sense.
        """
        item: _Item = next(self._results)
        return item

    def __enter__(self) -> ResultStream[_Item]:
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


def _tell(call: ClientCall, headers: dict[str, str]) -> None:
    call.response_headers.update(headers)


def _read_only(results: Generator[Any, None, None], uri: str) -> Generator[Any, None, None]:
    """Yield the one result of a stream, and see that it is the only one."""
    with contextlib.closing(results):
        found = list(itertools.islice(results, 2))
        if len(found) != 1:
            raise _explain(uri, f'{"several" if found else "no"} results')
        yield found[0]


def find_result_item(annotation: Any) -> Shape | None:
    """Return the shape of each result where a client's function returns a stream, else None.

    Raises TypeError for a stream that does not say of what, or of what cannot travel.
    """
    return find_stream_item('the result', annotation, ResultStream)


def find_sent_item(name: str, annotation: Any) -> Shape | None:
    """Return the shape of each item where a client's parameter is a stream, else None.

    Raises TypeError for a stream that does not say of what, or of what cannot travel.
    """
    return find_stream_item(f'parameter {name!r}', annotation, Iterable)


def _check(
    response: Response,
    codec: Codec,
    uri: str,
    explain: Callable[[OSError | DeguError, str], RpcError],
) -> None:
    content_type = response.headers.get('content-type')
    content_type = content_type if isinstance(content_type, str) else None
    if response.status != 200:
        try:
            data = read_message(response.body)
        except RpcError as error:  # what both sides read with knows nothing of calls
            raise CallError(*error.args) from None
        except (OSError, DeguError) as error:
            raise explain(error, uri) from error
        accepted = response.headers.get('accept-post')
        raise parse_error(response.status, content_type, data, uri, accepted)
    if find_stream_codec(content_type) is not codec:
        raise _explain(uri, f'content-type {content_type}')


def _read(
    connection: Connection,
    response: Response,
    codec: Codec,
    shape: Shape,
    uri: str,
    explain: Callable[[OSError | DeguError, str], RpcError],
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
    except CallError:
        raise
    except RpcError as error:  # what both sides read with knows nothing of calls
        raise CallError(*error.args) from None
    except CodecError as error:
        raise _explain(uri, error) from error
    except (OSError, DeguError) as error:
        raise explain(error, uri) from error
    finally:
        connection.close()


def _explain(uri: str, what: object) -> CallError:
    return CallError(Code.INTERNAL, f'{uri} answered what it must not: {what}')
