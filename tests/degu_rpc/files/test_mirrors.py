"""Several sources, of which some lie, lack the file, have another, fail, or say nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import msgspec
import pytest

from degu.client import Client
from degu_rpc.errors import BlockedError, IntegrityError, ShareRefusedError
from degu_rpc.files import FileShare, Mirror, Problem, Skipped, board, fetch, receive
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.limits import CONNECTIONS, MAX_PACKED
from degu_rpc.files.packs import Packed
from degu_rpc.files.records import Media, format_record, parse_records

BLOCK = 128 * 1024
OLD_NS = 1_500_000_000_987_654_321
BLOCKS = 24


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    monkeypatch.setattr(receive, 'RUN_SIZE', 2 * BLOCK)


@pytest.fixture
def here(tmp_path):
    return tmp_path / 'here'


class Source:
    """A share with a tree of its own that writes down its requests and may do something else.

    `lies` are functions of (app, connection, request) by the first name of the path.
    """

    def __init__(self, app, lies):
        self.app = app
        self.lies = lies
        self.asked = []
        self.sizes = []
        self.lock = threading.Lock()

    def __call__(self, connection, request):
        endpoint = request['path'][0]
        with self.lock:
            self.asked.append(endpoint)
            if endpoint == 'data':
                part = request['headers']['range']
                self.sizes.append(part.stop - part.start)
        return self.lies.get(endpoint, FileShare.__call__)(self.app, connection, request)


@pytest.fixture
def sources(tmp_path, serve):
    """Make sources, each from a tree and its lies: what it answers in place of the truth."""
    apps = []

    def make(tree, **lies):
        directory = tmp_path / f'source-{len(apps)}'
        directory.mkdir()
        for name, content in tree.items():
            (directory / name).write_bytes(content)
            os.utime(directory / name, ns=(OLD_NS, OLD_NS))
        apps.append(FileShare(directory, 'peer'))
        source = Source(apps[-1], lies)
        source.client = serve(source)
        source.mirror = Mirror(source.client, '')
        return source

    yield make
    for app in apps:
        app.close()


@pytest.fixture
def content():
    return os.urandom(BLOCKS * BLOCK - 5)


def fetch_from(first, *mirrors, here):
    return fetch(first.client, '', '', here, mirrors=[source.mirror for source in mirrors])


# --- lies ---------------------------------------------------------------------------------------


def wrong_bytes(app, connection, request):
    """Flip a bit of every block."""
    status, reason, headers, body = app(connection, request)
    data = bytearray(b''.join(body))
    for position in range(0, len(data), BLOCK):
        data[position] ^= 1
    return (status, reason, headers, bytes(data))


def wrong_pack(app, connection, request):
    """Change the first byte of each small file."""
    status, reason, headers, body = app(connection, request)
    pieces = [data for _, data in body]
    media = Media(headers['content-type'])
    records = parse_records(pieces, headers['content-type'], Packed, MAX_PACKED)
    lies = [
        msgspec.structs.replace(packed, content=b'X' + packed.content[1:]) for packed in records
    ]
    chunk = b''.join(format_record(packed, media) for packed in lies)
    return (status, reason, headers, connection['rgi.ChunkedOutput']([chunk, b'']))


def claim(root):
    """Say of each file that it has this root."""

    def lie(app, connection, request):
        if request['query'] != 'roots=1':
            return app(connection, request)
        status, reason, headers, body = app(connection, request)
        text = b''.join(data for _, data in body).decode()
        record = msgspec.json.decode(text)
        record['root'] = root
        chunk = msgspec.json.encode(record) + b'\n'
        return (status, reason, headers, connection['rgi.ChunkedOutput']([chunk, b'']))

    return lie


def refuse(status):
    return lambda app, connection, request: (status, 'No', {}, b'no')


def breaking(app, connection, request):
    """Send some of what was asked for, and break."""
    status, reason, headers, body = app(connection, request)
    data = b''.join(body)
    del body  # its file is closed with it, and the log keeps this frame

    def pieces():
        yield data[: BLOCK + 1]
        raise OSError('the disk is gone')

    return (status, reason, headers, connection['rgi.Output'](pieces(), len(data)))


@pytest.fixture
def silence():
    """A lie that is no answer at all, until the end of the test."""
    over = threading.Event()

    def lie(app, connection, request):
        over.wait(30)
        return (500, 'Too late', {}, None)

    yield lie
    over.set()


# --- the first source ---------------------------------------------------------------------------


def test_i10_a_file_that_the_first_lies_about_comes_from_a_mirror(sources, here, content):
    tree = {f'f{number}': content[number:] for number in range(4)}
    first, mirror = sources(tree, data=wrong_bytes), sources(tree)
    result = fetch_from(first, mirror, here=here)
    assert {name: (here / name).read_bytes() for name in tree} == tree
    assert (result.files_fetched, result.skipped) == (4, ())
    # The liar is not asked again: each of its connections was at one run when it was caught.
    assert 1 <= first.asked.count('data') <= CONNECTIONS
    assert sum(first.sizes) + sum(mirror.sizes) >= sum(map(len, tree.values()))


def test_i10_small_files_that_the_first_lies_about_come_from_a_mirror(sources, here):
    tree = {f'f{number}': b'content %d' % number for number in range(50)}
    first, mirror = sources(tree, pack=wrong_pack), sources(tree)
    fetch_from(first, mirror, here=here)
    assert {name: (here / name).read_bytes() for name in tree} == tree
    assert (first.asked.count('pack'), mirror.asked.count('pack')) == (1, 1)


@pytest.mark.parametrize('endpoint', ['ls', 'manifest'])
def test_a_first_source_that_lies_about_a_root_is_given_up(sources, here, content, endpoint):
    tree = {'f': content}
    lies = {
        'ls': claim('not a root'),
        'manifest': lambda app, connection, request: (200, 'OK', {}, bytes(9 + 32 * BLOCKS)),
    }
    first, mirror = sources(tree, **{endpoint: lies[endpoint]}), sources(tree)
    fetch_from(first, mirror, here=here)
    assert (here / 'f').read_bytes() == content
    assert 'data' not in first.asked


def test_a_root_of_nothing_that_is_there_is_not_believed(sources, here, content):
    """The first says another root, which its manifest cannot have."""
    first = sources({'f': content}, ls=claim(build_manifest(b'other').root))
    mirror = sources({'f': content})
    result = fetch_from(first, mirror, here=here)
    assert result.skipped == (Skipped('f', Problem.CHANGING),)
    assert not (here / 'f').exists()


def test_what_the_first_had_sent_before_it_broke_is_not_fetched_again(sources, here, content):
    first, mirror = sources({'f': content}, data=breaking), sources({'f': content})
    result = fetch_from(first, mirror, here=here)
    assert (here / 'f').read_bytes() == content
    assert result.bytes_fetched == len(content)
    broken = first.asked.count('data')
    assert 1 <= broken <= CONNECTIONS
    assert sum(mirror.sizes) == len(content) - broken * BLOCK


SHARE = """
import sys, threading, types
from degu.server import Server
from degu_rpc.files import FileShare

