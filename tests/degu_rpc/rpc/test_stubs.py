"""Stubs: a type checker takes them, calls work through them, strangers cannot write into them."""

from __future__ import annotations

import ast
import dataclasses
import enum
import itertools
import re
import subprocess
import sys
import types
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, List, Literal, NamedTuple  # noqa: UP035  # see names()
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu_rpc import RpcApp, RpcClient, RpcError, Service
from degu_rpc.rpc.codec import CODECS
from degu_rpc.rpc.differences import check_stub, describe_api, find_differences
from degu_rpc.rpc.meta import META, build_meta
from degu_rpc.rpc.result_stream import ResultStream
from degu_rpc.rpc.schema import MethodDescription, ServiceDescription, describe_service
from degu_rpc.rpc.service import Kind
from degu_rpc.rpc.stubs import write_stubs

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

NAME = 'shop.v1.Shop'
modules = itertools.count()


class Color(enum.Enum):
    RED = 'red'
    BLUE = 'blue'


class Point(NamedTuple):
    x: int
    y: float = 0.5


@dataclasses.dataclass
class Item:
    """Something to sell.

    It has a \\ and \"\"\" in its description.
    """

    name: str
    price: Decimal
    added: datetime
    tags: list[str] = dataclasses.field(default_factory=list)
    part_of: Item | None = None


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float = 1.0
    odd_one: int = msgspec.field(name='from', default=3)


@dataclasses.dataclass
class Everything:
    data: bytes
    when: datetime
    clock: time
    span: timedelta
    identity: UUID
    color: Color
    place: Point
    shape: Circle | Square
    names: frozenset[str]
    by_color: dict[Color, int]
    pair: tuple[int, str]
    way: Literal['up', 1]


EVERYTHING: dict[str, Any] = {
    'data': b'\x00\xff',
    'when': datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    'clock': time(1, 2, 3),
    'span': timedelta(days=1, seconds=2),
    'identity': UUID(int=7),
    'color': 'red',
    'names': {'a', 'b'},
    'by_color': {'red': 1},
    'pair': (1, 'x'),
    'way': 'up',
}


def build_service() -> Service:
    shop = Service(NAME)

    @shop.method(allow='peer', safe=True)
    def find(name: str, limit: int = 10, *, price: Decimal) -> Item:
        """Find an item.

        Not everything is for sale.
        """
        return Item(name, price, datetime(2026, 1, 1, tzinfo=UTC), [str(limit)])

    @shop.method(allow='peer')
    def echo(value: Everything) -> Everything:
        return value

    @shop.method(allow='peer')
    def list(text: str = '') -> list[str]:  # noqa: A001  # a name that shadows what it returns
        return [text, 'list']

    @shop.method(allow='peer')
    def browse(first: int, last: int = 3) -> Iterator[Item]:
        for number in range(first, last):
            yield Item(f'tea {number}', Decimal(number), datetime(2026, 1, 1, tzinfo=UTC))

    @shop.method(allow='peer')
    def cost(items: Iterator[Item], discount: Decimal = Decimal(0)) -> Decimal:
        return sum((item.price for item in items), -discount)

    @shop.method(allow='peer')
    def shout(words: Iterator[str]) -> Iterator[str]:
        for word in words:
            yield word.upper()

    @shop.method(allow='peer')
    def names() -> List[str]:  # noqa: UP006  # list is a method here
        return ['tea']

    return shop


def load(source: str) -> types.ModuleType:
    module = types.ModuleType(f'stub_{next(modules)}')
    sys.modules[module.__name__] = module  # where annotations are looked up
    exec(compile(source, module.__name__, 'exec', dont_inherit=True), module.__dict__)
    return module


@pytest.fixture
def source() -> str:
    return write_stubs([describe_service(build_service(), {'peer'})])


@pytest.fixture(params=CODECS, ids=lambda codec: codec.name)
def client(request: pytest.FixtureRequest, serve: Callable[..., Any]) -> Iterator[RpcClient]:
    services = [build_service()]
    transport, _ = serve(RpcApp([*services, build_meta(services)]))
    with RpcClient(transport, '', request.param) as client:
        yield client


# --- what is written -----------------------------------------------------------------------------


