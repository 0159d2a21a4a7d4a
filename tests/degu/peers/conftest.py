"""Other people's programs, started for a test, and the configuration that the docs give them."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from degu import pki

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cryptography.hazmat.primitives.asymmetric import ec

    from degu.misc import TempPKI
    from degu.net import Address

NGINX = """
daemon off;
master_process off;
pid {directory}/pid;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{sites}
}}
"""
KEY_USAGES = (
    *('digital_signature', 'content_commitment', 'key_encipherment', 'data_encipherment'),
    *('key_agreement', 'key_cert_sign', 'crl_sign', 'encipher_only', 'decipher_only'),
)
PROJECT = Path(__file__).parents[3]
PAGE = PROJECT / 'docs' / 'reference' / 'peers.md'
COUCHDB = Path(__file__).parent / 'couchdb'
WAIT_S = 20.0
"""After this long a program hangs, and its test fails."""


@contextlib.contextmanager
def running(
    arguments: list[str], address: Address, log: Path, env: dict[str, str] | None = None
) -> Iterator[None]:
    """Run a program until it is ended by SIGTERM; it listens at `address` and speaks to `log`."""
    with log.open('ab') as output:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env
        )
    with process:
        try:
            deadline = time.monotonic() + WAIT_S
            while not _listens(address):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.01)
            yield
        finally:
            process.terminate()


def _listens(address: Address) -> bool:
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    with socket.socket(family) as sock:
        return sock.connect_ex(address) == 0


@pytest.fixture
def start_program() -> Iterator[Callable[..., None]]:
    """Give `start_program(arguments, address, log, env=None)`, see `running()`, for one test."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(running(*arguments, **options))


@pytest.fixture
def start_nginx(
    require_program: Callable[[str], str], start_program: Callable[..., Any], tmp_path: Path
) -> Callable[[str, Address], None]:
    """Give `start_nginx(sites, address)`: nginx with what stands in its `http` block."""
    program = require_program('nginx')

    def start(sites: str, address: Address) -> None:
        config = tmp_path / 'nginx.conf'
        config.write_text(NGINX.format(directory=tmp_path, sites=sites))
        log = tmp_path / 'nginx.log'
        start_program([program, '-c', str(config), '-e', str(log)], address, log)

    return start


@pytest.fixture(scope='session')
def couchdb_command(
    require_program: Callable[[str], str], require_packages: Callable[[Path], None]
) -> list[str]:
    """Give the command that starts a CouchDB-compatible server; a socket path goes behind it."""
    program = require_program('node')
    require_packages(COUCHDB)
    return [program, str(COUCHDB / 'server.js')]


@pytest.fixture(scope='session')
def couchdb(couchdb_command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the socket path of a CouchDB-compatible server that all tests share."""
    directory = tmp_path_factory.mktemp('couchdb')
    address = str(directory / 'socket')
    env = {**os.environ, 'TMPDIR': str(directory)}  # it leaves uploads there
    with running([*couchdb_command, address], address, directory / 'log', env):
        yield address


@pytest.fixture(scope='session')
def curl(require_program: Callable[[str], str]) -> Callable[..., tuple[bytes, str]]:
    """Give `curl(*arguments)`: what curl wrote to its output, and what it reported (-v)."""
    path = require_program('curl')

    def run(*arguments: str) -> tuple[bytes, str]:
        done = subprocess.run(
            [path, '--verbose', '--silent', '--show-error', '--max-time', '10', *arguments],
            capture_output=True,
            check=True,
            timeout=WAIT_S,
        )
        return done.stdout, done.stderr.decode()

    return run


@pytest.fixture(scope='session')
def documented() -> Callable[..., str]:
    """Give `documented(heading, {shown: real})`: the configuration on the page of peers.

    It is the first code block below the heading; what the page shows in a value's place must be
    there, and is replaced.
    """

    def read(heading: str, values: dict[str, object]) -> str:
        text = PAGE.read_text(encoding='utf-8')
        found = re.search(
            rf'^#+ {re.escape(heading)}\n(?:(?!#)(?!```).*\n)*```text\n((?:.*\n)*?)```$', text, re.M
        )
        assert found is not None, f'{heading!r} has no code block'
        block = found[1]
        for shown, real in values.items():
            assert shown in block, f'{shown!r} is not in the block below {heading!r}'
            block = block.replace(shown, str(real))
        return block

    return read


@pytest.fixture(scope='session')
def site_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a directory with a CA (`ca.pem`) and its certificates for one.test and two.test.

    The profile of our own certificates has no room for the name of a site.
    """
    directory = tmp_path_factory.mktemp('site-keys')
    ca_key = pki.build_key()
    ca = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, 'a CA')])
    pki.write_cert_file(directory / 'ca.pem', _issue(ca, ca_key, ca_key.public_key(), None))
    for name in ('one.test', 'two.test'):
        key = pki.build_key()
        pki.write_key_file(directory / f'{name}-key.pem', key)
        pki.write_cert_file(
            directory / f'{name}.pem', _issue(ca, ca_key, key.public_key(), x509.DNSName(name))
        )
    return directory


def _issue(
    ca: x509.Name,
    ca_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    name: x509.DNSName | None,
) -> bytes:
    """Issue a certificate for a site's name, or the CA's own where there is none; return DER."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]) if name else ca)
        .issuer_name(ca)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=name is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    ca_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = builder.add_extension(ca_id, critical=False)
    if name:
        builder = builder.add_extension(x509.SubjectAlternativeName([name]), critical=True)
    else:
        usage = {k: k == 'key_cert_sign' for k in KEY_USAGES}
        builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.fixture(scope='session')
def server_id(temp_pki: TempPKI) -> str:
    """Give the id in the server's certificate, which is its common name."""
    path = Path(temp_pki.get_server_config()['cert_file'])
    return pki.parse_machine_cert(pki.parse_cert_pem(path.read_bytes())).machine_id
