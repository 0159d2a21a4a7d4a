"""What may be wrong with a device, looked at one by one: each check returns what it found.

1. `examine` runs all checks. Those that need neither the node nor the network come first; the
   others run beside each other, each in a thread, and none for longer than it is given.
2. A check looks and changes nothing. What it says is a Finding: what was looked at, whether that is
   right, in words, and what to do if not.
3. A fault keeps the device from its work. A warning may be meant so: a machine that is switched
   off, a VPN.

Threads: those of `examine`, which have ended when it returns. There are no locks.
"""

from __future__ import annotations

import enum
import errno
import os
import platform
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from degu import __version__, pki
from degu.errors import DeguError, PeerRejectedError
from degu_rpc.errors import ConfigError, IdentityError, RpcError, UnreachableError
from degu_rpc.node.api import EXAMINE, NODE, SET_MACHINES, NodeApi
from degu_rpc.node.config import build_config, read_settings
from degu_rpc.node.home import MACHINE_FILE
from degu_rpc.node.inbox import find_fault
from degu_rpc.node.limits import (
    CLOCK_SLACK_S,
    DEFAULT_PORT,
    EXAMINE_THREADS,
    EXPIRES_SOON_S,
    MIN_FREE_SIZE,
)
from degu_rpc.node.places import Place
from degu_rpc.node.shares import open_share
from degu_rpc.peers import Dialer, Identity, StaticAddresses, TrustStore, parse_url
from degu_rpc.peers.discovery.diagnosis import (
    MDNS_PORT,
    Reason,
    collect_facts,
    explain_nothing_found,
)
from degu_rpc.peers.discovery.interfaces import choose_interfaces, read_interfaces
from degu_rpc.peers.identity import TRUST_DIRECTORY
from degu_rpc.rpc.target import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from degu_rpc.node.api import Status
    from degu_rpc.node.config import Config
    from degu_rpc.node.home import Home

    Check = Callable[['Known'], Iterator['Finding']]


class Level(enum.Enum):
    """Whether what was found is right."""

    OK = 'ok'
    WARNING = 'warning'
    FAULT = 'fault'


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: `check` is what it looked at, `remedy` what to do where it is not ok."""

    check: str
    level: Level
    words: str
    remedy: str = ''


@dataclass(slots=True)
class Known:
    """What the first checks learn and later ones need; None for what cannot be known."""

    home: Home
    timeout_s: float
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    identity: Identity | None = None
    config: Config | None = None
    status: Status | None = None


def examine(home: Home, timeout_s: float) -> list[Finding]:
    """Run all checks; the node and each machine are waited for no longer than `timeout_s`."""
    known = Known(home, timeout_s)
    found = []
    for check in (
        check_versions,
        check_home,
        check_space,
        check_settings,
        check_shares,
        check_inbox,
        check_identity,
        check_certificate,
        check_clock,
        check_node,
    ):
        found += _run(check, known)
    with ThreadPoolExecutor(EXAMINE_THREADS) as threads:
        jobs = [
            threads.submit(_run, check, known)
            for check in (check_port, check_network, *_list_machine_checks(known, found))
        ]
        for job in jobs:
            found += job.result()
    return found


def _run(check: Check, known: Known) -> list[Finding]:
    """Run one check; what the operating system refuses is a fault, too."""
    try:
        return list(check(known))
    except OSError as error:
        return [Finding(check.__name__.removeprefix('check_'), Level.FAULT, str(error))]


# --- the home ------------------------------------------------------------------------------------


def check_versions(_known: Known) -> Iterator[Finding]:
    """Say what runs here."""
    python, system = platform.python_version(), platform.platform(terse=True)
    words = f'degu {__version__}, Python {python}, {ssl.OPENSSL_VERSION}, {system}'
    yield Finding('versions', Level.OK, words)


def check_home(known: Known) -> Iterator[Finding]:
    """Look whether the home is this user's alone, and of a layout that we know."""
    home = known.home
    try:
        home.check()
    except FileNotFoundError:
        words = f'{home.directory} is not there yet'
        yield Finding('home', Level.WARNING, words, 'degu up makes it')
    except IdentityError as error:
        yield _blame('home', error)
    else:
        yield Finding('home', Level.OK, f"{home.directory} is this user's alone")


