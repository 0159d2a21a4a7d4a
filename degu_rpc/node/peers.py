"""Whom a person means to trust no more: a user, or one machine. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from degu import pki
from degu_rpc.errors import AmbiguousNameError, UnknownMachineError
from degu_rpc.peers import OWNER, find_machine

if TYPE_CHECKING:
    from collections.abc import Collection

    from degu_rpc.peers import TrustedUser


def find_user(users: Collection[TrustedUser], text: str) -> tuple[TrustedUser, str | None]:
    """Return the user whom somebody means, and the one machine of theirs if it is only that.

    An id means whose it is, whatever others are called. A machine stands for its user where the
    user has no other one, but for machines of my own.

    Raises UnknownMachineError where nobody is called so, AmbiguousNameError where several are.
    """
    is_id = pki.is_id(text)
    named = [
        user
        for user in users
        if text == (user.user_id if is_id else user.name) and OWNER not in user.roles
    ]
    if len(named) > 1:
        raise AmbiguousNameError(text, {user.user_id: f'user {user.name!r}' for user in named})
    if named:
        return named[0], None
    machine_id = find_machine(users, text)
    for user in users:
        if machine_id in user.machines:
            is_whole = OWNER not in user.roles and len(user.machines) == 1
            return user, None if is_whole else machine_id
    raise UnknownMachineError(text, find_names(users))


def find_name(users: Collection[TrustedUser], machine_id: str) -> str:
    """Return what we call a machine: its id, where it has no name."""
    names = (user.machines[machine_id] for user in users if machine_id in user.machines)
    return next(names, machine_id)


def find_names(users: Collection[TrustedUser]) -> list[str]:
    """Return the names of all users and machines."""
    return sorted({name for user in users for name in (user.name, *user.machines.values())})
