"""Whether a client's class still fits a live service, and where not.

    for line in check_stub(client, Files, 'files.v1.Files'):
        print(line)

The class is described like a service, by its annotations, and the two descriptions are compared.
What counts is whether calls work, not whether all is equal:

- Parameters travel to the service: what it asks for must be sent, and what is sent must be known.
- Results travel to the client: a field that it needs must be there, and others are ignored.
- Streams are on the same sides; how the parameter that is one is named does not matter.
- A type fits if each value of the sender's is one of the receiver's. An int is a float, too.

Constraints (lengths, ranges, patterns) are not compared: the service checks them at each call.

A description may come from a stranger, so what is said of it is bounded: MAX_FAULTS of one value,
each in a line of MAX_LINE_LENGTH characters without controls, and definitions inside each other as
deep as messages may be. What is deeper is said to be, and not compared.
"""

from __future__ import annotations

import inspect
import itertools
import re
import typing
from typing import TYPE_CHECKING, Any

from degu_rpc.errors import Fault
from degu_rpc.rpc.codec import build_shape
from degu_rpc.rpc.limits import MAX_FAULTS, MAX_LINE_LENGTH, MAX_NESTING
from degu_rpc.rpc.meta import META
from degu_rpc.rpc.result_stream import find_result_item, find_sent_item
from degu_rpc.rpc.schema import (
    REFERENCE,
    MethodDescription,
    Schemas,
    ServiceDescription,
)
from degu_rpc.rpc.service import Kind, find_kind
from degu_rpc.rpc.stubs import TypeWriter, part
from degu_rpc.text import escape_controls

if TYPE_CHECKING:
    from degu_rpc.rpc.client import RpcClient
    from degu_rpc.rpc.schema import Schema

_KINDS = {
    Kind.UNARY: 'no stream',
    Kind.SERVER_STREAM: 'a stream of results',
    Kind.CLIENT_STREAM: 'a stream from the caller',
    Kind.BIDI_STREAM: 'streams both ways',
}


def check_stub(client: RpcClient, api: type, service: str) -> list[str]:
    """Return what a class that is for `client.bind(api, service)` has wrong; nothing if it fits.

    The server must serve `meta.v1.Meta`. Methods that the class does not have do not count.

    Raises RpcError: `not_found` for a service that is not there or not for the caller, and what a
    call raises. Raises TypeError for an annotation that is missing or cannot travel.
    """
    found = client.call(META, 'describe', {'service': service}, ServiceDescription)
    return find_differences(describe_api(api, service), found)


def describe_api(api: type, service: str) -> ServiceDescription:
    """Describe the service that a client's class stands for, by its public functions.

    Raises TypeError for an annotation that is missing or cannot travel.
    """
    schemas = Schemas()
    methods = [
        _describe_function(name, function, schemas)
        for name, function in inspect.getmembers(api, inspect.isfunction)
        if not name.startswith('_')
    ]
    return ServiceDescription(name=service, methods=methods, definitions=schemas.definitions)


def _describe_function(name: str, function: Any, schemas: Schemas) -> MethodDescription:
    hints = typing.get_type_hints(function, include_extras=True)
    _, *parameters = inspect.signature(function).parameters.values()
    for needed in ('return', *(parameter.name for parameter in parameters)):
        if needed not in hints:
            raise TypeError(f'{function.__qualname__}: {needed!r} has no annotation')
    items = {
        parameter.name: item
        for parameter in parameters
        if (item := find_sent_item(parameter.name, hints[parameter.name]))
    }
    if len(items) > 1:
        raise TypeError(f'{function.__qualname__}: {" and ".join(items)} are two streams')
    stream_parameter, item = next(iter(items.items()), (None, None))
    parameters = [parameter for parameter in parameters if parameter.name not in items]
    result_item = find_result_item(hints['return'])
    result = result_item or build_shape(hints['return'])
    return MethodDescription(
        name=name,
        description='',
        kind=find_kind(item is not None, result_item is not None),
        safe=False,
        idempotent=False,
        parameters={
            'type': 'object',
            'properties': {
                parameter.name: schemas.build(build_shape(hints[parameter.name]).annotation)
                for parameter in parameters
            },
            'required': [
                parameter.name for parameter in parameters if parameter.default is parameter.empty
            ],
            'additionalProperties': False,
        },
        stream_parameter=stream_parameter,
        item=None if item is None else schemas.build(item.annotation),
        result=schemas.build(result.annotation),
    )


