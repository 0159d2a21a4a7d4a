"""degu_rpc.files.send: what is sent arrives whole or not at all, once, and replaces nothing."""

from __future__ import annotations

import errno
import itertools
import os
import pathlib
import queue
import signal
import stat
import subprocess
import sys
import threading
from time import monotonic

import pytest

from degu.client import Client
from degu.errors import DeguError
from degu_rpc.errors import (
    IntegrityError,
    ListingError,
    NoSpaceError,
    OfferRefusedError,
    PathError,
    TransferCanceledError,
)
from degu_rpc.files import Decision, Inbox, Problem, Skipped, State, send
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.limits import BUSY_ATTEMPTS, RUN_SIZE, SEND_ROUNDS, SENT_PACK_SIZE
from degu_rpc.files.places import Places

KIB = 1024
MIB = 1024 * KIB
BLOCK = 128 * KIB
OLD_NS = 1_500_000_000_987_654_321


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / 'source'
    directory.mkdir()
    return directory


@pytest.fixture
def here(tmp_path):
    directory = tmp_path / 'here'
    directory.mkdir()
    return directory


def accept(offer):
    return Decision.ACCEPT


@pytest.fixture
def inbox(here):
    with Inbox(here, accept) as app:
        yield app


@pytest.fixture
def client(inbox, serve):
    return serve(inbox)


