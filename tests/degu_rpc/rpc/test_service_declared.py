"""Declaration: methods of objects, and defaults that do not fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pytest

from degu_rpc import Context, Service
from degu_rpc.rpc.codec import JSON

if TYPE_CHECKING:
    from degu_rpc.peers import Peer

BuildPeer = Callable[..., 'Peer']


@dataclasses.dataclass
class Stat:
    path: str
    size: int


def call(service: Service, peer: Peer, name: str, **args: Any) -> Any:
    method = service.authorize(name, peer)
    data = method.call(JSON.encode(args), JSON, Context(peer, method.full_name, {}))
    return JSON.decode(data)


class Counter:
    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value


def test_methods_of_one_object_share_its_state(peer: BuildPeer) -> None:
    counter, service = Counter(), Service('a')
    service.method(allow='peer')(counter.add)
    assert [call(service, peer('peer'), 'add'), call(service, peer('peer'), 'add', amount=4)] == [
        1,
        5,
    ]
    assert counter.value == 5


def test_method_of_a_class_is_told_to_be_one_of_an_instance() -> None:
    with pytest.raises(TypeError, match=r'a/add: self is no parameter: .*\(instance\.add\)$'):
        Service('a').method(allow='peer')(Counter.add)


@pytest.mark.parametrize(
    ('annotation', 'default', 'why'),
    [
        (int, 'x', r'\$: expected int, got str'),
        (int, None, 'expected int, got null'),
        (Annotated[int, msgspec.Meta(ge=1)], 0, 'expected int >= 1'),
        (list[int], ['x'], r'\$\[0\]: expected int, got str'),
        (Stat, Stat('/', 'x'), r'\$\.size: expected int, got str'),  # type: ignore[arg-type]  # what is tested
        (datetime, datetime(2026, 1, 1), 'expected datetime with a time zone'),
        (int, object(), 'unsupported'),
    ],
)
def test_default_that_does_not_fit_is_refused_at_decoration(
    annotation: Any, default: Any, why: str
) -> None:
    def get(value: Any = default) -> None:
        pass

    get.__annotations__['value'] = annotation
    with pytest.raises(TypeError, match=f"a/get: the default of parameter 'value' .*{why}"):
        Service('a').method(allow='peer')(get)


@pytest.mark.parametrize(
    ('annotation', 'default'),
    [
        (float, 1),
        (float, math.nan),
        (int, 2**70),
        (bytes, b'x'),
        (Stat, Stat('/', 2)),
        (datetime, datetime(2026, 1, 1, tzinfo=UTC)),
        (list[int], ()),
        (Any, object()),
        (int | msgspec.UnsetType, msgspec.UNSET),
    ],
)
def test_default_that_fits_is_what_the_function_gets(
    peer: BuildPeer, annotation: Any, default: Any
) -> None:
    got = []

    def get(value: Any = default) -> None:
        got.append(value)

    get.__annotations__['value'] = annotation
    service = Service('a')
    service.method(allow='peer')(get)
    call(service, peer('peer'), 'get')
    assert got == [default]
