"""Rows that the vehicle holds under leases, in columns, and the pieces of them that travel through the worker. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fleet_wire.errors import WireError, WireFault
from fleet_wire.messages import Lease, Span, Task
from fleet_wire.tensors import Array

__all__ = ["Holding", "Layout", "Piece", "layout_of"]

# What rows must have in common to share a batch: name, element type and shape beyond the row axis of each input.
Layout = tuple[tuple[str, str, tuple[int, ...]], ...]


def layout_of(inputs: dict[str, Array], rows: int) -> Layout:
    """Check that every input has `rows` rows and return what they look like. Raise WireError(MALFORMED)."""
    if not inputs:
        raise WireError(WireFault.MALFORMED, "no inputs")
    for name, array in inputs.items():
        if array.ndim == 0 or array.shape[0] != rows:
            raise WireError(WireFault.MALFORMED, f"input {name!r} of shape {array.shape} for {rows} leased rows")
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(inputs.items()))


@dataclass(slots=True, eq=False)
class Holding:
    """One task's leases. A row is named by its place in the task's inputs; `at` says where each lease begins.

    `left` counts the rows of each lease that have not ended; a lease that is not ours (any more) has none left.
    """

    job: str
    model: str
    deadline_ms: int
    leases: list[Lease]
    at: NDArray[np.int64]
    left: NDArray[np.int64]
    bytes_held: int
    inputs: dict[str, Array] = field(default_factory=dict)
    layout: Layout = ()
    number: int = 0

    @classmethod
    def of(cls, task: Task, bytes_held: int) -> "Holding":
        """Take over all leases of a task. Raise WireError(MALFORMED) for leases without rows, or named twice."""
        bounds = np.array([(lease.start, lease.stop) for lease in task.leases], dtype=np.int64)
        rows = bounds[:, 1] - bounds[:, 0]
        if rows.min() <= 0 or len({lease.chunk for lease in task.leases}) != len(task.leases):
            raise WireError(WireFault.MALFORMED, "leases without rows, or on one chunk twice")
        at = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(rows, out=at[1:])
        return cls(task.job, task.model.digest, task.deadline_ms, task.leases, at, rows, bytes_held)

    @property
    def rows(self) -> int:
        """Rows in the inputs, those of foreign or ended leases included."""
        return int(self.at[-1])

    def lease_range(self, start: int, stop: int) -> tuple[int, int]:
        """First and last (excluded) lease that rows `start` to `stop` belong to."""
        first = int(np.searchsorted(self.at, start, side="right")) - 1
        return first, int(np.searchsorted(self.at, stop, side="left"))

    def spans(self, start: int, stop: int) -> list[Span]:
        """How these rows are called on the wire."""
        first, last = self.lease_range(start, stop)
        starts = self.at[first : last + 1].tolist()
        return [
            Span(lease.chunk, lease.start + max(start - begin, 0), lease.start + min(stop, end) - begin)
            for lease, begin, end in zip(self.leases[first:last], starts, starts[1:], strict=False)
        ]

    def finish(self, start: int, stop: int) -> list[int]:
        """Count rows as ended; return the chunks whose last row that was."""
        first, last = self.lease_range(start, stop)
        begins, ends = self.at[first:last], self.at[first + 1 : last + 1]
        left = self.left[first:last]
        left -= np.minimum(ends, stop) - np.maximum(begins, start)
        return [self.leases[first + place].chunk for place in np.flatnonzero(left == 0).tolist()]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Neighbouring rows of a holding on their way through the worker; `at` is their place in the batch.

    `alone` rows run in a batch of their own, because they were in one that failed; `deaths` counts the workers that
    died while computing them.
    """

    holding: Holding
    start: int
    stop: int
    at: int = 0
    alone: bool = False
    deaths: int = 0

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.start

    def living(self) -> "Iterator[Piece]":
        """Those parts of it whose leases are still held."""
        first, last = self.holding.lease_range(self.start, self.stop)
        alive = self.holding.left[first:last] > 0
        if alive.all():
            yield self
            return
        edges = np.flatnonzero(np.diff(alive.astype(np.int8), prepend=0, append=0)).tolist()
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            start = max(self.start, int(self.holding.at[first + begin]))
            stop = min(self.stop, int(self.holding.at[first + end]))
            yield self.part(start, stop)

    def part(self, start: int, stop: int) -> "Piece":
        """Rows `start` to `stop` of it."""
        return replace(self, start=start, stop=stop, at=self.at + start - self.start)

    def rows_alone(self, *, deaths: int) -> "list[Piece]":
        """Each row as a piece that runs alone."""
        return [
            Piece(self.holding, row, row + 1, alone=True, deaths=self.deaths + deaths)
            for row in range(self.start, self.stop)
        ]
