"""degu_rpc.files.share: who may read, what can be read, and what is said about the rest."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import random
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import msgspec
import pytest

from degu.rgi import ContentRange, Range, Validator
from degu_rpc.files import FileShare, cuts, cutting, hashing, limits, packing, records, share, walk
from degu_rpc.files.blocks import SMALL_SIZE, build_manifest, manifest_size, parse_manifest
from degu_rpc.files.content import HashCache
from degu_rpc.files.cuts import Chunk, cut_content, parse_cuts
from degu_rpc.files.limits import MAX_PACKED, PACK_ITEMS
from degu_rpc.files.listing import Entry, Kind, Problem, parse_listing
from degu_rpc.files.packs import Packed, Wanted
from degu_rpc.files.paths import Root
from degu_rpc.files.records import Media, format_record, parse_records
from degu_rpc.files.walk import Walker
from degu_rpc.files.xattrs import format_xattrs, read_xattrs
from degu_rpc.peers import Authenticated

BIG = bytes(range(256)) * 2000


@pytest.fixture
def top(tmp_path):
    (tmp_path / 'outside').mkdir()
    (tmp_path / 'outside' / 'secret').write_bytes(b'secret')
    top = tmp_path / 'top'
    (top / 'dir' / 'inner').mkdir(parents=True)
    (top / 'small').write_bytes(b'hello')
    (top / 'empty').write_bytes(b'')
    (top / 'dir' / 'big').write_bytes(BIG)
    (top / 'dir' / 'inner' / 'f').write_bytes(b'f')
    (top / 'link').symlink_to('../outside/secret')
    (top / 'dir-link').symlink_to('../outside')
    (top / '.degu' / 'tmp').mkdir(parents=True)
    (top / '.degu' / 'tmp' / 'private').write_bytes(b'private')
    return top


@pytest.fixture
def connection(serve, top):
    with FileShare(top, 'peer') as app, serve(Validator(app)).connect() as connection:
        yield connection


def listed(connection, uri, media=Media.JSON):
    response = connection.get(uri, {'accept': media.value})
    assert response.status == 200
    found = list(parse_listing(response.body, response.headers['content-type']))
    return {entry.path: entry for entry in found}


def refused(response):
    body = response.body.read() if response.body else b''
    assert b'secret' not in body
    assert b'private' not in body
    return response.status


def root_of(connection, path):
    return listed(connection, f'/ls/{path}?roots=1')[''].root


# --- who may read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('allow', 'roles', 'status'),
    [
        ('peer', ['peer'], 200),
        ('peer', ['guest', 'peer'], 200),
        ('peer', ['owner'], 200),
        (['guest', 'friend'], ['friend'], 200),
        ('peer', ['guest'], 403),
        ('peer', ['pee'], 403),
        (['guest', 'friend'], ['peer'], 403),
        ('owner', ['peer'], 403),
    ],
)
def test_a_caller_needs_a_role_that_was_allowed(serve, top, allow, roles, status):
    with FileShare(top, allow) as app, serve(app, *roles).connect() as connection:
        for uri in ('/file/small', '/ls'):
            response = connection.get(uri)
            assert response.status == status
            list(response.body)


@pytest.mark.parametrize('uri', ['/file/small', '/ls', '/nowhere', '/file/..', '/'])
def test_a_caller_that_is_not_known_learns_nothing(serve, top, uri):
    with FileShare(top, 'peer') as app, serve(app, anonymous=True).connect() as connection:
        assert refused(connection.get(uri)) == 403


def test_a_caller_is_told_why_nobody_knows_it(serve, top):
    with FileShare(top, 'peer') as app:
        with serve(app, anonymous=True).connect() as connection:
            assert b'this server was set up without' in connection.get('/ls').body.read()
        wrapped = Authenticated(app)
        with serve(wrapped, anonymous=True).connect() as connection:
            assert b'use a client certificate' in connection.get('/ls').body.read()


def test_a_role_that_is_no_name_is_a_mistake(top):
    with pytest.raises(TypeError, match='name of a role'):
        FileShare(top, [None])


@pytest.mark.parametrize('allow', ['', [], [''], ()])
def test_a_share_for_nobody_is_a_mistake(top, allow):
    with pytest.raises(ValueError, match='must name a role'):
        FileShare(top, allow)


# --- what can be read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('path', 'status'),
    [
        ('..', 400),
        ('../outside/secret', 400),
        ('dir/../../outside/secret', 400),
        ('%2e%2e/outside/secret', 400),
        ('%2E%2E/outside/secret', 400),
        ('.%2e/outside/secret', 400),
        ('..%2foutside%2fsecret', 400),
        ('%2fetc%2fpasswd', 400),
        ('dir%2f..%2f..%2foutside', 400),
        ('small%00', 400),
        ('%00', 400),
        ('%', 400),
        ('%zz', 400),
        ('x' * 256, 400),
        ('.degu/tmp/private', 400),
        ('.DeGu/tmp/private', 400),
        ('%2edegu/tmp/private', 400),
        ('dir/.degu', 400),
        ('%252e%252e/outside/secret', 404),
        ('..%5coutside%5csecret', 404),
        ('..%c0%afoutside', 404),
        ('%uff0e%uff0e', 400),
        ('link/x', 404),
        ('dir-link/secret', 404),
        ('small/x', 404),
        ('nothing', 404),
    ],
)
def test_i6_nothing_outside_is_served_in_any_spelling(connection, path, status):
    for endpoint in ('file', 'ls'):
        assert refused(connection.get(f'/{endpoint}/{path}')) == status
        assert refused(connection.head(f'/{endpoint}/{path}')) == status


@pytest.mark.parametrize('path', ['link', 'dir-link', 'dir', 'dir/', ''])
def test_only_files_have_bytes(connection, path):
    assert refused(connection.get(f'/file/{path}')) == 404


def test_special_files_are_reported_and_never_opened(connection, top):
    os.mkfifo(top / 'fifo')
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(top / 'socket'))
        entries = listed(connection, '/ls')
    for name in ('fifo', 'socket'):
        assert entries[name] == Entry(name, Kind.SKIPPED, problem=Problem.SPECIAL)
        assert refused(connection.get(f'/file/{name}')) == 404


@pytest.mark.parametrize(
    'name', [b'\xff\xfe', 'ä'.encode(), b'a b', b'%41', b'a?b#c', b'\x01\n', b'+']
)
def test_every_name_travels(connection, top, name):
    (top / os.fsdecode(name)).write_bytes(b'content of ' + name)
    (text,) = [
        path for path, entry in listed(connection, '/ls').items() if entry.size == 11 + len(name)
    ]
    assert connection.get(f'/file/{text}').body.read() == b'content of ' + name


# --- listings -----------------------------------------------------------------------------------


@pytest.mark.parametrize('media', list(Media))
def test_a_listing_says_what_is_there(connection, top, media):
    entries = listed(connection, '/ls', media)
    assert list(entries) == ['', 'dir', 'dir-link', 'empty', 'link', 'small']
    found = (top / 'small').stat()
    assert entries['small'] == Entry(
        'small', Kind.FILE, size=5, mtime_ns=found.st_mtime_ns, mode=found.st_mode & 0o777
    )
    assert entries['link'].kind is Kind.SYMLINK
    assert entries['link'].target == '../outside/secret'
    assert entries['dir'].kind is Kind.DIRECTORY
    assert entries['dir'].mtime_ns == (top / 'dir').stat().st_mtime_ns


def test_a_recursive_listing_has_each_directory_before_its_content(connection):
    assert list(listed(connection, '/ls/?recursive=1')) == [
        '',
        'dir',
        'dir-link',
        'empty',
        'link',
        'small',
        'dir/big',
        'dir/inner',
        'dir/inner/f',
    ]
    assert list(listed(connection, '/ls/dir?recursive=1')) == ['', 'big', 'inner', 'inner/f']


def test_a_listing_hashes_when_asked_and_remembers(connection, top):
    os.utime(top / 'small', ns=(0, 0))
    assert {entry.root for entry in listed(connection, '/ls').values()} == {''}
    entries = listed(connection, '/ls?recursive=1&roots=1')
    assert entries['small'].root == build_manifest(b'hello').root
    assert entries['dir/big'].root == build_manifest(BIG).root
    assert entries['empty'].root == build_manifest(b'').root


def test_a_file_that_had_rested_is_hashed_once(top, serve):
    with FileShare(top, 'peer') as app, serve(app).connect() as connection:
        first = root_of(connection, 'small')
        hashed = app._hashes.find_root(first)
        app._hashes._by_path[b'small',] = hashed._replace(settled=True)
        assert listed(connection, '/ls')['small'].root == first
        (top / 'small').write_bytes(b'other')
        assert listed(connection, '/ls')['small'].root == ''
        assert root_of(connection, 'small') == build_manifest(b'other').root


@pytest.mark.parametrize('query', ['recursive=2', 'roots=', 'depth=1', 'roots', 'recursive=1&x=1'])
def test_a_listing_refuses_switches_it_does_not_know(connection, query):
    assert refused(connection.get(f'/ls?{query}')) == 400


class Held:
    """The real hashing, which waits before each pause; how often it began, how many are at it."""

    def __init__(self):
        self.go = threading.Event()
        self.begun = self.running = self.most = 0
        self.lock = threading.Lock()
        self.real = walk.hash_steps

    def __call__(self, fd, path):
        with self.lock:
            self.begun += 1
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            steps = self.real(fd, path)
            while True:
                next(steps)
                assert self.go.wait(20)
                yield
        except StopIteration as end:
            return end.value
        finally:
            with self.lock:
                self.running -= 1


def hold_hashing(monkeypatch):
    held = Held()
    monkeypatch.setattr(walk, 'hash_steps', held)
    return held


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def roots(serve, top):
    """Give `roots(*paths)`: what so many connections at once are told, and the share."""

    with contextlib.ExitStack() as stack:
        app = stack.enter_context(FileShare(top, 'peer'))
        client = serve(app)
        threads = stack.enter_context(ThreadPoolExecutor(16))

        def ask(path):
            with client.connect() as connection:
                return listed(connection, f'/ls/{path}?roots=1')[''].root

        yield app, lambda *paths: [threads.submit(ask, path) for path in paths]


def test_a_file_is_hashed_once_for_all_who_ask_for_it(roots, top, monkeypatch):
    held = hold_hashing(monkeypatch)
    (top / 'large').write_bytes(BIG)
    app, ask = roots
    asked = ask(*['large'] * 8)
    until(lambda: [job.waiting for job in app._walker._pool._jobs.values()] == [8])
    held.go.set()
    assert {each.result(20) for each in asked} == {build_manifest(BIG).root}
    assert held.begun == 1
    assert app._walker._pool._jobs == {}
    (top / 'large').write_bytes(BIG[::-1])  # nobody is told what was before
    (again,) = ask('large')
    assert again.result(20) == build_manifest(BIG[::-1]).root


def test_few_files_are_hashed_at_once_whoever_asks(roots, top, monkeypatch):
    held = hold_hashing(monkeypatch)
    names = [f'large-{number}' for number in range(3 * limits.MAX_HASHING)]
    for name in names:
        (top / name).write_bytes(name.encode() + BIG)
    app, ask = roots
    asked = ask(*names)
    until(lambda: len(app._walker._pool._jobs) == len(names))
    until(lambda: held.running == limits.MAX_HASHING)
    held.go.set()
    for name, each in zip(names, asked, strict=True):
        assert each.result(20) == build_manifest(name.encode() + BIG).root
    assert (held.begun, held.most) == (len(names), limits.MAX_HASHING)


def test_what_nobody_waits_for_any_more_is_not_hashed_to_its_end(top, monkeypatch):
    monkeypatch.setattr(records, 'HEARTBEAT_S', 0.0)
    monkeypatch.setattr(hashing, 'HEARTBEAT_S', 0.01)
    held = hold_hashing(monkeypatch)
    (top / 'large').write_bytes(BIG)
    with Root(top) as root:
        walker = Walker(root, HashCache(), is_shared=True)
        walking = walker.walk((b'large',), (top / 'large').lstat(), recursive=False, roots=True)
        assert next(walking) is None
        walking.close()
        assert walker._pool._jobs == {}
        held.go.set()
        walker.close()
    assert walker._hashes.find_root(build_manifest(BIG).root) is None
    assert held.running == 0


def test_a_share_that_is_closed_hashes_no_more(top, monkeypatch):
    held = hold_hashing(monkeypatch)
    monkeypatch.setattr(hashing, 'HEARTBEAT_S', 0.01)
    (top / 'large').write_bytes(BIG)
    with Root(top) as root:
        walker = Walker(root, HashCache(), is_shared=True)
        walking = walker.walk((b'large',), (top / 'large').lstat(), recursive=False, roots=True)
        assert next(walking) is None
        (job,) = walker._pool._jobs.values()
        with ThreadPoolExecutor(1) as threads:
            closing = threads.submit(walker.close)  # it waits for what is hashed
            until(lambda: job.waiting == 0)
            held.go.set()
            closing.result(20)
        with pytest.raises(CancelledError):
            list(walking)


def test_a_long_hash_is_heard_of(connection, top, monkeypatch):
    """A heartbeat keeps the peer from giving up; here every pause sends one."""
    monkeypatch.setattr(records, 'HEARTBEAT_S', 0.0)
    monkeypatch.setattr(hashing, 'HEARTBEAT_S', 0.01)
    steps = hold_hashing(monkeypatch)
    (top / 'long').write_bytes(bytes(5_000_000))
    for media in Media:
        steps.go.clear()
        response = connection.get('/ls/long?roots=1', {'accept': media.value})
        chunks = [response.body.readchunk() for _ in range(5)]
        steps.go.set()
        chunks += response.body
        (entry,) = parse_listing(chunks, media.value)
        assert entry.root == build_manifest(bytes(5_000_000)).root


def test_a_file_that_never_rests_is_reported(connection, top, monkeypatch):
    path = top / 'restless'
    path.write_bytes(bytes(3_000_000))
    count = 0
    real = walk.hash_steps

    def steps(fd, name):
        """The real hashing, with a writer that is faster."""
        nonlocal count
        for step in (hashing := real(fd, name)):
            count += 1
            path.write_bytes(bytes(3_000_000 + count))
            yield step
        return hashing

    monkeypatch.setattr(walk, 'hash_steps', steps)
    entry = listed(connection, '/ls/restless?roots=1')['']
    assert entry == Entry('', Kind.SKIPPED, problem=Problem.CHANGING)
    assert count >= limits.HASH_ATTEMPTS


def test_a_tree_that_vanishes_while_it_is_listed_ends_well(top):
    """The entries are read as they are sent."""
    with Root(top) as root:
        entries = Walker(root, HashCache()).walk((), top.stat(), recursive=True, roots=True)
        found = [next(entries), next(entries)]
        subprocess.run(['rm', '-rf', str(top)], check=True)
        found += list(entries)
    assert found[0].path == ''
    assert 'dir/inner/f' not in {entry.path for entry in found if entry}


def test_a_file_swapped_for_a_symlink_as_it_is_opened_does_not_cut_off_the_listing(
    connection, top, monkeypatch
):
    really_open = os.open

    def swap_and_open(name, *args, **kwargs):
        if name == b'empty':
            (top / 'empty').unlink()
            (top / 'empty').symlink_to('small')
        return really_open(name, *args, **kwargs)

    monkeypatch.setattr(os, 'open', swap_and_open)
    assert set(listed(connection, '/ls?roots=1')) == {'', 'dir', 'dir-link', 'link', 'small'}
    assert (top / 'empty').is_symlink()


def test_a_tree_deeper_than_a_path_may_be_is_cut_and_reported(connection, top):
    directory = os.open(top, os.O_RDONLY)
    for _ in range(40):  # too long a path for one system call, and for one request line
        os.mkdir('n' * 255, dir_fd=directory)
        inner = os.open('n' * 255, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = inner
    os.close(directory)
    skipped = [
        (path, entry)
        for path, entry in listed(connection, '/ls?recursive=1').items()
        if entry.kind is Kind.SKIPPED
    ]
    ((path, entry),) = skipped
    assert entry.problem is Problem.NAME
    assert limits.MAX_PATH_TEXT < len(path) <= limits.MAX_PATH_TEXT + 256
    subprocess.run(['rm', '-rf', str(top)], check=True)


# --- bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('path', 'content'), [('small', b'hello'), ('dir/big', BIG), ('empty', b'')]
)
def test_a_file_comes_with_its_bytes(connection, top, path, content):
    response = connection.get(f'/file/{path}')
    assert response.status == 200
    assert response.headers['x-mtime-ns'] == str((top / path).stat().st_mtime_ns)
    assert response.body.read() == content
    head = connection.head(f'/file/{path}')
    assert (head.status, head.body) == (200, None)
    assert head.headers == response.headers


def test_a_small_file_always_has_its_root_as_etag(connection):
    response = connection.get('/file/small')
    assert response.headers['etag'] == f'"{build_manifest(b"hello").root}"'
    response.body.read()


RANGES = [
    (Range(0, 1), 0, 1),
    (Range(2, 4), 2, 4),
    (Range(4, None), 4, None),
    (Range(-1, None), -1, None),
    (Range(0, 10**9), 0, None),
    (Range(-(10**9), None), 0, None),
]


@pytest.mark.parametrize(('asked', 'start', 'stop'), RANGES)
@pytest.mark.parametrize(('path', 'content'), [('small', b'hello'), ('dir/big', BIG)])
def test_a_range_is_served(connection, path, content, asked, start, stop):
    root = root_of(connection, path)
    part = slice(start, stop).indices(len(content))
    for uri in (f'/file/{path}', f'/data/{root}'):
        response = connection.get(uri, {'range': asked})
        assert response.status == 206
        assert response.headers['content-range'] == ContentRange(part[0], part[1], len(content))
        assert response.body.read() == content[start:stop]


@pytest.mark.parametrize(
    ('path', 'asked', 'total'),
    [
        ('small', Range(5, None), 5),
        ('dir/big', Range(10**9, None), len(BIG)),
        ('empty', Range(0, 1), 0),
    ],
)
def test_a_range_outside_the_file_is_416(connection, path, asked, total):
    response = connection.get(f'/file/{path}', {'range': asked})
    assert response.headers['content-range'] == ContentRange(0, 0, total)
    assert refused(response) == 416


def test_a_range_of_another_version_gets_the_whole_file(connection):
    root = build_manifest(b'hello').root
    for condition, status in ((f'"{root}"', 206), ('"other"', 200), ('W/"x"', 200)):
        headers = {'range': Range(0, 2), 'if-range': condition}
        response = connection.get('/file/small', headers)
        assert response.status == status
        response.body.read()


def test_content_is_served_by_its_root(connection):
    root = root_of(connection, 'dir/big')
    manifest = parse_manifest(connection.get(f'/manifest/{root}').body.read(), root)
    assert manifest == build_manifest(BIG)
    assert connection.get(f'/data/{root}').body.read() == BIG


@pytest.mark.parametrize('endpoint', ['manifest', 'data', 'cuts'])
@pytest.mark.parametrize(
    ('root', 'status'), [('a' * 52, 404), ('A' * 52, 400), ('../small', 400), ('', 400), ('a', 400)]
)
def test_a_root_that_is_not_known_or_none_is_refused(connection, endpoint, root, status):
    assert refused(connection.get(f'/{endpoint}/{root}')) == status


@pytest.mark.parametrize('endpoint', ['data', 'cuts'])
@pytest.mark.parametrize('path', ['small', 'dir/big'])
def test_i10_content_that_changed_is_409_and_then_forgotten(connection, top, path, endpoint):
    root = root_of(connection, path)
    (top / path).write_bytes(b'x' * (top / path).stat().st_size)
    os.utime(top / path, ns=(5, 5))
    assert refused(connection.get(f'/{endpoint}/{root}')) == 409
    assert refused(connection.get(f'/{endpoint}/{root}')) == 404


@pytest.mark.parametrize('change', ['gone', 'changed'])
def test_content_comes_from_another_file_that_has_it(connection, top, change):
    for name in ('a', 'b', 'c'):
        (top / name).write_bytes(BIG)
        root = root_of(connection, name)
    for name in ('c', 'a'):
        if change == 'gone':
            (top / name).unlink()
        else:
            (top / name).write_bytes(b'other')
        assert connection.get(f'/data/{root}').body.read() == BIG
        assert build_manifest(BIG).root == root
        assert len(connection.get(f'/manifest/{root}').body.read()) == manifest_size(len(BIG))
    (top / 'b').unlink()
    assert refused(connection.get(f'/data/{root}')) in {404, 409}
    assert refused(connection.get(f'/data/{root}')) == 404


@pytest.mark.parametrize('endpoint', ['data', 'cuts'])
def test_content_whose_file_vanished_is_404(connection, top, endpoint):
    root = root_of(connection, 'small')
    (top / 'small').unlink()
    assert refused(connection.get(f'/{endpoint}/{root}')) == 404


# --- the chunks of a content --------------------------------------------------------------------


def cut(content):
    return list(cut_content(io.BytesIO(content), len(content)))


@pytest.mark.parametrize('path', ['empty', 'small', 'dir/big', 'zeros', 'noise'])
def test_a_file_is_cut_by_its_root(connection, top, path):
    (top / 'zeros').write_bytes(bytes(5_000_000))
    (top / 'noise').write_bytes(random.Random(0).randbytes(5_000_000))
    content = (top / path).read_bytes()
    root = root_of(connection, path)
    assert parse_cuts(connection.get(f'/cuts/{root}').body.read(), len(content)) == cut(content)
    assert connection.head(f'/cuts/{root}').status == 200


def test_a_list_is_sent_in_pieces_while_the_file_is_cut(connection, top, monkeypatch):
    """As a heartbeat, and so that no list has to be in memory; here each chunk is sent."""
    monkeypatch.setattr(cutting, 'CHUNK_SIZE', 1)
    (top / 'noise').write_bytes(random.Random(0).randbytes(2_000_000))
    root = root_of(connection, 'noise')
    pieces = list(connection.get(f'/cuts/{root}').body)
    chunks = cut((top / 'noise').read_bytes())
    assert [len(piece) for piece in pieces if piece] == [8] + [36] * len(chunks)
    monkeypatch.setattr(cutting, 'CHUNK_SIZE', 10**9)
    monkeypatch.setattr(cutting, 'HEARTBEAT_S', 0.0)
    assert list(connection.get(f'/cuts/{root}').body) == pieces


CHANGES = {
    'truncated': lambda path: os.truncate(path, 1_000_000),
    'emptied': lambda path: os.truncate(path, 0),
    'grown': lambda path: os.truncate(path, 3_000_000),
    'written': lambda path: os.utime(path, ns=(7, 7)),
    'replaced': lambda path: path.write_bytes(bytes(2_000_000)),
}


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('after', [1, 10**6])
def test_i10_the_list_of_a_file_that_changes_meanwhile_is_not_whole(
    connection, top, monkeypatch, change, after
):
    """The change comes after the first chunk, or when all are cut and the last is not sent."""
    path = top / 'noise'
    path.write_bytes(random.Random(0).randbytes(2_000_000))
    root = root_of(connection, 'noise')

    def cut_and_change(stream, size):
        """The real cutting, with somebody who changes the file meanwhile."""
        for count, chunk in enumerate(cut_content(stream, size)):
            if count == after:
                CHANGES[change](path)
            yield chunk
        if after > count:
            CHANGES[change](path)

    monkeypatch.setattr(cutting, 'cut_content', cut_and_change)
    data = connection.get(f'/cuts/{root}').body.read()
    with pytest.raises(ValueError, match='bytes'):
        parse_cuts(data, 2_000_000)
    assert refused(connection.get(f'/data/{root}')) == 409


def test_only_so_many_files_are_cut_at_once(top, serve, monkeypatch):
    monkeypatch.setattr(cutting, 'CHUNK_SIZE', 1)
    (top / 'noise').write_bytes(random.Random(0).randbytes(2_000_000))
    resume = threading.Event()

    def wait_and_cut(stream, size):
        for chunk in cut_content(stream, size):
            yield chunk
            assert resume.wait(20)

    monkeypatch.setattr(cutting, 'cut_content', wait_and_cut)
    with FileShare(top, 'peer') as app:
        client = serve(app)
        connections = [client.connect() for _ in range(limits.MAX_CUTTING + 1)]
        *first, last = connections
        root = root_of(last, 'noise')
        bodies = [connection.get(f'/cuts/{root}').body for connection in first]
        for body in bodies:
            body.readchunk()
        response = last.get(f'/cuts/{root}')
        assert (response.status, response.headers['retry-after']) == (503, f'{limits.CUT_RETRY_S}')
        assert b'fetch the whole file' in response.body.read()
        assert last.get(f'/data/{root}').body.read() == (top / 'noise').read_bytes()
        resume.set()
        for body in bodies:
            body.read()
        for connection in connections:
            assert connection.get(f'/cuts/{root}').body.read()
            connection.close()


def test_a_place_is_free_when_the_list_ends(top, serve):
    """Not only when the server has let go of the body: the caller may be back before that."""
    ends = []
    with FileShare(top, 'peer') as app:

        def watch(connection, request):
            response = app(connection, request)
            if request['path'][0] != 'cuts':
                return response

            def pieces():
                for piece in response.body.source:
                    places = [app._cutting.acquire(blocking=False) for _ in range(2)]
                    app._cutting.release(sum(places))
                    ends.append((len(piece), places))
                    yield piece

            return response._replace(body=connection['rgi.ChunkedOutput'](pieces()))

        with serve(watch).connect() as connection:
            root = root_of(connection, 'dir/big')
            connection.get(f'/cuts/{root}').body.read()
    assert limits.MAX_CUTTING == 2
    assert ends == [(8 + 36 * len(cut(BIG)), [True, True]), (0, [True, True])]


def test_whoever_does_not_take_a_list_keeps_no_place(top, serve, monkeypatch):
    """Neither HEAD, nor a body that nobody begins, nor a caller who goes in the middle of it."""
    with FileShare(top, 'peer') as app:

        def all_places_are_free():
            found = [app._cutting.acquire(timeout=20) for _ in range(limits.MAX_CUTTING)]
            app._cutting.release(len(found))
            return all(found)

        def drop(connection, request):
            assert app(connection, request).status == 200
            return (200, 'OK', {}, b'')

        with serve(app).connect() as connection:
            root = root_of(connection, 'dir/big')
            assert connection.head(f'/cuts/{root}').status == 200
        assert all_places_are_free()
        with serve(drop).connect() as connection:
            assert connection.get(f'/cuts/{root}').status == 200
        assert all_places_are_free()

        monkeypatch.setattr(cutting, 'CHUNK_SIZE', 1)
        monkeypatch.setattr(
            cutting, 'cut_content', lambda *_: itertools.repeat(Chunk(1, bytes(32)))
        )
        with serve(app).connect() as connection:
            connection.get(f'/cuts/{root}').body.readchunk()
        assert all_places_are_free()


def test_files_that_are_not_cut_are_404(connection, monkeypatch):
    monkeypatch.setattr(cuts, 'MAX_CUT_SIZE', len(BIG) - 1)
    root = root_of(connection, 'dir/big')
    response = connection.get(f'/cuts/{root}')
    assert (response.status, response.body.read()) == (404, b'this share does not cut such files\n')
    assert connection.get(f'/data/{root}').body.read() == BIG


WITHOUT_THE_COMPILED_CUTTER = """
import sys, types
sys.modules['pyfastcdc.cy'] = None
from degu.client import Client
from degu.server import Server
from degu_rpc.files import FileShare
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.paths import parse_path
from degu_rpc.files.remote import Remote

