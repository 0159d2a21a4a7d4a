"""Nodes as a user runs them: `degu up` in processes of their own, each with a home of its own."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pty
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCHEMA = Path(__file__).parents[3] / 'docs' / 'reference' / 'cli.schema.json'
TIMEOUT_S = 60.0
DEGU = [sys.executable, '-W', 'error', '-m', 'degu_rpc.cli']


def read_document(line: str) -> dict[str, Any]:
    """Return a document of `--json`, which must have the fields of its type, and no others."""
    document: dict[str, Any] = json.loads(line)
    validator = Draft202012Validator(
        {**_read_closed_schema(), 'oneOf': [{'$ref': f'#/$defs/{document["type"]}.document'}]}
    )
    validator.validate(document)
    return document


@functools.cache
def _read_closed_schema() -> dict[str, Any]:
    """Return the schema of the reference, closed: programs take more fields, tests do not."""
    schema: dict[str, Any] = json.loads(SCHEMA.read_text())
    for definition in schema['$defs'].values():
        if 'properties' in definition:
            definition['additionalProperties'] = False
    return schema


class Done(subprocess.CompletedProcess[str]):
    """A command that has ended."""

    @property
    def documents(self) -> list[dict[str, Any]]:
        """What it printed with `--json`; each is a document of the reference."""
        return [read_document(line) for line in self.stdout.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """What it said with `--json` when it failed."""
        found = read_document(self.stderr)
        assert found['type'] == 'error'
        assert found['status'] == self.returncode
        return found


@dataclass(frozen=True)
class Device:
    """One home, and how commands are run in it."""

    home: Path

    @property
    def downloads(self) -> Path:
        """Where files come in that others send, unless it is set otherwise."""
        return self.home.with_name('Downloads')

    @property
    def environment(self) -> dict[str, str]:
        given = {k: v for k, v in os.environ.items() if not k.startswith('DEGU_')}
        return {
            **given,
            'DEGU_HOME': str(self.home),
            'DEGU_LISTEN': '127.0.0.1',
            'NO_COLOR': '1',
            'XDG_DOWNLOAD_DIR': str(self.downloads),
        }

    def run(self, *arguments: str | Path, text: str | None = None, **environment: str) -> Done:
        """Run `degu` with these arguments to its end."""
        done = subprocess.run(
            [*DEGU, *map(str, arguments)],
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={**self.environment, **environment},
            check=False,
        )
        return Done(done.args, done.returncode, done.stdout, done.stderr)

    def check(self, *arguments: str | Path, **environment: str) -> Done:
        """Run `degu`, which must do what it is told."""
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, done.stderr + done.stdout
        return done

    def look(self, *arguments: str | Path, **environment: str) -> str:
        """Return what `degu`, which must do what it is told, prints on a terminal."""
        ours, theirs = pty.openpty()
        try:
            with subprocess.Popen(
                [*DEGU, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                env={**self.environment, 'TERM': 'xterm', **environment},
            ) as process:
                os.close(theirs)
                said = b''
                # Source: pty(7); once nobody has the other end, Linux says EIO.
                with contextlib.suppress(OSError):
                    while part := os.read(ours, 4096):
                        said += part
            assert process.returncode == 0, said
            return said.decode()
        finally:
            os.close(ours)

    @contextlib.contextmanager
    def start(self, *arguments: str | Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Run `degu` beside the test, with pipes; SIGINT ends it at the end of the block."""
        with subprocess.Popen(
            [*DEGU, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment, 'PYTHONUNBUFFERED': '1', **environment},
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise

    def read(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Return the next document of a command that runs with `--json`."""
        assert process.stdout is not None
        return read_document(process.stdout.readline())

    @contextlib.contextmanager
    def up(self, *flags: str) -> Iterator[subprocess.Popen[str]]:
        """Run a node, which is ready inside of the block."""
        with self.start(
            'up', '--port=0', '--no-discovery', f'--name={self.home.name}', *flags
        ) as up:
            assert up.stdout is not None
            line = up.stdout.readline()
            assert 'ready' in line, line + up.communicate()[1]
            yield up


@pytest.fixture(scope='session')
def make_device(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Device]:
    """Give `make_device(name)`: a home in which nothing runs yet.

    Its path is short, as sockets are made below it.
    """
    return lambda name: Device(tmp_path_factory.mktemp('home') / name)


@pytest.fixture
def device(make_device: Callable[[str], Device]) -> Device:
    """Give a home in which nothing runs yet."""
    return make_device('studio')


@pytest.fixture
def node(device: Device) -> Iterator[Device]:
    """Give a home whose node runs."""
    with device.up():
        yield device


@pytest.fixture
def other(make_device: Callable[[str], Device]) -> Iterator[Device]:
    """Give a second home whose node runs."""
    found = make_device('laptop')
    with found.up():
        yield found


@pytest.fixture(scope='session')
def pair_devices() -> Callable[..., None]:
    """Give `pair_devices(node, other, *flags)`: they are paired, `other` typed the code."""

    def pair(showing: Device, typing: Device, *flags: str) -> None:
        with showing.start('pair', '--json', '--show', *flags) as window:
            opened = showing.read(window)
            assert opened['type'] == 'opened'
            at = opened['addresses'][0]
            code = opened['code']
            typed = typing.check('pair', '--json', '--at', at, *flags, DEGU_PAIR_CODE=code)
            assert [document['type'] for document in typed.documents] == ['paired']
            assert showing.read(window)['type'] == 'paired'
            assert window.wait(TIMEOUT_S) == 0

    return pair
