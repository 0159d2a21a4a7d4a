"""A short form of the soak that `tests/bench/soak.py` can go on with for an hour."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parent.parent / 'bench' / 'soak.py'
ACTIONS = 10


@pytest.mark.slow
def test_mixed_traffic_leaves_no_memory_descriptor_or_thread_behind(tmp_path):
    path = tmp_path / 'figures'
    done = subprocess.run(
        [sys.executable, '-W', 'error', SOAK, '--minutes', '0.2', '--json', path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    counts = json.loads(path.read_text())['actions']
    assert len(counts) == ACTIONS
    assert min(counts.values()) >= 10, 'too little of something to say anything'
