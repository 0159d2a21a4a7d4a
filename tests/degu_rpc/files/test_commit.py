"""degu_rpc.files.commit: I1 to I3, at every moment, whatever the file system can do."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from degu_rpc.errors import BlockedError
from degu_rpc.files import commit, temporaries
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.commit import Committed, Replacement, Symlink, Workspace
from degu_rpc.files.content import signature_of
from degu_rpc.files.limits import EXCHANGE_ATTEMPTS
from degu_rpc.files.paths import Root

DAY_NS = 1_700_000_000 * 10**9  # 2023-11-14
MTIME_NS = 1_600_000_000_123_456_789
CREATED = Committed(replaced=False)
REPLACED = Committed(replaced=True)


@pytest.fixture
def top(tmp_path):
    directory = tmp_path / 'top'
    directory.mkdir()
    return directory


@pytest.fixture
def workspace(top):
    with Root(top) as root, Workspace(root, 'studio') as workspace:
        yield workspace


def stage(workspace, path, content, *, mode=0o640, expected=None):
    temporary = workspace.temporaries.open(build_manifest(content).root)
    os.pwrite(temporary.fd, content, 0)
    return Replacement(temporary, path, len(content), mode, MTIME_NS, expected)


def seen_at(path):
    return signature_of(path.lstat())


def in_private(top, name):
    return sorted(os.listdir(top / '.degu' / name))


def test_a_free_name_is_created_with_mode_and_time(top, workspace):
    assert workspace.commit([stage(workspace, (b'f',), b'new')]) == [CREATED]
    found = (top / 'f').stat()
    assert (top / 'f').read_bytes() == b'new'
    assert found.st_mode & 0o7777 == 0o640
    assert found.st_mtime_ns == MTIME_NS
    assert in_private(top, 'tmp') == in_private(top, 'trash') == []


def test_temporary_files_and_our_directories_are_private(top, workspace):
    old = os.umask(0)
    try:
        temporary = workspace.temporaries.open('a')
    finally:
        os.umask(old)
    assert os.fstat(temporary.fd).st_mode & 0o777 == 0o600
    os.close(temporary.fd)
    assert (top / '.degu').stat().st_mode & 0o777 == 0o700
    assert (top / '.degu' / 'tmp').stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize('name', ['.degu', '.degu/tmp', '.degu/trash'])
@pytest.mark.parametrize('mode', [0o720, 0o702])
def test_directories_that_others_may_write_to_are_not_used(top, name, mode):
    (top / name).mkdir(parents=True)
    (top / '.degu').chmod(0o700)
    (top / name).chmod(mode)
    with Root(top) as root, pytest.raises(BlockedError, match='nobody else may write') as caught:
        Workspace(root)
    assert caught.value.path == name
    (top / name).chmod(0o755)
    with Root(top) as root, Workspace(root):
        pass


@pytest.mark.parametrize('name', ['.degu', '.degu/tmp', '.degu/trash'])
def test_directories_of_another_user_are_not_used(top, name):
    if os.geteuid() != 0:
        pytest.skip('giving a directory away needs privileges')
    (top / name).mkdir(parents=True)
    (top / '.degu').chmod(0o700)
    os.chown(top / name, 12345, -1)
    with Root(top) as root, pytest.raises(BlockedError, match='belongs to user 12345') as caught:
        Workspace(root)
    assert caught.value.path == name


def test_a_peer_cannot_make_a_program_setuid(top, workspace):
    workspace.commit([stage(workspace, (b'f',), b'new', mode=0o6755)])
    assert (top / 'f').stat().st_mode & 0o7777 == 0o755


def test_i3_what_was_displaced_is_in_the_trash_under_its_path(top, workspace):
    (top / 'd').mkdir()
    (top / 'd' / 'f').write_bytes(b'old')
    expected = seen_at(top / 'd' / 'f')
    committed = workspace.commit([stage(workspace, (b'd', b'f'), b'new', expected=expected)])
    assert committed == [REPLACED]
    assert (top / 'd' / 'f').read_bytes() == b'new'
    (session,) = in_private(top, 'trash')
    assert (top / '.degu' / 'trash' / session / 'd' / 'f').read_bytes() == b'old'
    assert in_private(top, 'tmp') == []


@pytest.mark.parametrize('had_seen', [True, False])
def test_i4_what_nobody_had_seen_becomes_a_conflict_copy(top, workspace, trash, had_seen):
    (top / 'd').mkdir()
    path = top / 'd' / 'f.txt'
    expected = None
    if had_seen:
        path.write_bytes(b'seen')
        expected = seen_at(path)
    replacement = stage(workspace, (b'd', b'f.txt'), b'new', expected=expected)
    path.write_bytes(b'written since')
    os.utime(path, ns=(DAY_NS, DAY_NS))
    name = f'f (conflict 2023-11-14 studio {build_manifest(b"written since").root[:8]}).txt'
    assert workspace.commit([replacement]) == [Committed(True, (b'd', name.encode()))]
    assert path.read_bytes() == b'new'
    assert (top / 'd' / name).read_bytes() == b'written since'
    assert sorted(os.listdir(top / 'd')) == [name, 'f.txt']
    assert trash(top) == []


def test_i4_a_symlink_that_nobody_had_seen_becomes_a_conflict_copy(top, workspace):
    (top / 'f').symlink_to('somewhere')
    ((_, conflict, _),) = workspace.commit([stage(workspace, (b'f',), b'new')])
    assert os.readlink(os.fsencode(top) + b'/' + conflict[0]) == b'somewhere'
    assert (top / 'f').read_bytes() == b'new'


def test_the_same_content_makes_no_second_conflict_copy(top, workspace, trash):
    conflicts = set()
    for number in range(3):
        (top / 'f').write_bytes(b'mine')
        os.utime(top / 'f', ns=(DAY_NS, DAY_NS))
        ((_, conflict, _),) = workspace.commit([stage(workspace, (b'f',), b'new %d' % number)])
        conflicts.add(conflict)
    assert len(conflicts) == 1
    assert len(os.listdir(top)) == 3
    assert trash(top) == [b'mine', b'mine']


def test_unseen_content_that_equals_the_new_makes_no_conflict_copy(top, workspace, trash):
    (top / 'f').write_bytes(b'new')
    (top / 'link').symlink_to('target')
    link = Replacement(Symlink(b'target'), (b'link',), 0, 0, MTIME_NS, None)
    committed = workspace.commit([stage(workspace, (b'f',), b'new'), link])
    assert committed == [REPLACED, REPLACED]
    assert sorted(os.listdir(top)) == ['.degu', 'f', 'link']
    assert trash(top) == [b'new']


@pytest.mark.parametrize('had_seen', [True, False])
def test_i3_what_is_written_later_to_the_displaced_file_is_kept(top, workspace, trash, had_seen):
    (top / 'f').write_bytes(b'old')
    expected = seen_at(top / 'f') if had_seen else None
    with (top / 'f').open('ab', buffering=0) as file:
        ((_, conflict, _),) = workspace.commit(
            [stage(workspace, (b'f',), b'new', expected=expected)]
        )
        file.write(b' and more')
    assert (top / 'f').read_bytes() == b'new'
    if had_seen:
        assert conflict is None
        assert trash(top) == [b'old and more']
    else:
        assert (top / os.fsdecode(conflict[0])).read_bytes() == b'old and more'


def test_i4_a_file_that_is_being_written_becomes_a_conflict_copy_with_all_of_it(top, workspace):
    (top / 'f').write_bytes(bytes(8 * 1024 * 1024))
    written, done = threading.Event(), threading.Event()

    def write():
        with (top / 'f').open('ab', buffering=0) as file:
            while not done.is_set():
                file.write(b'x')
                written.set()
            file.write(b'the end')

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert written.wait(20)
        ((_, conflict, _),) = workspace.commit([stage(workspace, (b'f',), b'new')])
    finally:
        done.set()
        writer.join()
    assert (top / 'f').read_bytes() == b'new'
    assert (top / os.fsdecode(conflict[0])).read_bytes().endswith(b'the end')


def test_i3_the_trash_keeps_every_version(top, workspace, trash):
    for number in range(5):
        expected = seen_at(top / 'f') if number else None
        workspace.commit([stage(workspace, (b'f',), b'%d' % number, expected=expected)])
    assert (top / 'f').read_bytes() == b'4'
    assert trash(top) == [b'0', b'1', b'2', b'3']


@pytest.mark.parametrize('is_edited', [False, True])
def test_i4_metadata_is_set_only_for_what_was_seen(top, workspace, is_edited):
    (top / 'f').write_bytes(b'old')
    seen = seen_at(top / 'f')
    if is_edited:
        (top / 'f').write_bytes(b'new')
    before = (top / 'f').stat()
    workspace.set_file_metadata((b'f',), seen, 0o600, MTIME_NS)
    after = (top / 'f').stat()
    assert (after.st_mtime_ns == before.st_mtime_ns) == is_edited
    assert (stat.S_IMODE(after.st_mode), after.st_mtime_ns == MTIME_NS) == (
        (stat.S_IMODE(before.st_mode), False) if is_edited else (0o600, True)
    )


def test_i3_threads_that_commit_to_one_name_lose_no_version(top, workspace, trash):
    versions = [b'%d' % number for number in range(40)]
    (top / 'f').write_bytes(b'old')

    def commit(part):
        for version in part:
            # Two names: one is fought for, and each thread makes one of its own.
            mine = stage(workspace, (b'mine ' + version,), version)
            workspace.commit([stage(workspace, (b'f',), version), mine])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(commit, (versions[number::4] for number in range(4))))
    here = {path.read_bytes() for path in top.iterdir() if path.is_file()}
    assert here >= {b'old', *versions}
    kept = [path for path in top.iterdir() if path.name.startswith('f (conflict')]
    assert {path.read_bytes() for path in kept} | {(top / 'f').read_bytes()} == {b'old', *versions}
    assert in_private(top, 'tmp') == []


def test_a_symlink_replaces_and_is_replaced_and_never_followed(top, workspace, tmp_path, trash):
    outside = tmp_path / 'outside'
    outside.write_bytes(b'outside')
    link = Replacement(Symlink(os.fsencode(outside)), (b'f',), 0, 0, MTIME_NS, None)
    assert workspace.commit([link]) == [CREATED]
    assert (top / 'f').lstat().st_mtime_ns == MTIME_NS
    workspace.commit([stage(workspace, (b'f',), b'new')])
    assert not (top / 'f').is_symlink()
    workspace.commit([link._replace(expected=seen_at(top / 'f'))])
    assert os.readlink(top / 'f') == str(outside)
    assert outside.read_bytes() == b'outside'
    assert b'new' in trash(top)


def test_a_directory_in_the_way_is_left_alone(top, workspace):
    (top / 'f').mkdir()
    (top / 'f' / 'inner').write_bytes(b'mine')
    replacement = stage(workspace, (b'f',), b'new')
    with pytest.raises(BlockedError, match='a directory is there'):
        workspace.commit([replacement])
    assert (top / 'f' / 'inner').read_bytes() == b'mine'
    assert in_private(top, 'tmp') == [os.fsdecode(replacement.content.name)]


def test_i6_a_directory_that_became_a_symlink_is_not_followed(top, workspace, tmp_path):
    outside = tmp_path / 'outside'
    outside.mkdir()
    (top / 'd').symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        workspace.commit([stage(workspace, (b'd', b'f'), b'new')])
    assert os.listdir(outside) == []


def test_i2_a_name_is_never_absent_between_two_versions(top, workspace):
    (top / 'f').write_bytes(b'0')
    done = threading.Event()
    seen = set()

    def read():
        while not done.is_set():
            seen.add((top / 'f').read_bytes())  # FileNotFoundError would end the thread, and `seen`

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 300):
            expected = seen_at(top / 'f')
            workspace.commit([stage(workspace, (b'f',), b'%d' % number, expected=expected)])
            assert reader.is_alive()
    finally:
        done.set()
        reader.join()
    assert seen <= {b'%d' % number for number in range(300)}
    assert len(seen) > 1


def test_a_temporary_file_in_use_is_passed_over(top, workspace):
    first = workspace.temporaries.open('a')
    second = workspace.temporaries.open('a')
    assert (first.name, second.name) == (b'a', b'a.1')
    os.close(first.fd)
    third = workspace.temporaries.open('a')
    assert third.name == b'a'
    os.close(second.fd)
    os.close(third.fd)


def test_a_temporary_file_brings_back_what_an_earlier_run_left(top, workspace):
    temporary = workspace.temporaries.open('a')
    os.pwrite(temporary.fd, b'half', 0)
    os.close(temporary.fd)
    again = workspace.temporaries.open('a')
    assert os.pread(again.fd, 10, 0) == b'half'
    os.close(again.fd)


def test_a_temporary_file_is_opened_again_whatever_mode_a_killed_commit_gave_it(top, workspace):
    temporary = workspace.temporaries.open('a')
    os.pwrite(temporary.fd, b'half', 0)
    os.fchmod(temporary.fd, 0)
    os.close(temporary.fd)
    nobody = 65534
    root = os.geteuid() == 0
    if root:  # who may open anything
        for path in (top / '.degu' / 'tmp', top / '.degu' / 'tmp' / 'a'):
            os.chown(path, nobody, nobody)
        os.seteuid(nobody)
    try:
        again = workspace.temporaries.open('a')
    finally:
        if root:
            os.seteuid(0)
    assert os.pread(again.fd, 10, 0) == b'half'
    os.close(again.fd)


def test_a_temporary_file_that_is_not_needed_goes_with_its_note(top, workspace):
    temporary = workspace.temporaries.open('a' * 52)
    workspace.temporaries.write_note(temporary, b'note')
    workspace.temporaries.discard(temporary)
    assert in_private(top, 'tmp') == []


def test_temporary_files_that_rested_are_removed_unless_they_are_open(top, workspace):
    rested = workspace.temporaries.open('a' * 52)
    os.utime(rested.fd, ns=(1, 1))
    workspace.temporaries.write_note(rested, b'note')
    used = workspace.temporaries.open('b' * 52)
    os.close(rested.fd)
    workspace.temporaries.discard_rested(60)
    assert len(in_private(top, 'tmp')) == 3
    workspace.temporaries.discard_rested(-60)
    assert in_private(top, 'tmp') == ['b' * 52]
    os.close(used.fd)


@pytest.mark.parametrize('kind', ['file', 'directory', 'symlink'])
def test_what_is_not_to_be_replaced_stays(top, workspace, kind):
    if kind == 'file':
        (top / 'f').write_bytes(b'mine')
    elif kind == 'directory':
        (top / 'f').mkdir()
    else:
        (top / 'f').symlink_to('x')
    before = os.lstat(top / 'f')
    replacement = stage(workspace, (b'f',), b'theirs')._replace(replaces=False)
    link = Replacement(Symlink(b'y'), (b'f',), 0, 0, 5, None, replaces=False)
    assert workspace.commit([replacement, link]) == [Committed(replaced=False, is_taken=True)] * 2
    assert os.lstat(top / 'f') == before
    assert in_private(top, 'tmp') == [build_manifest(b'theirs').root]
    assert in_private(top, 'trash') == []


def test_recover_removes_only_what_no_later_run_can_use(top, workspace):
    tmp = top / '.degu' / 'tmp'
    (tmp / 'staged.1234').symlink_to('nowhere')
    (tmp / 'staged.abcd').mkdir()
    (tmp / 'staged.5678.1').write_bytes(b'')
    (tmp / 'a').write_bytes(b'half')
    (tmp / 'b').write_bytes(b'whole')
    os.link(tmp / 'b', top / 'b')
    for name in ('a.note', 'b.note', 'c.note', 'c.note.new'):
        (tmp / name).write_bytes(b'note')
    workspace.recover()
    assert in_private(top, 'tmp') == ['a', 'a.note']
    assert (top / 'b').read_bytes() == b'whole'


def test_a_temporary_file_that_has_reached_its_final_name_is_not_written_to(top, workspace):
    (top / '.degu' / 'tmp' / 'a').write_bytes(b'whole')
    os.link(top / '.degu' / 'tmp' / 'a', top / 'a')
    temporary = workspace.temporaries.open('a')
    assert temporary.name == b'a.1'
    os.close(temporary.fd)


# --- real processes under strace ----------------------------------------------------------------

SCRIPT = """
import os, sys
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.commit import Replacement, Symlink, Workspace
from degu_rpc.files.paths import Root

