"""Real mDNS between network namespaces, beside the real avahi-daemon.

Nothing here reaches a network of this machine: all programs run inside the namespaces.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from degu_rpc.peers.discovery.diagnosis import Reason
from degu_rpc.peers.limits import MAX_UNKNOWN_SIGHTINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    # What conftest.py gives.
    Namespace = Any
    Cable = tuple[Namespace, Namespace]

ID = 'a' * 48
OTHER = 'b' * 48
FOUND_WITHIN_S = 3.0

# Announces argv[1] at the wildcard addresses of the families in argv[2], until it is told to end.
ANNOUNCE = """
import sys
from degu_rpc.peers import Discovery
addresses = {'4': ('0.0.0.0', 8443), '6': ('::', 8443, 0, 0)}
with Discovery() as discovery:
    with discovery.announce(sys.argv[1], [addresses[family] for family in sys.argv[2]]):
        print('announced', flush=True)
        sys.stdin.readline()
    print('taken back', flush=True)
    sys.stdin.readline()
"""

# Prints when and where argv[1] was found, until argv[2] addresses were or argv[3] seconds are over.
FIND = """
import json, sys, time
from degu_rpc.peers import Discovery
started = time.monotonic()
found = []
with Discovery() as discovery, discovery.browse() as browser:
    for address in filter(None, browser.find(sys.argv[1], float(sys.argv[3]))):
        found.append(address)
        if len(found) == int(sys.argv[2]):
            break
    print(json.dumps([time.monotonic() - started, sorted(found), browser.explain(sys.argv[1])]))
"""

# Sends records, as one can who is on the network: of the kind argv[1], for the ids in argv[2].
FORGE = """
import socket, sys
from zeroconf import DNSAddress, DNSOutgoing, DNSPointer, DNSService
kind, ids = sys.argv[1], sys.argv[2].split()
TYPE = '_degu._tcp.local.'
A, PTR, AAAA, SRV, UNIQUE = 1, 12, 28, 33, 0x8001
def pack(ip):
    return socket.inet_pton(socket.AF_INET6 if ':' in ip else socket.AF_INET, ip)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(('10.9.0.2', 5353))
    for first in range(0, len(ids), 20):
        out = DNSOutgoing(0x8400)
        for name in ids[first:first + 20]:
            host = f'{name}.local.'
            if kind != 'address':
                out.add_answer_at_time(DNSPointer(TYPE, PTR, 1, 120, f'{name}.{TYPE}'), 0)
            if kind == 'pointers':
                continue
            ports = {'many ports': range(666, 696), 'address': ()}.get(kind, (666,))
            for port in ports:
                out.add_answer_at_time(
                    DNSService(f'{name}.{TYPE}', SRV, UNIQUE, 120, 0, 0, port, host), 0)
            if kind == 'no address':
                continue
            ip = kind if ':' in kind else '10.9.0.2'
            out.add_answer_at_time(
                DNSAddress(host, AAAA if ':' in ip else A, UNIQUE, 120, pack(ip)), 0)
        for packet in out.packets():
            sock.sendto(packet, ('224.0.0.251', 5353))
"""


def find(
    end: Namespace, machine_id: str, count: int, timeout_s: float = FOUND_WITHIN_S
) -> tuple[float, list[list[Any]], str]:
    output = end.python(FIND, machine_id, str(count), str(timeout_s))
    took_s, addresses, explanation = json.loads(output)
    return took_s, addresses, explanation


def link_local(end: Namespace) -> str:
    """Return the link-local address, as soon as the cable's other end is seen."""
    deadline = time.monotonic() + 20
    command = ('ip', '-6', '-json', 'address', 'show', 'dev', end.interface, 'scope', 'link')
    while True:
        for interface in json.loads(end.run(*command)):
            for info in interface.get('addr_info', []):
                if not info.get('tentative'):
                    return str(info['local'])
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def far_addresses(cable: Cable) -> list[list[Any]]:
    """Give where the far end is to be found, seen from the near one."""
    near, far = cable
    scope_id = json.loads(near.run('ip', '-json', 'link', 'show', 'dev', 'near'))[0]['ifindex']
    link_local(near)
    return [['10.9.0.2', 8443], [link_local(far), 8443, 0, scope_id]]


