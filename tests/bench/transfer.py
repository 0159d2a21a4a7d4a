"""How fast our transfer is beside rsync, scp, nginx with curl, Syncthing and the machine's limits.

    python tests/bench/transfer.py [--only CASE ...] [--peers PEER ...] [--rounds N] [--json FILE]

Each case copies a source that rests to a destination of its own, over loopback. Contenders take
turns, round by round, each in processes of its own and not pinned; medians are kept. The first
round's copies are compared with the source.

    one-file     a file of 1 GiB of random bytes, on tmpfs
    durable      10,000 files of 4 KiB in 100 directories, on the disk, with an fsync of each
    not-durable  the same on tmpfs, nothing synced
    inserted     the file again, where the receiver has it without its first MiB: bytes on the wire
    unchanged    the files again, where the receiver has all of them

What is timed is said where each contender is: `transfer_ours.py`, `transfer_bare.py`,
`transfer_peers.py`. Needs the programs rsync, sshd and scp, nginx and curl, syncthing and setpriv,
or fewer with --peers. Run by hand; nothing here is a test.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import transfer_bare
import transfer_peers
from common import MIB, alternate, build_parser, describe_machine, write_json
from transfer_common import FILE, MEMORY, Measured, OpenCopy, Setting, warm_memory
from transfer_ours import open_degu, open_new_degu

from degu.misc import TempPKI
from degu_rpc.files.content import SETTLED_NS

if TYPE_CHECKING:
    import argparse

    from transfer_common import Copy

Results = dict[str, list[Measured]]

DISK = '/var/tmp'
OURS, OURS_NEW = 'degu', 'degu, the first time'
TLS, LOOP, LOOKS = 'a bare TLS copy', 'a bare loop', 'scandir and lstat'
PRIVATE = ('.degu', '.stfolder')
"""What a program adds to a destination for itself."""


# --- what is copied ------------------------------------------------------------------------------


def write_file(source: Path, size: int) -> None:
    with (source / FILE).open('xb') as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))


def write_files(source: Path, size: int) -> None:
    for number in range(size // 4096):
        directory = source / f'{number // 100:03}'
        directory.mkdir(exist_ok=True)
        (directory / f'{number:06}').write_bytes(os.urandom(4096))


def leave_empty(source: Path, destination: Path) -> None:
    pass


def copy_without_first(source: Path, destination: Path) -> None:
    """Put there what the file was before a MiB was inserted at its front."""
    with (source / FILE).open('rb') as new, (destination / FILE).open('xb') as old:
        new.seek(MIB)
        shutil.copyfileobj(new, old, MIB)


def copy_all(source: Path, destination: Path) -> None:
    shutil.copytree(source, destination, dirs_exist_ok=True)


# --- goals ---------------------------------------------------------------------------------------


class Least(NamedTuple):
    """Our rate is to be so many times another's."""

    ratio: float
    other: str

    def judge(self, results: Results) -> tuple[str, bool] | None:
        """Say what was found and whether that is enough; None if it was not measured."""
        if self.other not in results:
            return None
        found = take_seconds(results[self.other]) / take_seconds(results[OURS])
        text = f'at least {self.ratio:.2f} of the rate of {self.other}: {found:.2f}'
        return text, found >= self.ratio


class Most(NamedTuple):
    """A figure of ours, in MiB, is to be no more than this."""

    limit: float
    figure: str

    def judge(self, results: Results) -> tuple[str, bool]:
        """Say what was found and whether that is little enough."""
        found = max(getattr(each, self.figure) for each in results[OURS]) / MIB
        return f'at most {self.limit:,.1f} MiB, {self.figure}: {found:,.1f}', found <= self.limit


# --- cases ---------------------------------------------------------------------------------------


class Case(NamedTuple):
    """What is copied where, by whom, and what we want to reach."""

    title: str
    write: Callable[[Path, int], None]
    size: int
    place: str
    contenders: dict[str, OpenCopy]
    goals: tuple[Least | Most, ...]
    prepare: Callable[[Path, Path], None] = leave_empty
    is_durable: bool = False
    is_counted: bool = False
    rounds: int = 3


