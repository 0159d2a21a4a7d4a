"""What a server and a client do while one of their system calls fails, and how each checks itself.

1. `serve()` runs a server until SIGTERM, `talk()` a client through its conversations, each on a
   connection of its own. Each is the whole life of a process, and reports with a line of JSON.
2. Each side knows every byte that it must get. A body that is accepted as whole and is not is wrong
   data, the worst there is; all else that goes wrong must be an error that the docs name.
3. Each side looks at its own descriptors and threads when it is done, and at what Python could not
   raise: an exception in a thread or a finalizer, a socket that only the garbage collector closed.

`pause()` is where the driver (torture.py) attaches strace to a thread, and where it detaches: what
the scenario does for itself, before and after, is not traced.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

from degu import net
from degu.bodies import ChunkedOutput, FileOutput, Output
from degu.client import Client, SSLClient
from degu.errors import DeguError
from degu.server import Server, SSLServer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from degu.client import Connection
    from degu.net import Address

DEADLINE_S = 12.0
"""Longer than any wait of the scenario, shorter than any timeout of the core that could end one."""
GRACE_S = 2.0
STOP_S = 0.5
"""How long the server waits at its end for the idle connection, if it could not tell it."""
SMALL = b'small ' * 10
BIG = bytes(range(256)) * 1024  # 256 KiB: more than leaves in one buffer with its preamble
CHUNKS = [b'one', b'two' * 50_000, b'three']  # a small one, one above 64 KiB, a small one
SENT = {'small': SMALL, 'big': BIG, 'chunks': b''.join(CHUNKS)}
"""What the client sends to /echo, by its query."""
ENDLESS_SIZE = 64 * 1024 * 1024
"""More than the sockets' buffers take, so that whoever sends it meets a peer that is gone."""


class WrongDataError(Exception):
    """A body was taken as whole and is another one. This must never happen."""


class RefusedError(Exception):
    """The server answered with an error; of all that is not whole the harmless kind."""


class ReportPipe:
    """The one way to the driver, by a call that nothing else here makes (and that never fails)."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe()

    def send(self, kind: str, value: Any) -> None:
        os.writev(self._write_end, [json.dumps([kind, value]).encode()[:4000] + b'\n'])

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self._write_end)


def pause(pipe: ReportPipe) -> None:
    """Say which thread this is and wait for SIGUSR1."""
    pipe.send('paused', threading.get_native_id())
    signal.sigwait({signal.SIGUSR1})


# --- what a process must not leave ---------------------------------------------------------------


class Watch:
    """What this process has open, and what went wrong behind its back."""

    def __init__(self) -> None:
        # Before there is any other thread: the kernel may give the signal to each.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        faulthandler.dump_traceback_later(DEADLINE_S, exit=True)
        self.faults: list[str] = []
        warnings.simplefilter('error')
        sys.unraisablehook = lambda event: self.faults.append(f'unraisable: {event.exc_value!r}')
        threading.excepthook = lambda event: self.faults.append(f'in thread: {event.exc_value!r}')
        self._before = self._look()

    @staticmethod
    def _look() -> frozenset[str]:
        names = set()
        for number in os.listdir('/proc/self/fd'):
            with contextlib.suppress(FileNotFoundError):  # the one that listed them
                os.stat(f'/proc/self/fd/{number}')
                names.add(f'descriptor {number}')
        return frozenset(names | {f'thread {number}' for number in os.listdir('/proc/self/task')})

    def find_leaks(self) -> list[str]:
        deadline = time.monotonic() + GRACE_S
        while leaks := self._look() - self._before:
            if time.monotonic() > deadline:
                break
            gc.collect()
            time.sleep(0.002)
        return sorted(leaks)


class _Records(logging.Handler):
    """The log, in memory: a handler that writes would make system calls of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


# --- the server ----------------------------------------------------------------------------------


