"""kill -9 at every system call that changes something: the old state or the new one is left.

Each change runs in a process of its own under strace, which kills it as it enters the N-th such
call, for all N. What is not looked at here is a file system that loses what was synced.
"""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from degu import durable, pki
from degu_rpc import PairingError, PairingWindow, Peering, pair
from degu_rpc.errors import PairingFault
from degu_rpc.peers import Identity, TrustStore, parse_code

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime.now(UTC)
CHANGING = ','.join(
    f'?{call}'
    for call in (
        *('mkdir', 'mkdirat', 'chmod', 'fchmod', 'fchmodat', 'chown', 'fchown', 'fchownat'),
        *('link', 'linkat', 'symlink', 'symlinkat', 'rename', 'renameat', 'renameat2'),
        *('unlink', 'unlinkat', 'rmdir', 'write', 'pwrite64', 'writev', 'truncate', 'ftruncate'),
        *('fsync', 'fdatasync', 'utimensat', 'flock'),
    )
)
# A process that opens a file anew enters one of these next, so that moment is looked at, too.
KILLED = 128 + 9
PRELUDE = (
    'import sys\n'
    'from datetime import UTC, datetime\n'
    'from pathlib import Path\n'
    'from degu import pki\n'
    'from degu_rpc.peers import Identity, TrustStore\n'
    'now = datetime.now(UTC)\n'
    'home, other = Path(sys.argv[1]), Identity.open(sys.argv[2])\n'
)
STORE = 'store = TrustStore(Identity.open(home))\n'


class Change(NamedTuple):
    """What is there before, what is done, and how far it is: False for old, True for new."""

    prepare: Callable[[Path, Identity], object]
    code: str
    look: Callable[[Path, Identity], bool]
    again: bool = True
    """Whether it can be done once more after a kill, whatever was left."""


def _create(home: Path, other: Identity) -> Identity:
    return Identity.create(home, NOW)


def _join(home: Path, other: Identity) -> None:
    key = pki.build_key()
    Identity.join(home, key, other.certify(key.public_key(), NOW), other.user_cert)


def _add(home: Path, other: Identity) -> TrustStore:
    store = TrustStore(_create(home, other))
    store.add(other.user_cert, 'Bob', {'peer'}, how='test', now=NOW)
    return store


def _remove(home: Path, other: Identity) -> None:
    _add(home, other).remove(other.user_id, NOW)


def _is_whole(home: Path, other: Identity) -> bool:
    try:
        Identity.open(home)
    except FileNotFoundError:
        return False
    return True


def _is_renewed(home: Path, other: Identity) -> bool:
    identity = Identity.open(home)
    return pki.parse_validity(identity.machine_cert).not_before.year == 2030


def _is_trusted(home: Path, other: Identity) -> bool:
    return other.user_id in TrustStore(Identity.open(home)).users()


def _is_denied(home: Path, other: Identity) -> bool:
    users = TrustStore(Identity.open(home)).users()
    return other.machine_id in users[other.user_id].denied


CHANGES = {
    'create': Change(lambda home, other: None, 'Identity.create(home, now)\n', _is_whole),
    'join': Change(
        lambda home, other: None,
        'key = pki.build_key()\n'
        'Identity.join(home, key, other.certify(key.public_key(), now), other.user_cert)\n',
        _is_whole,
    ),
    'discard': Change(
        _join,
        'Identity.open(home).discard()\n',
        lambda home, other: not _is_whole(home, other),
        again=False,  # what is left is nobody's
    ),
    'import': Change(
        _join,
        'exported = Path(sys.argv[3]).read_bytes()\n'
        'Identity.import_user(home, exported, "correct horse battery", now)\n',
        lambda home, other: Identity.open(home).can_certify,
    ),
    'renew': Change(
        _create, 'Identity.open(home).renew(now.replace(year=2030, month=6))\n', _is_renewed
    ),
    'rotate': Change(
        _create, 'Identity.open(home).rotate(now.replace(year=2030, month=6))\n', _is_renewed
    ),
    'add': Change(
        _create,
        STORE + 'store.add(other.user_cert, "Bob", {"peer"}, how="test", now=now)\n',
        _is_trusted,
    ),
    'remove': Change(
        _add,
        STORE + 'store.remove(other.user_id, now)\n',
        lambda home, other: not _is_trusted(home, other),
    ),
    'revive': Change(
        _remove,
        STORE + 'store.add(other.user_cert, "Bob", {"peer"}, how="test", now=now, revive=True)\n',
        _is_trusted,
    ),
    'deny': Change(_add, STORE + 'store.deny(other.user_id, other.machine_id)\n', _is_denied),
}