def check_space(known: Known) -> Iterator[Finding]:
    """Look whether something can be written where the home is."""
    directory = known.home.directory
    while not directory.exists():
        directory = directory.parent
    usage = os.statvfs(directory)
    free = usage.f_bavail * usage.f_frsize
    words = f'{free // 2**20} MiB are free at {directory}'
    if not os.access(directory, os.W_OK):
        words = f'nothing can be written to {directory}'
        yield Finding('disk', Level.FAULT, words, f'see why: findmnt -T {directory}')
    elif free == 0 or (usage.f_files and not usage.f_favail):
        yield Finding('disk', Level.FAULT, f'the disk is full: {words}', 'free some space')
    elif free < MIN_FREE_SIZE:
        yield Finding('disk', Level.WARNING, words, 'free some space')
    else:
        yield Finding('disk', Level.OK, words)


def check_settings(known: Known) -> Iterator[Finding]:
    """Look whether each setting can be."""
    try:
        known.config = build_config(read_settings(known.home, {}))
    except ConfigError as error:
        yield Finding('settings', Level.FAULT, str(error), error.remedy)
    else:
        yield Finding('settings', Level.OK, 'all can be; see them with: degu config get')


def check_shares(known: Known) -> Iterator[Finding]:
    """Look whether the directory of each share can be opened."""
    for name, share in sorted(known.config.shares.items()) if known.config else ():
        try:
            open_share(name, share).close()
        except ConfigError as error:
            yield Finding('shares', Level.FAULT, str(error), error.remedy)
        else:
            yield Finding('shares', Level.OK, f'{name} is {share.directory}')


def check_inbox(known: Known) -> Iterator[Finding]:
    """Look whether anything can come into the inbox."""
    inbox = known.config.inbox if known.config else None
    if inbox is None or not (inbox.accept or inbox.ask):
        return
    fault = find_fault(inbox.directory)
    if fault is None:
        yield Finding('inbox', Level.OK, f'it is {inbox.directory}')
    else:
        remedy = 'mend that, or choose another path for [inbox] in config.toml'
        yield Finding('inbox', Level.FAULT, f'nothing can come in: {fault}', remedy)


def check_identity(known: Known) -> Iterator[Finding]:
    """Look whether keys and certificates are private and fit together."""
    try:
        known.identity = Identity.open(known.home.identity_directory)
    except FileNotFoundError:
        words = 'this machine has no identity yet'
        yield Finding('identity', Level.WARNING, words, 'degu up makes one')
    except IdentityError as error:
        yield _blame('identity', error)
    else:
        yield Finding('identity', Level.OK, f'machine {known.identity.machine_id}')


def check_certificate(known: Known) -> Iterator[Finding]:
    """Look whether other machines take our certificate, by our clock."""
    identity = known.identity
    if identity is None:
        return
    not_before, not_after = pki.parse_validity(identity.machine_cert)
    renewal = 'start the node, which renews it: degu up --bg'
    if known.now < not_before:
        words = f'it is valid from {not_before:%Y-%m-%d}, and our clock says {known.now:%Y-%m-%d}'
        yield Finding('certificate', Level.FAULT, words, 'set the clock: timedatectl')
    elif known.now > not_after:
        remedy = renewal if identity.can_certify else 'join your user again: degu pair --mine'
        yield Finding('certificate', Level.FAULT, f'it ended at {not_after:%Y-%m-%d}', remedy)
    elif not_after - known.now < timedelta(seconds=EXPIRES_SOON_S):
        remedy = renewal if identity.can_certify else f'{renewal}, near the machine that certifies'
        yield Finding('certificate', Level.WARNING, f'it ends at {not_after:%Y-%m-%d}', remedy)
    else:
        yield Finding('certificate', Level.OK, f'it is valid until {not_after:%Y-%m-%d}')


def check_clock(known: Known) -> Iterator[Finding]:
    """Look whether our clock is behind what was written here before."""
    paths = (known.home.identity_directory / MACHINE_FILE, known.home.settings_path)
    times = [path.stat().st_mtime for path in paths if path.exists()]
    ahead_s = max(times, default=0.0) - known.now.timestamp()
    if ahead_s > CLOCK_SLACK_S:
        words = f'files here were written {timedelta(seconds=round(ahead_s))} in the future'
        yield Finding('clock', Level.FAULT, words, 'set the clock: timedatectl')
    else:
        yield Finding('clock', Level.OK, f'it says {known.now:%Y-%m-%d %H:%M} UTC')


def _blame(check: str, error: IdentityError) -> Finding:
    return Finding(check, Level.FAULT, str(error), error.remedy)


# --- the node ------------------------------------------------------------------------------------


