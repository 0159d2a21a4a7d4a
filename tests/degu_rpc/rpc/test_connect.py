"""The Connect protocol over real sockets: its statuses, headers, limits and errors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from degu.bodies import ChunkedOutput
from degu.client import Client
from degu.server import Server
from degu_rpc import Code, Context, Router, RpcApp, RpcError, Service
from degu_rpc.peers import Authenticated
from degu_rpc.rpc import protocol
from degu_rpc.rpc.limits import MAX_ERROR_LENGTH, MAX_ERROR_SIZE, MAX_MESSAGE_SIZE

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

    from degu.client import Connection

JSON_HEADERS = {'content-type': 'application/json'}
MSGPACK_HEADERS = {'content-type': 'application/msgpack'}
METHOD = '/rpc/files.v1.Files/'


def build_app(calls: list[str] | None = None) -> Router:
    files = Service('files.v1.Files')

    @files.method(allow='peer')
    def echo(value: Any) -> Any:
        if calls is not None:
            calls.append('echo')
        return value

    @files.method(allow='peer')
    def whoami(ctx: Context) -> tuple[str, str, str]:
        return ctx.peer.name, ctx.method, ctx.headers.get('x-note', '')

    @files.method(allow='peer')
    def fail(code: str, message: str = '', details: list[dict[str, Any]] = []) -> None:  # noqa: B006  # never changed
        raise RpcError(Code(code), message.replace('HALF', '\udcff'), details)

    @files.method(allow='peer')
    def fail_badly() -> None:
        raise RpcError(Code.NOT_FOUND, 'gone', [{'what': object()}])

    @files.method(allow='peer')
    def zeros(size: int) -> str:
        return '0' * size

    @files.method(allow='peer', safe=True)
    def read() -> None:
        pass

    @files.method(allow='peer', safe=True)
    def watch() -> Iterator[int]:
        yield 1

    @files.method(allow='owner')
    def wipe() -> None:
        pass

    router = Router()
    router.mount('/rpc', RpcApp([files, Service('other')]))
    return router


@pytest.fixture
def conn(serve: Callable[..., Any], address: Any) -> Iterator[Connection]:
    client, _ = serve(build_app(), address)
    with client.connect() as connection:
        yield connection


def post(connection: Connection, method: str, content: Any, **headers: str) -> tuple[int, Any]:
    """Make a JSON call; return the status and what the JSON of the response says."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    extra = {name.replace('_', '-'): value for name, value in headers.items()}
    response = connection.post(METHOD + method, {**JSON_HEADERS, **extra}, body)
    assert response.headers['content-type'] == 'application/json'
    assert response.body is not None
    return response.status, json.loads(response.body.read())


# --- calls ---------------------------------------------------------------------------------------


def test_json_call(conn: Connection) -> None:
    assert post(conn, 'echo', {'value': [1, 'é', None]}) == (200, [1, 'é', None])


def test_msgpack_call(conn: Connection) -> None:
    body = msgpack.packb({'value': [b'\xff', 1]})
    response = conn.post(METHOD + 'echo', MSGPACK_HEADERS, body)
    assert (response.status, response.headers['content-type']) == (200, 'application/msgpack')
    assert response.body is not None
    assert msgpack.unpackb(response.body.read()) == [b'\xff', 1]


def test_chunked_call(conn: Connection) -> None:
    chunks = ChunkedOutput([b'{"va', b'lue": 5', b'}', b''])
    response = conn.post(METHOD + 'echo', JSON_HEADERS, chunks)
    assert response.body is not None
    assert (response.status, response.body.read()) == (200, b'5')


def test_context_has_peer_method_and_headers(conn: Connection) -> None:
    status, result = post(conn, 'whoami', {}, x_note='hello')
    assert (status, result) == (200, ['uid:7', 'files.v1.Files/whoami', 'hello'])


def test_calls_share_a_connection(conn: Connection) -> None:
    for number in range(3):
        assert post(conn, 'echo', {'value': number}) == (200, number)
        assert post(conn, 'fail', {'code': 'not_found'})[0] == 404


@pytest.mark.parametrize(
    'content_type',
    [
        'application/json',
        'Application/JSON',
        'application/json; charset=utf-8',
        'application/json;charset=UTF-8',
    ],
)
def test_content_type_of_json_is_recognized(conn: Connection, content_type: str) -> None:
    response = conn.post(METHOD + 'echo', {'content-type': content_type}, b'{"value": 1}')
    assert response.body is not None
    assert (response.status, response.body.read()) == (200, b'1')


