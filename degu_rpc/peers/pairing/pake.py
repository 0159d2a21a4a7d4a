"""The cryptography of one pairing: two state machines, and the session that comes of them.

    joiner                                       window (it shows the code)
    start()             -- SPAKE2 message -->
                        <-- SPAKE2 message --    answer()
    confirm()           -- confirmation   -->
                        <-- confirmation  --     confirm(): checks first, then answers
    finish(): checks it
    session                                      session

1. Both sides put the code into SPAKE2, with two identities: the role and the id (the hash of the
   public key) of each machine. Whoever does not know the code, or shows another key, ends with
   another shared key, and cannot test a guess without the other side.
   Source: RFC 9382, as the package `spake2` does it.
2. From the shared key and the transcript (version, both identities, intent, both messages; each
   with its length before it) HKDF derives four keys: one for the confirmation and one for the
   session, in each direction. Source: RFC 5869; RFC 9382 §4.
3. The joiner confirms first. So the window never shows anything that a guess could be tested with
   to somebody who has not proven to know the code.
4. The session authenticates what is said afterwards, on whatever connection.

No I/O. Each object is for one attempt and one thread: a call out of order, or one that failed, ends
it. The package is not constant-time; an attacker has one attempt in which to measure that.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from typing import TYPE_CHECKING, NamedTuple

from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError
from spake2.ed25519_basic import NotOnCurve

from degu_rpc.errors import PairingError, PairingFault

if TYPE_CHECKING:
    from degu_rpc.peers.pairing.codes import PairingCode

VERSION = 1
MESSAGE_SIZE = 33
"""Bytes of a SPAKE2 message: which side it is from, and a point of Ed25519."""
MAC_SIZE = 32
"""Bytes of a confirmation, and of each later proof."""


class Role(enum.Enum):
    """The two sides of a pairing."""

    WINDOW = 'window'
    """Shows the code, and waits."""
    JOINER = 'joiner'
    """Is told the code, and connects."""


class Intent(enum.Enum):
    """What comes of a pairing."""

    JOIN = 'join'
    """The joiner becomes another machine of the window's user."""
    PEER = 'peer'
    """The two users trust each other."""


class Stage(enum.Enum):
    """How far one attempt is."""

    NEW = 'new'
    STARTED = 'started'
    KEYED = 'keyed'
    CONFIRMED = 'confirmed'
    FAILED = 'failed'


class Terms(NamedTuple):
    """What both sides must see alike, or their keys differ: whose machines, and for what."""

    intent: Intent
    window_id: str
    joiner_id: str


class _Keys(NamedTuple):
    confirmation: bytes
    session: bytes


class Session:
    """Authenticates what is said after both sides have confirmed; it keeps no state."""

    def __init__(self, binding: bytes, own_key: bytes, other_key: bytes) -> None:
        self.binding = binding
        """What only this pairing has, for signatures to include: a hash of the transcript."""
        self._own_key = own_key
        self._other_key = other_key

    def prove(self, kind: str, *parts: bytes) -> bytes:
        """Return the proof that this side says `parts`, in a message of that kind."""
        return _mac(self._own_key, _frame(kind.encode(), *parts))

    def check(self, proof: bytes, kind: str, *parts: bytes) -> None:
        """Check the other side's proof. Raises PairingError (MESSAGE)."""
        if not hmac.compare_digest(_mac(self._other_key, _frame(kind.encode(), *parts)), proof):
            raise PairingError(PairingFault.MESSAGE, f'its {kind} is not from this pairing')


