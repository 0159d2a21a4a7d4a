"""The public names of the package, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import degu_rpc
from degu_rpc.rpc.codec import Codec


@pytest.mark.parametrize('name', degu_rpc.__all__)
def test_public_name_is_there(name: str) -> None:
    value = getattr(degu_rpc, name)
    found = value.name.upper() if isinstance(value, Codec) else value.__name__
    assert found == name
    assert name in dir(degu_rpc)


def test_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = degu_rpc.nothing  # type: ignore[attr-defined]  # what is tested


def test_importing_the_package_imports_no_wing() -> None:
    code = 'import sys, degu_rpc; print([m for m in sys.modules if m.startswith("degu_rpc.")])'
    output = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, check=True, text=True
    )
    assert output.stdout == '[]\n'
