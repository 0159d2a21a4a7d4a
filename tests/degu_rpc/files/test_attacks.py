"""What a hostile peer, tree or neighbour can do to a fetch: nothing that lasts."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import stat
import threading

import msgpack
import pytest

from degu_rpc.errors import BlockedError, FilesError, ListingError
from degu_rpc.files import FileShare, Problem, Skipped, fetch, list_share
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.limits import MAX_PACKED
from degu_rpc.files.listing import Kind
from degu_rpc.files.records import Media
from degu_rpc.files.system import exchange

BLOCK = 128 * 1024


@pytest.fixture
def source(tmp_path):
    (tmp_path / 'source').mkdir()
    return tmp_path / 'source'


@pytest.fixture
def here(tmp_path):
    return tmp_path / 'here'


@pytest.fixture
def outside(tmp_path):
    """A directory beside, with the names of the tree and the snapshot that it must stay."""
    (tmp_path / 'outside').mkdir()
    for number in range(20):
        (tmp_path / 'outside' / f'f{number}').write_bytes(b'secret')
    return tmp_path / 'outside'


def snapshot(directory):
    """Everything about a directory and what is in it, times of change included."""
    return {
        path: (path.lstat()[:7], path.lstat().st_mtime_ns, path.lstat().st_ctime_ns)
        for path in [directory, *directory.rglob('*')]
    }


@pytest.fixture
def client(source, serve):
    with FileShare(source, 'peer') as app:
        yield serve(app)


@pytest.fixture
def answering(source, serve):
    """Serve the share, with one answer in place of its own: endpoint -> media and pieces of it.

    Gives the client and a list of the pieces that were taken.
    """
    taken = []
    with FileShare(source, 'peer') as app:

        def start(endpoint, media, pieces):
            def answer(connection, request):
                if request['path'][0] != endpoint:
                    return app(connection, request)

                def take():
                    for piece in pieces:
                        taken.append(len(piece))
                        yield piece
                    yield b''

                body = connection['rgi.ChunkedOutput'](take())
                return (200, 'OK', {'content-type': media.value}, body)

            return serve(answer), taken

        yield start


# --- bombs --------------------------------------------------------------------------------------

GOOD = {'status': 200, 'root': build_manifest(b'x').root, 'content': b'x'}
MANY = 10_000
"""Pieces of 64 KiB: what takes all of them takes 640 MB."""

BOMBS = {
    'nested maps': (Media.MSGPACK, [b'\x81\xa1x' * 20_000] * MANY),
    'nested arrays': (Media.MSGPACK, [b'\x91' * 60_000] * MANY),
    'an array of four billion': (Media.MSGPACK, [b'\xdd\xff\xff\xff\xff', *[bytes(60_000)] * MANY]),
    'a map of four billion': (Media.MSGPACK, [b'\xdf\xff\xff\xff\xff', *[bytes(60_000)] * MANY]),
    'bytes of four billion': (Media.MSGPACK, [b'\xc6\xff\xff\xff\xff', *[bytes(60_000)] * MANY]),
    'a text of four billion': (Media.MSGPACK, [b'\xdb\xff\xff\xff\xff', *[b'x' * 60_000] * MANY]),
    'an extension': (Media.MSGPACK, [b'\xc9\xff\xff\xff\xff\x05', *[bytes(60_000)] * MANY]),
    'a record without end': (
        Media.MSGPACK,
        [
            b'\x82\xa6status\xcc\xc8\xa7content\xc6' + MAX_PACKED.to_bytes(4),
            *[bytes(60_000)] * MANY,
        ],
    ),
    'more fields than there are': (
        Media.MSGPACK,
        [msgpack.packb({f'x{number}': 0 for number in range(300)}), *[bytes(60_000)] * MANY],
    ),
    'too many attributes': (
        Media.MSGPACK,
        [msgpack.packb({**GOOD, 'xattrs': {f'a{number}': b'' for number in range(257)}})] * MANY,
    ),
    'a content that is too long': (
        Media.MSGPACK,
        [msgpack.packb({**GOOD, 'content': bytes(BLOCK + 1)})] * MANY,
    ),
    'nested lists in JSON': (Media.JSON, [b'{"status":' + b'[' * 60_000] * MANY),
    'nested objects in JSON': (Media.JSON, [b'{"x":' * 12_000] * MANY),
    'a line without end': (Media.JSON, [b'{"status":200,"content":"', *[b'A' * 60_000] * MANY]),
    'a number without end': (Media.JSON, [b'{"status":', *[b'9' * 60_000] * MANY]),
    'a content that is too long in JSON': (
        Media.JSON,
        [b'{"status":200,"content":"' + b'A' * (BLOCK * 4 // 3 + 8) + b'"}\n'] * MANY,
    ),
    'no base64': (Media.JSON, [b'{"status":200,"content":"%%%%"}\n'] * MANY),
    'a name twice': (Media.JSON, [b'{"status":200,"status":"x"}\n'] * MANY),
}


@pytest.mark.parametrize('bomb', BOMBS)
def test_a_pack_that_is_a_bomb_is_refused_before_much_of_it_is_read(answering, source, here, bomb):
    (source / 'f').write_bytes(b'x')
    media, pieces = BOMBS[bomb]
    client, taken = answering('pack', media, pieces)
    with pytest.raises(ListingError):
        fetch(client, '', '', here)
    assert os.listdir(here) == ['.degu']
    # What the server has written by then: some more is in the sockets' buffers.
    assert sum(taken) < 16 * 1024 * 1024


@pytest.mark.parametrize('bomb', BOMBS)
def test_a_question_that_is_a_bomb_is_refused_by_the_share(client, source, bomb):
    """The same bytes as a question for a pack: a refusal, and the next question is answered."""
    media, pieces = BOMBS[bomb]
    with client.connect() as connection:
        body = b''.join(itertools.islice(pieces, 20))
        response = connection.request('POST', '/pack', {'content-type': media.value}, body)
        assert response.status in {400, 413}
        response.body.read()
    with client.connect() as connection:
        assert connection.get('/ls').status == 200


def test_a_share_that_never_puts_a_file_into_a_pack_is_given_up(answering, source, here):
    """It could say 503 for ever, each time on time."""
    (source / 'f').write_bytes(b'x')
    enough = threading.Event()

    class Answers:
        def __iter__(self):
            if len(taken) > 3:
                enough.set()
            yield msgpack.packb({'status': 503})

    client, taken = answering('pack', Media.MSGPACK, Answers())
    with pytest.raises(ListingError, match='pack'):
        fetch(client, '', '', here, cancel=enough)
    assert len(taken) == 1


def test_a_share_that_says_too_large_of_a_small_file_is_asked_another_way(answering, source, here):
    (source / 'f').write_bytes(b'x')
    client, taken = answering('pack', Media.MSGPACK, [msgpack.packb({'status': 413})])
    fetch(client, '', '', here)
    assert (here / 'f').read_bytes() == b'x'
    assert len(taken) == 1


@pytest.mark.parametrize('time', [2**63 - 1, -(2**63), 0, -1])
def test_any_time_is_taken_as_well_as_it_can_be(answering, source, here, time):
    for name in ('f', 'link'):
        (source / name).write_bytes(b'x')
    entries = [
        {'path': '', 'kind': 'directory', 'mtime_ns': time},
        {'path': 'd', 'kind': 'directory', 'mtime_ns': time, 'mode': 0},
        {'path': 'f', 'kind': 'file', 'mtime_ns': time, 'size': 1},
        {'path': 'l', 'kind': 'symlink', 'mtime_ns': time, 'target': 'x'},
    ]
    client, _ = answering('ls', Media.MSGPACK, [msgpack.packb(entry) for entry in entries])
    for _ in range(2):
        fetch(client, '', '', here)
        assert (here / 'f').read_bytes() == b'x'
        assert stat.S_IMODE((here / 'd').stat().st_mode) == 0
        assert os.readlink(here / 'l') == 'x'


# --- names --------------------------------------------------------------------------------------


def content_of(name):
    return b'content of ' + name


def build(top, names, content):
    for name in names:
        with open(os.path.join(os.fsencode(top), name), 'wb') as file:
            file.write(content(name))


def test_any_name_arrives_as_it_is_in_any_place(client, source, here, tree, names):
    """As a file, a directory with one in it, and the text of a symlink."""
    build(source, names, content_of)
    for kind in ('directories', 'links'):
        (source / kind).mkdir()
    for name in names:
        (source / 'directories' / os.fsdecode(name)).mkdir()
        (source / 'directories' / os.fsdecode(name) / os.fsdecode(name)).write_bytes(name)
        (source / 'links' / os.fsdecode(name)).symlink_to(os.fsdecode(name))
    result = fetch(client, '', '', here)
    assert result.skipped == ()
    assert tree(here) == tree(source)
    again = fetch(client, '', '', here)
    assert (again.files_fetched, again.files_present) == (0, 3 * len(names))


def test_any_name_can_be_asked_for_and_is_listed(client, source, here, names):
    build(source, names, content_of)
    listed = {os.fsencode(entry.name) for entry in list_share(client, '', '')}
    assert listed == {*names}
    for name in names[::7]:
        assert [os.fsencode(entry.name) for entry in list_share(client, '', name)] == [name]
        fetch(client, '', name, here)
        with open(os.path.join(os.fsencode(here), name), 'rb') as file:
            assert file.read() == content_of(name)


def test_i3_what_has_any_name_is_kept_when_it_is_replaced(client, source, here, trash, names):
    build(source, names, content_of)
    here.mkdir()
    build(here, names, lambda name: b'old ' + name)
    result = fetch(client, '', '', here)
    assert (result.files_replaced, result.conflicts) == (len(names), ())
    assert trash(here) == sorted(b'old ' + name for name in names)


def test_names_that_are_ours_stay_at_home(client, source, here):
    for name in ('.degu', '.DEGU', '.Degu'):
        (source / name).mkdir()
        (source / name / 'f').write_bytes(b'private')
        with pytest.raises(FilesError):
            fetch(client, '', name, here)
    fetch(client, '', '', here)
    assert os.listdir(here) == ['.degu']
    assert not (here / '.degu' / 'f').exists()


# --- special files ------------------------------------------------------------------------------


def make_special(path, kind):
    if kind == 'fifo':
        os.mkfifo(path)
    elif kind == 'socket':
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif os.geteuid() == 0:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero: it never ends
    else:
        pytest.skip('making a device needs privileges')


@pytest.mark.parametrize('kind', ['fifo', 'socket', 'device'])
def test_a_special_file_is_reported_and_never_opened(client, source, here, kind):
    make_special(source / 'special', kind)
    (source / 'f').write_bytes(b'content')
    assert fetch(client, '', '', here).skipped == (Skipped('special', Problem.SPECIAL),)
    assert sorted(os.listdir(here)) == ['.degu', 'f']
    (entry,) = [entry for entry in list_share(client, '', '') if entry.name == 'special']
    assert (entry.kind, entry.problem) == (Kind.SKIPPED, Problem.SPECIAL)


@pytest.mark.parametrize('kind', ['fifo', 'socket', 'device'])
@pytest.mark.parametrize('size', [0, 10, 2 * BLOCK])
def test_a_special_file_in_the_way_is_displaced_and_never_opened(client, source, here, kind, size):
    (source / 'f').write_bytes(b'x' * size)
    here.mkdir()
    make_special(here / 'f', kind)
    before = (here / 'f').lstat()
    fetch(client, '', '', here)
    assert (here / 'f').read_bytes() == b'x' * size
    (kept,) = (here / '.degu' / 'trash').rglob('f')
    assert (kept.lstat().st_ino, kept.lstat().st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.parametrize('kind', ['fifo', 'socket', 'device'])
def test_a_special_file_in_the_way_of_a_directory_stops_the_fetch(client, source, here, kind):
    (source / 'd').mkdir()
    (source / 'd' / 'f').write_bytes(b'x')
    here.mkdir()
    make_special(here / 'd', kind)
    with pytest.raises(BlockedError):
        fetch(client, '', '', here)


# --- symlink races ------------------------------------------------------------------------------


class Swapper:
    """Lets directories and symlinks to elsewhere change places, all the time, in a thread.

    It begins with `start()`; at its end all is in its place again.
    """

    def __init__(self, top, names, target):
        self.swaps = 0
        self._top = top
        self._names = names
        self._aside = top.parent / f'aside-{top.name}'
        self._target = target
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._started = threading.Lock()

    def start(self):
        if self._started.acquire(blocking=False):
            self._thread.start()

    def _run(self):
        top = os.open(self._top, os.O_RDONLY)
        aside = os.open(self._aside, os.O_RDONLY)
        try:
            while not self._is_over.is_set() or self.swaps % 2:
                for name in self._names:
                    exchange(top, os.fsencode(name), aside, os.fsencode(name))
                self.swaps += 1
                self._is_over.wait(0.0002)
        finally:
            os.close(top)
            os.close(aside)

    def __enter__(self):
        self._aside.mkdir()
        for name in self._names:
            (self._aside / name).symlink_to(self._target)
        return self

    def __exit__(self, *_):
        self._is_over.set()
        self.start()
        self._thread.join()
        for name in self._names:
            (self._aside / name).unlink()
        self._aside.rmdir()


@pytest.fixture
def directories(source):
    """A tree of directories with small files and a large one; their names."""
    names = [f'd{number}' for number in range(6)]
    for name in names:
        (source / name).mkdir()
        for number in range(10):
            (source / name / f'f{number}').write_bytes(b'open')
        (source / name / 'large').write_bytes(os.urandom(2 * BLOCK))
    return names


def test_i6_a_directory_that_becomes_a_symlink_meanwhile_leads_nowhere(
    source, serve, here, outside, directories
):
    """Here: the swapping begins once it is planned what goes where."""
    before = snapshot(outside)
    swapper = None

    def app(connection, request):
        if request['path'][0] != 'ls':
            swapper.start()
        return share(connection, request)

    with FileShare(source, 'peer') as share:
        client = serve(app)
        for number in range(25):
            for path in source.rglob('f*'):
                path.write_bytes(b'open %d' % number)
            with Swapper(here, directories, outside) as swapper:
                here.mkdir(exist_ok=True)
                for name in directories:
                    (here / name).mkdir(exist_ok=True)
                with contextlib.suppress(FilesError, OSError):
                    fetch(client, '', '', here, durable=False)
            assert swapper.swaps > 0
    assert snapshot(outside) == before
    assert [path for path in here.rglob('f*') if path.read_bytes().startswith(b'open')] != []


def test_i6_a_share_whose_directories_become_symlinks_shows_nothing_else(
    client, source, here, outside, directories
):
    """There: what is shared is swapped while it is listed, hashed and sent."""
    (outside / 'large').write_bytes(b'secret' * BLOCK)
    for number in range(15):
        with Swapper(source, directories, outside) as swapper:
            swapper.start()
            for name in directories:
                with contextlib.suppress(FilesError, OSError):
                    fetch(client, '', name, here / f'{number}', durable=False)
        assert swapper.swaps > 0
    found = [path for path in here.rglob('*') if path.is_file() and not path.is_symlink()]
    assert [path for path in found if b'secret' in path.read_bytes()] == []
    assert [path for path in found if path.read_bytes() == b'open'] != []


@pytest.mark.parametrize('name', ['.degu', '.degu/tmp', '.degu/trash', '.degu/lock'])
def test_i6_a_symlink_in_place_of_our_own_directory_is_not_followed(
    client, source, here, outside, name
):
    (source / 'f0').write_bytes(b'new')
    (here / name).parent.mkdir(parents=True)
    (here / '.degu').exists() and (here / '.degu').chmod(0o700)
    (here / name).symlink_to(outside / 'f1' if name == '.degu/lock' else outside)
    before = snapshot(outside)
    with pytest.raises((FilesError, OSError)):
        fetch(client, '', '', here)
    assert snapshot(outside) == before
    assert not (here / 'f0').exists()
