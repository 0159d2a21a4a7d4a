"""degu_rpc.peers.export: what a passphrase keeps, and what it does not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from degu import pki
from degu_rpc.peers import Identity
from degu_rpc.peers.export import SALT_SIZE, format_user, parse_user

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime.now(UTC)
PASSPHRASE = 'correct horse battery'
KEY = pki.build_key()
CERT = pki.build_user_cert(KEY, NOW)


@pytest.fixture(scope='module')
def exported() -> bytes:
    return format_user(KEY, CERT, PASSPHRASE, b's' * SALT_SIZE)


def test_what_was_exported_comes_back(exported: bytes) -> None:
    key, cert = parse_user(exported, PASSPHRASE)
    assert pki.format_key_pem(key) == pki.format_key_pem(KEY)
    assert cert == CERT


def test_the_text_shows_nothing_of_the_user(exported: bytes) -> None:
    assert exported.isascii()
    assert b'PRIVATE' not in exported
    assert pki.derive_user_id(KEY.public_key()).encode() not in exported
    assert exported != format_user(KEY, CERT, PASSPHRASE, b't' * SALT_SIZE)


@pytest.mark.parametrize('passphrase', ['', PASSPHRASE + 'x', PASSPHRASE.upper()])
def test_a_wrong_passphrase_is_refused(exported: bytes, passphrase: str) -> None:
    with pytest.raises(ValueError, match='the passphrase is wrong, or the file is damaged'):
        parse_user(exported, passphrase)


@pytest.mark.parametrize('where', ['salt', 'token'])
def test_a_damaged_file_is_refused(exported: bytes, where: str) -> None:
    title, salt, token, end = exported.split(b'\n')
    damaged = {
        'salt': [title, salt[:-1] + b'0', token, end],
        'token': [title, salt, token[:50] + b'A' + token[51:], end],
    }[where]
    assert b'\n'.join(damaged) != exported
    with pytest.raises(ValueError, match='the passphrase is wrong, or the file is damaged'):
        parse_user(b'\n'.join(damaged), PASSPHRASE)


@pytest.mark.parametrize('data', [b'', b'degu user 1\n', b'degu user 2\nab\ncd\n', b'\n' * 4])
def test_another_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match='not the file of an exported user'):
        parse_user(data, PASSPHRASE)


def test_a_short_passphrase_is_refused() -> None:
    with pytest.raises(ValueError, match='at least 12 characters'):
        format_user(KEY, CERT, 'elevenchars', b's' * SALT_SIZE)


def test_a_refused_file_leaves_nothing(tmp_path: Path, exported: bytes) -> None:
    with pytest.raises(ValueError, match='wrong'):
        Identity.import_user(tmp_path / 'home', exported, 'not the passphrase', NOW)
    assert not (tmp_path / 'home').exists()
