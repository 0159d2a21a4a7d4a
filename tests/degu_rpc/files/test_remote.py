"""degu_rpc.files.remote: what is taken of a list of chunks, and from whom."""

from __future__ import annotations

import io
import itertools
import random

import pytest

from degu_rpc.errors import ShareRefusedError, TransferCanceledError
from degu_rpc.files import FileShare, cuts
from degu_rpc.files.blocks import build_manifest
from degu_rpc.files.cuts import cut_content, format_chunk, format_size, max_list_size
from degu_rpc.files.remote import Remote, StaleError

PATH = (b'noise',)
CONTENT = random.Random(0).randbytes(1_000_000)
ROOT = build_manifest(CONTENT).root
CHUNKS = list(cut_content(io.BytesIO(CONTENT), len(CONTENT)))
LIST = format_size(len(CONTENT)) + b''.join(map(format_chunk, CHUNKS))


@pytest.fixture
def ask(serve):
    """Ask an app for the chunks; `check` is called for each piece."""

    def run(app, size=1_000_000, check=lambda: None):
        with Remote(serve(app), '/share', check) as remote:
            return remote.read_cuts(PATH, ROOT, size)

    return run


def answer(*pieces, status=200):
    def app(connection, request):
        assert request['path'] == ['share', 'cuts', ROOT]
        return (status, 'Whatever', {}, connection['rgi.ChunkedOutput'](itertools.chain(pieces)))

    return app


def test_the_chunks_of_a_file_are_read(ask, tmp_path):
    (tmp_path / 'noise').write_bytes(CONTENT)
    with FileShare(tmp_path, 'peer') as share:

        def app(connection, request):
            request['path'].pop(0)
            if request['path'][0] == 'cuts':
                list(
                    share(connection, {**request, 'path': ['ls', 'noise'], 'query': 'roots=1'}).body
                )
            return share(connection, request)

        assert ask(app) == CHUNKS


def test_a_list_may_come_in_any_pieces(ask):
    assert ask(answer(LIST, b'')) == CHUNKS
    assert ask(answer(*(LIST[index : index + 1] for index in range(len(LIST))), b'')) == CHUNKS


@pytest.mark.parametrize('status', [404, 405, 503])
def test_a_share_that_has_no_list_is_no_error(ask, status):
    assert ask(lambda connection, request: (status, 'No', {}, b'why')) is None


def test_content_that_changed_is_stale(ask):
    with pytest.raises(StaleError):
        ask(lambda connection, request: (409, 'Conflict', {}, None))


@pytest.mark.parametrize('status', [400, 403, 500])
def test_other_refusals_are_errors(ask, status):
    with pytest.raises(ShareRefusedError) as caught:
        ask(lambda connection, request: (status, 'No', {}, b'why'))
    assert caught.value.status == status


def test_a_list_that_comes_with_a_length_is_odd(ask):
    with pytest.raises(ShareRefusedError, match='come in chunks'):
        ask(lambda connection, request: (200, 'OK', {}, LIST))


@pytest.mark.parametrize(
    'data',
    [b'', LIST[:-1], LIST[:-36], LIST + LIST[-36:], format_size(1) + LIST[8:], b'x' * len(LIST)],
    ids=['empty', 'cut', 'short', 'long', 'size', 'noise'],
)
def test_a_list_that_makes_no_sense_is_no_list(ask, data):
    assert ask(answer(*([data] if data else []), b'')) is None


def test_a_list_without_end_is_given_up(ask):
    sent = 0

    def endless():
        nonlocal sent
        while True:
            sent += 100_000
            yield bytes(100_000)

    assert ask(answer_from(endless)) is None
    assert sent > max_list_size(len(CONTENT))


def answer_from(make):
    return lambda connection, request: (200, 'OK', {}, connection['rgi.ChunkedOutput'](make()))


def test_the_connection_goes_on_after_a_list_that_makes_no_sense(serve):
    """One that was not read to its end is given up, and the next question makes a new one."""
    lies = iter([answer(LIST[:-36], b''), answer(bytes(10**6), b''), answer(LIST, b'')])
    client = serve(lambda connection, request: next(lies)(connection, request))
    with Remote(client, '/share', lambda: None) as remote:
        found = [remote.read_cuts(PATH, ROOT, len(CONTENT)) for _ in range(3)]
    assert found == [None, None, CHUNKS]


def test_files_that_are_not_cut_here_are_not_asked_for(ask):
    def app(connection, request):
        raise AssertionError('nobody asks')

    assert ask(app, size=cuts.MAX_CUT_SIZE + 1) is None


def test_a_cancel_comes_in_at_each_piece(ask):
    count = 0

    def check():
        nonlocal count
        count += 1
        if count == 3:
            raise TransferCanceledError

    with pytest.raises(TransferCanceledError):
        ask(
            answer(*(LIST[index : index + 8] for index in range(0, len(LIST), 8)), b''), check=check
        )


@pytest.mark.parametrize('is_tls', [False, True])
def test_an_interrupt_that_comes_too_late_costs_a_connection_and_no_more(
    tmp_path, listen, with_roles, is_tls
):
    """Two sources may bring the last block of a run at once."""
    (tmp_path / 'noise').write_bytes(CONTENT)
    start, build_client = listen
    with (
        FileShare(tmp_path, 'peer') as share,
        start(with_roles(share, 'peer'), is_tls=is_tls) as server,
        Remote(build_client(server.address, is_tls=is_tls, timeout_s=20), '', int) as remote,
    ):
        entry = remote.list_file(PATH)
        assert remote.open_data(PATH, ROOT, 0, len(CONTENT)).read() == CONTENT
        remote.interrupt()
        assert remote.list_file(PATH) == entry
