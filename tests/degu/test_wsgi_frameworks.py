"""Flask and Django on a Degu server, whose clients show a certificate."""

from __future__ import annotations

import hashlib
import io
import logging
import ssl
from urllib.parse import urlencode

import flask
import pytest

from degu import IPv4_LOOPBACK
from degu.bodies import ChunkedOutput
from degu.client import Client, SSLClient, build_client_sslctx
from degu.misc import TempSSLServer
from degu.rgi import Validator
from degu.server import build_server_sslctx
from degu.util import shift_path
from degu.wsgi import WsgiApp

LARGE = bytes(range(256)) * 8192
"""2 MiB: more than a framework keeps in memory."""
FORM = {'content-type': 'application/x-www-form-urlencoded'}


def build_multipart(name, filename, content):
    """Build the headers and the body of a form that uploads a file."""
    body = (
        b'--limit\r\nContent-Disposition: form-data; '
        b'name="%b"; filename="%b"\r\n\r\n%b\r\n--limit--\r\n' % (name, filename, content)
    )
    return {'content-type': 'multipart/form-data; boundary=limit'}, body


# --- Flask ---------------------------------------------------------------------------------------


def build_flask(path):
    app = flask.Flask('test')
    app.secret_key = 'a key for the test'

    @app.get('/who')
    def who():
        der = ssl.PEM_cert_to_DER_cert(flask.request.environ['SSL_CLIENT_CERT'])
        return {'scheme': flask.request.scheme, 'client': hashlib.sha256(der).hexdigest()}

    @app.post('/form')
    def form():
        return dict(flask.request.form)

    @app.post('/upload')
    def upload():
        file = flask.request.files['file']
        return {'name': file.filename, 'digest': hashlib.sha256(file.stream.read()).hexdigest()}

    @app.post('/digest')
    def digest():
        return hashlib.file_digest(flask.request.stream, 'sha256').hexdigest()

    @app.get('/stream')
    def stream():
        return (f'{number}\n' for number in range(1000))

    @app.get('/file')
    def file():
        return flask.send_file(path, 'text/plain', conditional=True)

    @app.get('/count')
    def count():
        flask.session['count'] = flask.session.get('count', 0) + 1
        return str(flask.session['count'])

    @app.get('/cookies')
    def cookies():
        response = flask.Response('two')
        response.set_cookie('a', '1')
        response.set_cookie('b', '2')
        return response

    @app.get('/broken')
    def broken():
        raise RuntimeError('the lamp is out')

    @app.get('/here')
    def here():
        return flask.url_for('who', _external=True)

    return app


@pytest.fixture
def conn(serve_wsgi, temp_pki, tmp_path):
    """Give a connection with a certificate to a server with the Flask application."""
    path = tmp_path / 'content'
    path.write_bytes(LARGE)
    sslctx = build_server_sslctx(temp_pki.get_server_config())
    address = serve_wsgi(build_flask(path), IPv4_LOOPBACK, sslctx)
    client = SSLClient(build_client_sslctx(temp_pki.get_client_config()), address)
    with client.connect() as conn:
        yield conn


def test_flask_knows_the_client_by_its_certificate(conn, temp_pki):
    pem = (temp_pki.directory / 'client-cert.pem').read_text()
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    assert flask.json.loads(conn.get('/who').body.read()) == {'scheme': 'https', 'client': digest}


def test_flask_reads_a_form(conn):
    form = {'name': 'Grün & co', 'size': '5'}
    response = conn.post('/form', FORM, urlencode(form).encode())
    assert flask.json.loads(response.body.read()) == form


@pytest.mark.parametrize('is_chunked', [False, True], ids=['length', 'chunked'])
def test_flask_takes_an_upload(conn, is_chunked):
    headers, body = build_multipart(b'file', b'a.raw', LARGE)
    response = conn.post('/upload', headers, ChunkedOutput([body, b'']) if is_chunked else body)
    assert flask.json.loads(response.body.read()) == {
        'name': 'a.raw',
        'digest': hashlib.sha256(LARGE).hexdigest(),
    }


def test_flask_reads_a_stream(conn):
    response = conn.post('/digest', {}, ChunkedOutput([LARGE, LARGE, b'']))
    assert response.body.read().decode() == hashlib.sha256(LARGE * 2).hexdigest()


def test_flask_streams(conn):
    body = conn.get('/stream').body
    assert body.chunked
    assert body.read() == b''.join(b'%d\n' % number for number in range(1000))


def test_flask_sends_a_file_and_a_part_of_it(conn):
    response = conn.get('/file')
    assert response.headers['content-length'] == len(LARGE)
    assert response.body.read() == LARGE
    response = conn.get('/file', {'range': 'bytes=1000-1999'})
    assert (response.status, response.body.read()) == (206, LARGE[1000:2000])
    assert str(response.headers['content-range']) == f'bytes 1000-1999/{len(LARGE)}'
    response = conn.head('/file')
    assert (response.headers['content-length'], response.body) == (len(LARGE), None)


