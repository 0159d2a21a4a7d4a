"""Where machines are: said by a person, by mDNS or by DNS. Hints, never trust.

What needs zeroconf (`Discovery` and what it makes) is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from degu_rpc.errors import DiscoveryClosedError
from degu_rpc.peers.discovery.dns_sd import DnsSd
from degu_rpc.peers.discovery.sightings import Sighting
from degu_rpc.peers.discovery.static import MachineUrl, StaticAddresses, format_url, parse_url

if TYPE_CHECKING:
    from degu_rpc.peers.discovery.announcement import Announcement
    from degu_rpc.peers.discovery.browser import Browser
    from degu_rpc.peers.discovery.mdns import Discovery

__all__ = [
    'Announcement',
    'Browser',
    'Discovery',
    'DiscoveryClosedError',
    'DnsSd',
    'MachineUrl',
    'Sighting',
    'StaticAddresses',
    'format_url',
    'parse_url',
]

_MODULES = {
    'Announcement': 'degu_rpc.peers.discovery.announcement',
    'Browser': 'degu_rpc.peers.discovery.browser',
    'Discovery': 'degu_rpc.peers.discovery.mdns',
}

# A type checker must not see it: with it, every name would be there.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return __all__