def test_calls_work_through_a_stub(client: RpcClient, source: str) -> None:
    stub = load(source)
    shop = client.bind(stub.Shop, NAME)
    item = shop.find('tea', price=Decimal('1.50'))
    assert isinstance(item, stub.Item)
    assert (item.name, item.price, item.tags, item.part_of) == (
        'tea',
        Decimal('1.50'),
        ['10'],
        None,
    )
    assert item.added == datetime(2026, 1, 1, tzinfo=UTC)
    assert shop.find('tea', 3, price=Decimal(1)).tags == ['3']
    assert shop.list() == ['', 'list']


def test_each_type_passes_through_a_stub(client: RpcClient, source: str) -> None:
    stub = load(source)
    value = stub.Everything(**EVERYTHING, place=stub.Point(x=1), shape=stub.Square(from_=5))
    found = client.bind(stub.Shop, NAME).echo(value)
    assert found == value
    assert (found.shape.from_, found.place.y) == (5, 0.5)


def test_streams_pass_through_a_stub(client: RpcClient, source: str) -> None:
    stub = load(source)
    shop = client.bind(stub.Shop, NAME)
    items = [*shop.browse(1)]
    assert [(type(item), item.name) for item in items] == [
        (stub.Item, 'tea 1'),
        (stub.Item, 'tea 2'),
    ]
    assert shop.cost(items=iter(items)) == 3
    assert shop.cost(items=items, discount=Decimal(1)) == 2
    with shop.shout(['a', 'b']) as words:
        assert next(words) == 'A'


def test_the_callers_stream_is_any_iterable_and_the_last_parameter(source: str) -> None:
    heads = [
        line.strip() for line in source.splitlines() if re.search(r'(Stream|Iterable)\[', line)
    ]
    assert heads == [
        'def browse(self, /, first: int, last: int = ...) -> _ResultStream[Item]:',
        'def cost(self, /, discount: _decimal.Decimal = ..., *, items: _abc.Iterable[Item])'
        ' -> _decimal.Decimal:',
        'def shout(self, /, words: _abc.Iterable[str]) -> _ResultStream[str]:',
    ]


def test_docstrings_are_kept(source: str) -> None:
    stub = load(source)
    assert stub.Shop.find.__doc__.split('\n')[0] == 'Find an item.'
    assert 'It has a \\ and """ in its description.' in stub.Item.__doc__


def test_a_stub_of_meta_reads_descriptions(client: RpcClient) -> None:
    stub = load(write_stubs([describe_service(build_meta([build_service()]), {'peer'})]))
    found = client.bind(stub.Meta, META).describe(NAME)
    assert [method.name for method in found.methods] == [
        *('find', 'echo', 'list'),
        *('browse', 'cost', 'shout', 'names'),
    ]
    assert [method.kind for method in found.methods][3:] == [
        *('server_stream', 'client_stream', 'bidi_stream', 'unary')
    ]


def test_services_with_types_of_one_name_are_told_apart() -> None:
    first, second = (describe_service(build_service(), {'peer'}) for _ in range(2))
    other = msgspec.structs.replace(second, name='other.v1.Shop')
    stub = load(write_stubs([first, other]))
    assert {'Shop', 'Item', 'OtherV1Shop', 'OtherV1ShopItem'} <= set(vars(stub))


CALLS = [
    ("shop.find('tea', price=Decimal('1'))", None),
    ("shop.find('tea', 3, price=Decimal('1')).part_of", None),
    ("shop.list('x')[0].upper()", None),
    ('shop.names()[0].upper()', None),
    ('next(shop.browse(1)).name.upper()', None),
    ('shop.cost(items=shop.browse(1)) + 1', None),
    ("next(shop.shout(iter(['x']))).upper()", None),
    ("shop.shout(['x'])", None),
    ("with shop.shout(('x',)) as words: next(words).upper()", None),
    ('shop.browse(1).close()', None),
    ('shop.shout([1])', 'list-item'),
    ('shop.shout(7)', 'arg-type'),
    ('with shop.browse(1) as items: next(items).size', 'attr-defined'),
    ('shop.browse(1).name', 'attr-defined'),
    ('shop.find(7, price=Decimal(1))', 'arg-type'),
    ("shop.find('tea')", 'call-arg'),
    ("shop.find('tea', price=Decimal(1), colour=2)", 'call-arg'),
    ("shop.find('tea', 3, Decimal(1))", 'call-arg'),
    ('shop.buy()', 'attr-defined'),
    ("shop.find('tea', price=Decimal(1)).size", 'attr-defined'),
    ("shop.list('x') + 1", 'operator'),
]