# --- found ---------------------------------------------------------------------------------------


def test_a_machine_is_found_over_ipv4_and_link_local_ipv6(
    cable: Cable, far_addresses: list[list[Any]]
) -> None:
    near, far = cable
    with far.start_python(ANNOUNCE, ID, '46') as announcer:
        announcer.expect('announced')
        took_s, addresses, _ = find(near, ID, 2)
    assert addresses == far_addresses
    assert took_s < FOUND_WITHIN_S


@pytest.mark.parametrize('family', ['4', '6'])
def test_a_machine_is_found_where_only_one_family_is_spoken(
    cable: Cable, far_addresses: list[list[Any]], family: str
) -> None:
    near, far = cable
    for end in cable:
        if family == '4':
            end.run('sh', '-c', 'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6')
        else:
            end.run('ip', '-4', 'address', 'flush', 'dev', end.interface)
    with far.start_python(ANNOUNCE, ID, '46') as announcer:
        announcer.expect('announced')
        took_s, addresses, _ = find(near, ID, 1)
    assert addresses == [far_addresses['46'.index(family)]]
    assert took_s < FOUND_WITHIN_S


@pytest.mark.parametrize('family', ['4', '6'])
def test_only_the_families_that_a_server_listens_on_are_announced(
    cable: Cable, far_addresses: list[list[Any]], family: str
) -> None:
    near, far = cable
    with far.start_python(ANNOUNCE, ID, family) as announcer:
        announcer.expect('announced')
        _, addresses, _ = find(near, ID, 2, timeout_s=1.5)
    assert addresses == [far_addresses['46'.index(family)]]


def test_a_link_local_address_that_came_over_ipv4_gets_the_scope_of_our_interface(
    cable: Cable, far_addresses: list[list[Any]]
) -> None:
    near, far = cable
    ip = link_local(far)
    watch = FIND.replace('browser.find', 'tell() or browser.find').replace(
        'found = []', 'found = []\ndef tell(): print("looking", flush=True)'
    )
    with near.start_python(watch, ID, '1', '3') as finder:
        finder.expect('looking')
        far.python(FORGE, ip, ID)
        _, addresses, _ = json.loads(finder.read_line())
    assert addresses == [[ip, 666, 0, far_addresses[1][3]]]


def test_an_interface_that_comes_up_later_is_used(
    cable: Cable, far_addresses: list[list[Any]]
) -> None:
    near, far = cable
    far.run('ip', 'link', 'set', 'far', 'down')
    with far.start_python(ANNOUNCE, ID, '46') as announcer:
        announcer.expect('announced')
        far.run('ip', 'link', 'set', 'far', 'up')
        _, addresses, _ = find(near, ID, 2)
        assert addresses == [far_addresses[0], [link_local(far), *far_addresses[1][1:]]]
        far.run('ip', 'address', 'delete', '10.9.0.2/24', 'dev', 'far')
        far.run('ip', 'address', 'add', '10.9.0.77/24', 'dev', 'far')
        deadline = time.monotonic() + 20
        while find(near, ID, 2)[1] != [
            ['10.9.0.77', 8443],
            [link_local(far), *far_addresses[1][1:]],
        ]:
            assert time.monotonic() < deadline


def test_a_machine_that_somebody_else_claims_to_be_still_announces_itself(cable: Cable) -> None:
    near, far = cable
    with far.start_python(ANNOUNCE, ID, '4') as liar:
        liar.expect('announced')
        assert find(near, ID, 1)[1]
        with near.start_python(ANNOUNCE, ID, '4') as true:
            true.expect('announced')
            assert find(far, ID, 2)[1] == [['10.9.0.1', 8443], ['10.9.0.2', 8443]]


