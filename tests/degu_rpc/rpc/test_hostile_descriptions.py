"""Descriptions of services as a stranger writes them: what is made of them is bounded and ours."""

from __future__ import annotations

from typing import Any

import pytest

from degu_rpc.rpc.differences import describe_api, find_differences
from degu_rpc.rpc.limits import MAX_FAULTS, MAX_LINE_LENGTH, MAX_NESTING
from degu_rpc.rpc.schema import MethodDescription, ServiceDescription
from degu_rpc.rpc.service import Kind
from degu_rpc.rpc.stubs import write_stubs


class Api:
    def get(self) -> int: ...  # type: ignore[empty-body]


def describe(definitions: dict[str, Any], **changed: Any) -> ServiceDescription:
    parts: dict[str, Any] = {
        'parameters': {'type': 'object', 'properties': {}, 'required': []},
        'result': {'$ref': '#/$defs/D0'},
    }
    method = MethodDescription(
        name='get',
        description='',
        kind=Kind.UNARY,
        safe=False,
        idempotent=False,
        stream_parameter=None,
        item=None,
        **(parts | changed),
    )
    return ServiceDescription(name='a.B', methods=[method], definitions=definitions)


def compare(live: ServiceDescription) -> list[str]:
    return find_differences(describe_api(Api, 'a.B'), live)


# --- differences ---------------------------------------------------------------------------------


def test_definitions_that_double_are_compared_in_bounded_space() -> None:
    def refer(number: int) -> dict[str, str]:
        return {'$ref': f'#/$defs/D{number}'}

    depth = 12
    definitions: dict[str, Any] = {
        f'D{number}': {'anyOf': [refer(number + 1)] * 2} for number in range(depth)
    }
    definitions[f'D{depth}'] = {'type': 'string'}
    assert len(compare(describe(definitions))) == MAX_FAULTS


def test_definitions_that_are_too_deep_are_not_compared() -> None:
    definitions = {
        f'D{number}': {'anyOf': [{'$ref': f'#/$defs/D{number + 1}'}]} for number in range(3000)
    }
    assert compare(describe(definitions)) == [
        f'get: result: types are more than {MAX_NESTING} deep inside each other'
    ]


def test_required_parameters_that_are_no_names_count_for_nothing() -> None:
    parameters = {'type': 'object', 'properties': {}, 'required': [[], {}, 5, None]}
    assert compare(describe({'D0': {'type': 'integer'}}, parameters=parameters)) == []


def test_lines_have_no_controls_and_an_end() -> None:
    name = '\x1b]0;owned\x07' + 'x' * 5000
    parameters = {'type': 'object', 'properties': {}, 'required': [name]}
    (line,) = compare(describe({'D0': {'type': 'integer'}}, parameters=parameters))
    assert line.startswith('get: \\x1b]0;owned\\x07xxx')
    assert line.isprintable()
    assert len(line) < MAX_LINE_LENGTH + 100


# --- stubs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['None', 'list', 'list!', '-list'])
def test_field_takes_no_builtin_from_the_others(name: str) -> None:
    array = {'type': 'array', 'items': {'type': 'string'}, 'default': []}
    properties = {name: {'type': 'string', 'default': 'x'}, 'more': array, 'no': {'type': 'null'}}
    source = write_stubs([describe({'D0': {'type': 'object', 'properties': properties}})])
    module: dict[str, Any] = {'__name__': 'stubs'}
    exec(compile(source, 'stubs', 'exec'), module)
    assert module['D0']().more == []
