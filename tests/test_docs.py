"""Every code block of the documentation runs, and the documentation builds without a warning.

1. A page is split into its fenced blocks (CommonMark, so nested and odd fences count too). Their
   languages are a closed set; indented code blocks are refused, because nobody would run them.
2. Each page runs in an interpreter of its own, in an empty directory, with a home of its own and
   all warnings as errors: `python tests/test_docs.py PAGE` is that interpreter, and is handy while
   writing. The blocks of a page run in their order and share one namespace: `python` with `>>>` as
   doctest, other `python` as it stands, `console` through bash, its output compared like doctest's.
3. At its end a page must have left nothing: no process, no thread, no forking beside threads.

Not run: the two blocks of README.md under `## Run it` and `## Test it`, one command each, because
they install the project and run this very test run; CI runs both commands as they stand there.
"""

from __future__ import annotations

import contextlib
import doctest
import gc
import html
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

import degu
import degu_rpc
from degu import bodies, channel, limits, server, stop
from degu.limits import Limits
from degu.pki import CertificateFault
from degu.wire import METHODS
from degu_rpc.errors import PairingFault
from degu_rpc.files import limits as files_limits
from degu_rpc.node import limits as node_limits
from degu_rpc.peers import limits as peers_limits
from degu_rpc.rpc import limits as rpc_limits

PROJECT = Path(__file__).resolve().parent.parent
DOCS = PROJECT / 'docs'
README = PROJECT / 'README.md'
CHANGELOG = PROJECT / 'CHANGELOG.md'
LIMITS = DOCS / 'reference' / 'limits.md'
PAGES = [README, CHANGELOG, *sorted(p for p in DOCS.rglob('*.md') if '_build' not in p.parts)]

RUN = {'python', 'console'}
SHOWN = {'text', 'toml'}  # grammars, layouts, configuration: nothing that could run
DIRECTIVES = {'{toctree}', '{eval-rst}', '{include}'}
EXEMPT_HEADINGS = {'Run it', 'Test it'}
PROGRAMS = {'curl'}  # what a machine may lack
OPTIONS = doctest.ELLIPSIS
RAN = 'every block did what the page says'

# Not part of the API: how the others are built, what a node is made of, and the command.
INTERNAL = {
    'degu.channel',
    'degu.exchange',
    'degu.process',
    'degu.repeats',
    'degu.stop',
    'degu.workers',
    'degu_rpc.cli',
    'degu_rpc.node.behind',
    'degu_rpc.node.control',
    'degu_rpc.node.doctor',
    'degu_rpc.node.inbox',
    'degu_rpc.node.neighbours',
    'degu_rpc.node.notify',
    'degu_rpc.node.peers',
    'degu_rpc.node.shares',
    'degu_rpc.node.signals',
    'degu_rpc.node.status',
    'degu_rpc.node.systemd',
    'degu_rpc.node.upkeep',
    'degu_rpc.node.windows',
    'degu_rpc.sync',
    'degu_rpc.text',
}


class Block(NamedTuple):
    """A fenced block: where its first line is, under which heading, and what it holds."""

    line: int
    heading: str
    language: str
    text: str


def parse_page(page: Path) -> list[Token]:
    return MarkdownIt('commonmark').parse(page.read_text(encoding='utf-8'))


def find_blocks(page: Path) -> list[Block]:
    blocks = []
    heading = ''
    tokens = parse_page(page)
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == 'heading_open' and following is not None:
            heading = following.content
        elif token.type in {'fence', 'code_block'}:
            assert token.map is not None
            language = token.info.strip().partition(' ')[0]
            blocks.append(Block(token.map[0] + 2, heading, language, token.content))
    return blocks


def is_exempt(page: Path, block: Block) -> bool:
    return page == README and block.heading in EXEMPT_HEADINGS


def commands_of(block: Block) -> list[tuple[str, str]]:
    """Split a console block into (command, expected output)."""
    commands: list[tuple[str, str]] = []
    for line in block.text.splitlines(keepends=True):
        if line.startswith('$ '):
            commands.append((line[2:], ''))
        elif commands and commands[-1][0].endswith('\\\n') and not commands[-1][1]:
            commands[-1] = (commands[-1][0] + line, '')
        elif commands:
            commands[-1] = (commands[-1][0], commands[-1][1] + line)
        else:
            raise ValueError(f'line {block.line}: a console block begins with "$ "')
    return commands