def fill(directory):
    """A tree with everything in it; returns how many files and symlinks, and bytes to move."""
    names = {
        'empty': 0,
        'small': 5,
        'one-block': BLOCK,
        'one-block-and-a-byte': BLOCK + 1,
        'larger': 5 * BLOCK + 12345,
        'sub/same-as-small': 5,
        'sub/deep/er/f': 10,
        'sub/deep/same-as-larger': 5 * BLOCK + 12345,
    }
    for name, size in names.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((b'0123456789abcdef' * (size // 16 + 1))[:size])
    (directory / 'small').chmod(0o600)
    (directory / 'sub' / 'same-as-small').chmod(0o755)
    for name in [b'\xff\xfe', b'a\nb', 'ümlaut'.encode(), b'-rf', b'100%', b'x' * 255]:
        (directory / os.fsdecode(name)).write_bytes(name)
    (directory / 'empty-dir').mkdir()
    (directory / 'link').symlink_to('small')
    (directory / 'dangling').symlink_to('/nowhere/\udcff')
    (directory / 'out').symlink_to('../..')
    for path in [*directory.rglob('*'), directory]:
        os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    (directory / 'empty-dir').chmod(0o500)
    sizes = {os.fsencode(name): size for name, size in names.items() if 'same' not in name}
    return len(names) + 6 + 3, sum(sizes.values()) + 2 + 3 + 7 + 3 + 4 + 255


def private(directory, name):
    return sorted(os.listdir(directory / '.degu' / name))


def visible(directory):
    return sorted(name for name in os.listdir(directory) if name != '.degu')


# --- what arrives -------------------------------------------------------------------------------


def test_a_tree_arrives_with_bytes_modes_times_and_symlinks(client, source, here, tree):
    count, size = fill(source)
    result = send(client, '', [source])
    assert tree(here / 'source') == tree(source)
    assert (here / 'source').stat().st_mtime_ns == OLD_NS
    assert (result.files_sent, result.files_present, result.bytes_sent) == (count, 0, size)
    assert result.skipped == ()
    assert private(here, 'tmp') == private(here, 'trash') == []


@pytest.mark.parametrize('size', [5, 2 * BLOCK])
def test_extended_attributes_arrive(client, source, here, size):
    (source / 'f').write_bytes(b'f' * size)
    try:
        os.setxattr(source / 'f', 'user.note', b'olives')
    except OSError as error:
        pytest.skip(f'the file system has no attributes: {error}')
    send(client, '', [source])
    assert os.getxattr(here / 'source' / 'f', 'user.note') == b'olives'


def test_several_things_arrive_under_their_last_names(client, source, here, monkeypatch):
    fill(source)
    monkeypatch.chdir(source)
    send(client, '', ['small', b'sub/', 'sub/deep/er', source / 'link', b'\xff\xfe'])
    assert visible(here) == sorted(['small', 'sub', 'er', 'link', os.fsdecode(b'\xff\xfe')])
    assert os.readlink(here / 'link') == 'small'
    assert (here / 'sub' / 'deep' / 'er' / 'f').read_bytes() == (here / 'er' / 'f').read_bytes()


@pytest.mark.parametrize('path', ['.', './', '../source', '../source/.', '../source/'])
def test_a_directory_arrives_under_its_name_however_it_is_said(
    client, source, here, monkeypatch, path
):
    (source / 'f').write_bytes(b'content')
    monkeypatch.chdir(source)
    send(client, '', [path])
    assert (here / 'source' / 'f').read_bytes() == b'content'


@pytest.mark.parametrize('path', ['', '/', '//', '.degu'])
def test_what_has_no_name_that_can_travel_is_an_error(client, source, monkeypatch, path):
    monkeypatch.chdir(source)
    with pytest.raises(PathError):
        send(client, '', [path])


@pytest.mark.parametrize('path', ['f.f', b'f.f', pathlib.Path('f.f')])
def test_one_path_in_place_of_several_sends_nothing(client, source, here, monkeypatch, path):
    (source / 'f').write_bytes(b'content')
    monkeypatch.chdir(source)
    with pytest.raises(TypeError, match='a list of one'):
        send(client, '', path)
    assert visible(here) == []


def test_two_of_the_same_name_arrive_side_by_side(client, source, here):
    for name in 'ab':
        (source / name).mkdir()
        (source / name / 'f.txt').write_bytes(name.encode())
    send(client, '', [source / 'a' / 'f.txt', source / 'b' / 'f.txt'])
    assert (here / 'f.txt').read_bytes() == b'a'
    assert (here / 'f (2).txt').read_bytes() == b'b'


def test_nothing_to_send_is_sent(client, source, here):
    assert send(client, '', [])[:3] == (0, 0, 0)
    os.mkfifo(source / 'fifo')
    result = send(client, '', [source / 'fifo'])
    assert result.skipped == (Skipped('fifo', Problem.SPECIAL),)
    assert visible(here) == []


def test_what_is_not_there_is_an_error_before_anything_is_offered(client, source, here):
    (source / 'f').write_bytes(b'content')
    with pytest.raises(FileNotFoundError):
        send(client, '', [source / 'f', source / 'g'])
    assert visible(here) == []


def test_special_files_are_reported_and_the_rest_arrives(client, source, here):
    name = os.fsdecode(b'a %20\xff')
    os.mkfifo(source / name)
    (source / 'f').write_bytes(b'content')
    result = send(client, '', [source])
    assert result.skipped == (Skipped(f'source/{name}', Problem.SPECIAL),)
    assert visible(here / 'source') == ['f']


def test_an_inbox_below_a_prefix_is_found(inbox, source, serve, here):
    (source / 'f').write_bytes(b'content')

    def mounted(connection, request):
        if request['path'].pop(0) == 'inbox':
            return inbox(connection, request)
        return (404, 'Not Found', {}, None)

    client = serve(mounted)
    for number, prefix in enumerate(('/inbox', '/inbox/')):
        (source / 'f').write_bytes(b'%d' % number)
        send(client, prefix, [source / 'f'])
    assert visible(here) == ['f', 'f (2)']
    with pytest.raises(OfferRefusedError, match='404'):
        send(client, '/other', [source / 'f'])


def test_the_same_content_is_sent_once(client, source, here):
    for number in range(300):
        (source / f'large-{number}').write_bytes(b'l' * (2 * BLOCK))
        (source / f'small-{number}').write_bytes(b's' * 100)
    result = send(client, '', [source])
    assert (result.files_sent, result.bytes_sent) == (600, 2 * BLOCK + 100)
    assert {path.read_bytes() for path in (here / 'source').glob('l*')} == {b'l' * (2 * BLOCK)}
    assert len({path.stat().st_ino for path in (here / 'source').iterdir()}) == 600
    assert private(here, 'tmp') == []


def test_small_contents_come_in_packs_of_a_limited_size(inbox, serve, source, here, tree):
    for number in range(20):
        (source / f'{number}').write_bytes(os.urandom(BLOCK))
    sizes = []

    def app(connection, request):
        if request['method'] == 'POST':
            data = b''.join(request['body'])
            sizes.append(len(data))
            request['body'] = [data]
        return inbox(connection, request)

    send(serve(app), '', [source])
    assert len(sizes) == 3
    assert max(sizes) <= SENT_PACK_SIZE + 8 * 128  # each content has a record around it
    assert tree(here / 'source') == tree(source)


def test_a_copy_is_made_where_the_system_cannot_copy(client, source, here, monkeypatch):
    def fail(*args):
        raise OSError(errno.EXDEV, 'not between these')

    monkeypatch.setattr(os, 'copy_file_range', fail)
    content = os.urandom(3 * MIB + 1)
    (source / 'a').write_bytes(content)
    (source / 'b').write_bytes(content)
    assert send(client, '', [source]).bytes_sent == len(content)
    assert (here / 'source' / 'b').read_bytes() == content


# --- the second time ----------------------------------------------------------------------------


def test_a_second_send_moves_nothing_and_makes_no_second_copy(client, source, here, tree):
    count, _ = fill(source)
    send(client, '', [source])
    before = tree(here)
    result = send(client, '', [source])
    assert (result.files_sent, result.files_present, result.bytes_sent) == (0, count, 0)
    assert tree(here) == before


@pytest.mark.parametrize('change', ['edit', 'remove', 'move', 'touch', 'link', 'subdirectory'])
def test_what_was_changed_since_is_received_again_beside_it(client, source, here, change):
    fill(source)
    send(client, '', [source])
    top = here / 'source'
    if change == 'edit':
        (top / 'sub' / 'deep' / 'er' / 'f').write_bytes(b'x' * 10)
    elif change == 'remove':
        (top / 'larger').unlink()
    elif change == 'move':
        top.rename(here / 'mine')
    elif change == 'touch':
        os.utime(top / 'small', ns=(1, 1))
    elif change == 'link':
        (top / 'link').unlink()
    else:
        (top / 'empty-dir').rmdir()
    result = send(client, '', [source])
    assert result.files_present == 0
    assert visible(here) == (['mine', 'source'] if change == 'move' else ['source', 'source (2)'])


def test_something_else_of_the_same_name_gets_another_one(client, source, here, tree):
    for number in range(3):
        (source / 'f.txt').write_bytes(b'%d' % number)
        send(client, '', [source, source / 'f.txt'])
    assert visible(here) == sorted(
        ['f.txt', 'f (2).txt', 'f (3).txt', 'source', 'source (2)', 'source (3)']
    )
    assert (here / 'f (3).txt').read_bytes() == b'2'
    assert (here / 'source (3)' / 'f.txt').read_bytes() == b'2'


@pytest.mark.parametrize('kind', ['file', 'directory', 'symlink', 'dangling symlink'])
def test_what_is_there_is_never_replaced(client, source, here, tmp_path, kind):
    (tmp_path / 'outside').mkdir()
    for name in ['f', 'd']:
        if kind == 'file':
            (here / name).write_bytes(b'mine')
        elif kind == 'directory':
            (here / name).mkdir()
        elif kind == 'symlink':
            (here / name).symlink_to(tmp_path / 'outside')
        else:
            (here / name).symlink_to(tmp_path / 'nowhere')
    before = {name: os.lstat(here / name) for name in 'fd'}
    (source / 'f').write_bytes(b'theirs')
    (source / 'd').mkdir()
    (source / 'd' / 'g').write_bytes(b'theirs')
    send(client, '', [source / 'f', source / 'd'])
    assert {name: os.lstat(here / name) for name in 'fd'} == before
    assert visible(here) == ['d', 'd (2)', 'f', 'f (2)']
    assert (here / 'f (2)').read_bytes() == (here / 'd (2)' / 'g').read_bytes() == b'theirs'
    assert os.listdir(tmp_path / 'outside') == []
    assert not (tmp_path / 'nowhere').exists()


# --- somebody works in the inbox meanwhile ------------------------------------------------------


class Between:
    """An app that does something before requests of one kind: (method, length of path)."""

    def __init__(self, app, method, length, action, count=1):
        self.app = app
        self.kind = (method, length)
        self.action = action
        self.left = count
        self.lock = threading.Lock()

    def __call__(self, connection, request):
        with self.lock:
            if (request['method'], len(request['path'])) == self.kind and self.left:
                self.left -= 1
                self.action()
        return self.app(connection, request)


@pytest.mark.parametrize('size', [10, 2 * BLOCK])
@pytest.mark.parametrize('kind', ['file', 'directory'])
def test_what_appears_at_a_reserved_name_is_not_replaced(inbox, serve, source, here, size, kind):
    (source / 'f.txt').write_bytes(b't' * size)

    def appear():
        if kind == 'file':
            (here / 'f.txt').write_bytes(b'mine')
        else:
            (here / 'f.txt').mkdir()

    method, length = ('POST', 2) if size == 10 else ('PUT', 3)
    send(serve(Between(inbox, method, length, appear)), '', [source / 'f.txt'])
    assert visible(here) == ['f (2).txt', 'f.txt']
    assert (here / 'f (2).txt').read_bytes() == b't' * size
    assert kind == 'directory' or (here / 'f.txt').read_bytes() == b'mine'


def test_what_appears_at_the_last_moment_is_not_replaced(client, source, here, monkeypatch):
    """Between the look and the rename; the sender is told to send it again."""
    (source / 'f').write_bytes(b'theirs')
    (source / 'large').write_bytes(b't' * (3 * BLOCK))
    really = Places._find_free
    done = set()

    def find_and_appear(self, placing, equal):
        place = really(self, placing, equal)
        if placing.path not in done:
            done.add(placing.path)
            (here / os.fsdecode(placing.path[0])).write_bytes(b'mine')
        return place

    monkeypatch.setattr(Places, '_find_free', find_and_appear)
    result = send(client, '', [source / 'f', source / 'large'])
    assert result.files_sent == 2
    assert (here / 'f').read_bytes() == (here / 'large').read_bytes() == b'mine'
    assert (here / 'f (2)').read_bytes() == b'theirs'
    assert (here / 'large (2)').read_bytes() == b't' * (3 * BLOCK)
    assert private(here, 'tmp') == []


@pytest.mark.parametrize('instead', ['nothing', 'file', 'symlink'])
def test_a_directory_that_is_moved_away_is_made_again(
    inbox, serve, source, here, tmp_path, instead
):
    (source / 'sub').mkdir()
    (source / 'sub' / 'f').write_bytes(b'theirs')
    (tmp_path / 'outside').mkdir()

    def move():
        (here / 'source').rename(here / 'moved')
        if instead == 'file':
            (here / 'source').write_bytes(b'mine')
        elif instead == 'symlink':
            (here / 'source').symlink_to(tmp_path / 'outside')

    send(serve(Between(inbox, 'POST', 2, move)), '', [source])
    name = 'source' if instead == 'nothing' else 'source (2)'
    assert (here / name / 'sub' / 'f').read_bytes() == b'theirs'
    assert os.listdir(tmp_path / 'outside') == []
    assert instead != 'file' or (here / 'source').read_bytes() == b'mine'


# --- a person decides ---------------------------------------------------------------------------


def start_send(*args, **options):
    """Send in a thread; returns it, and what will hold the outcome."""
    outcome = []

    def run():
        try:
            outcome.append(send(*args, **options))
        except Exception as error:  # noqa: BLE001  # it is looked at in the test
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


@pytest.mark.parametrize('decision', ['accept', 'reject'])
def test_an_offer_waits_for_a_person(serve, source, here, decision):
    (source / 'f').write_bytes(b'content')
    ids = queue.Queue()
    with Inbox(here, lambda offer: Decision.ASK) as inbox:
        thread, outcome = start_send(serve(inbox), '', [source], waiting=ids.put)
        offer_id = ids.get(timeout=20)
        (offer,) = inbox.offers()
        assert offer.offer_id == offer_id
        assert offer[2:7] == (('source',), 1, 7, State.WAITING, 0)
        assert offer.sender.user_id == 'someone'
        assert visible(here) == []
        answered = getattr(inbox, decision)(offer.offer_id)
        thread.join()
        (offer,) = inbox.offers()
    if decision == 'accept':
        assert answered.state is State.ACCEPTED
        assert outcome[0].files_sent == 1
        assert (offer.state, offer.bytes_received) == (State.DONE, 7)
        assert (here / 'source' / 'f').read_bytes() == b'content'
    else:
        assert offer.state is answered.state is State.REFUSED
        assert isinstance(outcome[0], OfferRefusedError)
        assert visible(here) == []


def poll_fast(monkeypatch):
    monkeypatch.setattr(sys.modules['degu_rpc.files.send'], 'POLL_S', 0.0)
    monkeypatch.setattr(sys.modules['degu_rpc.files.send'], 'BUSY_PAUSE_S', 0.0)


def test_a_person_may_take_longer_than_a_poll_and_one_connection_asks(
    serve, source, here, monkeypatch
):
    poll_fast(monkeypatch)
    (source / 'f').write_bytes(b'content')
    asked = []
    with Inbox(here, lambda offer: Decision.ASK) as inbox:

        def app(connection, request):
            if request['method'] in {'PUT', 'GET'}:
                asked.append((request['method'], connection['client']))
            if len(asked) == 5:
                inbox.accept(inbox.offers()[0].offer_id)
            return inbox(connection, request)

        assert send(serve(app), '', [source / 'f']).files_sent == 1
    assert [method for method, _ in asked] == ['PUT', 'GET', 'GET', 'GET', 'GET', 'PUT']
    assert len({client for _, client in asked}) == 1


def test_an_offer_that_is_forgotten_while_it_waits_is_offered_again(
    serve, source, here, tmp_path, monkeypatch
):
    poll_fast(monkeypatch)
    (source / 'f').write_bytes(b'content')
    told = []
    with Inbox(tmp_path, lambda offer: Decision.ASK) as old, Inbox(here, accept) as new:

        def forget():
            app.app = new

        app = Between(old, 'GET', 1, forget)
        assert send(serve(app), '', [source / 'f'], waiting=told.append).files_sent == 1
    assert len(told) == 1


def test_what_is_decided_while_nobody_waits_counts_when_it_is_sent_again(serve, source, here):
    (source / 'f').write_bytes(b'content')
    cancel = threading.Event()
    with Inbox(here, lambda offer: Decision.ASK) as inbox:
        client = serve(inbox)
        with pytest.raises(TransferCanceledError):
            send(client, '', [source], waiting=lambda _: cancel.set(), cancel=cancel)
    with Inbox(here, lambda offer: pytest.fail('it was asked for already')) as inbox:
        client = serve(inbox)
        (offer,) = inbox.offers()
        inbox.reject(offer.offer_id)
        with pytest.raises(OfferRefusedError):
            send(client, '', [source])
        inbox.accept(offer.offer_id)
        assert send(client, '', [source]).files_sent == 1


def test_a_policy_that_refuses_is_asked_again_and_remembers_nothing(serve, source, here):
    (source / 'f').write_bytes(b'content')
    decisions = [Decision.REFUSE, Decision.ACCEPT]
    with Inbox(here, lambda offer: decisions.pop(0)) as inbox:
        client = serve(inbox)
        with pytest.raises(OfferRefusedError, match='does not want') as caught:
            send(client, '', [source])
        assert caught.value.status == 200
        assert inbox.offers() == []
        assert private(here, 'inbox') == []
        assert send(client, '', [source]).files_sent == 1


def test_an_offer_that_is_rejected_in_the_middle_ends_the_send(serve, source, here):
    for number in range(3):
        (source / str(number)).write_bytes(os.urandom(3 * BLOCK))
    with Inbox(here, accept) as inbox:

        def reject():
            (offer,) = inbox.offers()
            inbox.reject(offer.offer_id)

        with pytest.raises(OfferRefusedError):
            send(serve(Between(inbox, 'PUT', 3, reject)), '', [source])
        (offer,) = inbox.offers()
        assert offer.state is State.REFUSED


def test_who_receives_is_told_once_with_the_final_paths(serve, source, here):
    fill(source)
    (here / 'small').write_bytes(b'mine')
    told = []
    with Inbox(here, accept, received=lambda *args: told.append(args)) as inbox:
        client = serve(inbox)
        send(client, '', [source, source / 'small', source / 'link'])
        send(client, '', [source, source / 'small', source / 'link'])
        ((offer, paths),) = told
        assert offer == inbox.offers()[0]
    assert offer.state is State.DONE
    assert sorted(paths) == [here / 'link', here / 'small (2)', here / 'source']


def test_an_error_of_who_is_told_is_logged_and_does_no_harm(serve, source, here, caplog):
    (source / 'f').write_bytes(b'content')

    def fail(offer, paths):
        raise RuntimeError('a bug of the receiver')

    with Inbox(here, accept, received=fail) as inbox:
        assert send(serve(inbox), '', [source]).files_sent == 1
        assert inbox.offers()[0].state is State.DONE
    assert 'a bug of the receiver' in caplog.text


# --- sources that change ------------------------------------------------------------------------


def grow(path):
    return lambda: path.write_bytes(path.read_bytes() + b'more')


@pytest.mark.parametrize('size', [100, 2 * BLOCK])
@pytest.mark.parametrize(
    ('change', 'problem'),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b'more'), Problem.CHANGING),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b'!'), Problem.CHANGING),
        (lambda path: path.unlink(), Problem.VANISHED),
        (lambda path: (path.unlink(), path.symlink_to('/etc/passwd')), Problem.VANISHED),
    ],
)
def test_i10_what_changed_since_it_was_hashed_is_reported_and_the_rest_arrives(
    inbox, serve, source, here, size, change, problem
):
    (source / 'rests').write_bytes(b'r' * size)
    (source / 'f').write_bytes(b'f' * size)
    app = Between(inbox, 'PUT', 1, lambda: change(source / 'f'))
    result = send(serve(app), '', [source])
    assert result.skipped == (Skipped('source/f', problem),)
    assert (result.files_sent, result.files_present) == (1, 0)
    assert visible(here / 'source') == ['rests']
    assert inbox.offers()[0].state is State.DONE


