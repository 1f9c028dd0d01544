"""The metric catalogue: every measurement in the telemetry store, with its tags and fields. Pure; never measures.

The coordinator writes by it, `/metrics` exports by it and the dashboards are generated from it, so that none of them
can name what the others don't have. No id of a job, chunk or session is ever a tag: each value of a tag costs memory
for good.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from coordinator.events import BOOLEAN_SIGNALS, NUMBER_SIGNALS
from fleet_wire.signals import SIGNAL_PATHS

__all__ = [
    "CATALOGUE",
    "ECONOMICS",
    "FLEET_REASON",
    "FLEET_REGION",
    "FLEET_STATE",
    "JOB_STATE",
    "JOB_WASTE",
    "SERVICE",
    "SERVICE_REFUSAL",
    "SERVICE_STORE",
    "VEHICLE_STATE",
    "VEHICLE_STATE_HOURS",
    "VEHICLE_STATE_LATE",
    "VEHICLE_WORK",
    "VERIFICATION",
    "Field",
    "FieldKind",
    "Measurement",
    "MetricPoint",
]


class FieldKind(StrEnum):
    """How the values of a field relate over time.

    A counter's growth since the point before is what the store keeps, so that a sum over any time is exact and a
    restart leaves no notch; `/metrics` shows its total since the coordinator started, as Prometheus wants it.
    """

    GAUGE = "gauge"
    COUNTER = "counter"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Field:
    """One column of a measurement; `unit` is empty for plain counts and flags (0 or 1)."""

    name: str
    kind: FieldKind
    unit: str
    description: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """Points of one kind: tags tell series apart, fields hold the values. `fleet_wide` ones have no vehicle tag."""

    name: str
    description: str
    tags: tuple[str, ...]
    fields: tuple[Field, ...]

    def __getitem__(self, name: str) -> Field:
        """The field of that name. Raises KeyError."""
        for each in self.fields:
            if each.name == name:
                return each
        raise KeyError(f"{self.name} has no field {name!r}")

    @property
    def fleet_wide(self) -> bool:
        """Whether the number of its series does not grow with the number of vehicles."""
        return "vehicle" not in self.tags


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One point for the store. Every value is finite, and a field has the same type in every point."""

    measurement: str
    time_ms: int
    tags: Mapping[str, str]
    fields: Mapping[str, int | float | str]


def _gauge(name: str, unit: str, description: str) -> Field:
    return Field(name, FieldKind.GAUGE, unit, description)


def _counter(name: str, unit: str, description: str) -> Field:
    return Field(name, FieldKind.COUNTER, unit, description)


_UNIT_OF_SUFFIX = {
    "_percent": "percent",
    "_c": "celsius",
    "_w": "watt",
    "_kwh": "kilowatt-hour",
    "_mbps": "megabit per second",
    "_bytes": "byte",
    "_ms": "millisecond",
}


def _signal(name: str) -> Field:
    unit = next((unit for suffix, unit in _UNIT_OF_SUFFIX.items() if name.endswith(suffix)), "")
    return _gauge(name, unit, SIGNAL_PATHS[name])


