"""degu_rpc.files.reuse: what an old version has does not come over the network again."""

from __future__ import annotations

import os
import random

import pytest

from degu_rpc.files import FileShare, fetch
from degu_rpc.files.cuts import Chunk, average_size, format_chunk, format_size
from degu_rpc.files.limits import DELTA_SIZE

MIB = 1024 * 1024
SIZE = 12 * MIB
OLD = random.Random(1).randbytes(SIZE)
PIECE = random.Random(2).randbytes(MIB)
BLOCK = 128 * 1024


class Lying:
    """A share that answers one endpoint as a test says."""

    def __init__(self, app, endpoint, lie):
        self.app = app
        self.endpoint = endpoint
        self.lie = lie

    def __call__(self, connection, request):
        if request['path'][0] != self.endpoint:
            return self.app(connection, request)
        return self.lie(self.app, connection, request)


@pytest.fixture
def versions(tmp_path):
    """Put one version into the source and another one here."""

    def make(new, old=OLD):
        for name, content in (('source', new), ('here', old)):
            (tmp_path / name).mkdir()
            (tmp_path / name / 'f').write_bytes(content)
        os.utime(tmp_path / 'here' / 'f', ns=(5, 5))
        return tmp_path / 'source', tmp_path / 'here'

    return make


def bring(serve, source, here, endpoint='', lie=None):
    with FileShare(source, 'peer') as app:
        fetched = fetch(serve(Lying(app, endpoint, lie)), '', 'f', here)
    assert (here / 'f').read_bytes() == (source / 'f').read_bytes()
    assert fetched.files_replaced == 1
    return fetched.bytes_fetched


@pytest.mark.parametrize(
    ('new', 'most'),
    [
        (OLD[: 5 * BLOCK] + PIECE[:9] + OLD[5 * BLOCK + 9 :], BLOCK),
        (OLD + PIECE, MIB),
        (OLD[: SIZE - MIB], BLOCK),
        (OLD[: SIZE - MIB] + bytes(5 * MIB), BLOCK),
    ],
    ids=['changed in place', 'longer', 'shorter', 'zeros at its end'],
)
def test_blocks_at_the_same_place_do_not_come_again(serve, versions, new, most):
    assert bring(serve, *versions(new)) <= most


@pytest.mark.parametrize(
    ('new', 'most'),
    [
        (PIECE + OLD, 2 * MIB),
        (b'!' + OLD, MIB),
        (OLD[1:], MIB),
        (OLD[: 5 * MIB + 1] + PIECE + OLD[5 * MIB + 1 :], 2 * MIB),
        (OLD[7 * MIB :] + OLD[: 7 * MIB], 2 * MIB),
    ],
    ids=['inserted', 'a byte', 'a byte less', 'in the middle', 'moved'],
)
def test_what_is_at_another_place_does_not_come_again(serve, versions, new, most):
    assert bring(serve, *versions(new)) <= most


def answer(status):
    return lambda app, connection, request: (status, 'Because', {}, b'no\n')


def wrong_list(app, connection, request):
    """Say of every chunk that it is one that the old version has, where it is not."""
    size = len(PIECE + OLD)
    average = average_size(size)
    lengths = [average] * (size // average)
    lengths[-1] += size % average
    chunks = [format_chunk(Chunk(length, bytes(32))) for length in lengths]
    body = connection['rgi.ChunkedOutput']([format_size(size), *chunks, b''])
    return (200, 'OK', {'content-type': 'application/octet-stream'}, body)


def cut_short(app, connection, request):
    body = connection['rgi.ChunkedOutput']([format_size(len(PIECE + OLD)), b''])
    return (200, 'OK', {'content-type': 'application/octet-stream'}, body)


@pytest.mark.parametrize(
    'lie',
    [answer(404), answer(405), answer(503), wrong_list, cut_short],
    ids=['no endpoint', 'no method', 'busy', 'wrong', 'cut short'],
)
def test_without_a_list_that_is_right_the_whole_file_comes(serve, versions, lie):
    assert bring(serve, *versions(PIECE + OLD), 'cuts', lie) == len(PIECE + OLD)


@pytest.mark.parametrize('missing', [DELTA_SIZE - BLOCK, DELTA_SIZE])
def test_a_list_is_asked_for_where_much_is_missing_and_else_not(serve, versions, missing):
    asked = []

    def lie(app, connection, request):
        asked.append(True)
        return app(connection, request)

    new = OLD[: SIZE - missing] + random.Random(3).randbytes(missing)
    assert bring(serve, *versions(new), 'cuts', lie) == missing
    assert asked == [True] * (missing >= DELTA_SIZE)


def test_i6_an_old_version_that_is_a_symlink_is_not_read(serve, versions, tmp_path):
    source, here = versions(PIECE + OLD)
    (here / 'f').rename(tmp_path / 'outside')
    (here / 'f').symlink_to(tmp_path / 'outside')
    assert bring(serve, source, here) == len(PIECE + OLD)
    assert (tmp_path / 'outside').read_bytes() == OLD


def test_a_file_with_an_old_version_that_cannot_be_read_comes_whole(serve, versions):
    source, here = versions(OLD[::-1])
    (here / 'f').unlink()
    os.mkfifo(here / 'f')
    assert bring(serve, source, here) == SIZE
