"""Whom a person means to trust no more."""

from __future__ import annotations

import pytest

from degu_rpc import Identity, TrustStore
from degu_rpc.errors import AmbiguousNameError, UnknownMachineError
from degu_rpc.node.peers import find_name, find_names, find_user
from degu_rpc.peers import OWNER, TrustedUser

ONE, TWO, THREE, MINE = (letter * 48 for letter in 'abcd')


@pytest.fixture
def trust(tmp_path):
    trust = TrustStore(Identity.create(tmp_path / 'me'))
    trust.add_machine(trust.identity.user_id, MINE, 'attic')
    return trust


@pytest.fixture
def add(trust, tmp_path):
    """Trust a new user; their id."""

    def add(name, machines):
        identity = Identity.create(tmp_path / f'user{len(trust.users())}')
        trust.add(identity.user_cert, name, machines=machines)
        return identity.user_id

    return add


def find(trust, text):
    user, machine_id = find_user(trust.users().values(), text)
    return user.user_id, machine_id


def test_a_user_is_meant_by_name_or_id(trust, add):
    ada = add('ada', {ONE: 'studio', TWO: 'laptop'})
    assert find(trust, 'ada') == find(trust, ada) == (ada, None)


def test_one_of_several_machines_is_meant_alone(trust, add):
    ada = add('ada', {ONE: 'studio', TWO: 'laptop'})
    assert find(trust, 'laptop') == find(trust, TWO) == (ada, TWO)


def test_the_only_machine_of_a_user_stands_for_them(trust, add):
    ada = add('ada', {ONE: 'studio'})
    assert find(trust, 'studio') == (ada, None)


def test_a_machine_of_mine_never_stands_for_me(trust):
    me = trust.identity.user_id
    assert find(trust, 'attic') == (me, MINE)
    with pytest.raises(UnknownMachineError):
        find(trust, me)


def test_of_two_users_with_one_name_none_is_taken(trust, add):
    ids = {add('ada', {ONE: 'studio'}), add('ada', {TWO: 'laptop'})}
    with pytest.raises(AmbiguousNameError) as caught:
        find(trust, 'ada')
    assert set(caught.value.machines) == ids


def test_of_two_machines_with_one_name_none_is_taken(trust, add):
    add('ada', {ONE: 'studio'})
    add('ben', {TWO: 'studio', THREE: 'laptop'})
    with pytest.raises(AmbiguousNameError):
        find(trust, 'studio')


def test_who_is_not_known_is_told_with_who_is(trust, add):
    add('ada', {ONE: 'studio'})
    with pytest.raises(UnknownMachineError) as caught:
        find(trust, 'nobody')
    assert {'ada', 'studio', 'attic'} <= set(find_names(trust.users().values()))
    assert 'studio' in caught.value.known


def test_a_machine_without_a_name_is_called_by_its_id(trust, add):
    add('ada', {ONE: 'studio'})
    users = trust.users().values()
    assert (find_name(users, ONE), find_name(users, TWO)) == ('studio', TWO)


# --- names that are ids --------------------------------------------------------------------------

ME, BEN, EVE = (letter * 48 for letter in 'def'.replace('d', 'g'))


def build_user(user_id, name, machines, *roles):
    return TrustedUser(user_id, b'', name, frozenset(roles), machines)


BENS = build_user(BEN, 'Ben', {ONE: 'attic', TWO: 'cellar'})
OWN = build_user(ME, 'me', {MINE: 'studio'}, OWNER)


@pytest.mark.parametrize('id_', [BEN, ONE], ids=['user', 'machine'])
def test_an_id_means_whose_it_is_whatever_others_are_called(id_):
    liar = build_user(EVE, id_, {EVE: id_})
    expected = (BENS, None if id_ == BEN else ONE)
    assert find_user([liar, BENS, OWN], id_) == expected
    with pytest.raises(UnknownMachineError):
        find_user([liar, OWN], id_)
