"""What the two sides of a pairing send each other, in JSON.

    POST {path}       request          answer
    /start            Start            Answer
    /confirm          Confirmation     Confirmation
    /exchange         Offer            Offer
    /commit           Proof            Outcome
    /acknowledge      Proof            Outcome
    /abort            Abort            Done

An error is a Refusal with the status 409, or a bare status for what is no message at all. Bytes are
base64. From `exchange` on each message carries a proof of the session: of its kind (the path, or
what an Outcome says) and of all that was offered so far.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from degu import pki
from degu_rpc.errors import PairingError, PairingFault
from degu_rpc.peers.limits import PAIRING_WINDOW_S
from degu_rpc.peers.pairing.pake import MAC_SIZE, MESSAGE_SIZE, Intent

JSON = 'application/json'

_T = TypeVar('_T')
_Id = Annotated[str, msgspec.Meta(pattern=rf'\A{pki.ID_PATTERN}\Z')]
_Point = Annotated[bytes, msgspec.Meta(min_length=MESSAGE_SIZE, max_length=MESSAGE_SIZE)]
_Mac = Annotated[bytes, msgspec.Meta(min_length=MAC_SIZE, max_length=MAC_SIZE)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all messages have in common."""


class Start(Message, frozen=True):
    """The joiner wants to pair: for what, who it is, and its SPAKE2 message."""

    version: int
    intent: Intent
    machine_id: _Id
    message: _Point


class Answer(Message, frozen=True):
    """The window's SPAKE2 message, and how long it will be open."""

    message: _Point
    remaining_s: Annotated[float, msgspec.Meta(ge=0, le=PAIRING_WINDOW_S)]


class Confirmation(Message, frozen=True):
    """One side shows that it knows the code."""

    confirmation: _Mac


class Offer(Message, frozen=True):
    """What one side says of itself: see `degu_rpc.peers.pairing.sides`."""

    offer: bytes
    proof: _Mac


class Proof(Message, frozen=True):
    """The joiner asks the window to store its side, or says that nothing more is needed."""

    proof: _Mac


class Outcome(Message, frozen=True):
    """Whether the window has stored its side, and what a machine gets that joins."""

    is_stored: bool
    machine_cert: bytes
    proof: _Mac


class Abort(Message, frozen=True):
    """The joiner keeps nothing, and why."""

    reason: PairingFault
    proof: _Mac


class Done(Message, frozen=True):
    """The window took notice."""


class Refusal(Message, frozen=True):
    """The window does not do what was asked."""

    reason: PairingFault


def build_kind(path: str, is_stored: bool) -> str:
    """Return the kind of the proof in the Outcome that answers a path."""
    return f'{path}: {"stored" if is_stored else "not stored"}'


def format_message(message: Message) -> bytes:
    """Return a message as JSON."""
    return msgspec.json.encode(message)


def parse_message(data: bytes, kind: type[_T]) -> _T:
    """Return the message of that kind in `data`.

    Raises PairingError (MESSAGE), which repeats nothing of it.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:  # of which ValidationError is one
        raise PairingError(PairingFault.MESSAGE, f'no {kind.__name__}') from error
