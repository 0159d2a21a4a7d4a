"""`degu doctor`: looks for what keeps this device from its work."""

from __future__ import annotations

import click

from degu_rpc.cli.exits import Exit, format_exits
from degu_rpc.cli.failures import Failure
from degu_rpc.cli.session import Command, Session, Styled
from degu_rpc.node.limits import EXAMINE_S

_COLOURS = {'ok': 'green', 'warning': 'yellow', 'fault': 'red'}


@click.command(cls=Command, epilog=format_exits(Exit.DONE, Exit.FAILED, Exit.USAGE))
def doctor(session: Session) -> None:
    """Look for what is wrong with this device, and say what to do about it.

    It looks at the home, the identity, the clock, the node, its port, the network, and at each
    machine that is paired. It changes nothing. A warning may be meant so; a fault is not.
    """
    from degu_rpc.node.doctor import Level, examine

    findings = examine(session.home, session.timeout_s or EXAMINE_S)
    for finding in findings:
        session.emit('finding', finding)
        level = finding.level.value
        session.say(Styled(f'{level:8}', _COLOURS[level]), f'{finding.check}: {finding.words}')
        if finding.remedy:
            session.say(f'        {finding.remedy}')
    faults = [finding.check for finding in findings if finding.level is Level.FAULT]
    if faults:
        raise Failure(Exit.FAILED, f'at fault: {", ".join(dict.fromkeys(faults))}')
