"""What a shutdown says to a connection's thread before it begins a request."""

from __future__ import annotations

import socket

import pytest

from degu.channel import Channel
from degu.exchange import CLOSED_BY_CLIENT, SHUTS_DOWN, Phase, ServedClient, serve_requests
from degu.limits import DEFAULT_LIMITS
from degu.stop import Stop


@pytest.fixture
def serve_one():
    """Give `serve_one(is_to_end)`: how a connection with one request ended, and what was asked."""

    def run(is_to_end):
        asked = []

        def app(connection, request):
            asked.append(client.phase)
            return 200, 'OK', {}, None

        ours, theirs = socket.socketpair()
        stop = Stop()
        with ours, theirs:
            theirs.sendall(b'GET / HTTP/1.1\r\n\r\n')
            theirs.shutdown(socket.SHUT_WR)
            client = ServedClient(ours, '')
            assert client.phase is Phase.NEW
            client.is_to_end = is_to_end
            channel = Channel(ours, DEFAULT_LIMITS)
            ending = serve_requests(client, channel, {'requests': 0}, app, stop)
        stop.close()
        return ending, asked, client.phase

    return run


def test_a_request_is_served_in_its_phases(serve_one):
    assert serve_one(False) == (CLOSED_BY_CLIENT, [Phase.BUSY], Phase.IDLE)


def test_a_connection_that_is_to_end_begins_no_request(serve_one):
    assert serve_one(True) == (SHUTS_DOWN, [], Phase.BUSY)
