"""Python source of typed client classes, made of descriptions of services. PURE.

    write_stubs([description])  ->  a module with a class for each service

Such a class is for RpcClient.bind(), and a type checker knows what it takes and gives. A type of a
service becomes a msgspec struct, because that can be renamed, tagged or an array like the type that
it stands for; an enum becomes a Literal. A stream of results is a ResultStream; the caller's is an
Iterable, and the last parameter.

A description may come from a stranger, and what is written is meant to be imported. So every name
is checked or replaced, every value is written with repr(), and docstrings are escaped. What is not
understood is `Any`.
"""

from __future__ import annotations

import builtins
import json
import keyword
import math
import re
import unicodedata
from typing import TYPE_CHECKING, Any

from degu_rpc.rpc.schema import REFERENCE
from degu_rpc.rpc.service import METHOD_NAME, SERVICE_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable

    from degu_rpc.rpc.schema import MethodDescription, Schema, ServiceDescription

_HEAD = '''\
"""Typed clients, written by `degu stubs`. To change them, change the services."""

from __future__ import annotations

import builtins as _builtins
import collections.abc as _abc
import datetime as _datetime
import decimal as _decimal
import typing as _typing
import uuid as _uuid

import msgspec as _msgspec

from degu_rpc.rpc.result_stream import ResultStream as _ResultStream
'''
# The underscores: no class, field or method of a stub begins with one.

_FORMATS = {
    'date-time': '_datetime.datetime',
    'date': '_datetime.date',
    'time': '_datetime.time',
    'time-local': '_datetime.time',
    'duration': '_datetime.timedelta',
    'uuid': '_uuid.UUID',
    'decimal': '_decimal.Decimal',
}
_TYPES = {
    'string': 'str',
    'integer': 'int',
    'number': 'float',
    'boolean': 'bool',
    'null': 'None',
    'array': 'list',
    'object': 'dict',
}
_UNSET_TYPE = '_msgspec.UnsetType'
_UNSET = '_msgspec.UNSET'
_SCALARS = frozenset({'str', 'int', 'float', 'bool', 'None'})
_has_bad_character = re.compile(r'[\x00-\x1f"\\\ud800-\udfff]').search  # for msgspec
_CONTROLS = re.compile(r'[\x00-\x09\x0b-\x1f\x7f-\x9f\\"\u2028\u2029\ud800-\udfff]')


def write_stubs(services: Iterable[ServiceDescription]) -> str:
    """Return the source of a module with one class for each service, and the types they need.

    Raises ValueError for a service, method, parameter or field with a name that Python, or a
    msgspec struct, cannot have.
    """
    writer = _Writer()
    parts = [writer.write_service(service) for service in services]
    return '\n\n'.join([_HEAD, *parts])


class TypeWriter:
    """Writes schemas as Python types. `names` are those of the definitions they refer to.

    A builtin type whose name the module uses for something else, `shadowed`, is written in full.
    """

    def __init__(self, names: dict[str, str], shadowed: frozenset[str] = frozenset()) -> None:
        self._names = names
        self._shadowed = shadowed

    def write(self, schema: Any) -> str:
        """Return the Python type of what a schema describes; Any for what is not understood."""
        if not isinstance(schema, dict):
            return '_typing.Any'
        reference = part(schema, '$ref', str)
        if reference:
            return self._names.get(reference.removeprefix(REFERENCE), '_typing.Any')
        values = [schema['const']] if 'const' in schema else part(schema, 'enum', list)
        if values:
            if all(isinstance(value, str | int | None) for value in values):
                return f'_typing.Literal[{", ".join(map(repr, values))}]'
            return '_typing.Any'
        choices = part(schema, 'anyOf', list)
        if choices:
            return ' | '.join(dict.fromkeys(map(self.write, choices)))
        return self._write_type(schema)

    def _write_type(self, schema: Schema) -> str:
        kind = schema.get('type')
        known = _FORMATS.get(part(schema, 'format', str))
        if known and kind != 'array':
            return known
        if schema.get('contentEncoding') == 'base64':
            return self._builtin('bytes')
        if kind == 'array':
            return self._write_array(schema)
        name = _TYPES.get(kind) if isinstance(kind, str) else None
        if name == 'dict':
            keys = self.write(schema.get('propertyNames', {'type': 'string'}))
            values = self.write(schema.get('additionalProperties'))
            return f'{self._builtin("dict")}[{keys}, {values}]'
        return '_typing.Any' if name is None else self._builtin(name)

    def _write_array(self, schema: Schema) -> str:
        prefix = part(schema, 'prefixItems', list)
        if prefix or schema.get('items') is False:
            items = ', '.join(map(self.write, prefix)) or '()'
            return f'{self._builtin("tuple")}[{items}]'
        items = self.write(schema.get('items'))
        if schema.get('format') == 'set':
            return f'_abc.Set[{items}]'
        return f'{self._builtin("list")}[{items}]'

    def _builtin(self, name: str) -> str:
        return f'_builtins.{name}' if name in self._shadowed else name


