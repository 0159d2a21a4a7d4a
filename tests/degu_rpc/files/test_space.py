"""degu_rpc.files.space: transfers that together do not fit are refused before they write."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading

import pytest

from degu_rpc.errors import BlockedError, NoSpaceError
from degu_rpc.files import space
from degu_rpc.files.commit import Workspace
from degu_rpc.files.limits import KEEP_FREE, KEEP_FREE_FRACTION, RESERVATION_STEP
from degu_rpc.files.paths import Root
from degu_rpc.files.space import Reservation

KIB = 1024
MIB = 1024 * KIB


@pytest.fixture
def begin(tiny):
    """Begin a transfer into a file system of 2 MiB; each has a workspace of its own."""
    with Root(tiny) as root, Workspace(root) as workspace:
        yield lambda: Reservation(root, workspace)


def room_of(directory):
    disk = os.statvfs(directory)
    size, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    return free - min(KEEP_FREE, size // KEEP_FREE_FRACTION)


def reserved(directory):
    return sorted(set(os.listdir(directory / '.degu' / 'reserved')) - {'lock'})


def test_all_that_is_free_less_what_is_kept_can_be_reserved(tiny, begin):
    with begin() as reservation:
        room = room_of(tiny)
        with pytest.raises(NoSpaceError) as caught:
            reservation.grow(room + 1)
        assert (caught.value.path, caught.value.needed) == (str(tiny), room + 1)
        assert caught.value.available == room
        reservation.grow(room)
        with pytest.raises(NoSpaceError) as caught:
            reservation.grow(1)
        assert caught.value.available == 0
        reservation.grow(0)


def test_two_that_together_do_not_fit_are_refused_and_a_refusal_changes_nothing(tiny, begin):
    with begin() as first:
        first.grow(MIB)
        with begin() as second:
            with pytest.raises(NoSpaceError) as caught:
                second.grow(MIB)
            assert caught.value.available == room_of(tiny) - MIB
            second.grow(caught.value.available)
        with begin() as third:
            third.grow(room_of(tiny) - MIB)
    assert reserved(tiny) == []


def test_two_directories_of_one_file_system_do_not_count_on_the_same_room(tiny, tmp_path, begin):
    below, elsewhere = tiny / 'below', tmp_path / 'elsewhere'
    for directory in (below, elsewhere):
        directory.mkdir()
    with contextlib.ExitStack() as stack:
        first, second, other = (
            stack.enter_context(Reservation(root, stack.enter_context(Workspace(root))))
            for root in (stack.enter_context(Root(top)) for top in (tiny, below, elsewhere))
        )
        other.grow(KIB)
        first.grow(MIB)
        with pytest.raises(NoSpaceError) as caught:
            second.grow(MIB)
        assert caught.value.available == room_of(tiny) - MIB
        first.shrink(MIB)
        second.grow(MIB)
    with begin() as reservation:
        reservation.grow(room_of(tiny))


def test_what_is_written_or_given_back_is_free_for_others(tiny, begin, monkeypatch):
    monkeypatch.setattr(space, 'RESERVATION_STEP', 64 * KIB)
    with begin() as first, begin() as second:
        first.grow(MIB)
        before = (tiny / '.degu' / 'reserved' / os.fsdecode(first._name)).read_bytes()
        first.shrink(63 * KIB)
        after = (tiny / '.degu' / 'reserved' / os.fsdecode(first._name)).read_bytes()
        assert before == after, 'what changed little is not written'
        first.shrink(MIB - 64 * KIB)
        second.grow(room_of(tiny) - KIB)
        with pytest.raises(NoSpaceError):
            second.grow(1)


def test_what_an_earlier_run_left_counts_as_available_and_once(tiny, begin):
    begin().close()
    (tiny / '.degu' / 'tmp' / 'a').write_bytes(bytes(512 * KIB))
    room = room_of(tiny)
    with begin() as first, begin() as second:
        first.grow(512 * KIB + room)
        with pytest.raises(NoSpaceError) as caught:
            second.grow(1)
        assert caught.value.available == 0


def test_where_contents_are_known_only_what_is_there_of_them_counts(tiny, begin):
    begin().close()
    for name in ('mine', 'other'):
        (tiny / '.degu' / 'tmp' / name).write_bytes(bytes(512 * KIB))
    room = room_of(tiny)
    with (
        Root(tiny) as root,
        Workspace(root) as workspace,
        Reservation(root, workspace, {b'mine'}) as reservation,
        pytest.raises(NoSpaceError) as caught,
    ):
        reservation.grow(2 * MIB)
    assert caught.value.available == room + 512 * KIB


def test_what_a_running_transfer_wrote_is_not_what_an_earlier_run_left(tiny, begin, monkeypatch):
    monkeypatch.setattr(space, 'RESERVATION_STEP', 1)
    with begin() as first:
        first.grow(MIB)
        (tiny / '.degu' / 'tmp' / 'a').write_bytes(bytes(512 * KIB))
        first.shrink(512 * KIB)
        with begin() as second, pytest.raises(NoSpaceError) as caught:
            second.grow(2 * MIB)
        assert caught.value.available == room_of(tiny) - 512 * KIB


SCRIPT = """
import sys
from degu_rpc.files.commit import Workspace
from degu_rpc.files.paths import Root
from degu_rpc.files.space import Reservation

with Root(sys.argv[1]) as root, Workspace(root) as workspace:
    with Reservation(root, workspace) as reservation:
        reservation.grow(int(sys.argv[2]))
        print('reserved', flush=True)
        sys.stdin.read()
"""


def test_a_process_counts_while_it_lives_and_no_longer(tiny, begin):
    command = [sys.executable, '-c', SCRIPT, str(tiny), str(MIB)]
    with (
        begin() as ours,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        try:
            assert process.stdout.readline() == b'reserved\n'
            with pytest.raises(NoSpaceError):
                ours.grow(MIB)
        finally:
            process.kill()
        process.wait()
        assert len(reserved(tiny)) == 2
        ours.grow(MIB)
        assert len(reserved(tiny)) == 1


def test_a_file_that_says_nothing_yet_reserves_nothing(tiny, begin):
    with begin(), begin() as second:
        second.grow(room_of(tiny))


def test_many_threads_use_one_reservation(tiny, begin, monkeypatch):
    monkeypatch.setattr(space, 'RESERVATION_STEP', KIB)
    with begin() as reservation:

        def work():
            for _ in range(100):
                reservation.grow(KIB)
                reservation.shrink(KIB)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert reservation._amount == (0, 800 * KIB)


def test_a_directory_that_others_may_write_to_is_not_used(tiny, begin):
    begin().close()
    (tiny / '.degu' / 'reserved').chmod(0o777)
    with pytest.raises(BlockedError, match='nobody else may write'):
        begin()


def test_a_step_is_small_beside_what_is_kept_free():
    assert RESERVATION_STEP * KEEP_FREE_FRACTION <= KEEP_FREE


@pytest.mark.parametrize('durable', [True, False])
def test_i1_what_a_killed_transfer_gave_names_is_synced_by_the_next(tmp_path, monkeypatch, durable):
    """It is taken to be here, and nothing else would sync it."""
    synced = []
    monkeypatch.setattr(space, 'sync_file_system', synced.append)
    with Root(tmp_path) as root, Workspace(root, durable=durable) as workspace:
        for _ in range(2):
            with Reservation(root, workspace):
                assert synced == []
        (tmp_path / '.degu' / 'reserved' / 'of-a-killed-one').touch()
        with Reservation(root, workspace):
            assert len(synced) == durable
    assert reserved(tmp_path) == []
