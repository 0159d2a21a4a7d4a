"""Arrows point down: which module may import which, checked on the source.

The order is the one of the design's overview. What stands under `if TYPE_CHECKING:` is exempt: it
names types and runs nothing.
"""

from __future__ import annotations

import ast
import graphlib
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

CORE = (
    'errors',
    'limits',
    'wire',
    'repeats',
    'net',
    'channel',
    'bodies',
    'durable',
    'pki',
    'tls',
    'client',
    'stop',
    'workers',
    'exchange',
    'server',
    'rgi',
    'util',
    'wsgi',
    'process',
    'misc',
)
"""Each imports only what stands before it."""

USES = {
    'errors': set[str](),
    'text': set[str](),
    'router': {'errors'},
    'unix': set[str](),
    'peers': {'errors', 'text'},
    'rpc': {'errors', 'text', 'peers'},
    'files': {'errors', 'text', 'router', 'peers'},
    'sync': {'errors', 'peers', 'rpc', 'files'},
    'node': {'errors', 'text', 'router', 'unix', 'peers', 'rpc', 'files', 'sync'},
    'cli': {'', 'errors', 'text', 'unix', 'router', 'peers', 'rpc', 'files', 'node'},
    '': {'errors', 'router', 'unix', 'peers', 'rpc', 'files', 'sync', 'node'},
}
"""What each part of degu_rpc may use of the others; '' is the package's own public names."""

NAMEDTUPLE_API = {'_replace', '_asdict', '_fields', '_make', '_field_defaults'}


class Import(NamedTuple):
    """One imported name: `from module import name`, or `import module` with no name."""

    line: int
    module: str
    name: str
    is_lazy: bool  # inside a function


class _Visitor(ast.NodeVisitor):
    def __init__(self) -> None:
        self.imports: list[Import] = []
        self.private_uses: list[tuple[int, str]] = []
        self.private_names: set[str] = set()
        self._depth = 0

    def visit_If(self, node: ast.If) -> None:
        if 'TYPE_CHECKING' in ast.unparse(node.test):
            for child in node.orelse:
                self.visit(child)
        else:
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.private_names.add(node.name)
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.imports.append(Import(node.lineno, alias.name, '', self._depth > 0))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = '.' * node.level + (node.module or '')
        for alias in node.names:
            self.imports.append(Import(node.lineno, module, alias.name, self._depth > 0))

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.private_names.add(node.value)  # perhaps a slot

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.private_names.add(node.target.id)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        base = node.value.id if isinstance(node.value, ast.Name) else ''
        if base in ('self', 'cls'):
            self.private_names.add(node.attr)
        elif _is_private(node.attr) and node.attr not in NAMEDTUPLE_API:
            self.private_uses.append((node.lineno, node.attr))
        self.generic_visit(node)


def _is_private(name: str) -> bool:
    return name.startswith('_') and not name.endswith('__')


def _read(source: str) -> _Visitor:
    visitor = _Visitor()
    visitor.visit(ast.parse(source))
    return visitor


def _target(imported: Import, modules: set[str]) -> str:
    """Name the module that is imported: `from degu import net` is degu.net."""
    below = f'{imported.module}.{imported.name}'
    return below if below in modules else imported.module


def find_violations(sources: dict[str, str]) -> list[str]:
    """Check modules, given by their dotted names, against the rules; '' is what nothing breaks."""
    modules = set(sources)
    graph: dict[str, set[str]] = {}
    found = []
    for module, source in sorted(sources.items()):
        read = _read(source)
        graph[module] = set()
        for imported in read.imports:
            target = _target(imported, modules)
            if not imported.is_lazy:
                graph[module].add(target)
            reason = _explain(module, imported, target)
            if reason:
                found.append(f'{module}:{imported.line}: imports {target}: {reason}')
        if module.split('.')[0] == 'degu_rpc':
            found += [
                f'{module}:{line}: uses {name}, which is private to another module'
                for line, name in read.private_uses
                if name not in read.private_names
            ]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f'a cycle: {" <- ".join(error.args[1])}')
    return found


def _explain(module: str, imported: Import, target: str) -> str | None:
    """Say why an import is wrong, or None."""
    package, *parts = module.split('.')
    target_package, *target_parts = target.split('.')
    if not target_package:
        return 'relative'
    if target_package not in ('degu', 'degu_rpc'):
        if package == 'degu' and target_package not in sys.stdlib_module_names:
            if module == 'degu.pki' and target_package == 'cryptography' and imported.is_lazy:
                return None
            return 'the core uses the standard library only'
        return None
    if package == 'degu':
        return _explain_core(parts, imported, target_package, target_parts)
    if target_package == 'degu':
        private = [n for n in [*target_parts, imported.name] if _is_private(n)]
        return 'only public names of the core may be used' if private else None
    part, used = (parts or [''])[0], (target_parts or [''])[0]
    if part not in USES:
        return f'{part} has no place in the order yet'
    if used == part or used in USES[part]:
        return None
    return f'{part or "the package"} does not know {used or "the package"}'


