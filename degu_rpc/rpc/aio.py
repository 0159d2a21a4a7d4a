"""Calls from asyncio: the same client, each call in a thread.

    async with AsyncRpcClient(connect('unix:/run/files.sock')) as client:
        await client['files.v1.Files'].stat(path='/a')          # plain values
        files = client.bind(FilesApi, 'files.v1.Files')         # typed: a class with annotations
        await files.stat(path='/a')
        async for event in client.streams('files.v1.Files').watch(path='/a'): ...

A class for bind() declares `async def stat(self, ...) -> Stat` for what is awaited, and `def
watch(self, ...) -> AsyncIterator[Event]` for a stream of results, so that a type checker knows
which is which.

1. A call runs in a thread of the loop's default executor, and takes the context variables of the
   task with it, and so the time of the call that it is made in.
2. An argument that is an async iterator is a stream: the thread asks the loop for one item after
   the other, and never for one before the last is sent.
3. A stream of results is read by one thread at a time, one result at a time.

A call that is canceled in asyncio goes on in its thread until its time is over: threads cannot be
stopped. If it sends an async iterator, it ends at its next item. A stream that is left early is
closed, at the latest when the result under way is there.

Threads: a client belongs to one loop. Whatever of `_Items` is not `__next__` runs in that loop. The
executor has few threads: an async iterator that makes calls itself needs one beside the call that
it is sent with.
"""

from __future__ import annotations

import asyncio
import collections.abc
import concurrent.futures
import contextlib
import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar

from degu_rpc.errors import Code, RpcError
from degu_rpc.rpc.proxy import ServiceProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from degu_rpc.rpc.client import RpcClient
    from degu_rpc.rpc.result_stream import ResultStream

_Api = TypeVar('_Api')

_END = object()
_STREAMS = (collections.abc.AsyncIterator, collections.abc.AsyncGenerator)
_SYNC_STREAMS = (collections.abc.Iterator, collections.abc.Generator)


class AsyncRpcClient:
    """A client whose calls are awaited; an async context manager that closes the client."""

    # Set once: client.

    def __init__(self, client: RpcClient) -> None:
        """Wrap a client, which is closed with this one."""
        self.client = client

    def using(
        self,
        *,
        timeout_s: float | None = None,
        repeatable: bool = False,
        keyed: bool = False,
        compressed: bool = False,
    ) -> AsyncRpcClient:
        """Return a client that makes its calls in another way: see RpcClient.using()."""
        return AsyncRpcClient(
            self.client.using(
                timeout_s=timeout_s, repeatable=repeatable, keyed=keyed, compressed=compressed
            )
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.client.close)

    def __getitem__(self, service: str) -> ServiceProxy:
        """Return a proxy whose attributes call the methods of `service`, to be awaited.

        Raises ValueError for a name that no service has.
        """
        return ServiceProxy(self.call, service)

    def streams(self, service: str) -> ServiceProxy:
        """Return a proxy for those methods of `service` that return a stream of results.

        Raises ValueError for a name that no service has.
        """
        return ServiceProxy(self.stream, service)

    def bind(self, api: type[_Api], service: str) -> _Api:
        """Return an object of the class `api` whose methods call those of `service`.

        It is as RpcClient.bind(), for a class of coroutines: `async def` is what is awaited, and
        `def` with a result annotated `AsyncIterator[T]` is a stream of results. A parameter
        annotated `AsyncIterator[T]` takes any async iterable, one annotated `Iterator[T]` any
        iterable.

        Raises TypeError for a function of another kind, and what RpcClient.bind() raises.
        """
        functions = {
            name: function
            for name, function in inspect.getmembers(api, inspect.isfunction)
            if not name.startswith('_')
        }
        twins = {name: _build_twin(function) for name, function in functions.items()}
        bound: Any = self.client.bind(type(api.__name__, (), twins), service)
        methods = {
            name: _build_method(function, getattr(bound, name))
            for name, function in functions.items()
        }
        found: _Api = object.__new__(type(api.__name__, (api,), methods))
        return found

    async def call(
        self, service: str, method: str, args: Mapping[str, Any], result_type: Any = Any
    ) -> Any:
        """Call a method and return its result. Raises what RpcClient.call() raises."""
        return await _run(
            lambda **arguments: self.client.call(service, method, arguments, result_type), (), args
        )

    def stream(
        self, service: str, method: str, args: Mapping[str, Any], item_type: Any = Any
    ) -> AsyncGenerator[Any, None]:
        """Return the results of a method that returns a stream; aclose() ends the call.

        The call is made when the first result is asked for. Raises what RpcClient.stream() and its
        results raise.
        """
        return _iterate(
            lambda **arguments: self.client.stream(service, method, arguments, item_type), (), args
        )


