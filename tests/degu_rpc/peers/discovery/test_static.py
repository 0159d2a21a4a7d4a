"""degu_rpc.peers.discovery.static: `degu://<machine id>@host:port`."""

from __future__ import annotations

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu.net import parse_address
from degu_rpc.peers import MachineUrl, StaticAddresses, format_url, parse_url

ID = 'a' * 48
OTHER = 'b' * 48
ids = st.text('abcdefghijklmnopqrstuvwxyz234567', min_size=48, max_size=48)
ports = st.integers(1, 2**16 - 1)
names = st.from_regex(r'[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z0-9]{1,10}){0,3}', fullmatch=True)
hosts = names | st.ip_addresses(v=4).map(str)
routed = st.ip_addresses(v=6).filter(lambda ip: not ip.is_link_local).map(str)
link_local = st.ip_addresses(network='fe80::/10').map(str)
scopes = st.sampled_from(['eth0', 'wlp3s0', 'br-lan.7', '2'])
urls = st.builds(MachineUrl, ids, hosts | routed, ports, st.just('')) | st.builds(
    MachineUrl, ids, link_local, ports, scopes
)


@given(urls)
def test_parse_of_format_is_identity(url: MachineUrl) -> None:
    assert parse_url(format_url(url)) == url


@given(st.text(max_size=80) | urls.map(format_url).flatmap(lambda u: st.text().map(u.__add__)))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    found = None
    with contextlib.suppress(ValueError):
        found = parse_url(text)
    assert found is None or found == parse_url(format_url(found))


@pytest.mark.parametrize(
    ('host', 'address'),
    [
        ('192.168.1.7', ('192.168.1.7', 8443)),
        ('nas.example.org', ('nas.example.org', 8443)),
        ('[fd00::7]', ('fd00::7', 8443, 0, 0)),
        ('[fe80::7%1]', ('fe80::7', 8443, 0, 1)),
        ('[fe80::7%lo]', ('fe80::7', 8443, 0, socket.if_nametoindex('lo'))),
        ('[FD00:0::7]', ('fd00::7', 8443, 0, 0)),
    ],
)
def test_an_address_is_one_of_the_forms_of_the_core(host: str, address: object) -> None:
    found = parse_url(f'degu://{ID}@{host}:8443').find_address()
    assert found == address
    parse_address(found)


@pytest.mark.parametrize(
    ('url', 'reason'),
    [
        ('', 'is like'),
        (f'degu://{ID}', 'is like'),
        (f'degu://{ID}@host', 'is like'),
        (f'degu://{ID}@:1', 'is like'),
        (f'http://{ID}@host:1', 'is like'),
        (f'degu://{ID}@host:1/', 'is like'),
        (f'degu://{ID}@host:1\n', 'is like'),
        (f'degu://{ID}@a..b:1', 'is like'),
        (f'degu://{ID}@{"a" * 64}:1', 'is like'),
        (f'degu://{ID}@fe80::1:1', 'is like'),
        (f'degu://{ID}@[fe80::1%25eth0%]:1', 'is like'),
        (f'degu://{ID}@[fe80::1]:1', 'needs its interface'),
        (f'degu://{ID}@[fd00::1%eth0]:1', 'needs its interface'),
        (f'degu://{ID}@[fe80::1%{"9" * 16}]:1', 'is like'),
        (f'degu://{ID}@[fe80::1%{2**32}]:1', 'number of an interface'),
        (f'degu://{ID}@[fe80::1%0]:1', 'number of an interface'),
        (f'degu://{ID}@[1::2::3]:1', 'Only one|at most one|Only|::'),
        (f'degu://{ID}@host:0', 'port must be 1 to 65535'),
        (f'degu://{ID}@host:65536', 'port must be 1 to 65535'),
        (f'degu://{ID[1:]}@host:1', 'is 48 base32 characters'),
        (f'degu://{ID.upper()}@host:1', 'is 48 base32 characters'),
        ('degu://host:1', 'is like'),
    ],
)
def test_anything_else_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_url(url)


def test_static_addresses_are_given_for_their_machine_only() -> None:
    source = StaticAddresses(
        [f'degu://{ID}@one:1', f'degu://{OTHER}@two:2', f'degu://{ID}@three:3']
    )
    assert list(source.find(ID, 1)) == [('one', 1), ('three', 3)]
    source.forget(ID, ('one', 1))
    assert list(source.find(ID, 1)) == [('one', 1), ('three', 3)]


def test_an_interface_that_is_not_there_is_named() -> None:
    source = StaticAddresses([f'degu://{ID}@[fe80::1%nowhere]:1'])
    with pytest.raises(OSError, match="there is no interface 'nowhere'"):
        list(source.find(ID, 1))


def test_an_interface_that_is_not_there_hides_no_other_address() -> None:
    source = StaticAddresses(
        [f'degu://{ID}@[fe80::1%nowhere]:1', f'degu://{ID}@one:1', f'degu://{ID}@[fe80::1%gone]:1']
    )
    assert list(source.find(ID, 1)) == [('one', 1)]
