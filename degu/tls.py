"""TLS contexts: built from a small dict in the one way we use TLS, or checked to be that way. And
what it means when a handshake refuses a certificate.

TLS 1.3 only, certificates on both sides unless a server explicitly takes anonymous clients, no
compression, no session tickets: a resumed session carries no certificate chain and could outlive a
trust that was taken back. No curve is pinned, so that OpenSSL picks its best (a post-quantum hybrid
where it has one).

A config is a dict; its paths are absolute and normalized:

    cert_file, key_file    our own certificate (chain) and its key
    ca_file, ca_path       whom we trust on the other side, or
    ca_data                the same as PEM in a str, not in a file
    allow_unauthenticated_clients    server only, only True, and then without a CA
    check_hostname         client only, default True; must stay True with the system's CAs

A certificate is refused by OpenSSL on the side that looks at it, which tells the other side with an
alert. `find_refusal` and `find_rejection` turn the two into errors that say what is wrong and what
to do. Neither can tell *when* a certificate is valid: Python shows none that was not verified.
"""

from __future__ import annotations

import os
import ssl
from datetime import UTC
from typing import TYPE_CHECKING, Any

from degu.errors import DeguError, PeerRejectedError
from degu.pki import CertificateError, CertificateFault

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

_FILES = frozenset({'cert_file', 'key_file', 'ca_file', 'ca_path'})
_CA_KEYS = frozenset({'ca_file', 'ca_path', 'ca_data'})
_SERVER_KEYS = _FILES | _CA_KEYS | {'allow_unauthenticated_clients'}
_CLIENT_KEYS = _FILES | _CA_KEYS | {'check_hostname'}
# Strict: what RFC 5280 says of a certificate must hold. Partial chain: a CA that we were given is
# an anchor even if another CA signed it.
_VERIFY_FLAGS = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN


def build_server_sslctx(config: Mapping[str, Any]) -> ssl.SSLContext:
    """Build the context of a server.

    Raises TypeError or ValueError for the config, OSError or ssl.SSLError for a file in it.
    """
    _check_config(config, _SERVER_KEYS)
    if 'cert_file' not in config:
        raise ValueError('a server config needs cert_file and key_file')
    has_ca = not _CA_KEYS.isdisjoint(config)
    if 'allow_unauthenticated_clients' in config:
        if config['allow_unauthenticated_clients'] is not True:
            raise ValueError('allow_unauthenticated_clients can only be True; leave it out instead')
        if has_ca:
            raise ValueError('allow_unauthenticated_clients excludes ca_file, ca_path and ca_data')
    elif not has_ca:
        raise ValueError(
            'a server config needs ca_file, ca_path or ca_data, or allow_unauthenticated_clients'
        )
    sslctx = _build_sslctx(ssl.PROTOCOL_TLS_SERVER, config)
    sslctx.verify_mode = ssl.CERT_REQUIRED if has_ca else ssl.CERT_NONE
    sslctx.num_tickets = 0
    return sslctx


def build_client_sslctx(config: Mapping[str, Any]) -> ssl.SSLContext:
    """Build the context of a client; without a CA in the config the system's are trusted.

    Raises TypeError or ValueError for the config, OSError or ssl.SSLError for a file in it.
    """
    _check_config(config, _CLIENT_KEYS)
    check_hostname = config.get('check_hostname', True)
    if not isinstance(check_hostname, bool):
        raise TypeError(f'check_hostname must be a bool, not {check_hostname!r}')
    has_ca = not _CA_KEYS.isdisjoint(config)
    if not has_ca and not check_hostname:
        raise ValueError(
            "check_hostname must stay True with the system's CAs; give ca_file, ca_path or ca_data"
        )
    sslctx = _build_sslctx(ssl.PROTOCOL_TLS_CLIENT, config)
    sslctx.check_hostname = check_hostname
    if not has_ca:
        sslctx.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return sslctx