class App:
    """Answers with known bytes, and compares what arrives with them."""

    def __init__(self, path: Path) -> None:
        self.fp = path.open('rb', buffering=0)
        self.wrong: list[str] = []

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Any:
        match request['path']:
            case ['small']:
                return 200, 'OK', {}, None if request['method'] == 'HEAD' else SMALL
            case ['chunks']:
                return 200, 'OK', {}, ChunkedOutput([*CHUNKS, b''])
            case ['file']:
                self.fp.seek(0)
                return 200, 'OK', {}, FileOutput(self.fp, len(BIG))
            case ['endless']:
                return 200, 'OK', {}, Output(iter(lambda: BIG, b''), ENDLESS_SIZE)
            case ['echo']:
                body = request['body'].read()
                if body != SENT[request['query']]:
                    self.wrong.append(f'{request["query"]}: {len(body)} bytes')
                return 200, 'OK', {}, body
            case _:
                raise LookupError('what a bug in an application may raise')


def build_server(sslctx: ssl.SSLContext | None, address: Address, app: App) -> Server:
    return Server(address, app) if sslctx is None else SSLServer(sslctx, address, app)


def pause_thread(target: int, pipe: ReportPipe) -> None:
    """Have the `target`-th thread of a connection pause before it does anything."""
    started = 0

    def begin(_frame: Any, _event: str, _arg: Any) -> None:
        nonlocal started
        sys.setprofile(None)
        started += 1  # connections come one by one, and each waits for the one before
        if started == target:
            pause(pipe)

    threading.setprofile(begin)


def serve(
    pipe: ReportPipe,
    sslctx: ssl.SSLContext | None,
    address: Address,
    path: Path,
    target: int | None,
) -> None:
    """Be a server. `target` 0 pauses this thread, N the thread of the N-th connection."""
    records = _Records()
    log = logging.getLogger('degu')
    log.addHandler(records)
    log.setLevel(logging.INFO)
    app = App(path)
    report: dict[str, Any] = {}
    watch = Watch()
    if target == 0:
        pause(pipe)
    elif target is not None:
        pause_thread(target, pipe)
    try:
        server = build_server(sslctx, address, app)
    except (DeguError, OSError) as error:
        report['refused'] = repr(error)
    else:
        signal.signal(signal.SIGTERM, lambda _number, _frame: server.shutdown(STOP_S))
        pipe.send('address', server.address)
        server.serve_forever()
        del server
    if target == 0:
        pause(pipe)
    report['leaks'] = watch.find_leaks()
    report['faults'] = watch.faults
    report['wrong'] = app.wrong
    report['log'] = [
        f'{record.levelname}: {record.msg} {record.exc_info and record.exc_info[0].__name__}'  # type: ignore[union-attr,index]
        for record in records.records
        if record.levelno >= logging.WARNING
    ]
    pipe.send('server', report)


# --- the client ----------------------------------------------------------------------------------


def build_client(sslctx: ssl.SSLContext | None, address: Address) -> Client:
    return Client(address) if sslctx is None else SSLClient(sslctx, address)


def expect(response: Any, body: bytes) -> None:
    """Compare a response with the one it must be, its body read to the end."""
    if response.status != 200:
        raise RefusedError(response.status)
    if response.body is None or response.body.read() != body:
        raise WrongDataError(f'{len(body)} bytes')


def ask_for_everything(conn: Connection, _path: Path) -> None:
    """Make requests of all kinds; the last one ends the connection."""
    expect(conn.get('/small'), SMALL)
    expect(conn.post('/echo?small', None, SMALL), SMALL)
    if conn.head('/small').body is not None:
        raise WrongDataError('HEAD')
    expect(conn.get('/chunks'), SENT['chunks'])
    expect(conn.put('/echo?chunks', None, ChunkedOutput([*CHUNKS, b''])), SENT['chunks'])
    if conn.get('/broken').status != 500:
        raise WrongDataError('a broken application')
    with contextlib.suppress(ConnectionError):
        conn.get('/small')
        raise WrongDataError('a connection that had ended')


def move_files(conn: Connection, path: Path) -> None:
    """Send and receive what is large, files by the kernel where it can."""
    expect(conn.post('/echo?big', None, BIG), BIG)
    with path.open('rb') as fp:
        expect(conn.put('/echo?big', None, fp), BIG)
    expect(conn.get('/file'), BIG)
    response = conn.get('/file')
    buffer = bytearray(len(BIG))
    if response.body is None or response.body.readinto(buffer) != len(BIG) or buffer != BIG:
        raise WrongDataError('readinto')


