"""Pieces that tests of the core are told with: a model, jobs, cars that may work, and results."""

import numpy as np

from coordinator.events import (
    BOOLEAN_SIGNALS,
    NUMBER_SIGNALS,
    PolicySet,
    RowsReceived,
    TelemetryBatch,
    VehicleCaps,
    VehicleState,
)
from coordinator.model import Job, Model
from fleet_wire.api import JobTerms, TensorSpec
from fleet_wire.messages import Caps, Rows, Span, State
from fleet_wire.policy import OwnerPolicy

MODEL = Model(
    digest="a" * 64,
    size=100,
    inputs=(TensorSpec("x", "float", [None, 4]),),
    outputs=(TensorSpec("y", "float", [None, 2]),),
    batch_rows=None,
)

AGREED = OwnerPolicy(version=1, owner="owner", purposes=["general"])


def job(identifier: str = "j1", rows: int = 100, **terms: object) -> Job:
    return Job(identifier, "", MODEL.digest, "b" * 64, rows, 16, JobTerms(**terms), created_ms=0)  # type: ignore[arg-type]


def telemetry(vehicles: list[str], epoch: int = 1, seq: int = 1, now_ms: int = 0, **signals: float) -> TelemetryBatch:
    """One full snapshot for each vehicle; `signals` override those of a car that may work."""
    count = len(vehicles)
    values: dict[str, float] = dict.fromkeys(BOOLEAN_SIGNALS, 0) | dict.fromkeys(NUMBER_SIGNALS, 20.0)
    # So strong that whatever energy a scene tells of is plausible.
    values |= {
        "plugged": 1,
        "opted_in": 1,
        "charge_percent": 80.0,
        "compute_power_w": 1e6,
        "departure_ms": np.nan,
    } | signals
    return TelemetryBatch(
        vehicle=np.array(vehicles, dtype=object),
        received_ms=np.full(count, now_ms, dtype=np.int64),
        ts_ms=np.full(count, now_ms, dtype=np.int64),
        epoch=np.full(count, epoch, dtype=np.int64),
        seq=np.full(count, seq, dtype=np.int64),
        snapshot=np.ones(count, dtype=np.bool_),
        refusal=np.array([""] * count, dtype=object),
        signals={name: np.full(count, values[name], dtype="i1") for name in BOOLEAN_SIGNALS}
        | {name: np.full(count, values[name], dtype="f8") for name in NUMBER_SIGNALS},
    )


def arrival(vehicle: str, epoch: int = 1, slots: int = 4, now_ms: int = 0) -> list[object]:
    """The events of a car whose owner agrees, and that comes online and may work."""
    return [
        PolicySet(vehicle, AGREED, "owner"),
        VehicleState(vehicle, State(True, epoch)),
        VehicleCaps(vehicle, Caps(epoch, "1", "x86_64", "CPUExecutionProvider", "1.20", 1, slots, AGREED.version)),
        telemetry([vehicle], epoch, now_ms=now_ms),
    ]


def rows_of(vehicle: str, job_id: str, *spans: Span, compute_ms: float = 10.0, energy_mwh: int = 5) -> RowsReceived:
    count = sum(span.stop - span.start for span in spans)
    rows = Rows(job_id, 1, list(spans), [], None, compute_ms, energy_mwh)
    return RowsReceived(vehicle, rows, (TensorSpec("y", "float", [count, 2]),), b"payload")
