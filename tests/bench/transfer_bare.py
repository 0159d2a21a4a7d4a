"""What the machine can do at best, beside which `transfer.py` puts our transfer.

1. A copy of one file over TLS between two processes: no hash, no protocol. The settings of TLS are
   ours.
2. Writing a tree whose contents are in memory, each file and then each directory with an fsync.
3. Looking at every entry of two trees.
"""

from __future__ import annotations

import contextlib
import os
import socket
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from common import MIB
from transfer_common import FILE as SOURCE
from transfer_common import HOST, Measured, do_job, listen, read_peak, run_job, serving

from degu.tls import build_client_sslctx, build_server_sslctx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transfer_common import Copy, Setting

FILE = Path(__file__).name


# --- one file over TLS ---------------------------------------------------------------------------


def serve(port: int, tls: dict[str, Any], source: str, scratch: str) -> None:
    """Send the file to whoever connects, one after the other."""
    sslctx = build_server_sslctx(tls)
    buffer = memoryview(bytearray(MIB))
    with listen(port) as listener:
        while True:
            sock, _ = listener.accept()
            # Whoever only looks whether somebody listens makes no handshake.
            with (
                contextlib.suppress(OSError),
                sslctx.wrap_socket(sock, server_side=True) as tls_sock,
                open(f'{source}/{SOURCE}', 'rb', buffering=0) as file,
            ):
                while count := file.readinto(buffer):
                    tls_sock.sendall(buffer[:count])


def bring(port: int, tls: dict[str, Any], destination: str) -> dict[str, float]:
    sslctx = build_client_sslctx(tls)
    buffer = memoryview(bytearray(MIB))
    started = perf_counter()
    with (
        sslctx.wrap_socket(socket.create_connection((HOST, port))) as sock,
        open(f'{destination}/{SOURCE}', 'xb', buffering=0) as file,
    ):
        filled = 0
        while count := sock.recv_into(buffer[filled:]):
            filled += count
            if filled == MIB:
                file.write(buffer)
                filled = 0
        file.write(buffer[:filled])
    return {'seconds': perf_counter() - started, 'receiver': read_peak()}


@contextlib.contextmanager
def open_tls(setting: Setting) -> Iterator[Copy]:
    with serving(FILE, 'serve', setting) as (port, pid):

        def copy(destination: Path) -> Measured:
            tls = setting.pki.get_client_config()
            found = do_job(FILE, 'bring', {'port': port, 'tls': tls, 'destination': destination})
            return Measured(found['seconds'], int(found['receiver']), read_peak(pid))

        yield copy


# --- many files ----------------------------------------------------------------------------------


@contextlib.contextmanager
def open_loop(setting: Setting) -> Iterator[Copy]:
    """Write and fsync; the contents of the whole source are read before."""
    tree = {
        Path(directory).relative_to(setting.source): {
            name: Path(directory, name).read_bytes() for name in names
        }
        for directory, _, names in os.walk(setting.source)
    }
    yield partial(write_all, tree)


def write_all(tree: dict[Path, dict[str, bytes]], destination: Path) -> Measured:
    started = perf_counter()
    for below, contents in tree.items():
        directory = destination / below
        directory.mkdir(exist_ok=True)
        parent = os.open(directory, os.O_RDONLY)
        for name, content in contents.items():
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=parent)
            os.write(fd, content)
            os.fsync(fd)
            os.close(fd)
        os.fsync(parent)
        os.close(parent)
    return Measured(perf_counter() - started)


@contextlib.contextmanager
def open_looks(setting: Setting) -> Iterator[Copy]:
    """Look at all of both trees, and copy nothing."""

    def look_at_both(destination: Path) -> Measured:
        started = perf_counter()
        look(os.fspath(setting.source))
        look(os.fspath(destination))
        return Measured(perf_counter() - started)

    yield look_at_both


def look(directory: str) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            os.lstat(entry.path)
            if entry.is_dir(follow_symlinks=False):
                look(entry.path)


if __name__ == '__main__':
    run_job({'serve': serve, 'bring': bring})
