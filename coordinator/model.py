"""The coordinator's own nouns: models, jobs, leases and what the ledger keeps of them. Only data; never decides."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

import msgspec

from fleet_wire.api import JobTerms, TensorSpec
from fleet_wire.trace import TraceContext

__all__ = [
    "REFEREE",
    "AcceptedRows",
    "Answer",
    "Check",
    "FailedRow",
    "Job",
    "JobState",
    "LeaseEnd",
    "LeaseRecord",
    "Model",
    "Piece",
    "ReceiptPart",
    "Rest",
    "VehicleConduct",
]


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


class LeaseRecord(msgspec.Struct, frozen=True, gc=False):
    """A chunk of a job (rows `start` to `stop`, excluded) given to a vehicle until `deadline_ms`.

    What it promised when it was granted stays with it: the owner's consent it relies on, the tariff that is refunded,
    the fee for an hour of computing, and the local month (202611) whose statement it belongs to. `copy_of` is the chunk
    whose rows this one repeats because they were late, or None.
    """

    job: str
    chunk: int
    start: int
    stop: int
    vehicle: str
    epoch: int
    granted_ms: int
    deadline_ms: int
    consent_version: int = 0
    energy_micro_per_kwh: int = 0
    pay_micro_per_h: int = 0
    month: int = 0
    copy_of: int | None = None


class LeaseEnd(StrEnum):
    """How a lease ended. Only `FAILED` speaks against the rows or the car."""

    DONE = "done"
    RELEASED = "released"
    EXPIRED = "expired"
    LOST = "lost"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A row that was given up after it failed `attempts` times by itself, the last time with `error`."""

    row: int
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class VehicleConduct:
    """How far a vehicle can be relied on: leases that it kept among those that ended, lately, and its faults.

    `checks_passed` of its rows were found right since it was convicted of a wrong one, `convictions` times, the last
    time at `convicted_ms`.
    """

    vehicle: str
    strikes: int
    quarantined_until_ms: int
    leases_kept: float
    leases_ended: float
    checks_passed: int = 0
    convictions: int = 0
    convicted_ms: int = 0


class Piece(msgspec.Struct, array_like=True, frozen=True):
    """Rows `start` to `stop` (excluded) of a job lie at row `offset` of a payload."""

    start: int
    stop: int
    offset: int


class Rest(NamedTuple):
    """What a vehicle has earned at a job below a whole micro-unit; it counts towards its next receipt there.

    `energy` is in millionths of a micro-unit, `fee` in 3,600,000,000ths: what one milliwatt-hour costs at 1 micro-unit
    a kilowatt-hour, and what one microsecond earns at 1 micro-unit an hour.
    """

    energy: int = 0
    fee: int = 0


class ReceiptPart(msgspec.Struct, frozen=True):
    """What is to be added to the receipt of a lease: rows that were accepted, what they took, and what they earned."""

    lease: LeaseRecord
    rows: int
    compute_us: int
    energy_mwh: int
    energy_pay_micro: int
    fee_pay_micro: int


@dataclass(frozen=True, slots=True)
class AcceptedRows:
    """One result message as far as it was new: the payload and which of its rows count.

    `payload` is the MessagePack list of output tensors, or None when they lie in the blob `payload_ref`. `seq` orders
    the results of all jobs and is the cursor of result streams. Where rows are verified first, the payload is that of
    the job's answer of number `answer`, and need not be repeated. `retracted` rows came earlier, and do not count.
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
    answer: int | None = None
    retracted: bool = False


REFEREE: Final = ""
"""The vehicle of answers that the coordinator computed itself; no car is named so."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of a verified job as somebody computed them, before it is known whether they count.

    `pieces` are slots (see `coordinator.progress`), or rows where the coordinator computed them itself. `engine` names
    what computed them: numbers of one engine are the same to a tighter tolerance. A `held` answer counts only when all
    checks of its rows are decided.
    """

    number: int
    job: str
    vehicle: str
    engine: str
    pieces: tuple[Piece, ...]
    payload: bytes
    held: bool
    received_ms: int


class Check(IntEnum):
    """What a row of a verified job waits for besides its answer.

    `AUDIT` waits for another car, `REFEREE` for the coordinator's own answer; so does `REFEREE_ALONE`, and no car gets
    the row meanwhile.
    """

    DECIDED = 0
    AUDIT = 1
    REFEREE = 2
    REFEREE_ALONE = 3
