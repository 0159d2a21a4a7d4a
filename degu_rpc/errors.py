"""What every wing raises, on one page.

DeguRpcError
├── RpcError                    a call that failed, on either side       .code .message .details
│   └── CallError               what a client says of a call it made     .code .message .details
│       ├── NotSentError        it found no connection
│       └── StillRunsError      the first one with its key has not ended
├── CodecError                  bytes or a value that cannot travel      .faults
├── IdentityError               my own identity cannot be used           .path .remedy
├── ConfigError                 a setting that cannot be                 .key .source .remedy
├── NodeRunningError            a node has this home already             .home .pid
├── SystemdError                systemd did not do what it was to do     .remedy
├── TrustError                  the trust store cannot do that           .user_id .remedy
│   ├── UnknownUserError        a user who is not trusted here
│   └── RemovedUserError        a user who was removed here              .name .removed_at
├── RenewalError                no new certificate came, or more         .former_id
├── UnknownPeerError            somebody whom we do not know             .user_id .machine_id
├── UnknownMachineError         no machine has that name here            .name .known
├── AmbiguousNameError          several machines have that name          .name .machines
├── UnreachableError            a machine that no address led to         .machine_id .attempts .name
├── DiscoveryClosedError        the Discovery was closed
├── PairingError                two machines did not pair                .fault .detail .is_claimed
│   └── CodeError               a code that was not typed as it is shown
├── FolderError                 what is kept about a folder is no good   .path .remedy
└── FilesError                  moving files: see degu_rpc/files/
    ├── PathError               a name or path that must not be used     .path .reason
    ├── ListingError            a peer's listing makes no sense          .reason
    ├── IntegrityError          bytes are not what they were said to be  .path .block .reason
    ├── ContentChangedError     a file that changes faster than it moves .path
    ├── BlockedError            something of another kind is in the way  .path .reason
    ├── NoSpaceError            the disk or a quota is full              .path .needed .available
    ├── ShareRefusedError       the share answered with an error         .path .status .reason
    ├── OfferRefusedError       the inbox takes nothing of an offer      .status .reason .offer_id
    ├── UnknownOfferError       no offer with that id is in the inbox    .offer_id
    └── TransferCanceledError   the caller asked to stop

What the core raises (`degu.errors`, a rejected connection for one) is not among them.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from degu.net import Address


_MAX_TOLD = 16
"""How many names a message has; the attributes have all."""


class Code(enum.Enum):
    """Why a call failed; there are no others. Source: Connect protocol, "Error Codes"."""

    CANCELED = 'canceled'
    UNKNOWN = 'unknown'
    INVALID_ARGUMENT = 'invalid_argument'
    DEADLINE_EXCEEDED = 'deadline_exceeded'
    NOT_FOUND = 'not_found'
    ALREADY_EXISTS = 'already_exists'
    PERMISSION_DENIED = 'permission_denied'
    RESOURCE_EXHAUSTED = 'resource_exhausted'
    FAILED_PRECONDITION = 'failed_precondition'
    ABORTED = 'aborted'
    OUT_OF_RANGE = 'out_of_range'
    UNIMPLEMENTED = 'unimplemented'
    INTERNAL = 'internal'
    UNAVAILABLE = 'unavailable'
    DATA_LOSS = 'data_loss'
    UNAUTHENTICATED = 'unauthenticated'

    @property
    def http_status(self) -> tuple[int, str]:
        """The HTTP status and reason that an error with this code is sent with."""
        return _HTTP_STATUSES[self]


_HTTP_STATUSES = {
    Code.CANCELED: (499, 'Client Closed Request'),
    Code.UNKNOWN: (500, 'Internal Server Error'),
    Code.INVALID_ARGUMENT: (400, 'Bad Request'),
    Code.DEADLINE_EXCEEDED: (504, 'Gateway Timeout'),
    Code.NOT_FOUND: (404, 'Not Found'),
    Code.ALREADY_EXISTS: (409, 'Conflict'),
    Code.PERMISSION_DENIED: (403, 'Forbidden'),
    Code.RESOURCE_EXHAUSTED: (429, 'Too Many Requests'),
    Code.FAILED_PRECONDITION: (400, 'Bad Request'),
    Code.ABORTED: (409, 'Conflict'),
    Code.OUT_OF_RANGE: (400, 'Bad Request'),
    Code.UNIMPLEMENTED: (501, 'Not Implemented'),
    Code.INTERNAL: (500, 'Internal Server Error'),
    Code.UNAVAILABLE: (503, 'Service Unavailable'),
    Code.DATA_LOSS: (500, 'Internal Server Error'),
    Code.UNAUTHENTICATED: (401, 'Unauthorized'),
}


class DeguRpcError(Exception):
    """Base of what the wings raise on purpose. All can be pickled, with their attributes."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The exception's own would call the class with `args`, which is the text.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(
    kind: type[DeguRpcError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> DeguRpcError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class RpcError(DeguRpcError):
    """A call that failed: raised by a method to say why, and by the client to its caller.

    `.code` is a Code, `.message` is for people, `.details` is a tuple of JSON objects. All three
    travel. Connect's own clients expect `type` and `value` in a detail; ours take any object.
    """

    def __init__(self, code: Code, message: str, details: Iterable[Mapping[str, Any]] = ()) -> None:
        """Raises TypeError for a code that is no Code, a message that is no str, other details."""
        if not isinstance(code, Code):
            raise TypeError(f'code must be a Code, not {code!r}')
        if not isinstance(message, str):
            raise TypeError(f'message must be a str, not {message!r}')
        self.code = code
        self.message = message
        self.details = tuple(details)
        for detail in self.details:
            if not isinstance(detail, Mapping):
                raise TypeError(f'a detail must be a mapping, not {detail!r}')
        super().__init__(code, message, self.details)

    def __str__(self) -> str:
        return f'{self.code.value}: {self.message}'


class CallError(RpcError):
    """A call that failed, as the client that made it says: the server's answer, or that none came.

    It is about the server that was called. A method whose own call fails so answers `internal`,
    unless it raises a RpcError of its own.
    """


class NotSentError(CallError):
    """There is no connection: nothing of the call was sent, so it may be made again."""


class StillRunsError(CallError):
    """The first call with an idempotency key has not ended: its outcome can be asked for later."""


class Fault(NamedTuple):
    """What is wrong with one part of a value: `.path` is like `$.tags[1]`, `$` is the whole."""

    path: str
    reason: str


class CodecError(DeguRpcError, ValueError):
    """Bytes that are no acceptable message, or a value that cannot travel; `.faults` say why."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__(*faults)
        self.faults = faults

    def __str__(self) -> str:
        return '; '.join(f'{path}: {reason}' for path, reason in self.faults)


class PairingFault(enum.Enum):
    """Why two machines did not pair; there are no others."""

    CODE = 'code'
    WRONG_CODE = 'wrong_code'
    USED = 'used'
    EXPIRED = 'expired'
    TOO_MANY_WINDOWS = 'too_many_windows'
    INTENT = 'intent'
    VERSION = 'version'
    SAME_USER = 'same_user'
    OTHER_USER = 'other_user'
    ALREADY_PAIRED = 'already_paired'
    MESSAGE = 'message'
    ORDER = 'order'
    CERTIFICATE = 'certificate'
    UNREACHABLE = 'unreachable'
    NOT_STORED = 'not_stored'
    UNCONFIRMED = 'unconfirmed'

    @property
    def text(self) -> str:
        """What happened and what to do, on whichever side it is read."""
        return _PAIRING_TEXTS[self]


_PAIRING_TEXTS = {
    PairingFault.CODE: 'this cannot be the code; look again and retype it, it is still good',
    PairingFault.WRONG_CODE: (
        'the two sides do not have the same code, or somebody is between them; nothing was stored; '
        'open another window and compare its code with what you type'
    ),
    PairingFault.USED: (
        'the window had its one attempt already; if that was not you, somebody on this network is '
        'trying codes; open another window'
    ),
    PairingFault.EXPIRED: (
        'the time of the window was up before both sides were done; open another window'
    ),
    PairingFault.TOO_MANY_WINDOWS: (
        'this machine opened too many windows, those that paired included, so that nobody can guess'
    ),
    PairingFault.INTENT: (
        'one side is to join a user, the other to pair two users; choose the same on both sides '
        'and try again, the code is still good'
    ),
    PairingFault.VERSION: 'the two sides pair in different ways; install the same version on both',
    PairingFault.SAME_USER: (
        'the certificate there names your own user; machines of one user need not pair; '
        'nothing was stored'
    ),
    PairingFault.OTHER_USER: (
        'the certificate there names another user than the one of this machine; nothing was '
        'stored; open the window on a machine of its user, or give another directory'
    ),
    PairingFault.ALREADY_PAIRED: 'the two users trust each other already; nothing was changed',
    PairingFault.MESSAGE: (
        'the other side said what makes no sense here; nothing was stored; open another window'
    ),
    PairingFault.ORDER: (
        'the other side said something when it could not; nothing was stored; open another window'
    ),
    PairingFault.CERTIFICATE: (
        'a certificate cannot be used; nothing was stored; compare the clocks of both machines'
    ),
    PairingFault.UNREACHABLE: (
        'the other side cannot be reached; see that both are on one network and that its window is '
        'open, and try again'
    ),
    PairingFault.NOT_STORED: (
        'one side could not store the other, so neither did; its log says why; pair again then'
    ),
    PairingFault.UNCONFIRMED: (
        'the other side did not say that it stored this one, so this one stored nothing; the other '
        'may have, and pairing again mends that'
    ),
}


class PairingError(DeguRpcError):
    """Two machines did not pair: `fault` is a PairingFault, the text says what to do.

    Where `is_claimed`, the other machine says so, and the text says that.
    """

    def __init__(self, fault: PairingFault, detail: str = '', *, is_claimed: bool = False) -> None:
        super().__init__(fault, detail)
        self.fault = fault
        self.detail = detail
        self.is_claimed = is_claimed

    def __str__(self) -> str:
        text = f'the other machine said: {self.fault.text}' if self.is_claimed else self.fault.text
        return f'{text} ({self.detail})' if self.detail else text


class CodeError(PairingError, ValueError):
    """A code cannot be right as it was typed. Nothing was sent, so the code is still good."""

    def __init__(self, detail: str) -> None:
        super().__init__(PairingFault.CODE, detail)


class IdentityError(DeguRpcError):
    """The identity or its home cannot be used: `path` is where, `remedy` what to do about it."""

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        super().__init__(f'{path} {problem}; {remedy}')
        self.path = path
        self.remedy = remedy


class ConfigError(DeguRpcError):
    """A setting cannot be what it is: `key` is which, `source` who said so, `remedy` what to do."""

    def __init__(self, key: str, source: str, problem: str, remedy: str) -> None:
        super().__init__(f'{key}, from {source}: {problem}; {remedy}')
        self.key = key
        self.source = source
        self.remedy = remedy


class NodeRunningError(DeguRpcError):
    """A node has the home already: `home` is the directory, `pid` its process, if that is known."""

    def __init__(self, home: Path, pid: int | None) -> None:
        process = '' if pid is None else f', process {pid}'
        super().__init__(f'a node runs with {home} already{process}; degu status shows it')
        self.home = home
        self.pid = pid


class SystemdError(DeguRpcError):
    """The user's systemd did not do what it was told; `remedy` says what to do instead."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f'{problem}; {remedy}')
        self.remedy = remedy


class UnknownPeerError(DeguRpcError):
    """Somebody proved who they are (or the kernel could not say), and it is nobody we know.

    `user_id` and `machine_id` are what a certificate said, None where there was none.
    """

    def __init__(
        self, message: str, user_id: str | None = None, machine_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.user_id = user_id
        self.machine_id = machine_id


class UnknownMachineError(DeguRpcError):
    """No machine is called `.name` here; `.known` are all names that one has."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(known)
        told = _join(map(repr, self.known))
        what = f'known are {told}' if told else 'none is known yet; pair with one'
        super().__init__(f'no machine is called {name!r} here; {what}')


class AmbiguousNameError(DeguRpcError):
    """Several machines are called `.name`: `.machines` says what we know of each, by its id."""

    def __init__(self, name: str, machines: Mapping[str, str]) -> None:
        self.name = name
        self.machines = dict(machines)
        told = _join(f'{machine_id} ({what})' for machine_id, what in self.machines.items())
        super().__init__(f'{name!r} may be several machines; give the id of one: {told}')


def _join(texts: Iterable[str]) -> str:
    """Join the first texts of a list, and say how many others there are."""
    first = list(texts)
    others = first[_MAX_TOLD:]
    return ', '.join([*first[:_MAX_TOLD], *([f'and {len(others)} others'] if others else [])])


class Attempt(NamedTuple):
    """What was tried to reach a machine: by whose hint, which address, why it failed.

    `address` is None where the source had none to try, `error` where nothing was raised.
    """

    source: str
    address: Address | None
    reason: str
    error: Exception | None = None

    def __str__(self) -> str:
        if self.address is None:
            return f'{self.source}: {self.reason}'
        return f'{self.address!r} ({self.source}): {self.reason}'


class DiscoveryClosedError(DeguRpcError):
    """The Discovery was closed, by this thread or another."""

    def __init__(self) -> None:
        super().__init__('discovery is closed')


class UnreachableError(DeguRpcError, ConnectionError):
    """A machine could not be reached; `.attempts` say what was tried and why each failed.

    `.name` is what we call it, empty where it has none here.
    """

    def __init__(self, machine_id: str, attempts: Iterable[Attempt], name: str = '') -> None:
        self.machine_id = machine_id
        self.name = name
        self.attempts = tuple(attempts)
        tried = '; '.join(map(str, self.attempts)) or 'there was nowhere to look for it'
        super().__init__(f'machine {machine_id} could not be reached: {tried}')


class TrustError(DeguRpcError):
    """The trust store cannot do or use something about the user `user_id`; `remedy` is what can."""

    def __init__(self, user_id: str, problem: str, remedy: str) -> None:
        super().__init__(f'user {user_id}: {problem}; {remedy}')
        self.user_id = user_id
        self.remedy = remedy


class UnknownUserError(TrustError):
    """A user who was to be changed or removed is not trusted here."""

    def __init__(self, user_id: str) -> None:
        super().__init__(user_id, 'is not trusted here', 'compare the id with those that are')


class RemovedUserError(TrustError):
    """A user who was removed was to come back without anybody having decided that.

    `name` is what we called the user, `removed_at` when the removal was, ISO 8601.
    """

    def __init__(self, user_id: str, name: str, removed_at: str) -> None:
        super().__init__(
            user_id, f'was removed here, as {name!r} at {removed_at}', 'pair with them to undo that'
        )
        self.name = name
        self.removed_at = removed_at


class RenewalError(DeguRpcError):
    """No new certificate came; or it did, and `former_id` could not be retired: deny it by hand.

    Where nothing was installed `former_id` is None.
    """

    def __init__(self, message: str, former_id: str | None = None) -> None:
        super().__init__(message)
        self.former_id = former_id


class FilesError(DeguRpcError):
    """Base of what the files wing raises. A transfer that failed goes on where it stopped.

    A `.path` is as a local program has it, what is no UTF-8 in surrogates (see os.fsdecode).
    """


class PathError(FilesError):
    """A name or path that must not be used: `.path` as given, `.reason` says which rule."""

    def __init__(self, path: object, reason: str) -> None:
        shown = os.fsdecode(path) if isinstance(path, bytes) else path
        super().__init__(f'{shown!r} cannot be used as a path: {reason}')
        self.path = path
        self.reason = reason


class ListingError(FilesError):
    """A peer's listing makes no sense; nothing was written because of it. `.reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f'the listing is not usable: {reason}')
        self.reason = reason


class IntegrityError(FilesError):
    """Bytes are not what they were said to be, and were not kept.

    `.path` is the file (or the root, where only that is known), `.block` the index of the block or
    None, `.reason` what was found.
    """

    def __init__(self, path: str, block: int | None, reason: str) -> None:
        where = f'{path!r}' if block is None else f'{path!r}, block {block}'
        super().__init__(f'{where}: {reason}; nothing of it was kept')
        self.path = path
        self.block = block
        self.reason = reason


class ContentChangedError(FilesError):
    """The file at `.path` changes faster than it can be transferred; try again once it rests."""

    def __init__(self, path: str) -> None:
        super().__init__(f'{path!r} keeps changing while it is read; try again once it rests')
        self.path = path


class BlockedError(FilesError):
    """Something of another kind is at `.path`; it was left alone. `.reason` says what it is."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f'{path!r} is blocked: {reason}; move it away and start again')
        self.path = path
        self.reason = reason


class NoSpaceError(FilesError):
    """The disk, a quota or a file size limit is full. `.needed` and `.available` are bytes.

    Both are None where the operating system only said that it is full.
    """

    def __init__(
        self, path: str, needed: int | None = None, available: int | None = None, why: str = ''
    ) -> None:
        found = why if needed is None else f'{needed} bytes needed, {available} to spare'
        super().__init__(f'no space at {path}: {found}; free some and start again, it will resume')
        self.path = path
        self.needed = needed
        self.available = available


class ShareRefusedError(FilesError):
    """The share answered a request for `.path` with an error: `.status` and `.reason`."""

    def __init__(self, path: str, status: int, reason: str) -> None:
        where = f' for {path!r}' if path else ''
        super().__init__(f'the share answered {status}{where}: {reason}')
        self.path = path
        self.status = status
        self.reason = reason


class OfferRefusedError(FilesError):
    """An inbox does not take what was offered; `.reason` is what it says.

    `.status` is the HTTP status that it answered with; 200 when a person or a policy refused.
    `.offer_id` is what the inbox lists it as, empty where it did not say.
    """

    def __init__(self, status: int, reason: str, offer_id: str = '') -> None:
        said = 'the other side refused' if status == 200 else f'the inbox answered {status}'
        super().__init__(f'{said}: {reason}')
        self.status = status
        self.reason = reason
        self.offer_id = offer_id


class UnknownOfferError(FilesError):
    """No offer with the id `.offer_id` is in the inbox: it never was, or was forgotten."""

    def __init__(self, offer_id: str) -> None:
        super().__init__(f'no offer {offer_id!r} is in the inbox; list the offers for their ids')
        self.offer_id = offer_id


class TransferCanceledError(FilesError):
    """The caller asked a transfer to stop. Every name holds its old or its new content."""

    def __init__(self) -> None:
        super().__init__('the transfer was canceled; start it again to go on where it stopped')


class FolderError(DeguRpcError):
    """What is kept about a folder cannot be used: `path` is where, `remedy` what to do about it."""

    def __init__(self, path: str | os.PathLike[str], problem: str, remedy: str) -> None:
        super().__init__(f'{os.fspath(path)} {problem}; {remedy}')
        self.path = path
        self.remedy = remedy
