"""A directory that peers may read: an RGI app, mounted anywhere.

    GET /ls/{path}         a listing, streamed: see listing.py for its records and its two switches
    GET /file/{path}       the bytes; `range`; `etag` is the root where it is known
    GET /manifest/{root}   the leaves of a file that was hashed: see blocks.py
    GET /data/{root}       the bytes of a file that was hashed; `range`; 409 once it has changed
    GET /cuts/{root}       its content-defined chunks, for one who has another version: see cuts.py
    POST /pack             many small files in one answer: see packs.py

HEAD answers each that has GET without the body. 400 is a path that leads nowhere allowed, 403 a
caller without a role that was allowed, 404 what is not there (or is no file: symlinks are never
followed), 405 another method, 409 a file that changed, 413 a question that is too large, 416 a
range outside the file, 503 too many at /cuts.

1. The caller's roles are looked up in `request['_peer'].roles`; default deny.
2. Every path goes through paths.py, so nothing outside the directory can be reached, nor `.degu`.
3. A listing hashes only what it is asked to (`roots=1`), and says something every few seconds
   while it does. What was hashed is remembered, within a bound (HashCache); a root that was
   forgotten is a 404 until its file is listed with `roots=1` again.
4. A small file is read and hashed at once, so its `etag` and its bytes always belong together.
   Larger ones are sent by the kernel: what changes under it cannot be seen from here, so the share
   only checks the file's signature before it begins, and the receiver's check of every block is
   what keeps wrong bytes out.
5. A file is cut while its list is sent, a few files at once in all. The last records are held back
   until it is sure that the file has not changed; if it has, the list ends without them.

May be called by many threads. Writes nothing.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

from degu_rpc.errors import ContentChangedError, ListingError, PathError, UnknownPeerError
from degu_rpc.files.blocks import build_manifest, format_manifest, is_root
from degu_rpc.files.content import (
    FileReader,
    HashCache,
    Hashed,
    Signature,
    hash_steps,
    read_small,
    signature_of,
)
from degu_rpc.files.cuts import can_cut, cut_content, format_chunk, format_size
from degu_rpc.files.limits import (
    CHUNK_SIZE,
    CUT_RETRY_S,
    HASH_ATTEMPTS,
    HEARTBEAT_S,
    MAX_CUTTING,
    MAX_PACK_REQUEST,
    MAX_PATH_TEXT,
    PACK_ITEMS,
)
from degu_rpc.files.listing import Entry, Kind, Problem
from degu_rpc.files.packing import read_pack
from degu_rpc.files.packs import Wanted
from degu_rpc.files.paths import (
    NOT_THERE,
    Path,
    Root,
    check_path,
    format_path,
    format_target,
    parse_path,
)
from degu_rpc.files.records import HEARTBEAT, Media, choose_media, format_record, parse_records
from degu_rpc.files.xattrs import format_xattrs, read_xattrs
from degu_rpc.peers import build_roles, find_caller

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Iterator
    from types import TracebackType


_PLAIN: dict[str, Any] = {'content-type': 'application/octet-stream'}
_REASONS = {
    400: 'Bad Request',
    403: 'Forbidden',
    404: 'Not Found',
    405: 'Method Not Allowed',
    409: 'Conflict',
    413: 'Content Too Large',
    416: 'Range Not Satisfiable',
    503: 'Service Unavailable',
}


class _Response(NamedTuple):
    status: int
    reason: str
    headers: dict[str, Any]
    body: Any


class _Request(NamedTuple):
    connection: dict[str, Any]
    headers: dict[str, Any]
    query: str
    segments: list[str]
    body: Any


class _RefusalError(Exception):
    def __init__(self, status: int, why: str, headers: dict[str, Any] | None = None) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.headers = headers or {}


class _SentFile(io.FileIO):
    """A file that is closed once nobody is sending it any more: the server does not close it."""

    def __del__(self) -> None:
        self.close()


class FileShare:
    """An RGI app that lets peers read a directory. Close it, or use it with `with`."""

    def __init__(self, directory: str | os.PathLike[str], allow: str | Collection[str]) -> None:
        """Share `directory` with callers that have the role `allow`, or one of them, or `owner`.

        Raises TypeError or ValueError for roles that are none, OSError where the directory cannot
        be opened.
        """
        self._roles = build_roles(allow)
        self._endpoints = {
            'ls': self._list,
            'file': self._send_file,
            'manifest': self._send_manifest,
            'data': self._send_data,
            'cuts': self._send_cuts,
            'pack': self._send_pack,
        }
        self._hashes = HashCache()
        self._cutting = threading.BoundedSemaphore(MAX_CUTTING)
        self._root = Root(directory)

    def close(self) -> None:
        """Close the directory."""
        self._root.close()

    def __enter__(self) -> FileShare:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> _Response:
        """Answer one request. Raises OSError for a failing disk, which the server makes a 500."""
        try:
            response = self._answer(connection, request)
        except _RefusalError as refusal:
            response = _refuse(refusal.status, refusal.why, refusal.headers)
        except ContentChangedError:
            response = _refuse(409, 'the file changed while it was read', {})
        except PermissionError:
            response = _refuse(403, 'the share cannot read it', {})
        return _without_body(response) if request['method'] == 'HEAD' else response

    def _answer(self, connection: dict[str, Any], request: dict[str, Any]) -> _Response:
        try:
            peer = find_caller(request)
        except UnknownPeerError as error:
            raise _RefusalError(403, str(error)) from None
        if self._roles.isdisjoint(peer.roles):
            raise _RefusalError(403, 'your roles do not include one that this share allows')
        endpoint, *segments = request['path'] or ['']
        answer = self._endpoints.get(endpoint)
        if answer is None:
            raise _RefusalError(404, f'there are only {", ".join(self._endpoints)}')
        allowed = {'POST'} if endpoint == 'pack' else {'GET', 'HEAD'}
        if request['method'] not in allowed:
            methods = ', '.join(sorted(allowed))
            raise _RefusalError(405, f'here is only {methods}', {'allow': methods})
        return answer(
            _Request(connection, request['headers'], request['query'], segments, request['body'])
        )

    # --- /ls ------------------------------------------------------------------------------------

    def _list(self, request: _Request) -> _Response:
        path = _path_of(request.segments)
        switches = dict(parse_qsl(request.query, keep_blank_values=True))
        for name, value in switches.items():
            if name not in {'recursive', 'roots'} or value not in {'0', '1'}:
                raise _RefusalError(400, 'the switches are recursive=1 and roots=1')
        top = self._lstat(path)
        entries = self._entries(
            path, top, switches.get('recursive') == '1', switches.get('roots') == '1'
        )
        media = choose_media(request.headers.get('accept', ''))
        chunks = request.connection['rgi.ChunkedOutput'](_chunks(entries, media))
        return _Response(200, 'OK', {'content-type': media.value}, chunks)

    def _entries(
        self, path: Path, top: os.stat_result, recursive: bool, roots: bool
    ) -> Iterator[Entry | None]:
        """Yield the entries at and below `path`, and None now and then while hashing."""
        yield from self._entry(path, (), top, roots)
        waiting: list[Path] = [()] if stat.S_ISDIR(top.st_mode) else []
        while waiting:
            where = waiting.pop()
            try:
                found = self._root.scan(path + where)
            except PermissionError:
                yield _skipped(where, Problem.UNREADABLE)
                continue
            except (FileNotFoundError, NotADirectoryError):
                continue  # gone since its parent was read
            inner = []
            for name, seen in found:
                below = (*where, name)
                yield from self._entry(path, below, seen, roots)
                if recursive and stat.S_ISDIR(seen.st_mode) and _can_travel(path + below):
                    inner.append(below)
            waiting += reversed(inner)

    def _entry(
        self, path: Path, below: Path, seen: os.stat_result, roots: bool
    ) -> Iterator[Entry | None]:
        text = format_path(below)
        mode = stat.S_IMODE(seen.st_mode) & 0o777
        if not _can_travel(path + below):
            yield _skipped(below, Problem.NAME)
        elif stat.S_ISDIR(seen.st_mode):
            yield Entry(text, Kind.DIRECTORY, mtime_ns=seen.st_mtime_ns, mode=mode)
        elif stat.S_ISLNK(seen.st_mode):
            try:
                target = self._root.readlink(path + below)
            except OSError:
                return  # gone, or no symlink any more
            yield Entry(text, Kind.SYMLINK, mtime_ns=seen.st_mtime_ns, target=format_target(target))
        elif not stat.S_ISREG(seen.st_mode):
            yield _skipped(below, Problem.SPECIAL)
        else:
            signature = signature_of(seen)
            hashed = self._hashes.find(path + below, signature)
            if hashed is None and roots:
                try:
                    hashed = yield from self._hash(path + below)
                except PermissionError:
                    yield _skipped(below, Problem.UNREADABLE)
                    return
                except ContentChangedError:
                    yield _skipped(below, Problem.CHANGING)
                    return
                except PathError:
                    return  # something else is there since its parent was read
                except OSError as error:
                    if error.errno not in NOT_THERE:
                        raise
                    return  # gone, or something else is there
                signature = hashed.signature
            yield Entry(
                text,
                Kind.FILE,
                size=signature.size,
                mtime_ns=signature.mtime_ns,
                mode=mode,
                root='' if hashed is None else hashed.root,
                xattrs=format_xattrs(hashed.xattrs) if hashed is not None and roots else None,
            )

    def _hash(self, path: Path) -> Generator[None, None, Hashed]:
        """Hash a file and remember it. Raises ContentChangedError, OSError, PathError."""
        for attempt in range(HASH_ATTEMPTS):
            fd = self._root.open_file(path)
            try:
                signature, manifest = yield from hash_steps(fd, path)
            except ContentChangedError:
                if attempt == HASH_ATTEMPTS - 1:
                    raise
            else:
                return self._hashes.add(path, signature, manifest, read_xattrs(fd))
            finally:
                os.close(fd)
        raise AssertionError('the last attempt raises or returns')

    # --- /file, /manifest, /data, /cuts ---------------------------------------------------------

    def _send_file(self, request: _Request) -> _Response:
        return self._send(request, _path_of(request.segments), None)

    def _send_data(self, request: _Request) -> _Response:
        hashed = self._find_root(request.segments)
        return self._send(request, hashed.path, hashed)

    def _send_pack(self, request: _Request) -> _Response:
        if request.segments or request.body is None:
            raise _RefusalError(400, 'a pack is asked for with the paths of files')
        try:
            wanted = [
                parse_path(record.path)
                for record in parse_records(
                    _limited(request.body), request.headers.get('content-type'), Wanted
                )
            ]
        except PathError as error:
            raise _RefusalError(400, f'not a path: {error.reason}') from error
        except ListingError as error:
            raise _RefusalError(400, error.reason) from error
        if len(wanted) > PACK_ITEMS:
            raise _RefusalError(413, f'a pack has up to {PACK_ITEMS} files')
        media = choose_media(request.headers.get('accept', ''))
        records = (format_record(packed, media) for packed in read_pack(self._root, wanted))
        chunks = request.connection['rgi.ChunkedOutput'](_join(records))
        return _Response(200, 'OK', {'content-type': media.value}, chunks)

    def _send_manifest(self, request: _Request) -> _Response:
        hashed = self._find_root(request.segments)
        return _Response(200, 'OK', dict(_PLAIN), format_manifest(hashed.manifest))

    def _send_cuts(self, request: _Request) -> _Response:
        hashed = self._find_root(request.segments)
        if not can_cut(hashed.signature.size):
            raise _RefusalError(404, 'this share does not cut such files')
        file = self._open(hashed.path)
        self._check_unchanged(signature_of(os.fstat(file.fileno())), hashed)
        if not self._cutting.acquire(blocking=False):
            why = f'{MAX_CUTTING} files are being cut; try later, or fetch the whole file'
            raise _RefusalError(503, why, {'retry-after': f'{CUT_RETRY_S}'})
        # A body that nobody begins to send gives its place back as well.
        release = weakref.finalize(file, self._cutting.release)
        chunks = request.connection['rgi.ChunkedOutput'](_cut(file, hashed, release))
        return _Response(200, 'OK', dict(_PLAIN), chunks)

    def _check_unchanged(self, signature: Signature, hashed: Hashed) -> None:
        """Raise ContentChangedError if a file is not what was hashed any more, and forget it."""
        if signature != hashed.signature:
            self._hashes.forget(hashed.path)
            raise ContentChangedError(format_path(hashed.path))

    def _find_root(self, segments: list[str]) -> Hashed:
        if len(segments) != 1 or not is_root(segments[0]):
            raise _RefusalError(400, 'a root is 52 characters of base32, lower case')
        hashed = self._hashes.find_root(segments[0])
        if hashed is None:
            raise _RefusalError(404, 'no file with this root is known; list it with roots=1')
        return hashed

    def _send(self, request: _Request, path: Path, expected: Hashed | None) -> _Response:
        """Send the file at `path`, or the part of it that `range` asks for.

        `expected` is what it must still be. Raises _RefusalError, ContentChangedError, OSError.
        """
        file = self._open(path)
        signature, content = read_small(file.fileno(), path)
        if expected is not None:
            self._check_unchanged(signature, expected)
        headers = {**_PLAIN, 'accept-ranges': 'bytes', 'x-mtime-ns': str(signature.mtime_ns)}
        if content is not None:
            headers['etag'] = f'"{build_manifest(content).root}"'
        elif known := expected or self._hashes.find(path, signature):
            headers['etag'] = f'"{known.root}"'
        status, reason, start, stop = 200, 'OK', 0, signature.size
        wanted = request.headers.get('range')
        # RFC 9110 §13.1.5: a range of another version than this one is no use to the caller.
        if wanted is not None and request.headers.get('if-range') in {None, headers.get('etag')}:
            part = wanted.resolve(signature.size)
            if part.stop == 0:
                raise _RefusalError(416, 'the range is not in the file', {'content-range': part})
            status, reason, start, stop = 206, 'Partial Content', part.start, part.stop
            headers['content-range'] = part
        if content is not None:
            return _Response(status, reason, headers, content[start:stop])
        file.seek(start)
        body = request.connection['rgi.FileOutput'](file, stop - start)
        return _Response(status, reason, headers, body)

    def _open(self, path: Path) -> _SentFile:
        try:
            return _SentFile(self._root.open_file(path))
        except PermissionError:
            raise
        except (PathError, OSError) as error:
            raise _not_there(error) from error

    def _lstat(self, path: Path) -> os.stat_result:
        try:
            return self._root.lstat(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _not_there(error) from error


def _limited(body: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces of a request's body, up to MAX_PACK_REQUEST bytes."""
    size = 0
    for piece in body:
        size += len(piece)
        if size > MAX_PACK_REQUEST:
            raise _RefusalError(413, f'the question has up to {MAX_PACK_REQUEST} bytes')
        yield piece