def find_differences(stub: ServiceDescription, live: ServiceDescription) -> list[str]:
    """Return a line for each way in which calls by `stub` do not fit the service `live`."""
    methods = {method.name: method for method in live.methods}
    lines = []
    for method in stub.methods:
        found = methods.get(method.name)
        if found is None:
            lines.append(f'{method.name}: the server has no such method for you')
            continue
        if found.kind is not method.kind:
            lines.append(
                f'{method.name}: the server has {_KINDS[found.kind]}, '
                f'the stub has {_KINDS[method.kind]}'
            )
            continue
        for name in _list_required(found.parameters):
            if (
                name in method.parameters['properties']
                and name not in method.parameters['required']
            ):
                lines.append(f'{method.name}: {name}: the server needs it, it may not be left out')
        parameters = _Comparison('the stub', stub.definitions, 'the server', live.definitions)
        result = _Comparison('the server', live.definitions, 'the stub', stub.definitions)
        lines += [
            f'{method.name}: {path.removeprefix(".")}: {reason}'
            for path, reason in parameters.compare(method.parameters, found.parameters)
        ]
        if method.kind.takes_stream:
            lines += [
                f'{method.name}: {method.stream_parameter}[]{path}: {reason}'
                for path, reason in parameters.compare(method.item, found.item)
            ]
        lines += [
            f'{method.name}: result{"[]" if method.kind.gives_stream else ""}{path}: {reason}'
            for path, reason in result.compare(found.result, method.result)
        ]
    return [escape_controls(line[:MAX_LINE_LENGTH]) for line in lines]


class _Comparison:
    """Compares schemas of a sender with those of a receiver.

    Paths are relative to what is compared. What was compared is remembered, as a type may be part
    of itself.
    """

    def __init__(
        self,
        sender: str,
        sent_definitions: dict[str, Any],
        receiver: str,
        wanted_definitions: dict[str, Any],
    ) -> None:
        self._sender, self._sent_definitions = sender, sent_definitions
        self._receiver, self._wanted_definitions = receiver, wanted_definitions
        self._known: dict[tuple[str, str], list[Fault]] = {}
        self._depth = 0

    def compare(self, sent: Any, wanted: Any) -> list[Fault]:
        """Return where values of the schema `sent` are none of the schema `wanted`."""
        pair = (repr(sent), repr(wanted))
        if pair not in self._known:
            if self._depth == MAX_NESTING:
                return [Fault('', f'types are more than {MAX_NESTING} deep inside each other')]
            self._known[pair] = []  # assumed, as long as it is under way
            self._depth += 1
            faults = self._compare(sent, wanted)[:MAX_FAULTS]
            self._depth -= 1
            if faults:
                self._forget_since(pair)
            self._known[pair] = faults
        return self._known[pair]

    def _forget_since(self, pair: tuple[str, str]) -> None:
        """Forget what fits since `pair` was assumed to fit: it may do so only if that does."""
        later = itertools.takewhile(lambda other: other != pair, reversed(list(self._known)))
        for other in later:
            if not self._known[other]:
                del self._known[other]

    def _compare(self, sent: Any, wanted: Any) -> list[Fault]:
        source = _resolve(sent, self._sent_definitions)
        target = _resolve(wanted, self._wanted_definitions)
        if not source or not target:  # anything: nobody can say before a call
            return []
        choices = part(source, 'anyOf', list)
        if choices:
            return [fault for choice in choices for fault in self.compare(choice, wanted)]
        options = part(target, 'anyOf', list)
        if options:
            fits = any(not self.compare(sent, option) for option in options)
        else:
            faults = self._compare_types(source, target)
            if faults is not None:
                return faults
            fits = False
        if fits:
            return []
        sent_type = _write_type(sent, self._sent_definitions)
        wanted_type = _write_type(wanted, self._wanted_definitions)
        return [Fault('', f'{self._sender} has {sent_type}, {self._receiver} has {wanted_type}')]

    def _compare_types(self, sent: Schema, wanted: Schema) -> list[Fault] | None:
        """Compare what is neither a reference nor a union; None for another type altogether."""
        sent_values, wanted_values = _values_of(sent), _values_of(wanted)
        if wanted_values is not None:
            fits = sent_values is not None and all(it in wanted_values for it in sent_values)
            return [] if fits else None
        kind = _kind_of(wanted)
        if sent_values is not None:
            kinds = {_kind_of_value(value) for value in sent_values}
        else:
            kinds = {_kind_of(sent)}
        if not all(it == kind or (it, kind) == ('integer', 'number') for it in kinds):
            return None
        if kind == 'object':
            return self._compare_objects(sent, wanted)
        return self._compare_arrays(sent, wanted) if kind in ('array', 'set') else []

    def _compare_objects(self, sent: Schema, wanted: Schema) -> list[Fault]:
        given, known = part(sent, 'properties', dict), part(wanted, 'properties', dict)
        faults = [
            Fault(f'.{name}', f'{self._receiver} needs it, {self._sender} does not have it')
            for name in _list_required(wanted)
            if name not in given
        ]
        for name, schema in given.items():
            if name in known:
                faults += _below(f'.{name}', self.compare(schema, known[name]))
            elif wanted.get('additionalProperties') is False:
                faults.append(Fault(f'.{name}', f'{self._receiver} does not know it'))
        for key in ('propertyNames', 'additionalProperties'):
            faults += _below('.*', self.compare(part(sent, key, dict), part(wanted, key, dict)))
        return faults

    def _compare_arrays(self, sent: Schema, wanted: Schema) -> list[Fault] | None:
        given, known = part(sent, 'prefixItems', list), part(wanted, 'prefixItems', list)
        if len(given) != len(known) and not _fits_length(sent, wanted):
            return None
        faults = self.compare(part(sent, 'items', dict), part(wanted, 'items', dict))
        faults = _below('[]', faults)
        for index, (one, other) in enumerate(zip(given, known, strict=False)):
            faults += _below(f'[{index}]', self.compare(one, other))
        return faults


