"""Make each fallible system call of the server and of the client fail once, in turn.

    python tests/torture/torture.py [--sample] [--kind unix|tcp|tls] [--side server|client]

1. The scenario (scenario.py) runs once for each thread that makes calls: the server's accept loop,
   the thread of each connection, the client. It pauses before its first call, strace attaches to it
   alone, and records what it calls from there on.
2. Of the record, each call that can fail makes a case with each errno that it can really give:
   (thread, call, errno, N). The scenario runs again, and strace makes the N-th such call of that
   thread fail, in the kernel: `--inject=CALL:error=ERRNO:when=N`.
3. After each run everything below "what must hold" is looked at.

A call that is in neither table, ERRNOS or INFALLIBLE, ends the run: somebody must say which it is.
`--sample` takes the first call of each name, with the first of its errnos, in the accept loop, in
one connection and in the client. Faults are printed as they are found, a table at the end; the exit
status is 1 if there was a fault.

Needs strace, and the right to trace one's own processes.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import re
import select
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import scenario
from scenario import BIG, CONVERSATIONS, DEADLINE_S, ReportPipe

from degu import IPv4_LOOPBACK
from degu.misc import TempPKI
from degu.tls import build_client_sslctx, build_server_sslctx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS = ('unix', 'tcp', 'tls')
FAULT = 'FAULT'
OUTCOMES = ('went on', 'one conversation failed', 'no start', 'not reached', FAULT)
SIDES = ('server', 'client')
# Errnos: from the call's manual page, those that the running kernel can give for such a descriptor.
_RECEIVE = ('ENOMEM', 'ECONNRESET', 'ETIMEDOUT', 'EAGAIN', 'EINTR')
_SEND = ('ENOBUFS', 'ENOMEM', 'EPERM', 'ECONNRESET', 'EPIPE', 'ETIMEDOUT', 'EAGAIN', 'EINTR')
_NO_DESCRIPTOR = ('EMFILE', 'ENFILE', 'ENOMEM')
ERRNOS = {
    'socket': (*_NO_DESCRIPTOR, 'ENOBUFS', 'EACCES'),
    'socketpair': _NO_DESCRIPTOR,
    'bind': ('EADDRINUSE', 'EACCES', 'ENOMEM'),
    'listen': ('EADDRINUSE',),
    'accept4': (*_NO_DESCRIPTOR, 'ENOBUFS', 'ECONNABORTED', 'EPERM', 'EPROTO', 'EINTR', 'EAGAIN'),
    'connect': ('ECONNREFUSED', 'ETIMEDOUT', 'EAGAIN', 'EACCES', 'EPERM', 'ENOMEM'),
    'setsockopt': ('ENOMEM', 'ENOBUFS'),
    'getsockopt': ('ENOMEM', 'ENOBUFS'),
    'getsockname': ('ENOBUFS',),
    'getpeername': ('ENOTCONN', 'ENOBUFS'),
    'recvfrom': _RECEIVE,
    'read': _RECEIVE,
    'sendto': _SEND,
    'write': _SEND,
    'sendfile': ('EIO', *_SEND),
    'shutdown': ('ENOTCONN', 'ENOBUFS'),
    'close': ('EINTR', 'EIO'),
    'poll': ('ENOMEM', 'EINTR'),
    'clone': ('EAGAIN', 'ENOMEM', 'EPERM'),
    'clone3': ('EAGAIN', 'ENOMEM', 'EPERM'),
    'mmap': ('ENOMEM', 'EAGAIN'),
    'mprotect': ('ENOMEM',),
    'mremap': ('ENOMEM',),
    'unlink': ('EACCES', 'EROFS', 'EIO'),
    'newfstatat': ('ENOMEM', 'EACCES', 'EIO'),
    'openat': (*_NO_DESCRIPTOR, 'EACCES'),
}
INFALLIBLE = {
    'futex': 'locks: an error would be a bug of the C library',
    'rt_sigprocmask': 'the mask of this thread',
    'rt_sigaction': 'handlers of this process',
    'rt_sigreturn': 'the end of a handler',
    'rt_sigtimedwait': 'where the scenario pauses',
    'writev': 'how the scenario reports',
    'ioctl': 'FIONBIO and FIOCLEX on a descriptor of our own',
    'fcntl': 'flags of a descriptor of our own',
    'lseek': 'in a regular file',
    'brk': 'its error is no errno but the end of memory that did not move',
    'munmap': 'memory of our own',
    'madvise': 'advice',
    'sched_yield': 'nothing to fail',
    'gettid': 'a number',
    'getpid': 'a number',
    'getrandom': 'OpenSSL has other sources',
    'exit': 'the end of the thread',
}
PYTHON_REPORTS = {
    # SSLSocket's constructor leaves a socket that it cannot use to the garbage collector.
    r'getpeername\(': 'unclosed <ssl.SSLSocket',
    # The byte that a signal writes to the accept loop; its handler sends another one.
    r'write\(\d+, "\\17", 1\)': 'unraisable: ',
}
"""What Python itself reports of calls of its own, where nothing is lost."""
CALL = re.compile(r'(\w+)\(')
FILE_READ = rf'read\(.*, {len(BIG)}\) '
"""The file that is sent, in one piece where the kernel does not send it."""
EXCEPTIONS = {
    FILE_READ: ('EIO', 'EINTR'),
    # A descriptor that is open can be looked at.
    r'newfstatat\(\d+, "",': (),
}
"""Calls that cannot fail as others of their name do."""


class Thread(NamedTuple):
    """Whose calls are meant: the accept loop is 0 of the server, its N-th connection N."""

    side: str
    number: int

    def __str__(self) -> str:
        if self.side == 'client':
            return 'client'
        return f'server, {f"connection {self.number}" if self.number else "accept loop"}'


class Injection(NamedTuple):
    call: str
    errno: str
    when: int

    def __str__(self) -> str:
        return f'{self.call} {self.when} {self.errno}'


class Parts(NamedTuple):
    """What all runs share."""

    directory: Path
    content: Path
    server_sslctx: ssl.SSLContext
    client_sslctx: ssl.SSLContext


@contextlib.contextmanager
def make_parts() -> Iterator[Parts]:
    with tempfile.TemporaryDirectory(prefix='degu-torture-') as name, TempPKI() as pki:
        content = Path(name) / 'content'
        content.write_bytes(BIG)
        yield Parts(
            Path(name),
            content,
            build_server_sslctx(pki.get_server_config()),
            build_client_sslctx(pki.get_client_config()),
        )


# --- one run -------------------------------------------------------------------------------------


class BrokenError(Exception):
    """A run did not come to its end."""


class Run:
    """One run of the scenario: its processes, and what they reported."""

    def __init__(
        self, parts: Parts, kind: str, thread: Thread, injection: Injection | None
    ) -> None:
        self.reports: dict[str, Any] = {}
        self.faults: list[str] = []
        self.calls: list[str] = []
        """What strace wrote, a line for each call."""
        self._parts = parts
        self._kind = kind
        self._thread = thread
        self._injection = injection
        self._socket = parts.directory / 'socket'
        self._log = parts.directory / 'strace'
        self._pids: set[int] = set()
        self._strace: subprocess.Popen[str] | None = None
        self._pipe = ReportPipe()
        self._text = b''
        self._deadline = time.monotonic() + DEADLINE_S + 3
        try:
            self._play()
        except BrokenError as error:
            self.faults.append(str(error))
        finally:
            self._end()

    def _play(self) -> None:
        server_sslctx = client_sslctx = None
        if self._kind == 'tls':
            server_sslctx, client_sslctx = self._parts.server_sslctx, self._parts.client_sslctx
        address = str(self._socket) if self._kind == 'unix' else IPv4_LOOPBACK
        content = self._parts.content
        number = self._thread.number if self._thread.side == 'server' else None
        server = self._fork(scenario.serve, server_sslctx, address, content, number)
        self._wait_for('address', 'server')
        if 'server' not in self.reports:
            address = self.reports['address']
            if not isinstance(address, str):
                address = tuple(address)
            is_client = self._thread.side == 'client'
            self._fork(scenario.talk, client_sslctx, address, content, is_client)
            self._wait_for('client')
            self._fork(scenario.look_after, client_sslctx, address, content)
            self._wait_for('honest')
            os.kill(server, signal.SIGTERM)
            self._wait_for('server')
        while self._pids:
            self._reap()
            time.sleep(0.001)
        if self._strace is not None:
            self._strace.wait(self._deadline - time.monotonic())

    def _fork(self, function: Callable[..., None], *args: Any) -> int:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                function(self._pipe, *args)
                code = 0
            except BaseException:  # noqa: BLE001  # whatever it is, this process must end here
                traceback.print_exc()
            finally:
                os._exit(code)
        self._pids.add(pid)
        return pid

    def _wait_for(self, *kinds: str) -> None:
        """Read reports until one of these kinds came; attach to a thread that pauses."""
        while True:
            while b'\n' not in self._text:
                if not select.select([self._pipe.read_end], [], [], 0.1)[0]:
                    self._reap()
                else:
                    self._text += os.read(self._pipe.read_end, 65536)
            line, _, self._text = self._text.partition(b'\n')
            kind, value = json.loads(line)
            if kind == 'paused':
                self._trace(value)
                continue
            self.reports[kind] = value
            if kind in kinds:
                return

    def _trace(self, thread_id: int) -> None:
        """Begin to trace a thread that pauses, or end it, and let it go on."""
        if self._strace is None:
            self._attach(thread_id)
        else:
            self._strace.terminate()
            self._strace.wait()
        os.kill(thread_id, signal.SIGUSR1)

    def _attach(self, thread_id: int) -> None:
        command = ['strace', '-p', str(thread_id), '-o', str(self._log)]
        if self._injection is not None:
            call, errno, when = self._injection
            command += ['-e', f'trace={call}', '-e', f'inject={call}:error={errno}:when={when}']
        self._strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._strace.stderr is not None
        if 'attached' not in self._strace.stderr.readline():
            raise BrokenError('strace could not attach')

    def _reap(self) -> None:
        """Collect who ended. Raises BrokenError for a bad end, or for none in time."""
        for pid in list(self._pids):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._pids.remove(pid)
                if status:
                    raise BrokenError(f'a process ended with {os.waitstatus_to_exitcode(status)}')
        if time.monotonic() > self._deadline:
            raise BrokenError('it hangs')

    def _end(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if self._strace is not None:
            with self._strace:  # it ends with the thread it traces
                pass
            self.calls = self._log.read_text().splitlines()
        self._pipe.close()
        self._check()
        for path in self._list_left():
            path.unlink()

    def _list_left(self) -> list[Path]:
        return sorted(set(self._parts.directory.iterdir()) - {self._parts.content, self._log})

    # --- what must hold --------------------------------------------------------------------------

    @property
    def injected(self) -> str | None:
        """The line of the call that was made to fail."""
        return next((line for line in self.calls if line.endswith('(INJECTED)')), None)

    @property
    def failed(self) -> dict[str, str]:
        """The conversations that failed, and with what."""
        return {
            name: error
            for side in ('client', 'honest')
            for name, error in self.reports.get(side, {}).get('failed', {}).items()
        }

    def _check(self) -> None:
        injected = self.injected or ''
        allowed = [report for call, report in PYTHON_REPORTS.items() if re.match(call, injected)]
        if match := re.match(r'close\((\d+)', injected):
            # The kernel was not asked to close it.
            allowed.append(f'leaks descriptor {match[1]}')
        for side, report in self.reports.items():
            if side == 'address':
                continue
            self.faults += [f'wrong data, {side}: {each}' for each in report['wrong']]
            for each in (*report['faults'], *(f'leaks {each}' for each in report.get('leaks', ()))):
                if not any(known in each for known in allowed):
                    self.faults.append(f'{side}: {each}')
        self._check_conversations()
        self._check_end(injected)

    def _check_conversations(self) -> None:
        """At most the one fails that the call belongs to, and after it a client is served."""
        if unserved := self.reports.get('honest', {}).get('unserved'):
            self.faults.append(f'an honest client was not served: {unserved}')
        allowed = 1 if self.injected else 0
        if self._thread.side == 'server' and self._thread.number:
            names = [function.__name__ for function in (*CONVERSATIONS, scenario.stay)]
            allowed = min(allowed, list(self.failed).count(names[self._thread.number - 1]))
        if len(self.failed) > allowed:
            self.faults.append(f'conversations failed: {self.failed}')

    def _check_end(self, injected: str) -> None:
        """The server logs no other error than the scenario's own, and leaves no file."""
        left = [path.name for path in self._list_left()]
        for each in self.reports.get('server', {}).get('log', ()):
            if 'cannot close the socket or remove its file' in each:
                if injected.startswith(('unlink', 'newfstatat')):
                    left = []  # it was not allowed to, and said so
                elif not injected.startswith('close'):
                    self.faults.append(f'logged: {each}')
            elif 'the body failed' in each and re.match(FILE_READ, injected):
                pass  # the application's own file, as its author should learn
            elif each.startswith('ERROR') and not each.endswith(' LookupError'):
                self.faults.append(f'logged: {each}')
        self.faults += [f'left behind: {name}' for name in left]

    @property
    def outcome(self) -> str:
        if self.faults:
            return FAULT
        if self._injection is not None and self.injected is None:
            return 'not reached'
        if 'refused' in self.reports.get('server', {}):
            return 'no start'
        if self.failed:
            return 'one conversation failed'
        return 'went on'


