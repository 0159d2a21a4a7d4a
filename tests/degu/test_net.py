"""The forms of an address, and sockets that listen, connect and time out."""

from __future__ import annotations

import os
import re
import secrets
import socket
import stat
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from degu import IPv4_ANY, IPv4_LOOPBACK, IPv6_ANY, IPv6_LOOPBACK
from degu.net import (
    KEEP_ALIVE_S,
    WAIT_ENDED,
    Deadline,
    SocketFile,
    check_ip,
    connect,
    disable_delay,
    keep_alive,
    listen,
    parse_address,
    read_credentials,
    remove_socket_file,
    set_timeout,
)
from degu.tls import build_client_sslctx

CONNECT_S = 5.0
NOWHERE = IPv4_LOOPBACK


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('address', 'family'),
    [
        (('127.0.0.1', 0), socket.AF_INET),
        (('localhost', 65535), socket.AF_INET),
        (('::1', 80), socket.AF_INET),
        (('::1', 0, 0, 0), socket.AF_INET6),
        (('fe80::1', 80, 2**20 - 1, 2**32 - 1), socket.AF_INET6),
        (('::ffff:127.0.0.1', 80, 0, 0), socket.AF_INET6),
        ('/run/my.socket', socket.AF_UNIX),
        ('/' + 'x' * 106, socket.AF_UNIX),
        ('/' + '\u00e9' * 53, socket.AF_UNIX),
        (b'\0x', socket.AF_UNIX),
        (b'\0' + b'x' * 107, socket.AF_UNIX),
        (b'\0a\0b\xff', socket.AF_UNIX),
        (IPv4_LOOPBACK, socket.AF_INET),
        (IPv4_ANY, socket.AF_INET),
        (IPv6_LOOPBACK, socket.AF_INET6),
        (IPv6_ANY, socket.AF_INET6),
    ],
    ids=repr,
)
def test_each_form_has_its_family(address, family):
    assert parse_address(address) == (family, address)


@pytest.mark.parametrize(
    ('address', 'kind', 'why'),
    [
        (None, TypeError, "an address is ('ip', port)"),
        (80, TypeError, "an address is ('ip', port)"),
        (['127.0.0.1', 80], TypeError, "an address is ('ip', port)"),
        (bytearray(b'\0x'), TypeError, "an address is ('ip', port)"),
        ((), ValueError, "an address is ('ip', port)"),
        (('127.0.0.1',), ValueError, "an address is ('ip', port)"),
        (('::1', 80, 0), ValueError, "an address is ('ip', port)"),
        (('::1', 80, 0, 0, 0), ValueError, "an address is ('ip', port)"),
        ((b'127.0.0.1', 80), TypeError, 'the host must be a str'),
        ((None, 80), TypeError, 'the host must be a str'),
        (('', 80), ValueError, 'the host must not be empty'),
        (('a\0b', 80), ValueError, 'the host must not be empty or have a NUL'),
        (('127.0.0.1', '80'), TypeError, 'port must be an int'),
        (('127.0.0.1', True), TypeError, 'port must be an int'),
        (('127.0.0.1', 80.0), TypeError, 'port must be an int'),
        (('127.0.0.1', -1), ValueError, 'port must be 0 to 65535'),
        (('127.0.0.1', 65536), ValueError, 'port must be 0 to 65535'),
        (('::1', 65536, 0, 0), ValueError, 'port must be 0 to 65535'),
        (('::1', 80, -1, 0), ValueError, 'flowinfo must be 0 to 1048575'),
        (('::1', 80, 2**20, 0), ValueError, 'flowinfo must be 0 to 1048575'),
        (('::1', 80, '0', 0), TypeError, 'flowinfo must be an int'),
        (('::1', 80, 0, -1), ValueError, 'scopeid must be 0 to 4294967295'),
        (('::1', 80, 0, 2**32), ValueError, 'scopeid must be 0 to 4294967295'),
        (('::1', 80, 0, 'eth0'), TypeError, 'scopeid must be an int'),
        (('127.0.0.1', 80, 0, 0), ValueError, 'the host must be an IPv6 address'),
        (('localhost', 80, 0, 0), ValueError, 'the host must be an IPv6 address'),
        (('fe80::1%eth0', 80, 0, 0), ValueError, 'the host must be an IPv6 address'),
        ('', ValueError, 'a str is a socket path and must be absolute and normalized'),
        ('my.socket', ValueError, 'a str is a socket path and must be absolute and normalized'),
        ('./my.socket', ValueError, 'a str is a socket path and must be absolute and normalized'),
        (
            '/run/../my.socket',
            ValueError,
            'a str is a socket path and must be absolute and normalized',
        ),
        (
            '/run/./my.socket',
            ValueError,
            'a str is a socket path and must be absolute and normalized',
        ),
        (
            '/run//my.socket',
            ValueError,
            'a str is a socket path and must be absolute and normalized',
        ),
        ('/run/', ValueError, 'a str is a socket path and must be absolute and normalized'),
        ('/a\0b', ValueError, 'a socket path is at most 107 bytes, no NUL'),
        ('/' + 'x' * 107, ValueError, 'a socket path is at most 107 bytes'),
        ('/' + '\u00e9' * 54, ValueError, 'a socket path is at most 107 bytes'),
        (b'', ValueError, 'an abstract name is a NUL byte and'),
        (b'\0', ValueError, 'an abstract name is a NUL byte and'),
        (b'name', ValueError, 'an abstract name is a NUL byte and'),
        (b'/run/my.socket', ValueError, 'an abstract name is a NUL byte and'),
        (b'\0' + b'x' * 108, ValueError, 'an abstract name is a NUL byte and'),
    ],
    ids=repr,
)
def test_what_is_no_address_is_refused_and_named(address, kind, why):
    with pytest.raises(kind, match=re.escape(why)) as caught:
        parse_address(address)
    named = address[0] if isinstance(address, tuple) and 'IPv6' in why else address
    assert repr(named) in str(caught.value)
    for use in (lambda: listen(address), lambda: connect(address, CONNECT_S)):
        with pytest.raises(kind, match=re.escape(why)):
            use()


