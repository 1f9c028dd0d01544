"""What the command line says about jobs, vehicles and health, in plain words. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime

from fleet_wire.api import FailedRowView, HealthView, JobExplanation, JobView, PolicyView, VehicleView
from idlewheel.hours_text import format_hours
from idlewheel.money_text import MICRO

__all__ = [
    "counted",
    "health_lines",
    "job_note",
    "missing_rows",
    "policy_lines",
    "why_job",
    "why_running_job",
    "why_vehicle",
]


def why_vehicle(view: VehicleView) -> str:
    """Why this car works or does not."""
    if view.reasons:
        first, *others = view.reasons
        lines = [f"{view.id} gets no work: {first.text} ({first.code})", f"  what helps: {first.remedy}"]
        lines += [f"also in the way: {other.text} ({other.code})" for other in others]
    elif view.leases:
        lines = [f"{view.id} works: it holds {counted(view.leases, 'chunk')} of rows"]
    else:
        lines = [f"{view.id} may work, and has nothing to do: no job has rows for it at this moment"]
    if view.convictions:
        lines.append(
            f"it was convicted of wrong rows {counted(view.convictions, 'time')}, and since then "
            f"{counted(view.trust, 'row')} of its came out right"
        )
    elif view.trust:
        lines.append(f"{counted(view.trust, 'checked row')} of its came out right, and none wrong")
    return "\n".join(lines)


def why_job(view: JobView) -> str:
    """Where this job stands, and what it waits for."""
    done = f"{view.rows_done} of {counted(view.rows, 'row')}"
    match view.state:
        case "done":
            verified = f", verified ({_verified(view)})" if view.verification else ""
            return (
                f"job {view.id} is done: all {counted(view.rows, 'row')} by {counted(view.vehicles, 'car')}{verified}"
            )
        case "failed":
            return f"job {view.id} failed after {done}: {view.error}"
        case "cancelled":
            return f"job {view.id} was cancelled after {done}"
        case _:
            waiting = f"; the rest waits: {view.waiting_for}" if view.waiting_for else ""
            held = f", {view.rows_held} are held for checks" if view.rows_held else ""
            return f"job {view.id} runs: {done} are done and {view.rows_leased} are with cars{held}{waiting}"


def job_note(view: JobView) -> str:
    """What is to be known of a job besides its figures: its error, that it will be late, or why rows wait."""
    notes = [view.error or "", _lateness(view), view.waiting_for or "", _verified(view) if view.verification else ""]
    return "; ".join(note for note in notes if note)


def _verified(view: JobView) -> str:
    counts = ((view.rows_checked, "checked"), (view.rows_held, "held"), (view.rows_retracted, "taken back"))
    return ", ".join([view.verification, *(f"{count} {what}" for count, what in counts if count)])


def _lateness(view: JobView) -> str:
    if view.deadline_in_s is None or view.estimate_s is None or view.estimate_s <= view.deadline_in_s:
        return ""
    return f"will miss its deadline by {_duration(view.estimate_s - view.deadline_in_s)}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def why_running_job(explanation: JobExplanation) -> str:
    """Where a running job stands, on a few lines: why rows wait, its share, copies and failures."""
    view = explanation.job
    lines = [
        f"job {view.id} runs: {view.rows_done} of {counted(view.rows, 'row')} are done, "
        f"{view.rows_leased} are with cars, {explanation.rows_waiting} wait"
    ]
    ready = explanation.cars.get("ready", 0)
    if explanation.rows_waiting and ready:
        lines.append(f"{counted(ready, 'car')} can take rows now")
    if explanation.rows_waiting or view.verification:
        lines += explanation.advice
    if explanation.rows_waiting and not explanation.cars:
        lines.append("no car is known yet: `idlewheel agent` is one, `idlewheel up --vehicles 4` simulates some")
    usable = any(explanation.cars.get(name) for name in ("ready", "busy", "resting"))
    if usable and explanation.share is not None and explanation.jobs_waiting > 1:
        lines.append(
            f"its share of the fleet is {explanation.share:.0%}, beside {explanation.jobs_waiting - 1} more with rows "
            "that wait: a higher priority gets more"
        )
    if view.estimate_s is not None:
        alone = " with all those cars for itself" if explanation.jobs_waiting > 1 else ""
        lines.append(f"it should end in about {_duration(view.estimate_s)}{alone}")
    if view.deadline_in_s is not None:
        late = _lateness(view)
        missed = f": it {late}" if late else ""
        lines.append(f"its deadline is in {_duration(view.deadline_in_s)}, and then it ends as failed{missed}")
    if explanation.rows_copied:
        lines.append(
            f"{counted(explanation.rows_copied, 'late row')} went to a second car, {explanation.copies_left} more may"
        )
    lines += [f"row {row.row} was given up after {row.attempts} attempts: {row.error}" for row in explanation.failed]
    if view.rows_failed > len(explanation.failed):
        lines.append(f"and {view.rows_failed - len(explanation.failed)} more rows were given up")
    return "\n".join(lines)


def missing_rows(view: JobView, failures: Sequence[FailedRowView]) -> str:
    """What a partial result does not have."""
    missing = f"{view.rows - view.rows_done} of {counted(view.rows, 'row')} are missing"
    return "\n".join([missing, *(f"row {row.row} failed: {row.error}" for row in failures)])


def health_lines(view: HealthView) -> str:
    """The coordinator's state on a few lines."""
    broker = "connected" if view.broker_connected else "not connected"
    lines = [
        f"fleet {view.fleet}: {view.status}, broker {broker}",
        f"{counted(view.vehicles_online, 'car')} online, {view.vehicles_eligible} may work; "
        f"{counted(view.jobs_running, 'job')} running",
    ]
    if view.store:
        lines.append(f"store: {view.store}")
    if view.ledger:
        lines.append(f"ledger: {view.ledger}")
    if view.refusals:
        lines.append("refused: " + ", ".join(f"{count} {reason}" for reason, count in sorted(view.refusals.items())))
    return "\n".join(lines)


