"""What a user, a machine or a role may be called, and which machine a name means. Pure.

Names are text that does nothing to a terminal. They come from the peers themselves, so two machines
may have one name: a name leads to a machine only where it can mean no other.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from degu import pki
from degu_rpc.errors import AmbiguousNameError, UnknownMachineError
from degu_rpc.peers.limits import MAX_NAME_LENGTH
from degu_rpc.text import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from degu_rpc.peers.caller import TrustedUser


def check_name(name: str) -> str:
    """Return a name. Raises ValueError for one that cannot be."""
    if not 1 <= len(name) <= MAX_NAME_LENGTH or escape_controls(name) != name:
        raise ValueError(
            f'a name has 1 to {MAX_NAME_LENGTH} characters and no control characters, not {name!r}'
        )
    return name


def check_new_name(name: str) -> str:
    """Return a name for a user or a machine. Raises ValueError for one that cannot be.

    An id is none, or somebody could be called what somebody else is.
    """
    if pki.is_id(name):
        raise ValueError(f'a name cannot be an id, and {name} is one; choose another')
    return check_name(name)


def find_machine(users: Iterable[TrustedUser], name: str) -> str:
    """Return the id of the machine that is called `name`, or that is the one of a user so called.

    A name that is an id stands for itself. Machines that are denied have no name.

    Raises UnknownMachineError where there is none, AmbiguousNameError where there are several.
    """
    if pki.is_id(name):
        return name
    named: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for user in users:
        for machine_id, machine_name in user.machines.items():
            if machine_id not in user.denied:
                for one in (machine_name, user.name):
                    named[one][machine_id] = f'{machine_name!r} of {user.name!r}'
    if name not in named:
        raise UnknownMachineError(name, sorted(named))
    machines = named[name]
    if len(machines) > 1:
        raise AmbiguousNameError(name, machines)
    return next(iter(machines))
