"""A node as a service of the user's systemd: its units, and how they come and go.

    degu.socket     the home's node.sock, which systemd opens: a call starts the node
    degu.service    the node; READY=1 says that it can be called, a crash starts it anew

1. `build_units` is pure: a home and a Python to the text of both units.
2. `UserUnits` writes them to the user's directory of units, and has `systemctl --user` do the rest.
   The first line says that we wrote a file; one without that line is left alone.

The sandbox has only what does not need a user namespace: in one, every other user of this machine
would call as the same uid, and nobody could say who it is (degu_rpc.peers.caller).

Source: systemd.service(5), systemd.socket(5), systemd.exec(5). There are no threads and no locks.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from degu import durable
from degu_rpc.errors import IdentityError, SystemdError
from degu_rpc.node.limits import SYSTEMCTL_S
from degu_rpc.peers.private import make_directory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from degu_rpc.node.home import Home

SERVICE = 'degu.service'
SOCKET = 'degu.socket'
MARKER = '# Made by "degu service install", which writes it anew.'
"""The first line of our units."""
HINT = '# What shall be otherwise belongs into a file of its own: systemctl --user edit'
_COMMANDS = (
    'systemctl --user daemon-reload',
    f'systemctl --user enable --now {SOCKET} {SERVICE}',
)

_SERVICE_TEXT = """\
{marker}
{hint} {service}
[Unit]
Description=degu: calls and files between trusted machines
Requires={socket}
After={socket}

[Service]
Type=notify
ExecStart={command}
Restart=on-failure
RestartSec=1
# Wrong usage does not become right.
RestartPreventExitStatus=2
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service

[Install]
WantedBy=default.target
"""

_SOCKET_TEXT = """\
{marker}
{hint} {socket}
[Unit]
Description=Where local programs call degu

[Socket]
ListenStream={path}
SocketMode=0600
DirectoryMode=0700
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""


class State(NamedTuple):
    """What systemd says of the service; `pid` is None while it does not run."""

    is_enabled: bool
    active: str
    """Such as `active`, `inactive`, `failed`."""
    pid: int | None


def build_units(home: Home, python: str = sys.executable) -> dict[str, str]:
    """Return the text of each unit by its name.

    Raises IdentityError for a home whose socket would have a path that cannot be.
    """
    home.check_path()
    path = str(home.socket_path)
    if not path.isprintable():
        raise IdentityError(
            home.directory,
            'has characters that a unit cannot have',
            'give another with --home',
        )
    # -P: a directory that happens to be called degu_rpc in $HOME is not what is meant.
    words = [python, '-P', '-m', 'degu_rpc.cli', 'up', '--home', str(home.directory)]
    names = {'marker': MARKER, 'hint': HINT, 'service': SERVICE, 'socket': SOCKET}
    return {
        SERVICE: _SERVICE_TEXT.format(**names, command=' '.join(map(_quote, words))),
        SOCKET: _SOCKET_TEXT.format(**names, path=path.replace('%', '%%')),
    }


def _quote(word: str) -> str:
    """Write one word of ExecStart. Source: systemd.service(5), "Command lines"."""
    escaped = word.replace('\\', '\\\\').replace('"', '\\"').replace('%', '%%').replace('$', '$$')
    return f'"{escaped}"'


def find_unit_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the user's own units are. Source: systemd.unit(5)."""
    base = environment.get('XDG_CONFIG_HOME') or os.path.join(Path.home(), '.config')
    return Path(base, 'systemd', 'user')


class UserUnits:
    """Our units in the user's directory of units."""

    # Set once: directory.

    def __init__(self, directory: Path | None = None) -> None:
        """Name them; nothing is touched."""
        self.directory = directory or find_unit_directory()

    def find_own(self) -> list[Path]:
        """Return the units that are there and that we wrote. Raises OSError."""
        return [path for path in self._paths() if _read_first_line(path) == MARKER]

    def find_foreign(self) -> list[Path]:
        """Return those of our names that somebody else wrote. Raises OSError."""
        return [path for path in self._paths() if _read_first_line(path) not in (MARKER, None)]

    def install(self, home: Home) -> None:
        """Write the units in place of what is there, and have the node run now and at each login.

        Raises NodeRunningError where one runs with this home that systemd did not start,
        IdentityError for the home, SystemdError, OSError.
        """
        units = build_units(home)
        make_directory(home.directory)
        if self._is_reachable() and self.find_own():
            _systemctl('stop', SERVICE, SOCKET)
        with home.hold():  # systemd would take its socket away from a node that runs
            pass
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, text in units.items():
            durable.replace(self.directory / name, text.encode())
        _systemctl('daemon-reload')
        _systemctl('enable', '--now', SOCKET, SERVICE)

    def remove(self) -> list[Path]:
        """Stop the node and remove the units that we wrote; return which.

        Raises SystemdError, OSError.
        """
        own = self.find_own()
        if own:
            _systemctl('disable', '--now', *(path.name for path in own))
            for path in own:
                path.unlink()
            _systemctl('daemon-reload')
        return own

    def read_state(self) -> State:
        """Return what systemd says. Raises SystemdError."""
        said = _systemctl('show', '--property=ActiveState,MainPID,UnitFileState', SERVICE)
        values = dict(line.split('=', 1) for line in said.splitlines())
        pid = int(values['MainPID'])
        return State(values['UnitFileState'] == 'enabled', values['ActiveState'], pid or None)

    def _is_reachable(self) -> bool:
        with contextlib.suppress(SystemdError):
            self.read_state()
            return True
        return False

    def _paths(self) -> list[Path]:
        return [self.directory / SERVICE, self.directory / SOCKET]


def _read_first_line(path: Path) -> str | None:
    """Return the first line of a file, None where none is."""
    try:
        with path.open(encoding='utf-8', errors='replace') as file:
            return file.readline().rstrip('\n')
    except FileNotFoundError:
        return None


def _systemctl(*arguments: str) -> str:
    """Have systemctl do something; return what it printed. Raises SystemdError."""
    try:
        done = subprocess.run(  # noqa: S603  # its arguments are ours
            ['systemctl', '--user', '--no-ask-password', *arguments],  # noqa: S607  # from PATH, like the shell of whoever asks
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SYSTEMCTL_S,
            check=False,
        )
    except FileNotFoundError:
        remedy = 'start the node without it: degu up --bg'
        raise SystemdError('systemctl is not installed', remedy) from None
    except subprocess.TimeoutExpired:
        remedy = f'see what it does: systemctl --user status {SERVICE}'
        raise SystemdError(f'systemctl {arguments[0]} took too long', remedy) from None
    if done.returncode:
        raise SystemdError(_join_lines(done.stderr), _find_remedy(done.stderr))
    return done.stdout


def _join_lines(text: str) -> str:
    return '; '.join(line.strip() for line in text.splitlines() if line.strip())


def _find_remedy(said: str) -> str:
    if 'connect to bus' in said:
        return (
            'systemd runs for a user who is logged in, or whom root lets linger '
            f'(loginctl enable-linger); then type: {" && ".join(_COMMANDS)}'
        )
    return f'see the log: journalctl --user -u {SERVICE}'
