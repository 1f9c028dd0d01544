"""The core under any order of events: no row is lost or done twice, no lease breaks a rule, restarts change nothing."""

import math
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.commands import (
    AddFailedRow,
    AddJob,
    AddModel,
    AddRows,
    Command,
    EndJob,
    EndLease,
    GrantLease,
    KeepConduct,
    SendTask,
)
from coordinator.core import Core, CorePolicy
from coordinator.events import (
    JobSubmitted,
    ModelAdded,
    RowsFailed,
    TaskRefused,
    TaskUndelivered,
    Tick,
    VehiclesHeard,
    VehicleState,
)
from coordinator.model import FailedRow, Job, JobState, LeaseEnd, LeaseRecord, ReceiptPart, Rest, VehicleConduct
from coordinator.ports import LedgerJob, LedgerSnapshot, VehicleSums
from coordinator.rules.eligibility import Reason
from coordinator.rules.pay import paid
from coordinator.rules.quarantine import QuarantineLimits
from coordinator.rules.scheduling import SchedulingLimits, share_cap
from coordinator.rules.sizing import SizingLimits
from fleet_wire.messages import Beat, Failure, Refusal, RefusalReason, Span, State
from tests.unit.coordinator_scenes import MODEL, arrival, job, rows_of

CARS = ("car-1", "car-2", "car-3")
ROWS = 40
BEAT_MS = 500