def test_i10_a_file_that_changes_while_it_is_sent_does_not_arrive(inbox, serve, source, here):
    (source / 'rests').write_bytes(b'r' * 10)
    (source / 'f').write_bytes(os.urandom(3 * RUN_SIZE))

    def change():
        with (source / 'f').open('r+b') as file:
            file.seek(2 * RUN_SIZE)
            file.write(b'changed')

    result = send(serve(Between(inbox, 'PUT', 2, change)), '', [source])
    assert result.skipped == (Skipped('source/f', Problem.CHANGING),)
    assert visible(here / 'source') == ['rests']


def test_a_file_whose_bytes_are_refused_is_named(inbox, serve, source):
    (source / 'f').write_bytes(b'f' * 2 * BLOCK)

    def app(connection, request):
        if (request['method'], len(request['path'])) == ('PUT', 2):
            request['body'].read()
            return (422, 'Unprocessable Content', {}, b'block 1: it is another')
        return inbox(connection, request)

    with pytest.raises(IntegrityError, match="'source/f': block 1: it is another") as caught:
        send(serve(app), '', [source])
    assert caught.value.path == 'source/f'


@pytest.mark.parametrize('size', [100, 2 * BLOCK])
def test_a_file_that_is_only_touched_arrives_as_it_was_offered(inbox, serve, source, here, size):
    (source / 'f').write_bytes(b'f' * size)
    os.utime(source / 'f', ns=(OLD_NS, OLD_NS))
    app = Between(inbox, 'PUT', 1, lambda: os.utime(source / 'f'))
    assert send(serve(app), '', [source]).skipped == ()
    assert (here / 'source' / 'f').stat().st_mtime_ns == OLD_NS


