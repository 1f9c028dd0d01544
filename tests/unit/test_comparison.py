"""The demo's comparison: right, wrong, missing and repeated rows, of every kind of output."""

import numpy as np
import pytest

from fleet_wire.tensors import Array
from idlewheel.demo.comparison import Comparison, RowCollector, count, matching_rows

DIRECT = {
    "label": np.array([1, 2, 3, 4]),
    "scores": np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]], dtype=np.float32),
    "text": np.array(["a", "b", "c", "d"], dtype=object),
}
EVERY = np.ones(4, dtype=np.bool_)


def collected(*pieces: tuple[int, int], **changed: Array) -> RowCollector:
    outputs = DIRECT | changed
    collector = RowCollector(4)
    for start, stop in pieces:
        collector.add(start, {name: rows[start:stop] for name, rows in outputs.items()})
    return collector


def compared(collector: RowCollector) -> Comparison:
    return count(collector, matching_rows(collector, DIRECT, EVERY))


def test_rows_in_any_order_are_right() -> None:
    assert compared(collected((2, 4), (0, 2))) == Comparison(rows=4, right=4, wrong=0, missing=0, twice=0)
    assert compared(collected((2, 4), (0, 2))).all_right


def test_a_missing_row_and_a_row_that_comes_twice_are_counted() -> None:
    result = compared(collected((0, 3), (2, 3)))
    assert result == Comparison(rows=4, right=3, wrong=0, missing=1, twice=1)
    assert not result.all_right
    assert not compared(collected((0, 4), (0, 1))).all_right


@pytest.mark.parametrize(
    ("changed", "right"),
    [
        ({"label": np.array([1, 2, 3, 5])}, 3),
        ({"text": np.array(["a", "b", "c", "e"], dtype=object)}, 3),
        ({"scores": DIRECT["scores"] * np.float32(1 + 5e-6)}, 4),
        ({"scores": DIRECT["scores"] * np.float32(1 + 1e-3)}, 0),
        ({"scores": DIRECT["scores"][:, ::-1]}, 0),
        ({"scores": DIRECT["scores"][:, :1]}, 0),
        ({"label": DIRECT["label"].astype(np.float32)}, 0),
        ({"more": DIRECT["label"]}, 0),
    ],
)
def test_a_changed_output_is_wrong(changed: dict[str, Array], right: int) -> None:
    assert compared(collected((0, 4), **changed)) == Comparison(4, right, 4 - right, 0, 0)


def test_close_scores_with_another_largest_element_are_wrong() -> None:
    near = {"scores": np.array([[0.5, 0.5 - 1e-7]], dtype=np.float64)}
    collector = RowCollector(1)
    collector.add(0, {"scores": near["scores"][:, ::-1]})
    assert matching_rows(collector, near, np.ones(1, dtype=np.bool_)).tolist() == [False]


def test_some_rows_are_compared_with_a_run_of_those_alone() -> None:
    some = np.array([False, True, False, True])
    alone = {name: rows[some] for name, rows in DIRECT.items()}
    assert matching_rows(collected((0, 2)), alone, some).tolist() == [False, True, False, False]


def test_nothing_came() -> None:
    assert compared(RowCollector(4)) == Comparison(rows=4, right=0, wrong=0, missing=4, twice=0)
