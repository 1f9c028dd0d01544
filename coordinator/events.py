"""What happens to the coordinator, as data. Telemetry enters in columns, one event a batch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.model import Job, Model
from fleet_wire.api import TensorSpec
from fleet_wire.messages import Beat, Caps, Failure, Refusal, Rows, State
from fleet_wire.policy import OwnerPolicy

__all__ = [
    "BOOLEAN_SIGNALS",
    "NUMBER_SIGNALS",
    "BlobLost",
    "Event",
    "JobCancelled",
    "JobSubmitted",
    "ModelAdded",
    "PlugHistory",
    "PolicySet",
    "RowsFailed",
    "RowsKnown",
    "RowsReceived",
    "TaskRefused",
    "TaskUndelivered",
    "TelemetryBatch",
    "Tick",
    "VehicleCaps",
    "VehicleState",
    "VehiclesHeard",
    "VehiclesRemembered",
]

# Signals in columns: flags as int8 (-1 absent), numbers as float64 (NaN absent), `refusal` as text (None absent).
BOOLEAN_SIGNALS = (
    "moving",
    "plugged",
    "charging",
    "link_metered",
    "opted_in",
    "update_pending",
    "camp_mode",
    "sentry_mode",
)
NUMBER_SIGNALS = (
    "charge_percent",
    "battery_temperature_c",
    "battery_power_w",
    "battery_capacity_kwh",
    "cabin_temperature_c",
    "link_rate_mbps",
    "link_month_bytes",
    "compute_temperature_c",
    "compute_power_w",
    "awake_power_w",
    "free_slots",
    "departure_ms",
    "departure_charge_percent",
)


@dataclass(frozen=True, slots=True)
class TelemetryBatch:
    """Telemetry documents in order of arrival; every array has one element a document.

    `vehicle` and `refusal` are object arrays of str; `signals` maps names of BOOLEAN_SIGNALS to int8 and of
    NUMBER_SIGNALS to float64. A document holds only what changed; what it does not hold is absent, and a signal that
    no document of the batch holds may have no column at all.
    """

    vehicle: NDArray[np.object_]
    received_ms: NDArray[np.int64]
    ts_ms: NDArray[np.int64]
    epoch: NDArray[np.int64]
    seq: NDArray[np.int64]
    snapshot: NDArray[np.bool_]
    refusal: NDArray[np.object_]
    signals: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.vehicle)


@dataclass(frozen=True, slots=True)
class PlugHistory:
    """Readings of `plugged` (0 or 1), ordered by time; every array has one element a reading.

    Every change is there. While a vehicle says the same again, one reading an hour is, so that silence can be told from
    it; and of hours whose documents are past retention there is one reading each, at their last millisecond.
    """

    vehicle: NDArray[np.object_]
    received_ms: NDArray[np.int64]
    plugged: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.vehicle)


@dataclass(frozen=True, slots=True)
class VehiclesRemembered:
    """What the telemetry store knows from before this process, one document a vehicle: they may be there still."""

    latest: TelemetryBatch


@dataclass(frozen=True, slots=True)
class VehiclesHeard:
    """Who spoke, whatever they said, and the signs of life among it, which say when the next one comes."""

    vehicles: Collection[str]
    beats: Sequence[tuple[str, Beat]] = ()


@dataclass(frozen=True, slots=True)
class VehicleState:
    """Birth or Will of a vehicle; `retained` when the broker had kept it from before we subscribed."""

    vehicle: str
    state: State
    retained: bool = False


@dataclass(frozen=True, slots=True)
class VehicleCaps:
    """What a vehicle says it can do."""

    vehicle: str
    caps: Caps


@dataclass(frozen=True, slots=True)
class PolicySet:
    """An owner, or somebody for them, changed what a vehicle may do. Already checked: it contradicts nothing.

    Its version must be the one after the vehicle's last, or nothing changes: somebody else was faster.
    """

    vehicle: str
    policy: OwnerPolicy
    by: str


@dataclass(frozen=True, slots=True)
class RowsReceived:
    """Computed rows. `outputs` describes the tensors; `payload` holds them, or is None when they lie in a blob."""

    vehicle: str
    rows: Rows
    outputs: tuple[TensorSpec, ...]
    payload: bytes | None


@dataclass(frozen=True, slots=True)
class TaskRefused:
    """A vehicle does not take leases, or gives them back."""

    vehicle: str
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class RowsFailed:
    """The model raised an error on rows, at a vehicle."""

    vehicle: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class RowsKnown:
    """Rows that the coordinator computed itself. `payload` is the MessagePack list of their outputs, in that order.

    It is None where these rows can't be computed here, and `error` says why.
    """

    job: str
    rows: tuple[int, ...]
    payload: bytes | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TaskUndelivered:
    """The broker had nobody to give a task to, or would not take it."""

    vehicle: str
    job: str
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlobLost:
    """A model's or inputs' bytes are not in the store any more, or are others; `error` says so to a person."""

    digest: str
    error: str


@dataclass(frozen=True, slots=True)
class ModelAdded:
    """A model was checked and may be used."""

    model: Model


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    """A job whose inputs fit its model."""

    job: Job


@dataclass(frozen=True, slots=True)
class JobCancelled:
    """A client does not want a job any more."""

    job: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by: look for leases that ran out and for work to give.

    `utc_offsets_ms` says how far the fleet's timezones are ahead of UTC at this moment. `listened` is false when cars
    may have spoken since the last one without being heard: this process slept, or has no connection.
    """

    utc_offsets_ms: Mapping[str, int] = field(default_factory=dict)
    listened: bool = True


Event = (
    TelemetryBatch
    | VehiclesRemembered
    | VehiclesHeard
    | VehicleState
    | VehicleCaps
    | PolicySet
    | RowsReceived
    | TaskRefused
    | RowsFailed
    | RowsKnown
    | TaskUndelivered
    | BlobLost
    | ModelAdded
    | JobSubmitted
    | JobCancelled
    | Tick
)
