"""Our client against Apache 2.4: named sites, TLS with our certificate, chunks, ranges, errors."""

from __future__ import annotations

import os
import ssl
import tempfile
from pathlib import Path
from unittest.mock import ANY

import pytest

from degu.client import Client, SSLClient, build_client_sslctx
from degu.errors import ClosedConnectionError, PeerRejectedError, ProtocolError
from degu.rgi import ContentRange, Range

MIB = 1024 * 1024
MODULES = Path('/usr/lib/apache2/modules')  # Debian's
CONFIG = """
ServerRoot {directory}
DefaultRuntimeDir {directory}
PidFile {directory}/pid
ServerName localhost
Listen {address}
{modules}
User www-data
Group www-data
StartServers 1
KeepAliveTimeout 5
ScriptSock {directory}/cgid.sock
DAVLockDB {directory}/open/locks
TypesConfig /etc/mime.types
"""
PLAIN = """
{sites}
<Directory {directory}>
    Options +Indexes +ExecCGI
    Require all granted
</Directory>
<Location /status>
    SetHandler server-status
</Location>
ScriptAlias /cgi {directory}/cgi
<Location /empty>
    Header always set x-empty ""
</Location>
<Location /dav>
    DAV on
</Location>
"""
SITE = """
<VirtualHost {address}>
    ServerName {name}.test
    DocumentRoot {directory}/{name}
</VirtualHost>
"""
TLS = """
<Directory {directory}>
    Require all granted
</Directory>
<Location /members>
    SSLVerifyClient require
</Location>
"""
CGI = {
    # Too much for Apache to count before it sends.
    'much': 'echo "content-type: text/plain"; echo; head -c 300000 /dev/zero',
    'two-cookies': 'echo "set-cookie: a=1"; echo "set-cookie: b=2"; echo',
    'echo': 'echo "content-type: text/plain"; echo; cat',
    'broken': 'exit 1',
}


@pytest.fixture
def place():
    """Give a directory with two sites and some scripts that Apache's user may read too."""
    # The directories of the tests are closed to it.
    with tempfile.TemporaryDirectory(dir='/tmp', prefix='degu-apache-') as name:
        directory = Path(name)
        directory.chmod(0o755)
        for site in ('one', 'two'):
            (directory / site).mkdir()
            (directory / site / 'index.html').write_text(site)
        for path in (directory / 'open', directory / 'one' / 'dav'):  # for Apache to write to
            path.mkdir()
            path.chmod(0o777)
        (directory / 'cgi').mkdir()
        for script, text in CGI.items():
            path = directory / 'cgi' / script
            path.write_text(f'#!/bin/sh\n{text}\n')
            path.chmod(0o755)
        yield directory


@pytest.fixture
def start_apache(require_program, start_program, free_address, place):
    """Give `start_apache(config)`: where Apache listens, once it does."""
    program = require_program('apache2')
    names = ['mpm_event', 'authz_core', 'mime', 'dir', 'autoindex', 'alias', 'headers', 'cgid']
    names += ['status', 'dav', 'dav_fs', 'ssl']
    modules = '\n'.join(f'LoadModule {n}_module {MODULES}/mod_{n}.so' for n in names)

    def start(config):
        address = '{}:{}'.format(*free_address)
        path = place / 'apache.conf'
        log = place / 'log'
        log.touch()
        common = CONFIG.format(directory=place, address=address, modules=modules)
        path.write_text(f'ErrorLog {log}\n{common}{config}')
        start_program([program, '-f', str(path), '-D', 'FOREGROUND'], free_address, log)
        return free_address

    return start


@pytest.fixture
def apache(start_apache, free_address, place):
    """Give the address of Apache with two sites that the host header tells apart."""
    address = '{}:{}'.format(*free_address)
    sites = ''.join(
        SITE.format(address=address, name=name, directory=place) for name in ('one', 'two')
    )
    return start_apache(PLAIN.format(sites=sites, directory=place))


@pytest.fixture
def conn(apache):
    """Give a connection to the first site."""
    with Client(apache, {'host': 'one.test'}).connect() as conn:
        yield conn


@pytest.mark.parametrize('name', ['one', 'two'])
def test_the_host_header_chooses_a_site(apache, name):
    with Client(apache, {'host': f'{name}.test'}).connect() as conn:
        for left in (100, 99):
            response = conn.get('/', {'connection': 'keep-alive'})
            assert response.body.read() == name.encode()
            assert response.headers['keep-alive'] == f'timeout=5, max={left}'


def test_without_a_host_header_apache_refuses_a_request(apache):
    with Client(apache).connect() as conn:
        response = conn.get('/')
        assert (response.status, response.headers['connection']) == (400, 'close')
        assert b'Bad Request' in response.body.read()


