"""The rules of checks.py hold for the corpus, and for what a short run of the fuzzer invents."""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TARGETS = ['request', 'response', 'chunk_line', 'channel']
RUN_S = 3


@pytest.fixture
def checks(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    return runpy.run_path(str(HERE / 'checks.py'))['CHECKS']


@pytest.fixture
def require_atheris():
    """Skip where the fuzzer is not installed; it must be on CI's own Python."""
    if importlib.util.find_spec('atheris') is None:
        reason = "atheris is not installed: pip install -e '.[test]'"
        if os.environ.get('DEGU_TEST_REQUIRE_ALL') == '1' and sys.version_info[:2] == (3, 11):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def test_each_target_has_a_corpus(checks):
    assert sorted(checks) == sorted(path.name for path in (HERE / 'corpus').iterdir())
    assert sorted(checks) == sorted(TARGETS)


@pytest.mark.parametrize('target', TARGETS)
def test_the_corpus_keeps_the_rules(checks, target):
    paths = sorted((HERE / 'corpus' / target).iterdir())
    assert paths
    for path in paths:
        checks[target](path.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize('target', TARGETS)
def test_what_the_fuzzer_invents_keeps_the_rules(require_atheris, tmp_path, target):
    command = [sys.executable, str(HERE / 'fuzz.py'), target, f'-max_total_time={RUN_S}']
    corpora = [str(tmp_path), str(HERE / 'corpus' / target)]
    done = subprocess.run(
        [*command, *corpora, f'-dict={HERE / "http.dict"}', f'-artifact_prefix={tmp_path}/'],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Done ' in done.stderr
