"""The core under any order of events: rows are done once, leased once, and none is lost; a restart changes nothing."""

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.commands import AddJob, AddModel, AddRows, Command, EndJob, EndLease, GrantLease, SendTask
from coordinator.core import Core, CorePolicy
from coordinator.events import JobSubmitted, ModelAdded, RowsFailed, TaskRefused, TaskUndelivered, Tick, VehicleState
from coordinator.model import Job, JobState, LeaseRecord, ReceiptPart, Rest
from coordinator.ports import LedgerJob, LedgerSnapshot, VehicleSums
from coordinator.rules.pay import paid
from coordinator.rules.sizing import SizingLimits
from fleet_wire.messages import Failure, Refusal, RefusalReason, Span, State
from tests.unit.coordinator_scenes import MODEL, arrival, job, rows_of

CARS = ("car-1", "car-2", "car-3")
ROWS = 40


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
    vehicles: dict[str, list[int]] = field(default_factory=dict)
    seq: int = 0

    def keep(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case AddJob(new):
                    self.jobs[new.id] = new
                    self.done[new.id] = []
                    self.sums[new.id] = [0, 0, 0]
                    self.rests[new.id] = {}
                case GrantLease(lease):
                    assert (lease.job, lease.chunk) not in self.leases
                    assert lease.chunk >= self.chunks.get(lease.job, 0)
                    self.chunks[lease.job] = lease.chunk + 1
                    self.leases[lease.job, lease.chunk] = lease
                case EndLease(ended_job, chunk, _, back, _):
                    del self.leases[ended_job, chunk]
                    self.released[ended_job] = self.released.get(ended_job, 0) + back
                case AddRows(rows, parts):
                    assert rows.seq == self.seq + 1
                    self.seq = rows.seq
                    fresh = [row for piece in rows.pieces for row in range(piece.start, piece.stop)]
                    assert not set(fresh) & set(self.done[rows.job]), "a row was kept twice"
                    self.done[rows.job] += fresh
                    assert sum(part.rows for part in parts) == len(fresh)
                    self._add(parts)
                case EndJob(ended, state):
                    self.ended[ended] = state
                    if state is JobState.DONE:
                        assert sorted(self.done[ended]) == list(range(self.jobs[ended].rows))

    def _add(self, parts: tuple[ReceiptPart, ...]) -> None:
        for part in parts:
            job, vehicle = part.lease.job, part.lease.vehicle
            pay = part.energy_pay_micro + part.fee_pay_micro
            for place, value in enumerate((part.compute_us, part.energy_mwh, pay)):
                self.sums[job][place] += value
            for place, value in enumerate((part.rows, part.energy_mwh, pay)):
                self.vehicles.setdefault(vehicle, [0, 0, 0])[place] += value
            before = self.rests[job].get(vehicle, Rest())
            self.rests[job][vehicle] = paid(part.energy_mwh, part.compute_us, part.lease, before)[2]

    def snapshot(self) -> LedgerSnapshot:
        running = tuple(self._running(name) for name in self._open())
        vehicles = tuple(VehicleSums(vehicle, *sums) for vehicle, sums in self.vehicles.items())
        return LedgerSnapshot((MODEL,), running, self.seq + 1, vehicles)

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
        )


class CoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.policy = CorePolicy(sizing=SizingLimits(probe_rows=3, lease_floor_ms=500, lease_factor=1), back_off_ms=5)
        self.core = Core(self.policy)
        self.memory = Memory()
        self.now_ms = 0
        self.epochs = dict.fromkeys(CARS, 0)
        self.sent: list[LeaseRecord] = []
        self.submitted = 0
        self.feed(ModelAdded(MODEL))

    def feed(self, event: object) -> None:
        self.now_ms += 1
        commands = self.core.handle(event, self.now_ms)  # type: ignore[arg-type]
        commands += self.core.assign(self.now_ms)
        self.memory.keep([command for command in commands if not isinstance(command, AddModel)])
        self.sent += [lease for command in commands if isinstance(command, SendTask) for lease in command.leases]

    @precondition(lambda self: self.submitted < 3)
    @rule(chunk_rows=st.sampled_from([None, 1, 7]), attempts=st.integers(1, 3))
    def submit(self, chunk_rows: int | None, attempts: int) -> None:
        self.submitted += 1
        self.feed(JobSubmitted(job(f"j{self.submitted}", ROWS, chunk_rows=chunk_rows, max_attempts=attempts)))

    @rule(car=st.sampled_from(CARS))
    def arrive(self, car: str) -> None:
        self.epochs[car] += 1
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
        row = data.draw(st.integers(lease.start, lease.stop - 1))
        self.feed(RowsFailed(lease.vehicle, Failure(lease.job, 1, [Span(lease.chunk, row, row + 1)], "no")))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def lose_task(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.sent))
        self.feed(TaskUndelivered(lease.vehicle, lease.job, (lease.chunk,)))

    @rule(pass_ms=st.integers(0, 3_000))
    def tick(self, pass_ms: int) -> None:
        self.now_ms += pass_ms
        self.feed(Tick())

    @rule()
    def restart(self) -> None:
        before = self.core
        self.core = Core(self.policy)
        self.core.restore(self.memory.snapshot(), self.now_ms)
        assert self.core.next_seq == before.next_seq
        for name, progress in self.core.jobs.items():
            known = before.jobs[name]
            assert progress.done.tolist() == known.done.tolist()
            assert progress.leases.keys() == known.leases.keys()
            assert (progress.next_chunk, progress.pay_micro) == (known.next_chunk, known.pay_micro)
            assert (progress.compute_us, progress.rests) == (known.compute_us, known.rests)
            assert progress.rows_released_again == known.rows_released_again
        self.sent = [lease for lease in self.sent if (lease.job, lease.chunk) in self.memory.leases]
        for car, epoch in self.epochs.items():
            if before.fleet.column["online"][before.fleet.row(car)]:
                for event in arrival(car, epoch, now_ms=self.now_ms):
                    self.feed(event)

    @invariant()
    def every_row_is_done_or_leased_or_free(self) -> None:
        assert self.core.jobs.keys() == {name for name in self.memory.jobs if name not in self.memory.ended}
        for name, progress in self.core.jobs.items():
            assert sorted(self.memory.done[name]) == [row for row in range(ROWS) if progress.done[row]]
            records = [lease.record for lease in progress.leases.values()]
            leased = [row for record in records for row in range(record.start, record.stop)]
            assert len(leased) == len(set(leased)) == progress.rows_leased
            free = [row for start, stop in progress.free for row in range(start, stop) if not progress.done[row]]
            assert len(free) == len(set(free))
            assert not set(free) & set(leased)
            assert set(free) | set(leased) | {row for row in range(ROWS) if progress.done[row]} == set(range(ROWS))

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
