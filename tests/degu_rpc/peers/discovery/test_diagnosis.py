"""degu_rpc.peers.discovery.diagnosis: why nothing was found, from facts."""

from __future__ import annotations

from ipaddress import IPv4Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu_rpc.peers.discovery.diagnosis import Facts, Probe, Reason, explain_nothing_found
from degu_rpc.peers.discovery.interfaces import Interface, choose_interfaces, read_interfaces

NETWORK = (IPv4Interface('192.168.1.5/24'),)
LOOPBACK = Interface('lo', 1, (IPv4Interface('127.0.0.1/8'),), is_loopback=True)
WIRE = Interface('eth0', 2, NETWORK)
UNPLUGGED = WIRE._replace(is_up=False)
UNNUMBERED = WIRE._replace(networks=())
VPN = Interface('wg0', 3, NETWORK, is_point_to_point=True)
DEAF = Interface('eth1', 4, NETWORK, has_multicast=False)
HEARD = Probe('eth0', None, True)
UNHEARD = Probe('eth0', None, False)
FAILED = Probe('eth0', 'Network is unreachable', False)


@pytest.mark.parametrize(
    ('facts', 'reason', 'detail'),
    [
        (Facts((), (), 0), Reason.NO_NETWORK, ''),
        (Facts((LOOPBACK, UNPLUGGED), (), 0), Reason.NO_NETWORK, ''),
        (Facts((LOOPBACK, UNNUMBERED), (), 0), Reason.NO_NETWORK, ''),
        (Facts((LOOPBACK, UNPLUGGED, VPN), (), 0), Reason.VPN_ONLY, 'wg0'),
        (Facts((LOOPBACK, DEAF), (), 0), Reason.NO_MULTICAST, 'eth1'),
        (Facts((LOOPBACK, DEAF, VPN), (), 0), Reason.NO_MULTICAST, 'eth1, wg0'),
        (Facts((WIRE,), (FAILED,), 0), Reason.NO_MULTICAST, 'eth0: Network is unreachable'),
        (Facts((WIRE,), (UNHEARD,), 0), Reason.FIREWALL, 'eth0'),
        (Facts((WIRE,), (UNHEARD, FAILED), 0), Reason.FIREWALL, 'eth0'),
        (Facts((WIRE, VPN), (HEARD,), 0), Reason.NOBODY, ''),
        (Facts((WIRE,), (UNHEARD, HEARD), 0), Reason.NOBODY, ''),
        (Facts((WIRE,), (HEARD,), 3), Reason.NOT_ANNOUNCED, '3 seen'),
    ],
    ids=lambda value: value.name if isinstance(value, Reason) else '',
)
def test_the_reason_follows_from_the_facts(facts: Facts, reason: Reason, detail: str) -> None:
    explanation = explain_nothing_found(facts)
    assert (explanation.reason, explanation.reason.value in str(explanation)) == (reason, True)
    assert detail in explanation.detail


interfaces = st.builds(
    Interface,
    st.just('eth0'),
    st.just(2),
    st.sampled_from([(), NETWORK]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
probes = st.builds(Probe, st.just('eth0'), st.none() | st.just('failed'), st.booleans())


@given(st.builds(Facts, st.lists(interfaces), st.lists(probes), st.integers(0, 2)))
def test_there_is_always_a_reason(facts: Facts) -> None:
    assert str(explain_nothing_found(facts))


def test_the_loopback_is_read_as_the_system_has_it() -> None:
    (loopback,) = [i for i in read_interfaces() if i.name == 'lo']
    assert loopback.is_up
    assert loopback.is_loopback
    assert not loopback.is_local
    assert IPv4Interface('127.0.0.1/8') in loopback.networks
    assert choose_interfaces([loopback], None) == []
    assert choose_interfaces([loopback], ['lo']) == [loopback]
    assert choose_interfaces([UNPLUGGED, VPN, DEAF, WIRE], None) == [WIRE]
