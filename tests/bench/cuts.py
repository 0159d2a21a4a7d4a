"""What cut points cost, and what they spare: 1 MiB inserted at the front of a large file.

    python tests/bench/cuts.py [--json FILE] [--quick] [--directory /dev/shm]

1. Time: cutting a file, chunks hashed, beside hashing it in blocks, on one core. Both alternate;
   medians. Then both on all cores beside a thread that only computes: the interpreter lock changes
   hands at each chunk, so cutting suffers more than hashing.
2. Bytes: the list as it travels, and what is missing after all was copied from the old version.

Run by hand; nothing here is a test.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from common import CORES, MIB, alternate, build_parser, describe_machine, pinned, write_json

from degu_rpc.files.content import FileReader, hash_file
from degu_rpc.files.cuts import Chunk, cut_content

if TYPE_CHECKING:
    from collections.abc import Callable


def cut(fd: int, size: int) -> list[Chunk]:
    return list(cut_content(FileReader(fd, size), size))


def seconds(action: Callable[[], object]) -> float:
    started = perf_counter()
    action()
    return perf_counter() - started


def compare(fd: int, size: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of hashing and of cutting."""
    actions = {
        'hashed': lambda: seconds(lambda: hash_file(fd, ())),
        'cut': lambda: seconds(lambda: cut(fd, size)),
    }
    return {name: statistics.median(each) for name, each in alternate(actions, rounds).items()}


def compare_beside_a_busy_thread(fd: int, size: int) -> dict[str, float]:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            pass

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        return compare(fd, size, 1)
    finally:
        stop.set()
        thread.join()


def main() -> None:
    parser = build_parser('What cut points cost, and what they spare.')
    parser.add_argument('--directory', default='/dev/shm', help='where the files are')
    options = parser.parse_args()
    size = (64 if options.quick else 1024) * MIB
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        old = directory / 'old'
        with open(old, 'wb') as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
        with open(old, 'rb') as file, pinned(CORES[:1]):
            alone = compare(file.fileno(), size, 5)
        with open(directory / 'part', 'wb') as part:
            part.write(os.urandom(64 * MIB))
        with open(directory / 'part', 'rb') as file:
            busy = compare_beside_a_busy_thread(file.fileno(), 64 * MIB)
    for what, times, mib in (('alone', alone, size // MIB), ('beside a busy thread', busy, 64)):
        print(
            f'{mib} MiB {what}: hashed in {times["hashed"]:.2f} s, '
            f'cut in {times["cut"]:.2f} s, ratio {times["cut"] / times["hashed"]:.1f}'
        )
    write_json(
        options.json,
        {'machine': describe_machine(), 'alone': alone, 'busy': busy},
    )


if __name__ == '__main__':
    main()
