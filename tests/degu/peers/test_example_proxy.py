"""examples/mutual_tls_proxy.py in front of a database, and in front of services that fail."""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from degu import pki
from degu.bodies import ChunkedOutput
from degu.client import Client, SSLClient, build_client_sslctx
from degu.rgi import Validator
from degu.server import build_server_sslctx

PROGRAM = Path(__file__).parents[3] / 'examples' / 'mutual_tls_proxy.py'
WAIT_S = 20.0
OK = b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok'


@pytest.fixture(scope='module')
def example():
    """Give the program as a module."""
    spec = importlib.util.spec_from_file_location('mutual_tls_proxy', PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _unlogged(caplog):
    """Keep no record of what fails: it would keep the frames, and the connections in them."""
    caplog.set_level(logging.CRITICAL, 'mutual_tls_proxy')


@pytest.fixture
def sslctx(temp_pki):
    return build_client_sslctx(temp_pki.get_client_config())


@pytest.fixture
def client_id(temp_pki):
    path = Path(temp_pki.get_client_config()['cert_file'])
    return pki.parse_machine_cert(pki.parse_cert_pem(path.read_bytes())).machine_id


@pytest.fixture
def put_behind(example, serve, temp_pki, sslctx):
    """Give `put_behind(service)`: a client of the proxy in front of the service of a client."""

    def start(service):
        server = serve(
            Validator(example.Proxy(service)),
            sslctx=build_server_sslctx(temp_pki.get_server_config()),
        )
        return SSLClient(sslctx, server.address)

    return start


# --- the program, in front of a database ---------------------------------------------------------


@pytest.fixture
def run_program(temp_pki):
    """Give `run_program(service)`: where the program listens; it ends well when it is asked to."""
    processes = []

    def run(service):
        config = temp_pki.get_server_config()
        arguments = [f'--{k.replace("_", "-")}={path}' for k, path in config.items()]
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), '--ip=127.0.0.1', '--port=0', *arguments, service],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        processes.append(process)
        said, _, address = process.stdout.readline().partition(b' at ')
        assert said == b'serving'
        return ast.literal_eval(address.decode())

    yield run
    for process in processes:
        process.send_signal(signal.SIGTERM)
        with process:
            assert process.wait(WAIT_S) == 0


def test_a_database_is_used_through_the_program(run_program, couchdb, sslctx):
    with SSLClient(sslctx, run_program(couchdb)).connect() as conn:
        assert conn.put('/through-the-program', None, b'').body.read() == b'{"ok":true}\n'
        headers = {'content-type': 'application/json'}
        response = conn.put('/through-the-program/a', headers, b'{"n": 1}')
        assert (response.status, json.loads(response.body.read())['id']) == (201, 'a')
        feed = conn.get('/through-the-program/_changes?feed=continuous&heartbeat=100').body
        assert json.loads(feed.readchunk())['id'] == 'a'
        assert feed.readchunk() == b'\n'


def test_a_replicator_with_a_certificate_copies_there_and_back(
    run_program, couchdb, couchdb_command, temp_pki
):
    address = run_program(couchdb)
    config = temp_pki.get_client_config()
    done = subprocess.run(
        [
            *(couchdb_command[0], str(Path(couchdb_command[1]).with_name('replicate.js'))),
            'https://{}:{}/there-and-back'.format(*address),
            *(config['cert_file'], config['key_file'], config['ca_file']),
        ],
        capture_output=True,
        check=False,
        timeout=WAIT_S,
    )
    assert (done.stdout, done.stderr) == (b'30 b2xpdmVz\n', b'')


# --- what it does, in front of services of ours --------------------------------------------------


def test_the_service_is_told_who_calls_and_nothing_about_the_connection(
    put_behind, serve, client_id
):
    def say_headers(connection, request):
        headers = {'connection': 'keep-alive', 'keep-alive': 'timeout=5', 'x-mine': 'yes'}
        return 200, 'OK', headers, json.dumps(request['headers']).encode()

    service = Client(serve(say_headers).address, {'host': 'localhost'})
    with put_behind(service).connect() as conn:
        response = conn.get(
            '/', {'x-machine-id': 'a' * 48, 'connection': 'keep-alive', 'te': 'trailers', 'b': 'c'}
        )
        assert 'x-mine' in response.headers
        assert response.headers.keys() & {'connection', 'keep-alive'} == set()
        assert json.loads(response.body.read()) == {
            'host': 'localhost',
            'x-machine-id': client_id,
            'b': 'c',
        }


def test_bodies_stream_both_ways(put_behind, serve):
    arrived = threading.Event()

    def echo(connection, request):
        def make():
            for data in request['body']:
                yield data
                arrived.set()

        return 200, 'OK', {}, connection['rgi.ChunkedOutput'](make())

    def make():
        yield b'first'
        assert arrived.wait(WAIT_S)  # the second is sent when the service has sent back the first
        yield b'second'
        yield b''

    with put_behind(Client(serve(echo).address)).connect() as conn:
        assert conn.post('/', None, ChunkedOutput(make())).body.read() == b'firstsecond'


