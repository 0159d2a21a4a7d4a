"""The inbox of one node in this process, real sockets: who may send, and what if it cannot open."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from degu.client import Client
from degu_rpc import Identity, MachineClient, Node, RpcError, TrustStore, connect
from degu_rpc.errors import OfferRefusedError, TransferCanceledError
from degu_rpc.files import send
from degu_rpc.node.api import INBOX, NODE, NodeApi
from degu_rpc.node.config import Config, InboxSettings
from degu_rpc.node.inbox import find_fault
from degu_rpc.node.limits import MAX_SHOWN_NAMES


@pytest.fixture
def directory(tmp_path):
    return tmp_path / 'in'


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'talk.pdf'
    path.write_text('slides')
    return path


@pytest.fixture
def run_node(tmp_path, directory):
    """Give `run_node(**roles)`: a node with these in [inbox]."""

    def run(**settings):
        inbox = InboxSettings(**{'path': str(directory), **settings})
        config = Config(name='studio', port=0, listen=('127.0.0.1',), discovery=False, inbox=inbox)
        return Node(tmp_path / 'home', config=config)

    return run


@pytest.fixture
def befriend(tmp_path):
    """Give `befriend(node)`: a client of it, for a machine of a user it trusts as a peer."""
    identity = Identity.create(tmp_path / 'friend')

    def befriend(node):
        trust = TrustStore(identity)
        trust.add(node.trust.identity.user_cert, 'studio')
        node.trust.add(identity.user_cert, 'ada', {'peer'})
        return MachineClient(trust, node.addresses[0].address, node.trust.identity.machine_id)

    return befriend


def control(node):
    return connect(f'unix:{node.home.socket_path}')


def test_files_of_my_own_are_taken_at_once_and_nothing_is_made_before(run_node, directory, file):
    with run_node() as node, control(node) as client:
        api = client.bind(NodeApi, NODE)
        assert (list(api.inbox()), api.status().problems) == ([], [])
        assert api.status().inbox.path == str(directory)
        assert not directory.exists()
        sent = send(Client(str(node.home.socket_path)), INBOX, [file])
        assert sent.files_sent == 1
        (offer,) = api.inbox()
    assert (offer.state, offer.names, offer.size) == ('done', ['talk.pdf'], 6)
    assert offer.sender == f'uid:{os.getuid()}'
    assert (directory / 'talk.pdf').read_text() == 'slides'
    assert directory.stat().st_mode & 0o777 == 0o700


def test_the_directory_that_a_node_makes_survives_a_power_cut(
    run_node, directory, file, monkeypatch
):
    synced = []
    fsync = os.fsync

    def note(fd):
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    monkeypatch.setattr(os, 'fsync', note)
    with run_node() as node:
        send(Client(str(node.home.socket_path)), INBOX, [file])
    made = [directory.parent, directory, directory / '.degu']
    assert all(path.stat().st_ino in synced for path in made)


def test_what_a_peer_offers_waits_for_an_answer_also_through_a_restart(
    run_node, befriend, directory, file
):
    asked = threading.Event()
    cancel = threading.Event()

    def send_file(client):
        with pytest.raises(TransferCanceledError):
            send(client, INBOX, [file], cancel=cancel, waiting=lambda _: asked.set())

    with run_node() as node, ThreadPoolExecutor() as threads:
        sending = threads.submit(send_file, befriend(node))
        assert asked.wait(20)
        assert node.inbox.find_status().waiting == 1
        cancel.set()
        sending.result(20)
    with run_node() as node, control(node) as client:
        api = client.bind(NodeApi, NODE)
        (offer,) = api.inbox()
        assert (offer.state, offer.sender) == ('waiting', 'ada')
        assert api.status().inbox.waiting == 1
        assert not (directory / 'talk.pdf').exists()
        assert api.accept_offer(offer.offer_id).state == 'accepted'
        assert api.status().inbox.arriving == 1
        send(befriend(node), INBOX, [file])
        assert next(iter(api.inbox())).state == 'done'
        with pytest.raises(RpcError) as caught:
            api.accept_offer('a' * 8)
    assert caught.value.code.value == 'not_found'
    assert (directory / 'talk.pdf').read_text() == 'slides'


def test_of_thousands_of_names_the_first_are_told(run_node, directory, tmp_path):
    paths = [tmp_path / f'{number:0200}' for number in range(MAX_SHOWN_NAMES)]
    paths.append(tmp_path / os.fsdecode(b'\xff'))
    for path in paths:
        path.touch()
    with run_node() as node, control(node) as client:
        send(Client(str(node.home.socket_path)), INBOX, paths[::-1])
        (offer,) = client.bind(NodeApi, NODE).inbox()
    assert (len(offer.names), offer.more_names, offer.files) == (16, 1, 17)
    assert '\\xff' in offer.names


@pytest.mark.parametrize('settings', [{'ask': ('friend',)}, {'accept': (), 'ask': ()}])
def test_others_are_refused_and_nothing_is_made_for_them(
    run_node, befriend, directory, file, settings
):
    with run_node(**settings) as node:
        with pytest.raises(OfferRefusedError, match='you may not send anything here') as caught:
            send(befriend(node), INBOX, [file])
        assert (node.inbox.find_status() is None) is ('accept' in settings)
    assert caught.value.status == 403
    assert not directory.exists()


def test_a_role_that_may_send_no_more_cannot_go_on_with_what_was_accepted(run_node, befriend, file):
    with run_node(accept=('peer',), ask=()) as node:
        assert send(befriend(node), INBOX, [file]).files_sent == 1
    with run_node(accept=('owner',), ask=()) as node, pytest.raises(OfferRefusedError):
        send(befriend(node), INBOX, [file])


def test_a_directory_that_cannot_be_is_a_problem_and_not_the_end(
    run_node, befriend, directory, file
):
    with run_node(accept=('peer',), ask=(), path=str(directory / 'deeper')) as node:
        ((problem, remedy),) = (p for p in node.find_problems() if 'inbox' in p[0])
        assert problem == f'nothing can come into the inbox: {directory} is not there'
        assert 'config.toml' in remedy
        with pytest.raises(OfferRefusedError, match='cannot be opened'):
            send(befriend(node), INBOX, [file])
        directory.mkdir()
        assert send(befriend(node), INBOX, [file]).files_sent == 1  # no restart was needed
        assert not [p for p in node.find_problems() if 'inbox' in p[0]]


def test_where_nothing_can_come_in_it_is_said_why(directory, file):
    assert find_fault(directory) is None
    assert find_fault(file) == f'{file} is no directory'
    assert find_fault(file / 'x') == f'{file} is no directory'
    directory.symlink_to('nowhere')
    assert find_fault(directory) == f'{directory} is not there'
    assert 'nothing can be written' in find_fault(type(directory)('/proc/self'))
