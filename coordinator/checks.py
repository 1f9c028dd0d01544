"""What is known of the rows of one verified job: who answered them, what they wait for, and what counts. Only keeps.

Whatever depends on time or on a car's record is decided by `coordinator.verifying`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordinator.commands import KeepChecks
from coordinator.model import REFEREE, Answer, Check, FailedRow, Job, LeaseRecord, Piece
from coordinator.payloads import decode_payload
from coordinator.progress import JobProgress, layers_of
from coordinator.rules.verification import agreement
from fleet_wire.tensors import Array

__all__ = ["ALONE", "AUDIT", "DECIDED", "JobChecks", "Mask", "Places", "Rows", "distinct"]

_MOST_OPEN = 256  # checks of one car's rows, before it gets no others: what is kept in memory until they are decided

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

# Arrays are slow to compare with members of an enumeration.
DECIDED, AUDIT, ALONE = int(Check.DECIDED), int(Check.AUDIT), int(Check.REFEREE_ALONE)


@dataclass(frozen=True, slots=True)
class Places:
    """Where rows of a job lie in its answers: the number of each one's answer, and its row there."""

    numbers: NDArray[np.int32]
    offsets: NDArray[np.int32]

    def __getitem__(self, which: Mask) -> "Places":
        return Places(self.numbers[which], self.offsets[which])


@dataclass(slots=True)
class _Kept:
    """An answer; its outputs only while its rows may still be compared."""

    vehicle: str
    engine: str
    slots: Rows
    outputs: dict[str, Array] | None
    held: bool


