"""Two users with a machine each, made once; tests that change an identity make their own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from degu_rpc.peers import Identity

if TYPE_CHECKING:
    import pathlib


def _make(directory: pathlib.Path) -> Identity:
    return Identity.create(directory / 'home', datetime.now(UTC))


@pytest.fixture(scope='session')
def alice(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return _make(tmp_path_factory.mktemp('alice', numbered=False))


@pytest.fixture(scope='session')
def bob(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return _make(tmp_path_factory.mktemp('bob', numbered=False))
