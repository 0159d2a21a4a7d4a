"""degu_rpc.peers.discovery.dns_sd: against dnsmasq, a real DNS server, on the loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from degu_rpc.peers import DnsSd
from degu_rpc.peers.limits import MAX_ADDRESSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


TYPE = '_degu._tcp.example.test'
ID = 'a' * 48
MANY = 'b' * 48
ODD = 'c' * 48
LONELY = 'd' * 48
NOBODY = 'e' * 48
ZONE = [
    *(f'--ptr-record={TYPE},{name}.{TYPE}' for name in (ID, MANY, 'no-machine-id')),
    f'--ptr-record={TYPE},{ODD}.elsewhere.test',
    f'--srv-host={ID}.{TYPE},host.example.test,8443,10',
    f'--srv-host={ID}.{TYPE},spare.example.test,8444,20',
    f'--txt-record={ID}.{TYPE},v=1',
    '--host-record=host.example.test,192.0.2.7,2001:db8::7',
    '--host-record=spare.example.test,192.0.2.8',
    f'--srv-host={MANY}.{TYPE},many.example.test,8443',
    *(f'--host-record=many.example.test,192.0.2.{number}' for number in range(20, 40)),
    f'--srv-host={ODD}.{TYPE},odd.example.test,8443',
    '--host-record=odd.example.test,224.0.0.251,fe80::1',
    '--host-record=odd.example.test,0.0.0.0,ff02::fb',
    f'--srv-host={LONELY}.{TYPE},nowhere.example.test,8443',
]


@pytest.fixture(scope='module')
def server(
    require_program: Callable[[str], str],
    find_free_address: Callable[[], tuple[str, int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, int]]:
    program = require_program('dnsmasq')
    address = find_free_address()
    pid_file = tmp_path_factory.mktemp('dnsmasq') / 'pid'
    command = [
        *(program, '--keep-in-foreground', '--conf-file=/dev/null', f'--pid-file={pid_file}'),
        *(f'--listen-address={address[0]}', '--bind-interfaces', f'--port={address[1]}'),
        *('--no-resolv', '--no-hosts', '--local=/test/', '--user=', '--group='),
    ]
    with subprocess.Popen([*command, *ZONE], stdin=subprocess.DEVNULL) as process:
        try:
            wait_until_it_answers(DnsSd('example.test', address))
            yield address
        finally:
            process.terminate()


def wait_until_it_answers(source: DnsSd) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            assert source.list_machines(0.2)
        except OSError:
            assert time.monotonic() < deadline, 'dnsmasq does not answer'
        else:
            return


@pytest.fixture(params=['example.test', 'example.test.'])
def source(request: pytest.FixtureRequest, server: tuple[str, int]) -> DnsSd:
    return DnsSd(request.param, server)


def test_the_machines_of_a_domain_are_listed(source: DnsSd) -> None:
    assert sorted(source.list_machines()) == [ID, MANY]


def test_a_machine_is_found_in_the_order_of_its_records(source: DnsSd) -> None:
    assert list(source.find(ID, 5)) == [
        ('192.0.2.7', 8443),
        ('2001:db8::7', 8443, 0, 0),
        ('192.0.2.8', 8444),
    ]


def test_no_more_addresses_are_given_than_are_remembered(source: DnsSd) -> None:
    assert len(list(source.find(MANY, 5))) == MAX_ADDRESSES


def test_addresses_that_no_machine_can_have_are_dropped(source: DnsSd) -> None:
    assert list(source.find(ODD, 5)) == []


@pytest.mark.parametrize('machine_id', [LONELY, NOBODY], ids=['no host', 'no record'])
def test_a_machine_that_is_not_there_is_explained(source: DnsSd, machine_id: str) -> None:
    assert list(source.find(machine_id, 5)) == []
    assert source.explain(machine_id) == f'there are no addresses for {machine_id}.{TYPE}'


def test_a_server_that_does_not_answer_is_an_error_in_time() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(('127.0.0.1', 0))
        source = DnsSd('example.test', silent.getsockname())
        started = time.monotonic()
        with pytest.raises(TimeoutError, match='no DNS server answered in time'):
            list(source.find(ID, 0.3))
        assert time.monotonic() - started < 3


@pytest.fixture
def deaf_server() -> Iterator[tuple[str, int]]:
    """Give a DNS server that answers for SRV and A, and never for AAAA."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(('127.0.0.1', 0))

        def serve() -> None:
            answers = {'SRV': '0 0 8443 host.example.test.', 'A': '192.0.2.7'}
            while data := sock.recvfrom(4096):
                if not data[0]:
                    return
                query = dns.message.from_wire(data[0])
                kind = dns.rdatatype.to_text(query.question[0].rdtype)
                if kind in answers:
                    name, response = query.question[0].name, dns.message.make_response(query)
                    response.answer.append(dns.rrset.from_text(name, 60, 'IN', kind, answers[kind]))
                    sock.sendto(response.to_wire(), data[1])

        with ThreadPoolExecutor() as pool:
            serving = pool.submit(serve)
            yield sock.getsockname()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b'', sock.getsockname())
            serving.result(20)


def test_an_address_is_given_before_a_question_that_has_no_answer(
    deaf_server: tuple[str, int],
) -> None:
    found = DnsSd('example.test', deaf_server).find(ID, 2)
    started = time.monotonic()
    assert next(found) == ('192.0.2.7', 8443)
    assert time.monotonic() - started < 2
    assert list(found) == []


def test_a_domain_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match='is no domain'):
        DnsSd('a..b', ('127.0.0.1', 53))


def test_without_dnspython_it_says_how_to_install_it(tmp_path: Path) -> None:
    source = (
        'import sys; sys.modules["dns"] = None\n'
        'from degu_rpc.peers import DnsSd\n'
        'try:\n    DnsSd("example.test")\n'
        'except ModuleNotFoundError as error:\n    print(error)\n'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', source],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "DNS-SD needs dnspython; run: pip install 'degu-rpc[dns]'\n"
