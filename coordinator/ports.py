"""What the daemon needs from outside, as protocols. Adapters implement them; tests hold each to one body."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from coordinator.commands import LedgerWrite
from coordinator.events import PlugHistory, TelemetryBatch
from coordinator.metrics import MetricPoint
from coordinator.model import AcceptedRows, Answer, Check, FailedRow, Job, LeaseRecord, Model, Rest, VehicleConduct
from fleet_wire.api import (
    BlobView,
    FailedRowView,
    HealthView,
    JobExplanation,
    JobRequest,
    JobView,
    ModelView,
    PolicyDraft,
    PolicyView,
    ReceiptView,
    RowsFrame,
    StatementLine,
    VehicleView,
)
from fleet_wire.bundle import BundleHeader
from fleet_wire.policy import OwnerPolicy
from fleet_wire.tensors import Tensor
from fleet_wire.trace import TraceContext

__all__ = [
    "HOURS_KEPT_MS",
    "HOUR_MS",
    "RAW_KEPT_MS",
    "BlobStore",
    "Desk",
    "InputReader",
    "Ledger",
    "LedgerJob",
    "LedgerSnapshot",
    "ModelInspector",
    "ModelRunner",
    "ReceiptFilter",
    "SavedState",
    "StoreStatus",
    "TelemetryStore",
    "VehicleSums",
]

HOUR_MS: Final = 3_600_000
RAW_KEPT_MS: Final = 90 * 24 * HOUR_MS
HOURS_KEPT_MS: Final = 2 * 365 * 24 * HOUR_MS


@dataclass(frozen=True, slots=True)
class LedgerJob:
    """A running job as the ledger knows it: `done` are the accepted row ranges, `leases` those not ended.

    `seen` is how many rows each vehicle was ever given. `worked` is when the first lease was granted of those that were
    paid, and for how many microseconds, by vehicle. `ended` are leases whose rows may still come, for the first time or
    again: the latest that ended.
    """

    job: Job
    done: tuple[tuple[int, int], ...]
    leases: tuple[LeaseRecord, ...]
    next_chunk: int
    rows_released_again: int
    compute_us: int
    energy_mwh: int
    pay_micro: int
    rests: tuple[tuple[str, Rest], ...] = ()
    """What each vehicle that worked for it has earned below a whole micro-unit."""
    failed: tuple[FailedRow, ...] = ()
    rows_copied: int = 0
    seen: tuple[tuple[str, int], ...] = ()
    worked: tuple[tuple[str, int, int], ...] = ()
    ended: tuple[LeaseRecord, ...] = ()
    accepted: tuple[tuple[int, int, int | None], ...] = ()
    """Where rows are verified, instead of `done`: ranges of rows in order, and the number of the answer that counts for
    them; None where they were retracted.
    """
    answers: tuple[Answer, ...] = ()
    """Those that are not void."""
    next_answer: int = 0
    checks: tuple[tuple[int, Check], ...] = ()


@dataclass(frozen=True, slots=True)
class VehicleSums:
    """What a vehicle did and earned in all its time."""

    vehicle: str
    rows_done: int
    energy_mwh: int
    pay_micro: int


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """All that a core needs to go on after a restart."""

    models: tuple[Model, ...]
    running: tuple[LedgerJob, ...]
    next_seq: int
    vehicles: tuple[VehicleSums, ...] = ()
    conduct: tuple[VehicleConduct, ...] = ()
    policies: tuple[tuple[str, OwnerPolicy], ...] = ()
    """The newest version of every vehicle's policy."""


@dataclass(frozen=True, slots=True)
class ReceiptFilter:
    """Which receipts: those of an owner, a vehicle, a job, a local month (202611); None is any."""

    owner: str | None = None
    vehicle: str | None = None
    job: str | None = None
    month: int | None = None