durable = sys.argv[2] == 'durable'
with Root(sys.argv[1]) as root, Workspace(root, 'studio', durable=durable) as workspace:
    batch = []
    for name in (b'old', b'new'):
        content = b'new content of ' + name
        temporary = workspace.temporaries.open(build_manifest(content).root)
        os.pwrite(temporary.fd, content, 0)
        batch.append(Replacement(temporary, (name,), len(content), 0o644, 10**18, None))
    batch.append(Replacement(Symlink(b'target'), (b'link',), 0, 0, 10**18, None))
    workspace.commit(batch)
"""
MUTATING = [
    'linkat',
    'renameat2',
    'symlinkat',
    'mkdirat',
    'fsync',
    'fchmod',
    'utimensat',
    'pwrite64',
]


@pytest.fixture
def run_under_strace(program, tmp_path):
    strace = program('strace')

    def run(top, *options, durable=True):
        log = tmp_path / 'strace.log'
        command = [strace, '-f', '--seccomp-bpf', '-o', str(log), *options]
        command += [sys.executable, '-B', '-c', SCRIPT, str(top)]
        command.append('durable' if durable else 'fast')
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done, log.read_text()

    return run


def test_i1_content_is_durable_before_a_name_changes(top, run_under_strace):
    (top / 'old').write_bytes(b'old content')
    done, log = run_under_strace(top, '-e', 'trace=fsync,renameat,renameat2', '-y')
    assert done.returncode == 0, done.stderr
    calls = re.findall(r'(fsync|renameat2?)\((.*)\) = 0', log)
    first_rename = next(index for index, (name, _) in enumerate(calls) if name != 'fsync')
    synced = [text for _, text in calls[:first_rename]]
    assert len([text for text in synced if '/.degu/tmp/' in text]) == 2
    assert calls[-1][0] == 'fsync', 'the directory is synced after its last change'
    assert re.search(r'/top>', calls[-1][1])


@pytest.mark.parametrize('can_exchange', [True, False])
def test_a_name_that_comes_and_goes_all_the_time_is_given_up(
    top, workspace, trash, monkeypatch, can_exchange
):
    """Somebody removes it before each exchange and makes it before each rename to a free name."""
    (top / 'f').write_bytes(b'mine')
    tries = []

    def go(really):
        def change(*names, **directories):
            tries.append(names)
            (top / 'f').unlink()
            really(*names, **directories)

        return change

    def come(source, name, target, new_name):
        if new_name == b'f':
            (top / 'f').write_bytes(b'mine')
        return rename_to_free(source, name, target, new_name)

    rename_to_free = commit.rename_to_free
    monkeypatch.setattr(commit, 'rename_to_free', come)
    monkeypatch.setattr(commit, 'can_exchange', lambda directory, name: can_exchange)
    if can_exchange:
        monkeypatch.setattr(commit, 'exchange', go(commit.exchange))
    else:
        monkeypatch.setattr(os, 'link', go(os.link))
    with pytest.raises(BlockedError, match='appears and vanishes'):
        workspace.commit([stage(workspace, (b'f',), b'new')])
    assert len(tries) == EXCHANGE_ATTEMPTS
    assert (top / 'f').read_bytes() == b'mine'
    assert len(in_private(top, 'tmp')) == 1
    assert trash(top) == []


SYNCS = 'fsync,fdatasync,sync,syncfs,sync_file_range,msync'


def test_a_workspace_that_is_not_durable_syncs_nothing_and_changes_names_alike(
    top, run_under_strace
):
    renames = {}
    for durable in (True, False):
        subprocess.run(['rm', '-rf', str(top)], check=True)
        top.mkdir()
        (top / 'old').write_bytes(b'old content')
        options = ('-e', f'trace={SYNCS},renameat,renameat2,linkat')
        done, log = run_under_strace(top, *options, durable=durable)
        assert done.returncode == 0, done.stderr
        assert (top / 'old').read_bytes() == b'new content of old'
        assert bool(re.search(rf'({SYNCS.replace(",", "|")})\(', log)) is durable
        renames[durable] = re.findall(r'(renameat2?|linkat)\(.*?(RENAME_\w+)?\) = (.*)', log)
    assert renames[True] == renames[False]
    assert ('renameat2', 'RENAME_EXCHANGE', '0') in renames[True]


@pytest.fixture
def kept(trash):
    """Return what is in the trash and in conflict copies."""

    def read(top):
        return trash(top) + [path.read_bytes() for path in top.glob('* (conflict *)')]

    return read


def kill_at_every(call, top, run_under_strace, kept, *options):
    """Kill at the k-th system call for every k; then recover, look, and finish."""
    for k in range(1, 100):
        subprocess.run(['rm', '-rf', str(top)], check=True)
        top.mkdir()
        (top / 'old').write_bytes(b'old content')
        done, _ = run_under_strace(top, *options, '-e', f'inject={call}:signal=KILL:when={k}')
        assert (top / 'old').read_bytes() in {b'old content', b'new content of old'}
        if (top / 'new').exists():
            assert (top / 'new').read_bytes() == b'new content of new'
        with Root(top) as root, Workspace(root) as workspace:
            workspace.recover()
        assert b'old content' in [(top / 'old').read_bytes(), *kept(top)]
        for name in in_private(top, 'tmp'):
            assert len(name) == 52
            assert (top / '.degu' / 'tmp' / name).stat().st_nlink == 1
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert k > 1
    assert (top / 'old').read_bytes() == b'new content of old'
    assert os.readlink(top / 'link') == 'target'
    assert [path.read_bytes() for path in top.glob('old (conflict *)')] == [b'old content']
    assert in_private(top, 'tmp') == []


@pytest.mark.parametrize('call', MUTATING)
def test_i1_to_i4_hold_when_killed_at_any_system_call(top, run_under_strace, kept, call):
    kill_at_every(call, top, run_under_strace, kept)


@pytest.mark.parametrize('call', ['renameat', 'linkat', 'unlinkat'])
def test_i1_to_i4_hold_when_killed_without_exchange(top, run_under_strace, kept, call):
    kill_at_every(call, top, run_under_strace, kept, '-e', 'inject=renameat2:error=EINVAL')


@pytest.mark.parametrize('error', ['EINVAL', 'ENOSYS'])
def test_a_file_system_without_exchange_gets_links_instead(top, run_under_strace, kept, error):
    (top / 'old').write_bytes(b'old content')
    done, log = run_under_strace(top, '-e', f'inject=renameat2:error={error}')
    assert done.returncode == 0, done.stderr
    assert 'INJECTED' in log
    assert (top / 'old').read_bytes() == b'new content of old'
    assert (top / 'new').read_bytes() == b'new content of new'
    assert os.readlink(top / 'link') == 'target'
    assert kept(top) == [b'old content']
    assert in_private(top, 'tmp') == []


def test_an_exchange_that_fails_leaves_the_old_and_keeps_the_new_for_later(top, run_under_strace):
    """The first renameat2 finds the name taken, the second tries whether names can be exchanged."""
    (top / 'old').write_bytes(b'old content')
    done, _ = run_under_strace(top, '-e', 'inject=renameat2:error=EPERM:when=3')
    assert done.returncode == 1
    assert 'Operation not permitted' in done.stderr
    assert (top / 'old').read_bytes() == b'old content'
    assert build_manifest(b'new content of old').root in in_private(top, 'tmp')


def test_an_fsync_that_fails_changes_no_name(top, run_under_strace):
    (top / 'old').write_bytes(b'old content')
    done, _ = run_under_strace(top, '-e', 'inject=fsync:error=EIO:when=1')
    assert done.returncode == 1
    assert 'Input/output error' in done.stderr
    assert (top / 'old').read_bytes() == b'old content'
    assert sorted(os.listdir(top)) == ['.degu', 'old']


def test_recover_removes_what_rested_too_long(top, workspace, monkeypatch):
    os.close(workspace.temporaries.open('a' * 52).fd)
    workspace.recover()
    assert in_private(top, 'tmp') == ['a' * 52]
    monkeypatch.setattr(commit, 'TEMPORARY_AGE_S', -60)
    workspace.recover()
    assert in_private(top, 'tmp') == []


@pytest.mark.parametrize('can_exchange', [True, False])
def test_a_new_directory_has_its_name_after_it_was_noted(top, workspace, monkeypatch, can_exchange):
    monkeypatch.setattr(Workspace, '_can_exchange', can_exchange)
    noted = []

    def note(found):
        assert (top / 'd').exists() != can_exchange
        noted.append(found.inode)

    assert workspace.make_new_directory((b'd',), note)
    found = (top / 'd').stat()
    assert ([found.st_ino], found.st_mode & 0o777) == (noted, 0o700)
    assert in_private(top, 'tmp') == []


@pytest.mark.parametrize('can_exchange', [True, False])
@pytest.mark.parametrize('kind', ['directory', 'file', 'symlink'])
def test_a_new_directory_never_replaces_anything(top, workspace, monkeypatch, can_exchange, kind):
    monkeypatch.setattr(Workspace, '_can_exchange', can_exchange)
    if kind == 'directory':
        (top / 'd').mkdir(mode=0o500)
    elif kind == 'file':
        (top / 'd').touch()
    else:
        (top / 'd').symlink_to('nowhere')
    before = os.lstat(top / 'd')
    assert not workspace.make_new_directory((b'd',), lambda _: None)
    assert os.lstat(top / 'd') == before
    assert in_private(top, 'tmp') == []


@pytest.mark.parametrize('can_exchange', [True, False])
def test_a_new_directory_that_cannot_be_noted_is_not_made(
    top, workspace, monkeypatch, can_exchange
):
    monkeypatch.setattr(Workspace, '_can_exchange', can_exchange)

    def fail(_):
        raise OSError(errno.ENOSPC, 'full')

    with pytest.raises(OSError, match='full'):
        workspace.make_new_directory((b'd',), fail)
    assert not (top / 'd').exists()
    assert in_private(top, 'tmp') == []


def test_recover_does_not_mind_what_another_process_has_committed_meanwhile(workspace, monkeypatch):
    names = [b'a' * 52, b'a' * 52 + b'.note', b'staged.1234']
    monkeypatch.setattr(temporaries, 'list_names', lambda _: names)
    workspace.recover()


def test_i1_a_directory_whose_fsync_failed_is_synced_by_who_tries_again(
    top, workspace, monkeypatch
):
    synced = []
    fsync = os.fsync

    def fail_once(fd):
        if os.path.samestat(os.fstat(fd), top.stat()):
            synced.append(fd)
            if len(synced) == 1:
                raise OSError(errno.EIO, 'the disk fails')
        fsync(fd)

    monkeypatch.setattr(os, 'fsync', fail_once)
    with pytest.raises(OSError, match='the disk fails'):
        workspace.commit([stage(workspace, 'a', b'content')])
    workspace.commit([])
    assert len(synced) == 2
