"""Sightings: hints have an end, are bounded, lie on our own networks, and wake who waits."""

from __future__ import annotations

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from time import monotonic
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu.net import parse_address
from degu_rpc.peers.discovery.interfaces import Interface
from degu_rpc.peers.discovery.sightings import Sightings, find_on_link
from degu_rpc.peers.limits import (
    MAX_ADDRESSES,
    MAX_CANDIDATES,
    MAX_UNKNOWN_SIGHTINGS,
    SIGHTING_S,
)

KNOWN = 'k' * 48
OTHER = 'o' * 48
HERE = ('192.168.1.1', 8443)
THERE = ('192.168.1.2', 8443)
ELSEWHERE = ('192.168.1.3', 8443)
LONG_S = 30.0
HOME = Interface(
    'eth0',
    2,
    (IPv4Interface('192.168.1.5/24'), IPv6Interface('fe80::5/64'), IPv6Interface('fd00::5/64')),
)
WIFI = Interface('wlan0', 3, (IPv4Interface('10.0.0.5/30'), IPv6Interface('fe80::5/64')))
IPV4_ONLY = Interface('eth1', 4, (IPv4Interface('172.16.0.5/31'),))
ALL = [HOME, WIFI, IPV4_ONLY]


def stranger(number: int) -> str:
    return base64.b32encode(number.to_bytes(30, 'big')).decode().lower()


def address(number: int) -> tuple[str, int]:
    return (f'192.168.1.{number}', 8443)


def list_addresses(table: Sightings) -> list[Any]:
    """Return the addresses of OTHER, in the order in which they are given to who looks for it."""
    given: dict[Any, None] = {}
    while (found := table.wait_for_address(OTHER, set(given), 0)) is not None:
        given[found] = None
    return list(given)


def test_what_lies_in_no_network_any_more_is_not_seen() -> None:
    table = Sightings()
    link_local = ('fe80::9', 8443, 0, HOME.number)
    table.add(OTHER, [HERE, link_local], LONG_S)
    table.add(KNOWN, [('10.0.0.6', 8443)], LONG_S)
    table.keep_on_link(ALL)
    assert list_addresses(table) == [HERE, link_local]
    table.keep_on_link([WIFI])
    assert [seen.machine_id for seen in table.list_all()] == [KNOWN]
    table.add(OTHER, [HERE], LONG_S)
    assert list_addresses(table) == [HERE]


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('ip', 'scope_id', 'found'),
    [
        ('192.168.1.9', None, [('192.168.1.9', 1)]),
        ('10.0.0.6', None, [('10.0.0.6', 1)]),
        ('172.16.0.4', None, [('172.16.0.4', 1)]),
        ('fd00::9', None, [('fd00::9', 1, 0, 0)]),
        ('fe80::9', 3, [('fe80::9', 1, 0, 3)]),
        ('fe80::9', None, [('fe80::9', 1, 0, 2), ('fe80::9', 1, 0, 3)]),
    ],
    ids=['IPv4', 'small net', '/31', 'IPv6', 'link-local', 'link-local, scope lost'],
)
def test_an_address_in_one_of_our_networks_is_taken(
    ip: str, scope_id: int | None, found: list[object]
) -> None:
    assert find_on_link(ip_address(ip).packed, scope_id, 1, ALL) == found


@pytest.mark.parametrize(
    ('ip', 'scope_id'),
    [
        ('192.168.2.9', None),
        ('8.8.8.8', None),
        ('127.0.0.1', None),
        ('::1', None),
        ('192.168.1.0', None),
        ('192.168.1.255', None),
        ('255.255.255.255', None),
        ('224.0.0.251', None),
        ('0.0.0.0', None),
        ('::', None),
        ('ff02::fb', 2),
        ('2001:db8::9', None),
        ('::ffff:192.168.1.9', None),
        ('fe80::9', 4),
        ('fe80::9', 7),
    ],
)
def test_an_address_off_our_networks_is_dropped(ip: str, scope_id: int | None) -> None:
    assert find_on_link(ip_address(ip).packed, scope_id, 1, ALL) == []


@pytest.mark.parametrize('port', [0, -1, 2**16])
def test_an_address_with_a_port_that_nobody_has_is_dropped(port: int) -> None:
    assert find_on_link(ip_address('192.168.1.9').packed, None, port, ALL) == []


@given(
    st.binary(max_size=17) | st.ip_addresses().map(lambda ip: ip.packed),
    st.none() | st.integers(0, 9),
    st.integers(0, 2**17),
)
def test_any_bytes_give_addresses_that_can_be_connected_to_or_none(
    ip: bytes, scope_id: int | None, port: int
) -> None:
    for found in find_on_link(ip, scope_id, port, ALL):
        parse_address(found)


# --- the table -----------------------------------------------------------------------------------


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_is_no_id_has_no_place() -> None:
    assert Sightings().takes('a' * 48)
    assert not Sightings().takes('A' * 48)
    assert not Sightings(['A' * 48]).takes('A' * 48)