GIB = 1024 * MIB
FILES = 10_000 * 4096
PEERS = transfer_peers.PEERS


def pick(*names: str) -> dict[str, OpenCopy]:
    return {name: PEERS[name] for name in names}


CASES = {
    'one-file': Case(
        'one file of random bytes, tmpfs',
        write_file,
        GIB,
        MEMORY,
        {OURS: open_degu, OURS_NEW: open_new_degu, TLS: transfer_bare.open_tls, **PEERS},
        (Least(0.6, TLS), Least(1.0, 'rsync'), Least(2.5, 'syncthing'), Most(120, 'receiver')),
        is_durable=True,
    ),
    'durable': Case(
        'durable, on the disk',
        write_files,
        FILES,
        DISK,
        {OURS: open_degu, LOOP: transfer_bare.open_loop, **pick('rsync', 'syncthing')},
        (Least(0.6, LOOP), Least(0.8, 'rsync'), Least(2.5, 'syncthing')),
        is_durable=True,
    ),
    'not-durable': Case(
        'not durable, tmpfs',
        write_files,
        FILES,
        MEMORY,
        {OURS: open_degu, **pick('rsync')},
        (Least(0.5, 'rsync'),),
    ),
    'inserted': Case(
        '1 MiB of them inserted at the front, tmpfs',
        write_file,
        GIB,
        MEMORY,
        {OURS: open_degu, **pick('rsync')},
        (Most(0.02 * GIB / MIB, 'wire'),),
        copy_without_first,
        is_durable=True,
        is_counted=True,
        rounds=1,
    ),
    'unchanged': Case(
        'all there already, tmpfs',
        write_files,
        FILES,
        MEMORY,
        {OURS: open_degu, LOOKS: transfer_bare.open_looks, **pick('rsync')},
        (Least(1 / 3, LOOKS),),
        copy_all,
        is_durable=True,
    ),
}


# --- the run -------------------------------------------------------------------------------------


