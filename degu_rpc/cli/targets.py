"""From what a person writes for where a service is to a client of it.

    ., ./clock                   the node of this home, and what is served behind it
    studio, studio/clock         a machine by name or id, and what is served behind it; an id may be
                                 spelled as `degu id` shows it
    degu://<machine id>@host:port
    unix:/path, tcp:host:port, http://host:port

Where machines are, the running node knows: it has looked for them all the time. Without one they
are looked for now. Who is there is proved in either case, by this command itself.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from degu_rpc.cli.exits import Exit
from degu_rpc.cli.failures import Failure
from degu_rpc.cli.session import PREFIX
from degu_rpc.node.api import SET_MACHINES
from degu_rpc.node.limits import NEARBY_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from degu_rpc.cli.session import Session
    from degu_rpc.node.api import Located
    from degu_rpc.peers import DialedClient
    from degu_rpc.rpc.client import RpcClient

_DIRECT = ('unix:', 'tcp:', 'http://')
_match_local = re.compile(r'\.((?:/[^/?#]+)*)').fullmatch


def respell(text: str) -> str:
    """Return a target or a peer with its id as machines write it, if it begins with a spelled one.

    Raises Failure for one with a mistake in it.
    """
    from degu_rpc.peers import is_spelled, parse_id

    scheme, name, rest = _split(text)
    if not is_spelled(name):
        return text
    try:
        return scheme + parse_id(name) + rest
    except ValueError as error:
        raise Failure(Exit.USAGE, str(error)) from None


def _split(text: str) -> tuple[str, str, str]:
    match = re.fullmatch('(degu://|)([^/@]*)(.*)', text, re.DOTALL)
    assert match is not None
    return match[1], match[2], match[3]


@contextlib.contextmanager
def open_target(session: Session, target: str, prefix: str = PREFIX) -> Iterator[RpcClient]:
    """Yield a client of the services at a target, which connects at the first call.

    Raises Failure for a target of no form and for a machine that is nowhere, and what looking for
    it raises.
    """
    from degu_rpc.rpc.client import RpcClient
    from degu_rpc.rpc.target import connect

    target = respell(target)
    with contextlib.ExitStack() as stack:
        try:
            if match := _match_local(target):
                local = session.local_client(match[1] + prefix)
                yield stack.enter_context(local).using(timeout_s=session.timeout_s)
                return
            if target.startswith(_DIRECT):
                client = connect(target, prefix)
            elif located := _ask_node(session, target):
                dialed = build_client(session, located)
                client = RpcClient(dialed, located.path + prefix)
            else:
                client = connect(target, prefix, home=session.home.directory)
        except ValueError as error:
            raise Failure(Exit.USAGE, str(error)) from error
        stack.enter_context(client)
        yield client.using(timeout_s=session.timeout_s)


def locate(session: Session, target: str) -> Located:
    """Return where a machine is, as the node knows. Raises Failure where no node runs."""
    with session.node() as node:
        return node.locate(target, session.timeout_s or NEARBY_S)


def build_client(session: Session, located: Located) -> DialedClient:
    """Return a client of a machine that was located.

    `--timeout` is how long it may take to connect, and to wait for each sign of life after that.

    Raises Failure where it was not seen, IdentityError where this machine has no identity.
    """
    from degu_rpc.peers import Dialer, StaticAddresses, TrustStore, open_home
    from degu_rpc.peers.limits import DIAL_S

    if not located.urls:
        raise Failure(
            Exit.UNREACHABLE,
            f'{located.name} is not seen on the network'
            + ('' if located.discovery else ', as discovery is switched off here'),
            'see that it is on and runs: degu peers --nearby'
            if located.discovery
            else SET_MACHINES,
        )
    trust = TrustStore(open_home(session.home.directory))
    options = {} if session.timeout_s is None else {'timeout_s': session.timeout_s}
    dialer = Dialer(trust, [StaticAddresses(located.urls)], **options)
    return dialer.client(located.machine_id, session.timeout_s or DIAL_S)


def _ask_node(session: Session, target: str) -> Located | None:
    """Return where the node knows a machine to be, None where no node runs."""
    try:
        return locate(session, target)
    except Failure as failure:
        if failure.exit_status is not Exit.NOT_RUNNING:
            raise
        return None
