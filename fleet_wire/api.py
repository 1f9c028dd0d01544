"""What crosses the coordinator's HTTP interface, as JSON: requests, answers, problems. Never speaks HTTP itself.

PUT    /v1/blobs/{sha256}             bytes whose digest is checked; answers BlobView
GET    /v1/blobs/{sha256}             with Range
POST   /v1/models                     ModelRequest -> ModelView   (the blob must be there)
POST   /v1/jobs                       JobRequest -> JobView
GET    /v1/jobs, /v1/jobs/{job}       JobView
DELETE /v1/jobs/{job}                 cancels -> JobView
GET    /v1/jobs/{job}/rows?after=N    frames as rows are accepted: uint32 length (little-endian), RowsFrame
GET    /v1/jobs/{job}/result          the bundle of all rows in order; with ?partial=1 what is there of them
GET    /v1/jobs/{job}/failures        FailedRowView of every row that was given up
GET    /v1/jobs/{job}/why             JobExplanation, while it runs
GET    /v1/jobs/{job}/inputs/{start}-{stop}   the bundle of these input rows (for vehicles), with Range
GET    /v1/vehicles, /v1/vehicles/{vehicle}   VehicleView
GET    /v1/vehicles/{vehicle}/policy          PolicyView
PUT    /v1/vehicles/{vehicle}/policy?by=WHO   PolicyDraft -> PolicyView, the next version
DELETE /v1/vehicles/{vehicle}/policy?by=WHO   revokes -> PolicyView
GET    /v1/vehicles/{vehicle}/policy/history  PolicyView of every version, the newest first
GET    /v1/statements?by=vehicle&owner=O&vehicle=V&job=J&month=2026-11   StatementLine of each owner, vehicle, job …
GET    /v1/receipts?after=CURSOR&owner=O…     ReceiptView of each chunk, in pages, with the same filters
GET    /v1/health                     HealthView
Errors are Problem objects (RFC 9457) with a fitting status.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct, convert, to_builtins

from fleet_wire.messages import Digest
from fleet_wire.policy import Hours, Identifier, LinkRules, OwnerPolicy, Purpose
from fleet_wire.tensors import Tensor

__all__ = [
    "BlobView",
    "FailedRowView",
    "HealthView",
    "JobExplanation",
    "JobRequest",
    "JobTerms",
    "JobView",
    "ModelRequest",
    "ModelView",
    "PolicyDraft",
    "PolicyView",
    "Problem",
    "ReasonView",
    "ReceiptView",
    "RowsFrame",
    "StatementLine",
    "TensorSpec",
    "Tolerance",
    "VehicleView",
    "Verification",
]


class TensorSpec(Struct, frozen=True):
    """One input or output of a model. `shape` has None where the model leaves an axis open; axis 0 is the rows."""

    name: str
    dtype: str
    shape: list[int | None]


class BlobView(Struct, frozen=True):
    """A stored blob."""

    digest: str
    size: int


class ModelRequest(Struct, frozen=True):
    """Register a model whose bytes are stored already."""

    digest: Digest


class ModelView(Struct, frozen=True):
    """A checked model. `batch_rows` is the fixed length of axis 0, or None when the model takes any."""

    digest: str
    size: int
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    batch_rows: int | None = None


class Tolerance(Struct, forbid_unknown_fields=True, frozen=True):
    """Floating-point numbers a and b agree when |a - b| <= absolute + relative * max(|a|, |b|)."""

    absolute: Annotated[float, Meta(ge=0, le=1e300)] = 0.0
    relative: Annotated[float, Meta(ge=0, le=1)] = 0.0


class Verification(Struct, forbid_unknown_fields=True, frozen=True):
    """How the rows of a job are verified before they count.

    `none`: every car is believed. `canaries`: the coordinator computes `canary_share` of the rows itself, and a car
    that answers one of them wrongly is found out. `adaptive`: a car's rows are computed a second time by another one,
    fewer the more of them were right, so that at most about `wrong_share` of the accepted rows are wrong. `quorum`:
    every row is computed until that many different cars agree. `tolerances` are by the name of an output and only for
    those of floating point; all else must be equal.
    """

    rule: Literal["none", "canaries", "adaptive", "quorum"] = "none"
    quorum: Annotated[int, Meta(ge=2, le=5)] = 2
    canary_share: Annotated[float, Meta(gt=0, le=0.5)] = 0.02
    wrong_share: Annotated[float, Meta(ge=1e-6, le=0.1)] = 1e-4
    tolerances: Annotated[dict[str, Tolerance], Meta(max_length=64)] = {}

    @property
    def label(self) -> str:
        """The rule in a word or two; empty where nothing is verified."""
        return {"none": "", "quorum": f"quorum {self.quorum}"}.get(self.rule, self.rule)


class JobTerms(Struct, frozen=True):
    """What a job asks for. `chunk_rows` None lets the coordinator size chunks; higher `priority` goes first.

    Only cars whose owners agreed to `purpose` work for it, and only where a kWh costs `price_ceiling_micro_per_kwh` at
    most; no car sees more than `vehicle_share` of its rows. A row that failed on `max_attempts` different cars, or as
    many as there are, is given up and reported.
    """

    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    chunk_rows: Annotated[int, Meta(ge=1, le=1 << 40)] | None = None
    deadline_s: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    purpose: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,32}$(?!\n)")] = "general"
    price_ceiling_micro_per_kwh: Annotated[int, Meta(ge=0, le=1 << 53)] | None = None
    vehicle_share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    verification: Verification = Verification()

    @property
    def is_verified(self) -> bool:
        """Whether answers must be verified before their rows count."""
        return self.verification.rule != "none"


class JobRequest(Struct, frozen=True):
    """A job: a registered model, the stored bundle of its input rows, and the terms."""

    model: Digest
    inputs: Digest
    terms: JobTerms = JobTerms()
    name: Annotated[str, Meta(max_length=200)] = ""


class JobView(Struct, frozen=True):
    """A job as clients see it. `state` is one of running, done, failed, cancelled.

    `rows_duplicate` counts rows that came a second time and were not stored; `rows_released_again` counts rows that
    had to be leased again because the car that had them left, refused or fell silent; `rows_failed` counts rows that
    were given up because they failed on several cars. Energy is in milliwatt-hours above what the cars would have used
    anyway; pay in integer micro-currency. `deadline_in_s` is the time to the deadline of one that runs.

    `verification` is empty where every car is believed. Else `rows_held` were computed and do not count yet,
    `rows_checked` had a check that is decided, and `rows_retracted` did not count any more after they had.
    """

    id: str
    name: str
    model: str
    state: str
    rows: int
    rows_done: int
    rows_leased: int
    created_ms: int
    ended_ms: int | None
    error: str | None
    rows_duplicate: int
    rows_released_again: int
    compute_ms: float
    energy_mwh: int
    pay_micro: int
    vehicles: int
    waiting_for: str | None = None
    estimate_s: float | None = None
    rows_failed: int = 0
    deadline_in_s: float | None = None
    verification: str = ""
    rows_held: int = 0
    rows_checked: int = 0
    rows_retracted: int = 0


class FailedRowView(Struct, frozen=True):
    """A row that was given up after it failed `attempts` times by itself, the last time with `error`."""

    row: int
    attempts: int
    error: str


class JobExplanation(Struct, frozen=True):
    """Why a running job stands where it stands.

    `cars` counts vehicles by the first reason why they get nothing of this job; those that may work for it are `busy`,
    `resting` after a refusal, or `ready`. `advice` says what would have to change. `share` is its part of the fleet
    beside all `jobs_waiting` (itself included), None when no row waits. `rows_copied` rows were given to a second car
    because they were late, and `copies_left` more may be.
    """

    job: JobView
    rows_waiting: int
    cars: dict[str, int]
    advice: list[str]
    jobs_waiting: int
    share: float | None
    rows_copied: int
    copies_left: int
    failed: list[FailedRowView]


class ReasonView(Struct, frozen=True):
    """Why a vehicle gets no work: `code` for programs, `text` for people, and what was compared, if numbers were.

    `remedy` says what would have to change, and who can do that.
    """

    code: str
    text: str
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    remedy: str = ""


class VehicleView(Struct, frozen=True):
    """A vehicle as operators see it. `reason` is None when it is eligible, else the first reason why not.

    `reasons` are all of them in order, that one first; only where one vehicle is asked for. `trust` is how many of its
    rows were found right since the last of its `convictions` of a wrong one.
    """

    id: str
    online: bool
    eligible: bool
    reason: str | None
    plugged: bool | None
    charging: bool | None
    charge_percent: float | None
    leases: int
    rows_per_s: float | None
    rows_done: int
    energy_mwh: int
    pay_micro: int
    last_seen_ms: int | None
    region: str = ""
    reasons: list[ReasonView] = []
    energy_micro_per_kwh: int | None = None
    trust: int = 0
    convictions: int = 0


class _StrictHours(Hours, forbid_unknown_fields=True, frozen=True):
    """A misspelt field must not pass for a default."""


class _StrictLinkRules(LinkRules, forbid_unknown_fields=True, frozen=True):
    """As above."""


class PolicyDraft(OwnerPolicy, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A policy as somebody writes it: `version`, where it is given, is that of the policy which it is to replace."""

    version: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    owner: Identifier
    purposes: Annotated[list[Purpose], Meta(max_length=32)]
    hours: Annotated[list[_StrictHours], Meta(max_length=64)] = []  # type: ignore[assignment]  # noqa: RUF012 - msgspec copies it
    link: _StrictLinkRules = _StrictLinkRules()

    def as_version(self, version: int) -> OwnerPolicy:
        """The policy that this draft becomes."""
        return convert(to_builtins(self) | {"version": version}, OwnerPolicy)


