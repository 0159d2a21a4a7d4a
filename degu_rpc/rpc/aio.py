"""Calls from asyncio: the same client, each call in a thread.

    async with AsyncRpcClient(connect('unix:/run/files.sock')) as client:
        await client.call('files.v1.Files', 'stat', {'path': '/a'})
        async for event in client.stream('files.v1.Files', 'watch', {'path': '/a'}): ...

A call that is canceled in asyncio goes on in its thread until its time is over: threads cannot be
stopped. A stream that is left early is closed, at the latest when the result under way is there.

It uses the loop's default executor, and belongs to one loop. The calls take the context variables
of the task with them, and so the time of the call that they are made in.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from types import TracebackType

    from degu_rpc.rpc.client import RpcClient

_END = object()


class AsyncRpcClient:
    """A client whose calls are awaited; an async context manager that closes the client."""

    # Set once: client.

    def __init__(self, client: RpcClient) -> None:
        """Wrap a client, which is closed with this one."""
        self.client = client

    async def __aenter__(self) -> AsyncRpcClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.client.close)

    async def call(
        self, service: str, method: str, args: Mapping[str, Any], result_type: Any = Any
    ) -> Any:
        """Call a method and return its result. Raises what RpcClient.call() raises."""
        return await asyncio.to_thread(self.client.call, service, method, args, result_type)

    async def stream(
        self, service: str, method: str, args: Mapping[str, Any], item_type: Any = Any
    ) -> AsyncGenerator[Any, None]:
        """Yield the results of a method that returns a stream; aclose() ends the call.

        Raises what RpcClient.stream() and its results raise.
        """
        results = await asyncio.to_thread(self.client.stream, service, method, args, item_type)
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
