"""What is entered around each call of a client: the same shape as a service's interceptors.

    @contextmanager
    def signed(call: ClientCall) -> Iterator[None]:
        call.headers['x-signature'] = sign(call.method)
        yield

1. An interceptor is a function `interceptor(call)` that returns a context manager. It is entered
   when the arguments are encoded and nothing is sent yet.
2. It is left when the call is over: after all attempts, for a stream of results after the last of
   them. So one shape does for every kind of call. In `__exit__` it sees what the call ended with;
   that is GeneratorExit for a stream that was left early.
3. It refuses a call by raising RpcError. It changes what is sent by `call.headers`, and may not
   change those that say how the call is encoded. It must not suppress an exception: there is no
   result then.

Threads: a call belongs to one thread at a time. A stream may be left in another one than it was
entered in, so that a context variable must not be set for the time between.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from degu_rpc.rpc.protocol import IDEMPOTENCY_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from degu.net import Deadline

    ClientInterceptor = Callable[['ClientCall'], AbstractContextManager[Any]]

SWALLOWED = 'an interceptor must not suppress an exception: there is no result then'

_OWN_PREFIXES = ('connect-', 'content-')
_OWN = frozenset({IDEMPOTENCY_KEY, 'accept-encoding', 'transfer-encoding'})


class ClientCall:
    """One call that a client makes, as an interceptor sees it.

    `.method` is the full name (`files.v1.Files/stat`), `.deadline` when the call must be over (a
    `degu.net.Deadline`), None for a stream without a time. `.headers` are those to be sent, with
    casefolded names, and may be added to until the last interceptor is entered. `.response_headers`
    are those of the answer once it is there; those that came at the end of a stream are added then.
    """

    __slots__ = ('deadline', 'headers', 'method', 'response_headers')

    def __init__(
        self, method: str, headers: Mapping[str, str], deadline: Deadline | None = None
    ) -> None:
        self.method = method
        self.headers = dict(headers)
        self.deadline = deadline
        self.response_headers: dict[str, Any] = {}


def check_interceptors(interceptors: Iterable[ClientInterceptor]) -> tuple[ClientInterceptor, ...]:
    """Return interceptors as they are kept. Raises TypeError for one that is no function."""
    found = tuple(interceptors)
    for interceptor in found:
        if not callable(interceptor):
            raise TypeError(f'an interceptor must be callable, not {interceptor!r}')
    return found


@contextlib.contextmanager
def intercept(
    interceptors: Iterable[ClientInterceptor], call: ClientCall
) -> Iterator[contextlib.ExitStack]:
    """Enter the interceptors, the first one outermost, and check what they made of the headers.

    The ExitStack leaves them at the end, or whenever its owner wants that: see its pop_all().
    Raises ValueError for a header that is not theirs to change, and what they raise.
    """
    own = _pick_own(call.headers)
    with contextlib.ExitStack() as stack:
        for interceptor in interceptors:
            stack.enter_context(interceptor(call))
        if (found := _pick_own(call.headers)) != own:
            changed = sorted({name for name, _ in own.items() ^ found.items()})
            raise ValueError(f'{call.method}: an interceptor cannot change {", ".join(changed)}')
        yield stack
        return
    raise RuntimeError(SWALLOWED)


def leave_with(results: Iterator[Any], stack: contextlib.ExitStack) -> Generator[Any, None, None]:
    """Return the same results; what `stack` has entered is left when they end or are closed."""
    generator = _leave_with(results, stack)
    next(generator)  # from now on it is inside, so that close() leaves, even before a first result
    return generator


def _leave_with(results: Iterator[Any], stack: contextlib.ExitStack) -> Generator[Any, None, None]:
    with stack:
        yield
        yield from results
        return
    raise RuntimeError(SWALLOWED)


def _pick_own(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that say how a call is encoded: the client's alone."""
    return {
        name: value
        for name, value in headers.items()
        if name in _OWN or name.startswith(_OWN_PREFIXES)
    }
