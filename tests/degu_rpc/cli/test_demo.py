"""`degu demo` as a user runs it: a process of its own, judged by what it prints and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

DEMO = [sys.executable, '-m', 'degu_rpc.cli', 'demo']


def test_help_says_what_it_does_and_how_it_exits():
    done = subprocess.run([*DEMO, '--help'], capture_output=True, text=True, check=True)
    assert 'mutual TLS' in done.stdout
    assert 'Exit status: 0 done' in done.stdout


@pytest.fixture
def temporary(tmp_path_factory):
    """Give a directory with a short name, unlike `tmp_path`: sockets are made far below it."""
    return tmp_path_factory.mktemp('demo')


@pytest.mark.slow
def test_the_demo_shows_everything_and_leaves_nothing_behind(temporary):
    done = subprocess.run(
        DEMO,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, 'TMPDIR': str(temporary)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    code = re.search(r'studio shows: (\w{4}-\w{4})   or: (\d+-\w+-\w+)\n', done.stdout)
    assert code is not None
    assert 'laptop paired with studio, studio with laptop, in ' in done.stdout
    assert 'laptop -> studio: "hello laptop, this is studio"' in done.stdout
    assert 'studio -> laptop: "hello studio, this is laptop"' in done.stdout
    assert f'sees uid {os.getuid()}, role owner' in done.stdout
    assert len(re.findall(r'calls on one connection: [\d,]+ calls/s', done.stdout)) == 2
    total = re.search(r': ([\d,]+) files, ', done.stdout)
    killed = re.search(r'killed with SIGKILL at ([\d,]+) files', done.stdout)
    assert total is not None
    assert killed is not None
    assert int(killed[1].replace(',', '')) < int(total[1].replace(',', ''))
    assert f'verified: {total[1]} files are the same' in done.stdout
    assert 'no certificate: refused' in done.stdout
    assert "a stranger's certificate: refused" in done.stdout
    assert 'laptop -> studio: refused, at the next call' in done.stdout
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_the_demo_that_is_interrupted_leaves_nothing_behind(temporary):
    process = subprocess.Popen(
        [*DEMO, '--json'],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, 'TMPDIR': str(temporary), 'PYTHONUNBUFFERED': '1'},
    )
    with process:
        assert process.stdout is not None
        text = ''
        while 'fetches the standard library' not in text:
            document = json.loads(process.stdout.readline())
            assert document['v'] == 1
            assert document['type'] in ('step', 'detail')
            text = document['text']
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
        process.stdout.read()
    assert process.returncode == 130
    assert list(temporary.iterdir()) == []


def test_wrong_usage_exits_with_2_and_says_what_there_is():
    done = subprocess.run([*DEMO[:-1], 'nope'], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No such command 'nope'" in done.stderr
