"""Our client against a CouchDB-compatible server, and that server through one of ours."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import os
import time
import uuid

import pytest

from degu.bodies import ChunkedOutput
from degu.client import Client, SSLClient, build_client_sslctx
from degu.rgi import Validator
from degu.server import build_server_sslctx
from degu.util import output_from_input, relative_uri
from degu.wire import parse_response

WAIT_S = 10.0
PICTURE = os.urandom(300_000)


class ProxyApp:
    """The tutorial's reverse proxy; it remembers what was asked."""

    def __init__(self, client):
        self.client = client
        self.requests = []

    def __call__(self, connection, request):
        self.requests.append((request['method'], *request['path']))
        if '__conn' not in connection:
            connection['__conn'] = self.client.connect()
        response = connection['__conn'].request(
            request['method'],
            relative_uri(request),
            request['headers'],
            output_from_input(connection, request['body']),
        )
        body = output_from_input(connection, response.body)
        return response.status, response.reason, response.headers, body


@pytest.fixture
def database(couchdb):
    """Give the path of a new database."""
    path = f'/db-{uuid.uuid4().hex}'
    with Client(couchdb, {'host': 'localhost'}).connect() as conn:
        assert ask(conn, 'PUT', path) == (201, {'ok': True})
    return path


@pytest.fixture(params=['direct', 'through us', 'through us with TLS'])
def client(request, couchdb, serve, temp_pki):
    """Give a client of the server, or of ours in front of it."""
    direct = Client(couchdb, {'host': 'localhost'})
    if request.param == 'direct':
        return direct
    app = Validator(ProxyApp(direct))
    if request.param == 'through us':
        return Client(serve(app).address, {'host': 'localhost'})
    server = serve(app, sslctx=build_server_sslctx(temp_pki.get_server_config()))
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    return SSLClient(sslctx, server.address, {'host': 'localhost'})


@pytest.fixture
def conn(client):
    with client.connect() as conn:
        yield conn


def ask(conn, method, uri, value=None, headers=None):
    """Make a request, its body as JSON; return the status and the value of the response."""
    body = None
    if method in {'PUT', 'POST'}:
        body = json.dumps(value).encode() if value is not None else b''
        headers = {'content-type': 'application/json', **(headers or {})}
    response = conn.request(method, uri, headers, body)
    data = b'' if response.body is None else response.body.read()
    return response.status, json.loads(data) if data else None


def read_change(feed):
    """Read to the next change in a continuous feed."""
    deadline = time.monotonic() + WAIT_S
    while (chunk := feed.readchunk()) == b'\n':  # a heartbeat
        assert time.monotonic() < deadline
    return json.loads(chunk)


def test_documents_live_and_die_over_one_connection(conn, database):
    status, made = ask(conn, 'PUT', f'{database}/a%2Fb', {'size': 1})
    assert (status, made['id']) == (201, 'a/b')
    status, document = ask(conn, 'GET', f'{database}/a%2Fb?revs=true')
    assert (status, document['size']) == (200, 1)
    response = conn.head(f'{database}/a%2Fb')
    assert (response.status, response.body) == (200, None)
    assert ask(conn, 'PUT', f'{database}/a%2Fb', {'size': 2})[0] == 409
    assert ask(conn, 'PUT', database)[0] == 412
    assert ask(conn, 'GET', f'{database}/missing')[0] == 404
    assert ask(conn, 'DELETE', f'{database}/a%2Fb?rev={made["rev"]}')[0] == 200
    assert ask(conn, 'DELETE', database) == (200, {'ok': True})


def test_many_documents_come_and_go_in_one_body(conn, database):
    documents = [{'_id': f'{n:03}', 'text': 'olives ' * 100} for n in range(200)]
    status, made = ask(conn, 'POST', f'{database}/_bulk_docs', {'docs': documents})
    assert (status, len(made)) == (201, 200)
    status, found = ask(conn, 'GET', f'{database}/_all_docs?include_docs=true')
    assert [row['doc']['text'] for row in found['rows']] == ['olives ' * 100] * 200
    status, found = ask(conn, 'POST', f'{database}/_all_docs', {'keys': ['007', '008']})
    assert [row['id'] for row in found['rows']] == ['007', '008']


