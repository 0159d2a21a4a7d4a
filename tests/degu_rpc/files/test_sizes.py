"""Files of every size, on disks with too little room for them, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from degu_rpc.errors import NoSpaceError
from degu_rpc.files import FileShare, fetch
from degu_rpc.files.blocks import MIN_BLOCK_SIZE, SMALL_SIZE, WANTED_BLOCKS, block_size

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
BLOCK = MIN_BLOCK_SIZE
STEP = BLOCK * WANTED_BLOCKS
"""The largest file with blocks of this size: one byte more, and they are twice as large."""


@pytest.fixture
def source(tmp_path):
    (tmp_path / 'source').mkdir()
    return tmp_path / 'source'


@pytest.fixture
def here(tmp_path):
    return tmp_path / 'here'


@pytest.fixture
def client(source, serve):
    with FileShare(source, 'peer') as app:
        yield serve(app)


def write_at(path, size, pieces):
    """Write a sparse file of `size` bytes that has these pieces by their places."""
    with path.open('wb') as file:
        for place, piece in pieces.items():
            file.seek(place)
            file.write(piece)
        file.truncate(size)


def read_at(path, pieces):
    with path.open('rb') as file:
        found = {}
        for place, piece in pieces.items():
            file.seek(place)
            found[place] = file.read(len(piece))
    return found


def used(path):
    """How many bytes of disk a file takes."""
    return path.stat().st_blocks * 512


# --- sizes --------------------------------------------------------------------------------------

SIZES = [0, 1, 4095, 4096, 4097]
SIZES += [count * BLOCK + more for count in (1, 2, 7) for more in (-1, 0, 1)]


def test_the_sizes_are_about_the_limit_of_a_small_file():
    assert {SMALL_SIZE - 1, SMALL_SIZE, SMALL_SIZE + 1} <= {*SIZES}


@pytest.mark.parametrize('size', SIZES)
def test_a_file_of_any_size_arrives_and_is_there_the_next_time(client, source, here, size):
    content = os.urandom(size)
    (source / 'f').write_bytes(content)
    result = fetch(client, '', 'f', here)
    assert (here / 'f').read_bytes() == content
    assert (result.files_fetched, result.bytes_fetched) == (1, size)
    assert fetch(client, '', 'f', here).files_present == 1


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('more', [-1, 1, BLOCK])
def test_a_file_that_grows_or_shrinks_arrives(client, source, here, size, more):
    new = os.urandom(max(size + more, 0))
    here.mkdir()
    (here / 'f').write_bytes(new[:size] + os.urandom(max(size - len(new), 0)))
    (source / 'f').write_bytes(new)
    fetch(client, '', 'f', here)
    assert (here / 'f').read_bytes() == new


@pytest.mark.parametrize('size', [STEP - 1, STEP, STEP + 1])
def test_a_file_arrives_where_the_size_of_its_blocks_changes(client, source, here, size):
    block = block_size(size)
    assert block == (BLOCK if size <= STEP else 2 * BLOCK)
    pieces = {0: b'begin', 77 * block - 1: b'!!', size - 3: b'end'}
    write_at(source / 'f', size, pieces)
    result = fetch(client, '', 'f', here)
    assert read_at(here / 'f', pieces) == pieces
    assert (here / 'f').stat().st_size == size
    ends = [(place, place + len(piece) - 1) for place, piece in pieces.items()]
    touched = {place // block for both in ends for place in both}
    assert result.bytes_fetched == sum(min(block, size - index * block) for index in touched)
    assert used(here / 'f') <= len(touched) * block


def test_a_file_of_more_than_four_gibibytes_arrives(serve, mount):
    """On a file system in memory, where to read what is not there costs nothing."""
    source, here = mount('size=32m'), mount('size=5g')
    size = 4 * GIB + 5 * MIB + 1
    pieces = {0: b'begin', 2 * GIB - 1: b'??', 4 * GIB - 2: b'across', size - 3: b'end'}
    write_at(source / 'f', size, pieces)
    with FileShare(source, 'peer') as app:
        result = fetch(serve(app), '', 'f', here)
    assert (here / 'f').stat().st_size == size
    assert read_at(here / 'f', pieces) == pieces
    assert result.bytes_fetched < 7 * block_size(size)
    assert used(here / 'f') < 7 * block_size(size)


@pytest.mark.parametrize('size', [3 * BLOCK, 30 * BLOCK + 7])
def test_zeros_need_not_come_and_take_no_room(client, source, here, size):
    (source / 'f').write_bytes(bytes(size))
    assert fetch(client, '', 'f', here).bytes_fetched == 0
    assert (here / 'f').read_bytes() == bytes(size)
    assert used(here / 'f') == 0


def test_zeros_replace_what_was_there(client, source, here, trash):
    old = os.urandom(5 * BLOCK)
    here.mkdir()
    (here / 'f').write_bytes(old)
    (source / 'f').write_bytes(bytes(5 * BLOCK) + b'end')
    fetch(client, '', 'f', here)
    assert (here / 'f').read_bytes() == bytes(5 * BLOCK) + b'end'
    assert trash(here) == [old]


# --- too little room ----------------------------------------------------------------------------


def filling(app, endpoint, directory):
    """A share that fills up the disk there, once, before it answers; and how to make room."""
    filler = directory / 'filler'

    def answer(connection, request):
        if request['path'][0] == endpoint and not filler.exists():
            with filler.open('wb', buffering=0) as file:
                try:
                    while file.write(bytes(4 * KIB)) == 4 * KIB:
                        pass
                except OSError:
                    pass
        return app(connection, request)

    return answer


@pytest.mark.parametrize('endpoint', ['pack', 'manifest', 'data'])
def test_a_disk_that_is_full_is_a_clear_error_and_no_name_is_half(
    source, serve, tiny, endpoint, tree
):
    for number in range(60):
        (source / f'{number}').write_bytes(os.urandom(5000))
    for number in range(3):
        (source / f'large-{number}').write_bytes(os.urandom(3 * BLOCK))
    with FileShare(source, 'peer') as app:
        with pytest.raises(NoSpaceError, match='No space left'):
            fetch(serve(filling(app, endpoint, tiny)), '', '', tiny)
        for name in {*os.listdir(tiny)} - {'.degu', 'filler'}:
            assert (tiny / name).read_bytes() == (source / name).read_bytes()
        (tiny / 'filler').unlink()
        fetch(serve(app), '', '', tiny)
    assert tree(tiny) == tree(source)
    assert os.listdir(tiny / '.degu' / 'tmp') == []


def test_a_disk_that_has_no_more_files_is_a_clear_error_and_resumes(source, serve, mount, tree):
    """The room for content is not all that can run out."""
    disk = mount('size=8m,nr_inodes=40')
    for number in range(60):
        (source / f'{number}').write_bytes(b'%d' % number)
    with FileShare(source, 'peer') as app:
        client = serve(app)
        with pytest.raises(NoSpaceError, match='No space left'):
            fetch(client, '', '', disk)
        for name in {*os.listdir(disk)} - {'.degu'}:
            assert (disk / name).read_bytes() == name.encode()
        subprocess.run(['mount', '-o', 'remount,nr_inodes=400', str(disk)], check=True)
        fetch(client, '', '', disk)
    assert tree(disk) == tree(source)


LIMITED = """
import resource, sys
from degu.client import Client
from degu_rpc.files import fetch
limit = int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
fetch(Client((sys.argv[1], int(sys.argv[2]))), '', '', sys.argv[3])
"""


def run(script, client, here, *more):
    host, port = client.address
    command = [sys.executable, '-c', script, host, str(port), str(here), *map(str, more)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize('size', [100 * KIB, 3 * BLOCK])
def test_a_limit_on_the_size_of_files_is_a_clear_error_and_resumes(
    client, source, here, size, tree
):
    (source / 'a').write_bytes(b'small')
    (source / 'f').write_bytes(os.urandom(size))
    done = run(LIMITED, client, here, 64 * KIB)
    assert done.returncode == 1
    assert 'NoSpaceError' in done.stderr
    assert 'File too large' in done.stderr
    assert {*os.listdir(here)} <= {'.degu', 'a'}
    fetch(client, '', '', here)
    assert tree(here) == tree(source)


# --- memory -------------------------------------------------------------------------------------

FETCH = """
import pathlib, sys
from degu.client import Client
from degu_rpc.files import fetch
print(fetch(Client((sys.argv[1], int(sys.argv[2]))), '', '', sys.argv[3]).bytes_fetched)
(line,) = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]
print(line.split()[1])
"""
MAX_MEMORY_KIB = 120 * KIB


@pytest.mark.slow
def test_a_file_of_a_gibibyte_takes_little_memory(client, source, mount):
    """No block of it is all zeros, so all of it comes."""
    disk = mount('size=1200m')
    block = block_size(GIB)
    write_at(source / 'f', GIB, dict.fromkeys(range(0, GIB, block), b'x'))
    done = run(FETCH, client, disk)
    assert done.returncode == 0, done.stderr
    fetched, peak_kib = map(int, done.stdout.split())
    assert fetched == GIB
    assert peak_kib < MAX_MEMORY_KIB


@pytest.mark.slow
def test_many_small_files_take_little_memory(client, source, mount):
    for number in range(5000):
        (source / f'{number}').write_bytes(b'%d' % number * 500)
    done = run(FETCH, client, mount('size=100m'))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) < MAX_MEMORY_KIB