@dataclass
class Memory:
    """What a ledger would remember, kept in the plainest way."""

    jobs: dict[str, Job] = field(default_factory=dict)
    ended: dict[str, JobState] = field(default_factory=dict)
    done: dict[str, list[int]] = field(default_factory=dict)
    leases: dict[tuple[str, int], LeaseRecord] = field(default_factory=dict)
    chunks: dict[str, int] = field(default_factory=dict)
    released: dict[str, int] = field(default_factory=dict)
    sums: dict[str, list[int]] = field(default_factory=dict)
    rests: dict[str, dict[str, Rest]] = field(default_factory=dict)
    worked: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    ended_leases: dict[str, dict[int, LeaseRecord]] = field(default_factory=dict)
    vehicles: dict[str, list[int]] = field(default_factory=dict)
    failed: dict[str, dict[int, FailedRow]] = field(default_factory=dict)
    granted: dict[str, list[LeaseRecord]] = field(default_factory=dict)
    conduct: dict[str, VehicleConduct] = field(default_factory=dict)
    seq: int = 0

    def keep(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case AddJob(new):
                    self.jobs[new.id] = new
                    self.done[new.id] = []
                    self.sums[new.id] = [0, 0, 0]
                    self.rests[new.id] = {}
                    self.worked[new.id] = {}
                    self.ended_leases[new.id] = {}
                    self.failed[new.id] = {}
                    self.granted[new.id] = []
                case GrantLease(lease):
                    assert (lease.job, lease.chunk) not in self.leases
                    assert all(lease.chunk != known.chunk for known in self.granted[lease.job])
                    self.chunks[lease.job] = max(self.chunks.get(lease.job, 0), lease.chunk + 1)
                    self.leases[lease.job, lease.chunk] = lease
                    self.granted[lease.job].append(lease)
                case EndLease(ended_job, chunk, _, back, _):
                    lease = self.leases.pop((ended_job, chunk))
                    self.ended_leases[ended_job][chunk] = lease
                    self.released[ended_job] = self.released.get(ended_job, 0) + back
                case AddRows(rows, parts):
                    assert rows.seq == self.seq + 1
                    self.seq = rows.seq
                    fresh = [row for piece in rows.pieces for row in range(piece.start, piece.stop)]
                    assert not set(fresh) & set(self.done[rows.job]), "a row was kept twice"
                    assert not set(fresh) & self.failed[rows.job].keys(), "a row that was given up was kept"
                    self.done[rows.job] += fresh
                    assert sum(part.rows for part in parts) == len(fresh)
                    self._add(parts)
                case AddFailedRow(failed_job, row):
                    assert row.row not in self.done[failed_job]
                    assert row.row not in self.failed[failed_job]
                    self.failed[failed_job][row.row] = row
                case KeepConduct(conduct):
                    self.conduct[conduct.vehicle] = conduct
                case EndJob(ended, state):
                    self.ended[ended] = state
                    assert sorted([*self.done[ended], *self.failed[ended]]) == list(range(self.jobs[ended].rows))
                    assert (state is JobState.DONE) == (not self.failed[ended])

    def _add(self, parts: tuple[ReceiptPart, ...]) -> None:
        for part in parts:
            job, vehicle = part.lease.job, part.lease.vehicle
            pay = part.energy_pay_micro + part.fee_pay_micro
            for place, value in enumerate((part.compute_us, part.energy_mwh, pay)):
                self.sums[job][place] += value
            for place, value in enumerate((part.rows, part.energy_mwh, pay)):
                self.vehicles.setdefault(vehicle, [0, 0, 0])[place] += value
            if part.compute_us:
                since_ms, us = self.worked[job].get(vehicle, (part.lease.granted_ms, 0))
                self.worked[job][vehicle] = min(since_ms, part.lease.granted_ms), us + part.compute_us
            before = self.rests[job].get(vehicle, Rest())
            self.rests[job][vehicle] = paid(part.energy_mwh, part.compute_us, part.lease, before)[2]

    def snapshot(self) -> LedgerSnapshot:
        running = tuple(self._running(name) for name in self._open())
        vehicles = tuple(VehicleSums(vehicle, *sums) for vehicle, sums in self.vehicles.items())
        return LedgerSnapshot((MODEL,), running, self.seq + 1, vehicles, conduct=tuple(self.conduct.values()))

    def seen(self, name: str, car: str) -> int:
        return sum(lease.stop - lease.start for lease in self.granted[name] if lease.vehicle == car)

    def copied(self, name: str) -> int:
        return sum(lease.stop - lease.start for lease in self.granted[name] if lease.copy_of is not None)

    def _open(self) -> list[str]:
        return [name for name in self.jobs if name not in self.ended]

    def _running(self, name: str) -> LedgerJob:
        done = tuple((row, row + 1) for row in self.done[name])
        leases = tuple(lease for (owner, _), lease in self.leases.items() if owner == name)
        compute_us, energy_mwh, pay = self.sums[name]
        return LedgerJob(
            self.jobs[name],
            done,
            leases,
            self.chunks.get(name, 0),
            self.released.get(name, 0),
            compute_us,
            energy_mwh,
            pay,
            tuple(self.rests[name].items()),
            failed=tuple(self.failed[name].values()),
            rows_copied=self.copied(name),
            seen=tuple((car, self.seen(name, car)) for car in CARS if self.seen(name, car)),
            worked=tuple((car, *worked) for car, worked in self.worked[name].items()),
            ended=tuple(self.ended_leases[name].values()),
        )


def assert_copies_repeat_others(core: Core) -> None:
    """A copy repeats rows of one other lease, of another car."""
    for progress in core.jobs.values():
        for chunk, lease in progress.leases.items():
            if lease.original is not None:
                original = progress.leases[lease.original]
                assert (original.copy, original.original) == (chunk, None)
                assert original.record.start <= lease.record.start < lease.record.stop <= original.record.stop
                assert original.record.vehicle != lease.record.vehicle
            if lease.copy is not None:
                assert progress.leases[lease.copy].original == chunk


class CoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.policy = CorePolicy(
            sizing=SizingLimits(probe_rows=3, lease_floor_ms=500, lease_factor=1),
            scheduling=SchedulingLimits(
                copied_share=0.5, least_gain_ms=1, copy_factor=1.0, cold_ms=1, copies_every_ms=0, patience_ms=1_000
            ),
            quarantine=QuarantineLimits(free_strikes=1, first_ms=500),
            back_off_ms=5,
        )
        self.core = Core(self.policy)
        self.memory = Memory()
        self.now_ms = 0
        self.epochs = dict.fromkeys(CARS, 0)
        self.sent: list[LeaseRecord] = []
        self.submitted = 0
        self.deaf_until_ms = 0
        self.heard_ms = dict.fromkeys(CARS, 0)
        self.busy_since_ms: dict[str, int] = {}
        self.promised = dict.fromkeys(CARS, -1)
        self.silent: set[str] = set()
        self.feed(ModelAdded(MODEL))

    def feed(self, event: object) -> list[Command]:
        self.now_ms += 1
        commands = self.core.handle(event, self.now_ms)  # type: ignore[arg-type]
        self.memory.keep([command for command in commands if not isinstance(command, AddModel)])
        self.note_who_is_busy()
        assigned = self.core.assign(self.now_ms)
        for lease in [command.lease for command in assigned if isinstance(command, GrantLease)]:
            self.breaks_no_rule(lease)
            self.memory.keep([GrantLease(lease)])
        commands += assigned
        self.note_who_is_busy()
        self.sent += [lease for command in commands if isinstance(command, SendTask) for lease in command.leases]
        return commands

    def note_who_is_busy(self) -> None:
        busy = {lease.vehicle for lease in self.memory.leases.values()}
        self.busy_since_ms = {car: self.busy_since_ms.get(car, self.now_ms) for car in busy}

    def breaks_no_rule(self, lease: LeaseRecord) -> None:
        """To be asked before the memory knows of the lease."""
        memory, fleet = self.memory, self.core.fleet
        terms, row = memory.jobs[lease.job].terms, fleet.row(lease.vehicle)
        assert self.core.reasons(self.now_ms)[row] == Reason.ELIGIBLE
        assert lease.vehicle not in self.silent
        assert lease.epoch == fleet.column["epoch"][row]
        assert fleet.column["quarantined_until_ms"][row] <= self.now_ms
        assert fleet.column["rest_until_ms"][row] <= self.now_ms
        assert sum(held.vehicle == lease.vehicle for held in memory.leases.values()) < fleet.column["slots"][row]
        ceiling = terms.price_ceiling_micro_per_kwh
        assert ceiling is None or fleet.column["energy_micro_per_kwh"][row] <= ceiling
        rows = set(range(lease.start, lease.stop))
        cap = share_cap(ROWS, terms.vehicle_share)
        assert terms.vehicle_share == 1 or memory.seen(lease.job, lease.vehicle) + len(rows) <= cap
        assert not rows & memory.failed[lease.job].keys()
        assert not rows <= set(memory.done[lease.job])
        others = [held for held in memory.leases.values() if held.job == lease.job]
        shared = [held for held in others if rows & set(range(held.start, held.stop))]
        if lease.copy_of is None:
            assert not shared, "rows were leased twice"
            return
        (original,) = shared
        assert original.chunk == lease.copy_of
        assert original.vehicle != lease.vehicle
        assert original.start <= lease.start < lease.stop <= original.stop
        assert memory.copied(lease.job) + len(rows) <= self.policy.scheduling.copied_share * ROWS

    @precondition(lambda self: self.submitted < 3)
    @rule(
        chunk_rows=st.sampled_from([None, 1, 7]),
        attempts=st.integers(1, 3),
        priority=st.sampled_from([-50, 0, 20]),
        share=st.sampled_from([1.0, 1.0, 0.4]),
        ceiling=st.sampled_from([None, None, 200_000]),
    )
    def submit(self, chunk_rows: int | None, attempts: int, priority: int, share: float, ceiling: int | None) -> None:
        self.submitted += 1
        new = job(
            f"j{self.submitted}",
            ROWS,
            chunk_rows=chunk_rows,
            max_attempts=attempts,
            priority=priority,
            vehicle_share=share,
            price_ceiling_micro_per_kwh=ceiling,
        )
        self.feed(JobSubmitted(new))

    @rule(
        car=st.sampled_from(CARS), price=st.sampled_from([100_000, 300_000]), stay_ms=st.sampled_from([math.nan, 50.0])
    )
    def change_price(self, car: str, price: int, stay_ms: float) -> None:
        row = self.core.fleet.row(car)
        self.core.fleet.column["energy_micro_per_kwh"][row] = price
        self.core.fleet.column["stay_ms"][row] = stay_ms

    @rule(car=st.sampled_from(CARS))
    def arrive(self, car: str) -> None:
        self.epochs[car] += 1
        self.silent.discard(car)
        for event in arrival(car, self.epochs[car], now_ms=self.now_ms):
            self.feed(event)

    @rule(car=st.sampled_from(CARS), back=st.integers(0, 1))
    def vanish(self, car: str, back: int) -> None:
        self.feed(VehicleState(car, State(False, max(0, self.epochs[car] - back))))

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), keep=st.booleans())
    def compute(self, data: st.DataObject, keep: bool) -> None:
        """A car answers for part of a lease, perhaps of one that has ended, perhaps once more later."""
        lease = data.draw(st.sampled_from(self.sent))
        start = data.draw(st.integers(lease.start, lease.stop - 1))
        stop = data.draw(st.integers(start + 1, lease.stop))
        if not keep:
            self.sent.remove(lease)
        self.feed(rows_of(lease.vehicle, lease.job, Span(lease.chunk, start, stop)))

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), reason=st.sampled_from(list(RefusalReason)))
    def refuse(self, data: st.DataObject, reason: RefusalReason) -> None:
        lease = data.draw(st.sampled_from(self.sent))
        self.feed(TaskRefused(lease.vehicle, Refusal(lease.job, 1, reason, [lease.chunk])))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.sent))
        start = data.draw(st.integers(lease.start, lease.stop - 1))
        stop = data.draw(st.sampled_from([start + 1, lease.stop]))
        self.feed(RowsFailed(lease.vehicle, Failure(lease.job, 1, [Span(lease.chunk, start, stop)], "no")))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def lose_task(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.sent))
        self.feed(TaskUndelivered(lease.vehicle, lease.job, (lease.chunk,)))

    @rule(pass_ms=st.integers(0, 3_000), listened=st.sampled_from([True, True, True, False]))
    def tick(self, pass_ms: int, listened: bool) -> None:
        self.now_ms += pass_ms
        strikes = int(self.core.fleet.column["strikes"].sum())
        owners = {(lease.job, lease.chunk): lease.vehicle for lease in self.memory.leases.values()}
        silent = {car for car in owners.values() if self.is_silent(car, self.now_ms + 1)}
        if not listened:
            self.deaf_until_ms = self.now_ms + 1 + self.policy.silence.grace_ms
        ended = [command for command in self.feed(Tick(listened=listened)) if isinstance(command, EndLease)]
        if self.now_ms < self.deaf_until_ms:
            assert all(each.end is LeaseEnd.CANCELLED for each in ended), "left by one who could not listen"
            assert strikes == int(self.core.fleet.column["strikes"].sum())
        else:
            assert silent == {owners[each.job, each.chunk] for each in ended if each.end is LeaseEnd.LOST}
            assert not silent & {owners[each.job, each.chunk] for each in ended if each.end is LeaseEnd.EXPIRED}
            self.silent |= silent

    def is_silent(self, car: str, now_ms: int) -> bool:
        """By the protocol: it holds leases, promised beats on this connection, and missed two of them."""
        promised = self.promised[car] == self.epochs[car]
        return promised and now_ms - max(self.heard_ms[car], self.busy_since_ms[car]) > 2 * BEAT_MS

    @rule(car=st.sampled_from(CARS), beats=st.booleans())
    def speak(self, car: str, beats: bool) -> None:
        self.silent.discard(car)
        self.feed(VehiclesHeard({car}, [(car, Beat(self.epochs[car], BEAT_MS))] if beats else []))
        self.heard_ms[car] = self.now_ms
        if beats:
            self.promised[car] = self.epochs[car]

    @rule()
    def restart(self) -> None:
        before = self.core
        self.core = Core(self.policy)
        self.core.restore(self.memory.snapshot(), self.now_ms)
        self.promised, self.silent, self.deaf_until_ms = dict.fromkeys(CARS, -1), set(), 0
        assert self.core.next_seq == before.next_seq
        for name, progress in self.core.jobs.items():
            known = before.jobs[name]
            assert progress.settled.tolist() == known.settled.tolist()
            assert (progress.failed, progress.seen, progress.rows_copied) == (
                known.failed,
                known.seen,
                known.rows_copied,
            )
            assert {chunk: lease.original for chunk, lease in progress.leases.items()} == {
                chunk: lease.original for chunk, lease in known.leases.items()
            }
            assert progress.leases.keys() == known.leases.keys()
            assert (progress.next_chunk, progress.pay_micro) == (known.next_chunk, known.pay_micro)
            assert (progress.compute_us, progress.rests) == (known.compute_us, known.rests)
            assert progress.rows_released_again == known.rows_released_again
        for lease in self.sent:  # what is computed under a lease that has ended is still taken
            if lease.job in self.core.jobs:
                known = self.core.jobs[lease.job].granted.get(lease.chunk)
                assert known is not None or all(self.core.jobs[lease.job].settled[lease.start : lease.stop])
        for car, epoch in self.epochs.items():
            if before.fleet.column["online"][before.fleet.row(car)]:
                for event in arrival(car, epoch, now_ms=self.now_ms):
                    self.feed(event)

    @invariant()
    def every_row_is_done_or_leased_or_free(self) -> None:
        assert self.core.jobs.keys() == {name for name in self.memory.jobs if name not in self.memory.ended}
        for name, progress in self.core.jobs.items():
            settled = {row for row in range(ROWS) if progress.settled[row]}
            assert not set(self.memory.done[name]) & self.memory.failed[name].keys()
            assert set(self.memory.done[name]) | self.memory.failed[name].keys() == settled
            assert progress.failed == self.memory.failed[name]
            records = [lease.record for lease in progress.leases.values() if lease.original is None]
            leased = [row for record in records for row in range(record.start, record.stop)]
            assert len(leased) == len(set(leased)) == progress.rows_leased
            free = [row for start, stop in progress.free for row in range(start, stop) if not progress.settled[row]]
            assert len(free) == len(set(free))
            assert len(free) <= progress.rows_free == sum(stop - start for start, stop in progress.free)
            assert not set(free) & set(leased)
            assert set(free) | set(leased) | settled == set(range(ROWS))

    @invariant()
    def a_copy_repeats_rows_of_one_other_lease(self) -> None:
        assert_copies_repeat_others(self.core)

    @invariant()
    def faults_agree_with_the_ledger(self) -> None:
        for car in CARS:
            row, kept = self.core.fleet.row(car), self.memory.conduct.get(car)
            strikes, until_ms = (int(self.core.fleet.column[name][row]) for name in ("strikes", "quarantined_until_ms"))
            assert (strikes, until_ms) == ((kept.strikes, kept.quarantined_until_ms) if kept else (0, 0))

    @invariant()
    def leases_and_sums_agree_with_the_ledger(self) -> None:
        open_leases = {(name, chunk) for name, progress in self.core.jobs.items() for chunk in progress.leases}
        assert open_leases == self.memory.leases.keys()
        assert int(self.core.fleet.live("leases").sum()) == len(open_leases)
        assert all(backlog >= 0 for backlog in self.core.fleet.live("backlog_ms"))
        for name, progress in self.core.jobs.items():
            assert self.memory.sums[name] == [progress.compute_us, progress.energy_mwh, progress.pay_micro]
        for vehicle, sums in self.memory.vehicles.items():
            row = self.core.fleet.row(vehicle)
            assert sums == [self.core.fleet.column[sum_][row] for sum_ in ("rows_done", "energy_mwh", "pay_micro")]


TestCore = CoreMachine.TestCase
TestCore.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
