"""Every example of the tutorial runs as it is written, and gives what it says."""

from __future__ import annotations

import doctest
import os
import shutil
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[3] / 'shared' / 'seed' / 'tutorial.rst'


def test_the_tutorial_runs_verbatim():
    if not TUTORIAL.is_file():
        pytest.skip('the tutorial is not part of the repository')
    names = {}
    parser = doctest.DocTestParser()
    test = parser.get_doctest(TUTORIAL.read_text(), names, TUTORIAL.name, str(TUTORIAL), 0)
    assert len(test.examples) > 20
    output = []
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    try:
        result = runner.run(test, out=output.append, clear_globs=False)
        assert result.failed == 0, ''.join(output)
        assert result.attempted == len(test.examples)
    finally:
        # What the tutorial leaves to Python's exit: its servers, certificates and a directory.
        for name in ('proxy_conn', 'conn', 'proxy_server', 'server', 'pki'):
            if name in test.globs:
                test.globs[name].close()
        if 'tmpdir' in test.globs:
            assert os.listdir(test.globs['tmpdir']) == []
            shutil.rmtree(test.globs['tmpdir'])
