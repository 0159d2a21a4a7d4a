"""A user to carry to another machine: key and certificate, encrypted with a passphrase. PURE.

Three lines of ASCII text: what it is, the salt in hex, and a Fernet token of the PEM of both. The
token's key is scrypt of the passphrase (N=2^17, r=8, p=1), so each guess costs whoever found the
file 128 MiB and a good part of a second. PKCS #12 and PKCS #8, as the libraries at hand write them,
let 2048 rounds of a hash stand between a guess and its answer.

Source: RFC 7914 for scrypt, the Fernet specification for the token.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from degu import pki
from degu_rpc.peers.limits import MIN_PASSPHRASE_LENGTH

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SALT_SIZE = 16
_TITLE = b'degu user 1'
_N, _R, _P = 2**17, 8, 1
_MEMORY = 2**28  # OpenSSL's own bound would be less than the 128 MiB that are needed


def format_user(
    user_key: EllipticCurvePrivateKey, user_cert: bytes, passphrase: str, salt: bytes
) -> bytes:
    """Encrypt a user's key and certificate (DER); *salt* is SALT_SIZE random bytes.

    Raises ValueError for a short passphrase.
    """
    from cryptography.fernet import Fernet

    if len(passphrase) < MIN_PASSPHRASE_LENGTH:
        raise ValueError(
            f'the passphrase must have at least {MIN_PASSPHRASE_LENGTH} characters: whoever gets '
            'the file can try as many as they like'
        )
    pem = pki.format_key_pem(user_key) + pki.format_cert_pem(user_cert)
    token = Fernet(_derive_key(passphrase, salt)).encrypt(pem)
    return b'%s\n%s\n%s\n' % (_TITLE, salt.hex().encode('ascii'), token)


def parse_user(exported: bytes, passphrase: str) -> tuple[EllipticCurvePrivateKey, bytes]:
    """Return the user's key and certificate (DER).

    Raises ValueError for a wrong passphrase or a damaged file.
    """
    from cryptography.fernet import Fernet, InvalidToken

    lines = exported.split(b'\n')
    if len(lines) != 4 or lines[0] != _TITLE or lines[3]:
        raise ValueError('this is not the file of an exported user')
    try:
        salt = bytes.fromhex(lines[1].decode('ascii'))
        pem = Fernet(_derive_key(passphrase, salt)).decrypt(lines[2])
        user_key, user_cert = pki.parse_key_pem(pem), pki.parse_cert_pem(pem)
    except (ValueError, InvalidToken):
        # Without the cause: a parser's message must never carry a piece of a key into a log.
        raise ValueError('the passphrase is wrong, or the file is damaged') from None
    return user_key, user_cert


def _derive_key(passphrase: str, salt: bytes) -> bytes:
    key = hashlib.scrypt(passphrase.encode(), salt=salt, n=_N, r=_R, p=_P, maxmem=_MEMORY, dklen=32)
    return base64.urlsafe_b64encode(key)
