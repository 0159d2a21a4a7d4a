"""The programs that `transfer.py` puts our transfer beside: rsync, scp, nginx + curl, Syncthing.

Each with throw-away keys, configuration and home, on free ports of the loopback interface. Each is
timed as a program, its start included, but Syncthing: it runs all the time.

1. rsync: a daemon, in clear text. `-a`, and `--fsync` where the copy shall be durable.
2. scp: sshd and scp as installed, with keys of Ed25519.
3. nginx and curl: TLS 1.3, without a certificate of the client.
4. Syncthing: the source has hashed everything and waits. The receiver has an empty folder and a
   database of its own, both new each time. Timed is from the event that both are connected to the
   event that the folder is idle, in sync. See `OPTIONS` and `FOLDER` for how it differs from the
   defaults: nothing but each other to talk to, and what could slow it down is off.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import urllib.request
from datetime import datetime
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from common import CORES, find_port, read_version, running, running_nginx
from peer_tls import NGINX_DIRECTIVES
from transfer_common import FILE, HOST, Measured, reachable, warm_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transfer_common import Copy, Setting


def read_versions(peers: list[str]) -> dict[str, str]:
    """Return the versions of the programs that some peers are."""
    commands = {
        'rsync': {'rsync': ['rsync', '--version']},
        'scp': {'OpenSSH': ['ssh', '-V']},
        'nginx': {'nginx': ['nginx', '-v'], 'curl': ['curl', '--version']},
        'syncthing': {'Syncthing': ['syncthing', '--version']},
    }
    return {
        name: read_version(command) for peer in peers for name, command in commands[peer].items()
    }


def timed(command: list[str], count: Callable[[], int] = int) -> Measured:
    """Run a program to its end; `count` says how many bytes went over the wire for it."""
    started = perf_counter()
    subprocess.run(command, check=True)
    return Measured(perf_counter() - started, wire=count())


def make_directory(setting: Setting, name: str) -> Path:
    directory = setting.scratch / name
    directory.mkdir(mode=0o700)
    return directory


# --- rsync ---------------------------------------------------------------------------------------

RSYNC_CONFIG = """
address = {host}
port = {port}
use chroot = no
{user}
[source]
path = {source}
read only = yes
"""


@contextlib.contextmanager
def open_rsync(setting: Setting) -> Iterator[Copy]:
    port = find_port()
    config = make_directory(setting, 'rsync') / 'rsyncd.conf'
    user = 'uid = root\ngid = root' if os.geteuid() == 0 else ''
    config.write_text(RSYNC_CONFIG.format(host=HOST, port=port, user=user, source=setting.source))
    # Without --server it would take a standard input that is a socket for its one connection.
    daemon = ['rsync', '--daemon', '--no-detach', f'--config={config}', '--log-file=/dev/null']
    options = ['-a', *(['--fsync'] if setting.is_durable else [])]
    with running(daemon, port), reachable(setting, port) as (near, count):

        def copy(destination: Path) -> Measured:
            url = f'rsync://{HOST}:{near}/source/'
            return timed(['rsync', *options, url, f'{destination}/'], count)

        yield copy


# --- scp -----------------------------------------------------------------------------------------

SSHD_CONFIG = """
ListenAddress {host}:{port}
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
PidFile none
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""
PRIVILEGE_SEPARATION = Path('/run/sshd')
"""What sshd wants to be there when it runs as root; Debian's service makes it."""


@contextlib.contextmanager
def open_scp(setting: Setting) -> Iterator[Copy]:
    port = find_port()
    directory = make_directory(setting, 'ssh')
    for name in ('host', 'user'):
        key = ['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', str(directory / name)]
        subprocess.run(key, check=True)
    config = directory / 'sshd_config'
    config.write_text(SSHD_CONFIG.format(host=HOST, port=port, directory=directory))
    daemon = shutil.which('sshd', path='/usr/sbin:/usr/local/sbin:' + os.environ['PATH'])
    options = {
        'IdentityFile': directory / 'user',
        'IdentitiesOnly': 'yes',
        'StrictHostKeyChecking': 'no',
        'UserKnownHostsFile': '/dev/null',
        'BatchMode': 'yes',
        'LogLevel': 'ERROR',
    }
    command = ['scp', '-q', '-F', '/dev/null', '-P', str(port)]
    command += [f'-o{name}={value}' for name, value in options.items()]
    source = f'{HOST}:{setting.source}/{FILE}'
    with (
        privilege_separation(),
        running([str(daemon), '-D', '-e', '-f', str(config)], port),
    ):
        yield lambda destination: timed([*command, source, str(destination)])


