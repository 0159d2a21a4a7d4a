"""A sample of the torture: the first call of each name fails once. torture.py by hand does all."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TORTURE = Path(__file__).parent / 'torture.py'


@pytest.mark.slow
@pytest.mark.parametrize('side', ['server', 'client'])
@pytest.mark.parametrize('kind', ['unix', 'tcp', 'tls'])
def test_a_system_call_that_fails_costs_one_conversation_at_most(require_program, kind, side):
    require_program('strace')
    done = subprocess.run(
        [sys.executable, str(TORTURE), '--sample', '--kind', kind, '--side', side],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    total = re.search(r'^all +(\d+)', done.stdout, re.MULTILINE)
    assert total is not None
    assert int(total[1]) >= 10
