"""Gives free rows to cars: who gets which chunk of which job. Pure but for the books that it keeps."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordinator.commands import Command, GrantLease, SendTask
from coordinator.fleet_view import FleetView
from coordinator.leases import Leases
from coordinator.model import LeaseRecord, Model
from coordinator.prices import Prices
from coordinator.progress import JobProgress
from coordinator.rules.sizing import SizingLimits, backlog_ms, chunk_rows, lease_ms
from coordinator.speeds import Speeds

__all__ = ["Scheduler"]


@dataclass(slots=True)
class Scheduler:
    """Assigns in passes over all jobs that have free rows and all cars that have room."""

    sizing: SizingLimits
    back_off_ms: int
    fleet: FleetView
    models: dict[str, Model]
    jobs: dict[str, JobProgress]
    leases: Leases
    speeds: Speeds
    prices: Prices
    _rest_until_ms: dict[str, int] = field(default_factory=dict)

    def rest(self, vehicle: str, now_ms: int) -> None:
        """Leave a car alone for a moment that just refused, so that it is not asked again in a tight loop."""
        self._rest_until_ms[vehicle] = now_ms + self.back_off_ms

    def waiting(self) -> bool:
        """Whether any job has rows to give."""
        return any(progress.free for progress in self.jobs.values())

    def assign(self, eligible: NDArray[np.bool_], now_ms: int) -> list[Command]:
        """Give free rows to cars that are eligible and run low on work."""
        waiting = sorted(
            (progress for progress in self.jobs.values() if progress.free),
            key=lambda progress: (-progress.job.terms.priority, progress.job.created_ms, progress.job.id),
        )
        backlog, leases = self.fleet.live("backlog_ms"), self.fleet.live("leases")
        ready = eligible & (backlog < self.sizing.chunk_ms) & (leases < self.fleet.live("slots"))
        rows = np.flatnonzero(ready)
        cars = int(np.count_nonzero(eligible))
        commands: list[Command] = []
        for row in rows[np.argsort(backlog[rows], kind="stable")].tolist():
            while waiting and not waiting[0].free:
                waiting.pop(0)
            if not waiting:
                break
            if self._rest_until_ms.get(self.fleet.ids[row], 0) <= now_ms:
                for progress in waiting:
                    commands += self._fill(row, progress, cars, now_ms)
        return commands

    def _fill(self, row: int, progress: JobProgress, cars: int, now_ms: int) -> list[Command]:
        """Give a car chunks of one job until it has enough to do."""
        job, sizing, vehicle = progress.job, self.sizing, self.fleet.ids[row]
        backlog, held, slots = (self.fleet.column[name] for name in ("backlog_ms", "leases", "slots"))
        row_ms = self.speeds.expected_row_ms(vehicle, job.model)
        promise = self.prices.promise(row, now_ms)
        granted: list[LeaseRecord] = []
        while progress.free and held[row] < slots[row]:
            free = max(1, progress.rows_free)
            if backlog[row] >= backlog_ms(row_ms=row_ms, rows_free=free, cars=cars, limits=sizing):
                break
            wanted = chunk_rows(
                row_ms=row_ms,
                row_bytes=job.row_bytes,
                rows_free=free,
                cars=cars,
                fixed_rows=job.terms.chunk_rows,
                batch_rows=self.models[job.model].batch_rows,
                limits=sizing,
            )
            taken = progress.take(vehicle, wanted, cars)
            if taken is None:
                break
            expected_ms = sizing.backlog_ms / wanted if row_ms is None else row_ms
            work_ms = expected_ms * (taken[1] - taken[0])
            deadline_ms = now_ms + int(lease_ms(float(backlog[row]) + work_ms, sizing))
            epoch = int(self.fleet.column["epoch"][row])
            record = LeaseRecord(job.id, progress.next_chunk, *taken, vehicle, epoch, now_ms, deadline_ms, *promise)
            progress.grant(record, expected_ms)
            self.leases.hold(record, work_ms, deadline_ms)
            granted.append(record)
            self.leases.totals.leases_granted += 1
        return [*(GrantLease(record) for record in granted), *self._tasks(row, progress, granted)]

    def _tasks(self, row: int, progress: JobProgress, granted: list[LeaseRecord]) -> list[Command]:
        """As few tasks as carry these leases, each small enough for its inputs to travel inside."""
        tasks: list[Command] = []
        batch: list[LeaseRecord] = []
        size = 0
        for record in granted:
            record_bytes = (record.stop - record.start) * progress.job.row_bytes + 16
            if batch and size + record_bytes > self.sizing.inline_bytes:
                tasks.append(self._task(row, batch))
                batch, size = [], 0
            batch.append(record)
            size += record_bytes
        return [*tasks, self._task(row, batch)] if batch else tasks

    def _task(self, row: int, leases: list[LeaseRecord]) -> SendTask:
        return SendTask(
            vehicle=self.fleet.ids[row],
            epoch=int(self.fleet.column["epoch"][row]),
            consent_version=leases[0].consent_version,
            job=leases[0].job,
            leases=tuple(leases),
            deadline_ms=max(lease.deadline_ms for lease in leases),
            energy_micro_per_kwh=leases[0].energy_micro_per_kwh,
            pay_micro_per_h=leases[0].pay_micro_per_h,
        )
