"""degu_rpc.files.fetch: what arrives is what was there, whole or not at all, whatever happens."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import threading

import msgspec
import pytest

from degu.client import Client
from degu_rpc.errors import (
    BlockedError,
    FilesError,
    IntegrityError,
    ListingError,
    NoSpaceError,
    PathError,
    ShareRefusedError,
    TransferCanceledError,
)
from degu_rpc.files import FileShare, Problem, Skipped, fetch, plan, progress, remote, share, space
from degu_rpc.files.blocks import build_manifest, format_manifest, manifest_size
from degu_rpc.files.commit import Workspace
from degu_rpc.files.limits import MAX_ERROR_TEXT, MAX_PACKED, NAME_COST, PACK_ITEMS
from degu_rpc.files.listing import Entry
from degu_rpc.files.packs import Packed
from degu_rpc.files.records import Media, format_record, parse_records

KIB = 1024
MIB = 1024 * KIB
BLOCK = 128 * KIB
OLD_NS = 1_500_000_000_987_654_321


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / 'source'
    directory.mkdir()
    return directory


@pytest.fixture
def here(tmp_path):
    return tmp_path / 'here'


@pytest.fixture
def client(source, serve):
    with FileShare(source, 'peer') as app:
        yield serve(app)


def fill(directory):
    """A tree with everything in it; returns how many files and symlinks."""
    names = {
        'empty': 0,
        'small': 5,
        'one-block': BLOCK,
        'one-block-and-a-byte': BLOCK + 1,
        'three-blocks': 3 * BLOCK,
        'larger': 5 * BLOCK + 12345,
        'sub/same-as-small': 5,
        'sub/deep/er/f': 10,
    }
    for name, size in names.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((b'0123456789abcdef' * (size // 16 + 1))[:size])
    (directory / 'small').chmod(0o600)
    (directory / 'sub' / 'same-as-small').chmod(0o755)
    for name in [b'\xff\xfe', b'a\nb', 'ümlaut'.encode(), b'-rf', b'100%', b'x' * 255]:
        (directory / os.fsdecode(name)).write_bytes(name)
    with (directory / 'sparse').open('wb') as file:
        file.write(b'start')
        file.seek(40 * MIB)
        file.write(b'end')
    (directory / 'empty-dir').mkdir()
    (directory / 'link').symlink_to('small')
    (directory / 'dangling').symlink_to('/nowhere/\udcff')
    (directory / 'out').symlink_to('../..')
    for path in [*directory.rglob('*')]:
        os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    (directory / 'empty-dir').chmod(0o500)
    return len(names) + 7 + 3


def private(directory, name):
    return sorted(os.listdir(directory / '.degu' / name))


# --- the answer to another question ---------------------------------------------------------------


@pytest.mark.parametrize('size', [5, 2 * BLOCK])
@pytest.mark.parametrize('flipped', ['tree', 'file', 'switch'])
def test_i10_a_bit_that_flips_in_a_question_brings_no_other_file(
    source, here, serve, size, flipped
):
    """Without TLS: who asks for `a` would get what is in `c`, all of it verified."""
    for name in ('a', 'c'):
        (source / name).mkdir()
        (source / name / 'a').write_bytes(name.encode() * size)
        (source / name / 'c').write_bytes(bytes(size))

    def flip(connection, request):
        endpoint, *path = request['path']
        if endpoint == 'ls' and flipped == 'tree' and 'recursive' in request['query']:
            request['path'] = [endpoint, 'c']
        elif endpoint == 'ls' and flipped == 'switch' and 'recursive' in request['query']:
            request['query'] = 'recursive=0'
        elif endpoint == 'ls' and flipped == 'file' and path == ['a', 'a']:
            request['path'] = [endpoint, 'a', 'c']
        elif endpoint == 'pack' and flipped == 'file':
            question = b''.join(request['body'])
            assert b'a/a' in question
            request['body'] = [question.replace(b'a/a', b'a/c')]
        return share(connection, request)

    with FileShare(source, 'peer') as share:
        client = serve(flip)
        with pytest.raises(ListingError, match='answers another question'):
            fetch(client, '', 'a', here)
        assert not (here / 'a' / 'a').exists()
        flipped = 'nothing'
        fetch(client, '', 'a', here)
    assert (here / 'a' / 'a').read_bytes() == b'a' * size


# --- what arrives -------------------------------------------------------------------------------


@pytest.mark.parametrize('durable', [True, False])
def test_i1_each_directory_that_is_made_is_durable_in_the_one_above(
    client, source, tmp_path, monkeypatch, durable
):
    (source / 'sub' / 'deeper').mkdir(parents=True)
    synced = []
    fsync = os.fsync

    def note(fd):
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    monkeypatch.setattr(os, 'fsync', note)
    here = tmp_path / 'made' / 'too' / 'here'
    fetch(client, '', '', here, durable=durable)
    made = [tmp_path, tmp_path / 'made', here.parent, here, here / 'sub', here / '.degu']
    assert [path.stat().st_ino in synced for path in made] == [durable] * len(made)


def test_a_file_that_a_person_puts_in_place_of_a_directory_keeps_its_mode_and_time(
    client, source, here, monkeypatch
):
    (source / 'sub').mkdir()
    (source / 'sub').chmod(0o777)
    os.utime(source / 'sub', ns=(OLD_NS, OLD_NS))
    commit = Workspace.commit

    def meddle(workspace, batch):
        if (here / 'sub').is_dir():
            (here / 'sub').rmdir()
            (here / 'sub').touch(0o600)
        return commit(workspace, batch)

    monkeypatch.setattr(Workspace, 'commit', meddle)
    with pytest.raises(NotADirectoryError):
        fetch(client, '', '', here)
    found = (here / 'sub').stat()
    assert found.st_mode & 0o777 == 0o600
    assert found.st_mtime_ns != OLD_NS


def test_a_tree_arrives_with_bytes_modes_times_and_symlinks(client, source, here, tree):
    count = fill(source)
    result = fetch(client, '', '', here)
    assert tree(here) == tree(source)
    assert (result.files_fetched, result.files_present, result.files_replaced) == (count, 0, 0)
    whole = sum(
        path.lstat().st_size
        for path in source.rglob('*')
        if path.is_file() and not path.is_symlink()
    )
    # Blocks of zeros need not come: the sparse file has two that are not.
    sparse = (source / 'sparse').stat().st_size
    assert result.bytes_fetched == whole - sparse + BLOCK + len(b'end')
    assert (here / 'sparse').stat().st_blocks * 512 <= 2 * BLOCK
    assert result.skipped == ()
    assert private(here, 'tmp') == private(here, 'trash') == []


@pytest.mark.parametrize('name', ['three-blocks', b'\xff\xfe', 'sub/deep', 'sub/', 'link', 'empty'])
def test_one_entry_arrives_under_its_last_name(client, source, here, tree, name):
    fill(source)
    fetch(client, '', name, here)
    path = os.fsencode(name).strip(b'/')
    arrived = tree(here)
    below = {
        key[len(path) - len(os.path.basename(path)) :]: value
        for key, value in tree(source).items()
        if key == path or key.startswith(path + b'/')
    }
    assert arrived == below


def test_a_share_below_a_prefix_is_found(source, serve, here):
    (source / 'f').write_bytes(b'content')
    with FileShare(source, 'peer') as app:

        def mounted(connection, request):
            if request['path'].pop(0) == 'files':
                return app(connection, request)
            return (404, 'Not Found', {}, None)

        client = serve(mounted)
        for prefix in ('/files', '/files/'):
            fetch(client, prefix, 'f', here)
            assert (here / 'f').read_bytes() == b'content'
        with pytest.raises(ShareRefusedError, match='404'):
            fetch(client, '/other', 'f', here)


def test_what_is_not_there_is_an_error_that_says_so(client, here):
    with pytest.raises(ShareRefusedError) as caught:
        fetch(client, '', 'no where', here)
    assert (caught.value.status, caught.value.path) == (404, 'no where')


def test_a_caller_without_a_role_gets_nothing(source, serve, here):
    (source / 'f').write_bytes(b'content')
    with FileShare(source, 'friend') as app, pytest.raises(ShareRefusedError, match='403'):
        fetch(serve(app, 'guest'), '', 'f', here)
    assert os.listdir(here) == ['.degu']


def test_special_files_are_reported_and_the_rest_arrives(client, source, here):
    os.mkfifo(source / 'fifo')
    (source / 'f').write_bytes(b'content')
    result = fetch(client, '', '', here)
    assert result.skipped == (Skipped('fifo', Problem.SPECIAL),)
    assert sorted(os.listdir(here)) == ['.degu', 'f']


def test_what_is_skipped_is_named_by_its_path_in_the_share(client, source, here):
    (source / 'dir').mkdir()
    name = os.fsdecode(b'dir/a %20\xff')
    os.mkfifo(source / name)
    skipped = (Skipped(name, Problem.SPECIAL),)
    for path in ('', 'dir', name):
        assert fetch(client, '', path, here).skipped == skipped


def test_a_listing_with_too_many_entries_is_refused_before_anything_is_written(
    client, source, here, monkeypatch
):
    for name in 'abc':
        (source / name).write_bytes(b'content')
    monkeypatch.setattr(plan, 'MAX_ENTRIES', 3)  # the directory itself is one
    with pytest.raises(ListingError, match='more than 3 entries'):
        fetch(client, '', '', here)
    assert os.listdir(here) == ['.degu']
    monkeypatch.setattr(plan, 'MAX_ENTRIES', 4)
    assert fetch(client, '', '', here).files_fetched == 3


@pytest.mark.parametrize('extra', [0, 1])
def test_the_explanation_of_an_error_is_read_up_to_its_limit(serve, here, extra):
    text = b'x' * (MAX_ERROR_TEXT + extra)
    client = serve(lambda connection, request: (500, 'Broken', {}, text))
    with pytest.raises(ShareRefusedError) as caught:
        fetch(client, '', '', here)
    assert caught.value.reason == ('Broken' if extra else text.decode())


# --- the second time ----------------------------------------------------------------------------


def test_a_second_fetch_moves_nothing(client, source, here, tree):
    count = fill(source)
    fetch(client, '', '', here)
    before = tree(here)
    result = fetch(client, '', '', here)
    assert (result.files_fetched, result.files_present, result.bytes_fetched) == (0, count, 0)
    assert tree(here) == before
    assert private(here, 'trash') == []


@pytest.mark.parametrize('name', ['small', 'larger'])
def test_an_equal_file_with_another_time_is_not_replaced(client, source, here, name):
    fill(source)
    fetch(client, '', name, here)
    inode = (here / name).stat().st_ino
    os.utime(here / name, ns=(1, 1))
    result = fetch(client, '', name, here)
    assert (result.files_fetched, result.files_present) == (0, 1)
    assert (here / name).stat().st_mtime_ns == OLD_NS
    assert (here / name).stat().st_ino == inode


def test_a_changed_mode_is_set_without_the_content(client, source, here):
    fill(source)
    fetch(client, '', 'small', here)
    (source / 'small').chmod(0o444)
    assert fetch(client, '', 'small', here).bytes_fetched == 0
    assert (here / 'small').stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize('size', [10, BLOCK + 10])
def test_i3_a_changed_file_is_replaced_and_the_old_content_kept(client, source, here, trash, size):
    (source / 'f').write_bytes(b'1' * size)
    fetch(client, '', 'f', here)
    (source / 'f').write_bytes(b'2' * size)
    result = fetch(client, '', 'f', here)
    assert (result.files_fetched, result.files_replaced) == (1, 1)
    assert (here / 'f').read_bytes() == b'2' * size
    assert trash(here) == [b'1' * size]


def test_a_changed_symlink_is_replaced(client, source, here):
    (source / 'link').symlink_to('a')
    fetch(client, '', '', here)
    (source / 'link').unlink()
    (source / 'link').symlink_to('b')
    assert fetch(client, '', '', here).files_replaced == 1
    assert os.readlink(here / 'link') == 'b'


def test_files_that_only_exist_here_stay(client, source, here):
    fill(source)
    here.mkdir()
    (here / 'mine').write_bytes(b'mine')
    fetch(client, '', '', here)
    assert (here / 'mine').read_bytes() == b'mine'


def test_a_directory_in_which_nobody_may_write_is_writable_for_a_fetch(
    client, source, here, monkeypatch
):
    monkeypatch.setattr(progress, 'PROGRESS_INTERVAL_S', 0.0)
    (source / 'dir').mkdir()
    (source / 'dir' / 'f').write_bytes(b'old')
    (source / 'dir').chmod(0o555)
    fetch(client, '', '', here)
    (source / 'dir' / 'f').write_bytes(b'newer')
    modes = set()
    fetch(client, '', '', here, progress=lambda _: modes.add((here / 'dir').stat().st_mode & 0o777))
    assert 0o755 in modes
    assert (here / 'dir').stat().st_mode & 0o777 == 0o555
    assert (here / 'dir' / 'f').read_bytes() == b'newer'


def test_a_directory_that_nobody_may_read_arrives_readable_for_us(client, source, here):
    (source / 'dir').mkdir()
    (source / 'dir').chmod(0)
    for _ in range(2):
        fetch(client, '', '', here)
        assert (here / 'dir').stat().st_mode & 0o777 == 0o500


# --- extended attributes ------------------------------------------------------------------------


def attributes(path):
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


@pytest.fixture
def attributed(source):
    """A share with a file that has attributes, where the file system has them."""

    def make(size, mode=0o644):
        path = source / 'f'
        path.write_bytes(b'1' * size)
        try:
            os.setxattr(path, 'user.comment', b'\0\xff')
            os.setxattr(path, os.fsencode('user.ü b'), b'')
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                pytest.skip('this file system has no extended attributes')
            raise
        path.chmod(mode)
        return path

    return make


@pytest.mark.parametrize('mode', [0o644, 0o444, 0])
@pytest.mark.parametrize('size', [10, 3 * BLOCK])
def test_extended_attributes_arrive(client, attributed, here, size, mode):
    if mode == 0 and os.geteuid() != 0:
        pytest.skip('nobody else can read it')
    path = attributed(size, mode)
    fetch(client, '', 'f', here)
    assert attributes(here / 'f') == attributes(path) != {}
    assert (here / 'f').stat().st_mode & 0o777 == mode


@pytest.mark.parametrize('size', [10, 3 * BLOCK])
def test_attributes_that_an_equal_file_with_another_time_has_stay(client, attributed, here, size):
    path = attributed(size)
    fetch(client, '', 'f', here)
    os.setxattr(here / 'f', 'user.comment', b'other')
    os.setxattr(here / 'f', 'user.mine', b'other')
    os.setxattr(path, 'user.new', b'new')
    os.utime(path, ns=(OLD_NS, OLD_NS))
    assert fetch(client, '', 'f', here).files_present == 1
    mine = {'user.comment': b'other', 'user.mine': b'other'}
    assert attributes(here / 'f') == {**attributes(path), **mine}


def test_a_change_of_attributes_is_seen_although_the_content_is_remembered(
    client, attributed, here
):
    path = attributed(3 * BLOCK)
    fetch(client, '', 'f', here)
    os.setxattr(path, 'user.comment', b'changed')
    (here / 'f').unlink()
    fetch(client, '', 'f', here)
    assert attributes(here / 'f') == attributes(path)


def with_attributes(names):
    """Say of everything that it has these attributes."""
    xattrs = dict.fromkeys(names, b'\1\0\0\2' + bytes(16))

    def change(records):
        return [msgspec.structs.replace(record, xattrs=xattrs) for record in records]

    return {'pack': lying_pack(change), 'ls': lying_pack(change, Entry)}


HOSTILE = ['security.capability', 'trusted.a', 'system.posix_acl_access', 'security.selinux']


@pytest.mark.parametrize('size', [10, 3 * BLOCK])
def test_a_peer_sets_no_attribute_outside_of_user(lying, attributed, here, size):
    attributed(size)
    fetch(lying(**with_attributes(HOSTILE)), '', 'f', here)
    assert set(attributes(here / 'f')) == {'user.' + name for name in HOSTILE}
    assert (here / 'f').stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize('name', ['', '%00', 'a' * 251])
@pytest.mark.parametrize('size', [10, 3 * BLOCK])
def test_an_attribute_without_a_possible_name_ends_the_fetch(lying, source, here, size, name):
    (source / 'f').write_bytes(b'1' * size)
    with pytest.raises(ListingError, match='for a name'):
        fetch(lying(**with_attributes([name])), '', 'f', here)
    assert os.listdir(here) == ['.degu']


# --- what is in the way -------------------------------------------------------------------------


def test_a_directory_in_the_way_of_a_file_stops_the_fetch_before_it_begins(client, source, here):
    (source / 'a').write_bytes(b'a')
    (source / 'b').write_bytes(b'b')
    (here / 'b').mkdir(parents=True)
    with pytest.raises(BlockedError, match="b' is blocked"):
        fetch(client, '', '', here)
    assert sorted(os.listdir(here)) == ['.degu', 'b']


@pytest.mark.parametrize('kind', ['file', 'symlink'])
def test_i6_a_directory_is_never_written_through_what_is_in_its_way(
    client, source, here, tmp_path, kind
):
    (source / 'd').mkdir()
    (source / 'd' / 'f').write_bytes(b'f')
    (tmp_path / 'outside').mkdir()
    here.mkdir()
    if kind == 'file':
        (here / 'd').write_bytes(b'mine')
    else:
        (here / 'd').symlink_to(tmp_path / 'outside')
    with pytest.raises(BlockedError):
        fetch(client, '', '', here)
    with pytest.raises((BlockedError, NotADirectoryError)):
        fetch(client, '', 'd', here)
    assert os.listdir(tmp_path / 'outside') == []


def test_a_symlink_in_the_way_of_a_file_is_replaced_and_not_followed(
    client, source, here, tmp_path
):
    (source / 'f').write_bytes(b'new')
    (tmp_path / 'victim').write_bytes(b'old')
    here.mkdir()
    (here / 'f').symlink_to(tmp_path / 'victim')
    fetch(client, '', 'f', here)
    assert (tmp_path / 'victim').read_bytes() == b'old'
    assert not (here / 'f').is_symlink()


# --- shares that lie ----------------------------------------------------------------------------


class Liar:
    """A share that tells the truth, but for what a test changes: uri start -> answer."""

    def __init__(self, app, **lies):
        self.app = app
        self.lies = lies

    def __call__(self, connection, request):
        lie = self.lies.get(request['path'][0])
        return self.app(connection, request) if lie is None else lie(self.app, connection, request)


@pytest.fixture
def lying(source, serve):
    with FileShare(source, 'peer') as app:
        yield lambda **lies: serve(Liar(app, **lies))


def listing_of(*entries):
    def lie(app, connection, request):
        lines = b''.join(json.dumps(entry).encode() + b'\n' for entry in entries)
        body = connection['rgi.ChunkedOutput']([lines, b''])
        return (200, 'OK', {'content-type': 'application/x-ndjson'}, body)

    return lie


TOP = {'path': '', 'kind': 'directory'}


@pytest.mark.parametrize(
    'path',
    [
        '..',
        '../evil',
        '%2e%2e/evil',
        'a/../../evil',
        '/evil',
        '%2Fevil',
        'a%2f..%2f..%2fevil',
        '.degu/tmp/evil',
        '.DEGU',
        'x' * 256,
        'a%00',
    ],
)
@pytest.mark.parametrize('kind', ['file', 'directory', 'symlink'])
def test_i6_a_listing_cannot_name_a_path_outside(lying, here, tmp_path, path, kind):
    entry = {'path': path, 'kind': kind, 'target': '/etc', 'size': 1}
    before = sorted(os.listdir(tmp_path))
    with pytest.raises((PathError, ListingError)):
        fetch(lying(ls=listing_of(TOP, entry)), '', '', here)
    assert os.listdir(here) == ['.degu']
    assert sorted(os.listdir(tmp_path)) == sorted({*before, 'here'})


@pytest.mark.parametrize(
    'entries',
    [
        [{'path': 'a', 'kind': 'directory'}],
        [TOP, TOP],
        [TOP, {'path': 'a', 'kind': 'symlink', 'target': 'x'}] * 2,
        [TOP, {'path': 'a/b', 'kind': 'file'}],
        [TOP, {'path': 'a', 'kind': 'symlink', 'target': '/etc'}, {'path': 'a/b', 'kind': 'file'}],
        [{'path': '', 'kind': 'file'}, {'path': 'b', 'kind': 'file'}],
        [TOP, {'path': 'a', 'kind': 'door'}],
        [TOP, {'path': 'a', 'kind': 'file', 'size': -1}],
    ],
)
def test_a_listing_that_makes_no_sense_is_refused_before_anything_is_written(lying, here, entries):
    with pytest.raises(ListingError):
        fetch(lying(ls=listing_of(*entries)), '', '', here)
    assert os.listdir(here) == ['.degu']


@pytest.mark.parametrize('target', ['', 'a%00b', 'x' * 5000])
def test_a_symlink_that_cannot_be_is_refused(lying, here, target):
    entry = {'path': 'a', 'kind': 'symlink', 'target': target}
    with pytest.raises(PathError):
        fetch(lying(ls=listing_of(TOP, entry)), '', '', here)
    assert os.listdir(here) == ['.degu']


def test_a_listing_that_is_cut_short_is_an_error(lying, source, here, serve):
    def lie(app, connection, request):
        def chunks():
            yield json.dumps(TOP).encode() + b'\n'
            raise OSError('the disk is gone')

        body = connection['rgi.ChunkedOutput'](chunks())
        return (200, 'OK', {'content-type': 'application/x-ndjson'}, body)

    with pytest.raises(Exception, match=r'ended|closed|reset'):
        fetch(lying(ls=lie), '', '', here)
    assert os.listdir(here) == ['.degu']


def corrupt(block):
    """Flip a bit in one block of what /data sends."""

    def lie(app, connection, request):
        status, reason, headers, body = app(connection, request)
        data = bytearray(b''.join(body))
        start = headers['content-range'].start
        offset = block * BLOCK - start
        if 0 <= offset < len(data):
            data[offset] ^= 1
        return (status, reason, headers, bytes(data))

    return lie


@pytest.mark.parametrize('block', [0, 2, 5])
def test_i10_a_block_that_does_not_match_is_named_and_never_kept(lying, source, here, block):
    fill(source)
    with pytest.raises(IntegrityError) as caught:
        fetch(lying(data=corrupt(block)), '', 'larger', here)
    assert (caught.value.path, caught.value.block) == ('larger', block)
    assert os.listdir(here) == ['.degu']
    (name,) = private(here, 'tmp')
    kept = (here / '.degu' / 'tmp' / name).read_bytes()
    content = (source / 'larger').read_bytes()
    assert kept == content[: block * BLOCK] + bytes(len(content) - block * BLOCK)


def test_i10_after_a_bad_block_an_honest_share_completes_the_file(lying, client, source, here):
    fill(source)
    with pytest.raises(IntegrityError):
        fetch(lying(data=corrupt(3)), '', 'larger', here)
    result = fetch(client, '', 'larger', here)
    assert result.bytes_fetched == (source / 'larger').stat().st_size - 3 * BLOCK
    assert (here / 'larger').read_bytes() == (source / 'larger').read_bytes()


def lying_pack(change, kind=Packed):
    """Change the records of a pack, or of another kind."""

    def lie(app, connection, request):
        status, reason, headers, body = app(connection, request)
        pieces = [data for _, data in body]
        records = list(parse_records(pieces, headers['content-type'], kind, MAX_PACKED))
        media = Media(headers['content-type'])
        chunk = b''.join(format_record(packed, media) for packed in change(records))
        chunks = [chunk, b''] if chunk else [b'']
        return (status, reason, headers, connection['rgi.ChunkedOutput'](chunks))

    return lie


def test_i10_a_small_file_that_does_not_match_is_not_kept(lying, source, here):
    (source / 'f').write_bytes(b'content')

    def change(records):
        return [msgspec.structs.replace(packed, content=b'c0ntent') for packed in records]

    with pytest.raises(IntegrityError, match="'f', block 0"):
        fetch(lying(pack=lying_pack(change)), '', 'f', here)
    assert os.listdir(here) == ['.degu']
    assert private(here, 'tmp') == []


def lying_manifest(change):
    def lie(app, connection, request):
        _, _, _, body = app(connection, request)
        return (200, 'OK', {}, change(body))

    return lie


@pytest.mark.parametrize(
    'change',
    [
        lambda body: body[:-1] + bytes([body[-1] ^ 1]),
        lambda body: format_manifest(build_manifest(b'x' * (5 * BLOCK + 12345))),
        lambda body: body[:-32],
        lambda body: body + bytes(32),
        lambda body: b'',
        lambda body: bytes(len(body)),
    ],
)
def test_a_manifest_that_lies_is_refused(lying, source, here, change):
    fill(source)
    with pytest.raises((IntegrityError, ShareRefusedError)):
        fetch(lying(manifest=lying_manifest(change)), '', 'larger', here)
    assert os.listdir(here) == ['.degu']
    assert private(here, 'tmp') == []


@pytest.mark.parametrize(
    ('more', 'error'), [(-1, IntegrityError), (1, ShareRefusedError), (2**50, NoSpaceError)]
)
def test_a_listing_that_lies_about_a_size_gets_no_further(lying, source, here, more, error):
    content = b'y' * (3 * BLOCK)
    (source / 'f').write_bytes(content)
    entry = {
        'path': '',
        'kind': 'file',
        'size': 3 * BLOCK + more,
        'root': build_manifest(content).root,
    }

    def lie(app, connection, request):
        list(app(connection, {**request, 'query': 'roots=1'}).body)  # so that it knows the root
        return listing_of(entry)(app, connection, request)

    with pytest.raises(error):
        fetch(lying(ls=lie), '', 'f', here)
    assert os.listdir(here) == ['.degu']
    assert private(here, 'tmp') == []
    assert os.listdir(here) == ['.degu']


def test_what_was_skipped_counts_as_an_entry(lying, here, monkeypatch):
    monkeypatch.setattr(plan, 'MAX_ENTRIES', 3)
    skipped = {'path': 'a', 'kind': 'skipped'}
    assert len(fetch(lying(ls=listing_of(TOP, *[skipped] * 2)), '', '', here).skipped) == 2
    with pytest.raises(ListingError, match='more than 3 entries'):
        fetch(lying(ls=listing_of(TOP, *[skipped] * 3)), '', '', here)


@pytest.mark.parametrize(
    'entry',
    [
        {'path': 'a' * 100, 'kind': 'directory'},
        {'path': 'a' * 100, 'kind': 'skipped'},
        {'path': 'a', 'kind': 'symlink', 'target': 't' * 99},
        {'path': 'a', 'kind': 'file', 'root': 'r' * 99},
    ],
)
def test_a_listing_with_too_much_text_is_refused(lying, here, monkeypatch, entry):
    client = lying(ls=listing_of(TOP, entry))
    monkeypatch.setattr(plan, 'MAX_LISTING_TEXT', 100 + 2 * NAME_COST - 1)
    with pytest.raises(ListingError, match='bytes of text'):
        fetch(client, '', '', here)
    assert os.listdir(here) == ['.degu']


@pytest.mark.parametrize('xattrs', [{'a' * 100: ''}, {'a': 'QUJD' * 34}, {'a': '', 'b': ''}])
def test_attributes_count_as_text(lying, here, monkeypatch, xattrs):
    monkeypatch.setattr(plan, 'MAX_LISTING_TEXT', 3 * NAME_COST - 1)
    entry = {'path': '', 'kind': 'file', 'xattrs': xattrs}
    with pytest.raises(ListingError, match='bytes of text'):
        fetch(lying(ls=listing_of(entry)), '', 'f', here)


def test_each_name_of_a_path_counts_as_text(lying, here, monkeypatch):
    monkeypatch.setattr(plan, 'MAX_LISTING_TEXT', 20 * NAME_COST)
    path = '/'.join('a' * 20)
    with pytest.raises(ListingError, match='bytes of text'):
        fetch(lying(ls=listing_of(TOP, {'path': path, 'kind': 'skipped'})), '', '', here)


def lying_roots(lie):
    """Lie when a file's root is asked for, not when a tree is listed."""

    def answer(app, connection, request):
        asked = request['query'] == 'roots=1'
        return (lie if asked else FileShare.__call__)(app, connection, request)

    return answer


