"""How many rows make a batch: small at first, then as many as take the wanted time. Pure."""

from dataclasses import dataclass

__all__ = ["Pace", "PaceLimits"]

_WEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class PaceLimits:
    """`target_ms` is how long a batch should take: short enough to stop soon, long enough to be worth a message."""

    first_rows: int = 8
    max_rows: int = 4096
    target_ms: float = 100.0
    max_bytes: int = 8 << 20


@dataclass(slots=True)
class Pace:
    """What one model's rows cost here, learned from each batch; `fixed_rows` is the batch the model insists on."""

    limits: PaceLimits
    fixed_rows: int | None = None
    row_ms: float | None = None
    _rows: int = 0

    def rows(self, row_bytes: float) -> int:
        """Rows of the next batch, when a row's inputs take `row_bytes`."""
        if self.fixed_rows is not None:
            return self.fixed_rows
        return max(1, min(self._rows or self.limits.first_rows, int(self.limits.max_bytes / max(row_bytes, 1.0))))

    def learn(self, rows: int, compute_ms: float, output_bytes: int) -> None:
        """Take in what a batch took; the next one at most doubles, and only after a full one."""
        row_ms = compute_ms / rows
        self.row_ms = row_ms if self.row_ms is None else self.row_ms + _WEIGHT * (row_ms - self.row_ms)
        now = self._rows or self.limits.first_rows
        wanted = int(self.limits.target_ms / max(row_ms, 1e-3))
        by_bytes = int(self.limits.max_bytes * rows / max(output_bytes, 1))
        most = 2 * now if rows >= now else now
        self._rows = max(1, min(wanted, by_bytes, most, self.limits.max_rows))
