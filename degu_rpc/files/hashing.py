"""Hash large files for many callers: each file once at a time, and a few files at once in all.

1. Who wants a file joins whoever waits for it already, or has it queued for one of MAX_HASHING
   threads. So callers neither make the disk read the same several times over, nor keep each other
   waiting by being slow to take an answer.
2. One that nobody waits for any more is given up at the next step.

What was hashed while a caller waited is what the file was when it asked: a file that changes
meanwhile is hashed anew, or is an error.

Threads: any number may ask. The pool's own are started when there is something to hash. `_lock`
guards the jobs.
"""

from __future__ import annotations

import concurrent.futures
import threading
from typing import TYPE_CHECKING

from degu_rpc.files.limits import HEARTBEAT_S, MAX_HASHING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from degu_rpc.files.content import Hashed
    from degu_rpc.files.paths import Path

    HashSteps = Callable[[Path], Generator[None, None, Hashed]]


class _Job:
    """A file that is hashed, or will be, and how many callers wait for it."""

    future: concurrent.futures.Future[Hashed]

    def __init__(self) -> None:
        self.waiting = 0


class HashPool:
    """See the module. Close it once it was used."""

    # Set once: _hash_steps, _pool, _lock. Guarded by _lock: _jobs, and what is in them.

    def __init__(self, hash_steps: HashSteps) -> None:
        """Hash with `hash_steps`, which pauses now and then; no thread is started yet."""
        self._hash_steps = hash_steps
        self._pool = concurrent.futures.ThreadPoolExecutor(MAX_HASHING, 'degu-hash')
        self._lock = threading.Lock()
        self._jobs: dict[Path, _Job] = {}

    def close(self) -> None:
        """Give up what is hashed, and end the threads."""
        with self._lock:
            for job in self._jobs.values():
                job.waiting = 0
        self._pool.shutdown(cancel_futures=True)

    def hash(self, path: Path) -> Generator[None, None, Hashed]:
        """Have a file hashed, pausing now and then while that is under way.

        Raises what `hash_steps` does; RuntimeError or CancelledError once the pool is closed.
        """
        with self._lock:
            job = self._jobs.get(path)
            if job is None:
                job = _Job()
                job.future = self._pool.submit(self._run, path, job)
                self._jobs[path] = job
            job.waiting += 1
        try:
            while not concurrent.futures.wait([job.future], HEARTBEAT_S / 4).done:
                yield
            return job.future.result()
        finally:
            with self._lock:
                job.waiting -= 1
                if job.waiting <= 0:
                    self._forget(path, job)

    def _run(self, path: Path, job: _Job) -> Hashed:
        steps = self._hash_steps(path)
        try:
            while True:
                next(steps)
                with self._lock:
                    if job.waiting <= 0:
                        raise concurrent.futures.CancelledError
        except StopIteration as end:
            hashed: Hashed = end.value
            return hashed
        finally:
            steps.close()
            with self._lock:
                self._forget(path, job)

    def _forget(self, path: Path, job: _Job) -> None:
        """Have who comes now begin anew. With the lock."""
        if self._jobs.get(path) is job:
            del self._jobs[path]
