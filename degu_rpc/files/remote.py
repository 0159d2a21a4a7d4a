"""A share as a client sees it: one connection (questions.py), and the questions it answers.

Every answer is checked for its shape here (status, length); whether the bytes are right is for the
caller to check. A Remote belongs to one thread, but for `interrupt()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from degu.bodies import ChunkedInput, Input
from degu.rgi import Range
from degu_rpc.errors import FilesError, IntegrityError, ListingError, ShareRefusedError
from degu_rpc.files.blocks import Manifest, build_manifest, manifest_size, parse_manifest
from degu_rpc.files.cuts import Chunk, can_cut, max_list_size, parse_cuts
from degu_rpc.files.limits import MAX_MANIFEST, MAX_PACKED
from degu_rpc.files.listing import Entry, Kind, parse_listing
from degu_rpc.files.packs import NOT_IN_PACK, Packed, Wanted
from degu_rpc.files.paths import Path, format_native, format_path
from degu_rpc.files.questions import Questions, without_body
from degu_rpc.files.records import Media, format_record, hash_question, parse_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from degu.client import Client, Response
    from degu_rpc.files.questions import BuildBody, Headers
    from degu_rpc.peers import DialedClient


class StaleError(FilesError):
    """The share has no such content (any more); list the file again. Never leaves this package."""

    def __init__(self, refusal: ShareRefusedError) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal

    @classmethod
    def of(cls, path: Path, why: str) -> StaleError:
        """Return the error for content that is another one by now, as we found out ourselves."""
        return cls(ShareRefusedError(format_native(path), 409, why))


class Remote:
    """One connection to a share, made when it is needed. Close it, or use it with `with`."""

    def __init__(
        self, client: Client | DialedClient, prefix: str, check: Callable[[], None]
    ) -> None:
        """Remember where the share is: `prefix` is the path it is mounted at, '' for the top.

        `check` is called for each piece of a listing; what it raises ends the question.
        """
        self._check = check
        self._questions = Questions(client, prefix, check)

    def close(self) -> None:
        """Close the connection; the next question makes a new one."""
        self._questions.close()

    def interrupt(self) -> None:
        """End what is asked for now, as if the share had hung up. Any thread may call this."""
        self._questions.interrupt()

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def list_tree(self, path: Path) -> Iterator[Entry]:
        """Yield the entries at and below `path`, without hashing anything.

        Raises ShareRefusedError, ListingError.
        """
        yield from self._list(path, 'recursive=1')

    def list_directory(self, path: Path) -> Iterator[Entry]:
        """Yield the entry at `path`, and for a directory what is in it, without hashing anything.

        Raises ShareRefusedError, StaleError when it is gone, ListingError.
        """
        yield from self._list(path, '')

    def list_file(self, path: Path) -> Entry:
        """Return the entry at `path`, hashed now if need be; this can take long for a large file.

        Raises StaleError when it is gone, ShareRefusedError, ListingError.
        """
        entries = self._list(path, 'roots=1')
        entry = next(entries, None)
        if entry is None or entry.path:
            self.close()
            raise ListingError('it does not begin with what was asked for')
        if entry.kind is Kind.DIRECTORY:
            self.close()  # what is in it was not asked for
        elif next(entries, None) is not None:
            self.close()
            raise ListingError(f'{format_native(path)!r} is no directory, and something is in it')
        return entry

    def _list(self, path: Path, query: str) -> Iterator[Entry]:
        uri = '/ls/' + format_path(path) if path else '/ls'
        response = self._get(path, f'{uri}?{query}' if query else uri, {'accept': Media.JSON.value})
        if not isinstance(response.body, ChunkedInput):
            raise self._odd(path, response, 'a listing comes in chunks')
        self._check_question(response, f'{format_path(path)}?{query}'.encode())
        pieces = self._questions.checked(response.body)
        for entry in parse_listing(pieces, response.headers.get('content-type')):
            self._check()
            yield entry

    def read_pack(self, paths: Sequence[Path], wait: Callable[[int], None]) -> Iterator[Packed]:
        """Yield what the share has of each of these small files, in order, its root checked.

        `wait` is called with the size in bytes of each piece before the next one is read; it may
        take its time, and what it raises ends the question.

        Raises IntegrityError, ListingError, ShareRefusedError.
        """
        question = b''.join(
            format_record(Wanted(format_path(path)), Media.MSGPACK) for path in paths
        )
        headers = {'content-type': Media.MSGPACK.value, 'accept': Media.MSGPACK.value}
        try:
            response = self._ask(paths[0], 'POST', '/pack', headers, lambda _: question)
        except StaleError as stale:
            raise stale.refusal from stale
        if not isinstance(response.body, ChunkedInput):
            raise self._odd(paths[0], response, 'a pack comes in chunks')
        self._check_question(response, question)
        pieces = _slowed(self._questions.checked(response.body), wait)
        content_type = response.headers.get('content-type')
        answers = parse_records(pieces, content_type, Packed, MAX_PACKED)
        is_whole = False
        try:
            for number, path in enumerate(paths):
                packed = next(answers, None)
                if packed is None:
                    raise ListingError('a pack has less than was asked for')
                if packed.status == NOT_IN_PACK and number == 0:
                    raise ListingError('a pack has nothing of what was asked for')
                if packed.status == 200 and build_manifest(packed.content).root != packed.root:
                    raise IntegrityError(format_native(path), 0, 'the bytes do not match the root')
                yield packed
            if next(answers, None) is not None:
                raise ListingError('a pack has more than was asked for')
            is_whole = True
        finally:
            if not is_whole:
                self.close()

    def read_manifest(self, path: Path, root: str, size: int) -> Manifest:
        """Read and check the manifest of the content `root`, which has `size` bytes.

        Raises StaleError when the share does not know it, ListingError for a size that no manifest
        of ours describes, IntegrityError, ShareRefusedError.
        """
        if manifest_size(size) > MAX_MANIFEST:
            raise ListingError(
                f'{format_native(path)!r} has {size} bytes, its manifest more than {MAX_MANIFEST}'
            )
        response = self._get(path, f'/manifest/{root}', {})
        body = response.body
        if not isinstance(body, Input) or body.content_length != manifest_size(size):
            raise self._odd(path, response, f'this manifest has {manifest_size(size)} bytes')
        manifest = parse_manifest(body.read(), root)
        if manifest.size != size:
            raise IntegrityError(format_native(path), None, 'its size is not that of its root')
        return manifest

    def read_cuts(self, path: Path, root: str, size: int) -> list[Chunk] | None:
        """Read the chunks of the content `root`, of `size` bytes; None if there are none to be had.

        They only say where an old version may have the same: what was copied is to be checked.

        Raises StaleError when the share has this content no more, ShareRefusedError.
        """
        if not can_cut(size):
            return None
        try:
            response = self._get(path, f'/cuts/{root}', {})
        except StaleError as stale:
            if stale.refusal.status == 404:  # a share without /cuts says the same
                return None
            raise
        except ShareRefusedError as refusal:
            if refusal.status in {405, 503}:
                return None
            raise
        if not isinstance(response.body, ChunkedInput):
            raise self._odd(path, response, 'chunks come in chunks')
        data = bytearray()
        for piece in self._questions.checked(response.body):
            data += piece
            if len(data) > max_list_size(size):
                self.close()
                return None
        try:
            return parse_cuts(data, size)
        except ValueError:
            return None

    def open_data(self, path: Path, root: str, start: int, stop: int) -> Input:
        """Ask for bytes `start` to `stop` of the content `root`, and return the body with them.

        Raises StaleError when the share has it no more, ShareRefusedError.
        """
        response = self._get(path, f'/data/{root}', {'range': Range(start, stop)})
        body = response.body
        if (
            response.status != 206
            or not isinstance(body, Input)
            or body.content_length != stop - start
        ):
            raise self._odd(path, response, f'{stop - start} bytes were asked for')
        return body

    def _get(self, path: Path, uri: str, headers: Headers) -> Response:
        return self._ask(path, 'GET', uri, headers, without_body)

    def _ask(
        self, path: Path, method: str, uri: str, headers: Headers, build: BuildBody
    ) -> Response:
        response = self._questions.ask(method, uri, headers, build)
        if response.status in {200, 206}:
            return response
        why = self._questions.read_reason(response)
        refusal = ShareRefusedError(format_native(path), response.status, why)
        if response.status in {404, 409}:
            raise StaleError(refusal)
        raise refusal

    def _check_question(self, response: Response, question: bytes) -> None:
        """Raise ListingError for the answer to another question than this."""
        if response.headers.get('x-question') not in {None, hash_question(question)}:
            self._questions.close()
            raise ListingError('it answers another question: a bit flipped on the way')

    def _odd(self, path: Path, response: Response, rule: str) -> ShareRefusedError:
        """Return the error for an answer of the wrong shape; the connection is closed with it."""
        self.close()
        return ShareRefusedError(format_native(path), response.status, f'an odd answer: {rule}')


def _slowed(pieces: Iterable[bytes], wait: Callable[[int], None]) -> Iterator[bytes]:
    for piece in pieces:
        wait(len(piece))
        yield piece
