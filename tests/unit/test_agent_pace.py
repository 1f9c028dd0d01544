"""Batches: the size with which a row costs least, within the time that a batch may take."""

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given

from vehicle_agent.pace import Pace, PaceLimits


def settled(row_ms: Callable[[int], float], batches: int = 60, row_bytes: float = 4.0) -> Pace:
    pace = Pace(PaceLimits())
    for _ in range(batches):
        rows = pace.rows(row_bytes)
        pace.learn(rows, rows * row_ms(rows), rows * 4)
    return pace


@pytest.mark.parametrize(
    ("row_ms", "rows"),
    [
        (lambda rows: 0.09 + 0.4 / rows, 1024),  # each doubling still helps a little
        (lambda rows: 0.09 + 0.4 / rows + 1e-5 * rows, 256),  # caches spill: 200 would be best
        (lambda rows: 8.0 + 0.05 * rows, 4),  # 2 would be better and too short for a message
        (lambda rows: 60.0, 1),
        (lambda rows: 500.0, 1),  # one row takes longer than a batch should: there is no less
        (lambda rows: 0.0001, 4096),  # immeasurably fast
    ],
)
def test_the_best_size_is_found(row_ms: Callable[[int], float], rows: int) -> None:
    assert settled(row_ms).rows(4.0) == rows


def test_what_is_left_of_a_chunk_does_not_change_the_size() -> None:
    pace = settled(lambda rows: 0.09 + 0.4 / rows)
    before = pace.rows(4.0)
    pace.learn(37, 37 * 5.0, 148)
    assert pace.rows(4.0) == before


def test_a_batch_is_bounded_by_its_inputs_and_outputs() -> None:
    assert settled(lambda _: 0.0001).rows(1 << 20) == 8
    pace = Pace(PaceLimits())
    pace.learn(8, 0.1, 8 << 20)
    assert pace.rows(4.0) == 8


def test_a_size_that_became_better_is_found_again() -> None:
    pace = settled(lambda rows: 0.1 + 1e-4 * rows)
    assert pace.rows(4.0) == 256
    for _ in range(400):
        rows = pace.rows(4.0)
        pace.learn(rows, rows * (0.09 + 5.0 / rows), rows * 4)
    assert pace.rows(4.0) == 512


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(1e-6, 1e6), st.integers(0, 1 << 30)), max_size=60))
def test_a_batch_never_has_less_than_a_row_or_more_than_the_most(batches: list[tuple[int, float, int]]) -> None:
    pace = Pace(PaceLimits())
    for rows, compute_ms, output_bytes in batches:
        pace.learn(rows, compute_ms, output_bytes)
        assert 1 <= pace.rows(4.0) <= PaceLimits().max_rows
