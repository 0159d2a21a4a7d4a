"""A transfer into an inbox as its sender sees it: one connection, and the questions it answers.

What is sent is handed over as something that can be begun again (questions.py). The pieces of it
are where a cancel comes in and where a rate limit holds. A RemoteInbox belongs to one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from degu.bodies import ChunkedInput, ChunkedOutput, Output
from degu.rgi import ContentRange
from degu_rpc.errors import (
    FilesError,
    IntegrityError,
    ListingError,
    NoSpaceError,
    OfferRefusedError,
)
from degu_rpc.files.blocks import Manifest, format_manifest
from degu_rpc.files.offers import Answer, Item, State
from degu_rpc.files.questions import Questions, without_body
from degu_rpc.files.records import Media, parse_records, stream_records
from degu_rpc.text import escape_controls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from degu.bodies import Body
    from degu.client import Client, Connection
    from degu_rpc.files.listing import Entry
    from degu_rpc.files.progress import Meter, RateLimit
    from degu_rpc.files.questions import BuildBody, Headers
    from degu_rpc.peers import DialedClient

_ACCEPT = {'accept': Media.MSGPACK.value}
_FORM = {**_ACCEPT, 'content-type': Media.MSGPACK.value}


class StaleTransferError(FilesError):
    """The inbox wants the transfer to be offered again. Never leaves this package."""


class RemoteInbox:
    """One connection to one transfer, made when it is needed. Close it, or use it with `with`."""

    def __init__(
        self,
        client: Client | DialedClient,
        prefix: str,
        transfer: str,
        meter: Meter,
        limit: RateLimit,
    ) -> None:
        """Remember where the inbox is: `prefix` is the path it is mounted at, '' for the top."""
        self._transfer = transfer
        self._meter = meter
        self._limit = limit
        self._questions = Questions(client, prefix, meter.check)

    def close(self) -> None:
        """Close the connection; the next question makes a new one."""
        self._questions.close()

    def __enter__(self) -> RemoteInbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # All of these raise OfferRefusedError, NoSpaceError, ListingError for an answer that makes no
    # sense, StaleTransferError, TransferCanceledError, the core's DeguError, OSError; and what the
    # pieces do that are to be sent.

    def offer(self, entries: Iterable[Entry]) -> Iterator[Answer]:
        """Offer, and yield what the inbox says: its state and the roots that it wants."""
        return self._ask('PUT', '', _FORM, self._in_chunks(entries))

    def wait_for_state(self, wait_s: float) -> State | None:
        """Return the state, after a while if it is waiting; None where the offer is forgotten."""
        answers = self._ask('GET', f'?wait={int(wait_s)}', _ACCEPT, without_body)
        state = None
        try:
            for answer in answers:  # to the end, so that the connection can be kept
                state = answer.state or state
        except StaleTransferError:
            return None
        except OfferRefusedError as refusal:
            if refusal.status != 404:
                raise
            return None
        return state

    def send_pack(self, items: Iterable[Item]) -> Iterator[Answer]:
        """Send small contents, and yield what the inbox says of each."""
        return self._ask('POST', '/pack', _FORM, self._in_chunks(items))

    def send_manifest(self, root: str, manifest: Manifest) -> Iterator[Answer]:
        """Send the leaves of a large content, and yield what the inbox says of it."""
        data = format_manifest(manifest)
        return self._ask('PUT', f'/{root}/manifest', _ACCEPT, lambda _: data)

    def send_run(
        self, root: str, part: ContentRange, read: Callable[[], Iterator[bytes]]
    ) -> Iterator[Answer]:
        """Send a part of a large content, and yield what the inbox says of it."""
        headers: Headers = {**_ACCEPT, 'content-range': part}
        length = part.stop - part.start
        return self._ask('PUT', f'/{root}', headers, lambda _: Output(read(), length))

    def give_up(self, root: str) -> Iterator[Answer]:
        """Say that a content will not come, and yield what the inbox says."""
        return self._ask('DELETE', f'/{root}', _ACCEPT, without_body)

    def _in_chunks(self, records: Iterable[Entry] | Iterable[Item]) -> BuildBody:
        def build(connection: Connection) -> Body:
            # Whoever does not want it may say so before all of it is there.
            return ChunkedOutput(connection.until_answered(self._limited(records)))

        return build

    def _limited(self, records: Iterable[Entry] | Iterable[Item]) -> Iterator[bytes]:
        for chunk in stream_records(records, Media.MSGPACK):
            self._meter.check()
            self._limit.wait(len(chunk), self._meter)
            yield chunk

    def _ask(self, method: str, uri: str, headers: Headers, build: BuildBody) -> Iterator[Answer]:
        self._meter.check()
        response = self._questions.ask(method, f'/{self._transfer}{uri}', headers, build)
        body = response.body
        if response.status != 200:
            raise _build_error(response.status, self._questions.read_reason(response))
        if not isinstance(body, ChunkedInput):
            self.close()
            raise ListingError('an answer of an inbox comes in chunks')
        content_type = response.headers.get('content-type')
        try:
            for answer in parse_records(self._questions.checked(body), content_type, Answer):
                if answer.status != 200 and not answer.root:
                    raise _build_error(answer.status, escape_controls(answer.why))
                yield answer
        finally:
            if not body.closed:
                self.close()


def _build_error(status: int, why: str) -> Exception:
    """Build the error for a status that an inbox answered with; `why` can be printed."""
    if status == 409:
        return StaleTransferError(why)
    if status == 422:
        return IntegrityError('what was sent', None, why)
    if status == 507:
        return NoSpaceError('the inbox', why=why)
    return OfferRefusedError(status, why)
