"""What clients may ask of the coordinator, answered from the core, the ledger and the blobs. Speaks no HTTP."""

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from math import prod

import msgspec

from coordinator.assembly import assemble
from coordinator.brain import Brain, wall_clock_ms
from coordinator.core import Core
from coordinator.errors import Rejected, ResourceMissing, StoreUnavailable
from coordinator.events import JobCancelled, JobSubmitted, ModelAdded, PolicySet
from coordinator.explain import explain_job
from coordinator.model import AcceptedRows, Job, JobState, Model, Piece
from coordinator.payloads import decode_payload
from coordinator.policy_drafts import checked_policy
from coordinator.ports import BlobStore, InputReader, Ledger, ModelInspector, ReceiptFilter, StoreStatus
from coordinator.progress import row_range
from coordinator.rules.eligibility import Reason
from coordinator.rules.fit import input_fault
from coordinator.views import job_view, vehicle_view, vehicle_views
from fleet_link import Tracer
from fleet_wire.api import (
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
    TensorSpec,
    VehicleView,
)
from fleet_wire.bundle import decode_bundle, encode_bundle
from fleet_wire.policy import OwnerPolicy
from fleet_wire.tensors import Array, decode_tensors, encode_tensors
from fleet_wire.trace import TraceContext

__all__ = ["CoordinatorDesk"]

_PAGE_RESULTS = 256
_PAGE_RECEIPTS = 1000
_ENDED_JOBS_SHOWN = 100
_PIECE_BYTES = 1 << 20


