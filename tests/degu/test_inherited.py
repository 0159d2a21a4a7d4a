"""Listening sockets that systemd opens, with its own program for trying that out."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from degu import net
from degu.client import Client
from degu.server import Server

WAIT_S = 10.0
SERVE = """
import os, signal, sys
from degu import net
from degu.server import Server

def app(connection, request):
    return 200, 'OK', {'address': repr(connection['server'])}, str(os.getpid()).encode()

server = Server(net.inherited(int(sys.argv[1])), app)
signal.signal(signal.SIGTERM, lambda number, frame: server.shutdown())
server.serve_forever()
"""


@pytest.fixture
def activate(require_program, tmp_path):
    """Give `activate(*options, index=0)`: systemd's program, which starts ours when asked."""
    program = require_program('systemd-socket-activate')
    with contextlib.ExitStack() as stack:

        def start(*options, index=0):
            process = stack.enter_context(
                subprocess.Popen(
                    [program, *options, sys.executable, '-c', SERVE, str(index)],
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return process

        yield start


def ask(address):
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            with Client(address).connect() as conn:
                response = conn.get('/')
                return int(response.body.read()), response.headers['address']
        except (ConnectionRefusedError, FileNotFoundError):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_an_inherited_tcp_socket_is_served(activate, free_address):
    process = activate('--listen', '{}:{}'.format(*free_address))
    # systemd's program becomes ours.
    assert ask(free_address) == (process.pid, repr(free_address))
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_S) == 0


def test_the_file_of_an_inherited_socket_is_systemd_s_to_remove(activate, tmp_path):
    path = str(tmp_path / 'socket')
    process = activate('--listen', path)
    assert ask(path) == (process.pid, repr(path))
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_S) == 0
    assert os.listdir(tmp_path) == ['socket']


def test_an_inherited_socket_is_chosen_by_its_number(activate, tmp_path):
    paths = [str(tmp_path / name) for name in ('first', 'second')]
    activate(*(f'--listen={path}' for path in paths), index=1)
    assert ask(paths[1])[1] == repr(paths[1])


@pytest.mark.parametrize(
    ('options', 'index', 'reason'),
    [
        ([], 1, 'there is no inherited socket number 1: this program was started with 1'),
        ([], -1, 'there is no inherited socket number -1'),
        (['--datagram'], 0, 'an inherited socket must be a stream socket that listens'),
    ],
    ids=['too-high', 'negative', 'datagram'],
)
def test_what_cannot_be_served_is_refused_with_the_reason(
    activate, tmp_path, options, index, reason
):
    path = str(tmp_path / 'socket')
    process = activate(*options, '--listen', path, index=index)
    kind = socket.SOCK_DGRAM if options else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, kind) as sock:
        deadline = time.monotonic() + WAIT_S
        while sock.connect_ex(path):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        sock.send(b'x')
        _, error = process.communicate(timeout=WAIT_S)
    assert f'ValueError: {reason}' in error


def test_a_connection_is_no_socket_that_listens():
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(ValueError, match=r'Accept=no'):
        Server(net.Inherited(ours.detach(), False), print)


def test_a_program_that_was_started_without_one_is_told_what_to_do():
    with pytest.raises(ValueError, match='started with 0; start it through a systemd socket unit'):
        net.inherited()


def test_sockets_that_are_meant_for_another_process_are_not_ours(monkeypatch):
    monkeypatch.setenv('LISTEN_FDS', '1')
    monkeypatch.setenv('LISTEN_PID', str(os.getppid()))
    with pytest.raises(ValueError, match='started with 0'):
        net.inherited()


@pytest.mark.parametrize('index', ['0', True, None])
def test_the_number_of_an_inherited_socket_is_an_int(index):
    with pytest.raises(TypeError, match='index must be an int'):
        net.inherited(index)