@pytest.mark.parametrize('host', ['localhost', '::1', '127.1', '127.0.0.256', '127.0.0.01', ''])
def test_an_ipv4_address_is_numeric(host):
    with pytest.raises(ValueError, match='the host must be an IPv4 address'):
        check_ip(socket.AF_INET, host)


@pytest.mark.parametrize('host', ['localhost', '::1'])
def test_a_server_does_not_resolve_names(host):
    with pytest.raises(ValueError, match='the host must be an IPv4 address'):
        listen((host, 0))


# --- listen and connect --------------------------------------------------------------------------


def accept(listener):
    """Accept within a time, though the listener itself never waits."""
    listener.settimeout(CONNECT_S)
    return listener.accept()


@pytest.fixture
def abstract_name():
    return b'\0degu-test-' + secrets.token_hex(8).encode()


@pytest.fixture(params=['ipv4', 'ipv6', 'path', 'abstract'])
def address(request, tmp_path, abstract_name):
    """Give one address of each family."""
    return {
        'ipv4': IPv4_LOOPBACK,
        'ipv6': IPv6_LOOPBACK,
        'path': str(tmp_path / 'socket'),
        'abstract': abstract_name,
    }[request.param]


def test_a_client_reaches_a_server(address):
    listener, file = listen(address)
    with closing(listener):
        resolved = listener.getsockname()
        assert type(resolved) is type(address)
        assert (file is not None) == isinstance(address, str)
        if isinstance(address, tuple):
            assert resolved[1] > 0
            assert (resolved[0], *resolved[2:]) == (address[0], *address[2:])
        else:
            assert resolved == address
        client = connect(resolved, CONNECT_S)
        server, _ = accept(listener)
        with closing(client), closing(server):
            client.sendall(b'hello')
            assert server.recv(100) == b'hello'
            server.sendall(b'world')
            assert client.recv(100) == b'world'


def test_the_listener_never_waits(address):
    listener, _ = listen(address)
    with closing(listener), pytest.raises(BlockingIOError):
        listener.accept()


def test_a_client_resolves_names():
    listener, _ = listen(IPv4_LOOPBACK)
    with (
        closing(listener),
        closing(connect(('localhost', listener.getsockname()[1]), CONNECT_S)) as client,
    ):
        assert client.getpeername() == listener.getsockname()


def test_the_codec_for_names_is_there_before_it_is_needed():
    """Python gives up for good on a codec that it could not import once."""
    program = "import sys, degu.net; print('encodings.idna' in sys.modules)"
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == 'True\n'


def test_a_two_tuple_of_a_client_may_be_ipv6():
    listener, _ = listen(IPv6_LOOPBACK)
    with (
        closing(listener),
        closing(connect(('::1', listener.getsockname()[1]), CONNECT_S)) as client,
    ):
        assert client.family == socket.AF_INET6


def test_ipv6_takes_no_ipv4_clients():
    listener, _ = listen(IPv6_ANY)
    with closing(listener), pytest.raises(ConnectionRefusedError):
        connect(('127.0.0.1', listener.getsockname()[1]), CONNECT_S)