def policy_lines(view: PolicyView) -> str:
    """A version of an owner's policy, a line for each thing that it says."""
    policy, link = view.policy, view.policy.link
    set_at = datetime.fromtimestamp(view.set_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    lines = [f"{view.vehicle}, version {policy.version} of owner {policy.owner}, set by {view.set_by} at {set_at}"]
    if policy.revoked:
        return f"{lines[0]}: revoked"
    lines.append(f"  works for {', '.join(policy.purposes)}")
    hours = "; ".join(format_hours(each) for each in policy.hours)
    lines.append(f"  at all hours (timezone {policy.timezone})" if not hours else f"  on {hours} ({policy.timezone})")
    lines.append(f"  from {policy.charge_floor_percent:g} % of charge")
    limits = (
        (policy.departure_charge_percent, "with {:g} % of charge at the next departure", 1),
        (policy.price_ceiling_micro_per_kwh, "where a kWh costs {:g} at most", MICRO),
        (policy.least_pay_micro_per_h or None, "for {:g} an hour of computing at least", MICRO),
        (policy.power_cap_w, "drawing {:g} W at most", 1),
        (policy.threads, "in {:g} threads at most", 1),
        (policy.niceness, "with a niceness of {:g} at least", 1),
        (policy.memory_bytes, "within {:g} MB of memory", MICRO),
        (link.least_mbps or None, "over links of {:g} Mbit/s at least", 1),
        (link.month_bytes, "carrying {:g} MB a month at most", MICRO),
    )
    lines += [f"  {text.format(value / unit)}" for value, text, unit in limits if value is not None]
    if policy.charge_coincident_only:
        lines.append("  only while charging")
    lines.append("  over metered links too" if link.metered_allowed else "  not over metered links")
    return "\n".join(lines)


def counted(count: int, noun: str) -> str:
    """A count with its noun in the right number."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
