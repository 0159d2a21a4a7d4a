"""What a node does by itself, now and then: its certificate, and what did not work before.

Threads: one of its own, which runs all of it; `close` ends and joins it.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from degu.errors import DeguError
from degu_rpc.errors import DeguRpcError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_log = logging.getLogger('degu_rpc.node')


class Upkeep:
    """Runs jobs again and again, each after the other, and remembers which of them fail."""

    # Set once: _jobs, _period_s, _thread, _ended. Written by the thread, read by all: problems.

    def __init__(
        self, jobs: Mapping[str, Callable[[], None]], period_s: float, name: str = 'degu-upkeep'
    ) -> None:
        """Start the thread `name`; the jobs run for the first time after one period."""
        self._jobs = jobs
        self._period_s = period_s
        self._ended = threading.Event()
        self.problems: dict[str, str] = {}
        """What each job that fails says, by its name."""
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def close(self) -> None:
        """End the thread, once the job under way is done."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._period_s):
            self.run_once()

    def run_once(self) -> None:
        """Run each job; one that fails does not keep the others from running."""
        found = {}
        for name, job in self._jobs.items():
            try:
                job()
            except (DeguRpcError, DeguError, OSError, ValueError) as error:
                found[name] = f'{name}: {error}'
                if found[name] != self.problems.get(name):
                    _log.warning('%s', found[name])
            except Exception as error:  # noqa: BLE001  # the node lives on; the log has it all
                _log.exception('%s failed', name)
                found[name] = f'{name}: {type(error).__name__}, see the log'
        self.problems = found