def _join(records: Iterable[bytes]) -> Iterator[bytes]:
    """Yield records in chunks of some length, and the empty one at their end."""
    chunk = bytearray()
    for record in records:
        chunk += record
        if len(chunk) >= CHUNK_SIZE:
            yield bytes(chunk)
            chunk.clear()
    if chunk:
        yield bytes(chunk)
    yield b''


def _path_of(segments: list[str]) -> Path:
    """Return the path of a request; one "/" at its end means nothing."""
    if segments and not segments[-1]:
        segments = segments[:-1]
    try:
        return parse_path('/'.join(segments))
    except PathError as error:
        raise _RefusalError(400, f'not a path: {error.reason}') from error


def _not_there(error: Exception) -> _RefusalError:
    """Return the refusal for a path that leads to nothing, or to what is not followed."""
    if isinstance(error, OSError) and error.errno not in NOT_THERE:
        raise error
    return _RefusalError(404, 'there is no such entry, or it is not of the kind that was asked for')


def _can_travel(path: Path) -> bool:
    """Tell whether a path that was found on the disk may stand in a listing."""
    try:
        check_path(path)
    except PathError:
        return False
    return len(format_path(path)) <= MAX_PATH_TEXT


def _skipped(below: Path, problem: Problem) -> Entry:
    return Entry(format_path(below), Kind.SKIPPED, problem=problem)


