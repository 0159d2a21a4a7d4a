"""Run a transfer in a process of its own, and kill it when it is about to change something.

    python killing.py       reads orders from stdin and writes reports to stdout, JSON lines

1. This process imports what a transfer needs, once. For each order it forks a child that does it:
   its `role` is to fetch, to receive what others send, or to send.
2. The child has a seccomp filter: each system call that changes files, or of who sends each one
   that sends something, stops it and tells this process, its tracer. So calls are counted over all
   threads of the child together, in the order in which they come; strace, which counts for each
   thread and call alone, could not find them all.
3. At the k-th such call the child gets SIGKILL. The call does not happen.
4. The child reports what it hashed and how the transfer ended; a killed one reports nothing.

Who receives connects to `control`, sends its address there, a line of JSON, once it serves, and
ends when that connection does.

With `exchange` false, renameat2 fails with ENOSYS in the child, as where there is no such call.
A program for tests; it runs on Linux for x86-64 and arm64, and needs no privileges.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import socket
import struct
import sys
import traceback
from typing import Any

import work

from degu.client import Client
from degu.server import Server
from degu_rpc.files import Decision, Inbox, fetch, send

CALLS = {
    # name: the numbers on x86-64 and arm64, which lacks those without a directory, and the
    # arguments that say what is changed: f a descriptor, p a path, d a directory and a name in it
    'copy_file_range': (326, 285, '  f'),
    'fallocate': (285, 47, 'f'),
    'fchmod': (91, 52, 'f'),
    'fchmodat': (268, 53, 'd'),
    'fdatasync': (75, 83, 'f'),
    'fsetxattr': (190, 7, 'f'),
    'fsync': (74, 82, 'f'),
    'ftruncate': (77, 46, 'f'),
    'ioctl': (16, 29, 'f'),
    'linkat': (265, 37, 'd d'),
    'mkdir': (83, None, 'p'),
    'mkdirat': (258, 34, 'd'),
    'openat': (257, 56, 'd'),
    'pwrite64': (18, 68, 'f'),
    'pwritev': (296, 70, 'f'),
    'rename': (82, None, 'pp'),
    'renameat': (264, 38, 'd d'),
    'renameat2': (316, 276, 'd d'),
    'symlinkat': (266, 36, ' d'),
    'unlink': (87, None, 'p'),
    'unlinkat': (263, 35, 'd'),
    'utimensat': (280, 88, 'd'),
    'write': (1, 64, 'f'),
}
"""What changes files, of all that is there for that and may be used."""
MESSAGES = {'sendmsg': (46, 211, 'f'), 'sendto': (44, 206, 'f')}
"""What sends something."""
COLUMN = {'x86_64': 0, 'aarch64': 1}[platform.machine()]
NUMBERS = {
    row[COLUMN]: name for name, row in {**CALLS, **MESSAGES}.items() if row[COLUMN] is not None
}
FICLONE = 0x40049409

# Source: linux/filter.h, linux/seccomp.h, linux/prctl.h, linux/ptrace.h.
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, TRACE, FAIL = 0x7FFF0000, 0x7FF00000, 0x00050000
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38
PTRACE_TRACEME, PTRACE_CONT, PTRACE_SETOPTIONS, PTRACE_GET_SYSCALL_INFO = 0, 7, 0x4200, 0x420E
O_TRACECLONE, O_TRACESECCOMP, O_EXITKILL = 1 << 3, 1 << 7, 1 << 20
EVENT_SECCOMP = 7
WALL = 0x40000000
AT_FDCWD = -100
ENOSYS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Do what is ordered until there are no more orders."""
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Have one transfer done by a child, and return what is to be said of it."""
    ours, theirs = socket.socketpair()
    with ours:
        pid = os.fork()
        if pid == 0:
            ours.close()
            be_child(order, theirs)
        theirs.close()
        calls, status = trace(pid, order['kill_at'])
        with ours.makefile('rb') as file:
            report = file.read()
    return {'calls': calls, 'status': status, **json.loads(report or '{}')}


# --- the child ----------------------------------------------------------------------------------


def be_child(order: dict[str, Any], report_to: socket.socket) -> None:
    """Do the transfer, report, and end."""
    try:
        hashed: list[tuple[int, int]] = []
        work.prepare(setattr, order['connections'], hashed)
        _call(_libc.ptrace, PTRACE_TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        install_filter(order)
        report: dict[str, Any] = {'error': None}
        try:
            report |= {'fetch': do_fetch, 'receive': do_receive, 'send': do_send}[order['role']](
                order
            )
        except Exception as caught:  # noqa: BLE001  # the report says which
            report['error'] = ''.join(traceback.format_exception(caught))
        # Not written: that would be a call to be counted.
        report_to.sendall(json.dumps({**report, 'hashed': hashed}).encode())
        os._exit(0)
    except BaseException:  # noqa: BLE001  # a child never goes on as its parent
        traceback.print_exc()
    finally:
        os._exit(1)


def do_fetch(order: dict[str, Any]) -> dict[str, Any]:
    """Fetch."""
    client = Client((order['host'], order['port']), timeout_s=20)
    fetch(client, order['prefix'], '', order['here'])
    return {}


def do_send(order: dict[str, Any]) -> dict[str, Any]:
    """Send, and report how many bytes."""
    client = Client((order['host'], order['port']), timeout_s=20)
    result = send(client, order['prefix'], order['paths'])
    return {'bytes_sent': result.bytes_sent}


def do_receive(order: dict[str, Any]) -> dict[str, Any]:
    """Receive until told to end; report what came, and how often `received` was told."""
    told = []
    with (
        socket.create_connection(tuple(order['control'])) as control,
        Inbox(order['here'], lambda _: Decision.ACCEPT, received=lambda *_: told.append(1)) as app,
    ):
        recorder = work.InboxRecorder(app)
        with Server(('127.0.0.1', 0), work.WithRoles(recorder, 'peer')) as server:
            control.sendall(json.dumps([*server.address, recorder.prefix]).encode() + b'\n')
            control.recv(1)
    blocks_sent = [[*key, count] for key, count in recorder.blocks.items()]
    return {'blocks': blocks_sent, 'packed': recorder.packed, 'told': len(told)}


def install_filter(order: dict[str, Any]) -> None:
    """Have the tracer told of each call that is to be watched. Source: seccomp(2)."""
    watched = MESSAGES if order.get('watch') == 'messages' else CALLS
    steps = [(LOAD, 0, 0, 0)]  # the number of the call
    for number, name in NUMBERS.items():
        if name == 'renameat2' and not order['exchange']:
            steps += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, FAIL | ENOSYS)]
        elif name in watched:
            steps += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, TRACE)]
    steps.append((RETURN, 0, 0, ALLOW))
    code = b''.join(struct.pack('=HBBI', *step) for step in steps)
    kept = ctypes.create_string_buffer(code)
    program = struct.pack('@HP', len(steps), ctypes.addressof(kept))
    _call(_libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call(_libc.prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)


# --- the tracer ---------------------------------------------------------------------------------


def trace(pid: int, kill_at: int) -> tuple[list[list[str]], int]:
    """Let a child run, to its end or its k-th call; return its calls and its exit status.

    A call is its name and the paths of what it is to change.
    """
    os.waitpid(pid, WALL)
    _call(_libc.ptrace, PTRACE_SETOPTIONS, pid, 0, O_TRACECLONE | O_TRACESECCOMP | O_EXITKILL)
    _call(_libc.ptrace, PTRACE_CONT, pid, 0, 0)
    calls: list[list[str]] = []
    while True:
        tid, status = os.waitpid(-1, WALL)
        if not os.WIFSTOPPED(status):
            if tid == pid:  # the last of its threads
                return calls, os.waitstatus_to_exitcode(status)
            continue
        if status >> 16 == EVENT_SECCOMP and (call := find_call(tid)) is not None:
            calls.append(call)
            if len(calls) == kill_at:
                os.kill(pid, signal.SIGKILL)
                continue
        # A thread that was killed meanwhile cannot be told to go on.
        _libc.ptrace(PTRACE_CONT, tid, None, None)


def find_call(tid: int) -> list[str] | None:
    """Return what a thread is about to do, if it changes a file."""
    info = ctypes.create_string_buffer(128)
    if _libc.ptrace(PTRACE_GET_SYSCALL_INFO, tid, ctypes.c_size_t(len(info)), info) <= 0:
        return None  # it was killed meanwhile
    number, *arguments = struct.unpack_from('=7Q', info.raw, 24)
    name = NUMBERS[number]
    if name == 'openat' and not arguments[2] & os.O_CREAT:
        return None
    if name == 'ioctl' and arguments[1] != FICLONE:
        return None
    paths = [
        find_path(tid, form, *arguments[index : index + 2])
        for index, form in enumerate({**CALLS, **MESSAGES}[name][2])
        if form != ' '
    ]
    return [name, *paths]


def find_path(tid: int, form: str, first: int, second: int) -> str:
    """Return what path a thread means by an argument of a call, or by two."""
    if form == 'p':
        return read_text(tid, first)
    descriptor = ctypes.c_int(first).value
    link = 'cwd' if descriptor == AT_FDCWD else f'fd/{descriptor}'
    opened = os.readlink(f'/proc/{tid}/{link}')
    if form == 'f' or second == 0:  # futimens() is an utimensat() without a name
        return opened
    return os.path.join(opened, read_text(tid, second))


def read_text(tid: int, address: int) -> str:
    """Return the text at an address of a thread's memory."""
    with open(f'/proc/{tid}/mem', 'rb', buffering=0) as memory:
        memory.seek(address)
        return os.fsdecode(memory.read(4096).partition(b'\0')[0])


def _call(function: Any, *arguments: Any) -> None:
    plain = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    if function(*plain) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


if __name__ == '__main__':
    main()
