"""degu_rpc.peers.board: whoever waits is told of what was seen, and of the end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from degu_rpc.peers.board import Board

ID = 'a' * 48
OTHER = 'b' * 48
HERE = ('192.168.1.1', 8443)
THERE = ('192.168.1.2', 8443)
LONG_S = 30.0


def test_what_is_there_is_given_at_once_the_newest_first() -> None:
    board = Board([])
    board.add(ID, [HERE], 60)
    board.add(ID, [THERE], 60)
    assert board.wait_for_address(ID, set(), LONG_S) == THERE
    assert board.wait_for_address(ID, {THERE}, LONG_S) == HERE
    assert board.wait_for_address(ID, {THERE, HERE}, 0) is None


def test_who_waits_for_an_address_is_woken_by_it() -> None:
    board = Board([])
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(board.wait_for_address, ID, {HERE}, LONG_S)
        watching = pool.submit(next, board.watch(LONG_S))
        board.add(OTHER, [HERE], 60)
        board.add(ID, [HERE], 60)
        assert not waiting.done()
        board.add(ID, [THERE], 60)
        assert waiting.result(LONG_S) == THERE
        assert watching.result(LONG_S).machine_id in {ID, OTHER}


def test_each_machine_is_given_once_until_the_time_is_over() -> None:
    board = Board([])
    board.add(ID, [HERE], 60)
    board.add(ID, [THERE], 60)
    board.add(OTHER, [HERE], 60)
    assert [sighting.machine_id for sighting in board.watch(0)] == [ID, OTHER]


def test_nobody_waits_for_a_board_that_is_closed() -> None:
    board = Board([])
    board.add(ID, [HERE], 60)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(board.wait_for_address, OTHER, set(), LONG_S)
        watching = pool.submit(list, board.watch(LONG_S))
        started = monotonic()
        board.close()
        assert waiting.result(LONG_S) is None
        assert len(watching.result(LONG_S)) <= 1  # what it saw before the end
        assert monotonic() - started < LONG_S
    assert board.closed
    assert board.wait_for_address(ID, set(), LONG_S) is None


def test_an_address_where_somebody_else_is_and_a_machine_that_left_are_dropped() -> None:
    board = Board([])
    board.add(ID, [HERE, THERE], 60)
    board.add(OTHER, [HERE], 60)
    board.forget(ID, THERE)
    board.remove(OTHER)
    assert [(s.machine_id, s.addresses) for s in board.list_all()] == [(ID, (HERE,))]
