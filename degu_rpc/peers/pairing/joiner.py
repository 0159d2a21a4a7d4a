"""The side of a pairing that was told the code.

1. A slip in the code is found before anything is sent.
2. A window that others keep busy refuses connections, so this side tries again for some seconds.
   A bare TLS handshake, which sends nothing, takes the window's certificate. An ordinary client
   then trusts exactly that one; whether it is the right one, the handshake of the code says.
3. `start` and `confirm` are that handshake, `exchange` is what each side says of itself. Until here
   nothing is stored, and whatever goes wrong ends the pairing.
4. `pair` stores the other side, then asks it to do the same: `commit`. `join` asks first, gets its
   certificate with the answer, stores, and says so: `acknowledge`.
5. Only an answer with a proof counts. Without one it asks again, on new connections, until the
   window's time is up. Then, or if the window did not store this side, it takes back what it
   stored. The reasons: docs/decisions/0011-pairing-commit.md.

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
from degu.errors import DeguError, PeerRejectedError
from degu_rpc.errors import DeguRpcError, PairingError, PairingFault
from degu_rpc.peers.caller import PEER, check_trust
from degu_rpc.peers.identity import Identity
from degu_rpc.peers.limits import (
    MAX_PAIRING_BODY,
    PAIRING_CONNECT_S,
    PAIRING_REPEAT_S,
    PAIRING_STEP_TIMEOUT_S,
)
from degu_rpc.peers.pairing.codes import PairingCode, parse_code
from degu_rpc.peers.pairing.messages import (
    JSON,
    Abort,
    Answer,
    Confirmation,
    Done,
    Offer,
    Outcome,
    Proof,
    Refusal,
    Start,
    build_kind,
    format_message,
    parse_message,
)
from degu_rpc.peers.pairing.pake import VERSION, Intent, JoinerHandshake, Terms
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
    return pair_as(Peering(check_trust(trust), name, roles), address, code, clock, pause)


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
    if not isinstance(code, PairingCode):
        code = parse_code(code)
    client = _try_for_a_while(lambda: _build_client(address, side), clock, pause)
    with contextlib.ExitStack() as stack:
        connection = _try_for_a_while(lambda: _connect(client), clock, pause)
        stack.callback(connection.close)
        window_id = _parse_cert(connection.peer_certificate).machine_id
        handshake = JoinerHandshake(code, Terms(side.intent, window_id, side.own_id))
        start = Start(VERSION, side.intent, side.own_id, handshake.start())
        answer = _ask(connection, 'start', start, Answer)
        deadline = clock() + answer.remaining_s
        ours = Confirmation(handshake.confirm(answer.message))
        handshake.finish(_ask(connection, 'confirm', ours, Confirmation).confirmation)
        session = handshake.session
        offers = _exchange(connection, session, side.offer(session.binding))
        ending = _Ending(client, connection, session, offers, deadline, clock, pause)
        stack.callback(ending.close)
        with ending.aborting(side):
            paired = side.accept(offers[1], window_id, session.binding)
        if side.intent is Intent.PEER:
            ending.store_first(side)
        else:
            ending.store_last(side)
    return paired


def _try_for_a_while(
    connect: Callable[[], _T], clock: Callable[[], float], pause: Callable[[float], None]
) -> _T:
    deadline = clock() + PAIRING_CONNECT_S
    while True:
        try:
            return connect()
        except PairingError as error:
            if error.fault is not PairingFault.UNREACHABLE or clock() >= deadline:
                raise
            pause(PAIRING_REPEAT_S)


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
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            raise _no_window(address, error) from error
        raise _unreachable(address, error) from error
    try:
        ids = pki.parse_machine_cert(cert)
    except pki.CertificateError as error:
        raise _no_window(address, error) from error
    side.check_user(ids.user_id)
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
        raise _unreachable(client.address, error) from error


def _unreachable(address: Address, error: Exception) -> PairingError:
    return PairingError(PairingFault.UNREACHABLE, f'at {address!r}: {error}')


def _no_window(address: Address, error: Exception) -> PairingError:
    return PairingError(
        PairingFault.MESSAGE,
        f'what answers at {address!r} is no pairing window; look at the address and the port: '
        f'{error}',
    )


def _exchange(connection: Connection, session: Session, ours: bytes) -> tuple[bytes, bytes]:
    """Say what this side offers; return that and what the window offers."""
    said = Offer(ours, session.prove('exchange', ours))
    theirs = _ask(connection, 'exchange', said, Offer)
    session.check(theirs.proof, 'exchange', ours, theirs.offer)
    return ours, theirs.offer


class _Ending:
    """How a pairing ends once both sides have said all: on any connection, with proofs."""

    def __init__(
        self,
        client: SSLClient,
        connection: Connection,
        session: Session,
        offers: tuple[bytes, bytes],
        deadline: float,
        clock: Callable[[], float],
        pause: Callable[[float], None],
    ) -> None:
        self._client = client
        self._connection = connection
        self._session = session
        self._offers = offers
        self._deadline = deadline
        self._clock = clock
        self._pause = pause

    def close(self) -> None:
        self._connection.close()

    def store_first(self, side: Side) -> None:
        """Store the other user, and have the window do so."""
        with self.aborting(side):
            side.store()
        try:
            self._ask_until_answered('commit')
        except BaseException:
            side.take_back()
            raise
        # Both have stored the other, and nothing takes that back.
        with contextlib.suppress(PairingError):  # it only waits a little longer then
            self._ask('acknowledge', self._prove('acknowledge'), Outcome)

    def store_last(self, side: Side) -> None:
        """Have the window store this machine, get the certificate, store it, and say so."""
        with self.aborting(side):
            side.receive(self._ask_until_answered('commit'))
            side.store()
            self._ask_until_answered('acknowledge')

    @contextlib.contextmanager
    def aborting(self, side: Side) -> Iterator[None]:
        """Take back what was stored if not all was, and tell the window."""
        try:
            yield
        except BaseException as error:
            fault = error.fault if isinstance(error, PairingError) else PairingFault.NOT_STORED
            try:
                side.take_back()
            finally:
                proof = self._session.prove('abort', *self._offers, fault.value.encode())
                with contextlib.suppress(PairingError):  # it will find out when its time is up
                    self._ask('abort', Abort(fault, proof), Done)
            if isinstance(error, OSError | DeguRpcError) and not isinstance(error, PairingError):
                raise PairingError(fault, str(error)) from error
            raise

    def _ask_until_answered(self, path: str) -> bytes:
        """Ask until the window says that it stored this side; return what it gives with that.

        Raises PairingError: NOT_STORED, UNCONFIRMED.
        """
        proof = self._prove(path)
        while True:
            try:
                outcome = self._ask(path, proof, Outcome)
                kind = build_kind(path, outcome.is_stored)
                self._session.check(outcome.proof, kind, *self._offers, outcome.machine_cert)
                break
            except PairingError as error:
                _log.info('no answer to a last message of a pairing, asking again: %s', error)
                self._connection.close()
                if self._clock() >= self._deadline:
                    raise PairingError(PairingFault.UNCONFIRMED, str(error)) from error
                self._pause(PAIRING_REPEAT_S)
        if not outcome.is_stored:
            raise PairingError(PairingFault.NOT_STORED, is_claimed=True)
        return outcome.machine_cert

    def _prove(self, path: str) -> Proof:
        return Proof(self._session.prove(path, *self._offers))

    def _ask(self, path: str, message: Message, kind: type[_T]) -> _T:
        if self._connection.closed:
            self._connection = _connect(self._client)
        return _ask(self._connection, path, message, kind)


_BEFORE_SESSION = {
    *(PairingFault.USED, PairingFault.EXPIRED, PairingFault.INTENT, PairingFault.VERSION),
    *(PairingFault.WRONG_CODE, PairingFault.MESSAGE, PairingFault.ORDER),
}
"""What anybody may say who answers in the place of a window: nothing that calls for no new try."""


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
    except PeerRejectedError as error:
        raise PairingError(
            PairingFault.MESSAGE,
            f'what answers is no pairing window; look at the address and the port: {error}',
        ) from error
    except (OSError, DeguError) as error:
        raise PairingError(PairingFault.UNREACHABLE, str(error)) from error
    if response.status == 200:
        return parse_message(data, kind)
    if response.status == 409:
        fault = parse_message(data, Refusal).reason
        if path in ('start', 'confirm') and fault not in _BEFORE_SESSION:
            raise PairingError(PairingFault.MESSAGE, f'it answered {fault.value}')
        raise PairingError(fault, is_claimed=True)
    raise PairingError(PairingFault.MESSAGE, f'it answered {response.status}')
