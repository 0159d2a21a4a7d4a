"""What all commands share: the flags, the way to the node, and the way to the terminal."""

from __future__ import annotations


def test_quiet_prints_what_was_asked_for_and_no_more(node):
    assert 'reached at' in node.check('-q', 'status').stdout
    for command in (['id'], ['methods', '.'], ['config', 'get']):
        assert node.check('-q', *command).stdout == node.check(*command).stdout != ''
    assert 'no peers yet' in node.check('peers').stdout
    assert node.check('-q', 'peers').stdout == ''
    with node.start('-q', 'pair', '--show') as window:
        assert window.stdout.readline().startswith('Code: ')