VEHICLE_STATE = Measurement(
    "vehicle_state",
    "What a vehicle said, one point a telemetry document; a field that is absent has not changed",
    ("vehicle", "region"),
    (
        _gauge("epoch", "", "The vehicle's connection count"),
        _gauge("seq", "", "Number of the document within its epoch"),
        _gauge("ts_ms", "millisecond", "When it was made, by the vehicle's clock"),
        _gauge("snapshot", "", "Whether it holds every signal that the vehicle knows"),
        *(_signal(name) for name in (*BOOLEAN_SIGNALS, *NUMBER_SIGNALS)),
        Field("refusal", FieldKind.TEXT, "", SIGNAL_PATHS["refusal"]),
    ),
)
VEHICLE_STATE_LATE = replace(
    VEHICLE_STATE,
    name="vehicle_state_late",
    description="The same for documents that came after later ones, so that the last point is the last word",
)
VEHICLE_STATE_HOURS = Measurement(
    "vehicle_state_1h",
    "Means of an hour of vehicle_state, kept for longer; of a flag, the share of documents that said yes",
    ("vehicle", "region"),
    (
        _gauge("documents", "document", "How many documents the hour had"),
        *(_signal(name) for name in (*BOOLEAN_SIGNALS, *NUMBER_SIGNALS)),
    ),
)
VEHICLE_WORK = Measurement(
    "vehicle_work",
    "What a vehicle did and earned, and why it gets no work; a point a minute for vehicles of which any of it changed",
    ("vehicle", "region"),
    (
        Field("reason", FieldKind.TEXT, "", "First reason why it gets no work, or `eligible`"),
        _gauge("eligible", "", "Whether it may work"),
        _gauge("leases", "", "Leases that it holds"),
        _counter("rows", "row", "Rows accepted from it"),
        _counter("energy_mwh", "milliwatt-hour", "Energy of those rows above what it would have used anyway"),
        _counter("pay_micro", "micro-currency", "What it earned"),
    ),
)
FLEET_STATE = Measurement(
    "fleet_state",
    "How many vehicles are in which state",
    (),
    (
        _gauge("vehicles", "vehicle", "Vehicles known"),
        _gauge("online", "vehicle", "Vehicles that are connected"),
        _gauge("plugged", "vehicle", "Connected vehicles that are plugged in"),
        _gauge("charging", "vehicle", "Connected vehicles that are charging"),
        _gauge("eligible", "vehicle", "Vehicles that may work"),
        _gauge("working", "vehicle", "Vehicles that hold leases"),
        _gauge("plugged_in_1h", "vehicle", "Connected vehicles expected to be plugged in an hour from now"),
        _gauge("charge_percent", "percent", "Mean charge of connected vehicles"),
    ),
)
FLEET_REASON = Measurement(
    "fleet_reason",
    "How many vehicles get no work, by the first reason why not",
    ("reason",),
    (_gauge("vehicles", "vehicle", "Vehicles with this reason"),),
)
FLEET_REGION = Measurement(
    "fleet_region",
    "Vehicles by the region that they name",
    ("region",),
    (
        _gauge("vehicles", "vehicle", "Vehicles known"),
        _gauge("online", "vehicle", "Vehicles that are connected"),
        _gauge("eligible", "vehicle", "Vehicles that may work"),
        _gauge("working", "vehicle", "Vehicles that hold leases"),
    ),
)
JOB_STATE = Measurement(
    "job_state",
    "All running jobs together",
    (),
    (
        _gauge("running", "job", "Jobs that run"),
        _gauge("rows_waiting", "row", "Rows of running jobs that nobody has"),
        _gauge("rows_leased", "row", "Rows of running jobs that cars have"),
        _gauge("leases", "lease", "Open leases"),
        _gauge("oldest_s", "second", "Age of the oldest running job"),
        _gauge("lateness_s", "second", "How far the latest job is expected to end after its deadline"),
        _counter("rows", "row", "Rows accepted"),
        _counter("leases_granted", "lease", "Leases granted"),
        _counter("leases_expired", "lease", "Leases that passed their deadline"),
        _counter("done", "job", "Jobs that ended with every row"),
        _counter("failed", "job", "Jobs that failed"),
        _counter("cancelled", "job", "Jobs that their clients ended"),
    ),
)
JOB_WASTE = Measurement(
    "job_waste",
    "Work that did not count, by cause: leases that ended early, and rows that came and were not accepted. What a car "
    "computed after its last message is not known and not in it, nor what comes without a lease",
    ("cause",),
    (
        _counter("rows_released", "row", "Rows not computed under a lease, which had to be leased again"),
        _counter("rows", "row", "Rows that were computed and not accepted"),
        _counter("compute_ms", "millisecond", "Computing time of rows not accepted"),
        _counter("energy_mwh", "milliwatt-hour", "Energy of rows not accepted"),
    ),
)
VERIFICATION = Measurement(
    "verification",
    "How answers of jobs fare whose rows are verified before they count",
    (),
    (
        _gauge("rows_held", "row", "Rows that were computed and do not count yet"),
        _gauge("checks_open", "row", "Rows that wait for another car's answer, or the coordinator's own"),
        _counter("checks_passed", "row", "Rows of cars that were checked and found right"),
        _counter("rows_refereed", "row", "Rows that the coordinator computed itself"),
        _counter("rows_retracted", "row", "Rows that counted and do not any more, because their car was convicted"),
        _counter("rows_too_late", "row", "Rows of ended jobs that stand by the word of a car that was convicted since"),
        _counter("convictions", "", "Convictions of cars that answered wrongly"),
    ),
)
ECONOMICS = Measurement(
    "economics",
    "What accepted rows took and cost",
    (),
    (
        _counter("rows", "row", "Rows accepted"),
        _counter("compute_ms", "millisecond", "Computing time"),
        _counter("energy_mwh", "milliwatt-hour", "Energy above what the cars would have used anyway"),
        _counter("energy_cost_micro", "micro-currency", "What that energy cost by its tariff"),
        _counter("pay_micro", "micro-currency", "Pay of the owners: energy refunded, and the fee for computing"),
        _counter("wasted_energy_mwh", "milliwatt-hour", "Energy of rows that were not accepted"),
    ),
)
SERVICE = Measurement(
    "service",
    "The coordinator itself",
    (),
    (
        _gauge("connected", "", "Whether the broker is connected"),
        _counter("telemetry", "document", "Telemetry documents kept and acknowledged"),
        _counter(
            "telemetry_wait_ms", "millisecond", "Time from taking to acknowledging, summed over telemetry documents"
        ),
        _gauge("telemetry_wait_worst_ms", "millisecond", "Longest such time since the last point"),
        _counter("messages", "message", "Other messages acknowledged: results, refusals, births, capabilities"),
        _counter("messages_wait_ms", "millisecond", "Time from taking to acknowledging, summed over those messages"),
        _gauge("messages_wait_worst_ms", "millisecond", "Longest such time since the last point"),
        _gauge("store_lag_ms", "millisecond", "Age of the oldest telemetry that is not in the store yet"),
        _gauge("store_waiting", "line", "Lines of telemetry that lie on disk until the store takes them"),
        _gauge("store_trouble", "", "Whether the store says that something is wrong with it"),
        _counter("commits", "commit", "Commits of the ledger"),
        _counter("commits_ms", "millisecond", "Time of commits, summed"),
        _gauge("commit_worst_ms", "millisecond", "Longest commit since the last point"),
        _gauge("events_waiting", "event", "Events that wait for the core"),
    ),
)
SERVICE_REFUSAL = Measurement(
    "service_refusal",
    "What was refused, by reason",
    ("reason",),
    (_counter("refused", "", "Messages, requests, leases or rows refused"),),
)
SERVICE_STORE = Measurement(
    "service_store",
    "What the telemetry store counts of itself, by event: lines written, spilled, replayed, dropped, refused",
    ("event",),
    (_counter("events", "", "How often it happened, or of how many lines"),),
)
CATALOGUE: tuple[Measurement, ...] = (
    VEHICLE_STATE,
    VEHICLE_STATE_LATE,
    VEHICLE_STATE_HOURS,
    VEHICLE_WORK,
    FLEET_STATE,
    FLEET_REASON,
    FLEET_REGION,
    JOB_STATE,
    JOB_WASTE,
    VERIFICATION,
    ECONOMICS,
    SERVICE,
    SERVICE_REFUSAL,
    SERVICE_STORE,
)
