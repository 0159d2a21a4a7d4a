"""The inbox of a node: where files go that others send, and whose are taken.

1. Who has a role in `accept` may put files there; who has one in `ask` may offer some, which wait
   for `degu inbox accept`; all others are refused, and so is what they began before.
2. The directory is opened, and made if it is missing, when the first of those comes who may send,
   and when something from an earlier run is in it. Its parent must be there: a disk that is not
   mounted is not to be filled up under its name.
3. A directory that cannot be opened is a problem of the node, and not its end. It is tried again
   with each request.

Threads: requests come in any; `_lock` guards `_inbox` and `_reason`.
"""

from __future__ import annotations

import logging
import os
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from degu.durable import make_directory
from degu_rpc.errors import BlockedError, UnknownOfferError
from degu_rpc.files.inbox import Inbox
from degu_rpc.files.offers import Decision, Offer, State
from degu_rpc.files.paths import PRIVATE_NAME
from degu_rpc.node.api import InboxStatus, OfferStatus
from degu_rpc.node.limits import MAX_SHOWN_NAMES
from degu_rpc.text import escape_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from degu.rgi import Response
    from degu_rpc.node.config import InboxSettings

_log = logging.getLogger('degu_rpc.node')


def find_fault(directory: Path) -> str | None:
    """Say why nothing can come into a directory, which need not be there yet; None if it can."""
    place = directory if os.path.lexists(directory) else directory.parent
    if not place.exists():
        return f'{place} is not there'
    if not place.is_dir():
        return f'{place} is no directory'
    if not os.access(place, os.W_OK | os.X_OK):
        return f'nothing can be written to {place}'
    return None


class NodeInbox:
    """The inbox of a node, as an RGI app. Close it."""

    # Set once: settings, _accept, _allowed, _directory, _lock. Guarded by _lock: the rest.

    def __init__(self, settings: InboxSettings) -> None:
        """Prepare it; nothing is touched before somebody sends."""
        self.settings = settings
        self._accept = frozenset(settings.accept)
        self._allowed = self._accept.union(settings.ask)
        self._directory = settings.directory
        self._lock = threading.Lock()
        self._inbox: Inbox | None = None
        self._reason: str | None = None

    def close(self) -> None:
        """Close the directory; requests should have ended."""
        with self._lock:
            if self._inbox is not None:
                self._inbox.close()

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Answer one request; 403 for a caller who may not send, 500 without the directory."""
        peer = request['_peer']
        if peer is None or self._allowed.isdisjoint(peer.roles):
            return _refuse(request, 403, 'Forbidden', 'you may not send anything here')
        inbox = self._open()
        if inbox is None:
            why = 'the inbox cannot be opened; whoever runs it sees why: degu status'
            return _refuse(request, 500, 'Internal Server Error', why)
        return inbox(connection, request)

    # --- for whoever has the node ----------------------------------------------------------------

    def offers(self) -> list[OfferStatus]:
        """Return what others send, those that came first before the others."""
        inbox = self._find()
        return [] if inbox is None else [_show(offer) for offer in inbox.offers()]

    def accept(self, offer_id: str) -> OfferStatus:
        """Take what is offered. Raises UnknownOfferError, OSError."""
        return _show(self._require(offer_id).accept(offer_id))

    def reject(self, offer_id: str) -> OfferStatus:
        """Refuse what is offered. Raises UnknownOfferError, OSError."""
        return _show(self._require(offer_id).reject(offer_id))

    def find_status(self) -> InboxStatus | None:
        """Return how it is; None where nobody may send."""
        if not self._allowed:
            return None
        states = [offer.state for offer in self.offers()]
        return InboxStatus(
            str(self._directory),
            sorted(self.settings.accept),
            sorted(self.settings.ask),
            states.count(State.WAITING.value),
            states.count(State.ACCEPTED.value),
        )

    def find_problem(self) -> str | None:
        """Say why nothing can come in, if so."""
        if not self._allowed:
            return None
        with self._lock:
            reason = self._reason
        reason = reason or find_fault(self._directory)
        return None if reason is None else f'nothing can come into the inbox: {reason}'

    # --- the directory ---------------------------------------------------------------------------

    def _open(self) -> Inbox | None:
        """Open the directory, or make it; None where that cannot be."""
        with self._lock:
            if self._inbox is None:
                try:
                    make_directory(self._directory, 0o700)
                    self._inbox = Inbox(self._directory, self._decide, received=_log_received)
                    self._reason = None
                except (OSError, BlockedError) as error:
                    reason = str(error)
                    if reason != self._reason:
                        _log.warning('the inbox cannot be opened: %s', reason)
                    self._reason = reason
            return self._inbox

    def _find(self) -> Inbox | None:
        """Return the inbox if anything was ever in it, open."""
        with self._lock:
            if self._inbox is not None:
                return self._inbox
        private = self._directory / os.fsdecode(PRIVATE_NAME) / 'inbox'
        return self._open() if self._allowed and private.is_dir() else None

    def _require(self, offer_id: str) -> Inbox:
        inbox = self._find()
        if inbox is None:
            raise UnknownOfferError(offer_id)
        return inbox

    def _decide(self, offer: Offer) -> Decision:
        if self._accept.isdisjoint(offer.sender.roles):
            _log.info('%r wants to send %d files', offer.sender.name, offer.files)
            return Decision.ASK
        return Decision.ACCEPT


def _log_received(offer: Offer, paths: tuple[Path, ...]) -> None:
    _log.info('%r has sent %s', offer.sender.name, ', '.join(map(repr, map(str, paths))))


def _show(offer: Offer) -> OfferStatus:
    sender, shown = offer.sender, offer.names[:MAX_SHOWN_NAMES]
    return OfferStatus(
        offer.offer_id,
        sender.name,
        sender.user_id,
        sender.machine_id,
        [escape_bytes(name) for name in shown],
        len(offer.names) - len(shown),
        offer.files,
        offer.size,
        offer.state.value,
        offer.bytes_received,
        datetime.fromtimestamp(offer.offered_at, UTC),
        datetime.fromtimestamp(offer.changed_at, UTC),
    )


def _refuse(request: dict[str, Any], status: int, reason: str, why: str) -> Response:
    body = None if request['method'] == 'HEAD' else f'{why}\n'.encode()
    return status, reason, {'content-type': 'text/plain; charset=utf-8'}, body
