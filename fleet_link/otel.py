"""Spans out through the OpenTelemetry SDK, under the ids that they have on the wire. Imported only when asked for."""

import os
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from fleet_wire.trace import Span, TraceContext

__all__ = ["OtelSpans", "otlp_spans"]

_NS_PER_MS: Final = 1_000_000


class _GivenIds(IdGenerator):
    """Gives out the ids that a span has already."""

    def __init__(self) -> None:
        self.trace_id = self.span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class OtelSpans:
    """A SpanSink over a span processor. For one thread."""

    def __init__(self, service: str, processor: SpanProcessor) -> None:
        self._ids = _GivenIds()
        # A name in OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES counts before ours.
        resource = Resource.create(None if _is_named() else {SERVICE_NAME: service})
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("idlewheel")

    def record(self, span: Span) -> None:
        """Take a span that has ended; one that is not sampled is passed over."""
        self._ids.trace_id, self._ids.span_id = int(span.context.trace_id, 16), int(span.context.span_id, 16)
        parent = Context() if span.parent is None else _context(span.parent)
        self._tracer.start_span(
            span.name, parent, attributes=span.attributes, start_time=int(span.start_ms * _NS_PER_MS)
        ).end(int(span.end_ms * _NS_PER_MS))

    def samples(self, trace_id: str) -> bool:
        """Whether a trace that begins here is to be recorded, by the sampler of OTEL_TRACES_SAMPLER."""
        decision = self._provider.sampler.should_sample(Context(), int(trace_id, 16), "submit").decision
        return decision is Decision.RECORD_AND_SAMPLE

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


def otlp_spans(service: str) -> OtelSpans:
    """Spans in batches over OTLP/HTTP, as the OTEL_ variables say."""
    return OtelSpans(service, BatchSpanProcessor(OTLPSpanExporter()))


def _is_named() -> bool:
    return "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")


def _context(parent: TraceContext) -> Context:
    flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([parent.state]) if parent.state else TraceState()
    trace_id, span_id = int(parent.trace_id, 16), int(parent.span_id, 16)
    span = SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags, trace_state=state)
    return trace.set_span_in_context(NonRecordingSpan(span), Context())
