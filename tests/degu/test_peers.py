"""Other people's programs: curl as a client, http.server and nginx as servers."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import subprocess
import threading
import time

import pytest

from degu import IPv4_LOOPBACK
from degu.bodies import ChunkedOutput
from degu.client import Client, create_client
from degu.rgi import ContentRange, Range, Validator
from degu.server import build_server_sslctx

MIB = 1024 * 1024
WAIT_S = 10.0


# --- curl ----------------------------------------------------------------------------------------


def example_app(connection, request):
    return (200, 'OK', {'x-msg': 'hello, world'}, None)


def echo(connection, request):
    body = request['body']
    return 200, 'OK', {'x-method': request['method']}, None if body is None else body.read()


@pytest.fixture
def curl(require_program, temp_pki):
    """Give `curl(*arguments)`: what curl wrote to its output, and what it reported (-v)."""
    path = require_program('curl')

    def run(*arguments):
        done = subprocess.run(
            [path, '--verbose', '--silent', '--show-error', '--max-time', '10', *arguments],
            capture_output=True,
            check=True,
            timeout=WAIT_S * 2,
        )
        return done.stdout, done.stderr.decode()

    return run


@pytest.fixture(params=['tcp', 'unix', 'tls'])
def site(request, serve, temp_pki, tmp_path):
    """Give `site(app)`: a URL of it and the arguments with which curl reaches it."""

    def start(app):
        if request.param == 'unix':
            server = serve(Validator(app), str(tmp_path / 'socket'))
            return 'http://localhost', ['--unix-socket', server.address]
        if request.param == 'tcp':
            return f'http://127.0.0.1:{serve(Validator(app)).address[1]}', []
        server = serve(Validator(app), sslctx=build_server_sslctx(temp_pki.get_server_config()))
        config = temp_pki.get_client_config()
        return f'https://localhost:{server.address[1]}', [
            *('--cacert', config['ca_file']),
            *('--cert', config['cert_file']),
            *('--key', config['key_file']),
            '--insecure',  # TempPKI's certificates have no name; the test of trust is the server's
        ]

    return start


def test_curl_gets_twice_over_one_connection(site, curl):
    url, arguments = site(example_app)
    output, report = curl(*arguments, '--include', f'{url}/', f'{url}/foo')
    first, second, end = output.split(b'\r\n\r\n')
    assert first == second
    assert end == b''
    status_line, *headers = first.split(b'\r\n')
    assert status_line == b'HTTP/1.1 200 OK'
    assert sorted(headers) == [b'content-length: 0', b'x-msg: hello, world']
    assert 'Re-using existing connection' in report


def test_curl_puts_a_body(site, curl):
    url, arguments = site(echo)
    output, report = curl(*arguments, '-X', 'PUT', '--data-binary', 'hello', f'{url}/', f'{url}/')
    assert output == b'hellohello'
    assert 'Re-using existing connection' in report


def test_curl_uploads_in_chunks(site, curl, tmp_path):
    url, arguments = site(echo)
    path = tmp_path / 'content'
    path.write_bytes(os.urandom(300_000))
    arguments += ['-H', 'transfer-encoding: chunked', '-H', 'expect:']
    output, report = curl(*arguments, '--upload-file', str(path), f'{url}/content')
    assert output == path.read_bytes()
    assert '> transfer-encoding: chunked' in report


def test_curl_asks_for_the_head(site, curl):
    url, arguments = site(lambda c, r: (200, 'OK', {'content-length': 17}, None))
    output, report = curl(*arguments, '--head', f'{url}/', f'{url}/')
    assert output == b'HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n' * 2
    assert 'Re-using existing connection' in report


def test_curl_s_wish_for_a_100_is_refused_with_what_to_do(site, curl, tmp_path):
    """Curl asks for it with a body over 1 MiB, and sends that body at once if told not to ask."""
    url, arguments = site(echo)
    path = tmp_path / 'content'
    path.write_bytes(os.urandom(2 * MIB))
    arguments += ['-X', 'PUT', '--data-binary', f'@{path}', f'{url}/']
    output, report = curl(*arguments)
    assert '> Expect: 100-continue' in report
    assert '< HTTP/1.1 417 Expectation Failed' in report
    assert output == b'expect is not supported: send the body at once\n'
    output, _report = curl('-H', 'expect:', *arguments)
    assert output == path.read_bytes()


def test_curl_gets_a_range_of_a_file(site, curl, tmp_path):
    path = tmp_path / 'content'
    path.write_bytes(bytes(range(100)))

    def app(connection, request):
        part = request['headers']['range'].resolve(100)
        fp = path.open('rb')
        files.append(fp)
        fp.seek(part.start)
        body = connection['rgi.FileOutput'](fp, part.stop - part.start)
        return 206, 'Partial Content', {'content-range': part}, body

    files = []
    url, arguments = site(app)
    output, _report = curl(*arguments, '--range', '10-19', f'{url}/')
    assert output == bytes(range(10, 20))
    for fp in files:
        fp.close()


def test_curl_without_a_certificate_is_rejected(serve, temp_pki, curl):
    sslctx = build_server_sslctx(temp_pki.get_server_config())
    server = serve(example_app, sslctx=sslctx)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        curl('--insecure', f'https://127.0.0.1:{server.address[1]}/')
    assert b'certificate required' in caught.value.stderr


def test_curl_over_http_1_0_is_told_what_is_spoken(site, curl):
    url, arguments = site(example_app)
    output, _report = curl(*arguments, '--http1.0', f'{url}/')
    assert output == b'only HTTP/1.1 is spoken here\n'


# --- our client against other servers ------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_PUT(self):
        data = self.rfile.read(int(self.headers['content-length']))
        self.send_response(200)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def http_server(tmp_path):
    """Give the URL of Python's own server, which hands out tmp_path."""
    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(IPv4_LOOPBACK, handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


@pytest.mark.parametrize('size', [0, 1, 5_000_000])
def test_our_client_downloads_files_from_http_server(http_server, tmp_path, size):
    content = os.urandom(size)
    (tmp_path / 'a b.bin').write_bytes(content)
    with create_client(http_server).connect() as conn:
        for _ in range(2):
            response = conn.get('/a%20b.bin')
            assert (response.status, response.reason) == (200, 'OK')
            assert response.headers['content-length'] == size
            assert response.headers['content-type'] == 'application/octet-stream'
            assert response.body.read() == content


def test_our_client_uses_one_connection_to_http_server_for_all_it_asks(http_server, tmp_path):
    (tmp_path / 'file').write_bytes(b'hello')
    with create_client(http_server).connect() as conn:
        assert conn.head('/file').headers['content-length'] == 5
        assert conn.put('/', None, b'to and fro').body.read() == b'to and fro'
        assert b'file' in conn.get('/').body.read()
        assert conn.get('/file').body.read() == b'hello'


def test_our_client_is_told_by_http_server_what_is_missing(http_server):
    with create_client(http_server).connect() as conn:
        response = conn.get('/missing')
        assert (response.status, response.reason) == (404, 'File not found')
        assert len(response.body.read()) == response.headers['content-length']
        with pytest.raises(ConnectionError):  # http.server closes after an error, and says so
            conn.get('/missing')


NGINX_CONFIG = """
daemon off;
master_process off;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 16; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen unix:{directory}/socket;
        root {directory}/root;
        location /proxied/ {{
            proxy_pass http://unix:{upstream}:/;
            proxy_http_version 1.1;
            proxy_set_header connection "";
            proxy_request_buffering off;
            proxy_buffering off;
        }}
    }}
}}
"""


@pytest.fixture
def nginx(require_program, serve, tmp_path):
    """Give a client of nginx, which hands out tmp_path/root and passes /proxied/ on to us."""
    path = require_program('nginx')

    def upstream(connection, request):
        body = request['body']
        if body is None:
            return 200, 'OK', {}, connection['rgi.ChunkedOutput']([b'hello, ', b'chunks', b''])
        return 200, 'OK', {}, body.read()

    server = serve(Validator(upstream), str(tmp_path / 'upstream'))
    (tmp_path / 'root').mkdir(mode=0o755)
    config = tmp_path / 'nginx.conf'
    config.write_text(NGINX_CONFIG.format(directory=tmp_path, upstream=server.address))
    log = tmp_path / 'error.log'
    with subprocess.Popen(
        [path, '-c', str(config), '-e', str(log)], stderr=subprocess.PIPE
    ) as process:
        client = Client(str(tmp_path / 'socket'), {'host': 'localhost'})
        deadline = time.monotonic() + WAIT_S
        while True:
            with contextlib.suppress(OSError):
                client.connect().close()
                break
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield client
        process.terminate()


def test_our_client_gets_files_and_ranges_from_nginx(nginx, tmp_path):
    content = os.urandom(3 * MIB)
    (tmp_path / 'root' / 'file').write_bytes(content)
    with nginx.connect() as conn:
        response = conn.get('/file')
        assert response.status == 200
        assert response.body.read() == content
        response = conn.get('/file', {'range': Range(10, 20)})
        assert response.status == 206
        assert response.headers['content-range'] == ContentRange(10, 20, len(content))
        assert response.body.read() == content[10:20]
        response = conn.get('/file', {'range': Range(len(content), None)})
        assert response.status == 416
        assert response.headers['content-range'] == ContentRange(0, 0, len(content))
        response.body.read()
        assert conn.head('/file').headers['content-length'] == len(content)
        assert conn.get('/missing').status == 404


def test_we_stand_behind_nginx(nginx):
    body = os.urandom(300_000)
    with nginx.connect() as conn:
        for _ in range(2):
            response = conn.get('/proxied/a')
            assert response.headers['transfer-encoding'] == 'chunked'
            assert response.body.read() == b'hello, chunks'
        assert conn.put('/proxied/a', None, body).body.read() == body
        chunks = [body[i : i + 10_000] for i in range(0, len(body) + 1, 10_000)]
        assert conn.put('/proxied/a', None, ChunkedOutput(chunks)).body.read() == body