@contextlib.contextmanager
def privilege_separation() -> Iterator[None]:
    if os.geteuid() != 0 or PRIVILEGE_SEPARATION.exists():
        yield
        return
    PRIVILEGE_SEPARATION.mkdir(mode=0o755)
    try:
        yield
    finally:
        PRIVILEGE_SEPARATION.rmdir()


# --- nginx and curl ------------------------------------------------------------------------------


@contextlib.contextmanager
def open_nginx(setting: Setting) -> Iterator[Copy]:
    directory = make_directory(setting, 'nginx')
    (directory / 'root').symlink_to(setting.source)
    directives = NGINX_DIRECTIVES.format(**setting.pki.get_anonymous_server_config())
    with running_nginx(directory, CORES, directives, is_tls=True) as port:

        def copy(destination: Path) -> Measured:
            # The certificates of a TempPKI name no machine, and degu does not check names, either.
            command = ['curl', '--silent', '--show-error', '--fail', '--insecure', '--tlsv1.3']
            command += ['--noproxy', '*', '--output', f'{destination}/{FILE}']
            return timed([*command, f'https://{HOST}:{port}/{FILE}'])

        yield copy


# --- Syncthing -----------------------------------------------------------------------------------

OPTIONS = {
    'globalAnnounceEnabled': 'false',
    'localAnnounceEnabled': 'false',
    'relaysEnabled': 'false',
    'natEnabled': 'false',
    'startBrowser': 'false',
    'urAccepted': '-1',
    'autoUpgradeIntervalH': '0',
    'crashReportingEnabled': 'false',
    'stunKeepaliveStartS': '0',
    'setLowPriority': 'false',
    'progressUpdateIntervalS': '-1',
}
FOLDER = {
    'rescanIntervalS': '0',
    'fsWatcherEnabled': 'false',
    'scanProgressIntervalS': '-1',
    'disableTempIndexes': 'true',
    'caseSensitiveFS': 'true',
}
DEVICE = {'compression': 'never'}
API_KEY = 'throw-away'
SYNC_TIMEOUT_S = 300.0


class Syncthing:
    """One instance: a home, and the ports of its two listeners."""

    def __init__(self, home: Path) -> None:
        """Make its keys and a configuration that `configure()` completes."""
        self.home = home
        self.port = find_port()
        self.api_port = find_port()
        generate = ['syncthing', 'generate', '--home', str(home), '--no-default-folder']
        subprocess.run(generate, check=True, capture_output=True, env=environment())
        self.id = subprocess.run(
            ['syncthing', '--home', str(home), '--device-id'],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        ).stdout.strip()

    def configure(self, folder: Path, kind: str, marker: str, peer: Syncthing) -> None:
        """Share `folder` with another, which is paused."""
        path = self.home / 'config.xml'
        tree = ElementTree.parse(path)
        root = tree.getroot()
        for found in [*root.findall('device'), *root.findall('folder'), *root.findall('gui')]:
            root.remove(found)
        options = find(root, 'options')
        for name, value in {**OPTIONS, 'listenAddress': f'tcp://{HOST}:{self.port}'}.items():
            find(options, name).text = value
        gui = add(root, 'gui', enabled='true', tls='false')
        add(gui, 'address').text = f'{HOST}:{self.api_port}'
        add(gui, 'apikey').text = API_KEY
        shared = add(root, 'folder', id='bench', path=str(folder), type=kind)
        for name in ('rescanIntervalS', 'fsWatcherEnabled'):
            shared.set(name, FOLDER[name])
        for name in FOLDER.keys() - shared.keys():
            add(shared, name).text = FOLDER[name]
        add(shared, 'markerName').text = marker
        for device in (self, peer):
            add(shared, 'device', id=device.id)
            listed = add(root, 'device', id=device.id, **DEVICE)
            add(listed, 'address').text = f'tcp://{HOST}:{device.port}'
            add(listed, 'paused').text = (
                'true' if device is peer and kind == 'receiveonly' else 'false'
            )
        tree.write(path)

    def running(self) -> contextlib.AbstractContextManager[int]:
        command = ['syncthing', 'serve', '--home', str(self.home), '--no-browser', '--no-restart']
        return running([*command, '--no-upgrade', '--logfile=-'], self.api_port)

    def ask(self, path: str, method: str = 'GET') -> Any:
        """Return what its API says."""
        request = urllib.request.Request(
            f'http://{HOST}:{self.api_port}/rest/{path}',
            method=method,
            headers={'X-API-Key': API_KEY},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=SYNC_TIMEOUT_S) as response:
            text = response.read()
        return json.loads(text) if text.strip() else None

    def wait_scanned(self, count: int) -> None:
        """Wait until it knows the hashes of so many files."""
        deadline = monotonic() + SYNC_TIMEOUT_S
        while True:
            status = self.ask('db/status?folder=bench')
            if status['state'] == 'idle' and status['localFiles'] == count:
                return
            if monotonic() > deadline:
                raise RuntimeError(f'Syncthing does not scan: {status}')
            sleep(0.1)


