"""What a shell can offer for an argument, by asking the node; for `shell_complete` of click.

1. The node of the home that the words name is asked, for no longer than COMPLETE_S. Where none runs
   there is nothing to offer, and nothing is said: somebody is typing.
2. Others chose the names. One that a shell or a command could take for more than a name is not
   offered, because it would run once the line is entered; its id is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from click.shell_completion import CompletionItem

from degu_rpc.cli.session import PREFIX, collect_shared

if TYPE_CHECKING:
    from collections.abc import Callable

    import click

    from degu_rpc.node.api import NodeApi, Status

_Answer = TypeVar('_Answer')

COMPLETE_S = 0.5
"""How long the node has to answer somebody who is typing."""
_match_plain = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*').fullmatch


def complete_peers(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Offer whom this machine trusts: users, and all machines."""
    status = _ask_node(ctx, _find_status)
    if status is None:
        return []
    users = [(p.name, p.user_id, 'user') for p in status.peers if not p.is_me]
    return _offer([*users, *_list_machines(status)], incomplete)


def complete_machines(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Offer all machines that this one trusts."""
    status = _ask_node(ctx, _find_status)
    return [] if status is None else _offer(_list_machines(status), incomplete)


def complete_targets(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Offer where calls can go: the node here, what is behind it, and all machines."""
    status = _ask_node(ctx, _find_status)
    if status is None:
        return []
    behind = [f'./{each.name}' for each in status.services]
    here = [
        CompletionItem(target, help=what)
        for target, what in [('.', 'this machine'), *((each, 'served here') for each in behind)]
        if target.startswith(incomplete)
    ]
    return here + _offer(_list_machines(status), incomplete)


def complete_offers(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Offer what others send to this machine and is not here, by its id."""
    offers = _ask_node(ctx, lambda node: list(node.inbox()))
    return [
        CompletionItem(offer.offer_id, help=f'{offer.state}, from {offer.sender}')
        for offer in offers or ()
        if offer.state != 'done' and offer.offer_id.startswith(incomplete)
    ]


def _find_status(node: NodeApi) -> Status:
    return node.status()


def _list_machines(status: Status) -> list[tuple[str, str, str]]:
    return [
        (machine.name, machine.machine_id, f'machine of {"mine" if peer.is_me else peer.name}')
        for peer in status.peers
        for machine in peer.machines
        if not machine.is_denied
    ]


def _offer(known: list[tuple[str, str, str]], incomplete: str) -> list[CompletionItem[str]]:
    """Return what begins so, of names with their ids and what they are; each once."""
    found: dict[str, CompletionItem[str]] = {}
    for name, id_, what in known:
        word = name if _match_plain(name) else id_
        if word.startswith(incomplete):
            found.setdefault(word, CompletionItem(word, help=what))
    return list(found.values())


def _ask_node(ctx: click.Context, ask: Callable[[NodeApi], _Answer]) -> _Answer | None:
    """Return what the node answers, None where none does."""
    from degu.client import Client
    from degu_rpc.errors import DeguRpcError
    from degu_rpc.node.api import NODE, NodeApi
    from degu_rpc.node.home import Home
    from degu_rpc.rpc.client import RpcClient

    try:
        home = Home(collect_shared(ctx).get('home'))
        home.check()
        client = Client(str(home.socket_path), connect_timeout_s=COMPLETE_S)
        with RpcClient(client, PREFIX) as rpc:
            return ask(rpc.using(timeout_s=COMPLETE_S).bind(NodeApi, NODE))
    except (DeguRpcError, OSError, ValueError):
        return None
