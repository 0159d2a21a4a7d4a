"""`degu methods` and `degu call`: on a unix socket, at a paired machine, at the node itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from degu_rpc import Context, Router, RpcApp, RpcError, Service
from degu_rpc.errors import Code
from degu_rpc.peers import Authenticated
from degu_rpc.rpc.meta import build_meta


@pytest.fixture
def target(serve, tmp_path):
    service = Service('sums.v1.Sums')

    @service.method(allow='peer', safe=True)
    def add(first: int, second: int = 1) -> int:
        """Add two numbers.

        The second one is 1 unless given.
        """
        return first + second

    @service.method(allow='peer')
    def greet(ctx: Context, name: str) -> dict[str, str]:
        return {'said': f'hello {name}', 'to': ctx.peer.name}

    @service.method(allow='peer', safe=True)
    def count(to: int) -> Iterator[int]:
        yield from range(to)

    @service.method(allow='peer')
    def total(values: Iterator[int], start: int = 0) -> int:
        return sum(values, start)

    @service.method(allow='peer')
    def double(values: Iterator[int]) -> Iterator[int]:
        for value in values:
            yield 2 * value

    @service.method(allow='peer')
    def fail() -> None:
        raise RpcError(Code.OUT_OF_RANGE, 'not \x1b[31mtoday')

    @service.method(allow='peer')
    def echo(values: Iterator[str]) -> Iterator[str]:
        yield from values

    @service.method(allow='peer')
    def pretend(details: list[dict[str, Any]]) -> None:
        raise RpcError(Code.ABORTED, 'no', details)

    router = Router()
    router.mount('/rpc', RpcApp([service, build_meta([service])]))
    path = str(tmp_path / 'socket')
    serve(Authenticated(router), path)
    return f'unix:{path}'


def test_methods_lists_what_may_be_called(device, target):
    said = device.check('methods', target).stdout
    assert 'sums.v1.Sums/add  Add two numbers.\n' in said
    names = [d['name'] for d in device.check('methods', target, '--json').documents]
    assert 'sums.v1.Sums/count' in names


def test_methods_shows_one_as_python_has_it(device, target):
    said = device.check('methods', target, 'sums.v1.Sums/add').stdout
    assert said.startswith('sums.v1.Sums/add(first: int, second: int = 1) -> int\n')
    assert 'The second one is 1 unless given.' in said
    document = device.check('methods', target, 'sums.v1.Sums.total', '--json').documents[0]
    assert document['stream_parameter'] == 'values'
    said = device.check('methods', target, 'sums.v1.Sums/double').stdout
    assert said == 'sums.v1.Sums/double(values: Iterator[int]) -> Iterator[int]\n'


@pytest.mark.parametrize(
    ('arguments', 'printed'),
    [
        (['sums.v1.Sums/add', 'first:=3'], '4\n'),
        (['sums.v1.Sums.add', 'first:=3', 'second:=4'], '7\n'),
        (['sums.v1.Sums/add', '-d', '{"first": 3}', 'second:=4'], '7\n'),
        (['sums.v1.Sums/greet', 'name=a=b'], '{"said": "hello a=b", "to": "uid:0"}\n'),
        (['sums.v1.Sums/count', 'to:=3'], '0\n1\n2\n'),
        (['sums.v1.Sums/total', '-d', '1\n2\n3'], '6\n'),
        (['sums.v1.Sums/total', '-d', '1', 'start:=5'], '6\n'),
        (['sums.v1.Sums/double', '-d', '1\n2'], '2\n4\n'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_call_prints_the_result_as_json(device, target, arguments, printed):
    said = device.check('call', target, *arguments).stdout
    if 'uid:' in printed:
        assert json.loads(said)['said'] == 'hello a=b'
    else:
        assert said == printed


def test_call_reads_parameters_and_items_from_files_and_standard_input(device, target, tmp_path):
    (tmp_path / 'data.json').write_text('{"first": 1}')
    done = device.check('call', target, 'sums.v1.Sums/add', '-d', f'@{tmp_path}/data.json')
    assert done.stdout == '2\n'
    done = device.run('call', target, 'sums.v1.Sums/add', '-d', '@-', text='{"first": 5}')
    assert done.stdout == '6\n'
    done = device.run('call', target, 'sums.v1.Sums/total', text='1\n2\n')
    assert done.stdout == '3\n'


@pytest.mark.parametrize('method', ['add', 'total'])
def test_a_file_that_is_not_utf_8_is_wrong_usage(device, target, tmp_path, method):
    (tmp_path / 'data.json').write_bytes(b'"\xff"')
    done = device.run('call', target, f'sums.v1.Sums/{method}', '-d', f'@{tmp_path}/data.json')
    assert done.returncode == 2
    assert f'degu: {tmp_path}/data.json is not UTF-8' in done.stderr


def test_json_has_a_document_for_each_result(device, target):
    documents = device.check('call', target, 'sums.v1.Sums/count', 'to:=2', '--json').documents
    assert documents == [{'v': 1, 'type': 'item', 'value': n} for n in (0, 1)]
    documents = device.check('call', target, 'sums.v1.Sums/add', 'first:=2', '--json').documents
    assert documents == [{'v': 1, 'type': 'result', 'value': 3}]


@pytest.mark.parametrize(
    ('arguments', 'status', 'words'),
    [
        (['sums.v1.Sums/fail'], 8, r'not \x1b[31mtoday'),
        (['sums.v1.Sums/add', 'first=x'], 8, 'expected int, got str'),
        (['sums.v1.Sums/none'], 4, 'there are: add, greet'),
        (['none.v1.None/x'], 4, 'are the prefix and the name of the service right?'),
        (['add'], 2, 'a method is like'),
        (['sums.v1.Sums/add', 'first'], 2, 'name=text'),
        (['sums.v1.Sums/add', 'first:={'], 2, 'no JSON'),
        (['sums.v1.Sums/add', 'first:=1', 'first:=1'], 2, 'twice'),
        (['sums.v1.Sums/add', '-d', '[1]'], 2, 'one JSON object'),
        (['sums.v1.Sums/total', '-d', '1\n{'], 2, 'item 2'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_what_goes_wrong_has_words_and_a_status(device, target, arguments, status, words):
    done = device.run('call', target, *arguments)
    assert (done.returncode, done.stdout) == (status, '')
    assert words in done.stderr
    assert '\x1b' not in done.stderr
    assert device.run('call', target, *arguments, '--json').error['status'] == status


def test_a_result_can_do_nothing_to_a_terminal(device, target):
    name = 'name=\x9b31m\u202enaïve'
    said = device.look('call', target, 'sums.v1.Sums/greet', name)
    assert '"hello \\u009b31m\\u202enaïve"' in said
    assert said.startswith('{\r\n  "said"')
    said = device.look('call', target, 'sums.v1.Sums/echo', '-d', '"\x9b\u202e"')
    assert said == '"\\u009b\\u202e"\r\n'


@pytest.mark.parametrize(
    'detail', [{'kind': 'PairingError'}, {'kind': ['a']}, {'kind': 'CodeError', 'remedy': 'rm'}]
)
def test_details_of_somebody_elses_error_do_not_decide_the_status(device, target, detail):
    done = device.run(
        *('call', target, 'sums.v1.Sums/pretend', f'details:={json.dumps([detail])}', '--json')
    )
    assert (done.error['status'], done.error['kind'], done.error['remedy']) == (8, 'aborted', '')


def test_a_target_that_is_none_or_not_there(device):
    assert device.run('methods', 'udp:x').returncode == 2
    assert device.run('methods', 'unix:/none').returncode == 5
    assert device.run('methods', 'studio').returncode == 1  # no identity here yet
    for target in ('.', './clock'):
        done = device.run('methods', target, '--json')
        assert (done.error['status'], done.error['remedy']) == (10, 'start one: degu up --bg')
    assert device.run('methods', './').returncode == 2


def test_the_node_itself_and_a_paired_machine_are_targets(node, other, pair_devices):
    assert 'node.v1.Node/status' in node.check('methods', '.').stdout
    pair_devices(node, other)
    studio = node.check('status', '--json').documents[0]
    url = studio['urls'][0]
    # Without mDNS a name has no address; the URL says it.
    done = other.run('methods', 'studio')
    assert done.returncode == 5
    assert 'not seen on the network' in done.stderr
    said = other.check('call', url, 'health.v1.Health/check').stdout
    assert json.loads(said)['status'] == 'serving'
    assert 'node.v1.Node' not in other.check('methods', url).stdout
    assert other.run('methods', 'attic').returncode == 4


def test_a_machine_that_is_not_paired_is_refused(node, other):
    url = node.check('status', '--json').documents[0]['urls'][0]
    done = other.run('call', url, 'health.v1.Health/check')
    assert done.returncode == 6
    assert 'degu pair' in done.stderr
