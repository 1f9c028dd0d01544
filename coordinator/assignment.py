"""One pass of giving work: the cars that have room, in the order in which each job wants them, and what they get.

Keeps the books of jobs, leases and backlog as it goes; whose turn it is, the scheduler says.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from math import ceil, isnan

import numpy as np
from numpy.typing import NDArray

from coordinator.commands import Command, GrantLease, SendTask
from coordinator.fleet_view import FleetView
from coordinator.leases import Leases
from coordinator.model import LeaseRecord, Model
from coordinator.prices import Prices, Promise
from coordinator.progress import JobProgress, Range
from coordinator.rules.eligibility import Reason, job_reasons
from coordinator.rules.scheduling import share_cap
from coordinator.rules.sizing import SizingLimits, backlog_ms, chunk_rows, lease_ms, rows_in
from coordinator.speeds import Speeds
from coordinator.warm import WarmModels

__all__ = ["Assignment", "Queue", "Tools", "Turn"]

_BLOCK = 1024
_MOST_MISSES = 64


@dataclass(frozen=True, slots=True)
class Tools:
    """What a pass works with; it outlives the pass."""

    sizing: SizingLimits
    fleet: FleetView
    models: dict[str, Model]
    leases: Leases
    speeds: Speeds
    warm: WarmModels
    prices: Prices


@dataclass(slots=True)
class Queue:
    """The cars that have room for jobs of one kind, the best first, and all that may work for them, with room or not.

    Those that have the model come first. All before `fresh` have been given something in this pass.
    """

    cars: int
    _may: NDArray[np.bool_]
    _index: dict[str, int]
    _order: NDArray[np.intp]
    _warm: NDArray[np.bool_]
    _rows: list[int] = field(default_factory=list)
    _read: int = 0
    fresh: int = 0

    def __len__(self) -> int:
        return len(self._order)

    def at(self, place: int) -> int:
        """The car at a place; read in blocks, because most passes end near the front."""
        while place >= len(self._rows):
            block = slice(self._read % len(self), self._read % len(self) + _BLOCK)
            wanted = self._warm[block] if self._read < len(self) else ~self._warm[block]
            self._rows += self._order[block][wanted].tolist()
            self._read += len(wanted)
        return self._rows[place]

    def others_left(self, failed_at: Collection[str]) -> bool:
        """Whether a car may work that is not among these."""
        tried = sum(bool(self._may[self._index[vehicle]]) for vehicle in set(failed_at))
        return int(np.count_nonzero(self._may)) > tried


@dataclass(slots=True)
class Turn:
    """A job in this pass: where it stands in its queue, and how often it has found no room."""

    progress: JobProgress
    queue: Queue
    weight: float
    place: int = 0
    lap: int = 0
    misses: int = 0
    given: bool = False


class Assignment:
    """One pass over the cars in `order`, at `now_ms`."""

    def __init__(self, tools: Tools, reasons: NDArray[np.int8], order: NDArray[np.intp], now_ms: int) -> None:
        self._tools = tools
        self._eligible = reasons == Reason.ELIGIBLE
        self._may = self._eligible | (reasons == Reason.QUARANTINED)
        self._order = order
        self._now_ms = now_ms
        self._queues: dict[object, Queue] = {}
        self._crowds: dict[object, tuple[int, NDArray[np.bool_], NDArray[np.intp]]] = {}
        self.leases_granted = 0
        self._touched: set[int] = set()
        self._promises: dict[int, Promise] = {}
        self._granted: dict[tuple[int, str], list[LeaseRecord]] = {}

    def queue(self, progress: JobProgress) -> Queue:
        """Cars that may work for a job; jobs that ask for the same share one queue."""
        job, terms = progress.job, progress.job.terms
        own = job.id if capped(progress) else None
        crowd = (terms.purpose, terms.price_ceiling_micro_per_kwh, own, progress.is_verified)
        found = self._queues.get((job.model, crowd))
        if found is None:
            if crowd not in self._crowds:
                self._crowds[crowd] = self._new_crowd(progress)
            cars, may, order = self._crowds[crowd]
            warm = self._tools.warm.of(job.model)[order]
            found = self._queues[job.model, crowd] = Queue(cars, may, self._tools.fleet.index, order, warm)
        return found

    def _new_crowd(self, progress: JobProgress) -> tuple[int, NDArray[np.bool_], NDArray[np.intp]]:
        """How many cars may work for jobs with these terms, which may, or will, and those that have room.

        One in quarantine will: it must not come to that that a broken car, as the only one, has rows given up. Of
        verified jobs the coordinator gives rows up, and it waits for no car that may have been convicted for days.
        """
        fleet = self._tools.fleet
        reached = share_reached(fleet, progress)
        allowed = job_reasons(fleet, progress.job.terms, share_reached=reached) == Reason.ELIGIBLE
        order = self._order if allowed.all() else self._order[allowed[self._order]]
        will = self._eligible if progress.is_verified else self._may
        return int(np.count_nonzero(self._eligible & allowed)), will & allowed, order

    def next_car(self, turn: Turn) -> int | None:
        """The best car for a job that nobody has given anything in this pass; then, in further laps, any with room."""
        queue, length = turn.queue, len(turn.queue)
        while turn.misses <= _MOST_MISSES:
            if turn.lap == 0:
                turn.place = max(turn.place, queue.fresh)
            if turn.place >= length:
                if turn.lap and not turn.given:
                    return None
                turn.lap, turn.place, turn.given = turn.lap + 1, 0, False
                if not length:
                    return None
                continue
            row = queue.at(turn.place)
            if turn.lap == 0:
                if row not in self._touched:
                    return row
                queue.fresh += turn.place == queue.fresh
            elif self._has_room(row):
                return row
            else:
                turn.misses += 1
            turn.place += 1
        return None  # the cars it met are busy, and have room again soon

    def _has_room(self, row: int) -> bool:
        column = self._tools.fleet.column
        return bool(
            column["leases"][row] < column["slots"][row] and column["backlog_ms"][row] < self._tools.sizing.backlog_ms
        )

    def idle(self, queue: Queue, count: int) -> list[int]:
        """The best cars that hold nothing at all."""
        leases = self._tools.fleet.column["leases"]
        idle: list[int] = []
        for place in range(queue.fresh, len(queue)):
            row = queue.at(place)
            if not leases[row]:
                idle.append(row)
                if len(idle) == count:
                    break
        return idle

    def fill(self, row: int, turn: Turn, spend_ms: float) -> float:
        """Give a car chunks of one job until it has enough to do, or `spend_ms` more; returns how much more.

        Of rows that were lost it gets a chunk in any case.
        """
        progress, tools = turn.progress, self._tools
        job, sizing, column = progress.job, tools.sizing, tools.fleet.column
        vehicle = tools.fleet.ids[row]
        row_ms = tools.speeds.expected_row_ms(vehicle, job.model)
        held_ms: float = column["backlog_ms"].item(row)
        begun_ms = held_ms
        stay_ms = column["stay_ms"].item(row)
        room = column["slots"].item(row) - column["leases"].item(row)
        fixed = job.terms.chunk_rows
        may_see = job.rows
        if capped(progress):
            may_see = share_cap(job.rows, job.terms.vehicle_share) - progress.seen.get(vehicle, 0)
        free, cars = max(1, progress.rows_free), turn.queue.cars
        most_ms = backlog_ms(row_ms=row_ms, rows_free=free, cars=cars, limits=sizing)
        left_ms = most_ms if progress.rows_lost else most_ms - self._held_ms(row, progress, begun_ms)
        spend_ms = min(spend_ms, left_ms)
        taken: list[Range] = []
        expected_ms = row_ms
        with progress.taking(vehicle, turn.queue.others_left) as taking:
            while progress.free and room > 0 and held_ms - begun_ms < spend_ms:
                wanted = (
                    min(fixed, progress.rows_free)
                    if fixed
                    else chunk_rows(
                        row_ms=row_ms,
                        row_bytes=job.row_bytes,
                        rows_free=max(1, progress.rows_free),
                        cars=cars,
                        fixed_rows=None,
                        batch_rows=tools.models[job.model].batch_rows,
                        limits=sizing,
                    )
                )
                wanted = min(wanted, may_see, rows_in(stay_ms - held_ms, row_ms, idle=not held_ms))
                if wanted <= 0:
                    break
                if expected_ms is None:  # not measured yet: the first chunk is a probe, and all that the car gets
                    expected_ms = sizing.backlog_ms / wanted
                count = 1
                if fixed and may_see == job.rows and isnan(stay_ms):  # all chunks are alike
                    count = min(room, ceil((spend_ms - held_ms + begun_ms) / max(expected_ms * wanted, 1e-6)))
                chunks = taking.chunks(wanted, count)
                if not chunks:
                    break
                rows = sum(stop - start for start, stop in chunks)
                held_ms += expected_ms * rows
                may_see -= rows
                room -= len(chunks)
                taken += chunks
        turn.place += 1
        if expected_ms is None or not taken:
            turn.misses += 1
            return 0.0
        self.grant(row, progress, taken, expected_ms)
        turn.given = True
        turn.misses = 0
        return held_ms - begun_ms

    def _held_ms(self, row: int, progress: JobProgress, all_ms: float) -> float:
        """Work that a car holds of one job, out of all that it holds: what it holds of others may not keep the last
        rows of this one from it.
        """
        held = self._tools.fleet.held.get(row, {})
        if held.keys() <= {progress.job.id}:
            return all_ms
        own = (progress.leases[chunk] for chunk in held.get(progress.job.id, ()))
        return sum(lease.rows * lease.row_ms for lease in own)

    def grant(
        self,
        row: int,
        progress: JobProgress,
        taken: Sequence[Range],
        row_ms: float,
        copy_of: int | None = None,
    ) -> None:
        """Write leases on rows that were taken, or on a copy of leased ones."""
        fleet, sizing, now_ms = self._tools.fleet, self._tools.sizing, self._now_ms
        vehicle, job = fleet.ids[row], progress.job.id
        begun_ms = ends_ms = fleet.column["backlog_ms"].item(row)
        epoch = fleet.column["epoch"].item(row)
        promise = self._promises.get(row)
        if promise is None:
            promise = self._promises[row] = self._tools.prices.promise(row, now_ms)
        granted: list[LeaseRecord] = []
        expected_ms: list[float] = []
        for chunk, (start, stop) in enumerate(taken, progress.next_chunk):
            ends_ms += row_ms * (stop - start)
            deadline_ms = now_ms + int(lease_ms(ends_ms, sizing))
            granted.append(LeaseRecord(job, chunk, start, stop, vehicle, epoch, now_ms, deadline_ms, *promise, copy_of))
            expected_ms.append(now_ms + ends_ms)
        progress.grant(granted, row_ms, expected_ms)
        self._tools.leases.hold(row, granted, ends_ms - begun_ms)
        self._tools.leases.totals.leases_granted += len(granted)
        self.leases_granted += len(granted)
        self._touched.add(row)
        before = self._granted.get((row, job))
        if before is None:
            self._granted[row, job] = granted
        else:
            before += granted

    def commands(self, jobs: dict[str, JobProgress]) -> list[Command]:
        """What is to be written and sent."""
        commands: list[Command] = []
        for (_, job), records in self._granted.items():
            commands += map(GrantLease, records)
            commands += self._tasks(jobs[job].job.row_bytes, records)
        return commands

    def _tasks(self, row_bytes: int, granted: Sequence[LeaseRecord]) -> list[SendTask]:
        """As few tasks as carry these leases, each small enough for its inputs to travel inside."""
        most_bytes = self._tools.sizing.inline_bytes
        first, size = 0, 0
        tasks: list[SendTask] = []
        for place, record in enumerate(granted):
            record_bytes = (record.stop - record.start) * row_bytes + 16
            if size and size + record_bytes > most_bytes:
                tasks.append(_task(tuple(granted[first:place])))
                first, size = place, 0
            size += record_bytes
        return [*tasks, _task(tuple(granted[first:]))]


def _task(leases: tuple[LeaseRecord, ...]) -> SendTask:
    """For leases of one car and job that were granted together."""
    lease = leases[0]
    return SendTask(
        lease.vehicle,
        lease.epoch,
        lease.consent_version,
        lease.job,
        leases,
        max([each.deadline_ms for each in leases]),
        lease.energy_micro_per_kwh,
        lease.pay_micro_per_h,
    )


def capped(progress: JobProgress) -> bool:
    """Whether a car may see only a part of this job."""
    return progress.job.terms.vehicle_share < 1


def share_reached(fleet: FleetView, progress: JobProgress) -> NDArray[np.bool_] | None:
    """Which cars have been given as much of a job as one may see; None when that is not limited."""
    if not capped(progress):
        return None
    most = share_cap(progress.job.rows, progress.job.terms.vehicle_share)
    reached = np.zeros(len(fleet), dtype=np.bool_)
    known = fleet.index
    reached[[known[vehicle] for vehicle, rows in progress.seen.items() if rows >= most and vehicle in known]] = True
    return reached
