"""`degu completion`: what makes a shell complete the words behind `degu`."""

from __future__ import annotations

import click

from degu_rpc.cli.documents import Script
from degu_rpc.cli.exits import Exit, format_exits
from degu_rpc.cli.session import Command, Session

_VARIABLE = '_DEGU_COMPLETE'


@click.command(cls=Command, epilog=format_exits(Exit.DONE, Exit.USAGE))
@click.argument('shell', type=click.Choice(['bash', 'zsh', 'fish']))
def completion(session: Session, shell: str) -> None:
    """Write a script for SHELL, by which it completes commands, flags, and names of machines.

    \b
    bash, in ~/.bashrc:     eval "$(degu completion bash)"
    zsh, in ~/.zshrc:       eval "$(degu completion zsh)"
    fish:                   degu completion fish > ~/.config/fish/completions/degu.fish
    """
    from click.shell_completion import get_completion_class

    from degu_rpc.cli import commands

    found = get_completion_class(shell)
    assert found is not None
    script = found(commands, {}, 'degu', _VARIABLE).source()
    session.emit('completion', Script(shell, script))
    if not session.is_json:
        click.echo(script)
