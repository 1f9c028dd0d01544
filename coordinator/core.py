"""The coordinator's brain: events in, commands out. Never awaits, reads no clock, touches nothing but its own memory.

Commands that write to the ledger must be durable before the others of the same round are carried out.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.assignment import Tools
from coordinator.commands import (
    AddJob,
    AddModel,
    AddRows,
    CheckBlob,
    Command,
    EndJob,
    EndLease,
    SendControl,
)
from coordinator.conduct import Conduct
from coordinator.consents import Consents
from coordinator.events import (
    BlobLost,
    Event,
    JobCancelled,
    JobSubmitted,
    ModelAdded,
    PolicySet,
    RowsFailed,
    RowsKnown,
    RowsReceived,
    TaskRefused,
    TaskUndelivered,
    TelemetryBatch,
    Tick,
    VehicleCaps,
    VehiclesHeard,
    VehiclesRemembered,
    VehicleState,
)
from coordinator.faults import Faults
from coordinator.fleet_view import FleetView
from coordinator.foresight import Foresight, ForesightTerms
from coordinator.hearing import Hearing
from coordinator.leases import Leases
from coordinator.model import AcceptedRows, Job, JobState, LeaseEnd, LeaseRecord, Model, Piece, ReceiptPart
from coordinator.ports import LedgerSnapshot
from coordinator.prices import Prices
from coordinator.progress import JobProgress, OpenLease
from coordinator.rules.eligibility import Circumstances, EligibilityLimits, Reason, first_reasons, local_quarters
from coordinator.rules.failures import FailureLimits, failure_text, is_lost
from coordinator.rules.fit import output_fault
from coordinator.rules.pay import PayTerms, PowerLimits
from coordinator.rules.quarantine import QuarantineLimits
from coordinator.rules.scheduling import SchedulingLimits
from coordinator.rules.silence import SilenceLimits
from coordinator.rules.sizing import SizingLimits, restored_deadline_ms
from coordinator.rules.tariff import Tariffs, flat_tariffs
from coordinator.rules.verification import VerificationLimits
from coordinator.scheduler import Scheduler
from coordinator.settlement import Settlement
from coordinator.speeds import Speeds
from coordinator.totals import Totals
from coordinator.verifying import Verifying
from coordinator.warm import WarmModels
from fleet_wire.messages import Cancel, Rebirth, RefusalReason, Span
from fleet_wire.policy import OwnerPolicy

__all__ = ["Core", "CorePolicy"]


@dataclass(frozen=True, slots=True)
class CorePolicy:
    """Every number the core decides by."""

    eligibility: EligibilityLimits = field(default_factory=EligibilityLimits)
    sizing: SizingLimits = field(default_factory=SizingLimits)
    scheduling: SchedulingLimits = field(default_factory=SchedulingLimits)
    quarantine: QuarantineLimits = field(default_factory=QuarantineLimits)
    silence: SilenceLimits = field(default_factory=SilenceLimits)
    pay: PayTerms = field(default_factory=PayTerms)
    power: PowerLimits = field(default_factory=PowerLimits)
    tariffs: Tariffs = field(default_factory=lambda: flat_tariffs(250_000))
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    prices_every_ms: int = 1_000
    failures: FailureLimits = field(default_factory=FailureLimits)
    verification: VerificationLimits = field(default_factory=VerificationLimits)
    foresight: ForesightTerms = field(default_factory=ForesightTerms)
    fleet_policy: OwnerPolicy | None = None
    rebirth_every_ms: int = 10_000
    policy_every_ms: int = 60_000
    reasons_every_ms: int = 250
    back_off_ms: int = 1_000


@dataclass(slots=True)
class Core:
    """The state of one cell: fleet, models and running jobs. With `secret` rows are drawn that are checked."""

    policy: CorePolicy = field(default_factory=CorePolicy)
    fleet: FleetView = field(default_factory=FleetView)
    models: dict[str, Model] = field(default_factory=dict)
    jobs: dict[str, JobProgress] = field(default_factory=dict)
    next_seq: int = 1
    refusals: Counter[str] = field(default_factory=Counter)
    counters: Counter[str] = field(default_factory=Counter)
    totals: Totals = field(default_factory=Totals)
    speeds: Speeds = field(default_factory=Speeds)
    secret: bytes = b""
    prices: Prices = field(init=False)
    foresight: Foresight = field(init=False)
    _settlement: Settlement = field(init=False)
    _leases: Leases = field(init=False)
    _warm: WarmModels = field(init=False)
    _conduct: Conduct = field(init=False)
    _consents: Consents = field(init=False)
    _hearing: Hearing = field(init=False)
    scheduler: Scheduler = field(init=False)
    verifying: Verifying = field(init=False)
    _faults: Faults = field(init=False)
    _reasons: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, dtype=np.int8))
    _reasons_ms: int = -1
    _restored: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        policy = self.policy
        self.prices = Prices(policy.tariffs, policy.pay, policy.zone, policy.prices_every_ms, self.fleet, self.counters)
        self.foresight = Foresight(policy.foresight, self.fleet)
        self._settlement = Settlement(policy.power, self.fleet, self.totals, self.refusals)
        self._conduct = Conduct(policy.quarantine, policy.verification, self.fleet)
        self._hearing = Hearing(policy.silence, self.fleet)
        self._leases = Leases(self.fleet, self.jobs, self._conduct, self.totals)
        self._warm = WarmModels(self.fleet)
        tools = Tools(policy.sizing, self.fleet, self.models, self._leases, self.speeds, self._warm, self.prices)
        self._consents = Consents(policy.fleet_policy, policy.policy_every_ms, self.fleet, self._leases, self.refusals)
        self.scheduler = Scheduler(
            policy.scheduling, policy.quarantine, policy.back_off_ms, tools, self.jobs, self.counters
        )
        self.verifying = Verifying(
            policy.verification,
            self.secret,
            self.fleet,
            self._leases,
            self._conduct,
            self.counters,
            self._take_seq,
            self._end_completed,
        )
        self._faults = Faults(
            self._leases,
            self._conduct,
            self.scheduler.rest,
            self.refusals,
            self.counters,
            self.verifying.beyond_hope,
        )

    def restore(self, snapshot: LedgerSnapshot, now_ms: int) -> None:
        """Go on from what the ledger remembers. To be called once, before any event."""
        self.next_seq = snapshot.next_seq
        self.models.update((model.digest, model) for model in snapshot.models)
        for sums in snapshot.vehicles:
            row = self.fleet.row(sums.vehicle)
            for name in ("rows_done", "energy_mwh", "pay_micro"):
                self.fleet.column[name][row] = getattr(sums, name)
        for conduct in snapshot.conduct:
            self._conduct.restore(conduct, now_ms)
        for vehicle, policy in snapshot.policies:
            self.fleet.set_policy(vehicle, policy)
        for kept in snapshot.running:
            if kept.job.terms.is_verified:
                progress = self.verifying.restore(kept, now_ms).progress
            else:
                progress = JobProgress.restored(kept.job, kept.done, kept.leases, row_ms=0.0, failed=kept.failed)
            progress.next_chunk = kept.next_chunk
            progress.rows_copied, progress.seen = kept.rows_copied, dict(kept.seen)
            progress.rows_released_again = kept.rows_released_again
            progress.compute_us, progress.energy_mwh = kept.compute_us, kept.energy_mwh
            progress.pay_micro, progress.rests = kept.pay_micro, dict(kept.rests)
            progress.granted.update((record.chunk, record) for record in kept.ended)
            for worked in kept.worked:
                self._settlement.restore(*worked)
            self.jobs[kept.job.id] = progress
            for record in kept.leases:
                deadline_ms = restored_deadline_ms(record.granted_ms, record.deadline_ms, now_ms, self.policy.sizing)
                held = msgspec.structs.replace(record, deadline_ms=deadline_ms)
                self._leases.hold(self.fleet.row(record.vehicle), [held], 0.0)
                self._restored.add((record.job, record.chunk))

    def find(self, job: str) -> tuple[Job, Model] | None:
        """A running job and its model; None when the job has ended or never was."""
        progress = self.jobs.get(job)
        return None if progress is None else (progress.job, self.models[progress.job.model])

    def standing(self, leases: Sequence[LeaseRecord]) -> tuple[LeaseRecord, ...]:
        """Those leases, all of one job, that have not ended."""
        progress = self.jobs.get(leases[0].job)
        return () if progress is None else tuple(lease for lease in leases if lease.chunk in progress.leases)

    def handle(self, event: Event, now_ms: int) -> list[Command]:  # noqa: C901, PLR0911, PLR0912 - one case an event
        """Take one event in; return what is to be done about it."""
        match event:
            case RowsReceived():
                return self._rows_received(event, now_ms)
            case TelemetryBatch():
                return self._telemetry(event, now_ms)
            case VehiclesHeard(vehicles, beats):
                if self._hearing.heard(vehicles, beats, now_ms):
                    self._reasons_ms = -1
                return []
            case Tick(utc_offsets_ms, listened):
                self.fleet.utc_offsets_ms.update(utc_offsets_ms)
                if not listened:
                    self._hearing.could_not_listen(now_ms)
                return self._tick(now_ms)
            case VehicleState():
                return self._vehicle_state(event, now_ms)
            case VehiclesRemembered(latest):
                rows = self.fleet.remember(latest)
                self._reasons_ms = -1
                return self._ask_rebirth([row for row in rows if self.fleet.column["epoch"][row] < 0], now_ms)
            case VehicleCaps(vehicle, caps):
                if self.fleet.set_caps(vehicle, caps):
                    self.speeds.forget(vehicle)  # what its owner allows the worker may have changed
                self.prices.update(now_ms)
                self._warm.caps_changed(self.fleet.row(vehicle))
                self._reasons_ms = -1
                return self._consents.appeared(vehicle, now_ms)
            case PolicySet():
                self._reasons_ms = -1
                return self._consents.take(event, now_ms)
            case TaskRefused():
                return self._task_refused(event, now_ms)
            case RowsFailed(vehicle, failure):
                return self._rows_failed(vehicle, failure.job, failure.spans, failure.error, now_ms)
            case RowsKnown():
                return self._rows_known(event, now_ms)
            case TaskUndelivered(vehicle, job, chunks):
                self.scheduler.rest(vehicle, now_ms)
                self.counters["task_undelivered"] += 1
                return self._leases.release(job, chunks, LeaseEnd.LOST, now_ms)
            case BlobLost(digest, error):
                return self._blob_lost(digest, error, now_ms)
            case ModelAdded(model):
                self.models[model.digest] = model
                return [AddModel(model)]
            case JobSubmitted(job):
                progress = self.jobs[job.id] = JobProgress.fresh(job)
                self._warm.prepare(job.model, {progress.job.model for progress in self.jobs.values()})
                return [AddJob(job), *self.verifying.begin(progress, now_ms)]
            case JobCancelled(job_id):
                return self._end_job(job_id, JobState.CANCELLED, None, now_ms)

    # Vehicles -------------------------------------------------------------------------------------------------------

    def _telemetry(self, batch: TelemetryBatch, now_ms: int) -> list[Command]:
        outcome = self.fleet.apply(batch)
        self._reasons_ms = -1
        self.counters["telemetry_applied"] += outcome.applied
        if outcome.out_of_order:
            self.refusals["telemetry_out_of_order"] += outcome.out_of_order
        return self._ask_rebirth(outcome.gaps, now_ms)

    def _ask_rebirth(self, rows: Iterable[int], now_ms: int) -> list[Command]:
        asked = self.fleet.column["rebirth_ms"]
        due = [row for row in rows if asked[row] <= now_ms - self.policy.rebirth_every_ms]
        asked[due] = now_ms
        self.counters["rebirth_asked"] += len(due)
        return [SendControl(self.fleet.ids[row], Rebirth()) for row in due]

    def _vehicle_state(self, event: VehicleState, now_ms: int) -> list[Command]:
        vehicle, state = event.vehicle, event.state
        if self.fleet.is_outdated(vehicle, state):
            self.refusals["state_of_another_epoch"] += 1
            return []
        if not self.fleet.set_state(vehicle, state):
            return []
        self._reasons_ms = -1
        self.counters["vehicle_online" if state.online else "vehicle_offline"] += 1
        commands: list[Command] = []
        row = self.fleet.row(vehicle)
        for job, chunks in list(self.fleet.held.get(row, {}).items()):
            leases = self.jobs[job].leases
            lost = [chunk for chunk in chunks if not state.online or leases[chunk].record.epoch != state.epoch]
            commands += self._leases.release(job, lost, LeaseEnd.LOST, now_ms)
        if state.online and event.retained:
            commands += self._ask_rebirth([row], now_ms)
        elif state.online:  # a birth is followed by a snapshot without being asked
            self.fleet.column["rebirth_ms"][row] = now_ms
        return commands

    def _task_refused(self, event: TaskRefused, now_ms: int) -> list[Command]:
        refusal = event.refusal
        self.refusals[f"vehicle_{refusal.reason.value}"] += 1
        progress = self.jobs.get(refusal.job)
        if progress is None:
            return []
        row = self.fleet.row(event.vehicle)
        held = self.fleet.held.get(row, {}).get(refusal.job, set())
        chunks = held.intersection(refusal.chunks) if refusal.chunks else set(held)
        if refusal.reason is not RefusalReason.LEAVING:
            self.scheduler.rest(event.vehicle, now_ms)
        if refusal.reason is RefusalReason.DRAINING:
            self.fleet.column["draining"][row] = True
            self._reasons_ms = -1
        commands = self._leases.release(refusal.job, sorted(chunks), LeaseEnd.RELEASED, now_ms)
        missing = {
            RefusalReason.MODEL_MISSING: progress.job.model,
            RefusalReason.INPUTS_MISSING: progress.job.inputs,
        }.get(refusal.reason)
        if missing is not None:  # through the car's fault, its link's, or ours
            commands.append(CheckBlob(missing))
        return commands

    # Results --------------------------------------------------------------------------------------------------------

    def _rows_received(self, event: RowsReceived, now_ms: int) -> list[Command]:
        rows, vehicle = event.rows, event.vehicle
        progress = self.jobs.get(rows.job)
        if progress is None:
            self.refusals["result_job_not_running"] += 1
            self._settlement.too_late(event, now_ms)
            return []
        if not all(progress.was_granted(span, vehicle) for span in rows.spans):
            self.refusals["result_without_lease"] += 1
            return []
        if self._is_from_before_conviction(vehicle, progress, rows.spans):
            self.refusals["result_of_convicted_vehicle"] += 1
            self._settlement.refused("convicted", event, progress, now_ms)
            return []
        if progress.layers > 1 and progress.answers_twice(vehicle, rows.spans):
            self.refusals["result_second_of_a_row"] += 1
            self._settlement.refused("second_of_a_row", event, progress, now_ms)
            chunks = dict.fromkeys(span.chunk for span in rows.spans)
            return self._leases.release(rows.job, chunks, LeaseEnd.RELEASED, now_ms)
        count = sum(span.stop - span.start for span in rows.spans)
        fault = output_fault(event.outputs, count, self.models[progress.job.model])
        if fault is not None:
            self.refusals["result_malformed"] += 1
            self._settlement.refused("malformed", event, progress, now_ms)
            return self._rows_failed(vehicle, rows.job, rows.spans, fault, now_ms)
        self.speeds.learn(vehicle, progress.job.model, rows.compute_ms / count)
        self._leases.work_off(vehicle, progress, rows.spans)
        duplicates = progress.rows_duplicate
        pieces, fresh, completed = progress.accept(rows.spans)
        parts = self._settlement.settle(event, progress, fresh, now_ms)
        commands: list[Command] = []
        if pieces and not progress.is_verified:
            progress.rows_done += sum(fresh)
            commands.append(AddRows(self._accepted(event, pieces, parts, now_ms), parts))
        if progress.rows_duplicate > duplicates:
            self.refusals["result_duplicate_rows"] += progress.rows_duplicate - duplicates
        if pieces:
            self._warm.computed(self.fleet.row(vehicle), progress.job.model)
            commands += self._conduct.good_work(vehicle)
            commands += self._faults.judge(progress, now_ms)
        commands += self._faults.end_completed(vehicle, progress, completed, now_ms)
        if pieces and progress.is_verified:
            assert event.payload is not None  # the link reads what lies in blobs
            commands += self.verifying.answered(progress, vehicle, tuple(pieces), event.payload, parts, now_ms)
        return commands + self._end_if_finished(progress, now_ms)

    def _is_from_before_conviction(self, vehicle: str, progress: JobProgress, spans: Iterable[Span]) -> bool:
        """Whether a lease among these ended when its car was convicted; one that is open was granted since.

        The time says that only of others: the clock may have been set back by a restart.
        """
        convicted_ms = self._conduct.convicted.get(vehicle)
        return convicted_ms is not None and any(
            span.chunk not in progress.leases and progress.granted[span.chunk].granted_ms <= convicted_ms
            for span in spans
        )

    def _rows_known(self, event: RowsKnown, now_ms: int) -> list[Command]:
        commands = self.verifying.known(event, now_ms)
        progress = self.jobs.get(event.job)
        return commands if progress is None else commands + self._end_if_finished(progress, now_ms)

    def _take_seq(self) -> int:
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        return seq

    def _end_completed(
        self, vehicle: str, progress: JobProgress, completed: Iterable[OpenLease], now_ms: int
    ) -> list[Command]:
        return self._faults.end_completed(vehicle, progress, completed, now_ms)

    def _accepted(
        self, event: RowsReceived, pieces: list[Piece], parts: tuple[ReceiptPart, ...], now_ms: int
    ) -> AcceptedRows:
        ref = event.rows.outputs_ref
        return AcceptedRows(
            seq=self._take_seq(),
            job=event.rows.job,
            vehicle=event.vehicle,
            pieces=tuple(pieces),
            payload=event.payload,
            payload_ref=None if ref is None else ref.digest,
            accepted_ms=now_ms,
            compute_ms=sum(part.compute_us for part in parts) / 1000,
            energy_mwh=sum(part.energy_mwh for part in parts),
            pay_micro=sum(part.energy_pay_micro + part.fee_pay_micro for part in parts),
        )

    def _rows_failed(self, vehicle: str, job: str, spans: Iterable[Span], error: str, now_ms: int) -> list[Command]:
        progress = self.jobs.get(job)
        if progress is None:
            return []

        def others_left(failed_at: Collection[str]) -> bool:
            return self.scheduler.others_left(progress, self.reasons(now_ms), failed_at)

        commands = self._faults.rows_failed(vehicle, progress, spans, error, others_left, now_ms)
        return commands + self._end_if_finished(progress, now_ms)

    def _blob_lost(self, digest: str, error: str, now_ms: int) -> list[Command]:
        """Nobody can compute the jobs that stand on it."""
        self.refusals["blob_lost"] += 1
        commands: list[Command] = []
        for job in [progress.job for progress in self.jobs.values()]:
            if digest in {job.model, job.inputs}:
                what = "model" if digest == job.model else "inputs"
                commands += self._end_job(job.id, JobState.FAILED, f"its {what}: {error}", now_ms)
        return commands

    # Ends -------------------------------------------------------------------------------------------------------------

    def _end_if_finished(self, progress: JobProgress, now_ms: int) -> list[Command]:
        """End a job of which nothing is left to compute, or that fails almost everywhere."""
        checks = self.verifying.jobs.get(progress.job.id)
        if checks.decided if checks is not None else not progress.left:
            error = failure_text(list(progress.failed.values()))
            return self._end_job(progress.job.id, JobState.FAILED if error else JobState.DONE, error, now_ms)
        if is_lost(len(progress.failed), progress.rows_done, self.policy.failures):
            error = f"given up early: {failure_text(list(progress.failed.values()))}"
            return self._end_job(progress.job.id, JobState.FAILED, error, now_ms)
        return []

    def _end_job(self, job: str, state: JobState, error: str | None, now_ms: int) -> list[Command]:
        progress = self.jobs.pop(job, None)
        if progress is None:
            return []
        self.verifying.jobs.pop(job, None)
        commands: list[Command] = []
        left: dict[str, list[int]] = {}
        for chunk, lease in list(progress.leases.items()):
            left.setdefault(lease.record.vehicle, []).append(chunk)
            self._leases.end(lease, LeaseEnd.CANCELLED)
            commands.append(EndLease(job, chunk, LeaseEnd.CANCELLED, 0, now_ms))
        commands.append(EndJob(job, state, now_ms, error))
        self.counters[f"job_{state.value}"] += 1
        return commands + [SendControl(vehicle, Cancel(job)) for vehicle in left]

    def _tick(self, now_ms: int) -> list[Command]:
        commands: list[Command] = []
        if self._hearing.may_judge(now_ms):
            commands += self._leave_silent(now_ms)
            commands += self._leave_overdue(now_ms)
        for progress in list(self.jobs.values()):
            limit_s = progress.job.terms.deadline_s
            if limit_s is not None and now_ms >= progress.job.created_ms + limit_s * 1000:
                missing = progress.job.rows - progress.rows_done
                error = f"its deadline of {limit_s:g} s passed with {missing} rows missing"
                commands += self._end_job(progress.job.id, JobState.FAILED, error, now_ms)
        commands += self.verifying.tick(now_ms)
        if self.prices.update(now_ms):
            self._reasons_ms = -1
        self.foresight.look(now_ms)
        commands += self._consents.repeat(now_ms)
        silent = self.fleet.live("online") & (self.fleet.live("snapshot_epoch") != self.fleet.live("epoch"))
        return commands + self._ask_rebirth(np.flatnonzero(silent).tolist(), now_ms)

    def _leave_silent(self, now_ms: int) -> list[Command]:
        """End the leases of cars that can't be heard any more, as if they had gone; nobody is blamed."""
        commands: list[Command] = []
        for row in self._hearing.newly_silent(now_ms):
            self._reasons_ms = -1
            self.counters["vehicle_silent"] += 1
            for job, chunks in list(self.fleet.held[row].items()):
                left = sorted(chunks)
                commands += self._leases.release(job, left, LeaseEnd.LOST, now_ms)
                commands.append(SendControl(self.fleet.ids[row], Cancel(job, left)))
        return commands

    def _leave_overdue(self, now_ms: int) -> list[Command]:
        commands: list[Command] = []
        overdue = self._leases.run_out(now_ms)
        # No car is blamed for a lease from before a restart: nobody knows whether its task was ever sent.
        blamed = {record.vehicle for record in overdue if (record.job, record.chunk) not in self._restored}
        for vehicle in dict.fromkeys(record.vehicle for record in overdue):
            self.scheduler.rest(vehicle, now_ms)
            if vehicle in blamed:
                commands += self._conduct.strike(vehicle, now_ms)
        for record in overdue:
            self.counters["lease_expired"] += 1
            commands += self._leases.release(record.job, [record.chunk], LeaseEnd.EXPIRED, now_ms)
            commands.append(SendControl(record.vehicle, Cancel(record.job, [record.chunk])))
        return commands

    # Assignment -----------------------------------------------------------------------------------------------------

    def circumstances(self, now_ms: int) -> Circumstances:
        """What the rules need to know besides the fleet."""
        return Circumstances(
            now_ms,
            local_quarters(self.fleet, now_ms),
            self.policy.pay.compute_micro_per_h,
            self.foresight.stay_chances(),
        )

    def reasons(self, now_ms: int) -> NDArray[np.int8]:
        """Why each vehicle gets no work, as `Reason` values; shape [vehicles]. Computed anew when telemetry came."""
        aged = self._reasons_ms < 0 or now_ms - self._reasons_ms >= self.policy.reasons_every_ms
        if aged or len(self._reasons) != len(self.fleet):
            before, self._reasons = (
                self._reasons,
                first_reasons(self.fleet, self.policy.eligibility, self.circumstances(now_ms)),
            )
            self._count_wrong_clocks(before)
            self.fleet.live("was_eligible")[:] = self._reasons == Reason.ELIGIBLE
            self._reasons_ms = now_ms
        return self._reasons

    def _count_wrong_clocks(self, before: NDArray[np.int8]) -> None:
        """Count each car once that was taken off work because of its clock."""
        is_wrong = self._reasons == Reason.CLOCK_WRONG
        is_wrong[: len(before)] &= before != Reason.CLOCK_WRONG
        newly = int(np.count_nonzero(is_wrong))
        if newly:
            self.refusals["telemetry_clock_wrong"] += newly

    def assign(self, now_ms: int) -> list[Command]:
        """Give free rows to cars that may work and run low on it. To be called once after each round of events."""
        if not self.scheduler.has_work(now_ms):
            return []
        return self.scheduler.assign(self.reasons(now_ms), now_ms)
