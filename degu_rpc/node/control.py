"""The service by which local programs see and steer the node: see degu_rpc.node.api.

What is not meant as an answer (a code that was wrong, a disk that is full) becomes a RpcError with
details: `kind` says what it is, `remedy` what to do, so that no program has to read the text.

Threads: each call runs in its connection's thread; what it uses guards itself.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from degu import pki
from degu_rpc.errors import (
    AmbiguousNameError,
    Code,
    DeguRpcError,
    IdentityError,
    PairingError,
    RpcError,
    TrustError,
    UnknownMachineError,
    UnknownOfferError,
    UnreachableError,
)
from degu_rpc.node.api import (
    EXAMINE,
    NODE,
    IntentName,
    Located,
    Nearby,
    NearbyResult,
    OfferStatus,
    PairedWith,
    PairingEvent,
    ServiceStatus,
    Status,
    Unpaired,
    Window,
)
from degu_rpc.node.limits import CALLER_PERIOD_S, STATUS_PERIOD_S
from degu_rpc.node.peers import find_name, find_user
from degu_rpc.node.places import find_places
from degu_rpc.node.status import build_status
from degu_rpc.node.windows import find_windows, open_window, pair_at
from degu_rpc.peers import OWNER, Intent, find_machine, parse_url
from degu_rpc.rpc.context import Context
from degu_rpc.rpc.service import Service

if TYPE_CHECKING:
    from degu_rpc.node.device import Node


def build_control(node: Node) -> Service:
    """Build the service of a node."""
    control = Service(NODE, [_explaining])

    @control.method(allow=OWNER, safe=True)
    def status() -> Status:
        """Say how the node is."""
        return build_status(node)

    @control.method(allow=OWNER, safe=True)
    def watch(ctx: Context) -> Iterator[Status]:
        """Say how it is, and again with every change."""
        last = None
        while True:
            now = build_status(node)
            if now != last:
                yield now
                last = now
            _pause(node, ctx, STATUS_PERIOD_S)

    @control.method(allow=OWNER)
    def stop() -> None:
        """Stop the node, once this call is answered."""
        node.stop()

    @control.method(allow=OWNER, safe=True)
    def nearby(ctx: Context, timeout_s: float) -> NearbyResult:
        """Say which machines are seen; wait so long for the first."""
        for _ in node.neighbours.watch(_limit(ctx, timeout_s)):
            break
        names = {
            id_: name for user in node.trust.users().values() for id_, name in user.machines.items()
        }
        machines = [
            Nearby(
                seen.machine_id,
                names.get(seen.machine_id),
                [p.format_url(seen.machine_id) for p in find_places(seen.addresses)],
            )
            for seen in node.neighbours.sightings()
        ]
        return NearbyResult(machines, None if machines else node.neighbours.explain_nothing())

    @control.method(allow=OWNER, safe=True)
    def locate(ctx: Context, target: str, timeout_s: float) -> Located:
        """Find a machine by its name, its id or its `degu://` URL, and what is behind it.

        `target` is like `studio` or `studio/clock`. Wait so long to see it.
        """
        users = node.trust.users().values()
        if target.startswith('degu://'):
            url, _, path = target.removeprefix('degu://').partition('/')
            machine_id = parse_url(f'degu://{url}').machine_id
            known_as = find_name(users, machine_id)
            return Located(machine_id, known_as, [f'degu://{url}'], _build_path(path))
        name, _, path = target.partition('/')
        machine_id = find_machine(users, name)
        known_as = find_name(users, machine_id)
        urls = node.neighbours.find_urls(machine_id, _limit(ctx, timeout_s))
        discovery = node.neighbours.is_switched_on
        return Located(machine_id, known_as, urls, _build_path(path), discovery)

    @control.method(allow=OWNER)
    def open_pairing(ctx: Context, intent: IntentName) -> Iterator[PairingEvent]:
        """Open a pairing window, which ends with this stream."""
        yield from open_window(node, Intent(intent), ctx)

    @control.method(allow=OWNER, safe=True)
    def windows(ctx: Context, timeout_s: float) -> list[Window]:
        """Say which pairing windows are seen; wait so long for the first."""
        return [Window(each) for each in find_windows(node, _limit(ctx, timeout_s))]

    @control.method(allow=OWNER)
    def pair(code: str, address: str | None, intent: IntentName) -> PairedWith:
        """Pair with the machine whose window has this code.

        `address` is where the window is, as `192.168.1.7:8486`; without it, the one window that is
        seen. With `join` this machine gives up its identity, which is kept, and starts anew.
        """
        return pair_at(node, code, address, Intent(intent))

    @control.method(allow=OWNER)
    def unpair(peer: str) -> Unpaired:
        """Trust a user no more, or a machine: by name or id."""
        user, machine_id = find_user(node.trust.users().values(), peer)
        if machine_id is None:
            node.trust.remove(user.user_id)
            return Unpaired(user.user_id, user.name, sorted(user.machines))
        node.trust.deny(user.user_id, machine_id)
        return Unpaired(user.user_id, user.machines.get(machine_id, machine_id), [machine_id])

    @control.method(allow=OWNER)
    def serve(ctx: Context, name: str, socket_path: str) -> Iterator[ServiceStatus]:
        """Serve what is at a unix socket behind this node, as `/<name>`, while the stream lasts."""
        with node.behind.register(name, socket_path) as status:
            yield status
            while True:
                _pause(node, ctx, CALLER_PERIOD_S)

    @control.method(allow=OWNER, safe=True)
    def inbox() -> Iterator[OfferStatus]:
        """List what others send to this machine; done and refused offers for a while, too."""
        yield from node.inbox.offers()

    @control.method(allow=OWNER)
    def accept_offer(offer_id: str) -> OfferStatus:
        """Take what is offered, even if it was refused before."""
        return node.inbox.accept(offer_id)

    @control.method(allow=OWNER)
    def reject_offer(offer_id: str) -> OfferStatus:
        """Refuse what is offered; what of it is here already stays."""
        return node.inbox.reject(offer_id)

    return control


def _build_path(path: str) -> str:
    return f'/{path}' if path else ''


def _limit(context: Context, timeout_s: float) -> float:
    remaining_s = context.remaining()
    return max(0.0, timeout_s if remaining_s is None else min(timeout_s, remaining_s))


def _pause(node: Node, context: Context, seconds: float) -> None:
    """Wait, and raise RpcError if the caller is gone by then or the node stops."""
    if node.stopping.wait(seconds):
        raise RpcError(Code.UNAVAILABLE, 'the node stops')
    context.check()


@contextlib.contextmanager
def _explaining(_context: Context) -> Iterator[None]:
    """Make of what the node raises on purpose an error that a program can read."""
    try:
        yield
    except RpcError:
        raise
    except DeguRpcError as error:
        raise _explain(error) from error
    except OSError as error:
        raise _explain_system(error) from error
    except (pki.CertificateError, ValueError) as error:
        raise RpcError(Code.INVALID_ARGUMENT, str(error)) from error


def _explain_system(error: OSError) -> RpcError:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = 'make room on that disk, then do it again' if is_full else EXAMINE
    detail = {'kind': type(error).__name__, 'remedy': remedy}
    return RpcError(Code.FAILED_PRECONDITION, str(error), [detail])


def _explain(error: DeguRpcError) -> RpcError:
    detail: dict[str, Any] = {'kind': type(error).__name__}
    code = Code.FAILED_PRECONDITION
    if isinstance(error, PairingError):
        detail['fault'] = error.fault.value
    elif isinstance(error, UnknownMachineError):
        code = Code.NOT_FOUND
        detail['known'] = list(error.known)
    elif isinstance(error, UnknownOfferError):
        code = Code.NOT_FOUND
    elif isinstance(error, AmbiguousNameError):
        code = Code.INVALID_ARGUMENT
        detail['machines'] = error.machines
    elif isinstance(error, UnreachableError):
        code = Code.UNAVAILABLE
    elif isinstance(error, IdentityError | TrustError):
        detail['remedy'] = error.remedy
    return RpcError(code, str(error), [detail])