def _build_sslctx(protocol: int, config: Mapping[str, Any]) -> ssl.SSLContext:
    sslctx = ssl.SSLContext(protocol)
    sslctx.minimum_version = ssl.TLSVersion.TLSv1_3
    # Each message says where it ends, so a connection need not: its end is nothing to alert about.
    sslctx.options |= ssl.OP_NO_COMPRESSION | ssl.OP_IGNORE_UNEXPECTED_EOF
    sslctx.verify_flags |= _VERIFY_FLAGS
    sslctx.set_alpn_protocols(['http/1.1'])
    if 'cert_file' in config:
        sslctx.load_cert_chain(config['cert_file'], config['key_file'])
    if not _CA_KEYS.isdisjoint(config):
        sslctx.load_verify_locations(*(config.get(k) for k in ('ca_file', 'ca_path', 'ca_data')))
    return sslctx


def _check_config(config: Mapping[str, Any], known: frozenset[str]) -> None:
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(
            f'unknown in the TLS config: {", ".join(unknown)}; known: {", ".join(sorted(known))}'
        )
    for name in sorted(_FILES & set(config)):
        path = config[name]
        if not isinstance(path, str):
            raise TypeError(f'{name} must be a str, not {path!r}')
        if not os.path.isabs(path) or os.path.normpath(path) != path:
            raise ValueError(f'{name} must be an absolute, normalized path, not {path!r}')
    ca_data = config.get('ca_data', '')
    if not isinstance(ca_data, str):
        raise TypeError(f'ca_data must be a str of PEM, not {type(ca_data).__name__}')
    if ('cert_file' in config) != ('key_file' in config):
        raise ValueError('cert_file and key_file go together')


def check_server_sslctx(sslctx: object) -> ssl.SSLContext:
    """Return a server's context if it is as strict as ours. Raises TypeError, ValueError."""
    checked = _check_sslctx(sslctx, ssl.PROTOCOL_TLS_SERVER)
    if checked.num_tickets:
        raise ValueError('sslctx.num_tickets must be 0: a resumed session could outlive its trust')
    if checked.verify_mode == ssl.CERT_OPTIONAL:
        raise ValueError(
            'sslctx.verify_mode must be CERT_REQUIRED, or CERT_NONE for anonymous clients'
        )
    return checked


def check_client_sslctx(sslctx: object) -> ssl.SSLContext:
    """Return a client's context if it is as strict as ours. Raises TypeError, ValueError."""
    checked = _check_sslctx(sslctx, ssl.PROTOCOL_TLS_CLIENT)
    if checked.verify_mode != ssl.CERT_REQUIRED:
        raise ValueError('sslctx.verify_mode must be CERT_REQUIRED')
    return checked


def _check_sslctx(sslctx: object, protocol: int) -> ssl.SSLContext:
    side = 'server' if protocol == ssl.PROTOCOL_TLS_SERVER else 'client'
    if not isinstance(sslctx, ssl.SSLContext):
        raise TypeError(
            f'sslctx must be an ssl.SSLContext (see build_{side}_sslctx), or a function that makes '
            f'one; not {sslctx!r}'
        )
    if sslctx.protocol != protocol:
        raise ValueError(
            f'sslctx.protocol must be PROTOCOL_TLS_{side.upper()}, not {sslctx.protocol!r}'
        )
    if sslctx.minimum_version != ssl.TLSVersion.TLSv1_3:
        raise ValueError(f'sslctx.minimum_version must be TLSv1_3, not {sslctx.minimum_version!r}')
    if sslctx.maximum_version not in (ssl.TLSVersion.MAXIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_3):
        raise ValueError(
            f'sslctx.maximum_version must allow TLSv1_3, not {sslctx.maximum_version!r}'
        )
    if not sslctx.options & ssl.OP_NO_COMPRESSION:
        raise ValueError('sslctx.options must have OP_NO_COMPRESSION')
    if sslctx.verify_flags & _VERIFY_FLAGS != _VERIFY_FLAGS:
        raise ValueError(
            'sslctx.verify_flags must have VERIFY_X509_STRICT and VERIFY_X509_PARTIAL_CHAIN'
        )
    return sslctx


