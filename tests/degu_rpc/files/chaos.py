"""A network that does what it can to a transfer, and does it again for the same seed.

1. A Relay listens, connects to the server for each connection that it accepts, and passes bytes on.
2. What goes wrong is decided before a connection begins, by a generator of the seed and the number
   of the connection: nothing, or a fault in one direction once so many bytes have passed.
3. Each connection has a thread. Pieces are cut at random, so that nothing depends on their borders.

`fill()` makes a random tree to transfer.

After a flip, a piece twice or two in the wrong order, all that comes is passed on as it is.

Tests are no package that could be imported: the fixture `chaos` is this module.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import os
import random
import select
import socket
import struct
import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

PIECES = [64 * 1024, 64 * 1024, 1000, 77]
"""How many bytes are taken at once."""
QUESTIONS = 2000
"""About how many bytes a client asks with over a connection, or an inbox answers with."""
BLOCK = 128 * 1024
OLD_NS = 1_500_000_000_987_654_321


def fill(source: Path, here: Path, chance: random.Random) -> dict[str, bytes]:
    """Make a random tree, and here an older state of it; return the old contents by their names.

    By one flipped bit a name becomes another one of the tree.
    """
    source.mkdir()
    here.mkdir()
    old = {}
    names = []
    for number in range(chance.randrange(1, 16)):
        directory = chance.choice(['', '', f'd{number}/', 'dir/deep/'])
        (source / directory).mkdir(parents=True, exist_ok=True)
        names.append(f'{directory}{number}')
    for name in names:
        path = source / name
        if chance.random() < 0.1:
            path.symlink_to(f'to-{name}')
            continue
        is_large = chance.random() < 0.4
        sizes = (BLOCK + 1, 5 * BLOCK) if is_large else (0, chance.choice([99, BLOCK]))
        content = chance.randbytes(chance.randint(*sizes))
        path.write_bytes(content)
        path.chmod(chance.choice([0o600, 0o644, 0o755]))
        if chance.random() < 0.4:
            old[name] = spoil(content, chance)
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_bytes(old[name])
    for path in [*source.rglob('*'), source]:
        os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    return old


def spoil(content: bytes, chance: random.Random) -> bytes:
    """Return an older version of a content: some of its blocks are others, or the last are not."""
    end = chance.choice([len(content), chance.randint(0, len(content))])
    blocks = [content[start : start + BLOCK] for start in range(0, end, BLOCK)]
    others = [block if chance.random() < 0.5 else chance.randbytes(len(block)) for block in blocks]
    return b''.join(others)


class Fault(enum.Enum):
    """What can happen to a direction of a connection."""

    NONE = 'none'
    DROP = 'drop'
    """The connection is reset."""
    CUT = 'cut'
    """The direction ends, as if the sender had closed it."""
    FLIP = 'flip'
    """One bit is another."""
    STALL = 'stall'
    """Nothing is passed on any more."""
    DUPLICATE = 'duplicate'
    """A piece comes twice."""
    REORDER = 'reorder'
    """A piece comes after the one that follows it."""


class Schedule(NamedTuple):
    """What happens to one connection: in which direction, after how many bytes."""

    fault: Fault
    is_down: bool
    after: int
    bit: int


def plan_connection(seed: object, number: int, reach: int, *, is_sent: bool = False) -> Schedule:
    """Decide what happens to connection `number`; the fault comes within `reach` bytes.

    What is transferred comes down, or goes up where it `is_sent`: most goes wrong there.
    """
    chance = random.Random(f'{seed}/{number}')
    # Much goes wrong early, where questions and listings are, and as much anywhere.
    after = chance.choice([int(reach ** chance.random()), chance.randrange(reach)])
    fault = chance.choice([*Fault])
    is_much = chance.random() < 0.9
    if number == 0 and chance.random() < 0.7:
        fault = Fault.NONE  # it brings the listing, without which there is no transfer
    if not is_much:
        after %= QUESTIONS
    return Schedule(fault, is_much != is_sent, after, chance.randrange(8))


class Relay:
    """The network before one server. Use it with `with`; `address` is where to connect to."""

    # Guarded by self._lock: _open, the sockets of connections that last.

    def __init__(
        self, target: tuple[str, int], seed: object, reach: int, *, is_sent: bool = False
    ) -> None:
        """Listen, and pass on to `target`. For the rest see `plan_connection()`."""
        self._is_sent = is_sent
        self._target = target
        self._seed = seed
        self._reach = reach
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Relay:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._listener:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._threads[0].join()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        for number in itertools.count():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {near, far}
            thread = threading.Thread(target=self._connect, args=(near, far, number))
            self._threads.append(thread)
            thread.start()

    def _connect(self, near: socket.socket, far: socket.socket, number: int) -> None:
        """Pass on what comes from either side to the other, until neither has more."""
        schedule = plan_connection(self._seed, number, self._reach, is_sent=self._is_sent)
        chance = random.Random(f'{self._seed}/{number}/pieces')
        directions = {
            near: Direction(far, None if schedule.is_down else schedule),
            far: Direction(near, schedule if schedule.is_down else None),
        }
        try:
            while directions:
                readable, _, _ = select.select([*directions], [], [])
                for source in readable:
                    piece = source.recv(chance.choice(PIECES))
                    if piece:
                        directions[source].take(piece)
                    else:
                        directions.pop(source).end()
        except DroppedError:
            for sock in (near, far):  # so that closing it resets the connection
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        except OSError:
            pass
        finally:
            with self._lock:
                for sock in (near, far):
                    self._open.discard(sock)
                    sock.close()


class DroppedError(Exception):
    """The connection is to be reset."""


class Direction:
    """One direction of a connection, and what is to happen to it."""

    def __init__(self, sink: socket.socket, schedule: Schedule | None) -> None:
        """Pass on to `sink`."""
        self._sink = sink
        self._schedule = schedule
        self._passed = 0
        self._held = b''
        self._is_lost = False

    def end(self) -> None:
        """The source has no more."""
        self._send(self._held)
        self._sink.shutdown(socket.SHUT_WR)

    def take(self, piece: bytes) -> None:
        """Pass on a piece, or do what is planned. Raises DroppedError, OSError."""
        start = self._passed
        self._passed += len(piece)
        if self._schedule is not None and start <= self._schedule.after < self._passed:
            self._disturb(piece, self._schedule.after - start, self._schedule)
        else:
            self._send(piece)
            self._send(self._held)
            self._held = b''

    def _disturb(self, piece: bytes, at: int, schedule: Schedule) -> None:
        fault = schedule.fault
        if fault is Fault.FLIP:
            self._send(piece[:at] + bytes([piece[at] ^ 1 << schedule.bit]) + piece[at + 1 :])
        elif fault is Fault.REORDER:
            self._held = piece
        elif fault is Fault.DUPLICATE:
            self._send(piece + piece)
        elif fault is Fault.NONE:
            self._send(piece)
        else:
            self._send(piece[:at])
            self._is_lost = True
            if fault is Fault.CUT:
                self._sink.shutdown(socket.SHUT_WR)
            elif fault is Fault.DROP:
                raise DroppedError

    def _send(self, piece: bytes) -> None:
        if piece and not self._is_lost:
            self._sink.sendall(piece)
