"""`degu ls` and `degu get`: between two nodes, and what can be wrong."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

PATTERN = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def shared(tmp_path):
    directory = tmp_path / 'shared'
    (directory / 'deep' / 'er').mkdir(parents=True)
    (directory / 'a.txt').write_text('hello\n')
    (directory / 'deep' / 'b.bin').write_bytes(PATTERN)
    (directory / 'deep' / 'er' / 'naïve \x1b[31m.txt').write_text('x')
    (directory / os.fsdecode(b'\xff')).write_text('no UTF-8')
    os.utime(directory / 'a.txt', ns=(0, 1_700_000_000_000_000_000))
    return directory


@pytest.fixture
def node(device, shared):
    device.home.mkdir(mode=0o700)
    (device.home / 'config.toml').write_text(
        f'[shares.things]\npath = "{shared}"\n'
        f'[shares.secret]\npath = "{shared}"\nallow = ["nobody"]\n'
    )
    with device.up():
        yield device


@pytest.fixture
def there(node, other, pair_devices):
    """Give what the other device calls the node, at whose shares it looks."""
    pair_devices(node, other)
    return node.check('status', '--json').documents[0]['urls'][0]


def test_ls_shows_what_may_be_read(other, there, shared):
    assert other.check('ls', there).stdout == 'things/\n'
    (share,) = other.check('ls', there, '--json').documents
    assert (share['type'], share['name']) == ('share', 'things')
    assert set(other.check('ls', f'{there}/things').stdout.splitlines()) == {
        'a.txt',
        'deep/',
        '\\xff',
    }
    assert other.check('ls', f'{there}/things/deep/er').stdout == 'naïve \\x1b[31m.txt\n'
    assert other.check('ls', '-l', f'{there}/things/a.txt').stdout.split() == [
        '6',
        '2023-11-14',
        '22:13',
        'a.txt',
    ]
    documents = other.check('ls', f'{there}/things/deep', '--json').documents
    assert {d['path'] for d in documents} == {'deep/b.bin', 'deep/er'}
    assert {(d['name'], d['kind'], d['size']) for d in documents} == {
        ('b.bin', 'file', len(PATTERN)),
        ('er', 'directory', 0),
    }


def test_get_brings_it_over_and_not_twice(other, there, shared, tmp_path):
    target = tmp_path / 'target'
    said = other.check('get', f'{there}/things', target).stdout
    assert said.startswith('4 files, 1.0 MiB')
    assert 'verified' in said
    assert said.endswith(f' s, now at {target}/things\n')
    copy = target / 'things'
    assert (copy / 'deep' / 'b.bin').read_bytes() == PATTERN
    assert sorted(p.name for p in copy.rglob('*') if '.degu' not in p.parts) == sorted(
        p.name for p in shared.rglob('*')
    )
    assert other.check('get', f'{there}/things', target).stdout.startswith('0 files')
    assert other.check('get', f'{there}/things/a.txt', tmp_path).stdout.startswith('1 file, 6 B')
    one = other.check('get', f'{there}/things/a.txt', f'{there}/things/deep', target, '--json')
    assert [d['files_fetched'] for d in one.documents] == [1, 2]
    assert (target / 'a.txt').read_text() == 'hello\n'


def test_get_brings_some_from_mirrors_and_goes_on_without_those_that_are_away(
    other, there, shared, tmp_path
):
    flags = ('--no-sync', '--limit', '100M', '--mirror', f'{there}/things')
    done = other.check('get', f'{there}/things', tmp_path, *flags, '--mirror', 'studio:things')
    assert done.stdout.startswith('4 files, 1.0 MiB')
    # Nobody looks for others here, so the name leads nowhere.
    assert done.stderr == (
        'warning: going on without the mirror studio:things: studio is not seen on the network, '
        'as discovery is switched off here\n'
    )
    assert (tmp_path / 'things' / 'deep' / 'b.bin').read_bytes() == PATTERN


def test_what_was_written_while_it_came_is_kept_and_is_status_3(other, there, tmp_path):
    file = tmp_path / 'b.bin'
    file.write_bytes(b'before')
    with other.start('get', f'{there}/things/deep/b.bin', tmp_path, '--limit', '1M') as getting:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob('.degu/tmp/*')):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        file.write_bytes(b'meanwhile')
        assert getting.wait(30) == 3
        said = getting.stderr.read()
    assert 'written here meanwhile, kept as a copy: b (conflict' in said
    assert '1 was written here meanwhile' in said
    assert 'compare what is here with the copies' in said
    (copy,) = tmp_path.glob('b (conflict*')
    assert (file.read_bytes(), copy.read_bytes()) == (PATTERN, b'meanwhile')


@pytest.mark.parametrize('mirror', ['nobody:things', '{there}/thinks', '{there}/things'])
def test_a_mirror_that_can_bring_nothing_is_said_to_be_none(other, there, tmp_path, mirror):
    mirror = mirror.format(there=there)
    done = other.check('get', f'{there}/things/a.txt', tmp_path, '--mirror', mirror, '--quiet')
    said = done.stderr.splitlines()
    if mirror.endswith('/things'):  # that one has it
        assert not said
    else:
        (warning,) = said
        assert warning.startswith(f'warning: going on without the mirror {mirror}: ')
        assert 'no machine' in warning or "no share 'thinks'; it shares: things" in warning


@pytest.mark.parametrize(
    ('source', 'words', 'remedy'),
    [
        ('/things/none', '{there}/things/none is not there', 'degu ls {there}/things'),
        ('/things/a.txt/x', '{there}/things/a.txt/x is not there', 'degu ls {there}/things'),
        ('/none', "studio has no share 'none'; it shares: things", 'degu ls {there}'),
        # What is not for us does not differ from what is not there.
        ('/secret', "studio has no share 'secret'; it shares: things", 'degu ls {there}'),
        ('/a%20b?c', "studio has no share 'a%20b?c'; it shares: things", 'degu ls {there}'),
    ],
)
def test_what_is_not_there_or_not_for_us(other, there, tmp_path, source, words, remedy):
    for command in (['ls', there + source], ['get', there + source, tmp_path / 'x']):
        done = other.run(*command)
        assert done.returncode == 4, done.stderr
        assert done.stderr.splitlines() == [
            f'degu: {words.format(there=there)}',
            f'      see what is there: {remedy.format(there=there)}',
        ]
        assert other.run(*command, '--json').error['kind'] == 'ShareRefusedError'


def test_what_is_behind_a_machine_and_shares_nothing(node, make_device, pair_devices, tmp_path):
    other = make_device('laptop')
    other.home.mkdir(mode=0o700)
    url = node.check('status', '--json').documents[0]['urls'][0]
    (other.home / 'config.toml').write_text(f'machines = ["{url}"]\n')
    with other.up():
        pair_devices(node, other)
        done = other.run('ls', 'studio/none')
        assert done.returncode == 4
        assert 'nothing at studio/none has shares' in done.stderr
        done = other.run('get', 'studio/none:things', tmp_path)
        assert (done.returncode, 'studio/none:things is not there' in done.stderr) == (4, True)
        assert 'degu ls studio/none\n' in done.stderr
        assert other.check('ls', 'studio').stdout == other.check('ls', 'studio:').stdout


def test_who_shares_nothing_is_said_to(node, other, pair_devices, tmp_path):
    pair_devices(node, other)
    url = other.check('status', '--json').documents[0]['urls'][0]
    assert node.check('ls', url).stderr == 'laptop shares nothing with you\n'
    done = node.run('get', f'{url}/things', tmp_path)
    assert (done.returncode, '[shares]' in done.stderr) == (4, True)
    assert 'laptop shares nothing with you' in done.stderr


def test_what_is_no_file_and_what_is_no_text_is_listed_as_what_it_is(other, there, shared):
    os.mkfifo(shared / 'deep' / 'pipe')
    (shared / 'deep' / os.fsdecode(b'l\xffnk')).symlink_to(os.fsdecode(b'b \xfe'))
    said = other.check('ls', '-l', f'{there}/things/deep').stdout
    assert '1970' not in said
    assert '  pipe  (special)' in said
    assert '  l\\xffnk -> b \\xfe\n' in said
    raw = other.check('ls', '--json', f'{there}/things/deep').stdout
    assert '\\ud' not in raw  # a lone surrogate is no text
    found = {d['path']: d for d in other.check('ls', '--json', f'{there}/things/deep').documents}
    link, pipe = found['deep/l%FFnk'], found['deep/pipe']
    assert (link['name'], link['kind'], link['target']) == ('l\\xffnk', 'symlink', 'b \\xfe')
    assert (pipe['modified'], pipe['target'], pipe['problem']) == (None, None, 'special')
    (one,) = other.check('ls', '--json', f'{there}/things/deep/b.bin').documents
    assert (one['name'], one['path']) == ('b.bin', 'deep/b.bin')


@pytest.mark.parametrize(
    ('destination', 'words'),
    [
        ('a file', '{tmp}/a file is no directory'),
        ('a file/in it', '{tmp}/a file is no directory'),
        ('not there/new', '{tmp}/not there is not there'),
        ('dangling', '{tmp}/dangling is not there'),
        ('taken', '{tmp}/taken/things is no directory'),
    ],
)
def test_what_nothing_can_be_put_into(other, there, tmp_path, destination, words):
    (tmp_path / 'a file').write_text('mine')
    (tmp_path / 'dangling').symlink_to('nowhere')
    (tmp_path / 'taken').mkdir()
    (tmp_path / 'taken' / 'things').write_text('mine')
    done = other.run('get', f'{there}/things', tmp_path / destination)
    assert (done.returncode, words.format(tmp=tmp_path) in done.stderr) == (1, True), done.stderr
    assert 'DEST is a directory' in done.stderr
    assert not (tmp_path / 'not there').exists()
    assert (tmp_path / 'taken' / 'things').read_text() == 'mine'


def test_where_nothing_can_be_written_nothing_can_be_put(other, there, mount):
    done = other.run('get', f'{there}/things', mount('ro'))
    assert (done.returncode, 'nothing can be written to' in done.stderr) == (1, True)
    assert 'choose a directory that you may write to' in done.stderr


def test_what_is_wrong_with_dest_names_it(other, there, tmp_path):
    done = other.run('get', f'{there}/things/a.txt', '/proc')  # root may, and cannot
    assert (done.returncode, 'nothing can be written to /proc: ' in done.stderr) == (1, True)
    assert other.run('get', f'{there}/things', '').returncode == 2
    (tmp_path / 'a.txt').mkdir()
    done = other.run('get', f'{there}/things/a.txt', tmp_path)
    assert (done.returncode, f'{tmp_path}/a.txt is blocked: ' in done.stderr) == (1, True)


@pytest.mark.parametrize('command', ['ls', 'get', 'send'])
def test_who_is_looked_for_by_nobody_is_to_be_given_an_address(other, there, shared, command):
    rest = {'ls': ['studio'], 'get': ['studio:things'], 'send': [shared, '--to', 'studio']}
    error = other.run(command, *rest[command], '--json').error
    assert error['status'] == 5
    assert 'studio is not seen on the network, as discovery is switched off' in error['message']
    assert error['remedy'].endswith('degu config set machines URL')


def test_who_is_down_is_named(device, other, pair_devices, tmp_path):
    with device.up():
        pair_devices(device, other)
        url = device.check('status', '--json').documents[0]['urls'][0]
    for command in (['ls', url], ['get', f'{url}/x', tmp_path], ['send', tmp_path, '--to', url]):
        error = other.run(*command, '--json').error
        assert (error['status'], error['kind']) == (5, 'UnreachableError')
        assert error['message'].startswith('studio could not be reached: 127.0.0.1:')
        remedy = 'see that it runs there (degu status), and that its firewall lets TCP in'
        assert error['remedy'] == remedy


def test_without_anybody_paired_the_next_step_is_to_pair(other):
    for command in (['ls', 'studio'], ['get', 'studio:x'], ['methods', 'studio']):
        error = other.run(*command, '--json').error
        assert (error['status'], error['remedy']) == (4, 'pair two machines: degu pair')


def test_a_path_of_ours_can_have_a_colon(other, there, tmp_path):
    other.check('get', f'{there}/things/a.txt', tmp_path / 'x:y')
    assert (tmp_path / 'x:y' / 'a.txt').read_text() == 'hello\n'


@pytest.mark.parametrize('command', [['ls'], ['get']])
def test_timeout_is_how_long_another_machine_is_tried(node, other, there, tmp_path, command):
    what = [f'{there}/things', tmp_path] if command == ['get'] else [there]
    pid = node.check('status', '--json').documents[0]['pid']
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    try:
        done = other.run(*command, *what, '--timeout', '0.5')
    finally:
        os.kill(pid, signal.SIGCONT)
    assert done.returncode == 5
    assert time.monotonic() - started < 3  # CONNECT_S


def test_wrong_usage(other, device):
    assert other.run('get', 'things').returncode == 2
    assert other.run('get', 'studio:').returncode == 2
    assert other.run('ls', 'studio').returncode == 4  # as with studio:
    for flags in (['--mirror', 'studio'], ['--mirror', 'studio:x/y'], ['--limit', '-1']):
        assert other.run('get', 'degu://x@y:1/x', *flags).returncode == 2, flags
    assert other.run('ls', 'studio:x').returncode == 4  # nobody of that name
    assert device.run('ls', 'studio:x').returncode == 10


def test_get_draws_a_bar_on_a_terminal_and_ctrl_c_says_how_to_go_on(other, there, shared, tmp_path):
    with (shared / 'large').open('wb') as file:
        for _ in range(400):
            file.write(PATTERN)
    command = [sys.executable, '-m', 'degu_rpc.cli', 'get', '--limit', '80M']
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [*command, f'{there}/things', tmp_path / 'target'],
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            env={**other.environment, 'TERM': 'xterm'},
        ) as process:
            said = b''
            while b' left' not in said:
                said += os.read(ours, 4096)
            process.send_signal(signal.SIGINT)
            while b'go on where it stopped' not in said:
                said += os.read(ours, 4096)
            assert process.wait(60) == 130
    finally:
        os.close(ours)
        os.close(theirs)
    assert b'/s, 0:0' in said
    assert not (tmp_path / 'target' / 'things' / 'large').exists()
    assert 'verified' in other.check('get', f'{there}/things', tmp_path / 'target').stdout
    assert (tmp_path / 'target' / 'things' / 'large').stat().st_size == 400 * len(PATTERN)
