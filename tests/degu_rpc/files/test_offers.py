"""degu_rpc.files.offers: what is offered is believed only once it was checked; names are free."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu_rpc.errors import ListingError, PathError
from degu_rpc.files import offers
from degu_rpc.files.blocks import build_manifest, is_root
from degu_rpc.files.listing import Entry, Kind
from degu_rpc.files.offers import (
    check_offer,
    derive_transfer,
    find_place,
    format_ranges,
    free_names,
    parse_ranges,
)
from degu_rpc.files.paths import MAX_NAME

ROOT = build_manifest(b'content').root
OTHER = build_manifest(b'other').root


def file(path, root=ROOT, size=7):
    return Entry(path, Kind.FILE, size=size, root=root)


def directory(path):
    return Entry(path, Kind.DIRECTORY)


def symlink(path, target='x'):
    return Entry(path, Kind.SYMLINK, target=target)


# --- what is offered ----------------------------------------------------------------------------


def test_an_offer_is_a_tree_with_its_files_by_content():
    tree = check_offer(
        [
            file('a'),
            directory('d'),
            file('d/b'),
            file('d/c', OTHER, 5),
            symlink('d/l'),
            symlink('l'),
        ]
    )
    assert list(tree.directories) == [(b'd',)]
    assert {root: [path for path, _ in files] for root, files in tree.contents.items()} == {
        ROOT: [(b'a',), (b'd', b'b')],
        OTHER: [(b'd', b'c')],
    }
    assert [path for path, _ in tree.symlinks] == [(b'd', b'l'), (b'l',)]
    assert sorted(tree.tops) == [(b'a',), (b'd',), (b'l',)]
    assert (tree.files, tree.size) == (5, 19)


@pytest.mark.parametrize(
    ('entries', 'reason'),
    [
        ([], 'nothing is in it'),
        ([directory('')], 'has no name'),
        ([file('')], 'has no name'),
        ([file('a'), file('a')], 'twice'),
        ([file('a'), directory('a')], 'twice'),
        ([file('a%20'), file('a ')], 'not a percent-encoded'),
        ([file('%61'), file('a')], 'twice'),
        ([file('d/a')], 'without its directory'),
        ([file('d/a'), directory('d')], 'without its directory'),
        ([symlink('a', '/etc'), file('a/passwd')], 'without its directory'),
        ([file('a'), file('a/b')], 'without its directory'),
        ([file('a', '')], 'no file with its root'),
        ([file('a', 'x' * 52)], 'no file with its root'),
        ([file('a', ROOT.upper())], 'no file with its root'),
        ([file('a'), file('b', ROOT, 8)], 'the root of another size'),
        ([Entry('a', Kind.SKIPPED)], 'no file with its root'),
        ([Entry('a', Kind.DIRECTORY, size=1)], 'no file and has a size'),
        ([Entry('a', Kind.SYMLINK, target='b', size=1)], 'no file and has a size'),
        ([symlink('a', '')], '1 to 4095 bytes'),
        ([symlink('a', 'x%00')], '1 to 4095 bytes'),
    ],
)
def test_what_makes_no_sense_is_refused(entries, reason):
    with pytest.raises((ListingError, PathError), match=reason):
        check_offer(entries)


@pytest.mark.parametrize(
    'path',
    [
        *[
            '..',
            '.',
            '../a',
            '%2e%2e',
            '%2E%2E/a',
            'd/..',
            'd/%2e',
            '/a',
            'd//a',
            'a%2fb',
            'd/a%00',
        ],
        *['%', '.degu', '.DeGu', 'd/.degu', '%2edegu', 'x' * (MAX_NAME + 1), 'd/', '/'],
    ],
)
@pytest.mark.parametrize('make', [file, directory, symlink])
def test_i6_an_offer_cannot_name_a_path_outside(path, make):
    with pytest.raises((ListingError, PathError)):
        check_offer([directory('d'), make(path)])


@pytest.mark.parametrize(
    ('name', 'limit', 'reason'),
    [
        ('MAX_OFFER_ENTRIES', 3, 'more than 3 entries'),
        ('MAX_OFFER_NAMES', 2, 'more than 2 names at the top'),
        ('MAX_OFFER_SIZE', 20, 'more than 20 bytes'),
        ('MAX_OFFER_TEXT', 4 * (2 + 52 + 32), 'bytes of text'),
    ],
)
def test_an_offer_has_limits(monkeypatch, name, limit, reason):
    entries = [directory('d'), file('a0'), file('d/b'), file('d/c')]
    check_offer(entries)
    monkeypatch.setattr(offers, name, limit)
    with pytest.raises(ListingError, match=reason):
        check_offer([*entries, file('e0')])


def test_a_transfer_is_named_by_all_that_is_offered():
    entries = [directory('d'), file('d/a'), symlink('l')]
    name = derive_transfer(entries)
    assert is_root(name)
    assert check_offer(entries).transfer == name == derive_transfer(iter(entries))
    changes = [{'mtime_ns': 1}, {'mode': 0o600}, {'path': 'x'}, {'size': 1}, {'target': 'y'}]
    others = {
        derive_transfer([*entries[:place], msgspec.structs.replace(entries[place], **change)])
        for place in range(3)
        for change in changes
    }
    assert len(others | {name, derive_transfer(entries[:2])}) == 17


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'kind', 'second'),
    [
        (b'talk.pdf', Kind.FILE, b'talk (2).pdf'),
        (b'.bashrc', Kind.FILE, b'.bashrc (2)'),
        (b'v1.2', Kind.DIRECTORY, b'v1.2 (2)'),
        (b'v1.2', Kind.SYMLINK, b'v1 (2).2'),
        (b'a' * 255, Kind.FILE, b'a' * 251 + b' (2)'),
        (b'a' * 251 + b'.txt', Kind.FILE, b'a' * 247 + b' (2).txt'),
        ('ü'.encode() * 127, Kind.FILE, 'ü'.encode() * 125 + b' (2)'),
        (b'\xff' * 255, Kind.FILE, b'\xff' * 251 + b' (2)'),
    ],
)
def test_a_name_that_is_taken_gets_a_number(name, kind, second):
    assert list(itertools.islice(free_names(name, kind), 2)) == [name, second]


NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b'/' not in name and b'\0' not in name and name not in {b'.', b'..'}
)


@given(NAMES, st.sampled_from([Kind.FILE, Kind.DIRECTORY]))
def test_names_to_try_are_names_and_differ(name, kind):
    names = list(itertools.islice(free_names(name, kind), 12))
    assert len(set(names)) == 12
    assert all(0 < len(found) <= MAX_NAME and b'/' not in found for found in names)


def test_no_numbered_name_is_tried_twice_for_names_that_are_cut_to_the_same_stem():
    tried = {}
    numbered = []
    for number in range(30):
        _, *names = itertools.islice(free_names(b'a' * 253 + b'%02d' % number, Kind.FILE, tried), 9)
        numbered += names
    assert len(set(numbered)) == len(numbered) == 240


def test_a_place_has_the_names_that_were_given():
    placed = {(b'd',): b'd (2)', (b'd', b'a'): b'x', (b'e', b'd'): b'y'}
    assert find_place((b'd', b'a'), placed) == (b'd (2)', b'x')
    assert find_place((b'd', b'b', b'a'), placed) == (b'd (2)', b'b', b'a')
    assert find_place((b'e', b'd', b'f'), placed) == (b'e', b'y', b'f')
    assert find_place((), placed) == ()


# --- ranges -------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 2**60), st.integers(1, 2**60))))
def test_ranges_that_are_written_are_read_again(parts):
    ranges = [(start, start + size) for start, size in parts]
    assert parse_ranges(format_ranges(ranges)) == ranges


@pytest.mark.parametrize(
    'text', ['-', '1', '1-', '-1', '1-2,', 'a-b', '1-2-3', ' 1-2', '+1-2', '²-³']
)
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ListingError):
        parse_ranges(text)


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize('offer_id', ['short', 'aaaabbbbc', 'AAAABBBB', 'a; rm -r', 'aaaabbbb\n'])
def test_the_id_that_somebody_is_to_type_can_be_nothing_but_an_id(offer_id):
    assert msgspec.convert({'offer_id': 'aaaabbbb'}, offers.Answer).offer_id == 'aaaabbbb'
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({'offer_id': offer_id}, offers.Answer)