def test_an_address_that_was_repeated_comes_before_those_that_were_not(clock: Clock) -> None:
    table = Sightings(clock=clock)
    table.add(OTHER, [address(1)], 60)
    clock.now = 1
    table.add(OTHER, [address(3), address(2)], 60)
    assert table.find(OTHER) == (OTHER, (address(1), address(3), address(2)), 1)
    table.add(OTHER, [address(2)], 60)
    assert table.find(OTHER) == (OTHER, (address(2), address(1), address(3)), 1)
    table.add(OTHER, [address(1)], 60)
    assert table.find(OTHER) == (OTHER, (address(1), address(2), address(3)), 1)


def test_what_is_said_twice_in_one_packet_is_not_repeated() -> None:
    table = Sightings()
    table.add(OTHER, [address(1)], 60)
    table.add(OTHER, [address(2), address(2)], 60)
    assert table.wait_for_address(OTHER, set(), 0) == address(1)


@pytest.mark.parametrize(('ttl_s', 'lives_s'), [(60, 60), (1e9, SIGHTING_S)], ids=['ttl', 'capped'])
def test_a_sighting_ends_with_the_life_of_its_record(
    clock: Clock, ttl_s: float, lives_s: float
) -> None:
    table = Sightings(clock=clock)
    clock.now = 100
    table.add(OTHER, [address(1)], ttl_s)
    clock.now += lives_s - 1
    assert table.find(OTHER) is not None
    clock.now += 1
    assert table.find(OTHER) is None
    assert table.list_all() == []


def test_a_shorter_life_takes_nothing_back_and_a_repeated_one_prolongs(clock: Clock) -> None:
    # Whoever announces another's id with a life of a second must not end what was said before.
    table = Sightings(clock=clock)
    table.add(OTHER, [address(1)], 60)
    clock.now = 10
    table.add(OTHER, [address(1)], 1)
    clock.now = 50
    table.add(OTHER, [address(1)], 60)
    clock.now = 109
    assert table.find(OTHER) is not None


def test_a_shorter_life_alone_takes_nothing_back(clock: Clock) -> None:
    table = Sightings(clock=clock)
    table.add(OTHER, [address(1)], 60)
    clock.now = 10
    table.add(OTHER, [address(1)], 1)
    clock.now = 59
    assert table.find(OTHER) is not None


def test_an_address_that_ended_can_come_back(clock: Clock) -> None:
    table = Sightings(clock=clock)
    table.add(OTHER, [address(1)], 60)
    clock.now = 61
    assert table.find(OTHER) is None
    table.add(OTHER, [address(1)], 60)
    assert table.find(OTHER) == (OTHER, (address(1),), 61)


def test_a_goodbye_and_a_liar_take_out_what_they_should() -> None:
    table = Sightings()
    table.add(OTHER, [address(1), address(2)], 60)
    table.add(KNOWN, [address(3)], 60)
    table.forget(OTHER, address(2))
    sighting = table.find(OTHER)
    assert sighting is not None
    assert sighting.addresses == (address(1),)
    table.forget(OTHER, address(1))
    assert [s.machine_id for s in table.list_all()] == [KNOWN]
    table.remove(KNOWN)
    table.forget(KNOWN, address(3))
    assert table.list_all() == []


def test_new_addresses_without_end_never_push_out_one_that_was_repeated() -> None:
    table = Sightings()
    for _ in range(2):
        table.add(OTHER, [address(1)], 60)
    for number in range(1000):
        table.add(OTHER, [('192.168.1.2', 1 + number)], 60)
    given = list_addresses(table)
    assert given[0] == address(1)
    assert len(given) == MAX_CANDIDATES
    sighting = table.find(OTHER)
    assert sighting is not None
    assert sighting.addresses == tuple(given[:MAX_ADDRESSES])


def test_among_new_addresses_without_end_one_that_is_repeated_comes_first_in_the_end() -> None:
    # Whoever lied first has the table full; each answer of the true machine comes among ten lies.
    table = Sightings()
    lies = iter(range(1, 60000))
    table.add(OTHER, [('192.168.1.2', next(lies)) for _ in range(MAX_CANDIDATES)], 60)
    for _ in range(50):
        table.add(OTHER, [address(1)], 60)
        for _ in range(10):
            table.add(OTHER, [('192.168.1.2', next(lies))], 60)
    assert list_addresses(table)[0] == address(1)


def test_where_all_addresses_were_repeated_the_first_stay() -> None:
    table = Sightings()
    for _ in range(2):
        table.add(OTHER, [address(number) for number in range(MAX_CANDIDATES)], 60)
    for _ in range(2):
        table.add(OTHER, [address(99)], 60)
    assert list_addresses(table) == [address(number) for number in range(MAX_CANDIDATES)]
    table.forget(OTHER, address(0))
    table.add(OTHER, [address(99)], 60)
    assert list_addresses(table)[-1] == address(99)


