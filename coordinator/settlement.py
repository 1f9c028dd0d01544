"""What results took and earned, split over the receipts of their leases; and what was computed for nothing, by cause.

Whether rows count is decided before.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.events import RowsReceived
from coordinator.fleet_view import FleetView
from coordinator.model import ReceiptPart, Rest
from coordinator.progress import JobProgress
from coordinator.rules.pay import PowerLimits, paid, plausible_mwh, plausible_us, split
from coordinator.totals import Totals

__all__ = ["Settlement"]

_LONGEST_MS = 600_000  # of work under a lease that is not known any more


@dataclass(slots=True)
class Settlement:
    """Adds to the sums of jobs, of vehicles (columns of the fleet view) and since the start (`totals`)."""

    limits: PowerLimits
    fleet: FleetView
    totals: Totals
    refusals: Counter[str]

    def settle(
        self, event: RowsReceived, progress: JobProgress, fresh: Sequence[int], now_ms: int
    ) -> tuple[ReceiptPart, ...]:
        """Split what a result took over its spans; `fresh` says how many rows of each count, the others are wasted."""
        spans = event.rows.spans
        rows = [span.stop - span.start for span in spans]
        compute_us, energy_mwh = self._believed(event, _elapsed_ms(event, progress, now_ms))
        rest = progress.rests.get(event.vehicle, Rest())
        parts = []
        for span, count, new, us, mwh in zip(
            spans, rows, fresh, split(compute_us, rows), split(energy_mwh, rows), strict=True
        ):
            new_us, new_mwh = us, mwh
            if new < count:
                new_us, new_mwh = us * new // count, mwh * new // count
                self.totals.not_accepted("duplicate", count - new, us - new_us, mwh - new_mwh)
            if new:
                lease = progress.granted[span.chunk]
                energy_pay, fee_pay, rest = paid(new_mwh, new_us, lease, rest)
                parts.append(ReceiptPart(lease, new, new_us, new_mwh, energy_pay, fee_pay))
        if parts:
            progress.rests[event.vehicle] = rest
            self._add(event.vehicle, progress, parts)
        return tuple(parts)

    def malformed(self, event: RowsReceived, progress: JobProgress, now_ms: int) -> None:
        """Count rows whose outputs do not fit the model."""
        self._waste("malformed", event, _elapsed_ms(event, progress, now_ms))

    def too_late(self, event: RowsReceived) -> None:
        """Count rows of a job that has ended."""
        if event.vehicle in self.fleet.index:
            self._waste("job_ended", event, _LONGEST_MS)

    def _waste(self, cause: str, event: RowsReceived, elapsed_ms: int) -> None:
        rows = sum(span.stop - span.start for span in event.rows.spans)
        self.totals.not_accepted(cause, rows, *self._believed(event, elapsed_ms))

    def _believed(self, event: RowsReceived, elapsed_ms: int) -> tuple[int, int]:
        """Computing time and energy of a result, as far as they can be true."""
        row = self.fleet.row(event.vehicle)
        stated_w, awake_w, charging = (
            float(self.fleet.column[name][row]) for name in ("stated_power_w", "awake_power_w", "charging")
        )
        if charging == 1:  # which keeps it awake anyway
            awake_w = 0.0
        elif np.isnan(awake_w):
            awake_w = self.limits.unstated_awake_w
        told_mwh = event.rows.energy_mwh
        compute_us = plausible_us(event.rows.compute_ms, elapsed_ms, self.limits)
        energy_mwh = plausible_mwh(told_mwh, compute_us, stated_w, awake_w, self.limits)
        if energy_mwh < told_mwh:
            self.refusals["result_energy_capped"] += 1
            self.totals.energy_capped_mwh += told_mwh - energy_mwh
        return compute_us, energy_mwh

    def _add(self, vehicle: str, progress: JobProgress, parts: Sequence[ReceiptPart]) -> None:
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


def _elapsed_ms(event: RowsReceived, progress: JobProgress, now_ms: int) -> int:
    return now_ms - min(progress.granted[span.chunk].granted_ms for span in event.rows.spans)
