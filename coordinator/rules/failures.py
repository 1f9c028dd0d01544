"""When a job is beyond hope as a whole, and how the rows that failed are named. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.model import FailedRow

__all__ = ["FailureLimits", "failure_text", "is_lost"]

_ROWS_NAMED = 3
_ERROR_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class FailureLimits:
    """A job is given up as a whole after `most_rows` failed rows, or after `most_at_start` when none was computed."""

    most_rows: int = 1000
    most_at_start: int = 32


def is_lost(rows_failed: int, rows_done: int, limits: FailureLimits) -> bool:
    """Whether so many rows failed that trying the others would only waste the cars' energy."""
    return rows_failed >= (limits.most_rows if rows_done else limits.most_at_start)


def failure_text(failed: Sequence[FailedRow]) -> str | None:
    """One line that names the first failed rows and the error of the first; None when there are none."""
    if not failed:
        return None
    rows = sorted(failed, key=lambda row: row.row)
    named = ", ".join(str(row.row) for row in rows[:_ROWS_NAMED])
    more = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
    error = rows[0].error
    if len(error) > _ERROR_CHARACTERS:
        error = f"{error[:_ERROR_CHARACTERS]}…"
    return f"row{'s' if len(rows) > 1 else ''} {named}{more} failed on {rows[0].attempts} attempts: {error}"
