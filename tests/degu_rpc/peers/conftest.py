"""Two users with a machine each, made once; tests that change an identity make their own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from degu import pki
from degu_rpc.peers import Identity

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable


def _make(directory: pathlib.Path) -> Identity:
    return Identity.create(directory / 'home', datetime.now(UTC))


@pytest.fixture(scope='session')
def alice(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return _make(tmp_path_factory.mktemp('alice', numbered=False))


@pytest.fixture(scope='session')
def bob(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return _make(tmp_path_factory.mktemp('bob', numbered=False))


@pytest.fixture(scope='session')
def join() -> Callable[[pathlib.Path, Identity], Identity]:
    """Give `join(directory, issuer)`, which makes another machine of the issuer's user."""

    def build(directory: pathlib.Path, issuer: Identity) -> Identity:
        key = pki.build_key()
        cert = issuer.certify(key.public_key(), datetime.now(UTC))
        return Identity.join(directory, key, cert, issuer.user_cert)

    return build
