"""What services look like to somebody who has only their description: JSON Schema. PURE.

1. `Schemas` turns annotations into JSON Schema 2020-12. Classes become definitions that are
   referred to by name, so that a type may be part of itself.
2. `describe_service()` puts together what a caller with certain roles may call: names, docstrings,
   which sides are streams, and the schemas of parameters, items and results. Documents, stubs and
   comparisons are made of that, and so they can be made on the other side of a connection too.

The schemas say what our codecs take and give in JSON, which is not what msgspec's own say: a
datetime has a time zone, a Decimal may be a number, keys of a map can be an enum. They promise no
more than JSON Schema can say: 1.0 is an integer there, and no int here.

A description is itself a JSON document, in which references are resolved.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import msgspec
import msgspec.inspect as mi

from degu_rpc.errors import CodecError
from degu_rpc.rpc.codec import DECIMAL, JSON
from degu_rpc.rpc.service import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Set
    from collections.abc import Mapping as MappingABC

    from degu_rpc.rpc.service import Method, Service

Schema = dict[str, Any]

DIALECT = 'https://json-schema.org/draft/2020-12/schema'
REFERENCE = '#/$defs/'
"""What stands before the name of a definition, in a description."""

_BASE64 = r'^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$'
# Days are what timedelta has most of; months and years have no length.
_DURATION = r'^-?P([0-9]{1,8}D)?(T([0-9]{1,9}H)?([0-9]{1,9}M)?([0-9]{1,9}(\.[0-9]{1,6})?S)?)?$'
_TIME = r'^([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?'
_OFFSET = r'(Z|z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])'
_NAME = re.compile('[^A-Za-z0-9_.-]+')

_NO_DEFAULT = msgspec.NODEFAULT


class MethodDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A method as its callers see it; `parameters`, `item` and `result` are JSON Schema."""

    name: str
    description: str
    kind: Kind
    safe: bool
    idempotent: bool
    parameters: dict[str, Any]
    """Those that are no stream, as one object."""
    stream_parameter: str | None = None
    """The name of the parameter that is a stream from the caller."""
    item: dict[str, Any] | None = None
    """Each item of that stream."""
    result: dict[str, Any]
    """The result, or each of a stream of results."""


class ServiceDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A service as one of its callers sees it: a JSON document that resolves its references."""

    dialect: str = msgspec.field(name='$schema', default=DIALECT)
    name: str
    methods: list[MethodDescription]
    definitions: dict[str, Any] = msgspec.field(name='$defs')


def describe_service(service: Service, roles: Set[str]) -> ServiceDescription:
    """Describe what a caller with `roles` may call of a service; that may be nothing."""
    schemas = Schemas()
    methods = [
        _describe_method(name, method, schemas)
        for name, method in service.methods.items()
        if not method.roles.isdisjoint(roles)
    ]
    return ServiceDescription(
        name=service.name, methods=methods, definitions=dict(sorted(schemas.definitions.items()))
    )


def _describe_method(name: str, method: Method, schemas: Schemas) -> MethodDescription:
    signature = inspect.signature(method.function)
    properties = {}
    for parameter, shape in method.parameters.items():
        default = signature.parameters[parameter].default
        properties[parameter] = schemas.build(
            shape.annotation, _NO_DEFAULT if parameter in method.required else default
        )
    return MethodDescription(
        name=name,
        description=inspect.getdoc(method.function) or '',
        kind=method.kind,
        safe=method.safe,
        idempotent=method.idempotent,
        parameters={
            'type': 'object',
            'properties': properties,
            'required': [parameter for parameter in properties if parameter in method.required],
            'additionalProperties': False,
        },
        stream_parameter=method.stream_parameter,
        item=None if method.item is None else schemas.build(method.item.annotation),
        result=schemas.build(method.result.annotation),
    )


class Schemas:
    """Builds JSON Schema of annotations that build_shape() accepts; collects what they refer to."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}
        self._names: dict[Any, str] = {}

    def build(self, annotation: Any, default: Any = _NO_DEFAULT) -> Schema:
        """Return the schema of a type; with a `default`, where that can be written as JSON."""
        schema = self._build(mi.type_info(annotation))
        return _add_default(schema, default)

    def _build(self, info: mi.Type) -> Schema:
        if isinstance(info, mi.Metadata):
            return {**self._build(info.type), **(info.extra_json_schema or {})}
        builder = _DEFINED.get(type(info))
        if builder is not None:
            return {'$ref': REFERENCE + self._define(info, builder)}
        return _BUILDERS[type(info)](self, info)

    def _define(self, info: Any, builder: Callable[[Schemas, Any], Schema]) -> str:
        name = self._names.get(info.cls)
        if name is None:
            name = _name_of(info.cls)
            if name in self.definitions:
                module, path = getattr(info.cls, '__module__', ''), info.cls.__qualname__
                name = _NAME.sub('_', f'{module}.{path}')
            while name in self.definitions:
                name += '_'
            self._names[info.cls] = name
            self.definitions[name] = {}  # first, as the class may be part of itself
            schema = {'title': name.rpartition('.')[2], **builder(self, info)}
            doc = _doc_of(info.cls)
            self.definitions[name] = {**schema, 'description': doc} if doc else schema
        return name

    def build_fields(self, fields: tuple[mi.Field, ...]) -> dict[str, Schema]:
        """Return the schema of each field of a class, by its name on the wire."""
        return {field.encode_name: self._build_field(field) for field in fields}

    def _build_field(self, field: mi.Field) -> Schema:
        default = field.default
        if field.default_factory in (list, dict, set, frozenset):
            default = field.default_factory()
        return _add_default(self._build(field.type), default)

    def build_items(self, types: tuple[mi.Type, ...]) -> list[Schema]:
        """Return the schemas of several types."""
        return [self._build(info) for info in types]