class _Writer:
    def __init__(self) -> None:
        self._taken = {'annotations', *dir(builtins)}

    def _claim(self, *candidates: str) -> str:
        """Return the first name that is free in the module; the last one gets underscores."""
        for candidate in candidates:
            if candidate not in self._taken:
                break
        while candidate in self._taken:
            candidate += '_'
        self._taken.add(candidate)
        return candidate

    def write_service(self, service: ServiceDescription) -> str:
        if not re.fullmatch(SERVICE_NAME, service.name):
            raise ValueError(f'no service can be named {service.name!r}')
        shadowed = _find_shadowed(service)
        self._taken |= shadowed
        path = service.name.split('.')
        long_name = ''.join(word[:1].upper() + word[1:] for word in path)
        class_name = self._claim(_identify(path[-1]), long_name)
        names = {
            name: self._claim(_identify(name.rpartition('.')[2]), long_name + _identify(name))
            for name in service.definitions
        }
        types = TypeWriter(names, shadowed)
        doc = f"{service.name}: client.bind({class_name}, '{service.name}')"
        methods = [_write_method(method, types) for method in service.methods]
        return '\n\n'.join(
            [
                *(
                    _write_definition(names[name], schema, types)
                    for name, schema in service.definitions.items()
                ),
                f'class {class_name}:\n    """{doc}"""\n\n' + '\n'.join(methods),
            ]
        )


def _write_method(method: MethodDescription, types: TypeWriter) -> str:
    if not re.fullmatch(METHOD_NAME, method.name) or keyword.iskeyword(method.name):
        raise ValueError(f'no method can be named {method.name!r}')
    required = part(method.parameters, 'required', list)
    properties = part(method.parameters, 'properties', dict)
    kinds = {name: types.write(schema) for name, schema in properties.items()}
    if method.kind.takes_stream:
        name = method.stream_parameter or ''
        if name in kinds:
            raise ValueError(f'{method.name}: no two parameters can be named {name!r}')
        kinds[name] = f'_abc.Iterable[{types.write(method.item)}]'
        required = [*required, name]
    this = 'self'
    while this in kinds:
        this += '_'
    parameters = [this, '/'] if kinds else [this]
    is_optional = False
    for name, kind in kinds.items():
        if not _is_identifier(name) or name.startswith('__'):
            raise ValueError(f'{method.name}: no parameter can be named {name!r}')
        text = f'{name}: {kind}'
        if name not in required:
            text += ' = ...'
            is_optional = True
        elif is_optional and '*' not in parameters:
            parameters.append('*')
        parameters.append(text)
    result = types.write(method.result)
    if method.kind.gives_stream:
        result = f'_ResultStream[{result}]'
    head = f'    def {method.name}({", ".join(parameters)}) -> {result}:\n'
    return f'{head}{_write_doc(method.description, 8)}        raise NotImplementedError\n'


def _write_definition(name: str, schema: Any, types: TypeWriter) -> str:
    properties = part(schema, 'properties', dict)
    prefix = part(schema, 'prefixItems', list)
    if not prefix and part(schema, 'type', str) != 'object':
        # Evaluated where it stands, so it refers to nothing.
        return f'{name} = {TypeWriter({}).write(schema)}\n'
    options = ['kw_only=True']
    lines = []
    if prefix:
        options.append('array_like=True')
        wires = [part(item, 'title', str) for item in prefix]
        properties = {}
        least = schema.get('minItems')
        for index, (item, name_of_field) in enumerate(
            zip(prefix, _name_fields(wires), strict=True)
        ):
            has_default = isinstance(least, int) and index >= least
            kind, default = _write_field(item, types, has_default)
            # In an array nothing can be left out.
            is_unset = default == f'default={_UNSET}'
            kind = kind.removesuffix(f' | {_UNSET_TYPE}') if is_unset else kind
            lines.append(_format_field(name_of_field, kind, [] if is_unset else [default]))
    required = part(schema, 'required', list)
    for wire in properties:
        if not isinstance(wire, str) or _has_bad_character(wire):
            raise ValueError(f'no field can be named {wire!r}')
    has_tag = False
    for (wire, item), name_of_field in zip(
        properties.items(), _name_fields(list(properties)), strict=True
    ):
        if not has_tag and _is_tag(item):
            has_tag = True
            options += [f'tag={item["const"]!r}', f'tag_field={wire!r}']
            continue
        kind, default = _write_field(item, types, wire not in required)
        renamed = '' if wire == name_of_field else f'name={wire!r}'
        lines.append(_format_field(name_of_field, kind, [renamed, default]))
    doc = _write_doc(part(schema, 'description', str), 4)
    body = doc + ''.join(lines) or '    pass\n'
    return f'class {name}(_msgspec.Struct, {", ".join(options)}):\n{body}'


