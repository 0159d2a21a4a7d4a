"""The side of a pairing that was told the code.

1. A slip in the code is found before anything is sent.
2. A bare TLS handshake, which sends nothing, takes the window's certificate. An ordinary client
   then trusts exactly that one; whether it is the right one, the handshake of the code says.
3. `start` and `confirm` are that handshake, `exchange` is what each side says of itself. Until here
   nothing is stored, and whatever goes wrong ends the pairing.
4. This side stores the other, then asks it to do the same: `commit`. Only an answer with a proof
   counts. Without one it asks again, on new connections, until the window's time is up. Then, or if
   the window did not store this side, it takes back what it stored.
   The reasons: docs/decisions/0011-pairing-commit.md.

There are no threads and no locks.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import time
from typing import TYPE_CHECKING, TypeVar

from degu import net, pki
from degu.bodies import Input
from degu.client import SSLClient, build_client_sslctx
from degu.errors import DeguError
from degu_rpc.errors import DeguRpcError, PairingError, PairingFault
from degu_rpc.peers.caller import PEER
from degu_rpc.peers.identity import Identity
from degu_rpc.peers.limits import MAX_PAIRING_BODY, PAIRING_REPEAT_S, PAIRING_STEP_TIMEOUT_S
from degu_rpc.peers.pairing.codes import PairingCode, parse_code
from degu_rpc.peers.pairing.messages import (
    COMMITTED,
    JSON,
    NOT_COMMITTED,
    Abort,
    Answer,
    Confirmation,
    Done,
    Offer,
    Outcome,
    Proof,
    Refusal,
    Start,
    format_message,
    parse_message,
)
from degu_rpc.peers.pairing.pake import VERSION, JoinerHandshake, Terms
from degu_rpc.peers.pairing.sides import Joining, Peering

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterator

    from degu.client import Connection
    from degu.net import Address
    from degu_rpc.peers.pairing.messages import Message
    from degu_rpc.peers.pairing.pake import Session
    from degu_rpc.peers.pairing.sides import Paired, Side
    from degu_rpc.peers.trust import TrustStore


_T = TypeVar('_T')

_log = logging.getLogger('degu_rpc.peers')


def pair(
    address: Address,
    code: str | PairingCode,
    trust: TrustStore,
    name: str,
    *,
    roles: Collection[str] = (PEER,),
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Paired:
    """Pair my user with the user of the window at `address` that shows `code`; return who that is.

    The other user is trusted in `trust` then, with these roles; `name` is what this machine calls
    itself. Both sides have stored the other when this returns. `clock` counts seconds, `pause`
    waits that many.

    Raises PairingError, of which CodeError is one: this side has stored nothing. ValueError for a
    name or roles that cannot be. IdentityError or OSError: it could not read its own identity, or
    not take back what it stored.
    """
    return pair_as(Peering(trust, name, roles), address, code, clock, pause)


def join(
    address: Address,
    code: str | PairingCode,
    directory: str | os.PathLike[str],
    name: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Identity:
    """Become a machine of the user of the window at `address` that shows `code`; return who I am.

    The identity is made in `directory`. One that is there is certified anew, with its key and its
    id, if it is of that user: so a machine comes back whose certificate ran out. The other
    arguments are those of `pair`.

    Raises FileExistsError if the identity that is there has the key of its user, else what `pair`
    raises.
    """
    pair_as(Joining(directory, name), address, code, clock, pause)
    return Identity.open(directory)


def pair_as(
    side: Side,
    address: Address,
    code: str | PairingCode,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Paired:
    """Pair as one side of a pairing; see `pair`."""
    if isinstance(code, str):
        code = parse_code(code)
    client = _build_client(address, side)
    with _connect(client) as connection:
        window_id = _parse_cert(connection.peer_certificate).machine_id
        handshake = JoinerHandshake(code, Terms(side.intent, window_id, side.own_id))
        start = Start(VERSION, side.intent, side.own_id, handshake.start())
        answer = _ask(connection, 'start', start, Answer)
        deadline = clock() + answer.remaining_s
        ours = Confirmation(handshake.confirm(answer.message))
        handshake.finish(_ask(connection, 'confirm', ours, Confirmation).confirmation)
        session = handshake.session
        offers = _exchange(connection, session, side.offer(session.binding))
        with _aborting(connection, session, offers, side):
            paired = side.accept(offers[1], window_id, session.binding)
            side.store()
        try:
            is_stored = _commit(client, connection, session, offers, deadline, clock, pause)
            if not is_stored:
                raise PairingError(PairingFault.NOT_STORED, 'said by the other machine')
        except BaseException:
            side.take_back()
            raise
    return paired


def _build_client(address: Address, side: Side) -> SSLClient:
    """Build a client that trusts the certificate of the server at `address`, and no other."""
    sslctx = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    sslctx.minimum_version = ssl.TLSVersion.TLSv1_3
    sslctx.check_hostname = False
    sslctx.verify_mode = ssl.CERT_NONE
    try:
        with (
            net.connect(address, PAIRING_STEP_TIMEOUT_S) as sock,
            sslctx.wrap_socket(sock) as tls,
        ):
            cert = tls.getpeercert(True)
    except OSError as error:
        raise PairingError(PairingFault.UNREACHABLE, str(error)) from error
    side.check_user(_parse_cert(cert).user_id)
    assert cert is not None
    ca_data = pki.format_cert_pem(cert).decode('ascii')
    pinned = build_client_sslctx({'ca_data': ca_data, 'check_hostname': False})
    return SSLClient(pinned, address, timeout_s=PAIRING_STEP_TIMEOUT_S)


def _parse_cert(cert: bytes | None) -> pki.MachineIds:
    try:
        return pki.parse_machine_cert(cert)
    except pki.CertificateError as error:
        raise PairingError(PairingFault.CERTIFICATE, str(error)) from error


def _connect(client: SSLClient) -> Connection:
    try:
        return client.connect()
    except ssl.SSLCertVerificationError as error:
        raise PairingError(PairingFault.CERTIFICATE, str(error)) from error
    except OSError as error:
        raise PairingError(PairingFault.UNREACHABLE, str(error)) from error


def _exchange(connection: Connection, session: Session, ours: bytes) -> tuple[bytes, bytes]:
    """Say what this side offers; return that and what the window offers."""
    said = Offer(ours, session.prove('exchange', ours))
    theirs = _ask(connection, 'exchange', said, Offer)
    session.check(theirs.proof, 'exchange', ours, theirs.offer)
    return ours, theirs.offer


@contextlib.contextmanager
def _aborting(
    connection: Connection,
    session: Session,
    offers: tuple[bytes, bytes],
    side: Side,
) -> Iterator[None]:
    """Take back what was stored if not all was, and tell the window."""
    try:
        yield
    except BaseException as error:
        fault = error.fault if isinstance(error, PairingError) else PairingFault.NOT_STORED
        try:
            side.take_back()
        finally:
            proof = session.prove('abort', *offers, fault.value.encode())
            with contextlib.suppress(PairingError):  # it will find out when its time is up
                _ask(connection, 'abort', Abort(fault, proof), Done)
        if isinstance(error, OSError | DeguRpcError) and not isinstance(error, PairingError):
            raise PairingError(fault, str(error)) from error
        raise


def _commit(
    client: SSLClient,
    connection: Connection,
    session: Session,
    offers: tuple[bytes, bytes],
    deadline: float,
    clock: Callable[[], float],
    pause: Callable[[float], None],
) -> bool:
    """Ask until the window says whether it stored this side; return that.

    Raises PairingError (UNCONFIRMED).
    """
    proof = Proof(session.prove('commit', *offers))
    while True:
        try:
            if connection.closed:
                connection = _connect(client)
            with contextlib.ExitStack() as stack:
                stack.callback(connection.close)
                outcome = _ask(connection, 'commit', proof, Outcome)
                kind = COMMITTED if outcome.is_stored else NOT_COMMITTED
                session.check(outcome.proof, kind, *offers)
                if outcome.is_stored:
                    _acknowledge(connection, session, offers)
                return outcome.is_stored
        except PairingError as error:
            _log.info('no answer to the last message of a pairing, asking again: %s', error)
            if clock() >= deadline:
                raise PairingError(PairingFault.UNCONFIRMED, str(error)) from error
            pause(PAIRING_REPEAT_S)


def _acknowledge(connection: Connection, session: Session, offers: tuple[bytes, bytes]) -> None:
    with contextlib.suppress(PairingError):  # it only waits a little longer then
        _ask(connection, 'acknowledge', Proof(session.prove('acknowledge', *offers)), Done)


def _ask(connection: Connection, path: str, message: Message, kind: type[_T]) -> _T:
    """Send one message and return the answer.

    Raises PairingError: UNREACHABLE without an answer, else what the answer says.
    """
    try:
        response = connection.post(f'/{path}', {'content-type': JSON}, format_message(message))
        body = response.body
        if not isinstance(body, Input) or body.content_length > MAX_PAIRING_BODY:
            raise PairingError(PairingFault.MESSAGE, f'it answered {response.status}')
        data = body.read()
    except (OSError, DeguError) as error:
        raise PairingError(PairingFault.UNREACHABLE, str(error)) from error
    if response.status == 200:
        return parse_message(data, kind)
    if response.status == 409:
        raise PairingError(parse_message(data, Refusal).reason, 'said by the other machine')
    raise PairingError(PairingFault.MESSAGE, f'it answered {response.status}')