def test_ipv4_and_ipv6_can_share_a_port():
    for _ in range(20):
        first, _ = listen(IPv6_ANY)
        with closing(first):
            try:
                second, _ = listen(('0.0.0.0', first.getsockname()[1]))
            except OSError:
                continue  # something else has it
            second.close()
            return
    pytest.fail('no port was free for both')


def test_ipv6_reaches_a_link_local_address_by_its_scope_id():
    with open('/proc/net/if_inet6') as fp:
        found = [line.split() for line in fp if line.startswith('fe80')]
    if not found:
        pytest.skip('no interface has a link-local address')
    digits, index = found[0][0], int(found[0][1], 16)
    ip = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
    listener, _ = listen((ip, 0, 0, index))
    with closing(listener):
        resolved = listener.getsockname()
        assert resolved[3] == index
        connect(resolved, CONNECT_S).close()


def test_a_port_can_be_listened_on_again_at_once():
    listener, _ = listen(IPv4_LOOPBACK)
    resolved = listener.getsockname()
    client = connect(resolved, CONNECT_S)
    server, _ = accept(listener)
    # The side that closes first keeps the port for a while.
    server.close()
    client.close()
    listener.close()
    again, _ = listen(resolved)
    again.close()


def test_a_port_in_use_is_refused():
    listener, _ = listen(IPv4_LOOPBACK)
    with closing(listener), pytest.raises(OSError, match='in use'):
        listen(listener.getsockname())


def test_small_messages_are_sent_at_once():
    for loopback in (IPv4_LOOPBACK, IPv6_LOOPBACK):
        listener, _ = listen(loopback)
        with closing(listener), closing(connect(listener.getsockname(), CONNECT_S)) as client:
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            server, _ = accept(listener)
            with closing(server):
                assert not server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                disable_delay(server)
                assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize('gone', [True, False])
def test_nobody_there_is_the_systems_error(address, gone):
    listener, file = listen(address)
    resolved = listener.getsockname()
    listener.close()
    if gone:
        remove_socket_file(file)
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        connect(resolved, CONNECT_S)


def test_connecting_takes_no_longer_than_its_timeout(address):
    # A full queue of connections that nobody accepts makes the next one wait.
    family, _ = parse_address(address)
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen(0)
        waiting = []
        started = time.monotonic()
        try:
            with pytest.raises(TimeoutError):
                waiting.extend(connect(listener.getsockname(), 0.3) for _ in range(10))
        finally:
            for sock in waiting:
                sock.close()
    assert 0.29 <= time.monotonic() - started < 4


@contextmanager
def full_listener():
    """Give an address whose queue of connections is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(IPv4_LOOPBACK, backlog=0))
        with suppress(TimeoutError):
            while True:
                stack.enter_context(connect(listener.getsockname(), 0.1))
        yield listener.getsockname()


def name_addresses(monkeypatch, *addresses):
    """Let each name stand for these addresses."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, '', where) for where in addresses]
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: found)


def test_all_addresses_of_a_name_share_the_time(monkeypatch):
    with full_listener() as full:
        name_addresses(monkeypatch, full, full, full)
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            connect(('example', 80), 0.6)
        assert 0.59 <= time.monotonic() - started < 1.5


def test_an_address_of_a_name_that_does_not_answer_leaves_time_for_the_next(monkeypatch):
    listener, _ = listen(IPv4_LOOPBACK)
    with closing(listener), full_listener() as full:
        name_addresses(monkeypatch, full, listener.getsockname())
        with closing(connect(('example', 80), 1.0)) as client:
            assert client.getpeername() == listener.getsockname()


# --- deadlines -----------------------------------------------------------------------------------


def test_a_deadline_is_required_to_be_ahead():
    assert 0 < Deadline(CONNECT_S).require() <= CONNECT_S
    with pytest.raises(TimeoutError, match='over after 0 s'):
        Deadline(0).require()


def test_of_two_deadlines_the_sooner_one_counts():
    deadline = Deadline(CONNECT_S)
    assert deadline.within(2 * CONNECT_S) is deadline
    assert deadline.within(CONNECT_S / 2).timeout_s == CONNECT_S / 2


# --- socket files --------------------------------------------------------------------------------


def test_a_socket_file_is_ours_by_device_and_inode(tmp_path):
    path = str(tmp_path / 'socket')
    listener, file = listen(path)
    listener.close()
    status = os.stat(path)
    assert file == SocketFile(path, status.st_dev, status.st_ino)
    assert stat.S_ISSOCK(status.st_mode)


