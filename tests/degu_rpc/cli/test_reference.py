"""The reference of the command is what the command is; see docs/write_cli.py."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

PROJECT = Path(__file__).parents[3]
MAN = PROJECT / 'docs' / 'degu.1'

_spec = importlib.util.spec_from_file_location('write_cli', PROJECT / 'docs' / 'write_cli.py')
assert _spec is not None
assert _spec.loader is not None
write_cli = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(write_cli)


@pytest.mark.parametrize('path', write_cli.FILES, ids=lambda path: path.name)
def test_what_is_written_is_up_to_date(path):
    assert path.read_text() == write_cli.FILES[path](), 'run: python docs/write_cli.py'


def test_each_command_says_what_it_does_and_how_it_ends():
    for command in write_cli.read_commands():
        assert command.help, command.name
        assert re.search(r'^Exit status: 0 done', command.epilog, re.MULTILINE), command.name


def test_each_document_that_a_command_prints_is_in_the_reference():
    printed = set()
    for path in (PROJECT / 'degu_rpc' / 'cli').glob('*.py'):
        printed |= set(re.findall(r"\bemit\(\s*'(\w+)'", path.read_text()))
    assert 'status' in printed
    # A call prints either, as the method is; an error is printed in one place for all commands.
    assert printed | {'result', 'item', 'error'} == set(write_cli.DOCUMENTS)


def test_the_schema_takes_more_fields_and_none_less():
    schema = json.loads((PROJECT / 'docs' / 'reference' / 'cli.schema.json').read_text())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    document = {'v': 1, 'type': 'stubs', 'source': ''}
    validator.validate({**document, 'new': 1})
    for key in document:
        with pytest.raises(ValidationError):
            validator.validate({k: v for k, v in document.items() if k != key})
    with pytest.raises(ValidationError):
        validator.validate({**document, 'type': 'other'})


def test_groff_has_nothing_to_say_of_the_page_for_man(require_program):
    done = subprocess.run(
        [require_program('groff'), '-man', '-ww', '-z', str(MAN)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, '')


def test_the_wheel_installs_the_page_for_man():
    project = tomllib.loads((PROJECT / 'pyproject.toml').read_text())
    wheel = project['tool']['hatch']['build']['targets']['wheel']
    assert wheel['shared-data'] == {'docs/degu.1': 'share/man/man1/degu.1'}
