"""degu_rpc.files.arrival: contents that come in while others close, give up and edit."""

from __future__ import annotations

import errno
import os

import pytest

from degu_rpc.errors import NoSpaceError
from degu_rpc.files import Decision, Inbox, intake
from degu_rpc.files import arrival as arrival_module
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.listing import Entry, Kind
from degu_rpc.files.offers import Item, check_offer
from degu_rpc.files.space import Reservation
from degu_rpc.peers.caller import Peer, PeerKind

BLOCK = 128 * 1024
LARGE = bytes(range(256)) * (3 * BLOCK // 256) + b'end'
MANIFEST = build_manifest(LARGE)
ROOT = MANIFEST.root
PEER = Peer(PeerKind.MACHINE, 'someone', 'machine', 'someone', frozenset({'peer'}), None, None)


def file(path, content=LARGE):
    return Entry(path, Kind.FILE, size=len(content), mode=0o644, root=build_manifest(content).root)


@pytest.fixture
def here(tmp_path):
    directory = tmp_path / 'here'
    directory.mkdir()
    return directory


@pytest.fixture
def inbox(here):
    with Inbox(here, lambda offer: Decision.ACCEPT) as app:
        yield app


def activate(inbox, *entries):
    """Return the arrival of a new offer that was accepted, not prepared yet."""
    tree = check_offer(entries)
    inbox._intake.find_record(PEER, 'someone', tree.transfer, tree)
    return inbox._intake.activate('someone', tree.transfer, tree)


def prepare(inbox, *entries):
    arrival = activate(inbox, *entries)
    for _ in arrival.prepare():
        pass
    return arrival


def fill(arrival):
    for _ in arrival.open_content(ROOT, MANIFEST):
        pass
    with arrival.use_content(ROOT) as partial:
        for index in range(MANIFEST.block_count):
            start, stop = MANIFEST.block_range(index)
            arrival.write(partial, index, LARGE[start:stop])


def open_descriptors():
    return len(os.listdir('/proc/self/fd'))


def in_private(here, name):
    return sorted(os.listdir(here / '.degu' / name))


def test_a_block_that_comes_twice_gives_its_room_back_once(inbox):
    arrival = prepare(inbox, file('a'))
    fill(arrival)
    fill(arrival)
    assert arrival._reservation._amount.written == len(LARGE)


@pytest.mark.parametrize('edit', ['change', 'truncate'])
def test_i10_an_edit_of_the_first_file_does_not_get_into_its_copies(inbox, here, monkeypatch, edit):
    """Nobody edits what is in tmp/: the verified content has no other name while it is copied."""
    monkeypatch.setattr(arrival_module, 'BATCH_SIZE', 1)  # each is placed as soon as it is there
    names = ['a', 'b', 'c']
    arrival = prepare(inbox, *map(file, names))
    fill(arrival)
    edited = set()
    for _ in arrival.place_content(ROOT):
        for name in set(os.listdir(here)) - edited - {'.degu'}:
            assert (here / name).read_bytes() == LARGE
            if edit == 'change':
                with (here / name).open('r+b') as opened:
                    opened.write(b'edited')
            else:
                os.truncate(here / name, 1000)
            edited.add(name)
    assert edited == set(names)
    assert arrival.wanted() == []


@pytest.mark.parametrize('can_copy', [True, False])
def test_a_source_that_becomes_shorter_ends_its_copies(inbox, here, monkeypatch, can_copy):
    if not can_copy:
        monkeypatch.setattr(os, 'copy_file_range', _no_copy)
    arrival = prepare(inbox, file('a'), file('b'))
    fill(arrival)
    (name,) = [name for name in in_private(here, 'tmp') if name.count('.') == 1]
    os.truncate(here / '.degu' / 'tmp' / name, 1000)
    before = open_descriptors()
    with pytest.raises(OSError, match='became shorter'):
        for _ in arrival.place_content(ROOT):
            pass
    assert open_descriptors() == before - 1  # the temporary file is closed
    assert not (here / 'a').exists()
    fill(arrival)
    for _ in arrival.place_content(ROOT):
        pass
    assert (here / 'a').read_bytes() == (here / 'b').read_bytes() == LARGE


def _no_copy(*args):
    raise OSError(errno.EXDEV, 'Invalid cross-device link')


def test_a_content_that_is_being_placed_is_not_given_up(inbox, here):
    arrival = prepare(inbox, file('a'), file('b'))
    fill(arrival)
    placing = arrival.place_content(ROOT)
    assert next(placing) is None
    arrival.give_up(ROOT)
    assert arrival.wanted() == [ROOT]
    assert list(placing)[-1] == (ROOT, True)
    assert (here / 'a').read_bytes() == (here / 'b').read_bytes() == LARGE
    assert arrival.wanted() == []


def test_who_goes_away_while_a_content_is_placed_leaves_no_descriptor(inbox):
    arrival = prepare(inbox, file('a'), file('b'))
    fill(arrival)
    before = open_descriptors()
    placing = arrival.place_content(ROOT)
    next(placing)
    placing.close()
    assert open_descriptors() == before - 1
    fill(arrival)
    assert list(arrival.place_content(ROOT))[-1] == (ROOT, True)


@pytest.mark.parametrize('size', [len(LARGE), 7])
def test_an_error_while_the_room_is_counted_leaves_no_descriptor(inbox, monkeypatch, size):
    content = LARGE[:size]
    item = Item(build_manifest(content).root, content)
    arrival = prepare(inbox, file('a', content), file('b', content))
    if size == len(LARGE):
        fill(arrival)
    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(Reservation, 'shrink', _fail)
        place = arrival.place_content(ROOT) if size == len(LARGE) else arrival.place_small([item])
        with pytest.raises(OSError, match='the disk'):
            list(place)
    assert open_descriptors() == before - (size == len(LARGE))


def _fail(*args):
    raise OSError(errno.EIO, 'the disk fails')


# --- what takes long ----------------------------------------------------------------------------


def test_whoever_begins_again_hears_something_while_what_is_here_is_hashed(inbox, here):
    """Without a note all of it is hashed; a sender would give up a connection that says nothing."""
    arrival = prepare(inbox, file('a'))
    fill(arrival)
    arrival.close()
    opening = prepare(inbox, file('b')).open_content(ROOT, MANIFEST)
    assert sum(1 for _ in opening) == MANIFEST.block_count


def test_what_is_closed_while_a_content_is_opened_leaves_no_descriptor(inbox, here):
    arrival = prepare(inbox, file('a'))
    before = open_descriptors()
    opening = arrival.open_content(ROOT, MANIFEST)
    next(opening)
    arrival.close()
    assert list(opening) != []
    assert open_descriptors() < before  # the reservation is closed as well
    with arrival.use_content(ROOT) as partial:
        assert partial is None


# --- what is let go -----------------------------------------------------------------------------


def test_the_room_of_what_rests_is_free_for_the_next_offer(tiny, monkeypatch):
    with Inbox(tiny, lambda offer: Decision.ACCEPT) as inbox:
        size = 1024 * 1024 + 4 * BLOCK
        large = Entry('a', Kind.FILE, size=size, mode=0o644, root='a' * 52)
        other = Entry('b', Kind.FILE, size=size, mode=0o644, root='q' * 52)
        prepare(inbox, large)
        with pytest.raises(NoSpaceError):
            prepare(inbox, other)
        monkeypatch.setattr(intake, 'MAX_REST_S', -1.0)
        assert prepare(inbox, other).wanted() == ['q' * 52]


def test_what_is_closed_while_it_is_prepared_reserves_nothing(inbox, here):
    """As a fifth offer of the user, a rejection or the end of the inbox may do."""
    arrival = activate(inbox, file('a'), file('b'))
    before = open_descriptors()
    preparing = arrival.prepare()
    next(preparing)
    inbox.reject(inbox.offers()[0].offer_id)
    for _ in preparing:
        pass
    assert open_descriptors() == before
    assert in_private(here, 'reserved') == ['lock']
