"""Several processes that accept on one listening socket: the way past one core.

1. `run()` forks the workers from the process that owns the socket, and starts another one where one
   ends by itself, at most once a second for each.
2. A worker serves until its lifeline ends: a pipe that only the parent holds open. So it ends with
   the parent, however that went.
3. `end()` tells the workers how long their requests may take, lets go of the lifelines, and kills
   what is left when the time is up.

A worker is a fork: it has a copy of all that the parent had, and none of its threads. So the parent
must have no other thread. (The child of such a fork could wait for ever for a lock that a thread
held which does not exist in it.)

A successor is another program that takes the listening socket over; see `start_successor()`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from degu.net import FIRST_INHERITED, HANDED_OVER, Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from degu.stop import Stop

log = logging.getLogger('degu.server')

_MIN_LIFE_S = 1.0
"""A worker that ends sooner is replaced only when this time is over."""
_GRACE_S = 2.0
"""What a worker may take to cut off its requests and go, beyond the time that they have."""


class _Worker(NamedTuple):
    pid: int
    pidfd: int
    lifeline: int
    """The writing end, which only the parent has."""
    started: float

    def close(self) -> None:
        os.close(self.pidfd)
        os.close(self.lifeline)


class Workers:
    """The worker processes of one server."""

    def __init__(
        self, count: int, prepare: Callable[[], None], serve: Callable[[int], None]
    ) -> None:
        """Plan `count` workers; each calls `prepare()` and `serve(lifeline)`, and then ends.

        Signals wait until prepare() has returned.
        """
        self._count = count
        self._prepare = prepare
        self._serve = serve
        self._running: dict[int, _Worker] = {}  # by pidfd

    def run(self, stop: Stop) -> None:
        """Keep the workers running until `stop` is requested.

        Raises RuntimeError if this process has other threads.
        """
        if threading.active_count() > 1:
            raise RuntimeError(
                'workers are forked: serve before this program starts any thread, or start the '
                'server in a process of its own with degu.start_server()'
            )
        poller = select.poll()
        stop.register(poller)
        not_before = monotonic()
        while not stop.requested:
            wait_s = None
            if len(self._running) < self._count:
                wait_s = max(not_before - monotonic(), 0.0)
                if not wait_s:
                    try:
                        poller.register(self._start(), select.POLLIN)
                    except OSError as error:
                        log.warning('cannot start a worker, trying again: %s', error)
                        not_before = monotonic() + _MIN_LIFE_S
                    continue
            try:
                events = poller.poll(None if wait_s is None else wait_s * 1000)
                stop.note(events)
            except OSError as error:
                log.warning('cannot wait for the workers, trying again: %s', error)
                sleep(_MIN_LIFE_S)
                continue
            for descriptor, _ in events:
                if descriptor in self._running:
                    poller.unregister(descriptor)
                    worker = self._running.pop(descriptor)
                    worker.close()
                    how = _collect(worker.pid)
                    log.error('worker %d ended (%s), starting another', worker.pid, how)
                    not_before = max(not_before, worker.started + _MIN_LIFE_S)

    def end(self, timeout_s: float) -> None:
        """End all workers; their requests have `timeout_s` to end."""
        for worker in self._running.values():
            try:
                os.write(worker.lifeline, str(timeout_s).encode())
            except BrokenPipeError:
                log.warning('worker %d ended before it was told to', worker.pid)
        deadline = Deadline(timeout_s + _GRACE_S)
        for worker in self._running.values():
            poller = select.poll()
            poller.register(worker.pidfd, select.POLLIN)
            if not poller.poll(deadline.remaining() * 1000):
                log.error('worker %d did not end at shutdown and is killed', worker.pid)
                with contextlib.suppress(ProcessLookupError):  # it ended just now
                    signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
            worker.close()
            _collect(worker.pid)
        self._running.clear()

    def _start(self) -> int:
        """Start a worker and return its pidfd."""
        _flush()  # what waits in a buffer would be written by both
        # A signal must not find a process that is half a worker, nor a worker that nobody knows.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            worker = self._fork(mask)
            self._running[worker.pidfd] = worker
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return worker.pidfd

    def _fork(self, mask: set[int]) -> _Worker:
        reader, writer = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(reader)
            os.close(writer)
            raise
        if not pid:
            self._run_worker(reader, writer, mask)
        os.close(reader)
        try:
            return _Worker(pid, os.pidfd_open(pid), writer, monotonic())
        except OSError:
            os.close(writer)
            os.kill(pid, signal.SIGKILL)
            _collect(pid)
            raise

    def _run_worker(self, lifeline: int, writer: int, mask: set[int]) -> NoReturn:
        code = 1
        try:
            try:
                # The parent decides when it ends; Ctrl-C reaches the whole process group.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.set_wakeup_fd(-1)
                os.close(writer)
                for worker in self._running.values():
                    worker.close()
                self._prepare()
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                self._serve(lifeline)
                code = 0
            except BaseException:  # the fork ends here, whatever happened
                log.exception('worker %d failed', os.getpid())
            _flush()
        finally:
            os._exit(code)


def _flush() -> None:
    """Write out what waits in a buffer, as far as there is where to."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):  # nobody could be told
                stream.flush()


def _collect(pid: int) -> str:
    """Collect a process that has ended, or is about to, and say how it went."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:  # where SIGCHLD is ignored the kernel did that
        return 'how is not known'
    code = os.waitstatus_to_exitcode(status)
    return f'exit code {code}' if code >= 0 else f'signal {-code}'


# LISTEN_PID must be the process's own id, which it has only once it is there.
_PASS_ON = f"""
import os, sys
descriptor, name, *command = sys.argv[1:]
if int(descriptor) != {FIRST_INHERITED}:
    os.dup2(int(descriptor), {FIRST_INHERITED})
    os.close(int(descriptor))
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES=name)
os.execvp(command[0], command)
"""


def start_successor(
    descriptor: int, command: Sequence[str], options: Mapping[str, Any], *, owns_file: bool
) -> subprocess.Popen[bytes]:
    """Start a program that inherits a listening socket; see `Server.start_successor()`."""
    name = HANDED_OVER if owns_file else ''
    return subprocess.Popen(  # noqa: S603  # the caller's own program
        [sys.executable, '-I', '-S', '-c', _PASS_ON, str(descriptor), name, *command],
        **{**options, 'pass_fds': [descriptor, *options.get('pass_fds', ())]},
    )