def environment() -> dict[str, str]:
    return {**os.environ, 'STNOUPGRADE': '1'}


def find(parent: ElementTree.Element, name: str) -> ElementTree.Element:
    found = parent.find(name)
    if found is None:
        raise RuntimeError(f'this Syncthing has no {name}')
    return found


def add(parent: ElementTree.Element, name: str, **attributes: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, name, attributes)


@contextlib.contextmanager
def open_syncthing(setting: Setting) -> Iterator[Copy]:
    directory = make_directory(setting, 'syncthing')
    source, receiver = Syncthing(directory / 'source'), Syncthing(directory / 'receiver')
    marker = next(setting.source.iterdir()).name  # else it would write one of its own there
    source.configure(setting.source, 'sendonly', marker, receiver)
    count = sum(len(names) for _, _, names in os.walk(setting.source))
    with source.running():
        source.wait_scanned(count)
        yield partial(sync, setting, source, receiver, count)


def sync(
    setting: Setting, source: Syncthing, receiver: Syncthing, count: int, destination: Path
) -> Measured:
    for database in receiver.home.glob('index-*'):
        shutil.rmtree(database)
    (destination / '.stfolder').mkdir()
    receiver.configure(destination, 'receiveonly', '.stfolder', source)
    with receiver.running():
        receiver.wait_scanned(0)
        warm_memory(setting)
        return Measured(wait_synced(source, receiver, count))


def wait_synced(source: Syncthing, receiver: Syncthing, count: int) -> float:
    """Connect both; return how many seconds it took from then until all is there."""
    events = 'events?events=DeviceConnected,StateChanged'
    last = max((event['id'] for event in receiver.ask(f'{events}&timeout=0')), default=0)
    receiver.ask(f'system/resume?device={source.id}', 'POST')
    deadline = monotonic() + SYNC_TIMEOUT_S
    connected_at: datetime | None = None
    while monotonic() < deadline:
        for event in receiver.ask(f'{events}&since={last}&timeout=00'):
            last = event['id']
            happened_at = datetime.fromisoformat(event['time'])
            if event['type'] == 'DeviceConnected':
                connected_at = connected_at or happened_at
            elif connected_at and event['data']['to'] == 'idle' and is_synced(receiver, count):
                return (happened_at - connected_at).total_seconds()
    raise RuntimeError(f'Syncthing does not sync: {receiver.ask("db/status?folder=bench")}')


def is_synced(receiver: Syncthing, count: int) -> bool:
    status = receiver.ask('db/status?folder=bench')
    return bool(status['globalFiles'] == count and status['needTotalItems'] == 0)


PEERS = {'rsync': open_rsync, 'scp': open_scp, 'nginx': open_nginx, 'syncthing': open_syncthing}
