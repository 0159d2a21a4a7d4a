"""Where this device keeps what it is: one directory, the home."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from degu_rpc.errors import HomeError

_APP = 'degu'
HOME_VARIABLE = 'DEGU_HOME'
IDENTITY_DIRECTORY = 'identity'
"""Where in a home the identity is."""


def find_home() -> Path:
    """Return the home of this user: what DEGU_HOME names, or a directory for user data (XDG).

    Nothing is looked at. Raises HomeError for a DEGU_HOME that is no absolute path.
    """
    given = os.environ.get(HOME_VARIABLE)
    if not given:
        return platformdirs.user_data_path(_APP)
    if not os.path.isabs(given):
        raise HomeError(Path(given), f'is no absolute path, in {HOME_VARIABLE}', 'begin it with /')
    return Path(given)


def find_config_directory(home: Path) -> Path:
    """Return where the configuration of a home is: in it, or for the usual one where XDG says."""
    return (
        platformdirs.user_config_path(_APP) if home == platformdirs.user_data_path(_APP) else home
    )
