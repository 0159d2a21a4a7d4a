"""One node in this process, real sockets: the same services and the same question who calls."""

from __future__ import annotations

import collections
import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from degu import pki
from degu.bodies import ChunkedOutput
from degu.client import Client
from degu.errors import DeguError
from degu.net import Inherited
from degu_rpc import (
    Context,
    Identity,
    MachineClient,
    Node,
    RpcClient,
    RpcError,
    Service,
    TrustStore,
    connect,
)
from degu_rpc.errors import IdentityError, NodeRunningError, UnknownMachineError
from degu_rpc.node import windows
from degu_rpc.node.api import EXAMINE, NODE, NodeApi
from degu_rpc.node.config import Config, InboxSettings, Share
from degu_rpc.node.shares import SHARES
from degu_rpc.peers import pair, parse_code
from degu_rpc.peers.limits import PAIRING_WINDOW_S
from degu_rpc.rpc.target import parse_target

CONFIG = Config(name='studio', port=0, listen=('127.0.0.1',), discovery=False)


@pytest.fixture
def service():
    service = Service('who.v1.Who')

    @service.method(allow='peer', safe=True)
    def tell(ctx: Context) -> str:
        return f'{ctx.peer.kind.value} {ctx.peer.machine_id} {ctx.peer.uid}'

    return service


@pytest.fixture
def node(tmp_path, service):
    with Node(tmp_path / 'home', services=[service], config=CONFIG) as node:
        yield node


@pytest.fixture
def friend(tmp_path, node):
    """Give the trust store of a user who is trusted by the node, and trusts it."""
    identity = Identity.create(tmp_path / 'friend')
    trust = TrustStore(identity)
    trust.add(node.trust.identity.user_cert, 'studio')
    node.trust.add(identity.user_cert, 'friend', machines={identity.machine_id: 'laptop'})
    return trust


