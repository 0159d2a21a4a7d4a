"""An RGI application from any WSGI application (PEP 3333), such as those of Flask and Django.

    SSLServer(sslctx, address, WsgiApp(flask_app))

1. The server calls a `WsgiApp` as `degu.rgi` says. `build_environ()` makes the `environ` of the
   connection and the request; `wsgi.input` reads the request's body as it arrives.
2. The WSGI application is called. Its iterable is pulled until the first block that is not empty:
   by then it must have called start_response(), and a failure can still be answered with 500.
3. The rest is pulled by the server as it sends, block by block: an Output where the length is
   known, else a ChunkedOutput. A list with one block, or none, goes out as bytes.
4. close() of the iterable is called in the end, also when the client went away before that.

What the environ has beside PEP 3333:

    degu.connection      the RGI `connection`: `ssl_peer_cert` (DER bytes), `credentials` on
                         AF_UNIX, and what on_connect and middleware added
    HTTPS, SSL_PROTOCOL, SSL_CIPHER, SSL_CLIENT_VERIFY, SSL_CLIENT_CERT (PEM)
                         with TLS, named as Apache's mod_ssl names them
    REMOTE_ADDR, REMOTE_PORT    not on AF_UNIX, where there are none
    REQUEST_URI          the target as it was sent, percent-encoding kept
    wsgi.input_terminated    always true: the input ends where the body does, chunked or not

Nobody can pass off one header as another: `HTTP_X_USER` is `x-user` and nothing else, because the
parser refuses an underscore in a name.

A response goes by the HTTP subset: a value outside the grammar and a hop-by-hop header are refused
when start_response() is called. A header given twice becomes one, joined with a comma, if it may be
a list; a second `set-cookie` is refused. See decision 8.

What is passed to write() leaves when the application returns, and waits in a temporary file beyond
1 MiB. What is written to `wsgi.errors` goes to the logger `degu.wsgi`.
"""

from __future__ import annotations

import io
import logging
import ssl
import sys
import tempfile
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from wsgiref.util import FileWrapper, is_hop_by_hop

from degu import __version__
from degu.bodies import JOIN_SIZE
from degu.errors import DeguError, ProtocolError
from degu.limits import MIB
from degu.util import absolute_uri
from degu.wire import BODILESS_STATUSES, format_response, parse_content_length

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import TypeAlias
    from wsgiref.types import WSGIApplication, WSGIEnvironment

    from degu.bodies import ChunkedInput, Input
    from degu.net import Address
    from degu.rgi import Response
    from degu.wire import Headers

    ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]

__all__ = ['WsgiApp', 'build_environ']

log = logging.getLogger('degu.wsgi')

_ENVIRON_KEY = '__wsgi_environ'
_MAX_WRITTEN = 1 * MIB
"""How much of what was passed to write() waits in memory; more waits in a temporary file."""
# RFC 9110 §5.3: only what is defined as a list may be joined. These are not.
_NO_LISTS = frozenset(
    {
        'age',
        'content-length',
        'content-location',
        'content-range',
        'content-type',
        'date',
        'etag',
        'expires',
        'last-modified',
        'location',
        'retry-after',
    }
)


