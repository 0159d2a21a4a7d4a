"""What becomes of the response of a WSGI application on a Degu server."""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
import threading
import weakref
from wsgiref.validate import validator

import pytest

from degu.client import Client

TIMEOUT_S = 10.0
"""After this long a test hangs, and fails."""

# --- what is sent --------------------------------------------------------------------------------


def respond(iterable, *headers, status='200 OK', written=()):
    """Make an application that gives this response."""

    def app(environ, start_response):
        write = start_response(status, list(headers))
        for data in written:
            write(data)
        return iterable() if callable(iterable) else iterable

    return app


def generate(*blocks):
    return lambda: iter(blocks)


def call_late(environ, start_response):
    yield b''
    start_response('200 OK', [])
    yield b'hello'


def call_at_the_end(environ, start_response):
    start_response('200 OK', [])
    return
    yield


LENGTH = ('Content-Length', '5')
CHUNKED = b'transfer-encoding: chunked\r\n\r\n'
FIVE = b'content-length: 5\r\n\r\n'


@pytest.mark.parametrize(
    ('app', 'sent'),
    [
        pytest.param(respond([b'hello']), FIVE + b'hello', id='a list of one'),
        pytest.param(respond([]), b'content-length: 0\r\n\r\n', id='an empty list'),
        pytest.param(respond([b'']), b'content-length: 0\r\n\r\n', id='a list of an empty block'),
        pytest.param(respond((b'hel', b'', b'lo')), FIVE + b'hello', id='a tuple of several'),
        pytest.param(respond([b'hello'], LENGTH), FIVE + b'hello', id='a list with length'),
        pytest.param(
            respond(generate(b'hel', b'', b'lo'), LENGTH), FIVE + b'hello', id='blocks with length'
        ),
        pytest.param(
            respond(generate(b'', b'hel', b'', b'lo')),
            CHUNKED + b'3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n',
            id='blocks without length',
        ),
        pytest.param(respond(generate()), CHUNKED + b'0\r\n\r\n', id='no block'),
        pytest.param(
            respond(generate(b'x' * 70_000)),
            CHUNKED
            + b'10000\r\n'
            + b'x' * 65_536
            + b'\r\n1170\r\n'
            + b'x' * 4464
            + b'\r\n0\r\n\r\n',
            id='a large block',
        ),
        pytest.param(call_late, CHUNKED + b'5\r\nhello\r\n0\r\n\r\n', id='start_response late'),
        pytest.param(call_at_the_end, CHUNKED + b'0\r\n\r\n', id='a generator with no block'),
        pytest.param(respond([], written=[b'hel', b'lo']), FIVE + b'hello', id='write()'),
        pytest.param(
            respond([b'lo'], written=[b'hel']), FIVE + b'hello', id='write() before a list'
        ),
        pytest.param(
            respond(generate(b'lo'), written=[b'hel']),
            CHUNKED + b'3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n',
            id='write() before blocks',
        ),
        pytest.param(
            respond(generate(b'lo'), LENGTH, written=[b'hel']),
            FIVE + b'hello',
            id='write() with length',
        ),
        pytest.param(
            respond([b'hello'], ('Vary', 'Cookie'), ('X-A', '1'), ('vary', 'Accept')),
            b'vary: Cookie, Accept\r\nx-a: 1\r\ncontent-length: 5\r\n\r\nhello',
            id='a list header twice',
        ),
        pytest.param(
            respond([b'hello'], ('X-A', ' b \t')),
            b'x-a: b\r\ncontent-length: 5\r\n\r\nhello',
            id='space around a value',
        ),
        pytest.param(
            respond([b'hello'], ('Set-Cookie', 'a=1; Expires=Thu, 01 Jan 2026')),
            b'set-cookie: a=1; Expires=Thu, 01 Jan 2026\r\ncontent-length: 5\r\n\r\nhello',
            id='one cookie',
        ),
    ],
)
def test_a_response_becomes_these_bytes(serve_wsgi, dial, app, sent):
    peer = dial(serve_wsgi(app))
    peer.send(b'GET / HTTP/1.1\r\nconnection: close\r\n\r\n')
    assert peer.read_to_end() == b'HTTP/1.1 200 OK\r\n' + sent


@pytest.mark.parametrize(
    ('method', 'status', 'headers', 'sent'),
    [
        ('HEAD', '200 OK', [LENGTH], FIVE),
        ('HEAD', '200 OK', [], b'\r\n'),
        ('GET', '204 No Content', [LENGTH], b'\r\n'),
        ('GET', '204 No Content', [], b'\r\n'),
        ('GET', '304 Not Modified', [('ETag', '"a"')], b'etag: "a"\r\n\r\n'),
    ],
)
@pytest.mark.parametrize('iterable', [[b'hello'], generate(b'hel', b'lo')], ids=['list', 'blocks'])
def test_where_there_is_no_body_none_is_sent(
    serve_wsgi, dial, method, status, headers, sent, iterable
):
    peer = dial(serve_wsgi(respond(iterable, *headers, status=status, written=[b'written'])))
    peer.send(f'{method} / HTTP/1.1\r\nconnection: close\r\n\r\n'.encode())
    assert peer.read_to_end() == f'HTTP/1.1 {status}\r\n'.encode() + sent


