"""The mDNS sockets of this machine, and the thread that owns them.

1. A `Link` opens the sockets on the local interfaces, and follows the interfaces as they come and
   go (rtnetlink). What was seen in a network that is gone is not seen any more.
2. `register` announces a `Registration`, and tells it anew when the interfaces change.
3. `start` has a `Listener` see the records of each packet, and asks its question, at growing
   intervals and again when the interfaces change.

Threads: a Link has one thread of its own, which runs an event loop; all coroutines and all other
methods but `call` and `close` are for that thread. `call` runs a coroutine there for any other one
and waits for it; `_lock` guards whether it still may. `close` lets no further call in, waits for
those that run, says goodbye and ends the thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import random
import socket
import threading
from typing import TYPE_CHECKING, Any

from zeroconf import (  # type: ignore[attr-defined]  # its __all__ has fewer names than its manual
    DNSOutgoing,
    DNSQuestion,
    IPVersion,
)
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from degu_rpc.errors import DiscoveryClosedError
from degu_rpc.peers.discovery.interfaces import Interface, choose_interfaces, read_interfaces
from degu_rpc.peers.limits import ASK_AGAIN_S

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine

    from degu_rpc.peers.discovery.announcement import Registration
    from degu_rpc.peers.discovery.browser import Listener

Question = tuple[str, int]
"""A name and the type of record that is asked for."""

# Source: RFC 1035 §3.2.
IN = 1
_QUERY = 0
# Source: rtnetlink(7).
_CHANGES = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_SETTLE_S = 0.1  # one change of the network comes as several messages
QUESTION_PAUSE_S = 1.0  # RFC 6762 §5.2
_FIRST_QUESTION_S = (0.02, 0.12)  # RFC 6762 §5.2: machines that start together must not collide

_log = logging.getLogger('degu_rpc.peers')


class Link:
    """The mDNS sockets on the local interfaces, and the thread that owns them."""

    # Set once: interface_names, _loop, _thread. Guarded by _lock: _closed, _calls. Everything else
    # belongs to the thread, where _announcing guards the registrations and what is said of them.

    def __init__(self, interface_names: Collection[str] | None) -> None:
        """Open the sockets on the local interfaces, or on those of these names.

        Raises OSError, with EADDRINUSE where another program keeps UDP port 5353 for itself.
        """
        self.interface_names = interface_names
        self.interfaces: list[Interface] = []
        self._registrations: list[Registration] = []
        self._listeners: dict[Listener, asyncio.Future[None]] = {}
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
            self.call(self._open())
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            raise

    # --- from other threads ------------------------------------------------------------------

    def call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run *coroutine* in the thread. Raises what it raises, and DiscoveryClosedError."""
        with self._lock:
            if self._closed:
                coroutine.close()
                raise DiscoveryClosedError
            call = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            self._calls.add(call)
        call.add_done_callback(self._forget_call)
        try:
            call.result()
        finally:
            del call  # or its exception would keep this frame alive, and this frame the exception

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

    def _forget_call(self, call: concurrent.futures.Future[None]) -> None:
        with self._lock:
            self._calls.discard(call)

    # --- in the thread: its life -------------------------------------------------------------

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
            self.interfaces = choose_interfaces(read_interfaces(), self.interface_names)
            self._zeroconf = AsyncZeroconf(*self._sockets())
            await self._zeroconf.zeroconf.async_wait_for_start()
        except BaseException:
            self._notices.close()
            raise
        self._loop.add_reader(self._notices, self._note_change)
        self._keep(self._follow_interfaces())

    async def _shut(self) -> None:
        for listener in self._listeners:
            listener.sightings.close()
        self._loop.remove_reader(self._notices)
        self._notices.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for registration in self._registrations:
            self._drop_answers(registration)
        await self._zeroconf.async_close()

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- in the thread: the interfaces -------------------------------------------------------

    def _sockets(self) -> tuple[list[str | int], bool, IPVersion]:
        """Return the arguments of Zeroconf for the interfaces: one IPv4 address and the number."""
        chosen: list[str | int] = []
        for interface in self.interfaces:
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
                self.interfaces = choose_interfaces(read_interfaces(), self.interface_names)
                for listener in self._listeners:
                    listener.sightings.keep_on_link(self.interfaces)
                for registration in self._registrations:
                    await self._update(registration)
            # Here zeroconf itself lets one in after the other, and then announces beside the next.
            # What is as before it leaves alone, and what failed (an address that was not usable
            # yet) it tries again.
            choice, _, ip_version = self._sockets()
            await self._zeroconf.async_update_interfaces(choice, ip_version)
        except (OSError, RuntimeError) as error:  # the latter for an interface that just went away
            _log.warning('a change of the network could not be followed: %s', error)
        for listener in self._listeners:
            self.ask(listener.question)

    # --- in the thread: what is announced ----------------------------------------------------

    async def register(self, registration: Registration) -> None:
        """Announce what is registered. Raises ValueError for a name that is announced already."""
        async with self._announcing:
            if self.announces(registration.name):
                raise ValueError(f'{registration.name} is announced already')
            registration.build_info(self.interfaces)
            # Without probing whether the name is taken: it is the hash of our key, so whoever else
            # has it lies, and must not be able to silence us.
            sent = await self._zeroconf.async_register_service(
                registration.info, cooperating_responders=True
            )
            self._keep(_finish(sent))
            self._registrations.append(registration)

    async def unregister(self, registration: Registration) -> None:
        """Say goodbye for a registration; nothing for one that is not announced."""
        async with self._announcing:
            if registration not in self._registrations:
                return
            self._registrations.remove(registration)
            sent = await self._zeroconf.async_unregister_service(registration.info)
            self._drop_answers(registration)
        await sent

    def announces(self, name: str) -> bool:
        """Tell whether this is the name of something that we announce ourselves."""
        return any(registration.name == name for registration in self._registrations)

    def _drop_answers(self, registration: Registration) -> None:
        """Take back the answers that are still to be sent: after the goodbye they would undo it."""
        name = registration.info.name
        zeroconf = self._zeroconf.zeroconf
        for queue in (zeroconf.out_queue, zeroconf.out_delay_queue):
            for group in queue.queue:
                for record in list(group.answers):
                    if name in (record.name, getattr(record, 'alias', None)):
                        del group.answers[record]

    async def _update(self, registration: Registration) -> None:
        before = registration.info
        registration.build_info(self.interfaces)
        if _addresses_of(registration.info) != _addresses_of(before):
            self._keep(_finish(await self._zeroconf.async_update_service(registration.info)))

    # --- in the thread: what is asked --------------------------------------------------------

    async def start(self, listener: Listener) -> None:
        """Let a listener see all records from now on, and ask its question."""
        self._zeroconf.zeroconf.async_add_listener(listener, None)
        self._listeners[listener] = self._keep(self._keep_asking(listener.question))

    async def stop(self, listener: Listener) -> None:
        """Take a listener out; nothing for one that is not there."""
        asking = self._listeners.pop(listener, None)
        if asking is not None:
            self._zeroconf.zeroconf.async_remove_listener(listener)
            asking.cancel()

    def ask(self, *questions: Question, to_us: bool = False) -> None:
        """Ask, for an answer to everybody, or at first for one to us, which comes without delay.

        One to us can be lost: port 5353 may be shared with other programs of this machine.
        """
        message = DNSOutgoing(_QUERY)
        for name, kind in questions:
            question = DNSQuestion(name, kind, IN)
            question.unicast = to_us  # RFC 6762 §5.4
            message.add_question(question)
        self._zeroconf.zeroconf.async_send(message)

    async def _keep_asking(self, question: Question) -> None:
        # Without the answers that we know: they would keep machines from repeating themselves.
        await asyncio.sleep(random.uniform(*_FIRST_QUESTION_S))  # noqa: S311  # no secret
        self.ask(question, to_us=True)
        pause_s = QUESTION_PAUSE_S
        while True:
            await asyncio.sleep(pause_s)
            self.ask(question)
            pause_s = min(pause_s * 2, ASK_AGAIN_S)


async def _finish(sent: Any) -> None:
    await sent


def _addresses_of(info: AsyncServiceInfo) -> list[bytes]:
    return info.addresses_by_version(IPVersion.All)
