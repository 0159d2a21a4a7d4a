"""The pairing windows of a node, and how it joins one of another machine.

1. `open_window` listens beside the node's own port, is announced, and tells what happens: the
   code, then who has paired. It ends when its caller is gone. Who paired just then is told to
   nobody, so the log says each time whom this machine trusts from now on.
2. `pair_at` goes to a window whose address is given, or to the one that is seen. Of several it
   takes none: a code that was meant for another window would use that window's one attempt up.
3. A machine that joins a user gets its new identity beside the one it has; the node starts anew
   with that (degu_rpc.node.home).

Threads: each call runs in its connection's thread. There are no locks.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from typing import TYPE_CHECKING

from degu import net
from degu_rpc.errors import PairingError, PairingFault
from degu_rpc.node.api import PairedWith, PairingEvent
from degu_rpc.node.limits import CALLER_PERIOD_S, MAX_PORT, NEARBY_S
from degu_rpc.node.places import Place, find_places, find_reachable
from degu_rpc.peers import Intent, PairingWindow, format_invitation, join, pair, parse_code
from degu_rpc.peers.limits import CONNECT_S, PAIRING_WINDOW_S
from degu_rpc.rpc.target import parse_target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from degu.net import Address
    from degu_rpc.node.device import Node
    from degu_rpc.peers import PairingCode
    from degu_rpc.rpc.context import Context

_log = logging.getLogger('degu_rpc.node')

SETTLE_S = 0.3
"""How long after the first window others of the same moment are waited for."""


def open_window(node: Node, intent: Intent, context: Context) -> Iterator[PairingEvent]:
    """Yield what happens at a window of this node, from its opening to the pairing.

    Raises PairingError, IdentityError, OSError, and what `context.check()` does.
    """
    with contextlib.ExitStack() as after, contextlib.ExitStack() as stack:
        window = _enter_window(stack, node, intent)
        after.callback(_log_paired, window)
        places = find_reachable(*find_places([window.address]))
        stack.enter_context(node.neighbours.announcing_window([window.address]))
        yield PairingEvent(
            'opened',
            code=str(window.code),
            words=window.code.words,
            addresses=[str(place) for place in places],
            invitation=_format_invitation(window.code, places),
            expires_in_s=PAIRING_WINDOW_S,
        )
        while (paired := window.poll(CALLER_PERIOD_S)) is None:
            context.check()
        yield PairingEvent('paired', **paired._asdict())


def _log_paired(window: PairingWindow) -> None:
    """Say who has paired at a window that is closed, if anybody has."""
    with contextlib.suppress(PairingError):
        paired = window.poll(0)
        assert paired is not None  # it is closed
        _log.warning(
            'paired with machine %s, %r, of user %s; degu unpair takes that back',
            paired.machine_id,
            paired.name,
            paired.user_id,
        )


def _enter_window(stack: contextlib.ExitStack, node: Node, intent: Intent) -> PairingWindow:
    """Open a window beside the node's port, or at any other where that one cannot be had."""
    listening = node.addresses[0]
    if listening.port < MAX_PORT:
        beside = listening._replace(port=listening.port + 1)
        try:
            return stack.enter_context(_build_window(node, beside, intent))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    return stack.enter_context(_build_window(node, listening._replace(port=0), intent))


def _build_window(node: Node, where: Place, intent: Intent) -> PairingWindow:
    return PairingWindow(node.trust, node.config.name, where.address, intent=intent)


def _format_invitation(code: PairingCode, places: list[Place]) -> str:
    return format_invitation(code, [place.address for place in places]) if places else ''


def find_windows(node: Node, timeout_s: float) -> list[list[str]]:
    """Return where each pairing window is that is seen; wait so long for the first."""
    sightings = node.neighbours.find_windows(timeout_s, SETTLE_S)
    return [[str(place) for place in find_places(each.addresses)] for each in sightings]


def pair_at(node: Node, code: str, address: str | None, intent: Intent) -> PairedWith:
    """Pair this node's user, or make this machine one of another user's own.

    Raises PairingError (its CodeError before anything is sent), ValueError for an address that is
    none, IdentityError, OSError.
    """
    parsed = parse_code(code)
    places = [parse_target(f'tcp:{address}')] if address is not None else _find_one_window(node)
    for place in places[:-1]:
        with contextlib.suppress(OSError):
            net.connect(place, CONNECT_S).close()
            break
    else:
        place = places[-1]
    if intent is Intent.PEER:
        return PairedWith(*pair(place, parsed, node.trust, node.config.name))
    joined = join(place, parsed, node.home.joining_directory, node.config.name)
    former = node.home.find_former(node.trust.identity.machine_id)
    node.stop(restart=True)
    return PairedWith(joined.user_id, joined.machine_id, node.config.name, str(former))


def _find_one_window(node: Node) -> list[Address]:
    sightings = node.neighbours.find_windows(NEARBY_S, SETTLE_S)
    if not sightings:
        raise PairingError(
            PairingFault.UNREACHABLE, f'no window is seen: {node.neighbours.explain_nothing()}'
        )
    if len(sightings) > 1:
        where = ', '.join(str(find_places(each.addresses)[0]) for each in sightings)
        raise PairingError(
            PairingFault.UNREACHABLE, f'{len(sightings)} windows are open: say which, of {where}'
        )
    return list(sightings[0].addresses)
