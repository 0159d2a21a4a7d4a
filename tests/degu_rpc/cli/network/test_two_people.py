"""Two people at two machines that share nothing but a cable: all is typed, all is read."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from markdown_it import MarkdownIt

if TYPE_CHECKING:
    Terminal = Any  # of conftest.py
    Terminals = tuple[Terminal, Terminal]

PROJECT = Path(__file__).parents[4]
TUTORIAL = PROJECT / 'docs' / 'tutorial' / 'two-machines.md'
README = PROJECT / 'README.md'
"""The first test types what these pages say."""
PAIRED_WITHIN_S = 10.0
"""From the first `degu pair` to "paired" on both screens; the code is typed at once."""
NOTICED_WITHIN_S = 10.0
"""How soon a network that comes or goes is known."""
CHECK = 'health.v1.Health/check'
SERVING = ['{', '  "status": "serving",', '  "failing": []', '}']


_BLURS = (
    (re.compile(r'\b[0-9A-Z]{4}-[0-9A-Z]{4}\b'), 'CODE'),
    (re.compile(r'\b\d+-[a-z]+-[a-z]+\b'), 'WORDS'),
    (re.compile(r'\b[a-z2-7]{48}\b|\b[a-z2-7]{12}(?=\.\.\.)'), 'ID'),
    (re.compile(r'\b[a-z2-7]{8}\b'), 'OFFER'),
    (re.compile(r'(?<= )/\S+(?=/\.local/)'), 'HOME'),
    (re.compile(r'\d+(\.\d+)*'), 'NUMBER'),
)


def blur(line: str) -> str:
    """Return a line without what differs from one time to the next."""
    for pattern, word in _BLURS:
        line = pattern.sub(word, line)
    return line


def find_fences(page: Path) -> list[str]:
    """Return the fenced blocks of a page."""
    tokens = MarkdownIt('commonmark').parse(page.read_text())
    return [token.content for token in tokens if token.type == 'fence']


def find_shown_lines() -> list[str]:
    """Return what the pages show of the two terminals; in the README they are side by side."""
    beside = find_fences(README)[0].splitlines()
    column = next(line.index('laptop$') for line in beside if 'laptop$' in line)
    cells: list[str] = []
    for line in beside:
        is_split = line[column - 2 : column].isspace()
        cells += [line[:column].rstrip(), line[column:]] if is_split else [line]
    return [cell for cell in cells if cell] + [
        line for fence in find_fences(TUTORIAL) for line in fence.splitlines()
    ]


def pair(shows: Terminal, types: Terminal) -> float:
    """Pair as two people do, reading the code to each other; how long it took in seconds."""
    started = time.monotonic()
    shows.start('degu pair')
    code = shows.wait_for('Code: ').split()[1]
    types.start('degu pair')
    types.wait_for('Code (Enter to show one here):')
    types.type(code)
    assert types.finish()[-1] == f'paired with {shows.name}'
    assert shows.finish()[-1] == f'paired with {types.name}'
    return time.monotonic() - started


def look(at: Terminal, other: str) -> None:
    """Look from one machine at the other, which must be there with all it has."""
    assert any(line.startswith(f'  {other}  near  machine ') for line in at.run('degu status'))
    (nearby,) = at.run('degu peers --nearby')
    assert nearby.split()[0] == other
    assert at.run(f'degu methods {other}')[0].startswith(f'{CHECK}  Say whether')
    assert at.run(f'degu call {other} {CHECK}') == SERVING


@pytest.mark.slow
def test_two_machines_find_each_other_pair_and_call_each_other(
    terminals: Terminals, capsys: pytest.CaptureFixture[str]
) -> None:
    studio, laptop = terminals
    studio.run('mkdir -p notes ~/.config/degu && echo "buy milk" > notes/today.txt')
    studio.run(r"""printf '[shares.notes]\npath = "~/notes"\n' > ~/.config/degu/config.toml""")
    for one in terminals:
        assert one.run('degu up --bg')[0].startswith(f'ready: {one.name}, process ')
    took_s = pair(studio, laptop)
    assert took_s < PAIRED_WITHIN_S
    look(studio, 'laptop')
    look(laptop, 'studio')
    assert laptop.run('degu ls studio') == ['notes/']
    assert studio.run('degu ls laptop:') == ['laptop shares nothing with you']
    assert laptop.run('degu ls studio:notes') == ['today.txt']
    assert laptop.run('degu get studio:notes .')[-1].startswith('1 file, 9 B, ')
    assert laptop.run('cat notes/today.txt') == ['buy milk']
    laptop.run('echo "see you at eight" > letter.txt')
    laptop.start('degu send letter.txt')
    offer_id = laptop.wait_for('studio has to say yes; there: degu inbox accept ').split()[-1]
    (waiting,) = studio.run('degu inbox')
    assert waiting == f'{offer_id}  waiting    from laptop: letter.txt  (1 file, 17 B)'
    studio.run(f'degu inbox accept {offer_id}')
    said = laptop.finish()[-1]
    assert said.startswith('1 file, 17 B, ')
    assert ', verified by studio in ' in said
    assert studio.run('cat Downloads/letter.txt') == ['see you at eight']

    studio.start('degu unpair laptop')
    studio.wait_for('Trust laptop no more? [y/N]:')
    studio.type('y')
    assert studio.finish()[-1] == 'laptop is not trusted any more'
    assert 'pair the two machines: degu pair' in laptop.run(f'degu call studio {CHECK}', 6)[-1]
    assert 'pair the two machines: degu pair' in laptop.run('degu ls studio:', 6)[-1]
    assert 'pair two machines: degu pair' in studio.run(f'degu call laptop {CHECK}', 4)[-1]
    for one in terminals:
        assert one.run('degu down') == ['stopped']
        assert 'start one: degu up --bg' in one.run('degu status', 10)[-1]
    printed = {blur(line) for one in terminals for line in one.read()}
    for line in find_shown_lines():
        assert blur(line) in printed, f'the pages show what was not printed: {line}'
    with capsys.disabled():
        print(f'\n{took_s:.1f} s from the first "degu pair" to "paired" on both screens')


@pytest.mark.slow
def test_a_node_outlives_its_network_and_a_peer_that_comes_and_goes(
    terminals: Terminals,
) -> None:
    studio, laptop = terminals
    for one in terminals:
        one.run('degu up --bg')
    pair(studio, laptop)

    # The cable is out, as seen from both of its ends; then it is in again.
    studio.machine.run('ip', 'link', 'set', 'near', 'down')
    for one, other in ((studio, 'laptop'), (laptop, 'studio')):
        said = one.run_until('not seen', 'degu status', NOTICED_WITHIN_S)
        assert f'  {other}  not seen' in '\n'.join(said)
        assert said[-1].startswith('problem: this machine is on no local network')
    studio.machine.run('ip', 'link', 'set', 'near', 'up')
    for one, other in ((studio, 'laptop'), (laptop, 'studio')):
        one.run_until('serving', f'degu call {other} {CHECK}', NOTICED_WITHIN_S)
        assert f'  {other}  near' in '\n'.join(one.run('degu status'))

    # The other one says goodbye and comes back; and it comes back after it was killed.
    studio.run('degu down')
    laptop.run_until('  studio  not seen', 'degu status', NOTICED_WITHIN_S)
    studio.run('degu up --bg')
    laptop.run_until('serving', f'degu call studio {CHECK}', NOTICED_WITHIN_S)
    studio.run('kill -9 $(cat ~/.local/share/degu/node.lock)')
    said = laptop.run(f'degu call studio {CHECK}', 5)
    assert 'studio could not be reached: 10.9.0.1:8485: Connection refused' in ' '.join(said)
    studio.run('degu up --bg')
    laptop.run_until('serving', f'degu call studio {CHECK}', NOTICED_WITHIN_S)
    for one in terminals:
        one.run('degu down')
