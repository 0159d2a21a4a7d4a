"""Our client against nginx: files, ranges, chunks, named sites over TLS."""

from __future__ import annotations

import os

import pytest

from degu.client import Client, SSLClient, build_client_sslctx
from degu.errors import ClosedConnectionError, ProtocolError
from degu.rgi import ContentRange, Range

MIB = 1024 * 1024
PLAIN = """
    server {{
        listen unix:{directory}/socket;
        root {directory}/root;
        keepalive_requests 20;
        location /moved {{ return 301 /file; }}
        location /no-reason {{ return 299; }}
        location /included {{
            ssi on;
            default_type text/html;
        }}
    }}
"""
SITES = """
    ssl_protocols TLSv1.3;
    ssl_verify_client on;
    ssl_client_certificate {client_ca};
    server {{
        listen {address} ssl;
        server_name one.test;
        ssl_certificate {keys}/one.test.pem;
        ssl_certificate_key {keys}/one.test-key.pem;
        location / {{ return 200 "one, $ssl_protocol, request $connection_requests"; }}
    }}
    server {{
        listen {address} ssl;
        server_name two.test;
        ssl_certificate {keys}/two.test.pem;
        ssl_certificate_key {keys}/two.test-key.pem;
        location / {{ return 200 "two, $ssl_protocol, request $connection_requests"; }}
    }}
"""


@pytest.fixture
def client(start_nginx, tmp_path):
    """Give a client of nginx, which hands out tmp_path/root."""
    (tmp_path / 'root').mkdir()
    address = str(tmp_path / 'socket')
    start_nginx(PLAIN.format(directory=tmp_path), address)
    return Client(address, {'host': 'localhost'})


def test_files_and_ranges_come_over_one_connection(client, tmp_path):
    content = os.urandom(3 * MIB)
    (tmp_path / 'root' / 'file').write_bytes(content)
    with client.connect() as conn:
        response = conn.get('/file')
        assert response.status == 200
        assert response.body.read() == content
        etag = response.headers['etag']
        response = conn.get('/file', {'range': Range(10, 20)})
        assert response.status == 206
        assert response.headers['content-range'] == ContentRange(10, 20, len(content))
        assert response.body.read() == content[10:20]
        response = conn.get('/file', {'range': Range(len(content), None)})
        assert response.status == 416
        assert response.headers['content-range'] == ContentRange(0, 0, len(content))
        response.body.read()
        assert conn.head('/file').headers['content-length'] == len(content)
        response = conn.get('/file', {'if-none-match': etag})
        assert (response.status, response.body) == (304, None)
        assert conn.get('/missing').status == 404


def test_chunks_come_from_what_nginx_puts_together(client, tmp_path):
    (tmp_path / 'root' / 'included').write_text('before <!--# echo var="request_method" --> after')
    with client.connect() as conn:
        for _ in range(2):
            response = conn.get('/included')
            assert response.headers['transfer-encoding'] == 'chunked'
            assert response.body.read() == b'before GET after'


def test_a_redirect_is_handed_out_and_not_followed(client):
    with client.connect() as conn:
        response = conn.get('/moved')
        assert (response.status, response.headers['location']) == (301, 'http://localhost/file')


@pytest.mark.parametrize(
    ('method', 'status'), [('GET', 404), ('POST', 404), ('PUT', 405), ('DELETE', 405)]
)
def test_an_error_has_a_page_and_costs_no_connection(client, method, status):
    body = b'a body that nobody wants' if method in {'PUT', 'POST'} else None
    with client.connect() as conn:
        for _ in range(2):
            response = conn.request(method, '/missing', None, body)
            assert response.status == status
            assert b'nginx' in response.body.read()


def test_nginx_says_when_it_will_answer_no_more(client):
    """After `keepalive_requests`, with `connection: close`."""
    with client.connect() as conn:
        for _ in range(19):
            assert conn.get('/missing').body.read()
        response = conn.get('/missing')
        assert response.headers['connection'] == 'close'
        assert response.body.read()
        with pytest.raises(ClosedConnectionError):
            conn.get('/missing')


def test_a_status_that_nginx_has_no_reason_for_is_refused(client):
    """It sends `HTTP/1.1 299 ` and nothing more."""
    with client.connect() as conn, pytest.raises(ProtocolError, match='a status line must be'):
        conn.get('/no-reason')


@pytest.fixture
def sites(start_nginx, free_address, site_keys, temp_pki):
    """Give the address where nginx has two sites, for clients with our certificate only."""
    client_ca = temp_pki.get_server_config()['ca_file']
    address = '{}:{}'.format(*free_address)
    start_nginx(SITES.format(client_ca=client_ca, address=address, keys=site_keys), free_address)
    return free_address


@pytest.fixture
def sslctx(temp_pki, site_keys):
    """Give the context of a client that checks names and has a certificate."""
    config = temp_pki.get_client_config()
    return build_client_sslctx(
        {**config, 'ca_file': str(site_keys / 'ca.pem'), 'check_hostname': True}
    )


@pytest.mark.parametrize('name', ['one', 'two'])
def test_the_host_header_and_sni_choose_a_site(sites, sslctx, name):
    client = SSLClient(sslctx, sites, {'host': f'{name}.test'})
    with client.connect() as conn:
        for number in (1, 2):
            expected = f'{name}, TLSv1.3, request {number}'
            assert conn.get('/').body.read() == expected.encode()


def test_without_a_certificate_nginx_answers_400(sites, site_keys):
    """It completes the handshake and says in HTTP what was wrong with it."""
    sslctx = build_client_sslctx({'ca_file': str(site_keys / 'ca.pem')})
    with SSLClient(sslctx, sites, {'host': 'one.test'}).connect() as conn:
        response = conn.get('/')
        assert response.status == 400
        assert b'No required SSL certificate was sent' in response.body.read()
