"""curl as a client of our server, over TCP, a unix socket and mutual TLS."""

from __future__ import annotations

import os
import subprocess

import pytest

from degu.rgi import Validator
from degu.server import build_server_sslctx

MIB = 1024 * 1024


def example_app(connection, request):
    return (200, 'OK', {'x-msg': 'hello, world'}, None)


def echo(connection, request):
    body = request['body']
    return 200, 'OK', {'x-method': request['method']}, None if body is None else body.read()


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
