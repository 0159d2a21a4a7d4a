"""Our client against the server of Python's standard library."""

from __future__ import annotations

import functools
import http.server
import os
import threading

import pytest

from degu import IPv4_LOOPBACK
from degu.client import create_client


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
