"""What a node says and does for local programs: the service `node.v1.Node`, as callers see it.

    with connect(f'unix:{Home().socket_path}') as client:
        node = client.bind(NodeApi, NODE)
        print(node.status().name)

It is on the node's unix socket only, and for its own user. The command `degu` is one such program.
Fields are only ever added. Times are seconds, addresses are text as they stand in `degu://` URLs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

NODE = 'node.v1.Node'

SERVICES = '/rpc'
"""Where the services are."""
FILES = '/files'
"""Where the shares are."""
INBOX = '/inbox'
"""Where files come in that others send."""
CERTIFICATES = '/certificates'
"""Where machines of my own user get new certificates."""
NAME_PATTERN = r'[A-Za-z0-9][A-Za-z0-9._-]{0,63}'
"""What can be the name of a share, and of what a program serves: a part of a URI as it is."""

IntentName = Literal['peer', 'join']
"""Two users pair as `peer`; with `join` a machine becomes one more of a user's own."""


EXAMINE = 'run degu doctor'
"""The remedy of a problem whose cause is to be looked for."""
SET_MACHINES = (
    'say where it is, by its URL (there: degu status --json, urls): degu config set machines URL'
)
"""The remedy where a machine is not seen because nobody looks for it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not work: what and why, and what to do."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """A machine of a user we trust."""

    machine_id: str
    name: str
    is_nearby: bool
    addresses: list[str]
    """Where it was seen, as `degu://` URLs; the best first."""
    is_denied: bool = False


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A user we trust."""

    user_id: str
    name: str
    roles: list[str]
    is_me: bool
    machines: list[MachineStatus]


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """A program that serves behind this node: others call it as `<machine>/<name>`."""

    name: str
    socket: str


@dataclass(frozen=True, slots=True)
class ShareStatus:
    """A directory that others may read."""

    name: str
    path: str
    allow: list[str]


@dataclass(frozen=True, slots=True)
class InboxStatus:
    """Where files go that others send."""

    path: str
    accept: list[str]
    """The roles whose files are taken at once."""
    ask: list[str]
    """The roles whose files wait for an answer."""
    waiting: int = 0
    """Offers that wait for one."""
    arriving: int = 0
    """Offers that were accepted and are not all here."""


@dataclass(frozen=True, slots=True)
class OfferStatus:
    """What somebody sends to this machine, and how far it is."""

    offer_id: str
    sender: str
    """What we call them."""
    user_id: str | None
    """Whose machine sends it; null for a program of this machine."""
    machine_id: str | None
    names: list[str]
    """The first of what is at the top, as it can be shown: bytes that are no text are escaped."""
    more_names: int
    """How many more there are at the top."""
    files: int
    size: int
    """In bytes."""
    state: Literal['waiting', 'accepted', 'done', 'refused']
    bytes_received: int
    offered_at: datetime
    changed_at: datetime
    """When its state last changed, or something came."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a node is."""

    version: str
    pid: int
    started_at: datetime
    home: str
    name: str
    user_id: str
    machine_id: str
    urls: list[str]
    """Where other machines reach it."""
    peers: list[PeerStatus]
    services: list[ServiceStatus]
    shares: list[ShareStatus]
    problems: list[Problem]
    inbox: InboxStatus | None = None
    """Null where nobody may send anything."""


@dataclass(frozen=True, slots=True)
class Nearby:
    """A machine that was seen, whoever's it is."""

    machine_id: str
    name: str | None
    """What we call it; None for one of nobody we trust."""
    addresses: list[str]


@dataclass(frozen=True, slots=True)
class NearbyResult:
    """What was seen, and why nothing was, if so."""

    machines: list[Nearby]
    why_nothing: str | None


@dataclass(frozen=True, slots=True)
class PairingEvent:
    """What happens at a pairing window: it opens, with a code, and then a machine has paired."""

    kind: Literal['opened', 'paired']
    code: str = ''
    words: str = ''
    """The other spelling of the code."""
    addresses: list[str] = field(default_factory=list)
    """Where the window is, as `192.168.1.7:8486`."""
    invitation: str = ''
    """The code and the addresses in one text, for a QR code."""
    expires_in_s: float = 0.0
    user_id: str = ''
    machine_id: str = ''
    name: str = ''


@dataclass(frozen=True, slots=True)
class Window:
    """A pairing window of another machine: where it is. Whose it is, nobody can know yet."""

    addresses: list[str]


@dataclass(frozen=True, slots=True)
class PairedWith:
    """With whom this machine has paired; `former_home` is where the identity is that it gave up."""

    user_id: str
    machine_id: str
    name: str
    former_home: str | None = None


@dataclass(frozen=True, slots=True)
class Unpaired:
    """Who is not trusted any more."""

    user_id: str
    name: str
    machine_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Located:
    """Where a machine is: its `degu://` URLs, none if it was not seen; `path` is behind it."""

    machine_id: str
    name: str
    urls: list[str]
    path: str = ''
    discovery: bool = True
    """Whether machines are looked for; if not, only settings say where they are."""


class NodeApi:
    """The service; for `RpcClient.bind`. Errors are RpcErrors, with a `remedy` in their details."""

    def status(self) -> Status:
        """Say how the node is."""
        raise NotImplementedError

    def watch(self) -> Iterator[Status]:
        """Say how it is, and again with every change."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop the node, once this call is answered."""
        raise NotImplementedError

    def nearby(self, timeout_s: float) -> NearbyResult:
        """Say which machines are seen; wait so long for the first."""
        raise NotImplementedError

    def locate(self, target: str, timeout_s: float) -> Located:
        """Find a machine by its name, its id or its `degu://` URL, and what is behind it.

        `target` is like `studio` or `studio/clock`. Wait so long to see it.
        """
        raise NotImplementedError

    def open_pairing(self, intent: IntentName) -> Iterator[PairingEvent]:
        """Open a pairing window, which ends with this stream."""
        raise NotImplementedError

    def windows(self, timeout_s: float) -> list[Window]:
        """Say which pairing windows are seen; wait so long for the first."""
        raise NotImplementedError

    def pair(self, code: str, address: str | None, intent: IntentName) -> PairedWith:
        """Pair with the machine whose window has this code.

        `address` is where the window is, as `192.168.1.7:8486`; without it, the one window that is
        seen. With `join` this machine gives up its identity, which is kept, and starts anew.
        """
        raise NotImplementedError

    def unpair(self, peer: str) -> Unpaired:
        """Trust a user no more, or a machine: by name or id."""
        raise NotImplementedError

    def serve(self, name: str, socket_path: str) -> Iterator[ServiceStatus]:
        """Serve what is at a unix socket behind this node, as `/<name>`, while the stream lasts."""
        raise NotImplementedError

    def inbox(self) -> Iterator[OfferStatus]:
        """List what others send to this machine; done and refused offers for a while, too."""
        raise NotImplementedError

    def accept_offer(self, offer_id: str) -> OfferStatus:
        """Take what is offered, even if it was refused before."""
        raise NotImplementedError

    def reject_offer(self, offer_id: str) -> OfferStatus:
        """Refuse what is offered; what of it is here already stays."""
        raise NotImplementedError
