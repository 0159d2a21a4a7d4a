"""The Validator: what breaks the contract of RGI is caught, what keeps it passes."""

from __future__ import annotations

import io
import socket
from contextlib import closing

import pytest

from degu.bodies import ChunkedInput, ChunkedOutput, FileOutput, Input, Output
from degu.channel import Channel
from degu.limits import DEFAULT_LIMITS
from degu.net import Credentials
from degu.rgi import (
    ContentRange,
    Range,
    ValidationError,
    Validator,
    check_connection,
    check_request,
    check_response,
)

CONNECTION = {
    'scheme': 'http',
    'protocol': 'HTTP/1.1',
    'server': ('127.0.0.1', 8080),
    'client': ('127.0.0.1', 54321),
    'requests': 0,
    'rgi.Output': Output,
    'rgi.ChunkedOutput': ChunkedOutput,
    'rgi.FileOutput': FileOutput,
}
OPTIONAL = {'rgi.set_deadline': id, 'rgi.is_client_gone': id}
TLS = {
    'scheme': 'https',
    'ssl_cipher': ('TLS_AES_256_GCM_SHA384', 'TLSv1.3', 256),
    'ssl_compression': None,
    'ssl_peer_cert': b'DER',
}
UNIX = {'server': '/run/my.socket', 'client': '', 'credentials': Credentials(1, 2, 3)}
REQUEST = {'method': 'GET', 'script': [], 'path': ['a'], 'query': '', 'headers': {}, 'body': None}
MISSING = object()


def changed(base, change):
    """Copy a dict with some values changed, or taken away where they are MISSING."""
    return {name: value for name, value in {**base, **change}.items() if value is not MISSING}


@pytest.fixture
def channel():
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        theirs.sendall(b'5\r\nhello\r\n0\r\n\r\n')
        yield Channel(ours, DEFAULT_LIMITS)


def ok(connection, request):
    return 200, 'OK', {}, None


def answer(*response):
    return lambda connection, request: response


# --- the application itself ----------------------------------------------------------------------


def test_an_app_is_callable():
    with pytest.raises(TypeError, match="app must be callable, not 'app'"):
        Validator('app')


def test_on_connect_is_callable():
    class App:
        on_connect = 'yes'

        def __call__(self, connection, request):
            return ok(connection, request)

    with pytest.raises(TypeError, match=r"app\.on_connect must be callable, not 'yes'"):
        Validator(App())


# --- connection ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'change',
    [
        {},
        OPTIONAL,
        TLS,
        {**TLS, 'ssl_peer_cert': None},
        UNIX,
        {**UNIX, **TLS},
        {**UNIX, 'server': b'\0name', 'client': b''},
        {'server': ('::1', 80, 0, 0), 'client': ('fe80::1', 5, 0, 2)},
        {'requests': 17},
        {'_user': 'someone', '__conn': object()},
    ],
    ids=lambda change: ','.join(change) or 'plain',
)
def test_a_connection_that_keeps_the_contract_passes(change):
    connection = {**CONNECTION, **change}
    check_connection(connection)
    assert Validator(ok)(connection, dict(REQUEST)) == (200, 'OK', {}, None)


