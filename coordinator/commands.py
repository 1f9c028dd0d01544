"""What the core wants done. Writes to the ledger come first and are durable before any other command is carried out."""

from dataclasses import dataclass

import msgspec

from coordinator.model import (
    AcceptedRows,
    Answer,
    Check,
    FailedRow,
    Job,
    JobState,
    LeaseEnd,
    LeaseRecord,
    Model,
    ReceiptPart,
    VehicleConduct,
)
from fleet_wire.codec import Control
from fleet_wire.policy import OwnerPolicy

__all__ = [
    "AddAnswer",
    "AddConsent",
    "AddFailedRow",
    "AddJob",
    "AddModel",
    "AddRows",
    "CheckBlob",
    "Command",
    "EndJob",
    "EndLease",
    "FindOut",
    "GrantLease",
    "KeepChecks",
    "KeepConduct",
    "LedgerWrite",
    "LookBack",
    "SendControl",
    "SendPolicy",
    "SendTask",
    "VoidAnswers",
]


@dataclass(frozen=True, slots=True)
class AddModel:
    """Keep a checked model."""

    model: Model


@dataclass(frozen=True, slots=True)
class AddJob:
    """Keep a new job."""

    job: Job


@dataclass(frozen=True, slots=True)
class AddConsent:
    """Keep a version of an owner's policy, and who set it; earlier versions stay."""

    vehicle: str
    policy: OwnerPolicy
    by: str
    set_ms: int


@dataclass(frozen=True, slots=True)
class EndJob:
    """A job came to its end; `error` says why it failed."""

    job: str
    state: JobState
    ended_ms: int
    error: str | None = None


class GrantLease(msgspec.Struct, frozen=True, gc=False):
    """Keep a lease before its task is sent."""

    lease: LeaseRecord


class EndLease(msgspec.Struct, frozen=True, gc=False):
    """A lease is over. `rows_back` of its rows were not computed and will be leased again."""

    job: str
    chunk: int
    end: LeaseEnd
    rows_back: int
    ended_ms: int


@dataclass(frozen=True, slots=True)
class AddRows:
    """Keep accepted rows, and add their parts to the receipts of their leases."""

    rows: AcceptedRows
    parts: tuple[ReceiptPart, ...] = ()


@dataclass(frozen=True, slots=True)
class AddFailedRow:
    """Keep that a row of a job was given up, and why."""

    job: str
    row: FailedRow


@dataclass(frozen=True, slots=True)
class AddAnswer:
    """Keep rows that are to be verified, and add their parts to the receipts of their leases."""

    answer: Answer
    parts: tuple[ReceiptPart, ...] = ()


@dataclass(frozen=True, slots=True)
class VoidAnswers:
    """Nothing that a vehicle has answered for a job so far counts any more."""

    job: str
    vehicle: str


@dataclass(frozen=True, slots=True)
class KeepChecks:
    """Keep what rows of a job wait for, instead of what was kept before."""

    job: str
    rows: tuple[int, ...]
    check: Check


@dataclass(frozen=True, slots=True)
class KeepConduct:
    """Keep how a vehicle conducts itself, instead of what was kept before."""

    conduct: VehicleConduct


LedgerWrite = (
    AddModel
    | AddJob
    | AddConsent
    | EndJob
    | GrantLease
    | EndLease
    | AddRows
    | AddFailedRow
    | AddAnswer
    | VoidAnswers
    | KeepChecks
    | KeepConduct
)


class SendTask(msgspec.Struct, frozen=True):
    """Send leases on chunks of one job to a vehicle; their inputs are read when the task is made."""

    vehicle: str
    epoch: int
    consent_version: int
    job: str
    leases: tuple[LeaseRecord, ...]
    deadline_ms: int
    energy_micro_per_kwh: int = 0
    pay_micro_per_h: int = 0


@dataclass(frozen=True, slots=True)
class SendControl:
    """Send a control message to a vehicle."""

    vehicle: str
    control: Control


@dataclass(frozen=True, slots=True)
class SendPolicy:
    """Publish a vehicle's policy, retained, so that it finds it whenever it connects."""

    vehicle: str
    policy: OwnerPolicy


@dataclass(frozen=True, slots=True)
class FindOut:
    """Have the coordinator compute rows of a job itself; the answer comes as one or more `RowsKnown`."""

    job: str
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CheckBlob:
    """See whether a blob is still what its digest says; if it is not, the answer is `BlobLost`."""

    digest: str


@dataclass(frozen=True, slots=True)
class LookBack:
    """A car was convicted: say which rows of jobs that ended since then count by its word alone. Nobody answers."""

    vehicle: str
    since_ms: int


Command = LedgerWrite | SendTask | SendControl | SendPolicy | FindOut | CheckBlob | LookBack
