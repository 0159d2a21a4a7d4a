"""The table of mutations fits the core as it is now; `python tests/mutations.py` tries them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
_spec = importlib.util.spec_from_file_location('mutations', TESTS / 'mutations.py')
assert _spec is not None
assert _spec.loader is not None
mutations = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mutations)


@pytest.mark.parametrize('mutation', mutations.MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_changes_one_place_and_names_a_test(mutation):
    source = (TESTS.parent / mutation.source).read_text()
    assert source.count(mutation.old) == 1
    file, _, test = mutation.tests.partition('::')
    assert f'def {test}' in (TESTS.parent / mutations.find_tests(file)).read_text()