def _add_default(schema: Schema, default: Any) -> Schema:
    if default is _NO_DEFAULT:
        return schema
    try:
        return {**schema, 'default': JSON.decode(JSON.encode(default))}
    except CodecError:  # NaN for one: it is a default, and no message could hold it
        return schema


def _name_of(cls: Any) -> str:
    arguments = getattr(cls, '__args__', ())
    names = [getattr(part, '__name__', repr(part)) for part in (cls, *arguments)]
    return _NAME.sub('_', '_'.join(names))


def _doc_of(cls: Any) -> str:
    """Return the docstring of a class; not an inherited one, nor one that was generated."""
    cls = getattr(cls, '__origin__', cls)
    doc = vars(cls).get('__doc__') or ''
    return '' if doc.startswith(f'{cls.__name__}(') else inspect.cleandoc(doc)


# --- one builder for each type -------------------------------------------------------------------


def _pick(info: Any, **keywords: str) -> Schema:
    """Return the constraints that are set, under their names in JSON Schema."""
    found = {keyword: getattr(info, name) for name, keyword in keywords.items()}
    return {keyword: value for keyword, value in found.items() if value is not None}


def _number(kind: str) -> Callable[[Schemas, Any], Schema]:
    return lambda _, info: {
        'type': kind,
        **_pick(
            info,
            ge='minimum',
            gt='exclusiveMinimum',
            le='maximum',
            lt='exclusiveMaximum',
            multiple_of='multipleOf',
        ),
    }


def _constant(**schema: Any) -> Callable[[Schemas, Any], Schema]:
    return lambda *_: dict(schema)


def _string(_: Schemas, info: mi.StrType) -> Schema:
    lengths = _pick(info, min_length='minLength', max_length='maxLength', pattern='pattern')
    return {'type': 'string', **lengths}