def _chunks(entries: Iterator[Entry | None], media: Media) -> Iterator[bytes]:
    """Yield a listing in chunks, at least one every HEARTBEAT_S, and the empty one at its end."""
    chunk = bytearray()
    sent_at = monotonic()
    for entry in entries:
        if entry is not None:
            chunk += format_record(entry, media)
        if len(chunk) >= CHUNK_SIZE or monotonic() - sent_at >= HEARTBEAT_S:
            yield bytes(chunk) or HEARTBEAT[media]
            chunk.clear()
            sent_at = monotonic()
    if chunk:
        yield bytes(chunk)
    yield b''


def _cut(file: _SentFile, hashed: Hashed, release: Callable[[], object]) -> Iterator[bytes]:
    """Yield the list of a file in pieces, at least one every HEARTBEAT_S, and the empty one.

    The last piece is left out if the file has changed. `release` is called before it.
    """
    size = hashed.signature.size
    piece = bytearray(format_size(size))
    sent_at = monotonic()
    try:
        for chunk in cut_content(FileReader(file.fileno(), size), size):
            if len(piece) >= CHUNK_SIZE or monotonic() - sent_at >= HEARTBEAT_S:
                yield bytes(piece)
                piece.clear()
                sent_at = monotonic()
            piece += format_chunk(chunk)
        unchanged = signature_of(os.fstat(file.fileno())) == hashed.signature
    finally:
        release()
    if unchanged:
        yield bytes(piece)
    yield b''


def _refuse(status: int, why: str, headers: dict[str, Any]) -> _Response:
    body = f'{why}\n'.encode('ascii', 'backslashreplace')
    return _Response(
        status, _REASONS[status], {**headers, 'content-type': 'text/plain; charset=utf-8'}, body
    )


def _without_body(response: _Response) -> _Response:
    """Return what HEAD answers: the headers, with the length that GET's body would have."""
    body = response.body
    if body is None or getattr(body, 'chunked', False):
        return response._replace(body=None)
    length = len(body) if isinstance(body, bytes) else body.content_length
    return response._replace(headers={**response.headers, 'content-length': length}, body=None)
