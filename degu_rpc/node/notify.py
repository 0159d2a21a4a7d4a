"""Telling whoever started this process how it is. Source: sd_notify(3).

systemd asks for it in a unit of `Type=notify`, and so does `degu up --bg`. There are no threads.
"""

from __future__ import annotations

import logging
import os
import socket

_VARIABLE = 'NOTIFY_SOCKET'

_log = logging.getLogger('degu_rpc.node')


def notify(*assignments: str) -> bool:
    """Send assignments such as `READY=1`; return whether somebody got them.

    Whoever asked may not listen any more: `degu up --bg` does so until the node is ready.
    """
    address = os.environ.get(_VARIABLE)
    if not address:
        return False
    if address.startswith('@'):
        address = '\0' + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(address)
            # Whoever does not read must not keep us waiting.
            sock.send('\n'.join(assignments).encode(), socket.MSG_DONTWAIT)
        except OSError as error:
            _log.debug('nobody was told %s: %s', assignments, error)
            return False
    return True
