"""Who is near a node, with real mDNS in a network namespace of its own."""

from __future__ import annotations

MAKE = """
import contextlib, socket, sys, time
from degu_rpc import Identity, TrustStore
from degu_rpc.node.config import Config
from degu_rpc.node.neighbours import Neighbours
URL = f'degu://{"a" * 48}@192.168.1.7:8485'
trust = TrustStore(Identity.create(sys.argv[1]))
neighbours = Neighbours(trust, Config(machines=(URL,)), [('0.0.0.0', 8485)])
"""

FIND = """
with contextlib.closing(neighbours):
    neighbours.start()
    assert neighbours.problem is None, neighbours.problem
    started = time.monotonic()
    assert neighbours.find_urls('a' * 48, 3.0) == [URL]
    assert time.monotonic() - started < 1
    assert neighbours.find_urls('b' * 48, 0.3) == []
    assert time.monotonic() - started >= 0.3
"""

TRY_AGAIN = """
with contextlib.closing(neighbours):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as greedy:
        greedy.bind(('0.0.0.0', 5353))  # and without SO_REUSEADDR nobody else has it
        for try_it in (neighbours.start, neighbours.upkeep):
            try_it()
            assert 'this machine cannot be found by others' in neighbours.problem
        assert neighbours.sightings() == []
        assert neighbours.explain_nothing() == neighbours.problem
        assert neighbours.find_urls('a' * 48, 3.0) == [URL]
    neighbours.upkeep()
    assert neighbours.problem is None
    assert neighbours.explain_nothing() is not None
"""


def test_a_machine_whose_address_is_set_is_not_waited_for(cable, tmp_path):
    near, _ = cable
    near.python(MAKE + FIND, tmp_path / 'identity')


def test_a_port_that_another_program_keeps_is_tried_again(cable, tmp_path):
    near, _ = cable
    near.python(MAKE + TRY_AGAIN, tmp_path / 'identity')
