"""Throw-away servers and certificates clean up after themselves."""

from __future__ import annotations

import gc
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from degu import IPv4_LOOPBACK
from degu.client import Client, SSLClient, build_client_sslctx
from degu.misc import TempPKI, TempServer, TempSSLServer
from degu.server import build_server_sslctx


def ok(connection, request):
    return 200, 'OK', {}, None


def is_alive(pid):
    return os.path.exists(f'/proc/{pid}')


def build(status):
    return lambda connection, request: (status, 'Yes', {}, None)


def test_temp_server_serves_until_it_is_closed():
    server = TempServer(IPv4_LOOPBACK, None, ok)
    pid = server.process.pid
    assert repr(server) == f'TempServer({server.address!r})'
    with Client(server.address).connect() as conn:
        assert conn.get('/').status == 200
    server.close()
    assert not is_alive(pid)
    server.close()
    with pytest.raises(ConnectionRefusedError):
        Client(server.address).connect()


def test_temp_server_takes_a_build_func_and_options():
    with (
        TempServer(IPv4_LOOPBACK, build, 404, max_requests=1) as server,
        Client(server.address).connect() as conn,
    ):
        assert conn.get('/').status == 404
        with pytest.raises(ConnectionError):
            conn.get('/')


def test_temp_server_ends_when_it_is_collected():
    server = TempServer(IPv4_LOOPBACK, None, ok)
    pid = server.process.pid
    assert is_alive(pid)
    del server
    gc.collect()
    assert not is_alive(pid)


def test_temp_server_ends_when_python_exits():
    script = (
        'from degu.misc import TempServer\n'
        "server = TempServer(('127.0.0.1', 0), None, print)\n"
        'print(server.process.pid)'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', script], capture_output=True, text=True, check=True
    )
    assert done.stderr == ''
    assert not is_alive(int(done.stdout))


def test_temp_server_that_cannot_be_leaves_nothing():
    with pytest.raises(TypeError):
        TempServer(IPv4_LOOPBACK, None, 17)


def test_temp_sslserver_serves_until_its_block_ends(temp_pki):
    sslctx = build_client_sslctx(temp_pki.get_client_config())
    with TempSSLServer(temp_pki.get_server_config(), IPv4_LOOPBACK, build, 404) as server:
        pid = server.process.pid
        assert repr(server) == f'TempSSLServer({server.address!r})'
        with SSLClient(sslctx, server.address).connect() as conn:
            assert conn.get('/').status == 404
    assert not is_alive(pid)


# --- certificates --------------------------------------------------------------------------------


def test_temp_pki_removes_its_files_when_closed():
    pki = TempPKI()
    assert pki.directory.is_dir()
    pki.close()
    assert not pki.directory.exists()
    pki.close()


def test_temp_pki_removes_its_files_when_collected():
    pki = TempPKI()
    directory = pki.directory
    del pki
    gc.collect()
    assert not directory.exists()


def test_temp_pki_removes_its_files_when_its_block_ends():
    with TempPKI() as pki:
        assert pki.directory.is_dir()
    assert not pki.directory.exists()


def test_keys_are_for_their_owner_only(temp_pki):
    assert temp_pki.directory.stat().st_mode & 0o777 == 0o700
    for config in (temp_pki.get_server_config(), temp_pki.get_client_config()):
        assert os.stat(config['key_file']).st_mode & 0o777 == 0o600


def test_the_two_chains_share_nothing(temp_pki):
    server, client = temp_pki.get_server_config(), temp_pki.get_client_config()
    contents = {Path(path).read_bytes() for path in list_files(server) + list_files(client)}
    assert len(contents) == 6


def list_files(config):
    return [value for name, value in config.items() if name.endswith('_file')]


def test_each_config_is_of_absolute_paths_that_exist(temp_pki):
    for config in (
        temp_pki.get_server_config(),
        temp_pki.get_client_config(),
        temp_pki.get_anonymous_server_config(),
        temp_pki.get_anonymous_client_config(),
    ):
        assert all(os.path.isabs(path) and os.path.isfile(path) for path in list_files(config))


def test_each_config_builds_the_context_that_it_says(temp_pki):
    server = build_server_sslctx(temp_pki.get_server_config())
    anonymous = build_server_sslctx(temp_pki.get_anonymous_server_config())
    client = build_client_sslctx(temp_pki.get_client_config())
    stranger = build_client_sslctx(temp_pki.get_anonymous_client_config())
    assert server.verify_mode == ssl.CERT_REQUIRED
    assert anonymous.verify_mode == ssl.CERT_NONE
    assert client.verify_mode == stranger.verify_mode == ssl.CERT_REQUIRED
    assert not client.check_hostname
    assert not stranger.check_hostname


def test_a_config_is_the_caller_s_own(temp_pki):
    temp_pki.get_server_config().clear()
    assert temp_pki.get_server_config()