_FAULTS = {
    2: CertificateFault.UNKNOWN_ISSUER,
    7: CertificateFault.SIGNATURE,
    9: CertificateFault.NOT_YET_VALID,
    10: CertificateFault.EXPIRED,
    18: CertificateFault.UNKNOWN_ISSUER,
    19: CertificateFault.UNKNOWN_ISSUER,
    20: CertificateFault.UNKNOWN_ISSUER,
    21: CertificateFault.UNKNOWN_ISSUER,
    25: CertificateFault.SUB_CA,
    26: CertificateFault.PURPOSE,
    34: CertificateFault.UNKNOWN_EXTENSION,
    62: CertificateFault.HOST,
    64: CertificateFault.HOST,
    66: CertificateFault.KEY,
    79: CertificateFault.NOT_A_CA,
    85: CertificateFault.AUTHORITY_KEY_ID,
}
"""What OpenSSL finds wrong. Source: X509_V_ERR_* in its x509_vfy.h."""

_ADVICE = {
    CertificateFault.EXPIRED: 'set our clock if it is wrong, else the peer must renew it',
    CertificateFault.NOT_YET_VALID: (
        'set our clock if it is wrong, else the one of whoever issued it, who must issue it anew'
    ),
    CertificateFault.UNKNOWN_ISSUER: 'if you know the user (CA) who issued it, trust them first',
    CertificateFault.SIGNATURE: 'somebody else may have made it: do not trust it',
    CertificateFault.HOST: 'call the host by a name in it, or know the peer by its machine id',
}
_ISSUE_ANEW = 'the peer needs one that its user (CA) issued as degu.pki does'

_ALERTS = {
    'bad_certificate': (
        'ours is not valid yet by its clock, too weak, or not that of the host it called; '
        'compare both clocks, and look into its log'
    ),
    'certificate_expired': (
        'ours has expired by its clock; renew ours, or set the clock of the peer if it is wrong'
    ),
    'certificate_required': (
        'it wants a certificate and we have none; give the context a cert_file and a key_file'
    ),
    'certificate_unknown': 'ours is malformed, its log says how; issue it anew, as degu.pki does',
    'decrypt_error': 'ours was not signed by whom it names; issue it anew, as degu.pki does',
    'unknown_ca': 'it trusts nobody who issued ours; it must trust our user (CA) first',
    'unsupported_certificate': 'ours is not for this use; issue it anew, as degu.pki does',
}
"""What a peer means by an alert about a certificate. Source: RFC 8446 §6.2; which of them OpenSSL
sends for what: `x509table` in its ssl/statem/statem_lib.c."""


class UnverifiedCertificateError(CertificateError, ssl.SSLCertVerificationError):
    """OpenSSL refused the other side's certificate in the handshake: `fault` says why.

    It has the attributes of the `ssl.SSLCertVerificationError` it was made of, too.
    """

    def __init__(self, error: ssl.SSLCertVerificationError, now: datetime) -> None:
        """*now* is our clock, which OpenSSL went by."""
        fault = _FAULTS.get(error.verify_code, CertificateFault.UNVERIFIED)
        found = error.verify_message.rstrip('.')
        if fault in (CertificateFault.EXPIRED, CertificateFault.NOT_YET_VALID):
            found = f'our clock says {now.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC'
        ssl.SSLCertVerificationError.__init__(self, *error.args)
        vars(self).update(vars(error))
        self.fault = fault
        self.detail = f'{found}; {_ADVICE.get(fault, _ISSUE_ANEW)}'


def find_refusal(error: OSError, now: datetime) -> DeguError | None:
    """Return what a failed handshake says about a certificate, None if it is about something else.

    An UnverifiedCertificateError or CertificateError (MISSING) is about the other side's,
    a PeerRejectedError about ours. *now* is our clock.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return UnverifiedCertificateError(error, now)
    if _read_reason(error) == 'PEER_DID_NOT_RETURN_A_CERTIFICATE':
        return CertificateError(CertificateFault.MISSING)
    return find_rejection(error)


def find_rejection(error: OSError | None) -> PeerRejectedError | None:
    """Return what the alert in an error says about our certificate, None if it says nothing."""
    # OpenSSL names an alert by the version that brought it: TLSV1_ALERT_UNKNOWN_CA.
    alert = _read_reason(error).partition('_ALERT_')[2].lower()
    if alert not in _ALERTS:
        return None
    return PeerRejectedError(f'the peer refused us: {_ALERTS[alert]} (TLS alert {alert})', alert)


def _read_reason(error: OSError | None) -> str:
    reason: str | None = getattr(error, 'reason', None)  # only what comes from OpenSSL has one
    return reason or ''