class _Handshake:
    """What both sides have in common."""

    _role: Role
    _other_role: Role
    _spake_class: type[SPAKE2_A | SPAKE2_B]

    def __init__(self, code: PairingCode, terms: Terms) -> None:
        self.stage = Stage.NEW
        self._identities = (
            _identify(Role.JOINER, terms.joiner_id),
            _identify(Role.WINDOW, terms.window_id),
        )
        self._intent = terms.intent
        self._spake = self._spake_class(code.secret, *self._identities)
        self._sent = b''
        self._transcript = b''
        self._own = self._other = _Keys(b'', b'')

    @property
    def session(self) -> Session:
        """What authenticates all that follows. Raises PairingError (ORDER) before it is agreed."""
        self._require(Stage.CONFIRMED)
        binding = hashlib.sha256(self._transcript).digest()
        return Session(binding, self._own.session, self._other.session)

    def _require(self, stage: Stage) -> None:
        if self.stage is not stage:
            raise PairingError(PairingFault.ORDER, f'{self.stage.value}, not {stage.value}')

    def _leave(self, stage: Stage) -> None:
        """Go on from a stage; what then raises has ended the attempt."""
        self._require(stage)
        self.stage = Stage.FAILED

    def _send(self) -> None:
        self._sent = self._spake.start()

    def _receive(self, message: bytes) -> None:
        """Derive all keys from the other side's message."""
        shared_key = self._agree(message)
        is_joiner = self._role is Role.JOINER
        messages = (self._sent, message) if is_joiner else (message, self._sent)
        self._transcript = _frame(
            f'degu pairing {VERSION}'.encode(),
            *self._identities,
            self._intent.value.encode(),
            *messages,
        )
        self._own = _derive_keys(shared_key, self._transcript, self._role)
        self._other = _derive_keys(shared_key, self._transcript, self._other_role)

    def _agree(self, message: bytes) -> bytes:
        if len(message) != MESSAGE_SIZE:
            raise PairingError(PairingFault.MESSAGE, f'{len(message)} bytes, not {MESSAGE_SIZE}')
        try:
            # The package takes some points in two spellings, one of them the neutral element.
            point = self._spake.params.group.bytes_to_element(message[1:])
            if point.to_bytes() != message[1:]:
                raise PairingError(PairingFault.MESSAGE, 'a point in another spelling')
            key: bytes = self._spake.finish(message)
        except (SPAKEError, NotOnCurve, ValueError) as error:
            raise PairingError(PairingFault.MESSAGE, f'SPAKE2: {type(error).__name__}') from None
        return key

    def _confirm(self) -> bytes:
        return _mac(self._own.confirmation, self._transcript)

    def _check(self, confirmation: bytes) -> None:
        expected = _mac(self._other.confirmation, self._transcript)
        if not hmac.compare_digest(expected, confirmation):
            raise PairingError(PairingFault.WRONG_CODE)


class JoinerHandshake(_Handshake):
    """The side that was told the code."""

    _role = Role.JOINER
    _other_role = Role.WINDOW
    _spake_class = SPAKE2_A

    def start(self) -> bytes:
        """Return the first message. Raises PairingError (ORDER)."""
        self._leave(Stage.NEW)
        self._send()
        self.stage = Stage.STARTED
        return self._sent

    def confirm(self, message: bytes) -> bytes:
        """Take the window's message and return the confirmation.

        Raises PairingError (ORDER, MESSAGE).
        """
        self._leave(Stage.STARTED)
        self._receive(message)
        self.stage = Stage.KEYED
        return self._confirm()

    def finish(self, confirmation: bytes) -> None:
        """Check the window's confirmation; then `session` is agreed.

        Raises PairingError (ORDER, WRONG_CODE).
        """
        self._leave(Stage.KEYED)
        self._check(confirmation)
        self.stage = Stage.CONFIRMED


class WindowHandshake(_Handshake):
    """The side that shows the code."""

    _role = Role.WINDOW
    _other_role = Role.JOINER
    _spake_class = SPAKE2_B

    def answer(self, message: bytes) -> bytes:
        """Take the joiner's first message and return ours.

        Raises PairingError (ORDER, MESSAGE).
        """
        self._leave(Stage.NEW)
        self._send()
        self._receive(message)
        self.stage = Stage.KEYED
        return self._sent

    def confirm(self, confirmation: bytes) -> bytes:
        """Check the joiner's confirmation and only then return ours; then `session` is agreed.

        Raises PairingError (ORDER, WRONG_CODE).
        """
        self._leave(Stage.KEYED)
        self._check(confirmation)
        self.stage = Stage.CONFIRMED
        return self._confirm()


def _identify(role: Role, machine_id: str) -> bytes:
    return _frame(role.value.encode(), machine_id.encode())


def _derive_keys(shared_key: bytes, transcript: bytes, sender: Role) -> _Keys:
    """Derive the two keys of one direction."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    salt = hashlib.sha256(transcript).digest()
    return _Keys(
        *(
            HKDF(hashes.SHA256(), 32, salt, f'{purpose} of {sender.value}'.encode()).derive(
                shared_key
            )
            for purpose in ('confirmation', 'session')
        )
    )


def _frame(*parts: bytes) -> bytes:
    """Join parts so that no other parts give the same bytes."""
    return b''.join(len(part).to_bytes(4, 'big') + part for part in parts)


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, 'sha256')
