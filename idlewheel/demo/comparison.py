"""Collects the rows that a fleet streamed and compares them, one by one, with those of a direct run. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fleet_wire.tensors import Array

__all__ = ["TOLERANCE_TEXT", "Comparison", "RowCollector", "count", "matching_rows"]

# Single precision keeps about seven digits.
RELATIVE_TOLERANCE: Final = 1e-5
ABSOLUTE_TOLERANCE: Final = 1e-6
TOLERANCE_TEXT: Final = (
    f"floats {RELATIVE_TOLERANCE:g} relative + {ABSOLUTE_TOLERANCE:g} absolute and the same largest element, "
    "everything else exactly"
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many rows are right, came with another value, never came, and came more than once."""

    rows: int
    right: int
    wrong: int
    missing: int
    twice: int

    @property
    def all_right(self) -> bool:
        """Whether every row came, once, with the right value."""
        return self.right == self.rows and self.twice == 0


class RowCollector:
    """Puts streamed pieces in row order and counts how often each row came."""

    def __init__(self, rows: int) -> None:
        self.counts: Final[NDArray[np.int32]] = np.zeros(rows, dtype=np.int32)
        self.outputs: Final[dict[str, Array]] = {}

    @property
    def came(self) -> NDArray[np.bool_]:
        """Which rows came at all."""
        return np.asarray(self.counts > 0)

    def add(self, start: int, piece: Mapping[str, Array]) -> int:
        """Take in the outputs of rows from `start` on; return how many rows that are."""
        count = len(next(iter(piece.values())))
        self.counts[start : start + count] += 1
        for name, rows in piece.items():
            if name not in self.outputs:
                self.outputs[name] = np.empty((len(self.counts), *rows.shape[1:]), dtype=rows.dtype)
            self.outputs[name][start : start + count] = rows
        return count


def matching_rows(collected: RowCollector, direct: Mapping[str, Array], rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of all rows came and match; `direct` has the outputs of those that `rows` names.

    Floats match within the tolerance, everything else exactly.
    """
    same = collected.came[rows] & np.bool_(set(collected.outputs) == set(direct))
    for name, expected in direct.items():
        if name in collected.outputs:
            same &= _same_rows(collected.outputs[name][rows], expected)
    matching = np.zeros(len(rows), dtype=np.bool_)
    matching[rows] = same
    return matching


def count(collected: RowCollector, right: NDArray[np.bool_]) -> Comparison:
    """Count what came, given which rows are right."""
    return Comparison(
        rows=len(right),
        right=int(right.sum()),
        wrong=int((collected.came & ~right).sum()),
        missing=int((~collected.came).sum()),
        twice=int((collected.counts > 1).sum()),
    )


def _same_rows(got: Array, expected: Array) -> NDArray[np.bool_]:
    if got.shape != expected.shape or got.dtype.kind != expected.dtype.kind:
        return np.zeros(len(got), dtype=np.bool_)
    got, expected = got.reshape(len(got), -1), expected.reshape(len(expected), -1)
    if got.dtype.kind not in "fc":
        return np.asarray((got == expected).all(axis=1))
    with np.errstate(invalid="ignore"):  # rows that never came hold anything
        near = np.isclose(got, expected, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE, equal_nan=True)
    close = np.asarray(near.all(axis=1))
    if got.dtype.kind == "c" or got.shape[1] < 2:
        return close
    return np.asarray(close & (got.argmax(axis=1) == expected.argmax(axis=1)))
