"""A chat between paired machines: what is typed at one, the others read. Ctrl-D ends it.

    degu pair                     # once, while `degu up` runs on both machines
    degu down
    python examples/chat.py       # on both, in place of `degu up`

1. Each machine serves `chat.v1.Chat` on its node; `listen` is a stream of what is typed there.
2. Each listens to all machines it is paired with, whenever they are there, in a thread for each.
3. Who leaves ends the streams to the others, who see that.

`Room._changed` guards the lines; whoever listens waits for the next one.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from degu_rpc import Node, RpcError, Service
from degu_rpc.text import escape_controls

if TYPE_CHECKING:
    from degu_rpc import RpcClient

CHAT = 'chat.v1.Chat'
LOOK_S = 1.0
"""How often there is a sign of life, and somebody who was not there is looked for."""


@dataclass(frozen=True)
class Message:
    """A line that somebody typed, or a sign of life, which has none."""

    line: str | None


class Room:
    """What is typed here, for all who listen."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self.left = threading.Event()

    def say(self, line: str) -> None:
        """Give a line to all who listen."""
        with self._changed:
            self._lines.append(line)
            self._changed.notify_all()

    def leave(self) -> None:
        """End it for all who listen."""
        with self._changed:
            self.left.set()
            self._changed.notify_all()

    def listen(self) -> Iterator[str | None]:
        """Yield what is said from now on, until somebody leaves; None while nothing is said."""
        position = len(self._lines)
        new: list[str] = []
        while not self.left.is_set() or new:
            yield from new or (None,)
            position += len(new)
            with self._changed:
                if len(self._lines) == position and not self.left.is_set():
                    self._changed.wait(LOOK_S)
                new = self._lines[position:]


def build_chat(room: Room) -> Service:
    """Build the service."""
    chat = Service(CHAT)

    @chat.method(allow='peer')
    def listen() -> Iterator[Message]:
        """Give what is typed here from now on, and a sign of life while nothing is."""
        return map(Message, room.listen())

    return chat


def follow(room: Room, client: RpcClient, name: str) -> None:
    """Print what is typed at another machine, whenever it is there, until we leave."""
    while not room.left.is_set():
        is_here = False
        with (
            contextlib.suppress(RpcError),  # it is not there, or was cut off
            client.stream(CHAT, 'listen', {}, Message) as messages,
        ):
            for message in messages:
                if not is_here:
                    print(f'{name} is here')
                    is_here = True
                if message.line is not None:
                    print(f'{name}: {escape_controls(message.line)}')
                if room.left.is_set():
                    break
        if is_here and not room.left.is_set():
            print(f'{name} left')
        room.left.wait(LOOK_S)


def follow_all(room: Room, node: Node) -> None:
    """Follow each machine that this one is paired with, from when it is."""
    own_id = node.trust.identity.machine_id
    followed = {own_id}
    with contextlib.ExitStack() as stack:
        while not room.left.is_set():
            for user in node.trust.users().values():
                for machine_id, name in user.machines.items():
                    if machine_id not in followed:
                        followed.add(machine_id)
                        client = node.connect(machine_id)
                        thread = threading.Thread(target=follow, args=(room, client, name))
                        thread.start()
                        stack.callback(client.close)
                        stack.callback(thread.join)
            room.left.wait(LOOK_S)


def main() -> None:
    """Chat until Ctrl-D or Ctrl-C."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a text file
    room = Room()
    with Node(services=[build_chat(room)]) as node:
        follower = threading.Thread(target=follow_all, args=(room, node))
        follower.start()
        try:
            print('type; Ctrl-D ends it')
            with contextlib.suppress(KeyboardInterrupt):
                for line in sys.stdin:
                    room.say(line.rstrip('\n'))
        finally:
            room.leave()
            follower.join()


if __name__ == '__main__':
    main()
