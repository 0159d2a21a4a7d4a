"""The service that describes services, as a client sees it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from degu_rpc import Code, RpcApp, RpcClient, RpcError, Service
from degu_rpc.rpc.codec import CODECS, JSON
from degu_rpc.rpc.meta import META, build_meta
from degu_rpc.rpc.schema import DIALECT, ServiceDescription

if TYPE_CHECKING:
    from collections.abc import Callable

    from degu_rpc.rpc.codec import Codec


@dataclasses.dataclass
class Photo:
    name: str
    data: bytes


def build_services() -> list[Service]:
    photos, keys = Service('photos.v1.Photos'), Service('keys.v1.Keys')

    @photos.method(allow=['family', 'friend'], safe=True)
    def show(name: str) -> Photo:
        """Show a photo."""
        raise NotImplementedError

    @photos.method(allow='family')
    def drop(photo: Photo) -> None:
        raise NotImplementedError

    @keys.method(allow='owner')
    def create() -> None:
        raise NotImplementedError

    return [photos, keys, Service('empty.v1.Empty')]


@pytest.fixture
def call(serve: Callable[..., Any]) -> Callable[..., Any]:
    """Call a method of Meta with some roles."""

    def call(
        method: str, *roles: str, codec: Codec = JSON, result_type: Any = Any, **args: Any
    ) -> Any:
        services = build_services()
        client, _ = serve(RpcApp([*services, build_meta(services)]), roles=roles)
        with RpcClient(client, '', codec) as rpc:
            return rpc.call(META, method, args, result_type)

    return call


@pytest.mark.parametrize(
    ('role', 'names'),
    [
        ('friend', [META, 'photos.v1.Photos']),
        ('owner', ['keys.v1.Keys', META, 'photos.v1.Photos']),
    ],
)
def test_lists_what_the_caller_may_call_something_of(
    call: Callable[..., Any], role: str, names: list[str]
) -> None:
    assert call('list_services', role) == names


@pytest.mark.parametrize('method', ['list_services', 'describe'])
def test_who_may_call_nothing_else_may_not_call_it(call: Callable[..., Any], method: str) -> None:
    with pytest.raises(RpcError) as caught:
        call(method, 'stranger', **({'service': META} if method == 'describe' else {}))
    assert caught.value.code is Code.PERMISSION_DENIED


@pytest.mark.parametrize(
    ('role', 'names'),
    [('friend', ['show']), ('family', ['show', 'drop']), ('owner', ['show', 'drop'])],
)
def test_describes_the_methods_that_the_caller_may_call(
    call: Callable[..., Any], role: str, names: list[str]
) -> None:
    found = call('describe', role, service='photos.v1.Photos', result_type=ServiceDescription)
    assert [method.name for method in found.methods] == names


def test_what_is_not_for_the_caller_is_told_apart_from_nothing_by_nothing(
    call: Callable[..., Any],
) -> None:
    messages = []
    for name in ('keys.v1.Keys', 'none.v1.None'):
        with pytest.raises(RpcError) as caught:
            call('describe', 'family', service=name)
        assert caught.value.code is Code.NOT_FOUND
        messages.append(caught.value.message.replace(name, ''))
    assert messages[0] == messages[1]


@pytest.mark.parametrize('codec', CODECS, ids=lambda codec: codec.name)
def test_description_is_a_valid_schema_document(call: Callable[..., Any], codec: Codec) -> None:
    document = call('describe', 'friend', codec=codec, service='photos.v1.Photos')
    assert document['$schema'] == DIALECT
    jsonschema.Draft202012Validator.check_schema(document)
    assert document['methods'] == [
        {
            'name': 'show',
            'description': 'Show a photo.',
            'kind': 'unary',
            'safe': True,
            'idempotent': True,
            'parameters': {
                'type': 'object',
                'properties': {'name': {'type': 'string'}},
                'required': ['name'],
                'additionalProperties': False,
            },
            'stream_parameter': None,
            'item': None,
            'result': {'$ref': '#/$defs/Photo'},
        }
    ]
    assert set(document['$defs']) == {'Photo'}


def test_it_describes_itself(call: Callable[..., Any]) -> None:
    document = call('describe', 'friend', service=META)
    assert [method['name'] for method in document['methods']] == ['list_services', 'describe']
    assert {'ServiceDescription', 'MethodDescription', 'Kind'} == set(document['$defs'])


def test_a_meta_beside_another_is_refused() -> None:
    with pytest.raises(ValueError, match='two services'):
        build_meta([Service(META)])
