"""Write what the reference says of the command, from the command itself.

    python docs/write_cli.py

1. `read_commands` walks the command, which is built of click objects, and `DOCUMENTS` names what
   each prints with `--json` by the class of it.
2. Of these are made: reference/cli.md, reference/json.md, reference/cli.schema.json, and degu.1,
   the page for `man degu`.

tests/degu_rpc/cli/test_reference.py fails where a file is not what this would write.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from degu_rpc.cli import commands, documents
from degu_rpc.cli.exits import Exit
from degu_rpc.cli.session import build_shared_options
from degu_rpc.node import api, config, doctor, home, shares
from degu_rpc.rpc.schema import DIALECT, REFERENCE, Schemas

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).resolve().parent


class Document(NamedTuple):
    """A type of document: the class that has its fields, and which command prints it when."""

    cls: Any
    when: str


DOCUMENTS = {
    'ready': Document(api.Status, '`degu up`, once the node can be called'),
    'stopped': Document(documents.Stopped, '`degu down`'),
    'status': Document(api.Status, '`degu status`; with `--watch` again with each change'),
    'opened': Document(documents.Opened, '`degu pair`, where it shows a code'),
    'paired': Document(api.PairedWith, '`degu pair`, on both sides'),
    'unpaired': Document(api.Unpaired, '`degu unpair`'),
    'id': Document(documents.Ids, '`degu id`'),
    'peer': Document(api.PeerStatus, '`degu peers`, one for each user'),
    'nearby': Document(api.Nearby, '`degu peers --nearby`, one for each machine'),
    'share': Document(shares.Share, '`degu ls PEER:`, one for each share'),
    'entry': Document(documents.Entry, '`degu ls PEER:PATH`, one for each entry'),
    'fetched': Document(documents.Arrived, '`degu get`, one for each PEER:PATH'),
    'waiting': Document(documents.Asked, '`degu send`, where PEER has to say yes first'),
    'sent': Document(documents.Delivered, '`degu send`, at its end'),
    'offer': Document(
        api.OfferStatus,
        '`degu inbox`, one for each; `degu inbox accept`, `degu inbox reject`',
    ),
    'serving': Document(documents.Serving, '`degu serve`, once it can be called'),
    'method': Document(documents.Method, '`degu methods TARGET`, one for each method'),
    'signature': Document(documents.Signature, '`degu methods TARGET METHOD`'),
    'result': Document(documents.Value, '`degu call`, of a method with one result'),
    'item': Document(documents.Value, '`degu call`, of a stream, one for each result'),
    'stubs': Document(documents.Source, '`degu stubs`'),
    'finding': Document(doctor.Finding, '`degu doctor`, one for each thing it looked at'),
    'installed': Document(documents.Units, '`degu service install`'),
    'removed': Document(documents.Removed, '`degu service remove`'),
    'service': Document(documents.Units, '`degu service status`'),
    'paths': Document(documents.Paths, '`degu config path`'),
    'setting': Document(
        documents.StoredSetting,
        '`degu config get`, one for each; `degu config set`, `degu config unset`',
    ),
    'step': Document(documents.Told, '`degu demo`, before each part of it'),
    'detail': Document(documents.Told, '`degu demo`, for each thing that has happened'),
    'done': Document(documents.Shown, '`degu demo`, at its end'),
    'completion': Document(documents.Script, '`degu completion`'),
    'error': Document(documents.Failed, 'each command that fails; on stderr'),
}

VARIABLES = {
    'DEGU_HOME': 'the directory of this device; `--home` comes before it',
    'DEGU_PAIR_CODE': 'the code for `degu pair`; other users of this machine cannot see it',
    'NO_COLOR': 'no colours, if it is not empty',
    'XDG_DATA_HOME': 'where the usual home is: in its directory `degu`',
    'XDG_CONFIG_HOME': 'where `config.toml` of the usual home is: in its directory `degu`',
    **{
        config.name_variable(key): f'the setting `{key}`, see `degu config`'
        for key in config.SETTABLE
    },
}

DESCRIPTION = """\
`degu` runs a node on this machine, and talks to it and to those of other machines. Devices on a
local network call each other's functions and hand each other files: there is no cloud and no
broker."""


# --- the command ---------------------------------------------------------------------------------


class Described(NamedTuple):
    """A command: as it is typed, and what its help says."""

    name: str
    usage: str
    help: str
    options: list[tuple[str, str]]
    epilog: str


def read_commands() -> list[Described]:
    """Return all commands that do something, in the order of the help."""
    return list(_walk(click.Context(commands, info_name='degu')))


def _walk(context: click.Context) -> Iterator[Described]:
    command = context.command
    if context.parent is not None:
        yield _describe(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _walk(click.Context(found, info_name=name, parent=context))


def _describe(context: click.Context) -> Described:
    command = context.command
    shared = {opt for option in build_shared_options() for opt in option.opts}
    options = [
        record
        for param in command.params
        if isinstance(param, click.Option)
        and not shared.intersection(param.opts)
        and (record := param.get_help_record(context)) is not None
    ]
    usage = ' '.join([context.command_path, *command.collect_usage_pieces(context)])
    text, epilog = (inspect.cleandoc(each or '') for each in (command.help, command.epilog))
    return Described(context.command_path, usage, text, options, epilog)


def list_shared() -> list[tuple[str, str]]:
    """Return the flags that every command has, with their help."""
    context = click.Context(commands, info_name='degu')
    records = [option.get_help_record(context) for option in build_shared_options()]
    return [record for record in records if record is not None]


def list_files() -> list[tuple[str, str]]:
    """Return what is in a home, as its module says."""
    told = re.findall(r'^ {8}(\S+(?: \S+)*?)  +(.*)', home.__doc__ or '', re.MULTILINE)
    own = ('config.toml', 'settings of yours; for the usual home it is where XDG has them')
    return [*told, own]


def write_paragraphs(text: str) -> Iterator[tuple[bool, str]]:
    """Split a help text into paragraphs: whether each keeps its lines, and what it says."""
    for part in filter(None, re.split('\n\n+', text)):
        if part.startswith('\b\n'):
            yield True, part.removeprefix('\b\n')
        else:
            yield False, ' '.join(part.split())


# --- as Markdown ---------------------------------------------------------------------------------

NOTE = '% Written by docs/write_cli.py; change that, or the command.\n\n'


def format_cli() -> str:
    """Return reference/cli.md."""
    lines = [
        NOTE + '# The command degu',
        DESCRIPTION,
        'The same is in `degu --help`, in the help of each command, and in `man degu`.',
        '## Flags of every command',
        'They stand before the name of the command or behind it.',
        _table('flag', 'what it does', list_shared()),
        '## Exit statuses',
        _table('status', 'what it means', [(str(e.value), e.text) for e in Exit]),
        'A script can try again after 5. With `--json` [the error](json.md#error) says more.',
    ]
    for command in read_commands():
        is_nested = command.name.count(' ') > 1
        lines += [f'{"###" if is_nested else "##"} {command.name}', _fence(command.usage)]
        for keeps_lines, text in write_paragraphs(command.help):
            lines.append(_fence(text) if keeps_lines else _escape(text))
        if command.options:
            lines.append(_table('option', 'what it does', command.options))
        for keeps_lines, text in write_paragraphs(command.epilog):
            lines.append(_fence(text) if keeps_lines else _escape(text))
        if printed := _find_documents(command.name):
            links = ', '.join(f'[{kind}](json.md#{kind})' for kind in printed)
            lines.append(f'With `--json`: {links}.')
    lines += [
        '## Environment',
        _table('variable', 'what it says', list(VARIABLES.items())),
        '[Settings](../how-to/settings.md) says which one counts.',
        '## Files',
        'The home is what `--home` or `DEGU_HOME` says, or else `degu` in the directory for data '
        'of the user, such as `~/.local/share/degu`. `degu status` shows it.',
        _table('in the home', 'what it is', list_files()),
    ]
    return '\n\n'.join(lines) + '\n'


def _find_documents(name: str) -> list[str]:
    match = re.compile(
        rf'`{name}\b(?! (?:install|remove|status|path|get|set|unset|accept|reject))'
    ).search
    return [kind for kind, document in DOCUMENTS.items() if match(document.when)]


def _table(key: str, value: str, rows: list[tuple[str, str]]) -> str:
    lines = [f'| {key} | {value} |', '|---|---|']
    for name, words in rows:
        code = name.replace('|', '\\|')
        lines.append(f'| `{code}` | {_escape(" ".join(words.split()))} |')
    return '\n'.join(lines)


def _fence(text: str) -> str:
    return f'```text\n{text}\n```'


def _escape(text: str) -> str:
    """Escape what Markdown would take for more than text, but for code in backticks."""
    parts = text.split('`')
    parts[::2] = [re.sub(r'([\\<>*_|\[\]])', r'\\\1', part) for part in parts[::2]]
    return '`'.join(parts)


# --- documents -----------------------------------------------------------------------------------


def build_schema() -> dict[str, Any]:
    """Return reference/cli.schema.json; each type of document is `<type>.document` in its $defs."""
    schemas = Schemas()
    found = {}
    for kind, document in DOCUMENTS.items():
        name = schemas.build(document.cls)['$ref'].removeprefix(REFERENCE)
        found[f'{kind}.document'] = (kind, name)
    definitions = {name: _finish(schema) for name, schema in schemas.definitions.items()}
    for key, (kind, name) in found.items():
        fields = definitions[name]
        definitions[key] = {
            **fields,
            'title': kind,
            'properties': {'v': {'const': 1}, 'type': {'const': kind}, **fields['properties']},
            'required': ['v', 'type', *fields['required']],
        }
    return {
        '$schema': DIALECT,
        'title': 'A line that degu prints with --json',
        'oneOf': [{'$ref': REFERENCE + key} for key in found],
        '$defs': dict(sorted(definitions.items())),
    }


def _finish(schema: dict[str, Any]) -> dict[str, Any]:
    """Say of a class that each field is there: it is printed, so no default takes its place."""
    if 'properties' not in schema:
        return schema
    properties = {
        name: {key: value for key, value in field.items() if key != 'default'}
        for name, field in schema['properties'].items()
    }
    return {**schema, 'properties': properties, 'required': list(properties)}


def format_schema() -> str:
    """Return reference/cli.schema.json as text."""
    return json.dumps(build_schema(), indent=2) + '\n'


def format_json() -> str:
    """Return reference/json.md."""
    lines = [
        NOTE + '# What --json prints',
        'With `--json` a command prints documents in JSON, each on a line of its own, and nothing '
        'else. Each has `"v": 1` and a `"type"`, which is one of these. A command that fails '
        'prints one `error` on stderr, after what it had to say on stdout.',
        'Each field that stands here is always there. Fields are only ever added, so a program '
        'skips those it does not know. Times are RFC 3339, in UTC. What peers wrote is as they '
        'wrote it: escape control characters before you show it.',
        '[cli.schema.json](cli.schema.json) has the same as JSON Schema (2020-12), each type as '
        '`<type>.document` in its `$defs`.',
    ]
    used: dict[str, Any] = {}
    shown: dict[Any, str] = {}
    for kind, document in DOCUMENTS.items():
        lines += [
            f'## {kind}',
            f'{_escape(_first_line(document.cls))} Printed by {document.when}.',
        ]
        if like := shown.get(document.cls):
            lines.append(f'It has the fields of [{like}](#{like}).')
        else:
            lines += _format_fields(document.cls, used)
        shown.setdefault(document.cls, kind)
    lines += ['## Parts', 'What documents have inside.']
    for name, cls in used.items():
        lines += [f'### {name}', _escape(_first_line(cls)), *_format_fields(cls, used)]
    return '\n\n'.join(lines) + '\n'


def _first_line(cls: Any) -> str:
    return (inspect.getdoc(cls) or '').partition('\n\n')[0].replace('\n', ' ')


def _format_fields(cls: Any, used: dict[str, Any]) -> list[str]:
    schemas = Schemas()
    name = schemas.build(cls)['$ref'].removeprefix(REFERENCE)
    properties = schemas.definitions[name]['properties']
    if not properties:
        return ['It has no fields of its own.']
    for part, schema in schemas.definitions.items():
        if 'properties' in schema and part != name:
            used.setdefault(part, _PARTS[part])
    words = _read_field_docs(cls)
    rows = [
        f'| `{field}` | {_format_type(schema, schemas)} | {_escape(words.get(field, ""))} |'
        for field, schema in properties.items()
    ]
    return ['\n'.join(['| field | type | what it is |', '|---|---|---|', *rows])]


_PARTS = {
    cls.__name__: cls
    for cls in (
        api.PeerStatus,
        api.MachineStatus,
        api.ServiceStatus,
        api.ShareStatus,
        api.InboxStatus,
        api.Problem,
        documents.SkippedPath,
    )
}


def _format_type(schema: dict[str, Any], schemas: Schemas) -> str:
    if '$ref' in schema:
        name = schema['$ref'].removeprefix(REFERENCE)
        found = schemas.definitions[name]
        if 'enum' not in found:
            return f'[{name}](#{name.lower()})'
        schema = found
    if 'enum' in schema:
        return ', '.join(f'`{value}`' for value in schema['enum'])
    if 'anyOf' in schema:
        return ' or '.join(_format_type(each, schemas) for each in schema['anyOf'])
    if schema.get('type') == 'array':
        return f'array of {_format_type(schema["items"], schemas)}'
    if schema.get('format') == 'date-time':
        return 'time'
    return str(schema.get('type', 'anything'))


def _read_field_docs(cls: Any) -> dict[str, str]:
    """Return the string that stands behind each field in the source of a class."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for field, following in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            name = '$defs' if field.target.id == 'definitions' else field.target.id
            found[name] = ' '.join(str(following.value.value).split())
    return found


