"""What a method accepts is what msgspec's strict conversion accepts, for types nobody thought of.

Types and values are generated together. Other decoders than ours read the bytes for the comparison.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple
from uuid import UUID

import msgpack
import msgspec
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from degu_rpc import Code, Context, RpcError, Service
from degu_rpc.rpc.codec import CODECS, JSON, Codec

if TYPE_CHECKING:
    from collections.abc import Callable


class Color(enum.Enum):
    RED = 'red'
    BLUE = 'blue'


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: float = 0.5


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: int


class Kind(NamedTuple):
    """A type, and values that mostly fit it."""

    annotation: Any
    values: st.SearchStrategy[Any]


texts = st.text(st.characters(exclude_categories=['Cs']), max_size=8)
integers = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC))
leaves = [
    Kind(type(None), st.none()),
    Kind(bool, st.booleans()),
    Kind(int, integers),
    Kind(float, floats | integers),
    Kind(str, texts),
    Kind(bytes, st.binary(max_size=8)),
    Kind(datetime, moments),
    Kind(date, st.dates()),
    Kind(time, st.times()),
    Kind(timedelta, st.timedeltas(timedelta(days=-99999), timedelta(days=99999))),
    Kind(UUID, st.uuids()),
    Kind(Decimal, st.decimals(allow_nan=False, allow_infinity=False) | integers),
    Kind(Color, st.sampled_from(Color) | st.sampled_from(['red', 'green'])),
    Kind(Level, st.sampled_from(Level) | st.integers(0, 3)),
    Kind(Literal['a', 1], st.sampled_from(['a', 1, 'b', 2, True])),
    Kind(Annotated[int, msgspec.Meta(ge=0, lt=10)], st.integers(-2, 11)),
    Kind(Annotated[str, msgspec.Meta(min_length=1, max_length=3)], texts),
    Kind(Annotated[list[int], msgspec.Meta(max_length=2)], st.lists(integers, max_size=3)),
    Kind(Point, st.builds(Point, integers, floats)),
    Kind(Circle | Square, st.builds(Circle, floats) | st.builds(Square, integers)),
    Kind(frozenset[str], st.lists(texts, max_size=3)),
]
# What is lenient takes these for something else, and some types look like the others.
lookalikes = st.sampled_from(['1', '0', 'true', 'null', '1.50', 1.0, 0, 1, True, False])
junk = (
    lookalikes
    | st.none()
    | st.sampled_from(['', 'red', 'YQ==', 'YQ', '2020-01-01', '12:00:00', 'P1D', 2, 0.5])
    | st.sampled_from([[], {}, [1], {'a': 1}, {'type': 'Circle'}, {'type': 'Circle', 'radius': 1}])
)


def build_larger(inner: st.SearchStrategy[Kind]) -> st.SearchStrategy[Kind]:
    return st.one_of(
        inner.map(lambda it: Kind(list[it.annotation], st.lists(mix(it), max_size=3))),
        inner.map(lambda it: Kind(dict[str, it.annotation], st.dictionaries(texts, mix(it)))),
        inner.map(lambda it: Kind(tuple[it.annotation, ...], st.lists(mix(it), max_size=3))),
        inner.map(lambda it: Kind(it.annotation | None, st.none() | mix(it))),
        st.tuples(inner, inner).map(
            lambda two: Kind(
                tuple[two[0].annotation, two[1].annotation],
                st.lists(mix(two[0]), max_size=1).flatmap(
                    lambda head: st.lists(mix(two[1]), max_size=2).map(lambda tail: head + tail)
                ),
            )
        ),
        st.tuples(inner, inner).map(
            lambda two: Kind(two[0].annotation | two[1].annotation, mix(two[0]) | mix(two[1]))
        ),
        st.tuples(inner, inner).map(build_class),
    )


def build_class(two: tuple[Kind, Kind]) -> Kind:
    first, second = two
    made = dataclasses.make_dataclass(
        'Made', [('a', first.annotation), ('b', second.annotation | None, None)]
    )
    fields = {'a': mix(first), 'b': mix(second), 'unknown': junk}
    complete = st.fixed_dictionaries(
        {'a': mix(first)}, optional={'b': mix(second), 'unknown': junk}
    )
    return Kind(made, complete | st.fixed_dictionaries({}, optional=fields))


def mix(kind: Kind) -> st.SearchStrategy[Any]:
    """Return values of a kind, and now and then something else."""
    return st.integers(0, 9).flatmap(lambda die: junk if die < 3 else kind.values)


kinds = st.recursive(st.sampled_from(leaves), build_larger, max_leaves=4)


def declare(annotation: Any, taken: list[Any]) -> Service:
    service = Service('a.B')

    def take(value: Any) -> None:
        taken.append(value)

    take.__annotations__ = {'value': annotation, 'return': None}
    service.method(allow='peer')(take)
    return service


def read_otherwise(data: bytes, codec: Codec) -> Any:
    if codec is JSON:
        return json.loads(data)
    return msgpack.unpackb(data, timestamp=3)


def convert(plain: Any, annotation: Any, codec: Codec) -> Any:
    builtin_types = () if codec is JSON else (bytes, datetime)
    return msgspec.convert(
        plain, annotation, strict=True, builtin_types=builtin_types, str_keys=True
    )


@pytest.mark.parametrize('codec', CODECS, ids=lambda codec: codec.name)
@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_validation_agrees_with_strict_conversion(
    codec: Codec, peer: Callable[..., Any], data: st.DataObject
) -> None:
    kind = data.draw(kinds)
    taken: list[Any] = []
    try:
        service = declare(kind.annotation, taken)
    except TypeError:
        assume(False)  # a union that nothing could tell apart
    value = data.draw(mix(kind))
    caller = peer('peer')
    method = service.authorize('take', caller)
    message = codec.encode({'value': value})
    code = None
    try:
        method.call(message, codec, Context(caller, method.full_name, {}))
    except RpcError as error:
        code = error.code
    plain = read_otherwise(message, codec)['value']
    try:
        expected = convert(plain, kind.annotation, codec)
    except msgspec.ValidationError:
        event('refused')
        assert (code, taken) == (Code.INVALID_ARGUMENT, [])
    else:
        event('taken')
        assert (code, taken) == (None, [expected])
        # 1 is not 1.0 and True is not 1. Made again, equal sets have the same order.
        assert repr(taken) == repr([convert(plain, kind.annotation, codec)])
