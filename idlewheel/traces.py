"""The W3C trace that a job is submitted in, as headers: the caller's, or that of OpenTelemetry's current span.

Never begins a trace, and never loads OpenTelemetry: a program in which a span is current has loaded it.
"""

import sys
from collections.abc import Mapping

from fleet_wire.trace import parse_trace
from idlewheel.errors import BadInput

__all__ = ["current_trace", "environment_trace", "given_trace"]


def given_trace(carrier: Mapping[str, str]) -> dict[str, str]:
    """`traceparent` and `tracestate` out of what a propagator filled; other names are left out. Raises BadInput."""
    if "traceparent" not in carrier:
        return {}
    try:
        return dict(parse_trace(carrier["traceparent"], carrier.get("tracestate", "")).properties)
    except ValueError as error:
        raise BadInput(f"the trace of the job does not fit: {error}: {carrier['traceparent']!r}") from None


def environment_trace(environment: Mapping[str, str]) -> dict[str, str]:
    """The trace that CI tools name in TRACEPARENT and TRACESTATE. Raises BadInput."""
    names = {"TRACEPARENT": "traceparent", "TRACESTATE": "tracestate"}
    return given_trace({header: environment[name] for name, header in names.items() if environment.get(name)})


def current_trace() -> dict[str, str]:
    """The trace of OpenTelemetry's current span; empty when there is none."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers
