"""Measures the coordinator every few seconds: pure functions from its state to points, and a thin task.

Only reads what others keep. Points hold counters as totals, for `/metrics`; the store is given their growth.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordinator import metrics
from coordinator.core import Core
from coordinator.delays import Delay
from coordinator.metrics import CATALOGUE, FieldKind, MetricPoint
from coordinator.ports import StoreStatus
from coordinator.progress import JobProgress
from coordinator.rules.eligibility import Reason

__all__ = ["Observer", "ServiceState", "growth", "keep_observing", "look_last"]

Value = int | float | str
Columns = dict[str, NDArray[np.int64]]
Series = tuple[str, tuple[tuple[str, str], ...]]

_COUNTERS = {(each.name, field.name) for each in CATALOGUE for field in each.fields if field.kind is FieldKind.COUNTER}
_VEHICLES_EVERY = 6
_VEHICLES_AT_ONCE = 1_000
_PIECE_S = 0.05  # between pieces, so that neither the loop nor the store has to take a whole fleet at once
_VEHICLE_COLUMNS = ("rows_done", "energy_mwh", "pay_micro", "leases")


@dataclass(frozen=True, slots=True)
class ServiceState:
    """What the coordinator's outer parts measured.

    `waiting_ms` is how long telemetry has waited for the store, where it may wait on; `refusals` are those that the
    core does not count itself.
    """

    connected: bool
    telemetry: Delay
    messages: Delay
    commits: Delay
    waiting_ms: float
    store: StoreStatus
    events_waiting: int
    refusals: Counter[str]


@dataclass(slots=True)
class Observer:
    """Makes points from a core; remembers which series there were, so that they go down to zero and don't break off.

    `latest` are the fleet-wide points made last.
    """

    core: Core
    latest: list[MetricPoint] = field(default_factory=list)
    _reasons: set[Reason] = field(default_factory=set)
    _regions: set[int] = field(default_factory=set)
    _vehicles: Columns = field(default_factory=dict)

    def fleet_wide(self, service: ServiceState, now_ms: int) -> list[MetricPoint]:
        """One point a series of every measurement that is not about single vehicles; counters are totals."""
        core = self.core
        reasons = core.reasons(now_ms)
        jobs = list(core.jobs.values())
        self.latest = [
            _point(metrics.FLEET_STATE, now_ms, _fleet_state(core, reasons, now_ms)),
            *self._by_reason(reasons, now_ms),
            *self._by_region(reasons, now_ms),
            _point(metrics.JOB_STATE, now_ms, _job_state(core, jobs, reasons, now_ms)),
            *(
                _point(
                    metrics.JOB_WASTE,
                    now_ms,
                    {
                        "rows_released": waste.rows_released,
                        "rows": waste.rows,
                        "compute_ms": waste.compute_ms,
                        "energy_mwh": waste.energy_mwh,
                    },
                    cause=cause,
                )
                for cause, waste in sorted(core.totals.waste.items())
            ),
            _point(metrics.VERIFICATION, now_ms, _verification(core)),
            _point(metrics.ECONOMICS, now_ms, _economics(core)),
            _point(metrics.SERVICE, now_ms, _service(service, now_ms)),
            *(
                _point(metrics.SERVICE_REFUSAL, now_ms, {"refused": count}, reason=reason)
                for reason, count in sorted((core.refusals + service.refusals).items())
            ),
            *(
                _point(metrics.SERVICE_STORE, now_ms, {"events": count}, event=event)
                for event, count in sorted(service.store.counters.items())
            ),
        ]
        return self.latest

    def _by_reason(self, reasons: NDArray[np.int8], now_ms: int) -> list[MetricPoint]:
        counts = np.bincount(reasons, minlength=len(Reason)).tolist()
        self._reasons.update(reason for reason in Reason if counts[reason] and reason is not Reason.ELIGIBLE)
        return [
            _point(metrics.FLEET_REASON, now_ms, {"vehicles": counts[reason]}, reason=reason.name.lower())
            for reason in sorted(self._reasons)
        ]

    def _by_region(self, reasons: NDArray[np.int8], now_ms: int) -> list[MetricPoint]:
        fleet = self.core.fleet
        region = fleet.live("region")
        everywhere = np.ones(len(fleet), dtype=np.bool_)
        masks = {
            "vehicles": everywhere,
            "online": fleet.live("online"),
            "eligible": reasons == Reason.ELIGIBLE,
            "working": fleet.live("leases") > 0,
        }
        counts = {name: np.bincount(region[mask], minlength=len(fleet.regions)) for name, mask in masks.items()}
        self._regions.update(np.flatnonzero(counts["vehicles"]).tolist())
        return [
            _point(
                metrics.FLEET_REGION,
                now_ms,
                {name: int(values[place]) for name, values in counts.items()},
                region=_region_name(fleet.regions[place]),
            )
            for place in sorted(self._regions)
        ]

    def vehicles(self, now_ms: int) -> Iterator[list[MetricPoint]]:
        """A point for every vehicle of which anything changed since this was last called; counters are growth.

        In pieces, for there may be many; what of them is not taken is told the next time. The first call makes none:
        what a restarted coordinator remembers is no growth.
        """
        fleet = self.core.fleet
        now = {name: fleet.live(name).astype(np.int64) for name in _VEHICLE_COLUMNS}
        now["reason"] = self.core.reasons(now_ms).astype(np.int64)
        if not self._vehicles:
            self._vehicles = now
            return
        before = {
            name: _before(self._vehicles[name], values, new=-1 if name == "reason" else 0)
            for name, values in now.items()
        }
        self._vehicles = before
        changed = np.flatnonzero(np.any([values != before[name] for name, values in now.items()], axis=0))
        for start in range(0, len(changed), _VEHICLES_AT_ONCE):
            rows = changed[start : start + _VEHICLES_AT_ONCE]
            points = self._vehicle_points(rows, now, before, now_ms)
            for name, values in now.items():
                before[name][rows] = values[rows]
            yield points

    def _vehicle_points(self, rows: NDArray[np.int64], now: Columns, before: Columns, now_ms: int) -> list[MetricPoint]:
        fleet = self.core.fleet
        growth = {
            name: (now[name][rows] - before[name][rows]).tolist() for name in ("rows_done", "energy_mwh", "pay_micro")
        }
        reasons, leases = now["reason"][rows].tolist(), now["leases"][rows].tolist()
        regions = fleet.live("region")[rows].tolist()
        return [
            _point(
                metrics.VEHICLE_WORK,
                now_ms,
                {
                    "reason": Reason(reason).name.lower(),
                    "eligible": int(reason == Reason.ELIGIBLE),
                    "leases": held,
                    "rows": done,
                    "energy_mwh": energy_mwh,
                    "pay_micro": pay_micro,
                },
                vehicle=fleet.ids[row],
                region=_region_name(fleet.regions[region]),
            )
            for row, region, reason, held, done, energy_mwh, pay_micro in zip(
                rows.tolist(), regions, reasons, leases, *growth.values(), strict=True
            )
        ]


def growth(points: Iterable[MetricPoint], before: Iterable[MetricPoint]) -> list[MetricPoint]:
    """The same points with what their counters grew by; a series that is new has grown from zero."""
    known = {_series(point): point.fields for point in before}
    return [_grown(point, known.get(_series(point), {})) for point in points]


async def keep_observing(
    observer: Observer,
    service: Callable[[], ServiceState],
    clock_ms: Callable[[], int],
    record: Callable[[Sequence[MetricPoint]], None],
    every_s: float,
) -> None:
    """Observe until cancelled and hand what grew to `record`; vehicles every sixth time, for there may be many."""
    for times in itertools.count():
        now_ms = clock_ms()
        _look_at_fleet(observer, service(), now_ms, record)
        if times % _VEHICLES_EVERY == 0:
            for piece in observer.vehicles(now_ms):
                record(piece)
                await asyncio.sleep(_PIECE_S)
        await asyncio.sleep(every_s)


def look_last(
    observer: Observer, service: ServiceState, now_ms: int, record: Callable[[Sequence[MetricPoint]], None]
) -> None:
    """Hand over what happened since the last time, of vehicles too: nobody will look again."""
    _look_at_fleet(observer, service, now_ms, record)
    for piece in observer.vehicles(now_ms):
        record(piece)


def _look_at_fleet(
    observer: Observer, service: ServiceState, now_ms: int, record: Callable[[Sequence[MetricPoint]], None]
) -> None:
    before = observer.latest
    record(growth(observer.fleet_wide(service, now_ms), before))


def _point(measurement: metrics.Measurement, now_ms: int, values: Mapping[str, Value], **tags: str) -> MetricPoint:
    return MetricPoint(measurement.name, now_ms, tags, values)


def _series(point: MetricPoint) -> Series:
    return point.measurement, tuple(sorted(point.tags.items()))


def _grown(point: MetricPoint, before: Mapping[str, Value]) -> MetricPoint:
    fields = {
        name: value - before.get(name, 0) if (point.measurement, name) in _COUNTERS else value  # type: ignore[operator]
        for name, value in point.fields.items()
    }
    return MetricPoint(point.measurement, point.time_ms, point.tags, fields)


def _before(known: NDArray[np.int64], now: NDArray[np.int64], new: int) -> NDArray[np.int64]:
    """What was known of each vehicle, `new` for those that were not."""
    before = np.full_like(now, new)
    before[: len(known)] = known
    return before


def _region_name(region: str) -> str:
    return region or "unknown"


def _fleet_state(core: Core, reasons: NDArray[np.int8], now_ms: int) -> dict[str, Value]:
    fleet = core.fleet
    online = fleet.live("online")
    charge = fleet.live("charge_percent")[online]
    known = charge[~np.isnan(charge)]
    state: dict[str, Value] = {
        "plugged_in_1h": float(online.sum() * core.foresight.plugged_forecast(now_ms)),
        "vehicles": len(fleet),
        "online": int(online.sum()),
        "plugged": int((online & (fleet.live("plugged") == 1)).sum()),
        "charging": int((online & (fleet.live("charging") == 1)).sum()),
        "eligible": int((reasons == Reason.ELIGIBLE).sum()),
        "working": int((fleet.live("leases") > 0).sum()),
    }
    if len(known):
        state["charge_percent"] = float(known.mean())
    return state


def _job_state(core: Core, jobs: Sequence[JobProgress], reasons: NDArray[np.int8], now_ms: int) -> dict[str, Value]:
    cars = int((reasons == Reason.ELIGIBLE).sum())
    return {
        "running": len(jobs),
        "rows_waiting": sum(progress.rows_free for progress in jobs),
        "rows_leased": sum(progress.rows_leased for progress in jobs),
        "leases": sum(len(progress.leases) for progress in jobs),
        "oldest_s": max((now_ms - progress.job.created_ms for progress in jobs), default=0) / 1000,
        "lateness_s": max((_lateness_s(core, progress, cars, now_ms) for progress in jobs), default=0.0),
        "rows": core.totals.rows,
        "leases_granted": core.totals.leases_granted,
        "leases_expired": core.counters["lease_expired"],
        "done": core.counters["job_done"],
        "failed": core.counters["job_failed"],
        "cancelled": core.counters["job_cancelled"],
    }


def _lateness_s(core: Core, progress: JobProgress, cars: int, now_ms: int) -> float:
    """How far past its deadline a job is expected to end on the cars that may work now; 0 where nothing is known."""
    limit_s, row_ms = progress.job.terms.deadline_s, core.speeds.model_row_ms(progress.job.model)
    if limit_s is None or row_ms is None or not cars:
        return 0.0
    left_s = limit_s - (now_ms - progress.job.created_ms) / 1000
    return max(0.0, (progress.job.rows - progress.rows_done) * row_ms / cars / 1000 - left_s)


def _verification(core: Core) -> dict[str, Value]:
    jobs = core.verifying.jobs.values()
    return {
        "rows_held": sum(checks.rows_held for checks in jobs),
        "checks_open": sum(checks.checks_open for checks in jobs),
        "checks_passed": core.counters["check_passed"],
        "rows_refereed": core.counters["row_refereed"],
        "rows_retracted": core.counters["rows_retracted"],
        "rows_too_late": core.counters["rows_too_late"],
        "convictions": core.counters["vehicle_convicted"],
    }


def _economics(core: Core) -> dict[str, Value]:
    totals = core.totals
    return {
        "rows": totals.rows,
        "compute_ms": totals.compute_ms,
        "energy_mwh": totals.energy_mwh,
        "energy_cost_micro": totals.energy_cost_micro,
        "pay_micro": totals.pay_micro,
        "wasted_energy_mwh": totals.wasted_energy_mwh,
    }


def _service(service: ServiceState, now_ms: int) -> dict[str, Value]:
    oldest_ms = service.store.oldest_ms
    spilled_ms = 0 if oldest_ms is None else now_ms - oldest_ms
    return {
        "connected": int(service.connected),
        "telemetry": service.telemetry.count,
        "telemetry_wait_ms": service.telemetry.total_ms,
        "telemetry_wait_worst_ms": service.telemetry.take_worst_ms(),
        "messages": service.messages.count,
        "messages_wait_ms": service.messages.total_ms,
        "messages_wait_worst_ms": service.messages.take_worst_ms(),
        "store_lag_ms": float(max(service.waiting_ms, spilled_ms)),
        "store_waiting": service.store.lines_waiting,
        "store_trouble": int(bool(service.store.trouble)),
        "commits": service.commits.count,
        "commits_ms": service.commits.total_ms,
        "commit_worst_ms": service.commits.take_worst_ms(),
        "events_waiting": service.events_waiting,
    }