class Ledger(Protocol):
    """The durable record of jobs, leases and results, which one coordinator at a time writes.

    Blocking: one thread opens, commits and closes. One asks in that thread, too, or in `readers` others at once, unless
    that is 0.
    """

    @property
    def readers(self) -> int:
        """In how many threads one may ask beside the one that writes."""

    @property
    def trouble(self) -> str:
        """What is wrong and what to do; empty when nothing is."""

    def open(self) -> None:
        """Open and migrate. Raises StoreUnavailable, also for a ledger of a newer version.

        Raises LedgerHeld while another coordinator writes it, and is to be called again to take over from that one.
        """

    def close(self) -> None:
        """Close; committed writes stay."""

    def give_up(self) -> None:
        """Let what waits for a server come to an end by StoreUnavailable, so that one can close; in any thread."""

    def expect_usable(self) -> None:
        """Raises LedgerLost when another coordinator has taken over, StoreUnavailable when damage was found.

        Never waits, and may be called in any thread.
        """

    def commit(self, writes: Sequence[LedgerWrite]) -> None:
        """Keep all writes in one transaction, durable on return; waits for a server that is away.

        Raises StoreUnavailable, and then none is kept; LedgerLost when another coordinator has taken over.
        """

    def load(self) -> LedgerSnapshot:
        """Read what a core needs to start."""

    def rows_after(self, job: str, seq: int, limit: int) -> list[AcceptedRows]:
        """Accepted rows of a job with a greater seq, in its order."""

    def failed_rows(self, job: str) -> list[FailedRow]:
        """Rows of a job that were given up, in their order."""

    def policy_history(self, vehicle: str) -> list[PolicyView]:
        """Every version of a vehicle's policy, the newest first; empty when there is none."""

    def ended_jobs(self, limit: int) -> list[JobView]:
        """Jobs that came to their end, the latest first."""

    def job_view(self, job: str) -> JobView | None:
        """One job, running or ended; None when there is none of that id."""

    def ended_jobs_answered(self, vehicle: str, since_ms: int) -> list[str]:
        """Verified jobs that ended since then, the first first, and of which a vehicle was paid for rows."""

    def rows_unconfirmed(self, job: str, vehicle: str) -> int:
        """How many rows count by a vehicle's answers that nobody else has answered who was not convicted since."""

    def statement(self, by: str, only: ReceiptFilter) -> list[StatementLine]:
        """Sums of receipts of each owner, vehicle, job or month, in their order."""

    def receipts(self, only: ReceiptFilter, after: tuple[str, int], limit: int) -> list[ReceiptView]:
        """Receipts of jobs and chunks behind `after`, in their order."""


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """How a telemetry store is doing; `trouble` says what is wrong and what to do, and is empty when nothing is.

    `lines_waiting` lie on disk until the server takes them, the oldest received at `oldest_ms` (None: none waits).
    """

    trouble: str = ""
    lines_waiting: int = 0
    oldest_ms: int | None = None
    counters: Mapping[str, int] = field(default_factory=dict)


class TelemetryStore(Protocol):
    """The record of what vehicles said. Blocking: one thread opens, appends and closes; another one asks and maintains.

    Where nothing else is said, a method may be called in these two at the same time.
    """

    def open(self) -> None:
        """Open or create; a server that is away is no reason to fail. Raises StoreUnavailable."""

    def close(self) -> None:
        """Close within a few seconds; appended batches stay, and points that wait are kept if that can be done at once.

        What is being asked meanwhile raises StoreUnavailable.
        """

    def give_up(self) -> None:
        """Let an append that waits come to an end, even by StoreUnavailable, so that one can close; in any thread."""

    def append(self, batches: Sequence[TelemetryBatch]) -> None:
        """Keep batches, each with columns for the signals that occur in it. Durable on return; waits for room.

        Raises StoreUnavailable.
        """

    def latest(self) -> TelemetryBatch:
        """The last known value of every signal of every vehicle, one document a vehicle; every signal has a column.

        This and all that asks raises StoreUnavailable.
        """

    def history(self, vehicle: str, since_ms: int, limit: int) -> TelemetryBatch:
        """Documents of one vehicle received since `since_ms`, in order of arrival, at most `limit`, in all columns."""

    def plug_history(self, since_ms: int) -> PlugHistory:
        """When vehicles were plugged in since `since_ms`."""

    def record(self, points: Sequence[MetricPoint]) -> None:
        """Take points for dashboards. May drop them by a rule, counted; never blocks, may be called in any thread."""

    def maintain(self, now_ms: int) -> None:
        """Roll up hours that are over, and forget documents after RAW_KEPT_MS and hours after HOURS_KEPT_MS.

        To be called every few minutes: one call does a bounded piece of a long backlog. Raises StoreUnavailable.
        """

    def status(self) -> StoreStatus:
        """How it is doing; may be called in any thread."""


class SavedState(Protocol):
    """Bytes that are replaced as a whole, and survive the end of the process. Blocking."""

    def read(self) -> bytes | None:
        """What was written last; None when nothing was yet. Raises StoreUnavailable."""

    def write(self, data: bytes) -> None:
        """Replace what was written, durable on return. Raises StoreUnavailable, and then the old state stays."""


