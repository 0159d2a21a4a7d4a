"""degu_rpc.files.inbox: what a peer may put here, and what it may not, whatever it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time

import msgspec
import pytest

from degu.bodies import ChunkedOutput
from degu.client import Client
from degu.errors import ClosedConnectionError
from degu.rgi import ContentRange, Validator
from degu.server import Server
from degu_rpc.errors import BlockedError, UnknownOfferError
from degu_rpc.files import Decision, Inbox, State, intake, registry
from degu_rpc.files import inbox as inbox_module
from degu_rpc.files.blocks import build_manifest, format_manifest
from degu_rpc.files.limits import (
    MAX_ACTIVE_OF_USER,
    MAX_MISSING_RANGES,
    MAX_OFFERS_OF_USER,
    MAX_OPEN_CONTENTS,
    MAX_QUESTION_HEARTBEATS,
    MAX_READ_OFFERS,
    MAX_READ_OFFERS_OF_USER,
    MAX_REST_S,
    MAX_WAITING,
    MAX_WAITING_OF_USER,
    OFFER_AGE_S,
)
from degu_rpc.files.listing import Entry, Kind
from degu_rpc.files.offers import Answer, Item, check_offer, derive_transfer
from degu_rpc.files.records import Media, format_record, parse_records
from degu_rpc.peers import Authenticated
from degu_rpc.peers.caller import Peer, PeerKind

BLOCK = 128 * 1024
SMALL = b'content'
LARGE = bytes(range(256)) * (3 * BLOCK // 256) + b'end'
OTHER = b'o' * len(LARGE)
ROOT, LARGE_ROOT = build_manifest(SMALL).root, build_manifest(LARGE).root
TRANSFER, SECOND = 'a' * 52, 'q' * 52


def root_of(content):
    return build_manifest(content).root


def file(path='f', content=SMALL, **more):
    return Entry(path, Kind.FILE, size=len(content), mode=0o644, root=root_of(content), **more)


def directory(path):
    return Entry(path, Kind.DIRECTORY, mode=0o755)


@pytest.fixture
def here(tmp_path):
    directory = tmp_path / 'here'
    directory.mkdir()
    return directory


def accept(offer):
    return Decision.ACCEPT


def ask(offer):
    return Decision.ASK


@pytest.fixture
def inbox(here):
    with Inbox(here, accept) as app:
        yield app


class Talk:
    """A connection to an inbox, and the questions of the protocol, asked by hand."""

    def __init__(self, client):
        self.client = client
        self.connection = client.connect()

    def request(self, method, path, headers, body):
        """Ask; a connection on which a body was not read has ended."""
        try:
            return self.connection.request(method, f'/{path}', headers, body)
        except ClosedConnectionError:
            self.connection.close()
            self.connection = self.client.connect()
            return self.connection.request(method, f'/{path}', headers, body)

    def ask(self, method, path, headers=None, body=None):
        """Return (status, answers, or text of a refusal)."""
        response = self.request(method, path, headers, body)
        content_type = response.headers.get('content-type')
        if response.status != 200:
            return response.status, (response.body.read() if response.body else b'').decode()
        if method == 'HEAD':
            return 200, response.headers
        return 200, list(parse_records(response.body, content_type, Answer))

    def records(self, method, path, records, media=Media.JSON):
        body = b''.join(format_record(record, media) for record in records)
        return self.ask(method, path, {'content-type': media.value}, body)

    def offer(self, *entries, transfer=TRANSFER):
        return self.records('PUT', transfer, entries)

    def pack(self, *contents, transfer=TRANSFER):
        items = [Item(root_of(content), content) for content in contents]
        return self.records('POST', f'{transfer}/pack', items)

    def manifest(self, content, transfer=TRANSFER):
        data = format_manifest(build_manifest(content))
        return self.ask('PUT', f'{transfer}/{root_of(content)}/manifest', {}, data)

    def run(self, content, start=0, stop=None, transfer=TRANSFER, root=None):
        stop = len(content) if stop is None else stop
        part = ContentRange(start, stop, len(content))
        path = f'{transfer}/{root or root_of(content)}'
        return self.ask('PUT', path, {'content-range': part}, content[start:stop])


@pytest.fixture
def connect(serve):
    talks = []

    def start(app, *roles, **options):
        talks.append(Talk(serve(Validator(app), *roles, **options)))
        return talks[-1]

    yield start
    for talk in talks:
        talk.connection.close()


@pytest.fixture
def talk(inbox, connect):
    return connect(inbox)


def private(directory, name):
    return sorted(os.listdir(directory / '.degu' / name))


def visible(directory):
    return sorted(name for name in os.listdir(directory) if name != '.degu')


def states(inbox):
    return [offer.state for offer in inbox.offers()]


def fill_by_hand(talk):
    """Send a small and a large file, one question after the other."""
    talk.offer(file(), file('g', LARGE))
    talk.pack(SMALL)
    talk.manifest(LARGE)
    return talk.run(LARGE)


# --- the protocol -------------------------------------------------------------------------------


@pytest.mark.parametrize('media', Media)
def test_an_offer_is_answered_with_its_state_and_what_is_wanted(talk, inbox, media):
    entries = [directory('d'), file('d/f'), file('d/g'), file('h', LARGE)]
    status, answers = talk.records('PUT', TRANSFER, entries, media)
    (offer,) = inbox.offers()
    assert status == 200
    assert answers == [
        Answer(State.ACCEPTED, offer.offer_id),
        Answer(root=ROOT),
        Answer(root=LARGE_ROOT),
    ]
    assert len(offer.offer_id) == 8
    assert abs(offer.offered_at - time.time()) < 60
    assert (offer.names, offer.files, offer.size) == (('d', 'h'), 3, 2 * 7 + len(LARGE))


def test_a_transfer_step_by_step(talk, inbox, here):
    talk.offer(file(), file('g', LARGE))
    assert talk.pack(SMALL) == (200, [Answer(root=ROOT)])
    assert visible(here) == ['f']
    assert talk.manifest(LARGE) == (200, [Answer(root=LARGE_ROOT, missing='0-393218')])
    assert talk.run(LARGE, BLOCK, 2 * BLOCK) == (200, [])
    assert talk.ask('HEAD', f'{TRANSFER}/{LARGE_ROOT}')[1]['x-missing'] == '0-131071,262144-393218'
    assert talk.offer(file(), file('g', LARGE))[1][1:] == [Answer(root=LARGE_ROOT)]
    assert inbox.offers()[0].bytes_received == 7 + BLOCK
    assert talk.run(LARGE, 2 * BLOCK) == (200, [])
    offer_id = inbox.offers()[0].offer_id
    assert talk.run(LARGE, 0, BLOCK) == (
        200,
        [Answer(root=LARGE_ROOT), Answer(State.DONE, offer_id)],
    )
    assert (here / 'f').read_bytes() == SMALL
    assert (here / 'g').read_bytes() == LARGE
    assert talk.ask('GET', TRANSFER) == (200, [Answer(State.DONE, offer_id)])
    assert talk.offer(file(), file('g', LARGE)) == (200, [Answer(State.DONE, offer_id)])


def test_an_offer_without_contents_is_done_at_once(talk, here):
    link = Entry('d/l', Kind.SYMLINK, target='x', mtime_ns=5)
    _, answers = talk.offer(directory('d'), link)
    assert [answer.state for answer in answers] == [State.ACCEPTED, State.DONE]
    assert os.readlink(here / 'd' / 'l') == 'x'
    assert (here / 'd').stat().st_mode & 0o777 == 0o755


def test_a_content_that_will_not_come_is_not_waited_for(talk, inbox, here):
    talk.offer(file(), file('g', LARGE))
    talk.pack(SMALL)
    status, (answer,) = talk.ask('DELETE', f'{TRANSFER}/{LARGE_ROOT}')
    assert (status, answer.state) == (200, State.DONE)
    assert visible(here) == ['f']


def test_all_blocks_may_come_at_once_and_several_times(talk, here):
    talk.offer(file('g', LARGE))
    talk.manifest(LARGE)
    assert talk.run(LARGE, 0, BLOCK)[0] == 200
    assert talk.run(LARGE, 0, BLOCK)[0] == 200
    status, answers = talk.ask('PUT', f'{TRANSFER}/{LARGE_ROOT}', {}, LARGE)
    assert status == 200
    assert answers[-1].state is State.DONE
    assert (here / 'g').read_bytes() == LARGE


@pytest.mark.parametrize(
    ('method', 'path', 'status'),
    [
        ('GET', '', 404),
        ('GET', 'x', 404),
        ('PUT', 'A' * 52, 404),
        ('GET', TRANSFER, 200),
        ('GET', f'{TRANSFER}?wait=-1', 400),
        ('GET', f'{TRANSFER}?wait=x', 400),
        ('GET', f'{TRANSFER}?wait=%C2%B2', 400),
        ('POST', TRANSFER, 405),
        ('PUT', TRANSFER, 400),
        ('PUT', f'{TRANSFER}/pack', 405),
        ('POST', f'{TRANSFER}/pack', 400),
        ('GET', f'{TRANSFER}/{ROOT}', 405),
        ('PUT', f'{TRANSFER}/{ROOT}', 400),
        ('HEAD', f'{TRANSFER}/{ROOT}', 409),
        ('DELETE', f'{TRANSFER}/{ROOT}', 409),
        ('PUT', f'{TRANSFER}/{ROOT}/manifest', 400),
        ('PUT', f'{TRANSFER}/{ROOT}/other', 404),
        ('PUT', f'{TRANSFER}/x', 404),
        ('PUT', f'{TRANSFER}/..', 404),
        ('PUT', f'{TRANSFER}/{ROOT}/manifest/x', 404),
    ],
)
def test_questions_that_are_none(talk, method, path, status):
    assert talk.ask(method, path)[0] == status


def test_where_nothing_is_a_refusal_says_what_may_be_done(talk):
    response = talk.connection.request('DELETE', f'/{TRANSFER}/pack')
    assert (response.status, response.headers['allow']) == (405, 'POST')


@pytest.mark.parametrize('step', ['pack', 'manifest', 'run'])
def test_contents_of_what_was_not_offered_are_not_taken(talk, here, step):
    assert getattr(talk, step)(SMALL if step == 'pack' else LARGE)[0] == 409
    talk.offer(file('x', b'other'), file('y', OTHER))
    status, said = getattr(talk, step)(SMALL if step == 'pack' else LARGE)
    assert (status, said[0].status) == (200, 404) if step == 'pack' else status == 404
    assert private(here, 'tmp') == []


def test_another_method_of_sending_is_refused(talk):
    talk.offer(file(), file('g', LARGE))
    assert talk.manifest(SMALL)[0] == 400
    assert talk.run(SMALL)[0] == 400
    assert talk.run(LARGE)[0] == 409
    talk.manifest(LARGE)
    for start, stop in [(0, BLOCK - 1), (1, BLOCK), (BLOCK + 1, len(LARGE))]:
        assert talk.run(LARGE, start, stop)[0] == 400
    chunks = ChunkedOutput([LARGE, b''])
    assert talk.ask('PUT', f'{TRANSFER}/{LARGE_ROOT}', {}, chunks)[0] == 400


@pytest.mark.parametrize(
    'part',
    [
        ContentRange(0, BLOCK, len(LARGE) + 1),
        ContentRange(0, 2 * BLOCK, None),
        ContentRange(3 * BLOCK, 4 * BLOCK, None),
        ContentRange(4 * BLOCK, 5 * BLOCK, None),
    ],
)
def test_i10_more_bytes_than_were_offered_are_not_taken(talk, here, part):
    talk.offer(file('g', LARGE))
    talk.manifest(LARGE)
    body = bytes(BLOCK)
    assert talk.ask('PUT', f'{TRANSFER}/{LARGE_ROOT}', {'content-range': part}, body)[0] == 400


def test_at_most_so_many_ranges_are_told_at_once(talk):
    content = os.urandom(2 * BLOCK * (MAX_MISSING_RANGES + 2))
    talk.offer(file('g', content))
    talk.manifest(content)
    for block in range(1, 2 * (MAX_MISSING_RANGES + 2), 2):
        talk.run(content, block * BLOCK, (block + 1) * BLOCK)
    status, (answer,) = talk.manifest(content)
    assert status == 200
    assert answer.missing.count('-') == MAX_MISSING_RANGES


def test_at_most_so_many_contents_are_open_at_once(talk, here):
    contents = [os.urandom(BLOCK + 1) for _ in range(MAX_OPEN_CONTENTS + 1)]
    talk.offer(*(file(str(number), content) for number, content in enumerate(contents)))
    for content in contents:
        talk.manifest(content)
    assert talk.run(contents[0])[0] == 409
    for content in contents[1:]:
        assert talk.run(content)[0] == 200
    talk.manifest(contents[0])
    assert talk.run(contents[0])[1][-1].state is State.DONE


# --- who calls ----------------------------------------------------------------------------------


def test_from_nobody_nothing_is_taken(inbox, connect, here):
    talk = connect(inbox, anonymous=True)
    for ask_it in (lambda: talk.offer(file()), lambda: talk.ask('GET', TRANSFER)):
        status, why = ask_it()
        assert status == 403
        assert 'certificate' in why or 'without a way' in why
    assert inbox.offers() == []


def test_a_caller_without_a_role_is_nobody(inbox, tmp_path, here):
    """As a node says of whom it does not know; on a unix socket, who is in no group of mine."""

    def unknown(connection, request):
        request['_peer'] = request['_peer']._replace(roles=frozenset())
        return inbox(connection, request)

    with Server(str(tmp_path / 'socket'), Authenticated(unknown)) as server:
        talk = Talk(Client(server.address))
        assert talk.offer(file())[0] == 403
        talk.connection.close()


def test_a_local_caller_has_a_directory_of_its_own(inbox, tmp_path, here):
    with Server(str(tmp_path / 'socket'), Authenticated(inbox)) as server:
        talk = Talk(Client(server.address))
        fill_by_hand(talk)
        talk.connection.close()
    assert states(inbox) == [State.DONE]
    assert inbox.offers()[0].sender.uid == os.geteuid()
    assert private(here, 'inbox') == [f'uid-{os.geteuid()}']


def test_another_user_cannot_see_continue_or_end_a_transfer(inbox, connect, here):
    talk = connect(inbox)
    talk.offer(file(), file('g', LARGE))
    other = connect(inbox, user='other')
    assert [answer.status for answer in other.ask('GET', TRANSFER)[1]] == [404]
    assert other.pack(SMALL)[0] == other.manifest(LARGE)[0] == other.run(LARGE)[0] == 409
    assert other.ask('HEAD', f'{TRANSFER}/{LARGE_ROOT}')[0] == 409
    assert other.ask('DELETE', f'{TRANSFER}/{ROOT}')[0] == 409
    assert visible(here) == []


def test_the_same_name_of_a_transfer_is_another_one_for_another_user(inbox, connect, here):
    for user in ['one', 'two']:
        fill_by_hand(connect(inbox, user=user))
    assert visible(here) == ['f', 'f (2)', 'g', 'g (2)']
    assert states(inbox) == [State.DONE, State.DONE]


def test_what_another_user_sent_cannot_be_found_out(inbox, connect, here):
    """Neither what is there already nor what is on its way counts as sent."""
    one = connect(inbox, user='one')
    fill_by_hand(one)
    begun = LARGE + b'begun'
    one.offer(file('h', begun), transfer=SECOND)
    one.manifest(begun, transfer=SECOND)
    one.run(begun, 0, BLOCK, transfer=SECOND)
    two = connect(inbox, user='two')
    _, answers = two.offer(file(), file('g', LARGE), file('h', begun))
    assert [answer.root for answer in answers[1:]] == [ROOT, LARGE_ROOT, root_of(begun)]
    assert two.manifest(begun)[1][0].missing == f'0-{len(begun) - 1}'


@pytest.mark.parametrize('user', ['../x', 'a/b', '..', '.degu'])
def test_i6_a_user_whose_name_leads_elsewhere_gets_no_directory(inbox, connect, here, user):
    assert connect(inbox, user=user).offer(file())[0] == 400
    assert inbox.offers() == []


# --- hostile offers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'entry',
    [
        {'path': '../evil', 'kind': 'directory'},
        {'path': '%2e%2e/evil', 'kind': 'directory'},
        {'path': '%2e%2e%2fevil', 'kind': 'directory'},
        {'path': '/evil', 'kind': 'directory'},
        {'path': '%2Fevil', 'kind': 'directory'},
        {'path': '.degu', 'kind': 'directory'},
        {'path': '.DEGU/tmp/evil', 'kind': 'symlink', 'target': 'x'},
        {'path': 'evil%00', 'kind': 'directory'},
        {'path': 'x' * 256, 'kind': 'directory'},
        {'path': 'evil/' * 300, 'kind': 'directory'},
        {'path': 'evil', 'kind': 'directory', 'mode': 0o4755},
        {'path': 'evil', 'kind': 'directory', 'mode': -1},
        {'path': 'evil', 'kind': 'directory', 'mtime_ns': 2**63},
        {'path': 'evil', 'kind': 'file', 'root': ROOT, 'size': -1},
        {'path': 'evil', 'kind': 'file', 'root': ROOT, 'size': 2**63},
        {'path': 'evil', 'kind': 'file', 'root': ROOT, 'size': 2**62},
        {'path': 'evil', 'kind': 'file', 'root': ROOT, 'mode': 0o6755},
        {'path': 'evil', 'kind': 'file', 'root': ROOT, 'xattrs': {'': 'eA=='}},
        {'path': 'evil', 'kind': 'device'},
        {'path': 'evil', 'kind': 'skipped'},
        {'path': 'evil', 'kind': 'symlink'},
        {'path': 'evil', 'kind': 'symlink', 'target': 'x' * 5000},
        {'kind': 'directory'},
        [],
        None,
    ],
)
def test_i6_an_offer_that_is_not_one_leaves_nothing(talk, inbox, here, tmp_path, entry):
    before = sorted(os.listdir(tmp_path))
    good = json.dumps({'path': 'd', 'kind': 'directory'})
    body = f'{good}\n{json.dumps(entry)}\n'.encode()
    status, why = talk.ask('PUT', TRANSFER, {'content-type': Media.JSON.value}, body)
    assert status == 400
    assert why.isascii()
    assert inbox.offers() == []
    assert visible(here) == []
    assert sorted(os.listdir(tmp_path)) == before


def test_i6_nothing_is_written_through_a_symlink_of_the_offer(talk, here, tmp_path):
    (tmp_path / 'outside').mkdir()
    link = Entry('a', Kind.SYMLINK, target=str(tmp_path / 'outside'))
    assert talk.offer(link, file('a/passwd'))[0] == 400
    assert talk.offer(directory('a'), link, file('a/passwd'))[0] == 400
    assert os.listdir(tmp_path / 'outside') == []
    assert visible(here) == []


def test_i6_nothing_is_written_through_a_symlink_of_another_offer(talk, here, tmp_path):
    (tmp_path / 'outside').mkdir()
    talk.offer(Entry('a', Kind.SYMLINK, target=str(tmp_path / 'outside')))
    talk.offer(directory('a'), file('a/passwd'), transfer=SECOND)
    talk.pack(SMALL, transfer=SECOND)
    assert os.listdir(tmp_path / 'outside') == []
    assert (here / 'a (2)' / 'passwd').read_bytes() == SMALL


def test_i6_a_directory_that_becomes_a_symlink_is_not_walked_through(talk, here, tmp_path):
    (tmp_path / 'outside').mkdir()
    talk.offer(directory('a'), directory('a/b'), file('a/b/passwd'))
    shutil.rmtree(here / 'a' / 'b')
    (here / 'a' / 'b').symlink_to(tmp_path / 'outside')
    assert talk.pack(SMALL)[1][-1].state is State.DONE
    assert os.listdir(tmp_path / 'outside') == []
    assert (here / 'a' / 'b (2)' / 'passwd').read_bytes() == SMALL


@pytest.mark.parametrize('content_type', [None, 'text/plain', 'application/json'])
def test_an_offer_in_another_form_is_refused(talk, content_type):
    headers = {} if content_type is None else {'content-type': content_type}
    assert talk.ask('PUT', TRANSFER, headers, b'x')[0] == 400


def test_a_transfer_is_not_offered_with_something_else(talk, here):
    talk.offer(file())
    assert talk.offer(file('g'))[0] == 409
    talk.pack(SMALL)
    assert talk.offer(file('g'))[0] == 200  # the first one is done: this is another one


@pytest.mark.parametrize('limit', ['MAX_READ_OFFERS_OF_USER', 'MAX_READ_OFFERS'])
def test_the_places_to_read_offers_are_limited(inbox, connect, monkeypatch, limit):
    monkeypatch.setattr(intake, limit, 2)
    leave = threading.Event()

    def entries():
        yield format_record(file(), Media.JSON)
        leave.wait(20)
        yield b''

    def offer(number):
        body = ChunkedOutput(entries())
        path = str(number) * 51 + 'a'
        outcomes.append(talks[number].ask('PUT', path, {'content-type': Media.JSON.value}, body)[0])

    outcomes = []
    talks = {number: connect(inbox) for number in (2, 3)}
    late, other = connect(inbox), connect(inbox, user='other')
    threads = [threading.Thread(target=offer, args=(number,)) for number in talks]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + 20
        while inbox._intake._reading.total() < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert late.offer(file())[0] == 503
        assert other.offer(file())[0] == (200 if limit.endswith('USER') else 503)
    finally:
        leave.set()
        for thread in threads:
            thread.join()
    assert outcomes == [200, 200]
    assert late.offer(file())[0] == other.offer(file())[0] == 200
    assert MAX_READ_OFFERS > MAX_READ_OFFERS_OF_USER


def test_a_directory_that_a_person_made_is_not_taken_over(here, connect):
    entries = [directory('d'), file('d/f'), file('d/g', OTHER[:9])]
    with Inbox(here, ask) as inbox:
        talk = connect(inbox)
        inbox.accept(talk.offer(*entries)[1][0].offer_id)
        (here / 'd').mkdir()
        (here / 'd' / 'f').write_bytes(SMALL)
        (here / 'd').chmod(0o500)
        before = (here / 'd').stat()
        _, answers = talk.offer(*entries)
        # Whoever sends does not learn that the person has the first one.
        assert {answer.root for answer in answers[1:]} == {ROOT, root_of(OTHER[:9])}
        assert talk.pack(SMALL, OTHER[:9])[1][-1].state is State.DONE
    assert visible(here) == ['d', 'd (2)']
    assert os.listdir(here / 'd') == ['f']
    assert visible(here / 'd (2)') == ['f', 'g']
    after = (here / 'd').stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_a_directory_that_a_person_made_with_the_inode_of_ours_is_theirs(here, connect):
    entries = [directory('d'), file('d/f'), file('d/g', OTHER[:9])]
    with Inbox(here, accept) as inbox:
        connect(inbox).offer(*entries)
        ours = (here / 'd').stat()
        (here / 'd').rmdir()
        (here / 'd').mkdir(mode=0o700)  # ext4 gives it the inode that is free now
        (here / 'd' / 'f').write_bytes(SMALL)
    with Inbox(here, accept) as inbox:
        talk = connect(inbox)
        talk.offer(*entries)
        assert talk.pack(SMALL, OTHER[:9])[1][-1].state is State.DONE
    assert os.listdir(here / 'd') == ['f'], ours
    assert visible(here / 'd (2)') == ['f', 'g']


def test_a_directory_that_we_made_is_ours_after_a_restart(here, connect):
    entries = [directory('d'), file('d/f'), file('d/g', OTHER[:9])]
    with Inbox(here, accept) as inbox:
        talk = connect(inbox)
        talk.offer(*entries)
        talk.pack(SMALL)
    with Inbox(here, accept) as inbox:
        talk = connect(inbox)
        assert talk.offer(*entries)[1][1:] == [Answer(root=root_of(OTHER[:9]))]
        assert talk.pack(OTHER[:9])[1][-1].state is State.DONE
    assert visible(here) == ['d']
    assert (here / 'd').stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize('kind', ['file', 'directory'])
def test_what_a_person_put_where_our_directory_was_is_left_alone(
    inbox, talk, here, monkeypatch, kind
):
    """At the last moment, when everything is here but the mode of the directory."""
    finish = intake.Arrival.finish

    def move_first(self):
        (here / 'd').rename(here / 'moved')
        if kind == 'file':
            (here / 'd').touch(mode=0o600)
        else:
            (here / 'd').mkdir(mode=0o700)
        return finish(self)

    monkeypatch.setattr(intake.Arrival, 'finish', move_first)
    talk.offer(directory('d'), file('d/f'))
    assert talk.pack(SMALL)[1][-1].state is State.DONE
    found = (here / 'd').stat()
    assert found.st_mode & 0o777 == (0o600 if kind == 'file' else 0o700)
    assert found.st_mtime > OFFER_AGE_S


def test_what_came_of_a_rejected_offer_is_discarded(inbox, talk, connect, here):
    other = connect(inbox, user='other')
    for each in (talk, other):
        each.offer(file('g', LARGE))
        each.manifest(LARGE)
        each.run(LARGE, 0, BLOCK)
    assert len(private(here, 'tmp')) == 2
    inbox.reject(inbox.offers()[0].offer_id)
    assert len(private(here, 'tmp')) == 1
    other.run(LARGE, BLOCK)
    assert states(inbox) == [State.REFUSED, State.DONE]
    assert (here / 'g (2)').read_bytes() == LARGE


def test_what_came_is_kept_while_another_offer_of_the_user_may_want_it(inbox, talk, here):
    for transfer, name in ((TRANSFER, 'g'), (SECOND, 'h')):
        talk.offer(file(name, LARGE), transfer=transfer)
    talk.manifest(LARGE)
    talk.run(LARGE, 0, BLOCK)
    first, second = inbox.offers()
    inbox.reject(first.offer_id)
    assert talk.manifest(LARGE, SECOND)[1][0].missing == '131072-393218'
    inbox.reject(second.offer_id)
    assert private(here, 'tmp') == []


def test_a_rejection_holds_though_it_cannot_be_written_down(here, connect, caplog):
    with Inbox(here, accept) as inbox:
        talk = connect(inbox)
        offer_id = talk.offer(file('g', LARGE))[1][0].offer_id
        (records,) = (here / '.degu' / 'inbox').iterdir()
        shutil.rmtree(records)
        records.touch()
        assert inbox.reject(offer_id).state is State.REFUSED
        assert talk.manifest(LARGE)[0] == 409
        assert talk.offer(file('g', LARGE))[1] == [Answer(State.REFUSED, offer_id)]
        with pytest.raises(OSError):
            inbox.accept(offer_id)
        assert states(inbox) == [State.REFUSED]
    assert f'that offer {offer_id} is refused is not on the disk' in caplog.text


def test_a_time_that_the_file_system_cannot_hold_makes_no_second_copy(talk, here):
    """Many file systems begin in 1901."""
    entry = file(mtime_ns=-(2**62))
    talk.offer(entry)
    talk.pack(SMALL)
    assert [answer.state for answer in talk.offer(entry)[1]] == [State.DONE]
    os.utime(here / 'f', ns=(5, 5))
    assert talk.offer(entry)[1][0].state is State.ACCEPTED
    assert visible(here) == ['f']


class SlowPack:
    """A pack of one content, whose sender waits in the middle of it."""

    def __init__(self, talk, transfer=TRANSFER):
        self._began, self._go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._send, args=(talk, transfer))
        self._thread.start()
        self._began.wait(20)

    def _send(self, talk, transfer):
        headers = {'content-type': Media.JSON.value}
        body = ChunkedOutput(self._body())
        self.answer = talk.ask('POST', f'{transfer}/pack', headers, body)

    def _body(self):
        yield format_record(Item(ROOT, SMALL), Media.JSON)
        self._began.set()
        self._go.wait(20)
        yield b''

    def finish(self):
        self._go.set()
        self._thread.join()
        return self.answer


def wait_until_found(monkeypatch):
    """Return an event that is set once an inbox has found the arrival of a request."""
    found = threading.Event()
    find = intake.Intake.find_active

    def find_active(self, user, transfer):
        arrival = find(self, user, transfer)
        found.set()
        return arrival

    monkeypatch.setattr(intake.Intake, 'find_active', find_active)
    return found


def test_what_was_rejected_while_it_was_on_its_way_does_not_arrive(
    inbox, talk, connect, here, monkeypatch
):
    offer_id = talk.offer(file())[1][0].offer_id
    found = wait_until_found(monkeypatch)
    slow = SlowPack(connect(inbox))
    found.wait(20)
    inbox.reject(offer_id)
    status, answers = slow.finish()
    assert (status, answers[-1].status) == (200, 409)
    assert visible(here) == []
    assert states(inbox) == [State.REFUSED]


def test_an_arrival_that_was_let_go_does_not_end_the_offer_of_another(
    inbox, talk, connect, here, monkeypatch
):
    talk.offer(file())
    found = wait_until_found(monkeypatch)
    slow = SlowPack(connect(inbox))
    found.wait(20)
    for number in range(MAX_ACTIVE_OF_USER):
        entry = file(f'e{number}', OTHER)
        talk.offer(entry, transfer=derive_transfer([entry]))
    talk.offer(file())
    _, answers = slow.finish()
    assert answers[-1].status == 409
    assert len(inbox._intake._active) == MAX_ACTIVE_OF_USER
    assert talk.pack(SMALL)[1][-1].state is State.DONE
    for offer in inbox.offers():
        inbox.reject(offer.offer_id)
    assert len(private(here, 'reserved')) == 1  # its lock


@pytest.mark.parametrize('limit', ['MAX_READ_OFFER_S', 'OFFER_GRACE_S'])
def test_an_offer_may_not_take_for_ever_to_be_read(inbox, connect, monkeypatch, limit):
    """Though its sender is never silent for long."""
    monkeypatch.setattr(inbox_module, limit, 0.3)
    talk = connect(inbox)

    def dripping():
        yield b'{'
        while True:
            time.sleep(0.02)
            yield b' '

    with pytest.raises(OSError):
        talk.ask('PUT', TRANSFER, {'content-type': Media.JSON.value}, ChunkedOutput(dripping()))
    assert inbox._intake._reading.total() == 0
    talk.connection.close()
    talk.connection = talk.client.connect()
    assert talk.offer(file())[0] == 200


def test_an_offer_that_comes_fast_enough_is_read_to_its_end(inbox, talk, monkeypatch):
    monkeypatch.setattr(inbox_module, 'OFFER_GRACE_S', 0.5)
    monkeypatch.setattr(inbox_module, 'MIN_OFFER_RATE', 10)

    def entries():
        for number in range(40):
            time.sleep(0.02)
            yield format_record(file(f'f{number}'), Media.JSON)
        yield b''

    headers = {'content-type': Media.JSON.value}
    assert talk.ask('PUT', TRANSFER, headers, ChunkedOutput(entries()))[0] == 200


@pytest.mark.parametrize('path', [TRANSFER, f'{TRANSFER}/pack'])
def test_a_question_may_not_be_full_of_heartbeats(talk, path):
    talk.offer(file('g', LARGE))
    method = 'POST' if path.endswith('pack') else 'PUT'
    headers = {'content-type': Media.JSON.value}
    status, why = talk.ask(method, path, headers, b'\n' * (MAX_QUESTION_HEARTBEATS + 1))
    assert status == 400
    assert 'say nothing' in why


def test_names_with_the_same_stem_cost_one_lookup_each(here, monkeypatch):
    """They are looked for while all others wait for the lock."""
    looked = 0
    is_there = intake.Intake._is_there

    def count(self, path):
        nonlocal looked
        looked += 1
        return is_there(self, path)

    monkeypatch.setattr(intake.Intake, '_is_there', count)
    names = ['n' * 252 + f'{number:03}' for number in range(50)]
    for name in [*names, *('n' * 251 + f' ({number})' for number in range(2, 10))]:
        (here / name).touch()
    with Inbox(here, ask) as inbox:
        tree = check_offer(file(name) for name in names)
        peer = Peer(PeerKind.MACHINE, 'u', 'machine', 'u', frozenset({'peer'}), None, None)
        record = inbox._intake.find_record(peer, 'u', TRANSFER, tree)
        inbox.accept(record.offer_id)
        places = inbox._intake._registry.find('u', TRANSFER).places
    assert len(set(places.values())) == len(names)
    assert looked == 2 * len(names) + 8


# --- hostile contents ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    'content', [b'C0ntent', b'conten', b'content!', b'', b'x' * BLOCK], ids=lambda c: str(len(c))
)
def test_i10_a_small_content_that_is_not_what_it_says_is_not_kept(talk, here, content):
    talk.offer(file(), file('g', b'good'))
    items = [Item(ROOT, content), Item(root_of(b'good'), b'good')]
    status, answers = talk.records('POST', f'{TRANSFER}/pack', items)
    assert (status, {answer.root: answer.status for answer in answers}) == (
        200,
        {ROOT: 422, root_of(b'good'): 200},
    )
    assert visible(here) == ['g']
    assert private(here, 'tmp') == []


def test_i10_a_size_that_is_a_lie_is_found_out(talk, here):
    lie = msgspec.structs.replace(file(), size=6)
    talk.offer(lie)
    assert talk.pack(SMALL)[1][0].status == 422
    large = msgspec.structs.replace(file('g', LARGE), size=len(LARGE) + 1)
    talk.offer(large, transfer=SECOND)
    assert talk.manifest(LARGE, transfer=SECOND)[0] == 422
    assert visible(here) == []


@pytest.mark.parametrize('block', [0, 1, 3])
def test_i10_a_bad_block_is_not_kept_and_the_good_ones_are(talk, inbox, here, block):
    talk.offer(file('g', LARGE))
    talk.manifest(LARGE)
    bad = bytearray(LARGE)
    bad[block * BLOCK] ^= 1
    status, why = talk.run(bytes(bad), root=LARGE_ROOT)
    assert (status, why.strip()) == (422, f'block {block}: the bytes do not match the manifest')
    assert inbox.offers()[0].bytes_received == block * BLOCK
    assert visible(here) == []


@pytest.mark.parametrize(
    ('change', 'status'),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), 422),
        (lambda data: format_manifest(build_manifest(OTHER)), 422),
        (lambda data: data[:-32], 400),
        (lambda data: data + bytes(32), 400),
        (lambda data: b'', 400),
    ],
)
def test_a_manifest_that_lies_is_refused(talk, here, change, status):
    talk.offer(file('g', LARGE))
    data = change(format_manifest(build_manifest(LARGE)))
    assert talk.ask('PUT', f'{TRANSFER}/{LARGE_ROOT}/manifest', {}, data)[0] == status
    assert private(here, 'tmp') == []


def test_a_manifest_above_its_limit_is_not_read(talk, monkeypatch):
    monkeypatch.setattr(inbox_module, 'MAX_MANIFEST', 100)
    talk.offer(file('g', LARGE))
    assert talk.manifest(LARGE)[0] == 413


@pytest.mark.parametrize(('name', 'limit'), [('PACK_ITEMS', 2), ('PACK_SIZE', 20)])
def test_a_pack_has_limits(talk, here, monkeypatch, name, limit):
    contents = [b'1' * 7, b'2' * 7, b'3' * 7]
    talk.offer(*(file(str(number), content) for number, content in enumerate(contents)))
    monkeypatch.setattr(inbox_module, name, limit)
    assert talk.pack(*contents)[0] == 413
    assert visible(here) == []
    assert talk.pack(*contents[:2])[0] == 200
    assert visible(here) == ['0', '1']


def test_a_content_that_comes_twice_in_a_pack_is_placed_once(talk, here):
    talk.offer(file(), file('g', LARGE))
    assert talk.pack(SMALL, SMALL)[1] == [Answer(root=ROOT), Answer(root=ROOT)]
    assert talk.pack(SMALL)[1] == [Answer(root=ROOT)]
    assert visible(here) == ['f']
    assert private(here, 'tmp') == []


def test_a_file_never_becomes_setuid(talk, here):
    entry = msgspec.structs.replace(file(), mode=0o777)
    talk.offer(entry)
    talk.pack(SMALL)
    assert (here / 'f').stat().st_mode & 0o7777 == 0o777


# --- how many offers ----------------------------------------------------------------------------


def test_one_user_may_have_so_many_offers_wait(here, connect):
    with Inbox(here, ask) as inbox:
        talk = connect(inbox)
        for number in range(MAX_WAITING_OF_USER):
            entry = file(str(number))
            assert talk.offer(entry, transfer=derive_transfer([entry]))[0] == 200
        assert talk.offer(file())[0] == 429
        assert connect(inbox, user='other').offer(file())[0] == 200
        assert len(inbox.offers()) == MAX_WAITING_OF_USER + 1
        inbox.reject(inbox.offers()[0].offer_id)
        assert talk.offer(file())[0] == 200


def test_so_many_offers_may_wait_in_all(here, connect, monkeypatch):
    monkeypatch.setattr(intake, 'MAX_WAITING', 3)
    with Inbox(here, ask) as inbox:
        users = [connect(inbox, user=str(number)) for number in range(4)]
        assert [user.offer(file())[0] for user in users] == [200, 200, 200, 429]
    assert MAX_WAITING > MAX_WAITING_OF_USER


def test_of_other_offers_the_oldest_are_forgotten(inbox, talk, here, monkeypatch):
    monkeypatch.setattr(registry, 'MAX_OFFERS_OF_USER', 3)
    for number in range(6):
        entry = directory(str(number))
        talk.offer(entry, transfer=derive_transfer([entry]))
    assert [offer.names for offer in inbox.offers()] == [('3',), ('4',), ('5',)]
    assert len(os.listdir(here / '.degu' / 'inbox' / 'someone')) == 3
    assert MAX_OFFERS_OF_USER > 3


def test_what_waits_is_not_forgotten_for_newer_offers(here, connect, monkeypatch):
    monkeypatch.setattr(registry, 'MAX_OFFERS_OF_USER', 2)
    with Inbox(here, lambda offer: ask(offer) if offer.names == ('0',) else accept(offer)) as inbox:
        talk = connect(inbox)
        for number in range(5):
            entry = directory(str(number))
            talk.offer(entry, transfer=derive_transfer([entry]))
        assert [offer.names for offer in inbox.offers()] == [('0',), ('3',), ('4',)]


def test_what_rested_for_long_is_forgotten_with_what_came_of_it(here, connect, monkeypatch):
    with Inbox(here, accept) as inbox:
        talk = connect(inbox)
        talk.offer(file('g', LARGE))
        talk.manifest(LARGE)
        talk.run(LARGE, 0, BLOCK)
    assert private(here, 'tmp') != []
    with Inbox(here, accept) as inbox:
        assert states(inbox) == [State.ACCEPTED]
    assert private(here, 'tmp') != []
    later = time.time() + OFFER_AGE_S + 60
    monkeypatch.setattr(time, 'time', lambda: later)
    with Inbox(here, accept) as inbox:
        assert inbox.offers() == []
    assert private(here, 'tmp') == []
    assert os.listdir(here / '.degu' / 'inbox' / 'someone') == []


def test_the_transfers_in_memory_are_limited_and_go_on(inbox, talk, here):
    entries = [file(str(number), b'%d' % number) for number in range(MAX_ACTIVE_OF_USER + 1)]
    names = [derive_transfer([entry]) for entry in entries]
    for entry, name in zip(entries, names, strict=True):
        talk.offer(entry, transfer=name)
    assert talk.pack(b'0', transfer=names[0])[0] == 409
    assert talk.pack(b'1', transfer=names[1])[0] == 200
    assert talk.offer(entries[0], transfer=names[0])[0] == 200
    assert talk.pack(b'0', transfer=names[0])[1][-1].state is State.DONE
    assert visible(here) == ['0', '1']


def test_what_rests_is_let_go_with_the_room_that_was_reserved_for_it(
    inbox, connect, here, monkeypatch
):
    one, two = connect(inbox, user='one'), connect(inbox, user='two')
    one.offer(file('g', LARGE))
    assert len(private(here, 'reserved')) == 2  # a lock is there as well
    assert MAX_REST_S > 60
    monkeypatch.setattr(intake, 'MAX_REST_S', -1.0)
    two.offer(directory('d'))
    assert private(here, 'reserved') == ['lock']
    monkeypatch.undo()
    assert one.manifest(LARGE)[0] == 409
    one.offer(file('g', LARGE))
    one.manifest(LARGE)
    one.run(LARGE)
    assert (here / 'g').read_bytes() == LARGE


# --- a person decides ---------------------------------------------------------------------------


def test_whoever_asks_waits_for_the_answer(here, connect):
    with Inbox(here, ask) as inbox:
        talk = connect(inbox)
        _, (answer,) = talk.offer(file())
        assert answer.state is State.WAITING
        assert talk.ask('GET', f'{TRANSFER}?wait=0')[1] == [answer]
        threading.Timer(0.05, lambda: inbox.accept(answer.offer_id)).start()
        assert talk.ask('GET', f'{TRANSFER}?wait=60')[1] == [
            Answer(State.ACCEPTED, answer.offer_id)
        ]
        assert talk.pack(SMALL)[0] == 409  # not before it is offered again


def test_who_waits_hears_a_heartbeat_and_the_end_of_the_wait(here, connect, monkeypatch):
    monkeypatch.setattr('degu_rpc.files.records.HEARTBEAT_S', 0.0)
    monkeypatch.setattr(intake, 'HEARTBEAT_S', 0.01)
    monkeypatch.setattr(inbox_module, 'MAX_WAIT_S', 0.05)
    with Inbox(here, ask) as inbox:
        talk = connect(inbox)
        talk.offer(file())
        response = talk.connection.get(f'/{TRANSFER}?wait=999')
        pieces = [bytes(piece) for piece in response.body]
    assert pieces[0] == b'\n'
    assert json.loads(pieces[-2])['state'] == 'waiting'


def test_whoever_waits_is_let_go_when_the_inbox_closes(here, connect):
    with Inbox(here, ask) as inbox:
        talk = connect(inbox)
        talk.offer(file())
        threading.Timer(0.05, inbox.close).start()
        assert talk.ask('GET', f'{TRANSFER}?wait=60')[1][0].state is State.WAITING


def test_an_id_that_is_none_is_an_error(inbox):
    for act in (inbox.accept, inbox.reject):
        with pytest.raises(UnknownOfferError) as caught:
            act('aaaaaaaa')
        assert caught.value.offer_id == 'aaaaaaaa'


def test_what_is_done_stays_done(inbox, talk):
    fill_by_hand(talk)
    (offer,) = inbox.offers()
    assert inbox.reject(offer.offer_id) == inbox.accept(offer.offer_id) == offer


def test_a_sender_hears_that_it_is_done_while_received_runs(here, connect, monkeypatch):
    monkeypatch.setattr('degu_rpc.files.records.HEARTBEAT_S', 0.0)
    monkeypatch.setattr(intake, 'HEARTBEAT_S', 0.01)
    leave = threading.Event()
    told = []

    def received(offer, paths):
        assert leave.wait(20)
        told.append(paths)

    with Inbox(here, accept, received=received) as inbox:
        talk = connect(inbox)
        talk.offer(file())
        body = format_record(Item(ROOT, SMALL), Media.JSON)
        headers = {'content-type': Media.JSON.value}
        response = talk.request('POST', f'{TRANSFER}/pack', headers, body)
        pieces = (bytes(piece) for piece in response.body)
        assert any(b'"state":"done"' in piece for piece in pieces)
        assert next(pieces) == b'\n'
        assert told == []
        leave.set()
        for _ in pieces:
            pass
    assert told == [(here / 'f',)]


def test_an_error_of_who_decides_is_an_error_of_the_inbox(here, connect, caplog):
    def fail(offer):
        raise RuntimeError('a bug of the policy')

    with Inbox(here, fail) as inbox:
        assert connect(inbox).offer(file())[0] == 500
        assert inbox.offers() == []
    assert 'a bug of the policy' in caplog.text


@pytest.mark.parametrize('decision', [True, None, 'accept'])
def test_a_decision_that_is_none_is_an_error_of_the_inbox(here, connect, caplog, decision):
    with Inbox(here, lambda offer: decision) as inbox:
        assert connect(inbox).offer(file())[0] == 500
        assert inbox.offers() == []
    assert 'which is no Decision' in caplog.text


def test_a_name_is_reserved_from_when_it_is_accepted(here, connect):
    with Inbox(here, ask) as inbox:
        users = [connect(inbox, user=str(number)) for number in range(3)]
        for user in users:
            user.offer(file())
        for offer in inbox.offers():
            inbox.accept(offer.offer_id)
        assert visible(here) == []
    with Inbox(here, ask) as inbox:
        for number in (2, 1, 0):
            talk = connect(inbox, user=str(number))
            talk.offer(file())
            talk.pack(SMALL)
            assert visible(here)[0] == ['f', 'f (2)', 'f (3)'][number] or number < 2
            assert (here / ['f', 'f (2)', 'f (3)'][number]).exists()


def test_names_of_one_offer_do_not_get_into_each_others_way(talk, here):
    (here / 'f').write_bytes(b'mine')
    talk.offer(file('f'), file('f%20(2)', b'second'))
    talk.pack(SMALL, b'second')
    assert visible(here) == ['f', 'f (2)', 'f (3)']
    assert (here / 'f (2)').read_bytes() == b'second'
    assert (here / 'f (3)').read_bytes() == SMALL


# --- the disk -----------------------------------------------------------------------------------


def test_a_restart_goes_on_with_everything(here, connect):
    with Inbox(here, accept) as inbox:
        talk = connect(inbox)
        (here / 'g').write_bytes(b'mine')
        talk.offer(file(), file('g', LARGE))
        talk.pack(SMALL)
        talk.manifest(LARGE)
        talk.run(LARGE, BLOCK, 2 * BLOCK)
        before = inbox.offers()
    with Inbox(here, lambda offer: pytest.fail('it was accepted')) as inbox:
        assert [offer[:5] for offer in inbox.offers()] == [offer[:5] for offer in before]
        talk = connect(inbox)
        assert talk.offer(file(), file('g', LARGE))[1][1:] == [Answer(root=LARGE_ROOT)]
        assert talk.manifest(LARGE)[1][0].missing == '0-131071,262144-393218'
        talk.run(LARGE, 0, BLOCK)
        assert talk.run(LARGE, 2 * BLOCK)[1][-1].state is State.DONE
    assert (here / 'g (2)').read_bytes() == LARGE
    assert private(here, 'tmp') == []


def test_a_content_that_is_complete_and_not_placed_is_placed_when_it_is_asked_for(here, connect):
    """As after a kill between the last block and the rename."""
    with Inbox(here, accept) as inbox:
        talk = connect(inbox)
        talk.offer(file('g', LARGE))
        talk.manifest(LARGE)
        talk.run(LARGE, 0, BLOCK)
    (name,) = [name for name in private(here, 'tmp') if name.count('.') == 1]
    (here / '.degu' / 'tmp' / name).write_bytes(LARGE)
    with Inbox(here, accept) as inbox:
        talk = connect(inbox)
        talk.offer(file('g', LARGE))
        assert talk.manifest(LARGE)[1][-1].state is State.DONE
    assert (here / 'g').read_bytes() == LARGE


def test_i7_without_our_directory_only_time_is_lost(here, connect):
    with Inbox(here, accept) as inbox:
        fill_by_hand(connect(inbox))
    shutil.rmtree(here / '.degu')
    with Inbox(here, accept) as inbox:
        assert inbox.offers() == []
        fill_by_hand(connect(inbox))
    assert visible(here) == ['f', 'f (2)', 'g', 'g (2)']


@pytest.mark.parametrize(
    'damage',
    [b'', b'{}', b'\xff', b'[' * 100_000, None],
    ids=['empty', 'no', 'bad', 'deep', 'moved'],
)
def test_a_record_that_cannot_be_read_is_removed_and_said(here, connect, caplog, damage):
    with Inbox(here, accept) as inbox:
        fill_by_hand(connect(inbox))
    path = here / '.degu' / 'inbox' / 'someone' / TRANSFER
    if damage is None:
        path.rename(path.with_name(SECOND))
    else:
        path.write_bytes(damage)
    with Inbox(here, accept) as inbox:
        assert inbox.offers() == []
    assert os.listdir(path.parent) == []
    assert 'is no record of an offer' in caplog.text


def test_what_a_killed_write_left_of_a_record_is_removed(here, connect):
    with Inbox(here, accept) as inbox:
        fill_by_hand(connect(inbox))
    path = here / '.degu' / 'inbox' / 'someone' / f'.{TRANSFER}.0123.tmp'
    path.write_bytes(b'{')
    with Inbox(here, accept) as inbox:
        assert states(inbox) == [State.DONE]
    assert not path.exists()


def test_what_is_ours_is_private(inbox, talk, here):
    talk.offer(file('g', LARGE))
    talk.manifest(LARGE)
    for path in (here / '.degu').rglob('*'):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize('name', ['.degu', '.degu/tmp', '.degu/inbox'])
def test_a_directory_that_others_prepared_is_refused(here, name):
    (here / name).mkdir(parents=True)
    (here / name).chmod(0o777)
    with pytest.raises(BlockedError) as caught:
        Inbox(here, accept)
    assert caught.value.path == name


def test_records_stay_with_a_directory_that_is_moved(inbox, talk, here):
    moved = here.rename(here.with_name('moved'))
    here.mkdir()
    talk.offer(file())
    assert talk.pack(SMALL)[1][-1].state is State.DONE
    assert os.listdir(moved / '.degu' / 'inbox' / 'someone') == [TRANSFER]
    assert os.listdir(here) == []


def test_what_is_decided_once_an_inbox_is_closed_is_an_error(here, connect):
    with Inbox(here, lambda offer: Decision.ASK) as inbox:
        connect(inbox).offer(file())
        offer_id = inbox.offers()[0].offer_id
    with pytest.raises(OSError, match='Bad file descriptor'):
        inbox.accept(offer_id)


def test_a_file_that_another_limit_keeps_out_is_no_room(inbox, talk, here, monkeypatch):
    def full(*args):
        raise OSError(122, 'Disk quota exceeded')

    talk.offer(file())
    monkeypatch.setattr('degu_rpc.files.arrival.store_small', full)
    _, answers = talk.pack(SMALL)
    assert [(answer.root, answer.status) for answer in answers] == [('', 507)]
    monkeypatch.undo()
    assert talk.pack(SMALL)[1][-1].state is State.DONE


def test_a_disk_that_fails_is_said_and_logged(inbox, talk, here, monkeypatch, caplog):
    def fail(*args):
        raise OSError(5, 'Input/output error', '/secret/place')

    talk.offer(file())
    monkeypatch.setattr('degu_rpc.files.arrival.store_small', fail)
    _, answers = talk.pack(SMALL)
    assert [(answer.root, answer.status) for answer in answers] == [('', 500)]
    assert 'secret' not in answers[0].why
    assert '/secret/place' in caplog.text


def test_a_record_that_cannot_be_kept_ends_nothing(inbox, talk, here, monkeypatch):
    """The last step fails once: whoever asks again ends it."""
    talk.offer(file())
    with monkeypatch.context() as patch:
        patch.setattr(
            registry.Registry, 'save', lambda *args: (_ for _ in ()).throw(OSError(28, 'no'))
        )
        assert talk.pack(SMALL)[1][-1].status == 507
    assert talk.offer(file())[1][-1].state is State.DONE


# --- curl ---------------------------------------------------------------------------------------


def test_curl_can_send_a_file(inbox, serve, here, tmp_path, program):
    curl = program('curl')
    host, port = serve(inbox).address
    url = f'http://{host}:{port}/{TRANSFER}'
    (tmp_path / 'large').write_bytes(LARGE)
    (tmp_path / 'manifest').write_bytes(format_manifest(build_manifest(LARGE)))
    (tmp_path / 'offer').write_bytes(format_record(file('large', LARGE), Media.JSON))

    def put(name, to, *more):
        command = [curl, '-sSfT', tmp_path / name, '-H', 'expect:', *more, url + to]
        return subprocess.run(command, check=True, capture_output=True).stdout

    json_lines = ('-H', f'content-type: {Media.JSON.value}')
    assert b'"state":"accepted"' in put('offer', '', *json_lines)
    put('manifest', f'/{LARGE_ROOT}/manifest')
    assert b'"state":"done"' in put('large', f'/{LARGE_ROOT}')
    assert (here / 'large').read_bytes() == LARGE
