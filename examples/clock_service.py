"""A service that programs of this machine call over a unix socket, started by hand or by systemd.

    python examples/clock_service.py /run/user/1000/clock.socket
    systemctl --user start clock.socket        # for yourself: clock.socket, clock.service
    systemctl start clock-system.socket        # for a group: clock-system.socket and .service

1. With a path it listens there: the file has mode 0600, and what a killed one left is replaced.
   Without a path it serves the socket that systemd opened for it.
2. The kernel says who calls. Whoever can connect may read `/now`; calls are for the user who runs
   the service, and with `--group` for the members of that group, who can connect then.
3. SIGTERM and SIGINT let running calls end.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from degu.net import inherited
from degu.server import Server
from degu_rpc import Context, Router, RpcApp, Service
from degu_rpc.peers import Authenticated
from degu_rpc.unix import listen_unix

if TYPE_CHECKING:
    from degu.rgi import Response


@dataclass(frozen=True)
class Time:
    """What the clock says, and to whom."""

    now: datetime
    caller: str


def build_app(group: str | None) -> Authenticated:
    """Build the application: calls under /rpc, and a page for curl under /now."""
    clock = Service('clock.v1.Clock')
    router = Router()
    router.mount('/rpc', RpcApp([clock]))
    lock = threading.Lock()
    counts: Counter[str] = Counter()

    @clock.method(allow='reader', safe=True)
    def tell(ctx: Context) -> Time:
        """Say what time it is."""
        with lock:
            counts[ctx.peer.name] += 1
        return Time(datetime.now(UTC), ctx.peer.name)

    @clock.method(allow='reader', safe=True)
    def count() -> dict[str, int]:
        """Say how often each caller was told the time."""
        with lock:
            return dict(counts)

    @router.get('/now')
    def now(connection: dict[str, Any], request: dict[str, Any]) -> Response:
        text = datetime.now(UTC).isoformat(timespec='seconds')
        return 200, 'OK', {'content-type': 'text/plain'}, f'{text}\n'.encode()

    return Authenticated(router, group_roles={} if group is None else {group: {'reader'}})


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description='Tell the time over a unix socket.')
    parser.add_argument('path', nargs='?', help='where to listen (default: as systemd says)')
    parser.add_argument('--group', help='whose members may call, too')
    arguments = parser.parse_args()
    path, group = arguments.path, arguments.group
    if path is None:
        address = inherited()
    else:
        mode = 0o600 if group is None else 0o660
        address = listen_unix(os.path.abspath(path), mode=mode, group=group)
    server = Server(address, build_app(group))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.shutdown())
    print(f'serving at {server.address!r}', flush=True)
    server.serve_forever()


if __name__ == '__main__':
    main()