@pytest.mark.slow
def test_mypy_takes_the_stub_and_right_calls_and_rejects_wrong_ones(
    source: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / 'shop.py').write_text(source)
    head = 'from decimal import Decimal\nfrom shop import Shop\n\n\ndef use(shop: Shop) -> None:\n'
    (tmp_path / 'use.py').write_text(head + ''.join(f'    {call}\n' for call, _ in CALLS))
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'mypy', '--strict', '--no-error-summary'),
            *('--hide-error-context', '--cache-dir', str(tmp_path / 'cache'), 'shop.py', 'use.py'),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if ' error: ' in line]
    found = {line.split(':')[1]: line.rpartition('[')[2].rstrip(']') for line in lines}
    first = head.count('\n') + 1
    wanted = {str(first + n): code for n, (_, code) in enumerate(CALLS) if code is not None}
    assert found == wanted, done.stdout + done.stderr
    assert all(line.startswith('use.py:') for line in lines)


# --- descriptions of strangers -------------------------------------------------------------------

texts = st.text(max_size=12) | st.sampled_from(
    ['"""', '\\', "'", '\n', 'x: int = evil()', '"""\nevil()\n"""', 'class', '__init__', '\ud800']
)
wires = texts.filter(lambda text: not re.search(r'[\x00-\x1f"\\\ud800-\udfff]', text))
schemas = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            'type': st.sampled_from(['object', 'array', 'string', 'integer', 'null']) | texts,
            'format': texts,
            '$ref': texts.map('#/$defs/{}'.format),
            'enum': st.lists(texts | st.integers(), max_size=3),
            'const': texts | st.integers() | st.booleans(),
            'title': texts,
            'description': texts,
            'default': texts | st.integers() | st.floats() | st.lists(texts, max_size=2),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {'type': st.sampled_from(['object', 'array'])},
        optional={
            'properties': st.dictionaries(wires, inner, max_size=3),
            'required': st.lists(texts, max_size=2),
            'prefixItems': st.lists(inner, max_size=2),
            'items': inner | st.booleans(),
            'minItems': st.integers() | texts,
            'additionalProperties': inner,
            'propertyNames': inner,
            'anyOf': st.lists(inner, max_size=2),
            'description': texts,
            'title': texts,
        },
    ),
    max_leaves=6,
)
HARMLESS = (ast.ImportFrom, ast.Import, ast.ClassDef, ast.Assign, ast.Expr)


@given(
    definitions=st.dictionaries(texts, schemas | st.integers(), max_size=3),
    result=schemas,
    parameter=schemas,
    kind=st.sampled_from(Kind),
    item=st.none() | schemas,
    text=texts,
)
def test_a_strangers_description_becomes_types_and_nothing_else(
    definitions: dict[str, Any], result: Any, parameter: Any, kind: Kind, item: Any, text: str
) -> None:
    method = MethodDescription(
        name='call',
        description=text,
        kind=kind,
        safe=False,
        idempotent=False,
        parameters={'properties': {'a': parameter}, 'required': []},
        stream_parameter='b',
        item=item,
        result=result,
    )
    service = ServiceDescription(name='a.B', methods=[method], definitions=definitions)
    source = write_stubs([service])
    tree = ast.parse(source.encode())
    assert all(isinstance(node, HARMLESS) for node in tree.body)
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert {ast.unparse(function) for function in called} <= {'_msgspec.field'}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions] == ['call']
    assert load(source).B.call


def build_struct(**schema: Any) -> ServiceDescription:
    definition = {'type': 'object', **schema}
    return ServiceDescription(name='a.B', methods=[], definitions={'X': definition})


def test_only_the_first_constant_is_the_tag() -> None:
    properties = {'a': {'const': True}, 'b': {'const': 'x'}, 'c': {'const': 'y'}, 'd': {'const': 1}}
    found = load(write_stubs([build_struct(properties=properties, required=['a', 'c', 'd'])])).X
    assert (found.__struct_config__.tag_field, found.__struct_config__.tag) == ('b', 'x')
    assert found.__struct_fields__ == ('a', 'c', 'd')


@pytest.mark.parametrize('default', [float('inf'), float('-inf'), float('nan')])
def test_default_that_python_cannot_write_is_left_out(default: float) -> None:
    properties = {'a': {'type': 'number', 'default': default}}
    assert load(write_stubs([build_struct(properties=properties)])).X().a is msgspec.UNSET


def test_names_that_python_takes_for_one_are_kept_apart() -> None:
    properties = {'\N{LATIN SMALL LIGATURE FI}': {'type': 'string'}, 'fi': {'type': 'integer'}}
    found = load(write_stubs([build_struct(properties=properties)])).X
    assert found.__struct_encode_fields__ == tuple(properties)
    items = [{'title': 'a', 'type': 'integer'}] * 2
    found = load(write_stubs([build_struct(type='array', prefixItems=items, minItems=2)])).X
    assert found.__struct_fields__ == ('a', 'a_')


@pytest.mark.parametrize('name', ['a"', 'a\\', 'a\n', '\ud800', b'a'])
def test_field_with_a_name_that_msgspec_cannot_have_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match='no field can be named'):
        write_stubs([build_struct(properties={name: {}})])


def test_object_that_is_called_has_another_name_than_each_parameter() -> None:
    described = MethodDescription(
        name='call',
        description='',
        kind=Kind.UNARY,
        safe=False,
        idempotent=False,
        parameters={'properties': {'self': {}, 'self_': {}}, 'required': []},
        result={},
    )
    load(write_stubs([ServiceDescription(name='a.B', methods=[described], definitions={})]))


@pytest.mark.parametrize(
    ('service', 'method', 'parameter'),
    [
        ('a.B\nevil()', 'call', 'a'),
        ('a.B', 'call(): evil()', 'a'),
        ('a.B', 'class', 'a'),
        ('a.B', '_private', 'a'),
        ('a.B', 'call', 'a=evil(), b'),
        ('a.B', 'call', 'class'),
        ('a.B', 'call', '__a'),
        ('a.B', 'call', '\N{LATIN SMALL LIGATURE FI}'),
        ('a.B', 'call', b'a'),
    ],
)
def test_name_that_python_cannot_have_is_refused(service: str, method: str, parameter: Any) -> None:
    described = MethodDescription(
        name=method,
        description='',
        kind=Kind.UNARY,
        safe=False,
        idempotent=False,
        parameters={'properties': {parameter: {}}, 'required': []},
        result={},
    )
    with pytest.raises(ValueError, match='can be named'):
        write_stubs([ServiceDescription(name=service, methods=[described], definitions={})])


@pytest.mark.parametrize('name', ['a', 'class', '__b', 'b=evil(), c', '', None])
def test_stream_with_a_name_that_python_cannot_have_is_refused(name: str | None) -> None:
    described = MethodDescription(
        name='call',
        description='',
        kind=Kind.CLIENT_STREAM,
        safe=False,
        idempotent=False,
        parameters={'properties': {'a': {}}, 'required': []},
        stream_parameter=name,
        item={},
        result={},
    )
    with pytest.raises(ValueError, match='can be named'):
        write_stubs([ServiceDescription(name='a.B', methods=[described], definitions={})])


# --- the comparison with a live service ----------------------------------------------------------


def test_a_stub_that_was_just_written_fits(client: RpcClient, source: str) -> None:
    assert check_stub(client, load(source).Shop, NAME) == []


def test_a_class_written_by_hand_fits(client: RpcClient) -> None:
    class Shop:
        def list(self, text: str = ...) -> list[Any]: ...  # type: ignore[assignment, empty-body]

    assert check_stub(client, Shop, NAME) == []


def test_service_that_is_not_there_is_an_error(client: RpcClient) -> None:
    with pytest.raises(RpcError, match='not_found'):
        check_stub(client, Color, 'none.v1.None')


@dataclasses.dataclass
class Smaller:
    name: str
    price: Decimal


@dataclasses.dataclass
class Larger(Smaller):
    stock: int


@dataclasses.dataclass
class Other:
    name: bytes
    price: Decimal


@dataclasses.dataclass
class Tree:
    size: int
    children: list[Tree]


@dataclasses.dataclass
class OtherTree:
    size: str
    children: list[OtherTree]


class Row(msgspec.Struct, array_like=True):
    x: int


class LongRow(msgspec.Struct, array_like=True):
    x: int
    note: str = ''