@pytest.mark.parametrize('headers', [[], [('Content-Length', '10')]], ids=['chunked', 'length'])
def test_a_block_is_sent_before_the_next_one_is_made(serve_wsgi, headers):
    def app(environ, start_response):
        start_response('200 OK', [('Content-Type', 'text/plain'), *headers])
        yield b'first'
        assert go_on.wait(TIMEOUT_S)
        yield b'after'

    go_on = threading.Event()
    with Client(serve_wsgi(validator(app))).connect() as conn:
        pieces = iter(conn.get('/').body)
        assert next(pieces) == b'first'
        go_on.set()
        assert b''.join(pieces) == b'after'


def test_what_is_written_waits_in_a_file_beyond_a_megabyte(serve_wsgi):
    def app(environ, start_response):
        write = start_response('200 OK', [])
        for _ in range(5):
            write(megabyte)
        descriptors = [f'/proc/self/fd/{name}' for name in os.listdir('/proc/self/fd')]
        paths = [os.readlink(path) for path in descriptors if os.path.islink(path)]
        files.extend(path for path in paths if path.startswith(tempfile.gettempdir()))
        return []

    megabyte, files = bytes(1024 * 1024), []
    with Client(serve_wsgi(app)).connect() as conn:
        assert sum(len(piece) for piece in conn.get('/').body) == 5 * len(megabyte)
    assert len(files) == 1


def test_an_error_page_replaces_a_head_that_is_not_sent(serve_wsgi):
    def app(environ, start_response):
        start_response('200 OK', [('X-Old', '1')])
        try:
            raise LookupError
        except LookupError:
            start_response('404 Not Found', [('X-New', '1')], sys.exc_info())
        return [b'not here']

    with Client(serve_wsgi(app)).connect() as conn:
        response = conn.get('/')
        assert (response.status, response.body.read()) == (404, b'not here')
        assert response.headers == {'x-new': '1', 'content-length': 8}


def test_an_error_after_the_head_was_sent_cuts_the_response_off(serve_wsgi, dial, caplog):
    def app(environ, start_response):
        start_response('200 OK', [])
        yield b'hel'
        try:
            raise LookupError('the lamp is out')
        except LookupError:
            start_response('500 Error', [], sys.exc_info())
        yield b'lo'

    peer = dial(serve_wsgi(app))
    peer.send(b'GET / HTTP/1.1\r\n\r\n')
    assert peer.read_to_end() == b'HTTP/1.1 200 OK\r\n' + CHUNKED + b'3\r\nhel\r\n'
    assert 'the lamp is out' in caplog.text


def call_twice(environ, start_response):
    start_response('200 OK', [])
    start_response('200 OK', [])
    return []


def replace_what_was_written(environ, start_response):
    start_response('200 OK', [])(b'hello')
    try:
        raise LookupError('written already')
    except LookupError:
        start_response('500 Error', [], sys.exc_info())


def write_late(environ, start_response):
    write = start_response('200 OK', [])
    write(b'hel')
    yield b''
    write(b'lo')


COOKIES = [('Set-Cookie', 'sid=secret; Path=/'), ('set-cookie', 'csrf=secret')]


