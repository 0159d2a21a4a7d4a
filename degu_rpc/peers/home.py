"""The home: the directory of this device, for every program that is not told another place.

There is one for a user of a device, so that all programs share one identity and one trust store.
Nothing is made here: `degu up`, `Identity.create` and pairing do that.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from degu_rpc.errors import IdentityError

if TYPE_CHECKING:
    from degu_rpc.peers.identity import Identity

IDENTITY_DIRECTORY = 'identity'
"""Where in a home the identity is."""
_APP = 'degu'
_VARIABLE = 'DEGU_HOME'


def find_home() -> Path:
    """Return the home of this user, whether it is there or not.

    It is what the environment variable DEGU_HOME says, or else `degu` in the user's directory for
    data, such as `~/.local/share/degu`.

    Raises IdentityError where DEGU_HOME is not absolute.
    """
    given = os.environ.get(_VARIABLE)
    if not given:
        return _find_usual_home()
    home = Path(given)
    if not home.is_absolute():
        raise IdentityError(
            home, f'is not absolute and stands in {_VARIABLE}', 'write the whole path there'
        )
    return home


def find_config_directory(home: Path) -> Path:
    """Return where the settings of a resolved home are: in it, or where XDG has the usual ones."""
    import platformdirs

    is_usual = home == _find_usual_home().resolve()
    return platformdirs.user_config_path(_APP) if is_usual else home


def _find_usual_home() -> Path:
    import platformdirs  # only who needs it pays for it

    return platformdirs.user_data_path(_APP)


def open_home(home: str | os.PathLike[str] | None = None) -> Identity:
    """Read the identity in `home`, or in find_home() where that is None.

    Raises IdentityError where there is none or it cannot be used, OSError.
    """
    from degu_rpc.peers.identity import Identity  # only who needs it pays for certificates

    directory = find_home() if home is None else Path(home)
    try:
        return Identity.open(directory / IDENTITY_DIRECTORY)
    except FileNotFoundError as error:
        raise IdentityError(directory, 'holds no identity', 'make one: degu up') from error