# --- all runs ------------------------------------------------------------------------------------


def record(parts: Parts, kind: str, thread: Thread) -> list[str]:
    """Return a thread's calls, a line for each, in a run without injection."""
    run = Run(parts, kind, thread, None)
    if run.faults:
        sys.exit(f'{kind}, {thread}: the run without injection failed: {run.faults}')
    calls = [line for line in run.calls if CALL.match(line)]
    unknown = [line for line in calls if name_of(line) not in {*ERRNOS, *INFALLIBLE}]
    if unknown:
        sys.exit(f'{kind}, {thread}: in neither table: {unknown}')
    return calls


def name_of(line: str) -> str:
    match = CALL.match(line)
    assert match is not None
    return match[1]


def plan_injections(calls: list[str], *, is_sample: bool) -> list[Injection]:
    counts: collections.Counter[str] = collections.Counter()
    injections = []
    for line in calls:
        call = name_of(line)
        counts[call] += 1
        errnos = next(
            (errnos for pattern, errnos in EXCEPTIONS.items() if re.match(pattern, line)),
            ERRNOS.get(call, ()),
        )
        injections += [Injection(call, errno, counts[call]) for errno in errnos]
    if is_sample:
        # Backwards, so that the first of each call is the one that stays.
        injections = list({each.call: each for each in reversed(injections)}.values())
    return injections


