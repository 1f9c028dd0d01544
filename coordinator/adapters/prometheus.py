"""Points of the metric catalogue in Prometheus' text format. Never exports a series a vehicle."""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from coordinator.metrics import CATALOGUE, Field, FieldKind, Measurement, MetricPoint

__all__ = ["CONTENT_TYPE_LATEST", "exposition", "prometheus_name"]

Family = CounterMetricFamily | GaugeMetricFamily


def exposition(points: Sequence[MetricPoint]) -> bytes:
    """Every fleet-wide point as Prometheus reads it, and what the process itself uses."""
    registry = CollectorRegistry()
    registry.register(_Points(points))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def prometheus_name(measurement: Measurement, field: Field) -> str:
    """Name of a field's series: times in seconds, and counters end in `_total`."""
    name = field.name
    if field.unit in ("millisecond", "second"):
        name = name.rpartition("_")[0] + "_seconds"
    return f"idlewheel_{measurement.name}_{name}" + ("_total" if field.kind is FieldKind.COUNTER else "")


class _Points(Collector):
    """Prometheus asks it for families; it holds one observation."""

    def __init__(self, points: Sequence[MetricPoint]) -> None:
        self._points = points

    def collect(self) -> Iterator[Family]:
        """One family a field that is a number."""
        for measurement in CATALOGUE:
            points = [point for point in self._points if point.measurement == measurement.name]
            if measurement.fleet_wide:
                for field in measurement.fields:
                    yield _family(measurement, field, points)


def _family(measurement: Measurement, field: Field, points: Iterable[MetricPoint]) -> Family:
    kind = CounterMetricFamily if field.kind is FieldKind.COUNTER else GaugeMetricFamily
    family: Family = kind(prometheus_name(measurement, field), field.description, labels=measurement.tags)
    scale = 0.001 if field.unit == "millisecond" else 1
    for point in points:
        value = point.fields.get(field.name)
        if isinstance(value, int | float):
            family.add_metric([point.tags[tag] for tag in measurement.tags], value * scale)
    return family
