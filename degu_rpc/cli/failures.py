"""What a person and a script are told when a command fails: words, the next step, and a status.

`explain` is the one place that knows what each error means for somebody at a terminal, and
`explain_node` what our own node adds to one. Pure.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import msgspec

from degu.errors import DeguError, PeerRejectedError
from degu_rpc.cli.documents import Failed
from degu_rpc.cli.exits import Exit
from degu_rpc.errors import (
    AmbiguousNameError,
    Code,
    CodeError,
    ConfigError,
    DeguRpcError,
    IntegrityError,
    OfferRefusedError,
    PairingError,
    PairingFault,
    RpcError,
    ShareRefusedError,
    TransferCanceledError,
    UnknownMachineError,
    UnknownOfferError,
    UnreachableError,
)


class Failure(Exception):  # noqa: N818  # it is how a command ends, not what went wrong
    """A command that failed: what to say, what to do about it, and the exit status."""

    def __init__(self, exit_status: Exit, message: str, remedy: str = '', kind: str = '') -> None:
        super().__init__(message)
        self.exit_status = exit_status
        self.message = message
        self.remedy = remedy
        self.kind = kind or exit_status.name.lower()

    def build_document(self) -> dict[str, Any]:
        """Return what `--json` writes to stderr."""
        said = Failed(self.exit_status.value, self.kind, self.message, self.remedy)
        return {'v': 1, 'type': 'error', **msgspec.to_builtins(said)}


class _Meaning(NamedTuple):
    exit_status: Exit
    remedy: str


_PAIR = 'pair two machines: degu pair'
_OF_CODES = {
    Code.UNAVAILABLE: _Meaning(Exit.UNREACHABLE, 'see that it runs: degu status'),
    Code.DEADLINE_EXCEEDED: _Meaning(Exit.UNREACHABLE, 'give it more time: --timeout SECONDS'),
    Code.UNAUTHENTICATED: _Meaning(Exit.REFUSED, 'pair the two machines: degu pair'),
    Code.PERMISSION_DENIED: _Meaning(
        Exit.REFUSED, 'whoever runs it says which roles may call it; see them with: degu peers'
    ),
    Code.UNIMPLEMENTED: _Meaning(Exit.NOT_FOUND, 'see what there is: degu methods TARGET'),
}

_OF_ERRORS: dict[type[Exception], _Meaning] = {
    AmbiguousNameError: _Meaning(Exit.USAGE, 'see the ids: degu peers'),
    CodeError: _Meaning(Exit.USAGE, ''),
    ConfigError: _Meaning(Exit.USAGE, ''),
    UnknownMachineError: _Meaning(Exit.NOT_FOUND, 'see whom this machine knows: degu peers'),
    UnknownOfferError: _Meaning(Exit.NOT_FOUND, 'see what there is: degu inbox'),
    UnreachableError: _Meaning(Exit.UNREACHABLE, 'see what is near: degu peers --nearby'),
    IntegrityError: _Meaning(Exit.INTEGRITY, 'run the same command again'),
    TransferCanceledError: _Meaning(Exit.INTERRUPTED, ''),
    PeerRejectedError: _OF_CODES[Code.UNAUTHENTICATED],
    TimeoutError: _OF_CODES[Code.DEADLINE_EXCEEDED],
    ConnectionError: _OF_CODES[Code.UNAVAILABLE],
}
"""The first one that fits counts; what has a remedy of its own says that."""
_OF_OFFERS = {
    200: Exit.REFUSED,
    403: Exit.REFUSED,
    404: Exit.NOT_FOUND,
    429: Exit.UNREACHABLE,
    503: Exit.UNREACHABLE,
}
"""What an inbox that takes nothing says, by its status in HTTP."""
_OF_KINDS = {known.__name__: meaning for known, meaning in _OF_ERRORS.items()}
"""The same of errors that come from the node, by their classes; see degu_rpc.node.control."""


def explain(error: Exception) -> Failure | None:
    """Return what an error means, None for one that nobody foresaw."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, RpcError):
        return _explain_call(error)
    kind = type(error).__name__
    if isinstance(error, UnreachableError):
        return _explain_unreachable(error)
    if isinstance(error, PairingError) and not isinstance(error, CodeError):
        return Failure(_find_pairing_exit(error.fault.value), str(error), kind=kind)
    if isinstance(error, ShareRefusedError):
        exit_status = {403: Exit.REFUSED, 404: Exit.NOT_FOUND}.get(error.status, Exit.FAILED)
        return Failure(exit_status, str(error), kind=kind)
    if isinstance(error, OfferRefusedError):
        return Failure(_OF_OFFERS.get(error.status, Exit.FAILED), str(error), kind=kind)
    if isinstance(error, DeguRpcError | DeguError | OSError):
        exit_status, remedy = _find_meaning(error)
        remedy = getattr(error, 'remedy', remedy)
        if isinstance(error, UnknownMachineError) and not error.known:
            remedy = _PAIR
        return Failure(exit_status, _leave_out(_spell(error), remedy), remedy, kind)
    return None


