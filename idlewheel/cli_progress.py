"""A job's progress on a terminal's standard error: rows done, rows a second, cars. Never where there is no terminal."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fleet_wire.api import JobView
from idlewheel.client import Job
from idlewheel.words import counted

__all__ = ["wait_with_progress"]


def wait_with_progress(job: Job) -> JobView:
    """Wait until the job has ended; the last line stays on the screen."""
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    ) as progress:
        task = progress.add_task(f"job {job.id}", total=None, note="")
        rows_per_s = _Rate()

        def seen(view: JobView) -> None:
            rate = rows_per_s.after(progress.get_time(), view.rows_done)
            progress.update(task, total=view.rows, completed=view.rows_done, note=_note(view, rate))

        return job.wait(seen=seen)


class _Rate:
    """Rows a second since the first row that was seen done."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def after(self, now_s: float, rows_done: int) -> float | None:
        if self._first is None:
            self._first = (now_s, rows_done)
        first_s, first_rows = self._first
        return (rows_done - first_rows) / (now_s - first_s) if now_s > first_s else None


def _note(view: JobView, rows_per_s: float | None) -> str:
    parts = [counted(view.vehicles, "car")]
    if rows_per_s:
        parts.insert(0, f"{rows_per_s:,.0f} rows/s")
    if view.state != "running":
        parts.append(view.state)
    elif view.waiting_for and not view.rows_leased:
        parts.append(view.waiting_for)
    return ", ".join(parts)