# --- Avahi ---------------------------------------------------------------------------------------


@pytest.fixture
def avahi(require_program: Callable[[str], str]) -> None:
    programs = ('avahi-daemon', 'avahi-browse', 'avahi-publish-service', 'dbus-daemon')
    for program in programs:
        require_program(program)


@pytest.mark.usefixtures('avahi')
def test_avahi_sees_us_and_the_txt_record_is_the_version_alone(
    cable: Cable, far_addresses: list[list[Any]]
) -> None:
    near, far = cable
    with far.start_python(ANNOUNCE, ID, '46') as announcer, near.start_avahi():
        announcer.expect('announced')
        started = time.monotonic()
        output = near.run('avahi-browse', '--resolve', '--parsable', '--terminate', '_degu._tcp')
        took_s = time.monotonic() - started
    found = [line.split(';') for line in output.splitlines() if line.startswith('=')]
    assert {fields[2] for fields in found} == {'IPv4', 'IPv6'}
    for _, interface, _, name, kind, domain, host, ip, port, txt in found:
        assert (interface, name, kind, domain) == ('near', ID, '_degu._tcp', 'local')
        assert (host, port, txt) == (f'{ID}.local', '8443', '"v=1"')
        assert ip in [address[0] for address in far_addresses]
    assert took_s < FOUND_WITHIN_S


@pytest.mark.usefixtures('avahi')
def test_we_see_what_avahi_publishes(cable: Cable, far_addresses: list[list[Any]]) -> None:
    near, far = cable
    publish = ('avahi-publish-service', ID, '_degu._tcp', '8443', 'v=1')
    with far.start_avahi(), far.start(*publish):
        # Until it is established, which Avahi says only where nobody reads it as it comes.
        far.wait_until_it_prints(ID, 'avahi-browse', '-pt', '_degu._tcp')
        took_s, addresses, _ = find(near, ID, 2)
    assert addresses == far_addresses
    assert took_s < FOUND_WITHIN_S


@pytest.mark.usefixtures('avahi')
def test_we_work_beside_avahi_on_one_machine(cable: Cable, far_addresses: list[list[Any]]) -> None:
    near, far = cable
    with (
        far.start_avahi(),
        near.start_avahi(),
        far.start_python(ANNOUNCE, ID, '46') as announcer,
    ):
        announcer.expect('announced')
        took_s, addresses, _ = find(near, ID, 2)
    assert addresses == far_addresses
    assert took_s < FOUND_WITHIN_S


# --- gone, and hostile ---------------------------------------------------------------------------

WATCH = """
import sys, time
from degu_rpc.peers import Discovery
with Discovery() as discovery, discovery.browse() as browser:
    assert next(filter(None, browser.find(sys.argv[1], 20)))
    print('seen', flush=True)
    deadline = time.monotonic() + 20
    while browser.sightings():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    print('gone', flush=True)
"""


def test_a_goodbye_takes_a_machine_out(cable: Cable) -> None:
    near, far = cable
    with far.start_python(ANNOUNCE, ID, '4') as announcer, near.start_python(WATCH, ID) as watcher:
        announcer.expect('announced')
        watcher.expect('seen')
        announcer.tell()
        announcer.expect('taken back')
        watcher.expect('gone')


# Asks who is there, again and again, until it is told to end.
ASK = """
import os, select, socket, sys
from zeroconf import DNSOutgoing, DNSQuestion
message = DNSOutgoing(0)
message.add_question(DNSQuestion('_degu._tcp.local.', 12, 1))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton('10.9.0.1'))
    sock.bind(('10.9.0.1', 5353))
    print('asking', flush=True)
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        message.add_question(DNSQuestion(f'{os.urandom(8).hex()}.local.', 1, 1))
        sock.sendto(message.packets()[0], ('224.0.0.251', 5353))
        message = DNSOutgoing(0)
        message.add_question(DNSQuestion('_degu._tcp.local.', 12, 1))
"""