def _explain_core(
    parts: list[str], imported: Import, target_package: str, target_parts: list[str]
) -> str | None:
    if target_package == 'degu_rpc':
        return 'the core knows nothing of what is built on it'
    if not parts:
        return None if imported.is_lazy else 'the package may import its modules in functions only'
    if not target_parts:
        return None
    for name in (parts[0], target_parts[0]):
        if name not in CORE:
            return f'{name} has no place in the order yet'
    is_below = CORE.index(target_parts[0]) < CORE.index(parts[0])
    return None if is_below else f'{target_parts[0]} is not below {parts[0]}'


def _read_tree() -> dict[str, str]:
    sources = {}
    for package in ('degu', 'degu_rpc'):
        for path in (ROOT / package).rglob('*.py'):
            parts = path.relative_to(ROOT).with_suffix('').parts
            name = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)
            sources[name] = path.read_text()
    return sources


def test_all_imports_point_down() -> None:
    sources = _read_tree()
    assert 'degu.server' in sources
    assert find_violations(sources) == []


@pytest.mark.parametrize(
    ('module', 'source'),
    [
        ('degu.wire', 'from degu.errors import ProtocolError'),
        ('degu.misc', 'from degu import start_server'),
        ('degu.misc', 'from degu import process'),
        ('degu.wire', 'if TYPE_CHECKING:\n    from degu.server import Server'),
        ('degu', 'def f():\n    from degu import process'),
        ('degu.pki', 'def f():\n    from cryptography import x509'),
        ('degu_rpc.files.share', 'from degu_rpc.router import Router'),
        ('degu_rpc.files.share', 'from degu_rpc.files.paths import Path'),
        ('degu_rpc.cli.send', 'from degu_rpc import Node'),
        ('degu_rpc.node', 'import degu\nprint(degu.__version__)'),
        ('degu_rpc.node', 'x = limits._replace(max_headers=1)'),
        ('degu_rpc.node', 'class A:\n    def __eq__(self, o): return self._x == o._x'),
    ],
)
def test_what_the_rules_allow_is_no_violation(module: str, source: str) -> None:
    assert find_violations({'degu.process': '', 'degu': '', module: source}) == []


@pytest.mark.parametrize(
    ('module', 'source', 'reason'),
    [
        ('degu.wire', 'from degu.net import Deadline', 'net is not below wire'),
        ('degu.wire', 'from degu import process', 'process is not below wire'),
        ('degu.wire', 'import degu.server', 'server is not below wire'),
        ('degu.wire', 'def f():\n    import degu.server', 'server is not below wire'),
        ('degu.wire', 'class A:\n    import degu.server', 'server is not below wire'),
        ('degu.wire', 'try:\n    import degu.server\nfinally:\n    pass', 'not below wire'),
        ('degu.wire', 'if x:\n    import degu.server', 'server is not below wire'),
        ('degu.wire', 'if TYPE_CHECKING:\n    pass\nelse:\n    import degu.server', 'not below'),
        ('degu.new', 'import degu.errors', 'new has no place in the order yet'),
        ('degu.server', 'import degu_rpc', 'the core knows nothing'),
        ('degu.server', 'def f():\n    from degu_rpc.node import Node', 'the core knows nothing'),
        ('degu', 'from degu.server import Server', 'in functions only'),
        ('degu.server', 'from .errors import DeguError', 'relative'),
        ('degu.server', 'import msgpack', 'the standard library only'),
        ('degu.pki', 'from cryptography import x509', 'the standard library only'),
        ('degu.tls', 'def f():\n    import cryptography', 'the standard library only'),
        ('degu_rpc.peers.trust', 'from degu_rpc.rpc import codec', 'peers does not know rpc'),
        ('degu_rpc.rpc.service', 'from degu_rpc.files import share', 'rpc does not know files'),
        ('degu_rpc.files.share', 'import degu_rpc.rpc.client', 'files does not know rpc'),
        ('degu_rpc.errors', 'import degu_rpc.router', 'errors does not know router'),
        ('degu_rpc.rpc.client', 'from degu_rpc import Node', 'rpc does not know the package'),
        ('degu_rpc.node', 'import degu_rpc.cli', 'node does not know cli'),
        ('degu_rpc.new', 'import degu_rpc.errors', 'new has no place in the order yet'),
        ('degu_rpc.node', 'from degu.server import _Connection', 'only public names'),
        ('degu_rpc.node', 'from degu import server\nserver._join_all()', 'uses _join_all'),
        ('degu_rpc.node', 'conn._channel.close()', 'uses _channel'),
    ],
)
def test_each_violation_is_found(module: str, source: str, reason: str) -> None:
    found = find_violations({'degu.process': '', 'degu.server': '', module: source})
    assert len(found) == 1
    assert reason in found[0]


def test_a_cycle_inside_a_wing_is_found() -> None:
    found = find_violations(
        {
            'degu_rpc.files.a': 'from degu_rpc.files import b',
            'degu_rpc.files.b': 'from degu_rpc.files.a import x',
        }
    )
    assert len(found) == 1
    assert found[0].startswith('a cycle: ')
