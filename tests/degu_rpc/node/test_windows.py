"""Where a pairing window of a node is."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from degu_rpc import Node, connect
from degu_rpc.node.api import NODE, NodeApi
from degu_rpc.node.config import Config


def find_window_port(node):
    """Open a window and return where it is."""
    with (
        connect(f'unix:{node.home.socket_path}') as client,
        contextlib.closing(client.bind(NodeApi, NODE).open_pairing('peer')) as events,
    ):
        (address,) = next(events).addresses
    return int(address.rpartition(':')[2])


@contextlib.contextmanager
def start_node(tmp_path, port):
    config = Config(name='studio', port=port, listen=('127.0.0.1',), discovery=False)
    with Node(tmp_path / 'home', config=config) as node:
        yield node


@pytest.fixture
def port():
    """A port that is free like the next one, outside of those that the system hands out."""
    with open('/proc/sys/net/ipv4/ip_local_port_range') as file:
        lowest = int(file.read().split()[0])
    for port in range(lowest - 2 - os.getpid() % 1000 * 2, 1024, -2):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for number in (port, port + 1):
                stack.enter_context(socket.create_server(('127.0.0.1', number)))
            return port
    raise AssertionError('no two ports are free')


def test_a_window_is_beside_the_port_of_the_node(tmp_path, port):
    with start_node(tmp_path, port) as node:
        assert find_window_port(node) == port + 1


def test_a_window_is_elsewhere_where_that_port_is_taken(tmp_path, port):
    with start_node(tmp_path, port) as node, socket.create_server(('127.0.0.1', port + 1)):
        assert find_window_port(node) not in (port, port + 1)


def test_a_window_of_a_node_at_the_last_port_is_elsewhere(tmp_path):
    with start_node(tmp_path, 65535) as node:
        assert 0 < find_window_port(node) < 65535