def _fits_length(sent: Schema, wanted: Schema) -> bool:
    """Return whether a row of fields may be taken for another that has fewer or more of them."""
    given, known = len(part(sent, 'prefixItems', list)), len(part(wanted, 'prefixItems', list))
    if not given or not known:
        return False
    if given > known:
        return 'items' not in wanted
    least: int = part(wanted, 'minItems', int)
    return given >= least


def _list_required(schema: Any) -> list[str]:
    return [name for name in part(schema, 'required', list) if isinstance(name, str)]


def _below(path: str, faults: list[Fault]) -> list[Fault]:
    return [Fault(path + fault.path, fault.reason) for fault in faults]


def _resolve(schema: Any, definitions: dict[str, Any]) -> Schema:
    """Follow a reference; what leads nowhere is anything."""
    reference = part(schema, '$ref', str)
    if reference:
        schema = definitions.get(reference.removeprefix(REFERENCE))
    return schema if isinstance(schema, dict) else {}


def _write_type(schema: Any, definitions: dict[str, Any]) -> str:
    names = {name: name.rpartition('.')[2] for name in definitions}
    return re.sub('_(typing|abc|datetime|decimal|uuid)[.]', '', TypeWriter(names).write(schema))


def _values_of(schema: Schema) -> list[Any] | None:
    """Return the values of an enum or a constant; None for another schema."""
    if 'const' in schema:
        return [schema['const']]
    return schema['enum'] if isinstance(schema.get('enum'), list) else None


def _kind_of(schema: Schema) -> str:
    """Return the type, or the format where that makes it another one."""
    if schema.get('contentEncoding') == 'base64':
        return 'bytes'
    name = part(schema, 'format', str) or str(schema.get('type'))
    return 'time' if name == 'time-local' else name


def _kind_of_value(value: Any) -> str:
    return {str: 'string', int: 'integer', bool: 'boolean'}.get(type(value), 'null')
