"""Places: how they are written, and where neighbours can connect to what listens at one."""

from __future__ import annotations

import pytest

from degu_rpc.node.places import Place, find_places, find_reachable
from degu_rpc.peers import parse_url

ID = 'a' * 48


@pytest.mark.parametrize(
    ('address', 'text'),
    [
        (('192.168.1.7', 8485), '192.168.1.7:8485'),
        (('2001:db8::1', 8485, 0, 0), '[2001:db8::1]:8485'),
        (('fe80::1', 8485, 0, 2), '[fe80::1%2]:8485'),
    ],
)
def test_a_place_is_an_address_and_back_and_has_a_url(address, text):
    (place,) = find_places([address])
    assert place.address == address
    assert str(place) == text
    url = parse_url(place.format_url(ID))
    assert (url.machine_id, url.host, url.port) == (ID, address[0], 8485)
    assert find_places([url.find_address()]) == [place]


def test_what_is_not_of_tcp_is_no_place():
    assert find_places(['/run/x.sock', b'\0x', ('::1', 1, 0, 0)]) == [Place('::1', 1)]


@pytest.mark.parametrize('host', ['127.0.0.1', 'fe80::1', '192.168.1.7'])
def test_what_listens_at_one_address_is_reached_there(host):
    assert find_reachable(Place(host, 8485, 2)) == [Place(host, 8485, 2)]


def test_what_listens_at_all_addresses_is_reached_at_those_that_mean_something_elsewhere(cable):
    near, _ = cable
    near.run('ip', '-6', 'address', 'add', 'fd00::1/64', 'dev', near.interface)
    said = near.python(
        'from degu_rpc.node.places import Place, find_reachable\n'
        "for host in ('0.0.0.0', '::'):\n"
        '    print(*find_reachable(Place(host, 8485)))\n'
    )
    assert said.splitlines() == ['10.9.0.1:8485', '[fd00::1]:8485']
