"""Every message of the fleet protocol as a typed, bounded structure. Never encodes: see `codec`."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from fleet_wire.signals import VSS_VERSION, Signals
from fleet_wire.tensors import Tensor

__all__ = [
    "Beat",
    "BlobRef",
    "Cancel",
    "Caps",
    "CoordinatorState",
    "Drain",
    "Failure",
    "Lease",
    "Notice",
    "Rebirth",
    "Refusal",
    "RefusalReason",
    "Rows",
    "Span",
    "State",
    "Task",
    "Telemetry",
]

# `$` alone would let a line feed pass at the end.
Identifier = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$(?!\n)")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)", description="SHA-256, lower-case hexadecimal")]
Count = Annotated[int, Meta(ge=0, le=1 << 53)]
UnixMs = Annotated[int, Meta(ge=0, le=1 << 53)]


class State(Struct, frozen=True):
    """Birth (`online` true) and Will (`online` false) of a vehicle; retained. `epoch` grows on every CONNECT."""

    online: bool
    epoch: Count
    ts_ms: UnixMs = 0


class Caps(Struct, frozen=True):
    """What a vehicle's computer is and holds; retained. `slots` is how many leases it takes at once."""

    epoch: Count
    agent_version: Annotated[str, Meta(max_length=64)]
    architecture: Annotated[str, Meta(max_length=64)]
    execution_provider: Annotated[str, Meta(max_length=64)]
    runtime_version: Annotated[str, Meta(max_length=64)]
    threads: Annotated[int, Meta(ge=1, le=4096)]
    slots: Annotated[int, Meta(ge=1, le=65535)]
    consent_version: Count = 0
    region: Annotated[str, Meta(max_length=64)] = ""
    models: Annotated[list[Digest], Meta(max_length=1024)] = []


class Telemetry(Struct, frozen=True):
    """One document of signals. `snapshot` says whether it holds all of them or only what changed since `seq - 1`."""

    epoch: Count
    seq: Count
    ts_ms: UnixMs
    snapshot: bool
    signals: Signals
    vss: Annotated[str, Meta(max_length=16)] = VSS_VERSION


class Beat(Struct, frozen=True):
    """A sign of life, at QoS 0: while the vehicle holds leases the next one comes within `every_ms`."""

    epoch: Count
    every_ms: Annotated[int, Meta(ge=100, le=600_000)]


class BlobRef(Struct, frozen=True):
    """Bytes that are fetched over HTTP: `path` below the coordinator's address, and the SHA-256 they must have."""

    digest: Digest
    size: Count
    path: Annotated[str, Meta(max_length=512, pattern="^/")]


class Lease(Struct, array_like=True, frozen=True):
    """The right and the duty to compute rows `start` to `stop` (excluded) of a job, named by its chunk."""

    chunk: Count
    start: Count
    stop: Count


class Task(Struct, frozen=True):
    """Leases on chunks of one job for one vehicle. The inputs are the rows of all leases, one after another.

    `epoch` is the vehicle's; a task for an earlier epoch is refused. `deadline_ms` is absolute. `consent_version`
    names the owner's consent that the task relies on, and `purpose` what for. `energy_micro_per_kwh` is the tariff that
    is refunded and `pay_micro_per_h` the fee for an hour of computing, both in millionths of the currency.
    """

    job: Identifier
    epoch: Count
    model: BlobRef
    deadline_ms: UnixMs
    consent_version: Count
    leases: Annotated[list[Lease], Meta(min_length=1, max_length=65535)]
    purpose: Annotated[str, Meta(max_length=32)] = ""
    energy_micro_per_kwh: Count = 0
    pay_micro_per_h: Count = 0
    inputs: list[Tensor] | None = None
    inputs_ref: BlobRef | None = None


class Cancel(Struct, frozen=True, tag_field="type", tag="cancel"):
    """Stop work on these chunks of a job, or on all of it when `chunks` is empty."""

    job: Identifier
    chunks: Annotated[list[Count], Meta(max_length=65535)] = []


class Drain(Struct, frozen=True, tag_field="type", tag="drain"):
    """Take no new work; finish or release what is held."""


class Rebirth(Struct, frozen=True, tag_field="type", tag="rebirth"):
    """Say everything again: state, caps and a full snapshot. A gap was seen in the sequence, or you are not known."""


class Notice(Struct, frozen=True, tag_field="type", tag="notice"):
    """A message of yours was refused and changed nothing: `fault` names why, `topic` where it came from."""

    fault: Annotated[str, Meta(max_length=64)]
    topic: Annotated[str, Meta(max_length=512)]
    detail: Annotated[str, Meta(max_length=1024)] = ""


class RefusalReason(StrEnum):
    """Why a vehicle did not take a lease, or gave it back."""

    INELIGIBLE = "ineligible"
    LEAVING = "leaving"
    EXPIRED = "expired"
    BUSY = "busy"
    MODEL_MISSING = "model_missing"
    INPUTS_MISSING = "inputs_missing"
    CONSENT_MISSING = "consent_missing"
    PURPOSE_NOT_AGREED = "purpose_not_agreed"
    PRICE_TOO_HIGH = "price_too_high"
    PAY_TOO_LOW = "pay_too_low"
    TOO_HOT = "too_hot"
    STALE_EPOCH = "stale_epoch"
    CANCELLED = "cancelled"
    DRAINING = "draining"
    MALFORMED = "malformed"
    UNKNOWN_VERSION = "unknown_version"
    WORKER_LOST = "worker_lost"


class Span(Struct, array_like=True, frozen=True):
    """Rows `start` to `stop` (excluded) of a job, computed under the lease on `chunk`."""

    chunk: Count
    start: Count
    stop: Count


class Rows(Struct, frozen=True, tag_field="type", tag="rows"):
    """Computed rows, streamed as they are ready: the outputs of all spans, one after another.

    `compute_ms` and `energy_mwh` are what these rows took on the vehicle, above what it would have used anyway.
    """

    job: Identifier
    epoch: Count
    spans: Annotated[list[Span], Meta(min_length=1, max_length=65535)]
    outputs: list[Tensor] | None = None
    outputs_ref: BlobRef | None = None
    compute_ms: Annotated[float, Meta(ge=0, le=1e12)] = 0.0
    energy_mwh: Count = 0


class Refusal(Struct, frozen=True, tag_field="type", tag="refusal"):
    """Leases that the vehicle does not take or gives back; none named means all. Never counts as a failure."""

    job: Identifier
    epoch: Count
    reason: RefusalReason
    chunks: Annotated[list[Count], Meta(max_length=65535)] = []
    detail: Annotated[str, Meta(max_length=1024)] = ""


class Failure(Struct, frozen=True, tag_field="type", tag="failure"):
    """The model raised an error on these rows."""

    job: Identifier
    epoch: Count
    spans: Annotated[list[Span], Meta(min_length=1, max_length=65535)]
    error: Annotated[str, Meta(max_length=4096)]


class CoordinatorState(Struct, frozen=True):
    """Presence of a coordinator; retained. `http_url` is where vehicles fetch blobs."""

    online: bool
    epoch: Count
    http_url: Annotated[str, Meta(max_length=512)] = ""
    ts_ms: UnixMs = 0
