"""A machine's new certificate, and its new key, from a machine that certifies for the same user.

1. `Certifier` is the RGI app of the issuing machine. It answers machines of its own user only, whom
   `Authenticated` has told apart; who is denied does not come this far.
2. `POST renew` gives the caller a new certificate for the key it called with: the id stays.
3. `POST rotate`, with a certificate request (PKCS #10) as its body, certifies a new key: whoever
   has it is another machine, by id, which is remembered first. `POST retire` denies the caller here
   from then on.
4. `renew_over` and `rotate_over` are the other side. What they get is checked as if it came from
   anybody, and kept by `Identity.install`: at any moment the old state is on disk, or the new one.

Other machines are told nothing: one that was told to know this machine by its former id must be
told anew. There are no threads and no locks.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from degu import pki
from degu.bodies import Input
from degu.errors import DeguError
from degu_rpc.errors import RenewalError, TrustError, UnknownPeerError
from degu_rpc.peers.caller import PeerKind, find_caller
from degu_rpc.peers.clock import read_clock
from degu_rpc.peers.limits import MAX_CERTIFICATE_SIZE
from degu_rpc.text import escape_controls

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    from degu.client import Connection, SSLClient
    from degu.rgi import Response
    from degu_rpc.peers.caller import Peer
    from degu_rpc.peers.dial import DialedClient
    from degu_rpc.peers.identity import Identity
    from degu_rpc.peers.trust import TrustStore

CERTIFICATE_TYPE = 'application/pkix-cert'  # Source: RFC 2585 §4.1
REQUEST_TYPE = 'application/pkcs10'  # Source: RFC 5967 §7.1

_log = logging.getLogger('degu_rpc.peers')


class Certifier:
    """An RGI app that certifies machines of my own user; it belongs behind `Authenticated`."""

    # Set once: all.

    def __init__(self, trust: TrustStore) -> None:
        """Certify for the user whose store that is, and deny there whoever retires.

        Raises IdentityError where the key of the user is not on this machine.
        """
        trust.identity.require_user_key()
        self._identity = trust.identity
        self._trust = trust

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Answer `POST renew`, `POST rotate` and `POST retire`."""
        try:
            peer = find_caller(request)
        except UnknownPeerError as error:
            return _refuse(401, 'Unauthorized', str(error))
        if peer.kind is not PeerKind.MACHINE or peer.user_id != self._identity.user_id:
            return _refuse(403, 'Forbidden', 'this is for machines of the same user')
        if request['method'] != 'POST':
            return 405, 'Method Not Allowed', {'allow': 'POST'}, None
        match request['path']:
            case ['renew']:
                return self._certify(peer, pki.parse_public_key(connection['ssl_peer_cert']))
            case ['rotate']:
                return self._rotate(peer, request)
            case ['retire']:
                self._trust.retire(str(peer.machine_id))
                _log.info('machine %s retired', peer.machine_id)
                return 204, 'No Content', {}, None
        return _refuse(404, 'Not Found', 'there are renew, rotate and retire')

    def _rotate(self, peer: Peer, request: dict[str, Any]) -> Response:
        body = request['body']
        if not isinstance(body, Input):
            return _refuse(411, 'Length Required', 'send a PKCS #10 request with a length')
        if body.content_length > MAX_CERTIFICATE_SIZE:
            return _refuse(413, 'Content Too Large', f'at most {MAX_CERTIFICATE_SIZE} bytes')
        try:
            public_key = pki.parse_csr(body.read())
        except pki.CertificateError as error:
            return _refuse(400, 'Bad Request', str(error))
        try:
            # First: whoever denies this machine must hit what it becomes, too.
            self._trust.succeed(str(peer.machine_id), pki.derive_machine_id(public_key))
        except TrustError as error:
            return _refuse(429, 'Too Many Requests', str(error))
        return self._certify(peer, public_key)

    def _certify(self, peer: Peer, public_key: EllipticCurvePublicKey) -> Response:
        cert = self._identity.certify(public_key)
        _log.info(
            'machine %s got a certificate for %s',
            peer.machine_id,
            pki.derive_machine_id(public_key),
        )
        return 200, 'OK', {'content-type': CERTIFICATE_TYPE}, cert


def _refuse(status: int, reason: str, why: str) -> Response:
    return status, reason, {'content-type': 'text/plain; charset=utf-8'}, f'{why}\n'.encode()


def renew_over(
    client: SSLClient | DialedClient, path: str, identity: Identity, now: datetime | None = None
) -> Identity:
    """Get a new certificate for this machine and keep it; return what I am now.

    *client* reaches the machine where a `Certifier` is at *path*.

    Raises RenewalError, pki.CertificateError for an answer that is no certificate of ours, OSError
    and what else *client* raises. The certificate that is there stays, then.
    """
    key = identity.read_machine_key()
    with client.connect() as connection:
        cert = _ask(connection, f'{path}/renew', None, now)
    return identity.install(key, cert)


def rotate_over(
    client: SSLClient | DialedClient, path: str, identity: Identity, now: datetime | None = None
) -> Identity:
    """Change this machine's key, and so its id, and retire the former one; return who I am now.

    Arguments and exceptions as for `renew_over`. A RenewalError with a `former_id` means that the
    new key is here, and that this id must be denied by hand on the issuing machine.
    """
    key = pki.build_key()
    with client.connect() as connection:
        cert = _ask(connection, f'{path}/rotate', pki.build_csr(key), now)
        rotated = identity.install(key, cert)
        try:
            status = connection.post(f'{path}/retire').status
        except (OSError, DeguError) as error:
            raise _not_retired(identity, str(error)) from error
    if status != 204:
        raise _not_retired(identity, f'it answered {status}')
    return rotated


def _not_retired(identity: Identity, why: str) -> RenewalError:
    return RenewalError(
        f'the new key is in place, but the issuing machine could not be told ({why}); there, deny '
        f'machine {identity.machine_id}',
        identity.machine_id,
    )


def _ask(connection: Connection, path: str, body: bytes | None, now: datetime | None) -> bytes:
    headers = {} if body is None else {'content-type': REQUEST_TYPE}
    response = connection.post(path, headers, body)
    content = b''
    if response.body is not None:
        content = response.body.read(MAX_CERTIFICATE_SIZE)
    if response.status != 200:
        said = escape_controls(content.decode('utf-8', 'replace').strip())
        raise RenewalError(f'the issuing machine answered {response.status}: {said}')
    pki.check_valid(content, read_clock(now))
    return content
