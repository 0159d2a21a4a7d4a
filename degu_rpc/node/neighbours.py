"""Who is near this node: mDNS while there is a network for it, and what a person has said.

1. `start` announces the node and looks for others. Where that cannot be (no sockets, or another
   program keeps UDP port 5353), the reason is kept in `problem`, and `upkeep` tries again.
2. `find` is where a machine is: static addresses first, then what was seen. An address is a hint;
   who is there is proved by whoever connects.
3. A pairing window is announced while it is open, and those of others are seen while somebody asks.

Threads: any may call anything; `_lock` guards `_discovery`, `_browser` and `problem`, and is held
while they are made and closed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

from degu.net import Deadline
from degu_rpc.errors import DiscoveryClosedError
from degu_rpc.node.places import find_places
from degu_rpc.peers import Dialer, StaticAddresses, parse_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from degu.net import Address
    from degu_rpc.node.config import Config
    from degu_rpc.peers import AddressSource, Browser, DialedClient, Discovery, Sighting, TrustStore

_log = logging.getLogger('degu_rpc.node')


class Neighbours:
    """Finds other machines, and lets this one be found."""

    # Set once: _trust, _config, _addresses, _static. Guarded by _lock: the rest.

    def __init__(self, trust: TrustStore, config: Config, addresses: Sequence[Address]) -> None:
        """Look for nobody yet; `addresses` are where this node listens."""
        self._trust = trust
        self._config = config
        self._addresses = addresses
        self._static = StaticAddresses(config.machines)
        self._lock = threading.Lock()
        self._discovery: Discovery | None = None
        self._browser: Browser | None = None
        self.problem: str | None = None

    def start(self) -> None:
        """Be found and look for others, where that is wanted and can be."""
        if not self._config.discovery:
            return
        from degu_rpc.peers import Discovery  # here: zeroconf is large, and may not be wanted

        with self._lock:
            if self._discovery is not None:
                return
            try:
                discovery = Discovery(self._config.interfaces)
                try:
                    discovery.announce(self._trust.identity.machine_id, self._addresses)
                    browser = discovery.browse(self._list_known())
                except BaseException:
                    discovery.close()
                    raise
            except OSError as error:
                self.problem = f'this machine cannot be found by others: {error}'
                _log.warning('%s', self.problem)
                return
            self._discovery, self._browser, self.problem = discovery, browser, None

    def upkeep(self) -> None:
        """Try again what did not work, and keep a place for whom we trust by now."""
        self.start()
        browser = self._browser
        if browser is not None:
            for machine_id in self._list_known():
                browser.know(machine_id)

    def close(self) -> None:
        """Say goodbye, and look no more."""
        with self._lock:
            discovery, self._discovery, self._browser = self._discovery, None, None
        if discovery is not None:
            discovery.close()

    def _list_known(self) -> list[str]:
        return [id_ for user in self._trust.users().values() for id_ in user.machines]

    # --- other machines --------------------------------------------------------------------------

    def sightings(self) -> list[Sighting]:
        """Return who is seen now."""
        browser = self._browser
        return [] if browser is None else browser.sightings()

    def watch(self, timeout_s: float) -> Iterator[Sighting]:
        """Give each machine once, as soon as it is seen, until the time is over."""
        browser = self._browser
        return iter(()) if browser is None else browser.watch(timeout_s)

    def explain_nothing(self) -> str:
        """Say why nobody is seen; sends a question on each interface to find out."""
        browser = self._browser
        if browser is not None:
            return browser.explain('')
        return self.problem or 'discovery is switched off in the settings'

    @property
    def is_switched_on(self) -> bool:
        """Whether the settings let this node look for machines."""
        return self._config.discovery

    def find_urls(self, machine_id: str, timeout_s: float) -> list[str]:
        """Return where a machine is, the best first.

        It is waited for only where no address is set; then for so long.
        """
        urls = [url for url in self._config.machines if parse_url(url).machine_id == machine_id]
        browser = self._browser
        if browser is None:
            return urls
        if not urls:
            deadline = Deadline(timeout_s)
            with contextlib.closing(browser.find(machine_id, timeout_s)) as found:  # type: ignore[type-var]  # a generator
                for address in found:
                    if address is not None or not deadline.remaining():
                        break
        for sighting in browser.sightings():
            if sighting.machine_id == machine_id:
                urls += [p.format_url(machine_id) for p in find_places(sighting.addresses)]
        return urls

    def build_client(self, machine_id: str) -> DialedClient:
        """Return a client of a machine, wherever it is."""
        browser = self._browser
        sources: list[AddressSource] = [self._static]
        if browser is not None:
            sources.append(browser)
        return Dialer(self._trust, sources).client(machine_id)

    # --- pairing windows -------------------------------------------------------------------------

    @contextlib.contextmanager
    def announcing_window(self, addresses: Sequence[Address]) -> Iterator[None]:
        """Let a pairing window be found, while it is open and as far as can be."""
        discovery = self._discovery
        with contextlib.ExitStack() as stack:
            if discovery is not None:
                with contextlib.suppress(DiscoveryClosedError):
                    stack.enter_context(discovery.announce_pairing(addresses))
            yield

    def find_windows(self, timeout_s: float, settle_s: float) -> list[Sighting]:
        """Return the pairing windows that are seen: wait for the first, then a moment more."""
        discovery = self._discovery
        if discovery is None:
            return []
        with contextlib.suppress(DiscoveryClosedError), discovery.browse_pairing() as browser:
            for _ in browser.watch(timeout_s):
                for _ in browser.watch(settle_s):
                    pass
                break
            return browser.sightings()
        return []