class ClosedRow(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    x: int


class RowOfText(msgspec.Struct, array_like=True):
    x: str


class LongPoint(NamedTuple):
    x: int
    y: float
    z: float


def function(name: str, result: Any, **parameters: Any) -> Any:
    """Build a function by its annotations; a tuple is a type and a default."""

    def called(self: Any) -> Any: ...  # type: ignore[empty-body]

    import inspect

    kind = inspect.Parameter.KEYWORD_ONLY
    split = {n: it if isinstance(it, tuple) else (it, kind) for n, it in parameters.items()}
    called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter('self', inspect.Parameter.POSITIONAL_ONLY),
            *(
                inspect.Parameter(n, kind, default=d if d is not kind else inspect.Parameter.empty)
                for n, (_, d) in split.items()
            ),
        ]
    )
    called.__annotations__ = {n: it for n, (it, _) in split.items()} | {'return': result}
    called.__name__ = name
    return called


def compare(stub: dict[str, Any], live: dict[str, Any]) -> list[str]:
    """Compare two functions named `f`, each given by its annotations."""
    first, second = (
        describe_api(type('Api', (), {'f': function('f', **it)}), 'a.B') for it in (stub, live)
    )
    return find_differences(first, second)


@pytest.mark.parametrize(
    ('stub', 'live'),
    [
        pytest.param({'result': int}, {'result': int}, id='equal'),
        pytest.param({'result': float}, {'result': int}, id='int result for float'),
        pytest.param({'result': None, 'a': int}, {'result': None, 'a': float}, id='int for float'),
        pytest.param({'result': Smaller}, {'result': Larger}, id='more fields in the result'),
        pytest.param({'result': None, 'a': Larger}, {'result': None, 'a': Smaller}, id='more sent'),
        pytest.param({'result': int | str | None}, {'result': int}, id='union result'),
        pytest.param({'result': None, 'a': str}, {'result': None, 'a': str | int}, id='union'),
        pytest.param({'result': None}, {'result': None, 'a': (int, 1)}, id='optional not sent'),
        pytest.param({'result': str}, {'result': Color}, id='enum as str'),
        pytest.param({'result': Literal['red', 'blue', 'x']}, {'result': Color}, id='more values'),
        pytest.param({'result': Any}, {'result': Tree}, id='anything'),
        pytest.param({'result': Tree}, {'result': Tree}, id='part of itself'),
        pytest.param({'result': AbstractSet[str]}, {'result': frozenset[str]}, id='sets'),
        pytest.param({'result': Row}, {'result': LongRow}, id='longer row'),
        pytest.param({'result': None, 'a': Row}, {'result': None, 'a': LongRow}, id='shorter row'),
        pytest.param({'result': Iterator[float]}, {'result': Iterator[int]}, id='stream'),
        pytest.param(
            {'result': ResultStream[float], 'a': Iterable[int]},
            {'result': Iterator[int], 'a': Iterator[int]},
            id='streams as a client sees them',
        ),
        pytest.param(
            {'result': None, 'a': Iterator[int]},
            {'result': None, 'b': Iterator[float]},
            id='stream with another name',
        ),
    ],
)
def test_what_works_is_no_difference(stub: dict[str, Any], live: dict[str, Any]) -> None:
    assert compare(stub, live) == []