def test_files_and_ranges_come_over_one_connection(conn, place):
    content = os.urandom(3 * MIB)
    (place / 'one' / 'file').write_bytes(content)
    response = conn.get('/file')
    assert (response.status, response.body.read()) == (200, content)
    etag = response.headers['etag']
    response = conn.get('/file', {'range': Range(10, 20)})
    assert response.status == 206
    assert response.headers['content-range'] == ContentRange(10, 20, len(content))
    assert response.body.read() == content[10:20]
    response = conn.get('/file', {'range': Range(len(content), None)})
    assert response.status == 416
    assert response.body.read()
    assert conn.head('/file').headers['content-length'] == len(content)
    response = conn.get('/file', {'if-none-match': etag})
    assert (response.status, response.body) == (304, None)


def test_chunks_come_from_a_script(conn):
    for _ in range(2):
        response = conn.get('/cgi/much')
        assert response.headers['transfer-encoding'] == 'chunked'
        assert response.body.read() == bytes(300_000)
    assert conn.head('/cgi/much').body is None
    assert conn.post('/cgi/echo', None, b'to and fro').body.read() == b'to and fro'


def test_a_large_body_is_taken_without_a_100_before(conn, place):
    content = os.urandom(3 * MIB)
    response = conn.put('/dav/new', None, content)
    assert (response.status, response.reason) == (201, 'Created')
    assert response.body.read()
    assert (place / 'one' / 'dav' / 'new').read_bytes() == content
    assert conn.put('/dav/new', None, b'less') == (204, 'No Content', ANY, None)
    assert conn.delete('/dav/new').status == 204
    assert conn.get('/dav/').status == 200


@pytest.mark.parametrize(
    ('method', 'path', 'status'),
    [
        ('GET', '/missing', 404),
        ('PUT', '/missing', 405),
        ('DELETE', '/', 405),
        ('GET', '/dav', 301),
        ('GET', '/status', 200),
        ('GET', '/dav/', 200),
    ],
)
def test_pages_that_apache_makes_up_can_be_read(conn, method, path, status):
    for _ in range(2):
        response = conn.request(method, path, None, b'body' if method == 'PUT' else None)
        assert response.status == status
        assert b'<html>' in response.body.read().lower()


def test_apache_says_when_it_will_answer_no_more(conn):
    response = conn.get('/cgi/broken')
    assert (response.status, response.headers['connection']) == (500, 'close')
    assert response.body.read()
    with pytest.raises(ClosedConnectionError):
        conn.get('/')


def test_a_second_header_of_a_name_is_refused(conn):
    """Two cookies are two headers: `Set-Cookie: a=1` and `Set-Cookie: b=2`."""
    with pytest.raises(ProtocolError, match='a header must not be given twice'):
        conn.get('/cgi/two-cookies')


def test_a_header_without_a_value_is_refused(conn):
    """Apache sends `x-empty: ` for it."""
    with pytest.raises(ProtocolError, match='the value of a header must be printable'):
        conn.get('/empty')


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture
def start_sites(start_apache, free_address, place, site_keys, temp_pki, documented):
    """Give `start_sites(verify)`: the address of two sites with SSLVerifyClient set to `verify`."""

    def start(verify):
        config = TLS.format(directory=place)
        for name in ('one', 'two'):
            values = {
                '*:443': '{}:{}'.format(*free_address),
                '/etc/app/client-ca.pem': temp_pki.get_server_config()['ca_file'],
                '/etc/app': site_keys,
                '/srv/one': place / name,
                'one.test': f'{name}.test',
                'SSLVerifyClient require': f'SSLVerifyClient {verify}',
            }
            config += documented('Apache with client certificates', values)
        return start_apache(config)

    return start


@pytest.fixture
def config(temp_pki, site_keys):
    """Give the config of a client that checks names and has a certificate."""
    config = temp_pki.get_client_config()
    return {**config, 'ca_file': str(site_keys / 'ca.pem'), 'check_hostname': True}


@pytest.mark.parametrize('name', ['one', 'two'])
def test_apache_knows_us_by_our_certificate(start_sites, config, name):
    address = start_sites('require')
    sslctx = build_client_sslctx(config)
    with SSLClient(sslctx, address, {'host': f'{name}.test'}).connect() as conn:
        for _ in range(2):
            response = conn.get('/')
            assert response.body.read() == name.encode()
            assert len(response.headers['x-client']) == 48


def test_the_name_in_the_certificate_is_checked(start_sites, config):
    client = SSLClient(build_client_sslctx(config), start_sites('require'), {'host': 'three.test'})
    with pytest.raises(ssl.SSLCertVerificationError, match='certificate is not valid for'):
        client.connect()


def test_without_a_certificate_apache_ends_the_handshake(start_sites, config):
    sslctx = build_client_sslctx({'ca_file': config['ca_file']})
    client = SSLClient(sslctx, start_sites('require'), {'host': 'one.test'})
    with client.connect() as conn, pytest.raises(PeerRejectedError):
        conn.get('/')


def test_apache_cannot_ask_for_a_certificate_after_the_handshake(start_sites, config):
    """SSLVerifyClient inside a <Location> needs that, and our client does not offer it."""
    address = start_sites('none')
    with SSLClient(build_client_sslctx(config), address, {'host': 'one.test'}).connect() as conn:
        assert conn.get('/').body.read() == b'one'
        assert conn.get('/members').status == 403
