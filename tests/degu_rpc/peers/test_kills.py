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
from typing import TYPE_CHECKING, NamedTuple

import pytest

from degu import durable, pki
from degu_rpc.peers import Identity, TrustStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
    store.add(other.user_cert, 'Bob', {'peer'}, 'test', NOW)
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
    return other.user_id in TrustStore(Identity.open(home)).read()


def _is_denied(home: Path, other: Identity) -> bool:
    users = TrustStore(Identity.open(home)).read()
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
        _create, STORE + 'store.add(other.user_cert, "Bob", {"peer"}, "test", now)\n', _is_trusted
    ),
    'remove': Change(
        _add,
        STORE + 'store.remove(other.user_id, now)\n',
        lambda home, other: not _is_trusted(home, other),
    ),
    'revive': Change(
        _remove,
        STORE + 'store.add(other.user_cert, "Bob", {"peer"}, "test", now, revive=True)\n',
        _is_trusted,
    ),
    'deny': Change(_add, STORE + 'store.deny(other.user_id, other.machine_id)\n', _is_denied),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', CHANGES)
def test_a_kill_at_any_moment_leaves_the_old_state_or_the_new(
    tmp_path: Path, bob: Identity, require_program: Callable[[str], str], name: str
) -> None:
    strace = require_program('strace')
    change = CHANGES[name]
    exported = tmp_path / 'exported'
    if name == 'import':
        exported.write_bytes(bob.export_user('correct horse battery'))

    def run(home: Path, *options: str) -> int:
        command = [sys.executable, '-B', '-c', PRELUDE + change.code, home, bob.directory, exported]
        done = subprocess.run(
            [
                strace,
                '-f',
                '-qq',
                '-o',
                f'{home}.log',
                '-e',
                f'trace={CHANGING}',
                *options,
                *command,
            ],
            timeout=60,
            umask=0,
            check=False,
            stderr=subprocess.PIPE,
        )
        assert done.returncode in (0, KILLED, -9), done.stderr.decode()
        return done.returncode

    def kill_at(call: str, count: int) -> bool:
        home = tmp_path / f'{call}-{count}'
        change.prepare(home, bob)
        assert run(home, f'--inject={call}:signal=SIGKILL:when={count}') != 0
        is_new = change.look(home, bob)
        if home.exists():
            assert not [path for path in home.rglob('*') if is_open_to_others(path)]
        if change.again and not is_new:
            assert run(home) == 0
            assert change.look(home, bob)
            assert not [path for path in home.rglob('*') if durable.is_temporary(path.name)]
        return is_new

    change.prepare(tmp_path / 'before', bob)
    assert not change.look(tmp_path / 'before', bob)
    home = tmp_path / 'whole'
    change.prepare(home, bob)
    assert run(home) == 0
    assert change.look(home, bob)
    calls = re.findall(r'^\d+ +(\w+)\(', (tmp_path / 'whole.log').read_text(), re.MULTILINE)
    assert len(calls) >= 4
    counts = [calls[: i + 1].count(call) for i, call in enumerate(calls)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(kill_at, calls, counts))
    # It changes once, and what a caller was told to be done was durable by then.
    assert found == sorted(found)
    assert set(found) == {False, True}


def is_open_to_others(path: Path) -> bool:
    return bool(stat.S_IMODE(path.lstat().st_mode) & 0o077)
