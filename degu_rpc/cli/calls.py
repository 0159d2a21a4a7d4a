"""`degu methods`, `degu call`, `degu stubs`: the services of a machine or a program."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from degu_rpc.cli.completers import complete_targets
from degu_rpc.cli.documents import Method, Signature, Source, Value
from degu_rpc.cli.exits import Exit, format_exits
from degu_rpc.cli.failures import Failure
from degu_rpc.cli.session import PREFIX, Command, Session, Styled
from degu_rpc.cli.targets import open_target
from degu_rpc.errors import Code, RpcError
from degu_rpc.text import format_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from degu_rpc.rpc.client import RpcClient
    from degu_rpc.rpc.schema import MethodDescription, ServiceDescription

_EXITS = format_exits(
    Exit.DONE,
    Exit.FAILED,
    Exit.USAGE,
    Exit.NOT_FOUND,
    Exit.UNREACHABLE,
    Exit.REFUSED,
    Exit.REMOTE,
)
_TARGET_HELP = (
    'TARGET is a paired machine (studio), what is served behind it (studio/clock), '
    'degu://ID@host:port, unix:/path, tcp:host:port, . for the node that runs here, or what is '
    'served behind that (./clock).'
)
_MODULES = re.compile(r'\b_(?:typing|abc|builtins|datetime|decimal|uuid)\.')
_prefix_option = click.option(
    '--prefix', default=PREFIX, show_default=True, help='Where the services are mounted.'
)


# --- what there is -------------------------------------------------------------------------------


@click.command(cls=Command, epilog=f'{_TARGET_HELP}\n\n{_EXITS}')
@click.argument('target', shell_complete=complete_targets)
@click.argument('method', required=False)
@_prefix_option
def methods(session: Session, target: str, method: str | None, prefix: str) -> None:
    """List what may be called at TARGET; with METHOD, show what that takes and gives."""
    with open_target(session, target, prefix) as client:
        if method is None:
            descriptions = [_describe(client, name) for name in _list_services(client)]
        else:
            service, name = _split_method(method)
            description = _describe(client, service)
            _show_method(session, description, _find_method(description, name))
            return
    for description in descriptions:
        for one in description.methods:
            found = Method(f'{description.name}/{one.name}', one.kind.value, one.safe)
            session.emit('method', found)
            summary = one.description.partition('\n')[0]
            session.say(Styled(f'{description.name}/{one.name}', is_bold=True), f'  {summary}')


def _show_method(session: Session, service: ServiceDescription, method: MethodDescription) -> None:
    session.emit(
        'signature',
        Signature(
            f'{service.name}/{method.name}',
            method.description,
            method.kind.value,
            method.safe,
            method.idempotent,
            method.parameters,
            method.stream_parameter,
            method.item,
            method.result,
            service.definitions,
        ),
    )
    session.say(Styled(_format_signature(service, method), is_bold=True))
    for line in method.description.splitlines():
        session.say(f'  {line}')


def _format_signature(service: ServiceDescription, method: MethodDescription) -> str:
    """Return what a method takes and gives, in one line of Python for people."""
    from degu_rpc.rpc.stubs import TypeWriter

    types = TypeWriter({name: name for name in service.definitions})
    required = method.parameters.get('required', [])
    parameters = [
        f'{name}: {types.write(schema)}'
        + ('' if name in required else f' = {_format_default(schema)}')
        for name, schema in method.parameters.get('properties', {}).items()
    ]
    if method.stream_parameter is not None:
        parameters.append(f'{method.stream_parameter}: Iterator[{types.write(method.item)}]')
    result = types.write(method.result)
    if method.kind.gives_stream:
        result = f'Iterator[{result}]'
    line = f'{service.name}/{method.name}({", ".join(parameters)}) -> {result}'
    return _MODULES.sub('', line)


def _format_default(schema: Any) -> str:
    return json.dumps(schema['default']) if 'default' in schema else '...'


def _list_services(client: RpcClient) -> list[str]:
    from degu_rpc.rpc.meta import META

    names: list[str] = client.call(META, 'list_services', {}, list[str])
    return names


def _describe(client: RpcClient, service: str) -> ServiceDescription:
    """Return what a service looks like. Raises Failure where it is not there for us."""
    try:
        return _ask_meta(client, service)
    except RpcError as error:
        if error.code is not Code.NOT_FOUND:
            raise
        known = ', '.join(_list_services(client))
        raise Failure(Exit.NOT_FOUND, error.message, f'there are: {known}') from error


def _ask_meta(client: RpcClient, service: str) -> ServiceDescription:
    from degu_rpc.rpc.meta import META
    from degu_rpc.rpc.schema import ServiceDescription

    found: ServiceDescription = client.call(
        META, 'describe', {'service': service}, ServiceDescription
    )
    return found


def _find_method(service: ServiceDescription, name: str) -> MethodDescription:
    for method in service.methods:
        if method.name == name:
            return method
    raise Failure(
        Exit.NOT_FOUND,
        f'{service.name} has no method {name} that you may call',
        f'there are: {", ".join(method.name for method in service.methods)}',
    )


def _split_method(text: str) -> tuple[str, str]:
    """Return service and method of `clock.v1.Clock/now`, or of `clock.v1.Clock.now`."""
    for separator in '/.':
        service, found, method = text.rpartition(separator)
        if found:
            return service, method
    raise Failure(Exit.USAGE, f'a method is like clock.v1.Clock/now, not {text!r}')


# --- calling -------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    epilog=f'{_TARGET_HELP}\n\n\b\nExamples:\n  degu call studio clock.v1.Clock/add hour:=3\n'
    '  degu call unix:/run/notes.sock notes.v1.Notes/put title=today -d @note.json\n'
    f'  seq 3 | degu call . sums.v1.Sums/total -d @-\n\n{_EXITS}',
)
@click.argument('target', shell_complete=complete_targets)
@click.argument('method')
@click.argument('arguments', nargs=-1, metavar='[NAME=TEXT] [NAME:=JSON]...')
@click.option(
    '-d',
    '--data',
    metavar='JSON|@FILE|@-',
    help='All parameters as one JSON object; for a method that takes a stream, its items as JSON, '
    'one after the other.',
)
@_prefix_option
def call(
    session: Session,
    target: str,
    method: str,
    arguments: tuple[str, ...],
    data: str | None,
    prefix: str,
) -> None:
    """Call METHOD (such as clock.v1.Clock/now) at TARGET, and print the result as JSON.

    Results of a stream are printed as they come, a line each.
    """
    service, name = _split_method(method)
    parameters = _parse_arguments(arguments)
    with open_target(session, target, prefix) as client:
        description = _find_description(client, service, name)
        if description is not None and description.stream_parameter is not None:
            parameters[description.stream_parameter] = _read_items(data)
        elif data is not None:
            parameters = {**_parse_object(_read_data(data)), **parameters}
        if description is not None and description.kind.gives_stream:
            with client.stream(service, name, parameters) as results:
                for result in results:
                    _print_result(session, result, 'item')
                    sys.stdout.flush()
        else:
            _print_result(session, client.call(service, name, parameters), 'result')


def _find_description(client: RpcClient, service: str, name: str) -> MethodDescription | None:
    """Return what a method looks like; None where nobody there can say, and it is just called."""
    try:
        description = _ask_meta(client, service)
    except RpcError as error:
        if error.code in (Code.NOT_FOUND, Code.UNIMPLEMENTED):
            return None
        raise
    return _find_method(description, name)


def _parse_arguments(arguments: Iterable[str]) -> dict[str, Any]:
    """Return the parameters of `name=text` and `name:=json`."""
    found: dict[str, Any] = {}
    for argument in arguments:
        name, separator, text = argument.partition('=')
        if not separator or not name.rstrip(':'):
            raise Failure(Exit.USAGE, f'a parameter is name=text or name:=json, not {argument!r}')
        value: Any = text
        if name.endswith(':'):
            name, value = name[:-1], _parse_json(text, argument)
        if name in found:
            raise Failure(Exit.USAGE, f'the parameter {name!r} is given twice')
        found[name] = value
    return found


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failure(Exit.USAGE, f'{where}: no JSON: {error}') from None


def _parse_object(text: str) -> dict[str, Any]:
    parsed = _parse_json(text, '--data')
    if not isinstance(parsed, dict):
        raise Failure(Exit.USAGE, '--data must be one JSON object, with the parameters by name')
    return parsed


def _read_data(data: str) -> str:
    if data == '@-':
        return sys.stdin.read()
    return _read_file(Path(data[1:])) if data.startswith('@') else data


def _read_file(path: Path) -> str:
    try:
        return path.read_text('utf-8')
    except UnicodeDecodeError as error:
        raise Failure(Exit.USAGE, f'{path} is not UTF-8, as JSON must be: {error}') from None


def _read_items(data: str | None) -> Iterator[Any]:
    """Yield JSON values as they come: from a file or from standard input, a line each."""
    if data is None or data == '@-':
        lines: Iterable[str] = sys.stdin
    elif data.startswith('@'):
        lines = _read_file(Path(data[1:])).splitlines()
    else:
        lines = data.splitlines()
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _parse_json(line, f'item {number}')


def _print_result(session: Session, result: Any, kind: str) -> None:
    session.emit(kind, Value(result))
    if not session.is_json:
        is_for_people = kind == 'result' and sys.stdout.isatty()
        click.echo(format_json(result) if is_for_people else json.dumps(result))


@click.command(cls=Command, epilog=f'{_TARGET_HELP}\n\n{_EXITS}')
@click.argument('target', shell_complete=complete_targets)
@click.argument('services', nargs=-1, metavar='[SERVICE]...')
@_prefix_option
def stubs(session: Session, target: str, services: tuple[str, ...], prefix: str) -> None:
    """Write typed client classes of the services at TARGET, as Python source.

    Without a SERVICE, all of them are written that you may call.
    """
    from degu_rpc.rpc.meta import META
    from degu_rpc.rpc.stubs import write_stubs

    with open_target(session, target, prefix) as client:
        names = services or [name for name in _list_services(client) if name != META]
        source = write_stubs([_describe(client, name) for name in names])
    session.emit('stubs', Source(source))
    if not session.is_json:
        click.echo(source, nl=False)