def test_strangers_push_out_neither_the_known_nor_each_other() -> None:
    table = Sightings([KNOWN])
    first = stranger(10**6)
    table.add(first, [address(1)], 60)
    table.add(KNOWN, [address(1)], 60)
    for number in range(1000):
        table.add(stranger(number), [address(2)], 60)
    seen = [sighting.machine_id for sighting in table.list_all()]
    assert len(seen) == MAX_UNKNOWN_SIGHTINGS + 1
    assert {first, KNOWN} <= set(seen)
    table.add(OTHER, [address(3)], 60)
    assert table.find(OTHER) is None
    table.know(OTHER)
    table.add(OTHER, [address(3)], 60)
    assert table.find(OTHER) is not None


def test_a_stranger_whose_time_is_over_makes_room(clock: Clock) -> None:
    table = Sightings(clock=clock)
    for number in range(MAX_UNKNOWN_SIGHTINGS):
        table.add(stranger(number), [address(1)], 60)
    clock.now = 59
    assert not table.takes(OTHER)
    clock.now = 60
    assert table.takes(OTHER)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 200),
            st.lists(st.integers(1, 20), max_size=12),
            st.floats(0, 500),
            st.floats(0, 50),
            st.sampled_from(['add', 'remove', 'forget']),
        ),
        max_size=200,
    )
)
def test_whatever_is_announced_the_table_stays_bounded(
    steps: list[tuple[int, list[int], float, float, str]],
) -> None:
    clock = Clock()
    table = Sightings([KNOWN], clock)
    table.add(KNOWN, [address(99)], 10**6)
    for number, hosts, ttl_s, passed_s, kind in steps:
        clock.now += passed_s
        name = stranger(number)
        if kind == 'add':
            table.add(name, map(address, hosts), ttl_s)
        elif kind == 'remove':
            table.remove(name)
        else:
            for host in hosts:
                table.forget(name, address(host))
        seen = table.list_all()
        assert len(seen) <= MAX_UNKNOWN_SIGHTINGS + 1
        assert all(1 <= len(sighting.addresses) <= MAX_ADDRESSES for sighting in seen)
        assert (table.find(KNOWN) is not None) == (clock.now < SIGHTING_S)


# --- who waits -----------------------------------------------------------------------------------


class Waiter:
    """A clock that also tells when a thread looks at the table: how a test knows that it waits.

    Whoever waits has looked, and holds the table until it does wait.
    """

    def __init__(self) -> None:
        self.looked = threading.Semaphore(0)

    def __call__(self) -> float:
        if threading.current_thread() is not threading.main_thread():
            self.looked.release()
        return monotonic()

    def wait_for_looks(self, count: int) -> None:
        for _ in range(count):
            assert self.looked.acquire(timeout=LONG_S)


def test_what_is_there_is_given_at_once_the_oldest_first() -> None:
    table = Sightings()
    table.add(OTHER, [HERE], 60)
    table.add(OTHER, [THERE], 60)
    assert table.wait_for_address(OTHER, set(), LONG_S) == HERE
    assert table.wait_for_address(OTHER, {HERE}, LONG_S) == THERE
    assert table.wait_for_address(OTHER, {THERE, HERE}, 0) is None


def test_who_waits_for_an_address_is_woken_by_it_and_by_no_other() -> None:
    waiter = Waiter()
    table = Sightings(clock=waiter)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(table.wait_for_address, OTHER, {HERE}, LONG_S)
        waiter.wait_for_looks(1)
        for machine_id, seen in ((KNOWN, ELSEWHERE), (OTHER, HERE)):
            table.add(machine_id, [seen], 60)
            waiter.wait_for_looks(1)  # it was woken, and looks in vain
        table.add(OTHER, [THERE], 60)
        assert waiting.result(LONG_S) == THERE


def test_who_watches_is_woken_by_each_machine() -> None:
    waiter = Waiter()
    table = Sightings(clock=waiter)
    watch = table.watch(LONG_S)
    with ThreadPoolExecutor() as pool:
        for machine_id in (KNOWN, OTHER):
            watching = pool.submit(next, watch)
            waiter.wait_for_looks(1)
            table.add(machine_id, [HERE], 60)
            assert watching.result(LONG_S).machine_id == machine_id
            while waiter.looked.acquire(blocking=False):
                pass


def test_each_machine_is_given_once_until_the_time_is_over() -> None:
    table = Sightings()
    table.add(KNOWN, [HERE], 60)
    table.add(KNOWN, [THERE], 60)
    table.add(OTHER, [HERE], 60)
    assert [sighting.machine_id for sighting in table.watch(0)] == [KNOWN, OTHER]


def test_nobody_waits_for_a_table_that_is_closed() -> None:
    waiter = Waiter()
    table = Sightings(clock=waiter)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(table.wait_for_address, OTHER, set(), LONG_S)
        watching = pool.submit(list, table.watch(LONG_S))
        waiter.wait_for_looks(2)
        started = monotonic()
        table.close()
        assert waiting.result(LONG_S) is None
        assert watching.result(LONG_S) == []
        assert monotonic() - started < LONG_S / 2
    assert table.closed
    table.add(OTHER, [HERE], 60)
    assert table.wait_for_address(OTHER, set(), LONG_S) is None