@contextlib.contextmanager
def full_disk():
    """Let no file of this process grow, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def build_client(node, friend):
    machine_id = node.trust.identity.machine_id
    return MachineClient(friend, node.addresses[0].address, machine_id)


@contextlib.contextmanager
def control(node):
    with connect(f'unix:{node.home.socket_path}') as client:
        yield client.bind(NodeApi, NODE)


def test_a_service_answers_on_both_doors_and_knows_who_calls(node, friend):
    with RpcClient(build_client(node, friend)) as client:
        assert client['who.v1.Who'].tell() == f'machine {friend.identity.machine_id} None'
    with connect(f'unix:{node.home.socket_path}') as client:
        assert client['who.v1.Who'].tell() == f'local None {os.getuid()}'


def test_other_machines_cannot_steer_it_even_my_own(node, friend):
    own = Identity.join(
        node.home.directory / 'own',
        key := pki.build_key(),
        node.trust.identity.certify(key.public_key()),
        node.trust.identity.user_cert,
    )
    for trust in (friend, TrustStore(own)):
        with RpcClient(build_client(node, trust)) as client, pytest.raises(RpcError) as caught:
            client[NODE].status()
        assert caught.value.code.value == 'unimplemented'


def test_a_machine_that_is_denied_loses_its_open_connection(node, friend):
    with build_client(node, friend).connect() as connection:
        response = connection.get('/nothing')
        assert response.body.read() == b'nothing is here\n'
        with control(node) as api:
            assert api.unpair('laptop').machine_ids == [friend.identity.machine_id]
        # Its next request is refused, if the node has not ended the connection by then.
        with contextlib.suppress(ConnectionError):
            assert connection.get('/nothing').status == 403


def lose_trust(node, friend, how):
    identity = friend.identity
    if how == 'removed':
        node.trust.remove(identity.user_id)
    elif how == 'denied':
        node.trust.deny(identity.user_id, identity.machine_id)
    else:
        node.trust.add(identity.user_cert, 'friend', {'guest'})


@pytest.mark.parametrize('how', ['removed', 'denied', 'without the role'])
def test_what_runs_is_ended_once_the_caller_is_trusted_no_more(tmp_path, how):
    shared = tmp_path / 'shared'
    shared.mkdir()
    with (shared / 'endless').open('wb') as file:
        file.truncate(2**40)
    config = msgspec.structs.replace(
        CONFIG,
        shares={'things': Share(str(shared), ('peer',))},
        inbox=InboxSettings(str(tmp_path / 'in'), accept=('peer',)),
    )
    ended, watched = threading.Event(), threading.Event()
    service = Service('who.v1.Who')

    @service.method(allow='peer', safe=True)
    def watch(ctx: Context) -> Iterator[int]:
        try:
            while True:
                yield 1
                ctx.check()
        finally:
            watched.set()

    def offer():
        yield b'{"path": "d", "kind": "directory"}\n'
        number = 0
        while not ended.wait(0.01):
            yield b'{"path": "d/%d", "kind": "symlink", "target": "x"}\n' % number
            number += 1

    def put(client):
        headers = {'content-type': 'application/x-ndjson'}
        with client.connect() as connection:
            connection.put(f'/inbox/{"a" * 52}', headers, ChunkedOutput(offer())).body.read()

    identity = Identity.create(tmp_path / 'friend')
    friend = TrustStore(identity)
    with Node(tmp_path / 'home', services=[service], config=config) as node:
        friend.add(node.trust.identity.user_cert, 'studio')
        node.trust.add(identity.user_cert, 'friend')
        client = build_client(node, friend)
        with (
            ThreadPoolExecutor() as threads,
            contextlib.ExitStack() as stack,
            client.connect() as reading,
            RpcClient(client) as calling,
        ):
            stack.callback(ended.set)
            putting = threads.submit(put, client)
            body = reading.get('/files/things/file/endless').body
            assert body.read(1) == b'\0'
            numbers = calling.streams('who.v1.Who').watch()
            assert next(numbers) == 1
            lose_trust(node, friend, how)
            with pytest.raises((DeguError, OSError)):
                putting.result(20)
            with pytest.raises((DeguError, OSError)):
                body.read(2**35)
            with pytest.raises(RpcError):
                collections.deque(numbers, maxlen=0)
            assert watched.wait(20)


def test_a_share_is_read_by_those_who_may(tmp_path, service):
    shared = tmp_path / 'shared'
    shared.mkdir()
    (shared / 'a.txt').write_text('hello')
    config = Config(
        name='studio',
        port=0,
        listen=('127.0.0.1',),
        discovery=False,
        shares={'things': Share(str(shared))},
    )
    with (
        Node(tmp_path / 'home', config=config) as node,
        Client(str(node.home.socket_path)).connect() as connection,
    ):
        assert connection.get('/files/things/file/a.txt').body.read() == b'hello'
        with control(node) as api:
            assert api.status().shares[0].path == str(shared)


@pytest.mark.parametrize('method', ['GET', 'HEAD', 'PUT'])
def test_a_share_that_a_caller_may_not_read_is_as_one_that_is_not_there(tmp_path, method):
    (tmp_path / 'shared').mkdir()
    shares = {'mine': Share(str(tmp_path / 'shared'), ('nobody',))}
    config = msgspec.structs.replace(CONFIG, shares=shares)
    identity = Identity.create(tmp_path / 'friend')
    with Node(tmp_path / 'home', config=config) as node:
        trust = TrustStore(identity)
        trust.add(node.trust.identity.user_cert, 'studio')
        node.trust.add(identity.user_cert, 'friend')
        answers = []
        with build_client(node, trust).connect() as connection:
            for name in ('mine', 'none'):
                body = b'' if method == 'PUT' else None
                response = connection.request(method, f'/files/{name}/ls', {}, body)
                content = response.body.read() if response.body else None
                answers.append((response.status, response.reason, response.headers, content))
    assert answers[0] == answers[1]
    assert answers[0][0] == 404


def test_a_share_whose_directory_is_missing_is_a_problem_and_all_else_is_served(tmp_path, service):
    (tmp_path / 'here').mkdir()
    shares = {name: Share(str(tmp_path / name)) for name in ('here', 'gone')}
    config = msgspec.structs.replace(CONFIG, shares=shares)
    with (
        Node(tmp_path / 'home', services=[service], config=config) as node,
        connect(f'unix:{node.home.socket_path}') as client,
    ):
        assert client[SHARES].list_shares() == [{'name': 'here'}]
        problems = client.bind(NodeApi, NODE).status().problems
    (said,) = [problem.what for problem in problems if 'share' in problem.what]
    assert said == f"share 'gone' is not served: {tmp_path}/gone: No such file or directory"


def test_what_the_system_refuses_is_said_with_its_words_and_a_remedy(node, friend):
    with control(node) as api, full_disk(), pytest.raises(RpcError) as caught:
        api.unpair('laptop')
    assert caught.value.code.value == 'failed_precondition'
    assert 'File too large' in caught.value.message
    assert caught.value.details == ({'kind': 'OSError', 'remedy': EXAMINE},)
    assert friend.identity.user_id in node.trust.users()


def test_a_node_calls_a_paired_machine_by_its_name(tmp_path, node):
    home = tmp_path / 'laptop'
    identity = Identity.create(home / 'identity')
    machine_id = node.trust.identity.machine_id
    node.trust.add(identity.user_cert, 'friend', machines={identity.machine_id: 'laptop'})
    trust = TrustStore(identity)
    trust.add(node.trust.identity.user_cert, 'ada', machines={machine_id: 'studio'})
    config = Config(
        port=0,
        listen=('127.0.0.1',),
        discovery=False,
        machines=(node.addresses[0].format_url(machine_id),),
    )
    with Node(home, config=config) as laptop:
        with laptop.connect('studio') as client:
            assert client['who.v1.Who'].tell() == f'machine {identity.machine_id} None'
        with pytest.raises(UnknownMachineError):
            laptop.connect('nobody')


def test_a_node_that_is_given_no_settings_has_those_of_its_home(tmp_path, monkeypatch):
    monkeypatch.setenv('DEGU_PORT', '0')
    (tmp_path / 'config.toml').write_text(
        'name = "attic"\nport = 8\nlisten = ["127.0.0.1"]\ndiscovery = false'
    )
    with Node(tmp_path) as node:
        assert (node.config.name, node.config.port) == ('attic', 0)


def test_a_second_node_with_one_home_is_refused_and_the_first_goes_on(node):
    with pytest.raises(NodeRunningError) as caught, Node(node.home, config=CONFIG):
        pass
    assert caught.value.pid == os.getpid()
    with control(node) as api:
        assert api.status().pid == os.getpid()


def test_a_node_starts_again_where_it_was(tmp_path, service):
    ids = set()
    for _ in range(2):
        with Node(tmp_path / 'home', services=[service], config=CONFIG) as node:
            ids.add(node.trust.identity.machine_id)
        assert not node.home.socket_path.exists()
    assert len(ids) == 1


@pytest.mark.parametrize('where', ['link', 'link/home'], ids=['a link', 'behind a link'])
def test_a_home_that_a_link_leads_to_is_as_good_as_another(tmp_path, where):
    (tmp_path / 'disk').mkdir(mode=0o700)
    (tmp_path / 'link').symlink_to('disk')
    ids = set()
    for _ in range(2):
        with Node(tmp_path / where, config=CONFIG) as node, control(node) as api:
            node.home.check()
            ids.add(api.status().machine_id)
    assert len(ids) == 1


def test_who_paired_when_the_caller_had_left_is_in_the_log(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(windows, 'CALLER_PERIOD_S', PAIRING_WINDOW_S)  # it does not look in time
    stranger = TrustStore(Identity.create(tmp_path / 'stranger'))
    with Node(tmp_path / 'home', config=CONFIG) as node:
        with control(node) as api:
            opened = next(api.open_pairing('peer'))
        where = parse_target(f'tcp:{opened.addresses[0]}')
        paired = pair(where, parse_code(opened.code), stranger, 'phone')
        assert paired.machine_id == node.trust.identity.machine_id
    (said,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith('paired with')]
    assert stranger.identity.machine_id in said
    assert stranger.identity.user_id in said


def test_an_address_that_cannot_be_had_leaves_nothing_behind(tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        config = Config(port=taken.getsockname()[1], listen=('127.0.0.1',), discovery=False)
        with pytest.raises(OSError, match='in use'), Node(tmp_path / 'home', config=config):
            pass
    assert not (tmp_path / 'home' / 'node.sock').exists()
    with Node(tmp_path / 'home', config=CONFIG):
        pass


def test_files_that_cannot_be_used_are_known_before_anything_is_bound(tmp_path):
    with Node(tmp_path / 'home', config=CONFIG) as node:
        machine_file = node.trust.identity.machine_file
    machine_file.write_bytes(b'')
    with pytest.raises(IdentityError) as caught, Node(tmp_path / 'home', config=CONFIG):
        pass
    assert caught.value.path == node.home.identity_directory
    assert not node.home.socket_path.exists()


def test_stop_ends_the_wait_from_any_thread(node):
    stopper = threading.Timer(0.1, node.stop)
    stopper.start()
    assert node.wait() is False
    stopper.join()


def test_a_call_that_lasts_for_ever_ends_with_the_node(tmp_path):
    with Node(tmp_path / 'home', config=CONFIG) as node, control(node) as api:
        watching = api.watch()
        assert next(watching).name == 'studio'
        node.stopping.set()
        with pytest.raises(RpcError) as caught:
            next(watching)
    assert caught.value.code.value == 'unavailable'


def test_the_certificate_is_renewed_at_half_life(tmp_path, monkeypatch):
    long_ago = datetime.now(UTC) - timedelta(days=200)
    Identity.create(tmp_path / 'home' / 'identity', long_ago)
    with Node(tmp_path / 'home', config=CONFIG) as node:
        before = Identity.open(node.home.identity_directory)
        assert before.needs_renewal()
        node.upkeep()
        after = Identity.open(node.home.identity_directory)
    assert not after.needs_renewal()
    assert after.machine_id == before.machine_id


def test_a_call_that_waits_at_a_socket_that_was_given_is_answered(tmp_path):
    path = tmp_path / 'given.sock'
    with socket.socket(socket.AF_UNIX) as given, ThreadPoolExecutor(1) as callers:
        given.bind(str(path))
        given.listen()
        with connect(f'unix:{path}') as client:
            status = callers.submit(client.bind(NodeApi, NODE).status)
            # To look for others takes a moment, in which the call is there already.
            config = msgspec.structs.replace(CONFIG, discovery=True, interfaces=('nosuch',))
            control = Inherited(given.fileno(), False)
            with Node(tmp_path / 'home', config=config, control=control):
                assert status.result().name == 'studio'


def test_a_node_that_was_never_started_has_nothing_to_let_go_of(tmp_path):
    node = Node(tmp_path / 'home', config=CONFIG)
    node.stop()
    assert not node.home.directory.exists()


def test_one_node_starts_again_and_again_at_the_socket_that_it_was_given(tmp_path):
    path = tmp_path / 'given.sock'
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(path))
        given.listen()
        node = Node(tmp_path / 'home', config=CONFIG, control=Inherited(given.fileno(), False))
        for restarts in (True, False):
            with node, connect(f'unix:{path}') as client:
                assert client.bind(NodeApi, NODE).status().name == 'studio'
                assert not node.stopping.is_set()
                node.stop(restart=restarts)
                assert node.wait() is restarts
            assert node.stopping.is_set()


def test_who_wants_it_to_stop_counts_more_than_who_wants_it_to_start_anew(node):
    node.stop()
    node.stop(restart=True)
    assert node.wait() is False


def test_requests_on_all_its_sockets_have_one_time_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr('degu_rpc.node.device.SHUTDOWN_S', 0.6)
    service = Service('slow.v1.Slow')
    begun = threading.Semaphore(0)
    ended = threading.Event()

    @service.method(allow='peer')
    def wait() -> None:
        begun.release()
        ended.wait(20)

    friend = Identity.create(tmp_path / 'friend')
    node = Node(tmp_path / 'home', services=[service], config=CONFIG)
    with ThreadPoolExecutor(2) as callers:
        with node:
            node.trust.add(friend.user_cert, 'friend', machines={friend.machine_id: 'laptop'})
            trust = TrustStore(friend)
            trust.add(node.trust.identity.user_cert, 'studio')
            far = RpcClient(build_client(node, trust))
            near = connect(f'unix:{node.home.socket_path}')
            calls = [callers.submit(each['slow.v1.Slow'].wait) for each in (far, near)]
            for _ in calls:
                assert begun.acquire(timeout=20)
            started = time.monotonic()
        # 0.6 s, and then one second more until what hangs is given up: side by side.
        took_s = time.monotonic() - started
        ended.set()
        for call in calls:
            assert isinstance(call.exception(20), RpcError)
        far.close()
        near.close()
    assert 0.6 < took_s < 2.5


def test_a_start_that_fails_late_lets_go_of_each_socket(tmp_path):
    with Node(tmp_path / 'home', config=CONFIG) as node:
        port = node.addresses[0].port
    node.home.socket_path.write_text('in the way')
    config = msgspec.structs.replace(CONFIG, port=port)
    with pytest.raises(OSError, match='no socket'), Node(node.home, config=config):
        pass
    with socket.create_server(('127.0.0.1', port)):
        pass
