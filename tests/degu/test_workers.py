"""Processes that share a listening socket: workers, and a successor."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from degu import IPv4_LOOPBACK, net, start_server, start_sslserver
from degu.client import Client, SSLClient, build_client_sslctx
from degu.server import Server

WAIT_S = 10.0


def app(connection, request):
    match request['path']:
        case ['die']:
            os._exit(3)
        case ['slow']:
            time.sleep(0.5)
    return 200, 'OK', {}, str(os.getpid()).encode()


def ask(client, path='/'):
    with client.connect() as conn:
        return int(conn.get(path).body.read())


def wait_until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, 'it did not come true'
        time.sleep(0.01)


def is_running(pid):
    return Path(f'/proc/{pid}').exists()


def see_all(client, count):
    """Ask until `count` different workers have answered; return their process ids."""
    pids = set()
    wait_until(lambda: len(pids) == count or pids.add(ask(client)))
    return pids


@pytest.fixture(params=['tcp', 'unix', 'tls'])
def start(request, tmp_path, temp_pki):
    """Give `start(**options)`: a process that serves `app`, and a client of it."""
    processes = []

    def run(**options):
        if request.param == 'tls':
            config = temp_pki.get_server_config()
            process, address = start_sslserver(config, IPv4_LOOPBACK, None, app, **options)
            client = SSLClient(build_client_sslctx(temp_pki.get_client_config()), address)
        else:
            where = IPv4_LOOPBACK if request.param == 'tcp' else str(tmp_path / 'socket')
            process, address = start_server(where, None, app, **options)
            client = Client(address)
        processes.append(process)
        return process, client

    yield run
    for process in processes:
        process.terminate()
        process.join()
        process.close()
    assert os.listdir(tmp_path) == []


# --- workers -------------------------------------------------------------------------------------


def test_each_worker_answers_and_the_parent_does_not(start):
    process, client = start(workers=2)
    pids = see_all(client, 2)
    assert process.pid not in pids
    counts = Counter(ask(client) for _ in range(100))
    assert set(counts) == pids


def test_workers_end_with_their_parent(start):
    process, client = start(workers=2)
    pids = see_all(client, 2)
    process.terminate()
    process.join()
    assert process.exitcode == 0
    assert not any(map(is_running, pids))


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    process, address = start_server(str(tmp_path / 'socket'), None, app, workers=2)
    pids = see_all(Client(address), 2)
    process.kill()
    process.join()
    process.close()
    # Nobody collects the orphans here, so a zombie counts as ended.
    wait_until(lambda: not any(_state(pid) not in 'ZX' for pid in pids))
    os.unlink(address)


def _state(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except FileNotFoundError:
        return 'X'


def test_a_worker_that_dies_is_replaced(start):
    _, client = start(workers=2)
    before = see_all(client, 2)
    with pytest.raises(ConnectionError):
        ask(client, '/die')
    # The other one serves on meanwhile.
    assert ask(client) in before
    wait_until(lambda: ask(client) not in before)


def test_a_worker_that_dies_at_once_is_replaced_once_a_second(tmp_path):
    process, address = start_server(str(tmp_path / 'socket'), None, app, workers=2)
    client = Client(address)
    started = time.monotonic()
    dead = set()
    for _ in range(4):
        pid = see_all(client, 1).pop()
        dead.add(pid)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: ask_patiently(client) not in dead)
    # The two that were there, and then one a second at most.
    assert time.monotonic() - started > 1.5
    process.terminate()
    process.join()
    process.close()


def ask_patiently(client):
    """Ask again where the worker died that had accepted."""
    while True:
        try:
            return ask(client)
        except ConnectionError:
            time.sleep(0.01)


def test_a_worker_that_does_not_end_is_killed(tmp_path):
    process, address = start_server(str(tmp_path / 'socket'), None, app, workers=2)
    stopped = see_all(Client(address), 2).pop()
    os.kill(stopped, signal.SIGSTOP)
    started = time.monotonic()
    process.terminate()
    process.join()
    # The time of running requests, and two seconds more.
    assert 7 <= time.monotonic() - started < 7 + WAIT_S
    assert process.exitcode == 0
    assert not is_running(stopped)
    process.close()


def test_running_requests_have_their_time_in_every_worker(start):
    process, client = start(workers=2)
    pids = see_all(client, 2)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask(client, '/slow'))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.2)  # the requests are on their way, or wait to be accepted
    process.terminate()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert set(answers) <= pids


SERVE = """
import os, sys
from degu.server import Server

