"""Why a job's free rows wait, what its share of the fleet is, and how late leases are made up for. Only reads."""

import numpy as np

from coordinator.core import Core
from coordinator.progress import JobProgress
from coordinator.rules.eligibility import Reason
from coordinator.rules.explanations import REMEDIES
from coordinator.rules.scheduling import share_cap
from coordinator.views import job_view, reasons_for
from fleet_wire.api import FailedRowView, JobExplanation

__all__ = ["explain_job"]

_ROWS_SHOWN = 10


def explain_job(core: Core, progress: JobProgress, now_ms: int) -> JobExplanation:
    """Everything that decides about a running job at this moment."""
    others = [other for other in core.jobs.values() if other.free]
    weights = sum(map(core.scheduler.weight, others))
    cars = _cars(core, progress, now_ms)
    failed = sorted(progress.failed.values(), key=lambda row: row.row)[:_ROWS_SHOWN]
    return JobExplanation(
        job=job_view(core, progress, now_ms),
        rows_waiting=progress.rows_free,
        cars=cars,
        advice=[*_advice(progress, cars), *_verification(core, progress, cars)],
        jobs_waiting=len(others),
        share=core.scheduler.weight(progress) / weights if progress.free else None,
        rows_copied=progress.rows_copied,
        copies_left=max(0, core.scheduler.copies_left(progress)),
        failed=[FailedRowView(row.row, row.attempts, row.error) for row in failed],
    )


def _cars(core: Core, progress: JobProgress, now_ms: int) -> dict[str, int]:
    """How many cars stand where: by the first reason why they get nothing of this job, else busy, resting or ready."""
    fleet, sizing = core.fleet, core.policy.sizing
    first = reasons_for(core, progress, now_ms)
    may = first == Reason.ELIGIBLE
    busy = may & ((fleet.live("leases") >= fleet.live("slots")) | (fleet.live("backlog_ms") >= sizing.chunk_ms))
    resting = may & ~busy & (fleet.live("rest_until_ms") > now_ms)
    counts = np.bincount(first[~may], minlength=len(Reason))
    cars = {"ready": int(np.sum(may & ~busy & ~resting)), "busy": int(np.sum(busy)), "resting": int(np.sum(resting))}
    cars |= {reason.name.lower(): int(counts[reason]) for reason in Reason}
    return {name: count for name, count in cars.items() if count}


def _advice(progress: JobProgress, cars: dict[str, int]) -> list[str]:
    """What would have to change so that more cars work for this job, the most cars first."""
    terms, rows = progress.job.terms, progress.job.rows
    ceiling = (terms.price_ceiling_micro_per_kwh or 0) / 1_000_000
    own = {
        Reason.PURPOSE_NOT_AGREED: f"their owners would have to agree to the purpose {terms.purpose!r}",
        Reason.JOB_PRICE_CEILING: f"a kWh would have to cost {ceiling:.6g} at most",
        Reason.JOB_SHARE_REACHED: f"each has had its {share_cap(rows, terms.vehicle_share)} rows: "
        "other cars are needed, or a greater vehicle share",
        Reason.QUARANTINED: "they failed too often or answered wrongly: they get work again after their quarantine",
    }
    said = []
    for name, count in sorted(cars.items(), key=lambda item: (-item[1], item[0])):
        if name == "busy":
            said.append(f"{_counted(count)} busy: they take more rows when they have worked off what they hold")
        elif name == "resting":
            said.append(f"{_counted(count)} resting: each refused or failed a moment ago, and is asked again soon")
        elif name != "ready":
            reason = Reason[name.upper()]
            said.append(f"{_counted(count)} {name}: {own.get(reason, REMEDIES[reason])}")
    if progress.suspects:
        suspects = f"{len(progress.suspects)} row{'s' if len(progress.suspects) > 1 else ''}"
        said.append(
            f"{suspects} failed on some cars: each is tried by itself on others, and given up when it has failed on "
            f"{terms.max_attempts}"
        )
    return said


def _verification(core: Core, progress: JobProgress, cars: dict[str, int]) -> list[str]:
    """What rows of a verified job wait for that have been computed."""
    checks = core.verifying.jobs.get(progress.job.id)
    if checks is None:
        return []
    said = []
    terms, held = progress.job.terms.verification, checks.rows_held
    if held:
        said.append(f"{held} row{'s' if held > 1 else ''} held for checks, of which {checks.checks_open} are open")
    may = sum(cars.get(name, 0) for name in ("ready", "busy", "resting"))
    if terms.rule == "quorum" and may < terms.quorum:
        said.append(f"each row needs {terms.quorum} different cars, and {_counted(may)} may work for it")
    if checks.asked or checks.to_ask:
        said.append(f"the coordinator itself is to compute {len(checks.asked) + len(checks.to_ask)} of its rows")
    if progress.paused:
        said.append(f"{_counted(len(progress.paused))} wait for checks of their own rows before they get more")
    return said


def _counted(cars: int) -> str:
    return f"{cars} car{'s' if cars > 1 else ''}"