def test_a_connection_has_one_to_the_service(put_behind, serve):
    def count(connection, request):
        return 200, 'OK', {}, b'%d' % connection['requests']

    client = put_behind(Client(serve(count).address))
    for _ in range(2):
        with client.connect() as conn:
            assert [conn.get('/').body.read() for _ in range(3)] == [b'0', b'1', b'2']


class Closing:
    """A service that closes each connection after its first response, and tells nobody."""

    def __init__(self, response=OK):
        self.response = response
        self.requests = []

    def __call__(self, raw):
        self.requests.append(raw.read_preamble().partition(b' ')[0])
        raw.send(self.response)


def test_what_may_be_repeated_is_sent_again(put_behind, script):
    service = Closing()
    with put_behind(Client(script(service).address)).connect() as conn:
        for _ in range(3):
            assert conn.get('/').body.read() == b'ok'
    assert service.requests == [b'GET'] * 3


def test_what_may_not_be_repeated_is_not(put_behind, script):
    service = Closing()
    with put_behind(Client(script(service).address)).connect() as conn:
        assert conn.delete('/').body.read() == b'ok'
        response = conn.delete('/')
        assert (response.status, response.body.read()) == (502, b'the service did not answer\n')
        assert conn.delete('/').body.read() == b'ok'
    assert service.requests == [b'DELETE'] * 2


def test_what_may_not_be_repeated_gets_a_new_connection_after_a_while(
    put_behind, script, example, monkeypatch
):
    monkeypatch.setattr(example, 'MAX_IDLE_S', 0)
    service = Closing()
    with put_behind(Client(script(service).address)).connect() as conn:
        for _ in range(3):
            assert conn.delete('/').body.read() == b'ok'


def test_a_service_that_says_it_closes_is_believed(put_behind, script):
    service = Closing(OK.replace(b'\r\n\r\n', b'\r\nconnection: close\r\n\r\n'))
    with put_behind(Client(script(service).address)).connect() as conn:
        for _ in range(3):
            assert conn.delete('/').body.read() == b'ok'


def test_a_service_that_is_gone_is_a_502_until_it_is_back(put_behind, serve, tmp_path):
    path = str(tmp_path / 'socket')
    with put_behind(Client(path)).connect() as conn:
        for _ in range(2):
            response = conn.put('/', None, b'body')
            assert (response.status, response.reason) == (502, 'Bad Gateway')
            assert response.body.read() == b'the service did not answer\n'
        serve(lambda connection, request: (200, 'OK', {}, request['body'].read()), path)
        assert conn.put('/', None, b'body').body.read() == b'body'


def test_a_service_that_takes_too_long_is_a_504(put_behind, serve):
    go_on = threading.Event()

    def wait(connection, request):
        assert go_on.wait(WAIT_S)
        return 200, 'OK', {}, None

    with put_behind(Client(serve(wait).address, timeout_s=0.1)).connect() as conn:
        response = conn.get('/')
        assert (response.status, response.reason) == (504, 'Gateway Timeout')
        assert response.body.read() == b'the service did not answer in time\n'
        go_on.set()


def test_a_service_that_speaks_something_else_is_a_502(put_behind, script):
    client = put_behind(Client(script(Closing(b'HTTP/1.0 200 OK\r\n\r\n')).address))
    with client.connect() as conn:
        assert conn.get('/').status == 502


def test_a_client_that_goes_inside_its_body_is_no_fault_of_the_service(
    put_behind, serve, dial, sslctx, caplog
):
    caplog.set_level(logging.WARNING, 'mutual_tls_proxy')
    service = serve(lambda connection, request: (200, 'OK', {}, request['body'].read()))
    client = put_behind(Client(service.address))
    raw = dial(client.address, sslctx=sslctx)
    raw.send(b'PUT / HTTP/1.1\r\ncontent-length: 10\r\n\r\nshort')
    raw.end()
    assert len(raw.read_to_end()) < len(OK)  # an alert of TLS, too short for a response
    assert caplog.records == []


def test_a_certificate_that_names_no_machine_is_turned_away(
    example, serve, temp_pki, site_keys, caplog
):
    caplog.set_level(logging.WARNING, 'mutual_tls_proxy')
    config = {**temp_pki.get_server_config(), 'ca_file': str(site_keys / 'ca.pem')}
    calls = []
    app = example.Proxy(Client(serve(lambda c, r: calls.append(r)).address))
    server = serve(app, sslctx=build_server_sslctx(config))
    sslctx = build_client_sslctx(
        {
            **temp_pki.get_client_config(),
            'cert_file': str(site_keys / 'one.test.pem'),
            'key_file': str(site_keys / 'one.test-key.pem'),
        }
    )
    with SSLClient(sslctx, server.address).connect() as conn, pytest.raises(ConnectionError):
        conn.get('/')
    assert calls == []
    assert [record.name for record in caplog.records] == ['mutual_tls_proxy']
