"""`meta.v1.Meta`: a service that lists and describes the services it is served with.

    services = [files, clock]
    app = RpcApp([*services, build_meta(services)])

It shows a caller what that caller may call and nothing else: a service of which they may call
nothing is not there for them. Whoever may call anything may call it. It does not keep names secret,
and nothing does: who calls what is not for them is told so. Source:
docs/decisions/0015-names-are-no-secret.md.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from degu_rpc.errors import Code, RpcError
from degu_rpc.peers import OWNER
from degu_rpc.rpc.context import Context
from degu_rpc.rpc.limits import MAX_DESCRIPTIONS
from degu_rpc.rpc.schema import ServiceDescription, describe_service
from degu_rpc.rpc.service import Service, index_services, join_roles

if TYPE_CHECKING:
    from collections.abc import Iterable

META = 'meta.v1.Meta'


def build_meta(services: Iterable[Service]) -> Service:
    """Build the service that describes `services`, and itself.

    Raises ValueError for two services with one name, TypeError for a service on its own.
    """
    meta = Service(META)
    described = index_services([*index_services(services).values(), meta])
    roles = join_roles(described.values()) | {OWNER}

    @functools.lru_cache(MAX_DESCRIPTIONS)
    def describe_to(roles: frozenset[str], service: Service) -> ServiceDescription:
        return describe_service(service, roles)

    @meta.method(allow=roles, safe=True)
    def list_services(ctx: Context) -> list[str]:
        """List the services of which you may call something, by name."""
        return [
            name
            for name, service in sorted(described.items())
            if not join_roles([service]).isdisjoint(ctx.peer.roles)
        ]

    @meta.method(allow=roles, safe=True)
    def describe(ctx: Context, service: str) -> ServiceDescription:
        """Describe what you may call of a service: a JSON document that resolves its references.

        The error is `not_found` for a service that is not there, or not for you.
        """
        found = described.get(service)
        description = None if found is None else describe_to(ctx.peer.roles & roles, found)
        if description is None or not description.methods:
            raise RpcError(Code.NOT_FOUND, f'no service {service!r} is here for you')
        return description

    return meta
