"""The settings of a node, and where each came from.

    name = "studio"                       # what other machines see; else the host's name
    port = 8485                           # TCP, for other machines; the next one is for pairing
    listen = ["192.168.1.7"]              # IP addresses of this machine; else all of them
    interfaces = ["eth0"]                 # where to look for others; else all local networks
    discovery = true                      # be found, and find, by mDNS
    machines = ["degu://<machine id>@192.168.1.7:8485"]   # where machines are that mDNS cannot find

    [shares.photos]                       # what others may read: degu ls studio:photos
    path = "~/Pictures"               # absolute, or from ~
    allow = ["peer"]                      # the roles that may; ["peer"] unless given

    [inbox]                               # where files go that others send: degu send talk.pdf
    path = "~/Downloads"              # the user's directory for downloads unless given
    accept = ["owner"]                    # the roles whose files are taken; ["owner"] unless given
    ask = ["peer"]                        # those whose files wait for `degu inbox accept`

1. A setting is looked for in the flags of the command, the environment (`DEGU_PORT`), what `degu
   config set` stored, and `config.toml`, in this order; else it has its default.
2. `config.toml` is a person's: it is read and never written. `set_value` and `unset_value` write
   `settings.json` in the home, one process after the other.
3. Wherever a value is from, it is checked in the same way, and an error says where that was.

There are no threads.
"""

from __future__ import annotations

import json
import os
import socket
import tomllib
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec

from degu import durable
from degu_rpc.errors import ConfigError
from degu_rpc.node.api import NAME_PATTERN
from degu_rpc.node.limits import DEFAULT_PORT, MAX_CONFIG_SIZE, MAX_PORT
from degu_rpc.peers import build_roles, parse_url
from degu_rpc.peers.names import check_new_name
from degu_rpc.peers.private import locked, make_directory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from degu_rpc.node.home import Home

_Addresses = Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
_Port = Annotated[int, msgspec.Meta(ge=0, le=MAX_PORT)]
_ShareName = Annotated[str, msgspec.Meta(pattern=rf'\A{NAME_PATTERN}\Z')]


