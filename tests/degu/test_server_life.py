"""How a server ends, and what it survives: the accept loop never gives up."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref

import pytest

from degu import IPv4_LOOPBACK
from degu.client import Client, build_client_sslctx
from degu.rgi import Validator
from degu.server import Server, SSLServer, build_server_sslctx

GET = b'GET / HTTP/1.1\r\n\r\n'
OK = b'HTTP/1.1 200 OK\r\n\r\n'
AT_ONCE_S = 1.0
WAIT_S = 10.0


def ok(connection, request):
    return 200, 'OK', {}, None


class Waiting:
    """An application that waits inside a request until it is told to go on."""

    def __init__(self):
        self.began = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, connection, request):
        self.began.set()
        assert self.go_on.wait(WAIT_S)
        return 200, 'OK', {}, None


class Serving:
    """A server whose serve_forever() runs in a thread, and how long it took to return."""

    def __init__(self, app, address=IPv4_LOOPBACK, **options):
        self.server = Server(address, app, **options)
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown(0.1)
        self.thread.join()

    def shutdown(self, timeout_s):
        self.server.shutdown(timeout_s)

    def ends_within(self, timeout_s):
        self.thread.join(timeout_s)
        return not self.thread.is_alive()


# --- shutdown ------------------------------------------------------------------------------------


def test_idle_connections_end_at_once(dial):
    with Serving(ok) as serving:
        idle = dial(serving.server.address)
        idle.send(GET)
        assert idle.read_preamble() == OK
        serving.shutdown(WAIT_S)
        assert idle.read_to_end() == b''
        assert serving.ends_within(AT_ONCE_S)


def test_a_new_connection_may_still_make_its_first_request(dial, serve, temp_pki, tmp_path):
    sslctx = build_server_sslctx(temp_pki.get_server_config())
    servers = [serve(ok), serve(ok, str(tmp_path / 'socket')), serve(ok, sslctx=sslctx)]
    peers = [dial(server.address) for server in servers]
    for server in servers:
        # Whoever came later is through: so the one before was accepted.
        later = dial(
            server.address,
            None,
            build_client_sslctx(temp_pki.get_client_config()) if server is servers[2] else None,
        )
        later.send(GET)
        assert later.read_preamble() == OK
        server.shutdown(WAIT_S)
        assert later.read_to_end() == b''
    peers[2].sock = build_client_sslctx(temp_pki.get_client_config()).wrap_socket(peers[2].sock)
    for peer in peers:
        peer.send(GET + GET)
        assert peer.read_to_end() == OK


def test_a_new_connection_that_says_nothing_has_half_a_second(dial):
    with Serving(ok) as serving:
        silent = dial(serving.server.address)
        later = dial(serving.server.address)
        later.send(GET)
        assert later.read_preamble() == OK
        started = time.monotonic()
        serving.shutdown(WAIT_S)
        assert silent.read_to_end() == b''
        assert serving.ends_within(AT_ONCE_S)
        assert 0.5 <= time.monotonic() - started < 0.5 + AT_ONCE_S


def test_a_stalled_handshake_has_half_a_second(dial, serve, temp_pki):
    server = serve(ok, sslctx=build_server_sslctx(temp_pki.get_server_config()))
    peer = dial(server.address)
    peer.send(b'\x16\x03\x01')
    # Whoever came later is through: so the one before is in its handshake.
    later = dial(server.address, None, build_client_sslctx(temp_pki.get_client_config()))
    later.send(GET)
    assert later.read_preamble() == OK
    started = time.monotonic()
    server.shutdown(WAIT_S)
    assert b'HTTP' not in peer.read_to_end()  # an alert
    assert 0.5 <= time.monotonic() - started < 0.5 + AT_ONCE_S


def test_a_running_request_ends_and_then_its_connection(dial):
    app = Waiting()
    with Serving(Validator(app)) as serving:
        peer = dial(serving.server.address)
        peer.send(GET + GET)
        assert app.began.wait(WAIT_S)
        serving.shutdown(WAIT_S)
        assert not serving.ends_within(0.1)
        app.go_on.set()
        assert peer.read_to_end() == OK
        assert serving.ends_within(AT_ONCE_S)


def test_a_request_that_waits_for_its_peer_is_cut_off_when_the_time_is_up(dial):
    def app(connection, request):
        began.set()
        request['body'].read()
        return 200, 'OK', {}, None

    began = threading.Event()
    with Serving(app) as serving:
        peer = dial(serving.server.address)
        peer.send(b'PUT / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhel')
        assert began.wait(WAIT_S)
        started = time.monotonic()
        serving.shutdown(0.3)
        assert serving.ends_within(WAIT_S)
        assert 0.3 <= time.monotonic() - started < 0.3 + AT_ONCE_S
        assert peer.is_cut_off()


def test_a_response_that_nobody_reads_is_cut_off_when_the_time_is_up(dial):
    with Serving(lambda c, r: (200, 'OK', {}, bytes(32 * 1024 * 1024))) as serving:
        peer = dial(serving.server.address)
        peer.send(GET)
        assert peer.read_preamble().startswith(b'HTTP/1.1 200 OK\r\n')
        serving.shutdown(0.1)
        assert serving.ends_within(0.1 + AT_ONCE_S)


def test_a_request_that_never_ends_does_not_keep_the_server(dial, caplog):
    app = Waiting()
    with Serving(app) as serving:
        peer = dial(serving.server.address)
        peer.send(GET)
        assert app.began.wait(WAIT_S)
        serving.shutdown(0.1)
        assert serving.ends_within(WAIT_S)
        assert '1 requests did not end at shutdown' in caplog.text
        assert peer.is_cut_off()
        app.go_on.set()


def test_nothing_is_accepted_after_a_shutdown(dial):
    app = Waiting()
    with Serving(app) as serving:
        peer = dial(serving.server.address)
        peer.send(GET)
        assert app.began.wait(WAIT_S)
        serving.shutdown(WAIT_S)

        def is_refused():
            try:
                dial(serving.server.address).close()
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:  # it was in the queue when the listener was closed
                return False
            return False

        wait_for(is_refused)
        app.go_on.set()
        assert peer.read_to_end() == OK


def test_shutdown_may_come_twice_before_and_after():
    server = Server(IPv4_LOOPBACK, ok)
    server.shutdown()
    server.shutdown()
    server.serve_forever()
    server.shutdown()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.address)


def test_shutdown_from_inside_a_request(dial):
    def app(connection, request):
        serving.shutdown(WAIT_S)
        return 200, 'OK', {}, None

    with Serving(app) as serving:
        peer = dial(serving.server.address)
        peer.send(GET)
        assert peer.read_to_end() == OK
        assert serving.ends_within(AT_ONCE_S)


def test_the_with_block_shuts_down_after_an_exception_too(dial):
    with pytest.raises(LookupError), Server(IPv4_LOOPBACK, ok) as server:
        raise LookupError
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.address)


# --- in a process of its own ---------------------------------------------------------------------

SERVE = """
import logging, resource, signal, sys, threading
from degu.server import Server
logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr)
server = Server(('127.0.0.1', 0), lambda c, r: (200, 'OK', {}, None))
signal.signal(signal.SIGTERM, lambda number, frame: server.shutdown())
PREPARE
print(server.address[1], flush=True)
server.serve_forever()
print('ended', flush=True)
"""


@contextlib.contextmanager
def serving_process(tmp_path, prepare=''):
    """Run a server in a fresh interpreter; give its address, the process and its log."""
    log_path = tmp_path / 'log'
    with (
        log_path.open('wb') as log,
        subprocess.Popen(
            [sys.executable, '-W', 'error', '-c', SERVE.replace('PREPARE', prepare)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            yield ('127.0.0.1', int(process.stdout.readline())), process, log_path
        finally:
            process.kill()


def wait_for(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_shutdown_from_a_signal_handler(dial, tmp_path):
    with serving_process(tmp_path) as (address, process, _log):
        idle = dial(address)
        idle.send(GET)
        assert idle.read_preamble() == OK
        process.send_signal(signal.SIGTERM)
        assert idle.read_to_end() == b''
        assert process.stdout.read() == 'ended\n'
        assert process.wait(WAIT_S) == 0


def test_a_signal_that_another_thread_gets_wakes_the_accept_loop_too(dial, tmp_path):
    """So does one that comes in the moment before the loop begins to wait."""
    prepare = """
