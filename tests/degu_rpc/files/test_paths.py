"""degu_rpc.files.paths: I6, nothing outside the root is reached."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu_rpc.errors import PathError
from degu_rpc.files import paths
from degu_rpc.files.limits import MAX_DEPTH, MAX_TARGET
from degu_rpc.files.paths import Root, format_path, parse_path
from degu_rpc.files.system import exchange

names = st.binary(min_size=1, max_size=255).filter(
    lambda name: (
        name not in {b'.', b'..'} and not set(b'/\0') & set(name) and name.lower() != b'.degu'
    )
)


@pytest.mark.parametrize('text', ['a', 'a/b/c'])
def test_a_path_of_the_deepest_length_is_taken_and_no_deeper(text):
    assert len(parse_path('/'.join(['a'] * MAX_DEPTH))) == MAX_DEPTH
    with pytest.raises(PathError, match=f'more than {MAX_DEPTH} names'):
        parse_path('/'.join([text] * MAX_DEPTH + ['a']))


@pytest.mark.parametrize(
    'text',
    [
        '.',
        '..',
        '%2e',
        '%2E%2e',
        '.%2E',
        'a/../b',
        'a/%2e%2e/b',
        '/a',
        'a/',
        'a//b',
        'a%2Fb',
        '%2fetc%2fpasswd',
        'a%00',
        '%00',
        '.degu',
        '.DEGU',
        '%2Edegu',
        '.de%67u',
        'a/.Degu/tmp',
        '.de%E2%80%8Bgu',
        '%EF%BC%8Edegu',
        '.de%EF%BD%87u',
        'x' * 256,
        '%',
        'a%',
        '%1',
        '%g0',
        '%+1',
        '%u002e',
        'a b',
        'a\nb',
        '\xe4',
        '\ud800',
        '/'.join(['a'] * 257),
    ],
)
def test_parse_path_refuses_what_could_lead_elsewhere(text):
    with pytest.raises(PathError):
        parse_path(text)


def test_percent_encoding_is_undone_once():
    assert parse_path('%252e%252e') == (b'%2e%2e',)


def test_names_that_look_dangerous_and_are_not_are_accepted():
    assert parse_path('.../..a/.degu2/~/C:/-rf/a%5Cb') == (
        b'...',
        b'..a',
        b'.degu2',
        b'~',
        b'C:',
        b'-rf',
        b'a\\b',
    )


@given(st.lists(names, max_size=8).map(tuple))
def test_parse_of_format_is_identity_for_every_name(path):
    text = format_path(path)
    assert parse_path(text) == path
    assert text.isascii()
    assert text.isprintable()
    assert not set(text) & set(' ?#"')


@given(st.text(max_size=40) | st.text('./%0123456789abcdefABCDEF', max_size=20))
def test_any_text_gives_a_path_below_or_a_path_error(text):
    try:
        path = parse_path(text)
    except PathError:
        return
    assert paths.check_path(path) == path


@given(st.binary(max_size=300))
def test_symlink_texts_survive_the_way(target):
    text = paths.format_target(target)
    if target and b'\0' not in target:
        assert paths.parse_target(text) == target
    else:
        with pytest.raises(PathError):
            paths.parse_target(text)


def test_a_symlink_text_of_the_longest_length_is_taken_and_no_longer():
    assert len(paths.parse_target('a' * MAX_TARGET)) == len(paths.parse_target('%61' * MAX_TARGET))
    for letter in ('a', '%61'):
        with pytest.raises(PathError, match=f'1 to {MAX_TARGET} bytes'):
            paths.parse_target(letter * (MAX_TARGET + 1))


@given(names | st.binary(min_size=1, max_size=20).filter(lambda name: b'\0' not in name))
def test_what_is_percent_encoded_is_decoded_as_a_local_program_has_it(name):
    assert os.fsencode(paths.decode_native(format_path((name,)))) == name


@given(st.lists(names, max_size=4).map(tuple))
def test_a_native_path_survives_the_way(path):
    assert paths.path_from_native(paths.format_native(path)) == path


def test_path_from_native_takes_what_a_person_types():
    assert paths.path_from_native('') == ()
    assert paths.path_from_native('a/b c/') == (b'a', b'b c')
    assert paths.path_from_native(b'\xff') == (b'\xff',)
    with pytest.raises(PathError):
        paths.path_from_native('a/../b')


# --- the root -----------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    directory = tmp_path / 'outside'
    (directory / 'inner').mkdir(parents=True)
    (directory / 'secret').write_bytes(b'secret')
    return directory


@pytest.fixture
def inside(tmp_path, outside):
    directory = tmp_path / 'inside'
    (directory / 'real').mkdir(parents=True)
    (directory / 'real' / 'file').write_bytes(b'content')
    (directory / 'absolute').symlink_to(outside)
    (directory / 'relative').symlink_to('../outside')
    (directory / 'file-link').symlink_to(outside / 'secret')
    (directory / 'own-link').symlink_to('real')
    return directory


@pytest.mark.parametrize('link', [b'absolute', b'relative', b'own-link'])
@pytest.mark.parametrize(
    'operation',
    [
        lambda root, link: root.open_file((link, b'secret')),
        lambda root, link: root.open_directory((link,)),
        lambda root, link: root.open_directory((link, b'inner')),
        lambda root, link: root.lstat((link, b'secret')),
        lambda root, link: root.readlink((link, b'secret')),
        lambda root, link: root.scan((link,)),
        lambda root, link: root.make_directory((link, b'new')),
        lambda root, link: root.make_directory((link,)),
    ],
)
def test_no_operation_follows_a_symlink(inside, outside, link, operation):
    with Root(inside) as root, pytest.raises(NotADirectoryError):
        operation(root, link)
    assert sorted(os.listdir(outside)) == ['inner', 'secret']


@pytest.mark.parametrize('path', [(b'..',), (b'..', b'outside', b'secret'), (b'',), (b'.degu',)])
@pytest.mark.parametrize('operation', [Root.open_file, Root.lstat, Root.open_directory, Root.scan])
def test_no_operation_takes_a_name_that_leads_elsewhere(inside, path, operation):
    """Even where somebody made the path without parse_path()."""
    with Root(inside) as root, pytest.raises(PathError):
        operation(root, path)


def test_only_regular_files_are_opened(inside):
    os.mkfifo(inside / 'fifo')
    with Root(inside) as root:
        for path in [(), (b'real',), (b'file-link',), (b'fifo',)]:
            with pytest.raises(PathError, match='not a regular file'):
                root.open_file(path)
        fd = root.open_file((b'real', b'file'))
    assert os.read(fd, 100) == b'content'
    os.close(fd)


def test_a_symlink_is_seen_as_one(inside, outside):
    with Root(inside) as root:
        assert root.readlink((b'file-link',)) == os.fsencode(outside / 'secret')
        assert root.lstat((b'file-link',)).st_size == len(os.fsencode(outside / 'secret'))


def test_scan_shows_every_name_but_ours(tmp_path):
    for name in [b'b', b'\xff\xfe', b'a\nb', b'.degu', b'.DEGU']:
        os.mkdir(os.fsencode(tmp_path) + b'/' + name)
    with Root(tmp_path) as root:
        assert [name for name, _ in root.scan(())] == [b'a\nb', b'b', b'\xff\xfe']


def test_a_root_that_is_swapped_away_stays_the_same_directory(inside, outside):
    with Root(inside) as root:
        inside.rename(inside.with_name('moved'))
        inside.symlink_to(outside)
        assert root.lstat((b'real',))
        with pytest.raises(FileNotFoundError):
            root.lstat((b'secret',))


def test_a_root_closes_once(inside):
    root = Root(inside)
    root.close()
    root.close()
    with pytest.raises(OSError, match='Bad file descriptor'):
        root.lstat((b'real',))


def test_make_directory_says_whether_it_did(inside):
    with Root(inside) as root:
        assert root.make_directory((b'real', b'new'))
        assert not root.make_directory((b'real', b'new'))
        with pytest.raises(NotADirectoryError):
            root.make_directory((b'real', b'file'))
    assert (inside / 'real' / 'new').stat().st_mode & 0o777 == 0o700


def test_our_own_directory_is_not_reached_through_a_symlink(inside, outside):
    (inside / '.degu').symlink_to(outside)
    with Root(inside) as root, pytest.raises(NotADirectoryError):
        root.open_private(durable=False)
    assert sorted(os.listdir(outside)) == ['inner', 'secret']


def test_a_directory_that_is_swapped_for_a_symlink_never_leads_outside(tmp_path):
    """The race that check-then-open loses: d is a directory and a symlink in turns."""
    (tmp_path / 'in' / 'd').mkdir(parents=True)
    (tmp_path / 'in' / 'd' / 'f').write_bytes(b'inside')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'f').write_bytes(b'outside')
    (tmp_path / 'in' / 'link').symlink_to(tmp_path / 'out')
    done = threading.Event()
    directory = os.open(tmp_path / 'in', os.O_RDONLY)

    def swap():
        while not done.is_set():
            exchange(directory, b'd', directory, b'link')

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = {'inside': 0, 'refused': 0}
    try:
        with Root(tmp_path / 'in') as root:
            while min(seen.values()) < 200:
                try:
                    fd = root.open_file((b'd', b'f'))
                except NotADirectoryError:
                    seen['refused'] += 1
                    continue
                content = os.read(fd, 100)
                os.close(fd)
                assert content == b'inside'
                seen['inside'] += 1
    finally:
        done.set()
        swapper.join()
        os.close(directory)


def test_a_file_that_is_swapped_for_a_symlink_or_a_fifo_is_never_followed(tmp_path):
    (tmp_path / 'secret').write_bytes(b'outside')
    top = tmp_path / 'in'
    top.mkdir()
    (top / 'f').write_bytes(b'inside')
    (top / 'link').symlink_to(tmp_path / 'secret')
    os.mkfifo(top / 'fifo')
    done = threading.Event()
    directory = os.open(top, os.O_RDONLY)

    def swap():
        while not done.is_set():
            for name in (b'link', b'fifo'):
                exchange(directory, b'f', directory, name)
                exchange(directory, b'f', directory, name)

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = {'inside': 0, 'refused': 0}
    try:
        with Root(top) as root:
            while min(seen.values()) < 200:
                try:
                    fd = root.open_file((b'f',))
                except (PathError, OSError):
                    seen['refused'] += 1
                    continue
                content = os.read(fd, 100)
                os.close(fd)
                assert content == b'inside'
                seen['inside'] += 1
    finally:
        done.set()
        swapper.join()
        os.close(directory)
