"""Where this device's identity is, for every program that is not told another place.

There is one identity for a user of a device, so that all programs share one trust store. Nothing
is made here: `Identity.create` and pairing do that.
"""

from __future__ import annotations

import os
from pathlib import Path

from degu_rpc.errors import IdentityError
from degu_rpc.peers.identity import Identity

_VARIABLE = 'DEGU_HOME'


def find_home() -> Path:
    """Return the directory of this device's identity, whether it is there or not.

    It is what the environment variable DEGU_HOME says, or else `degu` in the user's directory for
    data, such as `~/.local/share/degu`.

    Raises IdentityError where DEGU_HOME is not absolute.
    """
    given = os.environ.get(_VARIABLE)
    if not given:
        import platformdirs  # only who needs it pays for it

        return platformdirs.user_data_path('degu')
    home = Path(given)
    if not home.is_absolute():
        raise IdentityError(
            home, f'is not absolute and stands in {_VARIABLE}', 'write the whole path there'
        )
    return home


def open_home(home: str | os.PathLike[str] | None = None) -> Identity:
    """Read the identity in `home`, or in find_home() where that is None.

    Raises IdentityError where there is none or it cannot be used, OSError.
    """
    directory = find_home() if home is None else Path(home)
    try:
        return Identity.open(directory)
    except FileNotFoundError as error:
        remedy = f'make one with Identity.create(), or say in {_VARIABLE} where it is'
        raise IdentityError(directory, 'holds no identity', remedy) from error