@pytest.mark.parametrize(
    ('change', 'why'),
    [
        *(({name: MISSING}, f'connection must have {name!r}') for name in CONNECTION),
        ({'scheme': b'http'}, r"connection\['scheme'\] must be <class 'str'>"),
        ({'scheme': 'ftp'}, r"connection\['scheme'\] must be 'http' or 'https', not 'ftp'"),
        ({'protocol': 'HTTP/1.0'}, r"connection\['protocol'\] must be 'HTTP/1.1'"),
        ({'protocol': 1.1}, r"connection\['protocol'\] must be <class 'str'>"),
        ({'server': None}, r"connection\['server'\] must be"),
        ({'server': ('127.0.0.1', -1)}, r"connection\['server'\]: port must be 0 to 65535"),
        (
            {**UNIX, 'server': 'relative'},
            r"connection\['server'\]: a str is a socket path and must be absolute",
        ),
        ({'client': None}, r"connection\['client'\] must be"),
        ({'requests': -1}, r"connection\['requests'\] must not be negative"),
        ({'requests': '0'}, r"connection\['requests'\] must be <class 'int'>"),
        ({'requests': True}, r"connection\['requests'\] must be <class 'int'>"),
        ({'rgi.Output': Output([], 0)}, r"connection\['rgi.Output'\] must be <class 'type'>"),
        ({'rgi.ChunkedOutput': None}, r"connection\['rgi.ChunkedOutput'\] must be"),
        ({'rgi.FileOutput': 'FileOutput'}, r"connection\['rgi.FileOutput'\] must be"),
        ({'rgi.set_deadline': None}, r"connection\['rgi.set_deadline'\] must be"),
        ({'rgi.is_client_gone': True}, r"connection\['rgi.is_client_gone'\] must be"),
        *(
            ({**TLS, name: MISSING}, f'connection must have {name!r}')
            for name in ('ssl_cipher', 'ssl_compression', 'ssl_peer_cert')
        ),
        ({**TLS, 'ssl_cipher': 'AES'}, r"connection\['ssl_cipher'\] must be <class 'tuple'>"),
        ({**TLS, 'ssl_compression': False}, r"connection\['ssl_compression'\] must be"),
        ({**TLS, 'ssl_peer_cert': {}}, r"connection\['ssl_peer_cert'\] must be"),
        ({**UNIX, 'credentials': MISSING}, "connection must have 'credentials'"),
        ({**UNIX, 'credentials': (1, 2, 3)}, r"connection\['credentials'\] must be"),
        ({**UNIX, 'server': b'\0n', 'credentials': MISSING}, "connection must have 'credentials'"),
    ],
)
def test_a_connection_that_breaks_the_contract_is_caught(change, why):
    connection = changed(CONNECTION, change)
    with pytest.raises(ValidationError, match=why):
        check_connection(connection)
    with pytest.raises(ValidationError, match=why):
        Validator(ok)(connection, dict(REQUEST))
    with pytest.raises(ValidationError, match=why):
        Validator(ok).on_connect(None, connection)


def test_a_connection_is_a_dict():
    with pytest.raises(ValidationError, match='connection must be a dict, not None'):
        check_connection(None)


# --- on_connect ----------------------------------------------------------------------------------


class Greeter:
    """An application whose on_connect does what it is told to."""

    def __init__(self, act):
        self.act = act
        self.calls = []

    def on_connect(self, sock, connection):
        self.calls.append((sock, connection))
        return self.act(connection)

    def __call__(self, connection, request):
        return ok(connection, request)


@pytest.mark.parametrize('result', [True, False])
def test_on_connect_is_called_and_its_answer_given(result):
    app = Greeter(lambda connection: result)
    connection = dict(CONNECTION)
    sock = object()
    assert Validator(app).on_connect(sock, connection) is result
    assert app.calls == [(sock, connection)]
    assert app.calls[0][1] is connection


def test_on_connect_may_add_keys_with_one_underscore():
    connection = dict(CONNECTION)
    assert Validator(Greeter(lambda c: c.update(_user='me') is None)).on_connect(None, connection)
    assert connection['_user'] == 'me'


def test_an_app_without_on_connect_takes_every_connection():
    assert Validator(ok).on_connect(None, dict(CONNECTION)) is True


@pytest.mark.parametrize('result', [None, 1, 'yes', 0])
def test_on_connect_answers_true_or_false(result):
    with pytest.raises(ValidationError, match='on_connect must return True or False'):
        Validator(Greeter(lambda connection: result)).on_connect(None, dict(CONNECTION))


@pytest.mark.parametrize('name', ['user', '__user', 'rgi.More', ''])
def test_on_connect_adds_no_other_keys(name):
    app = Greeter(lambda connection: connection.update({name: 1}) is None)
    with pytest.raises(ValidationError, match='on_connect may only add keys that start with one'):
        Validator(app).on_connect(None, dict(CONNECTION))


@pytest.mark.parametrize('app', [ok, Greeter(lambda connection: True)], ids=['without', 'with'])
def test_on_connect_is_called_before_any_request(app):
    with pytest.raises(ValidationError, match=r"connection\['requests'\] must be 0, not 1"):
        Validator(app).on_connect(None, {**CONNECTION, 'requests': 1})


def test_middleware_around_the_validator_may_have_added_keys():
    connection = {**CONNECTION, '_peer': 'somebody'}
    assert Validator(Greeter(lambda connection: True)).on_connect(None, connection) is True


