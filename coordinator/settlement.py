"""What results took and earned, split over the receipts of their leases; and what was computed for nothing, by cause.

Whether rows count is decided before.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from coordinator.events import RowsReceived
from coordinator.fleet_view import FleetView
from coordinator.model import ReceiptPart, Rest
from coordinator.progress import JobProgress
from coordinator.rules.pay import PowerLimits, Worked, most_mwh, most_us, paid, plausible_us, split, with_claim
from coordinator.totals import Totals
from fleet_wire.messages import Span

__all__ = ["Settlement"]

_LONGEST_US = 600_000_000  # of work under a lease that is not known any more


@dataclass(slots=True)
class _Account:
    """The time that a car is paid for, and how much energy it may tell of before the work that took it.

    Work that is not paid is not counted here: a result that came twice must not take the time of another.
    """

    spare_mwh: float
    worked: Worked = ()


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What can be true of a result: computing since its first lease was granted, and what that and being awake draw."""

    granted_ms: int
    most_us: int
    power_w: tuple[float, float]


@dataclass(slots=True)
class Settlement:
    """Adds to the sums of jobs, of vehicles (columns of the fleet view) and since the start (`totals`)."""

    limits: PowerLimits
    fleet: FleetView
    totals: Totals
    refusals: Counter[str]
    _accounts: dict[str, _Account] = field(default_factory=dict)

    def restore(self, vehicle: str, since_ms: int, compute_us: int) -> None:
        """Go on from what the ledger remembers: so much was paid under leases granted since then."""
        account = self._account(vehicle)
        account.worked = with_claim(account.worked, since_ms, compute_us)

    def settle(
        self, event: RowsReceived, progress: JobProgress, fresh: Sequence[int], now_ms: int
    ) -> tuple[ReceiptPart, ...]:
        """Split what a result took over its spans; `fresh` says how many rows of each count, the others are wasted."""
        spans = event.rows.spans
        rows = [span.stop - span.start for span in spans]
        account, bounds = self._account(event.vehicle), self._bounds(event.vehicle, spans, progress, now_ms)
        compute_us, energy_mwh = self._believed(event, bounds, account.spare_mwh)
        all_us, all_mwh = split(compute_us, rows), split(energy_mwh, rows)
        new_us = [us * new // count for us, new, count in zip(all_us, fresh, rows, strict=True)]
        new_mwh = [mwh * new // count for mwh, new, count in zip(all_mwh, fresh, rows, strict=True)]
        if sum(fresh) < sum(rows):
            self.totals.not_accepted(
                "duplicate", sum(rows) - sum(fresh), compute_us - sum(new_us), energy_mwh - sum(new_mwh)
            )
        paid_spans = [span for span, new in zip(spans, fresh, strict=True) if new]
        if not paid_spans:
            return ()
        if len(paid_spans) < len(spans):  # what came before buys no time for what is new
            bounds = self._bounds(event.vehicle, paid_spans, progress, now_ms)
            new_us, new_mwh = self._bounded(new_us, new_mwh, bounds, account.spare_mwh)
        rest = progress.rests.get(event.vehicle, Rest())
        parts = []
        for span, new, us, mwh in zip(spans, fresh, new_us, new_mwh, strict=True):
            if new:
                lease = progress.granted[span.chunk]
                energy_pay, fee_pay, rest = paid(mwh, us, lease, rest)
                parts.append(ReceiptPart(lease, new, us, mwh, energy_pay, fee_pay))
        progress.rests[event.vehicle] = rest
        paid_us, paid_mwh = self._add(event.vehicle, progress, parts)
        account.worked = with_claim(account.worked, bounds.granted_ms, paid_us)
        spare_mwh = account.spare_mwh + most_mwh(paid_us, *bounds.power_w, self.limits) - paid_mwh
        account.spare_mwh = max(0.0, min(spare_mwh, self.limits.carried_mwh))
        return tuple(parts)

    def _bounded(self, us: list[int], mwh: list[int], bounds: _Bounds, spare_mwh: float) -> tuple[list[int], list[int]]:
        """The same in proportion, as far as they can be true together."""
        most = max(0, bounds.most_us)  # below zero where the clock was set back
        if sum(us) > most:
            self.refusals["result_time_capped"] += 1
            us = split(most, us)
        energy_mwh = int(most_mwh(sum(us), *bounds.power_w, self.limits) + spare_mwh)
        if sum(mwh) > energy_mwh:
            self.totals.energy_capped_mwh += sum(mwh) - energy_mwh
            mwh = split(energy_mwh, mwh)
        return us, mwh

    def refused(self, cause: str, event: RowsReceived, progress: JobProgress, now_ms: int) -> None:
        """Count rows that were leased to their car, and do not count all the same."""
        self._waste(cause, event, self._bounds(event.vehicle, event.rows.spans, progress, now_ms))

    def too_late(self, event: RowsReceived, now_ms: int) -> None:
        """Count rows of a job that has ended."""
        if event.vehicle in self.fleet.index:
            bounds = _Bounds(now_ms, _LONGEST_US, self._power_w(event.vehicle, now_ms))
            self._waste("job_ended", event, bounds)

    def _waste(self, cause: str, event: RowsReceived, bounds: _Bounds) -> None:
        rows = sum(span.stop - span.start for span in event.rows.spans)
        self.totals.not_accepted(cause, rows, *self._believed(event, bounds, 1.0))

    def _account(self, vehicle: str) -> _Account:
        return self._accounts.setdefault(vehicle, _Account(self.limits.carried_mwh))

    def _bounds(self, vehicle: str, spans: Sequence[Span], progress: JobProgress, now_ms: int) -> _Bounds:
        granted_ms = min(progress.granted[span.chunk].granted_ms for span in spans)
        most = most_us(granted_ms, now_ms, self._account(vehicle).worked, self.limits)
        return _Bounds(granted_ms, most, self._power_w(vehicle, granted_ms))

    def _power_w(self, vehicle: str, granted_ms: int) -> tuple[float, float]:
        """The most that computing draws by the car's word, and what being awake does besides."""
        row = self.fleet.row(vehicle)
        stated_w, awake_w = (float(self.fleet.column[name][row]) for name in ("stated_power_w", "awake_power_w"))
        if self.fleet.column["charging_since_ms"][row] <= granted_ms:  # which kept it awake anyway
            awake_w = 0.0
        elif np.isnan(awake_w):
            awake_w = self.limits.unstated_awake_w
        return stated_w, awake_w

    def _believed(self, event: RowsReceived, bounds: _Bounds, spare_mwh: float) -> tuple[int, int]:
        """Computing time and energy of a result, as far as they can be true."""
        told_mwh = event.rows.energy_mwh
        compute_us = plausible_us(event.rows.compute_ms, bounds.most_us)
        if compute_us < int(event.rows.compute_ms * 1_000):
            self.refusals["result_time_capped"] += 1
        energy_mwh = min(told_mwh, int(most_mwh(compute_us, *bounds.power_w, self.limits) + spare_mwh))
        if energy_mwh < told_mwh:
            self.refusals["result_energy_capped"] += 1
            self.totals.energy_capped_mwh += told_mwh - energy_mwh
        return compute_us, energy_mwh

    def _add(self, vehicle: str, progress: JobProgress, parts: Sequence[ReceiptPart]) -> tuple[int, int]:
        """Count what is paid; return the time and the energy of it."""
        rows = compute_us = energy_mwh = energy_pay = fee_pay = 0
        for part in parts:  # once, for there may be one a row
            rows += part.rows
            compute_us += part.compute_us
            energy_mwh += part.energy_mwh
            energy_pay += part.energy_pay_micro
            fee_pay += part.fee_pay_micro
        pay = energy_pay + fee_pay
        progress.compute_us += compute_us
        progress.energy_mwh += energy_mwh
        progress.pay_micro += pay
        row = self.fleet.row(vehicle)
        for name, value in (("rows_done", rows), ("energy_mwh", energy_mwh), ("pay_micro", pay)):
            self.fleet.column[name][row] += value
        self.totals.accepted(rows, compute_us, energy_mwh, energy_pay, pay)
        return compute_us, energy_mwh
