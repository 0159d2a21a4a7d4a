"""Calls, files and trust between devices, on top of `degu`.

The public names of all wings are here; each is imported when it is first used, so that a program
pays only for the wings that it has.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from degu_rpc.errors import Code, PairingError, RpcError
    from degu_rpc.files.fetch import Fetched, Progress, fetch
    from degu_rpc.files.share import FileShare
    from degu_rpc.node.device import Node
    from degu_rpc.peers.caller import Authenticated, Peer
    from degu_rpc.peers.dial import Dialer, MachineClient
    from degu_rpc.peers.identity import Identity
    from degu_rpc.peers.pairing import Intent, PairingWindow, join, pair
    from degu_rpc.peers.trust import TrustStore
    from degu_rpc.router import Router
    from degu_rpc.rpc.aio import AsyncRpcClient
    from degu_rpc.rpc.client import RpcClient
    from degu_rpc.rpc.connect import RpcApp
    from degu_rpc.rpc.context import Context, current_context
    from degu_rpc.rpc.service import Service
    from degu_rpc.rpc.target import connect

__all__ = [
    'AsyncRpcClient',
    'Authenticated',
    'Code',
    'Context',
    'Dialer',
    'Fetched',
    'FileShare',
    'Identity',
    'Intent',
    'MachineClient',
    'Node',
    'PairingError',
    'PairingWindow',
    'Peer',
    'Progress',
    'Router',
    'RpcApp',
    'RpcClient',
    'RpcError',
    'Service',
    'TrustStore',
    'connect',
    'current_context',
    'fetch',
    'join',
    'pair',
]

_MODULES = {
    'AsyncRpcClient': 'degu_rpc.rpc.aio',
    'Authenticated': 'degu_rpc.peers.caller',
    'Code': 'degu_rpc.errors',
    'Context': 'degu_rpc.rpc.context',
    'Dialer': 'degu_rpc.peers.dial',
    'Fetched': 'degu_rpc.files.fetch',
    'FileShare': 'degu_rpc.files.share',
    'Identity': 'degu_rpc.peers.identity',
    'Intent': 'degu_rpc.peers.pairing',
    'MachineClient': 'degu_rpc.peers.dial',
    'Node': 'degu_rpc.node.device',
    'PairingError': 'degu_rpc.errors',
    'PairingWindow': 'degu_rpc.peers.pairing',
    'Peer': 'degu_rpc.peers.caller',
    'Progress': 'degu_rpc.files.fetch',
    'Router': 'degu_rpc.router',
    'RpcApp': 'degu_rpc.rpc.connect',
    'RpcClient': 'degu_rpc.rpc.client',
    'RpcError': 'degu_rpc.errors',
    'Service': 'degu_rpc.rpc.service',
    'TrustStore': 'degu_rpc.peers.trust',
    'connect': 'degu_rpc.rpc.target',
    'current_context': 'degu_rpc.rpc.context',
    'fetch': 'degu_rpc.files.fetch',
    'join': 'degu_rpc.peers.pairing',
    'pair': 'degu_rpc.peers.pairing',
}


# A type checker must not see it: with it, every name would be there.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        value = getattr(importlib.import_module(module), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
