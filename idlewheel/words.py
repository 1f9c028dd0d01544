"""What the command line says about jobs, vehicles and health, in plain words. Pure."""

from collections.abc import Sequence

from fleet_wire.api import FailedRowView, HealthView, JobExplanation, JobView, VehicleView

__all__ = ["counted", "health_lines", "missing_rows", "why_job", "why_running_job", "why_vehicle"]


def why_vehicle(view: VehicleView) -> str:
    """Why this car works or does not."""
    if view.reason is not None:
        code, _, explanation = view.reason.partition(": ")
        return f"{view.id} gets no work: {explanation} ({code})" if explanation else f"{view.id} gets no work: {code}"
    if view.leases:
        return f"{view.id} works: it holds {counted(view.leases, 'chunk')} of rows"
    return f"{view.id} may work, and has nothing to do: no job has rows for it at this moment"


def why_job(view: JobView) -> str:
    """Where this job stands, and what it waits for."""
    done = f"{view.rows_done} of {counted(view.rows, 'row')}"
    match view.state:
        case "done":
            return f"job {view.id} is done: all {counted(view.rows, 'row')} by {counted(view.vehicles, 'car')}"
        case "failed":
            return f"job {view.id} failed after {done}: {view.error}"
        case "cancelled":
            return f"job {view.id} was cancelled after {done}"
        case _:
            waiting = f"; the rest waits: {view.waiting_for}" if view.waiting_for else ""
            return f"job {view.id} runs: {done} are done and {view.rows_leased} are with cars{waiting}"


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
    if explanation.rows_waiting:
        lines += [f"cars: {line}" for line in explanation.advice] or ["no car is known yet"]
    if explanation.share is not None:
        jobs = counted(explanation.jobs_waiting, "job")
        lines.append(f"its share of the fleet is {explanation.share:.0%}, of {jobs} with rows that wait")
    if view.estimate_s is not None:
        lines.append(f"it should end in about {view.estimate_s:.0f} s")
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
    if view.refusals:
        lines.append("refused: " + ", ".join(f"{count} {reason}" for reason, count in sorted(view.refusals.items())))
    return "\n".join(lines)


def counted(count: int, noun: str) -> str:
    """A count with its noun in the right number."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
