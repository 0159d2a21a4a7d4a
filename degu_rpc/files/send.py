"""Send files and trees into an inbox, verified, durable, resumable.

1. Hash what is to be sent, and offer it. The same things make the same offer, so a second run goes
   on with the transfer of the first one, and nothing has to be remembered here.
2. If a person is asked on the other side, wait for the answer.
3. A few threads, each with a connection, send what the inbox says it wants: small contents in
   packs, large ones in runs of blocks, several threads at one content. The inbox checks each block.
4. Ask whether everything is there, and send what is wanted still.

A file that changed meanwhile is not sent, and the inbox is told that it will not come; that is
reported in the result. After any error, a cancel or a kill the inbox has whole files only, and a
second run goes on from what was verified there.

Threads and locks are those of the Dispatch (dispatch.py); `_lock` guards what is counted here.
"""

from __future__ import annotations

import contextlib
import os
import threading
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from degu.rgi import ContentRange
from degu_rpc.errors import ContentChangedError, IntegrityError, ListingError, OfferRefusedError
from degu_rpc.files.blocks import SMALL_SIZE
from degu_rpc.files.dispatch import Dispatch, Job, Large, Pack, Run
from degu_rpc.files.limits import (
    BUSY_ATTEMPTS,
    BUSY_PAUSE_S,
    CONNECTIONS,
    PACK_ITEMS,
    POLL_S,
    SEND_ROUNDS,
    SENT_PACK_SIZE,
)
from degu_rpc.files.listing import Kind
from degu_rpc.files.offers import Item, State, derive_transfer, parse_ranges
from degu_rpc.files.outgoing import LostContentError, Outgoing
from degu_rpc.files.packs import split_packs
from degu_rpc.files.plan import Skipped
from degu_rpc.files.progress import Meter, Progress, RateLimit
from degu_rpc.files.remote_inbox import RemoteInbox, StaleTransferError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from degu.client import Client
    from degu_rpc.files.listing import Problem
    from degu_rpc.files.offers import Answer
    from degu_rpc.peers import DialedClient


class Sent(NamedTuple):
    """What a send did. Symlinks count as files; `files_present` were there already.

    `elapsed_s` leaves out how long it took to read what was to be sent, and to get an answer where
    a person was asked.
    """

    files_sent: int
    files_present: int
    bytes_sent: int
    elapsed_s: float
    skipped: tuple[Skipped, ...]


def send(
    client: Client | DialedClient,
    prefix: str,
    paths: Sequence[str | bytes | os.PathLike[str]],
    *,
    progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
    rate_limit: float | None = None,
    waiting: Callable[[str], None] | None = None,
) -> Sent:
    """Send the files, directories and symlinks `paths` into the inbox mounted at `prefix`.

    Each gets its last name there, or one like it where that is taken; one that is given twice is
    sent once. `progress` is called now and then, never twice at once; setting `cancel` ends the
    send with TransferCanceledError. `rate_limit` is bytes a second. `waiting` is called, once, when
    a person is asked on the other side, with the id that the offer has there; the send waits for
    the answer.

    Raises OfferRefusedError when the other side says no, other FilesError (see degu_rpc.errors),
    the core's DeguError, OSError, TypeError for one path in place of several, ValueError for a rate
    that is not positive.
    """
    if isinstance(paths, str | bytes | os.PathLike):
        raise TypeError(f'send several paths, or a list of one: [{paths!r}]')
    meter = Meter(progress, cancel)
    limit = RateLimit(rate_limit)
    with Outgoing(meter.check, lambda size: meter.count(read=size)) as outgoing:
        for path in paths:
            outgoing.gather(path)
            meter.check()
        sending = _Sending(client, prefix, outgoing, meter, limit, waiting)
        return sending.run()