class Share(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A directory that others may read."""

    path: str
    allow: tuple[str, ...] = ('peer',)

    @property
    def directory(self) -> Path:
        """Where it is, with `~` for the user's own directory. RuntimeError for that of nobody."""
        return Path(self.path).expanduser()


class InboxSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where files go that others send, and whose are taken; with no role at all, nobody's."""

    path: str = msgspec.field(default_factory=lambda: _find_downloads())
    accept: tuple[str, ...] = ('owner',)
    ask: tuple[str, ...] = ('peer',)

    @property
    def directory(self) -> Path:
        """Where it is, with `~` for the user's own directory. RuntimeError for that of nobody."""
        return Path(self.path).expanduser()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings of a node; see the module for what they mean."""

    name: str = msgspec.field(default_factory=lambda: _find_host_name())
    port: _Port = DEFAULT_PORT
    listen: _Addresses = ('0.0.0.0', '::')  # noqa: S104  # other machines are who it is for
    interfaces: tuple[str, ...] | None = None
    discovery: bool = True
    machines: tuple[str, ...] = ()
    shares: dict[_ShareName, Share] = {}
    inbox: InboxSettings = msgspec.field(default_factory=InboxSettings)


class Setting(NamedTuple):
    """One setting: what it is, and who said so: a flag, a variable, a file, or `default`."""

    key: str
    value: Any
    source: str


KEYS = Config.__struct_fields__
SETTABLE = tuple(key for key in KEYS if key not in ('shares', 'inbox'))
"""What can be given by a flag or a variable, and stored by `degu config set`."""
DEFAULT = 'default'


def read_settings(
    home: Home, flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> dict[str, Setting]:
    """Return each setting by its key, with where it came from.

    `flags` are values of the command, None for those that were not given.

    Raises ConfigError for one that cannot be, OSError for a file that cannot be read.
    """
    found = {key: Setting(key, getattr(Config(), key), DEFAULT) for key in KEYS}
    for source, values in (
        (str(home.config_path), _read_toml(home.config_path)),
        (str(home.settings_path), _read_json(home.settings_path)),
        ('the environment', _read_environment(environment)),
        ('a flag', {key: value for key, value in flags.items() if value is not None}),
    ):
        for key, value in values.items():
            where = source if source[0] == '/' else _name_source(source, key)
            found[key] = _check(key, value, where)
    return found


def build_config(settings: Mapping[str, Setting]) -> Config:
    """Return the settings as one value."""
    return Config(**{key: setting.value for key, setting in settings.items()})


def set_value(home: Home, key: str, text: str) -> Setting:
    """Store a setting, given as text; return it. A running node takes it when it starts anew.

    Raises ConfigError for a setting or a value that cannot be, IdentityError for a home that is not
    ours alone, OSError.
    """
    _check_settable(key)
    value = _parse_text(key, text, 'the command')
    checked = _check(key, value, 'the command')
    _store(home, key, value)
    return checked._replace(source=str(home.settings_path))


def unset_value(home: Home, key: str) -> Setting:
    """Remove what is stored of a setting; return what counts by now, the flags aside.

    Raises what `set_value` and `read_settings` raise.
    """
    _check_settable(key)
    _store(home, key, None)
    return read_settings(home, {})[key]


def name_variable(key: str) -> str:
    """Return the name of the environment variable of a setting."""
    return f'DEGU_{key.upper()}'


def _check_settable(key: str) -> None:
    if key not in SETTABLE:
        remedy = 'write it into config.toml' if key in KEYS else f'there are {", ".join(KEYS)}'
        raise ConfigError(key, 'the command', 'it cannot be set', remedy)


def _store(home: Home, key: str, value: Any) -> None:
    """Store a value, or with None remove it."""
    make_directory(home.directory)
    with locked(home.directory):
        stored = _read_json(home.settings_path)
        stored.pop(key, None)
        if value is not None:
            stored[key] = value
        content = json.dumps({'v': 1, **stored}, indent=2)
        durable.replace(home.settings_path, content.encode() + b'\n')


def _check(key: str, value: Any, source: str) -> Setting:
    if key not in KEYS:
        raise ConfigError(key, source, 'there is no such setting', f'there are {", ".join(KEYS)}')
    try:
        checked = getattr(msgspec.convert({key: value}, Config), key)
        if key == 'name':
            _check_own_name(checked)
        elif key == 'machines':
            for url in checked:
                parse_url(url)
        elif key == 'listen':
            for ip in checked:
                ip_address(ip)
        elif key == 'shares':
            for name, share in checked.items():
                _check_share(name, share)
        elif key == 'inbox':
            _check_inbox(checked)
    except ValueError as error:
        raise ConfigError(key, source, str(error), 'correct it there') from None
    return Setting(key, checked, source)


def _check_share(name: str, share: Share) -> None:
    """Raise ValueError for one that is of nobody, or whose directory hangs on where we are."""
    try:
        build_roles(share.allow)
        _check_directory(share)
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from None


def _check_inbox(inbox: InboxSettings) -> None:
    """Raise ValueError for roles that are none, and for one whose files are to do both."""
    for roles in (inbox.accept, inbox.ask):
        if roles:
            build_roles(roles)
    if both := set(inbox.accept).intersection(inbox.ask):
        raise ValueError(f'accept and ask both name {", ".join(sorted(both))}; choose one')
    _check_directory(inbox)


def _check_directory(setting: Share | InboxSettings) -> None:
    try:
        is_absolute = setting.directory.is_absolute()
    except RuntimeError as error:  # of a ~user whom nobody knows
        raise ValueError(str(error)) from None
    if not is_absolute:
        raise ValueError(f'path must begin with / or ~, not {setting.path!r}')


def _name_source(source: str, key: str) -> str:
    return name_variable(key) if source == 'the environment' else f'--{key}'


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        key: _parse_text(key, environment[variable], variable)
        for key in SETTABLE
        if (variable := name_variable(key)) in environment
    }


def _parse_text(key: str, text: str, source: str) -> Any:
    """Read a value that was given as text; lists have commas."""
    if key in ('interfaces', 'listen', 'machines'):
        return [part.strip() for part in text.split(',') if part.strip()]
    if key == 'port':
        if not (text.isascii() and text.isdecimal()):
            raise ConfigError(key, source, f'{text!r} is no port', 'give a number, 0 for any')
        return int(text)
    if key == 'discovery':
        if text not in ('true', 'false'):
            raise ConfigError(key, source, f'{text!r} is neither', 'give true or false')
        return text == 'true'
    return text


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read(path).decode())
    except FileNotFoundError:
        return {}
    except ValueError as error:  # TOML and UTF-8
        raise ConfigError('config.toml', str(path), str(error), 'correct it there') from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(_read(path))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(path.name, str(path), str(error), 'remove it') from None
    if not isinstance(stored, dict) or stored.pop('v', None) != 1:
        raise ConfigError(
            path.name, str(path), 'it is of another version of degu', 'install that, or remove it'
        )
    return stored


def _read(path: Path) -> bytes:
    with path.open('rb') as file:
        content = file.read(MAX_CONFIG_SIZE + 1)
    if len(content) > MAX_CONFIG_SIZE:
        raise ConfigError(
            path.name, str(path), f'it is larger than {MAX_CONFIG_SIZE} bytes', 'make it smaller'
        )
    return content


def _check_own_name(name: str) -> str:
    """Return a name with which every command can mean this machine. Raises ValueError."""
    if name == '.' or name.startswith('-') or not {'/', ':'}.isdisjoint(name):
        raise ValueError(
            f'commands take {name!r} for something else; choose a name without / and :, which does '
            'not begin with - and is not a dot alone'
        )
    return check_new_name(name)


def _find_downloads() -> str:
    import platformdirs  # only who needs it pays for it

    return str(platformdirs.user_downloads_path())


def _find_host_name() -> str:
    name = socket.gethostname().partition('.')[0]
    try:
        return _check_own_name(name)
    except ValueError:
        return 'machine'
