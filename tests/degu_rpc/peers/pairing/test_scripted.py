"""A short form of the attacks that `tests/bench/pairing_attacks.py` makes in their thousands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / 'bench' / 'pairing_attacks.py'
COUNTS = {'--middle': 24, '--codes': 100, '--windows': 10, '--controls': 2}


@pytest.mark.slow
def test_nobody_gets_in_without_the_code_and_the_man_who_has_it_does():
    options = [word for option, count in COUNTS.items() for word in (option, str(count))]
    done = subprocess.run(
        [sys.executable, '-W', 'error', SCRIPT, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f'{sum(COUNTS.values())} attempts' in done.stdout
    assert ', 0 not as they must be' in done.stdout
