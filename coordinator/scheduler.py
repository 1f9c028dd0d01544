"""Whose turn it is: shares the fleet between jobs, and gives late leases to a second car. See docs/scheduling.md.

Decides by `rules.scheduling`; keeps only what fairness needs to remember.
"""

import heapq
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

from coordinator.assignment import Assignment, Queue, Tools, Turn, capped
from coordinator.commands import Command
from coordinator.progress import JobProgress, OpenLease, Range
from coordinator.rules.eligibility import Reason
from coordinator.rules.quarantine import QuarantineLimits
from coordinator.rules.scheduling import (
    SchedulingLimits,
    car_order,
    copy_gains,
    share_cap,
    time_left_ms,
    turn_key,
    weight,
)

__all__ = ["Scheduler"]

_COPY_CANDIDATES = 16


@dataclass(slots=True)
class _Account:
    """Work that a job was given for each unit of its weight, and when it last was given any."""

    virtual_ms: float
    served_ms: int
    waited: bool = True


@dataclass(slots=True)
class Scheduler:
    """Assigns in passes over all jobs that have free rows and all cars that have room."""

    limits: SchedulingLimits
    quarantine: QuarantineLimits
    back_off_ms: int
    tools: Tools
    jobs: dict[str, JobProgress]
    counters: Counter[str]
    _accounts: dict[str, _Account] = field(default_factory=dict)
    _virtual_ms: float = 0.0
    _copied_ms: int = 0

    def rest(self, vehicle: str, now_ms: int) -> None:
        """Leave a car alone for a moment that just refused, so that it is not asked again in a tight loop."""
        fleet = self.tools.fleet
        row = fleet.row(vehicle)
        fleet.column["rest_until_ms"][row] = now_ms + self.back_off_ms

    def others_left(self, progress: JobProgress, reasons: NDArray[np.int8], failed_at: Collection[str]) -> bool:
        """Whether a car may work for a job that is not among these; looks at the whole fleet."""
        return Assignment(self.tools, reasons, np.zeros(0, dtype=np.intp), 0).queue(progress).others_left(failed_at)

    def has_work(self, now_ms: int) -> bool:
        """Whether any job has rows to give, or it is time to look for late leases."""
        if any(progress.free for progress in self.jobs.values()):
            return True
        return bool(self.jobs) and now_ms - self._copied_ms >= self.limits.copies_every_ms

    def assign(self, reasons: NDArray[np.int8], now_ms: int) -> list[Command]:
        """Give free rows to cars that may work and run low on it, then copies of late leases to cars that are idle.

        Before that, rows that gone cars had go to cars that have enough to do already: they have waited long enough.
        """
        commands = self._give_lost(reasons, now_ms)
        order = self._cars_with_room(reasons, self.tools.sizing.chunk_ms, now_ms)
        if not len(order):
            return commands
        work = Assignment(self.tools, reasons, order, now_ms)
        self._give_turns(work, now_ms)
        if now_ms - self._copied_ms >= self.limits.copies_every_ms:
            self._copied_ms = now_ms
            for progress in self.jobs.values():
                if not progress.free:
                    self._copy_late(work, progress, now_ms)
        return commands + work.commands(self.jobs)

    def _cars_with_room(self, reasons: NDArray[np.int8], below_ms: float, now_ms: int) -> NDArray[np.intp]:
        fleet, chunk_ms = self.tools.fleet, self.tools.sizing.chunk_ms
        ready = reasons == Reason.ELIGIBLE
        ready &= fleet.live("backlog_ms") < below_ms
        ready &= fleet.live("leases") < fleet.live("slots")
        ready &= fleet.live("rest_until_ms") <= now_ms
        ready &= fleet.live("quarantined_until_ms") <= now_ms  # also when it began after the reasons were looked for
        return car_order(fleet, np.flatnonzero(ready), chunk_ms, self.limits.cars, self.quarantine)

    def _give_lost(self, reasons: NDArray[np.int8], now_ms: int) -> list[Command]:
        """Spread rows that gone cars had: in each pass a chunk more for each car, up to twice of what it usually holds.

        They count for no turn, as they did when they were given first.
        """
        lost = [progress for progress in self.jobs.values() if progress.rows_lost]
        if not lost:
            return []
        order = self._cars_with_room(reasons, 2 * self.tools.sizing.backlog_ms, now_ms)
        work = Assignment(self.tools, reasons, order, now_ms)
        for progress in lost:
            turn = Turn(progress, work.queue(progress), self.weight(progress))
            while progress.rows_lost and (row := work.next_car(turn)) is not None:
                work.fill(row, turn, 1.0)
        return work.commands(self.jobs)

    # Shares ---------------------------------------------------------------------------------------------------------

    def _give_turns(self, work: Assignment, now_ms: int) -> None:
        waiting = [progress for progress in self.jobs.values() if progress.free]
        weights = sum(self.weight(progress) for progress in waiting)
        turns = []
        for progress in waiting:
            account, queue = self._account(progress, now_ms), work.queue(progress)
            if len(queue):
                entry = self._entry(progress, account, queue, weights, now_ms)
                turns.append((*entry, Turn(progress, queue, self.weight(progress)), account))
            else:  # what it could not have used is not owed to it
                account.virtual_ms = max(account.virtual_ms, self._virtual_ms)
        heapq.heapify(turns)
        while turns and work.leases_granted < self.limits.most_leases:
            *_, turn, account = heapq.heappop(turns)
            given_ms = self._serve(work, turn, self.tools.sizing.chunk_ms if turns else inf)
            if given_ms:
                self._virtual_ms = max(self._virtual_ms, account.virtual_ms)
                account.virtual_ms += given_ms / turn.weight
                account.served_ms = now_ms
                if turn.progress.free:
                    entry = self._entry(turn.progress, account, turn.queue, weights, now_ms)
                    heapq.heappush(turns, (*entry, turn, account))
        for job, account in self._accounts.items():
            account.waited = job in self.jobs and bool(self.jobs[job].free)
        if len(self._accounts) > len(self.jobs):
            self._accounts = {job: account for job, account in self._accounts.items() if job in self.jobs}

    def _serve(self, work: Assignment, turn: Turn, spend_ms: float) -> float:
        """Give the job of this turn something at the best car that takes it; 0 when there is none in this pass."""
        while (row := work.next_car(turn)) is not None:
            given_ms = work.fill(row, turn, spend_ms)
            if given_ms:
                return given_ms
        return 0.0

    def _entry(
        self, progress: JobProgress, account: _Account, queue: Queue, weights: float, now_ms: int
    ) -> tuple[int, float, int, int, str]:
        job = progress.job
        limit_s = job.terms.deadline_s
        row_ms = None if limit_s is None else self.tools.speeds.model_row_ms(job.model)
        key = turn_key(
            virtual_ms=account.virtual_ms,
            unserved_ms=now_ms - account.served_ms,
            needs_ms=None if row_ms is None else progress.left * row_ms / max(1, queue.cars),
            share=self.weight(progress) / weights,
            left_ms=None if limit_s is None else job.created_ms + limit_s * 1000 - now_ms,
            limits=self.limits,
        )
        return (*key, -job.terms.priority, job.created_ms, job.id)

    def _account(self, progress: JobProgress, now_ms: int) -> _Account:
        account = self._accounts.get(progress.job.id)
        if account is None:
            account = self._accounts[progress.job.id] = _Account(self._virtual_ms, now_ms)
        elif not account.waited:  # time in which it wanted nothing earns nothing
            account.virtual_ms = max(account.virtual_ms, self._virtual_ms)
            account.served_ms = now_ms
        return account

    def weight(self, progress: JobProgress) -> float:
        """The part of the fleet that a job gets, beside the weights of the others."""
        return weight(progress.job.terms.priority, self.limits)

    # Copies ---------------------------------------------------------------------------------------------------------

    def copies_left(self, progress: JobProgress) -> int:
        """How many more rows of a job may be given to a second car."""
        return int(progress.job.rows * self.limits.copied_share) - progress.rows_copied

    def _copy_late(self, work: Assignment, progress: JobProgress, now_ms: int) -> None:
        """Give the latest leases of a job without free rows to idle cars too, where that should gain enough."""
        row_ms = self.tools.speeds.model_row_ms(progress.job.model)
        if row_ms is None or self.copies_left(progress) <= 0:
            return
        idle = work.idle(work.queue(progress), _COPY_CANDIDATES)
        if not idle:
            return
        late = [
            lease
            for lease in progress.leases.values()
            if lease.copy is None and lease.original is None and progress.missing(lease.record.chunk)
        ]  # one has nothing missing when its rows came late from a car that had lost them
        left = [(_left_ms(progress, lease, now_ms), lease.record.chunk) for lease in late]
        for left_ms, chunk in sorted(left, key=lambda pair: (-pair[0], pair[1]))[: len(idle)]:
            taken = self._worth_a_copy(progress, chunk)
            candidates = [row for row in idle if self._may_copy(row, progress, chunk, taken)]
            if not candidates:
                continue
            rows = taken[1] - taken[0]
            copy_ms, row = min((self._copy_ms(row, progress, rows), row) for row in candidates)
            if copy_gains(copy_ms=copy_ms, left_ms=left_ms, limits=self.limits):
                idle.remove(row)
                work.grant(row, progress, [taken], copy_ms / rows, copy_of=chunk)
                self.counters["rows_copied"] += rows

    def _worth_a_copy(self, progress: JobProgress, chunk: int) -> Range:
        """The end of the longest run of missing rows, as far as the budget goes: the late car begins at the front."""
        start, stop = max(progress.missing(chunk), key=lambda run: run[1] - run[0])
        return max(start, stop - self.copies_left(progress)), stop

    def _may_copy(self, row: int, progress: JobProgress, chunk: int, taken: Range) -> bool:
        vehicle, (start, stop) = self.tools.fleet.ids[row], taken
        if start >= stop or vehicle == progress.leases[chunk].record.vehicle:
            return False
        if any(start <= suspect < stop for suspect in progress.suspects):
            return False
        if progress.has_of(vehicle, start, stop):
            return False
        if not capped(progress):
            return True
        most = share_cap(progress.job.rows, progress.job.terms.vehicle_share)
        return progress.seen.get(vehicle, 0) + stop - start <= most

    def _copy_ms(self, row: int, progress: JobProgress, rows: int) -> float:
        vehicle, model = self.tools.fleet.ids[row], progress.job.model
        row_ms = self.tools.speeds.expected_row_ms(vehicle, model)
        assert row_ms is not None
        return row_ms * rows + (0.0 if self.tools.warm.has(row, model) else self.limits.cold_ms)


def _left_ms(progress: JobProgress, lease: OpenLease, now_ms: int) -> float:
    missing = sum(stop - start for start, stop in progress.missing(lease.record.chunk))
    return time_left_ms(
        granted_ms=lease.record.granted_ms,
        expected_ms=lease.expected_ms,
        rows=lease.rows,
        missing=missing,
        now_ms=now_ms,
    )