# --- request -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'change',
    [
        {},
        {'path': []},
        {'path': ['']},
        {'script': ['a'], 'path': ['b', '']},
        {'query': 'a=b'},
        {'method': 'HEAD'},
        {'method': 'DELETE'},
        {'method': 'PUT'},
        {'headers': {'a': 'v', 'range': Range(0, 5)}},
        {'method': 'PUT', 'headers': {'content-range': ContentRange(0, 5, 9)}},
    ],
    ids=str,
)
def test_a_request_that_keeps_the_contract_passes(change):
    request = {**REQUEST, **change}
    before = dict(request)
    check_request(request)
    assert Validator(ok)(dict(CONNECTION), request) == (200, 'OK', {}, None)
    assert request == before


def test_a_request_with_a_body_that_keeps_the_contract_passes(channel):
    check_request(
        {**REQUEST, 'method': 'PUT', 'headers': {'content-length': 5}, 'body': Input(channel, 5)}
    )
    check_request(
        {
            **REQUEST,
            'method': 'POST',
            'headers': {'transfer-encoding': 'chunked'},
            'body': ChunkedInput(channel),
        }
    )


@pytest.mark.parametrize(
    ('change', 'why'),
    [
        *(({name: MISSING}, f'request must have {name!r}') for name in REQUEST),
        ({'method': 'PATCH'}, r"request\['method'\] must be one of"),
        ({'method': b'GET'}, r"request\['method'\] must be <class 'str'>"),
        ({'script': ('a',)}, r"request\['script'\] must be <class 'list'>"),
        ({'script': ['a/b']}, r"request\['script'\] must hold segments"),
        ({'script': [b'a']}, r"request\['script'\] must hold segments"),
        ({'path': '/a'}, r"request\['path'\] must be <class 'list'>"),
        ({'path': ['/a']}, r"request\['path'\] must hold segments"),
        ({'path': [None]}, r"request\['path'\] must hold segments"),
        ({'query': None}, r"request\['query'\] must be <class 'str'>"),
        ({'headers': []}, r"request\['headers'\] must be <class 'dict'>"),
        ({'headers': {'A': 'v'}}, 'a header name of the request must be a casefolded str'),
        ({'headers': {5: 'v'}}, 'a header name of the request must be a casefolded str'),
        ({'headers': {'a': 5}}, r"request\['headers'\]\['a'\] must be str"),
        ({'headers': {'a': None}}, r"request\['headers'\]\['a'\] must be str"),
        ({'headers': {'range': 'bytes=0-4'}}, r"request\['headers'\]\['range'\] must be Range"),
        ({'headers': {'content-range': 'bytes */5'}}, r"\['content-range'\] must be ContentRange"),
        ({'headers': {'content-length': '5'}}, r"\['content-length'\] must be int"),
        (
            {'headers': {'content-length': 5}},
            'the framing headers of the request must fit its body',
        ),
        ({'headers': {'transfer-encoding': 'chunked'}}, 'the framing headers of the request must'),
        (
            {'headers': {'transfer-encoding': 'chunked', 'content-length': 5}},
            'the request must not have both framing headers',
        ),
        ({'body': b'hello'}, r"request\['body'\] must be"),
        ({'body': Output([], 0)}, r"request\['body'\] must be"),
    ],
)
def test_a_request_that_breaks_the_contract_is_caught(change, why):
    request = changed(REQUEST, change)
    with pytest.raises(ValidationError, match=why):
        check_request(request)
    with pytest.raises(ValidationError, match=why):
        Validator(ok)(dict(CONNECTION), request)


def test_a_request_is_a_dict():
    with pytest.raises(ValidationError, match='request must be a dict, not None'):
        check_request(None)


@pytest.mark.parametrize('method', ['GET', 'HEAD', 'DELETE'])
def test_a_body_with_a_method_that_has_none_is_caught(channel, method):
    request = {
        **REQUEST,
        'method': method,
        'headers': {'content-length': 5},
        'body': Input(channel, 5),
    }
    with pytest.raises(ValidationError, match=f'a {method} request has no body'):
        check_request(request)


