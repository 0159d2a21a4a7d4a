"""degu_rpc.files.conflicts: one copy for each content, under a name that a file system takes."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.conflicts import (
    clean_machine,
    format_conflict,
    identify,
    identify_file,
    identify_symlink,
    keep_beside,
)
from degu_rpc.files.limits import MAX_MACHINE, MAX_NAME
from degu_rpc.files.paths import check_name

DAY_NS = 1_700_000_000 * 10**9  # 2023-11-14
TAG = 'mfrggzdf'
names = st.binary(min_size=1, max_size=MAX_NAME).filter(
    lambda name: name not in {b'.', b'..'} and not set(b'/\0') & set(name)
)
texts = st.text(st.characters(exclude_characters='/\0', exclude_categories=['Cs']), min_size=1)
times = st.integers(-(2**63) * 10**9, 2**63 * 10**9)


@pytest.fixture
def directory(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        (b'a.txt', b'a (conflict 2023-11-14 studio mfrggzdf).txt'),
        (b'a.tar.gz', b'a.tar (conflict 2023-11-14 studio mfrggzdf).gz'),
        (b'a', b'a (conflict 2023-11-14 studio mfrggzdf)'),
        (b'.bashrc', b'.bashrc (conflict 2023-11-14 studio mfrggzdf)'),
        (b'\xff.\xfe', b'\xff (conflict 2023-11-14 studio mfrggzdf).\xfe'),
    ],
)
def test_a_conflict_copy_is_named_by_day_machine_and_content(name, expected):
    assert format_conflict(name, DAY_NS, 'studio', TAG) == expected


@pytest.mark.parametrize(
    ('mtime_ns', 'day'),
    [(-1, b'1970-01-01'), (0, b'1970-01-01'), (2**63 * 10**9, b'9999-12-31')],
)
def test_a_time_without_a_date_of_four_digits_gets_the_nearest(mtime_ns, day):
    assert day in format_conflict(b'a', mtime_ns, 'studio', TAG)


@given(names, times, texts)
def test_any_name_gives_a_name_that_can_stand_in_a_path(name, mtime_ns, machine):
    copy = check_name(format_conflict(name, mtime_ns, clean_machine(machine), TAG))
    assert TAG.encode() in copy
    assert copy != format_conflict(name, mtime_ns, clean_machine(machine), 'aaaaaaaa')


@given(st.text('aé→😀', max_size=200), st.sampled_from(['', '.x', '.jpeg', '.→']))
def test_no_character_is_cut_and_the_extension_stays(stem, extension):
    name = (stem + 'a' + extension).encode()[-MAX_NAME:]
    name = name.decode(errors='ignore').encode()
    copy = format_conflict(name, DAY_NS, 'studio', TAG)
    before, note, after = copy.decode().partition(' (conflict 2023-11-14 studio mfrggzdf)')
    assert note
    assert after == extension
    assert name.decode().startswith(before)
    lost = len(name) - len(extension.encode()) - len(before.encode())
    assert lost == 0 or len(copy) > MAX_NAME - 4


def test_an_extension_that_leaves_no_room_is_no_extension():
    name = b'a.' + b'x' * (MAX_NAME - 2)
    copy = format_conflict(name, DAY_NS, 'studio', TAG)
    assert copy.startswith(b'a.xxx')
    assert copy.endswith(b'xxx (conflict 2023-11-14 studio mfrggzdf)')
    assert len(copy) == MAX_NAME


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('studio', 'studio'),
        ('studio.lan', 'studio.lan'),
        ("Jane's / laptop\n", 'Jane-s---laptop-'),
        ('büro', 'büro'),
        ('\udcff\u202e', '--'),
        ('', 'machine'),
        ('x' * 100, 'x' * MAX_MACHINE),
        ('x' + 'é' * 100, 'x' + 'é' * ((MAX_MACHINE - 1) // 2)),
    ],
)
def test_a_machines_name_is_cleaned_and_bounded(name, expected):
    assert clean_machine(name) == expected
    assert len(clean_machine(name).encode()) <= MAX_MACHINE


# --- on the disk --------------------------------------------------------------------------------


def keep(directory, tmp_path, content, name=b'f.txt'):
    """Displace a file with this content and keep it; return the name of the copy."""
    (tmp_path / 'displaced').write_bytes(content)
    os.utime(tmp_path / 'displaced', ns=(DAY_NS, DAY_NS))
    identity = identify(directory, b'displaced')
    return os.fsdecode(keep_beside(directory, b'displaced', directory, name, 'studio', identity))


def test_one_content_makes_one_copy(tmp_path, directory):
    first = keep(directory, tmp_path, b'mine')
    root = build_manifest(b'mine').root
    assert first == f'f (conflict 2023-11-14 studio {root[:8]}).txt'
    assert keep(directory, tmp_path, b'mine') == first
    assert (tmp_path / 'displaced').exists()
    other = keep(directory, tmp_path, b'theirs')
    assert other != first
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([first, other])


def test_a_copy_that_was_edited_is_not_taken_for_the_content_it_is_named_after(tmp_path, directory):
    first = keep(directory, tmp_path, b'mine')
    (tmp_path / first).write_bytes(b'edited')
    second = keep(directory, tmp_path, b'mine')
    assert second == f'f (conflict 2023-11-14 studio {build_manifest(b"mine").root}).txt'
    (tmp_path / second).unlink()
    (tmp_path / second).mkdir()
    third = keep(directory, tmp_path, b'mine')
    assert (tmp_path / first).read_bytes() == b'edited'
    assert (tmp_path / third).read_bytes() == b'mine'


def test_a_symlink_is_not_the_file_that_holds_its_text(tmp_path, directory):
    (tmp_path / 'file').write_bytes(b'text')
    (tmp_path / 'link').symlink_to('text')
    assert identify(directory, b'file') == identify_file(build_manifest(b'text').root)
    assert identify(directory, b'link') == identify_symlink(b'text')
    assert identify(directory, b'file') != identify(directory, b'link')


@pytest.mark.parametrize('make', [os.mkdir, os.mkfifo])
def test_what_has_no_root_is_kept_under_a_name_of_its_own(tmp_path, directory, make):
    copies = set()
    for _ in range(2):
        make(tmp_path / 'displaced')
        assert identify(directory, b'displaced') is None
        copies.add(keep_beside(directory, b'displaced', directory, b'f', 'studio', None))
    assert {os.fsencode(path.name) for path in tmp_path.iterdir()} == copies
    assert len(copies) == 2


def test_a_file_that_may_not_be_read_has_no_root(tmp_path, directory):
    (tmp_path / 'secret').write_bytes(b'mine')
    (tmp_path / 'secret').chmod(0)
    nobody = 65534
    is_root = os.geteuid() == 0
    if is_root:  # who may read anything
        os.chown(tmp_path, nobody, nobody)
        os.seteuid(nobody)
    try:
        assert identify(directory, b'secret') is None
    finally:
        if is_root:
            os.seteuid(0)
