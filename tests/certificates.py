"""Certificates that are almost right: issued again with one thing changed.

Tests are no package that could be imported: who needs this loads it by its path.
"""

from __future__ import annotations

from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID


def name(common_name: str) -> x509.Name:
    """Build a name that has nothing but a CN."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def names(*uris: str) -> x509.SubjectAlternativeName:
    """Build a SAN of URIs."""
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])


def usage(**changes: bool) -> x509.KeyUsage:
    """Build a keyUsage that has nothing but what is named."""
    flags = dict.fromkeys(
        (
            'digital_signature',
            'content_commitment',
            'key_encipherment',
            'data_encipherment',
            'key_agreement',
            'key_cert_sign',
            'crl_sign',
            'encipher_only',
            'decipher_only',
        ),
        False,
    )
    return x509.KeyUsage(**(flags | changes))


def extensions_of(cert_der: bytes) -> dict[x509.ObjectIdentifier, tuple[x509.ExtensionType, bool]]:
    """Read the extensions of a certificate: (value, critical) by OID."""
    cert = x509.load_der_x509_certificate(cert_der)
    return {extension.oid: (extension.value, extension.critical) for extension in cert.extensions}


def reissue(
    cert_der: bytes,
    signer: Any,
    *,
    drop: type[x509.ExtensionType] | None = None,
    put: tuple[x509.ExtensionType, bool] | None = None,
    algorithm: Any = None,
    **fields: Any,
) -> bytes:
    """Sign a certificate again with what is named changed."""
    cert = x509.load_der_x509_certificate(cert_der)
    values: dict[str, Any] = {
        'issuer_name': cert.issuer,
        'subject_name': cert.subject,
        'public_key': cert.public_key(),
        'serial_number': cert.serial_number,
        'not_valid_before': cert.not_valid_before_utc,
        'not_valid_after': cert.not_valid_after_utc,
    }
    builder = x509.CertificateBuilder(**(values | fields))
    extensions = extensions_of(cert_der)
    if drop is not None:
        del extensions[drop.oid]
    if put is not None:
        extensions[put[0].oid] = put
    for value, critical in extensions.values():
        builder = builder.add_extension(value, critical)
    signed = builder.sign(signer, algorithm or hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER)
