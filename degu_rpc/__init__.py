"""Calls, files and trust between devices, on top of `degu`.

The public names of all wings are here; each is imported when it is first used, so that a program
pays only for the wings that it has.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from degu_rpc.errors import (
        AmbiguousNameError,
        Code,
        CodecError,
        DeguRpcError,
        IdentityError,
        PairingError,
        RpcError,
        UnknownMachineError,
        UnknownPeerError,
        UnreachableError,
    )
    from degu_rpc.files.fetch import Fetched, Mirror, fetch
    from degu_rpc.files.inbox import Inbox
    from degu_rpc.files.offers import Decision, Offer
    from degu_rpc.files.progress import Progress
    from degu_rpc.files.send import Sent, send
    from degu_rpc.files.share import FileShare
    from degu_rpc.node.device import Node
    from degu_rpc.peers.caller import Authenticated, Peer
    from degu_rpc.peers.dial import Dialer, MachineClient
    from degu_rpc.peers.discovery.static import StaticAddresses
    from degu_rpc.peers.home import find_home, open_home
    from degu_rpc.peers.identity import Identity
    from degu_rpc.peers.pairing import Intent, PairingWindow, join, pair
    from degu_rpc.peers.trust import TrustStore
    from degu_rpc.router import Router
    from degu_rpc.rpc.aio import AsyncRpcClient
    from degu_rpc.rpc.client import RpcClient, repeatable
    from degu_rpc.rpc.codec import JSON, MSGPACK
    from degu_rpc.rpc.connect import RpcApp
    from degu_rpc.rpc.context import Context, current_context
    from degu_rpc.rpc.differences import check_stub
    from degu_rpc.rpc.documents import build_openapi, build_openrpc
    from degu_rpc.rpc.health import build_health
    from degu_rpc.rpc.interception import ClientCall
    from degu_rpc.rpc.jsonrpc import JsonRpcApp
    from degu_rpc.rpc.meta import build_meta
    from degu_rpc.rpc.metrics import Metrics, MetricsApp
    from degu_rpc.rpc.result_stream import ResultStream
    from degu_rpc.rpc.schema import ServiceDescription, describe_service
    from degu_rpc.rpc.service import Service
    from degu_rpc.rpc.stubs import write_stubs
    from degu_rpc.rpc.target import connect
    from degu_rpc.unix import listen_unix

__all__ = [
    'JSON',
    'MSGPACK',
    'AmbiguousNameError',
    'AsyncRpcClient',
    'Authenticated',
    'ClientCall',
    'Code',
    'CodecError',
    'Context',
    'Decision',
    'DeguRpcError',
    'Dialer',
    'Fetched',
    'FileShare',
    'Identity',
    'IdentityError',
    'Inbox',
    'Intent',
    'JsonRpcApp',
    'MachineClient',
    'Metrics',
    'MetricsApp',
    'Mirror',
    'Node',
    'Offer',
    'PairingError',
    'PairingWindow',
    'Peer',
    'Progress',
    'ResultStream',
    'Router',
    'RpcApp',
    'RpcClient',
    'RpcError',
    'Sent',
    'Service',
    'ServiceDescription',
    'StaticAddresses',
    'TrustStore',
    'UnknownMachineError',
    'UnknownPeerError',
    'UnreachableError',
    'build_health',
    'build_meta',
    'build_openapi',
    'build_openrpc',
    'check_stub',
    'connect',
    'current_context',
    'describe_service',
    'fetch',
    'find_home',
    'join',
    'listen_unix',
    'open_home',
    'pair',
    'repeatable',
    'send',
    'write_stubs',
]

_MODULES = {
    'AmbiguousNameError': 'degu_rpc.errors',
    'AsyncRpcClient': 'degu_rpc.rpc.aio',
    'Authenticated': 'degu_rpc.peers.caller',
    'ClientCall': 'degu_rpc.rpc.interception',
    'Code': 'degu_rpc.errors',
    'CodecError': 'degu_rpc.errors',
    'Context': 'degu_rpc.rpc.context',
    'Decision': 'degu_rpc.files.offers',
    'DeguRpcError': 'degu_rpc.errors',
    'Dialer': 'degu_rpc.peers.dial',
    'Fetched': 'degu_rpc.files.fetch',
    'FileShare': 'degu_rpc.files.share',
    'Identity': 'degu_rpc.peers.identity',
    'IdentityError': 'degu_rpc.errors',
    'Inbox': 'degu_rpc.files.inbox',
    'Intent': 'degu_rpc.peers.pairing',
    'JSON': 'degu_rpc.rpc.codec',
    'JsonRpcApp': 'degu_rpc.rpc.jsonrpc',
    'MSGPACK': 'degu_rpc.rpc.codec',
    'Mirror': 'degu_rpc.files.fetch',
    'MachineClient': 'degu_rpc.peers.dial',
    'Metrics': 'degu_rpc.rpc.metrics',
    'MetricsApp': 'degu_rpc.rpc.metrics',
    'Node': 'degu_rpc.node.device',
    'Offer': 'degu_rpc.files.offers',
    'PairingError': 'degu_rpc.errors',
    'PairingWindow': 'degu_rpc.peers.pairing',
    'Peer': 'degu_rpc.peers.caller',
    'Progress': 'degu_rpc.files.progress',
    'ResultStream': 'degu_rpc.rpc.result_stream',
    'Router': 'degu_rpc.router',
    'RpcApp': 'degu_rpc.rpc.connect',
    'RpcClient': 'degu_rpc.rpc.client',
    'RpcError': 'degu_rpc.errors',
    'Sent': 'degu_rpc.files.send',
    'Service': 'degu_rpc.rpc.service',
    'ServiceDescription': 'degu_rpc.rpc.schema',
    'StaticAddresses': 'degu_rpc.peers.discovery.static',
    'TrustStore': 'degu_rpc.peers.trust',
    'UnknownMachineError': 'degu_rpc.errors',
    'UnknownPeerError': 'degu_rpc.errors',
    'UnreachableError': 'degu_rpc.errors',
    'build_health': 'degu_rpc.rpc.health',
    'build_meta': 'degu_rpc.rpc.meta',
    'build_openapi': 'degu_rpc.rpc.documents',
    'build_openrpc': 'degu_rpc.rpc.documents',
    'check_stub': 'degu_rpc.rpc.differences',
    'connect': 'degu_rpc.rpc.target',
    'current_context': 'degu_rpc.rpc.context',
    'describe_service': 'degu_rpc.rpc.schema',
    'fetch': 'degu_rpc.files.fetch',
    'find_home': 'degu_rpc.peers.home',
    'join': 'degu_rpc.peers.pairing',
    'listen_unix': 'degu_rpc.unix',
    'open_home': 'degu_rpc.peers.home',
    'pair': 'degu_rpc.peers.pairing',
    'repeatable': 'degu_rpc.rpc.client',
    'send': 'degu_rpc.files.send',
    'write_stubs': 'degu_rpc.rpc.stubs',
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
