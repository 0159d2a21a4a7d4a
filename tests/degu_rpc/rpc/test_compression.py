"""gzip: what it unpacks to is bounded, and what is not gzip is refused."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu_rpc.errors import Code, CodecError, RpcError
from degu_rpc.rpc.compression import accepts_gzip, compress, decompress


@given(st.binary())
def test_decompress_of_compress_is_identity(data: bytes) -> None:
    assert decompress(compress(data), len(data)) == data
    assert gzip.decompress(compress(data)) == data


def test_nothing_is_not_compressed() -> None:
    assert decompress(b'', 10) == b''


def test_limit_holds_for_what_it_unpacks_to() -> None:
    assert decompress(compress(bytes(1000)), 1000) == bytes(1000)
    with pytest.raises(RpcError) as caught:
        decompress(compress(bytes(1001)), 1000)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


def test_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = compress(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(RpcError):
            decompress(bomb, 100_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    'data',
    [
        b'x',
        compress(b'abc')[:-1],
        compress(b'abc') + b'x',
        compress(b'abc') + compress(b'def'),
        zlib.compress(b'abc'),
        compress(b'abc')[:-8] + bytes(8),
    ],
    ids=['no_gzip', 'cut', 'more', 'two_members', 'zlib', 'wrong_sum'],
)
def test_what_is_not_one_gzip_member_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError, match='gzip'):
        decompress(data, 1000)


@pytest.mark.parametrize(
    ('accepted', 'used', 'takes'),
    [
        (None, 'identity', False),
        (None, 'gzip', True),
        ('gzip', 'identity', True),
        ('br, GZIP', 'identity', True),
        ('br,gzip;q=0.5', 'identity', True),
        ('gzip;q=0', 'gzip', False),
        ('gzip; q=0.000', 'gzip', False),
        ('identity', 'gzip', False),
        ('gzipped', 'identity', False),
    ],
)
def test_gzip_is_for_who_takes_it(accepted: str | None, used: str, takes: bool) -> None:
    assert accepts_gzip(accepted, used) is takes
