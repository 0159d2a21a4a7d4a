"""Descriptions of services as documents that other people's tools read. PURE.

- `build_openapi()`: OpenAPI 3.1, of the services as the Connect protocol serves them, in JSON.
- `build_openrpc()`: OpenRPC 1.3, of the services as JSON-RPC serves them.

Methods with a stream are in neither: OpenAPI cannot say what is in envelopes, and JSON-RPC does not
serve them. Both are made of descriptions alone, so they can be made from a live server's
`meta.v1.Meta`, too. The definitions of all services are in one place there, so each has its service
before its name; what only streams refer to is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from degu_rpc.errors import Code
from degu_rpc.rpc.schema import DIALECT, REFERENCE
from degu_rpc.rpc.service import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from degu_rpc.rpc.schema import MethodDescription, Schema, ServiceDescription

_INFO = {'title': 'Services', 'version': '1'}
_COMPONENTS = '#/components/schemas/'

# Source: Connect protocol, "Error and EndStreamResponse". No definition of a service is named so.
_ERROR = 'Error'
_ERROR_SCHEMA = {
    'type': 'object',
    'properties': {
        'code': {'enum': [code.value for code in Code]},
        'message': {'type': 'string'},
        'details': {'type': 'array', 'items': {'type': 'object'}},
    },
    'required': ['code', 'message'],
}
_FAILED = {
    'description': 'The call failed; a request that is no call is answered with a text.',
    'content': {
        'application/json': {'schema': {'$ref': _COMPONENTS + _ERROR}},
        'text/plain': {'schema': {'type': 'string'}},
    },
}


def build_openapi(services: Iterable[ServiceDescription], prefix: str = '/rpc') -> dict[str, Any]:
    """Return the OpenAPI document of services that RpcApp serves at `prefix`.

    Source: OpenAPI Specification 3.1.
    """
    services = list(services)
    paths = {
        f'/{service.name}/{method.name}': {'post': _build_operation(service, method)}
        for service in services
        for method in _list_unary(service)
    }
    definitions = _keep_used(_join_definitions(services, lambda it: it), paths)
    return {
        'openapi': '3.1.0',
        'jsonSchemaDialect': DIALECT,
        'info': _INFO,
        'servers': [{'url': prefix or '/'}],
        'paths': paths,
        'components': {'schemas': {_ERROR: _ERROR_SCHEMA, **definitions}},
    }


def _build_operation(service: ServiceDescription, method: MethodDescription) -> dict[str, Any]:
    parameters, result = (
        _convert(schema, service.name, lambda it: it)
        for schema in (method.parameters, method.result)
    )
    return {
        'operationId': f'{service.name}.{method.name}',
        'tags': [service.name],
        **_describe(method),
        'requestBody': {
            'required': True,
            'content': {'application/json': {'schema': parameters}},
        },
        'responses': {
            '200': {
                'description': 'The result.',
                'content': {'application/json': {'schema': result}},
            },
            'default': _FAILED,
        },
    }


def build_openrpc(services: Iterable[ServiceDescription]) -> dict[str, Any]:
    """Return the OpenRPC document of services that JsonRpcApp serves.

    Source: OpenRPC Specification 1.3.2. Its schemas are JSON Schema draft 7.
    """
    services = list(services)
    methods = [
        _build_method(service, method) for service in services for method in _list_unary(service)
    ]
    return {
        'openrpc': '1.3.2',
        'info': _INFO,
        'methods': methods,
        'components': {'schemas': _keep_used(_join_definitions(services, _make_draft_7), methods)},
    }


def _build_method(service: ServiceDescription, method: MethodDescription) -> dict[str, Any]:
    required = method.parameters['required']
    names = list(method.parameters['properties'])
    # Those that may be left out must be the last; by position they have the signature's order.
    ordered = sorted(names, key=lambda name: name not in required)
    schemas = _convert(method.parameters, service.name, _make_draft_7)['properties']
    return {
        'name': f'{service.name}.{method.name}',
        **_describe(method),
        'paramStructure': 'either' if ordered == names else 'by-name',
        'params': [
            {'name': name, 'required': name in required, 'schema': schemas[name]}
            for name in ordered
        ],
        'result': {
            'name': 'result',
            'schema': _convert(method.result, service.name, _make_draft_7),
        },
    }


def _list_unary(service: ServiceDescription) -> list[MethodDescription]:
    return [method for method in service.methods if method.kind is Kind.UNARY]


def _describe(method: MethodDescription) -> dict[str, str]:
    if not method.description:
        return {}
    return {'summary': method.description.split('\n')[0], 'description': method.description}


def _join_definitions(
    services: Iterable[ServiceDescription], change: Callable[[Schema], Schema]
) -> dict[str, Schema]:
    return {
        f'{service.name}.{name}': _convert(schema, service.name, change)
        for service in services
        for name, schema in service.definitions.items()
    }


def _keep_used(definitions: dict[str, Schema], document: Any) -> dict[str, Schema]:
    """Return those that a document refers to, also by way of others."""
    used = set[str]()
    new = _find_names(document)
    while new := (new & definitions.keys()) - used:
        used |= new
        new = _find_names([definitions[name] for name in new])
    return {name: schema for name, schema in definitions.items() if name in used}


def _find_names(item: Any) -> set[str]:
    """Return the names of the definitions that any part of a document refers to."""
    parts: Iterable[Any] = item if isinstance(item, list) else ()
    found = set[str]()
    if isinstance(item, dict):
        parts = item.values()
        reference = item.get('$ref')
        if isinstance(reference, str):
            found.add(reference.removeprefix(_COMPONENTS))
    return found.union(*map(_find_names, parts))


def _convert(item: Any, service: str, change: Callable[[Schema], Schema]) -> Any:
    """Return a schema with references to the components, and each part of it changed."""
    if isinstance(item, list):
        return [_convert(part, service, change) for part in item]
    if not isinstance(item, dict):
        return item
    schema = change({key: _convert(part, service, change) for key, part in item.items()})
    reference = schema.get('$ref')
    if isinstance(reference, str):  # and not a property that is named so
        schema['$ref'] = f'{_COMPONENTS}{service}.{reference.removeprefix(REFERENCE)}'
    return schema


def _make_draft_7(schema: Schema) -> Schema:
    """Say the items of a tuple as draft 7 does. Source: JSON Schema 2020-12, "Release notes"."""
    items = schema.get('prefixItems')
    if not isinstance(items, list):
        return schema
    rest = {'additionalItems': schema['items']} if 'items' in schema else {}
    kept = {key: part for key, part in schema.items() if key not in ('prefixItems', 'items')}
    return {**kept, 'items': items, **rest}