class WsgiApp:
    """An RGI application around a WSGI application."""

    def __init__(self, app: WSGIApplication) -> None:
        """Wrap `app`. Raises TypeError if it is not callable."""
        if not callable(app):
            raise TypeError(f'app must be callable, not {app!r}')
        self.app = app

    def __repr__(self) -> str:
        return f'WsgiApp({self.app!r})'

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Call the WSGI application and return its response once its first block is there.

        Raises what the application raises, ValueError or TypeError for a response outside PEP 3333
        or the HTTP subset, RuntimeError for calls in the wrong order, and what reading the
        request's body raised.
        """
        errors = _ErrorLog(connection['client'])
        body = request['body']
        environ = build_environ(connection, request)
        environ['wsgi.errors'] = errors
        environ['wsgi.input'] = (
            io.BytesIO() if body is None else io.BufferedReader(_RequestBody(body))
        )
        response = _Response(errors)
        try:
            start_response: Any = response.start  # stricter: nobody gives it three times None
            response.begin(self.app(environ, start_response))
            return response.build(connection, request['method'])
        except _RequestBodyError as error:
            response.close()
            raise error.failure from None
        except BaseException:
            response.close()
            raise


# --- the environ ---------------------------------------------------------------------------------


def build_environ(connection: dict[str, Any], request: dict[str, Any]) -> WSGIEnvironment:
    """Build the environ of a request, all but `wsgi.input` and `wsgi.errors`.

    What is the same for all requests of a connection is kept in `connection`. Paths are decoded to
    "native strings", whose characters stand for bytes. Source: PEP 3333, RFC 3875 §4.1.
    """
    base = connection.get(_ENVIRON_KEY)
    if base is None:
        base = connection[_ENVIRON_KEY] = _describe(connection)
    environ: WSGIEnvironment = {
        **base,
        'REQUEST_METHOD': request['method'],
        'SCRIPT_NAME': _decode_path(request['script']),
        # PEP 3333: one of the two must not be empty.
        'PATH_INFO': _decode_path(request['path']) or ('' if request['script'] else '/'),
        'QUERY_STRING': request['query'],
        'REQUEST_URI': absolute_uri(request),
        'degu.connection': connection,
    }
    for name, value in request['headers'].items():
        variable = name.upper().replace('-', '_')
        if name not in ('content-type', 'content-length'):
            variable = f'HTTP_{variable}'
        environ[variable] = str(value)
    return environ


def _decode_path(segments: list[str]) -> str:
    return unquote(''.join(f'/{segment}' for segment in segments), 'latin-1')


def _describe(connection: dict[str, Any]) -> WSGIEnvironment:
    """Return the part of the environ that is the same for each request of a connection."""
    server, client, scheme = connection['server'], connection['client'], connection['scheme']
    environ = {
        # On AF_UNIX there are no such names, and they must not be empty: a URL needs them.
        'SERVER_NAME': 'localhost',
        'SERVER_PORT': '443' if scheme == 'https' else '80',
        'SERVER_PROTOCOL': connection['protocol'],
        'SERVER_SOFTWARE': f'degu/{__version__}',
        'wsgi.version': (1, 0),
        'wsgi.url_scheme': scheme,
        'wsgi.multithread': True,
        'wsgi.multiprocess': True,  # other processes may serve the same application
        'wsgi.run_once': False,
        'wsgi.input_terminated': True,
        'wsgi.file_wrapper': FileWrapper,
    }
    if isinstance(server, tuple):
        host, port = server[:2]
        environ['SERVER_NAME'] = f'[{host}]' if ':' in host else host
        environ['SERVER_PORT'] = str(port)
    if isinstance(client, tuple):
        environ['REMOTE_ADDR'] = client[0]
        environ['REMOTE_PORT'] = str(client[1])
    if scheme == 'https':
        cert = connection['ssl_peer_cert']
        environ['HTTPS'] = 'on'
        environ['SSL_CIPHER'], environ['SSL_PROTOCOL'], _bits = connection['ssl_cipher']
        environ['SSL_CLIENT_VERIFY'] = 'NONE' if cert is None else 'SUCCESS'
        if cert is not None:
            environ['SSL_CLIENT_CERT'] = ssl.DER_cert_to_PEM_cert(cert)
    return environ


class _RequestBodyError(OSError):
    """Say that the request's body cannot be read as WSGI applications expect it: as an OSError."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(f'the request body cannot be read: {failure}')
        self.failure = failure


class _RequestBody(io.RawIOBase):
    """What a BufferedReader makes `wsgi.input` from: a body's pieces as they arrive."""

    def __init__(self, body: Input | ChunkedInput) -> None:
        self._pieces = iter(body)
        self._rest = memoryview(b'')
        self._failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what our reader gives
        if not self._rest:
            try:
                # Both kinds of body can end with b'', and nothing comes after one.
                self._rest = memoryview(next(self._pieces, b''))
            except (DeguError, OSError) as error:
                self._failure = error
            if self._failure is not None:  # also when asked again: this is no end of the body
                raise _RequestBodyError(self._failure) from self._failure
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


class _ErrorLog:
    """`wsgi.errors`: what is written at once, or up to a line's end, is one record of our log."""

    def __init__(self, client: Address) -> None:
        self._client = client
        self._text = ''
        self._is_logging = False

    def write(self, text: str) -> int:
        self._text += text
        if text.endswith('\n'):
            self.flush()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        text, self._text = self._text.rstrip('\n'), ''
        if not text:
            return
        if self._is_logging:  # the application's logging leads back to here
            print(text, file=sys.stderr)
            return
        self._is_logging = True
        try:
            log.error('%r: %s', self._client, text)
        finally:
            self._is_logging = False


# --- the response --------------------------------------------------------------------------------


def _parse_head(line: str, fields: Iterable[tuple[str, str]]) -> tuple[int, str, Headers]:
    """Parse what start_response() was given into status, reason and headers, and check it.

    Raises TypeError or ValueError.
    """
    status, _, reason = line.partition(' ')
    if len(status) != 3 or not (status.isascii() and status.isdigit()):
        raise ValueError(f'a status must be like "200 OK", not {line!r}')
    values: dict[str, list[str]] = {}
    for name, value in fields:
        if type(name) is not str or type(value) is not str:
            raise TypeError(f'a header must be two str, not {name!r} and {type(value).__name__}')
        # RFC 9110 §5.5: space around a value is not part of it. Django sends " sessionid=...".
        values.setdefault(name.lower(), []).append(value.strip(' \t'))
    headers: Headers = {name: _join_values(name, each) for name, each in values.items()}
    if status == '204':
        headers.pop('content-length', None)  # RFC 9110 §8.6
    elif 'content-length' in headers:
        try:
            headers['content-length'] = parse_content_length(str(headers['content-length']))
        except ProtocolError as error:
            raise ValueError(str(error)) from None
    # As for HEAD: what body there will be is not known yet.
    format_response(int(status), reason, headers, None, 'HEAD')
    return int(status), reason, headers


