"""Which rows of one job are done, leased or free. Pure bookkeeping in intervals and one flag a row; decides nothing.

Every row is done, or lies under exactly one open lease, or is free. Rows that arrive late for a lease that has ended
may be free or under another car's lease by then: they count as done at once, and what comes after is a duplicate.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordinator.model import Job, LeaseRecord, Piece, Rest
from fleet_wire.messages import Span

__all__ = ["JobProgress", "OpenLease"]

Range = tuple[int, int]


@dataclass(slots=True)
class OpenLease:
    """A lease in force; `row_ms` is what a row was expected to take."""

    record: LeaseRecord
    row_ms: float

    @property
    def rows(self) -> int:
        """Rows of the chunk, done or not."""
        return self.record.stop - self.record.start


@dataclass(slots=True)
class JobProgress:
    """The changing side of a job."""

    job: Job
    done: NDArray[np.bool_]
    free: deque[Range]
    rows_done: int = 0
    rows_leased: int = 0
    rows_duplicate: int = 0
    rows_released_again: int = 0
    next_chunk: int = 0
    leases: dict[int, OpenLease] = field(default_factory=dict)
    granted: dict[int, LeaseRecord] = field(default_factory=dict)
    suspects: dict[int, list[str]] = field(default_factory=dict)
    compute_us: int = 0
    energy_mwh: int = 0
    pay_micro: int = 0
    rests: dict[str, Rest] = field(default_factory=dict)

    @classmethod
    def fresh(cls, job: Job) -> "JobProgress":
        """All rows free."""
        return cls(job, np.zeros(job.rows, dtype=np.bool_), deque([(0, job.rows)]))

    @classmethod
    def restored(cls, job: Job, done: Iterable[Range], leases: Iterable[LeaseRecord], row_ms: float) -> "JobProgress":
        """What a ledger remembers: `done` ranges, open leases, and everything else free."""
        progress = cls(job, np.zeros(job.rows, dtype=np.bool_), deque())
        for start, stop in done:
            progress.done[start:stop] = True
        progress.rows_done = int(np.count_nonzero(progress.done))
        taken = progress.done.copy()
        for record in leases:
            progress._open(record, row_ms)
            taken[record.start : record.stop] = True
        progress.free.extend(_gaps(taken, 0))
        return progress

    @property
    def finished(self) -> bool:
        """Whether every row is done."""
        return self.rows_done == self.job.rows

    @property
    def rows_free(self) -> int:
        """Rows that nobody has and that are not done; an upper bound while late rows lie among them."""
        return max(0, self.job.rows - self.rows_done - self.rows_leased)

    def take(self, vehicle: str, rows: int, cars: int) -> Range | None:
        """Remove up to `rows` adjacent free rows and return them, or None.

        Rows that have failed at this vehicle before are left to the others, while of `cars` that may work some others
        have not tried them.
        """
        passed_over: list[Range] = []
        taken: Range | None = None
        while self.free and taken is None:
            start, stop = self.free.popleft()
            if self.done[start]:  # came late, after they had been freed
                start += _leading(self.done[start:stop])
            if start == stop:
                continue
            run = _leading(~self.done[start : min(stop, start + rows)])
            if start in self.suspects:
                run = 1
            elif self.suspects:
                run = next((row - start for row in range(start, start + run) if row in self.suspects), run)
            if start + run < stop:
                self.free.appendleft((start + run, stop))
            failed_at = self.suspects.get(start, ())
            if vehicle in failed_at and len(set(failed_at)) < cars:
                passed_over.append((start, start + run))
            else:
                taken = (start, start + run)
        self.free.extendleft(reversed(passed_over))
        return taken

    def grant(self, record: LeaseRecord, row_ms: float) -> None:
        """Put taken rows under a lease."""
        self._open(record, row_ms)
        self.next_chunk = max(self.next_chunk, record.chunk + 1)

    def _open(self, record: LeaseRecord, row_ms: float) -> None:
        self.leases[record.chunk] = OpenLease(record, row_ms)
        self.granted[record.chunk] = record
        self.rows_leased += record.stop - record.start

    def accept(self, spans: Iterable[Span]) -> tuple[list[Piece], list[int], list[OpenLease]]:
        """Mark the rows of a result done.

        Return the pieces that were new, how many rows of each span were, and the leases that this completed.
        """
        pieces: list[Piece] = []
        fresh: list[int] = []
        completed: list[OpenLease] = []
        offset = 0
        for span in spans:
            fresh.append(self._mark(span.start, span.stop, offset, pieces))
            offset += span.stop - span.start
            lease = self.leases.get(span.chunk)
            if lease is not None and self._is_complete(lease):
                self._close(lease)
                completed.append(lease)
        return pieces, fresh, completed

    def _mark(self, start: int, stop: int, offset: int, pieces: list[Piece]) -> int:
        flags = self.done[start:stop]
        fresh = [(start, stop)] if not flags.any() else list(_gaps(flags, start))
        for first, last in fresh:
            _append_piece(pieces, Piece(first, last, offset + first - start))
        count = sum(last - first for first, last in fresh)
        self.rows_done += count
        self.rows_duplicate += stop - start - count
        flags[:] = True
        return count

    def release(self, chunk: int) -> tuple[OpenLease, int] | None:
        """End a lease early; its missing rows are free again. Returns it and how many rows came back."""
        lease = self.leases.get(chunk)
        if lease is None:
            return None
        missing = list(self._missing(lease))
        self._close(lease)
        self.free.extendleft(reversed(missing))
        back = sum(stop - start for start, stop in missing)
        self.rows_released_again += back
        return lease, back

    def suspect(self, span: Span, vehicle: str) -> int:
        """Note that these rows failed at a vehicle, so that `take` gives them to others first, one by one.

        Returns how often the worst of them has failed. The lease stays: see `release`.
        """
        worst = 0
        for row in range(span.start, span.stop):
            if not self.done[row]:
                failed_at = self.suspects.setdefault(row, [])
                failed_at.append(vehicle)
                worst = max(worst, len(failed_at))
        return worst

    def _close(self, lease: OpenLease) -> None:
        del self.leases[lease.record.chunk]
        self.rows_leased -= lease.rows

    def _is_complete(self, lease: OpenLease) -> bool:
        return bool(self.done[lease.record.start : lease.record.stop].all())

    def _missing(self, lease: OpenLease) -> Iterator[Range]:
        return _gaps(self.done[lease.record.start : lease.record.stop], lease.record.start)


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
