"""A server in a process of its own: it starts, reports, and never outlives its parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from degu import IPv4_LOOPBACK, IPv6_LOOPBACK, start_server, start_sslserver
from degu.client import Client, SSLClient, build_client_sslctx

WAIT_S = 10.0


def ok(connection, request):
    return 200, 'OK', {'pid': str(os.getpid())}, None


def build(*args):
    return lambda connection, request: (200, 'OK', {'args': repr(args)}, None)


def end(process):
    process.terminate()
    process.join()
    process.close()


def test_start_server_gives_the_process_and_the_resolved_address():
    process, address = start_server(IPv4_LOOPBACK, None, ok)
    try:
        assert address[0] == '127.0.0.1'
        assert address[1] > 0
        with Client(address).connect() as conn:
            headers = conn.get('/').headers
        assert headers == {'pid': str(process.pid)}
        assert process.pid != os.getpid()
    finally:
        end(process)


@pytest.mark.parametrize('kind', ['ipv6', 'path', 'abstract'])
def test_start_server_takes_every_form_of_address(tmp_path, kind):
    address = {
        'ipv6': IPv6_LOOPBACK,
        'path': str(tmp_path / 'socket'),
        'abstract': b'\0degu-test-process-%d' % os.getpid(),
    }[kind]
    process, address = start_server(address, None, ok)
    try:
        with Client(address).connect() as conn:
            assert conn.get('/').status == 200
    finally:
        end(process)
    assert os.listdir(tmp_path) == []


def test_the_app_is_built_in_the_process_from_the_arguments():
    process, address = start_server(IPv4_LOOPBACK, build, 1, 'two', None)
    try:
        with Client(address).connect() as conn:
            assert conn.get('/').headers == {'args': "(1, 'two', None)"}
    finally:
        end(process)


def test_options_are_the_server_s_limits():
    process, address = start_server(IPv4_LOOPBACK, None, ok, max_requests=1)
    try:
        with Client(address).connect() as conn:
            conn.get('/')
            with pytest.raises(ConnectionError):
                conn.get('/')
    finally:
        end(process)


def test_start_sslserver_serves_tls(temp_pki):
    process, address = start_sslserver(temp_pki.get_server_config(), IPv4_LOOPBACK, None, ok)
    try:
        sslctx = build_client_sslctx(temp_pki.get_client_config())
        with SSLClient(sslctx, address).connect() as conn:
            assert conn.get('/').headers == {'pid': str(process.pid)}
    finally:
        end(process)


class UnpicklableError(Exception):
    def __init__(self, one, two):
        super().__init__(one)
        self.two = lambda: two


def fail(error):
    raise error


def fail_unpicklable():
    raise UnpicklableError('the words', 2)


@pytest.mark.parametrize(
    ('build_func', 'args', 'error', 'reason'),
    [
        (fail, (LookupError('the reason'),), LookupError, 'the reason'),
        (fail_unpicklable, (), RuntimeError, 'UnpicklableError: the words'),
        (None, (), TypeError, 'just the application'),
        (None, (ok, 1), TypeError, 'just the application'),
        (None, (17,), TypeError, 'app must be callable'),
        ('name', (ok,), TypeError, 'build_func must be None or callable'),
        (lambda: 17, (), TypeError, 'app must be callable'),
        (os._exit, (7,), RuntimeError, 'exit code 7'),
    ],
)
def test_a_failure_to_build_is_raised_in_the_caller(build_func, args, error, reason):
    with pytest.raises(error, match=reason):
        start_server(IPv4_LOOPBACK, build_func, *args)


def test_a_failure_to_bind_is_raised_in_the_caller(tmp_path):
    with socket.create_server(IPv4_LOOPBACK) as other:
        address = other.getsockname()
        with pytest.raises(OSError, match='in use'):
            start_server(address, None, ok)
    path = tmp_path / 'socket'
    path.write_text('')
    with pytest.raises(OSError, match='exists'):
        start_server(str(path), None, ok)


@pytest.mark.parametrize('options', [{'max_conections': 1}, {'max_connections': 'x'}])
def test_a_wrong_option_is_raised_in_the_caller(options):
    with pytest.raises(TypeError, match=next(iter(options))):
        start_server(IPv4_LOOPBACK, None, ok, **options)


@pytest.mark.parametrize(
    ('change', 'error'),
    [
        ({'cert_file': 'relative'}, ValueError),
        ({'ca_file': '/does/not/exist'}, FileNotFoundError),
        ({'unknown': 1}, ValueError),
    ],
)
def test_a_wrong_tls_config_is_raised_in_the_caller(temp_pki, change, error):
    with pytest.raises(error):
        start_sslserver(temp_pki.get_server_config() | change, IPv4_LOOPBACK, None, ok)


def test_terminate_is_an_orderly_end(tmp_path):
    process, address = start_server(str(tmp_path / 'socket'), None, ok)
    with Client(address).connect() as conn:
        conn.get('/')
        process.terminate()
        process.join()
        assert process.exitcode == 0
    assert os.listdir(tmp_path) == []
    process.close()


def test_an_interrupt_from_the_keyboard_is_the_parent_s_business():
    process, address = start_server(IPv4_LOOPBACK, None, ok)
    try:
        os.kill(process.pid, signal.SIGINT)
        with Client(address).connect() as conn:
            assert conn.get('/').status == 200
    finally:
        end(process)


PARENT = """
import os, signal, sys
from degu import start_server
process, address = start_server(sys.argv[1], None, lambda c, r: (200, 'OK', {}, None))
print(process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGTERM, None])
def test_the_process_ends_with_its_parent_however_that_went(tmp_path, how):
    path = tmp_path / 'socket'
    with subprocess.Popen(
        [sys.executable, '-c', PARENT, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        pid = int(parent.stdout.readline())
        with Client(str(path)).connect() as conn:
            assert conn.get('/').status == 200
        if how is None:
            parent.stdin.close()
        else:
            parent.send_signal(how)
        parent.wait()
    deadline = time.monotonic() + WAIT_S
    while os.path.exists(f'/proc/{pid}/exe'):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            pytest.fail('the server outlived its parent')
        time.sleep(0.01)
    assert not path.exists()
