"""degu_rpc.files.records and listing: entries survive the way, anything else is a ListingError."""

from __future__ import annotations

import threading
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu_rpc.errors import ListingError
from degu_rpc.files.limits import MAX_PACKED, MAX_RECORD
from degu_rpc.files.listing import Entry, Kind, Problem, parse_listing
from degu_rpc.files.records import HEARTBEAT, Media, choose_media, format_record, parse_records

texts = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)
entries = st.builds(
    Entry,
    path=texts,
    kind=st.sampled_from(Kind),
    size=st.integers(0, 2**63 - 1),
    mtime_ns=st.integers(-(2**63), 2**63 - 1),
    mode=st.integers(0, 0o777),
    target=texts,
    root=texts,
    problem=st.none() | st.sampled_from(Problem),
    xattrs=st.none() | st.dictionaries(texts, st.binary(max_size=30), max_size=3),
)
medias = st.sampled_from(Media)
MEDIAS = list(Media)


def cut(data, step):
    return [data[start : start + step] for start in range(0, len(data), step)]


@given(st.lists(entries, max_size=5), medias, st.integers(1, 300))
def test_parse_of_format_is_identity_however_it_is_cut(listed, media, step):
    records = [format_record(entry, media) + HEARTBEAT[media] for entry in listed]
    assert list(parse_listing(cut(b''.join(records), step), media.value)) == listed


@given(st.lists(st.binary(max_size=50), max_size=5), medias)
def test_any_bytes_give_entries_or_a_listing_error(pieces, media):
    try:
        found = list(parse_listing(pieces, media.value))
    except ListingError:
        return
    assert all(isinstance(entry, Entry) for entry in found)


@pytest.mark.parametrize('media', MEDIAS)
def test_an_end_in_the_middle_of_a_record_is_refused(media):
    record = format_record(Entry('a', Kind.FILE, size=7), media)
    for end in range(1, len(record)):
        with pytest.raises(ListingError):
            list(parse_listing([record[:end]], media.value))


@pytest.mark.parametrize(
    'line',
    [
        b'{"path":"a"}',
        b'{"path":"a","kind":"door"}',
        b'{"path":"a b","kind":"file"}',
        b'{"path":"\\u001b[2J","kind":"file"}',
        b'{"path":"a","kind":"file","size":-1}',
        b'{"path":"a","kind":"file","size":9223372036854775808}',
        b'{"path":"a","kind":"file","size":1.5}',
        b'{"path":"a","kind":"file","size":true}',
        b'{"path":"a","kind":"file","mode":4095}',
        b'{"path":"a","kind":"file","mtime_ns":9223372036854775808}',
        b'{"path":5,"kind":"file"}',
        b'[]',
        b'null',
        b'\xff',
        b'{"x":' + b'[' * 60_000,
    ],
)
def test_a_record_that_is_no_entry_is_refused(line):
    """In a thread, whose stack is small: nesting must not end the process."""
    caught = []

    def parse():
        try:
            list(parse_listing([line + b'\n'], Media.JSON.value))
        except ListingError as error:
            caught.append(error)

    thread = threading.Thread(target=parse)
    thread.start()
    thread.join()
    assert len(caught) == 1


@pytest.mark.parametrize(
    'record',
    [
        b'\x81\xa1x' * 5000,
        b'\xdd\xff\xff\xff\xff',
        b'\xc6\xff\xff\xff\xff',
        b'\x80',
        b'\xc1',
        b'\x07',
    ],
)
def test_a_msgpack_bomb_is_refused(record):
    with pytest.raises(ListingError):
        list(parse_listing([record], Media.MSGPACK.value))


@pytest.mark.parametrize('media', MEDIAS)
def test_a_record_without_end_is_refused_before_it_fills_the_memory(media):
    start = b'{"path":"' if media is Media.JSON else b'\x81\xa4path\xdb\x7f\xff\xff\xff'
    taken = 0

    def pieces():
        nonlocal taken
        yield start
        while True:
            taken += 1000
            yield b'a' * 1000

    with pytest.raises(ListingError):
        list(parse_listing(pieces(), media.value))
    assert taken <= 2 * MAX_RECORD


def test_a_record_in_single_bytes_is_not_copied_again_for_each():
    """A quarter of a mebibyte copied for each of its bytes would be 34 GB."""
    entry = Entry('a' * (MAX_PACKED - 100), Kind.FILE)
    data = format_record(entry, Media.JSON)
    pieces = (data[index : index + 1] for index in range(len(data)))
    started = process_time()
    assert list(parse_records(pieces, Media.JSON.value, Entry, MAX_PACKED)) == [entry]
    assert process_time() - started < 2.0


@pytest.mark.parametrize('content_type', [None, 'text/html', 'application/json', 5])
def test_another_content_type_is_refused(content_type):
    with pytest.raises(ListingError, match='content type'):
        list(parse_listing([], content_type))


@pytest.mark.parametrize(
    ('accept', 'media'),
    [
        ('', Media.JSON),
        ('*/*', Media.JSON),
        ('application/msgpack', Media.MSGPACK),
        ('text/html, Application/MsgPack;q=0.9', Media.MSGPACK),
        ('application/json', Media.JSON),
    ],
)
def test_msgpack_is_for_those_who_ask(accept, media):
    assert choose_media(accept) is media


@pytest.mark.parametrize('media', MEDIAS)
def test_more_heartbeats_than_allowed_are_refused(media):
    record = format_record(Entry('a', Kind.FILE), media)

    def parse(count):
        pieces = [HEARTBEAT[media]] * count + [record]
        return list(parse_records(pieces, media.value, Entry, max_heartbeats=3))

    assert len(parse(3)) == 1
    with pytest.raises(ListingError, match='more than 3 records that say nothing'):
        parse(4)
