"""What people see of the core's state, as the HTTP interface's objects. Only reads."""

from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.assignment import share_reached
from coordinator.core import Core
from coordinator.progress import JobProgress
from coordinator.rules.eligibility import EXPLANATIONS, Reason, job_reasons, reasons_of
from coordinator.rules.explanations import explained
from fleet_wire.api import JobView, VehicleView

__all__ = ["job_view", "reasons_for", "vehicle_view", "vehicle_views"]


def job_view(core: Core, progress: JobProgress, now_ms: int) -> JobView:
    """A running job."""
    job, limit_s = progress.job, progress.job.terms.deadline_s
    checks = core.verifying.jobs.get(job.id)
    return JobView(
        id=job.id,
        name=job.name,
        model=job.model,
        state="running",
        rows=job.rows,
        rows_done=progress.rows_done,
        rows_leased=progress.rows_leased,
        created_ms=job.created_ms,
        ended_ms=None,
        error=None,
        rows_duplicate=progress.rows_duplicate,
        rows_released_again=progress.rows_released_again,
        compute_ms=progress.compute_us / 1000,
        energy_mwh=progress.energy_mwh,
        pay_micro=progress.pay_micro,
        vehicles=len(progress.rests),
        waiting_for=_waiting_for(core, progress, now_ms),
        estimate_s=_estimate_s(core, progress, now_ms),
        rows_failed=len(progress.failed),
        deadline_in_s=None if limit_s is None else limit_s - (now_ms - job.created_ms) / 1000,
        verification=job.terms.verification.label,
        rows_held=0 if checks is None else checks.rows_held,
        rows_checked=0 if checks is None else checks.rows_checked,
        rows_retracted=0 if checks is None else checks.rows_retracted,
    )


def vehicle_views(core: Core, now_ms: int) -> Iterator[VehicleView]:
    """Every vehicle known, by id."""
    reasons = core.reasons(now_ms).tolist()
    return (_vehicle(core, row, Reason(reasons[row])) for _, row in sorted(core.fleet.index.items()))


def vehicle_view(core: Core, vehicle: str, now_ms: int) -> VehicleView | None:
    """One vehicle, or None when it is not known."""
    row = core.fleet.index.get(vehicle)
    if row is None:
        return None
    view = _vehicle(core, row, Reason(int(core.reasons(now_ms)[row])))
    limits, given = core.policy.eligibility, core.circumstances(now_ms)
    reasons = reasons_of(core.fleet, row, limits, given)
    return msgspec.structs.replace(
        view, reasons=[explained(core.fleet, row, reason, limits, given) for reason in reasons]
    )


def reasons_for(core: Core, progress: JobProgress, now_ms: int) -> NDArray[np.int8]:
    """For each vehicle the first reason why it gets nothing of this job: its own, or the pair's."""
    own = core.reasons(now_ms)
    pair = job_reasons(core.fleet, progress.job.terms, share_reached=share_reached(core.fleet, progress))
    return np.where(own == Reason.ELIGIBLE, pair, own)


def _vehicle(core: Core, row: int, reason: Reason) -> VehicleView:
    fleet = core.fleet

    def flag(name: str) -> bool | None:
        value = int(fleet.column[name][row])
        return None if value < 0 else bool(value)

    charge, price = (float(fleet.column[name][row]) for name in ("charge_percent", "energy_micro_per_kwh"))
    received_ms = int(fleet.column["received_ms"][row])
    return VehicleView(
        id=fleet.ids[row],
        online=bool(fleet.column["online"][row]),
        eligible=reason is Reason.ELIGIBLE,
        reason=_reason_text(reason, fleet.refusal[row]),
        plugged=flag("plugged"),
        charging=flag("charging"),
        charge_percent=None if np.isnan(charge) else charge,
        leases=int(fleet.column["leases"][row]),
        rows_per_s=core.speeds.rows_per_s(fleet.ids[row]),
        rows_done=int(fleet.column["rows_done"][row]),
        energy_mwh=int(fleet.column["energy_mwh"][row]),
        pay_micro=int(fleet.column["pay_micro"][row]),
        last_seen_ms=received_ms or None,
        region=fleet.regions[fleet.column["region"][row]],
        energy_micro_per_kwh=None if np.isnan(price) else int(price),
        trust=int(fleet.column["checks_passed"][row]),
        convictions=int(fleet.column["convictions"][row]),
    )


def _reason_text(reason: Reason, refusal: str) -> str | None:
    if reason is Reason.ELIGIBLE:
        return None
    own_words = f" ({refusal})" if reason is Reason.CAR_REFUSES else ""
    return f"{reason.name.lower()}: {EXPLANATIONS[reason]}{own_words}"


def _waiting_for(core: Core, progress: JobProgress, now_ms: int) -> str | None:
    """Why free rows are not leased at this moment, in words; None when none wait."""
    if not progress.rows_free:
        return None
    reasons = reasons_for(core, progress, now_ms)
    if len(reasons) == 0:
        return "no car is known yet"
    if np.any(reasons == Reason.ELIGIBLE):
        return "all cars that may work for it are busy"
    counts = np.bincount(reasons, minlength=len(Reason))
    shown = ", ".join(f"{counts[reason]} {reason.name.lower()}" for reason in Reason if counts[reason])
    return f"no car may work for it: {shown}"


def _estimate_s(core: Core, progress: JobProgress, now_ms: int) -> float | None:
    """Seconds that the rest should take on the cars that may work for it now; None when nothing was measured yet."""
    row_ms = core.speeds.model_row_ms(progress.job.model)
    cars = int(np.count_nonzero(reasons_for(core, progress, now_ms) == Reason.ELIGIBLE))
    if row_ms is None or not cars:
        return None
    return progress.left * row_ms / cars / 1000
