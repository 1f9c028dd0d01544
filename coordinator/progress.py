"""Which rows of one job are done, given up, leased or free. Pure bookkeeping in intervals and one flag a row.

Every row is settled (done, or given up because it fails everywhere), or lies under exactly one open lease and perhaps
under one copy of that lease, or is free. Rows that arrive late for a lease that has ended may be free or under another
car's lease by then: they count as done at once, and what comes after is a duplicate. Decides nothing.

A job whose rows several cars compute has its rows several times, in layers: what is leased, sent and answered are
slots, and slot = layer * rows + row. A chunk lies in one layer, and no car gets two slots of one row. Any other job has
one layer, and a slot is a row.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.model import FailedRow, Job, LeaseRecord, Piece, Rest
from fleet_wire.messages import Span

__all__ = ["Charge", "JobProgress", "OpenLease", "OthersLeft", "Range", "Taking", "layers_of", "row_range"]

_MOST_CHARGES = 255
_WINDOW = 4096  # slots that are looked at together for a car's own
_BLOCK_ROWS = 1024  # of a job that needs a quorum: the next is given when this one is in all layers

Range = tuple[int, int]
OthersLeft = Callable[[Collection[str]], bool]


class OpenLease(msgspec.Struct, gc=False):
    """A lease in force; `row_ms` is what a row was expected to take, `expected_ms` when all should be computed.

    `copy` is the chunk of the open lease that repeats rows of this one elsewhere, `original` the one that this repeats.
    """

    record: LeaseRecord
    row_ms: float
    expected_ms: float
    copy: int | None = None
    original: int | None = None

    @property
    def rows(self) -> int:
        """Rows of the chunk, settled or not."""
        return self.record.stop - self.record.start


@dataclass(frozen=True, slots=True)
class Charge:
    """Rows failed at a vehicle. Whether that speaks against it shows when others have tried them."""

    vehicle: str
    start: int
    stop: int


@dataclass(slots=True)
class JobProgress:
    """The changing side of a job. `suspects` are slots that failed, and at which cars; `alone` by themselves.

    `left` counts slots that are not settled; `rows_done` rows that reach the client, which whoever accepts them counts.
    Only where rows are verified: `answered` says whose the answer in each slot is, by the number of the car, or -1, and
    `covered` by how many open leases it lies.
    `paused` are cars that get no more rows of the first layer for now.
    `rows_lost` of the free rows, the first, were with cars that are gone: they have waited long enough.
    """

    job: Job
    settled: NDArray[np.bool_]
    free: deque[Range]
    layers: int = 1
    answered: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    covered: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, dtype=np.int8))
    cars: dict[str, int] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    left: int = 0
    rows_free: int = 0
    rows_done: int = 0
    rows_leased: int = 0
    rows_lost: int = 0
    rows_duplicate: int = 0
    rows_released_again: int = 0
    rows_copied: int = 0
    next_chunk: int = 0
    leases: dict[int, OpenLease] = field(default_factory=dict)
    granted: dict[int, LeaseRecord] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    suspects: dict[int, list[str]] = field(default_factory=dict)
    alone: dict[int, list[str]] = field(default_factory=dict)
    charges: list[Charge] = field(default_factory=list)
    failed: dict[int, FailedRow] = field(default_factory=dict)
    compute_us: int = 0
    energy_mwh: int = 0
    pay_micro: int = 0
    rests: dict[str, Rest] = field(default_factory=dict)
    has_settled_free: bool = False
    _chunks: dict[str, set[int]] = field(default_factory=dict)

    @classmethod
    def fresh(cls, job: Job) -> "JobProgress":
        """All rows free, in all layers that are open from the start."""
        settled = np.zeros(layers_of(job) * job.rows, dtype=np.bool_)
        if job.terms.verification.rule == "adaptive":
            settled[job.rows :] = True
        return cls._of(job, settled)

    @classmethod
    def restored(
        cls,
        job: Job,
        done: Iterable[Range],
        leases: Iterable[LeaseRecord],
        row_ms: float,
        failed: Iterable[FailedRow] = (),
        settled: NDArray[np.bool_] | None = None,
    ) -> "JobProgress":
        """What a ledger remembers: `done` ranges, rows given up, open leases by chunk, and everything else free.

        Where rows are verified, `settled` says which slots are neither free nor leased.
        """
        is_done = np.zeros(job.rows, dtype=np.bool_)
        for start, stop in done:
            is_done[start:stop] = True
        given_up = {row.row: row for row in failed}
        if settled is None:
            settled = is_done.copy()
            settled[list(given_up)] = True
        progress = cls._of(job, settled, leases, row_ms)
        progress.rows_done = int(np.count_nonzero(is_done))
        progress.failed = given_up
        return progress

    @classmethod
    def _of(
        cls, job: Job, settled: NDArray[np.bool_], leases: Iterable[LeaseRecord] = (), row_ms: float = 0.0
    ) -> "JobProgress":
        progress = cls(job, settled, deque(), len(settled) // job.rows)
        if job.terms.is_verified:
            progress.answered = np.full(len(settled), -1, dtype=np.int32)
            progress.covered = np.zeros(len(settled), dtype=np.int8)
        progress.left = len(settled) - int(np.count_nonzero(settled))
        taken = settled.copy()
        for record in leases:
            progress._open(record, row_ms, float(record.deadline_ms))
            taken[record.start : record.stop] = True
        progress.free.extend(progress._runs(taken))
        progress.rows_free = len(taken) - int(np.count_nonzero(taken))
        return progress

    def _runs(self, taken: NDArray[np.bool_]) -> Iterator[Range]:
        """Runs of free slots in the order in which they are to be given: what a row still lacks comes first."""
        rows = self.job.rows
        block = max(_BLOCK_ROWS, rows // 64) if self.job.terms.verification.rule == "quorum" else rows
        for first in range(0, rows, block):
            for layer in reversed(range(self.layers)):
                start = layer * rows + first
                yield from _gaps(taken[start : start + min(block, rows - first)], start)

    @property
    def is_verified(self) -> bool:
        """Whether answers must be verified before their rows count."""
        return self.job.terms.is_verified

    def taking(self, vehicle: str, others_left: OthersLeft) -> "Taking":
        """What takes chunks for a vehicle, within a `with`; they are to be granted before anybody takes others.

        Rows that have failed at this vehicle before, or by themselves, are left to the others, while `others_left` says
        that some car may work that is not among those where they failed so.
        """
        return Taking(self, vehicle, others_left)

    def count_taken(self, rows: int) -> None:
        """These rows are free no more."""
        self.rows_free -= rows
        self.rows_lost = max(0, self.rows_lost - rows)

    def has_of(self, vehicle: str, start: int, stop: int) -> bool:
        """Whether a vehicle has a slot, in whatever layer, of the rows of these slots; not asked for one layer."""
        return self.layers > 1 and bool(self.own(vehicle, start, stop, self.leased_to(vehicle)).any())

    def leased_to(self, vehicle: str) -> NDArray[np.bool_]:
        """Of which rows a vehicle holds a slot; only where rows are verified."""
        leased, rows = np.zeros(self.job.rows, dtype=np.bool_), self.job.rows
        for chunk in self._chunks.get(vehicle, ()):
            record = self.leases[chunk].record
            leased[record.start % rows : record.start % rows + record.stop - record.start] = True
        return leased

    def answered_by(self, slot: int) -> list[str]:
        """Vehicles whose answers to the row of this slot are known: they get no other slot of it."""
        if self.layers == 1:
            return []
        names = list(self.cars)
        return [names[car] for car in self.answered[slot % self.job.rows :: self.job.rows].tolist() if car >= 0]

    def answers_twice(self, vehicle: str, spans: Sequence[Span]) -> bool:
        """Whether with these slots a vehicle would have answered two of one row."""
        rows, number = self.job.rows, self.cars.get(vehicle)
        planes = self.answered.reshape(self.layers, rows)
        counted = np.zeros(rows, dtype=np.bool_)
        for span in spans if self.layers > 1 else ():
            layer, first = divmod(span.start, rows)
            part = slice(first, first + span.stop - span.start)
            others = np.delete(planes[:, part], layer, axis=0)
            if (number is not None and (others == number).any()) or counted[part].any():
                return True
            counted[part] = len(spans) > 1
        return False

    def own(self, vehicle: str, start: int, stop: int, leased: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of which rows of these slots, all of one layer, a vehicle has answered a slot, or has it in `leased`."""
        rows = self.job.rows
        first, last = start % rows, start % rows + stop - start
        own = leased[first:last].copy()
        number = self.cars.get(vehicle)
        if number is not None:
            own |= (self.answered.reshape(self.layers, rows)[:, first:last] == number).any(axis=0)
        return own

    def grant(self, records: Sequence[LeaseRecord], row_ms: float, expected_ms: Sequence[float]) -> None:
        """Put taken rows under leases of one vehicle, or leased rows under a copy."""
        rows = 0
        for record, ends_ms in zip(records, expected_ms, strict=True):
            self._open(record, row_ms, ends_ms)
            rows += record.stop - record.start
        if records[0].copy_of is not None:
            self.rows_copied += rows
        vehicle = records[0].vehicle
        self.seen[vehicle] = self.seen.get(vehicle, 0) + rows
        self.next_chunk = max(self.next_chunk, records[-1].chunk + 1)

    def _open(self, record: LeaseRecord, row_ms: float, expected_ms: float) -> None:
        lease = self.leases[record.chunk] = OpenLease(record, row_ms, expected_ms)
        self.granted[record.chunk] = record
        if self.is_verified:
            self._chunks.setdefault(record.vehicle, set()).add(record.chunk)
            self.covered[record.start : record.stop] += 1
        original = None if record.copy_of is None else self.leases.get(record.copy_of)
        if original is None:
            self.rows_leased += record.stop - record.start
        else:
            lease.original, original.copy = original.record.chunk, record.chunk

    def was_granted(self, span: Span, vehicle: str) -> bool:
        """Whether these rows were ever leased to this vehicle under this chunk."""
        record = self.granted.get(span.chunk)
        return (
            record is not None and record.vehicle == vehicle and record.start <= span.start < span.stop <= record.stop
        )

    def accept(self, spans: Iterable[Span]) -> tuple[list[Piece], list[int], list[OpenLease]]:
        """Mark the rows of a result done.

        Return the pieces that were new, how many rows of each span were, and the leases that this completed.
        """
        pieces: list[Piece] = []
        fresh: list[int] = []
        completed: list[OpenLease] = []
        offset = 0
        for span in spans:
            lease = self.leases.get(span.chunk)
            fresh.append(self._mark(span.start, span.stop, offset, pieces, late=lease is None))
            offset += span.stop - span.start
            if lease is not None:
                other = lease.copy if lease.original is None else lease.original
                both = (lease,) if other is None else (lease, self.leases[other])
                ended = [each for each in both if self._is_complete(each)]
                for each in ended:
                    self._close(each)
                completed += ended
        return pieces, fresh, completed

    def _mark(self, start: int, stop: int, offset: int, pieces: list[Piece], *, late: bool) -> int:
        flags = self.settled[start:stop]
        count = 0
        for first, last in [(start, stop)] if not flags.any() else _gaps(flags, start):
            _append_piece(pieces, Piece(first, last, offset + first - start))
            count += last - first
        self.left -= count
        self.rows_duplicate += stop - start - count
        flags[:] = True
        self.has_settled_free |= late and count > 0
        if self.suspects:
            for row in range(start, stop):
                self._clear(row)
        return count

    def _clear(self, row: int) -> None:
        self.suspects.pop(row, None)
        self.alone.pop(row, None)

    def release(self, chunk: int) -> tuple[OpenLease, int] | None:
        """End a lease early; rows that now nobody has are free again. Returns it and how many rows came back."""
        lease = self.leases.get(chunk)
        if lease is None:
            return None
        missing = list(self._missing(lease))
        self._close(lease)
        self.free.extendleft(reversed(missing))
        back = sum(stop - start for start, stop in missing)
        self.rows_free += back
        self.rows_released_again += back
        return lease, back

    def completed(self) -> list[OpenLease]:
        """Close the leases that have nothing left to compute, and return them."""
        completed = [lease for lease in self.leases.values() if self._is_complete(lease)]
        for lease in completed:
            self._close(lease)
        return completed

    def suspect(self, span: Span, vehicle: str) -> None:
        """Note that these rows failed at a vehicle, so that `take` gives them to others first, one by one.

        The lease stays: see `release`.
        """
        missing = [row for row in range(span.start, span.stop) if not self.settled[row]]
        for row in missing:
            self.suspects.setdefault(row, []).append(vehicle)
        if missing:
            self.charges = [*self.charges[-_MOST_CHARGES:], Charge(vehicle, span.start, span.stop)]
        if span.stop - span.start == 1 and missing:
            self.alone.setdefault(span.start, []).append(vehicle)

    def give_up(self, row: FailedRow) -> None:
        """Settle a row that can't be computed: it is reported, and nobody gets it any more."""
        self.failed[row.row] = row
        self.close(np.array([row.row]))

    def close(self, slots: NDArray[np.int64]) -> None:
        """Settle slots, leased or free, that need not be computed any more: see `completed`."""
        self.settled[slots] = True
        self.left -= len(slots)
        for slot in slots.tolist() if self.suspects else ():
            self._clear(slot)
        self.has_settled_free = True
        self._prune()

    def reopen(self, slots: NDArray[np.int64]) -> None:
        """Let settled slots, in order, be computed, or computed again, before all others that are free.

        What lies under an open lease, because another car was faster, is left to the car that holds that.
        """
        self._prune()
        self.settled[slots] = False
        self.left += len(slots)
        slots = slots[self.covered[slots] == 0]
        if not len(slots):
            return
        self.rows_free += len(slots)
        cuts = np.flatnonzero((np.diff(slots) != 1) | (slots[1:] % self.job.rows == 0)) + 1
        runs = zip([0, *cuts.tolist()], [*cuts.tolist(), len(slots)], strict=True)
        self.free.extendleft(reversed([(int(slots[first]), int(slots[last - 1]) + 1) for first, last in runs]))

    def _prune(self) -> None:
        """Free slots that have been settled are free no more, or they would be free twice when they are reopened."""
        if self.has_settled_free:
            self.free = deque(run for start, stop in self.free for run in _gaps(self.settled[start:stop], start))
            self.rows_free = sum(stop - start for start, stop in self.free)
            self.rows_lost = min(self.rows_lost, self.rows_free)
            self.has_settled_free = False

    def judged(self) -> list[str]:
        """Vehicles at which rows failed that came out well since; each charge is brought once.

        A charge falls when one of its rows was given up: then it was not the car.
        """
        open_charges: list[Charge] = []
        guilty: list[str] = []
        for charge in self.charges:
            first = charge.start % self.job.rows
            if any(first <= row < first + charge.stop - charge.start for row in self.failed):
                continue
            if self.settled[charge.start : charge.stop].all():
                guilty.append(charge.vehicle)
            else:
                open_charges.append(charge)
        self.charges = open_charges
        return guilty

    def _close(self, lease: OpenLease) -> None:
        del self.leases[lease.record.chunk]
        if self.is_verified:
            self._chunks[lease.record.vehicle].discard(lease.record.chunk)
            self.covered[lease.record.start : lease.record.stop] -= 1
        if lease.original is not None:
            self.leases[lease.original].copy = None
            return
        self.rows_leased -= lease.rows
        if lease.copy is not None:
            heir = self.leases[lease.copy]
            heir.original = None
            self.rows_leased += heir.rows

    def _is_complete(self, lease: OpenLease) -> bool:
        return bool(self.settled[lease.record.start : lease.record.stop].all())

    def missing(self, chunk: int) -> list[Range]:
        """Rows of an open lease that are not settled."""
        record = self.leases[chunk].record
        return list(_gaps(self.settled[record.start : record.stop], record.start))

    def _missing(self, lease: OpenLease) -> Iterator[Range]:
        """Rows that nobody has any more when this lease ends."""
        if lease.original is not None:
            return
        covered = self.settled[lease.record.start : lease.record.stop]
        if lease.copy is not None:
            covered = covered.copy()
            copy = self.leases[lease.copy].record
            covered[copy.start - lease.record.start : copy.stop - lease.record.start] = True
        yield from _gaps(covered, lease.record.start)


