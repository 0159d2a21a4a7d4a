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
   while it does. A large file is hashed once for all who wait for it, and a few at once in all
   (HashPool). What was hashed is remembered, within a bound (HashCache); a root that was forgotten
   is a 404 until its file is listed with `roots=1` again.
4. A small file is read and hashed at once, so its `etag` and its bytes always belong together.
   Larger ones are sent by the kernel: what changes under it cannot be seen from here, so the share
   only checks the file's signature before it begins, and the receiver's check of every block is
   what keeps wrong bytes out.
5. What is answered to a path or a pack says which question it answers, so that a bit that flips on
   the way, where there is no TLS, does not bring another file under the name that was asked for.
6. A file is cut while its list is sent, a few files at once in all. The last records are held back
   until it is sure that the file has not changed; if it has, the list ends without them.

May be called by many threads. Writes nothing.
"""

from __future__ import annotations

import io
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

from degu_rpc.errors import ContentChangedError, ListingError, PathError, UnknownPeerError
from degu_rpc.files.blocks import build_manifest, format_manifest, is_root
from degu_rpc.files.content import (
    HashCache,
    Hashed,
    Signature,
    read_small,
    signature_of,
)
from degu_rpc.files.cuts import can_cut
from degu_rpc.files.cutting import stream_cuts
from degu_rpc.files.limits import (
    CUT_RETRY_S,
    MAX_CUTTING,
    MAX_PACK_REQUEST,
    PACK_ITEMS,
)
from degu_rpc.files.packing import read_pack
from degu_rpc.files.packs import Wanted
from degu_rpc.files.paths import (
    NOT_THERE,
    Path,
    Root,
    format_native,
    format_path,
    parse_path,
)
from degu_rpc.files.records import parse_records
from degu_rpc.files.responses import RefusalError, Response, refuse, respond, without_body
from degu_rpc.files.walk import Walker
from degu_rpc.peers import build_roles, find_caller

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator


_PLAIN: dict[str, Any] = {'content-type': 'application/octet-stream'}


class _Request(NamedTuple):
    connection: dict[str, Any]
    headers: dict[str, Any]
    query: str
    segments: list[str]
    body: Any


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
        self._walker = Walker(self._root, self._hashes, is_shared=True)

    def close(self) -> None:
        """Close the directory, and give up what is hashed."""
        self._walker.close()
        self._root.close()

    def __enter__(self) -> FileShare:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Answer one request. Raises OSError for a failing disk, which the server makes a 500."""
        try:
            response = self._answer(connection, request)
        except RefusalError as refusal:
            response = refuse(refusal)
        except ContentChangedError:
            response = refuse(RefusalError(409, 'the file changed while it was read'))
        except PermissionError:
            response = refuse(RefusalError(403, 'the share cannot read it'))
        return without_body(response) if request['method'] == 'HEAD' else response

    def _answer(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        try:
            peer = find_caller(request)
        except UnknownPeerError as error:
            raise RefusalError(403, str(error)) from None
        if self._roles.isdisjoint(peer.roles):
            raise RefusalError(403, 'your roles do not include one that this share allows')
        endpoint, *segments = request['path'] or ['']
        answer = self._endpoints.get(endpoint)
        if answer is None:
            raise RefusalError(404, f'there are only {", ".join(self._endpoints)}')
        allowed = {'POST'} if endpoint == 'pack' else {'GET', 'HEAD'}
        if request['method'] not in allowed:
            methods = ', '.join(sorted(allowed))
            raise RefusalError(405, f'here is only {methods}', {'allow': methods})
        return answer(
            _Request(connection, request['headers'], request['query'], segments, request['body'])
        )

    # --- /ls ------------------------------------------------------------------------------------

    def _list(self, request: _Request) -> Response:
        path = _path_of(request.segments)
        switches = dict(parse_qsl(request.query, keep_blank_values=True))
        for name, value in switches.items():
            if name not in {'recursive', 'roots'} or value not in {'0', '1'}:
                raise RefusalError(400, 'the switches are recursive=1 and roots=1')
        top = self._lstat(path)
        entries = self._walker.walk(
            path,
            top,
            recursive=switches.get('recursive') == '1',
            roots=switches.get('roots') == '1',
        )
        question = f'{format_path(path)}?{request.query}'.encode()
        return respond(request.connection, request.headers.get('accept', ''), entries, question)

    # --- /file, /manifest, /data, /cuts ---------------------------------------------------------

    def _send_file(self, request: _Request) -> Response:
        return self._send(request, _path_of(request.segments), None)

    def _send_data(self, request: _Request) -> Response:
        return self._with_root(
            request.segments, lambda hashed: self._send(request, hashed.path, hashed)
        )

    def _with_root(self, segments: list[str], answer: Callable[[Hashed], Response]) -> Response:
        """Answer from a file that has a content; from another one if that changed or is gone."""
        while True:
            hashed = self._find_root(segments)
            try:
                return answer(hashed)
            except (ContentChangedError, RefusalError) as error:
                if isinstance(error, RefusalError) and error.status != 404:
                    raise
                self._hashes.forget(hashed.path)
                if self._hashes.find_root(segments[0]) is None:
                    raise

    def _send_pack(self, request: _Request) -> Response:
        if request.segments or request.body is None:
            raise RefusalError(400, 'a pack is asked for with the paths of files')
        question = b''.join(_limited(request.body))
        content_type = request.headers.get('content-type')
        try:
            wanted = [
                parse_path(record.path)
                for record in parse_records([question], content_type, Wanted)
            ]
        except PathError as error:
            raise RefusalError(400, f'not a path: {error.reason}') from error
        except ListingError as error:
            raise RefusalError(400, error.reason) from error
        if len(wanted) > PACK_ITEMS:
            raise RefusalError(413, f'a pack has up to {PACK_ITEMS} files')
        accept = request.headers.get('accept', '')
        return respond(request.connection, accept, read_pack(self._root, wanted), question)

    def _send_manifest(self, request: _Request) -> Response:
        hashed = self._find_root(request.segments)
        return Response(200, 'OK', dict(_PLAIN), format_manifest(hashed.manifest))

    def _send_cuts(self, request: _Request) -> Response:
        if not can_cut(self._find_root(request.segments).signature.size):
            raise RefusalError(404, 'this share does not cut such files')
        return self._with_root(request.segments, lambda hashed: self._cut(request, hashed))

    def _cut(self, request: _Request, hashed: Hashed) -> Response:
        file = self._open(hashed.path)
        self._check_unchanged(signature_of(os.fstat(file.fileno())), hashed)
        if not self._cutting.acquire(blocking=False):
            why = f'{MAX_CUTTING} files are being cut; try later, or fetch the whole file'
            raise RefusalError(503, why, {'retry-after': f'{CUT_RETRY_S}'})
        # A body that nobody begins to send gives its place back as well.
        release = weakref.finalize(file, self._cutting.release)
        chunks = request.connection['rgi.ChunkedOutput'](stream_cuts(file, hashed, release))
        return Response(200, 'OK', dict(_PLAIN), chunks)

    def _check_unchanged(self, signature: Signature, hashed: Hashed) -> None:
        """Raise ContentChangedError if a file is not what was hashed any more."""
        if signature != hashed.signature:
            raise ContentChangedError(format_native(hashed.path))

    def _find_root(self, segments: list[str]) -> Hashed:
        if len(segments) != 1 or not is_root(segments[0]):
            raise RefusalError(400, 'a root is 52 characters of base32, lower case')
        hashed = self._hashes.find_root(segments[0])
        if hashed is None:
            raise RefusalError(404, 'no file with this root is known; list it with roots=1')
        return hashed

    def _send(self, request: _Request, path: Path, expected: Hashed | None) -> Response:
        """Send the file at `path`, or the part of it that `range` asks for.

        `expected` is what it must still be. Raises RefusalError, ContentChangedError, OSError.
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
                raise RefusalError(416, 'the range is not in the file', {'content-range': part})
            status, reason, start, stop = 206, 'Partial Content', part.start, part.stop
            headers['content-range'] = part
        if content is not None:
            return Response(status, reason, headers, content[start:stop])
        file.seek(start)
        body = request.connection['rgi.FileOutput'](file, stop - start)
        return Response(status, reason, headers, body)

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
            raise RefusalError(413, f'the question has up to {MAX_PACK_REQUEST} bytes')
        yield piece


def _path_of(segments: list[str]) -> Path:
    """Return the path of a request; one "/" at its end means nothing."""
    if segments and not segments[-1]:
        segments = segments[:-1]
    try:
        return parse_path('/'.join(segments))
    except PathError as error:
        raise RefusalError(400, f'not a path: {error.reason}') from error


def _not_there(error: Exception) -> RefusalError:
    """Return the refusal for a path that leads to nothing, or to what is not followed."""
    if isinstance(error, OSError) and error.errno not in NOT_THERE:
        raise error
    return RefusalError(404, 'nothing is there, or it is no file')
