"""What is decoded in one pass is what the two steps give, and what they refuse is refused."""

from __future__ import annotations

import dataclasses
import itertools
import resource
from typing import Annotated, Any, Literal

import msgpack
import msgspec
import pytest

from degu_rpc.errors import CodecError
from degu_rpc.rpc.codec import JSON, MSGPACK, Codec, build_shape, convert_plain, parse_value
from degu_rpc.rpc.limits import MAX_VALUES


@dataclasses.dataclass
class Pair:
    a: str
    b: int


@dataclasses.dataclass
class Half:
    a: str
    b: int = 5


@dataclasses.dataclass
class Empty:
    pass


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    a: str
    b: list[int] | None


class Renamed(msgspec.Struct, rename='upper'):
    a: str
    b: bytes


class Tagged(msgspec.Struct, tag=True):
    a: str


class Row(msgspec.Struct, array_like=True):
    a: str


SCALARS = (str, int, float, bool, None, bytes)
FLAT = (
    *SCALARS,
    *(list[x] for x in SCALARS),
    *(x | y for x, y in itertools.combinations(SCALARS, 2) if {x, y} != {str, bytes}),
    tuple[int, str],
    tuple[()],
    list[list[str]],
    Literal['a', 1],
    Annotated[int, msgspec.Meta(ge=1)],
    Annotated[str, msgspec.Meta(max_length=2)],
    Pair,
    Half,
    Empty,
    Strict,
    Renamed,
)
NUMBERS = '0 1 -0 -0.0 1.0 1.5 1e2 5E3 1e400 1e-400 0.1234567890123456789 1234567890123456789012'
JSON_ITEMS = [
    *NUMBERS.split(),
    *(str(2**n + d) for n in (63, 64) for d in (-1, 0)),
    *('true', 'null', 'NaN', 'Infinity', '""', '"a"', '"abc"', '"1"', '"YWI="', '"YWI"', '":"'),
    *(r'"\ud800"', r'"\ud83d\ude00"', '[]', '["a"]', '[1,2]', '[[]]', '[1,"a"]', '{}', '{"a":1}'),
]
JSON_MAPS = [
    '{' + ','.join(pairs) + '}'
    for n in (1, 2, 3)
    for pairs in itertools.product(
        ['"a":"x"', '"b":7', '"b" : null', r'"\u0061":"y"', '"A":"x"', '"B":"YWI="', '"c":{"a":1}'],
        repeat=n,
    )
]
JSON_DATA = [
    *(x.encode() for x in (*JSON_ITEMS, *JSON_MAPS, ' 1 ', '1 2', '', '[' * 99, '"a')),
    b'"\xff"',
]
MSGPACK_ITEMS: list[Any] = [
    *(0, 1, -1, 1.0, 1.5, float('nan'), float('inf'), True, None, '', 'a', 'abc', 'YWI=', b'a'),
    *(2**63, 2**64 - 1, -(2**63), [], ['a'], [b'a'], [1, 2], [[]], [1, 'a'], {}, {'a': 1}),
    msgpack.Timestamp(1),
]
MSGPACK_PAIRS = [
    msgpack.packb(key) + msgpack.packb(value)
    for key, value in (('a', 'x'), ('b', 7), ('b', None), ('A', 'x'), ('B', b'y'), ('c', {'a': 1}))
]
MSGPACK_DATA = [
    *map(msgpack.packb, MSGPACK_ITEMS),
    *(
        head + bytes([size]) + b''.join(pairs)
        for n in (1, 2, 3)
        for pairs in itertools.product(MSGPACK_PAIRS, repeat=n)
        for head, size in ((b'', 0x80 + n), (b'\xde\0', n), (b'', 0x80 + n + 1))
    ),
    *(b'', b'\xd9\x01\xff', b'\xc1', b'\xd4\x05a', b'\xa5ab', b'\x01\x02', b'\xca\x3f\x80\0\0'),
]


def outcome_of(function: Any, *args: Any) -> str:
    try:
        return repr(function(*args))
    except CodecError as error:
        return f'refused: {error}'


def parse_in_two_steps(data: bytes, annotation: Any, codec: Codec) -> Any:
    return convert_plain(codec.decode(data), build_shape(annotation), codec)


@pytest.mark.parametrize('annotation', FLAT, ids=str)
@pytest.mark.parametrize(('codec', 'messages'), [(JSON, JSON_DATA), (MSGPACK, MSGPACK_DATA)])
def test_one_pass_gives_what_two_steps_give(
    annotation: Any, codec: Codec, messages: list[bytes]
) -> None:
    shape = build_shape(annotation)
    assert shape.flat is not None
    taken = 0
    for data in messages:
        expected = outcome_of(parse_in_two_steps, data, annotation, codec)
        assert outcome_of(parse_value, data, shape, codec) == expected, data
        taken += not expected.startswith('refused')
    assert taken


@pytest.mark.parametrize(
    'annotation', [Any, dict[str, int], list[dict[str, int]], list[Pair], Pair | None, Tagged, Row]
)
def test_a_type_with_maps_inside_is_not_flat(annotation: Any) -> None:
    assert build_shape(annotation).flat is None


@pytest.mark.parametrize('codec', [JSON, MSGPACK], ids=['JSON', 'msgpack'])
def test_the_usual_message_is_decoded_in_one_pass(codec: Codec) -> None:
    for value, annotation in (('x:y', str), ([1, 2], list[int]), ({'a': 'x', 'b': 7}, Pair)):
        flat = build_shape(annotation).flat
        assert flat is not None
        assert codec.pick_flat(codec.encode(value), flat) is not None


@pytest.mark.parametrize('codec', [JSON, MSGPACK], ids=['JSON', 'msgpack'])
def test_the_limits_hold_in_one_pass_too(codec: Codec) -> None:
    many = codec.encode([1] * MAX_VALUES)
    with pytest.raises(CodecError, match='values'):
        parse_value(many, build_shape(list[int]), codec)


@pytest.mark.parametrize(
    ('codec', 'bomb'),
    [(JSON, b'{"c":' + b'[' * 90_000), (MSGPACK, b'\x81\xa1c' + b'\x91' * 90_000)],
)
def test_a_bomb_in_a_field_that_is_ignored_is_refused(codec: Codec, bomb: bytes) -> None:
    shape = build_shape(Half)
    assert shape.flat is not None
    assert codec.pick_flat(bomb, shape.flat) is None
    with pytest.raises(CodecError):
        parse_value(bomb, shape, codec)


def test_a_length_that_is_only_claimed_takes_no_memory() -> None:
    shape = build_shape(list[int])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for claimed in (b'\xdc\xff\xff', b'\xdd\x0f\xff\xff\xff', b'\xdd\xff\xff\xff\xff'):
        with pytest.raises(CodecError):
            parse_value(claimed + b'\x01' * 9, shape, MSGPACK)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # KiB
