"""What the command line says about jobs, vehicles and health, in plain words. Pure."""

from fleet_wire.api import HealthView, JobView, VehicleView

__all__ = ["counted", "health_lines", "why_job", "why_vehicle"]


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
