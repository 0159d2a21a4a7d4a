"""examples/two_homes.py, as somebody would run it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[4] / 'examples' / 'two_homes.py'


def test_two_homes_pair_and_call_each_other(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, '-W', 'error', EXAMPLE, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert re.fullmatch(
        'studio shows the code [0-9A-Z]{4}-[0-9A-Z]{4}\n'
        'laptop paired with studio, studio with laptop\n'
        'laptop hears: this is studio, and you are laptop\n'
        'studio hears: this is laptop, and you are studio\n',
        done.stdout,
    )