share, sent = FileShare(sys.argv[1], 'peer'), 0

def app(connection, request):
    global sent
    request['_peer'] = types.SimpleNamespace(roles={'peer'})
    response = share(connection, request)
    if request['path'][0] == 'data':
        sent += 1
        if sent > 3:
            print('enough', flush=True)
            threading.Event().wait()
    return response

with Server(('127.0.0.1', 0), app) as server:
    print(server.address[1], flush=True)
    threading.Event().wait()
"""


def test_a_first_source_that_is_killed_is_replaced_by_a_mirror(sources, here, content, tmp_path):
    tree = {'f': content, 'g': content[1:], 'small': b'small'}
    mirror = sources(tree)
    command = [sys.executable, '-c', SHARE, str(tmp_path / 'source-0')]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            client = Client(('127.0.0.1', int(process.stdout.readline())), timeout_s=20)

            def kill():
                process.stdout.readline()
                process.kill()

            killer = threading.Thread(target=kill)
            killer.start()
            result = fetch(client, '', '', here, mirrors=[mirror.mirror])
            killer.join()
        finally:
            process.kill()
    assert {name: (here / name).read_bytes() for name in tree} == tree
    assert result.skipped == ()
    assert sum(mirror.sizes) < len(content) + len(tree['g'])


def test_a_first_source_that_cannot_be_reached_is_passed_over(sources, here):
    gone = Client(('127.0.0.1', 1), timeout_s=5)
    mirror = sources({'small': b'small', 'large': os.urandom(300_000)})
    fetch(gone, '', '', here, mirrors=[mirror.mirror])
    assert (here / 'small').read_bytes() == b'small'
    assert (here / 'large').stat().st_size == 300_000


def test_where_no_source_can_list_the_first_one_says_why(sources, here):
    gone = Client(('127.0.0.1', 1), timeout_s=5)
    first = sources({}, ls=refuse(503))
    with pytest.raises(ShareRefusedError, match='503'):
        fetch(first.client, '', '', here, mirrors=[Mirror(gone, '')])


# --- the mirrors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('lies', 'tree'),
    [
        ({'data': wrong_bytes}, True),
        ({'data': breaking}, True),
        ({'data': refuse(404)}, True),
        ({'data': refuse(500)}, True),
        ({'ls': refuse(404)}, True),
        ({'ls': refuse(500)}, True),
        ({'ls': claim('not a root')}, True),
        ({'ls': claim(build_manifest(b'another').root)}, True),
        ({}, {}),
        ({}, {'f': b'another version'}),
        ({}, {'f': b'x' * (BLOCKS * BLOCK - 5)}),
    ],
)
def test_a_mirror_that_is_no_good_does_no_harm(sources, here, content, lies, tree, caplog):
    first = sources({'f': content})
    mirror = sources({'f': content} if tree is True else tree, **lies)
    first.lies = {'data': hold_until(mirror, 'data' if 'data' in lies else 'ls')}
    result = fetch_from(first, mirror, here=here)
    assert (here / 'f').read_bytes() == content
    assert result.files_fetched == 1
    assert mirror.asked.count('data') <= CONNECTIONS


def hold_until(source, endpoint):
    """Answer the truth, once another source was asked."""

    def answer(app, connection, request):
        assert source.was_asked.wait(20)
        return app(connection, request)

    source.was_asked = threading.Event()
    truth = source.lies.get(endpoint, FileShare.__call__)

    def note(app, connection, request):
        source.was_asked.set()
        return truth(app, connection, request)

    source.lies = {**source.lies, endpoint: note}
    return answer


def test_i10_a_mirror_that_claims_a_content_and_sends_another_is_caught(sources, here, content):
    """It has other bytes, and says that they have the root that is wanted."""
    other = os.urandom(len(content))

    def send_other(app, connection, request):
        part = request['headers']['range']
        headers = {'content-range': part}
        return (206, 'Partial Content', headers, other[part.start : part.stop])

    root = build_manifest(content).root
    first = sources({'f': content})
    mirror = sources({'f': other}, ls=claim(root), data=send_other)
    first.lies = {'data': hold_until(mirror, 'data')}
    fetch_from(first, mirror, here=here)
    assert (here / 'f').read_bytes() == content
    assert 1 <= mirror.asked.count('data') <= CONNECTIONS


@pytest.mark.parametrize(
    ('who', 'endpoint'),
    [('first', 'data'), ('first', 'manifest'), ('mirror', 'data'), ('mirror', 'ls')],
)
def test_a_source_that_says_nothing_is_given_up(sources, here, content, silence, endpoint, who):
    silent = sources({'f': content}, **{endpoint: silence})
    other = sources({'f': content})
    silent.mirror = Mirror(Client(silent.client.address, timeout_s=0.3), '')
    silent.client = silent.mirror.client
    first, mirror = (silent, other) if who == 'first' else (other, silent)
    fetch_from(first, mirror, here=here)
    assert (here / 'f').read_bytes() == content


def test_of_many_mirrors_one_good_one_is_enough(sources, here, content):
    """More are bad than a file is begun again."""
    tree = {'f': content, 'small': b'small'}
    bad = [sources(tree, manifest=refuse(500), pack=refuse(500)) for _ in range(2)]
    bad += [sources(tree, data=wrong_bytes, pack=wrong_pack) for _ in range(3)]
    good = sources(tree)
    result = fetch_from(*bad, good, here=here)
    assert {name: (here / name).read_bytes() for name in tree} == tree
    assert result.skipped == ()


def test_a_small_file_that_a_mirror_has_in_another_version_is_not_taken(sources, here):
    first = sources({'a': b'wanted', 'b': b'same'}, pack=refuse(500))
    mirror = sources({'a': b'another', 'b': b'same'})
    result = fetch_from(first, mirror, here=here)
    assert result.skipped == (Skipped('a', Problem.VANISHED),)
    assert (here / 'b').read_bytes() == b'same'
    assert not (here / 'a').exists()


def test_i10_where_all_lie_it_is_the_error_of_the_first_and_nothing_is_kept(sources, here, content):
    bad = [sources({'f': content}, data=wrong_bytes) for _ in range(3)]
    with pytest.raises(IntegrityError) as caught:
        fetch_from(*bad, here=here)
    assert caught.value.path == 'f'
    assert os.listdir(here) == ['.degu']
    kept = here / '.degu' / 'tmp' / build_manifest(content).root
    assert kept.read_bytes() == bytes(len(content))


def test_several_sources_share_the_load_of_one_file(sources, here, content):
    """No source answers before all are asked: so all of them are, at the same time."""
    count = 3
    asked = [threading.Event() for _ in range(count)]

    def hold(number):
        def answer(app, connection, request):
            asked[number].set()
            assert all(event.wait(20) for event in asked)
            return app(connection, request)

        return answer

    shares = [sources({'f': content}, data=hold(number)) for number in range(count)]
    result = fetch_from(*shares, here=here)
    assert (here / 'f').read_bytes() == content
    assert result.bytes_fetched == len(content)
    brought = [sum(share.sizes) for share in shares]
    assert sum(brought) == len(content)
    assert min(brought) > 0


def test_what_is_in_the_way_here_is_not_the_fault_of_a_source(sources, here):
    first, second = sources({'large': b'large'}), sources({'other': b'other'})
    (here / 'large').mkdir(parents=True)
    with pytest.raises(BlockedError, match='large'):
        fetch(first.client, '', '', here, mirrors=[second.mirror])
    assert second.asked == []


# --- the end game -------------------------------------------------------------------------------


@pytest.mark.parametrize('slow', ['first', 'mirror'])
def test_a_slow_source_does_not_hold_the_last_run(sources, here, content, monkeypatch, slow):
    """It sends a block and then nothing, for as long as the fetch lasts."""
    monkeypatch.setattr(board, 'END_GAME_S', 0.1)
    leave = threading.Event()
    waited = []

    def drip(app, connection, request):
        status, reason, headers, body = app(connection, request)
        data = body if isinstance(body, bytes) else b''.join(body)

        def pieces():
            yield data[:BLOCK]
            if not leave.wait(20):
                waited.append('to the end')
            yield data[BLOCK:]

        return (status, reason, headers, connection['rgi.Output'](pieces(), len(data)))

    dripping, plain = sources({'f': content}, data=drip), sources({'f': content})
    order = [dripping, plain] if slow == 'first' else [plain, dripping]
    try:
        result = fetch_from(*order, here=here)
        assert waited == []
    finally:
        leave.set()
    assert (here / 'f').read_bytes() == content
    assert len(content) <= result.bytes_fetched <= len(content) + CONNECTIONS * 2 * BLOCK
