"""`health.v1.Health`: a service that says whether others can do their work.

    health = build_health([files], {'files.v1.Files': disk_is_there}, allow='monitor')
    app = RpcApp([files, health])

A service that answers is `serving`, unless its check says otherwise: a function without parameters
that is called whenever somebody asks, and returns whether all is well. One that raises says no, and
the log has why. The whole is `serving` if every service is. Whoever may ask may ask about each of
them. Source: docs/decisions/0015-names-are-no-secret.md.
"""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from degu_rpc.errors import Code, RpcError
from degu_rpc.rpc.service import Service, index_services

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

HEALTH = 'health.v1.Health'

_log = logging.getLogger('degu_rpc.rpc')


class Status(enum.Enum):
    """Whether a service can do its work."""

    SERVING = 'serving'
    NOT_SERVING = 'not_serving'


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found; `failing` are the services that are not serving, by name."""

    status: Status
    failing: list[str]


def build_health(
    services: Iterable[Service],
    checks: Mapping[str, Callable[[], bool]],
    *,
    allow: str | Collection[str],
) -> Service:
    """Build the service that says how `services` are, to callers with one of the roles `allow`.

    `checks` are functions by the name of a service; a service may be without one.

    Raises ValueError for two services with one name or a check of none of them, TypeError for a
    service on its own, and TypeError or ValueError for roles that are none.
    """
    names = sorted(index_services(services))
    for name in checks:
        if name not in names:
            raise ValueError(f'a check is for {name!r}, which is none of the services')
    health = Service(HEALTH)

    @health.method(allow=allow, safe=True)
    def check(service: str = '') -> Report:
        """Say whether a service can do its work; without a name, whether all of them can.

        The error is `not_found` for a service that is not here.
        """
        if service and service not in names:
            raise RpcError(Code.NOT_FOUND, f'no service {service!r} is here')
        asked = [service] if service else names
        failing = [name for name in asked if not _is_well(name, checks.get(name))]
        return Report(Status.NOT_SERVING if failing else Status.SERVING, failing)

    return health


def _is_well(name: str, check: Callable[[], bool] | None) -> bool:
    try:
        return check is None or check()
    except Exception:  # noqa: BLE001  # whatever it is, it is logged, and the answer is no
        _log.exception('the check of %s failed', name)
        return False