def _bytes(_: Schemas, info: mi.BytesType) -> Schema:
    lengths = _pick(info, min_length='minLength', max_length='maxLength')
    characters = {keyword: (size + 2) // 3 * 4 for keyword, size in lengths.items()}
    return {'type': 'string', 'contentEncoding': 'base64', 'pattern': _BASE64, **characters}


def _time(_: Schemas, info: mi.TimeType) -> Schema:
    if info.tz is True:
        return {'type': 'string', 'format': 'time'}
    # No format of JSON Schema leaves the offset open.
    offset = '' if info.tz is False else f'{_OFFSET}?'
    return {'type': 'string', 'format': 'time-local', 'pattern': f'{_TIME}{offset}$'}


def _array(schemas: Schemas, info: Any) -> Schema:
    (items,) = schemas.build_items((info.item_type,))
    # Not uniqueItems: an item that comes twice is taken.
    kind = {'format': 'set'} if isinstance(info, mi.SetType | mi.FrozenSetType) else {}
    lengths = _pick(info, min_length='minItems', max_length='maxItems')
    return {'type': 'array', 'items': items, **kind, **lengths}


def _tuple(schemas: Schemas, info: mi.TupleType) -> Schema:
    items = schemas.build_items(info.item_types)
    size = len(items)
    prefix = {'prefixItems': items} if items else {}
    return {'type': 'array', **prefix, 'items': False, 'minItems': size, 'maxItems': size}


def _map(schemas: Schemas, info: mi.DictType) -> Schema:
    (values,) = schemas.build_items((info.value_type,))
    return {
        'type': 'object',
        **_keys(schemas, info.key_type),
        'additionalProperties': values,
        **_pick(info, min_length='minProperties', max_length='maxProperties'),
    }


def _keys(schemas: Schemas, info: mi.Type) -> Schema:
    """Return what the schema of a map says of its keys, which are strings in JSON."""
    bare = info.type if isinstance(info, mi.Metadata) else info
    if isinstance(bare, mi.StrType):
        (schema,) = schemas.build_items((info,))
        return {} if schema == {'type': 'string'} else {'propertyNames': schema}
    values: list[Any] = []
    for item in bare.types if isinstance(bare, mi.UnionType) else (bare,):
        if not isinstance(item, mi.EnumType | mi.LiteralType):
            return {}
        values += [m.value for m in item.cls] if isinstance(item, mi.EnumType) else item.values
    return {'propertyNames': {'enum': [str(value) for value in values]}}


def _union(schemas: Schemas, info: mi.UnionType) -> Schema:
    items = schemas.build_items(info.types)
    structs = [index for index, item in enumerate(info.types) if isinstance(item, mi.StructType)]
    # Where there is only one, it is known without its tag.
    for index in structs if len(structs) > 1 else ():
        struct = info.types[index]
        assert isinstance(struct, mi.StructType)
        if not struct.array_like:
            items[index] = {**items[index], 'required': [struct.tag_field]}
    return {'anyOf': items}


def _object(schemas: Schemas, info: Any) -> Schema:
    properties = schemas.build_fields(info.fields)
    required = [field.encode_name for field in info.fields if field.required]
    tag = getattr(info, 'tag', None)
    if tag is not None:
        properties = {info.tag_field: {'const': tag}, **properties}
    closed = getattr(info, 'forbid_unknown_fields', False)
    return {
        'type': 'object',
        'properties': properties,
        'required': required,
        **({'additionalProperties': False} if closed else {}),
    }


def _row(schemas: Schemas, info: Any) -> Schema:
    """A class that is an array on the wire; each item's title is its field's name."""
    fields = schemas.build_fields(info.fields)
    items = [{**schema, 'title': name} for name, schema in fields.items()]
    least = 1 + max(
        (index for index, field in enumerate(info.fields) if field.required), default=-1
    )
    tag = getattr(info, 'tag', None)
    if tag is not None:
        items, least = [{'const': tag}, *items], least + 1
    is_open = isinstance(info, mi.StructType) and not info.forbid_unknown_fields
    end = {} if is_open else {'items': False, 'maxItems': len(items)}
    return {'type': 'array', 'prefixItems': items, 'minItems': least, **end}


def _struct(schemas: Schemas, info: mi.StructType) -> Schema:
    return _row(schemas, info) if info.array_like else _object(schemas, info)


def _enum(_: Schemas, info: mi.EnumType) -> Schema:
    return {'enum': [member.value for member in info.cls]}


def _literal(_: Schemas, info: mi.LiteralType) -> Schema:
    return {'enum': list(info.values)}


_BUILDERS: MappingABC[type[mi.Type], Callable[[Schemas, Any], Schema]] = {
    mi.AnyType: _constant(),
    mi.NoneType: _constant(type='null'),
    mi.BoolType: _constant(type='boolean'),
    mi.IntType: _number('integer'),
    mi.FloatType: _number('number'),
    mi.StrType: _string,
    mi.BytesType: _bytes,
    mi.DateTimeType: _constant(type='string', format='date-time'),
    mi.DateType: _constant(type='string', format='date'),
    mi.TimeType: _time,
    mi.TimeDeltaType: _constant(type='string', format='duration', pattern=_DURATION),
    mi.UUIDType: _constant(type='string', format='uuid'),
    mi.DecimalType: _constant(type=['string', 'number'], format='decimal', pattern=f'^{DECIMAL}$'),
    mi.ListType: _array,
    mi.VarTupleType: _array,
    mi.CollectionType: _array,
    mi.SetType: _array,
    mi.FrozenSetType: _array,
    mi.TupleType: _tuple,
    mi.DictType: _map,
    mi.UnionType: _union,
    mi.LiteralType: _literal,
}
_DEFINED: MappingABC[type[mi.Type], Callable[[Schemas, Any], Schema]] = {
    mi.EnumType: _enum,
    mi.StructType: _struct,
    mi.DataclassType: _object,
    mi.TypedDictType: _object,
    mi.NamedTupleType: _row,
}
