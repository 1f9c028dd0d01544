"""Chunk sizes, pay, and whether tensors fit a model."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from coordinator.model import FailedRow, LeaseRecord, Model, Rest
from coordinator.rules.failures import failure_text
from coordinator.rules.fit import input_fault, output_fault
from coordinator.rules.pay import paid
from coordinator.rules.quarantine import QuarantineLimits, quarantine_ms
from coordinator.rules.sizing import SizingLimits, backlog_ms, chunk_rows, lease_ms, restored_deadline_ms, rows_in
from fleet_wire.api import TensorSpec

LIMITS = SizingLimits()
MODEL = Model(
    "a" * 64,
    1,
    (TensorSpec("image", "float", [None, 3, None]), TensorSpec("name", "string", [None])),
    (TensorSpec("label", "int64", [None]),),
    None,
)


def size(**changes: object) -> int:
    terms = {"row_ms": 10.0, "row_bytes": 100, "rows_free": 10_000, "cars": 2, "fixed_rows": None, "batch_rows": None}
    return chunk_rows(**{**terms, **changes}, limits=LIMITS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, 100),  # a second of work at 10 ms a row
        ({"row_ms": None}, LIMITS.probe_rows),
        ({"row_ms": 0.0}, 96 * 1024 // 100),  # immeasurably fast: as much as fits into a message
        ({"row_ms": 5_000.0}, 1),
        ({"row_ms": 0.1, "row_bytes": 1, "rows_free": 1_000_000}, 10_000),
        ({"row_ms": 0.0, "row_bytes": 1, "rows_free": 1_000_000}, 96 * 1024),
        ({"rows_free": 40, "cars": 1}, 20),
        ({"rows_free": 40}, 10),  # half of a fair share near the end
        ({"rows_free": 1}, 1),
        ({"row_bytes": 50_000}, 1),
        ({"row_bytes": 1 << 20}, 100),  # too large for any message: the rows go over HTTP, so time decides
        ({"fixed_rows": 7}, 7),
        ({"fixed_rows": 7, "rows_free": 3}, 3),
        ({"batch_rows": 64}, 128),
        ({"batch_rows": 64, "rows_free": 5}, 5),
    ],
)
def test_chunk_sizes(changes: dict[str, object], rows: int) -> None:
    assert size(**changes) == rows


@given(
    row_ms=st.none() | st.floats(0, 1e6),
    row_bytes=st.integers(0, 1 << 30),
    rows_free=st.integers(1, 1 << 40),
    cars=st.integers(0, 1 << 20),
    fixed_rows=st.none() | st.integers(1, 1 << 20),
    batch_rows=st.none() | st.integers(1, 1024),
)
def test_a_chunk_has_at_least_one_row_and_none_that_is_not_there(**terms: object) -> None:
    assert 1 <= size(**terms) <= terms["rows_free"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("row_ms", "rows_free", "held_ms"),
    [(None, 10, 2_000), (10.0, 10_000, 2_000), (10.0, 400, 1_000), (10.0, 40, 300), (0.001, 10_000, 300)],
)
def test_a_car_holds_half_of_its_share_of_what_is_free(row_ms: float | None, rows_free: int, held_ms: float) -> None:
    assert backlog_ms(row_ms=row_ms, rows_free=rows_free, cars=2, limits=LIMITS) == held_ms


@pytest.mark.parametrize("cars", [0, 1])
def test_a_car_alone_holds_half_of_what_is_free(cars: int) -> None:
    assert backlog_ms(row_ms=10.0, rows_free=100, cars=cars, limits=LIMITS) == 500


@pytest.mark.parametrize(
    ("stay_ms", "row_ms", "idle", "rows"),
    [(100.0, 0.1, False, 1000), (105.0, 10.0, False, 10), (5.0, 10.0, False, 0), (5.0, 10.0, True, 1)],
)
def test_rows_that_a_car_ends_while_it_stays_are_whole_ones(
    stay_ms: float, row_ms: float, idle: bool, rows: int
) -> None:
    assert repr(rows_in(stay_ms, row_ms, idle=idle)) == repr(rows)


def test_failed_rows_are_named_in_order_the_first_three_with_the_error_of_the_first() -> None:
    rows = [FailedRow(row, attempts=row, error="e" * (row * 150)) for row in (4, 1, 2, 3)]
    assert failure_text([]) is None
    assert failure_text(rows[:1]) == "row 4 failed on 4 attempts: " + "e" * 200 + "…"
    assert failure_text(rows[1:3]) == "rows 1, 2 failed on 1 attempts: " + "e" * 150
    assert failure_text(rows[1:]) == "rows 1, 2, 3 failed on 1 attempts: " + "e" * 150
    assert failure_text(rows) == "rows 1, 2, 3 and 1 more failed on 1 attempts: " + "e" * 150


def test_a_restored_lease_that_was_to_take_no_time_gets_the_grace_alone() -> None:
    assert repr(restored_deadline_ms(1_000, 9_000, 2_000, LIMITS)) == "7000"


def test_a_lease_that_a_restart_finds_gets_twice_its_work_and_a_grace() -> None:
    granted_ms = 1_000
    deadline_ms = granted_ms + int(lease_ms(2_000, LIMITS))
    assert restored_deadline_ms(granted_ms, deadline_ms, 3_000, LIMITS) == 3_000 + 5_000 + 2 * 2_000
    assert restored_deadline_ms(granted_ms, deadline_ms, deadline_ms - 10, LIMITS) == deadline_ms


GOOD = [TensorSpec("name", "string", [5]), TensorSpec("image", "float", [5, 3, 9])]


@pytest.mark.parametrize(
    ("inputs", "fault"),
    [
        (GOOD, None),
        (GOOD[:1], "input 'image' is missing; the model takes: image, name"),
        ([*GOOD, TensorSpec("z", "float", [5])], "the model has no input 'z'; it takes: image, name"),
        ([GOOD[0], TensorSpec("image", "double", [5, 3, 9])], "input 'image' is double where the model takes float"),
        ([GOOD[0], TensorSpec("image", "float", [5, 3])], "input 'image' has rank 2 where the model takes rank 3"),
        (
            [GOOD[0], TensorSpec("image", "float", [5, 4, 9])],
            "input 'image' has shape [5, 4, 9] where the model takes [rows, 3, any]",
        ),
        (
            [GOOD[0], TensorSpec("image", "float", [6, 3, 9])],
            "the inputs differ in their number of rows: 'name' has 5, 'image' has 6",
        ),
        (
            [TensorSpec("name", "string", [0]), TensorSpec("image", "float", [0, 3, 9])],
            "there are no rows: axis 0 of the inputs has length 0",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs: list[TensorSpec], fault: str | None) -> None:
    assert input_fault(inputs, MODEL) == fault


def test_a_fixed_batch_says_nothing_of_how_many_rows_there_are() -> None:
    batched = Model("a" * 64, 1, (TensorSpec("x", "float", [4, 3]),), MODEL.outputs, 4)
    assert input_fault([TensorSpec("x", "float", [5, 3])], batched) is None


def test_an_hour_earns_its_fee_and_a_microsecond_less_does_not() -> None:
    lease = LeaseRecord("j", 0, 0, 1, "v", 1, 0, 1, energy_micro_per_kwh=1, pay_micro_per_h=1)
    hour_us, kwh_mwh = 3_600_000_000, 1_000_000
    assert paid(kwh_mwh, hour_us, lease, Rest()) == (1, 1, Rest(0, 0))
    assert paid(kwh_mwh - 1, hour_us - 1, lease, Rest()) == (0, 0, Rest(kwh_mwh - 1, hour_us - 1))


@pytest.mark.parametrize(
    ("strikes", "pause_ms"), [(2, 0), (3, 60_000), (4, 120_000), (11, 256 * 60_000), (12, 21_600_000), (99, 21_600_000)]
)
def test_quarantine_is_what_the_document_says(strikes: int, pause_ms: int) -> None:
    assert quarantine_ms(strikes, QuarantineLimits()) == pause_ms


@pytest.mark.parametrize(
    ("outputs", "fault"),
    [
        ([TensorSpec("label", "int64", [4])], None),
        ([TensorSpec("label", "int64", [3])], "output 'label' of shape [3] does not have 4 rows"),
        ([TensorSpec("label", "int64", [])], "output 'label' of shape [] does not have 4 rows"),
        ([TensorSpec("label", "float", [4])], "output 'label' is float where the model gives int64"),
        ([TensorSpec("other", "int64", [4])], "outputs ['other'] where the model gives ['label']"),
        ([], "outputs [] where the model gives ['label']"),
    ],
)
def test_outputs_that_do_not_fit_are_named(outputs: list[TensorSpec], fault: str | None) -> None:
    assert output_fault(outputs, 4, MODEL) == fault