def app(connection, request):
    return 200, 'OK', {}, str(os.getpid()).encode()

server = Server(sys.argv[1], app, workers=2)
print('ready', flush=True)
server.serve_forever()
"""


def test_ctrl_c_ends_all_in_order(tmp_path):
    address = str(tmp_path / 'socket')
    with subprocess.Popen(
        [sys.executable, '-c', SERVE, address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdout.readline() == 'ready\n'
        pids = see_all(Client(address), 2)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=WAIT_S)
    assert error.count('Traceback') == 1
    assert error.endswith('KeyboardInterrupt\n')
    assert not any(map(is_running, pids))
    assert os.listdir(tmp_path) == []


def test_workers_are_not_forked_beside_threads():
    with (
        pytest.raises(RuntimeError, match=r'serve_forever\(\) or degu.start_server\(\)'),
        Server(IPv4_LOOPBACK, app, workers=2) as server,
    ):
        pass
    server = Server(IPv4_LOOPBACK, app, workers=2)
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match='before this program starts any thread'):
            server.serve_forever()
    finally:
        release.set()
        thread.join()


@pytest.mark.parametrize(
    ('workers', 'error'), [(0, ValueError), (-1, ValueError), (True, TypeError), ('2', TypeError)]
)
def test_a_number_of_workers_that_cannot_be_is_refused(workers, error):
    with pytest.raises(error, match='workers must be'):
        Server(IPv4_LOOPBACK, app, workers=workers)


NO_OUTPUT = """
import os, signal, sys
from degu.server import Server

def app(connection, request):
    print('lost')
    return 200, 'OK', {}, str(os.getpid()).encode()

signal.signal(signal.SIGCHLD, getattr(signal, sys.argv[2]))
server = Server(sys.argv[1], app, workers=2)
signal.signal(signal.SIGTERM, lambda number, frame: server.shutdown())
os.write(int(sys.argv[3]), b'ready')
os.close(int(sys.argv[3]))
server.serve_forever()
"""


@pytest.mark.parametrize('children', ['SIG_DFL', 'SIG_IGN'])
@pytest.mark.parametrize('output', ['closed', 'broken', 'full'])
def test_workers_live_and_end_whatever_becomes_of_the_output(tmp_path, output, children):
    """What a worker could not write must not keep it from ending, nor what was collected."""
    address = str(tmp_path / 'socket')
    ready, told = os.pipe()
    reader, writer = os.pipe()
    command = [sys.executable, '-c', NO_OUTPUT, address, children, str(told)]
    if output == 'closed':
        command = ['sh', '-c', 'exec "$@" >&-', 'sh', *command]
    with (
        open('/dev/full', 'w') as full,
        subprocess.Popen(
            command,
            stdout=full if output == 'full' else writer,
            stderr=subprocess.PIPE,
            pass_fds=[told],
            # What is printed waits in a buffer.
            env={k: v for k, v in os.environ.items() if k != 'PYTHONUNBUFFERED'},
        ) as process,
    ):
        for descriptor in (told, reader, writer):
            os.close(descriptor)
        try:
            assert os.read(ready, 5) == b'ready'
            client = Client(address)
            pids = see_all(client, 2)
            os.kill(min(pids), signal.SIGTERM)
            wait_until(lambda: ask_patiently(client) not in pids)
            pids |= see_all(client, 2)
            process.terminate()
            process.communicate(timeout=WAIT_S)
        finally:
            os.close(ready)
            process.kill()
    wait_until(lambda: not any(map(is_running, pids)))
    assert os.listdir(tmp_path) == []


def test_a_signal_reaches_a_worker_as_soon_as_it_is_there(tmp_path):
    process, address = start_server(str(tmp_path / 'socket'), None, app, workers=2)
    try:
        for _ in range(3):
            before = _children(process.pid)
            for pid in before:
                os.kill(pid, signal.SIGTERM)
            wait_until(lambda before=before: len(_children(process.pid) - before) == 2)
        see_all(Client(address), 2)
    finally:
        process.terminate()
        process.join()
        process.close()


def _children(pid):
    return set(map(int, Path(f'/proc/{pid}/task/{pid}/children').read_text().split()))


# --- a successor ---------------------------------------------------------------------------------

SUCCEED = """
import os, signal
from degu import net
from degu.server import Server

