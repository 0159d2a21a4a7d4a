"""Which machine a name means: one, or an error that says what there is."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from degu import pki
from degu_rpc.errors import AmbiguousNameError, UnknownMachineError
from degu_rpc.peers import TrustedUser, find_machine
from degu_rpc.peers.names import check_new_name

A, B, C = (letter * 48 for letter in 'abc')


def build_user(name: str, machines: dict[str, str], *denied: str) -> TrustedUser:
    return TrustedUser(
        'u' * 48, b'', name, frozenset(), MappingProxyType(machines), frozenset(denied)
    )


USERS = [
    build_user('Ada', {A: 'studio'}),
    build_user('Ben', {B: 'attic', C: 'cellar'}),
    build_user('Cleo', {}),
]


@pytest.mark.parametrize(
    ('name', 'machine_id'),
    [('studio', A), ('attic', B), ('cellar', C), ('Ada', A), ('f' * 48, 'f' * 48)],
    ids=['machine', 'another', 'a third', 'user with one machine', 'id'],
)
def test_name_means_a_machine(name: str, machine_id: str) -> None:
    assert find_machine(USERS, name) == machine_id


def test_machine_with_the_name_of_its_user_is_one() -> None:
    assert find_machine([build_user('Ada', {A: 'Ada'})], 'Ada') == A


@pytest.mark.parametrize('name', ['garage', 'Cleo', 'ada', ''])
def test_name_that_is_none_is_an_error_with_those_that_are(name: str) -> None:
    with pytest.raises(UnknownMachineError, match="known are 'Ada', 'Ben', 'attic'") as caught:
        find_machine(USERS, name)
    assert caught.value.name == name
    assert caught.value.known == ('Ada', 'Ben', 'attic', 'cellar', 'studio')


def test_without_any_name_the_error_says_to_pair() -> None:
    with pytest.raises(UnknownMachineError, match='none is known yet; pair with one'):
        find_machine([build_user('me', {})], 'studio')


def test_machine_that_is_denied_has_no_name() -> None:
    users = [build_user('Ben', {B: 'attic', C: 'cellar'}, B)]
    assert find_machine(users, 'Ben') == C
    with pytest.raises(UnknownMachineError):
        find_machine(users, 'attic')


@pytest.mark.parametrize(
    ('users', 'name'),
    [
        ([build_user('Ada', {A: 'studio'}), build_user('Ben', {B: 'studio'})], 'studio'),
        ([build_user('Ada', {A: 'studio', B: 'studio'})], 'studio'),
        ([build_user('Ada', {A: 'studio', B: 'attic'})], 'Ada'),
        # Who calls a machine as another user is called does not get what is meant for that one.
        ([build_user('Ada', {A: 'studio'}), build_user('Eve', {B: 'Ada'})], 'Ada'),
    ],
    ids=['of two users', 'of one user', 'a user with two', 'a user and a liar'],
)
def test_name_of_several_machines_is_an_error_with_their_ids(
    users: list[TrustedUser], name: str
) -> None:
    with pytest.raises(AmbiguousNameError, match=f'give the id of one: {A} .*, {B} ') as caught:
        find_machine(users, name)
    assert caught.value.name == name
    assert set(caught.value.machines) == {A, B}


def test_new_name_is_no_id() -> None:
    assert check_new_name('studio') == 'studio'
    with pytest.raises(ValueError, match='cannot be an id'):
        check_new_name(pki.derive_user_id(pki.build_key().public_key()))


def test_names_do_nothing_to_a_terminal() -> None:
    evil = 'x\x1b[2J\u202e\n'
    users = [build_user(evil, {A: 'studio', B: evil}), build_user('Ben', {C: 'studio'})]
    for name in ('garage', 'studio', evil):
        with pytest.raises((UnknownMachineError, AmbiguousNameError)) as caught:
            find_machine(users, name)
        assert str(caught.value).isprintable()


def test_message_has_no_more_than_some_names_and_the_error_all() -> None:
    users = [build_user(f'user{n:02}', {f'{n:02}' * 24: f'machine{n:02}'}) for n in range(20)]
    with pytest.raises(UnknownMachineError, match='and 24 others') as caught:
        find_machine(users, 'studio')
    assert len(caught.value.known) == 40