@pytest.mark.parametrize(
    ('app', 'reason'),
    [
        (lambda environ, start_response: [b'hello'], 'start_response() must be called before'),
        (lambda environ, start_response: None, "'NoneType' object is not iterable"),
        (call_twice, 'start_response() was called again, without exc_info'),
        (replace_what_was_written, 'written already'),
        (write_late, 'write() must not be called once the application has returned'),
        (respond(['hello']), 'a WSGI application gives bytes, not str'),
        (respond([], written=['hello']), 'a WSGI application gives bytes, not str'),
        (respond([], status='200'), "reason must be printable, with no space at its ends, not ''"),
        (respond([], status='OK'), 'a status must be like "200 OK", not \'OK\''),
        (respond([], status='+20 OK'), 'a status must be like "200 OK", not \'+20 OK\''),
        (respond([], status='100 Continue'), 'status must be an int from 200 to 599, not 100'),
        (respond([], ('Connection', 'close')), 'connection is about the connection'),
        (respond([], ('Transfer-Encoding', 'chunked')), 'transfer-encoding is about the'),
        (respond([], ('X-A', 'a\r\nX-B: b')), 'x-a must be printable'),
        (respond([], ('X-A', '')), 'x-a must be printable'),
        (respond([], ('X-A', '\xa0a')), 'x-a must be printable'),
        (respond([], ('X-A', '\u20ac')), 'x-a must be printable'),
        (respond([], ('X_A', 'a')), 'a header name must be 1 to 64 of [0-9a-z-]'),
        (respond([], ('X-A', 5)), "a header must be two str, not 'X-A' and int"),
        (respond([], ('Content-Length', '+5')), 'content-length must be 0 or up to 16 digits'),
        (respond([b'hello'], ('Content-Length', '4')), 'content-length: 4 was given'),
        (respond([], ('Content-Type', 'a/b'), ('content-type', 'c/d')), 'content-type was given 2'),
        (respond([], *COOKIES), 'set-cookie was given for 2 cookies (sid, csrf)'),
    ],
)
def test_what_breaks_the_contract_is_a_500_and_the_log_says_why(
    serve_wsgi, dial, caplog, app, reason
):
    peer = dial(serve_wsgi(app))
    peer.send(b'GET / HTTP/1.1\r\n\r\n')
    assert peer.read_to_end() == (
        b'HTTP/1.1 500 Internal Server Error\r\nconnection: close\r\ncontent-length: 0\r\n\r\n'
    )
    assert reason in caplog.text


def test_a_head_that_is_refused_can_still_be_replaced(serve_wsgi):
    def app(environ, start_response):
        try:
            start_response('200 OK', [('X-A', 'a\r\nX-B: b')])
        except ValueError:
            start_response('400 Bad Request', [], sys.exc_info())
        return [b'not that']

    with Client(serve_wsgi(app)).connect() as conn:
        response = conn.get('/')
        assert (response.status, response.body.read()) == (400, b'not that')


def test_the_value_of_a_cookie_is_not_logged(serve_wsgi, dial, caplog):
    peer = dial(serve_wsgi(respond([], *COOKIES)))
    peer.send(b'GET / HTTP/1.1\r\n\r\n')
    peer.read_to_end()
    assert 'secret' not in caplog.text
    assert 'CSRF_USE_SESSIONS' in caplog.text  # what to do


# --- close() -------------------------------------------------------------------------------------


class Closable:
    """An iterable of blocks; `closed` counts its close()."""

    def __init__(self, blocks):
        self.blocks = blocks
        self.given = 0
        self.closed = []
        self.is_closed = threading.Event()

    def __iter__(self):
        for block in self.blocks:
            self.given += 1
            yield block

    def close(self):
        self.closed.append(self.given)
        self.is_closed.set()


def breaking():
    yield b'hel'
    raise LookupError


@pytest.mark.parametrize(
    ('blocks', 'headers', 'method', 'given'),
    [
        pytest.param([b'hel', b'lo'], [], 'GET', 2, id='chunked'),
        pytest.param([b'hel', b'lo'], [LENGTH], 'GET', 2, id='length'),
        pytest.param([], [], 'GET', 0, id='empty'),
        pytest.param([b'hel', b'lo'], [], 'HEAD', 1, id='HEAD'),
        pytest.param(breaking(), [], 'GET', 1, id='breaking'),
        pytest.param(['hel'], [], 'GET', 1, id='not bytes'),
        pytest.param([b'hel', b'lo!'], [LENGTH], 'GET', 2, id='too long'),
        pytest.param([b'hel'], [LENGTH], 'GET', 1, id='too short'),
    ],
)
def test_an_iterable_is_closed_once_after_its_last_block(
    serve_wsgi, dial, blocks, headers, method, given
):
    iterable = Closable(blocks)
    peer = dial(serve_wsgi(respond(iterable, *headers)))
    peer.send(f'{method} / HTTP/1.1\r\nconnection: close\r\n\r\n'.encode())
    peer.read_to_end()
    assert iterable.is_closed.wait(TIMEOUT_S)
    assert iterable.closed == [given]


def test_an_iterable_is_closed_when_start_response_was_never_called(serve_wsgi, dial):
    iterable = Closable([b'hello'])
    peer = dial(serve_wsgi(lambda environ, start_response: iterable))
    peer.send(b'GET / HTTP/1.1\r\n\r\n')
    assert peer.read_to_end().startswith(b'HTTP/1.1 500 ')
    assert iterable.closed == [1]


def test_an_iterable_whose_close_fails_is_not_closed_again(serve_wsgi, dial, caplog):
    class Failing(Closable):
        def close(self):
            super().close()
            raise LookupError('the lamp is out')

    iterable = Failing([b'hello'])
    peer = dial(serve_wsgi(respond(iterable)))
    peer.send(b'HEAD / HTTP/1.1\r\n\r\n')
    assert peer.read_to_end().startswith(b'HTTP/1.1 500 ')
    assert iterable.closed == [1]
    assert 'the lamp is out' in caplog.text