def name_of(page: Path) -> str:
    return page.relative_to(PROJECT).as_posix()


# --- the interpreter of one page -----------------------------------------------------------------


def run_page(page: Path) -> list[str]:
    """Run the blocks of `page` in the current directory; return what went wrong."""
    faults: list[str] = []

    def check_fork() -> None:
        if len(threading.enumerate()) > 1:
            faults.append(f'forked beside threads: {threading.enumerate()}')

    os.register_at_fork(before=check_fork)
    space: dict[str, Any] = {'__name__': '__main__'}
    for block in find_blocks(page):
        where = f'{name_of(page)}:{block.line}'
        if is_exempt(page, block) or block.language not in RUN:
            continue
        if block.language == 'console':
            faults += run_console(block, where)
        elif '>>>' in block.text:
            faults += run_doctest(block, where, space)
        else:
            faults += run_source(block, where, space)
        if faults:  # what follows builds on it
            break
    space.clear()
    gc.collect()
    return faults + find_leftovers()


def run_doctest(block: Block, where: str, space: dict[str, Any]) -> list[str]:
    test = doctest.DocTestParser().get_doctest(
        block.text, space, where, str(PROJECT / where.partition(':')[0]), block.line - 1
    )
    test.globs = space  # it made a copy
    report: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.append, clear_globs=False)
    return report


def run_source(block: Block, where: str, space: dict[str, Any]) -> list[str]:
    try:
        source = '\n' * (block.line - 1) + block.text
        exec(compile(source, where, 'exec'), space)
    except Exception:  # noqa: BLE001  # whatever it is, the page is wrong
        return [traceback.format_exc()]
    return []


