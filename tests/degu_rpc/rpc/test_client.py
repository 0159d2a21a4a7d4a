"""The client: proxies, typed results, errors, and its pool of connections."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from degu.client import Client, SSLClient, build_client_sslctx
from degu.misc import TempPKI
from degu.net import Deadline
from degu.server import Server, SSLServer, build_server_sslctx
from degu_rpc import Code, Router, RpcApp, RpcClient, RpcError, Service
from degu_rpc.errors import CodecError
from degu_rpc.peers import Identity, MachineClient, TrustStore
from degu_rpc.rpc import pool as pool_module
from degu_rpc.rpc.codec import CODECS, JSON, MSGPACK, Codec
from degu_rpc.rpc.limits import MAX_CONNECTIONS, MAX_MESSAGE_SIZE
from degu_rpc.rpc.pool import Pool

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator

    from degu.client import Connection
    from degu.net import Deadline

both = pytest.mark.parametrize('codec', CODECS, ids=lambda codec: codec.name)
FILES = 'files.v1.Files'


@dataclasses.dataclass
class Stat:
    path: str
    size: int
    mtime: datetime
    digest: bytes = b'\x00\xff'


class FilesApi:
    """What a caller knows of the service; never run."""

    kind = 'not a method'

    def stat(self, path: str, depth: int = 1) -> Stat:
        raise NotImplementedError

    def double(self, n: int, *, times: int = 1) -> int:
        raise NotImplementedError

    def fail(self) -> None:
        raise NotImplementedError

    def _private(self) -> None:
        raise NotImplementedError


MOMENT = datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC)


def build_app(barrier: threading.Barrier | None = None) -> Router:
    files = Service(FILES)

    @files.method(allow='peer', safe=True)
    def stat(path: str, depth: int = 1) -> Stat:
        return Stat(path, depth, MOMENT)

    @files.method(allow='peer')
    def double(n: int, times: int = 1) -> int:
        return n << times

    @files.method(allow='peer')
    def fail() -> None:
        raise RpcError(Code.NOT_FOUND, 'no such file', [{'path': '/a'}])

    @files.method(allow='peer')
    def zeros(size: int) -> str:
        return '0' * size

    @files.method(allow='peer')
    def meet(n: int) -> int:
        assert barrier is not None
        barrier.wait(20)
        return n

    router = Router()
    router.mount('/rpc', RpcApp([files]))
    return router


@pytest.fixture
def served(serve: Callable[..., Any], address: Any) -> Any:
    return serve(build_app(), address)


@pytest.fixture
def rpc(served: Any) -> Iterator[RpcClient]:
    with RpcClient(served[0]) as client:
        yield client


class RememberingClient(Client):
    """A client that knows all the connections it made."""

    def __init__(self, address: Any) -> None:
        super().__init__(address, timeout_s=20)
        self.connections: list[Connection] = []

    def connect(self, deadline: Deadline | None = None) -> Connection:
        connection = super().connect(deadline)
        self.connections.append(connection)
        return connection


class Answer:
    """An RGI app that answers everything with one response."""

    def __init__(self, status: int, headers: dict[str, str], body: Any) -> None:
        self.response = (status, 'Whatever', headers, body)

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Any:
        if request['body'] is not None:
            request['body'].read()
        return self.response


@pytest.fixture
def answered(serve: Callable[..., Any]) -> Callable[..., RpcError]:
    """Call a server that gives one answer, and return the error that it is for the caller."""

    def ask(status: int, content_type: str | None, body: Any) -> RpcError:
        headers = {} if content_type is None else {'content-type': content_type}
        client, _ = serve(Answer(status, headers, body))
        with RpcClient(client) as rpc, pytest.raises(RpcError) as caught:
            rpc.call(FILES, 'stat', {'path': '/a'})
        return caught.value

    return ask


# --- calls ---------------------------------------------------------------------------------------


@both
def test_call_gives_the_result_as_its_type(served: Any, codec: Codec) -> None:
    with RpcClient(served[0], '/rpc', codec) as rpc:
        assert rpc.call(FILES, 'stat', {'path': '/a'}, Stat) == Stat('/a', 1, MOMENT)


def test_call_without_a_type_gives_plain_values(rpc: RpcClient) -> None:
    assert rpc.call(FILES, 'stat', {'path': '/a', 'depth': 2}) == {
        'path': '/a',
        'size': 2,
        'mtime': '2024-02-03T04:05:06Z',
        'digest': 'AP8=',
    }


def test_dynamic_proxy_calls_methods_by_name(rpc: RpcClient) -> None:
    assert rpc[FILES].double(n=4) == 8
    assert repr(rpc[FILES]) == "ServiceProxy('files.v1.Files')"
    with pytest.raises(TypeError):
        rpc[FILES].double(4)
    with pytest.raises(AttributeError):
        _ = rpc[FILES]._private


@both
def test_bound_class_gives_typed_results(served: Any, codec: Codec) -> None:
    with RpcClient(served[0], '/rpc', codec) as rpc:
        api = rpc.bind(FilesApi, FILES)
        assert isinstance(api, FilesApi)
        assert api.stat(path='/a') == Stat('/a', 1, MOMENT)
        assert api.stat('/a', 3) == Stat('/a', 3, MOMENT)
        assert api.stat('/a', depth=3) == Stat('/a', 3, MOMENT)
        assert api.double(4, times=3) == 32
        assert api.kind == 'not a method'


def test_bound_method_checks_how_it_is_called(rpc: RpcClient) -> None:
    api = rpc.bind(FilesApi, FILES)
    with pytest.raises(TypeError, match='2 arguments by position, not 3'):
        api.stat('/a', 1, 2)  # type: ignore[call-arg]  # what is tested
    with pytest.raises(TypeError, match="'path' twice"):
        api.stat('/a', path='/b')  # type: ignore[misc]  # what is tested
    with pytest.raises(TypeError, match='1 arguments by position'):
        api.double(4, 3)  # type: ignore[call-arg]  # what is tested


def test_bound_method_checks_the_result(rpc: RpcClient) -> None:
    class Wrong(Protocol):
        def stat(self, path: str) -> int: ...

    with pytest.raises(RpcError, match='expected int, got object') as caught:
        rpc.bind(Wrong, FILES).stat('/a')  # type: ignore[type-abstract]  # a Protocol says the shape
    assert caught.value.code is Code.INTERNAL


def test_bind_refuses_a_class_that_does_not_say_its_results(rpc: RpcClient) -> None:
    class Untyped:
        def stat(self, path): ...  # type: ignore[no-untyped-def]  # what is tested

    class Opaque:
        def stat(self) -> object: ...

    with pytest.raises(TypeError, match='no annotation'):
        rpc.bind(Untyped, FILES)
    with pytest.raises(TypeError, match='cannot travel'):
        rpc.bind(Opaque, FILES)


@pytest.mark.parametrize('name', ['', 'a/b', '../x', 'a?b', 'a b', 'a\r\nb', '.a'])
def test_name_that_cannot_be_is_refused_before_anything_is_sent(served: Any, name: str) -> None:
    with RpcClient(served[0]) as rpc:
        with pytest.raises(ValueError, match='no service'):
            rpc.call(name, 'stat', {})
        with pytest.raises(ValueError, match='no service'):
            rpc.call(FILES, name, {})
        with pytest.raises(ValueError, match='no service'):
            rpc[name]
        with pytest.raises(ValueError, match='no service'):
            rpc.bind(FilesApi, name)
    assert served[1].connections == 0


@pytest.mark.parametrize('prefix', ['rpc', '/', '/rpc/', '//', '/a?b', '/a#b'])
def test_prefix_of_another_form_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match='prefix'):
        RpcClient(Client(('127.0.0.1', 1)), prefix)


def test_prefix_can_be_empty(serve: Callable[..., Any]) -> None:
    service = Service('a')

    @service.method(allow='peer')
    def answer() -> int:
        return 42

    client, _ = serve(RpcApp([service]))
    with RpcClient(client, '') as rpc:
        assert rpc['a'].answer() == 42


def test_proxy_refuses_arguments_by_position(rpc: RpcClient) -> None:
    with pytest.raises(TypeError, match=r'stat\(\): arguments are named here; bind\(\)'):
        rpc[FILES].stat('/a')


# --- errors --------------------------------------------------------------------------------------


@both
def test_error_of_a_method_comes_back_whole(served: Any, codec: Codec) -> None:
    with RpcClient(served[0], '/rpc', codec) as rpc, pytest.raises(RpcError) as caught:
        rpc[FILES].fail()
    assert caught.value.code is Code.NOT_FOUND
    assert caught.value.message == 'no such file'
    assert caught.value.details == ({'path': '/a'},)


def test_invalid_argument_comes_back_with_its_path(rpc: RpcClient) -> None:
    with pytest.raises(RpcError) as caught:
        rpc[FILES].double(n='x')
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == '$.n: expected int, got str'


def test_unknown_service_is_unimplemented(rpc: RpcClient) -> None:
    with pytest.raises(RpcError) as caught:
        rpc['none'].stat()
    assert caught.value.code is Code.UNIMPLEMENTED
    assert '/rpc/none/stat' in caught.value.message
    assert 'are the prefix and the name of the service right?' in caught.value.message


def test_arguments_that_cannot_travel_are_refused_before_connecting(served: Any) -> None:
    with RpcClient(served[0]) as rpc, pytest.raises(CodecError):
        rpc[FILES].double(n=object())
    with RpcClient(served[0], '/rpc', MSGPACK) as rpc, pytest.raises(CodecError, match='64 bits'):
        rpc[FILES].double(n=2**64)
    assert served[1].connections == 0


def test_integers_are_exact(rpc: RpcClient) -> None:
    assert rpc[FILES].double(n=10**30 + 1) == 2 * 10**30 + 2


@pytest.mark.parametrize(
    ('status', 'content_type', 'body', 'code'),
    [
        (502, 'text/html', b'<html>', Code.UNAVAILABLE),
        (404, None, None, Code.UNIMPLEMENTED),
        (503, 'application/json', b'{"code":', Code.UNAVAILABLE),
        (200, 'text/html', b'5', Code.INTERNAL),
        (200, None, None, Code.INTERNAL),
        (200, 'application/msgpack', b'5', Code.INTERNAL),
        (200, 'application/json', b'', Code.INTERNAL),
        (200, 'application/json', b'{"a":1,"a":2}', Code.INTERNAL),
        (204, None, None, Code.UNKNOWN),
        (302, None, None, Code.UNKNOWN),
    ],
)
def test_answer_that_is_no_result_is_an_error(
    answered: Callable[..., RpcError],
    status: int,
    content_type: str | None,
    body: bytes | None,
    code: Code,
) -> None:
    assert answered(status, content_type, body).code is code


def test_answer_above_the_limit_is_refused_and_not_read(answered: Callable[..., RpcError]) -> None:
    body = b'"' + b'0' * (MAX_MESSAGE_SIZE - 1) + b'"'
    assert answered(200, 'application/json', body).code is Code.RESOURCE_EXHAUSTED
    assert answered(500, 'application/json', body).code is Code.RESOURCE_EXHAUSTED


def test_arguments_above_the_limit_are_refused_before_connecting(served: Any) -> None:
    with RpcClient(served[0]) as rpc, pytest.raises(RpcError) as caught:
        rpc[FILES].stat(path='x' * MAX_MESSAGE_SIZE)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert served[1].connections == 0


def test_server_that_is_not_there_is_unavailable() -> None:
    with socket.create_server(('127.0.0.1', 0)) as sock:
        address = sock.getsockname()
    with RpcClient(Client(address)) as rpc:
        for _ in range(MAX_CONNECTIONS + 1):  # a failure must not use up a place in the pool
            with pytest.raises(RpcError, match='cannot connect') as caught:
                rpc[FILES].stat(path='/a')
            assert caught.value.code is Code.UNAVAILABLE


def test_server_that_says_nothing_is_deadline_exceeded() -> None:
    with (
        socket.create_server(('127.0.0.1', 0)) as sock,
        RpcClient(Client(sock.getsockname(), timeout_s=0.2)) as rpc,
        pytest.raises(RpcError) as caught,
    ):
        rpc[FILES].stat(path='/a')
    assert caught.value.code is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ('answer', 'code'),
    [
        (b'', Code.UNAVAILABLE),
        (b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc', Code.UNAVAILABLE),
        (b'SSH-2.0-OpenSSH_9.2\r\n\r\n', Code.INTERNAL),
    ],
)
def test_server_that_breaks_off_or_is_none(answer: bytes, code: Code) -> None:
    with socket.create_server(('127.0.0.1', 0)) as listener:

        def serve_once() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(answer)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass

        thread = threading.Thread(target=serve_once)
        thread.start()
        client = Client(listener.getsockname(), timeout_s=20)
        with RpcClient(client) as rpc, pytest.raises(RpcError) as caught:
            rpc[FILES].stat(path='/a')
        thread.join()
    assert caught.value.code is code


def test_server_that_rejects_our_certificate_is_unauthenticated() -> None:
    with TempPKI() as pki, TempPKI() as other:
        sslctx = build_server_sslctx(pki.get_server_config())
        config = {**pki.get_client_config()}
        config |= {name: other.get_client_config()[name] for name in ('cert_file', 'key_file')}
        with SSLServer(sslctx, ('127.0.0.1', 0), build_app()) as server:
            client = SSLClient(build_client_sslctx(config), server.address)
            with RpcClient(client) as rpc, pytest.raises(RpcError) as caught:
                rpc[FILES].stat(path='/a')
    assert caught.value.code is Code.UNAUTHENTICATED


def test_server_whose_certificate_we_refuse_is_unauthenticated() -> None:
    with TempPKI() as pki, TempPKI() as other:
        sslctx = build_server_sslctx(pki.get_server_config())
        with SSLServer(sslctx, ('127.0.0.1', 0), build_app()) as server:
            client = SSLClient(build_client_sslctx(other.get_client_config()), server.address)
            with RpcClient(client) as rpc, pytest.raises(RpcError) as caught:
                rpc[FILES].stat(path='/a')
    assert caught.value.code is Code.UNAUTHENTICATED


def test_another_machine_than_the_one_that_was_meant_is_unauthenticated(
    tmp_path: pathlib.Path,
) -> None:
    trust = TrustStore(Identity.create(tmp_path / 'me', datetime.now(UTC)))
    with SSLServer(trust.server_sslctx, ('127.0.0.1', 0), build_app()) as server:
        client = MachineClient(trust, server.address, 'a' * 48)
        with RpcClient(client) as rpc, pytest.raises(RpcError, match='a' * 48) as caught:
            rpc[FILES].stat(path='/a')
    assert caught.value.code is Code.UNAUTHENTICATED


# --- the pool ------------------------------------------------------------------------------------


def test_calls_in_a_row_use_one_connection(served: Any, rpc: RpcClient) -> None:
    for number in range(5):
        assert rpc[FILES].double(n=number) == 2 * number
        with pytest.raises(RpcError):
            rpc[FILES].fail()
    assert served[1].connections == 1


def test_refused_call_does_not_spoil_the_next(served: Any, rpc: RpcClient) -> None:
    for _ in range(3):
        with pytest.raises(RpcError) as caught:
            rpc[FILES].none(data='x' * 1_000_000)
        assert caught.value.code is Code.UNIMPLEMENTED
        assert rpc[FILES].double(n=1) == 2


def test_calls_at_once_use_a_connection_each_and_the_pool_is_bounded(
    serve: Callable[..., Any],
) -> None:
    barrier = threading.Barrier(MAX_CONNECTIONS)
    client, app = serve(build_app(barrier))
    with RpcClient(client) as rpc, ThreadPoolExecutor(3 * MAX_CONNECTIONS) as threads:
        # Each call ends when MAX_CONNECTIONS of them are on the server.
        numbers = list(range(3 * MAX_CONNECTIONS))
        assert list(threads.map(lambda n: rpc[FILES].meet(n=n), numbers)) == numbers
    assert app.connections == MAX_CONNECTIONS


def test_many_threads_get_their_own_results(served: Any, rpc: RpcClient) -> None:
    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda n: rpc[FILES].double(n=n), range(300)))
    assert results == [2 * n for n in range(300)]
    assert served[1].connections <= MAX_CONNECTIONS


class LateCondition(threading.Condition):
    """One whose wait is over in the moment that somebody notifies it: the notice is spent."""

    on_wait: Callable[[], None]

    def wait(self, timeout: float | None = None) -> bool:
        self.release()
        self.on_wait()
        if timeout is not None:
            time.sleep(timeout)
        self.acquire()
        return False


def test_connection_that_comes_free_as_the_wait_ends_is_taken(
    served: tuple[Client, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    deadline = Deadline(0.2)
    with monkeypatch.context() as patch:
        patch.setattr(threading, 'Condition', LateCondition)
        pool = Pool(served[0])
    taken = [pool.take(deadline) for _ in range(MAX_CONNECTIONS)]
    LateCondition.on_wait = lambda *_: pool.put(taken[0], True)
    assert pool.take(deadline) is taken[0]
    LateCondition.on_wait = lambda *_: None
    with pytest.raises(RpcError, match='in use for') as caught:
        pool.take(deadline)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    for connection in taken:
        pool.put(connection, False)


def test_dead_connection_is_thrown_away(tmp_path: pathlib.Path, serve: Any) -> None:
    path = str(tmp_path / 'mortal')
    _, app = serve(build_app())
    with RpcClient(Client(path)) as rpc:
        with Server(path, app):
            assert rpc[FILES].double(n=1) == 2
        with pytest.raises(RpcError) as caught:
            rpc[FILES].double(n=1)
        assert caught.value.code is Code.UNAVAILABLE
        with Server(path, app):
            assert rpc[FILES].double(n=2) == 4
    assert app.connections == 2


def test_connection_that_the_server_closes_is_not_used_again(serve: Callable[..., Any]) -> None:
    headers = {'content-type': 'application/json', 'connection': 'close'}
    client, app = serve(Answer(200, headers, b'5'))
    with RpcClient(client) as rpc:
        assert [rpc['a'].b(), rpc['a'].b()] == [5, 5]
    assert app.connections == 2


def test_connection_whose_option_only_looks_like_close_is_used_again(
    serve: Callable[..., Any],
) -> None:
    headers = {'content-type': 'application/json', 'connection': 'closed-not'}
    client, app = serve(Answer(200, headers, b'5'))
    with RpcClient(client) as rpc:
        assert [rpc['a'].b(), rpc['a'].b()] == [5, 5]
    assert app.connections == 1


def test_connection_that_was_idle_for_long_is_not_used_again(
    served: Any, rpc: RpcClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rpc[FILES].double(n=1) == 2
    monkeypatch.setattr(pool_module, 'LOOK_AFTER_S', -1.0)
    monkeypatch.setattr(pool_module, 'IDLE_TIMEOUT_S', -1.0)
    assert rpc[FILES].double(n=1) == 2
    assert served[1].connections == 2


def test_failed_calls_free_their_place(answered: Any, serve: Callable[..., Any]) -> None:
    client, app = serve(Answer(200, {'content-type': 'application/json'}, b'0' * 5_000_000))
    with RpcClient(client) as rpc:
        for _ in range(MAX_CONNECTIONS + 1):
            with pytest.raises(RpcError):
                rpc['a'].b()
    assert app.connections == MAX_CONNECTIONS + 1


def test_closed_client_makes_no_further_call(served: Any) -> None:
    client = RememberingClient(served[0].address)
    rpc = RpcClient(client)
    assert rpc[FILES].double(n=1) == 2
    rpc.close()
    rpc.close()
    assert [connection.closed for connection in client.connections] == [True]
    with pytest.raises(RpcError, match='closed') as caught:
        rpc[FILES].double(n=1)
    assert caught.value.code is Code.CANCELED


def test_close_ends_running_calls_and_wakes_those_that_wait(serve: Callable[..., Any]) -> None:
    entered = threading.Semaphore(0)
    leave = threading.Event()
    service = Service('a')

    @service.method(allow='peer')
    def block() -> int:
        entered.release()
        leave.wait(20)
        return 1

    served_client, _ = serve(RpcApp([service]))
    client = RememberingClient(served_client.address)
    rpc = RpcClient(client, '')
    with ThreadPoolExecutor(3 * MAX_CONNECTIONS) as threads:
        running = [threads.submit(rpc['a'].block) for _ in range(3 * MAX_CONNECTIONS)]
        for _ in range(MAX_CONNECTIONS):
            assert entered.acquire(timeout=20)
        rpc.close()
        outcomes = [str(call.exception(timeout=10)) for call in running]
        leave.set()
    assert outcomes.count('canceled: /a/block was under way: this client is closed') == (
        MAX_CONNECTIONS
    )
    assert outcomes.count('canceled: this client is closed') == 2 * MAX_CONNECTIONS
    assert [connection.closed for connection in client.connections] == [True] * MAX_CONNECTIONS


def test_json_is_the_codec_unless_told(serve: Callable[..., Any]) -> None:
    seen = []

    def app(connection: dict[str, Any], request: dict[str, Any]) -> Any:
        seen.append((request['method'], request['path'], dict(request['headers'])))
        request['body'].read()
        return 200, 'OK', {'content-type': JSON.content_type}, b'null'

    client, _ = serve(app)
    with RpcClient(client) as rpc:
        assert rpc['a.B'].c() is None
    # What is left once there is a connection.
    assert 20_000 < int(seen[0][2].pop('connect-timeout-ms')) <= 30_000
    assert seen == [
        (
            'POST',
            ['rpc', 'a.B', 'c'],
            {
                'content-type': 'application/json',
                'connect-protocol-version': '1',
                'content-length': 2,
            },
        )
    ]