class Taking:
    """Takes free slots of a job for one vehicle, each looked at once, however many chunks are taken."""

    def __init__(self, progress: JobProgress, vehicle: str, others_left: OthersLeft) -> None:
        self._progress = progress
        self._vehicle = vehicle
        self._others_left = others_left
        self._leased = progress.leased_to(vehicle) if progress.layers > 1 else None
        self._passed_over: list[Range] = []

    def __enter__(self) -> "Taking":
        return self

    def __exit__(self, *_: object) -> None:
        """What was not for this vehicle is free for others, in its order."""
        self._progress.free.extendleft(reversed(self._passed_over))
        self._progress.has_settled_free &= bool(self._progress.free)

    def chunks(self, rows: int, count: int = 1) -> list[Range]:
        """Remove up to `count` chunks of up to `rows` adjacent free slots and return them."""
        progress, taken = self._progress, list[Range]()
        if (
            progress.suspects
            or progress.has_settled_free
            or self._leased is not None
            or self._vehicle in progress.paused
        ):
            while len(taken) < count and (chunk := self._chunk(rows)) is not None:
                taken.append(chunk)
            return taken
        while progress.free and len(taken) < count:
            start, stop = progress.free.popleft()
            end = min(stop, start + rows * (count - len(taken)))
            taken += [(first, min(first + rows, end)) for first in range(start, end, rows)]
            progress.count_taken(end - start)
            if end < stop:
                progress.free.appendleft((end, stop))
        return taken

    def _chunk(self, rows: int) -> Range | None:
        """One chunk, where free slots may have failed or been settled, or be of rows that the vehicle has already."""
        progress, free, settled = self._progress, self._progress.free, self._progress.settled
        while free:
            start, stop = free.popleft()
            if settled[start]:  # came late, after they had been freed
                late = _leading(settled[start:stop])
                start += late
                progress.count_taken(late)
                if start == stop:
                    continue
            end, is_given = self._reach(start, stop)
            if is_given:
                end = start + _leading(~settled[start : min(end, start + rows)])
                if progress.suspects:
                    end, is_given = start + self._unsuspected(start, end - start), self._may_try(start)
            if end < stop:
                free.appendleft((end, stop))
            if is_given:
                progress.count_taken(end - start)
                if self._leased is not None:
                    self._leased[start % progress.job.rows : start % progress.job.rows + end - start] = True
                return start, end
            self._pass_over(start, end)
        return None

    def _reach(self, start: int, stop: int) -> tuple[int, bool]:
        """Up to where the free slots from `start` on are alike to the vehicle, and whether it may have them."""
        if self._vehicle in self._progress.paused and start < self._progress.job.rows:
            return stop, False
        if self._leased is None:
            return stop, True
        own = self._progress.own(self._vehicle, start, min(stop, start + _WINDOW), self._leased)
        return start + _leading(own if own[0] else ~own), not own[0]

    def _may_try(self, slot: int) -> bool:
        """Whether a slot has not failed at the vehicle, or there is nobody else to try it."""
        progress = self._progress
        tried = (progress.suspects.get(slot, ()), progress.alone.get(slot, ()))
        return not any(
            self._vehicle in failed_at and self._others_left([*failed_at, *progress.answered_by(slot)])
            for failed_at in tried
        )

    def _unsuspected(self, start: int, run: int) -> int:
        """Suspects go one by one, so that a bad row takes no neighbours along."""
        suspects = self._progress.suspects
        if start in suspects:
            return 1
        return min((row for row in suspects if start < row < start + run), default=start + run) - start

    def _pass_over(self, start: int, stop: int) -> None:
        """Note slots that stay free; in one piece with those before them, so that looking does not cut them up."""
        if self._passed_over and self._passed_over[-1][1] == start and start % self._progress.job.rows:
            start = self._passed_over.pop()[0]
        self._passed_over.append((start, stop))


def layers_of(job: Job) -> int:
    """How many cars may compute a row of this job: see `coordinator.verifying`."""
    terms = job.terms.verification
    return terms.quorum if terms.rule == "quorum" else 2 if terms.rule == "adaptive" else 1


def row_range(job: Job, start: int, stop: int) -> Range:
    """The rows of these slots, all of one layer."""
    row = start % job.rows
    return row, row + stop - start


def _leading(flags: NDArray[np.bool_]) -> int:
    """How many flags are set before the first that is not."""
    first_unset = int(flags.argmin()) if len(flags) else 0
    return len(flags) if len(flags) and flags[first_unset] else first_unset


def _gaps(flags: NDArray[np.bool_], base: int) -> Iterator[Range]:
    """Runs of flags that are not set, shifted by `base`."""
    edges = np.flatnonzero(np.diff(flags, prepend=True, append=True))
    for start, stop in edges.reshape(-1, 2).tolist():
        yield base + start, base + stop


def _append_piece(pieces: list[Piece], piece: Piece) -> None:
    if pieces:
        last = pieces[-1]
        if last.stop == piece.start and last.offset + (last.stop - last.start) == piece.offset:
            pieces[-1] = Piece(last.start, piece.stop, last.offset)
            return
    pieces.append(piece)
