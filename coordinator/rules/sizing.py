"""How many rows to give a car at once, from its measured speed. Pure."""

from dataclasses import dataclass

__all__ = ["SizingLimits", "backlog_ms", "chunk_rows", "lease_ms", "restored_deadline_ms", "rows_in"]


@dataclass(frozen=True, slots=True)
class SizingLimits:
    """`chunk_ms` is the work of one chunk, `backlog_ms` how much a car may hold so that it never waits for us.

    Towards the end of a job it holds less, so that no car is left with much to do alone: but `least_backlog_ms`.
    `inline_bytes` bounds the input rows in one task message; larger rows travel over HTTP.
    """

    chunk_ms: float = 1000.0
    backlog_ms: float = 2000.0
    least_backlog_ms: float = 300.0
    probe_rows: int = 8
    inline_bytes: int = 96 * 1024
    lease_floor_ms: float = 15_000.0
    lease_factor: float = 6.0
    restored_grace_ms: float = 5_000.0


def chunk_rows(
    *,
    row_ms: float | None,
    row_bytes: int,
    rows_free: int,
    cars: int,
    fixed_rows: int | None,
    batch_rows: int | None,
    limits: SizingLimits,
) -> int:
    """Rows of the next chunk for a car that takes `row_ms` a row (None: not measured yet).

    Towards the end of a job chunks shrink to half of a fair share of the free rows among `cars`, so that nobody is
    left with a long chunk while the others wait (guided self-scheduling: Polychronopoulos and Kuck, 1987).
    `fixed_rows` is the job's own wish; `batch_rows` the fixed batch of the model, which chunks are a multiple of.
    """
    if fixed_rows is not None:
        return min(fixed_rows, rows_free)
    by_time = limits.probe_rows if row_ms is None else int(limits.chunk_ms / max(row_ms, 1e-6))
    by_share = -(-rows_free // (2 * max(cars, 1)))
    by_bytes = limits.inline_bytes // max(row_bytes, 1)
    rows = max(1, min(by_time, by_share, by_bytes if by_bytes > 0 else by_time))
    if batch_rows is not None:
        rows = -(-rows // batch_rows) * batch_rows
    return min(rows, rows_free)


def backlog_ms(*, row_ms: float | None, rows_free: int, cars: int, limits: SizingLimits) -> float:
    """How much work a car may hold, in milliseconds: half of its share of what is free, within the limits."""
    share_ms = limits.backlog_ms if row_ms is None else rows_free * row_ms / (2 * max(cars, 1))
    return max(limits.least_backlog_ms, min(limits.backlog_ms, share_ms))


def rows_in(stay_ms: float, row_ms: float | None, *, idle: bool) -> int:
    """Rows that a car finishes while it probably stays (NaN: no limit); an idle one gets a row at least."""
    if row_ms is None or not stay_ms < 1e15:
        return 1 << 62
    return max(int(idle), int(stay_ms / max(row_ms, 1e-6)))


def lease_ms(backlog_ms: float, limits: SizingLimits) -> float:
    """How long a car gets for a chunk that ends its backlog of `backlog_ms`."""
    return limits.lease_floor_ms + limits.lease_factor * backlog_ms


def restored_deadline_ms(granted_ms: int, deadline_ms: int, now_ms: int, limits: SizingLimits) -> int:
    """When a lease that a restarted coordinator finds in its ledger runs out: not later than it would have.

    Nobody knows whether its task was sent before the end, so it gets what its work should take twice, and a grace.
    """
    expected_ms = max(0.0, deadline_ms - granted_ms - limits.lease_floor_ms) / limits.lease_factor
    return min(deadline_ms, now_ms + int(limits.restored_grace_ms + 2 * expected_ms))