def app(connection, request):
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    return 200, 'OK', {}, None
server.app = app
"""
    with serving_process(tmp_path, prepare) as (address, process, _log):
        peer = dial(address)
        peer.send(GET)
        assert peer.read_to_end() == OK
        assert process.wait(WAIT_S) == 0


def test_signals_that_mean_nothing_to_the_server_do_not_keep_it_busy(dial, tmp_path):
    prepare = 'signal.signal(signal.SIGUSR1, lambda number, frame: None)'
    with serving_process(tmp_path, prepare) as (address, process, _log):
        for _ in range(3):
            process.send_signal(signal.SIGUSR1)
            peer = dial(address)
            peer.send(GET)
            assert peer.read_preamble() == OK
        with open(f'/proc/{process.pid}/stat') as fp:
            before = fp.read().split()[13:15]
        time.sleep(0.3)  # a loop that does not wait would use all of this time
        with open(f'/proc/{process.pid}/stat') as fp:
            after = fp.read().split()[13:15]
        assert sum(map(int, after)) - sum(map(int, before)) <= 5  # ticks of 10 ms


def test_the_accept_loop_survives_a_lack_of_descriptors(dial, tmp_path):
    prepare = 'resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))'
    with serving_process(tmp_path, prepare) as (address, process, log):
        first = dial(address)
        first.send(GET)
        assert first.read_preamble() == OK
        many = [dial(address) for _ in range(20)]
        wait_for(lambda: 'Too many open files' in log.read_text())
        first.send(GET)
        assert first.read_preamble() == OK
        for peer in many:
            peer.close()
        last = dial(address)
        last.send(GET)
        assert last.read_preamble() == OK
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0


def test_the_accept_loop_backs_off_while_descriptors_lack(dial, tmp_path):
    prepare = 'resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))'
    with serving_process(tmp_path, prepare) as (address, _process, log):
        started = time.monotonic()
        many = [dial(address) for _ in range(20)]
        # 10, 20, 40, 80, 100, 100 ... ms
        wait_for(lambda: log.read_text().count('Too many open files') >= 7)
        assert time.monotonic() - started > 0.2
        for peer in many:
            peer.close()


def test_the_accept_loop_survives_a_lack_of_threads(dial, tmp_path):
    """The address space has no room for another thread's stack, until a signal makes room."""
    prepare = """
size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
threading.stack_size(256 * 1024 * 1024)
resource.setrlimit(resource.RLIMIT_AS, (size + 64 * 1024 * 1024, resource.RLIM_INFINITY))
make_room = lambda number, frame: resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
signal.signal(signal.SIGUSR1, make_room)
"""
    with serving_process(tmp_path, prepare) as (address, process, log):
        for _ in range(3):
            assert dial(address).is_cut_off()
        assert "can't start new thread" in log.read_text()
        process.send_signal(signal.SIGUSR1)

        def is_served():
            peer = dial(address)
            with contextlib.suppress(ConnectionError, EOFError):
                peer.send(GET)
                return peer.read_preamble() == OK
            return False

        wait_for(is_served)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0


