"""degu_rpc.peers.sightings: hints have an end, are bounded, and lie on our own networks."""

from __future__ import annotations

import base64
from ipaddress import IPv4Interface, IPv6Interface, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu.net import parse_address
from degu_rpc.peers.interfaces import Interface
from degu_rpc.peers.limits import MAX_ADDRESSES, MAX_UNKNOWN_SIGHTINGS, SIGHTING_S
from degu_rpc.peers.sightings import Pauses, Sightings, find_on_link, is_machine_id

KNOWN = 'k' * 48
OTHER = 'o' * 48
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


# --- names ---------------------------------------------------------------------------------------


@given(st.binary(min_size=30, max_size=30))
def test_every_hash_of_thirty_bytes_is_a_machine_id(digest: bytes) -> None:
    assert is_machine_id(base64.b32encode(digest).decode().lower())


@pytest.mark.parametrize(
    'text',
    ['', 'a' * 47, 'a' * 49, 'A' * 48, 'a' * 47 + '1', 'a' * 47 + '=', 'a' * 48 + '\n', 'ä' * 48],
    ids=['empty', 'short', 'long', 'upper case', 'no base32', 'padding', 'line end', 'no ASCII'],
)
def test_anything_else_is_no_machine_id(text: str) -> None:
    assert not is_machine_id(text)
    assert not Sightings().takes(text, 0)


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


def test_a_sighting_has_its_newest_address_first() -> None:
    table = Sightings()
    assert table.add(OTHER, [address(1)], 60, now=0) == [address(1)]
    assert table.add(OTHER, [address(2), address(1)], 60, now=1) == [address(2)]
    assert table.find(OTHER, 2) == (OTHER, (address(1), address(2)), 1)


@pytest.mark.parametrize(('ttl_s', 'lives_s'), [(60, 60), (1e9, SIGHTING_S)], ids=['ttl', 'capped'])
def test_a_sighting_ends_with_the_life_of_its_record(ttl_s: float, lives_s: float) -> None:
    table = Sightings()
    table.add(OTHER, [address(1)], ttl_s, now=100)
    assert table.find(OTHER, 100 + lives_s - 1) is not None
    assert table.find(OTHER, 100 + lives_s) is None
    assert table.list_all(100 + lives_s) == []


def test_a_shorter_life_takes_nothing_back_and_a_repeated_one_prolongs() -> None:
    # Whoever announces another's id with a life of a second must not end what was said before.
    table = Sightings()
    table.add(OTHER, [address(1)], 60, now=0)
    table.add(OTHER, [address(1)], 1, now=10)
    assert table.find(OTHER, 59) is not None
    table.add(OTHER, [address(1)], 60, now=50)
    assert table.find(OTHER, 109) is not None


def test_an_address_that_ended_and_comes_back_is_new() -> None:
    table = Sightings()
    table.add(OTHER, [address(1)], 60, now=0)
    assert table.add(OTHER, [address(1)], 60, now=61) == [address(1)]


def test_a_goodbye_and_a_liar_take_out_what_they_should() -> None:
    table = Sightings()
    table.add(OTHER, [address(1), address(2)], 60, now=0)
    table.add(KNOWN, [address(3)], 60, now=0)
    table.forget(OTHER, address(2))
    assert table.find(OTHER, 1) == (OTHER, (address(1),), 0)
    table.forget(OTHER, address(1))
    assert [s.machine_id for s in table.list_all(1)] == [KNOWN]
    table.remove(KNOWN)
    table.forget(KNOWN, address(3))
    assert table.list_all(1) == []


def test_of_too_many_addresses_the_oldest_go() -> None:
    table = Sightings()
    for number in range(1, 20):
        table.add(OTHER, [address(number)], 60, now=number)
    sighting = table.find(OTHER, 20)
    assert sighting is not None
    assert sighting.addresses == tuple(address(n) for n in range(19, 19 - MAX_ADDRESSES, -1))


def test_strangers_push_out_neither_the_known_nor_each_other() -> None:
    table = Sightings([KNOWN])
    first = stranger(10**6)
    table.add(first, [address(1)], 60, now=0)
    table.add(KNOWN, [address(1)], 60, now=0)
    for number in range(1000):
        table.add(stranger(number), [address(2)], 60, now=1)
    seen = [sighting.machine_id for sighting in table.list_all(2)]
    assert len(seen) == MAX_UNKNOWN_SIGHTINGS + 1
    assert {first, KNOWN} <= set(seen)
    table.know(OTHER)
    assert table.add(OTHER, [address(3)], 60, now=2) == [address(3)]


def test_a_stranger_whose_time_is_over_makes_room() -> None:
    table = Sightings()
    for number in range(MAX_UNKNOWN_SIGHTINGS):
        table.add(stranger(number), [address(1)], 60, now=0)
    assert not table.takes(OTHER, 59)
    assert table.takes(OTHER, 60)


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
    table, now = Sightings([KNOWN]), 0.0
    table.add(KNOWN, [address(99)], 10**6, now)
    for number, hosts, ttl_s, passed_s, kind in steps:
        now += passed_s
        name = stranger(number)
        if kind == 'add':
            table.add(name, map(address, hosts), ttl_s, now)
        elif kind == 'remove':
            table.remove(name)
        else:
            for host in hosts:
                table.forget(name, address(host))
        seen = table.list_all(now)
        assert len(seen) <= MAX_UNKNOWN_SIGHTINGS + 1
        assert all(1 <= len(sighting.addresses) <= MAX_ADDRESSES for sighting in seen)
        assert (table.find(KNOWN, now) is not None) == (now < SIGHTING_S)


# --- pauses --------------------------------------------------------------------------------------


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