def test_a_second_record_for_one_file_is_refused(lying, source, here):
    (source / 'f').write_bytes(b'y' * (3 * BLOCK))
    entry = {'path': '', 'kind': 'file', 'size': 3 * BLOCK, 'root': 'a' * 52}
    lie = lying_roots(listing_of(entry, {**entry, 'path': 'a'}))
    with pytest.raises(ListingError, match='something is in it'):
        fetch(lying(ls=lie), '', 'f', here)


def test_what_is_in_a_directory_that_was_a_file_is_not_read(lying, source, here):
    (source / 'f').write_bytes(b'y' * (3 * BLOCK))
    sent = []

    def lie(app, connection, request):
        def chunks():
            yield json.dumps(TOP).encode() + b'\n'
            while len(sent) < 200:
                sent.append(True)
                yield b'{"path":"a","kind":"directory"}\n' * (MIB // 32)
            yield b''

        body = connection['rgi.ChunkedOutput'](chunks())
        return (200, 'OK', {'content-type': 'application/x-ndjson'}, body)

    result = fetch(lying(ls=lying_roots(lie)), '', 'f', here)
    assert result.skipped == (Skipped('f', Problem.VANISHED),)
    assert len(sent) < 200


def test_a_manifest_above_its_limit_is_not_even_asked_for(lying, source, here, monkeypatch):
    fill(source)
    asked = []

    def lie(app, connection, request):
        asked.append(True)
        return app(connection, request)

    monkeypatch.setattr(remote, 'MAX_MANIFEST', manifest_size(3 * BLOCK))
    fetch(lying(manifest=lie), '', 'three-blocks', here)
    assert asked == [True]
    with pytest.raises(ListingError, match='its manifest'):
        fetch(lying(manifest=lie), '', 'larger', here)
    assert asked == [True]


def test_a_file_that_became_too_large_since_the_listing_is_refused(lying, source, here):
    (source / 'f').write_bytes(b'y' * (3 * BLOCK))
    entry = {'path': '', 'kind': 'file', 'size': 2**50, 'root': 'a' * 52}
    with pytest.raises(NoSpaceError) as caught:
        fetch(lying(ls=lying_roots(listing_of(entry))), '', 'f', here)
    assert caught.value.needed == 2**50 - 3 * BLOCK
    assert private(here, 'tmp') == []


@pytest.mark.parametrize('length', [0, 1, 5 * BLOCK, 6 * BLOCK])
def test_an_answer_of_another_length_is_refused(lying, source, here, length):
    fill(source)

    def lie(app, connection, request):
        status, reason, headers, _ = app(connection, request)
        return (status, reason, headers, bytes(length))

    with pytest.raises(ShareRefusedError, match='odd answer'):
        fetch(lying(data=lie), '', 'larger', here)


def test_a_small_file_without_a_root_is_refused(lying, source, here):
    (source / 'f').write_bytes(b'content')

    def change(records):
        return [msgspec.structs.replace(packed, root='') for packed in records]

    with pytest.raises(IntegrityError, match='root'):
        fetch(lying(pack=lying_pack(change)), '', 'f', here)


@pytest.mark.parametrize(
    'change',
    [
        lambda records: records[:-1],
        lambda _: [],
        lambda records: [msgspec.structs.replace(packed, mtime_ns=2**63) for packed in records],
        lambda records: [msgspec.structs.replace(packed, status=7) for packed in records],
        lambda records: [
            msgspec.structs.replace(packed, content=bytes(BLOCK + 1)) for packed in records
        ],
        lambda records: [
            msgspec.structs.replace(packed, content=bytes(MAX_PACKED)) for packed in records
        ],
    ],
)
def test_a_pack_that_makes_no_sense_is_refused(lying, source, here, change):
    for name in 'abc':
        (source / name).write_bytes(b'content')
    with pytest.raises(ListingError):
        fetch(lying(pack=lying_pack(change)), '', '', here)
    for name in set(os.listdir(here)) - {'.degu'}:
        assert (here / name).read_bytes() == b'content'


def test_what_a_pack_has_besides_is_not_used(lying, source, here, tree):
    for name in 'abc':
        (source / name).write_bytes(b'content')

    def change(records):
        return [*records, Packed(200, build_manifest(b'more').root, 5, b'more')]

    fetch(lying(pack=lying_pack(change)), '', '', here)
    assert tree(here) == tree(source)


def test_what_did_not_fit_into_a_pack_is_asked_for_again(lying, source, here, tree):
    fill(source)

    def change(records):
        return [records[0], *(Packed(503) for _ in records[1:])]

    fetch(lying(pack=lying_pack(change)), '', '', here)
    assert tree(here) == tree(source)


def test_many_small_files_come_in_few_answers(lying, source, here, tree):
    for number in range(PACK_ITEMS + 1):
        (source / f'{number}').write_bytes(b'%d' % number)
    asked = []

    def lie(app, connection, request):
        asked.append(True)
        return app(connection, request)

    fetch(lying(pack=lie), '', '', here)
    assert tree(here) == tree(source)
    assert len(asked) == 2


def test_the_question_for_a_pack_of_long_paths_is_not_too_long(lying, source, here, monkeypatch):
    monkeypatch.setattr(share, 'MAX_PACK_REQUEST', 4000)
    monkeypatch.setattr(sys.modules['degu_rpc.files.fetch'], 'MAX_PACK_REQUEST', 4000)
    for number in range(30):
        (source / f'{number:03}{"x" * 250}').write_bytes(b'%d' % number)
    fetch(lying(), '', '', here)
    assert len(os.listdir(here)) == 31


@pytest.mark.parametrize('status', [400, 403, 409, 416, 500, 503])
def test_an_error_of_the_share_is_an_error_here(lying, source, here, status):
    fill(source)
    answer = (status, 'Because', {}, b'explanation\n')
    with pytest.raises(ShareRefusedError, match='explanation') as caught:
        fetch(lying(ls=lambda *_: answer), '', 'larger', here)
    assert caught.value.status == status


def test_the_words_of_a_share_can_do_nothing_to_a_terminal(lying, here):
    answer = (500, 'Because', {}, '\x1b]0;evil\x07 a\nb\x7f \x9b31m é'.encode())
    with pytest.raises(ShareRefusedError) as caught:
        fetch(lying(ls=lambda *_: answer), '', '', here)
    assert caught.value.reason == r'\x1b]0;evil\x07 a\nb\x7f \x9b31m é'


# --- files that change meanwhile ----------------------------------------------------------------


def once(action):
    """Do `action` before the first answer only."""
    done = []

    def lie(app, connection, request):
        if not done:
            done.append(True)
            action()
        return app(connection, request)

    return lie


@pytest.mark.parametrize('endpoint', ['manifest', 'data'])
@pytest.mark.parametrize('size', [4 * BLOCK, 2 * BLOCK, 10])
def test_a_file_that_changed_after_it_was_hashed_arrives_in_its_new_version(
    lying, source, here, endpoint, size
):
    (source / 'f').write_bytes(b'1' * (4 * BLOCK))
    change = once(lambda: (source / 'f').write_bytes(b'2' * size))
    fetch(lying(**{endpoint: change}), '', 'f', here)
    assert (here / 'f').read_bytes() == b'2' * size
    assert (here / 'f').stat().st_mtime_ns == (source / 'f').stat().st_mtime_ns


def test_a_file_that_changes_while_it_is_sent_arrives_in_its_new_version(lying, source, here):
    """The share looked before it began; only the blocks can tell."""
    (source / 'f').write_bytes(b'1' * (4 * BLOCK))
    done = []

    def lie(app, connection, request):
        response = app(connection, request)
        if not done:
            done.append(True)
            with (source / 'f').open('r+b') as file:
                file.seek(2 * BLOCK)
                file.write(b'2' * BLOCK)
        return response

    fetch(lying(data=lie), '', 'f', here)
    assert (here / 'f').read_bytes() == (source / 'f').read_bytes()


def test_a_small_file_that_grew_since_the_listing_arrives_whole(lying, source, here):
    (source / 'f').write_bytes(b'1')
    grow = once(lambda: (source / 'f').write_bytes(b'2' * (3 * BLOCK)))
    fetch(lying(pack=grow), '', 'f', here)
    assert (here / 'f').read_bytes() == b'2' * (3 * BLOCK)


@pytest.mark.parametrize('size', [10, 2 * BLOCK])
def test_i4_what_is_written_here_meanwhile_becomes_a_conflict_copy(lying, source, here, size):
    (source / 'a b').write_bytes(b'there' * size)
    here.mkdir()
    (here / 'a b').write_bytes(b'before')
    write = once(lambda: (here / 'a b').write_bytes(b'mine'))
    result = fetch(lying(**{'pack' if size == 10 else 'manifest': write}), '', 'a b', here)
    assert (result.files_fetched, result.files_replaced) == (1, 1)
    assert (here / 'a b').read_bytes() == b'there' * size
    (conflict,) = result.conflicts
    assert conflict.startswith('a b (conflict ')
    assert (here / conflict).read_bytes() == b'mine'


@pytest.mark.parametrize('size', [5, 2 * BLOCK])
def test_a_file_that_vanishes_is_reported_and_the_rest_arrives(lying, source, here, size):
    (source / 'a').write_bytes(b'a' * size)
    (source / 'b').write_bytes(b'b')
    vanish = once(lambda: (source / 'a').unlink())
    client = lying(**{'pack' if size == 5 else 'manifest': vanish})
    result = fetch(client, '', '', here)
    assert result.skipped == (Skipped('a', Problem.VANISHED),)
    assert (here / 'b').read_bytes() == b'b'


def test_a_file_that_never_rests_is_reported(lying, source, here):
    (source / 'f').write_bytes(b'1' * (4 * BLOCK))
    count = []

    def lie(app, connection, request):
        count.append(True)
        (source / 'f').write_bytes(b'%d' % len(count) * (4 * BLOCK))
        return app(connection, request)

    assert fetch(lying(data=lie), '', 'f', here).skipped == (Skipped('f', Problem.CHANGING),)
    assert os.listdir(here) == ['.degu']


def test_a_share_that_forgot_a_root_is_asked_to_hash_again(lying, source, here):
    (source / 'f').write_bytes(b'1' * (4 * BLOCK))
    forgot = []

    def lie(app, connection, request):
        if not forgot:
            forgot.append(True)
            return (404, 'Not Found', {}, b'forgotten')
        return app(connection, request)

    fetch(lying(data=lie), '', 'f', here)
    assert (here / 'f').read_bytes() == (source / 'f').read_bytes()


@pytest.mark.parametrize('max_requests', [1, 2, 3])
def test_a_kept_connection_that_was_closed_is_replaced(serve, source, here, tree, max_requests):
    """A server may close between two requests; asking again is safe."""
    fill(source)
    with FileShare(source, 'peer') as app:
        fetch(serve(app, max_requests=max_requests), '', '', here)
    assert tree(here) == tree(source)


def test_a_server_that_fails_is_an_error_here(lying, source, here, caplog):
    (source / 'f').write_bytes(b'content')

    def fail(app, connection, request):
        raise RuntimeError('a bug in the share')

    with pytest.raises(ShareRefusedError, match='500'):
        fetch(lying(pack=fail), '', '', here)
    assert 'a bug in the share' in caplog.text


# --- interrupted --------------------------------------------------------------------------------

FETCH = """
import sys
from degu.client import Client
from degu_rpc.files import fetch
sys.modules['degu_rpc.files.progress'].PROGRESS_INTERVAL_S = 0.0
client = Client((sys.argv[1], int(sys.argv[2])))
fetch(client, '', '', sys.argv[3], progress=lambda p: print(p.bytes_moved, flush=True))
"""


def start_fetch(client, here, script=FETCH):
    """Start a fetch of a whole share in a process of its own; it prints its progress."""
    host, port = client.address
    command = [sys.executable, '-c', script, host, str(port), str(here)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_fetch_killed_in_the_middle_does_not_fetch_again_what_it_had(lying, source, here, tree):
    """The share stops after some bytes, the fetch has them all, kill -9; three times."""
    (source / 'large').write_bytes(os.urandom(12 * MIB))
    step = 3 * MIB

    def lie(app, connection, request):
        status, reason, headers, body = app(connection, request)
        is_gone = gone

        def pieces():
            sent = 0
            for piece in body:
                for start in range(0, len(piece), BLOCK):
                    if sent >= step:
                        is_gone.wait(20)
                    sent += BLOCK
                    yield piece[start : start + BLOCK]

        output = connection['rgi.Output'](pieces(), body.content_length)
        return (status, reason, headers, output)

    client = lying(data=lie)
    for _ in range(3):
        gone = threading.Event()
        with start_fetch(client, here) as process:
            try:
                assert any(int(line) >= step for line in process.stdout)
            finally:
                process.kill()
                process.wait()
                gone.set()
        assert process.returncode == -signal.SIGKILL
        assert os.listdir(here) == ['.degu']
        (name,) = private(here, 'tmp')
        assert len(name) == 52
    step = 100 * MIB
    result = fetch(client, '', '', here)
    # What was read and not yet written when the kill came is fetched again: a block at most.
    assert 3 * MIB <= result.bytes_fetched <= 3 * MIB + 3 * BLOCK
    assert tree(here) == tree(source)
    assert private(here, 'tmp') == []


def test_a_fetch_killed_at_any_moment_leaves_old_or_new_and_is_completed(
    client, source, here, tree
):
    fill(source)
    for number in range(300):
        (source / f'new-{number}').write_bytes(b'new %d' % number * 100)
    here.mkdir()
    old = {'small': b'old small', 'larger': b'old larger' * BLOCK, 'new-1': b'', 'new-299': b'old'}
    for name, content in old.items():
        (here / name).write_bytes(content)
    for count in (1, 3, 10, 100, 300, 320):
        with start_fetch(client, here) as process:
            for _ in range(count):
                process.stdout.readline()
            process.kill()
        for path in here.iterdir():
            if path.is_file() and not path.is_symlink():
                expected = {(source / path.name).read_bytes(), old.get(path.name)}
                assert path.read_bytes() in expected
        assert not [name for name in old if not (here / name).exists()]
    fetch(client, '', '', here)
    assert tree(here) == tree(source)


@pytest.mark.parametrize('size', [10, 20 * BLOCK])
def test_a_cancel_leaves_the_old_content_or_the_new(client, source, here, size, monkeypatch):
    monkeypatch.setattr(progress, 'PROGRESS_INTERVAL_S', 0.0)
    for number in range(20):
        (source / str(number)).write_bytes(b'n' * size)
    here.mkdir()
    for number in range(20):
        (here / str(number)).write_bytes(b'o' * (size - 1))
    cancel = threading.Event()
    with pytest.raises(TransferCanceledError):
        fetch(client, '', '', here, progress=lambda _: cancel.set(), cancel=cancel)
    found = {(here / str(number)).read_bytes() for number in range(20)}
    assert found <= {b'n' * size, b'o' * (size - 1)}
    fetch(client, '', '', here)
    assert {(here / str(number)).read_bytes() for number in range(20)} == {b'n' * size}


def test_a_cancel_ends_the_look_at_a_large_file_that_is_here(lying, source, here):
    here.mkdir()
    for directory, time in ((source, OLD_NS), (here, OLD_NS + 1)):
        (directory / 'f').write_bytes(b'1' * (3 * BLOCK))
        os.utime(directory / 'f', ns=(time, time))
    cancel = threading.Event()
    client = lying(manifest=once(cancel.set))
    with pytest.raises(TransferCanceledError):
        fetch(client, '', 'f', here, cancel=cancel)
    assert (here / 'f').stat().st_mtime_ns == OLD_NS + 1


def test_a_fetch_that_was_canceled_before_it_began_writes_nothing(client, source, here):
    fill(source)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(TransferCanceledError):
        fetch(client, '', '', here, cancel=cancel)
    assert os.listdir(here) == ['.degu']


@pytest.mark.parametrize('query', ['recursive=1', 'roots=1'])
def test_a_share_that_only_sends_heartbeats_does_not_hold_up_a_cancel(lying, source, here, query):
    (source / 'f').write_bytes(b'y' * (3 * BLOCK))
    cancel = threading.Event()

    def lie(app, connection, request):
        if request['query'] != query:
            return app(connection, request)

        def chunks():
            for number in range(300):
                if number == 3:
                    cancel.set()
                yield b'\n'
                gone.wait(0.01)
            yield b''

        body = connection['rgi.ChunkedOutput'](chunks())
        return (200, 'OK', {'content-type': 'application/x-ndjson'}, body)

    gone = threading.Event()
    with pytest.raises(TransferCanceledError):
        fetch(lying(ls=lie), '', 'f', here, cancel=cancel)
    gone.set()


def test_progress_counts_to_the_end(client, source, here):
    count = fill(source)
    seen = []
    fetch(client, '', '', here, progress=seen.append)
    last = seen[-1]
    assert (last.files_done, last.files_total) == (count, count)
    assert last.bytes_done == last.bytes_total > last.bytes_moved
    assert last.rate > 0
    for before, after in itertools.pairwise(seen):
        assert before.bytes_done <= after.bytes_done
        assert before.files_done <= after.files_done


def test_a_rate_limit_holds_inside_a_pack(client, source, here):
    for number in range(16):
        (source / f'{number}').write_bytes(os.urandom(BLOCK // 2))
    result = fetch(client, '', '', here, rate_limit=2 * MIB)
    assert result.bytes_fetched == 8 * BLOCK
    # The last piece is not waited for.
    assert result.elapsed_s > 0.9 * (8 * BLOCK - 2 * BLOCK) / (2 * MIB)


def test_an_error_in_the_callers_progress_ends_the_fetch(client, source, here):
    fill(source)

    def fail(_):
        raise RuntimeError('the bar broke')

    with pytest.raises(RuntimeError, match='the bar broke'):
        fetch(client, '', '', here, progress=fail)
    assert threading.active_count() <= 5


def test_two_fetches_into_one_directory_do_not_disturb_each_other(client, source, here, tree):
    fill(source)
    errors = []

    def run():
        try:
            fetch(client, '', '', here)
        except (FilesError, OSError) as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert tree(here) == tree(source)


def test_a_server_that_is_gone_is_an_oserror(here):
    with pytest.raises(OSError, match=r'refused|No such file'):
        fetch(Client(str(here.parent / 'nobody.socket')), '', '', here)


# --- a full disk --------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_it_is_fetched(client, source, tiny):
    (source / 'f').write_bytes(bytes(4 * MIB))
    with pytest.raises(NoSpaceError) as caught:
        fetch(client, '', 'f', tiny)
    assert caught.value.needed == 4 * MIB
    assert caught.value.available < 2 * MIB
    assert os.listdir(tiny) == ['.degu']


def test_two_fetches_that_together_do_not_fit_are_not_both_begun(lying, source, tiny):
    for name in 'ab':
        (source / name).write_bytes(os.urandom(9 * BLOCK))
    refused = []

    def meanwhile():
        with pytest.raises(NoSpaceError) as caught:
            fetch(lying(), '', 'b', tiny)
        refused.append(caught.value)

    fetch(lying(manifest=once(meanwhile)), '', 'a', tiny)
    assert (tiny / 'a').read_bytes() == (source / 'a').read_bytes()
    assert sorted(os.listdir(tiny)) == ['.degu', 'a']
    assert refused[0].needed == 9 * BLOCK
    assert refused[0].available < 9 * BLOCK
    assert private(tiny, 'reserved') == ['lock']


def test_a_fetch_that_has_brought_all_has_nothing_reserved(client, source, here, monkeypatch):
    monkeypatch.setattr(space, 'RESERVATION_STEP', 1)
    fill(source)
    here.mkdir()
    for name in ('small', 'three-blocks'):  # equal, but for the time
        (here / name).write_bytes((source / name).read_bytes())
    (here / 'larger').write_bytes((source / 'larger').read_bytes()[: 2 * BLOCK])
    left = []

    def look(_):
        (name,) = set(private(here, 'reserved')) - {'lock'}
        data = (here / '.degu' / 'reserved' / name).read_bytes()
        left.append(int.from_bytes(data[:8], 'little'))

    fetch(client, '', '', here, progress=look)
    assert left[-1] == 0
    assert private(here, 'reserved') == ['lock']


def test_a_disk_that_fills_up_meanwhile_leaves_no_half_file_and_resumes(lying, source, tiny):
    content = os.urandom(MIB + BLOCK)
    (source / 'f').write_bytes(content)
    filler = tiny / 'filler'

    def fill_up():
        filler.write_bytes(bytes(MIB + 256 * KIB))

    with pytest.raises(NoSpaceError, match='No space left'):
        fetch(lying(data=once(fill_up)), '', 'f', tiny)
    assert sorted(os.listdir(tiny)) == ['.degu', 'filler']
    filler.unlink()
    result = fetch(lying(), '', 'f', tiny)
    assert (tiny / 'f').read_bytes() == content
    assert result.bytes_fetched < len(content)


def test_small_files_that_are_larger_than_listed_do_not_fill_the_disk(lying, source, tiny):
    names = [str(number) for number in range(40)]
    for name in names:
        (source / name).write_bytes(bytes(100 * KIB))
    entries = [{'path': name, 'kind': 'file', 'size': 1} for name in names]
    with pytest.raises(NoSpaceError) as caught:
        fetch(lying(ls=listing_of(TOP, *entries)), '', '', tiny)
    assert caught.value.needed == 100 * KIB - 1


@pytest.mark.parametrize(('changed', 'fits'), [(0, True), (8, False)])
def test_what_was_begun_in_vain_counts_when_a_file_is_begun_again(
    lying, source, tiny, changed, fits
):
    (source / 'f').write_bytes(b'1' * (12 * BLOCK))
    done = []

    def lie(app, connection, request):
        response = app(connection, request)
        if not done:
            done.append(True)
            with (source / 'f').open('r+b') as file:
                file.seek(changed * BLOCK)
                file.write(b'2' * BLOCK)
        return response

    if fits:
        fetch(lying(data=lie), '', 'f', tiny)
        assert (tiny / 'f').read_bytes() == (source / 'f').read_bytes()
    else:
        with pytest.raises(NoSpaceError) as caught:
            fetch(lying(data=lie), '', 'f', tiny)
        assert caught.value.needed == changed * BLOCK


LIMITED = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({MIB}, {MIB}))
{FETCH}
"""


def test_a_file_size_limit_is_a_clear_error_before_anything_comes(client, source, here):
    content = os.urandom(3 * MIB)
    (source / 'f').write_bytes(content)
    host, port = client.address
    command = [sys.executable, '-c', LIMITED, host, str(port), str(here)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert 'NoSpaceError' in done.stderr
    assert 'File too large' in done.stderr
    assert os.listdir(here) == ['.degu']
    assert fetch(client, '', '', here).bytes_fetched == 3 * MIB
    assert (here / 'f').read_bytes() == content
