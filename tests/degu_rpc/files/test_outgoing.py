"""degu_rpc.files.outgoing: what is to be sent, and that a cancel need not wait for a file."""

from __future__ import annotations

import os

import pytest

from degu_rpc.errors import TransferCanceledError
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.outgoing import Outgoing

MIB = 1024 * 1024
CONTENT = bytes(8 * MIB)
ROOT = build_manifest(CONTENT).root


class Cancel:
    """A check that raises from the second time on, once it is armed."""

    def __init__(self):
        self.is_armed = False
        self.count = 0

    def __call__(self):
        self.count += self.is_armed
        if self.count > 1:
            raise TransferCanceledError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'f'
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def cancel():
    return Cancel()


@pytest.fixture
def outgoing(cancel):
    with Outgoing(cancel) as outgoing:
        yield outgoing


def test_what_is_read_is_counted_while_it_is_read_and_what_is_named_twice_is_there_once(path):
    (path.parent / 'small').write_bytes(b'small')
    counted = []
    with Outgoing(lambda: None, counted.append) as outgoing:
        for name in ('f', 'small', './f', 'f/'):
            outgoing.gather(f'{path.parent}/{name}')
        assert [entry.path for entry in outgoing.entries] == ['f', 'small']
    assert counted[:-1] == [MIB] * 8
    assert sum(counted) == 8 * MIB + len(b'small')


def test_a_cancel_ends_the_first_hashing_within_a_read(outgoing, path, cancel):
    cancel.is_armed = True
    with pytest.raises(TransferCanceledError):
        outgoing.gather(path)
    assert cancel.count == 2
    assert outgoing.entries == []


def test_a_cancel_ends_the_hashing_of_a_touched_file_within_a_read(outgoing, path, cancel):
    outgoing.gather(path)
    os.utime(path, ns=(1, 1))
    cancel.is_armed = True
    with pytest.raises(TransferCanceledError), outgoing.reading(ROOT):
        pass
    assert cancel.count == 2


def test_a_cancel_ends_the_hashing_of_a_forgotten_file_within_a_read(
    outgoing, path, cancel, monkeypatch
):
    monkeypatch.setattr('degu_rpc.files.content.MAX_REMEMBERED', 1)
    outgoing.gather(path)
    path.with_name('g').write_bytes(b'g')
    outgoing.gather(path.with_name('g'))
    cancel.is_armed = True
    with pytest.raises(TransferCanceledError):
        outgoing.find_manifest(ROOT)
    assert cancel.count == 2


def test_a_file_that_is_only_touched_still_has_its_content(outgoing, path):
    outgoing.gather(path)
    os.utime(path, ns=(1, 1))
    with outgoing.reading(ROOT) as fd:
        assert os.pread(fd, 1, 0) == b'\0'


def test_a_content_that_two_files_have_is_not_hashed_again(outgoing, path, cancel):
    path.with_name('g').write_bytes(CONTENT)
    outgoing.gather(path)
    outgoing.gather(path.with_name('g'))
    cancel.is_armed = True
    assert outgoing.find_manifest(ROOT).root == ROOT
    with outgoing.reading(ROOT):
        pass
    assert cancel.count == 0