# --- interrupted --------------------------------------------------------------------------------

SEND = """
import sys
from degu.client import Client
from degu.errors import DeguError
from degu_rpc.files import send
send(Client((sys.argv[1], int(sys.argv[2]))), '', [sys.argv[3]])
"""

RECEIVE = """
import sys
from degu.server import Server
from degu_rpc.files import Decision, Inbox
from degu_rpc.peers import Authenticated
inbox = Inbox(sys.argv[1], lambda offer: Decision.ACCEPT)
server = Server(sys.argv[2], Authenticated(inbox))
print('ready', flush=True)
server.serve_forever()
"""


def start_sender(client, source):
    host, port = client.address
    command = [sys.executable, '-c', SEND, host, str(port), str(source)]
    return subprocess.Popen(command)


class Counting:
    """An app that counts the bytes of contents that come, and stops all after some of them."""

    def __init__(self, app):
        self.app = app
        self.count = 0
        self.stop_after = None
        self.reached = threading.Event()
        self.gone = threading.Event()
        self.lock = threading.Lock()

    def __call__(self, connection, request):
        if request['method'] in {'PUT', 'POST'} and len(request['path']) == 2:
            with self.lock:
                if self.stop_after is not None and self.count >= self.stop_after:
                    self.reached.set()
                    self.gone.wait(20)
                response = self.app(connection, request)
                self.count += request['headers'].get('content-length', 0)
                return response
        return self.app(connection, request)


