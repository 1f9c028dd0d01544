"""InfluxQL over the metric catalogue. A field is looked up where it is named, so no query can name a missing one."""

from dataclasses import dataclass, replace

from coordinator.metrics import Field, FieldKind, Measurement

__all__ = ["Column", "Query", "latest", "mean", "per_second", "ratio", "raw", "total", "worst"]


@dataclass(frozen=True)
class Column:
    """What is selected, under which name; `unit` is the catalogue's, or what arithmetic made of it.

    `meaning` is what the catalogue says of the field, empty for what is made of several.
    """

    text: str
    name: str
    unit: str
    measurement: Measurement
    meaning: str = ""


@dataclass(frozen=True)
class Query:
    """Columns of one measurement over the dashboard's time range: by `$__interval`, or one value for all of it.

    Points without growth of the counter `when` are left out, so that nothing is divided by zero. Where nothing was
    measured there is a null, so that an outage is a gap, and no line from its beginning to its end.
    """

    columns: tuple[Column, ...]
    by_tag: str = ""
    when: str = ""
    one_value: bool = False
    fill: str = "null"
    vehicle: bool = False
    limit: int = 0

    @property
    def measurement(self) -> Measurement:
        """The one that all columns are of."""
        (measurement,) = {column.measurement for column in self.columns}
        return measurement

    @property
    def legend(self) -> str:
        """Grafana's alias: the column's name, or the value of the tag."""
        return f"$tag_{self.by_tag}" if self.by_tag else "$col"

    def text(self) -> str:
        """The query as it stands in the dashboard."""
        select = ", ".join(f'{column.text} AS "{column.name}"' for column in self.columns)
        where = "$timeFilter" + (" AND \"vehicle\" = '$vehicle'" if self.vehicle else "")
        if self.when:
            where += f' AND "{_counter(self.measurement, self.when).name}" > 0'
        groups = [] if self.one_value or self.limit else ["time($__interval)"]
        if self.by_tag:
            assert self.by_tag in self.measurement.tags
            groups.append(f'"{self.by_tag}"')
        group = f" GROUP BY {', '.join(groups)}" if groups else ""
        fill = f" fill({self.fill})" if groups and groups[0].startswith("time") else ""
        limit = f" ORDER BY time DESC LIMIT {self.limit}" if self.limit else ""
        return f'SELECT {select} FROM "{self.measurement.name}" WHERE {where}{group}{fill}{limit}'  # noqa: S608 - names are ours


def latest(measurement: Measurement, name: str, label: str = "") -> Column:
    """The last value."""
    return _called("last", measurement, measurement[name], label)


def mean(measurement: Measurement, name: str, label: str = "") -> Column:
    """The mean of a gauge."""
    return _called("mean", measurement, measurement[name], label)


def worst(measurement: Measurement, name: str, label: str = "") -> Column:
    """The largest value of a gauge."""
    return _called("max", measurement, measurement[name], label)


def raw(measurement: Measurement, name: str, label: str = "") -> Column:
    """Every value as it was written."""
    field = measurement[name]
    return Column(f'"{field.name}"', label or field.name, field.unit, measurement, field.description)


def total(measurement: Measurement, name: str, label: str = "", scale: str = "", unit: str = "") -> Column:
    """How much a counter grew; `scale` is applied to it, like `/ 1000`, which makes `unit` of it."""
    column = _called("sum", measurement, _counter(measurement, name), label)
    return replace(column, text=f"{column.text} {scale}".strip(), unit=unit or column.unit)


def per_second(measurement: Measurement, name: str, label: str = "", unit: str = "") -> Column:
    """How fast a counter grew."""
    field = _counter(measurement, name)
    text = f'sum("{field.name}") * 1000 / $__interval_ms'
    return Column(text, label or _words(field), unit, measurement, field.description)


def ratio(measurement: Measurement, name: str, to: str, label: str, unit: str) -> Column:
    """Growth of one counter for each that another grew by."""
    over, under = _counter(measurement, name), _counter(measurement, to)
    return Column(f'sum("{over.name}") / sum("{under.name}")', label, unit, measurement)


def _called(function: str, measurement: Measurement, field: Field, label: str) -> Column:
    return Column(f'{function}("{field.name}")', label or _words(field), field.unit, measurement, field.description)


def _counter(measurement: Measurement, name: str) -> Field:
    field = measurement[name]
    assert field.kind is FieldKind.COUNTER, f"{measurement.name}.{name} has no growth to add up"
    return field


def _words(field: Field) -> str:
    return field.name.replace("_", " ")
