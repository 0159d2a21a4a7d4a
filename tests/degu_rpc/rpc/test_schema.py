"""JSON Schema of what travels: it is valid, and agrees with what the codec takes and gives."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from degu_rpc import Context, Service
from degu_rpc.errors import CodecError
from degu_rpc.rpc.codec import JSON, build_shape, format_value, parse_value
from degu_rpc.rpc.schema import DIALECT, Schemas, describe_service
from degu_rpc.rpc.service import Kind

if TYPE_CHECKING:
    from collections.abc import Callable


class Color(enum.Enum):
    """What it looks like."""

    RED = 'red'
    BLUE = 'blue'


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: float = 0.5


@dataclasses.dataclass
class Node:
    """Something in a tree."""

    name: str
    born: datetime
    tags: list[str] = dataclasses.field(default_factory=list)
    next: Node | None = None


@dataclasses.dataclass
class Plain:
    n: int = 3


class Circle(msgspec.Struct, tag=True, forbid_unknown_fields=True):
    radius: float = msgspec.field(name='r')


class Square(msgspec.Struct, tag=True):
    side: float


class Row(msgspec.Struct, array_like=True):
    a: int
    b: str = 'x'


class Options(TypedDict, total=False):
    depth: int


T = TypeVar('T')


class Box(msgspec.Struct, Generic[T]):
    item: T


texts = st.text(st.characters(exclude_categories=['Cs']))
floats = st.floats(allow_nan=False, allow_infinity=False)
zones = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])
datetimes = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=zones)
nodes = st.builds(
    Node, texts, datetimes, st.lists(texts, max_size=2), st.builds(Node, texts, datetimes)
)
TYPES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    'none': (None, st.none()),
    'bool': (bool, st.booleans()),
    'int': (int, st.integers()),
    'float': (float, floats),
    'str': (str, texts),
    'bytes': (bytes, st.binary()),
    'short bytes': (Annotated[bytes, msgspec.Meta(max_length=4)], st.binary(max_size=4)),
    'datetime': (datetime, datetimes),
    'date': (date, st.dates()),
    'time': (time, st.times(timezones=st.none() | zones)),
    'time without offset': (Annotated[time, msgspec.Meta(tz=False)], st.times()),
    'timedelta': (timedelta, st.timedeltas(timedelta(days=-99999), timedelta(days=99999))),
    'uuid': (UUID, st.uuids()),
    'decimal': (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    'enum': (Color, st.sampled_from(Color)),
    'int enum': (Level, st.sampled_from(Level)),
    'named tuple': (Point, st.builds(Point, st.integers(), floats)),
    'dataclass': (Node, nodes),
    'struct': (Circle, st.builds(Circle, radius=floats)),
    'array-like struct': (Row, st.builds(Row, st.integers(), texts)),
    'typed dict': (Options, st.fixed_dictionaries({}, optional={'depth': st.integers()})),
    'generic struct': (Box[int], st.builds(Box, st.integers())),
    'struct union': (Circle | Square, st.builds(Square, floats)),
    'struct or none': (Circle | None, st.none() | st.builds(Circle, radius=floats)),
    'union': (int | str | None, st.integers() | texts | st.none()),
    'literal': (Literal['a', 1], st.sampled_from(['a', 1])),
    'constrained int': (Annotated[int, msgspec.Meta(ge=0, lt=9)], st.integers(0, 8)),
    'constrained str': (
        Annotated[str, msgspec.Meta(min_length=1, pattern='^a')],
        texts.map('a{}'.format),
    ),
    'list': (list[Node], st.lists(nodes, max_size=2)),
    'short list': (Annotated[list[int], msgspec.Meta(max_length=2)], st.just([1, 2])),
    'set': (frozenset[str], st.frozensets(texts)),
    'tuple': (tuple[bytes, datetime], st.tuples(st.binary(), datetimes)),
    'tuple of any length': (tuple[int, ...], st.lists(st.integers()).map(tuple)),
    'empty tuple': (tuple[()], st.just(())),
    'str keys': (dict[str, bytes], st.dictionaries(texts, st.binary())),
    'constrained keys': (
        dict[Annotated[str, msgspec.Meta(max_length=2)], int],
        st.dictionaries(texts.filter(lambda text: len(text) < 3), st.integers()),
    ),
    'enum keys': (dict[Level, int], st.dictionaries(st.sampled_from(Level), st.integers())),
    'literal keys': (
        dict[Literal['a', 1], int],
        st.dictionaries(st.sampled_from(['a', 1]), st.integers()),
    ),
    'any': (Any, st.none() | st.booleans() | texts),
}
plains = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.sampled_from([0.5, 1e300])
    | texts
    # What some of the types look like.
    | st.sampled_from(['red', 'a', '1', '', 'YQ==', 'YQ', '2020-01-01', '12:00:00', 'P1D', '-1.5']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(['a', '1', 'name', 'type', 'r', 'x', 'item']), inner)
    ),
    max_leaves=4,
)


def build_document(annotation: Any) -> dict[str, Any]:
    schemas = Schemas()
    schema = schemas.build(annotation)
    return {'$schema': DIALECT, **schema, '$defs': schemas.definitions}


@functools.cache
def build_validator(name: str) -> jsonschema.Draft202012Validator:
    document = build_document(TYPES[name][0])
    json.dumps(document, allow_nan=False)
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


@pytest.mark.parametrize('name', TYPES)
@settings(max_examples=40)  # of each type
@given(data=st.data())
def test_what_the_codec_writes_is_valid(name: str, data: st.DataObject) -> None:
    annotation, values = TYPES[name]
    message = format_value(data.draw(values), build_shape(annotation), JSON)
    build_validator(name).validate(json.loads(message))


@pytest.mark.parametrize('name', TYPES)
@settings(max_examples=40)  # of each type
@given(plain=plains)
def test_what_the_codec_takes_is_valid(name: str, plain: Any) -> None:
    annotation, _ = TYPES[name]
    try:
        parse_value(JSON.encode(plain), build_shape(annotation), JSON)
    except CodecError:
        return
    build_validator(name).validate(plain)


@pytest.mark.parametrize('name', [name for name in TYPES if name != 'any'])
@pytest.mark.parametrize(
    'plain', [True, -4, 0.5, None, ' ', [[]], {'\n': 1}], ids=lambda plain: json.dumps(plain)
)
def test_what_is_valid_is_what_the_codec_takes(name: str, plain: Any) -> None:
    annotation, _ = TYPES[name]
    is_text_with_a_format = 'format' in build_document(annotation) and plain == ' '
    if not is_text_with_a_format and build_validator(name).is_valid(plain):
        parse_value(JSON.encode(plain), build_shape(annotation), JSON)


@pytest.mark.parametrize(
    ('name', 'plain', 'is_valid'),
    [
        ('timedelta', 'P1DT2H', True),
        ('timedelta', 'P1Y', False),
        ('timedelta', 'P1W', False),
        ('bytes', 'YWE=', True),
        ('bytes', 'YWE', False),
        ('bytes', 'Y-E=', False),
        ('decimal', '-1.5e3', True),
        ('decimal', '1,5', False),
        ('time', '12:00:00', True),
        ('time', '12:00:00+01:00', True),
        ('time', '25:00:00', False),
        ('time', 'noon', False),
        # What comes twice is taken, and a tag may be missing where it decides nothing.
        ('set', ['a', 'a'], True),
        ('struct', {'r': 1}, True),
        ('struct or none', {'r': 1}, True),
        ('struct union', {'r': 1}, False),
        ('struct union', {'type': 'Circle', 'r': 1}, True),
    ],
)
def test_schema_and_codec_agree_on(name: str, plain: Any, is_valid: bool) -> None:
    assert build_validator(name).is_valid(plain) == is_valid
    try:
        parse_value(JSON.encode(plain), build_shape(TYPES[name][0]), JSON)
    except CodecError:
        assert not is_valid
    else:
        assert is_valid


@pytest.mark.parametrize(
    ('annotation', 'schema'),
    [
        pytest.param(datetime, {'type': 'string', 'format': 'date-time'}, id='datetime'),
        pytest.param(UUID, {'type': 'string', 'format': 'uuid'}, id='uuid'),
        pytest.param(
            set[str],
            {'type': 'array', 'items': {'type': 'string'}, 'format': 'set'},
            id='set',
        ),
        pytest.param(
            Annotated[int, msgspec.Meta(ge=1, description='How many.')],
            {'type': 'integer', 'minimum': 1, 'description': 'How many.'},
            id='described',
        ),
        pytest.param(
            dict[Level, int],
            {
                'type': 'object',
                'propertyNames': {'enum': ['1', '2']},
                'additionalProperties': {'type': 'integer'},
            },
            id='enum keys',
        ),
        pytest.param(
            list[Color], {'type': 'array', 'items': {'$ref': '#/$defs/Color'}}, id='reference'
        ),
    ],
)
def test_schema_of_a_type(annotation: Any, schema: dict[str, Any]) -> None:
    assert Schemas().build(annotation) == schema


def test_classes_are_definitions_with_their_docstrings() -> None:
    schemas = Schemas()
    schemas.build(tuple[Node, Color, Point, Plain, Options])
    assert schemas.definitions == {
        'Node': {
            'title': 'Node',
            'description': 'Something in a tree.',
            'type': 'object',
            'properties': {
                'name': {'type': 'string'},
                'born': {'type': 'string', 'format': 'date-time'},
                'tags': {'type': 'array', 'items': {'type': 'string'}, 'default': []},
                'next': {
                    'anyOf': [{'$ref': '#/$defs/Node'}, {'type': 'null'}],
                    'default': None,
                },
            },
            'required': ['name', 'born'],
        },
        'Color': {
            'title': 'Color',
            'description': 'What it looks like.',
            'enum': ['red', 'blue'],
        },
        'Point': {
            'title': 'Point',
            'type': 'array',
            'prefixItems': [
                {'type': 'integer', 'title': 'x'},
                {'type': 'number', 'default': 0.5, 'title': 'y'},
            ],
            'minItems': 1,
            'items': False,
            'maxItems': 2,
        },
        'Plain': {
            'title': 'Plain',
            'type': 'object',
            'properties': {'n': {'type': 'integer', 'default': 3}},
            'required': [],
        },
        'Options': {
            'title': 'Options',
            'type': 'object',
            'properties': {'depth': {'type': 'integer'}},
            'required': [],
        },
    }


def test_two_classes_with_one_name_are_two_definitions() -> None:
    def make() -> Any:
        cls = dataclasses.make_dataclass('Plain', [('other', str)])
        cls.__module__ = 'elsewhere'
        return cls

    schemas = Schemas()
    first, second, third, again = map(schemas.build, (Plain, make(), make(), Plain))
    assert first == again == {'$ref': '#/$defs/Plain'}
    assert second == {'$ref': '#/$defs/elsewhere.Plain'}
    assert third == {'$ref': '#/$defs/elsewhere.Plain_'}
    assert list(schemas.definitions['elsewhere.Plain']['properties']) == ['other']


# --- services ------------------------------------------------------------------------------------


@pytest.fixture
def service() -> Service:
    service = Service('trees.v1.Trees')

    @service.method(allow='peer', safe=True)
    def find(ctx: Context, name: str, *, limit: float = math.inf, color: Color = Color.RED) -> Node:
        """Find a node by its name.

        The name is compared without case.
        """
        raise NotImplementedError

    @service.method(allow='owner', idempotent=True)
    def cut(node: Node) -> None:
        raise NotImplementedError

    return service


def test_method_is_described_with_docstring_flags_and_schemas(service: Service) -> None:
    (find,) = describe_service(service, {'peer'}).methods
    assert (find.name, find.safe, find.idempotent) == ('find', True, True)
    assert find.description == 'Find a node by its name.\n\nThe name is compared without case.'
    assert find.parameters == {
        'type': 'object',
        'properties': {
            'name': {'type': 'string'},
            'limit': {'type': 'number'},  # infinity cannot be said in JSON
            'color': {'$ref': '#/$defs/Color', 'default': 'red'},
        },
        'required': ['name'],
        'additionalProperties': False,
    }
    assert find.result == {'$ref': '#/$defs/Node'}


def test_streams_are_described_with_the_schema_of_their_items() -> None:
    service = Service('trees.v1.Trees')

    @service.method(allow='peer')
    def plant(depth: int, nodes: Iterator[Node]) -> Iterator[Point]:
        raise NotImplementedError

    @service.method(allow='peer')
    def count(nodes: Iterator[Node]) -> int:
        raise NotImplementedError

    @service.method(allow='peer')
    def walk() -> Iterator[Point]:
        raise NotImplementedError

    description = describe_service(service, {'peer'})
    plant_, count_, walk_ = description.methods
    node, point = {'$ref': '#/$defs/Node'}, {'$ref': '#/$defs/Point'}
    assert (plant_.kind, plant_.stream_parameter, plant_.item, plant_.result) == (
        Kind.BIDI_STREAM,
        'nodes',
        node,
        point,
    )
    assert plant_.parameters == {
        'type': 'object',
        'properties': {'depth': {'type': 'integer'}},
        'required': ['depth'],
        'additionalProperties': False,
    }
    assert (count_.kind, count_.item, count_.result) == (
        Kind.CLIENT_STREAM,
        node,
        {'type': 'integer'},
    )
    assert (walk_.kind, walk_.stream_parameter, walk_.item, walk_.result) == (
        Kind.SERVER_STREAM,
        None,
        None,
        point,
    )
    assert set(description.definitions) == {'Node', 'Point'}


def test_description_has_only_what_its_reader_may_call(service: Service) -> None:
    def names(*roles: str) -> list[str]:
        return [method.name for method in describe_service(service, set(roles)).methods]

    assert names('peer') == ['find']
    assert names('owner', 'peer') == ['find', 'cut']
    assert names('stranger') == names() == []
    assert describe_service(service, {'stranger'}).definitions == {}


def test_description_is_a_document_that_resolves_its_references(service: Service) -> None:
    document = json.loads(msgspec.json.encode(describe_service(service, {'owner'})))
    assert document['$schema'] == DIALECT
    parameters = document['methods'][1]['parameters']
    validator: Callable[..., Any] = jsonschema.Draft202012Validator(
        {**document, **parameters}
    ).is_valid
    assert validator({'node': {'name': 'a', 'born': '2020-01-01T00:00:00Z'}})
    assert not validator({'node': {'name': 1, 'born': '2020-01-01T00:00:00Z'}})