@pytest.mark.parametrize('kind', ['ipv4', 'unix'])
def test_a_client_that_is_gone_before_accept_harms_nobody(dial, tmp_path, kind):
    address = IPv4_LOOPBACK if kind == 'ipv4' else str(tmp_path / 'socket')
    server = Server(address, ok)
    for _ in range(3):
        peer = dial(server.address)
        # Close with a reset: what was not accepted yet is gone.
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        peer.send(GET)
        peer.close()
    with server:
        peer = dial(server.address)
        peer.send(GET)
        assert peer.read_preamble() == OK


def test_a_client_that_goes_inside_a_request_harms_nobody(dial, serve, caplog):
    server = serve(lambda c, r: (200, 'OK', {}, bytes(32 * 1024 * 1024)))
    peer = dial(server.address)
    peer.send(GET)
    peer.read(1000)
    peer.close()
    peer = dial(server.address)
    peer.send(b'HEAD / HTTP/1.1\r\nconnection: close\r\n\r\n')
    assert peer.read_to_end().startswith(b'HTTP/1.1 500 ')


# --- the log -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'bytes_',
    [
        pytest.param(GET, id='the client goes inside the response'),
        pytest.param(
            b'PUT / HTTP/1.1\r\ncontent-length: 9\r\n\r\nshort',
            id='the client goes inside its body',
        ),
        pytest.param(b'DELETE / HTTP/1.1\r\n\r\n', id='the body of the response breaks off'),
    ],
)
def test_what_an_application_holds_is_let_go_when_the_connection_fails(
    caplog, dial, serve, script, bytes_
):
    """At once, not at the next garbage collection: it may be a connection to another server."""
    caplog.set_level(logging.CRITICAL, 'degu.server')  # a kept record would keep the frames
    let_go = threading.Event()

    def break_off(raw):
        raw.read_preamble()
        raw.send(b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort')

    upstream = Client(script(break_off).address)

    def app(connection, request):
        held = connection['__held'] = set()
        weakref.finalize(held, let_go.set)
        if request['method'] == 'DELETE':
            connection['__upstream'] = upstream.connect()
            return connection['__upstream'].get('/')
        if request['body'] is not None:
            return 200, 'OK', {}, request['body'].read()
        return 200, 'OK', {}, connection['rgi.ChunkedOutput'](itertools.repeat(bytes(10_000)))

    peer = dial(serve(app).address)
    gc.disable()
    try:
        peer.send(bytes_)
        if bytes_[:3] != b'PUT':
            peer.read_preamble()
        peer.close()
        assert let_go.wait(WAIT_S)
    finally:
        gc.enable()


def test_a_connection_is_one_line_and_a_request_one_if_asked_for(dial, caplog):
    caplog.set_level(logging.DEBUG)
    with Server(IPv4_LOOPBACK, ok) as server:
        peer = dial(server.address)
        peer.send(GET + b'PUT /a/b HTTP/1.1\r\nconnection: close\r\n\r\n')
        peer.read_to_end()
        client = peer.sock.getsockname()
    access = [r.getMessage() for r in caplog.records if r.name == 'degu.server.access']
    assert access == [f'{client!r}: GET /: 200', f'{client!r}: PUT /a/b: 200']
    (line,) = [r.getMessage() for r in caplog.records if r.name == 'degu.server']
    assert line.startswith(f'{server.address!r}: {client!r}: 2 requests in 0.')
    assert line.endswith(' s: connection: close')


def test_a_client_on_a_unix_socket_is_who_the_kernel_says(dial, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    with Server(str(tmp_path / 'socket'), ok) as server:
        peer = dial(server.address)
        peer.send(b'GET / HTTP/1.1\r\nconnection: close\r\n\r\n')
        peer.read_to_end()
    me = f'pid {os.getpid()}, uid {os.getuid()}'
    access, line = (r.getMessage() for r in caplog.records if r.name.startswith('degu.server'))
    assert access == f'{me}: GET /: 200'
    assert line.startswith(f'{server.address!r}: {me}: 1 requests in 0.')


@pytest.mark.parametrize('scheme', ['http', 'https'])
def test_a_client_that_leaves_inside_a_response_went_away(dial, caplog, temp_pki, scheme):
    caplog.set_level(logging.INFO)

    def app(connection, request):
        return 200, 'OK', {}, connection['rgi.ChunkedOutput'](itertools.repeat(bytes(10_000)))

    sslctx = None
    if scheme == 'http':
        server = Server(IPv4_LOOPBACK, app)
    else:
        server = SSLServer(build_server_sslctx(temp_pki.get_server_config()), IPv4_LOOPBACK, app)
        sslctx = build_client_sslctx({**temp_pki.get_client_config(), 'check_hostname': False})
    with server:
        peer = dial(server.address, sslctx=sslctx)
        peer.send(GET)
        peer.read_preamble()
        peer.close()
    (line,) = [r.getMessage() for r in caplog.records if r.name == 'degu.server']
    assert line.endswith(' s: the client went away')


REFUSED = re.compile(r'refused (\d+), the last .*: max_connections_per_address=1')


def count_refused(caplog):
    return [int(count) for count in REFUSED.findall(caplog.text)]


def test_refused_connections_are_counted_in_a_line_a_second(dial, serve, caplog):
    server = serve(ok, max_connections_per_address=1)
    first = dial(server.address)
    first.send(GET)
    assert first.read_preamble() == OK
    started = time.monotonic()
    assert dial(server.address).is_cut_off()
    assert count_refused(caplog) == [1]
    for _ in range(50):
        assert dial(server.address).is_cut_off()
    # The rest is told without another one to be refused.
    wait_for(lambda: sum(count_refused(caplog)) == 51)
    seconds = time.monotonic() - started
    assert seconds >= 1
    assert len(count_refused(caplog)) <= 1 + seconds


def test_refused_connections_are_told_of_before_the_server_ends(dial, caplog):
    with Server(IPv4_LOOPBACK, ok, max_connections_per_address=1) as server:
        first = dial(server.address)
        first.send(GET)
        assert first.read_preamble() == OK
        for _ in range(5):
            assert dial(server.address).is_cut_off()
    assert sum(count_refused(caplog)) == 5


@pytest.mark.parametrize(
    'request_',
    [
        b'PUT /a?token=S3CRET HTTP/1.1\r\nauthorization: S3CRET\r\ncontent-length: 6\r\n\r\nS3CRET',
        b'GET /a?S3CRET HTTP/1.1\r\nauthorization : S3CRET\r\n\r\n',
        b'S3CRET /S3CRET HTTP/1.1\r\n\r\n',
        b'GET /fail?S3CRET HTTP/1.1\r\nauthorization: S3CRET\r\n\r\n',
        b'PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nS3CRET\r\n',
    ],
)
def test_no_secret_is_logged(dial, caplog, request_):
    def app(connection, request):
        if request['path'] == ['fail']:
            raise LookupError('a bug')
        if request['body'] is not None:
            request['body'].read()
        return 200, 'OK', {'set-cookie': 'S3CRET'}, b'S3CRET'

    caplog.set_level(logging.DEBUG)
    with Server(IPv4_LOOPBACK, app) as server:
        peer = dial(server.address)
        peer.send(request_)
        peer.end()
        peer.read_to_end()
    assert caplog.records
    assert 'S3CRET' not in caplog.text


def test_control_characters_of_a_peer_do_not_reach_the_log(dial, caplog, tmp_path):
    """A socket's name is its owner's choice; so is all else that is logged of a peer."""
    caplog.set_level(logging.DEBUG)
    with Server(str(tmp_path / 'socket'), ok) as server, socket.socket(socket.AF_UNIX) as sock:
        sock.bind(b'\0evil\n\x1b[2J%d' % os.getpid())
        sock.connect(server.address)
        sock.sendall(b'GET / HTTP/1.1\r\nconnection: close\r\n\r\n')
        assert sock.recv(1000) == OK
        assert sock.recv(1000) == b''
    assert caplog.records
    assert not any(c in r.getMessage() for r in caplog.records for c in '\n\x1b')
