"""Both codecs: round trips of every type, and what is refused before it can hurt."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import math
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu_rpc.errors import CodecError
from degu_rpc.rpc.codec import (
    CODECS,
    JSON,
    MSGPACK,
    Codec,
    build_error,
    build_shape,
    format_value,
    parse_value,
)
from degu_rpc.rpc.limits import MAX_FAULT_LENGTH, MAX_FAULTS, MAX_NESTING, MAX_VALUES

both = pytest.mark.parametrize('codec', CODECS, ids=lambda codec: codec.name)


class Color(enum.Enum):
    RED = 'red'
    BLUE = 'blue'


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: float


@dataclasses.dataclass
class Stat:
    path: str
    size: int
    mtime: datetime
    tags: list[str] = dataclasses.field(default_factory=list)
    next: Stat | None = None


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float


# --- every type through both codecs --------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=['Cs']))
int64s = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
zones = st.sampled_from(
    [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=8))]
)
datetimes = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=zones)
stats = st.builds(
    Stat,
    path=texts,
    size=int64s,
    mtime=datetimes,
    tags=st.lists(texts, max_size=3),
    next=st.none() | st.builds(Stat, path=texts, size=int64s, mtime=datetimes),
)
TYPES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    'none': (None, st.none()),
    'bool': (bool, st.booleans()),
    'int': (int, int64s),
    'float': (float, floats),
    'str': (str, texts),
    'bytes': (bytes, st.binary()),
    'datetime': (datetime, datetimes),
    'date': (date, st.dates()),
    'time': (time, st.times(timezones=st.none() | zones)),
    'timedelta': (timedelta, st.timedeltas(timedelta(days=-99999), timedelta(days=99999))),
    'uuid': (UUID, st.uuids()),
    'decimal': (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    'enum': (Color, st.sampled_from(Color)),
    'int enum': (Level, st.sampled_from(Level)),
    'named tuple': (Point, st.builds(Point, int64s, floats)),
    'dataclass': (Stat, stats),
    'struct union': (Circle | Square, st.builds(Circle, floats) | st.builds(Square, floats)),
    'union': (int | str | None, int64s | texts | st.none()),
    'literal': (Literal['a', 1], st.sampled_from(['a', 1])),
    'constrained': (Annotated[int, msgspec.Meta(ge=0, le=9)], st.integers(0, 9)),
    'list': (list[Stat], st.lists(stats, max_size=3)),
    'set': (frozenset[str], st.frozensets(texts)),
    'bytes set': (set[bytes], st.sets(st.binary())),
    'enum set': (set[Color | Level], st.sets(st.sampled_from([*Color, *Level]))),
    'tuple': (tuple[bytes, datetime], st.tuples(st.binary(), datetimes)),
    'str keys': (dict[str, bytes], st.dictionaries(texts, st.binary())),
    'enum keys': (dict[Color, int], st.dictionaries(st.sampled_from(Color), int64s)),
    'literal keys': (
        dict[Literal['a', 1], int],
        st.dictionaries(st.sampled_from(['a', 1]), int64s),
    ),
    'any': (Any, st.dictionaries(texts, st.none() | st.booleans() | int64s | floats | texts)),
}


@both
@pytest.mark.parametrize('name', TYPES)
@given(data=st.data())
def test_round_trip_is_identity(codec: Codec, name: str, data: st.DataObject) -> None:
    annotation, values = TYPES[name]
    shape = build_shape(annotation)
    value = data.draw(values)
    message = format_value(value, shape, codec)
    back = parse_value(message, shape, codec)
    assert back == value
    assert type(back) is type(value)
    # 1.5 is not 1.50, 0.0 is not -0.0, and True is not 1: written again, they would differ.
    if 'set' not in name:  # which has no order
        assert format_value(back, shape, codec) == message


@given(st.integers(-(10**300), 10**300))
def test_json_integers_of_any_size_are_exact(value: int) -> None:
    assert JSON.decode(JSON.encode(value)) == value


@pytest.mark.parametrize('value', [2**64, -(2**63) - 1, 10**40])
def test_msgpack_refuses_to_write_an_integer_beyond_64_bits(value: int) -> None:
    with pytest.raises(CodecError, match='64 bits use JSON'):
        MSGPACK.encode([value])


def test_wire_forms_are_the_documented_ones() -> None:
    moment = datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC)
    values = [b'\x00\xff', moment, date(2024, 2, 3), timedelta(days=1, seconds=1), Decimal('1.50')]
    assert json.loads(JSON.encode(values)) == [
        'AP8=',
        '2024-02-03T04:05:06Z',
        '2024-02-03',
        'P1DT1S',
        '1.50',
    ]
    assert msgpack.unpackb(MSGPACK.encode(values)) == [
        b'\x00\xff',
        msgpack.Timestamp.from_datetime(moment),
        '2024-02-03',
        'P1DT1S',
        '1.50',
    ]


# --- strict --------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ('annotation', 'plain', 'reason'),
    [
        (int, '1', 'expected int, got str'),
        (int, True, 'expected int, got bool'),
        (int, 1.0, 'expected int, got float'),
        (str, 1, 'expected str, got int'),
        (bool, 1, 'expected bool, got int'),
        (Color, 'green', "invalid enum value 'green'"),
        (Literal['a'], 'b', "invalid enum value 'b'"),
        (timedelta, 5, 'expected duration, got int'),
        (datetime, 5, 'expected datetime, got int'),
        (UUID, 'x', 'invalid UUID'),
        (Annotated[int, msgspec.Meta(le=9)], 10, 'expected int <= 9'),
    ],
)
def test_value_of_another_type_is_refused(
    codec: Codec, annotation: Any, plain: Any, reason: str
) -> None:
    with pytest.raises(CodecError) as caught:
        parse_value(codec.encode(plain), build_shape(annotation), codec)
    assert caught.value.faults[0].path == '$'
    assert caught.value.faults[0].reason.startswith(reason)


@both
def test_fault_has_the_path_of_the_value(codec: Codec) -> None:
    data = codec.encode({'path': '/a', 'size': 1, 'mtime': datetime.now(UTC), 'tags': ['a', 1]})
    with pytest.raises(CodecError) as caught:
        parse_value(data, build_shape(Stat), codec)
    assert caught.value.faults == (('$.tags[1]', 'expected str, got int'),)


@both
def test_fault_in_a_key_says_so(codec: Codec) -> None:
    with pytest.raises(CodecError, match=r"^\$: a key: invalid enum value 'x'$"):
        parse_value(codec.encode({'x': 1}), build_shape(dict[Color, int]), codec)


@both
def test_unknown_fields_of_a_dataclass_are_ignored(codec: Codec) -> None:
    @dataclasses.dataclass
    class Small:
        a: int

    assert parse_value(codec.encode({'a': 1, 'b': 2}), build_shape(Small), codec) == Small(1)


def test_msgpack_bytes_are_not_taken_from_base64() -> None:
    with pytest.raises(CodecError, match='expected bytes, got str'):
        parse_value(MSGPACK.encode('YQ=='), build_shape(bytes), MSGPACK)


@both
def test_datetime_without_a_time_zone_is_refused_by_the_sender(codec: Codec) -> None:
    value = Stat('/a', 1, datetime(2024, 1, 1, tzinfo=UTC), [], Stat('/b', 1, datetime(2024, 1, 1)))  # noqa: DTZ001, E501, RUF100  # what is tested
    with pytest.raises(CodecError, match=r'^\$\.next\.mtime: expected datetime with a time zone'):
        format_value(value, build_shape(Stat), codec)


def test_datetime_without_a_time_zone_is_refused_by_the_reader() -> None:
    with pytest.raises(CodecError, match=r'^\$\[0\]: expected datetime with a time zone'):
        parse_value(b'["2024-01-01T00:00:00"]', build_shape(list[datetime]), JSON)
    with pytest.raises(CodecError, match=r'^\$\[0\]: expected datetime, got str'):
        parse_value(MSGPACK.encode(['2024-01-01T00:00:00']), build_shape(list[datetime]), MSGPACK)


@both
@pytest.mark.parametrize('value', [object(), {(1, 2): 3}, '\ud800', {'\ud800': 1}, iter([1])])
def test_value_that_cannot_travel_is_refused_by_the_sender(codec: Codec, value: Any) -> None:
    with pytest.raises(CodecError, match='cannot be written as'):
        codec.encode(value)


@both
def test_value_that_contains_itself_is_refused(codec: Codec) -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(CodecError, match='recursion'):
        codec.encode(value)


@both
def test_value_that_cannot_travel_inside_a_dated_type_is_refused(codec: Codec) -> None:
    with pytest.raises(CodecError, match='cannot travel'):
        format_value([object()], build_shape(list[datetime | None]), codec)


@pytest.mark.parametrize('value', [math.nan, math.inf, [None, -math.inf], Point(1, math.nan)])
def test_json_refuses_to_write_nan_and_infinity(value: Any) -> None:
    with pytest.raises(CodecError, match='cannot be written as JSON'):
        JSON.encode(value)


@both
@pytest.mark.parametrize('text', ['NaN', 'sNaN', 'Infinity', '-inf', '1e999999', '1e-10000'])
def test_decimal_that_is_no_number_to_work_with_is_refused(codec: Codec, text: str) -> None:
    shape = build_shape(dict[str, list[Decimal]])
    with pytest.raises(CodecError, match=r'\$\.a\[1\]: expected decimal that is finite'):
        parse_value(codec.encode({'a': ['1', text]}), shape, codec)
    with pytest.raises(CodecError, match=r'\$\.a\[1\]: expected decimal that is finite'):
        format_value({'a': [Decimal(1), Decimal(text)]}, shape, codec)


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_float_that_is_no_number_is_no_decimal(value: float) -> None:
    with pytest.raises(CodecError):
        parse_value(MSGPACK.encode(value), build_shape(Decimal), MSGPACK)


@both
@pytest.mark.parametrize('text', ['1', '-1.50', '1E+9999', '1e-9999', '0', '.5', '1' * 5000])
def test_decimal_that_is_a_number_is_taken(codec: Codec, text: str) -> None:
    shape = build_shape(Decimal)
    value = parse_value(codec.encode(text), shape, codec)
    assert parse_value(format_value(value, shape, codec), shape, codec) == Decimal(text)


def test_json_writes_null() -> None:
    assert JSON.encode([None, 'null', 1.5]) == b'[null,"null",1.5]'


# --- shapes --------------------------------------------------------------------------------------


class Plain:
    pass


@pytest.mark.parametrize(
    'annotation',
    [
        object,
        Plain,
        complex,
        list[Plain],
        dict[str, list[Plain | None]],
        Iterator[int],
        Callable[[], int],
        datetime | str,
        dict[bytes, int],
        dict[datetime, int],
        dict[tuple[int, int], int],
        dict[str | bytes, int],
        bytearray,
        memoryview,
        msgspec.Raw,
        msgspec.msgpack.Ext,
    ],
)
def test_type_that_cannot_travel_is_refused(annotation: Any) -> None:
    with pytest.raises(TypeError):
        build_shape(annotation)


@pytest.mark.parametrize(
    'hashed',
    [bool, int, float, UUID, Decimal, date, datetime, timedelta, Point, str | int, tuple[int, int]],
)
def test_values_whose_hash_a_peer_can_choose_are_not_hashed(hashed: Any) -> None:
    for annotation in (set[hashed], list[frozenset[hashed]]):
        with pytest.raises(TypeError, match=r'cannot be in a set: .*; use a list$'):
            build_shape(annotation)
    with pytest.raises(TypeError, match='cannot be the key of a map; use str'):
        build_shape(dict[hashed, str])


@pytest.mark.parametrize('annotation', [set, frozenset, set[Any], set[str | Any]])
def test_set_of_anything_is_refused(annotation: Any) -> None:
    with pytest.raises(TypeError, match='cannot be in a set'):
        build_shape(annotation)


def test_type_that_cannot_travel_is_found_inside_a_dataclass() -> None:
    @dataclasses.dataclass
    class Outer:
        inner: list[Plain]

    with pytest.raises(TypeError, match='Plain'):
        build_shape(Outer)


def test_annotation_that_is_not_defined_is_a_type_error() -> None:
    @dataclasses.dataclass
    class Broken:
        a: Missing  # type: ignore[name-defined]  # noqa: F821  # what is tested

    with pytest.raises(TypeError, match='Missing'):
        build_shape(Broken)


def test_shape_knows_where_a_datetime_may_be() -> None:
    assert build_shape(dict[str, list[Stat]]).has_datetime
    assert not build_shape(dict[str, list[Point]]).has_datetime


# --- hostile bytes: both -------------------------------------------------------------------------


@both
@given(data=st.binary())
def test_arbitrary_bytes_raise_only_codec_errors(codec: Codec, data: bytes) -> None:
    with contextlib.suppress(CodecError):
        codec.decode(data)


@given(st.text('[]{}":,\\u0dD8eE+-.1ntrf alsue', max_size=40))
def test_almost_json_raises_only_codec_errors(text: str) -> None:
    try:
        value = JSON.decode(text.encode())
    except CodecError:
        return
    assert json.loads(text) == value
    assert JSON.decode(JSON.encode(value)) == value


_msgpack_heads = st.sampled_from(
    [bytes([n]) for n in range(0xC0, 0xE0)]
    + [b'\x81', b'\x91', b'\xa1', b'\xc7\x0c\xff', b'\xd7\xff']
)


@given(st.lists(_msgpack_heads | st.binary(max_size=12), max_size=12))
def test_almost_msgpack_raises_only_codec_errors(pieces: list[bytes]) -> None:
    with contextlib.suppress(CodecError):
        MSGPACK.decode(b''.join(pieces))


plain_values = st.recursive(
    st.none() | st.booleans() | int64s | floats | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=100,
)


@both
@given(plain_values)
def test_plain_values_round_trip(codec: Codec, value: Any) -> None:
    assert codec.decode(codec.encode(value)) == value


@both
@given(plain_values, st.integers(1, 8))
def test_message_cut_short_is_refused(codec: Codec, value: Any, missing: int) -> None:
    data = codec.encode([value])
    with pytest.raises(CodecError):
        codec.decode(data[: max(len(data) - missing, 0)])


@both
@pytest.mark.parametrize('trailing', [b'1', b'\xc0', b'[]'])
def test_trailing_data_is_refused(codec: Codec, trailing: bytes) -> None:
    with pytest.raises(CodecError):
        codec.decode(codec.encode([1]) + trailing)


@both
def test_empty_message_is_refused(codec: Codec) -> None:
    with pytest.raises(CodecError):
        codec.decode(b'')


def nest(depth: int, inner: str) -> Any:
    value: Any = {} if inner == 'map' else [] if inner == 'list' else 1
    for index in range(depth if inner == 'scalar' else depth - 1):
        value = {'k': value} if index % 2 else [value]
    return value


@both
@pytest.mark.parametrize('inner', ['map', 'list', 'scalar'])
def test_nesting_has_a_limit(codec: Codec, inner: str) -> None:
    value = nest(MAX_NESTING, inner)
    assert codec.decode(codec.encode(value)) == value
    with pytest.raises(CodecError, match=f'deeper than {MAX_NESTING}'):
        codec.decode(codec.encode(nest(MAX_NESTING + 1, inner)))


@both
def test_many_containers_next_to_each_other_are_not_nesting(codec: Codec) -> None:
    value = [{'a': [1, '[[[{{{"']}] * 1000
    assert codec.decode(codec.encode(value)) == value


MANY: dict[str, tuple[int, Callable[[int], Any]]] = {
    'empty arrays': (1, lambda _: []),
    'empty maps': (1, lambda _: {}),
    'integers': (1, lambda index: index),
    'floats': (1, lambda index: index / 7),
    'strings': (1, lambda index: f'[[{{{{,,::""\\\\{index}'),
    'arrays': (3, lambda index: [index, 'a']),
    'maps': (5, lambda index: {'a,': index, 'b"': ''}),
    'nested': (4, lambda _: [[{}, []]]),
}


@both
@pytest.mark.parametrize('kind', MANY)
def test_values_of_a_message_have_a_limit(codec: Codec, kind: str) -> None:
    weight, build = MANY[kind]
    count, rest = divmod(MAX_VALUES - 1, weight)
    value = [*map(build, range(count)), *[None] * rest]
    assert codec.decode(codec.encode(value)) == value
    with pytest.raises(CodecError, match=f'more than {MAX_VALUES} values in one message'):
        codec.decode(codec.encode([*value, None]))


@both
def test_long_text_is_one_value(codec: Codec) -> None:
    value = {'text': ',:[{' * MAX_VALUES, 'more': '\\",' * MAX_VALUES}
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize('item', [b'[]', b'{}', b'[ ]', b'"ab"', b'1', b'"a" : ['])
def test_json_bomb_of_many_values_is_refused_before_decoding(item: bytes) -> None:
    # It ends in what no decoder accepts, and decoding would say so.
    data = b'[' + b','.join([item] * (4 * 1024 * 1024 // (len(item) + 1))) + b'x'
    with _memory_limit(), pytest.raises(CodecError, match='more than'):
        JSON.decode(data)


def test_json_spaces_do_not_count() -> None:
    data = ('[' + ','.join(['[ \t\r\n]'] * (MAX_VALUES - 1)) + ']').encode()
    assert JSON.decode(data) == [[]] * (MAX_VALUES - 1)


@both
def test_duplicate_keys_are_refused(codec: Codec) -> None:
    data = b'[{"a":1,"b":2,"a":1}]' if codec is JSON else b'\x91\x82\xa1a\x01\xa1a\x01'
    with pytest.raises(CodecError, match='a key stands twice'):
        codec.decode(data)


# --- hostile bytes: JSON -------------------------------------------------------------------------


class Pairs(NamedTuple):
    pairs: list[tuple[str, Any]]


def write_pairs(tree: Any) -> str:
    if isinstance(tree, Pairs):
        inner = (f'{json.dumps(key)} : {write_pairs(value)}' for key, value in tree.pairs)
        return f'{{{",".join(inner)}}}'
    if isinstance(tree, list):
        return f'[{",".join(map(write_pairs, tree))}]'
    return json.dumps(tree)


def has_duplicates(tree: Any) -> bool:
    if isinstance(tree, Pairs):
        keys = [key for key, _ in tree.pairs]
        return len(set(keys)) < len(keys) or any(has_duplicates(value) for _, value in tree.pairs)
    return isinstance(tree, list) and any(map(has_duplicates, tree))


@given(
    st.recursive(
        st.sampled_from([1, None, 'a', ':', '{"a":1,"a":2}']),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(st.tuples(st.sampled_from('ab:'), inner), max_size=3).map(Pairs)
        ),
        max_leaves=6,
    )
)
def test_json_duplicate_keys_are_found_wherever_they_are(tree: Any) -> None:
    text = write_pairs(tree)
    if has_duplicates(tree):
        with pytest.raises(CodecError, match='a key stands twice'):
            JSON.decode(text.encode())
    else:
        assert JSON.decode(text.encode()) == json.loads(text)


@pytest.mark.parametrize('data', [b'[' * 90_000, b'{"a":' * 40_000, b'[' * 9999 + b']' * 9999])
def test_json_nesting_bomb_is_refused_before_decoding(data: bytes) -> None:
    with pytest.raises(CodecError, match='nested deeper'):
        JSON.decode(data)


@pytest.mark.parametrize('text', ['"' + '[' * 100 + '"', r'"\"' + '[' * 100 + '"', r'["\\","[[["]'])
def test_json_brackets_in_strings_are_not_nesting(text: str) -> None:
    assert JSON.decode(text.encode()) == json.loads(text)


@given(st.lists(st.text('\\"[]{}'), min_size=65, max_size=70))
def test_json_strings_of_quotes_and_backslashes_are_not_nesting(texts: list[str]) -> None:
    value = [[text] for text in texts]
    assert JSON.decode(JSON.encode(value)) == value


@pytest.mark.parametrize('depth', [65, 5000])
def test_json_quotes_and_backslashes_do_not_hide_nesting(depth: int) -> None:
    for decoy in (r'"\\"', r'"\""', r'"a\\\""', r'"\\\\"', '""'):
        text = '[' * depth + decoy + ']' * depth
        with pytest.raises(CodecError, match='nested deeper'):
            JSON.decode(text.encode())


@pytest.mark.parametrize('text', ['NaN', 'Infinity', '[-Infinity]', '1e999', '[-1e999]'])
def test_json_without_nan_and_infinity(text: str) -> None:
    with pytest.raises(CodecError, match='not acceptable JSON'):
        JSON.decode(text.encode())


@pytest.mark.parametrize(
    'text',
    [
        r'"\ud800"',
        r'"\uDC00"',
        r'["a\ud83dx"]',
        r'{"\ud800": 1}',
        r'"\ude00\ud83d"',
        r'"\ud83d\ud83d\ude00"',
    ],
)
def test_json_half_a_surrogate_pair_is_refused(text: str) -> None:
    with pytest.raises(CodecError, match='not acceptable JSON'):
        JSON.decode(text.encode())


@pytest.mark.parametrize(
    ('text', 'value'), [(r'"\ud83d\ude00"', '😀'), (r'"\\ud800"', r'\ud800'), (r'"\u00e9"', 'é')]
)
def test_json_escapes_that_are_whole_are_accepted(text: str, value: str) -> None:
    assert JSON.decode(text.encode()) == value


@pytest.mark.parametrize(
    'data', [b'"\xed\xa0\x80"', b'"\xff"', b'\xef\xbb\xbf1', '1'.encode('utf-16')]
)
def test_json_is_utf_8_without_a_mark(data: bytes) -> None:
    with pytest.raises(CodecError, match='not acceptable JSON'):
        JSON.decode(data)


@pytest.mark.parametrize('text', ["{'a': 1}", '[1,]', '01', '+1', '.5', '1.', '"\t"', '//\n1', 'x'])
def test_json_is_strict(text: str) -> None:
    with pytest.raises(CodecError, match='not acceptable JSON'):
        JSON.decode(text.encode())


def test_json_integer_that_would_take_long_to_read_is_refused() -> None:
    with pytest.raises(CodecError, match='out of range'):
        JSON.decode(b'9' * 1_000_000)


# --- hostile bytes: msgpack ----------------------------------------------------------------------


@pytest.mark.parametrize('head', [b'\x91', b'\x81\xa1a'])
def test_msgpack_nesting_bomb_is_refused(head: bytes) -> None:
    with pytest.raises(CodecError, match='nested deeper'):  # seen without recursion
        MSGPACK.decode(head * 100_000)
    with pytest.raises(CodecError, match='nested deeper'):
        MSGPACK.decode(head * 200 + b'\xc0')


@pytest.mark.parametrize('head', [0xDD, 0xDF])
def test_msgpack_length_bomb_takes_no_memory(head: int) -> None:
    # Each of the nested headers claims as many items as the whole message could hold.
    size = 4 * 1024 * 1024
    bomb = (bytes([head]) + struct.pack('>I', size - 5)) * 500
    if head == 0xDF:
        bomb = (bytes([head]) + struct.pack('>I', size // 2) + b'\xa1a') * 500
    data = bomb.ljust(size, b'\xc0')
    with _memory_limit(), pytest.raises(CodecError, match='nested deeper'):
        MSGPACK.decode(data)
    few = bomb[: 50 * len(bomb) // 500]
    with _memory_limit(), pytest.raises(CodecError, match='truncated'):
        MSGPACK.decode(few.ljust(100_000, b'\xc0'))


@pytest.mark.parametrize('head', [b'\x91', b'\x81\xa1a'], ids=['arrays', 'maps'])
def test_msgpack_nesting_limit_is_the_same_beside_many_arrays(head: bytes) -> None:
    beside = b'\x90' * 65
    wrap = b'\xdc' + struct.pack('>H', 66) + beside
    MSGPACK.decode(wrap + head * (MAX_NESTING - 1) + b'\xc0')
    with pytest.raises(CodecError, match='nested deeper'):
        MSGPACK.decode(wrap + head * MAX_NESTING + b'\xc0')


def test_msgpack_with_many_arrays_and_maps_is_read_and_every_part_of_it_is_truncated() -> None:
    values: list[Any] = ['a' * 40, b'b' * 300, [], {}, {'k': [1.5]}, [2**40] * 20, list(range(20))]
    value = [*values, *({'n': n, 'map': {str(i): i for i in range(n)}} for n in range(0, 40, 3))]
    value += [[[]]] * 70
    data: bytes = msgpack.packb(value)
    assert MSGPACK.decode(data) == value
    for size in range(len(data)):
        with pytest.raises(CodecError, match='truncated'):
            MSGPACK.decode(data[:size])
    with pytest.raises(CodecError, match='extra'):
        MSGPACK.decode(data + b'\xc0')


@pytest.mark.parametrize('item', [b'\x80', b'\x90', b'\xc0', b'\xa2ab', b'\x91\x90'])
def test_msgpack_bomb_of_many_values_takes_no_memory(item: bytes) -> None:
    count = (4 * 1024 * 1024 - 5) // len(item)
    with _memory_limit(), pytest.raises(CodecError, match='more than'):
        MSGPACK.decode(b'\xdd' + struct.pack('>I', count) + item * count)


# How many values that is at the top, how many with those inside, and the bytes.
MSGPACK_FORMS = {
    'nil and bool': (3, 3, b'\xc0\xc2\xc3'),
    'fixint': (4, 4, b'\x00\x7f\xe0\xff'),
    'fixarray and fixmap': (2, 5, b'\x91\x80\x81\xa0\x90'),
    'array': (2, 4, b'\xdc\x00\x01\x01\xdd\x00\x00\x00\x01\x01'),
    'map': (2, 6, b'\xde\x00\x01\xa0\x01\xdf\x00\x00\x00\x01\xa0\x01'),
    'fixstr': (3, 3, b'\xa0\xa1a\xbf' + b'a' * 31),
    'str 8 and 16': (2, 2, b'\xd9\x02aa\xda\x01\x02' + b'a' * 258),
    'str 32': (1, 1, b'\xdb\x00\x01\x00\x02' + b'a' * 65538),
    'bin 8 and 16': (2, 2, b'\xc4\x02aa\xc5\x01\x02' + b'a' * 258),
    'bin 32': (1, 1, b'\xc6\x00\x01\x00\x02' + b'a' * 65538),
    'float': (2, 2, b'\xca' + bytes(4) + b'\xcb' + bytes(8)),
    'uint': (
        4,
        4,
        b'\xcc' + bytes(1) + b'\xcd' + bytes(2) + b'\xce' + bytes(4) + b'\xcf' + bytes(8),
    ),
    'int': (
        4,
        4,
        b'\xd0' + bytes(1) + b'\xd1' + bytes(2) + b'\xd2' + bytes(4) + b'\xd3' + bytes(8),
    ),
    'fixext 4 and 8': (2, 2, b'\xd6\xff' + bytes(4) + b'\xd7\xff' + bytes(8)),
    'fixext 1, 2 and 16': (3, 3, b'\xd4\x05a\xd5\x05aa\xd8\x05' + b'a' * 16),
    'ext 8 and 16': (2, 2, b'\xc7\x02\x05aa\xc8\x01\x02\x05' + b'a' * 258),
    'ext 32': (1, 1, b'\xc9\x00\x01\x00\x02\x05' + b'a' * 65538),
}


@pytest.mark.parametrize('form', MSGPACK_FORMS)
def test_msgpack_values_of_each_form_are_counted(form: str) -> None:
    at_top, inside, items = MSGPACK_FORMS[form]
    for more in (0, 1):
        rest = MAX_VALUES - 1 - inside + more
        data = b'\xdd' + struct.pack('>I', at_top + rest) + items + b'\xc0' * rest
        if more:
            with pytest.raises(CodecError, match='more than'):
                MSGPACK.decode(data)
        elif b'\x05a' in items:
            with pytest.raises(CodecError, match='extension type 5 is unknown'):
                MSGPACK.decode(data)
        else:
            assert len(MSGPACK.decode(data)) == at_top + rest


class _memory_limit:  # noqa: N801  # reads as the statement that it is
    """Fail in a `with` block that takes 64 MiB of address space more than there is now."""

    def __enter__(self) -> None:
        import resource

        with open('/proc/self/statm') as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        self._old = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 1024 * 1024, self._old[1]))

    def __exit__(self, *exc: object) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, self._old)


@pytest.mark.parametrize(
    'data', [b'\xdd\xff\xff\xff\xff', b'\xdb\xff\xff\xff\xff', b'\xc6\x00\x00\x00\x02a']
)
def test_msgpack_length_beyond_the_message_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError, match='truncated'):
        MSGPACK.decode(data)


@pytest.mark.parametrize('data', [b'\xd4\x05a', b'\xc7\x01\x7fa', b'\xd4\xfea', b'\x91\xd5\x00aa'])
def test_msgpack_unknown_extension_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError, match=r'extension|code must be'):
        MSGPACK.decode(data)


@pytest.mark.parametrize(
    'data',
    [
        b'\xc7\x0c\xff' + b'\xff' * 12,  # nanoseconds beyond a second
        b'\xc7\x0c\xff' + struct.pack('>Iq', 0, 2**62),  # a year that no calendar has
        b'\xc7\x03\xff' + b'\x00' * 3,  # no length of a timestamp
    ],
)
def test_msgpack_timestamp_that_is_no_time_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError, match='not acceptable msgpack'):
        MSGPACK.decode(data)


@pytest.mark.parametrize(
    'data', [b'\x81\x01\x02', b'\x81\xc0\x02', b'\x81\x90\x02', b'\x81\x81\x01\x02\x03']
)
def test_msgpack_keys_must_be_strings(data: bytes) -> None:
    with pytest.raises(CodecError):
        MSGPACK.decode(data)


@pytest.mark.parametrize('data', [b'\xa1\xff', b'\xa3\xed\xa0\x80', b'\xc1'])
def test_msgpack_is_strict(data: bytes) -> None:
    with pytest.raises(CodecError):
        MSGPACK.decode(data)


# --- what an error may say -----------------------------------------------------------------------


def test_error_is_cut_to_a_size_that_can_be_sent() -> None:
    with pytest.raises(CodecError) as caught:
        parse_value(JSON.encode('x' * 100_000), build_shape(Color), JSON)
    assert len(caught.value.faults[0].reason) == MAX_FAULT_LENGTH
    error = build_error([*caught.value.faults, *caught.value.faults] * 50)
    assert len(error.faults) == MAX_FAULTS


class _Row(NamedTuple):
    x: int


@dataclasses.dataclass
class _Crashing:
    either: tuple[int, int] | Annotated[str, msgspec.Meta(min_length=1)]


@pytest.mark.parametrize(
    'annotation',
    [
        tuple[int, int] | Annotated[str, msgspec.Meta(min_length=1)],
        tuple[()] | Annotated[dict[str, int], msgspec.Meta(max_length=2)] | None,
        Annotated[tuple[int], msgspec.Meta(description='a row')] | int,
        list[_Crashing],
    ],
    ids=['text', 'map', 'described', 'inside'],
)
def test_union_that_msgspec_writes_outside_of_its_memory_for_is_refused(annotation: Any) -> None:
    with pytest.raises(TypeError, match='in a union with a tuple of a fixed length'):
        build_shape(annotation)


@pytest.mark.parametrize(
    'annotation',
    [
        tuple[int, ...] | Annotated[str, msgspec.Meta(min_length=1)],
        _Row | Annotated[str, msgspec.Meta(min_length=1)],
        tuple[Annotated[int, msgspec.Meta(ge=0)], int] | str,
    ],
    ids=['any length', 'named', 'inside'],
)
def test_unions_beside_that_one_can_travel(annotation: Any) -> None:
    assert build_shape(annotation).annotation == annotation
