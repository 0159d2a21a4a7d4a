"""OpenAPI and OpenRPC documents: valid, true of the live server, and for their reader only."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple
from uuid import UUID

import jsonschema
import msgspec
import openapi_spec_validator
import pytest
import referencing
from referencing.jsonschema import DRAFT7

from degu_rpc import Code, Router, RpcApp, RpcError, Service
from degu_rpc.rpc.documents import build_openapi, build_openrpc
from degu_rpc.rpc.jsonrpc import JsonRpcApp
from degu_rpc.rpc.meta import META, build_meta
from degu_rpc.rpc.schema import ServiceDescription, describe_service
from degu_rpc.rpc.service import Kind

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable


HERE = Path(__file__).parent
OPENRPC = HERE / 'openrpc'


class Color(enum.Enum):
    RED = 'red'
    BLUE = 'blue'


class Point(NamedTuple):
    x: int
    y: float = 0.5


@dataclasses.dataclass
class Node:
    """Something in a tree."""

    name: str
    children: list[Node]
    place: Point | None = None


# No result is a bare tuple: schemathesis 4.32 mistakes its own conversion of it for a fault.


@dataclasses.dataclass
class Numbers:
    whole: int
    part: float
    few: int


@dataclasses.dataclass
class Texts:
    text: str
    data: bytes
    number: Decimal
    identity: UUID


@dataclasses.dataclass
class Times:
    at: datetime
    on: date
    clock: time
    span: timedelta


@dataclasses.dataclass
class Collections:
    names: frozenset[str]
    by_color: dict[Color, int]
    by_name: dict[str, Point]
    pair: tuple[int, str]


class Beat(enum.Enum):
    STRONG = 'strong'


@dataclasses.dataclass
class Tick:
    """What only a stream is made of, and refers to another class."""

    beat: Beat
    place: Point


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float


def build_services() -> list[Service]:
    values = Service('values.v1.Values')

    # Each gives back what it got, so that results are checked against their schema, too.

    @values.method(allow='peer', safe=True)
    def numbers(
        whole: int, part: float, *, few: Annotated[int, msgspec.Meta(ge=1, le=3)] = 2
    ) -> Numbers:
        """Take numbers.

        One of them may be left out.
        """
        return Numbers(whole, part, few)

    @values.method(allow='peer')
    def texts(text: str, data: bytes, number: Decimal, identity: UUID) -> Texts:
        return Texts(text, data, number, identity)

    @values.method(allow='peer')
    def times(at: datetime, on: date, clock: time, span: timedelta) -> Times:
        return Times(at, on, clock, span)

    @values.method(allow='peer')
    def classes(node: Node, shape: Circle | Square, color: Color, way: Literal['up', 1]) -> Node:
        return node

    @values.method(allow='peer')
    def collections(
        names: frozenset[str],
        by_color: dict[Color, int],
        by_name: dict[str, Point],
        pair: tuple[int, str],
    ) -> Collections:
        return Collections(names, by_color, by_name, pair)

    @values.method(allow='peer')
    def nothing() -> None:
        pass

    @values.method(allow='peer')
    def count(stop: int) -> Iterator[Tick]:
        raise NotImplementedError

    @values.method(allow='peer')
    def total(numbers: Iterator[int]) -> int:
        raise NotImplementedError

    failures = Service('failures.v1.Failures')

    @failures.method(allow='peer')
    def fail(code: Literal['not_found', 'aborted']) -> None:
        raise RpcError(Code(code), 'on purpose', [{'a': 1}])

    @failures.method(allow='owner')
    def wipe(*, sure: bool = False, name: str) -> Node:
        raise NotImplementedError

    return [values, failures]


def describe(*roles: str) -> list[ServiceDescription]:
    services = build_services()
    return [describe_service(service, set(roles)) for service in [*services, build_meta(services)]]


# --- OpenAPI -------------------------------------------------------------------------------------


@pytest.mark.parametrize('roles', [('owner',), ('peer',), ()], ids=str)
def test_openapi_document_is_valid(roles: tuple[str, ...]) -> None:
    document = json.loads(json.dumps(build_openapi(describe(*roles)), allow_nan=False))
    openapi_spec_validator.validate(document, cls=openapi_spec_validator.OpenAPIV31SpecValidator)


def test_openapi_document_has_what_its_reader_may_call() -> None:
    paths = set(build_openapi(describe('peer'))['paths'])
    assert '/failures.v1.Failures/fail' in paths
    assert '/values.v1.Values/classes' in paths
    assert f'/{META}/describe' in paths
    assert set(build_openapi(describe('owner'))['paths']) - paths == {'/failures.v1.Failures/wipe'}


def test_openapi_operation_tells_what_is_declared() -> None:
    document = build_openapi(describe('peer'), '/api')
    assert document['servers'] == [{'url': '/api'}]
    operation = document['paths']['/values.v1.Values/numbers']['post']
    assert operation['summary'] == 'Take numbers.'
    assert operation['description'] == 'Take numbers.\n\nOne of them may be left out.'
    schema = operation['requestBody']['content']['application/json']['schema']
    assert schema['required'] == ['whole', 'part']
    assert schema['properties']['few']['default'] == 2
    node = document['components']['schemas']['values.v1.Values.Node']
    assert node['properties']['children']['items'] == {
        '$ref': '#/components/schemas/values.v1.Values.Node'
    }


def test_methods_with_a_stream_are_in_no_document() -> None:
    described = describe('owner')
    kinds = {method.name: method.kind for service in described for method in service.methods}
    assert (kinds['count'], kinds['total']) == (Kind.SERVER_STREAM, Kind.CLIENT_STREAM)
    streams = {name for name, kind in kinds.items() if kind is not Kind.UNARY}
    paths = {path.rpartition('/')[2] for path in build_openapi(described)['paths']}
    names = {it['name'].rpartition('.')[2] for it in build_openrpc(described)['methods']}
    assert paths == names == set(kinds) - streams


def find_references(item: Any) -> set[str]:
    if not isinstance(item, dict | list):
        return set()
    found = (
        {item['$ref'].rpartition('/')[2]} if isinstance(item, dict) and '$ref' in item else set()
    )
    return found.union(*map(find_references, item.values() if isinstance(item, dict) else item))


@pytest.mark.parametrize('build', [build_openapi, build_openrpc])
@pytest.mark.parametrize('roles', [('owner',), ('peer',), ()], ids=str)
def test_components_are_those_that_something_refers_to(
    build: Callable[..., Any], roles: tuple[str, ...]
) -> None:
    described = describe(*roles)
    document = build(described)
    names = set(document['components']['schemas'])
    assert names - {'Error'} == find_references(document) - {'Error'}
    defined = {f'{it.name}.{name}' for it in described for name in it.definitions}
    streams_only = {f'values.v1.Values.{name}' for name in ('Tick', 'Beat')} if roles else set()
    assert defined - names == streams_only
    assert ('values.v1.Values.Point' in names) == bool(roles)  # a stream and others use it


@pytest.mark.slow
def test_schemathesis_finds_nothing_against_the_live_server(
    serve: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    services = build_services()
    router = Router()
    router.mount('/rpc', RpcApp([*services, build_meta(services)]))
    client, _ = serve(router)
    (tmp_path / 'openapi.json').write_text(json.dumps(build_openapi(describe('peer'))))
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'schemathesis.cli', 'run', 'openapi.json', '--seed', '8'),
            *('--url', f'http://127.0.0.1:{client.address[1]}/rpc', '--max-examples', '25'),
            *('--checks', 'all', '--continue-on-failure'),
            # What the core answers: GET has no body, OPTIONS is no method; see http-subset.md.
            *('--exclude-checks', 'unsupported_method,allow_header_conformance'),
        ],
        cwd=tmp_path,
        env=os.environ | {'SCHEMATHESIS_HOOKS': 'schemathesis_hooks', 'PYTHONPATH': str(HERE)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- OpenRPC -------------------------------------------------------------------------------------


@pytest.fixture(scope='session')
def openrpc_validator(
    require_program: Callable[[str], str], require_packages: Callable[[Path], None]
) -> jsonschema.Draft7Validator:
    """Give the validator of OpenRPC documents, whose schemas are of draft 7.

    Source of the schema: npm, @open-rpc/meta-schema. It is a module, so node says what is in it.
    """
    program = require_program('node')
    require_packages(OPENRPC)
    done = subprocess.run(
        [program, '-p', "JSON.stringify(require('@open-rpc/meta-schema').default)"],
        cwd=OPENRPC,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    draft7 = {
        **jsonschema.Draft7Validator.META_SCHEMA,
        'definitions': {
            **jsonschema.Draft7Validator.META_SCHEMA['definitions'],
            'JSONSchemaObject': {'properties': {'$ref': {'type': 'string'}}},
        },
    }
    registry = referencing.Registry().with_resources(
        [
            ('https://meta.json-schema.tools', DRAFT7.create_resource(draft7)),
            ('https://meta.json-schema.tools/', DRAFT7.create_resource(draft7)),
        ]
    )
    return jsonschema.Draft7Validator(json.loads(done.stdout), registry=registry)


@pytest.mark.parametrize('roles', [('owner',), ('peer',), ()], ids=str)
def test_openrpc_document_is_valid(
    openrpc_validator: jsonschema.Draft7Validator, roles: tuple[str, ...]
) -> None:
    document = json.loads(json.dumps(build_openrpc(describe(*roles)), allow_nan=False))
    openrpc_validator.validate(document)


@pytest.mark.parametrize(
    'change',
    [
        lambda document: document.pop('info'),
        lambda document: document.update(openrpc='9'),
        lambda document: document['methods'][0].pop('params'),
        lambda document: document['methods'][0].update(other=1),
        lambda document: document['methods'][0]['params'][0].update(schema={'type': 'none'}),
        lambda document: document['components']['schemas'].update(x={'required': 'x'}),
    ],
    ids=['info', 'version', 'params', 'unknown member', 'schema', 'component'],
)
def test_openrpc_document_that_is_wrong_would_be_found(
    openrpc_validator: jsonschema.Draft7Validator, change: Callable[[Any], Any]
) -> None:
    document = build_openrpc(describe('owner'))
    change(document)
    assert not openrpc_validator.is_valid(document)


def test_openrpc_parameters_that_may_be_left_out_are_the_last() -> None:
    methods = {method['name']: method for method in build_openrpc(describe('owner'))['methods']}
    numbers, wipe = methods['values.v1.Values.numbers'], methods['failures.v1.Failures.wipe']
    assert [(it['name'], it['required']) for it in wipe['params']] == [
        ('name', True),
        ('sure', False),
    ]
    assert (numbers['paramStructure'], wipe['paramStructure']) == ('either', 'by-name')


def test_openrpc_schemas_are_of_draft_7() -> None:
    """Draft 7 has `items` for the first ones, and `additionalItems` for what follows."""
    point = build_openrpc(describe('owner'))['components']['schemas']['values.v1.Values.Point']
    validator = jsonschema.Draft7Validator(point)
    assert validator.is_valid([1, 2.5])
    assert not validator.is_valid([1, 'x'])
    assert not validator.is_valid([1, 2.5, 3])


def test_discover_gives_the_document_of_what_the_caller_may_call(
    serve: Callable[..., Any], openrpc_validator: jsonschema.Draft7Validator
) -> None:
    client, _ = serve(JsonRpcApp(build_services()))
    headers = {'content-type': 'application/json'}
    question = b'{"jsonrpc":"2.0","method":"rpc.discover","id":1%b}'
    with client.connect() as connection:
        answers = [
            json.loads(connection.post('/', headers, question % params).body.read())
            for params in (b'', b',"params":[]', b',"params":[1]')
        ]
    document = answers[0]['result']
    openrpc_validator.validate(document)
    names = {method['name'] for method in document['methods']}
    assert 'failures.v1.Failures.fail' in names
    assert 'failures.v1.Failures.wipe' not in names
    assert answers[1]['result'] == document
    assert answers[2]['error']['code'] == -32602