class CoordinatorDesk:
    """The one implementation of `ports.Desk`."""

    def __init__(
        self,
        fleet: str,
        brain: Brain,
        ledger: Ledger,
        blobs: BlobStore,
        inputs: InputReader,
        inspector: ModelInspector,
        refusals: Counter[str],
        is_connected: Callable[[], bool],
        tracer: Tracer,
        store_status: Callable[[], StoreStatus],
        try_out: Callable[[Job, Model], Awaitable[None]],
    ) -> None:
        self._fleet = fleet
        self._brain = brain
        self._ledger = ledger
        self._blobs = blobs
        self._inputs = inputs
        self._inspector = inspector
        self._refusals = refusals
        self._is_connected = is_connected
        self._tracer = tracer
        self._store_status = store_status
        self._try_out = try_out

    @property
    def _core(self) -> Core:
        return self._brain.core

    async def add_model(self, digest: str) -> ModelView:
        """Check and register a stored blob as a model; again and again is fine. Raises Rejected, ResourceMissing."""
        known = self._core.models.get(digest)
        if known is None:
            data = await self._blobs.whole(digest)
            view = await self._inspector.inspect(data)
            known = Model(digest, len(data), tuple(view.inputs), tuple(view.outputs), view.batch_rows)
            await self._brain.put_and_wait(ModelAdded(known))
        else:
            await self._blobs.size(digest)  # it is known for good, and its bytes may be gone
        return ModelView(digest, known.size, list(known.inputs), list(known.outputs), known.batch_rows)

    async def submit(self, request: JobRequest, caller: TraceContext | None) -> JobView:
        """Accept a job, in its caller's trace or a new one; durable on return.

        Raises Rejected, ResourceMissing, and StoreUnavailable while the ledger is away.
        """
        if self._ledger.trouble:  # nobody should have to guess whether a job that gets no answer was taken
            raise StoreUnavailable("ledger_unavailable", f"{self._ledger.trouble}; no job is taken until then")
        begun_ms = wall_clock_ms()
        await self.add_model(request.model)
        model = self._core.models[request.model]
        header = await self._inputs.open(request.inputs)
        specs = [TensorSpec(entry.name, entry.dtype, list(entry.shape)) for entry in header.entries]
        fault = input_fault(specs, model)
        if fault is not None:
            raise Rejected("inputs_do_not_fit", fault)
        rows = prod(header.entries[0].shape[:1])
        size = sum(entry.size for entry in header.entries)
        trace = self._tracer.begin(caller)
        job = Job(
            id=secrets.token_hex(6),
            name=request.name,
            model=request.model,
            inputs=request.inputs,
            rows=rows,
            row_bytes=-(-size // rows),
            terms=request.terms,
            created_ms=wall_clock_ms(),
            trace=trace,
        )
        await self._try_out(job, model)
        await self._brain.put_and_wait(JobSubmitted(job))
        self._tracer.end("submit", trace, caller, begun_ms, wall_clock_ms(), job=job.id, rows=rows)
        return await self.job(job.id)

    async def cancel(self, job: str) -> JobView:
        """End a job early; one that has ended stays as it is. Raises ResourceMissing."""
        await self._brain.put_and_wait(JobCancelled(job))
        return await self.job(job)

    async def job(self, job: str) -> JobView:
        """One job. Raises ResourceMissing."""
        progress = self._core.jobs.get(job)
        if progress is not None:
            return job_view(self._core, progress, wall_clock_ms())
        view = await self._brain.with_ledger(self._ledger.job_view, job)
        if view is None:
            raise ResourceMissing("job_unknown", f"there is no job {job!r}: `idlewheel jobs` lists them")
        return view

    async def jobs(self) -> list[JobView]:
        """Running jobs, then the latest ended ones."""
        now_ms = wall_clock_ms()
        running = [job_view(self._core, progress, now_ms) for progress in self._core.jobs.values()]
        return running + await self._brain.with_ledger(self._ledger.ended_jobs, _ENDED_JOBS_SHOWN)

    async def policy(self, vehicle: str) -> PolicyView:
        """The policy of a vehicle that stands. Raises ResourceMissing."""
        return (await self.policy_history(vehicle))[0]

    async def policy_history(self, vehicle: str) -> list[PolicyView]:
        """Every version of a vehicle's policy, the newest first. Raises ResourceMissing when there is none."""
        versions = await self._brain.with_ledger(self._ledger.policy_history, vehicle)
        if not versions:
            raise ResourceMissing(
                "policy_missing",
                f"no consent for vehicle {vehicle!r} is on record: `idlewheel owner policy set` gives it",
            )
        return versions

    async def set_policy(self, vehicle: str, draft: PolicyDraft, by: str) -> PolicyView:
        """Let a draft be the next version, unless it says what stands already. Raises Rejected."""
        standing = self._core.fleet.policy(vehicle)
        version = 0 if standing is None else standing.version
        if draft.version not in {0, version}:
            raise Rejected("policy_changed", f"it was made from version {draft.version}, and version {version} stands")
        following = self._core.fleet.next_policy_version(vehicle)
        if checked_policy(draft, version or 1) == standing and following == version + 1:
            return await self.policy(vehicle)
        view = await self._next_version(vehicle, checked_policy(draft, following), by)
        if view is None:
            raise Rejected("policy_changed", "somebody else was faster with a change: look at it and try again")
        return view

    async def revoke(self, vehicle: str, by: str) -> PolicyView:
        """Withdraw all consent; what is revoked already stays as it is. Raises ResourceMissing."""
        while True:  # somebody may be faster with another change
            view, version = await self.policy(vehicle), self._core.fleet.next_policy_version(vehicle)
            if view.policy.revoked and version == view.policy.version + 1:
                return view
            revoked = msgspec.structs.replace(view.policy, version=version, revoked=True, purposes=[])
            await self._next_version(vehicle, revoked, by)

    async def _next_version(self, vehicle: str, policy: OwnerPolicy, by: str) -> PolicyView | None:
        """Set a policy, durable on return; None when another one has its version."""
        await self._brain.put_and_wait(PolicySet(vehicle, policy, by))
        versions = await self.policy_history(vehicle)
        return next((view for view in versions if view.policy == policy and view.set_by == by), None)

    def vehicles(self) -> Iterator[VehicleView]:
        """All vehicles known."""
        return vehicle_views(self._core, wall_clock_ms())

    def vehicle(self, vehicle: str) -> VehicleView:
        """One vehicle. Raises ResourceMissing."""
        view = vehicle_view(self._core, vehicle, wall_clock_ms())
        if view is None:
            raise ResourceMissing(
                "vehicle_unknown", f"no vehicle {vehicle!r} was ever seen here: `idlewheel vehicles` lists them"
            )
        return view

    async def rows(self, job: str, after: int) -> AsyncIterator[RowsFrame]:
        """Accepted rows since the cursor, then those to come, until the job ends. Raises ResourceMissing."""
        while True:
            change = self._brain.change(job)
            view = await self.job(job)  # before the read, so that no row of an ended job is missed
            page = await self._brain.with_ledger(self._ledger.rows_after, job, after, _PAGE_RESULTS)
            for accepted in page:
                after = accepted.seq
                if accepted.retracted:
                    yield RowsFrame(after, [], [], retracted=[(piece.start, piece.stop) for piece in accepted.pieces])
                    continue
                spans = [(piece.start, piece.stop, piece.offset) for piece in accepted.pieces]
                yield RowsFrame(after, spans, encode_tensors(await self._outputs(accepted)))
            if page:
                continue
            if view.state != JobState.RUNNING.value:
                yield RowsFrame(after, [], [], view.state, view.error)
                return
            await change.wait()

    async def result(self, job: str, *, partial: bool = False) -> AsyncIterator[bytes]:
        """The bundle of all output rows in order; `partial`: also when some are missing, with NaN or zeros for them.

        Raises Rejected("not_done"), ResourceMissing at the first piece.
        """
        view = await self.job(job)
        if view.state != JobState.DONE.value and not (partial and view.rows_done):
            raise Rejected("not_done", f"job {job} is {view.state}: {view.rows_done} of {view.rows} rows are there")
        parts: list[tuple[tuple[Piece, ...], dict[str, Array] | None]] = []
        after = 0
        while page := await self._brain.with_ledger(self._ledger.rows_after, job, after, _PAGE_RESULTS):
            after = page[-1].seq
            parts += [(each.pieces, None if each.retracted else await self._outputs(each)) for each in page]
        data = encode_bundle(assemble(parts, view.rows))
        for start in range(0, len(data), _PIECE_BYTES):
            yield data[start : start + _PIECE_BYTES]

    async def _outputs(self, accepted: AcceptedRows) -> dict[str, Array]:
        if accepted.payload is not None:
            return decode_payload(accepted.payload)
        assert accepted.payload_ref is not None
        return decode_bundle(await self._blobs.whole(accepted.payload_ref))

    async def input_rows(self, job: str, start: int, stop: int) -> bytes:
        """The bundle of the input rows of these slots. Raises ResourceMissing."""
        progress = self._core.jobs.get(job)
        if progress is None or not 0 <= start < stop <= progress.layers * progress.job.rows:
            raise ResourceMissing("rows_unknown", f"job {job!r} does not run or has no rows {start} to {stop}")
        rows = row_range(progress.job, start, stop)
        if rows[1] > progress.job.rows:
            raise ResourceMissing("rows_unknown", f"{start} to {stop} are not of one layer of job {job!r}")
        return encode_bundle(decode_tensors(await self._inputs.gather(progress.job.inputs, [rows])))

    async def statement(self, by: str, only: ReceiptFilter) -> list[StatementLine]:
        """Sums of receipts of each owner, vehicle, job or month."""
        return await self._brain.with_ledger(self._ledger.statement, by, only)

    async def receipts(self, only: ReceiptFilter, after: tuple[str, int]) -> list[ReceiptView]:
        """A page of receipts of jobs and chunks behind `after`; empty after the last."""
        return await self._brain.with_ledger(self._ledger.receipts, only, after, _PAGE_RECEIPTS)

    async def failures(self, job: str) -> list[FailedRowView]:
        """Rows that were given up. Raises ResourceMissing."""
        await self.job(job)
        rows = await self._brain.with_ledger(self._ledger.failed_rows, job)
        return [FailedRowView(row.row, row.attempts, row.error) for row in rows]

    async def explain(self, job: str) -> JobExplanation:
        """Why a running job stands where it stands. Raises Rejected("not_running"), ResourceMissing."""
        progress = self._core.jobs.get(job)
        if progress is None:
            view = await self.job(job)
            raise Rejected("not_running", f"job {job} is {view.state}, so it waits for nothing")
        return explain_job(self._core, progress, wall_clock_ms())

    def health(self) -> HealthView:
        """Whether all is well, and the counters."""
        core = self._core
        reasons = core.reasons(wall_clock_ms())
        connected, store, ledger = self._is_connected(), self._store_status(), self._ledger.trouble
        return HealthView(
            status="ledger unreachable" if ledger else "ok" if connected else "broker unreachable",
            fleet=self._fleet,
            broker_connected=connected,
            vehicles_online=int(core.fleet.live("online").sum()),
            vehicles_eligible=int((reasons == Reason.ELIGIBLE).sum()),
            jobs_running=len(core.jobs),
            refusals=dict(core.refusals + self._refusals),
            counters=core.counters | {f"store_{name}": count for name, count in store.counters.items()},
            store=store.trouble,
            ledger=ledger,
        )
