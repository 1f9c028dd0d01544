"""What a ledger would remember, kept in the plainest way, and what must hold of every write. Its answers are an oracle.

It stores nothing durably and knows no SQL: the real ledgers must agree with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from coordinator.adapters.ledger_rows import merged
from coordinator.commands import (
    AddAnswer,
    AddConsent,
    AddFailedRow,
    AddJob,
    AddModel,
    AddRows,
    EndJob,
    EndLease,
    GrantLease,
    KeepChecks,
    KeepConduct,
    LedgerWrite,
    VoidAnswers,
)
from coordinator.model import (
    REFEREE,
    AcceptedRows,
    Answer,
    Check,
    FailedRow,
    Job,
    JobState,
    LeaseRecord,
    Model,
    Piece,
    ReceiptPart,
    Rest,
    VehicleConduct,
)
from coordinator.payloads import decode_payload
from coordinator.ports import LedgerJob, LedgerSnapshot, VehicleSums
from coordinator.rules.pay import paid
from fleet_wire.policy import OwnerPolicy
from fleet_wire.tensors import Array


class Sums(NamedTuple):
    rows: int = 0
    compute_us: int = 0
    energy_mwh: int = 0
    pay_micro: int = 0

    def plus(self, part: ReceiptPart) -> "Sums":
        pay = part.energy_pay_micro + part.fee_pay_micro
        return Sums(
            self.rows + part.rows,
            self.compute_us + part.compute_us,
            self.energy_mwh + part.energy_mwh,
            self.pay_micro + pay,
        )


@dataclass
class PlainJob:
    job: Job
    ended: JobState | None = None
    done: list[int] = field(default_factory=list)
    failed: dict[int, FailedRow] = field(default_factory=dict)
    granted: dict[int, LeaseRecord] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)
    rows_of: dict[int, int] = field(default_factory=dict)  # accepted rows by chunk
    released: int = 0
    sums: Sums = field(default_factory=Sums)
    rests: dict[str, Rest] = field(default_factory=dict)
    worked: dict[str, tuple[int, int]] = field(default_factory=dict)
    # Of a verified job: by row, which answer it counts by, what clients have, and what was answered.
    answers: list[Answer] = field(default_factory=list)
    void: set[int] = field(default_factory=set)
    checks: dict[int, Check] = field(default_factory=dict)
    accepted: list[tuple[int, int, int | None]] = field(default_factory=list)
    shown: dict[int, int] = field(default_factory=dict)
    values: dict[int, Array] = field(default_factory=dict)
    voices: dict[int, dict[int, Array]] = field(default_factory=dict)

    def slots_of(self, answer: Answer) -> list[int]:
        return _spread(answer.pieces)

    def standing(self, row: int) -> set[str]:
        """Who has answered a row, and was not convicted since; the coordinator is one of them."""
        return {self.answers[number].vehicle for number in self.voices.get(row, {}).keys() - self.void}

    def unconfirmed(self, vehicle: str, conduct: Mapping[str, VehicleConduct]) -> int:
        """How many rows count by the word of this vehicle, and by nobody's who was not convicted since."""
        valid = {answer.number: answer for answer in self.answers if answer.number not in self.void}
        own = {number for number, answer in valid.items() if answer.vehicle == vehicle}
        doubted = {
            number
            for number, answer in valid.items()
            if (kept := conduct.get(answer.vehicle)) and kept.convictions and kept.convicted_ms >= answer.received_ms
        }
        believed = valid.keys() - own - doubted
        return sum(number in own and not self.voices[row].keys() & believed for row, number in self.shown.items())

    @property
    def leases(self) -> list[LeaseRecord]:
        return [self.granted[chunk] for chunk in sorted(self.open)]

    @property
    def copied(self) -> int:
        return _rows(lease for lease in self.granted.values() if lease.copy_of is not None)

    def seen(self, car: str) -> int:
        return _rows(lease for lease in self.granted.values() if lease.vehicle == car)

    def add(self, part: ReceiptPart) -> None:
        lease = part.lease
        assert self.granted[lease.chunk] == lease
        self.sums = self.sums.plus(part)
        self.rows_of[lease.chunk] = self.rows_of.get(lease.chunk, 0) + part.rows
        assert self.rows_of[lease.chunk] <= lease.stop - lease.start
        if part.compute_us:
            since_ms, us = self.worked.get(lease.vehicle, (lease.granted_ms, 0))
            self.worked[lease.vehicle] = min(since_ms, lease.granted_ms), us + part.compute_us
        before = self.rests.get(lease.vehicle, Rest())
        self.rests[lease.vehicle] = paid(part.energy_mwh, part.compute_us, lease, before)[2]

    def as_kept(self) -> LedgerJob:
        return LedgerJob(
            job=self.job,
            done=() if self.job.terms.is_verified else merged((row, row + 1) for row in self.done),
            leases=tuple(self.leases),
            next_chunk=max(self.granted, default=-1) + 1,
            rows_released_again=self.released,
            compute_us=self.sums.compute_us,
            energy_mwh=self.sums.energy_mwh,
            pay_micro=self.sums.pay_micro,
            rests=tuple(sorted(self.rests.items())),
            failed=tuple(self.failed[row] for row in sorted(self.failed)),
            rows_copied=self.copied,
            seen=tuple((car, self.seen(car)) for car in sorted({lease.vehicle for lease in self.granted.values()})),
            worked=tuple((car, *self.worked[car]) for car in sorted(self.worked)),
            ended=tuple(self.granted[chunk] for chunk in sorted(self.granted.keys() - self.open, reverse=True)),
            accepted=tuple(self.accepted),
            answers=tuple(answer for answer in self.answers if answer.number not in self.void),
            next_answer=len(self.answers),
            checks=tuple(sorted(self.checks.items())),
        )