def test_a_packed_body_is_handed_out_as_it_came(conn, database):
    ask(conn, 'PUT', f'{database}/long', {'text': 'olives ' * 10_000})
    response = conn.get(f'{database}/long', {'accept-encoding': 'gzip'})
    assert response.headers['content-encoding'] == 'gzip'
    assert response.headers['transfer-encoding'] == 'chunked'
    assert json.loads(gzip.decompress(response.body.read()))['text'] == 'olives ' * 10_000


def test_attachments_are_bytes(conn, database):
    headers = {'content-type': 'image/png'}
    response = conn.put(f'{database}/a/picture.png', headers, PICTURE)
    assert response.status == 201
    response.body.read()
    for _ in range(2):
        response = conn.get(f'{database}/a/picture.png')
        assert response.headers['content-type'] == 'image/png'
        assert response.body.read() == PICTURE
    document = ask(conn, 'GET', f'{database}/a?attachments=true')[1]
    assert base64.b64decode(document['_attachments']['picture.png']['data']) == PICTURE


@pytest.mark.parametrize('is_chunked', [False, True], ids=['length', 'chunked'])
def test_a_document_and_its_attachment_come_as_multipart(conn, database, is_chunked):
    """As the replicator sends what has attachments."""
    stub = {'content_type': 'image/png', 'follows': True, 'length': len(PICTURE)}
    document = json.dumps({'_id': 'a', '_attachments': {'p.png': stub}}).encode()
    parts = [
        b'--olive\r\nContent-Type: application/json\r\n\r\n' + document,
        b'--olive\r\nContent-Disposition: attachment; filename="p.png"\r\n'
        b'Content-Type: image/png\r\n\r\n' + PICTURE,
        b'--olive--',
    ]
    body = b'\r\n'.join(parts)
    if is_chunked:
        body = ChunkedOutput([body[i : i + 10_000] for i in range(0, len(body), 10_000)] + [b''])
    headers = {'content-type': 'multipart/related; boundary="olive"'}
    response = conn.put(f'{database}/a', headers, body)
    assert (response.status, json.loads(response.body.read())['ok']) == (201, True)
    assert conn.get(f'{database}/a/p.png').body.read() == PICTURE


def test_a_feed_brings_changes_and_heartbeats_as_they_come(client, conn, database):
    with client.connect() as feed:
        body = feed.get(f'{database}/_changes?feed=continuous&heartbeat=100').body
        for name in ('a', 'b'):
            assert ask(conn, 'PUT', f'{database}/{name}', {})[0] == 201
            assert read_change(body)['id'] == name
        assert body.readchunk() == b'\n'


def test_a_long_poll_is_answered_by_the_next_change(client, conn, database):
    with client.connect() as poll:
        body = poll.get(f'{database}/_changes?feed=longpoll&heartbeat=100').body
        assert body.readchunk() == b'{"results":[\n'
        assert body.readchunk() == b'\n'
        assert ask(conn, 'PUT', f'{database}/a', {})[0] == 201
        assert json.loads(b'{"results":[' + body.read())['results'][0]['id'] == 'a'
        assert ask(poll, 'GET', database)[0] == 200


