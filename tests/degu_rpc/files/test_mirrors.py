"""degu_rpc.files.fetch with mirrors: what one source cannot bring comes from another."""

from __future__ import annotations

import os

import pytest

from degu.client import Client
from degu_rpc.errors import ShareRefusedError
from degu_rpc.files import FileShare, Mirror, fetch


@pytest.fixture
def source(tmp_path):
    (tmp_path / 'source').mkdir()
    (tmp_path / 'source' / 'small').write_bytes(b'small')
    (tmp_path / 'source' / 'large').write_bytes(os.urandom(300_000))
    return tmp_path / 'source'


def refuse(connection, request):
    return (503, 'Because', {}, b'not now\n')


def test_a_first_source_that_cannot_be_reached_is_passed_over(source, serve, tmp_path, tree):
    gone = Client(('127.0.0.1', 1), timeout_s=5)
    with FileShare(source, 'peer') as app:
        fetch(gone, '', '', tmp_path / 'here', mirrors=[Mirror(serve(app), '')])
    assert tree(tmp_path / 'here') == tree(source)


def test_where_no_source_can_list_the_first_one_says_why(serve, tmp_path):
    gone = Client(('127.0.0.1', 1), timeout_s=5)
    with pytest.raises(ShareRefusedError, match='not now'):
        fetch(serve(refuse), '', '', tmp_path / 'here', mirrors=[Mirror(gone, '')])
