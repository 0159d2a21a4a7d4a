"""Who a person means: a machine or a user that we trust, by name or id. Pure.

A machine has the name that it gave itself when it was paired; a user has the name of the machine
that they paired with first. So `studio` is the machine, and its user where it has no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from degu_rpc.errors import UnknownMachineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from degu_rpc.peers import TrustedUser


def find_machine(users: Mapping[str, TrustedUser], text: str) -> tuple[str, str]:
    """Return the id and the name of the machine that somebody means.

    That is its id, its name, or the name of a user who has one machine. Raises UnknownMachineError.
    """
    machines = {id_: name for user in users.values() for id_, name in user.machines.items()}
    found = {id_ for id_, name in machines.items() if text in (id_, name)}
    if not found:
        found = {
            id_
            for user in users.values()
            if text in (user.name, user.user_id) and len(user.machines) == 1
            for id_ in user.machines
        }
    if len(found) != 1:
        candidates = sorted(found) or sorted(set(machines.values()))
        raise UnknownMachineError(text, candidates, is_ambiguous=bool(found))
    machine_id = found.pop()
    return machine_id, machines[machine_id]


def find_user(users: Mapping[str, TrustedUser], text: str) -> tuple[TrustedUser, str | None]:
    """Return the user whom somebody means, and the one machine of theirs if it is only that.

    A machine stands for its user where the user has no other one. Raises UnknownMachineError.
    """
    named = [
        user for user in users.values() if text in (user.user_id, user.name) and not is_me(user)
    ]
    if len(named) == 1:
        return named[0], None
    if len(named) > 1:
        raise UnknownMachineError(text, sorted(u.user_id for u in named), is_ambiguous=True)
    machine_id, _ = find_machine(users, text)
    user = next(user for user in users.values() if machine_id in user.machines)
    is_whole = not is_me(user) and len(user.machines) == 1
    return user, None if is_whole else machine_id


def is_me(user: TrustedUser) -> bool:
    """Whether that is the user of this machine."""
    return 'owner' in user.roles