def build_command(home: Path, code: str, *arguments: object) -> list[str]:
    return [sys.executable, '-B', '-c', PRELUDE + code, str(home), *map(str, arguments)]


def build_options(home: Path, kill: str) -> list[str]:
    """Tell strace to kill where `kill` says, at CALL:COUNT, or to list where that can be."""
    options = ['-f', '-o', f'{home}.log', '-e', f'trace={CHANGING}']
    if kill:
        call, count = kill.split(':')
        options.append(f'--inject={call}:signal=SIGKILL:when={count}')
    return options


def run(strace: str, home: Path, code: str, *arguments: object, kill: str = '') -> None:
    done = subprocess.run(
        [strace, *build_options(home, kill), *build_command(home, code, *arguments)],
        timeout=60,
        umask=0,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode in ((KILLED, -9) if kill else (0,)), done.stderr


def list_kills(home: Path) -> list[str]:
    """Return where the thread that took the lock can be killed, in order: CALL:COUNT."""
    lines = re.findall(r'^(\d+) +(\w+)\(', Path(f'{home}.log').read_text(), re.MULTILINE)
    locking = next(thread for thread, call in lines if call == 'flock')
    calls = [call for thread, call in lines if thread == locking]
    assert len(calls) >= 4
    return [f'{call}:{calls[: i + 1].count(call)}' for i, call in enumerate(calls)]


@pytest.mark.slow
@pytest.mark.parametrize('name', CHANGES)
def test_a_kill_at_any_moment_leaves_the_old_state_or_the_new(
    tmp_path: Path, bob: Identity, require_program: Callable[[str], str], name: str
) -> None:
    strace = require_program('strace')
    change = CHANGES[name]
    arguments = [bob.directory]
    if name == 'import':
        arguments.append(tmp_path / 'exported')
        arguments[1].write_bytes(bob.export_user('correct horse battery'))

    def kill_at(kill: str) -> bool:
        home = tmp_path / kill
        change.prepare(home, bob)
        run(strace, home, change.code, *arguments, kill=kill)
        is_new = change.look(home, bob)
        assert not list_open_to_others(home)
        if change.again and not is_new:
            run(strace, home, change.code, *arguments)
            assert change.look(home, bob)
            assert not [path for path in home.rglob('*') if durable.is_temporary(path.name)]
        return is_new

    change.prepare(tmp_path / 'before', bob)
    assert not change.look(tmp_path / 'before', bob)
    home = tmp_path / 'whole'
    change.prepare(home, bob)
    run(strace, home, change.code, *arguments)
    assert change.look(home, bob)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(kill_at, list_kills(home)))
    # It changes once, and what a caller was told to be done was durable by then.
    assert found == sorted(found)
    assert set(found) == {False, True}


def list_open_to_others(home: Path) -> list[Path]:
    return [path for path in home.rglob('*') if stat.S_IMODE(path.lstat().st_mode) & 0o077]


# --- pairing: one side is killed, the other is not -----------------------------------------------