class PolicyView(Struct, frozen=True):
    """A version of an owner's policy for a vehicle, who set it and when."""

    vehicle: str
    policy: OwnerPolicy
    set_by: str
    set_ms: int


class StatementLine(Struct, frozen=True):
    """Sums of the receipts of `of`: an owner, a vehicle, a job, or a month such as 2026-11 of the fleet's local time.

    `of` is empty where receipts tell no owner, or were summed up before there were receipts. Energy is in
    milliwatt-hours above what the cars would have used anyway. `energy_pay_micro` is what it cost by its tariff, and so
    is refunded; `fee_pay_micro` what computing earned besides; both in millionths of the currency.
    """

    of: str
    rows: int
    compute_us: int
    energy_mwh: int
    energy_pay_micro: int
    fee_pay_micro: int

    @property
    def pay_micro(self) -> int:
        """All that was earned."""
        return self.energy_pay_micro + self.fee_pay_micro


class ReceiptView(Struct, frozen=True):
    """What one chunk took and earned, by what its lease promised; the next page begins behind the last `cursor`."""

    cursor: str
    owner: str
    vehicle: str
    job: str
    chunk: int
    month: str
    granted_ms: int
    consent_version: int
    rows: int
    compute_us: int
    energy_mwh: int
    energy_micro_per_kwh: int
    pay_micro_per_h: int
    energy_pay_micro: int
    fee_pay_micro: int

    @property
    def pay_micro(self) -> int:
        """All that was earned."""
        return self.energy_pay_micro + self.fee_pay_micro


class HealthView(Struct, frozen=True):
    """Whether the coordinator can work, and what it refused so far, by reason."""

    status: str
    fleet: str
    broker_connected: bool
    vehicles_online: int
    vehicles_eligible: int
    jobs_running: int
    refusals: dict[str, int]
    counters: dict[str, int]
    store: str = ""
    """What is wrong with the telemetry store and what to do; empty when nothing is."""
    ledger: str = ""
    """What is wrong with the ledger, for which commits wait; empty when nothing is."""


class RowsFrame(Struct, frozen=True):
    """A piece of a result stream. `spans` are [start, stop, offset]: rows start..stop lie at `offset` in the outputs.

    `after` is the cursor to resume from. The last frame has `state` set (done, failed, cancelled) and no spans.
    `retracted` are [start, stop]: rows of a verified job that came earlier and can't be relied on. They do not count
    any more, and come again later.
    """

    after: int
    spans: list[tuple[int, int, int]]
    outputs: list[Tensor]
    state: str | None = None
    error: str | None = None
    retracted: list[tuple[int, int]] = []


class Problem(Struct, frozen=True):
    """Why a request was refused: `code` for programs, `detail` for people, who learn from it what to do."""

    status: int
    code: str
    detail: str