def app(connection, request):
    return 200, 'OK', {}, str(os.getpid()).encode()

server = Server(net.inherited(0), app)
signal.signal(signal.SIGTERM, lambda number, frame: server.shutdown())
server.serve_forever()
"""


@pytest.fixture(params=['tcp', 'unix'])
def old_server(request, tmp_path):
    where = IPv4_LOOPBACK if request.param == 'tcp' else str(tmp_path / 'socket')
    return Server(where, app)


def test_a_restart_refuses_no_connection(tmp_path, old_server):
    client = Client(old_server.address)
    answers = []
    ending = threading.Event()

    def keep_asking():
        while not ending.is_set():
            answers.append(ask(client))

    with old_server:
        thread = threading.Thread(target=keep_asking)
        thread.start()
        wait_until(lambda: answers)
        successor = old_server.start_successor([sys.executable, '-c', SUCCEED])
        wait_until(lambda: successor.pid in answers)
    wait_until(lambda: answers[-10:] == [successor.pid] * 10)
    ending.set()
    thread.join()
    assert set(answers) == {os.getpid(), successor.pid}
    successor.terminate()
    assert successor.wait(WAIT_S) == 0
    assert os.listdir(tmp_path) == []


def test_a_successor_that_fails_leaves_all_as_it_was(tmp_path, old_server):
    client = Client(old_server.address)
    with old_server:
        assert old_server.start_successor([sys.executable, '-c', 'raise SystemExit(4)']).wait() == 4
        assert ask(client) == os.getpid()
    assert os.listdir(tmp_path) == []


def test_a_second_successor_that_fails_takes_nothing_from_the_first(tmp_path, old_server):
    client = Client(old_server.address)
    with old_server:
        first = old_server.start_successor([sys.executable, '-c', SUCCEED])
        wait_until(lambda: ask(client) == first.pid)
        assert old_server.start_successor([sys.executable, '-c', 'raise SystemExit(4)']).wait() == 4
    assert ask(client) == first.pid
    first.terminate()
    assert first.wait(WAIT_S) == 0
    assert os.listdir(tmp_path) == []


def test_the_file_of_an_inherited_socket_is_not_the_successor_s_either(tmp_path):
    path = tmp_path / 'socket'
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        server = Server(net.Inherited(os.dup(listener.fileno()), False), app)
        client = Client(str(path))
        with server:
            successor = server.start_successor([sys.executable, '-c', SUCCEED])
            wait_until(lambda: ask(client) == successor.pid)
        successor.terminate()
        assert successor.wait(WAIT_S) == 0
        assert path.exists()


def test_a_successor_needs_a_server_that_goes_on_and_a_list(old_server):
    with old_server, pytest.raises(TypeError, match='must be a list of str'):
        old_server.start_successor('program')
    with pytest.raises(ValueError, match='before shutdown'):
        old_server.start_successor(['program'])