JOINER = (
    'from degu_rpc import Peering, pair\n'
    'identity = Identity.open(home)\n'
    'peering = Peering(identity, TrustStore(identity), "x", now)\n'
    'pair(("127.0.0.1", int(sys.argv[3])), "4HMA-SW9R", peering)\n'
)
WINDOW = (
    'from degu_rpc import PairingWindow, Peering\n'
    'from degu_rpc.peers import parse_code\n'
    'identity = Identity.open(home)\n'
    'peering = Peering(identity, TrustStore(identity), "x", now)\n'
    'with PairingWindow(peering, code=parse_code("4HMA-SW9R")) as window:\n'
    '    print(window.address[1], flush=True)\n'
    '    window.wait()\n'
)


class Clock:
    """Seconds that pass only while somebody waits."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.now_s += seconds


def build_peering(home: Path) -> Peering:
    identity = Identity.open(home)
    return Peering(identity, TrustStore(identity), 'x', NOW)


def trusts(home: Path, other: Path) -> bool:
    return Identity.open(other).user_id in TrustStore(Identity.open(home)).users()


def pair_with_killed_joiner(strace: str, joiner: Path, window: Path, kill: str) -> None:
    clock = Clock()
    with PairingWindow(build_peering(window), code=parse_code('4HMA-SW9R'), clock=clock) as opened:
        run(strace, joiner, JOINER, window, opened.address[1], kill=kill)
        clock.now_s += 1000


def pair_with_killed_window(strace: str, joiner: Path, window: Path, kill: str) -> None:
    # Traced from here on, the thread of the connection is the only one that changes anything.
    command = build_command(window, WINDOW, joiner)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, umask=0) as process:
        assert process.stdout is not None
        address = '127.0.0.1', int(process.stdout.readline())
        tracer = [strace, *build_options(window, kill), '-p', str(process.pid)]
        with subprocess.Popen(tracer, stderr=subprocess.PIPE, text=True) as tracing:
            assert tracing.stderr is not None
            while 'attached' not in tracing.stderr.readline():
                assert tracing.poll() is None
            clock = Clock()
            try:
                pair(address, '4HMA-SW9R', build_peering(joiner), clock=clock, pause=clock.pause)
            except PairingError:
                # Whatever went wrong, this side has stored nothing then.
                assert not trusts(joiner, window)
            tracing.stderr.read()
    assert process.returncode == (-9 if kill else 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    'pair_killed', [pair_with_killed_joiner, pair_with_killed_window], ids=['joiner', 'window']
)
def test_a_kill_while_pairing_leaves_on_each_side_what_it_was_or_the_other(
    tmp_path: Path, require_program: Callable[[str], str], pair_killed: Any
) -> None:
    strace = require_program('strace')
    is_joiner = pair_killed is pair_with_killed_joiner

    def prepare(name: str) -> tuple[Path, Path]:
        joiner, window = tmp_path / f'joiner {name}', tmp_path / f'window {name}'
        for home in (joiner, window):
            Identity.create(home, NOW)
        return joiner, window

    def kill_at(kill: str) -> tuple[bool, bool]:
        joiner, window = prepare(kill)
        pair_killed(strace, joiner, window, kill)
        found = trusts(joiner, window), trusts(window, joiner)
        for home in (joiner, window):
            assert not list_open_to_others(home)
        with PairingWindow(build_peering(window)) as opened:
            if found == (True, True):
                with pytest.raises(PairingError) as caught:
                    pair(opened.address, opened.code, build_peering(joiner))
                assert caught.value.reason is PairingFault.ALREADY_PAIRED
            else:
                pair(opened.address, opened.code, build_peering(joiner))
        assert trusts(joiner, window)
        assert trusts(window, joiner)
        return found

    joiner, window = prepare('whole')
    pair_killed(strace, joiner, window, '')
    assert trusts(joiner, window)
    assert trusts(window, joiner)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(kill_at, list_kills(joiner if is_joiner else window)))
    assert found[0] == (False, False)
    # The side that lives never has less than the side that was killed while it changed something.
    if is_joiner:
        assert (False, True) not in found
    else:
        assert (True, False) not in found