class _Sending:
    """One send.

    Guarded by self._lock: `_sent`, `_lost`. Used by the thread that called only: `_offer_id`,
    `_waited_s`, `_waiting`. Set once: the rest.
    """

    def __init__(
        self,
        client: Client | DialedClient,
        prefix: str,
        outgoing: Outgoing,
        meter: Meter,
        limit: RateLimit,
        waiting: Callable[[str], None] | None,
    ) -> None:
        self._outgoing = outgoing
        self._meter = meter
        self._limit = limit
        self._waiting = waiting
        self._transfer = derive_transfer(outgoing.entries)
        self._client = client
        self._prefix = prefix
        self._sizes = {entry.root: entry.size for entry in outgoing.entries if entry.root}
        self._offer_id = ''
        self._waited_s = 0.0
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._sent: set[str] = set()
        self._lost: dict[str, Problem] = {}

    def run(self) -> Sent:
        """Do all of it; see the module."""
        began = monotonic()
        counts = [entry for entry in self._outgoing.entries if entry.kind is not Kind.DIRECTORY]
        self._meter.expect(len(counts), sum(entry.size for entry in counts))
        links = sum(entry.kind is Kind.SYMLINK for entry in counts)
        is_new = False
        if self._outgoing.entries:
            with self._connect() as remote:
                is_new = self._send_all(remote)
        done = self._meter.finish()
        sent = sum(len(self._outgoing.paths_of(root)) for root in self._sent)
        sent += links if is_new else 0
        lost = [
            Skipped(path, problem)
            for root, problem in self._lost.items()
            for path in self._outgoing.paths_of(root)
        ]
        return Sent(
            sent,
            len(counts) - sent - len(lost),
            done.bytes_moved,
            monotonic() - began - self._waited_s,
            (*self._outgoing.skipped, *lost),
        )

    def _connect(self) -> RemoteInbox:
        return RemoteInbox(self._client, self._prefix, self._transfer, self._meter, self._limit)

    def _send_all(self, remote: RemoteInbox) -> bool:
        """Offer, and send what is wanted until all is there; return whether anything was to do."""
        state, wanted = self._offer_and_wait(remote)
        self._count_present(set(self._sizes) - set(wanted))
        if state is State.DONE:
            return False
        in_vain = 0
        while not self._done.is_set():
            settled = len(self._sent) + len(self._lost)
            with contextlib.suppress(StaleTransferError):  # it is offered again
                self._send_wanted(remote, wanted)
            if self._done.is_set():
                break
            in_vain = in_vain + 1 if settled == len(self._sent) + len(self._lost) else 0
            if in_vain == SEND_ROUNDS:
                raise OfferRefusedError(503, 'it takes what is sent, and wants it again')
            if in_vain > 1:
                self._meter.sleep(BUSY_PAUSE_S)
            state, wanted = self._offer_and_wait(remote)
            if state is State.DONE:
                self._done.set()
        return True

    def _offer_and_wait(self, remote: RemoteInbox) -> tuple[State, list[str]]:
        """Offer everything, and wait for the answer of a person if one is asked; see `_offer()`."""
        state, wanted = self._offer(remote)
        if state is State.WAITING and self._waiting is not None:
            self._waiting(self._offer_id)
            self._waiting = None
        began = monotonic()
        while state is State.WAITING:
            if remote.wait_for_state(POLL_S) is not State.WAITING:
                state, wanted = self._offer(remote)
            if state is State.WAITING:
                self._meter.sleep(BUSY_PAUSE_S)  # an inbox may say so at once
        self._waited_s += monotonic() - began
        self._meter.begin_rate()
        return state, wanted

    def _offer(self, remote: RemoteInbox) -> tuple[State, list[str]]:
        """Offer everything; return the state, and the roots of what is wanted.

        Raises OfferRefusedError, ListingError.
        """
        for _ in range(BUSY_ATTEMPTS):
            try:
                return self._offer_once(remote)
            except StaleTransferError as stale:
                raise OfferRefusedError(409, str(stale)) from stale
            except OfferRefusedError as refusal:
                if refusal.status != 503:
                    raise
                busy = refusal
            self._meter.sleep(BUSY_PAUSE_S)
        raise busy

    def _offer_once(self, remote: RemoteInbox) -> tuple[State, list[str]]:
        state = None
        wanted: dict[str, None] = {}
        for answer in remote.offer(self._outgoing.entries):
            state = answer.state or state
            self._offer_id = answer.offer_id or self._offer_id
            if answer.root in self._sizes:
                wanted[answer.root] = None
        if state is None:
            raise ListingError('an inbox says what state an offer is in')
        if state is State.REFUSED:
            raise OfferRefusedError(200, 'it does not want what was offered', self._offer_id)
        return state, list(wanted)

    def _count_present(self, roots: set[str]) -> None:
        links = sum(entry.kind is Kind.SYMLINK for entry in self._outgoing.entries)
        self._meter.count(files=links)
        for root in roots:
            count = len(self._outgoing.paths_of(root))
            self._meter.count(files=count, size=count * self._sizes[root])

    # --- the workers ----------------------------------------------------------------------------

    def _send_wanted(self, remote: RemoteInbox, wanted: Iterable[str]) -> None:
        """Send what is wanted, with several connections. Raises what went wrong first."""
        small: list[str] = []
        large: list[str] = []
        for root in wanted:
            if root in self._lost:
                self._give_up(remote, root)
            else:
                (small if self._sizes[root] <= SMALL_SIZE else large).append(root)
        packs = split_packs(small, self._sizes.__getitem__, PACK_ITEMS, SENT_PACK_SIZE)
        dispatch = Dispatch(map(Pack, packs), map(Large, large))
        others = [
            threading.Thread(target=self._work, args=(dispatch, None), name=f'send-{number}')
            for number in range(1, CONNECTIONS)
        ]
        try:
            for thread in others:
                thread.start()
            self._work(dispatch, remote)
        finally:
            dispatch.stop()
            for thread in others:
                if thread.ident is not None:
                    thread.join()
        if dispatch.error is not None:
            raise dispatch.error

    def _work(self, dispatch: Dispatch, remote: RemoteInbox | None) -> None:
        """Do jobs, with a connection of its own unless one is given."""
        with contextlib.ExitStack() as stack:
            if remote is None:
                remote = stack.enter_context(self._connect())
            try:
                while (job := dispatch.take()) is not None:
                    self._do(remote, dispatch, job)
            except StaleTransferError:
                dispatch.stop()  # it is offered again
            except BaseException as error:  # noqa: BLE001  # it is raised in the thread that sends
                dispatch.fail(error)
                self._meter.fail()

    def _do(self, remote: RemoteInbox, dispatch: Dispatch, job: Job) -> None:
        if isinstance(job, Pack):
            self._send_pack(remote, job)
            return
        root = job.large.root if isinstance(job, Run) else job.root
        try:
            if isinstance(job, Run):
                self._send_run(remote, job)
                dispatch.finish(job, is_settled=self._is_settled(job.large.root))
            else:
                self._open(remote, dispatch, job)
        except LostContentError as error:
            dispatch.drop(job)
            self._lose(remote, root, error.problem)
        except IntegrityError as error:  # the inbox cannot say which file it is
            raise IntegrityError(self._name(root), error.block, error.reason) from error

    def _send_pack(self, remote: RemoteInbox, pack: Pack) -> None:
        items = []
        for root in pack.roots:
            try:
                items.append(Item(root, self._outgoing.read_small(root)))
            except LostContentError as error:
                self._lose(remote, root, error.problem)
        if not items:
            return
        answers = self._listen(remote.send_pack(items))
        self._meter.count(moved=sum(len(item.content) for item in items))
        for item in items:
            answer = answers.get(item.root)
            if answer is None or answer.status == 503:
                continue  # asked for again
            self._require_right(answer)
            self._settle(item.root)
            self._meter.count(size=len(item.content))

    def _open(self, remote: RemoteInbox, dispatch: Dispatch, large: Large) -> None:
        """Send the manifest of a large content, and find out which blocks are missing."""
        manifest = self._outgoing.find_manifest(large.root)
        answer = self._listen(remote.send_manifest(large.root, manifest)).get(large.root)
        runs = []
        if answer is not None and answer.status != 503:
            self._require_right(answer)
            runs = parse_ranges(answer.missing)
            if not runs:
                self._settle(large.root)
                if large.missing is None:
                    self._meter.count(size=manifest.size)
        missing = sum(stop - start for start, stop in runs)
        if large.missing is None:
            self._meter.count(size=manifest.size - missing if runs else 0)
        elif missing >= large.missing:
            raise IntegrityError(self._name(large.root), None, 'the inbox does not keep it')
        for start, stop in runs:
            if start % manifest.block_size or not start < stop <= manifest.size:
                raise ListingError(f'an inbox misses whole blocks, not {start} to {stop}')
        dispatch.opened(large, runs, missing, manifest.block_size)

    def _send_run(self, remote: RemoteInbox, run: Run) -> None:
        root = run.large.root
        part = ContentRange(run.start, run.stop, self._sizes[root])
        with self._outgoing.reading(root) as fd:
            answers = self._listen(
                remote.send_run(root, part, lambda: self._read(root, fd, run.start, run.stop))
            )
        answer = answers.get(root)
        if answer is not None and answer.status != 503:
            self._require_right(answer)
            self._settle(root)

    def _read(self, root: str, fd: int, start: int, stop: int) -> Iterator[bytes]:
        """Yield a part of a file, counted, and no faster than allowed."""
        while start < stop:
            piece = os.pread(fd, min(stop - start, self._limit.piece_size), start)
            if not piece:
                raise ContentChangedError(self._name(root))
            self._limit.wait(len(piece), self._meter)
            yield piece
            start += len(piece)
            self._meter.check()
            self._meter.count(size=len(piece), moved=len(piece))

    # --- answers --------------------------------------------------------------------------------

    def _listen(self, answers: Iterator[Answer]) -> dict[str, Answer]:
        """Note whether the offer is done; return the last answer about each content."""
        found = {}
        for answer in answers:
            if answer.state is State.DONE:
                self._done.set()
            elif answer.state is State.REFUSED:
                raise OfferRefusedError(200, 'it does not want it any more', self._offer_id)
            if answer.root:
                found[answer.root] = answer
        return found

    def _require_right(self, answer: Answer) -> None:
        if answer.status != 200:
            raise IntegrityError(self._name(answer.root), None, f'the inbox says {answer.status}')

    def _settle(self, root: str) -> None:
        with self._lock:
            if root in self._sent:
                return
            self._sent.add(root)
        copies = len(self._outgoing.paths_of(root)) - 1
        self._meter.count(files=1 + copies, size=copies * self._sizes[root])

    def _is_settled(self, root: str) -> bool:
        with self._lock:
            return root in self._sent

    def _lose(self, remote: RemoteInbox, root: str, problem: Problem) -> None:
        """Report a content that cannot be sent, and tell the inbox."""
        with self._lock:
            is_new = root not in self._lost
            self._lost[root] = problem
        if is_new:
            count = len(self._outgoing.paths_of(root))
            self._meter.expect(-count, -count * self._sizes[root])
            self._give_up(remote, root)

    def _give_up(self, remote: RemoteInbox, root: str) -> None:
        self._listen(remote.give_up(root))

    def _name(self, root: str) -> str:
        return self._outgoing.paths_of(root)[0]
