"""The methods of a service as attributes, for a caller that has no class for them.

A proxy makes named arguments of what is written like a call, and hands them to a function; which
one, and so how the call is made, is for the client to say.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from degu_rpc.rpc.service import SERVICE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable


def check_service(name: str) -> str:
    """Return the name of a service. Raises ValueError for one that none has."""
    if not re.fullmatch(SERVICE_NAME, name):
        raise ValueError(f'no service can be named {name!r}')
    return name


class ServiceProxy:
    """The methods of one service as attributes: `client['files.v1.Files'].stat(path='/a')`."""

    __slots__ = ('_call', '_service')

    def __init__(self, call: Callable[[str, str, dict[str, Any]], Any], service: str) -> None:
        """Raises ValueError for a name that no service has."""
        self._call = call
        self._service = check_service(service)

    def __repr__(self) -> str:
        return f'ServiceProxy({self._service!r})'

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """Return a function that calls `method` with named arguments: see RpcClient.call()."""
        if method.startswith('_'):
            raise AttributeError(f'no method can be named {method!r}')

        def call(*values: Any, **arguments: Any) -> Any:
            if values:
                raise TypeError(
                    f'{method}(): arguments are named here; bind() gives positional ones'
                )
            return self._call(self._service, method, arguments)

        return call
