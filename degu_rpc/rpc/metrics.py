"""How often each method is called, how it ends and how long it takes, for Prometheus to read.

    metrics = Metrics()
    files = Service('files.v1.Files', [metrics])
    router.mount('/metrics', MetricsApp(metrics, allow='owner'))

1. `Metrics` is an interceptor: a service that has it is counted. Calls that were refused before
   (no such method, no role) are not, so every label is a declared method or one of the codes.
2. `MetricsApp` is an RGI app that answers GET with the counters as text.

Source: Prometheus, "Exposition formats", text-based format 0.0.4.

Threads: the counters are guarded by a lock, which is held for an addition. With workers, each
process has counters of its own.
"""

from __future__ import annotations

import contextlib
import threading
from bisect import bisect_left
from itertools import accumulate
from time import perf_counter
from typing import TYPE_CHECKING, Any

from degu_rpc.errors import Code, RpcError
from degu_rpc.peers import build_roles
from degu_rpc.rpc.answers import close_unread, identify_caller, refuse

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from degu.rgi import Response
    from degu_rpc.rpc.context import Context

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the ranges into which latencies are counted; the last range has no end."""

_CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8'
_OK = 'ok'


class Metrics:
    """Counts the calls of the services that have it as an interceptor. Thread-safe."""

    # Guarded by _lock: _calls, _buckets, _seconds.

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[tuple[str, str], int] = {}
        self._buckets: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, context: Context) -> Iterator[None]:
        """Measure one call. Source of the shape: an interceptor, see degu_rpc.rpc.service."""
        started = perf_counter()
        outcome = _OK
        try:
            yield
        except RpcError as error:
            outcome = error.code.value
            raise
        except Exception:
            outcome = Code.INTERNAL.value
            raise
        except BaseException:  # a stream that is closed before its end
            outcome = Code.CANCELED.value
            raise
        finally:
            self.count(context.method, outcome, perf_counter() - started)

    def count(self, method: str, outcome: str, elapsed_s: float) -> None:
        """Count one call: `outcome` is `ok` or the value of a Code."""
        with self._lock:
            self._calls[method, outcome] = self._calls.get((method, outcome), 0) + 1
            buckets = self._buckets.setdefault(method, [0] * (len(BUCKETS_S) + 1))
            buckets[bisect_left(BUCKETS_S, elapsed_s)] += 1
            self._seconds[method] = self._seconds.get(method, 0.0) + elapsed_s

    def format(self) -> str:
        """Return all counters as text. Names are those of methods, so nothing needs an escape."""
        with self._lock:
            calls = sorted(self._calls.items())
            buckets = sorted((method, list(counts)) for method, counts in self._buckets.items())
            seconds = dict(self._seconds)
        lines = [
            '# HELP degu_rpc_calls_total Calls that ended, by method and code.',
            '# TYPE degu_rpc_calls_total counter',
        ]
        for (method, outcome), count in calls:
            lines.append(f'degu_rpc_calls_total{{method="{method}",code="{outcome}"}} {count}')
        lines += [
            '# HELP degu_rpc_call_seconds How long calls took, by method.',
            '# TYPE degu_rpc_call_seconds histogram',
        ]
        name = 'degu_rpc_call_seconds'
        for method, counts in buckets:
            ends = [*map(str, BUCKETS_S), '+Inf']
            for end, count in zip(ends, accumulate(counts), strict=True):
                lines.append(f'{name}_bucket{{method="{method}",le="{end}"}} {count}')
            lines.append(f'{name}_sum{{method="{method}"}} {seconds[method]!r}')
            lines.append(f'{name}_count{{method="{method}"}} {sum(counts)}')
        return '\n'.join(lines) + '\n'


class MetricsApp:
    """An RGI app that shows the counters of `metrics` to callers with one of the roles `allow`."""

    # Set once: _metrics, _roles.

    def __init__(self, metrics: Metrics, *, allow: str | Collection[str]) -> None:
        """Raises TypeError or ValueError for roles that are none."""
        self._metrics = metrics
        self._roles = build_roles(allow)

    def __call__(self, connection: dict[str, Any], request: dict[str, Any]) -> Response:
        """Answer GET and HEAD; 401 and 403 for whom it is not meant."""
        try:
            peer = identify_caller(request)
        except RpcError as error:
            return refuse(request, 401, 'Unauthorized', error.message)
        if self._roles.isdisjoint(peer.roles):
            return refuse(request, 403, 'Forbidden', 'the metrics are not for your roles')
        if request['path']:
            return refuse(request, 404, 'Not Found', 'there is nothing below the metrics')
        if request['method'] not in ('GET', 'HEAD'):
            return refuse(request, 405, 'Method Not Allowed', 'GET shows them', allow='GET, HEAD')
        text = self._metrics.format().encode()
        headers = {'content-type': _CONTENT_TYPE, **close_unread(request)}
        if request['method'] == 'HEAD':
            return 200, 'OK', headers, None
        return 200, 'OK', headers, text