def check_node(known: Known) -> Iterator[Finding]:
    """Look whether a node runs with this home and answers."""
    home = known.home
    try:
        with connect(f'unix:{home.socket_path}') as client:
            node = client.using(timeout_s=known.timeout_s).bind(NodeApi, NODE)
            known.status = status = node.status()
    except (RpcError, ValueError) as error:
        yield _explain_silence(home, error)
        return
    yield Finding('node', Level.OK, f'{status.name} runs, process {status.pid}')
    if status.version != __version__:
        words = f'it is version {status.version}, and this is {__version__}'
        yield Finding('node', Level.WARNING, words, 'start it anew: degu down && degu up --bg')
    for problem in status.problems:
        remedy = '' if problem.remedy == EXAMINE else problem.remedy
        yield Finding('node', Level.WARNING, problem.what, remedy)


def _explain_silence(home: Home, error: RpcError | ValueError) -> Finding:
    if home.is_held():
        pid = home.find_holder()
        remedy = f'see {home.log_path}, or end it: kill {pid}'
        return Finding('node', Level.FAULT, f'process {pid} runs and does not answer', remedy)
    if isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError):
        return Finding('node', Level.WARNING, 'no node runs here', 'start one: degu up --bg')
    return Finding('node', Level.FAULT, str(error), f'see what is at {home.socket_path}')


def check_port(known: Known) -> Iterator[Finding]:
    """Look whether the node can be reached here, or else whether its port can be had."""
    if known.status is not None:
        yield from _check_reached(known.status, known.config, known.timeout_s)
    elif known.config is not None:
        for host in known.config.listen:
            yield from _check_bind(Place(host, known.config.port), known.config.port)


def _check_reached(status: Status, config: Config | None, timeout_s: float) -> Iterator[Finding]:
    if not status.urls:
        words = 'no address of this machine leads to the node'
        yield Finding('port', Level.WARNING, words, 'connect it to a network; see: degu config get')
    for text in status.urls:
        url = parse_url(text)
        where = text.partition('@')[2]
        try:
            socket.create_connection((url.host, url.port), timeout_s).close()
        except OSError as error:
            words = f'the node is not reached at {where}: {error}'
            remedy = f'let TCP port {url.port} in; see: sudo nft list ruleset'
            yield Finding('port', Level.FAULT, words, remedy)
        else:
            yield Finding('port', Level.OK, f'the node is reached at {where}')
    ports = {parse_url(text).port for text in status.urls}
    if config is not None and config.port and ports and config.port not in ports:
        words = f'it uses TCP port {min(ports)} and not {config.port}, as it is set'
        yield Finding('port', Level.WARNING, words, _find_taker('t', config.port))


def _check_bind(place: Place, port: int) -> Iterator[Finding]:
    family = socket.AF_INET6 if ':' in place.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(place.address)
            sock.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            level = Level.WARNING if port == DEFAULT_PORT else Level.FAULT
            words = f'another program has TCP port {port} at {place.host}'
            yield Finding('port', level, words, _find_taker('t', port))
        elif error.errno == errno.EAFNOSUPPORT:
            yield Finding('port', Level.OK, 'this machine has no IPv6')
        else:
            words = f'nothing can listen at {place}: {error.strerror}'
            yield Finding('port', Level.FAULT, words, 'correct port and listen: degu config get')
    else:
        yield Finding('port', Level.OK, f'TCP port {port} is free at {place.host}')


def _find_taker(kind: str, port: int) -> str:
    option = f'-l{kind}np'
    return f"see which: sudo ss {option} 'sport = :{port}'"


# --- the network ---------------------------------------------------------------------------------

_REMEDIES = {
    Reason.NO_NETWORK: (Level.WARNING, 'connect it to a network'),
    Reason.VPN_ONLY: (Level.WARNING, 'say where machines are: degu config set machines degu://...'),
    Reason.NO_MULTICAST: (
        Level.FAULT,
        'say where machines are: degu config set machines degu://...',
    ),
    Reason.FIREWALL: (
        Level.FAULT,
        f'sudo ufw allow {MDNS_PORT}/udp, or sudo firewall-cmd --add-service=mdns, or the like',
    ),
}


