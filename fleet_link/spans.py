"""Where finished spans go: to OpenTelemetry when it is configured, else nowhere. Never decides what a span is.

Nothing of OpenTelemetry is imported unless the standard environment variables ask for it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

from msgspec.structs import replace

from fleet_wire.trace import Span, TraceContext, new_trace

__all__ = ["SpanSink", "Tracer", "open_spans"]

_log = logging.getLogger(__name__)
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class SpanSink(Protocol):
    """Takes spans without waiting; what it can't send in time it drops."""

    def record(self, span: Span) -> None:
        """Take a span that has ended; one that is not sampled is passed over."""

    def samples(self, trace_id: str) -> bool:
        """Whether a trace that begins here is to be recorded."""

    def close(self) -> None:
        """Send what waits. Blocks for some seconds at most."""


@dataclass(frozen=True, slots=True)
class Tracer:
    """Begins spans with ids of `random`, and hands those that ended to `sink`, if there is one."""

    random: Random
    sink: SpanSink | None = None

    def begin(self, parent: TraceContext | None) -> TraceContext:
        """A new span under `parent`; without one it is the first of a new trace."""
        if parent is not None:
            return parent.child(self.random)
        begun = new_trace(self.random)
        return begun if self.sink is None else replace(begun, sampled=self.sink.samples(begun.trace_id))

    def end(
        self,
        name: str,
        context: TraceContext,
        parent: TraceContext | None,
        start_ms: float,
        end_ms: float,
        **attributes: str | int | float,
    ) -> None:
        """Say that a span has ended; `attributes` go by `idlewheel.` and their names."""
        if self.sink is not None:
            named = {f"idlewheel.{key}": value for key, value in attributes.items()}
            self.sink.record(Span(name, context, parent, start_ms, end_ms, named))


def open_spans(service: str, environment: Mapping[str, str]) -> SpanSink | None:
    """Export over OTLP/HTTP if the environment names an endpoint or asks for `otlp`; None otherwise.

    Endpoint, headers, sampler, batches and resource are those of the OTEL_ variables; `service` is the service's name
    unless they give one.
    """
    asked = environment.get("OTEL_TRACES_EXPORTER", "")
    is_wanted = asked == "otlp" or (not asked and any(environment.get(name) for name in _ENDPOINTS))
    if not is_wanted or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from fleet_link.otel import otlp_spans  # noqa: PLC0415 - only who asks for it pays for it
    except ImportError:
        _log.warning("OpenTelemetry is configured but not installed: pip install 'idlewheel[otel]'")
        return None
    return otlp_spans(service)