def test_no_answer_comes_after_a_goodbye(cable: Cable) -> None:
    near, far = cable
    linger = WATCH.replace("print('gone', flush=True)", 'time.sleep(2)\n    ' + 'print(%s)')
    linger %= "'gone' if browser.sightings() == [] else 'back again'"
    with far.start_python(ANNOUNCE, ID, '4') as announcer, near.start_python(linger, ID) as watcher:
        announcer.expect('announced')
        watcher.expect('seen')
        with near.start_python(ASK) as asker:
            asker.expect('asking')
            time.sleep(0.5)  # for questions in all states of being answered
            announcer.tell()
            announcer.expect('taken back')
            watcher.expect('gone')
            asker.tell()


CROWD = """
import sys, time
from degu_rpc.peers import Discovery
known = [sys.argv[1]] if sys.argv[3] == 'known' else []
with Discovery() as discovery, discovery.browse(known) as browser:
    print('looking', flush=True)
    seen = 0
    for sighting in browser.watch(20):
        seen += 1
        if seen == int(sys.argv[2]):
            break
    print('full', flush=True)
    sys.stdin.readline()
    if not known:
        print(next(filter(None, browser.find(sys.argv[1], 20))))
    deadline = time.monotonic() + 20
    while sys.argv[1] not in [sighting.machine_id for sighting in browser.sightings()]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    print(len(browser.sightings()))
"""


@pytest.mark.slow
@pytest.mark.parametrize('known', ['known', 'asked for'])
def test_a_thousand_false_machines_leave_the_table_bounded_and_a_place_for_the_true_one(
    cable: Cable, known: str
) -> None:
    near, far = cable
    crowd = ' '.join(f'{number:048b}' for number in range(1000)).translate(
        str.maketrans('01', 'xy')
    )
    with near.start_python(CROWD, ID, str(MAX_UNKNOWN_SIGHTINGS), known) as watcher:
        watcher.expect('looking')
        far.python(FORGE, 'pointers', crowd)
        far.python(FORGE, 'all', crowd)
        watcher.expect('full')
        with far.start_python(ANNOUNCE, ID, '4') as announcer:
            announcer.expect('announced')
            far.python(FORGE, 'all', crowd)
            watcher.tell()
            if known == 'asked for':
                watcher.expect(str(('10.9.0.2', 8443)))
            watcher.expect(f'{MAX_UNKNOWN_SIGHTINGS + 1}')


SEEK = """
import sys
from degu_rpc.peers import Discovery
with Discovery() as discovery, discovery.browse() as browser:
    print('looking', flush=True)
    next(browser.watch(20))
    print('lied to', flush=True)
    sys.stdin.readline()
    print(('10.9.0.2', 8443) in list(browser.find(sys.argv[1], 20)))
"""


def test_a_liar_with_many_addresses_does_not_hide_the_true_one(cable: Cable) -> None:
    near, far = cable
    with near.start_python(SEEK, ID) as seeker:
        seeker.expect('looking')
        far.python(FORGE, 'many ports', ID)
        seeker.expect('lied to')
        with far.start_python(ANNOUNCE, ID, '4') as announcer:
            announcer.expect('announced')
            seeker.tell()
            seeker.expect('True')


# Counts the questions for single machines that are heard until one comes for argv[1].
COUNT = """
import socket, sys
from zeroconf import DNSIncoming
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(('224.0.0.251', 5353))
    group = socket.inet_aton('224.0.0.251') + socket.inet_aton('10.9.0.2')
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    print('listens', flush=True)
    asked, kind = set(), 33
    while not any(name.startswith(sys.argv[1]) for name in asked):
        message = DNSIncoming(sock.recv(9000))
        asked |= {question.name for question in message.questions if question.type == kind}
    print(len(asked), flush=True)
"""


def test_a_thousand_names_without_an_address_cannot_have_us_ask_for_each(cable: Cable) -> None:
    near, far = cable
    crowd = ' '.join(f'{n:048b}' for n in range(1000)).translate(str.maketrans('01', 'xy'))
    with far.start_python(COUNT, ID) as counter, near.start_python(SEEK, ID) as seeker:
        counter.expect('listens')
        seeker.expect('looking')
        far.python(FORGE, 'pointers', crowd)
        far.python(FORGE, 'all', OTHER)
        seeker.expect('lied to')
        seeker.tell()
        assert 1 < int(counter.read_line()) < 500


# Prints the seconds of CPU time from when it is told to, until argv[1] is found.
WEIGH = """
import sys, time
from degu_rpc.peers import Discovery
with Discovery() as discovery, discovery.browse([sys.argv[1]]) as browser:
    print('looking', flush=True)
    sys.stdin.readline()
    before = time.process_time()
    while not browser.sightings() or sys.argv[1] not in [s.machine_id for s in browser.sightings()]:
        time.sleep(0.05)
    print(time.process_time() - before)
"""

# Says that thousands of names are at one host; when it is told to, forty times a new address of it,
# and then the address of argv[1].
PILE = """
import socket, sys, time
from zeroconf import DNSAddress, DNSOutgoing, DNSService
TYPE = '_degu._tcp.local.'
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(('10.9.0.2', 5353))
    def send(*records):
        out = DNSOutgoing(0x8400)
        for record in records:
            out.add_answer_at_time(record, 0)
        for packet in out.packets():
            sock.sendto(packet, ('224.0.0.251', 5353))
        time.sleep(0.005)
    names = [f'{n:048b}'.translate(str.maketrans('01', 'xy')) for n in range(6000)]
    for first in range(0, len(names), 15):
        send(*(DNSService(f'{name}.{TYPE}', 33, 1, 4500, 0, 0, 9, 'h.local.')
            for name in names[first:first + 15]))
    print('piled', flush=True)
    sys.stdin.readline()
    for n in range(40):
        send(DNSAddress('h.local.', 1, 1, 120, socket.inet_aton(f'10.9.0.{3 + n}')))
    send(DNSService(f'{sys.argv[1]}.{TYPE}', 33, 1, 120, 0, 0, 9, 't.local.'),
        DNSAddress('t.local.', 1, 1, 120, socket.inet_aton('10.9.0.2')))
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_thousands_of_names_at_one_host_do_not_make_its_addresses_expensive(cable: Cable) -> None:
    near, far = cable
    with near.start_python(WEIGH, ID) as browser, far.start_python(PILE, ID) as liar:
        browser.expect('looking')
        liar.expect('piled')
        browser.tell()
        liar.tell()
        assert float(browser.read_line()) < 2


def test_a_host_whose_address_comes_later_is_asked_for_it_and_taken(cable: Cable) -> None:
    near, far = cable
    with near.start_python(SEEK, OTHER) as seeker:
        seeker.expect('looking')
        far.python(FORGE, 'no address', ID)
        far.python(FORGE, 'address', ID)
        seeker.expect('lied to')


# --- nothing found -------------------------------------------------------------------------------


def test_without_a_network_it_says_so(cable: Cable) -> None:
    near, _ = cable
    near.run('ip', 'link', 'set', 'near', 'down')
    _, addresses, explanation = find(near, ID, 1, timeout_s=1.5)
    assert (addresses, explanation) == ([], Reason.NO_NETWORK.value)


def test_without_multicast_it_says_so(cable: Cable) -> None:
    near, _ = cable
    near.run('ip', 'link', 'set', 'near', 'multicast', 'off')
    _, addresses, explanation = find(near, ID, 1, timeout_s=1.5)
    assert (addresses, explanation) == ([], f'{Reason.NO_MULTICAST.value} (near)')


def test_behind_a_firewall_it_says_so(cable: Cable, require_program: Callable[[str], str]) -> None:
    near, far = cable
    nft = require_program('nft')
    near.run(nft, 'add table inet t; add chain inet t in { type filter hook input priority 0; }')
    near.run(nft, 'add rule inet t in udp dport 5353 drop')
    with far.start_python(ANNOUNCE, ID, '46') as announcer:
        announcer.expect('announced')
        _, addresses, explanation = find(near, ID, 1, timeout_s=1.5)
    assert (addresses, explanation) == ([], f'{Reason.FIREWALL.value} (near)')


def test_where_nobody_else_is_it_says_so(cable: Cable) -> None:
    near, _ = cable
    _, addresses, explanation = find(near, ID, 1, timeout_s=1.5)
    assert (addresses, explanation) == ([], Reason.NOBODY.value)


def test_where_only_others_are_it_says_so(cable: Cable) -> None:
    near, far = cable
    with far.start_python(ANNOUNCE, OTHER, '4') as announcer:
        announcer.expect('announced')
        _, addresses, explanation = find(near, ID, 1, timeout_s=1.5)
    assert (addresses, explanation) == ([], f'{Reason.NOT_ANNOUNCED.value} (1 seen)')


# --- pairing windows -----------------------------------------------------------------------------

WINDOW = """
from degu_rpc.peers import Discovery
import sys
with Discovery() as discovery, discovery.announce_pairing([('0.0.0.0', 999)]) as window:
    print(window.name, flush=True)
    sys.stdin.readline()