def list_threads(side: str, *, is_sample: bool) -> list[Thread]:
    if side == 'client':
        return [Thread('client', 0)]
    # Of the connections, a sample has the one that moves files.
    count = 3 if is_sample else len(CONVERSATIONS) + 2
    return [Thread('server', number) for number in range(count) if number != 1 or not is_sample]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--kind', choices=KINDS, help='only over this kind of socket')
    parser.add_argument('--side', choices=SIDES, help='only the calls of this side')
    parser.add_argument('--sample', action='store_true', help='only the first call of each name')
    options = parser.parse_args()
    if shutil.which('strace') is None:
        sys.exit('strace is not installed')
    started = time.monotonic()
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with make_parts() as parts:
        for kind in [options.kind] if options.kind else KINDS:
            for side in [options.side] if options.side else SIDES:
                for thread in list_threads(side, is_sample=options.sample):
                    calls = record(parts, kind, thread)
                    for injection in plan_injections(calls, is_sample=options.sample):
                        run = Run(parts, kind, thread, injection)
                        outcomes[injection.call][run.outcome] += 1
                        if run.faults:
                            print(f'{kind}, {thread}, {injection}: {run.injected}')
                            print(*(f'    {fault}' for fault in run.faults), sep='\n', flush=True)
    print_table(outcomes)
    print(f'{time.monotonic() - started:.0f} s')
    sys.exit(any(counts[FAULT] for counts in outcomes.values()))


def print_table(outcomes: dict[str, collections.Counter[str]]) -> None:
    total: collections.Counter[str] = collections.Counter()
    print(f'{"":12}{"all":>8}', *(f'{outcome:>{len(outcome) + 2}}' for outcome in OUTCOMES))
    for call, counts in [*sorted(outcomes.items()), ('all', total)]:
        numbers = (f'{counts[outcome]:>{len(outcome) + 2}}' for outcome in OUTCOMES)
        print(f'{call:12}{counts.total():>8}', *numbers)
        total += counts


if __name__ == '__main__':
    main()