def test_a_sender_that_is_killed_goes_on_where_it_was(inbox, serve, source, here, tree):
    content = os.urandom(5 * RUN_SIZE)
    (source / 'large').write_bytes(content)
    (source / 'copy').write_bytes(content)
    (source / 'small').write_bytes(b'small')
    app = Counting(inbox)
    client = serve(app)
    for number in range(1, 4):
        app.stop_after = number * RUN_SIZE
        app.gone.clear()
        app.reached.clear()
        with start_sender(client, source) as process:
            try:
                assert app.reached.wait(20)
            finally:
                process.kill()
                app.gone.set()
        assert process.returncode == -signal.SIGKILL
    app.stop_after = None
    assert send(client, '', [source]).bytes_sent <= 2 * RUN_SIZE + 5
    assert tree(here / 'source') == tree(source)
    assert visible(here) == ['source']
    assert private(here, 'tmp') == []


def start_receiver(here, address):
    process = subprocess.Popen(
        [sys.executable, '-c', RECEIVE, str(here), str(address)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == 'ready\n'
    return process


def test_a_receiver_that_is_killed_goes_on_where_it_was(source, here, tmp_path, tree):
    """Kill -9 at any moment, as often as it comes to one; one copy, nothing half."""
    fill(source)
    for number in range(200):
        (source / f'new-{number}').write_bytes(b'new %d' % number * 100)
    content = os.urandom(3 * RUN_SIZE)
    (source / 'large').write_bytes(content)
    for count in itertools.chain((1, 3, 5, 8, 12, 20), itertools.repeat(10**6)):
        address = tmp_path / f'socket-{count}'
        seen = []
        with start_receiver(here, address) as process:

            def kill(progress, process=process, seen=seen, count=count):
                seen.append(progress)
                if len(seen) == count:
                    process.kill()

            try:
                result = send(Client(str(address), timeout_s=20), '', [source], progress=kill)
            except (OSError, DeguError):
                result = None
            finally:
                process.kill()
        for path in (here / 'source').rglob('*') if (here / 'source').exists() else []:
            if path.is_file() and not path.is_symlink():
                there = source / path.relative_to(here / 'source')
                assert path.read_bytes() == there.read_bytes()
        if result is not None:
            break
    assert tree(here / 'source') == tree(source)
    assert visible(here) == ['source']
    assert private(here, 'tmp') == []


def test_a_cancel_leaves_whole_files_only_and_a_second_send_goes_on(
    client, source, here, tree, monkeypatch
):
    monkeypatch.setattr(sys.modules['degu_rpc.files.progress'], 'PROGRESS_INTERVAL_S', 0.0)
    for number in range(20):
        (source / str(number)).write_bytes(b'%02d' % number * BLOCK)
    cancel = threading.Event()

    def stop(progress):
        if progress.bytes_moved > 5 * BLOCK:
            cancel.set()

    with pytest.raises(TransferCanceledError):
        send(client, '', [source], progress=stop, cancel=cancel)
    for path in (here / 'source').iterdir():
        assert path.read_bytes() == (source / path.name).read_bytes()
    assert send(client, '', [source]).files_present > 0
    assert tree(here / 'source') == tree(source)


def test_a_send_that_was_canceled_before_it_began_offers_nothing(client, inbox, source):
    fill(source)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(TransferCanceledError):
        send(client, '', [source], cancel=cancel)
    assert inbox.offers() == []


def test_progress_counts_to_the_end(client, source):
    count, size = fill(source)
    seen = []
    send(client, '', [source], progress=seen.append)
    last = seen[-1]
    assert (last.files_done, last.files_total) == (count, count)
    assert last.bytes_done == last.bytes_total == size + 5 + 5 * BLOCK + 12345
    assert last.bytes_moved == size
    for before, after in itertools.pairwise(seen):
        assert before.bytes_done <= after.bytes_done
        assert before.files_done <= after.files_done


def test_an_error_in_the_callers_progress_ends_the_send(client, source):
    fill(source)

    def fail(_):
        raise RuntimeError('the bar broke')

    with pytest.raises(RuntimeError, match='the bar broke'):
        send(client, '', [source], progress=fail)


def test_a_rate_limit_holds_for_all_connections_together(client, source, here):
    (source / 'f').write_bytes(os.urandom(2 * BLOCK))
    (source / 'g').write_bytes(os.urandom(2 * BLOCK))
    result = send(client, '', [source], rate_limit=2 * MIB)
    # What the kernel takes at once is not waited for at the end.
    assert result.elapsed_s > 0.9 * (4 * BLOCK - 2 * MIB / 8) / (2 * MIB)
    with pytest.raises(ValueError, match='rate'):
        send(client, '', [source], rate_limit=0)


def test_a_server_that_is_gone_is_an_oserror(source):
    (source / 'f').write_bytes(b'content')
    with pytest.raises(OSError, match=r'refused|No such file'):
        send(Client(str(source / 'nobody.socket')), '', [source / 'f'])


@pytest.mark.parametrize('max_requests', [1, 2])
def test_a_kept_connection_that_was_closed_is_replaced(
    inbox, serve, source, here, tree, max_requests
):
    fill(source)
    send(serve(inbox, max_requests=max_requests), '', [source])
    assert tree(here / 'source') == tree(source)


def test_two_sends_of_the_same_make_one_copy(client, source, here, tree):
    fill(source)
    runs = [start_send(client, '', [source]) for _ in range(3)]
    for thread, _ in runs:
        thread.join()
    assert [type(outcome[0]).__name__ for _, outcome in runs] == ['Sent'] * 3
    assert tree(here / 'source') == tree(source)
    assert visible(here) == ['source']
    assert private(here, 'tmp') == []


def test_an_inbox_that_is_restarted_in_the_middle_is_offered_it_again(serve, source, here, tree):
    """As a node that is updated: the transfer is not active any more, and goes on."""
    (source / 'f').write_bytes(os.urandom(3 * RUN_SIZE))
    inboxes = [Inbox(here, accept)]

    def restart():
        inboxes.pop().close()
        inboxes.append(Inbox(here, accept))

    app = Between(lambda *args: inboxes[0](*args), 'PUT', 3, restart)
    with inboxes[0]:
        send(serve(app), '', [source])
    inboxes[0].close()
    assert tree(here / 'source') == tree(source)
    assert visible(here) == ['source']


# --- a full disk --------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_it_is_sent(serve, source, tiny):
    (source / 'f').write_bytes(os.urandom(4 * MIB))
    with Inbox(tiny, accept) as inbox:
        with pytest.raises(NoSpaceError, match='no room for 4194304 bytes'):
            send(serve(inbox), '', [source])
        assert inbox.offers() == []
    assert os.listdir(tiny) == ['.degu']


@pytest.mark.parametrize('is_resting', [False, True])
def test_what_was_accepted_before_has_its_room_until_it_rests(
    serve, source, tiny, monkeypatch, is_resting
):
    for name in 'ab':
        (source / name).write_bytes(os.urandom(MIB + 2 * BLOCK))
    cancel = threading.Event()
    with Inbox(tiny, accept) as inbox:
        client = serve(Between(inbox, 'PUT', 2, cancel.set))
        with pytest.raises(TransferCanceledError):
            send(client, '', [source / 'a'], cancel=cancel)
        with pytest.raises(NoSpaceError):
            send(client, '', [source / 'b'])
        assert [offer.names for offer in inbox.offers()] == [('a',)]
        if is_resting:
            monkeypatch.setattr('degu_rpc.files.intake.MAX_REST_S', -1.0)
        else:
            send(client, '', [source / 'a'])
            with pytest.raises(NoSpaceError):
                send(client, '', [source / 'b'])
        assert send_in_the_end(client, source / 'b', tiny).files_sent == 1


def send_in_the_end(client, path, here):
    """Send as soon as there is room, which what came of a canceled one may still be taking.

    All of it, even: it may have been on its way when the sender was told to end.
    """
    deadline = monotonic() + 20
    while True:
        (here / 'a').unlink(missing_ok=True)
        for name in private(here, 'tmp'):
            (here / '.degu' / 'tmp' / name).unlink(missing_ok=True)
        try:
            return send(client, '', [path])
        except NoSpaceError:
            if monotonic() > deadline:
                raise


@pytest.mark.parametrize('size', [MIB + BLOCK, BLOCK])
def test_a_disk_that_fills_up_meanwhile_leaves_no_half_file_and_resumes(
    serve, source, tiny, tree, size
):
    for number in range((MIB + BLOCK) // size):
        (source / str(number)).write_bytes(os.urandom(size))
    filler = tiny / 'filler'

    def fill_up():
        filler.write_bytes(bytes(MIB + 256 * KIB))

    with Inbox(tiny, accept) as inbox:
        method = ('PUT', 2) if size > BLOCK else ('POST', 2)
        with pytest.raises(NoSpaceError, match='the inbox'):
            send(serve(Between(inbox, *method, fill_up)), '', [source])
        for path in (tiny / 'source').iterdir():
            assert path.read_bytes() == (source / path.name).read_bytes()
        filler.unlink()
        send(serve(inbox), '', [source])
    assert tree(tiny / 'source') == tree(source)
    assert visible(tiny) == ['source']


# --- inboxes that lie ---------------------------------------------------------------------------


def answering(*lines, status=200):
    """An app that answers everything with these lines."""

    def app(connection, request):
        for _ in request['body'] or ():
            pass
        text = b''.join(line.encode() + b'\n' for line in lines)
        if status != 200:
            return (status, 'No', {}, text)
        body = connection['rgi.ChunkedOutput']([text, b''] if text else [b''])
        return (200, 'OK', {'content-type': 'application/x-ndjson'}, body)

    return app


@pytest.mark.parametrize(
    'lines',
    [
        [],
        ['{"state": "odd"}'],
        ['{"state": "accepted"'],
        ['[]'],
        ['{"state": "accepted"}', '{"root": "%s", "missing": "1-2"}'],
        ['{"state": "accepted"}', '{"root": "%s", "missing": "0-99999999"}'],
        ['{"state": "accepted"}', '{"root": "%s", "missing": "x"}'],
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error(serve, source, lines):
    (source / 'f').write_bytes(b'f' * (2 * BLOCK))
    root = build_manifest(b'f' * (2 * BLOCK)).root
    client = serve(answering(*(line.replace('%s', root) for line in lines)))
    with pytest.raises(ListingError):
        send(client, '', [source / 'f'])


def test_an_answer_that_does_not_come_in_chunks_is_no_refusal(serve, source):
    (source / 'f').write_bytes(b'f')
    client = serve(lambda _connection, _request: (200, 'OK', {}, b'hello'))
    with pytest.raises(ListingError, match='comes in chunks'):
        send(client, '', [source / 'f'])


def test_an_inbox_that_always_wants_more_is_left(serve, source, monkeypatch):
    monkeypatch.setattr(sys.modules['degu_rpc.files.send'], 'BUSY_PAUSE_S', 0.0)
    (source / 'f').write_bytes(b'f')
    root = build_manifest(b'f').root
    answer = answering('{"state": "accepted"}', f'{{"root": "{root}"}}')
    methods = []

    def app(connection, request):
        methods.append(request['method'])
        return answer(connection, request)

    with pytest.raises(OfferRefusedError, match='wants it again'):
        send(serve(app), '', [source / 'f'])
    # What came right once was something; after that it is wanted in vain.
    assert methods == ['PUT', 'POST'] * (SEND_ROUNDS + 1)


def test_an_inbox_that_keeps_nothing_is_left(serve, source, monkeypatch):
    monkeypatch.setattr(sys.modules['degu_rpc.files.send'], 'BUSY_PAUSE_S', 0.0)
    (source / 'f').write_bytes(b'f' * (2 * BLOCK))
    root = build_manifest(b'f' * (2 * BLOCK)).root
    record = f'{{"root": "{root}", "missing": "0-262143"}}'
    client = serve(answering('{"state": "accepted"}', record))
    with pytest.raises((IntegrityError, OfferRefusedError)):
        send(client, '', [source / 'f'])


def test_an_inbox_cannot_ask_for_what_was_not_offered(serve, source):
    (source / 'f').write_bytes(b'f')
    root = build_manifest(b'secret').root
    client = serve(answering('{"state": "accepted"}', f'{{"root": "{root}"}}', '{"state": "done"}'))
    assert send(client, '', [source / 'f']).bytes_sent == 0


def test_an_inbox_that_takes_no_offer_and_wants_it_again_is_left(serve, source):
    (source / 'f').write_bytes(b'f')
    with pytest.raises(OfferRefusedError, match='409'):
        send(serve(answering('again', status=409)), '', [source / 'f'])


@pytest.mark.parametrize('size', [1, 2 * BLOCK])
@pytest.mark.parametrize('is_gone', [False, True])
def test_an_inbox_that_forgets_each_offer_is_left(serve, source, monkeypatch, size, is_gone):
    monkeypatch.setattr(sys.modules['degu_rpc.files.send'], 'BUSY_PAUSE_S', 0.0)
    (source / 'f').write_bytes(b'f' * size)
    root = build_manifest(b'f' * size).root
    accepted = answering('{"state": "accepted"}', f'{{"root": "{root}"}}')
    forgotten = answering('offer it first', status=409)
    offers = []

    def app(connection, request):
        if (request['method'], len(request['path'])) != ('PUT', 1):
            return forgotten(connection, request)
        offers.append(request)
        if is_gone:
            (source / 'f').unlink(missing_ok=True)
        return accepted(connection, request)

    with pytest.raises(OfferRefusedError, match='wants it again'):
        send(serve(app), '', [source / 'f'])
    assert SEND_ROUNDS <= len(offers) <= SEND_ROUNDS + 1


def test_an_inbox_that_stays_busy_is_left(serve, source, monkeypatch):
    monkeypatch.setattr(sys.modules['degu_rpc.files.send'], 'BUSY_PAUSE_S', 0.0)
    (source / 'f').write_bytes(b'f')
    answer = answering('busy', status=503)
    offers = []

    def app(connection, request):
        offers.append(request['method'])
        return answer(connection, request)

    with pytest.raises(OfferRefusedError, match='503'):
        send(serve(app), '', [source / 'f'])
    assert len(offers) == BUSY_ATTEMPTS


def test_the_words_of_an_inbox_can_do_nothing_to_a_terminal(serve, source):
    (source / 'f').write_bytes(b'f')
    with pytest.raises(OfferRefusedError) as caught:
        send(serve(answering('\x1b[2Jgone', status=400)), '', [source / 'f'])
    assert caught.value.reason == '\\x1b[2Jgone'


def test_a_mode_that_keeps_its_owner_out_does_not_keep_out_the_inbox(client, source, here):
    (source / 'd').mkdir()
    (source / 'd' / 'f').write_bytes(b'f')
    (source / 'd').chmod(0o000)
    try:
        send(client, '', [source])
        assert stat.S_IMODE((here / 'source' / 'd').stat().st_mode) == 0o500
        assert send(client, '', [source]).files_sent == 0
    finally:
        (source / 'd').chmod(0o700)