# --- what is no call -----------------------------------------------------------------------------


def read_advice(response: Any) -> str:
    assert response.headers['content-type'] == 'text/plain; charset=utf-8'
    advice: str = response.body.read().decode()
    return advice


@pytest.mark.parametrize(
    ('method', 'verb', 'allow', 'advice'),
    [
        *(
            (method, verb, 'POST', 'a call is a POST request\n')
            for method in ('echo', 'watch')
            for verb in ('GET', 'HEAD', 'DELETE', 'PUT')
        ),
        *(
            ('read', verb, 'GET, POST', 'a call is a GET or POST request\n')
            for verb in ('HEAD', 'DELETE', 'PUT')
        ),
    ],
)
def test_another_verb_is_405_and_allow_has_what_the_method_takes(
    conn: Connection, method: str, verb: str, allow: str, advice: str
) -> None:
    response = conn.request(verb, METHOD + method, JSON_HEADERS, None)
    assert (response.status, response.headers['allow']) == (405, allow)
    if verb == 'HEAD':
        assert response.body is None
    else:
        assert read_advice(response) == advice


@pytest.mark.parametrize('verb', ['GET', 'HEAD', 'DELETE', 'PUT'])
@pytest.mark.parametrize(('method', 'status'), [('wipe', 403), ('none', 501)])
def test_what_a_method_takes_is_told_to_those_who_may_call_it(
    conn: Connection, verb: str, method: str, status: int
) -> None:
    response = conn.request(verb, METHOD + method, JSON_HEADERS, None)
    assert (response.status, 'allow' in response.headers) == (status, False)
    assert (response.body is None) == (verb == 'HEAD')


@pytest.mark.parametrize(
    'path',
    [
        '/rpc',
        '/rpc/files.v1.Files',
        '/rpc/files.v1.Files/echo/more',
        '/rpc/files.v2.Files/echo',
        '/rpc/Files.v1.files/echo',
        '/rpc/files%2Ev1.Files/echo',
    ],
)
def test_unknown_service_is_404(conn: Connection, path: str) -> None:
    response = conn.post(path, JSON_HEADERS, b'{}')
    assert response.status == 404
    assert read_advice(response) == 'no such service here: check prefix and name\n'


@pytest.mark.parametrize(
    'content_type',
    [
        'application/proto',
        'text/plain',
        'application/x-www-form-urlencoded',
        'application/jsonx',
        'application/json; charset=latin-1',
        'application/connect+proto',
    ],
)
def test_another_content_type_is_415_with_accept_post(conn: Connection, content_type: str) -> None:
    response = conn.post(METHOD + 'echo', {'content-type': content_type}, b'{"value": 1}')
    assert response.status == 415
    types = (
        'application/json, application/msgpack, '
        'application/connect+json, application/connect+msgpack'
    )
    assert response.headers['accept-post'] == types
    assert read_advice(response) == f'content-type must be one of these: {types}\n'


def test_no_content_type_is_415(conn: Connection) -> None:
    assert conn.post(METHOD + 'echo', {}, b'{"value": 1}').status == 415


def test_unknown_method_is_unimplemented(conn: Connection) -> None:
    status, error = post(conn, 'none', {})
    assert (status, error['code']) == (501, 'unimplemented')


# --- headers -------------------------------------------------------------------------------------


def test_protocol_version_1_is_accepted(conn: Connection) -> None:
    assert post(conn, 'echo', {'value': 1}, connect_protocol_version='1') == (200, 1)


@pytest.mark.parametrize('version', ['2', '0', '1.0', 'v1'])
def test_another_protocol_version_is_an_invalid_argument(conn: Connection, version: str) -> None:
    status, error = post(conn, 'echo', {'value': 1}, connect_protocol_version=version)
    assert (status, error['code']) == (400, 'invalid_argument')


def test_request_that_is_compressed_in_another_way_is_unimplemented(conn: Connection) -> None:
    status, error = post(conn, 'echo', b'\x1f\x8b', content_encoding='br')
    assert (status, error['code']) == (501, 'unimplemented')
    assert error['message'] == 'content-encoding must be one of these: gzip, identity'