@pytest.mark.parametrize('kind', ['file', 'directory', 'dead_socket', 'live_socket', 'link'])
def test_a_file_that_exists_is_refused_and_kept(tmp_path, kind):
    path = tmp_path / 'socket'
    other = None
    if kind == 'file':
        path.write_bytes(b'precious')
    elif kind == 'directory':
        path.mkdir()
    elif kind == 'link':
        path.symlink_to('nowhere')
    else:
        other, _ = listen(str(path))
        if kind == 'dead_socket':
            other.close()
    before = os.lstat(path)
    with pytest.raises(OSError, match='it exists; if no server runs there any more, remove it'):
        listen(str(path))
    assert os.lstat(path) == before
    if other is not None:
        other.close()


def test_our_own_socket_file_is_removed(tmp_path):
    path = str(tmp_path / 'socket')
    listener, file = listen(path)
    listener.close()
    remove_socket_file(file)
    assert not os.path.lexists(path)
    remove_socket_file(file)


@pytest.mark.parametrize('kind', ['socket', 'file', 'link', 'directory'])
def test_what_replaced_our_socket_file_is_kept(tmp_path, kind):
    path = tmp_path / 'socket'
    listener, file = listen(str(path))
    # Under another name, so that its inode cannot be used again.
    path.rename(tmp_path / 'moved')
    other = None
    if kind == 'socket':
        other, _ = listen(str(path))
    elif kind == 'file':
        path.write_bytes(b'precious')
    elif kind == 'link':
        path.symlink_to('moved')
    else:
        path.mkdir()
    remove_socket_file(file)
    assert os.path.lexists(path)
    for sock in filter(None, (listener, other)):
        sock.close()


def test_an_address_without_a_file_has_nothing_to_remove(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'precious')
    remove_socket_file(None)
    assert path.read_bytes() == b'precious'


def test_a_missing_directory_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        listen(str(tmp_path / 'missing' / 'socket'))


# --- who is there, and how long ------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['path', 'abstract'])
def test_credentials_are_those_of_the_client(tmp_path, abstract_name, kind):
    address = str(tmp_path / 'socket') if kind == 'path' else abstract_name
    listener, _ = listen(address)
    with closing(listener), closing(connect(address, CONNECT_S)):
        server, _ = accept(listener)
        with closing(server):
            credentials = read_credentials(server)
    assert credentials == (os.getpid(), os.getuid(), os.getgid())
    assert credentials._fields == ('pid', 'uid', 'gid')


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize('timeout_s', [0.2, 0.05])
def test_a_plain_socket_stays_blocking_and_its_waits_end(pair, timeout_s):
    ours, _theirs = pair
    set_timeout(ours, timeout_s)
    assert ours.gettimeout() is None
    started = time.monotonic()
    with pytest.raises(WAIT_ENDED):
        ours.recv(1)
    assert timeout_s - 0.01 <= time.monotonic() - started < 3
    with pytest.raises(WAIT_ENDED):
        ours.sendall(bytes(100 << 20))


@pytest.mark.parametrize('timeout_s', [1e-9, 1e-6, 0.001])
def test_the_smallest_timeout_is_not_none_at_all(pair, timeout_s):
    ours, _theirs = pair
    set_timeout(ours, timeout_s)
    started = time.monotonic()
    with pytest.raises(WAIT_ENDED):
        ours.recv(1)
    assert time.monotonic() - started < 3


def test_a_timeout_has_whole_seconds_and_their_parts(pair):
    ours, theirs = pair
    set_timeout(ours, 1.2)
    theirs.sendall(b'x')
    assert ours.recv(1) == b'x'
    started = time.monotonic()
    with pytest.raises(WAIT_ENDED):
        ours.recv(1)
    assert 1.19 <= time.monotonic() - started < 4


def test_a_tls_socket_gets_a_timeout_that_openssl_does_not_retry(pair, temp_pki):
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    with sslctx.wrap_socket(pair[0], do_handshake_on_connect=False) as sock:
        set_timeout(sock, 0.2)
        assert sock.gettimeout() == 0.2
        with pytest.raises(TimeoutError):
            sock.do_handshake()


def test_a_deadline_counts_down_to_zero_and_stays_there():
    deadline = Deadline(60)
    first = deadline.remaining()
    assert 59 < first <= 60
    assert deadline.remaining() <= first
    assert Deadline(0).remaining() == 0.0
    assert Deadline(-5).remaining() == 0.0


def test_the_kernel_asks_whether_a_silent_peer_is_still_there():
    with (
        socket.create_server(('127.0.0.1', 0)) as listener,
        socket.create_connection(listener.getsockname()) as sock,
    ):
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        keep_alive(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEP_ALIVE_S