@pytest.mark.parametrize(
    ('headers', 'build'),
    [
        ({}, lambda channel: Input(channel, 5)),
        ({'content-length': 6}, lambda channel: Input(channel, 5)),
        ({'transfer-encoding': 'chunked'}, lambda channel: Input(channel, 5)),
        ({}, ChunkedInput),
        ({'content-length': 5}, ChunkedInput),
    ],
)
def test_framing_that_does_not_fit_the_body_is_caught(channel, headers, build):
    request = {**REQUEST, 'method': 'PUT', 'headers': headers, 'body': build(channel)}
    with pytest.raises(ValidationError, match='the framing headers of the request must fit'):
        check_request(request)


@pytest.mark.parametrize(
    ('headers', 'build'),
    [
        ({'content-length': 0}, lambda channel: Input(channel, 0)),
        ({'transfer-encoding': 'chunked'}, ChunkedInput),
    ],
    ids=['input', 'chunked'],
)
def test_a_request_body_that_was_used_is_caught(channel, headers, build):
    body = build(channel)
    body.read()
    with pytest.raises(ValidationError, match='used already'):
        check_request({**REQUEST, 'method': 'PUT', 'headers': headers, 'body': body})


# --- what an application does --------------------------------------------------------------------


def test_an_app_may_keep_state_under_two_underscores():
    def app(connection, request):
        connection['__count'] = connection.get('__count', 0) + 1
        return 200, 'OK', {}, None

    connection = dict(CONNECTION)
    validator = Validator(app)
    validator(connection, dict(REQUEST))
    validator(connection, dict(REQUEST))
    assert connection['__count'] == 2


@pytest.mark.parametrize('name', ['count', '_count', 'rgi.More'])
def test_an_app_adds_no_other_keys(name):
    def app(connection, request):
        connection[name] = 1
        return 200, 'OK', {}, None

    with pytest.raises(ValidationError, match='a request handler may only add keys that start wit'):
        Validator(app)(dict(CONNECTION), dict(REQUEST))


def test_an_app_may_move_segments_from_path_to_script():
    def app(connection, request):
        request['script'].append(request['path'].pop(0))
        return 200, 'OK', {}, None

    request = {**REQUEST, 'script': [], 'path': ['a', 'b']}
    Validator(app)(dict(CONNECTION), request)
    assert (request['script'], request['path']) == (['a'], ['b'])


@pytest.mark.parametrize(
    'spoil',
    [
        lambda request: request['path'].pop(),
        lambda request: request['script'].append('x'),
        lambda request: request['path'].reverse(),
    ],
)
def test_an_app_loses_and_invents_no_segments(spoil):
    def app(connection, request):
        spoil(request)
        return 200, 'OK', {}, None

    with pytest.raises(ValidationError, match=r"script \+ path must stay \['a', 'b'\]"):
        Validator(app)(dict(CONNECTION), {**REQUEST, 'script': [], 'path': ['a', 'b']})


def test_an_error_of_the_app_is_not_hidden():
    def app(connection, request):
        raise LookupError('mine')

    with pytest.raises(LookupError, match='mine'):
        Validator(app)(dict(CONNECTION), dict(REQUEST))


# --- response ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('response', 'method'),
    [
        ((200, 'OK', {}, None), 'GET'),
        ((200, 'Anything you like', {'x-msg': 'hello, world'}, b''), 'GET'),
        ((599, 'Odd', {}, bytearray(b'hello')), 'POST'),
        ((200, 'OK', {'content-length': 5}, b'hello'), 'GET'),
        ((200, 'OK', {'content-length': 5}, None), 'HEAD'),
        ((200, 'OK', {'transfer-encoding': 'chunked'}, None), 'HEAD'),
        ((200, 'OK', {}, Output([b'hello'], 5)), 'GET'),
        ((200, 'OK', {}, ChunkedOutput([b''])), 'GET'),
        ((200, 'OK', {'transfer-encoding': 'chunked'}, ChunkedOutput([b''])), 'GET'),
        ((200, 'OK', {}, FileOutput(io.BytesIO(b'hello'), 5)), 'GET'),
        ((206, 'Partial Content', {'content-range': ContentRange(0, 5, 9)}, b'hello'), 'GET'),
        ((206, 'Partial Content', {'content-range': 'bytes 0-4/9'}, b'hello'), 'GET'),
        ((204, 'No Content', {}, None), 'PUT'),
        ((304, 'Not Modified', {'content-length': 5}, None), 'GET'),
    ],
    ids=str,
)
def test_a_response_that_keeps_the_contract_passes(response, method):
    check_response(response, method)
    assert Validator(answer(*response))(dict(CONNECTION), {**REQUEST, 'method': method}) == response


