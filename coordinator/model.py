"""The coordinator's own nouns: models, jobs, leases and what the ledger keeps of them. Only data; never decides."""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from fleet_wire.api import JobTerms, TensorSpec
from fleet_wire.trace import TraceContext

__all__ = ["AcceptedRows", "Job", "JobState", "LeaseEnd", "LeaseRecord", "Model", "Piece"]


class JobState(StrEnum):
    """Where a job stands; only `RUNNING` has a way on."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Model:
    """A checked ONNX model. `batch_rows` is the fixed length of axis 0, or None."""

    digest: str
    size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_rows: int | None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was submitted; what changes while it runs is kept apart. `trace` is the span of its submission."""

    id: str
    name: str
    model: str
    inputs: str
    rows: int
    row_bytes: int
    terms: JobTerms
    created_ms: int
    trace: TraceContext | None = None


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A chunk of a job (rows `start` to `stop`, excluded) given to a vehicle until `deadline_ms`."""

    job: str
    chunk: int
    start: int
    stop: int
    vehicle: str
    epoch: int
    granted_ms: int
    deadline_ms: int


class LeaseEnd(StrEnum):
    """How a lease ended. Only `FAILED` speaks against the rows or the car."""

    DONE = "done"
    RELEASED = "released"
    EXPIRED = "expired"
    LOST = "lost"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Piece(msgspec.Struct, array_like=True, frozen=True):
    """Rows `start` to `stop` (excluded) of a job lie at row `offset` of a payload."""

    start: int
    stop: int
    offset: int


@dataclass(frozen=True, slots=True)
class AcceptedRows:
    """One result message as far as it was new: the payload and which of its rows count.

    `payload` is the MessagePack list of output tensors, or None when they lie in the blob `payload_ref`. `seq` orders
    the results of all jobs and is the cursor of result streams.
    """

    seq: int
    job: str
    vehicle: str
    pieces: tuple[Piece, ...]
    payload: bytes | None
    payload_ref: str | None
    accepted_ms: int
    compute_ms: float
    energy_mwh: int
    pay_micro: int
