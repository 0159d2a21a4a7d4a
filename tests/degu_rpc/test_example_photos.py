"""examples/photo_inbox.py behind a node: what it takes, where it goes, and what it refuses."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from degu_rpc import Identity, MachineClient, Node, TrustStore
from degu_rpc.errors import OfferRefusedError
from degu_rpc.files import send
from degu_rpc.node.config import Config

EXAMPLE = Path(__file__).parents[2] / 'examples' / 'photo_inbox.py'
INBOX = '/photos/inbox'
WAIT_S = 20.0
NOON_NS = 1_700_000_000_000_000_000  # in November of 2023, wherever one is


def make_image(path: Path, content: str = 'image') -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    os.utime(path, ns=(NOON_NS, NOON_NS))
    return path


def test_images_are_filed_by_month_and_nothing_else_is_taken(tmp_path: Path) -> None:
    pictures = tmp_path / 'my' / 'pictures'  # which it makes
    config = Config(name='studio', port=0, listen=('127.0.0.1',), discovery=False)
    friend = Identity.create(tmp_path / 'friend')
    with (
        Node(tmp_path / 'home', config=config) as node,
        subprocess.Popen(
            [sys.executable, '-W', 'error', str(EXAMPLE), str(pictures)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, 'DEGU_HOME': str(node.home.directory)},
        ) as program,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(program.kill)  # else its end is waited for, whatever failed
        assert program.stdout is not None
        assert program.stdout.readline() == 'others send to photos\n'
        trust = TrustStore(friend)
        trust.add(node.trust.identity.user_cert, 'studio')
        node.trust.add(friend.user_cert, 'ada', {'peer'})
        machine_id = node.trust.identity.machine_id
        client = MachineClient(trust, node.addresses[0].address, machine_id)

        for number in (1, 2):  # two of one name, from two directories
            image = make_image(tmp_path / str(number) / 'a.jpg', f'image {number}')
            assert send(client, INBOX, [image]).files_sent == 1
        said = [program.stdout.readline() for _ in range(2)]
        assert said == ["'ada': 2023-11/'a.jpg'\n", "'ada': 2023-11/'a (2).jpg'\n"]
        found = {path.name: path.read_text() for path in (pictures / '2023-11').iterdir()}
        assert found == {'a.jpg': 'image 1', 'a (2).jpg': 'image 2'}

        large = tmp_path / 'large.raw'
        with large.open('wb') as file:
            file.truncate(51 * 1024 * 1024)
        directory = make_image(tmp_path / 'd.jpg' / 'inside.jpg').parent
        link = tmp_path / 'link.jpg'
        link.symlink_to('large.raw')
        for path in (make_image(tmp_path / '3' / 'a.txt'), large, directory, link):
            with pytest.raises(OfferRefusedError):
                send(client, INBOX, [path])
        program.send_signal(signal.SIGINT)
        assert program.wait(WAIT_S) == 0
    assert sorted(path.name for path in pictures.iterdir()) == ['.degu', '2023-11']


def test_without_a_directory_it_says_how_it_is_run() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, f'usage: {EXAMPLE} DIRECTORY\n')
