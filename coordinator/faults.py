"""What follows from failures: rows are isolated and given up, cars get strikes. Decides by `rules.quarantine`."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from coordinator.commands import AddFailedRow, Command, EndLease, SendControl
from coordinator.conduct import Conduct
from coordinator.leases import Leases
from coordinator.model import FailedRow, LeaseEnd
from coordinator.progress import JobProgress, OpenLease, OthersLeft
from coordinator.rules.quarantine import is_beyond_hope
from fleet_wire.messages import Cancel, Span

__all__ = ["Faults"]

_ERROR_CHARACTERS = 1000


@dataclass(slots=True)
class Faults:
    """Failures of rows at cars, and lapses of cars."""

    leases: Leases
    conduct: Conduct
    rest: Callable[[str, int], None]
    refusals: Counter[str]
    counters: Counter[str]
    beyond_hope: Callable[[JobProgress, int, int], list[Command]]
    """What is to be done about a slot of a verified job that failed everywhere."""

    def rows_failed(
        self,
        vehicle: str,
        progress: JobProgress,
        spans: Iterable[Span],
        error: str,
        others_left: OthersLeft,
        now_ms: int,
    ) -> list[Command]:
        """Rows failed at a car that holds them: give them to others, one by one, until they are beyond hope."""
        job = progress.job
        commands: list[Command] = []
        for span in spans:
            if span.chunk not in progress.leases or not progress.was_granted(span, vehicle):
                self.refusals["failure_without_lease"] += 1
                continue
            progress.suspect(span, vehicle)
            commands += self.leases.release(job.id, [span.chunk], LeaseEnd.FAILED, now_ms)
            commands.append(SendControl(vehicle, Cancel(job.id, [span.chunk])))
            alone = progress.alone.get(span.start, [])
            left = partial(others_left, [*alone, *progress.answered_by(span.start)])
            if alone and is_beyond_hope(alone, job.terms.max_attempts, others_left=left):
                if progress.is_verified:
                    commands += self.beyond_hope(progress, span.start, now_ms)
                else:
                    row = FailedRow(span.start, len(alone), error[:_ERROR_CHARACTERS])
                    progress.give_up(row)
                    self.counters["row_given_up"] += 1
                    commands.append(AddFailedRow(job.id, row))
                commands += self.end_completed(vehicle, progress, progress.completed(), now_ms)
        if sum(charge.vehicle == vehicle for charge in progress.charges) > 1:
            self.rest(vehicle, now_ms)  # perhaps it is the car; until that shows, it must not try everything in turn
        return commands + self.judge(progress, now_ms)

    def judge(self, progress: JobProgress, now_ms: int) -> list[Command]:
        """Strikes for cars at which rows failed that others have computed well by now."""
        commands: list[Command] = []
        for vehicle in dict.fromkeys(progress.judged()) if progress.charges else ():
            self.counters["vehicle_blamed"] += 1
            commands += self.conduct.strike(vehicle, now_ms)
        return commands

    def end_completed(
        self, vehicle: str, progress: JobProgress, completed: Iterable[OpenLease], now_ms: int
    ) -> list[Command]:
        """End leases that have no row left to compute; cars other than `vehicle` still compute them and are told."""
        job = progress.job.id
        commands: list[Command] = []
        for lease in completed:
            record = lease.record
            if record.vehicle == vehicle:
                self.leases.end(lease, LeaseEnd.DONE)
                commands.append(EndLease(job, record.chunk, LeaseEnd.DONE, 0, now_ms))
            else:
                self.leases.end(lease, LeaseEnd.CANCELLED)
                commands.append(EndLease(job, record.chunk, LeaseEnd.CANCELLED, 0, now_ms))
                commands.append(SendControl(record.vehicle, Cancel(job, [record.chunk])))
        return commands