class BlobStore(Protocol):
    """Bytes by their SHA-256, kept once."""

    async def put(self, chunks: AsyncIterator[bytes], digest: str) -> BlobView:
        """Keep the bytes if they have this digest. Raises Rejected("digest_mismatch"), StoreUnavailable."""

    async def size(self, digest: str) -> int:
        """Length in bytes. Raises ResourceMissing."""

    async def read(self, digest: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` (excluded). Raises ResourceMissing."""

    def stream(self, digest: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """The same in pieces. Raises ResourceMissing at the first piece."""

    async def whole(self, digest: str) -> bytes:
        """All bytes, which are sure to be the right ones. Raises ResourceMissing.

        Its code is "blob_damaged" where they changed in the store: they are put aside, and can be put again.
        """

    async def check(self, digest: str) -> None:
        """The same without the bytes, however many they are."""


class InputReader(Protocol):
    """Rows out of the input bundles of jobs."""

    async def open(self, digest: str) -> BundleHeader:
        """The table of contents. Raises ResourceMissing, Rejected when the blob is no bundle."""

    async def gather(self, digest: str, ranges: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The rows of all ranges, one after another. Raises ResourceMissing, StoreUnavailable."""


class ModelInspector(Protocol):
    """Looks into ONNX bytes in a process of its own, so that a hostile model can't hurt the daemon."""

    async def inspect(self, model: bytes) -> ModelView:
        """Describe a model that the fleet can run. Raises Rejected with what is wrong in one line."""


class ModelRunner(Protocol):
    """Runs one model at a time on a few rows in a process of its own, so that a hostile model can't hurt the daemon."""

    @property
    def model(self) -> str | None:
        """Digest of the model that is loaded."""

    async def load(self, digest: str, model: bytes) -> None:
        """Load a model instead of what was loaded. Raises Rejected("model_refused"), StoreUnavailable."""

    async def run(self, rows: int, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of the loaded model. Raises Rejected with what is wrong in one line; the model may be gone then."""

    async def close(self) -> None:
        """End the process, if there is one."""


class Desk(Protocol):
    """What clients and operators may ask of the coordinator; the HTTP adapter translates to this and back."""

    async def add_model(self, digest: str) -> ModelView:
        """Check and register a stored blob as a model; again and again is fine. Raises Rejected, ResourceMissing."""

    async def submit(self, request: JobRequest, caller: TraceContext | None) -> JobView:
        """Accept a job, in its caller's trace or a new one; durable on return. Raises Rejected, ResourceMissing."""

    async def cancel(self, job: str) -> JobView:
        """End a job early; one that has ended stays as it is. Raises ResourceMissing."""

    async def job(self, job: str) -> JobView:
        """One job. Raises ResourceMissing."""

    async def policy(self, vehicle: str) -> PolicyView:
        """The policy of a vehicle that stands. Raises ResourceMissing."""

    async def policy_history(self, vehicle: str) -> list[PolicyView]:
        """Every version of a vehicle's policy, the newest first. Raises ResourceMissing when there is none."""

    async def set_policy(self, vehicle: str, draft: PolicyDraft, by: str) -> PolicyView:
        """Let a draft be the next version; durable on return. Raises Rejected."""

    async def revoke(self, vehicle: str, by: str) -> PolicyView:
        """Withdraw all consent; what is revoked already stays as it is. Raises ResourceMissing, Rejected."""

    async def jobs(self) -> list[JobView]:
        """Running jobs, then the latest ended ones."""

    def vehicles(self) -> Iterator[VehicleView]:
        """All vehicles known."""

    def vehicle(self, vehicle: str) -> VehicleView:
        """One vehicle. Raises ResourceMissing."""

    def rows(self, job: str, after: int) -> AsyncIterator[RowsFrame]:
        """Accepted rows since the cursor, then those to come, until the job ends. Raises ResourceMissing."""

    def result(self, job: str, *, partial: bool = False) -> AsyncIterator[bytes]:
        """The bundle of all output rows in order; `partial`: also when some are missing, with NaN or zeros for them.

        Raises Rejected("not_done"), ResourceMissing at the first piece.
        """

    async def failures(self, job: str) -> list[FailedRowView]:
        """Rows that were given up. Raises ResourceMissing."""

    async def explain(self, job: str) -> JobExplanation:
        """Why a running job stands where it stands. Raises Rejected("not_running"), ResourceMissing."""

    async def input_rows(self, job: str, start: int, stop: int) -> bytes:
        """The bundle of these input rows. Raises ResourceMissing."""

    async def statement(self, by: str, only: ReceiptFilter) -> list[StatementLine]:
        """Sums of receipts of each owner, vehicle, job or month."""

    async def receipts(self, only: ReceiptFilter, after: tuple[str, int]) -> list[ReceiptView]:
        """A page of receipts of jobs and chunks behind `after`; empty after the last."""

    def health(self) -> HealthView:
        """Whether all is well, and the counters."""