@pytest.mark.parametrize(
    ('stub', 'live', 'lines'),
    [
        (
            {'result': None, 'a': str},
            {'result': None, 'a': int},
            ['f: a: the stub has str, the server has int'],
        ),
        (
            {'result': None, 'a': int},
            {'result': None},
            ['f: a: the server does not know it'],
        ),
        (
            {'result': None},
            {'result': None, 'a': int},
            ['f: a: the server needs it, the stub does not have it'],
        ),
        (
            {'result': None, 'a': (int, 1)},
            {'result': None, 'a': int},
            ['f: a: the server needs it, it may not be left out'],
        ),
        (
            {'result': int},
            {'result': float},
            ['f: result: the server has float, the stub has int'],
        ),
        (
            {'result': int},
            {'result': int | None},
            ['f: result: the server has None, the stub has int'],
        ),
        (
            {'result': list[Larger]},
            {'result': list[Smaller]},
            ['f: result[].stock: the stub needs it, the server does not have it'],
        ),
        (
            {'result': dict[str, Smaller]},
            {'result': dict[str, Other]},
            ['f: result.*.name: the server has bytes, the stub has str'],
        ),
        (
            {'result': None, 'a': tuple[int, str]},
            {'result': None, 'a': tuple[int, bytes]},
            ['f: a[1]: the stub has str, the server has bytes'],
        ),
        (
            {'result': None, 'a': tuple[int, str]},
            {'result': None, 'a': tuple[int]},
            ['f: a: the stub has tuple[int, str], the server has tuple[int]'],
        ),
        (
            {'result': ClosedRow},
            {'result': LongRow},
            ['f: result: the server has LongRow, the stub has ClosedRow'],
        ),
        (
            {'result': LongRow},
            {'result': RowOfText},
            ['f: result[0]: the server has str, the stub has int'],
        ),
        (
            {'result': LongPoint},
            {'result': Point},
            ['f: result: the server has Point, the stub has LongPoint'],
        ),
        (
            {'result': None, 'a': str},
            {'result': None, 'a': Color},
            ['f: a: the stub has str, the server has Color'],
        ),
        (
            {'result': Literal['red']},
            {'result': Color},
            ["f: result: the server has Color, the stub has Literal['red']"],
        ),
        (
            {'result': datetime},
            {'result': str},
            ['f: result: the server has str, the stub has datetime'],
        ),
        (
            {'result': Tree},
            {'result': OtherTree},
            ['f: result.size: the server has str, the stub has int'],
        ),
        (
            {'result': Iterator[int]},
            {'result': Iterator[float]},
            ['f: result[]: the server has float, the stub has int'],
        ),
        (
            {'result': Iterator[Larger]},
            {'result': Iterator[Smaller]},
            ['f: result[].stock: the stub needs it, the server does not have it'],
        ),
        (
            {'result': None, 'a': Iterator[str]},
            {'result': None, 'a': Iterator[int]},
            ['f: a[]: the stub has str, the server has int'],
        ),
        (
            {'result': list[int]},
            {'result': Iterator[int]},
            ['f: the server has a stream of results, the stub has no stream'],
        ),
        (
            {'result': Iterator[int], 'a': Iterator[int]},
            {'result': int, 'a': Iterator[int]},
            ['f: the server has a stream from the caller, the stub has streams both ways'],
        ),
    ],
)
def test_what_does_not_work_is_told_in_a_line(
    stub: dict[str, Any], live: dict[str, Any], lines: list[str]
) -> None:
    assert compare(stub, live) == lines


def build_graph(kind: str) -> dict[str, Any]:
    """Build types that hold each other; what is of another kind is in one of them."""

    def build_object(**properties: Any) -> dict[str, Any]:
        return {'type': 'object', 'properties': properties}

    node, twig = {'$ref': '#/$defs/Node'}, {'$ref': '#/$defs/Twig'}
    return {
        'Node': build_object(twig=twig, mark={'type': kind}),
        'Twig': build_object(node=node),
        'Both': build_object(u=node, v=twig),
        'BothOrOther': build_object(u={'anyOf': [node, {'type': 'object'}]}, v=twig),
    }


def test_what_fits_only_if_another_fits_is_not_taken_to_fit() -> None:
    empty = describe_api(type('Api', (), {'f': function('f', None)}), 'a.B')

    def describe(kind: str, result: str) -> ServiceDescription:
        method = msgspec.structs.replace(empty.methods[0], result={'$ref': f'#/$defs/{result}'})
        return msgspec.structs.replace(empty, methods=[method], definitions=build_graph(kind))

    lines = find_differences(describe('string', 'BothOrOther'), describe('integer', 'Both'))
    assert lines == ['f: result.v.node.mark: the server has int, the stub has str']


def test_class_with_two_streams_in_one_method_is_refused() -> None:
    with pytest.raises(TypeError, match='a and b are two streams'):
        compare({'result': None, 'a': Iterator[int], 'b': Iterator[int]}, {'result': None})


def test_method_that_the_server_does_not_have_is_a_difference() -> None:
    stub = describe_api(type('Api', (), {'f': function('f', None)}), 'a.B')
    live = ServiceDescription(name='a.B', methods=[], definitions={})
    assert find_differences(stub, live) == ['f: the server has no such method for you']


@given(result=schemas, definitions=st.dictionaries(texts, schemas, max_size=3))
def test_comparison_takes_any_description(result: Any, definitions: dict[str, Any]) -> None:
    stub = describe_api(type('Api', (), {'f': function('f', Tree)}), 'a.B')
    live = msgspec.structs.replace(
        stub,
        methods=[msgspec.structs.replace(stub.methods[0], result=result)],
        definitions=definitions,
    )
    assert all(isinstance(line, str) for line in find_differences(stub, live))
