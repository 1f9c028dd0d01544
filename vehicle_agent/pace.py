"""How many rows make a batch: those with which a row costs least here, within the time that a batch may take. Pure.

A larger batch is not always better: past some size its data leaves the processor's caches. So sizes are tried, each
half or twice another, and the best one known is used.
"""

from dataclasses import dataclass, field

__all__ = ["Pace", "PaceLimits"]

_WEIGHT = 0.3
_BATCHES_BETWEEN_TRIES = 16


@dataclass(frozen=True, slots=True)
class PaceLimits:
    """A batch should take `least_ms`, to be worth a message, and at most `target_ms`, so that it is stopped soon."""

    first_rows: int = 8
    max_rows: int = 4096
    least_ms: float = 20.0
    target_ms: float = 100.0
    max_bytes: int = 8 << 20


@dataclass(slots=True)
class Pace:
    """What one model's rows cost here, learned from each batch; `fixed_rows` is the batch the model insists on."""

    limits: PaceLimits
    fixed_rows: int | None = None
    row_ms: float | None = None
    _rows: int = 0
    _most: int = 0
    _batches: int = 0
    _asked: set[int] = field(default_factory=set)
    _known_row_ms: dict[int, float] = field(default_factory=dict)

    def rows(self, row_bytes: float) -> int:
        """Rows of the next batch, when a row's inputs take `row_bytes`."""
        if self.fixed_rows is not None:
            return self.fixed_rows
        return max(1, min(self._rows or self.limits.first_rows, int(self.limits.max_bytes / max(row_bytes, 1.0))))

    def learn(self, rows: int, compute_ms: float, output_bytes: int) -> None:
        """Take in what a batch took. Sizes never asked for are what was left of a chunk: they tell nothing."""
        row_ms = compute_ms / rows
        self.row_ms = _averaged(self.row_ms, row_ms)
        by_bytes = int(self.limits.max_bytes * rows / max(output_bytes, 1))
        self._most = max(1, min(by_bytes, self.limits.max_rows))
        self._asked.add(self._rows or self.limits.first_rows)
        if rows in self._asked:
            self._known_row_ms[rows] = _averaged(self._known_row_ms.get(rows), row_ms)
            self._batches += 1
            self._rows = self._next(rows)
        self._rows = min(self._rows or self.limits.first_rows, self._most)

    def _next(self, rows: int) -> int:
        """The size after a batch of `rows`: one beside it that is not known, now and then another, else the best."""
        batch_ms = rows * self._known_row_ms[rows]
        if batch_ms < self.limits.least_ms:
            return 2 * rows
        if batch_ms > self.limits.target_ms:
            return max(1, rows // 2)
        for size in (2 * rows, rows // 2):
            if size not in self._known_row_ms and self._fits(size, rows):
                return size
        fitting = [size for size in self._known_row_ms if self._fits(size, size)]
        best = min(fitting, key=self._known_row_ms.__getitem__, default=rows)
        if self._batches % _BATCHES_BETWEEN_TRIES == 0:
            other = best // 2 if self._batches % (2 * _BATCHES_BETWEEN_TRIES) else 2 * best
            return other if self._fits(other, best) else best
        return best

    def _fits(self, size: int, like: int) -> bool:
        """Say whether a batch of `size` takes the right time, if its rows take what those of a batch of `like` do."""
        batch_ms = size * self._known_row_ms.get(size, self._known_row_ms[like])
        return 1 <= size <= self._most and self.limits.least_ms <= batch_ms <= self.limits.target_ms


def _averaged(before: float | None, now: float) -> float:
    return now if before is None else before + _WEIGHT * (now - before)
