"""Look at what is in a share, without bringing anything over."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from degu_rpc.files.listing import Kind
from degu_rpc.files.paths import decode_native, parse_path, path_from_native
from degu_rpc.files.remote import Remote, StaleError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from degu.client import Client
    from degu_rpc.files.listing import Problem
    from degu_rpc.peers import DialedClient


class Listed(NamedTuple):
    """Something in a share: its name as the file system here has it, size in bytes, time in ns.

    `target` is where a symlink leads, else ''. `is_top` says that it is what was asked for itself,
    which is then no directory.
    """

    name: str
    kind: Kind
    size: int
    mtime_ns: int
    problem: Problem | None
    target: str
    is_top: bool


def list_share(
    client: Client | DialedClient, prefix: str, path: str | bytes | os.PathLike[str]
) -> Iterator[Listed]:
    """Yield what is in the directory `path` of the share mounted at `prefix`, or the file itself.

    Raises FilesError (ShareRefusedError with status 404 for what is not there), the core's
    DeguError, OSError.
    """
    asked = path_from_native(path)
    with Remote(client, prefix, lambda: None) as remote:
        try:
            for entry in remote.list_directory(asked):
                names = parse_path(entry.path) if entry.path else asked[-1:]
                if entry.path or entry.kind is not Kind.DIRECTORY:
                    name = os.fsdecode(names[-1])
                    yield Listed(
                        name,
                        entry.kind,
                        entry.size,
                        entry.mtime_ns,
                        entry.problem,
                        decode_native(entry.target),
                        not entry.path,
                    )
        except StaleError as stale:
            raise stale.refusal from stale