def _spell(error: Exception) -> str:
    """Return what an error says; of one of the system its words, and not its number."""
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes) and error.strerror:
        return f'{os.fsdecode(error.filename)}: {error.strerror}'
    return str(error)


def _find_meaning(error: Exception) -> _Meaning:
    return next(
        (meaning for known, meaning in _OF_ERRORS.items() if isinstance(error, known)),
        _Meaning(Exit.FAILED, ''),
    )


def _leave_out(message: str, remedy: str) -> str:
    """Return what an error says without the remedy, which is said on a line of its own."""
    return message.removesuffix(f'; {remedy}') if remedy else message


def explain_node(error: RpcError) -> Failure:
    """Return what an error means that this home's own node answered, which says more of it.

    Of anybody else its details are only somebody's word: see `explain`.
    """
    detail = error.details[0] if error.details else {}
    kind = str(detail.get('kind', ''))
    if not kind:
        failure = _explain_call(error)
        if failure.exit_status is not Exit.REMOTE:
            return failure
        # What the node refuses is not a remote method's word.
        return Failure(Exit.FAILED, error.message, kind=failure.kind)
    if kind == 'PairingError':
        return Failure(_find_pairing_exit(str(detail.get('fault'))), error.message, kind=kind)
    meaning = _OF_KINDS.get(kind, _Meaning(Exit.FAILED, ''))
    remedy = str(detail.get('remedy', meaning.remedy))
    if detail.get('known') == []:  # of an UnknownMachineError
        remedy = _PAIR
    return Failure(meaning.exit_status, _leave_out(error.message, remedy), remedy, kind)


def _explain_call(error: RpcError) -> Failure:
    if error.code is Code.UNAVAILABLE and isinstance(error.__cause__, UnreachableError):
        return _explain_unreachable(error.__cause__)
    meaning = _OF_CODES.get(error.code, _Meaning(Exit.REMOTE, ''))
    return Failure(meaning.exit_status, str(error), meaning.remedy, error.code.value)


def _explain_unreachable(error: UnreachableError) -> Failure:
    from degu_rpc.node.places import find_places

    tried = '; '.join(
        f'{", ".join(map(str, find_places([attempt.address])))}: {attempt.reason}'
        for attempt in error.attempts
        if attempt.address is not None
    )
    exit_status, remedy = _OF_ERRORS[UnreachableError]
    if not tried:
        return Failure(exit_status, str(error), remedy, 'UnreachableError')
    return Failure(
        exit_status,
        f'{error.name or f"machine {error.machine_id}"} could not be reached: {tried}',
        'see that it runs there (degu status), and that its firewall lets TCP in',
        'UnreachableError',
    )


def _find_pairing_exit(fault: str) -> Exit:
    return Exit.UNREACHABLE if fault == PairingFault.UNREACHABLE.value else Exit.REFUSED
