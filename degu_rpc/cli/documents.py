"""What `--json` prints that the node's API and the wings do not have as a class of their own. Pure.

The name of each document's type, and when it is printed, is in docs/write_cli.py, which writes the
reference and its JSON Schema from these classes. Fields are only ever added.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Failed(msgspec.Struct, frozen=True):
    """Why a command failed; the one document that goes to stderr."""

    status: int
    """The exit status."""
    kind: str
    """For programs: the class of an error, the code of a call, or the name of the exit status."""
    message: str
    remedy: str
    """What to do about it, if that is known."""


class Stopped(msgspec.Struct, frozen=True):
    """The node is gone."""


class Opened(msgspec.Struct, frozen=True):
    """A pairing window is open here."""

    code: str
    words: str
    """The other spelling of the code."""
    addresses: list[str]
    """Where the window is, as `192.168.1.7:8486`."""
    invitation: str
    """The code and the addresses in one text, for a QR code."""
    expires_in_s: float


class Ids(msgspec.Struct, frozen=True):
    """Who this machine is."""

    user_id: str
    machine_id: str
    can_certify: bool
    """Whether the key of the user is here, so that other machines can join."""


class Entry(msgspec.Struct, frozen=True):
    """A file or a directory that is shared."""

    name: str
    """As it can be shown: bytes that are no UTF-8 are escaped, as `\\xff`."""
    path: str
    """In the share, percent-encoded as in a URL: exact, whatever bytes are in it."""
    kind: str
    size: int
    """In bytes."""
    modified: str | None
    """Null where it could not be brought over."""
    target: str | None
    """Where a symlink leads, as it can be shown; null for anything else."""
    problem: str | None
    """Why it could not be brought over."""


class SkippedPath(msgspec.Struct, frozen=True):
    """What could not be brought over, or sent."""

    path: str
    problem: str


class Arrived(msgspec.Struct, frozen=True):
    """What one PEER:PATH brought."""

    files_fetched: int
    files_present: int
    """Those that were here already."""
    files_replaced: int
    """Those of other content whose former one is in `.degu/trash`, or in one of `conflicts`."""
    bytes_fetched: int
    elapsed_s: float
    skipped: list[SkippedPath]
    conflicts: list[str]
    """Copies, beside the files, of what was written here while the new content came."""


class Asked(msgspec.Struct, frozen=True):
    """Whoever has the other machine has to say yes before anything is sent."""

    to: str
    """What we call that machine."""
    offer_id: str
    """For `degu inbox accept` there."""


class Delivered(msgspec.Struct, frozen=True):
    """What was sent, and is all there."""

    to: str
    """What we call the machine."""
    files_sent: int
    files_present: int
    """Those that were there already."""
    bytes_sent: int
    elapsed_s: float
    skipped: list[SkippedPath]


class Serving(msgspec.Struct, frozen=True):
    """Services can be called now."""

    name: str | None
    """What others call it behind the node; null without one."""
    services: list[str]
    socket: str | None
    """The unix socket of its own, if it has one."""


class Method(msgspec.Struct, frozen=True):
    """A method that may be called."""

    name: str
    """As `service/method`."""
    kind: str
    safe: bool
    """Whether it changes nothing."""


class Signature(msgspec.Struct, frozen=True):
    """What a method takes and gives; the schemas are JSON Schema."""

    name: str
    """As `service/method`."""
    description: str
    kind: str
    safe: bool
    """Whether it changes nothing."""
    idempotent: bool
    """Whether calling it twice is like calling it once."""
    parameters: dict[str, Any]
    stream_parameter: str | None
    """The parameter that is a stream from the caller."""
    item: dict[str, Any] | None
    """Each item of that stream."""
    result: dict[str, Any]
    """The result, or each of a stream of them."""
    definitions: dict[str, Any] = msgspec.field(name='$defs')
    """What the schemas refer to."""


class Value(msgspec.Struct, frozen=True):
    """What a call returned, or one of its results."""

    value: Any


class Source(msgspec.Struct, frozen=True):
    """Python source of client classes."""

    source: str


class Units(msgspec.Struct, frozen=True):
    """The units of systemd, and how the service is."""

    directory: str
    is_enabled: bool
    """Whether it starts at each login."""
    active: str
    """As systemd says: `active`, `inactive`, `failed` and so on."""
    pid: int | None


class Removed(msgspec.Struct, frozen=True):
    """What was removed."""

    files: list[str]


class Paths(msgspec.Struct, frozen=True):
    """Where the files with settings are."""

    config: str
    """Yours."""
    settings: str
    """That of `degu config set`."""


class StoredSetting(msgspec.Struct, frozen=True):
    """A setting."""

    key: str
    value: Any
    source: str
    """Who said so: a flag, a variable, a file, or `default`."""


class Script(msgspec.Struct, frozen=True):
    """What makes a shell complete the words behind `degu`."""

    shell: str
    script: str


class Told(msgspec.Struct, frozen=True):
    """What the demo does or has done, in words."""

    text: str


class Shown(msgspec.Struct, frozen=True):
    """The demo has shown it all."""

    elapsed_s: float