def run_case(case: Case, quick: bool, rounds: int, peers: list[str]) -> Results:
    """Let all contenders copy in turn."""
    with (
        tempfile.TemporaryDirectory(dir=case.place, prefix='degu-bench-') as name,
        TempPKI() as pki,
        contextlib.ExitStack() as stack,
    ):
        source = Path(name, 'source')
        source.mkdir()
        case.write(source, case.size // (8 if quick else 1))
        time.sleep(SETTLED_NS / 1e9 + 0.5)  # it rests: nobody need fear to miss a change
        actions = {}
        for number, (contender, open_copy) in enumerate(case.contenders.items()):
            if contender in PEERS and contender not in peers:
                continue
            scratch = Path(name, str(number))
            scratch.mkdir()
            setting = Setting(source, scratch, pki, case.is_durable, case.is_counted)
            copy = stack.enter_context(open_copy(setting))
            actions[contender] = partial(copy_once, case, setting, copy)
        return alternate(actions, rounds)


def copy_once(case: Case, setting: Setting, copy: Copy) -> Measured:
    """Prepare a destination, copy into it, compare; only the copy is timed."""
    destination = Path(tempfile.mkdtemp(dir=setting.scratch))
    case.prepare(setting.source, destination)
    os.sync()
    warm_memory(setting)
    measured = copy(destination)
    check(setting.source, destination)
    # Not on the disk: ext4 without a journal passes over the inodes of what was deleted in the last
    # minutes, one by one, whenever a file is made. Memory would not do for all copies.
    if case.place == MEMORY:
        shutil.rmtree(destination)
    return measured


def check(source: Path, destination: Path) -> None:
    """Raise RuntimeError if something of the source is not in the destination, as it is there."""
    filecmp.clear_cache()
    for directory, _, names in os.walk(source):
        for name in names:
            path = Path(directory, name)
            copied = destination / path.relative_to(source)
            if not (copied.exists() and filecmp.cmp(path, copied, shallow=False)):
                raise RuntimeError(f'{copied} is not what {path} is')


def take_seconds(measured: list[Measured]) -> float:
    return statistics.median(each.seconds for each in measured)


def report_case(name: str, case: Case, quick: bool, results: Results) -> dict[str, Any]:
    """Print a table of a case, then its goals; return what is in it."""
    size = case.size // (8 if quick else 1)
    is_file = case.write is write_file
    scale, unit = (size / 1e6, 'MB/s') if is_file else (size / 4096, 'files/s')
    ours = take_seconds(results[OURS])
    amount = f'{size // MIB:,} MiB' if is_file else f'{size // 4096:,} files of 4 KiB'
    print(f'\n{name}: {amount}, {case.title}')
    print(
        f'{"":20}{"median":>9}{"slowest":>9}{"fastest":>9}{"":9}{"degu does":>10}  memory, MiB: '
        'receiver, sender'
    )
    rows = []
    for contender, measured in results.items():
        seconds = sorted(each.seconds for each in measured)
        row = {
            'contender': contender,
            'seconds': seconds,
            'rate': scale / take_seconds(measured),
            'receiver': max(each.receiver for each in measured),
            'sender': max(each.sender for each in measured),
            'wire': max(each.wire for each in measured),
        }
        rates = [scale / each for each in (take_seconds(measured), seconds[-1], seconds[0])]
        texts = ''.join(f'{rate:9,.0f}' for rate in rates)
        line = f'{contender:20}{texts} {unit:8}{take_seconds(measured) / ours:9.2f}x'
        if row['receiver']:
            line += f'{row["receiver"] / MIB:10.1f}{row["sender"] / MIB:9.1f}'
        if row['wire']:
            line += f'   on the wire: {row["wire"]:,} bytes, {row["wire"] / size:.2%}'
        print(line)
        rows.append(row)
    return {'case': name, 'size': size, 'rows': rows, 'goals': report_goals(case, results)}


def report_goals(case: Case, results: Results) -> list[dict[str, Any]]:
    """Print which goals are met."""
    goals = []
    for goal in case.goals:
        judged = goal.judge(results)
        if judged is not None:
            text, is_met = judged
            print(f'  {"met   " if is_met else "MISSED"}  {text}', flush=True)
            goals.append({'goal': text, 'met': is_met})
    return goals


def name_file_system(place: str) -> str:
    command = ['findmnt', '--noheadings', '--output', 'FSTYPE', '--target', place]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.split()[-1]


def parse_arguments() -> argparse.Namespace:
    parser = build_parser('Measure our transfer beside others.')
    parser.add_argument('--only', nargs='+', choices=CASES, default=list(CASES), metavar='CASE')
    parser.add_argument('--peers', nargs='*', choices=PEERS, default=list(PEERS), metavar='PEER')
    parser.add_argument('--rounds', type=int, metavar='N')
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    # So that all programs end and all files go, as they do after an exception.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    report: dict[str, Any] = {
        **describe_machine(),
        'versions': transfer_peers.read_versions(arguments.peers),
        'file_systems': {place: name_file_system(place) for place in (MEMORY, DISK)},
        'cases': [],
    }
    print(f'CPython {report["python"]}, {report["openssl"]}, {report["cores"]} cores')
    print(', '.join(f'{name} {version}' for name, version in report['versions'].items()))
    print(', '.join(f'{place}: {name}' for place, name in report['file_systems'].items()))
    for name in arguments.only:
        case = CASES[name]
        rounds = arguments.rounds or (1 if arguments.quick else case.rounds)
        results = run_case(case, arguments.quick, rounds, arguments.peers)
        report['cases'].append(report_case(name, case, arguments.quick, results))
    write_json(arguments.json, report)


if __name__ == '__main__':
    main()