@pytest.mark.parametrize('method', ['GET', 'HEAD'])
def test_the_replicator_says_that_a_get_has_no_body(couchdb, database, serve, dial, method):
    """CouchDB's replicator sends `Content-Length: 0` with GET and HEAD."""
    raw = dial(serve(ProxyApp(Client(couchdb))).address)
    for _ in range(2):
        raw.send(
            f'{method} {database}/_changes?feed=normal&style=all_docs&since=0 HTTP/1.1\r\n'
            'Content-Length: 0\r\nAccept: application/json\r\nHost: localhost:5984\r\n'
            'User-Agent: CouchDB-Replicator/3.3.3\r\n\r\n'.encode()
        )
        status, _reason, headers = parse_response(raw.read_preamble()[:-4])
        assert status == 200
        if method == 'GET':
            body = raw.read(headers['content-length'])
            assert json.loads(body) == {'results': [], 'last_seq': 0}


# --- its replicator, with our server in between --------------------------------------------------


@pytest.mark.parametrize('direction', ['from', 'to'])
def test_a_database_is_replicated(couchdb, database, serve, direction):
    app = ProxyApp(Client(couchdb))
    url = 'http://{}:{}'.format(*serve(Validator(app)).address)
    copy = f'copy-of-{database[1:]}'
    with Client(couchdb, {'host': 'localhost'}).connect() as conn:
        for n in range(30):
            assert ask(conn, 'PUT', f'{database}/{n}', {'n': n})[0] == 201
        conn.put(f'{database}/a/p.png', {'content-type': 'image/png'}, PICTURE).body.read()
        ends = {'source': database[1:], 'target': copy}
        end = {'from': 'source', 'to': 'target'}[direction]
        ends[end] = f'{url}/{ends[end]}'
        status, report = ask(conn, 'POST', '/_replicate', ends)
        assert (status, report['ok'], report['docs_written']) == (200, True, 31)
        assert ask(conn, 'GET', f'/{copy}')[1]['doc_count'] == 31
        assert conn.get(f'/{copy}/a/p.png').body.read() == PICTURE
    asked = {(request[0], request[2]) for request in app.requests if len(request) > 2}
    wanted = {
        'from': {('GET', '_changes'), ('POST', '_bulk_get'), ('GET', '_local'), ('PUT', '_local')},
        'to': {('POST', '_revs_diff'), ('POST', '_bulk_docs'), ('GET', '_local')},
    }
    assert wanted[direction] <= asked


def test_a_database_is_kept_in_step(caplog, couchdb_command, serve, start_program, tmp_path):
    """Until the database server ends, which ends the feeds that our server waits for."""
    caplog.set_level(logging.CRITICAL, 'degu.server')  # a kept record would keep connections open
    path = str(tmp_path / 'couchdb')
    url = 'http://{}:{}'.format(*serve(ProxyApp(Client(path))).address)
    start_program([*couchdb_command, path], path, tmp_path / 'log')
    client = Client(path, {'host': 'localhost'})
    with client.connect() as conn, client.connect() as other:
        assert ask(conn, 'PUT', '/from')[0] == 201
        assert ask(conn, 'PUT', '/to')[0] == 201
        ends = {'source': f'{url}/from', 'target': 'to', 'continuous': True}
        assert ask(conn, 'POST', '/_replicate', ends) == (200, {'ok': True})
        feed = conn.get('/to/_changes?feed=continuous&heartbeat=100').body
        for name in ('a', 'b'):
            assert ask(other, 'PUT', f'/from/{name}', {})[0] == 201
            assert read_change(feed)['id'] == name


def test_what_older_replicators_send_is_refused(couchdb, serve, dial):
    """PouchDB up to version 8 sends `cookie: ` with nothing in it where it has no cookie."""
    raw = dial(serve(ProxyApp(Client(couchdb))).address)
    raw.send(
        b'GET /db/ HTTP/1.1\r\nContent-Type: application/json\r\nAccept: application/json\r\n'
        b'cookie: \r\nUser-Agent: node-fetch/1.0\r\nAccept-Encoding: gzip,deflate\r\n'
        b'Connection: close\r\nHost: 127.0.0.1:6002\r\n\r\n'
    )
    assert raw.read_preamble().startswith(b'HTTP/1.1 400 Bad Request\r\n')