@dataclass
class PlainLedger:
    jobs: dict[str, PlainJob] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    vehicles: dict[str, Sums] = field(default_factory=dict)
    conduct: dict[str, VehicleConduct] = field(default_factory=dict)
    policies: dict[str, OwnerPolicy] = field(default_factory=dict)
    seq: int = 0
    writes: int = 0

    @property
    def running(self) -> dict[str, PlainJob]:
        return {name: each for name, each in self.jobs.items() if each.ended is None}

    def keep(self, writes: Iterable[LedgerWrite]) -> None:  # noqa: C901 - one case a write
        for write in writes:
            self.writes += 1
            match write:
                case AddModel(model):
                    self.models[model.digest] = model
                case AddConsent(vehicle, policy):
                    assert policy.version > getattr(self.policies.get(vehicle), "version", 0)
                    self.policies[vehicle] = policy
                case AddJob(job):
                    assert job.id not in self.jobs
                    self.jobs[job.id] = PlainJob(job)
                case GrantLease(lease):
                    kept = self.still_running(lease.job)
                    assert lease.chunk not in kept.granted
                    kept.granted[lease.chunk] = lease
                    kept.open.add(lease.chunk)
                case EndLease(job, chunk, _, back):
                    kept = self.still_running(job)
                    kept.open.remove(chunk)
                    kept.released += back
                case AddRows(rows, parts) if self.jobs[rows.job].job.terms.is_verified:
                    assert not parts
                    self._show(rows)
                case AddRows():
                    self._add_rows(write)
                case AddAnswer(answer, parts):
                    self._answered(answer, parts)
                case VoidAnswers(job, vehicle):
                    kept = self.still_running(job)
                    kept.void |= {answer.number for answer in kept.answers if answer.vehicle == vehicle}
                case KeepChecks(job, rows, check):
                    self.still_running(job).checks |= dict.fromkeys(rows, check)
                case AddFailedRow(job, row):
                    kept = self.still_running(job)
                    assert row.row not in kept.done
                    assert row.row not in kept.failed
                    kept.failed[row.row] = row
                case KeepConduct(conduct):
                    self.conduct[conduct.vehicle] = conduct
                case EndJob(job, state, _, error):
                    kept = self.still_running(job)
                    assert not kept.open
                    assert (state is JobState.FAILED) == (error is not None)
                    if state is JobState.DONE:
                        assert sorted(kept.done) == list(range(kept.job.rows))
                        assert not any(kept.checks.values()), "a job ended before all was checked"
                    kept.ended = state

    def _add_rows(self, write: AddRows) -> None:
        rows = write.rows
        kept = self.still_running(rows.job)
        assert rows.seq == self.seq + 1
        self.seq = rows.seq
        fresh = [row for piece in rows.pieces for row in range(piece.start, piece.stop)]
        assert fresh
        assert len(set(fresh)) == len(fresh)
        assert not set(fresh) & set(kept.done), "a row was kept twice"
        assert not set(fresh) & kept.failed.keys(), "a row that was given up was kept"
        kept.done += fresh
        assert sum(part.rows for part in write.parts) == len(fresh)
        for part in write.parts:
            assert part.lease.vehicle == rows.vehicle
        self.pay(write.parts)

    def _answered(self, answer: Answer, parts: tuple[ReceiptPart, ...]) -> None:
        kept = self.still_running(answer.job)
        assert answer.number == len(kept.answers)
        kept.answers.append(answer)
        slots, values = kept.slots_of(answer), decode_payload(answer.payload)["y"]
        assert slots
        assert len(set(slots)) == len(slots)
        assert sum(part.rows for part in parts) == (0 if answer.vehicle == REFEREE else len(slots))
        for piece in answer.pieces:
            for place, slot in enumerate(range(piece.start, piece.stop), piece.offset):
                row = slot % kept.job.rows
                assert answer.vehicle not in kept.standing(row), "a car has two opinions of a row"
                kept.voices.setdefault(row, {})[answer.number] = values[place]
        self.pay(parts)

    def _show(self, entry: AcceptedRows) -> None:
        """Rows of a verified job reach the client, or are taken back."""
        kept = self.still_running(entry.job)
        assert entry.seq == self.seq + 1
        self.seq = entry.seq
        values = {} if entry.answer is None else decode_payload(kept.answers[entry.answer].payload)
        for piece in entry.pieces:
            kept.accepted.append((piece.start, piece.stop, entry.answer))
            for place, row in enumerate(range(piece.start, piece.stop), piece.offset):
                assert (row in kept.shown) == entry.retracted, "a row came twice, or went without having come"
                assert row not in kept.failed
                if entry.answer is None:
                    del kept.shown[row], kept.values[row]
                    kept.done.remove(row)
                else:
                    assert entry.answer in kept.voices[row].keys() - kept.void
                    kept.shown[row], kept.values[row] = entry.answer, values["y"][place]
                    kept.done.append(row)

    def pay(self, parts: Iterable[ReceiptPart]) -> None:
        """Add to the receipts of leases, and to the sums of their jobs and vehicles."""
        for part in parts:
            vehicle = part.lease.vehicle
            self.jobs[part.lease.job].add(part)
            self.vehicles[vehicle] = self.vehicles.get(vehicle, Sums()).plus(part)

    def still_running(self, job: str) -> PlainJob:
        kept = self.jobs[job]
        assert kept.ended is None, "a job that has ended was changed"
        return kept

    def snapshot(self) -> LedgerSnapshot:
        """The same as a real ledger's `load`, in its order."""
        running = sorted(self.running.values(), key=lambda kept: (kept.job.created_ms, kept.job.id))
        return LedgerSnapshot(
            models=tuple(self.models[digest] for digest in sorted(self.models)),
            running=tuple(kept.as_kept() for kept in running),
            next_seq=self.seq + 1,
            vehicles=tuple(
                VehicleSums(car, sums.rows, sums.energy_mwh, sums.pay_micro)
                for car, sums in sorted(self.vehicles.items())
            ),
            conduct=tuple(self.conduct[car] for car in sorted(self.conduct)),
            policies=tuple((car, self.policies[car]) for car in sorted(self.policies)),
        )


def _spread(pieces: Iterable[Piece]) -> list[int]:
    return [slot for piece in pieces for slot in range(piece.start, piece.stop)]


def _rows(leases: Iterable[LeaseRecord]) -> int:
    return sum(lease.stop - lease.start for lease in leases)