"""

WINDOWS = """
from degu_rpc.peers import Discovery
with Discovery() as discovery, discovery.browse_pairing() as windows:
    machines = discovery.browse()
    window = next(windows.watch(20))
    print(window.machine_id, window.addresses, machines.sightings())
"""


def test_a_pairing_window_is_found_by_a_name_that_tells_nothing(cable: Cable) -> None:
    near, far = cable
    names = []
    for _ in range(2):
        with far.start_python(WINDOW) as window:
            names.append(window.read_line())
            assert near.python(WINDOWS) == f"{names[-1]} (('10.9.0.2', 999),) []\n"
            window.tell()
            assert window.wait(20) == 0
    assert names[0] != names[1]


# --- life ----------------------------------------------------------------------------------------

CLOSE = """
import os, sys, threading, time
from degu_rpc.peers import Discovery
def count():
    return len(os.listdir('/proc/self/fd')), threading.active_count()
Discovery().close()  # what is imported late stays
before = count()
for _ in range(3):
    discovery = Discovery()
    announcement = discovery.announce('a' * 48, [('0.0.0.0', 1)])
    browser, left_open = discovery.browse(), discovery.browse()
    window = discovery.announce_pairing([('0.0.0.0', 2)])
    if sys.argv[1] == 'each':
        for part in (announcement, browser, window):
            part.close()
            part.close()
    discovery.close()
    discovery.close()
    announcement.close()
    browser.close()
    assert list(browser.find('a' * 48, 5)) == []
    assert list(browser.watch(5)) == []
    started = time.monotonic()
    assert list(left_open.watch(60)) == []
    assert time.monotonic() - started < 30
assert count() == before, (count(), before)
"""


@pytest.mark.parametrize('order', ['each', 'all at once'])
def test_nothing_is_left_open(cable: Cable, order: str) -> None:
    cable[0].python(CLOSE, order)


# Sixty threads that use a Discovery in every way, until it is closed in four others.
CROWDED = """
import logging, sys, threading
from degu_rpc.peers import Discovery, DiscoveryClosedError
logging.basicConfig(stream=sys.stdout)
threading.excepthook = lambda failure: print(failure.exc_value)
discovery = Discovery()
used = threading.Semaphore(0)
def use(number):
    try:
        while True:
            with discovery.browse() as browser:
                next(browser.find('a' * 48, 0), None)
            if number < 5:
                discovery.announce(chr(ord('b') + number) * 48, [('0.0.0.0', 1)]).close()
            used.release()
    except DiscoveryClosedError:
        pass