def test_flask_knows_its_visitor_by_a_cookie(conn):
    headers = {}
    for count in (b'1', b'2', b'3'):
        response = conn.get('/count', headers)
        assert response.body.read() == count
        headers = {'cookie': response.headers['set-cookie'].partition(';')[0]}


def test_flask_s_own_error_pages_are_sent(conn):
    response = conn.get('/nowhere')
    assert response.status == 404
    assert b'Not Found' in response.body.read()
    assert conn.post('/who').body.read()  # 405
    response = conn.get('/broken')
    assert response.status == 500
    assert b'Internal Server Error' in response.body.read()


def test_what_flask_logs_is_in_our_log(conn, caplog):
    conn.get('/broken').body.read()
    assert 'RuntimeError: the lamp is out' in caplog.text


def test_two_cookies_in_a_response_are_refused_with_the_reason(conn, caplog):
    response = conn.get('/cookies')
    assert (response.status, response.headers['connection']) == (500, 'close')
    assert 'set-cookie was given for 2 cookies (a, b)' in caplog.text


def test_flask_below_a_prefix_makes_urls_with_it(serve, tmp_path):
    inner = WsgiApp(build_flask(tmp_path))

    def app(connection, request):
        if shift_path(request) == 'inner':
            return inner(connection, request)
        return 404, 'Not Found', {}, None

    address = serve(Validator(app), str(tmp_path / 'socket')).address
    with Client(address).connect() as conn:
        assert conn.get('/inner/here').body.read() == b'http://localhost/inner/who'
        assert conn.get('/inner/here', {'host': 'box'}).body.read() == b'http://box/inner/who'
        assert conn.get('/other').status == 404


# --- Django --------------------------------------------------------------------------------------


def build_django(log_file, csrf_use_sessions):
    """Build a Django application, in the process that serves it: its settings are the process's."""
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import FileResponse, HttpResponse
    from django.middleware.csrf import get_token
    from django.urls import path

    def show_form(request):
        request.session['visits'] = request.session.get('visits', 0) + 1
        return HttpResponse(get_token(request))

    def take_form(request):
        size = sum(len(chunk) for chunk in request.FILES['file'].chunks())
        return HttpResponse(f'{request.session["visits"]} {request.is_secure()} {size}')

    settings.configure(
        ALLOWED_HOSTS=['127.0.0.1'],
        ROOT_URLCONF=(
            path('form', show_form),
            path('upload', take_form),
            path('file', lambda request: FileResponse(io.BytesIO(LARGE))),
        ),
        SECRET_KEY='a key for the test',
        SESSION_ENGINE='django.contrib.sessions.backends.signed_cookies',
        CSRF_USE_SESSIONS=csrf_use_sessions,
        MIDDLEWARE=[
            'django.contrib.sessions.middleware.SessionMiddleware',
            'django.middleware.common.CommonMiddleware',
            'django.middleware.csrf.CsrfViewMiddleware',
        ],
    )
    django.setup()
    logging.getLogger('degu').addHandler(logging.FileHandler(log_file))
    return Validator(WsgiApp(get_wsgi_application()))


@pytest.fixture
def log_file(tmp_path):
    return tmp_path / 'server.log'


@pytest.fixture
def django_client(temp_pki, log_file):
    """Give `django_client(csrf_use_sessions)`: a client with a certificate of a Django server."""
    servers = []

    def start(csrf_use_sessions):
        config = temp_pki.get_server_config()
        server = TempSSLServer(config, IPv4_LOOPBACK, build_django, log_file, csrf_use_sessions)
        servers.append(server)
        return SSLClient(build_client_sslctx(temp_pki.get_client_config()), server.address)

    yield start
    for server in servers:
        server.close()


def test_django_takes_an_upload_that_its_form_asked_for(django_client):
    client = django_client(csrf_use_sessions=True)
    with client.connect() as conn:
        response = conn.get('/form')
        token = response.body.read().decode()
        headers, body = build_multipart(b'file', b'a.raw', LARGE * 2)  # a file on its side
        headers['cookie'] = response.headers['set-cookie'].partition(';')[0]
        headers['origin'] = f'https://127.0.0.1:{client.address[1]}'
        assert conn.post('/upload', headers, body).status == 403
        conn.close()
    with client.connect() as conn:
        headers['x-csrftoken'] = token
        response = conn.post('/upload', headers, body)
        assert (response.status, response.body.read()) == (200, b'1 True %d' % len(LARGE * 2))
        response = conn.get('/file')
        assert response.headers['content-length'] == len(LARGE)
        assert response.body.read() == LARGE


def test_django_s_csrf_cookie_beside_its_session_is_refused(django_client, log_file):
    with django_client(csrf_use_sessions=False).connect() as conn:
        response = conn.get('/form')
        assert (response.status, response.headers['connection']) == (500, 'close')
    assert 'set-cookie was given for 2 cookies (csrftoken, sessionid)' in log_file.read_text()
