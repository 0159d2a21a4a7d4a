"""degu_rpc.peers.caller: what other users of this machine may do, by their groups."""

from __future__ import annotations

import grp
import logging
import os
import secrets
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from degu.client import Client
from degu_rpc.peers import OWNER, Authenticated, TrustedUser, find_caller
from degu_rpc.peers.caller import OVERFLOW_GID, OVERFLOW_UID, _warn_of_missing_roles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UID, GID, OTHER_GID = 12345, 23456, 34567
CLOCK, CALENDAR = 45678, 56789
TIMEOUT_S = 20


def answer(connection: dict[str, Any], request: dict[str, Any]) -> Any:
    return 200, 'OK', {}, ' '.join(sorted(find_caller(connection).roles)).encode()


class Fake:
    """A trust store whose users change with each look."""

    def users(self) -> dict[str, TrustedUser]:
        return {}


@pytest.fixture
def ask(
    serve: Callable[..., Any], require_program: Callable[[str], str]
) -> Iterator[Callable[..., str]]:
    """Give `ask(app, uid, gid, groups)`: which roles the app saw a process of that user have."""
    if os.geteuid():
        pytest.skip('only root can call as somebody else')
    _warn_of_missing_roles.cache_clear()
    curl = require_program('curl')

    def run(app: Any, uid: int, gid: int, groups: list[int]) -> str:
        # An abstract name: no directory is in the way.
        name = f'degu-{secrets.token_hex(8)}'
        serve(app, b'\0' + name.encode())
        return subprocess.run(
            [curl, '--silent', '--abstract-unix-socket', name, 'http://localhost/'],
            user=uid,
            group=gid,
            extra_groups=groups,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        ).stdout

    yield run
    _warn_of_missing_roles.cache_clear()


ROLES = {CLOCK: {'reader'}, CALENDAR: ['reader', 'writer']}


@pytest.mark.parametrize(
    ('gid', 'groups', 'roles'),
    [
        (CLOCK, [], 'reader'),
        (CLOCK, [OTHER_GID], 'reader'),
        (GID, [OTHER_GID, CLOCK], 'reader'),
        (GID, [GID, CLOCK, CALENDAR], 'reader writer'),
        (GID, [OTHER_GID], ''),
        (GID, [], ''),
        (GID, [*range(100_000, 100_255), CLOCK], 'reader'),
    ],
)
def test_roles_are_those_of_all_groups_of_a_caller(
    ask: Callable[..., str], gid: int, groups: list[int], roles: str
) -> None:
    assert ask(Authenticated(answer, group_roles=ROLES), UID, gid, groups) == roles


def test_a_group_can_be_named(ask: Callable[..., str]) -> None:
    group = next(each for each in grp.getgrall() if each.gr_gid not in (0, OVERFLOW_GID))
    app = Authenticated(answer, group_roles={group.gr_name: {'reader'}})
    assert ask(app, UID, GID, [group.gr_gid]) == 'reader'
    assert ask(app, UID, GID, [group.gr_gid + 1]) == ''


def test_roles_are_kept_when_the_caller_is_derived_anew(ask: Callable[..., str]) -> None:
    # The users of this store are new ones at each request.
    app = Authenticated(answer, Fake(), group_roles=ROLES)  # type: ignore[arg-type]  # as good as one
    assert ask(app, UID, GID, [CLOCK]) == 'reader'


def test_nobody_has_a_role_by_default(
    ask: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    app = Authenticated(answer)
    with caplog.at_level(logging.WARNING, 'degu_rpc.peers'):
        assert [ask(app, UID, CLOCK, [CALENDAR]) for _ in range(2)] == ['', '']
    (line,) = (record.getMessage() for record in caplog.records)  # once for each user
    assert line.startswith(f'uid {UID} may connect and has no role here')
    assert 'group_roles={' in line


def test_a_group_makes_nobody_of_the_overflow_uid(
    ask: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, 'degu_rpc.peers'):
        assert ask(Authenticated(answer, group_roles=ROLES), OVERFLOW_UID, CLOCK, [CLOCK]) == ''
    (line,) = (record.getMessage() for record in caplog.records)  # nothing about a trust store
    assert f'uid {OVERFLOW_UID} stands for every user' in line
    assert 'PrivateUsers=' in line


def test_more_groups_than_can_be_read_are_none(
    ask: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    app = Authenticated(answer, group_roles=ROLES)
    with caplog.at_level(logging.WARNING, 'degu_rpc.peers'):
        assert ask(app, UID, CLOCK, [CLOCK, *range(100_000, 100_256)]) == ''
    assert 'has no roles: [Errno 34]' in caplog.text


def test_the_owner_stays_the_owner(serve: Callable[..., Any]) -> None:
    app = Authenticated(answer, group_roles={os.getegid(): {'reader'}, **ROLES})
    server = serve(app, b'\0degu-' + secrets.token_hex(8).encode())
    with Client(server.address).connect() as connection:
        assert connection.get('/', {}).body.read() == OWNER.encode()  # type: ignore[union-attr]  # it has one


def test_the_owner_is_not_given_away() -> None:
    with pytest.raises(ValueError, match="'owner' is none to be given"):
        Authenticated(answer, group_roles={CLOCK: {'reader', OWNER}})


def test_letters_are_no_roles() -> None:
    with pytest.raises(ValueError, match='roles are names'):
        Authenticated(answer, group_roles={CLOCK: 'reader'})


def test_an_unknown_group_is_told() -> None:
    with pytest.raises(LookupError, match=r"no such group: 'no-such-group'; make it with groupadd"):
        Authenticated(answer, group_roles={'no-such-group': {'reader'}})


@pytest.mark.parametrize('group', [OVERFLOW_GID, grp.getgrgid(OVERFLOW_GID).gr_name])
def test_the_group_of_all_without_a_number_has_no_roles(group: Any) -> None:
    with pytest.raises(ValueError, match='stands for every group that has no number here'):
        Authenticated(answer, group_roles={group: {'reader'}})
