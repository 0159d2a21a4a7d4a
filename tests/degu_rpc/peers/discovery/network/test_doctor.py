"""degu_rpc.node.doctor in a network that is broken on purpose."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Cable = tuple[Any, Any]

# Prints what the doctor finds of the network, for the home in the directory argv[1].
LOOK = """
import json, sys
from degu_rpc.node.doctor import examine
from degu_rpc.node.home import Home
found = examine(Home(sys.argv[1]), 1.0)
wanted = ('port', 'discovery')
print(json.dumps([[f.check, f.level.value, f.words, f.remedy] for f in found if f.check in wanted]))
"""

# Keeps UDP port 5353 for itself until it is told to end.
KEEP = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(('', 5353))
print('kept', flush=True)
sys.stdin.readline()
sock.close()
"""

# Keeps a VPN up, as its program does, until it is told to end.
TUNNEL = """
import fcntl, os, struct, subprocess, sys
tun = os.open('/dev/net/tun', os.O_RDWR)
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
fcntl.ioctl(tun, TUNSETIFF, struct.pack('16sH22x', b'vpn', IFF_TUN | IFF_NO_PI))
subprocess.run(['ip', 'address', 'add', '10.8.0.1/24', 'dev', 'vpn'], check=True)
subprocess.run(['ip', 'link', 'set', 'vpn', 'up'], check=True)
print('up', flush=True)
sys.stdin.readline()
os.close(tun)
"""


def look(near: Any, check: str) -> list[tuple[str, str, str]]:
    found = json.loads(near.python(LOOK, near.directory / 'home'))
    return [(level, words, remedy) for name, level, words, remedy in found if name == check]


def drop(near: Any, require_program: Callable[[str], str], rule: str) -> None:
    nft = require_program('nft')
    near.run(nft, 'add table inet t; add chain inet t in { type filter hook input priority 0; }')
    near.run(nft, f'add rule inet t in {rule} drop')


def test_a_network_that_works_is_ok(cable: Cable) -> None:
    near, _ = cable
    assert look(near, 'discovery') == [('ok', 'multicast works on near', '')]
    assert {level for level, *_ in look(near, 'port')} == {'ok'}


def test_a_firewall_that_drops_mdns_is_a_fault(
    cable: Cable, require_program: Callable[[str], str]
) -> None:
    near, _ = cable
    drop(near, require_program, 'udp dport 5353')
    ((level, words, remedy),) = look(near, 'discovery')
    assert (level, 'a firewall drops it' in words, '5353/udp' in remedy) == ('fault', True, True)


def test_a_firewall_that_drops_the_port_of_the_node_is_a_fault(
    cable: Cable, require_program: Callable[[str], str]
) -> None:
    near, _ = cable
    up = (sys.executable, '-m', 'degu_rpc.cli', 'up', '--home', near.directory / 'home')
    with near.start(*up, '--no-discovery') as node:
        assert node.read_line().startswith('ready')
        drop(near, require_program, 'tcp dport 8485')
        ((level, words, remedy),) = look(near, 'port')
    assert (level, 'timed out' in words) == ('fault', True)
    assert remedy.startswith('let TCP port 8485 in')


def test_a_program_that_keeps_the_mdns_port_is_a_fault(cable: Cable) -> None:
    near, _ = cable
    with near.start_python(KEEP) as keeper:
        keeper.expect('kept')
        ((level, words, remedy),) = look(near, 'discovery')
    assert level == 'fault'
    assert 'another program keeps UDP port 5353 for itself' in words
    assert remedy == "see which: sudo ss -lunp 'sport = :5353'"


def test_without_multicast_it_is_a_fault_and_without_a_network_a_warning(cable: Cable) -> None:
    near, _ = cable
    near.run('ip', 'link', 'set', 'near', 'multicast', 'off')
    ((level, _, remedy),) = look(near, 'discovery')
    assert (level, 'degu config set machines' in remedy) == ('fault', True)
    near.run('ip', 'link', 'set', 'near', 'down')
    ((level, words, _),) = look(near, 'discovery')
    assert (level, 'has no network' in words) == ('warning', True)


def test_a_vpn_alone_is_a_warning(cable: Cable) -> None:
    near, _ = cable
    near.run('ip', 'link', 'set', 'near', 'down')
    with near.start_python(TUNNEL) as tunnel:
        tunnel.expect('up')
        ((level, words, remedy),) = look(near, 'discovery')
    assert (level, 'VPN only' in words, '(vpn)' in words) == ('warning', True, True)
    assert 'degu config set machines' in remedy


def test_an_interface_of_the_settings_that_is_not_there_is_a_fault(cable: Cable) -> None:
    near, _ = cable
    home = near.directory / 'home'
    home.mkdir(mode=0o700)
    (home / 'config.toml').write_text('interfaces = ["near", "wlan9"]\n')
    (fault, fine) = look(near, 'discovery')
    assert fault[:2] == ('fault', 'interface wlan9 of the settings is not up with an address')
    assert fine[0] == 'ok'
