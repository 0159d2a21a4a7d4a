"""What the HTTP apps of the RPC wing share: who calls, and how a request is refused.

May be called by many threads; nothing is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from degu_rpc.errors import Code, CodecError, RpcError, UnknownPeerError
from degu_rpc.peers import find_caller
from degu_rpc.rpc.protocol import format_error
from degu_rpc.rpc.service import build_internal_error

if TYPE_CHECKING:
    from degu.rgi import Response
    from degu_rpc.peers import Peer


def refuse(request: dict[str, Any], status: int, reason: str, why: str, **headers: str) -> Response:
    """Answer what is no call. `why` holds nothing of the request."""
    body = None if request['method'] == 'HEAD' else f'{why}\n'.encode()
    headers['content-type'] = 'text/plain; charset=utf-8'
    return status, reason, {**headers, **close_unread(request)}, body


def settle_error(error: RpcError) -> tuple[Code, bytes]:
    """Return the code and the JSON of an error; `internal` where it cannot travel as it is."""
    try:
        return error.code, format_error(error)
    except CodecError:
        error = build_internal_error(f'sending an error that is {error.code.value}')
        return error.code, format_error(error)


def identify_caller(request: dict[str, Any]) -> Peer:
    """Return who calls. Raises RpcError (`unauthenticated`) where nobody said who it is."""
    try:
        return find_caller(request)
    except UnknownPeerError as error:
        raise RpcError(Code.UNAUTHENTICATED, str(error)) from None


def close_unread(request: dict[str, Any]) -> dict[str, str]:
    """Return the header that tells the client not to send its next call after an unread body."""
    body = request['body']
    return {} if body is None or (body.closed and not body.error) else {'connection': 'close'}