def app(connection, request):
    request['_peer'] = types.SimpleNamespace(roles={'peer'})
    return share(connection, request)

with FileShare(sys.argv[1], 'peer') as share, Server(('127.0.0.1', 0), app) as server:
    client = Client(server.address)
    with Remote(client, '', lambda: None) as remote, client.connect() as connection:
        entry = remote.list_file(parse_path('dir/big'))
        print(connection.get('/cuts/' + entry.root).status)
        print(remote.read_cuts(parse_path('dir/big'), entry.root, entry.size))
"""


def test_a_share_without_the_compiled_cutter_cuts_nothing(top):
    """What it does in a second takes the other one minutes."""
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', WITHOUT_THE_COMPILED_CUTTER, str(top)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ('404\nNone\n', '')


# --- packs --------------------------------------------------------------------------------------


def ask_pack(connection, *paths, media=Media.MSGPACK, headers=None):
    question = b''.join(format_record(Wanted(path), media) for path in paths)
    said = {'content-type': media.value, 'accept': media.value, **(headers or {})}
    response = connection.post('/pack', said, question)
    if response.status != 200:
        return refused(response)
    pieces = list(response.body)
    return list(parse_records(pieces, response.headers['content-type'], Packed, MAX_PACKED))


@pytest.mark.parametrize('media', list(Media))
def test_a_pack_has_each_small_file_with_its_root_and_time(connection, top, media):
    paths = ['small', 'dir/inner/f', 'small']
    for packed, path in zip(ask_pack(connection, *paths, media=media), paths, strict=True):
        content = (top / path).read_bytes()
        mtime_ns = (top / path).stat().st_mtime_ns
        xattrs = format_xattrs(attributes_of(top / path))
        assert packed == Packed(200, build_manifest(content).root, mtime_ns, content, xattrs)


def attributes_of(path):
    with path.open('rb') as file:
        return read_xattrs(file.fileno())


def test_attributes_are_listed_with_roots_only_and_never_those_of_the_system(connection, top):
    try:
        os.setxattr(top / 'small', 'user.a b', b'\xff')
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            pytest.skip('this file system has no extended attributes')
        raise
    if os.geteuid() == 0:
        os.setxattr(top / 'small', 'trusted.a', b'secret')
    assert listed(connection, '/ls/small?roots=1')[''].xattrs == {'a%20b': b'\xff'}
    assert listed(connection, '/ls/small')[''].xattrs is None
    entries = listed(connection, '/ls?recursive=1&roots=1').values()
    assert [entry.kind for entry in entries if entry.xattrs] == [Kind.FILE]
    (packed,) = ask_pack(connection, 'small')
    assert packed.xattrs == {'a%20b': b'\xff'}


def test_what_is_wrong_with_one_file_is_said_in_its_place(connection, top):
    (top / 'grown').write_bytes(bytes(SMALL_SIZE + 1))
    (top / 'most').write_bytes(bytes(SMALL_SIZE))
    os.mkfifo(top / 'fifo')
    paths = ['grown', 'nowhere', 'fifo', 'dir', 'dir-link/secret', 'small/x', '', 'small', 'most']
    answer = [packed.status for packed in ask_pack(connection, *paths)]
    assert answer == [413, 404, 404, 404, 404, 404, 404, 200, 200]


@pytest.mark.parametrize(
    'path', ['../x', 'a/../../x', '%2e%2e/x', '/etc/passwd', '.degu/lock', 'a%00']
)
def test_i6_a_pack_with_a_path_that_leads_elsewhere_is_refused_whole(connection, path):
    assert ask_pack(connection, 'small', path) == 400


def test_a_pack_takes_no_more_than_its_limits(connection, top, monkeypatch):
    monkeypatch.setattr(packing, 'PACK_SIZE', 2)
    assert [packed.status for packed in ask_pack(connection, *['small'] * 3)] == [200, 503, 503]
    assert len(ask_pack(connection, *['nowhere'] * PACK_ITEMS)) == PACK_ITEMS
    assert ask_pack(connection, *['nowhere'] * (PACK_ITEMS + 1)) == 413


def test_a_question_that_is_too_long_is_refused(connection, monkeypatch):
    monkeypatch.setattr(share, 'MAX_PACK_REQUEST', 100)
    assert ask_pack(connection, 'a' * 100) == 413


@pytest.mark.parametrize(
    ('body', 'content_type'),
    [
        (None, Media.JSON.value),
        (b'{"path":"small"}', Media.JSON.value),
        (b'{"path":5}\n', Media.JSON.value),
        (b'{"path":"small"}\n', 'text/plain'),
        (b'\xff', Media.MSGPACK.value),
    ],
)
def test_a_question_that_is_none_is_refused(connection, body, content_type):
    assert refused(connection.post('/pack', {'content-type': content_type}, body)) == 400


def test_a_pack_is_only_for_those_who_may_read(serve, top):
    with FileShare(top, 'friend') as app, serve(app, 'stranger').connect() as connection:
        assert ask_pack(connection, 'small') == 403


# --- the rest -----------------------------------------------------------------------------------


@pytest.mark.parametrize('uri', ['/', '/files/small', '/packs', '/LS', '/ls%2f'])
def test_other_endpoints_are_404(connection, uri):
    assert refused(connection.get(uri)) == 404


@pytest.mark.parametrize('method', ['PUT', 'POST', 'DELETE'])
def test_other_methods_are_405_and_say_which_there_are(connection, method):
    response = connection.request(method, '/file/small')
    assert response.headers['allow'] == 'GET, HEAD'
    assert refused(response) == 405


def test_a_mounted_share_looks_at_its_own_part_of_the_path(serve, top):
    with FileShare(top, 'peer') as app:

        def mounted(connection, request):
            assert request['path'].pop(0) == 'photos'
            return app(connection, request)

        with serve(mounted).connect() as connection:
            assert connection.get('/photos/file/small').body.read() == b'hello'


def test_a_share_leaves_no_file_open(serve, top):
    with FileShare(top, 'peer') as app, serve(app).connect() as connection:
        root = root_of(connection, 'dir/big')
        before = len(os.listdir('/proc/self/fd'))
        for _ in range(50):
            connection.get('/file/dir/big', {'range': Range(0, 10)}).body.read()
            connection.head('/file/dir/big')
            refused(connection.get('/file/dir/big', {'range': Range(10**9, None)}))
            connection.get(f'/cuts/{root}').body.read()
            connection.head(f'/cuts/{root}')
            listed(connection, '/ls?recursive=1&roots=1')
        assert len(os.listdir('/proc/self/fd')) <= before + 1


def test_many_threads_may_use_one_share(serve, top):
    with FileShare(top, 'peer') as app:
        client = serve(app)
        results = []

        def use():
            with client.connect() as connection:
                for _ in range(20):
                    root = root_of(connection, 'dir/big')
                    results.append(connection.get(f'/data/{root}').body.read() == BIG)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [True] * 80


def test_curl_fetches_a_file_a_range_and_a_listing(serve, top, program, tmp_path):
    curl = program('curl')
    with FileShare(top, 'peer') as app:
        host, port = serve(app).address
        base = f'http://{host}:{port}'

        def run(*arguments):
            done = subprocess.run(
                [curl, '-sS', '--fail', '--max-time', '10', *arguments],
                capture_output=True,
                check=True,
            )
            return done.stdout

        assert run(f'{base}/file/dir/big') == BIG
        assert run('-r', '1000-1999', f'{base}/file/dir/big') == BIG[1000:2000]
        assert run('-r', '-7', f'{base}/file/small') == b'hello'
        assert b'etag: "' in run('-I', f'{base}/file/small')
        partial = tmp_path / 'partial'
        partial.write_bytes(BIG[:100_000])
        run('-C', '-', '-o', str(partial), f'{base}/file/dir/big')
        assert partial.read_bytes() == BIG
        lines = run(f'{base}/ls').splitlines()
        assert msgspec.json.decode(lines[-1])['path'] == 'small'
