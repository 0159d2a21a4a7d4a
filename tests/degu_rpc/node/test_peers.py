"""Whom a person means to trust no more."""

from __future__ import annotations

import pytest

from degu_rpc.errors import UnknownMachineError
from degu_rpc.node.peers import find_user
from degu_rpc.peers import OWNER, TrustedUser

A, B, C, ME, BEN, EVE = (letter * 48 for letter in 'abcdef')


def build_user(user_id, name, machines, *roles):
    return TrustedUser(user_id, b'', name, frozenset(roles), machines)


BENS = build_user(BEN, 'Ben', {A: 'attic', B: 'cellar'})
OWN = build_user(ME, 'me', {C: 'studio'}, OWNER)


@pytest.mark.parametrize('id_', [BEN, A], ids=['user', 'machine'])
def test_an_id_means_whose_it_is_whatever_others_are_called(id_):
    liar = build_user(EVE, id_, {EVE: id_})
    expected = (BENS, None if id_ == BEN else A)
    assert find_user([liar, BENS, OWN], id_) == expected
    with pytest.raises(UnknownMachineError):
        find_user([liar, OWN], id_)


def test_a_user_is_found_by_the_name():
    assert find_user([BENS, OWN], 'Ben') == (BENS, None)
    assert find_user([BENS, OWN], 'attic') == (BENS, A)


def test_my_own_user_is_only_its_machines():
    assert find_user([BENS, OWN], 'studio') == (OWN, C)
    with pytest.raises(UnknownMachineError):
        find_user([BENS, OWN], ME)