class _Items(Iterator[Any]):
    """The items of an async iterable, for the thread that sends them."""

    # Belongs to the loop: _source, _waiting, _ended.

    def __init__(self, source: AsyncIterable[Any]) -> None:
        self._source = aiter(source)
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Task[Any] | None = None
        self._ended = False

    def __next__(self) -> Any:
        """Wait for the next item. Raises RpcError where nobody waits for the call any more."""
        try:
            item = asyncio.run_coroutine_threadsafe(self._take(), self._loop).result()
        except concurrent.futures.CancelledError:
            raise RpcError(Code.CANCELED, 'the task that made the call was canceled') from None
        if item is _END:
            raise StopIteration
        return item

    async def _take(self) -> Any:
        if self._ended:
            raise asyncio.CancelledError
        self._waiting = asyncio.current_task()
        return await anext(self._source, _END)

    def end(self) -> None:
        """Give no further item, and end the wait for the one that is under way."""
        self._ended = True
        if self._waiting is not None:
            self._waiting.cancel()


async def _run(
    function: Callable[..., Any], values: tuple[Any, ...], arguments: Mapping[str, Any]
) -> Any:
    """Call a function in a thread, with async iterables as iterators."""
    with contextlib.ExitStack() as stack:

        def convert(value: Any) -> Any:
            if not isinstance(value, AsyncIterable):
                return value
            items = _Items(value)
            stack.callback(items.end)
            return items

        converted = [convert(value) for value in values]
        named = {name: convert(value) for name, value in arguments.items()}
        return await asyncio.to_thread(function, *converted, **named)


async def _iterate(
    function: Callable[..., Any], values: tuple[Any, ...], arguments: Mapping[str, Any]
) -> AsyncGenerator[Any, None]:
    """Yield the results of the stream that a function returns, and close that."""
    results: ResultStream[Any] = await _run(function, values, arguments)
    # Shielded: a thread that reads the stream must be done before it can be closed.
    reading: asyncio.Future[Any] | None = None
    try:
        while True:
            reading = asyncio.ensure_future(asyncio.to_thread(next, results, _END))
            item = await asyncio.shield(reading)
            if item is _END:
                return
            yield item
    finally:
        if reading is not None and not reading.done():
            await asyncio.wait([reading])
        await asyncio.to_thread(results.close)


def _build_twin(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that says to RpcClient.bind() what one of coroutines says to people."""
    name = function.__qualname__
    hints = typing.get_type_hints(function, include_extras=True)
    result = hints.get('return')
    if _is(_SYNC_STREAMS, result) or _is(_STREAMS, result) == inspect.iscoroutinefunction(function):
        raise TypeError(
            f'{name}: write async def for what is awaited, and def with the result '
            'AsyncIterator[...] for a stream'
        )

    def twin() -> None:
        """Never run: it is there for what it says of itself."""

    twin.__qualname__ = name
    twin.__dict__.update(vars(function))
    twin.__annotations__ = {key: _make_sync(hint) for key, hint in hints.items()}
    twin.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]  # PEP 362
    return twin


def _is(kinds: tuple[type, ...], hint: Any) -> bool:
    return hint in kinds or typing.get_origin(hint) in kinds


def _make_sync(hint: Any) -> Any:
    """Return `Iterator[T]` for `AsyncIterator[T]`, any other annotation as it is."""
    if not _is(_STREAMS, hint):
        return hint
    items = typing.get_args(hint)
    return Iterator[items[0]] if items else Iterator  # type: ignore[valid-type]  # made at run time


def _build_method(function: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the coroutine function, or the one that returns a stream, for a bound method."""
    if inspect.iscoroutinefunction(function):

        async def method(_self: Any, *values: Any, **arguments: Any) -> Any:
            return await _run(call, values, arguments)

        return method

    def stream(_self: Any, *values: Any, **arguments: Any) -> AsyncGenerator[Any, None]:
        return _iterate(call, values, arguments)

    return stream
