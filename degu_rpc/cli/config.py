"""`degu config`: the settings of this device, and where each came from. No node need run."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import click

from degu_rpc.cli.documents import Paths, StoredSetting
from degu_rpc.cli.exits import Exit, format_exits
from degu_rpc.cli.session import Command, Group, Session
from degu_rpc.node.config import KEYS, name_variable, read_settings, set_value, unset_value

if TYPE_CHECKING:
    from degu_rpc.node.config import Setting

_EXITS = format_exits(Exit.DONE, Exit.FAILED, Exit.USAGE)
_KEY = click.Choice(KEYS)


@click.group(cls=Group, epilog=_EXITS)
def config(**_shared: object) -> None:
    """Show the settings of this device, and store some.

    A setting counts from the flags of the command, the environment, what `degu config set` stored,
    and the file of `degu config path`, in this order.
    """


@config.command(cls=Command, epilog=_EXITS)
def path(session: Session) -> None:
    """Show where the files with settings are: the one you write, and the one `set` writes."""
    home = session.home
    session.emit('paths', Paths(str(home.config_path), str(home.settings_path)))
    session.say(f'{home.config_path}  yours, never written by degu')
    session.say(f'{home.settings_path}  what degu config set stored')


@config.command(cls=Command, epilog=_EXITS)
@click.argument('key', type=_KEY, required=False)
def get(session: Session, key: str | None) -> None:
    """Show each setting, or KEY, and where it came from."""
    found = read_settings(session.home, {})
    for each in KEYS if key is None else [key]:
        _show(session, found[each])


@config.command('set', cls=Command, epilog=_EXITS)
@click.argument('key', type=_KEY)
@click.argument('value')
def set_(session: Session, key: str, value: str) -> None:
    """Store VALUE for KEY; the items of a list have commas between them."""
    _check_home(session)
    _show(session, set_value(session.home, key, value))
    if name_variable(key) in os.environ:
        session.say(f'but {name_variable(key)} is set here and comes before it', err=True)
    _say_when_it_counts(session)


@config.command(cls=Command, epilog=_EXITS)
@click.argument('key', type=_KEY)
def unset(session: Session, key: str) -> None:
    """Remove what `set` stored for KEY, and show what counts by now."""
    _check_home(session)
    _show(session, unset_value(session.home, key))
    _say_when_it_counts(session)


def _check_home(session: Session) -> None:
    """Raise IdentityError for a home that this program may not change; there need be none yet."""
    with contextlib.suppress(FileNotFoundError):
        session.home.check()


def _show(session: Session, setting: Setting) -> None:
    import msgspec

    value = msgspec.to_builtins(setting.value)
    session.emit('setting', StoredSetting(setting.key, value, setting.source))
    session.say(f'{setting.key:10} {_format(value)}  ({setting.source})')


def _format(value: Any) -> str:
    """Write a value as `set` takes it; for what that does not take, as it is easiest to read."""
    if isinstance(value, dict) and 'accept' in value:
        return f'{value["path"]} (accept {_format(value["accept"])}, ask {_format(value["ask"])})'
    if isinstance(value, dict):
        shares = (f'{n}: {s["path"]} (for {", ".join(s["allow"])})' for n, s in value.items())
        return '; '.join(shares) or '-'
    if isinstance(value, list | tuple):
        return ','.join(value) or '-'
    if isinstance(value, bool):
        return 'true' if value else 'false'
    return '-' if value is None else str(value)


def _say_when_it_counts(session: Session) -> None:
    session.note('a node that runs takes it when it starts anew: degu down && degu up --bg')