users = [threading.Thread(target=use, args=(number,), daemon=True) for number in range(60)]
closers = [threading.Thread(target=discovery.close, daemon=True) for _ in range(4)]
for user in users:
    user.start()
for _ in users:
    used.acquire()
for closer in closers:
    closer.start()
for thread in closers + users:
    thread.join(10)
    if thread.is_alive():
        break
print(sum(thread.is_alive() for thread in closers + users))
"""


def test_whoever_uses_a_discovery_that_is_closed_is_told_and_never_hangs(cable: Cable) -> None:
    assert cable[0].python(CROWDED) == '0\n'


# Two announcements: the first is closed while it learns a new address. Do both learn it?
MOVED = """
import asyncio, subprocess, threading
from zeroconf.asyncio import AsyncZeroconf
from degu_rpc.peers import Discovery
updates, asked, go, both = [], threading.Event(), threading.Event(), threading.Event()
update = AsyncZeroconf.async_update_service
async def update_slowly(self, info):
    asked.set()
    while not go.is_set():
        await asyncio.sleep(0.01)
    updates.append(info.name[0])
    if len(set(updates)) == 2:
        both.set()
    return await update(self, info)
AsyncZeroconf.async_update_service = update_slowly
with Discovery() as discovery:
    first = discovery.announce('a' * 48, [('0.0.0.0', 1)])
    second = discovery.announce('b' * 48, [('0.0.0.0', 2)])
    subprocess.run(['ip', 'address', 'add', '10.9.0.77/24', 'dev', 'near'], check=True)
    assert asked.wait(20)
    closer = threading.Thread(target=first.close)
    closer.start()
    closer.join(0.5)
    go.set()
    print(both.wait(10))
    closer.join(20)
"""


def test_an_announcement_that_ends_while_the_network_changes_keeps_no_other_back(
    cable: Cable,
) -> None:
    assert cable[0].python(MOVED) == 'True\n'


KEPT = """
import errno, os, socket, threading
from degu_rpc.peers import Discovery
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(('0.0.0.0', 5353))
    before = len(os.listdir('/proc/self/fd'))
    try:
        Discovery()
    except OSError as error:
        print(errno.errorcode[error.errno])
    assert (len(os.listdir('/proc/self/fd')), threading.active_count()) == (before, 1)
"""


def test_a_port_that_another_program_keeps_is_an_error_and_leaves_nothing(cable: Cable) -> None:
    assert cable[0].python(KEPT) == 'EADDRINUSE\n'


def test_importing_the_package_imports_neither_zeroconf_nor_dnspython() -> None:
    source = (
        'import sys, degu_rpc, degu_rpc.peers\n'
        'for name in degu_rpc.__all__: name == "AsyncRpcClient" or getattr(degu_rpc, name)\n'
        'print({"zeroconf", "dns", "ifaddr", "asyncio"} & set(sys.modules))\n'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', source],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == 'set()\n'


@pytest.mark.parametrize(
    ('machine_id', 'addresses', 'reason'),
    [
        ('a' * 47, [('0.0.0.0', 1)], 'is 48 base32 characters'),
        (ID, [], 'one port in common'),
        (ID, [('0.0.0.0', 0)], 'one port in common'),
        (ID, [('0.0.0.0', 1), ('::', 2, 0, 0)], 'one port in common'),
        (ID, ['/run/a.socket'], 'cannot connect to'),
        (ID, [('host.example', 1)], 'host.example'),
    ],
    ids=['id', 'no address', 'no port', 'two ports', 'unix', 'name'],
)
def test_what_cannot_be_announced_is_refused(
    cable: Cable, machine_id: str, addresses: list[Any], reason: str
) -> None:
    source = (
        'from degu_rpc.peers import Discovery\n'
        'with Discovery() as discovery:\n'
        f'    try: discovery.announce({machine_id!r}, {addresses!r})\n'
        '    except ValueError as error: print(error)\n'
    )
    assert reason in cable[0].python(source)
