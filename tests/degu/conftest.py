"""For the tests of the server and the client: a peer that says exactly what it is told to.

What it says stands in the tables of rows.py. A test that names the fixture of a table is called
with each of its rows. And a server for WSGI applications.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import socket
import struct
import termios
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from degu import IPv4_LOOPBACK
from degu.rgi import Validator
from degu.wsgi import WsgiApp

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType
    from wsgiref.types import WSGIApplication

    from degu.net import Address
    from degu.server import Server


def _import_rows() -> ModuleType:
    """Import rows.py by its path: tests are no package that could be imported."""
    spec = importlib.util.spec_from_file_location('rows', Path(__file__).with_name('rows.py'))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_ROWS = _import_rows()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Call a test with each row of the tables that it names."""
    for name, table in _ROWS.TABLES.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, table, ids=[row.name for row in table])


@pytest.fixture(scope='session')
def rows() -> ModuleType:
    """Give the module rows.py, for a test that builds rows of its own."""
    return _ROWS


TIMEOUT_S = 10.0
"""After this long a test hangs, and fails."""


class Raw:
    """One connection, byte for byte."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(TIMEOUT_S)
        self._data = b''

    def send(self, data: bytes) -> None:
        """Send all of `data`."""
        self.sock.sendall(data)

    def send_each(self, pieces: Iterable[bytes]) -> None:
        """Send the pieces so that the peer receives each one by itself, on AF_UNIX for sure."""
        for piece in pieces:
            self.send(piece)
            deadline = time.monotonic() + TIMEOUT_S
            while _count_unreceived(self.sock):
                assert time.monotonic() < deadline, 'the peer does not read'

    def end(self) -> None:
        """Send nothing more."""
        with contextlib.suppress(OSError):  # the peer may have reset the connection
            self.sock.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError(f'the peer closed the connection after {self._data!r}')
        self._data += data

    def read_preamble(self) -> bytes:
        """Read to the next empty line, which is included."""
        while b'\r\n\r\n' not in self._data:
            self._receive()
        preamble, _, self._data = self._data.partition(b'\r\n\r\n')
        return preamble + b'\r\n\r\n'

    def read(self, size: int) -> bytes:
        """Read `size` bytes."""
        while len(self._data) < size:
            self._receive()
        data, self._data = self._data[:size], self._data[size:]
        return data

    def read_to_end(self) -> bytes:
        """Read all that comes until the peer ends, and end too; a reset is no such end."""
        pieces = [self._data]
        self._data = b''
        while data := self.sock.recv(65536):
            pieces.append(data)
        self.end()
        return b''.join(pieces)

    def is_cut_off(self) -> bool:
        """Wait for the end of the connection, or a reset; tell whether nothing came before it."""
        try:
            return self.read_to_end() == b''
        except ConnectionResetError:
            return True

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()


def _count_unreceived(sock: socket.socket) -> int:
    """Count what was sent and not yet received (AF_UNIX) or acknowledged (TCP). See unix(7)."""
    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b'\0\0\0\0')
    count: int = struct.unpack('=i', answer)[0]
    return count


@pytest.fixture
def dial() -> Iterator[Callable[..., Raw]]:
    """Give `dial(address, source=None, sslctx=None)`: a raw connection to a server."""
    with contextlib.ExitStack() as stack:

        def connect(
            address: tuple[str, int] | str | bytes,
            source: str | None = None,
            sslctx: ssl.SSLContext | None = None,
        ) -> Raw:
            if isinstance(address, tuple):
                sock = socket.create_connection(
                    address[:2], TIMEOUT_S, source_address=(source, 0) if source else None
                )
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                sock = socket.socket(socket.AF_UNIX)
                sock.settimeout(TIMEOUT_S)
                sock.connect(address)
            if sslctx is not None:
                sock = sslctx.wrap_socket(sock)
            raw = Raw(sock)
            stack.callback(raw.close)
            return raw

        yield connect


class Script:
    """A server that accepts one connection after the other and gives each to `handle`."""

    def __init__(
        self, listener: socket.socket, handle: Callable[[Raw], None], sslctx: ssl.SSLContext | None
    ) -> None:
        self.address = listener.getsockname()
        self._listener = listener
        self._handle = handle
        self._sslctx = sslctx
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                sock, _address = self._listener.accept()
            except OSError:  # close() was called
                return
            with sock:
                raw = Raw(sock)
                if self._sslctx is not None:
                    raw = Raw(self._sslctx.wrap_socket(sock, server_side=True))
                try:
                    # The client may go first: what it saw is what its test looks at.
                    with contextlib.suppress(EOFError, ConnectionResetError, BrokenPipeError):
                        self._handle(raw)
                finally:
                    raw.close()

    def close(self) -> None:
        """Stop accepting and wait for the last connection's end."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    """Give `script(handle, sslctx=None)`: a server that does with each connection what it is told.

    It listens on AF_UNIX, with TLS on IPv4; `handle(raw)` runs in the server's thread.
    """
    with contextlib.ExitStack() as stack:

        def start(handle: Callable[[Raw], None], sslctx: ssl.SSLContext | None = None) -> Script:
            if sslctx is None:
                listener = socket.socket(socket.AF_UNIX)
                listener.bind('')  # a free abstract name: unix(7), autobind
                listener.listen()
            else:
                listener = socket.create_server(IPv4_LOOPBACK)
            server = Script(listener, handle, sslctx)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def serve_wsgi(serve: Callable[..., Server], tmp_path: Path) -> Callable[..., Address]:
    """Give `serve_wsgi(app, address=None, sslctx=None)`: the address of a server for a WSGI app.

    It listens on AF_UNIX unless it is told an address. RGI is checked; WSGI is where `app` is a
    validator of the standard library.
    """

    def start(
        app: WSGIApplication, address: Address | None = None, sslctx: ssl.SSLContext | None = None
    ) -> Address:
        path = str(tmp_path / 'socket')
        return serve(Validator(WsgiApp(app)), address or path, sslctx).address

    return start