def _write_field(schema: Any, types: TypeWriter, has_default: bool) -> tuple[str, str]:
    """Return the type of a field, and what says its default: '' if there is none."""
    kind = types.write(schema)
    if not has_default:
        return kind, ''
    default = schema.get('default', schema) if isinstance(schema, dict) else schema
    is_written = not isinstance(default, float) or math.isfinite(default)
    if isinstance(default, str | int | float | None) and is_written and _takes(kind, default):
        return kind, f'default={default!r}'
    factory = kind.partition('[')[0]
    if default == [] and factory.removeprefix('_builtins.') == 'list':
        return kind, f'default_factory={factory}'
    return f'{kind} | {_UNSET_TYPE}', f'default={_UNSET}'


def _format_field(name: str, kind: str, options: list[str]) -> str:
    options = [option for option in options if option]
    value = f' = _msgspec.field({", ".join(options)})' if options else ''
    if len(options) == 1 and options[0].startswith('default='):
        value = f' = {options[0].removeprefix("default=")}'
    return f'    {name}: {kind}{value}\n'


def _name_fields(wires: list[str]) -> list[str]:
    """Return a name for each field: its own, or one that looks like it."""
    taken = {wire for wire in wires if _is_field(wire)}
    names: list[str] = []
    for index, wire in enumerate(wires):
        name = wire
        if not _is_field(wire) or wire in names:
            name = re.sub('[^A-Za-z0-9_]', '_', wire).strip('_')
            name = f'{name}_' if keyword.iskeyword(name) else name
            name = name if _is_field(name) else f'field_{index}'
            while name in taken:
                name += '_'
            taken.add(name)
        names.append(name)
    return names


def _is_field(name: str) -> bool:
    return _is_identifier(name) and not name.startswith('_')


def _is_identifier(name: object) -> bool:
    """Return whether Python reads a name as it is written; it takes some letters for others."""
    return (
        isinstance(name, str)
        and name.isidentifier()
        and not keyword.iskeyword(name)
        and unicodedata.normalize('NFKC', name) == name
    )


def _is_tag(schema: Any) -> bool:
    """Return whether a property says which one of several structs it is."""
    value = schema.get('const') if isinstance(schema, dict) else None
    if isinstance(value, str):
        return not _has_bad_character(value)
    return type(value) is int and -(2**63) <= value < 2**63


def _takes(kind: str, default: object) -> bool:
    """Return whether a plain value is one of the type that was written as `kind`."""
    if kind.startswith('_typing.Literal['):
        return repr(default) in kind
    names = [name.removeprefix('_builtins.') for name in kind.split(' | ')]
    name = 'None' if default is None else type(default).__name__
    return name in names and name in _SCALARS


def _escape(match: re.Match[str]) -> str:
    escaped = json.dumps(match[0])[1:-1]
    # A class cannot have a docstring with half a character in it: there it stands as it is written.
    return f'\\{escaped}' if '\ud800' <= match[0] <= '\udfff' else escaped


def _write_doc(text: str, indent: int) -> str:
    if not text:
        return ''
    safe = _CONTROLS.sub(_escape, text)
    margin = ' ' * indent
    lines = [f'{margin}{line}'.rstrip() for line in safe.split('\n')]
    end = f'\n{margin}"""\n' if len(lines) > 1 else '"""\n'
    return f'{margin}"""' + '\n'.join(lines).strip() + end


def _identify(name: str) -> str:
    """Return an identifier that looks like `name`."""
    found = re.sub('[^A-Za-z0-9_]', '_', name).strip('_')
    return found if found.isidentifier() and not keyword.iskeyword(found) else f'T{found}'


def _find_shadowed(service: ServiceDescription) -> frozenset[str]:
    """Return the names that are fields or methods, and so no builtin in the class around them."""
    names = {method.name for method in service.methods}
    for schema in service.definitions.values():
        wires = [wire for wire in part(schema, 'properties', dict) if isinstance(wire, str)]
        names.update(_name_fields(wires))
        titles = [part(item, 'title', str) for item in part(schema, 'prefixItems', list)]
        names.update(_name_fields(titles))
    return frozenset(names)


def part(schema: Any, key: str, kind: type) -> Any:
    """Return a part of a schema; what is empty, if it is not there or of another kind."""
    found = schema.get(key) if isinstance(schema, dict) else None
    return found if isinstance(found, kind) else kind()