def check_network(known: Known) -> Iterator[Finding]:
    """Look whether this machine can find others by mDNS, and be found."""
    config = known.config
    if config is None:
        return
    if not config.discovery:
        yield Finding('discovery', Level.OK, 'it is switched off in the settings')
        return
    if (error := _try_mdns_port()) is not None:
        words = f'another program keeps UDP port {MDNS_PORT} for itself: {error.strerror}'
        yield Finding('discovery', Level.FAULT, words, _find_taker('u', MDNS_PORT))
        return
    found = choose_interfaces(read_interfaces(), config.interfaces)
    for name in config.interfaces or ():
        if name not in {interface.name for interface in found}:
            words = f'interface {name} of the settings is not up with an address'
            yield Finding('discovery', Level.FAULT, words, 'correct it: degu config set interfaces')
    facts = collect_facts(0, config.interfaces)
    heard = [probe.interface for probe in facts.probes if probe.heard]
    if not heard:
        explanation = explain_nothing_found(facts)
        yield Finding('discovery', *_split(explanation.reason, str(explanation)))
        return
    yield Finding('discovery', Level.OK, f'multicast works on {", ".join(heard)}')
    for probe in facts.probes:
        if not probe.heard:
            why = probe.error or 'what is sent there is not heard'
            remedy = _REMEDIES[Reason.FIREWALL][1]
            yield Finding('discovery', Level.WARNING, f'not on {probe.interface}: {why}', remedy)
    has_ipv6 = any(network.version == 6 for each in found for network in each.networks)
    yield Finding('ipv6', Level.OK, 'it is there' if has_ipv6 else 'IPv4 only: no address by IPv6')


def _split(reason: Reason, words: str) -> tuple[Level, str, str]:
    level, remedy = _REMEDIES[reason]
    return level, words, remedy


def _try_mdns_port() -> OSError | None:
    """Return why the port cannot be shared, None where it can."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            sock.bind(('', MDNS_PORT))
        except OSError as error:
            return error
    return None


# --- other machines ------------------------------------------------------------------------------


def _list_machine_checks(known: Known, found: list[Finding]) -> list[Check]:
    """Return a check for each machine that we trust; what keeps us from that is found, too."""
    identity = known.identity
    if identity is None or not (identity.directory / TRUST_DIRECTORY).exists():
        return []
    try:
        trust = TrustStore(identity)
        users = trust.users()
    except IdentityError as error:
        found.append(_blame('trust', error))
        return []
    return [
        _build_machine_check(trust, machine_id, name)
        for user in users.values()
        for machine_id, name in user.machines.items()
        if machine_id != identity.machine_id and machine_id not in user.denied
    ]


def _build_machine_check(trust: TrustStore, machine_id: str, name: str) -> Check:
    def check_machine(known: Known) -> Iterator[Finding]:
        urls = _find_urls(known, machine_id)
        if not urls:
            remedy = 'see that it runs and is on this network: degu peers --nearby'
            if known.config is not None and not known.config.discovery:
                remedy = SET_MACHINES
            yield Finding(f'machine {name}', Level.WARNING, 'it is not seen', remedy)
            return
        yield _check_machine(trust, machine_id, f'machine {name}', urls, known.timeout_s)

    return check_machine


def _find_urls(known: Known, machine_id: str) -> list[str]:
    urls = [] if known.config is None else list(known.config.machines)
    if known.status is not None:
        machines = [machine for peer in known.status.peers for machine in peer.machines]
        urls += [url for machine in machines for url in machine.addresses]
    return [url for url in urls if parse_url(url).machine_id == machine_id]


def _check_machine(
    trust: TrustStore, machine_id: str, check: str, urls: list[str], timeout_s: float
) -> Finding:
    """Connect as whoever calls it would, and ask something, which it answers if it lets us in."""
    dialer = Dialer(trust, [StaticAddresses(urls)], timeout_s=timeout_s)
    try:
        with dialer.connect(machine_id, timeout_s) as connection:
            connection.get('/')
    except UnreachableError as error:
        tried = '; '.join(str(attempt) for attempt in error.attempts)
        errors = [attempt.error for attempt in error.attempts]
        if any(isinstance(each, pki.CertificateError | PeerRejectedError) for each in errors):
            remedy = 'compare the clocks of both, and pair again: degu pair'
            return Finding(check, Level.FAULT, tried, remedy)
        remedy = 'see that it runs, and that its firewall lets TCP in: degu doctor, there'
        return Finding(check, Level.WARNING, f'it is not reached: {tried}', remedy)
    except (DeguError, OSError) as error:
        remedy = 'pair with it again: degu pair; its log says why'
        return Finding(check, Level.FAULT, f'it does not let this machine in: {error}', remedy)
    return Finding(check, Level.OK, 'it is reached, proves its id and answers')