def run_console(block: Block, where: str) -> list[str]:
    faults = []
    for command, expected in commands_of(block):
        done = subprocess.run(
            ['bash', '-c', command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
        found = done.stdout.decode()
        if found and not found.endswith('\n'):  # the next prompt of a terminal would stand there
            found += '\n'
        if not doctest.OutputChecker().check_output(expected, found, OPTIONS):
            faults.append(f'{where}: $ {command}expected:\n{expected}found:\n{found}')
    return faults


def find_leftovers() -> list[str]:
    faults = [
        f'left a thread: {t}' for t in threading.enumerate() if t is not threading.main_thread()
    ]
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
        faults.append('left a process')
    return faults


# --- the tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_code_blocks_are_of_a_language_that_we_know_how_to_treat(page: Path) -> None:
    for block in find_blocks(page):
        if is_exempt(page, block):
            continue
        assert block.language in RUN | SHOWN | DIRECTIVES, f'{name_of(page)}:{block.line}'
        if block.language == '{eval-rst}':  # a place where code could hide
            assert all(
                re.fullmatch(r'(\.\. automodule:: [a-z_.]+|   :[a-z-]+:.*)?', line)
                for line in block.text.splitlines()
            ), f'{name_of(page)}:{block.line}'


def test_the_readme_has_no_more_than_two_commands_that_do_not_run_here() -> None:
    exempt = [block for block in find_blocks(README) if is_exempt(README, block)]
    assert len(exempt) <= len(EXEMPT_HEADINGS)
    assert len({block.heading for block in exempt}) == len(exempt)
    for block in exempt:
        assert len(block.text.strip().splitlines()) == 1, 'one command, so that CI can run it'


@pytest.mark.parametrize(
    'page', [p for p in PAGES if any(b.language in RUN for b in find_blocks(p))], ids=name_of
)
def test_code_blocks_do_what_the_page_says(page: Path) -> None:
    for program in sorted(programs_of(page)):
        if shutil.which(program) is None:
            assert os.environ.get('DEGU_TEST_REQUIRE_ALL') != '1', f'{program} is not installed'
            pytest.skip(f'{name_of(page)} needs {program}, which is not installed')
    # Not tmp_path: an AF_UNIX path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix='degu-docs-') as directory:
        scratch = Path(directory)
        for name in ('home', 'run', 'work'):
            (scratch / name).mkdir(mode=0o700)
        done = subprocess.run(
            [sys.executable, '-W', 'error', __file__, str(page)],
            cwd=scratch / 'work',
            env={
                'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
                'LANG': 'C.UTF-8',
                'HOME': str(scratch / 'home'),
                'XDG_RUNTIME_DIR': str(scratch / 'run'),
                'TMPDIR': directory,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
        )
        left = sorted(path.name for path in scratch.iterdir())
    # More than that is a warning or a traceback that nobody caught, less a page that ended early.
    output = done.stdout.decode()
    assert (done.returncode, output) == (0, f'{RAN}\n'), output
    assert left == ['home', 'run', 'work'], 'a page removes its temporary files'


def programs_of(page: Path) -> set[str]:
    return {
        word
        for block in find_blocks(page)
        if block.language == 'console' and not is_exempt(page, block)
        for command, _ in commands_of(block)
        for word in re.findall(r'[\w-]+', command)
        if word in PROGRAMS
    }


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-n', '-q', '-E'),
            *('-b', 'html', '-d', str(tmp_path / 'doctrees'), str(DOCS), str(tmp_path / 'html')),
        ],
        cwd=tmp_path,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr.decode()) == (0, '')
    assert (tmp_path / 'html' / 'index.html').is_file()


@pytest.mark.parametrize('page', [README, CHANGELOG], ids=name_of)
def test_links_of_the_pages_outside_the_build_lead_to_files(page: Path) -> None:
    for token in parse_page(page):
        for inline in token.children or []:
            target = str(inline.attrGet('href') or inline.attrGet('src') or '#')
            if not re.match('https?:|#', target):
                assert (PROJECT / target.partition('#')[0]).exists(), f'{name_of(page)}: {target}'


@pytest.mark.parametrize('page', [DOCS / 'explanation' / 'threat-model.md'], ids=name_of)
def test_each_row_about_a_threat_names_tests_that_exist(page: Path) -> None:
    there = {
        name for path in (PROJECT / 'tests').rglob('test_*.py') for name in names_of_tests(path)
    }
    rows = re.findall(r'^\| [STRIDE] \|.*\|$', page.read_text('utf-8'), re.MULTILINE)
    assert rows
    for row in rows:
        named = re.findall(r'`(test_\w+)`', row.rpartition('|')[0].rpartition('|')[2])
        assert named, row
        assert set(named) <= there, row


def names_of_tests(path: Path) -> set[str]:
    return set(re.findall(r'^def (test_\w+)\(', path.read_text('utf-8'), re.MULTILINE))


@pytest.mark.parametrize('page', [DOCS / 'explanation' / 'files.md'], ids=name_of)
def test_each_rule_of_a_transfer_names_tests_that_exist(page: Path) -> None:
    text = page.read_text('utf-8')
    there = {
        f'{path.name}::{name}'
        for path in (PROJECT / 'tests').rglob('test_*.py')
        for name in names_of_tests(path)
    }
    named = re.findall(r'`(test_\S+)`', text)
    assert set(named) <= there
    rules = re.findall(r'^### I\d+:.*?(?=^##)', text, re.MULTILINE | re.DOTALL)
    assert [rule.split(':')[0] for rule in rules] == [
        f'### I{number}' for number in (1, 2, 3, 4, 6, 7, 10)
    ]
    assert all('`test_' in rule for rule in rules)


def table_of(page: Path) -> list[list[str]]:
    """Return the cells of the tables on a page, without heads and inline code's backticks."""
    rows = re.findall(r'^\| `.*\|$', page.read_text(encoding='utf-8'), re.MULTILINE)
    return [[cell.strip().strip('`') for cell in row.strip('|').split('|')] for row in rows]


COUNTS = {'max_connections', 'max_headers', 'PACK_ITEMS'}


def format_limit(name: str, value: float | None) -> str:
    if value is None:
        return 'none'
    if name.lower().endswith('_s'):
        return f'{value:.10g} s'
    for unit, size in (('MiB', 1024 * 1024), ('KiB', 1024)):
        if name not in COUNTS and value >= size and value % size == 0:
            return f'{value // size} {unit}'
    return f'{value}'


def test_the_table_of_limits_is_the_table_in_the_code() -> None:
    found = [
        (name, re.sub(r'( bytes|/s)+$', '', default))
        for name, default, *_ in table_of(LIMITS)
        if name in Limits._fields
    ]
    assert found == [(n, format_limit(n, v)) for n, v in Limits._field_defaults.items()]


@pytest.mark.parametrize(
    'table',
    [rpc_limits, files_limits, peers_limits, node_limits],
    ids=['calls', 'files', 'peers', 'node'],
)
def test_the_limits_of_a_wing_are_those_in_the_code(table: types.ModuleType) -> None:
    found = {name: value for name, value, *_ in table_of(LIMITS) if hasattr(table, name)}
    values = {name: value for name, value in vars(table).items() if name.isupper()}
    assert found == {name: format_limit(name, value) for name, value in values.items()}


def test_each_limit_of_the_files_wing_is_named_by_a_test() -> None:
    paths = (PROJECT / 'tests' / 'degu_rpc' / 'files').glob('test_*.py')
    named = {name for path in paths for name in re.findall(r'\b[A-Z_]+\b', path.read_text('utf-8'))}
    assert {name for name in vars(files_limits) if name.isupper()} <= named


@pytest.mark.parametrize(
    ('row', 'value'),
    [
        ('the body that a server reads and drops', channel.LINGER_SIZE),
        ('what a peer may still send while', channel.LINGER_SIZE),
        ('one piece of a body in memory', channel.MAX_PIECE),
        ('`ChunkedInput.read()` unless told', bodies.MAX_READ),
        ('`timeout_s`', limits.DEFAULT_TIMEOUT_S),
        ('`connect_timeout_s`', limits.CONNECT_TIMEOUT_S),
        ('how long running requests have', stop.DEFAULT_TIMEOUT_S),
        ('how long a new connection has', server.FIRST_REQUEST_TIMEOUT_S),
    ],
)
def test_what_is_fixed_is_as_the_page_of_limits_says(row: str, value: float) -> None:
    lines = [x for x in LIMITS.read_text('utf-8').splitlines() if x.startswith(f'| {row}')]
    assert len(lines) == 1
    unit = 's' if isinstance(value, float) else 'bytes'
    assert format_limit(f'_{unit}', value) in lines[0].replace(' seconds', ' s')


def test_the_grammar_names_every_method() -> None:
    text = (DOCS / 'reference' / 'http-subset.md').read_text(encoding='utf-8')
    grammar = re.search(r'^METHOD +=(.*)$', text, re.MULTILINE)
    assert grammar is not None
    assert set(re.findall('[A-Z]+', grammar[1])) == METHODS


def exceptions_of(module: str) -> set[str]:
    classes = vars(importlib.import_module(module)).values()
    return {c.__name__ for c in classes if isinstance(c, type) and issubclass(c, Exception)}


@pytest.mark.parametrize('module', ['degu.errors', 'degu_rpc.errors'])
def test_the_page_of_errors_has_every_exception(module: str) -> None:
    found = {row[0] for row in table_of(DOCS / 'reference' / 'errors.md')}
    assert exceptions_of(module) <= found


def test_the_page_on_refusals_has_every_fault() -> None:
    found = {tuple(map(html.unescape, row[:2])) for row in table_of(DOCS / 'how-to' / 'refused.md')}
    assert {(fault.name, fault.value) for fault in CertificateFault} <= found


def test_the_page_about_pairing_says_what_to_do_about_each_fault() -> None:
    text = (DOCS / 'how-to' / 'pair.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| (`[A-Z_`, ]+`) \|', text, re.MULTILINE)
    told = [name for row in rows for name in re.findall('[A-Z_]+', row)]
    assert sorted(told) == sorted(fault.name for fault in PairingFault)


def public_modules() -> set[str]:
    """Return the modules to import from; a package's `__all__` stands for its modules."""
    found = {'degu', 'degu_rpc'}
    for package in (degu, degu_rpc):
        for module in pkgutil.walk_packages(package.__path__, f'{package.__name__}.'):
            parent = module.name.rpartition('.')[0]
            is_told = parent != package.__name__ and hasattr(
                importlib.import_module(parent), '__all__'
            )
            if not is_told and not INTERNAL & {module.name, parent}:
                found.add(module.name)
    return found


def test_the_api_has_every_public_module() -> None:
    text = (DOCS / 'reference' / 'api.md').read_text(encoding='utf-8')
    assert set(re.findall(r'automodule:: (\S+)', text)) == public_modules()


def test_decisions_are_numbered_without_a_gap() -> None:
    numbers = sorted(int(p.name[:4]) for p in (DOCS / 'decisions').glob('[0-9]*.md'))
    assert numbers == list(range(1, len(numbers) + 1))


if __name__ == '__main__':
    problems = run_page(Path(sys.argv[1]).resolve())
    print('\n'.join(problems) or RAN)
    sys.exit(1 if problems else 0)