def _join_values(name: str, values: list[str]) -> str:
    """Make one value of all that a header was given. Source: RFC 9110 §5.3."""
    if is_hop_by_hop(name):
        raise ValueError(f'{name} is about the connection: the server sets it, no WSGI application')
    if len(values) > 1 and name == 'set-cookie':
        cookies = ', '.join(value.partition('=')[0] for value in values)
        raise ValueError(
            f'set-cookie was given for {len(values)} cookies ({cookies}): a response has each '
            'header once, and this one cannot be joined; keep all in one cookie, such as the '
            "framework's session (Django: CSRF_USE_SESSIONS = True), or set one with each response"
        )
    if len(values) > 1 and name in _NO_LISTS:
        raise ValueError(f'{name} was given {len(values)} times, and is no list')
    return ', '.join(values)


class _Response:
    """A response in the making: start_response(), write(), and then the source of the body."""

    __slots__ = (
        '_blocks',
        '_errors',
        '_first',
        '_head',
        '_is_begun',
        '_is_chunked',
        '_iterable',
        '_written',
    )

    def __init__(self, errors: _ErrorLog) -> None:
        self._errors = errors
        self._head: tuple[int, str, Headers] | None = None
        self._is_begun = False  # the head counts as sent
        self._iterable: Iterable[bytes] = ()
        self._blocks: Iterator[bytes] | None = None
        self._first = b''
        self._written: tempfile.SpooledTemporaryFile[bytes] | None = None
        self._is_chunked = False

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Any:
        """Take the head: the `start_response` of PEP 3333."""
        try:
            if exc_info is None and self._head is not None:
                raise RuntimeError('start_response() was called again, without exc_info')
            if exc_info is not None and self._is_begun:
                raise exc_info[1].with_traceback(exc_info[2])
        finally:
            exc_info = None  # its traceback has this frame, which has the traceback
        self._head = _parse_head(status, headers)
        return self._write

    def _write(self, data: bytes) -> None:
        if self._blocks is not None:
            raise RuntimeError('write() must not be called once the application has returned')
        self._is_begun = True
        if self._written is None:
            self._written = tempfile.SpooledTemporaryFile(_MAX_WRITTEN)  # noqa: SIM115  # close() does
        self._written.write(_check_block(data))

    def begin(self, iterable: Iterable[bytes]) -> None:
        """Take what the application returned, and its first block."""
        self._iterable = iterable
        self._blocks = iter(iterable)
        # A file must stay at its position.
        if not isinstance(iterable, FileWrapper):
            self._first = next(self._pull(), b'')
        self._is_begun = True

    def _pull(self) -> Iterator[bytes]:
        """Yield the blocks that are not empty."""
        assert self._blocks is not None
        return filter(None, map(_check_block, self._blocks))

    def build(self, connection: dict[str, Any], method: str) -> Response:
        """Return the RGI response. What is not closed yet is closed by the server."""
        if self._head is None:
            raise RuntimeError('start_response() must be called before the first block')
        status, reason, headers = self._head
        if method == 'HEAD' or status in BODILESS_STATUSES:
            self.close()
            return status, reason, headers, None
        iterable = self._iterable
        length: Any = headers.get('content-length')
        if isinstance(iterable, list | tuple):
            if len(iterable) <= 1 and self._written is None:
                self.close()
                return status, reason, headers, self._first
            if length is None:
                length = sum(map(len, iterable)) + (self._written.tell() if self._written else 0)
        if length is None:
            self._is_chunked = True
            return status, reason, headers, connection['rgi.ChunkedOutput'](self)
        if isinstance(iterable, FileWrapper) and self._written is None:
            # Larger pieces than the application asked for, and no byte more than it announced.
            self._blocks = iter(connection['rgi.FileOutput'](iterable.filelike, length))
        return status, reason, headers, connection['rgi.Output'](self, length)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """Yield the body, as the source of an Output or a ChunkedOutput."""
        try:
            for block in self._gather():
                if self._is_chunked and len(block) > JOIN_SIZE:
                    yield from _split(block)
                else:
                    yield block
        except _RequestBodyError as error:
            raise error.failure from None
        if self._is_chunked:
            yield b''

    def _gather(self) -> Iterator[bytes]:
        if self._written is not None:
            self._written.seek(0)
            while data := self._written.read(JOIN_SIZE):
                yield data
        if self._first:
            yield self._first
            self._first = b''
        yield from self._pull()

    def close(self) -> None:
        """Call the iterable's close(), as PEP 3333 wants it when a response is over."""
        close = getattr(self._iterable, 'close', None)
        # An iterable that keeps start_response() would be a cycle, and linger.
        self._iterable, self._blocks = (), iter(())
        try:
            if close is not None:
                close()
        finally:
            if self._written is not None:
                self._written.close()
            self._errors.flush()


def _check_block(block: object) -> bytes:
    if not isinstance(block, bytes):
        raise TypeError(f'a WSGI application gives bytes, not {type(block).__name__}')
    return block


def _split(block: bytes) -> Iterator[memoryview]:
    """Split a block that may be larger than a chunk may be."""
    view = memoryview(block)
    for start in range(0, len(view), JOIN_SIZE):
        yield view[start : start + JOIN_SIZE]
