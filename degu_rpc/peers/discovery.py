"""Who is near: this machine is announced by mDNS, and others are seen. Hints, never trust.

    with Discovery() as discovery, discovery.announce(identity.machine_id, [server.address]):
        browser = discovery.browse()
        for address in browser.find(machine_id, timeout_s=3):     # what a Dialer does
            ...

1. A `Discovery` opens the mDNS sockets on the local interfaces, and follows the interfaces as they
   come and go.
2. `announce` says `<machine id>._degu._tcp.local.`, a port, addresses and the TXT record `v=1`:
   no name of a user or a host. The host record goes by the same id.
3. A `Browser` asks who is there, at growing intervals, and notes every answer in a table
   (`degu_rpc.peers.sightings`). All answers for a name are noted, not the last one alone, so that
   somebody who announces another's id adds addresses and takes none away.
4. `announce_pairing` and `browse_pairing` do the same for pairing windows
   (`_degu-pair._tcp.local.`), by random names of the same form.

Threads: a Discovery has one thread of its own, which runs an event loop and owns the sockets, the
records and the announcements. Methods may be called from any other thread: they run in that one
and are waited for; `_lock` guards whether they still may. What was seen is on a `Board`. `close()`
lets no further call in, waits for those that run, says goodbye and ends the thread.

This is the one module that imports zeroconf, and nothing imports this one before it is used.

Source: RFC 6762 (mDNS), RFC 6763 (DNS-SD).
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextlib
import enum
import logging
import random
import secrets
import socket
import threading
from ipaddress import ip_address
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from zeroconf import (  # type: ignore[attr-defined]  # its __all__ has fewer names than its manual
    DNSAddress,
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSService,
    IPVersion,
    RecordUpdate,
    RecordUpdateListener,
    Zeroconf,
)
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from degu.net import Deadline, parse_address
from degu_rpc.errors import DiscoveryClosedError
from degu_rpc.peers.board import Board
from degu_rpc.peers.diagnosis import collect_facts, explain_nothing_found
from degu_rpc.peers.interfaces import Interface, choose_interfaces, read_interfaces
from degu_rpc.peers.limits import (
    ASK_AGAIN_S,
    FIND_S,
    MAX_ADDRESSES,
    MAX_QUESTIONS,
    SIGHTING_S,
)
from degu_rpc.peers.sightings import Pauses, Sighting, check_machine_id, find_on_link, is_machine_id

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Iterable, Iterator, Sequence
    from types import TracebackType

    from degu.net import Address

TXT = b'\x03v=1'
"""The one string of the TXT record: the version of what is announced, nothing else."""

# Source: RFC 1035 §3.2, RFC 3596 §2.1, RFC 2782.
_IN = 1
_A, _PTR, _AAAA, _SRV = 1, 12, 28, 33
_QUERY = 0
# Source: rtnetlink(7).
_CHANGES = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_SETTLE_S = 0.1  # one change of the network comes as several messages
_QUESTION_PAUSE_S = 1.0  # RFC 6762 §5.2
_FIRST_QUESTION_S = (0.02, 0.12)  # RFC 6762 §5.2: machines that start together must not collide

Question = tuple[str, int]
"""A name and the type of record that is asked for."""

_log = logging.getLogger('degu_rpc.peers')


class Service(enum.Enum):
    """What is announced, by its DNS-SD type."""

    MACHINE = '_degu._tcp.local.'
    PAIRING = '_degu-pair._tcp.local.'


class Discovery:
    """The mDNS side of this machine; a context manager."""

    # Set once: _names, _loop, _thread. Guarded by _lock: _closed, _calls. Everything else belongs
    # to the thread, where _announcing guards the announcements and what is said of them.

    def __init__(self, interface_names: Collection[str] | None = None) -> None:
        """Open the sockets on the local interfaces, or on those of these names.

        Raises OSError, with EADDRINUSE where another program keeps UDP port 5353 for itself.
        """
        self._names = interface_names
        self._interfaces: list[Interface] = []
        self._announcements: list[Announcement] = []
        self._browsers: list[Browser] = []
        self._tasks: set[asyncio.Future[Any]] = set()
        self._changed = asyncio.Event()
        self._announcing = asyncio.Lock()
        self._lock = threading.Lock()
        self._closed = False
        self._calls: set[concurrent.futures.Future[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name='degu-discovery', daemon=True)
        self._thread.start()
        try:
            self._call(self._open())
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def announce(self, machine_id: str, addresses: Sequence[Address]) -> Announcement:
        """Announce this machine, which listens at *addresses*, until the announcement is closed.

        For a wildcard address the addresses of the local interfaces are told, as they change: IPv4
        and link-local IPv6, which is all that a neighbour needs.

        Raises ValueError for another form of id, for an address that no other machine could
        connect to, for two ports (a DNS-SD name has one), and for an id that is announced already;
        DiscoveryClosedError.
        """
        return self._announce(Service.MACHINE, machine_id, addresses)

    def announce_pairing(self, addresses: Sequence[Address]) -> Announcement:
        """Announce a pairing window by a random name, which says nothing about whose it is.

        Raises ValueError as `announce` does.
        """
        name = base64.b32encode(secrets.token_bytes(30)).decode('ascii').lower()
        return self._announce(Service.PAIRING, name, addresses)

    def browse(self, known: Iterable[str] = ()) -> Browser:
        """Begin to look for machines; those whose ids are *known* always have a place.

        Raises DiscoveryClosedError.
        """
        return self._browse(Service.MACHINE, known)

    def browse_pairing(self) -> Browser:
        """Begin to look for pairing windows; a sighting's `machine_id` is the window's name.

        Raises DiscoveryClosedError.
        """
        return self._browse(Service.PAIRING, ())

    def close(self) -> None:
        """Say goodbye for what is announced and end the thread; a second time only waits for it."""
        with self._lock:
            is_first = not self._closed
            self._closed = True
            calls = tuple(self._calls)
        if is_first:
            try:
                concurrent.futures.wait(calls)
                asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    # --- from other threads ------------------------------------------------------------------

    def _announce(self, service: Service, name: str, addresses: Sequence[Address]) -> Announcement:
        announcement = Announcement(self, service, name, addresses)
        self._call(self._register(announcement))
        return announcement

    def _browse(self, service: Service, known: Iterable[str]) -> Browser:
        browser = Browser(self, service, known)
        self._call(self._start(browser))
        return browser

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run *coroutine* in the thread. Raises what it raises, and DiscoveryClosedError."""
        with self._lock:
            if self._closed:
                coroutine.close()
                raise DiscoveryClosedError
            call = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            self._calls.add(call)
        call.add_done_callback(self._forget_call)
        call.result()

    def _forget_call(self, call: concurrent.futures.Future[None]) -> None:
        with self._lock:
            self._calls.discard(call)

    # --- in the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _open(self) -> None:
        self._notices = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        try:
            self._notices.bind((0, _CHANGES))
            self._interfaces = choose_interfaces(read_interfaces(), self._names)
            self._zeroconf = AsyncZeroconf(*self._sockets())
            await self._zeroconf.zeroconf.async_wait_for_start()
        except BaseException:
            self._notices.close()
            raise
        self._loop.add_reader(self._notices, self._note_change)
        self._keep(self._follow_interfaces())

    async def _shut(self) -> None:
        for browser in self._browsers:
            browser._board.close()
        self._loop.remove_reader(self._notices)
        self._notices.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._zeroconf.async_close()

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _sockets(self) -> tuple[list[str | int], bool, IPVersion]:
        """Return the arguments of Zeroconf for the interfaces: one IPv4 address and the number."""
        chosen: list[str | int] = []
        for interface in self._interfaces:
            chosen += [str(n.ip) for n in interface.networks if n.version == 4][:1]
            if any(n.version == 6 and n.ip.is_link_local for n in interface.networks):
                chosen.append(interface.number)
        has_ipv6 = any(isinstance(choice, int) for choice in chosen)
        return chosen, False, IPVersion.All if has_ipv6 else IPVersion.V4Only

    def _note_change(self) -> None:
        # What changed is not read: messages can be lost (ENOBUFS), and all is looked at anyway.
        with contextlib.suppress(OSError):
            while self._notices.recv(65536):
                pass
        self._changed.set()

    async def _follow_interfaces(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(_SETTLE_S)
            self._changed.clear()
            # Beside us, as it announces again in the end, which takes longer than the next change.
            self._keep(self._adopt_interfaces())

    async def _adopt_interfaces(self) -> None:
        try:
            async with self._announcing:
                self._interfaces = choose_interfaces(read_interfaces(), self._names)
                for announcement in self._announcements:
                    await self._update(announcement)
            # Here zeroconf itself lets one in after the other, and then announces beside the next.
            # What is as before it leaves alone, and what failed (an address that was not usable
            # yet) it tries again.
            choice, _, ip_version = self._sockets()
            await self._zeroconf.async_update_interfaces(choice, ip_version)
        except (OSError, RuntimeError) as error:  # the latter for an interface that just went away
            _log.warning('a change of the network could not be followed: %s', error)
        for browser in self._browsers:
            self._ask(browser._question)

    async def _register(self, announcement: Announcement) -> None:
        async with self._announcing:
            if any(announcement.name == other.name for other in self._announcements):
                raise ValueError(f'{announcement.name} is announced already')
            info = announcement._build_info(self._interfaces)
            # Without probing whether the name is taken: it is the hash of our key, so whoever else
            # has it lies, and must not be able to silence us.
            sent = await self._zeroconf.async_register_service(info, cooperating_responders=True)
            self._keep(_finish(sent))
            self._announcements.append(announcement)

    async def _update(self, announcement: Announcement) -> None:
        before, info = announcement._info, announcement._build_info(self._interfaces)
        if _addresses_of(info) != _addresses_of(before):
            self._keep(_finish(await self._zeroconf.async_update_service(info)))

    async def _unregister(self, announcement: Announcement) -> None:
        async with self._announcing:
            if announcement not in self._announcements:
                return
            self._announcements.remove(announcement)
            sent = await self._zeroconf.async_unregister_service(announcement._info)
        await sent

    async def _start(self, browser: Browser) -> None:
        browser._listener = _Listener(browser)
        self._zeroconf.zeroconf.async_add_listener(browser._listener, None)
        browser._asking = self._keep(self._keep_asking(browser._question))
        self._browsers.append(browser)

    async def _stop(self, browser: Browser) -> None:
        if browser in self._browsers:
            self._browsers.remove(browser)
            self._zeroconf.zeroconf.async_remove_listener(browser._listener)
            browser._asking.cancel()

    async def _keep_asking(self, question: Question) -> None:
        # Without the answers that we know: they would keep machines from repeating themselves.
        await asyncio.sleep(random.uniform(*_FIRST_QUESTION_S))  # noqa: S311  # no secret
        self._ask(question, to_us=True)
        pause_s = _QUESTION_PAUSE_S
        while True:
            await asyncio.sleep(pause_s)
            self._ask(question)
            pause_s = min(pause_s * 2, ASK_AGAIN_S)

    async def _ask_for(self, question: Question, to_us: bool) -> None:
        self._ask(question, to_us=to_us)

    def _ask(self, *questions: Question, to_us: bool = False) -> None:
        """Ask, for an answer to everybody, or at first for one to us, which comes without delay.

        One to us can be lost: port 5353 may be shared with other programs of this machine.
        """
        message = DNSOutgoing(_QUERY)
        for name, kind in questions:
            question = DNSQuestion(name, kind, _IN)
            question.unicast = to_us  # RFC 6762 §5.4
            message.add_question(question)
        self._zeroconf.zeroconf.async_send(message)


async def _finish(sent: Any) -> None:
    await sent


def _addresses_of(info: AsyncServiceInfo) -> list[bytes]:
    return info.addresses_by_version(IPVersion.All)


class Announcement:
    """What is announced of this machine; a context manager that takes it back."""

    _info: AsyncServiceInfo

    def __init__(
        self, discovery: Discovery, service: Service, name: str, addresses: Sequence[Address]
    ) -> None:
        self.name = check_machine_id(name)
        """The machine id, or the random name of a pairing window."""
        self._discovery = discovery
        self._service = service
        self._hosts = []
        ports = set()
        for address in addresses:
            _, parsed = parse_address(address)
            if not isinstance(parsed, tuple):
                raise ValueError(  # noqa: TRY004  # it is an address, of the wrong kind
                    f'other machines cannot connect to {address!r}'
                )
            self._hosts.append(ip_address(parsed[0].partition('%')[0]))
            ports.add(parsed[1])
        if len(ports) != 1 or 0 in ports:
            raise ValueError(f'announce addresses that have one port in common, not {addresses!r}')
        self._port = ports.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the announcement back and say goodbye; a second time does nothing."""
        with contextlib.suppress(DiscoveryClosedError):  # which said goodbye
            self._discovery._call(self._discovery._unregister(self))

    def _build_info(self, interfaces: Collection[Interface]) -> AsyncServiceInfo:
        """Build the records for these interfaces, and keep them."""
        own = [network.ip for interface in interfaces for network in interface.networks]
        told = [
            ip
            for ip in own
            if ip in self._hosts
            or (
                (ip.version == 4 or ip.is_link_local)
                and any(host.is_unspecified and host.version == ip.version for host in self._hosts)
            )
        ]
        self._info = AsyncServiceInfo(
            self._service.value,
            f'{self.name}.{self._service.value}',
            addresses=[ip.packed for ip in dict.fromkeys(told)][:MAX_ADDRESSES],
            port=self._port,
            properties=TXT,
            server=f'{self.name}.local.',
            host_ttl=int(SIGHTING_S),
            other_ttl=int(SIGHTING_S),
        )
        return self._info


class Browser:
    """Who is seen on the local network; a source of addresses for a Dialer.

    A context manager. A machine that this Discovery itself announces is not among them.
    """

    name = 'mDNS'
    is_hint = True

    # Set once: _discovery, _service, _board, _question, _listener, _asking. Belongs to the
    # discovery's thread: _questions.

    _listener: _Listener
    _asking: asyncio.Future[None]

    def __init__(self, discovery: Discovery, service: Service, known: Iterable[str]) -> None:
        self._discovery = discovery
        self._service = service
        self._board = Board(known)
        self._question: Question = (service.value, _PTR)
        self._questions = Pauses(_QUESTION_PAUSE_S, MAX_QUESTIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop looking; whoever waits for an address is told that there are no more."""
        self._board.close()
        with contextlib.suppress(DiscoveryClosedError):  # which stopped looking
            self._discovery._call(self._discovery._stop(self))

    def sightings(self) -> list[Sighting]:
        """Return who is seen now; times are those of `time.monotonic()`."""
        return self._board.list_all()

    def watch(self, timeout_s: float) -> Iterator[Sighting]:
        """Give each machine once, as soon as it is seen, until the time is over."""
        return self._board.watch(timeout_s)

    def find(self, machine_id: str, timeout_s: float) -> Iterator[Address]:
        """Give the addresses where a machine was seen, the newest first, waiting for more.

        It ends after *timeout_s* or FIND_S. From now on the machine has a place in the table.
        Raises ValueError for another form of id.
        """
        deadline = Deadline(min(timeout_s, FIND_S))
        question = (f'{check_machine_id(machine_id)}.{self._service.value}', _SRV)
        given: set[Address] = set()
        to_us = True
        self._board.know(machine_id)
        while True:
            address = self._board.wait_for_address(machine_id, given, 0)
            if address is None and deadline.remaining():
                with contextlib.suppress(DiscoveryClosedError):  # which closes the board, too
                    self._discovery._call(self._discovery._ask_for(question, to_us))
                to_us = False
                pause_s = min(deadline.remaining(), _QUESTION_PAUSE_S)
                address = self._board.wait_for_address(machine_id, given, pause_s)
            if address is not None:
                given.add(address)
                yield address
            elif not deadline.remaining() or self._board.closed:
                return

    def forget(self, machine_id: str, address: Address) -> None:
        """Drop an address where another machine is."""
        self._board.forget(machine_id, address)

    def explain(self, machine_id: str) -> str:
        """Say why a machine was not found; sends a question on each interface to find out."""
        others = sum(sighting.machine_id != machine_id for sighting in self.sightings())
        return str(explain_nothing_found(collect_facts(others, self._discovery._names)))

    # --- in the discovery's thread -----------------------------------------------------------

    def _find_instance(self, name: str) -> str | None:
        """Return the instance of a full name of our service, None for any other name."""
        instance = name.removesuffix(f'.{self._service.value}')
        return instance if instance != name and is_machine_id(instance) else None

    def _drop(self, name: str) -> None:
        """Take out what said goodbye."""
        instance = self._find_instance(name)
        if instance is not None:
            self._board.remove(instance)

    def _take(self, zeroconf: Zeroconf, name: str) -> None:
        """Note what the records say of a name, and ask for those that are missing."""
        instance = self._find_instance(name)
        if instance is None or any(a.name == instance for a in self._discovery._announcements):
            return
        if not self._board.takes(instance):
            return
        services = zeroconf.cache.get_all_by_details(name, _SRV, _IN)
        if not services:
            self._ask_once((name, _SRV))
        # The newest: whoever fills the cache with older ones hides nobody.
        for service in sorted(services, key=lambda record: record.created)[-MAX_ADDRESSES:]:
            assert isinstance(service, DNSService)
            self._board.add(instance, self._find_addresses(zeroconf, service), service.ttl)

    def _find_addresses(self, zeroconf: Zeroconf, service: DNSService) -> list[Address]:
        records = [
            record
            for kind in (_A, _AAAA)
            for record in zeroconf.cache.get_all_by_details(service.server, kind, _IN)
            if isinstance(record, DNSAddress)
        ]
        if not records:
            self._ask_once((service.server, _A), (service.server, _AAAA))
        records.sort(key=lambda record: record.created)
        return [
            address
            for record in records[-MAX_ADDRESSES:]
            for address in find_on_link(
                record.address,
                record.scope_id or None,
                service.port,
                self._discovery._interfaces,
            )
        ]

    def _ask_once(self, *questions: Question) -> None:
        now = monotonic()
        if not self._questions.remaining(questions[0], now):
            self._questions.begin(questions[0], now)
            self._discovery._ask(*questions)


class _Listener(RecordUpdateListener):
    """What zeroconf calls with the records of each packet, in the discovery's thread."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._zeroconf: Zeroconf | None = None
        self._names: set[str] = set()

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Collect the names that a packet is about; the cache has its records only later."""
        self._zeroconf = zc
        for update in records:
            record = update.new
            if isinstance(record, DNSPointer) and record.name == self._browser._question[0]:
                name = record.alias
            elif isinstance(record, DNSService):
                name = record.name
            elif isinstance(record, DNSAddress):
                services = zc.cache.async_entries_with_server(record.name)
                self._names.update(service.name for service in services)
                continue
            else:
                continue
            if record.ttl == 0:  # RFC 6762 §10.1
                self._browser._drop(name)
            else:
                self._names.add(name)

    def async_update_records_complete(self) -> None:
        """Look at those names again."""
        names, self._names = self._names, set()
        if self._zeroconf is not None:
            for name in names:
                self._browser._take(self._zeroconf, name)
