"""`degu send` and `degu inbox`: between two nodes, and what can be wrong."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

DEGU = [sys.executable, '-m', 'degu_rpc.cli']
PATTERN = bytes(range(256)) * 4096  # 1 MiB
WAIT_S = 30.0


@pytest.fixture(scope='module')
def pair(make_device, pair_devices):
    """Give (node, other), which run and are paired; the node asks before it takes anything."""
    node, other = make_device('studio'), make_device('laptop')
    with node.up():
        (status,) = node.check('status', '--json').documents
        other.home.mkdir(mode=0o700)
        # It does not look for others: it is told where the node is.
        (other.home / 'config.toml').write_text(f'machines = ["{status["urls"][0]}"]\n')
        with other.up():
            pair_devices(node, other)
            yield node, other


def offers(device):
    return device.check('inbox', '--json').documents


def complete(device, *words):
    said = device.check(
        _DEGU_COMPLETE='bash_complete', COMP_WORDS=' '.join(['degu', *words, '']), COMP_CWORD='3'
    ).stdout
    return [line.split(',')[1] for line in said.splitlines()]


def test_send_waits_for_a_yes_and_then_brings_it_all(pair, tmp_path):
    node, other = pair
    hostile = 'a \x1b]0;x\x07\u202e.txt'
    (tmp_path / 'photos' / 'empty').mkdir(parents=True)
    (tmp_path / 'photos' / 'b.bin').write_bytes(PATTERN)
    (tmp_path / hostile).write_text('x')
    paths = (tmp_path / 'photos', tmp_path / hostile)
    with other.start('send', '--json', *paths) as sending:  # there is only one to send it to
        waiting = other.read(sending)
        assert (waiting['type'], waiting['to']) == ('waiting', 'studio')
        offer = offers(node)[-1]
        assert (offer['offer_id'], offer['state']) == (waiting['offer_id'], 'waiting')
        assert (set(offer['names']), offer['files']) == ({'photos', hostile}, 2)
        assert offer['size'] == len(PATTERN) + 1
        assert (offer['sender'], offer['bytes_received']) == ('laptop', 0)
        shown = node.check('inbox').stdout
        assert f'{offer["offer_id"]}  waiting    from laptop: ' in shown
        assert 'a \\x1b]0;x\\x07\\u202e.txt' in shown
        assert ' waiting for an answer: degu inbox' in node.check('status').stdout
        assert offer['offer_id'] in complete(node, 'inbox', 'accept')
        assert complete(other, 'send', '--to') == ['studio']
        assert 'from laptop' in node.check('inbox', 'accept', offer['offer_id']).stdout
        sent = other.read(sending)
        assert sending.wait(WAIT_S) == 0
    assert (sent['type'], sent['files_sent'], sent['files_present']) == ('sent', 2, 0)
    assert (node.downloads / 'photos' / 'b.bin').read_bytes() == PATTERN
    assert (node.downloads / 'photos' / 'empty').is_dir()
    assert (node.downloads / hostile).read_text() == 'x'
    assert offers(node)[-1]['state'] == 'done'
    said = other.check('send', *paths, '--to', 'studio').stdout
    assert said.startswith('0 files, 0 B, ')
    assert ', 2 were there, verified by studio in ' in said


def test_a_no_is_status_6_and_says_nothing_was_wanted(pair, tmp_path):
    node, other = pair
    (tmp_path / 'spam').write_text('buy')
    with other.start('send', tmp_path / 'spam') as sending:
        line = sending.stderr.readline()
        assert line.startswith('studio has to say yes; there: degu inbox accept ')
        offer_id = line.split()[-1]
        node.check('inbox', 'reject', offer_id)
        assert sending.wait(WAIT_S) == 6
        assert f'studio refused offer {offer_id}: it does not want' in sending.stderr.read()
    again = other.run('send', tmp_path / 'spam', '--json')  # it is remembered
    assert again.returncode == 6
    assert f'studio refused offer {offer_id}: ' in again.error['message']
    assert again.error['remedy'].startswith('ask them; if a person refused, ')
    assert f'degu inbox accept {offer_id} there still takes it' in again.error['remedy']
    assert not (node.downloads / 'spam').exists()
    assert node.run('inbox', 'accept', 'x').returncode == 4


def test_a_sender_that_is_killed_goes_on_when_the_same_is_sent_again(pair, tmp_path):
    node, other = pair
    large = tmp_path / 'large'
    large.write_bytes(b''.join(bytes([number]) * len(PATTERN) for number in range(64)))
    with other.start('send', '--json', large, '--limit', '16M') as sending:
        offer_id = other.read(sending)['offer_id']
        (accepted,) = node.check('inbox', 'accept', offer_id, '--json').documents
        assert (accepted['type'], accepted['state']) == ('offer', 'accepted')
        deadline = time.monotonic() + WAIT_S
        while offers(node)[-1]['bytes_received'] < 4 * len(PATTERN):
            assert time.monotonic() < deadline
            assert sending.poll() is None
        os.killpg(sending.pid, signal.SIGKILL)
        sending.wait(WAIT_S)
    listed = node.check('inbox')
    assert '% here' in listed.stdout
    assert 'if nothing comes, they send it again' in listed.stderr
    assert not (node.downloads / 'large').exists()
    (sent,) = other.check('send', '--json', large).documents
    assert sent['bytes_sent'] < 62 * len(PATTERN)
    assert (node.downloads / 'large').read_bytes() == large.read_bytes()


def test_ctrl_c_says_how_to_go_on(pair, tmp_path):
    _, other = pair
    (tmp_path / 'later').write_text('x')
    with other.start('send', tmp_path / 'later') as sending:
        assert 'has to say yes' in sending.stderr.readline()
        sending.send_signal(signal.SIGINT)
        assert sending.wait(WAIT_S) == 130
        assert 'start it again to go on where it stopped' in sending.stderr.read()


def test_timeout_bounds_the_wait_for_a_yes_and_the_offer_stands(pair, tmp_path):
    node, other = pair
    (tmp_path / 'unanswered').write_text('x')
    done = other.run('send', tmp_path / 'unanswered', '--timeout', '3')
    assert done.returncode == 5
    asked, failed, remedy = done.stderr.splitlines()
    offer_id = asked.split()[-1]
    assert failed == 'degu: nobody at studio said yes within 3 s; the offer still stands'
    assert remedy.strip() == f'there: degu inbox accept {offer_id}; then send the same again'
    accepted = node.check('inbox', 'accept', offer_id)
    assert accepted.stderr == 'it waits for the sender; if nothing comes, they send it again\n'
    assert 'verified' in other.check('send', tmp_path / 'unanswered', '--timeout', '60').stdout


def test_timeout_bounds_what_does_not_go_on(pair, tmp_path):
    node, other = pair
    (tmp_path / 'stuck').write_bytes(PATTERN * 64)
    pid = node.check('status', '--json').documents[0]['pid']
    with other.start(
        'send', tmp_path / 'stuck', '--limit', '8M', '--timeout', '3', '--json'
    ) as sending:
        node.check('inbox', 'accept', other.read(sending)['offer_id'])
        deadline = time.monotonic() + WAIT_S
        while not offers(node)[-1]['bytes_received']:
            assert time.monotonic() < deadline
        os.kill(pid, signal.SIGSTOP)
        try:
            assert sending.wait(WAIT_S) == 5
        finally:
            os.kill(pid, signal.SIGCONT)
        assert 'nothing went on for 3 s' in sending.stderr.read()


def test_what_waits_comes_first_and_what_has_ended_is_kept_apart(pair, tmp_path):
    node, other = pair
    node.downloads.mkdir(exist_ok=True)
    ids = {}
    for name in ('refused', 'done', 'waiting'):
        (tmp_path / name).write_text(f'one that is {name}')
        with other.start('send', '--json', tmp_path / name) as sending:
            ids[name] = other.read(sending)['offer_id']
    node.check('inbox', 'reject', ids['refused'])
    node.check('inbox', 'accept', ids['done'])
    other.check('send', tmp_path / 'done')
    lines = node.check('inbox').stdout.splitlines()
    heading = lines.index('ended; remembered for up to 30 days:')
    places = {name: lines.index(line) for name in ids for line in lines if ids[name] in line}
    assert places['waiting'] < heading < places['done'] < places['refused']
    assert lines[places['done']].endswith(' ago')
    assert ' ago' not in lines[places['waiting']]

    again = node.run('inbox', 'reject', ids['done'])
    assert again.returncode == 1
    assert f'offer {ids["done"]} is finished: all of it is here already' in again.stderr
    assert again.stdout == ''
    assert (node.downloads / 'done').exists()
    assert 'refused' in node.check('inbox', 'reject', ids['refused']).stdout
    node.check('inbox', 'reject', ids['waiting'])


def test_what_is_named_twice_is_sent_once(pair, tmp_path):
    node, other = pair
    (tmp_path / 'twice.txt').write_text('only once')
    names = [tmp_path / 'twice.txt', f'{tmp_path}/./twice.txt']
    with other.start('send', '--json', *names) as sending:
        node.check('inbox', 'accept', other.read(sending)['offer_id'])
        assert other.read(sending)['files_sent'] == 1
        assert sending.wait(WAIT_S) == 0
    assert [path.name for path in node.downloads.glob('twice*')] == ['twice.txt']


def test_a_bar_says_what_is_read_and_what_is_sent(pair, tmp_path):
    node, other = pair
    with (tmp_path / 'large').open('wb') as file:
        file.truncate(200 * len(PATTERN))
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [*DEGU, 'send', tmp_path / 'large', '--to', 'studio'],
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            env={**other.environment, 'TERM': 'xterm'},
        ) as process:
            said = b''
            while b'inbox accept ' not in said:
                said += os.read(ours, 4096)
            process.send_signal(signal.SIGINT)
            while b'go on where it stopped' not in said:
                said += os.read(ours, 4096)
            assert process.wait(WAIT_S) == 130
    finally:
        os.close(ours)
        os.close(theirs)
    assert b'reading' in said
    node.check('inbox', 'reject', offers(node)[-1]['offer_id'])


@pytest.mark.parametrize(
    ('arguments', 'status', 'words'),
    [
        (['{file}', '--to', 'nobody'], 4, 'degu peers'),
        (['{file}.none'], 4, 'is not there'),
        (['{file}', '--to', 'studio/none'], 4, 'studio/none has no inbox'),
        ([''], 2, 'a path is empty'),
        ([], 2, 'PATH'),
        (['{file}', '--limit', 'fast'], 2, '500K'),
        (['{file}', '--limit', '0'], 2, '500K'),
    ],
)
def test_what_cannot_be_sent(pair, tmp_path, arguments, status, words):
    (tmp_path / 'file').write_text('x')
    filled = [argument.format(file=tmp_path / 'file') for argument in arguments]
    done = pair[1].run('send', *filled)
    assert (done.returncode, words in done.stderr) == (status, True), done.stderr


def test_without_a_machine_or_with_two_it_is_said_to_whom_it_could_go(
    node, other, make_device, pair_devices, tmp_path
):
    (tmp_path / 'file').write_text('x')
    done = node.run('send', tmp_path / 'file')
    assert (done.returncode, 'degu pair' in done.stderr) == (4, True)
    third = make_device('phone')
    with third.up():
        pair_devices(node, other)
        pair_devices(node, third)
    done = node.run('send', tmp_path / 'file')
    assert done.returncode == 2
    assert 'it could go to laptop, phone' in done.stderr
    assert '--to PEER' in done.stderr
