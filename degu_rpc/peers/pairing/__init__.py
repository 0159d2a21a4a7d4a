"""PAIRING: two machines that never met trust each other after one short code.

    codes        the code, and how people spell it
    invitation   code and addresses in one text, for cameras
    pake         the cryptography that turns the code into a strong key
    messages     what the two machines send each other
    sides        what each says, checks and stores once both know the code
    window       the machine that shows the code
    joiner       the machine that was told it

Each knows only those above it, and the window and the joiner do not know each other.
"""

from degu_rpc.peers.pairing.codes import PairingCode, build_code, parse_code
from degu_rpc.peers.pairing.invitation import (
    Invitation,
    format_invitation,
    format_qr,
    parse_invitation,
)
from degu_rpc.peers.pairing.joiner import join, pair
from degu_rpc.peers.pairing.pake import Intent
from degu_rpc.peers.pairing.sides import Paired
from degu_rpc.peers.pairing.window import PairingWindow

__all__ = [
    'Intent',
    'Invitation',
    'Paired',
    'PairingCode',
    'PairingWindow',
    'build_code',
    'format_invitation',
    'format_qr',
    'join',
    'pair',
    'parse_code',
    'parse_invitation',
]
