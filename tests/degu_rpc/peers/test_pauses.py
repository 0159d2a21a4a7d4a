"""degu_rpc.peers.pauses: what may not happen again yet."""

from __future__ import annotations

from degu_rpc.peers.pauses import Pauses


def test_a_pause_is_for_one_key_and_ends() -> None:
    pauses = Pauses(10, max_keys=2)
    pauses.begin('a', now=0)
    assert pauses.remaining('a', 4) == 6
    assert pauses.remaining('b', 4) == 0
    assert pauses.remaining('a', 10) == 0


def test_with_too_many_pauses_a_further_key_waits_for_the_first_to_end() -> None:
    pauses = Pauses(10, max_keys=2)
    pauses.begin('a', now=0)
    pauses.begin('b', now=5)
    assert pauses.remaining('c', 6) == 4
    assert pauses.remaining('c', 10) == 0
