"""Calls as spans of OpenTelemetry. It is an extra: `pip install 'degu-rpc[otel]'`.

    files = Service('files.v1.Files', [ServerTracing()])

1. `ServerTracing` is an interceptor: each call of a service that has it is a span. Its parent is
   what the caller sent as `traceparent`.
2. While the function runs the span is the current one, and `Context.trace` tells of it. So spans
   that the function begins, and calls that it makes, are its children.
3. Where the spans go is up to the provider, which whoever runs the program sets up. Without one
   there are no spans, and what the caller sent is given on as it came.

Codes are those of Connect for JSON-RPC, too, as they are everywhere here.

Source: OpenTelemetry Semantic Conventions 1.45, "RPC spans" and "Connect RPC".

May be called by many threads; everything is set once.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ImportError(
        f"{error}; degu_rpc.rpc.telemetry needs an extra: pip install 'degu-rpc[otel]'"
    ) from error

from degu_rpc.errors import Code, RpcError
from degu_rpc.rpc.context import TRACE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from degu_rpc.rpc.context import Context

_SYSTEM = 'connectrpc'

# With the others it is the caller who went wrong, or had enough.
# Source: OpenTelemetry Semantic Conventions, "Connect RPC", rpc.response.status_code of a server.
_FAULTS_OF_SERVERS = frozenset(
    {
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.UNIMPLEMENTED,
        Code.INTERNAL,
        Code.UNAVAILABLE,
        Code.DATA_LOSS,
    }
)


class ServerTracing:
    """Makes a span of each call of the services that have it as an interceptor. Thread-safe."""

    # Set once: _tracer, _propagator.

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        """Take the spans from `provider`, or from the one that is set for the whole program."""
        self._tracer = trace.get_tracer('degu_rpc', tracer_provider=provider)
        self._propagator = TraceContextTextMapPropagator()

    @contextlib.contextmanager
    def __call__(self, context: Context) -> Iterator[None]:
        """Be the span of one call; an interceptor, see degu_rpc.rpc.service."""
        with self._tracer.start_as_current_span(
            context.method,
            self._propagator.extract(context.headers),
            trace.SpanKind.SERVER,
            {'rpc.system.name': _SYSTEM, 'rpc.method': context.method},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            carrier: dict[str, str] = {}
            self._propagator.inject(carrier)
            context.trace = carrier.get(TRACE)
            try:
                yield
            except RpcError as error:
                _end_span(span, error.code)
                raise
            except Exception as error:
                span.record_exception(error)
                _end_span(span, Code.INTERNAL)
                raise
            except BaseException:  # a stream that is closed before its end
                _end_span(span, Code.CANCELED)
                raise


def _end_span(span: trace.Span, code: Code) -> None:
    span.set_attribute('rpc.response.status_code', code.value)
    if code in _FAULTS_OF_SERVERS:
        span.set_attribute('error.type', code.value)
        span.set_status(trace.StatusCode.ERROR)
