"""How a node is, put together from its parts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from degu import __version__
from degu_rpc.node.api import MachineStatus, PeerStatus, Problem, ShareStatus, Status
from degu_rpc.node.places import find_places, find_reachable
from degu_rpc.peers import OWNER

if TYPE_CHECKING:
    from degu_rpc.node.device import Node
    from degu_rpc.peers import TrustedUser


def build_status(node: Node) -> Status:
    """Return how a node is now. Raises OSError, and IdentityError for trust that is not private."""
    identity = node.trust.identity
    return Status(
        version=__version__,
        pid=os.getpid(),
        started_at=node.started_at,
        home=str(node.home.directory),
        name=node.config.name,
        user_id=identity.user_id,
        machine_id=identity.machine_id,
        urls=[
            place.format_url(identity.machine_id)
            for listening in node.addresses
            for place in find_reachable(listening)
        ],
        peers=_list_peers(node),
        services=node.behind.list_all(),
        shares=[
            ShareStatus(name, str(share.directory), sorted(share.allow))
            for name, share in sorted(node.config.shares.items())
        ],
        problems=[Problem(what, remedy) for what, remedy in node.find_problems()],
        inbox=node.inbox.find_status(),
    )


def _list_peers(node: Node) -> list[PeerStatus]:
    seen = {each.machine_id: find_places(each.addresses) for each in node.neighbours.sightings()}
    own_id = node.trust.identity.machine_id

    def build(user: TrustedUser) -> PeerStatus:
        return PeerStatus(
            user.user_id,
            user.name,
            sorted(user.roles),
            OWNER in user.roles,
            [
                MachineStatus(
                    machine_id,
                    name,
                    machine_id in seen,
                    [place.format_url(machine_id) for place in seen.get(machine_id, ())],
                    machine_id in user.denied,
                )
                for machine_id, name in sorted(user.machines.items(), key=lambda pair: pair[1])
                if machine_id != own_id
            ],
        )

    users = node.trust.users().values()
    return [
        build(user) for user in sorted(users, key=lambda user: (OWNER not in user.roles, user.name))
    ]
