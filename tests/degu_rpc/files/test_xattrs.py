"""degu_rpc.files.xattrs: `user.` attributes are equal on both sides, and no others are touched."""

from __future__ import annotations

import errno
import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu_rpc.errors import ListingError
from degu_rpc.files.blocks import SMALL_SIZE
from degu_rpc.files.limits import (
    MAX_FIELDS,
    MAX_PACKED,
    MAX_PATH_TEXT,
    MAX_RECORD,
    MAX_XATTR_NAME,
    MAX_XATTRS,
)
from degu_rpc.files.listing import Entry, Kind
from degu_rpc.files.packs import Packed
from degu_rpc.files.records import Media, format_record
from degu_rpc.files.xattrs import format_xattrs, parse_xattrs, read_xattrs, write_xattrs

names = st.binary(min_size=1, max_size=MAX_XATTR_NAME).filter(lambda name: b'\0' not in name)
xattrs = st.dictionaries(names, st.binary(max_size=100), max_size=5)


@pytest.fixture
def fd(tmp_path):
    """An open file on a file system that has attributes, and room for many where there is one."""
    for directory in ('/dev/shm', tmp_path):
        with tempfile.TemporaryFile(dir=directory) as file:
            if can_hold(file.fileno(), {'a': b''}):
                os.removexattr(file.fileno(), 'user.a')
                yield file.fileno()
                return
    pytest.skip('no file system here has extended attributes')


def can_hold(fd, attributes):
    """Set attributes; False where the file system has none, or no room for them."""
    try:
        for name, value in attributes.items():
            os.setxattr(fd, f'user.{name}', value)
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.ENOSPC}:
            return False
        raise
    return True


def test_what_was_written_is_read(fd):
    given_ = {b'plain': b'value', b'\xff\n': b'\0\xff', b'empty': b'', b'a.b': b'x' * 1000}
    write_xattrs(fd, given_)
    assert read_xattrs(fd) == given_
    assert os.getxattr(fd, 'user.plain') == b'value'


def test_both_are_equal_in_the_end(fd):
    write_xattrs(fd, {b'same': b'1', b'changes': b'old', b'goes': b'3'})
    write_xattrs(fd, {b'same': b'1', b'changes': b'new', b'comes': b'4'})
    assert read_xattrs(fd) == {b'same': b'1', b'changes': b'new', b'comes': b'4'}
    write_xattrs(fd, {})
    assert os.listxattr(fd) == []


def test_attributes_that_are_equal_are_not_written_again(fd):
    write_xattrs(fd, {b'a': b'1'})
    before = os.fstat(fd).st_ctime_ns
    write_xattrs(fd, {b'a': b'1'})
    assert os.fstat(fd).st_ctime_ns == before


def test_attributes_of_the_system_are_neither_read_nor_touched(fd):
    if os.geteuid() != 0:
        pytest.skip('setting a trusted attribute needs privileges')
    os.setxattr(fd, 'trusted.a', b'mine')
    write_xattrs(fd, {b'a': b'1'})
    assert read_xattrs(fd) == {b'a': b'1'}
    write_xattrs(fd, {})
    assert os.getxattr(fd, 'trusted.a') == b'mine'


@pytest.mark.parametrize('name', [b'security.capability', b'trusted.a', b'system.posix_acl_access'])
def test_no_name_leads_out_of_user(fd, name):
    write_xattrs(fd, {name: b'\1' * 20})
    assert os.listxattr(fd) == ['user.' + name.decode()]


def test_what_does_not_fit_is_left_out_whole_and_not_removed(fd):
    sizes = {'a': 50, 'b': MAX_XATTRS - 100, 'c': 200, 'd': 10}
    if not can_hold(fd, {name: name.encode() * size for name, size in sizes.items()}):
        pytest.skip('this file system has no room for so large attributes')
    assert {name: len(value) for name, value in read_xattrs(fd).items()} == {
        b'a': 50,
        b'b': MAX_XATTRS - 100,
        b'd': 10,
    }
    write_xattrs(fd, {b'a': b'new'})
    assert read_xattrs(fd) == {b'a': b'new', b'c': b'c' * 200}


def test_only_so_many_attributes_are_read(fd):
    if not can_hold(fd, {f'{number:03}': b'' for number in range(MAX_FIELDS + 10)}):
        pytest.skip('this file system has no room for so many attributes')
    assert list(read_xattrs(fd)) == [b'%03d' % number for number in range(MAX_FIELDS)]


def test_an_attribute_without_room_is_no_error(fd):
    """64 KiB is what Linux takes; what a file system takes is less, or that."""
    write_xattrs(fd, {b'a': b'1', b'large': b'x' * (64 * 1024 + 1), b'z': b'2'})
    assert read_xattrs(fd) == {b'a': b'1', b'z': b'2'}


def test_a_file_system_without_attributes_is_no_error():
    fd = os.open('/proc/self/stat', os.O_RDONLY)
    try:
        with pytest.raises(OSError, match='not supported'):
            os.setxattr(fd, 'user.a', b'1')
        write_xattrs(fd, {b'a': b'1'})
        assert not read_xattrs(fd)
    finally:
        os.close(fd)


# --- as records -----------------------------------------------------------------------------------


@given(st.none() | xattrs)
def test_parse_of_format_is_identity(given_):
    assert parse_xattrs(format_xattrs(given_)) == given_


@pytest.mark.parametrize('name', ['', '%00', 'a%00b', 'a' * (MAX_XATTR_NAME + 1)])
def test_a_name_that_linux_does_not_hold_is_refused(name):
    with pytest.raises(ListingError, match='for a name'):
        parse_xattrs({name: b''})


@pytest.mark.parametrize('media', list(Media))
@pytest.mark.parametrize('count', [1, MAX_FIELDS])
@pytest.mark.parametrize('names_only', [True, False])
def test_the_most_that_is_read_fits_in_a_record(media, count, names_only):
    if names_only:
        size = MAX_XATTRS // MAX_FIELDS
        found = {b'%04d' % number + b'\xff' * (size - 4): b'' for number in range(MAX_FIELDS)}
    else:
        value = bytes(MAX_XATTRS // count - 4)
        found = {b'%04d' % number: value for number in range(count)}
    record = format_xattrs(found)
    path = 'a' * MAX_PATH_TEXT
    entry = Entry(path, Kind.FILE, 2**63 - 1, -(2**63), 0o777, '', 'a' * 52, None, record)
    assert len(format_record(entry, media)) <= MAX_RECORD
    packed = Packed(200, 'a' * 52, -(2**63), bytes(SMALL_SIZE), record)
    assert len(format_record(packed, media)) <= MAX_PACKED
