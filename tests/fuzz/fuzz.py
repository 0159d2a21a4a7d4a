"""Coverage-guided fuzzing of the parsers.

    python tests/fuzz/fuzz.py TARGET [CORPUS...] [-max_total_time=SECONDS] [-runs=N] [...]

TARGET is request, response, chunk_line or channel; checks.py says what must hold for each. All else
goes to libFuzzer: inputs that reach new code are written to the first corpus, and one that breaks a
rule to a file crash-..., with the traceback. Without a corpus it starts from the one that is kept
beside this file, and keeps nothing.

Needs `pip install -e '.[test]'`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=['degu', 'strict']):
    from checks import CHECKS

CORPUS = Path(__file__).parent / 'corpus'


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in CHECKS:
        sys.exit(__doc__)
    name, options = sys.argv[1], sys.argv[2:]
    if all(option.startswith('-') for option in options):
        options.append('-seed_inputs=' + ','.join(map(str, (CORPUS / name).iterdir())))
    atheris.Setup([sys.argv[0], *options], CHECKS[name])
    atheris.Fuzz()


if __name__ == '__main__':
    main()