def test_an_application_that_is_its_own_iterable_is_not_kept_for_the_collector(serve_wsgi):
    class Classic:
        """The class of PEP 3333, which is an application and its iterable in one."""

        def __init__(self, environ, start_response):
            self.start = start_response
            seen.append(weakref.ref(self))

        def __iter__(self):
            self.start('200 OK', [])
            yield b'hello'

    seen = []
    gc.disable()
    try:
        with Client(serve_wsgi(Classic)).connect() as conn:
            for _ in range(2):
                assert conn.get('/').body.read() == b'hello'
        assert seen[0]() is None
    finally:
        gc.enable()


def endless():
    while True:
        yield b'hello'


@pytest.mark.parametrize('headers', [[], [('Content-Length', str(10**12))]])
def test_an_iterable_is_closed_when_the_client_goes_away_in_the_middle(serve_wsgi, dial, headers):
    iterable = Closable(endless())
    peer = dial(serve_wsgi(respond(iterable, *headers)))
    peer.send(b'GET / HTTP/1.1\r\n\r\n')
    peer.read(100_000)
    peer.close()
    assert iterable.is_closed.wait(TIMEOUT_S)
    assert len(iterable.closed) == 1


@pytest.mark.parametrize('headers', [[], [('Content-Length', str(10**12))]])
def test_an_iterable_is_closed_when_the_client_is_gone_before_the_first_byte(
    serve_wsgi, dial, headers
):
    def app(environ, start_response):
        began.set()
        assert go_on.wait(TIMEOUT_S)
        start_response('200 OK', headers)
        return iterable

    iterable, began, go_on = Closable(endless()), threading.Event(), threading.Event()
    peer = dial(serve_wsgi(app))
    peer.send(b'GET / HTTP/1.1\r\n\r\n')
    assert began.wait(TIMEOUT_S)
    peer.close()
    go_on.set()
    assert iterable.is_closed.wait(TIMEOUT_S)


# --- wsgi.file_wrapper ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('headers', 'sent'),
    [
        ([LENGTH], FIVE + b'hello'),
        ([], CHUNKED + b'4\r\nhell\r\n4\r\no...\r\n0\r\n\r\n'),
    ],
    ids=['length', 'chunked'],
)
def test_a_file_is_sent_from_its_position_to_its_length_and_closed(
    serve_wsgi, dial, tmp_path, headers, sent
):
    def app(environ, start_response):
        fp = (tmp_path / 'content').open('rb')
        files.append(fp)
        fp.seek(2)
        start_response('200 OK', headers)
        return environ['wsgi.file_wrapper'](fp, 4)

    (tmp_path / 'content').write_bytes(b'..hello...')
    files = []
    peer = dial(serve_wsgi(app))
    peer.send(b'GET / HTTP/1.1\r\nconnection: close\r\n\r\n')
    assert peer.read_to_end() == b'HTTP/1.1 200 OK\r\n' + sent
    assert files[0].closed


# --- wsgi.errors ---------------------------------------------------------------------------------


def test_what_is_written_to_wsgi_errors_is_in_the_log(serve_wsgi, caplog):
    def app(environ, start_response):
        start_response('200 OK', [('Content-Type', 'text/plain')])
        if environ['PATH_INFO'] == '/next':
            return [b'']
        errors = environ['wsgi.errors']
        print('the lamp', 'is out', file=errors)
        errors.write('Traceback:\n  two lines\n')
        errors.writelines(['one ', 'two'])
        errors.flush()
        errors.flush()
        errors.write('at the end')
        return [b'']

    with Client(serve_wsgi(validator(app))).connect() as conn:
        conn.get('/').body.read()
        conn.get('/next').body.read()  # which begins when the first one is over on the server, too
    records = [r for r in caplog.records if r.name == 'degu.wsgi']
    assert [r.args[1] for r in records[:4]] == [
        'the lamp is out',
        'Traceback:\n  two lines',
        'one two',
        'at the end',
    ]
    assert {r.levelname for r in records} == {'ERROR'}


def test_logging_that_leads_back_to_wsgi_errors_ends_at_stderr(serve_wsgi, caplog, capsys):
    def app(environ, start_response):
        handler = logging.StreamHandler(environ['wsgi.errors'])
        logging.getLogger('degu').addHandler(handler)
        try:
            environ['wsgi.errors'].write('the lamp is out\n')
        finally:
            logging.getLogger('degu').removeHandler(handler)
        start_response('200 OK', [])
        return []

    with Client(serve_wsgi(app)).connect() as conn:
        conn.get('/')
    assert capsys.readouterr().err.count('the lamp is out') == 1
    assert len([r for r in caplog.records if r.name == 'degu.wsgi']) == 1