# --- for man -------------------------------------------------------------------------------------


def format_man() -> str:
    """Return degu.1. Source: man(7) of groff."""
    lines = [
        r'.\" Written by docs/write_cli.py; change that, or the command.',
        '.TH DEGU 1 "" degu "User Commands"',
        '.SH NAME',
        r'degu \- devices on a local network call each other and hand each other files',
        '.SH SYNOPSIS',
        '.B degu',
        '[flags] command [flags] [arguments]',
        '.SH DESCRIPTION',
        _roff(DESCRIPTION.replace('\n', ' ').replace('`', '')),
        '.SH FLAGS',
        'They stand before the name of the command or behind it.',
        *_man_list(list_shared()),
        '.SH COMMANDS',
    ]
    for command in read_commands():
        lines += [f'.SS {_roff(command.name)}', '.PP', f'.B {_roff(command.usage)}']
        lines += _man_text(command.help)
        lines += _man_list(command.options)
        lines += _man_text(command.epilog)
    lines += [
        '.SH EXIT STATUS',
        *_man_list([(str(e.value), e.text) for e in Exit]),
        '.SH ENVIRONMENT',
        *_man_list([(name, words.replace('`', '')) for name, words in VARIABLES.items()]),
        '.SH FILES',
        'In the home of this device, usually',
        '.IR \\(ti/.local/share/degu :',
        *_man_list([(name, words.replace('`', '')) for name, words in list_files()]),
    ]
    return '\n'.join(lines) + '\n'


def _man_text(text: str) -> Iterator[str]:
    for keeps_lines, part in write_paragraphs(text):
        if keeps_lines:
            yield from ('.PP', '.nf', *map(_roff, part.splitlines()), '.fi')
        else:
            yield from ('.PP', _roff(part))


def _man_list(rows: list[tuple[str, str]]) -> Iterator[str]:
    for name, words in rows:
        yield from ('.TP', f'.B {_roff(name)}', _roff(' '.join(words.split())))


def _roff(text: str) -> str:
    text = text.replace('\\', r'\e').replace('-', r'\-').replace('~', r'\(ti').replace('^', r'\(ha')
    return rf'\&{text}' if text.startswith(('.', "'")) else text


FILES = {
    DOCS / 'reference' / 'cli.md': format_cli,
    DOCS / 'reference' / 'json.md': format_json,
    DOCS / 'reference' / 'cli.schema.json': format_schema,
    DOCS / 'degu.1': format_man,
}
"""What is written, and what writes it."""


def main() -> None:
    """Write all files."""
    for path, write in FILES.items():
        path.write_text(write(), encoding='utf-8')


if __name__ == '__main__':
    main()
