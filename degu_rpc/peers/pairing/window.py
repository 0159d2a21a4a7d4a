"""The side of a pairing that shows the code: a server of its own, for one attempt.

1. A window is counted: only so many are opened in some time, by all processes with this identity.
2. It listens with the machine's certificate and takes anonymous clients, few and with small
   messages (`degu_rpc.peers.pairing.messages`). What is malformed, or for another intent, burns
   nothing.
3. `start` is the one attempt. Whatever fails in the cryptography from there on ends the window.
   `confirm` and `exchange` must come on the connection that started, so nobody else can spoil it.
4. `exchange` stores nothing. `commit` does, may come on any connection, and has the same answer
   each time. Between two users that is final. A machine that joins gets its certificate with that
   answer, and `acknowledge` is final: without it the machine is taken back and denied. The reasons:
   docs/decisions/0011-pairing-commit.md.
5. `wait` returns once that is done, or says why it is not. At its end the window goes on answering
   until the joiner knows: until it has acknowledged, or the time is up.

Threads: the server's threads call `__call__`, the owner's `wait`. `_changed`, a condition, guards
all that changes: `_attempt`, `_outcome`, `_is_acknowledged`. It is held while the other side is
stored, disk included, so that a second `commit` waits for the outcome of the first.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec

from degu import IPv4_LOOPBACK, durable
from degu.bodies import Input
from degu.server import SSLServer, build_server_sslctx
from degu_rpc.errors import DeguRpcError, IdentityError, PairingError, PairingFault
from degu_rpc.peers.caller import PEER, check_trust
from degu_rpc.peers.limits import (
    MAX_PAIRING_BODY,
    MAX_PAIRING_CONNECTIONS,
    MAX_PAIRING_CONNECTIONS_PER_ADDRESS,
    MAX_PAIRING_WINDOWS,
    PAIRING_SILENCE_S,
    PAIRING_STEP_TIMEOUT_S,
    PAIRING_WINDOW_S,
    PAIRING_WINDOWS_PERIOD_S,
)
from degu_rpc.peers.pairing.codes import RANDOM_BITS, PairingCode, build_code
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
from degu_rpc.peers.pairing.pake import VERSION, Intent, Terms, WindowHandshake
from degu_rpc.peers.pairing.sides import Admission, Paired, Peering
from degu_rpc.peers.private import locked, read_private

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path
    from types import TracebackType

    from degu.net import Address
    from degu.rgi import Response
    from degu_rpc.peers.trust import TrustStore

COUNT_FILE = 'pairing-windows.json'
_ATTEMPT = '__pairing'  # of a connection, if it is the one that started

_log = logging.getLogger('degu_rpc.peers')


class _Attempt:
    """The one attempt that a window has."""

    def __init__(self, handshake: WindowHandshake, joiner_id: str) -> None:
        self.handshake = handshake
        self.joiner_id = joiner_id
        self.offers: tuple[bytes, bytes] | None = None
        self.paired: Paired | None = None
        self.is_stored = False


class PairingWindow:
    """A context manager: inside, a machine that is told `.code` can pair at `.address`.

    Leaving the block may wait until the time of the window is up, if a machine has paired and the
    network fails just then: the window has stored it, and goes on answering until it knows. An
    error inside the block closes the window at once.
    """

    # Set once: all but what _changed guards, and what entering sets: address, _deadline, _server,
    # _stack.

    def __init__(
        self,
        trust: TrustStore,
        name: str,
        address: Address = IPv4_LOOPBACK,
        *,
        intent: Intent = Intent.PEER,
        roles: Collection[str] = (PEER,),
        code: PairingCode | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a window of the machine that `trust` is of; it opens with the `with` block.

        `name` is what this machine calls itself. With `Intent.PEER` the other user is trusted with
        these roles, and calls `pair`. With `Intent.JOIN` the other machine becomes one of my user,
        and calls `join`. `code` is for who wants to choose the random bits; `clock` counts seconds.

        Raises TypeError for what is no store or no intent, ValueError for a name or roles that
        cannot be: a machine that joins has none but the owner's. IdentityError where this machine
        cannot certify one that is to join, OSError.
        """
        check_trust(trust)
        if not isinstance(intent, Intent):
            raise TypeError(f'intent must be an Intent, not {intent!r}')
        if intent is Intent.JOIN and set(roles) != {PEER}:
            raise ValueError(f'a machine that joins is the owner, so it cannot be given {roles!r}')
        self._side: Peering | Admission = (
            Peering(trust, name, roles) if intent is Intent.PEER else Admission(trust, name)
        )
        self.code = code or build_code(secrets.randbits(RANDOM_BITS))
        self.address: Address = address
        self._clock = clock
        self._deadline = 0.0
        self._changed = threading.Condition()
        self._attempt: _Attempt | None = None
        self._outcome: Paired | PairingError | None = None
        self._is_acknowledged = False
        self._server: SSLServer | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Listen at the address; `.address` is the real one then.

        Raises PairingError (TOO_MANY_WINDOWS), IdentityError, OSError and ssl.SSLError.
        """
        identity = self._side.identity
        file = str(identity.machine_file)
        sslctx = build_server_sslctx(
            {'cert_file': file, 'key_file': file, 'allow_unauthenticated_clients': True}
        )
        server = SSLServer(
            sslctx,
            self.address,
            self,
            max_connections=MAX_PAIRING_CONNECTIONS,
            max_connections_per_address=MAX_PAIRING_CONNECTIONS_PER_ADDRESS,
            max_handshakes=MAX_PAIRING_CONNECTIONS,
            handshake_timeout_s=PAIRING_SILENCE_S,
            preamble_timeout_s=PAIRING_STEP_TIMEOUT_S,
            idle_timeout_s=PAIRING_SILENCE_S,
            body_window_s=PAIRING_STEP_TIMEOUT_S,
            max_preamble=MAX_PAIRING_BODY,
            max_chunk=MAX_PAIRING_BODY,
        )
        try:
            count_window(identity.directory, datetime.now(UTC))
        except BaseException:
            server.close()
            raise
        self._deadline = self._clock() + PAIRING_WINDOW_S
        self._server = self._stack.enter_context(server)
        self.address = server.address
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with self._stack:
                if kind is None:
                    self._linger()
        finally:
            with self._changed:
                if self._outcome is None:
                    self._expire()

    def _linger(self) -> None:
        """Wait until the joiner knows that it is trusted, or takes its side back."""
        with self._changed:
            while self._is_unacknowledged():
                if not self._wait():
                    break
            if isinstance(self._outcome, Paired) and not self._is_acknowledged:
                _log.warning(
                    'machine %s did not say that it knows it is paired; if it does not work '
                    'there, pair again',
                    self._outcome.machine_id,
                )

    def _is_unacknowledged(self) -> bool:
        is_stored = self._attempt is not None and self._attempt.is_stored
        return is_stored and not self._is_acknowledged and not self._has_failed()

    def _has_failed(self) -> bool:
        return isinstance(self._outcome, PairingError)

    def wait(self) -> Paired:
        """Wait until another machine has paired, and return which.

        Raises PairingError, which says what happened and what to do; RuntimeError outside of the
        `with` block.
        """
        while (paired := self.poll(PAIRING_WINDOW_S)) is None:
            pass
        return paired

    def poll(self, timeout_s: float) -> Paired | None:
        """Wait so long, and return which machine has paired, None if none has yet.

        Raises what wait() raises.
        """
        if not self._deadline:
            raise RuntimeError('the window is not open: write with PairingWindow(...) as window')
        with self._changed:
            if self._outcome is None and not self._wait(timeout_s):
                self._expire()
        if isinstance(self._outcome, PairingError):
            raise self._outcome
        return self._outcome

    def _wait(self, timeout_s: float = PAIRING_WINDOW_S) -> bool:
        """Wait for a change, or so long; return False once the time of the window is up."""
        remaining_s = self._deadline - self._clock()
        if remaining_s > 0:
            self._changed.wait(min(remaining_s, timeout_s))
        return remaining_s > 0

    def _expire(self) -> None:
        details = []
        if self._attempt is not None:
            details.append('a machine began to pair and did not go on')
        if self._server is not None and self._server.refused:
            details.append(
                f'{self._server.refused} other connections were refused meanwhile: somebody on '
                'this network may keep the window busy'
            )
        self._fail(PairingError(PairingFault.EXPIRED, '; '.join(details)))

    def _fail(self, outcome: PairingError) -> None:
        """End without a pairing, and take back a machine that may have its certificate."""
        attempt = self._attempt
        if attempt is not None and attempt.is_stored:
            try:
                self._side.take_back()
            except (OSError, DeguRpcError) as error:
                _log.exception('a machine that did not join could not be denied')
                detail = f'machine {attempt.joiner_id} could not be denied, deny it: {error}'
                outcome = PairingError(PairingFault.NOT_STORED, detail)
        self._end(outcome)

    def _end(self, outcome: Paired | PairingError) -> None:
        self._outcome = outcome
        self._changed.notify_all()

    # --- the server ------------------------------------------------------------------------------

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Answer one message; an RGI app."""
        answer = self._routes.get('/'.join(request['path']))
        if answer is None:
            return 404, 'Not Found', {'connection': 'close'}, None
        if request['method'] != 'POST':
            return 405, 'Method Not Allowed', {'allow': 'POST', 'connection': 'close'}, None
        body = request['body']
        if not isinstance(body, Input):
            return 411, 'Length Required', {'connection': 'close'}, None
        if body.content_length > MAX_PAIRING_BODY:
            return 413, 'Content Too Large', {'connection': 'close'}, None
        data = body.read()
        try:
            with self._changed:
                content = answer(self, connection, data)
        except PairingError as error:
            _log.info('pairing with %r: %s', connection['client'], error)
            # The reason alone: the detail is for our own user.
            content = format_message(Refusal(error.fault))
            return 409, 'Conflict', {'content-type': JSON}, content
        return 200, 'OK', {'content-type': JSON}, content

    def _start(self, connection: dict[str, Any], data: bytes) -> bytes:
        start = parse_message(data, Start)
        if start.version != VERSION:
            raise PairingError(PairingFault.VERSION)
        if self._attempt is not None:
            raise PairingError(PairingFault.USED)
        self._check_open()
        if start.intent is not self._side.intent:
            raise PairingError(PairingFault.INTENT)
        terms = Terms(start.intent, self._side.own_id, start.machine_id)
        handshake = WindowHandshake(self.code, terms)
        self._attempt = connection[_ATTEMPT] = _Attempt(handshake, start.machine_id)
        with self._ending():
            remaining_s = max(self._deadline - self._clock(), 0.0)
            return format_message(Answer(handshake.answer(start.message), remaining_s))

    def _confirm(self, connection: dict[str, Any], data: bytes) -> bytes:
        confirmation = parse_message(data, Confirmation).confirmation
        attempt = self._find_attempt(connection)
        with self._ending():
            return format_message(Confirmation(attempt.handshake.confirm(confirmation)))

    def _exchange(self, connection: dict[str, Any], data: bytes) -> bytes:
        theirs = parse_message(data, Offer)
        attempt = self._find_attempt(connection)
        session = attempt.handshake.session
        session.check(theirs.proof, 'exchange', theirs.offer)
        if attempt.offers is not None:
            raise PairingError(PairingFault.ORDER, 'a second exchange')
        with self._ending():
            attempt.paired = self._side.accept(theirs.offer, attempt.joiner_id, session.binding)
            ours = self._side.offer(session.binding)
        attempt.offers = theirs.offer, ours
        return format_message(Offer(ours, session.prove('exchange', *attempt.offers)))

    def _commit(self, connection: dict[str, Any], data: bytes) -> bytes:
        attempt, offers = self._check_proof(parse_message(data, Proof).proof, 'commit')
        self._look_at_clock()
        if self._outcome is None and not attempt.is_stored:
            self._store(attempt)
        is_stored = attempt.is_stored and not self._has_failed()
        cert = self._side.give() if is_stored else b''
        proof = attempt.handshake.session.prove(build_kind('commit', is_stored), *offers, cert)
        return format_message(Outcome(is_stored, cert, proof))

    def _store(self, attempt: _Attempt) -> None:
        """Store the other side. Between two users that is the outcome."""
        try:
            self._side.store()
        except Exception as error:  # noqa: BLE001  # whatever it is, neither may keep the other
            _log.exception('a machine that paired could not be stored')
            try:
                self._side.take_back()
            finally:
                self._end(PairingError(PairingFault.NOT_STORED, str(error)))
        else:
            attempt.is_stored = True
            if self._side.intent is Intent.PEER:
                assert attempt.paired is not None
                self._end(attempt.paired)

    def _acknowledge(self, connection: dict[str, Any], data: bytes) -> bytes:
        attempt, offers = self._check_proof(parse_message(data, Proof).proof, 'acknowledge')
        self._look_at_clock()
        is_stored = attempt.is_stored and not self._has_failed()
        if is_stored:
            assert attempt.paired is not None
            self._is_acknowledged = True
            self._end(attempt.paired)
        proof = attempt.handshake.session.prove(build_kind('acknowledge', is_stored), *offers, b'')
        return format_message(Outcome(is_stored, b'', proof))

    def _abort(self, connection: dict[str, Any], data: bytes) -> bytes:
        abort = parse_message(data, Abort)
        self._check_proof(abort.proof, 'abort', abort.reason.value.encode())
        self._check_open()
        self._fail(PairingError(abort.reason, is_claimed=True))
        return format_message(Done())

    def _find_attempt(self, connection: dict[str, Any]) -> _Attempt:
        attempt: _Attempt | None = connection.get(_ATTEMPT)
        if attempt is None:
            raise PairingError(PairingFault.ORDER, 'not on the connection that started')
        self._check_open()
        return attempt

    def _check_proof(
        self, proof: bytes, kind: str, *more: bytes
    ) -> tuple[_Attempt, tuple[bytes, bytes]]:
        """Return the attempt if it came to an exchange, and the proof is of that."""
        attempt = self._attempt
        if attempt is None or attempt.offers is None:
            raise PairingError(PairingFault.ORDER, f'a {kind} before an exchange')
        attempt.handshake.session.check(proof, kind, *attempt.offers, *more)
        return attempt, attempt.offers

    def _check_open(self) -> None:
        """Raise PairingError if there is an outcome, or the time is up."""
        self._look_at_clock()
        if self._outcome is not None:
            expired = isinstance(self._outcome, PairingError) and (
                self._outcome.fault is PairingFault.EXPIRED
            )
            raise PairingError(PairingFault.EXPIRED if expired else PairingFault.USED)

    def _look_at_clock(self) -> None:
        if self._outcome is None and self._clock() >= self._deadline:
            self._expire()

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """End the window with the error, if there is one, unless it only came in a wrong order."""
        try:
            yield
        except PairingError as error:
            if error.fault is not PairingFault.ORDER:
                self._end(error)
            raise
        except (OSError, DeguRpcError) as error:
            _log.exception('a machine that knew the code could not be answered')
            failed = PairingError(PairingFault.NOT_STORED, str(error))
            self._end(failed)
            raise failed from error

    _routes: ClassVar[dict[str, Callable[[PairingWindow, dict[str, Any], bytes], bytes]]] = {
        'start': _start,
        'confirm': _confirm,
        'exchange': _exchange,
        'commit': _commit,
        'acknowledge': _acknowledge,
        'abort': _abort,
    }


def count_window(directory: Path, now: datetime) -> None:
    """Count a window that opens now, for all processes with the identity in `directory`.

    Raises PairingError (TOO_MANY_WINDOWS), IdentityError, OSError.
    """
    path = directory / COUNT_FILE
    with locked(directory):
        try:
            opened = msgspec.json.decode(read_private(path), type=list[float])
        except FileNotFoundError:
            opened = []
        except msgspec.DecodeError as error:
            raise IdentityError(path, f'is broken: {error}', 'remove it') from error
        # A clock that was set back must not lock anybody out for longer.
        recent = [at for at in opened if abs(now.timestamp() - at) < PAIRING_WINDOWS_PERIOD_S]
        if len(recent) >= MAX_PAIRING_WINDOWS:
            wait_s = PAIRING_WINDOWS_PERIOD_S - abs(now.timestamp() - min(recent))
            raise PairingError(
                PairingFault.TOO_MANY_WINDOWS, f'{len(recent)} so far; again in {wait_s:.0f} s'
            )
        durable.replace(path, msgspec.json.encode([*recent, now.timestamp()]))