def abort_download(conn: Connection, _path: Path) -> None:
    """Leave in the middle of a response."""
    response = conn.get('/endless')
    if response.status != 200 or response.body is None:
        raise RefusedError(response.status)
    if response.body.read(len(BIG)) != BIG:
        raise WrongDataError('the beginning of the endless body')


class SourceError(Exception):
    """The source of a request's body failed."""


def fail_in_the_middle() -> Iterator[bytes]:
    yield BIG
    raise SourceError


def abort_upload(conn: Connection, _path: Path) -> None:
    """Leave in the middle of a request."""
    with contextlib.suppress(SourceError):
        conn.put('/echo?big', None, Output(fail_in_the_middle(), 2 * len(BIG)))
        raise WrongDataError('half a request')


def be_refused(conn: Connection, _path: Path) -> None:
    """Send what the server answers with 400."""
    response = conn.get('/small', {'range': 'bytes=0-1,5-6'})
    if response.status != 400 or response.body is None or not response.body.read():
        raise WrongDataError('a bad range')


def be_honest(conn: Connection, path: Path) -> None:
    """Find the server in order."""
    move_files(conn, path)
    expect(conn.get('/small'), SMALL)


CONVERSATIONS = [ask_for_everything, move_files, abort_download, abort_upload, be_refused]
"""In their order; with the idle connection after them, a thread of the server for each."""


def converse(
    client: Client, path: Path, conversations: list[Callable[[Connection, Path], None]]
) -> dict[str, Any]:
    """Have one conversation after the other, whatever becomes of each."""
    report: dict[str, Any] = {'failed': {}, 'wrong': []}
    for conversation in conversations:
        name = conversation.__name__
        try:
            with client.connect() as conn:
                conversation(conn, path)
        except (DeguError, OSError, RefusedError) as error:
            report['failed'][name] = repr(error)
        except WrongDataError as error:
            report['wrong'].append(f'{name}: {error}')
    return report


def talk(
    pipe: ReportPipe, sslctx: ssl.SSLContext | None, address: Address, path: Path, is_target: bool
) -> None:
    """Be a client that has every conversation."""
    watch = Watch()
    if is_target:
        pause(pipe)
    report = converse(build_client(sslctx, address), path, CONVERSATIONS)
    if is_target:
        pause(pipe)
    report['leaks'] = watch.find_leaks()
    pipe.send('client', {**report, 'faults': watch.faults})


def stay(sock: socket.socket) -> str | None:
    """Make a request on a connection that then idles; return what failed."""
    try:
        sock.sendall(b'GET /small HTTP/1.1\r\n\r\n')
        answer = sock.recv(4096)
    except OSError as error:
        return repr(error)
    return None if answer.startswith(b'HTTP/1.1 200 OK\r\n') else repr(answer)


def look_after(
    pipe: ReportPipe, sslctx: ssl.SSLContext | None, address: Address, path: Path
) -> None:
    """Be an honest client after it all, beside a connection that idles until the server ends it.

    The call that fails may be one of this client's connection: then, and only then, a second
    attempt must succeed.
    """
    watch = Watch()
    client = build_client(sslctx, address)
    with net.connect(address, DEADLINE_S) as plain_sock:
        sock = plain_sock
        failed: dict[str, str] = {}
        try:
            if sslctx is not None:
                sock = sslctx.wrap_socket(plain_sock)
        except OSError as error:
            failed[stay.__name__] = repr(error)
        else:
            if fault := stay(sock):
                failed[stay.__name__] = fault
        report = converse(client, path, [be_honest])
        if report['failed']:
            failed |= report['failed']
            report = converse(client, path, [be_honest])
        report['unserved'] = report['failed']
        pipe.send('honest', {**report, 'failed': failed, 'faults': watch.faults})
        with contextlib.suppress(OSError):
            while sock.recv(4096):
                pass
        sock.close()