@dataclass(slots=True)
class JobChecks:
    """By row: `source` is the number of the answer that counts, or -1, `known` the coordinator's own, or -1; `checked`
    says whether a check was decided, and none is open.

    `answer` and `offset` are by layer and row. `audits` says when each audit that is open was opened, the oldest first;
    `to_ask` and `asked` are rows that the coordinator is to compute itself, and when it was asked to.
    """

    job: Job
    source: NDArray[np.int32]
    given_up: Mask
    checked: Mask
    check: NDArray[np.int8]
    answer: NDArray[np.int32]
    offset: NDArray[np.int32]
    known: NDArray[np.int32]
    known_offset: NDArray[np.int32]
    progress: JobProgress = field(init=False)
    answers: dict[int, _Kept] = field(default_factory=dict)
    next_number: int = 0
    audits: dict[int, int] = field(default_factory=dict)
    to_ask: dict[int, None] = field(default_factory=dict)
    asked: dict[int, int] = field(default_factory=dict)
    checks_open: int = 0
    rows_retracted: int = 0
    _names: list[str] = field(default_factory=list)
    _open_of: list[int] = field(default_factory=list)

    @classmethod
    def blank(cls, job: Job) -> "JobChecks":
        """Nothing is known."""
        shape = (layers_of(job), job.rows)
        return cls(
            job=job,
            source=np.full(job.rows, -1, dtype=np.int32),
            given_up=np.zeros(job.rows, dtype=np.bool_),
            checked=np.zeros(job.rows, dtype=np.bool_),
            check=np.zeros(job.rows, dtype=np.int8),
            answer=np.full(shape, -1, dtype=np.int32),
            offset=np.zeros(shape, dtype=np.int32),
            known=np.full(job.rows, -1, dtype=np.int32),
            known_offset=np.zeros(job.rows, dtype=np.int32),
        )

    @classmethod
    def fresh(cls, progress: JobProgress) -> "JobChecks":
        """A job that begins."""
        checks = cls.blank(progress.job)
        checks.progress = progress
        return checks

    @classmethod
    def restored(
        cls,
        job: Job,
        accepted: Iterable[tuple[int, int, int | None]],
        failed: Sequence[FailedRow],
        checks: Iterable[tuple[int, Check]],
        answers: Iterable[Answer],
        leases: Iterable[LeaseRecord],
        now_ms: int,
    ) -> "JobChecks":
        """What a ledger remembers. `accepted` are ranges of rows in order, and whose they are; None retracts them."""
        self = cls.blank(job)
        for start, stop, number in accepted:
            self.source[start:stop] = -1 if number is None else number
            self.rows_retracted += stop - start if number is None else 0
        self.given_up[[row.row for row in failed]] = True
        for row, check in checks:
            self.check[row] = check
            if check is Check.AUDIT:
                self.audits[row] = now_ms
            elif check is not Check.DECIDED:
                self.to_ask[row] = None
            else:
                self.checked[row] = True
        kept = list(answers)
        for each in kept:
            self._place(each)
        self.checks_open = int(np.count_nonzero(self.check))
        settled = ~self.needed(np.arange(job.rows)).reshape(-1)
        self.progress = JobProgress.restored(job, (), leases, 0.0, failed, settled)
        self.progress.rows_done = int(np.count_nonzero(self.source >= 0))
        for each in kept:
            if each.vehicle != REFEREE:
                self._attribute(each.number)
        for number in list(self.answers):
            rows = self.rows_of(number)
            self.answers[number].held &= bool(np.any((self.source[rows] < 0) & ~self.given_up[rows]))
        self.forget(self.answers)
        return self

    # Answers --------------------------------------------------------------------------------------------------------

    def add(self, answer: Answer) -> None:
        """Take an answer in; its slots are settled already."""
        self._place(answer)
        if answer.vehicle != REFEREE:
            self._attribute(answer.number)

    def _place(self, answer: Answer) -> None:
        slots = _spread(answer.pieces)
        offsets = np.concatenate(
            [np.arange(each.offset, each.offset + each.stop - each.start) for each in answer.pieces]
        )
        outputs = decode_payload(answer.payload)
        self.answers[answer.number] = _Kept(answer.vehicle, answer.engine, slots, outputs, answer.held)
        self.next_number = max(self.next_number, answer.number + 1)
        if answer.vehicle == REFEREE:
            self.known[slots], self.known_offset[slots] = answer.number, offsets
        else:
            self.answer.reshape(-1)[slots] = answer.number
            self.offset.reshape(-1)[slots] = offsets

    def _attribute(self, number: int) -> None:
        kept, cars = self.answers[number], self.progress.cars
        car = cars.setdefault(kept.vehicle, len(cars))
        if car == len(self._names):
            self._names.append(kept.vehicle)
            self._open_of.append(0)
        self.progress.answered[kept.slots] = car
        own = kept.slots[kept.slots < self.job.rows]
        self._count(own[self.check[own] > 0], 1)

    def rows_of(self, number: int) -> Rows:
        """Rows that an answer of a car, not void, has in the first layer."""
        slots = self.answers[number].slots
        return slots[slots < self.job.rows]

    def void(self, vehicle: str) -> Rows:
        """Take all answers of a vehicle back; the rows that it had answered."""
        car = self.progress.cars.get(vehicle)
        if car is None:
            return np.zeros(0, dtype=np.int64)
        slots = np.flatnonzero(self.progress.answered == car)
        self.progress.answered[slots] = -1
        self.answer.reshape(-1)[slots] = -1
        self.answers = {number: kept for number, kept in self.answers.items() if kept.vehicle != vehicle}
        self._open_of[car] = 0
        self.progress.paused.discard(vehicle)
        return np.unique(slots % self.job.rows)

    def places(self, layer: int, rows: Rows) -> Places:
        """Answers of a layer."""
        return Places(self.answer[layer, rows], self.offset[layer, rows])

    def known_places(self, rows: Rows) -> Places:
        """The coordinator's own answers."""
        return Places(self.known[rows], self.known_offset[rows])

    def agree(self, ours: Places, theirs: Places) -> Mask:
        """Row by row, whether two answers say the same."""
        same = np.zeros(len(ours.numbers), dtype=np.bool_)
        pairs = ours.numbers.astype(np.int64) << 32 | theirs.numbers
        for pair in distinct(pairs):
            which = pairs == pair
            one, other = self.answers[pair >> 32], self.answers[pair & 0xFFFFFFFF]
            assert one.outputs is not None
            assert other.outputs is not None
            same[which] = agreement(
                {name: values[ours.offsets[which]] for name, values in one.outputs.items()},
                {name: values[theirs.offsets[which]] for name, values in other.outputs.items()},
                self.job.terms.verification.tolerances,
                same_class=one.engine == other.engine,
            )
        return same

    def forget(self, numbers: Iterable[int]) -> None:
        """Let go of the outputs of those answers of cars of which no row may be compared any more."""
        for number in numbers:
            kept = self.answers.get(number)
            if kept is None or kept.vehicle == REFEREE or kept.outputs is None or kept.held:
                continue
            rows = kept.slots % self.job.rows
            if not np.any((self.check[rows] > 0) | ((self.source[rows] < 0) & ~self.given_up[rows])):
                kept.outputs = None

    # Rows -----------------------------------------------------------------------------------------------------------

    def needed(self, rows: Rows) -> Mask:
        """Which slots of these rows cars have still to compute; shape [layers, rows]."""
        free: Mask = self.answer[:, rows] < 0
        check = self.check[rows]
        open_rows = (self.source[rows] < 0) & ~self.given_up[rows] & (check != ALONE)
        if self.job.terms.verification.rule != "adaptive":
            free &= open_rows
            return free
        free[0] &= open_rows
        free[1] &= check == AUDIT
        return free

    def sync(self, rows: Rows) -> bool:
        """Open and close slots as their rows need it; whether that closed any, so that leases may be complete."""
        slots = (np.arange(len(self.answer), dtype=np.int64)[:, None] * self.job.rows + rows).reshape(-1)
        needed, settled = self.needed(rows).reshape(-1), self.progress.settled[slots]
        again, over = slots[needed & settled], slots[~needed & ~settled]
        if len(over):
            self.progress.close(over)
        if len(again):
            self.progress.reopen(np.sort(again))
        return bool(len(over))

    def set_checks(self, rows: Rows, check: Check, now_ms: int) -> list[KeepChecks]:
        """Let rows wait for something else; of those that do already nothing is said."""
        rows = rows[self.check[rows] != int(check)]
        if not len(rows):
            return []
        was_open = self.check[rows] > 0
        self.check[rows] = check
        self.checked[rows] = check is Check.DECIDED
        if check is Check.DECIDED:
            self.checks_open -= len(rows)
            self._count(rows, -1)
        else:
            self.checks_open += int(np.count_nonzero(~was_open))
            self._count(rows[~was_open], 1)
        listed = rows.tolist()
        for row in listed:
            self.audits.pop(row, None)
            if check is Check.AUDIT:
                self.audits[row] = now_ms
            elif check is Check.DECIDED:
                self.to_ask.pop(row, None)
                self.asked.pop(row, None)
            elif row not in self.asked:
                self.to_ask[row] = None
        return [KeepChecks(self.job.id, tuple(listed), check)]

    def _count(self, rows: Rows, by: int) -> None:
        """Keep how many checks are open of what each car has answered in the first layer."""
        paused = self.progress.paused
        for car, count in Counter(self.progress.answered[rows].tolist()).items():
            if car >= 0:
                self._open_of[car] += by * count
                (paused.add if self._open_of[car] >= _MOST_OPEN else paused.discard)(self._names[car])

    @property
    def rows_checked(self) -> int:
        """Rows of which a check was decided, and none is open."""
        return int(np.count_nonzero(self.checked))

    @property
    def decided(self) -> bool:
        """Whether every row counts or was given up, and no check is open."""
        return not self.checks_open and self.progress.rows_done + len(self.progress.failed) == self.job.rows

    @property
    def rows_held(self) -> int:
        """Rows that were answered and do not count yet."""
        return int(np.count_nonzero((self.answer >= 0).any(axis=0) & (self.source < 0) & ~self.given_up))


def distinct(numbers: NDArray[np.int32] | NDArray[np.int64]) -> list[int]:
    """Each number once, in order; of a few hundred this is faster than numpy's way."""
    return sorted(set(numbers.ravel().tolist()))


def _spread(pieces: Iterable[Piece]) -> Rows:
    return np.concatenate([np.arange(each.start, each.stop, dtype=np.int64) for each in pieces])