def test_identity_encoding_is_accepted(conn: Connection) -> None:
    assert post(conn, 'echo', {'value': 1}, content_encoding='identity') == (200, 1)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize('code', Code)
def test_error_has_the_status_of_its_code(conn: Connection, code: Code) -> None:
    content = {'code': code.value, 'message': 'why', 'details': [{'type': 't', 'value': 'YQ'}]}
    response = conn.post(METHOD + 'fail', MSGPACK_HEADERS, msgpack.packb(content))
    assert (response.status, response.reason) == code.http_status
    assert response.headers['content-type'] == 'application/json'
    assert response.body is not None
    assert json.loads(response.body.read()) == content


def test_error_without_details_has_none(conn: Connection) -> None:
    _, error = post(conn, 'fail', {'code': 'aborted', 'message': 'why'})
    assert error == {'code': 'aborted', 'message': 'why'}


def test_invalid_argument_names_the_path(conn: Connection) -> None:
    status, error = post(conn, 'zeros', {'size': 'x'})
    assert (status, error['code']) == (400, 'invalid_argument')
    assert error['message'] == '$.size: expected int, got str'


@pytest.mark.parametrize('body', [b'', b'[', b'{"value": NaN}', b'[' * 100_000])
def test_body_that_is_no_message_is_an_invalid_argument(conn: Connection, body: bytes) -> None:
    status, error = post(conn, 'echo', body)
    assert (status, error['code']) == (400, 'invalid_argument')


def test_call_without_a_body_is_an_invalid_argument(conn: Connection) -> None:
    response = conn.post(METHOD + 'echo', JSON_HEADERS, None)
    assert response.status == 400


def test_message_that_is_not_unicode_is_sent_escaped(conn: Connection) -> None:
    _, error = post(conn, 'fail', {'code': 'not_found', 'message': 'no HALF'})
    assert error['message'] == r'no \udcff'


def test_message_of_an_error_is_cut(conn: Connection) -> None:
    message = '\ue000' * (MAX_ERROR_LENGTH + 1)
    status, error = post(conn, 'fail', {'code': 'not_found', 'message': message})
    assert (status, error['message']) == (404, message[:-1])