def test_a_response_may_pass_on_a_body_that_arrived(channel):
    check_response((200, 'OK', {'content-length': 5}, Input(channel, 5)), 'GET')
    check_response((200, 'OK', {'transfer-encoding': 'chunked'}, ChunkedInput(channel)), 'GET')


USED = Output([], 0)
list(USED)


@pytest.mark.parametrize(
    ('response', 'method', 'why'),
    [
        (None, 'GET', 'a response must be a tuple'),
        ([200, 'OK', {}, None], 'GET', 'a response must be a tuple'),
        ((200, 'OK', {}), 'GET', 'a response must be a tuple'),
        ((200, 'OK', {}, None, None), 'GET', 'a response must be a tuple'),
        ((199, 'OK', {}, None), 'GET', 'status must be an int from 200 to 599'),
        ((600, 'OK', {}, None), 'GET', 'status must be an int from 200 to 599'),
        (('200', 'OK', {}, None), 'GET', 'status must be an int from 200 to 599'),
        ((True, 'OK', {}, None), 'GET', 'status must be an int from 200 to 599'),
        ((200, '', {}, None), 'GET', 'reason must be printable'),
        ((200, ' OK', {}, None), 'GET', 'reason must be printable'),
        ((200, 'OK ', {}, None), 'GET', 'reason must be printable'),
        ((200, 'O\nK', {}, None), 'GET', 'reason must be printable'),
        ((200, b'OK', {}, None), 'GET', 'reason must be printable'),
        ((200, 'OK', None, None), 'GET', r"response\['headers'\] must be a dict"),
        ((200, 'OK', [('a', 'v')], None), 'GET', r"response\['headers'\] must be a dict"),
        (
            (200, 'OK', {'A': 'v'}, None),
            'GET',
            'a header name of the response must be a casefolded',
        ),
        ((200, 'OK', {b'a': 'v'}, None), 'GET', 'a header name of the response must be a casefold'),
        ((200, 'OK', {'a b': 'v'}, None), 'GET', 'a header name must be 1 to 64'),
        ((200, 'OK', {'a': 5}, None), 'GET', r"response\['headers'\]\['a'\] must be str"),
        ((200, 'OK', {'a': 'v\r\nb: w'}, None), 'GET', 'a must be printable'),
        ((200, 'OK', {'a': ''}, None), 'GET', 'a must be printable'),
        (
            (200, 'OK', {'content-length': '5'}, b'hello'),
            'GET',
            r"\['content-length'\] must be int",
        ),
        ((200, 'OK', {'content-length': 4}, b'hello'), 'GET', 'content-length: 4 was given, the b'),
        ((200, 'OK', {'content-length': 5}, None), 'GET', 'content-length: 5 was given, the body'),
        ((200, 'OK', {'content-length': 5}, ChunkedOutput([])), 'GET', 'content-length: 5 was giv'),
        ((200, 'OK', {'transfer-encoding': 'chunked'}, b''), 'GET', 'transfer-encoding was given'),
        ((200, 'OK', {'transfer-encoding': 'gzip'}, b''), 'GET', 'transfer-encoding was given'),
        ((200, 'OK', {}, 'text'), 'GET', 'a body must be None, bytes'),
        ((200, 'OK', {}, [b'hello']), 'GET', 'a body must be None, bytes'),
        ((200, 'OK', {}, io.BytesIO(b'hello')), 'GET', 'a body must be None, bytes'),
        ((200, 'OK', {}, USED), 'GET', 'the body was used already'),
        ((200, 'OK', {}, b'hello'), 'HEAD', 'a response to HEAD must not have a body'),
        ((204, 'No Content', {}, b''), 'GET', 'a response with status 204 must not have a body'),
        ((304, 'Not Modified', {}, b''), 'GET', 'a response with status 304 must not have a body'),
        (
            (206, 'Partial Content', {'content-range': ContentRange(5, 0, 9)}, b''),
            'GET',
            'content-range must be a range',
        ),
    ],
)
def test_a_response_that_breaks_the_contract_is_caught(response, method, why):
    with pytest.raises(ValidationError, match=why):
        check_response(response, method)
    with pytest.raises(ValidationError, match=why):
        Validator(lambda connection, request: response)(
            dict(CONNECTION), {**REQUEST, 'method': method}
        )
