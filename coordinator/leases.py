"""Who holds which chunks, how much work that is, and when it runs out. Keeps the books; never decides who gets work."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from coordinator.commands import Command, EndLease
from coordinator.conduct import Conduct
from coordinator.fleet_view import FleetView
from coordinator.model import LeaseEnd, LeaseRecord
from coordinator.progress import JobProgress, OpenLease
from coordinator.totals import Totals
from fleet_wire.messages import Span

__all__ = ["Leases"]

_GONE = {LeaseEnd.LOST, LeaseEnd.EXPIRED}


@dataclass(slots=True)
class Leases:
    """The open leases of all jobs, as the fleet view's columns `leases`, `backlog_ms` and `held` count them."""

    fleet: FleetView
    jobs: dict[str, JobProgress]
    conduct: Conduct
    totals: Totals
    _deadlines: list[tuple[int, str, int]] = field(default_factory=list)

    def hold(self, row: int, records: Sequence[LeaseRecord], work_ms: float) -> None:
        """A car has chunks of one job now, which are so much work together."""
        job = records[0].job
        if row not in self.fleet.held:
            self.fleet.column["busy_since_ms"][row] = records[0].granted_ms
        held = self.fleet.held.setdefault(row, {}).setdefault(job, set())
        for record in records:
            held.add(record.chunk)
            heapq.heappush(self._deadlines, (record.deadline_ms, job, record.chunk))
        self.fleet.column["leases"][row] += len(records)
        self.fleet.column["backlog_ms"][row] += work_ms

    def end(self, lease: OpenLease, end: LeaseEnd) -> None:
        """A lease is over of which no row is left to compute."""
        if end is not LeaseEnd.DONE:
            self._lighten(lease.record.vehicle, lease.row_ms * lease.rows)
        self._let_go(lease.record, end)

    def _let_go(self, record: LeaseRecord, end: LeaseEnd) -> None:
        self.conduct.lease_ended(record.vehicle, end)
        row = self.fleet.row(record.vehicle)
        held = self.fleet.held[row]
        held[record.job].discard(record.chunk)
        if not held[record.job]:
            del held[record.job]
        self.fleet.column["leases"][row] -= 1
        if not held:
            del self.fleet.held[row]
            self.fleet.column["backlog_ms"][row] = 0.0

    def work_off(self, vehicle: str, progress: JobProgress, spans: Iterable[Span]) -> None:
        """A car has computed rows of chunks that it holds."""
        worked = sum(
            lease.row_ms * (span.stop - span.start)
            for span in spans
            if (lease := progress.leases.get(span.chunk)) is not None
        )
        self._lighten(vehicle, worked)

    def release(self, job: str, chunks: Iterable[int], end: LeaseEnd, now_ms: int) -> list[Command]:
        """End leases early; their missing rows are free again."""
        progress = self.jobs.get(job)
        commands: list[Command] = []
        for chunk in chunks if progress is not None else ():
            released = progress.release(chunk) if progress is not None else None
            if released is not None:
                lease, back = released
                if progress is not None and end in _GONE:
                    progress.rows_lost += back
                self._lighten(lease.record.vehicle, lease.row_ms * back)
                self._let_go(lease.record, end)
                self.totals.released(end, back)
                commands.append(EndLease(job, chunk, end, back, now_ms))
        return commands

    def run_out(self, now_ms: int) -> list[LeaseRecord]:
        """Open leases whose deadline has passed; each is named once."""
        overdue: list[LeaseRecord] = []
        while self._deadlines and self._deadlines[0][0] <= now_ms:
            _, job, chunk = heapq.heappop(self._deadlines)
            lease = self.jobs[job].leases.get(chunk) if job in self.jobs else None
            if lease is not None:
                overdue.append(lease.record)
        return overdue

    def _lighten(self, vehicle: str, work_ms: float) -> None:
        backlog = self.fleet.column["backlog_ms"]
        row = self.fleet.row(vehicle)
        backlog[row] = max(0.0, backlog[row] - work_ms)