def test_details_that_are_too_large_are_an_internal_error(
    conn: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    details = [{'why': 'x' * MAX_ERROR_SIZE}]
    arguments = {'code': 'not_found', 'message': 'gone', 'details': details}
    status, error = post(conn, 'fail', arguments)
    assert (status, error['code']) == (500, 'internal')
    assert f'larger than {MAX_ERROR_SIZE} bytes' in caplog.text


def test_details_that_cannot_travel_are_an_internal_error(
    conn: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    status, error = post(conn, 'fail_badly', {})
    assert (status, error['code']) == (500, 'internal')
    assert error['message'].rpartition(' ')[2] in caplog.text


# --- who may call --------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['echo', 'wipe', 'none'])
def test_unknown_caller_is_unauthenticated(serve: Callable[..., Any], name: str) -> None:
    client, _ = serve(Authenticated(build_app()), roles=None)
    with client.connect() as connection:
        status, error = post(connection, name, {})
    assert (status, error['code']) == (401, 'unauthenticated')
    assert 'use a client certificate' in error['message']


@pytest.mark.parametrize('name', ['echo', 'wipe', 'none'])
def test_caller_whom_nobody_looked_at_is_unauthenticated(
    serve: Callable[..., Any], name: str
) -> None:
    client, _ = serve(build_app(), roles=None)
    with client.connect() as connection:
        status, error = post(connection, name, {})
    assert (status, error['code']) == (401, 'unauthenticated')
    assert 'this server was set up without' in error['message']


def test_caller_without_the_role_is_told_that_and_not_which_would_do(conn: Connection) -> None:
    status, error = post(conn, 'wipe', {})
    assert (status, error['code']) == (403, 'permission_denied')
    assert error['message'] == 'files.v1.Files/wipe is not for your roles'


def test_body_of_a_caller_that_is_refused_is_not_read(serve: Callable[..., Any]) -> None:
    calls: list[str] = []
    client, _ = serve(build_app(calls), roles=('guest',))
    with socket.create_connection(client.address) as sock:
        sock.sendall(
            b'POST /rpc/files.v1.Files/echo HTTP/1.1\r\ncontent-type: application/json\r\n'
            b'content-length: 100\r\n\r\n'
        )
        sock.settimeout(10)
        answer = sock.recv(4096)
    assert answer.startswith(b'HTTP/1.1 403 ')
    assert b'connection: close' in answer
    assert calls == []


def test_unix_socket_of_my_own_uid_is_the_owner(tmp_path: pathlib.Path) -> None:
    app = Authenticated(build_app())
    with (
        Server(str(tmp_path / 'socket'), app) as server,
        Client(server.address).connect() as connection,
    ):
        assert post(connection, 'wipe', {}) == (200, None)
        assert post(connection, 'whoami', {})[1][0] == f'uid:{os.getuid()}'


def test_unix_socket_of_another_uid_is_denied(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = os.geteuid()
    monkeypatch.setattr(os, 'geteuid', lambda: uid + 1)
    app = Authenticated(build_app())
    with (
        Server(str(tmp_path / 'socket'), app) as server,
        Client(server.address).connect() as connection,
    ):
        assert post(connection, 'echo', {'value': 1})[0] == 403


# --- limits --------------------------------------------------------------------------------------


def test_message_of_the_largest_size_is_accepted(conn: Connection) -> None:
    content = b'{"value": "' + b'x' * (MAX_MESSAGE_SIZE - 13) + b'"}'
    assert len(content) == MAX_MESSAGE_SIZE
    assert post(conn, 'echo', content)[0] == 200


@pytest.mark.parametrize('chunked', [False, True])
def test_message_above_the_limit_is_resource_exhausted(conn: Connection, chunked: bool) -> None:
    data = b'{"value": "' + b'x' * (MAX_MESSAGE_SIZE - 12) + b'"}'
    body: Any = data
    if chunked:
        body = ChunkedOutput([data[i : i + 65536] for i in range(0, len(data), 65536)] + [b''])
    response = conn.post(METHOD + 'echo', JSON_HEADERS, body)
    assert response.status == 429
    assert response.body is not None
    assert json.loads(response.body.read())['code'] == 'resource_exhausted'


def test_claimed_length_above_the_limit_is_answered_before_it_is_sent(
    serve: Callable[..., Any],
) -> None:
    client, _ = serve(build_app())
    with socket.create_connection(client.address) as sock:
        sock.sendall(
            b'POST /rpc/files.v1.Files/echo HTTP/1.1\r\ncontent-type: application/json\r\n'
            b'content-length: 999999999999\r\n\r\n'
        )
        sock.settimeout(10)
        assert sock.recv(4096).startswith(b'HTTP/1.1 429 ')


def test_result_above_the_limit_is_resource_exhausted(conn: Connection) -> None:
    assert post(conn, 'zeros', {'size': MAX_MESSAGE_SIZE - 2})[0] == 200
    status, error = post(conn, 'zeros', {'size': MAX_MESSAGE_SIZE - 1})
    assert (status, error['code']) == (429, 'resource_exhausted')


def test_caller_that_breaks_off_is_not_called_for(serve: Callable[..., Any]) -> None:
    calls: list[str] = []
    client, _ = serve(build_app(calls))
    with socket.create_connection(client.address) as sock:
        sock.sendall(
            b'POST /rpc/files.v1.Files/echo HTTP/1.1\r\ncontent-type: application/json\r\n'
            b'content-length: 12\r\n\r\n{"value": '
        )
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(10)
        while sock.recv(4096):
            pass
    with client.connect() as connection:
        assert post(connection, 'echo', {'value': 1}) == (200, 1)
    assert calls == ['echo']


# --- declaration and errors as values ------------------------------------------------------------


def test_two_services_with_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'a\.b'"):
        RpcApp([Service('a.b'), Service('a.b')])


def test_one_service_that_is_not_in_a_list_is_refused() -> None:
    with pytest.raises(TypeError, match=r'\[service\]'):
        RpcApp(Service('a.b'))  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize(
    ('status', 'code'),
    [
        (400, Code.INTERNAL),
        (401, Code.UNAUTHENTICATED),
        (403, Code.PERMISSION_DENIED),
        (404, Code.UNIMPLEMENTED),
        (429, Code.UNAVAILABLE),
        (502, Code.UNAVAILABLE),
        (503, Code.UNAVAILABLE),
        (504, Code.UNAVAILABLE),
        (405, Code.UNKNOWN),
        (415, Code.UNKNOWN),
        (500, Code.UNKNOWN),
    ],
)
def test_code_is_inferred_from_the_http_status(status: int, code: Code) -> None:
    error = protocol.parse_error(status, 'text/html', b'<html>', '/rpc/a/b')
    assert error.code is code
    assert f'/rpc/a/b with HTTP status {status}' in error.message
    assert ('prefix' in error.message) is (status == 404)


@pytest.mark.parametrize('accept_post', ['', 'application/json, application/proto', ['a', 'b'], 5])
def test_415_of_another_server_says_nothing_of_the_kind(accept_post: object) -> None:
    error = protocol.parse_error(415, None, b'', '/rpc/a/b', accept_post)
    assert error.code is Code.UNKNOWN


@pytest.mark.parametrize(
    'data',
    [
        b'',
        b'{}',
        b'[]',
        b'{"code": null}',
        b'{"code": "ok"}',
        b'{"code": []}',
        b'{"code": "aborted", "message": 5}',
        b'{"code": "aborted", "details": {}}',
        b'{"code": "aborted", "details": [1]}',
        b'{"code": "aborted", "code": "internal"}',
    ],
)
def test_error_that_makes_no_sense_is_inferred(data: bytes) -> None:
    assert protocol.parse_error(503, 'application/json', data, '/').code is Code.UNAVAILABLE


def test_error_of_another_content_type_is_not_read() -> None:
    error = protocol.parse_error(503, 'text/plain', b'{"code": "aborted"}', '/')
    assert error.code is Code.UNAVAILABLE


def test_parse_of_format_is_the_same_error() -> None:
    error = RpcError(Code.ABORTED, 'again é', [{'a': [1]}])
    back = protocol.parse_error(409, 'application/json', protocol.format_error(error), '/')
    assert (back.code, back.message, back.details) == (error.code, error.message, error.details)


def test_simplest_error_of_another_server_is_read() -> None:
    error = protocol.parse_error(503, 'application/json', b'{"code": "data_loss", "more": 1}', '/')
    assert (error.code, error.message, error.details) == (Code.DATA_LOSS, '', ())


def test_metadata_of_one_name_is_joined_and_can_do_nothing_to_a_terminal() -> None:
    end = {'metadata': {'X': ['1', '2'], 'x': ['\x1b[2J'], 'y\x07': ['3']}}
    error, metadata = protocol.parse_end(json.dumps(end).encode())
    assert error is None
    assert metadata == {'x': '1, 2, \\x1b[2J', 'y\\x07': '3'}


def test_control_characters_in_the_message_of_an_error_are_escaped() -> None:
    data = json.dumps({'code': 'aborted', 'message': '\x1b[2J\a\r\n\x7f\x9b é\xa0😀'}).encode()
    error = protocol.parse_error(409, 'application/json', data, '/')
    assert error.message == r'\x1b[2J\x07\r\n\x7f\x9b' + ' é\xa0😀'


# --- curl ----------------------------------------------------------------------------------------


def run_curl(curl: str, *args: str) -> list[str]:
    command = [curl, '-s', '--max-time', '10', '-w', '\n%{http_code} %{content_type}', *args]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.split('\n')


def test_call_typed_into_curl_over_tcp(serve: Callable[..., Any], curl: str) -> None:
    client, _ = serve(build_app())
    url = f'http://127.0.0.1:{client.address[1]}'
    header = ('-H', 'Content-Type: application/json')
    assert run_curl(curl, *header, '-d', '{"value": [1, "a"]}', f'{url}{METHOD}echo') == [
        '[1,"a"]',
        '200 application/json',
    ]
    assert run_curl(curl, *header, '-d', '{"size": "x"}', f'{url}{METHOD}zeros') == [
        '{"code":"invalid_argument","message":"$.size: expected int, got str"}',
        '400 application/json',
    ]
    text = 'text/plain; charset=utf-8'
    assert run_curl(curl, f'{url}{METHOD}echo') == ['a call is a POST request', '', f'405 {text}']
    assert run_curl(curl, '-d', 'x', f'{url}/rpc/none/echo')[-1] == f'404 {text}'


def test_call_typed_into_curl_over_a_unix_socket(tmp_path: pathlib.Path, curl: str) -> None:
    path = str(tmp_path / 'socket')
    with Server(path, Authenticated(build_app())):
        output = run_curl(
            curl, '--unix-socket', path, '--json', '{}', f'http://localhost{METHOD}wipe'
        )
    assert output == ['null', '200 application/json']
