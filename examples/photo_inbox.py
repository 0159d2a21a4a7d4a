"""An inbox behind a node: it takes images only, none too large, and files them by their months.

    degu up --bg
    python examples/photo_inbox.py ~/Pictures         # on studio
    degu send *.jpg --to studio/photos                # on a machine that is paired with it

It ends with Ctrl-C, or with the node.
"""

import contextlib
import itertools
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from degu.server import Server
from degu_rpc import Authenticated, Router, connect
from degu_rpc.files import Decision, Inbox, Kind, Offer
from degu_rpc.node.api import INBOX, NODE, NodeApi
from degu_rpc.peers import OWNER, PEER, find_home

IMAGES = {'.jpg', '.jpeg', '.png', '.heic', '.raw'}
MAX_SIZE = 50 * 1024 * 1024


def decide(offer: Offer) -> Decision:
    """Say whether it is for us: called in a thread of the server, for each new offer."""
    may_send = not offer.sender.roles.isdisjoint({OWNER, PEER})
    has_images = all(Path(name).suffix.lower() in IMAGES for name in offer.names)
    has_files = all(kind is Kind.FILE for kind in offer.kinds)  # a directory may be called d.jpg
    is_fine = may_send and has_images and has_files and offer.size <= MAX_SIZE
    return Decision.ACCEPT if is_fine else Decision.REFUSE


def file_images(offer: Offer, paths: tuple[Path, ...]) -> None:
    """Move each image into the directory of its month; called once all of an offer is here."""
    for path in paths:
        month = path.parent / time.strftime('%Y-%m', time.localtime(path.stat().st_mtime))
        month.mkdir(exist_ok=True)
        for number in itertools.count(1):
            target = month / (path.name if number == 1 else f'{path.stem} ({number}){path.suffix}')
            with contextlib.suppress(FileExistsError):
                os.link(path, target)  # never over another one, as a rename would
                break
        path.unlink()
        print(f'{offer.sender.name!r}: {month.name}/{target.name!r}', flush=True)


def main(directory: str) -> None:
    """Serve the inbox behind the node of this user; the directory is made if it is missing."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    router = Router()
    with TemporaryDirectory() as private, Inbox(directory, decide, received=file_images) as inbox:
        router.mount(INBOX, inbox)
        address = f'{private}/photos.sock'
        with (
            Server(address, Authenticated(router, is_behind_node=True)),
            connect(f'unix:{find_home()}/node.sock') as client,
            contextlib.suppress(KeyboardInterrupt),
        ):
            for served in client.bind(NodeApi, NODE).serve('photos', address):
                print(f'others send to {served.name}', flush=True)


if len(sys.argv) != 2:
    sys.exit(f'usage: {sys.argv[0]} DIRECTORY')
main(sys.argv[1])
